"""What the LoRA video shows: a column that paints a grid, points that A cannot tell apart, a change that merges."""

import numpy as np
import pytest

from internals_math import trace_store
from internals_math.lora import Config
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout
from scenes.kit.point_cloud import PointCloud
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid
from scenes.lora import LoRA
from tests.internals_math import made_adapters
from tests.scenes.watching import pictures, watched

UNITS = [unit.name for unit in LoRA.chapter_units()]


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(LoRA.core)


def grids(scene, field):
    return [grid for grid in pictures(scene, TensorGrid, field) if grid.opacity > 0]


def seen_in(unit, look, trace=None, **settings):
    """Play one unit; returns the scene and what `look` found in the frames where it found something."""
    scene, seen = watched(LoRA, unit, look, trace, **settings)
    return scene, [what for what in seen if what is not None]


def sayings(scene):
    return [caption.text for caption in scene.captions]


# -- the change --------------------------------------------------------------------------------------------------------


def test_on_the_scale_of_the_weights_the_change_is_nearly_nothing_and_on_its_own_it_glows(trace):
    def look(scene):
        found = grids(scene, "full_delta")
        return float(np.abs(found[0].shade).max()) if found else None

    scene, seen = seen_in("the_update", look)
    still = trace.largest_change / trace.largest_weight
    assert still < 0.15
    assert any(strength == pytest.approx(still, abs=1e-3) for strength in seen)
    assert seen[-1] == pytest.approx(1)
    lengths = {bar.values.origin: bar.amounts[0] / bar.limit for bar in pictures(scene, Bars)}
    assert lengths == {"largest_weight": pytest.approx(1), "largest_change": pytest.approx(still)}


def test_each_sheet_that_flies_off_leaves_the_rest_behind_and_grows_its_bar(trace):
    def look(scene):
        left = grids(scene, "full_residuals")
        flown = len(grids(scene, "full_terms"))
        return (left[0].values.origin, flown) if left else None

    scene, seen = seen_in("how_many_directions", look)
    origins = list(dict.fromkeys(origin for origin, _ in seen))
    assert origins == [f"full_residuals[{k}, :, :]" for k in range(4)]
    for k, origin in enumerate(origins):  # from half way, when the next sheet is still in the air
        assert {flown for left, flown in seen if left == origin} <= {k + 1, k + 2}
    assert seen[-1][1] == 4
    (bars,) = pictures(scene, Bars)
    assert bars.amounts.tolist() == pytest.approx(trace.full_singular_values.tolist())
    np.testing.assert_allclose(bars.presence, 1)
    (ground,) = pictures(scene, Chart)
    np.testing.assert_allclose(ground.heights[0], trace.random_singular_values)
    # the bars and the line of noise are measured with one ruler
    for k in (0, 9):
        height = float(trace.full_singular_values[k])
        assert ground.place(k + 1, height)[:2] == pytest.approx(bars.tip(k)[:2], abs=1e-4)


# -- the product -------------------------------------------------------------------------------------------------------


def painted(scene):
    """Return what is painted last, how many whole columns, and where the brush and the mark on A are."""
    layers = grids(scene, "partial_deltas")
    brushes = [grid for grid in grids(scene, "lora_B") if grid.columns == 1]
    if not brushes or not layers:
        return None
    layer = max(layers, key=lambda grid: grid.values.origin)
    marks = [frame for frame in pictures(scene, Frame) if frame.z_index == 2]
    place = brushes[0].get_x() - layer.column_center(0)[0]
    return layer.values.origin, int((layer.presence[0] == 1).sum()), place / layer.cell[0], marks[0].get_x()


@pytest.mark.parametrize("unit", ["two_thin_matrices", "loop"])
def test_a_column_paints_the_grid_from_left_to_right_once_for_every_rank(unit, trace):
    _, seen = seen_in(unit, painted)
    for k in range(2):
        sweep = [(columns, place) for origin, columns, place, _ in seen if origin == f"partial_deltas[{k}, :, :]"]
        counts = [columns for columns, _ in sweep]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, 32)
        assert len(set(counts)) > 5
        # what is painted ends at the brush: never ahead of it
        assert all(columns <= max(0, place) + 1.01 for columns, place in sweep)


def test_the_mark_on_a_stands_over_the_column_that_is_painted(trace):
    def look(scene):
        found = painted(scene)
        if not found or found[2] < -0.01:
            return None
        layer = grids(scene, "partial_deltas")[0]
        return layer.column_center(0)[0] + found[2] * layer.cell[0], found[3]

    _, seen = seen_in("two_thin_matrices", look)
    brush, mark = np.array(seen).T
    np.testing.assert_allclose(brush, mark, atol=0.35)  # the first way, out of B, is longer
    assert np.median(np.abs(brush - mark)) < 0.01


def test_after_the_last_sweep_the_grid_is_the_trained_change(trace):
    scene, _ = seen_in("two_thin_matrices", lambda scene: None)
    (product,) = [grid for grid in grids(scene, "partial_deltas") if grid.columns == 32]
    np.testing.assert_allclose(product.shade * product.limit, trace.lora_delta, atol=1e-6)
    texts = [label.text for label in pictures(scene, Label)]
    assert {"128", "1,024"} <= set(texts)


# -- the bottleneck ----------------------------------------------------------------------------------------------------


