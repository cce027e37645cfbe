"""Scaled dot-product attention and its parts, shared by the model and by every topic about attention.

Notation: B = batch, H = num_attention_heads, G = num_key_value_heads, T = sequence, d = head_dim, D = hidden_size.
Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1 and section 3.2.2; grouped heads: Ainslie et al. 2023,
arXiv 2305.13245.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.attention_patterns import (
    HEAD_CLASSES,
    attention_entropy,
    classify_head,
    effective_tokens,
    key_plane_coordinates,
    score_statistics,
    softmax_jacobian,
)
from internals_math.rope import apply_rotary
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "HEAD_CLASSES", "Config", "MultiHeadOutput", "Trace", "attention_entropy", "attention_flops",
    "attention_parameter_count", "attention_scores", "causal_mask", "classify_head", "effective_tokens",
    "key_plane_coordinates", "masked_softmax", "merge_heads", "multi_head_attention", "project_qkv", "repeat_kv",
    "scaled_dot_product_attention", "score_statistics", "softmax_jacobian", "split_heads", "trace",
]  # fmt: skip


def split_heads(x: Float[Tensor, "B T width"], num_heads: int) -> Float[Tensor, "B H T d"]:
    """Cut the last axis into heads: head h is the h-th block of width // num_heads columns."""
    batch, length, width = x.shape
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"the width ({width}) must be divisible by num_heads ({num_heads})")
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Float[Tensor, "B H T d"]) -> Float[Tensor, "B T width"]:
    """Lay the heads side by side again; the inverse of `split_heads`."""
    batch, heads, length, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head_dim)


def project_qkv(
    x: Float[Tensor, "B T D"],
    w_q: Float[Tensor, "HD D"],
    w_k: Float[Tensor, "GD D"],
    w_v: Float[Tensor, "GD D"],
    num_heads: int,
    num_key_value_heads: int,
) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B G T d"], Float[Tensor, "B G T d"]]:
    """Return query, key and value of every position; weights are (out, in) as in nn.Linear.

    Raises:
        ValueError: num_heads is not a multiple of num_key_value_heads, or a weight's rows do not fit its heads.
    """
    _check_groups(num_heads, num_key_value_heads)
    head_dim = w_q.shape[0] // num_heads
    for name, weight, heads in (
        ("w_q", w_q, num_heads),
        ("w_k", w_k, num_key_value_heads),
        ("w_v", w_v, num_key_value_heads),
    ):
        if weight.shape[0] != heads * head_dim:
            raise ValueError(f"{name} must have {heads} heads of {head_dim} rows, got {weight.shape[0]} rows")
    return (
        split_heads(x @ w_q.T, num_heads),
        split_heads(x @ w_k.T, num_key_value_heads),
        split_heads(x @ w_v.T, num_key_value_heads),
    )


def causal_mask(
    q_len: int, kv_len: int | None = None, *, device: torch.device | None = None
) -> Bool[Tensor, "q_len kv_len"]:
    """Return which key each query may see (True = visible), aligned to the bottom right corner.

    Query i sees key j iff j <= i + (kv_len - q_len): the last query is the newest token and sees everything.

    Raises:
        ValueError: a length below 1, or fewer keys than queries.

    >>> causal_mask(2, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    kv_len = q_len if kv_len is None else kv_len
    if q_len < 1 or kv_len < q_len:
        raise ValueError(f"a causal mask needs 1 <= q_len <= kv_len, got q_len {q_len} and kv_len {kv_len}")
    rows = torch.arange(q_len, device=device)[:, None]
    columns = torch.arange(kv_len, device=device)[None, :]
    return columns <= rows + (kv_len - q_len)


def repeat_kv(x: Float[Tensor, "B G T d"], n_rep: int) -> Float[Tensor, "B H T d"]:
    """Give each of the n_rep query heads of a group its own copy of the group's key or value head."""
    if n_rep < 1:
        raise ValueError(f"n_rep must be at least 1, got {n_rep}")
    return x.repeat_interleave(n_rep, dim=1)


