from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.shapes import Stroke
from scenes.kit.traced import Traced, TracedText
from scenes.kit.typography import width
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

VALUES = Traced("weights", np.array([1.0, 0.5, 0.25, np.nan]))
SIGNED = Traced("scores", np.array([2.0, -1.0]))


def lengths(bars):
    """Return how far each bar reaches from its zero."""
    return [float(np.linalg.norm(bars.tip(k) - root(bars, k))) for k in range(len(bars.amounts))]


def root(bars, k):
    return bars.copy().hide().tip(k)


@pytest.mark.parametrize("direction", ["right", "up"])
def test_a_bar_is_as_long_as_its_value_is_of_the_limit(direction):
    bars = Bars(VALUES, limit=2.0, length=4.0, direction=direction)
    assert lengths(bars)[:3] == pytest.approx([2.0, 1.0, 0.5])


def test_bars_with_one_limit_can_be_compared():
    small = Bars(Traced("a", np.array([1.0])), limit=4.0, length=3.0)
    large = Bars(Traced("b", np.array([4.0])), limit=4.0, length=3.0)
    assert lengths(large)[0] == pytest.approx(4 * lengths(small)[0])


def test_signed_bars_leave_zero_to_both_sides():
    bars = Bars(SIGNED, limit=2.0, length=4.0, signed=True)
    assert bars.tip(0)[0] == pytest.approx(2.0)
    assert bars.tip(1)[0] == pytest.approx(-1.0)


def test_zero_can_lie_anywhere_on_the_ground():
    bars = Bars(SIGNED, limit=2.0, length=4.0, signed=0.25)
    assert [bars.tip(k)[0] for k in range(2)] == pytest.approx([2.0, -2.5])  # 1.5 units of length a unit of value


def test_a_bar_that_was_not_there_snaps_into_being():
    bars = Bars(Traced("weights", np.array([np.nan, 1.0])), limit=1.0)
    later = bars.copy().set_values(Traced("later", np.array([0.5, 0.5])))
    assert np.isnan(halfway(bars, later, 0.4).amounts[0])
    assert halfway(bars, later, 1.0).amounts.tolist() == [0.5, 0.5]


def test_a_nan_draws_no_bar():
    image = pixels(Bars(Traced("weights", np.array([np.nan])), limit=1.0, number=None))
    assert amount_of(image, theme.SCORE) == 0


@pytest.mark.parametrize("name", theme.THEMES)
def test_a_bar_has_the_color_of_its_role_and_fades_when_others_lead(name):
    theme.use(name)
    bars = Bars(VALUES, role="KEY", number=None, length=3.0)
    inside = (root(bars, 0) + bars.tip(0)) / 2
    assert color_at(pixels(bars), inside) == theme.KEY
    assert color_at(pixels(bars.focus([1])), inside) == theme.mix(theme.BACKGROUND, theme.KEY, round(0.3 * 32) / 32)
    theme.use("dark")


def test_a_cleared_number_is_not_struck_by_a_line_behind_it():
    bars = Bars(VALUES[:1], limit=2.0, direction="up", length=3.0, step=2.0, number_size=0.5, clear=True)
    middle = float(bars.tip(0)[1]) + 0.35
    line = Stroke([-3, middle, 0], [3, middle, 0], color=theme.MAXIMUM)
    image = pixels(SimpleNamespace(render_to=lambda context: [part.render_to(context) for part in (line, bars)]))
    assert color_at(image, np.array([-2.5, middle])) == theme.MAXIMUM
    left = -width(bars.texts[0], bars.style) / 2
    assert color_at(image, np.array([left - 0.04, middle])) == theme.BACKGROUND


def test_bars_grow_from_zero_when_shown():
    bars = Bars(VALUES, limit=1.0, length=4.0)
    assert lengths(halfway(bars.copy().hide(), bars))[0] == pytest.approx(2.0)


def test_other_values_glide_in_length_while_their_numbers_snap():
    bars = Bars(SIGNED, limit=4.0, length=4.0, signed=True)
    later = bars.copy().set_values(Traced("later", np.array([4.0, 1.0])))
    before, after = halfway(bars, later, 0.4), halfway(bars, later, 0.6)
    assert bars.tip(0)[0] < before.tip(0)[0] < after.tip(0)[0] < later.tip(0)[0]
    assert (before.texts[0], after.texts[0]) == ("2.00", "4.00")


