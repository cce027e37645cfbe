"""Masks, attention, a whole Mistral and its cache from torch and transformers; convolutions of numpy."""

import warnings

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.masking_utils import sliding_window_causal_mask_function

from internals_math import tiny_lm
from internals_math.sliding_window_attention import (
    RollingKVCache,
    influence_kernel,
    sliding_window_attention,
    sliding_window_mask,
)
from tests.oracles import Oracle, largest_difference, randn

LENGTH = 21


def _inputs() -> tuple[torch.Tensor, ...]:
    return tuple(randn(2, 4, LENGTH, 8, seed=seed) for seed in (1, 2, 3))


def _sdpa(window: int) -> float:
    q, k, v = _inputs()
    mask = sliding_window_mask(LENGTH, window=window)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return largest_difference(sliding_window_attention(q, k, v, window)[0], theirs)


def _flex(window: int) -> float:
    q, k, v = (part.float() for part in _inputs())

    def visible(batch, head, query, key):
        return (key <= query) & (query - key < window)

    block_mask = create_block_mask(visible, None, None, LENGTH, LENGTH, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is slow when it is not compiled
        theirs = flex_attention(q, k, v, block_mask=block_mask)
    assert isinstance(theirs, torch.Tensor)
    return largest_difference(sliding_window_attention(q, k, v, window)[0], theirs)


def _mask(window: int) -> float:
    """Cells in which the masks differ."""
    visible = sliding_window_causal_mask_function(window)
    place = torch.arange(LENGTH)
    theirs = [[bool(visible(place[0], place[0], i, j)) for j in place] for i in place]
    return float((torch.tensor(theirs) != sliding_window_mask(LENGTH, window=window)).sum())


@torch.no_grad()
def _mistral() -> float:
    """Logits of a Mistral with fresh weights and a window, and of our model with the same weights and our mask."""
    config = MistralConfig(
        vocab_size=112, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_theta=100.0, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = MistralForCausalLM(config).eval()
    theirs.set_attn_implementation("eager")
    ours = tiny_lm.TinyLM(tiny_lm.ModelConfig(num_hidden_layers=2, num_key_value_heads=2), seed=3).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:LENGTH]])
    inv_freq = theirs.model.rotary_emb.inv_freq  # theirs are rounded to float32
    mine = ours(ids, mask=sliding_window_mask(LENGTH, window=4), inv_freq=inv_freq)
    return largest_difference(mine, theirs(ids).logits)


def _cache(window: int) -> float:
    """What the ring holds after each token, and what the library's sliding layer returns for it."""
    theirs, ours = DynamicSlidingWindowLayer(sliding_window=window), RollingKVCache(window, 2, 8, torch.float64)
    keys, values = randn(2, LENGTH, 8, seed=2), randn(2, LENGTH, 8, seed=3)
    worst = 0.0
    for i in range(LENGTH):
        key, value = keys[:, i : i + 1], values[:, i : i + 1]
        ours.append(key, value, i)
        stored = theirs.update(key[None], value[None])
        for mine, other in zip(ours.get()[:2], stored, strict=True):
            worst = max(worst, largest_difference(mine, other[0]))
    return worst


def _kernel() -> float:
    layer = np.full(5, 0.7 / 5)
    layer[0] += 0.3
    theirs = np.ones(1)
    for _ in range(6):
        theirs = np.convolve(theirs, layer)
    return largest_difference(influence_kernel(6, 5, 0.3), torch.from_numpy(theirs))


SDPA, FLEX = "torch: SDPA with the mask", "torch: flex_attention"
MASK, CACHE = "transformers: sliding_window_causal_mask_function", "transformers: DynamicSlidingWindowLayer"
ROWS = (
    *(Oracle(f"attention by the band, W {window}", lambda w=window: _sdpa(w), 1e-12, SDPA) for window in (1, 4, 30)),
    *(
        Oracle(f"attention by the band, W {window}, float32", lambda w=window: _flex(w), 1e-5, FLEX)
        for window in (4, 7)
    ),
    *(Oracle(f"cells of the mask, W {window}", lambda w=window: _mask(w), 0, MASK) for window in (1, 4, 30)),
    Oracle("logits of a windowed model", _mistral, 1e-4, "transformers: MistralForCausalLM, W 4, 2 layers"),
    *(Oracle(f"the ring after every token, W {window}", lambda w=window: _cache(w), 0, CACHE) for window in (2, 4)),
    Oracle("six layers of averaging", _kernel, 1e-15, "numpy: convolve"),
)
