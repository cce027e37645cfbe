import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.snap_line import LevelCounts, SnapLine, between
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

VALUES = Traced("row", np.array([0.4, -1.3, 0.0]))
LEVELS = Traced("grid", np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan]))
HATS = Traced("hats", np.array([0.0, -1.0, 0.0]))
COARSE = Traced("coarse", np.array([-2.0, 0.0, 2.0, np.nan, np.nan, np.nan]))
CODES = Traced("codes", np.array([-2, -1, 0, 1, 2]))


def line(**options):
    return SnapLine(VALUES, LEVELS, **({"span": (-3.0, 3.0), "length": 6.0, "lane": 1.0} | options))


def test_every_value_has_a_dot_in_its_lane():
    picture = line()
    np.testing.assert_allclose([picture.dot(k) for k in range(3)], [[0.4, 1, 0], [-1.3, 0, 0], [0, -1, 0]])
    image = pixels(picture, FINE)
    assert all(color_at(image, picture.dot(k)) == theme.WEIGHT for k in range(3))
    assert amount_of(image, theme.LOSS) == 0


def test_a_dot_that_snaps_leaves_its_error_in_red_between_the_value_and_the_level():
    picture = line().snap(HATS, 0)
    np.testing.assert_allclose(picture.places, [0.0, -1.3, 0.0])
    image = pixels(picture, FINE)
    assert color_at(image, np.array([0.25, 1, 0])) == theme.LOSS
    assert color_at(image, np.array([0.5, 1, 0])) != theme.LOSS
    assert color_at(image, np.array([-1.1, 0, 0])) != theme.LOSS


def test_on_the_way_a_dot_is_between_its_value_and_its_level():
    np.testing.assert_allclose(halfway(line(), line().snap(HATS)).places, [0.2, -1.15, 0.0])


def test_dots_that_have_snapped_follow_the_grid():
    start = line().snap(HATS)
    hats = Traced("coarse_hats", np.array([0.0, -2.0, 0.0]))
    end = start.copy().set_grid(COARSE, hats)
    assert end.grid.tolist() == [-2.0, 0.0, 2.0]
    np.testing.assert_allclose(halfway(start, end).places, [0.0, -1.5, 0.0])
    np.testing.assert_allclose(end.places, hats.values)
    assert ("ticks", "coarse") in end.ledger()
    assert end.codes is None


def test_a_value_on_its_level_has_no_red():
    only = SnapLine(VALUES[2:], LEVELS, span=(-3, 3), length=6.0, lane=1.0).snap(HATS[2:])
    assert amount_of(pixels(only, FINE), theme.LOSS) == 0


def test_ticks_rise_at_the_levels():
    tick = theme.LINES
    at = np.array([1.0, 1.3, 0])
    assert color_at(pixels(line(), FINE), at) == tick
    assert color_at(pixels(line().hide_ticks(), FINE), at) == theme.BACKGROUND
    assert color_at(pixels(line().hide_ticks().show_ticks(), FINE), at) == tick
    assert "grid" not in dict(map(reversed, line().hide_ticks().ledger()))


def test_close_ticks_are_weaker():
    many = Traced("many", np.linspace(-2, 2, 101))
    picture = SnapLine(VALUES, many, span=(-3, 3), length=6.0, lane=1.0)
    assert amount_of(pixels(picture, FINE), theme.LINES) == 0


def test_codes_stand_below_their_levels_and_are_listed():
    picture = SnapLine(VALUES, LEVELS[:5], span=(-3, 3), length=6.0, lane=1.0, codes=CODES)
    assert [entry for entry in picture.ledger() if "codes" in entry[1]] == [
        (text, f"codes[{k}]") for k, text in enumerate(("−2", "−1", "0", "1", "2"))
    ]
    assert picture.code_center(3)[0] == pytest.approx(1.0)
    assert not [entry for entry in picture.hide_ticks().ledger() if "codes" in entry[1]]


def test_of_many_codes_only_the_ends_and_the_middle_are_written():
    levels, codes = Traced("many", np.linspace(-2, 2, 31)), Traced("codes", np.arange(-15, 16))
    picture = SnapLine(VALUES, levels, span=(-3, 3), length=6.0, lane=1.0, codes=codes)
    assert [text for text, origin in picture.ledger() if "codes" in origin] == ["−15", "0", "15"]


def test_dots_come_in_from_the_left_and_hidden_ones_are_not_listed():
    picture = line().hide()
    assert [what for what, _ in picture.ledger()] == ["ticks"]
    assert amount_of(pixels(picture, FINE), theme.WEIGHT) == 0
    picture.presence = np.array([0.5, 0.0, 0.0])
    assert color_at(pixels(picture, FINE), np.array([-1.3, 1, 0])) == theme.WEIGHT


