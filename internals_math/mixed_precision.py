"""Mixed precision training: 16-bit numbers where they are enough, 32 bits for weights, sums and tiny gradients.

Notation: S = loss scale, n = values in a row, i, o = in and out features, R = records. The formats and the rounding
live in `float_formats`.
Source: Micikevicius et al. 2017, arXiv 1710.03740 (master weights section 3.1, loss scaling 3.2, sums 3.3); the
constants of the dynamic scale are those of torch.amp.GradScaler; memory: ZeRO, arXiv 1910.02054, section 3.1.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.float_formats import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    TF32,
    FloatFields,
    FloatFormat,
    cast,
    compose,
    decompose,
    representable_values,
    round_to_format,
    ulp,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "BF16",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "FP32",
    "TF32",
    "Config",
    "DynamicLossScaler",
    "FloatFields",
    "FloatFormat",
    "RangeReport",
    "Trace",
    "TrainCurve",
    "accumulate",
    "apply_updates",
    "compose",
    "decompose",
    "low_precision_linear",
    "max_power_of_two_scale",
    "range_report",
    "representable_values",
    "round_to_format",
    "trace",
    "train_mixed",
    "training_bytes_per_param",
    "ulp",
    "underflow_fraction",
    "unscale_",
]  # fmt: skip


# -- what falls off the ends of a format -------------------------------------------------------------------------------


@dataclass(frozen=True)
class RangeReport:
    """Where the entries that are not 0 land, as shares that sum to 1."""

    zeroed: float
    subnormal: float
    normal: float
    overflowed: float


def range_report(x: Float[Tensor, "*shape"], fmt: FloatFormat, scale: float = 1.0) -> RangeReport:
    """Return what becomes of scale · x in the format.

    Raises:
        ValueError: a scale that is not positive and finite, x that is not finite or has nothing but zeros.
    """
    _check_scale(scale)
    if not x.isfinite().all() or not x.any():
        raise ValueError("x must be finite and have at least one entry that is not 0")
    values = cast((x[x != 0].double() * scale), fmt).abs()
    beyond = ~(values <= fmt.max)  # inf, or NaN where the format has no inf
    kinds = {
        "zeroed": values == 0,
        "subnormal": (values > 0) & (values < fmt.min_normal),
        "normal": (values >= fmt.min_normal) & ~beyond,
        "overflowed": beyond,
    }
    return RangeReport(**{name: int(chosen.sum()) / len(values) for name, chosen in kinds.items()})


def underflow_fraction(x: Float[Tensor, "*shape"], fmt: FloatFormat, scale: float = 1.0) -> float:
    """Return which share of the entries that are not 0 become 0 in scale · x; errors as `range_report`."""
    return range_report(x, fmt, scale).zeroed


# -- loss scaling ------------------------------------------------------------------------------------------------------


def max_power_of_two_scale(grads: Iterable[Tensor], fmt: FloatFormat) -> float:
    """Return the largest 2^k that keeps all gradients finite: 2^⌊log2(max / largest |g|)⌋.

    Raises:
        ValueError: gradients that are not finite, or none that is not 0.
    """
    largest = max((float(grad.abs().max()) for grad in grads), default=0.0)
    if not (math.isfinite(largest) and largest > 0):
        raise ValueError(f"grads must be finite and not all 0, got a largest magnitude of {largest}")
    (mantissa, exponent), (own_mantissa, own_exponent) = math.frexp(fmt.max), math.frexp(largest)
    return 2.0 ** (exponent - own_exponent - (mantissa < own_mantissa))


def unscale_(grads: Iterable[Tensor], scale: float) -> tuple[list[Tensor], bool]:
    """Divide the gradients by the scale in place; return them and whether any entry is inf or NaN.

    Before clipping, weight decay and the optimizer: all three need the true size.

    Raises:
        ValueError: a scale that is not positive and finite.
    """
    _check_scale(scale)
    unscaled = [grad.div_(scale) for grad in grads]
    return unscaled, not all(bool(grad.isfinite().all()) for grad in unscaled)


@dataclass
class DynamicLossScaler:
    """Grow the scale after quiet steps, back off from an overflow (rules and defaults of torch.amp.GradScaler).

    Raises:
        ValueError: init_scale not positive and finite, growth_factor <= 1, backoff_factor outside (0, 1), or
            growth_interval < 1.
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    scale: float = field(init=False)
    growth_tracker: int = field(init=False, default=0)  # good steps since the last change or overflow

    def __post_init__(self) -> None:
        _check_scale(self.init_scale)
        if not (self.growth_factor > 1 and math.isfinite(self.growth_factor)):
            raise ValueError(f"growth_factor must be > 1 and finite, got {self.growth_factor}")
        if not 0 < self.backoff_factor < 1:
            raise ValueError(f"backoff_factor must be between 0 and 1, got {self.backoff_factor}")
        if self.growth_interval < 1:
            raise ValueError(f"growth_interval must be at least 1, got {self.growth_interval}")
        self.scale = self.init_scale

    def update(self, found_inf: bool) -> float:
        """Return the scale of the next step, after one whose gradients had an inf or NaN, or none."""
        if found_inf:
            self.scale *= self.backoff_factor
            self.growth_tracker = 0
            return self.scale
        self.growth_tracker += 1
        if self.growth_tracker == self.growth_interval:
            grown = self.scale * self.growth_factor
            self.scale = grown if grown <= FP32.max else self.scale
            self.growth_tracker = 0
        return self.scale


