"""Reach, cache and work of published windows."""

from internals_math.kv_cache import kv_cache_bytes
from internals_math.model_shapes import preset
from internals_math.sliding_window_attention import (
    cache_elements,
    influence_kernel,
    receptive_field,
    visible_pairs,
)
from tests.published import Published

MISTRAL = "Mistral 7B, arXiv 2310.06825, section 2"
PAIRS = "W N - W (W - 1) / 2; the paper reports a 2x speed gain at 16K with W 4,096"
GEMMA = "5 local : 1 global with span 1,024, Gemma 3, arXiv 2503.19786; (N + 5 W) / 6 N"
SHAPE = preset("mistral-7b")
WINDOW, TEXT = 4096, 32_768


def _cache(tokens: int) -> int:
    return kv_cache_bytes(SHAPE.num_hidden_layers, SHAPE.num_key_value_heads, SHAPE.head_dim, tokens)


def _hybrid(tokens: int):
    pattern = ("local",) * 5 + ("global",)
    return lambda: cache_elements(tokens, 1024, pattern) / cache_elements(tokens, 1024, ("global",) * 6)


def _exact_reach() -> int:
    far = 1_000_000
    return far - receptive_field(SHAPE.num_hidden_layers, WINDOW, far)


def _kernel_moment(power: int) -> float:
    """Mean, or standard deviation, of the distances that 32 layers of plain averaging mix."""
    kernel = influence_kernel(32, 64, 0.0).tolist()  # a window 64 times smaller: the shape is the same
    mean = sum(place * share for place, share in enumerate(kernel))
    if power == 1:
        return mean
    return sum((place - mean) ** 2 * share for place, share in enumerate(kernel)) ** 0.5


ROWS = (
    Published("Mistral-7B, layers x window", lambda: SHAPE.num_hidden_layers * WINDOW, 131_072, 0, MISTRAL),
    Published("Mistral-7B, exact reach L (W - 1)", _exact_reach, 131_040, 0, "32 x 4,095"),
    Published("rolling cache at 32K, times smaller", lambda: _cache(TEXT) / _cache(WINDOW), 8, 0, MISTRAL),
    Published("Mistral-7B, bytes of the ring", lambda: _cache(WINDOW), 536_870_912, 0, "4,096 x 131,072 bytes"),
    Published("Mistral-7B, bytes of 32K tokens", lambda: _cache(TEXT), 4_294_967_296, 0, "32,768 x 131,072 bytes"),
    Published("pairs at 16K", lambda: visible_pairs(16_384), 134_225_920, 0, "N (N + 1) / 2"),
    Published("pairs at 16K, W 4,096", lambda: visible_pairs(16_384, WINDOW), 58_722_304, 0, PAIRS),
    Published("ratio at 16K", lambda: visible_pairs(16_384) / visible_pairs(16_384, WINDOW), 2.286, 1e-3, PAIRS),
    Published("pairs at 32K", lambda: visible_pairs(TEXT), 536_887_296, 0, "N (N + 1) / 2"),
    Published("pairs at 32K, W 4,096", lambda: visible_pairs(TEXT, WINDOW), 125_831_168, 0, PAIRS),
    Published("ratio at 32K", lambda: visible_pairs(TEXT) / visible_pairs(TEXT, WINDOW), 4.267, 1e-3, PAIRS),
    Published("cache share of five to one at 32K", _hybrid(TEXT), 0.1927, 1e-3, GEMMA),
    Published("cache share of five to one at 128K", _hybrid(131_072), 0.1732, 1e-3, GEMMA),
    Published(
        "mean distance of 32 averaging layers, W 64", lambda: _kernel_moment(1), 32 * 63 / 2, 1e-9, "L (W - 1) / 2"
    ),
    Published(
        "spread of 32 averaging layers, W 64", lambda: _kernel_moment(2), 64 * (32 / 12) ** 0.5, 1e-3, "W sqrt(L / 12)"
    ),
)
