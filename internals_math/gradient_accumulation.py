"""Gradient accumulation: the step of a large batch from small ones, and what a larger batch is good for.

Notation: K = accumulation_steps, b = sequences of a micro-batch, B = sequences of a batch, M = per-sequence gradients,
P = parameters; G = the true gradient, Σ = the covariance of the gradients of single sequences.
Sources: McCandlish et al. 2018, arXiv 1812.06162 (noise scale section 2.2, estimator appendix A.1); Goyal et al. 2017,
arXiv 1706.02677; Korthikanti et al. 2022, arXiv 2205.05198, eq. 2 (activations); the bug of averaged averages was
found in large libraries in October 2024 (`num_items_in_batch` in transformers).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from internals_math.model_shapes import activation_bytes_per_layer
from internals_math.next_token import IGNORE, target_surprisal
from internals_math.trace import TopicConfig, TopicTrace, option

NORMALIZATIONS = ("tokens", "mean_of_means", "none")

LossFn = Callable[[Sequence[Tensor], Any], tuple[Tensor, Tensor]]  # (params, batch) -> sum of token losses, number
OnMicroBatch = Callable[[int, list[Tensor]], None]  # (micro-batches done, the buffers: not to be changed)


# -- adding up ---------------------------------------------------------------------------------------------------------


def effective_batch_size(micro_batch: int, accumulation_steps: int, world_size: int = 1, seq_len: int = 1) -> int:
    """Return the sequences behind one optimizer step, over all workers; with seq_len the tokens.

    >>> effective_batch_size(12, 5, world_size=8, seq_len=1024)
    491520

    Raises:
        ValueError: a number below 1.
    """
    numbers = (micro_batch, accumulation_steps, world_size, seq_len)
    if min(numbers) < 1:
        raise ValueError(f"micro_batch, accumulation_steps, world_size and seq_len must be at least 1, got {numbers}")
    return micro_batch * accumulation_steps * world_size * seq_len


def token_losses(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"], ignore_index: int = IGNORE
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the sum of the token losses (nats) and the number of tokens that count; logits and targets are aligned.

    The two are kept apart, because the mean of a batch is known only when all of its micro-batches are.
    """
    return target_surprisal(logits, targets, ignore_index).sum(), (targets != ignore_index).sum()


@dataclass(frozen=True, eq=False)
class AccumulatedGradient:
    """What is left of a window of micro-batches."""

    grads: list[Tensor]
    token_counts: Int[Tensor, " K"]
    micro_norms: Float[Tensor, " K"]  # length of the gradient of each micro-batch's own mean loss
    running: Float[Tensor, "K P"] | None = field(default=None)  # with `record`: after each micro-batch, as in `grads`


