"""Draws internals_math.multi_latent_attention.Trace."""

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, AnimationGroup, FadeIn, FadeOut, Group, LaggedStart, linear, rush_into

from internals_math import multi_latent_attention
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.head_memory import HeadMemory
from scenes.kit.label import Label, Readout
from scenes.kit.motion import RowByRow, Visit, pour
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.vector_plane import VectorPlane
from scenes.multi_latent_attention_stage import BESIDE_QUERY, AbsorbStage, ValueStage


class MultiLatentAttention(TopicScene):
    """Can a word leave just one short vector in the cache, and every head still have keys of its own?"""

    core = multi_latent_attention
    notation = ("DeepSeek-V2", "DeepSeek-67B")
    takeaway = "Cache one short latent for each word, and move the matrices to the query: keys are never unpacked."
    loop_alt = (
        "An up-projection matrix moves from the cached keys to the query while the attention score stays the same."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("What the cache holds")
    def what_the_cache_holds(self):
        """Sharing heads makes the wall of keys and values thinner. But was it full?"""
        trace = self.trace
        memories, heads = self.four_memories()
        names = RowNames(trace.tokens, memories[0].keys)
        for part in (*memories, names):
            part.hide()
        caches = trace.caches
        bars = Bars(
            caches.elements[:3], length=6.0, step=0.5, thickness=0.6, role=["TEXT", "MUTED", "MUTED"], number="d",
            number_size=0.22, names=caches.name[:3],
        ).move_to([1.2, -1.85, 0]).hide()  # fmt: skip
        unit = Label("numbers that a word leaves in one layer", color=theme.MUTED).next_to(bars, UP, buff=0.2)
        unit.align_to(bars, LEFT)
        legend = [
            Label(word, color=color, bold=True).next_to(grid, DOWN, buff=0.2)
            for word, color, grid in (
                ("keys", theme.KEY, memories[0].keys),
                ("values", theme.VALUE, memories[0].values),
            )
        ]
        self.say("Every word leaves a key and a value in every head.")
        self.add(*memories, names)
        self.play(FadeIn(*heads, *legend), run_time=theme.QUICK)
        self.play(*(part.animate.show(0) for part in (*memories, names)), run_time=0.7)
        self.play(FadeIn(unit, bars), run_time=0.3)
        self.play(bars.animate.show(0), run_time=0.8)
        self.say("The words of a text pile up to a wall.")
        walls = [grid for memory in memories for grid in (memory.keys, memory.values)]
        self.play(*(RowByRow(part, range(1, len(trace.tokens))) for part in (*walls, names)), run_time=2.0)
        self.say("Sharing heads makes it thinner. But was it full of information at all?")
        self.play(bars.animate.show(1), run_time=0.7)
        self.play(bars.animate.show(2), run_time=0.7)
        self.hold(0.8)

    def four_memories(self) -> tuple[list[HeadMemory], list[Label]]:
        """Return what the four heads of the tiny LM keep, side by side, and the heads' names above."""
        trace = self.trace
        limits = largest(trace.keys_mha), largest(trace.values_mha)
        memories = []
        for head, (keys, values) in enumerate(zip(trace.keys_mha, trace.values_mha, strict=True)):
            memory = HeadMemory(keys, values, limits=limits, cell=(0.15, 0.3))
            memories.append(memory.move_to([-4.15 + 3.05 * head, 0, 0]).align_to([0, 2.45, 0], UP))
        heads = [
            Label(name, bold=True).move_to([memory.get_center()[0], 2.75, 0])
            for name, memory in zip(trace.head_names, memories, strict=True)
        ]
        return memories, heads

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("The wall is thin")
    def thin_wall(self):
        """The wall is wide, but half of its directions are empty."""
        trace = self.trace
        wall = TensorGrid(trace.wall, cell=(0.087, 0.2), number=None).move_to([-3.6, 0.35, 0]).hide()
        title = Label("keys and values of all heads, side by side", color=theme.MUTED).next_to(wall, UP, buff=0.25)
        title.align_to(wall, LEFT)
        width = Label(f"{trace.wall_width:d} numbers a word", bold=True).next_to(wall, DOWN, buff=0.25)
        bars = Bars(
            trace.singular_values_cache, direction="up", length=3.2, step=0.087, thickness=0.75, role="LATENT",
            number=None,
        ).move_to([3.5, 0.35, 0]).hide()  # fmt: skip
        reach = Label("how far the words reach in each direction", color=theme.MUTED).next_to(bars, UP, buff=0.25)
        reach.align_to(bars, LEFT)
        half = trace.wall_directions
        left, right = (bars.tip(k)[0] for k in (0, len(trace.singular_values_cache) - 1))
        middle = (left + right) / 2
        foot = bars.get_bottom()[1]
        full, empty = (
            Label(text, color=color, bold=True).move_to([x, foot - 0.37, 0])
            for text, color, x in (
                (f"{half:d} directions", theme.LATENT, (left + middle) / 2),
                ("nothing", theme.LOSS, (middle + right) / 2),
            )
        )
        self.say("In how many directions do its words really differ?")
        self.play(FadeIn(title, wall), run_time=theme.QUICK)
        self.play(RowByRow(wall), FadeIn(width), run_time=1.0)
        self.play(FadeIn(reach, bars), run_time=theme.QUICK)
        self.play(bars.animate.show(), run_time=1.2)
        self.say(f"{trace.wall_width:d} numbers a word, but never more than {half:d} directions.")
        self.play(FadeIn(full), run_time=theme.QUICK)
        self.play(FadeIn(empty), run_time=theme.QUICK)
        self.hold(0.6)
        self.finish_beat()
        chart = Chart(
            5.0, 3.2, x=(0, 33), y=(0, 4.2), x_ticks=[4, 8, 16, 24, 32], y_ticks=[0, 1, 2, 3, 4], x_format="d",
            y_format="d", x_label="directions that are kept", y_label="loss on unseen stories, nats a word",
        ).move_to([3.6, 0.2, 0])  # fmt: skip
        curve = chart.curve(trace.ranks.rank, trace.ranks.eval_loss, role="LOSS", line=theme.THICK, drawn=0)
        chart.ride(curve, 0)
        honest = Label("the best cut of the trained\nmatrices, nothing retrained", color=theme.MUTED)
        honest.move_to(chart.get_corner(UP + RIGHT) + np.array([-1.75, -0.5, 0]))
        self.say("Now cut directions away. At first, the model hardly notices.")
        self.play(FadeOut(bars, reach, full, empty), FadeIn(chart, honest), run_time=0.6)
        self.play(chart.animate(rate_func=linear).draw_curve(curve, 0.43).ride(curve, 0.43), run_time=1.8)
        self.say("Then it breaks. A model must be trained to live with so little.")
        self.play(chart.animate(rate_func=linear).draw_curve(curve, 1.0).ride(curve, 1.0), run_time=2.0)
        self.hold(0.5)

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Squeeze and rebuild")
    def squeeze_and_rebuild(self):
        """Store one short latent; every head rebuilds its own keys and values from it."""
        trace = self.trace
        last = len(trace.tokens) - 1
        hidden = TensorGrid(trace.hidden[last], cell=(0.16, 0.26), number=None, role="INPUT").move_to([-2.85, 2.5, 0])
        down = TensorGrid(trace.w_dkv, cell=(0.16, 0.19), number=None, role="WEIGHT").next_to(hidden, DOWN, buff=0.35)
        latents = self.latents(cell=(0.26, 0.28)).move_to([-3.25, 0, 0]).align_to([0, -0.45, 0], UP)
        names = RowNames(trace.tokens, latents)
        squeeze = Label("squeeze", size=theme.SMALL, color=theme.WEIGHT, bold=True).next_to(down, LEFT, buff=0.2)
        reads = Label("word", size=theme.SMALL, color=theme.MUTED).next_to(hidden, LEFT, buff=0.2)
        kept = Label(
            f"cached:\n{trace.cache_elements_per_token[0]:d} numbers a word", color=theme.LATENT, bold=True
        ).next_to(latents, RIGHT, buff=0.3)  # fmt: skip
        memories, heads = self.rebuilt_memories()
        rebuilt = [
            Label(words, color=color, bold=True).next_to(part, DOWN, buff=0.2)
            for words, color, part in (
                ("keys", theme.KEY, memories[2].keys),
                ("values", theme.VALUE, memories[2].values),
                (f"{trace.wall_width:d} numbers a word", theme.TEXT, memories[3]),
            )
        ]
        for memory in memories:
            memory.hide()
        latents.hide()
        names.hide()

        self.say("A trained matrix squeezes each word into one short latent.")
        self.play(FadeIn(hidden, reads), run_time=theme.QUICK)
        self.play(FadeIn(down, squeeze), run_time=theme.QUICK)
        fresh = TensorGrid(
            trace.c_kv[last].reshape(-1, 1), cell=(0.3, 0.19), number=None, limit=latents.limit, role="LATENT"
        ).next_to(down, RIGHT, buff=0.3).hide()  # fmt: skip
        strip = hidden.copy().stretch_to_fit_height(0.17)
        beam = Group(Frame(down.width + 0.12, 0.22, color=theme.INPUT), strip.move_to([0, 0, 0])).move_to(hidden)

        def fill(row: int, share: float) -> None:
            fresh.presence = np.where(np.arange(fresh.rows)[:, None] == row, share, fresh.presence)

        self.add(fresh, beam)
        self.play(
            Visit(beam, [down.row_center(row) for row in range(down.rows)], on_rest=fill, changes=[fresh]),
            run_time=2.0,
        )
        self.play(FadeOut(beam), run_time=0.2)
        self.say("That is what the cache keeps, once for all heads.")
        landed = latents.row(last, role="LATENT")
        self.add(names, latents)
        self.play(FadeOut(fresh, target_position=landed), FadeIn(landed), run_time=0.7)
        self.play(
            RowByRow(latents), RowByRow(names), FadeIn(kept), FadeOut(landed), run_time=1.2
        )  # fmt: skip
        self.say("From it, every head rebuilds keys and values that no other head has.")
        self.play(FadeIn(*heads), run_time=0.4)
        flights = []
        for memory in memories:
            copy = latents.copy()
            flights.append(
                AnimationGroup(
                    copy.animate.move_to(memory).set_opacity(0), RowByRow(memory.keys), RowByRow(memory.values)
                )
            )
        self.add(*memories)
        self.play(LaggedStart(*flights, lag_ratio=0.3), run_time=2.4)
        self.play(FadeIn(*rebuilt), run_time=theme.QUICK)
        self.hold(0.7)

    def latents(self, *, cell: tuple[float, float]) -> TensorGrid:
        """Return the cache: a latent for each word."""
        return TensorGrid(self.trace.c_kv, cell=cell, number=None, role="LATENT")

    def rebuilt_memories(self) -> tuple[list[HeadMemory], list[Label]]:
        """Return the keys and values that the four heads make of the latents, two by two, and their names."""
        trace = self.trace
        limits = largest(trace.k_nope), largest(trace.value)
        memories, heads = [], []
        for head, (keys, values) in enumerate(zip(trace.k_nope, trace.value, strict=True)):
            memory = HeadMemory(keys, values, limits=limits, cell=(0.135, 0.23))
            memory.move_to([2.3 + 2.95 * (head % 2), 1.45 - 2.75 * (head // 2), 0])
            memories.append(memory)
            heads.append(Label(trace.head_names[head], bold=True).next_to(memory, UP, buff=0.2))
        return memories, heads

    # -- chapter 4 and the loop -------------------------------------------------------------------------------------

    @chapter("Never rebuild")
    def never_rebuild(self):
        """Move the matrix to the query: the keys never exist."""
        trace = self.trace
        stage = AbsorbStage(trace)
        self.say("One head: its matrix turns each latent into a key.")
        self.play(FadeIn(stage.names, stage.latents, stage.cached), run_time=theme.QUICK)
        self.play(FadeIn(stage.matrix, stage.matrix_name), run_time=theme.QUICK)
        self.rebuild(stage, run_time=1.5)
        self.say("The query meets the keys, and gives a score for each word.")
        self.play(FadeIn(stage.query, stage.query_name, stage.score_name), run_time=theme.QUICK)
        self.ask(stage, stage.query, stage.keys, run_time=1.9)
        self.hold(0.4)
        self.say("Now move the matrix to the query. The keys never exist.")
        self.move_matrix(stage, run_time=1.7)
        self.translate_query(stage, run_time=1.5)
        self.say("The translated query meets the latents, and every score is the same.")
        self.ask(stage, stage.moved_query, stage.latents, run_time=2.0, again=True)
        self.play(FadeIn(stage.same), run_time=theme.QUICK)
        self.hold(0.5)
        self.finish_beat()
        self.mix_latents(stage)

    def mix_latents(self, stage: AbsorbStage) -> None:
        """Show the same for values: mixing values, or unpacking the mixed latent, gives the same output."""
        self.clear_stage(stage.names, stage.latents, stage.cached)
        values = ValueStage(self.trace, stage)
        self.say("The same for values. Unpack all and mix them by attention …")
        self.play(FadeIn(values.matrix, values.matrix_name, values.weights, values.weights_name), run_time=theme.QUICK)
        self.play(FadeIn(values.name), RowByRow(values.values.hide()), run_time=1.2)
        self.play(values.values.animate.weigh_rows(values.shares), run_time=0.5)
        mixed = [values.values.row(row) for row in range(values.values.rows)]
        self.add(values.output)
        self.play(pour(mixed, values.output), FadeIn(values.output), FadeIn(values.output_name), run_time=1.3)
        self.say("… or mix the latents, and unpack only the mixture.")
        self.play(
            Group(values.matrix, values.matrix_name).animate.shift(BESIDE_QUERY - stage.home),
            FadeOut(values.values, values.name),
            run_time=1.2,
        )
        self.play(stage.latents.animate.weigh_rows(values.shares), run_time=0.5)
        rows = [stage.latents.row(row) for row in range(stage.latents.rows)]
        self.play(pour(rows, values.mixture), FadeIn(values.mixture, values.mixture_name), run_time=1.0)
        through = values.mixture.copy()
        ring = Frame.around(values.output, pad=0.14, color=theme.TEXT)
        self.play(through.animate.move_to(values.matrix).set_opacity(0), run_time=0.6)
        landing = values.output.copy()
        self.play(FadeIn(landing, target_position=values.matrix), FadeIn(ring), run_time=0.6)
        self.hold(0.7)

    @loop
    def matrix_loop(self):
        """The matrix moves to the query and back; the scores keep their values."""
        trace = self.trace
        stage = AbsorbStage(trace)
        short, wide = (
            Label(words, color=theme.MUTED, align=0.5).next_to(name, DOWN, buff=0.25)
            for words, name in (
                (f"latents: {trace.cache_elements_per_token[0]:d} numbers a word", stage.cached),
                (f"all heads' keys and values:\n{trace.wall_width:d} numbers a word", stage.keys_name),
            )
        )
        gone = Label("no keys", color=theme.MUTED).move_to(stage.keys)
        names = (stage.matrix_name, stage.query_name, stage.score_name, short)
        rebuilt = (stage.keys, stage.keys_name, *stage.signs, wide)
        self.add(stage.names, stage.latents, stage.cached, stage.matrix, stage.query, stage.scores, *names, *rebuilt)
        self.hold(0.5)
        self.move_matrix(stage, wide, run_time=1.3)
        self.play(FadeIn(gone), run_time=0.2)
        self.translate_query(stage, run_time=0.8)
        self.ask(stage, stage.moved_query, stage.latents, run_time=1.6, again=True)
        self.play(FadeIn(stage.same), run_time=0.2)
        self.hold(0.8)
        self.play(FadeOut(stage.moved_query, stage.moved_name, stage.same, gone), run_time=0.3)
        self.play(
            Group(stage.matrix, stage.matrix_name).animate.shift(stage.home - BESIDE_QUERY),
            FadeIn(*rebuilt),
            run_time=1.1,
        )
        self.hold(0.4)

    def rebuild(self, stage: AbsorbStage, *, run_time: float) -> None:
        """Let the keys appear, row by row."""
        stage.keys.hide()
        self.add(stage.keys)
        self.play(FadeIn(stage.keys_name, *stage.signs), RowByRow(stage.keys), run_time=run_time)

    def ask(
        self, stage: AbsorbStage, query: TensorGrid, over: TensorGrid, *, run_time: float, again: bool = False
    ) -> None:
        """Let a query travel down the rows of `over`; each rest writes a score, or meets the one that is there."""
        strip = TensorGrid(query.values, cell=(query.cell[0], 0.12), number=None, limit=query.limit)
        beam = Group(Frame(over.width + 0.14, over.cell[1] + 0.05, color=theme.QUERY), strip)
        strip.align_to(beam, DOWN).shift(0.02 * UP)
        beam.move_to(query)
        scores = stage.scores if again else stage.scores.hide()
        ring = Frame(scores.width + 0.1, scores.cell[1] + 0.04, color=theme.QUERY).move_to(scores.row_center(0))
        ring.set_opacity(0)
        self.add(scores, ring, beam)

        def fill(row: int, share: float) -> None:
            if again:
                ring.set_y(beam.get_y()).set_opacity(1.0 if row or share else 0.0)
            else:
                scores.presence = np.where(np.arange(scores.rows)[:, None] == row, share, scores.presence)

        stops = [over.row_center(row) for row in range(over.rows)]
        self.play(Visit(beam, stops, on_rest=fill, changes=[scores, ring]), run_time=run_time)
        self.play(FadeOut(beam, ring), run_time=0.25)

    def move_matrix(self, stage: AbsorbStage, *leaving: Label, run_time: float) -> None:
        """Carry the matrix from the cache to the query, and let the keys dissolve, with what is said of them."""
        self.play(
            Group(stage.matrix, stage.matrix_name).animate.shift(BESIDE_QUERY - stage.home),
            FadeOut(stage.keys, stage.keys_name, *stage.signs, *leaving),
            run_time=run_time,
        )

    def translate_query(self, stage: AbsorbStage, *, run_time: float) -> None:
        """Send the query through the matrix: what comes out is as wide as a latent, and stands above the latents."""
        through = stage.query.copy()
        self.play(through.animate.move_to(stage.matrix).set_opacity(0), run_time=run_time / 2)
        self.remove(through)
        self.play(
            FadeIn(stage.moved_query, target_position=stage.matrix), FadeIn(stage.moved_name), run_time=run_time / 2
        )

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("RoPE gets in the way")
    def rope_in_the_way(self):
        """With a rotation in between, each distance needs another matrix."""
        trace = self.trace
        head = int(trace.config.head)
        query_side = TensorGrid(trace.w_uq[head].T, cell=(0.17, 0.085), number=None, role="WEIGHT")
        key_side = TensorGrid(trace.w_uk[head], cell=(0.17, 0.17), number=None, role="WEIGHT")
        dial = VectorPlane(trace.rope_hands[0], ["KEY"] * trace.rope_hands.shape[1], radius=0.8, normalize=True)
        merged = TensorGrid(trace.rope_coupled[0], cell=(0.26, 0.09), number=None, limit=largest(trace.rope_coupled))
        equals = Label("=", size=theme.BIG_NUMBER, color=theme.MUTED)
        Group(query_side, dial, key_side, equals, merged).arrange(RIGHT, buff=0.5).move_to([-1.15, 1.35, 0])
        far = Readout(lambda n: f"distance {n:d}", trace.distances[0], size=0.26, bold=True).move_to([5.0, 1.9, 0])
        change = Readout(lambda share: f"{share:.0%} changed", trace.rope_change[0], size=0.22, color=theme.LOSS)
        change.move_to([5.0, 1.2, 0])
        names = [
            Label(word, size=theme.SMALL, color=color, bold=True).next_to(part, DOWN, buff=0.2)
            for word, color, part in (
                ("to the query", theme.WEIGHT, query_side),
                ("turn by distance", theme.KEY, dial),
                ("to the key", theme.WEIGHT, key_side),
                ("merged", theme.TEXT, merged),
            )
        ]
        self.say("To move one matrix to the other, nothing may stand between them.")
        self.play(FadeIn(query_side, key_side, names[0], names[2]), run_time=theme.QUICK)
        self.play(FadeIn(equals, merged, names[3]), run_time=theme.MOVE)
        self.hold(0.4)
        self.say("But RoPE turns queries and keys by their position.")
        self.play(FadeIn(dial, names[1], far, change), run_time=theme.QUICK)
        self.hold(0.4)
        copies = [
            TensorGrid(matrix, cell=(0.11, 0.036), number=None, limit=merged.limit).move_to([-5.25 + 1.5 * k, -2.15, 0])
            for k, matrix in enumerate(trace.rope_coupled)
        ]
        numbers = [
            Label(f"{distance:d}", size=theme.SMALL, color=theme.MUTED, face="numbers").next_to(copy, UP, buff=0.12)
            for distance, copy in zip(trace.distances, copies, strict=True)
        ]
        self.leave(merged, copies[0], numbers[0], 0.5)
        self.say("So every distance needs another merged matrix, without end.")
        for k in range(1, len(copies)):
            pace = 0.75 if k < 3 else 0.4
            self.play(
                dial.animate.set_tips(trace.rope_hands[k]),
                merged.animate.set_values(trace.rope_coupled[k]),
                far.animate.set_value(trace.distances[k]),
                change.animate.set_value(trace.rope_change[k]),
                run_time=pace,
            )
            self.leave(merged, copies[k], numbers[k], 0.4 * pace)
        self.hold(0.8)

    def leave(self, merged: TensorGrid, copy: TensorGrid, number: Label, run_time: float) -> None:
        """Let the merged matrix leave a small copy of itself."""
        self.play(FadeIn(copy, target_position=merged), FadeIn(number), run_time=run_time)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("A lane for position")
    def lane_for_position(self):
        """Position travels in its own small key, shared by all heads."""
        trace = self.trace
        head = int(trace.config.head)
        latents = TensorGrid(trace.c_kv, cell=(0.22, 0.34), number=None, role="LATENT").move_to([-4.65, 0.2, 0])
        lane = TensorGrid(trace.k_rope, cell=(0.22, 0.34), number=None, role="KEY").next_to(latents, RIGHT, buff=0.3)
        names = RowNames(trace.tokens, latents)
        widths = [
            Label(f"{size:d} numbers", color=color, bold=True).next_to(grid, UP, buff=0.3)
            for size, grid, color in zip(
                trace.cache_elements_per_token, (latents, lane), (theme.LATENT, theme.KEY), strict=True
            )
        ]
        roles = [
            Label(words, size=theme.SMALL, color=theme.MUTED).next_to(grid, DOWN, buff=0.25)
            for words, grid in (("what", latents), ("where", lane))
        ]
        limit = largest(trace.scores, trace.scores_content, trace.scores_rope)
        content, position, total = (
            TensorGrid(scores[head], cell=(0.26, 0.34), number=None, limit=limit, role="SCORE").move_to([x, 0.2, 0])
            for scores, x in ((trace.scores_content, 0.0), (trace.scores_rope, 2.65), (trace.scores, 5.3))
        )
        titles = [
            Label(words, color=theme.SCORE, bold=True).next_to(grid, DOWN, buff=0.25)
            for words, grid in (("by content", content), ("by position", position), ("scores", total))
        ]
        plus, equals = (
            Label(sign, size=0.3, color=theme.MUTED).move_to([x, 0.2, 0]) for sign, x in (("+", 1.325), ("=", 3.975))
        )
        self.say("So position gets its own lane: one small rotated key, shared by all heads.")
        self.play(FadeIn(names, latents, widths[0], roles[0]), run_time=theme.QUICK)
        lane.hide()
        self.add(lane)
        self.play(RowByRow(lane), FadeIn(widths[1], roles[1]), run_time=1.4)
        for grid in (content, position, total):
            grid.hide()
        self.say("The latents score what fits. The lane adds where it is.")
        self.add(content, position)
        for grid, source, title in ((content, latents, titles[0]), (position, lane, titles[1])):
            flight = source.copy()
            self.play(
                flight.animate.move_to(grid).set_opacity(0), RowByRow(grid), FadeIn(title), run_time=1.1
            )  # fmt: skip
            self.remove(flight)
        self.say("The two scores add up. The latent itself is never rotated.")
        both = [grid.copy() for grid in (content, position)]
        self.add(total)
        self.play(FadeIn(plus, equals), run_time=0.3)
        self.play(
            *(grid.animate.move_to(total).set_opacity(0) for grid in both),
            RowByRow(total, rate_func=rush_into),
            FadeIn(titles[2]),
            run_time=1.5,
        )
        self.remove(*both)
        self.hold(0.8)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("The bill")
    def bill(self):
        """DeepSeek-V2 keeps a small fraction of what its heads would need, and multiplies a little more."""
        trace = self.trace
        published = trace.published
        bars = Bars(
            published.elements[:3], length=5.8, step=0.95, thickness=0.42, role=["KEY", "MUTED", "LATENT"], number=",d",
            number_size=0.26, names=published.name[:3],
        ).move_to([0.6, 0.75, 0]).hide()  # fmt: skip
        unit = Label("numbers kept for each word, all layers", color=theme.MUTED).next_to(bars, UP, buff=0.2)
        unit.align_to(bars, LEFT)
        ratio = Label(f"÷ {trace.cache_ratio:.1f}", size=theme.BIG_NUMBER, bold=True).move_to([5.2, -0.2, 0])
        groups = Label(f"as much as {trace.equal_groups:g} heads of\nkeys and values would take", color=theme.MUTED)
        groups.next_to(bars.tip(2), RIGHT, buff=1.7)
        paper = Label(
            f"{trace.saved_by_elements:.0%} fewer numbers than DeepSeek-67B keeps;\n"
            f"the paper's {trace.saved_in_the_paper:.1%} also counts fewer bits for each",
            color=theme.MUTED,
        )
        paper.move_to([0, -1.85, 0]).align_to(bars, LEFT)
        self.say("In DeepSeek-V2, keys and values of every head would take this much.")
        self.play(FadeIn(unit, bars), run_time=theme.QUICK)
        self.play(bars.animate.show(0), run_time=1.2)
        self.say("Its latents, drawn to the same scale:")
        self.play(bars.animate.show(2), run_time=0.5)
        self.play(FadeIn(ratio, groups), run_time=theme.QUICK)
        self.hold(0.9)
        self.say("Against a real model with shared heads, the saving is smaller.")
        self.play(bars.animate.show(1), FadeIn(paper), run_time=0.6)
        self.hold(3.4)
        self.finish_beat()
        self.clear_stage()
        self.price()

    def price(self) -> None:
        """Show what the saving costs: multiplications in the large model, loss in the tiny one."""
        trace = self.trace
        work = Bars(
            trace.macs_per_cached_token, length=4.2, step=0.6, thickness=0.5, role=["KEY", "LATENT"], number=",d",
            number_size=0.24, names=trace.macs_names,
        ).move_to([0.8, 1.6, 0]).hide()  # fmt: skip
        per = Label("DeepSeek-V2: multiplications per head and cached word", color=theme.MUTED)
        per.next_to(work, UP, buff=0.2).align_to(work, LEFT)
        models = trace.models
        losses = Bars(
            models.excess, length=3.6, step=0.6, thickness=0.5, role=["KEY", "VALUE", "LATENT"], number=".3f",
            number_size=0.24, names=models.name,
        ).move_to([0.5, -1.25, 0]).hide()  # fmt: skip
        above = Label("our tiny model: nats above the best possible", color=theme.MUTED).next_to(losses, UP, buff=0.2)
        above.align_to(losses, LEFT)
        sizes = [
            Label(f"{size:d} numbers a word", color=theme.MUTED).move_to([5.35, losses.tip(k)[1], 0])
            for k, size in enumerate(models.cache_elements)
        ]
        self.say("The price: comparing in latent space takes more multiplications.")
        self.play(FadeIn(per, work), run_time=theme.QUICK)
        self.play(work.animate.show(), run_time=1.0)
        self.hold(0.6)
        self.say("Our tiny model: as small as one shared memory, nearly as good as four.")
        self.play(FadeIn(above, losses), run_time=theme.QUICK)
        for k, size in enumerate(sizes):
            self.play(losses.animate.show(k), FadeIn(size), run_time=0.5)
        self.hold(1.0)
