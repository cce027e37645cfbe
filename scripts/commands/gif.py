"""`llm-internals gif`: a loop or a chapter as a GIF."""

import json
import shutil
from pathlib import Path

import click

from scripts.commands.shared import (
    check_topics,
    end_with_failures,
    fresh_option,
    jobs_option,
    json_option,
    out_option,
    print_files,
    refuse_unfinished,
    result_json,
    run,
    settings_option,
    theme_option,
)
from scripts.pipeline.quality import QUALITIES


@click.command()
@click.argument("topic", callback=check_topics)
@click.option("--chapter", help="a chapter by number or name  [default: the loop]")
@click.option("--width", type=click.IntRange(64, 3840), default=640, show_default=True, help="pixels")
@click.option("--fps", type=click.Choice(["10", "20", "25"]), default="25", show_default=True, help="frames per second")
@theme_option
@settings_option
@jobs_option
@out_option
@fresh_option
@json_option
def gif(
    topic: str,
    chapter: str | None,
    width: int,
    fps: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    jobs: int | None,
    out: Path,
    fresh: bool,
    as_json: bool,
) -> None:
    """Make a GIF of a topic's loop or of one chapter, with exact colors.

    \b
    llm-internals gif kv_cache
    llm-internals gif rope --chapter 3 --width 480 --fps 10
    """
    refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    options = {"width": width, "frame_rate": int(fps)}
    results = run((topic,), Request("gif", QUALITIES["h"], themes, settings, chapter, (), jobs, out, fresh, options))
    if as_json:
        click.echo(json.dumps(result_json(results[0]), indent=1))
    else:
        print_files(results)
    if results[0].ok and shutil.which("gifsicle") is None:
        click.echo("gifsicle was not found, so the file is larger than it could be (`llm-internals doctor`)", err=True)
    end_with_failures(results)
