"""Tensor parallelism: one layer cut across ranks, so that each holds a part of every weight matrix.

Column parallel cuts the outputs of a linear layer: every rank has all of x and makes a slice of the result. Row
parallel cuts the inputs: every rank makes a full-size partial result, and an all-reduce adds them. A column-parallel
layer and a row-parallel one after it need one all-reduce in each direction.

Notation: t = ranks (tensor-parallel size), D = hidden_size, F = intermediate_size, V = vocab_size, H = query heads.
Weights are (out, in) as in nn.Linear: columns of the paper's A are rows here, so column parallel cuts axis 0.
Source: Shoeybi et al. 2019 (Megatron-LM), arXiv 1909.08053, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu

from internals_math.attention import causal_mask, multi_head_attention
from internals_math.collectives import replay, ring_all_reduce

# -- cutting and adding ------------------------------------------------------------------------------------------------


def split_columns(weight: Float[Tensor, "out in"], t: int) -> list[Tensor]:
    """Cut the outputs of a linear layer: rank i gets the i-th block of rows of the (out, in) weight.

    Raises:
        ValueError: t below 1, or outputs that t does not divide.
    """
    return _split(weight, t, dim=0, name="outputs")


def split_rows(weight: Float[Tensor, "out in"], t: int) -> list[Tensor]:
    """Cut the inputs of a linear layer: rank i gets the i-th block of columns of the (out, in) weight.

    Raises:
        ValueError: t below 1, or inputs that t does not divide.
    """
    return _split(weight, t, dim=1, name="inputs")


def _split(weight: Tensor, t: int, dim: int, name: str) -> list[Tensor]:
    if t < 1 or weight.shape[dim] % t:
        raise ValueError(f"the {name} of the layer ({weight.shape[dim]}) must be divisible by t >= 1, got t {t}")
    return list(weight.chunk(t, dim=dim))


def all_reduce(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum over ranks, added in the order of the ranks.

    Raises:
        ValueError: no parts.
    """
    if not parts:
        raise ValueError("all_reduce needs the part of at least one rank, got none")
    return reduce(torch.add, parts)


def column_parallel(x: Float[Tensor, "*batch in"], shards: Sequence[Tensor]) -> list[Tensor]:
    """Return each rank's slice of x Wᵀ, (*batch, out / t); side by side they are the whole. Nothing is sent."""
    return [x @ shard.T for shard in shards]


