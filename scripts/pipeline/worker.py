"""What runs in a worker process: reading a topic's numbers, rendering a unit, making files. Imports torch and Manim.

Workers get and return plain data, so any `concurrent.futures` executor whose workers see the same folders will do.
"""

import gc
import importlib
import json
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from manim import tempconfig
from PIL import Image

from internals_math import trace_store
from scenes import series
from scenes.kit import theme
from scenes.kit.camera import DirectRenderer, KitCamera
from scenes.kit.traced import names_read
from scenes.series import Topic
from scripts.pipeline import outputs, units
from scripts.pipeline.encode import Encoder, UnitWriter, read_stills, require_encoder
from scripts.pipeline.errors import UserError, WrongUse
from scripts.pipeline.jobs import Failure, MadeFiles, Request, TopicPlan
from scripts.pipeline.quality import loop_quality
from scripts.pipeline.units import LOOP, RenderedUnit, UnitJob

LOOP_STILLS = 8
ALL_CHAPTERS = "all"


def start_worker() -> None:
    """Prepare a worker process: one thread of arithmetic, and an end together with whoever started it."""
    # A group of its own: Ctrl-C reaches the parent alone, and the parent ends the worker with the programs it runs.
    os.setpgrp()
    torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def attempt(task: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module or `outputs`; an error comes back as data, with its own traceback."""
    try:
        return task(*arguments)
    except WrongUse as error:
        return Failure(str(error), wrong_use=True)
    except UserError as error:
        return Failure(str(error))
    except Exception:
        return Failure(traceback.format_exc().strip())


def plan_topic(topic: Topic, request: Request, run: str) -> TopicPlan:
    """Read or compute a topic's numbers and list the units that are to be rendered.

    Raises:
        WrongUse: a setting or chapter that the topic does not have, or a value out of its range.
        UserError: the encoder that was asked for does not work on this machine.
    """
    if request.encoder != "x264":
        require_encoder(request.encoder)
    importlib.import_module(topic.module)
    scene = series.scene_class(topic.slug)
    try:
        config = scene.core.Config.parse(request.settings)
        names = select_units(scene, request)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    trace = trace_store.get(scene.core, config)
    provenance = trace_store.provenance(scene.core)
    made_with = json.dumps(provenance)
    trace_file = str(trace_store.stored_file(scene.core, config))
    place = (scene.__module__, scene.__name__)
    quality = request.quality
    jobs = []
    for name in names:
        lossless = name == LOOP or request.make == "gif"
        size = loop_quality(quality) if lossless else quality
        for theme_name in request.themes:
            encoder = request.encoder
            how: dict[str, Any] = {"encoder": encoder, "captions": request.captions}
            key = units.unit_key(topic, made_with, name, theme_name, size, lossless=lossless, **how)
            jobs.append(UnitJob(topic.slug, *place, name, theme_name, size, lossless, trace_file, key, run, **how))
    return TopicPlan(
        topic=topic,
        run=run,
        quality=quality,
        jobs=tuple(jobs),
        titles={unit.name: unit.title for unit in scene.units()},
        chapters=tuple(unit.name for unit in scene.chapter_units()),
        takeaway=scene.takeaway,
        loop_alt=scene.loop_alt,
        config=config.to_dict(),
        trace_hash=trace.hash,
        provenance=provenance,
    )


def select_units(scene: Any, request: Request) -> list[str]:
    """Return the units to render: what the wanted files need, or the chapters that were asked for.

    Raises:
        ValueError: no such chapter, or a GIF of a topic that has no loop.
    """
    chapters = [unit.name for unit in scene.chapter_units()]
    video = [unit.name for unit in scene.units()]
    loop = [LOOP] if scene.has_loop() else []
    if request.chapter is not None:
        if request.chapter.isdigit() and 1 <= int(request.chapter) <= len(chapters):
            return [chapters[int(request.chapter) - 1]]
        if request.chapter in video + loop:
            return [request.chapter]
        if request.chapter == ALL_CHAPTERS:
            return chapters
        numbered = ", ".join(f"{number} {name}" for number, name in enumerate(chapters, start=1))
        raise ValueError(f"{scene.slug()} has no chapter {request.chapter!r}; it has {numbered}, or all")
    if request.make == "gif":
        if not loop:
            raise ValueError(f"{scene.slug()} has no loop; choose a chapter with --chapter (1 to {len(chapters)})")
        return loop
    if not set(request.formats) & {"mp4", "captions", "sheet"} and loop:
        return loop
    return video + (loop if set(request.formats) - {"mp4", "captions"} else [])


def render_unit(job: UnitJob, fresh: bool) -> RenderedUnit:
    """Render one unit into the cache, or take it from there."""
    module = importlib.import_module(job.scene_module)
    scene_class = getattr(module, job.scene_class)
    trace = scene_class.core.Trace.load(Path(job.trace_file))
    found = None if fresh else units.load_unit(job.key, trace)
    if found is not None:
        return found
    gc.collect()  # Manim's scene, renderer and writer hold each other, and with them 200 MB of the last unit's encoder
    shutil.rmtree(job.aside, ignore_errors=True)
    job.aside.mkdir(parents=True)
    theme.use(job.theme)
    settings = {
        **job.quality.manim_settings(),
        "background_color": theme.BACKGROUND,
        # swept with what else this call leaves half-done
        "media_dir": str(job.aside.with_name(f"{job.aside.name}-manim")),
    }
    with tempconfig(settings):
        encoder = Encoder(job.aside / units.VIDEO, job.quality, lossless=job.lossless, encoder=job.encoder)
        renderer = DirectRenderer(
            file_writer_class=lambda given: UnitWriter(given, encoder, progress_note(job)),  # type: ignore[arg-type]
            camera_class=KitCamera,
        )
        scene = scene_class(renderer, trace=trace, unit=job.unit)
        scene.draws_captions = job.captions
        writer: UnitWriter = renderer.file_writer
        writer.scene = scene
        scene.render()
    (job.aside / units.PROGRESS_NOTE).unlink(missing_ok=True)
    key_times, stills = scene.key_times, writer.stills
    if job.unit == LOOP:  # a loop has no beats
        key_times = [encoder.seconds * k / LOOP_STILLS for k in range(LOOP_STILLS)]
        stills = read_stills(job.aside / units.VIDEO, key_times)
    elif not key_times and writer.last_frame is not None:
        key_times, stills = [encoder.seconds], [writer.last_frame]
    for index, still in enumerate(stills):
        _write_still(still, job.aside / units.still_name(index))
    facts = {
        "inputs": names_read(scene.trace),
        "seconds": encoder.seconds,
        "captions": [asdict(caption) for caption in scene.captions],
        "ledger": scene.ledger,
        "key_times": key_times,
    }
    units.keep_unit(job, trace, facts)
    rendered = units.load_unit(job.key, trace, reused=False)
    if rendered is None:
        raise UserError(f"the cache {units.unit_folder()} did not keep {job.slug}, {job.unit}; is the disk full?")
    return rendered


def progress_note(job: UnitJob) -> Callable[[float], None]:
    """Return a function that notes, a few times a second, how much of a unit is done, where the parent looks."""
    last = 0.0
    note = job.aside / units.PROGRESS_NOTE

    def write(seconds: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.3:
            last = time.monotonic()
            note.write_text(f"{seconds:.2f}")

    return write


def make_files(plan: TopicPlan, request: Request, theme_name: str, rendered: list[RenderedUnit]) -> MadeFiles:
    """Make what was asked for of a topic's rendered units, in one theme."""
    make = {
        "topic": outputs.write_topic,
        "clip": outputs.write_clips,
        "sheet": outputs.write_sheet_and_stills,
        "gif": outputs.write_loops,
    }[request.make]
    return make(plan, request, theme_name, rendered)


def _write_still(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(pixels[..., :3])).save(path, compress_level=1)
