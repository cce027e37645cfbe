"""A GIF within a budget of bytes, by what hurts least.

What each step down costs alone (fewer frames, colors, pixels, lossier compression) is measured: bytes, and SSIM against
the frames of the master. From these the size and the likeness of every combination are predicted; the one that should
look best within the budget is made and measured, and the prediction corrected, until one fits.
"""

import itertools
import math
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.pipeline import gif
from scripts.pipeline.encode import video_width
from scripts.pipeline.errors import UserError
from scripts.pipeline.gif import Clip, GifSettings
from scripts.pipeline.platforms import MB, Platform
from scripts.pipeline.similarity import ssim

LEAST_SSIM = 0.95  # a convention, not a law; the KV cache loop has 0.96 at 560 px and 0.94 at 480 px
WIDTHS = (1.0, 0.875, 0.75, 0.625, 0.5)  # shares of the width that was asked for
COLORS = (256, 128, 64, 32)
LOSSINESS = (0, 20, 40, 80, 120)
TRIES = 8
SAMPLES = 20  # pictures that are compared, spread over the loop


@dataclass(frozen=True)
class Limits:
    """What a GIF may be at most; None = no limit."""

    max_bytes: int | None = None
    max_frames: int | None = None
    max_pixels: int | None = None  # width x height x frames

    @classmethod
    def of(cls, platform: Platform, max_bytes: int | None) -> "Limits":
        """Return a platform's limits, with a lower budget if one is given."""
        budget = platform.max_bytes if max_bytes is None else min(max_bytes, platform.max_bytes)
        return cls(budget, platform.max_frames, platform.max_pixels)


@dataclass(frozen=True)
class Made:
    """A GIF that was made and measured."""

    settings: GifSettings
    bytes: int
    frames: int
    pixels: int  # of all frames
    likeness: float  # SSIM against the frames of the master

    def fits(self, limits: Limits) -> bool:
        return _within(limits, self.bytes, self.frames, self.pixels)


def _within(limits: Limits, size: float, frames: int, pixels: int) -> bool:
    pairs = ((size, limits.max_bytes), (frames, limits.max_frames), (pixels, limits.max_pixels))
    return all(allowed is None or value <= allowed for value, allowed in pairs)


