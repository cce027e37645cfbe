"""Compute-optimal training: for a budget of FLOPs, how large a model, and how many tokens?

Notation: N = parameters, D = training tokens, C = FLOPs = 6ND, L = loss in nats a token; m = runs. All in float64.
Sources: Hoffmann et al. 2022 (Chinchilla), arXiv 2203.15556, sections 3.1 to 3.3, equations below; Besiroglu et al.
2024, arXiv 2404.10102 (the fit repeated, and why the first one stopped early); Kaplan et al. 2020, arXiv 2001.08361.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.next_token import training_flops
from internals_math.scaling_fit import (
    FitResult,
    fit_isoflop_parabola,
    fit_parametric_loss,
    fit_power_law,
    huber,
    lower_envelope,
)
from internals_math.scaling_law import (
    BESIROGLU_2024,
    FLOPS_PER_TOKEN,
    HOFFMANN_2022,
    HOFFMANN_2022_ROUNDED,
    KAPLAN_EXPONENT,
    LAWS,
    ScalingLaw,
    allocation_exponents,
    compute_for_optimal_size,
    effective_compute,
    frontier_loss,
    isoflop_profile,
    loss_terms,
    optimal_allocation,
    overparameterization,
    parametric_loss,
    power_law_allocation,
    tokens_per_parameter,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "BESIROGLU_2024", "HOFFMANN_2022", "HOFFMANN_2022_ROUNDED", "KAPLAN_EXPONENT", "LAWS", "Config", "FitResult",
    "Models", "RangeFits", "ScalingLaw", "Trace", "allocation_exponents", "compute_for_optimal_size",
    "effective_compute", "fit_isoflop_parabola", "fit_parametric_loss", "fit_power_law", "frontier_loss", "huber",
    "isoflop_profile", "loss_terms", "lower_envelope", "optimal_allocation", "overparameterization", "parametric_loss",
    "power_law_allocation", "tokens_per_parameter", "trace", "training_flops",
]  # fmt: skip

MODELS = (
    ("GPT-3", 175e9, 300e9),  # 2005.14165, table D.1
    ("Gopher", 280e9, 300e9),  # this and the next two: 2203.15556, table 1
    ("MT-NLG", 530e9, 270e9),
    ("Chinchilla", 70e9, 1.4e12),
)
ADVICE_START = (1.92e19, 400e6)  # the smallest budget of 2203.15556, table 3, and its best size by approach 1
APPROACH_1_EXPONENT = 0.50  # of N in C, table 2


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    law: str = option("besiroglu_2024", "published fit", choices=tuple(LAWS))
    log10_compute: float = option(23.5, "budget of the walk, log10 of FLOPs", minimum=18, maximum=26)
    n_isoflop: int = option(5, "budgets with a profile", minimum=3, maximum=9)
    sizes: int = option(6, "sizes of the models trained here", minimum=4, maximum=8)
    token_levels: int = option(5, "numbers of tokens that each is trained on", minimum=4, maximum=6)
    seed: int = option(0, "of the runs and of the noise", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Models:
    """Published models beside the best use of their own budgets, one row each."""

    name: tuple[str, ...]
    n_params: Float[Tensor, " rows"]
    n_tokens: Float[Tensor, " rows"]
    compute: Float[Tensor, " rows"]
    loss: Float[Tensor, " rows"]
    size_term: Float[Tensor, " rows"]
    data_term: Float[Tensor, " rows"]
    optimal_n: Float[Tensor, " rows"]
    optimal_d: Float[Tensor, " rows"]
    optimal_loss: Float[Tensor, " rows"]
    excess: Float[Tensor, " rows"]  # n_params / optimal_n
    effective_share: Float[Tensor, " rows"]  # of the budget: what would have been enough


@dataclass(frozen=True, eq=False)
class RangeFits:
    """The floor that a fit finds if it sees only some of the numbers of tokens, one row each."""

    fewest_tokens: Int[Tensor, " rows"]
    most_tokens: Int[Tensor, " rows"]
    runs: Int[Tensor, " rows"]
    floor: Float[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws: `tiny_*` is measured here, the rest is the published law config.law; float64."""

    config: Config
    law: ScalingLaw
    grid_log_n: Float[Tensor, " 32"]  # log10
    grid_log_d: Float[Tensor, " 32"]
    grid_loss: Float[Tensor, "32 32"]  # rows are sizes
    isoflop_compute: Float[Tensor, " I"]
    isoflop_n: Float[Tensor, "I 40"]
    isoflop_d: Float[Tensor, "I 40"]
    isoflop_loss: Float[Tensor, "I 40"]
    isoflop_opt: Float[Tensor, "I 2"]  # N, loss
    walk_n: Float[Tensor, " 60"]  # along the budget of the config
    walk_d: Float[Tensor, " 60"]
    walk_size_term: Float[Tensor, " 60"]
    walk_data_term: Float[Tensor, " 60"]
    walk_loss: Float[Tensor, " 60"]
    walk_size_slope: Float[Tensor, " 60"]  # nats for one e-fold of N or D: alpha·A / N^alpha
    walk_data_slope: Float[Tensor, " 60"]
    walk_compute: float
    walk_best_n: float
    walk_best_d: float
    walk_best_loss: float
    frontier_c: Float[Tensor, " 50"]
    frontier_n: Float[Tensor, " 50"]
    frontier_d: Float[Tensor, " 50"]
    frontier_loss: Float[Tensor, " 50"]
    frontier_ratio: Float[Tensor, " 50"]  # tokens per parameter
    frontier_n_by_law: dict[str, Float[Tensor, " 50"]]
    models: Models
    advice_compute: Float[Tensor, " 50"]
    kaplan_n: Float[Tensor, " 50"]  # both lines start at ADVICE_START
    chinchilla_n: Float[Tensor, " 50"]
    tiny_n: Float[Tensor, " R"]
    tiny_d: Float[Tensor, " R"]
    tiny_loss: Float[Tensor, " R"]
    entropy_floor: float
    tiny_fit: ScalingLaw  # all five parameters free
    tiny_fit_residuals: Float[Tensor, " R"]  # ln of fitted over measured loss
    tiny_fit_rms: float
    tiny_fixed_fit: ScalingLaw  # E held at the true floor
    tiny_fixed_fit_residuals: Float[Tensor, " R"]
    tiny_fixed_fit_rms: float
    tiny_ranges: RangeFits
    tiny_isoflop_compute: Float[Tensor, " c"]
    tiny_isoflop: Float[Tensor, "c m 2"]  # N, loss at exactly this budget, between two measured runs of that size
    tiny_isoflop_curve: Float[Tensor, "c 40 2"]  # the parabola through them
    tiny_isoflop_opt: Float[Tensor, "c 2"]  # its vertex
    fit_tight: dict[str, float]  # objective (summed), iterations, converged (0 or 1) of one fit to synthetic runs
    fit_tight_law: ScalingLaw
    fit_tight_n: Float[Tensor, " 50"]  # what it advises for frontier_c
    fit_loose: dict[str, float]  # the same runs, averaged and with default tolerances
    fit_loose_law: ScalingLaw
    fit_loose_n: Float[Tensor, " 50"]