def _check_scale(scale: float) -> None:
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale}")


# -- 16-bit arithmetic -------------------------------------------------------------------------------------------------


def accumulate(values: Float[Tensor, " n"], fmt: FloatFormat) -> Float[Tensor, " n"]:
    """Return the running sum of the rounded values, rounded after every addition.

    float64 holds each sum of two values of any of our formats closely enough that rounding it is rounding once.

    >>> accumulate(torch.ones(4096), FP16)[-1]
    tensor(2048.)
    """
    total, sums = torch.zeros((), dtype=torch.float64), []
    for value in round_to_format(values.double(), fmt):
        total = round_to_format(total + value, fmt)
        sums.append(total)
    return torch.stack(sums).to(values.dtype) if sums else values.clone()


def apply_updates(
    w: Float[Tensor, "*shape"], updates: Float[Tensor, "n ..."], fmt: FloatFormat
) -> Float[Tensor, "*shape"]:
    """Return w after adding one update after another; the weight is rounded each time, the updates are not."""
    w = cast(w, fmt)
    for update in updates:
        w = cast(w + update, fmt)
    return w


def low_precision_linear(
    x: Float[Tensor, "*batch i"], w: Float[Tensor, "o i"], fmt: FloatFormat
) -> Float[Tensor, "*batch o"]:
    """Return x · w^T as a 16-bit unit computes it, forward and backward.

    Both operands, the output and the three gradients are rounded; products are summed in the dtype of x (section 3.3).
    """
    return _LowPrecisionLinear.apply(x, w, fmt)  # type: ignore[return-value]


class _LowPrecisionLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, fmt: FloatFormat) -> Tensor:
        x, w = cast(x, fmt), cast(w, fmt)
        ctx.save_for_backward(x, w)
        ctx.fmt = fmt
        return cast(x @ w.T, fmt)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        grad = cast(grads[0], ctx.fmt)
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return cast(grad @ w, ctx.fmt), cast(rows.T @ inputs, ctx.fmt), None


def stored(weight: Float[Tensor, "*shape"], fmt: FloatFormat) -> Float[Tensor, "*shape"]:
    """Return the 16-bit copy of a weight; its gradient is rounded too when it comes back."""
    return _Stored.apply(weight, fmt)  # type: ignore[return-value]


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, fmt: FloatFormat) -> Tensor:
        ctx.fmt = fmt
        return cast(weight, fmt)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return cast(grads[0], ctx.fmt), None


# -- memory ------------------------------------------------------------------------------------------------------------

BYTES_PER_PARAM = {
    "fp32": {"weights": 4, "gradients": 4, "master": 0, "momentum": 4, "variance": 4},
    "mixed": {"weights": 2, "gradients": 2, "master": 4, "momentum": 4, "variance": 4},
    "no_master": {"weights": 2, "gradients": 2, "master": 0, "momentum": 4, "variance": 4},
}


