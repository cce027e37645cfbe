"""What goes between the parent and its workers: plain data. Imports nothing heavy."""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenes.series import Topic
from scripts.pipeline.manifest import FORMATS
from scripts.pipeline.quality import QUALITIES, Quality
from scripts.pipeline.units import UnitJob


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    make: str = "topic"  # or "clip", "sheet", "gif"
    quality: Quality = QUALITIES["h"]
    themes: tuple[str, ...] = ("dark",)
    settings: tuple[str, ...] = ()  # name=value
    chapter: str | None = None  # a number from 1 on, a name, or "all"; None = the whole topic
    formats: tuple[str, ...] = FORMATS
    jobs: int | None = None
    out: Path = Path("media")
    fresh: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # of what is made: columns, stills; width, frame_rate …
    encoder: str = "x264"  # of the videos
    captions: bool = True  # drawn into the picture


@dataclass(frozen=True)
class TopicPlan:
    """What is to be rendered of a topic, and what its files say about it."""

    topic: Topic
    run: str  # which call of the pipeline wants it
    quality: Quality
    jobs: tuple[UnitJob, ...]
    titles: dict[str, str]  # by unit
    chapters: tuple[str, ...]
    takeaway: str
    loop_alt: str
    config: dict[str, Any]
    trace_hash: str
    provenance: dict[str, str]
    request_hash: str | None = None  # of all that the files depend on, taken before the work began


@dataclass(frozen=True)
class MadeFiles:
    """What was written for one topic in one theme, and what a user should know about it."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """Why a task failed: a traceback, or the line a user reads."""

    text: str
    wrong_use: bool = False


@dataclass
class TopicResult:
    """How work on one topic ended."""

    slug: str
    files: list[Path] = field(default_factory=list)
    rendered: int = 0
    reused: int = 0
    seconds: float = 0.0  # of video
    error: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.error is None


def run_task(name: str, *arguments: Any) -> Any:
    """Call a function of the worker module, which only workers import; an error comes back as a Failure."""
    try:
        from scripts.pipeline import worker
    except Exception:  # a mistake in the kit, or a library that is missing
        return Failure(traceback.format_exc().strip())
    return worker.attempt(getattr(worker, name), *arguments)
