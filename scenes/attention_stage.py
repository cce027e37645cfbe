"""The picture that the mixing chapter and the loop of the attention video share: one question, all keys, all values."""

from typing import Any

import numpy as np
from manim import RIGHT, UP, FadeIn, FadeOut, Group, Scene

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.motion import Visit, pour
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames

CELL = 0.34  # width of a number
COLUMNS = {"key": -3.55, "weight": -0.7, "value": 1.4, "output": 4.9}  # middles


class AttentionStage:
    """Words at the left; keys, one column of weights, values, and the outputs, a row for each word."""

    def __init__(self, trace: Any, *, row_height: float, top: float) -> None:
        self.trace = trace
        looks: dict[str, Any] = {"cell": (CELL, row_height), "number": None}
        self.keys = TensorGrid(trace.k_rot, role="KEY", **looks)
        self.values = TensorGrid(trace.v, role="VALUE", **looks)
        self.outputs = TensorGrid(trace.outputs, limit=self.values.limit, **looks)
        for name, grid in (("key", self.keys), ("value", self.values), ("output", self.outputs)):
            grid.move_to([COLUMNS[name], 0, 0]).align_to([0, top, 0], UP)
        self.outputs.hide()
        self.room = Frame.around(self.outputs, pad=0.07, color=theme.OUTPUT)
        self.names = RowNames(trace.tokens, self.keys)
        self.titles = [
            Label(words, color=color, bold=True).move_to([COLUMNS[place], top + 0.32, 0])
            for words, color, place in (
                ("keys", theme.KEY, "key"), ("weights", theme.SCORE, "weight"), ("values", theme.VALUE, "value"),
                ("outputs", theme.OUTPUT, "output"),
            )
        ]  # fmt: skip
        self.weights: Any = None

    def parts(self) -> list[Any]:
        """Return what stays on stage from question to question."""
        return [self.names, self.keys, self.values, self.room, self.outputs, *self.titles]

    def weights_of(self, row: int) -> TensorGrid:
        """Return the weights of one word as a column between keys and values."""
        column = self.trace.weights_seen[row].reshape(-1, 1)
        cell = (0.72, self.keys.cell[1])
        grid = TensorGrid(column, cell=cell, number=".2f", number_size=0.18, map="SCORE", limit=1.0)
        return grid.move_to([COLUMNS["weight"], 0, 0]).align_to(self.keys, UP)

    def seen(self, row: int) -> list[int]:
        """Return the words that a word may look at."""
        return np.flatnonzero(np.asarray(self.trace.mask[row].values)).tolist()

    def only(self, row: int) -> None:
        """Let the words that a word may not look at recede."""
        for grid in (self.keys, self.values):
            grid.focus(self.seen(row))
        self.names.focus(row)

    # -- motions ----------------------------------------------------------------------------------------------------

    def ask(self, scene: Scene, row: int, *, pace: float) -> None:
        """Let a word's query go down the keys it may see, and fill a weight at each."""
        query = TensorGrid(
            self.trace.q_rot[row], cell=(CELL, self.keys.cell[1] - 0.1), number=None, limit=largest(self.trace.q_rot)
        )
        frame = Frame(query.width + 0.14, self.keys.cell[1] + 0.04, color=theme.QUERY)
        beam = Group(frame, query, Label("query", color=theme.QUERY, bold=True).next_to(frame, RIGHT, buff=0.1))
        beside = beam.get_center() - frame.get_center()
        rows = self.seen(row)
        beam.move_to(self.keys.row_center(row) + beside)
        self.weights = self.weights_of(row).hide()
        weights = self.weights

        def fill(k: int, share: float) -> None:
            weights.presence = np.where(np.arange(weights.rows)[:, None] == rows[k], share, weights.presence)

        asking = [
            self.names.animate.focus(row),
            *(grid.animate.focus(rows) for grid in (self.keys, self.values)),
            FadeIn(beam, shift=0.6 * RIGHT),  # a query comes from the word that asks
        ]
        scene.play(*asking, run_time=0.35 * pace)
        scene.play(beam.animate.move_to(self.keys.row_center(rows[0]) + beside), run_time=0.35 * pace)
        scene.add(weights, beam)
        stops = [self.keys.row_center(k) + beside for k in rows]
        scene.play(Visit(beam, stops, on_rest=fill, changes=[weights]), run_time=0.085 * len(rows) * pace)
        scene.play(FadeOut(beam), run_time=0.2 * pace)

    def answer(self, scene: Scene, row: int, *, pace: float) -> None:
        """Tint the values by the weights, and let them slide together into the word's output."""
        rows = self.seen(row)
        tinted = self.values.copy().weigh_rows(self.trace.weights[row])
        scene.play(self.values.animate.become(tinted), run_time=0.4 * pace)
        flying = [self.values.row(k).set_opacity(float(tinted.emphasis[k, 0])) for k in rows]
        scene.play(
            pour(flying, self.outputs.row(row), lag_ratio=0.03),
            self.outputs.animate.show(row),
            run_time=0.9 * pace,
        )

    def finish(self) -> list[Any]:
        """Return the motions that clear the weights for the next question."""
        return [FadeOut(self.weights), self.values.animate.lead(), self.keys.animate.lead()]
