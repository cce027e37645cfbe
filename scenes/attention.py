"""Draws internals_math.attention.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, LaggedStart

from internals_math import attention
from scenes.attention_stage import AttentionStage
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.formula import Formula
from scenes.kit.key_plane import KeyPlane
from scenes.kit.label import Label, Readout
from scenes.kit.motion import RowByRow
from scenes.kit.number_line import NumberLine
from scenes.kit.shapes import Frame
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop

LOOP_ROWS = (-4, -2, -1)  # the words of the prompt that ask in the loop


class Attention(TopicScene):
    """How does a word collect what it needs from the other words?"""

    core = attention
    takeaway = "Every word asks, all words so far answer: matches become weights, and the weights mix the values."
    loop_alt = (
        "A query goes down a column of keys and leaves a weight at each; the weights tint the value rows, which slide "
        "together into one output row. Then another word asks."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("A word needs its neighbors")
    def needs_neighbors(self):
        """Which earlier words does this one need?"""
        trace = self.trace
        tile = min(0.95, 13.1 / (len(trace.tokens) + 1))
        words = TokenRow(trace.tokens, tile=tile).move_to([0, 2.5, 0]).align_to([-6.6, 0, 0], LEFT)
        columns = [self.word_column(k).move_to([words.tile_center(k)[0], 0.2, 0]) for k in range(len(trace.tokens))]
        last = int(trace.query_position)
        question = Label("?", size=theme.BIG_NUMBER, bold=True, color=theme.QUERY)
        question.move_to(words.tile_center(len(trace.tokens) - 1) + tile * RIGHT)

        self.say("Every word enters the model as a column of numbers.")
        self.play(
            FadeIn(words), LaggedStart(*(FadeIn(column, shift=0.3 * DOWN) for column in columns), lag_ratio=0.08),
            run_time=1.6,
        )  # fmt: skip
        if len(trace.same_positions) > 1:
            self.say(f"Wherever “{trace.query_token}” stands, its numbers are the same.")
            twins = [int(k) for k in trace.same_positions[:-1]]
            copies = [columns[k].copy() for k in twins]
            self.play(
                *(column.animate.recede() for k, column in enumerate(columns) if k != last and k not in twins),
                words.animate.focus([*twins, last]),
                run_time=0.5,
            )
            self.add(*copies)
            self.play(*(copy.animate.move_to(columns[last]) for copy in copies), run_time=1.5)
            self.remove(*copies)
        frame = Frame.around(columns[last], pad=0.1, color=theme.QUERY)
        self.say("So they cannot say what comes next. Which other words can?")
        self.play(FadeIn(frame, question), words.animate.focus(last).paint(last, "QUERY"), run_time=theme.QUICK)
        others = [column for k, column in enumerate(columns) if k != last]
        self.play(*(column.animate.lead() for column in others), words.animate.lead(), run_time=1.0)
        self.hold(0.8)

    def word_column(self, position: int) -> TensorGrid:
        """Return the numbers with which a word enters the model, from top to bottom."""
        numbers = self.trace.embeddings[position].reshape(-1, 1)
        return TensorGrid(numbers, cell=(0.46, 0.118), number=None, limit=largest(self.trace.embeddings))

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Three views of every word")
    def three_views(self):
        """The same word, projected three ways: ask, advertise, offer."""
        trace = self.trace
        row = int(trace.query_position)
        parts = (
            ("query", "asks", "QUERY", trace.w_q, trace.q, "W_Q"),
            ("key", "advertises", "KEY", trace.w_k, trace.k, "W_K"),
            ("value", "offers", "VALUE", trace.w_v, trace.v, "W_V"),
        )
        matrices, grids, signs, titles, roles = [], [], [], [], []
        for k, (name, deed, role, weight, field, sign) in enumerate(parts):
            matrix = TensorGrid(weight.T, cell=(0.175, 0.105), number=None, role=role)
            matrices.append(matrix.move_to([-4.75 + 1.85 * k, 0, 0]).align_to([0, 1.95, 0], UP))
            grid = TensorGrid(field, cell=(0.165, 0.32), number=None, role=role)
            grids.append(grid.move_to([2.45 + 1.7 * k, 0, 0]).align_to([0, 1.95, 0], UP).hide())
            color = getattr(theme, role)
            signs.append(Formula(f"{{{{ {sign} : sign }}}}", size=0.24, sign=role).next_to(matrix, UP, buff=0.28))
            titles.append(Label(f"{name} {deed}", size=0.18, color=color, bold=True))
            titles[-1].move_to([matrix.get_center()[0], -2.55, 0])
            roles.append(Label({"query": "queries", "key": "keys", "value": "values"}[name], color=color, bold=True))
            roles[-1].next_to(grid, UP, buff=0.3)
        names = RowNames(trace.tokens, grids[0]).hide()
        state = self.state(row).move_to([-6.3, 0, 0]).align_to(matrices[0], UP)
        word = Label(f"{trace.query_token}", color=theme.TEXT, bold=True).next_to(state, UP, buff=0.3)

        self.say(f"One head of {trace.layer_name}: three learned matrices.")
        self.play(FadeIn(state, word, *matrices, *signs), run_time=theme.MOVE)
        self.say("The same word, projected three ways: ask, advertise, offer.")
        products = []
        for matrix, grid, (_, _, role, _, field, _) in zip(matrices, grids, parts, strict=True):
            product = TensorGrid(field[row], cell=(0.165, 0.3), number=None, limit=grid.limit, role=role)
            products.append(product.next_to(matrix, DOWN, buff=0.3))
        through = [state.copy() for _ in matrices]
        self.add(*through)
        self.play(
            LaggedStart(
                *(copy.animate.move_to(matrix).set_opacity(0) for copy, matrix in zip(through, matrices, strict=True)),
                lag_ratio=0.3,
            ),
            LaggedStart(*(FadeIn(product, shift=0.5 * DOWN) for product in products), lag_ratio=0.3),
            LaggedStart(*(FadeIn(title) for title in titles), lag_ratio=0.3),
            run_time=2.6,
        )
        self.remove(*through)
        self.hold(0.4)
        self.add(*grids, names)
        self.play(
            *(
                product.animate.move_to(grid.row_center(row))
                for product, grid in zip(products, grids, strict=True)
            ),
            names.animate.show(row),
            FadeIn(*roles),
            run_time=1.1,
        )  # fmt: skip
        self.say("All words do the same, at once and with the same matrices.")
        crowd = TensorGrid(trace.x.T, cell=(0.06, 0.105), number=None, limit=largest(trace.x))
        crowd.move_to(state).align_to([-6.5, 0, 0], LEFT)
        self.play(FadeIn(crowd), FadeOut(state, word), run_time=0.5)
        rest = [k for k in range(len(trace.tokens)) if k != row]
        copies = [crowd.copy() for _ in matrices]
        self.add(*copies)
        self.play(
            *(copy.animate.move_to(matrix).set_opacity(0) for copy, matrix in zip(copies, matrices, strict=True)),
            run_time=0.9,
        )
        self.remove(*copies)
        self.play(*(RowByRow(part, rest) for part in (*grids, names)), run_time=1.6)
        for grid in grids:
            grid.show()
        self.remove(*products)
        self.hold(0.6)

    def state(self, row: int) -> TensorGrid:
        """Return what the layer sees of a word, from top to bottom."""
        numbers = self.trace.x[row].reshape(-1, 1)
        return TensorGrid(numbers, cell=(0.34, 0.105), number=None, limit=largest(self.trace.x))

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("A dot product measures the match")
    def match(self):
        """Score: how far each key points along the query."""
        trace = self.trace
        query, seen = int(trace.query_position), int(trace.num_visible)
        scores = trace.scores[query, :seen]
        order = np.asarray(scores.values).argsort()
        best, worst = int(order[-1]), int(order[0])
        plane = self.key_plane()
        bars = self.score_bars(plane)
        who = Label(f"query of “{trace.query_token}”", color=theme.QUERY, bold=True)
        who.move_to([plane.get_right()[0], plane.origin[1] - 0.62, 0]).align_to(plane, RIGHT)
        turned = Label("after the turn by position", size=theme.SMALL, color=theme.MUTED)
        turned.next_to(who, DOWN, buff=0.16).align_to(who, RIGHT)

        self.say("The query is an arrow. So is each key. The angle is what counts.")
        self.play(FadeIn(plane, who, turned), run_time=theme.MOVE)
        self.play(plane.animate.show(best).label(best).open(best), run_time=theme.MOVE)
        self.hold(0.6)
        self.say("Drop the key on the query: the length it covers is its score.")
        self.play(plane.animate.drop(best), run_time=1.1)
        self.add(bars)
        self.play(FadeIn(bars), run_time=0.4)
        self.slide_out(plane, bars, best, seconds=1.3)
        self.hold(0.4)
        self.say("A key that points away scores below zero.")
        self.play(
            plane.animate.open(best, 0).label(best, 0).recede(best).show(worst).label(worst).open(worst), run_time=0.8
        )
        self.play(plane.animate.drop(worst), run_time=0.7)
        self.slide_out(plane, bars, worst, seconds=0.9)
        self.say("Score: how far each key points along the query.")
        rest = [int(k) for k in order if k not in (best, worst)]
        self.play(plane.animate.open(worst, 0).label(worst, 0).recede(worst), run_time=0.3)
        for k in rest:
            self.play(plane.animate.recede(rest).lead(k).show(k).drop(k), bars.animate.show(k), run_time=0.28)
        self.play(plane.animate.recede().lead(best).label(best), run_time=0.4)
        law = Formula(
            "{{ q : query }} dot {{ k : key }} = norm({{ q : query }}) thin norm({{ k : key }}) thin cos theta",
            size=0.28, query="QUERY", key="KEY",
        )  # fmt: skip
        law.move_to([plane.origin[0], -2.5, 0])
        factor = Label(f"length × {trace.score_factor:.2f} = score", size=0.2, color=theme.MUTED)
        factor.move_to([bars.get_center()[0], -2.5, 0])
        self.play(FadeIn(law, factor), run_time=theme.QUICK)
        self.hold(0.7)

    def key_plane(self) -> KeyPlane:
        """Return the query and the keys it may see."""
        trace, seen = self.trace, int(self.trace.num_visible)
        keys = trace.key_plane[:seen]
        wide = max(float(trace.query_norm), largest(keys[:, 0])) - min(0.0, float(np.min(keys.values)))
        unit = min(5.4 / wide, 3.7 / largest(keys[:, 1]))
        plane = KeyPlane(
            keys, trace.query_plane, angles=trace.key_angle[:seen], names=trace.tokens[:seen], unit=unit
        ).align_to([0, 2.6, 0], UP)  # fmt: skip
        return plane.align_to([-5.95, 0, 0], LEFT)

    def score_bars(self, plane: KeyPlane) -> Bars:
        """Return the scores as bars as long as the lengths in the plane."""
        trace, query, seen = self.trace, int(self.trace.query_position), int(self.trace.num_visible)
        scores = trace.scores[query, :seen]
        per_score = plane.unit / float(trace.score_factor)
        low, high = min(0.0, float(np.min(scores.values))), max(0.0, float(np.max(scores.values)))
        length = (high - low) * per_score
        bars = Bars(
            scores, limit=high, signed=-low / (high - low), length=length, step=5.0 / max(seen, 8), number="+.1f",
            number_size=0.18, names=trace.tokens[:seen],
        )  # fmt: skip
        return bars.align_to([5.85, 0, 0], RIGHT).align_to([0, 2.75, 0], UP).hide()

    def slide_out(self, plane: KeyPlane, bars: Bars, k: int, *, seconds: float) -> None:
        """Let the length of a key slide from the line to its place among the scores."""
        flying = self.score_bars(plane).show(k)
        flying.names = ()
        flying.shift(plane.length_center() - bars.tip(k))  # a hidden bar's tip is its zero
        self.add(flying)
        self.play(flying.animate.move_to(bars), run_time=seconds)
        bars.show(k)
        self.remove(flying)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Why divide by √d")
    def why_scale(self):
        """Without the scale, wide vectors force a winner-takes-all."""
        trace = self.trace
        widths = len(trace.dk_grid)
        reach = 1.05 * largest(trace.example_scores_raw)
        line = NumberLine(
            trace.example_scores_raw[0], span=(-reach, reach), length=11.6, ticks=[-40, -20, 0, 20, 40], roles="KEY",
            label="scores of random keys against one random query",
        ).move_to([0.3, 1.35, 0])  # fmt: skip
        bars = Bars(
            trace.example_weights_raw[0], limit=1.0, direction="up", length=1.9, step=0.56, number=None
        ).move_to([-1.2, -1.35, 0])  # fmt: skip
        title = Label("their weights", color=theme.SCORE, bold=True).next_to(bars, UP, buff=0.12).align_to(bars, LEFT)
        width = Readout(lambda d: f"d = {d:d}", trace.dk_grid[0], size=0.36, bold=True).move_to([-5.5, 2.55, 0])
        mean = Readout(lambda w: f"{w:.2f}", trace.maxw_raw[0], size=0.36, bold=True, color=theme.SCORE)
        mean.move_to([5.2, -1.0, 0])
        about = Label(f"mean of largest\nweights, from\n{trace.random_pairs:,} scores", size=0.18, color=theme.MUTED)
        about.next_to(mean, DOWN, buff=0.25)

        self.say("The longer the vectors, the further their scores drift apart.")
        self.play(FadeIn(line, bars, title, width, mean, about), run_time=theme.MOVE)
        for k in range(1, widths):
            if k == widths - 3:
                self.say("Softmax then gives all to one key. Nothing is left to learn from.")
            self.play(
                line.animate.set_values(trace.example_scores_raw[k]),
                bars.animate.set_values(trace.example_weights_raw[k]),
                width.animate.set_value(trace.dk_grid[k]),
                mean.animate.set_value(trace.maxw_raw[k]),
                run_time=0.42,
            )
        scaled = Formula("({{ q : query }} dot {{ k : key }}) / sqrt(d)", size=0.3, query="QUERY", key="KEY")
        scaled.move_to([5.2, 2.5, 0])
        self.say("Divide by √d: the spread is the same at any width.")
        self.play(
            FadeIn(scaled),
            line.animate.set_values(trace.example_scores_scaled[-1]),
            bars.animate.set_values(trace.example_weights_scaled[-1]),
            mean.animate.set_value(trace.maxw_scaled[-1]),
            run_time=1.3,
        )
        own = [int(d) for d in trace.dk_grid].index(int(trace.head_dim))
        for k in range(widths - 2, own - 1, -1):
            self.play(
                line.animate.set_values(trace.example_scores_scaled[k]),
                bars.animate.set_values(trace.example_weights_scaled[k]),
                width.animate.set_value(trace.dk_grid[k]),
                mean.animate.set_value(trace.maxw_scaled[k]),
                run_time=0.4,
            )
        self.say(f"Ours are only {trace.head_dim:d} wide, and still the factor matters.")
        self.clear_stage(run_time=0.4)
        self.play(*(part.animate.show() for part in self.loss_bars()), run_time=1.2)
        self.hold(0.3)

    def loss_bars(self) -> list[Bars]:
        """Put the loss with and without the factor on stage, the bars not yet grown."""
        trace = self.trace
        bars = []
        for k, (words, loss) in enumerate((("divided by √d", trace.loss_base), ("not divided", trace.loss_unscaled))):
            bar = Bars(
                loss.reshape(1), limit=trace.loss_unscaled, length=6.2, step=0.7, thickness=0.6, number=".2f",
                number_size=0.26, role="LOSS" if k else "SCORE",
            ).move_to([1.4, 0.9 - 1.0 * k, 0])  # fmt: skip
            name = Label(words, size=0.24).next_to(bar, LEFT, buff=0.35)
            self.add(bar.hide(), name)
            bars.append(bar)
        unit = Label(f"loss of the trained model on {trace.documents:d} unseen texts, nats a word", color=theme.MUTED)
        self.add(unit.next_to(bars[0], UP, buff=0.35).align_to(bars[0], LEFT))
        return bars

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Scores become weights")
    def become_weights(self):
        """Each row becomes weights that add up to one."""
        trace = self.trace
        query, seen = int(trace.query_position), int(trace.num_visible)
        scores = trace.scores[query, :seen]
        low, high = min(0.0, float(np.min(scores.values))), float(np.max(scores.values))
        looks: dict[str, Any] = {
            "length": 7.6, "step": 5.0 / max(seen, 8), "number_size": 0.18, "names": trace.tokens[:seen],
            "signed": -low / (high - low),
        }  # fmt: skip
        bars = Bars(scores, limit=high, number="+.1f", **looks).move_to([0.1, 0.15, 0])
        powers = Bars(trace.score_powers, limit=1.0, number=".2f", **looks).move_to(bars)
        weights = Bars(trace.weights[query, :seen], limit=1.0, number=".2f", **looks).move_to(bars)
        self.say("Softmax, step one: e to the power of (score − max). Differences grow.")
        self.play(FadeIn(bars), run_time=theme.QUICK)
        self.hold(0.4)
        self.play(bars.animate.become(powers), run_time=1.6)
        self.say("Step two: divide by the sum. Now they add up to one.")
        self.play(bars.animate.become(weights), run_time=1.0)
        self.hold(0.6)
        self.finish_beat()
        self.clear_stage()

        scores = self.square(trace.scores, "+.1f")
        names = RowNames(trace.tokens, scores, size=0.18)
        heads = TokenRow(trace.tokens, tile=scores.cell[0], height=0.3, size=theme.SMALL)
        heads.next_to(scores, UP, buff=0.08)
        self.say("The same for all words. But nobody may look ahead.")
        self.play(FadeIn(scores, names, heads), run_time=theme.QUICK)
        self.hold(0.3)
        struck = scores.animate(run_time=1.0)
        for row in range(len(trace.tokens)):
            hidden = np.flatnonzero(~np.asarray(trace.mask[row].values)).tolist()
            struck = struck.hide(row, hidden)
        self.play(struck)
        seen_scores = self.square(trace.scores_seen, "+.1f")
        self.add(seen_scores)
        self.remove(scores)
        result = self.square(trace.weights_seen, ".2f", map="SCORE", limit=1.0).hide()
        sums = TensorGrid(
            trace.weight_sums.reshape(-1, 1), cell=(0.62, result.cell[1]), number=".2f", map="ZERO", role="SCORE"
        ).next_to(result, RIGHT, buff=0.35).align_to(result, UP).hide()  # fmt: skip
        total = Label("sum", color=theme.SCORE, bold=True, size=0.18).next_to(sums, UP, buff=0.2)
        self.add(result, sums)
        self.say("Each row becomes weights that add up to one.")
        rows = len(trace.tokens)
        changes = [
            RowByRow(seen_scores, vanish=True, rate_func=lambda time: min(1.0, time * (rows + 1) / rows)),
            *(  # a row of weights comes when the scores in its place are gone
                RowByRow(part, rate_func=lambda time: max(0.0, (time * (rows + 1) - 1) / rows))
                for part in (result, sums)
            ),
        ]
        self.play(*changes, FadeIn(total), run_time=2.8)
        self.hold(0.8)

    def square(self, field: Any, number: str, **look: Any) -> TensorGrid:
        """Return a matrix with a row for each word that asks and a column for each that answers."""
        count = len(self.trace.tokens)
        cell = (min(0.74, 9.6 / count), min(0.5, 4.9 / count))
        limit = look.pop("limit", largest(self.trace.scores))
        grid = TensorGrid(field, cell=cell, number=number, number_size=theme.SMALL, limit=limit, **look)
        return grid.move_to([0.0, 0, 0]).align_to([0, 2.45, 0], UP)

    # -- chapter 6 and the loop -------------------------------------------------------------------------------------

    @chapter("Mix the values")
    def mix_values(self):
        """The answer is a weighted average of what others offer."""
        trace = self.trace
        row = int(trace.query_position)
        stage = AttentionStage(trace, row_height=min(0.5, 4.9 / len(trace.tokens)), top=2.3)
        stage.only(row)
        stage.weights = stage.weights_of(row)
        self.say("Every word offers its value; weights say how much of it.")
        self.play(FadeIn(*stage.parts(), stage.weights), run_time=theme.MOVE)
        tinted = stage.values.copy().weigh_rows(trace.weights[row])
        self.play(stage.values.animate.become(tinted), run_time=1.0)
        self.hold(0.4)
        self.say("Weight times value, row after row, into one sum.")
        total = stage.outputs.row(row, role="OUTPUT").set_values(trace.partial_outputs[0])
        share = Readout(lambda w: f"{w:.2f} of the weight", trace.partial_weights[0], face="words", size=0.22)
        share.move_to([total.get_center()[0], stage.values.row_center(1)[1], 0])  # out of the way of the rows
        for k in range(int(trace.num_visible)):
            flying = stage.values.row(k).set_opacity(0.9)
            self.add(flying)
            moves = [flying.animate.set_values(trace.weighted_values[k]).move_to(total).set_opacity(0.2)]
            if k:
                moves += [
                    total.animate.set_values(trace.partial_outputs[k]),
                    share.animate.set_value(trace.partial_weights[k]),
                ]
            else:
                moves.append(FadeIn(total, share))
            self.play(*moves, run_time=0.8 if k == 0 else 0.3)
            self.remove(flying)
        stage.outputs.show(row)
        self.remove(total)
        self.play(FadeOut(share), run_time=0.3)
        self.say("The answer is a weighted average of what others offer.")
        even = int(trace.even_position)
        self.play(*stage.finish(), run_time=0.3)
        stage.ask(self, even, pace=1.2)
        stage.answer(self, even, pace=1.2)
        self.hold(0.8)

    @loop
    def one_word_after_the_other(self):
        """Some words ask in turn: weights, tinted values, one output row each."""
        count = len(self.trace.tokens)
        stage = AttentionStage(self.trace, row_height=min(0.6, 6.0 / count), top=2.75)
        self.add(*stage.parts())
        self.hold(0.2)
        for row in LOOP_ROWS:
            stage.ask(self, count + row, pace=0.55)
            stage.answer(self, count + row, pace=0.66)
            self.hold(0.15)
            if row != LOOP_ROWS[-1]:
                self.play(*stage.finish(), run_time=0.15)
        self.hold(0.2)
        self.play(*stage.finish(), stage.outputs.animate.hide(), stage.names.animate.lead(), run_time=0.4)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Four heads, one sum")
    def four_heads(self):
        """Heads look at different things; their results simply add."""
        trace = self.trace
        row, seen, heads = int(trace.query_position), int(trace.num_visible), len(trace.head_names)
        weights = trace.all_weights[int(trace.layer), :, row, :seen]
        limit = largest(trace.residual_after, trace.residual_before)
        panels, titles, picks, strips, wide = [], [], [], [], []
        for k in range(heads):
            panel = Bars(
                weights[k], limit=1.0, length=1.6, step=3.5 / seen, number=None,
                names=trace.tokens[:seen] if k == 0 else (), name_size=theme.SMALL,
            ).move_to([-4.3 + 2.95 * k, 0, 0]).align_to([0, 2.35, 0], UP)  # fmt: skip
            panels.append(panel.hide())
            titles.append(Label(trace.head_names[k], color=theme.QUERY, bold=True).next_to(panel, UP, buff=0.18))
            best = int(np.argmax(weights[k].values))
            pick = Label(f"{trace.strongest_token[k]} {trace.strongest_weight[k]:.2f}", bold=True, size=0.18)
            picks.append(pick.next_to(panel.copy().show().tip(best), RIGHT, buff=0.12))
            strip = TensorGrid(
                trace.head_outputs[k], cell=(0.2, 0.2), number=None, limit=largest(trace.head_outputs), role="OUTPUT"
            )
            strips.append(strip.next_to(panel, DOWN, buff=0.18))
            piece = TensorGrid(
                trace.head_contributions[k], cell=(0.05, 0.2), number=None, limit=largest(trace.head_contributions)
            )
            wide.append(piece.move_to(strip))
        stream = TensorGrid(trace.residual_before, cell=(0.33, 0.34), number=None, limit=limit, role="INPUT")
        stream.move_to([0.1, -2.55, 0])
        about = Label(f"the column of “{trace.query_token}”", size=0.18, color=theme.MUTED)
        about.next_to(stream, UP, buff=0.2).align_to(stream, LEFT)

        self.say("A layer asks several questions at once. Each head finds something else.")
        self.play(FadeIn(*panels, *titles), run_time=theme.QUICK)
        self.play(LaggedStart(*(panel.animate.show() for panel in panels), lag_ratio=0.35), run_time=2.0)
        self.play(LaggedStart(*(FadeIn(pick) for pick in picks), lag_ratio=0.3), run_time=1.2)
        self.hold(0.6)
        self.say("Each mixes values of its own. One more matrix widens the result.")
        self.play(LaggedStart(*(FadeIn(strip, shift=0.3 * DOWN) for strip in strips), lag_ratio=0.2), run_time=1.0)
        self.play(FadeIn(stream, about), run_time=theme.QUICK)
        self.play(*(FadeIn(piece) for piece in wide), *(FadeOut(strip) for strip in strips), run_time=0.8)
        self.say("And what the heads found simply adds up.")
        for k, piece in enumerate(wide):
            self.play(
                piece.animate.stretch_to_fit_width(stream.width).move_to(stream).set_opacity(0.15),
                stream.animate.set_values(trace.residual_steps[k]),
                run_time=0.8,
            )
            self.remove(piece)
        answer = Label(f"after the last layer: “{trace.next_token}” {trace.next_prob:.2f}", size=0.24, bold=True)
        answer.next_to(stream, UP, buff=0.2).align_to(stream, RIGHT)
        self.say(f"So the model knows what comes next: “{trace.next_token}”.")
        self.play(FadeIn(answer), run_time=theme.QUICK)
        self.hold(0.6)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("Which heads matter")
    def which_matter(self):
        """Switch off one head at a time: the real change in loss."""
        trace = self.trace
        layers, heads = trace.loss_head_ablated.shape
        size, most = 1.3 / len(trace.tokens), largest(trace.loss_head_ablated)
        maps, losses = {}, {}
        for layer in range(layers):
            for head in range(heads):
                grid = TensorGrid(
                    trace.all_weights[layer, head], cell=(size, size), number=None, map="SCORE", limit=1.0
                )
                maps[layer, head] = grid.move_to([-4.5 + 2.05 * head, 1.85 - 1.78 * layer, 0])
                bar = Bars(
                    trace.loss_head_ablated[layer, head : head + 1], limit=most, length=0.95, step=0.24, number="+.3f",
                    role="LOSS",
                )  # fmt: skip
                losses[layer, head] = bar.next_to(grid, DOWN, buff=0.1).align_to(grid, LEFT).hide()
        sides = [
            Label(f"{name}\nlayer", size=0.18, color=theme.MUTED, align=1.0)
            .next_to(maps[layer, 0], LEFT, buff=0.3)
            for layer, name in enumerate(("first", "second", "third"))
        ]  # fmt: skip
        self.say("Every head has its own map of this sentence.")
        self.play(LaggedStart(*(FadeIn(grid) for grid in maps.values()), lag_ratio=0.05), FadeIn(*sides), run_time=1.2)
        rise = Label("rise of the loss without the head, nats a word", size=0.18, color=theme.LOSS)
        rise.move_to([maps[0, 0].get_left()[0], 2.82, 0], aligned_edge=LEFT)
        self.say(f"Switch off one at a time: how much worse do {trace.documents:d} unseen texts get?")
        growing = LaggedStart(*(bar.animate.show() for bar in losses.values()), lag_ratio=0.15)
        self.play(FadeIn(rise, run_time=theme.QUICK), growing, run_time=3.2)
        self.say("Some heads do a job we can name. Others hardly matter.")
        marks: list[Any] = [Label("measured on unseen texts", size=0.18, color=theme.MUTED)]
        marks[0].move_to([3.5, 2.82, 0], aligned_edge=LEFT)
        for name, (layer, head), score in zip(trace.skill_names, trace.skill_heads, trace.skill_scores, strict=True):
            grid = maps[int(layer), int(head)]
            marks.append(Frame.around(grid, pad=0.05, color=theme.TEXT))
            job = Label(f"{name}\nwith {score:.2f} of its weight", size=0.18)
            marks.append(job.move_to([3.5, grid.get_center()[1], 0], aligned_edge=LEFT))
        self.play(LaggedStart(*(FadeIn(mark) for mark in marks), lag_ratio=0.2), run_time=1.2)
        self.hold(1.0)
