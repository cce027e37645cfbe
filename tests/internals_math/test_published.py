"""Every printed number of every finished topic is reproduced."""

import importlib

import pytest

from scenes import series

ROWS = [
    pytest.param(row, id=f"{topic.slug}: {row.name}")
    for topic in series.finished()
    for row in importlib.import_module(f"tests.published.{topic.slug}").ROWS
]


@pytest.mark.parametrize("row", ROWS)
def test_the_published_number_is_reproduced(row):
    assert row.ok, f"{row.name}: ours {row.ours()}, published {row.value} ({row.source})"
