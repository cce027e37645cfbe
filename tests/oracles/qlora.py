"""NF4 tensors of torchao and their linear layer, PEFT's adapters, quantiles and densities of SciPy, E2M1 bit by bit."""

from functools import cache

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn

from internals_math.qlora import (
    QuantizedWeight,
    code_book,
    code_entropy,
    dequantize_absmax,
    dequantize_blockwise,
    double_quantize,
    double_quantized,
    normal_float_levels,
    pack_int4,
    paged_optimizer_schedule,
    qlora_input_gradient,
    qlora_linear,
    quantization_error,
    quantize_blockwise,
    unpack_int4,
)
from tests.oracles import Oracle, largest_difference, randn

R, SCALING, BLOCK = 3, 2.5, 64
TABLE_ROUNDING = 1e-4  # torchao's levels have four decimals


def _weight() -> Tensor:
    return 0.05 * randn(128, 256, seed=3, dtype=torch.float32)


@cache
def _ours() -> QuantizedWeight:
    return quantize_blockwise(_weight(), code_book("nf4"))


@cache
def _theirs():
    from torchao.quantization import to_nf4  # slow to import, and talkative

    return to_nf4(_weight(), block_size=64, scaler_block_size=256)


def _unclear() -> Tensor:
    """Return where a value lies so close to a boundary that the rounded table may move it."""
    normalized = _weight().view(-1, 64) / _ours().absmax[:, None]
    levels = normal_float_levels().float()
    distance = (normalized.flatten()[:, None] - (levels[1:] + levels[:-1]) / 2).abs().amin(dim=1)
    return distance < TABLE_ROUNDING


def _packed_codes() -> float:
    """Largest difference of two packed bytes, bytes with a value at a boundary left out (fewer than 1 %)."""
    clear = ~_unclear().view(-1, 2).any(dim=1)
    assert clear.float().mean() > 0.99
    return largest_difference(pack_int4(_ours().codes)[clear], _theirs().quantized_data[clear])


def _values() -> float:
    """Largest difference of decoded values as a share of their absmax, values at a boundary left out."""
    ours = dequantize_blockwise(double_quantized(_ours())).flatten()
    scales = _ours().absmax.repeat_interleave(64)
    difference = (ours - _theirs().get_original_weight().flatten()).abs() / scales
    return float(difference[~_unclear()].max())


def _scaler_mean() -> float:
    return abs(float(double_quantize(_ours().absmax).mean - _theirs().scaler_mean))


def _scales() -> float:
    theirs = _theirs()
    restored = theirs.dequantize_scalers(theirs.quantized_scalers, theirs.quantization_factor, theirs.scaler_block_size)
    return largest_difference(dequantize_absmax(double_quantize(_ours().absmax)), restored)


def _layer(backward: bool) -> float:
    """Our layer with B = 0 on torchao's codes and scales, against its linear layer: outputs, or gradients of x."""
    theirs, code = _theirs(), _theirs().nf4
    restored = theirs.dequantize_scalers(theirs.quantized_scalers, theirs.quantization_factor, theirs.scaler_block_size)
    same = QuantizedWeight(unpack_int4(theirs.quantized_data), restored, code, 64, (128, 256))
    x, grad = randn(5, 256, seed=4, dtype=torch.float32).requires_grad_(), randn(5, 128, seed=5, dtype=torch.float32)
    lora_a, lora_b = randn(R, 256, seed=6, dtype=torch.float32), torch.zeros(128, R)
    output = nn.functional.linear(x, theirs)  # of the NF4 tensor's own
    if not backward:
        return largest_difference(qlora_linear(x.detach(), same, lora_a, lora_b, SCALING), output.detach())
    ours = qlora_input_gradient(grad, dequantize_blockwise(same), lora_a, lora_b, SCALING)
    return largest_difference(ours, torch.autograd.grad(output, x, grad)[0])


def _quantiles() -> float:
    offset = 0.9677083333333333
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:8])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:7])
    levels = np.sort(np.concatenate([above, below, [0.0]])) / stats.norm.ppf(offset)
    return largest_difference(code_book("nf4"), torch.from_numpy(levels))


