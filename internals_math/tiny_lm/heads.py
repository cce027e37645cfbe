"""What each attention head does, found by measuring, because heads move with the seed.

A score is the mean attention weight that a head gives, from the place where a thing must be recalled, to the place
where it was last said.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.tiny_lm.datasets import held_out, held_out_kind
from internals_math.tiny_lm.model import TinyLM
from internals_math.tiny_lm.training import evaluate
from internals_math.tiny_lm.vocabulary import OBJECT_ADJECTIVES, OBJECTS, PLACES, WORDS

Pairs = Callable[[list[str]], list[tuple[int, int]]]  # words -> (query position, key position)


def previous_token(words: list[str]) -> list[tuple[int, int]]:
    """Look at the word before."""
    return [(k, k - 1) for k in range(2, len(words))]


def induction(words: list[str]) -> list[tuple[int, int]]:
    """In the repeats of a song, look at the word after the earlier copy of the current word."""
    verses = [k for k, word in enumerate(words) if word == ":"]
    pairs = []
    for before, verse in zip(verses[:-1], verses[1:], strict=True):
        for k in range(verse + 1, len(words)):
            if words[k] == ".":
                break
            pairs.append((k, before + (k - verse) + 1))
    return pairs


def _recall(kind: frozenset[str]) -> Pairs:
    """Before a word of `kind` that was said before, look at its last place."""

    def pairs(words: list[str]) -> list[tuple[int, int]]:
        found = []
        for k in range(1, len(words) - 1):
            word = words[k + 1]
            earlier = [j for j in range(k) if words[j] == word]
            if word in kind and earlier:
                found.append((k, earlier[-1]))
        return found

    return pairs


SKILLS: dict[str, tuple[str, Pairs]] = {
    "previous token": ("one", previous_token),
    "induction": ("the", induction),
    "object recall": ("one", _recall(frozenset((*OBJECTS["farm"], *OBJECTS["sea"])))),
    "adjective recall": ("one", _recall(frozenset(OBJECT_ADJECTIVES))),
    "place recall": ("one", _recall(frozenset(PLACES))),
}


@dataclass(frozen=True)
class FoundHead:
    """The head that is best at a skill."""

    skill: str
    layer: int
    head: int
    score: float  # mean attention weight, 0..1


@torch.no_grad()
def head_scores(model: TinyLM, skill: str, documents: int = 60) -> Float[Tensor, "L H"]:
    """Return each head's mean attention weight on the places where `skill` says to look.

    Raises:
        ValueError: unknown skill.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill must be one of {', '.join(SKILLS)}, got {skill!r}")
    first_word, pairs_of = SKILLS[skill]
    corpus = held_out_kind(first_word, documents)
    _, records = model(corpus.ids, record=("weights",))
    weights = records["weights"]  # (L, B, H, T, T)
    picked = []
    for row, length in enumerate(corpus.lengths.tolist()):
        words = [WORDS[index] for index in corpus.ids[row, : length - 1].tolist()]
        picked += [weights[:, row, :, query, key] for query, key in pairs_of(words)]
    return torch.stack(picked).mean(dim=0)


def find_head(model: TinyLM, skill: str) -> FoundHead:
    """Return the head with the highest score at `skill`."""
    scores = head_scores(model, skill)
    best = int(scores.argmax())
    layer, head = divmod(best, scores.shape[1])
    return FoundHead(skill, layer, head, float(scores[layer, head]))


def head_ablation(model: TinyLM, documents: int = 100) -> Float[Tensor, "L H"]:
    """Return the change of the held-out loss when one head alone is switched off."""
    corpus = held_out(documents)
    config = model.config
    base = evaluate(model, corpus)
    change = torch.zeros(config.num_hidden_layers, config.num_attention_heads)
    for layer in range(config.num_hidden_layers):
        for head in range(config.num_attention_heads):
            mask = torch.ones_like(change)
            mask[layer, head] = 0.0
            change[layer, head] = evaluate(model, corpus, head_mask=mask) - base
    return change
