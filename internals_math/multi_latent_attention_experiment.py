"""The tiny LM with latents in its cache: trained from scratch, and the trained model's own cache squeezed.

Notation as in `multi_latent_attention`; B = batch, L = layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internals_math import progress, tiny_lm
from internals_math.attention import causal_mask
from internals_math.multi_latent_attention import (
    Config,
    MLAWeights,
    Models,
    RankSweep,
    absorb,
    compress,
    expand,
    joint_low_rank_factorization,
    mla_attention_absorbed,
    mla_attention_expanded,
    mla_cache_elements_per_token,
    project_queries,
    rotary_scores,
)
from internals_math.tiny_lm.layers import ModelConfig

# The committed model keeps 16 numbers a token, as its multi-query rival does. Half of them carry the position, and
# queries are not compressed (DeepSeek-V2-Lite's way). With a query latent of 16, one seed each, it learns to tell
# stories but not to repeat songs within the same steps: held-out loss .483 with 8 + 8 numbers, .536 with 10 + 6, and
# .551 with the 12 + 4 that DeepSeek-V2's proportions suggest, against .436 as it is.
KV_LORA_RANK, QK_ROPE_HEAD_DIM = 8, 8
WALL_TOKENS = 512
SEEDS = ("base", "base_seed1", "base_seed2")


class LatentAttention(nn.Module):
    """One layer's latent attention in the tiny LM, under Hugging Face's names for DeepSeek-V2-Lite."""

    def __init__(
        self, config: ModelConfig, kv_lora_rank: int = KV_LORA_RANK, qk_rope_head_dim: int = QK_ROPE_HEAD_DIM
    ) -> None:
        super().__init__()
        self.config, self.qk_rope_head_dim = config, qk_rope_head_dim
        heads, width = config.num_attention_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads * (width + qk_rope_head_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, kv_lora_rank + qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(kv_lora_rank, heads * 2 * width, bias=False)
        self.o_proj = nn.Linear(heads * width, config.hidden_size, bias=False)

    def weights(self) -> MLAWeights:
        """Return the matrices, cut out of the stacked projections."""
        heads, width, rope = self.config.num_attention_heads, self.config.head_dim, self.qk_rope_head_dim
        w_uq, w_qr = self.q_proj.weight.unflatten(0, (heads, -1)).split([width, rope], dim=1)
        w_uk, w_uv = self.kv_b_proj.weight.unflatten(0, (heads, -1)).split(width, dim=1)
        w_dkv, w_kr = self.kv_a_proj_with_mqa.weight.split([self.kv_b_proj.in_features, rope])
        return MLAWeights(
            w_dq=None,
            w_uq=w_uq.flatten(0, 1),
            w_qr=w_qr.flatten(0, 1),
            w_dkv=w_dkv,
            w_uk=w_uk.flatten(0, 1),
            w_uv=w_uv.flatten(0, 1),
            w_kr=w_kr,
            w_o=self.o_proj.weight,
            q_norm=None,
            kv_norm=self.kv_a_layernorm.weight,
            num_heads=heads,
            qk_nope_head_dim=width,
            qk_rope_head_dim=rope,
            v_head_dim=width,
            rope_theta=self.config.rope_theta,
            norm_eps=self.config.rms_norm_eps,
        )

    def forward(
        self,
        normed: Float[Tensor, "B T D"],
        *,
        layer_idx: int,
        position_ids: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: Any = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return what attention adds: a whole text with rebuilt keys, a decoding step without any.

        `rotary` is for the width of a whole head and not used: the rotary lane is narrower.
        """
        w = self.weights()
        latents, rope_keys = compress(normed, w, position_ids)
        if cache is not None:
            latents, rope_keys = cache.update(latents, rope_keys, layer_idx)
        attend = mla_attention_absorbed if cache is not None and normed.shape[1] == 1 else mla_attention_expanded
        return attend(*project_queries(normed, w, position_ids), latents, rope_keys, w, mask=mask)[0]


