"""Writing with the model: batched, with or without a cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.next_token import sample_token
from internals_math.tiny_lm.checkpoints import load
from internals_math.tiny_lm.model import Cache, TinyLM
from internals_math.tiny_lm.vocabulary import EOS, encode, id_of, tokens


@torch.no_grad()
def generate(
    model: TinyLM,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    stop: str = "<eos>",
    cache: Cache | None = None,
) -> list[str]:
    """Return the words written after each prompt (without <eos>).

    Args:
        prompts: all with the same number of words.
        temperature: 0 takes the most likely word.
        stop: the word after which a text ends; "." ends with the sentence and keeps its full stop.
        cache: an empty cache to write with; None computes the whole text again at each step.

    Raises:
        ValueError: no prompt, prompts of different lengths, max_new_tokens below 1, a negative temperature.
    """
    ids = [encode(prompt) for prompt in prompts]
    if not ids or len({len(row) for row in ids}) > 1:
        raise ValueError(f"generate needs one or more prompts of equal length, got lengths {[len(row) for row in ids]}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    text = torch.tensor(ids)  # (B, T)
    prompt_length = text.shape[1]
    stop_ids = torch.tensor([EOS, id_of(stop)])
    done = torch.zeros(len(text), dtype=torch.bool)
    unread = text
    for _ in range(max_new_tokens):
        logits = model(text if cache is None else unread, cache=cache)[:, -1]  # (B, V)
        chosen = logits.argmax(dim=-1) if temperature == 0 else sample_token(logits, temperature, generator)
        chosen = chosen.masked_fill(done, EOS)
        done |= torch.isin(chosen, stop_ids)
        text = torch.cat([text, chosen[:, None]], dim=1)
        unread = chosen[:, None]
        if done.all():
            break
    written = [tokens(row[prompt_length:]) for row in text]
    return [" ".join(row[: row.index("<eos>")] if "<eos>" in row else row) for row in written]


@torch.no_grad()
def next_token_logits(prompt: str, model: TinyLM | None = None) -> Float[Tensor, " V"]:
    """Return the logits of the word after `prompt`; the base model's unless another one is given."""
    model = load("base") if model is None else model
    return model(torch.tensor([encode(prompt)]))[0, -1]
