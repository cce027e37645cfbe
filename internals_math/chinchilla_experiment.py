"""A scaling law of our own: fitted to real runs whose true floor is known, and a fit that stops too early."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math import chinchilla_runs, progress, trace_store
from internals_math.chinchilla import Config, RangeFits
from internals_math.scaling_fit import FitResult, fit_isoflop_parabola, fit_parametric_loss
from internals_math.scaling_law import FLOPS_PER_TOKEN, ScalingLaw, optimal_allocation, parametric_loss

FEWEST_LEVELS = 3  # of tokens, that a fit needs to see
NOISE = 0.01  # of the synthetic losses, relative
# What L-BFGS is often left with (SciPy's defaults): fine for an objective near 1, not for one near 1e-3.
LOOSE_FTOL, LOOSE_GTOL = 2.2e-9, 1e-5
WIDEST_PROFILE, NARROWEST_PROFILE = 4, 3  # sizes of one budget


# -- real runs ---------------------------------------------------------------------------------------------------------


def tiny_laws(config: Config) -> dict[str, Any]:
    """Return the runs, the laws fitted to them and what is left over."""
    runs = trace_store.get(chinchilla_runs, chinchilla_runs.Config(config.sizes, config.token_levels, config.seed))
    n_params, n_tokens = runs.n_params.double(), runs.n_tokens.double()
    free = fit_parametric_loss(n_params, n_tokens, runs.losses)
    fixed = fit_parametric_loss(n_params, n_tokens, runs.losses, fixed_E=runs.entropy_floor)
    values: dict[str, Any] = {
        "tiny_n": n_params,
        "tiny_d": n_tokens,
        "tiny_loss": runs.losses,
        "entropy_floor": runs.entropy_floor,
        "tiny_ranges": range_fits(n_params, n_tokens, runs.losses),
    }
    for name, fit in (("tiny_fit", free), ("tiny_fixed_fit", fixed)):
        residuals = (parametric_loss(n_params, n_tokens, fit.law) / runs.losses).log()
        values |= {
            name: fit.law,
            f"{name}_residuals": residuals,
            f"{name}_rms": float(residuals.square().mean().sqrt()),
        }
    return values | isoflop_profiles(n_params, n_tokens, runs.losses)


def range_fits(n_params: Float[Tensor, " R"], n_tokens: Float[Tensor, " R"], losses: Float[Tensor, " R"]) -> RangeFits:
    """Fit the runs of every unbroken range of at least FEWEST_LEVELS numbers of tokens."""
    levels = n_tokens.unique().tolist()
    ranges = [(low, high) for low, high in combinations(range(len(levels)), 2) if high - low + 1 >= FEWEST_LEVELS]
    rows = []
    for done, (low, high) in enumerate(ranges, 1):
        chosen = (n_tokens >= levels[low]) & (n_tokens <= levels[high])
        fit = fit_parametric_loss(n_params[chosen], n_tokens[chosen], losses[chosen])
        rows.append((levels[low], levels[high], int(chosen.sum()), fit.law.E))
        progress.report("fitting parts of the runs", done, len(ranges))
    fewest, most, runs, floors = zip(*rows, strict=True)
    return RangeFits(
        fewest_tokens=torch.tensor(fewest).long(),
        most_tokens=torch.tensor(most).long(),
        runs=torch.tensor(runs),
        floor=torch.tensor(floors, dtype=torch.float64),
    )


def profile_budgets(sizes: Sequence[float], fewest: float, most: float) -> tuple[int, list[tuple[int, float]]]:
    """Return how many neighboring sizes share a budget, and (first size, budget in FLOPs) of each group.

    A budget lies in the middle of those at which every size of its group was measured with fewer and with more tokens.
    """
    for width in (WIDEST_PROFILE, NARROWEST_PROFILE):
        groups = []
        for first in range(len(sizes) - width + 1):
            lowest = FLOPS_PER_TOKEN * sizes[first + width - 1] * fewest
            highest = FLOPS_PER_TOKEN * sizes[first] * most
            if lowest <= highest:
                groups.append((first, (lowest * highest) ** 0.5))
        if groups:
            return width, groups
    raise ValueError(f"no budget is shared by {NARROWEST_PROFILE} of the sizes {list(sizes)}")


def isoflop_profiles(
    n_params: Float[Tensor, " R"], n_tokens: Float[Tensor, " R"], losses: Float[Tensor, " R"]
) -> dict[str, Any]:
    """Return losses of several sizes at equal budgets, interpolated between runs (ln L over ln D), with parabolas."""
    levels, sizes = n_tokens.unique(), n_params.unique()
    table = losses.view(len(sizes), len(levels)).log()
    width, groups = profile_budgets(sizes.tolist(), float(levels[0]), float(levels[-1]))
    points, curves, vertices = [], [], []
    for first, budget in groups:
        group = slice(first, first + width)
        wanted = (budget / (FLOPS_PER_TOKEN * sizes[group])).log()
        loss = torch.stack(
            [interpolate(levels.log(), row, x) for row, x in zip(table[group], wanted, strict=True)]
        ).exp()
        points.append(torch.stack([sizes[group], loss], dim=1))
        n_opt, loss_min, coefficients = fit_isoflop_parabola(sizes[group], loss)
        vertices.append(torch.tensor([n_opt, loss_min], dtype=torch.float64))
        smallest, largest = sizes[group].log()[[0, -1]].tolist()
        along = torch.linspace(smallest, largest, 40, dtype=torch.float64)
        powers = torch.stack([along**2, along, torch.ones_like(along)], dim=1)
        curves.append(torch.stack([along.exp(), powers @ coefficients], dim=1))
    return {
        "tiny_isoflop_compute": torch.tensor([budget for _, budget in groups], dtype=torch.float64),
        "tiny_isoflop": torch.stack(points),
        "tiny_isoflop_curve": torch.stack(curves),
        "tiny_isoflop_opt": torch.stack(vertices),
    }


def interpolate(x: Float[Tensor, " m"], y: Float[Tensor, " m"], at: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return y on the straight lines between the points, for a place within the range of the rising x."""
    right = int(torch.searchsorted(x, at).clamp(1, len(x) - 1))
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