class LatentCache:
    """All that latent attention keeps of earlier positions: a latent and a rotary key, layer by layer."""

    def __init__(self, num_hidden_layers: int) -> None:
        self.latents: list[Tensor | None] = [None] * num_hidden_layers
        self.rope_keys: list[Tensor | None] = [None] * num_hidden_layers

    def update(
        self, key_states: Float[Tensor, "B T c"], value_states: Float[Tensor, "B T r"], layer_idx: int
    ) -> tuple[Float[Tensor, "B m c"], Float[Tensor, "B m r"]]:
        """Append the latents and the rotary keys of new positions, and return all of both."""
        for store, new in ((self.latents, key_states), (self.rope_keys, value_states)):
            old = store[layer_idx]
            store[layer_idx] = new if old is None else torch.cat([old, new], dim=1)
        latents, rope_keys = self.latents[layer_idx], self.rope_keys[layer_idx]
        assert latents is not None
        assert rope_keys is not None
        return latents, rope_keys

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached positions of a layer."""
        latents = self.latents[layer_idx]
        return 0 if latents is None else latents.shape[1]

    @property
    def nbytes(self) -> int:
        """Return the bytes of everything stored."""
        stored = [part for part in (*self.latents, *self.rope_keys) if part is not None]
        return sum(part.numel() * part.element_size() for part in stored)


def latent_lm(config: Config) -> tiny_lm.TinyLM:
    """Return the tiny LM that was trained with latents: the committed one, or one trained now for other sizes."""
    if (config.kv_lora_rank, config.qk_rope_head_dim, config.seed) == (KV_LORA_RANK, QK_ROPE_HEAD_DIM, 0):
        return tiny_lm.get_variant("mla")

    def attention(shape: ModelConfig) -> LatentAttention:
        return LatentAttention(shape, config.kv_lora_rank, config.qk_rope_head_dim)

    spec = tiny_lm.VARIANTS["mla"]
    model = tiny_lm.TinyLM(spec.config, seed=config.seed, attention=attention)
    with torch.enable_grad():
        news = progress.on_step("training with latents")
        tiny_lm.train(model, tiny_lm.training_corpus(), spec.recipe, seed=config.seed, on_step=news)
    return model.eval().requires_grad_(False)


def attention_of(model: tiny_lm.TinyLM, layer: int) -> LatentAttention:
    """Return a layer's latent attention."""
    attention = model.model.layers[layer].get_submodule("self_attn")
    assert isinstance(attention, LatentAttention)
    return attention


def key_and_value_weights(model: tiny_lm.TinyLM, layer: int) -> tuple[Float[Tensor, "kd D"], Float[Tensor, "kd D"]]:
    """Return W_K and W_V of a layer of the tiny LM."""
    state, prefix = model.state_dict(), f"model.layers.{layer}.self_attn"
    return state[f"{prefix}.k_proj.weight"], state[f"{prefix}.v_proj.weight"]


