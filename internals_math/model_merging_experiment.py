"""Experts of the tiny LM, merged: the plane of two task vectors, DARE's draws, an arc, another address."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.model_merging import (
    CROP,
    DRAWS,
    DROP_RATES,
    FAR_TASKS,
    JITTER,
    SCALES,
    TASKS,
    TIES_DENSITIES,
    TOY,
    TOY_DENSITY,
    Config,
    Points,
    Spec,
    StateDict,
    Table,
    Trace,
    apply_task_vector,
    average,
    cosine_matrix,
    dare,
    dare_output_std,
    flatten,
    lerp,
    loss_plane,
    merge,
    permute_channels,
    sign_conflict_rate,
    slerp,
    slerp_state_dicts,
    task_vector,
    ties,
    trim,
    unflatten,
)
from internals_math.tiny_lm.vocabulary import PAD

MATRIX = "model.layers.1.self_attn.q_proj.weight"
CHANNELS = "model.layers.1.mlp.gate_proj.weight"
HELD_OUT = 60  # documents of each task, about 2,800 predicted tokens
PLANE_TEXTS = 9  # of each task, about 500 predicted tokens
PLANE_ALPHAS = tuple(step / 10 for step in range(-5, 16))
BINS = 61
ARC = 31
TOKEN = 7  # the last word of the prompt in the series story, whose input is read


@dataclass(frozen=True, eq=False)
class Family:
    """A base and the experts that came from it."""

    tasks: tuple[str, ...]
    base: dict[str, Tensor]
    experts: list[dict[str, Tensor]]
    taus: Float[Tensor, "n d"]  # flattened task vectors
    spec: Spec

    def moved(self, tau: Float[Tensor, " d"]) -> dict[str, Tensor]:
        """Return the base moved along a flattened task vector."""
        return apply_task_vector(self.base, unflatten(tau, self.spec))


def train_experts(config: Config, tasks: tuple[str, ...]) -> Family:
    """Fine-tune the base on every task, with the same recipe and the same seed."""
    model = tiny_lm.load("base")
    base = {name: weight.detach() for name, weight in model.state_dict().items()}
    experts = []
    for task in tasks:
        tuned = tiny_lm.fine_tune(
            model, task, steps=config.finetune_steps, seed=config.seed, on_step=progress.on_step(f"an expert of {task}")
        )
        experts.append({name: weight.detach() for name, weight in tuned.state_dict().items()})
    lines = [flatten(task_vector(base, expert)) for expert in experts]
    return Family(tasks, base, experts, torch.stack([line for line, _ in lines]), lines[0][1])


def losses(state: StateDict, tasks: Sequence[str], documents: int = HELD_OUT) -> Float[Tensor, " n"]:
    """Return the held-out loss of these weights on every task."""
    model = tiny_lm.copy_of(tiny_lm.load("base"), state).requires_grad_(False)
    return torch.tensor([tiny_lm.evaluate(model, tiny_lm.held_out(documents, task)) for task in tasks])


def crop(matrix: Tensor) -> Tensor:
    """Return the shown corner of a matrix."""
    return matrix[..., :CROP, :CROP].clone()


# -- arrows and their conflicts ----------------------------------------------------------------------------------------


def toy() -> dict[str, Any]:
    """Return TIES on three models of four weights."""
    raw = torch.tensor(TOY)
    result = ties(raw, TOY_DENSITY)
    return {
        "toy_raw": raw,
        "toy_trimmed": result.trimmed,
        "toy_mass_above": result.trimmed.clamp(min=0).sum(dim=0),
        "toy_mass_below": result.trimmed.clamp(max=0).sum(dim=0),
        "toy_sum": result.trimmed.sum(dim=0),
        "toy_sign": result.sign,
        "toy_agree": result.agree_mask,
        "toy_merged": result.merged,
        "toy_mean": raw.mean(dim=0),
        "toy_density": TOY_DENSITY,
    }


def arrows(config: Config, family: Family) -> dict[str, Any]:
    """Return the task vectors, how they meet, and what TIES makes of them."""
    taus = family.taus
    result = ties(taus, config.density)

    def shown(lines: Tensor) -> Tensor:
        return torch.stack([crop(unflatten(line, family.spec)[MATRIX]) for line in lines])

    signs = shown(taus.sign())
    limit = float(taus.abs().quantile(0.995))
    counts = [torch.histogram(tau, bins=BINS, range=(-limit, limit)).hist for tau in taus]
    base_norm = flatten(family.base)[0].norm()
    return {
        "crop_matrix": tiny_lm.short_name(MATRIX),
        "base_crop": crop(family.base[MATRIX]),
        "expert_crop": torch.stack([crop(expert[MATRIX]) for expert in family.experts]),
        "tau_crop": shown(taus),
        "trimmed_crop": shown(result.trimmed),
        "sign_crop": shown(result.sign[None])[0],
        "agree_crop": shown(result.agree_mask),
        "merged_crop": shown(result.merged[None])[0],
        "mean_crop": shown(taus.mean(dim=0, keepdim=True))[0],
        "conflict_crop": (signs > 0).any(dim=0) & (signs < 0).any(dim=0),
        "tau_hist_counts": torch.stack(counts).long(),
        "tau_hist_edges": torch.linspace(-limit, limit, BINS + 1),
        "conflict_rate": sign_conflict_rate(taus),
        "conflict_rate_trimmed": sign_conflict_rate(result.trimmed),
        "cosines": cosine_matrix(taus),
        "norms": taus.norm(dim=1),
        "relative_norms": taus.norm(dim=1) / base_norm,
        "median_change": taus.abs().median(dim=1).values,
    }


# -- the plane of two --------------------------------------------------------------------------------------------------


def plane_judge(tasks: Sequence[str]) -> tuple[Callable[[StateDict], Float[Tensor, " 2"]], int]:
    """Return a function from weights to the losses of the first two tasks, and how many tokens each is judged on."""
    texts = [tiny_lm.held_out(PLANE_TEXTS, task) for task in tasks[:2]]
    ids = torch.cat([corpus.ids for corpus in texts])
    ids = ids[:, : int((ids != PAD).sum(dim=1).max())]
    counts = torch.tensor([int((corpus.lengths - 1).sum()) for corpus in texts])
    model = tiny_lm.copy_of(tiny_lm.load("base")).requires_grad_(False)

    def judge(state: StateDict) -> Float[Tensor, " 2"]:
        model.load_state_dict(dict(state))
        return tiny_lm.token_losses(model, ids).view(2, -1).sum(dim=1) / counts

    return judge, int(counts.min())


def plane(config: Config, family: Family) -> dict[str, Any]:
    """Return the losses of two tasks over the plane of their task vectors, and where models lie in it."""
    judge, tokens = plane_judge(family.tasks)
    first, second = (unflatten(tau, family.spec) for tau in family.taus[:2])
    axis = torch.tensor(PLANE_ALPHAS)
    done = 0

    def reported(state: StateDict) -> Tensor:
        nonlocal done
        done += 1
        progress.report("the plane of two task vectors", done, len(axis) ** 2)
        return judge(state)

    grid = loss_plane(reported, family.base, first, second, axis, axis)  # (A, B, 2)
    both = grid.sum(dim=-1)
    row, column = divmod(int(both.argmin()), len(axis))
    named = {
        "base": (0.0, 0.0),
        family.tasks[0]: (1.0, 0.0),
        family.tasks[1]: (0.0, 1.0),
        "average": (0.5, 0.5),
        "sum": (1.0, 1.0),
        "best of the grid": (PLANE_ALPHAS[row], PLANE_ALPHAS[column]),
    }
    places = torch.tensor(list(named.values()))
    states = [family.moved(a * family.taus[0] + b * family.taus[1]) for a, b in named.values()]
    merged = ties(family.taus[:2], config.density).merged
    shadow = torch.linalg.lstsq(family.taus[:2].T, merged[:, None]).solution[:, 0]
    away = (merged - shadow @ family.taus[:2]).norm() / merged.norm()
    shadow = config.scale * shadow
    judged = torch.stack([judge(state) for state in [*states, family.moved(config.scale * merged)]])
    return {
        "plane_alphas": axis,
        "plane_loss_1": grid[..., 0],
        "plane_loss_2": grid[..., 1],
        "plane_tokens": tokens,
        "points": Points(
            name=(*named, "TIES"),
            alpha=torch.cat([places[:, 0], shadow[:1]]),
            beta=torch.cat([places[:, 1], shadow[1:]]),
            loss_1=judged[:, 0],
            loss_2=judged[:, 1],
            residual=torch.cat([torch.zeros(len(named)), away[None]]),
        ),
    }


# -- arc and chord -----------------------------------------------------------------------------------------------------


def degrees(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> float:
    """Return the angle of two vectors; by the half-angle formula, which is exact for small angles too."""
    a, b = a.double() / a.double().norm(), b.double() / b.double().norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def arc_and_chord(config: Config, family: Family) -> dict[str, Any]:
    """Return SLERP of two task vectors in their own plane, and of the models they belong to."""
    first, second = family.taus[:2]
    models = family.experts[:2]
    angle = math.radians(degrees(first, second))
    a = torch.stack([first.norm(), torch.zeros(())])
    b = second.norm() * torch.tensor([math.cos(angle), math.sin(angle)])
    steps = torch.linspace(0, 1, ARC)
    arc = torch.stack([slerp(a, b, t) for t in steps.tolist()])
    chord = torch.stack([lerp(a, b, t) for t in steps.tolist()])
    parallel = [
        abs(float(cosine_matrix(torch.stack([models[0][name], models[1][name]]).flatten(1).double())[0, 1])) > 0.9995
        for name in family.base
    ]
    curved = flatten(slerp_state_dicts(models[0], models[1], config.t))[0]
    straight = lerp(flatten(models[0])[0], flatten(models[1])[0], config.t)
    return {
        "slerp_t": steps,
        "slerp_a": a,
        "slerp_b": b,
        "slerp_arc": arc,
        "slerp_chord": chord,
        "slerp_point": slerp(a, b, config.t),
        "lerp_point": lerp(a, b, config.t),
        "slerp_norms": arc.norm(dim=1),
        "lerp_norms": chord.norm(dim=1),
        "omega_weights_deg": degrees(flatten(models[0])[0], flatten(models[1])[0]),
        "omega_tau_deg": math.degrees(angle),
        "slerp_fallbacks": sum(parallel),
        "num_tensors": len(parallel),
        "slerp_lerp_max_abs_diff": float((curved - straight).abs().max()),
    }


# -- DARE --------------------------------------------------------------------------------------------------------------


def generators(config: Config) -> list[torch.Generator]:
    """Return DARE's sources of chance, the same ones at every call."""
    return [torch.Generator().manual_seed(DRAWS * config.seed + draw) for draw in range(DRAWS)]


