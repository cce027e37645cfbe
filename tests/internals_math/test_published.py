"""Every printed number is reproduced."""

import importlib
import pkgutil

import pytest

from scenes import series
from tests import published
from tests.published import Published

TABLES = {
    info.name: importlib.import_module(f"tests.published.{info.name}")
    for info in pkgutil.iter_modules(published.__path__)
}
ROWS = [pytest.param(row, id=f"{name}: {row.name}") for name, table in TABLES.items() for row in table.ROWS]


@pytest.mark.parametrize("row", ROWS)
def test_the_published_number_is_reproduced(row):
    assert row.ok, f"{row.name}: ours {row.ours()}, published {row.value} ({row.source})"


def test_every_finished_topic_has_published_numbers():
    assert {topic.slug for topic in series.finished()} <= set(TABLES)


def test_a_number_can_miss_what_was_printed():
    assert Published("exact", lambda: 8, 8, 0, "").ok
    assert not Published("off by one", lambda: 9, 8, 0, "").ok
    assert not Published("off by 2 %", lambda: 102.0, 100, 0.01, "").ok
