"""Multi-query attention: all query heads read one shared key head and one shared value head.

Notation, as in the paper: b = batch, n = queries, m = keys, d = model width, h = query heads, k, v = width of a key and
a value head; h_kv = key-value heads (h in multi-head, 1 in multi-query attention). In the trace: T tokens, H heads.
Sources: Shazeer 2019, "Fast Transformer Decoding", arXiv 1911.02150, sections 2.4, 3 and 4; sharded serving: Pope et
al. 2022, "Efficiently Scaling Transformer Inference", arXiv 2211.05102, section 4.2 and Table 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.attention import causal_mask, masked_softmax
from internals_math.checks import check_sizes
from internals_math.kv_cache import CHIP_BYTES_PER_SECOND, CHIP_FLOPS, CHIP_NAME, KVCache, kv_cache_bytes_per_token
from internals_math.model_shapes import preset
from internals_math.rope import apply_rotary
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "DecodeTraffic", "Trace", "asymptotic_ratio", "decode_traffic", "kv_cache_bytes_per_token",
    "matched_ffn_width", "max_context_length", "memory_to_arithmetic_ratio", "multi_query_attention",
    "multi_query_self_attention_step", "trace",
]  # fmt: skip


def multi_query_attention(
    query: Float[Tensor, "*batch h n k"],
    key: Float[Tensor, "*batch m k"],
    value: Float[Tensor, "*batch m v"],
    *,
    is_causal: bool = True,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*batch h n v"], Float[Tensor, "*batch h n m"]]:
    """Return (output, weights) of h query heads over one key-value head, which is never copied.

    The causal mask is aligned to the last key: query i sees key j iff j <= i + (m - n).

    Raises:
        ValueError: query without a head axis, widths or lengths that do not fit, more queries than keys in a causal
            call, or a scale that is not a positive number.
    """
    if query.ndim != key.ndim + 1 or key.ndim != value.ndim:
        raise ValueError(
            "the query needs one axis more than key and value, its heads; "
            f"got shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need the same head_dim, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"each key needs its value, got {key.shape[-2]} keys and {value.shape[-2]} values")
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale}")
    queries, keys = query.shape[-2], key.shape[-2]
    if is_causal and queries > keys:
        raise ValueError(f"causal attention needs at least as many keys as queries, got {keys} keys and {queries}")
    mask = causal_mask(queries, keys, device=query.device) if is_causal else None
    weights = masked_softmax(torch.einsum("...hnk,...mk->...hnm", query, key) * scale, mask)
    return torch.einsum("...hnm,...mv->...hnv", weights, value), weights


def multi_query_self_attention_step(
    x: Float[Tensor, "b d"],
    prev_key: Float[Tensor, "b m k"],
    prev_value: Float[Tensor, "b m v"],
    q_weight: Float[Tensor, "hk d"],
    k_weight: Float[Tensor, "k d"],
    v_weight: Float[Tensor, "v d"],
    o_weight: Float[Tensor, "d hv"],
    *,
    num_heads: int,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b m_plus_1 k"], Float[Tensor, "b m_plus_1 v"]]:
    """Return (y, key, value) of one decoding step: the new token's output and the memory with its row (section 3).

    Args:
        prev_key, prev_value: memory of the m earlier tokens, empty (m = 0) at the first step.
        q_weight, k_weight, v_weight, o_weight: (out, in) as in nn.Linear.
        rotary: (cos, sin) of position m; the new key is rotated before it is kept.

    Raises:
        ValueError: projections whose rows or columns do not fit num_heads.
    """
    k, v = k_weight.shape[0], v_weight.shape[0]
    if num_heads < 1 or q_weight.shape[0] != num_heads * k:
        raise ValueError(f"q_weight must have {num_heads} heads of {k} rows, got {q_weight.shape[0]} rows")
    if o_weight.shape[1] != num_heads * v:
        raise ValueError(f"o_weight must have {num_heads} heads of {v} columns, got {o_weight.shape[1]} columns")
    query = (x @ q_weight.T).unflatten(-1, (num_heads, k))[:, :, None]  # (b, h, 1, k)
    new_key, new_value = (x @ k_weight.T)[:, None], (x @ v_weight.T)[:, None]  # (b, 1, k), (b, 1, v)
    if rotary is not None:
        query, new_key = apply_rotary(query, *rotary), apply_rotary(new_key, *rotary)
    key, value = torch.cat([prev_key, new_key], dim=1), torch.cat([prev_value, new_value], dim=1)
    output, _ = multi_query_attention(query, key, value)  # (b, h, 1, v)
    return output.flatten(1) @ o_weight.T, key, value


@dataclass(frozen=True, eq=False)
class DecodeTraffic:
    """Elements moved, and multiply-adds done, by the self-attention of one layer at each decoding step t = 1..n."""

    weight_reads: Int[Tensor, " n"]
    kv_reads: Int[Tensor, " n"]
    activations: Int[Tensor, " n"]
    kv_writes: Int[Tensor, " n"]
    macs: Int[Tensor, " n"]


def decode_traffic(
    batch_size: int, num_steps: int, d_model: int, num_heads: int, head_dim: int, num_key_value_heads: int
) -> DecodeTraffic:
    """Count what every step reads, writes and multiplies, with head_dim = k = v (exact form of sections 2.4 and 3.1).

    Raises:
        ValueError: a size below 1, or heads that the key-value heads do not divide.
    """
    check_sizes(
        batch_size=batch_size, num_steps=num_steps, d_model=d_model, num_heads=num_heads, head_dim=head_dim,
        num_key_value_heads=num_key_value_heads,
    )  # fmt: skip
    if num_heads % num_key_value_heads:
        raise ValueError(f"num_heads ({num_heads}) must be divisible by num_key_value_heads ({num_key_value_heads})")
    step = torch.arange(1, num_steps + 1)
    weights = projection_weights(d_model, num_heads, head_dim, num_key_value_heads)
    new_kv = batch_size * num_key_value_heads * 2 * head_dim
    return DecodeTraffic(
        weight_reads=torch.full_like(step, weights),
        kv_reads=step * new_kv,
        activations=torch.full_like(step, batch_size * (2 * d_model + 2 * num_heads * head_dim)),
        kv_writes=torch.full_like(step, new_kv),
        macs=batch_size * (weights + step * num_heads * 2 * head_dim),
    )


def projection_weights(d_model: int, num_heads: int, head_dim: int, num_key_value_heads: int) -> int:
    """Return the weights of W_Q, W_K, W_V and W_O together."""
    return 2 * d_model * head_dim * (num_heads + num_key_value_heads)


def memory_to_arithmetic_ratio(traffic: DecodeTraffic) -> Float[Tensor, " n"]:
    """Return elements moved per multiply-add over the first t steps, for each t (float64)."""
    moved = traffic.weight_reads + traffic.kv_reads + traffic.activations + traffic.kv_writes
    return moved.cumsum(0).double() / traffic.macs.cumsum(0).double()


def asymptotic_ratio(n: float, d: int, h: int, b: int, variant: str) -> float:
    """Return the paper's ratio of memory to arithmetic with all constants 1: sections 2.4.1 (multihead) and 3.1.

    Raises:
        ValueError: a size that is not positive, or an unknown variant.
    """
    if min(n, d, h, b) <= 0:
        raise ValueError(f"n, d, h and b must be positive, got {n}, {d}, {h} and {b}")
    if variant == "multihead":
        return n / d + 1 / b
    if variant == "multiquery":
        return 1 / d + n / (d * h) + 1 / b
    raise ValueError(f"variant must be multihead or multiquery, got {variant!r}")


def matched_ffn_width(
    d_model: int,
    d_ff: int,
    num_heads: int,
    head_dim: int,
    *,
    num_key_value_heads: int,
    new_num_heads: int | None = None,
    new_head_dim: int | None = None,
    num_attention_layers: int,
    num_ffn_layers: int,
    ffn_matrices: int,
) -> int:
    """Return the feed-forward width that gives a multi-head model its weights back after heads were taken (4.1).

    Raises:
        ValueError: a size below 1, or weights that no whole width gives back.
    """
    new_num_heads = num_heads if new_num_heads is None else new_num_heads
    new_head_dim = head_dim if new_head_dim is None else new_head_dim
    check_sizes(
        d_model=d_model, d_ff=d_ff, num_heads=num_heads, head_dim=head_dim, num_key_value_heads=num_key_value_heads,
        new_num_heads=new_num_heads, new_head_dim=new_head_dim, num_attention_layers=num_attention_layers,
        num_ffn_layers=num_ffn_layers, ffn_matrices=ffn_matrices,
    )  # fmt: skip
    before = projection_weights(d_model, num_heads, head_dim, num_heads)
    after = projection_weights(d_model, new_num_heads, new_head_dim, num_key_value_heads)
    saved, unit = num_attention_layers * (before - after), num_ffn_layers * ffn_matrices * d_model
    if saved % unit:
        raise ValueError(f"the {saved} saved weights must fill whole units of the feed-forward, {unit} weights each")
    return d_ff + saved // unit


def max_context_length(
    kv_budget_bytes_per_chip: float,
    num_chips: int,
    batch_size: int,
    num_hidden_layers: int,
    num_key_value_heads: int,
    head_dim: int,
    *,
    shard: str,
    bytes_per_element: int = 2,
) -> int:
    """Return how many tokens of every sequence fit into the chips' cache memory (2211.05102, section 4.2).

    Args:
        shard: "heads": a chip holds ceil(heads / chips) heads of all sequences, so a lone head is copied to every chip;
            "batch": a chip holds all heads of batch_size / num_chips sequences.

    Raises:
        ValueError: a size below 1, an unknown way to shard, or sequences that the chips do not divide.
    """
    check_sizes(
        num_chips=num_chips, batch_size=batch_size, num_hidden_layers=num_hidden_layers,
        num_key_value_heads=num_key_value_heads, head_dim=head_dim, bytes_per_element=bytes_per_element,
    )  # fmt: skip
    heads, sequences = heads_and_sequences_on_chip(num_chips, batch_size, num_key_value_heads, shard)
    per_token = kv_cache_bytes_per_token(num_hidden_layers, heads, head_dim, bytes_per_element) * sequences
    return int(kv_budget_bytes_per_chip // per_token)


def heads_and_sequences_on_chip(
    num_chips: int, batch_size: int, num_key_value_heads: int, shard: str
) -> tuple[int, int]:
    """Return how many key-value heads of how many sequences one chip holds; arguments as in `max_context_length`."""
    if shard == "heads":
        return math.ceil(num_key_value_heads / num_chips), batch_size
    if shard != "batch":
        raise ValueError(f"shard must be heads or batch, got {shard!r}")
    if batch_size % num_chips:
        raise ValueError(f"batch_size ({batch_size}) must be divisible by num_chips ({num_chips})")
    return num_key_value_heads, batch_size // num_chips


# -- what the video shows ----------------------------------------------------------------------------------------------

# The model of the paper's section 4, and what it measured there on a TPU v2 (Table 2): ms for one step of a beam
# search over 1024 sequences.
PAPER_WIDTH, PAPER_HEADS, PAPER_HEAD_DIM = 1024, 8, 128
PAPER_STEP_MS, PAPER_SEQUENCES = (47.0, 3.9), 1024
LONG_STEPS = 1024
SEEDS = ("base", "base_seed1", "base_seed2")
UPTRAIN_SHARE = 0.05  # of the base run's steps, as in 2305.13245
UPTRAIN_STEPS = round(UPTRAIN_SHARE * tiny_lm.Recipe().steps)
# PaLM-540B on 64 TPU v4 chips of 32 GiB, 30 % of them for the cache, 128 sequences (2211.05102, Table 1). Its
# multi-head rival has the same cache for each head's share of the width: 48 heads of 128.
CHIPS, CHIP_BYTES, CACHE_SHARE, SEQUENCES, MULTIHEAD_WIDTH = 64, 32 * 2**30, 0.3, 128, 128


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    # In the last layer, the four heads of the shared model look at four different words.
    layer: int = option(2, "decoder layer to show", minimum=0, maximum=2)
    num_tokens: int = option(10, "tokens of the story", minimum=4, maximum=12)
    batch_size: int = option(128, "sequences at once in the chart of reading time", minimum=1, maximum=256)
    story_index: int = option(0, "held-out story to show", minimum=0, maximum=31)
    seed: int = option(0, "of the order of the documents in the short training", minimum=0, maximum=9)


@dataclass(frozen=True, eq=False)
class Models:
    """The best possible model, then the tiny LM with four memories and with one."""

    name: tuple[str, ...]
    eval_loss: Float[Tensor, " M"]  # held-out nats per token
    excess: Float[Tensor, " M"]  # above the entropy floor


@dataclass(frozen=True, eq=False)
class Limits:
    """How long a context a 540B model can serve, by heads and by the way the cache is spread over the chips."""

    name: tuple[str, ...]
    context: Int[Tensor, " W"]  # tokens
    head_dim: Int[Tensor, " W"]
    heads_on_chip: Int[Tensor, " W"]
    sequences_on_chip: Int[Tensor, " W"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. mha is the tiny LM, mqa the one trained with a single key-value head."""

    config: Config
    tokens: tuple[str, ...]  # T
    head_names: tuple[str, ...]  # H
    query: Float[Tensor, "H T k"]  # of the tiny LM, after RoPE
    key_mha: Float[Tensor, "H T k"]
    value_mha: Float[Tensor, "H T k"]
    query_mqa: Float[Tensor, "H T k"]
    key_mqa: Float[Tensor, "T k"]
    value_mqa: Float[Tensor, "T k"]
    weights_mha: Float[Tensor, "H T T"]
    weights_mqa: Float[Tensor, "H T T"]
    last_weights_mqa: Float[Tensor, "T H"]  # the newest query's weights, a column for each head
    output_mqa: Float[Tensor, "H k"]  # of the newest token
    most_attended: tuple[str, ...]  # H: the token with the largest of these weights
    cache_mha: Float[Tensor, "T of_all_heads"]  # a row is what one token leaves in this layer: keys, values
    cache_mqa: Float[Tensor, "T of_one_head"]
    cache_elements_mha: Int[Tensor, " T"]  # after each token
    cache_elements_mqa: Int[Tensor, " T"]
    cache_ratio: int
    bytes_read_mha: Int[Tensor, " T"]  # float32 cache of this layer, read to write the next token
    bytes_read_mqa: Int[Tensor, " T"]
    long_steps: Int[Tensor, " N"]  # tokens so far, for the paper's model
    cache_us_mha: Float[Tensor, " N"]  # to read the cache of one layer in 16 bit, at the chip's bandwidth
    cache_us_mqa: Float[Tensor, " N"]
    weights_us: Float[Tensor, " N"]  # to read the projections of one layer
    multiply_us: Float[Tensor, " N"]  # to do all multiply-adds of the step, at the chip's speed
    paper_width: int
    paper_heads: int
    chip_name: str
    paper_variants: tuple[str, ...]
    paper_token_us: Float[Tensor, " 2"]  # measured in the paper
    models: Models
    uptrain_steps: int
    uptrain_share: float
    loss_seed_spread: Float[Tensor, " 2"]  # lowest and highest of three seeds of the tiny LM
    entropy_floor: float
    excess_seed_spread: Float[Tensor, " 2"]
    excess_ratio: float  # trained with one memory over trained with four
    limits: Limits
    big_cache_bytes: int  # the multi-head 540B model, 512 sequences of 2048 tokens, bf16