@torch.no_grad()
def dropping(config: Config, family: Family) -> dict[str, Any]:
    """Return the first task vector with most entries dropped: a crop, one output over many draws, the loss."""
    task, tau = family.tasks[:1], family.taus[0]
    sparse, mask = (unflatten(line, family.spec)[MATRIX] for line in dare(tau, config.drop_rate, generators(config)[0]))
    matrix = unflatten(tau, family.spec)[MATRIX]
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: TOKEN + 1]])
    _, record = tiny_lm.load("base")(ids, record=("linear_inputs",))
    x = record["linear_inputs"][MATRIX][0, TOKEN]
    unit = int((matrix @ x).abs().argmax())
    jitter = torch.Generator().manual_seed(config.seed)
    draws = [float((dare(matrix, config.drop_rate, jitter)[0] @ x)[unit]) for _ in range(JITTER)]

    rescaled, dropped, largest = [], [], []
    for done, p in enumerate(DROP_RATES):
        for kept, rescale in ((rescaled, True), (dropped, False)):
            sparse_taus = [dare(tau, p, generator, rescale)[0] for generator in generators(config)]
            kept.append(torch.cat([losses(family.moved(line), task) for line in sparse_taus]))
        largest.append(losses(family.moved(trim(tau, 1 - p)), task))
        progress.report("dropping entries", done + 1, len(DROP_RATES))
    rates = torch.tensor(DROP_RATES)
    exact, std = (matrix @ x)[unit], dare_output_std(matrix, x, config.drop_rate)[unit]
    loss, drop_only = torch.stack(rescaled), torch.stack(dropped)
    return {
        "dare_crop": crop(sparse),
        "dare_mask": crop(mask),
        "dare_factor": 1 / (1 - config.drop_rate),
        "dare_exact": float(exact),
        "dare_std": float(std),
        "dare_band": torch.stack([exact - std, exact + std]),
        "dare_draws": torch.tensor(draws),
        "dare_p_axis": rates,
        "dare_std_ratio": (rates / (1 - rates)).sqrt(),
        "dare_loss": loss,
        "dare_loss_mean": loss.mean(dim=1),
        "drop_only_loss": drop_only,
        "drop_only_loss_mean": drop_only.mean(dim=1),
        "magnitude_loss": torch.cat(largest),
    }


