"""Draws internals_math.grouped_query_attention.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, UP, FadeIn, FadeOut, linear

from internals_math import grouped_query_attention
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.head_memory import HeadMemory
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.links import Links
from scenes.kit.motion import RowByRow
from scenes.kit.number_line import NumberLine
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop

ALL, SOME, ONE = "4", "2", "1"  # the stops of the dial, as the Trace names them


class GroupedQueryAttention(TopicScene):
    """A memory for each head is large, one for all costs quality. Is there a dial between them?"""

    core = grouped_query_attention
    notation = ("FP16", "Llama-2-70B", "Llama-2-7B", "Llama-3-8B", "Mistral-7B", "GQA-8-XXL")
    takeaway = (
        "Let groups of query heads share a memory: average the heads of a trained model, train a little more, "
        "and keep most of its quality at a fraction of the cache."
    )
    loop_alt = (
        "Wires from four query heads swing from four key-value heads to two, to one and back, while the bar of the "
        "cache shrinks and grows in proportion."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("Two extremes")
    def two_extremes(self):
        """Everyone owns a memory, or everyone shares one."""
        trace = self.trace
        growths = [trace.cache_growth[0], trace.cache_growth[2]]
        sides = [
            Wiring(trace, groups, center=x, step=step, cell=(0.07, 0.28), top=1.35)
            for groups, x, step in ((ALL, -2.55, 1.45), (ONE, 4.0, 1.25))
        ]
        titles, counts = [], []
        for side, words, growth in zip(sides, ("a memory for each head", "one memory for all"), growths, strict=True):
            titles.append(Label(words, bold=True).move_to([side.center, 2.72, 0]))
            count = Readout(lambda n: f"{n:,} bytes kept", growth[0], size=0.26, bold=True)
            counts.append(count.move_to([side.center, -2.4, 0]))
            for memory in side.memories:
                memory.hide()
        names = RowNames(trace.tokens, sides[0].memories[0].keys).hide()
        legend = key_and_value([1.8, sides[0].memories[0].get_center()[1], 0])

        self.say("Four query heads. Should each of them own a memory of the text?")
        self.play(*(FadeIn(side.tiles, side.wires) for side in sides), FadeIn(*titles), run_time=theme.MOVE)
        self.hold(0.5)
        self.say("Everyone owns a memory, or everyone shares one.")
        self.add(*(grid for side in sides for memory in side.memories for grid in memory), names, *counts, *legend)
        seconds = 4.0
        self.play(
            *(RowByRow(grid) for side in sides for memory in side.memories for grid in memory),
            RowByRow(names),
            *(
                StepThrough(count, growth, (0, 0), rate_func=linear)
                for count, growth in zip(counts, growths, strict=True)
            ),
            run_time=seconds,
        )
        self.hold(1.2)

    # -- chapter 2 and the loop -------------------------------------------------------------------------------------

    @chapter("The dial")
    def dial(self):
        """GQA is a dial: how many query heads share one memory."""
        stage = DialStage(self.trace)
        self.say("The same model, with a dial: how many memories, or KV heads, are there?")
        self.play(FadeIn(*stage.parts()), run_time=theme.MOVE)
        self.hold(0.6)
        stage.bar.leave_ghosts()
        self.say("Turn it to two: pairs of heads share, and the cache is halved.")
        self.turn(stage, SOME)
        self.hold(1.2)
        self.say("Turn it to one, and all four heads read the same keys.")
        self.turn(stage, ONE)
        self.hold(1.2)
        self.say("GQA is the dial, and two is a stop between the extremes.")
        self.turn(stage, SOME)
        self.hold(1.0)

    @loop
    def breathing(self):
        """The dial runs down to one memory and back."""
        stage = DialStage(self.trace)
        stage.bar.leave_ghosts()
        self.add(*stage.parts())
        self.hold(0.5)
        for groups in (SOME, ONE, SOME, ALL):
            self.turn(stage, groups, seconds=0.32)  # short: every picture of the way costs the GIF 9 kB
            self.hold(0.9)

    def turn(self, stage: "DialStage", groups: str, *, seconds: float = 1.5) -> None:
        """Turn the dial: wires swing, memories slide together or apart; once there, the bar snaps to their bytes."""
        fade = min(0.3, seconds / 2)
        merging = int(groups) < len(stage.wiring.memories)
        before, after = stage.wiring.memories, stage.wiring.memories_for(groups)
        finer = stage.wiring.groups if merging else groups
        # which coarse memory each fine one belongs to: that of the first head that reads it
        fine, coarse = (self.trace.group_of_head[name] for name in (finer, groups if merging else stage.wiring.groups))
        parent = {int(fine[head]): int(coarse[head]) for head in reversed(range(len(fine)))}
        changes = [*stage.changes(groups), stage.wiring.wires.animate.aim(stage.wiring.ends_for(groups))]
        if merging:
            moves = [memory.animate.move_to(after[parent[k]]) for k, memory in enumerate(before)]
            self.play(*moves, *changes, run_time=seconds)
            self.play(FadeIn(*after), FadeOut(*before), stage.bill(groups), run_time=fade)
        else:
            places = [memory.get_center() for memory in after]
            for k, memory in enumerate(after):
                memory.move_to(before[parent[k]])
            self.play(FadeIn(*after), FadeOut(*before), run_time=fade)
            moves = [memory.animate.move_to(place) for memory, place in zip(after, places, strict=True)]
            self.play(*moves, *changes, run_time=seconds)
            self.play(stage.bill(groups), run_time=fade)
        stage.wiring.memories, stage.wiring.groups = after, groups

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Neighbors share")
    def neighbors(self):
        """Neighboring heads share. Wire them otherwise and the output is wrong."""
        trace = self.trace
        wiring = Wiring(trace, SOME, center=0, step=2.6, cell=(0.13, 0.27), top=1.0)
        limit = largest(trace.output_shared, trace.output_tiled)
        outputs = [
            TensorGrid(row, cell=(0.27, 0.34), number=None, limit=limit, role="OUTPUT").next_to(
                wiring.tiles.tile_center(head), UP, buff=0.42
            )
            for head, row in enumerate(trace.output_shared)
        ]
        name = Label("outputs", color=theme.MUTED).next_to(outputs[0], LEFT, buff=0.3)
        self.say("Which heads share? Neighbors: the first half, the second half.")
        self.play(FadeIn(wiring.tiles, wiring.wires, *wiring.memories, *outputs, name), run_time=theme.MOVE)
        for memory in range(2):
            heads = [head for head, group in enumerate(trace.group_of_head[SOME]) if int(group) == memory]
            other = wiring.memories[1 - memory]
            self.play(
                wiring.wires.animate.focus(heads), wiring.tiles.animate.focus(heads),
                other.animate.recede(), wiring.memories[memory].animate.lead(), run_time=0.6,
            )  # fmt: skip
            self.hold(0.5)
        self.play(
            wiring.wires.animate.lead(), wiring.tiles.animate.lead(), wiring.memories[0].animate.lead(), run_time=0.4
        )
        self.say("Deal the memories out in turn instead, and two heads go wrong.")
        ends = [wiring.top_of(wiring.memories[int(group)]) for group in trace.tiled_group_of_head]
        starts = [wiring.start(head) for head in range(len(outputs))]
        wrong = Links(trace.own_memory, starts, ends, role="LOSS", line=0.05)
        self.play(wiring.wires.animate.aim(ends), run_time=1.0)
        self.play(FadeIn(wrong), FadeOut(wiring.wires), run_time=0.3)
        self.play(
            *(grid.animate.set_values(row) for grid, row in zip(outputs, trace.output_tiled, strict=True)), run_time=0.8
        )
        marks = []
        for grid, off in zip(outputs, trace.tiled_head_difference, strict=True):
            if off > 0:
                label = Label(f"off by up to {off:.1f}", color=theme.LOSS, bold=True).next_to(grid, UP, buff=0.22)
                marks += [Frame.around(grid, pad=0.12, color=theme.LOSS), label]
        self.play(FadeIn(*marks), run_time=theme.QUICK)
        self.hold(1.4)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Converting a trained model")
    def converting(self):
        """To convert a checkpoint, average the key heads of each group."""
        trace = self.trace
        group = trace.group_of_head[str(int(trace.config.num_key_value_heads))]
        members = [head for head, owner in enumerate(group) if int(owner) == 0]
        height = 0.25 if len(members) <= 2 else 0.13
        limit = largest(trace.w_k_heads)
        cell = (0.185, height)
        grids, labels = [], []
        for k, head in enumerate(members):
            grid = TensorGrid(trace.w_k_heads[head], cell=cell, number=None, limit=limit, role="KEY")
            drop = 8 * height + (0.6 if len(members) <= 2 else 0.3)
            grid.move_to([-3.3, -0.15 + ((len(members) - 1) / 2 - k) * drop, 0])
            grids.append(grid)
            labels.append(Label(trace.head_names[head], color=theme.KEY, bold=True).next_to(grid, UP, buff=0.16))
        title = Label("key weights of two neighbors", color=theme.MUTED).move_to([-3.3, 2.8, 0])
        self.say("Take a trained model. Each head has key weights of its own.")
        self.play(FadeIn(title, *grids, *labels), run_time=theme.MOVE)
        self.hold(0.8)
        self.say("To convert a checkpoint, average the key heads of each group.")
        mean = TensorGrid(trace.w_k_grouped[0], cell=cell, number=None, limit=limit, role="KEY").move_to(
            [-3.3, -0.15, 0]
        )
        self.play(
            *(grid.animate.move_to(mean).set_opacity(1 / (k + 1)) for k, grid in enumerate(grids)),
            FadeOut(*labels, title), run_time=1.6,
        )  # fmt: skip
        shared = Label("their average: the shared head", color=theme.KEY, bold=True).next_to(mean, UP, buff=0.25)
        self.play(FadeIn(mean, shared), FadeOut(*grids), run_time=0.5)
        self.hold(0.8)
        self.say("It is paler: the heads have hardly anything in common.")
        map_cell = (0.86, 0.6)
        similarity = TensorGrid(
            trace.head_similarity_k, cell=map_cell, number=".2f", number_size=0.2, limit=1.0, role="WEIGHT"
        ).move_to([4.4, -0.15, 0])  # fmt: skip
        rows = RowNames(trace.head_names, similarity)
        what = Label("how alike (cosine)", color=theme.MUTED).next_to(similarity, UP, buff=0.3)
        self.play(FadeIn(similarity, rows, what), run_time=theme.MOVE)
        self.hold(1.4)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("The wound and the cure")
    def wound_and_cure(self):
        """Averaging hurts. A little more training heals most of it."""
        trace = self.trace
        conversions = trace.conversions
        bars = Bars(
            conversions.eval_loss, length=6.4, step=0.66, thickness=0.55, role=["VALUE"] * 3 + ["LOSS"] * 3,
            number=".2f", number_size=0.22, names=conversions.name,
        ).move_to([2.0, 0.0, 0]).hide()  # fmt: skip
        unit = Label(f"loss, nats a word (before: {trace.eval_loss_base:.2f})", color=theme.MUTED)
        unit.next_to(bars, UP, buff=0.25).align_to(bars, LEFT)
        sizes = [
            Label(words, bold=True, color=color).move_to([-5.2, (bars.tip(k)[1]), 0])
            for words, color, k in (("two memories", theme.VALUE, 1), ("one memory", theme.LOSS, 4))
        ]
        self.say("Right after the conversion, the model has lost its way.")
        self.play(FadeIn(bars, unit, *sizes), run_time=theme.QUICK)
        self.play(bars.animate.show([0, 3]), run_time=1.2)
        self.hold(0.8)
        self.say("Keeping the first head is about as bad. New heads are worse.")
        self.play(bars.animate.show(), run_time=1.2)
        self.hold(0.9)
        self.finish_beat()
        self.clear_stage()

        steps = int(trace.uptrain_steps)
        chart = Chart(
            7.4, 4.0, x=(0, steps), y=(float(trace.entropy_floor), 6), log_y=True, x_ticks=[0, steps // 2, steps],
            y_ticks=[0.5, 1, 2, 4], x_format="d", x_label="further training steps",
            y_label=f"loss, nats a word; the foot is the best possible, {trace.entropy_floor:.3f}",
        ).move_to([-1.6, 0.2, 0])  # fmt: skip
        chart.level(trace.eval_loss_base, role="KEY", label=f"before: {trace.eval_loss_base:.2f}")
        curves = [
            chart.curve(
                trace.curve_steps, trace.curves[name], role=role, drawn=0, dots=0.06,
                label=f"{words}: {trace.eval_loss_uptrained[name]:.2f}", label_shift=shift,
            )
            for name, role, words, shift in ((ONE, "LOSS", "one memory", 0.0), (SOME, "VALUE", "two memories", 0.22))
        ]  # fmt: skip
        self.say(f"So it is trained on, for {trace.config.alpha:.0%} of its first training.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(curves[0]).draw_curve(curves[1]), run_time=3.6)
        self.say("Two memories heal almost fully. One stays behind.")
        self.hold(1.6)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Bytes become speed")
    def bytes_become_speed(self):
        """Each byte you fetch now feeds a whole group of queries."""
        trace = self.trace
        fans = []
        for x, (name, readers), label, work in zip(
            (-4.5, 0.0, 4.5), trace.readers.items(), trace.reader_names, trace.intensity, strict=True
        ):
            count = int(name)
            wide = min(0.42, 3.7 / count)
            queries = TensorGrid(readers, cell=(wide, 0.36), number=None, map="QUERY", limit=1.0).move_to([x, 2.0, 0])
            row = TensorGrid(
                trace.key_by_g[ALL][0, 0], cell=(0.22, 0.34), number=None, role="KEY"
            ).move_to([x, -0.2, 0])  # fmt: skip
            ends = [queries.column_center(k) + 0.2 * DOWN for k in range(count)]
            fan = Links(readers, [row.get_top() + 0.08 * UP], ends, role="KEY", line=0.05 if count < 20 else 0.025)
            number = Label(f"{work:.0f}", size=theme.BIG_NUMBER, bold=True).move_to([x, -1.25, 0])
            who = Label(label, color=theme.MUTED).move_to([x, -2.35, 0])
            fans.append((row, queries, fan, number, who))
        unit = [
            Label("FLOPs for each byte fetched", size=theme.SMALL, color=theme.MUTED).move_to([x, -1.8, 0])
            for x in (-4.5, 0.0, 4.5)
        ]
        self.say("A key is fetched from memory once. How many queries use it?")
        self.play(*(FadeIn(row, queries) for row, queries, *_ in fans), run_time=theme.MOVE)
        self.hold(0.6)
        self.say("Each byte you fetch now feeds a whole group of queries.")
        for (_, _, fan, number, who), words in zip(fans, unit, strict=True):
            self.play(FadeIn(fan, shift=0.2 * UP), run_time=0.7)
            self.play(FadeIn(number, words, who), run_time=0.5)
            self.hold(0.5)
        self.hold(1.0)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("What models chose")
    def what_models_chose(self):
        """Eight groups: near the speed of one memory, near the quality of all."""
        trace = self.trace
        models, points = trace.real_models, trace.tradeoff
        bars = Bars(
            models.bytes_with_all_heads, length=6.2, step=0.85, thickness=0.5, role="KEY", number=None,
            names=models.name,
        ).move_to([0.0, 0.1, 0]).hide()  # fmt: skip
        # in a column of their own: at the ends of the bars, the outlines would run through them
        sizes = [
            Readout(lambda n: f"{n:binary}", size, size=0.24).move_to([4.2, bars.tip(k)[1], 0])
            for k, size in enumerate(models.bytes_with_all_heads)
        ]
        unit = Label("cache for one token (FP16)", color=theme.MUTED).next_to(bars, UP, buff=0.25)
        unit.align_to(bars, LEFT)
        self.say("If every query head of these models had a memory of its own …")
        self.play(FadeIn(bars, unit), run_time=0.4)
        self.play(bars.animate.show(), FadeIn(*sizes), run_time=1.0)
        self.hold(0.6)
        self.say("… and what they chose. Many share: eight memories in each layer.")
        bars.leave_ghosts()
        self.play(
            bars.animate.set_values(models.bytes_per_token),
            *(text.animate.set_value(size) for text, size in zip(sizes, models.bytes_per_token, strict=True)),
            run_time=1.4,
        )
        self.hold(0.9)
        self.finish_beat()
        self.clear_stage()
        chart = Chart(
            8.2, 3.9, x=(0, 1.8), y=(45.5, 47.5), x_ticks=[0, 0.5, 1.0, 1.5], y_ticks=[45.5, 46.5, 47.5],
            x_format=".1f", y_format=".1f", x_label="seconds for one sample",
            y_label="quality, as published (average score)",
        ).move_to([-0.9, 0.1, 0])  # fmt: skip
        dots = [
            chart.curve(
                points.seconds[k : k + 1], points.quality[k : k + 1], role="QUERY" if name == "GQA-8-XXL" else "FROZEN",
                label=f"{name}", dots=0.13 if name == "GQA-8-XXL" else 0.1, line=0,
            )
            for k, name in enumerate(points.name)
        ]  # fmt: skip
        last = dots[-1]
        chart.show_curve(last, 0)
        self.say("Published measurements: many memories are good but slow.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.hold(0.8)
        self.say("Eight groups: near the speed of one memory, the quality of all.")
        self.play(chart.animate.show_curve(last, 1), run_time=theme.MOVE)
        self.hold(1.4)


class Wiring:
    """Query heads above, their memories below, and a wire from each head to the memory it reads."""

    def __init__(
        self,
        trace: Any,
        groups: str,
        *,
        center: float,
        step: float,
        cell: tuple[float, float],
        top: float,
    ) -> None:
        self.trace, self.groups, self.center, self.step, self.cell = trace, groups, center, step, cell
        self.top = top
        self.tiles = TokenRow(trace.head_names, tile=step, roles="QUERY").move_to([center, top + 0.75, 0])
        self.memories = self.memories_for(groups)
        starts = [self.start(head) for head in range(len(trace.head_names))]
        self.wires = Links(trace.own_memory, starts, self.ends_for(groups), role="KEY", line=0.05)

    def start(self, head: int) -> np.ndarray:
        """Return where the wire of a head begins."""
        return self.tiles.tile_center(head) + 0.25 * DOWN

    def top_of(self, memory: HeadMemory) -> np.ndarray:
        """Return where wires end."""
        return np.array([memory.get_center()[0], self.top - 0.72, 0])

    def memories_for(self, groups: str) -> list[HeadMemory]:
        """Return the memories at a stop of the dial, each below the middle of its heads."""
        keys, values = self.trace.key_by_g[groups], self.trace.value_by_g[groups]
        limits = largest(keys), largest(values)
        owner = [int(group) for group in self.trace.group_of_head[groups]]
        memories = []
        for k in range(len(keys)):
            heads = [self.tiles.tile_center(head)[0] for head, group in enumerate(owner) if group == k]
            memory = HeadMemory(keys[k], values[k], limits=limits, cell=self.cell, gap=0.17)
            middle = (heads[0] + heads[-1]) / 2
            memories.append(memory.move_to([middle, 0, 0]).align_to([0, self.top - 0.8, 0], UP))
        return memories

    def ends_for(self, groups: str) -> list[np.ndarray]:
        """Return the end of each head's wire at a stop of the dial."""
        memories = self.memories_for(groups)
        return [self.top_of(memories[int(group)]) for group in self.trace.group_of_head[groups]]


