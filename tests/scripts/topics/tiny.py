"""A topic with two short chapters and a loop; its core and its scene are this one file."""

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float
from manim import RIGHT, FadeIn
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option
from scenes import series
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.topic_scene import TopicScene, chapter, loop

TOPIC = series.Topic("tiny", "Tiny topic", "Two chapters.", "Foundations", series.FINISHED, __name__)
if TOPIC not in series.TOPICS:
    series.TOPICS = (*series.TOPICS, TOPIC)


@dataclass(frozen=True)
class Config(TopicConfig):
    seed: int = option(0, "of the numbers", minimum=0, maximum=9)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config
    numbers: Float[Tensor, "2 3"]


def trace(config: Config) -> Trace:
    return Trace(config, torch.randn(2, 3, generator=torch.Generator().manual_seed(config.seed)))


class Tiny(TopicScene):
    """Is this a topic?"""

    core = sys.modules[__name__]
    takeaway = "Small is quick."
    loop_alt = "A grid that moves to the right and back."

    @chapter("First: the grid")
    def grid(self):
        """The grid appears."""
        self.say("Here are six numbers.")
        self.play(FadeIn(TensorGrid(self.trace.numbers)), run_time=0.3)

    @chapter("Second")
    def row(self):
        """One row is enough."""
        self.say("And here are three.")
        self.play(FadeIn(TensorGrid(self.trace.numbers[:1])), run_time=0.3)

    @loop
    def there_and_back(self):
        """The grid moves there and back."""
        grid = TensorGrid(self.trace.numbers)
        self.add(grid)
        self.play(grid.animate.shift(RIGHT), run_time=0.4)
        self.play(grid.animate.shift(-RIGHT), run_time=0.4)
