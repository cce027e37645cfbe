"""Layout: what rests stays in the safe area, keeps clear of other things, and is large and strong enough to be read."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from manim import config

from scenes.kit import theme
from scenes.kit.formula import FormulaPart
from scenes.kit.recorder import BOX, EVERY_SECONDS, LINE, TEXT, Drawn, Look, Mark, Recording
from scenes.kit.topic_scene import CaptionBand, Header
from scripts.pipeline.checks import Finding, finding
from scripts.pipeline.checks.stillness import PASSING_SECONDS, REST_SECONDS, readable_things, resting_ids

TOUCH = 0.03  # frame units that two things may share without overlapping
FAINT = 0.25  # opacity below which nothing is read
SOLID = 0.85  # opacity from which a box hides what is under it
TEXT_CONTRAST, SHAPE_CONTRAST = 4.5, 3.0


def check_layout(recording: Recording) -> Iterator[Finding]:
    """Yield what rests outside the safe area, overlaps, or is too small; and a camera that makes it so."""
    yield from _camera(recording)
    yield from _outside(recording)
    yield from _small(recording)
    yield from _overlaps(recording)


def _camera(recording: Recording) -> Iterator[Finding]:
    first = {look.camera: look for look in reversed(recording.looks) if look.camera}
    for message, look in first.items():
        yield finding(recording, look.start, "camera", "camera", message)


def safe_area(recording: Recording) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of where a unit may draw: chapters leave header and captions their bands."""
    right = config.frame_width / 2 - theme.MARGIN
    if recording.unit in {unit.name for unit in recording.scene.chapter_units()}:
        return -right, theme.STAGE_BOTTOM, right, theme.HEADER_BASELINE
    top = config.frame_height / 2 - theme.MARGIN
    return -right, -top, right, top


def _outside(recording: Recording) -> Iterator[Finding]:
    left, bottom, right, top = safe_area(recording)
    told: set[tuple[int, str]] = set()
    for look, thing in readable_things(recording):
        if isinstance(thing.picture, CaptionBand | Header):
            continue
        for mark in thing.marks:
            if mark.opacity < FAINT or (mark.kind != TEXT and not thing.ledger):
                continue
            sides = {
                "left": left - mark.left, "right": mark.right - right, "bottom": bottom - mark.bottom,
                "top": mark.top - top,
            }  # fmt: skip
            side, beyond = max(sides.items(), key=lambda pair: pair[1])
            if beyond > TOUCH and (id(thing.picture), side) not in told:
                told.add((id(thing.picture), side))
                message = f"{_what(mark)} is {beyond:.2f} beyond the {side} of the safe area"
                yield finding(recording, look.start, thing.name, "safe-area", message)


def _small(recording: Recording) -> Iterator[Finding]:
    told: set[int] = set()
    for look, thing in readable_things(recording):
        for mark in thing.marks:
            is_small = mark.kind == TEXT and mark.opacity >= FAINT and mark.size < 0.98 * theme.SMALL
            if is_small and id(thing.picture) not in told:
                told.add(id(thing.picture))
                message = f"{_what(mark)} is {mark.size:.3f} high; the smallest that can be read is {theme.SMALL}"
                yield finding(recording, look.start, thing.name, "text-size", message)


# -- overlaps --------------------------------------------------------------------------------------------------------


def _overlaps(recording: Recording) -> Iterator[Finding]:
    resting = resting_ids(recording)
    cached: dict[tuple[int, ...], list[tuple[str, str, str]]] = {}
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    first: dict[tuple[str, str, str], Look] = {}
    for look in recording.looks:
        things = tuple(thing for thing in look.things if id(thing) in resting)
        key = tuple(id(thing) for thing in things)
        if key not in cached:
            cached[key] = _overlapping(things)
        for found in cached[key]:
            seconds[found] += look.end - look.start
            first.setdefault(found, look)
    for found, total in seconds.items():
        if total >= REST_SECONDS - 1e-6:
            yield _overlap(recording, first[found], found, total)
    for found, (look, total) in _moving_overlaps(recording).items():
        if seconds[found] < REST_SECONDS - 1e-6 and total > PASSING_SECONDS:
            yield _overlap(recording, look, found, total)


