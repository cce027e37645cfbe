"""PointCloud: traced points as dots on a plane, or on a line if they have one coordinate."""

from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.traced import Traced, require_traced


class PointCloud(Parts):
    """A square with both axes through zero in its middle, and a dot for each row of `points`.

    Args:
        points: traced (N, 2), or (N, 1) for dots on the x axis.
        side: of the square.
        limit: the coordinate that lies on the border, by default a little beyond the farthest.
        role: theme role of the dots.
        dot: radius of a dot.
    """

    animated = ("opacity", "places", "presence", "emphasis", "ring")

    def __init__(
        self, points: Traced, *, side: float, limit: float | None = None, role: str = "LATENT", dot: float = 0.07
    ) -> None:
        super().__init__(side, side)
        self.role, self.dot = role, dot
        self._take(points)
        self.limit = limit or 1.08 * float(np.abs(self.places).max()) or 1.0
        self.presence = np.ones(len(self.places))
        self.emphasis = np.ones(len(self.places))
        self.ring = np.zeros(len(self.places))  # opacity of a ring around each dot

    def _take(self, points: Traced) -> None:
        points = require_traced(points, "PointCloud")
        if points.ndim != 2 or points.shape[1] not in (1, 2):
            raise ValueError(f"points are (N, 2) or (N, 1), {points.origin} has shape {points.shape}")
        self.values = points
        self.places = np.zeros((len(points), 2))
        self.places[:, : points.shape[1]] = np.asarray(points, dtype=float)

    def set_points(self, points: Traced) -> Self:
        """Let the dots go to other points."""
        if len(points) != len(self.places):
            raise ValueError(f"set_points needs {len(self.places)} points, got {len(points)}")
        self._take(points)
        return self

    def focus(self, which: Any) -> Self:
        """Let everything recede but these dots, and put a ring around them."""
        return super().focus(which)._set("ring", which, 1.0)

    def lead(self, which: Any = slice(None)) -> Self:
        """Bring dots back to full color, and take their rings away."""
        return super().lead(which)._set("ring", which, 0.0)

    def point(self, k: int) -> np.ndarray:
        """Return the scene point of a dot."""
        return self.to_scene(*self._at(k))

    def _at(self, k: int) -> tuple[float, float]:
        x, y = self.places[k] * (self.local_width / 2 / self.limit)
        return float(x), float(y)

    def blend(self, start: "PointCloud", end: "PointCloud", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        half, color = self.local_width / 2, getattr(theme, self.role)
        painter.box(-half, -half, 2 * half, 2 * half, stroke=theme.LINES, line=theme.HAIRLINE, radius=0.06)
        painter.polyline([(-half, 0), (half, 0)], stroke=theme.LINES, line=theme.HAIRLINE)
        if self.values.shape[1] == 2:
            painter.polyline([(0, -half), (0, half)], stroke=theme.LINES, line=theme.HAIRLINE)
        for k in np.argsort(self.emphasis, kind="stable"):  # what leads lies on top
            x, y = self._at(int(k))
            own = theme.recede(color, float(self.emphasis[k]))
            painter.circle(x, y, self.dot, fill=own, opacity=float(self.presence[k]))
            painter.circle(
                x, y, 2.2 * self.dot, stroke=theme.TEXT, line=theme.LINE, opacity=float(self.ring[k] * self.presence[k])
            )

    def data(self) -> tuple[Data, ...]:
        columns = self.values.shape[1]
        return (Data(self.values, np.asarray(self.values.values, dtype=float), self.places[:, :columns]),)

    def ledger(self) -> list[tuple[str, str]]:
        shown = int((self.presence > 0).sum())
        return [(f"{shown} dots", self.values.origin)] if shown else []