# -- every way to merge ------------------------------------------------------------------------------------------------


def judge_all(ways: Mapping[str, Sequence[StateDict]], tasks: Sequence[str]) -> Table:
    """Return the losses of named models; where there are several draws of one, their mean."""
    rows, spreads = [], []
    for done, states in enumerate(ways.values()):
        found = torch.stack([losses(state, tasks) for state in states])  # (draws, n)
        rows.append(found.mean(dim=0))
        spreads.append(found.mean(dim=1).max() - found.mean(dim=1).min())
        progress.report("judging models", done + 1, len(ways))
    loss = torch.stack(rows)
    return Table(tuple(ways), loss, loss.mean(dim=1), torch.stack(spreads))


def percent(share: float) -> str:
    """Return 20 % for 0.2."""
    return f"{100 * share:.4g} %"


def every_method(config: Config, family: Family) -> dict[str, Any]:
    """Return the held-out losses of the base, the experts and all merged models."""
    tasks, base, experts = family.tasks, family.base, family.experts
    sums = [merge(base, experts, "task_arithmetic", scale=scale) for scale in SCALES]
    scale_loss = torch.stack([losses(state, tasks) for state in sums])
    best = int(scale_loss.mean(dim=1).argmin())
    ways: dict[str, Sequence[StateDict]] = {"base": [base]}
    ways |= {f"expert of {task}": [expert] for task, expert in zip(tasks, experts, strict=True)}
    ways["average"] = [merge(base, experts, "average")]
    ways[f"sum, λ = {config.scale:g}"] = [merge(base, experts, "task_arithmetic", scale=config.scale)]
    ways[f"sum, best λ of {len(SCALES)}: {SCALES[best]:g}"] = [sums[best]]
    for density in sorted({*TIES_DENSITIES, config.density}):
        ways[f"TIES, {percent(density)}"] = [merge(base, experts, "ties", density=density, scale=config.scale)]
    by_tensor = merge(base, experts, "ties", density=config.density, scope="tensor", scale=config.scale)
    ways[f"TIES, {percent(config.density)} of each tensor"] = [by_tensor]
    for name, method in (("DARE", "dare_linear"), ("DARE + TIES", "dare_ties")):
        ways[f"{name}, {percent(config.drop_rate)} dropped"] = [
            merge(base, experts, method, drop_rate=config.drop_rate, scale=config.scale, generator=source)
            for source in generators(config)
        ]
    for name, on in (("weights", "weights"), ("task vectors", "task_vectors")):
        ways[f"SLERP of two, {name}"] = [merge(base, experts[:2], "slerp", t=config.t, on=on)]
    return {
        "scales": torch.tensor(SCALES),
        "scale_loss": scale_loss,
        "best_scale": SCALES[best],
        "table": judge_all(ways, tasks),
        "entropy_floors": torch.tensor([tiny_lm.held_out(HELD_OUT, task).entropy_floor for task in tasks]),
    }


