"""All checks of a topic: each unit for itself, in any process, then what concerns the whole video and its GIF."""

import importlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from internals_math.trace import TopicTrace
from scenes import series
from scenes.kit.recorder import EVERY_SECONDS, Recording, record
from scenes.kit.topic_scene import LOOP, TopicScene
from scenes.series import Topic
from scripts.pipeline import numbers
from scripts.pipeline.checks import Finding, finding
from scripts.pipeline.checks.layout import check_contrast, check_layout
from scripts.pipeline.checks.origins import RULE, check_origins
from scripts.pipeline.checks.pixels import check_gif, check_pixels
from scripts.pipeline.checks.reading import check_captions, check_length
from scripts.pipeline.errors import WrongUse
from scripts.pipeline.jobs import Request, TopicResult
from scripts.pipeline.quality import QUALITIES, loop_quality
from scripts.pipeline.render import render, workers

GIF = "gif"
PLAYS = "plays"


@dataclass(frozen=True)
class UnitReport:
    """What was found in a unit, and how long it is."""

    unit: str
    seconds: float
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class TopicReport:
    """What was found in a topic."""

    topic: str
    seconds: float  # of the video
    units: int  # of the video
    findings: tuple[Finding, ...]


_Work = tuple[Topic, str, Callable[[], UnitReport], Future]  # the check of a unit, and its result to come


def check_topics(
    slugs: Iterable[str], *, jobs: int, pixels: bool = True, settings: tuple[str, ...] = ()
) -> Iterator[TopicReport]:
    """Check topics, unit by unit in `jobs` processes, and yield a report of each in order.

    Args:
        pixels: also look at each frame, not at ten a second, and render at low quality, for flashes, loop ends and
            the colors of the GIF.
        settings: name=value; every topic must have them.

    Raises:
        WrongUse: a setting that a topic does not have, or a value out of its range.
    """
    topics = [series.find(slug) for slug in slugs]
    with workers(jobs) as pool:
        work: dict[str, list[_Work] | BaseException] = {}
        for topic in topics:
            try:
                with redirect_stdout(sys.stderr):  # what a scene prints is none of the findings
                    names = unit_names(_scene_of(topic))
                    _trace(topic, settings)  # here, so that no two workers compute the same numbers
            except WrongUse as error:
                raise WrongUse(f"{topic.slug}: {error}") from error
            except (Exception, SystemExit) as error:  # its file cannot be imported: the others go on
                work[topic.slug] = error
                continue
            tasks = {name: partial(check_unit, topic, name, pixels=pixels, settings=settings) for name in names}
            if pixels and LOOP in names:
                tasks[GIF] = partial(check_gif_of, topic, settings)
            work[topic.slug] = [
                (topic, unit, task, pool.submit(_apart, topic, unit, task)) for unit, task in tasks.items()
            ]
        for topic in topics:
            parts = work[topic.slug]
            if isinstance(parts, BaseException):
                yield TopicReport(topic.slug, 0.0, 0, (_broken(topic, parts),))
            else:
                yield _joined(topic, [_result(*part) for part in parts])


def unit_names(scene_class: type[TopicScene]) -> list[str]:
    """Return everything of a topic that can be played."""
    names = [unit.name for unit in scene_class.units()]
    return [*names, LOOP] if scene_class.has_loop() else names


def check_unit(topic: Topic, unit: str, *, pixels: bool = True, settings: tuple[str, ...] = ()) -> UnitReport:
    """Check one unit in record mode, in both themes, and its pixels at low quality."""
    scene_class = _scene_of(topic)
    # a full check looks at each frame: what is there for one frame is there
    recording = record(scene_class, unit, trace=_trace(topic, settings), every=0 if pixels else EVERY_SECONDS)
    findings = list(check_recording(recording))
    if recording.error is None:
        light = record(scene_class, unit, trace=_trace(topic, settings), theme_name="light")
        findings += _new_in_light(findings, light)
        if pixels:
            findings += check_pixels(scene_class, unit, recording)
    return UnitReport(unit, recording.seconds, tuple(findings))


