"""Model merging: what fine-tuning learned is an arrow from the base, and arrows from one origin can be added.

Notation: θ_0 = base, θ_t = fine-tuned model t of n, τ_t = θ_t - θ_0 its task vector, d = number of weights, λ = scale,
p = drop rate, Ω = angle of two vectors. A state dict maps names to tensors.
Sources: Ilharco et al. 2022 (task arithmetic, 2212.04089); Wortsman et al. 2022 (averages, 2203.05482); Yadav et al.
2023 (TIES, 2306.01708, Algorithm 1); Yu et al. 2023 (DARE, 2311.03099); Shoemake 1985 (SLERP); Ainsworth et al. 2022
(permutation symmetry, 2209.04836).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "METHODS", "Config", "Points", "Table", "TiesResult", "Trace", "apply_task_vector", "average", "cosine_matrix",
    "dare", "dare_output_std", "disjoint_mean", "elect_sign", "flatten", "lerp", "loss_plane", "merge",
    "permute_channels", "sign_conflict_rate", "slerp", "slerp_state_dicts", "task_arithmetic", "task_vector", "ties",
    "trace", "trim", "unflatten",
]  # fmt: skip

StateDict = Mapping[str, Tensor]
Spec = tuple[tuple[str, tuple[int, ...]], ...]

# -- arrows ------------------------------------------------------------------------------------------------------------


def task_vector(base: StateDict, finetuned: StateDict) -> dict[str, Tensor]:
    """Return τ = θ - θ_0.

    Raises:
        ValueError: other names or shapes, tensors that are not floating point.
    """
    _check_alike(base, finetuned)
    return {name: finetuned[name] - weight for name, weight in base.items()}


def apply_task_vector(base: StateDict, tau: StateDict, scale: float = 1.0) -> dict[str, Tensor]:
    """Return θ_0 + scale · τ; a negative scale forgets the task.

    Raises:
        ValueError: as `task_vector`.
    """
    _check_alike(base, tau)
    return {name: weight + scale * tau[name] for name, weight in base.items()}


def flatten(state: StateDict) -> tuple[Float[Tensor, " d"], Spec]:
    """Return all weights in one line, in the order of the dict, and the names and shapes to undo it.

    Raises:
        ValueError: no tensors, or some that are not floating point.
    """
    _check_alike(state)
    spec = tuple((name, tuple(weight.shape)) for name, weight in state.items())
    return torch.cat([weight.flatten() for weight in state.values()]), spec


def unflatten(vector: Shaped[Tensor, " d"], spec: Spec) -> dict[str, Tensor]:
    """Return the state dict whose `flatten` gave this line.

    Raises:
        ValueError: a line of another length.
    """
    sizes = [math.prod(shape) for _, shape in spec]
    if len(vector) != sum(sizes):
        raise ValueError(f"these names and shapes hold {sum(sizes)} weights, got {len(vector)}")
    return {name: part.view(shape) for (name, shape), part in zip(spec, vector.split(sizes), strict=True)}


def task_arithmetic(
    taus: Float[Tensor, " n *shape"], weights: Sequence[float] | Float[Tensor, " n_weights"] | None = None
) -> Float[Tensor, "*shape"]:
    """Return Σ w_t τ_t; all w_t are 1 by default.

    Raises:
        ValueError: another number of weights than task vectors.
    """
    return _weighted(taus, weights).sum(dim=0)


def average(models: Sequence[StateDict]) -> dict[str, Tensor]:
    """Return the mean of all models: task arithmetic with λ = 1/n from any base.

    Raises:
        ValueError: no models, other names or shapes.
    """
    _check_alike(*models)
    return {name: torch.stack([model[name] for model in models]).mean(dim=0) for name in models[0]}


# -- TIES --------------------------------------------------------------------------------------------------------------

SIGN_METHODS = ("mass", "count")
NORMALIZATIONS = ("count", "weights")


@dataclass(frozen=True, eq=False)
class TiesResult:
    """The steps of TIES, in order."""

    trimmed: Float[Tensor, " n *shape"]
    sign: Float[Tensor, "*shape"]  # 1 or -1
    agree_mask: Bool[Tensor, " n *shape"]  # not 0 and of the elected sign
    merged: Float[Tensor, "*shape"]


def trim(tau: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Return τ with only its ⌊density · d⌋ largest magnitudes left; of equal ones the first stays.

    Raises:
        ValueError: density out of (0, 1], or one that leaves nothing.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    kept = int(density * tau.numel())
    if kept == 0:
        raise ValueError(f"density {density} keeps none of {tau.numel()} entries")
    flat = tau.flatten()
    order = flat.abs().sort(descending=True, stable=True).indices[:kept]
    trimmed = torch.zeros_like(flat)
    trimmed[order] = flat[order]
    return trimmed.view(tau.shape)


def elect_sign(taus: Float[Tensor, " n *shape"], method: str = "mass") -> Float[Tensor, "*shape"]:
    """Return the sign with more weight behind it for every entry, 1 or -1.

    Args:
        method: "mass" is the sign of Σ τ_t, the paper's; "count" of Σ sgn(τ_t). A tie gives 1, as in PEFT and
            mergekit; the authors' code takes the sign of the majority of all entries there.

    Raises:
        ValueError: unknown method.
    """
    if method not in SIGN_METHODS:
        raise ValueError(f"method must be one of {', '.join(SIGN_METHODS)}, got {method!r}")
    votes = (taus if method == "mass" else taus.sign()).sum(dim=0)
    return torch.where(votes >= 0, 1.0, -1.0).to(taus.dtype)


def disjoint_mean(
    taus: Float[Tensor, " n *shape"],
    sign: Float[Tensor, "*shape"],
    weights: Sequence[float] | Float[Tensor, " n_weights"] | None = None,
    normalize: str = "count",
) -> Float[Tensor, "*shape"]:
    """Return the mean of the entries that have the elected sign; 0 where none has.

    Args:
        weights: factors on the models, all 1 by default. They do not vote: the sign is given.
        normalize: "count" divides by the number of agreeing models, weighted or not, as PEFT does; "weights" by the
            sum of their weights.

    Raises:
        ValueError: another number of weights, unknown normalize, weights that are not above 0 to be divided by.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    agree = taus.sign() == sign
    factors = _weighted(torch.ones_like(taus), weights)
    if normalize == "weights" and not (factors > 0).all():
        raise ValueError(f"weights must be above 0 to be divided by, got {weights}")
    total = (agree * factors * taus).sum(dim=0)
    share = (agree * (factors if normalize == "weights" else torch.ones_like(taus))).sum(dim=0)
    return total / share.where(agree.any(dim=0), 1)


