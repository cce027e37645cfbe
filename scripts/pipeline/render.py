"""Rendering topics: which units are needed, who renders them, and what is made of them."""

import contextlib
import os
import traceback
from collections.abc import Iterable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from internals_math import trace_store
from scenes import series
from scripts.pipeline import ffmpeg, outputs
from scripts.pipeline.outputs import FORMATS, Plan
from scripts.pipeline.units import (
    LOOP,
    QUALITIES,
    Quality,
    RenderedUnit,
    UnitJob,
    cached,
    render_unit,
    unit_job,
    worker_pool,
)


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    quality: str = "h"
    themes: tuple[str, ...] = ("dark",)
    settings: tuple[str, ...] = ()
    chapter: str | None = None  # a number from 1 on, or a name; None = the whole topic
    formats: tuple[str, ...] = FORMATS
    jobs: int | None = None
    out: Path = Path("media")
    fresh: bool = False


@dataclass
class TopicResult:
    """How rendering one topic ended."""

    slug: str
    files: list[Path] = field(default_factory=list)
    rendered: int = 0
    reused: int = 0
    seconds: float = 0.0  # length of the video
    error: str | None = None  # a traceback

    @property
    def ok(self) -> bool:
        return self.error is None


class Report(Protocol):
    """Who is told how the work goes on."""

    def begin(self, slug: str, units: int) -> None: ...

    def step(self, slug: str) -> None: ...

    def end(self, result: TopicResult) -> None: ...


class Interrupted(Exception):
    """Ctrl-C; holds what was finished before."""

    def __init__(self, finished: list[TopicResult]) -> None:
        super().__init__("interrupted")
        self.finished = finished


@dataclass
class _Topic:
    """A topic under way."""

    result: TopicResult
    plan: Plan | None = None
    jobs: list[UnitJob] = field(default_factory=list)
    done: dict[str, RenderedUnit] = field(default_factory=dict)  # by key


def render_units(slug: str, request: Request, report: Report) -> dict[str, list[RenderedUnit]]:
    """Render the units of one topic without making files of them; returns them by theme, empty if one failed.

    Raises:
        ValueError: as `render`.
        Interrupted: Ctrl-C.
    """
    topic = _Topic(TopicResult(slug))
    _plan(topic, request, report)
    try:
        with worker_pool(request.jobs or os.cpu_count() or 1) as pool:
            waiting = _submit(pool, [topic])
            for future in as_completed(waiting):
                _collect(topic, waiting[future][1], future, report)
    except KeyboardInterrupt:
        raise Interrupted([]) from None
    if topic.result.error:
        report.end(topic.result)
        return {theme: [] for theme in request.themes}
    return {theme: [topic.done[job.key] for job in topic.jobs if job.theme == theme] for theme in request.themes}


def render(slugs: Iterable[str], request: Request, report: Report, executor: Executor | None = None) -> list[TopicResult]:
    """Render topics; a broken one does not stop the others.

    Args:
        slugs: topics of the series.
        request: what to make of them.
        report: is told of progress.
        executor: renders units in place of the local process pool (it must be able to run `render_unit`).

    Raises:
        UserError: ffmpeg is missing, or the output folder cannot be written to.
        ValueError: an unknown topic, setting or chapter; nothing was rendered.
        Interrupted: Ctrl-C; finished topics are complete, nothing is half-written.
    """
    topics = [_Topic(TopicResult(series.find(slug).slug)) for slug in slugs]
    ffmpeg.require()
    outputs.check_folder(request.out)
    finished: list[TopicResult] = []
    jobs = request.jobs or os.cpu_count() or 1
    try:
        for topic in topics:
            _plan(topic, request, report)
        with contextlib.ExitStack() as stack:
            pool = executor or stack.enter_context(worker_pool(jobs))
            waiting = _submit(pool, topics)
            for topic in topics:  # everything was cached, or nothing could be planned
                if not any(owner is topic for owner, _ in waiting.values()):
                    _finish(topic, request, report, finished)
            for future in as_completed(waiting):
                topic, job = waiting[future]
                _collect(topic, job, future, report)
                if topic.result.error or len(topic.done) == len({job.key for job in topic.jobs}):
                    if all(f.done() for f, (owner, _) in waiting.items() if owner is topic):
                        _finish(topic, request, report, finished)
    except KeyboardInterrupt:
        raise Interrupted(finished) from None
    return [topic.result for topic in topics]


