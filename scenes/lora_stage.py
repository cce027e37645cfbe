"""The picture of LoRA: a tall matrix at the left margin, a wide one at the top, and the grid that they paint."""

from typing import Any

import numpy as np
from manim import LEFT, RIGHT, UP, FadeIn, FadeOut, Scene

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.motion import Visit
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.traced import Traced

GAP = 0.2  # between the grid and its margins


class ProductStage:
    """B at the left of an empty grid, A above it: each column of the grid lies below the number of A that makes it.

    Args:
        lora_a, lora_b: traced (r, in) and (out, r).
        partial: traced (r, out, in), the sums of the first 1, 2 … products.
        cell: side of a cell of the grid.
        center: of the grid.
    """

    def __init__(self, lora_a: Traced, lora_b: Traced, partial: Traced, *, cell: float, center: Any) -> None:
        self.partial = partial
        thick = min(0.24, 0.72 / len(lora_a))
        limit = 0.7 * largest(partial)  # the few cells beyond it have the full color
        self.product = TensorGrid(partial[0], cell=(cell, cell), number=None, limit=limit).move_to(center)
        self.room = Frame.around(self.product, pad=0.05, color=theme.LINES, line=theme.HAIRLINE)
        self.a = TensorGrid(lora_a, cell=(cell, thick), number=None, role="WEIGHT").next_to(self.product, UP, buff=GAP)
        self.b = TensorGrid(lora_b, cell=(thick, cell), number=None, role="WEIGHT")
        self.b.next_to(self.product, LEFT, buff=GAP)
        self.names = [
            Label("A", color=theme.WEIGHT, bold=True).next_to(self.a, RIGHT, buff=0.2),
            Label("B", color=theme.WEIGHT, bold=True).next_to(self.b, UP, buff=0.2),
        ]
        self.pair = [self.a, self.b, self.room]
        self.product.hide()
        self.brush = self.pointer = self.layer = self.product  # of the sweep under way

    def margins(self) -> list[Any]:
        """Return the two thin matrices, their names, and the room between them."""
        return [*self.pair, *self.names]

    # -- the sweep --------------------------------------------------------------------------------------------------

    def lift(self, scene: Scene, k: int, *, run_time: float, alone: bool = True) -> None:
        """Lift column k of B, and mark the first number of row k of A; the others recede if it is to stand alone."""
        self.brush = self.b.column(k, role="WEIGHT").set_z_index(2)
        width, height = self.a.cell
        self.pointer = Frame(width + 0.05, height + 0.05, color=theme.TEXT).move_to(self.a.cell_center(k, 0))
        self.pointer.set_z_index(2)
        if k:  # what the next pair paints comes to lie over what is there
            self.layer = TensorGrid(self.partial[k], cell=self.product.cell, number=None, limit=self.product.limit)
            self.layer.move_to(self.product).hide()
        others = [row for row in range(self.a.rows) if row != k]
        receding = [self.a.animate.recede(others), self.b.animate.recede(columns=others)] if alone and others else []
        scene.add(self.layer, self.brush)
        scene.play(FadeIn(self.pointer), *receding, run_time=run_time)

    def fetch(self, scene: Scene, column: int, *, run_time: float) -> None:
        """Take the first column of B to a column of the grid, and the mark on A along."""
        scene.remove(self.brush)
        self.brush = self.b.column(0, role="WEIGHT").set_z_index(2)
        scene.add(self.brush)
        scene.play(
            self.brush.animate.move_to(self.layer.column_center(column)),
            self.pointer.animate.move_to(self.a.cell_center(0, column)),
            run_time=run_time,
        )

    def multiply(self, scene: Scene, column: int, factor: Label, *, run_time: float) -> None:
        """Let the fetched column meet its factor, which comes from A, and take the colors of their product."""
        over = self.layer.column_center(column)
        factor.next_to(np.array([over[0], self.layer.get_top()[1] - 0.3, 0]), RIGHT, buff=0.3)
        product = TensorGrid(
            self.partial[0, :, column : column + 1], cell=self.brush.cell, number=None, limit=self.layer.limit,
            role="WEIGHT",
        ).move_to(over).set_z_index(2)  # fmt: skip
        scene.play(FadeIn(factor, target_position=self.pointer), run_time=0.4 * run_time)
        scene.play(self.brush.animate.become(product), FadeOut(factor), run_time=0.6 * run_time)
        self.layer.show(columns=column)

    def sweep(self, scene: Scene, k: int, columns: range, *others: Any, run_time: float) -> None:
        """Let the column travel over the grid, while the mark goes along the row; it leaves a column at every stop."""
        layer = self.layer

        def paint(stop: int, share: float) -> None:
            if share > 0:  # below the brush, which uncovers it when it goes on
                layer.presence = np.where(np.arange(layer.columns) == columns[stop], 1.0, layer.presence)

        over = [self.product.column_center(column) for column in columns]
        along = [self.a.cell_center(k, column) for column in columns]
        scene.play(
            Visit(self.brush, over, on_rest=paint, changes=[layer]), Visit(self.pointer, along), *others,
            run_time=run_time,
        )  # fmt: skip

    def lay_down(self, scene: Scene, k: int, *, run_time: float = 0.3) -> None:
        """End the sweep: the grid now holds the sum of the first k + 1 products."""
        scene.play(FadeOut(self.brush, self.pointer), self.a.animate.lead(), self.b.animate.lead(), run_time=run_time)
        self.product.set_values(self.partial[k])
        if self.layer is not self.product:
            scene.remove(self.layer)

    def paint(self, scene: Scene, k: int, *, run_time: float, alone: bool = True) -> None:
        """Paint one product at one go."""
        self.lift(scene, k, run_time=0.15 * run_time, alone=alone)
        self.sweep(scene, k, range(self.product.columns), run_time=0.7 * run_time)
        self.lay_down(scene, k, run_time=0.15 * run_time)