def row_parallel(x_shards: Sequence[Tensor], shards: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return each rank's full-size partial of x Wᵀ, (*batch, out), and their sum: one all-reduce.

    A bias is added once, to the sum.

    Raises:
        ValueError: not one input slice for each weight shard.
    """
    if len(x_shards) != len(shards):
        raise ValueError(f"each weight shard needs its slice of x, got {len(x_shards)} slices for {len(shards)} shards")
    partials = [x @ shard.T for x, shard in zip(x_shards, shards, strict=True)]
    return partials, all_reduce(partials)


# -- layers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ParallelMLP:
    """What the ranks of a SwiGLU layer compute."""

    partials: Float[Tensor, "t *batch D"]  # full size, but each only a summand
    output: Float[Tensor, "*batch D"]
    hidden_shards: list[Tensor]  # (*batch, F / t): each rank's slice of the hidden layer


def parallel_mlp(
    x: Float[Tensor, "*batch D"],
    w_gate: Float[Tensor, "F D"],
    w_up: Float[Tensor, "F D"],
    w_down: Float[Tensor, "D F"],
    t: int,
) -> ParallelMLP:
    """Run SwiGLU on t ranks: gate and up column parallel, the activation on each slice alone, down row parallel.

    Raises:
        ValueError: t below 1 or not a divisor of F.
    """
    gates = column_parallel(x, split_columns(w_gate, t))
    ups = column_parallel(x, split_columns(w_up, t))
    hidden = [silu(gate) * up for gate, up in zip(gates, ups, strict=True)]
    partials, output = row_parallel(hidden, split_rows(w_down, t))
    return ParallelMLP(torch.stack(partials), output, hidden)


def parallel_mlp_backward(
    x: Float[Tensor, "*batch D"],
    grad_out: Float[Tensor, "*batch D"],
    w_gate: Float[Tensor, "F D"],
    w_up: Float[Tensor, "F D"],
    w_down: Float[Tensor, "D F"],
    t: int,
) -> tuple[Float[Tensor, "t *batch D"], Float[Tensor, "*batch D"], dict[str, list[Tensor]]]:
    """Run the backward pass of `parallel_mlp`: (partial gradients of x, their sum, gradients of the ranks' shards).

    Every rank has the whole grad_out, and needs nothing else of the others until the partials of grad_x are added: the
    second all-reduce of the layer. The shards are those of "gate", "up" and "down", as they were cut.

    Raises:
        ValueError: as `parallel_mlp`.
    """
    partials: list[Tensor] = []
    shards: dict[str, list[Tensor]] = {"gate": [], "up": [], "down": []}
    cut = (split_columns(w_gate, t), split_columns(w_up, t), split_rows(w_down, t))
    for gate_weight, up_weight, down_weight in zip(*cut, strict=True):
        gate, up = x @ gate_weight.T, x @ up_weight.T
        sigmoid = torch.sigmoid(gate)
        grad_hidden = grad_out @ down_weight
        grad_up = grad_hidden * silu(gate)
        grad_gate = grad_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        partials.append(grad_gate @ gate_weight + grad_up @ up_weight)
        for name, grad, values in (("gate", grad_gate, x), ("up", grad_up, x), ("down", grad_out, silu(gate) * up)):
            shards[name].append(grad.flatten(0, -2).T @ values.flatten(0, -2))
    return torch.stack(partials), all_reduce(partials), shards


def parallel_attention(
    x: Float[Tensor, "B T D"],
    w_q: Float[Tensor, "HD D"],
    w_k: Float[Tensor, "GD D"],
    w_v: Float[Tensor, "GD D"],
    w_o: Float[Tensor, "D HD"],
    n_heads: int,
    t: int,
    *,
    is_causal: bool = True,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "t B T D"], Float[Tensor, "B T D"]]:
    """Run attention on t ranks, H/t heads each: (partials, output), where output is their sum.

    Queries, keys and values are column parallel, the output projection row parallel. Key-value heads are shared in
    groups if w_k has fewer rows than w_q.

    Raises:
        ValueError: query heads or key-value heads that t does not divide, or weights that do not fit the heads.
    """
    if n_heads < 1 or w_q.shape[0] % n_heads or w_k.shape[0] % (w_q.shape[0] // n_heads):
        raise ValueError(
            f"w_q must have {n_heads} heads, and w_k whole ones of the same width, got {w_q.shape[0]} and "
            f"{w_k.shape[0]} rows"
        )
    n_kv_heads = w_k.shape[0] // (w_q.shape[0] // n_heads)
    if t < 1 or n_heads % t or n_kv_heads % t:
        raise ValueError(f"query heads ({n_heads}) and key-value heads ({n_kv_heads}) must be divisible by t, got {t}")
    cut = (split_columns(w_q, t), split_columns(w_k, t), split_columns(w_v, t), split_rows(w_o, t))
    mask = causal_mask(x.shape[1], device=x.device) if is_causal else None
    partials = [
        multi_head_attention(x, q, k, v, o, n_heads // t, n_kv_heads // t, mask, rotary).output
        for q, k, v, o in zip(*cut, strict=True)
    ]
    return torch.stack(partials), all_reduce(partials)


def vocab_parallel_cross_entropy(
    logit_shards: Sequence[Tensor], targets: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return -ln p(target), in nats, from logits (*batch, V / t) that are cut along the vocabulary.

    Ranks exchange three numbers a token in place of V logits: maximum, sum of exponentials, logit of the target.

    Raises:
        ValueError: no shards, or a target out of the vocabulary.
    """
    vocab_size = sum(shard.shape[-1] for shard in logit_shards)
    if not logit_shards or ((targets < 0) | (targets >= vocab_size)).any():
        raise ValueError(f"targets must be in 0..{vocab_size - 1} over {len(logit_shards)} shards, got {targets}")
    maximum = reduce(torch.maximum, [shard.amax(dim=-1) for shard in logit_shards]).detach()  # cancels, gradient too
    sums = all_reduce([(shard - maximum[..., None]).exp().sum(dim=-1) for shard in logit_shards])
    owned, first = [], 0
    for shard in logit_shards:
        local = targets - first
        is_here = (local >= 0) & (local < shard.shape[-1])
        owned.append(shard.gather(-1, local.where(is_here, 0)[..., None])[..., 0].where(is_here, 0.0))
        first += shard.shape[-1]
    return sums.log() + maximum - all_reduce(owned)


# -- the ring that adds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RingTrace:
    """An all-reduce hop by hop."""

    states: Float[Tensor, "S t t n"]  # (state, rank, chunk, element), before the first step and after each
    sent_elements: Int[Tensor, " S"]  # by each rank until then


def ring_all_reduce_states(chunks: Float[Tensor, "t t n"]) -> RingTrace:
    """Replay the all-reduce (sum) of every rank's t chunks of n elements: 2 (t - 1) steps.

    Raises:
        ValueError: not as many chunks as ranks.
    """
    if chunks.shape[0] != chunks.shape[1]:
        raise ValueError(f"every rank needs one chunk for each rank, got {tuple(chunks.shape)}")
    flat = chunks.flatten(1)
    _, schedule = ring_all_reduce(flat, "sum")
    states = replay(schedule, flat).view(-1, *chunks.shape)
    sent = torch.arange(len(states)) * chunks.shape[2]
    return RingTrace(states, sent)
