"""`llm-internals preview`: the live page of a topic."""

import os
from pathlib import Path

import click

from scenes import series
from scripts.commands.shared import (
    THEME_NAMES,
    check_topics,
    fail,
    out_option,
    quality_option,
    refuse_unfinished,
    settings_option,
    user_errors,
)


@click.command()
@click.argument("topic", callback=check_topics)
@quality_option("l")
@click.option("--theme", type=click.Choice(THEME_NAMES), default="dark", show_default=True)
@settings_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="of the page  [default: any free one]")
@click.option("--no-open", is_flag=True, help="print the address, leave the browser alone")
@click.option("--jobs", type=click.IntRange(min=1), help="chapters rendered at a time  [default: all cores but one]")
@out_option
def preview(
    topic: str,
    quality: str,
    theme: str,
    settings: tuple[str, ...],
    port: int,
    no_open: bool,
    jobs: int | None,
    out: Path,
) -> None:
    """Show a topic as a live page in the browser: save a file, see the frame. Ends with Ctrl-C.

    The page is for this machine alone. While no page is open, no worker runs.

    \b
    llm-internals preview kv_cache
    llm-internals preview rope --set base=500 --theme light
    llm-internals preview rope --no-open --port 8000
    """
    refuse_unfinished((topic,))
    if not hasattr(os, "fork"):
        fail("preview needs a system that can fork processes: Linux, macOS, or WSL on Windows", 1)
    from scripts.pipeline import ffmpeg
    from scripts.pipeline.preview.server import serve
    from scripts.pipeline.preview.view import View

    view = View(topic, series.find(topic).module, quality, theme, settings)
    renders = jobs or max(1, min(4, (os.cpu_count() or 2) - 1))
    with user_errors():
        ffmpeg.require()
    try:
        serve(view, out=out, renders=renders, port=port, open_page=not no_open, say=click.echo)
    except OSError as error:
        fail(f"port {port} cannot be used: {error.strerror}; choose another one, or leave out --port", 1)
    except KeyboardInterrupt:
        pass
