"""Draws internals_math.mixture_of_experts.Trace."""

from itertools import pairwise
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, LaggedStart, linear

from internals_math import mixture_of_experts
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout, counted
from scenes.kit.legend import sign_key
from scenes.kit.links import Links
from scenes.kit.mixing_plane import MixingPlane
from scenes.kit.motion import ColumnByColumn, RowByRow, Stream
from scenes.kit.shapes import Frame, Stroke, arrow
from scenes.kit.squares import Squares
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.mixture_of_experts_stage import CHOICES, LoadPanel, Rooms, SharedBar, beside

RUNS = {"free": ("no balance", "LOSS"), "aux": ("balance loss", "WEIGHT"), "bias": ("bias on the choice", "KEY")}
NOTES = {
    "free": "share of the work in one layer", "aux": "penalty: load times probability",
    "bias": "idle experts get a head start",
}  # fmt: skip
LOSSES = (
    ("experts, no balance", "free", "LOSS"), ("experts, balance loss", "aux", "WEIGHT"),
    ("experts, bias on the choice", "bias", "KEY"), ("dense, as wide as what a word uses", "dense_active", "FROZEN"),
    ("dense, as wide as all experts", "dense_total", "FROZEN"),
)  # fmt: skip


class MixtureOfExperts(TopicScene):
    """How can a model own 47 billion weights and use only 13 billion for each word?"""

    core = mixture_of_experts
    notation = ("47 billion", "13 billion", "Mixtral-8x7B")
    takeaway = "A router picks a few experts for each word and mixes them; balance keeps all of them learning."
    loop_alt = (
        "Each word of a sentence is sent to two of eight experts, with line strength showing the router's weight, and "
        "one blended result returns."
    )

    # -- what chapters share ----------------------------------------------------------------------------------------

    @property
    def shown(self) -> int:
        """The word that the first four chapters follow."""
        return int(self.trace.shown_token)

    @property
    def chosen(self) -> list[int]:
        """Its experts, best first."""
        return [int(expert) for expert in self.trace.indices[self.shown]]

    def chosen_names(self) -> list[Any]:
        return [self.trace.expert_names[expert] for expert in self.chosen]

    def sentence(self, y: float) -> TokenRow:
        """Return the words of the sentence."""
        return TokenRow(self.trace.tokens, size=0.22, height=0.48).move_to([0, y, 0])

    def row_height(self, most: float, room: float) -> float:
        """Return the height of a row for each expert."""
        return min(most, room / len(self.trace.expert_names))

    def row_text(self, height: float) -> float:
        """Return the height of letters in such a row."""
        return max(theme.SMALL, min(0.22, 0.5 * height))

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("Scoring")
    def scoring(self):
        """The router is one small matrix: one score per expert."""
        trace, shown = self.trace, self.shown
        height = self.row_height(0.42, 3.36)
        cell = (0.16, height)
        words = self.sentence(2.65)
        router = TensorGrid(trace.router_weight, cell=cell, number=None, role="WEIGHT").move_to([-2.75, -0.72, 0])
        names = RowNames(trace.expert_names, router, size=self.row_text(height))
        strip = TensorGrid(trace.hidden[shown], cell=(cell[0], 0.36), number=None, role="INPUT")
        strip.move_to([router.get_center()[0], 1.85, 0])
        scores = Bars(
            trace.logits[shown], limit=largest(trace.logits[shown]), signed=True, length=3.7, step=height,
            number="+.2f", number_size=self.row_text(height),
        ).move_to([3.7, router.get_center()[1], 0]).hide()  # fmt: skip
        vector = Label("its vector", color=theme.INPUT, bold=True).next_to(strip, RIGHT, buff=0.25)
        title = Label("router: a row for each expert", color=theme.WEIGHT, bold=True).next_to(router, UP, buff=0.2)
        score = Label("score", color=theme.SCORE, bold=True).move_to([3.7, title.get_center()[1], 0])
        law = Formula("{{ h_i : h }} = {{ x : x }} dot {{ w_i : w }}", size=0.34, h="SCORE", x="INPUT", w="WEIGHT")
        law.move_to([3.7, 1.85, 0])
        self.say("Follow one word. Its vector goes to the router.")
        self.play(FadeIn(words), run_time=theme.QUICK)
        others = [k for k in range(len(words.tokens)) if k != shown]
        self.play(words.animate.recede(others).paint(shown, "SCORE"), run_time=0.4)
        self.play(FadeIn(strip, target_position=words.tile_center(shown), scale=0.2), run_time=0.8)
        signs = sign_key(RIGHT).next_to(router, DOWN, buff=0.2)
        self.play(FadeIn(vector, router, title, names, signs), run_time=0.4)
        self.say("Multiply cell by cell, and add up: that is the expert’s score.")
        self.add(scores)
        limit = largest(trace.products)
        strip_copy = strip.copy()
        self.add(strip_copy)
        product = None
        for row in range(router.rows):
            pace = 1.0 if row == 0 else min(0.36, 2.6 / router.rows)
            if row == 1:
                self.say("The router is one small matrix: one score per expert.")
            leaving = self.collapse(product, scores, row - 1)
            self.play(
                strip_copy.animate.move_to(router.row_center(row)).stretch_to_fit_height(height),
                *leaving, run_time=0.9 * pace,
            )  # fmt: skip
            product = TensorGrid(trace.products[row], cell=cell, number=None, limit=limit, role="SCORE")
            product.move_to(router.row_center(row)).hide()
            self.add(product)
            arriving = [FadeIn(score, law)] if row == 0 else []
            self.play(ColumnByColumn(product), *arriving, run_time=0.9 * pace)
        self.play(*self.collapse(product, scores, router.rows - 1), FadeOut(strip_copy), run_time=0.5)

    def collapse(self, product: TensorGrid | None, scores: Bars, row: int) -> list[Any]:
        """Return the motions in which a row of products becomes the bar of its sum."""
        if product is None:
            return []
        place = scores.to_scene(0, float(scores.tip(row)[1] - scores.get_center()[1]))
        squeezed = product.animate.stretch_to_fit_width(0.1).move_to(place).set_opacity(0)
        return [squeezed, scores.animate.show(row)]

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Choosing")
    def choosing(self):
        """The best few experts are kept, and their probabilities become their weights."""
        trace, shown, chosen = self.trace, self.shown, self.chosen
        height, length, left = self.row_height(0.46, 3.68), 6.4, -5.7
        bars = Bars(
            trace.logits[shown], limit=largest(trace.logits[shown]), signed=True, length=length, step=height,
            number="+.2f", number_size=self.row_text(height),
            names=trace.expert_names, name_size=self.row_text(height),
        ).move_to([left + length / 2, 0.5, 0])  # fmt: skip
        titles = [
            Label(words, color=theme.SCORE, bold=True).move_to([left, 2.6, 0], aligned_edge=LEFT)
            for words in ("scores of the experts", "probabilities", "weights of the chosen experts")
        ]
        softmax = Formula("{{ p_i : p }} = e^(h_i) / (sum_j e^(h_j))", size=0.3, p="SCORE")
        softmax.move_to([3.0, 1.9, 0], aligned_edge=LEFT)
        self.add(bars, titles[0])
        self.say("Softmax turns scores into probabilities.")
        self.hold(0.4)
        bars.number = ".2f"
        probs = trace.probs[shown]
        self.play(bars.animate.set_values(probs, limit=0.5), FadeOut(titles[0]), FadeIn(softmax), run_time=1.0)
        # half the room, half the limit: the bars keep their lengths on the way to the edge
        self.play(bars.animate.set_values(probs, limit=1.0, signed=False), FadeIn(titles[1]), run_time=0.6)
        count = trace.config.top_k
        alone = len(chosen) == 1
        self.say("Only the best one will run." if alone else f"Only the top {count:d} will run.")
        for k, expert in enumerate(chosen):
            bars.paint(expert, CHOICES[k])
        others = [expert for expert in range(len(trace.expert_names)) if expert not in chosen]
        kept = Label(f"{trace.kept_probability[shown]:.0%}", size=theme.BIG_NUMBER, bold=True)
        kept.move_to([3.0, 0.25, 0], aligned_edge=LEFT)
        together = Label("the chosen one has" if alone else "the chosen have together", color=theme.MUTED)
        together.next_to(kept, UP, buff=0.25).align_to(kept, LEFT)
        self.play(bars.animate.recede(others), FadeIn(together, kept), run_time=0.6)
        self.hold(0.4)
        self.say(
            "Its probability is its weight."
            if alone
            else "The rest is drained, and the chosen are scaled up to a whole."
        )
        bars.leave_ghosts()
        bars.number = None
        bar = SharedBar(trace.weights[shown], left=[left, -2.05, 0], length=length)
        rescale = Formula("{{ g_i : g }} = p_i / (sum_(j in T) p_j)", size=0.3, g="TEXT")
        rescale.move_to([3.0, -1.0, 0], aligned_edge=LEFT)
        chosen_set = Label("T: the chosen experts", color=theme.MUTED).next_to(rescale, DOWN, buff=0.2)
        chosen_set.align_to(rescale, LEFT)
        arriving = [] if alone else [FadeIn(rescale, chosen_set)]
        self.play(FadeOut(titles[1]), run_time=0.2)
        self.play(bars.animate.set_values(trace.gates[shown]), FadeIn(titles[2]), *arriving, run_time=1.3)
        written = bar.written(trace.weights[shown], self.chosen_names())
        below = [label.get_center() for label in written]
        for label, expert in zip(written, chosen, strict=True):
            label.next_to(bars.tip(expert), RIGHT, buff=0.15)
        self.play(FadeIn(*written), run_time=0.3)
        self.hold(0.3)
        flying = [bars.bar(expert) for expert in chosen]
        self.add(*flying)
        whole = Label("a whole", color=theme.MUTED).next_to(bar.room, RIGHT, buff=0.25)
        self.play(FadeIn(bar.room, whole), run_time=0.3)
        for k, piece in enumerate(flying):
            there = piece.animate.move_to(bar.pieces.part_center(k)).stretch_to_fit_height(bar.pieces.height)
            self.play(there, written[k].animate.move_to(below[k]), run_time=min(0.6, 1.2 / len(flying)))
        self.add(bar.pieces)
        self.remove(*flying)

    # -- chapters 3 and 4 -------------------------------------------------------------------------------------------

    def plane(self, mix: Any) -> MixingPlane:
        """Return the outputs of the chosen experts in their plane, with the bead at `mix`."""
        trace, shown, count = self.trace, self.shown, len(self.chosen)
        points = np.array([(0.0, 0.0), *np.asarray(trace.plane[shown]), np.asarray(trace.shadow[shown])])
        wide, high = points.max(axis=0) - points.min(axis=0)
        unit = min(4.5 / max(high, 1e-6), 5.4 / wide)
        return MixingPlane(
            trace.plane[shown, :count], trace.plane[shown, count], push=trace.plane[shown, count + 1],
            shadow=trace.shadow[shown], roles=CHOICES[:count], unit=unit,
        ).move_to([3.3, 0.1, 0]).put(mix)  # fmt: skip

    def tip_names(self, plane: MixingPlane) -> list[Label]:
        """Return the name of each expert beside the tip of its arrow, away from the middle of the plane."""
        labels = []
        for k, name in enumerate(self.chosen_names()):
            label = Label(f"{name}", size=0.3, bold=True, color=getattr(theme, CHOICES[k]))
            out = plane.tip(k) - plane.place((0, 0))
            labels.append(label.move_to(plane.tip(k) + 0.36 * out / max(float(np.linalg.norm(out)), 1e-6)))
        return labels

    def shared_bar(self, weights: Any) -> SharedBar:
        """Return the weights of the chosen experts as pieces of one bar, at the lower left."""
        return SharedBar(weights, left=[-6.3, -1.75, 0], length=5.1)

    @chapter("Mixing")
    def mixing(self):
        """The output is a weighted average of what the chosen experts answer."""
        trace, shown, chosen = self.trace, self.shown, self.chosen
        alone = len(chosen) == 1
        strip = TensorGrid(trace.hidden[shown], cell=(0.16, 0.34), number=None, role="INPUT").move_to([-3.75, 2.3, 0])
        heads = [
            Label(text, color=theme.MUTED).move_to([-6.3, y, 0], aligned_edge=LEFT)
            for text, y in (("the word’s vector", 2.72), ("experts", 1.78), ("answers of the chosen", 0.68))
        ]
        rooms, letters = self.small_rooms(y=1.3)
        outputs, pitch = [], min(0.6, 1.55 / len(chosen))
        for k in range(len(chosen)):
            grid = TensorGrid(
                trace.expert_outputs[shown, k], cell=(0.16, min(0.34, 0.6 * pitch)), number=None,
                limit=largest(trace.expert_outputs[shown]), role=CHOICES[k],
            )  # fmt: skip
            outputs.append(grid.move_to([-3.75, 0.28 - k * pitch, 0]))
        names = [
            Label(f"{name}", size=0.24, bold=True, color=getattr(theme, CHOICES[k])).next_to(grid, RIGHT, buff=0.25)
            for k, (name, grid) in enumerate(zip(self.chosen_names(), outputs, strict=True))
        ]
        self.say("The vector enters only the chosen experts." if not alone else "The vector enters only one expert.")
        self.play(FadeIn(strip, *rooms, *letters, *heads[:2]), run_time=theme.QUICK)
        copies = [strip.copy() for _ in chosen]
        self.add(*copies)
        self.play(
            *(
                copy.animate.scale(0.1).move_to(rooms[expert]).set_opacity(0)
                for copy, expert in zip(copies, chosen, strict=True)
            ),
            *(rooms[expert].animate.set_color(getattr(theme, CHOICES[k])) for k, expert in enumerate(chosen)),
            run_time=0.8,
        )
        self.remove(*copies)
        self.play(
            *(
                FadeIn(grid, target_position=rooms[expert], scale=0.1)
                for grid, expert in zip(outputs, chosen, strict=True)
            ),
            FadeIn(*names, heads[2]), run_time=0.8,
        )  # fmt: skip
        plane = self.plane(trace.plane[shown, 0])
        plane.seen = np.array(0.0)
        tips = self.tip_names(plane)
        if not alone:
            self.say(
                "Draw both answers as arrows: true lengths, true angle."
                if len(chosen) == 2
                else "Draw the answers as arrows in one plane."
            )
        self.add(plane)
        for k, grid in enumerate(outputs):
            moving = grid.copy()
            self.add(moving)
            self.play(
                moving.animate.scale(0.3).move_to(plane.place((0, 0))).set_opacity(0), run_time=0.45,
            )  # fmt: skip
            self.remove(moving)
            self.play(plane.animate.show(k), FadeIn(tips[k]), run_time=0.5)
        bar = self.shared_bar(trace.mix_gates[0])
        title = Label("weights", color=theme.MUTED).next_to(bar.room, UP, buff=0.16).align_to(bar.room, LEFT)
        self.say(
            "The output is its answer, scaled by its weight."
            if alone
            else f"The output is a weighted average of {trace.config.top_k:d} experts."
        )
        arrives = plane.animate.connect().put(trace.plane[shown, 0])
        self.play(FadeIn(bar.room, title, bar.pieces), arrives, run_time=theme.QUICK)
        pace = min(1.3, 3.4 / len(chosen))
        for stop in range(1, len(trace.mix_gates)):
            shares = bar.pieces.animate.set_values(trace.mix_gates[stop])
            self.play(shares, plane.animate.put(trace.plane[shown, stop]), run_time=pace)
            self.hold(0.2)
        written = bar.written(trace.weights[shown], self.chosen_names())
        self.play(FadeIn(*written, self.output_name(plane)), *self.lost(), run_time=0.4)
        self.hold(0.6)

    def output_name(self, plane: MixingPlane) -> Label:
        """Return the word beside the bead, on the side of the origin."""
        return Label("output", bold=True, color=theme.SCORE).next_to(plane.bead_point(), DOWN + LEFT, buff=0.14)

    def lost(self) -> list[Any]:
        """Return the appearance of the note that says how much of more than two answers the plane leaves out."""
        if len(self.chosen) < 3:
            return []
        note = f"{self.trace.plane_lost[self.shown]:.0%} of their energy lies outside this plane"
        return [FadeIn(Label(note, color=theme.MUTED).move_to([3.3, -2.75, 0]))]

    def small_rooms(self, y: float) -> tuple[list[Frame], list[Label]]:
        """Return a small room for each expert in a line, and their letters."""
        names = self.trace.expert_names
        pitch = 5.12 / len(names)
        rooms, letters = [], []
        for k, name in enumerate(names):
            room = Frame(0.82 * pitch, 0.5, color=theme.LINES).move_to([-6.31 + (k + 0.5) * pitch, y, 0])
            rooms.append(room)
            is_chosen = k in self.chosen
            letters.append(
                Label(f"{name}", bold=is_chosen, color=theme.TEXT if is_chosen else theme.MUTED).move_to(room)
            )
        return rooms, letters

    @chapter("Who learns?")
    def who_learns(self):
        """Only the chosen experts receive a gradient."""
        trace, shown, chosen = self.trace, self.shown, self.chosen
        alone, count = len(chosen) == 1, len(chosen)
        height = self.row_height(0.42, 3.36)
        plane = self.plane(trace.plane[shown, count]).show().connect()
        bar = self.shared_bar(trace.weights[shown])
        written = bar.written(trace.weights[shown], self.chosen_names())
        scores = Bars(
            trace.logits[shown], limit=largest(trace.logits[shown], trace.logits_after[shown]), signed=True, length=3.2,
            step=height, number="+.2f", number_size=self.row_text(height),
            names=trace.expert_names, name_size=self.row_text(height),
            role="FROZEN", clear=True,
        ).move_to([-4.35, 0.6, 0])  # fmt: skip
        for k, expert in enumerate(chosen):
            scores.paint(expert, CHOICES[k])
        gradient = TensorGrid(
            trace.router_grad_task[shown].reshape(-1, 1), cell=(1.15, height), number="+.1g",
            number_size=self.row_text(height),
        ).move_to([-0.95, 0.6, 0])  # fmt: skip
        heads = [
            Label(words, color=color, bold=True).move_to([x, 2.6, 0])
            for words, color, x in (("score", theme.SCORE, -4.35), ("gradient", theme.GRADIENT, -0.95))
        ]
        output = self.output_name(plane)
        tips = self.tip_names(plane)
        self.add(plane, output, *tips, bar.room, bar.pieces, *written, scores, heads[0])
        self.say("The loss pushes the output where it would fall fastest.")
        self.play(plane.animate.grow_push(), run_time=1.0)
        downhill = Label("against the gradient", bold=True, color=theme.GRADIENT)
        beside(downhill, plane.place(trace.plane[shown, count + 1]), [*tips, output])
        scale = Label(f"gradient drawn {trace.gradient_scale:,.0f} times as long", color=theme.MUTED)
        scale.move_to([3.3, -2.75, 0])
        self.play(FadeIn(downhill, scale), run_time=0.3)
        self.say(
            "Its one weight can only follow the shadow on its arrow."
            if alone
            else "The weights can only move it along the line."
        )
        self.play(plane.animate.cast_shadow(), run_time=1.0)
        self.hold(0.3)
        self.say(
            "Through the softmax every score feels it, but only one expert runs and learns."
            if alone
            else "Only the chosen experts receive a gradient."
        )
        gradient.hide()
        self.add(gradient)
        self.play(FadeIn(heads[1]), gradient.animate.show(rows=chosen), run_time=0.5)
        self.play(gradient.animate.show(), run_time=0.7)
        self.say("A step later (much enlarged), whoever lowers the loss more weighs more.")
        scores.leave_ghosts()
        plane.leave_ghost()
        after = Label(f"score − {trace.router_step:,.0f} · gradient", color=theme.SCORE, bold=True).move_to(heads[0])
        self.play(FadeOut(output, *written, heads[0]), run_time=0.2)
        self.play(
            FadeIn(after),
            scores.animate.set_values(trace.logits_after[shown]),
            plane.animate.put(trace.output_after[shown]),
            bar.pieces.animate.set_values(trace.weights_after[shown]),
            run_time=1.6,
        )
        self.play(FadeIn(*bar.written(trace.weights_after[shown], self.chosen_names())), run_time=0.3)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    def load_panel(self, run: str, x: float) -> LoadPanel:
        """Return the load of the experts in one of the runs."""
        trace = self.trace
        histories = {
            "free": (trace.load_history_free, trace.effective_history_free),
            "aux": (trace.load_history_aux, trace.effective_history_aux),
            "bias": (trace.load_history_bias, trace.effective_history_bias),
        }
        title, role = RUNS[run]
        return LoadPanel(
            title, NOTES[run], *histories[run], names=trace.expert_names, even=trace.even_load, role=role, x=x,
            limit=largest(*(loads for loads, _ in histories.values())),
        )  # fmt: skip

    @chapter("Uneven load")
    def uneven_load(self):
        """Who is not chosen learns nothing; balance keeps all experts in work."""
        trace = self.trace
        free = self.load_panel("free", -2.9)
        clock = Readout(lambda n: f"step {n:d}", trace.history_steps[0], size=0.26, bold=True)
        clock.move_to([4.9, 2.85, 0], aligned_edge=LEFT)
        meaning = Label(
            f"{trace.config.num_experts:d} if all work equally, one if one does everything", color=theme.MUTED
        )
        meaning.next_to(free.words, RIGHT, buff=0.3).align_to(free.words, DOWN)
        even = Label("even", color=theme.MUTED)
        even.next_to(free.ground.place(1, trace.even_load), RIGHT, buff=0.12)
        chain = self.left_behind(center=[3.4, 0.5, 0])
        self.say("Only whoever is chosen learns. Unchecked, the load drifts.")
        self.play(FadeIn(*free.parts(), meaning, even, clock), run_time=theme.QUICK)
        self.play(LaggedStart(*(FadeIn(part) for part in chain), lag_ratio=0.5), run_time=1.2)
        self.train(clock, [free], run_time=3.2)
        least = int(np.argmin(trace.load_history_free.values[-1]))
        poor = trace.load_history_free[len(trace.history_steps) - 1, least]
        self.say(f"In the end, expert {trace.expert_names[least]} gets {poor:.1%} of the work.")
        self.play(free.bars.animate.focus(least), run_time=0.4)
        self.finish_beat()
        self.play(FadeOut(*chain, meaning, even), free.bars.animate.lead(), run_time=0.3)
        self.play(*(part.animate.shift(1.6 * LEFT) for part in free.parts()), run_time=0.5)
        others = [self.load_panel(run, x) for run, x in (("aux", 0.0), ("bias", 4.5))]
        self.say("Now with a penalty on uneven load, or a nudge that changes only who is chosen.")
        self.play(FadeIn(*(part for panel in others for part in panel.parts())), run_time=0.4)
        self.train(clock, [free, *others], run_time=3.6)
        self.say("Unchecked, the load drifts; balance evens it.")

    def train(self, clock: Readout, panels: list[LoadPanel], *, run_time: float) -> None:
        """Let the clock run from the start of training to its end, the same one for all panels."""
        steps = self.trace.history_steps
        for record in range(len(steps)):
            moves = [motion for panel in panels for motion in panel.go_to(record)]
            self.play(
                *moves, clock.animate.set_value(steps[record]), rate_func=linear,
                run_time=0.3 if record == 0 else max(0.05, run_time / len(steps)),
            )  # fmt: skip

    def left_behind(self, center: Any) -> list[Any]:
        """Return how an expert is left behind: three words below each other, and the arrows between them."""
        x, y, _ = center
        words = [
            Label(text, size=0.26, bold=True).move_to([x, y + 1.1 * (1 - k), 0])
            for k, text in enumerate(("not chosen", "no gradient", "learns nothing"))
        ]
        arrows = [
            arrow(above.get_bottom() + 0.14 * DOWN, below.get_top() + 0.14 * UP) for above, below in pairwise(words)
        ]
        return [words[0], arrows[0], words[1], arrows[1], words[2]]

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Full house")
    def full_house(self):
        """Each expert has limited seats; late words go without."""
        trace = self.trace
        count, top_k = trace.indices.shape
        words = self.sentence(2.55).shift(1.4 * LEFT)
        rooms = Rooms(
            trace.tokens, trace.seat_token, trace.seat_taken, names=trace.expert_names, width=10.2, height=2.7,
            foot=[-1.4, -2.1, 0], word_size=0.24,
        )  # fmt: skip
        lane = Stroke([5.3, 2.0, 0], [5.3, -2.1, 0], color=theme.MUTED, line=theme.LINE, head=0.2, dash=(0.14, 0.1))
        past = Label("past the experts", color=theme.MUTED).move_to([5.3, 2.55, 0])
        self.say(f"Each expert has {counted(trace.capacity, 'seat')}. First choices come first.")
        self.play(FadeIn(words, *rooms.parts(), lane, past), run_time=theme.QUICK)
        dropped = trace.dropped.values
        first = next((token for token in range(count) if dropped[token, 0]), count)
        self.arrive(rooms, words, [(token, 0) for token in range(first)], pace=0.34)
        if first < count:
            self.say(f"“{trace.tokens[first]}” finds its room full.")
            self.arrive(rooms, words, [(first, 0)], pace=1.6)
            self.finish_beat()
            self.arrive(rooms, words, [(token, 0) for token in range(first + 1, count)], pace=0.34)
        for choice in range(1, top_k):
            if choice == 1:
                self.say("Then the second choices, while seats last.")
            self.arrive(rooms, words, [(token, choice) for token in range(count)], pace=0.24 / (top_k - 1))
        lost, asked = trace.num_dropped, trace.num_assignments
        bypassed = [token for token in range(count) if dropped[token].all()]
        if bypassed:
            self.say("A word without any seat passes by, unchanged.")
            for order, token in enumerate(bypassed):
                self.bypass(words, token, lane, order, run_time=min(1.5, 4.0 / len(bypassed)))
        note = Label(f"{lost:d} of {asked:d} choices found no seat", size=0.26, bold=True, color=theme.LOSS)
        self.play(FadeIn(note.move_to([-1.4, 1.75, 0])), run_time=0.4)
        self.hold(0.3)
        self.finish_beat()
        self.clear_stage()
        self.turned_away()

    def arrive(self, rooms: Rooms, words: TokenRow, asking: list[tuple[int, int]], *, pace: float) -> None:
        """Let words go to the rooms of their choice one after the other; who finds no seat turns red and is gone."""
        if not asking:
            return
        trace = self.trace
        tiles, places, turned = [], [], [0] * rooms.count
        seats: dict[int, int] = {}  # of the words that find one
        waiting: dict[tuple[int, int], int] = {}  # who stands on which level of a door
        relieved: dict[int, int] = {}  # whose place a word takes there
        for number, (token, choice) in enumerate(asking):
            expert, seat = int(trace.indices[token, choice]), int(trace.slot[token, choice])
            tiles.append(rooms.guest(words, token))
            if seat >= 0:
                places.append(rooms.seat(expert, seat))
                seats[number] = rooms.slot(expert, seat)
                continue
            level, place = rooms.door(expert, turned[expert])
            places.append(place)
            turned[expert] += 1
            if (expert, level) in waiting:
                relieved[number] = waiting[expert, level]
            waiting[expert, level] = number

        def land(number: int) -> None:
            if number in seats:
                tiles[number].set_opacity(0)
                rooms.map.show(seats[number])
            if number in relieved:
                tiles[relieved[number]].set_opacity(0)

        flight = Stream(tiles, places, lag=0.4, on_landing=land, changes=[rooms.map])
        self.play(flight, run_time=pace * (0.6 + 0.4 * len(asking)) * 1.6)
        sent_off = [tiles[number] for number in waiting.values()]
        self.remove(*(tile for tile in tiles if tile not in sent_off))
        if sent_off:
            self.play(*(tile.animate.paint(0, "LOSS") for tile in sent_off), run_time=0.25)
            self.hold(0.3)
            self.play(*(tile.animate.set_opacity(0) for tile in sent_off), run_time=0.3)
            self.remove(*sent_off)

    def bypass(self, words: TokenRow, token: int, lane: Stroke, order: int, *, run_time: float) -> None:
        """Let a word go down the lane past the experts, to those who came before."""
        tile = words.tile(token).paint(0, "LOSS")
        words.recede(token)
        self.add(tile)
        self.play(tile.animate.move_to(lane.get_top()), run_time=0.4 * run_time)
        self.play(tile.animate.move_to(lane.get_bottom() + (0.3 + 0.52 * (order % 7)) * UP), run_time=0.6 * run_time)

    def turned_away(self) -> None:
        """Show how many assignments find no seat as rooms grow, with and without balance."""
        trace = self.trace
        factors = trace.capacity_factors
        top = 1.08 * largest(trace.dropped_share_free, trace.dropped_share_aux, trace.dropped_share_bias)
        chart = Chart(
            8.2, 3.7, x=(0.45, 2.05), y=(0, top), x_ticks=[0.5, 1, 1.5, 2], y_ticks=[0, 0.2, 0.4], x_format="g",
            y_format=".0%", x_label="seats, as a share of an even load", y_label="turned away, on unseen texts",
        ).move_to([-0.6, 0.2, 0])  # fmt: skip
        shares = {
            "free": trace.dropped_share_free, "aux": trace.dropped_share_aux, "bias": trace.dropped_share_bias,
        }  # fmt: skip
        numbers = [
            chart.curve(factors, shares[run], role=RUNS[run][1], line=theme.THICK, dots=0.09, drawn=0) for run in RUNS
        ]
        key = [
            Label(words, size=0.26, bold=True, color=getattr(theme, role)).move_to(
                chart.get_right() + 3.2 * LEFT + (1.4 - 0.55 * k) * UP, aligned_edge=LEFT
            )
            for k, (words, role) in enumerate(RUNS.values())
        ]
        self.say("The more even the load, the fewer are turned away.")
        self.play(FadeIn(chart), run_time=0.4)
        for number, label in zip(numbers, key, strict=True):
            self.play(chart.animate(rate_func=linear).draw_curve(number), FadeIn(label), run_time=0.8)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Who does what")
    def who_does_what(self):
        """Experts split the work by word, hardly by topic."""
        trace = self.trace
        count = len(trace.expert_names)
        small = count <= 8
        cell = (min(0.64, 4.9 / count), 0.46)
        limit = largest(trace.class_by_expert)
        real = TensorGrid(
            trace.class_by_expert, cell=cell, map="WEIGHT", limit=limit, number=".0%" if small else None
        ).move_to([-2.1, 0.2, 0])  # fmt: skip
        names = RowNames(trace.class_names, real)
        letters = self.column_names(real)
        rows = Label("share of each class of words that an expert gets", color=theme.MUTED)
        rows.move_to([-6.5, 2.75, 0], aligned_edge=LEFT)
        self.say("Which words does each expert get?")
        self.play(FadeIn(names, *letters, rows), run_time=0.4)
        real.hide()
        self.add(real)
        self.play(ColumnByColumn(real), run_time=1.8)
        most = trace.labels.entropy_bits[trace.labels.name.index("word class")]
        found = self.bits(
            f"{trace.specialization_bits:.2f} of at most {most:.2f} bits",
            real,
            "that a word’s class tells about its expert",
        )
        self.play(FadeIn(*found), run_time=0.4)
        self.hold(0.5)
        copy = real.copy()
        self.add(copy)
        to = [4.0, 0.2, 0]
        self.play(copy.animate.move_to(to), run_time=0.5)
        self.say("Shuffled, the pattern is gone: it was real.")
        self.play(copy.animate.set_values(trace.class_by_expert_shuffled), run_time=0.9)
        chance = self.bits(f"{trace.specialization_shuffled_bits:.2f} bits", copy, "after shuffling")
        self.play(FadeIn(*chance, *self.column_names(copy)), run_time=0.4)
        self.finish_beat()
        self.clear_stage()
        self.what_tells()

    def column_names(self, grid: TensorGrid) -> list[Label]:
        """Return the letters of the experts above their columns."""
        return [
            Label(f"{name}", bold=True, color=theme.MUTED).move_to(
                grid.cell_center(0, k) + (0.5 * grid.cell[1] + 0.26) * UP
            )
            for k, name in enumerate(self.trace.expert_names)
        ]

    def bits(self, value: str, grid: TensorGrid, words: str) -> list[Label]:
        """Return how many bits a label tells about the expert, below a grid."""
        number = Label(value, size=0.3, bold=True).next_to(grid, DOWN, buff=0.3).align_to(grid, LEFT)
        return [number, Label(words, color=theme.MUTED).next_to(number, DOWN, buff=0.18).align_to(grid, LEFT)]

    def what_tells(self) -> None:
        """Compare what several labels tell about the expert."""
        labels = self.trace.labels
        bars = Bars(
            labels.bits, limit=max(0.1, largest(labels.bits)), length=6.2, step=0.92, thickness=0.5, role="WEIGHT",
            number=".2f", number_size=0.26, names=labels.name, name_size=0.26,
        ).move_to([0.9, -0.1, 0]).hide()  # fmt: skip
        title = Label("bits that a label tells about the expert", color=theme.MUTED)
        title.next_to(bars, UP, buff=0.25).align_to(bars, LEFT)
        self.say("Experts split by word, hardly by topic.")
        self.add(bars)
        self.play(FadeIn(title), run_time=0.3)
        for k in range(len(labels.name)):
            self.play(bars.animate.show(k), run_time=0.5)
        topic = Label("the topic", size=0.24, color=theme.MUTED).next_to(bars.tip(-1), RIGHT, buff=1.3)
        self.play(FadeIn(topic), run_time=0.3)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("The bill")
    def the_bill(self):
        """Own much, use little."""
        trace = self.trace
        tiny, large = 0, 1
        self.say("The tiny model owns all experts; a word uses a few.")
        squares = self.owned(tiny, side=3.4, x=-4.7)
        self.run_squares(squares)
        self.say("Does it pay? The lower the loss, the better.")
        title = Label("loss on unseen texts, nats a word", color=theme.MUTED).move_to([-1.3, 2.7, 0], aligned_edge=LEFT)
        self.play(FadeIn(title), run_time=0.3)
        rows = self.losses()
        for label, bar in rows:
            self.add(bar)
            self.play(FadeIn(label), bar.animate.show(), run_time=0.45)
        spread = Label(f"two seeds of one model differ by {trace.loss_seed_spread:.2f}", color=theme.MUTED)
        spread.next_to(rows[-1][1], DOWN, buff=0.3).align_to(rows[-1][1], LEFT)
        self.play(FadeIn(spread), run_time=0.3)
        gain = float(trace.eval_loss["dense_active"]) - float(trace.eval_loss["aux"])
        self.say(
            "Not here: more weights at the same cost gain nothing."
            if gain < float(trace.loss_seed_spread)
            else "Yes: more weights at the same cost lower the loss."
        )
        compared = ("aux", "dense_active")
        self.play(
            *(bar.animate.recede() for (_, run, _), (_, bar) in zip(LOSSES, rows, strict=True) if run not in compared),
            run_time=0.6,
        )
        self.finish_beat()
        self.clear_stage()
        self.say("In a large model, too: own much, use little.")
        self.run_squares(self.owned(large, side=4.6, x=-3.6))

    def owned(self, model: int, *, side: float, x: float) -> list[Any]:
        """Return a model's weights as squares, and their numbers: name, squares, owned and used."""
        counts = self.trace.counts
        squares = Squares((counts.total[model], counts.active[model]), side=side, roles=("FROZEN", "WEIGHT"))
        squares.move_to([x, 0.1, 0]).hide()
        name = Label(f"{counts.name[model]}", size=0.3, bold=True).next_to(squares, UP, buff=0.25)
        name.align_to(squares, LEFT)
        big = model > 0
        texts = [
            (f"{counts.total[model]:,d}", "weights owned", theme.FROZEN),
            (f"{counts.active[model]:,d}", f"used for a word: {counts.active_share[model]:.0%}", theme.WEIGHT),
        ]
        labels = []
        for k, (number, words, color) in enumerate(texts):
            if big:
                place = squares.get_right() + 0.9 * RIGHT + (1.2 - 2.2 * k) * UP
                value = Label(number, size=0.5, bold=True, color=color).move_to(place, aligned_edge=LEFT)
                label = Label(words, size=0.26, color=theme.MUTED).next_to(value, DOWN, buff=0.25)
                label.align_to(value, LEFT)
            else:
                place = squares.get_bottom() + side / 2 * LEFT + (0.32 + 0.38 * k) * DOWN
                value = Label(number, size=0.24, bold=True, color=color).move_to(place, aligned_edge=LEFT)
                label = Label(words, color=theme.MUTED).next_to(value, RIGHT, buff=0.2).align_to(value, DOWN)
            labels.append((value, label))
        shared = Label("attention serves every word", color=theme.MUTED)
        shared.next_to(labels[1][1], DOWN, buff=0.3 if big else 0.2).align_to(labels[1][0], LEFT)
        labels[1] = (*labels[1], shared)
        return [name, squares, labels]

    def run_squares(self, parts: list[Any]) -> None:
        """Let what is owned appear, and what is used in its corner."""
        name, squares, labels = parts
        self.add(squares)
        self.play(FadeIn(name), squares.animate.show(0), FadeIn(*labels[0]), run_time=0.9)
        self.play(squares.animate.show(1), FadeIn(*labels[1]), run_time=0.9)
        self.hold(0.4)

    def losses(self) -> list[tuple[Label, Bars]]:
        """Return each run with the bar of its loss."""
        trace = self.trace
        top = max(float(trace.eval_loss[run]) for _, run, _ in LOSSES)
        rows, y = [], 2.2
        for words, run, role in LOSSES:
            bar = Bars(
                trace.eval_loss[run].reshape(1), limit=top, length=6.6, step=0.42, role=role, number=".2f",
                number_size=0.24,
            ).move_to([2.0, y - 0.42, 0]).hide()  # fmt: skip
            rows.append((Label(words).next_to(bar, UP, buff=0.06).align_to(bar, LEFT), bar))
            y -= 0.92
        return rows

    # -- the loop ---------------------------------------------------------------------------------------------------

    @loop
    def route(self):
        """Send every word to its experts, and let one mixed result come back."""
        trace = self.trace
        count, top_k = trace.indices.shape
        words = TokenRow(trace.tokens, size=0.26, height=0.56).move_to([0, 2.65, 0])
        words = words.scale(min(1.0, 13.0 / words.width))
        rooms = Rooms(
            trace.tokens, trace.queue_token, trace.queue_taken, names=trace.expert_names, width=13.0, height=3.6,
            foot=[0, -2.5, 0], size=0.3, word_size=0.24,
        )  # fmt: skip
        sent, back = (
            Label(text, size=0.28, bold=True, color=color).move_to([0, 3.32, 0])
            for text, color in (
                (
                    f"each word goes to {trace.config.top_k:d} of {trace.config.num_experts:d} experts; "
                    "a stronger line weighs more",
                    theme.TEXT,
                ),
                ("their answers return as one mix", theme.SCORE),
            )
        )
        title = Label("experts", size=0.26, color=theme.MUTED).move_to([0, -3.3, 0])
        self.add(words, sent, title, *rooms.parts())
        self.hold(0.4)
        tops = [frame.get_top() for frame in rooms.frames]
        guests, homes, left = [], [], []
        for token in range(count):
            links = Links(
                trace.gates[token], [words.tile_center(token) + 0.3 * DOWN], tops, limit=1.0, role="SCORE", faintest=0.3
            )
            tiles = [rooms.guest(words, token) for _ in range(top_k)]
            slots = [(int(trace.indices[token, k]), int(trace.queue_slot[token, k])) for k in range(top_k)]
            places = [rooms.seat(expert, seat) for expert, seat in slots]
            pace = 2.0 if token < 2 else 0.8  # the first ones can be followed
            self.play(FadeIn(links), words.animate.recede(token), run_time=0.1 * pace)
            self.play(Stream(tiles, places, lag=0.0), run_time=0.22 * pace)
            rooms.map.show([rooms.slot(expert, seat) for expert, seat in slots])
            self.remove(links, *tiles)
            guests += [rooms.guest(words, token).move_to(place) for place in places]
            homes += [words.tile_center(token)] * top_k
            left += [rooms.slot(expert, seat) for expert, seat in slots]

        def land(number: int) -> None:
            guests[number].set_opacity(0)
            token, k = divmod(number, top_k)
            if k == top_k - 1:  # the last answer that it waits for
                words.lead(token).paint(token, "SCORE")

        self.hold(0.5)
        self.remove(sent)
        self.add(back)
        emptied = RowByRow(rooms.map, left, vanish=True, rate_func=lambda t: min(1.0, 1.36 * t))  # as they leave
        back_home = Stream(guests, homes, lag=0.12, on_landing=land, changes=[words])
        self.play(emptied, back_home, run_time=1.6)
        self.remove(*guests)
        self.hold(0.8)
        self.remove(back)
        self.add(sent)
        self.play(words.animate.paint(slice(None), "TEXT"), run_time=0.3)
        self.hold(0.3)