def accumulate_gradients(
    loss_fn: LossFn,
    params: Sequence[Tensor],
    micro_batches: Sequence[Any],
    *,
    normalization: str = "tokens",
    accum_dtype: torch.dtype = torch.float32,
    record: bool = False,
    on_micro_batch: OnMicroBatch | None = None,
) -> AccumulatedGradient:
    """Return the gradient of a batch that is never in memory as a whole; nothing is written to `.grad`.

    Args:
        loss_fn: (params, micro_batch) -> the SUM of the token losses and their number.
        normalization: "tokens": the sum over all tokens of the window, divided by their number: the gradient of the
            whole batch. "mean_of_means": the mean of the micro-batches' means, which counts the tokens of short
            micro-batches too much. "none": the sum of these means, K times as long.
        accum_dtype: of the buffers and of the result.
        record: keep the partial results too.
        on_micro_batch: sees the buffers after every micro-batch, before they are divided by anything: sums of
            gradients, of losses summed ("tokens") or averaged.

    Raises:
        ValueError: an unknown normalization, no micro-batches, or no token to predict: in the window, or, where it is
            averaged alone, in a micro-batch.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
    if not len(micro_batches):
        raise ValueError("micro_batches must hold at least one micro-batch, got none")
    buffers = [torch.zeros_like(p, dtype=accum_dtype, requires_grad=False) for p in params]
    leaves = [p.detach().requires_grad_() for p in params]
    counts: list[int] = []
    norms, partial = [], []
    for step, batch in enumerate(micro_batches):
        loss_sum, n_tokens = loss_fn(leaves, batch)
        counts.append(int(n_tokens))
        if not counts[-1] and normalization != "tokens":
            raise ValueError(f"micro-batch {step} has no token to predict, so that it has no mean")
        grads = torch.autograd.grad(loss_sum, leaves)
        norms.append(flatten_gradients(grads).norm() / max(1, counts[-1]))
        divisor = 1 if normalization == "tokens" else counts[-1]
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer += (grad / divisor).to(accum_dtype)
        if record:
            partial.append(flatten_gradients(buffers))
        if on_micro_batch is not None:
            on_micro_batch(step + 1, buffers)
    total = sum(counts)
    if not total:
        raise ValueError("the window has no token to predict")
    divisor = {"tokens": total, "mean_of_means": len(counts), "none": 1}[normalization]
    return AccumulatedGradient(
        grads=[buffer / divisor for buffer in buffers],
        token_counts=torch.tensor(counts),
        micro_norms=torch.stack(norms),
        running=torch.stack(partial) / divisor if record else None,
    )


def full_batch_gradient(loss_fn: LossFn, params: Sequence[Tensor], batch: Any) -> list[Tensor]:
    """Return the gradient of the mean token loss of one batch, computed at once.

    Raises:
        ValueError: no token to predict.
    """
    leaves = [p.detach().requires_grad_() for p in params]
    loss_sum, n_tokens = loss_fn(leaves, batch)
    if not int(n_tokens):
        raise ValueError("the batch has no token to predict")
    return list(torch.autograd.grad(loss_sum / n_tokens, leaves))


def per_sequence_gradients(
    loss_fn: LossFn, params: Sequence[Tensor], batch: Shaped[Tensor, "M ..."], chunk: int = 64
) -> Float[Tensor, "M P"]:
    """Return the gradient of the mean token loss of every row, flattened; `chunk` rows are in memory at a time."""
    weights = tuple(p.detach() for p in params)

    def mean_loss(weights: tuple[Tensor, ...], row: Tensor) -> Tensor:
        loss_sum, n_tokens = loss_fn(weights, row)
        return loss_sum / n_tokens

    rows = torch.func.vmap(torch.func.grad(mean_loss), in_dims=(None, 0))
    found = torch.empty(len(batch), sum(w.numel() for w in weights), dtype=weights[0].dtype)
    for start in range(0, len(batch), chunk):
        grads = rows(weights, batch[start : start + chunk])
        found[start : start + chunk] = torch.cat([grad.flatten(1) for grad in grads], dim=1)
    return found


def flatten_gradients(grads: Iterable[Tensor]) -> Float[Tensor, " P"]:
    """Return all gradients in one row, in the order of the parameters."""
    return torch.cat([grad.reshape(-1) for grad in grads])


def mean_of_means_weights(token_counts: Int[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return how much a token of each micro-batch counts in the mean of means, 1 = as it should: Σn / (K n_k).

    >>> mean_of_means_weights(torch.tensor([3, 5, 40, 12]))
    tensor([5.0000, 3.0000, 0.3750, 1.2500], dtype=torch.float64)

    Raises:
        ValueError: no micro-batches, or one without tokens.
    """
    if not len(token_counts) or not (token_counts > 0).all():
        raise ValueError(f"token_counts must be one or more numbers > 0, got {token_counts.tolist()}")
    return token_counts.sum() / (len(token_counts) * token_counts.double())


# -- noise -------------------------------------------------------------------------------------------------------------


def gradient_covariance_trace(per_example: Float[Tensor, "M P"]) -> float:
    """Return tr Σ, unbiased (divisor M - 1).

    The factor (M - B) / (M - 1) of `finite_population_variance` wants the covariance of the M examples themselves,
    with divisor M: multiply by (M - 1) / M before.

    Raises:
        ValueError: fewer than 2 examples.
    """
    if len(per_example) < 2:
        raise ValueError(f"a covariance needs at least 2 examples, got {len(per_example)}")
    return float(per_example.var(dim=0).sum(dtype=torch.float64))


