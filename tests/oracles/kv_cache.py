"""The cache, the logits and the FLOPs of transformers and torch."""

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from internals_math import tiny_lm
from internals_math.kv_cache import (
    KVCache,
    causal_mask,
    generation_flops,
    greedy_generate,
    scaled_dot_product_attention,
)
from internals_math.model_shapes import ModelShape
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn

CHUNKS = ((0, 8), (8, 9), (9, 14))  # a prefill, one decoding step, a chunk of five


def _ids() -> Tensor:
    return torch.tensor([tiny_lm.encode(tiny_lm.story(3))])


def _model(groups: int | None) -> tiny_lm.TinyLM:
    """The trained model, or one with fresh weights and another number of key-value heads."""
    if groups is None:
        return tiny_lm.load("base")
    return tiny_lm.TinyLM(tiny_lm.ModelConfig(num_key_value_heads=groups), seed=5).eval()


@torch.no_grad()
def _cached_logits_and_states(groups: int | None) -> tuple[float, float]:
    """Differences of logits and of stored keys and values while a text is fed in chunks to both."""
    ours = _model(groups)
    theirs = llama_of(ours)
    # Llama rounds its rotary frequencies to float32; trained weights would blow that difference up.
    inv_freq = theirs.model.rotary_emb.inv_freq
    mine, cache = KVCache(3), DynamicCache(config=theirs.config)
    logits = 0.0
    for start, end in CHUNKS:
        expected = theirs(_ids()[:, start:end], past_key_values=cache, use_cache=True).logits
        logits = max(logits, largest_difference(ours(_ids()[:, start:end], cache=mine, inv_freq=inv_freq), expected))
    states = 0.0
    for layer in range(3):
        for own, stored in ((mine.keys, cache.layers[layer].keys), (mine.values, cache.layers[layer].values)):
            kept = own[layer]
            assert kept is not None
            states = max(states, largest_difference(kept, stored))
    return logits, states


@torch.no_grad()
def _greedy() -> float:
    """Tokens that differ when both write 20 words with a cache."""
    model = tiny_lm.load("base")
    prompt = _ids()[:, :8]
    ours = greedy_generate(model, prompt, 20, use_cache=True).sequences
    theirs = llama_of(model).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return float((ours != theirs).sum())


def _chunk_attention(groups: int) -> float:
    """Attention of 3 new tokens over 7 positions."""
    q, k, v = randn(2, 4, 3, 8, seed=1), randn(2, groups, 7, 8, seed=2), randn(2, groups, 7, 8, seed=3)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(4 // groups, 1), v.repeat_interleave(4 // groups, 1), attn_mask=causal_lower_right(3, 7)
    )
    return largest_difference(scaled_dot_product_attention(q, k, v, causal_mask(3, 7))[0], theirs)


@torch.no_grad()
def _flops(prompt: int) -> float:
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation("eager")  # the fused kernel reports no FLOPs on CPU
    shape = ModelShape("oracle", 2, 64, 8, 2, 8, 160, 100)
    cache = DynamicCache(config=config)
    counted = []
    for ids in (
        torch.arange(prompt)[None],
        torch.tensor([[1]]),
        torch.tensor([[2]]),
    ):  # the prefill, two decoding steps
        with FlopCounterMode(display=False) as counter:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        counted.append(counter.get_total_flops())
    return largest_difference(generation_flops(shape, prompt, 3, use_cache=True), torch.tensor(counted))


LLAMA = "transformers: LlamaForCausalLM with DynamicCache"
ROWS = (
    Oracle("logits of the trained model, fed in chunks", lambda: _cached_logits_and_states(None)[0], 1e-5, LLAMA),
    Oracle("its stored keys and values", lambda: _cached_logits_and_states(None)[1], 1e-5, LLAMA),
    Oracle("logits with 2 key-value heads, fed in chunks", lambda: _cached_logits_and_states(2)[0], 1e-5, LLAMA),
    Oracle("stored keys and values of 2 heads", lambda: _cached_logits_and_states(2)[1], 1e-5, LLAMA),
    Oracle("20 greedy tokens", _greedy, 0, "transformers: LlamaForCausalLM.generate"),
    Oracle("attention of a chunk", lambda: _chunk_attention(4), 1e-12, "torch: SDPA with causal_lower_right"),
    Oracle("attention of a chunk, grouped heads", lambda: _chunk_attention(2), 1e-12, "torch: SDPA, repeated heads"),
    Oracle("FLOPs of prefill and decoding steps", lambda: _flops(12), 0, "torch: FlopCounterMode around Llama"),
)
