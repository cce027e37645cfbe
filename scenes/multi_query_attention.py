"""Draws internals_math.multi_query_attention.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, linear, rush_into

from internals_math import multi_query_attention
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.head_memory import HeadMemory, sweep
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.motion import RowByRow, Visit
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames
from scenes.kit.topic_scene import TopicScene, chapter, loop

TOP = 1.75  # upper edge of the memories
QUERY_HEIGHT = 2.2  # middle of the queries above them


class MultiQueryAttention(TopicScene):
    """Generating one token takes very little arithmetic. Why is it slow, and what does deleting one index change?"""

    core = multi_query_attention
    notation = ("540B", "540 billion")
    takeaway = (
        "Decoding is paid in bytes read. Give all query heads one shared memory, "
        "and both the cache and the reading shrink by the number of heads."
    )
    loop_alt = (
        "Four query rows sweep the same key matrix together and produce four different attention patterns. "
        "Two bars compare the bytes read with those of a memory for each head."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("One token, four readers")
    def four_readers(self):
        """Each new token makes every head re-read its own memory."""
        trace = self.trace
        last = len(trace.tokens)
        first = last - 3
        memories, heads = self.four_memories()
        names = RowNames(trace.tokens, memories[0].keys)
        for part in (*memories, names):
            part.hide(slice(first, None))
        unit = Label("bytes read in this layer, for one new token", color=theme.MUTED).move_to([1.9, -2.4, 0])
        count = Readout(lambda n: f"{n:,}", trace.bytes_read_mha[first - 1], size=0.36, bold=True)
        count.next_to(unit, LEFT, buff=0.3).align_to(unit, DOWN)
        legend = [
            Label(word, color=color, bold=True).next_to(grid, DOWN, buff=0.25)
            for word, color, grid in (
                ("keys", theme.KEY, memories[0].keys),
                ("values", theme.VALUE, memories[0].values),
            )
        ]

        self.say("Every attention head keeps keys and values of all words so far.")
        self.play(FadeIn(names, *heads, *memories, *legend), run_time=theme.MOVE)
        self.hold(0.6)
        for token in range(first, last):
            if token == first:
                self.say("Each new token makes every head re-read its own memory.")
            if token == first + 1:
                self.say("And again, all of it, for every token that follows.")
            pace = 1.0 if token == first else 0.5
            self.play(*(memory.animate.show(token) for memory in memories), names.animate.show(token), run_time=0.4)
            queries = [self.query_strip(trace.query[head, token], memories[head]) for head in range(len(memories))]
            dimmed = [memory.animate.recede() for memory in memories]
            self.play(FadeIn(*queries, shift=0.15 * DOWN), *dimmed, run_time=0.5 * pace)
            seconds = 0.3 * pace * (token + 1)
            if token == first:
                self.add(count, unit)
            self.play(
                *sweep(queries, memories, token + 1, run_time=seconds),
                StepThrough(count, trace.bytes_read_mha[: token + 1], RIGHT, rate_func=linear, run_time=seconds),
            )
            self.play(FadeOut(*queries), *(memory.animate.lead() for memory in memories), run_time=0.3)
        self.hold(0.6)

    def four_memories(self, row_height: float = 0.34) -> tuple[list[HeadMemory], list[Label]]:
        """Return the memories of the four heads side by side, and the heads' names above them."""
        trace = self.trace
        limits = largest(trace.key_mha), largest(trace.value_mha)
        memories = []
        for head, (keys, values) in enumerate(zip(trace.key_mha, trace.value_mha, strict=True)):
            memory = HeadMemory(keys, values, limits=limits, cell=(0.15, row_height))
            memories.append(memory.move_to([-4.15 + 3.05 * head, 0, 0]).align_to([0, TOP, 0], UP))
        heads = [
            Label(name, color=theme.QUERY, bold=True).move_to([memory.get_center()[0], 2.72, 0])
            for name, memory in zip(trace.head_names, memories, strict=True)
        ]
        return memories, heads

    def query_strip(self, values: Any, memory: HeadMemory) -> TensorGrid:
        """Return a query above the keys that it will be compared with."""
        strip = TensorGrid(values, cell=(0.15, 0.16), number=None, limit=largest(self.trace.query), role="QUERY")
        return strip.move_to([memory.keys.get_center()[0], QUERY_HEIGHT, 0])

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("The bill is reading")
    def reading_bill(self):
        """The arithmetic is done in no time. The reading is not."""
        trace = self.trace
        chart, cache = self.time_chart()
        self.say("A larger model: how long would a fast chip need for one token?")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        weights = chart.curve(
            trace.long_steps, trace.weights_us, role="WEIGHT", label="read the weights", drawn=0, label_shift=0.42
        )
        multiply = chart.curve(
            trace.long_steps, trace.multiply_us, role="QUERY", label="multiply and add", drawn=0, label_shift=0.12
        )
        self.play(chart.animate(rate_func=linear).draw_curve(weights).draw_curve(multiply), run_time=2.0)
        self.hold(0.8)
        self.say("Arithmetic and weights hardly cost time. Reading the cache does.")
        self.play(chart.animate(rate_func=linear).draw_curve(cache), run_time=3.0)
        self.hold(1.0)

    def time_chart(self) -> tuple[Chart, int]:
        """Return the chart of time against length with the curve of the cache, not yet drawn."""
        trace = self.trace
        last, top = int(trace.long_steps[-1]), float(trace.cache_us_mha[-1])
        batch = trace.config.batch_size
        setting = f"width {trace.paper_width:d}, {trace.paper_heads:d} heads, {batch:d} sequences at once"
        chart = Chart(
            8.0, 4.1, x=(0, last), y=(0, 1.04 * top), x_ticks=[0, 256, 512, 768, 1024], y_ticks=[0, 100, 200],
            x_format="d", y_format="d", x_label="tokens of text so far",
            y_label=f"microseconds a token and layer, by the datasheet of an {trace.chip_name}",
        ).move_to([-1.5, 0.2, 0])  # fmt: skip
        corner = chart.get_corner(UP + LEFT) + np.array([0.25, -0.3, 0])
        chart.add(Label(setting, color=theme.MUTED).move_to(corner).align_to(corner, UP + LEFT))
        cache = chart.curve(
            trace.long_steps, trace.cache_us_mha, role="LOSS", label="read the cache", fill=True, drawn=0
        )
        return chart, cache

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Delete one letter")
    def delete_one_letter(self):
        """Remove the head index from keys and values. Keep it for queries."""
        trace = self.trace
        memories, heads = self.four_memories(row_height=0.3)
        names = RowNames(trace.tokens, memories[0].keys)
        last = len(trace.tokens) - 1
        queries = [self.query_strip(trace.query[head, last], memory) for head, memory in enumerate(memories)]
        law, shorter = self.score_formula("{{ h : gone }}"), self.score_formula("")
        shorter.move_to(law).align_to(law, LEFT)

        self.say("Written down, every key carries the index h of its head.")
        self.play(FadeIn(names, *heads, *memories, *queries), run_time=theme.MOVE)
        self.play(FadeIn(law), run_time=theme.QUICK)
        letter = law.select("gone")
        self.play(letter.animate.set_color(theme.LOSS), run_time=0.4)
        self.hold(0.8)
        self.say("Remove it from keys and values. Keep it for the queries.")
        self.play(letter.animate.shift(0.5 * UP).set_opacity(0), run_time=0.9)
        self.play(FadeOut(law), FadeIn(shorter), run_time=0.4)
        stack = self.shared_memory()
        self.play(
            LaggedStart(*(memory.animate.move_to(stack) for memory in memories), lag_ratio=0.15),
            FadeOut(names),
            *self.gather(queries, heads, stack),
            run_time=2.0,
        )
        self.add(stack)
        self.remove(*memories)
        names = RowNames(trace.tokens, stack.keys)
        new_queries = [
            TensorGrid(values[last], cell=(0.24, 0.2), number=None, limit=largest(trace.query_mqa), role="QUERY")
            .move_to(query)
            for values, query in zip(trace.query_mqa, queries, strict=True)
        ]  # fmt: skip
        self.play(FadeIn(names, *new_queries), FadeOut(*queries), run_time=0.5)
        self.say("What is left: one memory, trained to serve all four heads.")
        lock = Frame.around(stack, pad=0.14, color=theme.TEXT)
        self.play(FadeIn(lock), run_time=0.4)
        self.hold(1.2)

    def score_formula(self, letter: str) -> Any:
        """Return the scores of one step, with or without the head index on the keys."""
        formula = Formula(
            f'"scores"_(b h m) = sum_k {{{{ q_(b h k) : query }}}} dot K_(b {letter} m k)', size=0.3, query="QUERY"
        )
        return formula.move_to([0.3, -2.35, 0])

    def shared_memory(self) -> HeadMemory:
        """Return the one memory of the trained multi-query model."""
        trace = self.trace
        limits = largest(trace.key_mqa), largest(trace.value_mqa)
        memory = HeadMemory(trace.key_mqa, trace.value_mqa, limits=limits, cell=(0.24, 0.28), gap=0.3)
        return memory.move_to([0.3, 0, 0]).align_to([0, 1.25, 0], UP)

    def gather(self, queries: list[TensorGrid], heads: list[Label], stack: HeadMemory) -> list[Any]:
        """Return the motion of the four queries to a stack above the one memory, their names beside them."""
        moves = []
        for k, (query, head) in enumerate(zip(queries, heads, strict=True)):
            place = np.array([stack.keys.get_center()[0], 2.9 - 0.37 * k, 0])
            moves += [query.animate.move_to(place), head.animate.move_to(place + 1.75 * LEFT)]
        return moves

    # -- chapter 4 and the loop -------------------------------------------------------------------------------------

    @chapter("Four questions, one memory")
    def one_memory(self):
        """One shared memory still gives four different answers."""
        trace = self.trace
        stage = SharedStage(trace)
        self.say("Four queries of the newest word go over the same keys together.")
        self.play(FadeIn(*stage.parts()), run_time=0.9)
        self.ask(stage, seconds=4.2)
        self.say("Each of them weighs the words differently.")
        spots = stage.strongest()
        self.play(LaggedStart(*(FadeIn(spot) for spot in spots), lag_ratio=0.4), run_time=1.6)
        self.hold(0.9)
        self.say("One shared memory still gives four different answers.")
        self.play(FadeIn(stage.answers), run_time=0.3)
        self.answer(stage, seconds=3.0)
        self.hold(1.0)

    @loop
    def sweep_loop(self):
        """Four queries sweep one memory; the weights fill, rest, and fade."""
        stage = SharedStage(self.trace, top=1.6)
        self.add(*stage.parts(), *self.reading())
        self.hold(0.3)
        self.ask(stage, seconds=3.0)
        self.hold(0.5)
        self.add(stage.answers)
        self.answer(stage, seconds=1.2)
        self.hold(0.9)
        self.play(FadeOut(stage.weights, stage.outputs, stage.answers), run_time=0.5)
        self.hold(0.1)

    def reading(self) -> list[Any]:
        """Return the bytes read with a memory for each head and with the shared one, as bars of one scale."""
        trace = self.trace
        fields = trace.bytes_read_mha[-1:], trace.bytes_read_mqa[-1:]
        bars = [
            Bars(
                field, limit=trace.bytes_read_mha[-1], length=4.6, role=role, number=",d", number_size=0.22,
                names=trace.paper_variants[k : k + 1],
            ).move_to([2.8, -2.96 - 0.38 * k, 0])
            for k, (field, role) in enumerate(zip(fields, ("LOSS", "KEY"), strict=True))
        ]  # fmt: skip
        unit = Label("bytes read in this layer,\nfor one new token", color=theme.MUTED).move_to([0, -3.15, 0])
        return [*bars, unit.align_to([-6.4, 0, 0], LEFT)]

    def ask(self, stage: "SharedStage", *, seconds: float) -> None:
        """Let the four queries travel down the keys together, and fill a row of weights at each stop."""
        # taller than the row of keys they are compared with, so that the four can be told apart
        height = 1.7 * stage.cell[1]
        strips = stage.queries.copy().stretch_to_fit_height(height)
        beam = Group(Frame(stage.queries.width + 0.16, height + 0.1, color=theme.QUERY).move_to(strips), strips)
        weights = stage.weights.hide()
        self.add(weights, beam)

        def fill(row: int, share: float) -> None:
            weights.presence = np.where(np.arange(weights.rows)[:, None] == row, share, weights.presence)

        stops = [stage.keys.row_center(row) for row in range(stage.keys.rows)]
        self.play(Visit(beam, stops, on_rest=fill, changes=[weights]), run_time=seconds)
        self.play(FadeOut(beam), run_time=0.25)

    def answer(self, stage: "SharedStage", *, seconds: float) -> None:
        """Let each column of weights mix the values into one output row."""
        flights = []
        for head in range(stage.weights.columns):
            column = stage.weights.column(head)
            flights.append(column.animate.move_to(stage.values).set_opacity(0))
        stage.outputs.hide()
        self.add(stage.outputs)
        self.play(
            LaggedStart(*flights, lag_ratio=0.25),
            RowByRow(stage.outputs, rate_func=rush_into),
            run_time=seconds,
        )

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("The cache stops exploding")
    def smaller_cache(self):
        """The cache is smaller by exactly the number of heads."""
        trace = self.trace
        cell = (0.115, 0.38)
        wall, strip = (
            TensorGrid(rows, cell=cell, number=None).move_to([x, 0, 0]).align_to([0, 2.05, 0], UP).hide()
            for rows, x in ((trace.cache_mha, -1.9), (trace.cache_mqa, 4.6))
        )
        names = RowNames(trace.tokens, wall).hide()
        titles = [
            Label(name, bold=True).next_to(grid, UP, buff=0.25)
            for name, grid in zip(trace.paper_variants, (wall, strip), strict=True)
        ]
        counts = []
        for field, grid in ((trace.cache_elements_mha, wall), (trace.cache_elements_mqa, strip)):
            count = Readout(lambda n: f"{n:d} numbers kept", field[0], size=0.26, bold=True)
            counts.append(count.next_to(grid, DOWN, buff=0.3))
        self.say("What each word leaves in one layer, with four heads and with one.")
        self.play(FadeIn(*titles, *counts), run_time=theme.QUICK)
        seconds = 3.2
        self.play(
            RowByRow(wall), RowByRow(strip), RowByRow(names),
            *(
                StepThrough(count, field, (0, 0), rate_func=linear)
                for count, field in zip(counts, (trace.cache_elements_mha, trace.cache_elements_mqa), strict=True)
            ),
            run_time=seconds,
        )  # fmt: skip
        ratio = Label(f"÷ {trace.cache_ratio:d}", size=theme.BIG_NUMBER, bold=True).move_to([2.55, 0.4, 0])
        self.say("The cache is smaller by exactly the number of heads.")
        self.play(FadeIn(ratio), run_time=theme.QUICK)
        self.hold(1.2)
        self.finish_beat()
        self.clear_stage()
        chart, cache = self.time_chart()
        chart.draw_curve(cache)
        self.say("And in the larger model, so is the time to read it.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.hold(0.4)
        ghost = chart.curve(trace.long_steps, trace.cache_us_mha, role="MUTED", dash=(0.1, 0.1))
        self.play(chart.animate.set_curve(cache, trace.cache_us_mqa).show_curve(ghost, 0.7), run_time=1.8)
        first, second = trace.paper_token_us
        measured = Label(
            f"measured in the paper,\nwhole decoder, a token:\n{first:.0f} → {second:.1f} microseconds"
        ).move_to([4.85, 1.6, 0])  # fmt: skip
        self.play(FadeIn(measured), run_time=theme.QUICK)
        self.hold(1.2)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("What it costs")
    def cost(self):
        """Averaging the heads of a trained model breaks it. Training with one head costs little."""
        trace = self.trace
        models = trace.models
        bars = Bars(
            models.eval_loss, length=6.6, step=0.78, thickness=0.5, role=["FROZEN", "KEY", "LOSS", "LOSS", "VALUE"],
            number=".3f", number_size=0.22, names=models.name,
        ).move_to([1.5, 0.15, 0]).hide()  # fmt: skip
        unit = Label("loss on unseen stories, nats a word", color=theme.MUTED).next_to(bars, UP, buff=0.25)
        unit.align_to(bars, LEFT)

        self.say("Our model with four memories is close to the best possible loss.")
        self.play(FadeIn(unit, bars), run_time=theme.QUICK)
        self.play(bars.animate.show([0, 1]), run_time=0.8)
        self.hold(0.5)
        self.say("Average its heads into one, and it forgets almost everything.")
        self.play(bars.animate.show(2), run_time=1.6)
        self.say(f"{trace.uptrain_steps:d} more steps, {trace.uptrain_share:.0%} of its training, heal much, not all.")
        self.play(bars.animate.show(3), run_time=1.2)
        self.hold(0.5)
        self.say("One memory from the start, at equal size, costs little.")
        self.play(bars.animate.show(4), run_time=1.0)
        self.hold(0.6)
        excess = Bars(
            models.excess[[1, 4]], length=6.6, step=0.78, thickness=0.5, role=["KEY", "VALUE"], number=".3f",
            number_size=0.22, names=[models.name[1], models.name[4]],
        ).move_to([1.5, 0.5, 0])  # fmt: skip
        low, high = trace.excess_seed_spread
        above = Label("nats above the best possible", color=theme.MUTED).next_to(excess, UP, buff=0.25)
        above.align_to(excess, LEFT)
        noise = Label(f"three seeds with four memories: {low:.4f} to {high:.4f}", color=theme.MUTED)
        noise.next_to(excess, DOWN, buff=0.4).align_to(excess, LEFT)
        self.say("Little, but real: more than the luck of the seed.")
        self.play(FadeOut(bars, unit), FadeIn(excess.hide(), above), run_time=theme.QUICK)
        self.play(excess.animate.show(), run_time=0.9)
        self.play(FadeIn(noise), run_time=theme.QUICK)
        self.hold(1.0)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("At 540 billion")
    def at_scale(self):
        """One shared head helps only if the chips split the batch, not the head."""
        limits = self.trace.limits
        bars = Bars(
            limits.context, length=7.2, step=1.35, thickness=0.3, role=["KEY", "LOSS", "VALUE"], number=",d",
            number_size=0.26, names=limits.name,
        ).move_to([1.6, -0.1, 0]).hide()  # fmt: skip
        unit = Label("longest text the chips can remember, in tokens (PaLM 540B)", color=theme.MUTED)
        unit.next_to(bars, UP, buff=0.2).align_to(bars, LEFT)
        held = []
        shares = zip(limits.heads_on_chip, limits.head_dim, limits.sequences_on_chip, strict=True)
        for k, (heads, width, sequences) in enumerate(shares):
            words = Label(f"each chip: {heads:d} head, {width:d} wide, of {sequences:d} sequences", color=theme.MUTED)
            words.move_to([0, bars.tip(k)[1] - 0.42, 0]).align_to(bars, LEFT)
            held.append(words)
        self.say("A huge model runs on many chips. Each head of memory gets a chip.")
        self.play(FadeIn(unit, bars, held[0]), run_time=theme.QUICK)
        self.play(bars.animate.show(0), run_time=0.8)
        self.hold(0.5)
        self.say("A lone head must be copied to every chip: nothing is saved.")
        self.play(bars.animate.show(1), FadeIn(held[1]), run_time=0.8)
        self.hold(0.7)
        self.say("Split the sequences instead, and the saving arrives in full.")
        self.play(bars.animate.show(2), FadeIn(held[2]), run_time=2.0)
        self.hold(1.2)


class SharedStage:
    """The picture of chapter 4 and of the loop: queries above the one set of keys, outputs above the one of values."""

    def __init__(self, trace: Any, *, top: float = 1.25) -> None:
        self.cell = (0.42, min(0.36, 3.6 / len(trace.tokens)))
        small = (0.42, 0.27)
        last = len(trace.tokens) - 1
        self.keys = TensorGrid(
            trace.key_mqa, cell=self.cell, number=None, role="KEY"
        ).move_to([-3.35, 0, 0]).align_to([0, top, 0], UP)  # fmt: skip
        self.weights = TensorGrid(
            trace.last_weights_mqa, cell=(0.9, self.cell[1]), number=".2f", map="SCORE", limit=1.0, role="SCORE"
        ).move_to([0.52, 0, 0]).align_to(self.keys, UP)  # fmt: skip
        self.values = TensorGrid(trace.value_mqa, cell=self.cell, number=None, role="VALUE").move_to([4.4, 0, 0])
        self.values.align_to(self.keys, UP)
        self.queries = TensorGrid(trace.query_mqa[:, last], cell=small, number=None, role="QUERY")
        self.queries.next_to(self.keys, UP, buff=0.3)
        self.outputs = TensorGrid(
            trace.output_mqa, cell=small, number=None, limit=self.values.limit, role="OUTPUT"
        ).next_to(self.values, UP, buff=0.3)  # fmt: skip
        self.names = RowNames(trace.tokens, self.keys)
        self.heads = [
            Label(name, size=theme.SMALL, color=theme.QUERY, bold=True).next_to(
                self.queries.row_center(k) + self.queries.width / 2 * LEFT, LEFT, buff=0.3
            )
            for k, name in enumerate(trace.head_names)
        ]
        self.heads += [
            Label(name, size=theme.SMALL, color=theme.QUERY, bold=True).move_to(
                self.weights.cell_center(0, k) + 0.42 * UP
            )
            for k, name in enumerate(trace.head_names)
        ]
        self.titles = [
            Label(words, color=color, bold=True).next_to(part, side, buff=0.25)
            for words, color, part, side in (
                ("four queries", theme.QUERY, self.queries, UP),
                ("one set of keys", theme.KEY, self.keys, DOWN),
                ("attention", theme.SCORE, self.weights, DOWN),
                ("one set of values", theme.VALUE, self.values, DOWN),
            )
        ]
        self.answers = Label("four answers", bold=True).next_to(self.outputs, UP, buff=0.25)

    def parts(self) -> list[Any]:
        """Return what is there before the queries ask."""
        return [self.names, self.keys, self.values, self.queries, *self.heads, *self.titles]

    def strongest(self) -> list[Frame]:
        """Return a frame around the largest weight of each head."""
        rows = np.asarray(self.weights.values.values).argmax(axis=0)
        return [
            Frame(0.92, self.cell[1] + 0.02, color=theme.TEXT).move_to(self.weights.cell_center(int(row), head))
            for head, row in enumerate(rows)
        ]
