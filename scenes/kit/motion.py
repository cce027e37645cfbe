"""Motions that mean something: rows that appear one by one, a row that sweeps over a grid, rows that pour into one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from manim import AnimationGroup, Animation, LaggedStart, Mobject, linear, smooth

from scenes.kit.picture import Picture


class RowByRow(Animation):
    """Let the rows of a grid appear (or vanish) from top to bottom, each after the one before."""

    def __init__(self, grid: Picture, rows: Sequence[int] | None = None, *, vanish: bool = False, **kwargs: Any) -> None:
        self.rows = list(range(grid.presence.shape[0])) if rows is None else list(rows)  # type: ignore[attr-defined]
        self.vanish = vanish
        kwargs.setdefault("rate_func", linear)
        super().__init__(grid, **kwargs)

    def begin(self) -> None:
        self.start = self.mobject.presence.copy()
        super().begin()

    def interpolate_mobject(self, alpha: float) -> None:
        alpha = self.rate_func(alpha)
        presence = self.start.copy()
        for order, row in enumerate(self.rows):
            share = float(np.clip(alpha * len(self.rows) - order, 0, 1))
            presence[row] = 1 - share if self.vanish else share
        self.mobject.presence = presence


class Visit(Animation):
    """Move something from stop to stop, resting at each; `on_stop(k)` is called on arrival at stop k."""

    def __init__(
        self,
        mover: Mobject,
        stops: Sequence[np.ndarray],
        *,
        on_stop: Callable[[int], None] | None = None,
        rest: float = 0.45,
        **kwargs: Any,
    ) -> None:
        self.stops = [np.asarray(stop) for stop in stops]
        self.on_stop, self.rest = on_stop, rest
        self.reached = -1
        kwargs.setdefault("rate_func", linear)
        super().__init__(mover, **kwargs)

    def begin(self) -> None:
        self.path = [self.mobject.get_center(), *self.stops]
        super().begin()

    def interpolate_mobject(self, alpha: float) -> None:
        place = self.rate_func(alpha) * len(self.stops)
        leg = min(int(place), len(self.stops) - 1)
        # each leg is a move and a rest at its end
        share = smooth(min(1.0, (place - leg) / (1 - self.rest)))
        self.mobject.move_to(self.path[leg] + (self.path[leg + 1] - self.path[leg]) * share)
        arrived = leg if share >= 1 else leg - 1
        while self.reached < arrived:
            self.reached += 1
            if self.on_stop is not None:
                self.on_stop(self.reached)


def pour(rows: Sequence[Picture], target: Mobject, **kwargs: Any) -> AnimationGroup:
    """Return an animation in which rows travel into one place and melt into it."""
    moves = [row.animate.move_to(target).set_opacity(0) for row in rows]
    kwargs.setdefault("lag_ratio", 0.08)
    return LaggedStart(*moves, **kwargs)
