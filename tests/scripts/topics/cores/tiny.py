"""Six numbers, and the first three of them shifted."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option


@dataclass(frozen=True)
class Config(TopicConfig):
    seed: int = option(0, "of the numbers", minimum=0, maximum=9)
    shift: float = option(0.0, "added to the first row", minimum=-1.0, maximum=1.0)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config
    numbers: Float[Tensor, "2 3"]
    shifted: Float[Tensor, "1 3"]


def trace(config: Config) -> Trace:
    numbers = torch.randn(2, 3, generator=torch.Generator().manual_seed(config.seed))
    return Trace(config, numbers, numbers[:1] + config.shift)
