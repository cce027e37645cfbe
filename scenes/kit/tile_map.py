"""TileMap: a matrix that is not there, as empty tiles; some are never visited, one at a time may be alive."""

from typing import Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.traced import Traced, require_traced


class TileMap(Picture):
    """Outlines of the tiles of a (length, length) matrix.

    Args:
        length: rows and columns of the matrix.
        tile: rows and columns of a tile; the last ones may be cut off.
        size: side of the square on screen.
        skipped: traced rows and columns (i, j) of the tiles that are never visited.
    """

    def __init__(self, length: int, tile: tuple[int, int], *, size: float, skipped: tuple[Traced, Traced]) -> None:
        super().__init__(size, size)
        self.length, self.tile = length, tile
        self.skipped = tuple(require_traced(part, "TileMap") for part in skipped)
        self.alive: tuple[Traced, Traced] | None = None

    def light(self, i: Traced, j: Traced) -> Self:
        """Show that tile (i, j) is alive."""
        self.alive = require_traced(i, "TileMap.light"), require_traced(j, "TileMap.light")
        return self

    def clear(self) -> Self:
        """Show that no tile is alive."""
        self.alive = None
        return self

    def tile_center(self, i: int, j: int) -> np.ndarray:
        """Return the scene point in the middle of a tile."""
        x, y, width, height = self._box(i, j)
        return self.to_scene(x + width / 2, y + height / 2)

    def _box(self, i: int, j: int) -> tuple[float, float, float, float]:
        """Return lower left corner, width and height of a tile."""
        unit = self.local_width / self.length
        top, bottom = i * self.tile[0], min((i + 1) * self.tile[0], self.length)
        left, right = j * self.tile[1], min((j + 1) * self.tile[1], self.length)
        half = self.local_width / 2
        return left * unit - half, half - bottom * unit, (right - left) * unit, (bottom - top) * unit

    def draw(self, painter: Painter) -> None:
        skipped = {(int(i), int(j)) for i, j in zip(*self.skipped, strict=True)}
        alive = None if self.alive is None else (int(self.alive[0]), int(self.alive[1]))
        for i in range(-(-self.length // self.tile[0])):
            for j in range(-(-self.length // self.tile[1])):
                x, y, width, height = self._box(i, j)
                fill = theme.SCORE if (i, j) == alive else theme.LINES if (i, j) in skipped else None
                painter.box(x, y, width, height, fill=fill, stroke=theme.MUTED, line=theme.HAIRLINE)

    def ledger(self) -> list[tuple[str, str]]:
        shown = (*self.skipped, *(self.alive or ()))
        return [("tile", part.origin) for part in shown if part.size]
