"""Units: the title card, a chapter, the end card, the loop. The piece of work, of cache and of parallelism.

A rendered unit is a folder of the cache: its video, the stills of its key times, and unit.json with what the scene
said about itself. The name of the folder is two hashes of everything the picture depends on: of the code, theme and
quality (the unit's key), and of those fields of the Trace that the unit read while it was played (its inputs). So a
changed parameter renders only the units that show something it has changed.
"""

import ast
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internals_math.sources import ROOT, source_files, source_hash
from internals_math.storage import cache_folder
from scenes.series import Topic
from scripts.pipeline.errors import UserError
from scripts.pipeline.files import file_hash, part_prefix
from scripts.pipeline.quality import Quality
from scripts.pipeline.sizes import read_size

if TYPE_CHECKING:  # the parent process does without torch
    from internals_math.trace import TopicTrace

OPENING, ENDING, LOOP = "opening", "ending", "loop"
VIDEO, FACTS, PROGRESS_NOTE = "video.mp4", "unit.json", "progress"
CACHE_LIMIT_BYTES = 8_000_000_000


@dataclass(frozen=True)
class UnitJob:
    """Everything a worker needs to render one unit, on any machine that sees the same cache folder."""

    slug: str
    scene_module: str
    scene_class: str
    unit: str
    theme: str
    quality: Quality
    lossless: bool
    trace_file: str
    key: str  # of the code, theme and quality; the inputs are known when it has been played
    run: str  # which call of the pipeline wants it; names what is half-written
    encoder: str = "x264"
    captions: bool = True  # drawn into the picture

    @property
    def aside(self) -> Path:
        """The folder the unit is written into before it is whole."""
        return unit_folder() / f"{part_prefix(self.run)}{self.key}"


@dataclass(frozen=True)
class RenderedUnit:
    """A unit's folder and what the scene said about it; times are seconds from the start of the unit."""

    topic: str
    unit: str
    folder: Path
    inputs: list[str]  # names of the fields of the Trace that it read
    seconds: float
    captions: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    key_times: list[float]
    reused: bool = False

    @property
    def video(self) -> Path:
        return self.folder / VIDEO

    @property
    def stills(self) -> list[Path]:
        """One PNG for each key time."""
        return [self.folder / still_name(index) for index in range(len(self.key_times))]


def unit_folder() -> Path:
    """Return where rendered units are cached."""
    return cache_folder() / "units"


def still_name(index: int) -> str:
    """Return the file name of the picture at a key time."""
    return f"still-{index:02d}.png"


