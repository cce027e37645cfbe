"""Sliding window attention: every token sees only the last W tokens, and layers relay what lies further back.

Notation: N = sequence length, W = window, L = layers, d = head_dim. The band itself is in `sliding_window_band`, reach
and influence in `sliding_window_reach`, the ring in `rolling_kv_cache`; this module says what the video shows of them.
Sources: Longformer, arXiv 2004.05150; Mistral 7B, arXiv 2310.06825, section 2; Gemma 3, arXiv 2503.19786 (five local
layers to one global).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from internals_math import progress, tiny_lm
from internals_math.attention import attention_scores, causal_mask, masked_softmax
from internals_math.attention import scaled_dot_product_attention as masked_attention
from internals_math.kv_cache import kv_cache_bytes
from internals_math.model_shapes import preset
from internals_math.rolling_kv_cache import RollingKVCache, prefill_chunked
from internals_math.sliding_window_band import (
    band_positions,
    band_to_dense,
    check_window,
    dense_to_band,
    sliding_window_attention,
    sliding_window_mask,
    visible_attention_flops,
    visible_pairs,
)
from internals_math.sliding_window_reach import influence_kernel, input_influence, reachability, receptive_field
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "RollingKVCache", "Trace", "band_to_dense", "cache_elements", "dense_to_band", "influence_kernel",
    "input_influence", "masked_attention", "prefill_chunked", "reachability", "receptive_field",
    "sliding_window_attention", "sliding_window_mask", "trace", "visible_attention_flops", "visible_pairs",
]  # fmt: skip


def cache_elements(seq_len: int, window: int, layer_pattern: Sequence[str]) -> int:
    """Return the cached positions of a stack of "local" and "global" layers, for each key-value head and dimension.

    Raises:
        ValueError: a length or window below 1, or another kind of layer.
    """
    check_window(window)
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1, got {seq_len}")
    unknown = set(layer_pattern) - {"local", "global"}
    if unknown or not layer_pattern:
        raise ValueError(f"layers must be local or global, got {', '.join(sorted(unknown)) or 'none'}")
    return sum(min(window, seq_len) if kind == "local" else seq_len for kind in layer_pattern)


# -- what the video shows ----------------------------------------------------------------------------------------------

LOSS_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LOSS_DOCUMENTS = 256
TRAINED_WINDOWS, TRAINED_STEPS = (4, 8, 16, 24), 150
INFLUENCE_DOCUMENTS = 64
DEPTHS = (2, 4, 8, 16, 32)
GEMMA_PATTERN, GEMMA_WINDOW = ("local",) * 5 + ("global",), 1024
MISTRAL_WINDOW = 4096
LONG_TEXT = 32_768


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    num_tokens: int = option(16, "words of the series story", minimum=8, maximum=32)
    window: int = option(4, "words that each word may look at, itself included", minimum=2, maximum=16)
    num_sink_tokens: int = option(0, "first words that stay visible to all", minimum=0, maximum=4)
    # Of the twelve heads, layer 0 head 3 spreads most evenly over near and far words.
    layer: int = option(0, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(3, "attention head to show", minimum=0, maximum=3)
    residual_weight: float = option(0.5, "what a layer keeps in the averaging model", minimum=0.0, maximum=0.99)

    def check(self) -> None:
        if self.window >= self.num_tokens:
            raise ValueError(f"window must be below num_tokens ({self.num_tokens}), got {self.window}")


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Stacks of local and global layers and what their cache holds, one row each."""

    name: tuple[str, ...]
    cache_fraction: Float[Tensor, " R"]  # of a stack of global layers alone, at hybrid_length tokens


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. NaN: not visible, or not there yet."""

    config: Config
    tokens: tuple[str, ...]  # N
    weights_full: Float[Tensor, "N N"]  # NaN where masked
    weights_window: Float[Tensor, "N N"]  # the same scores with the window's mask
    mask: Bool[Tensor, "N N"]
    band_weights: Float[Tensor, "N W"]  # NaN before the start of the text
    last_full: Float[Tensor, " N"]  # the last row of weights
    last_window: Float[Tensor, " N"]  # 0 outside the window
    last_cut: Float[Tensor, " N"]  # what the window leaves of last_full, before the softmax is done again
    lengths: Int[Tensor, " 3"]  # N / 4, N / 2, N
    length_pairs: Int[Tensor, " 3"]
    pairs_full: int
    pairs_window: int
    pairs_curve_N: Int[Tensor, " K"]
    pairs_curve_full: Int[Tensor, " K"]
    pairs_curve_window: Int[Tensor, " K"]
    pairs_ratio: float  # full / window at the end of the curves
    cone: Float[Tensor, "L_plus_1 N"]  # 1 where a state can reach the last word; row 0 = embeddings
    cone_links: Float[Tensor, "L N N"]  # 1 from a state inside the cone (row) to the states it reads (column)
    layer_numbers: Int[Tensor, " L_plus_1"]  # 0 = embeddings
    reach: Int[Tensor, " L_plus_1"]  # words back, of the last word, seen from the top
    influence_cone: Float[Tensor, "L_plus_1 N"]  # measured; share of the layer's largest
    distance: Int[Tensor, " N"]  # 0, 1, … words back from the last one
    influence_full: Float[Tensor, " N"]  # of embeddings, by distance; mean over documents, share of the largest
    influence_window: Float[Tensor, " N"]
    influence_documents: int
    influence_edge: float  # influence_window at the largest distance it can reach
    influence_beyond: float  # the largest one beyond: 0 to the bit
    depths: Int[Tensor, " D"]
    kernel_distance: Int[Tensor, " M"]
    kernel_by_depth: Float[Tensor, "D M"]  # NaN beyond the reach
    kernel_reach: Int[Tensor, " D"]
    kernel_std: Float[Tensor, " D"]
    ring_positions: Int[Tensor, "N W"]  # content of each slot after each word; -1 = empty
    ring_slot: Int[Tensor, " N"]  # slot of each word
    ring_keys: Float[Tensor, "N W d"]
    ring_values: Float[Tensor, "N W d"]
    ring_queries: Float[Tensor, "N d"]
    ring_weights: Float[Tensor, "N W"]  # of each word on the slots, with its own key already stored
    ring_outputs: Float[Tensor, "N d"]
    max_abs_diff_ring: float  # from attention over the whole text with the window's mask
    loss_windows: Int[Tensor, " m"]
    loss_by_window: Float[Tensor, " m"]  # nats per token
    loss_by_window_with_sink: Float[Tensor, " m"]  # the first token stays visible
    loss_full: float
    trained_windows: Int[Tensor, " t"]
    trained_steps: int  # updates with the window in place, from the model that saw the whole past
    loss_trained: Float[Tensor, " t"]
    trained_reach: Int[Tensor, " t"]  # words back
    hybrid: Hybrid
    hybrid_length: int
    hybrid_window: int
    hybrid_masks: Float[Tensor, "layers N N"]  # 1 where visible, for N and window of the config
    real_name: str
    real_window: int
    real_length: int
    real_layers: int
    real_reach: int  # L (W - 1)
    real_cache_bytes: Int[Tensor, " 2"]  # FP16: whole text, ring


def trace(config: Config) -> Trace:
    """Look at one head through a window, and at the whole model through windows of all widths."""
    model = tiny_lm.load("base")
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: config.num_tokens]])
    with torch.no_grad():
        _, seen = model(ids, record=("q_rot", "k_rot", "v"))
    query, key, value = (seen[name][config.layer, 0, config.head] for name in ("q_rot", "k_rot", "v"))
    return Trace(
        config=config,
        tokens=tiny_lm.tokens(ids[0]),
        **_band(query, key, value, config),
        **_pairs(config),
        **_cone(model, ids, config),
        **_influence(model, config),
        **_kernels(config),
        **_ring(query, key, value, config),
        **_losses(model),
        **_trained_losses(),
        **_hybrid(config),
    )


def _band(query: Tensor, key: Tensor, value: Tensor, config: Config) -> dict[str, Any]:
    """Return the head's weights with the whole past, with the window, and as an upright band."""
    length, window = len(query), config.window
    scores, causal = attention_scores(query, key), causal_mask(length)
    mask = sliding_window_mask(length, window=window, num_sink_tokens=config.num_sink_tokens)
    full, narrow = masked_softmax(scores, causal), masked_softmax(scores, mask)
    _, band = sliding_window_attention(query, key, value, window)
    return {
        "weights_full": full.masked_fill(~causal, math.nan),
        "weights_window": narrow.masked_fill(~mask, math.nan),
        "mask": mask,
        "band_weights": band.masked_fill(band_positions(length, window) < 0, math.nan),
        "last_full": full[-1],
        "last_window": narrow[-1],
        "last_cut": full[-1] * mask[-1],
        "pairs_full": visible_pairs(length),
        "pairs_window": visible_pairs(length, window),
    }


