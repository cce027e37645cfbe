"""What each attention head does, found by measuring, because heads move with the seed.

A score is the mean attention weight that a head gives, from the place where a thing must be recalled, to the place
where it was last said.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.tiny_lm.checkpoints import load
from internals_math.tiny_lm.datasets import Corpus, held_out, held_out_kind
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
    for before, verse in pairwise(verses):
        for k in range(verse + 1, len(words)):
            if words[k] == ".":
                break
            pairs.append((k, before + (k - verse) + 1))
    return pairs


def recall(kind: frozenset[str]) -> Pairs:
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
    "previous token": ("tale", previous_token),
    "induction": ("song", induction),
    "object recall": ("tale", recall(frozenset((*OBJECTS["farm"], *OBJECTS["sea"])))),
    "adjective recall": ("tale", recall(frozenset(OBJECT_ADJECTIVES))),
    "place recall": ("tale", recall(frozenset(PLACES))),
}


@dataclass(frozen=True)
class FoundHead:
    """The head that is best at a skill."""

    skill: str
    layer: int
    head: int
    score: float  # mean attention weight, 0..1
    chance: float  # what a head scores that looks at all visible positions alike


@cache
def find_heads(name: str = "base") -> dict[str, FoundHead]:
    """Return the best head of a committed model for every skill."""
    return {skill: find_head(load(name), skill) for skill in SKILLS}


def find_head(model: TinyLM, skill: str) -> FoundHead:
    """Return the head with the highest score at `skill`."""
    scores = head_scores(model, skill)
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    _, _, query, _ = _places(skill, DOCUMENTS)
    return FoundHead(skill, layer, head, float(scores[layer, head]), float((1 / (query + 1)).mean()))


DOCUMENTS = 60


@torch.no_grad()
def head_scores(model: TinyLM, skill: str, documents: int = DOCUMENTS) -> Float[Tensor, "L H"]:
    """Return each head's mean attention weight on the places where `skill` says to look.

    Raises:
        ValueError: unknown skill.
    """
    corpus, row, query, key = _places(skill, documents)
    _, records = model(corpus.ids, record=("weights",))
    return records["weights"][:, row, :, query, key].mean(dim=0)  # (pairs, L, H) before the mean


@cache
def _places(skill: str, documents: int) -> tuple[Corpus, Tensor, Tensor, Tensor]:
    """Return held-out documents, and the row, query and key position of every place where the skill is needed."""
    if skill not in SKILLS:
        raise ValueError(f"skill must be one of {', '.join(SKILLS)}, got {skill!r}")
    kind, pairs_of = SKILLS[skill]
    corpus = held_out_kind(kind, documents)
    found = [
        (row, query, key)
        for row, length in enumerate(corpus.lengths.tolist())
        for query, key in pairs_of([WORDS[index] for index in corpus.ids[row, : length - 1].tolist()])
    ]
    row, query, key = torch.tensor(found).unbind(dim=1)
    return corpus, row, query, key


def head_ablation(model: TinyLM, corpus: Corpus | None = None) -> Float[Tensor, "L H"]:
    """Return the change of the held-out loss (the first 100 documents by default) when one head alone is off."""
    corpus = held_out(100) if corpus is None else corpus
    whole = evaluate(model, corpus)
    mask = torch.ones(model.config.num_hidden_layers, model.config.num_attention_heads)
    change = torch.zeros_like(mask)
    for layer, head in torch.cartesian_prod(*(torch.arange(size) for size in mask.shape)).tolist():
        mask[layer, head] = 0.0
        change[layer, head] = evaluate(model, corpus, head_mask=mask) - whole
        mask[layer, head] = 1.0
    return change
