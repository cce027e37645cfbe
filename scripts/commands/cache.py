"""`llm-internals cache`: what is kept of earlier renders, and how to get rid of it."""

import json
from datetime import datetime
from itertools import groupby

import click

from scripts.commands.shared import check_topics, fail, json_option, user_errors
from scripts.pipeline.sizes import read_size, write_size


def _size(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else read_size(text)
    except ValueError as error:
        fail(f"{parameter.opts[0]}: {error}")


@click.command()
@click.argument("topics", nargs=-1, callback=check_topics)
@click.option("--prune", is_flag=True, help="remove the units of the topics; without topics, down to the limit")
@click.option("--all", "everything", is_flag=True, help="with --prune: remove every unit")
@click.option("--limit", metavar="SIZE", callback=_size, help="with --prune: keep this much, the last used  [8GB]")
@json_option
def cache(topics: tuple[str, ...], prune: bool, everything: bool, limit: int | None, as_json: bool) -> None:
    """Show or prune the rendered units that are kept, so that nothing is rendered twice.

    Every render ends by removing what was not used for longest, down to the limit that the variable
    LLM_INTERNALS_CACHE_LIMIT sets (8GB). A damaged unit is never used; it is rendered again.

    \b
    llm-internals cache
    llm-internals cache rope --json
    llm-internals cache --prune --limit 500MB
    llm-internals cache --prune kv_cache rope
    """
    if (everything or limit is not None) and not prune:
        fail("--all and --limit say what --prune removes; add --prune")
    if bool(topics) + everything + (limit is not None) > 1:
        fail("--prune takes topics, --all or --limit, not two of them")
    from scripts.pipeline import units

    removed = None
    with user_errors():
        usual = units.cache_limit()
        if prune and (topics or everything):
            removed = units.remove([unit for unit in units.cached_units() if everything or unit.topic in topics])
        elif prune:
            removed = units.prune(usual if limit is None else limit)
        left = [unit for unit in units.cached_units() if not topics or unit.topic in topics]
    by_topic = {
        topic: list(of_topic)
        for topic, of_topic in groupby(sorted(left, key=lambda unit: unit.topic), key=lambda unit: unit.topic)
    }
    total = sum(unit.bytes for unit in left)
    if as_json:
        facts = {
            "folder": str(units.unit_folder()),
            "bytes": total,
            "limit_bytes": usual,
            "topics": {
                topic: {"units": len(of_topic), "bytes": sum(unit.bytes for unit in of_topic)}
                for topic, of_topic in by_topic.items()
            },
        }
        if removed is not None:
            facts["removed"] = {"units": len(removed), "bytes": sum(unit.bytes for unit in removed)}
        click.echo(json.dumps(facts, indent=1))
        return
    if removed is not None:
        click.echo(f"removed {len(removed)} units, {write_size(sum(unit.bytes for unit in removed))}")
    click.echo(str(units.unit_folder()))
    for topic, of_topic in by_topic.items():
        used = datetime.fromtimestamp(of_topic[-1].used).strftime("%Y-%m-%d %H:%M")
        size = write_size(sum(unit.bytes for unit in of_topic))
        click.echo(f"  {topic or '(damaged)':28} {len(of_topic):4} units {size:>9}  last used {used}")
    click.echo(f"{len(left)} units, {write_size(total)} of {write_size(usual)}")