def test_every_dot_is_what_a_makes_of_a_real_input(trace):
    def look(scene):
        clouds = [cloud for cloud in pictures(scene, PointCloud) if cloud.values.field == "coords"]
        return (clouds[0].presence.copy(), clouds[0].places) if clouds else None

    _, seen = seen_in("the_bottleneck", look)
    np.testing.assert_allclose(seen[-1][1], trace.inputs @ trace.lora_A.T, atol=1e-5)
    there = [int((presence > 0).sum()) for presence, _ in seen]
    assert there[0] == 0
    assert there[-1] == len(trace.inputs)
    assert 1 in there


def test_neither_the_point_nor_the_output_moves_when_all_changes_that_a_cannot_see(trace):
    def look(scene):
        strips, outputs = grids(scene, "alike_inputs"), grids(scene, "alike_outputs")
        dots = [cloud for cloud in pictures(scene, PointCloud) if cloud.values.field == "alike_coords"]
        return (strips[0].shade[0], outputs[0].shade[:, 0], dots[0].places[0]) if strips and outputs and dots else None

    _, seen = seen_in("the_bottleneck", look)
    strips, outputs, dots = (np.array(part) for part in zip(*seen, strict=True))
    assert np.abs(strips - strips[0]).max() > 0.5
    assert np.abs(outputs - outputs[0]).max() < 1e-4
    assert np.abs(dots - dots[0]).max() < 1e-4


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_starts_with_an_empty_product_and_a_gradient_for_b_alone(trace):
    def look(scene):
        products, clocks = grids(scene, "delta_history"), pictures(scene, Readout)
        lengths = {bar.values.field: float(bar.amounts[0]) for bar in pictures(scene, Bars)}
        if not products or not lengths:
            return None
        return clocks[0].text, float(np.abs(products[0].shade).max()), lengths

    _, seen = seen_in("starting_at_zero", look)
    clock, strongest, lengths = seen[0]
    assert (clock, strongest) == ("step 0", 0)
    assert lengths == {"grad_norm_A": 0, "grad_norm_B": pytest.approx(float(trace.grad_norm_B[0]))}
    clock, strongest, lengths = seen[-1]
    assert clock == f"step {int(trace.history_steps[-1])}"
    assert strongest == pytest.approx(1, rel=0.02)
    assert lengths["grad_norm_A"] > 0


# -- how small, and what for -------------------------------------------------------------------------------------------


def test_losses_fall_in_at_every_rank_with_the_share_of_weights_they_train(trace):
    def look(scene):
        shares = [bars for bars in pictures(scene, Bars) if bars.values.field == "lora_share"]
        charts = pictures(scene, Chart)
        return (int((shares[0].presence == 1).sum()), float(charts[0].drawn[0])) if shares and charts else None

    scene, seen = seen_in("how_small", look)
    assert max(count for count, _ in seen) == len(trace.ranks)
    near, far = pictures(scene, Chart)
    assert [curve.y.field for curve in near.curves] == ["loss_lora", "loss_truncated"]
    assert [level.value.field for level in near.levels] == ["loss_base", "loss_full"]
    np.testing.assert_allclose(near.drawn, 1)
    assert [curve.y.field for curve in far.curves] == ["far_loss_lora"]
    assert far.y_range[0] == 0
    assert sayings(scene)[1] == "Rank 1 makes 85% of the gain, with 6% of the weights."


def test_weights_become_merged_weights_and_the_old_ones_come_back(trace):
    def look(scene):
        return next((grid.values.field for grid in pictures(scene, TensorGrid) if grid.role == "FROZEN"), None)

    _, seen = seen_in("merging", look)
    assert list(dict.fromkeys(seen)) == ["weight", "merged_weight", "second_merged_weight"]
    _, seen = seen_in("loop", look)
    changes = [field for field, before in zip(seen, [None, *seen[:-1]], strict=True) if field != before]
    assert changes == ["weight", "merged_weight", "weight"]


def test_weights_are_called_merged_only_while_the_sum_is_there():
    def look(scene):
        said = [label.text for label in pictures(scene, Label)]
        fields = [grid.values.field for grid in pictures(scene, TensorGrid) if grid.role == "FROZEN"]
        return fields[0], "merged weights" in said, "frozen weights" in said

    _, seen = seen_in("loop", look)
    assert all(called_merged != called_frozen for _, called_merged, called_frozen in seen)
    assert {field for field, called_merged, _ in seen if called_merged} == {"merged_weight"}
    assert sum(called_merged for _, called_merged, _ in seen) >= 3


def test_the_bill_of_a_hundred_tasks_is_drawn_to_one_scale():
    scene, _ = seen_in("merging", lambda scene: None)
    full, adapters = pictures(scene, Bars)
    assert full.texts + adapters.texts == ["34.9 T", "353 G"]
    assert float(full.limit) == float(adapters.limit) == full.amounts[0]


# -- other parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        Config(r=1, lora_alpha=0.5, module="v_proj", layer=0, train_steps=30),
        Config(r=8, lora_alpha=32, module="o_proj", layer=2, train_steps=30),
    ],
    ids=["rank 1", "rank 8"],
)
def test_other_ranks_and_matrices_are_drawn_as_well(config, monkeypatch):
    from internals_math import lora_experiment as experiment

    monkeypatch.setattr(experiment, "train_adapters", made_adapters.train_adapters)
    monkeypatch.setattr(experiment, "train_fully", made_adapters.train_fully)
    monkeypatch.setattr(experiment, "HELD_OUT", 8)
    trace = experiment.run(config)
    for unit in [*UNITS, "loop"]:
        scene, _ = seen_in(unit, lambda scene: None, trace, frame_rate=2)
        assert scene.now > 5
        assert scene.ledger
