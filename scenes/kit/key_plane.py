"""KeyPlane: keys as arrows over the line of one query, in the plane that keeps all that a dot product uses."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.token_row import BOS, require_tokens
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style, width

BAR = 0.2  # height of the length below the line
REACH = 0.85  # of the angle


class KeyPlane(Parts):
    """The query points to the right; every key starts where it starts. A dropped key leaves its length on the line.

    The box holds the arrows; lengths lie just below its foot.

    Args:
        keys: traced (S, 2), length along the query and distance from it.
        query: traced (2,), the query itself in this plane.
        angles: traced (S,) degrees between the query and each key.
        names: traced tokens of the keys.
        unit: frame units for a vector of length 1.
    """

    animated = ("opacity", "presence", "emphasis", "labeled", "dropped", "opened")

    def __init__(self, keys: Traced, query: Traced, *, angles: Traced, names: Sequence[Any], unit: float) -> None:
        self.values, self.query = require_traced(keys, "KeyPlane"), require_traced(query, "KeyPlane")
        self.angles, self.names, self.unit = require_traced(angles, "KeyPlane"), require_tokens(names, "KeyPlane"), unit
        if self.values.ndim != 2 or self.values.shape[1] != 2 or self.query.shape != (2,):
            raise ValueError(f"keys are (S, 2) and the query (2,), got {self.values.shape} and {self.query.shape}")
        count = len(self.values)
        if len(self.angles) != count or len(self.names) != count:
            raise ValueError(
                f"{count} keys need as many angles and names, got {len(self.angles)} and {len(self.names)}"
            )
        self.places = np.asarray(self.values, dtype=float)
        self.low = min(0.0, float(self.places[:, 0].min()))
        high = max(float(self.query[0]), float(self.places[:, 0].max()))
        super().__init__((high - self.low) * unit, float(self.places[:, 1].max()) * unit)
        self.presence = np.zeros(count)  # opacity of each key
        self.emphasis = np.ones(count)
        self.labeled = np.zeros(count)
        self.dropped = np.zeros(count)  # how much of its length lies on the line
        self.opened = np.zeros(count)  # opacity of its angle

    def label(self, which: Any, amount: float = 1.0) -> Self:
        """Write the words of keys at their tips."""
        return self._set("labeled", which, amount)

    def open(self, which: Any, amount: float = 1.0) -> Self:
        """Mark the angle between the query and keys."""
        return self._set("opened", which, amount)

    def drop(self, which: Any = slice(None), amount: float = 1.0) -> Self:
        """Drop the tips of keys on the line and lay their signed lengths along it; 0 takes them up again."""
        return self._set("dropped", which, amount)

    @property
    def origin(self) -> np.ndarray:
        """Return the scene point where all arrows start."""
        return self.to_scene(*self._at(0.0, 0.0))

    def length_center(self) -> np.ndarray:
        """Return the scene point below the origin, in the middle of where the lengths lie."""
        x, y = self._at(0.0, 0.0)
        return self.to_scene(x, y - 0.1 - BAR / 2)

    def _at(self, along: float, across: float) -> tuple[float, float]:
        return (along - self.low) * self.unit - self.local_width / 2, across * self.unit - self.local_height / 2

    def draw(self, painter: Painter) -> None:
        half = self.local_width / 2
        x, y = self._at(0.0, 0.0)
        painter.polyline([(-half - 0.15, y), (half + 0.15, y)], stroke=theme.LINES, line=theme.HAIRLINE)
        for k in np.argsort(self.emphasis, kind="stable"):  # what leads lies on top
            if self.presence[k] > 0:
                self._draw_key(painter, int(k), (x, y))
        painter.arrow((x, y), self._at(*np.asarray(self.query, dtype=float)), color=theme.QUERY, line=theme.THICK)
        painter.circle(x, y, 0.06, fill=theme.TEXT)

    def _draw_key(self, painter: Painter, k: int, start: tuple[float, float]) -> None:
        (x, y), tip = start, self._at(*self.places[k])
        shown, dropped, opened = float(self.presence[k]), float(self.dropped[k]), float(self.opened[k])
        emphasis = float(self.emphasis[k])
        color = theme.recede(theme.KEY, emphasis)
        if opened > 0:
            turn = math.atan2(self.places[k, 1], self.places[k, 0])
            painter.arc(x, y, REACH, 0, turn, fill=theme.TEXT, opacity=0.12 * opened)
            painter.arc(x, y, REACH, 0, turn, stroke=theme.TEXT, line=theme.HAIRLINE, opacity=opened)
            style, far = Style(theme.LABEL, bold=True), REACH + 0.38
            at, low = x + far * math.cos(turn / 2), y + far * math.sin(turn / 2) - style.size / 2
            room = width(self._degrees(k), style) + 0.12  # arrows do not run through the number
            fill = theme.BACKGROUND
            painter.box(at - room / 2, low - 0.06, room, style.size + 0.12, fill=fill, opacity=opened)
            painter.text(self._degrees(k), at, low, style, color=theme.TEXT, opacity=opened)
        if dropped > 0:
            foot = (tip[0], tip[1] + (y - tip[1]) * dropped)
            painter.polyline([tip, foot], stroke=color, line=theme.HAIRLINE, dash=(0.08, 0.06), opacity=shown)
            size = (tip[0] - x) * dropped
            left = min(x, x + size)
            length = theme.recede(theme.SCORE, emphasis)
            painter.box(left, y - 0.1 - BAR, abs(size), BAR, fill=length, radius=0.05, opacity=dropped)
        painter.arrow((x, y), tip, color=color, line=theme.LINE if emphasis < 1 else 0.05, head=0.2, opacity=shown)
        if self.labeled[k] > 0:
            self._write(painter, k, tip)

    def _write(self, painter: Painter, k: int, tip: tuple[float, float]) -> None:
        side = -1 if self.places[k, 0] < 0 else 1
        x, y = tip[0] + side * 0.14, tip[1] + 0.06
        name, opacity = str(self.names[k]), float(self.labeled[k])
        if name == BOS:
            painter.circle(x, y + 0.1, 0.06, fill=theme.KEY, opacity=opacity)
        else:
            style = Style(theme.LABEL, bold=True)
            painter.text(name, x, y, style, color=theme.KEY, align=0.0 if side > 0 else 1.0, opacity=opacity)

    def _degrees(self, k: int) -> str:
        return f"{format_number(self.angles[k].values.item(), '.0f')}°"

    def data(self) -> tuple[Data, ...]:
        drawn = self.places * [self.proportion(), 1.0]  # a stretched plane has other angles
        return (Data(self.values, np.asarray(self.values, dtype=float), drawn),)

    def ledger(self) -> list[tuple[str, str]]:
        entries = [("query", self.query.origin)]
        for k in np.flatnonzero(self.presence > 0):
            entries.append(("arrow", self.values[k].origin))
            if self.labeled[k] > 0:
                entries.append((str(self.names[k]), self.names[k].origin))
            if self.opened[k] > 0:
                entries.append((self._degrees(k), self.angles[k].origin))
            if self.dropped[k] > 0:
                entries.append(("length", self.values[k, 0].origin))
        return entries
