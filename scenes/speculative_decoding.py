"""Draws internals_math.speculative_decoding.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, linear

from internals_math import speculative_decoding
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.darts import Darts
from scenes.kit.formula import Formula
from scenes.kit.gantt import Gantt
from scenes.kit.label import Label, Readout, StepThrough, counted
from scenes.kit.motion import RowByRow
from scenes.kit.shapes import Frame, Stroke, arrow
from scenes.kit.tensor_grid import largest
from scenes.kit.token_row import TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.speculative_decoding_stage import (
    DASH,
    DRAFT,
    DRAFTS,
    FILLED,
    KEPT,
    REFILLED,
    REJECTED,
    ROLES,
    STEP,
    TARGET,
    Iteration,
    TwoShapes,
    differs,
)

PLAIN_PASSES = 8  # of the first chapter
OTHER = "GRADIENT"  # the draft that is not the chosen one
A_DRAFT = {"small": "a small model", "bigram": "a table of word pairs"}


def finished(moment: Any) -> str:
    """Return how many passes of one by one are over at the end of one: they are the unit of time."""
    return f"{moment:.0f} {'pass' if moment == 1 else 'passes'}"


class SpeculativeDecoding(TopicScene):
    """How can one pass of a large model write several words, and lose nothing?"""

    core = speculative_decoding
    takeaway = (
        "A cheap draft guesses, one pass checks, and what is cut off is refilled: "
        "exactly the target’s distribution, in fewer passes."
    )
    loop_alt = (
        "The part of the draft histogram above the target is cut off and poured into the gaps until the bars match the "
        "target exactly."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("One pass, one word")
    def one_by_one(self):
        """Each word costs one full pass of the large model."""
        trace = self.trace
        line = trace.timeline_plain
        count = min(PLAIN_PASSES, len(trace.plain_words), len(line.end))
        width = 10.9
        passes = Gantt(
            line.start[:count], line.end[:count], lanes=("large model",), roles=TARGET, width=width, height=0.95,
            now=line.start[0],
        ).move_to([0, 1.0, 0]).align_to([6.55, 0, 0], RIGHT)  # fmt: skip
        prompt = TokenRow((trace.prompt,)).move_to([0, 2.5, 0]).align_to(passes, LEFT)
        words = TokenRow(trace.plain_words[:count], tile=width / count, height=0.52, size=0.22, roles=TARGET)
        words.move_to([0, -0.75, 0]).align_to(passes, LEFT).hide()
        time = Label("time →", color=theme.MUTED).next_to(passes, UP, buff=0.2).align_to(passes, RIGHT)
        one = Label("one pass", size=0.18, color=theme.ink_on(theme.VALUE, theme.current()), bold=True)
        one.move_to(passes.block_center(0)).set_z_index(1)
        done = Readout(lambda n: counted(n, "word"), line.words[0], face="words", size=0.36, bold=True)
        taken = Readout(lambda n: counted(n, "pass", "passes"), line.words[0], face="words", size=0.36, bold=True)
        taken.set_color(theme.VALUE)
        done.move_to([-1.5, -2.2, 0], aligned_edge=RIGHT)
        taken.move_to([-0.9, -2.2, 0], aligned_edge=LEFT)

        self.say("A large model writes a word, reads it, and writes the next.")
        self.play(FadeIn(passes, prompt, words, time), run_time=theme.QUICK)
        into = arrow(prompt.get_bottom() + 1.2 * LEFT, passes.moment(0.12) + 0.5 * UP)
        self.play(into.draw_to(0).animate.draw_to(1), run_time=0.4)
        for k in range(count):
            pace = 1.0 if k < 2 else 0.45
            if k == 3:
                self.say("Each word costs one full pass of the large model.")
            self.play(passes.animate(rate_func=linear).run_to(line.end[k]), run_time=0.75 * pace)
            word = words.tile(k).move_to(passes.block_center(k)).set_opacity(0)
            if k == 0:
                self.play(FadeIn(one), run_time=0.3)
            word_down = word.animate.move_to(words.tile_center(k)).set_opacity(1)
            counts = [FadeIn(done, taken)]
            if k:
                counts = [done.animate.set_value(line.words[k], RIGHT), taken.animate.set_value(line.words[k])]
            self.play(word_down, *counts, run_time=0.4 * pace)
            words.show(k)
            self.remove(word)
            if k + 1 < count:
                start = words.tile_center(k) + 0.3 * UP + 0.45 * RIGHT
                back = arrow(start, passes.moment(float(line.start[k + 1]) + 0.12) + 0.5 * DOWN, color=theme.MUTED)
                self.play(back.draw_to(0).animate.draw_to(1), run_time=0.3 * pace)
        self.hold(0.6)

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Guess, then check")
    def guess_and_check(self):
        """A small model guesses ahead; one big pass checks all guesses."""
        trace = self.trace
        one = Iteration(trace)
        draft = A_DRAFT[str(trace.config.draft)]
        self.say(f"First {draft} guesses ahead. Each guess takes {trace.config.c:.0%} of a large pass.")
        self.play(FadeIn(*one.parts()), run_time=theme.QUICK)
        for k in range(one.gamma):
            self.play(one.run_to(k), run_time=min(0.4, 1.6 / one.gamma))
            word = one.guesses.tile(k).move_to(one.passes.block_center(k)).set_opacity(0)
            way = word.animate.move_to(one.guesses.tile_center(k)).set_opacity(1)
            self.play(way, run_time=min(0.6, 2.4 / one.gamma))
            one.guesses.show(k)
            self.remove(word)
        self.say("One pass of the large model reads all guesses at once.")
        beam = Frame(one.guesses.width + 0.2, 0.9, color=theme.VALUE, line=theme.THICK)
        beam.move_to(one.passes.block_center(one.gamma)).set_opacity(0)
        self.play(one.run_to(one.gamma), beam.animate.move_to(one.guesses).set_opacity(1), run_time=1.8)
        if one.all_kept:
            self.say("It keeps them all, and adds a word of its own.")
        else:
            self.say("It keeps guesses up to the first rejected one, and writes a word itself.")
        verdicts = one.verdicts()
        for k, verdict in enumerate(verdicts):
            colored = one.guesses.animate.paint(k, KEPT if k < one.kept else REJECTED)
            self.play(FadeIn(verdict, shift=0.15 * UP), colored, run_time=min(0.45, 2.4 / one.gamma))
        self.hold(0.4)
        if one.all_kept:
            self.play(FadeOut(beam), run_time=theme.QUICK)
        else:
            fallen = one.guesses.copy().hide(slice(0, one.kept))
            self.add(fallen)
            one.guesses.hide(slice(one.kept, None))
            self.play(fallen.animate.shift(0.9 * DOWN).set_opacity(0), FadeOut(beam, verdicts[-1]), run_time=theme.MOVE)
            self.remove(fallen)
        own = one.own_word().move_to(one.passes.block_end(one.gamma) + 0.8 * LEFT).set_opacity(0)
        self.play(own.animate.move_to(one.own_place()).set_opacity(1), run_time=theme.MOVE)
        self.hold(0.3)
        self.say("All of these words took a single large pass.")
        flights = [*(one.guesses.tile(k) for k in range(one.kept)), own][: len(one.new)]
        one.guesses.hide()
        self.add(*flights)
        landing = [flight.animate.become(one.story.tile(k)) for flight, k in zip(flights, one.new, strict=True)]
        self.play(
            *(FadeOut(verdict) for verdict in verdicts[: one.kept]),
            LaggedStart(*landing, lag_ratio=0.4 / len(landing)),
            run_time=1.4,
        )
        gain = Label(f"{counted(trace.words_of_pass[one.shown], 'word')} from one pass", size=0.34, bold=True)
        gain.move_to([one.passes.get_center()[0], one.guesses.get_center()[1], 0])
        self.play(FadeIn(gain), run_time=theme.QUICK)
        self.hold(0.8)

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Two shapes")
    def two_shapes(self):
        """The overlap of the two shapes is the chance of acceptance."""
        trace = self.trace
        stage = TwoShapes(trace)
        stage.draft.hide()
        stage.target.hide()
        stage.shared.hide()
        draft, target = stage.names
        self.say(f"The draft, {A_DRAFT[str(trace.config.draft)]}, gives each next word a chance.")
        self.play(FadeIn(stage.axis, self.prefix(stage)), run_time=theme.QUICK)
        self.add(stage.shared, stage.draft, stage.target)
        self.play(stage.draft.animate.show(), FadeIn(*draft), run_time=1.4)
        self.say("The large model, the target, gives other chances.")
        self.play(stage.target.animate.show(), FadeIn(*target), run_time=1.4)
        self.say("The overlap of the two shapes is the chance of acceptance.")
        law = Formula("sum min({{ p : target }}, {{ q : draft }})", size=0.2, target=TARGET, draft=DRAFT)
        kept = self.share(stage, trace.beta, "kept at this word", KEPT, 0)
        law.next_to(kept[0], LEFT, buff=0.25)
        self.play(stage.shared.animate.show(), run_time=1.8)
        self.play(FadeIn(*kept, *stage.kept(), law), run_time=theme.QUICK)
        self.say("Red: the draft says these too often. Empty: not often enough.")
        for piece in stage.excess.values():
            piece.set_opacity(0)
        self.add(*stage.excess.values(), stage.draft, stage.target)
        red = [piece.animate.set_opacity(1) for piece in stage.excess.values()]
        self.play(*red, FadeIn(*self.share(stage, trace.rejected, "too often", REJECTED, 1)), run_time=1.0)
        self.play(FadeIn(*self.missing(stage)), run_time=theme.QUICK)
        self.say("What is too much is exactly as large as what is missing.")
        self.play(FadeIn(*self.share(stage, trace.rejected, "missing", REFILLED, 2)), run_time=theme.QUICK)

    def share(self, stage: TwoShapes, value: Any, words: str, role: str, line: int) -> list[Label]:
        """Return how much of a shape is of one kind, at the right."""
        color, place = getattr(theme, role), np.array([stage.pool[0], 0.85 - 1.3 * line, 0])
        number = Readout(lambda b: f"{b:.0%}", value, size=0.46, bold=True, color=color).move_to(place)
        return [number, Label(words, color=color, bold=True).next_to(number, DOWN, buff=0.2)]

    def prefix(self, stage: TwoShapes) -> TokenRow:
        """Return the end of the text before the two shapes."""
        row = TokenRow(self.trace.shown_prefix[-7:], size=0.18, height=0.42)
        return row.move_to([0, stage.key_height + 0.46, 0]).align_to(stage.axis, LEFT)

    def missing(self, stage: TwoShapes) -> list[Label]:
        """Return words inside the gaps that have room for them."""
        roomy = [k for k, piece in stage.gaps.items() if piece.height > 0.4]
        return [Label("missing", size=theme.SMALL, color=theme.SCORE, bold=True).move_to(stage.gaps[k]) for k in roomy]

    # -- chapter 4 and the loop -------------------------------------------------------------------------------------

    @chapter("Move the excess")
    def move_the_excess(self):
        """Rejected mass is poured exactly where p is still missing."""
        trace = self.trace
        stage = TwoShapes(trace)
        text = self.prefix(stage)
        self.add(*stage.shapes(), *stage.keys(), text)
        rule = Formula(
            "min(1, {{ p : target }} / {{ q : draft }})", size=0.26, target=TARGET, draft=DRAFT
        ).move_to([stage.pool[0], -0.2, 0])  # fmt: skip
        rule_name = Label("a guess is kept\nwith chance", color=theme.MUTED, align=0.5).next_to(rule, UP, buff=0.3)
        darts = Darts(trace.dart_height, trace.dart_bar, stage.draft).set_z_index(2)
        darts.presence = np.zeros(len(trace.dart_words))
        self.add(darts)
        for k in [int(one) for one in trace.dart_shown]:
            is_kept = bool(trace.dart_accepted[k])
            word = trace.dart_words[k]
            if is_kept:
                self.say(f"Guess “{word}”: throw a dart at the draft’s bar. Green: it is kept.")
            else:
                self.say(f"Guess “{word}”: the dart hits red, so it is rejected.")
            self.throw(stage, text, darts, k, is_kept)
            if is_kept:
                self.play(FadeIn(rule, rule_name), run_time=theme.QUICK)
        self.say("Many guesses: what lands in the green is kept.")
        rest = [k for k in range(len(trace.dart_words)) if not darts.presence[k]]
        self.play(RowByRow(darts, rest), run_time=2.0)
        self.hold(0.5)
        self.say("Rejected mass is poured exactly where p is still missing.")
        self.play(FadeOut(darts, rule, rule_name), run_time=theme.QUICK)
        self.move_over(stage, pace=1.0)
        self.say("Flush with the target: nothing is approximated.")
        name = Label("largest difference\nfrom p", color=theme.MUTED, align=0.5).move_to([stage.pool[0], 0.7, 0])
        worst = Readout(lambda d: f"{d:.0e}", trace.max_abs_diff_output, size=0.3, bold=True)
        worst.next_to(name, DOWN, buff=0.3)
        rounding = Label("only rounding", color=theme.MUTED).next_to(worst, DOWN, buff=0.25)
        self.play(FadeIn(name, worst, *([rounding] if trace.max_abs_diff_output > 0 else [])), run_time=theme.QUICK)
        self.say(f"{trace.exact_runs:,} guesses, checked and replaced: the counts agree.")
        counted = Bars(
            trace.exact_share, direction="up", limit=stage.target.limit, length=stage.target.length, step=STEP,
            thickness=FILLED, number=None, role="TEXT", outline=True, dash=DASH,
        ).move_to(stage.target).hide()  # fmt: skip
        self.add(counted)
        self.play(counted.animate.show(), FadeIn(*stage.key("counted", "TEXT", DASH, 0)), run_time=1.6)
        self.hold(0.6)

    def throw(self, stage: TwoShapes, text: TokenRow, darts: Darts, k: int, is_kept: bool) -> None:
        """Guess a word after the text, bring it to its bar, and drop the dart into that."""
        trace = self.trace
        tile = TokenRow(trace.dart_words[k : k + 1], roles=DRAFT)
        over = stage.draft.tip(int(trace.dart_bar[k])) + 0.32 * UP
        self.play(FadeIn(tile.next_to(text, RIGHT, buff=0.1)), run_time=0.4)
        self.play(tile.animate.move_to(over), run_time=0.7)
        self.play(RowByRow(darts, [k]), run_time=0.5)
        words, color = ("✓ kept", theme.KEY) if is_kept else ("✗ rejected", theme.LOSS)
        mark = Label(words, size=0.3, color=color, bold=True).move_to([stage.pool[0], -1.5, 0])
        self.play(tile.animate.paint(0, KEPT if is_kept else REJECTED), FadeIn(mark), run_time=0.4)
        self.hold(0.6)
        self.play(FadeOut(tile, mark), run_time=0.3)

    def move_over(self, stage: TwoShapes, *, pace: float) -> dict[int, Bars]:
        """Let the excess peel off, be cut anew by what is missing, and fill the gaps; return the pieces in them."""
        color, place = theme.LOSS, stage.pool + 0.3 * DOWN
        share = Readout(lambda b: f"{b:.0%} rejected", self.trace.rejected, face="words", bold=True, color=color)
        share.move_to(place)
        gone = [part.animate.set_opacity(0) for part in stage.draft_parts()]
        self.play(stage.peel(pace=pace), FadeIn(share), *gone, run_time=1.5 * pace)
        self.hold(0.4 * pace)
        pieces = stage.stacked(stage.gaps)
        again = Label("target draws again", bold=True, color=theme.SCORE).move_to(place)
        names = stage.shares(pieces)
        self.play(stage.recut(pieces, pace=pace), FadeOut(share), FadeIn(again, *names), run_time=0.7 * pace)
        self.hold(0.7 * pace)
        self.play(FadeOut(again, *names), run_time=0.3 * pace)
        self.play(stage.pour(pieces, pace=pace), run_time=1.5 * pace)
        return pieces

    @loop
    def cut_and_pour(self):
        """The excess of the draft becomes what the target still misses."""
        stage = TwoShapes(self.trace, foot=-2.8, height=5.2)
        self.add(*stage.shapes(), *stage.keys(), *stage.kept(), self.prefix(stage))
        self.hold(0.7)
        pieces = self.move_over(stage, pace=0.75)
        result = Label("exactly\nthe target p", size=0.28, bold=True, color=theme.VALUE, align=0.5)
        result.move_to(stage.pool + 2 * UP)
        self.play(FadeIn(result), run_time=0.4)
        self.hold(1.5)
        chart = [stage.shared, stage.target, *stage.kept(), *pieces.values(), result]
        self.play(*(FadeOut(part) for part in chart), run_time=0.4)
        again = TwoShapes(self.trace, foot=-2.8, height=5.2)
        self.remove(stage.axis, *stage.keys())
        self.add(again.axis, *again.names[1])
        self.play(FadeIn(*again.shapes()[1:], *again.names[0], *again.kept()), run_time=0.5)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Run it")
    def run_it(self):
        """Same distribution, fewer passes."""
        trace = self.trace
        plain, guessed = trace.timeline_plain, trace.timeline_speculative
        gamma = int(trace.config.gamma)
        span = (0.0, max(float(plain.end[-1]), float(guessed.end[-1])))
        looks: dict[str, Any] = {"width": 9.0, "height": 0.66, "span": span, "now": 0.0}
        alone = Gantt(plain.start, plain.end, lanes=("one by one",), roles=TARGET, **looks)
        roles = [DRAFT if str(model) == "draft" else TARGET for model in guessed.model]
        checked = Gantt(guessed.start, guessed.end, lanes=("guess, check",), roles=roles, **looks)
        words, passes = [], []
        for lane, y in ((alone, 2.45), (checked, 1.6)):
            lane.move_to([0, y, 0]).align_to([-4.7, 0, 0], LEFT)
            corner = lane.get_right() + 0.2 * RIGHT
            words.append(Readout(lambda n: counted(n, "word"), guessed.words[0], face="words", size=0.22, bold=True))
            passes.append(Readout(finished, plain.start[0], face="words", color=theme.MUTED, size=0.18))
            words[-1].move_to(corner + 0.16 * UP, aligned_edge=LEFT)
            passes[-1].move_to(corner + 0.2 * DOWN, aligned_edge=LEFT)
        rows = self.text_rows(0.12)
        prompt = TokenRow((trace.prompt,), size=0.22, height=0.52).move_to([0, 0.8, 0]).align_to(rows[0], LEFT)
        time = Label("time →", color=theme.MUTED).next_to(checked, DOWN, buff=0.2).align_to(checked, RIGHT)
        self.say("Now a whole text, in a race with one word per pass.")
        *meanings, stopped = self.meanings()
        start = FadeIn(alone, checked, time, prompt, *rows, *meanings, *words, *passes)
        self.play(start, run_time=theme.QUICK)
        iterations = len(trace.passes)
        pace, now, flights = min(1.0, 6.0 / iterations), guessed.start[0], []
        for k in range(iterations):
            if k == (iterations + 1) // 2:
                self.say("Each pass writes the guesses that it keeps, and one more word.")
            ends = guessed.end[(k + 1) * (gamma + 1) - 1]
            moves = [lane.animate(rate_func=linear).run_to(ends) for lane in (alone, checked)]
            counts = self.count(words[0], passes[0], now, ends)
            self.play(*moves, *counts, *self.landing(flights, rows), run_time=pace)
            now = ends
            self.land(flights, rows)
            flights = self.words_of(k, checked.moment(ends), rows)
            self.add(words[1].set_value(trace.words_after_pass[k]), passes[1].set_value(trace.passes[k]))
        self.play(*self.landing(flights, rows), run_time=pace)
        self.land(flights, rows)
        if int(trace.words_of_pass[-1]) <= int(trace.num_accepted[-1]):  # without the word that it adds
            self.play(FadeIn(stopped), run_time=0.3)
        if differs(trace):
            self.say("Other words than one by one, but the same chances.")
        if now < float(plain.end[-1]):
            counts = self.count(words[0], passes[0], now, plain.end[-1])
            self.play(alone.animate(rate_func=linear).run_to(plain.end[-1]), *counts, run_time=2.4)
        self.say("Same distribution, fewer passes.")
        self.hold(1.0)

    def count(self, words: Readout, passes: Readout, start: Any, end: Any) -> list[StepThrough]:
        """Return the way of both counters while time goes on; one pass is one word, when it is over."""
        line, (start, end) = self.trace.timeline_plain, (float(start), float(end))
        over = [k for k, done in enumerate(line.end) if start + 1e-4 < float(done) < end + 1e-4]
        at = [min(1.0, (float(line.end[k]) - start) / (end - start)) for k in over]
        return [StepThrough(one, line.words[over], at=at, rate_func=linear) for one in (words, passes)] if over else []

    def meanings(self) -> list[Label]:
        """Return what the colors of words mean, and when the text was over."""
        labels = [
            Label(words, color=getattr(theme, role), bold=True)
            for words, role in (
                ("guessed and kept", KEPT),
                ("drawn again", REFILLED),
                ("added by the large model", TARGET),
            )
        ]
        labels.append(Label(f"stopped at {counted(self.trace.words_after_pass[-1], 'word')}", color=theme.MUTED))
        Group(*labels).arrange(RIGHT, buff=0.8).move_to([0, -2.5, 0])
        return labels

    def text_rows(self, top: float) -> list[TokenRow]:
        """Return the text that was written, eight words a line, each in the color of how it came; nothing shown yet."""
        words = self.trace.words
        rows = []
        for start in range(0, len(words.word), 8):
            part = slice(start, start + 8)
            row = TokenRow(
                words.word[part],
                tile=1.6,
                height=0.56,
                size=0.24,
                roles=[ROLES[str(role)] for role in words.role[part]],
            )
            rows.append(row.move_to([0, top - 0.64 * len(rows), 0]).align_to([-6.4, 0, 0], LEFT).hide())
        return rows

    def words_of(self, k: int, place: np.ndarray, rows: list[TokenRow]) -> list[tuple[int, TokenRow]]:
        """Return the words of an iteration, where its pass ends."""
        wanted = np.flatnonzero(np.asarray(self.trace.words.iteration) == k).tolist()
        return [(w, rows[w // 8].tile(w % 8).scale(0.68).move_to(place)) for w in wanted]

    def landing(self, flights: list[tuple[int, TokenRow]], rows: list[TokenRow]) -> list[Any]:
        """Return the way of words from their pass to their place in the text."""
        moves = [tile.animate.become(rows[w // 8].tile(w % 8)) for w, tile in flights]
        return [LaggedStart(*moves, lag_ratio=min(0.06, 0.2 / len(moves)))] if moves else []

    def land(self, flights: list[tuple[int, TokenRow]], rows: list[TokenRow]) -> None:
        for w, tile in flights:
            rows[w // 8].show(w % 8)
            self.remove(tile)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Prediction meets measurement")
    def prediction(self):
        """Longer guesses pay less and less."""
        trace = self.trace
        gammas, law = trace.gammas, trace.law_gammas
        chart = Chart(
            8.6, 4.25, x=(0, float(law[-1])), y=(0, 9), x_ticks=(0, 2, 4, 6, 8, 10), y_ticks=(0, 3, 6, 9),
            x_format="d", y_format="d", x_label="guesses for each pass", y_label="words from each pass",
        ).move_to([-1.65, 0.35, 0])  # fmt: skip
        perfect = chart.curve(law[:8], trace.perfect_tokens[:8], role="FROZEN", dash=DASH, drawn=0)
        chosen = str(trace.config.draft)
        roles = {chosen: DRAFT, **{str(name): OTHER for name in trace.draft_names if name != chosen}}
        lines, dots = [], []
        for name, role in roles.items():
            lines.append(chart.curve(gammas, trace.tokens_per_call_formula[name], role=role, drawn=0))
            dots.append(chart.curve(gammas, trace.tokens_per_call_measured[name], role=role, line=0, dots=0.1, drawn=0))
        names = [
            Label(f"draft: {DRAFTS[name]}\nα = {trace.alpha[name]:.0%}", color=getattr(theme, role), bold=True)
            for name, role in roles.items()
        ]
        laws = [chart.curve(law, tokens, role="FROZEN", line=theme.HAIRLINE, drawn=0) for tokens in trace.law_tokens]
        # the names of the drafts stand above and below where the names of these other lines will be
        foot, *_, top = (float(chart.point(number, len(law) - 1)[1]) for number in laws)
        ends = [chart.point(number, len(gammas) - 1) for number in lines]
        better, worse = (0, 1) if ends[0][1] > ends[1][1] else (1, 0)
        start = ends[0][0] + 0.2
        names[better].next_to([start, max(top, ends[better][1]), 0], UP, buff=0.2).align_to([start, 0, 0], LEFT)
        names[worse].next_to([start, min(foot, ends[worse][1]), 0], DOWN, buff=0.12).align_to([start, 0, 0], LEFT)
        dream = Label("every guess kept", color=theme.MUTED).next_to(chart.point(perfect, 7), UP, buff=0.24)
        beside = chart.get_right()[0] + 1.3
        mean = Label("α: chance that\na guess is kept,\nmean over texts", color=theme.MUTED)
        mean.move_to([beside + 0.45, 0.2, 0], aligned_edge=LEFT)
        self.say("If every guess were kept, each would add a word.")
        self.play(FadeIn(chart), run_time=theme.QUICK)
        self.play(chart.animate(rate_func=linear).draw_curve(perfect), run_time=1.0)
        self.play(FadeIn(dream), run_time=0.3)
        self.say("One miss ends the rest: longer guesses pay less and less.")
        self.play(self.drawing(chart, lines), run_time=2.2)
        self.play(FadeIn(*names, mean), run_time=0.4)
        self.say(f"Dots: counted in {trace.measured_runs:d} texts of each draft. Lines: the formula.")
        self.play(self.drawing(chart, dots), run_time=2.2)
        self.hold(0.6)
        self.say("Gray: the same formula for other α, through the paper’s table.")
        table = chart.curve(trace.table1.gamma, trace.table1.speed, role="TEXT", line=0, dots=0.07, drawn=0)
        signs = [
            Label(f"α = {alpha:.0%}", size=theme.SMALL, color=theme.MUTED).next_to(
                chart.point(number, len(law) - 1), RIGHT, buff=0.25
            )
            for alpha, number in zip(trace.law_alphas, laws, strict=True)
        ]
        behind = self.drawing(chart, laws)
        for number in (*lines, *dots):
            behind = behind.show_curve(number, 0.4)
        self.play(behind, run_time=1.2)
        title = Label("● the paper’s table", bold=True)
        title.move_to([beside, chart.get_top()[1], 0], aligned_edge=LEFT)
        self.play(FadeIn(*signs, title), chart.animate.draw_curve(table), run_time=0.8)
        self.hold(0.6)

    def drawing(self, chart: Chart, numbers: list[int]) -> Any:
        """Return the motion that draws some curves together."""
        motion = chart.animate(rate_func=linear)
        for number in numbers:
            motion = motion.draw_curve(number)
        return motion

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("The price")
    def price(self):
        """Guess too far and you pay for work you throw away."""
        trace = self.trace
        gammas, last = trace.curve_gammas, len(trace.curve_gammas) - 1
        best = min(int(trace.optimal_gamma), last)
        looks: dict[str, Any] = {"x": (0, float(gammas[-1])), "x_format": "d", "y_format": lambda y: f"{y:.0f}×"}
        fastest = max(largest(trace.speedup), largest(trace.speedup_curves[1:]))
        top, heaviest = 2 * np.ceil(0.55 * fastest + 0.5), largest(trace.operations_curve)
        step = int(np.ceil(heaviest / 4))  # at most four lines
        speed = Chart(
            8.4, 2.75, y=(0, top), y_ticks=range(0, int(top) + 1, 2), **looks,
            y_label="speed against one by one, if a checking pass takes as long as a normal one",
        ).move_to([-1.75, 1.2, 0])  # fmt: skip
        work = Chart(
            8.4, 1.05, y=(0, 1.1 * heaviest), y_ticks=range(0, 4 * step + 1, step), **looks,
            y_label=f"arithmetic for each word (a guess takes {trace.c_hat:.0%} of a large pass)",
            x_ticks=(0, 4, 8, 12, 16, 20, 24), x_label="guesses for each pass",
        ).move_to([-1.75, -1.6, 0])  # fmt: skip
        speed.curve(gammas, trace.speedup, role=DRAFT, drawn=0)
        work.curve(gammas, trace.operations_curve, role="TEXT", drawn=0)
        readouts = [
            Readout(lambda v: f"{v:.1f}×", field[0], size=0.46, bold=True, color=getattr(theme, role))
            .move_to([4.5, y, 0], aligned_edge=LEFT)
            for field, role, y in ((trace.speedup, DRAFT, 1.9), (trace.operations_curve, "TEXT", -1.45))
        ]  # fmt: skip
        words = [
            Label(text, color=theme.MUTED).next_to(readout, DOWN, buff=0.22, aligned_edge=LEFT)
            for text, readout in zip(("as fast", "the arithmetic"), readouts, strict=True)
        ]
        self.say(f"Say that each guess takes {trace.config.c:.0%} of the time of a large pass.")
        self.play(FadeIn(speed.ride(0, 0), work.ride(0, 0), *readouts, *words), run_time=theme.QUICK)
        self.ride(speed, work, readouts, 0, best, 2.6)
        self.play(FadeIn(self.optimum(speed, 0, best, DRAFT)), run_time=theme.QUICK)
        self.say(self.limit(best, last))
        self.ride(speed, work, readouts, best, last, 1.8)
        self.hold(0.4)
        self.ride(speed, work, readouts, last, best, 0.8)
        self.say("A slower draft turns earlier. A free one never does.")
        signs, others = [self.cost(speed, 0, last, trace.config.c, DRAFT)], []
        for cost, curve, turn in zip(trace.speedup_costs, trace.speedup_curves, trace.speedup_best, strict=True):
            if abs(float(cost) - float(trace.config.c)) < 1e-6:
                continue
            inside = int((np.asarray(curve) <= top).sum())
            number = speed.curve(gammas[:inside], curve[:inside], role="FROZEN", drawn=0)
            others.append(number)
            beyond = inside <= last  # it leaves the chart, with an arrow
            signs.append(self.cost(speed, number, inside - 2 if beyond else last, cost, "FROZEN"))
            if int(turn) < inside:
                signs.append(self.optimum(speed, number, int(turn), "FROZEN"))
            if beyond:
                signs.append(self.rising(speed, number, inside - 1))
        self.play(self.drawing(speed, others), run_time=1.6)
        self.play(FadeIn(*signs), run_time=theme.QUICK)
        self.hold(0.4)

    def cost(self, speed: Chart, number: int, place: int, cost: Any, role: str) -> Label:
        """Return what a draft costs, beside a point of its curve."""
        label = Label(f"draft {cost:.0%}", size=theme.SMALL, color=getattr(theme, role), bold=True)
        return label.next_to(speed.point(number, place), RIGHT, buff=0.2)

    def rising(self, speed: Chart, number: int, end: int) -> Stroke:
        """Return an arrow that goes on where a curve leaves the chart."""
        before, last = speed.point(number, end - 1), speed.point(number, end)
        return arrow(last, last + last - before, color=theme.FROZEN)

    def limit(self, best: int, last: int) -> str:
        """Return what is to be said of more guesses than the best number."""
        if best == 0:
            return "This draft is too slow: guessing never pays."
        if best == last:
            return "More guesses always pay here, but the arithmetic grows."
        return "Guess too far and you pay for work you throw away."

    def optimum(self, speed: Chart, number: int, best: int, role: str) -> Group:
        """Return a mark at the number of guesses with the highest speed."""
        place = speed.point(number, best)
        foot = np.array([place[0], speed.get_bottom()[1], 0])
        mark = Stroke(place, foot, color=getattr(theme, role), dash=DASH)
        count = Label(f"{self.trace.curve_gammas[best]:d}", size=theme.SMALL, color=getattr(theme, role), bold=True)
        return Group(mark, count.next_to(foot, DOWN, buff=0.1))

    def ride(self, speed: Chart, work: Chart, readouts: list[Readout], start: int, end: int, seconds: float) -> None:
        """Ride with a marker from one number of guesses to another; the way there draws both curves."""
        trace = self.trace
        if start == end:
            return
        share = end / (len(trace.curve_gammas) - 1)
        passed = slice(start, end + 1) if start < end else slice(start, end - 1 if end else None, -1)
        rides = [chart.animate(rate_func=linear).ride(0, share) for chart in (speed, work)]
        self.play(
            *(ride.draw_curve(0, share) if start < end else ride for ride in rides),
            *(
                StepThrough(readout, field[passed], rate_func=linear)
                for readout, field in zip(readouts, (trace.speedup, trace.operations_curve), strict=True)
            ),
            run_time=seconds,
        )
