"""Attention of torch and of Llama, softmax and entropy of scipy, the Jacobian of autograd."""

import numpy as np
import scipy.special
import scipy.stats
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from internals_math import tiny_lm
from internals_math.attention import (
    attention_entropy,
    causal_mask,
    masked_softmax,
    multi_head_attention,
    repeat_kv,
    scaled_dot_product_attention,
    softmax_jacobian,
)
from internals_math.rope import rope_cos_sin
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn


def _torch_attention(groups: int, queries: int, keys: int, scale: float | None = None) -> float:
    query, key = randn(2, 8, queries, 6, seed=1), randn(2, groups, keys, 6, seed=2)
    value, mask = randn(2, groups, keys, 5, seed=3), causal_mask(queries, keys)
    # torch aligns its own is_causal to the first key, so the mask is given
    theirs = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=groups != 8
    )
    return largest_difference(scaled_dot_product_attention(query, key, value, mask, scale)[0], theirs)


def _blind_rows() -> float:
    query, key, value = (randn(1, 2, 4, 6, seed=seed) for seed in (1, 2, 3))
    mask = causal_mask(4) & torch.tensor([[False], [True], [False], [True]])
    theirs = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return largest_difference(scaled_dot_product_attention(query, key, value, mask)[0], theirs)


@torch.no_grad()
def _torch_layer() -> tuple[float, float]:
    """torch's own layer, whose boolean mask means the opposite: True is blocked."""
    layer = nn.MultiheadAttention(24, 4, bias=False, batch_first=True, dtype=torch.float64)
    w_q, w_k, w_v, w_o = (randn(24, 24, seed=seed) for seed in range(4))
    layer.in_proj_weight.copy_(torch.cat([w_q, w_k, w_v]))
    layer.out_proj.weight.copy_(w_o)
    x, mask = randn(2, 7, 24, seed=5), causal_mask(7)
    theirs, weights = layer(x, x, x, attn_mask=~mask, need_weights=True, average_attn_weights=False)
    ours = multi_head_attention(x, w_q, w_k, w_v, w_o, 4, mask=mask)
    return largest_difference(ours.output, theirs), largest_difference(ours.weights, weights)


@torch.no_grad()
def _llama_layer(groups: int) -> float:
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=groups, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    layer = modeling_llama.LlamaAttention(config, layer_idx=0).double().eval()
    rotary = modeling_llama.LlamaRotaryEmbedding(config)
    x = randn(2, 6, 32, seed=1)
    cos, sin = rope_cos_sin(torch.arange(6), rotary.inv_freq.double())
    blocked = torch.zeros(1, 1, 6, 6, dtype=torch.float64).masked_fill(~causal_mask(6), -torch.inf)
    theirs = layer(x, position_embeddings=(cos[None], sin[None]), attention_mask=blocked)[0]
    projections = (part.weight for part in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj))
    ours = multi_head_attention(x, *projections, 4, groups, causal_mask(6), (cos, sin))
    return largest_difference(ours.output, theirs)


@torch.no_grad()
def _llama_weights() -> float:
    """All attention maps of the tiny LM on a story, against the same weights in Llama."""
    ours = tiny_lm.load("base_seed1")
    theirs = llama_of(ours)
    theirs.set_attn_implementation("eager")
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    expected = torch.stack(theirs(ids, output_attentions=True).attentions)
    _, record = ours(ids, inv_freq=theirs.model.rotary_emb.inv_freq, record=("weights",))
    return largest_difference(record["weights"], expected)


def _scipy_softmax() -> float:
    scores = 30 * randn(9, 7, seed=1)
    return largest_difference(masked_softmax(scores), torch.from_numpy(scipy.special.softmax(scores.numpy(), axis=-1)))


def _scipy_entropy() -> float:
    weights = masked_softmax(3 * randn(9, 9, seed=1), causal_mask(9))
    theirs = scipy.stats.entropy(weights.numpy(), base=2, axis=-1)
    return largest_difference(attention_entropy(weights), torch.from_numpy(np.asarray(theirs)))


def _autograd() -> float:
    scores = randn(8, seed=1)
    theirs = torch.autograd.functional.jacobian(lambda row: torch.softmax(row, dim=-1), scores)
    assert isinstance(theirs, torch.Tensor)
    return largest_difference(softmax_jacobian(scores.softmax(dim=-1)), theirs)


def _repeated() -> float:
    x = randn(2, 3, 5, 4, seed=1)
    return largest_difference(repeat_kv(x, 4), modeling_llama.repeat_kv(x, 4))


SDPA = "torch: scaled_dot_product_attention"
LLAMA = "transformers: LlamaAttention"
ROWS = (
    Oracle("causal attention", lambda: _torch_attention(8, 7, 7), 1e-12, SDPA),
    Oracle("2 groups of 4 heads, 3 new tokens", lambda: _torch_attention(2, 3, 7), 1e-12, SDPA),
    Oracle("a scale of its own", lambda: _torch_attention(8, 5, 5, 0.9), 1e-12, SDPA),
    Oracle("rows that see nothing", _blind_rows, 1e-12, SDPA),
    Oracle("a layer of heads", lambda: _torch_layer()[0], 1e-12, "torch: nn.MultiheadAttention"),
    Oracle("its weights", lambda: _torch_layer()[1], 1e-12, "torch: nn.MultiheadAttention"),
    Oracle("a layer with rotary positions", lambda: _llama_layer(4), 1e-6, LLAMA),  # its softmax is in float32
    Oracle("the same with 2 key-value heads", lambda: _llama_layer(2), 1e-6, LLAMA),
    Oracle("repeated key-value heads", _repeated, 0, "transformers: repeat_kv of Llama"),
    Oracle("every attention map of the tiny LM", _llama_weights, 1e-5, "transformers: LlamaForCausalLM"),
    Oracle("softmax of large scores", _scipy_softmax, 1e-14, "scipy: special.softmax"),
    Oracle("entropy of a row in bits", _scipy_entropy, 1e-12, "scipy: stats.entropy"),
    Oracle("derivative of the softmax", _autograd, 1e-14, "torch: autograd"),
)
