"""PageTable: where each logical block of a text lies in memory, and how much of it is filled."""

from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.slot_map import ROOM
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style

COLUMN = 0.74  # width of one of the two columns


class PageTable(Picture):
    """The block table of one sequence: where each logical block lies, and how many of its slots are filled.

    Args:
        blocks, filled: traced (J,) numbers, NaN where there is no block; `filled` also where nothing is stored yet.
        role: theme role of the sequence.
        row: height of a row.
    """

    animated = ("opacity", "presence")

    def __init__(self, blocks: Traced, filled: Traced, *, role: str, row: float) -> None:
        self.row, self.role = row, role
        self._take(blocks, filled)
        super().__init__(2 * COLUMN, row * len(self.blocks))
        self.presence = np.ones(len(self.blocks))

    def _take(self, blocks: Traced, filled: Traced) -> None:
        self.blocks, self.filled = require_traced(blocks, "PageTable"), require_traced(filled, "PageTable")

    def set_values(self, blocks: Traced, filled: Traced) -> Self:
        """Show the table at another time."""
        self._take(blocks, filled)
        return self

    def show(self, which: Any = slice(None)) -> Self:
        """Let rows be seen."""
        return self._set("presence", which, 1.0)

    def hide(self, which: Any = slice(None)) -> Self:
        """Let rows look empty."""
        return self._set("presence", which, 0.0)

    def blend(self, start: "PageTable", end: "PageTable", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.blocks, self.filled, self.role = nearer.blocks, nearer.filled, nearer.role

    def row_end(self, j: int) -> np.ndarray:
        """Return the scene point at the right end of a row."""
        return self.to_scene(self.local_width / 2, self._middle(j))

    def _middle(self, j: int) -> float:
        return self.local_height / 2 - (j + 0.5) * self.row

    def rows(self) -> list[int]:
        """Return the logical blocks that there are."""
        return np.flatnonzero(~np.isnan(self.blocks.values)).tolist()

    def draw(self, painter: Painter) -> None:
        there, gap = self.rows(), min(0.04, 0.14 * self.row)
        for j in range(len(self.blocks)):
            shown = float(self.presence[j]) if j in there else 0.0
            y = self._middle(j) - self.row / 2 + gap / 2
            box = -self.local_width / 2, y, self.local_width, self.row - gap
            painter.box(*box, fill=theme.SURFACE, radius=0.05)
            if shown > 0:
                painter.box(*box, stroke=getattr(theme, self.role), line=theme.HAIRLINE, radius=0.05, opacity=shown)
                self._write(painter, j, shown)

    def _write(self, painter: Painter, j: int, shown: float) -> None:
        if self.row < ROOM - 0.02:
            return
        y = self._middle(j) - theme.SMALL / 2
        for numbers, x, bold in ((self.blocks, -COLUMN / 2, True), (self.filled, COLUMN / 2, False)):
            if not np.isnan(numbers.values[j]):
                text, style = format_number(float(numbers[j]), ".0f"), Style(theme.SMALL, "numbers", bold)
                painter.text(text, x, y, style, color=theme.TEXT, opacity=shown)

    def ledger(self) -> list[tuple[str, str]]:
        seen = [j for j in self.rows() if self.presence[j] > 0]
        return [
            (format_number(float(numbers[j]), ".0f"), numbers[j].origin)
            for j in seen
            for numbers in (self.blocks, self.filled)
            if not np.isnan(numbers.values[j])
        ]
