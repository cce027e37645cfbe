import cairo
import numpy as np
import pytest

from scenes.kit import stamps, theme
from scenes.kit.painter import Painter
from scenes.kit.stamps import Stamps
from scenes.kit.typography import Style


@pytest.fixture(autouse=True)
def _no_masks():
    stamps.SHARED.clear()
    yield
    stamps.SHARED.clear()


def drawn(draw, *, offset=(0.0, 0.0), turned=0.0):
    """Draw at 135 pixels a unit, as in a video of 1080 lines."""
    array = np.zeros((300, 400, 4), dtype=np.uint8)
    context = cairo.Context(cairo.ImageSurface.create_for_data(array.data, cairo.FORMAT_ARGB32, 400, 300))
    context.set_matrix(cairo.Matrix(135, 0, 0, -135, 200 + offset[0], 150 + offset[1]))
    context.rotate(turned)
    draw(Painter(context))
    return array.astype(int)


SHAPES = {
    "text": lambda p: p.text("0.5 words", 0.1, 0.2, Style(0.2), color=theme.TEXT),
    "cell": lambda p: p.box(-0.31, -0.25, 0.62, 0.5, fill=theme.QUERY, radius=0.05),
    "tile": lambda p: p.box(-0.31, -0.25, 0.62, 0.5, fill=theme.SURFACE, stroke=theme.KEY, radius=0.1, opacity=0.5),
    "dot": lambda p: p.circle(0.2, 0.1, 0.06, fill=theme.KEY, stroke=theme.TEXT),
    "square corners": lambda p: p.box(-0.31, -0.25, 0.62, 0.5, stroke=theme.KEY),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_stamped_shape_is_the_path_within_rounding(name):
    first = drawn(SHAPES[name])
    drawn(SHAPES[name])  # makes the mask
    assert np.abs(drawn(SHAPES[name]) - first).max() <= 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_within_a_sixteenth_of_a_pixel_of_its_true_place(name):
    # a turn by next to nothing draws the path where it is
    for offset in [(0.03, 0.31), (0.44, 0.69), (0.81, 0.97)]:
        true = drawn(SHAPES[name], offset=offset, turned=1e-9)
        # an edge of 255 levels that is off by 1/16 pixel changes by 16; a corner by twice that
        assert np.abs(drawn(SHAPES[name], offset=offset) - true).max() <= 34


def test_what_is_drawn_again_after_clearing_is_the_same_to_the_bit():
    runs = []
    for _ in range(2):
        stamps.SHARED.clear()
        runs.append([drawn(SHAPES["tile"], offset=(k / 3, 0)) for k in range(12)])
    assert all((a == b).all() for a, b in zip(*runs, strict=True))


def test_masks_stay_below_their_limit():
    masks = Stamps(limit_bytes=20_000)
    context = cairo.Context(cairo.ImageSurface(cairo.FORMAT_ARGB32, 100, 100))
    for size in range(10, 90):
        for _ in range(3):
            masks.put(context, ("box", size), (0, 0), lambda c, size=size: c.rectangle(0, 0, size, size))
        assert masks.bytes <= 20_000
    assert masks.bytes > 5_000


def test_a_large_shape_stays_a_path():
    masks = Stamps()
    context = cairo.Context(cairo.ImageSurface(cairo.FORMAT_ARGB32, 10, 10))
    for _ in range(3):
        masks.put(context, "stage", (0, 0), lambda c: c.rectangle(0, 0, 1920, 1080))
    assert masks.bytes < 1000