def far_apart(config: Config) -> dict[str, Any]:
    """Return what the average is worth when both tasks are far from the base."""
    family = train_experts(config, FAR_TASKS)
    ways: dict[str, Sequence[StateDict]] = {"base": [family.base]}
    ways |= {f"expert of {task}": [expert] for task, expert in zip(family.tasks, family.experts, strict=True)}
    ways["average"] = [average(family.experts)]
    return {"far_tasks": family.tasks, "far_table": judge_all(ways, family.tasks)}


# -- another address ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def another_address(config: Config, family: Family) -> dict[str, Any]:
    """Return the base with its channels shuffled: the same function, and what averages of strangers lose."""
    model, base = tiny_lm.load("base"), family.base
    channels = model.config.intermediate_size
    generator = torch.Generator().manual_seed(config.seed)
    shuffled, orders = base, []
    for layer in range(model.config.num_hidden_layers):
        orders.append(torch.randperm(channels, generator=generator))
        shuffled = permute_channels(shuffled, layer, orders[-1])
    other = {name: weight.detach() for name, weight in tiny_lm.load("base_seed1").state_dict().items()}
    ids = tiny_lm.held_out(8).ids
    both = tiny_lm.forward(model, base, ids) - tiny_lm.forward(model, shuffled, ids)
    origin, moved = flatten(base)[0], flatten(shuffled)[0]
    candidates = {
        "base": base,
        "shuffled": shuffled,
        "base + shuffled": average([base, shuffled]),
        "other seed": other,
        "base + other seed": average([base, other]),
    }
    layer = int(CHANNELS.split(".")[2])
    return {
        "permuted_max_abs_diff_logits": float(both.abs().max()),
        "permuted_distance": float((moved - origin).norm() / origin.norm()),
        "channel_crop": crop(base[CHANNELS]),
        "channel_crop_permuted": crop(shuffled[CHANNELS]),
        "channel_order": orders[layer][:CROP],
        "permuted_gap": {name: float(losses(state, ("base",))) for name, state in candidates.items()},
    }


def run(config: Config) -> Trace:
    """Train the experts and merge them in every way."""
    family = train_experts(config, TASKS[: config.n_tasks])
    return Trace(
        config=config,
        tasks=family.tasks,
        num_params=family.taus.shape[1],
        **toy(),
        **arrows(config, family),
        **plane(config, family),
        **arc_and_chord(config, family),
        **dropping(config, family),
        **every_method(config, family),
        **far_apart(config),
        **another_address(config, family),
    )
