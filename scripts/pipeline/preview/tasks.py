"""What a leaf does: it imports the topic as it is now, and sends what it finds as messages of plain data."""

import importlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from internals_math import progress, trace_store
from scenes import series
from scripts.pipeline import units, worker
from scripts.pipeline.errors import UserError, WrongUse
from scripts.pipeline.jobs import Request
from scripts.pipeline.preview.forks import Channel, is_as_saved
from scripts.pipeline.preview.form import form_of
from scripts.pipeline.preview.mistakes import describe
from scripts.pipeline.preview.moment import Outline, Text, play_to
from scripts.pipeline.preview.view import View
from scripts.pipeline.quality import QUALITIES
from scripts.pipeline.units import ENDING, LOOP, OPENING, PROGRESS_NOTE, RenderedUnit, UnitJob


def look(channel: Channel, began: float, view: View) -> None:
    """Draw the watched moment, then say of each unit whether it is rendered, and outline those that are not."""
    scene, trace = _topic(channel, view)
    pieces = _pieces(scene)
    names: list[str] = [piece["name"] for piece in pieces]
    watched = view.unit if view.unit in names else names[0]
    channel.send({"kind": "units", "units": pieces, "form": form_of(trace.config)})
    _outline(channel, scene, trace, view, watched, view.time)
    os.nice(5)  # the picture is there; what follows leaves the cores to other work
    stale = []
    for unit in [watched, *(name for name in names if name != watched)]:
        job = _job(scene, trace, view, unit, run="")
        found = units.load_unit(job.key, trace)
        version = f"{job.key}-{trace.hash}"
        channel.send({"kind": "planned", "unit": unit, "version": version, "rendered": _facts(found)})
        if found is None and unit != watched:
            stale.append(unit)
    os.nice(5)
    for unit in stale:
        _outline(channel, scene, trace, view, unit, None)


def still(channel: Channel, began: float, view: View) -> None:
    """Draw one moment."""
    scene, trace = _topic(channel, view)
    _outline(channel, scene, trace, view, view.unit or OPENING, view.time)


def render(channel: Channel, began: float, view: View, unit: str, run: str) -> None:
    """Render one unit into the cache, or take it from there; one that nobody watches leaves the cores to others."""
    os.nice(0 if unit == view.unit else 10)
    scene, trace = _topic(channel, view)
    job = _job(scene, trace, view, unit, run)
    if not is_as_saved(began):
        return  # the key would name other code than what is drawn; the server has been told of the save
    channel.send({"kind": "note", "file": str(job.aside / PROGRESS_NOTE)})
    rendered = worker.render_unit(job, False)
    version = f"{job.key}-{trace.hash}"
    channel.send({"kind": "rendered", "unit": unit, "version": version, "rendered": _facts(rendered)})
    units.prune(units.cache_limit(), keep=[rendered.folder.name])


def export(channel: Channel, began: float, view: View, unit: str, run: str, out: str) -> None:
    """Make the GIF of one unit in the output folder."""
    os.nice(5)
    _topic(channel, view)
    chapter = None if unit == LOOP else unit
    themes, formats = (view.theme,), ("gif",)
    request = Request("gif", QUALITIES["h"], themes, view.settings, chapter, formats, 1, Path(out))
    plan = worker.plan_topic(series.find(view.slug), request, run)
    if not is_as_saved(began):
        raise UserError("the sources were saved while the GIF was begun; export it again")
    channel.send({"kind": "note", "file": str(plan.jobs[0].aside / PROGRESS_NOTE)})
    rendered = worker.render_unit(plan.jobs[0], False)
    made = worker.make_files(plan, request, view.theme, [rendered])
    channel.send({"kind": "made", "files": [str(path) for path in made.files]})


def _topic(channel: Channel, view: View) -> tuple[Any, Any]:
    """Return the topic's scene class as it is saved now, and its numbers, computed if need be.

    Raises:
        WrongUse: a setting that the topic does not have, or a value out of its range.
    """
    torch.set_num_threads(1)
    importlib.import_module(view.module)
    scene = series.scene_class(view.slug)
    try:
        config = scene.core.Config.parse(view.settings)
    except ValueError as error:
        channel.send({"kind": "refused", "message": str(error)})
        raise WrongUse(str(error)) from error

    def tell(title: str, done: int, total: int) -> None:
        channel.send({"kind": "tracing", "title": title, "share": done / max(total, 1)})

    with progress.listening(tell):
        return scene, trace_store.get(scene.core, config)


def _pieces(scene: Any) -> list[dict[str, Any]]:
    """Return what can be watched, in the order of the video; the loop comes last."""
    kinds = {OPENING: "card", ENDING: "card"}
    pieces = [
        {"name": unit.name, "title": unit.title, "sentence": unit.sentence, "kind": kinds.get(unit.name, "chapter")}
        for unit in scene.units()
    ]
    if scene.has_loop():
        pieces.append({"name": LOOP, "title": "Loop", "sentence": scene.loop_alt, "kind": LOOP})
    return pieces


def _outline(channel: Channel, scene: Any, trace: Any, view: View, unit: str, time: float | None) -> None:
    """Send the still of a moment, then what the unit says about itself; or why it cannot be played."""

    def send(pixels: np.ndarray, texts: list[Text]) -> None:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels[..., :3])).save(file, "PNG", compress_level=1)
        channel.send({"kind": "still", "unit": unit, "time": time, "picture": file.getvalue(), "texts": texts})

    try:
        outline = play_to(scene, trace, unit, time, view.still_size, view.theme, send)
    except Exception as error:
        channel.send({"kind": "error", "unit": unit, **describe(error)})
    else:
        channel.send({"kind": "outline", "unit": unit, "facts": asdict(outline)})


def _job(scene: Any, trace: Any, view: View, unit: str, run: str) -> UnitJob:
    """Return the job that renders a unit of this scene."""
    topic, core = series.find(view.slug), scene.core
    made_with = json.dumps(trace_store.provenance(core))
    key = units.unit_key(topic, made_with, unit, view.theme, view.quality, lossless=False)
    file = str(trace_store.stored_file(core, trace.config))
    place = (view.slug, scene.__module__, scene.__name__)
    return UnitJob(*place, unit, view.theme, view.quality, False, file, key, run)


def _facts(unit: RenderedUnit | None) -> dict[str, Any] | None:
    """Return what the server keeps of a rendered unit."""
    if unit is None:
        return None
    facts = Outline(unit.seconds, unit.captions, unit.ledger, unit.key_times)
    return {"folder": str(unit.folder), "facts": asdict(facts)}
