"""The NF4 table, what scales cost, and the best grids for a normal distribution."""

import math
from collections.abc import Callable
from functools import cache

import torch
from scipy import optimize

from internals_math.quantization import (
    bits_per_weight,
    choose_qparams,
    dequantize,
    dequantize_codebook,
    fake_quantize,
    model_bytes,
    mse,
    normal_float_codebook,
    quantize,
    quantize_codebook,
    sqnr_db,
)
from tests.published import Published

QLORA, GPTQ = "QLoRA, arXiv 2305.14314", "GPTQ, arXiv 2210.17323"
MAX = "Max 1960, Quantizing for Minimum Distortion"
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _overhead(block_size: int, double: bool) -> float:
    if not double:
        return bits_per_weight(0, block_size, 32)
    return bits_per_weight(0, block_size, bits_per_weight(8, 256, 32))


NORMAL = torch.special.ndtri((torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14)  # N(0, 1), evenly by share


def _codes(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest level's index and value for a normal distribution, by the core's code books."""
    scale = NORMAL.abs().max()
    indices, absmax = quantize_codebook(NORMAL, levels / scale, len(NORMAL))
    return indices, dequantize_codebook(indices, absmax, levels / scale, tuple(NORMAL.shape), len(NORMAL))


def _even_levels(count: int, step: float) -> torch.Tensor:
    return step * (torch.arange(count, dtype=torch.float64) - (count - 1) / 2)


def _even_error(count: int, step: float) -> float:
    return float(mse(NORMAL, _codes(_even_levels(count, step))[1]))


@cache
def _best_step(count: int) -> float:
    found = optimize.minimize_scalar(lambda s: _even_error(count, s), bounds=(0.1, 2), method="bounded")
    return float(found.x)  # type: ignore[union-attr]


def _lloyd_max(count: int) -> float:
    """Return the error of the best levels of any spacing: each is the mean of the values that are nearest to it."""
    levels = _even_levels(count, _best_step(count))
    for _ in range(300):
        indices = _codes(levels)[0].long()
        levels = torch.zeros_like(levels).index_add(0, indices, NORMAL) / torch.bincount(indices, minlength=count)
    return float(mse(NORMAL, _codes(levels)[1]))


def _db_per_bit() -> float:
    """Measured on a fine ramp that fills the range evenly, with grids of 2^b levels."""
    ramp = torch.linspace(0, 1, 2**18, dtype=torch.float64)[None]
    few, many = (float(sqnr_db(ramp, fake_quantize(ramp, bits, symmetric=False))) for bits in (6, 10))
    return (many - few) / 4


def _q8_error() -> float:
    """An int8 code is off by at most half a step of absmax / 127: here as a share of absmax."""
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64)[None]
    grid = choose_qparams(x, 8)
    return float((dequantize(quantize(x, grid), grid) - x).abs().max())


def _rows(name: str, ours: Callable[[int], float], printed: dict[int, float], tolerance: float, source: str):
    for levels, value in printed.items():
        yield Published(f"{name}, {levels} levels", lambda n=levels: ours(n), value, tolerance / value, source)


ROWS = (
    *(
        Published(
            f"NF4 level {k}", lambda k=k: float(normal_float_codebook()[k]), value, 2e-7 / max(abs(value), 1e-9),
            f"{QLORA}, appendix E; the released constants",
        )
        for k, value in enumerate(NF4)
    ),
    Published("bits for scales, blocks of 64", lambda: _overhead(64, False), 0.5, 0, f"{QLORA}, section 3"),
    Published("the same, double quantized", lambda: _overhead(64, True), 0.127, 0.001, f"{QLORA}, section 3"),
    Published(
        "saved by double quantization", lambda: _overhead(64, False) - _overhead(64, True), 0.373046875, 0,
        f"{QLORA}, section 3: 0.373",
    ),
    Published("OPT-175B in 16 bit, GiB", lambda: model_bytes(175 * 10**9, 16) / 2**30, 326, 3e-4, f"{GPTQ}, section 1"),
    Published("3 bits, groups of 1024", lambda: bits_per_weight(3, 1024, 16, 3) - 3, 0.0186, 0.01, f"{GPTQ}: ≈ 0.02"),
    Published("3 bits, groups of 128", lambda: bits_per_weight(3, 128, 16, 3) - 3, 0.148, 0.005, f"{GPTQ}: ≈ 0.15"),
    Published("2 bits, groups of 128", lambda: bits_per_weight(2, 128, 16, 2), 2.141, 5e-4, f"{GPTQ}: ≈ 2.2"),
    Published("GGUF Q4_0", lambda: bits_per_weight(4, 32), 4.5, 0, "llama.cpp: 32 weights and an fp16 scale"),
    Published("GGUF Q8_0", lambda: bits_per_weight(8, 32), 8.5, 0, "llama.cpp: 32 weights and an fp16 scale"),
    Published("largest int8 error / absmax", _q8_error, 1 / 254, 1e-3, "LLM.int8(), 2208.07339, section 2"),
    Published("decibels per bit", _db_per_bit, 20 * math.log10(2), 0.01, "20 log10 2, uniform source"),
    *_rows("best even step", _best_step, {2: 1.596, 4: 0.9957, 8: 0.5860, 16: 0.3352}, 1e-3, f"{MAX}, Table II"),
    *_rows(
        "error of the best even grid", lambda n: _even_error(n, _best_step(n)),
        {2: 0.3634, 4: 0.1188, 8: 0.03744, 16: 0.01154}, 1e-4, f"{MAX}, Table II",
    ),
    *_rows(
        "error of the best levels", _lloyd_max, {2: 0.3634, 4: 0.1175, 8: 0.03454, 16: 0.009497}, 1e-4,
        f"{MAX}, Table I",
    ),
)  # fmt: skip
