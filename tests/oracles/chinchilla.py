"""The Chinchilla laws by SciPy's searches and fits, NumPy's polynomials, and torch's own Huber loss."""

from functools import cache

import numpy as np
import scipy.special
import torch
from scipy.optimize import curve_fit, minimize, minimize_scalar

from internals_math.chinchilla import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    FitResult,
    ScalingLaw,
    fit_isoflop_parabola,
    fit_parametric_loss,
    fit_power_law,
    frontier_loss,
    huber,
    isoflop_profile,
    optimal_allocation,
    parametric_loss,
)
from internals_math.chinchilla_experiment import synthetic_runs
from tests.oracles import Oracle, largest_difference, randn

BUDGET = 5.76e23


def _search(law: ScalingLaw) -> tuple[float, float]:
    """Return the best ln N for the budget and its loss, found without a formula."""

    def loss(log_n: float) -> float:
        size = np.exp(log_n)
        return law.E + law.A / size**law.alpha + law.B / (BUDGET / 6 / size) ** law.beta

    found = minimize_scalar(loss, bounds=(10, 40), method="bounded", options={"xatol": 1e-9})
    return float(found.x), float(found.fun)


def _size() -> float:
    return max(
        abs(float(optimal_allocation(BUDGET, law)[0].log()) - _search(law)[0])
        for law in (HOFFMANN_2022, BESIROGLU_2024)
    )


def _frontier() -> float:
    return max(abs(float(frontier_loss(BUDGET, law)) - _search(law)[1]) for law in (HOFFMANN_2022, BESIROGLU_2024))


def _runs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return synthetic_runs(BESIROGLU_2024, seed=1)


def _objective(point: np.ndarray) -> float:
    """Eq. 3 in NumPy, a million times larger: SciPy's tolerances are absolute near zero."""
    log_n, log_d, log_loss = (column.log().numpy() for column in _runs())
    e, a, b, alpha, beta = point
    terms = np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
    return 1e6 * scipy.special.huber(1e-3, scipy.special.logsumexp(terms, axis=0) - log_loss).sum()


@cache
def _our_fit() -> FitResult:
    return fit_parametric_loss(*_runs())


@cache
def _scipy_fit() -> np.ndarray:
    point = np.array([0.5, 6.0, 7.0, 0.35, 0.35])
    for _ in range(4):  # restarted until nothing moves
        options = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 5000, "maxfun": 100_000}
        point = minimize(_objective, point, method="L-BFGS-B", options=options).x
    return point


def _fit() -> float:
    """Return by how much our objective is worse than SciPy's, as a share."""
    ours = _our_fit().objective
    theirs = _objective(_scipy_fit()) / 1e6
    return max(0.0, ours / theirs - 1)


def _law() -> float:
    """Return the largest relative difference of the fitted losses."""
    n_params, n_tokens, _ = _runs()
    e, a, b, alpha, beta = _scipy_fit()
    theirs = parametric_loss(n_params, n_tokens, ScalingLaw(np.exp(e), np.exp(a), np.exp(b), alpha, beta))
    ours = parametric_loss(n_params, n_tokens, _our_fit().law)
    return largest_difference(ours / theirs, torch.ones_like(theirs))


def _least_squares() -> float:
    """Without noise every sensible fit finds the same law: least squares of the losses themselves, too."""
    n_params, n_tokens, _ = _runs()
    law = ScalingLaw(1.2, 300.0, 900.0, 0.31, 0.37)
    losses = parametric_loss(n_params, n_tokens, law)

    def model(axes, e, a, b, alpha, beta):
        return e + np.exp(a - alpha * axes[0]) + np.exp(b - beta * axes[1])

    axes = np.stack([n_params.log().numpy(), n_tokens.log().numpy()])
    theirs, _ = curve_fit(
        model, axes, losses.numpy(), p0=[1.0, 5.0, 6.0, 0.3, 0.3], maxfev=20_000, xtol=1e-12, ftol=1e-14
    )
    ours = fit_parametric_loss(n_params, n_tokens, losses).law
    return largest_difference(
        torch.tensor([ours.E, ours.alpha, ours.beta]), torch.tensor([theirs[0], theirs[3], theirs[4]])
    )


def _parabola() -> float:
    sizes, _, losses = isoflop_profile(1e21, torch.logspace(8.5, 10, 9, dtype=torch.float64), BESIROGLU_2024)
    n_opt, loss_min, coefficients = fit_isoflop_parabola(sizes, losses)
    theirs = np.polyfit(sizes.log().numpy(), losses.numpy(), 2)
    vertex = -theirs[1] / (2 * theirs[0])
    return max(
        largest_difference(coefficients, torch.from_numpy(theirs.copy())),
        abs(np.log(n_opt) - vertex),
        abs(loss_min - np.polyval(theirs, vertex)),
    )


def _power_law() -> float:
    x, noise = torch.logspace(1, 5, 20, dtype=torch.float64), 0.1 * randn(20, seed=2)
    y = 3 * x**-0.4 * noise.exp()
    coefficient, exponent = fit_power_law(x, y)
    slope, level = np.polyfit(x.log().numpy(), y.log().numpy(), 1)
    return max(abs(exponent - slope), abs(np.log(coefficient) - level))


def _huber() -> float:
    residuals = 3 * randn(100, seed=3)
    theirs = torch.nn.HuberLoss(reduction="none", delta=0.7)(residuals, torch.zeros_like(residuals))
    scipys = torch.from_numpy(scipy.special.huber(0.7, residuals.numpy()))
    return max(largest_difference(huber(residuals, 0.7), theirs), largest_difference(huber(residuals, 0.7), scipys))


ROWS = (
    Oracle("ln of the best size", _size, 1e-6, "scipy: minimize_scalar along the budget"),
    Oracle("loss of the frontier", _frontier, 1e-12, "scipy: minimize_scalar along the budget"),
    Oracle("fit of noisy runs: excess of the objective", _fit, 1e-6, "scipy: minimize (L-BFGS-B), huber, logsumexp"),
    Oracle("fit of noisy runs: fitted losses", _law, 1e-5, "scipy: minimize (L-BFGS-B), huber, logsumexp"),
    Oracle("fit of exact runs", _least_squares, 1e-5, "scipy: curve_fit"),
    Oracle("parabola of a budget", _parabola, 1e-8, "numpy: polyfit"),
    Oracle("power law", _power_law, 1e-12, "numpy: polyfit of logarithms"),
    Oracle("Huber loss", _huber, 1e-12, "torch: HuberLoss; scipy: huber"),
)
