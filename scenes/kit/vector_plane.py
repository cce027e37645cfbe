"""VectorPlane: arrows from one origin on a circle; they turn along arcs, as rotations do."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from manim import Animation, linear

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.token_row import require_tokens
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style, width

WEDGE = 0.42  # reach of the wedge, as a share of the radius
NAME, GAP = Style(theme.LABEL), 0.07  # of the names around the circle, and what is left between two


class VectorPlane(Parts):
    """A plane with arrows whose tips are traced (x, y) pairs.

    Args:
        tips: traced (N, 2), one arrow a row.
        roles: theme role of each arrow.
        radius: of the circle, in frame units.
        limit: vector length that reaches the circle; by default the longest arrow.
        normalize: draw every arrow to the circle, so that only its direction shows.
        axes: draw the two axes through the origin.
        circle: draw the circle.
        number: format of the coordinates that `drop` writes.
        names: traced words of the arrows, which `label` writes around the circle.
    """

    animated = (
        "opacity", "lengths", "angles", "presence", "emphasis", "named", "wedge", "ghost_opacity", "dropped",
        "trail_start", "trail",
    )  # fmt: skip

    def __init__(
        self,
        tips: Traced,
        roles: Sequence[str],
        *,
        radius: float = 1.6,
        limit: float | None = None,
        normalize: bool = False,
        line: float = theme.THICK,
        axes: bool = False,
        circle: bool = True,
        number: str = "+.1f",
        names: Sequence[Any] = (),
    ) -> None:
        pairs = _pairs(tips)
        if len(roles) != len(pairs):
            raise ValueError(f"VectorPlane needs a role for each of its {len(pairs)} arrows, got {len(roles)}")
        super().__init__(2 * radius, 2 * radius)
        self.values, self.roles, self.radius, self.line, self.normalize = tips, tuple(roles), radius, line, normalize
        self.axes, self.circle, self.number = axes, circle, number
        self.names = require_tokens(names, "VectorPlane")
        if self.names and len(self.names) != len(pairs):
            raise ValueError(f"VectorPlane needs a name for each of its {len(pairs)} arrows, got {len(self.names)}")
        lengths = np.hypot(*pairs.T)
        self.limit = float(limit) if limit is not None else float(lengths.max()) or 1.0
        self.lengths, self.angles = lengths, np.arctan2(pairs[:, 1], pairs[:, 0])
        self.presence = np.ones(len(pairs))
        self.emphasis = np.ones(len(pairs))
        self.named = np.zeros(len(pairs))  # opacity of each name
        self.wedge = np.array(0.0)  # opacity of the arc from the second arrow to the first
        self.wedge_value: Traced | None = None  # its angle, if it is written
        self.dropped = np.array(0.0)  # opacity of the first arrow's coordinates
        self.trail = np.array(0.0)  # opacity of the way the first arrow has come
        self.trail_start = self.angles[:1]
        self.ghosts: tuple[tuple[Traced, str], ...] = ()  # tip, role
        self.ghost_opacity = np.array(0.3)
        self.ticks: tuple[tuple[Traced, Traced | None, str], ...] = ()  # angle, number, role
        self.sectors: tuple[tuple[Traced, str], ...] = ()  # from and to, role

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

    def label(self, which: Any = slice(None), amount: float = 1.0) -> Self:
        """Write the names of arrows around the circle, the leading ones first; what has no room is left out."""
        return self._set("named", which, amount)

    def show_wedge(self, degrees: Traced | None = None, *, opacity: float = 1.0) -> Self:
        """Mark the angle between the first two arrows, and write its traced size beside it."""
        self.wedge = np.array(float(opacity))
        self.wedge_value = None if degrees is None else require_traced(degrees, "show_wedge")
        return self

    def drop(self, opacity: float = 1.0) -> Self:
        """Drop the first arrow's tip on both axes and write its coordinates there."""
        self.dropped = np.array(float(opacity))
        return self

    def leave_trail(self) -> Self:
        """From now on, mark on the circle the way the first arrow comes."""
        self.trail, self.trail_start = np.array(1.0), self.angles[:1].copy()
        return self

    def sector(self, angles: Traced, role: str = "MUTED") -> Self:
        """Shade the part of the plane between two traced angles (radians), counterclockwise."""
        if require_traced(angles, "sector").shape != (2,):
            raise ValueError(f"a sector needs two angles, {angles.origin} has shape {angles.shape}")
        self.sectors = (*self.sectors, (angles, role))
        return self

    def leave_ghosts(self, *which: int) -> Self:
        """Leave faint copies of arrows where they are now."""
        rows = which or range(len(self.angles))
        tips = self.values.reshape(-1, 2)
        self.ghosts = (*self.ghosts, *((tips[k], self.roles[k]) for k in rows))
        return self

    def clear_ghosts(self) -> Self:
        self.ghosts = ()
        return self

    def tick(self, angles: Traced, names: Traced | None = None, *, role: str = "MUTED") -> Self:
        """Put marks on the circle at traced angles (radians), each with a traced whole number if `names` are given."""
        angles = require_traced(angles, "tick").reshape(-1)
        written = [None] * len(angles) if names is None else list(require_traced(names, "tick").reshape(-1))
        if len(written) != len(angles):
            raise ValueError(f"tick needs a name for each of its {len(angles)} marks, got {len(written)}")
        self.ticks = (*self.ticks, *((angle, name, role) for angle, name in zip(angles, written, strict=True)))
        return self

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _reach(self, length: float) -> float:
        return self.radius if self.normalize else self.radius * length / self.limit

    def tip(self, k: int) -> np.ndarray:
        """Return the scene point of an arrow's tip."""
        reach = self._reach(float(self.lengths[k]))
        return self.to_scene(reach * math.cos(self.angles[k]), reach * math.sin(self.angles[k]))

    def foot(self, axis: int) -> np.ndarray:
        """Return the scene point where the first arrow's tip drops on an axis (0 = x, 1 = y)."""
        reach, angle = self._reach(float(self.lengths[0])), float(self.angles[0])
        return self.to_scene(reach * math.cos(angle), 0) if axis == 0 else self.to_scene(0, reach * math.sin(angle))

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
        self.sectors, self.wedge_value = nearer.sectors, nearer.wedge_value

    def draw(self, painter: Painter) -> None:
        for angles, role in self.sectors:
            start, end = (float(angle) for angle in angles)
            painter.arc(0, 0, self.radius, start, end - start, fill=getattr(theme, role), opacity=0.22)
        if self.axes:
            for end in ((self.radius, 0.0), (0.0, self.radius)):
                painter.polyline([(-end[0], -end[1]), end], stroke=theme.LINES, line=theme.HAIRLINE)
        if self.circle:
            painter.circle(0, 0, self.radius, stroke=theme.LINES, line=theme.HAIRLINE)
        if self.trail > 0:
            start = float(self.trail_start[0])
            turn = max(-2 * math.pi, min(2 * math.pi, float(self.angles[0]) - start))
            color = getattr(theme, self.roles[0])
            painter.arc(0, 0, self.radius, start, turn, stroke=color, line=theme.LINE, opacity=0.6 * float(self.trail))
        self._draw_ticks(painter)
        for tip, role in self.ghosts:
            ((x, y),) = _pairs(tip)
            opacity = float(self.ghost_opacity)
            self._arrow(painter, math.hypot(x, y), math.atan2(y, x), getattr(theme, role), opacity, self.line * 0.6)
        if self.wedge > 0 and len(self.angles) > 1:
            self._draw_wedge(painter)
        if self.dropped > 0:
            self._draw_drop(painter)
        for k in np.argsort(self.emphasis, kind="stable"):  # what leads lies on top
            color = theme.recede(getattr(theme, self.roles[k]), float(self.emphasis[k]))
            length, angle = float(self.lengths[k]), float(self.angles[k])
            self._arrow(painter, length, angle, color, float(self.presence[k]), self.line)
        for k, x, y, align in self._written():
            ink = theme.mix(theme.MUTED, theme.TEXT, round(float(self.emphasis[k]) * 8) / 8)
            opacity = float(self.named[k] * self.presence[k])
            painter.text(str(self.names[k]), x, y, NAME, color=ink, align=align, opacity=opacity)

    def _written(self) -> list[tuple[int, float, float, float]]:
        """Return the names that have room: which arrow's, where its baseline starts, and its alignment."""
        found, boxes = [], []
        for k in np.argsort(-self.emphasis, kind="stable").tolist():
            if not self.names or self.named[k] <= 0 or self.presence[k] <= 0:
                continue
            right, up = math.cos(self.angles[k]), math.sin(self.angles[k])
            reach, wide = self.radius + 0.2, width(str(self.names[k]), NAME)
            x, y = reach * right, (reach + 0.1) * up - NAME.size / 2
            align = min(1.0, max(0.0, 0.5 - 1.25 * right))  # centered only near the top and the bottom
            box = (x - align * wide, y, x + (1 - align) * wide, y + NAME.size)
            if all(_apart(box, other) for other in boxes):
                found.append((k, x, y, align))
                boxes.append(box)
        return found

    def _draw_ticks(self, painter: Painter) -> None:
        style = Style(theme.SMALL, "numbers")
        for place, name, role in self.ticks:
            angle = float(place)
            color, inner, outer = getattr(theme, role), self.radius - 0.07, self.radius + 0.07
            ends = [(r * math.cos(angle), r * math.sin(angle)) for r in (inner, outer)]
            painter.polyline(ends, stroke=color, line=theme.HAIRLINE)
            reach = self.radius + 0.27
            x, y = reach * math.cos(angle), reach * math.sin(angle)
            if name is not None:
                painter.text(_whole(name), x, y - style.size / 2, style, color=color)

    def _draw_wedge(self, painter: Painter) -> None:
        start, turn, opacity = float(self.angles[1]), self.wedge_angle(), float(self.wedge)
        reach = self.radius * WEDGE
        painter.arc(0, 0, reach, start, turn, fill=theme.SCORE, opacity=0.22 * opacity)
        painter.arc(0, 0, reach, start, turn, stroke=theme.SCORE, line=theme.THICK, opacity=opacity)
        if self.wedge_value is not None:
            style = Style(max(theme.LABEL, 0.09 * self.radius), bold=True)
            # far enough out that the number fits between the arrows
            fits = 1.8 * style.size / max(abs(math.sin(turn / 2)), 0.1)
            middle, place = start + turn / 2, max(reach + 1.8 * style.size, min(fits, self.radius))
            x, y = place * math.cos(middle), place * math.sin(middle) - style.size / 2
            painter.text(self._wedge_text(), x, y, style, color=theme.SCORE, opacity=opacity)

    def _wedge_text(self) -> str:
        return "" if self.wedge_value is None else f"{format_number(self.wedge_value.values.item(), '.0f')}°"

    def _draw_drop(self, painter: Painter) -> None:
        reach, angle = self._reach(float(self.lengths[0])), float(self.angles[0])
        x, y = reach * math.cos(angle), reach * math.sin(angle)
        opacity, style, color = float(self.dropped), Style(theme.LABEL, "numbers"), getattr(theme, self.roles[0])
        for foot in ((x, 0.0), (0.0, y)):
            painter.polyline([(x, y), foot], stroke=color, line=theme.HAIRLINE, dash=(0.08, 0.06), opacity=opacity)
            painter.circle(*foot, 0.06, fill=color, opacity=opacity)
        first, second = self._coordinates()
        # each number stands on the side of its axis where the arrow is not
        below = 0.16 if y < 0 else -0.16 - style.size
        room = width(first, style) + 0.12  # lines do not run through the numbers
        painter.box(x - room / 2, below - 0.07, room, style.size + 0.14, fill=theme.BACKGROUND, opacity=opacity)
        painter.text(first, x, below, style, color=color, opacity=opacity)
        beside = (0.16, 0.0) if x < 0 else (-0.16, 1.0)
        clear = math.copysign(max(abs(y), 0.3), y)  # off the line of the x axis
        painter.text(second, beside[0], clear - style.size / 2, style, color=color, align=beside[1], opacity=opacity)

    def _coordinates(self) -> tuple[str, str]:
        first, second = self.values.values.reshape(-1, 2)[0].tolist()
        return format_number(first, self.number), format_number(second, self.number)

    def _arrow(self, painter: Painter, length: float, angle: float, color: str, opacity: float, line: float) -> None:
        reach = self._reach(length)
        tip = (reach * math.cos(angle), reach * math.sin(angle))
        painter.arrow((0.0, 0.0), tip, color=color, line=line, head=3.6 * line, opacity=opacity)

    def data(self) -> tuple[Data, ...]:
        tips = np.stack([self.lengths * np.cos(self.angles), self.lengths * np.sin(self.angles)], axis=-1)
        tips = tips * [self.proportion(), 1.0]  # a stretched plane has other angles
        return (Data(self.values, _pairs(self.values), tips),)

    def ledger(self) -> list[tuple[str, str]]:
        rows = self.values.reshape(-1, 2)
        entries = [("arrow", rows[k].origin) for k in np.flatnonzero(self.presence > 0)]
        entries += [(str(self.names[k]), self.names[k].origin) for k, *_ in self._written()]
        entries += [("ghost arrow", tip.origin) for tip, _ in self.ghosts]
        entries += [
            ("tick", angle.origin) if name is None else (_whole(name), name.origin) for angle, name, _ in self.ticks
        ]
        entries += [("sector", angles.origin) for angles, _ in self.sectors]
        if self.wedge > 0 and self.wedge_value is not None:
            entries.append((self._wedge_text(), self.wedge_value.origin))
        if self.dropped > 0:
            entries += [(text, rows[0, k].origin) for k, text in enumerate(self._coordinates())]
        return entries


