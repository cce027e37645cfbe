"""Entropy, KL divergence and total variation of discrete distributions, in nats, with 0 log 0 = 0."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def entropy(p: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Return the Shannon entropy of p along `dim`."""
    return -torch.xlogy(p, p).sum(dim=dim)


def kl_divergence(p: Float[Tensor, "... n"], q: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Return KL(p ‖ q) along the last axis; inf where p gives weight to something that q rules out."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1)


def total_variation(p: Float[Tensor, "... n"], q: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Return half the sum of |p - q| along the last axis, 0..1."""
    return (p - q).abs().sum(dim=-1) / 2


def pooled(p: Float[Tensor, "*batch N"], shown: Int[Tensor, " n"]) -> Float[Tensor, "*batch n_more"]:
    """Return the probabilities of the shown outcomes, and last that of all others together."""
    alone = p[..., shown]
    return torch.cat([alone, 1 - alone.sum(dim=-1, keepdim=True)], dim=-1)
