import numpy as np
import pytest
from manim import UP

from scenes.kit import theme
from scenes.kit.chart import Chart, round_ticks
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

X = Traced("steps", np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
Y = Traced("loss", np.array([4.0, 2.0, 1.0, 1.0, 2.0]))


def chart(**options):
    return Chart(6.0, 4.0, **({"x": (0, 4), "y": (0, 4)} | options))


def test_a_point_lies_where_its_values_are_on_both_axes():
    axes = chart()
    number = axes.curve(X, Y, role="LOSS")
    np.testing.assert_allclose(axes.point(number, 0)[:2], [-3.0, 2.0])
    np.testing.assert_allclose(axes.point(number, 2)[:2], [0.0, -1.0])
    np.testing.assert_allclose(axes.place(4, 0)[:2], [3.0, -2.0])


def test_equal_factors_are_equal_distances_on_a_log_axis():
    axes = chart(y=(1, 100), log_y=True)
    heights = [axes.place(0, value)[1] for value in (1, 10, 100)]
    assert heights == pytest.approx([-2.0, 0.0, 2.0])


def test_the_digits_at_the_ticks_are_as_high_as_asked():
    def height(**options):
        left = pixels(chart(y_ticks=[2.0], **options), FINE)[:, : FINE // 8 - 20]  # of the axes
        rows = np.nonzero((left != left[0, 0]).any(axis=(1, 2)))[0]
        return (rows[-1] - rows[0] + 1) * 8 / FINE

    assert height() == pytest.approx(theme.SMALL, abs=0.02)
    assert height(tick_size=0.3) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"y": (1, 1)}, "the y range must rise, got 1..1"), ({"x": (0, 4), "log_x": True}, "must rise from above 0")],
)
def test_a_range_that_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chart(**options)


def test_a_curve_is_drawn_live_up_to_its_share_and_labelled_at_the_end():
    axes = chart()
    number = axes.curve(X, Y, role="LOSS", label="loss", drawn=0)
    assert amount_of(pixels(axes), theme.LOSS) == 0
    half = pixels(axes.draw_curve(number, 0.5), FINE)
    assert color_at(half, axes.place(1.5, 1.5)) == theme.LOSS
    assert color_at(half, axes.place(3.0, 1.0)) == theme.BACKGROUND
    assert color_at(pixels(axes.draw_curve(number), FINE), axes.place(3.0, 1.0)) == theme.LOSS


def test_a_wider_range_moves_axes_and_curves_together():
    axes = chart()
    axes.curve(X, Y, role="LOSS")
    wider = axes.copy().set_range(y=(0, 8))
    middle = halfway(axes, wider)
    assert axes.point(0, 0)[1] == pytest.approx(2.0)
    assert wider.point(0, 0)[1] == pytest.approx(0.0)
    assert wider.point(0, 0)[1] < middle.point(0, 0)[1] < axes.point(0, 0)[1]
    assert middle.place(0, 4)[1] == pytest.approx(middle.point(0, 0)[1])


def test_a_curve_glides_to_other_heights():
    axes = chart()
    number = axes.curve(X, Y, role="LOSS")
    later = axes.copy().set_curve(number, Traced("other", np.full(5, 2.0)))
    np.testing.assert_allclose(halfway(axes, later).heights[number], [3.0, 2.0, 1.5, 1.5, 2.0])


def test_a_rider_sits_on_the_curve():
    axes = chart()
    number = axes.curve(X, Y, role="LOSS")
    axes.ride(number, 0.5)
    assert color_at(pixels(axes), axes.place(2.0, 1.0) + 0.06 * UP) == theme.LOSS


def test_a_rider_that_was_not_there_arrives():
    axes = chart()
    number = axes.curve(X, Y, role="LOSS")
    assert halfway(axes, axes.copy().ride(number, 0.5), 1.0).rider[number] == 0.5


def test_points_alone_are_dots_without_a_line():
    axes = chart()
    axes.curve(X, Y, role="KEY", line=0, dots=0.12)
    image = pixels(axes)
    assert color_at(image, axes.place(2, 1)) == theme.KEY
    assert color_at(image, axes.place(0.5, 3)) == theme.BACKGROUND


