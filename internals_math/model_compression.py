"""Compression: drop the weights that matter least, teach a small model what a large one knows, count the bits.

Notation: W = weight (out, in), X = inputs (n, in), M = mask (True = kept), s = sparsity (share removed), τ = threshold;
p, q = softened probabilities of teacher and student, z = the student's logits, T = temperature, V = vocabulary.
Sources: Han et al. 2015 (1506.02626); Wanda (2306.11695); Zhu and Gupta 2017 (1710.01878) eq. 1; Hinton, Vinyals, Dean
2015 (1503.02531) eqs. 1 to 4; Deep Compression (1510.00149), whose parts are in `weight_storage`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option
from internals_math.weight_storage import (
    entropy_bits,
    huffman_code_lengths,
    huffman_mean_length,
    kmeans_1d,
    sparse_bits,
    weight_sharing_rate,
)

if TYPE_CHECKING:
    from internals_math.model_compression_experiment import PruneRun, StudentRun

__all__ = [
    "Config", "DistillLoss", "Trace", "apply_mask", "cubic_sparsity", "distillation_grad", "distillation_loss",
    "entropy_bits", "global_magnitude_masks", "huffman_code_lengths", "huffman_mean_length", "kmeans_1d",
    "magnitude_mask", "prune_and_finetune", "random_mask", "soften", "sparse_bits", "sparsity", "trace",
    "train_student", "wanda_mask", "weight_sharing_rate",
]  # fmt: skip


# -- which weights go --------------------------------------------------------------------------------------------------


def magnitude_mask(weight: Float[Tensor, "..."], sparsity: float) -> Bool[Tensor, "..."]:
    """Return the mask that removes the round(s n) smallest |w|; of equal ones the first in flat order.

    Among all masks of its size it leaves the weight closest to what it was, in Frobenius norm.

    Raises:
        ValueError: sparsity not in [0, 1).

    >>> magnitude_mask(torch.tensor([3.0, -1.0, 0.5, -2.0]), 0.5)
    tensor([ True, False, False,  True])
    """
    return _keep_highest(weight.abs().flatten(), sparsity).view(weight.shape)


def global_magnitude_masks(tensors: Mapping[str, Float[Tensor, "..."]], sparsity: float) -> dict[str, Tensor]:
    """Return one mask for each tensor, all with the same threshold: the smallest |w| of all together go.

    Raises:
        ValueError: sparsity not in [0, 1), or no tensors.
    """
    if not tensors:
        raise ValueError("global pruning needs at least one tensor, got none")
    kept = _keep_highest(torch.cat([tensor.abs().flatten() for tensor in tensors.values()]), sparsity)
    parts = kept.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def wanda_mask(weight: Float[Tensor, "o i"], x: Float[Tensor, "n i_x"], sparsity: float) -> Bool[Tensor, "o i"]:
    """Return the mask that removes the round(s in) lowest |W_ij| ‖X_j‖ of every output row (2306.11695, section 3).

    Args:
        x: inputs of the layer on calibration tokens.

    Raises:
        ValueError: sparsity not in [0, 1), or inputs that do not fit the weight.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has {x.shape[-1]} input features, but the weight {weight.shape[1]}")
    return _keep_highest(weight.abs() * x.norm(dim=0), sparsity)


def random_mask(weight: Float[Tensor, "..."], sparsity: float, generator: torch.Generator) -> Bool[Tensor, "..."]:
    """Return a mask that removes round(s n) weights by lot.

    Raises:
        ValueError: sparsity not in [0, 1).
    """
    return _keep_highest(torch.rand(weight.numel(), generator=generator), sparsity).view(weight.shape).to(weight.device)


