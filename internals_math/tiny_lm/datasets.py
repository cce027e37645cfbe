"""Texts as padded rows of token ids, with the exact surprisal of every token beside them."""

import hashlib
import random
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.tiny_lm import dialects, stories
from internals_math.tiny_lm.vocabulary import PAD, VOCAB_SIZE, id_of, tokens

ROW_LENGTH = 65  # ids, hence 64 predictions
HELD_OUT_SEED = 5
CORPUS_SEED = 1000
CORPUS_SIZE = 40_000


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of one grammar, one a row, padded with <pad>."""

    ids: Int[Tensor, "N T"]
    surprisal: Float[Tensor, "N T_pred"]  # -ln p of ids[:, 1:]; 0 on <pad>
    lengths: Int[Tensor, " N"]  # ids of each document, <bos> and <eos> counted

    @property
    def entropy_floor(self) -> float:
        """Nats per predicted token that no model can beat on average, exact on these very texts."""
        return float(self.surprisal.double().sum() / (self.lengths - 1).sum())

    @property
    def hash(self) -> str:
        """Return 16 hex digits over all ids."""
        return hashlib.sha256(self.ids.contiguous().numpy().tobytes()).hexdigest()[:16]

    def first(self, count: int) -> "Corpus":
        """Return the first `count` documents."""
        return Corpus(self.ids[:count], self.surprisal[:count], self.lengths[:count])

    def labels(self) -> Int[Tensor, "N T"]:
        """Return the ids with <pad> ignored (-100), as the loss wants them."""
        return self.ids.masked_fill(self.ids == PAD, -100)


def make_corpus(grammar: stories.Grammar, size: int, seed: int) -> Corpus:
    """Draw `size` documents; the same seed gives the same texts on every machine.

    Raises:
        ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    rng = random.Random(seed)
    documents = [stories.sample_document(grammar, rng) for _ in range(size)]
    return _to_rows(documents)


def _to_rows(documents: list[stories.Sampled]) -> Corpus:
    lengths = torch.tensor([len(document.ids) for document in documents])
    width = max(ROW_LENGTH, int(lengths.max()))
    ids = torch.full((len(documents), width), PAD)
    surprisal = torch.zeros(len(documents), width - 1)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        surprisal[row, : len(document.surprisal)] = torch.tensor(document.surprisal)
    return Corpus(ids, surprisal, lengths)


@cache
def held_out(count: int = 1000, dialect: str = "base") -> Corpus:
    """Return the first `count` held-out documents, always the same ones in the same order."""
    return make_corpus(dialects.grammar(dialect), count, HELD_OUT_SEED)


@cache
def training_corpus(dialect: str = "base", size: int = CORPUS_SIZE, seed: int = CORPUS_SEED) -> Corpus:
    """Return the documents a model is trained on."""
    return make_corpus(dialects.grammar(dialect), size, seed)


@cache
def held_out_kind(first_word: str, count: int = 200) -> Corpus:
    """Return held-out base documents of one kind: "one" tale, "fact" open book, "where" closed book, "the" song."""
    corpus = held_out(max(1000, count * 15))
    rows = (corpus.ids[:, 1] == id_of(first_word)).nonzero()[:count, 0]
    return Corpus(corpus.ids[rows], corpus.surprisal[rows], corpus.lengths[rows])


def story(index: int = 0) -> str:
    """Return the held-out tale number `index`, without <bos> and <eos>.

    Raises:
        ValueError: index below 0 or beyond the stored tales.
    """
    tales = held_out_kind("one", 200)
    if not 0 <= index < len(tales.ids):
        raise ValueError(f"story_index must be in 0..{len(tales.ids) - 1}, got {index}")
    return " ".join(tokens(tales.ids[index, 1 : tales.lengths[index] - 1]))


@cache
def long_text(count: int = 64, length: int = 4 * 64 + 1) -> Corpus:
    """Return closed-book lines in a row, `length` ids each: far longer than any training row, with an exact floor."""
    lines = length // 12 + 1
    rng = random.Random(HELD_OUT_SEED)
    documents = [stories.sample_document(dialects.long_closed_book(lines), rng) for _ in range(count)]
    cut = [stories.Sampled(d.ids[:length], d.surprisal[: length - 1]) for d in documents]
    return _to_rows(cut)


def true_next_probs(prefix: str, dialect: str = "base") -> Float[Tensor, " V"]:
    """Return the exact distribution of the word after `prefix`; <eos> where the document ends.

    Raises:
        ValueError: the grammar cannot produce the prefix.
    """
    words = [word for word in prefix.split() if word != "<bos>"]
    choice = stories.next_choice(dialects.grammar(dialect), words)
    probs = torch.zeros(VOCAB_SIZE)
    for word, share in (choice or {"<eos>": 1.0}).items():
        probs[id_of(word)] = share
    return probs
