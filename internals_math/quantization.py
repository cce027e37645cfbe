"""Quantization: pick a grid, snap every weight to it, keep the index of the level.

Notation: b = bits, s = scale (the step of the grid), z = zero-point, g = group_size, o = out features, i = in features
of a weight (o, i) as in torch.nn.Linear, t = tokens, n = calibration rows, H = Hessian of the layer's output error.
Sources: Jacob et al. 2018 (1712.05877) eq. 1; LLM.int8() (2208.07339) sections 2 and 3; GPTQ (2210.17323) eqs. 1-3;
QLoRA (2305.14314) for NF4 and double quantization, whose functions live in `normal_float`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.normal_float import (
    DoubleQuantizedAbsmax,
    dequantize_absmax,
    dequantize_codebook,
    double_quantize,
    normal_float_codebook,
    pack_int4,
    quantize_codebook,
    unpack_int4,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "DoubleQuantizedAbsmax", "GPTQResult", "Int8MatmulResult", "QuantParams", "Trace", "bits_per_weight",
    "choose_qparams", "dequantize", "dequantize_absmax", "dequantize_codebook", "double_quantize", "fake_quantize",
    "gptq_quantize", "input_hessian", "int8_matmul", "model_bytes", "mse", "normal_float_codebook", "pack_int4",
    "quantize", "quantize_codebook", "sqnr_db", "trace", "unpack_int4",
]  # fmt: skip


# -- even grids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class QuantParams:
    """The grid of every group of `group_size` neighbors along the last axis: level(q) = scale · (q - zero_point)."""

    scale: Float[Tensor, "*batch groups"]
    zero_point: Int[Tensor, "*batch groups"]
    bits: int
    symmetric: bool
    group_size: int

    @property
    def qmax(self) -> int:
        """Return the largest code: 2^(b-1) - 1 if symmetric, else 2^b - 1."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def qmin(self) -> int:
        """Return the smallest code: -qmax if symmetric, so that one of the 2^b codes stays unused, else 0."""
        return -self.qmax if self.symmetric else 0

    def levels(self) -> Float[Tensor, "*batch groups count"]:
        """Return all values that the grids can represent, rising."""
        codes = torch.arange(self.qmin, self.qmax + 1)
        return self.scale[..., None] * (codes - self.zero_point[..., None])


def choose_qparams(
    x: Float[Tensor, "*batch n"], bits: int, symmetric: bool = True, group_size: int | None = None
) -> QuantParams:
    """Return the finest grids that still reach the largest value of every group.

    Args:
        x: (*batch, n). One scale for all of it: pass x.reshape(1, -1).
        symmetric: absmax, with codes -qmax..qmax around 0. Otherwise min-max: the range is first widened to hold 0,
            then cut into 2^b - 1 steps, and 0 gets a code of its own, the zero-point.
        group_size: neighbors of a row that share a scale; None = the whole row.

    Raises:
        ValueError: bits out of 2..16, an empty or non-finite x, a group size that does not divide n.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must be in 2..16, got {bits}")
    if not x.numel() or not x.isfinite().all():
        raise ValueError("x must hold at least one value, and finite ones only")
    group_size = x.shape[-1] if group_size is None else group_size
    if group_size < 1 or x.shape[-1] % group_size:
        raise ValueError(f"group_size must divide the row length {x.shape[-1]}, got {group_size}")
    groups = x.unflatten(-1, (-1, group_size))
    zero = groups.new_zeros(groups.shape[:-1])
    grid = QuantParams(zero, zero.int(), bits, symmetric, group_size)
    if symmetric:
        scale = groups.abs().amax(dim=-1) / grid.qmax
        return replace(grid, scale=scale.where(scale > 0, 1))
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    scale = (high - low) / grid.qmax
    scale = scale.where(scale > 0, 1)
    zero_point = (-low / scale).round().clamp(grid.qmin, grid.qmax).int()
    return replace(grid, scale=scale, zero_point=zero_point)


def quantize(x: Float[Tensor, "*batch n"], qparams: QuantParams) -> Int[Tensor, "*batch n"]:
    """Return clamp(round(x / s) + z), int32; halves are rounded to the even code.

    Raises:
        ValueError: x that is not finite or does not have the shape the grids were chosen for.
    """
    groups = _grouped(x, qparams)
    if not x.isfinite().all():
        raise ValueError("x must hold finite values only")
    codes = (groups / qparams.scale[..., None]).round() + qparams.zero_point[..., None]
    return codes.clamp(qparams.qmin, qparams.qmax).flatten(-2).int()


def dequantize(q: Int[Tensor, "*batch n"], qparams: QuantParams) -> Float[Tensor, "*batch n"]:
    """Return s · (q - z).

    Raises:
        ValueError: codes out of qmin..qmax, or of another shape than the grids were chosen for.
    """
    groups = _grouped(q, qparams)
    if not qparams.qmin <= int(q.min()) <= int(q.max()) <= qparams.qmax:
        raise ValueError(f"codes must be in {qparams.qmin}..{qparams.qmax}, got {int(q.min())}..{int(q.max())}")
    return (qparams.scale[..., None] * (groups - qparams.zero_point[..., None])).flatten(-2)


def fake_quantize(
    x: Float[Tensor, "*batch n"], bits: int, symmetric: bool = True, group_size: int | None = None
) -> Float[Tensor, "*batch n"]:
    """Return x with every value replaced by its nearest level; arguments as in `choose_qparams`."""
    qparams = choose_qparams(x, bits, symmetric, group_size)
    return dequantize(quantize(x, qparams), qparams)


def _grouped(values: Tensor, qparams: QuantParams) -> Tensor:
    """Return values as (*batch, groups, group_size)."""
    wanted = (*qparams.scale.shape[:-1], qparams.scale.shape[-1] * qparams.group_size)
    if values.shape != wanted:
        raise ValueError(f"these grids were chosen for shape {wanted}, got {tuple(values.shape)}")
    return values.unflatten(-1, (-1, qparams.group_size))


# -- error and size ----------------------------------------------------------------------------------------------------


def mse(x: Float[Tensor, "*shape"], x_hat: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the mean squared error."""
    return (x - x_hat).square().mean()


