"""Mixture of experts: a linear router scores every expert, the best k run, their outputs are averaged.

Notation: T = tokens, N = num_experts, k = top_k, D = hidden_size, F = width of one expert, h = router logits,
p = softmax(h), g = gates (the weights of the chosen experts), f = load, P = mean probability.
Sources: Shazeer et al. 2017 (1701.06538); GShard (2006.16668); Switch Transformers (2101.03961) eqs. 3-6; ST-MoE
(2202.08906) eq. 5; Mixtral (2401.04088) section 2; auxiliary-loss-free balancing (2408.15664); DeepSeek-V3
(2412.19437) section 2.1.2.
"""

import math
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.distributions import entropy
from internals_math.model_shapes import ModelShape, active_parameter_count, parameter_count, preset
from internals_math.tiny_lm import swiglu, tokens
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "MoEOutput", "Trace", "dispatch_with_capacity", "effective_experts", "entropy", "expert_capacity",
    "expert_combinations", "expert_ffn", "expert_load", "importance_cv_squared", "load_balancing_loss",
    "load_balancing_loss_grad", "moe_forward", "moe_parameter_count", "mutual_information", "router_logit_grad",
    "router_probs", "router_z_loss", "specialization", "top_k_gating", "trace", "update_selection_bias",
]  # fmt: skip


# -- routing -----------------------------------------------------------------------------------------------------------


def router_probs(
    x: Float[Tensor, "*batch D"], router_weight: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "*batch N"], Float[Tensor, "*batch N"]]:
    """Return the router's logits x · W_r^T and their softmax, at least in float32 (Switch, section 2.4).

    Raises:
        ValueError: tokens and router rows of different width.
    """
    if x.shape[-1] != router_weight.shape[-1]:
        raise ValueError(f"tokens have width {x.shape[-1]}, but the router's rows have {router_weight.shape[-1]}")
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = x.to(wide) @ router_weight.to(wide).T
    return logits, logits.softmax(dim=-1)


def top_k_gating(
    probs: Float[Tensor, "*batch N"],
    top_k: int,
    *,
    norm_topk_prob: bool = True,
    selection_bias: Float[Tensor, " N"] | None = None,
    scores: str = "softmax",
) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
    """Return the gates of the k best experts and their indices, best first; ties go to the lower index.

    Args:
        probs: rows of a softmax, or with scores="sigmoid" one number in (0, 1) for each expert (DeepSeek-V3).
        norm_topk_prob: rescale the k gates to sum 1 (Mixtral); False keeps the raw scores (Switch, OLMoE).
        selection_bias: added to the scores when experts are chosen, never to the gates (2408.15664, eq. 3).

    Raises:
        ValueError: top_k out of 1..N, a bias of another length, unknown scores, or scores that are not what they say.
    """
    num_experts = probs.shape[-1]
    _check_top_k(top_k, num_experts)
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores must be softmax or sigmoid, got {scores!r}")
    if scores == "softmax" and not ((probs.sum(dim=-1) - 1).abs() < 1e-4).all():
        raise ValueError(f"the rows of probs must sum to 1, got sums {probs.sum(dim=-1).flatten()[:3].tolist()} …")
    if scores == "sigmoid" and not ((probs > 0) & (probs < 1)).all():
        raise ValueError("sigmoid scores must be between 0 and 1")
    if selection_bias is not None and selection_bias.shape != (num_experts,):
        raise ValueError(f"selection_bias needs {num_experts} numbers, got shape {tuple(selection_bias.shape)}")
    ranking = probs if selection_bias is None else probs + selection_bias
    indices = ranking.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    gates = probs.gather(-1, indices)
    return (gates / gates.sum(dim=-1, keepdim=True) if norm_topk_prob else gates), indices


def expert_ffn(
    x: Float[Tensor, "*batch D"], gate_up_proj: Float[Tensor, "F2 D"], down_proj: Float[Tensor, "D F"]
) -> Float[Tensor, "*batch D"]:
    """Return one expert's SwiGLU; gate_up_proj holds the F gate rows first, then the F up rows.

    Raises:
        ValueError: an odd number of rows, or widths that do not fit.
    """
    _check_expert(x, gate_up_proj, down_proj)
    w_gate, w_up = gate_up_proj.chunk(2, dim=0)
    return swiglu(x, w_gate, w_up, down_proj)


