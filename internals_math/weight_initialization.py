"""Weight initialization: how large random weights must be for signal and gradient to survive the depth.

Notation: y = W x with W (fan_out, fan_in), entries independent with mean 0 and standard deviation σ_w; φ = activation;
q = variance of what enters it; L = depth, N = residual branches, V = vocab_size. "Second moment" is the mean square:
after a ReLU the mean is not 0, so it is not the variance.
Sources: Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852, section 2.2; Saxe et al. 2013, arXiv 1312.6120
(orthogonal weights); Radford et al. 2019 (GPT-2), section 2.3; torch.nn.init.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "Propagation", "Trace", "activation_moments", "calculate_fan_in_and_fan_out", "init_weight",
    "initial_loss_estimate", "predict_backward", "predict_forward", "propagate", "pytorch_gain", "random_walk_terms",
    "residual_growth", "symmetry_run", "trace", "variance_fixed_point", "variance_map", "variance_preserving_gain",
    "weight_std",
]  # fmt: skip

SLOPE = 0.01  # of leaky_relu, as in torch
SCHEMES = (
    "xavier", "kaiming_fan_in", "kaiming_fan_out", "lecun", "gpt2", "gpt2_residual", "torch_linear", "constant_std",
)  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: nn.functional.leaky_relu(z, SLOPE),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,  # the exact one, by erf
}
HOMOGENEOUS = ("linear", "relu", "leaky_relu")  # φ(cz) = c φ(z) for c > 0
BINS, REACH = 41, 6.0  # of the histograms: from -REACH to REACH


# -- how large a weight may be -----------------------------------------------------------------------------------------


def calculate_fan_in_and_fan_out(shape: Sequence[int]) -> tuple[int, int]:
    """Return how many inputs an output sums, and how many outputs an input reaches; weights are (out, in, kernel…).

    Raises:
        ValueError: fewer than 2 dimensions.

    >>> calculate_fan_in_and_fan_out((64, 32, 3, 3))
    (288, 576)
    """
    if len(shape) < 2:
        raise ValueError(f"fan_in and fan_out need a weight of at least 2 dimensions, got shape {tuple(shape)}")
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def activation_moments(nonlinearity: str, q: float = 1.0) -> tuple[float, float, float]:
    """Return E[φ(z)], E[φ(z)²] and E[φ'(z)²] for z ~ N(0, q), by quadrature in float64.

    Raises:
        ValueError: unknown nonlinearity, or a negative q.
    """
    if nonlinearity not in ACTIVATIONS:
        raise ValueError(f"nonlinearity must be one of {', '.join(ACTIVATIONS)}, got {nonlinearity!r}")
    if q < 0:
        raise ValueError(f"a variance must be at least 0, got {q}")
    points, shares = _gauss()
    z = (math.sqrt(q) * points).requires_grad_()
    value = ACTIVATIONS[nonlinearity](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    mean, second, slope_second = (float(shares @ part.detach()) for part in (value, value.square(), slope.square()))
    return mean, second, slope_second


def variance_preserving_gain(nonlinearity: str) -> float:
    """Return 1 / √E[φ(g)²]: with σ_w = gain / √fan_in an input of second moment 1 leaves the layer with 1 again.

    It holds at every scale only for linear, relu and leaky_relu.

    Raises:
        ValueError: unknown nonlinearity.
    """
    return 1 / math.sqrt(activation_moments(nonlinearity)[1])


def pytorch_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the gain that torch.nn.init recommends; 5/3 for tanh is a convention, not 1 / √E[tanh²] = 1.5925.

    Args:
        param: the negative slope of leaky_relu, 0.01 by default.

    Raises:
        ValueError: a nonlinearity without a recommendation, such as silu and gelu.
    """
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (SLOPE if param is None else param) ** 2))
    if nonlinearity not in gains:
        raise ValueError(
            f"torch recommends a gain for {', '.join([*gains, 'leaky_relu'])}, not for {nonlinearity!r}; "
            "variance_preserving_gain computes one"
        )
    return gains[nonlinearity]