def select_units(scene: Any, chapter: str | None) -> list[str]:
    """Return the units to render: all with the loop, or the one that `chapter` names.

    Raises:
        ValueError: no such chapter.
    """
    chapters = [unit.name for unit in scene.chapter_units()]
    everything = [unit.name for unit in scene.units()]
    if chapter is None:
        return everything + ([LOOP] if scene.has_loop() else [])
    if chapter.isdigit() and 1 <= int(chapter) <= len(chapters):
        return [chapters[int(chapter) - 1]]
    if chapter in everything or (chapter == LOOP and scene.has_loop()):
        return [chapter]
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(chapters, start=1))
    raise ValueError(f"{scene.slug()} has no chapter {chapter!r}; it has {numbered}")


def _plan(topic: _Topic, request: Request, report: Report) -> None:
    """Compute the trace and list the jobs. Wrong settings end the call; a broken topic is noted."""
    slug = topic.result.slug
    try:
        scene = series.scene_class(slug)
    except Exception:
        topic.result.error = traceback.format_exc()
        report.begin(slug, 0)
        return
    config = scene.core.Config.parse(request.settings)
    units = select_units(scene, request.chapter)
    quality = QUALITIES[request.quality]
    try:
        trace = trace_store.get(scene.core, config)
    except Exception:
        topic.result.error = traceback.format_exc()
        report.begin(slug, 0)
        return
    trace_file = trace_store.stored_file(scene.core, config)
    folder = request.out / slug
    topic.plan = Plan(scene, trace, quality, request.formats, folder)
    trace_hash = trace.hash
    topic.jobs = [
        unit_job(scene, trace_hash, unit, theme, quality, trace_file) for theme in request.themes for unit in units
    ]
    for job in topic.jobs:
        unit = None if request.fresh else cached(job)
        if unit is not None:
            topic.done[job.key] = unit
    topic.result.reused = len(topic.done)
    report.begin(slug, len(topic.jobs) - len(topic.done))


def _submit(pool: Executor, topics: list[_Topic]) -> dict[Future, tuple[_Topic, UnitJob]]:
    """Hand out the work, chapters before cards, because chapters take longer."""
    work = [(topic, job) for topic in topics for job in topic.jobs if job.key not in topic.done]
    work.sort(key=lambda pair: pair[1].unit in ("opening", "ending"))
    return {pool.submit(render_unit, job): (topic, job) for topic, job in work}


def _collect(topic: _Topic, job: UnitJob, future: Future, report: Report) -> None:
    try:
        topic.done[job.key] = future.result()
        topic.result.rendered += 1
    except Exception:
        # the traceback of the worker is in the chain
        topic.result.error = topic.result.error or f"{job.slug}, {job.unit}:\n{traceback.format_exc()}"
    report.step(topic.result.slug)


def _finish(topic: _Topic, request: Request, report: Report, finished: list[TopicResult]) -> None:
    result, plan = topic.result, topic.plan
    if result.ok and plan is not None:
        try:
            for theme in request.themes:
                units = [topic.done[job.key] for job in topic.jobs if job.theme == theme]
                if request.chapter is None:
                    result.files += outputs.write_outputs(plan, theme, units)
                    result.seconds = sum(unit.duration for unit in units if unit.unit != LOOP)
                else:
                    target = outputs.clip_path(plan.folder, result.slug, units[0].unit, theme)
                    result.files.append(outputs.copy_aside(units[0].video, target))
                    result.seconds = units[0].duration
        except Exception:
            result.error = traceback.format_exc()
    if result.ok:
        finished.append(result)
    report.end(result)


