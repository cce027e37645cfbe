"""LoRA: leave a weight alone and learn its change as a product of two thin matrices.

Notation: W = frozen weight (out, in), A = lora_A (r, in), B = lora_B (out, r), s = scaling, ΔW = s B A, G = gradient of
the loss with respect to the full weight.
Sources: Hu et al. 2021 (2106.09685) eqs. 3 and 4, sections 4 and 7; rsLoRA (2312.03732); Eckart and Young 1936.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.model_shapes import parameter_count, preset
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "Trace", "amplification_factor", "break_even_rank", "captured_energy", "init_lora", "lora_delta_weight",
    "lora_gradients", "lora_linear", "lora_parameter_count", "lora_scaling", "lora_trainable_parameters", "merge_lora",
    "projected_norm", "rank_one_terms", "stable_rank", "subspace_similarity", "subspace_similarity_grid", "trace",
    "truncate_rank", "unmerge_lora",
]  # fmt: skip


# -- the layer ---------------------------------------------------------------------------------------------------------


def lora_scaling(lora_alpha: float, r: int, use_rslora: bool = False) -> float:
    """Return α / r, or α / √r for rsLoRA.

    Raises:
        ValueError: lora_alpha not above 0, r below 1.
    """
    if not lora_alpha > 0 or r < 1:
        raise ValueError(f"lora_alpha must be above 0 and r at least 1, got lora_alpha {lora_alpha}, r {r}")
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def init_lora(
    in_features: int,
    out_features: int,
    r: int,
    *,
    init: str = "kaiming",
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
    """Return a random A and a B of zeros, so that ΔW = 0 before the first step.

    Args:
        init: "kaiming" draws A from U(-1/√in, 1/√in), as the authors' package and PEFT do; "gaussian" with std 1/r.

    Raises:
        ValueError: r out of 1..min(in, out), unknown init.
    """
    _check_rank(r, in_features, out_features)
    shape = (r, in_features)
    if init == "kaiming":
        bound = 1 / math.sqrt(in_features)
        lora_a = (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) * bound
    elif init == "gaussian":
        lora_a = torch.randn(shape, generator=generator, dtype=dtype) / r
    else:
        raise ValueError(f"init must be kaiming or gaussian, got {init!r}")
    return lora_a.to(device), torch.zeros(out_features, r, dtype=dtype, device=device)


def lora_delta_weight(
    lora_A: Float[Tensor, "*batch r i"], lora_B: Float[Tensor, "*batch o r_b"], scaling: float
) -> Float[Tensor, "*batch o i"]:
    """Return ΔW = s B A.

    Raises:
        ValueError: A and B of different rank.
    """
    _check_pair(lora_A, lora_B)
    return scaling * (lora_B @ lora_A)


def lora_linear(
    x: Float[Tensor, "*batch i"],
    weight: Float[Tensor, "o i_w"],
    lora_A: Float[Tensor, "r i_a"],
    lora_B: Float[Tensor, "o_b r_b"],
    scaling: float,
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*batch o"]:
    """Return x W^T + s (x A^T) B^T (+ bias), eq. 3, without ever forming B A.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_pair(lora_A, lora_B, weight)
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} input features, but the weight {weight.shape[1]}")
    output = x @ weight.T + scaling * ((x @ lora_A.T) @ lora_B.T)
    return output if bias is None else output + bias


def merge_lora(
    weight: Float[Tensor, "o i"], lora_A: Float[Tensor, "r i_a"], lora_B: Float[Tensor, "o_b r_b"], scaling: float
) -> Float[Tensor, "o i"]:
    """Return W + s B A, after which inference costs what it did before.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_pair(lora_A, lora_B, weight)
    return weight + lora_delta_weight(lora_A, lora_B, scaling)


def unmerge_lora(
    weight: Float[Tensor, "o i"], lora_A: Float[Tensor, "r i_a"], lora_B: Float[Tensor, "o_b r_b"], scaling: float
) -> Float[Tensor, "o i"]:
    """Return W - s B A, which undoes `merge_lora` up to rounding."""
    _check_pair(lora_A, lora_B, weight)
    return weight - lora_delta_weight(lora_A, lora_B, scaling)


def lora_gradients(
    grad_weight: Float[Tensor, "o i"], lora_A: Float[Tensor, "r i_a"], lora_B: Float[Tensor, "o_b r_b"], scaling: float
) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
    """Return (s B^T G, s G A^T), the gradients of A and B, from that of the full weight at W + ΔW.

    With B = 0 the first is 0: only B moves at the first step.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_pair(lora_A, lora_B, grad_weight)
    return scaling * lora_B.T @ grad_weight, scaling * grad_weight @ lora_A.T


