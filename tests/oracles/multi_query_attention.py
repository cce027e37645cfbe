"""Multi-query attention of torch and of two models of transformers."""

import torch
from transformers import DynamicCache, GPTBigCodeConfig
from transformers.models.gpt_bigcode.modeling_gpt_bigcode import GPTBigCodeAttention

from internals_math import tiny_lm
from internals_math.attention import causal_mask
from internals_math.kv_cache import KVCache
from internals_math.multi_query_attention import multi_query_attention, multi_query_self_attention_step
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn


def _torch_attention(queries: int, keys: int) -> float:
    query, key, value = randn(2, 6, queries, 8, seed=1), randn(2, keys, 8, seed=2), randn(2, keys, 5, seed=3)
    # torch aligns its own is_causal to the first key, so the mask is given
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key[:, None], value[:, None], attn_mask=causal_mask(queries, keys), enable_gqa=True
    )
    return largest_difference(multi_query_attention(query, key, value)[0], theirs)


@torch.no_grad()
def _llama_logits_and_keys() -> tuple[float, float]:
    """The trained multi-query model in Llama with one key-value head."""
    ours = tiny_lm.load("mqa")
    theirs = llama_of(ours)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    mine, cache = KVCache(3), DynamicCache(config=theirs.config)
    expected = theirs(ids, past_key_values=cache, use_cache=True).logits
    logits = largest_difference(ours(ids, cache=mine, inv_freq=theirs.model.rotary_emb.inv_freq), expected)
    kept, stored = mine.keys[1], cache.layers[1].keys  # type: ignore[attr-defined]
    assert kept is not None
    return logits, largest_difference(kept, stored)  # type: ignore[arg-type]  # (1, 1, T, 8): one head is all there is


@torch.no_grad()
def _big_code_steps() -> float:
    """Steps from an empty memory against one call of StarCoder's attention over the whole text."""
    config = GPTBigCodeConfig(n_embd=32, n_head=4, multi_query=True, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "eager"
    theirs = GPTBigCodeAttention(config, layer_idx=0).double().eval()
    for name, weight in theirs.named_parameters():  # no biases in ours
        weight.copy_(torch.zeros_like(weight) if name.endswith("bias") else randn(*weight.shape, seed=len(name)))
    x = randn(2, 7, 32, seed=4)
    mask = torch.where(causal_mask(7), 0.0, -torch.inf)[None, None].double()
    expected = theirs(x, attention_mask=mask)[0]
    q_weight, k_weight, v_weight = theirs.c_attn.weight.split([32, 8, 8])
    key = value = torch.zeros(2, 0, 8, dtype=torch.float64)
    outputs = []
    for position in range(7):
        output, key, value = multi_query_self_attention_step(
            x[:, position], key, value, q_weight, k_weight, v_weight, theirs.c_proj.weight, num_heads=4
        )
        outputs.append(output)
    return largest_difference(torch.stack(outputs, dim=1), expected)


def _weights_of_llama() -> float:
    ours = tiny_lm.load("mqa")
    return float(abs(ours.num_params - sum(weight.numel() for weight in llama_of(ours).parameters())))


LLAMA = "transformers: LlamaForCausalLM, one key-value head"
ROWS = (
    Oracle("attention of a whole text", lambda: _torch_attention(9, 9), 1e-12, "torch: SDPA with enable_gqa"),
    Oracle("attention of 3 new tokens", lambda: _torch_attention(3, 9), 1e-12, "torch: SDPA with enable_gqa"),
    Oracle("logits of the trained multi-query model", lambda: _llama_logits_and_keys()[0], 1e-4, LLAMA),
    Oracle("its stored keys", lambda: _llama_logits_and_keys()[1], 1e-5, LLAMA),
    Oracle("its number of weights", _weights_of_llama, 0, LLAMA),
    Oracle("decoding steps", _big_code_steps, 1e-4, "transformers: GPTBigCodeAttention (float32 softmax)"),
)
