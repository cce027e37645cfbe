"""Scaled dot-product attention and its parts, shared by the model and by every topic about attention.

Notation: B = batch, H = num_attention_heads, G = num_key_value_heads, T = sequence, d = head_dim, D = hidden_size.
Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
