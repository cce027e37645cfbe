"""From training runs to a scaling law: curves, budgets, or all runs at once.

Notation: N = parameters, D = training tokens, C = FLOPs, L = loss in nats a token; m = runs. All in float64.
Sources: Hoffmann et al. 2022 (Chinchilla), arXiv 2203.15556, sections 3.1 to 3.3 (approaches 1 to 3); Besiroglu et al.
2024, arXiv 2404.10102 (why the first fit stopped early).
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.scaling_law import ScalingLaw, from_logs, positive

# The grid of starts of Hoffmann et al., appendix D.3: e, a, b, alpha, beta of eq. 3.
START_LEVELS = ((-1.0, -0.5, 0.0, 0.5, 1.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (0.0, 0.5, 1.0, 1.5, 2.0))
STARTS = 6  # of them are followed: those with the lowest objective
MAX_ITERATIONS = 1000
HISTORY = 10  # steps that L-BFGS remembers
RESTART_GAIN = 1e-3  # a fit that a restart improves by more than this share had not converged


def fit_isoflop_parabola(
    n_params: Float[Tensor, " m"], losses: Float[Tensor, " m"]
) -> tuple[float, float, Float[Tensor, "3"]]:
    """Fit a parabola to losses over ln N; return N and loss of its vertex, and its coefficients, highest power first.

    A profile is no parabola: the wider the window, the further the vertex is from the true minimum.

    Raises:
        ValueError: fewer than 3 different sizes, sizes that are not > 0, or a parabola without a lowest point.
    """
    logs, values = positive(n_params, "n_params").log(), torch.as_tensor(losses, dtype=torch.float64)
    if logs.shape != values.shape or len(logs.unique()) < 3:
        raise ValueError(
            f"a parabola needs at least 3 different sizes, each with a loss, got {len(logs.unique())} sizes and "
            f"{len(values)} losses"
        )
    middle = logs.mean()  # the powers of centered numbers are far from collinear
    powers = torch.stack([(logs - middle) ** 2, logs - middle, torch.ones_like(logs)], dim=1)
    square, slope, level = torch.linalg.lstsq(powers, values[:, None]).solution[:, 0]
    if not square > 0:
        raise ValueError(f"the losses have no lowest point: the parabola's leading coefficient is {float(square):.3g}")
    vertex = middle - slope / (2 * square)
    loss = level - slope**2 / (4 * square)
    coefficients = torch.stack([square, slope - 2 * square * middle, level - slope * middle + square * middle**2])
    return float(vertex.exp()), float(loss), coefficients


def fit_power_law(x: Float[Tensor, " m"], y: Float[Tensor, " m"]) -> tuple[float, float]:
    """Return coefficient and exponent of y = coefficient·x^exponent, by least squares of logarithms.

    Raises:
        ValueError: fewer than 2 different x, or values that are not > 0.

    >>> coefficient, exponent = fit_power_law(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([2.0, 20.0, 200.0]))
    >>> round(coefficient, 6), round(exponent, 6)
    (2.0, 1.0)
    """
    log_x, log_y = positive(x, "x").log(), positive(y, "y").log()
    if log_x.shape != log_y.shape or len(log_x.unique()) < 2:
        raise ValueError(f"a power law needs at least 2 different points, got {len(log_x)} x and {len(log_y)} y")
    centered = log_x - log_x.mean()
    exponent = (centered * log_y).sum() / centered.square().sum()
    return float((log_y.mean() - exponent * log_x.mean()).exp()), float(exponent)


def lower_envelope(
    compute: Float[Tensor, "R S"], losses: Float[Tensor, "R S"], bins: int
) -> tuple[Float[Tensor, " found"], Float[Tensor, " found"], Int[Tensor, " found"]]:
    """Return the lowest point of all training curves in each of `bins` equal intervals of ln C (approach 1).

    Args:
        compute, losses: R runs, S records of each; NaN losses are left out.

    Returns:
        compute, loss and run of the lowest points, in order of compute; empty intervals have none.

    Raises:
        ValueError: fewer than 1 interval, compute that is not > 0, or no loss at all.
    """
    logs = positive(compute, "compute").log()
    if bins < 1 or logs.shape != losses.shape or bool(losses.isnan().all()):
        raise ValueError(
            f"lower_envelope needs at least 1 interval and a loss for each point, got bins {bins}, compute "
            f"{tuple(logs.shape)} and losses {tuple(losses.shape)}"
        )
    edges = torch.linspace(float(logs.min()), float(logs.max()), bins + 1, dtype=torch.float64)
    place = torch.bucketize(logs.flatten(), edges[1:-1], right=True)  # an edge belongs to the interval it opens
    values = losses.flatten().nan_to_num(torch.inf)
    lowest = [values.where(place == index, torch.inf).argmin() for index in range(bins)]
    found = torch.stack([point for index, point in enumerate(lowest) if place[point] == index])
    found = found[values[found] < torch.inf]
    return compute.flatten()[found], losses.flatten()[found], found // losses.shape[1]


def huber(residual: Float[Tensor, "*shape"], delta: float) -> Float[Tensor, "*shape"]:
    """Return r²/2 within ±delta and delta·(|r| - delta/2) outside.

    Raises:
        ValueError: delta is not > 0.
    """
    if not delta > 0:
        raise ValueError(f"delta must be > 0, got {delta}")
    size = residual.abs()
    return torch.where(size <= delta, residual.square() / 2, delta * (size - delta / 2))


@dataclass(frozen=True)
class FitResult:
    """A fitted law and how it was found."""

    law: ScalingLaw
    objective: float  # sum over all runs, whatever the fit minimized
    converged: bool  # a restart from the result, with tight tolerances, gains nothing
    n_starts: int
    n_iterations: int  # of all starts together


def fit_parametric_loss(
    n_params: Float[Tensor, " m"],
    n_tokens: Float[Tensor, " m"],
    losses: Float[Tensor, " m"],
    *,
    delta: float = 1e-3,
    init_grid: Float[Tensor, "starts 5"] | None = None,
    fixed_E: float | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    ftol: float = 1e-15,
    gtol: float = 1e-10,
) -> FitResult:
    """Fit eq. 2 to runs: the Huber loss of ln L, by L-BFGS from the most promising starts of a grid (eq. 3).

    The objective is about 1e-3, so tolerances that are absolute near zero, as those of L-BFGS usually are, end the
    search early, and a mean over runs more than a sum (2404.10102); hence the tight defaults.

    Args:
        init_grid: starts as (e, a, b, alpha, beta), with E = exp(e), A = exp(a), B = exp(b); the paper's by default.
        fixed_E: the floor, if it is known.
        ftol, gtol: stop when a step gains at most ftol, or no slope is above gtol.

    Raises:
        ValueError: fewer runs than free parameters, numbers that are not > 0, or an unknown reduction.
    """
    free = 5 if fixed_E is None else 4
    if len(losses) < free or not len(n_params) == len(n_tokens) == len(losses):
        raise ValueError(
            f"{free} free parameters need at least as many runs, got {len(n_params)} n_params, {len(n_tokens)} "
            f"n_tokens and {len(losses)} losses"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be sum or mean, got {reduction!r}")
    search = _Search(
        positive(n_params, "n_params").log(),
        positive(n_tokens, "n_tokens").log(),
        positive(losses, "losses").log(),
        delta,
        None if fixed_E is None else math.log(positive(fixed_E, "fixed_E")),
        1.0 if reduction == "sum" else 1 / len(losses),
    )
    grid = _start_grid() if init_grid is None else init_grid.double()
    starts = grid[search.objective(grid).argsort(stable=True)[:STARTS]]
    ends = [search.descend(start, ftol, gtol) for start in starts]
    lawful = [end for end, _ in ends if bool((end[3:] > 0).all())]
    if not lawful:
        raise ValueError("no start led to a law with alpha and beta > 0; the losses do not fall with size and data")
    best = min(lawful, key=lambda end: float(search.objective(end)))
    objective = float(search.objective(best))
    again, _ = replace(search, scale=1.0).descend(best, 1e-15, 1e-10)
    return FitResult(
        law=from_logs(*best.tolist()),
        objective=objective,
        converged=float(search.objective(again)) >= (1 - RESTART_GAIN) * objective - 1e-15,
        n_starts=len(starts),
        n_iterations=sum(iterations for _, iterations in ends),
    )


def _start_grid() -> Float[Tensor, "starts 5"]:
    logs_e, logs, exponents = START_LEVELS
    return torch.tensor(list(itertools.product(logs_e, logs, logs, exponents, exponents)), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _Search:
    """Eq. 3 for one set of runs; a point is (e, a, b, alpha, beta)."""

    log_n: Float[Tensor, " m"]
    log_d: Float[Tensor, " m"]
    log_loss: Float[Tensor, " m"]
    delta: float
    fixed_e: float | None
    scale: float

    def _residuals(self, points: Float[Tensor, "*batch 5"]) -> tuple[Tensor, Tensor]:
        """Return LSE(…) - ln L (*batch, m), and the share of each of the three terms (*batch, m, 3)."""
        e, a, b, alpha, beta = (part[..., None] for part in points.unbind(dim=-1))
        if self.fixed_e is not None:
            e = torch.full_like(e, self.fixed_e)
        terms = torch.stack(
            [e.expand(*e.shape[:-1], len(self.log_n)), a - alpha * self.log_n, b - beta * self.log_d], dim=-1
        )
        return terms.logsumexp(dim=-1) - self.log_loss, terms.softmax(dim=-1)

    def objective(self, points: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch"]:
        """Return the sum over runs."""
        return huber(self._residuals(points)[0], self.delta).sum(dim=-1)

    def gradient(self, point: Float[Tensor, "5"]) -> Float[Tensor, "5"]:
        """Return the slope of the sum, by hand: five products instead of a graph."""
        residuals, shares = self._residuals(point)
        slopes = residuals.clamp(-self.delta, self.delta)[:, None] * shares  # (m, 3)
        by_e, by_a, by_b = slopes.sum(dim=0)
        by_e = by_e if self.fixed_e is None else torch.zeros_like(by_e)
        return torch.stack([by_e, by_a, by_b, -(slopes[:, 1] @ self.log_n), -(slopes[:, 2] @ self.log_d)])

    def descend(self, start: Float[Tensor, "5"], ftol: float, gtol: float) -> tuple[Float[Tensor, "5"], int]:
        """Return where L-BFGS stops, and after how many iterations."""
        point = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point],
            max_iter=MAX_ITERATIONS,
            max_eval=2 * MAX_ITERATIONS,
            tolerance_grad=gtol,
            tolerance_change=ftol,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            here = point.detach()
            point.grad = self.scale * self.gradient(here)
            return self.scale * self.objective(here)

        optimizer.step(closure)
        end = point.detach()
        if self.fixed_e is not None:
            end = torch.cat([torch.tensor([self.fixed_e], dtype=torch.float64), end[1:]])
        return end, optimizer.state[point]["n_iter"]
