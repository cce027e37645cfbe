"""Darts: dots that fall into the bars of a histogram, each to its traced height."""

from typing import Any

import numpy as np

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, require_traced

RADIUS = 0.075
FALL = 1.5  # from how high above its place a dart comes
SPREAD = 0.6  # share of a bar's width over which darts lie


class Darts(Picture):
    """Darts in upright bars, as `RowByRow` lets them fall; a golden step apart, so that neighbors seldom touch.

    Args:
        heights: traced place of each dart, in what the bars measure.
        at: traced number of the bar that each one hits.
        bars: the bars; the darts stand in their scale.
    """

    animated = ("opacity", "presence")

    def __init__(self, heights: Traced, at: Traced, bars: Bars) -> None:
        self.values, self.at = require_traced(heights, "Darts"), require_traced(at, "Darts")
        if bars.direction != "up" or self.at.shape != self.values.shape:
            raise ValueError(
                f"Darts need upright bars and the bar of each dart, got bars that grow {bars.direction}, "
                f"{len(self.values)} heights and {len(self.at)} bars"
            )
        self.amounts = np.asarray(self.values, dtype=float)
        super().__init__(bars.local_width, bars.local_height)
        self.unit = bars.length / float(bars.limit)
        aside = (0.618 * np.arange(len(self.amounts)) % 1 - 0.5) * SPREAD * bars.thickness * bars.step
        self.places = (np.asarray(self.at) + 0.5) * bars.step - self.local_width / 2 + aside
        self.presence = np.ones(len(self.amounts))
        self.move_to(bars)

    def place(self, k: int) -> np.ndarray:
        """Return the scene point that a dart hits."""
        return self.to_scene(float(self.places[k]), self._height(k))

    def _height(self, k: int) -> float:
        return float(self.amounts[k]) * self.unit - self.local_height / 2

    def draw(self, painter: Painter) -> None:
        for k, presence in enumerate(self.presence.tolist()):
            if presence > 0:
                y = self._height(k) + FALL * (1 - presence)
                look: dict[str, Any] = {"fill": theme.BACKGROUND, "stroke": theme.TEXT, "line": theme.HAIRLINE}
                painter.circle(float(self.places[k]), y, RADIUS, opacity=min(1.0, 3 * presence), **look)

    def data(self) -> tuple[Data, ...]:
        return (Data(self.values, np.asarray(self.values.values, dtype=float), self.amounts),)

    def ledger(self) -> list[tuple[str, str]]:
        return [("darts", self.values.origin)]
