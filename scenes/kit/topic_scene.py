"""TopicScene: a video as chapters that can each be rendered alone, with captions by beat and a number ledger."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np
from manim import DOWN, LEFT, UP, CairoRenderer, FadeIn, FadeOut, Group, Mobject, Scene, config

from internals_math import trace_store
from internals_math.trace import TopicTrace
from scenes import series
from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scenes.kit.label import Label
from scenes.kit.ledger import Ledger
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.traced import TracedFields, allow_notation, read_text, traced
from scenes.kit.typography import Style, width

LEDGER_SECONDS = 0.1  # between two looks of the ledger at what moves
OPENING, ENDING, LOOP = "opening", "ending", "loop"
_Method = TypeVar("_Method", bound=Callable[..., None])


def chapter(title: str) -> Callable[[_Method], _Method]:
    """Mark a method as a chapter; its docstring is the sentence to keep. Chapters play in the order of definition."""

    def decorate(method: _Method) -> _Method:
        method.chapter_title = title  # type: ignore[attr-defined]
        return method

    return decorate


def loop(method: _Method) -> _Method:
    """Mark the method that draws the loop for articles: no header, no captions, last frame = first frame."""
    method.is_loop = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class Unit:
    """What is rendered, cached and shown as one piece: the title card, a chapter, the end card."""

    name: str
    title: str
    sentence: str


@dataclass
class Caption:
    """Words in the caption band; seconds from the start of what was played."""

    start: float
    end: float
    text: str


class CaptionBand(Picture):
    """One or two centered lines at the foot of the frame."""

    def __init__(self, text: str) -> None:
        read = read_text(text)
        self.parts = read.parts
        self.lines = _wrap(read.plain, theme.CAPTION_LINE_LENGTH).split("\n")
        if len(self.lines) > 2:
            raise ValueError(
                f"a caption has at most 2 lines of {theme.CAPTION_LINE_LENGTH} characters, got {len(read.plain)} "
                f"characters: {read.plain!r}; split it into two beats"
            )
        self.style = Style(theme.CAPTION)
        self.text = read.plain
        super().__init__(config.frame_width - 2 * theme.MARGIN, 0.6)
        self.move_to([0, sum(theme.CAPTION_BASELINES) / 2 + theme.CAPTION / 2, 0])
        self.z_index = 100

    def draw(self, painter: Painter) -> None:
        first, second = theme.CAPTION_BASELINES
        baselines = (first, second) if len(self.lines) == 2 else ((first + second) / 2,)
        offset = self.get_center()[1]
        for line, baseline in zip(self.lines, baselines, strict=True):
            painter.text(line, 0, baseline - offset, self.style, color=theme.TEXT)

    def ledger(self) -> list[tuple[str, str]]:
        return list(self.parts)


class Header(Picture):
    """The topic (muted) and the title of the chapter, at the top left of every chapter."""

    def __init__(self, topic: str, title: str) -> None:
        self.topic, self.title = topic, title
        super().__init__(config.frame_width - 2 * theme.MARGIN, theme.TITLE)
        self.move_to([0, theme.HEADER_BASELINE + theme.TITLE / 2, 0])
        self.z_index = 100

    def draw(self, painter: Painter) -> None:
        left, baseline = -self.local_width / 2, -self.local_height / 2
        small = Style(theme.LABEL)
        painter.text(self.topic, left, baseline, small, color=theme.MUTED, align=0)
        start = left + width(self.topic, small) + 0.3
        painter.text(self.title, start, baseline, Style(theme.TITLE, bold=True), color=theme.TEXT, align=0)


class TopicScene(Scene):
    """Base of every topic. The docstring of a subclass is the question its video answers.

    A subclass names its `core` module, its `takeaway`, and has chapters as methods; it draws `self.trace` and nothing
    else. `unit` plays one piece alone: a chapter's name, "opening", "ending" or "loop".
    """

    core: ClassVar[ModuleType]
    takeaway: ClassVar[str]
    loop_alt: ClassVar[str] = ""
    notation: ClassVar[tuple[str, ...]] = ()
    draws_captions = True  # False: they are timed and listed, but not in the picture

    def __init__(
        self, renderer: Any = None, *, trace: TopicTrace | None = None, unit: str | None = None, **kwargs: Any
    ) -> None:
        theme.use(theme.current())
        if renderer is None:
            renderer = CairoRenderer(camera_class=KitCamera, skip_animations=kwargs.get("skip_animations", False))
        super().__init__(renderer, **kwargs)
        self.unit = unit
        self.full_trace = trace
        self.captions: list[Caption] = []
        self.number_ledger = Ledger()
        self.unit_starts: list[tuple[str, float]] = []
        self.key_times: list[float] = []
        self._band: CaptionBand | None = None
        self._header: Header | None = None
        self._play_start = self._noted = 0.0  # of the animation under way; up to when the ledger is written

    # -- what there is to play --------------------------------------------------------------------------------------

    @classmethod
    def slug(cls) -> str:
        """Return the topic's slug, which is the name of its core module."""
        return cls.core.__name__.rsplit(".", 1)[-1]

    @classmethod
    def chapter_units(cls) -> tuple[Unit, ...]:
        """Return the chapters in the order of their definition."""
        chapters = _marked(cls, "chapter_title")
        return tuple(Unit(name, method.chapter_title, _first_line(method.__doc__)) for name, method in chapters.items())

    @classmethod
    def units(cls) -> tuple[Unit, ...]:
        """Return the pieces of the video in order: title card, chapters, end card."""
        opening = Unit(OPENING, series.find(cls.slug()).title, _first_line(inspect.getdoc(cls)))
        return (opening, *cls.chapter_units(), Unit(ENDING, "In one sentence", cls.takeaway))

    @classmethod
    def has_loop(cls) -> bool:
        """Return whether the topic has a loop for articles."""
        return cls._loop_name() is not None

    @classmethod
    def _loop_name(cls) -> str | None:
        return next(iter(_marked(cls, "is_loop")), None)

    # -- playing ----------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        if self.full_trace is None:
            self.full_trace = trace_store.get(self.core)
        self.trace: Any = TracedFields(self.full_trace)
        allow_notation(self.notation)

    def construct(self) -> None:
        pieces = {unit.name: unit for unit in self.units()}
        if self.unit is None:
            for unit in pieces.values():
                self.next_section(unit.title)
                self.play_unit(unit)
        elif self.unit == LOOP and self.has_loop():
            self.unit_starts.append((LOOP, self.now))
            getattr(self, self._loop_name() or "")()
        elif self.unit in pieces:
            self.play_unit(pieces[self.unit])
        else:
            raise ValueError(f"{type(self).__name__} has no unit {self.unit!r}; it has {', '.join(pieces)}")

    def play_unit(self, unit: Unit) -> None:
        """Play one piece from an empty stage until its last caption could be read."""
        self.clear()
        self._band = None
        self.unit_starts.append((unit.name, self.now))
        if unit.name == OPENING:
            self.opening_card()
        elif unit.name == ENDING:
            self.ending_card()
        else:
            self._header = Header(series.find(self.slug()).title, unit.title)
            self.add(self._header)
            getattr(self, unit.name)()
        self.finish_beat()
        self.hold(theme.HOLD)

    def opening_card(self) -> None:
        """Ask the video's question."""
        topic = series.find(self.slug())
        name = Label(topic.title, size=theme.LABEL, color=theme.MUTED)
        question = Label(_wrap(_first_line(inspect.getdoc(type(self))), 46), size=theme.QUESTION, bold=True)
        card = Group(name, question).arrange(DOWN, buff=0.55, aligned_edge=LEFT).move_to([0, 0.3, 0])
        self.play(FadeIn(name), run_time=theme.QUICK)
        self.play(FadeIn(question, shift=0.15 * UP), run_time=theme.MOVE)
        self.key_times.append(self.now)
        self.hold(max(2.6, len(question.text) / theme.READING_SPEED - theme.MOVE))
        self.play(FadeOut(card), run_time=theme.QUICK)

    def ending_card(self) -> None:
        """Leave one sentence, and say where the numbers came from."""
        sentence = Label(_wrap(self.takeaway, 48), size=0.32, bold=True)
        source = Label("\n".join(self._provenance()), size=theme.SMALL, color=theme.MUTED)
        card = Group(sentence, source).arrange(DOWN, buff=0.9, aligned_edge=LEFT).move_to([0, 0.3, 0])
        self.play(FadeIn(sentence, shift=0.15 * UP), run_time=theme.MOVE)
        self.play(FadeIn(source), run_time=theme.QUICK)
        self.key_times.append(self.now)
        self.hold(max(3.0, len(sentence.text) / theme.READING_SPEED))
        self.add(card)

    def _provenance(self) -> list[str]:
        facts = trace_store.provenance(self.core)
        written = (f"{name} {traced(value, f'provenance.{name}')}" for name, value in facts.items())
        origin = "Every number is measured on a tiny language model, computed, or quoted from its source."
        return [origin, "  ·  ".join(written)]

    # -- beats ------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds played so far."""
        return float(self.renderer.time)

    def say(self, text: str) -> None:
        """Begin a beat: wait until the last caption could be read, then show this one."""
        self.finish_beat()
        band = CaptionBand(text)
        self.captions.append(Caption(self.now, self.now, band.text))
        self._band = band
        if self.draws_captions:
            self.add(band)

    def finish_beat(self) -> None:
        """Hold the picture until the caption could be read, and close it."""
        if self._band is None:
            return
        caption = self.captions[-1]
        needed = max(theme.SHORTEST_CAPTION, len(caption.text) / theme.READING_SPEED)
        self.hold(caption.start + needed + 0.1 - self.now)
        self.key_times.append(self.now)
        caption.end = self.now
        self.remove(self._band)
        self._band = None

    def hold(self, seconds: float = theme.HOLD) -> None:
        """Keep the picture still for whole frames, at least `seconds`."""
        frames = int(np.ceil(seconds * config.frame_rate - 1e-6))
        if frames > 0:
            # a hair more than the frames, because Manim rounds the number of frames down
            self.wait((frames + 1e-3) / config.frame_rate, frozen_frame=True)

    def clear_stage(self, *keep: Mobject, run_time: float = theme.QUICK) -> None:
        """Fade out everything but the header, the caption and what is to be kept."""
        self.add(*keep)  # takes them out of the groups that a FadeIn of several things makes
        stay = {id(thing) for thing in (self._header, self._band, *keep)}
        leaving = [mobject for mobject in self.mobjects if id(mobject) not in stay]
        if leaving:
            self.play(*(FadeOut(mobject) for mobject in leaving), run_time=run_time)

    # -- ledger -----------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Return what was on screen so far and where it comes from."""
        return self.number_ledger.entries

    def play(self, *args: Any, **kwargs: Any) -> None:
        start = self._play_start = self._noted = self.now
        super().play(*args, **kwargs)
        self._note(max(start, self._noted), self.now)

    def update_to_time(self, t: float) -> None:
        super().update_to_time(t)
        now = self._play_start + t
        if now - self._noted >= LEDGER_SECONDS - 1e-6:  # what comes and goes within one motion
            self._note(self._noted, now)

    def _note(self, start: float, end: float) -> None:
        self.number_ledger.note(self.get_mobject_family_members(), start, end)
        self._noted = end


def _marked(scene: type, mark: str) -> dict[str, Any]:
    """Return the methods that a decorator marked, in the order of definition, base classes first."""
    every = {name: method for base in reversed(scene.__mro__) for name, method in vars(base).items()}
    return {name: method for name, method in every.items() if hasattr(method, mark)}


def _first_line(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _wrap(text: str, columns: int) -> str:
    """Break into lines of about equal length."""
    lines = textwrap.wrap(text, columns, break_on_hyphens=False)
    for narrower in range(columns, 8, -1):
        attempt = textwrap.wrap(text, narrower, break_on_hyphens=False)
        if len(attempt) > len(lines):
            break
        lines = attempt
    return "\n".join(lines)