def _e2m1() -> float:
    """Decode all sixteen patterns: a sign, two bits of exponent (bias 1; 0 is subnormal), one of mantissa."""
    values = set()
    for pattern in range(16):
        sign, exponent, mantissa = -1 if pattern & 8 else 1, pattern >> 1 & 3, pattern & 1
        values.add(sign * (mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)) + 0.0)
    return largest_difference(code_book("fp4"), torch.tensor(sorted(values), dtype=torch.float64) / 6)


def _search(name: str) -> float:
    """Try every level for every value, in plain Python."""
    weight, levels = randn(7, 22, seed=7), code_book(name).tolist()
    flat, codes = weight.flatten().tolist(), []
    for start in range(0, len(flat), 20):
        block = flat[start : start + 20]
        largest = max(abs(w) for w in block)
        codes += [min(range(len(levels)), key=lambda k: abs(w / largest - levels[k])) for w in block]
    return largest_difference(quantize_blockwise(weight, code_book(name), 20).codes, torch.tensor(codes))


class _One(nn.Module):
    """A model of one linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.proj = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        self.proj.weight.data, self.proj.bias.data = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _peft(backward: bool) -> float:
    """PEFT's adapters on a linear layer that holds our decoded weight."""
    quantized = double_quantized(quantize_blockwise(randn(16, 24, seed=8), code_book("nf4"), 32), 4)
    lora_a, lora_b, bias = randn(R, 24, seed=9), randn(16, R, seed=10), randn(16, seed=11)
    config = LoraConfig(r=R, lora_alpha=R * 2, target_modules=["proj"])
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(_One(dequantize_blockwise(quantized), bias), config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
    layer = model.base_model.model.proj
    with torch.no_grad():
        layer.lora_A["default"].weight = nn.Parameter(lora_a)
        layer.lora_B["default"].weight = nn.Parameter(lora_b)
    x, grad = randn(2, 5, 24, seed=12).requires_grad_(), randn(2, 5, 16, seed=13)
    output = model(x)
    if not backward:
        return largest_difference(qlora_linear(x.detach(), quantized, lora_a, lora_b, 2.0, bias), output.detach())
    ours = qlora_input_gradient(grad, dequantize_blockwise(quantized), lora_a, lora_b, 2.0)
    return largest_difference(ours, torch.autograd.grad(output, x, grad)[0])


def _gradients() -> float:
    """A and B learn as in LoRA on the decoded weight: autograd through our layer against the chain rule by hand."""
    quantized = quantize_blockwise(randn(16, 24, seed=8), code_book("nf4"), 32)
    lora_a, lora_b = randn(R, 24, seed=9).requires_grad_(), randn(16, R, seed=10).requires_grad_()
    x, grad = randn(5, 24, seed=12), randn(5, 16, seed=13)
    output = qlora_linear(x, quantized, lora_a, lora_b, SCALING)
    grad_a, grad_b = torch.autograd.grad(output, (lora_a, lora_b), grad)
    by_hand_a = SCALING * lora_b.detach().T @ grad.T @ x
    by_hand_b = SCALING * grad.T @ (x @ lora_a.detach().T)
    return max(largest_difference(grad_a, by_hand_a), largest_difference(grad_b, by_hand_b))


@cache
def _gaussian_theory(name: str) -> tuple[float, float]:
    """Return mean squared error and code entropy for N(0, 1) in blocks of 64, by integrals instead of samples.

    The largest of 64 |values| is c with density 64 · 2φ(c) · P(|v| < c)^63; the others are normal, cut at ±c.
    """
    levels = code_book(name).numpy()
    edges = np.concatenate([[-1.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    c = np.linspace(1.0, 6.5, 3000)[:, None]  # (C, 1)
    inside = 2 * stats.norm.cdf(c) - 1
    density = (BLOCK * 2 * stats.norm.pdf(c) * inside ** (BLOCK - 1))[:, 0]
    low, high, level = c * edges[:-1], c * edges[1:], c * levels  # (C, levels)
    mass = stats.norm.cdf(high) - stats.norm.cdf(low)
    first = stats.norm.pdf(low) - stats.norm.pdf(high)  # of v φ(v) over the bin, then of v² φ(v)
    second = mass + low * stats.norm.pdf(low) - high * stats.norm.pdf(high)
    error = (second - 2 * level * first + level**2 * mass).sum(axis=1) / inside[:, 0]
    others = (BLOCK - 1) / BLOCK  # the largest value itself has no error
    usage = others * np.trapezoid(density[:, None] * mass / inside, c[:, 0], axis=0)
    usage[[0, -1]] += 1 / (2 * BLOCK)
    return float(others * np.trapezoid(density * error, c[:, 0])), float(stats.entropy(usage, base=2))


def _gaussian(name: str, what: int) -> float:
    x = randn(2**19, seed=14)
    quantized = quantize_blockwise(x, code_book(name), BLOCK)
    error = quantization_error(x, dequantize_blockwise(quantized))["mse"]
    measured = error, code_entropy(quantized.codes, len(quantized.code))
    return abs(measured[what] / _gaussian_theory(name)[what] - 1)


def _pages() -> float:
    """Evict and fetch single pages of a list."""
    activations, fixed, optimizer, page, gpu = [3, 20, 45, 44, 1, 30, 0], 50, 33, 4, 97
    on_gpu, counts, traffic = None, [], []
    for activation in activations:
        room = gpu - fixed - activation
        pages = list(range(0, optimizer, page)) if on_gpu is None else on_gpu[:]
        before = len(pages)
        while pages and len(pages) * page > room:
            pages.pop()
        if on_gpu is None:
            before = len(pages)
        while len(pages) * page < optimizer and (len(pages) + 1) * page <= room:
            pages.append(len(pages) * page)
        on_gpu = pages
        counts.append(len(pages))
        traffic.append(page * (len(pages) - before))
    resident, moved = paged_optimizer_schedule(torch.tensor(activations), fixed, optimizer, page, gpu)
    return max(
        largest_difference(resident, torch.tensor(counts)), largest_difference(moved, torch.tensor(traffic).double())
    )


TORCHAO, PEFT = "torchao: NF4Tensor", "peft: lora.Linear"
ROWS = (
    Oracle("packed NF4 codes (bytes), off the boundaries", _packed_codes, 0, TORCHAO),
    Oracle("decoded values / absmax, double quantized", _values, 2e-4, TORCHAO),
    Oracle("mean of the scales", _scaler_mean, 1e-9, TORCHAO),
    Oracle("scales after 8 bits", _scales, 1e-7, TORCHAO),
    Oracle("output of the quantized layer", lambda: _layer(False), 1e-6, "torchao: NF4Tensor in linear"),
    Oracle("its gradient to the input", lambda: _layer(True), 1e-6, "torchao: NF4Tensor in linear"),
    Oracle("levels of NF4", _quantiles, 1e-12, "scipy.stats.norm.ppf"),
    Oracle("levels of FP4", _e2m1, 1e-15, "E2M1 by its bits"),
    *(Oracle(f"nearest level, {name}", lambda n=name: _search(n), 0, "search over all levels") for name in
      ("nf4", "int4", "fp4")),
    Oracle("output with adapters", lambda: _peft(False), 1e-10, PEFT),
    Oracle("gradient to the input with adapters", lambda: _peft(True), 1e-10, PEFT),
    Oracle("gradients of A and B", _gradients, 1e-10, "torch.autograd"),
    *(
        Oracle(f"{what} of {name} on N(0, 1) (relative)", lambda n=name, w=which: _gaussian(n, w), 5e-3,
               "integrals over the normal density")
        for which, what in enumerate(("error", "entropy")) for name in ("nf4", "int4", "fp4")
    ),
    Oracle("pages of the optimizer", _pages, 0, "page by page"),
)  # fmt: skip
