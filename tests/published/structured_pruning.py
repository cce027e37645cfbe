"""Sizes of pruned Llamas, and of 2:4 weights."""

from dataclasses import replace
from itertools import combinations

from internals_math.model_shapes import preset
from internals_math.structured_pruning import PrunedShape, count_params, nm_bits
from tests.published import Published

PRUNER, SHORT, NVIDIA = "LLM-Pruner, 2305.11627", "ShortGPT, 2403.03853, Table 2", "2104.08378, section 3"
CONFIG = "config: D 4096, 32 layers, 32 heads, F 11008, V 32000"


def _shape(name: str, layers: int | None = None, cut: range = range(0), share: float = 1.0) -> PrunedShape:
    """Return a published shape with its first layers only, and a share of heads and channels in some of them."""
    whole = PrunedShape.of(preset(name))
    layers = len(whole.heads) if layers is None else layers

    def per_layer(numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(round(n * share) if k in cut else n for k, n in enumerate(numbers[:layers]))

    kept = {name: per_layer(getattr(whole, name)) for name in ("heads", "key_value_heads", "channels")}
    return replace(whole, **kept)


def _llama(name: str = "Llama-2-7B", **cut) -> int:
    return count_params(_shape(name, **cut))


def _one_less(unit: str) -> int:
    """Weights of one unit in one layer of Llama-2-7B."""
    whole = _shape("Llama-2-7B")
    names = ("heads", "key_value_heads") if unit == "head" else ("channels",)
    return count_params(whole) - count_params(
        replace(whole, **{name: (getattr(whole, name)[0] - 1, *getattr(whole, name)[1:]) for name in names})
    )


def _share_gone(name: str, layers: int) -> float:
    return 100 * (1 - _llama(name, layers=layers) / _llama(name))


ROWS = (
    Published("Llama-2-7B", _llama, 6_738_415_616, 0, CONFIG),
    Published("one layer of it", lambda: _llama() - _llama(layers=31), 202_383_360, 0, CONFIG),
    Published("one head of it", lambda: _one_less("head"), 2_097_152, 0, CONFIG),
    Published("one channel of it", lambda: _one_less("channel"), 12_288, 0, CONFIG),
    Published(
        "25% of heads and channels of layers 4 to 29 less", lambda: _llama(cut=range(4, 30), share=0.75),
        5_422_977_024, 0, f"{PRUNER}: 5.42B",
    ),
    Published("9 of its 32 layers less", lambda: _llama(layers=23), 4_916_965_376, 0, "arithmetic"),
    Published("what they hold, %", lambda: _share_gone("Llama-2-7B", 23), 27.1, 0.0037, SHORT),
    Published("Llama-2-13B", lambda: _llama("Llama-2-13B"), 13_015_864_320, 0, "config: D 5120, 40 layers, F 13824"),
    Published(
        "one layer of Llama-2-13B", lambda: _llama("Llama-2-13B") - _llama("Llama-2-13B", layers=39), 317_204_480, 0,
        "config: D 5120, 40 layers, F 13824",
    ),
    Published("10 of its 40 layers, %", lambda: _share_gone("Llama-2-13B", 30), 24.6, 0.0122, SHORT),
    Published("2:4 of 16-bit weights", lambda: nm_bits(4, 16) / 64, 0.5625, 0, f"{NVIDIA}: 44% saved"),
    Published("2:4 of 8-bit weights", lambda: nm_bits(4, 8) / 32, 0.625, 0, f"{NVIDIA}: 38% saved"),
    Published("patterns of 2:4", lambda: len(list(combinations(range(4), 2))), 6, 0, "C(4, 2)"),
)  # fmt: skip
