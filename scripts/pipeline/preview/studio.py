"""What a preview does: after a save or another choice it draws the watched moment, then renders what is stale.

Each unit is compared with the cache; rendering begins with the watched unit and goes on with those that follow. Work
on what has become stale is ended. Without a page no process is kept.
"""

import asyncio
import itertools
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scenes import series
from scripts.pipeline import units
from scripts.pipeline.files import sweep
from scripts.pipeline.preview.listeners import Listener
from scripts.pipeline.preview.mistakes import plain
from scripts.pipeline.preview.processes import Process, Processes
from scripts.pipeline.preview.view import View
from scripts.pipeline.quality import QUALITIES

FRESH, STALE, RENDERING, FAILED = "fresh", "stale", "rendering", "failed"
KEPT_STILLS = 24
LOOK_EVERY_SECONDS = 0.3
SLEEP_AFTER_SECONDS = 5.0  # without a page
USUAL_SECONDS = 14.0  # of a unit that nothing is known about
DIED = "a worker process has died; its last words are in the terminal (out of memory?)"


@dataclass
class Unit:
    """A piece of the video: what is known of it, and its last good video."""

    name: str
    title: str
    sentence: str
    kind: str  # "card", "chapter" or "loop"
    state: str = STALE
    version: str | None = None  # of its sources and numbers as they are now
    facts: dict[str, Any] = field(default_factory=lambda: {"seconds": None, "captions": [], "ledger": []})
    facts_number: int = 0  # rises with every change of the facts
    folder: Path | None = None  # of the last good video
    share: float = 0.0  # of its render that is done
    error: dict[str, Any] | None = None
    judged_in: int | None = None  # the generation in which it was last compared with the cache
    broken_in: int | None = None  # the generation in which playing it raised

    @property
    def seconds(self) -> float:
        return self.facts["seconds"] or USUAL_SECONDS

    def learn(self, facts: dict[str, Any]) -> None:
        if facts != self.facts:
            self.facts, self.facts_number = facts, self.facts_number + 1

    def take(self, rendered: dict[str, Any]) -> None:
        """Show what was rendered."""
        self.folder, self.state, self.error, self.share = Path(rendered["folder"]), FRESH, None, 1.0
        self.learn(rendered["facts"])

    def fail(self, error: dict[str, Any]) -> None:
        self.state, self.error = FAILED, error

    def to_dict(self, generation: int) -> dict[str, Any]:
        """Return what a list of chapters shows; captions and ledger are asked for one by one."""
        about = {name: getattr(self, name) for name in ("name", "title", "sentence", "kind", "state", "error")}
        video = f"video/{self.folder.name}" if self.folder is not None else None
        seconds = self.facts["seconds"]
        about |= {"seconds": seconds, "facts": self.facts_number, "share": round(self.share, 2), "video": video}
        return {**about, "judged": self.judged_in == generation}


@dataclass(eq=False)
class Job:
    """Work of a leaf."""

    task_name: str  # in the module `tasks`
    unit: str | None = None
    version: str | None = None  # what it renders
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # names what it has not finished
    note: Path | None = None  # where it writes how many seconds are done
    process: Process | None = None
    follower: asyncio.Task[None] | None = None

    def kill(self) -> None:
        """End it, and sweep away what it has not finished."""
        if self.follower is not None:
            self.follower.cancel()
        if self.process is not None:
            self.process.kill()
        sweep(units.unit_folder(), self.run)

    def seconds_done(self) -> float:
        try:
            return float(self.note.read_text()) if self.note is not None else 0.0
        except (OSError, ValueError):
            return 0.0


