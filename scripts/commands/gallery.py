"""`llm-internals gallery`: the committed loops of finished topics, and the table of the README that shows them."""

import shutil
import tempfile
from pathlib import Path

import click

from scenes import series
from scripts.commands.shared import check_topics, end_with_failures, jobs_option, refuse_unfinished, run
from scripts.pipeline.gallery import FOLDER, MAX_BYTES, write_table
from scripts.pipeline.quality import QUALITIES


@click.command()
@click.argument("topics", nargs=-1, callback=check_topics)
@jobs_option
def gallery(topics: tuple[str, ...], jobs: int | None) -> None:
    """Make the loops in media/gallery again, at most 600 kB each, and the table of the README that shows them.

    \b
    llm-internals gallery
    llm-internals gallery rope
    """
    slugs = topics or tuple(topic.slug for topic in series.finished())
    refuse_unfinished(slugs)
    from scripts.pipeline.jobs import Request

    with tempfile.TemporaryDirectory() as name:
        options = {"max_bytes": MAX_BYTES}
        request = Request("gif", QUALITIES["h"], formats=("gif",), jobs=jobs, out=Path(name), options=options)
        results = run(slugs, request)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for result in results:
            for path in result.files:
                click.echo(str(shutil.copyfile(path, FOLDER / f"{result.slug}.gif")))
            for note in result.notes:
                click.echo(f"{result.slug}/{note}", err=True)
    write_table()
    end_with_failures(results)
