"""Commands that are printed somewhere must work as printed: names, options and values are checked, nothing is run."""

import re
import shlex
from pathlib import Path

import pytest

from scripts.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "media/README.md", "docs/tiny_lm.md", "docs/verification.md")


def printed_commands() -> list[str]:
    """Return every `llm-internals …` and `scripts/run …` of the pages and of the help texts."""
    texts = [(ROOT / page).read_text() for page in PAGES]
    texts += [command.help or "" for command in main.commands.values()] + [main.help or ""]
    found = []
    for text in texts:
        inline = re.findall(r"`((?:llm-internals|scripts/run) [^`]+)`", text)
        lines = re.findall(r"^\s*((?:llm-internals|scripts/run) .+)$", text, flags=re.MULTILINE)
        found += [re.split(r"\s+#|\s[|>]", command)[0] for command in inline + lines]
    return sorted(
        {command for command in found if "<" not in command and "…" not in command and "TOPIC" not in command}
    )


@pytest.mark.parametrize("command", printed_commands())
def test_a_printed_command_is_understood(command):
    name, *arguments = shlex.split(command)[1:]
    main.commands[name].make_context(name, arguments)


def test_commands_are_found_at_all():
    assert "scripts/run render kv_cache -q l" in printed_commands()
    assert len(printed_commands()) > 15


@pytest.mark.parametrize("page", PAGES)
def test_a_link_of_a_page_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