def ties(
    taus: Float[Tensor, " n *shape"],
    density: float = 0.2,
    weights: Sequence[float] | Float[Tensor, " n_weights"] | None = None,
    method: str = "mass",
) -> TiesResult:
    """Trim every task vector, elect a sign for every entry, average those who agree (Algorithm 1).

    The entries compete within what is passed: a whole flattened model (the authors), or one tensor (PEFT, mergekit).

    Raises:
        ValueError: as `trim`, `elect_sign` and `disjoint_mean`.
    """
    trimmed = torch.stack([trim(tau, density) for tau in taus])
    return _merge_signs(trimmed, weights, method)


def _merge_signs(
    taus: Float[Tensor, " n *shape"], weights: Sequence[float] | Tensor | None, method: str, normalize: str = "count"
) -> TiesResult:
    sign = elect_sign(taus, method)
    return TiesResult(taus, sign, taus.sign() == sign, disjoint_mean(taus, sign, weights, normalize))


# -- DARE --------------------------------------------------------------------------------------------------------------


def dare(
    tau: Float[Tensor, "*shape"], drop_rate: float, generator: torch.Generator, rescale: bool = True
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Drop entries of τ at random and divide the others by 1 - p, so that the expectation stays: dropout, once.

    Returns:
        the sparse task vector, and which entries were kept (the paper's mask marks the dropped ones).

    Raises:
        ValueError: drop_rate out of [0, 1).
    """
    _check_drop_rate(drop_rate)
    mask = torch.bernoulli(torch.full_like(tau, 1 - drop_rate), generator=generator).bool()
    kept = tau * mask
    return kept / (1 - drop_rate) if rescale else kept, mask


def dare_output_std(tau: Float[Tensor, "o i"], x: Float[Tensor, " i"], drop_rate: float) -> Float[Tensor, " o"]:
    """Return the standard deviation of DARE's τ x over its draws: √(p / (1 - p) · Σ_j (τ_ij x_j)²).

    Raises:
        ValueError: drop_rate out of [0, 1).
    """
    _check_drop_rate(drop_rate)
    return math.sqrt(drop_rate / (1 - drop_rate)) * (tau * x).norm(dim=1)


def _check_drop_rate(drop_rate: float) -> None:
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate must be at least 0 and below 1, got {drop_rate}")


# -- SLERP -------------------------------------------------------------------------------------------------------------


def lerp(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float) -> Float[Tensor, "*shape"]:
    """Return (1 - t) a + t b, a point of the chord."""
    return (1 - t) * a + t * b


def slerp(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], t: float, dot_threshold: float = 0.9995
) -> Float[Tensor, "*shape"]:
    """Return sin((1 - t) Ω) / sin Ω · a + sin(t Ω) / sin Ω · b, with Ω the angle of the flattened tensors.

    The length is kept only if both are equally long. Where |cos Ω| > dot_threshold (mergekit's) the sines give way to
    `lerp`: they are nearly the same there, and safe; opposite vectors then pass through 0.

    Raises:
        ValueError: different shapes, a vector of zeros.
    """
    if a.shape != b.shape:
        raise ValueError(f"both tensors need one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    lengths = a.double().norm(), b.double().norm()
    if min(lengths) == 0:
        raise ValueError("a vector of zeros has no direction")
    cosine = float((a.double() * b.double()).sum() / (lengths[0] * lengths[1]))
    if abs(cosine) > dot_threshold:
        return lerp(a, b, t)
    omega = math.acos(cosine)
    return math.sin((1 - t) * omega) / math.sin(omega) * a + math.sin(t * omega) / math.sin(omega) * b


ON, SCOPES = ("weights", "task_vectors"), ("global", "tensor")


def slerp_state_dicts(
    a: StateDict, b: StateDict, t: float, base: StateDict | None = None, on: str = "weights", scope: str = "tensor"
) -> dict[str, Tensor]:
    """Return two models on an arc.

    Args:
        on: "weights" turns a into b; two models of one base are so close that this is `lerp`. "task_vectors" turns
            their differences from `base` and adds them to it.
        scope: "tensor" takes an angle for each tensor, as mergekit does; "global" one for the whole model.

    Raises:
        ValueError: other names or shapes, unknown on or scope, task vectors without a base, zeros.
    """
    _check_scope(scope)
    if on not in ON:
        raise ValueError(f"on must be one of {', '.join(ON)}, got {on!r}")
    _check_alike(a, b)
    if on == "task_vectors":
        if base is None:
            raise ValueError("task vectors need a base, got None")
        arc = slerp_state_dicts(task_vector(base, a), task_vector(base, b), t, scope=scope)
        return apply_task_vector(base, arc)
    if scope == "tensor":
        return {name: slerp(weight, b[name], t) for name, weight in a.items()}
    (flat_a, spec), (flat_b, _) = flatten(a), flatten({name: b[name] for name in a})
    return unflatten(slerp(flat_a, flat_b, t), spec)


# -- one call for all --------------------------------------------------------------------------------------------------

METHODS = ("average", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp")


def merge(
    base: StateDict,
    models: Sequence[StateDict],
    method: str,
    *,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    density: float = 0.2,
    scope: str = "global",
    sign_method: str = "mass",
    normalize: str = "count",
    drop_rate: float = 0.9,
    rescale: bool = True,
    generator: torch.Generator | None = None,
    t: float = 0.5,
    on: str = "weights",
) -> dict[str, Tensor]:
    """Return one model out of several fine-tuned from one base.

    Args:
        method: "average"; "task_arithmetic", θ_0 + λ Σ w_t τ_t; "ties", θ_0 + λ times what `ties` merges;
            "dare_linear" and "dare_ties", the same with `dare` in place of trimming; "slerp" of two models.
        scale: λ of all but "average" and "slerp".
        weights: w_t, by default 1.
        density, scope, sign_method, normalize: of TIES; scope "global" trims over the whole model, "tensor" over each.
        drop_rate, rescale, generator: of DARE; the models draw one after the other.
        t, on: of SLERP, tensor by tensor.

    Raises:
        ValueError: unknown method or scope, no models, DARE without a generator, SLERP without two models, and what
            the single steps refuse.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    _check_scope(scope)
    if not models:
        raise ValueError("models must not be empty")
    if method == "average":
        return average(models)
    if method == "slerp":
        if len(models) != 2:
            raise ValueError(f"slerp merges exactly two models, got {len(models)}")
        return slerp_state_dicts(models[0], models[1], t, base, on)
    taus = [task_vector(base, model) for model in models]
    stacked = {name: torch.stack([tau[name] for tau in taus]) for name in base}
    if method.startswith("dare"):
        if generator is None:
            raise ValueError("DARE draws at random: pass a generator")
        _, spec = flatten(base)
        drawn = [unflatten(dare(flatten(tau)[0], drop_rate, generator, rescale)[0], spec) for tau in taus]
        stacked = {name: torch.stack([tau[name] for tau in drawn]) for name in base}
    if method in ("task_arithmetic", "dare_linear"):
        merged = {name: task_arithmetic(tau, weights) for name, tau in stacked.items()}
    else:
        if method == "ties":
            stacked = _trim_all(stacked, density, scope)
        merged = {name: _merge_signs(tau, weights, sign_method, normalize).merged for name, tau in stacked.items()}
    return apply_task_vector(base, merged, scale)


def _trim_all(stacked: dict[str, Tensor], density: float, scope: str) -> dict[str, Tensor]:
    """Trim the task vectors of every model, which lie along the first axis of every tensor."""
    if scope == "tensor":
        return {name: torch.stack([trim(tau, density) for tau in taus]) for name, taus in stacked.items()}
    count = len(next(iter(stacked.values())))
    lines = [flatten({name: taus[model] for name, taus in stacked.items()}) for model in range(count)]
    trimmed = [unflatten(trim(line, density), spec) for line, spec in lines]
    return {name: torch.stack([tau[name] for tau in trimmed]) for name in stacked}


# -- what stands in the way --------------------------------------------------------------------------------------------


def sign_conflict_rate(taus: Float[Tensor, "n d"]) -> float:
    """Return the share of entries with different signs, of those that are not 0 in two models or more.

    Raises:
        ValueError: no such entry.
    """
    signs = taus.sign()
    shared = (signs != 0).sum(dim=0) >= 2
    if not shared.any():
        raise ValueError("no entry is different from 0 in two models")
    conflict = (signs > 0).any(dim=0) & (signs < 0).any(dim=0)
    return float(conflict[shared].double().mean())


def cosine_matrix(taus: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Return the cosines of all pairs.

    Raises:
        ValueError: a task vector of zeros.
    """
    lengths = taus.norm(dim=1)
    if not (lengths > 0).all():
        raise ValueError("a vector of zeros has no direction")
    return taus @ taus.T / (lengths[:, None] * lengths)


def loss_plane(
    eval_fn: Callable[[dict[str, Tensor]], Tensor | float],
    base: StateDict,
    tau1: StateDict,
    tau2: StateDict,
    alphas: Float[Tensor, " A"],
    betas: Float[Tensor, " B"],
) -> Float[Tensor, "A B *values"]:
    """Return eval_fn(θ_0 + α τ_1 + β τ_2) for all α and β; it may give several values at once."""
    rows = []
    for alpha in alphas.tolist():
        moved = apply_task_vector(base, tau1, alpha)
        values = [torch.as_tensor(eval_fn(apply_task_vector(moved, tau2, beta))) for beta in betas.tolist()]
        rows.append(torch.stack(values))
    return torch.stack(rows)


def permute_channels(state: StateDict, layer: int, perm: Int[Tensor, " F"]) -> dict[str, Tensor]:
    """Return another address of the same function: the hidden channels of a SwiGLU in another order.

    Rows of gate_proj and up_proj and columns of down_proj move together.

    Raises:
        ValueError: no such layer, or no permutation of its channels.
    """
    names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    if not all(name in state for name in names):
        raise ValueError(f"the state dict has no feed-forward in layer {layer}")
    channels = len(state[names[0]])
    if not torch.equal(perm.sort().values, torch.arange(channels)):
        raise ValueError(f"perm must hold each of 0..{channels - 1} once, got {perm.tolist()}")
    gate, up, down = names
    return {**state, gate: state[gate][perm], up: state[up][perm], down: state[down][:, perm]}


def _weighted(
    taus: Float[Tensor, " n *shape"], weights: Sequence[float] | Float[Tensor, " n_weights"] | None
) -> Float[Tensor, " n *shape"]:
    if weights is None:
        return taus
    if len(weights) != len(taus):
        raise ValueError(f"weights must be one for each of {len(taus)} models, got {len(weights)}")
    factors = torch.as_tensor(weights, dtype=taus.dtype)
    return factors.view(-1, *[1] * (taus.ndim - 1)) * taus


def _check_alike(*states: StateDict) -> None:
    if not states or not states[0]:
        raise ValueError("models must not be empty")
    first = states[0]
    for state in states:
        if state.keys() != first.keys():
            raise ValueError(f"models must have the same names, but differ in {sorted(state.keys() ^ first.keys())}")
        for name, weight in state.items():
            if weight.shape != first[name].shape:
                raise ValueError(f"{name} must have one shape, got {tuple(first[name].shape)}, {tuple(weight.shape)}")
            if not weight.is_floating_point():
                raise ValueError(f"{name} must be floating point, got {weight.dtype}")


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")


# -- what the video shows ----------------------------------------------------------------------------------------------

TASKS = ("farm2", "sea2", "mood2")
FAR_TASKS = ("news", "longago")
TOY = ((3.0, -1.0, 0.2, 2.0), (-1.0, -2.0, 0.1, 2.5), (2.0, 2.5, -0.3, -4.0))
TOY_DENSITY = 0.75
CROP = 10
TIES_DENSITIES = (0.1, 0.2, 0.5)
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
DROP_RATES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
DRAWS = 5  # of DARE, for every loss
JITTER = 24  # draws of one output


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    density: float = option(0.2, "share of a task vector that TIES keeps", minimum=0.05, maximum=1)
    drop_rate: float = option(0.9, "share of a task vector that DARE drops", minimum=0, maximum=0.99)
    scale: float = option(1.0, "λ, the factor on the merged task vector", minimum=0, maximum=2)
    t: float = option(0.5, "how far SLERP goes from the first model to the second", minimum=0, maximum=1)
    n_tasks: int = option(3, "fine-tuned models to merge", minimum=2, maximum=3)
    finetune_steps: int = option(150, "optimizer steps of each", minimum=20, maximum=400)
    seed: int = option(0, "of the order of the texts, DARE's draws, shuffled channels", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Points:
    """Models in the plane of the first two task vectors, one a row, judged on the plane's texts."""

    name: tuple[str, ...]
    alpha: Float[Tensor, " P"]
    beta: Float[Tensor, " P"]
    loss_1: Float[Tensor, " P"]
    loss_2: Float[Tensor, " P"]
    residual: Float[Tensor, " P"]  # distance from the plane as a share of the distance from the base; 0 = in it


@dataclass(frozen=True, eq=False)
class Table:
    """Held-out nats per token, a model a row; DARE's is the mean of DRAWS draws."""

    name: tuple[str, ...]
    loss: Float[Tensor, "M n"]  # by task
    mean: Float[Tensor, " M"]
    spread: Float[Tensor, " M"]  # largest minus smallest mean of the draws


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. n tasks, each a dialect of the base's texts; losses are held-out nats per token.

    All weights of the model were fine-tuned and merged. Crops are the first 10 x 10 entries of one matrix. Trimming
    is over the whole model.
    """

    config: Config
    tasks: tuple[str, ...]
    num_params: int
    toy_raw: Float[Tensor, "3 4"]
    toy_trimmed: Float[Tensor, "3 4"]
    toy_mass_above: Float[Tensor, " 4"]  # sum of the trimmed entries above 0
    toy_mass_below: Float[Tensor, " 4"]
    toy_sum: Float[Tensor, " 4"]
    toy_sign: Float[Tensor, " 4"]
    toy_agree: Bool[Tensor, "3 4"]
    toy_merged: Float[Tensor, " 4"]
    toy_mean: Float[Tensor, " 4"]  # of the raw entries
    toy_density: float
    crop_matrix: str
    base_crop: Float[Tensor, "10 10"]
    expert_crop: Float[Tensor, "n 10 10"]
    tau_crop: Float[Tensor, "n 10 10"]
    trimmed_crop: Float[Tensor, "n 10 10"]
    sign_crop: Float[Tensor, "10 10"]
    agree_crop: Bool[Tensor, "n 10 10"]
    merged_crop: Float[Tensor, "10 10"]
    mean_crop: Float[Tensor, "10 10"]
    conflict_crop: Bool[Tensor, "10 10"]  # entries whose signs differ
    tau_hist_counts: Int[Tensor, "n bins"]
    tau_hist_edges: Float[Tensor, " edges"]
    conflict_rate: float
    conflict_rate_trimmed: float
    cosines: Float[Tensor, "n n"]
    norms: Float[Tensor, " n"]
    relative_norms: Float[Tensor, " n"]  # of τ, as a share of the base's
    median_change: Float[Tensor, " n"]  # half of all |τ| are smaller
    plane_alphas: Float[Tensor, " 21"]  # of both axes
    plane_loss_1: Float[Tensor, "21 21"]  # rows α, columns β
    plane_loss_2: Float[Tensor, "21 21"]
    plane_tokens: int  # predicted, of the task with fewer
    points: Points
    slerp_t: Float[Tensor, " 31"]
    slerp_a: Float[Tensor, " 2"]  # the first two task vectors in their own plane
    slerp_b: Float[Tensor, " 2"]
    slerp_arc: Float[Tensor, "31 2"]
    slerp_chord: Float[Tensor, "31 2"]
    slerp_point: Float[Tensor, " 2"]  # at config.t
    lerp_point: Float[Tensor, " 2"]
    slerp_norms: Float[Tensor, " 31"]
    lerp_norms: Float[Tensor, " 31"]
    omega_weights_deg: float  # angle of the two whole models
    omega_tau_deg: float
    slerp_fallbacks: int  # tensors of the two models so parallel that SLERP is LERP
    num_tensors: int
    slerp_lerp_max_abs_diff: float  # of all weights of the two models, tensor by tensor
    dare_crop: Float[Tensor, "10 10"]  # of the first task vector, dropped and rescaled
    dare_mask: Bool[Tensor, "10 10"]  # True = kept
    dare_factor: float
    dare_exact: float  # what the first task vector adds to one output for a real input
    dare_std: float  # of DARE's
    dare_band: Float[Tensor, " 2"]  # one standard deviation below and above
    dare_draws: Float[Tensor, " J"]
    dare_p_axis: Float[Tensor, " P"]
    dare_std_ratio: Float[Tensor, " P"]  # √(p / (1 - p))
    dare_loss: Float[Tensor, "P draws"]  # of the first model on its task
    dare_loss_mean: Float[Tensor, " P"]
    drop_only_loss: Float[Tensor, "P draws"]  # without rescaling
    drop_only_loss_mean: Float[Tensor, " P"]
    magnitude_loss: Float[Tensor, " P"]  # the smallest entries dropped in place of random ones
    scales: Float[Tensor, " S"]
    scale_loss: Float[Tensor, "S n"]  # of task arithmetic
    best_scale: float  # of these, by the mean on the very same texts
    table: Table
    entropy_floors: Float[Tensor, " n"]
    far_tasks: tuple[str, ...]  # two other dialects with new words and another syntax
    far_table: Table
    permuted_max_abs_diff_logits: float
    permuted_distance: float  # from the base, as a share of its norm
    channel_crop: Float[Tensor, "10 10"]  # first channels of a feed-forward
    channel_crop_permuted: Float[Tensor, "10 10"]
    channel_order: Int[Tensor, " 10"]  # where the permuted ones come from
    permuted_gap: dict[str, float]  # losses on the base's own texts: copies, other seeds, and their averages


def trace(config: Config) -> Trace:
    """Fine-tune the tiny LM on two or three dialects and merge the results in every way."""
    from internals_math import model_merging_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
