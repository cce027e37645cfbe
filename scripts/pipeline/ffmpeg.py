"""The only module that runs the `ffmpeg` program (through ffmpeg-python), and says clearly when it cannot."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ffmpeg

from scripts.pipeline.errors import INSTALL_FFMPEG, UserError


def require() -> str:
    """Return the path of the program.

    Raises:
        UserError: it is not installed; says how to get it.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(f"the program `ffmpeg` was not found; install it ({INSTALL_FFMPEG}) and try again")
    return program


def run(output: Any, *, metadata: Path | None = None) -> None:
    """Run an ffmpeg-python output; `metadata` is an ffmetadata file whose chapters the result takes over.

    Raises:
        UserError: ffmpeg is missing, or failed; its last lines are shown.
    """
    require()
    arguments: list[Any] = list(ffmpeg.compile(output, overwrite_output=True))
    if metadata is not None:
        inputs = arguments.count("-i")
        after_inputs = len(arguments) - arguments[::-1].index("-i") + 1
        taken = ["-map_metadata", str(inputs), "-map_chapters", str(inputs)]
        arguments[after_inputs:after_inputs] = ["-i", str(metadata), *taken]
    done = subprocess.run(
        [arguments[0], "-hide_banner", "-loglevel", "error", *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"ffmpeg failed with exit code {done.returncode}:\n{tail}")


def join(parts: Sequence[Path], subtitles: Path | None, metadata: Path, target: Path) -> None:
    """Join videos of equal settings without encoding them again; adds soft subtitles and chapter marks.

    Args:
        parts: videos, in order.
        subtitles: an SRT file, None = no captions track.
        metadata: an ffmetadata file with the title and the chapters.
        target: mp4 file to write.
    """
    listing = target.with_name(f".{target.stem}.concat")
    listing.write_text("".join(f"file '{part.resolve()}'\n" for part in parts))
    settings = {"c:v": "copy", "movflags": "+faststart", "f": "mp4", "fflags": "+bitexact"}
    tracks = [ffmpeg.input(str(listing), f="concat", safe=0)["v"]]
    if subtitles is not None:
        tracks.append(ffmpeg.input(str(subtitles))["s"])
        settings |= {"c:s": "mov_text", "metadata:s:s:0": "language=eng"}
    try:
        run(ffmpeg.output(*tracks, str(target), **settings), metadata=metadata)
    finally:
        listing.unlink()
    if subtitles is not None:
        _captions_off_by_default(target)


def convert(source: Path, target: Path, settings: Mapping[str, Any]) -> None:
    """Convert one file into another."""
    run(ffmpeg.output(ffmpeg.input(str(source)), str(target), **settings))


def _captions_off_by_default(video: Path) -> None:
    """Clear the "enabled" flag of the captions track, which ffmpeg sets: the picture shows the captions already."""
    data = bytearray(video.read_bytes())
    start = data.index(b"moov")
    while (track := data.find(b"tkhd", start)) != -1:
        start = track + 4
        handler = data.index(b"hdlr", track)
        if data[handler + 12 : handler + 16] in (b"sbtl", b"text"):
            data[track + 7] &= ~1  # the last of three bytes of flags
    video.write_bytes(data)
