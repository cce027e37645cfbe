"""The pictures that chapters of the FlashAttention video share: two memories, the bytes between them, tiles in SRAM."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, PI, RIGHT, UP

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.label import Label
from scenes.kit.shapes import Frame, arrow
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.tile_map import TileMap

STRIP = 0.11  # width of a cell of a strip


class Memories:
    """Two memories and the narrow bridge between them: big HBM with whole strips, SRAM still empty."""

    def __init__(self, trace: Any, *, strip_height: float = 4.0) -> None:
        self.fields = {"query": trace.query, "key": trace.key, "value": trace.value, "output": trace.flash_output}
        self.store = Frame(4.9, 5.7, color=theme.LINES, fill=theme.SURFACE).move_to([-4.15, 0.1, 0])
        self.chip = Frame(6.65, 4.35, color=theme.TEXT, line=theme.THICK).move_to([3.27, 0.775, 0])
        self.bridge = np.array([-0.88, 0.6, 0])
        left, right = self.bridge + 0.68 * LEFT, self.bridge + 0.68 * RIGHT
        ways = [arrow(left + 0.2 * UP, right + 0.2 * UP), arrow(right + 0.2 * DOWN, left + 0.2 * DOWN)]
        titles = [
            Label(words, color=color, bold=True).move_to(frame.get_corner(UP + LEFT) + 0.22 * RIGHT + 0.3 * DOWN, LEFT)
            for words, color, frame in (
                ("HBM: big, slow", theme.MUTED, self.store),
                ("SRAM: small, fast", theme.TEXT, self.chip),
            )
        ]
        self.strips: dict[str, TensorGrid] = {}
        names = []
        for k, (name, field) in enumerate(self.fields.items()):
            cell = (STRIP, strip_height / len(trace.query))
            strip = TensorGrid(field, cell=cell, number=None, role=name.upper())
            strip.move_to([-5.85 + 1.13 * k, 0, 0]).align_to([0, 1.8, 0], UP)
            color = getattr(theme, name.upper())
            names.append(Label(name, size=theme.SMALL, color=color, bold=True).next_to(strip, UP, buff=0.18))
            self.strips[name] = strip
        self.furniture = [self.store, self.chip, *ways, *titles, *names]

    def parts(self) -> list[Any]:
        """Return what stands there before anything moves."""
        return [*self.furniture, *self.strips.values()]


class Traffic:
    """Bytes moved so far, by the standard algorithm and by tiles, under the chip."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        looks: dict[str, Any] = {
            "limit": trace.standard_bytes[-1], "length": 3.9, "step": 0.4, "thickness": 0.7, "number": ",d",
            "number_size": 0.22,
        }  # fmt: skip
        self.standard = Bars(trace.standard_bytes[:1], role="LOSS", **looks).move_to([3.35, -2.1, 0]).hide()
        self.tiles = Bars(trace.flash_bytes[:1], role="VALUE", **looks).next_to(self.standard, DOWN, buff=0.06).hide()
        self.heading = Label("bytes moved", color=theme.MUTED).move_to([3.35, -1.7, 0]).align_to(self.standard, LEFT)
        self.names = [
            Label(words, color=theme.MUTED).next_to(bar, LEFT, buff=0.2)
            for words, bar in (("standard", self.standard), ("by tiles", self.tiles))
        ]

    def parts(self, *, tiles: bool) -> list[Any]:
        """Return the bars and their names; with tiles the standard algorithm has already run."""
        if not tiles:
            return [self.heading, self.standard, self.names[0]]
        self.standard.set_values(self.trace.standard_bytes[-1:]).show()
        return [self.heading, self.standard, self.tiles, *self.names]

    def standard_to(self, index: int) -> Any:
        """Return the bar's way to a step of the standard algorithm."""
        return self.standard.animate.show().set_values(self.trace.standard_bytes[index : index + 1])

    def tiles_to(self, step: int) -> Any:
        """Return the bar's way to the end of a tile."""
        return self.tiles.animate.show().set_values(self.trace.flash_bytes[step : step + 1])


