"""What DeepSeek-V2's paper says of its cache."""

from internals_math.model_shapes import preset
from internals_math.multi_latent_attention import (
    PAPER_BITS,
    USUAL_BITS,
    cache_bytes,
    deepseek_v2,
    gqa_equivalent_groups,
    latent_elements,
    macs_per_cached_token,
    published_caches,
)
from tests.published import Published

PAPER = "DeepSeek-V2, arXiv 2405.04434"
CONFIG = "the model's config"


def _row(column: str, name: str):
    def ours() -> float:
        table = published_caches()
        return float(getattr(table, column)[table.name.index(name)])

    return ours


def _groups() -> float:
    latent = deepseek_v2()
    return gqa_equivalent_groups(latent.kv_lora_rank, latent.qk_rope_head_dim, latent.qk_nope_head_dim)


def _saved(bits_v2: int) -> float:
    small, large = _row("elements", "DeepSeek-V2")(), _row("elements", "DeepSeek-67B")()
    return 1 - cache_bytes(int(small), bits_v2) / cache_bytes(int(large), USUAL_BITS)


def _macs(index: int):
    latent = deepseek_v2()
    sizes = (latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim, latent.kv_lora_rank)
    return lambda: macs_per_cached_token(*sizes)[index]


ROWS = (
    Published("DeepSeek-V2, elements per layer", lambda: latent_elements(preset("deepseek-v2")), 576, 0, CONFIG),
    Published("DeepSeek-V2, elements per token", _row("elements", "DeepSeek-V2"), 34_560, 0, f"{PAPER}, section 3.1.2"),
    Published("as grouped-query attention with groups", _groups, 2.25, 0, f"{PAPER}, Table 1"),
    Published(
        "own keys, elements per layer", _row("elements_per_layer", "DeepSeek-V2 with own keys"), 32_768, 0, CONFIG
    ),
    Published(
        "own keys, times as much",
        lambda: _row("elements", "DeepSeek-V2 with own keys")() / _row("elements", "DeepSeek-V2")(),
        56.9,
        0.001,
        "32,768 / 576",
    ),
    Published("V2-Lite, elements per token", _row("elements", "DeepSeek-V2-Lite"), 15_552, 0, CONFIG),
    Published("V2-Lite, printed as", _row("elements", "DeepSeek-V2-Lite"), 15.6e3, 0.0035, f"{PAPER}, appendix"),
    Published(
        "V2-Lite with own keys, elements per token",
        _row("elements", "DeepSeek-V2-Lite with own keys"),
        110_592,
        0,
        "27 layers x 16 heads x 2 x 128",
    ),
    Published(
        "V2-Lite with own keys, printed as",
        _row("elements", "DeepSeek-V2-Lite with own keys"),
        110.6e3,
        0.0005,
        f"{PAPER}, appendix",
    ),
    Published("DeepSeek-67B, elements per token", _row("elements", "DeepSeek-67B"), 194_560, 0, CONFIG),
    Published("DeepSeek-67B, bytes in 16 bit", _row("bytes", "DeepSeek-67B"), 389_120, 0, CONFIG),
    Published("cache saved, 6 bits against 16", lambda: _saved(PAPER_BITS), 0.933, 0.0005, f"{PAPER}, abstract"),
    Published("cache saved, elements alone", lambda: _saved(USUAL_BITS), 0.822, 0.0005, "derived"),
    Published("multiply-adds, keys rebuilt", _macs(0), 320, 0, "2 · 128 + 64"),
    Published("multiply-adds, absorbed", _macs(1), 1_088, 0, "2 · 512 + 64"),
)