def wall(model: tiny_lm.TinyLM, layer: int) -> Float[Tensor, "tokens kv"]:
    """Return [K | V], all heads side by side and before RoPE, of the first WALL_TOKENS tokens of the held-out texts."""
    corpus = tiny_lm.held_out()
    _, record = model(corpus.ids[: WALL_TOKENS // 8], record=("k", "v"))  # a text has more than 8 tokens
    keys, values = (record[name][layer].transpose(1, 2).flatten(2) for name in ("k", "v"))  # (B, T, h dh)
    rows = torch.cat([keys, values], dim=-1)
    return rows[corpus.ids[: WALL_TOKENS // 8] != tiny_lm.PAD][:WALL_TOKENS]


def low_rank_lm(model: tiny_lm.TinyLM, rank: int) -> tiny_lm.TinyLM:
    """Return the model with [W_K; W_V] of every layer replaced by its best approximation of that rank.

    Its keys are still rotated after they are rebuilt, so nothing could be absorbed: this measures redundancy only.
    """
    state = dict(model.state_dict())
    for layer in range(model.config.num_hidden_layers):
        w_dkv, w_uk, w_uv, _ = joint_low_rank_factorization(*key_and_value_weights(model, layer), rank)
        prefix = f"model.layers.{layer}.self_attn"
        state[f"{prefix}.k_proj.weight"], state[f"{prefix}.v_proj.weight"] = w_uk @ w_dkv, w_uv @ w_dkv
    return tiny_lm.copy_of(model, state)


def rank_sweep(model: tiny_lm.TinyLM, ranks: Sequence[int]) -> RankSweep:
    """Return the held-out loss of `low_rank_lm` at each rank."""
    losses = [tiny_lm.evaluate(low_rank_lm(model, rank), tiny_lm.held_out()) for rank in ranks]
    return RankSweep(torch.tensor(ranks), torch.tensor(losses))


def read_layer(model: tiny_lm.TinyLM, ids: Int[Tensor, "1 T"], layer: int) -> dict[str, Any]:
    """Return the fields of the Trace that show one layer at work, rebuilt and absorbed."""
    w = attention_of(model, layer).weights()
    _, record = model(ids, record=("normed",))
    hidden, positions = record["normed"][layer, 0], torch.arange(ids.shape[1])
    c_kv, k_rope = compress(hidden, w, positions)
    q_nope, q_rope = project_queries(hidden, w, positions)
    k_nope, value = expand(c_kv, w)
    absorbed = absorb(w)
    q_absorbed = q_nope @ absorbed.w_uk_per_head
    expanded_output, weights = mla_attention_expanded(q_nope, q_rope, c_kv, k_rope, w)
    absorbed_output, _ = mla_attention_absorbed(q_nope, q_rope, c_kv, k_rope, w)
    hidden_future = ~causal_mask(ids.shape[1])

    def visible(scores: Tensor) -> Tensor:
        return (scores * w.scale).masked_fill(hidden_future, torch.nan)

    content = visible(q_nope @ k_nope.transpose(1, 2))
    content_absorbed = visible(q_absorbed @ c_kv.T)
    rope = visible(rotary_scores(q_rope, k_rope))
    heads = w.num_heads
    return {
        "hidden": hidden,
        "w_dkv": w.w_dkv,
        "w_uk": absorbed.w_uk_per_head,
        "w_uv": w.w_uv.unflatten(0, (heads, -1)),
        "w_uq": w.w_uq.unflatten(0, (heads, -1)),
        "c_kv": c_kv,
        "k_rope": k_rope,
        "k_nope": k_nope,
        "value": value,
        "q_nope": q_nope,
        "q_absorbed": q_absorbed,
        "scores_content": content,
        "scores_content_absorbed": content_absorbed,
        "scores_rope": rope,
        "scores": content + rope,
        "weights": weights,
        "mixed_latent": weights @ c_kv,
        "head_output": weights @ value,
        "output_expanded": expanded_output,
        "output_absorbed": absorbed_output,
        "max_abs_diff": float((expanded_output - absorbed_output).abs().max()),
        "max_abs_diff_scores": float((content - content_absorbed).nan_to_num().abs().max()),
    }


def compare(base: tiny_lm.TinyLM, latent: tiny_lm.TinyLM, config: Config) -> Models:
    """Judge the tiny LM, the one with a single shared memory, and the one with latents."""
    shape = base.config
    latents = mla_cache_elements_per_token(config.kv_lora_rank, config.qk_rope_head_dim)
    rivals = {
        "a memory for each head": (base, 2 * shape.num_key_value_heads * shape.head_dim),
        "one shared memory": (tiny_lm.get_variant("mqa"), 2 * shape.head_dim),
        "one latent": (latent, latents),
    }
    corpus = tiny_lm.held_out()
    losses = torch.tensor([tiny_lm.evaluate(model, corpus) for model, _ in rivals.values()])
    return Models(
        name=tuple(rivals),
        cache_elements=torch.tensor([elements for _, elements in rivals.values()]),
        num_params=torch.tensor([model.num_params for model, _ in rivals.values()]),
        eval_loss=losses,
        excess=losses - corpus.entropy_floor,
    )


def seed_spread() -> Float[Tensor, " 2"]:
    """Return the lowest and the highest held-out loss of three seeds of the tiny LM."""
    losses = [tiny_lm.read_facts(tiny_lm.committed_path(name))["loss"] for name in SEEDS]
    return torch.tensor([min(losses), max(losses)])