def convert_to_one_head(model: tiny_lm.TinyLM) -> tiny_lm.TinyLM:
    """Return a copy of the model whose key heads, and value heads, are averaged to one."""
    shape = tiny_lm.ModelConfig(**{**model.config.to_dict(), "num_key_value_heads": 1})
    pooled = tiny_lm.pool_key_value_heads(model.state_dict(), model.config, 1)
    return tiny_lm.copy_of(tiny_lm.TinyLM(shape), pooled)


@torch.no_grad()
def read_layer(
    model: tiny_lm.TinyLM, ids: Int[Tensor, "1 T"], layer: int
) -> tuple[dict[str, Tensor], Float[Tensor, "G T k"], Float[Tensor, "G T k"]]:
    """Return what a layer records, and the keys and values that it leaves in a real cache."""
    cache = KVCache(model.config.num_hidden_layers)
    _, record = model(ids, cache=cache, record=("q_rot", "weights"))
    keys, values = cache.keys[layer], cache.values[layer]
    assert keys is not None
    assert values is not None
    return {name: part[layer, 0] for name, part in record.items()}, keys[0], values[0]


def trace(config: Config) -> Trace:
    """Read one story with four key-value heads and with one, and count what each costs."""
    base, shared = tiny_lm.load("base"), tiny_lm.get_variant("mqa")
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(config.story_index))[: config.num_tokens]])
    mha, key_mha, value_mha = read_layer(base, ids, config.layer)
    mqa, key_mqa, value_mqa = read_layer(shared, ids, config.layer)
    last = mqa["weights"][:, -1]  # (H, T)
    cache_mha, cache_mqa = (
        torch.cat([keys, values]).transpose(0, 1).flatten(1)
        for keys, values in ((key_mha, value_mha), (key_mqa, value_mqa))
    )
    tokens_so_far = torch.arange(1, config.num_tokens + 1)
    models, floor = _models(base, shared, config.seed), tiny_lm.held_out().entropy_floor
    seeds = [tiny_lm.read_facts(tiny_lm.committed_path(name))["loss"] for name in SEEDS]
    spread = torch.tensor([min(seeds), max(seeds)])
    return Trace(
        config=config,
        tokens=tiny_lm.tokens(ids[0].tolist()),
        head_names=tuple(f"head {k + 1}" for k in range(base.config.num_attention_heads)),
        query=mha["q_rot"],
        key_mha=key_mha,
        value_mha=value_mha,
        query_mqa=mqa["q_rot"],
        key_mqa=key_mqa[0],
        value_mqa=value_mqa[0],
        weights_mha=mha["weights"],
        weights_mqa=mqa["weights"],
        last_weights_mqa=last.T,
        output_mqa=last @ value_mqa[0],
        most_attended=tiny_lm.tokens(ids[0, last.argmax(dim=1)].tolist()),
        cache_mha=cache_mha,
        cache_mqa=cache_mqa,
        cache_elements_mha=tokens_so_far * cache_mha.shape[1],
        cache_elements_mqa=tokens_so_far * cache_mqa.shape[1],
        cache_ratio=cache_mha.numel() // cache_mqa.numel(),
        bytes_read_mha=tokens_so_far * cache_mha.shape[1] * cache_mha.element_size(),
        bytes_read_mqa=tokens_so_far * cache_mqa.shape[1] * cache_mqa.element_size(),
        **long_times(config.batch_size),
        paper_width=PAPER_WIDTH,
        paper_heads=PAPER_HEADS,
        chip_name=CHIP_NAME,
        paper_variants=("a memory for each head", "one shared memory"),
        paper_token_us=paper_token_us(),
        models=models,
        uptrain_steps=UPTRAIN_STEPS,
        uptrain_share=UPTRAIN_SHARE,
        loss_seed_spread=spread,
        entropy_floor=floor,
        excess_seed_spread=spread - floor,
        excess_ratio=float(models.excess[-1] / models.excess[1]),
        limits=_limits(),
        big_cache_bytes=multihead_540b_cache_bytes(),
    )


