"""Six numbers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option


@dataclass(frozen=True)
class Config(TopicConfig):
    seed: int = option(0, "of the numbers", minimum=0, maximum=9)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config
    numbers: Float[Tensor, "2 3"]


def trace(config: Config) -> Trace:
    return Trace(config, torch.randn(2, 3, generator=torch.Generator().manual_seed(config.seed)))