def simple_noise_scale(per_example: Float[Tensor, "M P"]) -> float:
    """Return tr Σ / ‖G‖², with ‖G‖² estimated without bias: ‖mean‖² - tr Σ / M (1812.06162, eq. 2.9).

    Raises:
        ValueError: fewer than 2 examples, or so few that their mean is not longer than its own noise.
    """
    trace = gradient_covariance_trace(per_example)
    grad_sq = float(per_example.mean(dim=0).double().square().sum()) - trace / len(per_example)
    if not grad_sq > 0:
        raise ValueError(f"the mean of {len(per_example)} gradients does not rise above its noise; take more examples")
    return trace / grad_sq


def noise_scale_from_norms(
    sq_norm_small: float, sq_norm_big: float, b_small: int, b_big: int
) -> tuple[float, float, float]:
    """Return unbiased ‖G‖² and tr Σ and their ratio, from squared lengths at two batch sizes (appendix A.1).

    A window of micro-batches gives both for nothing. The first two are noisy and may come out negative: average them
    over many windows before dividing.

    Raises:
        ValueError: not 1 <= b_small < b_big, or an estimate of ‖G‖² that is exactly 0.
    """
    if not 1 <= b_small < b_big:
        raise ValueError(f"batch sizes must be 1 <= b_small < b_big, got {b_small} and {b_big}")
    grad_sq = (b_big * sq_norm_big - b_small * sq_norm_small) / (b_big - b_small)
    trace = (sq_norm_small - sq_norm_big) / (1 / b_small - 1 / b_big)
    if grad_sq == 0:
        raise ValueError("these lengths leave a true gradient of length 0, so that the noise scale is undefined")
    return grad_sq, trace, trace / grad_sq


def expected_squared_norm(grad_sq: float, trace: float, batch: int) -> float:
    """Return E ‖g_B‖² = ‖G‖² + tr Σ / B: a gradient of few sequences is longer than the true one."""
    _check_batch(batch)
    return grad_sq + trace / batch


def finite_population_variance(trace: float, batch: int, population: int) -> float:
    """Return E ‖g_B - mean‖² of a batch drawn without replacement: tr Σ / B · (M - B) / (M - 1).

    Args:
        trace: of the covariance of the whole population, divisor M.

    Raises:
        ValueError: a batch below 1 or larger than the population.
    """
    _check_batch(batch)
    if batch > population:
        raise ValueError(f"batch must be at most the population of {population}, got {batch}")
    return 0.0 if batch == population else trace / batch * (population - batch) / (population - 1)


def optimal_step_progress(batch: float, b_noise: float) -> float:
    """Return the decrease of the loss by one step of the best size, 1 = with the true gradient: 1 / (1 + B_noise / B).

    Raises:
        ValueError: batch or b_noise not > 0.
    """
    _check_noise(batch, b_noise)
    return 1 / (1 + b_noise / batch)


def steps_examples_tradeoff(batch: float, b_noise: float) -> tuple[float, float]:
    """Return steps and examples to a target, 1 = the least possible: 1 + B_noise / B and 1 + B / B_noise (eq. 2.11).

    Raises:
        ValueError: batch or b_noise not > 0.
    """
    _check_noise(batch, b_noise)
    return 1 + b_noise / batch, 1 + batch / b_noise


def hessian_noise_scale(
    loss_fn: LossFn,
    params: Sequence[Tensor],
    batch: Any,
    per_example: Float[Tensor, "M P"],
    n_probes: int,
    generator: torch.Generator | None = None,
) -> float:
    """Return B_noise = tr(HΣ) / (G^T H G), H = Hessian of the mean token loss of the batch (1812.06162, eq. 2.8).

    tr(HΣ) is the mean of v^T H v over random v of covariance Σ, mixed from the centered gradients. Nothing but products
    of H with a vector is needed. G is the examples' mean; its own noise, tr(HΣ) / M, is taken out below the line.

    Raises:
        ValueError: fewer than 2 examples, no probes, or no positive curvature along G.
    """
    count = len(per_example)
    if count < 2 or n_probes < 1:
        raise ValueError(f"at least 2 examples and 1 probe are needed, got {count} and {n_probes}")
    mean = per_example.mean(dim=0)
    signs = torch.randint(0, 2, (n_probes, count), generator=generator).to(per_example.dtype) * 2 - 1
    # Σ s_i (g_i - mean) without a second copy of all gradients
    probes = (signs @ per_example - signs.sum(dim=1, keepdim=True) * mean) / (count - 1) ** 0.5
    leaves = [p.detach().requires_grad_() for p in params]
    loss_sum, n_tokens = loss_fn(leaves, batch)
    slope = flatten_gradients(torch.autograd.grad(loss_sum / n_tokens, leaves, create_graph=True))

    def curvature(vector: Tensor) -> float:
        product = torch.autograd.grad(slope @ vector, leaves, retain_graph=True)
        return float(flatten_gradients(product).double() @ vector.double())

    noise = sum(curvature(probe) for probe in probes) / n_probes
    signal = curvature(mean) - noise / count
    if not signal > 0:
        raise ValueError(f"the loss must curve upwards along the gradient, got G^T H G = {signal}")
    return noise / signal


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")


