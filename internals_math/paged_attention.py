"""PagedAttention: the KV cache in fixed-size blocks that lie anywhere in memory, found through a block table.

Notation: B = block_size, N = num_blocks, S = sequences (one query each), J = logical blocks, T = tokens of a sequence,
H = query heads, G = key-value heads, d = head_dim, R = requests, K = ticks of the scheduler, F = frames.
Source: Kwon et al. 2023 (vLLM), arXiv 2309.06180. In the paper's eq. 4 the all-ones vector stands inside the
exponential; read literally it exponentiates a sum. The sum runs over the exponentials, as here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.kv_cache import kv_cache_bytes_per_token
from internals_math.online_softmax import merge_softmax_states, rescale_factor
from internals_math.paged_blocks import BlockAllocator, BlockTable, CopyOp, PagedKVCache, Slot, slot_mapping
from internals_math.paged_serving import (
    POLICIES,
    BuddyAllocator,
    Request,
    ServingTrace,
    contiguous_reservation,
    expected_last_block_waste,
    max_kv_slots,
    simulate_serving,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "BlockAllocator", "BlockTable", "BuddyAllocator", "Config", "CopyOp", "PagedKVCache", "Partials", "Request",
    "ServingTrace", "Slot", "Trace", "contiguous_reservation", "expected_last_block_waste", "kv_cache_bytes_per_token",
    "max_kv_slots", "paged_attention", "simulate_serving", "slot_mapping", "trace",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Partials:
    """What `paged_attention` holds after each logical block: the block's own softmax state, and all merged so far.

    m = largest score, l = sum of exp(score - m), acc = the values weighted by it, not yet divided by l.
    """

    scores: Float[Tensor, "S H J B"]  # -inf beyond the context
    block_max: Float[Tensor, "S H J"]
    block_sum: Float[Tensor, "S H J"]
    block_acc: Float[Tensor, "S H J d"]
    running_max: Float[Tensor, "S H J"]
    running_sum: Float[Tensor, "S H J"]
    running_acc: Float[Tensor, "S H J d"]


def paged_attention(
    query: Float[Tensor, "S H d"],
    key_cache: Float[Tensor, "N B G d"],
    value_cache: Float[Tensor, "N B G d"],
    block_tables: Int[Tensor, "S J"],
    context_lens: Int[Tensor, " S"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "S H d"], Partials]:
    """Return the attention of one query per sequence over its blocks, which are visited one by one (eq. 4).

    No sequence is ever put together: a step reads one block of each, and its softmax state is merged with that of the
    blocks before. Slots beyond the context are masked, whatever they hold.

    Args:
        query: newest token of each sequence (or several tokens of one, each with its own context length).
        key_cache, value_cache: the pool of one layer; H must be a multiple of G.
        block_tables: physical block of each logical one, -1 where there is none.
        context_lens: tokens that each query sees, itself included.
        scale: 1 / sqrt(d) by default.

    Raises:
        ValueError: shapes that do not fit, H not a multiple of G, a context length of 0 or beyond its table, a block
            that is missing (-1) inside the context or not in the pool.
    """
    _check_pages(query, key_cache, value_cache, block_tables, context_lens)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    block_size, groups = key_cache.shape[1], key_cache.shape[2]
    accurate = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(accurate).unflatten(1, (groups, -1))  # (S, G, H / G, d)
    state = (
        query.new_full(query.shape[:2], -math.inf, dtype=accurate),
        query.new_zeros(query.shape[:2], dtype=accurate),
        torch.zeros_like(query, dtype=accurate),
    )
    steps = []
    for j in range(block_tables.shape[1]):
        block = block_tables[:, j].clamp(min=0)  # where there is none, everything below is masked
        hidden = j * block_size + torch.arange(block_size, device=query.device) >= context_lens[:, None]  # (S, B)
        # A weight of 0 does not silence what an unwritten slot holds: 0 · NaN is NaN. So the values are zeroed too.
        key, value = (
            cache[block].to(accurate).masked_fill(hidden[:, :, None, None], 0.0) for cache in (key_cache, value_cache)
        )  # (S, B, G, d)
        scores = torch.einsum("sgrd,sbgd->sgrb", grouped, key).flatten(1, 2) * scale  # (S, H, B)
        scores = scores.masked_fill(hidden[:, None], -math.inf)
        block_max = scores.amax(dim=-1)
        weights = rescale_factor(scores, block_max[..., None])
        acc = torch.einsum("sgrb,sbgd->sgrd", weights.unflatten(1, (groups, -1)), value).flatten(1, 2)  # (S, H, d)
        own = (block_max, weights.sum(dim=-1), acc)
        state = merge_softmax_states(*state, *own)
        steps.append((scores, *own, *state))
    partials = Partials(*(torch.stack(parts, dim=2) for parts in zip(*steps, strict=True)))
    return (state[2] / state[1][..., None]).to(query.dtype), partials


def _check_pages(query: Tensor, key_cache: Tensor, value_cache: Tensor, tables: Tensor, lengths: Tensor) -> None:
    sequences, heads, head_dim = query.shape
    blocks, block_size, groups, _ = key_cache.shape
    if key_cache.shape != value_cache.shape or key_cache.shape[3] != head_dim:
        raise ValueError(
            f"key and value cache need the same shape (N, B, G, {head_dim}), got {tuple(key_cache.shape)} and "
            f"{tuple(value_cache.shape)}"
        )
    if heads % groups:
        raise ValueError(f"num_attention_heads ({heads}) must be divisible by num_key_value_heads ({groups})")
    if len(tables) != sequences or lengths.shape != (sequences,):
        raise ValueError(
            f"{sequences} queries need as many block tables and context lengths, got {len(tables)} and {len(lengths)}"
        )
    held = tables.shape[1] * block_size
    if not ((lengths >= 1) & (lengths <= held)).all():
        raise ValueError(f"context_lens must be in 1..{held}, what the tables hold, got {lengths.tolist()}")
    used = torch.arange(tables.shape[1], device=tables.device) * block_size < lengths[:, None]  # (S, J)
    wrong = tables[used & ((tables < 0) | (tables >= blocks))]
    if len(wrong):
        raise ValueError(f"blocks of the context must be in 0..{blocks - 1}, got {wrong.tolist()}")


# -- what the video shows ----------------------------------------------------------------------------------------------

MAX_MODEL_LEN = 32  # the longest text that the little server of the video allows
SAMPLE_LEN = 16  # the longest text of a sample that shares its prompt
SHOWN_AT_ONCE = 3  # requests that the drawn run serves at a time


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    block_size: int = option(4, "tokens in a block", choices=(1, 2, 4, 8, 16))
    num_blocks: int = option(16, "blocks in the pool", minimum=8, maximum=64)
    num_requests: int = option(6, "texts that the model continues", minimum=2, maximum=12)
    policy: str = option("max", "how memory is reserved in the first chapter", choices=POLICIES)
    num_samples: int = option(2, "answers that share one prompt", minimum=1, maximum=4)
    # Of the twelve heads, layer 1 head 2 shows most: it looks into every block, and its largest score comes late.
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(2, "attention head to show", minimum=0, maximum=3)
    seed: int = option(0, "of the free list, the cut texts, the samples and the large simulation", minimum=0, maximum=9)

    def check(self) -> None:
        slots, least = self.num_blocks * self.block_size, max(MAX_MODEL_LEN, SAMPLE_LEN * self.num_samples)
        if slots < least:
            raise ValueError(
                f"num_blocks ({self.num_blocks}) times block_size ({self.block_size}) must be at least {least} "
                f"(the longest text has {MAX_MODEL_LEN} tokens, a sample {SAMPLE_LEN})"
            )


@dataclass(frozen=True, eq=False)
class Events:
    """What the scheduler and the block manager did in the drawn run, in order; -1 and "" where it does not apply."""

    tick: Int[Tensor, " E"]
    kind: tuple[str, ...]  # admit, allocate, append, copy_on_write, free, preempt
    sequence: Int[Tensor, " E"]
    logical: Int[Tensor, " E"]
    physical: Int[Tensor, " E"]
    offset: Int[Tensor, " E"]
    word: tuple[str, ...]  # the token that is stored


@dataclass(frozen=True, eq=False)
class Serving:
    """The same requests under four policies; means over the ticks in which somebody waits, as shares of the memory."""

    policy: tuple[str, ...]
    mean_tokens: Float[Tensor, " 4"]
    mean_reserved: Float[Tensor, " 4"]
    mean_never_used: Float[Tensor, " 4"]
    mean_free: Float[Tensor, " 4"]  # free, or lost to rounding
    mean_running: Float[Tensor, " 4"]
    running_ratio: Float[Tensor, " 4"]  # to "max", in this simulation
    finish_tick: Int[Tensor, " 4"]  # when the last request was done
    preemptions: Int[Tensor, " 4"]


@dataclass(frozen=True, eq=False)
class ModelSlots:
    """How many tokens fit beside the weights of the paper's three models (its Table 1; GB there are GiB)."""

    name: tuple[str, ...]
    memory_gib: Float[Tensor, " M"]
    bytes_per_token: Int[Tensor, " M"]
    slots: Int[Tensor, " M"]
    full_texts: Int[Tensor, " M"]  # of 2048 tokens


