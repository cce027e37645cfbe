import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.squares import Squares
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import amount_of, color_at, halfway, pixels

COUNTS = Traced("counts", np.array([400, 100]))


def squares(values=(COUNTS[0], COUNTS[1]), roles=("FROZEN", "WEIGHT"), side=4.0):
    return Squares(values, side=side, roles=roles)


def test_areas_are_in_proportion_to_the_amounts():
    image = pixels(squares(), 1600)
    whole = amount_of(image, theme.FROZEN) + amount_of(image, theme.WEIGHT)
    assert whole == pytest.approx(16 / 64, rel=0.01)
    assert amount_of(image, theme.WEIGHT) / whole == pytest.approx(1 / 4, rel=0.01)


def test_they_share_the_lower_left_corner_and_the_first_lies_behind():
    image = pixels(squares())
    assert color_at(image, np.array([-1.8, -1.8, 0])) == theme.WEIGHT
    assert color_at(image, np.array([0.2, 0.2, 0])) == theme.FROZEN
    np.testing.assert_allclose(squares().corner(1), [0, 0, 0])


def test_a_hidden_square_is_not_there_and_grows_by_its_area():
    hidden, shown = squares().hide(1), squares()
    assert amount_of(pixels(hidden), theme.WEIGHT) == 0
    assert hidden.ledger() == [("square", "counts[0]")]
    assert hidden.data()[1].drawn == hidden.data()[1].meant == 0
    half = halfway(hidden, shown)
    assert amount_of(pixels(half, 1600), theme.WEIGHT) == pytest.approx(2 / 64, rel=0.02)


def test_a_stretched_square_is_no_true_drawing():
    stretched = squares().stretch(1.2, 0)
    assert stretched.data()[0].drawn == pytest.approx(480)


def test_what_is_no_amount_of_its_own_is_refused():
    with pytest.raises(TypeError, match="Squares shows values of the Trace"):
        squares(values=(400, 100))
    with pytest.raises(ValueError, match="single values and as many roles, got 2 and 1"):
        squares(roles=("WEIGHT",))
    with pytest.raises(ValueError, match="single values and as many roles, got 1 and 1"):
        squares(values=(COUNTS,), roles=("WEIGHT",))
    with pytest.raises(ValueError, match="an area is above 0"):
        squares(values=(Traced("counts", np.array(0)), COUNTS[1]))
