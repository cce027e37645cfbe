import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.page_tank import PageTank
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import amount_of, color_at, halfway, pixels


def field(name, values):
    return Traced(name, np.array(values))


def tank(**options):
    fields = {
        "capacity": field("capacity", 6.0), "fixed": field("fixed", 2.0), "varying": field("varying", [1.0, 3.0]),
        "resident": field("resident", [3, 1]), "evicted": field("evicted", [0, 2]), "page": field("page", 1.0),
    }  # fmt: skip
    return PageTank(**(fields | options), length=6.0, height=1.0, gap=1.0)


def test_pages_lie_behind_what_fills_the_tank():
    image = pixels(tank())
    assert [color_at(image, np.array([x, 1, 0])) for x in (-2, -0.5, 0.4, 2.4)] == [
        theme.FROZEN, theme.SCORE, theme.LATENT, theme.LATENT,
    ]  # fmt: skip
    assert color_at(image, np.array([-2, -1, 0])) == theme.SURFACE


def test_when_the_tank_fills_up_pages_lie_on_the_shelf():
    picture = tank().set_step(1)
    image = pixels(picture)
    assert color_at(image, picture.page_center(0)) == theme.LATENT
    np.testing.assert_allclose(picture.page_center(0), [2.5, 1, 0])  # the one that has stayed
    np.testing.assert_allclose([picture.page_center(k) for k in (1, 2)], [[-2.5, -1, 0], [-1.5, -1, 0]])
    assert amount_of(image, theme.LATENT) == pytest.approx(amount_of(pixels(tank()), theme.LATENT), rel=0.02)


def test_pages_fly_and_what_varies_grows():
    way = halfway(tank(), tank().set_step(1))
    np.testing.assert_allclose(way.page_center(1), (tank().page_center(1) + tank().set_step(1).page_center(1)) / 2)
    assert float(way.filled) == pytest.approx(2.0)


def test_the_ledger_follows_the_step():
    origins = [origin for _, origin in tank().set_step(1).ledger()]
    assert origins == ["capacity", "fixed", "varying[1]", "resident[1]", "evicted[1]", "page"]
    for data in tank().set_step(1).data():
        np.testing.assert_allclose(data.drawn, data.meant)


def test_pages_that_get_lost_are_refused():
    with pytest.raises(ValueError, match="the same pages"):
        tank(evicted=field("evicted", [0, 1]))
    with pytest.raises(ValueError, match="every step needs an amount"):
        tank(evicted=field("evicted", [0]))