def rank_one_terms(
    lora_A: Float[Tensor, "r i"], lora_B: Float[Tensor, "o r_b"], scaling: float
) -> Float[Tensor, "r o i"]:
    """Return s b_k a_k^T for every column b_k of B and row a_k of A; their sum is ΔW."""
    _check_pair(lora_A, lora_B)
    return scaling * lora_B.T[:, :, None] * lora_A[:, None, :]


# -- rank and subspaces ------------------------------------------------------------------------------------------------


def truncate_rank(matrix: Float[Tensor, "o i"], r: int) -> Float[Tensor, "o i"]:
    """Return the closest matrix of rank r in Frobenius norm (Eckart and Young).

    Raises:
        ValueError: r below 0 or above the smaller side.
    """
    if not 0 <= r <= min(matrix.shape):
        raise ValueError(f"r must be in 0..{min(matrix.shape)}, got {r}")
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :r] * sigma[:r]) @ vh[:r]


def captured_energy(matrix: Float[Tensor, "o i"]) -> Float[Tensor, " k"]:
    """Return the share of the squared Frobenius norm in the first 1, 2, … singular directions.

    Raises:
        ValueError: a matrix of zeros.
    """
    energy = _nonzero(torch.linalg.svdvals(matrix)).square()
    return energy.cumsum(dim=0) / energy.sum()


def stable_rank(matrix: Float[Tensor, "o i"]) -> float:
    """Return ‖M‖_F² / σ_1², at most the rank: how many directions as strong as the first it would take.

    Raises:
        ValueError: a matrix of zeros.
    """
    energy = _nonzero(torch.linalg.svdvals(matrix)).square()
    return float(energy.sum() / energy[0])


def subspace_similarity(lora_A1: Float[Tensor, "r1 i"], lora_A2: Float[Tensor, "r2 i"], i: int, j: int) -> float:
    """Return φ in 0..1: how much of the top-i directions of one A lies in the top-j of another (eq. 4).

    1 = one subspace holds the other; two random ones give max(i, j) / in on average.

    Raises:
        ValueError: i or j out of range.
    """
    if not 1 <= i <= len(lora_A1) or not 1 <= j <= len(lora_A2):
        raise ValueError(f"i must be in 1..{len(lora_A1)} and j in 1..{len(lora_A2)}, got {i} and {j}")
    return float(subspace_similarity_grid(lora_A1, lora_A2)[i - 1, j - 1])


def subspace_similarity_grid(lora_A1: Float[Tensor, "r1 i"], lora_A2: Float[Tensor, "r2 i"]) -> Float[Tensor, "r1 r2"]:
    """Return φ for all i and j, counted from 1."""
    first, second = (torch.linalg.svd(a, full_matrices=False)[2] for a in (lora_A1, lora_A2))
    overlap = (first @ second.T).square().cumsum(dim=0).cumsum(dim=1)
    i, j = (torch.arange(1, len(a) + 1) for a in (first, second))
    return overlap / torch.minimum(i[:, None], j)


def projected_norm(weight: Float[Tensor, "o i"], basis_of: Float[Tensor, "o i"], r: int) -> float:
    """Return ‖U^T W V‖_F with U, V the top-r singular vectors of another matrix (section 7.3, which writes U^T W V^T).

    Raises:
        ValueError: different shapes, r out of 1..min(out, in).
    """
    if weight.shape != basis_of.shape:
        raise ValueError(f"both matrices need one shape, got {tuple(weight.shape)} and {tuple(basis_of.shape)}")
    _check_rank(r, *weight.shape)
    u, _, vh = torch.linalg.svd(basis_of, full_matrices=False)
    return float((u[:, :r].T @ weight @ vh[:r].T).norm())


