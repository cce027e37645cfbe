"""The tiny LM's layers on several ranks, and its stack of layers run as a pipeline in 1F1B order."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu

from internals_math import tiny_lm
from internals_math.attention import causal_mask, multi_head_attention
from internals_math.next_token import IGNORE, next_token_loss
from internals_math.pipeline_schedule import Timeline, bubble_fraction, bubble_ratio, schedule, simulate
from internals_math.rope import rope_cos_sin
from internals_math.tensor_parallel import (
    parallel_attention,
    parallel_mlp,
    ring_all_reduce_states,
    row_parallel,
    split_columns,
    split_rows,
)
from internals_math.tensor_pipeline_parallelism import Blocks, Config

LAYER = 1
TOKENS, CHANNELS = 6, 8  # what is shown: a corner of everything
RING = 4  # ranks
DOCUMENTS = 2  # of a microbatch
HELD_OUT = 200


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What enters a layer's attention and feed-forward when the model reads the series story."""

    ids: Int[Tensor, "1 T"]
    attention: Float[Tensor, "1 T D"]
    mlp: Float[Tensor, "1 T D"]


@cache
def inputs() -> LayerInputs:
    """Run the model on the series story."""
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())])
    _, records = tiny_lm.load("base")(ids, record=("linear_inputs",))
    prefix = f"model.layers.{LAYER}"
    seen = records["linear_inputs"]
    return LayerInputs(ids, seen[f"{prefix}.self_attn.q_proj.weight"], seen[f"{prefix}.mlp.up_proj.weight"])


def weight(name: str, layer: int = LAYER) -> Tensor:
    """Return a matrix of a layer, such as "mlp.up_proj"."""
    return tiny_lm.load("base").state_dict()[f"model.layers.{layer}.{name}.weight"]


def corner(matrix: Tensor) -> Float[Tensor, "8 8"]:
    """Return the corner of a matrix that is shown."""
    return matrix[:CHANNELS, :CHANNELS]


def small_swiglu() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs (6, 8) and weights gate, up, down (8, 8) of a SwiGLU cut out of the real one."""
    gate, up, down = (corner(weight(f"mlp.{name}_proj")) for name in ("gate", "up", "down"))
    return inputs().mlp[0, :TOKENS, :CHANNELS], gate, up, down


def small_problem(config: Config) -> dict[str, Any]:
    """Return the small SwiGLU on t ranks, and what goes wrong if its gate is cut by rows first."""
    t = config.tensor_parallel
    x, gate, up, down = small_swiglu()
    cut = parallel_mlp(x, gate, up, down, t)
    reference = tiny_lm.swiglu(x, gate, up, down)
    halves, whole = row_parallel(list(x.chunk(2, dim=-1)), split_rows(gate, 2))
    gaps = silu(halves[0]) + silu(halves[1]) - silu(whole)
    widest = divmod(int(gaps.abs().argmax()), CHANNELS)
    points = torch.stack([halves[0][widest], halves[1][widest], whole[widest]])
    outputs = silu(points)
    axis = torch.linspace(-4, 4, 81)
    return {
        "tokens": tuple(tiny_lm.tokens(inputs().ids[0, :TOKENS])),
        "x": x,
        "w_gate_shards": torch.stack(split_columns(gate, t)),
        "w_up_shards": torch.stack(split_columns(up, t)),
        "w_down_shards": torch.stack(split_rows(down, t)),
        "hidden_shards": torch.stack(cut.hidden_shards),
        "partials": cut.partials,
        "output": cut.output,
        "output_reference": reference,
        "max_abs_diff": difference(cut.output, reference),
        "layer_weights": torch.stack([corner(weight("mlp.up_proj", layer)) for layer in range(3)]),
        "gate_partials": torch.stack(halves),
        "gap_inputs": points,
        "gap_outputs": outputs,
        "gap_sum": float(outputs[0] + outputs[1]),
        "nonlinear_gap": float(gaps.abs().max()),
        "silu_inputs": axis,
        "silu_outputs": silu(axis),
    }


def real_layers(config: Config) -> dict[str, Any]:
    """Return what the whole layer gives on 2 and 4 ranks, and the shown ranks' shares of the attention."""
    model, seen = tiny_lm.load("base"), inputs()
    rotary = rope_cos_sin(torch.arange(seen.ids.shape[1]), model.inv_freq())
    rotary = (rotary[0].float(), rotary[1].float())
    heads = model.config.num_attention_heads
    q, k, v, o = (weight(f"self_attn.{name}_proj") for name in ("q", "k", "v", "o"))
    gate, up, down = (weight(f"mlp.{name}_proj") for name in ("gate", "up", "down"))
    mask = causal_mask(seen.ids.shape[1])
    attended = multi_head_attention(seen.attention, q, k, v, o, heads, mask=mask, rotary=rotary).output
    fed = tiny_lm.swiglu(seen.mlp, gate, up, down)
    diffs, shares = {}, {}
    for t in (2, 4):
        mlp = parallel_mlp(seen.mlp, gate, up, down, t)
        partials, output = parallel_attention(seen.attention, q, k, v, o, heads, t, rotary=rotary)
        diffs |= {f"mlp t={t}": difference(mlp.output, fed), f"attention t={t}": difference(output, attended)}
        shares |= {f"mlp t={t}": distance(mlp.partials, fed), f"attention t={t}": distance(partials, attended)}
    partials, output = parallel_attention(seen.attention, q, k, v, o, heads, config.tensor_parallel, rotary=rotary)
    return {
        "head_partials": partials[:, 0, :TOKENS, :CHANNELS],
        "head_output": output[0, :TOKENS, :CHANNELS],
        "layer_diffs": diffs,
        "partial_shares": shares,
    }


