"""Rendering topics: what is needed, who renders it, and what becomes of it.

This is the parent's side: it hands out work and waits. It imports neither torch nor Manim; workers do.
"""

import contextlib
import os
import signal
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, Protocol

from scenes import series
from scripts.pipeline import ffmpeg, manifest, units
from scripts.pipeline.errors import WrongUse
from scripts.pipeline.files import check_folder, sweep
from scripts.pipeline.jobs import Failure, MadeFiles, Request, TopicPlan, TopicResult, run_task
from scripts.pipeline.units import LOOP, PROGRESS_NOTE, RenderedUnit, UnitJob

USUAL_SECONDS = {units.OPENING: 5.0, units.ENDING: 8.0, LOOP: 6.0}
USUAL_CHAPTER_SECONDS = 14.0
LOOK_EVERY_SECONDS = 0.3


class Report(Protocol):
    """Who is told how the work goes on; all times are seconds of video."""

    def begin(self, slug: str) -> None: ...

    def update(self, slug: str, done: float, total: float) -> None: ...

    def end(self, result: TopicResult) -> None: ...


class Interrupted(Exception):
    """Ctrl-C; holds what was finished before."""

    def __init__(self, finished: list[TopicResult]) -> None:
        super().__init__("interrupted")
        self.finished = finished


@dataclass
class _Topic:
    """A topic under way."""

    topic: series.Topic
    result: TopicResult
    folder: Path
    request_hash: str | None  # None: there is none to compare
    plan: TopicPlan | None = None
    rendered: dict[str, RenderedUnit] = field(default_factory=dict)  # by key
    expected: dict[str, float] = field(default_factory=dict)  # seconds of video, by key
    files: dict[str, list[Path]] = field(default_factory=dict)  # by theme
    ended: bool = False

    def waiting_jobs(self) -> list[UnitJob]:
        plan = self.plan
        return [] if plan is None else [job for job in plan.jobs if job.key not in self.rendered]

    def seconds_done(self) -> float:
        """Seconds of video that are rendered, with what the workers have noted of unfinished units."""
        notes = sum(_noted(job) for job in self.waiting_jobs())
        return notes + sum(unit.seconds for unit in self.rendered.values())

    def seconds_expected(self) -> float:
        known = {key: unit.seconds for key, unit in self.rendered.items()}
        return sum((self.expected | known).values())


def render(
    slugs: Iterable[str], request: Request, report: Report, executor: Executor | None = None
) -> list[TopicResult]:
    """Render topics; a broken one does not stop the others.

    Args:
        slugs: topics of the series.
        request: what to make of them.
        report: is told of progress.
        executor: does the work in place of local processes; its workers must see the same folders.

    Raises:
        UserError: ffmpeg is missing, or the output folder cannot be written to.
        WrongUse: an unknown setting or chapter; nothing was rendered.
        Interrupted: Ctrl-C; finished topics are complete, nothing is half-written.
    """
    found = [series.find(slug) for slug in slugs]
    ffmpeg.require()
    check_folder(request.out)
    limit = units.cache_limit()
    topics = [
        _Topic(topic, TopicResult(topic.slug), request.out / topic.slug, _request_hash(topic, request))
        for topic in found
    ]
    for topic in topics:
        if _is_unchanged(topic, request):
            _end(topic, report)
    work = [topic for topic in topics if not topic.ended]
    if not work:
        return [topic.result for topic in topics]
    run = uuid.uuid4().hex[:8]
    try:
        with contextlib.ExitStack() as stack:
            pool = executor or stack.enter_context(workers(request.jobs or os.cpu_count() or 1))
            _Call(pool, request, report, run).carry_out(work)
    except KeyboardInterrupt:
        raise Interrupted([topic.result for topic in topics if topic.ended and topic.result.ok]) from None
    finally:
        stills = request.options.get("stills")
        for folder in {units.unit_folder(), *(topic.folder for topic in work), *([Path(stills)] if stills else [])}:
            sweep(folder, run)
    units.prune(limit, keep=[unit.folder.name for topic in work for unit in topic.rendered.values()])
    return [topic.result for topic in topics]


