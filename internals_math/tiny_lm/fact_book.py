"""The Zipf fact book: single facts of very unequal frequency, for scaling laws.

The loss on stories falls in jumps and then sits on the floor, which gives no law. Here every fact is two cue words and
one answer word, fact i is met with probability ~ i^-exponent, and the answer is right with `reliability`, else any
word: the more weights and the more texts, the more of the tail is known, without end and without jumps.

Notation: F = facts, N = documents.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.next_token import target_surprisal
from internals_math.tiny_lm.model import TinyLM

WORDS_IN_BOOK = 100


@dataclass(frozen=True, eq=False)
class FactBook:
    """All facts and how often each is met."""

    cues: Int[Tensor, "F 2"]
    answers: Int[Tensor, " F"]
    shares: Float[Tensor, " F"]  # float64, most frequent first, sum 1
    reliability: float  # P(the answer told is the fact's); else any of the 100 words, that one included

    @property
    def entropy_floor(self) -> float:
        """Nats per answer that no model can beat; the same for every fact."""
        wrong = (1 - self.reliability) / WORDS_IN_BOOK
        right = self.reliability + wrong
        rest = 0.0 if wrong == 0 else (WORDS_IN_BOOK - 1) * wrong * math.log(wrong)
        return -right * math.log(right) - rest

    def sample(self, count: int, seed: int) -> Int[Tensor, "N 3"]:
        """Draw facts as they are told: two cues and the (sometimes wrong) answer."""
        generator = torch.Generator().manual_seed(seed)
        facts = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        wrong = torch.rand(count, generator=generator) >= self.reliability
        any_word = torch.randint(WORDS_IN_BOOK, (count,), generator=generator)
        told = self.answers[facts].where(~wrong, any_word)
        return torch.cat([self.cues[facts], told[:, None]], dim=1)

    @torch.no_grad()
    def exact_loss(self, model: TinyLM) -> float:
        """Return the model's expected loss on the answer, summed over all facts and all answers: no sampling."""
        logits = model(self.cues)[:, -1].double()  # (F, V)
        surprisal_of_any = -torch.log_softmax(logits, dim=-1)[:, :WORDS_IN_BOOK].mean(dim=-1)
        surprisal = self.reliability * target_surprisal(logits, self.answers)
        return float(self.shares @ (surprisal + (1 - self.reliability) * surprisal_of_any))


@cache
def fact_book(facts: int = 8000, exponent: float = 1.5, reliability: float = 0.9, seed: int = 0) -> FactBook:
    """Return a book of distinct cue pairs.

    Raises:
        ValueError: more facts than cue pairs, a reliability out of 0..1.
    """
    if not 1 <= facts <= WORDS_IN_BOOK**2:
        raise ValueError(f"facts must be in 1..{WORDS_IN_BOOK**2}, got {facts}")
    if not 0 < reliability <= 1:
        raise ValueError(f"reliability must be above 0 and at most 1, got {reliability}")
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(WORDS_IN_BOOK**2, generator=generator)[:facts]
    cues = torch.stack([pairs // WORDS_IN_BOOK, pairs % WORDS_IN_BOOK], dim=1)
    answers = torch.randint(WORDS_IN_BOOK, (facts,), generator=generator)
    shares = torch.arange(1, facts + 1, dtype=torch.float64) ** -exponent
    return FactBook(cues, answers, shares / shares.sum(), reliability)
