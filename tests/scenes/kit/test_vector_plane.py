import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenes.kit import theme
from scenes.kit.traced import Traced, TracedText
from scenes.kit.vector_plane import TurnThrough, VectorPlane
from tests.scenes.kit.drawing import FINE, color_at, halfway, pixels

ANGLES = st.floats(-math.pi, math.pi)


def tips(*angles, length=1.0, field="tips"):
    return Traced(field, length * np.array([[math.cos(a), math.sin(a)] for a in angles]))


def plane(*angles, **options):
    return VectorPlane(tips(*angles), ["QUERY", "KEY"][: len(angles)], radius=2.0, **options)


@given(ANGLES, ANGLES)
def test_an_arrow_turns_along_the_shorter_arc_and_keeps_its_length(start, end):
    before = plane(start)
    after = before.copy().set_tips(tips(end))
    middle = halfway(before, after)
    assert np.linalg.norm(middle.tip(0)) == pytest.approx(2.0)
    turn = abs(float(after.angles[0] - before.angles[0]))
    assert turn <= math.pi + 1e-9
    assert abs(float(middle.angles[0] - before.angles[0])) == pytest.approx(turn / 2, abs=1e-9)


@given(ANGLES)
def test_an_arrow_ends_at_its_traced_tip(angle):
    arrow = VectorPlane(tips(angle, length=3.0), ["QUERY"], radius=2.0, limit=6.0)
    np.testing.assert_allclose(arrow.tip(0)[:2], [math.cos(angle), math.sin(angle)], atol=1e-9)


def test_normalized_arrows_all_reach_the_circle():
    both = VectorPlane(Traced("tips", np.array([[0.1, 0.0], [0.0, 5.0]])), ["QUERY", "KEY"], radius=2.0, normalize=True)
    assert [np.linalg.norm(both.tip(k)) for k in range(2)] == pytest.approx([2.0, 2.0])


@given(ANGLES, st.floats(-3.0, 3.0))
def test_the_wedge_is_the_angle_from_the_second_arrow_to_the_first_wherever_they_point(start, between):
    pair = plane(start + between, start)
    assert pair.wedge_angle() == pytest.approx(between, abs=1e-9)


def test_the_wedge_opens_between_the_arrows_and_writes_its_traced_size():
    degrees = Traced("angle", np.array([60.0, 30.0]))[0]
    pair = plane(math.radians(60), 0.0).show_wedge(degrees)
    inside = np.array([0.5 * math.cos(math.radians(30)), 0.5 * math.sin(math.radians(30)), 0])
    assert color_at(pixels(pair), inside) != theme.BACKGROUND
    assert color_at(pixels(pair), -inside) == theme.BACKGROUND
    assert ("60°", "angle[0]") in pair.ledger()


def test_ghosts_stay_where_the_arrows_were():
    arrow = plane(0.0).leave_ghosts().set_tips(tips(math.pi / 2, field="later"))
    assert color_at(pixels(arrow), np.array([1.0, 0, 0])) not in (theme.BACKGROUND, theme.QUERY)
    assert color_at(pixels(arrow), np.array([0, 1.0, 0])) == theme.QUERY
    assert arrow.ledger() == [("arrow", "later"), ("ghost arrow", "tips")]


def test_the_trail_covers_the_circle_only_where_the_hand_has_been():
    hand = plane(0.0).leave_trail().set_tips(tips(math.pi / 2))
    image = pixels(hand, FINE)
    passed, ahead = (np.array([2 * math.cos(a), 2 * math.sin(a), 0]) for a in (math.pi / 4, -math.pi / 4))
    assert color_at(image, passed) not in (theme.LINES, theme.BACKGROUND)
    assert color_at(image, ahead) == theme.LINES


def test_a_sector_shades_the_angles_between_its_traced_ends():
    seen = plane(math.pi).sector(Traced("trained", np.array([0.0, 2.0])))
    image = pixels(seen)
    assert color_at(image, np.array([0.5, 0.5, 0])) != theme.BACKGROUND
    assert color_at(image, np.array([0.5, -0.5, 0])) == theme.BACKGROUND
    with pytest.raises(ValueError, match=r"a sector needs two angles, trained has shape \(3,\)"):
        seen.sector(Traced("trained", np.zeros(3)))


