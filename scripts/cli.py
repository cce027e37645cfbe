"""The `llm-internals` command: a group of the commands in `scripts/commands`, one file each.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong use.
Heavy modules are imported inside the commands that need them, so that `list`, `--help` and errors answer at once.
"""

import click

from scripts.commands.article import article
from scripts.commands.cache import cache
from scripts.commands.check import check
from scripts.commands.doctor import doctor
from scripts.commands.gallery import gallery
from scripts.commands.gif import gif
from scripts.commands.list import list_topics
from scripts.commands.preview import preview
from scripts.commands.render import render
from scripts.commands.sheet import sheet
from scripts.commands.trace import trace
from scripts.commands.train import train
from scripts.commands.verify import verify

COMMANDS = (list_topics, render, preview, gif, article, gallery, sheet, trace, check, verify, cache, doctor, train)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llm-internals")
def main() -> None:
    """Animated deep-dives into the techniques behind modern LLMs.

    \b
    llm-internals list
    llm-internals render kv_cache -q l
    llm-internals trace rope --json
    """


for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
