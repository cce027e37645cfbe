"""Real texts in small batches: their sum, its rounding, the noise of their gradients and what a step of each gains."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.gradient_accumulation import (
    CHECKPOINT_STEPS,
    CHECKPOINTS,
    CLOUD_BATCHES,
    CORNER,
    MEMORY_BATCHES,
    POPULATION,
    SUMMED,
    TERM,
    Config,
    Trace,
    accumulate_gradients,
    activation_bytes,
    expected_squared_norm,
    finite_population_variance,
    flatten_gradients,
    full_batch_gradient,
    gradient_covariance_trace,
    hessian_noise_scale,
    mean_of_means_weights,
    measured_saved_tensor_bytes,
    noise_scale_from_norms,
    optimal_step_progress,
    per_sequence_gradients,
    simple_noise_scale,
    steps_examples_tradeoff,
    token_losses,
    training_memory,
)
from internals_math.mixed_precision import BF16, FP32, accumulate
from internals_math.model_shapes import ModelShape, parameter_count, preset
from internals_math.next_token import IGNORE, target_surprisal
from internals_math.tiny_lm.datasets import ROW_LENGTH

WINDOWS = 512  # the most sequences that a window can have: 16 · 32
CUT = 25  # ids of every text, where all have one length
MATRIX = "model.layers.1.self_attn.v_proj.weight"  # whose gradient is on screen
POWER_STEPS = 20  # of the power iteration
HESSIAN_TEXTS, PROBES = 64, 16
PROGRESS_TEXTS, PROGRESS_DRAWS = 64, 12
RATIOS = tuple(2 ** (k / 2) for k in range(-3, 5))  # step sizes around the expected one
FULL_STEPS = tuple(2.0**k for k in range(-6, 6))  # and for the whole population, of which nothing is expected
NORM_BATCHES = (4, 32)


@dataclass(frozen=True, eq=False)
class Model:
    """The tiny LM as a function of its weights."""

    template: tiny_lm.TinyLM
    names: tuple[str, ...]
    params: list[Tensor]

    def surprisal(self, params: Sequence[Tensor], ids: Int[Tensor, "b T"]) -> tuple[Tensor, Tensor]:
        """Return the surprisal of every token after the first and which of them count, (b, T - 1)."""
        logits = tiny_lm.forward(self.template, dict(zip(self.names, params, strict=True)), ids)
        targets = labels(ids)
        return target_surprisal(logits[:, :-1], targets), targets != IGNORE

    def loss(self, params: Sequence[Tensor], ids: Int[Tensor, "*batch T"]) -> tuple[Tensor, Tensor]:
        """Return the sum of the token losses of rows of ids, or of one row, and their number."""
        rows = ids if ids.ndim == 2 else ids[None]
        logits = tiny_lm.forward(self.template, dict(zip(self.names, params, strict=True)), rows)
        return token_losses(logits[:, :-1], labels(rows))


def model_at(checkpoint: str) -> Model:
    """Return the tiny LM early, in the middle or at the end of its training."""
    model = tiny_lm.load(CHECKPOINTS[checkpoint])
    names, params = zip(*model.named_parameters(), strict=True)
    return Model(model, names, [param.detach() for param in params])


def labels(ids: Int[Tensor, "b T"]) -> Int[Tensor, "b T_pred"]:
    """Return the tokens to predict, <pad> ignored."""
    return ids[:, 1:].masked_fill(ids[:, 1:] == tiny_lm.PAD, IGNORE)


def texts(config: Config) -> Int[Tensor, "N T"]:
    """Return POPULATION texts and then those of the window, in the seed's order."""
    corpus = tiny_lm.training_corpus("base", 2 * (POPULATION + WINDOWS))
    ids = corpus.ids if config.variable_length else corpus.ids[corpus.lengths >= CUT, :CUT]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(config.seed))
    return ids[order[: POPULATION + WINDOWS]]


# -- one window --------------------------------------------------------------------------------------------------------


def trays(config: Config, ids: Int[Tensor, "N T"]) -> list[Int[Tensor, "b _"]]:
    """Return the window's micro-batches. Texts of about one length lie together, as loaders do to pad little."""
    rows = ids[POPULATION : POPULATION + config.micro_batch * config.accumulation_steps]
    lengths = (rows != tiny_lm.PAD).sum(dim=1)
    rows = rows[lengths.argsort(stable=True)]
    return [batch[:, : int((batch != tiny_lm.PAD).sum(dim=1).max())] for batch in rows.split(config.micro_batch)]


