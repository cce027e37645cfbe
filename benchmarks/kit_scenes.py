"""The benchmark's contents as the kit draws them, each in two parts."""

import numpy as np
from manim import LEFT, RIGHT, UP, FadeIn, Scene

from benchmarks import numbers
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import Traced


def shown(values: np.ndarray) -> Traced:
    return Traced("benchmark", values)


class NumberGrids(Scene):
    part = 0

    def construct(self):
        states = [[shown(state) for state in grid] for grid in numbers.GRIDS]
        grids = [TensorGrid(of_grid[self.part], limit=2.0) for of_grid in states]
        for grid, side in zip(grids, (-3.2, 3.2), strict=True):
            self.add(grid.move_to([side, 0.4 * self.part, 0]))
        for direction in (UP, -UP):
            self.play(*(grid.animate.shift(0.8 * direction) for grid in grids), run_time=numbers.MOVE_SECONDS)
            self.play(*(grid.animate.shift(0.4 * LEFT) for grid in grids), run_time=numbers.MOVE_SECONDS)
            self.play(*(grid.animate.shift(0.4 * RIGHT) for grid in grids), run_time=numbers.MOVE_SECONDS)
        news = zip(grids, states, strict=True)
        self.play(*(g.animate.set_values(s[self.part + 1]) for g, s in news), run_time=numbers.MOVE_SECONDS)


class BarsAndCurves(Scene):
    part = 0

    def construct(self):
        rows = [
            Bars(shown(amounts[self.part]), limit=1.0, direction="up", step=0.27, number=None, role=role)
            for amounts, role in zip(numbers.AMOUNTS, ("KEY", "WEIGHT"), strict=True)
        ]
        for row, y in zip(rows, (2.6, 0.2), strict=True):
            self.add(row.move_to([0, y, 0]))
        chart = Chart(12.96, 2.0, x=(0, 1), y=(0, 1)).move_to([0, -2.4, 0])
        for number, heights in enumerate(numbers.HEIGHTS[self.part]):
            chart.curve(shown(numbers.X), shown(heights), role=("QUERY", "VALUE", "SCORE", "LOSS")[number % 4])
        self.add(chart)
        for step in (1, -1, 1):
            after = self.part + max(step, 0)
            self.play(
                *(row.animate.set_values(shown(a[after])) for row, a in zip(rows, numbers.AMOUNTS, strict=True)),
                run_time=numbers.MOVE_SECONDS,
            )
            bent = chart.animate
            for number, heights in enumerate(numbers.HEIGHTS[after]):
                bent.set_curve(number, shown(heights))
            self.play(bent, run_time=numbers.MOVE_SECONDS)


class Formulas(Scene):
    part = 0

    def construct(self):
        formulas = [Formula(source, size=0.24) for source in numbers.FORMULAS]
        for row, formula in enumerate(formulas):
            formula.move_to(numbers.formula_place(row))
        half = len(formulas) // 2
        first, second = formulas[:half], formulas[half:]
        if self.part:
            self.add(*formulas)
            for direction in (UP, -UP, -UP, UP):
                self.play(*(f.animate.shift(0.3 * direction) for f in formulas), run_time=numbers.MOVE_SECONDS)
        else:
            for formula in first:
                self.play(FadeIn(formula, shift=0.2 * UP), run_time=numbers.MOVE_SECONDS)
            self.play(*(FadeIn(formula, shift=0.2 * UP) for formula in second), run_time=numbers.MOVE_SECONDS)
        self.wait(numbers.MOVE_SECONDS, frozen_frame=True)


SCENES = {"number_grids": NumberGrids, "bars_and_curves": BarsAndCurves, "formulas": Formulas}
