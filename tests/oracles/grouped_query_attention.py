"""Grouped-query attention of torch, Llama with the converted weights, and a conversion written out as loops."""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import repeat_kv as llama_repeat_kv

from internals_math import tiny_lm
from internals_math.attention import causal_mask
from internals_math.grouped_query_attention import (
    convert_mha_to_gqa,
    converted_model,
    grouped_query_attention,
    repeat_kv,
)
from internals_math.kv_cache import KVCache
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn


def _torch_attention(groups: int, queries: int, keys: int) -> float:
    query, key = randn(2, 8, queries, 6, seed=1), randn(2, groups, keys, 6, seed=2)
    value = randn(2, groups, keys, 5, seed=3)
    # torch aligns its own is_causal to the first key, so the mask is given
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=causal_mask(queries, keys), enable_gqa=True
    )
    return largest_difference(grouped_query_attention(query, key, value)[0], theirs)


def _repeated() -> float:
    x = randn(2, 3, 5, 4, seed=1)
    return largest_difference(repeat_kv(x, 4), llama_repeat_kv(x, 4))


@torch.no_grad()
def _llama(groups: int) -> tuple[float, float]:
    """The converted tiny LM in Llama: logits, and the keys of the last layer's cache."""
    ours = converted_model(tiny_lm.load("base"), groups).eval()
    theirs = llama_of(ours)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    mine, cache = KVCache(3), DynamicCache(config=theirs.config)
    expected = theirs(ids, past_key_values=cache, use_cache=True).logits
    logits = largest_difference(ours(ids, cache=mine, inv_freq=theirs.model.rotary_emb.inv_freq), expected)
    kept, stored = mine.keys[2], cache.layers[2].keys  # type: ignore[attr-defined]
    assert kept is not None
    return logits, largest_difference(kept, stored)  # type: ignore[arg-type]  # (1, groups, T, 8)


def _averaged_by_hand(weight: Tensor, heads: int, groups: int) -> Tensor:
    """Average head by head and row by row, without reshaping anything."""
    head_dim, size = len(weight) // heads, heads // groups
    rows = []
    for group in range(groups):
        for row in range(head_dim):
            members = [weight[(group * size + k) * head_dim + row] for k in range(size)]
            rows.append(sum(members, torch.zeros_like(weight[0])) / size)
    return torch.stack(rows)


def _conversion() -> float:
    weight = randn(8 * 5, 12, seed=1)
    return max(
        largest_difference(convert_mha_to_gqa(weight, 8, groups), _averaged_by_hand(weight, 8, groups))
        for groups in (1, 2, 4)
    )


SDPA = "torch: SDPA with enable_gqa"
ROWS = (
    Oracle("attention with 2 groups of 4 heads", lambda: _torch_attention(2, 7, 7), 1e-12, SDPA),
    Oracle("attention with 4 groups of 2 heads, 3 new tokens", lambda: _torch_attention(4, 3, 7), 1e-12, SDPA),
    Oracle("repeated key-value heads", _repeated, 0, "transformers: repeat_kv of Llama"),
    Oracle("logits of the tiny LM with 2 heads", lambda: _llama(2)[0], 1e-4, "transformers: LlamaForCausalLM"),
    Oracle("its stored keys", lambda: _llama(2)[1], 1e-5, "transformers: LlamaForCausalLM with DynamicCache"),
    Oracle("logits of the tiny LM with 1 head", lambda: _llama(1)[0], 1e-4, "transformers: LlamaForCausalLM"),
    Oracle("mean conversion", _conversion, 1e-14, "loops over heads and rows"),
)
