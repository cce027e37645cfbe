"""How good the model is, against the exact floor: by document kind, position and token class; and what it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from internals_math.tiny_lm import grammar
from internals_math.tiny_lm.datasets import KINDS, ROW_LENGTH, Corpus, held_out
from internals_math.tiny_lm.generation import generate
from internals_math.tiny_lm.model import TinyLM
from internals_math.tiny_lm.stories import base_document
from internals_math.tiny_lm.training import token_losses
from internals_math.tiny_lm.vocabulary import (
    CAST,
    EOS,
    OBJECT_ADJECTIVES,
    OBJECTS,
    PAD,
    PLACES,
    PREPOSITIONS,
    WORDS,
    encode,
    id_of,
)

CONTENT = {
    **dict.fromkeys((*CAST["farm"], *CAST["sea"]), "character"),
    **dict.fromkeys((*OBJECTS["farm"], *OBJECTS["sea"]), "object"),
    **dict.fromkeys(OBJECT_ADJECTIVES, "adjective"),
    **dict.fromkeys((*PREPOSITIONS, *PLACES), "place"),
}
TOKEN_CLASSES = (
    "free choice", "song word, first time", "song word, again", "character, recalled", "object, recalled",
    "adjective, recalled", "place, recalled", "place, from the weights", "certain by grammar",
)  # fmt: skip


@dataclass(frozen=True)
class LossRow:
    """Loss and floor of a group of predicted tokens."""

    name: str
    tokens: int
    loss: float  # nats per token
    floor: float  # nats per token, exact on these very tokens

    @property
    def excess(self) -> float:
        return self.loss - self.floor


@torch.no_grad()
def losses_by_group(
    model: TinyLM, corpus: Corpus, groups: Int[Tensor, "N T_pred"], names: Sequence[str]
) -> list[LossRow]:
    """Return loss and floor of every group; `groups` says to which name each predicted token belongs."""
    losses = token_losses(model, corpus.ids).double()
    real = corpus.ids[:, 1:] != PAD
    rows = []
    for group, name in enumerate(names):
        chosen = real & (groups == group)
        count = int(chosen.sum())
        if count:
            rows.append(
                LossRow(name, count, float(losses[chosen].mean()), float(corpus.surprisal[chosen].double().mean()))
            )
    return rows


def loss_by_kind(model: TinyLM, documents: int = 1000) -> list[LossRow]:
    """Return loss and floor of each kind of document, tales split by domain, and of all."""
    corpus = held_out(documents)
    groups = torch.tensor([_kind(row) for row in corpus.ids.tolist()])[:, None].expand(corpus.surprisal.shape)
    everything = losses_by_group(model, corpus, torch.zeros_like(groups), ["all documents"])
    return losses_by_group(model, corpus, groups, KIND_NAMES) + everything


KIND_NAMES = ("tale, farm", "tale, sea", "open book", "closed book", "song")


def _kind(ids: list[int]) -> int:
    kind = {id_of(word): name for name, word in KINDS.items()}[ids[1]]
    if kind == "tale":
        kind = "tale, farm" if WORDS[ids[5]] in CAST["farm"] else "tale, sea"  # <bos> one day the [adj] [hero]
    return KIND_NAMES.index(kind)


def loss_by_position(model: TinyLM, documents: int = 1000, width: int = 4) -> list[LossRow]:
    """Return loss and floor by position of the predicted token (1 = the word after <bos>), `width` positions a row."""
    corpus = held_out(documents)
    positions = torch.arange(corpus.surprisal.shape[1]).expand(corpus.surprisal.shape)
    last = int(corpus.lengths.max()) - 1
    names = [f"{first + 1}-{min(first + width, last)}" for first in range(0, last, width)]
    return losses_by_group(model, corpus, positions // width, names)


def loss_by_token_class(model: TinyLM, documents: int = 1000) -> list[LossRow]:
    """Return loss and floor by what it takes to predict the token (TOKEN_CLASSES)."""
    return losses_by_group(model, held_out(documents), _token_classes(documents), TOKEN_CLASSES)


@cache
def _token_classes(documents: int) -> Int[Tensor, "N T_pred"]:
    corpus = held_out(documents)
    groups = torch.full(corpus.surprisal.shape, -1)
    for row, (ids, surprisal) in enumerate(zip(corpus.ids.tolist(), corpus.surprisal.tolist(), strict=True)):
        words = [WORDS[index] for index in ids if index != PAD]
        for position in range(1, len(words)):
            name = _token_class(words, position, is_certain=surprisal[position - 1] == 0)
            groups[row, position - 1] = TOKEN_CLASSES.index(name)
    return groups


def _token_class(words: list[str], position: int, *, is_certain: bool) -> str:
    content = CONTENT.get(words[position])
    in_song = words[1] == KINDS["song"]
    if not is_certain:
        return "song word, first time" if in_song and position > 3 else "free choice"
    if content is None:
        return "certain by grammar"
    if in_song:
        return "song word, again"
    # A closed-book line may repeat an earlier one, but it is the weights that know where the thing is.
    if words[1] == KINDS["closed book"]:
        return "place, from the weights" if content == "place" else "certain by grammar"
    return f"{content}, recalled" if words[position] in words[:position] else "certain by grammar"


def write_documents(model: TinyLM, count: int, seed: int = 0) -> list[str]:
    """Return whole documents sampled from the model at temperature 1, as far as they fit into 64 predictions."""
    generator = torch.Generator().manual_seed(seed)
    return generate(model, [""] * count, ROW_LENGTH - 1, temperature=1.0, generator=generator)


def is_grammatical(text: str, document: grammar.Grammar = base_document) -> bool:
    """Say whether the grammar can produce the text as a whole document."""
    try:
        grammar.surprisal(document, [*encode(text), EOS])
    except ValueError:
        return False
    return True


def grammatical_shares(texts: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return how many texts of each kind there are, and the share of them that the grammar can produce."""
    shares = {}
    for kind, first_word in KINDS.items():
        judged = [is_grammatical(text) for text in texts if text.split()[:1] == [first_word]]
        if judged:
            shares[kind] = (len(judged), sum(judged) / len(judged))
    return shares