class Studio:
    """One preview. Everything happens in one event loop."""

    def __init__(self, view: View, out: Path, renders: int) -> None:
        self.view = view
        self.out = out
        self.renders = renders  # at a time
        self.generation = 0  # rises with every save and choice
        self.units: dict[str, Unit] = {}
        self.form: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None  # of the sources, not of one unit
        self.refused: str | None = None  # why a setting was not taken
        self.note: str | None = "Warming up"
        self.gif: dict[str, Any] | None = None
        self.stills: OrderedDict[str, bytes] = OrderedDict()  # PNG files by name
        self.files: set[str] = set()  # that the topic is made of
        self._processes = Processes(view.module)
        self._numbers = itertools.count(1)
        self._drawing: tuple[str | None, float] | None = None  # the moment that is being drawn after a change
        self._look: Job | None = None
        self._still: Job | None = None
        self._export: Job | None = None
        self._renders: dict[str, Job] = {}  # under way, by unit
        self._listeners: set[Listener] = set()
        self._asleep = False
        self._falling_asleep: asyncio.TimerHandle | None = None
        self._ticker: asyncio.Task[None] | None = None

    # -- what happens -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start working."""
        self._ticker = asyncio.create_task(self._tick())
        self._look_again()

    async def close(self) -> None:
        """End all work and leave nothing behind."""
        if self._ticker is not None:
            self._ticker.cancel()
        self._kill_all()
        self.hang_up()
        await self._processes.close()

    def saved(self, files: set[str]) -> None:
        """Heed that source files were written; those of other topics change nothing."""
        if self.error is None and self.files and not files & self.files:
            return
        self._processes.forget(files)
        self._look_again()

    def choose(self, *, theme: str, quality: str, settings: tuple[str, ...]) -> None:
        """Draw everything in another theme, size or setting."""
        view = replace(self.view, theme=theme, quality_name=quality, settings=settings)
        if view != self.view:
            self.view = view
            self._look_again()

    def watch(self, unit: str, time: float, *, draw: bool) -> None:
        """Note which moment the page shows, and draw it if the page has no picture of it."""
        if unit not in self.units:
            return
        self.view = replace(self.view, unit=unit, time=time)
        if draw and self._drawing != (unit, time) and not self._asleep:
            if self._still is not None:
                self._still.kill()
            self._still = self._start(Job("still"), self.view)
        self._render_stale()

    def export(self, unit: str) -> bool:
        """Make a GIF of a unit; return whether it was begun: there is one at a time."""
        if unit not in self.units or self._export is not None:
            return False
        command = self.view.gif_command(unit)
        self.gif = {"unit": unit, "state": RENDERING, "share": 0.0, "command": command, "files": [], "error": None}
        job = self._export = Job("export", unit)
        self._start(job, self.view, unit, job.run, str(self.out))
        self._tell()
        return True

    # -- who listens ------------------------------------------------------------------------------------------------

    def listen(self) -> Listener:
        """Return a page's ear; the preview wakes up for it."""
        listener = Listener()
        self._listeners.add(listener)
        if self._falling_asleep is not None:
            self._falling_asleep.cancel()
            self._falling_asleep = None
        if self._asleep:
            self._asleep = False
            self._look_again()
        listener.tell()
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Let a page go; without any, the processes end after a while."""
        self._listeners.discard(listener)
        if not self._listeners and self._falling_asleep is None:
            self._falling_asleep = asyncio.get_running_loop().call_later(SLEEP_AFTER_SECONDS, self._fall_asleep)

    def hang_up(self) -> None:
        """End the streams of events."""
        for listener in self._listeners:
            listener.close()

    def state(self) -> dict[str, Any]:
        """Return what the page shows, as plain data."""
        topic, view = series.find(self.view.slug), self.view
        return {
            "topic": {"slug": topic.slug, "title": topic.title, "tagline": topic.tagline},
            "generation": self.generation,
            "watched": {"unit": view.unit, "time": view.time},
            "theme": view.theme,
            "quality": view.quality_name,
            "qualities": [{"name": name, "label": str(size)} for name, size in QUALITIES.items()],
            "frame_rate": view.quality.frame_rate,
            "settings": list(view.settings),
            "form": self.form,
            "units": [unit.to_dict(self.generation) for unit in self.units.values()],
            "error": self.error,
            "refused": self.refused,
            "note": self.note,
            "gif": self.gif,
            "command": view.render_command(),
        }

    def _tell(self, still: dict[str, Any] | None = None) -> None:
        for listener in self._listeners:
            listener.tell(still)

    def _fall_asleep(self) -> None:
        self._falling_asleep = None
        self._asleep = True
        self._kill_all()
        self._stopping = asyncio.create_task(self._processes.stop())

    # -- the work ---------------------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """Begin anew after a change: what is drawn, then what is stale."""
        self.generation += 1
        for job in (self._look, self._still):
            if job is not None:
                job.kill()
        self._look = self._still = None
        if not self._asleep:
            self._drawing = (self.view.unit, self.view.time)
            self._look = self._start(Job("look"), self.view)
        self._tell()

    def _start(self, job: Job, *arguments: Any) -> Job:
        """Order a leaf and follow what it says."""
        job.follower = asyncio.create_task(self._follow(job, arguments))
        return job

    async def _follow(self, job: Job, arguments: tuple[Any, ...]) -> None:
        generation = self.generation
        job.process = await self._processes.leaf(job.task_name, *arguments)
        kind = None
        async for message in job.process.messages():
            kind = message.pop("kind")
            heed: Callable[..., None] = getattr(self, f"_heed_{kind}")
            heed(job, generation == self.generation, **message)
            self._tell()
        if kind not in ("end", "error"):
            self._heed_error(job, generation == self.generation, None, **plain(DIED))
        if job is self._export:
            self._export = None
        if job.unit is not None and self._renders.get(job.unit) is job:
            del self._renders[job.unit]
            self._render_stale()
        self._tell()

    def _render_stale(self) -> None:
        """Start the renders that there is room for: the watched unit, which never waits, then those that follow it."""
        if self._asleep or self.error is not None or self.refused is not None:
            return
        names = list(self.units)
        first = names.index(self.view.unit) if self.view.unit in names else 0
        for name in names[first:] + names[:first]:
            unit = self.units[name]
            if len(self._renders) >= self.renders and name != self.view.unit:
                return
            if unit.state == STALE and unit.version is not None and name not in self._renders:
                unit.state, unit.share = RENDERING, 0.0
                job = self._renders[name] = Job("render", name, unit.version)
                self._start(job, self.view, name, job.run)

    def _stop_render(self, name: str) -> None:
        job = self._renders.pop(name, None)
        if job is not None:
            job.kill()
            if name in self.units and self.units[name].state == RENDERING:
                self.units[name].state = STALE

    def _kill_all(self) -> None:
        for name in list(self._renders):
            self._stop_render(name)
        for job in (self._look, self._still, self._export):
            if job is not None:
                job.kill()
        if self._export is not None and self.gif is not None:
            self.gif |= {"state": FAILED, "error": "it was stopped: no page was open"}
        self._look = self._still = self._export = None

    async def _tick(self) -> None:
        """Look how far the renders are."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            for name, job in self._renders.items():
                unit = self.units[name]
                unit.share = min(job.seconds_done() / unit.seconds, 0.99)
            if self._export is not None and self.gif is not None:
                seconds = self.units[self.gif["unit"]].seconds if self.gif["unit"] in self.units else USUAL_SECONDS
                self.gif["share"] = round(min(self._export.seconds_done() / seconds, 0.99), 2)
            if self._renders or self._export is not None:
                self._tell()

    # -- what leaves say --------------------------------------------------------------------------------------------

    def _heed_files(self, job: Job, is_current: bool, files: list[str]) -> None:
        self.files |= set(files)

    def _heed_tracing(self, job: Job, is_current: bool, title: str, share: float) -> None:
        self.note = f"{title}: {share:.0%}"

    def _heed_refused(self, job: Job, is_current: bool, message: str) -> None:
        if is_current:
            self.refused, self.note = message, None

    def _heed_units(self, job: Job, is_current: bool, units: list[dict[str, Any]], form: list[dict[str, Any]]) -> None:
        """Take over what there is to watch: the sources could be read, and the numbers are there."""
        before, self.units = self.units, {}
        for about in units:
            unit = self.units[about["name"]] = before.get(about["name"]) or Unit(**about)
            unit.title, unit.sentence, unit.kind = about["title"], about["sentence"], about["kind"]
        for name in set(self._renders) - set(self.units):
            self._stop_render(name)
        self.form, self.error, self.refused, self.note = form, None, None, None

    def _heed_still(self, job: Job, is_current: bool, unit: str, time: float, picture: bytes, texts: list[Any]) -> None:
        if not is_current:
            return
        if job is self._look:
            self._drawing = None
        name = f"{next(self._numbers)}.png"
        self.stills[name] = picture
        while len(self.stills) > KEPT_STILLS:
            self.stills.popitem(last=False)
        self._tell({"generation": self.generation, "unit": unit, "time": time, "url": f"still/{name}", "texts": texts})

    def _heed_outline(self, job: Job, is_current: bool, unit: str, facts: dict[str, Any]) -> None:
        if is_current and unit in self.units:
            self.units[unit].error = None
            self.units[unit].learn(facts)

    def _heed_planned(
        self, job: Job, is_current: bool, unit: str, version: str, rendered: dict[str, Any] | None
    ) -> None:
        """Take over how a unit compares with the cache."""
        if not is_current:
            return
        piece = self.units[unit]
        if unit in self._renders and self._renders[unit].version != version:
            self._stop_render(unit)
        piece.version, piece.judged_in = version, self.generation
        if rendered is not None:
            piece.take(rendered)
        elif unit not in self._renders:
            piece.state = FAILED if piece.broken_in == self.generation else STALE
        self._render_stale()

    def _heed_note(self, job: Job, is_current: bool, file: str) -> None:
        job.note = Path(file)

    def _heed_rendered(self, job: Job, is_current: bool, unit: str, version: str, rendered: dict[str, Any]) -> None:
        if unit in self.units and self.units[unit].version == version:
            self.units[unit].take(rendered)

    def _heed_made(self, job: Job, is_current: bool, files: list[str]) -> None:
        if self.gif is not None:
            made = [{"name": Path(file).name, "path": file, "bytes": Path(file).stat().st_size} for file in files]
            self.gif |= {"state": FRESH, "share": 1.0, "files": made}

    def _heed_error(self, job: Job, is_current: bool, unit: str | None, **error: Any) -> None:
        """Show what went wrong where it belongs: at the export, at a unit, or at the sources as a whole."""
        if job.task_name == "export":
            if self.gif is not None:
                self.gif |= {"state": FAILED, "error": error["message"]}
        elif job.task_name == "render":
            if job.unit in self.units and self.units[job.unit].version == job.version:
                self.units[job.unit].fail(error)
        elif not is_current or self.refused is not None:
            return
        elif unit is not None:
            self._stop_render(unit)
            self.units[unit].fail(error)
            self.units[unit].broken_in = self.generation
        else:
            self.error, self.note = error, None
            for name in list(self._renders):
                self._stop_render(name)
            for piece in self.units.values():
                piece.state = STALE
        if job is self._look:
            self._drawing = None

    def _heed_end(self, job: Job, is_current: bool) -> None:
        pass