def apply_mask(weight: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the weight with zeros where the mask is False.

    Raises:
        ValueError: a mask of another shape, or not boolean.
    """
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask must be boolean and of shape {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    return weight.masked_fill(~mask, 0.0)


def sparsity(mask: Bool[Tensor, "..."]) -> float:
    """Return the share of entries that the mask removes.

    Raises:
        ValueError: an empty mask.
    """
    if mask.numel() == 0:
        raise ValueError("an empty mask has no sparsity")
    return int((~mask).sum()) / mask.numel()


def cubic_sparsity(t: float, t0: float, n: int, dt: float, s_initial: float, s_final: float) -> float:
    """Return the sparsity at step t of a run that prunes every dt steps, n times after t0 (1710.01878, eq. 1).

    It rises fast at first; s_initial before t0, s_final after t0 + n dt.

    Raises:
        ValueError: n dt not above 0, sparsities not in [0, 1), s_final below s_initial.

    >>> cubic_sparsity(50, t0=0, n=10, dt=10, s_initial=0.0, s_final=0.9)
    0.7875
    """
    if not n * dt > 0:
        raise ValueError(f"n dt must be above 0, got n {n}, dt {dt}")
    _check_sparsity(s_initial)
    _check_sparsity(s_final)
    if s_final < s_initial:
        raise ValueError(f"s_final must be at least s_initial ({s_initial}), got {s_final}")
    done = min(max((t - t0) / (n * dt), 0.0), 1.0)
    return s_final + (s_initial - s_final) * (1 - done) ** 3


def _keep_highest(scores: Float[Tensor, "*rows n"], sparsity: float) -> Bool[Tensor, "*rows n"]:
    """Return the mask that removes the round(s n) lowest scores along the last axis, the first of equal ones."""
    _check_sparsity(sparsity)
    order = scores.argsort(dim=-1, stable=True)
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter_(-1, order[..., : round(sparsity * scores.shape[-1])], False)


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")


# -- what a teacher knows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DistillLoss:
    """total = α soft + (1 - α) hard, in nats per token."""

    total: Float[Tensor, ""]
    soft: Float[Tensor, ""]  # T² KL(teacher ‖ student), both softened
    hard: Float[Tensor, ""]  # cross-entropy with the labels, at temperature 1


def soften(logits: Float[Tensor, "*batch V"], temperature: float) -> Float[Tensor, "*batch V"]:
    """Return softmax(logits / T), eq. 1.

    Raises:
        ValueError: temperature not above 0.
    """
    _check_temperature(temperature)
    return torch.softmax(logits / temperature, dim=-1)


def distillation_loss(
    student_logits: Float[Tensor, "*batch V"],
    teacher_logits: Float[Tensor, "*batch_t V_t"],
    targets: Int[Tensor, "*batch_y"],
    temperature: float,
    alpha: float,
    ignore_index: int = -100,
) -> DistillLoss:
    """Return the loss of a student that listens to a teacher's probabilities and to labels, means over tokens.

    The factor T² keeps the soft gradient's size when T changes (section 2): each ∂/∂z of the KL is 1/T smaller, and
    so are the differences q - p.

    Args:
        targets: aligned with the logits; positions of `ignore_index` count in neither part.

    Raises:
        ValueError: temperature not above 0, alpha not in 0..1, shapes that differ, every target ignored.
    """
    _check_pair(student_logits, teacher_logits, temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    if targets.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"targets must have a label for each of {tuple(student_logits.shape[:-1])} positions, got "
            f"{tuple(targets.shape)}"
        )
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError(f"every target is ignored ({ignore_index}): there is nothing to learn")
    z, v = student_logits[counted], teacher_logits[counted]  # (N, V)
    log_q, log_p = (torch.log_softmax(logits / temperature, dim=-1) for logits in (z, v))
    # Not distributions.kl_divergence: a q that underflows to 0 would make it infinite.
    soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
    hard = -torch.log_softmax(z, dim=-1).gather(-1, targets[counted][:, None]).mean()
    return DistillLoss(alpha * soft + (1 - alpha) * hard, soft, hard)


def distillation_grad(
    student_logits: Float[Tensor, "*batch V"], teacher_logits: Float[Tensor, "*batch_t V_t"], temperature: float
) -> Float[Tensor, "*batch V"]:
    """Return ∂KL(p ‖ q)/∂z = (q - p) / T for every token (eq. 2), without the factor T².

    For T far above all logits (of mean 0) it is (z - v) / (V T²): the student matches logits (eq. 4).

    Raises:
        ValueError: temperature not above 0, shapes that differ.
    """
    _check_pair(student_logits, teacher_logits, temperature)
    return (soften(student_logits, temperature) - soften(teacher_logits, temperature)) / temperature


def _check_pair(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    _check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher need logits of one shape, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0 (for greedy decoding use argmax), got {temperature}")


# -- what the video shows ----------------------------------------------------------------------------------------------

AXIS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0)
METHODS = ("random", "layerwise", "global", "wanda")


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    sparsity: float = option(0.9, "share of the linear weights that go", minimum=0.1, maximum=0.98)
    prune_events: int = option(8, "prunings on the way there; 1 = all at once", minimum=1, maximum=20)
    finetune_steps: int = option(300, "optimizer steps of a pruning run, in all", minimum=0, maximum=1000)
    temperature: float = option(3.0, "at which the student hears the teacher", minimum=1, maximum=10)
    alpha: float = option(0.9, "weight of the teacher; the rest is for labels", minimum=0, maximum=1)
    student_dim: int = option(16, "width of the student (the teacher has 32)", choices=(8, 12, 16, 20, 24))
    clusters: int = option(16, "shared values of the surviving weights", minimum=4, maximum=64)
    seed: int = option(0, "of random masks, order of texts and the student's start", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Storage:
    """Bits of the linear weights, one way of storing them after the other."""

    name: tuple[str, ...]
    value_bits: Int[Tensor, " R"]
    position_bits: Int[Tensor, " R"]
    table_bits: Int[Tensor, " R"]  # shared values of 16 bits, lengths of code words of 8
    total_bits: Int[Tensor, " R"]
    times_smaller: Float[Tensor, " R"]  # than dense float32
    model_times_smaller: Float[Tensor, " R"]  # embedding and norms counted: 32 bits in the first row, then 16


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. S sparsities, M methods (METHODS), E prunings, K records, H bins, L matrices.

    Pruned are the linear weights of all layers; embedding and norms stay. Losses are held-out nats per token.
    """

    config: Config
    matrix: str
    W: Float[Tensor, "32 32"]  # a real projection
    prune_order: Int[Tensor, "32 32"]  # 0 = goes first
    sparsity_axis: Float[Tensor, " S"]
    threshold_at: Float[Tensor, " S"]  # the largest |w| of W that goes; 0 where nothing does
    mask_at: Bool[Tensor, "S 32 32"]
    W_edges: Float[Tensor, " H1"]
    W_counts: Int[Tensor, " H"]
    W_kept_counts: Int[Tensor, "S H"]  # of what is left of W
    num_params: int
    num_prunable: int
    loss_dense: float
    entropy_floor: float
    loss_random: Float[Tensor, " S"]  # one shot, no training
    loss_layerwise: Float[Tensor, " S"]
    loss_global: Float[Tensor, " S"]
    loss_wanda: Float[Tensor, " S"]
    knee_excess: float  # the knee: the highest sparsity on the axis that costs no more than this
    knee_index: dict[str, int]  # by method, on the axis
    knee_sparsity: dict[str, float]
    knee_loss: dict[str, float]
    layer_names: tuple[str, ...]
    layer_sparsity_global: Float[Tensor, " L"]  # at config.sparsity
    row_matrix: str
    row_index: int
    row_sparsity: float
    row_inputs: Int[Tensor, " 12"]  # which inputs of the row are shown
    row_weights: Float[Tensor, " 12"]  # |w|
    row_norms: Float[Tensor, " 12"]  # of the inputs over the calibration tokens
    row_scores: Float[Tensor, " 12"]  # |w| times norm
    row_kept_magnitude: Bool[Tensor, " 12"]
    row_kept_wanda: Bool[Tensor, " 12"]
    row_swap: Int[Tensor, " 2"]  # places among the 12: kept by magnitude alone, kept by Wanda alone
    hist_edges: Float[Tensor, " H1"]  # of all linear weights that are not removed
    hist_before: Int[Tensor, " H"]
    hist_pruned: Int[Tensor, " H"]  # one shot
    hist_retrained: Int[Tensor, " H"]  # after the iterative run
    hist_run: Int[Tensor, "E H"]  # just after each pruning of the iterative run
    schedule_t: Int[Tensor, " E"]  # steps done before each pruning
    schedule_s: Float[Tensor, " E"]
    event_loss_before: Float[Tensor, " E"]
    event_loss_after: Float[Tensor, " E"]
    run_steps: Int[Tensor, " K"]  # a pruning has two records: before and after
    run_loss: Float[Tensor, " K"]
    run_sparsity: Float[Tensor, " K"]
    oneshot_steps: Int[Tensor, " Ko"]
    oneshot_loss: Float[Tensor, " Ko"]
    loss_oneshot: float  # before retraining
    loss_oneshot_retrained: float
    loss_iterative: float
    most_revived: int  # masked weights that momentum moved in one step, before the mask was applied again
    context_words: tuple[str, ...]
    label_word: str  # how the text goes on
    top_words: tuple[str, ...]
    label_onehot: Float[Tensor, " 8"]
    true_probs: Float[Tensor, " 8"]  # the grammar's
    temperatures: Float[Tensor, " N"]
    teacher_probs_T: Float[Tensor, "N 8"]
    teacher_rest_T: Float[Tensor, " N"]  # of all other words
    teacher_probs: Float[Tensor, " 8"]  # at config.temperature
    student_steps: Int[Tensor, " P"]
    student_probs: Float[Tensor, "P 8"]  # at config.temperature, during training on all texts
    student_gap: Float[Tensor, "P 8"]  # q - p
    student_probs_before: Float[Tensor, " 8"]
    student_probs_after: Float[Tensor, " 8"]
    regimes: tuple[str, ...]
    curve_steps: Int[Tensor, " C"]
    student_curve_hard: Float[Tensor, "G C"]  # held-out loss; a row for each regime
    student_curve_kd: Float[Tensor, "G C"]
    params_teacher: int
    params_student: int
    params_student_one_layer: int
    share_student: float
    loss_teacher: float
    loss_student_hard: Float[Tensor, " G"]
    loss_student_kd: Float[Tensor, " G"]
    centroids: Float[Tensor, " k"]
    assignment_hist: Int[Tensor, " k"]
    huffman_lengths: Int[Tensor, " k"]
    huffman_mean_bits: float
    assignment_entropy_bits: float
    survivors: int
    loss_shared: float  # of the iterative run's model with shared values
    position_bits: dict[str, int]  # by format
    bits: Storage


def prune_and_finetune(config: Config) -> "PruneRun":
    """Prune the tiny LM to config.sparsity in config.prune_events steps while it trains."""
    from internals_math import model_compression_experiment as experiment  # it is built on the functions above

    return experiment.prune_and_finetune(config)


def train_student(config: Config, alpha: float, documents: int | None = None) -> "StudentRun":
    """Train a small model from scratch on labels and the tiny LM's probabilities.

    Args:
        alpha: weight of the teacher; 0 = labels alone.
        documents: texts to learn from again and again; None = new texts all the time.
    """
    from internals_math import model_compression_experiment as experiment  # it is built on the functions above

    return experiment.train_student(config, alpha, documents)


def trace(config: Config) -> Trace:
    """Prune the tiny LM in every way of the video, train students, count bits (about 70 s on one core)."""
    from internals_math import model_compression_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
