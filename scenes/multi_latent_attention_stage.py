"""The picture of the moving matrix: latents, one head's matrix, and what the head would make of them."""

from typing import Any

import numpy as np
from manim import DOWN, RIGHT, UP

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.token_row import RowNames

BESIDE_QUERY = np.array([-0.85, 1.55, 0.0])  # where a matrix stands when it serves the query, or the output
ROW = 0.34


class AbsorbStage:
    """The picture of chapter 4 and of the loop: latents, a head's matrix, its keys, a query, its scores."""

    def __init__(self, trace: Any) -> None:
        head, last = int(trace.config.head), len(trace.tokens) - 1
        self.latents = TensorGrid(trace.c_kv, cell=(0.26, ROW), number=None, role="LATENT").move_to([-4.0, 0, 0])
        self.latents.align_to([0, 0.7, 0], UP)
        self.matrix = TensorGrid(trace.w_uk[head].T, cell=(0.24, 0.24), number=None, role="WEIGHT")
        self.matrix.move_to([-0.85, self.latents.get_center()[1], 0])
        self.keys = TensorGrid(trace.k_nope[head], cell=(0.26, ROW), number=None, role="KEY").move_to([2.3, 0, 0])
        self.keys.align_to(self.latents, UP)
        self.query = TensorGrid(
            trace.q_nope[head, last], cell=(0.26, 0.28), number=None, role="QUERY"
        ).move_to([2.3, 1.25, 0])  # fmt: skip
        self.moved_query = TensorGrid(trace.q_absorbed[head, last], cell=(0.26, 0.28), number=None, role="QUERY")
        self.moved_query.move_to([-4.0, 1.25, 0])
        self.scores = TensorGrid(
            trace.scores_content[head, last].reshape(-1, 1), cell=(0.95, ROW), number="+.2f", role="SCORE"
        ).move_to([5.3, 0, 0]).align_to(self.latents, UP)  # fmt: skip
        self.home = self.matrix.get_center()
        self.names = RowNames(trace.tokens, self.latents)
        self.cached, self.keys_name, self.score_name = (
            Label(words, color=color, bold=True).next_to(grid, DOWN, buff=0.25)
            for words, color, grid in (
                ("cached for all heads", theme.LATENT, self.latents),
                ("keys of one head", theme.KEY, self.keys),
                ("scores", theme.SCORE, self.scores),
            )
        )
        self.matrix_name = Label("up-projection", color=theme.WEIGHT, bold=True).next_to(self.matrix, DOWN, buff=0.25)
        self.signs = [
            Label(sign, size=0.3, color=theme.MUTED).move_to([x, self.home[1], 0])
            for sign, x in (("×", -2.4), ("=", 0.7))
        ]
        self.moved_name = Label("translated query", color=theme.QUERY, bold=True).next_to(
            self.moved_query, UP, buff=0.2
        )
        self.same = Label(f"scores differ by at most {trace.max_abs_diff_scores:.0e}", color=theme.MUTED)
        self.same.move_to([0, 1.9, 0]).align_to([6.5, 0, 0], RIGHT)
        self.query_name = Label("query", color=theme.QUERY, bold=True).next_to(self.query, RIGHT, buff=0.3)


class ValueStage:
    """The same head's values: what takes the places of matrix, keys, query and scores of an `AbsorbStage`."""

    def __init__(self, trace: Any, stage: AbsorbStage) -> None:
        head, last = int(trace.config.head), len(trace.tokens) - 1
        self.shares = trace.weights[head, last]
        self.matrix = TensorGrid(trace.w_uv[head].T, cell=(0.24, 0.24), number=None, role="WEIGHT").move_to(stage.home)
        self.values = TensorGrid(trace.value[head], cell=(0.26, ROW), number=None, role="VALUE").move_to(stage.keys)
        self.weights = TensorGrid(
            self.shares.reshape(-1, 1), cell=(0.95, ROW), number=".2f", map="SCORE", limit=1.0, role="SCORE"
        ).move_to(stage.scores)  # fmt: skip
        self.output = TensorGrid(trace.head_output[head, last], cell=(0.26, 0.28), number=None, role="OUTPUT")
        self.output.move_to(stage.query)
        self.mixture = TensorGrid(trace.mixed_latent[head, last], cell=(0.26, 0.28), number=None, role="LATENT")
        self.mixture.move_to(stage.moved_query)
        self.name, self.weights_name, self.matrix_name = (
            Label(words, color=color, bold=True).next_to(grid, DOWN, buff=0.25)
            for words, color, grid in (
                ("values", theme.VALUE, self.values),
                ("attention", theme.SCORE, self.weights),
                ("up-projection", theme.WEIGHT, self.matrix),
            )
        )
        self.output_name = Label("output", bold=True).next_to(self.output, RIGHT, buff=0.3)
        self.mixture_name = Label("mixed latent", color=theme.LATENT, bold=True).next_to(self.mixture, UP, buff=0.2)
