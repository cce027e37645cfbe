"""The layer of QLoRA: a frozen grid of codes that is decoded a few rows at a time, and an adapter beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from manim import DOWN, LEFT, UP, Scene

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.motion import Visit
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest

CELL = 0.115
COLUMN = 0.42  # width of a column of outputs
TOP, MIDDLE = 2.55, 0.28  # of the inputs, and of the matrix


class LayerStage:
    """x lies above the codes and A below them; each row of codes gives one output, and B one that is added to it.

    Args:
        trace: of qlora.
    """

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        rank = len(trace.lora_A)
        thin, bright = min(0.14, 0.6 / rank), largest(trace.weight)
        outputs: dict[str, Any] = {
            "cell": (COLUMN, CELL), "number": None,
            "limit": largest(trace.base_output, trace.adapter_output, trace.output),
        }  # fmt: skip
        self.codes = TensorGrid(trace.codes, map="FROZEN", cell=(CELL, CELL), number=None, role="FROZEN")
        self.codes.move_to([-4.35, MIDDLE, 0])
        # decoded rows lie over the codes that they come from; none is there before it is needed
        self.decoded = TensorGrid(trace.dequantized, cell=(CELL, CELL), number=None, limit=bright)
        self.decoded.move_to(self.codes).hide()
        self.x = TensorGrid(trace.x, cell=(CELL, 0.26), number=None, role="INPUT")
        self.x.move_to([self.codes.get_center()[0], TOP, 0])
        self.a = TensorGrid(trace.lora_A, cell=(CELL, thin), number=None, role="WEIGHT")
        self.a.move_to([self.codes.get_center()[0], -2.33, 0])
        self.base, self.adapter, self.output = (
            TensorGrid(values.reshape(-1, 1), **outputs).move_to([x, MIDDLE, 0]).hide()
            for values, x in ((trace.base_output, -1.75), (trace.adapter_output, 1.75), (trace.output, 3.65))
        )
        self.coords = TensorGrid(trace.coords.reshape(-1, 1), cell=(COLUMN, thin), number=None, role="INPUT")
        self.coords.move_to([self.base.get_center()[0], self.a.get_center()[1], 0]).hide()
        self.b = TensorGrid(trace.lora_B, cell=(min(0.2, 0.8 / rank), CELL), number=None, role="WEIGHT")
        self.b.move_to([0.5, MIDDLE, 0])
        self.rooms = [
            Frame.around(grid, pad=0.05, color=theme.LINES, line=theme.HAIRLINE)
            for grid in (self.base, self.adapter, self.output)
        ]
        self.signs = [
            Label(sign, size=0.36, color=theme.MUTED).move_to([x, MIDDLE, 0]) for sign, x in (("+", -0.8), ("=", 2.7))
        ]
        self.window = max(1, int(trace.config.block_size) // self.codes.columns)  # rows of a block
        # the rows under the cursor, magnified: their codes, and over them what they are decoded to
        near: dict[str, Any] = {"cell": (0.19, min(0.36, 2.2 / self.window)), "number": None}
        self.lens_codes = TensorGrid(trace.codes[: self.window], map="FROZEN", limit=largest(trace.codes), **near)
        self.lens_codes.move_to([2.95, 1.0, 0])
        self.lens = TensorGrid(trace.dequantized[: self.window], limit=bright, **near).move_to(self.lens_codes).hide()

    def names(self, **words: str) -> dict[str, Label]:
        """Return a name for each part, the usual ones or others: x, codes, a, b, base, adapter, output."""
        usual = {
            "x": "x, the layer’s input at one token",
            "codes": f"frozen, {self.trace.bits['codes']:.0f} bits each", "a": "A", "b": "B",
            "base": "base", "adapter": "adapter", "output": "output",
        }  # fmt: skip
        looks = {
            "x": theme.INPUT, "codes": theme.FROZEN, "a": theme.WEIGHT, "b": theme.WEIGHT, "base": theme.TEXT,
            "adapter": theme.TEXT, "output": theme.OUTPUT,
        }  # fmt: skip
        made = {}
        for part, text in (usual | words).items():
            label = Label(text, color=looks[part], bold=True)
            grid = getattr(self, part)
            if part == "codes":
                label.next_to(grid, DOWN, buff=0.15)
            elif part == "a":
                label.next_to(grid, LEFT, buff=0.15)
            else:
                label.next_to(grid, UP, buff=0.16)
            made[part] = label
        return made

    def blocks(self) -> list[list[int]]:
        """Return the rows that are decoded together."""
        rows = list(range(self.codes.rows))
        return [rows[first : first + self.window] for first in rows[:: self.window]]

    def rows_center(self, rows: list[int]) -> np.ndarray:
        """Return the scene point in the middle of some rows of the matrix."""
        return (self.codes.row_center(rows[0]) + self.codes.row_center(rows[-1])) / 2

    def cursor(self, rows: list[int]) -> Frame:
        """Return a frame around some rows of the matrix."""
        frame = Frame(self.codes.width + 0.1, len(rows) * CELL + 0.08, color=theme.TEXT, radius=0.05)
        return frame.move_to(self.rows_center(rows)).set_z_index(3)

    def decode(self, scene: Scene, rows: list[int], *, run_time: float) -> None:
        """Let rows bloom into floats."""
        scene.play(self.decoded.animate.show(rows=rows), self.lens.animate.show(), run_time=run_time)

    def forget(self, scene: Scene, rows: list[int], *, run_time: float) -> None:
        """Let rows be codes again."""
        scene.play(self.decoded.animate.hide(rows=rows), self.lens.animate.hide(), run_time=run_time)

    def multiply(self, scene: Scene, rows: list[int], *, run_time: float) -> None:
        """Let x fall on decoded rows, which shrink into their outputs."""
        falling = self.x.copy().set_z_index(2)
        scene.add(falling)
        scene.play(falling.animate.move_to(self.rows_center(rows)), run_time=0.5 * run_time)
        product = TensorGrid(
            self.trace.dequantized[rows[0] : rows[-1] + 1], cell=self.decoded.cell, number=None,
            limit=self.decoded.limit,
        ).move_to(self.rows_center(rows)).set_z_index(1)  # fmt: skip
        target = (self.base.row_center(rows[0]) + self.base.row_center(rows[-1])) / 2
        scene.add(product)
        scene.remove(falling)
        scene.play(
            product.animate.stretch_to_fit_width(COLUMN).move_to(target).set_opacity(0),
            self.base.animate.show(rows=rows),
            run_time=0.5 * run_time,
        )
        scene.remove(product)

    def sweep(
        self, scene: Scene, cursor: Frame, blocks: list[list[int]], *, run_time: float,
        on_block: Callable[[int], None] | None = None, changes: tuple[Any, ...] = (),
    ) -> None:  # fmt: skip
        """Let the cursor go over blocks: each blooms while the cursor rests on it, and is codes again behind it."""
        rest, floats = np.zeros_like(self.decoded.presence), self.decoded

        def bloom(stop: int, share: float) -> None:
            rows, strength = blocks[stop], np.sin(np.pi * share)
            floats.presence = rest.copy()
            floats.presence[rows] = strength
            self.lens_codes.set_values(self.trace.codes[rows[0] : rows[-1] + 1])
            self.lens.set_values(self.trace.dequantized[rows[0] : rows[-1] + 1])
            self.lens.presence = np.full_like(self.lens.presence, strength)
            if share > 0 and on_block is not None:
                on_block(stop)

        stops = [self.rows_center(rows) for rows in blocks]
        scene.play(Visit(cursor, stops, on_rest=bloom, changes=[floats, *changes], rest=0.75), run_time=run_time)
        floats.hide()
        self.lens.hide()
