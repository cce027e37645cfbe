"""Draws internals_math.kv_cache.Trace."""

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, Mobject, linear, rush_into

from internals_math import kv_cache
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.layer_stack import LayerStack
from scenes.kit.motion import RowByRow, Visit, pour
from scenes.kit.shapes import Frame, arrow
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.traced import format_number

CELL = (0.64, 0.42)
TOP = 2.15  # upper edge of the big grids


class KVCache(TopicScene):
    """A model writes one token at a time. Why does it not have to re-read the whole text for every token?"""

    core = kv_cache
    notation = ("FP16",)
    takeaway = (
        "Old keys and values can never change, so each is computed once and kept: "
        "every new token asks one new question over a memory that only grows."
    )
    loop_alt = (
        "A single query row sweeps over a stack of cached key rows, turns into weights, mixes the cached value rows "
        "into one output, and one new row is added to the cache."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("The same work again")
    def same_work_again(self):
        """Every new token recomputes keys that come out identical."""
        trace = self.trace
        steps = len(trace.contexts)
        first, last = int(trace.contexts[0]), int(trace.contexts[-1])
        text = TokenRow(trace.tokens[:last]).hide(slice(first, None)).move_to([0, 2.7, 0]).align_to([-6.6, 0, 0], LEFT)
        keys = self.recomputed_keys(steps - 1).move_to([-2.75, 0, 0]).align_to([0, TOP, 0], UP).hide()
        names = RowNames(trace.tokens[:last], keys).hide(slice(first, None))
        title = Label("keys", color=theme.KEY, bold=True).next_to(keys, RIGHT, buff=0.3).align_to(keys, UP)
        unit = Label("key rows computed", color=theme.MUTED).move_to([5.3, 2.62, 0])
        count = Readout(lambda n: f"{n:d}", trace.rows_without_cache_total[0], size=0.36, bold=True)
        count.next_to(unit, LEFT, buff=0.25).align_to(unit, DOWN)

        self.say("To write the next word, the model looks back at a key for every word so far.")
        self.play(FadeIn(text), FadeIn(names), run_time=theme.QUICK)
        self.add(keys, title)
        self.play(RowByRow(keys, range(first)), FadeIn(count, unit), run_time=1.4)
        for step in range(1, steps):
            rows = int(trace.contexts[step])
            if step == 1:
                self.say("It writes one. Without a cache, the whole text goes through again.")
            self.play(text.animate.show(rows - 1), names.animate.show(rows - 1), run_time=0.4)
            if step == steps - 1:
                before = self.recomputed_keys(step - 1).align_to(keys, UP + LEFT)
                beside = np.array([3.7, before.get_y(), 0])
                earlier = Label("one pass earlier", color=theme.MUTED).move_to(beside).align_to([0, -2.3, 0], UP)
                self.add(before)
                self.play(keys.animate.hide(), before.animate.move_to(beside), FadeIn(earlier), run_time=0.7)
            else:
                self.play(keys.animate.hide(), run_time=0.3)
            keys.set_values(trace.keys_recomputed[step])
            total = trace.rows_without_cache_total[step]
            self.play(
                RowByRow(keys, range(rows)), count.animate.set_value(total, RIGHT), run_time=1.3 if step == 1 else 0.9
            )

        self.say("Every new token recomputes keys that come out identical.")
        self.play(before.animate.align_to(keys, LEFT), FadeOut(title, earlier), run_time=1.3)
        change = TensorGrid(trace.key_differences[steps - 1, : last - 1], cell=CELL, limit=keys.limit, role="KEY")
        change.align_to(keys, UP + LEFT)
        self.play(FadeIn(change), FadeOut(before), keys.animate.recede(last - 1), run_time=0.9)
        worst = Readout(lambda d: f"{d:.1e}", trace.max_abs_diff[steps - 1], size=0.3, bold=True).move_to([3.2, 0, 0])
        words = Label("largest difference\nbetween old and new", color=theme.MUTED).next_to(worst, DOWN, buff=0.3)
        self.play(FadeIn(worst, words), run_time=theme.QUICK)
        self.hold(1.2)

    def recomputed_keys(self, step: int) -> TensorGrid:
        """Return the keys that forward pass `step` computed from the whole text."""
        trace = self.trace
        rows = int(trace.contexts[step])
        limit = largest(trace.keys)
        return TensorGrid(trace.keys_recomputed[step, :rows], cell=CELL, limit=limit, role="KEY")

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Why old keys cannot change")
    def past_is_final(self):
        """A token only looks back, so the past is already final."""
        trace = self.trace
        first, last = int(trace.contexts[0]), int(trace.contexts[-1])
        limit = largest(trace.key_change_bidirectional)
        stack = LayerStack(trace.key_change_causal, limit=limit, step=(0.97, 1.45)).move_to([0.0, 0.45, 0])
        stack.hide(slice(first, None))
        text = TokenRow(trace.tokens[:last], tile=0.97, size=0.18).next_to(stack, DOWN, buff=0.05)
        text.hide(slice(first, None))
        layers = [
            Label(f"{name} layer", size=0.18, color=theme.MUTED).next_to(stack.dot_center(k, 0), LEFT, buff=0.3)
            for k, name in enumerate(("first", "second", "third"))
        ]
        self.say("Inside the model, a word passes what it knows up, and only to later words.")
        self.play(FadeIn(stack, text, *layers), run_time=theme.MOVE)
        self.hold(0.8)
        for position in range(first, last):
            grown = stack.animate.show(position).light(position)
            self.play(grown, text.animate.show(position), run_time=0.7 if position == first else 0.4)
        self.say("A token only looks back, so the past is already final.")
        moved = [self.key_move(stack, layer, trace.max_change_causal[layer]) for layer in range(len(layers))]
        head = Label("old keys\nmove by", size=0.18, color=theme.MUTED).next_to(moved[-1], UP, buff=0.35)
        self.play(FadeIn(head, *moved), run_time=theme.QUICK)
        self.hold(1.0)

        self.say("Let words look ahead, and old keys move from the second layer on.")
        self.play(stack.animate.connect(backward=True), run_time=theme.MOVE)
        lit = stack.copy().set_values(trace.key_change_bidirectional)
        for position in range(first, last):
            lit.light(position)
        changes = [
            value.animate.set_value(trace.max_change_bidirectional[layer]).set_color(theme.LOSS)
            for layer, value in enumerate(moved)
            if layer
        ]
        self.play(stack.animate.become(lit), *changes, run_time=1.4)
        self.hold(1.2)

    def key_move(self, stack: LayerStack, layer: int, value) -> Readout:
        """Return how far the keys of a layer moved, beside its row."""
        move = Readout(lambda v: f"{v:.2f}" if v > 0 else f"{v:.0f}", value, size=0.26, bold=True)
        return move.move_to([5.85, stack.layer_center(layer)[1], 0])

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Compute once, keep")
    def memoize(self):
        """Compute the new key and value once, then keep them."""
        trace = self.trace
        first, steps = int(trace.contexts[0]), len(trace.contexts)
        keys, values = (
            self.small_cache(trace.keys, first, "KEY", 2.35),
            self.small_cache(trace.values, first, "VALUE", 5.35),
        )
        names = RowNames(trace.tokens[: first + steps - 1], keys).hide(slice(first, None))
        below = [
            Label(words, color=color, bold=True).next_to(grid, UP, buff=0.3)
            for words, color, grid in (("kept keys", theme.KEY, keys), ("kept values", theme.VALUE, values))
        ]
        to_key, to_value = self.projection(trace.w_key, -4.55, "KEY"), self.projection(trace.w_value, -1.7, "VALUE")
        signs = [
            Formula(f"{{{{ {name} : sign }}}}", size=0.24, sign=role).next_to(matrix, UP, buff=0.3)
            for name, role, matrix in (("W_K", "KEY", to_key), ("W_V", "VALUE", to_value))
        ]
        count = Readout(lambda n: f"{n:d}", trace.rows_with_cache_total[0], size=0.36, bold=True).move_to(
            [-1.4, -2.42, 0]
        )
        unit = (
            Label("key rows computed so far", color=theme.MUTED).next_to(count, RIGHT, buff=0.3).align_to(count, DOWN)
        )

        self.say("Two weight matrices turn each word into a key and a value.")
        self.play(FadeIn(to_key, to_value, *signs), run_time=theme.QUICK)
        self.play(FadeIn(keys, values, names, *below, count, unit), run_time=theme.MOVE)
        for step in range(1, steps):
            row = first + step - 1
            speed = 1.0 if step == 1 else 0.55
            if step == 2:
                self.say("Compute the new key and value once, then keep them.")
            word = TokenRow(trace.tokens[row : row + 1]).move_to([-6.0, 2.35, 0])
            state = (
                TensorGrid(
                    trace.inputs[row].reshape(-1, 1), cell=(0.34, 0.105), number=None, limit=largest(trace.inputs)
                )
                .move_to([-6.35, 0, 0])
                .align_to(to_key, UP)
            )
            self.play(FadeIn(word, state, shift=0.2 * DOWN), run_time=0.6 * speed)
            flights = []
            for matrix, field, grid in ((to_key, trace.keys, keys), (to_value, trace.values, values)):
                product = TensorGrid(field[row], cell=(0.3, 0.34), number=None, limit=grid.limit, role=grid.role)
                flights.append(product.next_to(matrix, DOWN, buff=0.35))
                grid.append_rows(field[: row + 1])
            through = [state.copy() for _ in range(2)]
            self.add(*through)
            self.play(
                *(
                    copy.animate.move_to(matrix).set_opacity(0)
                    for copy, matrix in zip(through, (to_key, to_value), strict=True)
                ),
                LaggedStart(*(FadeIn(flight, shift=0.5 * DOWN) for flight in flights), lag_ratio=0.2),
                run_time=1.1 * speed,
            )
            self.play(
                *(
                    flight.animate.move_to(grid.row_center(row))
                    for flight, grid in zip(flights, (keys, values), strict=True)
                ),
                names.animate.show(row),
                run_time=1.1 * speed,
            )
            keys.show(row)
            values.show(row)
            self.remove(*flights)
            self.play(
                count.animate.set_value(trace.rows_with_cache_total[step], RIGHT),
                FadeOut(word, state),
                run_time=0.5 * speed,
            )
        without = Label(f"{trace.rows_without_cache_total[steps - 1]:d} without the cache", color=theme.LOSS)
        without.next_to(unit, RIGHT, buff=0.4).align_to(unit, DOWN)
        self.play(FadeIn(without), run_time=theme.QUICK)
        self.hold(1.0)

    def small_cache(self, field, rows: int, role: str, x: float) -> TensorGrid:
        """Return a cache as colors alone, hung from the same upper edge."""
        grid = TensorGrid(field[:rows], cell=(0.3, 0.34), number=None, limit=largest(field), role=role)
        return grid.move_to([x, 0, 0]).align_to([0, 1.8, 0], UP)

    def projection(self, weight, x: float, role: str) -> TensorGrid:
        """Return a projection matrix, one column a number of the result."""
        grid = TensorGrid(weight.T, cell=(0.24, 0.105), number=None, role=role)
        return grid.move_to([x, 0, 0]).align_to([0, 1.8, 0], UP)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("A new question over the same memory")
    def same_memory(self):
        """Only the query is new. The memory is the same."""
        first = 1  # the first pass after the prefill
        stage = MemoryStage(self.trace, first)
        self.say("The newest word turns into one query and asks every kept key.")
        self.play(FadeIn(*stage.parts(), *stage.titles()), run_time=theme.MOVE)
        self.ask(stage, first, pace=1.0, explain=True)
        self.say("Only the query is new. The memory is the same.")
        for step in range(first + 1, len(self.trace.contexts)):
            if step == first + 2:
                self.say("It grows by one row with every word that is written.")
            self.grow(stage, step)
            self.ask(stage, step, pace=0.42)
        self.hold(theme.HOLD)

    @loop
    def one_step(self):
        """One decode step, from the query to the row that is added."""
        step = 1  # the first pass after the prefill
        stage = MemoryStage(self.trace, step, row_height=0.54, top=2.5, foot=-3.25)
        self.add(*stage.parts(), *stage.titles())
        self.hold(0.3)
        self.ask(stage, step, pace=0.6)
        self.grow(stage, step + 1)
        self.hold(0.3)
        row = int(self.trace.contexts[step + 1]) - 1
        self.play(*(part.animate.hide(row) for part in stage.parts()), run_time=0.5)

    def ask(self, stage: "MemoryStage", step: int, *, pace: float, explain: bool = False) -> None:
        """Sweep one query over the keys, turn the scores into weights, and mix the values."""
        trace, rows = self.trace, int(self.trace.contexts[step])
        query = stage.query(step)
        scores = stage.bars(step)
        meaning = stage.name("scores", scores, theme.SCORE)
        strip = TensorGrid(trace.queries[step], cell=(query.cell[0], 0.09), number=None, limit=query.limit)
        beam = Group(Frame(query.width + 0.1, stage.keys.cell[1] + 0.04, color=theme.QUERY), strip)
        strip.align_to(beam, DOWN).shift(0.02 * UP)
        beam.move_to(query)
        who = Label("query", color=theme.QUERY, bold=True).next_to(query, LEFT, buff=0.25)

        def grow_bar(row: int, share: float) -> None:
            scores.presence = np.where(np.arange(rows) == row, share, scores.presence)

        asking = stage.names.animate.focus(rows - 1)
        self.play(FadeIn(query, who, shift=0.15 * DOWN), FadeIn(meaning), asking, run_time=0.6 * pace)
        self.add(scores, beam)
        stops = [stage.keys.row_center(row) for row in range(rows)]
        self.play(Visit(beam, stops, on_rest=grow_bar, changes=[scores]), run_time=0.4 * pace * rows)
        self.play(FadeOut(beam), run_time=0.3 * pace)
        if explain:
            self.say("Softmax turns the scores into weights that add up to one.")
        weights = trace.weights[step, :rows]
        self.play(
            scores.animate.set_values(weights, limit=1.0, signed=0.25),
            meaning.animate.set_text("weights", keep=(0, 0)),
            run_time=0.9 * pace,
        )
        if explain:
            newest, most = trace.tokens[rows - 1], trace.most_attended[step]
            self.say(f"“{newest}” looks mostly at “{most}”. The weights mix the values.")
        shares = stage.values.copy().weigh_rows(trace.weights[step, : stage.values.rows])
        self.play(stage.values.animate.become(shares), run_time=0.6 * pace)
        output = stage.output(step)
        poured = [stage.values.row(row) for row in range(rows)]
        for row, copy in enumerate(poured):
            copy.set_opacity(float(shares.emphasis[row, 0])).hide_numbers()
        name = Label("output", color=theme.OUTPUT, bold=True).next_to(output, LEFT, buff=0.3)
        self.play(
            pour(poured, output, run_time=1.1 * pace),
            FadeIn(output, name, run_time=1.1 * pace, rate_func=rush_into),
        )
        self.remove(*poured)
        self.hold(0.8 * pace)
        self.play(
            FadeOut(query, who, scores, meaning, output, name),
            stage.values.animate.lead(),
            stage.names.animate.lead(),
            run_time=0.5 * pace,
        )

    def grow(self, stage: "MemoryStage", step: int) -> None:
        """Add the row of the word that was just written to the memory."""
        row = int(self.trace.contexts[step]) - 1
        flights = []
        for grid in (stage.keys, stage.values):
            flight = grid.row(row).move_to([grid.get_center()[0], stage.head, 0])
            flights.append(flight.animate.move_to(grid.row_center(row)))
        self.play(*flights, stage.names.animate.show(row), run_time=0.8)
        self.remove(*(flight.mobject for flight in flights))
        stage.keys.show(row)
        stage.values.show(row)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("What it saves")
    def saving(self):
        """Work per token drops from the whole text to one row."""
        trace = self.trace
        contexts, without = trace.long_contexts, trace.long_flops_without_cache
        first, last, top = float(contexts[0]), float(contexts[-1]), float(without[-1])
        steps = len(contexts) - 1
        chart = Chart(
            8.2, 4.1, x=(first, last), y=(0, top), x_ticks=[first, 16, 32, 48, last], y_ticks=[0, 2e6, 4e6, 6e6],
            x_format="d", y_format=lambda flops: format_number(flops, "count"),
            x_label="tokens of text so far", y_label="FLOPs for the next token",
        ).move_to([-1.3, 0.35, 0])  # fmt: skip
        lost = chart.curve(contexts, without, role="LOSS", label="without cache", fill=True, drawn=0)
        kept = chart.curve(
            contexts, trace.long_flops_with_cache, role="KEY", label="with cache", fill=True, drawn=0, label_shift=0.1
        )
        self.say("Count the work for each next word, in multiplications and additions.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate.draw_curve(lost, 3 / steps).draw_curve(kept, 3 / steps), run_time=1.6)
        self.say("Work per token drops from the whole text to one row.")
        self.play(chart.animate(rate_func=linear).draw_curve(lost, 1.0).draw_curve(kept, 1.0), run_time=3.2)
        ratio = Label(f"{trace.long_flops_ratio[-1]:.0f}×", size=theme.BIG_NUMBER, bold=True).move_to([4.0, 0.6, 0])
        ratio.align_to([3.2, 0, 0], LEFT)
        words = Label("less work", color=theme.MUTED).next_to(ratio, DOWN, buff=0.25, aligned_edge=LEFT)
        self.play(FadeIn(ratio, words), run_time=theme.QUICK)
        self.hold(1.2)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("The bill")
    def bill(self):
        """Memory grows with every token."""
        trace = self.trace
        presets = trace.presets
        roles = [
            "FROZEN" if a == g else "KEY" for a, g in zip(presets.attention_heads, presets.key_value_heads, strict=True)
        ]
        bars = Bars(
            presets.bytes_per_token, direction="up", length=3.3, step=2.35, thickness=0.42, role=roles,
            number="binary", number_size=0.2, names=presets.name,
        ).move_to([0, 0.05, 0]).hide()  # fmt: skip
        heads = [
            Label(f"{groups:d} key-value heads", size=theme.SMALL, color=theme.MUTED)
            for groups in presets.key_value_heads
        ]
        for k, label in enumerate(heads):
            label.move_to([bars.tip(k)[0], bars.get_bottom()[1] - 0.75, 0])
        real = trace.real_row
        self.say(f"Memory grows with every token: {presets.bytes_per_token[real]:binary} each for {trace.real_name}.")
        what = Label("cache for one token (FP16)", color=theme.MUTED).move_to([0, 2.7, 0])
        self.play(FadeIn(bars, what, *heads), run_time=theme.QUICK)
        self.play(bars.animate.show(), run_time=1.2)
        self.hold(1.0)
        self.say("Multiply by the length of the text, and the cache fills gigabytes.")
        bill = trace.bill_bytes
        tokens = Readout(
            lambda n: f"cache for {n:,} token{'s' if n > 1 else ''}", trace.bill_contexts[0], face="words"
        ).move_to(what)
        self.play(
            FadeOut(what),
            FadeIn(tokens),
            bars.animate.set_values(bill[0], limit=largest(bill)),
            run_time=0.8,
        )
        for k in range(1, len(trace.bill_contexts)):
            self.play(
                bars.animate(rate_func=linear).set_values(bill[k]),
                tokens.animate.set_value(trace.bill_contexts[k], (0, 0)),
                run_time=0.3,
            )
        self.say("Models that share key-value heads stay small.")
        sharing = [k for k, role in enumerate(roles) if role == "KEY"]
        self.play(bars.animate.focus(sharing), run_time=theme.QUICK)
        self.hold(1.0)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Reading is the bottleneck")
    def reading(self):
        """Each step reads the whole cache and does almost no math with it."""
        trace = self.trace
        rows = int(trace.contexts[-1])
        cell = (0.22, 0.24)
        keys = TensorGrid(trace.keys, cell=cell, number=None, role="KEY").move_to([-4.9, 0, 0])
        values = TensorGrid(trace.values, cell=cell, number=None, role="VALUE").next_to(keys, RIGHT, buff=0.3)
        memory = Group(keys, values).move_to([-4.4, 1.2, 0])
        chip = Frame(1.7, 1.1, color=theme.TEXT).move_to([1.1, 1.2, 0])
        inside = Label("multiply,\nadd", align=0.5).move_to(chip).set_z_index(1)
        bus = arrow(memory.get_right() + 0.25 * RIGHT, chip.get_left() + 0.1 * LEFT)
        read = Readout(lambda n: f"{n:d} bytes read", trace.decode_bytes_read[0], size=0.24).move_to([4.6, 1.5, 0])
        done = Readout(lambda n: f"{n:d} FLOPs done", trace.decode_flops[0], size=0.24).move_to([4.6, 0.9, 0])
        done.align_to(read, LEFT)
        name = Label("cache of one head", color=theme.MUTED).next_to(memory, UP, buff=0.25)
        self.say("Each step reads the whole cache and does almost no math with it.")
        self.play(FadeIn(memory, chip, inside, bus, name, read, done), run_time=theme.QUICK)
        flights = [Group(keys.row(row), values.row(row)) for row in range(rows)]
        self.play(
            LaggedStart(
                *(flight.animate.move_to(chip).scale(0.3).fade(1) for flight in flights), lag_ratio=0.35, run_time=3.0
            ),
            StepThrough(read, trace.decode_bytes_read, rate_func=linear, run_time=3.0),
            StepThrough(done, trace.decode_flops, rate_func=linear, run_time=3.0),
        )
        self.remove(*flights)
        self.say("One operation for each byte, while the chip could do far more.")
        bars = Bars(
            trace.offer_intensity, length=6.0, step=0.62, role=["LOSS", "WEIGHT"], number=".0f", number_size=0.24,
            names=trace.offer_names, thickness=0.5,
        ).move_to([1.5, -1.75, 0]).hide()  # fmt: skip
        unit = Label("FLOPs per byte", color=theme.MUTED).next_to(bars, UP, buff=0.15).align_to(bars, LEFT)
        self.play(FadeIn(bars, unit), run_time=0.4)
        self.play(bars.animate.show(), run_time=1.4)
        self.hold(1.2)


class MemoryStage:
    """The picture of chapter 4 and of the loop: kept keys on the left, kept values on the right."""

    def __init__(self, trace, step: int, *, row_height: float = 0.385, top: float = 2.1, foot: float = -2.58) -> None:
        self.trace = trace
        self.cell = (0.58, row_height)
        self.head = top + 0.37 + row_height / 2  # height of the query and of the output
        self.foot = foot  # height of the names, below the last row that will be added
        new_rows = slice(int(trace.contexts[step]), None)
        self.keys = TensorGrid(trace.keys, cell=self.cell, role="KEY").move_to([-3.0, 0, 0]).align_to([0, top, 0], UP)
        self.values = TensorGrid(trace.values, cell=self.cell, role="VALUE").move_to([4.25, 0, 0])
        self.values.align_to(self.keys, UP)
        self.names = RowNames(trace.tokens[: len(trace.keys)], self.keys)
        for part in self.parts():
            part.hide(new_rows)

    def parts(self):
        """Return what stays on stage from question to question."""
        return self.keys, self.values, self.names

    def titles(self) -> list[Label]:
        """Return the names of the two memories."""
        return [
            self.name(words, grid, color)
            for words, grid, color in (
                ("kept keys", self.keys, theme.KEY),
                ("kept values", self.values, theme.VALUE),
            )
        ]

    def name(self, words: str, part: Mobject, color: str) -> Label:
        """Return the name of a part, below it."""
        return Label(words, color=color, bold=True).move_to([part.get_center()[0], self.foot, 0])

    def query(self, step: int) -> TensorGrid:
        """Return the query of a step, above the keys."""
        limit = largest(self.trace.queries)
        return TensorGrid(self.trace.queries[step], cell=self.cell, limit=limit, role="QUERY").move_to(
            [self.keys.get_center()[0], self.head, 0]
        )

    def output(self, step: int) -> TensorGrid:
        """Return the mixed values of a step, above the values."""
        output = TensorGrid(self.trace.outputs[step], cell=self.cell, limit=self.values.limit, role="OUTPUT")
        return output.move_to([self.values.get_center()[0], self.head, 0])

    def bars(self, step: int) -> Bars:
        """Return the scores of a step beside the rows of the keys, not yet grown."""
        rows = int(self.trace.contexts[step])
        scores = self.trace.scores[step, :rows]
        bars = Bars(scores, limit=1.2 * largest(scores), signed=True, length=1.7, step=self.cell[1])
        return bars.move_to([0.45, 0, 0]).align_to(self.keys, UP).hide()
