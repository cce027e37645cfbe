"""`llm-internals check`: is every number real, can every frame be read?"""

import json
import os
import sys
from dataclasses import asdict

import click

from scenes import series
from scripts.commands.shared import (
    check_topics,
    jobs_option,
    json_option,
    refuse_unfinished,
    settings_option,
    user_errors,
)


@click.command()
@click.argument("topics", nargs=-1, callback=check_topics)
@click.option(
    "--quick", is_flag=True, help="look ten times a second, without pixels: no flashes, ends of loops, colors of GIFs"
)
@settings_option
@jobs_option
@json_option
def check(topics: tuple[str, ...], quick: bool, settings: tuple[str, ...], jobs: int | None, as_json: bool) -> None:
    """Check that every number on screen is a value of the Trace, and that every picture can be read.

    Plays the topics (all finished ones if none is named) without drawing: origins and values, safe area, overlaps,
    sizes, contrast in both themes, captions, lengths. Then, drawn small: flashes, ends of loops, colors of GIFs.

    \b
    llm-internals check
    llm-internals check kv_cache --quick
    llm-internals check rope --set base=500
    llm-internals check --json | jq '.[].rule'
    """
    refuse_unfinished(topics)
    slugs = topics or tuple(topic.slug for topic in series.finished())
    from scripts.pipeline.checks import topic as checks

    findings = []
    with user_errors():
        reports = checks.check_topics(slugs, jobs=jobs or os.cpu_count() or 1, pixels=not quick, settings=settings)
        for report in reports:
            findings += report.findings
            if not as_json:
                for found in report.findings:
                    click.echo(str(found))
            state = f"{len(report.findings)} findings" if report.findings else "ok"
            click.echo(f"{report.topic:28} {state:12} {report.units} units, {report.seconds:.1f} s", err=True)
    if as_json:
        click.echo(json.dumps([asdict(found) for found in findings], indent=1, ensure_ascii=False))
    if findings:
        sys.exit(1)