@dataclass(frozen=True, eq=False)
class MoEOutput:
    """What an MoE layer computed."""

    output: Float[Tensor, "*batch D"]
    logits: Float[Tensor, "*batch N"]
    probs: Float[Tensor, "*batch N"]
    weights: Float[Tensor, "*batch k"]  # gates as chosen; those of dropped assignments did not count
    indices: Int[Tensor, "*batch k"]
    dropped: Bool[Tensor, "*batch k"]


def moe_forward(
    x: Float[Tensor, "*batch D"],
    router_weight: Float[Tensor, "N D"],
    gate_up_proj: Float[Tensor, "N F2 D"],
    down_proj: Float[Tensor, "N D F"],
    top_k: int,
    *,
    norm_topk_prob: bool = True,
    capacity: int | None = None,
    selection_bias: Float[Tensor, " N"] | None = None,
) -> MoEOutput:
    """Return y_t = sum over the chosen experts of g_i E_i(x_t); each expert reads only the tokens sent to it.

    Args:
        capacity: seats of each expert; what overflows is dropped, in the order of `dispatch_with_capacity`.

    Raises:
        ValueError: as `router_probs`, `top_k_gating`, `expert_ffn`, or another number of experts than router rows.
    """
    for name, weight in (("gate_up_proj", gate_up_proj), ("down_proj", down_proj)):
        if weight.shape[0] != router_weight.shape[0]:
            raise ValueError(f"the router has {router_weight.shape[0]} rows, but {name} {weight.shape[0]} experts")
    _check_expert(x, gate_up_proj[0], down_proj[0])
    logits, probs = router_probs(x, router_weight)
    weights, indices = top_k_gating(probs, top_k, norm_topk_prob=norm_topk_prob, selection_bias=selection_bias)
    flat_x, flat_indices = x.reshape(-1, x.shape[-1]), indices.reshape(-1, top_k)  # (T, D), (T, k)
    flat_weights = weights.reshape(-1, top_k).to(x.dtype)
    dropped = torch.zeros_like(flat_indices, dtype=torch.bool)
    if capacity is not None:
        _, dropped = dispatch_with_capacity(flat_indices, router_weight.shape[0], capacity)
    output = torch.zeros_like(flat_x)
    for expert in range(router_weight.shape[0]):
        token, choice = ((flat_indices == expert) & ~dropped).nonzero(as_tuple=True)
        result = expert_ffn(flat_x[token], gate_up_proj[expert], down_proj[expert])
        output = output.index_add(0, token, flat_weights[token, choice, None] * result)
    return MoEOutput(output.view_as(x), logits, probs, weights, indices, dropped.view_as(indices))


# -- gradients and balance ---------------------------------------------------------------------------------------------


def router_logit_grad(
    grad_output: Float[Tensor, "T D"],
    expert_outputs: Float[Tensor, "T k D"],
    weights: Float[Tensor, "T k"],
    indices: Int[Tensor, "T k"],
    num_experts: int,
    *,
    probs: Float[Tensor, "T N"] | None = None,
) -> Float[Tensor, "T N"]:
    """Return the task's gradient on the router logits.

    Gates that sum to 1: dL/dh_i = g_i <dL/dy, E_i - y> for a chosen expert, exactly 0 for the others. An expert whose
    output lowers the loss more than the mixture does is scored higher next time. With k = 1 all of it is 0.

    Raw gates: dL/dh_i = p_i (<dL/dy, E_i> [i chosen] - <dL/dy, y>). They pass through the softmax over all experts, so
    that the score of an expert that did not run moves too.

    Args:
        probs: all probabilities of the router if the gates are raw (norm_topk_prob=False).

    Raises:
        ValueError: raw gates that are not the chosen probabilities.
    """
    mixture = (weights[..., None] * expert_outputs).sum(dim=1, keepdim=True)  # (T, 1, D)
    if probs is None:
        chosen = weights * ((expert_outputs - mixture) * grad_output[:, None]).sum(dim=-1)  # (T, k)
        return chosen.new_zeros(len(indices), num_experts).scatter(1, indices, chosen)
    if not torch.allclose(probs.gather(1, indices), weights, atol=1e-6):
        raise ValueError("raw gates must be the probabilities of the chosen experts; leave probs out if they sum to 1")
    gains = (expert_outputs * grad_output[:, None]).sum(dim=-1)  # (T, k)
    all_gains = torch.zeros_like(probs).scatter(1, indices, gains)
    return probs * (all_gains - (mixture * grad_output[:, None]).sum(dim=-1))


