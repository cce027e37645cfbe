"""What caches of published models weigh, and how little work a decode step does with them."""

from internals_math import kv_cache
from internals_math.kv_cache import decode_attention_intensity, kv_cache_bytes, kv_cache_bytes_per_token
from internals_math.model_shapes import preset
from tests.published import Published

VLLM = "PagedAttention (vLLM), arXiv 2309.06180, section 3"
CONFIG = "the model's config; 2 · L · n_kv · h · 2 bytes"
SHAZEER = "Fast Transformer Decoding, arXiv 1911.02150: memory-bound decoding"


def _per_token(name: str):
    shape = preset(name)
    return lambda: kv_cache_bytes_per_token(shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim)


def _total(name: str, tokens: int):
    shape = preset(name)
    return lambda: kv_cache_bytes(shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim, tokens)


ROWS = (
    Published("Llama-2-7B, bytes per token", _per_token("llama-2-7b"), 524_288, 0, CONFIG),
    Published("Llama-2-7B, 4,096 tokens", _total("llama-2-7b", 4096), 2_147_483_648, 0, CONFIG),
    Published("Llama-2-70B, bytes per token", _per_token("llama-2-70b"), 327_680, 0, CONFIG),
    Published("Llama-2-70B with 64 KV heads", lambda: kv_cache_bytes_per_token(80, 64, 128), 2_621_440, 0, CONFIG),
    Published("Llama-3-8B, bytes per token", _per_token("llama-3-8b"), 131_072, 0, CONFIG),
    Published("Mistral-7B, bytes per token", _per_token("mistral-7b"), 131_072, 0, "Mistral 7B, 2310.06825, Table 1"),
    Published("OPT-13B, bytes per token (printed as 800 KB)", _per_token("opt-13b"), 819_200, 0, VLLM),
    Published("OPT-13B, 2,048 tokens (printed as 1.6 GB)", _total("opt-13b", 2048), 1_677_721_600, 0, VLLM),
    Published("FLOP per byte, MHA in FP16", lambda: decode_attention_intensity(32, 32), 1, 0, SHAZEER),
    Published("FLOP per byte, Llama-2-70B", lambda: decode_attention_intensity(64, 8), 8, 0, "2305.13245, H/G = 8"),
    Published(
        "key rows with cache, P = 8, S = 4", lambda: int(kv_cache.recompute_counts(8, 4)[0].sum()), 11, 0, "count"
    ),
    Published("key rows without", lambda: int(kv_cache.recompute_counts(8, 4)[1].sum()), 38, 0, "8 + 9 + 10 + 11"),
)