def trace(config: Config) -> Trace:
    """Compute the published law's pictures, and fit a law of our own to real runs."""
    from internals_math import chinchilla_experiment as experiment  # it is built on the functions above

    law = LAWS[config.law]
    log_n, log_d = torch.linspace(8, 12, 32, dtype=torch.float64), torch.linspace(9, 13, 32, dtype=torch.float64)
    budgets = torch.logspace(20, 25, config.n_isoflop, dtype=torch.float64)
    around = torch.logspace(-1.5, 1.5, 40, dtype=torch.float64)  # sizes as multiples of the best one
    best_n, _ = optimal_allocation(budgets, law)
    profiles = [
        isoflop_profile(budget, best * around, law)
        for budget, best in zip(budgets.tolist(), best_n.tolist(), strict=True)
    ]
    isoflop_n, isoflop_d, isoflop_loss = (torch.stack(parts) for parts in zip(*profiles, strict=True))
    walk_compute = 10**config.log10_compute
    walk_best_n, walk_best_d = optimal_allocation(walk_compute, law)
    walk_n, walk_d, walk_loss = isoflop_profile(
        walk_compute, walk_best_n * torch.logspace(-2, 2, 60, dtype=torch.float64), law
    )
    size_term, data_term = loss_terms(walk_n, walk_d, law)
    frontier_c = torch.logspace(18, 27, 50, dtype=torch.float64)
    frontier_n, frontier_d = optimal_allocation(frontier_c, law)
    advice = torch.logspace(math.log10(ADVICE_START[0]), 26, 50, dtype=torch.float64)
    return Trace(
        config=config,
        law=law,
        grid_log_n=log_n,
        grid_log_d=log_d,
        grid_loss=parametric_loss(10 ** log_n[:, None], 10**log_d, law),
        isoflop_compute=budgets,
        isoflop_n=isoflop_n,
        isoflop_d=isoflop_d,
        isoflop_loss=isoflop_loss,
        isoflop_opt=torch.stack([best_n, frontier_loss(budgets, law)], dim=1),
        walk_n=walk_n,
        walk_d=walk_d,
        walk_size_term=size_term,
        walk_data_term=data_term,
        walk_loss=walk_loss,
        walk_size_slope=law.alpha * size_term,
        walk_data_slope=law.beta * data_term,
        walk_compute=walk_compute,
        walk_best_n=float(walk_best_n),
        walk_best_d=float(walk_best_d),
        walk_best_loss=float(frontier_loss(walk_compute, law)),
        frontier_c=frontier_c,
        frontier_n=frontier_n,
        frontier_d=frontier_d,
        frontier_loss=frontier_loss(frontier_c, law),
        frontier_ratio=tokens_per_parameter(frontier_c, law),
        frontier_n_by_law={name: optimal_allocation(frontier_c, other)[0] for name, other in LAWS.items()},
        models=models(law),
        advice_compute=advice,
        kaplan_n=power_law_allocation(advice, KAPLAN_EXPONENT, ADVICE_START)[0],
        chinchilla_n=power_law_allocation(advice, APPROACH_1_EXPONENT, ADVICE_START)[0],
        **experiment.tiny_laws(config),
        **experiment.two_fits(law, frontier_c, config.seed),
    )


def models(law: ScalingLaw) -> Models:
    """Return what a law says of published models."""
    n_params = torch.tensor([size for _, size, _ in MODELS], dtype=torch.float64)
    n_tokens = torch.tensor([tokens for _, _, tokens in MODELS], dtype=torch.float64)
    compute = FLOPS_PER_TOKEN * n_params * n_tokens
    size_term, data_term = loss_terms(n_params, n_tokens, law)
    optimal_n, optimal_d = optimal_allocation(compute, law)
    return Models(
        name=tuple(name for name, _, _ in MODELS),
        n_params=n_params,
        n_tokens=n_tokens,
        compute=compute,
        loss=parametric_loss(n_params, n_tokens, law),
        size_term=size_term,
        data_term=data_term,
        optimal_n=optimal_n,
        optimal_d=optimal_d,
        optimal_loss=frontier_loss(compute, law),
        excess=overparameterization(n_params, n_tokens, law),
        effective_share=effective_compute(n_params, n_tokens, law) / compute,
    )