def expert_load(indices: Int[Tensor, "*batch k"], num_experts: int, *, per: str = "assignment") -> Float[Tensor, " N"]:
    """Return the share of all assignments that each expert received (float64).

    With per="token" the counts are divided by the number of tokens instead, so that they sum to k.

    Raises:
        ValueError: no assignments, unknown per, or an index out of range.
    """
    if per not in ("assignment", "token"):
        raise ValueError(f"per must be assignment or token, got {per!r}")
    if not indices.numel():
        raise ValueError("a load needs at least one assignment")
    if not 0 <= int(indices.min()) <= int(indices.max()) < num_experts:
        raise ValueError(f"indices must be in 0..{num_experts - 1}, got {int(indices.min())}..{int(indices.max())}")
    counts = torch.bincount(indices.flatten(), minlength=num_experts).double()
    return counts / (indices.numel() if per == "assignment" else indices[..., 0].numel())


def load_balancing_loss(logits: Float[Tensor, "*batch N"], top_k: int, *, per: str = "assignment") -> Float[Tensor, ""]:
    """Return N · sum_i f_i P_i without its coefficient (Switch, eqs. 4-6).

    f counts and has no gradient. The value is 1 where f or P is uniform, N where one expert takes everything, and it
    can fall below 1. With per="token", as in Hugging Face's Mixtral, it is k times larger.
    """
    load, probs = _load_and_probs(logits, top_k, per)
    return logits.shape[-1] * (load * probs.mean(dim=0)).sum()


def load_balancing_loss_grad(
    logits: Float[Tensor, "*batch N"], top_k: int, *, per: str = "assignment"
) -> Float[Tensor, "*batch N"]:
    """Return the gradient of `load_balancing_loss`: (N / T) p_j (f_j - sum_i f_i p_i), token by token."""
    load, probs = _load_and_probs(logits, top_k, per)
    own_average = (probs * load).sum(dim=-1, keepdim=True)
    return (logits.shape[-1] / len(probs) * probs * (load - own_average)).view_as(logits)


def router_z_loss(logits: Float[Tensor, "*batch N"]) -> Float[Tensor, ""]:
    """Return the mean of logsumexp(h)², which keeps router logits small (ST-MoE, eq. 5)."""
    return logits.logsumexp(dim=-1).square().mean()


def importance_cv_squared(gates: Float[Tensor, "*batch N"]) -> Float[Tensor, ""]:
    """Return variance / mean² of the experts' summed gates, 0 where all are alike (1701.06538, eqs. 6-7).

    Args:
        gates: one column for each expert, 0 where it was not chosen.
    """
    importance = gates.reshape(-1, gates.shape[-1]).sum(dim=0)
    return importance.var(correction=0) / importance.mean().square()


def update_selection_bias(
    bias: Float[Tensor, " N"], load: Float[Tensor, " N"], update_speed: float
) -> Float[Tensor, " N"]:
    """Return b + u · sign(mean load - load): lift idle experts, lower busy ones (2408.15664, Algorithm 1)."""
    return bias + update_speed * (load.mean() - load).sign()


# -- capacity ----------------------------------------------------------------------------------------------------------


def expert_capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """Return the seats of each expert, ⌈factor · k · T / N⌉ (Switch, eq. 3, for k assignments a token).

    >>> expert_capacity(num_tokens=6, num_experts=3, top_k=1, capacity_factor=1.5)
    3

    Raises:
        ValueError: a count below 1, top_k above N, or a factor that is not above 0.
    """
    if num_tokens < 1 or num_experts < 1:
        raise ValueError(f"num_tokens and num_experts must be at least 1, got {num_tokens} and {num_experts}")
    _check_top_k(top_k, num_experts)
    if not 0 < capacity_factor < math.inf:
        raise ValueError(f"capacity_factor must be above 0, got {capacity_factor}")
    # 1.1 · 100 is 110.00000000000001 in binary: it must not cost one more seat.
    return math.ceil(capacity_factor * top_k * num_tokens / num_experts - 1e-9)