def window_fields(config: Config, model: Model, ids: Int[Tensor, "N T"], plane: Float[Tensor, "2 P"]) -> dict[str, Any]:
    """Return the window added up tray by tray, rightly and with the bug."""
    batches = trays(config, ids)
    rows = ids[POPULATION : POPULATION + config.micro_batch * config.accumulation_steps]
    whole = flatten_gradients(full_batch_gradient(model.loss, model.params, rows))
    right = accumulate_gradients(model.loss, model.params, batches, record=True)
    naive = accumulate_gradients(model.loss, model.params, batches, normalization="mean_of_means")
    undivided = accumulate_gradients(model.loss, model.params, batches, normalization="none")
    assert right.running is not None
    steps = config.accumulation_steps
    true, wrong = flatten_gradients(right.grads), flatten_gradients(naive.grads)
    chain = torch.cat([torch.zeros(1, 2), steps * right.running @ plane.T])
    first = true / true.norm()
    along = float(wrong @ first)
    across = float((wrong - along * first).norm())
    place = model.names.index(MATRIX)
    start = sum(param.numel() for param in model.params[:place])
    matrix = right.running[:, start : start + model.params[place].numel()].unflatten(1, model.params[place].shape)
    with torch.no_grad():
        sums = torch.stack([model.loss(model.params, batch)[0] for batch in batches]).double()
    counts = right.token_counts
    return {
        "grad_window": matrix[:, :CORNER, :CORNER].contiguous(),
        "window_name": MATRIX,
        "max_abs_diff": float((true - whole).abs().max()),
        "token_counts": counts,
        "sequence_tokens": torch.stack([(labels(batch) != IGNORE).sum(dim=1) for batch in batches]),
        "micro_grads_2d": chain.diff(dim=0),
        "running_2d": chain,
        "full_2d": plane @ whole,
        "naive_weights": mean_of_means_weights(counts),
        "naive_angle_deg": math.degrees(math.atan2(across, along)),
        "naive_error": float((wrong - true).norm() / true.norm()),
        "naive_2d": torch.tensor([[float(true.norm()), 0.0], [along, across]]),
        "naive_loss": float((sums / counts).mean()),
        "true_loss": float(sums.sum() / counts.sum()),
        "adam_update_ratio": update_ratio(torch.optim.Adam, undivided.grads, naive.grads),
        "sgd_update_ratio": update_ratio(torch.optim.SGD, undivided.grads, naive.grads),
    }


def update_ratio(optimizer: Callable[..., Any], long: list[Tensor], short: list[Tensor]) -> float:
    """Return how much longer the optimizer's first update is with the one gradient than with the other."""
    lengths = []
    for grads in (long, short):
        weights = [torch.zeros_like(grad) for grad in grads]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer(weights, lr=1e-3).step()
        lengths.append(float(flatten_gradients(weights).double().norm()))
    return lengths[0] / lengths[1]


# -- noise -------------------------------------------------------------------------------------------------------------


