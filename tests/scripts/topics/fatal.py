"""A topic whose only chapter kills its process."""

import os

from scenes import series
from scenes.kit.topic_scene import TopicScene, chapter
from tests.scripts.topics.cores import fatal

TOPIC = series.Topic("fatal", "Fatal topic", "Kills.", "Foundations", series.FINISHED, __name__)
if TOPIC not in series.TOPICS:
    series.TOPICS = (*series.TOPICS, TOPIC)


class Fatal(TopicScene):
    """Does it live?"""

    core = fatal
    takeaway = "It did not."

    @chapter("Last")
    def last(self):
        """This one kills."""
        os._exit(9)
