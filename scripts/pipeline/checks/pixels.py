"""What only pixels can tell: flashes, whether a loop closes, and whether a GIF kept the colors of the cells."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from manim import CairoRenderer, tempconfig

from internals_math.trace import TopicTrace
from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scenes.kit.recorder import BOX, TEXT, Drawn, Look, Mark, Recording, record
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.topic_scene import LOOP, TopicScene
from scripts.pipeline.checks import Finding, finding
from scripts.pipeline.checks.stillness import REST_SECONDS, resting_ids
from scripts.pipeline.gif import read_gif
from scripts.pipeline.quality import Quality

FRAME_RATE = 15
FLASH_RATE = 60  # of the published video: at fewer frames a fast flicker looks still
SMALL, LARGE = (160, 90), (640, 360)  # of a chapter, and of a loop

# WCAG 2.3.1: a general flash is a pair of opposing changes of relative luminance of 10 % or more where the darker image
# is below 0.80; at most three within a second, unless the area is small: 25 % of any 10 degrees of the visual field,
# which is a quarter of a 341 x 256 block of a 1024 x 768 screen.
# Only what flashes concurrently counts together: not the pixels that a moving pattern changes one after the other.
CHANGE, DARKER_BELOW, FLASHES = 0.10, 0.80, 3
AT_ONCE = 1 / 15  # seconds
BLOCK, BLOCK_SHARE = (256 / 768, 341 / 1024), 0.25

# Edges of lines that end a hair's breadth further on may differ at the ends of a loop; areas may not.
LEVELS, LOOP_SHARE = 12, 0.01
NEAR = 0.03  # units by which a word or a cell may stand elsewhere


def check_pixels(scene_class: type[TopicScene], unit: str, recording: Recording) -> Iterator[Finding]:
    """Yield flashes of a unit, and the jump of a loop that does not close. Renders it small, with its trace."""
    flashing: set[int] = set()  # seconds; both themes have the same motions, so one of them in full is enough
    for name, frame_rate in (("dark", FLASH_RATE), ("light", FRAME_RATE)):
        frames, _ = low_quality_frames(
            scene_class, unit, SMALL, trace=recording.trace, frame_rate=frame_rate, theme_name=name
        )
        luminance = np.stack([relative_luminance(frame) for frame in frames])
        if unit == LOOP:  # it goes on with its beginning
            luminance = np.concatenate([luminance, luminance[:frame_rate]])
        for second, share in flashes(luminance, frame_rate):
            if not flashing & {int(second) - 1, int(second), int(second) + 1}:
                flashing.add(int(second))
                area = f"over {share:.0%} of a tenth of the visual field ({name} theme)"
                message = f"more than {FLASHES} flashes within a second, {area}"
                yield finding(recording, second, "picture", "flashes", message)
    if unit == LOOP:
        for thing, message in _unlike(recording):
            yield finding(recording, recording.seconds, thing.name, "loop", message)
        frames, after = low_quality_frames(scene_class, unit, LARGE, trace=recording.trace)
        difference = np.abs(after.astype(int) - frames[0]).max(axis=2) > LEVELS
        if difference.mean() >= LOOP_SHARE:
            message = f"{difference.mean():.1%} of the picture jumps where the loop begins again"
            yield finding(recording, recording.seconds, "loop", "loop", message)


def _unlike(recording: Recording) -> Iterator[tuple[Drawn, str]]:
    """Yield what a loop begins with and does not end with, or the other way around: words, numbers, cells."""
    first = recording.looks[0].things if recording.looks else ()
    for here, there, when in ((first, recording.after, "begins"), (recording.after, first, "ends")):
        others = [mark for thing in there for mark in thing.marks]
        for thing in here:
            marks = (mark for mark in thing.marks if mark.kind == TEXT or (mark.kind == BOX and thing.ledger))
            lone = next((mark for mark in marks if not any(_looks_like(mark, other) for other in others)), None)
            if lone is not None:
                yield thing, f"{repr(lone.text) if lone.text else 'a cell'} is there only when the loop {when}"


def _looks_like(mark: Mark, other: Mark) -> bool:
    if mark.kind != other.kind or mark.text != other.text:
        return False
    near = max(abs(a - b) for a, b in zip(mark[1:5], other[1:5], strict=True)) <= NEAR
    colors = (theme.mix(theme.BACKGROUND, one.color, min(1.0, one.opacity)) for one in (mark, other))
    return near and max(abs(a - b) for a, b in zip(*map(theme.rgb, colors), strict=True)) <= LEVELS / 255


def low_quality_frames(
    scene_class: type[TopicScene],
    unit: str,
    size: tuple[int, int],
    *,
    trace: TopicTrace | None = None,
    frame_rate: int = FRAME_RATE,
    theme_name: str = "dark",
) -> tuple[np.ndarray, np.ndarray]:
    """Render a unit in memory; returns its frames (T, H, W, 3) and the picture that would come next."""
    settings = {**Quality(*size, frame_rate).manim_settings(), "dry_run": True}
    with theme.using(theme_name), tempconfig(settings):
        renderer = _Keeping(frame_rate, camera_class=KitCamera)
        scene = scene_class(renderer, trace=copy.deepcopy(trace), unit=unit)
        scene.render()
        renderer.static_image = None
        renderer.update_frame(scene)
        after = renderer.get_frame()[..., :3]
    return np.stack(renderer.frames), after


class _Keeping(CairoRenderer):
    """Keeps the frames it draws."""

    def __init__(self, frame_rate: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frame_rate = frame_rate
        self.frames: list[np.ndarray] = []

    def add_frame(self, frame: np.ndarray, num_frames: int = 1) -> None:
        self.time += num_frames / self.frame_rate
        self.frames += [frame[..., :3]] * num_frames


def relative_luminance(frame: np.ndarray) -> np.ndarray:
    """Return WCAG's relative luminance (H, W), 0..1, of an 8-bit RGB picture."""
    return (_LINEAR[frame] * _WEIGHTS).sum(axis=-1)


