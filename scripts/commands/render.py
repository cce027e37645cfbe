"""`llm-internals render`: explainer videos and loops."""

import json
from pathlib import Path
from typing import Any

import click

from scenes import series
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
    quality_option,
    refuse_unfinished,
    result_json,
    run,
    settings_option,
    theme_option,
)
from scripts.pipeline.manifest import FORMATS
from scripts.pipeline.quality import ENCODERS, QUALITIES


@click.command()
@click.argument("topics", nargs=-1, callback=check_topics)
@click.option("--all", "everything", is_flag=True, help="render every finished topic")
@quality_option("h")
@theme_option
@settings_option
@click.option("--chapter", help="render one chapter alone as a clip, by number or name; all = a clip of each")
@click.option("--formats", default=",".join(FORMATS), show_default=True, callback=list_of(FORMATS), help="what to make")
@click.option(
    "--encoder",
    type=click.Choice(list(ENCODERS)),
    default="x264",
    show_default=True,
    help="of the videos; all but x264 need hardware",
)
@jobs_option
@out_option
@fresh_option
@json_option
@click.option("--open", "open_it", is_flag=True, help="open the video when it is done")
def render(
    topics: tuple[str, ...],
    everything: bool,
    quality: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    chapter: str | None,
    formats: tuple[str, ...],
    encoder: str,
    jobs: int | None,
    out: Path,
    fresh: bool,
    as_json: bool,
    open_it: bool,
) -> None:
    """Render explainer videos and loops into OUT/TOPIC/.

    \b
    llm-internals render kv_cache
    llm-internals render --all -q l --theme dark,light
    llm-internals render rope --set base=10000 --chapter 3 --open
    """
    slugs = tuple(topic.slug for topic in series.finished()) if everything else topics
    if not slugs:
        fail("name a topic or give --all; `llm-internals list` shows the topics")
    refuse_unfinished(slugs)
    from scripts.pipeline.jobs import Request

    make = "topic" if chapter is None else "clip"
    request = Request(make, QUALITIES[quality], themes, settings, chapter, formats, jobs, out, fresh, encoder=encoder)
    results = run(slugs, request)
    if as_json:
        click.echo(json.dumps([result_json(result) for result in results], indent=1))
    else:
        print_files(results)
    if open_it:
        _open_videos(results)
    end_with_failures(results)


def _open_videos(results: list[Any]) -> None:
    for result in results:
        videos = [path for path in result.files if path.suffix == ".mp4" and path.stem.startswith(result.slug)]
        if videos:
            click.launch(str(videos[0]))
