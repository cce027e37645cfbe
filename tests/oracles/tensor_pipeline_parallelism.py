"""Cut layers by torch, transformers and two real ranks; schedules by torch's pipelining and a longest path."""

from functools import cache
from types import SimpleNamespace

import networkx as nx
import torch
from torch import Tensor
from torch.distributed.pipelining import schedules as torchs
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding

from internals_math.pipeline_schedule import Op, schedule, simulate
from internals_math.rope import rope_cos_sin, rope_frequencies
from internals_math.tensor_parallel import (
    parallel_attention,
    parallel_mlp,
    parallel_mlp_backward,
    ring_all_reduce_states,
    split_columns,
    split_rows,
    vocab_parallel_cross_entropy,
)
from tests import gloo
from tests.gloo import tensor_parallel as real
from tests.oracles import Oracle, largest_difference, randn

RANKS = 2


def _mlp_weights(width: int = 6, hidden: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return randn(hidden, width, seed=1), randn(hidden, width, seed=2), randn(width, hidden, seed=3)


def _mlp(t: int) -> float:
    """Output, gradient of x, and all weight gradients put together from their shards."""
    x, grad_out = randn(2, 5, 6, seed=4), randn(2, 5, 6, seed=5)
    gate, up, down = _mlp_weights()
    leaves = [value.clone().requires_grad_() for value in (x, gate, up, down)]
    output = F.linear(F.silu(F.linear(leaves[0], leaves[1])) * F.linear(leaves[0], leaves[2]), leaves[3])
    theirs = torch.autograd.grad(output, leaves, grad_out)
    _, grad_x, shards = parallel_mlp_backward(x, grad_out, gate, up, down, t)
    ours = (grad_x, torch.cat(shards["gate"]), torch.cat(shards["up"]), torch.cat(shards["down"], dim=1))
    return max(
        largest_difference(parallel_mlp(x, gate, up, down, t).output, output.detach()),
        *(largest_difference(*pair) for pair in zip(ours, theirs, strict=True)),
    )


def _attention_weights(groups: int) -> tuple[Tensor, ...]:
    return randn(16, 12, seed=1), randn(4 * groups, 12, seed=2), randn(4 * groups, 12, seed=3), randn(12, 16, seed=4)


def _attention(t: int, groups: int, is_causal: bool) -> float:
    """4 heads of width 4 over `groups` key-value heads, gradients of x and of all weights included."""
    leaves = [value.requires_grad_() for value in (randn(2, 5, 12, seed=5), *_attention_weights(groups))]
    x, w_q, w_k, w_v, w_o = leaves
    query, key, value = (
        F.linear(x, w).unflatten(-1, (-1, 4)).transpose(1, 2).repeat_interleave(n, dim=1)
        for w, n in ((w_q, 1), (w_k, 4 // groups), (w_v, 4 // groups))
    )
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    theirs = F.linear(heads.transpose(1, 2).flatten(2), w_o)
    _, ours = parallel_attention(*leaves, 4, t, is_causal=is_causal)
    probe = randn(2, 5, 12, seed=6)
    gradients = zip(torch.autograd.grad(ours, leaves, probe), torch.autograd.grad(theirs, leaves, probe), strict=True)
    return max(largest_difference(ours.detach(), theirs.detach()), *(largest_difference(*pair) for pair in gradients))


def _llama_config() -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32
    )
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def _llama_mlp() -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = LlamaMLP(_llama_config()).double()
    x = randn(2, 5, 16, seed=1)
    weights = (linear.weight for linear in (theirs.gate_proj, theirs.up_proj, theirs.down_proj))
    return largest_difference(parallel_mlp(x, *weights, 4).output, theirs(x))


@torch.no_grad()
def _llama_attention() -> float:
    config = _llama_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = LlamaAttention(config, layer_idx=0).double()
    x, positions = randn(1, 5, 16, seed=1), torch.arange(5)
    embedding = LlamaRotaryEmbedding(config)(x, positions[None])
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    weights = (linear.weight for linear in (theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj))
    rotary = rope_cos_sin(positions, rope_frequencies(4, 10000.0))
    _, ours = parallel_attention(x, *weights, 4, 2, rotary=rotary)
    return largest_difference(ours, theirs(x, embedding, mask)[0])


def _cross_entropy(scale: float) -> float:
    """Losses and gradients of the logits."""
    logits = (scale * randn(7, 12, seed=1)).requires_grad_()
    targets = torch.arange(7) * 5 % 12
    theirs = F.cross_entropy(logits, targets, reduction="none")
    ours = vocab_parallel_cross_entropy(logits.chunk(4, dim=-1), targets)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    return max(largest_difference(ours.detach(), theirs.detach()), largest_difference(*gradients))


def _ring() -> float:
    chunks = randn(4, 4, 3, seed=1)
    states = ring_all_reduce_states(chunks).states
    return largest_difference(states[-1], chunks.sum(dim=0).expand(4, 4, 3))


# -- two real ranks ----------------------------------------------------------------------------------------------------


@cache
def _real() -> list[dict[str, Tensor]]:
    return gloo.run("tests.gloo.tensor_parallel:run", ranks=RANKS)


@cache
def _unsplit() -> dict[str, Tensor]:
    """The same layer and loss in one piece, by torch alone."""
    weights = {name: weight.requires_grad_() for name, weight in real.weights().items()}
    x = real.x().requires_grad_()
    query, key, value = (
        F.linear(x, weights[name]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for name, heads in (("q", real.HEADS), ("k", real.KV_HEADS), ("v", real.KV_HEADS))
    )
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    attended = x + F.linear(heads.transpose(1, 2).flatten(2), weights["o"])
    hidden = F.silu(F.linear(attended, weights["gate"])) * F.linear(attended, weights["up"])
    output = attended + F.linear(hidden, weights["down"])
    logits = F.linear(output, weights["head"])
    loss = F.cross_entropy(logits.flatten(0, 1), real.targets().flatten(), reduction="none").view(x.shape[:2])
    loss.mean().backward()
    found = {name: weight.grad for name, weight in weights.items()}
    return found | {"output": output.detach(), "loss": loss.detach(), "grad_x": x.grad}


def _forward() -> float:
    names = ("output", "loss")
    return max(largest_difference(rank[name], _unsplit()[name]) for rank in _real() for name in names)


def _backward() -> float:
    """Every rank holds the whole gradient of x and its shard of every weight's gradient."""
    worst = max(largest_difference(rank["grad_x"], _unsplit()["grad_x"]) for rank in _real())
    for name in real.SHAPES:
        cut = (split_rows if name in real.CUT_BY_ROWS else split_columns)(_unsplit()[name], RANKS)
        worst = max(worst, *(largest_difference(rank[name], ours) for rank, ours in zip(_real(), cut, strict=True)))
    return worst


def _exchanges() -> float:
    """Two all-reduces in each direction for a layer."""
    return max(largest_difference(rank["all_reduces"], torch.tensor([2, 2])) for rank in _real())


def _torch_modules() -> float:
    gate, up, down = (real.weights()[name] for name in ("gate", "up", "down"))
    _, grad_x, shards = parallel_mlp_backward(real.x(), real.x(), gate, up, down, RANKS)
    output = parallel_mlp(real.x(), gate, up, down, RANKS).output
    return max(
        max(
            largest_difference(output, theirs["torch output"]),
            largest_difference(grad_x, theirs["torch grad_x"]),
            *(largest_difference(shards[name][rank], theirs[f"torch {name}"]) for name in shards),
        )
        for rank, theirs in enumerate(_real())
    )


# -- schedules ---------------------------------------------------------------------------------------------------------

CASES = [("gpipe", p, m, 1) for p, m in ((2, 6), (4, 4), (4, 8))]
CASES += [("1f1b", p, m, 1) for p, m in ((2, 6), (4, 2), (4, 8), (8, 32))]
CASES += [("interleaved", p, m, v) for p, m, v in ((4, 8, 2), (4, 4, 4), (2, 6, 2), (4, 16, 4), (8, 32, 2))]


def _plain(orders) -> list[list[tuple[str, int, int]]]:
    """Return torch's orders without waiting and reduction."""
    letters = {torchs._ComputationType.FORWARD: "F", torchs._ComputationType.FULL_BACKWARD: "B"}
    return [
        [(letters[a.computation_type], a.stage_index, a.microbatch_index) for a in actions
         if a is not None and a.computation_type in letters]
        for actions in orders
    ]  # fmt: skip


def _torch_order(kind: str, p: int, m: int, v: int) -> list[list[tuple[str, int, int]]]:
    if kind == "gpipe":
        orders = torchs.ScheduleGPipe._get_pipeline_order(SimpleNamespace(_num_stages=p, _n_microbatches=m))  # type: ignore[arg-type]
        return _plain([orders[rank] for rank in range(p)])
    if kind == "1f1b":
        warm_ups = [min(p - 1 - rank, m) for rank in range(p)]
        return _plain(
            torchs._get_1f1b_rank_ops(1, p, w, m - w, w, rank, lambda _, r=rank: r, lambda _, r=rank: r)
            for rank, w in enumerate(warm_ups)
        )
    orders = []
    for rank in range(p):
        stub = SimpleNamespace(
            n_local_stages=v, microbatches_per_round=p, pp_group_size=p, _n_microbatches=m, number_of_rounds=m // p
        )
        orders.append(torchs.ScheduleInterleaved1F1B._calculate_single_rank_operations(stub, rank))  # type: ignore[arg-type]
    return _plain(orders)


def _same_order(kind: str) -> float:
    """How many of the ranks' orders differ, over all cases."""
    differing = 0
    for case in CASES:
        if case[0] == kind:
            ours = [[(op.kind, op.stage, op.microbatch) for op in order] for order in schedule(*case)]
            differing += sum(a != b for a, b in zip(ours, _torch_order(*case), strict=True))
    return float(differing)


def _runs_dry() -> float:
    """Torch adds the messages to our orders and plays them; it raises if a rank waits forever."""
    left_out = 0
    for kind, p, m, v in CASES:
        kinds = {"F": torchs._ComputationType.FORWARD, "B": torchs._ComputationType.FULL_BACKWARD}
        orders = {
            rank: [torchs._Action(op.stage, kinds[op.kind], op.microbatch) for op in order]
            for rank, order in enumerate(schedule(kind, p, m, v))
        }
        with_messages = torchs._add_send_recv(orders, lambda stage, p=p: stage % p, p * v)
        played = torchs._simulate_comms_compute(with_messages, lambda stage, p=p: stage % p, p * v)
        done = sum(
            action is not None and action.computation_type in kinds.values() for a in played.values() for action in a
        )
        left_out += abs(done - 2 * p * v * m)
    return float(left_out)


def _longest_path() -> float:
    """The makespan is the longest chain of operations, by dependencies and by the order on a rank."""
    worst = 0.0
    for kind, p, m, v in CASES:
        orders, last = schedule(kind, p, m, v), p * v - 1
        graph = nx.DiGraph()
        for order in orders:
            for before, after in zip([None, *order], order, strict=False):
                graph.add_edge(before or "start", after, weight=_seconds(before))
                if after.kind == "B":
                    graph.add_edge(Op("F", after.stage, after.microbatch), after, weight=3)
                step = {"F": -1, "B": 1}[after.kind]
                if 0 <= after.stage + step <= last:
                    other = Op(after.kind, after.stage + step, after.microbatch)
                    graph.add_edge(other, after, weight=_seconds(other))
            graph.add_edge(order[-1], "end", weight=_seconds(order[-1]))
        line = simulate(orders, p * v, 3, 5)
        worst = max(worst, abs(line.makespan - nx.dag_longest_path_length(graph)))
    return worst


def _seconds(op: Op | None) -> int:
    return 0 if op is None else {"F": 3, "B": 5}[op.kind]


GLOO = "torch: gloo, two real ranks"
ROWS = (
    *(
        Oracle(f"feed-forward on {t}, both ways", lambda t=t: _mlp(t), 1e-12, "torch: linear, autograd")
        for t in (1, 2, 4)
    ),
    *(
        Oracle(
            f"attention on {t} ({g} KV heads{', causal' if c else ''}), both ways",
            lambda t=t, g=g, c=c: _attention(t, g, c),
            1e-12,
            "torch: scaled_dot_product_attention, autograd",
        )
        for t, g, c in ((1, 4, True), (2, 4, True), (4, 4, False), (2, 2, True))
    ),
    Oracle("feed-forward on 4", _llama_mlp, 1e-12, "transformers: LlamaMLP"),
    Oracle("attention on 2, rotary", _llama_attention, 1e-6, "transformers: LlamaAttention (float32 tables)"),
    Oracle("loss over a cut vocabulary, both ways", lambda: _cross_entropy(1.0), 1e-12, "torch: cross_entropy"),
    Oracle("the same with logits of 10⁴", lambda: _cross_entropy(1e4), 1e-11, "torch: cross_entropy"),
    Oracle("ring all-reduce", _ring, 1e-12, "torch: sum over ranks"),
    Oracle("decoder layer and loss, forward", _forward, 1e-12, GLOO),
    Oracle("decoder layer and loss, backward", _backward, 1e-12, GLOO),
    Oracle("all-reduces of a layer, 2 + 2", _exchanges, 0, GLOO),
    Oracle("feed-forward, both ways", _torch_modules, 1e-12, "torch: ColwiseParallel, RowwiseParallel, two real ranks"),
    Oracle("order of GPipe", lambda: _same_order("gpipe"), 0, "torch: ScheduleGPipe"),
    Oracle("order of 1F1B", lambda: _same_order("1f1b"), 0, "torch: _get_1f1b_rank_ops"),
    Oracle("order of interleaved 1F1B", lambda: _same_order("interleaved"), 0, "torch: ScheduleInterleaved1F1B"),
    Oracle("operations that never run", _runs_dry, 0, "torch: _simulate_comms_compute"),
    Oracle("makespan", _longest_path, 0, "networkx: dag_longest_path_length"),
)
