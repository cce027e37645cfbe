"""What the caches of published models weigh, and what the GQA paper measured."""

from internals_math.grouped_query_attention import (
    decode_attention_intensity,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    tradeoff,
)
from internals_math.model_shapes import preset
from tests.published import Published

CONFIG = "the model's config; 2 · L · G · d · 2 bytes"
PAPER = "GQA, arXiv 2305.13245, Table 1"


def _per_token(name: str, groups: int | None = None):
    shape = preset(name)
    groups = shape.num_key_value_heads if groups is None else groups
    return lambda: kv_cache_bytes_per_token(shape.num_hidden_layers, groups, shape.head_dim)


def _group_size(name: str):
    shape = preset(name)
    return lambda: decode_attention_intensity(shape.num_attention_heads, shape.num_key_value_heads)


def _tradeoff(column: str, name: str):
    def ours() -> float:
        table = tradeoff()
        return float(getattr(table, column)[table.name.index(name)])

    return ours


ROWS = (
    Published("Llama-2-7B, bytes per token", _per_token("llama-2-7b"), 524_288, 0, CONFIG),
    Published("Llama-2-70B, bytes per token", _per_token("llama-2-70b"), 327_680, 0, CONFIG),
    Published("Llama-2-70B with 64 key-value heads", _per_token("llama-2-70b", 64), 2_621_440, 0, CONFIG),
    Published("Llama-3-8B, bytes per token", _per_token("llama-3-8b"), 131_072, 0, CONFIG),
    Published("Llama-3-8B, 8,192 tokens: 1 GiB", lambda: kv_cache_bytes(32, 8, 128, 8192), 2**30, 0, CONFIG),
    Published("Mistral-7B, bytes per token", _per_token("mistral-7b"), 131_072, 0, "Mistral 7B, 2310.06825, Table 1"),
    Published("Llama-2-70B, FLOP per byte", _group_size("llama-2-70b"), 8, 0, "group size H / G"),
    Published("MQA-XXL is faster than MHA-XXL by", _tradeoff("speedup", "MQA-XXL"), 6.3, 0.008, PAPER),
    Published("GQA-8-XXL is faster than MHA-XXL by", _tradeoff("speedup", "GQA-8-XXL"), 5.4, 0.008, PAPER),
    Published("GQA-8-XXL gives up", _tradeoff("quality_lost", "GQA-8-XXL"), 0.1, 1e-4, PAPER),
    Published("MQA-XXL gives up", _tradeoff("quality_lost", "MQA-XXL"), 0.6, 1e-4, PAPER),
)
