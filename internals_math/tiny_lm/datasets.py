"""Texts as padded rows of token ids, with the exact surprisal of every token beside them."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.tiny_lm import dialects, grammar
from internals_math.tiny_lm.vocabulary import EOS, PAD, VOCAB_SIZE, encode, id_of, tokens

PROMPT = "one day the old fox found a"  # how the series story begins
KINDS = {"tale": "one", "open book": "fact", "closed book": "where", "song": "the"}  # kind of document -> first word
ROW_LENGTH = 65  # ids, hence 64 predictions
HELD_OUT_SEED = 5
CORPUS_SEED = 1000
CORPUS_SIZE = 40_000
STORED_TALES = 200
CLOSED_BOOK_LINE = 12  # tokens of `where is the [thing] of the [owner] ? [prep] the [place] .`


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
        return self.rows(range(min(count, len(self.ids))))

    def rows(self, indices: Sequence[int]) -> "Corpus":
        """Return some of the documents."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        return Corpus(self.ids[chosen], self.surprisal[chosen], self.lengths[chosen])

    def texts(self) -> list[str]:
        """Return the documents as words, without <bos>, <eos> and <pad>."""
        return [" ".join(tokens(row[row > EOS])) for row in self.ids]

    def labels(self) -> Int[Tensor, "N T"]:
        """Return the ids with <pad> ignored (-100), as the loss wants them."""
        return self.ids.masked_fill(self.ids == PAD, -100)


def make_corpus(document: grammar.Grammar, size: int, seed: int) -> Corpus:
    """Draw `size` documents; the same seed gives the same texts on every machine.

    Raises:
        ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    rng = random.Random(seed)
    return to_rows([grammar.sample_document(document, rng) for _ in range(size)])


def to_rows(documents: Sequence[grammar.Sampled]) -> Corpus:
    """Lay documents out as rows of ROW_LENGTH ids, or of the longest document if that is longer."""
    lengths = torch.tensor([len(document.ids) for document in documents])
    width = max(ROW_LENGTH, int(lengths.max()))
    ids = torch.full((len(documents), width), PAD)
    surprisal = torch.zeros(len(documents), width - 1)
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        surprisal[row, : len(document.surprisal)] = torch.tensor(document.surprisal)
    return Corpus(ids, surprisal, lengths)


@cache
def training_corpus(dialect: str = "base", size: int = CORPUS_SIZE, seed: int = CORPUS_SEED) -> Corpus:
    """Return the documents a model is trained on."""
    return make_corpus(dialects.grammar(dialect), size, seed)


@cache
def held_out(count: int = 1000, dialect: str = "base") -> Corpus:
    """Return the first `count` held-out documents, always the same ones in the same order."""
    return make_corpus(dialects.grammar(dialect), count, HELD_OUT_SEED)


@cache
def held_out_kind(kind: str, count: int = 200) -> Corpus:
    """Return the first held-out base documents of one kind: "tale", "open book", "closed book" or "song".

    Raises:
        ValueError: unknown kind, or a count beyond what is stored.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    corpus = held_out(3000)
    rows = (corpus.ids[:, 1] == id_of(KINDS[kind])).nonzero()[:, 0].tolist()
    if not 1 <= count <= len(rows):
        raise ValueError(f"count must be in 1..{len(rows)} for held-out documents of kind {kind!r}, got {count}")
    return corpus.rows(rows[:count])


@cache
def _stories() -> tuple[str, ...]:
    """Return held-out tales; the first one that begins with PROMPT is moved to the front."""
    tales = held_out_kind("tale", STORED_TALES).texts()
    series_story = next(index for index, text in enumerate(tales) if text.startswith(PROMPT))
    return (tales.pop(series_story), *tales)


def story(index: int = 0) -> str:
    """Return the words of a held-out tale; number 0 is the series story, which begins with PROMPT.

    Raises:
        ValueError: index below 0 or beyond the stored tales.
    """
    if not 0 <= index < STORED_TALES:
        raise ValueError(f"story_index must be in 0..{STORED_TALES - 1}, got {index}")
    return _stories()[index]


@cache
def long_text(count: int = 64, length: int = 4 * 64 + 1) -> Corpus:
    """Return closed-book lines in a row, `length` ids each: far longer than any training row, with an exact floor."""
    rng = random.Random(HELD_OUT_SEED)
    lines = dialects.closed_book_lines(length // CLOSED_BOOK_LINE + 1)
    documents = [grammar.sample_document(lines, rng) for _ in range(count)]
    return to_rows([grammar.Sampled(d.ids[:length], d.surprisal[: length - 1]) for d in documents])


def entropy_floor(ids: Int[Tensor, "N T"], dialect: str = "base") -> float:
    """Return the exact nats per predicted token of texts of a dialect; <pad> is not counted.

    Raises:
        ValueError: the dialect's grammar cannot produce one of the texts.
    """
    document = dialects.grammar(dialect)
    texts = [[index for index in row if index != PAD] for row in ids.tolist()]
    surprisal = [nats for text in texts for nats in grammar.surprisal(document, text)]
    return sum(surprisal) / len(surprisal)


def true_next_probs(prefix: str, dialect: str = "base") -> Float[Tensor, " V"]:
    """Return the exact distribution of the word after `prefix`; <eos> where the document ends.

    Raises:
        ValueError: the dialect's grammar cannot produce the prefix.
    """
    choice = grammar.next_choice(dialects.grammar(dialect), tokens(encode(prefix)[1:]))
    probs = torch.zeros(VOCAB_SIZE)
    for word, share in choice.items():
        probs[id_of(word)] = share
    return probs
