"""Floating-point formats: how few bits are spent on range and on precision, and what rounding to them does.

Notation: e = exponent_bits, m = mantissa_bits, B = bias, E and M = the stored exponent and mantissa of a number.
Sources: IEEE 754-2019, sections 3.3 and 4.3; bfloat16: arXiv 1905.12322; FP8: Micikevicius et al. 2022, arXiv
2209.05433, Table 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_VALUES = 2**16  # that `representable_values` lists


@dataclass(frozen=True)
class FloatFormat:
    """A sign, e exponent bits and m mantissa bits; every format fits into float32.

    0 < E: (-1)^s · 2^(E - B) · (1 + M / 2^m), normal. E = 0: (-1)^s · 2^(1 - B) · M / 2^m, subnormal.
    ieee: the largest E means infinite (M = 0) or NaN. Otherwise only the largest E with the largest M is NaN, nothing
    is infinite, and the other M of the largest E are ordinary numbers (E4M3).

    Raises:
        ValueError: exponent_bits out of 2..8 or mantissa_bits out of 1..23.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    ieee: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits must be in 2..8, got {self.exponent_bits}")
        if not 1 <= self.mantissa_bits <= 23:
            raise ValueError(f"mantissa_bits must be in 1..23, got {self.mantissa_bits}")

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def max_exponent(self) -> int:
        """Return the power of two just below the largest finite value."""
        return self.bias if self.ieee else self.bias + 1

    @property
    def max(self) -> float:
        largest_mantissa = 2 - self.eps if self.ieee else 2 - 2 * self.eps
        return largest_mantissa * 2.0**self.max_exponent

    @property
    def min_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        return self.min_normal * self.eps

    @property
    def eps(self) -> float:
        """Return the distance from 1 to the next larger value."""
        return 2.0**-self.mantissa_bits


FP32 = FloatFormat("FP32", 8, 23)
TF32 = FloatFormat("TF32", 8, 10)  # 19 bits, kept in 32
FP16 = FloatFormat("FP16", 5, 10)
BF16 = FloatFormat("BF16", 8, 7)
FP8_E4M3 = FloatFormat("FP8 E4M3", 4, 3, ieee=False)
FP8_E5M2 = FloatFormat("FP8 E5M2", 5, 2)
NATIVE = {FP16: torch.float16, BF16: torch.bfloat16}


# -- rounding ----------------------------------------------------------------------------------------------------------


def round_to_format(x: Float[Tensor, "*shape"], fmt: FloatFormat, *, saturate: bool = False) -> Float[Tensor, "*shape"]:
    """Return the nearest values of the format in x's own dtype; halfway cases go to the even mantissa.

    Beyond max + ulp(max) / 2 the result is ±inf, or NaN in a format without inf. NaN stays NaN, -0 stays -0.

    Args:
        x: float32 or float64.
        saturate: ±max in place of an overflow, and for ±inf.

    >>> round_to_format(torch.tensor([65519.0, 65520.0, 1e-8]), FP16)
    tensor([65504.,    inf,     0.])

    Raises:
        ValueError: x of another dtype.
    """
    wide = _wide(x)
    step = _power_of_two(_exponent(wide, fmt) - fmt.mantissa_bits)
    rounded = (wide / step).round() * step  # both scalings are exact, and torch rounds halves to even
    if saturate:
        return rounded.clamp(-fmt.max, fmt.max).to(x.dtype)
    beyond = torch.full_like(rounded, math.inf if fmt.ieee else math.nan).copysign(wide)
    return beyond.where(rounded.abs() > fmt.max, rounded).to(x.dtype)


def cast(x: Float[Tensor, "*shape"], fmt: FloatFormat) -> Float[Tensor, "*shape"]:
    """Return `round_to_format` of x, by the machine's own cast where it has one: the same bits, many times faster."""
    if fmt in NATIVE and x.dtype == torch.float32:  # from float64 torch would round twice
        return x.to(NATIVE[fmt]).to(torch.float32)
    return round_to_format(x, fmt)


def ulp(x: Float[Tensor, "*shape"], fmt: FloatFormat) -> Float[Tensor, "*shape"]:
    """Return the spacing of the format at x, 2^(max(⌊log2 |x|⌋, 1 - B) - m); NaN where x is not finite.

    Raises:
        ValueError: x is neither float32 nor float64.
    """
    wide = _wide(x)
    spacing = _power_of_two(_exponent(wide, fmt) - fmt.mantissa_bits)
    return spacing.where(wide.isfinite(), math.nan).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64, got {x.dtype}")
    return x.double()


def _exponent(wide: Float[Tensor, "*shape"], fmt: FloatFormat) -> Int[Tensor, "*shape"]:
    """Return max(⌊log2 |x|⌋, 1 - B); 1 - B where x is not finite."""
    exponent = torch.frexp(wide).exponent.long() - 1  # frexp has mantissas in [½, 1)
    ordinary = wide.isfinite() & (wide != 0)
    return exponent.where(ordinary, 1 - fmt.bias).clamp(min=1 - fmt.bias)


