"""The band of sliding window attention: which keys are visible, and attention that computes nothing else.

Notation: N = sequence length, W = window, i = query position, j = key position, d = head_dim. Key j is visible to query
i iff 0 <= i - j < W: exactly W keys, the token itself included, as in Hugging Face (flash-attn calls that
window_size=(W - 1, 0); Longformer's w counts both sides; Mistral's text, read literally, would be W + 1 keys).
Sources: Longformer, arXiv 2004.05150, section 3.1; Mistral 7B, arXiv 2310.06825, section 2; StreamingLLM, arXiv
2309.17453 (attention sinks).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from internals_math.attention import causal_mask, masked_softmax


def sliding_window_mask(
    q_len: int, kv_len: int | None = None, *, window: int, num_sink_tokens: int = 0
) -> Bool[Tensor, "q_len kv_len"]:
    """Return which key each query may see (True = visible), aligned to the bottom right corner.

    The first `num_sink_tokens` keys stay visible to all later queries, at their own positions (StreamingLLM gives them
    new ones inside the cache).

    Raises:
        ValueError: window below 1, negative sinks, a length below 1, or fewer keys than queries.

    >>> sliding_window_mask(3, window=2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    check_window(window)
    if num_sink_tokens < 0:
        raise ValueError(f"num_sink_tokens must be at least 0, got {num_sink_tokens}")
    mask = causal_mask(q_len, kv_len)
    shift = mask.shape[1] - q_len
    return mask & (mask.triu(shift - window + 1) | (torch.arange(mask.shape[1]) < num_sink_tokens))


def sliding_window_attention(
    query: Float[Tensor, "*batch N d"],
    key: Float[Tensor, "*batch n dk"],
    value: Float[Tensor, "*batch m dv"],
    window: int,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*batch N dv"], Float[Tensor, "*batch N W"]]:
    """Return (output, band weights) in O(N W) work and memory: no N x N tensor exists.

    Column c of the band is key i - (W - 1) + c; entries before the start of the text are 0.

    Raises:
        ValueError: window below 1, or query, key and value of different length or head_dim.
    """
    check_window(window)
    length = query.shape[-2]
    if key.shape[-2] != length or value.shape[-2] != length or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query, key and value must have equal length, and query and key equal head_dim; got "
            f"{tuple(query.shape[-2:])}, {tuple(key.shape[-2:])} and {tuple(value.shape[-2:])}"
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    keys, values = (_windows(part, window) for part in (key, value))  # (…, N, W, d)
    scores = torch.einsum("...nd,...nwd->...nw", query, keys) * scale
    weights = masked_softmax(scores, band_positions(length, window, query.device) >= 0)
    return torch.einsum("...nw,...nwd->...nd", weights, values), weights


def _windows(x: Tensor, window: int) -> Tensor:
    """Return the W rows up to each position (…, N, W, d) as a view of one padded copy."""
    padded = nn.functional.pad(x, (0, 0, window - 1, 0))
    return padded.unfold(-2, window, 1).transpose(-2, -1)


def band_positions(length: int, window: int, device: torch.device | None = None) -> Int[Tensor, "N W"]:
    """Return the key position of each cell of the band; below 0 before the start of the text."""
    return torch.arange(length, device=device)[:, None] + torch.arange(1 - window, 1, device=device)


def band_to_dense(band_weights: Float[Tensor, "*batch N W"], length: int) -> Float[Tensor, "*batch N N"]:
    """Return the weights as a matrix, 0 outside the band."""
    if band_weights.shape[-2] != length:
        raise ValueError(f"the band has {band_weights.shape[-2]} rows, got length {length}")
    positions = band_positions(length, band_weights.shape[-1], band_weights.device)
    dense = band_weights.new_zeros(*band_weights.shape[:-1], length)
    inside = band_weights.masked_fill(positions < 0, 0.0)
    return dense.scatter_add(-1, positions.clamp(min=0).expand(inside.shape), inside)


def dense_to_band(weights: Float[Tensor, "*batch N n"], window: int) -> Float[Tensor, "*batch N W"]:
    """Return the band of a square matrix, 0 before the start of the text."""
    check_window(window)
    if weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"weights must be square, got {tuple(weights.shape[-2:])}")
    positions = band_positions(weights.shape[-1], window, weights.device)
    band = weights.gather(-1, positions.clamp(min=0).expand(*weights.shape[:-1], window))
    return band.masked_fill(positions < 0, 0.0)


def visible_pairs(seq_len: int, window: int | None = None) -> int:
    """Return how many (query, key) pairs are visible: N (N + 1) / 2, or W N - W (W - 1) / 2 with a window W <= N."""
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1, got {seq_len}")
    if window is not None:
        check_window(window)
    width = seq_len if window is None else min(window, seq_len)
    return width * seq_len - width * (width - 1) // 2


def visible_attention_flops(seq_len: int, head_dim: int, num_heads: int, window: int | None = None) -> int:
    """Return the FLOPs of scores and mix over visible pairs alone: 4 · pairs · d · H."""
    if min(head_dim, num_heads) < 1:
        raise ValueError(f"head_dim and num_heads must be at least 1, got {head_dim} and {num_heads}")
    return 4 * visible_pairs(seq_len, window) * head_dim * num_heads


def check_window(window: int) -> None:
    """Refuse a window without a single key."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
