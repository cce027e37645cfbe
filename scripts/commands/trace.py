"""`llm-internals trace`: the numbers themselves."""

from pathlib import Path

import click

from scenes import series
from scripts.commands.shared import check_topics, fail, fresh_option, json_option, settings_option, user_errors


@click.command()
@click.argument("topic", callback=check_topics)
@settings_option
@json_option
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="write the numbers as a safetensors file")
@click.option("--commit", is_flag=True, help="compute the default numbers again and keep them beside the core")
@fresh_option
def trace(topic: str, settings: tuple[str, ...], as_json: bool, save: Path | None, commit: bool, fresh: bool) -> None:
    """Print the numbers that a topic's video shows.

    \b
    llm-internals trace kv_cache
    llm-internals trace rope --set base=10000 --json
    llm-internals trace sliding_window_attention --commit
    """
    if series.find(topic).status == series.PLANNED:
        fail(f"{topic} has no core yet; topics with numbers: {', '.join(t.slug for t in series.with_core())}")
    from scripts.pipeline import numbers

    if commit and (settings or save is not None):
        fail("--commit keeps the default numbers; leave out --set and --save")
    with user_errors():
        if commit:
            click.echo(str(numbers.commit(topic)))
            return
        values = numbers.load(topic, settings, fresh=fresh)
        if save is not None:
            click.echo(str(numbers.save(values, topic, save)))
        else:
            click.echo(numbers.to_json(values) if as_json else numbers.to_table(values))