def long_times(batch_size: int) -> dict[str, Tensor]:
    """Return how long the chip reads and multiplies, per step and layer of the paper's model, by the datasheet."""
    own, shared = (
        decode_traffic(batch_size, LONG_STEPS, PAPER_WIDTH, PAPER_HEADS, PAPER_HEAD_DIM, heads)
        for heads in (PAPER_HEADS, 1)
    )
    steps = torch.arange(16, LONG_STEPS + 1, 16)
    microseconds = 1e6 * 2 / CHIP_BYTES_PER_SECOND  # for one element of 16 bit
    return {
        "long_steps": steps,
        "cache_us_mha": own.kv_reads[steps - 1] * microseconds,
        "cache_us_mqa": shared.kv_reads[steps - 1] * microseconds,
        "weights_us": own.weight_reads[steps - 1] * microseconds,
        "multiply_us": own.macs[steps - 1] * 2 / CHIP_FLOPS * 1e6,
    }


def _models(base: tiny_lm.TinyLM, shared: tiny_lm.TinyLM, seed: int) -> Models:
    """Judge the tiny LM, its heads averaged to one before and after a little more training, and one born that way."""
    converted = convert_to_one_head(base)
    uptrained = tiny_lm.continue_training(converted, UPTRAIN_STEPS, seed=seed)
    rivals = {
        "a memory for each head": base,
        "averaged to one memory": converted,
        "and trained a little more": uptrained,
        "one memory from the start": shared,
    }
    floor = tiny_lm.held_out().entropy_floor
    losses = torch.tensor([floor, *(tiny_lm.evaluate(model, tiny_lm.held_out()) for model in rivals.values())])
    return Models(("the best possible", *rivals), losses, losses - floor)


