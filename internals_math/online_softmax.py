"""Softmax over a stream: a running maximum and a running sum, corrected whenever the maximum moves.

Notation: m = running_max, l = running_sum, the sum of exp(score - m) over the scores so far.
Source: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867, algorithm 3.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def rescale_factor(old_max: Float[Tensor, "..."], new_max: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return exp(old - new), the factor for what was summed under the old maximum; 0 as long as there was nothing."""
    # -inf - (-inf) is NaN: a row that has seen no key yet has nothing to rescale
    return torch.exp(old_max - new_max.masked_fill(new_max == -math.inf, 0.0))


def online_softmax_update(
    running_max: Float[Tensor, "..."], running_sum: Float[Tensor, "..."], score: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Take one more score into the running maximum and the running sum; they start at -inf and 0.

    >>> online_softmax_update(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(3.0))
    (tensor(3.), tensor(1.1353))
    """
    new_max = torch.maximum(running_max, score)
    return new_max, running_sum * rescale_factor(running_max, new_max) + rescale_factor(score, new_max)


@dataclass(frozen=True, eq=False)
class OnlineSoftmaxTrace:
    """The running maximum and sum after each score of a stream, and the softmax that they give in the end."""

    running_max: Float[Tensor, "*batch n"]
    running_sum: Float[Tensor, "*batch n"]
    probs: Float[Tensor, "*batch n"]


def online_softmax(scores: Float[Tensor, "*batch n"]) -> OnlineSoftmaxTrace:
    """Return the softmax over the last axis from one pass for maximum and sum, and one for the quotient.

    Raises:
        ValueError: no scores.
    """
    if not scores.shape[-1]:
        raise ValueError("online_softmax needs at least one score, got none")
    running_max, running_sum = torch.full_like(scores[..., 0], -math.inf), torch.zeros_like(scores[..., 0])
    maxima, sums = [], []
    for score in scores.unbind(dim=-1):
        running_max, running_sum = online_softmax_update(running_max, running_sum, score)
        maxima.append(running_max)
        sums.append(running_sum)
    probs = rescale_factor(scores, running_max[..., None]) / running_sum[..., None]
    return OnlineSoftmaxTrace(torch.stack(maxima, dim=-1), torch.stack(sums, dim=-1), probs)


def merge_softmax_states(
    max1: Float[Tensor, "*batch"],
    sum1: Float[Tensor, "*batch"],
    acc1: Float[Tensor, "*batch d"],
    max2: Float[Tensor, "*batch"],
    sum2: Float[Tensor, "*batch"],
    acc2: Float[Tensor, "*batch d"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch d"]]:
    """Join what two sets of keys gave: maximum, sum, and accumulator (the output not yet divided by the sum).

    The empty set is (-inf, 0, 0). The order of merging does not matter.
    """
    new_max = torch.maximum(max1, max2)
    first, second = rescale_factor(max1, new_max), rescale_factor(max2, new_max)
    return new_max, first * sum1 + second * sum2, first[..., None] * acc1 + second[..., None] * acc2
