"""Bars: lengths that are traced values, against a limit they may share with other bars."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Measure, PaintedParts
from scenes.kit.token_row import BOS, require_tokens
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style, width


class Bars(PaintedParts):
    """One bar for each value of a 1-D field; NaN is no bar.

    The box is the ground the bars grow on: names stand before it, numbers at the end of each bar.

    Args:
        values: traced lengths.
        limit: the value whose bar is `length` long; by default the largest of `values`.
        direction: "right" (first bar on top) or "up" (first bar on the left).
        signed: zero lies in the middle of the ground, for values of both signs; a number puts it at another share.
        step: distance from bar to bar, `thickness` the share of it that a bar fills.
        role: theme role of all bars, or one for each.
        number: format of the value at the end of a bar, None for none; `clear` keeps lines behind out of it.
        names: traced strings before the bars.
        outline: draw only their edges, open at the ground, `dash` as a broken line.
    """

    animated = ("opacity", "amounts", "limit", "presence", "emphasis", "ink", "color", "zero", "places")

    def __init__(
        self,
        values: Traced,
        *,
        limit: float | Traced | None = None,
        direction: Literal["right", "up"] = "right",
        signed: bool | float = False,
        length: float = 2.0,
        step: float = 0.42,
        thickness: float = 0.62,
        role: str | Sequence[str] = "SCORE",
        number: str | None = ".2f",
        number_size: float = theme.SMALL,
        clear: bool = False,
        names: Sequence[Any] = (),
        name_size: float = theme.LABEL,
        outline: bool = False,
        dash: Sequence[float] | None = None,
    ) -> None:
        self.direction = direction
        self.zero = _zero(signed)
        self.length, self.step, self.thickness, self.number = length, step, thickness, number
        self.style, self.name_style = Style(number_size, "numbers"), Style(name_size)
        self.clear = clear
        self.outline, self.dash = outline, dash
        self.names = require_tokens(names, "Bars")
        self._take(values)
        count = len(self.values)
        if self.names and len(self.names) != count:
            raise ValueError(f"Bars needs a name for each of its {count} values, got {len(self.names)}")
        top = float(np.nanmax(np.abs(self.amounts))) if limit is None else float(limit)
        self.limit = np.array(top or 1.0)
        super().__init__(*((length, count * step) if direction == "right" else (count * step, length)))
        self.places = np.arange(count, dtype=float)  # where each bar stands, in steps from the first
        self.ghosts: Traced | None = None
        self.presence = np.ones(count)
        self.emphasis = np.ones(count)
        self.ink = np.array(1.0)
        roles = [role] * count if isinstance(role, str) else list(role)
        self.color = np.array([theme.rgb(getattr(theme, name)) for name in roles])

    def _take(self, values: Traced) -> None:
        values = require_traced(values, "Bars")
        if values.ndim != 1:
            raise ValueError(f"Bars shows 1 dimension, {values.origin} has shape {values.shape}")
        self.values = values
        self.amounts = np.asarray(values.values, dtype=float)
        spec = self.number
        self.texts = None if spec is None else [_text(value, spec) for value in values.values.tolist()]

    def set_values(
        self, values: Traced, *, limit: float | Traced | None = None, signed: bool | float | None = None
    ) -> Self:
        """Show other values; bars glide, numbers snap at half time. A new limit rescales the ground."""
        if len(values) != len(self.amounts):
            raise ValueError(f"set_values needs {len(self.amounts)} values, got {len(values)}")
        self._take(values)
        if limit is not None:
            self.limit = np.array(float(limit))
        if signed is not None:
            self.zero = _zero(signed)
        return self

    def reorder(self, places: Sequence[int] | Traced) -> Self:
        """Let each bar go to another place, its name and its number with it: bar k stands at `places[k]`."""
        count = len(self.amounts)
        if sorted(int(place) for place in places) != list(range(count)):
            raise ValueError(f"reorder needs each of the places 0 to {count - 1} once, got {list(places)}")
        self.places = np.array([float(place) for place in places])
        return self

    def leave_ghosts(self) -> Self:
        """Leave outlines of the bars as they are now; they rescale with the limit."""
        self.ghosts = self.values
        return self

    def clear_ghosts(self) -> Self:
        self.ghosts = None
        return self

    def tip(self, index: int) -> np.ndarray:
        """Return the scene point at the end of a bar."""
        index %= len(self.amounts)
        _, end, across = self._span(index, self.amounts[index])
        return self.to_scene(end, across) if self.direction == "right" else self.to_scene(across, end)

    def bar(self, index: int) -> "Bars":
        """Return one bar as bars of their own that lie exactly over it, without its number and name.

        Raises:
            ValueError: the bar has no length.
        """
        index %= len(self.amounts)
        zero, end, across = self._span(index, self.amounts[index])
        if not end > zero:
            raise ValueError(f"{self.values[index].origin} has no bar to take out, its value is {self.amounts[index]}")
        part = Bars(
            self.values[index : index + 1], limit=self.values[index], direction=self.direction, length=end - zero,
            step=self.step, thickness=self.thickness, number=None, outline=self.outline, dash=self.dash,
        )  # fmt: skip
        part.color = self.color[index : index + 1].copy()
        middle = (zero + end) / 2
        _, right, _ = self._frame()
        place = self.to_scene(middle, across) if self.direction == "right" else self.to_scene(across, middle)
        return part.scale(float(np.linalg.norm(right))).move_to(place)

    def _span(self, index: int, amount: float) -> tuple[float, float, float]:
        """Return where a bar of this amount starts and ends along its direction, and the middle of it across."""
        ground = self.local_width if self.direction == "right" else self.local_height
        zero = (float(self.zero) - 0.5) * ground
        unit = (1 - float(self.zero)) * ground / float(self.limit)
        end = zero + (0.0 if math.isnan(amount) else amount * unit * float(self.presence[index]))
        side = self.local_height if self.direction == "right" else self.local_width
        across = (side / 2 - (float(self.places[index]) + 0.5) * self.step) * (1 if self.direction == "right" else -1)
        return zero, end, across

    def blend(self, start: "Bars", end: "Bars", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.values, self.texts, self.names = nearer.values, nearer.texts, nearer.names
        self.ghosts = nearer.ghosts
        # a bar that comes from nothing or goes there snaps: there is no way from NaN to a length
        nothing = np.isnan(start.amounts) | np.isnan(end.amounts)
        self.amounts = np.where(nothing, nearer.amounts, self.amounts)

    def draw(self, painter: Painter) -> None:
        half = self.thickness * self.step / 2
        if self.ghosts is not None:
            self._draw_ghosts(painter, np.asarray(self.ghosts.values, dtype=float), half)
        colors = self.color.tolist()
        for index, amount in enumerate(self.amounts.tolist()):
            if math.isnan(amount):
                continue
            zero, end, across = self._span(index, amount)
            color = theme.recede(theme.hex_color(tuple(colors[index])), float(self.emphasis[index]))
            low, size = min(zero, end), max(abs(end - zero), 0.012)
            shown = min(1.0, 4 * float(self.presence[index]))
            if self.outline:
                edge = [(zero, across - half), (end, across - half), (end, across + half), (zero, across + half)]
                path = edge if self.direction == "right" else [(y, x) for x, y in edge]
                painter.polyline(path, stroke=color, dash=self.dash, opacity=shown)
            elif self.direction == "right":
                painter.box(low, across - half, size, 2 * half, fill=color, radius=min(0.05, size / 2), opacity=shown)
            else:
                painter.box(across - half, low, 2 * half, size, fill=color, radius=min(0.05, size / 2), opacity=shown)
            if self.texts is not None or self.names:
                self._write(painter, index, (zero, end), across, shown)

    def _draw_ghosts(self, painter: Painter, amounts: np.ndarray, half: float) -> None:
        for index, amount in enumerate(amounts):
            if math.isnan(amount) or self.presence[index] <= 0:
                continue
            zero, end, across = self._span(index, amount)
            low, size = min(zero, end), abs(end - zero)
            place = (low, across - half, size, 2 * half)
            if self.direction == "up":
                place = (across - half, low, 2 * half, size)
            painter.box(*place, stroke=theme.MUTED, line=theme.HAIRLINE, radius=min(0.05, size / 2))

    def _write(self, painter: Painter, index: int, span: tuple[float, float], across: float, shown: float) -> None:
        zero, end = span
        ink = theme.mix(theme.MUTED, theme.TEXT, round(float(self.emphasis[index]) * 8) / 8)
        beyond = self.amounts[index] < 0
        if self.texts is not None and self.ink > 0:
            opacity = shown * float(self.ink)
            if self.direction == "right":
                # a bar to the left leaves the room right of zero to its number
                x, align = (zero if beyond else end) + 0.1, 0.0
                y = across - self.style.size / 2
            else:
                x, align = across, 0.5
                y = end + (-0.1 - self.style.size if beyond else 0.1)
            text = self.texts[index]
            if self.clear:
                wide, pad = width(text, self.style), 0.06
                ground = (x - align * wide - pad, y - pad, wide + 2 * pad, self.style.size + 2 * pad)
                painter.box(*ground, fill=theme.BACKGROUND, opacity=opacity)
            painter.text(text, x, y, self.style, color=ink, align=align, opacity=opacity)
        if self.names:
            name = str(self.names[index])
            if self.direction == "right":
                y = across - 0.37 * self.name_style.size
                if name == BOS:
                    painter.circle(-self.local_width / 2 - 0.28, across, 0.06, fill=ink)
                else:
                    painter.text(name, -self.local_width / 2 - 0.2, y, self.name_style, color=ink, align=1.0)
            else:
                y = -self.local_height / 2 - 0.16 - self.name_style.size
                painter.text(name, across, y, self.name_style, color=ink)

    def data(self) -> tuple[Data, ...]:
        is_there = self.presence > 0
        meant = np.where(is_there, np.asarray(self.values.values, dtype=float), 0.0)
        return (Data(self.values, meant, np.where(is_there, self.amounts * self.presence, 0.0)),)

    def measure(self) -> Measure:
        is_right = self.direction == "right"
        ground, axis = (self.local_width, 1) if is_right else (self.local_height, 2)
        unit = (1 - float(self.zero)) * ground / float(self.limit) * float(np.linalg.norm(self._frame()[axis]))
        return Measure(self.values.field, "a bar to the right" if is_right else "a bar", unit)

    def ledger(self) -> list[tuple[str, str]]:
        entries = [(str(name), name.origin) for name in self.names]
        for index, presence in enumerate(self.presence):
            if presence > 0 and not math.isnan(self.amounts[index]):
                shown = "length" if self.texts is None else self.texts[index]
                entries.append((shown, self.values[index].origin))
        if self.ghosts is not None:
            entries.append(("ghost bars", self.ghosts.origin))
        return entries


def _zero(signed: bool | float) -> np.ndarray:
    """Return where on the ground zero lies, as a share of it."""
    return np.array(0.5 if signed is True else float(signed))


def _text(value: float, spec: str) -> str:
    return "" if math.isnan(value) else format_number(value, spec)
