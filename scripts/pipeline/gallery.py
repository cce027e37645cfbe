"""The gallery of the README: a row for every finished topic whose loop is in media/gallery."""

import re
from pathlib import Path

from scenes import series
from scripts.pipeline.platforms import MB

README = Path(__file__).resolve().parents[2] / "README.md"
FOLDER = README.parent / "media" / "gallery"
MAX_BYTES = 600 * MB // 1000
TABLE = re.compile(r"(?<=\| \| \|\n\|---\|---\|\n)(?:\|.*\n)*")


def table() -> str:
    """Return the rows, with the text for readers who cannot see the loop."""
    rows = []
    for topic in series.finished():
        if (FOLDER / f"{topic.slug}.gif").is_file():
            alt = series.scene_class(topic.slug).loop_alt.replace("|", "\\|")
            rows.append(f"| **{topic.title}** — {topic.tagline} | ![{alt}](media/gallery/{topic.slug}.gif) |\n")
    return "".join(rows)


def write_table() -> None:
    """Write the rows into the README."""
    README.write_text(TABLE.sub(lambda _: table(), README.read_text(), count=1))