def leading_direction(centered: Float[Tensor, "M P"], mean: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Return the unit direction orthogonal to `mean` along which the rows vary most, by power iteration."""
    first = mean / mean.norm()
    direction = centered[centered.norm(dim=1).argmax()]
    for _ in range(POWER_STEPS):
        direction = direction - (direction @ first) * first
        direction = centered.T @ (centered @ (direction / direction.norm()))
    direction = direction - (direction @ first) * first
    return direction / direction.norm()


def draws(batch: int, count: int, generator: torch.Generator) -> Float[Tensor, "count M"]:
    """Return rows that average `batch` different sequences of the population."""
    chosen = torch.rand(count, POPULATION, generator=generator).argsort(dim=1)[:, :batch]
    return torch.zeros(count, POPULATION).scatter_(1, chosen, 1 / batch)


def cloud_fields(
    config: Config, centered: Float[Tensor, "M P"], mean: Float[Tensor, " P"], plane: Float[Tensor, "2 P"]
) -> dict[str, Any]:
    """Return gradients of batches of every size, how far they lie from the true one and how long they are."""
    generator = torch.Generator().manual_seed(config.seed)
    trace, grad_sq = gradient_covariance_trace(centered), float(mean.double().square().sum())
    own_trace = trace * (POPULATION - 1) / POPULATION  # of these 1024 themselves
    clouds, errors, lengths, energies = [], [], [], []
    for batch in CLOUD_BATCHES:
        noise = draws(batch, config.clouds, generator) @ centered
        grads = noise + mean
        clouds.append(grads @ plane.T)
        errors.append(noise.square().sum(dim=1).mean().sqrt() if batch < POPULATION else torch.tensor(0.0))
        lengths.append(grads.square().sum(dim=1).mean())
        energies.append(clouds[-1].square().sum() / grads.square().sum())
    variances = [finite_population_variance(own_trace, batch, POPULATION) for batch in CLOUD_BATCHES]
    coordinates = centered @ plane.T + plane @ mean
    return {
        "batches": torch.tensor(CLOUD_BATCHES),
        "cloud_2d": torch.stack(clouds),
        "true_2d": plane @ mean,
        "rms_error": torch.stack(errors),
        "rms_predicted": torch.tensor(variances).sqrt(),
        "mean_sq_norm": torch.stack(lengths),
        "sq_norm_predicted": torch.tensor([expected_squared_norm(grad_sq, v, 1) for v in variances]),
        "energy_in_plane": float(coordinates.square().sum() / (own_trace + grad_sq) / POPULATION),
        "energy_by_batch": torch.stack(energies),
    }


def noise_from_norms(centered: Float[Tensor, "M P"], mean: Float[Tensor, " P"]) -> float:
    """Return the simple noise scale as a training run would see it: from mean squared lengths at two batch sizes."""
    squares = []
    for batch in NORM_BATCHES:
        grads = centered.unflatten(0, (-1, batch)).mean(dim=1) + mean
        squares.append(float(grads.double().square().sum(dim=1).mean()))
    return noise_scale_from_norms(squares[0], squares[1], *NORM_BATCHES)[2]


# -- what a step gains -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Landscape:
    """The mean loss of some texts around the model's weights."""

    model: Model
    ids: Int[Tensor, "N T"]

    @torch.no_grad()
    def loss(self, shift: Float[Tensor, " P"] | None = None) -> float:
        """Return the mean over texts of the mean token loss, with the weights moved by `shift`."""
        params = self.model.params
        if shift is not None:
            parts = shift.split([param.numel() for param in params])
            params = [param + part.view_as(param) for param, part in zip(params, parts, strict=True)]
        surprisal, kept = self.model.surprisal(params, self.ids)
        return float((surprisal.sum(dim=1) / kept.sum(dim=1)).double().mean())

    def best_step(self, grads: Float[Tensor, "n P"], sizes: Sequence[float]) -> tuple[Float[Tensor, " n"], float]:
        """Return the decreases by a step along each gradient, of the one size whose mean is largest, and that size.

        Sizes rise; they are tried until the mean decrease falls.
        """
        before, best, chosen = self.loss(), torch.full((len(grads),), -math.inf), 0.0
        for size in sizes:
            decreases = torch.tensor([before - self.loss(-size * grad) for grad in grads])
            if decreases.mean() <= best.mean():
                break
            best, chosen = decreases, size
        return best, chosen


def progress_fields(
    config: Config,
    model: Model,
    ids: Int[Tensor, "N T"],
    centered: Float[Tensor, "M P"],
    mean: Float[Tensor, " P"],
    b_noise: float,
) -> dict[str, Any]:
    """Return the decrease of the loss by the best step of every batch size, beside the law."""
    land = Landscape(model, ids[:PROGRESS_TEXTS])
    generator = torch.Generator().manual_seed(config.seed + 1)
    _, coarse = land.best_step(mean[None], FULL_STEPS)
    most, full_size = land.best_step(mean[None], [coarse * ratio for ratio in RATIOS])
    own_noise = b_noise * (POPULATION - 1) / POPULATION
    gains, sizes, laws = [], [], []
    for done, batch in enumerate(CLOUD_BATCHES):
        law = 1 / (1 + finite_population_variance(own_noise, batch, POPULATION))
        if batch == POPULATION:
            gain, size = most, full_size
        else:
            grads = draws(batch, PROGRESS_DRAWS, generator) @ centered + mean
            gain, size = land.best_step(grads, [full_size * law * ratio for ratio in RATIOS])
        gains.append(gain / most.mean())
        sizes.append(size)
        laws.append(law)
        progress.report("steps of every batch size", done + 1, len(CLOUD_BATCHES))
    zero = torch.tensor(0.0)
    curve = torch.logspace(0, math.log10(POPULATION), 41)
    bills = torch.tensor([steps_examples_tradeoff(batch, b_noise) for batch in curve.tolist()])
    return {
        "progress_measured": torch.stack([gain.mean() for gain in gains]),
        "progress_error": torch.stack([gain.std() / len(gain) ** 0.5 if len(gain) > 1 else zero for gain in gains]),
        "progress_predicted": torch.tensor(laws),
        "progress_step_sizes": torch.tensor(sizes),
        "curve_batch": curve,
        "curve_progress": torch.tensor([optimal_step_progress(batch, b_noise) for batch in curve.tolist()]),
        "curve_steps": bills[:, 0],
        "curve_examples": bills[:, 1],
    }


# -- memory ------------------------------------------------------------------------------------------------------------


def memory_fields(model: Model) -> dict[str, Any]:
    """Return what the tiny LM keeps for the backward pass, and the same arithmetic for published models."""
    row = torch.tensor(tiny_lm.encode(tiny_lm.story())).repeat(2)[:ROW_LENGTH]
    leaves = [param.detach().requires_grad_() for param in model.params]
    measured = [
        measured_saved_tensor_bytes(partial(model.loss, leaves, row.repeat(batch, 1)), leaves)
        for batch in MEMORY_BATCHES
    ]
    count = sum(param.numel() for param in model.params)
    return {
        "memory_batch": torch.tensor(MEMORY_BATCHES),
        "memory_bytes_measured": torch.tensor(measured),
        "memory_static_bytes": training_memory(count, 1, 0)["static"],
        "memory_model": published_memory(),
    }


def published_memory() -> dict[str, float]:
    """Return the GB of GPT-2 with 480 sequences at once or 12 at a time, and of one sequence in GPT-3."""
    small, large = preset("GPT-2"), preset("GPT-3")

    def sequence(shape: ModelShape) -> int:
        return activation_bytes(
            shape.num_hidden_layers, shape.num_positions, 1, shape.hidden_size, shape.num_attention_heads
        )

    parts = {batch: training_memory(parameter_count(small), sequence(small), batch) for batch in (1, 12, 480)}
    return {
        "gpt2_static": parts[1]["static"] / 1e9,
        **{f"gpt2_activations_{batch}": part["activations"] / 1e9 for batch, part in parts.items()},
        "gpt3_activations_1": sequence(large) / 1e9,
    }


# -- all of it ---------------------------------------------------------------------------------------------------------


def run(config: Config) -> Trace:
    """Measure everything at one checkpoint, and the noise scale at all three."""
    ids = texts(config)
    population = ids[:POPULATION]

    def gradients(name: str) -> Float[Tensor, "M P"]:
        at = model_at(name)
        return per_sequence_gradients(at.loss, at.params, population)

    scales = {}
    for done, name in enumerate(CHECKPOINTS):
        scales[name] = 0.0 if name == config.checkpoint else simple_noise_scale(gradients(name))
        progress.report("gradients of 1024 texts", done + 1, len(CHECKPOINTS))
    model, grads = model_at(config.checkpoint), gradients(config.checkpoint)
    scales[config.checkpoint] = simple_noise_scale(grads)
    generator = torch.Generator().manual_seed(config.seed)
    b_noise = hessian_noise_scale(model.loss, model.params, population[:HESSIAN_TEXTS], grads, PROBES, generator)
    mean = grads.mean(dim=0)
    centered = grads.sub_(mean)  # in place: all gradients take 180 MB
    plane = torch.stack([mean / mean.norm(), leading_direction(centered, mean)])
    values = (
        window_fields(config, model, ids, plane)
        | cloud_fields(config, centered, mean, plane)
        | progress_fields(config, model, ids, centered, mean, b_noise)
        | memory_fields(model)
    )
    terms = torch.full((SUMMED,), TERM)
    return Trace(
        config=config,
        b_simple=scales[config.checkpoint],
        b_simple_from_norms=noise_from_norms(centered, mean),
        b_noise=b_noise,
        b_simple_by_checkpoint=torch.tensor([scales[name] for name in CHECKPOINTS]),
        checkpoint_steps=torch.tensor(CHECKPOINT_STEPS),
        bf16_sum=accumulate(terms, BF16),
        fp32_sum=accumulate(terms, FP32),
        **values,
    )
