import math

import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.fan import Fan
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import color_at, halfway, pixels

WEDGE = Traced("wedge", np.array([[0.5, 0.5], [0.0, 1.0], [-1.0, 2.0]]))


def spot(angle, reach=2.0):
    return np.array([reach * math.cos(angle), reach * math.sin(angle), 0])


def test_a_fan_covers_what_lies_between_its_angles_and_nothing_else():
    image = pixels(Fan(WEDGE[1], radius=3.0))
    assert color_at(image, spot(0.5)) != theme.BACKGROUND
    for outside in (spot(-0.3), spot(1.3), spot(0.5, reach=3.3)):
        assert color_at(image, outside) == theme.BACKGROUND


def test_a_fan_opens_from_its_middle_to_both_sides():
    fan = Fan(WEDGE[0], radius=3.0)
    middle = halfway(fan, fan.copy().set_angles(WEDGE[2]))
    assert middle.ends.tolist() == [-0.25, 1.25]
    assert fan.ends.tolist() == [0.5, 0.5]


def test_a_fan_that_recedes_is_weaker_and_leads_again():
    fan = Fan(WEDGE[1], radius=3.0)
    strengths = [
        int(np.abs(pixels(one).astype(int) - pixels(one)[0, 0].astype(int)).sum())
        for one in (fan, fan.copy().recede(), fan.copy().recede().lead())
    ]
    assert strengths[0] == strengths[2] > 2 * strengths[1] > 0


def test_a_fan_knows_where_its_angles_come_from_and_that_stretching_falsifies_them():
    fan = Fan(WEDGE[1], radius=3.0)
    assert fan.ledger() == [("sector", "wedge[1, :]")]
    (data,) = fan.data()
    np.testing.assert_allclose(data.drawn, data.meant)
    (data,) = fan.stretch(2, 0).data()
    assert data.drawn[1] != pytest.approx(data.meant[1])


def test_a_fan_refuses_other_than_two_angles():
    with pytest.raises(ValueError, match=r"a fan has a first and a last angle, wedge has shape \(3, 2\)"):
        Fan(WEDGE, radius=1.0)
