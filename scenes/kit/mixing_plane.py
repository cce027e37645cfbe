"""MixingPlane: arrows from one origin, and a bead on what lies between their tips; a push on it casts a shadow."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.traced import Traced, require_traced

BEAD = 0.15  # radius
DASH = (0.1, 0.08)


class MixingPlane(Parts):
    """Vectors and an average of them: with two vectors it lies on the line between their tips, where the bead is.

    The box holds the origin and all points.

    Args:
        corners: traced (k, 2), the tip of each arrow.
        mix: traced (2,), the place of the bead.
        push: traced (2,), where an arrow that starts at the first `mix` ends.
        shadow: traced (2,), the foot of that arrow's tip on the line through the first two tips.
        roles: theme role of each arrow.
        unit: frame units for a length of 1.
    """

    animated = ("opacity", "places", "presence", "emphasis", "sides", "bead", "seen", "pushed", "cast")

    def __init__(
        self, corners: Traced, mix: Traced, *, push: Traced, shadow: Traced, roles: Sequence[str], unit: float
    ) -> None:
        self.corners = require_traced(corners, "MixingPlane")
        self.mix, self.start, self.push, self.shadow = (
            require_traced(point, "MixingPlane") for point in (mix, mix, push, shadow)
        )
        points = (self.mix, self.push, self.shadow)
        if self.corners.ndim != 2 or self.corners.shape[1] != 2 or any(point.shape != (2,) for point in points):
            shapes = ", ".join(str(part.shape) for part in (self.corners, *points))
            raise ValueError(f"corners are (k, 2), mix, push and shadow (2,), got {shapes}")
        count = len(self.corners)
        if len(roles) != count:
            raise ValueError(f"MixingPlane needs a role for each of its {count} arrows, got {len(roles)}")
        self.roles, self.unit = tuple(roles), unit
        self.places = np.asarray(self.corners, dtype=float)
        self.bead = np.asarray(self.mix, dtype=float)
        every = np.array([(0.0, 0.0), *self.places, *(np.asarray(point, dtype=float) for point in points)])
        low, high = every.min(axis=0), every.max(axis=0)
        self.middle = (low + high) / 2
        super().__init__(*np.maximum((high - low) * unit, 1e-3))
        self.presence, self.emphasis = np.zeros(count), np.ones(count)
        self.sides = np.array(0.0)  # opacity of the lines between the tips
        self.seen = np.array(0.0)  # opacity of the bead
        self.pushed = np.array(0.0)  # how far the push has grown
        self.cast = np.array(0.0)  # how far its shadow has
        self.ghost = False

    # -- changes, all of them animatable ----------------------------------------------------------------------------

    def connect(self, opacity: float = 1.0) -> Self:
        """Draw the lines between the tips."""
        self.sides = np.array(float(opacity))
        return self

    def put(self, mix: Traced) -> Self:
        """Put the bead on a traced point, and show it."""
        self.mix = require_traced(mix, "MixingPlane.put")
        self.bead, self.seen = np.asarray(mix, dtype=float), np.array(1.0)
        return self

    def grow_push(self, share: float = 1.0) -> Self:
        """Let the push grow out of the first place of the bead."""
        self.pushed = np.array(float(share))
        return self

    def cast_shadow(self, share: float = 1.0) -> Self:
        """Let the tip of the push drop on the line between the first two tips."""
        self.cast = np.array(float(share))
        return self

    def leave_ghost(self) -> Self:
        """Leave a ring where the bead was first."""
        self.ghost = True
        return self

    def blend(self, start: "MixingPlane", end: "MixingPlane", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.mix, self.ghost = nearer.mix, nearer.ghost

    # -- geometry ---------------------------------------------------------------------------------------------------

    def place(self, point: Any) -> np.ndarray:
        """Return the scene point of a pair of coordinates."""
        return self.to_scene(*self._at(point))

    def tip(self, k: int) -> np.ndarray:
        """Return the scene point at the tip of an arrow."""
        return self.place(self.places[k])

    def bead_point(self) -> np.ndarray:
        """Return the scene point of the bead."""
        return self.place(self.bead)

    def _at(self, point: Any) -> tuple[float, float]:
        x, y = (np.asarray(point, dtype=float) - self.middle) * self.unit
        return float(x), float(y)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, painter: Painter) -> None:
        origin = self._at((0.0, 0.0))
        tips = [self._at(place) for place in self.places]
        if self.sides > 0 and len(tips) > 1:
            painter.polyline(tips, stroke=theme.TEXT, line=theme.LINE, closed=len(tips) > 2, opacity=float(self.sides))
        if self.cast > 0:
            self._draw_shadow(painter)
        for tip, role, presence, emphasis in zip(tips, self.roles, self.presence, self.emphasis, strict=True):
            grown = tuple(o + (t - o) * float(presence) for o, t in zip(origin, tip, strict=True))
            color = theme.recede(getattr(theme, role), float(emphasis))
            painter.arrow(origin, grown, color=color, line=1.3 * theme.THICK, head=0.3)
        painter.circle(*origin, 0.07, fill=theme.MUTED)
        start = self._at(self.start)
        if self.pushed > 0:
            end = self._at(self.push)
            grown = tuple(a + (b - a) * float(self.pushed) for a, b in zip(start, end, strict=True))
            painter.arrow(start, grown, color=theme.GRADIENT, line=1.3 * theme.THICK, head=0.3)
        if self.ghost:
            painter.circle(*start, BEAD, fill=theme.BACKGROUND, stroke=theme.MUTED, line=theme.LINE)
        if self.seen > 0:
            bead = self._at(self.bead)
            painter.circle(*bead, BEAD, fill=theme.SCORE, stroke=theme.BACKGROUND, line=0.03, opacity=float(self.seen))

    def _draw_shadow(self, painter: Painter) -> None:
        start, end, foot = self._at(self.start), self._at(self.push), self._at(self.shadow)
        share = float(self.cast)
        dropped = tuple(a + (b - a) * share for a, b in zip(end, foot, strict=True))
        painter.polyline([end, dropped], stroke=theme.GRADIENT, line=theme.HAIRLINE, dash=DASH)
        if share == 1:
            painter.polyline([start, foot], stroke=theme.GRADIENT, line=2.4 * theme.THICK, opacity=0.75)

    def data(self) -> tuple[Data, ...]:
        is_there = self.presence[:, None] > 0
        meant = np.where(is_there, np.asarray(self.corners, dtype=float), 0.0)
        drawn = self.places * self.presence[:, None] * [self.proportion(), 1.0]  # a stretched plane has other angles
        found = [Data(self.corners, meant, drawn)]
        if self.seen > 0:
            found.append(Data(self.mix, np.asarray(self.mix, dtype=float), self.bead))
        return tuple(found)

    def ledger(self) -> list[tuple[str, str]]:
        entries = [("arrow", self.corners[k].origin) for k in range(len(self.roles)) if self.presence[k] > 0]
        shown = (
            (self.seen, "bead", self.mix), (self.pushed, "arrow", self.push), (self.cast, "shadow", self.shadow),
            (self.ghost, "ring", self.start),
        )  # fmt: skip
        return [*entries, *((words, point.origin) for amount, words, point in shown if amount > 0)]