def paper_token_us() -> Float[Tensor, " 2"]:
    """Return the microseconds a token took in the paper's decoder, multi-head and multi-query (Table 2)."""
    return torch.tensor([step * 1000 / PAPER_SEQUENCES for step in PAPER_STEP_MS])


def palm_context(num_key_value_heads: int, head_dim: int, shard: str) -> int:
    """Return the longest context of PaLM-540B in the setting of 2211.05102, Table 1."""
    layers = preset("palm-540b").num_hidden_layers
    budget = CHIP_BYTES * CACHE_SHARE
    return max_context_length(budget, CHIPS, SEQUENCES, layers, num_key_value_heads, head_dim, shard=shard)


def multihead_540b_cache_bytes() -> int:
    """Return the cache of the multi-head 540B model, 512 sequences of 2048 tokens in bf16 (2211.05102, section 4.2)."""
    shape = preset("palm-540b")
    per_token = kv_cache_bytes_per_token(shape.num_hidden_layers, shape.num_attention_heads, MULTIHEAD_WIDTH)
    return per_token * 512 * 2048


def _limits() -> Limits:
    shape = preset("palm-540b")
    ways: tuple[tuple[str, int, int, str], ...] = (
        ("a head for each query", shape.num_attention_heads, MULTIHEAD_WIDTH, "heads"),
        ("one head, copied to all", 1, shape.head_dim, "heads"),
        ("one head, split by sequence", 1, shape.head_dim, "batch"),
    )
    held = [heads_and_sequences_on_chip(CHIPS, SEQUENCES, heads, shard) for _, heads, _, shard in ways]
    return Limits(
        name=tuple(name for name, *_ in ways),
        context=torch.tensor([palm_context(heads, width, shard) for _, heads, width, shard in ways]),
        head_dim=torch.tensor([width for *_, width, _ in ways]),
        heads_on_chip=torch.tensor([heads for heads, _ in held]),
        sequences_on_chip=torch.tensor([sequences for _, sequences in held]),
    )
