"""Draws internals_math.quantization.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, linear

from internals_math import quantization
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout
from scenes.kit.motion import RowByRow
from scenes.kit.picture import Picture
from scenes.kit.shapes import Frame, Stroke
from scenes.kit.snap_line import SEGMENT, LevelCounts, SnapLine
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.traced import format_number

METHOD_ROLES = ("WEIGHT", "SCORE", "KEY")  # round each row, round each group, GPTQ


class Quantization(TopicScene):
    """How can a few bits stand in for a float, and the model still talk sense?"""

    core = quantization
    notation = ("NF4", "GPTQ", "4-bit")
    takeaway = "Pick a grid, snap every weight to it, keep the index, and let the errors cancel."
    loop_alt = (
        "Eight real model weights snap to a grid that grows coarser and finer again; red segments show each rounding "
        "error grow and shrink."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("Snap to the grid")
    def snap_to_the_grid(self):
        """Keep the index of the tick, and throw away the rest."""
        trace = self.trace
        lane, left = 0.5, -4.75
        line = SnapLine(
            trace.w_row, trace.grid, span=self.span(trace.grid, 0.04), length=9.9, lane=lane, codes=trace.grid_codes
        ).move_to([left, 0.35, 0], aligned_edge=LEFT).hide().hide_ticks()  # fmt: skip
        values = [
            Label(f"{value:+.3f}", face="numbers").move_to(line.lane_start(k) + 0.25 * LEFT, aligned_edge=RIGHT)
            for k, value in enumerate(trace.w_row)
        ]
        top = line.get_top()[1] + 0.27
        weight = Label("weight", color=theme.WEIGHT, bold=True).move_to([0, top, 0]).align_to(values[0], RIGHT)
        code = Label("code", bold=True).move_to([5.9, top, 0])
        error = Label("error", color=theme.LOSS, bold=True).move_to([4.85, top, 0])
        self.say(f"Eight weights of a real layer ({trace.matrix}).")
        self.play(FadeIn(weight, *values), run_time=theme.QUICK)
        self.add(line)
        self.play(RowByRow(line), run_time=1.2)
        self.say(f"{trace.config.bits:d} bits make a grid of levels, each with a code.")
        self.play(line.animate.show_ticks(), run_time=0.8)
        self.say("Each weight snaps to the nearest tick. Red is the error.")
        marks = _legend().move_to([left, line.get_bottom()[1] - 0.85, 0], aligned_edge=LEFT)
        self.play(line.animate.focus(0), FadeIn(marks), run_time=0.3)
        self.play(line.animate.snap(trace.w_row_hat, 0), run_time=1.0)
        self.hold(0.3)
        self.play(line.animate.lead(), run_time=0.2)
        for k in range(1, len(trace.w_row)):
            self.play(line.animate.snap(trace.w_row_hat, k), run_time=0.22)
        self.say("Keep the index of the tick. Throw away the rest.")
        self.play(FadeIn(code), run_time=0.2)
        levels = np.asarray(trace.grid_codes).tolist()
        codes = [
            Label(f"{q:d}", size=0.22, face="numbers", bold=True)
            .move_to(line.code_center(levels.index(int(q))))
            .set_opacity(0)
            for q in trace.q_row
        ]
        flights = [one.animate.move_to([5.9, line.dot(k)[1], 0]).set_opacity(1) for k, one in enumerate(codes)]
        self.play(
            LaggedStart(*flights, lag_ratio=0.12), *(value.animate.set_opacity(0.45) for value in values), run_time=1.7
        )
        self.say("No error is ever longer than half a step.")
        narrow = SnapLine(
            trace.w_row, trace.grid, span=line.span, length=6.4, lane=lane, codes=trace.grid_codes
        ).snap(trace.w_row_hat).move_to(line, aligned_edge=LEFT)  # fmt: skip
        self.play(
            line.animate.become(narrow), *(one.animate.set_x(2.45) for one in (code, *codes)), run_time=0.9,
        )  # fmt: skip
        self.errors_to_panel(line, error, lane)

    def span(self, grid: Any, room: float) -> tuple[float, float]:
        """Return the ends of a line on which a grid and the weights fill all but a share of both sides."""
        both = np.concatenate([np.asarray(grid).reshape(-1), np.asarray(self.trace.w_row)])
        low, high = float(np.nanmin(both)), float(np.nanmax(both))
        return low - room * (high - low), high + room * (high - low)

    def errors_to_panel(self, line: SnapLine, title: Label, lane: float) -> None:
        """Let the red segments leave the line and line up between two marks, half a step to either side."""
        trace = self.trace
        count, middle, wide = len(trace.err_row), title.get_center()[0], 2.9
        low, high = line.span
        short = line.local_width * 2 * float(trace.half_step) / (high - low)
        looks: dict[str, Any] = {
            "signed": True, "limit": trace.half_step, "step": lane, "thickness": SEGMENT / lane, "role": "LOSS",
            "number": None,
        }  # fmt: skip
        tall = lane * count / 2
        edges = [
            Stroke(
                [middle + side * wide / 2, line.get_center()[1] - tall, 0],
                [middle + side * wide / 2, line.get_center()[1] + tall, 0],
                color=theme.LOSS if side else theme.LINES,
                line=theme.HAIRLINE,
                dash=(0.12, 0.09) if side else None,
            )
            for side in (-1, 0, 1)
        ]
        words = [
            Label("half a step", color=theme.MUTED).move_to([x, line.get_bottom()[1] - 0.3, 0])
            for x in (middle - wide / 2 + 0.4, middle + wide / 2 - 0.4)
        ]
        pieces, places = [], []
        for k in range(count):
            home = line.to_scene(float(line._x(line.amounts[k])), 0)[0]
            y = line.dot(k)[1]
            pieces.append(Bars(trace.err_row[k : k + 1], length=short, **looks).move_to([home, y, 0]))
            places.append(Bars(trace.err_row[k : k + 1], length=wide, **looks).move_to([middle, y, 0]))
        self.play(FadeIn(title, *edges, *words), run_time=0.4)
        self.add(*pieces)
        moves = [piece.animate.become(place) for piece, place in zip(pieces, places, strict=True)]
        self.play(LaggedStart(*moves, lag_ratio=0.1), run_time=1.6)
        self.hold(0.9)

    # -- chapter 2 and the loop -------------------------------------------------------------------------------------

    @chapter("One bit, half the step")
    def one_bit(self):
        """Each extra bit about halves the step."""
        trace = self.trace
        line = SnapLine(
            trace.w_row, trace.sweep_grid[0], span=self.span(trace.sweep_grid, 0.04), length=6.6, lane=0.53
        ).move_to([-3.0, 0.05, 0])  # fmt: skip
        bits = Readout(lambda b: f"{b:d} bits", trace.sweep_bits[0], size=0.36, face="words", bold=True)
        bits.next_to(line, UP, buff=0.3).align_to(line, LEFT)
        half = Readout(
            lambda step: f"half a step: {step:.4f}", trace.sweep_half_step[0], face="words", color=theme.LOSS
        )
        half.align_to(bits, DOWN).align_to(line, RIGHT)
        low, high = float(trace.sweep_mse[-1]), float(trace.sweep_mse[0])
        powers = [10.0**p for p in range(-8, 2)]
        first = max(p for p in powers if p < low)
        chart = Chart(
            4.3, 3.7, x=(1.6, 8.4), y=(first, 3 * high), x_ticks=range(2, 9), x_format="d", log_y=True,
            y_ticks=[p for p in powers if first <= p <= 3 * high], y_format=_power, x_label="bits",
            y_label="mean squared error, log scale",
        ).move_to([4.1, 0.35, 0])  # fmt: skip
        errors = chart.curve(trace.sweep_bits, trace.sweep_mse, role="LOSS", dots=0.1, drawn=1e-3)
        gain = Readout(lambda db: f"{db:+.1f} dB", trace.sweep_gain_db[0], size=0.26, bold=True, color=theme.LOSS)
        gain.move_to(chart.get_corner([1, 1, 0]) + np.array([-0.1, -0.4, 0]), aligned_edge=RIGHT)
        cleaner = Label("cleaner, by this bit", color=theme.MUTED).next_to(gain, DOWN, buff=0.2).align_to(gain, RIGHT)
        self.say("Few bits leave few ticks: long errors.")
        self.play(FadeIn(line, bits, half), run_time=theme.QUICK)
        self.play(line.animate.snap(trace.sweep_hat[0]), FadeIn(chart), run_time=1.1)
        self.hold(0.4)
        self.say("Each extra bit about halves the step, and the errors.")
        last = len(trace.sweep_bits) - 1
        for k in range(1, last + 1):
            if k == 4:
                self.say("Error power falls about four-fold: six decibels a bit.")
            self.play(
                line.animate.set_grid(trace.sweep_grid[k], trace.sweep_hat[k]),
                bits.animate.set_value(trace.sweep_bits[k]),
                half.animate.set_value(trace.sweep_half_step[k], keep=RIGHT),
                *([gain.animate.set_value(trace.sweep_gain_db[k - 1], keep=RIGHT)] if k > 1 else []),
                chart.animate(rate_func=linear).draw_curve(errors, k / last),
                run_time=0.8 if k < 4 else 0.65,
            )
            if k == 1:
                self.play(FadeIn(gain, cleaner), run_time=0.2)
            self.hold(0.35 if k < 4 else 0.25)
        self.hold(0.3)

    @loop
    def coarser_and_finer(self):
        """Let the grid grow coarser and finer again, and the errors with it."""
        trace = self.trace
        start = 2  # from 4 bits down to 2
        line = SnapLine(
            trace.w_row, trace.sweep_grid[start], span=self.span(trace.sweep_grid, 0.03), length=7.6, lane=0.5
        ).scale(1.4).move_to([-0.7, -0.35, 0]).snap(trace.sweep_hat[start])  # fmt: skip
        bits = Readout(lambda b: f"{b:d} bits", trace.sweep_bits[start], size=0.42, face="words", bold=True)
        bits.next_to(line, UP, buff=0.35).align_to(line, LEFT)
        code = Label("code", size=0.26, color=theme.MUTED)
        codes = [
            Readout(lambda q: f"{q:d}", trace.sweep_q[start][k], size=0.32, bold=True).move_to(
                [6.1, line.dot(k)[1], 0], aligned_edge=RIGHT
            )
            for k in range(len(trace.w_row))
        ]
        code.move_to([0, bits.get_y(), 0]).align_to(codes[0], RIGHT)
        marks = _legend(0.26).align_to(line, RIGHT).set_y(bits.get_y())
        self.add(line, bits, marks, code, *codes)
        self.hold(0.8)
        for k in (1, 0, 1, 2):
            self.play(
                line.animate.set_grid(trace.sweep_grid[k], trace.sweep_hat[k]),
                bits.animate.set_value(trace.sweep_bits[k]),
                *(one.animate.set_value(trace.sweep_q[k][j], keep=(1, 0)) for j, one in enumerate(codes)),
                run_time=0.9,
            )
            self.hold(0.5 if k else 0.9)

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("The largest value sets the step")
    def largest_value(self):
        """Smaller groups have finer steps, but every scale costs bits."""
        trace = self.trace
        table = trace.granularity
        looks: dict[str, Any] = {"cell": (0.2, 0.185), "number": None}
        weights = TensorGrid(trace.crop, **looks).move_to([-3.4, 1.85, 0])
        steps = TensorGrid(table.scale[0], map="MAXIMUM", limit=largest(table.scale), **looks).move_to([-3.4, -0.2, 0])
        errors = TensorGrid(table.abs_err[0], map="LOSS", limit=largest(table.abs_err), **looks)
        errors.move_to([-3.4, -2.15, 0])
        steps.hide()
        names = [
            _above(weights, "weights", theme.WEIGHT),
            _above(steps, "the step each one gets", theme.MAXIMUM),
            _above(errors, "the error each one pays", theme.LOSS),
        ]
        mse = Bars(
            table.mse, length=2.3, step=0.52, role="LOSS", number=".1e", names=table.name, number_size=0.18
        ).move_to([3.95, 1.4, 0]).hide()  # fmt: skip
        cost = Bars(
            table.bits_per_weight, length=2.3, step=0.52, role="WEIGHT", number=".2f", names=table.name,
            number_size=0.18,
        ).move_to([3.95, -1.2, 0]).hide()  # fmt: skip
        titles = [
            _above(mse, "mean squared error", theme.LOSS, buff=0.2),
            _above(cost, "bits a weight, with scales", theme.WEIGHT, buff=0.2),
        ]
        sentences = (
            "One grid for all: the largest weight sets everybody’s step.",
            "A grid for each row: only its own largest weight matters.",
            f"A grid for each {trace.config.group_size:d} neighbors: finer still. But every scale costs bits.",
        )
        self.say(sentences[0])
        self.play(FadeIn(weights, names[0]), run_time=theme.QUICK)
        self.add(steps)
        marks: list[Frame] = []
        brackets = [Frame(weights.width, weights.height, color=theme.TEXT, radius=0.03).move_to(weights)]
        self.play(FadeIn(*brackets, names[1]), run_time=0.3)
        for k in range(len(table.name)):
            if k:
                self.say(sentences[k])
                self.play(FadeOut(*marks), run_time=0.2)
                brackets = self.split(brackets, weights, k)
            marks = self.set_steps(weights, steps, k)
            if k == 0:
                self.play(FadeIn(errors, names[2], *titles, mse, cost), run_time=theme.QUICK)
            self.play(mse.animate.show(k), cost.animate.show(k), run_time=0.4)
            self.play(errors.animate.set_values(table.abs_err[k]), run_time=0.8)
        self.hold(0.7)

    def split(self, brackets: list[Frame], weights: TensorGrid, k: int) -> list[Frame]:
        """Let the brackets around weights that share a scale part into smaller ones."""
        size = (0, weights.columns, int(self.trace.config.group_size))[k]
        parts: list[Frame] = []
        for row in range(weights.rows):
            for first in range(0, weights.columns, size):
                middle = (weights.cell_center(row, first) + weights.cell_center(row, first + size - 1)) / 2
                wide, high = size * weights.cell[0], weights.cell[1]
                parts.append(Frame(wide, high, color=theme.TEXT, line=theme.HAIRLINE, radius=0.03).move_to(middle))
        before = [min(brackets, key=lambda one, part=part: _distance(one, part)) for part in parts]
        moving = [old.copy() for old in before]
        self.remove(*brackets)
        self.add(*moving)
        self.play(*(one.animate.become(part) for one, part in zip(moving, parts, strict=True)), run_time=0.6)
        return moving

    def set_steps(self, weights: TensorGrid, steps: TensorGrid, k: int) -> list[Frame]:
        """Let the weights that set a step fall to the map of steps, which takes them on; returns their marks."""
        table = self.trace.granularity
        chosen = np.argwhere(np.asarray(table.sets_scale[k])).tolist()
        width, height = weights.cell
        marks = [
            Frame(width, height, color=theme.MAXIMUM, line=theme.THICK, radius=0.03)
            .move_to(weights.cell_center(i, j))
            .set_z_index(2)
            for i, j in chosen
        ]
        self.play(FadeIn(*marks), run_time=0.3)
        falling = [
            TensorGrid(
                table.scale[k][i : i + 1, j : j + 1], cell=weights.cell, map="MAXIMUM", limit=steps.limit, number=None
            ).move_to(mark).set_z_index(2)
            for mark, (i, j) in zip(marks, chosen, strict=True)
        ]  # fmt: skip
        self.add(*falling)
        drops = [one.animate.move_to(steps.cell_center(i, j)) for one, (i, j) in zip(falling, chosen, strict=True)]
        self.play(LaggedStart(*drops, lag_ratio=min(0.1, 1 / len(drops))), run_time=0.7)
        taken = steps.animate.set_values(table.scale[k]) if k else steps.animate.show()
        self.play(*(one.animate.set_opacity(0) for one in falling), taken, run_time=0.4)
        self.remove(*falling)
        return marks

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("A grid shaped like the data")
    def shaped_grid(self):
        """NF4 puts its values where the weights are."""
        trace = self.trace
        width, rise, foot, x = 8.6, 1.95, 0.35, -1.95
        shape = Bars(
            trace.hist_counts, direction="up", length=rise, step=width / len(trace.hist_counts), thickness=0.9,
            role="WEIGHT", number=None,
        ).move_to([x, foot + rise / 2, 0]).hide()  # fmt: skip
        most, deep = largest(trace.int4_counts, trace.nf4_counts), 2.6
        comb = LevelCounts(
            trace.int4_code, trace.int4_counts, span=(-1, 1), length=width, height=deep, limit=most, rise=rise
        ).move_to([x, foot - deep / 2, 0]).hide_bars()  # fmt: skip
        above = Label("weights, divided by the largest of their block", color=theme.WEIGHT, bold=True)
        above.next_to(shape, UP, buff=0.42).align_to(shape, LEFT)
        middle = len(trace.int4_code) // 2
        axis = [
            Label(f"{trace.int4_code[k]:.0f}", size=theme.SMALL, face="numbers", color=theme.MUTED).move_to(
                [comb.tip(k)[0], shape.get_top()[1] + 0.17, 0]
            )
            for k in (0, middle, -1)
        ]
        below = Label("weights\non each level", color=theme.SCORE, bold=True)
        below.move_to([x - width / 2 - 0.1, foot - 1.9, 0], aligned_edge=LEFT)
        heading = Label("even grid", size=0.3, color=theme.SCORE, bold=True).move_to([3.1, 2.35, 0], aligned_edge=LEFT)
        kind = Label("levels at equal distances", color=theme.MUTED).next_to(heading, DOWN, buff=0.2)
        kind.align_to(heading, LEFT)
        used = Readout(lambda b: f"{b:.2f} bits", trace.int4_entropy_bits, size=0.3, bold=True)
        used.move_to([3.1, 0.92, 0], aligned_edge=LEFT)
        words = (
            Label("of information\nin a 4-bit code", color=theme.MUTED)
            .next_to(used, DOWN, buff=0.2)
            .align_to(used, LEFT)
        )
        title = Label("mean squared error", color=theme.LOSS, bold=True).move_to([3.1, -0.56, 0], aligned_edge=LEFT)
        looks: dict[str, Any] = {
            "limit": max(float(trace.int4_mse), float(trace.nf4_mse)), "length": 2.0, "step": 0.44, "role": "LOSS",
            "number": ".1e", "number_size": 0.18,
        }  # fmt: skip
        bars, rows = [], []
        for k, (name, value) in enumerate((("even", trace.int4_mse), ("NF4", trace.nf4_mse))):
            y = -1.0 - 0.85 * k
            rows.append(Label(name, color=theme.MUTED).move_to([3.1, y, 0], aligned_edge=LEFT))
            bars.append(Bars(value.reshape(1), **looks).move_to([3.1, y - 0.4, 0], aligned_edge=LEFT).hide())
        self.say("Most weights lie near zero, few in the tails.")
        self.play(FadeIn(above, *axis), run_time=0.3)
        self.add(shape)
        self.play(shape.animate.show(), run_time=1.2)
        self.say("An even grid spends its levels on empty tails.")
        self.play(FadeIn(comb, heading, kind, below), run_time=0.6)
        self.play(comb.animate.show_bars(), run_time=1.2)
        self.add(bars[0])
        self.play(FadeIn(used, words, title, rows[0]), bars[0].animate.show(), run_time=0.7)
        self.finish_beat()
        self.play(FadeOut(used, words, heading, kind), run_time=0.3)
        heading.set_text("NF4")
        kind.set_text("4-bit normal float,\none level more", keep=LEFT + UP)
        self.say("NF4 puts its levels where the weights are.")
        self.add(heading.set_opacity(1), kind.set_opacity(1))
        self.play(comb.animate.set_levels(trace.nf4_code, trace.nf4_counts), run_time=2.2)
        self.say("Every code is used more evenly, and the error falls.")
        self.add(bars[1])
        used.set_value(trace.nf4_entropy_bits)
        self.play(FadeIn(rows[1], used, words), bars[1].animate.show(), run_time=0.8)
        self.hold(0.6)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("One loud channel")
    def loud_channel(self):
        """Outliers steal the range: give them a lane of their own."""
        trace = self.trace
        dim = int(trace.outlier_dim)
        is_moved = dim in np.asarray(trace.outlier_dims).tolist()
        written = "+.1f" if largest(trace.x_out) < 100 else "+.0f"
        x = TensorGrid(
            trace.x_quiet, cell=(0.7, 0.4), number=written, limit=largest(trace.x_quiet), role="INPUT"
        ).move_to([-3.06, 1.35, 0])  # fmt: skip
        names = RowNames(trace.sentence, x)
        what = Label("what a layer reads: first channels of each word", color=theme.INPUT, bold=True)
        what.next_to(x, UP, buff=0.22).align_to(x, LEFT)
        self.say("Large models grow loud channels. Here is none yet.")
        self.play(FadeIn(x, names, what), run_time=theme.QUICK)
        self.say(f"So make one {trace.config.outlier_scale:g} times louder, its weights as much weaker.")
        mark = Frame(0.74, 2.44, color=theme.TEXT).move_to(x.column_center(dim))
        self.play(FadeIn(mark), run_time=0.3)
        self.play(x.animate.set_values(trace.x_out), run_time=1.2)
        same = Label(
            f"same function: logits differ by at most {trace.outlier_max_abs_diff_logits:.0e}", color=theme.MUTED
        )
        same.next_to(x, DOWN, buff=0.25).align_to(x, LEFT)
        self.play(FadeIn(same), run_time=0.3)
        self.say("In eight bits, the loud value takes the whole range.")
        codes = TensorGrid(
            trace.x_out_int8_naive, cell=(0.65, 0.4), number="d", limit=largest(trace.x_out_int8_naive)
        ).move_to([3.6, 1.35, 0])  # fmt: skip
        integers = Label("the same as integers", bold=True).next_to(codes, UP, buff=0.22).align_to(codes, LEFT)
        shared = Label("one scale a row, for all of its channels", color=theme.MUTED)
        shared.next_to(codes, DOWN, buff=0.25).align_to(codes, LEFT)
        moving = x.copy().recede().hide_numbers().set_z_index(-1)  # in full color, what slides by would flicker
        self.add(moving)
        self.play(moving.animate.move_to(codes), FadeIn(integers), run_time=1.1)
        self.play(FadeIn(codes, shared), FadeOut(moving), run_time=0.4)
        self.hold(0.4)
        if is_moved:
            self.two_lanes(x, codes, mark, same, dim)
        else:
            self.say("Here no channel is loud enough to be moved.")
        self.finish_beat()
        self.clear_stage()
        self.louder()

    def two_lanes(self, x: TensorGrid, codes: TensorGrid, mark: Frame, same: Label, dim: int) -> None:
        """Lift the loud channel out: it is multiplied as floats, the rest as integers of full range, and both add."""
        trace = self.trace
        lane = int(np.flatnonzero(np.asarray(trace.outlier_dims) == dim)[0])
        column = TensorGrid(trace.x_lane[:, lane : lane + 1], cell=x.cell, number=x.number, limit=x.limit, role="SCORE")
        column.move_to(x.column_center(dim))
        limit = largest(trace.y_split)
        y_cell = (0.42, 0.27)
        floats, whole, total = (
            TensorGrid(values, cell=y_cell, number=None, limit=limit).move_to([place, -1.75, 0])
            for values, place in ((trace.y_lane, -3.35), (trace.y_int8, 0.9), (trace.y_split, 4.9))
        )
        signs = [
            Label(sign, size=0.36, color=theme.MUTED).move_to([place, -1.75, 0])
            for sign, place in (("+", -1.2), ("=", 2.9))
        ]
        titles = [
            Label(words, color=color, bold=True).next_to(grid, UP, buff=0.16)
            for words, color, grid in (
                ("float lane", theme.SCORE, floats), ("integer lane", theme.TEXT, whole),
                ("output", theme.OUTPUT, total),
            )
        ]  # fmt: skip
        self.say("Lift it out, and the rest gets its range back.")
        title = Label("floats", color=theme.SCORE, bold=True).move_to([-5.35, -0.62, 0], aligned_edge=LEFT)
        self.remove(mark)
        self.add(column)
        self.play(FadeOut(same), x.animate.hide(columns=[dim]), run_time=0.3)
        self.play(column.animate.move_to([-5.9, -1.65, 0]), FadeIn(title), run_time=1.0)
        self.play(codes.animate.set_values(trace.x_out_int8_split), run_time=1.2)
        self.hold(0.5)
        self.say("Multiply each lane by its weights, and add.")
        ints = codes.copy()
        self.add(ints)
        self.play(
            column.animate.move_to(floats).set_opacity(0), ints.animate.scale(0.4).move_to(whole).set_opacity(0),
            FadeIn(floats, whole, titles[0], titles[1]), FadeOut(title), run_time=1.0,
        )  # fmt: skip
        self.remove(column, ints)
        self.play(FadeIn(*signs), run_time=0.3)
        self.play(FadeIn(total, titles[2]), run_time=0.5)
        self.hold(1.2)

    def louder(self) -> None:
        """Compare the errors of both ways, the louder the channel."""
        trace = self.trace
        limit = largest(trace.y_err_naive, trace.y_err_split)
        maps, names = [], []
        for words, values, role, y in (
            ("one lane: output error", trace.y_err_naive, "LOSS", 1.55),
            ("two lanes: output error", trace.y_err_split, "KEY", -1.35),
        ):
            grid = TensorGrid(values, cell=(0.5, 0.3), number=None, limit=limit, role=role).move_to([-4.2, y, 0])
            maps.append(grid)
            names.append(Label(words, color=getattr(theme, role), bold=True).next_to(grid, UP, buff=0.2))
        top = 1.1 * largest(trace.y_rmse_naive)
        chart = Chart(
            5.2, 3.7, x=(0.9, 115), y=(0, top), x_ticks=(1, 2, 5, 10, 20, 50, 100), x_format="d",
            y_ticks=(0, 0.1, 0.2, 0.3), y_format=".1f", x_label="how much louder the channel is, log scale", log_x=True,
            y_label="output error, root mean square",
        ).move_to([2.9, 0.3, 0])  # fmt: skip
        one = chart.curve(trace.outlier_scales, trace.y_rmse_naive, role="LOSS", dots=0.09, drawn=0)
        two = chart.curve(trace.outlier_scales, trace.y_rmse_split, role="KEY", dots=0.09, drawn=0)
        self.say("One lane errs more, the louder it gets. Two do not.")
        self.play(FadeIn(*maps, *names, chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(one).draw_curve(two), run_time=1.7)
        labels = [
            Label("one lane", color=theme.LOSS, bold=True).next_to(chart.point(one, 5), UP + LEFT, buff=0.12),
            Label("two lanes", color=theme.KEY, bold=True).next_to(chart.point(two, 5), UP, buff=0.15),
        ]
        loss = Label(
            f"loss of this small model: {trace.loss_int8_naive:.4f} and {trace.loss_int8_split:.4f}",
            color=theme.MUTED,
        ).move_to([3.2, -2.65, 0])  # fmt: skip
        self.play(FadeIn(*labels, loss), run_time=0.3)
        self.hold(0.6)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Make the errors cancel")
    def cancel(self):
        """Round one column, and let the others absorb its error."""
        trace = self.trace
        last = len(trace.gptq_W) - 1
        wide, x = 0.66, -3.25
        bright = 0.6 * largest(trace.gptq_shift)  # the few cells beyond it have the full color
        weights = TensorGrid(trace.gptq_W, cell=(wide, 0.26), number=None).move_to([x, 1.7, 0])
        codes = TensorGrid(trace.gptq_codes, cell=(wide, 0.26), number="d").move_to(weights).hide()
        flow = TensorGrid(trace.gptq_flow[0], cell=(wide, 0.34), number="+.1f", limit=1.0).move_to([x, -0.1, 0]).hide()
        shift = TensorGrid(trace.gptq_shift[0], cell=(wide, 0.26), number=None, limit=bright).move_to([x, -1.75, 0])
        shift.hide()
        room = Frame.around(shift, pad=0.04, color=theme.LINES, line=theme.HAIRLINE)
        names = [
            _above(weights, f"a corner of the weights of {trace.matrix}", theme.WEIGHT),
            _above(flow, "share for each column, from the inputs’ correlations", theme.SCORE),
            _above(shift, "how far the weights have moved", theme.LOSS),
        ]
        top = largest(trace.rtn_err_after_column, trace.gptq_err_after_column)
        looks: dict[str, Any] = {
            "direction": "up", "limit": top, "length": 2.8, "step": 0.62, "thickness": 0.74, "number": None,
        }  # fmt: skip
        ground = [3.75, 0.95, 0]
        plain = Bars(trace.rtn_err_after_column, role="FROZEN", outline=True, **looks).move_to(ground)
        ours = Bars(trace.gptq_err_after_column, role="KEY", **looks).move_to(ground).hide()
        base = Stroke(ours.get_corner([-1, -1, 0]), ours.get_corner([1, -1, 0]), color=theme.MUTED, line=theme.HAIRLINE)
        title = Label("squared output error, total so far", bold=True).next_to(ours, UP, buff=0.25)
        title.align_to(ours, LEFT)
        alone = Label("rounding alone", color=theme.FROZEN, bold=True)
        alone.move_to(plain.get_corner([-1, 1, 0]) + 0.35 * DOWN, aligned_edge=LEFT)
        gptq = Label("GPTQ", color=theme.KEY, bold=True).next_to(alone, DOWN, buff=0.2).align_to(alone, LEFT)
        apart = np.asarray(trace.gptq_H) * (1 - np.eye(len(trace.gptq_H)))
        together = TensorGrid(trace.gptq_H, cell=(0.62, 0.2), number=None, limit=float(np.abs(apart).max()))
        together.move_to([3.75, -2.05, 0])
        names.append(_above(together, "which inputs move together", theme.INPUT))
        self.play(FadeIn(weights, names[0], base, title), run_time=theme.QUICK)
        self.say("Rounding alone: the output errors pile up.")
        plain.hide()
        self.add(plain)
        self.play(plain.animate.show(), FadeIn(alone), run_time=0.9)
        self.say("Inputs move together: a neighbor can undo an error.")
        self.play(FadeIn(together, names[3]), run_time=theme.QUICK)
        self.say("GPTQ rounds one column …")
        self.add(codes, shift, ours)
        self.play(FadeIn(room, names[2], gptq), run_time=0.3)
        cursor = Frame(wide + 0.04, 8 * 0.26 + 0.06, color=theme.TEXT).move_to(weights.column_center(0)).set_z_index(3)
        self.play(FadeIn(cursor), run_time=0.2)
        for k in range(last + 1):
            if k == last:
                self.play(FadeOut(flow, names[1]), run_time=0.2)
            error = self.round_column(k, cursor, weights, codes, shift)
            if k == 0:
                self.say("… and shares its error out to the columns still free.")
                seed = together.copy().set_z_index(2)
                self.add(flow, seed)
                shares = flow.animate.show(columns=list(range(1, last + 1)))
                self.play(seed.animate.scale(0.3).move_to(flow).set_opacity(0), FadeIn(names[1]), shares, run_time=0.9)
                self.remove(seed)
            elif k < last:
                flow.set_values(trace.gptq_flow[k]).hide(columns=[k])
            self.share_out(k, error, weights, shift, ours)
            if k == 0:
                self.say("What is rounded stays. The rest makes up for it.")
            elif k == 3:
                lower = np.asarray(trace.gptq_err_after_column) <= np.asarray(trace.rtn_err_after_column)
                less = "the output errs less" if lower.all() else "it repays what it can"
                self.say(f"Column after column, {less}.")
        self.play(FadeOut(cursor, together, names[3]), run_time=0.3)
        self.totals(ours)

    def round_column(
        self, k: int, cursor: Frame, weights: TensorGrid, codes: TensorGrid, shift: TensorGrid
    ) -> TensorGrid:
        """Round column k; its error falls to the map of how far the weights have moved. Returns the error."""
        pace = _pace(k)
        if k:
            self.play(cursor.animate.move_to(weights.column_center(k)), run_time=0.45 * pace)
        error = self.nudge(k, k, shift).move_to(weights.column_center(k))
        self.play(codes.animate.show(columns=[k]), run_time=0.6 * pace)
        self.play(FadeIn(error), run_time=0.3 * pace)
        self.play(error.animate.move_to(shift.column_center(k)), run_time=0.9 * pace)
        return error

    def nudge(self, k: int, column: int, shift: TensorGrid) -> TensorGrid:
        """Return what the rounding of column k changed in one column, where it lies on the map."""
        values = self.trace.gptq_nudges[k][:, column : column + 1]
        part = TensorGrid(values, cell=shift.cell, number=None, limit=shift.limit, role="LOSS")
        return part.move_to(shift.column_center(column)).set_z_index(2)

    def share_out(self, k: int, error: TensorGrid, weights: TensorGrid, shift: TensorGrid, ours: Bars) -> None:
        """Let the error of column k slide to the columns that are still free, and shrink to the share of each."""
        trace, pace = self.trace, _pace(k)
        copies = [self.nudge(k, k, shift) for _ in range(k + 1, weights.columns)]
        self.add(*copies)
        slides = [
            copy.animate.move_to(shift.column_center(j)).set_values(trace.gptq_nudges[k][:, j : j + 1])
            for j, copy in enumerate(copies, start=k + 1)
        ]
        if slides:
            self.play(LaggedStart(*slides, lag_ratio=0.35 if k == 0 else 0.1), run_time=2.4 * pace)
        self.play(
            FadeOut(error, *copies),
            shift.animate.set_values(trace.gptq_shift[k]).show(),
            weights.animate.set_values(trace.gptq_W_steps[k]),
            ours.animate.show(k),
            run_time=0.9 * pace,
        )

    def totals(self, ours: Bars) -> None:
        """Weigh how far the weights moved against what the output lost."""
        trace = self.trace
        left, foot = ours.get_left()[0], ours.get_bottom()[1]
        written = ".1f" if float(trace.rtn_err) > 1 else ".4f"
        rows = (
            ("weight error", f"{trace.rtn_weight_mse:.1e}", f"{trace.gptq_weight_mse:.1e}"),
            ("output error", f"{trace.rtn_err:{written}}", f"{trace.gptq_err:{written}}"),
        )
        lines = [
            Label(words, face="words" if column == 0 else "numbers", color=color).move_to(
                [left + place, foot - 0.45 - 0.42 * row, 0], aligned_edge=LEFT
            )
            for row, texts in enumerate(rows)
            for column, (words, color, place) in enumerate(
                zip(texts, (theme.TEXT, theme.FROZEN, theme.KEY), (0, 1.85, 3.75), strict=True)
            )
        ]
        lines.append(
            Label(
                f"GPTQ wins in {trace.layers_improved:d} of {trace.num_matrices:d} matrices",
                color=theme.MUTED,
            ).move_to([left, foot - 1.4, 0], aligned_edge=LEFT)
        )
        no_less = float(trace.gptq_weight_mse) >= float(trace.rtn_weight_mse)
        if float(trace.gptq_err) >= float(trace.rtn_err):
            self.say("In this corner, GPTQ gains nothing.")
        else:
            self.say(f"{'The weights err no less, but t' if no_less else 'T'}heir errors partly cancel.")
        self.play(FadeIn(*lines), run_time=theme.QUICK)
        self.hold(0.5)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("The price in loss")
    def price(self):
        """It breaks where the curve lifts."""
        trace = self.trace
        methods = trace.methods
        high = 1.1 * max(largest(methods.loss), 1.0)
        most = max(10, int(np.ceil(largest(methods.bits_per_weight))))
        low = 0.85 * float(trace.entropy_floor)
        chart = Chart(
            7.4, 2.7, x=(2, most + 0.2), y=(low, high), x_ticks=range(2, most + 1), x_format="d", log_y=True,
            y_ticks=[y for y in (0.4, 0.6, 1, 2, 4, 6) if low < y < high], y_format="g",
            x_label="bits a weight, with scales", y_label="loss on unseen texts, nats a word, log scale",
        ).move_to([-2.2, 1.2, 0])  # fmt: skip
        chart.level(trace.loss_fp32, label="all floats")
        curves = [
            chart.curve(methods.bits_per_weight[k], methods.loss[k], role=role, dots=0.08, drawn=0)
            for k, role in enumerate(METHOD_ROLES)
        ]
        keys = [
            Label(f"{methods.name[k]}", color=getattr(theme, role), bold=True).move_to(
                [2.1, 2.3 - 0.42 * k, 0], aligned_edge=LEFT
            )
            for k, role in enumerate(METHOD_ROLES)
        ]
        self.say("The whole model, with ever fewer bits.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        for curve, key in zip(curves, keys, strict=True):
            self.play(FadeIn(key), chart.animate(rate_func=linear).draw_curve(curve), run_time=0.8)
        self.say(self.verdict())
        self.finish_beat()
        self.say(f"At {trace.bits_axis[2]:d} bits: {self.likeness(2)}. At {trace.bits_axis[0]:d}: {self.likeness(3)}.")
        prompt = Label(f"{trace.prompt} …", color=theme.MUTED).move_to([-5.3, -1.2, 0], aligned_edge=LEFT)
        writer = Label(f"models of the curve “{methods.name[0]}”", color=theme.WEIGHT).next_to(prompt, RIGHT, buff=0.6)
        writer.align_to(prompt, DOWN)
        self.play(FadeIn(prompt, writer), run_time=0.3)
        self.writing(chart, 0, -1.62, None)
        self.writing(chart, 2, -2.09, [-0.65, 1.15, 0])
        self.writing(chart, 3, -2.56, [0.35, 0, 0])
        self.hold(0.6)

    def verdict(self) -> str:
        """Return what the scales of groups bring this small model."""
        trace, methods = self.trace, self.trace.methods
        rows, groups = (np.asarray(methods.loss[k]) for k in (0, 1))
        cost, paid = (np.asarray(methods.bits_per_weight[k]) for k in (0, 1))
        loses = all(groups[k] > rows[cost <= paid[k]].min() for k in (0, 1))  # where there is something to lose
        if not loses:
            return "Counted fairly: finer grids must pay for their scales."
        size, few, with_scales = trace.config.group_size, trace.bits_axis[0], methods.bits_per_weight[1, 0]
        return f"Here groups of {size:d} lose: with their scales, {few:d} bits become {with_scales:.3g}."

    def shown_words(self, k: int) -> tuple[Any, ...]:
        """Return the words of sample k that have room."""
        start, end = (int(self.trace.sample_bounds[k + step]) for step in (0, 1))
        return self.trace.sample_words[start : min(start + 11, end)]

    def misses(self, k: int) -> list[bool]:
        """Return which shown words of sample k are not those that the model writes in floats."""
        return [word != meant for word, meant in zip(self.shown_words(k), self.shown_words(0), strict=False)]

    def likeness(self, k: int) -> str:
        """Return how much of the text of the float model is left in the shown words of sample k."""
        wrong, words = self.misses(k), self.shown_words(k)
        if not any(wrong):
            return "the same text"
        if sum(wrong) <= len(wrong) // 4:
            return "almost the same text"
        return "noise" if len(set(words)) < len(words) / 2 else "another text"

    def writing(self, chart: Chart, k: int, y: float, side: Any) -> None:
        """Write the words of sample k; its name comes from its point on the curve of plain rounding, if it has one."""
        trace = self.trace
        place = Label(f"{trace.sample_names[k]}", color=theme.TEXT, bold=True).move_to([-6.55, y, 0], aligned_edge=LEFT)
        name = place.copy()
        if side is not None:
            bits = quantization.SAMPLES[k - 1]
            point = chart.point(0, np.asarray(trace.bits_axis).tolist().index(bits))
            name.next_to(point + np.asarray(side), RIGHT if side[1] == 0 else UP, buff=0)
            leader = Stroke(point, point + np.asarray(side), color=theme.MUTED, line=theme.HAIRLINE)
            self.play(FadeIn(name.copy(), leader), run_time=0.3)
            self.add(name)
        roles = ["LOSS" if miss else "TEXT" for miss in self.misses(k)]
        words = TokenRow(self.shown_words(k), height=0.42, roles=roles).move_to([-5.45, y, 0], aligned_edge=LEFT).hide()
        self.add(words)
        self.play(FadeIn(place) if side is None else name.animate.move_to(place), run_time=0.5)
        self.play(RowByRow(words), run_time=0.6)


def _legend(size: float = theme.LABEL) -> Group:
    """Return what the marks in a lane are: the weight as it is, the level it is rounded to, the error between."""
    tick = Stroke([0, -0.5 * size, 0], [0, 0.5 * size, 0], color=theme.LOSS)
    true = Label("true weight", size=size, color=theme.MUTED)
    error = Label("error", size=size, color=theme.LOSS, bold=True)
    rounded = Label("● rounded", size=size, color=theme.WEIGHT, bold=True)
    true.next_to(tick, RIGHT, buff=0.5 * size)
    error.next_to(true, RIGHT, buff=1.6 * size)
    rounded.next_to(error, RIGHT, buff=1.6 * size)
    return Group(tick, true, error, rounded)


def _pace(k: int) -> float:
    """Return how slowly column k is rounded: the first ones are to be watched."""
    return (0.75, 0.3)[k] if k < 2 else 0.17


def _above(thing: Picture, words: str, color: str, *, buff: float = 0.15) -> Label:
    return Label(words, color=color, bold=True).next_to(thing, UP, buff=buff).align_to(thing, LEFT)


def _power(value: float) -> str:
    """Return a power of ten, written as such."""
    return format_number(value, ".0e").split("× ")[1]


def _distance(one: Frame, other: Frame) -> float:
    return float(np.linalg.norm(one.get_center() - other.get_center()))