def _check_noise(batch: float, b_noise: float) -> None:
    if not (batch > 0 and b_noise > 0):
        raise ValueError(f"batch and b_noise must be > 0, got {batch} and {b_noise}")


# -- memory ------------------------------------------------------------------------------------------------------------


def activation_bytes(layers: int, seq_len: int, micro_batch: int, hidden: int, heads: int) -> int:
    """Return the bytes that all layers of a GPT keep for the backward pass, 16 bit, nothing recomputed.

    layers · s b h (34 + 5 a s / h) (2205.05198, eq. 2); embedding and head are not counted.

    Raises:
        ValueError: a number below 1.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    return layers * activation_bytes_per_layer(seq_len, micro_batch, hidden, heads)


def training_memory(
    n_params: int, activation_bytes_per_seq: int, micro_batch: int, bytes_per_param: int = 16
) -> dict[str, int]:
    """Return what is there whatever the batch (weights, ONE gradient buffer, Adam), and what every sequence adds.

    Raises:
        ValueError: a micro_batch below 0 or another number below 1.
    """
    if micro_batch < 0 or min(n_params, activation_bytes_per_seq, bytes_per_param) < 1:
        raise ValueError(
            f"micro_batch must be at least 0 and the others at least 1, got {micro_batch} and "
            f"{(n_params, activation_bytes_per_seq, bytes_per_param)}"
        )
    static, activations = n_params * bytes_per_param, micro_batch * activation_bytes_per_seq
    return {"static": static, "activations": activations, "total": static + activations}


def measured_saved_tensor_bytes(fn: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Return the most bytes that autograd keeps for backward passes at any moment while fn runs.

    A storage counts once, in full, however often it is saved; those of `parameters` do not count.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    meter = _Meter()

    def pack(tensor: Tensor) -> "Tensor | _Saved":
        return tensor if tensor.untyped_storage().data_ptr() in known else _Saved(tensor, meter)

    def unpack(saved: "Tensor | _Saved") -> Tensor:
        return saved.tensor if isinstance(saved, _Saved) else saved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = fn()  # while it lives, so does its graph
    del result
    return meter.peak


@dataclass
class _Meter:
    """The storages that are kept now, by address, and the most bytes so far."""

    users: Counter[int] = field(default_factory=Counter)
    live: int = 0
    peak: int = 0

    def add(self, storage: torch.UntypedStorage) -> None:
        self.users[storage.data_ptr()] += 1
        if self.users[storage.data_ptr()] == 1:
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def remove(self, storage: torch.UntypedStorage) -> None:
        self.users[storage.data_ptr()] -= 1
        if self.users[storage.data_ptr()] == 0:
            self.live -= storage.nbytes()


class _Saved:
    """A tensor that a graph keeps; it goes when the graph goes."""

    def __init__(self, tensor: Tensor, meter: _Meter) -> None:
        self.tensor, self.meter = tensor, meter
        meter.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self.meter.remove(self.tensor.untyped_storage())


# -- what the video shows ----------------------------------------------------------------------------------------------

CHECKPOINTS = {"early": "base_step25", "mid": "base_step200", "late": "base"}
CHECKPOINT_STEPS = (25, 200, 1600)
CLOUD_BATCHES = (1, 4, 16, 64, 256, 1024)
POPULATION = CLOUD_BATCHES[-1]  # sequences that batches are drawn from
CORNER = 8  # rows and columns of the weight whose gradient is on screen
MEMORY_BATCHES = (1, 2, 4, 8, 16)
SUMMED, TERM = 1024, 1e-3


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    micro_batch: int = option(4, "sequences that fit into memory", minimum=1, maximum=16)
    accumulation_steps: int = option(8, "micro-batches before a step", minimum=1, maximum=32)
    variable_length: bool = option(True, "whole texts, grouped by length; false: all cut to one length")
    clouds: int = option(64, "gradients drawn for each batch size", minimum=16, maximum=256)
    checkpoint: str = option("mid", "how far the model is trained", choices=tuple(CHECKPOINTS))
    seed: int = option(0, "of the texts and the draws", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws, of the tiny LM at config.checkpoint.

    The plane: axis 1 is the mean gradient of 1024 sequences, axis 2 the direction in which their gradients vary most
    among those orthogonal to it. Noise: gradients of the mean loss of single sequences; batches are drawn from the 1024
    without replacement, so that the last batch is all of them.
    """

    config: Config
    grad_window: Float[Tensor, "K 8 8"]  # corner of one weight's gradient after each micro-batch
    window_name: str
    max_abs_diff: float  # accumulated, against the whole batch at once
    token_counts: Int[Tensor, " K"]
    sequence_tokens: Int[Tensor, "K b"]
    micro_grads_2d: Float[Tensor, "K 2"]  # K times the share of each micro-batch: their mean is the full gradient
    running_2d: Float[Tensor, "chain 2"]  # tip to tail, from 0
    full_2d: Float[Tensor, " 2"]
    energy_in_plane: float  # share of the squared length of single sequences' gradients that the plane keeps
    energy_by_batch: Float[Tensor, " batches"]
    naive_weights: Float[Tensor, " K"]
    naive_angle_deg: float  # between the mean of means and the true gradient, in the space of all weights
    naive_error: float  # length of their difference over that of the true one
    naive_2d: Float[Tensor, "2 2"]  # the true and the naive gradient in the plane of the two
    naive_loss: float
    true_loss: float
    batches: Int[Tensor, " batches"]
    cloud_2d: Float[Tensor, "batches clouds 2"]
    true_2d: Float[Tensor, " 2"]  # the mean gradient
    rms_error: Float[Tensor, " batches"]  # over the draws, in the space of all weights
    rms_predicted: Float[Tensor, " batches"]
    mean_sq_norm: Float[Tensor, " batches"]
    sq_norm_predicted: Float[Tensor, " batches"]
    b_simple: float
    b_simple_from_norms: float  # the same from lengths alone: micro-batches and windows of 32 sequences
    b_noise: float  # with the Hessian
    b_simple_by_checkpoint: Float[Tensor, " 3"]
    checkpoint_steps: Int[Tensor, " 3"]
    progress_measured: Float[Tensor, " batches"]  # best mean decrease of the loss by one step, over that of all 1024
    progress_error: Float[Tensor, " batches"]  # standard error of this mean over the draws
    progress_predicted: Float[Tensor, " batches"]  # by b_noise
    progress_step_sizes: Float[Tensor, " batches"]  # at which it was best
    curve_batch: Float[Tensor, " curve"]  # the law beside it: progress, and the bill for a target
    curve_progress: Float[Tensor, " curve"]
    curve_steps: Float[Tensor, " curve"]
    curve_examples: Float[Tensor, " curve"]
    memory_batch: Int[Tensor, " sizes"]
    memory_bytes_measured: Int[Tensor, " sizes"]  # activations of the tiny LM, rows of 64 predictions
    memory_static_bytes: int  # of the tiny LM, 16 for each weight
    memory_model: dict[str, float]  # published models, GB
    bf16_sum: Float[Tensor, " 1024"]
    fp32_sum: Float[Tensor, " 1024"]
    adam_update_ratio: float  # length of the first update without 1 / K over that with it
    sgd_update_ratio: float


def trace(config: Config) -> Trace:
    """Accumulate one window of real texts, and measure the noise of the gradients of 1024 others."""
    from internals_math import gradient_accumulation_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
