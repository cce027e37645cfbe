"""The casts of torch, NumPy and ml_dtypes, torch's GradScaler and autocast, and sums in real 16-bit numbers."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from internals_math import mixed_precision, tiny_lm, trace_store
from internals_math import mixed_precision_experiment as experiment
from internals_math.float_formats import bit_tiles, cast
from internals_math.mixed_precision import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    DynamicLossScaler,
    FloatFormat,
    accumulate,
    compose,
    decompose,
    low_precision_linear,
    representable_values,
    round_to_format,
    ulp,
)
from internals_math.next_token import next_token_loss
from tests.oracles import Oracle, largest_difference, randn

TORCH = {
    FP16: torch.float16,
    BF16: torch.bfloat16,
    FP8_E5M2: torch.float8_e5m2,
    FP8_E4M3: torch.float8_e4m3fn,
}
OTHERS: dict[FloatFormat, tuple[str, Any]] = {
    FP16: ("numpy.float16", np.float16),
    BF16: ("ml_dtypes.bfloat16", ml_dtypes.bfloat16),
    FP8_E5M2: ("ml_dtypes.float8_e5m2", ml_dtypes.float8_e5m2),
    FP8_E4M3: ("ml_dtypes.float8_e4m3fn", ml_dtypes.float8_e4m3fn),
}

STEPS = 20


def patterns(fmt: FloatFormat) -> Tensor:
    """Return every bit pattern of a format as the number that torch reads in it, float32."""
    kind = torch.int16 if fmt.bits == 16 else torch.uint8
    return torch.arange(2**fmt.bits).to(kind).view(TORCH[fmt]).float()


def probes(fmt: FloatFormat) -> Tensor:
    """Return all finite values, all midpoints between neighbors, the border of overflow, and what lies next to each.

    Rounding is monotone, so a cast that is right at both sides of every midpoint is right everywhere.
    """
    values = patterns(fmt)
    values = values[values.isfinite()].double().unique()
    border = torch.tensor([fmt.max * (1 + 2.0**-fmt.mantissa_bits / (2 - fmt.eps) / 2)], dtype=torch.float64)
    points = torch.cat([values, (values[1:] + values[:-1]) / 2, border, -border]).float()
    infinite = torch.tensor(torch.inf)
    zeros = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3e38, -3e38])
    return torch.cat([points, torch.nextafter(points, infinite), torch.nextafter(points, -infinite), zeros])


def random_bits(count: int = 200_000) -> Tensor:
    """Return float32 numbers of random bits, without NaN."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)
    return values[~values.isnan()]


def differing(ours: Tensor, theirs: Tensor) -> float:
    """Return how many numbers are not the same, the sign of zero included; all NaN are one."""
    same = ((ours == theirs) & (ours.signbit() == theirs.signbit())) | (ours.isnan() & theirs.isnan())
    return float((~same).sum()) if ours.shape == theirs.shape else float("nan")


def _torchs(fmt: FloatFormat, x: Tensor) -> float:
    if fmt is FP8_E4M3:  # beyond 448 torch saturates in some versions
        x = x[x.abs() <= fmt.max]
    return differing(round_to_format(x, fmt), x.to(TORCH[fmt]).float())


def _others(fmt: FloatFormat, x: Tensor) -> float:
    with np.errstate(over="ignore"):
        theirs = x.numpy().astype(OTHERS[fmt][1]).astype(np.float32)
    return differing(round_to_format(x, fmt), torch.from_numpy(theirs))


def _native(fmt: FloatFormat) -> float:
    x = torch.cat([probes(fmt), random_bits()])
    return differing(cast(x, fmt), round_to_format(x, fmt))


def _from_float64() -> float:
    """NumPy rounds float64 once; by way of float32 some of these would be rounded twice."""
    x = torch.cat([probes(FP16).double(), (1 + 2.0**-11 + 2.0**-40 * torch.arange(-3, 4, dtype=torch.float64))])
    with np.errstate(over="ignore"):
        theirs = torch.from_numpy(x.numpy().astype(np.float16).astype(np.float64))
    return differing(cast(x, FP16), theirs)


def _fields(fmt: FloatFormat) -> float:
    values = patterns(fmt)
    numbers = ~values.isnan()
    stored = (torch.arange(2**fmt.bits)[:, None] >> torch.arange(fmt.bits - 1, -1, -1)) & 1
    tiles = bit_tiles(values, fmt)
    back = compose(decompose(values, fmt), fmt)
    return float((tiles != stored)[numbers].sum()) + differing(back, values)


def _values(fmt: FloatFormat) -> float:
    values = patterns(fmt)
    return largest_difference(representable_values(fmt, -torch.inf, torch.inf), values[values.isfinite()].unique())