def sqnr_db(x: Float[Tensor, "*shape"], x_hat: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return 10 log10(signal / error power) in decibels; inf without error."""
    return 10 * torch.log10(x.square().sum() / (x - x_hat).square().sum())


def bits_per_weight(bits: float, group_size: int, scale_bits: float = 16, zero_bits: float = 0) -> float:
    """Return what a weight costs when its group's scale and zero-point are counted too.

    >>> bits_per_weight(4, group_size=32)
    4.5

    Raises:
        ValueError: group_size below 1 or a negative number of bits.
    """
    if group_size < 1 or min(bits, scale_bits, zero_bits) < 0:
        raise ValueError(
            f"group_size must be at least 1 and bits at least 0, got group_size {group_size}, bits {bits}, "
            f"scale_bits {scale_bits}, zero_bits {zero_bits}"
        )
    return bits + (scale_bits + zero_bits) / group_size


def model_bytes(n_params: int, bits_per_weight: float) -> float:
    """Return the bytes of n_params weights."""
    if n_params < 0 or bits_per_weight < 0:
        raise ValueError(
            f"n_params and bits_per_weight must be at least 0, got {n_params} parameters of {bits_per_weight} bits"
        )
    return n_params * bits_per_weight / 8


# -- 8-bit multiplication with a lane for outliers ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Int8MatmulResult:
    """What `int8_matmul` computed; outlier dims have code 0 in both matrices."""

    output: Float[Tensor, "*batch t o"]
    x_int8: Int[Tensor, "*batch t i"]
    w_int8: Int[Tensor, "o i"]
    x_absmax: Float[Tensor, "*batch t"]
    w_absmax: Float[Tensor, " o"]
    outlier_dims: Int[Tensor, " outliers"]


def int8_matmul(
    x: Float[Tensor, "*batch t i"], weight: Float[Tensor, "o i"], threshold: float | None = None
) -> Int8MatmulResult:
    """Return x · weight^T by 8-bit integers: one scale for each row of x and of weight (LLM.int8(), section 3).

    Args:
        threshold: input dims in which some |x| reaches it are multiplied in x's own dtype and added; the scales are
            taken over the other dims only. (The released library blanks only the outlier entries and takes weight
            scales over full rows: the same idea with slightly coarser steps.) None = no such lane.

    Raises:
        ValueError: different inner sizes, so many of them that 32-bit sums could overflow, a threshold that is not
            above 0, or values that are not finite.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} input dims, but the weight {weight.shape[-1]}")
    if x.shape[-1] > (2**31 - 1) // 127**2:
        raise ValueError(f"32-bit sums hold up to {(2**31 - 1) // 127**2} products of 8 bits, got {x.shape[-1]}")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold must be above 0 (None = no outliers), got {threshold}")
    loud = torch.zeros(x.shape[-1], dtype=torch.bool)
    if threshold is not None:
        loud = (x.abs() >= threshold).flatten(0, -2).any(dim=0)
    quiet_x, quiet_w = x.masked_fill(loud, 0), weight.masked_fill(loud, 0)
    grid_x, grid_w = choose_qparams(quiet_x, 8), choose_qparams(quiet_w, 8)
    x_int8, w_int8 = quantize(quiet_x, grid_x), quantize(quiet_w, grid_w)
    product = x_int8 @ w_int8.T  # exact in int32
    scales = grid_x.scale * grid_w.scale[:, 0]  # (*batch, t, o)
    return Int8MatmulResult(
        output=scales * product + x[..., loud] @ weight[:, loud].T,
        x_int8=x_int8.to(torch.int8),
        w_int8=w_int8.to(torch.int8),
        x_absmax=quiet_x.abs().amax(dim=-1),
        w_absmax=quiet_w.abs().amax(dim=-1),
        outlier_dims=loud.nonzero()[:, 0],
    )