def _overlap(recording: Recording, look: Look, found: tuple[str, str, str], seconds: float) -> Finding:
    name, rule, message = found
    return finding(recording, look.start, name, rule, f"{message} for {seconds:.1f} s")


def _moving_overlaps(recording: Recording) -> dict[tuple[str, str, str], tuple[Look, float]]:
    """Return what overlaps while it moves, with the first look at it and for how long, to a tenth of a second."""
    total: dict[tuple[str, str, str], tuple[Look, float]] = {}
    since, known = 0.0, dict[tuple[int, ...], list[tuple[str, str, str]]]()
    for look in recording.looks:
        if look.end - since < EVERY_SECONDS - 1e-6:
            continue
        key = tuple(id(thing) for thing in look.things)
        if key not in known:
            known[key] = _overlapping(look.things)
        for found in known[key]:
            first, seconds = total.get(found, (look, 0.0))
            total[found] = first, seconds + look.end - since
        since = look.end
    return total


@dataclass
class _Marks:
    """Marks of all things on screen, back to front, with the number of their thing."""

    marks: list[Mark]
    owners: np.ndarray
    extents: np.ndarray  # (N, 4): left, bottom, right, top
    order: np.ndarray

    @classmethod
    def of(cls, things: tuple[Drawn, ...], wanted: str, least: float, *, data_only: bool = False) -> "_Marks":
        rows = [
            (mark, owner, order)
            for owner, thing in enumerate(things)
            if thing.ledger or not data_only
            for order, mark in enumerate(thing.marks, start=owner * 100_000)
            if mark.kind == wanted and mark.opacity >= least
        ]
        marks = [mark for mark, _, _ in rows]
        extents = np.array([mark[1:5] for mark in marks], dtype=float).reshape(-1, 4)
        return cls(marks, np.array([o for _, o, _ in rows], int), extents, np.array([k for _, _, k in rows], int))


def _overlapping(things: tuple[Drawn, ...]) -> list[tuple[str, str, str]]:
    """Return (object, rule, message) of everything that overlaps in one still picture."""
    texts = _Marks.of(things, TEXT, FAINT)
    solid = _Marks.of(things, BOX, SOLID)
    if not len(texts.marks):
        return []
    if len(solid.marks):
        above = solid.order[None, :] > texts.order[:, None]
        hidden = np.any(above & _inside(texts.extents, solid.extents), axis=1)
        texts = _without(texts, np.asarray(hidden))
    found = dict.fromkeys(_text_on_text(things, texts))
    cells = _Marks.of(things, BOX, FAINT, data_only=True)
    found |= dict.fromkeys(_text_on_cells(things, texts, cells))
    return list(found)


def _text_on_text(things: tuple[Drawn, ...], texts: _Marks) -> Iterator[tuple[str, str, str]]:
    shared = _shared(texts.extents, texts.extents)
    for i, j in zip(*np.nonzero(np.triu(shared, 1)), strict=True):
        one, other = texts.marks[i], texts.marks[j]
        if one.text == other.text and np.allclose(one[1:5], other[1:5], atol=0.02):
            continue  # a copy that lies exactly over its original
        owners = [things[texts.owners[k]].picture for k in (i, j)]
        if one.text == other.text and all(isinstance(owner, FormulaPart) for owner in owners):
            continue  # parts of a formula interlock, as a fraction and its numerator
        yield things[texts.owners[j]].name, "overlap", f"{_what(other)} overlaps {_what(one)}"


