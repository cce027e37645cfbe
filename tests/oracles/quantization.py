"""Fake quantization of torch, affine grids and NF4 of torchao, quantiles of SciPy, least squares column by column."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from internals_math.quantization import (
    choose_qparams,
    dequantize,
    dequantize_absmax,
    dequantize_codebook,
    double_quantize,
    fake_quantize,
    gptq_quantize,
    int8_matmul,
    mse,
    normal_float_codebook,
    quantize,
    quantize_codebook,
)
from tests.oracles import Oracle, largest_difference, randn

TORCH, TORCHAO = "torch.fake_quantize", "torchao: quant_primitives"


def _fake_per_tensor(bits: int, symmetric: bool) -> float:
    x = randn(6, 20, seed=bits, dtype=torch.float32)
    grid = choose_qparams(x.reshape(1, -1), bits, symmetric)
    ours = fake_quantize(x.reshape(1, -1), bits, symmetric).view_as(x)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax)
    return largest_difference(ours, theirs)


def _fake_per_channel(bits: int, symmetric: bool) -> float:
    x = randn(6, 20, seed=bits, dtype=torch.float32)
    grid = choose_qparams(x, bits, symmetric)
    theirs = torch.fake_quantize_per_channel_affine(x, grid.scale[:, 0], grid.zero_point[:, 0], 0, grid.qmin, grid.qmax)
    return largest_difference(fake_quantize(x, bits, symmetric), theirs)


def _torchao(bits: int, symmetric: bool, group_size: int) -> float:
    """Scales, zero-points, codes and values; its own symmetric int4 would divide by 7.5, so its range is given."""
    from torchao.quantization import quant_primitives as ao  # slow to import, and talkative

    x = randn(6, 64, seed=bits + group_size, dtype=torch.float32)
    ours = choose_qparams(x, bits, symmetric, group_size)
    block = (1, group_size)
    kind = ao.MappingType.SYMMETRIC if symmetric else ao.MappingType.ASYMMETRIC
    limits = {"quant_min": ours.qmin, "quant_max": ours.qmax}
    dtype = torch.int8 if symmetric else torch.uint8
    scale, zero = ao.choose_qparams_affine(x, kind, block, dtype, **limits)
    codes = ao.quantize_affine(x, block, scale, zero, dtype, **limits)
    values = ao.dequantize_affine(codes, block, scale, zero, dtype, **limits)
    own = quantize(x, ours)
    return max(
        largest_difference(ours.scale, scale.view_as(ours.scale)),
        largest_difference(ours.zero_point, zero.view_as(ours.zero_point)),
        largest_difference(own, codes),
        largest_difference(dequantize(own, ours), values),
    )


def _quantiles() -> float:
    """The released recipe with SciPy's quantile function."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:8])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:7])
    levels = np.sort(np.concatenate([above, below, [0.0]]))
    return largest_difference(normal_float_codebook(), torch.from_numpy(levels / levels.max()))


def _nf4_weight() -> Tensor:
    return 0.02 * randn(128, 256, seed=5, dtype=torch.float32)


def _nf4() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, our NF4 with double quantization, torchao's, and the absmax of every value's block."""
    from torchao.quantization import to_nf4

    weight = _nf4_weight()
    indices, absmax = quantize_codebook(weight, normal_float_codebook())
    scales = dequantize_absmax(double_quantize(absmax))
    ours = dequantize_codebook(indices, scales, normal_float_codebook(), tuple(weight.shape))
    theirs = to_nf4(weight, block_size=64, scaler_block_size=256).get_original_weight()
    return weight, ours, theirs, absmax.repeat_interleave(64).view_as(weight)


def _nf4_error() -> float:
    weight, ours, theirs, _ = _nf4()
    return float(abs(mse(weight, ours) / mse(weight, theirs) - 1))


def _nf4_strangers() -> float:
    """Share of values further apart than 1 % of their absmax: torchao's levels have four decimals."""
    _, ours, theirs, absmax = _nf4()
    return float(((ours - theirs).abs() > 0.01 * absmax).float().mean())


def _double_quantized_scales() -> float:
    from torchao.quantization import to_nf4

    weight = _nf4_weight()
    _, absmax = quantize_codebook(weight, normal_float_codebook())
    theirs = to_nf4(weight, block_size=64, scaler_block_size=256)
    quantized = double_quantize(absmax)
    assert torch.equal(quantized.codes, theirs.quantized_scalers)
    restored = theirs.dequantize_scalers(theirs.quantized_scalers, theirs.quantization_factor, theirs.scaler_block_size)
    return largest_difference(dequantize_absmax(quantized), restored)


def _nearest_by_search() -> float:
    x, book = randn(7, 24, seed=6), normal_float_codebook()
    indices, absmax = quantize_codebook(x, book, 21)
    blocks = x.flatten().view(-1, 21)
    theirs = ((blocks / absmax[:, None])[..., None] - book).abs().argmin(dim=-1).flatten()
    return largest_difference(indices.long(), theirs)


