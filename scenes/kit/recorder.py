"""Record mode: a scene is played without a single pixel, and what would have been drawn is written down.

Every picture draws itself with the words of a `Painter`; here they are noted in place of being painted: texts with
their size and color, boxes and shapes with their extent, in scene units. Checks read these notes.
"""

import copy
import dataclasses
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cairo
import numpy as np
from manim import CairoRenderer, Group, ManimColor, Mobject, PMobject, VGroup, VMobject, tempconfig
from manim.mobject.types.image_mobject import AbstractImageMobject

from internals_math import trace_store
from internals_math.trace import TopicTrace
from scenes.kit import theme
from scenes.kit.ledger import Entries, State
from scenes.kit.painter import Painter, Point
from scenes.kit.picture import Data, Measure, Picture
from scenes.kit.topic_scene import Caption, TopicScene
from scenes.kit.traced import Traced
from scenes.kit.typography import Style, shape

FRAME_RATE = 60  # of the default quality: lengths are those of the published video
EVERY_SECONDS = 0.1  # between two looks at something that moves
FRAME_HEIGHT = 8  # units: what sizes and margins are measured against

TEXT, BOX, SHAPE, LINE = "text", "box", "shape", "line"


class Mark(NamedTuple):
    """One thing drawn: where it is (scene units, of its ink) and how it looks."""

    kind: str  # TEXT, BOX (an upright filled rectangle), SHAPE (another filled area), LINE
    left: float
    bottom: float
    right: float
    top: float
    color: str
    opacity: float
    text: str = ""
    size: float = 0.0  # height of a capital; the width of a LINE


@dataclass(frozen=True, eq=False)
class Drawn:
    """How one picture looked for a while."""

    picture: Mobject
    marks: tuple[Mark, ...]
    ledger: Entries
    data: tuple[Data, ...] = ()
    instrument: tuple[tuple[str, float], ...] = ()  # ticks, as written and where they stand
    measure: Measure | None = None
    values: tuple[Traced, ...] = ()  # all that the picture holds

    @property
    def name(self) -> str:
        """Return what a reader of a finding recognizes: the class, and its words or its data."""
        words = next((mark.text for mark in self.marks if mark.kind == TEXT and mark.text), "")
        kind = type(self.picture).__name__
        if len(self.ledger) > 1 or not words:
            words = next((origin for _, origin in self.ledger), words)
        return f"{kind} {words!r}" if words else kind


@dataclass(frozen=True)
class Look:
    """What was on screen from `start` to `end` (seconds), back to front."""

    start: float
    end: float
    line: int  # of the scene's file that was being played
    things: tuple[Drawn, ...]
    camera: str = ""  # what it does other than show the whole frame on the theme's ground


@dataclass
class Recording:
    """A unit as it was played."""

    scene: TopicScene
    unit: str
    theme: str
    trace: TopicTrace | None = None  # as it was before the scene had it
    looks: list[Look] = field(default_factory=list)
    after: tuple[Drawn, ...] = ()  # what would come next
    seconds: float = 0.0
    error: BaseException | None = None
    error_line: int = 0

    @property
    def captions(self) -> list[Caption]:
        return self.scene.captions

    def line_at(self, seconds: float) -> int:
        """Return the line of the scene's file that was being played at a time."""
        played = [look.line for look in self.looks if look.start <= seconds + 1e-6]
        return played[-1] if played else 0


def record(
    scene_class: type[TopicScene],
    unit: str,
    *,
    theme_name: str = "dark",
    trace: TopicTrace | None = None,
    every: float = EVERY_SECONDS,
    frame_rate: int = FRAME_RATE,
) -> Recording:
    """Play one unit in record mode. An error of the scene is part of the recording.

    Args:
        every: seconds between two looks at something that moves; 0 looks at each frame.
        frame_rate: of the video it stands for; times are those of its whole frames.
    """
    settings = {"frame_rate": frame_rate, "pixel_width": 160, "pixel_height": 90, "dry_run": True}
    with theme.using(theme_name), tempconfig({**settings, "verbosity": "ERROR", "progress_bar": "none"}):
        renderer = Recorder(every, frame_rate)
        scene = scene_class(renderer, trace=trace, unit=unit)
        recording = renderer.recording = Recording(scene, unit, theme_name)
        try:
            scene.full_trace = trace_store.get(scene.core) if trace is None else trace
            recording.trace = copy.deepcopy(scene.full_trace)
            scene.render()
            recording.after = tuple(renderer._things(scene))
        except (Exception, SystemExit) as error:  # a scene that ends the program is broken too
            recording.error = error
            recording.error_line = _line_of(scene, traceback.walk_tb(error.__traceback__))
        recording.seconds = scene.now
    return recording


