"""Grammars as coroutines: documents produced word by word, so that every next-word probability is known exactly.

At each step a document yields the distribution of the next word (a certain word is a distribution too) and receives
the word that was chosen. Its state depends on the chosen words alone, hence p(word | prefix) is exact, and the entropy
floor of a text is the sum of -ln p over its words.

    def coin():
        side = yield {"happy": 0.9, "sad": 0.1}
        yield from words("thank you" if side == "happy" else "go away")
"""

import math
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import no_type_check

from internals_math.tiny_lm.vocabulary import BOS, WORDS, ids_of

Choice = dict[str, float]  # word -> probability; a word that is not listed cannot follow
Document = Generator[Choice, str, None]
Grammar = Callable[[], Document]

END: Choice = {"<eos>": 1.0}  # what follows the last word of every document


# -- writing a grammar -------------------------------------------------------------------------------------------------


def words(text: str) -> Document:
    """Say certain words."""
    for word in text.split():
        yield {word: 1.0}


def uniform(options: Sequence[str]) -> Choice:
    """Return equal shares."""
    return {option: 1 / len(options) for option in options}


def favoring(options: Sequence[str], favorite: str, share: float) -> Choice:
    """Return `share` for the favorite and equal parts of the rest for the others."""
    rest = (1 - share) / (len(options) - 1)
    return {option: share if option == favorite else rest for option in options}


def by_rank(options: Sequence[str]) -> Choice:
    """Return shares in proportion to 1 / sqrt(rank)."""
    weights = [1 / math.sqrt(rank) for rank in range(1, len(options) + 1)]
    return {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}


# -- running a grammar -------------------------------------------------------------------------------------------------


@dataclass
class Sampled:
    """One document: its token ids from <bos> to <eos>, and the surprisal -ln p of each id after the first."""

    ids: list[int]
    surprisal: list[float]


def sample_document(grammar: Grammar, rng: random.Random) -> Sampled:
    """Draw one document; <eos> at its end is certain."""
    said, shares = [], []
    run = _Run(grammar)
    while not run.ended:
        word, share = _draw(run.choice, rng)
        said.append(word)
        shares.append(share)
        run.say(word)
    return Sampled([BOS, *ids_of(said)], [-math.log(share) for share in shares])


def next_choice(grammar: Grammar, prefix: Sequence[str]) -> Choice:
    """Return the exact distribution of the word after `prefix` (without <bos>); <eos> where the document ends.

    Raises:
        ValueError: the grammar cannot produce the prefix, or the prefix holds a whole document with its <eos>.
    """
    run = _Run(grammar)
    for _ in _shares(run, prefix):
        pass
    if run.ended:
        raise ValueError("nothing follows <eos>")
    return run.choice


def surprisal(grammar: Grammar, ids: Sequence[int]) -> list[float]:
    """Return -ln p of every id after the first (<bos>); the text may stop before its end.

    Raises:
        ValueError: the grammar cannot produce the text.
    """
    return [-math.log(share) for share in _shares(_Run(grammar), [WORDS[index] for index in ids[1:]])]


class _Run:
    """A document in the making: the distribution of its next word, until <eos> has been said."""

    def __init__(self, grammar: Grammar) -> None:
        self._document = grammar()
        self.choice = next(self._document)
        self.ended = False

    @no_type_check  # called for every word of a corpus, where run-time checks of the tests would take a minute
    def say(self, word: str) -> None:
        """Choose the next word."""
        if self.choice is END:
            self.ended = True
            return
        try:
            self.choice = self._document.send(word)
        except StopIteration:
            self.choice = END


def _shares(run: _Run, prefix: Sequence[str]) -> Iterator[float]:
    """Say the words of `prefix` and tell how probable each one was."""
    for position, word in enumerate(prefix):
        share = 0.0 if run.ended else run.choice.get(word, 0.0)
        if share <= 0:
            raise ValueError(f"{word!r} cannot follow {' '.join(prefix[:position])!r} in this grammar")
        yield share
        run.say(word)


@no_type_check  # as above
def _draw(choice: Choice, rng: random.Random) -> tuple[str, float]:
    if len(choice) == 1:  # certain words cost no random number
        return next(iter(choice.items()))
    left = rng.random()
    for word, share in choice.items():
        left -= share
        if left < 0:
            return word, share
    return word, share  # the shares summed to a hair less than 1
