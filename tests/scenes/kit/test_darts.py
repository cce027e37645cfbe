import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.darts import FALL, RADIUS, Darts
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import color_at, pixels

BARS = Bars(Traced("q", np.array([0.5, 1.0])), direction="up", length=4.0, step=2.0, role="KEY", number=None)
HEIGHTS, AT = Traced("height", np.array([0.25, 0.75, 0.5])), Traced("bar", np.array([0, 1, 1]))


def test_a_dart_hits_its_bar_at_its_height_in_the_scale_of_the_bars():
    bars = BARS.copy().shift([0.5, -0.2, 0])
    darts = Darts(HEIGHTS, AT, bars)
    for k, (height, at) in enumerate(zip(HEIGHTS.values, AT.values, strict=True)):
        foot, tip = bars.copy().hide().tip(at), bars.tip(at)
        x, y, _ = darts.place(k)
        assert y == pytest.approx(foot[1] + height * (tip - foot)[1] / BARS.values.values[at])
        assert abs(x - tip[0]) < bars.thickness * bars.step / 2
        assert color_at(pixels(darts), darts.place(k)) == theme.BACKGROUND


def test_darts_in_one_bar_lie_beside_each_other():
    darts = Darts(Traced("height", np.full(5, 0.4)), Traced("bar", np.zeros(5, dtype=int)), BARS)
    places = sorted(darts.place(k)[0] for k in range(5))
    assert min(np.diff(places)) > RADIUS


def test_a_dart_falls_from_above_its_place():
    darts = Darts(HEIGHTS, AT, BARS)
    darts.presence = np.array([0.5, 0.0, 0.0])
    image = pixels(darts, 1600)
    halfway = darts.place(0) + np.array([0, FALL / 2 - RADIUS, 0])
    assert color_at(image, halfway) == theme.TEXT
    assert color_at(image, darts.place(1) - [0, RADIUS, 0]) == theme.BACKGROUND  # not there yet


def test_the_data_are_the_heights():
    (data,) = Darts(HEIGHTS, AT, BARS).data()
    assert data.drawn.tolist() == HEIGHTS.values.tolist()
    assert Darts(HEIGHTS, AT, BARS).ledger() == [("darts", "height")]


def test_darts_need_upright_bars_and_a_bar_each():
    lying = Bars(Traced("q", np.array([0.5, 1.0])))
    with pytest.raises(ValueError, match="upright bars .* got bars that grow right"):
        Darts(HEIGHTS, AT, lying)
    with pytest.raises(ValueError, match="3 heights and 2 bars"):
        Darts(HEIGHTS, AT[:2], BARS)