class Recorder(CairoRenderer):
    """A renderer that looks at the scene a few times a second and draws nothing."""

    recording: Recording

    def __init__(self, every: float, frame_rate: int) -> None:
        super().__init__()
        self.frame_rate = frame_rate
        self.stride = max(1, round(every * frame_rate))
        self._known: dict[int, tuple[State, Drawn]] = {}

    def play(self, scene: Any, *args: Any, **kwargs: Any) -> None:
        scene.compile_animation_data(*args, **kwargs)
        scene.begin_animations()
        start = self.time
        if scene.is_current_animation_frozen_frame():
            frames = int(scene.duration * self.frame_rate)
            self.look(scene, start, start + frames / self.frame_rate)
        else:
            frames = len(np.arange(0, scene.duration, 1 / self.frame_rate))
            for frame in range(0, frames, self.stride):
                scene.update_to_time(frame / self.frame_rate)
                until = min(frame + self.stride, frames)
                self.look(scene, start + frame / self.frame_rate, start + until / self.frame_rate)
            for animation in scene.animations:
                animation.finish()
                animation.clean_up_from_scene(scene)
            scene.update_mobjects(0)
        self.time = start + frames / self.frame_rate
        self.num_plays += 1

    def look(self, scene: Any, start: float, end: float) -> None:
        """Note what is on screen from `start` to `end`."""
        line = _line_of(scene, _frames_above()) or self.recording.line_at(start)
        camera = _camera_fault(self.camera, self.recording.theme)
        self.recording.looks.append(Look(start, end, line, tuple(self._things(scene)), camera))

    def _things(self, scene: TopicScene) -> Iterator[Drawn]:
        stock = _stock_objects(scene.mobjects)
        for mobject in self.camera.get_mobjects_to_display(scene.mobjects):
            if isinstance(mobject, Picture):
                if mobject.opacity > 0:
                    yield self._picture(mobject)
            elif isinstance(mobject, _DRAWN_BY_MANIM):
                whole = stock.pop(id(mobject), None)
                if whole is not None:  # else another part of it was first
                    stock = {key: value for key, value in stock.items() if value is not whole}
                    yield _stock(whole)

    def _picture(self, picture: Picture) -> Drawn:
        """Return how a picture looks; the same object as before if nothing about it has changed."""
        known = self._known.get(id(picture))
        if known is None or not known[0].holds():
            marks = RecordingPainter.marks_of(picture)
            values = tuple(_traced_in(vars(picture).values()))
            known_by = picture.data(), picture.instrument(), picture.measure()
            drawn = Drawn(picture, marks, tuple(picture.ledger()), *known_by, values)
            known = State(picture), drawn
            self._known[id(picture)] = known
        return known[1]


