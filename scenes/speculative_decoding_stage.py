"""The stages of the speculative decoding video: one iteration, and two shapes over the same words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, AnimationGroup, FadeIn, FadeOut, LaggedStart, linear

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.gantt import Gantt
from scenes.kit.label import Label
from scenes.kit.shapes import Stroke
from scenes.kit.tensor_grid import largest
from scenes.kit.token_row import TokenRow

# What the colors mean in this video.
DRAFT, TARGET, KEPT, REJECTED, REFILLED = "WEIGHT", "VALUE", "KEY", "LOSS", "SCORE"
ROLES = {"accepted": KEPT, "replaced": REFILLED, "bonus": TARGET}
DRAFTS = {"small": "small model", "bigram": "word-pair table"}
DASH = (0.11, 0.08)
LINE = 13.1  # width of a line of words
STEP, FILLED = 1.22, 0.78  # from word to word, and the share of it that a bar fills
THINNEST = 0.006  # of a piece that can be seen


def differs(trace: Any, count: int | None = None) -> bool:
    """Return whether the first words of the run with guesses are others than those written one by one."""
    return trace.words.word[:count] != trace.plain_words[:count]


class Iteration:
    """One iteration: the text so far, a lane for each model, and the guesses under the pass that reads them."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.shown, self.gamma = int(trace.shown_iteration), int(trace.config.gamma)
        self.kept = int(trace.num_accepted[self.shown])
        self.all_kept = self.kept == self.gamma
        self.first = self.shown * (self.gamma + 1)  # block of the timeline
        line, blocks = trace.timeline_speculative, slice(self.first, self.first + self.gamma + 1)
        self.passes = Gantt(
            line.start[blocks], line.end[blocks], lanes=(DRAFTS[str(trace.config.draft)], "large model"),
            lane=[0] * self.gamma + [1], roles=[DRAFT] * self.gamma + [TARGET], width=10.9, height=0.7,
            now=line.start[self.first],
        ).move_to([0, 0.95, 0]).align_to([6.55, 0, 0], RIGHT)  # fmt: skip
        self.story = self._story()
        self.new = range(len(self.story.tokens) - int(trace.words_of_pass[self.shown]), len(self.story.tokens))
        self.story.hide(self.new)
        self.pitch = min(1.75, 10.7 / (self.gamma + 1))
        self.guesses = self._tiles(trace.draft_words[self.shown * self.gamma : (self.shown + 1) * self.gamma], DRAFT)
        under = float(self.passes.moment(line.start[self.first + self.gamma])[0]) + 0.2
        left = min(under, 6.5 - (self.gamma + 1) * self.pitch)  # leaves room for the large model's own word
        self.guesses.move_to([0, -1.0, 0]).align_to([left, 0, 0], LEFT).hide()
        self.time = Label("time →", color=theme.MUTED).next_to(self.passes, DOWN, buff=0.2)
        self.time.align_to(self.passes, RIGHT)

    def _tiles(self, words: Sequence[Any], role: str) -> TokenRow:
        return TokenRow(words, tile=self.pitch, height=0.6, size=0.22, roles=role)

    def _story(self) -> TokenRow:
        """Return the end of the text after the iteration, as much as fits in a line, its own words in color."""
        trace = self.trace
        count = int(trace.words_after_pass[self.shown])
        before = count - int(trace.words_of_pass[self.shown])
        roles = ["TEXT"] * (before + 1) + [ROLES[str(role)] for role in trace.words.role[before:count]]
        tokens = [trace.prompt, *trace.words.word[:count]]
        rows = (TokenRow(tokens[skipped:], roles=roles[skipped:]) for skipped in range(len(tokens)))
        row = next(row for row in rows if row.width <= LINE)
        return row.move_to([0, 2.4, 0]).align_to([-LINE / 2, 0, 0], LEFT)

    def parts(self) -> list[Any]:
        """Return what stands there before anything is guessed."""
        return [self.passes, self.story, self.guesses, self.time, *self.other_run()]

    def other_run(self) -> list[Label]:
        """Return a note above the text if it is another one than one by one wrote."""
        note = Label("another random run: other words, same chances", color=theme.MUTED)
        shown = int(self.trace.words_after_pass[self.shown])
        return [note.next_to(self.story, UP, buff=0.22, aligned_edge=LEFT)] if differs(self.trace, shown) else []

    def run_to(self, k: int) -> Any:
        """Return the way of time to the end of pass k; the last one is the large model's."""
        return self.passes.animate(rate_func=linear).run_to(self.trace.timeline_speculative.end[self.first + k])

    def verdicts(self) -> list[Label]:
        """Return the marks below the guesses, up to the first that is rejected."""
        labels = []
        for k in range(min(self.kept + 1, self.gamma)):
            sign, color = ("✓", theme.KEY) if k < self.kept else ("✗", theme.LOSS)
            mark = Label(sign, size=0.3, color=color, bold=True)
            labels.append(mark.move_to(self.guesses.tile_center(k) + 0.9 * DOWN))
        return labels

    def own_word(self) -> TokenRow:
        """Return the word that the large model writes itself."""
        role = TARGET if self.all_kept else REFILLED
        return self._tiles(self.trace.next_words[self.shown : self.shown + 1], role)

    def own_place(self) -> np.ndarray:
        """Return where that word belongs: in place of the rejected guess, or after all guesses."""
        return self.guesses.tile_center(0) + self.kept * self.pitch * RIGHT