def test_a_dropped_tip_writes_its_coordinates_with_their_origins():
    arrow = VectorPlane(Traced("q", np.array([[-2.2, 0.5]])), ["QUERY"], axes=True).drop()
    assert arrow.ledger() == [("arrow", "q"), ("−2.2", "q[0, 0]"), ("+0.5", "q[0, 1]")]


def test_ticks_carry_traced_numbers():
    marked = plane(0.0).tick(Traced("angles", np.array([0.0, 1.0])), Traced("positions", np.array([0, 1])))
    assert marked.ledger()[1:] == [("0", "positions[0]"), ("1", "positions[1]")]
    with pytest.raises(ValueError, match="a name for each of its 2 marks, got 1"):
        marked.tick(Traced("angles", np.zeros(2)), Traced("positions", np.array([3])))


@given(st.floats(0.1, 3.0), st.integers(2, 30))
def test_turning_through_stops_makes_every_full_turn_of_the_way(step, stops):
    path = Traced("path", np.array([[[math.cos(k * step), math.sin(k * step)]] for k in range(stops)]))
    hand = VectorPlane(path[0], ["QUERY"])
    turning = TurnThrough(hand, path)
    turning.begin()
    turning.interpolate_mobject(1.0)
    assert float(hand.angles[0]) == pytest.approx((stops - 1) * step)
    turning.interpolate_mobject(0.5)
    assert float(hand.angles[0]) == pytest.approx((stops - 1) * step / 2)
    assert hand.values.origin.startswith("path[")


def test_turning_starts_on_the_turn_where_the_hand_is_now():
    hand = plane(0.0)
    hand.angles = hand.angles + 4 * math.pi
    turning = TurnThrough(hand, Traced("path", tips(0.0, 0.5).values.reshape(2, 1, 2)))
    turning.begin()
    turning.interpolate_mobject(0.0)
    assert float(hand.angles[0]) == pytest.approx(4 * math.pi)


def test_a_plane_refuses_what_is_no_arrow():
    with pytest.raises(TypeError, match="VectorPlane shows values of the Trace"):
        VectorPlane(np.zeros((1, 2)), ["QUERY"])
    with pytest.raises(ValueError, match=r"tips are \(x, y\) pairs, keys has shape \(1, 3\)"):
        VectorPlane(Traced("keys", np.zeros((1, 3))), ["QUERY"])
    with pytest.raises(ValueError, match="a role for each of its 2 arrows, got 1"):
        VectorPlane(tips(0.0, 1.0), ["QUERY"])
    with pytest.raises(ValueError, match=r"TurnThrough needs \(stops, 1, 2\), got shape \(2, 2\)"):
        TurnThrough(plane(0.0), tips(0.0, 1.0))


def named(*angles):
    names = tuple(TracedText("abcdef"[k] * 6, f"names[{k}]") for k in range(len(angles)))
    return VectorPlane(tips(*angles), ["KEY"] * len(angles), radius=2.0, names=names)


def test_names_stand_around_the_circle_beyond_their_arrows():
    arrows = named(0.0, math.pi, math.pi / 2).label()
    places = {k: (x - align, y) for k, x, y, align in arrows._written()}
    assert places[0][0] == pytest.approx(2.2)  # starts right of the tip
    assert places[1][0] == pytest.approx(-3.2)  # ends left of it
    assert places[2][1] > 2.0
    assert ("aaaaaa", "names[0]") in arrows.ledger()
    assert not [text for text, origin in named(0.0).ledger() if origin.startswith("names")]


def test_of_two_names_at_one_place_that_of_the_leading_arrow_is_written():
    arrows = named(0.0, 0.01).label()
    assert [k for k, *_ in arrows._written()] == [0]
    assert [k for k, *_ in arrows.focus(1)._written()] == [1]


def test_arrows_that_recede_are_weaker_and_lie_below_the_others():
    both = plane(0.5, 0.5).focus(0)
    assert color_at(pixels(both, FINE), np.array([math.cos(0.5), math.sin(0.5), 0])) == theme.QUERY
    both.focus(1)
    assert color_at(pixels(both, FINE), np.array([math.cos(0.5), math.sin(0.5), 0])) == theme.KEY


def test_a_name_for_each_arrow_or_none():
    with pytest.raises(ValueError, match="needs a name for each of its 2 arrows, got 1"):
        VectorPlane(tips(0, 1), ["KEY", "KEY"], names=(TracedText("a", "names[0]"),))
