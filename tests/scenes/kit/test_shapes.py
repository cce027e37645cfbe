"""Shapes carry no data, and cannot be made to look like it."""

import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.shapes import Frame, Stroke
from tests.scenes.kit.drawing import FINE, color_at, pixels

WAVE = [[x, np.sin(x), 0] for x in np.linspace(-3, 3, 50)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Frame(3.7, 0.3, fill=theme.KEY), "filled with theme.SURFACE or theme.BACKGROUND"),
        (lambda: Frame(0.5, 0.5, fill=theme.signed_color(0.3)), "filled with theme.SURFACE or theme.BACKGROUND"),
        (lambda: Frame(0.5, 0.5, color=theme.signed_color(0.3)), "has a color of the theme"),
        (lambda: Frame(0.5, 0.5).set_color("#123456"), "has a color of the theme"),
        (lambda: Frame(0.5, 0.5, line=0.4), "at most 0.06"),
        (lambda: Stroke([0, 0, 0], [3.7, 0, 0], line=0.4), "at most 0.06"),
        (lambda: Stroke(*WAVE), "at most 8 points or closes, got 50; a Chart shows traced curves"),
    ],
    ids=["bar", "cell", "rim", "new rim", "thick rim", "thick line", "curve"],
)
def test_a_shape_that_would_look_like_data_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_panel_a_way_with_corners_and_a_closed_track_are_shapes():
    assert Frame(4, 3, color=theme.LINES, fill=theme.SURFACE).set_color(theme.QUERY).fill == theme.SURFACE
    assert len(Stroke([0, 0, 0], [1, 0, 0], [1, 1, 0], line=theme.THICK).path) == 3
    assert len(Stroke(*([np.cos(a), np.sin(a), 0] for a in np.linspace(0, 2 * np.pi, 80))).path) == 80


def test_the_corners_of_a_small_frame_can_be_sharper():
    corner = np.array([-1.015, 1.015, 0])
    assert color_at(pixels(Frame(2, 2, line=theme.THICK), FINE), corner) == theme.BACKGROUND
    assert color_at(pixels(Frame(2, 2, line=theme.THICK, radius=0.0), FINE), corner) == theme.TEXT
