"""The next-token objective: what a language model is trained on and judged by.

Notation: B = batch, T = sequence, V = vocab_size. Losses are nats per predicted token.
Source: Radford et al. 2018 (GPT), eq. 1; Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (6ND).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100


def shift_for_next_token(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T_pred V"], Int[Tensor, "B T_pred"]]:
    """Pair the logits of every position with the token that follows it; `labels` are unshifted."""
    if logits.shape[1] < 2:
        raise ValueError(f"a next token needs at least 2 positions, got {logits.shape[1]}")
    return logits[:, :-1], labels[:, 1:]


def token_surprisal(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return -ln p(target) for aligned logits and targets; 0 where the target is ignored (-100)."""
    kept = targets != IGNORE
    log_probs = torch.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, targets.where(kept, 0)[..., None])[..., 0]
    return (-chosen).where(kept, 0.0)


def next_token_loss(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the mean surprisal of the next token over all labels that are not ignored (-100).

    Raises:
        ValueError: every label is ignored, so there is nothing to average.
    """
    logits, targets = shift_for_next_token(logits, labels)
    kept = (targets != IGNORE).sum()
    if kept == 0:
        raise ValueError("next_token_loss needs at least one label that is not -100")
    return token_surprisal(logits, targets).sum() / kept


def sequence_log_prob(logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return ln p of each whole sequence given its first token."""
    logits, targets = shift_for_next_token(logits, labels)
    return -token_surprisal(logits, targets).sum(dim=-1)


def perplexity(loss: float) -> float:
    """Return e^loss: the number of equally likely words that would surprise as much."""
    return math.exp(loss)


def bits_per_token(loss: float) -> float:
    """Return the loss in bits."""
    return loss / math.log(2)


def sample(
    logits: Float[Tensor, "*batch V"], temperature: float, generator: torch.Generator | None = None
) -> Int[Tensor, "*batch"]:
    """Draw one token from softmax(logits / temperature).

    Raises:
        ValueError: temperature is not > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0 (for greedy decoding use argmax), got {temperature}")
    probs = torch.softmax(logits / temperature, dim=-1)
    flat = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
    return flat.reshape(logits.shape[:-1])


def training_flops(num_params: int, num_tokens: int) -> int:
    """Return 6ND, the FLOPs of training N parameters on D tokens (attention excluded)."""
    return 6 * num_params * num_tokens
