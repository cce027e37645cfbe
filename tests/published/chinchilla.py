"""What the Chinchilla papers print, and what their fitted laws say of published models."""

from collections.abc import Callable

from internals_math.chinchilla import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    HOFFMANN_2022_ROUNDED,
    KAPLAN_EXPONENT,
    ScalingLaw,
    allocation_exponents,
    effective_compute,
    frontier_loss,
    loss_terms,
    models,
    optimal_allocation,
    overparameterization,
    parametric_loss,
    power_law_allocation,
    tokens_per_parameter,
    training_flops,
)
from tests.published import Published

HOFFMANN = "Training Compute-Optimal LLMs, arXiv 2203.15556"
BESIROGLU = "Chinchilla Scaling: A replication attempt, arXiv 2404.10102"
KAPLAN = "Scaling Laws for Neural LMs, arXiv 2001.08361, as quoted by 2203.15556, table 2"
GPT_3_PAPER = "GPT-3, arXiv 2005.14165, table D.1"
GOPHER_BUDGET = 5.76e23
GPT_3 = (175_000_000_000, 300_000_000_000)
CHINCHILLA = (70_000_000_000, 1_400_000_000_000)
PUBLISHED_MODELS = models(BESIROGLU_2024)
TABLE_3 = (  # approach 1: budget, parameters, tokens
    (1.92e19, 400e6, 8.0e9), (1.21e20, 1e9, 20.2e9), (1.23e22, 10e9, 205.1e9),
    (3.85e24, 175e9, 3.7e12), (9.90e24, 280e9, 5.9e12), (1.27e26, 1e12, 21.2e12),
)  # fmt: skip


def _exponent(law: ScalingLaw, place: int) -> Callable[[], float]:
    return lambda: allocation_exponents(law)[place]


def _at_gopher(law: ScalingLaw, place: int) -> Callable[[], float]:
    return lambda: float(optimal_allocation(GOPHER_BUDGET, law)[place])


def _tokens_of_row(row: tuple[float, float, float]) -> Published:
    compute, n_params, printed = row
    name = f"table 3: tokens at {n_params / 1e9:g}B parameters"
    ours = lambda: float(power_law_allocation(compute, 0.5, (compute, n_params))[1])  # noqa: E731
    return Published(name, ours, printed, 0.01, f"{HOFFMANN}, table 3")


def _ratio(compute: float, printed: float) -> Published:
    name = f"tokens per parameter at {compute:.0e} FLOPs"
    return Published(
        name, lambda: float(tokens_per_parameter(compute, BESIROGLU_2024)), printed, 0.01, f"{BESIROGLU}, refitted law"
    )


def _share() -> float:
    return float(effective_compute(*GPT_3, BESIROGLU_2024)) / training_flops(*GPT_3)


def _kaplan(place: int) -> float:
    start = (1e20, 1e9)
    before, after = (power_law_allocation(compute, KAPLAN_EXPONENT, start)[place] for compute in (1e20, 1e21))
    return float(after / before)


