"""What the quantization video shows: dots that snap, errors within half a step, a loud channel that leaves, an error
that flows into columns that are still free."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from internals_math import quantization, trace_store
from internals_math import quantization_experiment as experiment
from internals_math.quantization import Config
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout
from scenes.kit.shapes import Frame
from scenes.kit.snap_line import LevelCounts, SnapLine
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.token_row import TokenRow
from scenes.quantization import Quantization
from tests.scenes.watching import grids, pictures, sayings, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(quantization)


@cache
def ended(unit):
    """Return the scene after one unit has played."""
    return watched(Quantization, unit, frame_rate=4)[0]


def test_the_video_has_the_seven_chapters_of_its_story():
    assert [unit.title for unit in Quantization.chapter_units()] == [
        "Snap to the grid",
        "One bit, half the step",
        "The largest value sets the step",
        "A grid shaped like the data",
        "One loud channel",
        "Make the errors cancel",
        "The price in loss",
    ]


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_dots_snap_one_after_the_other_each_to_its_nearest_tick(trace):
    def look(scene):
        lines = pictures(scene, SnapLine)
        if not lines or lines[0].ticks < 1:
            return None
        on_a_tick = np.abs(lines[0].places[:, None] - np.asarray(trace.grid)).min(axis=1) < 1e-6
        return int((on_a_tick & lines[0].snapped).sum())

    scene, seen = watched(Quantization, "snap_to_the_grid", look)
    counts = [count for count in seen if count is not None]
    assert counts == sorted(counts)
    assert set(counts) >= set(range(9))
    (line,) = pictures(scene, SnapLine)
    np.testing.assert_allclose(line.places, trace.w_row_hat)


def test_codes_fly_from_their_ticks_to_their_weights(trace):
    scene = ended("snap_to_the_grid")
    (line,) = pictures(scene, SnapLine)
    for k, code in enumerate(trace.q_row.tolist()):
        (label,) = [label for label in pictures(scene, Label) if label.parts and label.parts[0][1] == f"q_row[{k}]"]
        assert label.text == str(code).replace("-", "−")
        assert label.get_y() == pytest.approx(line.dot(k)[1])


def test_every_error_fits_between_the_marks_at_half_a_step(trace):
    scene = ended("snap_to_the_grid")
    pieces = pictures(scene, Bars, "err_row")
    assert len(pieces) == 8
    for piece in pieces:
        middle, reach = piece.get_x(), piece.tip(0)[0]
        assert piece.limit == pytest.approx(trace.half_step)
        assert abs(reach - middle) <= piece.width / 2 + 1e-6
        assert np.sign(reach - middle) == np.sign(piece.amounts[0])


def test_the_red_pieces_start_as_the_segments_that_the_dots_left(trace):
    def look(scene):
        pieces, lines = pictures(scene, Bars, "err_row"), pictures(scene, SnapLine)
        if not pieces:
            return None
        return [abs(piece.tip(0)[0] - lines[0].dot(k)[0]) for k, piece in enumerate(pieces)]

    _, seen = watched(Quantization, "snap_to_the_grid", look)
    assert max(next(gaps for gaps in seen if gaps)[4:]) < 0.02  # the first ones have left already


@pytest.mark.parametrize("unit", ["one_bit", "loop"])
def test_red_segments_are_the_errors_of_the_number_of_bits_that_is_written(unit, trace):
    def look(scene):
        lines, bits = pictures(scene, SnapLine), pictures(scene, Readout)
        if not lines or not bits or not lines[0].snapped.all():
            return None
        return next(one.text for one in bits if one.text.endswith("bits")), len(lines[0].grid), lines[0].places

    scene, seen = watched(Quantization, unit, look)
    hats = {f"{bits} bits": hat.numpy() for bits, hat in zip(trace.sweep_bits.tolist(), trace.sweep_hat, strict=True)}
    levels = {f"{bits} bits": 2**bits - 1 for bits in trace.sweep_bits.tolist()}
    rests = [
        text
        for text, count, places in (one for one in (*seen, look(scene)) if one is not None)
        if count == levels[text] and np.allclose(places, hats[text], atol=1e-6)
    ]
    shown = list(dict.fromkeys(rests))
    assert shown == ([f"{b} bits" for b in range(2, 9)] if unit == "one_bit" else ["4 bits", "3 bits", "2 bits"])


def test_the_curve_of_errors_is_drawn_to_the_bits_that_are_shown(trace):
    scene = ended("one_bit")
    (chart,) = pictures(scene, Chart)
    assert [curve.y.field for curve in chart.curves] == ["sweep_mse"]
    assert chart.log_y
    np.testing.assert_allclose(chart.drawn, 1)
    assert f"+{trace.sweep_gain_db[-1]:.1f} dB" in {label.text for label in pictures(scene, Readout)}


# -- groups ------------------------------------------------------------------------------------------------------------


def test_brackets_part_and_the_largest_weight_of_each_is_marked(trace):
    def look(scene):
        steps = [grid for grid in grids(scene, "granularity.scale") if grid.presence.all()]
        if not steps:
            return None
        frames = [frame for frame in pictures(scene, Frame) if frame.opacity == 1]
        yellow = theme.rgb(theme.MAXIMUM)
        marks = sum(bool(np.allclose(frame.tint, yellow)) and frame.fill is None for frame in frames)
        return steps[0].values.origin, len(frames) - marks, marks

    scene, seen = watched(Quantization, "largest_value", look)
    found = {one for one in seen if one is not None}
    for k, count in enumerate(trace.granularity.num_scales.tolist()):
        assert (f"granularity.scale[{k}, :, :]", count, count) in found
    mse, cost = (pictures(scene, Bars, f"granularity.{name}")[0] for name in ("mse", "bits_per_weight"))
    np.testing.assert_allclose(mse.presence, 1)
    assert cost.texts == ["4.06", "4.50", "6.00"]


def test_the_error_map_cools_with_every_finer_grid(trace):
    def look(scene):
        maps = grids(scene, "granularity.abs_err")
        return float(np.square(maps[0].shade).mean()) if maps else None

    _, seen = watched(Quantization, "largest_value", look)
    heat = [amount for amount in seen if amount is not None]
    assert heat[0] > 3.5 * heat[-1]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(heat))


def test_ticks_slide_to_the_levels_of_nf4_and_its_bars_are_flatter(trace):
    def look(scene):
        combs = pictures(scene, LevelCounts)
        return (combs[0].counts.field, float(combs[0].amounts.max())) if combs else None

    scene, seen = watched(Quantization, "shaped_grid", look)
    fields = list(dict.fromkeys(field for field, _ in filter(None, seen)))
    assert fields == ["int4_counts", "nf4_counts"]
    (comb,) = pictures(scene, LevelCounts)
    np.testing.assert_allclose(comb.grid, trace.nf4_code)
    np.testing.assert_allclose(comb.amounts, trace.nf4_counts)
    assert comb.amounts.max() < float(trace.int4_counts.max())
    (shape,) = pictures(scene, Bars, "hist_counts")
    assert comb.tip(0)[0] == pytest.approx(shape.get_left()[0])
    assert comb.tip(-1)[0] == pytest.approx(shape.get_right()[0])
    longest = {bars.values.field: bars.tip(0)[0] - bars.get_left()[0] for bars in pictures(scene, Bars)[1:]}
    assert longest["nf4_mse"] / longest["int4_mse"] == pytest.approx(trace.nf4_mse / trace.int4_mse)


# -- one loud channel --------------------------------------------------------------------------------------------------


def test_the_loud_channel_leaves_the_grid_and_the_integers_get_their_range_back(trace):
    def look(scene):
        lanes, codes = grids(scene, "x_lane"), pictures(scene, TensorGrid)
        shown = [grid for grid in codes if grid.values.field.startswith("x_out_int8") and grid.opacity == 1]
        if not lanes or not shown:
            return None
        (x,) = grids(scene, "x_out")
        hidden = np.flatnonzero((x.presence == 0).all(axis=0)).tolist()
        return hidden, shown[0].values.field, float(np.abs(shown[0].shade).mean())

    _, seen = watched(Quantization, "loud_channel", look)
    states = [one for one in seen if one is not None]
    assert states[-1][0] == [trace.outlier_dim]
    before = next(mean for _, field, mean in states if field == "x_out_int8_naive")
    after = [mean for _, field, mean in states if field == "x_out_int8_split"][-1]
    assert after > before


def test_both_lanes_add_up_to_the_output_on_one_color_scale():
    def look(scene):
        limits = {grid.values.field: grid.limit for grid in pictures(scene, TensorGrid)}
        return {field: limits[field] for field in ("y_lane", "y_int8", "y_split") if field in limits}

    _, seen = watched(Quantization, "loud_channel", look)
    full = next(found for found in seen if len(found) == 3)
    assert len(set(full.values())) == 1


def test_errors_of_one_and_of_two_lanes_are_drawn_to_one_scale(trace):
    scene = ended("loud_channel")
    (naive,), (split,) = grids(scene, "y_err_naive"), grids(scene, "y_err_split")
    assert naive.limit == split.limit
    (chart,) = pictures(scene, Chart)
    assert [curve.y.field for curve in chart.curves] == ["y_rmse_naive", "y_rmse_split"]
    assert chart.y_range[0] == 0
    np.testing.assert_allclose(chart.drawn, 1)


# -- GPTQ --------------------------------------------------------------------------------------------------------------


def test_an_error_flows_only_into_columns_that_are_not_yet_rounded(trace):
    """Its copies slide to the right; columns that were rounded before keep what they have."""

    def look(scene):
        copies = [grid for grid in grids(scene, "gptq_nudges") if grid.columns == 1]
        rounded = pictures(scene, TensorGrid, "gptq_codes")
        if len(copies) < 2 or not rounded:
            return None
        room = pictures(scene, TensorGrid, "gptq_shift")[0]
        done = np.flatnonzero(rounded[0].presence.all(axis=0)).tolist()
        column = int(copies[0].values.origin.split("[")[1].split(",")[0])
        place = (max(copy.get_x() for copy in copies) - room.column_center(0)[0]) / room.cell[0]
        return column, done, place

    _, seen = watched(Quantization, "cancel", look)
    sweeps = [one for one in seen if one is not None]
    assert {column for column, _, _ in sweeps} == set(range(7))
    for column, done, place in sweeps:
        assert done == list(range(column + 1))
        assert column - 1e-6 <= place <= 7 + 1e-6
    assert max(place for column, _, place in sweeps if column == 0) == pytest.approx(7, abs=0.2)


def test_what_arrives_in_a_free_column_is_its_share_of_the_error(trace):
    """A copy that has come to rest over column j has the colors of what the rounding of column k changed there."""

    def look(scene):
        copies = [grid for grid in grids(scene, "gptq_nudges") if grid.columns == 1]
        if len(copies) < 2:
            return []
        room = pictures(scene, TensorGrid, "gptq_shift")[0]
        found = []
        for copy in copies[1:]:
            k, _, j = (part.strip() for part in copy.values.origin.split("[")[1].rstrip("]").split(","))
            if abs(copy.get_x() - room.column_center(int(j))[0]) < 1e-6:
                found.append((int(k), int(j), copy.shade[:, 0] * copy.limit))
        return found

    _, seen = watched(Quantization, "cancel", look)
    arrived = [one for found in seen for one in found]
    assert {(k, j) for k, j, _ in arrived if j > k} == {(k, j) for k in range(7) for j in range(k + 1, 8)}
    for k, j, colors in arrived:
        np.testing.assert_allclose(colors, trace.gptq_nudges[k][:, j], atol=1e-6)


def test_the_shares_are_shown_only_while_there_is_something_to_share():
    def look(scene):
        names = {label.text for label in pictures(scene, Label) if label.opacity == 1}
        flows = grids(scene, "gptq_flow")
        heading = "share for each column, from the inputs’ correlations" in names
        return heading, bool(flows and flows[0].presence.any())

    _, seen = watched(Quantization, "cancel", look)
    assert any(heading for heading, _ in seen)
    assert all(shares for heading, shares in seen if heading)
    assert not seen[-1][1]


def test_the_map_of_moves_is_the_traced_one_after_every_column(trace):
    def look(scene):
        bars = pictures(scene, Bars, "gptq_err_after_column")
        maps = [grid for grid in pictures(scene, TensorGrid, "gptq_shift") if grid.presence.all()]
        if not bars or not maps:
            return None
        grown = int((bars[0].presence == 1).sum())
        return grown, maps[0].values.origin

    scene, seen = watched(Quantization, "cancel", look)
    states = {one for one in seen if one is not None}
    for k in range(7):
        assert (k + 1, f"gptq_shift[{k}, :, :]") in states
    (final,) = pictures(scene, TensorGrid, "gptq_shift")
    np.testing.assert_allclose(final.shade * final.limit, trace.gptq_shift[-1], atol=1e-6)


def test_gptq_grows_below_the_outline_of_rounding_alone(trace):
    scene = ended("cancel")
    (plain,), (ours,) = (pictures(scene, Bars, f"{name}_err_after_column") for name in ("rtn", "gptq"))
    assert plain.limit == ours.limit
    assert plain.outline
    for k in range(8):
        assert ours.tip(k)[0] == pytest.approx(plain.tip(k)[0])
        assert ours.tip(k)[1] < plain.tip(k)[1]
    texts = {label.text for label in pictures(scene, Label)}
    assert {f"{trace.rtn_err:.1f}", f"{trace.gptq_err:.1f}", "GPTQ wins in 21 of 21 matrices"} <= texts


def test_it_says_that_weights_err_no_less_only_where_that_is_so(trace):
    assert "The weights err no less, but their errors partly cancel." in sayings(ended("cancel"))
    lucky = replace(trace, gptq_weight_mse=0.9 * trace.rtn_weight_mse)
    assert "Their errors partly cancel." in sayings(watched(Quantization, "cancel", trace=lucky, frame_rate=4)[0])


def test_where_gptq_does_not_help_the_captions_say_so(trace):
    said = sayings(watched(Quantization, "cancel", trace=shown_with(trace, bits=5), frame_rate=4)[0])
    assert "In this corner, GPTQ gains nothing." in said
    assert "Column after column, it repays what it can." in said
    assert "Column after column, the output errs less." in sayings(ended("cancel"))


# -- the whole model ---------------------------------------------------------------------------------------------------


def test_three_curves_of_the_whole_model_and_what_it_writes(trace):
    scene = ended("price")
    (chart,) = pictures(scene, Chart)
    assert [curve.y.origin for curve in chart.curves] == [f"methods.loss[{k}, :]" for k in range(3)]
    assert [curve.x.origin for curve in chart.curves] == [f"methods.bits_per_weight[{k}, :]" for k in range(3)]
    np.testing.assert_allclose(chart.drawn, 1)
    rows = [[str(word) for word in row.tokens] for row in pictures(scene, TokenRow)]
    assert rows == [trace.samples[k].split()[:11] for k in (0, 2, 3)]


def test_words_that_the_float_model_does_not_write_are_red(trace):
    scene = ended("price")
    red = np.array(theme.rgb(theme.LOSS))
    floats, *others = pictures(scene, TokenRow)
    meant = [str(word) for word in floats.tokens]
    assert not (floats.color == red).all(axis=1).any()
    for row in others:
        wrong = [str(word) != other for word, other in zip(row.tokens, meant, strict=True)]
        assert (row.color == red).all(axis=1).tolist() == wrong


def test_captions_of_the_whole_model_say_what_was_measured(trace):
    said = sayings(ended("price"))
    assert "Here groups of 8 lose: with their scales, 2 bits become 4." in said
    assert "At 4 bits: almost the same text. At 2: noise." in said
    better = trace.methods.loss.clone()
    better[1, :2] = 0.5 * float(trace.loss_fp32)
    start, end = trace.sample_bounds[:2].tolist()
    faithful = replace(
        trace, methods=replace(trace.methods, loss=better), sample_words=4 * trace.sample_words[start:end],
        sample_bounds=torch.arange(5) * (end - start),
    )  # fmt: skip
    said = sayings(watched(Quantization, "price", trace=faithful, frame_rate=4)[0])
    assert "Counted fairly: finer grids must pay for their scales." in said
    assert "At 4 bits: the same text. At 2: the same text." in said


# -- other parameters --------------------------------------------------------------------------------------------------


def shown_with(trace, **settings):
    """Return a trace of other settings, whose measurements of the whole model are still those of the default."""
    config = Config(**settings)
    parts = (experiment.number_line, experiment.granularities, experiment.error_feedback)
    found = {name: value for part in parts for name, value in part(config).items()}
    return replace(trace, config=config, **found)


@pytest.mark.parametrize(
    "settings",
    [{"bits": 2}, {"bits": 8, "group_size": 4}, {"symmetric": False, "group_size": 32}],
    ids=str,
)
def test_other_settings_can_be_shown(settings, trace):
    other = shown_with(trace, **settings)
    for unit in ("snap_to_the_grid", "one_bit", "largest_value", "cancel", "loop"):
        scene, _ = watched(Quantization, unit, trace=other, frame_rate=4)
        assert scene.ledger
        for line in pictures(scene, SnapLine):
            assert line.span[0] < line.amounts.min()
            assert line.span[1] > line.amounts.max()
            for data in line.data():
                np.testing.assert_allclose(data.drawn, data.meant, atol=1e-6)


def test_a_chart_is_wide_enough_for_scales_of_small_groups(trace):
    costly = replace(trace, methods=replace(trace.methods, bits_per_weight=trace.methods.bits_per_weight + 3))
    scene, _ = watched(Quantization, "price", trace=costly, frame_rate=4)
    (chart,) = pictures(scene, Chart)
    assert chart.x_range[1] > costly.methods.bits_per_weight.max()


def test_where_no_channel_is_loud_enough_nothing_is_moved(trace):
    quiet = replace(trace, outlier_dims=trace.outlier_dims[:0], x_lane=trace.x_lane[:, :0])
    said = sayings(watched(Quantization, "loud_channel", trace=quiet, frame_rate=4)[0])
    assert "Here no channel is loud enough to be moved." in said
    assert "Multiply each lane by its weights, and add." not in said


def test_large_values_are_written_without_decimals(trace):
    loud = replace(trace, x_out=5 * trace.x_out)
    texts = set()

    def look(scene):
        for grid in grids(scene, "x_out"):
            texts.update(text for row in grid.texts for text in row)

    watched(Quantization, "loud_channel", look, loud)
    assert f"{float(loud.x_out[5, loud.outlier_dim]):+.0f}".replace("-", "−") in texts
    assert not any("." in text for text in texts)