def weight_std(
    scheme: str,
    fan_in: int,
    fan_out: int,
    nonlinearity: str = "relu",
    num_residual_branches: int | None = None,
    base_std: float = 0.02,
) -> float:
    """Return the standard deviation σ_w that a scheme gives to a weight.

    Args:
        scheme: "kaiming_fan_in" and "kaiming_fan_out" gain / √fan (He, eqs. 10 and 14); "xavier" √(2 / (fan_in +
            fan_out)); "lecun" 1 / √fan_in; "torch_linear" 1 / √(3 fan_in), the default of nn.Linear; "constant_std" and
            "gpt2" base_std; "gpt2_residual" base_std / √N, for what writes to the residual stream.
        nonlinearity: of the kaiming schemes: the gain is the variance-preserving one.
        num_residual_branches: N of gpt2_residual, twice the number of layers.

    Raises:
        ValueError: unknown scheme or nonlinearity, a fan below 1, gpt2_residual without its number of branches, or a
            base_std that is not > 0.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if min(fan_in, fan_out) < 1:
        raise ValueError(f"fan_in and fan_out must be at least 1, got {fan_in} and {fan_out}")
    if not base_std > 0:
        raise ValueError(f"base_std must be > 0, got {base_std}")
    if scheme == "xavier":
        return math.sqrt(2 / (fan_in + fan_out))
    if scheme.startswith("kaiming"):
        return variance_preserving_gain(nonlinearity) / math.sqrt(fan_in if scheme == "kaiming_fan_in" else fan_out)
    if scheme == "lecun":
        return 1 / math.sqrt(fan_in)
    if scheme == "torch_linear":
        return 1 / math.sqrt(3 * fan_in)
    if scheme == "gpt2_residual":
        if num_residual_branches is None or num_residual_branches < 1:
            raise ValueError(f"gpt2_residual needs num_residual_branches of at least 1, got {num_residual_branches}")
        return base_std / math.sqrt(num_residual_branches)
    return base_std


def init_weight(
    shape: Sequence[int],
    scheme: str,
    generator: torch.Generator,
    distribution: Literal["normal", "uniform", "orthogonal"] = "normal",
    *,
    nonlinearity: str = "relu",
    num_residual_branches: int | None = None,
    base_std: float = 0.02,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw a weight (out, in, kernel…) with the standard deviation of a scheme.

    Args:
        distribution: "uniform" within ±√3 σ_w; "orthogonal" with all singular values σ_w √fan_in.

    Raises:
        ValueError: unknown distribution, and all of `weight_std` and `calculate_fan_in_and_fan_out`.
    """
    fan_in, fan_out = calculate_fan_in_and_fan_out(shape)
    std = weight_std(scheme, fan_in, fan_out, nonlinearity, num_residual_branches, base_std)
    if distribution == "normal":
        return std * torch.randn(*shape, generator=generator, dtype=dtype)
    if distribution == "uniform":
        return math.sqrt(3) * std * (2 * torch.rand(*shape, generator=generator, dtype=dtype) - 1)
    if distribution != "orthogonal":
        raise ValueError(f"distribution must be normal, uniform or orthogonal, got {distribution!r}")
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=dtype))
    q = q * r.diagonal().sign()  # so that every orthogonal matrix is equally likely
    return std * math.sqrt(fan_in) * (q if rows >= columns else q.T).reshape(*shape)


# -- what it does, predicted -------------------------------------------------------------------------------------------


def variance_map(q: float, weight_variance_times_fan: float, nonlinearity: str) -> float:
    """Return the variance before the next activation: fan_in σ_w² E[φ(√q g)²].

    Raises:
        ValueError: unknown nonlinearity, or a negative variance.
    """
    if weight_variance_times_fan < 0:
        raise ValueError(f"a variance must be at least 0, got {weight_variance_times_fan}")
    return weight_variance_times_fan * activation_moments(nonlinearity, q)[1]


def variance_fixed_point(weight_variance_times_fan: float, nonlinearity: str) -> float:
    """Return the positive variance that a layer leaves as it is.

    Tanh and sigmoid are drawn towards theirs from both sides; SiLU and GELU are driven away from theirs, to 0 or to
    infinity, because they shrink small inputs more than large ones.

    Raises:
        ValueError: unknown nonlinearity, one that treats all scales alike, or weights for which there is none between
            10⁻⁶ and 10⁶.
    """
    if nonlinearity in HOMOGENEOUS:
        raise ValueError(f"{nonlinearity} multiplies every variance by the same factor, so no single one is fixed")

    def grows(log_q: float) -> bool:
        return variance_map(math.exp(log_q), weight_variance_times_fan, nonlinearity) > math.exp(log_q)

    low, high = math.log(1e-6), math.log(1e6)
    at_low = grows(low)
    if at_low == grows(high):
        raise ValueError(f"{nonlinearity} has no fixed variance at fan_in σ_w² = {weight_variance_times_fan}")
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if grows(middle) == at_low else (low, middle)
    return math.exp(low)


