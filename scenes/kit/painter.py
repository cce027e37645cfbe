"""Drawing words in frame units on a cairo context, as the kit's pictures speak them."""

import math
from collections.abc import Iterable, Sequence

import cairo

from scenes.kit import theme
from scenes.kit.typography import Style, shape

Point = tuple[float, float] | Sequence[float]


class Painter:
    """A cairo context whose units are the picture's own; opacity multiplies down the tree."""

    def __init__(self, context: cairo.Context, opacity: float = 1.0) -> None:
        self.context = context
        self.opacity = opacity

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
        context = self.context
        context.new_path()
        radius = max(0.0, min(radius, abs(width) / 2, abs(height) / 2))
        if radius > 0:
            for cx, cy, start in (
                (x + width - radius, y + radius, -math.pi / 2),
                (x + width - radius, y + height - radius, 0.0),
                (x + radius, y + height - radius, math.pi / 2),
                (x + radius, y + radius, math.pi),
            ):
                context.arc(cx, cy, radius, start, start + math.pi / 2)
            context.close_path()
        else:
            context.rectangle(x, y, width, height)
        self._finish(fill, stroke, line, opacity)

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
        for point in points:
            context.line_to(float(point[0]), float(point[1]))
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
        self.context.new_path()
        self.context.arc(x, y, radius, 0, 2 * math.pi)
        self._finish(fill, stroke, line, opacity)

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
        context = self.context
        context.save()
        context.translate(x - align * line.advance * unit, y)
        context.scale(unit, unit)
        context.new_path()
        context.append_path(line.path)
        context.restore()
        self.ink(color, opacity)
        context.fill()

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
