"""Sizes and frame rates: Manim's five qualities, and the ones loops are rendered at."""

from dataclasses import dataclass
from typing import Any

# Encoders of the videos: x264 everywhere, and what a machine's hardware may offer. Their streams differ in bytes.
ENCODERS = {
    "x264": "libx264",
    "nvenc": "h264_nvenc",
    "qsv": "h264_qsv",
    "amf": "h264_amf",
    "videotoolbox": "h264_videotoolbox",
}


@dataclass(frozen=True)
class Quality:
    """Pixels and frames per second."""

    width: int
    height: int
    frame_rate: int

    def __str__(self) -> str:
        return f"{self.height}p{self.frame_rate}"

    def manim_settings(self) -> dict[str, Any]:
        """Return what Manim is set to: this size, no cache of its own, and nothing said."""
        size = {"pixel_width": self.width, "pixel_height": self.height, "frame_rate": self.frame_rate}
        return {**size, "disable_caching": True, "verbosity": "ERROR", "progress_bar": "none"}


QUALITIES = {
    "l": Quality(854, 480, 15),
    "m": Quality(1280, 720, 30),
    "h": Quality(1920, 1080, 60),
    "p": Quality(2560, 1440, 60),
    "k": Quality(3840, 2160, 60),
}
# Twice the width and the frame rate of a GIF: 640 px at 25 frames/s come out of it without losing a flat color.
LOOP = Quality(1280, 720, 50)
DRAFT_LOOP = Quality(640, 360, 25)


def loop_quality(quality: Quality) -> Quality:
    """Return what the master of a loop is rendered at beside a video of `quality`."""
    if quality.width < DRAFT_LOOP.width:
        return quality
    return DRAFT_LOOP if quality.height < LOOP.height else LOOP