class TurnThrough(Animation):
    """Turn the arrows of a VectorPlane through traced tips (S, N, 2), evenly over the run time.

    Between two stops every arrow moves along the shorter arc, which is the true path as long as a step turns less than
    half a circle.
    """

    def __init__(self, plane: VectorPlane, tips: Traced, *, degrees: Traced | None = None, **kwargs: Any) -> None:
        self.stops = require_traced(tips, "TurnThrough")
        self.degrees = degrees  # (S,) sizes of the wedge, if it is written
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
        if self.degrees is not None:
            self.mobject.wedge_value = self.degrees[round(place)]


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether two boxes (left, bottom, right, top) leave a gap between them."""
    beside = one[2] + GAP < other[0] or other[2] + GAP < one[0]
    return beside or one[3] + GAP < other[1] or other[3] + GAP < one[1]


def _whole(number: Traced) -> str:
    return format_number(number.values.item(), "d")


def _pairs(tips: Traced) -> np.ndarray:
    tips = require_traced(tips, "VectorPlane")
    if tips.shape[-1] != 2:
        raise ValueError(f"tips are (x, y) pairs, {tips.origin} has shape {tips.shape}")
    return np.asarray(tips, dtype=float).reshape(-1, 2)


def _nearest_turn(angles: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the angles plus full turns, each as near as possible to its reference."""
    return angles + 2 * math.pi * np.round((reference - angles) / (2 * math.pi))
