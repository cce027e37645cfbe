"""Draws internals_math.rope.Trace."""

from typing import Any

from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, Transform, linear

from internals_math import rope
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.number_line import NumberLine, SlideThrough
from scenes.kit.shapes import Stroke
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import BOS, RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.vector_plane import TurnThrough, VectorPlane


class RoPE(TopicScene):
    """A dot product is blind to order. How can turning a vector show how far apart two words are?"""

    core = rope
    takeaway = "Turn query and key by their positions, and their dot product depends only on the distance of the words."
    loop_alt = "Two arrows rotate around a circle together; the angle between them and their dot product never change."

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("A dot product is blind to order")
    def blind_to_order(self):
        """Without positions, the first layer cannot tell two orders apart."""
        test = self.trace.swap_test
        first, second = self.core.SWAPPED
        before, after = (self.sentence(tokens) for tokens in (test.tokens_before, test.tokens_after))
        bars = self.word_bars(test.weights_before, before)
        places = [
            Readout(lambda m: f"{m:d}", position, size=theme.SMALL, color=theme.MUTED).next_to(
                before.tile_center(k), DOWN, buff=0.36
            )
            for k, position in enumerate(test.positions_without)
        ]
        place_name = Label("position", color=theme.MUTED).next_to(places[0], LEFT, buff=0.55)
        outputs, names = zip(
            self.last_word_takes(test.output_before, f"output of “{test.tokens_before[-1]}”", -1.15),
            self.last_word_takes(test.output_after, "after the swap", -2.0),
            strict=True,
        )

        self.say("Positions off: the last word weighs every word so far.")
        self.play(FadeIn(before, place_name, *places), run_time=theme.QUICK)
        self.add(bars)
        self.play(bars.animate.show(), run_time=theme.MOVE)
        self.play(FadeIn(outputs[0], names[0], shift=0.2 * DOWN), run_time=theme.QUICK)

        self.say(f"Let {before.tokens[first]} and {before.tokens[second]} change places: their weights go along.")
        order = list(range(len(before.tokens)))
        order[first], order[second] = second, first
        self.swap_tiles(before, after, bars.animate.reorder(order))
        self.play(FadeIn(outputs[1], names[1], shift=0.2 * DOWN), run_time=theme.QUICK)

        self.say("Without positions, the first layer cannot tell these apart.")
        change = self.change_of_layer(test.change_without, ".0e")
        leak = Label(
            f"after the last layer: {test.change_last_without:.0f}\n(the mask leaks order)",
            color=theme.MUTED, align=0.5,
        ).next_to(change, DOWN, buff=0.3)  # fmt: skip
        change.add(leak)
        self.play(FadeIn(change), run_time=theme.QUICK)
        self.hold(0.6)

        self.say("Now give every word its position.")
        self.play(FadeOut(change, outputs[0], names[0]), run_time=0.3)
        bars.reorder(range(len(order))).set_values(test.weights_after)
        self.play(
            *(place.animate.set_value(test.positions_with[k], (0, 0)) for k, place in enumerate(places)),
            bars.animate.set_values(test.rope_weights_after),
            outputs[1].animate.set_values(test.rope_output_after),
            run_time=1.1,
        )

        self.say("Swap them back: now the weight stays with the place.")
        outputs[0].set_values(test.rope_output_before)
        self.swap_tiles(after, before, bars.animate.set_values(test.rope_weights_before))
        self.play(FadeIn(outputs[0], names[0], self.change_of_layer(test.change_with, ".2f")), run_time=theme.QUICK)
        self.hold(0.4)

    def sentence(self, tokens: Any) -> TokenRow:
        row = TokenRow(tokens, tile=1.0).move_to([0.35, 0.5, 0])
        return row.paint(list(self.core.SWAPPED), "KEY").paint(-1, "QUERY")

    def word_bars(self, weights: Any, row: TokenRow) -> Bars:
        """Return the weights of the words as bars standing on their tiles, not yet grown."""
        bars = Bars(weights, limit=1.0, direction="up", length=1.7, step=1.0, thickness=0.42)
        return bars.move_to(row).align_to(row.get_top() + 0.12 * UP, DOWN).hide()

    def last_word_takes(self, values: Any, name: str, height: float) -> tuple[TensorGrid, Label]:
        """Return an output of the last word and what to call it."""
        limit = largest(self.trace.swap_test.output_before, self.trace.swap_test.rope_output_before)
        grid = TensorGrid(values, cell=(0.72, 0.54), number="+.1f", limit=limit, role="OUTPUT").move_to([0, height, 0])
        return grid, Label(name, color=theme.MUTED).next_to(grid, LEFT, buff=0.3)

    def change_of_layer(self, change: Any, spec: str) -> Group:
        """Return how much the output of the first layer changed by the swap."""
        number = Readout(lambda v: format(v, spec), change, size=0.3, bold=True).move_to([4.85, -1.0, 0])
        words = Label("largest change in\nthe layer’s output", color=theme.MUTED, align=0.5)
        return Group(number, words.next_to(number, DOWN, buff=0.25))

    def swap_tiles(self, row: TokenRow, swapped: TokenRow, *meanwhile: Any) -> None:
        """Let two tiles change places; afterwards `swapped` stands in place of `row`."""
        first, second = self.core.SWAPPED
        tiles = [row.tile(first), row.tile(second)]
        ends = [row.tile_center(second), row.tile_center(first)]
        self.add(row.hide([first, second]), *tiles)
        moves = (tile.animate.move_to(end) for tile, end in zip(tiles, ends, strict=True))
        self.play(*moves, *meanwhile, run_time=1.3)
        self.remove(row.show(), *tiles)
        self.add(swapped)

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("A number that turns")
    def turning(self):
        """Position m turns the arrow by m times theta."""
        trace = self.trace
        stops, last = 7, 12
        numbers = TensorGrid(trace.q, cell=(0.68, 0.56), role="QUERY").move_to([3.2, 1.75, 0])
        whose = Label(f"query of “{trace.query_token}”", color=theme.QUERY, bold=True).next_to(numbers, UP, buff=0.25)
        plane = VectorPlane(trace.q_turned[0, 0], ["QUERY"], radius=2.2, axes=True).move_to([-3.6, 0.1, 0]).hide()
        line = NumberLine(
            trace.shifts[0], span=(0, last), length=5.4, ticks=range(0, last + 1, 2), tick_format="d", roles="QUERY",
            names=[trace.query_token], label="position of the word",
        ).move_to([3.2, -0.1, 0])  # fmt: skip
        speed = Label(f"theta: {trace.inv_freq[0]:.0f} radian a word, for this pair", color=theme.MUTED)
        speed.move_to([3.2, -1.45, 0])

        self.say("Take two numbers of a query. Together they are an arrow.")
        self.play(FadeIn(numbers, whose, plane), run_time=theme.QUICK)
        pair = [0, numbers.columns // 2]
        self.play(numbers.animate.focus(columns=pair), run_time=theme.QUICK)
        cells = [numbers.column(k) for k in pair]
        self.play(
            *(cell.animate.move_to(plane.foot(axis)).set_opacity(0) for axis, cell in enumerate(cells)),
            plane.animate(rate_func=lambda t: max(0.0, 2 * t - 1)).drop(),
            run_time=1.0,
        )
        self.remove(*cells)
        self.play(plane.animate.show(), run_time=0.5)
        self.hold(0.3)

        self.say("Position m turns the arrow by m times theta.")
        self.play(plane.animate.drop(0), FadeIn(line, speed), run_time=0.5)
        plane.tick(trace.turn_angles[0, 0], trace.shifts[0])
        for stop in range(1, stops):
            plane.leave_ghosts()
            self.play(
                plane.animate.set_tips(trace.q_turned[stop, 0]),
                line.animate.set_values(trace.shifts[stop]),
                run_time=0.7 if stop < 3 else 0.5,
            )
            plane.tick(trace.turn_angles[stop, 0], trace.shifts[stop])

        self.say("It keeps its length: only the direction tells the position.")
        law = Formula("{{ z : number }} arrow.r {{ z : number }} dot e^(i m theta)", size=0.32, number="QUERY")
        law.move_to([3.2, -2.25, 0])
        even = {"rate_func": linear, "run_time": 2.4}
        self.play(
            TurnThrough(plane, trace.q_turned[stops - 1 : last + 1, 0], **even),
            SlideThrough(line, trace.shifts[stops - 1 : last + 1], **even),
        )
        self.play(FadeIn(law, shift=0.1 * UP), run_time=theme.MOVE)
        self.hold(0.8)

    # -- chapter 3 and the loop -------------------------------------------------------------------------------------

    @chapter("Only the difference survives")
    def rigid_wedge(self):
        """Move both words together and the score stays put."""
        trace = self.trace
        plane, query, key, score = self.wedge_picture(2.1, [-3.7, 0.8, 0])
        line = self.text_line(
            [trace.key_positions[0], trace.query_positions[0]], trace.query_positions[-1], roles=["KEY", "QUERY"],
            names=[trace.key_token, trace.query_token], label="position in the text",
        )  # fmt: skip

        self.say("The query turns by its position, the key by its own.")
        self.play(FadeIn(plane, query, key, line), run_time=theme.MOVE)
        self.play(plane.animate.show_wedge(trace.angle_between[0, 0]), FadeIn(score), run_time=0.6)
        self.play(score[1].animate.show(), run_time=0.6)

        start, end = trace.score_apart[0], trace.score_apart[len(trace.score_apart) - 1]
        self.say(f"Move the query alone and the score goes from {start:.1f} to {end:.1f}.")
        for step in (*range(1, len(trace.score_apart)), 0):
            alone = [trace.key_positions[0], trace.apart_positions[step]]
            self.play(
                plane.animate.set_tips(trace.arrows_apart[step, 0]).show_wedge(trace.apart_angles[step, 0]),
                query.animate.set_value(trace.apart_positions[step]),
                line.animate.set_values(alone),
                score[1].animate.set_values(trace.score_apart[step : step + 1]),
                run_time=0.7,
            )
            self.hold(0.3)

        self.say("Move both words together and the score stays put.")
        self.play(line.animate.show_gap(), run_time=0.3)
        for step in (1, 2, 3):
            plane.leave_ghosts()
            together = [trace.key_positions[step], trace.query_positions[step]]
            self.play(
                plane.animate.set_tips(trace.arrows_by_shift[step, 0]).show_wedge(trace.angle_between[step, 0]),
                query.animate.set_value(trace.query_positions[step]),
                key.animate.set_value(trace.key_positions[step]),
                line.animate.set_values(together),
                score[1].animate.set_values(trace.score_by_shift[step : step + 1]),
                run_time=0.5,
            )
        plane.clear_ghosts()
        even = {"rate_func": linear, "run_time": 4.7}
        positions = trace.key_positions[3:], trace.query_positions[3:]
        self.play(
            TurnThrough(plane, trace.arrows_by_shift[3:, 0], degrees=trace.angle_between[3:, 0], **even),
            SlideThrough(line, *positions, **even),
            StepThrough(query, positions[1], **even),
            StepThrough(key, positions[0], **even),
            score[1].animate(**even).set_values(trace.score_by_shift[-1:]),
        )
        self.hold(0.3)

        self.say("Only the distance between the two positions is left.")
        law = Formula(
            "{{ tilde(q)_m : query }} dot {{ tilde(k)_n : key }} = {{ q : query }}^top R_(n - m) {{ k : key }}",
            size=0.3, query="QUERY", key="KEY",
        ).next_to(score, DOWN, buff=0.4).align_to(score, LEFT)  # fmt: skip
        self.play(FadeIn(law, shift=0.1 * UP), run_time=theme.MOVE)
        self.hold(0.6)

    def text_line(self, values: Any, last: Any, **looks: Any) -> NumberLine:
        """Return a line across the stage on which words stand at their positions, up to the last one."""
        ticks = range(0, int(last) + 1, 10 if int(last) < 100 else 50)
        line = NumberLine(values, span=(0, int(last) + 1), length=12.2, ticks=ticks, tick_format="d", **looks)
        return line.move_to([0, -2.0, 0])

    @loop
    def spinning(self):
        """Both arrows turn, the wedge and the score stay."""
        trace = self.trace
        plane, query, key, score = self.wedge_picture(3.1, [-3.4, 0, 0])
        # the positions would jump back at the end of the loop, the words stay
        names = [
            Label(f"{kind} of “{token}”", size=0.3, bold=True, color=color).move_to(place).align_to(place, LEFT)
            for kind, token, color, place in (
                ("query", trace.query_token, theme.QUERY, query),
                ("key", trace.key_token, theme.KEY, key),
            )
        ]
        Group(*names, score).set_y(0)
        score[1].show()
        self.add(plane.show_wedge(trace.angle_between[0, 0]), *names, score)
        even = {"rate_func": linear, "run_time": 6.0}
        self.play(
            TurnThrough(plane, trace.arrows_by_shift[:, 0], degrees=trace.angle_between[:, 0], **even),
            score[1].animate(**even).set_values(trace.score_by_shift[-1:]),
        )

    def wedge_picture(self, radius: float, center: Any) -> tuple[VectorPlane, Readout, Readout, Group]:
        """Return the circle with both arrows, the two words at their positions, and the score bar under its name."""
        trace = self.trace
        plane = VectorPlane(trace.arrows_by_shift[0, 0], ["QUERY", "KEY"], radius=radius, line=0.018 * radius + 0.03)
        plane.move_to(center)
        query = Readout(
            lambda m: f"query “{trace.query_token}” at position {m:d}", trace.query_positions[0],
            face="words", bold=True, color=theme.QUERY, size=0.26,
        ).move_to([0, 2.1, 0]).align_to([0.6, 0, 0], LEFT)  # fmt: skip
        key = Readout(
            lambda n: f"key “{trace.key_token}” at position {n:d}", trace.key_positions[0],
            face="words", bold=True, color=theme.KEY, size=0.26,
        ).move_to([0, 1.45, 0]).align_to([0.6, 0, 0], LEFT)  # fmt: skip
        scores = [float(score) for field in (trace.score_by_shift, trace.score_apart) for score in field]
        low, high = min(0.0, *scores), max(0.0, *scores)
        zero = 0.05 - 0.9 * low / (high - low)  # the ground holds every score that will be shown
        bar = Bars(
            trace.score_by_shift[:1], limit=(1 - zero) * (high - low) / 0.9, length=5.0, step=0.6, number_size=0.26,
            signed=zero,
        )  # fmt: skip
        bar.move_to([0, 0.05, 0]).align_to([0.6, 0, 0], LEFT)
        root = bar.hide().tip(0)
        axis = Stroke(root + 0.36 * UP, root + 0.36 * DOWN, color=theme.MUTED)
        name = (
            Label("score: query · key, all pairs", size=0.22, color=theme.MUTED)
            .next_to(bar, UP, buff=0.2)
            .align_to(bar, LEFT)
        )
        pair = Label("fastest pair", color=theme.MUTED).move_to(plane.get_top() + 0.12 * UP).align_to(plane, LEFT)
        return plane.add(pair), query, key, Group(name, bar, axis)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Four clock hands")
    def clock_hands(self):
        """Fast hands see neighbors, slow hands see far away."""
        trace = self.trace
        pairs = len(trace.inv_freq)
        planes, speeds, turns, waves = [], [], [], []
        for pair in range(pairs):
            plane = VectorPlane(trace.q_turned[0, pair], ["QUERY"], radius=1.45, normalize=True)
            plane.move_to([-4.95 + 3.3 * pair, 1.2, 0]).leave_ghosts().leave_trail()
            planes.append(plane)
            speed = Label(f"{trace.inv_freq[pair]:.2f} rad a word", color=theme.MUTED).next_to(plane, DOWN, buff=0.25)
            speeds.append(speed)
            turn = Readout(lambda t: f"{t:.1f} turns", trace.turns[0, pair], size=0.24, bold=True)
            turns.append(turn.next_to(speed, DOWN, buff=0.2))
            wave = Label(f"a turn in {trace.wavelengths[pair]:.0f} words", bold=True, color=theme.QUERY)
            waves.append(wave.move_to(speed))
        line = self.text_line(
            trace.shifts[0], trace.shifts[-1], roles="QUERY", names=[trace.query_token], label="position of the word"
        )

        self.say("A head has several such pairs, and each turns at its own speed.")
        self.play(FadeIn(*planes, *speeds), run_time=theme.MOVE)
        self.play(FadeIn(line, *turns), run_time=theme.QUICK)
        self.say("Fast hands see neighbors, slow hands see far away.")
        even = {"rate_func": linear, "run_time": 5.6}
        self.play(
            *(TurnThrough(plane, trace.q_turned[:, pair], **even) for pair, plane in enumerate(planes)),
            *(StepThrough(turn, trace.turns[:, pair], (0, 0), **even) for pair, turn in enumerate(turns)),
            SlideThrough(line, trace.shifts, **even),
        )
        self.hold(0.4)
        fast, slow = trace.wavelengths[0], trace.wavelengths[pairs - 1]
        self.say(f"The fastest comes round in {fast:.0f} words, the slowest in {slow:.0f}.")
        self.play(FadeOut(*speeds), run_time=0.25)
        self.play(FadeIn(*waves), run_time=0.4)
        self.hold(0.4)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("A sum of waves")
    def waves(self):
        """Each pair adds one wave of the distance."""
        trace = self.trace
        pairs, last = len(trace.inv_freq), float(trace.distances[-1])
        top, span = 1.3 * largest(trace.waves), 1.05 * largest(trace.wave_sums)
        small = [
            self.wave(pair, Chart(3.9, 1.1, x=(0, last), y=(-top, top)).move_to([-4.45, 2.1 - 1.38 * pair, 0]), drawn=0)
            for pair in range(pairs)
        ]
        names = [
            Label(name, color=theme.MUTED).next_to(chart, RIGHT, buff=0.15)
            for name, chart in zip(("fastest", "fast", "slow", "slowest"), small, strict=False)
        ]
        big = Chart(
            6.0, 4.3, x=(0, last), y=(-span, span), x_ticks=[0, 16, 32, 48, 64], y_ticks=[-10, 0, 10],
            x_format="d", y_format="d", x_label="distance from key to query, in words", y_label="score",
        ).move_to([3.3, 0.2, 0])  # fmt: skip
        total = big.curve(trace.wave_distances, trace.wave_sums[0], role="SCORE", line=theme.THICK)
        big.show_curve(total, 0)

        self.say("Slide the key away from the query: every pair draws a wave.")
        self.play(FadeIn(*small, *names, big), run_time=theme.QUICK)
        for chart in small:
            chart.ride(0, 0.0)
        even = {"rate_func": linear, "run_time": 2.6}
        self.play(*(chart.animate(**even).draw_curve(0).ride(0, 1.0) for chart in small))
        for chart in small:
            chart.ride(0, float("nan"))

        self.say("Each pair adds one wave of the distance.")
        for pair in range(pairs):
            flying = small[pair].copy()
            place = Chart(6.0, 4.3, x=(0, last), y=(-span, span)).move_to(big)
            self.play(Transform(flying, self.wave(pair, place)), run_time=0.6)
            added = big.animate.set_curve(total, trace.wave_sums[pair]).show_curve(total)
            self.play(FadeOut(flying), added, run_time=0.5)

        near, score = trace.word_distance, trace.score_by_distance[trace.word_distance]
        self.say(f"At a distance of {near:d} it is {score:.1f}: the score of the two arrows.")
        here = int(near) / last
        mark = Readout(lambda s: f"{s:.1f}", score, size=0.26, bold=True, color=theme.SCORE)
        mark.next_to(big.place(near, score), RIGHT, buff=0.3)
        self.play(big.animate.ride(total, here), FadeIn(mark), run_time=theme.QUICK)
        self.say("This head likes some distances and not others: no steady fall.")
        self.play(FadeOut(mark), run_time=0.2)
        self.play(big.animate(rate_func=linear).ride(total, 1.0), run_time=3.0)
        self.hold(0.3)

    def wave(self, pair: int, chart: Chart, drawn: float = 1.0) -> Chart:
        """Put the wave of one pair on a chart."""
        chart.curve(self.trace.wave_distances, self.trace.waves[pair], role="WEIGHT", drawn=drawn)
        return chart

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("What the model sees")
    def scores_seen(self):
        """Shift the whole text: the same logits, to rounding."""
        trace = self.trace
        limit = largest(trace.score_matrix_plain, trace.score_matrix_rope)
        count = len(trace.tokens)
        cell = (min(0.82, 6.56 / count), min(0.5, 4.0 / count))
        roomy = cell[0] > 0.7  # for numbers in the cells and words above them
        grid = TensorGrid(trace.score_matrix_plain, cell=cell, number=".0f" if roomy else None, limit=limit)
        grid.move_to([-1.35, -0.25, 0])
        for row in range(grid.rows):
            grid.hide(rows=row, columns=slice(row + 1, None))  # a query sees no later key
        places = [
            Readout(lambda m: f"{m:,}", position, size=theme.SMALL, color=theme.MUTED)
            .next_to(grid.row_center(row), RIGHT, buff=0)
            .align_to(grid.get_left() + 0.15 * LEFT, RIGHT)
            for row, position in enumerate(trace.score_positions)
        ]
        names = RowNames(trace.tokens, grid, gap=0.95)
        keys = [
            Label("•" if token == BOS else token, color=theme.KEY)
            .next_to(grid.column_center(k), UP, buff=0)
            .set_y(grid.get_top()[1] + 0.25)
            for k, token in enumerate(trace.tokens)
            if roomy
        ]
        words = [
            Label("queries", color=theme.QUERY, bold=True).next_to(names, UP, buff=0.2).align_to(names, RIGHT),
            Label("keys", color=theme.KEY, bold=True).next_to(grid, UP, buff=0.6),
        ]
        law = Formula("{{ tilde(q)_m : query }} dot {{ tilde(k)_n : key }}", size=0.34, query="QUERY", key="KEY")
        law.move_to([5.0, 2.3, 0])
        state = Label("scores before the rotation", color=theme.MUTED).next_to(grid, DOWN, buff=0.25)
        turned = Label("scores after the rotation", bold=True).next_to(grid, DOWN, buff=0.25)
        self.say("All scores of the sentence, and what the rotation makes of them.")
        self.play(FadeIn(grid, names, *keys, *places, *words, state), run_time=theme.QUICK)
        self.hold(0.9)
        self.play(FadeOut(state), run_time=0.2)
        self.play(grid.animate.set_values(trace.score_matrix_rope), FadeIn(turned, law), run_time=1.2)

        far = len(trace.shift_test_shifts) - 1
        self.say(f"Shifted by {trace.shift_test_shifts[far]:,} positions: the same logits, to rounding.")
        heads = [
            Label(words, color=theme.MUTED, align=1.0).move_to([0, 1.1, 0]).align_to([x, 0, 0], RIGHT)
            for words, x in (("whole text\nmoved by", 3.9), ("largest change\nof a logit", 6.45))
        ]
        self.play(FadeIn(*heads), run_time=0.3)
        for row in range(far + 1):
            y = 0.25 - 0.6 * row
            shift = Readout(lambda n: f"{n:,}", trace.shift_test_shifts[row], size=0.26).move_to([2.9, y, 0])
            moved = Readout(lambda d: f"{d:.1e}", trace.shift_test_diff[row], size=0.26, bold=True)
            shift.align_to([3.9, 0, 0], RIGHT)
            moved.move_to([4.9, y, 0]).align_to([6.45, 0, 0], RIGHT)
            self.play(
                *(place.animate.set_value(trace.shifted_positions[row, k], RIGHT) for k, place in enumerate(places)),
                grid.animate.set_values(trace.score_matrix_shifted[row]),
                FadeIn(shift, moved),
                run_time=0.6,
            )
            self.hold(0.15)
        self.hold(0.6)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Longer than trained")
    def longer(self):
        """Slow the hands down and old angles cover new positions."""
        trace = self.trace
        places = trace.loss_positions
        chart = Chart(
            5.6, 3.9, x=(0, 252), y=(0, 2), x_ticks=[0, 64, 128, 192], y_ticks=[0, 1, 2, 3], x_format="d",
            y_format="d", x_label="position in the text", y_label="loss, nats a word",
        ).move_to([-3.3, 0.2, 0])  # fmt: skip
        chart.level(trace.loss_floor[0], label="best possible")
        trained, linear_scaled, ntk = (
            chart.curve(places, values, role=role, label=label, drawn=0, label_shift=shift)
            for values, role, label, shift in (
                (trace.loss_none, "LOSS", "as trained", 0.14),
                (trace.loss_linear, "INPUT", "all hands slower", 0.0),
                (trace.loss_ntk, "WEIGHT", "slow hands slower", -0.14),
            )
        )
        edge = Stroke(*(chart.place(trace.train_length, y) for y in (0, 2)), dash=(0.08, 0.08), color=theme.MUTED)
        edge_name = Label(f"trained up to {trace.train_length:d}", color=theme.MUTED)
        edge_name.next_to(edge, RIGHT, buff=0.15).shift(0.75 * UP)
        hand = VectorPlane(trace.slow_hand_none[0], ["QUERY"], radius=1.2).sector(trace.trained_arc)
        hand.move_to([4.85, 1.1, 0])
        hand_name = Label("slowest hand", bold=True, color=theme.QUERY).next_to(hand, UP, buff=0.2)
        seen = Label("shaded: seen in training", color=theme.MUTED).next_to(hand, DOWN, buff=0.25)
        speeds = TensorGrid(trace.inv_freq, map="QUERY", cell=(0.82, 0.5), number=".3f").move_to([4.85, -1.5, 0])
        speeds_name = Label("the four hands, rad a word", color=theme.MUTED).next_to(speeds, DOWN, buff=0.2)

        self.say(f"Beyond {trace.train_length:d} words, the slowest hand reaches angles it has never seen.")
        self.play(FadeIn(chart, edge, edge_name, hand, hand_name, seen), run_time=theme.QUICK)
        self.measure(chart, trained, hand, trace.slow_hand_none)
        self.say("Slow the hands down and old angles cover new positions.")
        self.play(FadeIn(speeds, speeds_name), run_time=theme.QUICK)
        self.play(
            speeds.animate.set_values(trace.inv_freq_ntk), hand.animate.set_tips(trace.slow_hand_ntk[0]), run_time=0.7
        )
        self.measure(chart, ntk, hand, trace.slow_hand_ntk)
        end = len(places) - 1
        self.say(
            f"At the end: {trace.loss_none[end]:.2f} as trained, {trace.loss_ntk[end]:.2f} with slow hands slower."
        )
        self.hold(0.5)
        self.say(f"All hands slower, without training for it: {trace.loss_linear[end]:.2f}.")
        self.play(
            speeds.animate.set_values(trace.inv_freq_linear),
            hand.animate.set_tips(trace.slow_hand_linear[0]),
            chart.animate.set_range(y=(0, 3.3)),
            run_time=0.8,
        )
        self.measure(chart, linear_scaled, hand, trace.slow_hand_linear)
        self.hold(0.4)

    def measure(self, chart: Chart, curve: int, hand: VectorPlane, tips: Any) -> None:
        """Draw a curve by position while the slowest hand turns along."""
        even = {"rate_func": linear, "run_time": 2.2}
        self.play(chart.animate(**even).draw_curve(curve), TurnThrough(hand, tips, **even))
