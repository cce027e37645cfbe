"""Units: the title card, a chapter, the loop. The piece of work, of cache and of parallelism."""

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from internals_math.sources import source_hash
from internals_math.tiny_lm.checkpoints import cache_folder
from internals_math.trace import digest

LOOP = "loop"


@dataclass(frozen=True)
class Quality:
    """Size and frame rate, named as Manim's -q flags."""

    name: str
    width: int
    height: int
    frame_rate: int


QUALITIES = {
    "l": Quality("l", 854, 480, 15),
    "m": Quality("m", 1280, 720, 30),
    "h": Quality("h", 1920, 1080, 60),
    "p": Quality("p", 2560, 1440, 60),
    "k": Quality("k", 3840, 2160, 60),
}
# A GIF's delays are whole hundredths of a second; 720p scales down to 640 wide without losing flat colors.
LOOP_QUALITIES = {"l": Quality("loop-l", 640, 360, 20)}
LOOP_QUALITY = Quality("loop", 1280, 720, 25)


@dataclass(frozen=True)
class UnitJob:
    """Everything a worker needs to render one unit."""

    slug: str
    unit: str
    theme: str
    quality: Quality
    trace_file: str
    key: str

    @property
    def video(self) -> Path:
        return unit_folder() / f"{self.key}.mp4"

    @property
    def facts_file(self) -> Path:
        return unit_folder() / f"{self.key}.json"


@dataclass(frozen=True)
class RenderedUnit:
    """A unit's video and what it says about itself."""

    unit: str
    video: Path
    duration: float
    captions: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    key_times: list[float]


def unit_folder() -> Path:
    """Return where rendered units are cached."""
    return cache_folder() / "units"


def unit_quality(quality: Quality, unit: str) -> Quality:
    """Return the size a unit is rendered at: loops have their own, made for GIFs."""
    return LOOP_QUALITIES.get(quality.name, LOOP_QUALITY) if unit == LOOP else quality


def unit_job(scene: type, trace_hash: str, unit: str, theme: str, quality: Quality, trace_file: Path) -> UnitJob:
    """Return the job of one unit; its key changes with everything that the picture depends on."""
    size = unit_quality(quality, unit)
    key = digest(
        trace_hash,
        source_hash(scene.__module__),
        unit,
        theme,
        json.dumps(asdict(size), sort_keys=True),
        version("manim"),
        version("llm-internals"),
        source_hash("scripts.pipeline.encode"),
    )
    return UnitJob(scene.slug(), unit, theme, size, str(trace_file), key)  # type: ignore[attr-defined]


def cached(job: UnitJob) -> RenderedUnit | None:
    """Return a unit that was rendered before; a missing, damaged or half-written one is None."""
    try:
        facts = json.loads(job.facts_file.read_text())
        if hashlib.sha256(job.video.read_bytes()).hexdigest() != facts.pop("sha256"):
            return None
        return RenderedUnit(video=job.video, **facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def render_unit(job: UnitJob) -> RenderedUnit:
    """Render one unit into the cache (in a worker process); written aside and renamed."""
    # imported here: a worker is the only place that needs Manim
    from manim import CairoRenderer, tempconfig

    from scenes import series
    from scenes.kit import theme
    from scenes.kit.camera import KitCamera
    from scripts.pipeline.encode import unit_writer

    unit_folder().mkdir(parents=True, exist_ok=True)
    theme.use(job.theme)
    scene_class = series.scene_class(job.slug)
    quality = job.quality
    with tempfile.TemporaryDirectory(dir=unit_folder(), prefix=f".part-{os.getpid()}-") as folder:
        aside = Path(folder) / "unit.mp4"
        settings = {
            "pixel_width": quality.width,
            "pixel_height": quality.height,
            "frame_rate": quality.frame_rate,
            "background_color": theme.BACKGROUND,
            "disable_caching": True,
            "verbosity": "ERROR",
            "progress_bar": "none",
            "media_dir": folder,
        }
        with tempconfig(settings):
            writer = unit_writer(aside, (quality.width, quality.height), quality.frame_rate, job.unit == LOOP)
            renderer = CairoRenderer(file_writer_class=writer, camera_class=KitCamera)
            trace = scene_class.core.Trace.load(Path(job.trace_file))
            scene = scene_class(renderer, trace=trace, unit=job.unit)
            scene.render()
        facts = {
            "unit": job.unit,
            "duration": renderer.file_writer.encoder.frames / quality.frame_rate,
            "captions": [asdict(caption) for caption in scene.captions],
            "ledger": scene.ledger,
            "key_times": scene.key_times,
        }
        digest_of_file = hashlib.sha256(aside.read_bytes()).hexdigest()
        aside.replace(job.video)
    words = job.facts_file.with_suffix(".json.part")
    words.write_text(json.dumps({**facts, "sha256": digest_of_file}))
    words.replace(job.facts_file)
    return RenderedUnit(video=job.video, **facts)


@contextmanager
def worker_pool(jobs: int) -> Iterator[Executor]:
    """Give a pool of warm processes; an interrupt ends them at once."""
    method = "fork" if hasattr(os, "fork") and os.uname().sysname == "Linux" else "spawn"
    pool = ProcessPoolExecutor(jobs, mp_context=get_context(method), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        _sweep()
        raise
    pool.shutdown()


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent decides what happens
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _sweep() -> None:
    """Remove what ended workers left half-written."""
    import shutil

    for folder in unit_folder().glob(".part-*"):
        shutil.rmtree(folder, ignore_errors=True)