class TileStage:
    """What one tile of scores needs, in SRAM: chapter 4 and the loop."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.memory = Memories(trace)
        self.height, self.width = trace.tile_scores.shape[1:]
        row = min(0.46, 1.9 / self.height)
        self.tile_cell, self.number_cell = (STRIP, row), (min(0.58, 2.32 / self.width), row)
        self.head, self.foot = 1.74, 0.05  # middles of the upper and of the lower row of tiles
        self.at = {"query": 0.575, "scores": 2.42, "maximum": 4.13, "total": 4.98, "output": 5.965}
        self.map = TileMap(
            len(trace.query), (self.height, self.width), size=0.8, skipped=(trace.skipped_i, trace.skipped_j)
        ).move_to(self.place("query", self.head - 0.1))
        names = (
            ("query", "query", theme.QUERY), ("scores", "scores, weights", theme.SCORE),
            ("maximum", "max", theme.MAXIMUM), ("total", "sum", theme.TEXT), ("output", "output", theme.OUTPUT),
        )  # fmt: skip
        self.names = [
            Label(words, size=theme.SMALL, color=color, bold=True).move_to(self.place(place, self.foot - 1.14))
            for place, words, color in names
        ]
        self.names.append(Label("tiles", size=theme.SMALL, color=theme.MUTED).next_to(self.map, UP, buff=0.12))
        self.factor_name = Label("× factor", size=theme.SMALL, color=theme.LOSS, bold=True)
        self.division = Label("÷ sum", size=theme.SMALL, bold=True)
        self.query: Any = None
        self.maximum: Any = None
        self.total: Any = None
        self.output: Any = None

    def parts(self) -> list[Any]:
        return [*self.memory.parts(), self.map, *self.names]

    def place(self, name: str, height: float) -> np.ndarray:
        return np.array([self.at[name], height, 0])

    def rows(self, i: int) -> slice:
        """Return the words of query tile i; the last tile may be cut off."""
        return slice(i * self.height, min((i + 1) * self.height, len(self.trace.query)))

    def columns(self, j: int) -> slice:
        return slice(j * self.width, min((j + 1) * self.width, len(self.trace.key)))

    # -- tiles on their way -----------------------------------------------------------------------------------------

    def strip_tile(self, name: str, rows: slice) -> TensorGrid:
        """Return rows of a strip as a tile of their own, lying over it in HBM."""
        strip = self.memory.strips[name]
        tile = TensorGrid(
            self.memory.fields[name][rows], cell=strip.cell, number=None, limit=strip.limit, role=strip.role
        )
        return tile.move_to((strip.row_center(rows.start) + strip.row_center(rows.stop - 1)) / 2)

    def tile(self, name: str, rows: slice) -> TensorGrid:
        """Return a tile of queries or values at its place in SRAM."""
        strip = self.memory.strips[name]
        field = self.memory.fields[name][rows]
        tile = TensorGrid(field, cell=self.tile_cell, number=None, limit=strip.limit, role=strip.role)
        if name == "value":
            return tile.stretch_to_fit_height(1.08).move_to(self.place("output", self.head))
        return tile.move_to(self.place("query", self.foot)).set_z_index(1)  # tiles that come pass behind it

    def key_tile(self, rows: slice) -> TensorGrid:
        """Return a tile of keys, turned so that each key stands over its column of scores."""
        strip = self.memory.strips["key"]
        cell = (0.13, self.number_cell[0])
        tile = TensorGrid(self.trace.key[rows], cell=cell, number=None, limit=strip.limit, role="KEY")
        return tile.rotate(PI / 2).move_to(self.place("scores", self.head))

    def scores(self, s: int) -> TensorGrid:
        field = self.part(self.trace.tile_scores, s)
        grid = TensorGrid(field, cell=self.number_cell, limit=largest(self.trace.tile_scores), role="SCORE")
        return grid.move_to(self.place("scores", self.foot))

    def weights(self, s: int) -> TensorGrid:
        field = self.part(self.trace.tile_weights, s)
        grid = TensorGrid(field, cell=self.number_cell, number=".2f", map="SCORE", limit=1.0, role="SCORE")
        return grid.move_to(self.place("scores", self.foot))

    # -- the running state ------------------------------------------------------------------------------------------

    def part(self, field: Any, s: int) -> Any:
        """Return the rows, and of a tile the columns, that exist in a step."""
        i, j = int(self.trace.tile_i[s]), int(self.trace.tile_j[s])
        rows, columns = self.rows(i), self.columns(j)
        part = field[s, : rows.stop - rows.start]
        return part[:, : columns.stop - columns.start] if field.shape == self.trace.tile_scores.shape else part

    def column(self, field: Any, s: int) -> Any:
        return self.part(field, s).reshape(-1, 1)

    def open_row(self, s: int) -> None:
        """Make maximum, sum and output of a new query tile."""
        trace, cell = self.trace, (0.6, self.number_cell[1])
        self.maximum = TensorGrid(
            self.column(trace.running_max, s), cell=cell, limit=largest(trace.running_max), role="MAXIMUM"
        ).move_to(self.place("maximum", self.foot))
        self.total = TensorGrid(
            self.column(trace.running_sum, s), cell=cell, number=".2f", map="SCORE", limit=largest(trace.running_sum),
            role="TEXT",
        ).move_to(self.place("total", self.foot))  # fmt: skip
        self.output = TensorGrid(
            self.part(trace.acc, s), cell=self.tile_cell, number=None, limit=largest(trace.acc), role="OUTPUT"
        ).move_to(self.place("output", self.foot))
        for part in (self.maximum, self.total, self.output):
            part.set_z_index(1)

    def final_output(self, s: int) -> TensorGrid:
        """Return the output of a query tile after the division, still in SRAM."""
        rows, limit = self.rows(int(self.trace.tile_i[s])), self.memory.strips["output"].limit
        final = TensorGrid(self.trace.flash_output[rows], cell=self.tile_cell, number=None, limit=limit, role="OUTPUT")
        self.division.next_to(self.output, UP, buff=0.25)
        return final.move_to(self.output)

    def factors(self, s: int) -> TensorGrid:
        """Return the factors that correct the sums and outputs of a query tile."""
        cell = (0.6, min(0.3, 1.04 / self.height))
        field = self.column(self.trace.rescale, s)
        grid = TensorGrid(field, cell=cell, number=".2f", map="LOSS", limit=1.0, role="LOSS")
        grid.move_to(self.place("total", self.head))
        self.factor_name.next_to(grid, UP, buff=0.16)
        return grid
