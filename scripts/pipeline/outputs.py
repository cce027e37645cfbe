"""From rendered units to what a user finds in the output folder; every file is written aside and renamed."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from scenes.kit.theme import THEMES
from scripts.pipeline import budget, captions, ffmpeg, gif, manifest
from scripts.pipeline.budget import Limits
from scripts.pipeline.captions import Cue
from scripts.pipeline.encode import read_stills
from scripts.pipeline.errors import UserError
from scripts.pipeline.files import written_aside
from scripts.pipeline.gif import GifSettings
from scripts.pipeline.jobs import MadeFiles, Request, TopicPlan
from scripts.pipeline.made import make_once
from scripts.pipeline.manifest import suffix
from scripts.pipeline.platforms import PLATFORMS
from scripts.pipeline.sheet import Still, write_sheet
from scripts.pipeline.units import LOOP, RenderedUnit

POSTER_MOMENT = 0.55  # share of a loop: in the middle of the motion, and past it by a little


def write_topic(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> MadeFiles:
    """Write a topic's files in one theme; the manifest comes last."""
    tail, slug, formats = suffix(theme), plan.topic.slug, request.formats
    video = [unit for unit in rendered if unit.unit != LOOP]
    loop = next((unit for unit in rendered if unit.unit == LOOP), None)
    chapters, cues, ledger = timeline(plan, video)
    folder = request.out / slug
    with written_aside(folder, plan.run) as (aside, files):
        if video and {"mp4", "captions"} & set(formats):
            (aside / f"{slug}{tail}.vtt").write_text(captions.to_vtt(cues))
            (aside / f"{slug}{tail}.srt").write_text(captions.to_srt(cues))
            (aside / f"chapters{tail}.vtt").write_text(captions.to_vtt(chapters))
            words = captions.to_transcript(plan.topic.title, plan.topic.tagline, chapters, cues)
            (aside / f"transcript{tail}.md").write_text(words)
        if video and "mp4" in formats:
            _write_video(aside / f"{slug}{tail}.mp4", plan.topic.title, video, chapters, cues)
        if loop is not None and "gif" in formats:
            make_once(loop, aside / f"loop{tail}.gif", gif.write_gif)
        if loop is not None and "webp" in formats:
            make_once(loop, aside / f"loop{tail}.webp", gif.write_webp)
        if loop is not None and "loop" in formats:
            make_once(loop, aside / f"loop{tail}.mp4", gif.write_loop_mp4)
        if "poster" in formats:
            _write_poster(aside / f"poster{tail}.png", video, loop)
        if "sheet" in formats:
            write_sheet(list(stills_of(plan, rendered)), aside / f"sheet{tail}.png", theme=theme)
    about = {
        "topic": slug,
        "title": plan.topic.title,
        "tagline": plan.topic.tagline,
        "takeaway": plan.takeaway,
        "alt": plan.loop_alt,
    }
    render = {
        "request": plan.request_hash,
        "width": plan.quality.width,
        "height": plan.quality.height,
        "frame_rate": plan.quality.frame_rate,
        "seconds": round(sum(unit.seconds for unit in video), 3),
        "loop_seconds": loop.seconds if loop else None,
        "config": plan.config,
        "trace": plan.trace_hash,
        "provenance": plan.provenance,
        "versions": manifest.versions(),
        "units": [
            {
                "name": unit.unit,
                "title": chapter.text,
                "start": round(chapter.start, 3),
                "seconds": round(unit.seconds, 3),
            }
            for unit, chapter in zip(video, chapters, strict=True)
        ],
        "captions": [{"start": round(c.start, 3), "end": round(c.end, 3), "text": c.text} for c in cues],
        "ledger": ledger,
    }
    return MadeFiles([*files, manifest.write(folder, about, theme, render, files)])


def write_clips(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> MadeFiles:
    """Write each unit as a video of its own, with its captions."""
    with written_aside(request.out / plan.topic.slug, plan.run) as (aside, files):
        for unit in rendered:
            name = f"{plan.topic.slug}-{unit.unit}{suffix(theme)}"
            chapters, cues, _ = timeline(plan, [unit])
            if unit.unit == LOOP:
                gif.write_loop_mp4(unit.video, aside / f"{name}.mp4")
            else:
                (aside / f"{name}.vtt").write_text(captions.to_vtt(cues))
                _write_video(aside / f"{name}.mp4", chapters[0].text, [unit], chapters, cues)
    return MadeFiles(files)


def write_sheet_and_stills(
    plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]
) -> MadeFiles:
    """Write the contact sheet, and each still as a file of its own if a folder was named."""
    part = f"-{rendered[0].unit}" if request.chapter is not None else ""
    stills = list(stills_of(plan, rendered, every=request.options.get("every")))
    with written_aside(request.out / plan.topic.slug, plan.run) as (aside, files):
        target = aside / f"sheet{part}{suffix(theme)}.png"
        write_sheet(stills, target, theme=theme, columns=request.options.get("columns"))
    if request.options.get("stills"):
        with written_aside(Path(request.options["stills"]), plan.run) as (aside, more):
            for still in stills:
                still.picture.save(aside / f"{still.name}{suffix(theme)}.png")
        files += more
    return MadeFiles(files)


@dataclass(frozen=True)
class LoopOptions:
    """How the files for articles are wanted; None = as the platform or the default has it."""

    width: int | None = None  # pixels
    frame_rate: int = 25
    transparent: bool = False
    max_bytes: int | None = None  # of a GIF
    platform: str | None = None  # one of PLATFORMS
    least: float = budget.LEAST_SSIM  # SSIM of a GIF that has to be made smaller


