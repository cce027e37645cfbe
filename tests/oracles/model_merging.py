"""PEFT's merging functions, SciPy's arc, torch's dropout and averaged model, TIES entry by entry in plain Python."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy import spatial
from torch import Tensor, nn

from internals_math.model_merging import (
    apply_task_vector,
    average,
    dare,
    dare_output_std,
    disjoint_mean,
    elect_sign,
    lerp,
    merge,
    slerp,
    task_arithmetic,
    ties,
    trim,
)
from tests.oracles import Oracle, largest_difference, randn

N, SHAPE = 4, (9, 13)
WEIGHTS = [0.7, 1.3, 0.2, 1.0]
PEFT_SIGN = {"mass": "total", "count": "frequency"}


def _taus(seed: int = 0) -> Tensor:
    return randn(N, *SHAPE, seed=seed)


def _peft():
    from peft.utils import merge_utils  # slow to import

    return merge_utils


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[torch.Generator]:
    """Give PEFT, which draws from the global generator, and us the same numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def _linear(density: float | None) -> float:
    """Weighted sum, of trimmed task vectors if there is a density."""
    taus, weights = _taus(), torch.tensor(WEIGHTS, dtype=torch.float64)
    if density is None:
        return largest_difference(task_arithmetic(taus, WEIGHTS), _peft().task_arithmetic(list(taus.unbind()), weights))
    ours = task_arithmetic(torch.stack([trim(tau, density) for tau in taus]), WEIGHTS)
    return largest_difference(ours, _peft().magnitude_prune(list(taus.unbind()), weights, density))