@dataclass(frozen=True, eq=False)
class Quoted:
    """Speed-ups that others measured, with what they were measured against; not ours."""

    against: tuple[str, ...]
    lowest: Float[Tensor, " Q"]
    highest: Float[Tensor, " Q"]
    source: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Ticks and frames show the state after what happened in them."""

    config: Config
    # The requests, in the order in which they came.
    request_names: tuple[str, ...]  # R
    request_tokens: dict[str, tuple[str, ...]]  # by name: prompt and answer
    prompt_len: Int[Tensor, " R"]
    output_len: Int[Tensor, " R"]
    max_model_len: int
    num_slots: int
    # Chapter 1: the memory under `policy`.
    slot_states: tuple[str, ...]  # the names of the numbers in contiguous_state
    contiguous_owner: Int[Tensor, "K_p slots"]  # request of each slot, -1 = nobody's
    contiguous_state: Int[Tensor, "K_p slots"]
    # Chapters 2 and 3: the paged run, at most three at a time.
    events: Events
    block_tables: Float[Tensor, "K R J"]  # physical block of each logical one, NaN where there is none
    table_filled: Float[Tensor, "K R J"]  # filled positions of each, NaN where there is none
    sequence_length: Int[Tensor, "K R"]  # stored tokens
    physical_owner: Int[Tensor, "K N"]  # request of each block, -1 = free
    filled: Int[Tensor, "K N"]
    fill_share: Float[Tensor, "K N"]  # 0..1
    ref_counts: Int[Tensor, "K N"]
    blocks_free: Int[Tensor, " K"]
    block_ids: Int[Tensor, " N"]
    slot_owner: Int[Tensor, "K slots"]  # request whose block a slot is in, -1 = free
    slot_state: Int[Tensor, "K slots"]  # an index into slot_states
    slot_usage: Int[Tensor, "K 4"]  # slots, in the order of usage_names
    shown_at_once: int
    max_abs_diff_logits: float  # to generation with a contiguous cache, over every step of every request
    steps_compared: int
    # Chapter 4: the last decoding step of the first request, one head.
    decode_tokens: tuple[str, ...]  # T
    decode_blocks: Int[Tensor, " J_d"]
    query: Float[Tensor, " d"]
    keys: Float[Tensor, "J_d B d"]  # NaN in slots that are not filled
    values: Float[Tensor, "J_d B d"]
    block_scores: Float[Tensor, "J_d B"]  # NaN likewise
    block_weights: Float[Tensor, "J_d B"]  # final attention weights
    block_max: Float[Tensor, " J_d"]
    block_sum: Float[Tensor, " J_d"]
    running_max: Float[Tensor, " J_d"]
    running_sum: Float[Tensor, " J_d"]
    running_output: Float[Tensor, "J_d d"]  # acc / l after each block
    output: Float[Tensor, " d"]
    reference_output: Float[Tensor, " d"]  # softmax over all keys side by side
    max_abs_diff: float
    # Chapter 5: samples of one prompt; a frame after the prompt, the fork, and each stored token.
    share_prompt: tuple[str, ...]
    share_tokens: dict[str, tuple[str, ...]]  # by sample: what it wrote
    share_writer: Int[Tensor, " F"]  # sample that stored a token, -1 = none
    share_word: tuple[str, ...]  # F
    share_copy_from: Int[Tensor, " F"]  # block that was copied before, -1 = none
    share_copy_to: Int[Tensor, " F"]
    share_tables: Float[Tensor, "F C J_s"]
    share_filled: Float[Tensor, "F C J_s"]
    share_fill_share: Float[Tensor, "F N"]
    share_ref_counts: Int[Tensor, "F N"]
    share_owner: Int[Tensor, "F N"]  # sample, C = shared by several, -1 = free
    share_slot_owner: Int[Tensor, "F slots"]
    share_slot_filled: Int[Tensor, "F slots"]
    share_blocks_used: Int[Tensor, " F"]
    share_blocks_alone: Int[Tensor, " F"]  # what as many tables without sharing would hold
    share_copies: int
    share_max_abs_diff: float  # logits, to a run without any cache
    # Chapter 6: what fits.
    usage_names: tuple[str, ...]
    usage: dict[str, Int[Tensor, "_ 4"]]  # our requests, by policy (each takes its own number of ticks), slots
    running: dict[str, Int[Tensor, " _"]]
    waiting: dict[str, Int[Tensor, " _"]]
    serving: Serving
    large_requests: int
    large_slots: int
    large_max_model_len: int
    large_block_size: int
    large_mean_prompt: float
    large_mean_output: float
    large_ticks: Int[Tensor, " P"]
    large_stack: dict[str, Float[Tensor, "P 4"]]  # shares of the memory added up in the order of usage_names; NaN: done
    large_running: dict[str, Float[Tensor, " P"]]
    large_serving: Serving
    quoted_kv_use: dict[str, float]  # share of the memory that held tokens, as measured in the paper
    # Chapter 7: how big a page?
    sweep_block_sizes: Int[Tensor, " W"]
    sweep_waste: Float[Tensor, " W"]  # share of the slots in taken blocks that hold no token
    sweep_table_entries: Float[Tensor, " W"]  # blocks of a sequence of the mean length
    model_slots: ModelSlots
    quoted_speedup: Quoted
    quoted_kernel_overhead: Float[Tensor, " 2"]  # a paged attention call takes this share longer (section 7.1)


def trace(config: Config) -> Trace:
    """Serve texts of the tiny LM from blocks, share a prompt, walk one query, and simulate a large server."""
    from internals_math import paged_attention_experiment as experiment

    run = experiment.serve(config)
    return Trace(
        config=config,
        **experiment.request_fields(run),
        **experiment.contiguous_fields(run, config),
        **experiment.paged_fields(run, config),
        **experiment.decode_fields(run, config),
        **experiment.share_fields(config),
        **experiment.serving_fields(run, config),
        **experiment.large_fields(config),
        **experiment.quoted_fields(),
    )