# -- GPTQ --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GPTQResult:
    """A weight whose rounding errors were chosen to cancel in the layer's output."""

    w_hat: Float[Tensor, "o i"]
    q: Int[Tensor, "o i"]
    qparams: QuantParams
    layer_error: float  # || X W^T - X W_hat^T ||², summed
    steps: Float[Tensor, "i o i"] | None  # with `record`: the weight after each column


def input_hessian(x: Float[Tensor, "n i"], damp: float = 0.01) -> Float[Tensor, "i i"]:
    """Return 2 X^T X + damp · mean(diagonal) · I in float64; an input that is always 0 gets 1 on the diagonal.

    The diagonal is damped after the dead inputs got their 1, as in the released code.
    """
    hessian = 2 * x.double().T @ x.double()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    return hessian


def gptq_quantize(
    weight: Float[Tensor, "o i"],
    x: Float[Tensor, "n i"],
    bits: int,
    symmetric: bool = True,
    group_size: int | None = None,
    damp: float = 0.01,
    record: bool = False,
) -> GPTQResult:
    """Round column after column; what each rounding does to the layer's output, the columns to its right take back.

    Args:
        x: calibration inputs of the layer. Columns of inputs that are always 0 become 0.
        group_size: as in `choose_qparams`; a group's scale is chosen when the sweep enters it, from the updated
            weights, a scale of the whole row from the original ones.
        damp: share of the Hessian's mean diagonal that is added to the diagonal.

    Raises:
        ValueError: as `choose_qparams`, calibration inputs of another width or none, a negative damp, or too few
            calibration rows to invert the Hessian of damp 0.
    """
    if x.shape[-1] != weight.shape[-1] or not len(x):
        raise ValueError(f"x must be (n, {weight.shape[-1]}) with n at least 1 for this weight, got {tuple(x.shape)}")
    if not damp >= 0:
        raise ValueError(f"damp must be at least 0, got {damp}")
    qparams = choose_qparams(weight, bits, symmetric, group_size)
    size = qparams.group_size
    scales, zeros = qparams.scale.clone(), qparams.zero_point.clone()
    hessian = input_hessian(x, damp)
    if torch.linalg.matrix_rank(hessian, hermitian=True) < len(hessian):
        raise ValueError(f"{len(x)} calibration rows do not span the {len(hessian)} inputs: raise damp, got {damp}")
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    # Row j of U holds, up to a factor, row j of the inverse Hessian of the columns from j on (GPTQ, section 3.3).
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)

    updated = weight.clone()
    updated[:, (x == 0).all(dim=0)] = 0
    codes = torch.zeros_like(weight, dtype=torch.int32)
    steps = []
    for column in range(weight.shape[1]):
        group = column // size
        if column % size == 0 and group_size is not None:
            entered = choose_qparams(updated[:, column : column + size], bits, symmetric)
            scales[:, group], zeros[:, group] = entered.scale[:, 0], entered.zero_point[:, 0]
        own = replace(qparams, scale=scales[:, group, None], zero_point=zeros[:, group, None], group_size=1)
        codes[:, column] = quantize(updated[:, column, None], own)[:, 0]
        rounded = dequantize(codes[:, column, None], own)[:, 0]
        error = (updated[:, column] - rounded) / upper[column, column]
        updated[:, column:] -= error[:, None] * upper[column, column:]
        updated[:, column] = rounded  # to the bit
        if record:
            steps.append(updated.clone())
    layer_error = float((x @ (weight - updated).T).square().sum())
    final = replace(qparams, scale=scales, zero_point=zeros)
    return GPTQResult(updated, codes, final, layer_error, torch.stack(steps) if record else None)