def _power_of_two(exponent: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return 2^exponent in float64, made from its bits: a library's pow may be off by one ulp."""
    return ((exponent + 1023) << 52).view(torch.float64)


# -- fields ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FloatFields:
    """The three stored integers of each number."""

    sign: Int[Tensor, "*shape"]  # 1 = negative
    exponent: Int[Tensor, "*shape"]
    mantissa: Int[Tensor, "*shape"]


def decompose(x: Float[Tensor, "*shape"], fmt: FloatFormat) -> FloatFields:
    """Return the fields that the format stores for x.

    Raises:
        ValueError: a value that the format does not have, or x neither float32 nor float64.
    """
    wide = _wide(x)
    foreign = (round_to_format(wide, fmt) != wide) & ~wide.isnan()
    if foreign.any():
        raise ValueError(f"x must hold values of {fmt.name} only (round_to_format first), got {wide[foreign][:3]}")
    exponent = _exponent(wide, fmt)
    steps = (wide.abs().where(wide.isfinite(), 0) / _power_of_two(exponent - fmt.mantissa_bits)).long()
    hidden = steps >> fmt.mantissa_bits  # 1 in normal numbers
    fields = {"exponent": hidden * (exponent + fmt.bias), "mantissa": steps - (hidden << fmt.mantissa_bits)}
    top, quiet = _top(fmt), 2 ** (fmt.mantissa_bits - 1) if fmt.ieee else 2**fmt.mantissa_bits - 1
    return FloatFields(
        sign=wide.signbit().long(),
        exponent=fields["exponent"].where(wide.isfinite(), top),
        mantissa=fields["mantissa"].where(wide.isfinite(), 0).where(~wide.isnan(), quiet),
    )


def compose(fields: FloatFields, fmt: FloatFormat) -> Float[Tensor, "*shape"]:
    """Return the numbers (float32) that these fields mean.

    Raises:
        ValueError: a field that does not fit into its bits.
    """
    limits = {"sign": 2, "exponent": _top(fmt) + 1, "mantissa": 2**fmt.mantissa_bits}
    for name, limit in limits.items():
        field = getattr(fields, name)
        if ((field < 0) | (field >= limit)).any():
            raise ValueError(f"{name} of {fmt.name} must be in 0..{limit - 1}, got {field.tolist()}")
    exponent, mantissa = fields.exponent.long(), fields.mantissa.long()
    steps = mantissa + ((exponent > 0).long() << fmt.mantissa_bits)
    value = steps * _power_of_two(exponent.clamp(min=1) - fmt.bias - fmt.mantissa_bits)
    last = exponent == _top(fmt)
    if fmt.ieee:
        value = torch.full_like(value, math.inf).where(last & (mantissa == 0), value)
        value = value.masked_fill(last & (mantissa > 0), math.nan)
    else:
        value = value.masked_fill(last & (mantissa == limits["mantissa"] - 1), math.nan)
    return (value * (1 - 2 * fields.sign.long())).float()


def bit_tiles(x: Float[Tensor, "*shape"], fmt: FloatFormat) -> Int[Tensor, "*shape bits"]:
    """Return the stored bits of x as 0 and 1: sign, exponent, mantissa, the most significant first.

    Raises:
        ValueError: as `decompose`.
    """
    code = _code(decompose(x, fmt), fmt)
    return (code[..., None] >> torch.arange(fmt.bits - 1, -1, -1)) & 1


def representable_values(fmt: FloatFormat, low: float, high: float) -> Float[Tensor, " n"]:
    """Return all finite values of the format in [low, high], rising; zero counts once.

    >>> representable_values(FP8_E5M2, 1, 2)
    tensor([1.0000, 1.2500, 1.5000, 1.7500, 2.0000])

    Raises:
        ValueError: bounds that are NaN or out of order, or more than 2^16 values.
    """
    if not low <= high:
        raise ValueError(f"low must be at most high, got {low} and {high}")
    first, last = -_rank_below(-low, fmt), _rank_below(high, fmt)
    if last - first >= MOST_VALUES:
        raise ValueError(f"at most {MOST_VALUES} values can be listed, got {last - first + 1} from {low} to {high}")
    ranks = torch.arange(first, last + 1)
    codes = ranks.abs()
    mantissas = codes % 2**fmt.mantissa_bits
    return compose(FloatFields((ranks < 0).long(), codes >> fmt.mantissa_bits, mantissas), fmt)


def _rank_below(bound: float, fmt: FloatFormat) -> int:
    """Return the place of the largest value <= bound: 0 is 0, the smallest positive value 1, its negative -1."""
    x = torch.tensor(bound, dtype=torch.float64)
    nearest = round_to_format(x, fmt, saturate=True)
    code = int(_code(decompose(nearest.abs(), fmt), fmt))
    rank = -code if nearest < 0 else code
    return rank - int(nearest > x)


def _code(fields: FloatFields, fmt: FloatFormat) -> Int[Tensor, "*shape"]:
    """Return all bits of each number as one integer; without the sign it rises with the number."""
    return (((fields.sign << fmt.exponent_bits) | fields.exponent) << fmt.mantissa_bits) | fields.mantissa


def _top(fmt: FloatFormat) -> int:
    """Return the largest stored exponent."""
    return 2**fmt.exponent_bits - 1
