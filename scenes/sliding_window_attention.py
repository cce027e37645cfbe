"""Draws internals_math.sliding_window_attention.Trace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, linear

from internals_math import sliding_window_attention
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout, counted
from scenes.kit.layer_stack import LayerStack
from scenes.kit.links import Links
from scenes.kit.motion import RowByRow, Visit
from scenes.kit.shapes import Frame, Stroke
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.traced import format_number

SIDE = 4.7  # of the square of weights
LIMIT = 0.4  # the weight that gets the full color


class SlidingWindowAttention(TopicScene):
    """If every word may look at only the last few, what is saved, and how far can the model still see?"""

    core = sliding_window_attention
    notation = ("FP16", "Mistral-7B", "Gemma 3")
    takeaway = (
        "A window turns the triangle into a band: work and memory stop growing with the square. "
        "Layers relay the rest, ever fainter."
    )
    loop_alt = "A ring of four cache slots: each new token overwrites the oldest one while the query reads all four."

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("The triangle grows with the square")
    def triangle(self):
        """Full attention: every new word looks at all before it."""
        trace = self.trace
        grid, names = self.square(-1.2)
        grid.hide()
        names.hide()
        count = Readout(lambda n: f"{n:d}", trace.length_pairs[0], size=theme.BIG_NUMBER, bold=True, color=theme.SCORE)
        count.move_to([3.9, 0.9, 0]).align_to([2.6, 0, 0], LEFT)
        pairs = Label("weights", color=theme.MUTED).next_to(count, DOWN, buff=0.25).align_to(count, LEFT)
        words = Readout(lambda n: f"{n:d} words", trace.lengths[0], face="words", size=0.3, bold=True)
        words.move_to([3.9, 1.9, 0]).align_to(count, LEFT)

        self.say("Full attention: every new word looks at all before it.")
        self.add(grid, names)
        first = 0
        for step in range(len(trace.lengths)):
            last = int(trace.lengths[step])
            if step == 1:
                self.say("Twice the words: nearly four times the weights.")
            rows = range(first, last)
            changes: list[Any] = [RowByRow(grid, rows), names.animate.show(slice(first, last))]
            if step == 0:
                changes.append(FadeIn(count, pairs, words))
            else:
                changes += [
                    count.animate.set_value(trace.length_pairs[step]), words.animate.set_value(trace.lengths[step])
                ]  # fmt: skip
            self.play(*changes, run_time=1.2 if step < 2 else 2.0)
            self.hold(0.4)
            first = last

    def square(self, x: float) -> tuple[TensorGrid, RowNames]:
        """Return the head's weights with the whole past in view, and the words before its rows."""
        trace = self.trace
        cell = SIDE / len(trace.tokens)
        grid = TensorGrid(trace.weights_full, cell=(cell, cell), number=None, map="SCORE", limit=LIMIT)
        grid.move_to([x, 0.35, 0])
        return grid, RowNames(trace.tokens, grid)

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("A band instead")
    def band(self):
        """Keep only the last words in view."""
        trace = self.trace
        count, window = len(trace.tokens), int(trace.config.window)
        grid, names = self.square(-3.1)
        cell = grid.cell[0]
        bars = Bars(
            trace.last_full, length=3.2, step=cell, limit=1.1 * largest(trace.last_window), names=trace.tokens,
            name_size=theme.SMALL, number=".2f",
        ).move_to([4.1, 0.35, 0]).hide()  # fmt: skip
        title = Label("where the last word looks", color=theme.SCORE, bold=True).next_to(bars, UP, buff=0.12)
        bracket = Frame(window * cell + 0.06, cell + 0.06, color=theme.QUERY).move_to(self.seen(grid, window - 1))

        self.say(f"Now let every word see only the last {trace.config.window:d}, itself included.")
        self.play(FadeIn(grid, names, bracket), run_time=theme.QUICK)

        def cut(row: int, share: float) -> None:
            presence = grid.presence.copy()
            hidden = ~np.asarray(trace.mask[window + row].values, dtype=bool)
            presence[window + row, hidden] = 1 - share
            grid.presence = presence

        stops = [self.seen(grid, row) for row in range(window, count)]
        self.play(Visit(bracket, stops, on_rest=cut, changes=[grid]), run_time=3.6)
        self.play(FadeOut(bracket), run_time=0.3)
        self.say("What falls out of view is gone. The rest shares its weight again.")
        self.play(FadeIn(bars, title), run_time=0.3)
        self.play(bars.animate.show(), run_time=0.8)
        outside = Bars(
            trace.last_cut, length=3.2, step=cell, limit=float(bars.limit), names=trace.tokens,
            name_size=theme.SMALL, number=".2f",
        ).move_to(bars)  # fmt: skip
        outside.focus(self.window_of(count - 1))
        self.play(bars.animate.become(outside), run_time=0.9)
        self.hold(0.4)
        narrow = TensorGrid(trace.weights_window, cell=grid.cell, number=None, map="SCORE", limit=LIMIT).move_to(grid)
        self.play(bars.animate.set_values(trace.last_window), FadeIn(narrow), FadeOut(grid), run_time=1.1)
        self.hold(0.6)

    def window_of(self, row: int) -> list[int]:
        """Return the words that a row of the mask sees."""
        return np.flatnonzero(np.asarray(self.trace.mask[row].values)).tolist()

    def seen(self, grid: TensorGrid, row: int) -> np.ndarray:
        """Return the middle of the cells that a row's window covers."""
        first = max(0, row - int(self.trace.config.window) + 1)
        return (grid.cell_center(row, first) + grid.cell_center(row, row)) / 2

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Straighten the band")
    def straighten(self):
        """The work is now a strip: length times window."""
        trace = self.trace
        count, window = len(trace.tokens), int(trace.config.window)
        place, names = self.square(-3.1)
        cell = place.cell
        rows = []
        for row in range(count):
            part = TensorGrid(trace.band_weights[row], cell=cell, number=None, map="SCORE", limit=LIMIT)
            rows.append(part.move_to(place.cell_center(row, row) + (window - 1) / 2 * cell[0] * LEFT))
        ghost = Frame(SIDE, SIDE, color=theme.LINES, line=theme.HAIRLINE).move_to(place)
        self.say("Push the slanted band upright: nothing is lost.")
        self.play(FadeIn(ghost, names, *rows), run_time=theme.QUICK)
        left = place.get_left() + (window / 2) * cell[0] * RIGHT
        moves = [part.animate.move_to([left[0], part.get_center()[1], 0]) for part in rows]
        self.play(LaggedStart(*moves, lag_ratio=0.04), run_time=2.2)
        self.play(FadeOut(ghost), run_time=0.3)

        lengths = trace.pairs_curve_N
        last = len(lengths) - 1
        chart = Chart(
            4.9, 3.4, x=(0, float(lengths[last])), y=(0, float(trace.pairs_curve_full[last])),
            x_ticks=[0, 64, 128, 192, 256], y_ticks=[0, 10000, 20000, 30000], x_format=".0f",
            y_format=lambda n: format_number(n, "count"), x_label="words of text", y_label="weights to compute",
        ).move_to([1.85, 0.35, 0])  # fmt: skip
        full = chart.curve(lengths, trace.pairs_curve_full, role="LOSS", label="triangle", drawn=0, fill=True)
        strip = chart.curve(lengths, trace.pairs_curve_window, role="SCORE", label="band", drawn=0, fill=True)
        self.say("The work is now a strip: as long as the text, as wide as the window.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(full, 1.0).draw_curve(strip, 1.0), run_time=3.0)
        ratio = Label(f"{trace.pairs_ratio:.0f}×", size=theme.BIG_NUMBER, bold=True).move_to([5.3, 1.0, 0])
        less = Label("less", color=theme.MUTED).next_to(ratio, DOWN, buff=0.2)
        self.play(FadeIn(ratio, less), run_time=theme.QUICK)
        self.hold(0.8)

    # -- chapters 4 and 5 -------------------------------------------------------------------------------------------

    @chapter("Layers pass it on")
    def relay(self):
        """Each layer adds one window: reach grows with depth."""
        trace = self.trace
        stage = ConeStage(trace)
        top = len(stage.rows) - 1
        self.say("The last word reads its window: the states of a few words, one layer below.")
        self.play(FadeIn(*stage.rows, *stage.names, stage.text), run_time=theme.MOVE)
        self.play(stage.rows[top].animate.set_values(trace.cone[top : top + 1]), run_time=0.4)
        for layer in range(top - 1, -1, -1):
            if layer == top - 2:
                self.say("Each of those has read a window of its own.")
            if layer == 0:
                self.say("Each layer adds one window: reach grows with depth.")
            links = stage.links(layer)
            self.play(FadeIn(links), run_time=0.8)
            reach = stage.reach(layer)
            self.play(stage.rows[layer].animate.set_values(trace.cone[layer : layer + 1]), FadeIn(reach), run_time=0.7)
            self.hold(0.5)
        real = Label(
            f"{trace.real_name}: {trace.real_layers:d} layers, window {trace.real_window:,}: "
            f"{trace.real_reach:,} words back", color=theme.MUTED,
        ).move_to([0, 2.85, 0]).align_to([-6.6, 0, 0], LEFT)  # fmt: skip
        self.play(FadeIn(real), run_time=0.4)
        self.hold(1.4)

    @chapter("Reach is not influence")
    def influence(self):
        """Far words can arrive, but only as a whisper."""
        trace = self.trace
        stage = ConeStage(trace)
        links = [stage.links(layer) for layer in range(len(stage.rows) - 1)]
        for layer, row in enumerate(stage.rows):
            row.set_values(trace.cone[layer : layer + 1])
        glow = Label("strength of color: measured influence on the last word", color=theme.MUTED)
        glow.move_to([0, 2.85, 0]).align_to([-6.6, 0, 0], LEFT)
        self.add(*links, *stage.rows, *stage.names, stage.text)
        self.say("How much does the last word really change when one of these changes?")
        self.play(
            *(row.animate.set_values(trace.influence_cone[k : k + 1]) for k, row in enumerate(stage.rows)),
            *(link.animate.set_opacity(0.25) for link in links),
            FadeIn(glow),
            run_time=1.6,
        )
        self.hold(0.4)
        distance = trace.distance
        chart = Chart(
            8.2, 3.7, x=(0, float(distance[len(distance) - 1])), y=(0, 1), x_ticks=range(0, len(distance), 3),
            y_ticks=[0, 0.5, 1], x_format=".0f", y_format=".0%", x_label="words back from the last one",
            y_label=f"measured influence, mean of {trace.influence_documents:d} stories",
        ).move_to([-0.9, 0.35, 0])  # fmt: skip
        whole = chart.curve(
            distance, trace.influence_full, role="FROZEN", label="whole past in view", drawn=0, dash=(0.12, 0.1)
        )
        near = chart.curve(
            distance, trace.influence_window, role="SCORE", label="window", drawn=0, dots=0.07, fill=True
        )
        self.say("Far words can arrive, but only as a whisper; beyond the reach, none.")
        self.clear_stage()
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(near, 1.0), run_time=1.6)
        edge = Label(f"edge of the reach: {trace.influence_edge:.0%}", color=theme.SCORE, bold=True)
        edge.move_to(chart.point(near, int(trace.reach[len(trace.reach) - 1])) + 0.55 * UP + 0.9 * RIGHT)
        self.play(FadeIn(edge), run_time=0.3)
        self.play(chart.animate(rate_func=linear).draw_curve(whole, 1.0), run_time=1.0)
        self.hold(0.3)
        self.say("Think of a layer as an average: more layers carry farther, but thinner.")
        self.clear_stage()
        self.averaging()

    def averaging(self) -> None:
        """Draw the averaging model's kernel for deeper and deeper stacks."""
        trace = self.trace
        place = trace.kernel_distance
        chart = Chart(
            9.2, 3.7, x=(0, float(place[len(place) - 1])), y=(0, largest(trace.kernel_by_depth)),
            y_ticks=[0, 0.1, 0.2, 0.3, 0.4], x_ticks=[0, *map(float, trace.kernel_reach)], x_format=".0f",
            y_format=".1f",
            y_label=f"what arrives if a layer keeps {trace.config.residual_weight:.0%} and averages the rest",
            x_label="words back",
        ).move_to([-0.6, 0.35, 0])  # fmt: skip
        curves = [
            chart.curve(place, trace.kernel_by_depth[k], role="SCORE", drawn=0, fill=True)
            for k in range(len(trace.depths))
        ]
        depth = Readout(lambda n: f"{n:d} layers", trace.depths[0], face="words", size=0.3, bold=True)
        depth.move_to([3.0, 1.7, 0]).align_to([1.7, 0, 0], LEFT)
        reach = Readout(lambda n: f"reach {n:d}", trace.kernel_reach[0], face="words", size=0.24, color=theme.MUTED)
        reach.next_to(depth, DOWN, buff=0.3).align_to(depth, LEFT)
        spread = Readout(
            lambda s: f"spread {s:.1f}", trace.kernel_std[0], face="words", size=0.24, bold=True, color=theme.SCORE
        )
        spread.next_to(reach, DOWN, buff=0.25).align_to(depth, LEFT)
        edge = Stroke(
            chart.place(trace.kernel_reach[0], 0.0), chart.place(trace.kernel_reach[0], 0.0) + 0.6 * UP,
            color=theme.MUTED, dash=(0.08, 0.06),
        )  # fmt: skip
        self.play(FadeIn(chart, depth, reach, spread, edge), run_time=theme.QUICK)
        for k, curve in enumerate(curves):
            drawn = chart.animate.draw_curve(curve, 1.0)
            if k:
                drawn = drawn.show_curve(curves[k - 1], 0.35)
            self.play(
                drawn,
                depth.animate.set_value(trace.depths[k]),
                reach.animate.set_value(trace.kernel_reach[k]),
                spread.animate.set_value(trace.kernel_std[k]),
                edge.animate.move_to(chart.place(trace.kernel_reach[k], 0.0) + 0.3 * UP),
                run_time=0.7,
            )
            self.hold(0.2)
        self.hold(0.5)

    # -- chapter 6 and the loop -------------------------------------------------------------------------------------

    @chapter("A cache that bites its tail")
    def ring(self):
        """Slot = position mod window. Memory never grows."""
        trace = self.trace
        window, count = int(trace.config.window), len(trace.tokens)
        stage = RingStage(trace)
        law = Readout(self.slot_law, trace.ring_positions[0, 0], size=0.3, bold=True)
        law.move_to([-4.75, 0.55, 0])
        law_name = Label("position mod window = slot", color=theme.MUTED).next_to(law, UP, buff=0.3)
        words = Readout(lambda n: counted(n, "word"), trace.pairs_curve_N[0], face="words", size=0.3, bold=True)
        words.move_to([5.3, 1.1, 0]).align_to([4.75, 0, 0], LEFT)
        slots = Label(counted(trace.config.window, "slot"), size=0.3, bold=True, color=theme.KEY)
        slots.next_to(words, DOWN, buff=0.35).align_to(words, LEFT)
        self.say("With a window, older keys are never read again. So keep a ring of slots.")
        self.play(FadeIn(*stage.parts(), law, law_name, words, slots), run_time=theme.MOVE)
        for position in range(count):
            if position == window:
                self.say("The next word overwrites the oldest. Memory never grows.")
            if position == 2 * window:
                self.say("The query reads all slots at once. Their order does not matter.")
            pace = 1.0 if position in (window, window + 1, 2 * window) else 0.36
            place = trace.ring_positions[position, int(trace.ring_slot[position])]
            news = [law.animate.set_value(place, (0, 0)), words.animate.set_value(trace.pairs_curve_N[position])]
            self.store(stage, position, pace, news)
        error = Readout(lambda e: f"{e:.0e}", trace.max_abs_diff_ring, size=0.32, bold=True).move_to([4.75, -1.0, 0])
        note = Label("largest\ndifference", color=theme.MUTED)
        error.align_to(slots, LEFT)
        note.next_to(error, DOWN, buff=0.25).align_to(error, LEFT)
        sizes = trace.real_cache_bytes
        real = Label(
            f"{trace.real_name}, {trace.real_length:,} tokens:\n{sizes[0]:binary} become {sizes[1]:binary}\n"
            f"with a ring of {trace.real_window:,}", color=theme.MUTED,
        ).move_to([0, -1.95, 0]).align_to([-6.6, 0, 0], LEFT)  # fmt: skip
        self.say("The result is that of the whole text with a mask.")
        self.play(FadeIn(error, note), run_time=theme.QUICK)
        self.play(FadeIn(real), run_time=theme.QUICK)
        self.hold(1.0)

    def slot_law(self, position: Any) -> str:
        """Return how a position finds its slot."""
        return f"{position:d} mod {self.trace.config.window:d} = {self.trace.ring_slot[int(position)]:d}"

    @loop
    def turning(self):
        """Every new word overwrites the oldest one."""
        trace = self.trace
        window, count = int(trace.config.window), len(trace.tokens)
        first, last = window - 1, min(2 * window, window + 6, count)
        stage = RingStage(trace, wide=True)
        stage.fill(first)
        name = Label(f"key cache:\n{counted(trace.config.window, 'slot')}", size=0.24, color=theme.KEY, bold=True)
        name.move_to([-5.2, 1.4, 0])
        self.add(*stage.parts(), *stage.contents, stage.gaze, name)
        self.hold(0.3)
        for position in range(first + 1, last):
            self.store(stage, position, min(0.75, 3.5 / (last - first - 1)))
        start = RingStage(trace, wide=True)
        start.fill(first)
        old = [*stage.contents, stage.gaze]
        self.play(
            FadeOut(*old), FadeIn(*start.contents, start.gaze), stage.text.animate.become(start.text),
            stage.hand.animate.move_to(start.hand), stage.asker.animate.become(start.asker), run_time=0.6,
        )  # fmt: skip

    def store(self, stage: "RingStage", position: int, pace: float, news: Sequence[Any] = ()) -> None:
        """Drop a word into its slot and let its query read the ring; `news` changes while the word is chosen."""
        slot = int(self.trace.ring_slot[position])
        new = stage.content(position)
        flight = stage.text.tile(position)
        old = stage.contents[slot] if slot < len(stage.contents) else None
        gone = [FadeOut(stage.gaze)] if stage.gaze is not None else []
        self.play(
            stage.text.animate.focus(stage.window_of(position)), stage.hand.animate.move_to(stage.places[slot]),
            stage.asker.animate.become(stage.asking(position)), *gone, *news,
            run_time=0.45 * pace,
        )  # fmt: skip
        self.add(flight)
        leaving = [FadeOut(old, shift=0.3 * stage.outward(slot))] if old is not None else []
        self.play(flight.animate.become(new[0]), *leaving, run_time=0.7 * pace)
        self.remove(flight)
        self.add(new)
        if old is None:
            stage.contents.append(new)
        else:
            stage.contents[slot] = new
        stage.gaze = stage.look(position)
        self.play(FadeIn(stage.gaze), run_time=0.35 * pace)
        self.hold(0.4 * pace)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("What it costs this model")
    def cost(self):
        """The real loss of our model when the window shrinks."""
        trace = self.trace
        windows = trace.loss_windows
        chart = Chart(
            8.0, 4.0, x=(float(windows[0]), float(windows[len(windows) - 1])), y=(0, largest(trace.loss_by_window)),
            x_ticks=[1, 2, 4, 8, 16, 32, 64], y_ticks=[0, 2, 4, 6, 8], log_x=True, x_format=".0f",
            x_label="window, in words",
            y_label="loss on held-out stories, nats a word",
        ).move_to([-0.8, 0.35, 0])  # fmt: skip
        chart.level(trace.loss_full, role="REFERENCE", label="whole past")
        plain = chart.curve(windows, trace.loss_by_window, role="LOSS", drawn=0, dots=0.07)
        sink = chart.curve(windows, trace.loss_by_window_with_sink, role="WEIGHT", drawn=0, dash=(0.1, 0.08))
        self.say("Our model was trained with the whole past. Now take it away.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(plain, 1.0), run_time=2.4)
        self.say("Long windows cost nothing. Below the length of a story, it breaks.")
        last = len(windows) - 1
        stop = Readout(lambda n: f"window {n:d}", windows[last - 1], face="words", size=0.3, bold=True)
        stop.move_to([1.9, 1.7, 0]).align_to([0.6, 0, 0], LEFT)
        loss = Readout(lambda v: f"{v:.2f}", trace.loss_by_window[last - 1], size=0.36, bold=True, color=theme.LOSS)
        loss.next_to(stop, DOWN, buff=0.3).align_to(stop, LEFT)
        self.play(chart.animate.ride(plain, (last - 1) / last), FadeIn(stop, loss), run_time=0.4)
        for k in (last - 2, last - 3, last - 4):
            self.hold(0.4)
            self.play(
                chart.animate.ride(plain, k / last), stop.animate.set_value(windows[k]),
                loss.animate.set_value(trace.loss_by_window[k]), run_time=0.6,
            )  # fmt: skip
        self.say("Keeping the first word in view helps this small model only a little.")
        name = Label("first word kept in view", color=theme.WEIGHT, bold=True)
        name.move_to(chart.point(sink, 3) + 0.3 * UP).align_to(chart.point(plain, 3) + 0.9 * RIGHT, LEFT)
        self.play(FadeOut(stop, loss), chart.animate.ride(plain, float("nan")), run_time=0.2)
        self.play(chart.animate(rate_func=linear).draw_curve(sink, 1.0), FadeIn(name), run_time=1.2)
        self.say("Train on with the window in place, and the layers learn to pass words along.")
        self.play(FadeOut(name), chart.animate.show_curve(sink, 0.0), run_time=0.3)
        relay = chart.curve(trace.trained_windows, trace.loss_trained, role="KEY", drawn=0, dots=0.08)
        learned = Label(f"after {trace.trained_steps:d} steps of training with it", color=theme.KEY, bold=True)
        learned.move_to(chart.point(relay, 0) + 0.32 * UP).align_to(chart.point(plain, 0) + 0.3 * RIGHT, LEFT)
        same = windows.values.tolist().index(int(trace.trained_windows[0]))
        stop.set_value(windows[same])
        loss.set_value(trace.loss_by_window[same])
        then = Readout(lambda v: f"→ {v:.2f}", trace.loss_trained[0], size=0.36, bold=True, color=theme.KEY)
        then.next_to(loss, RIGHT, buff=0.3)
        self.play(chart.animate(rate_func=linear).draw_curve(relay, 1.0), FadeIn(learned), run_time=1.2)
        self.play(FadeIn(stop, loss, then), run_time=theme.QUICK)
        self.hold(0.8)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("Mix local and global")
    def mixed(self):
        """A few global layers restore the long view."""
        trace = self.trace
        layers, count = trace.hybrid_masks.shape[:2]
        cell = 1.5 / count
        masks = [
            TensorGrid(trace.hybrid_masks[k], cell=(cell, cell), number=None, map="SCORE", limit=1.0).move_to(
                [-5.3 + 2.1 * k, 1.75, 0]
            )
            for k in range(layers)
        ]
        last = masks[-1]
        names = [
            Label("window", color=theme.MUTED).next_to(mask, DOWN, buff=0.2) if mask is not last
            else Label("whole past", color=theme.SCORE, bold=True).next_to(mask, DOWN, buff=0.2)
            for mask in masks
        ]  # fmt: skip
        bars = Bars(
            trace.hybrid.cache_fraction, length=5.2, step=0.6, role=["LOSS", "SCORE", "KEY"], number=".0%",
            number_size=0.24, names=trace.hybrid.name, limit=1.0,
        ).move_to([1.15, -1.55, 0]).hide()  # fmt: skip
        unit = Label(
            f"cache at {trace.hybrid_length:,} tokens, window {trace.hybrid_window:,} (pattern of Gemma 3)",
            color=theme.MUTED,
        ).next_to(bars, UP, buff=0.15).align_to(bars, LEFT)  # fmt: skip
        self.say("Five layers with a window, then one that sees everything, and again.")
        self.play(
            LaggedStart(*(FadeIn(Group(m, n)) for m, n in zip(masks, names, strict=True)), lag_ratio=0.25), run_time=2.2
        )
        self.say("A few global layers restore the long view, for a fifth of the cache.")
        self.play(FadeIn(bars, unit), run_time=0.4)
        self.play(bars.animate.show(), run_time=1.2)
        self.hold(1.0)


class ConeStage:
    """Rows of states, one for each layer over the words, and the links that a window leaves between them."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        count = len(trace.tokens)
        step = min(0.72, 11.4 / count)
        self.rows = []
        for layer in range(len(trace.cone)):
            row = LayerStack(
                trace.cone[layer : layer + 1],
                limit=1.0,
                step=(step, 0.5),
                dot=min(0.16, 0.3 * step),
                change_role="SCORE",
            )
            row.move_to([0.95, -1.5 + 1.28 * layer, 0]).connect(backward=False, forward=False).darken()
            self.rows.append(row)
        self.text = TokenRow(trace.tokens, tile=step, size=theme.SMALL).next_to(self.rows[0], DOWN, buff=0.1)
        self.names = [
            Label(words, size=theme.SMALL, color=theme.MUTED).next_to(row, LEFT, buff=0.25)
            for words, row in zip(
                ("words", *(f"after layer {number:d}" for number in trace.layer_numbers[1:])), self.rows, strict=True
            )
        ]

    def links(self, layer: int) -> Links:
        """Return what the states above `layer` inside the cone read there."""
        count = len(self.trace.tokens)
        starts = [self.rows[layer + 1].dot_center(0, k) for k in range(count)]
        ends = [self.rows[layer].dot_center(0, k) for k in range(count)]
        return Links(self.trace.cone_links[layer], starts, ends, line=0.025, bend=0.0).set_z_index(-1)

    def reach(self, layer: int) -> Label:
        """Return how far back the last word sees, left of the cone's edge."""
        count = len(self.trace.tokens)
        layers_down = len(self.rows) - 1 - layer
        back = self.trace.reach[layers_down]
        label = Label(f"{back:d} words back", color=theme.SCORE, bold=True)
        edge = self.rows[layer].dot_center(0, max(0, count - 1 - int(back)))
        return label.move_to(edge + 0.42 * UP + 0.35 * LEFT, RIGHT)


class RingStage:
    """The text in a row, and a ring of slots below it that holds the last words' keys."""

    def __init__(self, trace: Any, *, wide: bool = False) -> None:
        self.trace = trace
        count, window = len(trace.tokens), int(trace.config.window)
        self.text = TokenRow(trace.tokens, tile=min(0.82, 13.0 / count), size=theme.SMALL).move_to([0, 2.6, 0])
        self.text.recede()
        self.center = np.array([0.0 if wide else 0.55, -0.4, 0])
        radius = np.array([3.6 if wide else 2.5, 1.72, 0])
        angles = [np.pi / 2 - 2 * np.pi * slot / window for slot in range(window)]
        self.places = [self.center + radius * [np.cos(a), np.sin(a), 0] for a in angles]
        self.size = np.array((1.9, 1.2) if window <= 6 else (0.8, 0.66))
        around = np.linspace(0, 2 * np.pi, 80)
        self.track = Stroke(*(self.center + radius * [np.cos(a), np.sin(a), 0] for a in around), line=theme.THICK)
        self.slots = [Frame(*self.size, color=theme.MUTED, fill=theme.SURFACE).move_to(place) for place in self.places]
        self.hand = Frame(*(self.size + 0.18), color=theme.QUERY, line=theme.THICK).move_to(self.places[0])
        self.query = [
            Frame(1.4, 1.0, color=theme.QUERY, fill=theme.BACKGROUND).move_to(self.center),
            Label("query of", color=theme.QUERY, bold=True).move_to(self.center + 0.27 * UP),
        ]
        self.asker = self.asking(0)
        self.contents: list[Group] = []
        self.gaze: Any = None

    def parts(self) -> list[Any]:
        return [self.track, self.text, *self.slots, self.hand, *self.query, self.asker]

    def window_of(self, position: int) -> list[int]:
        """Return the words that are in the ring after `position` was stored."""
        held = self.trace.ring_positions[position].values.tolist()
        return [int(place) for place in held if place >= 0]

    def outward(self, slot: int) -> np.ndarray:
        way = self.places[slot] - self.center
        return way / np.linalg.norm(way)

    def content(self, position: int) -> Group:
        """Return a word and its key, lying in its slot."""
        trace, slot = self.trace, int(self.trace.ring_slot[position])
        wide, high = self.size
        word = TokenRow(trace.tokens[position : position + 1], tile=wide - 0.3, size=0.24 if wide > 1 else theme.SMALL)
        key = TensorGrid(
            trace.ring_keys[position, slot], cell=(0.095 * wide, 0.22 * high), number=None,
            limit=0.8 * largest(trace.ring_keys), role="KEY",
        )  # fmt: skip
        word.move_to(self.places[slot] + 0.23 * high * UP)
        key.move_to(self.places[slot] + 0.25 * high * DOWN)
        return Group(word, key)

    def asking(self, position: int) -> TokenRow:
        """Return the word whose query reads the ring."""
        return TokenRow(self.trace.tokens[position : position + 1], tile=1.1).move_to(self.center + 0.16 * DOWN)

    def look(self, position: int) -> Links:
        """Return the query's look at all slots, as strong as its weights."""
        links = Links(self.trace.ring_weights[position], [self.center], self.places, limit=0.7, bend=0.0, line=0.2)
        return links.set_z_index(-1)

    def fill(self, position: int) -> None:
        """Put everything where it is after `position` was stored."""
        held = self.trace.ring_positions[position].values.tolist()
        self.contents = [self.content(int(place)) for place in held if place >= 0]
        self.text.focus(self.window_of(position))
        self.hand.move_to(self.places[int(self.trace.ring_slot[position])])
        self.asker = self.asking(position)
        self.gaze = self.look(position)
