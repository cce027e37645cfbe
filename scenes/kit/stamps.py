"""Shapes that are drawn again and again, kept as masks: a word or a dot then costs a copy of pixels, not a fill.

A mask holds for one size and for one place between the pixels, in eighths of a pixel: a shape that glides is never
off by more than a sixteenth. What is drawn for the first time, or is large, is drawn as the path it is.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import cairo

STEPS = 8  # places between two pixels, along each axis
LARGEST_PIXELS = 200_000
LIMIT_BYTES = 24_000_000
_IDENTITY = cairo.Matrix()
_FIRST_TIME = "seen once"

Draw = Callable[[cairo.Context], None]


class Mask(NamedTuple):
    """The coverage of a shape, and the whole pixels from the shape's origin to the mask's upper left corner."""

    surface: cairo.ImageSurface
    left: int
    top: int


class Stamps:
    """Masks by shape, size and place between the pixels; the oldest go when there are too many."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._masks: dict[Hashable, Mask | str] = {}

    def put(
        self, context: cairo.Context, shape: Hashable, at: tuple[int, int], outline: Draw, line: float | None = None
    ) -> None:
        """Draw a shape in the context's color.

        Args:
            context: its units become pixels.
            shape: what tells it from all others, with its size in pixels.
            at: place of its origin in steps of 1 / STEPS pixel from the upper left corner of the picture.
            outline: adds the shape's path in pixels around the origin.
            line: width in pixels to stroke the path with, None to fill it.
        """
        right, down = at[0] % STEPS, at[1] % STEPS
        key = (shape, line, right, down)
        found = self._masks.get(key)
        if found is _FIRST_TIME:
            found = self._keep(key, _mask(outline, line, right / STEPS, down / STEPS))
        if isinstance(found, Mask):
            context.set_matrix(_IDENTITY)
            context.mask_surface(found.surface, at[0] // STEPS + found.left, at[1] // STEPS + found.top)
        else:
            if found is None:
                self._keep(key, _FIRST_TIME)
            context.set_matrix(cairo.Matrix(x0=at[0] / STEPS, y0=at[1] / STEPS))
            _paint(context, outline, line)

    def clear(self) -> None:
        """Forget all masks, so that what is drawn next does not depend on what was drawn before."""
        self._masks.clear()
        self.bytes = 0

    def _keep(self, key: Hashable, what: Mask | str | None) -> Mask | str:
        what = what or "too large"
        self.bytes += _bytes(what) - _bytes(self._masks.pop(key, None))
        self._masks[key] = what
        while self.bytes > self.limit_bytes:
            oldest = next(iter(self._masks))
            self.bytes -= _bytes(self._masks.pop(oldest))
        return what


def _bytes(what: Mask | str | None) -> int:
    """Return about how much memory an entry takes."""
    if what is None:
        return 0
    return 200 + (what.surface.get_stride() * what.surface.get_height() if isinstance(what, Mask) else 0)


def _paint(context: cairo.Context, outline: Draw, line: float | None) -> None:
    context.new_path()
    outline(context)
    if line is None:
        context.fill()
    else:
        context.set_line_width(line)
        context.set_line_join(cairo.LINE_JOIN_MITER)
        context.stroke()


def _mask(outline: Draw, line: float | None, right: float, down: float) -> Mask | None:
    """Return the mask of a shape whose origin is that much right of and below a pixel's corner; None if too large."""
    ruler = cairo.Context(cairo.ImageSurface(cairo.FORMAT_A8, 1, 1))
    ruler.translate(right, down)
    outline(ruler)
    if line is not None:
        ruler.set_line_width(line)
    x0, y0, x1, y1 = ruler.fill_extents() if line is None else ruler.stroke_extents()
    left, top = int((x0 + right) // 1) - 1, int((y0 + down) // 1) - 1
    width, height = int((x1 + right) // 1) + 2 - left, int((y1 + down) // 1) + 2 - top
    if width * height > LARGEST_PIXELS:
        return None
    surface = cairo.ImageSurface(cairo.FORMAT_A8, width, height)
    context = cairo.Context(surface)
    context.translate(right - left, down - top)
    _paint(context, outline, line)
    surface.flush()
    return Mask(surface, left, top)


SHARED = Stamps()