_LEVEL = np.arange(256) / 255
_LINEAR = np.where(_LEVEL <= 0.04045, _LEVEL / 12.92, ((_LEVEL + 0.055) / 1.055) ** 2.4).astype(np.float32)
_WEIGHTS = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def flashes(luminance: np.ndarray, frame_rate: float) -> Iterator[tuple[float, float]]:
    """Yield (second, share of the worst block) where the picture flashes more than three times within a second.

    Args:
        luminance: (T, H, W) relative luminance.
        frame_rate: frames a second.
    """
    turns = opposing_changes(luminance)  # (T, H, W)
    span, moment = max(1, round(frame_rate)), max(1, round(AT_ONCE * frame_rate))
    recent = np.zeros(luminance.shape[1:], dtype=np.int16)
    quiet_until = -1.0
    for frame, now in enumerate(turns):
        recent += now
        if frame >= span:
            recent -= turns[frame - span]
        # a flash is a pair of changes
        too_many = (recent >= 2 * (FLASHES + 1)) & turns[max(0, frame - moment + 1) : frame + 1].any(axis=0)
        if frame / frame_rate > quiet_until and too_many.any():
            share = _worst_block(too_many)
            if share > BLOCK_SHARE:
                quiet_until = frame / frame_rate + 1
                yield max(0.0, frame / frame_rate - 1), share


def opposing_changes(luminance: np.ndarray) -> np.ndarray:
    """Return where (T, H, W) each pixel completes a change of luminance that opposes its last one."""
    lowest, highest = luminance[0].copy(), luminance[0].copy()
    direction = np.zeros(luminance.shape[1:], dtype=np.int8)
    changes = np.zeros(luminance.shape, dtype=bool)
    for frame, now in enumerate(luminance[1:], start=1):
        lowest, highest = np.minimum(lowest, now), np.maximum(highest, now)
        rises = (now - lowest >= CHANGE) & (lowest < DARKER_BELOW) & (direction <= 0)
        falls = (highest - now >= CHANGE) & (now < DARKER_BELOW) & (direction >= 0) & ~rises
        changes[frame] = rises | falls
        direction = np.where(rises, 1, np.where(falls, -1, direction)).astype(np.int8)
        # from a turn on, the extreme is measured anew
        highest = np.where(rises | falls | (direction > 0) & (now >= highest), now, highest)
        lowest = np.where(rises | falls | (direction < 0) & (now <= lowest), now, lowest)
    return changes


def _worst_block(where: np.ndarray) -> float:
    """Return the largest share of a block of the screen that is marked."""
    height, width = where.shape
    high, wide = max(1, round(height * BLOCK[0])), max(1, round(width * BLOCK[1]))
    sums = np.pad(where.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    return float(inside.max()) / (high * wide)


# -- the GIF ---------------------------------------------------------------------------------------------------------


def check_gif(
    scene_class: type[TopicScene], gif: Path, frame_rate: int, trace: TopicTrace | None = None
) -> Iterator[Finding]:
    """Yield cells of resting heat maps whose color in a GIF of the loop is not exactly that of the color map.

    Args:
        gif: file in the dark theme.
        frame_rate: of the master that it was made from.
        trace: that it was made with; the default one if None.
    """
    recording = record(scene_class, LOOP, trace=trace, frame_rate=frame_rate)
    resting = resting_ids(recording)
    told: set[int] = set()
    clip = read_gif(gif)
    height, width = clip.frames[0].shape[:2]
    for look in _longest_looks(recording):
        pixels = clip.at(int(100 * (look.start + look.end) / 2))
        for order, thing in enumerate(look.things):
            if not isinstance(thing.picture, TensorGrid) or id(thing) not in resting or id(thing.picture) in told:
                continue
            for mark, column, row in _cell_pixels(thing, look.things[order + 1 :], width, height):
                got = theme.hex_color(tuple(pixels[row, column] / 255))
                if got != mark.color.upper():
                    told.add(id(thing.picture))
                    message = f"a cell of {mark.color} is {got} in the GIF"
                    yield finding(recording, look.start, thing.name, "gif-color", message)
                    break


def _longest_looks(recording: Recording, count: int = 6) -> list[Look]:
    """Return still pictures of the loop, those that stand longest."""
    looks = [look for look in recording.looks if look.end - look.start >= REST_SECONDS]
    return sorted(looks, key=lambda look: look.start - look.end)[:count]


def _cell_pixels(thing: Drawn, above: Sequence[Drawn], width: int, height: int) -> Iterator[tuple[Mark, int, int]]:
    """Yield a pixel of each cell that nothing else touches: near its upper left corner, clear of its number."""
    unit = height / 8  # pixels of a frame unit
    over = np.array([mark[1:5] for other in above for mark in other.marks], dtype=float).reshape(-1, 4)
    for mark in thing.marks:
        wide, high = (mark.right - mark.left) * unit, (mark.top - mark.bottom) * unit
        if mark.kind != BOX or mark.opacity < 0.999 or min(wide, high) < 5:
            continue
        x, y = mark.left + 0.25 * (mark.right - mark.left), mark.top - 1.6 / unit  # the first whole pixel or the second
        margin = 2 / unit
        near = (over[:, 0] - margin <= x) & (x <= over[:, 2] + margin)
        near &= (over[:, 1] - margin <= y) & (y <= over[:, 3] + margin)
        column, row = int(width / 2 + x * unit), int(height / 2 - y * unit)
        if not near.any() and 0 <= column < width and 0 <= row < height:
            yield mark, column, row
