"""VectorPlane: arrows from one origin on a circle; they turn along arcs, as rotations do."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from manim import Animation, linear

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.traced import Traced, require_traced


class VectorPlane(Picture):
    """A plane with arrows whose tips are traced (x, y) pairs.

    Args:
        tips: traced (N, 2), one arrow a row.
        roles: theme role of each arrow.
        radius: of the circle, in frame units.
        limit: vector length that reaches the circle; by default the longest arrow.
        normalize: draw every arrow to the circle, so that only its direction shows.
    """

    animated = ("opacity", "lengths", "angles", "shown", "wedge", "ghost_opacity")

    def __init__(
        self,
        tips: Traced,
        roles: Sequence[str],
        *,
        radius: float = 1.6,
        limit: float | None = None,
        normalize: bool = False,
        line: float = theme.THICK,
    ) -> None:
        pairs = _pairs(tips)
        if len(roles) != len(pairs):
            raise ValueError(f"VectorPlane needs a role for each of its {len(pairs)} arrows, got {len(roles)}")
        super().__init__(2 * radius, 2 * radius)
        self.values, self.roles, self.radius, self.line, self.normalize = tips, tuple(roles), radius, line, normalize
        lengths = np.hypot(*pairs.T)
        self.limit = float(limit) if limit is not None else float(lengths.max()) or 1.0
        self.lengths, self.angles = lengths, np.arctan2(pairs[:, 1], pairs[:, 0])
        self.shown = np.ones(len(pairs))
        self.wedge = np.array(0.0)  # opacity of the arc from the second arrow to the first
        self.ghosts: tuple[tuple[float, float, str, str], ...] = ()  # length, angle, role, origin
        self.ghost_opacity = np.array(0.3)
        self.ticks: tuple[tuple[float, str], ...] = ()  # angle, role

    # -- changes ----------------------------------------------------------------------------------------------------

    def set_tips(self, tips: Traced) -> Self:
        """Turn the arrows to other tips, each along the shorter arc."""
        pairs = _pairs(tips)
        if len(pairs) != len(self.angles):
            raise ValueError(f"set_tips needs {len(self.angles)} arrows, got {len(pairs)}")
        self.values = tips
        self.lengths = np.hypot(*pairs.T)
        self.angles = _nearest_turn(np.arctan2(pairs[:, 1], pairs[:, 0]), self.angles)
        return self

    def show(self, which: Any = slice(None)) -> Self:
        return self._set_shown(which, 1.0)

    def hide(self, which: Any = slice(None)) -> Self:
        return self._set_shown(which, 0.0)

    def _set_shown(self, which: Any, amount: float) -> Self:
        self.shown = self.shown.copy()
        self.shown[which] = amount
        return self

    def show_wedge(self, opacity: float = 1.0) -> Self:
        """Mark the angle between the first two arrows."""
        self.wedge = np.array(float(opacity))
        return self

    def leave_ghosts(self, *which: int) -> Self:
        """Leave faint copies of arrows where they are now."""
        rows = which or range(len(self.angles))
        new = tuple(
            (float(self.lengths[k]), float(self.angles[k]), self.roles[k], self.values.reshape(-1, 2)[k].origin)
            for k in rows
        )
        self.ghosts = (*self.ghosts, *new)
        return self

    def clear_ghosts(self) -> Self:
        self.ghosts = ()
        return self

    def tick(self, angles: Traced, role: str = "MUTED") -> Self:
        """Put marks on the circle at traced angles (radians)."""
        marks = tuple((float(angle), role) for angle in require_traced(angles, "tick").values.reshape(-1))
        self.ticks = (*self.ticks, *marks)
        return self

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _reach(self, length: float) -> float:
        return self.radius if self.normalize else self.radius * length / self.limit

    def tip(self, k: int) -> np.ndarray:
        """Return the scene point of an arrow's tip."""
        reach = self._reach(float(self.lengths[k]))
        return self.to_scene(reach * math.cos(self.angles[k]), reach * math.sin(self.angles[k]))

    def wedge_angle(self) -> float:
        """Return the drawn angle from the second arrow to the first, along the shorter arc."""
        turn = float(self.angles[0] - self.angles[1])
        return (turn + math.pi) % (2 * math.pi) - math.pi

    def wedge_label_point(self, distance: float = 0.78) -> np.ndarray:
        """Return a scene point on the middle of the wedge."""
        middle = float(self.angles[1]) + self.wedge_angle() / 2
        reach = self.radius * distance
        return self.to_scene(reach * math.cos(middle), reach * math.sin(middle))

    # -- drawing ----------------------------------------------------------------------------------------------------

    def blend(self, start: "VectorPlane", end: "VectorPlane", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.values, self.ghosts, self.ticks = nearer.values, nearer.ghosts, nearer.ticks

    def draw(self, painter: Painter) -> None:
        painter.circle(0, 0, self.radius, stroke=theme.LINES, line=theme.HAIRLINE)
        for angle, role in self.ticks:
            inner, outer = self.radius - 0.07, self.radius + 0.07
            ends = [(r * math.cos(angle), r * math.sin(angle)) for r in (inner, outer)]
            painter.polyline(ends, stroke=getattr(theme, role), line=theme.HAIRLINE)
        for length, angle, role, _ in self.ghosts:
            self._arrow(painter, length, angle, role, float(self.ghost_opacity), self.line * 0.6)
        if self.wedge > 0 and len(self.angles) > 1:
            start, turn = float(self.angles[1]), self.wedge_angle()
            reach = self.radius * 0.42
            opacity = float(self.wedge)
            painter.arc(0, 0, reach, start, turn, fill=theme.SCORE, opacity=0.22 * opacity)
            painter.arc(0, 0, reach, start, turn, stroke=theme.SCORE, line=theme.THICK, opacity=opacity)
        for k, role in enumerate(self.roles):
            self._arrow(painter, float(self.lengths[k]), float(self.angles[k]), role, float(self.shown[k]), self.line)

    def _arrow(self, painter: Painter, length: float, angle: float, role: str, opacity: float, line: float) -> None:
        reach = self._reach(length)
        tip = (reach * math.cos(angle), reach * math.sin(angle))
        painter.arrow((0.0, 0.0), tip, color=getattr(theme, role), line=line, head=3.6 * line, opacity=opacity)

    def ledger(self) -> list[tuple[str, str]]:
        rows = self.values.reshape(-1, 2)
        entries = [("arrow", rows[k].origin) for k in range(len(self.shown)) if self.shown[k] > 0]
        return entries + [("ghost arrow", origin) for *_, origin in self.ghosts]


class TurnThrough(Animation):
    """Turn the arrows of a VectorPlane through traced tips (S, N, 2), evenly over the run time.

    Between two stops every arrow moves along the shorter arc, which is the true path as long as a step turns less than
    half a circle.
    """

    def __init__(self, plane: VectorPlane, tips: Traced, **kwargs: Any) -> None:
        self.stops = require_traced(tips, "TurnThrough")
        if self.stops.ndim != 3 or self.stops.shape[1:] != (len(plane.roles), 2):
            raise ValueError(f"TurnThrough needs (stops, {len(plane.roles)}, 2), got shape {self.stops.shape}")
        pairs = np.asarray(self.stops, dtype=float)
        self.lengths = np.hypot(pairs[..., 0], pairs[..., 1])
        angles = np.arctan2(pairs[..., 1], pairs[..., 0])
        self.angles = np.unwrap(angles, axis=0)
        kwargs.setdefault("rate_func", linear)
        super().__init__(plane, **kwargs)

    def begin(self) -> None:
        # the unwrapped path starts on the turn at which the arrows are now
        offset = _nearest_turn(self.angles[0], self.mobject.angles) - self.angles[0]
        self.angles = self.angles + offset
        super().begin()

    def interpolate_mobject(self, alpha: float) -> None:
        place = self.rate_func(alpha) * (len(self.stops) - 1)
        low = min(int(place), len(self.stops) - 2)
        share = place - low
        self.mobject.lengths = self.lengths[low] * (1 - share) + self.lengths[low + 1] * share
        self.mobject.angles = self.angles[low] * (1 - share) + self.angles[low + 1] * share
        self.mobject.values = self.stops[round(place)]


def _pairs(tips: Traced) -> np.ndarray:
    tips = require_traced(tips, "VectorPlane")
    if tips.shape[-1] != 2:
        raise ValueError(f"tips are (x, y) pairs, {tips.origin} has shape {tips.shape}")
    return np.asarray(tips, dtype=float).reshape(-1, 2)


def _nearest_turn(angles: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the angles plus full turns, each as near as possible to its reference."""
    return angles + 2 * math.pi * np.round((reference - angles) / (2 * math.pi))
