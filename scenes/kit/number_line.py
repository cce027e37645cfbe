"""NumberLine: traced values as beads on a line; with one bead it is a slider over the values of a sweep."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from manim import Animation, linear

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.token_row import require_tokens
from scenes.kit.traced import Traced, format_number, read_text, require_traced
from scenes.kit.typography import Style


class NumberLine(Picture):
    """A straight line with ticks below and beads on it.

    The box is the line; names stand above their beads, tick numbers and the label below.

    Args:
        values: traced place of each bead: one field, or one value for each.
        span: first and last number of the line.
        ticks: where to put marks; they are part of the instrument, not of the data.
        tick_format: how they are written.
        names: traced string above each bead.
        roles: theme role of each bead.
        log: logarithmic line.
        label: words below the line.
    """

    animated = ("opacity", "places", "span", "gap")

    def __init__(
        self,
        values: Traced | Sequence[Traced],
        *,
        span: tuple[float, float],
        length: float = 8.0,
        ticks: Sequence[float] = (),
        tick_format: str = "g",
        names: Sequence[Any] = (),
        roles: str | Sequence[str] = "TEXT",
        log: bool = False,
        label: str = "",
    ) -> None:
        if not span[1] > span[0] or (log and span[0] <= 0):
            raise ValueError(f"the span must rise{' from above 0' if log else ''}, got {span[0]}..{span[1]}")
        self.log, self.ticks, self.tick_format = log, tuple(map(float, ticks)), tick_format
        self.span = np.array(span, dtype=float)
        self._take(values)
        count = len(self.places)
        self.names = require_tokens(names, "NumberLine")
        self.roles = (roles,) * count if isinstance(roles, str) else tuple(roles)
        if len(self.roles) != count or len(self.names) not in (0, count):
            raise ValueError(f"{count} beads need as many roles and names, got {len(self.roles)} and {len(self.names)}")
        read = read_text(label)
        self.label, self.label_parts = read.plain, read.parts
        self.gap = np.array(0.0)  # opacity of the bar between the first two beads
        super().__init__(length, 0.3)

    def _take(self, values: Traced | Sequence[Traced]) -> None:
        parts = [values] if isinstance(values, Traced) else values
        self.values = tuple(bead for part in parts for bead in require_traced(part, "NumberLine").reshape(-1))
        self.places = np.array([float(bead) for bead in self.values])

    def set_values(self, values: Traced | Sequence[Traced]) -> Self:
        """Let the beads slide to other traced values."""
        count = len(self.places)
        self._take(values)
        if len(self.places) != count:
            raise ValueError(f"set_values needs {count} values, got {len(self.places)}")
        return self

    def set_span(self, first: float, last: float) -> Self:
        """Zoom to another span; ticks and beads move along."""
        self.span = np.array([first, last], dtype=float)
        return self

    def show_gap(self, opacity: float = 1.0) -> Self:
        """Mark the distance between the first two beads."""
        self.gap = np.array(float(opacity))
        return self

    def point(self, value: float | Traced) -> np.ndarray:
        """Return the scene point of a value."""
        return self.to_scene(self._x(float(value)), 0.0)

    def bead(self, k: int) -> np.ndarray:
        """Return the scene point of a bead."""
        return self.to_scene(self._x(float(self.places[k])), 0.0)

    def _x(self, value: float) -> float:
        low, high = self.span
        if self.log:
            low, high, value = np.log(low), np.log(high), np.log(max(value, 1e-300))
        return float(self.local_width * ((value - low) / (high - low) - 0.5))

    def blend(self, start: "NumberLine", end: "NumberLine", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        half = self.local_width / 2
        numbers, words = Style(theme.SMALL, "numbers"), Style(theme.LABEL, bold=True)
        painter.polyline([(-half, 0), (half, 0)], stroke=theme.MUTED, line=theme.HAIRLINE)
        for tick in self.ticks:
            x = self._x(tick)
            if abs(x) <= half + 1e-6:
                painter.polyline([(x, 0), (x, -0.1)], stroke=theme.MUTED, line=theme.HAIRLINE)
                painter.text(self._tick_text(tick), x, -0.2 - numbers.size, numbers, color=theme.MUTED)
        painter.text(self.label, 0, -0.34 - numbers.size - theme.LABEL, Style(theme.LABEL), color=theme.MUTED)
        xs = [self._x(float(place)) for place in self.places]
        if self.gap > 0 and len(xs) > 1:
            ends = [(xs[0], 0), (xs[1], 0)]
            painter.polyline(ends, stroke=theme.SCORE, line=2 * theme.THICK, opacity=float(self.gap))
        # names lean away from each other, so that beads may come close
        right = max(xs)
        for k, (x, role) in enumerate(zip(xs, self.roles, strict=True)):
            painter.circle(x, 0, 0.11, fill=getattr(theme, role), stroke=theme.BACKGROUND, line=theme.HAIRLINE)
            if self.names:
                align = 0.5 if len(xs) == 1 else (0.15 if x == right else 0.85)
                painter.text(str(self.names[k]), x, 0.26, words, color=getattr(theme, role), align=align)

    def data(self) -> tuple[Data, ...]:
        return tuple(
            Data(value, np.asarray(value, dtype=float), np.asarray(place))
            for value, place in zip(self.values, self.places, strict=True)
        )

    def instrument(self) -> tuple[tuple[str, float], ...]:
        return tuple((self._tick_text(tick), tick) for tick in self.ticks)

    def _tick_text(self, tick: float) -> str:
        return format_number(int(tick) if self.tick_format == "d" else tick, self.tick_format)

    def ledger(self) -> list[tuple[str, str]]:
        beads = [("bead", value.origin) for value in self.values]
        return [*beads, *((str(name), name.origin) for name in self.names), *self.label_parts]


class SlideThrough(Animation):
    """Slide the beads of a NumberLine through traced values, one field (S,) for each bead, evenly over the run time."""

    def __init__(self, line: NumberLine, *values: Traced, **kwargs: Any) -> None:
        self.stops = [require_traced(one, "SlideThrough") for one in values]
        if len(values) != len(line.places) or len({one.shape for one in self.stops}) != 1 or self.stops[0].ndim != 1:
            shapes = ", ".join(str(one.shape) for one in self.stops)
            raise ValueError(f"SlideThrough needs a field of stops for each of {len(line.places)} beads, got {shapes}")
        self.path = np.stack([np.asarray(one, dtype=float) for one in self.stops], axis=1)  # (S, beads)
        kwargs.setdefault("rate_func", linear)
        super().__init__(line, **kwargs)

    def interpolate_mobject(self, alpha: float) -> None:
        place = self.rate_func(alpha) * (len(self.path) - 1)
        low = max(0, min(int(place), len(self.path) - 2))
        share = place - low if len(self.path) > 1 else 0.0
        high = min(low + 1, len(self.path) - 1)
        self.mobject.places = self.path[low] * (1 - share) + self.path[high] * share
        self.mobject.values = tuple(one[high if share > 0.5 else low] for one in self.stops)
