"""MemoryBlocks: a pool of equal slots, each free, owned, partly filled, or on its way."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, require_traced


class MemoryBlocks(Picture):
    """Slots of memory in reading order, `columns` to a line.

    Args:
        fill: traced share of each slot that is in use, 0..1 (one value a slot).
        columns: slots in a line.
        slot: width and height of a slot.
        roles: theme role of each slot's owner, or one for all.
    """

    animated = ("opacity", "fill", "emphasis", "color")

    def __init__(
        self,
        fill: Traced,
        *,
        columns: int,
        slot: tuple[float, float] = (0.42, 0.34),
        roles: str | Sequence[str] = "VALUE",
    ) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        self.columns, self.slot = columns, slot
        self._take(fill)
        count = len(self.fill)
        super().__init__(min(columns, count) * slot[0], -(-count // columns) * slot[1])
        self.emphasis = np.ones(count)
        names = [roles] * count if isinstance(roles, str) else list(roles)
        self.color = np.array([theme.rgb(getattr(theme, name)) for name in names])

    def _take(self, fill: Traced) -> None:
        self.values = require_traced(fill, "MemoryBlocks").reshape(-1)
        self.fill = np.asarray(self.values.values, dtype=float)
        if not ((self.fill >= 0) & (self.fill <= 1)).all():
            raise ValueError(f"fill must be a share in 0..1, got {self.values.origin} with {self.fill}")

    def set_fill(self, fill: Traced) -> Self:
        """Show other fill levels of the same slots."""
        if require_traced(fill, "set_fill").size != len(self.fill):
            raise ValueError(f"set_fill needs {len(self.fill)} values, got {fill.size}")
        self._take(fill)
        return self

    def own(self, which: Any, role: str) -> Self:
        """Give slots to another owner."""
        return self._set("color", which, theme.rgb(getattr(theme, role)))

    def focus(self, which: Any) -> Self:
        """Let everything recede but these slots."""
        self.emphasis = np.zeros_like(self.emphasis)
        self.emphasis[which] = 1.0
        return self

    def lead(self) -> Self:
        """Bring every slot back."""
        self.emphasis = np.ones_like(self.emphasis)
        return self

    def slot_center(self, index: int) -> np.ndarray:
        """Return the scene point in the middle of a slot."""
        x, y = self._corner(index % len(self.fill))
        return self.to_scene(x + self.slot[0] / 2, y + self.slot[1] / 2)

    def _corner(self, index: int) -> tuple[float, float]:
        line, column = divmod(index, self.columns)
        return column * self.slot[0] - self.local_width / 2, self.local_height / 2 - (line + 1) * self.slot[1]

    def blend(self, start: "MemoryBlocks", end: "MemoryBlocks", alpha: float) -> None:
        self.values = start.values if alpha < 0.5 else end.values

    def draw(self, painter: Painter) -> None:
        width, height = self.slot[0] - 0.06, self.slot[1] - 0.06
        for index, share in enumerate(self.fill):
            x, y = self._corner(index)
            color = theme.recede(theme.hex_color(tuple(self.color[index])), float(self.emphasis[index]))
            painter.box(x + 0.03, y + 0.03, width, height, fill=theme.SURFACE, radius=0.05)
            if share > 0:
                painter.box(x + 0.03, y + 0.03, width * share, height, fill=color, radius=0.05)

    def data(self) -> tuple[Data, ...]:
        return (Data(self.values, np.asarray(self.values.values, dtype=float), self.fill),)

    def ledger(self) -> list[tuple[str, str]]:
        return [(f"{len(self.fill)} slots", self.values.origin)]
