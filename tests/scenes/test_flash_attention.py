"""What the FlashAttention video shows: one tile alive at a time, sums that shrink, bytes that are counted."""

import re

import numpy as np
import pytest

from internals_math import trace_store
from internals_math.flash_attention import Config
from scenes.flash_attention import FlashAttention
from scenes.kit.bars import Bars
from scenes.kit.label import Label
from scenes.kit.tensor_grid import TensorGrid
from tests.scenes.watching import pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(FlashAttention.core)


def tiles_alive(scene):
    """Return the steps whose scores or weights are on screen, and the fields of all grids."""
    grids = [grid for grid in pictures(scene, TensorGrid) if grid.opacity > 0]
    alive = [grid.values.origin for grid in grids if grid.values.field in ("tile_scores", "tile_weights")]
    return {int(re.search(r"\[(\d+)", origin)[1]) for origin in alive}, {grid.values.field for grid in grids}


@pytest.mark.parametrize("unit", ["tiles", "loop"])
def test_one_tile_of_scores_lives_at_a_time_and_the_matrix_is_never_there(unit, trace):
    _, seen = watched(FlashAttention, unit, tiles_alive)
    visited = set().union(*(steps for steps, _ in seen))
    assert all(len(steps) <= 1 for steps, _ in seen)
    assert not any({"scores", "weights"} & fields for _, fields in seen)
    last_row = {s for s, i in enumerate(trace.tile_i.tolist()) if i == int(trace.tile_i[-1])}
    assert visited == (set(range(len(trace.tile_i))) if unit == "tiles" else last_row)


def test_the_standard_way_carries_both_matrices(trace):
    _, seen = watched(FlashAttention, "trips", tiles_alive)
    fields = set().union(*(fields for _, fields in seen))
    assert {"scores", "weights"} <= fields


def test_the_bars_end_at_the_bytes_of_both_algorithms(trace):
    scene, _ = watched(FlashAttention, "tiles", lambda scene: None)
    ends = {bars.values.field: float(bars.amounts[-1]) for bars in pictures(scene, Bars)}
    assert ends == {"standard_bytes": float(trace.standard_bytes[-1]), "flash_bytes": float(trace.flash_bytes[-1])}


def test_every_term_shrinks_when_the_maximum_moves(trace):
    def look(scene):
        bars = [bars for bars in pictures(scene, Bars) if bars.values.field == "row_terms"]
        return bars[0].amounts.copy() if bars else None

    _, seen = watched(FlashAttention, "one_pass", look)
    first = np.array([amounts[0] for amounts in seen if amounts is not None and not np.isnan(amounts[0])])
    assert (np.diff(first) <= 1e-9).all()
    assert first[0] == 1
    assert np.isclose(first, float(trace.row_terms[-1, 0])).any()  # then the bars become the softmax
    assert len(set(first.round(6))) > 10  # it glides down, it does not jump


def test_the_sum_goes_into_the_output_that_it_divides():
    def look(scene):
        if "÷ sum" not in [label.text for label in pictures(scene, Label)]:
            return None
        sums = pictures(scene, TensorGrid, "running_sum")
        return [float(grid.get_center()[0]) for grid in sums]

    _, seen = watched(FlashAttention, "loop", look, frame_rate=20)
    places = [places[0] for places in seen if places]
    assert places == sorted(places)
    assert places[0] == pytest.approx(4.98)  # its own place
    assert places[-1] > 5.7  # nearly that of the output


def test_tiles_at_work_lie_before_those_that_pass():
    def look(scene):
        fields = {grid.values.field: grid.z_index for grid in pictures(scene, TensorGrid) if grid.z_index}
        return {field for field, depth in fields.items() if depth > 0}

    _, seen = watched(FlashAttention, "loop", look)
    assert {"query", "running_max", "running_sum", "acc"} <= set().union(*seen)
    assert not {"key", "value"} & set().union(*seen)


@pytest.mark.parametrize("config", [Config(num_tokens=9, block_q=4, block_k=2), Config(causal=False)])
@pytest.mark.parametrize("unit", ["tiles", "loop", "backward"])
def test_other_tiles_can_be_shown(unit, config):
    trace = trace_store.get(FlashAttention.core, config)
    scene, seen = watched(FlashAttention, unit, tiles_alive, trace)
    assert scene.ledger
    assert all(len(steps) <= 1 for steps, _ in seen)