# -- what the video shows ----------------------------------------------------------------------------------------------

ROW = 8  # weights on the number line, and rows and columns of the GPTQ example
SENTENCE = 6  # tokens of the series story whose activations meet the loud channel
CHANNELS = 8  # of these activations and of the outputs, as shown
THRESHOLD = 6.0  # LLM.int8(), section 3.2
BITS = (2, 3, 4, 5, 6, 7, 8)
GRANULARITIES = ("one scale for all", "one for each row", "one for each group")
SAMPLES = (8, 4, 2)  # bits of the models whose writing is shown, after that of the float32 model
OUTLIER_SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    bits: int = option(4, "bits of a code", minimum=2, maximum=8)
    group_size: int = option(8, "neighboring weights that share a scale", choices=(4, 8, 16, 32))
    symmetric: bool = option(True, "absmax grids around 0; false = min-max grids with a zero-point")
    outlier_scale: float = option(20.0, "how much louder one channel is made", minimum=1, maximum=100)
    calibration_sequences: int = option(32, "training texts that GPTQ looks at", minimum=4, maximum=128)
    seed: int = option(0, "of the calibration texts", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Granularity:
    """Three ways to share a scale, one row each, on the same crop of real weights."""

    name: tuple[str, ...]
    codes: Int[Tensor, "K rows i"]
    w_hat: Float[Tensor, "K rows i"]
    err: Float[Tensor, "K rows i"]  # w_hat - w
    abs_err: Float[Tensor, "K rows i"]
    sets_scale: Bool[Tensor, "K rows i"]  # the weights that the step of their neighbors comes from
    scale: Float[Tensor, "K rows i"]  # the step that each weight got
    num_scales: Int[Tensor, " K"]
    mse: Float[Tensor, " K"]
    bits_per_weight: Float[Tensor, " K"]  # a scale is 16 bits, a zero-point as wide as a code


@dataclass(frozen=True, eq=False)
class Method:
    """The whole model at every number of bits (a column each), quantized in three ways (a row each)."""

    name: tuple[str, ...]  # round each row, round each group, GPTQ each row
    loss: Float[Tensor, "M B"]  # held-out nats per token
    excess: Float[Tensor, "M B"]  # above the loss of the float32 model
    bits_per_weight: Float[Tensor, "M B"]  # of the quantized matrices
    model_bytes: Float[Tensor, "M B"]  # of the whole model: embedding and norms stay float32


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. i = 32 inputs of one real projection, b = config.bits, B numbers of bits.

    err fields are w_hat - w. Rows of a "sweep" follow sweep_bits. NaN = no level here.
    """

    config: Config
    matrix: str  # the projection that chapters 1, 3, 5 and 6 take their weights from
    w_row: Float[Tensor, " 8"]  # 8 neighbors that share one scale
    grid: Float[Tensor, " levels"]
    grid_codes: Int[Tensor, " levels"]
    q_row: Int[Tensor, " 8"]
    w_row_hat: Float[Tensor, " 8"]
    err_row: Float[Tensor, " 8"]
    step: float
    half_step: float  # no error is longer
    sweep_bits: Int[Tensor, " B"]
    sweep_grid: Float[Tensor, "B most_levels"]  # of the same 8 weights
    sweep_q: Int[Tensor, "B 8"]
    sweep_hat: Float[Tensor, "B 8"]
    sweep_err: Float[Tensor, "B 8"]
    sweep_half_step: Float[Tensor, " B"]
    sweep_mse: Float[Tensor, " B"]  # of the whole matrix, one scale for each row
    sweep_sqnr_db: Float[Tensor, " B"]
    sweep_gain_db: Float[Tensor, " gains"]  # what each bit beyond the second added
    crop: Float[Tensor, "8 i"]  # rows of the matrix
    granularity: Granularity
    hist_matrix: str
    hist_counts: Int[Tensor, " bins"]  # of weights / absmax of their block of 64
    hist_edges: Float[Tensor, " edges"]
    nf4_code: Float[Tensor, " 16"]
    int4_code: Float[Tensor, " 15"]
    nf4_counts: Int[Tensor, " 16"]  # weights that got each code
    int4_counts: Int[Tensor, " 15"]
    nf4_mse: float
    int4_mse: float
    nf4_entropy_bits: float  # how much of its bits a code uses
    int4_entropy_bits: float
    sentence: tuple[str, ...]  # T
    outlier_dim: int
    outlier_threshold: float
    x_quiet: Float[Tensor, "T 8"]  # inputs of the matrix, first channels
    x_out: Float[Tensor, "T 8"]  # the same function with one loud channel
    x_out_int8_naive: Int[Tensor, "T 8"]
    x_out_int8_split: Int[Tensor, "T 8"]  # 0 in the channels that were moved to the lane
    x_lane: Float[Tensor, "T outliers"]  # the channels that were moved
    outlier_dims: Int[Tensor, " outliers"]
    y_int8: Float[Tensor, "T 8"]  # what the two lanes give, first outputs
    y_lane: Float[Tensor, "T 8"]
    y_split: Float[Tensor, "T 8"]  # their sum
    y_exact: Float[Tensor, "T 8"]
    y_err_naive: Float[Tensor, "T 8"]
    y_err_split: Float[Tensor, "T 8"]
    outlier_max_abs_diff_logits: float  # of the model with the loud channel and the original
    outlier_scales: Float[Tensor, " S"]
    y_rmse_naive: Float[Tensor, " S"]  # over all outputs
    y_rmse_split: Float[Tensor, " S"]
    loss_int8_naive: float  # held-out loss with the loud channel, all block matrices multiplied in 8 bits
    loss_int8_split: float
    gptq_W: Float[Tensor, "8 8"]
    gptq_W_steps: Float[Tensor, "8 8 8"]  # after each column
    gptq_nudges: Float[Tensor, "8 8 8"]  # what each column changed: its own rounding and what the others took over
    gptq_shift: Float[Tensor, "8 8 8"]  # after each column, how far the weights are from where they were
    gptq_H: Float[Tensor, "8 8"]
    gptq_flow: Float[Tensor, "8 8"]  # row j: how column j's rounding error spreads; 1 on the diagonal, 0 left of it
    gptq_codes: Int[Tensor, "8 8"]
    rtn_W: Float[Tensor, "8 8"]
    gptq_err_after_column: Float[Tensor, " 8"]  # output error on the calibration texts, summed squares
    rtn_err_after_column: Float[Tensor, " 8"]
    gptq_err: float
    rtn_err: float
    gptq_weight_mse: float  # GPTQ moves weights further and the output less
    rtn_weight_mse: float
    layer_names: tuple[str, ...]  # all matrices of the model, at config.bits
    layer_err_rtn: Float[Tensor, " N"]
    layer_err_gptq: Float[Tensor, " N"]
    layers_improved: int
    num_matrices: int
    bits_axis: Int[Tensor, " B"]
    methods: Method
    loss_fp32: float
    entropy_floor: float
    num_params: int
    num_quantized: int  # weights in the block matrices
    bytes_fp32: float
    sample_names: tuple[str, ...]
    samples: tuple[str, ...]  # what the models write after the prompt, each row rounded
    sample_words: tuple[str, ...]  # of all samples, one after the other
    sample_bounds: Int[Tensor, " bounds"]  # words of sample k: from bounds[k] up to bounds[k + 1]
    prompt: str


def trace(config: Config) -> Trace:
    """Quantize real weights in every way of the video, and the whole model 21 times (about 12 s on one core)."""
    from internals_math import quantization_experiment as experiment  # it is built on the functions above

    return Trace(
        config=config,
        **experiment.number_line(config),
        **experiment.granularities(config),
        **experiment.code_books(),
        **experiment.loud_channel(config),
        **experiment.error_feedback(config),
        **experiment.whole_model(config),
    )