def training_bytes_per_param(mode: str) -> dict[str, int]:
    """Return the bytes that training with Adam keeps for each parameter, by purpose (ZeRO, section 3.1).

    >>> sum(training_bytes_per_param("mixed").values())
    16

    Args:
        mode: "fp32", "mixed", or "no_master": 16-bit weights that are updated directly.

    Raises:
        ValueError: another mode.
    """
    if mode not in BYTES_PER_PARAM:
        raise ValueError(f"mode must be one of {', '.join(BYTES_PER_PARAM)}, got {mode!r}")
    return dict(BYTES_PER_PARAM[mode])


# -- training ----------------------------------------------------------------------------------------------------------

MODES = ("fp32", "fp16_pure", "fp16_master", "fp16_scaled", "bf16_pure", "bf16_mixed")


@dataclass(frozen=True, eq=False)
class TrainCurve:
    """What one training run did, step by step."""

    loss: Float[Tensor, " n"]  # of the step's batch before the step, nats per token
    scale: Float[Tensor, " n"]  # of the loss, during the step
    skipped: Bool[Tensor, " n"]  # no step was taken: a gradient was inf or NaN
    lost_share: Float[Tensor, " n"]  # of the updates that are not 0, those that left the stored weight as it was
    zeroed_share: Float[Tensor, " n"]  # of all weights' gradients, those that are exactly 0
    final_eval_loss: float  # on held-out texts, with the stored weights


def train_mixed(config: "Config", mode: str) -> TrainCurve:
    """Train the tiny LM from fresh weights with Adam, in one of MODES.

    fp32: a plain loop. The others compute every matrix product with `low_precision_linear`. *_pure: the weights are
    16 bits wide and rounded after every step, Adam's state is float32. fp16_master, bf16_mixed: float32 weights and
    16-bit copies. fp16_scaled: that with a dynamic loss scale.

    Raises:
        ValueError: another mode.
    """
    from internals_math import mixed_precision_experiment as experiment  # it is built on the functions above

    return experiment.train(config, mode)


# -- what the video shows ----------------------------------------------------------------------------------------------