ROWS = (
    Published("exponent of N", _exponent(HOFFMANN_2022, 0), 0.4565, 1e-3, f"{HOFFMANN}, eq. 4 (printed .46)"),
    Published("exponent of D", _exponent(HOFFMANN_2022, 1), 0.5435, 1e-3, f"{HOFFMANN}, eq. 4 (printed .54)"),
    Published(
        "exponent of N, from the printed constants", _exponent(HOFFMANN_2022_ROUNDED, 0), 0.4516, 1e-3,
        f"{HOFFMANN}, eq. 4",
    ),
    Published("exponent of N, refitted", _exponent(BESIROGLU_2024, 0), 0.5126, 1e-3, BESIROGLU),
    Published("A of the first fit", lambda: HOFFMANN_2022.A, 406.4, 1e-3, f"{HOFFMANN}, eq. 10"),
    Published("B of the first fit", lambda: HOFFMANN_2022.B, 410.7, 1e-3, f"{HOFFMANN}, eq. 10"),
    Published("E of the first fit", lambda: HOFFMANN_2022.E, 1.6934, 1e-4, f"{HOFFMANN}, eq. 10 (printed 1.69)"),
    Published("A, refitted", lambda: BESIROGLU_2024.A, 482.0, 1e-3, BESIROGLU),
    Published("B, refitted", lambda: BESIROGLU_2024.B, 2085.4, 1e-4, BESIROGLU),
    Published("E, refitted", lambda: BESIROGLU_2024.E, 1.817, 1e-3, BESIROGLU),
    Published("best size for Gopher's budget", _at_gopher(HOFFMANN_2022, 0), 40.4e9, 0.01, f"{HOFFMANN}, section 3.3"),
    Published("best size for it, refitted", _at_gopher(BESIROGLU_2024, 0), 72.4e9, 0.01, BESIROGLU),
    Published("best number of tokens for it, refitted", _at_gopher(BESIROGLU_2024, 1), 1.33e12, 0.01, BESIROGLU),
    *map(_tokens_of_row, TABLE_3),
    Published(
        "best run of 175B parameters, in Gopher's budgets",
        lambda: training_flops(175 * 10**9, 37 * 10**11) / GOPHER_BUDGET, 6.7, 0.01, f"{HOFFMANN}, table 3",
    ),
    Published(
        "best run of 280B parameters, in Gopher's budgets",
        lambda: training_flops(280 * 10**9, 59 * 10**11) / GOPHER_BUDGET, 17.2, 0.01, f"{HOFFMANN}, table 3",
    ),
    Published("FLOPs of GPT-3", lambda: training_flops(*GPT_3), 3.14e23, 0.01, GPT_3_PAPER),
    Published(
        "GPT-3 above its best size", lambda: float(overparameterization(*GPT_3, HOFFMANN_2022)), 5.7, 0.01, HOFFMANN
    ),
    Published(
        "GPT-3 above its best size, refitted", lambda: float(overparameterization(*GPT_3, BESIROGLU_2024)), 3.3, 0.01,
        BESIROGLU,
    ),
    Published(
        "GPT-3 above its best size, approach 1",
        lambda: 175e9 / float(power_law_allocation(3.14e23, 0.5, (GOPHER_BUDGET, 67e9))[0]), 3.5, 0.015,
        f"{HOFFMANN}, table 3",
    ),
    Published("GPT-3: price of its size", lambda: float(loss_terms(*GPT_3, BESIROGLU_2024)[0]), 0.059, 0.01, BESIROGLU),
    Published("GPT-3: price of its data", lambda: float(loss_terms(*GPT_3, BESIROGLU_2024)[1]), 0.132, 0.01, BESIROGLU),
    Published("GPT-3: loss", lambda: float(parametric_loss(*GPT_3, BESIROGLU_2024)), 2.008, 1e-3, BESIROGLU),
    Published(
        "best loss for its budget", lambda: float(frontier_loss(training_flops(*GPT_3), BESIROGLU_2024)), 1.992, 1e-3,
        BESIROGLU,
    ),
    Published("share of its budget that would do", _share, 0.61, 0.01, BESIROGLU),
    _ratio(1e18, 25.6),
    _ratio(1e21, 21.5),
    _ratio(1e24, 18.1),
    Published("FLOPs of Chinchilla", lambda: training_flops(*CHINCHILLA), 5.88e23, 1e-3, f"{HOFFMANN}, section 4"),
    Published(
        "tokens per parameter of Chinchilla",
        lambda: float(PUBLISHED_MODELS.n_tokens[3] / PUBLISHED_MODELS.n_params[3]), 20, 0, f"{HOFFMANN}, section 4",
    ),
    Published(
        "Chinchilla beside its best size", lambda: float(overparameterization(*CHINCHILLA, BESIROGLU_2024)), 0.96, 0.01,
        BESIROGLU,
    ),
    Published("Kaplan: growth of N for ten times the FLOPs", lambda: _kaplan(0), 5.5, 0.04, KAPLAN),
    Published("Kaplan: growth of D for ten times the FLOPs", lambda: _kaplan(1), 1.8, 0.04, KAPLAN),
)  # fmt: skip
