"""Latent attention of transformers' DeepSeek-V2, of torch's SDPA used as multi-query attention, and two SVDs."""

import torch
from scipy.linalg import svdvals
from torch import Tensor
from transformers import DeepseekV2Config, DynamicCache
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

from internals_math import tiny_lm
from internals_math.attention import causal_mask
from internals_math.multi_latent_attention import (
    MLAWeights,
    absorb,
    compress,
    joint_low_rank_factorization,
    mla_attention_absorbed,
    mla_attention_expanded,
    project_queries,
)
from internals_math.multi_latent_attention_experiment import LatentCache, attention_of
from internals_math.rope import permute_half_to_interleaved
from tests.oracles import Oracle, largest_difference, randn

WIDTH, HEADS, NOPE, ROPE, VALUE, LATENT = 48, 3, 10, 6, 7, 11
CHUNKS = ((0, 5), (5, 6), (6, 9))  # a prefill, one decoding step, a chunk of three


def _theirs(q_lora_rank: int | None, **sizes: int) -> tuple[DeepseekV2Attention, DeepseekV2Config]:
    shape = {
        "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "head_dim": ROPE, "v_head_dim": VALUE, "kv_lora_rank": LATENT, **sizes,
    }  # fmt: skip
    config = DeepseekV2Config(num_hidden_layers=1, q_lora_rank=q_lora_rank, attention_bias=False, **shape)
    config._attn_implementation = "eager"
    return DeepseekV2Attention(config, layer_idx=0).double().eval(), config


def weights_of(theirs: DeepseekV2Attention, theta: float = 10000.0) -> MLAWeights:
    """Cut the stacked projections of transformers into ours; their rotary pairs are interleaved."""
    heads, nope, rope = theirs.num_heads, theirs.qk_nope_head_dim, theirs.qk_rope_head_dim
    q_b = theirs.q_proj if theirs.q_b_proj is None else theirs.q_b_proj
    w_uq, w_qr = q_b.weight.unflatten(0, (heads, -1)).split([nope, rope], dim=1)
    w_uk, w_uv = theirs.kv_b_proj.weight.unflatten(0, (heads, -1)).split([nope, theirs.v_head_dim], dim=1)
    w_dkv, w_kr = theirs.kv_a_proj_with_mqa.weight.split([theirs.kv_lora_rank, rope])
    return MLAWeights(
        w_dq=None if theirs.q_a_proj is None else theirs.q_a_proj.weight,
        w_uq=w_uq.flatten(0, 1), w_qr=w_qr.flatten(0, 1), w_dkv=w_dkv, w_uk=w_uk.flatten(0, 1),
        w_uv=w_uv.flatten(0, 1), w_kr=w_kr, w_o=theirs.o_proj.weight,
        q_norm=None if theirs.q_a_layernorm is None else theirs.q_a_layernorm.weight,
        kv_norm=theirs.kv_a_layernorm.weight, num_heads=heads, qk_nope_head_dim=nope, qk_rope_head_dim=rope,
        v_head_dim=theirs.v_head_dim, rope_theta=theta, norm_eps=theirs.kv_a_layernorm.variance_epsilon,
        rope_layout="interleaved",
    )  # fmt: skip


@torch.no_grad()
def _layer(q_lora_rank: int | None) -> tuple[float, float, float]:
    """Differences of output (expanded, absorbed) and of what is cached, while a text is fed in chunks to both."""
    theirs, config = _theirs(q_lora_rank)
    for seed, (name, weight) in enumerate(theirs.named_parameters()):
        weight.copy_((1 if "norm" in name else 0) + 0.3 * randn(*weight.shape, seed=seed))
    w, hidden = weights_of(theirs), randn(2, 9, WIDTH, seed=99)
    table, cache, ours = DeepseekV2RotaryEmbedding(config), DynamicCache(config=config), LatentCache(1)
    expanded = absorbed = cached = 0.0
    for start, end in CHUNKS:
        x, positions = hidden[:, start:end], torch.arange(start, end)
        mask = torch.where(causal_mask(end - start, end), 0.0, -torch.inf)[None, None].double()
        rotary = table(x, positions[None])
        expected = theirs(x, attention_mask=mask, past_key_values=cache, position_embeddings=rotary)[0]
        parts = (*project_queries(x, w, positions), *ours.update(*compress(x, w, positions), 0))
        expanded = max(expanded, largest_difference(mla_attention_expanded(*parts, w)[0], expected))
        absorbed = max(absorbed, largest_difference(mla_attention_absorbed(*parts, w)[0], expected))
        kept = torch.cat([parts[2], parts[3]], dim=-1)
        stored = torch.cat([cache.layers[0].keys, cache.layers[0].values], dim=-1)[:, 0]
        cached = max(cached, largest_difference(kept, stored))
    return expanded, absorbed, cached