def amplification_factor(weight: Float[Tensor, "o i"], delta: Float[Tensor, "o i"], r: int) -> float:
    """Return ‖ΔW‖_F / ‖U^T W V‖_F: how much ΔW strengthens directions that W holds but does not stress.

    Raises:
        ValueError: a ΔW of zeros, or as `projected_norm`.
    """
    _nonzero(delta)
    return float(delta.norm()) / projected_norm(weight, delta, r)


# -- how many weights --------------------------------------------------------------------------------------------------


def lora_parameter_count(in_features: int, out_features: int, r: int) -> int:
    """Return r (in + out), the weights of one A and B.

    >>> lora_parameter_count(12288, 12288, 4)
    98304
    """
    _check_rank(r, in_features, out_features)
    return r * (in_features + out_features)


def lora_trainable_parameters(n_layers: int, shapes: Sequence[tuple[int, int]], r: int) -> int:
    """Return the weights of all adapters; `shapes` are the (out, in) of the adapted matrices of one layer."""
    return n_layers * sum(lora_parameter_count(i, o, r) for o, i in shapes)


def break_even_rank(in_features: int, out_features: int) -> float:
    """Return the rank at which A and B have as many weights as W."""
    return in_features * out_features / (in_features + out_features)


def _check_rank(r: int, in_features: int, out_features: int) -> None:
    if not 1 <= r <= min(in_features, out_features):
        raise ValueError(f"r must be in 1..{min(in_features, out_features)} (the smaller side), got {r}")


def _check_pair(lora_A: Tensor, lora_B: Tensor, weight: Tensor | None = None) -> None:
    if lora_A.shape[-2] != lora_B.shape[-1]:
        raise ValueError(f"A has rank {lora_A.shape[-2]}, but B {lora_B.shape[-1]}")
    if weight is not None and weight.shape != (lora_B.shape[-2], lora_A.shape[-1]):
        raise ValueError(
            f"A and B change a weight of shape ({lora_B.shape[-2]}, {lora_A.shape[-1]}), got {tuple(weight.shape)}"
        )


def _nonzero(values: Tensor) -> Tensor:
    if not values.any():
        raise ValueError("a matrix of zeros has no directions: train first")
    return values


# -- what the video shows ----------------------------------------------------------------------------------------------

