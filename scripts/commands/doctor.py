"""`llm-internals doctor`: what this machine lacks."""

import json
import sys

import click

from scripts.commands.shared import json_option


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is missing on this machine, with the command that fixes it.

    \b
    llm-internals doctor
    """
    from scripts.pipeline import doctor as doctor_module

    findings = doctor_module.examine()
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = "ok     " if finding.ok else ("missing" if finding.needed else "absent ")
            click.echo(f"{mark} {finding.name:16} {finding.found}")
            if not finding.ok:
                click.echo(f"        fix: {finding.fix}")
    sys.exit(0 if all(finding.ok or not finding.needed for finding in findings) else 1)
