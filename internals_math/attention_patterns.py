"""What attention weights and scores look like: entropy, geometry, the spread of random scores, classes of heads.

Notation: d = head_dim, T = positions, n = entries of a softmax, S = keys.
Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1 and its footnote 4.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.distributions import entropy

HEAD_CLASSES = ("self", "previous", "first", "same", "rest")


def attention_entropy(weights: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each row in bits: 0 when one key has all the weight, log2(n) when n keys share it."""
    return entropy(weights) / math.log(2)


def effective_tokens(weights: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """Return 2 ** entropy: how many keys would share the weight evenly at this entropy."""
    return 2 ** attention_entropy(weights)


def softmax_jacobian(p: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Return diag(p) - p pᵀ, the derivative of each weight by each score; it vanishes as p becomes one-hot."""
    return p.diag() - p[:, None] * p[None, :]


def key_plane_coordinates(query: Float[Tensor, " d"], keys: Float[Tensor, "S d"]) -> Float[Tensor, "S 2"]:
    """Return (a, r) of each key: its signed length along the query, and its distance from that line (>= 0).

    Nothing that the score uses is lost: q · k = a ‖q‖, and a² + r² = ‖k‖².

    Raises:
        ValueError: a query of length 0, which has no direction.

    >>> key_plane_coordinates(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([[-1.0, 3.0, 4.0]]))
    tensor([[-1.,  5.]])
    """
    length = query.norm()
    if not length > 0:
        raise ValueError("the query must have a direction, got a vector of length 0")
    unit = query / length
    along = keys @ unit  # (S,)
    across = (keys - along[:, None] * unit).norm(dim=-1)
    return torch.stack([along, across], dim=-1)


def score_statistics(
    head_dims: Sequence[int], num_pairs: int, num_keys: int, generator: torch.Generator
) -> dict[str, Float[Tensor, " dims"]]:
    """Return what happens to random scores as vectors get wider: components independent, mean 0, variance 1.

    Args:
        head_dims: the widths to try.
        num_pairs: dot products for each width; every num_keys of them share a query and one softmax.
        num_keys: keys of a softmax.

    Returns:
        std_raw, the standard deviation of q · k; entropy_raw and entropy_scaled, mean entropy of a row in bits without
        and with the factor 1/√d; maxw_raw and maxw_scaled, the mean of a row's largest weight.

    Raises:
        ValueError: a width or num_keys below 1, or num_pairs that is not a positive multiple of num_keys.
    """
    if not head_dims or min(head_dims) < 1 or num_keys < 1:
        raise ValueError(f"head_dims and num_keys must be at least 1, got {list(head_dims)} and {num_keys}")
    if num_pairs < num_keys or num_pairs % num_keys:
        raise ValueError(f"num_pairs must be a positive multiple of num_keys ({num_keys}), got {num_pairs}")
    rows: dict[str, list[Tensor]] = {
        name: [] for name in ("std_raw", "entropy_raw", "entropy_scaled", "maxw_raw", "maxw_scaled")
    }
    for dim in head_dims:
        queries = torch.randn(num_pairs // num_keys, dim, 1, generator=generator)
        keys = torch.randn(num_pairs // num_keys, num_keys, dim, generator=generator)
        scores = (keys @ queries)[..., 0]  # (rows, keys)
        rows["std_raw"].append(scores.std())
        for name, scale in (("raw", 1.0), ("scaled", 1 / math.sqrt(dim))):
            weights = torch.softmax(scores * scale, dim=-1)
            rows[f"entropy_{name}"].append(attention_entropy(weights).mean())
            rows[f"maxw_{name}"].append(weights.amax(dim=-1).mean())
    return {name: torch.stack(values) for name, values in rows.items()}


def classify_head(weights: Float[Tensor, "T T"], token_ids: Int[Tensor, " T"]) -> dict[str, float]:
    """Return the mean weight that a causal head puts on each of HEAD_CLASSES; the five add up to 1.

    A key belongs to the first class that fits: the query's own position, the one before it, position 0, an earlier
    position with the query's token, any other. Row 0 sees only itself and is left out.

    Raises:
        ValueError: fewer than 2 positions, or as many ids as there are not rows.
    """
    length = len(weights)
    if length < 2 or len(token_ids) != length:
        raise ValueError(f"a head needs at least 2 positions and an id for each, got {length} and {len(token_ids)}")
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    fits = {
        "self": key == query,
        "previous": key == query - 1,
        "first": (key == 0).expand(length, length),
        "same": (token_ids[:, None] == token_ids[None, :]) & (key < query),
        "rest": torch.ones(length, length, dtype=torch.bool),
    }
    taken = torch.zeros(length, length, dtype=torch.bool)
    shares = {}
    for name in HEAD_CLASSES:
        mine = fits[name] & ~taken
        taken |= mine
        shares[name] = float((weights * mine)[1:].sum(dim=-1).mean())
    return shares
