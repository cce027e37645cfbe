"""FlashAttention: exact attention tile by tile, so that the N x N scores never exist in the big, slow memory.

Notation: N = sequence length, d = head_dim, B_r = block_q (rows of a query tile), B_c = block_k (rows of a key tile),
S = recorded steps, one for each visited tile. HBM is the big slow memory of a GPU, SRAM the small fast one; what a step
holds is in SRAM. m = running maximum of a row of scores, l = running sum of exp(score - m), L = m + log l (logsumexp).
Sources: Milakov and Gimelshein 2018 (online softmax, 1805.02867), algorithm 3; Dao et al. 2022 (FlashAttention,
2205.14135), algorithms 0, 1 and 4; Dao 2023 (FlashAttention-2, 2307.08691), algorithm 1. The inverse in its line 10 is
a misprint: the factor exp(m_old - m_new) is at most 1 and multiplies.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internals_math import tiny_lm
from internals_math.attention import attention_scores, causal_mask, masked_softmax
from internals_math.flash_attention_io import (
    IOCounter,
    attention_matmul_flops,
    block_sizes,
    extra_memory_elements,
    hbm_accesses_flash1,
    hbm_accesses_flash2,
    hbm_accesses_standard,
)
from internals_math.online_softmax import (
    OnlineSoftmaxTrace,
    merge_softmax_states,
    online_softmax,
    online_softmax_update,
    rescale_factor,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "BackwardStep", "Config", "FlashForward", "IOCounter", "OnlineSoftmaxTrace", "TileStep", "Trace",
    "attention_matmul_flops", "block_sizes", "extra_memory_elements", "flash_attention_backward",
    "flash_attention_forward", "hbm_accesses_flash1", "hbm_accesses_flash2", "hbm_accesses_standard",
    "merge_softmax_states", "online_softmax", "online_softmax_update", "standard_attention", "trace",
]  # fmt: skip


# -- attention ---------------------------------------------------------------------------------------------------------


def standard_attention(
    query: Float[Tensor, "*batch q d"],
    key: Float[Tensor, "*batch k d"],
    value: Float[Tensor, "*batch k dv"],
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*batch q dv"], Float[Tensor, "*batch q k"], Float[Tensor, "*batch q k"]]:
    """Return (output, scores before the mask, weights), both matrices stored whole (2205.14135, algorithm 0)."""
    scores = attention_scores(query, key, scale)
    mask = causal_mask(query.shape[-2], key.shape[-2], device=query.device) if causal else None
    weights = masked_softmax(scores, mask)
    return weights @ value, scores, weights


@dataclass(frozen=True, eq=False)
class TileStep:
    """What SRAM holds while one tile of scores is alive, and the elements that one head has moved until its end."""

    tile_i: int
    tile_j: int
    scores: Float[Tensor, "*batch r c"]  # -inf where masked
    weights: Float[Tensor, "*batch r c"]  # exp(score - m), not yet divided by l
    running_max: Float[Tensor, "*batch r"]
    running_sum: Float[Tensor, "*batch r"]
    rescale: Float[Tensor, "*batch r"]  # exp(m_old - m_new)
    kept_sum: Float[Tensor, "*batch r"]  # what it leaves of the old sum and accumulator
    kept_acc: Float[Tensor, "*batch r dv"]
    acc: Float[Tensor, "*batch r dv"]  # the output not yet divided by l
    reads: int
    writes: int


@dataclass(frozen=True, eq=False)
class FlashForward:
    """The output, and the one number a row that the backward pass needs besides it."""

    output: Float[Tensor, "*batch q dv"]
    logsumexp: Float[Tensor, "*batch q"]
    io: IOCounter
    steps: tuple[TileStep, ...] | None  # if they were recorded


def flash_attention_forward(
    query: Float[Tensor, "*batch q d"],
    key: Float[Tensor, "*batch k dk"],
    value: Float[Tensor, "*batch n dv"],
    block_q: int,
    block_k: int,
    causal: bool = False,
    scale: float | None = None,
    order: str = "q_outer",
    record: bool = False,
) -> FlashForward:
    """Return what `standard_attention` returns as output, without ever holding more than one tile of scores.

    Args:
        block_q, block_k: rows of a tile; the last tile may be shorter.
        causal: query i sees key j iff j <= i + (k - q); tiles with nothing to see are skipped.
        order: "q_outer" keeps a query tile in SRAM and streams keys and values past it (FlashAttention-2), so that
            each output is written once; "kv_outer" keeps a key tile and brings every output back (FlashAttention).
        record: keep a TileStep for every visited tile.

    Raises:
        ValueError: a block below 1, shapes that do not fit, an unknown order, or causal with more queries than keys.
    """
    _check_attention(query, key, value, block_q, block_k, causal)
    if order not in ("q_outer", "kv_outer"):
        raise ValueError(f"order must be q_outer or kv_outer, got {order!r}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q_len, head_dim, width = query.shape[-2], query.shape[-1], value.shape[-1]
    q_tiles, k_tiles = _tiles(q_len, block_q), _tiles(key.shape[-2], block_k)
    # the running state of every row; with q_outer only the rows of one tile are in SRAM at a time
    row_max = query.new_full(query.shape[:-1], -math.inf, dtype=_accurate(query))
    row_sum = torch.zeros_like(row_max)
    acc = torch.zeros(*query.shape[:-1], width, dtype=row_max.dtype, device=query.device)
    io, steps = IOCounter(), []
    if order == "kv_outer":
        io.write(q_len * width + 2 * q_len)  # O, l and m are set up in HBM

    last_of_row = dict(_visits(q_tiles, k_tiles, query, key, causal, "q_outer"))
    inside = None
    for i, j in _visits(q_tiles, k_tiles, query, key, causal, order):
        rows, columns = q_tiles[i], k_tiles[j]
        height, breadth = rows.stop - rows.start, columns.stop - columns.start
        if order == "q_outer":
            io.read((height * head_dim if inside != i else 0) + breadth * (head_dim + width))
            inside = i
        else:
            io.read((breadth * (head_dim + width) if inside != j else 0) + height * (head_dim + width + 2))
            inside = j
        scores = _tile_scores(query, key, rows, columns, causal, scale)  # (r, c)
        old_max = row_max[..., rows]
        new_max = torch.maximum(old_max, scores.amax(dim=-1))
        factor = rescale_factor(old_max, new_max)
        weights = rescale_factor(scores, new_max[..., None])
        kept_sum, kept_acc = factor * row_sum[..., rows], factor[..., None] * acc[..., rows, :]
        row_sum[..., rows] = kept_sum + weights.sum(dim=-1)
        acc[..., rows, :] = kept_acc + weights @ value[..., columns, :].to(row_max.dtype)
        row_max[..., rows] = new_max
        if order == "kv_outer":
            io.write(height * (width + 2))
        elif j == last_of_row[i]:
            io.write(height * (width + 1))  # the finished output and L
        if record:
            states = (new_max, row_sum[..., rows].clone(), factor, kept_sum, kept_acc, acc[..., rows, :].clone())
            steps.append(TileStep(i, j, scores, weights, *states, io.reads, io.writes))
    output = (acc / row_sum[..., None]).to(query.dtype)
    return FlashForward(output, row_max + row_sum.log(), io, tuple(steps) if record else None)


@dataclass(frozen=True, eq=False)
class BackwardStep:
    """One tile of the backward pass: weights made again, and the gradients summed up to its end."""

    tile_i: int
    tile_j: int
    weights: Float[Tensor, "*batch r c"]  # exp(score - L), the final attention weights of the tile
    grad_query: Float[Tensor, "*batch q d"]
    grad_key: Float[Tensor, "*batch k d"]
    grad_value: Float[Tensor, "*batch k dv"]


def flash_attention_backward(
    query: Float[Tensor, "*batch q d"],
    key: Float[Tensor, "*batch k dk"],
    value: Float[Tensor, "*batch n dv"],
    output: Float[Tensor, "..."],
    logsumexp: Float[Tensor, "..."],
    grad_output: Float[Tensor, "..."],
    block_q: int,
    block_k: int,
    causal: bool = False,
    scale: float | None = None,
    steps: list[BackwardStep] | None = None,
) -> tuple[Float[Tensor, "*batch q d"], Float[Tensor, "*batch k dk"], Float[Tensor, "*batch n dv"]]:
    """Return the gradients of query, key and value; the weights are computed again from L (2205.14135, algorithm 4).

    Every visited tile is appended to `steps` if a list is given.

    Raises:
        ValueError: as `flash_attention_forward`, or an output, L or gradient of another shape.
    """
    _check_attention(query, key, value, block_q, block_k, causal)
    expected = (*query.shape[:-1], value.shape[-1])
    if output.shape != expected or grad_output.shape != expected or logsumexp.shape != query.shape[:-1]:
        raise ValueError(
            f"output and grad_output must have the shape {expected} and logsumexp {tuple(query.shape[:-1])}, got "
            f"{tuple(output.shape)}, {tuple(grad_output.shape)} and {tuple(logsumexp.shape)}"
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    q_tiles, k_tiles = _tiles(query.shape[-2], block_q), _tiles(key.shape[-2], block_k)
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    grad_query, grad_key, grad_value = grads
    row_sums = (grad_output * output).sum(dim=-1, keepdim=True)  # D, equal to the row sums of weights · their gradients
    for i, j in _visits(q_tiles, k_tiles, query, key, causal, "kv_outer"):
        rows, columns = q_tiles[i], k_tiles[j]
        scores = _tile_scores(query, key, rows, columns, causal, scale)
        weights = torch.exp(scores - logsumexp[..., rows, None]).to(query.dtype)
        grad_value[..., columns, :] += weights.transpose(-2, -1) @ grad_output[..., rows, :]
        grad_weights = grad_output[..., rows, :] @ value[..., columns, :].transpose(-2, -1)
        grad_scores = weights * (grad_weights - row_sums[..., rows, :]) * scale
        grad_query[..., rows, :] += grad_scores @ key[..., columns, :]
        grad_key[..., columns, :] += grad_scores.transpose(-2, -1) @ query[..., rows, :]
        if steps is not None:
            steps.append(BackwardStep(i, j, weights, *(grad.clone() for grad in grads)))
    return grads


def _tiles(length: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def _visits(
    q_tiles: list[slice], k_tiles: list[slice], query: Tensor, key: Tensor, causal: bool, order: str
) -> list[tuple[int, int]]:
    """Return (i, j) of the tiles in the order of the loops, without those in which no query sees a key."""
    shift = key.shape[-2] - query.shape[-2]
    pairs = [(i, j) for i in range(len(q_tiles)) for j in range(len(k_tiles))]
    if causal:
        pairs = [(i, j) for i, j in pairs if k_tiles[j].start <= q_tiles[i].stop - 1 + shift]
    return pairs if order == "q_outer" else sorted(pairs, key=lambda pair: (pair[1], pair[0]))


def _tile_scores(query: Tensor, key: Tensor, rows: slice, columns: slice, causal: bool, scale: float) -> Tensor:
    """Return the scores of a tile in the statistics' precision, -inf where a query must not look."""
    dtype = _accurate(query)
    scores = query[..., rows, :].to(dtype) @ key[..., columns, :].to(dtype).transpose(-2, -1) * scale
    if not causal:
        return scores
    q = torch.arange(rows.start, rows.stop, device=query.device)[:, None] + key.shape[-2] - query.shape[-2]
    k = torch.arange(columns.start, columns.stop, device=query.device)
    return scores.masked_fill(k > q, -math.inf)


