"""StackedBar: amounts end to end in one bar, against a limit that may change, and a mark at an amount to stay below."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Measure, PaintedParts
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style, width


class StackedBar(PaintedParts):
    """Parts from left to right, each as long as its amount; a number stands at its inner end where it has room.

    The box is the ground of `limit`.

    Args:
        values: traced amount of each part, one field or one value for each.
        limit: the amount that is `length` long.
        roles: theme role of each part.
        number: format of the amounts, None for none.
        mark: traced amount at which a broken line crosses the bar.
        overhang: of that line, above and below the bar.
    """

    animated = ("opacity", "amounts", "share", "presence", "emphasis", "color", "marked")

    def __init__(
        self,
        values: Traced | Sequence[Traced],
        *,
        limit: float | Traced,
        length: float,
        thickness: float = 0.6,
        roles: Sequence[str],
        number: str | None = None,
        number_size: float = theme.LABEL,
        mark: Traced | None = None,
        overhang: float = 0.2,
    ) -> None:
        self.number, self.style, self.overhang = number, Style(number_size, "numbers", bold=True), overhang
        self.set_limit(limit)
        self._take(values)
        count = len(self.values)
        if len(roles) != count:
            raise ValueError(f"{count} parts need as many roles, got {len(roles)}")
        self.mark = None if mark is None else require_traced(mark, "StackedBar")
        self.marked = np.array(1.0)  # opacity of the mark
        super().__init__(length, thickness)
        self.presence, self.emphasis = np.ones(count), np.ones(count)
        self.color = np.array([theme.rgb(getattr(theme, role)) for role in roles])

    def _take(self, values: Traced | Sequence[Traced]) -> None:
        parts = [values] if isinstance(values, Traced) else values
        self.values = tuple(part for field in parts for part in require_traced(field, "StackedBar").reshape(-1))
        self.amounts = np.array([float(part) for part in self.values])
        if not (self.amounts >= 0).all():
            raise ValueError(f"parts of a bar are at least 0, got {self.amounts.tolist()}")

    # -- changes, all of them animatable ----------------------------------------------------------------------------

    def set_values(self, values: Traced | Sequence[Traced]) -> Self:
        """Let the parts take other amounts; those to the right move along."""
        count = len(self.values)
        self._take(values)
        if len(self.values) != count:
            raise ValueError(f"set_values needs {count} values, got {len(self.values)}")
        return self

    def set_limit(self, limit: float | Traced) -> Self:
        """Look at the bar and its mark from nearer or from farther away."""
        self.share = np.array(1 / float(limit))  # of the ground, for an amount of 1
        return self

    def show_mark(self, opacity: float = 1.0) -> Self:
        self.marked = np.array(float(opacity))
        return self

    def blend(self, start: "StackedBar", end: "StackedBar", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.values, self.mark = nearer.values, nearer.mark

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _x(self, amount: float) -> float:
        return self.local_width * (amount * float(self.share) - 0.5)

    def _edges(self) -> np.ndarray:
        """Return the amounts at which parts begin, and where the last one ends."""
        return np.concatenate([[0.0], np.cumsum(self.amounts * self.presence)])

    def place(self, amount: float | Traced) -> np.ndarray:
        """Return the scene point of an amount, on the middle of the bar."""
        return self.to_scene(self._x(float(amount)), 0.0)

    def part_center(self, k: int) -> np.ndarray:
        """Return the scene point in the middle of a part."""
        edges = self._edges()
        k %= len(self.values)
        return self.to_scene(self._x((edges[k] + edges[k + 1]) / 2), 0.0)

    def end(self) -> np.ndarray:
        """Return the scene point where the last part ends."""
        return self.to_scene(self._x(float(self._edges()[-1])), 0.0)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, painter: Painter) -> None:
        edges, half = self._edges(), self.local_height / 2
        for k, color in enumerate(self.color.tolist()):
            left, right = self._x(edges[k]), self._x(edges[k + 1])
            if right - left < 1e-3:
                continue
            gap = min(0.03, 0.15 * (right - left))
            shade = theme.recede(theme.hex_color(tuple(color)), float(self.emphasis[k]))
            radius = min(0.05, (right - left) / 3)
            painter.box(left, -half, right - left - gap, 2 * half, fill=shade, radius=radius)
            text = self._text(k)
            if text:
                ink = theme.ink_on(shade, theme.current())
                painter.text(text, right - gap - 0.14, -self.style.size / 2, self.style, color=ink, align=1.0)
        if self.mark is not None and self.marked > 0:
            x, reach = self._x(float(self.mark)), half + self.overhang
            painter.polyline([(x, -reach), (x, reach)], stroke=theme.TEXT, dash=(0.1, 0.08), opacity=float(self.marked))

    def _text(self, k: int) -> str:
        """Return the number in a part, nothing if it has no room or the part is on its way."""
        if self.number is None or self.presence[k] < 1:
            return ""
        text = format_number(self.values[k].values.item(), self.number)
        room = self.local_width * self.amounts[k] * float(self.share)
        return text if width(text, self.style) + 0.3 <= room else ""

    def data(self) -> tuple[Data, ...]:
        return tuple(
            Data(part, np.asarray(float(part) if shown > 0 else 0.0), np.asarray(amount * shown))
            for part, amount, shown in zip(self.values, self.amounts, self.presence, strict=True)
        )

    def measure(self) -> Measure:
        unit = self.local_width * float(self.share) * float(np.linalg.norm(self._frame()[1]))
        return Measure(self.values[0].field, "a part of a bar", unit)

    def ledger(self) -> list[tuple[str, str]]:
        parts = [
            (self._text(k) or "length", part.origin)
            for k, part in enumerate(self.values)
            if self.presence[k] > 0 and self.amounts[k] > 0
        ]
        return parts if self.mark is None or self.marked <= 0 else [*parts, ("mark", self.mark.origin)]
