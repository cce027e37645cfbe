"""What the QLoRA video shows: a block that is stretched and snapped, codes decoded for a moment, a frozen base."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from internals_math import trace_store
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label
from scenes.kit.number_line import NumberLine
from scenes.kit.page_tank import PageTank
from scenes.kit.snap_line import LevelCounts, SnapLine
from scenes.kit.stacked_bar import StackedBar
from scenes.kit.tensor_grid import TensorGrid
from scenes.qlora import QLoRA
from tests.scenes import watching
from tests.scenes.watching import grids, pictures


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(QLoRA.core)


seen_in = partial(watching.seen_in, QLoRA)


def ended(unit, trace=None):
    return seen_in(unit, lambda scene: None, trace, frame_rate=4)[0]


def texts(scene):
    return {label.text for label in pictures(scene, Label)}


def test_the_video_has_the_eight_chapters_of_its_story():
    assert [unit.title for unit in QLoRA.chapter_units()] == [
        "The bill",
        "One block",
        "Where to put the levels",
        "Scales of scales",
        "Decode, multiply, forget",
        "Where the gradient goes",
        "Does it work?",
        "When memory spikes",
    ]


# -- the bill ----------------------------------------------------------------------------------------------------------


def test_only_the_bar_of_qlora_ends_before_the_wall_of_the_gpu(trace):
    def look(scene):
        return {
            bar.values[0].origin[-2]: (bar.end()[0] > bar.place(trace.gpu_gb)[0], float(bar.share))
            for bar in pictures(scene, StackedBar)
            if bar.presence.all()
        }

    scene, seen = seen_in("the_bill", look)
    crosses = {way: over for found in seen for way, (over, _) in found.items()}
    assert crosses == {"0": True, "1": True, "2": False}
    last = look(scene)
    assert set(last) == {"1", "2"}
    assert last["1"][1] == pytest.approx(last["2"][1])
    assert {"780 GB", "140 GB", "43 GB"} - texts(scene) == {"780 GB"}  # it has left


# -- a block -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["one_block", "loop"])
def test_a_block_is_stretched_to_the_ends_of_the_line_and_then_snaps(unit, trace):
    def look(scene):
        lines = pictures(scene, SnapLine)
        return (lines[0].places, lines[0].snapped.all(), lines[0].ticks) if lines else None

    _, seen = seen_in(unit, look)
    reach = [float(np.abs(places).max()) for places, *_ in seen]
    assert reach[0] == pytest.approx(trace.block_absmax)
    assert max(reach) == pytest.approx(1)
    full = reach.index(max(reach))
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(reach[:full]))
    rests = [places for places, snapped, ticks in seen if snapped and ticks == 1]
    assert any(np.allclose(places, trace.block_levels) for places in rests)


def test_the_bead_on_the_ruler_is_the_largest_weight(trace):
    def look(scene):
        rulers, lines = pictures(scene, NumberLine), pictures(scene, SnapLine)
        if not rulers or not lines:
            return None
        most = int(trace.block_values.abs().argmax())
        return rulers[0].bead(0)[0] - lines[0].dot(most)[0] if lines[0].presence.all() else None

    _, seen = seen_in("one_block", look)
    np.testing.assert_allclose(seen, 0, atol=1e-5)


def test_codes_are_kept_in_the_order_of_the_weights(trace):
    scene = ended("one_block")
    (row,) = grids(scene, "block_codes")
    assert [int(text) for text in row.texts[0]] == trace.block_codes[:14].tolist()
    assert f"scale: {trace.block_absmax:.3f}" in texts(scene)


# -- levels ------------------------------------------------------------------------------------------------------------


def test_levels_glide_from_even_steps_to_those_of_nf4_and_the_bars_grow_flatter(trace):
    def look(scene):
        combs = pictures(scene, LevelCounts)
        return (combs[0].levels.field, float(combs[0].amounts.max())) if combs else None

    scene, seen = seen_in("where_to_put", look)
    assert list(dict.fromkeys(field for field, _ in seen)) == ["levels_int4", "levels_fp4", "levels_nf4"]
    assert seen[-1][1] < seen[0][1]
    (comb,) = pictures(scene, LevelCounts)
    np.testing.assert_allclose(comb.grid, trace.levels_nf4)
    (shape,) = pictures(scene, Bars, "normalized_histogram")
    assert comb.tip(0)[0] == pytest.approx(shape.get_left()[0])
    assert comb.tip(-1)[0] == pytest.approx(shape.get_right()[0])


def test_errors_of_the_code_books_are_drawn_to_one_scale_and_their_losses_written(trace):
    scene = ended("where_to_put")
    bars = {field: pictures(scene, Bars, f"mse.{field}")[0] for field in ("int4", "fp4", "nf4")}
    assert len({float(bar.limit) for bar in bars.values()}) == 1
    for name in bars:
        assert f"{trace.loss_added[name]:+.4f}" in texts(scene)


@pytest.mark.parametrize(("fp4", "said"), [(0.006, True), (0.001, False)])
def test_it_says_that_fp4_has_less_error_yet_more_loss_only_where_that_is_so(fp4, said, trace):
    added = trace.loss_added | {"int4": 0.003, "fp4": fp4}
    captions = ended("where_to_put", replace(trace, loss_added=added)).captions
    assert ("FP4: less error than INT4, yet more loss." in [caption.text for caption in captions]) == said


# -- scales ------------------------------------------------------------------------------------------------------------


def test_taking_off_the_mean_moves_the_feet_of_the_bars_and_not_their_tips(trace):
    def look(scene):
        bars = pictures(scene, Bars)
        return (bars[0].values.field, float(bars[0].zero), [bars[0].tip(k)[1] for k in range(16)]) if bars else None

    _, seen = seen_in("scales_of_scales", look)
    before = [tips for field, _, tips in seen if field == "absmax"][-1]
    after = [tips for field, zero, tips in seen if field == "absmax_centered" and zero > 0.5]
    np.testing.assert_allclose(before, after[0], atol=0.02)


def test_the_strip_of_scales_shrinks_to_its_bits_after_double_quantization(trace):
    scene = ended("scales_of_scales")
    (strip,) = pictures(scene, StackedBar)
    np.testing.assert_allclose(strip.amounts, [4, trace.bits["scales_double_quantized"]])
    assert f"{trace.bits['total_double_quantized']:.3f}" in texts(scene)
    (bars,) = pictures(scene, Bars)
    np.testing.assert_allclose(bars.amounts, trace.absmax_dequantized)


@pytest.mark.parametrize("double_quant", [True, False])
def test_it_says_where_the_scales_are_left_as_they_were(double_quant, trace):
    other = replace(trace, config=replace(trace.config, double_quant=double_quant))
    said = [caption.text for caption in ended("scales_of_scales", other).captions]
    assert ("Here, the scales are left as they were." in said) != double_quant


# -- the layer ---------------------------------------------------------------------------------------------------------


def decoded_rows(scene):
    """Return the rows of the matrix that are decoded now, and the outputs that have been computed."""
    floats = [grid for grid in pictures(scene, TensorGrid, "dequantized") if grid.rows == 32]
    outputs = pictures(scene, TensorGrid, "base_output")
    if not floats:
        return None
    made = np.flatnonzero(outputs[0].presence[:, 0]).tolist() if outputs else []
    return np.flatnonzero(floats[0].presence.any(axis=1)).tolist(), made


def test_only_one_block_is_decoded_at_a_time_and_its_outputs_come_with_it(trace):
    scene, seen = seen_in("decode_multiply_forget", decoded_rows)
    sizes = {len(rows) for rows, _ in seen}
    assert sizes == {0, trace.config.block_size // 32}
    for rows, made in seen:
        assert made == list(range(len(made)))
        assert not rows or rows[0] <= len(made) <= rows[-1] + 1
    (output,) = [grid for grid in grids(scene, "output") if grid.presence.all()]
    (base,) = grids(scene, "base_output")
    (adapter,) = grids(scene, "adapter_output")
    assert output.limit == base.limit == adapter.limit


def test_a_code_is_looked_up_and_multiplied_by_the_scale_of_its_block(trace):
    def look(scene):
        rows = [grids(scene, f"block_{name}") for name in ("codes", "levels", "dequantized")]
        return [grid[0].values.values[0] for grid in rows] if all(rows) else None

    _, seen = seen_in("decode_multiply_forget", look)
    codes, levels, weights = seen[-1]
    np.testing.assert_allclose(levels, trace.levels.numpy()[codes])
    np.testing.assert_allclose(weights, levels * trace.block_absmax, rtol=1e-5)


def test_gradients_land_in_the_adapter_and_the_codes_stay_as_they_are(trace):
    def look(scene):
        codes = [grid for grid in grids(scene, "codes") if grid.rows == 32]
        return codes[0].shade if codes else None

    scene, seen = seen_in("where_the_gradient_goes", look)
    assert all(np.array_equal(shade, seen[0]) for shade in seen)
    for field in ("grad_A", "grad_B", "grad_input"):
        (landed,) = [grid for grid in grids(scene, field) if grid.presence.all()]
        np.testing.assert_allclose(landed.shade * landed.limit, np.atleast_2d(getattr(trace, field)), atol=1e-6)
    assert "a part, through the base" not in texts(scene)
    assert {"gradient for the layer before", "gradient of A", "gradient of B"} <= texts(scene)
    assert not {"A", "B"} & texts(scene)  # what is there now are gradients
    assert {"0", "none", f"{trace.grad_norms['lora_A']:.2f}", f"{trace.grad_norms['lora_B']:.2f}"} <= texts(scene)


# -- results -----------------------------------------------------------------------------------------------------------


def test_two_runs_on_the_same_texts_and_their_losses_on_unseen_ones(trace):
    scene = ended("does_it_work")
    (chart,) = pictures(scene, Chart)
    assert [curve.y.field for curve in chart.curves] == ["finetune_curves.lora", "finetune_curves.qlora"]
    np.testing.assert_allclose(chart.drawn, 1)
    bars = [pictures(scene, Bars, f"finetune_final.{key}")[0] for key in ("fp32", "quantized", "lora", "qlora")]
    assert len({float(bar.limit) for bar in bars}) == 1
    alike = {curve.y.field.split(".")[-1]: theme.rgb(getattr(theme, curve.role)) for curve in chart.curves}
    for key, bar in zip(("lora", "qlora"), bars[2:], strict=True):  # a way of training has one color
        np.testing.assert_allclose(bar.color[0], alike[key])
    assert [bar.outline for bar in bars] == [True, True, False, False]
    assert [bar.texts[0] for bar in bars] == ["0.349", "0.352", "0.270", "0.270"]


def test_pages_go_to_the_shelf_and_come_back_and_the_gpu_is_never_overfull(trace):
    def look(scene):
        tanks = pictures(scene, PageTank)
        return (
            (tanks[0].step, tanks[0].places.copy(), tanks[0].get_right()[0] - tanks[0].get_left()[0]) if tanks else None
        )

    _, seen = seen_in("when_memory_spikes", look)
    assert [step for step, later in pairwise([one[0] for one in seen]) if later != step] == list(range(11))
    counts = []
    for _, places, length in seen:
        assert len(places) == 16
        assert places[:, 0].max() <= length / 2
        counts.append(int((places[:, 1] > 0).sum()))
    assert counts[0] == counts[-1] == 16
    assert min(counts) == 1
