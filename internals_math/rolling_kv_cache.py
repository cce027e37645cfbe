"""A key-value cache that never grows: position i lives in slot i mod W and overwrites position i - W.

Notation: W = window, G = key-value heads, H = query heads, T = prompt length, d = head_dim.
Source: Mistral 7B, arXiv 2310.06825, section 2 (rolling buffer cache, pre-fill and chunking).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.attention import scaled_dot_product_attention
from internals_math.sliding_window_band import check_window, sliding_window_mask


class RollingKVCache:
    """Keys (already rotated) and values of the last `window` positions; position i lives in slot i mod window.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, window: int, num_key_value_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
    ) -> None:
        if min(window, num_key_value_heads, head_dim) < 1:
            raise ValueError(
                f"window, num_key_value_heads and head_dim must be at least 1, got {window}, {num_key_value_heads} and "
                f"{head_dim}"
            )
        self.window = window
        self.keys = torch.zeros(num_key_value_heads, window, head_dim, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.positions = torch.full((window,), -1)  # what each slot holds; -1 = empty
        self.next_position: int | None = None  # None: nothing was stored yet, any start will do

    def slot(self, position: int) -> int:
        """Return the slot of a position."""
        return position % self.window

    def append(self, key: Float[Tensor, "G n d"], value: Float[Tensor, "G n d"], position: int) -> None:
        """Store n tokens, the first of them at `position`; each overwrites the token W positions before it.

        Raises:
            ValueError: a position that does not follow the last one, or other heads or head_dim than the cache's.
        """
        heads, _, head_dim = self.keys.shape
        if key.shape != value.shape or key.shape[0] != heads or key.shape[2] != head_dim:
            raise ValueError(
                f"keys and values must have the shape ({heads}, n, {head_dim}), got {tuple(key.shape)} and "
                f"{tuple(value.shape)}"
            )
        if position < 0 or position != (position if self.next_position is None else self.next_position):
            raise ValueError(f"position must be {self.next_position or 0}, the one after the last, got {position}")
        count = key.shape[1]
        kept = range(max(0, count - self.window), count)  # earlier ones would be overwritten by this very call
        for index in kept:
            slot = self.slot(position + index)
            self.keys[:, slot], self.values[:, slot] = key[:, index], value[:, index]
            self.positions[slot] = position + index
        self.next_position = position + count

    def get(self) -> tuple[Float[Tensor, "G m d"], Float[Tensor, "G m d"], Int[Tensor, " m"]]:
        """Return (keys, values, positions) in order of position; attention does not need the order."""
        order = self.positions.argsort()
        order = order[self.positions[order] >= 0]
        return self.keys[:, order], self.values[:, order], self.positions[order]


def prefill_chunked(
    query: Float[Tensor, "H T d"],
    key: Float[Tensor, "G T d"],
    value: Float[Tensor, "G T d"],
    window: int,
    chunk_size: int,
) -> Float[Tensor, "H T d"]:
    """Return windowed attention of a long prompt, chunk by chunk, with a ring of W slots as the only memory.

    A chunk attends before it is stored: its first queries still need keys that the chunk will overwrite.

    Raises:
        ValueError: window or chunk_size below 1.
    """
    check_window(window)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    cache = RollingKVCache(window, key.shape[0], key.shape[2], key.dtype)
    outputs = []
    for start in range(0, query.shape[1], chunk_size):
        rows = slice(start, start + chunk_size)
        old_keys, old_values, _ = cache.get()
        keys, values = torch.cat([old_keys, key[:, rows]], dim=1), torch.cat([old_values, value[:, rows]], dim=1)
        chunk = query[:, rows]
        mask = sliding_window_mask(chunk.shape[1], keys.shape[1], window=window)
        outputs.append(scaled_dot_product_attention(chunk[None], keys[None], values[None], mask)[0][0])
        cache.append(key[:, rows], value[:, rows], start)
    return torch.cat(outputs, dim=1)
