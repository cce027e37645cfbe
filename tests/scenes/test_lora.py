"""What the LoRA video shows: a column that paints a grid, points that A cannot tell apart, a change that merges."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

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
from tests.scenes import watching
from tests.scenes.watching import grids, pictures, sayings

UNITS = [unit.name for unit in LoRA.chapter_units()]


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(LoRA.core)


seen_in = partial(watching.seen_in, LoRA)


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


@pytest.mark.parametrize(("unit", "fetched"), [("two_thin_matrices", 3), ("loop", 0)])
def test_a_column_paints_the_grid_from_left_to_right_once_for_every_rank(unit, fetched, trace):
    _, seen = seen_in(unit, painted)
    for k in range(2):
        sweep = [(columns, place) for origin, columns, place, _ in seen if origin == f"partial_deltas[{k}, :, :]"]
        counts = [columns for columns, _ in sweep]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, 32)
        assert len(set(counts)) > 5
        # what is painted ends at the brush: never ahead of it, but while the brush is fetched for a single column
        alone = 0 if k else fetched
        assert all(columns <= max(alone, place + 1.01) for columns, place in sweep)


def test_a_fetched_column_meets_its_number_of_a_and_becomes_their_product(trace):
    def look(scene):
        columns = [grid for grid in grids(scene, "partial_deltas") if grid.columns == 1]
        factors = [label.text for label in pictures(scene, Label) if label.text.startswith("×")]
        return (columns[0].values.origin, columns[0].shade * columns[0].limit, factors) if columns else None

    _, seen = seen_in("two_thin_matrices", look)
    assert list(dict.fromkeys(origin for origin, _, _ in seen)) == [f"partial_deltas[0, :, {k}]" for k in range(3)]
    for k in range(3):
        mine = [(column[:, 0], factors) for origin, column, factors in seen if origin == f"partial_deltas[0, :, {k}]"]
        product = trace.rank_one_terms[0, :, k]
        np.testing.assert_allclose(mine[-1][0], product, atol=0.05 * float(trace.lora_B.max()))  # a frame from its end
        number = f"{trace.lora_A[0, k]:+.2f}".replace("-", "−")
        assert mine[0][1] == [f"× {number} × s"]


def test_the_mark_on_a_stands_over_the_column_that_is_painted(trace):
    def look(scene):
        found = painted(scene)
        if not found or found[2] < -0.01:
            return None
        layer = grids(scene, "partial_deltas")[0]
        return layer.column_center(0)[0] + found[2] * layer.cell[0], found[3]

    _, seen = seen_in("two_thin_matrices", look)
    brush, mark = np.array(seen).T
    np.testing.assert_allclose(brush, mark, atol=0.45)  # a way out of B is longer
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
    shown = trace.inputs[::2]
    np.testing.assert_allclose(seen[-1][1], shown @ trace.lora_A.T, atol=1e-5)
    there = [int((presence > 0).sum()) for presence, _ in seen]
    assert there[0] == 0
    assert there[-1] == len(shown)
    assert 1 in there


def test_the_words_in_the_rows_are_those_of_the_dots_and_of_the_columns(trace):
    def look(scene):
        shown = [grid.values for field in ("inputs", "outputs") for grid in grids(scene, field) if grid.rows == 32]
        shown += [cloud.values for cloud in pictures(scene, PointCloud) if cloud.values.field == "coords"]
        whole = {"inputs": trace.inputs, "outputs": trace.outputs, "coords": trace.coords}
        return {values.field: set((values.cells // whole[values.field].shape[1]).flat) for values in shown}

    _, seen = seen_in("the_bottleneck", look)
    together = [words for words in seen if len(words) == 3]
    assert together
    assert all(words["inputs"] == words["outputs"] == words["coords"] for words in together)


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

    scene, seen = seen_in("starting_at_zero", look)
    clock, strongest, lengths = seen[0]
    assert (clock, strongest) == ("step 0", 0)
    assert lengths == {"grad_norm_A": 0, "grad_norm_B": pytest.approx(float(trace.grad_norm_B[0]))}
    clock, strongest, lengths = look(scene)
    assert clock == f"step {int(trace.history_steps[-1])}"
    assert strongest == pytest.approx(1, rel=0.02)
    assert lengths["grad_norm_A"] > 0


# -- how small, and what for -------------------------------------------------------------------------------------------


def test_losses_fall_in_at_every_rank_with_the_share_of_weights_they_train(trace):
    charts = {}

    def look(scene):
        shares = [bars for bars in pictures(scene, Bars) if bars.values.field == "lora_share"]
        for chart in pictures(scene, Chart):
            charts[chart.curves[0].y.field] = chart
        return int((shares[0].presence == 1).sum()) if shares else None

    scene, seen = seen_in("how_small", look)
    assert max(seen) == len(trace.ranks)
    near, far = charts["loss_lora"], charts["far_loss_lora"]
    assert [curve.y.field for curve in near.curves] == ["loss_lora", "loss_truncated"]
    assert [level.value.field for level in near.levels] == ["loss_base", "loss_full"]
    np.testing.assert_allclose(near.drawn, 1)
    assert [level.value.field for level in far.levels] == ["far_loss_floor"]
    np.testing.assert_allclose(far.drawn, 1)
    assert far.y_range[0] == 0
    assert sayings(scene)[1] == "Rank 1 makes 85% of the gain, with 6% of the weights."
    assert sayings(scene)[-1] == "On news, a far dialect, more rank helps, but is not all that is missing."


@pytest.mark.parametrize(("untouched", "points_up"), [(9.0, True), (0.9, False)])
def test_the_untouched_loss_of_the_far_dialect_is_at_its_height_or_points_there(untouched, points_up, trace):
    far = torch.tensor([0.8, 0.8, 0.9, 0.9])  # more rank does not help
    made = dataclasses.replace(trace, far_loss_base=untouched, far_loss_lora=far)
    scene, _ = seen_in("how_small", lambda scene: None, made)
    (chart,) = pictures(scene, Chart)
    (label,) = [label for label in pictures(scene, Label) if label.text.startswith("untouched")]
    assert bool(label.submobjects) == points_up
    assert (label.get_y() == pytest.approx(chart.place(1, untouched)[1])) != points_up
    assert sayings(scene)[-1] == "On news, a far dialect, rank is not all that is missing."


def test_weights_become_merged_weights_and_the_old_ones_come_back(trace):
    def look(scene):
        return next((grid.values.field for grid in pictures(scene, TensorGrid) if grid.role == "FROZEN"), None)

    _, seen = seen_in("merging", look)
    assert list(dict.fromkeys(seen)) == ["weight", "merged_weight", "second_merged_weight"]
    _, seen = seen_in("loop", look)
    changes = [field for field, before in zip(seen, [None, *seen[:-1]], strict=True) if field != before]
    assert changes == ["weight", "merged_weight", "weight"]


@pytest.mark.parametrize(("unit", "rests"), [("loop", False), ("merging", True)])
def test_the_name_over_the_weights_is_that_of_the_weights_there_and_tells_what_happens_to_them(unit, rests):
    def look(scene):
        said = [label.text for label in pictures(scene, Label) if label.text.startswith(("frozen", "merged"))]
        fields = [grid.values.field for grid in pictures(scene, TensorGrid) if grid.role == "FROZEN"]
        return (fields[0], *said) if fields else None

    _, seen = seen_in(unit, look)  # a picture at rest is no frame: the loop shows the merged weights at rest alone
    assert list(dict.fromkeys(seen))[: 5 if rests else 4] == [
        ("weight", "frozen weights"),
        ("weight", "frozen weights + change"),
        ("merged_weight", "frozen weights + change"),
        *([("merged_weight", "merged weights")] if rests else []),
        ("merged_weight", "merged weights − change"),
    ]
    assert all(len(state) == 2 for state in seen)


def test_an_adapter_that_another_one_replaces_is_gone_with_its_name():
    def look(scene):
        flying = [grid for grid in grids(scene, "second_delta") if grid.z_index == 1]
        return {label.text for label in pictures(scene, Label) if label.opacity > 0.01} if flying else None

    _, seen = seen_in("merging", look)
    assert seen
    assert not any("adapter: farm dialect" in said for said in seen)


def test_the_bill_of_a_hundred_tasks_is_drawn_to_one_scale():
    scene, _ = seen_in("merging", lambda scene: None)
    full, adapters = pictures(scene, Bars)
    assert {"34.9 TB", "353 GB"} <= {label.text for label in pictures(scene, Label)}
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
