"""The number ledger: what was on screen, where it comes from, from when to when."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from manim import Mobject

from scenes.kit.picture import Picture

Entries = tuple[tuple[str, str], ...]  # (as displayed, origin)


class Ledger:
    """Collects entries; what stays on screen stays one entry.

    `entries` are plain data for the manifest: object, shown, origin, start, end (seconds).
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._open: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._known: dict[int, tuple[State, Entries]] = {}

    def note(self, mobjects: Iterable[Mobject], start: float, end: float) -> None:
        """Note what these mobjects show from `start` to `end`."""
        seen: dict[tuple[str, str, str], None] = {}
        for mobject in mobjects:
            for shown, origin in self.of(mobject):
                seen[type(mobject).__name__, shown, origin] = None
        self._open = {key: entry for key, entry in self._open.items() if key in seen}
        for key in seen:
            entry = self._open.get(key)
            if entry is None:
                kind, shown, origin = key
                entry = {"object": kind, "shown": shown, "origin": origin, "start": round(start, 3), "end": 0.0}
                self._open[key] = entry
                self.entries.append(entry)
            entry["end"] = round(end, 3)

    def of(self, mobject: Mobject) -> Entries:
        """Return what a mobject shows now; asks it again only if something about it has changed."""
        if not isinstance(mobject, Picture) or mobject.opacity <= 0:
            return ()
        known = self._known.get(id(mobject))
        if known is None or not known[0].holds():
            known = State(mobject), tuple(mobject.ledger())
            self._known[id(mobject)] = known
        return known[1]


class State:
    """How a picture was; arrays of a picture are replaced and never written in place, but for its points."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.attributes = {name: value for name, value in vars(picture).items() if name != "points"}
        self.points = picture.points.copy()

    def holds(self) -> bool:
        """Return whether the picture is still the same."""
        now, before = vars(self.picture), self.attributes
        if len(now) != len(before) + 1 or not np.array_equal(self.picture.points, self.points):
            return False
        return all(name in now and _is_same(now[name], value) for name, value in before.items())


def _is_same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, int | float | str) and now == before)