def _int8_in_float64(threshold: float | None) -> float:
    """LLM.int8() token by token and output by output, in plain Python numbers."""
    x, weight = randn(5, 9, seed=7), randn(4, 9, seed=8)
    x[:, 3] *= 12
    threshold_value = float("inf") if threshold is None else threshold
    loud = [j for j in range(9) if max(abs(float(v)) for v in x[:, j]) >= threshold_value]
    quiet = [j for j in range(9) if j not in loud]
    theirs = torch.zeros(5, 4, dtype=torch.float64)
    for t, row in enumerate(x.tolist()):
        for o, w in enumerate(weight.tolist()):
            c_x, c_w = max(abs(row[j]) for j in quiet), max(abs(w[j]) for j in quiet)
            products = sum(round(row[j] * 127 / c_x) * round(w[j] * 127 / c_w) for j in quiet)
            theirs[t, o] = c_x * c_w / 127**2 * products + sum(row[j] * w[j] for j in loud)
    return largest_difference(int8_matmul(x, weight, threshold).output, theirs)


def _gptq_least_squares(group_size: int | None, symmetric: bool = True) -> float:
    """After every column, the columns to its right are the least-squares optimum given all rounded ones."""
    weight, x = randn(5, 8, seed=9), randn(40, 8, seed=10) @ randn(8, 8, seed=11)
    result = gptq_quantize(weight, x, 4, symmetric, group_size, damp=0.0, record=True)
    assert result.steps is not None
    worst = 0.0
    for column, after in enumerate(result.steps[:-1], start=1):
        missing = x @ weight.T - x[:, :column] @ after[:, :column].T  # what the free columns should produce
        best = torch.linalg.lstsq(x[:, column:], missing).solution.T
        worst = max(worst, largest_difference(after[:, column:], best))
    return worst


def _gptq_with_inverses() -> float:
    """GPTQ's equations 2 and 3 as printed: the inverse Hessian loses one row and column at every step."""
    weight, x = randn(5, 8, seed=12), randn(40, 8, seed=13) @ randn(8, 8, seed=14)
    hessian = 2 * x.T @ x
    inverse = torch.linalg.inv(hessian + 0.01 * hessian.diagonal().mean() * torch.eye(8, dtype=torch.float64))
    grid = choose_qparams(weight, 4)
    current = weight.clone()
    for j in range(8):
        rounded = grid.scale[:, 0] * (current[:, j] / grid.scale[:, 0]).round().clamp(-7, 7)
        error = (current[:, j] - rounded) / inverse[j, j]
        current = current - error[:, None] * inverse[j]
        current[:, j] = rounded
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return largest_difference(gptq_quantize(weight, x, 4).w_hat, current)


ROWS = (
    *(
        Oracle(f"{where}, {bits} bits, {'symmetric' if symmetric else 'zero-point'}", run, 1e-6, TORCH)
        for bits, symmetric in ((8, True), (4, True), (4, False), (3, False))
        for where, run in (
            ("one scale for all", lambda b=bits, s=symmetric: _fake_per_tensor(b, s)),
            ("one scale for each row", lambda b=bits, s=symmetric: _fake_per_channel(b, s)),
        )
    ),
    *(
        Oracle(
            f"groups of {size}, {bits} bits, {'symmetric' if symmetric else 'zero-point'}",
            lambda b=bits, s=symmetric, g=size: _torchao(b, s, g),
            1e-6,
            TORCHAO,
        )
        for bits, symmetric, size in ((4, True, 16), (4, False, 16), (8, True, 32), (3, False, 8))
    ),
    Oracle("levels of NF4", _quantiles, 1e-12, "scipy.stats.norm.ppf"),
    Oracle("nearest level", _nearest_by_search, 0, "search over all levels"),
    Oracle("error of NF4 with double quantization (relative)", _nf4_error, 0.03, "torchao: NF4Tensor"),
    Oracle("share of NF4 values in another bin", _nf4_strangers, 0.01, "torchao: NF4Tensor"),
    Oracle("double-quantized scales", _double_quantized_scales, 1e-8, "torchao: NF4Tensor"),
    Oracle("int8 product", lambda: _int8_in_float64(None), 1e-12, "plain Python, float64"),
    Oracle("int8 product with an outlier lane", lambda: _int8_in_float64(6.0), 1e-12, "plain Python, float64"),
    Oracle("GPTQ's free columns", lambda: _gptq_least_squares(None), 1e-8, "torch.linalg.lstsq"),
    Oracle("GPTQ's free columns, groups", lambda: _gptq_least_squares(4), 1e-8, "torch.linalg.lstsq"),
    Oracle("GPTQ's free columns, zero-points", lambda: _gptq_least_squares(4, False), 1e-8, "torch.linalg.lstsq"),
    Oracle("GPTQ by its equations 2 and 3", _gptq_with_inverses, 1e-10, "inverse Hessian, column by column"),
)
