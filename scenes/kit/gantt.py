"""Gantt: blocks of work on lanes, time to the right; idle time is the empty ground between them."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Picture
from scenes.kit.traced import Traced, read_text, require_traced
from scenes.kit.typography import Style


class Gantt(Picture):
    """Blocks from their start to their end, as far as time has come; `.animate.run_to(time)` lets it pass.

    Args:
        start, end: traced times of each block.
        lanes: words for each lane, the upper one first.
        lane: which lane each block is on, or one for all.
        roles: theme role of each block, or one for all.
        span: first and last time of the ground; by default those of the blocks.
        width: of the ground; `height` of a lane, `gap` between two.
        now: until when blocks are drawn; by default all.
    """

    animated = ("opacity", "now")

    def __init__(
        self,
        start: Traced,
        end: Traced,
        *,
        lanes: Sequence[str],
        lane: int | Sequence[int] = 0,
        roles: str | Sequence[str] = "VALUE",
        span: tuple[float | Traced, float | Traced] | None = None,
        width: float = 11.0,
        height: float = 0.6,
        gap: float = 0.2,
        now: float | Traced | None = None,
    ) -> None:
        self.start, self.end = require_traced(start, "Gantt"), require_traced(end, "Gantt")
        if self.start.ndim != 1 or self.start.shape != self.end.shape:
            raise ValueError(f"blocks need as many starts as ends, got shapes {self.start.shape} and {self.end.shape}")
        count = len(self.start)
        self.lane = [lane] * count if isinstance(lane, int) else [int(one) for one in lane]
        names = [roles] * count if isinstance(roles, str) else list(roles)
        if len(self.lane) != count or len(names) != count or not all(0 <= one < len(lanes) for one in self.lane):
            raise ValueError(f"{count} blocks need a role and one of the {len(lanes)} lanes each")
        self.roles = tuple(names)
        read = [read_text(words) for words in lanes]
        self.lanes = tuple(words.plain for words in read)
        self.lane_parts = tuple(part for words in read for part in words.parts)
        self.lane_height, self.lane_gap = height, gap
        self.starts, self.ends = (np.asarray(times, dtype=float) for times in (self.start, self.end))
        first, last = (self.starts.min(), self.ends.max()) if span is None else span
        self.span = float(first), float(last)
        self.now = np.array(float(self.span[1] if now is None else now))
        super().__init__(width, len(lanes) * (height + gap) - gap)

    def run_to(self, time: float | Traced) -> Self:
        """Let time pass to a moment (or back to it)."""
        self.now = np.array(float(time))
        return self

    def moment(self, time: float | Traced, lane: int = 0) -> np.ndarray:
        """Return the scene point of a moment on the middle of a lane."""
        return self.to_scene(self._x(float(time)), self._y(lane))

    def block_center(self, k: int) -> np.ndarray:
        """Return the scene point in the middle of a block."""
        return self.moment((self.starts[k] + self.ends[k]) / 2, self.lane[k])

    def block_end(self, k: int) -> np.ndarray:
        """Return the scene point at the end of a block."""
        return self.moment(self.ends[k], self.lane[k])

    def _x(self, time: float) -> float:
        first, last = self.span
        return float(self.local_width * ((time - first) / (last - first) - 0.5))

    def _y(self, lane: int) -> float:
        return self.local_height / 2 - lane * (self.lane_height + self.lane_gap) - self.lane_height / 2

    def draw(self, painter: Painter) -> None:
        half, style = self.local_width / 2, Style(theme.LABEL)
        for lane, words in enumerate(self.lanes):
            y = self._y(lane)
            painter.box(-half, y - self.lane_height / 2, 2 * half, self.lane_height, fill=theme.SURFACE, radius=0.06)
            painter.text(words, -half - 0.2, y - 0.37 * style.size, style, color=theme.TEXT, align=1.0)
        for k, (start, end) in enumerate(zip(self.starts, np.minimum(self.ends, self.now), strict=True)):
            left, right = max(self._x(start), -half), min(self._x(end), half)
            if start >= self.now or right <= left:
                continue
            fill, radius = getattr(theme, self.roles[k]), min(0.06, (right - left) / 3)
            gap = min(0.03, 0.15 * (right - left))  # so that neighbors can be told apart
            y = self._y(self.lane[k]) - self.lane_height / 2
            painter.box(left, y, right - left - gap, self.lane_height, fill=fill, radius=radius)

    def data(self) -> tuple[Data, ...]:
        return (
            Data(self.start, np.asarray(self.start.values, dtype=float), self.starts),
            Data(self.end, np.asarray(self.end.values, dtype=float), self.ends),
        )

    def ledger(self) -> list[tuple[str, str]]:
        begun = np.flatnonzero(self.starts < self.now)
        return [*self.lane_parts, *(("block", self.end[int(k)].origin) for k in begun)]
