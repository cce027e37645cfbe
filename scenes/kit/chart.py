"""Chart: axes and the curves on them, in one mobject, so that a change of range moves everything together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, format_number, read_text, require_traced
from scenes.kit.typography import Style


@dataclass(frozen=True)
class Curve:
    """One traced line; what may change over time lives in the chart's arrays."""

    x: Traced
    y: Traced
    role: str
    label: str
    parts: tuple[tuple[str, str], ...]  # traced parts of the label
    fill: bool
    dash: tuple[float, ...] | None
    line: float  # width; 0 draws the points alone
    label_shift: float
    dots: float = 0.0  # radius of a dot at every point
    low: Traced | None = None  # the spread around the curve
    high: Traced | None = None
    whiskers: bool = False  # a stroke at every point in place of a band
    strength: float | None = None  # opacity of the filled area


@dataclass(frozen=True)
class Level:
    """A traced value that holds for the whole width: a limit, a floor, a line to beat."""

    value: Traced
    role: str
    label: str
    parts: tuple[tuple[str, str], ...]


class Chart(Picture):
    """Axes with sparse ticks and direct labels.

    Args:
        width, height: of the plotting area; ticks and labels stand outside it.
        x, y: ranges (first, last). A linear y axis that starts above zero wears a break mark.
        x_ticks, y_ticks: where to put marks; they are part of the instrument, not of the data.
        x_label, y_label: words for what is measured, with the unit.
        x_format, y_format: how ticks are written.
        log_x, log_y: logarithmic axes.
        tick_size: height of the digits at the ticks.
    """

    animated = ("opacity", "x_range", "y_range", "drawn", "shown", "rider")

    def __init__(
        self,
        width: float,
        height: float,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        x_ticks: Sequence[float] = (),
        y_ticks: Sequence[float] = (),
        x_label: str = "",
        y_label: str = "",
        x_format: str | Callable[[float], str] = "g",
        y_format: str | Callable[[float], str] = "g",
        log_x: bool = False,
        log_y: bool = False,
        tick_size: float = theme.SMALL,
    ) -> None:
        super().__init__(width, height)
        for name, (low, high), log in (("x", x, log_x), ("y", y, log_y)):
            if not high > low or (log and low <= 0):
                raise ValueError(f"the {name} range must rise{' from above 0' if log else ''}, got {low}..{high}")
        self.x_range, self.y_range = np.array(x, dtype=float), np.array(y, dtype=float)
        self.x_ticks, self.y_ticks = tuple(map(float, x_ticks)), tuple(map(float, y_ticks))
        read = read_text(x_label), read_text(y_label)
        self.x_label, self.y_label = (words.plain for words in read)
        self.label_parts = (*read[0].parts, *read[1].parts)  # traced parts of both
        self.x_format, self.y_format = x_format, y_format
        self.log_x, self.log_y = log_x, log_y
        self.tick_size = tick_size
        self.curves: tuple[Curve, ...] = ()
        self.levels: tuple[Level, ...] = ()
        self.heights: tuple[np.ndarray, ...] = ()  # y of each curve as drawn now
        self.drawn = np.zeros(0)  # share of each curve that is drawn
        self.shown = np.zeros(0)  # opacity of each curve
        self.rider = np.full(0, np.nan)  # place of a marker on each curve, as a share of its points

    def curve(
        self,
        x: Traced,
        y: Traced,
        *,
        role: str,
        label: str = "",
        fill: bool = False,
        dash: Sequence[float] | None = None,
        line: float = theme.LINE,
        label_shift: float = 0.0,
        dots: float = 0.0,
        spread: tuple[Traced, Traced] | None = None,
        whiskers: bool = False,
        strength: float | None = None,
        drawn: float = 1.0,
    ) -> int:
        """Add a curve and return its number; `drawn=0` then `.animate.draw_curve(number)` draws it live.

        Args:
            fill: fill the area down to the foot of the chart.
            dots: radius of a dot at every point; with `line=0` there are only the dots.
            spread: traced (low, high) around the curve, as a band or as `whiskers`.
            strength: opacity of the filled area or of the band.
        """
        x, y = require_traced(x, "Chart"), require_traced(y, "Chart")
        low, high = (None, None) if spread is None else (require_traced(part, "Chart") for part in spread)
        shapes = [part.shape for part in (x, y, low, high) if part is not None]
        if x.ndim != 1 or len(set(shapes)) > 1:
            raise ValueError(f"a curve needs x and y of one equal length, got shapes {', '.join(map(str, shapes))}")
        read = read_text(label)
        pattern = tuple(dash) if dash else None
        style = (role, read.plain, read.parts, fill, pattern, line, label_shift, dots)
        self.curves = (*self.curves, Curve(x, y, *style, low, high, whiskers, strength))
        self.heights = (*self.heights, np.asarray(y, dtype=float))
        self.drawn = np.append(self.drawn, drawn)
        self.shown = np.append(self.shown, 1.0)
        self.rider = np.append(self.rider, np.nan)
        return len(self.curves) - 1

    def level(self, value: Traced, *, role: str = "REFERENCE", label: str = "") -> Self:
        """Draw a dashed line across the chart at a traced value, with a label at its end."""
        read = read_text(label)
        self.levels = (*self.levels, Level(require_traced(value, "Chart.level"), role, read.plain, read.parts))
        return self

    def set_curve(self, number: int, y: Traced) -> Self:
        """Let a curve take other heights; it glides there."""
        curve = self.curves[number]
        if require_traced(y, "set_curve").shape != curve.y.shape:
            raise ValueError(f"set_curve needs the shape {curve.y.shape}, got {y.shape}")
        self.curves = tuple(replace(c, y=y) if k == number else c for k, c in enumerate(self.curves))
        self.heights = tuple(np.asarray(c.y, dtype=float) for c in self.curves)
        return self

    def draw_curve(self, number: int, share: float = 1.0) -> Self:
        """Draw a curve up to a share of its points."""
        return self._set("drawn", number, share)

    def show_curve(self, number: int, opacity: float = 1.0) -> Self:
        """Let a curve fade to an opacity."""
        return self._set("shown", number, opacity)

    def ride(self, number: int, share: float) -> Self:
        """Put a marker on a curve at a share of its points."""
        return self._set("rider", number, share)

    def set_range(self, *, x: tuple[float, float] | None = None, y: tuple[float, float] | None = None) -> Self:
        """Show another range; everything on the axes moves along."""
        if x is not None:
            self.x_range = np.array(x, dtype=float)
        if y is not None:
            self.y_range = np.array(y, dtype=float)
        return self

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _x(self, value: Any) -> Any:
        return self.local_width * (_share(value, self.x_range, self.log_x) - 0.5)

    def _y(self, value: Any) -> Any:
        return self.local_height * (_share(value, self.y_range, self.log_y) - 0.5)

    def point(self, number: int, index: int) -> np.ndarray:
        """Return the scene point of one data point of a curve."""
        curve = self.curves[number]
        return self.to_scene(float(self._x(float(curve.x[index]))), float(self._y(float(curve.y[index]))))

    def place(self, x: float | Traced, y: float | Traced) -> np.ndarray:
        """Return the scene point of a pair of values."""
        return self.to_scene(float(self._x(float(x))), float(self._y(float(y))))

    # -- drawing ----------------------------------------------------------------------------------------------------

    def blend(self, start: "Chart", end: "Chart", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.curves, self.levels = nearer.curves, nearer.levels
        if start.rider.shape == end.rider.shape:
            # a marker that comes or goes snaps: there is no way from NaN to a place
            nowhere = np.isnan(start.rider) | np.isnan(end.rider)
            self.rider = np.where(nowhere, nearer.rider, self.rider)
        pairs = zip(start.heights, end.heights, strict=True)
        self.heights = tuple(a if a is b else a + (b - a) * alpha for a, b in pairs)

    def draw(self, painter: Painter) -> None:
        self._draw_axes(painter)
        for level in self.levels:
            self._draw_level(painter, level)
        for number, curve in enumerate(self.curves):
            if self.shown[number] > 0 and self.drawn[number] > 0:
                self._draw_curve(painter, number, curve)

    def _draw_axes(self, painter: Painter) -> None:
        half_w, half_h = self.local_width / 2, self.local_height / 2
        numbers, words = Style(self.tick_size, "numbers"), Style(theme.LABEL)
        for tick in self.y_ticks:
            y = float(self._y(tick))
            if -half_h - 1e-6 <= y <= half_h + 1e-6:
                painter.polyline([(-half_w, y), (half_w, y)], stroke=theme.LINES, line=0.012)
                text = _tick_text(tick, self.y_format)
                painter.text(text, -half_w - 0.15, y - numbers.size / 2, numbers, color=theme.MUTED, align=1)
        for tick in self.x_ticks:
            x = float(self._x(tick))
            if -half_w - 1e-6 <= x <= half_w + 1e-6:
                painter.polyline([(x, -half_h), (x, -half_h - 0.08)], stroke=theme.MUTED, line=theme.HAIRLINE)
                text = _tick_text(tick, self.x_format)
                painter.text(text, x, -half_h - 0.18 - numbers.size, numbers, color=theme.MUTED)
        self._draw_baseline(painter)
        painter.text(self.y_label, -half_w, half_h + 0.24, words, color=theme.MUTED, align=0)
        painter.text(self.x_label, 0, -half_h - 0.66, words, color=theme.MUTED)

    def _draw_baseline(self, painter: Painter) -> None:
        """Draw the x axis: at zero where zero is in sight, else at the foot, broken if zero lies below it."""
        half_w, foot = self.local_width / 2, -self.local_height / 2
        low, high = self.y_range
        y = float(self._y(0.0)) if not self.log_y and low < 0 < high else foot
        painter.polyline([(-half_w, y), (half_w, y)], stroke=theme.MUTED, line=theme.HAIRLINE)
        if not self.log_y and low > 0:
            for x in (-half_w + 0.14, -half_w + 0.24):
                painter.polyline([(x - 0.05, foot - 0.09), (x + 0.05, foot + 0.09)], stroke=theme.MUTED)

    def _draw_level(self, painter: Painter, level: Level) -> None:
        half_w, half_h, y = self.local_width / 2, self.local_height / 2, float(self._y(float(level.value)))
        if abs(y) <= half_h + 1e-6:
            color = getattr(theme, level.role)
            painter.polyline([(-half_w, y), (half_w, y)], stroke=color, line=theme.LINE, dash=(0.12, 0.1))
            style = Style(theme.LABEL, bold=True)
            painter.text(level.label, half_w + 0.2, y - 0.37 * style.size, style, color=color, align=0)

    def _draw_curve(self, painter: Painter, number: int, curve: Curve) -> None:
        opacity, role = float(self.shown[number]), getattr(theme, curve.role)
        share = float(self.drawn[number])
        points = _upto(self._points(curve.x, self.heights[number]), share)
        if not len(points):
            return
        foot = -self.local_height / 2
        if curve.low is not None and curve.high is not None:
            self._draw_spread(painter, curve, share, opacity)
        if curve.fill and len(points) > 1:
            ground = [(points[-1, 0], foot), (points[0, 0], foot)]
            strength = 0.28 if curve.strength is None else curve.strength
            painter.polyline([*points, *ground], fill=role, closed=True, opacity=strength * opacity)
        if curve.line > 0 and len(points) > 1:
            painter.polyline(points, stroke=role, line=curve.line, dash=curve.dash, opacity=opacity)
        if curve.dots > 0:
            reached = points[-1, 0] + 1e-6 if share < 1 else math.inf
            for x, y in self._points(curve.x, self.heights[number]):
                if x <= reached and not math.isnan(y):
                    painter.circle(x, y, curve.dots, fill=role, opacity=opacity)
        end = points[-1]
        if curve.label and share > 0.97:
            style = Style(theme.LABEL, bold=True)
            y = end[1] - style.size * 0.37 + curve.label_shift
            painter.text(curve.label, end[0] + 0.2, y, style, color=role, align=0, opacity=opacity)
        if not math.isnan(self.rider[number]):
            x, y = _upto(self._points(curve.x, self.heights[number]), float(self.rider[number]))[-1]
            painter.circle(float(x), float(y), 0.1, fill=role, stroke=theme.BACKGROUND, line=0.03)

    def _draw_spread(self, painter: Painter, curve: Curve, share: float, opacity: float) -> None:
        edges = (self._points(curve.x, np.asarray(edge, dtype=float)) for edge in (curve.low, curve.high))
        low, high = (_upto(edge, share) for edge in edges)
        role = getattr(theme, curve.role)
        if not curve.whiskers:
            strength = 0.22 if curve.strength is None else curve.strength
            painter.polyline([*low, *high[::-1]], fill=role, closed=True, opacity=strength * opacity)
            return
        for (x, bottom), (_, top) in zip(low, high, strict=True):
            painter.polyline([(x, bottom), (x, top)], stroke=role, line=theme.HAIRLINE, opacity=opacity)
            for y in (bottom, top):
                painter.polyline([(x - 0.06, y), (x + 0.06, y)], stroke=role, line=theme.HAIRLINE, opacity=opacity)

    def _points(self, x: Traced, heights: np.ndarray) -> np.ndarray:
        """Return the local points of a curve, held inside the chart's height."""
        ys = np.clip(self._y(heights), -self.local_height / 2, self.local_height / 2 + 0.3)
        return np.stack([self._x(np.asarray(x, dtype=float)), ys], axis=1)

    def data(self) -> tuple[Data, ...]:
        # what lies beyond a range is drawn at its edge, or outside the chart
        seen: list[Data] = []
        for number, curve in enumerate(self.curves):
            if self.drawn[number] > 0 and self.shown[number] > 0:
                seen += [_within(curve.x, curve.x, self.x_range), _within(curve.y, self.heights[number], self.y_range)]
                edges = (edge for edge in (curve.low, curve.high) if edge is not None)
                seen += [_within(edge, edge, self.y_range) for edge in edges]
        return tuple(seen)

    def instrument(self) -> tuple[tuple[str, float], ...]:
        ticks = ((self.x_ticks, self.x_format), (self.y_ticks, self.y_format))
        return tuple((_tick_text(tick, form), tick) for places, form in ticks for tick in places)

    def ledger(self) -> list[tuple[str, str]]:
        entries: list[tuple[str, str]] = [*self.label_parts]
        for level in self.levels:
            entries += [("level", level.value.origin), *level.parts]
        for curve, drawn, shown in zip(self.curves, self.drawn, self.shown, strict=True):
            if drawn > 0 and shown > 0:
                entries += [("curve", f"{curve.y.origin} over {curve.x.origin}"), *curve.parts]
                entries += [("spread", edge.origin) for edge in (curve.low, curve.high) if edge is not None]
        return entries


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` multiples of 1, 2 or 5 times a power of ten in low..high, as close together as they go."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        power * k for k in (1, 2, 5, 10, 20) if math.floor(high / power / k) - math.ceil(low / power / k) < most
    )
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _within(values: Traced, drawn: Any, span: np.ndarray) -> Data:
    return Data(values, np.asarray(values, dtype=float), np.clip(np.asarray(drawn, dtype=float), *span))


def _share(value: Any, span: np.ndarray, log: bool) -> Any:
    value = np.asarray(value, dtype=float)
    if log:
        low, high = np.log(span[0]), np.log(span[1])
        return (np.log(np.maximum(value, 1e-300)) - low) / (high - low)
    return (value - span[0]) / (span[1] - span[0])


def _upto(points: np.ndarray, share: float) -> np.ndarray:
    """Return the first `share` of a polyline by its points; the last piece is cut. NaN points are left out."""
    points = points[~np.isnan(points).any(axis=1)]
    if len(points) < 2 or share >= 1:
        return points
    place = max(0.0, share) * (len(points) - 1)
    whole = int(place)
    cut = points[whole] + (points[min(whole + 1, len(points) - 1)] - points[whole]) * (place - whole)
    return np.vstack([points[: whole + 1], cut])


def _tick_text(value: float, form: str | Callable[[float], str]) -> str:
    return form(value) if callable(form) else format_number(int(value) if form == "d" else value, form)