RANKS = (1, 2, 4, 8)
HISTORY = 20  # records of the training run
INPUTS = 64
WIDE_RANK = 8  # of the two runs whose subspaces are compared


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    r: int = option(2, "rank of the shown adapter", minimum=1, maximum=8)
    lora_alpha: float = option(4.0, "the scale of all adapters is lora_alpha / r", minimum=0.5, maximum=32)
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    module: str = option("q_proj", "matrix to show", choices=("q_proj", "k_proj", "v_proj", "o_proj"))
    train_steps: int = option(150, "optimizer steps of each run", minimum=20, maximum=500)
    learning_rate: float = option(1e-2, "of the adapters", minimum=1e-4, maximum=1e-1)
    seed: int = option(0, "of A and of the order of the texts", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws; all matrices belong to one module, 32 x 32. R ranks, T records of training.

    The near dialect (farm2: other habits, the same words) is the task, the far one (news: new words and syntax) the
    hard case. "full" trains the same twelve matrices without adapters.
    """

    config: Config
    matrix: str
    scaling: float
    weight: Float[Tensor, "o i"]
    full_delta: Float[Tensor, "o i"]  # of full fine-tuning
    full_weight: Float[Tensor, "o i"]  # after it
    largest_weight: float  # absolute values of the largest entries of weight, full_delta and lora_delta
    largest_change: float
    largest_delta: float
    directions: Int[Tensor, " k"]  # 1, 2 …
    full_singular_values: Float[Tensor, " k"]
    weight_singular_values: Float[Tensor, " k"]
    random_singular_values: Float[Tensor, " k"]  # of a Gaussian matrix as large as full_delta
    captured_energy: Float[Tensor, " k"]
    random_captured_energy: Float[Tensor, " k"]
    full_terms: Float[Tensor, "4 o i"]  # the first rank-one sheets of full_delta
    full_residuals: Float[Tensor, "4 o i"]  # what is left of it without the first 1, 2 … of them
    full_stable_rank: float
    lora_A_init: Float[Tensor, "r i"]
    lora_A: Float[Tensor, "r i"]
    lora_B: Float[Tensor, "o r"]
    lora_delta: Float[Tensor, "o i"]
    rank_one_terms: Float[Tensor, "r o i"]
    partial_deltas: Float[Tensor, "r o i"]  # sums of the first 1, 2 … of them; the last is lora_delta
    matrix_numbers: int  # of one weight, and of its A and B
    adapter_numbers: int
    merged_weight: Float[Tensor, "o i"]
    second_lora_A: Float[Tensor, "r i"]  # of the adapter for the far dialect
    second_lora_B: Float[Tensor, "o r"]
    second_delta: Float[Tensor, "o i"]
    second_merged_weight: Float[Tensor, "o i"]
    history_steps: Int[Tensor, " T"]
    delta_history: Float[Tensor, "T o i"]  # the first is 0
    lora_A_history: Float[Tensor, "T r i"]
    lora_B_history: Float[Tensor, "T o r"]
    grad_norm_A: Float[Tensor, " T"]  # of the gradient at these weights
    grad_norm_B: Float[Tensor, " T"]
    inputs: Float[Tensor, "N i"]  # real inputs of the module
    coords: Float[Tensor, "N r"]
    outputs: Float[Tensor, "N o"]  # what the adapter adds
    alike_inputs: Float[Tensor, "3 i"]  # an input, then without what A cannot see, then with that of another input
    alike_coords: Float[Tensor, "3 r"]
    alike_outputs: Float[Tensor, "3 o"]
    invisible_share: float  # of the inputs' squared length, on average
    ranks: Int[Tensor, " R"]
    loss_base: float  # held-out nats per token of the near dialect
    loss_full: float
    loss_lora: Float[Tensor, " R"]
    loss_truncated: Float[Tensor, " R"]  # full fine-tuning, every matrix's change cut to rank r
    gain_lora: Float[Tensor, " R"]  # share of the gain of full fine-tuning
    gain_truncated: Float[Tensor, " R"]
    loss_floor: float
    far_loss_base: float
    far_loss_full: float
    far_loss_lora: Float[Tensor, " R"]
    far_loss_floor: float
    old_task_loss_base: float  # on the texts the model came from
    old_task_loss_full: float
    old_task_loss_lora: Float[Tensor, " R"]
    parameter_counts: dict[str, int]
    lora_params: Int[Tensor, " R"]
    lora_share: Float[Tensor, " R"]  # of the twelve matrices
    break_even_rank: float
    similarity_grid: Float[Tensor, "8 8"]  # A of two seeds
    similarity_random: Float[Tensor, "8 8"]  # what chance would give
    amplification: float
    projected_norms: Float[Tensor, " 3"]  # of W in the directions of ΔW, of W itself, of a random matrix
    max_abs_diff_logits: float  # of the merged model and the model with adapters
    base_weights_changed: int
    gpt3_counts: dict[str, float]


def gpt3_counts() -> dict[str, float]:
    """Return what rank 4 on the query and value matrices of GPT-3 takes (section 4.2); a fp16 weight is 2 bytes.

    `tasks` are 100: a model for each of them, or one model and an adapter for each.
    """
    rank, tasks = 4, 100
    shape = preset("gpt-3")
    full = parameter_count(shape)
    square = (shape.hidden_size, shape.hidden_size)
    adapter = lora_trainable_parameters(shape.num_hidden_layers, [square, square], rank)
    return {
        "rank": rank,
        "tasks": tasks,
        "full_params": full,
        "lora_params": adapter,
        "full_bytes": 2 * full,
        "lora_bytes": 2 * adapter,
        "ratio": full / adapter,
        "hundred_full_bytes": tasks * 2 * full,
        "hundred_lora_bytes": 2 * full + tasks * 2 * adapter,
    }


def trace(config: Config) -> Trace:
    """Fine-tune the tiny LM fully and with adapters of every rank (about 60 s on one core)."""
    from internals_math import lora_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
