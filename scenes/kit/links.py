"""Links: curves between two rows of things, as strong as their traced weights."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, require_traced


class Links(Picture):
    """A curve from every start to every end whose weight is not zero; NaN is no link.

    Args:
        weights: traced (starts, ends) amounts; a 1-D field is one start.
        starts, ends: scene points, such as `row.tile_center(k)`.
        limit: the weight that gets full strength, by default the largest.
        role: theme role of the curves.
        faintest: least opacity of a link that there is, so that it can be seen.
        bend: how far a curve leaves straight up or down before it turns, as a share of the height.
    """

    animated = ("opacity", "strength", "emphasis", "anchors")
    color_is_amount = True

    def __init__(
        self,
        weights: Traced,
        starts: Sequence[np.ndarray],
        ends: Sequence[np.ndarray],
        *,
        limit: float | Traced | None = None,
        role: str = "ATTENTION",
        line: float = theme.THICK,
        faintest: float = 0.0,
        bend: float = 0.5,
    ) -> None:
        self.role, self.line, self.faintest, self.bend = role, line, faintest, bend
        matrix = _matrix(weights)
        if matrix.shape != (len(starts), len(ends)):
            raise ValueError(f"{len(starts)} starts and {len(ends)} ends need as many weights, got {matrix.shape}")
        self.limit = float(limit) if limit is not None else float(np.nanmax(np.abs(matrix.values))) or 1.0
        self._take(matrix)
        self.emphasis = np.ones(len(starts))
        points = np.array([np.asarray(point, dtype=float)[:2] for point in (*starts, *ends)])
        low, high = points.min(axis=0), points.max(axis=0)
        super().__init__(*np.maximum(high - low, 1e-3))
        middle = (low + high) / 2
        self.anchors = points - middle
        self.shift(np.array([*middle, 0.0]))

    def _take(self, matrix: Traced) -> None:
        self.values, self.strength = matrix, self._strength(matrix)

    def _strength(self, matrix: Traced) -> np.ndarray:
        return np.nan_to_num(np.clip(np.abs(np.asarray(matrix.values, dtype=float)) / self.limit, 0, 1))

    def set_values(self, weights: Traced) -> Self:
        """Show other weights; the curves grow stronger and weaker."""
        matrix = _matrix(weights)
        if matrix.shape != self.values.shape:
            raise ValueError(f"set_values needs the shape {self.values.shape}, got {matrix.shape}")
        self._take(matrix)
        return self

    def focus(self, starts: Any) -> Self:
        """Let the links of all other starts recede."""
        self.emphasis = np.zeros_like(self.emphasis)
        self.emphasis[starts] = 1.0
        return self

    def lead(self) -> Self:
        """Bring every link back."""
        self.emphasis = np.ones_like(self.emphasis)
        return self

    def aim(self, ends: Sequence[np.ndarray]) -> Self:
        """Let the curves end at other scene points."""
        count = len(self.strength)
        if len(ends) != len(self.anchors) - count:
            raise ValueError(f"aim needs {len(self.anchors) - count} points, got {len(ends)}")
        middle, right, up = self._frame()
        local = [(_along(np.asarray(point) - middle, right), _along(np.asarray(point) - middle, up)) for point in ends]
        self.anchors = np.vstack([self.anchors[:count], local])
        return self

    def blend(self, start: "Links", end: "Links", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        count, color = len(self.strength), getattr(theme, self.role)
        for s, row in enumerate(self.strength):
            for e, strength in enumerate(row):
                clear = max(float(strength), self.faintest) if strength > 0 else 0.0
                opacity = clear * (theme.DIMMED + (1 - theme.DIMMED) * float(self.emphasis[s]))
                if opacity > 0.01:
                    curve = _curve(self.anchors[s], self.anchors[count + e], self.bend)
                    painter.polyline(curve, stroke=color, line=self.line * (0.3 + 0.7 * strength), opacity=opacity)

    def data(self) -> tuple[Data, ...]:
        return (Data(self.values, self._strength(self.values), self.strength),)

    def ledger(self) -> list[tuple[str, str]]:
        rows, columns = np.nonzero(self.strength)
        return [("link", self.values[int(s), int(e)].origin) for s, e in zip(rows, columns, strict=True)]


def _matrix(weights: Traced) -> Traced:
    weights = require_traced(weights, "Links")
    if weights.ndim not in (1, 2):
        raise ValueError(f"Links shows 1 or 2 dimensions, {weights.origin} has shape {weights.shape}")
    return weights.reshape(1, -1) if weights.ndim == 1 else weights


def _along(vector: np.ndarray, axis: np.ndarray) -> float:
    return float(vector @ axis / (axis @ axis))


def _curve(start: np.ndarray, end: np.ndarray, bend: float) -> np.ndarray:
    """Return points of a cubic curve that leaves and arrives vertically."""
    t = np.linspace(0, 1, 24)[:, None]
    lift = np.array([0.0, bend * (end[1] - start[1])])
    controls = (start, start + lift, end - lift, end)
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # (24, 4)
    return weights @ np.array(controls)
