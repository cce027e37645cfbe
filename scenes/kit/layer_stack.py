"""LayerStack: layers of a model as rows of dots over the tokens, lit by a traced amount."""

from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, require_traced


class LayerStack(Picture):
    """A dot for each (layer, position), layer 0 at the bottom, with lines from every position to those it feeds.

    Args:
        values: traced (layers, positions) amounts; 0 is dark, `limit` is fully lit.
        limit: the amount that lights a dot fully, by default the largest.
        role: theme role of a column that is lit by its own token (`light`).
        change_role: theme role of the light that the values give.
    """

    animated = ("opacity", "glow", "own", "present", "lines")
    color_is_amount = True

    def __init__(
        self,
        values: Traced,
        *,
        limit: float | None = None,
        step: tuple[float, float] = (0.9, 1.2),
        dot: float = 0.17,
        role: str = "KEY",
        change_role: str = "LOSS",
    ) -> None:
        self.step, self.dot, self.role, self.change_role = step, dot, role, change_role
        layers, positions = require_traced(values, "LayerStack").shape
        self.limit = limit or float(np.nanmax(np.abs(values.values))) or 1.0
        self._take(values)
        super().__init__(positions * step[0], layers * step[1])
        self.own = np.zeros(positions)
        self.present = np.ones(positions)
        self.lines = np.array([1.0, 0.0])  # opacity of the lines to the right, and of those back to the left

    def _take(self, values: Traced) -> None:
        self.values = require_traced(values, "LayerStack")
        self.glow = self._glow(values)

    def _glow(self, values: Traced) -> np.ndarray:
        return np.nan_to_num(np.clip(np.abs(np.asarray(values, dtype=float)) / self.limit, 0, 1))

    def set_values(self, values: Traced) -> Self:
        """Light the dots by other amounts."""
        self._take(values)
        return self

    def light(self, position: int) -> Self:
        """Light one whole column: what a new token computes for itself."""
        return self._set("own", position, 1.0)

    def show(self, which: Any = slice(None)) -> Self:
        return self._set("present", which, 1.0)

    def hide(self, which: Any = slice(None)) -> Self:
        return self._set("present", which, 0.0)

    def connect(self, *, backward: bool, forward: bool = True) -> Self:
        """Draw the lines to later positions, and those that lead back in time, or not."""
        self.lines = np.array([1.0 if forward else 0.0, 1.0 if backward else 0.0])
        return self

    def darken(self) -> Self:
        """Put out the light of all dots, until `set_values` lights them again."""
        self.glow = np.zeros_like(self.glow)
        return self

    def dot_center(self, layer: int, position: int) -> np.ndarray:
        """Return the scene point of a dot."""
        return self.to_scene(*self._at(layer, position))

    def layer_center(self, layer: int) -> np.ndarray:
        """Return the scene point in the middle of a layer's row."""
        return self.to_scene(0, self._at(layer, 0)[1])

    def _at(self, layer: int, position: int) -> tuple[float, float]:
        x = (position + 0.5) * self.step[0] - self.local_width / 2
        return x, (layer + 0.5) * self.step[1] - self.local_height / 2

    def blend(self, start: "LayerStack", end: "LayerStack", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        layers, positions = self.glow.shape
        forward, backward = (float(share) for share in self.lines)
        for layer in range(layers - 1):
            for source in range(positions):
                for target in range(positions):
                    shown = forward if target >= source else backward
                    opacity = shown * min(self.present[source], self.present[target])
                    if opacity > 0:
                        self._draw_line(painter, (layer, source), target, opacity)
        for layer in range(layers):
            for position in range(positions):
                x, y = self._at(layer, position)
                fill, outline = (self._color(ground, layer, position) for ground in (theme.SURFACE, theme.MUTED))
                opacity = float(self.present[position])
                painter.circle(x, y, self.dot, fill=fill, stroke=outline, line=theme.HAIRLINE, opacity=opacity)

    def _draw_line(self, painter: Painter, source: tuple[int, int], target: int, opacity: float) -> None:
        layer, start = source
        lit = max(float(self.own[start]), float(self.glow[layer, start]))
        role = self.change_role if target < start or self.own[start] < self.glow[layer, start] else self.role
        color = theme.mix(theme.LINES, getattr(theme, role), round(lit * 16) / 16)
        ends = [self._at(layer, start), self._at(layer + 1, target)]
        painter.polyline(ends, stroke=color, line=0.012 + 0.01 * lit, opacity=opacity * (0.5 + 0.4 * lit))

    def _color(self, ground: str, layer: int, position: int) -> str:
        changed = theme.mix(
            ground, getattr(theme, self.change_role), round(float(self.glow[layer, position]) * 24) / 24
        )
        return theme.mix(changed, getattr(theme, self.role), round(float(self.own[position]) * 24) / 24)

    def data(self) -> tuple[Data, ...]:
        # `darken` has put them all out
        return (Data(self.values, self._glow(self.values), self.glow),) if self.glow.any() else ()

    def ledger(self) -> list[tuple[str, str]]:
        return [(f"{self.glow.size} dots", self.values.origin)]