def _traced_in(parts: Iterable[Any]) -> Iterator[Traced]:
    """Yield the traced values that a picture holds, in its attributes and in their parts."""
    for part in parts:
        if isinstance(part, Traced):
            yield part
        elif isinstance(part, tuple | list):
            yield from _traced_in(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield from _traced_in(vars(part).values())


def _camera_fault(camera: Any, theme_name: str) -> str:
    ground = theme.THEMES[theme_name]["BACKGROUND"]
    if camera.background_image is not None or str(ManimColor(camera.background_color).to_hex()).upper() != ground:
        return "the ground is not the theme's"
    whole = (camera.frame_width, camera.frame_height, *camera.frame_center)
    if not np.allclose(whole, (FRAME_HEIGHT * 16 / 9, FRAME_HEIGHT, 0, 0, 0)):
        return "the camera does not show the whole frame"
    return ""


_DRAWN_BY_MANIM = (VMobject, PMobject, AbstractImageMobject)  # other mobjects, such as a ValueTracker, have no look


def _stock_objects(mobjects: Iterable[Mobject]) -> dict[int, Mobject]:
    """Return of each part of Manim's own mobjects, by id, the whole that a scene has put there."""
    wholes: dict[int, Mobject] = {}
    for mobject in mobjects:
        if isinstance(mobject, Picture) or type(mobject) in (Group, VGroup):
            wholes |= _stock_objects(mobject.submobjects)
        else:
            wholes |= {id(part): mobject for part in mobject.get_family()}
    return wholes


def _stock(mobject: Any) -> Drawn:
    """A mobject of Manim's own: its extent is all that is known of it."""
    (left, bottom, _), (right, top, _) = mobject.get_corner([-1, -1, 0]), mobject.get_corner([1, 1, 0])
    color = str(mobject.get_color().to_hex())
    return Drawn(mobject, (Mark(SHAPE, left, bottom, right, top, color, 1.0),), ())


class RecordingPainter(Painter):
    """Notes what a picture draws, in scene units."""

    def __init__(self, picture: Picture) -> None:
        self.opacity = float(picture.opacity)
        self.marks: list[Mark] = []
        middle, right, up = picture._frame()
        self._x, self._y = float(middle[0]), float(middle[1])
        self._right, self._up = (float(right[0]), float(right[1])), (float(up[0]), float(up[1]))
        self._unit = float(np.hypot(*self._up))

    @classmethod
    def marks_of(cls, picture: Picture) -> tuple[Mark, ...]:
        """Return what a picture draws as it is now."""
        painter = cls(picture)
        picture.draw(painter)
        return tuple(painter.marks)

    def _extent(self, left: float, bottom: float, right: float, top: float) -> tuple[float, float, float, float]:
        """Return the upright scene rectangle around a local one."""
        (a, b), (c, d) = self._right, self._up
        xs = (a * left, a * right), (c * bottom, c * top)
        ys = (b * left, b * right), (d * bottom, d * top)
        return (
            self._x + min(xs[0]) + min(xs[1]),
            self._y + min(ys[0]) + min(ys[1]),
            self._x + max(xs[0]) + max(xs[1]),
            self._y + max(ys[0]) + max(ys[1]),
        )

    def _note(
        self, kind: str, extent: tuple[float, float, float, float], color: str, opacity: float, **more: Any
    ) -> None:
        opacity *= self.opacity
        if opacity > 0:
            self.marks.append(Mark(kind, *self._extent(*extent), color, opacity, **more))

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = theme.LINE,
        radius: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        extent = (x, y, x + width, y + height)
        if fill is not None:
            self._note(BOX, extent, fill, opacity)
        if stroke is not None:
            self._note(LINE, extent, stroke, opacity, size=line * self._unit)

    def polyline(
        self,
        points: Iterable[Point],
        *,
        stroke: str | None = None,
        fill: str | None = None,
        line: float = theme.LINE,
        closed: bool = False,
        dash: Sequence[float] | None = None,
        opacity: float = 1.0,
    ) -> None:
        path = np.array([(float(point[0]), float(point[1])) for point in points])
        extent = (*path.min(axis=0), *path.max(axis=0))
        self._filled_or_not(extent, fill, stroke, line, opacity)

    def circle(
        self,
        x: float,
        y: float,
        radius: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = theme.LINE,
        opacity: float = 1.0,
    ) -> None:
        self._filled_or_not((x - radius, y - radius, x + radius, y + radius), fill, stroke, line, opacity)

    def arc(
        self,
        x: float,
        y: float,
        radius: float,
        start: float,
        angle: float,
        *,
        stroke: str | None = None,
        fill: str | None = None,
        line: float = theme.LINE,
        opacity: float = 1.0,
    ) -> None:
        turn = np.linspace(start, start + angle, 32)
        path = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)
        if fill is not None:
            path = np.vstack([path, [(x, y)]])
        self._filled_or_not((*path.min(axis=0), *path.max(axis=0)), fill, stroke, line, opacity)

    def _filled_or_not(self, extent: Any, fill: str | None, stroke: str | None, line: float, opacity: float) -> None:
        if fill is not None:
            self._note(SHAPE, extent, fill, opacity)
        if stroke is not None:
            self._note(LINE, extent, stroke, opacity, size=line * self._unit)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        style: Style,
        *,
        color: str,
        align: float = 0.5,
        opacity: float = 1.0,
    ) -> None:
        if not text.strip():
            return
        line = shape(text, style.face, style.bold)
        unit = style.size / line.cap_height
        left = x - align * line.advance * unit
        extent = (left, y + line.bottom * unit, left + line.advance * unit, y + line.top * unit)
        self._note(TEXT, extent, color, opacity, text=text, size=style.size * self._unit)

    def outline(
        self, path: cairo.Path, name: Any, x: float, y: float, unit: float, color: str, opacity: float = 1.0
    ) -> None:
        """Note the signs of a formula, whose name holds its source and its size."""
        _, source, size, *_ = name
        points = _points(path)
        if len(points):
            low, high = points.min(axis=0) * unit + (x, y), points.max(axis=0) * unit + (x, y)
            self._note(TEXT, (*low, *high), color, opacity, text=source, size=size * self._unit)


def _points(path: cairo.Path) -> np.ndarray:
    """Return all points of a path (N, 2)."""
    flat = [number for _, numbers in path for number in numbers]
    return np.array(flat, dtype=float).reshape(-1, 2)


def _frames_above() -> Iterator[tuple[Any, int]]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _line_of(scene: Any, frames: Iterable[tuple[Any, int]]) -> int:
    """Return the line of the scene's own file among some frames of a stack, 0 if there is none."""
    file = sys.modules[type(scene).__module__].__file__
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    return lines[0] if lines else 0