def dispatch_with_capacity(
    indices: Int[Tensor, "T k"], num_experts: int, capacity: int
) -> tuple[Int[Tensor, "T k"], Bool[Tensor, "T k"]]:
    """Give every assignment a seat of its expert: all first choices in token order, then all second ones (GShard).

    Returns:
        slot: 0 .. capacity - 1, or -1 where the expert was full.
        dropped: True there; such a token goes on without that expert.

    Raises:
        ValueError: capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    arrivals = indices.T.reshape(-1)  # (k T): choice by choice
    one_hot = torch.nn.functional.one_hot(arrivals, num_experts)
    place = (one_hot.cumsum(dim=0) - 1).gather(1, arrivals[:, None])[:, 0]
    place = place.view(indices.shape[1], indices.shape[0]).T
    dropped = place >= capacity
    return place.masked_fill(dropped, -1), dropped


# -- measures ----------------------------------------------------------------------------------------------------------


def effective_experts(load: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """Return exp of the load's entropy: N for an even load, 1 if one expert does everything.

    Raises:
        ValueError: a negative load, or one that is 0 everywhere.
    """
    total = load.sum(dim=-1, keepdim=True)
    if not (load >= 0).all() or not (total > 0).all():
        raise ValueError("load must be at least 0 and not 0 everywhere")
    return entropy(load / total).exp()


def specialization(probs: Float[Tensor, "*batch N"]) -> Float[Tensor, ""]:
    """Return H(mean p) - mean H(p) in nats: how much the choice of expert tells about the token, 0 .. ln N."""
    flat = probs.reshape(-1, probs.shape[-1])
    return entropy(flat.mean(dim=0)) - entropy(flat).mean()


def moe_parameter_count(shape: ModelShape) -> tuple[int, int]:
    """Return (all weights, weights that one token uses)."""
    return parameter_count(shape), active_parameter_count(shape)


def expert_combinations(num_experts: int, top_k: int) -> int:
    """Return in how many ways k of N experts can be chosen.

    Raises:
        ValueError: top_k out of 1..N.
    """
    _check_top_k(top_k, num_experts)
    return math.comb(num_experts, top_k)


def mutual_information(joint: Float[Tensor, "labels N"] | Int[Tensor, "labels N"]) -> Float[Tensor, ""]:
    """Return I(label; expert) in nats of a table of counts or shares."""
    share = joint.double() / joint.sum()
    return entropy(share.sum(dim=0)) + entropy(share.sum(dim=1)) - entropy(share.flatten())


def _load_and_probs(logits: Tensor, top_k: int, per: str) -> tuple[Tensor, Tensor]:
    """Return f (N,) and p (T, N); f is a count, so it carries no gradient."""
    probs = logits.reshape(-1, logits.shape[-1]).softmax(dim=-1)
    _, indices = top_k_gating(probs, top_k)
    return expert_load(indices, logits.shape[-1], per=per).to(probs.dtype), probs


def _check_top_k(top_k: int, num_experts: int) -> None:
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be in 1..{num_experts} (the number of experts), got {top_k}")


def _check_expert(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> None:
    rows, width = gate_up_proj.shape
    if rows % 2:
        raise ValueError(f"gate_up_proj needs an even number of rows, gate and up half, got {rows}")
    if down_proj.shape != (width, rows // 2):
        raise ValueError(
            f"down_proj must be ({width}, {rows // 2}) for this gate_up_proj, got {tuple(down_proj.shape)}"
        )
    if x.shape[-1] != width:
        raise ValueError(f"tokens have width {x.shape[-1]}, but the experts {width}")


# -- what the video shows ----------------------------------------------------------------------------------------------

SENTENCE = 12  # tokens of the series story, <bos> counted
HELD_OUT = 300  # documents
CAPACITY_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SHOWN_PRESETS = ("mixtral-8x7b", "olmoe-1b-7b", "qwen3-30b-a3b", "mistral-7b")


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    num_experts: int = option(8, "experts in each layer", minimum=4, maximum=16)
    top_k: int = option(2, "experts that run for each token", minimum=1, maximum=4)
    expert_size: int = option(16, "hidden width of one expert", minimum=8, maximum=64)
    aux_loss_coef: float = option(0.01, "weight of the balance loss", minimum=0, maximum=1)
    capacity_factor: float = option(1.0, "seats of an expert, in shares of an even load", minimum=0.5, maximum=2)
    # The load of the middle layer drifts furthest apart without balance.
    layer: int = option(1, "layer to show", minimum=0, maximum=2)
    train_steps: int = option(300, "optimizer steps of each training run", minimum=50, maximum=600)
    seed: int = option(0, "of weights and data order", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class ModelSizes:
    """Weights owned and weights that one token uses; the tiny MoE first, a dense model last."""

    name: tuple[str, ...]
    total: Int[Tensor, " R"]
    active: Int[Tensor, " R"]
    active_share: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Labels:
    """How many bits about a token its expert tells, for several ways to label tokens."""

    name: tuple[str, ...]
    bits: Float[Tensor, " M"]
    shuffled_bits: Float[Tensor, " M"]  # the same after shuffling the labels: what chance alone gives
    entropy_bits: Float[Tensor, " M"]  # of the label itself: the most that could be told


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws: one layer of the MoE trained with the balance loss, and five training runs.

    With top_k = 1 the gates are raw (Switch), else they sum to 1 (Mixtral).

    T tokens of the series story, N experts, k chosen, D wide, S records of a training run, C classes of words.
    Runs: free = no balancing, aux = with the balance loss, bias = loss-free balancing.
    """

    config: Config
    tokens: tuple[str, ...]  # T
    expert_names: tuple[str, ...]  # N: letters
    shown_token: int  # see `experiment.telling_token`
    hidden: Float[Tensor, "T D"]  # what the router and the experts read
    router_weight: Float[Tensor, "N D"]
    products: Float[Tensor, "N D"]  # of the shown token with each router row; a row sums to a logit
    logits: Float[Tensor, "T N"]
    probs: Float[Tensor, "T N"]
    gates: Float[Tensor, "T N"]  # 0 = not chosen
    weights: Float[Tensor, "T k"]  # the same, best first
    indices: Int[Tensor, "T k"]
    kept_probability: Float[Tensor, " T"]  # of the chosen experts together, before their gates are rescaled
    mix_gates: Float[Tensor, "k+1 k"]  # of the shown token: each chosen expert alone, then as it is
    expert_outputs: Float[Tensor, "T k D"]
    output: Float[Tensor, "T D"]
    output_grad: Float[Tensor, "T D"]  # of the mean next-token loss of these T tokens
    plane: Float[Tensor, "T P 2"]  # P = k + 2: the experts' outputs, y, and y - gradient_scale · gradient
    plane_lost: Float[Tensor, " T"]  # share of the outputs' squared length outside the plane; 0 for k <= 2
    shadow: Float[Tensor, "T 2"]  # of that last point on the line through the first two outputs
    gradient_scale: float  # drawing length of a gradient: that of the shown token is half as long as the line
    router_grad_task: Float[Tensor, "T N"]
    router_grad_aux: Float[Tensor, "T N"]  # of aux_loss_coef times the balance loss of these tokens
    router_step: float  # logits_after = logits - router_step · router_grad_task; the shown token's change by up to 1
    logits_after: Float[Tensor, "T N"]
    weights_after: Float[Tensor, "T k"]  # of the same experts
    output_after: Float[Tensor, "T 2"]  # y after that step, in the plane
    capacity: int
    arrival: Int[Tensor, "T k"]  # order in which assignments ask for a seat
    slot: Int[Tensor, "T k"]  # -1 = dropped
    dropped: Bool[Tensor, "T k"]
    kept_weights: Float[Tensor, "T k"]  # 0 where dropped
    seat_token: Int[Tensor, "seats N"]  # who sits where, -1 = nobody
    seat_taken: Int[Tensor, "seats N"]  # 1 = taken
    queue_slot: Int[Tensor, "T k"]  # the same if every expert had seats for all: word after word, both choices
    queue_token: Int[Tensor, "places N"]
    queue_taken: Int[Tensor, "places N"]
    num_assignments: int
    num_dropped: int  # assignments
    num_bypassed: int  # tokens that lost all of them
    capacity_factors: Float[Tensor, " K"]
    dropped_share_free: Float[Tensor, " K"]  # of all assignments of the held-out text in this layer
    dropped_share_aux: Float[Tensor, " K"]
    dropped_share_bias: Float[Tensor, " K"]
    even_load: float  # 1 / N
    history_steps: Int[Tensor, " S"]  # 0 = before training; else the mean of the steps since the last record
    load_history_free: Float[Tensor, "S N"]  # share of assignments in this layer
    load_history_aux: Float[Tensor, "S N"]
    load_history_bias: Float[Tensor, "S N"]
    effective_history_free: Float[Tensor, " S"]
    effective_history_aux: Float[Tensor, " S"]
    effective_history_bias: Float[Tensor, " S"]
    loss_history_free: Float[Tensor, " S"]  # nats per token in training, balance loss not counted
    loss_history_aux: Float[Tensor, " S"]
    loss_history_bias: Float[Tensor, " S"]
    class_names: tuple[str, ...]
    class_by_expert: Float[Tensor, "C N"]  # rows sum to 1; held-out text
    class_by_expert_shuffled: Float[Tensor, "C N"]
    specialization_bits: float  # I(word class; expert)
    specialization_shuffled_bits: float
    labels: Labels
    eval_loss: dict[str, float]  # held-out nats per token: free, aux, bias, dense_active, dense_total
    loss_seed_spread: float  # distance of two seeds of dense_active: a smaller difference means nothing
    entropy_floor: float
    counts: ModelSizes


