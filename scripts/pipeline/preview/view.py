"""What the page looks at: which picture of which topic, in which theme, size and setting. Imports nothing heavy."""

import shlex
from dataclasses import dataclass, replace

from scripts.pipeline.quality import QUALITIES, Quality

STILL_HEIGHT = 720  # a still is never smaller, however small the video is


@dataclass(frozen=True)
class View:
    """One moment of one topic, and how it is drawn."""

    slug: str
    module: str  # of the scene
    quality_name: str
    theme: str
    settings: tuple[str, ...] = ()  # name=value
    unit: str | None = None  # None: the first one
    time: float = 0.0  # seconds from the start of the unit

    @property
    def quality(self) -> Quality:
        """The size of the video."""
        return QUALITIES[self.quality_name]

    @property
    def still_size(self) -> Quality:
        """The size of a still: that of the video, but never a blurred one."""
        if self.quality.height >= STILL_HEIGHT:
            return self.quality
        return replace(self.quality, width=STILL_HEIGHT * 16 // 9, height=STILL_HEIGHT)

    def render_command(self) -> str:
        """Return the command line that renders what the page shows."""
        return self._command("render", ["-q", self.quality_name])

    def gif_command(self, unit: str) -> str:
        """Return the command line that exports a unit as the page does."""
        return self._command("gif", ["--formats", "gif", *([] if unit == "loop" else ["--chapter", unit])])

    def _command(self, name: str, options: list[str]) -> str:
        theme = [] if self.theme == "dark" else ["--theme", self.theme]
        settings = [word for setting in self.settings for word in ("--set", setting)]
        return shlex.join(["llm-internals", name, self.slug, *options, *theme, *settings])
