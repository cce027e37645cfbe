"""The constants of the formats, where updates and sums stall, and memory per parameter."""

from dataclasses import dataclass

import torch

from internals_math.mixed_precision import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FloatFormat,
    accumulate,
    apply_updates,
    representable_values,
    round_to_format,
    training_bytes_per_param,
)
from internals_math.model_shapes import parameter_count, preset
from tests.published import Published


@dataclass(frozen=True)
class _Printed:
    """What a source prints of a format."""

    fmt: FloatFormat
    max: float
    min_normal: float
    min_subnormal: float
    source: str
    tolerance: float = 0.0


FP8 = "FP8 Formats for Deep Learning, arXiv 2209.05433, Table 1"
MIXED = "Mixed Precision Training, arXiv 1710.03740"
ZERO = "ZeRO, arXiv 1910.02054, section 3.1"
MIXED_BYTES = training_bytes_per_param("mixed")
OPTIMIZER = ("master", "momentum", "variance")
FORMATS = (
    _Printed(FP16, 65504, 2**-14, 2**-24, "IEEE 754-2019, binary16"),
    _Printed(BF16, 3.3895e38, 1.1755e-38, 9.18e-41, "arXiv 1905.12322", 1e-3),
    _Printed(FP8_E4M3, 448, 2**-6, 2**-9, FP8),
    _Printed(FP8_E5M2, 57344, 2**-14, 2**-16, FP8),
)


def _first_ratio(fmt: FloatFormat, sign: int) -> int:
    """Return the smallest whole ratio w / Δ at which w = 1 stays where it is."""
    ratios = torch.arange(2, 10_000, dtype=torch.float64)
    after = apply_updates(torch.ones_like(ratios), (sign / ratios)[None], fmt)
    return int(ratios[after == 1][0])


def _ones(fmt: FloatFormat, reached: int) -> float:
    """Return the sum of many ones, the first `reached` of them (a number that the format has) added at once."""
    return float(accumulate(torch.cat([torch.tensor([float(reached)]), torch.ones(100)]), fmt)[-1])


def _rounded(x: float) -> float:
    return float(round_to_format(torch.tensor(x), FP16))


ROWS = (
    *(
        Published(
            f"{p.fmt.name} {what}", lambda f=p.fmt, w=what: getattr(f, w), getattr(p, what), p.tolerance, p.source
        )
        for p in FORMATS
        for what in ("max", "min_normal", "min_subnormal")
    ),
    Published("FP16 eps", lambda: FP16.eps, 2**-10, 0, "IEEE 754-2019, binary16"),
    Published("BF16 eps", lambda: BF16.eps, 2**-7, 0, "arXiv 1905.12322"),
    Published(
        "powers of two in FP16, subnormals included",
        lambda: FP16.max_exponent - (1 - FP16.bias - FP16.mantissa_bits) + 1, 40, 0, f"{MIXED}, section 3.2",
    ),
    Published("of them normal", lambda: FP16.max_exponent - (1 - FP16.bias) + 1, 30, 0, "IEEE 754-2019, binary16"),
    Published("powers of two in BF16, normal", lambda: BF16.max_exponent + BF16.bias, 254, 0, "arXiv 1905.12322"),
    Published("values of FP16 in [1, 2)", lambda: len(representable_values(FP16, 1, 2)) - 1, 1024, 0, "10 bits"),
    Published("values of BF16 in [1, 2)", lambda: len(representable_values(BF16, 1, 2)) - 1, 128, 0, "7 bits"),
    Published("FP16: ratio from which w + Δ = w", lambda: _first_ratio(FP16, 1), 2048, 0, f"{MIXED}, section 3.1"),
    Published("FP16: ratio from which also w - Δ = w", lambda: _first_ratio(FP16, -1), 4096, 0, "spacing below 2^k"),
    Published("BF16: ratio from which w + Δ = w", lambda: _first_ratio(BF16, 1), 256, 0, "8 significant bits"),
    Published("BF16: ratio from which also w - Δ = w", lambda: _first_ratio(BF16, -1), 512, 0, "spacing below 2^k"),
    Published("FP16: where a sum of ones stalls", lambda: _ones(FP16, 2000), 2048, 0, "2^(m + 1)"),
    Published("BF16: where a sum of ones stalls", lambda: _ones(BF16, 200), 256, 0, "2^(m + 1)"),
    Published("FP16 of 65519", lambda: _rounded(65519.0), 65504, 0, "IEEE 754-2019, section 4.3.1"),
    Published("1 / FP16 of 65520", lambda: 1 / _rounded(65520.0), 0, 0, "IEEE 754-2019, section 4.3.1"),
    Published("FP16 of Adam's epsilon 1e-8", lambda: _rounded(1e-8), 0, 0, "half of 2^-24 is more"),
    Published("bytes a parameter, Adam, mixed", lambda: sum(MIXED_BYTES.values()), 16, 0, ZERO),
    Published(
        "of them for the optimizer", lambda: sum(MIXED_BYTES[k] for k in OPTIMIZER), 12, 0, ZERO
    ),
    Published(
        "bytes a parameter, Adam, FP32", lambda: sum(training_bytes_per_param("fp32").values()), 16, 0, "4 + 4 + 8 B"
    ),
    Published("GPT-2 1.5B, training states, GB", lambda: 1.5 * sum(MIXED_BYTES.values()), 24, 0, ZERO),
    Published("its FP16 weights, GB", lambda: 1.5 * MIXED_BYTES["weights"], 3, 0, ZERO),
    Published("its parameters, billions", lambda: parameter_count(preset("GPT-2-XL")) / 1e9, 1.5, 0.05, ZERO),
)  # fmt: skip
