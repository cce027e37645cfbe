"""`llm-internals list`: the topics of the series."""

import json

import click

from scenes import series
from scripts.commands.shared import json_option


@click.command("list")
@json_option
def list_topics(as_json: bool) -> None:
    """List the thirty topics of the series.

    \b
    llm-internals list
    llm-internals list --json | jq '.[] | select(.status == "finished").slug'
    """
    if as_json:
        fields = ("slug", "title", "tagline", "family", "status")
        click.echo(json.dumps([{name: getattr(topic, name) for name in fields} for topic in series.TOPICS], indent=1))
        return
    for family in series.FAMILIES:
        click.echo(click.style(family, bold=True))
        for topic in series.TOPICS:
            if topic.family == family:
                click.echo(f"  {topic.slug:28} {topic.status:9} {topic.title}")
