"""Draws internals_math.qlora.Trace."""

from itertools import pairwise
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, LaggedStart, linear

from internals_math import qlora
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart, round_ticks
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout
from scenes.kit.motion import RowByRow
from scenes.kit.number_line import NumberLine
from scenes.kit.page_tank import PageTank
from scenes.kit.shapes import Frame
from scenes.kit.snap_line import LevelCounts, SnapLine
from scenes.kit.stacked_bar import StackedBar
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.qlora_stage import LayerStage

BOOKS = (("int4", "INT4"), ("fp4", "FP4"), ("nf4", "NF4"))
PARTS = ("weights", "gradients", "optimizer", "adapters")
TOLD = ("Long texts fill the memory: optimizer pages move out to the CPU …", "… and come back when there is room.")


class QLoRA(TopicScene):
    """How can a model learn when its weights are stored in four bits?"""

    core = qlora
    notation = ("INT4", "FP4", "NF4", "LLaMA-65B", "65 billion", "16-bit", "32-bit", "8-bit", "float32")
    takeaway = "Store the frozen weights in four bits, decode them where they are used, and learn beside them."
    loop_alt = (
        "Sixty-four real weights on a line are rescaled by their largest value and snap to sixteen unevenly spaced "
        "levels."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("The bill")
    def the_bill(self):
        """Frozen weights need no gradients, and need not be 16-bit."""
        memory, near = self.trace.memory_65b, 1.13 * float(self.trace.memory_65b.total[1])
        roles = ("WEIGHT", "GRADIENT", "LATENT", "KEY")
        bars = [
            StackedBar(
                self.parts(k), limit=1.13 * float(memory.total[0]), length=12.4, thickness=1.0, roles=roles,
                number=".0f", number_size=0.24, mark=self.trace.gpu_gb, overhang=0.26,
            ).move_to([0, y, 0])
            for k, y in enumerate((1.0, -1.0, -1.0))
        ]  # fmt: skip
        bars[0].hide()
        legend = [
            Label(words, color=getattr(theme, role), bold=True)
            for words, role in zip(("weights", "gradients", "Adam’s averages", "adapters"), roles, strict=True)
        ]
        legend.append(Label("frozen weights", color=theme.FROZEN, bold=True))
        legend[0].move_to([-6.2, 2.6, 0], aligned_edge=LEFT)
        for before, after in pairwise(legend):
            after.next_to(before, RIGHT, buff=0.4)
        unit = Label("GB, without activations", color=theme.MUTED).move_to([-6.2, -2.4, 0], aligned_edge=LEFT)
        titles = [
            Label(words, bold=True).next_to(bar, UP, buff=0.36).align_to(bar, LEFT)
            for words, bar in zip(("train everything", "LoRA", "QLoRA"), bars, strict=True)
        ]
        totals = [Readout(lambda gb: f"{gb:.0f} GB", memory.total[k], size=0.3, bold=True) for k in range(len(bars))]
        wall = Label(f"one GPU: {self.trace.gpu_gb:.0f} GB", bold=True).set_z_index(1)
        self.say("To train 65 billion weights, memory must hold all of this.")
        self.play(FadeIn(titles[0], unit, legend[0]), run_time=0.3)
        self.add(bars[0].show_mark(0))
        for k in range(3):
            self.play(bars[0].animate.show(k), *([FadeIn(legend[k])] if k else []), run_time=0.6)
        totals[0].next_to(bars[0].end(), RIGHT, buff=0.2)
        wall.next_to(bars[0].place(self.trace.gpu_gb) + 0.7 * DOWN, RIGHT, buff=0.14)
        self.play(FadeIn(totals[0]), run_time=0.2)
        self.play(bars[0].animate.show(3).show_mark(), FadeIn(wall), run_time=0.5)
        self.say("LoRA freezes the weights: gradients and averages only for adapters.")
        self.drop(bars[0], bars[1], titles[1], *legend[3:])
        totals[1].next_to(bars[1].end(), RIGHT, buff=0.2)
        self.play(FadeIn(totals[1]), run_time=0.3)
        self.hold(0.3)
        self.say("Frozen weights need not be 16-bit either.")
        self.play(FadeOut(bars[0], titles[0], totals[0], *legend[:1]), run_time=0.4)
        closer = bars[1].copy().set_limit(near).move_to(bars[0])
        self.play(
            bars[1].animate.set_limit(near).move_to(bars[0]), totals[1].animate.next_to(closer.end(), RIGHT, buff=0.2),
            wall.animate.next_to(closer.place(self.trace.gpu_gb) + 0.7 * DOWN, RIGHT, buff=0.14),
            titles[1].animate.match_y(titles[0]), run_time=1.0,
        )  # fmt: skip
        bars[2].set_limit(near)
        self.drop(bars[1], bars[2], titles[2])
        totals[2].next_to(bars[2].place(self.trace.gpu_gb), RIGHT, buff=0.25)
        self.play(FadeIn(totals[2]), run_time=0.4)

    def parts(self, k: int) -> list[Any]:
        """Return what a way of fine-tuning keeps in memory."""
        return [getattr(self.trace.memory_65b, part)[k] for part in PARTS]

    def drop(self, above: StackedBar, below: StackedBar, title: Label, *others: Label) -> None:
        """Let a copy of a bar fall below it, and shrink to what the next way needs."""
        falling = above.copy()
        self.add(falling)
        self.play(falling.animate.paint(0, "FROZEN").move_to(below), FadeIn(title, *others), run_time=0.7)
        self.play(falling.animate.become(below.paint(0, "FROZEN")), run_time=1.3)
        self.remove(falling)
        self.add(below)

    # -- chapter 2 and the loop -------------------------------------------------------------------------------------

    @chapter("One block")
    def one_block(self):
        """One scale for a block, and a code of four bits for each of its weights."""
        trace = self.trace
        line = self.block_line(height=3.75, length=11.6, center=[0.5, 0.65, 0])
        cells = TensorGrid(
            trace.block_values.reshape(-1, 1), cell=(0.36, line.lane), number=None, limit=self.bright()
        ).next_to(line, LEFT, buff=0.3).hide()  # fmt: skip
        top = line.get_top()[1] + 0.28
        weight = Label("weights", color=theme.WEIGHT, bold=True).move_to([-6.2, top, 0], aligned_edge=LEFT)
        code = Label("code", bold=True).move_to([-6.2, line.code_center(0)[1], 0], aligned_edge=LEFT)
        error = Label("rounding error", color=theme.LOSS, bold=True).move_to([6.2, top, 0], aligned_edge=RIGHT)
        self.cut_out(cells, weight)
        self.say("Each weight is a dot on a line.")
        ruler = self.ruler(line)
        self.add(line)
        self.play(FadeIn(ruler), RowByRow(line), run_time=1.3)
        self.say("The largest sets the scale: all are divided by its size.")
        most = self.most()
        looks: dict[str, Any] = {"size": 0.24, "bold": True, "color": theme.MAXIMUM}
        scale = Readout(lambda c: f"largest |w| = {c:.3f}", trace.block_absmax, **looks)
        side = float(np.sign(float(trace.block_values[most])))
        scale.move_to([side * 4.0, -2.45, 0])
        self.play(line.animate.paint(most, "MAXIMUM"), FadeIn(scale), run_time=0.4)
        self.hold(0.2)
        self.play(
            line.animate.set_values(trace.block_normalized),
            ruler.animate.set_values(trace.block_normalized[most : most + 1]),
            run_time=1.4,
        )
        self.hold(0.2)
        self.say(f"{trace.bits['codes']:.0f} bits: these levels, a code for each.")
        self.play(FadeOut(ruler), run_time=0.3)
        self.play(line.animate.show_ticks(), FadeIn(code), run_time=0.9)
        self.say("Each weight snaps to the nearest level.")
        self.snap(line, error)
        self.say("Stored: a code for each weight, and one scale for the block.")
        self.keep_codes(line, scale)

    def block_line(self, *, height: float, length: float, center: Any) -> SnapLine:
        """Return a block as dots, one below the other, not yet there."""
        trace = self.trace
        lane = height / len(trace.block_values)
        return SnapLine(
            trace.block_values, trace.levels, span=(-1.04, 1.04), length=length, lane=lane, codes=trace.level_codes,
            dot=float(np.clip(0.9 * lane, 0.062, 0.09)), guides=False,
        ).move_to(center).hide().hide_ticks()  # fmt: skip

    def keep_codes(self, line: SnapLine, scale: Label) -> None:
        """Let codes fly from their levels into a row of storage, whose end is the scale of the block."""
        trace = self.trace
        first = slice(14)
        row = TensorGrid(
            trace.block_codes[first], map="FROZEN", cell=(0.56, 0.44), number="d", number_size=0.2, role="FROZEN",
            limit=largest(trace.level_codes),
        ).move_to([-2.2, -2.55, 0])  # fmt: skip
        more = Label("…", size=0.3, color=theme.MUTED).next_to(row, RIGHT, buff=0.2)
        kept = Readout(lambda c: f"scale: {c:.3f}", trace.block_absmax, size=0.24, bold=True, color=theme.MAXIMUM)
        kept.next_to(more, RIGHT, buff=0.45)
        flying = [
            Label(f"{code:d}", size=0.2, face="numbers").move_to(line.code_center(int(code))).set_opacity(0)
            for code in trace.block_codes[first]
        ]
        flights = [label.animate.move_to(row.cell_center(0, k)).set_opacity(1) for k, label in enumerate(flying)]
        self.play(scale.animate.become(kept), line.animate.recede(), run_time=0.5)
        self.play(LaggedStart(*flights, lag_ratio=0.1), FadeIn(more), run_time=1.7)
        self.play(FadeIn(row), run_time=0.4)
        self.remove(*flying)

    def bright(self) -> float:
        """Return the weight that has the full color."""
        return largest(self.trace.weight)

    def most(self) -> int:
        """Return which weight of the block is the largest."""
        return int(np.argmax(np.abs(np.asarray(self.trace.block_values))))

    def cut_out(self, cells: TensorGrid, name: Label) -> None:
        """Cut a block out of its matrix, and unroll it into one column."""
        trace = self.trace
        matrix = TensorGrid(trace.weight, cell=(0.135, 0.135), number=None, limit=self.bright(), role="FROZEN")
        matrix.move_to([0, 0.2, 0])
        whole = Label(f"{trace.matrix} of a tiny model", color=theme.FROZEN, bold=True).next_to(matrix, UP, buff=0.2)
        size = int(trace.config.block_size)
        rows, columns = max(1, size // matrix.columns), min(size, matrix.columns)
        block = TensorGrid(trace.weight[:rows, :columns], cell=matrix.cell, number=None, limit=matrix.limit)
        middle = (matrix.cell_center(0, 0) + matrix.cell_center(rows - 1, columns - 1)) / 2
        mark = Frame.around(block.move_to(middle), color=theme.TEXT)
        self.say(f"A block: {trace.config.block_size:d} weights that lie side by side.")
        self.play(FadeIn(matrix, whole), run_time=theme.QUICK)
        self.add(block)
        self.play(matrix.animate.recede(), FadeIn(mark), run_time=0.5)
        self.hold(0.4)
        self.play(FadeOut(mark, whole), matrix.animate.set_opacity(0), run_time=0.3)
        self.remove(matrix)
        self.add(cells)
        start = cells.get_corner([-1, 1, 0])
        self.play(block.animate.scale(0.25).move_to(start).set_opacity(0), FadeIn(name), RowByRow(cells), run_time=1.2)
        self.remove(block)

    def ruler(self, line: SnapLine) -> NumberLine:
        """Return the line's numbers, with a bead for the largest weight of the block."""
        most = self.most()
        return NumberLine(
            self.trace.block_values[most : most + 1], span=line.span, length=line.width, ticks=(-1, -0.5, 0, 0.5, 1),
            roles="MAXIMUM",
        ).move_to([line.get_center()[0], line.get_bottom()[1], 0])  # fmt: skip

    def snap(self, line: SnapLine, error: Label) -> None:
        """Snap a few dots slowly, one after the other, and then the others from the top to the bottom."""
        levels, count = self.trace.block_levels, len(self.trace.block_levels)
        self.play(FadeIn(error), run_time=0.2)
        for first, last, seconds in ((0, 1, 0.5), (1, 2, 0.35), (2, 4, 0.35)):
            self.play(line.animate.snap(levels, slice(first, last)), run_time=seconds)
        parts = np.linspace(4, count, 9).astype(int).tolist()
        for first, last in pairwise(parts):
            self.play(line.animate.snap(levels, slice(first, last)), run_time=0.2)

    @loop
    def stretch_and_snap(self):
        """Stretch a block to the ends of the line, snap it to its levels, and let it go again."""
        trace = self.trace
        line = self.block_line(height=5.2, length=12.9, center=[0, -0.25, 0]).show()
        line.radius = 0.085
        most = self.most()
        y = line.get_top()[1] + 0.45
        looks: dict[str, Any] = {"size": 0.3, "bold": True}
        words = [
            Label(text, color=color, **looks).move_to([-6.3, y, 0], aligned_edge=LEFT)
            for text, color in (
                (f"{trace.config.block_size:d} weights of one block", theme.WEIGHT),
                ("… divided by the largest", theme.MAXIMUM),
                (f"… rounded to levels of {dict(BOOKS)[trace.config.code]}, each with a code", theme.TEXT),
            )
        ]
        error = Label("rounding error", color=theme.LOSS, **looks).move_to([6.3, y, 0], aligned_edge=RIGHT)
        ruler = self.ruler(line)
        self.add(ruler, line.paint(most, "MAXIMUM"), words[0])
        self.hold(0.7)
        self.play(FadeOut(words[0]), run_time=0.2)
        self.play(FadeIn(words[1]), run_time=0.2)
        self.play(
            line.animate.set_values(trace.block_normalized),
            ruler.animate.set_values(trace.block_normalized[most : most + 1]),
            run_time=1.1,
        )
        self.play(line.animate.show_ticks(), FadeOut(words[1], ruler), run_time=0.4)
        self.play(FadeIn(words[2], error), run_time=0.2)
        self.play(line.animate.snap(trace.block_levels), run_time=0.9)
        self.hold(1.1)
        self.play(line.animate.release().hide_ticks(), FadeOut(words[2], error), run_time=0.7)
        self.play(FadeIn(ruler), run_time=0.2)
        self.play(
            line.animate.set_values(trace.block_values),
            ruler.animate.set_values(trace.block_values[most : most + 1]),
            FadeIn(words[0]),
            run_time=1.0,
        )
        self.hold(0.2)

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Where to put the levels")
    def where_to_put(self):
        """Put the levels where the weights are."""
        trace = self.trace
        width, rise, foot, x = 8.6, 2.3, 0.25, -1.95
        shape = Bars(
            trace.normalized_histogram, direction="up", length=rise, step=width / len(trace.normalized_histogram),
            thickness=0.9, role="WEIGHT", number=None,
        ).move_to([x, foot + rise / 2, 0]).hide()  # fmt: skip
        most, deep = largest(*trace.code_usage.values()), 2.35
        comb = LevelCounts(
            trace.levels_int4, trace.code_usage["int4"], span=(-1, 1), length=width, height=deep, limit=most, rise=rise
        ).move_to([x, foot - deep / 2, 0]).hide_bars()  # fmt: skip
        words = "all weights of the tiny model, divided by the largest of their block"
        above = Label(words, color=theme.WEIGHT, bold=True)
        above.next_to(shape, UP, buff=0.2).align_to(shape, LEFT)
        below = Label("share of the weights\non each level", color=theme.SCORE, bold=True)
        below.move_to([x - width / 2 - 0.1, foot - 2.1, 0], aligned_edge=LEFT)
        left = 3.0
        names = [Label(words, size=0.34, color=theme.SCORE, bold=True) for _, words in BOOKS]
        for name in names:
            name.move_to([left, 2.3, 0], aligned_edge=LEFT)
        used = Readout(lambda b: f"{b:.2f} bits", trace.code_entropy["int4"], size=0.28, bold=True)
        used.move_to([left, 1.55, 0], aligned_edge=LEFT)
        share = Label(f"of {trace.bits['codes']:.0f} used by the codes", color=theme.MUTED)
        share.next_to(used, DOWN, buff=0.18).align_to(used, LEFT)
        title = Label("mean squared error", color=theme.LOSS, bold=True).move_to([left, 0.45, 0], aligned_edge=LEFT)
        rows = self.book_rows(left, 0.0)
        self.say("Where should the levels lie? Most weights crowd around zero.")
        self.play(FadeIn(above), run_time=0.3)
        self.add(shape)
        self.play(shape.animate.show(), run_time=1.0)
        self.hold(0.3)
        self.say("Even steps: the outer levels are used least.")
        self.play(FadeIn(comb, names[0]), run_time=0.5)
        self.play(comb.animate.show_bars(), FadeIn(below), run_time=0.9)
        self.play(FadeIn(used, share, title), run_time=0.3)
        self.judge(rows[0])
        self.say("A tiny float steps finer near zero.")
        self.move_levels(comb, names, used, 1)
        self.judge(rows[1])
        self.say("NF4 follows the bell: dense where the weights are.")
        self.move_levels(comb, names, used, 2)
        self.judge(rows[2])
        self.finish_beat()
        self.add_losses(rows, left)

    def book_rows(self, left: float, top: float) -> list[tuple[Label, Bars]]:
        """Return a name and a bar of its error for each code book."""
        mse, rows = self.trace.mse, []
        for k, (key, words) in enumerate(BOOKS):
            y = top - 0.5 * k
            bar = Bars(
                mse[key].reshape(1), limit=largest(*mse.values()), length=1.15, step=0.4, role="LOSS", number=".1e",
                number_size=0.18,
            ).move_to([left + 0.75, y, 0], aligned_edge=LEFT).hide()  # fmt: skip
            rows.append((Label(words, color=theme.SCORE).move_to([left, y, 0], aligned_edge=LEFT), bar))
        return rows

    def judge(self, row: tuple[Label, Bars]) -> None:
        """Grow the bar of a code book's error."""
        self.add(row[1])
        self.play(FadeIn(row[0]), row[1].animate.show(), run_time=0.5)

    def move_levels(self, comb: LevelCounts, names: list[Label], used: Readout, k: int) -> None:
        """Let the levels glide to those of another code book."""
        trace, key = self.trace, BOOKS[k][0]
        self.play(FadeOut(names[k - 1]), run_time=0.2)
        levels = getattr(trace, f"levels_{key}")
        self.play(
            comb.animate.set_levels(levels, trace.code_usage[key]), FadeIn(names[k]),
            used.animate.set_value(trace.code_entropy[key]), run_time=1.5,
        )  # fmt: skip

    def add_losses(self, rows: list[tuple[Label, Bars]], left: float) -> None:
        """Write what each code book adds to the loss of the model, which need not follow the error."""
        added = self.trace.loss_added
        title = Label("added to the model’s loss", bold=True).move_to([left, -1.55, 0], aligned_edge=LEFT)
        lines = [
            Label(text, color=color, face=face).move_to([left + shift, -1.97 - 0.38 * k, 0], aligned_edge=LEFT)
            for k, (key, words) in enumerate(BOOKS)
            for text, color, face, shift in (
                (words, theme.SCORE, "words", 0),
                (f"{added[key]:+.4f}", theme.TEXT, "numbers", 0.75),
            )
        ]
        error = self.trace.mse
        turned = float(error["fp4"]) < float(error["int4"]) and float(added["fp4"]) > float(added["int4"])
        both = "The loss need not follow the error: measure both."
        self.say("FP4: less error than INT4, yet more loss." if turned else both)
        self.play(FadeIn(title, *lines), run_time=theme.QUICK)
        if turned:
            marks = [Frame(3.44, 0.36, color=theme.TEXT) for _ in range(2)]
            for mark, word in zip(marks, (rows[1][0], lines[2]), strict=True):
                mark.move_to([left + 1.62, word.get_y(), 0])
            self.play(FadeIn(*marks), run_time=theme.QUICK)
        self.hold(2.3)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Scales of scales")
    def scales_of_scales(self):
        """The scales get quantized too."""
        trace, bits = self.trace, self.trace.bits
        count, top, ground = len(trace.absmax), 1.05 * largest(trace.absmax), 2.7
        written = count <= 16
        looks: dict[str, Any] = {
            "direction": "up", "length": ground, "step": 11.2 / count, "thickness": 0.62, "role": "MAXIMUM",
        }  # fmt: skip
        place = [-0.3, 0.95, 0]
        bars = Bars(trace.absmax, limit=top, number=None, **looks).move_to(place).hide()
        name = Label("the scale of each block", color=theme.MAXIMUM, bold=True).move_to(
            [-5.9, 2.75, 0], aligned_edge=LEFT
        )
        rest = Label("what differs from their mean", color=theme.MAXIMUM, bold=True).move_to(name, aligned_edge=LEFT)
        codes = Label("the same in 8-bit codes", color=theme.MAXIMUM, bold=True).move_to(name, aligned_edge=LEFT)
        strip = StackedBar(
            (bits["codes"], bits["scales"]), limit=bits["total"], length=9.2, thickness=0.5,
            roles=("FROZEN", "MAXIMUM"), number=".3g", number_size=0.22,
        ).move_to([-1.3, -1.95, 0]).hide()  # fmt: skip
        bill = Label("bits a weight:", bold=True).next_to(strip, UP, buff=0.22).align_to(strip, LEFT)
        of = [
            Label(words, color=color, bold=True)
            for words, color in (("codes", theme.FROZEN), ("scales", theme.MAXIMUM))
        ]
        of[0].next_to(bill, RIGHT, buff=0.3)
        of[1].next_to(of[0], RIGHT, buff=0.3)
        total = Readout(lambda b: f"{b:.3f}", bits["total"], size=0.32, bold=True).next_to(strip, RIGHT, buff=0.3)
        self.say(f"{trace.config.block_size:d} weights share one 32-bit scale.")
        self.add(bars)
        self.play(FadeIn(name), bars.animate.show(), run_time=1.0)
        self.say(f"That is {bits['scales']:.3g} bits more for every weight.")
        self.add(strip)
        self.play(FadeIn(bill, of[0]), strip.animate.show(0), run_time=0.6)
        tokens = bars.copy()
        self.add(tokens)
        self.play(
            tokens.animate.scale(0.1).move_to(strip.end()).set_opacity(0), strip.animate.show(1), FadeIn(of[1]),
            run_time=0.9,
        )  # fmt: skip
        self.remove(tokens)
        self.play(FadeIn(total), run_time=0.2)
        self.say("So the scales get quantized too. Take off their mean …")
        mean = float(trace.absmax_mean)
        level = Chart(11.2, ground, x=(0, 1), y=(0, top)).move_to(place)
        level.level(trace.absmax_mean, role="TEXT")
        self.play(FadeIn(level), run_time=0.4)
        self.play(
            bars.animate.set_values(trace.absmax_centered, limit=top - mean, signed=mean / top), FadeOut(name),
            run_time=1.0,
        )  # fmt: skip
        self.play(FadeOut(level), FadeIn(rest), run_time=0.2)
        wide = 1.25 * largest(trace.absmax_centered)
        self.play(bars.animate.set_values(trace.absmax_centered, limit=wide, signed=True), run_time=0.9)
        self.say("… and keep what is left in 8-bit codes.")
        whole = Bars(
            trace.absmax_codes, limit=1.25 * largest(trace.absmax_codes), number="d" if written else None, signed=True,
            number_size=0.18, **looks,
        ).move_to(place)  # fmt: skip
        self.play(FadeOut(rest), run_time=0.2)
        self.play(bars.animate.become(whole), FadeIn(codes), run_time=0.7)
        self.hold(0.3)
        now = (bits["codes"], bits["scales_double_quantized"])
        shorter = strip.copy().set_values(now)
        self.play(
            strip.animate.set_values(now),
            total.animate.set_value(bits["total_double_quantized"]).next_to(shorter.end(), RIGHT, buff=0.3),
            run_time=1.2,
        )
        self.say(f"{self.trace.saved_gb:.1f} GB less for LLaMA-65B.")
        saved = Label(f"scales now: {bits['scales_double_quantized']:.3f} bits a weight", color=theme.MUTED)
        self.play(FadeIn(saved.next_to(strip, DOWN, buff=0.25).align_to(strip, LEFT)), run_time=0.4)
        self.decoded_scales(bars, codes, top, looks, place)
        if not trace.config.double_quant:
            self.say("Here, the scales are left as they were.")

    def decoded_scales(self, bars: Bars, title: Label, top: float, looks: dict[str, Any], place: Any) -> None:
        """Decode the scales again."""
        trace = self.trace
        back = Bars(trace.absmax_dequantized, limit=top, number=None, **looks).move_to(place)
        words = Label("decoded again: nearly as before", color=theme.MAXIMUM, bold=True)
        self.play(FadeOut(title), run_time=0.2)
        self.play(bars.animate.become(back), FadeIn(words.move_to(title, aligned_edge=LEFT)), run_time=0.9)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Decode, multiply, forget")
    def decode_multiply_forget(self):
        """Weights are decoded only while they are used."""
        trace = self.trace
        stage = LayerStage(trace)
        names = stage.names()
        blocks = stage.blocks()
        cursor = stage.cursor(blocks[0])
        self.say("To be multiplied, codes must become numbers again.")
        self.play(FadeIn(stage.codes, names["codes"]), run_time=theme.QUICK)
        self.play(FadeIn(cursor), run_time=0.2)
        self.look_up(stage, cursor)
        self.say("Multiply by x at once …")
        closer = Label("this block, from nearer", bold=True).next_to(stage.lens_codes, UP, buff=0.2)
        closer.align_to(stage.lens_codes, LEFT)
        self.play(FadeIn(stage.x, stage.rooms[0], names["x"], names["base"], stage.lens_codes, closer), run_time=0.4)
        self.add(stage.base, stage.decoded, stage.lens)
        stage.decode(self, blocks[0], run_time=0.5)
        stage.multiply(self, blocks[0], run_time=1.1)
        self.say("… and forget them. Then comes the next block.")
        stage.forget(self, blocks[0], run_time=0.4)
        alive = Label(f"{trace.config.block_size:d}", size=theme.BIG_NUMBER, bold=True)
        alive.next_to(stage.lens_codes, DOWN, buff=0.5).align_to(stage.lens_codes, LEFT)
        at_once = Label("weights are decoded at a time", color=theme.MUTED).next_to(alive, RIGHT, buff=0.25)
        self.play(FadeIn(alive, at_once.align_to(alive, DOWN)), run_time=0.3)

        def arrive(stop: int) -> None:
            stage.base.show(rows=blocks[stop + 1])

        rest = blocks[1:]
        over = (stage.base, stage.lens_codes, stage.lens)
        stage.sweep(self, cursor, rest, on_block=arrive, changes=over, run_time=4.2)
        self.play(FadeOut(cursor, alive, at_once, closer, stage.lens_codes), run_time=0.3)
        self.beside(stage, names)

    def look_up(self, stage: LayerStage, cursor: Frame) -> None:
        """Follow the first codes of a block: a level is looked up, and multiplied by the block's scale."""
        trace = self.trace
        first = slice(6)
        looks: dict[str, Any] = {"cell": (1.04, 0.56), "number_size": 0.22}
        rows = [
            TensorGrid(trace.block_codes[first], map="FROZEN", number="d", limit=largest(trace.block_codes), **looks),
            TensorGrid(trace.block_levels[first], number="+.2f", limit=1.0, **looks),
            TensorGrid(trace.block_dequantized[first], number="+.2f", limit=self.bright(), **looks),
        ]
        for row, y in zip(rows, (1.85, 0.3, -1.25), strict=True):
            row.move_to([2.75, y, 0])
        words = [
            Label(text, color=color, bold=True).next_to(row, UP, buff=0.16).align_to(row, LEFT)
            for text, color, row in (
                ("codes", theme.FROZEN, rows[0]), ("their levels, from the table", theme.SCORE, rows[1]),
                (f"× the block’s scale, {trace.block_absmax:.2f}", theme.MAXIMUM, rows[2]),
            )
        ]  # fmt: skip
        flying = rows[0].copy().scale(0.1).move_to(stage.codes.cell_center(0, 2))
        self.play(flying.animate.become(rows[0]), FadeIn(words[0]), run_time=0.9)
        for before, after, text in zip(rows, rows[1:], words[1:], strict=False):
            moving = before.copy().hide_numbers()
            self.add(moving)
            self.play(moving.animate.move_to(after).set_opacity(0.3), run_time=0.55)
            self.play(FadeIn(after, text), run_time=0.35)
            self.remove(moving)
        self.hold(0.3)
        back = rows[2].copy()
        self.remove(flying, rows[2])
        self.add(back)
        self.play(
            back.animate.scale(0.1).move_to(stage.codes.cell_center(0, 2)).set_opacity(0),
            FadeOut(rows[0], rows[1], *words), run_time=0.7,
        )  # fmt: skip
        self.remove(back)

    def beside(self, stage: LayerStage, names: dict[str, Label]) -> None:
        """Let x go through the adapter too, and add both."""
        self.say("The adapter runs beside it, in full precision.")
        self.play(
            FadeIn(stage.a, stage.b, stage.rooms[1], *(names[part] for part in ("a", "b", "adapter"))), run_time=0.4
        )
        self.add(stage.coords, stage.adapter, stage.output)
        falling = stage.x.copy().set_z_index(2)
        self.add(falling)
        self.play(falling.animate.move_to(stage.a).set_opacity(0.15), run_time=0.7)
        self.remove(falling)
        down = Label("A x", bold=True).next_to(stage.coords, RIGHT, buff=0.2)
        self.play(stage.coords.animate.show(), FadeIn(down), run_time=0.4)
        moving = stage.coords.copy()
        self.add(moving)
        self.play(moving.animate.move_to(stage.b).set_opacity(0), run_time=0.7)
        self.remove(moving)
        self.play(RowByRow(stage.adapter), run_time=0.7)
        self.say("Both outputs add up.")
        law = Formula(
            "y = {{ hat(W) : frozen }} x + s thin {{ B A : adapter }} thin x", size=0.34, frozen="FROZEN",
            adapter="WEIGHT",
        ).move_to([2.6, stage.coords.get_y() + 0.18, 0])  # fmt: skip
        words = Label("Ŵ: the decoded weights, s: a fixed factor", color=theme.MUTED).next_to(law, DOWN, buff=0.16)
        self.play(FadeIn(stage.rooms[2], names["output"], law, words, *stage.signs), run_time=0.3)
        copies = [stage.base.copy(), stage.adapter.copy()]
        self.add(*copies)
        self.play(*(one.animate.move_to(stage.output) for one in copies), run_time=0.8)
        self.remove(*copies)
        self.add(stage.output.show())

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Where the gradient goes")
    def where_the_gradient_goes(self):
        """Gradients pass through the base and land in the adapter."""
        trace = self.trace
        stage = LayerStage(trace)
        names = stage.names(output="gradient", x="gradient for the layer before")
        part = stage.names(x="a part, through the base")["x"]
        for name in (names["output"], names["x"], part):
            name.set_color(theme.GRADIENT)
        far = stage.output.get_center()[0]
        column: dict[str, Any] = {"cell": stage.output.cell, "number": None, "limit": largest(trace.grad_output)}
        grad = TensorGrid(trace.grad_output.reshape(-1, 1), role="GRADIENT", **column).move_to(stage.output)
        row: dict[str, Any] = {
            "cell": stage.x.cell, "number": None, "role": "GRADIENT",
            "limit": largest(trace.grad_input, trace.grad_through_base, trace.grad_through_adapter),
        }  # fmt: skip
        handed = TensorGrid(trace.grad_through_base, **row).move_to(stage.x)
        room = Frame.around(stage.x, pad=0.05, color=theme.LINES, line=theme.HAIRLINE)
        still = [stage.codes, stage.a, stage.b, names["codes"], names["a"], names["b"]]
        self.say("A gradient comes back from the loss.")
        self.play(FadeIn(*still, room), run_time=theme.QUICK)
        start = grad.copy().shift(2.6 * RIGHT).set_opacity(0)
        self.add(start)
        self.play(start.animate.become(grad), FadeIn(names["output"]), run_time=0.9)
        self.remove(start)
        self.add(grad)
        changed = Label(f"{trace.base_codes_changed:d}", size=theme.BIG_NUMBER, bold=True)
        changed.move_to([far + 0.8, 1.5, 0], aligned_edge=LEFT)
        of = Label(
            f"of the model’s\n{trace.num_codes:,d} codes\nchanged after\n{trace.config.train_steps:d} steps",
            color=theme.MUTED,
        )
        of.next_to(changed, DOWN, buff=0.25).align_to(changed, LEFT)
        self.say("It passes through the decoded weights, and leaves no trace there.")
        self.through_base(stage, grad, handed, part)
        self.play(FadeIn(changed, of), run_time=0.4)
        self.say("The adapter keeps gradients: one for B, one for A.")
        self.into_adapter(stage, grad, names)
        rising = TensorGrid(trace.grad_through_adapter, **row).move_to(stage.a).set_z_index(2)
        self.add(rising)
        self.play(rising.animate.move_to(handed), FadeOut(part), run_time=0.8)
        self.remove(rising)
        self.play(handed.animate.set_values(trace.grad_input), FadeIn(names["x"]), run_time=0.3)
        self.say("The base has no gradient at all.")
        self.norms(far + 0.8)

    def through_base(self, stage: LayerStage, grad: TensorGrid, handed: TensorGrid, name: Label) -> None:
        """Let the gradient cross the decoded weights, block by block, and come out as a row above them."""
        blocks = stage.blocks()
        moving = grad.copy().set_z_index(2)
        self.add(moving)
        self.play(moving.animate.move_to(stage.base), run_time=0.9)
        cursor = stage.cursor(blocks[0])
        self.add(stage.decoded, cursor)

        def pass_on(stop: int) -> None:
            moving.presence = np.where(np.arange(moving.rows)[:, None] <= blocks[stop][-1], 0.0, 1.0)

        stage.sweep(self, cursor, blocks, on_block=pass_on, changes=(moving,), run_time=2.6)
        self.remove(moving)
        rising = handed.copy().move_to(stage.codes).set_opacity(0)
        self.add(rising)
        self.play(FadeOut(cursor), rising.animate.become(handed), FadeIn(name), run_time=0.7)
        self.remove(rising)
        self.add(handed)

    def into_adapter(self, stage: LayerStage, grad: TensorGrid, names: dict[str, Label]) -> None:
        """Let the gradient fill B and A with theirs."""
        trace = self.trace
        landed = [
            TensorGrid(values, cell=grid.cell, number=None, role="GRADIENT", limit=0.7 * largest(values)).move_to(grid)
            for values, grid in ((trace.grad_B, stage.b), (trace.grad_A, stage.a))
        ]
        moving = grad.copy().set_z_index(2)
        self.add(moving)
        self.play(moving.animate.move_to(stage.b).set_opacity(0.2), run_time=0.8)
        self.remove(moving)
        for one in landed:
            one.hide().set_z_index(1)
        words = [
            Label("gradient of B", color=theme.GRADIENT, bold=True).next_to(stage.b, UP, buff=0.16),
            Label("gradient of A", color=theme.GRADIENT, bold=True).next_to(stage.coords, RIGHT, buff=0.25),
        ]
        self.add(landed[0])
        self.play(FadeOut(names["b"]), run_time=0.2)
        self.play(RowByRow(landed[0]), FadeIn(words[0]), run_time=0.8)
        narrow = TensorGrid(trace.grad_coords.reshape(-1, 1), cell=stage.coords.cell, number=None, role="GRADIENT")
        narrow.move_to(stage.coords)
        start = narrow.copy().move_to(stage.b).set_opacity(0)
        self.add(start)
        self.play(start.animate.become(narrow), run_time=0.7)
        self.add(landed[1])
        self.play(
            start.animate.move_to(stage.a).set_opacity(0), landed[1].animate.show(), FadeOut(names["a"]),
            FadeIn(words[1]), run_time=0.8,
        )  # fmt: skip
        self.remove(start)

    def norms(self, left: float) -> None:
        """Write how long the gradients of the adapters are; the base has none."""
        norms = self.trace.grad_norms
        title = Label("length of the\nwhole gradient", color=theme.GRADIENT, bold=True)
        title.move_to([left, -1.25, 0], aligned_edge=LEFT)
        texts = [("base", "none"), ("all A", f"{norms['lora_A']:.2f}"), ("all B", f"{norms['lora_B']:.2f}")]
        lines = []
        for k, (words, number) in enumerate(texts):
            y = -1.95 - 0.38 * k
            lines.append(Label(words, color=theme.MUTED).move_to([left, y, 0], aligned_edge=LEFT))
            lines.append(Label(number, bold=True).move_to([left + 0.85, y, 0], aligned_edge=LEFT))
        self.play(FadeIn(title, *lines), run_time=0.5)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Does it work?")
    def does_it_work(self):
        """Beside four-bit weights, adapters learn as beside floats."""
        trace = self.trace
        curves, final = trace.finetune_curves, trace.finetune_final
        high = 1.04 * largest(*curves.values())
        low = 0.9 * min(float(np.asarray(curve).min()) for curve in curves.values())
        steps = float(trace.config.train_steps)
        chart = Chart(
            6.3, 3.9, x=(0, steps), y=(low, high), x_ticks=round_ticks(0, steps, 4), x_format="d",
            y_ticks=round_ticks(low, high), y_format=".2f", x_label="step", y_label="loss while it learns a dialect",
        ).move_to([-2.75, 0.2, 0])  # fmt: skip
        plain = chart.curve(trace.finetune_steps, curves["lora"], role="FROZEN", line=0.09, drawn=0)
        ours = chart.curve(trace.finetune_steps, curves["qlora"], role="WEIGHT", drawn=0)
        line = chart.place(0, chart.y_ticks[-1])[1]  # no grid line may underline a key, as if it were its sample
        keys = [
            Label(words, color=color, bold=True).move_to([-0.1, line - 0.27 - 0.33 * k, 0], aligned_edge=RIGHT)
            for k, (words, color) in enumerate(
                (("LoRA, float32 base", theme.FROZEN), (f"QLoRA, {dict(BOOKS)[trace.config.code]} base", theme.WEIGHT))
            )
        ]
        self.say("Same texts, same adapters; only the base differs.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(FadeIn(*keys), chart.animate(rate_func=linear).draw_curve(plain).draw_curve(ours), run_time=2.5)
        title = Label("loss on unseen texts", color=theme.LOSS, bold=True).move_to([2.0, 2.3, 0], aligned_edge=LEFT)
        rows = []
        for words, key, role, y in (
            ("untouched, float32", "fp32", "MUTED", 1.75), ("untouched, in codes", "quantized", "MUTED", 0.75),
            ("LoRA", "lora", "FROZEN", -0.25), ("QLoRA", "qlora", "WEIGHT", -1.25),
        ):  # fmt: skip
            bar = Bars(
                final[key].reshape(1), limit=largest(*final.values()), length=3.1, step=0.42, role=role, number=".3f",
                number_size=0.22, outline=role == "MUTED",
            ).move_to([2.0, y - 0.4, 0], aligned_edge=LEFT).hide()  # fmt: skip
            rows.append((Label(words).move_to([2.0, y, 0], aligned_edge=LEFT), bar))
        best = Label(f"best possible: {final['floor']:.3f}", color=theme.MUTED)
        best.move_to([2.0, -2.25, 0], aligned_edge=LEFT)
        self.say(f"On unseen texts: LoRA {final['lora']:.3f}, QLoRA {final['qlora']:.3f}.")
        self.add(*(bar for _, bar in rows))
        self.play(FadeIn(title, *(label for label, _ in rows)), *(bar.animate.show() for _, bar in rows), run_time=0.9)
        self.play(FadeIn(best), run_time=0.3)
        self.hold(2.2)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("When memory spikes")
    def when_memory_spikes(self):
        """A spike moves optimizer pages out, then back."""
        trace = self.trace
        tank = PageTank(
            trace.gpu_gb, trace.paging_fixed, trace.paging_activations, trace.paging_resident, trace.paging_evicted,
            trace.paging_page, length=11.9, height=0.8, gap=0.75,
        ).move_to([0, 1.0, 0])  # fmt: skip
        walls = Label(f"GPU, {trace.gpu_gb:.0f} GB", bold=True).next_to(tank, UP, buff=0.22).align_to(tank, LEFT)
        shelf = Label("CPU", bold=True).move_to(tank.shelf_left() + 0.65 * UP, aligned_edge=LEFT)
        inside = Label("weights, adapters, gradients", color=theme.BACKGROUND, bold=True).move_to(tank.fixed_center())
        legend = [
            Label("Adam’s pages", color=theme.LATENT, bold=True),
            Label("activations", color=theme.SCORE, bold=True),
        ]
        legend[0].move_to([tank.get_right()[0], walls.get_y(), 0], aligned_edge=RIGHT)
        legend[1].next_to(legend[0], LEFT, buff=0.5)
        batches = Bars(
            trace.paging_tokens, direction="up", length=1.15, step=0.72, thickness=0.6, role="SCORE", number=None
        ).move_to([-1.4, -1.95, 0])  # fmt: skip
        words = Label("tokens in each mini-batch\n(a simulation)", color=theme.MUTED)
        words.move_to([3.2, -1.7, 0], aligned_edge=LEFT)
        tokens = Readout(lambda n: f"{n:,d}", trace.paging_tokens[0], size=0.3, bold=True)
        tokens.move_to([3.2, -2.5, 0], aligned_edge=LEFT)
        self.say("Batches differ in length.")
        self.play(FadeIn(tank, walls, shelf, inside, *legend, batches, words, tokens), run_time=theme.QUICK)
        self.play(batches.animate.focus(0), run_time=0.3)
        self.run_batches(tank, batches, tokens)

    def run_batches(self, tank: PageTank, batches: Bars, tokens: Readout) -> None:
        """Go through the mini-batches; those that move pages take longer."""
        trace = self.trace
        told = 0
        for step in range(1, len(trace.paging_tokens)):
            moves = told < len(TOLD) and abs(float(trace.paging_moved[step])) > float(trace.paging_page)
            if moves:
                self.say(TOLD[told])
                told += 1
            self.play(
                tank.animate.set_step(step), batches.animate.focus(step),
                tokens.animate.set_value(trace.paging_tokens[step]), run_time=1.0 if moves else 0.22,
            )  # fmt: skip
            if moves:
                self.hold(0.3)
