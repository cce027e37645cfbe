"""torch's own initializers and defaults, GPT-2 of transformers, quadrature of scipy, backpropagation by hand."""

import math

import numpy as np
import torch
from scipy import integrate, special, stats
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from internals_math.weight_initialization import (
    activation_moments,
    calculate_fan_in_and_fan_out,
    init_weight,
    propagate,
    pytorch_gain,
    variance_map,
    weight_std,
)
from tests.oracles import Oracle, largest_difference

SHAPE = (48, 20)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gains() -> float:
    names = ("linear", "sigmoid", "tanh", "relu", "selu", "leaky_relu")
    plain = [abs(pytorch_gain(name) - nn.init.calculate_gain(name)) for name in names]  # type: ignore[arg-type]
    return max(*plain, abs(pytorch_gain("leaky_relu", 0.3) - nn.init.calculate_gain("leaky_relu", 0.3)))


def _fans() -> float:
    shapes = ((3, 5), (64, 32, 3, 3), (7, 2, 5), (4, 6, 1, 2, 3))
    theirs = [nn.init._calculate_fan_in_and_fan_out(torch.empty(shape)) for shape in shapes]
    ours = [calculate_fan_in_and_fan_out(shape) for shape in shapes]
    return largest_difference(torch.tensor(ours), torch.tensor(theirs))


def _drawn(scheme: str, distribution, initialize, nonlinearity: str = "relu") -> float:
    """The same random numbers, so that the weights must be equal."""
    ours = init_weight(SHAPE, scheme, _generator(1), distribution, nonlinearity=nonlinearity)
    theirs = torch.empty(SHAPE)
    initialize(theirs, generator=_generator(1))
    return largest_difference(ours, theirs)


def _kaiming(mode: str, nonlinearity: str = "relu", uniform: bool = False) -> float:
    how = nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_

    def initialize(weight: Tensor, generator: torch.Generator) -> None:
        how(weight, a=0.01, mode=mode, nonlinearity=nonlinearity, generator=generator)  # type: ignore[arg-type]

    return _drawn(f"kaiming_{mode}", "uniform" if uniform else "normal", initialize, nonlinearity)


def _fresh_linear() -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.Linear(500, 2000).weight.detach()
    std = weight_std("torch_linear", 500, 2000)
    return max(abs(float(theirs.std()) / std - 1), abs(float(theirs.abs().max()) / (math.sqrt(3) * std) - 1))


def _fresh_embedding() -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.Embedding(5000, 200).weight.detach()
    return abs(float(theirs.std()) / weight_std("constant_std", 200, 5000, base_std=1.0) - 1)


def _gpt2() -> float:
    layers = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=256, n_head=4, vocab_size=1000))
    state, worst = model.state_dict(), 0.0
    for part, scheme in (
        ("attn.c_attn", "gpt2"),
        ("mlp.c_fc", "gpt2"),
        ("attn.c_proj", "gpt2_residual"),
        ("mlp.c_proj", "gpt2_residual"),
    ):
        weights = [state[f"transformer.h.{layer}.{part}.weight"] for layer in range(layers)]
        fan_in, fan_out = weights[0].shape  # Conv1D keeps (in, out)
        std = weight_std(scheme, fan_in, fan_out, num_residual_branches=2 * layers)
        worst = max(worst, abs(float(torch.cat(weights).std()) / std - 1))
    return worst


def _normal_cdf_part(z: float) -> float:
    return float(special.ndtr(z))


ACTIVATIONS = {  # value and slope, written down again
    "linear": (lambda z: z, lambda z: 1.0),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "leaky_relu": (lambda z: max(z, 0.01 * z), lambda z: 1.0 if z > 0 else 0.01),
    "tanh": (math.tanh, lambda z: 1 - math.tanh(z) ** 2),
    "sigmoid": (special.expit, lambda z: special.expit(z) * (1 - special.expit(z))),
    "silu": (lambda z: z * special.expit(z), lambda z: special.expit(z) * (1 + z * (1 - special.expit(z)))),
    "gelu": (lambda z: z * _normal_cdf_part(z), lambda z: _normal_cdf_part(z) + z * float(stats.norm.pdf(z))),
}


def _moments(q: float) -> float:
    worst, root = 0.0, math.sqrt(q)

    def mean(f) -> float:
        def weighted(g: float) -> float:
            return f(root * g) * math.exp(-g * g / 2) / math.sqrt(2 * math.pi)

        return sum(integrate.quad(weighted, *side, epsabs=1e-12)[0] for side in ((-10, 0), (0, 10)))

    for name, (value, slope) in ACTIVATIONS.items():
        theirs = (
            mean(value),
            mean(lambda z, value=value: value(z) ** 2),
            mean(lambda z, slope=slope: slope(z) ** 2),
        )
        ours = activation_moments(name, q)
        worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        worst = max(worst, abs(variance_map(q, 1.7, name) - 1.7 * theirs[1]))
    return worst