def _ties(method: str, density: float) -> float:
    taus, weights = _taus(1), torch.tensor(WEIGHTS, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a density of 1
        theirs = _peft().ties(list(taus.unbind()), weights, density, PEFT_SIGN[method])
    return largest_difference(ties(taus, density, WEIGHTS, method).merged, theirs)


def _majority(method: str) -> float:
    """Elected signs of whole numbers, which tie often, and the mean of those who agree."""
    taus = torch.randint(-2, 3, (N, 400), generator=torch.Generator().manual_seed(2)).double()
    mask = _peft().calculate_majority_sign_mask(taus, PEFT_SIGN[method])
    sign = elect_sign(taus, method)
    assert bool((taus.sum(dim=0) == 0).any())
    return max(
        largest_difference((taus.sign() == sign).double(), mask.double()),
        largest_difference(disjoint_mean(taus, sign), _peft().disjoint_merge(taus, mask)),
    )


def _dare(with_ties: bool) -> float:
    taus, density = _taus(3), 0.3
    with _seeded(7) as generator:
        ours = torch.stack([dare(tau, 1 - density, generator)[0] for tau in taus])
        run = _peft().dare_ties if with_ties else _peft().dare_linear
        theirs = run(list(taus.unbind()), torch.tensor(WEIGHTS, dtype=torch.float64), density)
    merged = disjoint_mean(ours, elect_sign(ours), WEIGHTS) if with_ties else task_arithmetic(ours, WEIGHTS)
    return largest_difference(merged, theirs)


def _states(seed: int = 4) -> list[dict[str, Tensor]]:
    """Return a base and three models of three tensors."""
    shapes = {"a": (6, 5), "b": (40,), "c": (3, 4, 2)}
    return [{name: randn(*shape, seed=seed + 10 * k) for name, shape in shapes.items()} for k in range(4)]


def _whole_models(method: str) -> float:
    """`merge` with PEFT at work on every tensor."""
    base, *models = _states()
    weights = torch.tensor(WEIGHTS[:3], dtype=torch.float64)
    ours = merge(base, models, method, weights=WEIGHTS[:3], density=0.4, scope="tensor", scale=0.8)
    run = {
        "task_arithmetic": lambda taus: _peft().task_arithmetic(taus, weights),
        "ties": lambda taus: _peft().ties(taus, weights, 0.4),
    }[method]
    theirs = apply_task_vector(base, {k: run([m[k] - base[k] for m in models]) for k in base}, 0.8)
    return max(largest_difference(ours[name], theirs[name]) for name in base)


def _by_hand(method: str, density: float) -> float:
    """TIES entry by entry, in plain Python numbers."""
    taus = randn(3, 50, seed=5)
    rows = []
    for tau in taus.tolist():
        ranked = sorted(range(len(tau)), key=lambda i: (-abs(tau[i]), i))
        kept = set(ranked[: math.floor(density * len(tau))])
        rows.append([value if i in kept else 0.0 for i, value in enumerate(tau)])
    merged = []
    for column in zip(*rows, strict=True):
        votes = column if method == "mass" else [(v > 0) - (v < 0) for v in column]
        positive = sum(votes) >= 0
        agreeing = [v for v in column if (v > 0 if positive else v < 0)]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return largest_difference(ties(taus, density, method=method).merged, torch.tensor(merged, dtype=torch.float64))


def _arc() -> float:
    worst = 0.0
    for seed in range(5):
        a, b = (randn(7, seed=seed + offset) for offset in (0, 100))
        a, b = a / a.norm(), b / b.norm()
        steps = np.linspace(0, 1, 9)
        theirs = spatial.geometric_slerp(a.numpy(), b.numpy(), steps)
        ours = torch.stack([slerp(a, b, float(t)) for t in steps])
        worst = max(worst, largest_difference(ours, torch.from_numpy(theirs)))
    return worst


def _chord() -> float:
    a, b = randn(5, 6, seed=6), randn(5, 6, seed=7)
    return max(largest_difference(lerp(a, b, t), torch.lerp(a, b, t)) for t in (-0.5, 0.0, 0.3, 1.0))


def _dropout(what: str) -> float:
    """Torch's dropout on the task vector: its values, and the standard deviation of an output over 20,000 draws."""
    tau, x, p = randn(3, 40, seed=8), randn(40, seed=9), 0.9
    with _seeded(10) as generator:
        if what == "values":
            ours, _ = dare(tau.expand(50, 3, 40), p, generator)
            theirs = nn.functional.dropout(tau.expand(50, 3, 40), p)
            both = (ours != 0) & (theirs != 0)  # the masks are drawn in other ways, the kept values are the same
            assert int(both.sum()) > 20
            return largest_difference(ours[both], theirs[both])
        draws = nn.functional.dropout(tau.expand(20_000, 3, 40), p) @ x
    return largest_difference(draws.std(dim=0) / dare_output_std(tau, x, p), torch.ones(3))


def _averaged() -> float:
    models = [nn.Linear(5, 4, dtype=torch.float64) for _ in range(3)]
    for k, model in enumerate(models):
        for number, weight in enumerate(model.parameters()):
            weight.data = randn(*weight.shape, seed=20 * k + number)
    swa = torch.optim.swa_utils.AveragedModel(models[0])
    for model in models:
        swa.update_parameters(model)
    ours = average([model.state_dict() for model in models])
    theirs = swa.module.state_dict()
    return max(largest_difference(ours[name], theirs[name]) for name in ours)


PEFT = "peft.utils.merge_utils"
ROWS = (
    Oracle("task arithmetic", lambda: _linear(None), 1e-12, f"{PEFT}.task_arithmetic"),
    *(Oracle(f"trim to {d:g}", lambda d=d: _linear(d), 1e-12, f"{PEFT}.magnitude_prune") for d in (0.1, 0.5, 0.99)),
    *(
        Oracle(f"TIES by {method}, density {d:g}", lambda m=method, d=d: _ties(m, d), 1e-12, f"{PEFT}.ties")
        for method in ("mass", "count") for d in (0.2, 0.5, 1.0)
    ),
    *(
        Oracle(f"elected signs and their mean, {method}, with ties", lambda m=method: _majority(m), 1e-12,
               f"{PEFT}.disjoint_merge")
        for method in ("mass", "count")
    ),
    Oracle("DARE, added", lambda: _dare(False), 1e-12, f"{PEFT}.dare_linear, same seed"),
    Oracle("DARE, then TIES", lambda: _dare(True), 1e-12, f"{PEFT}.dare_ties, same seed"),
    *(
        Oracle(f"whole models, {method}", lambda m=method: _whole_models(m), 1e-12, f"{PEFT}.{method}, by tensor")
        for method in ("task_arithmetic", "ties")
    ),
    *(
        Oracle(f"TIES by {method}, entry by entry", lambda m=method: _by_hand(m, 0.3), 1e-12, "plain Python")
        for method in ("mass", "count")
    ),
    Oracle("SLERP of unit vectors", _arc, 1e-12, "scipy.spatial.geometric_slerp"),
    Oracle("LERP", _chord, 1e-12, "torch.lerp"),
    Oracle("values that DARE keeps", lambda: _dropout("values"), 1e-12, "torch dropout"),
    Oracle("spread of DARE's output (relative)", lambda: _dropout("spread"), 0.02, "torch dropout, 20,000 draws"),
    Oracle("average of models", _averaged, 1e-12, "torch.optim.swa_utils.AveragedModel"),
)  # fmt: skip