def test_a_spread_is_a_band_around_its_curve_or_whiskers_at_its_points():
    spread = (Traced("low", np.full(5, 0.5)), Traced("high", np.full(5, 3.5)))
    banded, whiskered = chart(), chart()
    banded.curve(X, Y, role="KEY", spread=spread)
    whiskered.curve(X, Y, role="KEY", spread=spread, whiskers=True)
    between = banded.place(2.5, 3.0)
    assert color_at(pixels(banded), between) not in (theme.BACKGROUND, theme.KEY)
    assert color_at(pixels(whiskered), between) == theme.BACKGROUND
    assert color_at(pixels(whiskered), whiskered.place(2.0, 3.0)) != theme.BACKGROUND
    assert [entry for entry in banded.ledger() if entry[0] == "spread"] == [("spread", "low"), ("spread", "high")]


def test_an_area_is_filled_down_to_the_foot():
    axes = chart()
    axes.curve(X, Y, role="LOSS", fill=True)
    image = pixels(axes)
    assert color_at(image, axes.place(2.0, 0.5)) != theme.BACKGROUND
    assert color_at(image, axes.place(2.0, 1.5)) == theme.BACKGROUND


def test_a_level_crosses_the_whole_chart_and_is_in_the_ledger():
    axes = chart().level(Traced("floor", np.array(1.0)), label="best possible")
    row = pixels(axes)[int((4 - axes.place(0, 1)[1]) * 50)]
    painted = (row != row[0]).any(axis=1)
    assert painted[60:90].any()
    assert painted[300:340].any()
    assert ("level", "floor") in axes.ledger()


def test_the_x_axis_lies_at_zero_and_breaks_where_zero_is_out_of_sight():
    signed, broken, honest = chart(y=(-4, 4)), chart(y=(2, 4)), chart()
    assert color_at(pixels(signed, FINE), signed.place(1.0, 0.0)) == theme.MUTED
    assert color_at(pixels(signed, FINE), signed.place(1.0, -4.0)) == theme.BACKGROUND
    assert amount_of(pixels(broken), theme.MUTED) > amount_of(pixels(honest), theme.MUTED)


def test_the_ledger_names_what_is_drawn_and_not_what_is_hidden():
    axes = chart()
    first, second = axes.curve(X, Y, role="LOSS"), axes.curve(X, Y, role="KEY", drawn=0)
    assert axes.ledger() == [("curve", "loss over steps")]
    axes.draw_curve(second).show_curve(first, 0)
    assert axes.ledger() == [("curve", "loss over steps")]
    axes.show_curve(second, 0)
    assert axes.ledger() == []


def test_a_chart_refuses_bare_arrays_and_fields_of_other_lengths():
    with pytest.raises(TypeError, match="Chart shows values of the Trace"):
        chart().curve(X, np.zeros(5), role="LOSS")
    with pytest.raises(ValueError, match=r"one equal length, got shapes \(5,\), \(2,\)"):
        chart().curve(X, Y[:2], role="LOSS")
    with pytest.raises(ValueError, match="has no origin"):
        chart(y_label="loss after 40 steps")
    axes = chart()
    number = axes.curve(X, Y, role="LOSS")
    with pytest.raises(ValueError, match=r"set_curve needs the shape \(5,\)"):
        axes.set_curve(number, Y[:2])


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.255, 0.352, 5, [0.26, 0.28, 0.3, 0.32, 0.34]),
        (0, 1.25, 4, [0, 0.5, 1.0]),
        (0, 470, 5, [0, 100, 200, 300, 400]),
        (-1, 1, 5, [-1, -0.5, 0, 0.5, 1]),
        (3, 9, 3, [4, 6, 8]),
    ],
)
def test_round_ticks_are_as_close_together_as_their_number_allows(low, high, most, expected):
    assert round_ticks(low, high, most) == pytest.approx(expected)


def test_areas_can_stand_on_each_other_as_strong_as_they_are_asked_to_be():
    axes = chart()
    low, high = (Traced(name, np.full(5, amount)) for name, amount in (("low", 1.0), ("high", 3.0)))
    axes.curve(X, low, role="KEY", fill=True, strength=1.0, line=0)
    axes.curve(X, high, role="LOSS", spread=(low, high), strength=1.0, line=0)
    image = pixels(axes, FINE)
    seen = [color_at(image, axes.place(2.5, height)) for height in (0.5, 2.5, 3.5)]
    assert seen == [theme.KEY, theme.LOSS, theme.BACKGROUND]
