"""Every comparison with an independent implementation holds."""

import importlib
import math
import pkgutil

import pytest
import torch

from scenes import series
from tests import oracles
from tests.oracles import Oracle, largest_difference

TABLES = {
    info.name: importlib.import_module(f"tests.oracles.{info.name}") for info in pkgutil.iter_modules(oracles.__path__)
}
ROWS = [pytest.param(row, id=f"{name}: {row.name}") for name, table in TABLES.items() for row in table.ROWS]


@pytest.mark.parametrize("row", ROWS)
def test_an_independent_implementation_agrees(row):
    assert row.ok, f"{row.name}: differs by {row.difference()}, allowed {row.tolerance} ({row.source})"


def test_every_finished_topic_has_oracles():
    assert {topic.slug for topic in series.finished()} <= set(TABLES)


def test_a_comparison_can_fail():
    assert Oracle("equal", lambda: 0.0, 0, "").ok
    assert not Oracle("off", lambda: 0.1, 0.01, "").ok
    assert not Oracle("no number", lambda: math.nan, 1, "").ok
    with pytest.raises(ValueError, match=r"different shape: ours \(2,\), theirs \(1,\)"):
        largest_difference(torch.zeros(2), torch.zeros(1))
