"""Drawing words in frame units on a cairo context, as the kit's pictures speak them."""

import math
from collections.abc import Hashable, Iterable, Sequence

import cairo
import numpy as np

from scenes.kit import stamps, theme
from scenes.kit.stamps import STEPS, Draw
from scenes.kit.typography import Style, shape

Point = tuple[float, float] | Sequence[float]


class Painter:
    """A cairo context whose units are the picture's own; opacity multiplies down the tree."""

    def __init__(self, context: cairo.Context, opacity: float = 1.0) -> None:
        self.context = context
        self.opacity = opacity
        self._matrix = matrix = context.get_matrix()
        # a picture that is turned or stretched is drawn as paths; all others stamp what they repeat
        turned = matrix.xy or matrix.yx or matrix.xx <= 0 or abs(matrix.xx + matrix.yy) > 1e-6 * matrix.xx
        self._unit = 0.0 if turned else matrix.xx  # pixels

    def ink(self, color: str, opacity: float = 1.0) -> None:
        red, green, blue = theme.rgb(color)
        # Manim's pixel array is RGBA while cairo writes BGRA, hence the order
        self.context.set_source_rgba(blue, green, red, opacity * self.opacity)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = theme.LINE,
        radius: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Draw a rectangle whose lower left corner is (x, y)."""
        if opacity <= 0 or self.opacity <= 0:
            return
        radius = max(0.0, min(radius, abs(width) / 2, abs(height) / 2))
        if not self._unit:
            self.context.new_path()
            _round_box(self.context, x, y, width, height, radius)
            self._finish(fill, stroke, line, opacity)
            return
        left, bottom = self._steps(x, y)
        right, top = self._steps(x + width, y + height)
        # no stamp: its few straight lines cost less than to look for a mask
        context = self.context
        context.set_matrix(cairo.Matrix(x0=left / STEPS, y0=top / STEPS))
        context.new_path()
        context.set_line_join(cairo.LINE_JOIN_MITER)
        size = (right - left) / STEPS, (bottom - top) / STEPS
        _round_box(context, 0, 0, *size, round(radius * self._unit, 2))
        self._finish(fill, stroke, round(line * self._unit, 3), opacity)
        context.set_matrix(self._matrix)

    def polyline(
        self,
        points: Iterable[Point],
        *,
        stroke: str | None = None,
        fill: str | None = None,
        line: float = theme.LINE,
        closed: bool = False,
        dash: Sequence[float] | None = None,
        opacity: float = 1.0,
    ) -> None:
        """Draw straight segments through `points`."""
        if opacity <= 0 or self.opacity <= 0:
            return
        context = self.context
        context.new_path()
        for point in points.tolist() if isinstance(points, np.ndarray) else points:
            context.line_to(point[0], point[1])
        if closed:
            context.close_path()
        context.set_line_join(cairo.LINE_JOIN_ROUND)
        context.set_line_cap(cairo.LINE_CAP_BUTT if dash else cairo.LINE_CAP_ROUND)
        if dash:
            context.set_dash(list(dash))
        self._finish(fill, stroke, line, opacity)
        context.set_dash([])

    def circle(
        self,
        x: float,
        y: float,
        radius: float,
        *,
        fill: str | None = None,
        stroke: str | None = None,
        line: float = theme.LINE,
        opacity: float = 1.0,
    ) -> None:
        """Draw a full circle."""
        if opacity <= 0 or self.opacity <= 0 or radius <= 0:
            return
        if not self._unit:
            self.context.new_path()
            self.context.arc(x, y, radius, 0, 2 * math.pi)
            self._finish(fill, stroke, line, opacity)
            return
        size = round(radius * self._unit, 2)
        self._stamp(
            ("circle", size),
            self._steps(x, y),
            lambda context: context.arc(0, 0, size, 0, 2 * math.pi),
            fill,
            stroke,
            line,
            opacity,
        )

    def arc(
        self,
        x: float,
        y: float,
        radius: float,
        start: float,
        angle: float,
        *,
        stroke: str | None = None,
        fill: str | None = None,
        line: float = theme.LINE,
        opacity: float = 1.0,
    ) -> None:
        """Draw an arc from `start` over the signed `angle` (radians); a fill makes it a sector."""
        if opacity <= 0 or self.opacity <= 0:
            return
        draw = self.context.arc if angle >= 0 else self.context.arc_negative
        if fill is not None:
            self.context.new_path()
            self.context.move_to(x, y)
            draw(x, y, radius, start, start + angle)
            self.context.close_path()
            self._finish(fill, None, line, opacity)
        if stroke is not None:
            self.context.new_path()
            draw(x, y, radius, start, start + angle)
            self.context.set_line_cap(cairo.LINE_CAP_ROUND)
            self._finish(None, stroke, line, opacity)

    def arrow(
        self,
        start: Point,
        end: Point,
        *,
        color: str,
        line: float = theme.THICK,
        head: float = 0.2,
        opacity: float = 1.0,
    ) -> None:
        """Draw a straight arrow whose tip is exactly at `end`; a short one keeps a smaller head."""
        dx, dy = float(end[0]) - float(start[0]), float(end[1]) - float(start[1])
        length = math.hypot(dx, dy)
        if length < 1e-6 or opacity <= 0 or self.opacity <= 0:
            return
        head = min(head, 0.6 * length)
        ux, uy = dx / length, dy / length
        neck = (float(end[0]) - 0.8 * head * ux, float(end[1]) - 0.8 * head * uy)
        half = 0.42 * head
        self.polyline((start, neck), stroke=color, line=min(line, head), opacity=opacity)
        back = (float(end[0]) - head * ux, float(end[1]) - head * uy)
        wings = ((back[0] - half * uy, back[1] + half * ux), end, (back[0] + half * uy, back[1] - half * ux))
        self.polyline(wings, fill=color, closed=True, opacity=opacity)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        style: Style,
        *,
        color: str,
        align: float = 0.5,
        opacity: float = 1.0,
    ) -> None:
        """Draw one line with its baseline at y; `align` is the share of its width left of x."""
        if not text or opacity <= 0 or self.opacity <= 0:
            return
        line = shape(text, style.face, style.bold)
        unit = style.size / line.cap_height
        self.outline(
            line.path, (text, style.face, style.bold), x - align * line.advance * unit, y, unit, color, opacity
        )

    def outline(
        self, path: cairo.Path, name: Hashable, x: float, y: float, unit: float, color: str, opacity: float = 1.0
    ) -> None:
        """Fill a kept path, which is known by `name`, with its origin at (x, y) and its units `unit` long."""
        if opacity <= 0 or self.opacity <= 0:
            return
        if not self._unit:
            self.context.new_path()
            _scaled_path(self.context, path, x, y, unit, unit)
            self._finish(color, None, 0, opacity)
            return
        # a millionth of the path's unit: no pixel of a line differs, and rounding of positions makes no new size
        scale = round(unit * self._unit, 6)
        self._stamp(
            (name, scale),
            self._steps(x, y),
            lambda context: _scaled_path(context, path, 0, 0, scale, -scale),
            color,
            None,
            0,
            opacity,
        )

    def _steps(self, x: float, y: float) -> tuple[int, int]:
        """Return a point in steps of a stamp."""
        matrix, unit = self._matrix, self._unit
        return round((matrix.x0 + x * unit) * STEPS), round((matrix.y0 - y * unit) * STEPS)

    def _stamp(
        self,
        shape: Hashable,
        at: tuple[int, int],
        draw: Draw,
        fill: str | None,
        stroke: str | None,
        line: float,
        opacity: float,
    ) -> None:
        if fill is not None:
            self.ink(fill, opacity)
            stamps.SHARED.put(self.context, shape, at, draw)
        if stroke is not None:
            self.ink(stroke, opacity)
            stamps.SHARED.put(self.context, shape, at, draw, round(line * self._unit, 3))
        self.context.set_matrix(self._matrix)

    def _finish(self, fill: str | None, stroke: str | None, line: float, opacity: float) -> None:
        if fill is not None:
            self.ink(fill, opacity)
            if stroke is None:
                self.context.fill()
            else:
                self.context.fill_preserve()
        if stroke is not None:
            self.ink(stroke, opacity)
            self.context.set_line_width(line)
            self.context.stroke()
        elif fill is None:
            self.context.new_path()


def _scaled_path(context: cairo.Context, path: cairo.Path, x: float, y: float, right: float, up: float) -> None:
    """Add a kept path at (x, y), its units so long."""
    context.save()
    context.translate(x, y)
    context.scale(right, up)
    context.append_path(path)
    context.restore()


def _round_box(context: cairo.Context, x: float, y: float, width: float, height: float, radius: float) -> None:
    """Add the path of a rectangle."""
    if radius <= 0:
        context.rectangle(x, y, width, height)
        return
    quarter = math.pi / 2
    context.new_sub_path()
    context.arc(x + width - radius, y + radius, radius, -quarter, 0)
    context.arc(x + width - radius, y + height - radius, radius, 0, quarter)
    context.arc(x + radius, y + height - radius, radius, quarter, 2 * quarter)
    context.arc(x + radius, y + radius, radius, 2 * quarter, 3 * quarter)
    context.close_path()
