"""The tiny LM with experts in place of its feed-forward: trained with and without balance, and read.

Runs: "free" (no balancing), "aux" (Switch's loss), "bias" (loss-free: 2408.15664), and two models without experts:
"dense_active" with the width that one token uses, "dense_total" with the width of all experts together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internals_math import progress, tiny_lm
from internals_math.mixture_of_experts import (
    HELD_OUT,
    SENTENCE,
    Config,
    Labels,
    MoEOutput,
    dispatch_with_capacity,
    entropy,
    expert_capacity,
    expert_ffn,
    expert_load,
    load_balancing_loss,
    moe_forward,
    mutual_information,
    router_logit_grad,
    router_probs,
    top_k_gating,
    update_selection_bias,
)
from internals_math.next_token import next_token_loss
from internals_math.tiny_lm.datasets import KINDS
from internals_math.tiny_lm.layers import ModelConfig, lecun_normal
from internals_math.tiny_lm.training import OnStep
from internals_math.tiny_lm.vocabulary import (
    CAST,
    CHARACTER_ADJECTIVES,
    MARKS,
    OBJECT_ADJECTIVES,
    OBJECTS,
    PAD,
    PLACES,
    PREPOSITIONS,
    WORDS,
    id_of,
)

RUNS = ("free", "aux", "bias", "dense_active", "dense_total")
BIAS_SPEED = 0.005  # 2408.15664 takes 0.001 over many thousand steps; ours are a few hundred
HISTORY_EVERY = 10  # steps


class Experts(nn.Module):
    """N small SwiGLU networks and their router, in the layout of Hugging Face's Mixtral."""

    def __init__(self, config: ModelConfig, num_experts: int, expert_size: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.norm_topk_prob = top_k > 1  # a lone gate of 1 would give the router no gradient: Switch keeps it raw
        self.router = nn.Linear(config.hidden_size, num_experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * expert_size, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, config.hidden_size, expert_size))
        self.register_buffer("selection_bias", torch.zeros(num_experts))
        self.seen: MoEOutput | None = None  # what the last call decided

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Run every expert on every token and mask: at this size faster than sending tokens around."""
        logits, probs = router_probs(x, self.router.weight)
        bias = self.get_buffer("selection_bias")
        weights, indices = top_k_gating(probs, self.top_k, norm_topk_prob=self.norm_topk_prob, selection_bias=bias)
        gates = torch.zeros_like(probs).scatter(-1, indices, weights)  # (B, T, N)
        gate, up = torch.einsum("btd,nfd->btnf", x, self.gate_up_proj).chunk(2, dim=-1)
        hidden = nn.functional.silu(gate) * up * gates[..., None]
        output = torch.einsum("btnf,ndf->btd", hidden, self.down_proj)
        self.seen = MoEOutput(output, logits, probs, weights, indices, torch.zeros_like(indices, dtype=torch.bool))
        return output

    def sparse(self, x: Float[Tensor, "*batch D"], capacity: int | None = None) -> MoEOutput:
        """Return the same by sending each token to its experts only."""
        bias = self.get_buffer("selection_bias")
        return moe_forward(
            x,
            self.router.weight,
            self.gate_up_proj,
            self.down_proj,
            self.top_k,
            norm_topk_prob=self.norm_topk_prob,
            capacity=capacity,
            selection_bias=bias,
        )


def moe_lm(num_experts: int, expert_size: int, top_k: int, seed: int) -> tiny_lm.TinyLM:
    """Return a fresh tiny LM whose feed-forward layers are experts."""

    def init(name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator) -> Tensor:
        full_name = name if name.endswith(".weight") else f"{name}.weight"  # the experts' tensors are not in a Linear
        return lecun_normal(full_name, shape, config, generator)

    def experts(config: ModelConfig) -> Experts:
        return Experts(config, num_experts, expert_size, top_k)

    return tiny_lm.TinyLM(ModelConfig(intermediate_size=expert_size), init=init, seed=seed, feed_forward=experts)


def experts_of(model: tiny_lm.TinyLM) -> Iterator[Experts]:
    """Tell the expert layers of a model, first layer first."""
    for layer in model.model.layers:
        experts = layer.get_submodule("mlp")
        assert isinstance(experts, Experts)
        yield experts


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model and what happened on the way."""

    model: tiny_lm.TinyLM
    loss_history: Float[Tensor, " S"]  # training loss without the balance term, mean since the last record
    load_history: Float[Tensor, "L S N"] | None  # first record: before training
    eval_loss: float


