"""A scaling law of the loss in parameters and tokens, and the best use of a budget under it.

Notation: N = parameters, D = training tokens, C = FLOPs = 6ND, L = loss in nats a token. All in float64.
Sources: Hoffmann et al. 2022 (Chinchilla), arXiv 2203.15556, equations below; Besiroglu et al. 2024, arXiv 2404.10102
(the fit repeated); Kaplan et al. 2020, arXiv 2001.08361.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOPS_PER_TOKEN = 6  # for each parameter: 2 forward, 4 backward
Amount = int | float | Tensor


# -- the law -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (eq. 2).

    Raises:
        ValueError: A, B, alpha or beta not > 0, or E below 0.
    """

    E: float  # entropy of the text: what no model can beat
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("A", "B", "alpha", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a scaling law must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.E < math.inf:
            raise ValueError(f"E of a scaling law must be >= 0 nats and finite, got {self.E}")


def from_logs(log_e: float, log_a: float, log_b: float, alpha: float, beta: float) -> ScalingLaw:
    """Return the law of E = exp(log_e), A = exp(log_a), B = exp(log_b)."""
    return ScalingLaw(math.exp(log_e), math.exp(log_a), math.exp(log_b), alpha, beta)


HOFFMANN_2022 = from_logs(0.5267228, 6.0073404, 6.0179186, 0.33917084, 0.2849083)
HOFFMANN_2022_ROUNDED = ScalingLaw(
    1.69, 406.4, 410.7, 0.34, 0.28
)  # as printed: too coarse, it moves the answer by 20 %
BESIROGLU_2024 = from_logs(0.59711196, 6.17795598, 7.64273236, 0.34781303, 0.36585412)
LAWS = {"hoffmann_2022": HOFFMANN_2022, "besiroglu_2024": BESIROGLU_2024}
KAPLAN_EXPONENT = 0.73  # of N in C, as Hoffmann et al. quote it in table 2


def loss_terms(
    n_params: Amount, n_tokens: Amount, law: ScalingLaw
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return what a finite model and finite data cost: A / N^alpha and B / D^beta, in nats.

    Raises:
        ValueError: numbers of parameters or tokens that are not > 0.
    """
    n_params, n_tokens = torch.broadcast_tensors(positive(n_params, "n_params"), positive(n_tokens, "n_tokens"))
    return law.A * n_params**-law.alpha, law.B * n_tokens**-law.beta


def parametric_loss(n_params: Amount, n_tokens: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return E + A / N^alpha + B / D^beta (eq. 2).

    Raises:
        ValueError: numbers of parameters or tokens that are not > 0.
    """
    size_term, data_term = loss_terms(n_params, n_tokens, law)
    return law.E + size_term + data_term


def positive(values: Amount, name: str) -> Float[Tensor, "*shape"]:
    """Return values in float64.

    Raises:
        ValueError: one of them is not > 0, or infinite.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"{name} must be > 0 and finite, got {values.tolist()}")
    return values


# -- the best use of a budget ------------------------------------------------------------------------------------------


def allocation_exponents(law: ScalingLaw) -> tuple[float, float, float]:
    """Return a, b and G of eq. 4: the best N is G·(C/6)^a, the best D is (C/6)^b / G."""
    total = law.alpha + law.beta
    scale = (law.alpha * law.A / (law.beta * law.B)) ** (1 / total)
    return law.beta / total, law.alpha / total, scale


def optimal_allocation(compute: Amount, law: ScalingLaw) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return parameters and tokens with the lowest loss for a budget in FLOPs (eq. 4).

    Raises:
        ValueError: a budget that is not > 0.
    """
    a, b, scale = allocation_exponents(law)
    products = positive(compute, "compute") / FLOPS_PER_TOKEN
    return scale * products**a, products**b / scale


def tokens_per_parameter(compute: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return D / N of the best model for a budget in FLOPs.

    Raises:
        ValueError: a budget that is not > 0.
    """
    n_params, n_tokens = optimal_allocation(compute, law)
    return n_tokens / n_params


def _frontier(law: ScalingLaw) -> tuple[float, float]:
    """Return K and gamma: the best loss for C FLOPs is E + K·(C/6)^-gamma."""
    _, _, scale = allocation_exponents(law)
    gamma = law.alpha * law.beta / (law.alpha + law.beta)
    return law.A * scale**-law.alpha + law.B * scale**law.beta, gamma


def frontier_loss(compute: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return the lowest loss for a budget in FLOPs: E + K·(C/6)^-gamma.

    Raises:
        ValueError: a budget that is not > 0.
    """
    coefficient, gamma = _frontier(law)
    return law.E + coefficient * (positive(compute, "compute") / FLOPS_PER_TOKEN) ** -gamma


def compute_for_optimal_size(n_params: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return the budget in FLOPs for which this number of parameters is the best one.

    Raises:
        ValueError: a number of parameters that is not > 0.
    """
    a, _, scale = allocation_exponents(law)
    return FLOPS_PER_TOKEN * (positive(n_params, "n_params") / scale) ** (1 / a)


def effective_compute(n_params: Amount, n_tokens: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return the least FLOPs that reach the loss of this model; the rest of 6ND was wasted.

    Raises:
        ValueError: numbers that are not > 0, or so large that the loss is E itself: no budget reaches it.
    """
    excess = sum(loss_terms(n_params, n_tokens, law))
    if not bool((torch.as_tensor(excess) > 0).all()):
        raise ValueError("effective_compute needs a loss above E; n_params and n_tokens are too large to tell")
    coefficient, gamma = _frontier(law)
    return FLOPS_PER_TOKEN * (excess / coefficient) ** (-1 / gamma)


def overparameterization(n_params: Amount, n_tokens: Amount, law: ScalingLaw) -> Float[Tensor, "*shape"]:
    """Return how many times larger a model is than the best one for its own budget 6ND.

    Raises:
        ValueError: numbers that are not > 0.
    """
    n_params, n_tokens = positive(n_params, "n_params"), positive(n_tokens, "n_tokens")
    return n_params / optimal_allocation(FLOPS_PER_TOKEN * n_params * n_tokens, law)[0]


def power_law_allocation(
    compute: Amount, exponent: float, anchor: tuple[float, float]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return parameters and tokens where N grows as C^exponent through one known point; D spends the rest of 6ND.

    Args:
        anchor: (C, N) of that point.

    Raises:
        ValueError: a budget or an anchor that is not > 0.
    """
    compute, start, size = (
        positive(value, name) for value, name in zip((compute, *anchor), ("compute", "anchor", "anchor"), strict=True)
    )
    n_params = size * (compute / start) ** exponent
    return n_params, compute / (FLOPS_PER_TOKEN * n_params)


def isoflop_profile(
    compute: float, n_params: Float[Tensor, " m"], law: ScalingLaw
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Return sizes, the tokens that one budget leaves for each, and their losses (approach 2).

    Raises:
        ValueError: a budget or sizes that are not > 0.
    """
    sizes = positive(n_params, "n_params")
    n_tokens = positive(compute, "compute") / (FLOPS_PER_TOKEN * sizes)
    return sizes, n_tokens, parametric_loss(sizes, n_tokens, law)