def key_and_value(place: Any) -> list[Label]:
    """Return the names of the two halves of a memory in their colors, one above the other."""
    key = Label("keys", color=theme.KEY, bold=True).move_to(place + 0.22 * UP)
    return [key, Label("values", color=theme.VALUE, bold=True).move_to(place + 0.22 * DOWN).align_to(key, LEFT)]


class DialStage:
    """The picture of chapter 2 and of the loop: attention, heads, wires, memories; the dial and the bar of bytes."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.wiring = Wiring(trace, ALL, center=-1.7, step=2.3, cell=(0.11, 0.235), top=1.25)
        last = len(trace.tokens) - 1
        self.strips = [
            TensorGrid(
                trace.weights_by_g[ALL][head, last], cell=(1.9 / len(trace.tokens), 0.3), number=None, map="SCORE",
                limit=1.0, role="SCORE",
            ).move_to(self.wiring.tiles.tile_center(head) + 0.55 * UP)
            for head in range(len(trace.head_names))
        ]  # fmt: skip
        self.slider = NumberLine(
            trace.groups[:1], span=(1, 4), length=4.6, ticks=[1, 2, 4], tick_format="d", log=True, roles="KEY",
            label="KV heads in each layer",
        ).move_to([-1.7, -1.95, 0])  # fmt: skip
        self.bar = Bars(
            trace.cache_bytes[:1], limit=trace.cache_bytes[0], direction="up", length=3.3, step=1.5, thickness=0.8,
            role="KEY", number=",d", number_size=0.3,
        ).move_to([5.2, 0.15, 0])  # fmt: skip
        self.names = [
            Label("bytes of cache\nfor each token", color=theme.MUTED, align=0.5).next_to(self.bar, DOWN, buff=0.25),
            Label("what each head looks at", color=theme.MUTED)
            .next_to(self.strips[0], UP, buff=0.2).align_to(self.strips[0], LEFT),
            *key_and_value([3.45, self.wiring.memories[0].get_center()[1], 0]),
        ]  # fmt: skip

    def parts(self) -> list[Any]:
        """Return everything on stage."""
        wiring = self.wiring
        return [wiring.tiles, wiring.wires, *wiring.memories, *self.strips, self.slider, self.bar, *self.names]

    def changes(self, groups: str) -> list[Any]:
        """Return how attention and dial follow to another stop."""
        rows = self.trace.weights_by_g[groups]
        last = len(self.trace.tokens) - 1
        return [
            self.slider.animate.set_values(self.trace.groups[self.stop(groups)]),
            *(strip.animate.set_values(rows[head, last]) for head, strip in enumerate(self.strips)),
        ]

    def bill(self, groups: str) -> Any:
        """Return how the bar follows to another stop."""
        return self.bar.animate.set_values(self.trace.cache_bytes[self.stop(groups)])

    def stop(self, groups: str) -> slice:
        """Return where the Trace's fields hold a stop of the dial."""
        stop = [int(stop) for stop in self.trace.groups].index(int(groups))
        return slice(stop, stop + 1)