class Workshop:
    """Makes GIFs of one master and measures them against it.

    Args:
        master: lossless video.
        folder: for files on the way.
        width, frame_rate: of the reference.
    """

    def __init__(self, master: Path, folder: Path, width: int, frame_rate: int) -> None:
        self.master, self.folder = master, folder
        self.made: dict[GifSettings, Made] = {}
        self.clip = lru_cache(maxsize=3)(self._clip)
        reference = self.clip(width, frame_rate)
        length = sum(reference.hundredths)
        step = max(1, round(length / SAMPLES))
        self.times = range(step // 2, length, step)
        self.reference = [reference.at(time) for time in self.times]

    def _clip(self, width: int, frame_rate: int) -> Clip:
        return gif.read_clip(self.master, width, frame_rate)

    def path(self, settings: GifSettings) -> Path:
        """Return where a GIF is that was made."""
        parts = (settings.width, settings.frame_rate, settings.colors, settings.lossy)
        return self.folder / f"{'-'.join(map(str, parts))}.gif"

    def make(self, settings: GifSettings) -> Made:
        """Make a GIF, unless it was made before."""
        if settings not in self.made:
            path = self.path(settings)
            clip = self.clip(settings.width, settings.frame_rate)
            palette = gif.palette_of(clip, settings.colors, settings.transparent)
            gif.write_clip_as_gif(clip, palette, path, settings)
            shown = gif.read_gif(path)
            height, width = shown.frames[0].shape[:2]
            frames = len(shown.frames)
            self.made[settings] = Made(
                settings, path.stat().st_size, frames, frames * width * height, self._likeness(shown, settings)
            )
        return self.made[settings]

    def _likeness(self, shown: Clip, settings: GifSettings) -> float:
        return float(
            np.mean([self._ssim(shown.at(t), r, settings) for t, r in zip(self.times, self.reference, strict=True)])
        )

    @staticmethod
    def _ssim(picture: np.ndarray, reference: np.ndarray, settings: GifSettings) -> float:
        """Compare as a reader sees both: scaled to one width, transparent where both are."""
        height, width = reference.shape[:2]
        if picture.shape != reference.shape:
            picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        if settings.transparent is not None:
            reference = np.asarray(gif.make_transparent(Image.fromarray(reference), settings.transparent))[..., :3]
        return ssim(picture, reference)


def fit(
    master: Path, folder: Path, start: GifSettings, limits: Limits, least: float = LEAST_SSIM
) -> tuple[Path, Made, Made]:
    """Make the GIF within the limits that looks most like the master.

    Args:
        master: lossless video.
        folder: for files on the way and for the result.
        start: what was asked for; nothing is made better than this.
        limits: of bytes, frames and pixels.
        least: SSIM below which nothing is made.

    Returns:
        The file, what it is, and what `start` would have been.

    Raises:
        UserError: nothing within the limits has that SSIM; names the smallest size that has.
    """
    start = replace(start, width=min(start.width, video_width(master)))
    workshop = Workshop(master, folder, start.width, start.frame_rate)
    first = workshop.make(start)
    if first.fits(limits):
        return workshop.path(start), first, first
    predictions = _predict(workshop, first, start)
    for found in (_best_that_fits(workshop, predictions, limits, least), _smallest(workshop, predictions, least)):
        if found is not None and found.fits(limits):
            return workshop.path(found.settings), found, first
    raise UserError(_cannot(limits, least, _smallest(workshop, predictions, least) or first))


def _steps(start: GifSettings) -> list[list[GifSettings]]:
    """Return, for each of the four ways to save bytes, the settings from what was asked for downwards."""
    lossy = LOSSINESS if shutil.which("gifsicle") else (0,)
    return [
        [replace(start, frame_rate=rate) for rate in sorted(gif.FRAME_RATES, reverse=True) if rate <= start.frame_rate],
        [start, *(replace(start, colors=colors) for colors in COLORS if colors < start.colors)],
        [replace(start, width=2 * round(start.width * share / 2)) if share < 1 else start for share in WIDTHS],
        [start, *(replace(start, lossy=amount) for amount in lossy if amount > start.lossy)],
    ]


@dataclass(frozen=True)
class _Prediction:
    settings: GifSettings
    bytes: float
    frames: int
    pixels: int
    likeness: float

    def may_fit(self, limits: Limits, correction: float) -> bool:
        return _within(limits, self.bytes * correction, self.frames, self.pixels)


def _predict(workshop: Workshop, first: Made, start: GifSettings) -> list[_Prediction]:
    """Predict all combinations from the steps alone: savings multiply, losses of likeness add up."""
    measured = [[workshop.make(step) for step in way] for way in _steps(start)]
    predictions = []
    for rate, colors, width, lossy in itertools.product(*measured):
        settings = replace(
            start,
            frame_rate=rate.settings.frame_rate,
            colors=colors.settings.colors,
            width=width.settings.width,
            lossy=lossy.settings.lossy,
        )
        chosen = (rate, colors, width, lossy)
        size = first.bytes * math.prod(made.bytes / first.bytes for made in chosen)
        lost = sum(max(0.0, first.likeness - made.likeness) for made in chosen)
        pixels = rate.frames * width.pixels // width.frames
        predictions.append(_Prediction(settings, size, rate.frames, pixels, first.likeness - lost))
    return predictions


def _best_that_fits(workshop: Workshop, predictions: list[_Prediction], limits: Limits, least: float) -> Made | None:
    """Make what should look best within the limits, correct the prediction, and try again."""
    correction, tried = 1.0, set()
    for _ in range(TRIES):
        possible = (guess for guess in predictions if guess.likeness >= least and guess.may_fit(limits, correction))
        left = [guess for guess in possible if guess.settings not in tried]
        if not left:
            return None
        guess = max(left, key=lambda guess: (guess.likeness, -guess.bytes))
        tried.add(guess.settings)
        made = workshop.make(guess.settings)
        if made.fits(limits) and made.likeness >= least:
            return made
        correction = max(correction, made.bytes / guess.bytes)
    return None


def _smallest(workshop: Workshop, predictions: list[_Prediction], least: float) -> Made | None:
    """Make what should be smallest and still look well enough; the same for every budget."""
    well = sorted((guess for guess in predictions if guess.likeness >= least), key=lambda guess: guess.bytes)
    made = (workshop.make(guess.settings) for guess in well[:TRIES])
    return next((each for each in made if each.likeness >= least), None)


def _cannot(limits: Limits, least: float, smallest: Made) -> str:
    asked = " and ".join(
        f"at most {text}"
        for value, text in (
            (limits.max_bytes, _size(limits.max_bytes or 0)),
            (limits.max_frames, f"{limits.max_frames} frames"),
            (limits.max_pixels, f"{limits.max_pixels} pixels"),
        )
        if value is not None
    )
    return (
        f"no GIF of {asked} has an SSIM of {least:g} or more; the smallest that has is {_size(smallest.bytes)} "
        f"({described(smallest)}). Allow more with --max-size {math.ceil(smallest.bytes / 1000)}kB, or less likeness "
        "with --min-ssim"
    )


def described(made: Made) -> str:
    """Return what a GIF is like in words."""
    settings = made.settings
    parts = [f"{settings.width} px", f"{settings.frame_rate} frames/s", f"{settings.colors} colors"]
    parts += [f"lossiness {settings.lossy}"] if settings.lossy else []
    return ", ".join(parts)


def given_up(asked: Made, made: Made) -> list[str]:
    """Return what a GIF is less than the one that was asked for."""
    before, after = asked.settings, made.settings
    pairs = (
        (f"frames/s {before.frame_rate} → {after.frame_rate}", before.frame_rate != after.frame_rate),
        (f"colors {before.colors} → {after.colors}", before.colors != after.colors),
        (f"width {before.width} → {after.width} px", before.width != after.width),
        (f"exact colors (lossiness {after.lossy})", before.lossy != after.lossy),
    )
    return [text for text, changed in pairs if changed]


def report(name: str, asked: Made, made: Made) -> str:
    """Return the line a user reads about a GIF that was fitted."""
    lost = given_up(asked, made)
    if not lost:
        return f"{name}: {_size(made.bytes)}, within the limits as asked ({described(made)}, SSIM {made.likeness:.4f})"
    return (
        f"{name}: {_size(made.bytes)} instead of {_size(asked.bytes)}; gave up {', '.join(lost)} "
        f"(SSIM {made.likeness:.4f} instead of {asked.likeness:.4f})"
    )


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / MB:.2f} MB" if count >= MB else f"{count / 1000:.0f} kB"
