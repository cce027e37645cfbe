"""The benchmark's contents with Manim's own mobjects: manim render --disable_caching benchmarks/stock_scenes.py NAME

Same sizes, colors, places and times as in kit_scenes.py, written as a Manim user writes them.
"""

from collections.abc import Callable

import cairo
import numpy as np
from manim import (
    LEFT,
    RIGHT,
    UP,
    CapStyleType,
    FadeIn,
    FadeOut,
    Line,
    LineJointType,
    MathTypst,
    Rectangle,
    RoundedRectangle,
    Scene,
    Text,
    UpdateFromAlphaFunc,
    VGroup,
    VMobject,
    config,
    smooth,
)
from manimpango import register_font

from benchmarks import numbers
from scenes.kit import theme
from scenes.kit.tensor_grid import GAP
from scenes.kit.traced import format_number
from scenes.kit.typography import FILES, FOLDER, shape

config.background_color = theme.BACKGROUND
register_font(str(FOLDER / FILES["numbers", False]))
CELL = (0.62, 0.5)
H_HEIGHT = Text("H", font="JetBrains Mono", font_size=48).height


def number(value: float, color: str, center: np.ndarray) -> Text:
    """Return a number whose capitals are as high as in the kit, on the same place."""
    text = format_number(float(value), "+.1f")
    line = shape(text, "numbers", False)
    context = cairo.Context(cairo.RecordingSurface(cairo.CONTENT_ALPHA, None))
    context.append_path(line.path)
    x0, y0, x1, y1 = context.fill_extents()
    unit = theme.SMALL / line.cap_height
    middle = [((x0 + x1) / 2 - line.advance / 2) * unit, ((y0 + y1) / 2 - line.cap_height / 2) * unit, 0]
    drawn = Text(text, font="JetBrains Mono", font_size=48 * theme.SMALL / H_HEIGHT, color=color)
    return drawn.move_to(center + middle)


def rate_of_the_old(t: float) -> float:
    return min(1.0, 2 * smooth(t))


def rate_of_the_new(t: float) -> float:
    return max(0.0, 2 * smooth(t) - 1)


def glide(before: np.ndarray, after: np.ndarray) -> Callable[[VGroup, float], None]:
    """Return a function that gives cells the colors of values on their way, as the kit does."""

    def color(cells: VGroup, alpha: float) -> None:
        values = (before + (after - before) * alpha).ravel()
        for cell, value in zip(cells, values, strict=True):
            cell.set_fill(theme.signed_color(value / 2))

    return color


class NumberGrids(Scene):
    def grid(self, values: np.ndarray, center: np.ndarray) -> tuple[VGroup, VGroup]:
        cells, texts = VGroup(), VGroup()
        for (i, j), value in np.ndenumerate(values):
            color = theme.signed_color(value / 2)
            place = center + np.array([(j - 3.5) * CELL[0], (3.5 - i) * CELL[1], 0])
            cell = RoundedRectangle(
                width=CELL[0] - GAP, height=CELL[1] - GAP, corner_radius=0.05,
                stroke_width=0, fill_color=color, fill_opacity=1,
            )  # fmt: skip
            cells.add(cell.move_to(place))
            texts.add(number(value, theme.ink_on(color, "dark"), place))
        return cells, texts

    def construct(self):
        for part in range(2):
            self.clear()
            centers = [np.array([side, 0.4 * part, 0]) for side in (-3.2, 3.2)]
            pairs = [self.grid(g[part], center) for g, center in zip(numbers.GRIDS, centers, strict=True)]
            groups = [VGroup(*pair) for pair in pairs]
            self.add(*groups)
            for direction in (UP, -UP):
                for step in (0.8 * direction, 0.4 * LEFT, 0.4 * RIGHT):
                    self.play(*(group.animate.shift(step) for group in groups), run_time=numbers.MOVE_SECONDS)
            changes = []
            for (cells, texts), states, center in zip(pairs, numbers.GRIDS, centers, strict=True):
                _, new_texts = self.grid(states[part + 1], center)
                changes += [
                    UpdateFromAlphaFunc(cells, glide(states[part], states[part + 1])),
                    FadeOut(texts, rate_func=rate_of_the_old),
                    FadeIn(new_texts, rate_func=rate_of_the_new),
                ]
            self.play(*changes, run_time=numbers.MOVE_SECONDS)


class BarsAndCurves(Scene):
    def bar(self, k: int, amount: float, y: float, color: str) -> Rectangle:
        height, width = 2.0 * amount, 0.62 * 0.27
        radius = min(0.05, height / 2)
        bar = RoundedRectangle(
            width=width, height=height, corner_radius=radius, stroke_width=0, fill_color=color, fill_opacity=1
        )
        return bar.move_to([(k + 0.5) * 0.27 - 6.48, y - 1 + height / 2, 0])

    def curve(self, k: int, heights: np.ndarray) -> VMobject:
        color = (theme.QUERY, theme.VALUE, theme.SCORE, theme.LOSS)[k % 4]
        points = np.column_stack([(numbers.X - 0.5) * 12.96, (heights - 0.5) * 2.0 - 2.4, 0 * heights])
        curve = VMobject(
            stroke_color=color, stroke_width=100 * theme.LINE,
            joint_type=LineJointType.ROUND, cap_style=CapStyleType.ROUND,
        )  # fmt: skip
        return curve.set_points_as_corners(points)

    def construct(self):
        foot = Line([-6.48, -3.4, 0], [6.48, -3.4, 0], color=theme.MUTED, stroke_width=100 * theme.HAIRLINE)
        for part in range(2):
            self.clear()
            self.add(foot)
            looks = ((2.6, theme.KEY), (0.2, theme.WEIGHT))
            bars = [
                [self.bar(k, a, *look) for k, a in enumerate(row[part])]
                for row, look in zip(numbers.AMOUNTS, looks, strict=True)
            ]
            curves = [self.curve(k, h) for k, h in enumerate(numbers.HEIGHTS[part])]
            self.add(*bars[0], *bars[1], *curves)
            for step in (1, -1, 1):
                after = part + max(step, 0)
                self.play(
                    *(
                        bar.animate.become(self.bar(k, amounts[after][k], *look))
                        for row, amounts, look in zip(bars, numbers.AMOUNTS, looks, strict=True)
                        for k, bar in enumerate(row)
                    ),
                    run_time=numbers.MOVE_SECONDS,
                )
                self.play(
                    *(c.animate.become(self.curve(k, numbers.HEIGHTS[after][k])) for k, c in enumerate(curves)),
                    run_time=numbers.MOVE_SECONDS,
                )


class Formulas(Scene):
    def construct(self):
        formulas = [MathTypst(s, color=theme.TEXT, font_size=36, use_svg_cache=False) for s in numbers.FORMULAS]
        for row, formula in enumerate(formulas):
            formula.move_to(numbers.formula_place(row))
        half = len(formulas) // 2
        for formula in formulas[:half]:
            self.play(FadeIn(formula, shift=0.2 * UP), run_time=numbers.MOVE_SECONDS)
        self.play(*(FadeIn(formula, shift=0.2 * UP) for formula in formulas[half:]), run_time=numbers.MOVE_SECONDS)
        self.wait(numbers.MOVE_SECONDS, frozen_frame=True)
        for direction in (UP, -UP, -UP, UP):
            self.play(*(f.animate.shift(0.3 * direction) for f in formulas), run_time=numbers.MOVE_SECONDS)
        self.wait(numbers.MOVE_SECONDS, frozen_frame=True)
