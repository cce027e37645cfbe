"""The numbers of a topic as a table."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option
from scripts.pipeline import numbers


@dataclass(frozen=True)
class Config(TopicConfig):
    size: int = option(3, "how much", minimum=1, maximum=9)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config
    words: tuple[str, ...]
    phrases: tuple[str, ...]
    counts: Int[Tensor, " n"]
    shares: Float[Tensor, "a b"]
    loss: float
    steps: int


TRACE = Trace(
    Config(), tuple("abcdefghijklmnopqrstuvwxyz"), ("one day", "", "at sea"), torch.tensor([1, 819_200]),
    torch.tensor([[1 / 3, math.nan]]), 1 / 3e6, 1_677_721_600,
)  # fmt: skip


def test_the_table_shows_whole_counts_five_digits_of_fractions_and_the_first_words():
    rows = {line.split()[0]: line for line in numbers.to_table(TRACE).splitlines()}
    assert rows["config:"] == "config: size=3"
    assert rows["counts"].split()[1:] == ["2", "1", "819200"]
    assert rows["shares"].split()[1:] == ["1×2", "0.33333", "nan"]
    assert rows["loss"].split()[1:] == ["3.3333e-07"]
    assert rows["steps"].split()[1:] == ["1677721600"]
    assert rows["words"].endswith("s t …")
    assert rows["phrases"].endswith("one day |  | at sea")
