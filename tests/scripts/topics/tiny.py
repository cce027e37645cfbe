"""A topic with two short chapters and a loop."""

from manim import RIGHT, FadeIn

from scenes import series
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.topic_scene import TopicScene, chapter, loop
from tests.scripts.topics.cores import tiny

TOPIC = series.Topic("tiny", "Tiny topic", "Two chapters.", "Foundations", series.FINISHED, __name__)
if TOPIC not in series.TOPICS:
    series.TOPICS = (*series.TOPICS, TOPIC)


class Tiny(TopicScene):
    """Is this a topic?"""

    core = tiny
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
        self.play(FadeIn(TensorGrid(self.trace.shifted)), run_time=0.3)

    @loop
    def there_and_back(self):
        """The grid moves there and back."""
        grid = TensorGrid(self.trace.numbers)
        self.add(grid)
        self.play(grid.animate.shift(RIGHT), run_time=0.4)
        self.play(grid.animate.shift(-RIGHT), run_time=0.4)