def unit_key(
    topic: Topic,
    provenance: str,
    unit: str,
    theme: str,
    quality: Quality,
    *,
    lossless: bool,
    encoder: str = "x264",
    captions: bool = True,
) -> str:
    """Return a hash of everything a unit's picture depends on but the values of the Trace."""
    parts = [
        provenance if unit == ENDING else "",  # the end card shows it
        [topic.slug, topic.title],
        unit_source(topic.module, unit),
        source_hash("scripts.pipeline.encode"),
        unit,
        theme,
        asdict(quality),
        lossless,
        "" if lossless else encoder,
        captions or unit == LOOP,  # a loop has none
        [version(name) for name in ("manim", "av", "llm-internals")],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def unit_source(scene_module: str, unit: str) -> str:
    """Return a hash of the code that draws one unit: all project modules behind the scene, and the scene's own file
    without its comments and without the other chapters, unless they are called. A new topic in the registry changes
    nothing for the others."""
    scene_file = Path(*scene_module.split(".")).with_suffix(".py").as_posix()
    digest = hashlib.sha256()
    for path in source_files(scene_module):
        name = path.relative_to(ROOT).as_posix()
        if name == "scenes/series.py":
            continue
        code = code_of_unit(path.read_text(), unit).encode() if name == scene_file else path.read_bytes()
        digest.update(name.encode() + b"\0" + code + b"\0")
    return digest.hexdigest()


def code_of_unit(source: str, unit: str) -> str:
    """Return a scene file's code without the chapters (and the loop) that `unit` does not play or call."""
    tree = ast.parse(source)
    played = {
        node.name: (owner, node)
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and (kind := _kind(node)) and unit not in (node.name, kind)
    }
    for owner, node in played.values():
        owner.body.remove(node)
    while called := [name for name in played if name in _names(tree)]:
        for name in called:
            owner, node = played.pop(name)
            owner.body.append(node)
    return ast.dump(tree)


def _kind(node: ast.FunctionDef) -> str | None:
    """Return "chapter" or "loop" if a method is decorated as one."""
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id in ("chapter", LOOP):
            return name.id
    return None


def _names(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def load_unit(key: str, trace: "TopicTrace", *, reused: bool = True) -> RenderedUnit | None:
    """Return the unit of the cache that was rendered from the same values; a missing, damaged or half-written one is
    None."""
    found = (_load(folder, trace, reused) for folder in sorted(unit_folder().glob(f"{key}-*")))
    return next((unit for unit in found if unit is not None), None)


def _load(folder: Path, trace: "TopicTrace", reused: bool) -> RenderedUnit | None:
    try:
        facts = json.loads((folder / FACTS).read_text())
        if folder.name.rpartition("-")[2] != trace.hash_of(facts["inputs"]):
            return None
        for name, expected in facts.pop("files").items():
            if file_hash(folder / name) != expected:
                return None
        os.utime(folder)  # used now: pruned last
        return RenderedUnit(folder=folder, reused=reused, **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_unit(job: UnitJob, trace: "TopicTrace", facts: dict[str, Any]) -> None:
    """Put a unit that was written aside into the cache, whole or not at all."""
    files = {path.name: file_hash(path) for path in sorted(job.aside.iterdir())}
    facts = {"topic": job.slug, "unit": job.unit, **facts, "files": files}
    (job.aside / FACTS).write_text(json.dumps(facts))
    target = unit_folder() / f"{job.key}-{trace.hash_of(facts['inputs'])}"
    shutil.rmtree(target, ignore_errors=True)
    job.aside.replace(target)


@dataclass(frozen=True)
class CachedUnit:
    """An entry of the cache as `llm-internals cache` shows it."""

    topic: str  # "" if its facts cannot be read: it will be rendered again
    unit: str
    folder: Path
    bytes: int
    used: float  # time of last use, seconds since 1970


def cached_units() -> list[CachedUnit]:
    """Return all entries of the cache, the longest unused first."""
    found = []
    for folder in unit_folder().glob("[!.]*"):
        try:
            size, used = sum(file.stat().st_size for file in folder.iterdir()), folder.stat().st_mtime
        except OSError:
            continue  # gone since: another call prunes too
        try:
            facts = json.loads((folder / FACTS).read_text())
            topic, unit = str(facts["topic"]), str(facts["unit"])
        except (OSError, ValueError, KeyError, TypeError):
            topic, unit = "", ""
        found.append(CachedUnit(topic, unit, folder, size, used))
    return sorted(found, key=lambda unit: unit.used)


def cache_limit() -> int:
    """Return how many bytes of units are kept; LLM_INTERNALS_CACHE_LIMIT sets it, as in 500MB or 20GB.

    Raises:
        UserError: it is set to something else.
    """
    text = os.environ.get("LLM_INTERNALS_CACHE_LIMIT")
    try:
        return read_size(text) if text else CACHE_LIMIT_BYTES
    except ValueError as error:
        raise UserError(f"LLM_INTERNALS_CACHE_LIMIT: {error}") from error


def prune(limit: int, *, keep: Iterable[str] = ()) -> list[CachedUnit]:
    """Remove the units that were not used for longest until the cache is below `limit` bytes; returns them.

    Args:
        limit: bytes, >= 0.
        keep: names of folders that stay whatever the limit; they do count.
    """
    entries, kept = cached_units(), set(keep)
    total, gone = sum(entry.bytes for entry in entries), []
    for entry in entries:
        if total > limit and entry.folder.name not in kept:
            total -= entry.bytes
            gone.append(entry)
    return remove(gone)


def remove(entries: Sequence[CachedUnit]) -> list[CachedUnit]:
    """Remove entries of the cache and return them."""
    for entry in entries:
        shutil.rmtree(entry.folder, ignore_errors=True)
    return list(entries)
