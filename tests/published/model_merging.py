"""TIES by hand, DARE's factors, and the geometry of arc and chord."""

import math

import torch

from internals_math.model_merging import (
    TOY,
    TOY_DENSITY,
    Config,
    average,
    dare,
    dare_output_std,
    lerp,
    slerp,
    task_arithmetic,
    ties,
)
from tests.published import Published

TIES, DARE, ARITHMETIC = "TIES-Merging, arXiv 2306.01708", "DARE, arXiv 2311.03099", "arXiv 2212.04089"
RAW = torch.tensor(TOY, dtype=torch.float64)
AXES = torch.eye(2, dtype=torch.float64)


def _toy_mean(weight: int) -> float:
    return round(float(average([{"w": row} for row in RAW])["w"][weight]), 9)  # three numbers that cancel leave 2e-17


def _at(degrees: float) -> torch.Tensor:
    return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=torch.float64)


def _coefficient(which: int) -> float:
    """Solve slerp = α a + β b for vectors at 60°, a third of the way."""
    a, b = _at(0), _at(60)
    return float(torch.linalg.solve(torch.stack([a, b], dim=1), slerp(a, b, 1 / 3))[which])


def _rescale(p: float) -> float:
    sparse, mask = dare(torch.ones(1000, dtype=torch.float64), p, torch.Generator().manual_seed(0))
    return float(sparse[mask][0])


def _std_ratio(p: float) -> float:
    return float(dare_output_std(torch.ones(1, 1), torch.ones(1), p))


def _share_in_average(n: int) -> float:
    """Return λ of the task arithmetic that gives the average of n models, found on one weight."""
    base, taus = torch.tensor(3.0), torch.arange(1.0, n + 1)
    models = [{"w": base + tau} for tau in taus]
    return float((average(models)["w"] - base) / task_arithmetic(taus))


ROWS = (
    *(
        Published(f"toy TIES, weight {k}", lambda k=k: float(ties(RAW, TOY_DENSITY).merged[k]), value, 1e-6,
                  f"{TIES}, Algorithm 1 by hand")
        for k, value in enumerate((2.5, -1.5, 0.0, 2.25))
    ),
    *(
        Published(f"toy mean, weight {k}", lambda k=k: _toy_mean(k), value, 1e-6, "by hand")
        for k, value in enumerate((4 / 3, -1 / 6, 0.0, 1 / 6))
    ),
    Published("share that TIES keeps", lambda: Config().density, 0.2, 0, f"{TIES}, section 5: top 20 %"),
    Published("λ of TIES without tuning", lambda: Config().scale, 1, 0, f"{TIES}, section 5"),
    *(
        Published(f"DARE's factor at p = {p:g}", lambda p=p: _rescale(p), value, 1e-12, DARE)
        for p, value in ((0.9, 10), (0.99, 100))
    ),
    *(
        Published(f"spread at p = {p:g}", lambda p=p: _std_ratio(p), value, 1e-4, "√(p / (1 - p))")
        for p, value in ((0.5, 1.0), (0.9, 3.0), (0.99, 9.94987))
    ),
    Published("SLERP at 60°, t = 1/3: share of a", lambda: _coefficient(0), 0.74223, 1e-5, "sin 40° / sin 60°"),
    Published("SLERP at 60°, t = 1/3: share of b", lambda: _coefficient(1), 0.39493, 1e-5, "sin 20° / sin 60°"),
    *(
        Published(f"middle of a right angle, {what} {axis}", lambda f=run, k=axis: float(f(*AXES, 0.5)[k]), value, 1e-5,
                  "geometry")
        for what, run, value in (("SLERP", slerp, 0.707107), ("LERP", lerp, 0.5)) for axis in (0, 1)
    ),
    *(
        Published(f"length of the chord's middle at {angle}°", lambda a=angle: float(lerp(_at(0), _at(a), 0.5).norm()),
                  math.cos(math.radians(angle / 2)), 1e-6, "cos(Ω / 2)")
        for angle in (30, 90, 150)
    ),
    *(Published(f"λ of an average of {n}", lambda n=n: _share_in_average(n), 1 / n, 1e-6, ARITHMETIC) for n in (2, 3)),
)  # fmt: skip
