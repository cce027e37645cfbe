"""Draws internals_math.lora.Trace."""

from typing import Any

import numpy as np
from manim import (
    DOWN,
    LEFT,
    RIGHT,
    UP,
    Animation,
    FadeIn,
    FadeOut,
    Group,
    LaggedStart,
    linear,
)

from internals_math import lora
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart, round_ticks
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout, counted
from scenes.kit.legend import sign_key
from scenes.kit.motion import ColumnByColumn, RowByRow
from scenes.kit.point_cloud import PointCloud
from scenes.kit.shapes import arrow
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.lora_stage import ProductStage


class LoRA(TopicScene):
    """Why are two thin matrices enough to fine-tune a model?"""

    core = lora
    notation = ("GPT-3", "FP16")
    takeaway = "Freeze the weights, and learn their change as a few columns times a few rows."
    loop_alt = (
        "A tall and a wide thin matrix multiply to paint a full grid, which is added to a frozen weight matrix and "
        "then lifted off again."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("The update")
    def the_update(self):
        """Fine-tuning adds a small matrix to a big one."""
        trace = self.trace
        before = self.square(trace.weight, cell=0.14, role="FROZEN").move_to([-3.3, 0.3, 0])
        after = self.square(trace.full_weight, cell=0.14, limit=before.limit).move_to([3.3, 0.3, 0])
        matrix, tuned, change, old = (
            Label(words, color=color, bold=True).next_to(grid, UP, buff=0.2)
            for words, color, grid in (
                (f"{trace.matrix}", theme.FROZEN, before), ("after fine-tuning", theme.TEXT, after),
                ("the change", theme.WEIGHT, after), ("old weights", theme.FROZEN, before),
            )
        )  # fmt: skip
        scale, same = (self.scale(trace.largest_weight, grid, "FROZEN") for grid in (before, after))
        own = self.scale(trace.largest_change, after, "WEIGHT")
        self.say("One matrix of a tiny model, before and after it learned a farm dialect.")
        self.play(FadeIn(before, matrix, scale, sign_key().move_to([0, -2.35, 0])), run_time=theme.QUICK)
        moving = before.copy()
        self.add(moving)
        self.play(moving.animate.move_to(after).set_opacity(0), FadeIn(after, tuned, same), run_time=1.1)
        self.remove(moving)
        self.hold(0.5)
        self.say("Lay one over the other, and subtract.")
        self.play(FadeOut(matrix, scale, tuned), run_time=0.3)
        self.play(before.animate.move_to(after), run_time=1.2)
        self.remove(before)
        self.play(after.animate.set_values(trace.full_delta), FadeIn(change), run_time=1.0)
        self.say("Almost nothing is left. On a color scale of its own, it glows.")
        self.hold(0.5)
        glowing = self.square(trace.full_delta, cell=0.14, role="WEIGHT").move_to(after)
        self.play(FadeOut(same), run_time=0.3)
        self.play(after.animate.become(glowing), FadeIn(own), run_time=1.3)
        self.say("Fine-tuning adds a small matrix to a big one.")
        plus = Label("+", size=0.4, color=theme.MUTED).move_to([0, 0.3, 0])
        before.move_to([-3.3, 0.3, 0])
        self.play(FadeIn(before, old, scale, plus), run_time=theme.QUICK)

    def square(self, values: Any, *, cell: float, limit: float | None = None, role: str | None = None) -> TensorGrid:
        """Return a matrix as colors alone."""
        return TensorGrid(values, cell=(cell, cell), number=None, limit=limit, role=role)

    def scale(self, value: Any, grid: TensorGrid, role: str) -> Group:
        """Return what the full colors of a matrix stand for, as a number and as a length below it."""
        full = float(self.trace.largest_weight)
        bar = Bars(value.reshape(1), limit=full, length=grid.width, step=0.2, role=role, number=None)
        label = self.full_color(value, grid)
        return Group(label, bar.next_to(label, DOWN, buff=0.1).align_to(grid, LEFT))

    def full_color(self, value: Any, grid: TensorGrid) -> Label:
        """Return what the full colors of a matrix stand for."""
        return Label(f"full color: ±{value:.2f}", color=theme.MUTED).next_to(grid, DOWN, buff=0.2)

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("How many directions?")
    def how_many_directions(self):
        """Some directions of the change matter far more than others."""
        trace = self.trace
        change = self.square(trace.full_delta, cell=0.122, role="WEIGHT").move_to([-4.5, 0.1, 0])
        scale = self.full_color(trace.largest_change, change)
        name, left = (
            Label(words, color=color, bold=True).next_to(change, UP, buff=0.25)
            for words, color in (("the change", theme.WEIGHT), ("what is left of it", theme.MUTED))
        )
        count, step, height = len(trace.full_singular_values), 0.24, 2.35
        bars = Bars(
            trace.full_singular_values, direction="up", length=height, step=step, thickness=0.72, role="WEIGHT",
            number=None,
        ).move_to([2.6, -1.15, 0]).hide()  # fmt: skip
        row = Label("its strongest sheets: a column times a row each", color=theme.MUTED)
        row.move_to([bars.get_left()[0], 2.7, 0]).align_to(bars, LEFT)
        strength = Label("strength of each sheet; its square is its energy", color=theme.MUTED)
        strength.next_to(bars, DOWN, buff=0.2)
        ground = Chart(count * step, height, x=(0.5, count + 0.5), y=(0, float(bars.limit))).move_to(bars)
        noise = ground.curve(
            trace.directions, trace.random_singular_values, role="TEXT", dash=(0.1, 0.07), line=theme.LINE, drawn=0
        )
        sheets = [self.square(sheet, cell=0.122, limit=change.limit) for sheet in trace.full_terms]
        slots = [np.array([bars.get_left()[0] + 0.88 + 1.97 * k, 1.45, 0]) for k in range(len(sheets))]

        self.say("Take off its strongest sheet: one pattern down, one pattern across.")
        self.play(FadeIn(change, name, scale), run_time=theme.QUICK)
        self.add(ground, bars)
        self.play(FadeIn(ground, strength, row), run_time=0.3)
        self.remove(name)
        self.add(left)
        self.lift_sheet(change, bars, sheets, slots, 0, run_time=1.4)
        self.hold(0.3)
        self.say("Then the next. Every sheet reads one direction and writes one.")
        for k in range(1, len(sheets)):
            self.lift_sheet(change, bars, sheets, slots, k, run_time=0.85)
        last = len(sheets) - 1
        bars.paint(slice(len(sheets), None), "FROZEN")
        self.say(
            f"The first four hold {trace.captured_energy[last]:.0%} of the energy; "
            f"of equal noise, {trace.random_captured_energy[last]:.0%}."
        )
        self.play(bars.animate.show(), run_time=0.8)
        words = Label("noise of the same size", bold=True).next_to(ground.point(noise, 4), UP + RIGHT, buff=0.12)
        self.play(ground.animate(rate_func=linear).draw_curve(noise), run_time=1.1)
        self.play(FadeIn(words), run_time=0.3)
        self.say("A few directions stand out, but the tail is long.")

    def lift_sheet(self, change, bars, sheets, slots, k: int, *, run_time: float) -> None:
        """Lift one sheet off the change: it flies to its place in the row, its bar grows, and the rest stays."""
        sheet = sheets[k].move_to(change)
        self.add(sheet)
        self.play(
            sheet.animate.scale(0.45).move_to(slots[k]),
            change.animate.set_values(self.trace.full_residuals[k]),
            bars.animate.show(k),
            run_time=run_time,
        )

    # -- chapter 3 and the loop -------------------------------------------------------------------------------------

    @chapter("Two thin matrices")
    def two_thin_matrices(self):
        """A column times a row fills the whole grid."""
        trace = self.trace
        stage = self.product_stage(cell=0.138, center=[-1.6, -0.4, 0])
        slow = 3
        columns = stage.product.columns
        law = Formula("Delta W = s thin {{ B : tall }} {{ A : wide }}", size=0.34, tall="WEIGHT", wide="WEIGHT")
        law.move_to([0, 2.3, 0]).align_to([2.6, 0, 0], LEFT)
        scale = Label(f"fixed scale s = α/rank = {trace.scaling:.3g}", color=theme.MUTED)
        scale.next_to(law, DOWN, buff=0.25).align_to(law, LEFT)
        columns_of_b, rows_of_a = (counted(trace.config.r, one) for one in ("column", "row"))
        rank_label = Label(f"rank {trace.config.r:d}: {columns_of_b}, {rows_of_a}", color=theme.MUTED)
        rank_label.next_to(scale, DOWN, buff=0.2).align_to(law, LEFT)
        learned = Label(f"{trace.adapter_numbers:d}", size=theme.BIG_NUMBER, bold=True, color=theme.WEIGHT)
        changed = Label(f"{trace.matrix_numbers:,d}", size=theme.BIG_NUMBER, bold=True)
        words = [Label(text, color=theme.MUTED) for text in ("numbers to learn", "weights that change")]
        for number, text, y in ((learned, words[0], 0.3), (changed, words[1], -1.2)):
            number.move_to([0, y, 0]).align_to(law, LEFT)
            text.next_to(number, DOWN, buff=0.2).align_to(law, LEFT)

        self.say("LoRA freezes the old weights, and trains two thin matrices instead.")
        self.play(FadeIn(*stage.margins()), run_time=theme.QUICK)
        self.play(FadeIn(law, scale, rank_label, learned, words[0]), run_time=theme.QUICK)
        self.say("A column of B, times one number of A, is one column of the change.")
        stage.lift(self, 0, run_time=0.5)
        for column in range(slow):
            factor = Label(f"× {trace.lora_A[0, column]:+.2f} × s", size=0.22, bold=True, face="numbers")
            stage.fetch(self, column, run_time=0.45)
            stage.multiply(self, column, factor, run_time=0.75)
        self.say("A column times a row fills the whole grid.")
        stage.fetch(self, slow, run_time=0.4)
        stage.sweep(self, 0, range(slow, columns), run_time=2.3)
        stage.lay_down(self, 0)
        self.hold(0.3)
        rank = len(trace.partial_deltas)
        if rank > 1:
            self.say("The next column, times the next row, is added on top.")
            stage.paint(self, 1, run_time=2.9 if rank == 2 else 1.5)
        for k in range(2, rank):
            stage.paint(self, k, run_time=min(0.7, 1.4 / (rank - 2)))
        self.say("Every weight changes, but only along a few directions.")
        self.play(FadeIn(changed, words[1]), run_time=theme.QUICK)

    def product_stage(self, *, cell: float, center: Any) -> ProductStage:
        """Return the trained adapter, its product not yet painted."""
        trace = self.trace
        return ProductStage(trace.lora_A, trace.lora_B, trace.partial_deltas, cell=cell, center=center)

    @loop
    def paint_and_merge(self):
        """Paint the change, drop it on the frozen weights, and lift it off again."""
        trace = self.trace
        pixel = 1 / 45  # of a GIF: cells of whole pixels have no blurred edges, which would not fit into 600 kB
        frozen = self.square(trace.weight, cell=7 * pixel, role="FROZEN").move_to([-179.5 * pixel, -10.5 * pixel, 0])
        names = self.weight_names(frozen, size=0.26)
        stage = self.product_stage(cell=7 * pixel, center=[166.5 * pixel, -10.5 * pixel, 0])
        change = Label("their product: the change", color=theme.WEIGHT, bold=True, size=0.26)
        change.next_to(stage.room, DOWN, buff=0.2)
        plus = Label("+", size=0.4, color=theme.MUTED)
        plus.move_to([-18 * pixel, -10.5 * pixel, 0])  # between the frozen weights and B
        self.add(frozen, names[0])
        self.hold(0.4)
        self.play(FadeIn(*stage.margins(), change, plus), run_time=0.3)
        rank = len(trace.partial_deltas)
        for k in range(rank):
            stage.paint(self, k, run_time=min(1.4, 2.8 / rank), alone=False)  # so that few tints are enough
        self.hold(0.2)
        self.merge(frozen, names, stage, trace.merged_weight, FadeOut(*stage.names, change, plus), run_time=0.4)
        self.hold(1.0)
        self.unmerge(frozen, names, stage, run_time=0.4)
        self.play(ColumnByColumn(stage.product, vanish=True), run_time=0.5)
        self.hold(0.2)

    def weight_names(self, frozen: TensorGrid, **style: Any) -> list[Label]:
        """Return what stands over the frozen weights before, during and after a merge, and while it is taken back."""
        names = (
            ("frozen weights", theme.FROZEN), ("frozen weights + change", theme.WEIGHT),
            ("merged weights", theme.WEIGHT), ("merged weights − change", theme.FROZEN),
        )  # fmt: skip
        return [Label(words, color=color, bold=True, **style).next_to(frozen, UP, buff=0.3) for words, color in names]

    def rename(self, names: list[Label], now: int) -> None:
        """Let one of the names stand there, and no other."""
        self.remove(*names)
        self.add(names[now])

    def merge(
        self, frozen: TensorGrid, names: list[Label], stage: ProductStage, merged: Any, *others: Animation,
        run_time: float,
    ) -> None:  # fmt: skip
        """Drop the product on the frozen weights; nothing of the thin matrices is left, and the sum comes to light."""
        falling = stage.product.copy().set_z_index(1)
        self.remove(stage.product)
        self.add(falling)
        self.rename(names, 1)
        over = falling.animate.match_height(frozen).move_to(frozen)
        self.play(over, FadeOut(*stage.pair), *others, run_time=run_time)
        frozen.set_values(merged)
        self.play(ColumnByColumn(falling, vanish=True), run_time=run_time)
        self.remove(falling)
        self.rename(names, 2)

    def unmerge(
        self, frozen: TensorGrid, names: list[Label], stage: ProductStage, *others: Animation, run_time: float
    ) -> None:
        """Lift the product off again: what stays is what was there."""
        lifted = stage.product.copy().match_height(frozen).move_to(frozen).hide().set_z_index(1)
        self.rename(names, 3)
        self.play(ColumnByColumn(lifted), run_time=run_time)
        frozen.set_values(self.trace.weight)
        back = lifted.animate.match_height(stage.product).move_to(stage.product)
        self.play(back, *others, run_time=run_time)
        self.remove(lifted)
        self.add(stage.product)
        self.rename(names, 0)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("The bottleneck")
    def the_bottleneck(self):
        """The update sees only what A lets through."""
        trace = self.trace
        shown = slice(None, None, 2)  # every other input, one row each
        coords = trace.coords[shown, :2]
        thick = min(0.22, 0.6 / len(trace.lora_A))
        inputs = TensorGrid(trace.inputs[shown], cell=(0.112, 0.105), number=None).move_to([-4.6, 0.85, 0])
        a = TensorGrid(trace.lora_A, cell=(0.112, thick), number=None, role="WEIGHT").next_to(inputs, DOWN, buff=0.55)
        cloud = PointCloud(coords, side=3.7, role="LATENT").move_to([0.2, 0.05, 0]).hide()
        b = TensorGrid(trace.lora_B, cell=(thick, 0.125), number=None, role="WEIGHT").move_to([3.1, 0.2, 0])
        outputs = TensorGrid(trace.outputs[shown].T, cell=(0.085, 0.125), number=None).move_to([5.2, 0.2, 0])
        y = outputs.get_top()[1] + 0.28
        names = [
            Label("inputs, a row for each word", color=theme.INPUT).next_to(inputs, UP, buff=0.2),
            Label("A", color=theme.WEIGHT, bold=True).next_to(a, DOWN, buff=0.2),
            Label("B", color=theme.WEIGHT, bold=True).move_to([b.get_center()[0], y, 0]),
            Label("what the update adds,\na column for each word", color=theme.OUTPUT, align=1),
        ]
        names[3].next_to(outputs, UP, buff=0.2).align_to(outputs, RIGHT)
        axes = [
            Label(f"row {trace.directions[k]:d} of A × input", color=theme.MUTED).next_to(cloud, side, buff=0.14)
            for k, side in zip(range(coords.shape[1]), (DOWN, UP), strict=False)
        ]
        title = Label("what A reads of them", color=theme.LATENT, bold=True).next_to(cloud, UP, buff=0.55)
        outputs.hide()
        self.say(f"The update reads {counted(trace.config.r, 'number')} of each input.")
        self.play(FadeIn(inputs, a, *names[:2], cloud, title, *axes), run_time=theme.QUICK)
        self.fall(inputs, a, cloud, row=0)
        self.rain(inputs, a, cloud)
        self.say("B turns it into outputs: mixtures of its own columns.")
        self.play(FadeIn(b, names[2], names[3]), run_time=0.4)
        self.add(outputs)
        flying = cloud.copy()
        self.play(flying.animate.scale(0.15).move_to(b).set_opacity(0), ColumnByColumn(outputs), run_time=1.8)
        self.remove(flying)
        self.finish_beat()
        self.alike(cloud, inputs, outputs, names)

    def fall(self, inputs: TensorGrid, a: TensorGrid, cloud: PointCloud, *, row: int) -> None:
        """Let one input fall through A and come out as a dot."""
        strip = inputs.row(row, role="INPUT")
        self.add(strip)
        self.play(inputs.animate.focus(row), strip.animate.move_to(a), run_time=0.7)
        self.play(strip.animate.set_opacity(0), run_time=0.2)
        self.remove(strip)
        pair = TensorGrid(
            cloud.values[row], cell=(0.66, 0.42), number="+.1f", limit=largest(self.trace.coords),
            role="LATENT",
        ).next_to(a, DOWN, buff=0.25).align_to(a, RIGHT)  # fmt: skip
        self.play(FadeIn(pair, target_position=a), run_time=0.3)
        self.hold(0.3)
        self.play(
            pair.animate.scale(0.12).move_to(cloud.point(row)).set_opacity(0),
            cloud.animate.show(row),
            run_time=0.7,
        )
        self.remove(pair)

    def rain(self, inputs: TensorGrid, a: TensorGrid, cloud: PointCloud) -> None:
        """Let all inputs fall through A, each to its dot."""
        self.play(inputs.animate.lead(), run_time=0.2)
        rows = [inputs.row(row) for row in range(1, inputs.rows)]
        a.set_z_index(1)  # rows vanish below it
        self.play(
            LaggedStart(*(row.animate.move_to(a) for row in rows), lag_ratio=0.12),
            RowByRow(cloud, range(1, len(cloud.places))),
            run_time=1.4,
        )
        self.remove(*rows)

    def alike(self, cloud: PointCloud, inputs: TensorGrid, outputs: TensorGrid, names: list[Label]) -> None:
        """Change all of an input that A does not see: neither its dot nor its output moves."""
        trace = self.trace
        strip = TensorGrid(trace.alike_inputs[0], cell=(inputs.cell[0], 0.5), number=None, limit=largest(trace.inputs))
        strip.move_to(inputs)
        column = trace.alike_outputs[0].reshape(-1, 1)
        output = TensorGrid(column, cell=(0.5, outputs.cell[1]), number=None, limit=outputs.limit).move_to(outputs)
        dot = PointCloud(trace.alike_coords[:1, :2], side=cloud.local_width, limit=cloud.limit).move_to(cloud)
        dot.focus(0)
        states = [
            Label(words, bold=True).next_to(strip, UP, buff=0.25)
            for words in ("one input", "all that A cannot see, erased", "and replaced by another’s")
        ]
        share = Label(f"{trace.invisible_share:.0%}", size=0.36, bold=True).next_to(strip, DOWN, buff=0.4)
        share.align_to(strip, LEFT)
        rest = Label("of the inputs’ energy\nis invisible to A", color=theme.MUTED)
        rest.next_to(share, RIGHT, buff=0.3)
        self.say("Now change an input in every way that A cannot see:")
        dimmed = cloud.copy().focus([])
        self.play(
            FadeOut(inputs, names[0], outputs), cloud.animate.become(dimmed), FadeIn(strip, states[0], output, dot),
            run_time=0.7,
        )  # fmt: skip
        self.hold(0.3)
        for k in (1, 2):
            if k == 2:
                self.say("Neither the point nor the output moves.")
            self.play(FadeOut(states[k - 1]), run_time=0.2)
            self.play(
                strip.animate.set_values(trace.alike_inputs[k]),
                dot.animate.set_points(trace.alike_coords[k : k + 1, :2]),
                output.animate.set_values(trace.alike_outputs[k].reshape(-1, 1)),
                FadeIn(states[k]),
                run_time=1.1,
            )
            self.hold(0.4)
        self.say("The update sees only what A lets through.")
        self.play(FadeIn(share, rest), run_time=theme.QUICK)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Starting at zero")
    def starting_at_zero(self):
        """B starts at zero, so training starts from the old model."""
        trace = self.trace
        last = len(trace.history_steps) - 1
        stage = self.product_stage(cell=0.132, center=[-2.4, -0.4, 0])
        for grid, history in (
            (stage.product.show(), trace.delta_history), (stage.a, trace.lora_A_history),
            (stage.b, trace.lora_B_history),
        ):  # fmt: skip
            grid.limit = largest(history)
            grid.set_values(history[0])
        clock = Readout(lambda n: f"step {n:d}", trace.history_steps[0], size=0.36, bold=True).move_to([0, 2.3, 0])
        clock.align_to([1.9, 0, 0], LEFT)
        top = largest(trace.grad_norm_A, trace.grad_norm_B)
        bars, titles, laws = [], [], []
        for name, norms, y, law in (
            ("B", trace.grad_norm_B, 1.0, "s thin {{ G : gradient }} {{ A : weight }}^top"),
            ("A", trace.grad_norm_A, -1.0, "s thin {{ B : weight }}^top {{ G : gradient }}"),
        ):
            bar = Bars(norms[:1], limit=top, length=2.9, step=0.5, role="TEXT", number=".4f", number_size=0.2)
            bars.append(bar.move_to([0, y, 0]).align_to([1.9, 0, 0], LEFT))
            titles.append(Label(f"norm of {name}’s gradient", bold=True).next_to(bar, UP, buff=0.2).align_to(bar, LEFT))
            formula = Formula(law, size=0.26, gradient="GRADIENT", weight="WEIGHT")
            laws.append(formula.next_to(titles[-1], RIGHT, buff=0.5).set_y(titles[-1].get_y()))
        self.say("B starts at zero, so training starts from the old model.")
        self.play(FadeIn(*stage.margins(), stage.product), run_time=theme.QUICK)
        self.play(FadeIn(clock), run_time=0.3)
        self.hold(0.5)
        whole = Label("G: gradient of the whole matrix,\nfrom another batch at every step", color=theme.MUTED)
        whole.next_to(bars[1], DOWN, buff=0.6)
        whole.align_to(bars[1], LEFT)
        self.say("A’s gradient is a product with B: zero as well. Only B can move.")
        self.play(FadeIn(*titles, *laws, whole), run_time=theme.QUICK)
        self.play(FadeIn(*bars), run_time=0.3)
        self.hold(0.6)
        self.say("Then both learn, and the change grows out of nothing.")
        for record in range(1, last + 1):
            self.play(
                stage.product.animate.set_values(trace.delta_history[record]),
                stage.a.animate.set_values(trace.lora_A_history[record]),
                stage.b.animate.set_values(trace.lora_B_history[record]),
                *(
                    bar.animate.set_values(norms[record : record + 1])
                    for bar, norms in zip(bars, (trace.grad_norm_B, trace.grad_norm_A), strict=True)
                ),
                clock.animate.set_value(trace.history_steps[record]),
                run_time=0.3 if record < 4 else 0.18,
                rate_func=linear,
            )
        self.say("Were both zero, nothing would ever move.")

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("How small can the rank be?")
    def how_small(self):
        """A few directions recover most of the gain."""
        trace = self.trace
        ranks = trace.ranks
        near = np.array([*trace.loss_lora, *trace.loss_truncated, trace.loss_base, trace.loss_full], dtype=float)
        low, high = float(near.min()), float(near.max())
        room = 0.16 * (high - low)
        low, high = max(0.0, low - room), high + room / 2
        chart = Chart(
            5.5, 3.9, x=(0.85, 9.4), y=(low, high), x_ticks=[float(r) for r in ranks], y_ticks=round_ticks(low, high),
            x_format="d", y_format=".2f", x_label="rank", y_label="loss on unseen texts, nats a word", log_x=True,
            tick_size=theme.LABEL,
        ).move_to([-2.95, 0.25, 0])  # fmt: skip
        ends = [  # of the two lines, apart even where the lines lie close together
            Label(words, color=theme.FROZEN, bold=True)
            .next_to(chart.level(value).place(chart.x_range[1], value), RIGHT, buff=0.2)
            .shift(0.13 * side)
            for words, value, side in (
                ("untouched", trace.loss_base, UP), ("all weights trained", trace.loss_full, DOWN),
            )
        ]  # fmt: skip
        trained = chart.curve(ranks, trace.loss_lora, role="WEIGHT", dots=0.1, line=theme.THICK, drawn=0)
        cut = chart.curve(ranks, trace.loss_truncated, role="LOSS", dots=0.1, dash=(0.12, 0.08), drawn=0)
        shares = Bars(
            trace.lora_share, limit=1.0, length=2.3, step=0.5, thickness=0.56, role="WEIGHT", number=".0%",
            number_size=theme.LABEL,
        ).move_to([0, -1.3, 0]).align_to([3.75, 0, 0], LEFT).hide()  # fmt: skip
        title = Label("weights to train", color=theme.MUTED).next_to(shares, UP, buff=0.18).align_to(shares, LEFT)
        rows = [Label(f"rank {r:d}", color=theme.MUTED).move_to([0, shares.tip(k)[1], 0]) for k, r in enumerate(ranks)]
        for row in rows:
            row.align_to([3.55, 0, 0], RIGHT)
        self.say("Train adapters of rising rank, and judge them on unseen texts.")
        self.play(FadeIn(chart, *ends, title), run_time=theme.QUICK)
        self.add(shares)
        ours = Label("LoRA", color=theme.WEIGHT, bold=True).next_to(chart.point(trained, 0), UP + RIGHT, buff=0.12)
        for k in range(len(ranks)):
            self.play(
                chart.animate.draw_curve(trained, max(k / (len(ranks) - 1), 1e-3)), shares.animate.show(k),
                FadeIn(rows[k]), run_time=0.6,
            )  # fmt: skip
            if k == 0:
                self.play(FadeIn(ours), run_time=0.3)
        gain = Label(f"{trace.gain_lora[0]:.0%}", size=theme.BIG_NUMBER, bold=True, color=theme.WEIGHT)
        gain.move_to([0, 1.85, 0]).align_to(shares, LEFT)
        of_it = Label(f"of the gain at rank {ranks[0]:d}", color=theme.MUTED).next_to(gain, DOWN, buff=0.2)
        of_it.align_to(gain, LEFT)
        first, share = trace.gain_lora[0], trace.lora_share[0]
        self.say(f"Rank {ranks[0]:d} makes {first:.0%} of the gain, with {share:.0%} of the weights.")
        self.play(FadeIn(gain, of_it), run_time=theme.QUICK)
        self.hold(0.4)
        afterwards = Label("cut down afterwards", color=theme.LOSS, bold=True)
        afterwards.next_to(chart.point(cut, 1), UP + RIGHT, buff=0.15)
        self.say(f"All weights trained, then cut to rank {ranks[0]:d}: {trace.gain_truncated[0]:.0%} of the gain.")
        self.play(chart.animate(rate_func=linear).draw_curve(cut), run_time=1.2)
        self.play(FadeIn(afterwards), run_time=0.3)
        self.finish_beat()
        self.clear_stage(run_time=0.4)
        self.far_away()

    def far_away(self) -> None:
        """Show the limit: a dialect far from what the model knows leaves every rank above what is possible."""
        trace = self.trace
        ranks, losses, last = trace.ranks, trace.far_loss_lora, len(trace.ranks) - 1
        top = 1.1 * largest(losses)
        chart = Chart(
            7.0, 3.9, x=(0.85, 9.4), y=(0, top), x_ticks=[float(r) for r in ranks], y_ticks=round_ticks(0, top, 4),
            x_format="d", y_format=".1f", x_label="rank", y_label="loss on unseen news, nats a word", log_x=True,
            tick_size=theme.LABEL,
        ).move_to([-1.4, 0.25, 0])  # fmt: skip
        chart.level(trace.far_loss_floor, label="best possible")
        untouched = Label(f"untouched: {trace.far_loss_base:.1f}", color=theme.FROZEN, bold=True)
        untouched.next_to(chart.get_corner(UP + RIGHT), RIGHT, buff=0.2)
        if trace.far_loss_base > top:  # too far up to be drawn to scale
            foot = untouched.get_top() + 0.12 * UP
            untouched.add(arrow(foot, foot + 0.4 * UP, color=theme.FROZEN))
        else:
            untouched.move_to(chart.place(1.0, trace.far_loss_base), coor_mask=UP)
        curve = chart.curve(ranks, losses, role="WEIGHT", dots=0.1, line=theme.THICK, drawn=0)
        ours = Label("LoRA", color=theme.WEIGHT, bold=True).next_to(chart.point(curve, 0), RIGHT, buff=0.3)
        helps = "more rank helps, but" if losses[last] < losses[0] else "rank"
        self.say(f"On news, a far dialect, {helps} is not all that is missing.")
        self.play(FadeIn(chart, untouched), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(curve), FadeIn(ours), run_time=1.6)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Merge")
    def merging(self):
        """Merged, it costs nothing at inference."""
        trace = self.trace
        frozen = self.square(trace.weight, cell=0.125, role="FROZEN").move_to([-4.3, 0.1, 0])
        names = self.weight_names(frozen)
        near = self.small_stage(trace.lora_A, trace.lora_B, trace.lora_delta, x=1.6)
        far = self.small_stage(trace.second_lora_A, trace.second_lora_B, trace.second_delta, x=5.25)
        titles = [
            Label(words, color=theme.MUTED).next_to(stage.product, DOWN, buff=0.3)
            for words, stage in (("adapter: farm dialect", near), ("adapter: news", far))
        ]
        parts = [part for stage in (near, far) for part in (*stage.pair, stage.product)]
        self.say("Add the product to the frozen weights. Merged, it costs nothing at inference.")
        self.play(FadeIn(frozen, names[0], *parts, *titles), run_time=theme.QUICK)
        self.hold(0.3)
        self.merge(frozen, names, near, trace.merged_weight, FadeOut(titles[0]), run_time=1.2)
        same = Label(
            f"one matrix of {trace.matrix_numbers:,d} weights, as before;\n"
            f"with A and B aside, the same logits within {trace.max_abs_diff_logits:.0e}",
            color=theme.MUTED,
        )
        same.next_to(frozen, DOWN, buff=0.25).align_to(frozen, LEFT)
        self.play(FadeIn(same), run_time=0.3)
        self.say("Subtract it again, and another adapter can take its place.")
        self.play(FadeOut(same), run_time=0.2)
        self.unmerge(frozen, names, near, FadeIn(*near.pair, titles[0]), run_time=0.8)
        self.play(FadeOut(*near.pair, near.product, titles[0]), run_time=0.3)
        self.merge(frozen, names, far, trace.second_merged_weight, FadeOut(titles[1]), run_time=0.9)
        self.hold(0.3)
        self.finish_beat()
        self.clear_stage()
        self.bill()

    def small_stage(self, lora_a: Any, lora_b: Any, delta: Any, *, x: float) -> ProductStage:
        """Return an adapter with its product painted."""
        stage = ProductStage(lora_a, lora_b, delta.reshape(1, *delta.shape), cell=0.082, center=[x, -0.25, 0])
        stage.product.show()
        return stage

    def bill(self) -> None:
        """Compare a hundred models with one model and a hundred adapters."""
        counts = self.trace.gpt3_counts
        top = counts["hundred_full_bytes"]
        title = Label(
            f"memory for {counts['tasks']:d} tasks of GPT-3 in FP16, rank {counts['rank']:d} on two matrices a layer",
            color=theme.MUTED,
        )
        title.move_to([0, 2.4, 0]).align_to([-6.1, 0, 0], LEFT)
        rows = []
        for words, key, role, y in (
            (f"{counts['tasks']:d} full models", "hundred_full_bytes", "FROZEN", 1.1),
            (f"one model and {counts['tasks']:d} adapters", "hundred_lora_bytes", "WEIGHT", -0.6),
        ):
            bar = Bars(counts[key].reshape(1), limit=top, length=10.0, step=0.7, role=role, number=None)
            bar.move_to([0, y, 0]).align_to([-6.1, 0, 0], LEFT)
            size = Label(f"{counts[key]:count}B", size=0.3, face="numbers").next_to(bar.tip(0), RIGHT, buff=0.15)
            rows.append((Label(words, bold=True).next_to(bar, UP, buff=0.15).align_to(bar, LEFT), bar.hide(), size))
        each = Label(f"{counts['lora_bytes']:count}B an adapter: {counts['ratio']:,.0f} times less than the model")
        each.move_to([0, -1.7, 0]).align_to([-6.1, 0, 0], LEFT)
        self.say(f"{counts['tasks']:d} tasks: one model and {counts['tasks']:d} small adapters.")
        self.play(FadeIn(title), run_time=0.3)
        for label, bar, size in rows:
            self.add(bar)
            self.play(FadeIn(label), bar.animate.show(), run_time=0.7)
            self.play(FadeIn(size), run_time=0.2)
        self.play(FadeIn(each), run_time=0.4)
        self.hold(0.6)