def check_recording(recording: Recording) -> Iterator[Finding]:
    """Yield all that a recording shows to be wrong. What an error cut off is not judged by its length."""
    checks = [check_origins, check_layout, check_contrast]
    if recording.error is None:
        checks.append(check_captions)
    else:
        yield _raised(recording, recording.error)
    for check in checks:
        yield from check(recording)


def _new_in_light(found: list[Finding], light: Recording) -> Iterator[Finding]:
    """Yield what the light theme alone shows to be wrong."""
    known = {(one.object, one.rule) for one in found}
    for one in check_recording(light):
        if (one.object, one.rule) not in known:
            yield one if light.theme in one.message else replace(one, message=f"{one.message} (light theme)")


def _apart(topic: Topic, unit: str, task: Callable[[], UnitReport]) -> UnitReport:
    """Check so that whatever a scene does, the findings stay apart from what it prints, and the others go on."""
    with redirect_stdout(sys.stderr):
        try:
            return task()
        except (Exception, SystemExit) as error:
            return _broken_unit(topic, unit, error)


def _result(topic: Topic, unit: str, task: Callable[[], UnitReport], future: Future) -> UnitReport:
    """Return what was found; if a process was killed, by this unit or another, ask again in a process of its own."""
    try:
        return future.result()
    except BrokenExecutor:
        try:
            with workers(2) as pool:  # one would be this very process
                return pool.submit(_apart, topic, unit, task).result()
        except BrokenExecutor:
            return _broken_unit(topic, unit, RuntimeError("the process that played it was killed"))


def _broken_unit(topic: Topic, unit: str, error: BaseException) -> UnitReport:
    return UnitReport(unit, 0.0, (replace(_broken(topic, error), chapter=unit),))


def _joined(topic: Topic, reports: list[UnitReport]) -> TopicReport:
    findings = [found for report in reports for found in report.findings]
    video = [report for report in reports if report.unit not in (LOOP, GIF)]
    seconds = sum(report.seconds for report in video)
    if not any(one.rule == PLAYS for report in video for one in report.findings):
        findings += check_length(topic.slug, _file(topic), seconds)
    return TopicReport(topic.slug, seconds, len(video), tuple(findings))


class _Silent:
    """A report of progress that tells nobody."""

    def begin(self, slug: str) -> None:
        pass

    def update(self, slug: str, done: float, total: float) -> None:
        pass

    def end(self, result: TopicResult) -> None:
        pass


def check_gif_of(topic: Topic, settings: tuple[str, ...] = ()) -> UnitReport:
    """Make the GIF of a topic's loop at low quality, as users do, and compare its colors with the color map."""
    quality = QUALITIES["l"]
    with tempfile.TemporaryDirectory() as folder:
        request = Request("gif", quality, settings=settings, jobs=1, out=Path(folder))
        (result,) = render((topic.slug,), request, _Silent())
        if result.error is not None:
            return UnitReport(GIF, 0.0, (_broken(topic, RuntimeError(result.error.splitlines()[-1])),))
        gif = next(path for path in result.files if path.suffix == ".gif")
        found = check_gif(_scene_of(topic), gif, loop_quality(quality).frame_rate, _trace(topic, settings))
        return UnitReport(GIF, 0.0, tuple(found))


def _scene_of(topic: Topic) -> type[TopicScene]:
    importlib.import_module(topic.module)
    return series.scene_class(topic.slug)


def _trace(topic: Topic, settings: tuple[str, ...]) -> TopicTrace | None:
    """Return a trace that no scene has had in its hands yet; None = the default one."""
    return numbers.trace_of(_scene_of(topic).core, settings) if settings else None


def _raised(recording: Recording, error: BaseException) -> Finding:
    """An error of a scene: a typed number, a value without an origin, or a mistake of another kind."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    rule = RULE if innermost.endswith("scenes/kit/traced.py") else PLAYS
    thing, line = type(error).__name__, recording.error_line
    return finding(recording, recording.seconds, thing, rule, _one_line(error), line)


def _broken(topic: Topic, error: BaseException) -> Finding:
    return Finding(topic.slug, _file(topic), 0, "", 0.0, type(error).__name__, PLAYS, _one_line(error))


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "ends the program"
    return " ".join(str(error).split()) or "has no message"


def _file(topic: Topic) -> str:
    return f"{topic.module.replace('.', '/')}.py"