def predict_forward(depth: int, beta2: float) -> Float[Tensor, " depth_more"]:
    """Return the second moment of the signal after 0..depth layers, as a multiple of the input's: β^{2l} (float64).

    Raises:
        ValueError: depth below 1, or a negative factor.
    """
    if depth < 1 or beta2 < 0:
        raise ValueError(f"depth must be at least 1 and the factor at least 0, got {depth} and {beta2}")
    return torch.tensor(beta2, dtype=torch.float64) ** torch.arange(depth + 1)


def predict_backward(depth: int, chi: float) -> Float[Tensor, " depth_more"]:
    """Return the second moment of the gradient after 0..depth layers, as a multiple of the top's: χ^{L - l} (float64).

    χ = fan_out σ_w² E[φ'²] is the factor of one layer on the way back.

    Raises:
        ValueError: depth below 1, or a negative factor.
    """
    return predict_forward(depth, chi).flip(0)


def residual_growth(
    num_branches: int,
    branch_scale: float,
    mode: Literal["unnormalized", "prenorm"] = "unnormalized",
    branch_variance: float = 1.0,
) -> Float[Tensor, " N_more"]:
    """Return the second moment of a residual stream after 0..N branches, if it starts at 1 (float64).

    Args:
        branch_scale: c in x + c f(x).
        mode: "unnormalized": E‖f(x)‖² is branch_variance times E‖x‖², hence (1 + c² v)^k; "prenorm": f sees x at unit
            size, so every branch adds the same, hence 1 + k c² v.

    Raises:
        ValueError: num_branches below 1, unknown mode, or a negative branch_variance.
    """
    if num_branches < 1 or branch_variance < 0:
        raise ValueError(
            f"num_branches must be at least 1 and branch_variance at least 0, got {num_branches} and {branch_variance}"
        )
    if mode not in ("unnormalized", "prenorm"):
        raise ValueError(f"mode must be unnormalized or prenorm, got {mode!r}")
    branches = torch.arange(num_branches + 1, dtype=torch.float64)
    added = branch_scale**2 * branch_variance
    return (1 + added) ** branches if mode == "unnormalized" else 1 + branches * added


def initial_loss_estimate(vocab_size: int, logit_variance: float) -> float:
    """Return ln V + s²/2: the loss before training if logits are Gaussian with variance s² and blind to the target.

    It is good for s up to about 1.

    Raises:
        ValueError: vocab_size below 1, or a negative variance.
    """
    if vocab_size < 1 or logit_variance < 0:
        raise ValueError(
            f"vocab_size must be at least 1 and logit_variance at least 0, got {vocab_size} and {logit_variance}"
        )
    return math.log(vocab_size) + logit_variance / 2


# -- what it does, measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Propagation:
    """One draw of a network's weights, run forward and backward (float64); x_0 is the input."""

    second_moment: Float[Tensor, " depth_more"]  # of x_0 … x_L
    preact_variance: Float[Tensor, " depth"]  # second moment of what enters each activation
    grad_second_moment: Float[Tensor, " depth_more"]  # of the gradient at x_0 … x_L; 1 at the top but for sampling
    histograms: Float[Tensor, "depth_more bins"]  # shares of x_0 and of what enters each activation
    bin_edges: Float[Tensor, " bins_more"]  # what lies beyond them is in no bin


