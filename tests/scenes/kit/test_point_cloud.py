import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.point_cloud import PointCloud
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import FINE, amount_of, color_at, halfway, pixels

POINTS = Traced("coords", np.array([[1.0, 0.5], [-2.0, -1.0], [0.5, 2.0]]))
OTHERS = Traced("others", np.array([[-1.0, 0.5], [2.0, -1.0], [0.5, 1.0]]))


def cloud(points=POINTS, **options):
    return PointCloud(points, **({"side": 4.0, "limit": 2.0} | options))


def test_dots_lie_at_their_values_on_both_axes():
    picture = cloud()
    np.testing.assert_allclose(picture.point(1), [-2.0, -1.0, 0])  # the limit lies on the border
    image = pixels(picture, FINE)
    for k in range(3):
        assert color_at(image, picture.point(k)) == theme.LATENT


def test_without_a_limit_the_farthest_dot_lies_a_little_inside_the_border():
    assert 1.7 < cloud(limit=None).point(2)[1] < 2.0


def test_points_of_one_coordinate_lie_on_the_x_axis():
    picture = cloud(POINTS[:, :1])
    np.testing.assert_allclose([picture.point(k)[1] for k in range(3)], 0)
    assert picture.data()[0].drawn.tolist() == [[1.0], [-2.0], [0.5]]


def test_hidden_dots_are_neither_drawn_nor_listed():
    picture = cloud().hide()
    assert amount_of(pixels(picture, FINE), theme.LATENT) == 0
    assert picture.ledger() == []
    assert picture.show(1).ledger() == [("1 dots", "coords")]
    assert color_at(pixels(picture, FINE), picture.point(1)) == theme.LATENT


def test_the_dot_in_focus_keeps_its_color_and_gets_a_ring():
    picture = cloud().focus(0)
    image = pixels(picture, FINE)
    assert color_at(image, picture.point(0)) == theme.LATENT
    above = np.array([0, 2.2 * picture.dot, 0])
    assert color_at(image, picture.point(0) + above) == theme.TEXT
    assert color_at(image, picture.point(1)) == theme.mix(
        theme.BACKGROUND, theme.LATENT, round(theme.DIMMED * 32) / 32
    )  # fmt: skip
    assert amount_of(pixels(picture.lead(), FINE), theme.TEXT) == 0


def test_dots_glide_to_other_points_and_are_their_values_at_the_end():
    start, end = cloud(), cloud().set_points(OTHERS)
    np.testing.assert_allclose(halfway(start, end).point(0), [0.0, 0.5, 0])
    assert end.data()[0].values.origin == "others"
    np.testing.assert_allclose(end.data()[0].drawn, OTHERS.values)


@pytest.mark.parametrize("points", [POINTS[0], POINTS.reshape(1, 6)])
def test_points_of_another_shape_are_refused(points):
    with pytest.raises(ValueError, match=r"points are \(N, 2\) or \(N, 1\), coords.* has shape"):
        cloud(points)


def test_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match="set_points needs 3 points, got 2"):
        cloud().set_points(OTHERS[:2])


def test_points_without_origin_are_refused():
    with pytest.raises(TypeError, match="PointCloud shows values of the Trace"):
        cloud(np.zeros((2, 2)))