def write_loops(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> MadeFiles:
    """Write the loop, or chapters, as the files that articles embed."""
    options = LoopOptions(**request.options)
    notes: list[str] = []
    with written_aside(request.out / plan.topic.slug, plan.run) as (aside, files):
        for unit in rendered:
            notes += _write_loop(unit, request.formats, theme, options, aside)
    return MadeFiles(files, notes)


def _write_loop(unit: RenderedUnit, formats: Sequence[str], theme: str, options: LoopOptions, aside: Path) -> list[str]:
    """Write one unit in each format; returns what a user should know."""
    tail, is_loop, notes = suffix(theme), unit.unit == LOOP, []
    name, still, video = (
        ("loop", "poster", "loop")
        if is_loop
        else (f"{unit.topic}-{unit.unit}{part}" for part in ("", "-poster", "-muted"))
    )
    platform = PLATFORMS.get(options.platform or "")
    ground = THEMES[theme]["BACKGROUND"] if options.transparent else None
    width = options.width or (platform.width if platform else gif.GIF_WIDTH)
    if "gif" in formats:
        settings = GifSettings(width, options.frame_rate, transparent=ground)
        notes += _write_gif(unit.video, aside / f"{name}{tail}.gif", settings, options)
    if "webp" in formats:
        target = aside / f"{name}{tail}.webp"
        gif.write_webp(unit.video, target, width=width, frame_rate=options.frame_rate, transparent=ground)
    if "mp4" in formats:
        gif.write_loop_mp4(unit.video, aside / f"{video}{tail}.mp4", width=options.width)
        if options.transparent:
            notes.append(f"{video}{tail}.mp4: MP4 knows no transparency; it keeps the background of the theme")
    if "poster" in formats:
        target = aside / f"{still}{tail}.png"
        _write_poster(target, [] if is_loop else [unit], unit if is_loop else None)
        if ground is not None:
            gif.make_transparent(Image.open(target), ground).save(target, optimize=True)
    return notes


def _write_gif(master: Path, target: Path, settings: GifSettings, options: LoopOptions) -> list[str]:
    """Write a GIF, within limits if there are some."""
    limits = Limits(options.max_bytes)
    if options.platform is not None:
        limits = Limits.of(PLATFORMS[options.platform], options.max_bytes)
    if limits == Limits():
        gif.write_gif(master, target, settings)
        return []
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            path, made, asked = budget.fit(master, Path(folder), settings, limits, options.least)
        except UserError as error:
            raise UserError(f"{target.name}: {error}") from error
        path.replace(target)
    return [budget.report(target.name, asked, made)]


def timeline(plan: TopicPlan, rendered: Sequence[RenderedUnit]) -> tuple[list[Cue], list[Cue], list[dict[str, Any]]]:
    """Return chapters, captions and ledger of joined units, in seconds from the start of the video."""
    chapters, cues, ledger, start = [], [], [], 0.0
    for unit in rendered:
        chapters.append(Cue(start, start + unit.seconds, plan.titles.get(unit.unit, unit.unit)))
        cues += [Cue(start + c["start"], start + c["end"], c["text"]) for c in unit.captions]
        for entry in unit.ledger:
            times = {name: round(start + entry[name], 3) for name in ("start", "end")}
            ledger.append({"unit": unit.unit, **entry, **times})
        start += unit.seconds
    return chapters, cues, ledger


def stills_of(plan: TopicPlan, rendered: Sequence[RenderedUnit], *, every: float | None = None) -> Iterator[Still]:
    """Yield the key frames of all units in order, or a frame every so many seconds."""
    start = 0.0
    for unit in rendered:
        times, pictures = unit.key_times, [Image.open(path) for path in unit.stills]
        if every:
            times = [k * every for k in range(int(unit.seconds / every) + 1)]
            pictures = [Image.fromarray(pixels) for pixels in read_stills(unit.video, times)]
        if unit.unit in plan.chapters:
            number = plan.chapters.index(unit.unit) + 1
            heading = f"{number} {plan.titles[unit.unit]}"
        else:
            heading = plan.titles.get(unit.unit, "Loop")
        offset = 0.0 if unit.unit == LOOP else start
        for index, (time, picture) in enumerate(zip(times, pictures, strict=True)):
            yield Still(f"{plan.topic.slug}-{unit.unit}-{index:02d}", heading, offset + time, picture)
        start += unit.seconds


def _write_video(
    target: Path, title: str, video: Sequence[RenderedUnit], chapters: Sequence[Cue], cues: Sequence[Cue]
) -> None:
    """Join units, with chapter marks and soft captions."""
    with tempfile.TemporaryDirectory() as name:
        words, marks = Path(name, "words.srt"), Path(name, "chapters.ffmetadata")
        words.write_text(captions.to_srt(cues))
        marks.write_text(captions.to_ffmetadata(chapters, title))
        ffmpeg.join([unit.video for unit in video], words if cues else None, marks, target)


def _write_poster(target: Path, video: Sequence[RenderedUnit], loop: RenderedUnit | None) -> None:
    """Write the still that stands for the loop; without a loop, the last key frame of the last chapter."""
    if loop is not None:
        picture = Image.fromarray(read_stills(loop.video, [POSTER_MOMENT * loop.seconds])[0])
    else:
        chapters = [unit for unit in video if unit.captions] or video
        picture = Image.open(chapters[-1].stills[-1])
    picture.save(target, optimize=True)