def propagate(
    depth: int,
    width: int,
    batch: int,
    scheme: str | float,
    nonlinearity: str,
    generator: torch.Generator,
    *,
    residual: bool = False,
    branch_scale: float = 1.0,
    prenorm: bool = False,
) -> Propagation:
    """Send Gaussian inputs through random layers x ← φ(W x), and a random unit gradient back by autograd.

    Args:
        scheme: of `weight_std`, or σ_w itself.
        residual: x ← x + branch_scale · W' φ(W x) in place of that, with W' ~ N(0, 1 / width).
        prenorm: the branch sees x at unit size, each row divided by its root mean square.

    Raises:
        ValueError: a size below 1, unknown scheme or nonlinearity, σ_w not > 0, or prenorm without residual.
    """
    activation_moments(nonlinearity)  # checks it
    if min(depth, width, batch) < 1:
        raise ValueError(f"depth, width and batch must be at least 1, got {depth}, {width} and {batch}")
    if prenorm and not residual:
        raise ValueError("prenorm is of residual branches; set residual as well")
    std = weight_std(scheme, width, width, nonlinearity) if isinstance(scheme, str) else float(scheme)
    if not std > 0:
        raise ValueError(f"the standard deviation of the weights must be > 0, got {std}")

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = gaussian(batch, width).requires_grad_()
    states, entering = [x], []
    for _ in range(depth):
        seen = x / x.square().mean(dim=-1, keepdim=True).sqrt() if prenorm else x
        z = seen @ (std * gaussian(width, width)).T
        entering.append(z.detach())
        x = ACTIVATIONS[nonlinearity](z)
        if residual:
            x = states[-1] + branch_scale * x @ (gaussian(width, width) / math.sqrt(width)).T
        states.append(x)
    gradients = torch.autograd.grad(x, states, grad_outputs=gaussian(batch, width))
    edges = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)
    return Propagation(
        torch.stack([state.detach().square().mean() for state in states]),
        torch.stack([z.square().mean() for z in entering]),
        torch.stack([gradient.square().mean() for gradient in gradients]),
        torch.stack([histogram(values, edges) for values in (states[0].detach(), *entering)]),
        edges,
    )


def histogram(values: Float[Tensor, "..."], edges: Float[Tensor, " bins_more"]) -> Float[Tensor, " bins"]:
    """Return the share of all values in each bin."""
    return torch.histogram(values.flatten(), edges)[0] / values.numel()


def random_walk_terms(
    fan_in: int, std: float, x: Float[Tensor, "draws fan_in"], generator: torch.Generator
) -> Float[Tensor, "draws fan_in_more"]:
    """Return the sums of w_1 x_1 … w_i x_i for i = 0..fan_in, with weights w ~ N(0, std²): one neuron adding up.

    Raises:
        ValueError: x with another number of inputs than fan_in, or a negative std.
    """
    if x.shape[-1] != fan_in or std < 0:
        raise ValueError(f"x must have fan_in = {fan_in} columns and std be at least 0, got {x.shape[-1]} and {std}")
    terms = std * torch.randn(x.shape, generator=generator, dtype=x.dtype) * x
    return torch.cat([torch.zeros_like(terms[:, :1]), terms.cumsum(dim=1)], dim=1)