def test_one_dot_can_lead():
    image = pixels(line().focus(1), FINE)
    picture = line()
    assert color_at(image, picture.dot(1)) == theme.WEIGHT
    assert color_at(image, picture.dot(0)) != theme.WEIGHT
    assert color_at(pixels(line().focus(1).lead(), FINE), picture.dot(0)) == theme.WEIGHT


def test_what_is_drawn_is_what_is_listed():
    for data in line().snap(HATS).data():
        np.testing.assert_allclose(data.drawn, data.meant)


def test_dots_go_to_other_values_and_return_from_their_levels():
    other = Traced("other", np.array([0.8, -2.0, 1.0]))
    picture = line().set_values(other)
    np.testing.assert_allclose(picture.places, other.values)
    np.testing.assert_allclose(halfway(line(), picture).places, [0.6, -1.65, 0.5])
    assert ("dots", "other") in picture.ledger()
    snapped = picture.copy().snap(HATS)
    with pytest.raises(ValueError, match="dots that have not snapped"):
        snapped.copy().set_values(VALUES)
    np.testing.assert_allclose(snapped.release().places, other.values)
    assert amount_of(pixels(snapped, FINE), theme.LOSS) == 0


def test_a_dot_can_have_another_role_and_another_size():
    picture = line(dot=0.3).paint(1, "MAXIMUM")
    image = pixels(picture, FINE)
    aside = np.array([0.2, 0, 0])
    assert color_at(image, picture.dot(1) + aside) == theme.MAXIMUM
    assert color_at(image, picture.dot(0) + aside) == theme.WEIGHT
    assert color_at(pixels(line(), FINE), line().dot(0) + aside) != theme.WEIGHT


def test_lanes_can_be_left_out():
    between = np.array([2.5, 1, 0])
    assert color_at(pixels(line(), FINE), between) != theme.BACKGROUND
    assert color_at(pixels(line(guides=False), FINE), between) == theme.BACKGROUND


def test_a_level_for_each_value_is_needed():
    with pytest.raises(ValueError, match="a level for each of 3 values"):
        line().snap(HATS[:2])
    with pytest.raises(ValueError, match="a code for each level"):
        line(codes=CODES)


# -- counts ------------------------------------------------------------------------------------------------------------

EVEN, COUNTS = Traced("even", np.array([-1.0, 0.0, 1.0])), Traced("counts", np.array([2, 8, 4]))
OTHER, MORE = Traced("other", np.array([-1.0, 0.0, 0.5, 1.0])), Traced("more", np.array([2, 6, 4, 2]))


def counts(**options):
    looks = {"span": (-1, 1), "length": 4.0, "height": 2.0, "limit": 8, "rise": 1.0}
    return LevelCounts(EVEN, COUNTS, **(looks | options))


def test_bars_hang_below_their_levels_as_long_as_their_counts():
    picture = counts()
    np.testing.assert_allclose([picture.tip(k) for k in range(3)], [[-2, 0.5, 0], [0, -1, 0], [2, 0, 0]])
    image = pixels(picture, FINE)
    assert color_at(image, np.array([0, -0.9, 0])) == theme.SCORE
    assert color_at(image, np.array([0.5, -0.5, 0])) == theme.BACKGROUND
    assert color_at(image, np.array([0, 1.5, 0])) == theme.SCORE  # its tick


def test_without_bars_only_the_ticks_are_listed():
    assert counts().hide_bars().ledger() == [("ticks", "even")]
    assert counts().hide_bars().show_bars().ledger() == [("ticks", "even"), ("bars", "counts")]


def test_a_level_parts_into_two_and_its_count_is_shared():
    start, end = counts(), counts().set_levels(OTHER, MORE)
    on_the_way = halfway(start, end)
    assert len(on_the_way.grid) == 4
    np.testing.assert_allclose(on_the_way.data()[0].drawn, (start.grid[[0, 1, 1, 2]] + end.grid) / 2)
    np.testing.assert_allclose(end.data()[1].drawn, MORE.values)
    with pytest.raises(ValueError, match="each level needs a count"):
        counts().set_levels(OTHER, COUNTS)


def test_rows_of_different_lengths_pass_into_each_other():
    few, many = np.array([0.0, 1.0]), np.array([0.0, 0.2, 0.8, 1.0])
    assert between(few, many, 0.0) is few
    assert between(few, many, 1.0) is many
    np.testing.assert_allclose(between(few, many, 0.5), [0.0, 0.1, 0.9, 1.0])
    np.testing.assert_allclose(between(many, few, 0.5), [0.0, 0.1, 0.9, 1.0])
