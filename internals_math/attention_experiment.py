"""What the heads of the tiny LM do on one sentence, and what the model loses without them.

Notation: T = tokens, V = keys the query sees, L = layers, H = heads, d = head_dim, D = hidden_size.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.attention import (
    HEAD_CLASSES,
    Config,
    MultiHeadOutput,
    Trace,
    attention_entropy,
    attention_scores,
    causal_mask,
    classify_head,
    effective_tokens,
    key_plane_coordinates,
    multi_head_attention,
    scaled_dot_product_attention,
    score_statistics,
)
from internals_math.rope import apply_rotary, rope_cos_sin
from internals_math.tiny_lm.layers import Attention

DOCUMENTS = 256  # held-out documents behind the losses
WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
RANDOM_KEYS = 16
RANDOM_PAIRS = 32_000  # 2,000 rows of softmax for each width
ORDINALS = ("first", "second", "third")
SKILLS = {  # in words of the stories
    "previous token": "the word before",
    "induction": "goes on with a song",
    "object recall": "finds the thing",
    "adjective recall": "finds what it was like",
    "place recall": "finds the place",
}
NAMED_FROM = 0.5  # the mean weight from which a head may be named after what it does


def read_heads(config: Config) -> Trace:
    """Return the trace of `attention.trace`."""
    model = tiny_lm.load("base_seed1")
    layer, head = _which_head(model, config)
    ids = torch.tensor([tiny_lm.encode(config.prompt)])
    logits, record = model(ids, record=("normed", "q", "k", "v", "weights", "residual"))
    length, dim = ids.shape[1], model.config.head_dim
    query_position = config.query_index % length
    visible = query_position + 1 if config.causal else length
    mask = causal_mask(length) if config.causal else torch.ones(length, length, dtype=torch.bool)
    scale = 1 / math.sqrt(dim) if config.scale_mode == "sqrt" else 1.0
    rotary = rope_cos_sin(torch.arange(length), model.inv_freq().float())
    x = record["normed"][layer]  # (1, T, D)
    block = _layer(model, layer, x, mask, rotary, scale)
    all_weights = record["weights"][:, 0].clone()
    all_weights[layer] = block.weights[0]  # what this layer does under the config's scale and mask

    q, k, v = (record[name][layer, 0, head] for name in ("q", "k", "v"))
    q_rot, k_rot = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
    query, weights = q_rot[query_position], block.weights[0, head]
    plane = key_plane_coordinates(query, k_rot)
    row = weights[query_position, :visible]
    scores = attention_scores(q_rot, k_rot, scale)
    powers = torch.exp(scores[query_position, :visible] - scores[query_position, :visible].max())
    weighted = row[:, None] * v[:visible]  # (V, d)
    tokens = tiny_lm.tokens(ids[0])
    strongest = block.weights[0, :, query_position].max(dim=-1)
    probs = logits[0, -1].softmax(dim=-1)
    projections = _attention_of(model, layer)
    mine = slice(head * dim, (head + 1) * dim)
    residual = record["residual"][layer, 0, query_position]
    contributions = block.head_contributions[0, :, query_position]
    return Trace(
        config=config,
        tokens=tokens,
        layer=layer,
        head=head,
        layer_name=f"the {ORDINALS[layer]} layer",
        head_names=tuple(f"head {number + 1}" for number in range(model.config.num_attention_heads)),
        query_position=query_position,
        query_token=tokens[query_position],
        num_visible=visible,
        next_token=tiny_lm.tokens(probs.argmax()[None])[0],
        next_prob=float(probs.max()),
        embeddings=record["residual"][0, 0],
        same_positions=(ids[0, : query_position + 1] == ids[0, query_position]).nonzero()[:, 0],
        x=x[0],
        w_q=projections.q_proj.weight[mine].clone(),
        w_k=projections.k_proj.weight[mine].clone(),
        w_v=projections.v_proj.weight[mine].clone(),
        q=q,
        k=k,
        v=v,
        q_rot=q_rot,
        k_rot=k_rot,
        mask=mask,
        scores=scores,
        scores_raw=attention_scores(q_rot, k_rot, 1.0),
        weights=weights,
        scores_seen=scores.masked_fill(~mask, math.nan),
        weights_seen=weights.masked_fill(~mask, math.nan),
        weight_sums=weights.sum(dim=-1),
        outputs=block.per_head[0, head],
        even_position=int(attention_entropy(weights).argmax()),
        key_plane=plane,
        key_angle=torch.rad2deg(torch.atan2(plane[:, 1], plane[:, 0])),
        query_norm=float(query.norm()),
        query_plane=torch.stack([query.norm(), torch.zeros(())]),
        score_factor=float(query.norm() * scale),
        score_powers=powers,
        power_sum=float(powers.sum()),
        weighted_values=weighted,
        partial_weights=row.cumsum(dim=0),
        partial_outputs=weighted.cumsum(dim=0),
        all_weights=all_weights,
        entropy=attention_entropy(all_weights),
        head_class=_classes(all_weights, ids[0]),
        **_skills(),
        strongest_weight=strongest.values,
        strongest_token=tuple(tokens[place] for place in strongest.indices.tolist()),
        effective_words=effective_tokens(block.weights[0, :, query_position]),
        head_outputs=block.per_head[0, :, query_position],
        head_contributions=contributions,
        residual_before=residual,
        residual_steps=residual + contributions.cumsum(dim=0),
        residual_after=residual + block.output[0, query_position],
        **_random_scores(config.seed),
        **_losses(model),
    )


def _which_head(model: tiny_lm.TinyLM, config: Config) -> tuple[int, int]:
    if config.layer is not None and config.head is not None:
        return config.layer, config.head
    found = tiny_lm.find_head(model, "object recall")
    return found.layer, found.head


def _attention_of(model: tiny_lm.TinyLM, layer: int) -> Attention:
    attention = model.model.layers[layer].self_attn
    assert isinstance(attention, Attention)
    return attention


def _layer(
    model: tiny_lm.TinyLM, layer: int, x: Float[Tensor, "1 T D"], mask: Bool[Tensor, "T T"], rotary: Any, scale: float
) -> MultiHeadOutput:
    """Run the attention of one layer under a mask and a scale of our own."""
    own, config = _attention_of(model, layer), model.config
    return multi_head_attention(
        x,
        own.q_proj.weight,
        own.k_proj.weight,
        own.v_proj.weight,
        own.o_proj.weight,
        config.num_attention_heads,
        config.num_key_value_heads,
        mask,
        rotary,
        scale,
    )


def _classes(weights: Float[Tensor, "L H T T"], ids: Int[Tensor, " T"]) -> Float[Tensor, "L H classes"]:
    shares = [[classify_head(head, ids) for head in layer] for layer in weights]
    return torch.tensor([[[head[name] for name in HEAD_CLASSES] for head in layer] for layer in shares])


def _skills() -> dict[str, Any]:
    """Return the best head at every skill, if it spends more than half of its weight on it; each head once."""
    found = sorted(tiny_lm.find_heads("base_seed1").values(), key=lambda head: -head.score)
    best = {(head.layer, head.head): head for head in reversed(found) if head.score > NAMED_FROM}
    named = sorted(best.values(), key=lambda head: (head.layer, head.head))
    return {
        "skill_names": tuple(SKILLS[head.skill] for head in named),
        "skill_heads": torch.tensor([[head.layer, head.head] for head in named]).view(-1, 2),
        "skill_scores": torch.tensor([head.score for head in named]),
    }


def _random_scores(seed: int) -> dict[str, Any]:
    """Measure random scores of every width, and follow one query and its keys as they get wider."""
    generator = torch.Generator().manual_seed(seed)
    widest, width = max(WIDTHS), torch.tensor(WIDTHS)
    query, keys = torch.randn(widest, generator=generator), torch.randn(RANDOM_KEYS, widest, generator=generator)
    raw = (query * keys).cumsum(dim=-1)[:, width - 1].T  # (N, K): the dot products of the first components
    scaled = raw / width.sqrt()[:, None]
    return {
        "dk_grid": width,
        "random_pairs": RANDOM_PAIRS,
        **score_statistics(WIDTHS, RANDOM_PAIRS, RANDOM_KEYS, generator),
        "example_scores_raw": raw,
        "example_scores_scaled": scaled,
        "example_weights_raw": raw.softmax(dim=-1),
        "example_weights_scaled": scaled.softmax(dim=-1),
    }


def _losses(model: tiny_lm.TinyLM) -> dict[str, Any]:
    """Measure the held-out loss as trained, without the factor 1/√d, and with one head off at a time."""
    corpus = tiny_lm.held_out(DOCUMENTS)

    def unscaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, layer_idx: int) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask, scale=1.0)[0]

    return {
        "documents": DOCUMENTS,
        "head_dim": model.config.head_dim,
        "loss_base": tiny_lm.evaluate(model, corpus),
        "loss_unscaled": tiny_lm.evaluate(model, corpus, attention_fn=unscaled),
        "loss_head_ablated": tiny_lm.head_ablation(model, corpus),
    }
