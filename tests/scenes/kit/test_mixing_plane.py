import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.mixing_plane import BEAD, MixingPlane
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

CORNERS = Traced("plane", np.array([[3.0, 0.0], [0.0, 2.0]]))
MIX = Traced("mix", np.array([[1.5, 1.0], [3.0, 0.0], [0.6, 1.6]]))
PUSH = Traced("push", np.array([1.0, 2.0]))
SHADOW = Traced("shadow", np.array([0.6923, 1.5385]))


def plane(corners=CORNERS, mix=MIX[0], roles=("VALUE", "LATENT"), **options):
    return MixingPlane(corners, mix, **({"push": PUSH, "shadow": SHADOW, "roles": roles, "unit": 1.0} | options))


def between(one, other, share=0.5):
    return one + (other - one) * share


def test_arrows_reach_from_the_origin_to_their_tips():
    picture = plane().show()
    image = pixels(picture, FINE)
    for k, role in enumerate(("VALUE", "LATENT")):
        assert color_at(image, between(picture.place((0, 0)), picture.tip(k))) == getattr(theme, role)
    np.testing.assert_allclose(picture.tip(0) - picture.tip(1), [3, -2, 0])


def test_nothing_is_there_before_it_is_shown():
    picture = plane()
    image = pixels(picture, FINE)
    assert all(amount_of(image, getattr(theme, role)) == 0 for role in ("VALUE", "LATENT", "SCORE", "GRADIENT"))
    assert picture.ledger() == []


def test_the_bead_lies_on_the_line_between_the_tips_and_slides_along_it():
    start, end = plane().connect().put(MIX[1]), plane().connect().put(MIX[2])
    middle = halfway(start, end)
    np.testing.assert_allclose(middle.bead_point(), between(start.bead_point(), end.bead_point()))
    image = pixels(end, FINE)
    assert color_at(image, end.bead_point()) == theme.SCORE
    assert color_at(image, between(end.tip(0), end.tip(1), 0.25)) == theme.TEXT
    assert end.data()[1].values.origin == "mix[2, :]"


def test_the_push_starts_where_the_bead_was_first_and_its_shadow_falls_on_the_line():
    picture = plane().connect().grow_push().cast_shadow().leave_ghost().put(MIX[2])
    image = pixels(picture, FINE)
    start = picture.place(MIX[0])
    assert color_at(image, between(start, picture.place(PUSH))) == theme.GRADIENT
    on_line = between(start, picture.place(SHADOW), 0.4)
    assert color_at(image, on_line) != theme.TEXT  # the shadow covers the line
    assert color_at(image, start) == theme.BACKGROUND  # a ring is left
    assert color_at(image, start + np.array([BEAD, 0, 0])) == theme.MUTED
    assert {("arrow", "push"), ("shadow", "shadow"), ("ring", "mix[0, :]"), ("bead", "mix[2, :]")} <= set(
        picture.ledger()
    )


def test_a_growing_arrow_is_not_yet_its_value():
    grown = halfway(plane(), plane().show())
    data = grown.data()[0]
    np.testing.assert_allclose(data.drawn, data.meant / 2)


def test_points_of_another_shape_and_missing_roles_are_refused():
    with pytest.raises(ValueError, match=r"corners are \(k, 2\), mix, push and shadow \(2,\), got \(2,\)"):
        plane(corners=CORNERS[0])
    with pytest.raises(ValueError, match="a role for each of its 2 arrows, got 1"):
        plane(roles=("VALUE",))
    with pytest.raises(TypeError, match="MixingPlane shows values of the Trace"):
        plane(corners=np.zeros((2, 2)))
