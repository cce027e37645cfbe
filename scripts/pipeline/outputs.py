"""From rendered units to what a user finds in the output folder; every file is written aside and renamed."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.pipeline import captions, ffmpeg, gif, manifest
from scripts.pipeline.captions import Cue
from scripts.pipeline.encode import read_stills
from scripts.pipeline.files import written_aside
from scripts.pipeline.jobs import Request, TopicPlan
from scripts.pipeline.manifest import suffix
from scripts.pipeline.sheet import Still, write_sheet
from scripts.pipeline.units import LOOP, RenderedUnit

POSTER_MOMENT = 0.55  # share of a loop: in the middle of the motion, and past it by a little


def write_topic(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> list[Path]:
    """Write a topic's files in one theme and return their paths; the manifest comes last."""
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
            gif.write_gif(loop.video, aside / f"loop{tail}.gif")
        if loop is not None and "webp" in formats:
            gif.write_webp(loop.video, aside / f"loop{tail}.webp")
        if loop is not None and "loop" in formats:
            gif.write_loop_mp4(loop.video, aside / f"loop{tail}.mp4")
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
        "request": manifest.request_hash(plan.topic, plan.quality, request.settings, formats, request.encoder),
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
    return [*files, manifest.write(folder, about, theme, render, files)]


def write_clip(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> list[Path]:
    """Write one unit as a video of its own, with its captions."""
    unit = rendered[0]
    name = f"{plan.topic.slug}-{unit.unit}{suffix(theme)}"
    chapters, cues, _ = timeline(plan, rendered)
    with written_aside(request.out / plan.topic.slug, plan.run) as (aside, files):
        if unit.unit == LOOP:
            gif.write_loop_mp4(unit.video, aside / f"{name}.mp4")
        else:
            (aside / f"{name}.vtt").write_text(captions.to_vtt(cues))
            _write_video(aside / f"{name}.mp4", chapters[0].text, rendered, chapters, cues)
    return files


def write_sheet_and_stills(
    plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]
) -> list[Path]:
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
    return files


def write_gif_of_unit(plan: TopicPlan, request: Request, theme: str, rendered: Sequence[RenderedUnit]) -> list[Path]:
    """Write the GIF of the loop or of one chapter."""
    unit = rendered[0]
    name = LOOP if unit.unit == LOOP else f"{plan.topic.slug}-{unit.unit}"
    with written_aside(request.out / plan.topic.slug, plan.run) as (aside, files):
        gif.write_gif(unit.video, aside / f"{name}{suffix(theme)}.gif", **request.options)
    return files


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
