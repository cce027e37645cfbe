"""Motions that mean something: rows that appear one by one, a row that sweeps over a grid, rows that pour into one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from manim import Animation, AnimationGroup, Group, LaggedStart, Mobject, linear, smooth

from scenes.kit.picture import Picture


class RowByRow(Animation):
    """Let the rows of a grid appear (or vanish) from top to bottom, each after the one before."""

    axis = 0

    def __init__(
        self, grid: Picture, rows: Sequence[int] | None = None, *, vanish: bool = False, **kwargs: Any
    ) -> None:
        self.rows = list(range(grid.presence.shape[self.axis])) if rows is None else list(rows)  # type: ignore[attr-defined]
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
            presence[(slice(None),) * self.axis + (row,)] = 1 - share if self.vanish else share
        self.mobject.presence = presence


class ColumnByColumn(RowByRow):
    """Let the columns of a grid appear (or vanish) from left to right."""

    axis = 1


class Visit(Animation):
    """Move something from stop to stop and rest at each; `on_rest(k, share)` follows the rest at stop k (share 0..1).

    What `on_rest` changes must be named in `changes`, so that it is drawn again in every frame.
    """

    def __init__(
        self,
        mover: Mobject,
        stops: Sequence[np.ndarray],
        *,
        on_rest: Callable[[int, float], None] | None = None,
        changes: Sequence[Mobject] = (),
        rest: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.mover, self.stops = mover, [np.asarray(stop) for stop in stops]
        self.on_rest, self.rest = on_rest, rest
        kwargs.setdefault("rate_func", linear)
        super().__init__(Group(mover, *changes), **kwargs)

    def begin(self) -> None:
        self.path = [self.mover.get_center(), *self.stops]
        super().begin()

    def interpolate_mobject(self, alpha: float) -> None:
        place = self.rate_func(alpha) * len(self.stops)
        leg = min(int(place), len(self.stops) - 1)
        # each leg is a move and then a rest at its end
        moved = min(1.0, (place - leg) / (1 - self.rest))
        self.mover.move_to(self.path[leg] + (self.path[leg + 1] - self.path[leg]) * smooth(moved))
        if self.on_rest is not None:
            for before in range(leg):
                self.on_rest(before, 1.0)
            self.on_rest(leg, max(0.0, (place - leg - (1 - self.rest)) / self.rest))


class Stream(Animation):
    """Let pictures leave for their places one after the other; each is seen from the moment it leaves.

    Args:
        lag: part of its way that a picture has gone when the next one leaves.
        on_landing: called with the number of each picture that is in its place, in every frame from then on; what it
            changes must be named in `changes`, so that it is drawn again.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        places: Sequence[np.ndarray],
        *,
        lag: float = 0.15,
        on_landing: Callable[[int], None] | None = None,
        changes: Sequence[Mobject] = (),
        **kwargs: Any,
    ) -> None:
        if len(pictures) != len(places):
            raise ValueError(f"{len(pictures)} pictures need as many places, got {len(places)}")
        self.pictures, self.places, self.lag = list(pictures), [np.asarray(place) for place in places], lag
        self.on_landing = on_landing
        kwargs.setdefault("rate_func", linear)
        super().__init__(Group(*changes, *pictures), **kwargs)  # what flies is on top

    def begin(self) -> None:
        self.starts = [picture.get_center() for picture in self.pictures]
        super().begin()

    def interpolate_mobject(self, alpha: float) -> None:
        gone = self.rate_func(alpha) * (1 + self.lag * (len(self.pictures) - 1))
        for k, (picture, start, place) in enumerate(zip(self.pictures, self.starts, self.places, strict=True)):
            share = float(np.clip(gone - k * self.lag, 0, 1))
            picture.move_to(start + (place - start) * smooth(share)).set_opacity(float(share > 0))
            if share >= 1 - 1e-9 and self.on_landing is not None:
                self.on_landing(k)


def pour(rows: Sequence[Picture], target: Mobject, **kwargs: Any) -> AnimationGroup:
    """Return an animation in which rows travel into one place and melt into it."""
    moves = [row.animate.move_to(target).set_opacity(0) for row in rows]
    kwargs.setdefault("lag_ratio", 0.08)
    return LaggedStart(*moves, **kwargs)
