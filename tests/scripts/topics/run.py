"""The real command line with the small topics in the registry: python -m tests.scripts.topics.run …

Qualities l and m are small; the others are as always, so that there is something long to interrupt.
"""

from scripts.cli import main
from scripts.pipeline.quality import QUALITIES, Quality
from tests.scripts.topics import broken, tiny  # noqa: F401 - importing a topic registers it

if __name__ == "__main__":
    QUALITIES.update({"l": Quality(160, 90, 15), "m": Quality(426, 240, 30)})
    main()
