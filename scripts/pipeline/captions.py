"""Captions and chapters as the files that players and readers use."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cue:
    """Words on screen; seconds from the start of the video."""

    start: float
    end: float
    text: str


def to_vtt(cues: Sequence[Cue]) -> str:
    """Return WebVTT."""
    blocks = [f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{cue.text}\n" for cue in cues]
    return "WEBVTT\n\n" + "\n".join(blocks)


def to_srt(cues: Sequence[Cue]) -> str:
    """Return SubRip."""
    return "\n".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, start=1)
    )


def to_ffmetadata(chapters: Sequence[Cue], title: str) -> str:
    """Return the metadata file that gives a video its chapter marks."""
    lines = [";FFMETADATA1", f"title={_escape(title)}"]
    for chapter in chapters:
        lines += ["[CHAPTER]", "TIMEBASE=1/1000", f"START={round(chapter.start * 1000)}"]
        lines += [f"END={round(chapter.end * 1000)}", f"title={_escape(chapter.text)}"]
    return "\n".join(lines) + "\n"


def to_transcript(title: str, tagline: str, chapters: Sequence[Cue], cues: Sequence[Cue]) -> str:
    """Return the words of the video as Markdown, chapter by chapter."""
    lines = [f"# {title}", "", tagline, ""]
    for chapter in chapters:
        lines += [f"## {_clock(chapter.start, '.')[3:8]} {chapter.text}", ""]
        lines += [cue.text for cue in cues if chapter.start <= cue.start < chapter.end]
        lines.append("")
    return "\n".join(lines)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{milliseconds:03d}"


def _escape(text: str) -> str:
    return "".join("\\" + c if c in "=;#\\\n" else c for c in text)
