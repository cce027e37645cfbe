"""What the sliding window video shows: a band that becomes a strip, a cone that opens, a ring that overwrites."""

import numpy as np
import pytest

from internals_math import trace_store
from internals_math.sliding_window_attention import Config
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.layer_stack import LayerStack
from scenes.kit.tensor_grid import TensorGrid
from scenes.sliding_window_attention import SlidingWindowAttention
from tests.scenes.watching import pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(SlidingWindowAttention.core)


def test_the_band_keeps_what_the_mask_lets_through(trace):
    def look(scene):
        grids = pictures(scene, TensorGrid, "weights_full")
        return grids[0].presence.copy() if grids else None

    _, seen = watched(SlidingWindowAttention, "band", look)
    shown = [presence for presence in seen if presence is not None]
    assert shown[0].all()
    window = trace.config.window
    np.testing.assert_array_equal(shown[-1][window:] > 0, trace.mask[window:].numpy())


def test_what_is_cut_off_is_shared_again(trace):
    scene, _ = watched(SlidingWindowAttention, "band", lambda scene: None)
    (bars,) = pictures(scene, Bars)
    np.testing.assert_allclose(bars.amounts, trace.last_window.numpy())
    assert bars.amounts.sum() == pytest.approx(1)


def test_the_rows_of_the_band_move_sideways_into_one_strip(trace):
    def look(scene):
        return np.array([grid.get_center() for grid in pictures(scene, TensorGrid, "band_weights")])

    _, seen = watched(SlidingWindowAttention, "straighten", look)
    places = [centers for centers in seen if len(centers) == len(trace.tokens)]
    assert places[0][-1, 0] - places[0][0, 0] > 3
    assert np.ptp(places[-1][:, 0]) < 1e-6
    np.testing.assert_allclose(places[0][:, 1], places[-1][:, 1], atol=1e-6)


def lit(scene):
    """Return how many dots of each layer are lit, the lowest layer first."""
    rows = sorted(pictures(scene, LayerStack), key=lambda row: row.get_center()[1])
    return [int((row.glow > 0).sum()) for row in rows]


def test_the_cone_opens_from_the_last_word_downwards(trace):
    _, seen = watched(SlidingWindowAttention, "relay", lit)
    opened = [counts for k, counts in enumerate(seen) if counts and (k == 0 or counts != seen[k - 1])]
    assert opened == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 4, 1], [0, 7, 4, 1], [10, 7, 4, 1]]


def test_the_cone_dims_to_the_measured_influence(trace):
    def look(scene):
        return {float(row.get_center()[1]): row.glow[0].copy() for row in pictures(scene, LayerStack)}

    _, seen = watched(SlidingWindowAttention, "influence", look)
    rows = [row for row in seen if row]
    np.testing.assert_allclose([rows[0][y] for y in sorted(rows[0])], trace.cone.numpy())
    dimmed = next(k for k in range(len(seen)) if not seen[k]) - 1  # before the chart takes the stage
    np.testing.assert_allclose([seen[dimmed][y] for y in sorted(seen[dimmed])], trace.influence_cone.numpy(), atol=1e-6)


@pytest.mark.parametrize("unit", ["ring", "loop"])
def test_the_ring_never_holds_more_than_its_slots(unit, trace):
    _, seen = watched(
        SlidingWindowAttention,
        unit,
        lambda scene: [grid.values.origin for grid in pictures(scene, TensorGrid, "ring_keys")],
    )
    assert max(len(held) for held in seen[:-8]) == trace.config.window


def test_the_ring_ends_with_the_last_words(trace):
    scene, _ = watched(SlidingWindowAttention, "ring", lambda scene: None)
    held = {grid.values.origin for grid in pictures(scene, TensorGrid, "ring_keys")}
    assert held == {f"ring_keys[{12 + slot}, {slot}, :]" for slot in range(4)}


def test_the_loss_curves_are_the_measured_ones(trace):
    scene, _ = watched(SlidingWindowAttention, "cost", lambda scene: None)
    (chart,) = [picture for picture in scene.get_mobject_family_members() if isinstance(picture, Chart)]
    assert [curve.y.field for curve in chart.curves] == ["loss_by_window", "loss_by_window_with_sink", "loss_trained"]
    assert chart.levels[0].value.field == "loss_full"


@pytest.mark.parametrize("config", [Config(num_tokens=32, window=16), Config(num_tokens=8, window=3)])
@pytest.mark.parametrize("unit", ["band", "straighten", "relay", "ring", "loop"])
def test_other_windows_can_be_shown(unit, config):
    scene, _ = watched(
        SlidingWindowAttention, unit, lambda scene: None, trace_store.get(SlidingWindowAttention.core, config)
    )
    assert scene.ledger