def _finfo(fmt: FloatFormat, dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    theirs = (info.max, info.tiny, info.smallest_normal, info.eps, info.bits)
    ours = (fmt.max, fmt.min_normal, fmt.min_normal, fmt.eps, fmt.bits)
    smallest = patterns(fmt)[1] if fmt in TORCH else torch.tensor(1, dtype=torch.int32).view(torch.float32)
    return max(abs(a - b) for a, b in zip((*ours, fmt.min_subnormal), (*theirs, float(smallest)), strict=True))


def _ulp() -> float:
    x = random_bits(20_000)
    x = x[x.abs() < FP32.max]  # the largest value has no finite neighbor
    return differing(ulp(x, FP32), torch.nextafter(x.abs(), torch.tensor(torch.inf)) - x.abs())


def _sum(fmt: FloatFormat) -> float:
    values = torch.cat([torch.full((100,), 30.1), randn(200, seed=1, dtype=torch.float32) * 100])
    total, sums = torch.zeros((), dtype=TORCH[fmt]), []
    for value in values.to(TORCH[fmt]):
        total = total + value
        sums.append(total)
    return differing(accumulate(values, fmt), torch.stack(sums).float())


def _scaler() -> float:
    """Every scale and counter of 60 steps, with overflows thrown in."""
    found = [step in (2, 9, 10, 31) for step in range(60)]
    ours = DynamicLossScaler(2.0**16, growth_interval=4)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    worst = 0.0
    for bad in found:
        theirs.scale(weight.sum()).backward()
        assert weight.grad is not None
        weight.grad.fill_(torch.inf if bad else 1.0)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        state = theirs.state_dict()
        worst = max(worst, abs(ours.update(bad) - state["scale"]), abs(ours.growth_tracker - state["_growth_tracker"]))
    return worst


def _linear() -> float:
    """The same products from numbers that are stored in 16 bits, forward and backward."""
    x, w, grad = (randn(*shape, seed=k, dtype=torch.float32) for k, shape in enumerate([(2, 5, 7), (4, 7), (2, 5, 4)]))
    x16, w16, g16 = (t.half().float() for t in (x, w, grad))
    theirs = (x16 @ w16.T, g16 @ w16, torch.einsum("bto,bti->oi", g16, x16))
    x.requires_grad_()
    w.requires_grad_()
    output = low_precision_linear(x, w, FP16)
    ours = (output, *torch.autograd.grad(output, (x, w), grad))
    return max(largest_difference(a.detach(), b.half().float()) for a, b in zip(ours, theirs, strict=True))


def _autocast() -> float:
    """Largest relative difference of two loss curves: ours and torch's own idea of bfloat16 on a CPU."""
    ours = trace_store.get(mixed_precision).curves["bf16_mixed"][:STEPS]
    config = mixed_precision.Config()
    model = tiny_lm.TinyLM(seed=config.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    theirs = []
    for step, (ids, labels) in enumerate(experiment.batches(config)[:STEPS]):
        optimizer.param_groups[0]["lr"] = experiment.learning_rate(config, step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids)
        loss = next_token_loss(logits.float(), labels)
        loss.backward()
        optimizer.step()
        theirs.append(float(loss.detach()))
    return float((ours / torch.tensor(theirs) - 1).abs().max())


ROWS = (
    *(
        Oracle(f"{fmt.name}: rounding at every midpoint", lambda f=fmt: _torchs(f, probes(f)), 0, f"torch: {dtype}")
        for fmt, dtype in TORCH.items()
    ),
    *(
        Oracle(f"{fmt.name}: rounding of random bits", lambda f=fmt: _torchs(f, random_bits()), 0, f"torch: {dtype}")
        for fmt, dtype in TORCH.items()
    ),
    *(
        Oracle(f"{fmt.name}: rounding at every midpoint, overflow included", lambda f=fmt: _others(f, probes(f)), 0, n)
        for fmt, (n, _) in OTHERS.items()
    ),
    *(
        Oracle(f"{fmt.name}: fields of every bit pattern", lambda f=fmt: _fields(f), 0, f"torch: {dtype}")
        for fmt, dtype in TORCH.items()
    ),
    *(
        Oracle(f"{fmt.name}: list of all finite values", lambda f=fmt: _values(f), 0, f"torch: {dtype}")
        for fmt, dtype in TORCH.items()
    ),
    *(
        Oracle(f"{fmt.name}: constants", lambda f=fmt, d=dtype: _finfo(f, d), 0, "torch.finfo")
        for fmt, dtype in {**TORCH, FP32: torch.float32}.items()
    ),
    *(
        Oracle(f"{fmt.name}: the machine's cast and ours", lambda f=fmt: _native(f), 0, f"torch: {TORCH[fmt]}")
        for fmt in (FP16, BF16)
    ),
    *(
        Oracle(f"{fmt.name}: running sums", lambda f=fmt: _sum(f), 0, f"torch: additions in {TORCH[fmt]}")
        for fmt in (FP16, BF16)
    ),
    Oracle("FP16: rounding of float64", _from_float64, 0, "numpy.float16"),
    Oracle("FP32: spacing", _ulp, 0, "torch.nextafter"),
    Oracle("dynamic loss scale, 60 steps", _scaler, 0, "torch.amp.GradScaler"),
    Oracle("16-bit product and its gradients", _linear, 0, "torch: half, products in float32"),
    Oracle(f"bf16_mixed, first {STEPS} losses (relative)", _autocast, 0.02, "torch.autocast, bfloat16"),
)