def test_a_larger_limit_makes_all_bars_shrink():
    bars = Bars(VALUES, limit=1.0, length=4.0)
    wider = bars.copy().set_values(VALUES, limit=4.0)
    assert lengths(wider)[:3] == pytest.approx([length / 4 for length in lengths(bars)[:3]])


@given(st.permutations(range(4)))
def test_reordered_bars_stand_at_their_new_places_with_their_own_lengths(places):
    bars = Bars(Traced("weights", np.array([1.0, 0.5, 0.25, 0.1])), step=0.5)
    stood = [bars.tip(k)[1] for k in range(4)]
    before = lengths(bars)
    bars.reorder(places)
    assert [bars.tip(k)[1] for k in range(4)] == pytest.approx([stood[place] for place in places])
    assert lengths(bars) == pytest.approx(before)


def test_a_ghost_keeps_the_former_length_and_its_origin():
    bars = Bars(Traced("early", np.array([1.0])), limit=1.0, length=4.0, number=None).leave_ghosts()
    bars.set_values(Traced("late", np.array([0.25])))
    image = pixels(bars)
    edge = bars.to_scene(bars.local_width / 2, 0)
    assert color_at(image, edge) != theme.BACKGROUND  # the outline ends where the early bar did
    assert color_at(image, bars.to_scene(0.5, 0)) == theme.BACKGROUND  # and is hollow
    assert ("ghost bars", "early") in bars.ledger()


def test_the_ledger_lists_names_and_written_values_of_the_bars_that_are_shown():
    names = tuple(TracedText(word, f"tokens[{k}]") for k, word in enumerate("abcd"))
    bars = Bars(VALUES, names=names).hide([1])
    assert bars.ledger() == [
        *((word, f"tokens[{k}]") for k, word in enumerate("abcd")),
        ("1.00", "weights[0]"),
        ("0.25", "weights[2]"),
    ]


def test_bars_refuse_what_they_cannot_show():
    with pytest.raises(TypeError, match="Bars shows values of the Trace"):
        Bars(np.ones(3))
    with pytest.raises(ValueError, match=r"Bars shows 1 dimension, keys has shape \(2, 2\)"):
        Bars(Traced("keys", np.ones((2, 2))))
    with pytest.raises(ValueError, match="set_values needs 2 values, got 4"):
        Bars(SIGNED).set_values(VALUES)
    with pytest.raises(ValueError, match=r"each of the places 0 to 1 once, got \[0, 0\]"):
        Bars(SIGNED).reorder([0, 0])
    with pytest.raises(ValueError, match="needs a name for each of its 2 values, got 1"):
        Bars(SIGNED, names=(TracedText("a", "tokens[0]"),))


def test_an_outline_leaves_the_inside_empty_and_the_ground_open():
    bars = Bars(VALUES[:1], role="KEY", direction="up", length=4.0, step=2.0, number=None, outline=True)
    image = pixels(bars, FINE)
    middle = (root(bars, 0) + bars.tip(0)) / 2
    aside = np.array([bars.thickness * bars.step / 2, 0, 0])
    assert color_at(image, bars.tip(0)) == theme.KEY
    assert color_at(image, middle + aside) == color_at(image, middle - aside) == theme.KEY
    assert color_at(image, middle) == color_at(image, root(bars, 0)) == theme.BACKGROUND


def test_a_broken_outline_has_gaps():
    whole, broken = (
        Bars(VALUES[:1], role="KEY", length=3.0, number=None, outline=True, dash=dash) for dash in (None, (0.1, 0.1))
    )
    amounts = [amount_of(pixels(bars, FINE), theme.KEY) for bars in (whole, broken)]
    assert 0.35 * amounts[0] < amounts[1] < 0.65 * amounts[0]


@pytest.mark.parametrize("direction", ["right", "up"])
def test_one_bar_taken_out_lies_exactly_over_it(direction):
    bars = Bars(VALUES, limit=2.0, length=4.0, direction=direction, role="KEY", number=None).shift([0.5, -0.3, 0])
    part = bars.bar(1)
    np.testing.assert_allclose(part.tip(0), bars.tip(1))
    np.testing.assert_allclose(root(part, 0), root(bars, 1))
    assert part.values.origin == "weights[1]"
    assert (part.height if direction == "up" else part.width) == pytest.approx(1.0)  # its box is the bar


def test_a_bar_without_length_cannot_be_taken_out():
    with pytest.raises(ValueError, match=r"zeros\[0\] has no bar to take out, its value is 0"):
        Bars(Traced("zeros", np.array([0.0, 1.0]))).bar(0)
