"""`llm-internals verify`: is the maths right?"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from scenes import series
from scripts.commands.shared import check_topics, json_option, user_errors


@click.command()
@click.argument("topics", nargs=-1, callback=check_topics)
@json_option
@click.option("--markdown", is_flag=True, help="print the page docs/verification.md")
def verify(topics: tuple[str, ...], as_json: bool, markdown: bool) -> None:
    """Compare the maths with published numbers and independent implementations.

    Every number that a paper prints beside ours, and the largest difference from other people's code, for all finished
    topics if none is named. Needs a clone and the packages of the tests (`scripts/test` sets them up).

    \b
    llm-internals verify
    llm-internals verify rope kv_cache
    llm-internals verify --json | jq '.[] | select(.ok | not)'
    """
    from scripts.pipeline import verify as comparing

    with user_errors():
        slugs = topics or (*(topic.slug for topic in series.finished()), *comparing.shared_tables())
        found: list[Any] = []
        rows = comparing.compare(slugs)
        if as_json or markdown:
            found = list(rows)
        else:
            for line in comparing.to_table(_kept(rows, found)):
                click.echo(line)
    if as_json:
        plain = [{key: value for key, value in asdict(one).items() if key != "error"} for one in found]
        click.echo(json.dumps(plain, indent=1, ensure_ascii=False))
    if markdown:
        click.echo(comparing.to_markdown(found), nl=False)
    wrong = [one for one in found if not one.ok]
    for one in wrong:
        click.echo(f"differs: {one.topic}, {one.kind}, {one.name} {one.error}".rstrip(), err=True)
    if not found:
        click.echo(f"no published numbers and no oracles yet: {', '.join(slugs)}", err=True)
    click.echo(f"{len(found) - len(wrong)} of {len(found)} comparisons hold", err=True)
    if wrong or not found:
        sys.exit(1)


def _kept(rows: Iterator[Any], found: list[Any]) -> Iterator[Any]:
    """Pass comparisons on as they are computed, and keep them."""
    for one in rows:
        found.append(one)
        yield one
