"""Draws internals_math.flash_attention.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, linear

from internals_math import flash_attention
from scenes.flash_attention_stage import Memories, TileStage, Traffic
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout
from scenes.kit.motion import RowByRow
from scenes.kit.shapes import Frame, Stroke
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.traced import format_number


class FlashAttention(TopicScene):
    """How can attention be exact without ever storing its scores?"""

    core = flash_attention
    notation = ("FP16", "GPT-2 medium", "16-bit", "A100")
    takeaway = (
        "Move tiles, not matrices: with a running max and sum, attention is exact and its scores are never stored."
    )
    loop_alt = (
        "Small tiles of keys and values pass through a tiny fast memory, a running max, sum and output are updated, "
        "and the full score matrix is never stored."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("A wall of scores")
    def wall(self):
        """Inputs are thin. The score matrix is not."""
        trace = self.trace
        looks: dict[str, Any] = {"number": None, "cell": (1.0, 1.0)}
        grids = {
            "query": TensorGrid(trace.wall_query, **looks),
            "key": TensorGrid(trace.wall_key.T, **looks),
            "scores": TensorGrid(trace.wall_scores, limit=0.6 * largest(trace.wall_scores), **looks),
            "weights": TensorGrid(trace.wall_weights, map="SCORE", limit=0.5, **looks),
            "value": TensorGrid(trace.wall_value, **looks),
        }
        roles = {"query": "QUERY", "key": "KEY", "scores": "SCORE", "weights": "SCORE", "value": "VALUE"}
        names = {name: Label(name, color=getattr(theme, role), bold=True) for name, role in roles.items()}
        for name, (unit, corner, rows, columns) in self.wall_places(0).items():
            grids[name].scale(unit).align_to(corner, UP + LEFT).hide().show(rows, columns).set_opacity(0)
        for name, place in self.wall_names(0).items():
            names[name].move_to(place, aligned_edge=LEFT)
        bars = Bars(
            trace.wall_bytes[0], limit=largest(trace.wall_bytes), direction="up", length=2.6, step=1.4,
            role=["KEY", "SCORE"], number="binary", number_size=theme.LABEL,
        ).move_to([5.2, 0.0, 0]).hide()  # fmt: skip
        kinds = [
            Label(words, color=theme.MUTED).move_to([bars.tip(k)[0], bars.get_bottom()[1] - 0.35, 0])
            for k, words in enumerate(("strips", "squares"))
        ]
        words = Readout(lambda n: f"{n:d} words", trace.wall_length[0], face="words", bold=True, size=0.28)
        words.move_to([5.2, 2.5, 0])

        self.add(*grids.values())
        self.say("Queries, keys and values are thin strips: one line a word.")
        thin = ("query", "key", "value")
        self.play(
            *(grids[name].animate.set_opacity(1) for name in thin),
            FadeIn(words, bars, *kinds, *(names[name] for name in thin)),
            run_time=theme.MOVE,
        )
        self.play(bars.animate.show(0), run_time=theme.QUICK)
        self.say("Every query meets every key: a square of scores, then of weights.")
        for name in ("scores", "weights"):
            self.play(grids[name].animate.set_opacity(1), FadeIn(names[name]), run_time=theme.MOVE)
        self.play(bars.animate.show(1), run_time=theme.QUICK)
        self.say("Double the text: the strips double, the squares quadruple.")
        for size in (1, 2):
            old, new = self.wall_places(size - 1), self.wall_places(size)
            self.play(
                *(
                    grids[name].animate.scale(unit / old[name][0]).align_to(corner, UP + LEFT)
                    for name, (unit, corner, _, _) in new.items()
                ),
                *(
                    names[name].animate.move_to(place, aligned_edge=LEFT)
                    for name, place in self.wall_names(size).items()
                ),
                run_time=0.7,
            )
            self.play(
                *(grids[name].animate.show(rows, columns) for name, (_, _, rows, columns) in new.items()),
                bars.animate.set_values(trace.wall_bytes[size]),
                words.animate.set_value(trace.wall_length[size], (0, 0)),
                run_time=1.0,
            )
        last = len(trace.memory_lengths) - 1
        self.say(f"{trace.memory_lengths[last]:,} words: {trace.memory_standard[last]:binary} in FP16, for one head.")

    def wall_places(self, size: int) -> dict[str, tuple[float, np.ndarray, slice, slice]]:
        """Return unit, upper left corner and visible rows and columns of each grid for a length of text."""
        count, dim = int(self.trace.wall_length[size]), self.trace.wall_query.shape[1]
        unit = (2.2, 3.0, 3.55)[size] / count
        left, gap = -6.55, 0.12
        top = 2.9 - dim * unit
        seen, whole = slice(0, count), slice(None)
        scores = left + dim * unit + gap
        weights = scores + count * unit + 0.55
        return {
            "query": (unit, np.array([left, top - gap, 0]), seen, whole),
            "key": (unit, np.array([scores, top + dim * unit, 0]), whole, seen),
            "scores": (unit, np.array([scores, top - gap, 0]), seen, seen),
            "weights": (unit, np.array([weights, top - gap, 0]), seen, seen),
            "value": (unit, np.array([weights + count * unit + gap, top - gap, 0]), seen, whole),
        }

    def wall_names(self, size: int) -> dict[str, np.ndarray]:
        """Return where the names of the grids stand: under them, that of the keys at their right."""
        count, dim = int(self.trace.wall_length[size]), self.trace.wall_query.shape[1]
        places = {}
        for name, (unit, corner, _, _) in self.wall_places(size).items():
            places[name] = corner + (count * unit + 0.3) * DOWN
            if name == "key":
                places[name] = corner + (count * unit + 0.15) * RIGHT + dim * unit / 2 * DOWN
        places["query"] = places["query"] + 0.38 * DOWN
        return places

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("The real cost is the trip")
    def trips(self):
        """Standard attention carries the N by N matrix over four times."""
        trace = self.trace
        memory = Memories(trace, strip_height=1.7)
        small, big = 1.55 / len(trace.scores), 2.7 / len(trace.scores)
        inside = memory.chip.get_center() + 0.1 * DOWN
        places = {
            name: memory.store.get_center() + x * RIGHT + 1.75 * DOWN
            for name, x in (("scores", -1.0), ("weights", 1.0))
        }
        names = [
            Label(name, size=theme.SMALL, color=theme.SCORE, bold=True).move_to(place + 1.05 * UP)
            for name, place in places.items()
        ]
        bill = Traffic(trace)
        memory.strips["output"].hide()

        def square(name: str) -> TensorGrid:
            field, map = (trace.scores, "signed") if name == "scores" else (trace.weights, "SCORE")
            return TensorGrid(field, cell=(big, big), number=None, map=map, role="SCORE").move_to(inside)

        def word(text: str, side: Any) -> Label:
            return Label(text, size=0.26, color=theme.LOSS, bold=True).move_to(memory.bridge + 0.55 * side)

        def leave(grid: TensorGrid, name: str, index: int) -> None:
            sign = word("out", DOWN)
            self.play(grid.animate.scale(small / big).move_to(places[name]), FadeIn(sign), run_time=0.9)
            self.play(bill.standard_to(index), FadeOut(sign), FadeIn(names[name == "weights"]), run_time=0.3)

        def come_back(grid: TensorGrid, shift: float) -> tuple[TensorGrid, Label]:
            copy, sign = grid.copy(), word("in", UP)
            self.play(copy.animate.scale(big / small).move_to(inside + shift * RIGHT), FadeIn(sign), run_time=0.9)
            return copy, sign

        self.say("A GPU computes in a small fast memory. Its data live in a big slow one.")
        self.play(FadeIn(*memory.parts(), *bill.parts(tiles=False)), run_time=theme.MOVE)
        pair = [memory.strips[name].copy() for name in ("query", "key")]
        self.play(
            *(copy.animate.move_to(inside + x * RIGHT) for copy, x in zip(pair, (-0.8, 0.8), strict=True)), run_time=0.8
        )
        scores, weights = square("scores"), square("weights")
        self.play(
            *(copy.animate.move_to(inside).set_opacity(0) for copy in pair), FadeIn(scores), bill.standard_to(0),
            run_time=0.5,
        )  # fmt: skip
        self.remove(*pair)
        self.say("Standard attention carries the square matrix over four times.")
        leave(scores, "scores", 1)
        again, sign = come_back(scores, 0.0)
        self.play(bill.standard_to(2), FadeOut(sign, again), FadeIn(weights), run_time=0.4)
        leave(weights, "weights", 3)
        value = memory.strips["value"].copy()
        self.play(value.animate.move_to(inside + 2.1 * RIGHT), run_time=0.5)
        again, sign = come_back(weights, -0.3)
        output = memory.strips["output"].copy().show().move_to(inside)
        self.play(bill.standard_to(4), FadeOut(sign, again, value), FadeIn(output), run_time=0.4)
        self.play(output.animate.move_to(memory.strips["output"]), run_time=0.6)
        self.play(bill.standard_to(5), run_time=0.3)
        self.say("The arithmetic is quick. The trips take the time.")

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Softmax in one pass")
    def one_pass(self):
        """When the max moves, rescale what you already have."""
        trace = self.trace
        keys = len(trace.row_scores)
        step, left = 0.72, -6.35
        low, high = (abs(float(pick(trace.row_scores))) for pick in (_least, _most))
        scores = Bars(
            trace.row_scores, direction="up", length=2.3, step=step, thickness=0.5, number="+.1f",
            limit=1.12 * high, signed=1.18 * low / (1.18 * low + 1.12 * high), role="WEIGHT", clear=True,
        ).move_to([0, 1.55, 0]).align_to([left, 0, 0], LEFT)  # fmt: skip
        tips = [float(scores.tip(key)[1]) for key in range(keys)]
        scores.hide()
        terms = Bars(
            trace.row_terms[0], direction="up", length=1.5, step=step, thickness=0.5, number=None, limit=1.0
        ).move_to([0, -1.05, 0]).align_to(scores, LEFT).hide()  # fmt: skip
        words = TokenRow(trace.tokens, tile=step, size=theme.SMALL).next_to(terms, DOWN, buff=0.16).hide()
        top = Stroke(
            [left, tips[0], 0],
            [left + keys * step, tips[0], 0],
            color=theme.MAXIMUM,
            dash=(0.1, 0.08),
        ).set_z_index(-1)
        panel = 4.15
        maximum = Readout(lambda m: f"{m:+.1f}", trace.row_max[0], size=0.34, bold=True, color=theme.MAXIMUM)
        maximum.move_to([panel, 0, 0]).set_y(float(scores.get_center()[1]) + 0.3).align_to([panel - 0.45, 0, 0], LEFT)
        maximum_name = Label("running max", color=theme.MUTED).next_to(maximum, UP, buff=0.25, aligned_edge=LEFT)
        total = Bars(
            trace.row_sum[:1], limit=1.05 * largest(trace.row_sum), direction="up", length=1.9, step=0.7,
            number=".2f", number_size=0.26,
        ).move_to([panel, -0.95, 0]).align_to(terms, DOWN).hide()  # fmt: skip
        total_name = Label("running sum", color=theme.MUTED).next_to(total, DOWN, buff=0.25)
        factor = Readout(lambda r: f"× {r:.2f}", trace.row_rescale[1], size=0.36, bold=True, color=theme.LOSS)
        factor.move_to([5.75, -0.7, 0])
        score_name = Label("scores, one by one", color=theme.WEIGHT, bold=True).move_to([0, 2.85, 0])
        score_name.align_to(scores, LEFT)
        term_name = Label("e to the power of (score − max)", color=theme.SCORE, bold=True).move_to([0, 0.28, 0])
        term_name.align_to(scores, LEFT)

        self.say("The scores of one word arrive one by one. None may be stored.")
        self.play(FadeIn(score_name, term_name, maximum_name, total_name), run_time=theme.QUICK)
        self.add(scores, terms, words, total)
        slow = 4
        for key in range(keys):
            pace = 0.8 if key < slow else 0.4
            self.play(scores.animate.show(key), words.animate.show(key), run_time=0.4 * pace)
            terms.set_values(trace.row_terms[max(key - 1, 0)])
            moved = key > 0 and bool(trace.row_max[key] > float(trace.row_max[key - 1]))
            if key == 0:
                self.play(FadeIn(top, maximum), run_time=0.3)
            elif moved:
                if key == 1:
                    self.say("A higher score: the max moves, and all that was summed shrinks.")
                new = trace.row_rescale[key]
                factor.set_value(new)
                self.play(
                    top.animate.set_y(tips[key]),
                    maximum.animate.set_value(trace.row_max[key]),
                    FadeIn(factor),
                    run_time=0.5 * pace,
                )
                self.play(
                    terms.animate.set_values(trace.row_terms[key]),
                    total.animate.set_values(trace.row_kept[key : key + 1]),
                    run_time=0.9 * pace,
                )
                self.play(FadeOut(factor), run_time=0.2 * pace)
            if key == slow:
                self.say("Two numbers are enough for all scores so far: max and sum.")
            terms.set_values(trace.row_terms[key])
            self.play(
                terms.animate.show(key),
                total.animate.show().set_values(trace.row_sum[key : key + 1]),
                run_time=0.4 * pace,
            )
        self.say("Divide by the sum: exactly the softmax of the row.")
        shares = Bars(trace.row_softmax, direction="up", length=1.5, step=step, thickness=0.5, limit=1.0)
        shares.move_to(terms)
        share_name = Label("divided by the sum: weights", color=theme.SCORE, bold=True)
        share_name.move_to(term_name, aligned_edge=LEFT)
        self.play(
            FadeIn(share_name),
            FadeOut(term_name, total, total_name, maximum, maximum_name, top),
            terms.animate.become(shares),
            run_time=1.0,
        )
        error = Readout(lambda e: f"{e:.0e}", trace.row_max_abs_diff, size=0.3, bold=True).move_to([4.6, -0.7, 0])
        note = Label("largest difference\nfrom a softmax over\nthe stored row", color=theme.MUTED)
        note.next_to(error, DOWN, buff=0.25).align_to(error, LEFT)
        self.play(FadeIn(error, note), run_time=theme.QUICK)

    # -- chapter 4 and the loop -------------------------------------------------------------------------------------

    @chapter("Tiles through SRAM")
    def tiles(self):
        """Score tiles live for a moment and are never stored."""
        trace = self.trace
        stage = TileStage(trace)
        stage.memory.strips["output"].hide()
        bill = Traffic(trace)
        self.say("Keep one tile of queries in SRAM. Tiles of keys and values stream past.")
        self.play(FadeIn(*stage.parts(), *bill.parts(tiles=True)), run_time=theme.MOVE)
        steps = len(trace.tile_i)
        explained = 0  # the first step in which sums are corrected
        for s in range(steps):
            new_row = s == 0 or int(trace.tile_i[s]) != int(trace.tile_i[s - 1])
            pace = 0.4 if steps <= 12 else 5 / steps
            if s == 0:
                pace = 1.0
            elif not new_row and not explained:
                self.say("When a row’s max moves, its sum and output are corrected first.")
                explained, pace = s, 1.0
            elif s == explained + 1 > 1:
                self.say("Each score tile lives for a moment and is never stored.")
            elif s == steps - 1 and len(trace.skipped_i):
                self.say("Grey tiles lie in the future of their words: never visited.")
            if new_row:
                self.take_query(stage, s, pace)
            self.pass_tile(stage, s, pace)
            self.play(bill.tiles_to(s), run_time=0.3 * pace)
            if s == 0:
                self.say("At the end of a row: divide by the sum, send the output home.")
            if s == steps - 1 or int(trace.tile_i[s + 1]) != int(trace.tile_i[s]):
                self.finish_row(stage, s, pace)

    @loop
    def one_row_of_tiles(self):
        """One tile of queries, from its first keys to its output."""
        trace = self.trace
        stage = TileStage(trace)
        final = int(trace.tile_i[len(trace.tile_i) - 1])
        row = stage.rows(final)
        stage.memory.strips["output"].hide(row)
        self.add(*stage.parts())
        steps = [s for s in range(len(trace.tile_i)) if int(trace.tile_i[s]) == final]
        pace = min(0.47, 1.41 / len(steps))
        self.take_query(stage, steps[0], 0.5)
        for s in steps:
            self.pass_tile(stage, s, pace)
        self.finish_row(stage, steps[-1], 0.55)
        self.hold(0.2)
        self.play(stage.memory.strips["output"].animate.hide(row), run_time=0.4)

    def take_query(self, stage: "TileStage", s: int, pace: float) -> None:
        """Bring the query tile of a step into SRAM."""
        rows = stage.rows(int(self.trace.tile_i[s]))
        tile = stage.strip_tile("query", rows)
        self.add(tile)
        stage.query = stage.tile("query", rows)
        self.play(tile.animate.become(stage.query), run_time=0.8 * pace)
        self.remove(tile)
        self.add(stage.query)

    def pass_tile(self, stage: "TileStage", s: int, pace: float) -> None:
        """Let one tile of keys and values come, be used and go."""
        trace = self.trace
        first = s == 0 or int(trace.tile_i[s]) != int(trace.tile_i[s - 1])
        columns = stage.columns(int(trace.tile_j[s]))
        key, value = (stage.strip_tile(name, columns) for name in ("key", "value"))
        self.add(key, value)
        self.play(
            key.animate.become(stage.key_tile(columns)),
            value.animate.become(stage.tile("value", columns)),
            run_time=0.8 * pace,
        )
        scores = stage.scores(s)
        stage.map.light(trace.tile_i[s], trace.tile_j[s])
        self.play(FadeIn(scores), run_time=0.5 * pace)
        if first:
            stage.open_row(s)
            self.play(FadeIn(stage.maximum), run_time=0.4 * pace)
        else:
            self.play(stage.maximum.animate.set_values(stage.column(trace.running_max, s)), run_time=0.4 * pace)
            factors = stage.factors(s)
            self.play(FadeIn(factors, stage.factor_name), run_time=0.4 * pace)
            self.play(
                stage.total.animate.set_values(stage.column(trace.kept_sum, s)),
                stage.output.animate.set_values(stage.part(trace.kept_acc, s)),
                run_time=0.6 * pace,
            )
            self.play(FadeOut(factors, stage.factor_name), run_time=0.3 * pace)
        weights = stage.weights(s)
        self.play(FadeOut(scores), FadeIn(weights), run_time=0.4 * pace)
        used = weights.copy().hide_numbers().set_z_index(2)
        if first:
            self.play(
                FadeIn(stage.total, stage.output),
                used.animate.scale(0.35).move_to(stage.output).set_opacity(0),
                run_time=0.5 * pace,
            )
        else:
            self.play(
                stage.total.animate.set_values(stage.column(trace.running_sum, s)),
                stage.output.animate.set_values(stage.part(trace.acc, s)),
                used.animate.scale(0.35).move_to(stage.output).set_opacity(0),
                run_time=0.5 * pace,
            )
        self.remove(used)
        stage.map.clear()
        self.play(FadeOut(weights, key, value), run_time=0.4 * pace)

    def finish_row(self, stage: "TileStage", s: int, pace: float) -> None:
        """Divide by the sum, send the output home, and forget the rest."""
        rows = stage.rows(int(self.trace.tile_i[s]))
        done = stage.final_output(s)
        stage.total.set_z_index(2)
        self.play(FadeIn(stage.division), FadeOut(stage.maximum), run_time=0.3 * pace)
        self.play(
            stage.total.animate.move_to(done).set_opacity(0),
            stage.output.animate.become(done),
            run_time=0.7 * pace,
        )
        self.remove(stage.total)
        self.play(
            stage.output.animate.become(stage.strip_tile("output", rows)),
            FadeOut(stage.query, stage.division),
            run_time=0.8 * pace,
        )
        stage.memory.strips["output"].show(rows)
        self.remove(stage.output)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Exactly the same answer")
    def same_answer(self):
        """Not an approximation: same output, same loss."""
        trace = self.trace
        cell = (0.62, min(0.37, 4.5 / len(trace.output)))
        limit = largest(trace.output)
        standard, flash = (
            TensorGrid(field, cell=cell, limit=limit, role=role).move_to([x, 0.05, 0])
            for field, role, x in ((trace.output, "FROZEN", -4.0), (trace.flash_output, "OUTPUT", 1.75))
        )
        names = [
            Label(words, bold=True, color=color).next_to(grid, UP, buff=0.18)
            for words, color, grid in (("standard", theme.MUTED, standard), ("by tiles", theme.OUTPUT, flash))
        ]
        self.say("The output, by the standard way and by tiles.")
        self.play(FadeIn(standard, flash, *names), run_time=theme.QUICK)
        self.say("Not an approximation: the difference is rounding.")
        self.play(flash.animate.move_to(standard), FadeOut(names[1]), run_time=1.2)
        rest = TensorGrid(trace.difference, cell=cell, number=None, limit=limit, role="OUTPUT").move_to(standard)
        left_over = Label("difference", bold=True).move_to(names[0])
        self.play(FadeIn(rest, left_over), FadeOut(flash, names[0]), run_time=0.7)
        error = Readout(lambda e: f"{e:.0e}", trace.max_abs_diff, size=0.46, bold=True).move_to([0.2, 1.5, 0])
        error.align_to([-0.6, 0, 0], LEFT)
        error_name = Label("largest difference of the two outputs", color=theme.MUTED)
        error_name.next_to(error, DOWN, buff=0.22, aligned_edge=LEFT)
        self.play(FadeIn(error, error_name), run_time=theme.QUICK)
        self.say("In every layer of the model: the same loss.")
        losses = [
            Readout(lambda v: f"{v:.6f}", value, size=0.36, bold=True, color=color)
            for value, color in ((trace.loss_standard, theme.MUTED), (trace.loss_flash, theme.TEXT))
        ]
        for value, words, place in zip(losses, ("loss, standard", "loss, by tiles"), (-0.2, -1.2), strict=True):
            value.move_to([0, place, 0]).align_to(error, LEFT)
            name = Label(words, color=theme.MUTED).next_to(value, RIGHT, buff=0.35)
            self.play(FadeIn(value, name), run_time=0.4)
        self.hold(0.3)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Backward: recompute, don’t remember")
    def backward(self):
        """Recomputing a tile is cheaper than fetching it."""
        trace = self.trace
        count = len(trace.query)
        cell = 3.36 / count
        corner = np.array([-3.95, 1.8, 0])
        side = count * cell
        ghost = Frame(side, side, color=theme.LINES).move_to(corner + side / 2 * RIGHT + side / 2 * DOWN)
        known = TensorGrid(
            trace.logsumexp.reshape(-1, 1), cell=(0.62, cell), limit=2.5 * largest(trace.logsumexp), role="SCORE"
        )
        known.next_to(ghost, LEFT, buff=0.25)
        known_name = Label("L", color=theme.SCORE, bold=True).next_to(known, UP, buff=0.2)
        thin = 0.085
        limits = [0.4 * largest(field) for field in (trace.grad_query, trace.grad_key, trace.grad_value)]
        grad_query = TensorGrid(trace.back_grad_query[0], cell=(0.11, cell), number=None, limit=limits[0], role="QUERY")
        grad_query.next_to(known, LEFT, buff=0.3)
        grad_key, grad_value = (
            TensorGrid(field[0].T, cell=(cell, thin), number=None, limit=limit, role=role)
            for field, limit, role in (
                (trace.back_grad_key, limits[1], "KEY"), (trace.back_grad_value, limits[2], "VALUE")
            )
        )  # fmt: skip
        grad_key.next_to(ghost, UP, buff=0.2)
        grad_value.next_to(ghost, DOWN, buff=0.2)
        names = [
            Label("gradient\nof queries", color=theme.QUERY, align=0.5).next_to(grad_query, UP, buff=0.2),
            Label("of keys", color=theme.KEY).next_to(grad_key, RIGHT, buff=0.2),
            Label("of values", color=theme.VALUE).next_to(grad_value, RIGHT, buff=0.2),
            Label("weights", color=theme.SCORE).next_to(ghost, RIGHT, buff=0.27),
        ]
        self.say("For training, only L is kept: max and sum of a row in one number.")
        self.play(FadeIn(ghost, known_name), run_time=theme.QUICK)
        self.add(known.hide())
        self.play(RowByRow(known), run_time=1.6)
        self.say("The weights are made again, tile by tile, and feed the gradients.")
        self.play(FadeIn(*names), run_time=0.3)
        height, width = trace.back_weights.shape[1:]
        steps = len(trace.back_i)
        for s in range(steps):
            i, j = int(trace.back_i[s]), int(trace.back_j[s])
            tile = TensorGrid(trace.back_weights[s], cell=(cell, cell), number=None, map="SCORE", limit=0.6)
            tile.align_to(corner + j * width * cell * RIGHT + i * height * cell * DOWN, UP + LEFT)
            pace = 1.0 if s == 0 else 0.5 if steps <= 12 else 6 / steps
            self.play(FadeIn(tile), run_time=0.3 * pace)
            if s == 0:
                self.play(FadeIn(grad_query, grad_key, grad_value), run_time=0.5)
            else:
                self.play(
                    grad_query.animate.set_values(trace.back_grad_query[s]),
                    grad_key.animate.set_values(trace.back_grad_key[s].T),
                    grad_value.animate.set_values(trace.back_grad_value[s].T),
                    run_time=0.6 * pace,
                )
            self.play(FadeOut(tile), run_time=0.3 * pace)
        self.say("More arithmetic, far less traffic: recomputing beats fetching.")
        heading = Label(f"{trace.paper_name}, forward and backward", color=theme.MUTED).move_to([3.85, 2.55, 0])
        flops, moved = (
            Bars(
                field, length=2.3, step=0.5, role=["LOSS", "VALUE"], number=spec, number_size=0.2,
                names=trace.paper_kinds,
            )
            for field, spec in ((trace.paper_flops, "count"), (trace.paper_bytes, "count"))
        )  # fmt: skip
        flops.move_to([4.2, 1.15, 0]).hide()
        moved.move_to([4.2, -0.75, 0]).hide()
        titles = [
            Label(words, bold=True).next_to(bars, UP, buff=0.15).align_to([2.0, 0, 0], LEFT)
            for words, bars in (("FLOPs", flops), ("bytes moved", moved))
        ]
        self.play(FadeIn(heading, flops, moved, *titles), run_time=0.4)
        self.play(flops.animate.show(), run_time=0.7)
        self.play(moved.animate.show(), run_time=0.7)
        times = trace.paper_milliseconds
        measured = Label(
            f"its authors measured {times[0]:.1f} ms\nand {times[1]:.1f} ms on an A100", color=theme.MUTED
        ).next_to(moved, DOWN, buff=0.4).align_to(titles[0], LEFT)  # fmt: skip
        self.play(FadeIn(measured), run_time=0.4)
        self.hold(0.4)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Bigger tiles, fewer trips")
    def bigger_tiles(self):
        """Memory is linear in length; arithmetic is still quadratic."""
        trace = self.trace
        blocks = trace.io_blocks
        chart = Chart(
            7.6, 3.9, x=(float(blocks[0]), float(blocks[-1])), y=(0, largest(trace.io_by_block)),
            x_ticks=[16, 64, 256, 1024], y_ticks=[0, 5e6, 10e6, 15e6, 20e6, 25e6], log_x=True, x_format=".0f",
            y_format=lambda size: format_number(size, "count"), x_label="keys in a tile",
            y_label=f"bytes moved for one head, {trace.paper_name}, FP16",
        ).move_to([-1.0, 0.3, 0])  # fmt: skip
        curve = chart.curve(blocks, trace.io_by_block, role="VALUE", label="by tiles", drawn=0, dots=0.07)
        chart.level(trace.io_standard, role="LOSS", label="standard")
        self.say("Tiny tiles travel too often and can even lose.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(curve, 0.35), run_time=1.4)
        self.say("Bigger tiles mean fewer trips, up to what the fast memory holds.")
        self.play(chart.animate(rate_func=linear).draw_curve(curve, 1.0), run_time=1.5)
        place = chart.place(trace.io_chip_block, 0.0)
        mark = Stroke(place, place + 2.6 * UP, color=theme.MAXIMUM, dash=(0.1, 0.08))
        chip = Label(f"{trace.io_chip_block:d} fit\non an A100", color=theme.MAXIMUM, bold=True)
        chip.next_to(mark, UP, buff=0.12)
        self.play(FadeIn(mark, chip), run_time=theme.QUICK)
        self.say("Memory is linear in length. Arithmetic is still quadratic.")
        self.clear_stage()
        lengths = trace.memory_lengths
        memory = Chart(
            7.6, 3.9, x=(float(lengths[0]), float(lengths[-1])), y=(2**12, 2**35), log_x=True, log_y=True,
            x_ticks=[1024, 4096, 16384, 65536], y_ticks=[2**12, 2**20, 2**30], x_format=",.0f",
            y_format=lambda size: format_number(size, "binary"), x_label="tokens of text (both axes logarithmic)",
            y_label="extra memory of one head",
        ).move_to([-1.0, 0.3, 0])  # fmt: skip
        wall = memory.curve(lengths, trace.memory_standard, role="LOSS", label="scores, weights", drawn=0)
        rows = memory.curve(lengths, trace.memory_flash, role="VALUE", label="one L per row", drawn=0)
        self.play(FadeIn(memory), run_time=theme.QUICK)
        self.play(memory.animate(rate_func=linear).draw_curve(wall, 1.0).draw_curve(rows, 1.0), run_time=1.5)
        sizes = [
            Label(f"{field[-1]:binary}", color=color, size=0.26, bold=True).move_to(
                memory.point(curve, len(lengths) - 1) + 1.1 * RIGHT + shift * UP
            )
            for field, color, curve, shift in (
                (trace.memory_standard, theme.LOSS, wall, -0.4), (trace.memory_flash, theme.VALUE, rows, -0.4)
            )
        ]  # fmt: skip
        self.play(FadeIn(*sizes), run_time=theme.QUICK)
        self.hold(0.5)


def _least(values: Any) -> Any:
    return values[int(np.argmin(values.values))]


def _most(values: Any) -> Any:
    return values[int(np.argmax(values.values))]