def trace(config: Config) -> Trace:
    """Train the five models (about 90 s on one core) and read one layer of the balanced one."""
    from internals_math import mixture_of_experts_experiment as experiment  # it is built on the functions above

    runs = experiment.train_runs(config)
    reading = experiment.read_layer(runs["aux"].model, experiment.sentence(), config.layer)
    routing = reading.routing
    task = experiment.task_gradient(reading)
    shown = experiment.telling_token(reading, task)
    histories: dict[str, Any] = {}
    for name in ("free", "aux", "bias"):
        load = runs[name].load_history
        assert load is not None
        histories[f"load_history_{name}"] = load[config.layer]
        histories[f"effective_history_{name}"] = effective_experts(load[config.layer])
        histories[f"loss_history_{name}"] = runs[name].loss_history
        histories[f"dropped_share_{name}"] = experiment.dropped_shares(runs[name].model, config.layer, CAPACITY_FACTORS)
    return Trace(
        config=config,
        tokens=tokens(experiment.sentence()[:-1]),
        expert_names=tuple(ascii_uppercase[: config.num_experts]),
        shown_token=shown,
        hidden=reading.hidden,
        router_weight=reading.router_weight,
        products=reading.hidden[shown] * reading.router_weight,
        logits=routing.logits,
        probs=routing.probs,
        gates=torch.zeros_like(routing.probs).scatter(1, routing.indices, routing.weights),
        weights=routing.weights,
        indices=routing.indices,
        kept_probability=routing.probs.gather(1, routing.indices).sum(dim=1),
        mix_gates=torch.cat([torch.eye(config.top_k), routing.weights[shown : shown + 1]]),
        expert_outputs=reading.expert_outputs,
        output=reading.output,
        output_grad=reading.output_grad,
        router_grad_task=task,
        router_grad_aux=config.aux_loss_coef * load_balancing_loss_grad(routing.logits, config.top_k),
        **experiment.geometry(reading, task, shown),
        **experiment.seats(routing, config),
        capacity_factors=torch.tensor(CAPACITY_FACTORS),
        even_load=1 / config.num_experts,
        history_steps=experiment.history_steps(config.train_steps),
        **histories,
        **experiment.who_does_what(runs["aux"].model, config.layer, config.seed),
        eval_loss={name: runs[name].eval_loss for name in experiment.RUNS},
        loss_seed_spread=abs(runs["dense_active"].eval_loss - runs["dense_active_again"].eval_loss),
        entropy_floor=experiment.entropy_floor(),
        counts=_counts(config),
    )


def tiny_shape(config: Config) -> ModelShape:
    """Return the shape of the tiny LM with experts."""
    return ModelShape(
        "tiny MoE", 3, 32, 4, 4, 8, config.expert_size, 112, tied=True,
        num_experts=config.num_experts, num_experts_per_tok=config.top_k,
    )  # fmt: skip


def _counts(config: Config) -> ModelSizes:
    shapes = [tiny_shape(config), *(preset(name) for name in SHOWN_PRESETS)]
    counts = torch.tensor([moe_parameter_count(shape) for shape in shapes])
    total, active = counts.unbind(dim=1)
    return ModelSizes(tuple(shape.name for shape in shapes), total, active, active / total)