class TwoShapes:
    """p as a solid outline, q as a broken one; what they share, what q has too much, and what p still misses.

    Args:
        foot, height: of the ground of the bars.
        left: of the first bar.
    """

    def __init__(self, trace: Any, *, foot: float = -2.3, height: float = 4.25, left: float = -5.75) -> None:
        self.trace = trace
        limit = 1.08 * max(largest(trace.p_top), largest(trace.q_top), float(trace.rejected))
        looks: dict[str, Any] = {
            "direction": "up", "limit": limit, "length": height, "step": STEP, "thickness": FILLED, "number": None,
        }  # fmt: skip
        width = STEP * len(trace.top_words)
        self.axis = Chart(
            width, height, x=(0, 1), y=(0, limit), y_ticks=(0, 0.25, 0.5, 0.75, 1), y_format=".0%",
            y_label="chance of the next word",
        )  # fmt: skip
        self.shared = Bars(trace.min_pq, role=KEPT, names=trace.top_words, **looks)
        self.draft = Bars(trace.q_top, role=DRAFT, outline=True, dash=DASH, **looks)
        self.target = Bars(trace.p_top, role=TARGET, outline=True, **looks)
        for part in (self.axis, self.shared, self.draft, self.target):
            part.move_to([left + width / 2, foot + height / 2, 0])
        self.excess = self._pieces(Bars(trace.excess_top, role=REJECTED, **looks).move_to(self.shared))
        self.gaps = self._pieces(Bars(trace.gap_top, role=REFILLED, **looks).move_to(self.shared))
        self.pool = np.array([left + width + 2.5, foot, 0])  # foot of the stack of what was rejected
        self.key_height = foot + height + 0.33
        self.names = [self.key("draft q", DRAFT, DASH, 0), self.key("target p", TARGET, None, 1)]

    def _pieces(self, bars: Bars) -> dict[int, Bars]:
        """Return the bars that can be seen as pieces, by their word, each on top of what both shapes share."""
        unit = bars.length / float(bars.limit)
        seen = [k for k, amount in enumerate(bars.amounts) if amount * unit > THINNEST]
        pieces = {k: bars.bar(k) for k in seen}
        self.set_down(pieces)
        return pieces

    def key(self, words: str, role: str, dash: Sequence[float] | None, place: int) -> tuple[Stroke, Label]:
        """Return the name of an outline beside a piece of it, above the pool: the first or the second."""
        color, x, y = getattr(theme, role), float(self.pool[0]) - 2.85 + 2.15 * place, self.key_height
        sample = Stroke([x, y, 0], [x + 0.55, y, 0], color=color, dash=dash, line=theme.THICK)
        return sample, Label(words, color=color, bold=True).move_to([x + 0.75, y, 0], aligned_edge=LEFT)

    def set_down(self, pieces: dict[int, Bars]) -> None:
        """Put pieces on top of what both shapes share, each over its word."""
        for k, piece in pieces.items():
            piece.move_to(self.shared.tip(k), aligned_edge=DOWN)

    def stacked(self, pieces: dict[int, Bars]) -> dict[int, Bars]:
        """Return copies of pieces, one on the other in the pool."""
        copies, top = {}, self.pool
        for k, piece in pieces.items():
            copies[k] = piece.copy().move_to(top, aligned_edge=DOWN)
            top = copies[k].get_top()
        return copies

    def keys(self) -> list[Any]:
        """Return the names of the two outlines."""
        return [part for pair in self.names for part in pair]

    def shapes(self) -> list[Any]:
        """Return fills and outlines, back to front."""
        return [self.axis, self.shared, *self.excess.values(), self.draft, self.target]

    def kept(self) -> list[Label]:
        """Return a word inside the largest bar of what both shapes share, if there is room for it."""
        most = int(np.argmax(self.shared.amounts))
        if not self.shared.amounts[most] > 0:
            return []
        bar = self.shared.bar(most)
        ink = theme.ink_on(theme.KEY, theme.current())
        return [Label("kept", size=theme.SMALL, color=ink, bold=True).move_to(bar)] if bar.height > 0.4 else []

    def draft_parts(self) -> list[Any]:
        """Return the outline of the draft and its name."""
        return [self.draft, *self.names[0]]

    # -- motions -------------------------------------------------------------------------------------------------------

    def peel(self, *, pace: float) -> AnimationGroup:
        """Let what the draft has too much fly to the pool."""
        stack = self.stacked(self.excess)
        flights = [
            piece.animate(path_arc=-0.7).move_to(stack[k]).set_z_index(1) for k, piece in self.excess.items()
        ]  # fmt: skip
        return LaggedStart(*flights, lag_ratio=0.25, run_time=1.5 * pace)

    def pour(self, pieces: dict[int, Bars], *, pace: float) -> AnimationGroup:
        """Let pieces fly from the pool into the gaps below p."""
        flights = [
            piece.animate(path_arc=0.7).move_to(self.shared.tip(k), aligned_edge=DOWN) for k, piece in pieces.items()
        ]  # fmt: skip
        return LaggedStart(*flights, lag_ratio=0.25, run_time=1.5 * pace)

    def recut(self, pieces: dict[int, Bars], *, pace: float) -> AnimationGroup:
        """Cut the pool anew, by word that is missing in place of word that was said too often."""
        change = [FadeOut(*self.excess.values()), FadeIn(*pieces.values())]
        return AnimationGroup(*change, run_time=0.7 * pace)

    def shares(self, pieces: dict[int, Bars]) -> list[Label]:
        """Return the residual of the words whose piece has room for a name, beside it."""
        roomy = {k: piece for k, piece in pieces.items() if piece.height > 0.3}
        return [
            Label(f"{self.trace.residual[k]:.0%} {self.trace.top_words[k]}", color=theme.SCORE, bold=True).next_to(
                piece, LEFT, buff=0.2
            )
            for k, piece in roomy.items()
        ]
