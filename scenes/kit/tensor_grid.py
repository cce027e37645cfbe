"""TensorGrid: a matrix of real values as colored cells, with or without numbers, in one mobject."""

import math
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Measure, Picture
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style

Which = int | slice | list[int] | None
GAP = 0.035  # between cells; small cells keep a smaller share free
FRAME_PAD = 0.07


class TensorGrid(Picture):
    """A (rows, columns) array as a heat map; a 1-D array is one row. NaN means "no cell here".

    Args:
        values: traced values to show.
        map: "signed" (diverging around zero) or the name of a theme role (sequential from nothing to its color).
        limit: the absolute value that gets the full color; by default the largest of `values`. Grids that are
            compared need the same limit.
        cell: width and height of a cell in frame units.
        number: format of the number in a cell, None for color alone.
        role: theme role of the frame around the grid, None for no frame.
    """

    animated = ("opacity", "shade", "presence", "emphasis", "ink", "frame_opacity")
    color_is_amount = True

    def __init__(
        self,
        values: Traced,
        *,
        map: str = "signed",
        limit: float | Traced | None = None,
        cell: tuple[float, float] = (0.62, 0.5),
        number: str | None = "+.1f",
        number_size: float = theme.SMALL,
        role: str | None = None,
    ) -> None:
        values = require_traced(values, "TensorGrid")
        self.map, self.cell, self.number, self.role = map, cell, number, role
        self.style = Style(number_size, "numbers")
        matrix = _matrix(values)
        self.limit = float(limit) if limit is not None else largest(matrix)
        self._take(matrix)
        rows, columns = self.values.shape
        super().__init__(columns * cell[0], rows * cell[1])
        self.presence = np.ones((rows, columns))
        self.emphasis = np.ones((rows, columns))
        self.weights: Traced | None = None  # what last tinted the rows
        self.ink = np.array(1.0)  # opacity of the numbers alone
        self.frame_opacity = np.array(1.0)

    def _take(self, matrix: Traced) -> None:
        values = np.asarray(matrix.values, dtype=float)
        if self.map != "signed" and np.nanmin(values, initial=0.0) < -1e-6 * (self.limit or 1.0):
            raise ValueError(
                f"the map {self.map!r} has no color for negative values, of which {matrix.origin} has some "
                f"(down to {np.nanmin(values):.3g}); use map='signed'"
            )
        self.values = matrix
        self.shade = np.asarray(matrix.values, dtype=float) / (self.limit or 1.0)
        self.texts = None
        if self.number is not None:
            spec = self.number
            self.texts = [[_cell_text(value, spec) for value in row] for row in matrix.values.tolist()]

    # -- geometry ---------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def columns(self) -> int:
        return self.values.shape[1]

    def _corner(self, row: float, column: float) -> tuple[float, float]:
        """Return the local upper left corner of a cell."""
        return column * self.cell[0] - self.local_width / 2, self.local_height / 2 - row * self.cell[1]

    def cell_center(self, row: int, column: int) -> np.ndarray:
        """Return the scene point in the middle of a cell; rows beyond the last are where they would be."""
        x, y = self._corner(row % self.rows if row < 0 else row, column % self.columns if column < 0 else column)
        return self.to_scene(x + self.cell[0] / 2, y - self.cell[1] / 2)

    def row_center(self, row: int) -> np.ndarray:
        """Return the scene point in the middle of a row; the row after the last is where it would be appended."""
        x, y = self._corner(row % self.rows if row < 0 else row, self.columns / 2)
        return self.to_scene(x, y - self.cell[1] / 2)

    def column_center(self, column: int) -> np.ndarray:
        """Return the scene point in the middle of a column."""
        x, y = self._corner(self.rows / 2, column % self.columns if column < 0 else column)
        return self.to_scene(x + self.cell[0] / 2, y)

    def row(self, row: int, *, role: str | None = None) -> "TensorGrid":
        """Return one row as a grid of its own, lying exactly over it."""
        return self._part(self.values[row : row + 1] if row >= 0 else self.values[row:][:1], self.row_center(row), role)

    def column(self, column: int, *, role: str | None = None) -> "TensorGrid":
        """Return one column as a grid of its own, lying exactly over it."""
        return self._part(self.values[:, column : column + 1], self.column_center(column), role)

    def _part(self, values: Traced, center: np.ndarray, role: str | None) -> "TensorGrid":
        part = TensorGrid(
            values,
            map=self.map,
            limit=self.limit,
            cell=self.cell,
            number=self.number,
            number_size=self.style.size,
            role=role,
        )
        _, right, _ = self._frame()
        return part.scale(float(np.linalg.norm(right))).move_to(center)

    # -- changes, all of them animatable ----------------------------------------------------------------------------

    def set_values(self, values: Traced) -> Self:
        """Show other values of the same shape: colors glide, numbers change over at half time."""
        matrix = _matrix(require_traced(values, "set_values"))
        if matrix.shape != self.values.shape:
            raise ValueError(f"set_values needs the shape {self.values.shape}, got {matrix.shape}; see append_row")
        self._take(matrix)
        return self

    def append_rows(self, values: Traced, *, keep: Any = (0, 1)) -> Self:
        """Show a field with more rows below; they start hidden (then `.animate.show(rows=…)`).

        `values` is the whole new matrix: a cache that grew is a longer view of the same field.
        """
        matrix = _matrix(require_traced(values, "append_rows"))
        more = matrix.shape[0] - self.rows
        if more < 0 or matrix.shape[1] != self.columns:
            raise ValueError(f"append_rows needs more rows of {self.columns} columns, got shape {matrix.shape}")
        self._take(matrix)
        self.presence = np.vstack([self.presence, np.zeros((more, self.columns))])
        self.emphasis = np.vstack([self.emphasis, np.ones((more, self.columns))])
        return self.resize_local(self.local_width, matrix.shape[0] * self.cell[1], keep=keep)

    def show(self, rows: Which = None, columns: Which = None) -> Self:
        """Make cells visible."""
        return self._set_cells("presence", rows, columns, 1.0)

    def hide(self, rows: Which = None, columns: Which = None) -> Self:
        """Make cells invisible; the grid keeps its size."""
        return self._set_cells("presence", rows, columns, 0.0)

    def recede(self, rows: Which = None, columns: Which = None) -> Self:
        """Step cells back so that the others lead."""
        return self._set_cells("emphasis", rows, columns, 0.0)

    def lead(self, rows: Which = None, columns: Which = None) -> Self:
        """Give cells their full color again; alone it undoes every `recede`."""
        return self._set_cells("emphasis", rows, columns, 1.0)

    def focus(self, rows: Which = None, columns: Which = None) -> Self:
        """Let everything recede but these cells."""
        self.emphasis = np.zeros_like(self.emphasis)
        return self.lead(rows, columns)

    def weigh_rows(self, weights: Traced) -> Self:
        """Tint each row by its weight in 0..1 (relative to the largest)."""
        self.weights = weights = require_traced(weights, "weigh_rows")
        share = np.nan_to_num(np.asarray(weights.values, dtype=float))
        top = share.max() or 1.0
        self.emphasis = np.repeat((share / top)[:, None], self.columns, axis=1)
        return self

    def hide_numbers(self) -> Self:
        """Leave the colors alone."""
        self.ink = np.array(0.0)
        return self

    def show_numbers(self) -> Self:
        self.ink = np.array(1.0)
        return self

    def _set_cells(self, name: str, rows: Which, columns: Which, amount: float) -> Self:
        return self._set(name, (_pick(rows), columns if isinstance(columns, list) else _pick(columns)), amount)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def blend(self, start: "TensorGrid", end: "TensorGrid", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.values, self.texts, self.limit, self.role = nearer.values, nearer.texts, nearer.limit, nearer.role
        if start.texts != end.texts and start.values.shape == end.values.shape:
            self.ink = self.ink * abs(2 * alpha - 1)

    def draw(self, painter: Painter) -> None:
        width, height = self.cell
        now = theme.current()
        if self.role is not None and self.frame_opacity > 0 and self.presence.any():
            self._draw_frame(painter)
        gap = min(GAP, 0.14 * min(width, height))
        radius = min(0.05, width / 8, height / 8)
        baseline = (height + self.style.size) / 2
        ink_opacity = float(self.ink) if self.texts is not None else 0.0
        state = zip(self.shade.tolist(), self.presence.tolist(), self.emphasis.tolist(), strict=True)
        for i, row in enumerate(state):
            for j, (share, presence, emphasized) in enumerate(zip(*row, strict=True)):
                if presence <= 0 or share != share:  # NaN
                    continue
                color = theme.signed_color(share) if self.map == "signed" else theme.sequential_color(share, self.map)
                if emphasized < 1:
                    color = theme.recede(color, emphasized)
                x, y = self._corner(i, j)
                painter.box(
                    x + gap / 2,
                    y - height + gap / 2,
                    width - gap,
                    height - gap,
                    fill=color,
                    radius=radius,
                    opacity=presence,
                )
                if self.texts is not None and ink_opacity > 0:
                    ink = theme.ink_on(color, now)
                    if emphasized < 1:
                        ink = theme.mix(color, ink, 0.62 + 0.38 * round(emphasized * 8) / 8)
                    painter.text(
                        self.texts[i][j],
                        x + width / 2,
                        y - baseline,
                        self.style,
                        color=ink,
                        opacity=presence * ink_opacity,
                    )

    def _draw_frame(self, painter: Painter) -> None:
        """Frame the rows that are there; a hidden last row does not count."""
        visible = self.presence.max(axis=1)
        reach = max(row + share for row, share in enumerate(visible) if share > 0)
        top = self.local_height / 2
        bottom = top - float(reach) * self.cell[1]
        painter.box(
            -self.local_width / 2 - FRAME_PAD,
            bottom - FRAME_PAD,
            self.local_width + 2 * FRAME_PAD,
            top - bottom + 2 * FRAME_PAD,
            stroke=getattr(theme, self.role or "LINES"),
            radius=0.09,
            opacity=float(self.frame_opacity),
        )

    def data(self) -> tuple[Data, ...]:
        values = np.asarray(self.values.values, dtype=float)
        return (Data(self.values, values, self.shade * (self.limit or 1.0)),)

    def measure(self) -> Measure:
        return Measure(self.values.field, f"a cell of the map {self.map}", self.limit)

    def ledger(self) -> list[tuple[str, str]]:
        shown = [(i, j) for i, j in zip(*np.nonzero(self.presence > 0), strict=True)]
        if self.texts is None or self.ink <= 0:
            return [(f"{len(shown)} colors", self.values.origin)]
        return [(self.texts[i][j], self.values[i, j].origin) for i, j in shown if self.texts[i][j]]


def largest(*values: Traced) -> float:
    """Return the largest absolute value, the natural limit of a color scale that several grids share."""
    return max(float(np.nanmax(np.abs(v.values))) for v in values)


def _matrix(values: Traced) -> Traced:
    if values.ndim > 2:
        raise ValueError(f"TensorGrid shows 1 or 2 dimensions, {values.origin} has shape {values.shape}")
    return values if values.ndim == 2 else values.reshape(1, -1)


def _pick(which: Which) -> Any:
    return slice(None) if which is None else which


def _cell_text(value: float, spec: str) -> str:
    return "" if math.isnan(value) else format_number(value, spec)
