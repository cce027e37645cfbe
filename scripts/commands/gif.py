"""`llm-internals gif`: a loop or chapters as files that articles embed."""

import json
import shutil
from pathlib import Path
from typing import Any

import click

from scripts.commands.shared import (
    check_topics,
    end_with_failures,
    fail,
    fresh_option,
    jobs_option,
    json_option,
    list_of,
    out_option,
    print_files,
    refuse_unfinished,
    result_json,
    run,
    settings_option,
    theme_option,
)
from scripts.pipeline.manifest import LOOP_FORMATS
from scripts.pipeline.platforms import PLATFORMS
from scripts.pipeline.quality import QUALITIES
from scripts.pipeline.sizes import read_size


def _size(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Read a size such as 800kB or 1.5MB."""
    if text is None:
        return None
    try:
        size = read_size(text)
    except ValueError:
        size = 0
    if not size:
        fail(f"{parameter.opts[0]} takes a size such as 800kB or 1.5MB, got {text!r}")
    return size


@click.command()
@click.argument("topic", callback=check_topics)
@click.option("--chapter", help="a chapter by number or name, or all  [default: the loop]")
@click.option(
    "--formats", default=",".join(LOOP_FORMATS), show_default=True, callback=list_of(LOOP_FORMATS), help="what to make"
)
@click.option(
    "--width", type=click.IntRange(64, 3840), help="pixels  [default: 640, or what suits --for; the MP4 its master's]"
)
@click.option("--fps", type=click.Choice(["10", "20", "25"]), default="25", show_default=True, help="frames per second")
@theme_option
@click.option(
    "--background",
    type=click.Choice(["theme", "transparent"]),
    default="theme",
    show_default=True,
    help="transparent GIFs are several times as large",
)
@click.option(
    "--captions",
    type=click.Choice(["burned", "none"]),
    default="burned",
    show_default=True,
    help="of chapters; a loop has none",
)
@click.option("--max-size", "max_bytes", metavar="SIZE", callback=_size, help="of the GIF: 800kB, 1.5MB")
@click.option("--for", "platform", type=click.Choice(list(PLATFORMS)), help="the width and limits of a place")
@click.option(
    "--min-ssim",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="how much a GIF made smaller must still look like its master; 1 = the same",
)
@settings_option
@jobs_option
@out_option
@fresh_option
@json_option
def gif(
    topic: str,
    chapter: str | None,
    formats: tuple[str, ...],
    width: int | None,
    fps: str,
    themes: tuple[str, ...],
    background: str,
    captions: str,
    max_bytes: int | None,
    platform: str | None,
    min_ssim: float,
    settings: tuple[str, ...],
    jobs: int | None,
    out: Path,
    fresh: bool,
    as_json: bool,
) -> None:
    """Make GIF, WebP, silent MP4 and poster of a topic's loop or of chapters, with exact colors.

    With --max-size or --for, what hurts least is given up first (frame rate, colors, width, lossless pixels; measured)
    and the answer says what. If nothing within the limits looks well enough, the smallest size that does is named.

    \b
    llm-internals gif kv_cache
    llm-internals gif kv_cache --max-size 400kB --theme dark,light
    llm-internals gif rope --for devto --formats gif
    llm-internals gif rope --chapter 3 --captions none --width 480 --fps 10
    """
    refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    options: dict[str, Any] = {"width": width, "frame_rate": int(fps), "transparent": background == "transparent"}
    options |= {"max_bytes": max_bytes, "platform": platform, "least": min_ssim}
    request = Request(
        "gif",
        QUALITIES["h"],
        themes,
        settings,
        chapter,
        formats,
        jobs,
        out,
        fresh,
        options,
        captions=captions == "burned",
    )
    results = run((topic,), request)
    if as_json:
        click.echo(json.dumps(result_json(results[0]), indent=1))
    else:
        print_files(results)
    for note in results[0].notes:
        click.echo(note, err=True)
    if results[0].ok and "gif" in formats and shutil.which("gifsicle") is None:
        click.echo("gifsicle was not found, so the GIF is larger than it could be (`llm-internals doctor`)", err=True)
    end_with_failures(results)