def _by_hand(nonlinearity: str, *, residual: bool, prenorm: bool = False) -> float:
    """Forward and backward of three layers in NumPy, with the random numbers drawn in the same order."""
    depth, width, batch, std, scale = 3, 6, 5, 0.4, 0.7
    generator = _generator(4)
    ours = propagate(
        depth, width, batch, std, nonlinearity, _generator(4), residual=residual, branch_scale=scale, prenorm=prenorm
    )

    def draw(*shape: int) -> np.ndarray:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()

    value, slope = (np.vectorize(f, otypes=[float]) for f in ACTIVATIONS[nonlinearity])
    x, steps = draw(batch, width), []
    states, entering = [x], []
    for _ in range(depth):
        size = np.sqrt((x**2).mean(axis=1, keepdims=True)) if prenorm else np.ones((batch, 1))
        weight = std * draw(width, width)
        z = (x / size) @ weight.T
        out = scale * draw(width, width) / math.sqrt(width) if residual else np.eye(width)
        steps.append((x, size, weight, z, out))
        x = (x if residual else 0) + value(z) @ out.T
        states.append(x)
        entering.append(z)
    gradient = draw(batch, width)
    gradients = [gradient]
    for x, size, weight, z, out in reversed(steps):
        seen = ((gradient @ out) * slope(z)) @ weight  # at the branch's input
        if prenorm:  # only what does not change the size passes the norm
            seen = (seen - x / size**2 * (seen * x).mean(axis=1, keepdims=True)) / size
        gradient = seen + (gradient if residual else 0)
        gradients.insert(0, gradient)
    worst = [
        largest_difference(found, torch.tensor([(part**2).mean() for part in theirs]))
        for found, theirs in (
            (ours.second_moment, states), (ours.preact_variance, entering), (ours.grad_second_moment, gradients),
        )
    ]  # fmt: skip
    for found, part in zip(ours.histograms, (states[0], *entering), strict=True):
        theirs = np.histogram(part, bins=ours.bin_edges.numpy())[0] / part.size
        worst.append(largest_difference(found, torch.from_numpy(theirs)))
    return max(worst)


ROWS = (
    Oracle("recommended gains", _gains, 1e-15, "torch: nn.init.calculate_gain"),
    Oracle("fans of linear and convolution weights", _fans, 0, "torch: nn.init"),
    Oracle("Xavier, normal", lambda: _drawn("xavier", "normal", nn.init.xavier_normal_), 1e-6, "torch: nn.init"),
    Oracle("Xavier, uniform", lambda: _drawn("xavier", "uniform", nn.init.xavier_uniform_), 1e-6, "torch: nn.init"),
    Oracle("He by fan in", lambda: _kaiming("fan_in"), 1e-6, "torch: nn.init.kaiming_normal_"),
    Oracle("He by fan out", lambda: _kaiming("fan_out"), 1e-6, "torch: nn.init.kaiming_normal_"),
    Oracle("He for leaky ReLU", lambda: _kaiming("fan_in", "leaky_relu"), 1e-6, "torch: nn.init.kaiming_normal_"),
    Oracle("He, uniform", lambda: _kaiming("fan_in", uniform=True), 1e-6, "torch: nn.init.kaiming_uniform_"),
    Oracle("orthogonal", lambda: _drawn("lecun", "orthogonal", nn.init.orthogonal_), 1e-5, "torch: nn.init"),
    Oracle("spread and bound of a fresh nn.Linear (relative)", _fresh_linear, 0.002, "torch: nn.Linear"),
    Oracle("spread of a fresh nn.Embedding (relative)", _fresh_embedding, 0.002, "torch: nn.Embedding"),
    Oracle("spread of fresh GPT-2 weights (relative)", _gpt2, 0.005, "transformers: GPT2LMHeadModel"),
    Oracle("moments of activations at variance 1", lambda: _moments(1.0), 1e-9, "scipy: integrate.quad"),
    Oracle("moments of activations at variance 5", lambda: _moments(5.0), 1e-9, "scipy: integrate.quad"),
    Oracle("signal and gradient, ReLU", lambda: _by_hand("relu", residual=False), 1e-12, "backpropagation in NumPy"),
    Oracle("signal and gradient, tanh", lambda: _by_hand("tanh", residual=False), 1e-12, "backpropagation in NumPy"),
    Oracle("residual branches", lambda: _by_hand("silu", residual=True), 1e-12, "backpropagation in NumPy"),
    Oracle(
        "normed residual branches", lambda: _by_hand("gelu", residual=True, prenorm=True), 1e-12,
        "backpropagation in NumPy",
    ),
)  # fmt: skip