def _text_on_cells(things: tuple[Drawn, ...], texts: _Marks, cells: _Marks) -> Iterator[tuple[str, str, str]]:
    if not len(texts.marks) or not len(cells.marks):
        return
    touches = _shared(texts.extents, cells.extents) & ~_inside(texts.extents, cells.extents)
    touches &= texts.owners[:, None] != cells.owners[None, :]
    for i, j in zip(*np.nonzero(touches), strict=True):
        where = "lies across" if texts.order[i] > cells.order[j] else "is half under"
        text, owner = things[texts.owners[i]], things[cells.owners[j]]
        yield text.name, "overlap", f"{_what(texts.marks[i])} {where} a cell of {owner.name}"


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which of N extents share more than a touch with which of M."""
    wide = np.minimum(one[:, None, 2], other[None, :, 2]) - np.maximum(one[:, None, 0], other[None, :, 0])
    high = np.minimum(one[:, None, 3], other[None, :, 3]) - np.maximum(one[:, None, 1], other[None, :, 1])
    return (wide > TOUCH) & (high > TOUCH)


def _inside(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return which of N extents lie inside which of M."""
    low = (inner[:, None, :2] >= outer[None, :, :2] - TOUCH).all(axis=2)
    return np.asarray(low & (inner[:, None, 2:] <= outer[None, :, 2:] + TOUCH).all(axis=2))


def _without(marks: _Marks, gone: np.ndarray) -> _Marks:
    kept = ~gone
    left = [mark for mark, keep in zip(marks.marks, kept, strict=True) if keep]
    return _Marks(left, marks.owners[kept], marks.extents[kept], marks.order[kept])


# -- contrast --------------------------------------------------------------------------------------------------------


def check_contrast(recording: Recording) -> Iterator[Finding]:
    """Yield texts, and shapes that are data, that never stand out enough from their ground while they are shown."""
    best: dict[tuple[int, str], tuple[float, Look, Drawn, float]] = {}
    resting = {id(thing) for _, thing in readable_things(recording)}
    background = theme.THEMES[recording.theme]["BACKGROUND"]
    done: set[tuple[int, ...]] = set()
    for look in recording.looks:
        key = tuple(id(thing) for thing in look.things if id(thing) in resting)
        if key in done:
            continue
        done.add(key)
        fills = [(mark, owner) for owner, thing in enumerate(look.things) for mark in thing.marks if mark.kind == BOX]
        extents = np.array([mark[1:5] for mark, _ in fills], dtype=float).reshape(-1, 4)
        for owner, thing in enumerate(look.things):
            if id(thing) not in resting:
                continue
            for name, ratio, bar in _contrasts(thing, owner, fills, extents, background):
                known = best.get((id(thing.picture), name))
                if known is None or ratio > known[0]:
                    best[id(thing.picture), name] = (ratio, known[1] if known else look, thing, bar)
    for (_, name), (ratio, look, thing, bar) in best.items():
        if ratio < bar - 0.005:
            message = f"{name} has contrast {ratio:.2f}:1 in the {recording.theme} theme; it needs {bar:g}:1"
            yield finding(recording, look.start, thing.name, "contrast", message)


def _contrasts(
    thing: Drawn, owner: int, fills: list[tuple[Mark, int]], extents: np.ndarray, background: str
) -> Iterator[tuple[str, float, float]]:
    """Yield (what, ratio, bar) of the texts of a thing, and of its strongest shape."""
    shapes = []
    for mark in thing.marks:
        if mark.kind == TEXT:
            ground = _ground(mark, owner, fills, extents, background)
            yield _what(mark), theme.contrast(theme.mix(ground, mark.color, mark.opacity), ground), TEXT_CONTRAST
        elif thing.data and not thing.picture.color_is_amount:  # type: ignore[attr-defined]
            shapes.append(theme.contrast(theme.mix(background, mark.color, mark.opacity), background))
    if shapes:
        yield "its strongest shape", max(shapes), SHAPE_CONTRAST


def _ground(mark: Mark, owner: int, fills: list[tuple[Mark, int]], extents: np.ndarray, background: str) -> str:
    """Return the color under the middle of a text."""
    ground = background
    x, y = (mark.left + mark.right) / 2, (mark.bottom + mark.top) / 2
    over = (extents[:, 0] <= x) & (x <= extents[:, 2]) & (extents[:, 1] <= y) & (y <= extents[:, 3])
    for index in np.nonzero(over)[0]:
        fill, of = fills[index]
        if of <= owner:
            ground = theme.mix(ground, fill.color, fill.opacity)
    return ground


def _what(mark: Mark) -> str:
    return repr(mark.text) if mark.kind == TEXT else "a line" if mark.kind == LINE else "a shape"
