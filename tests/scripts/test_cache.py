"""`llm-internals cache` on a cache of a few small entries."""

import json
import os
from pathlib import Path

import pytest

from scripts.pipeline import units
from scripts.pipeline.sizes import read_size, write_size
from tests.scripts.conftest import call


@pytest.fixture
def entries(empty_cache) -> dict[str, Path]:
    """Three entries of two topics, oldest first, and one whose facts are damaged."""
    folders = {}
    for age, (topic, unit) in enumerate([("kv_cache", "one"), ("rope", "one"), ("rope", "two"), ("", "")]):
        folder = units.unit_folder() / f"{topic or 'damaged'}{unit}-0"
        folder.mkdir(parents=True)
        facts = json.dumps({"topic": topic, "unit": unit}) if topic else "{"
        (folder / units.FACTS).write_text(facts)
        (folder / units.VIDEO).write_bytes(b"v" * (10_000 - len(facts)))
        os.utime(folder, (0, 1_000_000 + age))
        folders[f"{topic} {unit}".strip()] = folder
    return folders


def shown(*arguments) -> dict:
    result = call("cache", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def left(entries: dict[str, Path]) -> list[str]:
    return [name for name, folder in entries.items() if folder.exists()]


def test_the_cache_is_shown_by_topic_with_its_size_and_limit(entries):
    facts = shown()
    assert facts["folder"] == str(units.unit_folder())
    assert (facts["bytes"], facts["limit_bytes"]) == (40_000, 8_000_000_000)
    assert facts["topics"]["rope"] == {"units": 2, "bytes": 20_000}
    assert facts["topics"]["kv_cache"] == {"units": 1, "bytes": 10_000}
    assert shown("rope")["topics"] == {"rope": {"units": 2, "bytes": 20_000}}
    words = call("cache").stdout
    assert "4 units, 40.0 kB of 8.0 GB" in words
    assert "(damaged)" in words
    assert len(left(entries)) == 4


def test_an_empty_cache_is_no_error(empty_cache):
    assert shown()["topics"] == {}
    assert "0 units, 0 B of" in call("cache").stdout


def test_pruning_to_a_limit_removes_the_longest_unused(entries):
    facts = shown("--prune", "--limit", "25kB")
    assert facts["removed"] == {"units": 2, "bytes": 20_000}
    assert left(entries) == ["rope two", ""]


def test_pruning_without_a_limit_takes_the_one_of_the_environment(entries, monkeypatch):
    monkeypatch.setenv("LLM_INTERNALS_CACHE_LIMIT", "10kB")
    assert shown()["limit_bytes"] == 10_000
    assert "removed 3 units, 30.0 kB" in call("cache", "--prune").stdout
    assert left(entries) == [""]


def test_pruning_topics_leaves_the_others(entries):
    assert shown("--prune", "rope")["removed"]["units"] == 2
    assert left(entries) == ["kv_cache one", ""]


def test_pruning_all_leaves_nothing(entries):
    assert shown("--prune", "--all")["removed"]["units"] == 4
    assert left(entries) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--all",), "add --prune"),
        (("--prune", "--all", "rope"), "not two of them"),
        (("--prune", "--limit", "much"), "a size is a number with a unit such as 800kB, 1.5MB or 8GB, got 'much'"),
        (("--prune", "rop"), "did you mean 'rope'"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(entries, arguments, message):
    result = call("cache", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(left(entries)) == 4


def test_a_limit_that_is_no_size_is_one_clear_line(entries, monkeypatch):
    monkeypatch.setenv("LLM_INTERNALS_CACHE_LIMIT", "much")
    result = call("cache")
    assert result.exit_code == 1
    assert "LLM_INTERNALS_CACHE_LIMIT: a size is a number" in result.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("800kB", 800_000), (" 1.5 GB ", 1_500_000_000), ("5MiB", 5_242_880)]
)
def test_a_size_is_read_as_written(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 PB", "kB", "1e3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="a size is a number with a unit"):
        read_size(text)


def test_a_size_is_written_short():
    assert [write_size(size) for size in (0, 999, 1_000, 1_540_000, 8 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "1.5 MB", "8000.0 GB",
    ]  # fmt: skip
