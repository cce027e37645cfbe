"""The next-token objective: what a language model is trained on and judged by.

Notation: B = batch, T = sequence, V = vocab_size. Losses are nats per predicted token. `labels` and `input_ids` are
unshifted and the functions shift them; `targets` are already aligned with their logits; -100 is ignored.
Source: Radford et al. 2018 (GPT), eq. 1; Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (6ND).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100


def shift_for_next_token(
    logits: Float[Tensor, "*batch T V"], input_ids: Int[Tensor, "*batch T"]
) -> tuple[Float[Tensor, "*batch T_pred V"], Int[Tensor, "*batch T_pred"]]:
    """Pair the logits of every position with the token that follows it; the last position has no target.

    Raises:
        ValueError: fewer than 2 positions.
    """
    if logits.shape[-2] < 2:
        raise ValueError(f"a next token needs at least 2 positions, got {logits.shape[-2]}")
    return logits[..., :-1, :], input_ids[..., 1:]


def target_surprisal(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"], ignore_index: int = IGNORE
) -> Float[Tensor, "*batch"]:
    """Return -ln p(target) for aligned logits and targets; 0 where the target is ignored.

    Targets are trusted here, so that torch.func can transform the call; `next_token_loss` checks them.
    """
    kept = targets != ignore_index
    log_probs = torch.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(-1, targets.where(kept, 0)[..., None])[..., 0]
    return (-chosen).where(kept, 0.0)


def token_surprisal(
    logits: Float[Tensor, "*batch T V"], input_ids: Int[Tensor, "*batch T"]
) -> Float[Tensor, "*batch T_pred"]:
    """Return the surprisal of every token after the first, in nats; 0 where it is ignored."""
    return target_surprisal(*shift_for_next_token(logits, input_ids))


def next_token_loss(
    logits: Float[Tensor, "*batch T V"],
    input_ids: Int[Tensor, "*batch T"],
    *,
    labels: Int[Tensor, "*batch T"] | None = None,
    ignore_index: int = IGNORE,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Float[Tensor, "*reduced"]:
    """Return the surprisal of the next token over all labels that are not ignored.

    Args:
        logits: (*batch, T, V).
        input_ids: (*batch, T) the text itself, unshifted.
        labels: what to score in place of input_ids; unshifted too.
        ignore_index: a label that counts neither in the sum nor in the number of tokens.
        reduction: "mean" over the tokens that count, "sum", or "none" for (*batch, T - 1) with 0 where ignored.

    Raises:
        ValueError: unknown reduction, a label out of the vocabulary, or nothing to average.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    logits, targets = shift_for_next_token(logits, input_ids if labels is None else labels)
    kept = targets != ignore_index
    vocab_size = logits.shape[-1]
    if ((targets < 0) | (targets >= vocab_size))[kept].any():
        raise ValueError(f"labels must be in 0..{vocab_size - 1} or {ignore_index}, got {targets[kept].tolist()}")
    surprisal = target_surprisal(logits, targets, ignore_index)
    if reduction == "none":
        return surprisal
    if reduction == "sum":
        return surprisal.sum()
    if not kept.any():
        raise ValueError(f"next_token_loss needs at least one label that is not {ignore_index}")
    return surprisal.sum() / kept.sum()


def sequence_log_prob(
    logits: Float[Tensor, "*batch T V"], input_ids: Int[Tensor, "*batch T"]
) -> Float[Tensor, "*batch"]:
    """Return ln p of each whole sequence given its first token."""
    return -token_surprisal(logits, input_ids).sum(dim=-1)


def perplexity(loss: float) -> float:
    """Return e^loss: the number of equally likely words that would surprise as much.

    Raises:
        ValueError: a negative loss, which no model of discrete tokens can have.
    """
    if loss < 0:
        raise ValueError(f"a loss must be at least 0 nats per token, got {loss}")
    return math.exp(loss)


def bits_per_token(loss: float) -> float:
    """Return the loss in bits."""
    return loss / math.log(2)


def sample_token(
    logits: Float[Tensor, "*batch V"], temperature: float = 1.0, generator: torch.Generator | None = None
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


@torch.no_grad()
def sample(
    model_fn: Callable[[Tensor], Tensor],
    prompt: Int[Tensor, " t"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " t_all"]:
    """Return the prompt and what the model writes after it, each answer fed back as a question.

    Args:
        model_fn: (1, T) ids -> (1, T, V) logits.
        prompt: at least one token.

    Raises:
        ValueError: an empty prompt, max_new_tokens below 0, or a temperature that is not > 0.
    """
    if not len(prompt) or max_new_tokens < 0:
        raise ValueError(
            f"sample needs a prompt and max_new_tokens >= 0, got {len(prompt)} tokens and "
            f"max_new_tokens {max_new_tokens}"
        )
    text = prompt
    for _ in range(max_new_tokens):
        logits = model_fn(text[None])[0, -1]
        text = torch.cat([text, sample_token(logits, temperature, generator)[None]])
    return text


def training_flops(num_params: int, num_tokens: int) -> int:
    """Return 6ND, the FLOPs of training N parameters on D tokens: 2 forward and 4 backward, attention excluded.

    Raises:
        ValueError: a negative number.
    """
    if num_params < 0 or num_tokens < 0:
        raise ValueError(f"num_params and num_tokens must be at least 0, got {num_params} and {num_tokens}")
    return 6 * num_params * num_tokens