@torch.no_grad()
def _trained_layer() -> float:
    """A layer of the trained tiny LM in transformers, on what it really reads."""
    model = tiny_lm.load("mla")
    attention = attention_of(model, 1)
    heads, width, rope = 4, 8, attention.qk_rope_head_dim
    theirs, config = _theirs(
        None, hidden_size=32, num_attention_heads=heads, num_key_value_heads=heads, qk_nope_head_dim=width,
        qk_rope_head_dim=rope, head_dim=rope, v_head_dim=width, kv_lora_rank=attention.kv_b_proj.in_features,
    )  # fmt: skip
    state = {name: weight.double() for name, weight in attention.state_dict().items()}

    def interleave(rows: Tensor, heads: int, skip: int) -> Tensor:
        """Their pairs are neighbors: reorder the last rows of each head."""
        still, turned = rows.unflatten(0, (heads, -1)).tensor_split([skip], dim=1)
        turned = permute_half_to_interleaved(turned.flatten(0, 1), heads).unflatten(0, (heads, -1))
        return torch.cat([still, turned], dim=1).flatten(0, 1)

    state["q_proj.weight"] = interleave(state["q_proj.weight"], heads, width)
    state["kv_a_proj_with_mqa.weight"] = interleave(state["kv_a_proj_with_mqa.weight"], 1, theirs.kv_lora_rank)
    theirs.load_state_dict(state)
    theirs.kv_a_layernorm.variance_epsilon = model.config.rms_norm_eps
    config.rope_parameters["rope_theta"] = model.config.rope_theta
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    _, record = model(ids, record=("normed",))
    hidden, positions = record["normed"][1], torch.arange(ids.shape[1])
    mask = torch.where(causal_mask(len(positions)), 0.0, -torch.inf)[None, None].double()
    rotary = DeepseekV2RotaryEmbedding(config)(hidden, positions[None])
    expected = theirs(hidden.double(), attention_mask=mask, position_embeddings=rotary)[0]
    ours = attention(hidden, layer_idx=1, position_ids=positions, rotary=(positions, positions))  # of no use here
    return largest_difference(ours, expected)


def random_weights(*, seed: int = 0, norms: bool = True, dtype: torch.dtype = torch.float64) -> MLAWeights:
    """Return weights of odd, unequal sizes, so that no two axes can be mistaken for each other."""
    d, h, dh, dv, r, c, cq = 14, 3, 6, 5, 4, 7, 9
    shapes = ((cq, d), (h * dh, cq), (h * r, cq), (c, d), (h * dh, c), (h * dv, c), (r, d), (d, h * dv))
    matrices = [0.5 * randn(*shape, seed=100 * seed + k, dtype=dtype) for k, shape in enumerate(shapes)]
    scales = [1 + 0.1 * randn(size, seed=100 * seed + 50 + size, dtype=dtype) if norms else None for size in (cq, c)]
    return MLAWeights(*matrices, *scales, h, dh, r, dv, rope_theta=100.0)


def as_multi_query(scale: bool) -> float:
    """Absorbed attention as one shared key [c; k_rope] and one shared value c in torch's own kernel."""
    w, hidden, positions = random_weights(), randn(2, 8, 14, seed=1), torch.arange(8)
    (q_nope, q_rope), (c_kv, k_rope) = project_queries(hidden, w, positions), compress(hidden, w, positions)
    absorbed = absorb(w)
    query = torch.cat([q_nope @ absorbed.w_uk_per_head, q_rope], dim=-1)
    key, value = torch.cat([c_kv, k_rope], dim=-1)[:, None], c_kv[:, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True, scale=w.scale if scale else None
    )
    theirs = torch.einsum("bhnc,hdc->bnd", mixed, absorbed.w_ov)
    return largest_difference(mla_attention_absorbed(q_nope, q_rope, c_kv, k_rope, w)[0], theirs)


def _singular_values() -> float:
    w_k, w_v = randn(12, 9, seed=1), randn(10, 9, seed=2)
    ours = joint_low_rank_factorization(w_k, w_v, 3)[3]
    return largest_difference(ours, torch.from_numpy(svdvals(torch.cat([w_k, w_v]).numpy())))


def _low_rank_product() -> float:
    """The best rank-3 matrix from the eigenvectors of the Gram matrix."""
    stacked = randn(22, 9, seed=3)
    w_dkv, w_uk, w_uv, _ = joint_low_rank_factorization(stacked[:12], stacked[12:], 3)
    best = torch.linalg.eigh(stacked.T @ stacked).eigenvectors[:, -3:]
    return largest_difference(torch.cat([w_uk, w_uv]) @ w_dkv, stacked @ best @ best.T)


DEEPSEEK = "transformers: DeepseekV2Attention (float32 rotary table)"
ROWS = (
    Oracle("a layer fed in chunks, keys rebuilt", lambda: _layer(13)[0], 1e-5, DEEPSEEK),
    Oracle("the same, absorbed", lambda: _layer(13)[1], 1e-5, DEEPSEEK),
    Oracle("what it caches: latents and rotary keys", lambda: _layer(13)[2], 1e-5, DEEPSEEK),
    Oracle("a layer without a query latent, as in V2-Lite", lambda: _layer(None)[0], 1e-5, DEEPSEEK),
    Oracle("the same, absorbed", lambda: _layer(None)[1], 1e-5, DEEPSEEK),
    Oracle("a layer of the tiny LM trained with latents", _trained_layer, 1e-4, DEEPSEEK),
    Oracle("absorbed attention", lambda: as_multi_query(scale=True), 1e-12, "torch: SDPA as multi-query attention"),
    Oracle("singular values of [W_K; W_V]", _singular_values, 1e-12, "scipy: svdvals"),
    Oracle("the best product of rank 3", _low_rank_product, 1e-12, "torch: eigh of the Gram matrix"),
)