def train_run(
    name: str,
    *,
    num_experts: int,
    expert_size: int,
    top_k: int,
    aux_loss_coef: float,
    steps: int,
    seed: int,
    learning_rate: float = 0.005,
    on_step: OnStep | None = None,
) -> Run:
    """Train one of RUNS; all of them see the same documents in the same order.

    Raises:
        ValueError: unknown run.
    """
    if name not in RUNS:
        raise ValueError(f"run must be one of {', '.join(RUNS)}, got {name!r}")
    if name.startswith("dense"):
        width = expert_size * (top_k if name == "dense_active" else num_experts)
        model = tiny_lm.TinyLM(ModelConfig(intermediate_size=width), seed=seed)
        layers: list[Experts] = []
    else:
        model = moe_lm(num_experts, expert_size, top_k, seed)
        layers = list(experts_of(model))
    coefficient = aux_loss_coef if name == "aux" else 0.0
    losses: list[float] = []
    loads: list[Tensor] = []  # (L, N) of every step's batch

    def loss_fn(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        loss = next_token_loss(model(ids), labels)
        losses.append(float(loss.detach()))
        words = ids != PAD
        if layers:
            loads.append(
                torch.stack([expert_load(_seen(experts).indices[words], num_experts) for experts in layers]).float()
            )
        if coefficient:
            balance = [load_balancing_loss(_seen(experts).logits[words], top_k) for experts in layers]
            loss = loss + coefficient * torch.stack(balance).mean()
        return loss

    def after_step(step: int) -> None:
        if name == "bias":
            for experts, load in zip(layers, loads[-1], strict=True):
                experts.selection_bias = update_selection_bias(
                    experts.get_buffer("selection_bias"), load.float(), BIAS_SPEED
                )

    recipe = tiny_lm.Recipe(steps=steps, muon_lr=0.0, adam_lr=learning_rate)
    tiny_lm.train(
        model, tiny_lm.training_corpus(), recipe, seed=seed, loss_fn=loss_fn, after_step=after_step, on_step=on_step
    )
    model.eval().requires_grad_(False)
    return Run(
        model=model,
        loss_history=_every(torch.tensor(losses)),
        load_history=_every(torch.stack(loads)).float().transpose(0, 1) if layers else None,
        eval_loss=tiny_lm.evaluate(model, tiny_lm.held_out(HELD_OUT)),
    )


def train_runs(config: Config) -> dict[str, Run]:
    """Train all of RUNS, and dense_active from a second seed, whose distance shows how much chance decides."""
    plan = {name: (name, config.seed) for name in RUNS} | {"dense_active_again": ("dense_active", config.seed + 1)}
    return {
        key: train_run(name, **{**settings(config), "seed": seed}, on_step=progress.on_step(f"training {key}"))
        for key, (name, seed) in plan.items()
    }


def settings(config: Config) -> dict[str, Any]:
    """Return what `train_run` wants to know of a Config."""
    return {
        "num_experts": config.num_experts,
        "expert_size": config.expert_size,
        "top_k": config.top_k,
        "aux_loss_coef": config.aux_loss_coef,
        "steps": config.train_steps,
        "seed": config.seed,
    }


def history_steps(steps: int) -> Int[Tensor, " S"]:
    """Return the step of each record of a run's history."""
    return torch.tensor([0, *range(HISTORY_EVERY, steps, HISTORY_EVERY), steps])


# -- reading a trained model -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reading:
    """What one expert layer did with a sentence of T tokens."""

    hidden: Float[Tensor, "T D"]
    router_weight: Float[Tensor, "N D"]
    routing: MoEOutput
    expert_outputs: Float[Tensor, "T k D"]
    output: Float[Tensor, "T D"]
    output_grad: Float[Tensor, "T D"]


def sentence() -> Int[Tensor, " ids"]:
    """Return the first SENTENCE tokens of the series story and the one that follows, which the last must predict."""
    return torch.tensor(tiny_lm.encode(tiny_lm.story())[: SENTENCE + 1])


def entropy_floor() -> float:
    """Return the floor of the text that the runs are judged on."""
    return tiny_lm.held_out(HELD_OUT).entropy_floor


def read_layer(model: tiny_lm.TinyLM, ids: Int[Tensor, " ids"], layer: int) -> Reading:
    """Run a text and return what one expert layer read, decided and wrote, and the loss's gradient on what it wrote.

    The last id is only a target: T is one less than the number of ids.
    """
    experts = list(experts_of(model))[layer]
    inputs, outputs = [], []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(args[0][0])
        outputs.append(output.detach().requires_grad_())
        return outputs[0]

    hook = experts.register_forward_hook(keep)
    try:
        loss = next_token_loss(model(ids[None]), ids[None])
    finally:
        hook.remove()
    grad = torch.autograd.grad(loss, outputs[0])[0][0, :-1]
    x = inputs[0][:-1]  # (T, D)
    with torch.no_grad():
        routing = experts.sparse(x)
        every = torch.stack(
            [expert_ffn(x, *weights) for weights in zip(experts.gate_up_proj, experts.down_proj, strict=True)], dim=1
        )  # (T, N, D)
    chosen = every.gather(1, routing.indices[..., None].expand(-1, -1, x.shape[1]))
    return Reading(x, experts.router.weight.detach(), routing, chosen, routing.output, grad)


def task_gradient(reading: Reading) -> Float[Tensor, "T N"]:
    """Return the gradient of the loss on the router's logits; a lone gate is raw (see `Experts`)."""
    routing = reading.routing
    raw = routing.probs if routing.indices.shape[1] == 1 else None
    return router_logit_grad(
        reading.output_grad, reading.expert_outputs, routing.weights, routing.indices, len(reading.router_weight),
        probs=raw,
    )  # fmt: skip


def telling_token(reading: Reading, router_grad: Float[Tensor, "T N"]) -> int:
    """Return the token, not <bos>, whose picture tells most about mixing and learning.

    The router gradient is large, the first two outputs are of a length and not in one line, and the gradient lies
    aslant to the line between them. One output spans no triangle: then the gradient alone decides.
    """
    telling = router_grad.abs().amax(dim=1)
    if reading.expert_outputs.shape[1] > 1:
        basis = _plane_basis(reading)
        first, second = (reading.expert_outputs[:, :2] @ basis.mT).unbind(dim=1)
        pull = (reading.output_grad[:, None] @ basis.mT)[:, 0]
        longest = torch.maximum(first.norm(dim=-1), second.norm(dim=-1))
        aslant = torch.nn.functional.cosine_similarity(pull, second - first)
        telling = telling * _cross(first, second).abs() / longest.square() * aslant.abs() * (1 - aslant**2).sqrt()
    return int(telling[1:].argmax()) + 1


def geometry(reading: Reading, router_grad: Float[Tensor, "T N"], shown: int) -> dict[str, Any]:
    """Return the experts' outputs (T, k, D) as points of a plane, and what a step against the gradient does there.

    Args:
        shown: token whose gradients have the full length and step.
    """
    experts, routing, grad = reading.expert_outputs, reading.routing, reading.output_grad
    top_k = experts.shape[1]
    basis = _plane_basis(reading)

    corners = experts @ basis.mT  # (T, k, 2)
    lost = 1 - corners.square().sum(dim=(1, 2)) / experts.square().sum(dim=(1, 2))
    bead = (routing.weights[..., None] * corners).sum(dim=1)
    flat_grad = (grad[:, None] @ basis.mT)[:, 0]
    line = corners[:, 1] - corners[:, 0] if top_k > 1 else corners[:, 0]
    gradient_scale = float(line[shown].norm() / flat_grad[shown].norm() / 2)
    push = -gradient_scale * flat_grad
    direction = line / line.norm(dim=-1, keepdim=True)
    shadow = (push * direction).sum(dim=-1, keepdim=True) * direction

    largest = float(router_grad[shown].abs().max())
    router_step = 1 / largest if largest > 0 else 0.0
    logits_after = routing.logits - router_step * router_grad
    chosen = logits_after.gather(1, routing.indices)
    # One expert has nothing to share with: its gate is its raw probability.
    weights_after = chosen.softmax(dim=-1) if top_k > 1 else logits_after.softmax(dim=-1).gather(1, routing.indices)
    return {
        "plane": torch.cat([corners, bead[:, None], (bead + push)[:, None]], dim=1),
        "plane_lost": lost.clamp(min=0),
        "shadow": bead + shadow,
        "gradient_scale": gradient_scale,
        "router_step": router_step,
        "logits_after": logits_after,
        "weights_after": weights_after,
        "output_after": (weights_after[..., None] * corners).sum(dim=1),
    }


def _plane_basis(reading: Reading) -> Float[Tensor, "T 2 D"]:
    """Return two unit vectors for each token: along its first output, and across it towards the second."""
    first = reading.expert_outputs[:, 0]
    # one arrow spans no plane
    second = reading.expert_outputs[:, 1] if reading.expert_outputs.shape[1] > 1 else -reading.output_grad
    x_axis = first / first.norm(dim=-1, keepdim=True)
    y_axis = second - (second * x_axis).sum(dim=-1, keepdim=True) * x_axis
    return torch.stack([x_axis, y_axis / y_axis.norm(dim=-1, keepdim=True)], dim=1)


def _cross(first: Float[Tensor, "T 2"], second: Float[Tensor, "T 2"]) -> Float[Tensor, " T"]:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def seats(routing: MoEOutput, config: Config) -> dict[str, Any]:
    """Return who gets a seat when every expert has few."""
    count, top_k = routing.indices.shape
    capacity = expert_capacity(count, config.num_experts, top_k, config.capacity_factor)
    slot, dropped = dispatch_with_capacity(routing.indices, config.num_experts, capacity)
    one_by_one = routing.indices.reshape(-1, 1)
    queue_slot = dispatch_with_capacity(one_by_one, config.num_experts, count * top_k)[0].view(count, top_k)
    seat_token, seat_taken = _seating(routing.indices, slot, config.num_experts, capacity)
    queue_token, queue_taken = _seating(routing.indices, queue_slot, config.num_experts, int(queue_slot.max()) + 1)
    return {
        "seat_token": seat_token,
        "seat_taken": seat_taken,
        "queue_slot": queue_slot,
        "queue_token": queue_token,
        "queue_taken": queue_taken,
        "num_assignments": count * top_k,
        "capacity": capacity,
        "arrival": torch.arange(count * top_k).view(top_k, count).T,
        "slot": slot,
        "dropped": dropped,
        "kept_weights": routing.weights.masked_fill(dropped, 0),
        "num_dropped": int(dropped.sum()),
        "num_bypassed": int(dropped.all(dim=1).sum()),
    }


def _seating(indices: Tensor, slot: Tensor, num_experts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return which token sits on every seat (rows, N), -1 for none, and 1 where one does."""
    token, choice = (slot >= 0).nonzero(as_tuple=True)
    seated = torch.full((rows, num_experts), -1)
    seated[slot[token, choice], indices[token, choice]] = token
    return seated, (seated >= 0).long()


@torch.no_grad()
def held_out_routing(
    model: tiny_lm.TinyLM, layer: int
) -> tuple[Int[Tensor, " W"], Int[Tensor, " W"], Int[Tensor, "W k"]]:
    """Return of every held-out token: its document, its id, and the experts it was sent to."""
    corpus = tiny_lm.held_out(HELD_OUT)
    model(corpus.ids)
    document, position = (corpus.ids != PAD).nonzero(as_tuple=True)
    indices = _seen(list(experts_of(model))[layer]).indices
    return document, corpus.ids[document, position], indices[document, position]


def dropped_shares(model: tiny_lm.TinyLM, layer: int, factors: Sequence[float]) -> Float[Tensor, " K"]:
    """Return the share of assignments that find no seat, at several capacities, over the held-out text at once."""
    experts = list(experts_of(model))[layer]
    _, _, indices = held_out_routing(model, layer)
    shares = []
    for factor in factors:
        capacity = expert_capacity(len(indices), experts.router.out_features, experts.top_k, factor)
        shares.append(dispatch_with_capacity(indices, experts.router.out_features, capacity)[1].double().mean())
    return torch.stack(shares).float()


CLASSES: dict[str, tuple[str, ...]] = {
    "names": (*CAST["farm"], *CAST["sea"]),
    "things": (*OBJECTS["farm"], *OBJECTS["sea"]),
    "places": PLACES,
    "adjectives": (*CHARACTER_ADJECTIVES, *OBJECT_ADJECTIVES, "happy", "sad", "silly", "dear"),
    "verbs": (
        "found", "lost", "took", "carried", "gave", "kept", "hid", "put", "left", "said", "sang", "thank", "go", "is",
        "was", "has",
    ),
    "prepositions": (*PREPOSITIONS, "to", "of"),
    "marks": (*MARKS, "<bos>", "<eos>"),
}  # fmt: skip
OTHER_WORDS = "small words"


def word_classes() -> Int[Tensor, " V"]:
    """Return the class of every token id; what is in none of CLASSES is a small word, the last class."""
    number = {word: row for row, members in enumerate(CLASSES.values()) for word in members}
    return torch.tensor([number.get(word, len(CLASSES)) for word in WORDS])


def who_does_what(model: tiny_lm.TinyLM, layer: int, seed: int) -> dict[str, Any]:
    """Return which experts read which words of the held-out text, and how many bits that tells."""
    document, ids, indices = held_out_routing(model, layer)
    first_words = tiny_lm.held_out(HELD_OUT).ids[:, 1]
    kind = torch.tensor([[id_of(word) for word in KINDS.values()].index(int(first)) for first in first_words])
    is_tale = (kind == list(KINDS).index("tale"))[document]
    sea_words = torch.zeros(len(WORDS), dtype=torch.bool)
    sea_words[[id_of(word) for word in (*CAST["sea"], *OBJECTS["sea"])]] = True
    at_sea = torch.zeros(len(first_words), dtype=torch.long).scatter_reduce(0, document, sea_words[ids].long(), "amax")
    classes = word_classes()[ids]
    num_experts = list(experts_of(model))[layer].router.out_features
    generator = torch.Generator().manual_seed(seed)

    def table(labels: Tensor, chosen: Tensor) -> Tensor:
        """Count how often each label met each expert."""
        pairs = labels[:, None] * num_experts + chosen
        return torch.bincount(pairs.flatten(), minlength=(int(labels.max()) + 1) * num_experts).view(-1, num_experts)

    everything = torch.ones_like(is_tale)
    labelings = {
        "word": (ids, everything),
        "word class": (classes, everything),
        "kind of text": (kind[document], everything),
        "farm or sea": (at_sea[document], is_tale),
    }
    bits, shuffled_bits, entropy_bits = [], [], []
    for labels, counted in labelings.values():
        real, chosen = labels[counted], indices[counted]
        shuffled = real[torch.randperm(len(real), generator=generator)]
        bits.append(mutual_information(table(real, chosen)) / math.log(2))
        shuffled_bits.append(mutual_information(table(shuffled, chosen)) / math.log(2))
        entropy_bits.append(entropy(torch.bincount(real) / len(real)) / math.log(2))
    shuffled_classes = classes[torch.randperm(len(classes), generator=generator)]
    by_class, by_shuffled = (table(labels, indices).float() for labels in (classes, shuffled_classes))
    return {
        "class_names": (*CLASSES, OTHER_WORDS),
        "class_by_expert": by_class / by_class.sum(dim=1, keepdim=True),
        "class_by_expert_shuffled": by_shuffled / by_shuffled.sum(dim=1, keepdim=True),
        "specialization_bits": float(bits[1]),
        "specialization_shuffled_bits": float(shuffled_bits[1]),
        "labels": Labels(
            name=tuple(labelings),
            bits=torch.stack(bits).float(),
            shuffled_bits=torch.stack(shuffled_bits).float(),
            entropy_bits=torch.stack(entropy_bits).float(),
        ),
    }


def _seen(experts: Experts) -> MoEOutput:
    assert experts.seen is not None
    return experts.seen


def _every(values: Tensor) -> Tensor:
    """Return the first value of a history, then the mean of every HISTORY_EVERY."""
    return torch.stack([values[0], *(chunk.mean(dim=0) for chunk in values.split(HISTORY_EVERY))])
