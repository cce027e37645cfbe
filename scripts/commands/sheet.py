"""`llm-internals sheet`: contact sheets."""

from pathlib import Path

import click

from scripts.commands.shared import (
    check_topics,
    end_with_failures,
    fresh_option,
    jobs_option,
    out_option,
    print_files,
    quality_option,
    refuse_unfinished,
    run,
    settings_option,
    theme_option,
)
from scripts.pipeline.quality import QUALITIES


@click.command()
@click.argument("topic", callback=check_topics)
@quality_option("l")
@theme_option
@settings_option
@click.option("--chapter", help="only this chapter, by number or name")
@click.option(
    "--stills", type=click.Path(path_type=Path, file_okay=False), help="also write each frame as a PNG into this folder"
)
@click.option(
    "--every", type=click.FloatRange(min=0.05), help="a frame every so many seconds in place of the key frames"
)
@click.option("--columns", type=click.IntRange(1, 12), default=4, show_default=True)
@jobs_option
@out_option
@fresh_option
def sheet(
    topic: str,
    quality: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    chapter: str | None,
    stills: Path | None,
    every: float | None,
    columns: int,
    jobs: int | None,
    out: Path,
    fresh: bool,
) -> None:
    """Draw a contact sheet: the key frames of every chapter in one PNG.

    \b
    llm-internals sheet kv_cache
    llm-internals sheet rope --chapter 3 -q h --stills stills
    llm-internals sheet rope --chapter loop --every 0.25
    """
    refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    options = {"columns": columns, "stills": stills, "every": every}
    results = run(
        (topic,), Request("sheet", QUALITIES[quality], themes, settings, chapter, ("sheet",), jobs, out, fresh, options)
    )
    print_files(results)
    end_with_failures(results)
