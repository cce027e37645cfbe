"""From rendered units to what a user finds in the output folder; every file is written aside and renamed."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from internals_math import trace_store
from internals_math.sources import source_hash
from scenes import series
from scenes.kit import theme as kit_theme
from scripts.pipeline import captions, ffmpeg, gif
from scripts.pipeline.captions import Cue
from scripts.pipeline.encode import read_stills
from scripts.pipeline.errors import UserError
from scripts.pipeline.sheet import Still, write_sheet
from scripts.pipeline.units import LOOP, Quality, RenderedUnit

FORMATS = ("mp4", "captions", "gif", "webp", "loop", "poster", "sheet")


@dataclass(frozen=True)
class Plan:
    """What one topic's outputs are made of."""

    scene: Any
    trace: Any
    quality: Quality
    formats: tuple[str, ...]
    folder: Path


def suffix(theme: str) -> str:
    """Return what a theme adds to a file's name: nothing for dark, "-light" for light."""
    return "" if theme == "dark" else f"-{theme}"


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` can be written to; makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error


def write_outputs(plan: Plan, theme: str, units: Sequence[RenderedUnit]) -> list[Path]:
    """Write a topic's files in one theme and return their paths; the manifest comes last."""
    kit_theme.use(theme)
    plan.folder.mkdir(parents=True, exist_ok=True)
    video = [unit for unit in units if unit.unit != LOOP]
    loop = next((unit for unit in units if unit.unit == LOOP), None)
    topic = series.find(plan.scene.slug())
    chapters, cues, ledger = timeline(plan.scene, video)
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix=".part-") as name:
        aside = Path(name)
        if "mp4" in plan.formats or "captions" in plan.formats:
            _write_words(aside, topic, chapters, cues)
        if "mp4" in plan.formats:
            metadata = aside / "chapters.ffmetadata"
            metadata.write_text(captions.to_ffmetadata(chapters, topic.title))
            target = aside / f"{topic.slug}{suffix(theme)}.mp4"
            ffmpeg.join([unit.video for unit in video], aside / f"{topic.slug}.srt", metadata, target)
            metadata.unlink()
        if loop is not None:
            _write_loop(aside, loop, theme, plan.formats)
        elif "poster" in plan.formats:
            last = video[-2] if len(video) > 1 else video[-1]
            still = read_stills(last.video, last.key_times[-1:])[0]
            Image.fromarray(still).save(aside / f"poster{suffix(theme)}.png", optimize=True)
        if "sheet" in plan.formats:
            write_sheet(list(stills_of(units)), aside / f"sheet{suffix(theme)}.png")
        files = sorted(path for path in aside.iterdir() if path.is_file())
        finished = [path.replace(plan.folder / path.name) for path in files]
    manifest = plan.folder / "manifest.json"
    _write_manifest(manifest, plan, theme, finished, chapters, cues, ledger, loop)
    return [*finished, manifest]


def timeline(scene: Any, units: Sequence[RenderedUnit]) -> tuple[list[Cue], list[Cue], list[dict[str, Any]]]:
    """Return chapters, captions and ledger of joined units, in seconds from the start of the video."""
    titles = {unit.name: unit.title for unit in scene.units()}
    chapters, cues, ledger, start = [], [], [], 0.0
    for unit in units:
        chapters.append(Cue(start, start + unit.duration, titles.get(unit.unit, unit.unit)))
        cues += [Cue(start + c["start"], start + c["end"], c["text"]) for c in unit.captions]
        shifted = {"start": start, "end": start}
        for entry in unit.ledger:
            times = {name: round(entry[name] + offset, 3) for name, offset in shifted.items()}
            ledger.append({"chapter": unit.unit, **entry, **times})
        start += unit.duration
    return chapters, cues, ledger


def stills_of(units: Sequence[RenderedUnit]) -> Sequence[Still]:
    """Return the key frames of all units; a loop gives eight even ones."""
    stills: list[Still] = []
    start = 0.0
    for unit in units:
        times = unit.key_times
        if unit.unit == LOOP:
            times = [unit.duration * k / 8 for k in range(8)]
        offset = 0.0 if unit.unit == LOOP else start
        # a hair earlier: the key time is the moment at which the next beat begins
        shown = [max(0.0, time - 0.05) for time in times]
        pictures = read_stills(unit.video, shown)
        stills += [Still(unit.unit, offset + time, p) for time, p in zip(shown, pictures, strict=True)]
        start += unit.duration
    return stills


def clip_path(folder: Path, slug: str, unit: str, theme: str) -> Path:
    """Return the name of a chapter rendered alone."""
    return folder / f"{slug}-{unit}{suffix(theme)}.mp4"


def copy_aside(source: Path, target: Path) -> Path:
    """Copy a file so that the target is whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, aside)
    return aside.replace(target)


def _write_words(folder: Path, topic: series.Topic, chapters: list[Cue], cues: list[Cue]) -> None:
    (folder / f"{topic.slug}.vtt").write_text(captions.to_vtt(cues))
    (folder / f"{topic.slug}.srt").write_text(captions.to_srt(cues))
    (folder / "chapters.vtt").write_text(captions.to_vtt(chapters))
    (folder / "transcript.md").write_text(captions.to_transcript(topic.title, topic.tagline, chapters, cues))


def _write_loop(folder: Path, loop: RenderedUnit, theme: str, formats: Sequence[str]) -> None:
    tail = suffix(theme)
    if "gif" in formats:
        gif.write_gif(loop.video, folder / f"loop{tail}.gif")
    if "webp" in formats:
        gif.write_webp(loop.video, folder / f"loop{tail}.webp")
    if "loop" in formats:
        gif.write_loop_mp4(loop.video, folder / f"loop{tail}.mp4")
    if "poster" in formats:
        still = read_stills(loop.video, [0.55 * loop.duration])[0]
        Image.fromarray(still).save(folder / f"poster{tail}.png", optimize=True)


def _write_manifest(
    path: Path,
    plan: Plan,
    theme: str,
    files: Sequence[Path],
    chapters: Sequence[Cue],
    cues: Sequence[Cue],
    ledger: list[dict[str, Any]],
    loop: RenderedUnit | None,
) -> None:
    topic = series.find(plan.scene.slug())
    earlier: dict[str, Any] = {}
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    known = {name: size for name, size in earlier.get("files", {}).items() if (path.parent / name).is_file()}
    known |= {file.name: file.stat().st_size for file in files}
    manifest = {
        "topic": topic.slug,
        "title": topic.title,
        "tagline": topic.tagline,
        "alt": plan.scene.loop_alt,
        "takeaway": plan.scene.takeaway,
        "quality": {"width": plan.quality.width, "height": plan.quality.height, "frame_rate": plan.quality.frame_rate},
        "themes": sorted({*earlier.get("themes", []), theme}),
        "duration_seconds": round(chapters[-1].end, 3) if chapters else 0.0,
        "loop_seconds": loop.duration if loop else None,
        "config": plan.trace.config.to_dict(),
        "trace": plan.trace.hash,
        "provenance": trace_store.provenance(plan.scene.core),
        "scene": source_hash(plan.scene.__module__),
        "versions": {name: version(name) for name in ("llm-internals", "manim", "torch", "numpy", "av")},
        "files": {name: {"bytes": size} if isinstance(size, int) else size for name, size in sorted(known.items())},
        "chapters": [{"title": c.text, "start": round(c.start, 3), "end": round(c.end, 3)} for c in chapters],
        "captions": [{"text": c.text, "start": round(c.start, 3), "end": round(c.end, 3)} for c in cues],
        "ledger": ledger,
    }
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
    aside.replace(path)