# -- the same runs, two fits -------------------------------------------------------------------------------------------


def synthetic_runs(law: ScalingLaw, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sizes, tokens and losses of 56 runs that follow a law up to one percent of noise."""
    sizes, tokens = torch.logspace(7.5, 10.2, 8, dtype=torch.float64), torch.logspace(9, 11.5, 7, dtype=torch.float64)
    n_params, n_tokens = (axis.flatten() for axis in torch.meshgrid(sizes, tokens, indexing="ij"))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_params.shape, generator=generator, dtype=torch.float64)
    return n_params, n_tokens, parametric_loss(n_params, n_tokens, law) * (NOISE * noise).exp()


def two_fits(law: ScalingLaw, compute: Float[Tensor, " points"], seed: int) -> dict[str, Any]:
    """Fit one set of synthetic runs to the end, and as it was first done: averaged, with default tolerances."""
    runs = synthetic_runs(law, seed)
    values: dict[str, Any] = {}
    for name, fit in (
        ("fit_tight", fit_parametric_loss(*runs)),
        ("fit_loose", fit_parametric_loss(*runs, reduction="mean", ftol=LOOSE_FTOL, gtol=LOOSE_GTOL)),
    ):
        values |= {
            name: summary(fit),
            f"{name}_law": fit.law,
            f"{name}_n": optimal_allocation(compute, fit.law)[0],
        }
    return values


def summary(fit: FitResult) -> dict[str, float]:
    """Return how a fit went."""
    return {
        "objective": fit.objective,
        "iterations": float(fit.n_iterations),
        "starts": float(fit.n_starts),
        "converged": float(fit.converged),
    }
