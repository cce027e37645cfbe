"""Draws internals_math.rope.Trace."""

from typing import Any

from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, linear

from internals_math import rope
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.shapes import Stroke
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.vector_plane import TurnThrough, VectorPlane


class RoPE(TopicScene):
    """A dot product knows nothing about order. How can turning a vector tell the model how far apart two words are?"""

    core = rope
    takeaway = (
        "Turn the query by its position and the key by its position: "
        "their dot product then depends on the distance between the words, and on nothing else."
    )
    loop_alt = "Two arrows rotate around a circle together; the angle between them and their dot product never change."

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("A dot product is blind to order")
    def blind_to_order(self):
        """Without positions, the first layer cannot tell two orders apart."""
        test = self.trace.swap_test
        first, second = self.core.SWAPPED
        before = TokenRow(test.tokens_before, tile=0.98).move_to([-2.4, 0.85, 0])
        after = TokenRow(test.tokens_after, tile=0.98).move_to([-2.4, -2.2, 0])
        for row in (before, after):
            row.paint([first, second], "KEY").paint(-1, "QUERY")
        bars = {row: self.word_bars(row, weights) for row, weights in
                ((before, test.weights_before), (after, test.weights_after))}  # fmt: skip
        outputs = {row: self.output_of(row, values) for row, values in
                   ((before, test.output_before), (after, test.output_after))}  # fmt: skip
        name = Label("what the last word takes away", size=0.18, color=theme.MUTED)
        name.next_to(outputs[before], UP, buff=0.25)

        self.say("Switch positions off. The last word weighs every word so far.")
        self.play(FadeIn(before), run_time=theme.QUICK)
        self.add(bars[before])
        self.play(bars[before].animate.show(), run_time=theme.MOVE)
        self.play(FadeIn(outputs[before], name), run_time=theme.QUICK)
        self.say("Now two words change places.")
        order = list(range(len(test.tokens_before)))
        order[first], order[second] = second, first
        tiles = [before.tile(k) for k in order]
        self.play(*(tile.animate.move_to(after.tile_center(k)) for k, tile in enumerate(tiles)), run_time=1.3)
        self.remove(*tiles)
        self.add(after, bars[after])
        self.play(bars[after].animate.show(), run_time=theme.MOVE)
        self.play(FadeIn(outputs[after]), run_time=theme.QUICK)
        self.say("Without positions, the first layer cannot tell these apart.")
        change = Readout(lambda v: f"{v:.0e}", test.change_without, size=0.28, bold=True).move_to([4.35, -0.55, 0])
        words = Label("largest difference", size=0.18, color=theme.MUTED).next_to(change, DOWN, buff=0.2)
        self.play(FadeIn(change, words), run_time=theme.QUICK)
        self.hold(0.6)
        self.say("Give every word its position, and the order counts.")
        self.play(
            bars[before].animate.set_values(test.rope_weights_before),
            bars[after].animate.set_values(test.rope_weights_after),
            outputs[before].animate.set_values(test.rope_output_before),
            outputs[after].animate.set_values(test.rope_output_after),
            run_time=1.2,
        )
        new = Readout(lambda v: f"{v:.2f}", test.change_with, size=0.28, bold=True, color=theme.KEY).move_to(change)
        self.play(FadeOut(change), FadeIn(new), run_time=theme.QUICK)
        self.hold(0.8)

    def word_bars(self, row: TokenRow, weights: Any) -> Bars:
        """Return the weights of the words as bars standing on their tiles, not yet grown."""
        bars = Bars(weights, limit=1.0, direction="up", length=1.35, step=0.98, thickness=0.4)
        return bars.move_to(row).align_to(row.get_top() + 0.12 * UP, DOWN).hide()

    def output_of(self, row: TokenRow, values: Any) -> TensorGrid:
        """Return the output of the last word beside its sentence."""
        limit = largest(self.trace.swap_test.output_before, self.trace.swap_test.rope_output_before)
        grid = TensorGrid(values, cell=(0.57, 0.5), number="+.1f", limit=limit, role="OUTPUT")
        return grid.move_to([4.3, row.get_center()[1] + 0.45, 0])

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("A number that turns")
    def turning(self):
        """Position m turns the arrow by m times theta."""
        trace = self.trace
        stops = 7
        numbers = TensorGrid(trace.q, cell=(0.66, 0.56), role="QUERY").move_to([3.1, 1.7, 0])
        whose = Label(f"query of “{trace.query_token}”", color=theme.QUERY, bold=True).next_to(numbers, UP, buff=0.25)
        plane = VectorPlane(trace.q_turned[0, 0], ["QUERY"], radius=2.3).move_to([-3.6, 0.05, 0]).hide()
        position = Readout(lambda m: f"position {m:d}", trace.shifts[0], size=0.3, bold=True).move_to([3.1, 0.2, 0])
        speed = Label(f"theta is {trace.inv_freq[0]:.0f} radian for this pair", color=theme.MUTED).move_to(
            [3.1, -0.5, 0]
        )

        self.say("Take two numbers of a query. Together they are an arrow.")
        self.play(FadeIn(numbers, whose), run_time=theme.QUICK)
        half = numbers.columns // 2
        self.play(numbers.animate.focus(columns=[0, half]), run_time=theme.QUICK)
        cells = [numbers.column(k) for k in (0, half)]
        self.add(plane)
        self.play(
            *(cell.animate.move_to(plane.tip(0)).scale(0.4).set_opacity(0) for cell in cells),
            FadeIn(plane),
            run_time=0.8,
        )
        self.play(plane.animate.show(), run_time=0.6)
        self.say("Position m turns the arrow by m times theta.")
        self.play(FadeIn(position, speed), run_time=0.4)
        for stop in range(1, stops):
            plane.leave_ghosts()
            self.play(
                plane.animate.set_tips(trace.q_turned[stop, 0]),
                position.animate.set_value(trace.shifts[stop], (0, 0)),
                run_time=0.7 if stop < 3 else 0.45,
            )
        self.say("It keeps its length: only the direction tells the position.")
        law = Formula("{{ z : number }} arrow.r {{ z : number }} dot e^(i m theta)", size=0.3, number="QUERY")
        law.move_to([3.1, -1.6, 0])
        self.play(FadeIn(law, shift=0.1 * UP), run_time=theme.MOVE)
        self.hold(1.0)

    # -- chapter 3 and the loop -------------------------------------------------------------------------------------

    @chapter("Only the difference survives")
    def rigid_wedge(self):
        """Move both words together and the score stays put."""
        trace = self.trace
        plane, panel = self.wedge_picture()
        query, key, score, value, angle = panel
        self.say("The query turns by its position, the key by its own.")
        self.play(FadeIn(plane, query, key), run_time=theme.MOVE)
        self.play(plane.animate.show_wedge(), FadeIn(angle, score, value), run_time=theme.MOVE)
        self.play(score.animate.show(), run_time=0.6)
        self.say("Move both words one place on: both arrows turn alike.")
        for shift in (1, 2, 3):
            plane.leave_ghosts()
            self.play(
                plane.animate.set_tips(trace.arrows_by_shift[shift, 0]),
                query.animate.set_value(trace.query_positions[shift]),
                key.animate.set_value(trace.key_positions[shift]),
                run_time=0.9,
            )
        self.say("Move both words together and the score stays put.")
        plane.clear_ghosts()
        self.spin(plane, panel, start=3, run_time=6.0)
        self.hold(0.5)
        law = Formula(
            "{{ tilde(q)_m : query }} dot {{ tilde(k)_n : key }} = {{ q : query }}^top R_(n - m) {{ k : key }}",
            size=0.27, query="QUERY", key="KEY",
        ).move_to([3.4, -2.1, 0])  # fmt: skip
        self.say("Only the distance between the two positions is left.")
        self.play(FadeIn(law, shift=0.1 * UP), run_time=theme.MOVE)
        self.hold(0.8)

    @loop
    def spinning(self):
        """Both arrows turn, the wedge and the score stay."""
        plane, (query, key, score, value, angle) = self.wedge_picture(radius=3.2)
        # the positions would jump back at the end of the loop, the words stay
        names = [
            Label(f"{kind} of “{token}”", size=0.26, bold=True, color=color).align_to(place, LEFT).set_y(place.get_y())
            for kind, token, color, place in (
                ("query", self.trace.query_token, theme.QUERY, query),
                ("key", self.trace.key_token, theme.KEY, key),
            )
        ]
        plane.show_wedge()
        self.add(plane, *names, score.show(), value, angle)
        even = {"rate_func": linear, "run_time": 6.0}
        self.play(
            TurnThrough(plane, self.trace.arrows_by_shift[:, 0], **even),
            StepThrough(angle, self.trace.angle_between[:, 0], **even),
            score.animate(**even).set_values(self.trace.score_by_shift[-1:]),
        )

    def wedge_picture(self, radius: float = 2.35) -> tuple[VectorPlane, tuple[Any, ...]]:
        """Return the circle with both arrows, and what is read off beside it."""
        trace = self.trace
        plane = VectorPlane(trace.arrows_by_shift[0, 0], ["QUERY", "KEY"], radius=radius, line=0.032 * radius)
        plane.move_to([-3.3, 0.05, 0])
        left = [0.75, 0, 0]
        query = Readout(
            lambda m: f"query “{trace.query_token}” at position {m:d}", trace.query_positions[0],
            face="words", bold=True, color=theme.QUERY, size=0.24,
        ).move_to([0, 1.9, 0]).align_to(left, LEFT)  # fmt: skip
        key = Readout(
            lambda n: f"key “{trace.key_token}” at position {n:d}", trace.key_positions[0],
            face="words", bold=True, color=theme.KEY, size=0.24,
        ).move_to([0, 1.3, 0]).align_to(left, LEFT)  # fmt: skip
        angle = Readout(
            lambda a: f"angle between them {a:.0f}°", trace.angle_between[0, 0], face="words", size=0.24
        ).move_to([0, 0.35, 0]).align_to(left, LEFT)  # fmt: skip
        value = Label("score: query · key", color=theme.MUTED).move_to([0, -0.4, 0]).align_to(left, LEFT)
        score = Bars(
            trace.score_by_shift[:1], limit=1.4 * abs(float(trace.score_by_shift[0])), length=5.6, step=0.6,
            number_size=0.26,
        ).move_to([0, -0.95, 0]).align_to(left, LEFT).hide()  # fmt: skip
        return plane, (query, key, score, value, angle)

    def spin(self, plane: VectorPlane, panel: tuple[Any, ...], *, start: int, run_time: float) -> None:
        """Move both words through all positions from the shift `start` on."""
        trace = self.trace
        query, key, score, _, angle = panel
        even = {"rate_func": linear, "run_time": run_time}
        self.play(
            TurnThrough(plane, trace.arrows_by_shift[start:, 0], **even),
            StepThrough(query, trace.query_positions[start:], **even),
            StepThrough(key, trace.key_positions[start:], **even),
            StepThrough(angle, trace.angle_between[start:, 0], **even),
            score.animate(**even).set_values(trace.score_by_shift[-1:]),
        )

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Four clock hands")
    def clock_hands(self):
        """Fast hands see neighbors, slow hands see far away."""
        trace = self.trace
        pairs = len(trace.inv_freq)
        planes, speeds, turns = [], [], []
        for pair in range(pairs):
            plane = VectorPlane(trace.q_turned[0, pair], ["QUERY"], radius=1.5, normalize=True)
            plane.move_to([-5.0 + 3.33 * pair, 0.55, 0]).leave_ghosts()
            planes.append(plane)
            speed = Label(f"{trace.inv_freq[pair]:.2f} rad per word", size=0.18, color=theme.MUTED)
            speeds.append(speed.next_to(plane, DOWN, buff=0.3))
            turn = Readout(lambda t: f"{t:.1f} turns", trace.turns[0, pair], size=0.24, bold=True)
            turns.append(turn.next_to(speed, DOWN, buff=0.25))
        position = Readout(lambda m: f"position {m:d}", trace.shifts[0], size=0.3, bold=True).move_to([0, 2.65, 0])
        self.say("A head has several such pairs, and each turns at its own speed.")
        self.play(FadeIn(*planes, *speeds), run_time=theme.MOVE)
        self.play(FadeIn(position, *turns), run_time=theme.QUICK)
        self.say("Fast hands see neighbors, slow hands see far away.")
        even = {"rate_func": linear, "run_time": 6.0}
        self.play(
            *(TurnThrough(plane, trace.q_turned[:, pair], **even) for pair, plane in enumerate(planes)),
            *(StepThrough(turn, trace.turns[:, pair], (0, 0), **even) for pair, turn in enumerate(turns)),
            StepThrough(position, trace.shifts, (0, 0), **even),
        )
        self.hold(0.6)
        slowest = trace.wavelengths[pairs - 1]
        self.say(f"The slowest hand needs {slowest:.0f} words for one full turn.")
        self.play(*(part.animate.set_opacity(0.3) for group in (planes, speeds, turns) for part in group[:-1]))
        self.hold(0.8)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("A sum of waves")
    def waves(self):
        """Each pair adds one wave of the distance."""
        trace = self.trace
        pairs, last = len(trace.inv_freq), float(trace.distances[-1])
        top = largest(trace.contributions)
        small = []
        for pair in range(pairs):
            chart = Chart(3.9, 0.95, x=(0, last), y=(-1.3 * top, 1.3 * top), y_ticks=[0], y_format=lambda _: "")
            chart.move_to([-4.35, 2.15 - 1.42 * pair, 0])
            chart.curve(trace.distances, trace.contributions[pair], role="WEIGHT", drawn=0)
            small.append(chart)
        names = [
            Label(name, size=0.18, color=theme.MUTED).next_to(chart, UP, buff=0.04).align_to(chart, LEFT)
            for name, chart in zip(("fastest pair", "second", "third", "slowest"), small, strict=False)
        ]
        span = largest(trace.partial_sums)
        big = Chart(
            5.6, 4.2, x=(0, last), y=(-span, span), x_ticks=[0, 16, 32, 48, 64], y_ticks=[-10, 0, 10],
            x_format="d", y_format="d", x_label="words between query and key", y_label="score",
        ).move_to([3.3, 0.2, 0])  # fmt: skip
        total = big.curve(trace.distances, trace.partial_sums[0], role="SCORE", line=theme.THICK, drawn=0)
        self.say("Slide the key away from the query: every pair draws a wave.")
        self.play(FadeIn(*small, *names, big), run_time=theme.QUICK)
        self.play(*(chart.animate(rate_func=linear).draw_curve(0) for chart in small), run_time=2.4)
        self.say("Each pair adds one wave of the distance.")
        for pair in range(pairs):
            focus = [chart.animate.set_opacity(1.0 if k <= pair else 0.35) for k, chart in enumerate(small)]
            added = (
                big.animate.draw_curve(total) if pair == 0 else big.animate.set_curve(total, trace.partial_sums[pair])
            )
            self.play(*focus, added, run_time=1.1)
            self.hold(0.2)
        self.say("The sum is this head’s real taste for distance: up and down.")
        big.ride(total, 0.0)
        self.play(big.animate(rate_func=linear).ride(total, 1.0), run_time=3.0)
        self.hold(0.3)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("What the model sees")
    def scores_seen(self):
        """Shift the whole text: the same logits, to rounding."""
        trace = self.trace
        limit = largest(trace.score_matrix_plain, trace.score_matrix_rope)
        grid = TensorGrid(trace.score_matrix_plain, cell=(0.6, 0.56), number=None, limit=limit).move_to([-3.0, 0.05, 0])
        names = RowNames(trace.tokens, grid)
        rows = Label("queries", size=0.18, color=theme.QUERY, bold=True).next_to(names, UP, buff=0.2)
        columns = Label("keys, same order", size=0.18, color=theme.KEY, bold=True).next_to(grid, UP, buff=0.2)
        state = Label("before the rotation", color=theme.MUTED).next_to(grid, DOWN, buff=0.25)
        turned = Label("after the rotation", bold=True).next_to(grid, DOWN, buff=0.25)
        self.say("All scores of the sentence, and what the rotation makes of them.")
        self.play(FadeIn(grid, names, rows, columns, state), run_time=theme.QUICK)
        self.hold(0.8)
        self.play(grid.animate.set_values(trace.score_matrix_rope), FadeOut(state), FadeIn(turned), run_time=1.2)
        far = len(trace.shift_test_shifts) - 1
        self.say(f"Shifted by {trace.shift_test_shifts[far]:,} positions: the same logits, to rounding.")
        heads = [
            Label("whole text\nmoved by", size=0.18, color=theme.MUTED, align=1.0).move_to([0, 1.9, 0]),
            Label("largest change\nof a logit", size=0.18, color=theme.MUTED, align=1.0).move_to([0, 1.9, 0]),
        ]
        for head, x in zip(heads, (3.0, 6.0), strict=True):
            head.align_to([x, 0, 0], RIGHT)
        lines = []
        for row in range(far + 1):
            y = 1.05 - 0.6 * row
            shift = Readout(lambda n: f"{n:,}", trace.shift_test_shifts[row], size=0.26).move_to([2.9, y, 0])
            moved = Readout(lambda d: f"{d:.1e}", trace.shift_test_diff[row], size=0.26, bold=True, color=theme.KEY)
            shift.align_to([3.0, 0, 0], RIGHT)
            lines.append(Group(shift, moved.move_to([4.9, y, 0]).align_to([6.0, 0, 0], RIGHT)))
        self.play(FadeIn(*heads), run_time=0.4)
        for line in lines:
            self.play(FadeIn(line, shift=0.1 * RIGHT), run_time=0.45)
        self.hold(0.8)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Longer than trained")
    def longer(self):
        """Slow the hands down and old angles cover new positions."""
        trace = self.trace
        places = trace.loss_positions
        last, top = 252.0, 3.3
        chart = Chart(
            7.6, 4.3, x=(0, last), y=(0, top), x_ticks=[0, 64, 128, 192], y_ticks=[0, 1, 2, 3], x_format="d",
            y_format="d", x_label="position in the text", y_label="loss, nats per word",
        ).move_to([-1.9, 0.3, 0])  # fmt: skip
        floor = chart.curve(
            places,
            trace.loss_floor,
            role="REFERENCE",
            label="best possible",
            dash=(0.12, 0.1),
            label_shift=0.0,
            drawn=0,
        )
        curves = [
            chart.curve(places, values, role=role, label=label, drawn=0, label_shift=shift)
            for values, role, label, shift in (
                (trace.loss_none, "LOSS", "as trained", 0.14),
                (trace.loss_linear, "VALUE", "all hands slower", 0.0),
                (trace.loss_ntk, "KEY", "slow hands slower", -0.14),
            )
        ]
        edge = Stroke(chart.place(trace.train_length, 0), chart.place(trace.train_length, top), dash=(0.08, 0.08))
        edge_name = Label(f"trained up to {trace.train_length:d}", size=0.18, color=theme.MUTED)
        edge_name.next_to(chart.place(trace.train_length, 2.4), RIGHT, buff=0.15)
        self.say("Beyond the positions it was trained on, the model gets lost.")
        self.play(FadeIn(chart, edge, edge_name), run_time=theme.QUICK)
        self.play(chart.animate.draw_curve(floor), run_time=0.6)
        self.play(chart.animate(rate_func=linear).draw_curve(curves[0]), run_time=2.2)
        self.say("Slow the hands down and old angles cover new positions.")
        self.play(chart.animate(rate_func=linear).draw_curve(curves[2]), run_time=2.2)
        self.say("Here it helps a little far out and costs a little nearby.")
        self.hold(0.5)
        self.say("Slowing every hand confuses this model: near words blur too.")
        self.play(chart.animate(rate_func=linear).draw_curve(curves[1]), run_time=2.0)
        self.hold(0.8)