def attention_scores(
    query: Float[Tensor, "*batch q d"], key: Float[Tensor, "*batch k d"], scale: float | None = None
) -> Float[Tensor, "*batch q k"]:
    """Return q · k times scale (1 / sqrt(d) by default), before any mask."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return query @ key.transpose(-2, -1) * scale


def masked_softmax(
    scores: Float[Tensor, "*batch q k"], mask: Bool[Tensor, "..."] | None = None, dim: int = -1
) -> Float[Tensor, "*batch q k"]:
    """Return the softmax over the visible keys (True = visible); a query that sees no key gets zeros, never NaN.

    Raises:
        ValueError: mask is not boolean.
    """
    if mask is None:
        return torch.softmax(scores, dim=dim)
    _check_boolean(mask)
    dim = dim if dim < 0 else dim - scores.ndim  # a mask may have fewer axes in front
    blind = ~mask.any(dim=dim, keepdim=True)
    # The softmax of a row of -inf is NaN, and so would be its gradient: blind rows keep their scores and are zeroed.
    weights = torch.softmax(scores.masked_fill(~(mask | blind), -math.inf), dim=dim)
    return weights.masked_fill(blind, 0.0)


def scaled_dot_product_attention(
    query: Float[Tensor, "B H q d"],
    key: Float[Tensor, "B G k d"],
    value: Float[Tensor, "B G k dv"],
    mask: Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B H q dv"], Float[Tensor, "B H q k"]]:
    """Return (output, weights) of softmax(q kᵀ · scale) v; key-value heads are shared by groups of query heads.

    Args:
        query, key, value: H query heads over G key-value heads, H a multiple of G.
        mask: True = visible, broadcast to (B, H, q, k); None = everything is visible.
        scale: 1 / sqrt(d) by default.

    Raises:
        ValueError: H is not a multiple of G, query and key of different head_dim, keys and values of different number,
            or a mask that is not boolean.
    """
    _check_groups(query.shape[1], key.shape[1])
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need the same head_dim, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            f"each key needs its value: got {key.shape[2]} keys in {key.shape[1]} heads and {value.shape[2]} values in "
            f"{value.shape[1]}"
        )
    n_rep = query.shape[1] // key.shape[1]
    weights = masked_softmax(attention_scores(query, repeat_kv(key, n_rep), scale), mask)
    return weights @ repeat_kv(value, n_rep), weights


@dataclass(frozen=True, eq=False)
class MultiHeadOutput:
    """What a layer of heads returns; `head_contributions` is what each head adds to `output`."""

    output: Float[Tensor, "B T D"]
    per_head: Float[Tensor, "B H T d"]
    weights: Float[Tensor, "B H T T"]
    head_contributions: Float[Tensor, "B H T D"]


def multi_head_attention(
    x: Float[Tensor, "B T D"],
    w_q: Float[Tensor, "HD D"],
    w_k: Float[Tensor, "GD D"],
    w_v: Float[Tensor, "GD D"],
    w_o: Float[Tensor, "D HD"],
    num_heads: int,
    num_key_value_heads: int | None = None,
    mask: Bool[Tensor, "..."] | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
) -> MultiHeadOutput:
    """Let every head attend and add up what they bring: Concat(heads) W_Oᵀ = Σ_h head_h (W_O^h)ᵀ (section 3.2.2).

    Args:
        x: the input of the layer (in a pre-norm model, normed).
        w_q, w_k, w_v, w_o: (out, in) as in nn.Linear.
        num_key_value_heads: num_heads by default.
        mask: True = visible; None = everything is visible.
        rotary: (cos, sin) of `rope.rope_cos_sin`, applied to queries and keys.
        scale: 1 / sqrt(d) by default.

    Raises:
        ValueError: heads that do not divide, or weights whose rows or columns do not fit them.
    """
    groups = num_heads if num_key_value_heads is None else num_key_value_heads
    query, key, value = project_qkv(x, w_q, w_k, w_v, num_heads, groups)
    if w_o.shape[1] != w_q.shape[0]:
        raise ValueError(f"w_o must have a column for each of the {w_q.shape[0]} rows of w_q, got {w_o.shape[1]}")
    if rotary is not None:
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
    per_head, weights = scaled_dot_product_attention(query, key, value, mask, scale)
    by_head = w_o.view(len(w_o), num_heads, -1)  # (D, H, d): the columns that read head h
    contributions = torch.einsum("bhtd,Dhd->bhtD", per_head, by_head)
    return MultiHeadOutput(merge_heads(per_head) @ w_o.T, per_head, weights, contributions)


def attention_parameter_count(
    d_model: int, num_heads: int, head_dim: int, num_key_value_heads: int | None = None, bias: bool = False
) -> int:
    """Return the weights of W_Q, W_K, W_V and W_O of one layer, with their biases if it has them.

    Raises:
        ValueError: a size below 1, or heads that do not divide.

    >>> attention_parameter_count(4096, num_heads=32, head_dim=128)
    67108864
    """
    groups = num_heads if num_key_value_heads is None else num_key_value_heads
    if min(d_model, num_heads, head_dim) < 1:
        raise ValueError(
            f"d_model, num_heads and head_dim must be at least 1, got {d_model}, {num_heads} and {head_dim}"
        )
    _check_groups(num_heads, groups)
    queries, keys = num_heads * head_dim, groups * head_dim
    return 2 * d_model * (queries + keys) + (queries + 2 * keys + d_model if bias else 0)


def attention_flops(q_len: int, kv_len: int, num_heads: int, head_dim: int) -> int:
    """Return the FLOPs of q kᵀ and weights · v, masked scores included; a multiply-add is 2 FLOPs.

    Raises:
        ValueError: one of them is below 1.
    """
    if min(q_len, kv_len, num_heads, head_dim) < 1:
        raise ValueError(
            f"q_len, kv_len, num_heads and head_dim must be at least 1, got {q_len}, {kv_len}, {num_heads} and "
            f"{head_dim}"
        )
    return 4 * q_len * kv_len * num_heads * head_dim


def _check_boolean(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask must be boolean with True = visible, got {mask.dtype}")


def _check_groups(num_heads: int, num_key_value_heads: int) -> None:
    if num_key_value_heads < 1 or num_heads % num_key_value_heads:
        raise ValueError(
            f"num_attention_heads ({num_heads}) must be divisible by num_key_value_heads ({num_key_value_heads})"
        )


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    prompt: str = option("one day the dog lost a cup . the fox found the", "words of the story world, 4 to 12 of them")
    query_index: int = option(-1, "position of the word that asks; -1 is the last", minimum=-13, maximum=12)
    layer: int | None = option(None, "decoder layer; by default that of the best head at recall", minimum=0, maximum=2)
    head: int | None = option(None, "attention head; by default the best one at recall", minimum=0, maximum=3)
    scale_mode: str = option("sqrt", "divide this layer's scores by sqrt(d), or by none", choices=("sqrt", "none"))
    causal: bool = option(True, "let words see only what came before them in this layer")
    seed: int = option(0, "seed of the random vectors", minimum=0, maximum=2**31 - 1)

    def check(self) -> None:
        from internals_math import tiny_lm  # the model is built on this module's functions

        tiny_lm.encode(self.prompt)
        words = len(self.prompt.split())
        if not 4 <= words <= 12:
            raise ValueError(f"prompt must have 4 to 12 words, got {words}")
        if not -words - 1 <= self.query_index <= words:
            raise ValueError(f"query_index must be in {-words - 1}..{words} for this prompt, got {self.query_index}")
        if (self.layer is None) != (self.head is None):
            raise ValueError(f"give both layer and head or none of them, got {self.layer} and {self.head}")


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    T tokens, of which the query sees V; L layers of H heads of width d; D = hidden_size; S = steps of an ablation;
    N widths, K keys of the random example.
    """

    config: Config
    tokens: tuple[str, ...]
    layer: int  # from 0
    head: int
    layer_name: str
    head_names: tuple[str, ...]
    query_position: int
    query_token: str
    num_visible: int
    next_token: str  # the model's first choice after the whole prompt
    next_prob: float
    embeddings: Float[Tensor, "T D"]
    same_positions: Int[Tensor, " same"]  # of the query's token, itself last
    x: Float[Tensor, "T D"]  # normed input of the layer
    w_q: Float[Tensor, "d D"]  # of the head
    w_k: Float[Tensor, "d D"]
    w_v: Float[Tensor, "d D"]
    q: Float[Tensor, "T d"]  # as projected
    k: Float[Tensor, "T d"]
    v: Float[Tensor, "T d"]
    q_rot: Float[Tensor, "T d"]  # turned by their position
    k_rot: Float[Tensor, "T d"]
    mask: Bool[Tensor, "T T"]
    scores: Float[Tensor, "T T"]  # scaled, before the mask
    scores_raw: Float[Tensor, "T T"]  # not scaled
    weights: Float[Tensor, "T T"]
    scores_seen: Float[Tensor, "T T"]  # NaN where the mask hides
    weights_seen: Float[Tensor, "T T"]
    weight_sums: Float[Tensor, " T"]
    outputs: Float[Tensor, "T d"]
    even_position: int  # of the word whose weights are the most even
    key_plane: Float[Tensor, "T 2"]  # length along the query, distance from it
    key_angle: Float[Tensor, " T"]  # degrees between query and key
    query_norm: float
    query_plane: Float[Tensor, " 2"]  # the query itself in this plane
    score_factor: float  # what turns a length along the query into a score
    score_powers: Float[Tensor, " V"]  # e to the score, as a share of the largest
    power_sum: float
    weighted_values: Float[Tensor, "V d"]
    partial_weights: Float[Tensor, " V"]  # of the first 1, 2, … keys together
    partial_outputs: Float[Tensor, "V d"]
    all_weights: Float[Tensor, "L H T T"]
    entropy: Float[Tensor, "L H T"]  # bits
    head_class: Float[Tensor, "L H classes"]  # mean weight on each of HEAD_CLASSES
    skill_names: tuple[str, ...]  # what single heads were found to do, with a mean weight above one half
    skill_heads: Int[Tensor, "skills 2"]  # layer and head
    skill_scores: Float[Tensor, " skills"]
    strongest_weight: Float[Tensor, " H"]  # of the layer's heads, at the query
    strongest_token: tuple[str, ...]
    effective_words: Float[Tensor, " H"]
    head_outputs: Float[Tensor, "H d"]
    head_contributions: Float[Tensor, "H D"]
    residual_before: Float[Tensor, " D"]
    residual_steps: Float[Tensor, "H D"]  # after adding 1, 2, … heads
    residual_after: Float[Tensor, " D"]
    dk_grid: Int[Tensor, " N"]
    std_raw: Float[Tensor, " N"]
    entropy_raw: Float[Tensor, " N"]
    entropy_scaled: Float[Tensor, " N"]
    maxw_raw: Float[Tensor, " N"]
    maxw_scaled: Float[Tensor, " N"]
    random_pairs: int  # behind the means above
    example_scores_raw: Float[Tensor, "N K"]  # one query, K keys, their first 2, 4, … components
    example_scores_scaled: Float[Tensor, "N K"]
    example_weights_raw: Float[Tensor, "N K"]
    example_weights_scaled: Float[Tensor, "N K"]
    documents: int  # behind the losses
    head_dim: int
    loss_base: float  # nats per token
    loss_unscaled: float
    loss_head_ablated: Float[Tensor, "L H"]  # change of the loss when one head is off


@torch.no_grad()
def trace(config: Config) -> Trace:
    """Read one head of the tiny LM on the prompt, and measure what its parts are worth."""
    from internals_math.attention_experiment import read_heads  # below: the model is built on this module's functions

    return read_heads(config)