class _Call:
    """One call of `render`: the tasks under way, and what to do when each one ends."""

    def __init__(self, pool: Executor, request: Request, report: Report, run: str) -> None:
        self.pool, self.request, self.report, self.run = pool, request, report, run
        self.under_way: dict[Future, tuple[_Topic, Callable[[Any], None]]] = {}

    def carry_out(self, topics: list[_Topic]) -> None:
        for topic in topics:
            self.report.begin(topic.topic.slug)
            self._start(topic, partial(self._planned, topic), "plan_topic", topic.topic, self.request, self.run)
        self._wait(topics)
        jobs = [(topic, job) for topic in topics for job in topic.waiting_jobs()]
        # the longest first, so that no long one is left to a single worker at the end
        for topic, job in sorted(jobs, key=lambda pair: -pair[0].expected[pair[1].key]):
            self._start(topic, partial(self._rendered, topic, job), "render_unit", job, self.request.fresh)
        self._wait(topics)

    def _start(self, topic: _Topic, then: Callable[[Any], None], task: str, *arguments: Any) -> None:
        self.under_way[self.pool.submit(run_task, task, *arguments)] = (topic, then)

    def _wait(self, topics: list[_Topic]) -> None:
        """Wait until nothing is under way."""
        while self.under_way:
            ended, _ = wait(self.under_way, timeout=LOOK_EVERY_SECONDS, return_when=FIRST_COMPLETED)
            _heed_interrupt()
            for future in ended:
                topic, then = self.under_way.pop(future)
                if topic.ended:
                    continue  # it failed while this was under way
                outcome = _outcome(future)
                if isinstance(outcome, Failure):
                    self._failed(topic, outcome)
                else:
                    then(outcome)
            for topic in topics:
                if topic.plan is not None and not topic.ended:
                    self.report.update(topic.topic.slug, topic.seconds_done(), topic.seconds_expected())

    def _planned(self, topic: _Topic, plan: TopicPlan) -> None:
        topic.plan = replace(plan, request_hash=topic.request_hash)
        known = manifest.known_seconds(topic.folder)
        for job in plan.jobs:
            usual = USUAL_SECONDS.get(job.unit, USUAL_CHAPTER_SECONDS)
            topic.expected[job.key] = known.get(job.unit, usual)

    def _rendered(self, topic: _Topic, job: UnitJob, unit: RenderedUnit) -> None:
        topic.rendered[job.key] = unit
        plan = topic.plan
        assert plan is not None
        of_theme = [topic.rendered.get(other.key) for other in plan.jobs if other.theme == job.theme]
        if all(of_theme):
            then = partial(self._made, topic, plan, job.theme)
            self._start(topic, then, "make_files", plan, self.request, job.theme, of_theme)

    def _made(self, topic: _Topic, plan: TopicPlan, theme: str, made: MadeFiles) -> None:
        topic.files[theme] = made.files
        topic.result.notes += made.notes
        if len(topic.files) < len(self.request.themes):
            return
        result = topic.result
        result.files = list(dict.fromkeys(path for name in self.request.themes for path in topic.files[name]))
        result.reused = sum(unit.reused for unit in topic.rendered.values())
        result.rendered = len(topic.rendered) - result.reused
        units_of_theme = [topic.rendered[job.key] for job in plan.jobs if job.theme == theme]
        video = [unit for unit in units_of_theme if unit.unit != LOOP]
        result.seconds = sum(unit.seconds for unit in video or units_of_theme)
        _end(topic, self.report)

    def _failed(self, topic: _Topic, failure: Failure) -> None:
        if failure.wrong_use:
            raise WrongUse(failure.text)
        topic.result.error = failure.text
        for future, (owner, _) in self.under_way.items():
            if owner is topic:
                future.cancel()
        _end(topic, self.report)


@contextlib.contextmanager
def workers(count: int) -> Iterator[Executor]:
    """Give an executor: one worker is this very process, more are processes. An interrupt ends them at once."""
    with _terminate_as_interrupt():
        if count == 1:
            yield _ThisProcess()
            return
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
        # A server that has imported everything forks the workers: they start warm, and no thread is ever forked.
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context = get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["scripts.pipeline.warm"])
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=run_task, initargs=("start_worker",))
        try:
            yield pool
        except BaseException:
            for process in list((pool._processes or {}).values()):
                _end_group(process)
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown()


def _end_group(process: Any) -> None:
    """End a worker and the programs it runs."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, AttributeError):  # it had not formed its group yet, or this system has no groups
        process.kill()


class _ThisProcess(Executor):
    """Does each task at once, here: simple to debug, and the reference for what parallel workers must produce."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        _heed_interrupt()
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


_interrupted = threading.Event()


def _heed_interrupt() -> None:
    """Interrupt now if the signal came where no exception gets through (a finalizer, a callback of a library)."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: Any) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let Ctrl-C and a polite `kill` end the work alike, and be remembered until it has ended."""
    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), _interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
        _interrupted.clear()


def _outcome(future: Future) -> Any:
    """Return what a task gave back, or a Failure that says what happened to its worker."""
    try:
        return future.result()
    except BrokenProcessPool:
        return Failure("a worker process died (out of memory?); fewer at a time with --jobs need less memory")
    except Exception:
        return Failure(traceback.format_exc().strip())


def _request_hash(topic: series.Topic, request: Request) -> str | None:
    """Return what tells whether a topic's files are up to date; None if nothing does."""
    if request.make != "topic":
        return None
    try:
        return manifest.request_hash(topic, request.quality, request.settings, request.formats, request.encoder)
    except (ValueError, SyntaxError):
        return None  # its code cannot be read; the worker will say why


def _is_unchanged(topic: _Topic, request: Request) -> bool:
    """Take a topic's files from an earlier render if nothing has changed since."""
    wanted = topic.request_hash
    if wanted is None or request.fresh:
        return False
    found = [manifest.unchanged_files(topic.folder, theme, wanted) for theme in request.themes]
    if not all(found):
        return False
    topic.result.files = list(dict.fromkeys(path for files in found if files for path in files))
    renders = manifest.read(topic.folder)["renders"]
    topic.result.seconds = renders[request.themes[0]]["seconds"]
    topic.result.reused = sum(len(renders[t]["units"]) + bool(renders[t]["loop_seconds"]) for t in request.themes)
    return True


def _end(topic: _Topic, report: Report) -> None:
    topic.ended = True
    report.end(topic.result)


def _noted(job: UnitJob) -> float:
    """Return how many seconds of a unit its worker has noted as done."""
    try:
        return float((job.aside / PROGRESS_NOTE).read_text())
    except (OSError, ValueError):
        return 0.0
