"""A topic whose second chapter raises."""

from scenes import series
from scenes.kit.topic_scene import TopicScene, chapter
from tests.scripts.topics.cores import broken

TOPIC = series.Topic("broken", "Broken topic", "Raises.", "Foundations", series.FINISHED, __name__)
if TOPIC not in series.TOPICS:
    series.TOPICS = (*series.TOPICS, TOPIC)


class Broken(TopicScene):
    """Does it break?"""

    core = broken
    takeaway = "It did."

    @chapter("Fine")
    def fine(self):
        """This one is fine."""
        self.say("Still fine.")

    @chapter("Not fine")
    def not_fine(self):
        """This one raises."""
        self.say("Now it breaks.")
        raise ZeroDivisionError("as planned")
