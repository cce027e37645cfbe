import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.stacked_bar import StackedBar
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

PARTS = Traced("parts", np.array([2.0, 1.0, 0.0]))
OTHER = Traced("other", np.array([1.0, 0.5, 2.0]))
ROLES = ("FROZEN", "GRADIENT", "KEY")
WALL = Traced("wall", np.array(3.5))


def bar(values=PARTS, **options):
    return StackedBar(values, **({"limit": 4.0, "length": 4.0, "thickness": 1.0, "roles": ROLES} | options))


def test_parts_follow_each_other_as_long_as_their_amounts():
    image = pixels(bar(), FINE)
    seen = [color_at(image, np.array([x, 0, 0])) for x in (-1.9, -0.1, 0.1, 0.9, 1.1)]
    assert seen == [theme.FROZEN, theme.FROZEN, theme.GRADIENT, theme.GRADIENT, theme.BACKGROUND]
    np.testing.assert_allclose(bar().part_center(1), [0.5, 0, 0])
    np.testing.assert_allclose(bar().end(), [1, 0, 0])


def test_when_a_part_shrinks_those_to_its_right_move_along():
    end = bar().set_values(OTHER)
    np.testing.assert_allclose(end.part_center(2), [0.5, 0, 0])
    np.testing.assert_allclose(halfway(bar(), end).part_center(1), [(1.5 + 0.375) - 2, 0, 0])


def test_from_nearer_parts_and_mark_move_together():
    far, near = bar(mark=WALL), bar(mark=WALL).set_limit(2.0)
    np.testing.assert_allclose(near.place(1.0), [0, 0, 0])
    np.testing.assert_allclose(halfway(far, near).place(1.0), (far.place(1.0) + near.place(1.0)) / 2)
    assert color_at(pixels(far, FINE), np.array([1.5, 0.65, 0])) == theme.TEXT
    assert color_at(pixels(far.show_mark(0), FINE), np.array([1.5, 0.65, 0])) == theme.BACKGROUND


def test_a_number_stands_only_in_a_part_that_has_room_for_it():
    assert bar(number=".1f").ledger() == [("2.0", "parts[0]"), ("1.0", "parts[1]")]
    narrow = bar(number=".1f", number_size=0.5)
    assert narrow.ledger() == [("2.0", "parts[0]"), ("length", "parts[1]")]
    assert bar(number=".1f", mark=WALL).ledger()[-1] == ("mark", "wall")


def test_parts_come_one_after_the_other_and_what_is_hidden_is_not_listed():
    picture = bar().hide([1])
    assert [origin for _, origin in picture.ledger()] == ["parts[0]"]
    assert amount_of(pixels(picture), theme.GRADIENT) == 0
    for data in picture.data():
        np.testing.assert_allclose(data.drawn, data.meant)


def test_a_part_can_change_its_role():
    assert color_at(pixels(bar().paint(0, "WEIGHT")), np.array([-1, 0, 0])) == theme.WEIGHT


def test_amounts_below_zero_and_missing_roles_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        bar(Traced("parts", np.array([1.0, -1.0, 0.0])))
    with pytest.raises(ValueError, match="3 parts need as many roles, got 1"):
        bar(roles=("KEY",))
    with pytest.raises(ValueError, match="set_values needs 3 values, got 1"):
        bar().set_values(PARTS[:1])