def _accurate(query: Tensor) -> torch.dtype:
    """Return the dtype of m, l and the accumulator: 16-bit inputs keep float32 statistics."""
    return torch.promote_types(query.dtype, torch.float32)


def _check_attention(query: Tensor, key: Tensor, value: Tensor, block_q: int, block_k: int, causal: bool) -> None:
    if min(block_q, block_k) < 1:
        raise ValueError(f"block_q and block_k must be at least 1, got {block_q} and {block_k}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need the same head_dim, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"each key needs its value, got {key.shape[-2]} keys and {value.shape[-2]} values")
    if causal and key.shape[-2] < query.shape[-2]:
        raise ValueError(
            f"causal attention needs at least as many keys as queries, got {key.shape[-2]} and {query.shape[-2]}"
        )


# -- what the video shows ----------------------------------------------------------------------------------------------

FLOAT32_BYTES, HALF_BYTES = 4, 2
# GPT-2 medium as 2205.14135 measures it in figure 2
PAPER_LENGTH, PAPER_HEAD_DIM, PAPER_HEADS, PAPER_BATCH = 1024, 64, 16, 64
A100_SRAM_ELEMENTS = 192 * 1024 // HALF_BYTES  # of one streaming multiprocessor
HELD_OUT = 64  # documents for the loss
BIGGEST_HALF = math.log(torch.finfo(torch.float16).max)  # exp of a larger score overflows float16
STRETCH = 8  # factor that takes a score row of the tiny model beyond that


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    num_tokens: int = option(12, "words of the series story to attend over", minimum=4, maximum=16)
    block_q: int = option(4, "query rows in a tile", minimum=1, maximum=8)
    block_k: int = option(4, "key rows in a tile", minimum=1, maximum=8)
    causal: bool = option(True, "a word sees only itself and earlier words")
    # Of the twelve heads, layer 2 head 1 shows most: the maximum of its last row moves five times, by little each time.
    layer: int = option(2, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(1, "attention head to show", minimum=0, maximum=3)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. S = visited tiles, r = block_q, c = block_k; NaN: masked, or beyond a short tile."""

    config: Config
    tokens: tuple[str, ...]  # N
    query: Float[Tensor, "N d"]  # after RoPE, as the model attends
    key: Float[Tensor, "N d"]
    value: Float[Tensor, "N d"]
    scores: Float[Tensor, "N N"]  # NaN where masked
    weights: Float[Tensor, "N N"]
    output: Float[Tensor, "N d"]  # standard attention
    wall_length: Int[Tensor, " W"]  # N, 2 N, 4 N: the same head on a longer text, of which the rest is the last one
    wall_bytes: Int[Tensor, "W 2"]  # float32: query, key, value and output; scores and weights
    wall_kinds: tuple[str, ...]
    wall_query: Float[Tensor, "N4 d"]
    wall_key: Float[Tensor, "N4 d"]
    wall_value: Float[Tensor, "N4 d"]
    wall_scores: Float[Tensor, "N4 N4"]  # before the mask
    wall_weights: Float[Tensor, "N4 N4"]  # 0 where masked
    tile_i: Int[Tensor, " S"]
    tile_j: Int[Tensor, " S"]
    tile_scores: Float[Tensor, "S r c"]
    tile_weights: Float[Tensor, "S r c"]  # exp(score - m)
    running_max: Float[Tensor, "S r"]
    running_sum: Float[Tensor, "S r"]
    rescale: Float[Tensor, "S r"]  # exp(old maximum - new maximum)
    kept_sum: Float[Tensor, "S r"]  # what it leaves of the old sum and accumulator
    kept_acc: Float[Tensor, "S r d"]
    acc: Float[Tensor, "S r d"]
    flash_bytes: Int[Tensor, " S"]  # float32 bytes moved until the end of each step
    flash_output: Float[Tensor, "N d"]
    logsumexp: Float[Tensor, " N"]
    skipped_i: Int[Tensor, " K"]  # tiles in which no query sees a key
    skipped_j: Int[Tensor, " K"]
    standard_bytes: Int[Tensor, " 6"]  # the same for Q K^T, out; softmax: in, out; weights V: in, out
    difference: Float[Tensor, "N d"]  # |flash - standard|
    max_abs_diff: float
    row_scores: Float[Tensor, " n"]  # the last row of the head, key by key
    row_max: Float[Tensor, " n"]
    row_sum: Float[Tensor, " n"]
    row_rescale: Float[Tensor, " n"]
    row_kept: Float[Tensor, " n"]  # the old sum after the correction
    row_terms: Float[Tensor, "n n"]  # exp(x_j - m_t) after score t; NaN for those still to come
    row_softmax: Float[Tensor, " n"]
    row_max_abs_diff: float  # of the quotients from a softmax in float64
    half_scores: Float[Tensor, " n"]  # the row, STRETCH times as large
    half_naive: Float[Tensor, " n"]  # exp in float16; inf where it overflows
    half_safe: Float[Tensor, " n"]  # exp(x - m) in float16
    half_limit: float  # the largest score whose exp float16 can hold
    grad_output: Float[Tensor, "N d"]  # of the model's loss
    grad_query: Float[Tensor, "N d"]
    grad_key: Float[Tensor, "N d"]
    grad_value: Float[Tensor, "N d"]
    back_i: Int[Tensor, " S"]
    back_j: Int[Tensor, " S"]
    back_weights: Float[Tensor, "S r c"]
    back_grad_query: Float[Tensor, "S N d"]
    back_grad_key: Float[Tensor, "S N d"]
    back_grad_value: Float[Tensor, "S N d"]
    grad_error: Float[Tensor, " 3"]  # largest difference of the three from autograd
    paper_name: str
    paper_kinds: tuple[str, ...]  # the two rows below
    paper_flops: Int[Tensor, " 2"]  # forward and backward matrix products of the paper's setting
    paper_bytes: Int[Tensor, " 2"]  # FP16 bytes moved, forward and backward, counted
    paper_milliseconds: Float[Tensor, " 2"]  # as its authors measured on an A100
    io_blocks: Int[Tensor, " B"]  # key rows in a tile
    io_by_block: Int[Tensor, " B"]  # FP16 bytes of one head's forward pass at the paper's length
    io_standard: int
    io_chip_block: int  # key rows that fit into the SRAM of an A100
    memory_lengths: Int[Tensor, " T"]
    memory_standard: Int[Tensor, " T"]  # FP16 bytes of scores and weights, one head
    memory_flash: Int[Tensor, " T"]  # float32 bytes of L
    loss_standard: float  # nats per token on held-out documents
    loss_flash: float
    loss_flash_bfloat16: float  # 16-bit query, key and value
    max_abs_diff_logits: float


def trace(config: Config) -> Trace:
    """Run one head both ways, forward and backward, and the whole model with both."""
    model = tiny_lm.load("base")
    seen = _one_head(model, config)
    query, key, value = seen["query"], seen["key"], seen["value"]
    output, scores, weights = standard_attention(query, key, value, config.causal)
    flash = flash_attention_forward(query, key, value, config.block_q, config.block_k, config.causal, record=True)
    hidden = ~causal_mask(len(query)) if config.causal else torch.zeros_like(scores, dtype=torch.bool)
    return Trace(
        config=config,
        tokens=seen["tokens"],
        query=query,
        key=key,
        value=value,
        scores=scores.masked_fill(hidden, math.nan),
        weights=weights.masked_fill(hidden, math.nan),
        output=output,
        flash_output=flash.output,
        logsumexp=flash.logsumexp,
        difference=(flash.output - output).abs(),
        max_abs_diff=float((flash.output - output).abs().max()),
        **_wall(model, config),
        **_tile_fields(flash, config),
        **_row_demo(scores[-1]),
        **_gradients(seen, flash, config),
        **_bills(len(query), query.shape[1]),
        **_losses(model),
    )


def _story_ids(count: int) -> Int[Tensor, "1 T"]:
    """Return the first tokens of the stories, one after the other, the series story first."""
    words = " ".join(tiny_lm.story(index) for index in range(4))
    return torch.tensor([tiny_lm.encode(words)[:count]])


def _one_head(model: tiny_lm.TinyLM, config: Config) -> dict:
    """Return what the chosen head sees, and the gradient of the loss with respect to its output."""
    model = tiny_lm.copy_of(model)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: config.num_tokens + 1]])
    kept = {}

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, layer: int) -> Tensor:
        visible = mask if config.causal or layer != config.layer else torch.ones_like(mask)
        output = masked_softmax(attention_scores(query, key, scale), visible) @ value
        if layer == config.layer:
            output.retain_grad()
            kept.update(query=query, key=key, value=value, output=output)
        return output

    logits = model(ids[:, :-1], attention_fn=attend)
    nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
    seen = {name: part[0, config.head].detach() for name, part in kept.items()}
    return {**seen, "tokens": tiny_lm.tokens(ids[0, :-1]), "grad_output": kept["output"].grad[0, config.head]}


@torch.no_grad()
def _wall(model: tiny_lm.TinyLM, config: Config) -> dict:
    """Return the head's scores on a text four times as long, and what they weigh at each doubling."""
    lengths = torch.tensor([1, 2, 4]) * config.num_tokens
    _, seen = model(_story_ids(int(lengths[-1])), record=("q_rot", "k_rot", "v"))
    query, key, value = (seen[name][config.layer, 0, config.head] for name in ("q_rot", "k_rot", "v"))
    _, scores, weights = standard_attention(query, key, value, config.causal)
    strips = 4 * query.shape[1] * lengths
    matrices = torch.tensor([extra_memory_elements(n, "standard") for n in lengths.tolist()])
    return {
        "wall_length": lengths,
        "wall_bytes": FLOAT32_BYTES * torch.stack([strips, matrices], dim=1),
        "wall_kinds": ("Q, K, V, output", "scores, weights"),
        "wall_query": query,
        "wall_key": key,
        "wall_value": value,
        "wall_scores": scores,
        "wall_weights": weights,
    }


def _tile_fields(flash: FlashForward, config: Config) -> dict:
    """Return the recorded steps as stacked tensors."""
    steps = flash.steps or ()
    rows, columns = config.block_q, config.block_k

    def stack(name: str, *sizes: int | None) -> Tensor:
        return torch.stack([_padded(getattr(step, name), *sizes) for step in steps])

    scores = stack("scores", rows, columns)
    visited = {(step.tile_i, step.tile_j) for step in steps}
    count_i, count_j = -(-config.num_tokens // rows), -(-config.num_tokens // columns)
    skipped = [(i, j) for i in range(count_i) for j in range(count_j) if (i, j) not in visited]
    return {
        "tile_i": torch.tensor([step.tile_i for step in steps]),
        "tile_j": torch.tensor([step.tile_j for step in steps]),
        "tile_scores": scores,
        "tile_weights": stack("weights", rows, columns).masked_fill(scores.isnan(), math.nan),
        "running_max": stack("running_max", rows),
        "running_sum": stack("running_sum", rows),
        "rescale": stack("rescale", rows),
        "kept_sum": stack("kept_sum", rows),
        "kept_acc": stack("kept_acc", rows, None),
        "acc": stack("acc", rows, None),
        "flash_bytes": torch.tensor([FLOAT32_BYTES * (step.reads + step.writes) for step in steps]),
        "skipped_i": torch.tensor([i for i, _ in skipped], dtype=torch.long),
        "skipped_j": torch.tensor([j for _, j in skipped], dtype=torch.long),
    }


def _padded(part: Tensor, *sizes: int | None) -> Tensor:
    """Return a tensor filled up with NaN to `sizes` (None: as it is); masked scores become NaN too."""
    part = part.masked_fill(part == -math.inf, math.nan)
    missing = [0 if size is None else size - have for have, size in zip(part.shape, sizes, strict=True)]
    padding = [number for amount in reversed(missing) for number in (0, amount)]
    return nn.functional.pad(part, padding, value=math.nan)


def _row_demo(row: Float[Tensor, " n"]) -> dict:
    """Return the last row of scores as a stream, and what float16 makes of a larger one."""
    stream = online_softmax(row)
    before = torch.cat([row.new_full((1,), -math.inf), stream.running_max[:-1]])
    terms = torch.exp(row - stream.running_max[:, None])  # (n, n): row t is what the sum holds after score t
    safe = torch.softmax(row.double(), dim=0)
    stretched = STRETCH * row
    return {
        "row_scores": row,
        "row_max": stream.running_max,
        "row_sum": stream.running_sum,
        "row_rescale": rescale_factor(before, stream.running_max),
        "row_kept": stream.running_sum - rescale_factor(row, stream.running_max),
        "row_terms": terms.masked_fill(~causal_mask(len(row)), math.nan),
        "row_softmax": stream.probs,
        "row_max_abs_diff": float((stream.probs - safe).abs().max()),
        "half_scores": stretched,
        "half_naive": stretched.half().exp().float(),
        "half_safe": (stretched - stretched.max()).half().exp().float(),
        "half_limit": BIGGEST_HALF,
    }


def _gradients(seen: dict, flash: FlashForward, config: Config) -> dict:
    """Return the head's gradients by recomputation, tile by tile, and their distance from autograd."""
    inputs = [seen[name].clone().requires_grad_() for name in ("query", "key", "value")]
    standard_attention(inputs[0], inputs[1], inputs[2], config.causal)[0].backward(seen["grad_output"])
    steps: list[BackwardStep] = []
    grads = flash_attention_backward(
        seen["query"], seen["key"], seen["value"], flash.output, flash.logsumexp, seen["grad_output"],
        config.block_q, config.block_k, config.causal, steps=steps,
    )  # fmt: skip
    errors = [float((ours - part.grad).abs().max()) for ours, part in zip(grads, inputs, strict=True)]
    return {
        "grad_output": seen["grad_output"],
        **dict(zip(("grad_query", "grad_key", "grad_value"), grads, strict=True)),
        "back_i": torch.tensor([step.tile_i for step in steps]),
        "back_j": torch.tensor([step.tile_j for step in steps]),
        "back_weights": torch.stack([_padded(step.weights, config.block_q, config.block_k) for step in steps]),
        "back_grad_query": torch.stack([step.grad_query for step in steps]),
        "back_grad_key": torch.stack([step.grad_key for step in steps]),
        "back_grad_value": torch.stack([step.grad_value for step in steps]),
        "grad_error": torch.tensor(errors),
    }


def _bills(seq_len: int, head_dim: int) -> dict:
    """Return what the standard algorithm moves on the shown head, and what both move and hold at real sizes."""
    matrix, strip = seq_len**2, seq_len * head_dim
    moves = torch.tensor([2 * strip, matrix, matrix, matrix, matrix + strip, strip])  # in, out, in, out, in, out
    length, width = PAPER_LENGTH, PAPER_HEAD_DIM
    _, block_k = block_sizes(A100_SRAM_ELEMENTS, width)
    forward = PAPER_HEADS * PAPER_BATCH * attention_matmul_flops(length, length, width)
    passes = (False, True)
    accesses = [
        sum(hbm_accesses_standard(length, width, backward) for backward in passes),
        sum(hbm_accesses_flash1(length, width, block_k, backward) for backward in passes),
    ]
    blocks = [16, 32, 64, 128, 256, 512, 1024]
    lengths = [1024 * 2**k for k in range(7)]
    return {
        "standard_bytes": FLOAT32_BYTES * moves.cumsum(0),
        "paper_name": "GPT-2 medium",
        "paper_kinds": ("standard", "FlashAttention"),
        # two products forward; backward four, and a fifth to make the scores again
        "paper_flops": torch.tensor([3 * forward, 7 * forward // 2]),
        "paper_bytes": HALF_BYTES * PAPER_HEADS * PAPER_BATCH * torch.tensor(accesses),
        "paper_milliseconds": torch.tensor([41.7, 7.3]),  # 2205.14135, figure 2, left
        "io_blocks": torch.tensor(blocks),
        "io_by_block": HALF_BYTES * torch.tensor([hbm_accesses_flash1(length, width, block) for block in blocks]),
        "io_standard": HALF_BYTES * hbm_accesses_standard(length, width),
        "io_chip_block": block_k,
        "memory_lengths": torch.tensor(lengths),
        "memory_standard": HALF_BYTES * torch.tensor([extra_memory_elements(n, "standard") for n in lengths]),
        "memory_flash": FLOAT32_BYTES * torch.tensor([extra_memory_elements(n, "flash2") for n in lengths]),
    }


@torch.no_grad()
def _losses(model: tiny_lm.TinyLM) -> dict:
    """Return the held-out loss with both ways of attending in every layer."""

    def flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, layer: int) -> Tensor:
        return flash_attention_forward(query, key, value, 16, 16, causal=True, scale=scale).output

    def flash_bfloat16(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, layer: int) -> Tensor:
        q, k, v = (part.bfloat16() for part in (query, key, value))
        return flash_attention_forward(q, k, v, 16, 16, causal=True, scale=scale).output.to(query.dtype)

    corpus = tiny_lm.held_out(HELD_OUT)
    logits = [model(corpus.ids[:, :-1], attention_fn=fn) for fn in (None, flash)]
    return {
        "loss_standard": tiny_lm.evaluate(model, corpus),
        "loss_flash": tiny_lm.evaluate(model, corpus, attention_fn=flash),
        "loss_flash_bfloat16": tiny_lm.evaluate(model, corpus, attention_fn=flash_bfloat16),
        "max_abs_diff_logits": float((logits[0] - logits[1]).abs().max()),
    }