def _pairs(config: Config) -> dict[str, Any]:
    """Return the number of visible pairs over the length of the text."""
    lengths = torch.tensor([config.num_tokens // 4, config.num_tokens // 2, config.num_tokens])
    curve = torch.arange(1, 257)
    full = torch.tensor([visible_pairs(n) for n in curve.tolist()])
    narrow = torch.tensor([visible_pairs(n, config.window) for n in curve.tolist()])
    return {
        "lengths": lengths,
        "length_pairs": torch.tensor([visible_pairs(n) for n in lengths.tolist()]),
        "pairs_curve_N": curve,
        "pairs_curve_full": full,
        "pairs_curve_window": narrow,
        "pairs_ratio": float(full[-1] / narrow[-1]),
    }


def _cone(model: tiny_lm.TinyLM, ids: Int[Tensor, "1 N"], config: Config) -> dict[str, Any]:
    """Return which states can reach the last word's final state, and how much they really change it."""
    layers, length = model.config.num_hidden_layers, ids.shape[1]
    reach = reachability(layers, config.window, length)
    cone = torch.stack([reach[layers - layer][-1] for layer in range(layers + 1)])  # row 0: embeddings
    mask = sliding_window_mask(length, window=config.window)
    links = torch.stack([cone[layer + 1][:, None] & mask for layer in range(layers)])
    measured = torch.stack([input_influence(model, ids, config.window, length - 1, k) for k in range(layers + 1)])
    back = [length - 1 - receptive_field(k, config.window, length - 1) if k else 0 for k in range(layers + 1)]
    return {
        "cone": cone.float(),
        "cone_links": links.float(),
        "layer_numbers": torch.arange(layers + 1),
        "reach": torch.tensor(back),
        "influence_cone": measured / measured.amax(dim=1, keepdim=True),
    }


def _influence(model: tiny_lm.TinyLM, config: Config) -> dict[str, Any]:
    """Return the influence of each distance on the last word, averaged over held-out tales."""
    length = config.num_tokens
    rows = tiny_lm.held_out_kind("tale", INFLUENCE_DOCUMENTS).ids[:, :length]
    sizes = {}
    for name, window in (("full", None), ("window", config.window)):
        each = [input_influence(model, row[None], window, length - 1) for row in rows]
        sizes[name] = torch.stack(each).mean(dim=0).flip(0)
    shares = {name: size / size.max() for name, size in sizes.items()}
    reach = length - 1 - receptive_field(model.config.num_hidden_layers, config.window, length - 1)
    beyond = shares["window"][reach + 1 :]
    return {
        "distance": torch.arange(length),
        "influence_full": shares["full"],
        "influence_window": shares["window"],
        "influence_documents": len(rows),
        "influence_edge": float(shares["window"][reach]),
        "influence_beyond": float(beyond.max()) if len(beyond) else 0.0,
    }


def _kernels(config: Config) -> dict[str, Any]:
    """Return the averaging model's kernel for stacks of growing depth."""
    kernels = [influence_kernel(depth, config.window, config.residual_weight) for depth in DEPTHS]
    longest = len(kernels[-1])
    rows = [nn.functional.pad(kernel, (0, longest - len(kernel)), value=math.nan) for kernel in kernels]
    spreads = []
    for kernel in kernels:
        place = torch.arange(len(kernel), dtype=torch.float64)
        mean = (kernel * place).sum()
        spreads.append(float((kernel * (place - mean) ** 2).sum().sqrt()))
    return {
        "depths": torch.tensor(DEPTHS),
        "kernel_distance": torch.arange(longest),
        "kernel_by_depth": torch.stack(rows).float(),
        "kernel_reach": torch.tensor([len(kernel) - 1 for kernel in kernels]),
        "kernel_std": torch.tensor(spreads),
    }


def _ring(query: Tensor, key: Tensor, value: Tensor, config: Config) -> dict[str, Any]:
    """Return what the ring holds after every word, and what the word reads from it, slot by slot."""
    length, window = len(query), config.window
    cache = RollingKVCache(window, 1, key.shape[1], key.dtype)
    rows: dict[str, list[Tensor]] = {name: [] for name in ("positions", "keys", "values", "weights", "outputs")}
    for position in range(length):
        cache.append(key[None, position : position + 1], value[None, position : position + 1], position)
        held = cache.positions >= 0
        # slots as they lie in memory, out of order: softmax does not care
        weights = masked_softmax(attention_scores(query[position : position + 1], cache.keys[0]), held[None])[0]
        rows["positions"].append(cache.positions.clone())
        rows["keys"].append(cache.keys[0].masked_fill(~held[:, None], math.nan))
        rows["values"].append(cache.values[0].masked_fill(~held[:, None], math.nan))
        rows["weights"].append(weights.masked_fill(~held, math.nan))
        rows["outputs"].append(weights @ cache.values[0])
    ring = {f"ring_{name}": torch.stack(parts) for name, parts in rows.items()}
    whole = masked_attention(
        query[None, None], key[None, None], value[None, None], sliding_window_mask(length, window=window)
    )[0][0, 0]
    return {
        **ring,
        "ring_slot": torch.tensor([cache.slot(position) for position in range(length)]),
        "ring_queries": query,
        "max_abs_diff_ring": float((ring["ring_outputs"] - whole).abs().max()),
    }


def _losses(model: tiny_lm.TinyLM) -> dict[str, Any]:
    """Return the held-out loss when all layers see through a window; the model was trained without one."""
    corpus = tiny_lm.held_out(LOSS_DOCUMENTS)
    length = corpus.ids.shape[1]

    def loss(window: int, sinks: int) -> float:
        return tiny_lm.evaluate(model, corpus, mask=sliding_window_mask(length, window=window, num_sink_tokens=sinks))

    return {
        "loss_windows": torch.tensor(LOSS_WINDOWS),
        "loss_by_window": torch.tensor([loss(window, 0) for window in LOSS_WINDOWS]),
        "loss_by_window_with_sink": torch.tensor([loss(window, 1) for window in LOSS_WINDOWS]),
        "loss_full": tiny_lm.evaluate(model, corpus),
    }


@cache  # the same for every Config, and it takes a while
def _trained_losses() -> dict[str, Any]:
    """Return the loss of models that were trained on for a while with a window in every layer."""
    base, corpus = tiny_lm.load("base"), tiny_lm.held_out(LOSS_DOCUMENTS)
    losses = []
    for window in TRAINED_WINDOWS:
        model = tiny_lm.TinyLM(replace(base.config, sliding_window=window))
        model.load_state_dict(base.state_dict())
        news = progress.on_step(f"training with a window of {window}")
        losses.append(tiny_lm.evaluate(tiny_lm.continue_training(model, TRAINED_STEPS, on_step=news), corpus))
    layers = base.config.num_hidden_layers
    return {
        "trained_windows": torch.tensor(TRAINED_WINDOWS),
        "trained_steps": TRAINED_STEPS,
        "loss_trained": torch.tensor(losses),
        "trained_reach": torch.tensor([layers * (window - 1) for window in TRAINED_WINDOWS]),
    }


def _hybrid(config: Config) -> dict[str, Any]:
    """Return Gemma 3's pattern of layers, and what its cache and Mistral's ring save."""
    patterns = {
        "all global": ("global",) * 6,
        "five local, one global": GEMMA_PATTERN,
        "all local": ("local",) * 6,
    }
    whole = cache_elements(LONG_TEXT, GEMMA_WINDOW, patterns["all global"])
    fractions = [cache_elements(LONG_TEXT, GEMMA_WINDOW, pattern) / whole for pattern in patterns.values()]
    local = sliding_window_mask(config.num_tokens, window=config.window)
    masks = [causal_mask(config.num_tokens) if kind == "global" else local for kind in GEMMA_PATTERN]
    mistral = preset("mistral-7b")
    layers, heads, dim = mistral.num_hidden_layers, mistral.num_key_value_heads, mistral.head_dim
    return {
        "hybrid": Hybrid(tuple(patterns), torch.tensor(fractions)),
        "hybrid_length": LONG_TEXT,
        "hybrid_window": GEMMA_WINDOW,
        "hybrid_masks": torch.stack(masks).float(),
        "real_name": mistral.name,
        "real_window": MISTRAL_WINDOW,
        "real_length": LONG_TEXT,
        "real_layers": layers,
        "real_reach": layers * (MISTRAL_WINDOW - 1),
        "real_cache_bytes": torch.tensor(
            [kv_cache_bytes(layers, heads, dim, length) for length in (LONG_TEXT, MISTRAL_WINDOW)]
        ),
    }