def difference(ours: Tensor, reference: Tensor) -> float:
    """Return the largest absolute difference."""
    return float((ours - reference).abs().max())


def distance(partials: Tensor, answer: Tensor) -> float:
    """Return how far the ranks' partials are from the answer on average, relative to the answer's length."""
    return float(((partials - answer).flatten(1).norm(dim=1) / answer.norm()).mean())


def ring() -> dict[str, Any]:
    """Return the all-reduce of the last shown token's partial outputs on four ranks."""
    partials = parallel_mlp(*small_swiglu(), RING).partials
    moves = ring_all_reduce_states(partials[:, -1].reshape(RING, RING, -1))
    return {
        "ring_states": moves.states,
        "ring_sent": moves.sent_elements,
        "ring_factors": moves.sent_elements / CHANNELS,
    }


# -- schedules ---------------------------------------------------------------------------------------------------------


def timeline(config: Config, kind: str, microbatches: int) -> Timeline:
    """Return a schedule in the trace's units of time."""
    v = config.virtual_chunks if kind == "interleaved" else 1
    orders = schedule(kind, config.stages, microbatches, v)
    return simulate(orders, config.stages * v, 1 / v, config.backward_ratio / v)


def blocks(line: Timeline) -> Blocks:
    """Return a timeline as columns."""
    return Blocks(
        rank=torch.tensor([one.rank for one in line.ops]),
        kind=tuple(one.op.kind for one in line.ops),
        stage=torch.tensor([one.op.stage for one in line.ops]),
        chunk=torch.tensor([one.op.stage // line.num_ranks for one in line.ops]),
        microbatch=torch.tensor([one.op.microbatch for one in line.ops]),
        start=torch.tensor([float(one.start) for one in line.ops], dtype=torch.float64),
        end=torch.tensor([float(one.end) for one in line.ops], dtype=torch.float64),
    )


def schedules(config: Config) -> dict[str, Any]:
    """Return all schedules, their bubbles, and the activations that each rank keeps for them."""
    p, m, v = config.stages, config.microbatches, config.virtual_chunks
    lines = {kind: timeline(config, kind, m) for kind in ("gpipe", "1f1b", "interleaved")}
    few = (1, max(1, m // 2), m)
    ideal = m * (1 + config.backward_ratio)
    idle = {kind: torch.tensor(line.bubble, dtype=torch.float64) for kind, line in lines.items()}
    moments = {
        kind: sorted({float(moment) for one in line.ops for moment in (one.start, one.end)})
        for kind, line in lines.items()
    }
    peaks = {kind: torch.tensor(line.peak_in_flight) for kind, line in lines.items()}
    return {
        "filling_one": blocks(timeline(config, "gpipe", few[0])),
        "filling_some": blocks(timeline(config, "gpipe", few[1])),
        "filling_microbatches": torch.tensor(few),
        "filling_to_ideal": torch.tensor([bubble_ratio(p, some) for some in few], dtype=torch.float64),
        "filling_of_total": torch.tensor([bubble_fraction(p, some) for some in few], dtype=torch.float64),
        "gpipe": blocks(lines["gpipe"]),
        "one_f_one_b": blocks(lines["1f1b"]),
        "interleaved": blocks(lines["interleaved"]),
        "makespans": {kind: float(line.makespan) for kind, line in lines.items()},
        "ideal": ideal,
        "bubbles": idle,
        "bubble_to_ideal": {kind: float(times[0]) / ideal for kind, times in idle.items()},
        "bubble_of_total": {kind: float(idle[kind][0]) / float(line.makespan) for kind, line in lines.items()},
        "times": {kind: torch.tensor(when, dtype=torch.float64) for kind, when in moments.items()},
        "in_flight": {
            kind: torch.tensor([line.in_flight(when) for when in moments[kind]]).T.contiguous()
            for kind, line in lines.items()
        },
        "peak_in_flight": peaks,
        "peak_microbatches": {kind: peak / (v if kind == "interleaved" else 1) for kind, peak in peaks.items()},
    }


# -- the real model as a pipeline --------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One pipeline rank: some layers of the model, with weights of its own."""

    layers: list[int]
    is_first: bool
    is_last: bool
    weights: dict[str, Tensor]
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # input and output of microbatches in flight
    peak: int = 0

    def forward(self, model: tiny_lm.TinyLM, microbatch: int, entered: Tensor, labels: Tensor) -> Tensor:
        """Run the layers on token ids or on what the stage before sent; return what is sent on, or the summed loss.

        Input and output are kept until the backward pass of this microbatch.
        """
        others = set(range(model.config.num_hidden_layers)) - set(self.layers)
        given = {"skip_layers": others, "record": ("residual",)}
        if self.is_first:
            given["input_ids"] = entered
        else:
            given["inputs_embeds"] = entered = entered.detach().requires_grad_()
        logits, records = torch.func.functional_call(model, self.weights, (), given)
        output = records["residual"][-1]
        if self.is_last:
            output = next_token_loss(logits, labels, labels=labels, reduction="sum")
        self.kept[microbatch] = (entered, output)
        self.peak = max(self.peak, len(self.kept))
        return output.detach()

    def backward(self, microbatch: int, gradient: Tensor) -> Tensor | None:
        """Run backward from the gradient of the output; weights add up theirs, that of the input is returned."""
        entered, output = self.kept.pop(microbatch)
        output.backward(gradient)
        return entered.grad


@dataclass(frozen=True, eq=False)
class PipelineRun:
    """What a batch left behind."""

    loss: float
    gradients: dict[str, Tensor]
    peaks: list[int]  # microbatches whose activations each rank held at most


def run_pipeline(model: tiny_lm.TinyLM, microbatches: list[Tensor], kind: str = "1f1b") -> PipelineRun:
    """Run forward and backward of a batch, one layer of the model on each rank, in the order of a schedule.

    The loss is the mean over all predicted tokens of the batch, so a microbatch counts by its tokens. The tied
    embedding is on the first and on the last rank; its two gradients are added in the end.

    Args:
        microbatches: token ids (B, T) each, padded with <pad>.
    """
    last = model.config.num_hidden_layers - 1
    stages = [Stage([rank], rank == 0, rank == last, leaves(model)) for rank in range(last + 1)]
    labels = [ids.masked_fill(ids == tiny_lm.PAD, IGNORE) for ids in microbatches]
    share = 1 / sum(int((row[:, 1:] != IGNORE).sum()) for row in labels)
    line = simulate(schedule(kind, last + 1, len(microbatches)), last + 1, 1, 2)
    activations, gradients, loss = list(microbatches), [torch.tensor(share)] * len(microbatches), 0.0
    for op in (one.op for one in line.ops):
        stage, number = stages[op.stage], op.microbatch
        if op.kind == "F":
            activations[number] = stage.forward(model, number, activations[number], labels[number])
            if stage.is_last:
                loss += share * float(activations[number])
        else:
            arrived = stage.backward(number, gradients[number].to(activations[number].dtype))
            gradients[number] = gradients[number] if arrived is None else arrived
    added = {
        name: torch.stack([w.grad for stage in stages if (w := stage.weights[name]).grad is not None]).sum(dim=0)
        for name in stages[0].weights
    }
    return PipelineRun(loss, added, [stage.peak for stage in stages])


def leaves(model: tiny_lm.TinyLM) -> dict[str, Tensor]:
    """Return a trainable copy of the model's weights."""
    return {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}


def real_pipeline(config: Config) -> dict[str, Any]:
    """Return loss and gradients of the tiny LM in a pipeline beside those of the full batch."""
    model = tiny_lm.load("base")
    order = torch.randperm(HELD_OUT, generator=torch.Generator().manual_seed(config.seed))
    batch = tiny_lm.held_out(HELD_OUT).rows(order[: config.microbatches * DOCUMENTS].tolist())
    run = run_pipeline(model, list(batch.ids.split(DOCUMENTS)))
    weights = leaves(model)
    loss = next_token_loss(tiny_lm.forward(model, weights, batch.ids), batch.ids, labels=batch.labels())
    loss.backward()
    grads = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    count = model.config.num_hidden_layers
    return {
        "pipeline_loss": run.loss,
        "full_batch_loss": float(loss.detach()),
        "pipeline_grad_diff": max(difference(run.gradients[name], grad) for name, grad in grads.items()),
        "pipeline_grad_max": max(float(grad.abs().max()) for grad in grads.values()),
        "stored": torch.tensor(run.peaks),
        "stored_expected": torch.tensor([min(count - rank, config.microbatches) for rank in range(count)]),
    }
