"""Code books: blocks of weights that share one scale, and a table of levels in place of an even grid.

NF4 is such a table: 16 quantiles of the normal distribution. Also here: two 4-bit codes in a byte, and scales that
are quantized themselves.

Source: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), section 3 and appendix E.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor


def normal_float_codebook(bits: int = 4, offset: float | None = None) -> Float[Tensor, " levels"]:
    """Return the 2^bits levels of the NormalFloat type in -1..1, rising, in float64.

    Half of them are quantiles of N(0, 1) above 0, one less below 0, and 0 itself; all are divided by the largest. This
    is how the released table was made. The averages of neighboring quantiles that the paper prints (its eq. 4) have no
    exact 0 and give other numbers.

    Args:
        offset: the outermost quantile; by default the mean of 1 - 1/32 and 1 - 1/30 for 4 bits, alike for others.

    Raises:
        ValueError: bits out of 2..8, or an offset that is not between 0.5 and 1.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2..8, got {bits}")
    half = 2 ** (bits - 1)
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2 if offset is None else offset
    if not 0.5 < outermost < 1:
        raise ValueError(f"offset must be between 0.5 and 1, got {offset}")
    above, below = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1])
        for count in (half, half - 1)
    )
    levels = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return levels / levels.max()


def quantize_codebook(
    x: Float[Tensor, "..."], codebook: Float[Tensor, " levels"], block_size: int = 64
) -> tuple[UInt8[Tensor, " n"], Float[Tensor, " blocks"]]:
    """Return the index of the nearest level of x / absmax for every value, and the absmax of every block.

    x is flattened row by row and cut into blocks of `block_size`; the last one may be short. A block of zeros has
    absmax 0 and gets the level nearest to 0. A value halfway between two levels gets the lower one.

    Args:
        codebook: up to 256 rising levels.

    Raises:
        ValueError: an empty or non-finite x, a codebook that does not rise or is too long, block_size below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if not 2 <= len(codebook) <= 256 or not (codebook.diff() > 0).all():
        raise ValueError(f"codebook must hold 2..256 rising levels, got {codebook.tolist()[:5]} … ({len(codebook)})")
    if not x.numel() or not x.isfinite().all():
        raise ValueError("x must hold at least one value, and finite ones only")
    blocks = _blocks(x.flatten(), block_size)
    absmax = blocks.abs().amax(dim=1)
    normalized = blocks / absmax.where(absmax > 0, 1)[:, None]
    levels = codebook.to(x.dtype)
    indices = torch.bucketize(normalized, (levels[1:] + levels[:-1]) / 2)
    return indices.flatten()[: x.numel()].to(torch.uint8), absmax


def dequantize_codebook(
    indices: UInt8[Tensor, " n"],
    absmax: Float[Tensor, " blocks"],
    codebook: Float[Tensor, " levels"],
    shape: tuple[int, ...],
    block_size: int = 64,
) -> Float[Tensor, "..."]:
    """Return absmax · codebook[index] in `shape`.

    Raises:
        ValueError: an index beyond the codebook, or counts of values, blocks and shape that do not fit.
    """
    if len(indices) != math.prod(shape) or len(absmax) != math.ceil(len(indices) / block_size):
        raise ValueError(
            f"{len(indices)} codes and {len(absmax)} scales of blocks of {block_size} do not fill shape {tuple(shape)}"
        )
    if int(indices.max()) >= len(codebook):
        raise ValueError(f"codes must be in 0..{len(codebook) - 1}, got {int(indices.max())}")
    scales = absmax.repeat_interleave(block_size)[: len(indices)]
    return (scales * codebook.to(absmax.dtype)[indices.long()]).view(shape)


# -- scales of scales --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DoubleQuantizedAbsmax:
    """Block scales in 8 bits: absmax ≈ mean + codes · scale."""

    codes: Int[Tensor, " blocks"]  # int8
    scale: Float[Tensor, " super_blocks"]  # the step: largest distance from the mean / 128
    mean: Float[Tensor, ""]
    block_size: int


def double_quantize(absmax: Float[Tensor, " blocks"], block_size: int = 256) -> DoubleQuantizedAbsmax:
    """Quantize block scales to 8 bits, one scale for every `block_size` of them, after subtracting their mean.

    The paper uses an 8-bit float here; this is torchao's linear grid, q = clamp(round(128 (c - mean) / m), -128, 127)
    with m the largest |c - mean|. A block whose scales are all equal gets the step 1 and codes 0.

    Raises:
        ValueError: nothing to quantize, a scale that is not finite, block_size below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if not absmax.numel() or not absmax.isfinite().all():
        raise ValueError("absmax must hold at least one value, and finite ones only")
    mean = absmax.mean()
    blocks = _blocks(absmax - mean, block_size)
    scale = blocks.abs().amax(dim=1) / 128
    scale = scale.where(scale > 0, 1)
    codes = (blocks / scale[:, None]).round().clamp(-128, 127).to(torch.int8)
    return DoubleQuantizedAbsmax(codes.flatten()[: len(absmax)], scale, mean, block_size)


def dequantize_absmax(quantized: DoubleQuantizedAbsmax) -> Float[Tensor, " blocks"]:
    """Return the block scales that `double_quantize` kept; they may be off by half a step, at its upper end by one."""
    scale = quantized.scale.repeat_interleave(quantized.block_size)[: len(quantized.codes)]
    return quantized.mean + scale * quantized.codes


def _blocks(values: Float[Tensor, " n"], block_size: int) -> Float[Tensor, "blocks size"]:
    """Cut a line of values into rows; the last row is filled with zeros."""
    missing = -len(values) % block_size
    return torch.nn.functional.pad(values, (0, missing)).view(-1, block_size)


# -- two codes in a byte -----------------------------------------------------------------------------------------------


def pack_int4(codes: Integer[Tensor, "*batch n"]) -> UInt8[Tensor, "*batch half"]:
    """Put two 4-bit codes into each byte, the first one into the high half; an odd row ends with a half of zeros.

    >>> pack_int4(torch.tensor([1, 2, 15])).tolist()
    [18, 240]

    Raises:
        ValueError: no codes, or one out of 0..15.
    """
    if not codes.numel():
        raise ValueError("codes must not be empty")
    if not 0 <= int(codes.min()) <= int(codes.max()) <= 15:
        raise ValueError(f"codes must be in 0..15, got {int(codes.min())}..{int(codes.max())}")
    even = torch.nn.functional.pad(codes.to(torch.uint8), (0, codes.shape[-1] % 2))
    return even[..., ::2] << 4 | even[..., 1::2]


def unpack_int4(packed: UInt8[Tensor, "*batch half"], n: int | None = None) -> UInt8[Tensor, "*batch n"]:
    """Return the 4-bit codes of packed bytes; n leaves out the filling of an odd row.

    Raises:
        ValueError: n does not fit the number of bytes.
    """
    halves = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2)
    if n is not None and not halves.shape[-1] - 1 <= n <= halves.shape[-1]:
        raise ValueError(f"{packed.shape[-1]} bytes hold {halves.shape[-1] - 1} or {halves.shape[-1]} codes, got n {n}")
    return halves[..., :n]
