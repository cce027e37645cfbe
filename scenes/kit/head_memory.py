"""HeadMemory: what one key-value head keeps, its keys and its values side by side, a row for each token."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from manim import RIGHT, Group

from scenes.kit.motion import Visit
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import Traced


class HeadMemory(Group):
    """Two color grids that behave as one thing: green-framed keys, violet-framed values.

    Args:
        keys, values: traced (T, d) rows of one head.
        limits: absolute values that get the full color, of keys and of values.
        cell: width and height of a cell.
        gap: between the two grids.
    """

    def __init__(
        self,
        keys: Traced,
        values: Traced,
        *,
        limits: tuple[float, float],
        cell: tuple[float, float] = (0.15, 0.34),
        gap: float = 0.22,
    ) -> None:
        self.keys = TensorGrid(keys, cell=cell, number=None, limit=limits[0], role="KEY")
        self.values = TensorGrid(values, cell=cell, number=None, limit=limits[1], role="VALUE")
        self.values.next_to(self.keys, RIGHT, buff=gap)
        super().__init__(self.keys, self.values)

    def show(self, rows: Any = slice(None)) -> Self:
        """Make rows visible."""
        return self._each("show", rows)

    def hide(self, rows: Any = slice(None)) -> Self:
        """Make rows invisible; the grids keep their size."""
        return self._each("hide", rows)

    def recede(self, rows: Any = slice(None)) -> Self:
        """Step rows back until they are read."""
        return self._each("recede", rows)

    def lead(self, rows: Any = slice(None)) -> Self:
        """Give rows their full color again."""
        return self._each("lead", rows)

    def _each(self, change: str, rows: Any) -> Self:
        for grid in (self.keys, self.values):
            getattr(grid, change)(rows)
        return self


def sweep(queries: Sequence[Any], memories: Sequence[HeadMemory], rows: int, **kwargs: Any) -> list[Visit]:
    """Return motions in which each query goes down its memory and lights the rows it has read."""

    def reader(memory: HeadMemory) -> Any:
        def read(row: int, share: float) -> None:
            for grid in (memory.keys, memory.values):
                lit = np.where(np.arange(grid.rows) == row, share, grid.emphasis[:, 0])
                grid.emphasis = np.repeat(lit[:, None], grid.columns, axis=1)

        return read

    return [
        Visit(
            query,
            [memory.keys.row_center(row) for row in range(rows)],
            on_rest=reader(memory),
            changes=[memory.keys, memory.values],
            **kwargs,
        )
        for query, memory in zip(queries, memories, strict=True)
    ]
