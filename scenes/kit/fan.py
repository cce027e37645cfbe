"""Fan: a sector of a circle between two traced angles, which opens, closes and turns."""

from typing import Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, require_traced

LIT, FAINT = 0.28, 0.08  # opacity of the sector when it leads and when it does not
EDGE = 0.75  # strength of its edges when it does not lead


class Fan(Picture):
    """A sector from the first to the second angle, counterclockwise, around the middle of its box.

    Args:
        angles: traced (2,), radians.
        radius: of the circle, in frame units.
        role: theme role of the sector and of its two edges.
    """

    animated = ("opacity", "ends", "light")

    def __init__(self, angles: Traced, *, radius: float, role: str = "SCORE") -> None:
        super().__init__(2 * radius, 2 * radius)
        self.radius, self.role = radius, role
        self.light = np.array(1.0)
        self.set_angles(angles)

    def set_angles(self, angles: Traced) -> Self:
        """Open, close or turn to two other angles."""
        if require_traced(angles, "Fan").shape != (2,):
            raise ValueError(f"a fan has a first and a last angle, {angles.origin} has shape {angles.shape}")
        self.values = angles
        self.ends = np.asarray(angles, dtype=float)
        return self

    def recede(self) -> Self:
        """Leave little of its color."""
        self.light = np.array(0.0)
        return self

    def lead(self) -> Self:
        """Give it its full color."""
        self.light = np.array(1.0)
        return self

    def blend(self, start: "Fan", end: "Fan", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        color, (first, last) = getattr(theme, self.role), self.ends.tolist()
        opacity = FAINT + (LIT - FAINT) * float(self.light)
        painter.arc(0, 0, self.radius, first, last - first, fill=color, opacity=opacity)
        edge = theme.mix(theme.BACKGROUND, color, EDGE + (1 - EDGE) * round(float(self.light) * 16) / 16)
        for angle in (first, last):
            tip = (self.radius * np.cos(angle), self.radius * np.sin(angle))
            painter.polyline([(0, 0), tip], stroke=edge, line=theme.LINE)
        painter.arc(0, 0, self.radius, first, last - first, stroke=edge, line=theme.LINE)

    def data(self) -> tuple[Data, ...]:
        # a stretched fan has other angles
        return (Data(self.values, np.asarray(self.values, dtype=float), self.ends * self.proportion()),)

    def ledger(self) -> list[tuple[str, str]]:
        return [("sector", self.values.origin)]