SHOWN_FORMATS = (FP32, TF32, FP16, BF16, FP8_E4M3, FP8_E5M2)
SCALES = range(33)  # powers of two that the loss is multiplied by
EDGES = range(-48, 5)  # of the histogram, powers of two
CROP = (8, 12)  # positions and channels of the gradient on screen
SUMMED = 2048  # values of the running sums
UPDATES = 24  # of one weight
SMALL = -8  # the power of two on the loss that a batch 256 times larger would bring
CLIFF = -14  # the power of two on the loss at which unscaled FP16 falls


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    train_steps: int = option(200, "optimizer steps of each run", minimum=50, maximum=500)
    learning_rate: float = option(1e-3, "of Adam; falls to 1 % of it by a cosine", minimum=1e-5, maximum=1e-2)
    init_scale_log2: int = option(16, "first loss scale, as a power of two", minimum=0, maximum=24)
    growth_interval: int = option(20, "good steps before the loss scale doubles", minimum=5, maximum=2000)
    backoff_factor: float = option(0.5, "on the loss scale after an overflow", minimum=0.1, maximum=0.9)
    seed: int = option(0, "of the weights and the order of the texts", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class FormatTable:
    """The formats as columns."""

    name: tuple[str, ...]
    bits: Int[Tensor, " formats"]
    exponent_bits: Int[Tensor, " formats"]
    mantissa_bits: Int[Tensor, " formats"]
    max: Float[Tensor, " formats"]
    min_normal: Float[Tensor, " formats"]
    min_subnormal: Float[Tensor, " formats"]
    eps: Float[Tensor, " formats"]
    max_exponent: Int[Tensor, " formats"]  # powers of two: just below max, of min_normal, of min_subnormal
    min_normal_exponent: Int[Tensor, " formats"]
    min_subnormal_exponent: Int[Tensor, " formats"]


@dataclass(frozen=True, eq=False)
class ScaleTable:
    """A RangeReport for every loss scale of SCALES."""

    log2_scale: Int[Tensor, " scales"]
    zeroed: Float[Tensor, " scales"]
    subnormal: Float[Tensor, " scales"]
    normal: Float[Tensor, " scales"]
    overflowed: Float[Tensor, " scales"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    Gradients are those of the mean loss of one batch, by the trained tiny LM in float32: of the activations, that is of
    the outputs of all matrix products (logits included), and of the weights. Gradients that are 0 do not count.
    """

    config: Config
    formats: FormatTable
    bits_fp32: Int[Tensor, " 32"]  # of one gradient, the most significant first: 1 | 8 | 23
    bits_fp16: Int[Tensor, " 16"]  # 1 | 5 | 10
    bits_bf16: Int[Tensor, " 16"]  # 1 | 8 | 7
    bit_values: Float[Tensor, " 3"]  # what these bits mean
    levels_fp16: Float[Tensor, " 1024"]  # all values in [1, 2)
    levels_bf16: Float[Tensor, " 128"]
    grad_tokens: int  # predicted by the batch
    hist_edges: Int[Tensor, " edges"]  # powers of two
    hist_activations: Int[Tensor, " bins"]
    hist_activations_below: int  # too small for the first bin
    hist_weights: Int[Tensor, " bins"]
    hist_weights_below: int
    report_by_scale: ScaleTable  # of the activations' gradients in FP16
    report_weights_by_scale: ScaleTable
    report_bf16: RangeReport  # of the activations' gradients, unscaled
    report_early: RangeReport  # the same in FP16, of the tiny LM after 50 of its 1600 steps
    safe_scale_log2: int  # of the largest scale at which no gradient of this batch overflows FP16
    act_name: str
    act_tokens: tuple[str, ...]
    act_grad: Float[Tensor, "8 12"]  # a corner of one activation's gradient, in FP32
    act_grad_fp16: Float[Tensor, "8 12"]
    act_grad_scaled: Float[Tensor, "8 12"]  # times the first loss scale, in FP16, then unscaled
    sum_fp32: Float[Tensor, " 2048"]  # running sums of the losses of held-out tokens
    sum_fp16: Float[Tensor, " 2048"]
    sum_bf16: Float[Tensor, " 2048"]
    update_name: str
    update_step: int  # steps before the first of these updates
    update_w: float  # one weight of the fp32 run, rounded to FP16
    update_delta: Float[Tensor, " 24"]  # what Adam adds to it
    update_ticks: Float[Tensor, " ticks"]  # values of FP16 around it
    half_ulp_fp16: float  # at this weight: a smaller update does not land
    half_ulp_bf16: float
    w_fp16_path: Float[Tensor, " 25"]  # before the first and after every update
    w_bf16_path: Float[Tensor, " 25"]
    w_master_path: Float[Tensor, " 25"]
    w_copy_path: Float[Tensor, " 25"]  # the master rounded to FP16
    curves: dict[str, Tensor]  # mode -> (n,) loss of every step's batch
    lost_update_share: dict[str, Tensor]  # pure modes -> (n,)
    scale_path: Float[Tensor, " n"]  # of fp16_scaled
    skipped_steps: Int[Tensor, " skipped"]
    final_losses: dict[str, float]  # held-out, nats per token
    small_log2: int  # the loss times 2^small_log2, as a batch 256 times larger would have it
    curves_small: dict[str, Tensor]
    final_losses_small: dict[str, float]
    cliff_log2: int  # and so small that unscaled FP16 fails
    curves_cliff: dict[str, Tensor]
    final_losses_cliff: dict[str, float]
    zeroed_share: Float[Tensor, " conditions"]  # weight gradients of fp16_master that are 0, mean of all steps: loss
    # times 1, 2^small_log2, 2^cliff_log2
    entropy_floor: float
    bytes_fp32: dict[str, int]  # for each parameter, by purpose
    bytes_mixed: dict[str, int]


def trace(config: Config) -> Trace:
    """Train the tiny LM in every mode, and take the gradients of one batch apart."""
    from internals_math import mixed_precision_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
