"""`verify` shows the rows of the tests, says what differs, and its page lists the current rows."""

import json
import re
from pathlib import Path

import pytest

from scenes import series
from scripts.pipeline import verify
from tests.oracles import Oracle
from tests.published import Published
from tests.scripts.conftest import call

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verification.md"
RENEW = "renew it: llm-internals verify --markdown > docs/verification.md"


@pytest.fixture
def one_table(monkeypatch):
    """Give a topic the rows of the test in place of its own."""

    def put(published=(), oracles=()):
        tables = {verify.PUBLISHED: tuple(published), verify.ORACLE: tuple(oracles)}
        monkeypatch.setattr(verify, "rows", lambda kind, slug: tables[kind])

    return put


def test_the_rows_are_those_of_the_tests():
    from tests.oracles import rope as oracles
    from tests.published import rope as published

    assert verify.rows("published", "rope") == published.ROWS
    assert verify.rows("oracle", "rope") == oracles.ROWS
    assert verify.rows("published", "no_such_topic") == ()


def test_json_has_a_row_for_each_comparison_with_both_numbers(one_table):
    one_table(
        [Published("eight", lambda: 8.004, 8, 1e-3, "a paper"), Published("off", lambda: 9, 8, 0, "a paper")],
        [Oracle("close", lambda: 1e-7, 1e-6, "torch: SDPA"), Oracle("far", lambda: 1.0, 1e-6, "numpy")],
    )
    result = call("verify", "rope", "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert all(list(row) == ["topic", "kind", "name", "ours", "reference", "tolerance", "source", "ok"] for row in rows)
    assert [row["ok"] for row in rows] == [True, False, True, False]
    assert (rows[0]["ours"], rows[0]["reference"], rows[0]["tolerance"]) == (8.004, 8, pytest.approx(8e-3))
    assert re.fullmatch(r"torch [0-9.]+\S*: SDPA", rows[2]["source"])
    assert "differs: rope, published, off" in result.stderr
    assert "2 of 4 comparisons hold" in result.stderr


def test_a_row_that_raises_or_is_no_number_does_not_hold_and_the_others_go_on(one_table):
    one_table(
        [
            Published("raises", lambda: 1 / 0, 1, 0, ""),
            Published("nan", lambda: float("nan"), 1, 0, ""),
            Published("fine", lambda: 1, 1, 0, ""),
        ]
    )
    result = call("verify", "rope", "--json")
    assert result.exit_code == 1
    assert [(row["ours"], row["ok"]) for row in json.loads(result.stdout)] == [(None, False), (None, False), (1, True)]
    assert "ZeroDivisionError" in result.stderr


def test_the_table_shows_ours_published_tolerance_and_source(one_table):
    one_table([Published("bytes", lambda: 524_288, 524_288, 0, "a config")])
    (_, columns, row) = call("verify", "rope").stdout.splitlines()
    assert columns.split() == ["ours", "published"]
    assert row.split() == ["ok", "bytes", "524,288", "524,288", "exact", "a", "config"]


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(verify.importlib, "import_module", missing)
    monkeypatch.setattr(verify, "names", lambda _: {"rope"})
    result = call("verify", "rope")
    assert result.exit_code == 1
    assert "the comparisons need transformers, a package of the tests; `scripts/test` sets up" in result.stderr


def test_without_a_clone_the_tables_are_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    result = call("verify", "rope")
    assert result.exit_code == 1
    assert "come with a clone of the project" in result.stderr


def listed_on_the_page() -> dict[str, list[tuple[str, ...]]]:
    """Return for each heading of the page its rows: the cells that are the same on every machine."""
    found: dict[str, list[tuple[str, ...]]] = {}
    heading = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if heading and cells and cells[0] not in ("published", "oracle", "---"):
            found.setdefault(heading, []).append((cells[0], cells[-3], cells[-2]) if len(cells) == 5 else (cells[0],))
    return found


@pytest.mark.parametrize("topic", series.finished(), ids=lambda topic: topic.slug)
def test_the_page_lists_the_current_rows(topic):
    expected: list[tuple[str, ...]] = []
    for row in verify.rows("published", topic.slug):
        tolerance = row.relative_tolerance * abs(row.value)
        one = verify.Comparison(topic.slug, "published", row.name, None, row.value, tolerance, row.source, True)
        expected.append((row.name, verify.number(row.value), verify.allowed(one)))
    expected += [(row.name,) for row in verify.rows("oracle", topic.slug)]
    assert listed_on_the_page().get(topic.title) == expected, RENEW
