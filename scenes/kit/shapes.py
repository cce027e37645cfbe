"""Shapes without data: frames around things, arrows that carry them, lines that part them."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from manim import Mobject

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture

CORNERS = 8  # of an open line; more of them would be a curve, and a curve is data


def _role(color: str | None, default: str) -> np.ndarray:
    """Return the channels of a color of the theme: any other one could stand for an amount."""
    known = {shade.upper() for palette in theme.THEMES.values() for shade in palette.values()}
    if color is not None and color.upper() not in known:
        raise ValueError(f"a shape without data has a color of the theme, such as theme.MUTED, got {color!r}")
    return np.array(theme.rgb(color or default))


def _thin(line: float) -> float:
    if line > theme.THICK:
        raise ValueError(f"a line is at most {theme.THICK} (theme.THICK) wide, got {line}; a bar shows a traced value")
    return line


class Frame(Picture):
    """A rounded outline; `Frame.around(grid)` marks what is in focus and can be animated to another place.

    It holds no data, so its `fill` is a ground (`theme.SURFACE` or `theme.BACKGROUND`).
    """

    animated = ("opacity", "tint")

    def __init__(
        self,
        width: float,
        height: float,
        *,
        color: str | None = None,
        line: float = theme.LINE,
        fill: str | None = None,
        radius: float = 0.1,
    ) -> None:
        super().__init__(width, height)
        grounds = {palette[name] for palette in theme.THEMES.values() for name in ("SURFACE", "BACKGROUND")}
        if fill is not None and fill not in grounds:
            raise ValueError(
                f"a frame is filled with theme.SURFACE or theme.BACKGROUND, got {fill!r}; a cell shows a value"
            )
        self.line, self.fill, self.radius = _thin(line), fill, radius
        self.tint = _role(color, theme.TEXT)

    @classmethod
    def around(
        cls, thing: Mobject, *, pad: float = 0.06, color: str | None = None, line: float = theme.LINE
    ) -> "Frame":
        """Return a frame around `thing`."""
        return cls(thing.width + 2 * pad, thing.height + 2 * pad, color=color, line=line).move_to(thing)

    def set_color(self, color: Any = None, family: bool = True) -> Self:
        self.tint = _role(str(color), theme.TEXT)
        return self

    def draw(self, painter: Painter) -> None:
        width, height = self.local_width, self.local_height
        color = theme.hex_color(tuple(self.tint))
        painter.box(
            -width / 2, -height / 2, width, height, fill=self.fill, stroke=color, line=self.line, radius=self.radius
        )


class Stroke(Picture):
    """A polyline through scene points, drawn up to `drawn` (0..1 of its length), with an arrow head if wanted."""

    animated = ("opacity", "drawn", "path", "tint")

    def __init__(
        self,
        *points: Sequence[float] | np.ndarray,
        color: str | None = None,
        line: float = theme.LINE,
        head: float = 0.0,
        dash: Sequence[float] | None = None,
    ) -> None:
        path = np.array([np.asarray(p, dtype=float)[:2] for p in points])
        if len(path) > CORNERS and not np.allclose(path[0], path[-1]):
            raise ValueError(
                f"a line has at most {CORNERS} points or closes, got {len(path)}; a Chart shows traced curves"
            )
        low, high = path.min(axis=0), path.max(axis=0)
        size = np.maximum(high - low, 1e-3)
        super().__init__(*size)
        self.path = path - (low + high) / 2
        self.line, self.head, self.dash = _thin(line), head, dash
        self.drawn = np.array(1.0)
        self.tint = _role(color, theme.LINES)
        self.shift(np.array([*((low + high) / 2), 0.0]))

    def draw_to(self, share: float) -> Self:
        """Draw the first `share` of the length; `Stroke(...).draw_to(0)` then `.animate.draw_to(1)` draws it live."""
        self.drawn = np.array(float(share))
        return self

    def draw(self, painter: Painter) -> None:
        if self.drawn <= 0:
            return
        steps = np.linalg.norm(np.diff(self.path, axis=0), axis=1)
        left = float(self.drawn) * steps.sum()
        points = [self.path[0]]
        for start, end, step in zip(self.path[:-1], self.path[1:], steps, strict=True):
            if left <= 0:
                break
            points.append(start + (end - start) * min(1.0, left / step if step else 1.0))
            left -= step
        color = theme.hex_color(tuple(self.tint))
        if len(points) < 2:
            return
        if self.head:
            painter.polyline(points[:-1], stroke=color, line=self.line, dash=self.dash)
            painter.arrow(points[-2], points[-1], color=color, line=self.line, head=self.head)
        else:
            painter.polyline(points, stroke=color, line=self.line, dash=self.dash)


def arrow(start: Any, end: Any, *, color: str | None = None, line: float = theme.LINE, head: float = 0.18) -> Stroke:
    """Return a straight arrow between two scene points."""
    return Stroke(start, end, color=color or theme.MUTED, line=line, head=head)
