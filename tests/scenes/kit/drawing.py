"""Pictures drawn small, for tests that look at pixels."""

import cairo
import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter

FINE = 1600  # pixels a side at which a hairline is several pixels wide


def pixels(picture, size=400):
    """Draw one picture on a square of 8 x 8 units; returns (size, size, 3) RGB, y down."""
    array = np.zeros((size, size, 4), dtype=np.uint8)
    context = cairo.Context(cairo.ImageSurface.create_for_data(array.data, cairo.FORMAT_ARGB32, size, size))
    context.set_matrix(cairo.Matrix(size / 8, 0, 0, -size / 8, size / 2, size / 2))
    Painter(context).box(-4, -4, 8, 8, fill=theme.BACKGROUND)
    picture.render_to(context)
    return array[..., :3]


def color_at(image, point):
    x, y = (point[:2] * [1, -1] + 4) * len(image) / 8
    return "#" + "".join(f"{channel:02X}" for channel in image[int(y), int(x)])


def amount_of(image, color):
    """Return the share of pixels that have exactly this color."""
    channels = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return float((image == channels).all(axis=2).mean())


def halfway(start, end, alpha=0.5):
    """Return what an animation from one state of a picture to another shows on the way."""
    return start.copy().interpolate(start, end, alpha)