def symmetry_run(
    init: Float[Tensor, "hidden inputs"], steps: int, *, learning_rate: float = 0.02
) -> Float[Tensor, "steps_more hidden inputs"]:
    """Train y = Σ_i tanh(w_i · x) on a fixed task and return its weights w before and after every step.

    The task is to do as other neurons do, equally many, on 64 fixed inputs; every step uses all of them.

    Raises:
        ValueError: steps below 0.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, init.shape[1], generator=generator, dtype=init.dtype)
    y = neurons(x, torch.randn(init.shape, generator=generator, dtype=init.dtype)).sum(dim=1)
    weights = [init]
    for _ in range(steps):
        w = weights[-1].clone().requires_grad_()
        loss = (neurons(x, w).sum(dim=1) - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        weights.append((w - learning_rate * gradient).detach())
    return torch.stack(weights)


def neurons(x: Float[Tensor, "n inputs"], w: Float[Tensor, "hidden inputs"]) -> Float[Tensor, "n hidden"]:
    """Return tanh(w_i · x), neuron by neuron: rounding treats all alike, so equal ones stay equal to the bit."""
    return torch.stack([(x @ row).tanh() for row in w], dim=1)


# -- quadrature --------------------------------------------------------------------------------------------------------


@cache
def _gauss(count: int = 300, reach: float = 12.0) -> tuple[Tensor, Tensor]:
    """Return points and probability shares for means over N(0, 1): Gauss-Legendre on each side of 0, where φ may kink.

    The points are eigenvalues of the Jacobi matrix (Golub and Welsch 1969). Beyond 12 there is less than 10⁻³².
    """
    order = torch.arange(1, count, dtype=torch.float64)
    beside = order / (4 * order**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    points, widths = reach * (points + 1) / 2, reach * vectors[0].square()
    density = widths * torch.exp(-points.square() / 2) / math.sqrt(2 * math.pi)
    return torch.cat([-points, points]), torch.cat([density, density])


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    depth: int = option(50, "layers of the random networks", minimum=2, maximum=100)
    width: int = option(256, "their width", minimum=32, maximum=1024)
    nonlinearity: str = option("relu", "their activation", choices=tuple(ACTIVATIONS))
    gain_scale: float = option(1.0, "multiplies the correct gain", minimum=0.5, maximum=2)
    num_layers: int = option(12, "layers of two residual branches", minimum=1, maximum=96)
    train_steps: int = option(120, "optimizer steps of the tiny LM from each initialization", minimum=20, maximum=400)
    seed: int = option(0, "of all random weights and inputs", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    G gains around the correct one; S = L + 1 states of a network of L layers; K = N + 1 states of a residual stream of
    N = 2 num_layers branches; M initializations of the tiny LM, F of the MLP. Signals and gradients are root mean
    squares, so that a gain g multiplies them by g in every layer.
    """

    config: Config
    correct_gain: float
    gains: Float[Tensor, " G"]  # multiples of it
    draws: int  # of the weights, behind every mean
    signal: Float[Tensor, "G S"]
    signal_predicted: Float[Tensor, "G S"]
    gradient: Float[Tensor, "G S"]
    gradient_predicted: Float[Tensor, "G S"]
    hist_gains: Float[Tensor, " 3"]
    hist: Float[Tensor, "3 S 41"]  # the input, then what enters each activation
    bin_edges: Float[Tensor, " 42"]
    bin_centers: Float[Tensor, " 41"]
    walk: Float[Tensor, "32 257"]  # sums of 0..256 random terms of standard deviation 1
    walk_fans: Float[Tensor, " 4"]
    walk_std: Float[Tensor, " 4"]  # of many such sums
    walk_std_predicted: Float[Tensor, " 4"]  # √fan
    walk_draws: int
    relu_before: Float[Tensor, " 41"]  # histogram of what enters a ReLU
    relu_after: Float[Tensor, " 41"]
    relu_moments: Float[Tensor, " 3"]  # second moment before, after, and after with weights of twice the variance
    fan_schemes: tuple[str, ...]
    fan_demo: Float[Tensor, "3 2"]  # factors forward and backward of a layer from 64 to 256 ReLUs
    fan_predicted: Float[Tensor, "3 2"]
    fan_in: int
    fan_out: int
    num_branches: int
    residual_plain: Float[Tensor, " K"]  # second moments of a stream that starts at 1
    residual_scaled: Float[Tensor, " K"]  # branches times 1/√N
    prenorm_plain: Float[Tensor, " K"]
    prenorm_scaled: Float[Tensor, " K"]
    residual_plain_predicted: Float[Tensor, " K"]
    residual_scaled_predicted: Float[Tensor, " K"]
    prenorm_plain_predicted: Float[Tensor, " K"]
    prenorm_scaled_predicted: Float[Tensor, " K"]
    stream_rms_init: Float[Tensor, " branches_more"]  # of the tiny LM: embedding, then after each branch
    stream_rms_trained: Float[Tensor, " branches_more"]
    symmetry_weights: Float[Tensor, "steps_more 6 6"]  # equal rows
    symmetry_random: Float[Tensor, "steps_more 6 6"]
    symmetry_gap: Float[Tensor, " steps_more"]  # largest difference between two rows of the first
    symmetry_random_gap: Float[Tensor, " steps_more"]  # smallest distance between two rows of the second
    mlp_schemes: tuple[str, ...]
    mlp_depth: int
    mlp_losses: Float[Tensor, "F steps"]  # of each batch, before its step
    mlp_final: Float[Tensor, " F"]  # mean of the last 20
    mlp_first_layer_grad: Float[Tensor, " F"]  # norm before training
    mlp_unigram_entropy: float  # of the words that the MLP predicts
    lm_schemes: tuple[str, ...]
    lm_losses: Float[Tensor, "M train_steps"]
    lm_final: Float[Tensor, " M"]  # mean of the last 20
    lm_grad_norm_by_layer: Float[Tensor, "M layers"]  # before training
    lm_initial_loss: Float[Tensor, " M"]
    lm_logit_variance: Float[Tensor, " M"]  # at the start, over the words
    ln_vocab: float
    unigram_entropy: float  # of the words that the tiny LM predicts


def trace(config: Config) -> Trace:
    """Send signals through random networks of all kinds, and train an MLP and the tiny LM from several starts."""
    from internals_math.weight_initialization_experiment import measure  # it is built on the functions above

    return measure(config)
