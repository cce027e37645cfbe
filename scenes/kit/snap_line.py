"""SnapLine: values that snap to the levels of a grid, each in a lane of its own, with its error in red behind it."""

from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, PaintedParts, Picture
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style

DOT = 0.09
SEGMENT = 0.09  # width of an error
CLEAR = 0.16  # distance of ticks from which they have their full strength


class SnapLine(PaintedParts):
    """A number line whose ticks run up through one lane for each value; a dot leaves a red segment where it snaps.

    The box holds the lanes; codes of the levels stand below it.

    Args:
        values: traced values, the first one in the top lane.
        levels: traced levels of the grid, rising; NaN is no level.
        span: first and last number of the line.
        length, lane: of the line, and from lane to lane.
        codes: traced whole numbers of the levels, written below them.
        dot: radius of a dot; small ones suit many values.
        guides: draw the lanes.
    """

    animated = (
        "opacity", "amounts", "places", "presence", "emphasis", "ticks", "grid", "strength", "ink", "color",
    )  # fmt: skip

    def __init__(
        self,
        values: Traced,
        levels: Traced,
        *,
        span: tuple[float, float],
        length: float,
        lane: float,
        codes: Traced | None = None,
        dot: float = DOT,
        guides: bool = True,
    ) -> None:
        self.values = require_traced(values, "SnapLine")
        self.codes = None if codes is None else require_traced(codes, "SnapLine")
        self.span, self.lane, self.length, self.radius, self.guides = span, lane, length, dot, guides
        self._take(levels)
        if self.values.ndim != 1 or (self.codes is not None and self.codes.shape != self.levels.shape):
            raise ValueError("SnapLine needs a 1-D field of values, and a code for each level or none")
        count = len(self.values)
        self.amounts = np.asarray(self.values, dtype=float)
        self.hats: Traced = self.values  # levels of the dots that have snapped
        self.snapped = np.zeros(count, dtype=bool)
        self.places = self.amounts  # of the dots on the line
        self.presence = np.ones(count)
        self.emphasis = np.ones(count)
        self.ticks = np.array(1.0)  # how far the ticks have risen
        self.ink = np.array(1.0)  # of the codes
        super().__init__(length, lane * count)
        self.color = np.tile(theme.rgb(theme.WEIGHT), (count, 1))

    def _take(self, levels: Traced) -> None:
        self.levels = require_traced(levels, "SnapLine")
        grid = np.asarray(self.levels, dtype=float)
        self.grid = grid[~np.isnan(grid)]
        reach = float(self.grid[-1] - self.grid[0]) / (self.span[1] - self.span[0])
        gap = self.length * reach / max(len(self.grid) - 1, 1)
        self.strength = np.array(np.clip(gap / CLEAR, 0.25, 1))  # of the ticks' color: close ones are weaker

    # -- changes, all of them animatable ----------------------------------------------------------------------------

    def snap(self, hats: Traced, which: Any = slice(None)) -> Self:
        """Let dots go to their levels."""
        return self._set("snapped", which, True)._hold(hats)

    def set_grid(self, levels: Traced, hats: Traced) -> Self:
        """Take another grid: ticks part or merge, and every dot that has snapped goes to its new level."""
        self._take(levels)
        self.codes = None
        return self._hold(hats)

    def release(self) -> Self:
        """Let every dot return to its value."""
        self.hats = self.values
        self.snapped = np.zeros_like(self.snapped)
        self.places = self.amounts
        return self

    def set_values(self, values: Traced) -> Self:
        """Let dots that have not snapped go to other values."""
        if require_traced(values, "SnapLine").shape != self.values.shape or self.snapped.any():
            raise ValueError(f"set_values needs {len(self.values)} values and dots that have not snapped")
        self.values = self.hats = values
        self.amounts = self.places = np.asarray(values, dtype=float)
        return self

    def _hold(self, hats: Traced) -> Self:
        if require_traced(hats, "SnapLine").shape != self.values.shape:
            raise ValueError(f"SnapLine needs a level for each of {len(self.values)} values, got shape {hats.shape}")
        self.hats = hats
        self.places = np.where(self.snapped, np.asarray(hats, dtype=float), self.amounts)
        return self

    def hide_ticks(self) -> Self:
        """Let the ticks sink into the line, and the codes with them."""
        self.ticks = self.ink = np.array(0.0)
        return self

    def show_ticks(self) -> Self:
        self.ticks = self.ink = np.array(1.0)
        return self

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _x(self, value: Any) -> Any:
        low, high = self.span
        return self.local_width * ((value - low) / (high - low) - 0.5)

    def _lane(self, k: int) -> float:
        return self.local_height / 2 - (k + 0.5) * self.lane

    def dot(self, k: int) -> np.ndarray:
        """Return the scene point of a dot."""
        return self.to_scene(float(self._x(self.places[k])), self._lane(k))

    def lane_start(self, k: int) -> np.ndarray:
        """Return the scene point at the left end of a lane."""
        return self.to_scene(-self.local_width / 2, self._lane(k))

    def code_center(self, level: int) -> np.ndarray:
        """Return the scene point of a level's code."""
        return self.to_scene(float(self._x(float(self.levels[level]))), -self.local_height / 2 - 0.3)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def blend(self, start: "SnapLine", end: "SnapLine", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.values, self.hats, self.snapped = nearer.values, nearer.hats, nearer.snapped
        self.levels, self.codes = nearer.levels, nearer.codes
        self.grid = between(start.grid, end.grid, alpha)

    def draw(self, painter: Painter) -> None:
        half, top, foot = self.local_width / 2, self.local_height / 2, -self.local_height / 2
        xs = self._x(self.grid)
        color = theme.mix(theme.BACKGROUND, theme.LINES, round(float(self.strength) * 16) / 16)
        if self.ticks > 0:
            reach = foot + (top - foot) * float(self.ticks)
            for x in xs.tolist():
                painter.polyline([(x, foot - 0.12), (x, reach)], stroke=color, line=theme.HAIRLINE)
        painter.polyline([(-half, foot), (half, foot)], stroke=theme.MUTED, line=theme.HAIRLINE)
        self._write_codes(painter)
        faint = theme.mix(theme.BACKGROUND, theme.LINES, 0.5)
        for k, place in enumerate(self.places.tolist()):
            if self.guides:
                y, shown = self._lane(k), min(1, 3 * float(self.presence[k]))
                painter.polyline([(-half, y), (half, y)], stroke=faint, line=0.012, opacity=shown)
            self._draw_dot(painter, k, place)

    def _write_codes(self, painter: Painter) -> None:
        if self.codes is None or self.ink <= 0:
            return
        style = Style(theme.SMALL if len(self.codes) > 9 else theme.LABEL, "numbers")
        for _, text, x in self._code_texts():
            painter.text(text, x, -self.local_height / 2 - 0.22 - style.size, style, color=theme.TEXT,
                         opacity=float(self.ink))  # fmt: skip

    def _code_texts(self) -> list[tuple[int, str, float]]:
        """Return the codes that have room, and where they stand: if not all have, only the outermost and the middle."""
        xs = self._x(np.asarray(self.levels, dtype=float)).tolist()
        last = len(xs) - 1
        wanted = range(len(xs)) if len(xs) <= 16 else sorted({0, last // 2, last})
        return [(k, format_number(int(self.codes[k]), "d"), xs[k]) for k in wanted]  # type: ignore[index]

    def _draw_dot(self, painter: Painter, k: int, place: float) -> None:
        shown = float(self.presence[k])
        if shown <= 0:
            return
        y, x, home = self._lane(k), float(self._x(place)), float(self._x(self.amounts[k]))
        strength = theme.DIMMED + (1 - theme.DIMMED) * round(float(self.emphasis[k]) * 8) / 8
        own = theme.hex_color(tuple(self.color[k]))
        weight, loss = (theme.mix(theme.BACKGROUND, color, strength) for color in (own, theme.LOSS))
        if shown < 1:  # on its way in from the left
            x = home = -self.local_width / 2 + (home + self.local_width / 2) * shown
        if abs(x - home) > 0.01:
            painter.polyline([(home, y), (x, y)], stroke=loss, line=min(SEGMENT, 1.2 * self.radius))
            painter.polyline([(home, y - self.radius), (home, y + self.radius)], stroke=loss, line=theme.LINE)
        painter.circle(
            x, y, self.radius, fill=weight, stroke=theme.BACKGROUND, line=theme.HAIRLINE, opacity=min(1, 3 * shown)
        )

    def data(self) -> tuple[Data, ...]:
        values, levels = np.asarray(self.values, dtype=float), np.asarray(self.levels, dtype=float)
        hats = np.asarray(self.hats, dtype=float)
        return (
            Data(self.values, values, self.amounts),
            Data(self.hats, np.where(self.snapped, hats, values), self.places),
            _compared(self.levels, levels[~np.isnan(levels)], self.grid),
        )

    def ledger(self) -> list[tuple[str, str]]:
        found = [("dots", self.values.origin)] if self.presence.any() else []
        if self.presence.any() and self.snapped.any():
            found.append(("levels of the dots", self.hats.origin))
        if self.ticks > 0:
            found.append(("ticks", self.levels.origin))
        if self.codes is not None and self.ink > 0:
            found += [(text, self.codes[k].origin) for k, text, _ in self._code_texts()]
        return found


class LevelCounts(Picture):
    """Levels of a grid on a line, and below each a hanging bar: how many values it got.

    Args:
        levels: traced, rising.
        counts: traced, one for each level.
        span: first and last number of the line.
        length, height: of the line, and of a bar of `limit` values.
        rise: how far up the ticks go.
    """

    animated = ("opacity", "grid", "amounts", "presence")

    def __init__(
        self,
        levels: Traced,
        counts: Traced,
        *,
        span: tuple[float, float],
        length: float,
        height: float,
        limit: float,
        rise: float,
        bar: float = 0.26,
    ) -> None:
        self.span, self.limit, self.rise, self.bar = span, limit, rise, bar
        self._take(levels, counts)
        super().__init__(length, height)
        self.presence = np.array(1.0)  # of the bars' length

    def _take(self, levels: Traced, counts: Traced) -> None:
        self.levels, self.counts = require_traced(levels, "LevelCounts"), require_traced(counts, "LevelCounts")
        if self.levels.ndim != 1 or self.levels.shape != self.counts.shape:
            raise ValueError(f"each level needs a count, got shapes {levels.shape} and {counts.shape}")
        self.grid, self.amounts = (np.asarray(part, dtype=float) for part in (self.levels, self.counts))

    def set_levels(self, levels: Traced, counts: Traced) -> Self:
        """Take other levels: ticks slide, part or merge, and the bars go with them."""
        self._take(levels, counts)
        return self

    def hide_bars(self) -> Self:
        self.presence = np.array(0.0)
        return self

    def show_bars(self) -> Self:
        self.presence = np.array(1.0)
        return self

    def tip(self, k: int) -> np.ndarray:
        """Return the scene point at the lower end of a bar."""
        return self.to_scene(self._x(self.grid[k]), self.local_height / 2 - self._length(self.amounts[k]))

    def _x(self, value: float) -> float:
        low, high = self.span
        return float(self.local_width * ((value - low) / (high - low) - 0.5))

    def _length(self, amount: float) -> float:
        return float(amount) / self.limit * self.local_height * float(self.presence)

    def blend(self, start: "LevelCounts", end: "LevelCounts", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.levels, self.counts = nearer.levels, nearer.counts
        self.grid = between(start.grid, end.grid, alpha)
        self.amounts = between(start.amounts, end.amounts, alpha)

    def draw(self, painter: Painter) -> None:
        half, top = self.local_width / 2, self.local_height / 2
        painter.polyline([(-half, top), (half, top)], stroke=theme.MUTED, line=theme.HAIRLINE)
        for level, amount in zip(self.grid.tolist(), self.amounts.tolist(), strict=True):
            x, length = self._x(level), self._length(amount)
            painter.polyline([(x, top - 0.06), (x, top + self.rise)], stroke=theme.SCORE, line=theme.HAIRLINE)
            if length > 0:
                painter.box(x - self.bar / 2, top - 0.06 - length, self.bar, length, fill=theme.SCORE, radius=0.03)

    def data(self) -> tuple[Data, ...]:
        levels, counts = (np.asarray(part, dtype=float) for part in (self.levels, self.counts))
        return (_compared(self.levels, levels, self.grid), _compared(self.counts, counts, self.amounts))

    def ledger(self) -> list[tuple[str, str]]:
        bars = [("bars", self.counts.origin)] if self.presence > 0 else []
        return [("ticks", self.levels.origin), *bars]


def between(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    """Return a rising row on its way to another one; of different lengths, entries part or merge with their nearest."""
    if alpha <= 0 or start is end:
        return start
    if alpha >= 1:
        return end
    most = max(len(start), len(end))
    places = np.linspace(0, 1, most)
    first, last = (row[np.round(places * (len(row) - 1)).astype(int)] for row in (start, end))
    return first + (last - first) * alpha


def _compared(values: Traced, meant: np.ndarray, drawn: np.ndarray) -> Data:
    """Return what is drawn beside what it is of; on the way there may be more or fewer of them than there will be."""
    if len(drawn) != len(meant):
        drawn = drawn[np.round(np.linspace(0, len(drawn) - 1, len(meant))).astype(int)]
    return Data(values, meant, drawn)
