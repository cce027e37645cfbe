"""The picture that chapters and the loop of the speculative decoding video share: two shapes over the same words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from manim import DOWN, LEFT, AnimationGroup, FadeIn, FadeOut, LaggedStart

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label
from scenes.kit.shapes import Stroke
from scenes.kit.tensor_grid import largest

# What the colors mean in this video.
DRAFT, TARGET, KEPT, REJECTED, REFILLED = "WEIGHT", "VALUE", "KEY", "LOSS", "SCORE"
DASH = (0.11, 0.08)
STEP, FILLED = 1.22, 0.78  # from word to word, and the share of it that a bar fills
THINNEST = 0.006  # of a piece that can be seen


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
        self.names = [self.key("draft", DRAFT, DASH, 0), self.key("target", TARGET, None, 1)]

    def _pieces(self, bars: Bars) -> dict[int, Bars]:
        """Return the bars that can be seen as pieces, by their word, each on top of what both shapes share."""
        unit = bars.length / float(bars.limit)
        seen = [k for k, amount in enumerate(bars.amounts) if amount * unit > THINNEST]
        pieces = {k: bars.bar(k) for k in seen}
        self.set_down(pieces)
        return pieces

    def key(self, words: str, role: str, dash: Sequence[float] | None, place: int) -> tuple[Stroke, Label]:
        """Return the name of an outline beside a piece of it, above the pool: the first or the second."""
        color, x, y = getattr(theme, role), float(self.pool[0]) - 2.35 + 2.0 * place, self.key_height
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
