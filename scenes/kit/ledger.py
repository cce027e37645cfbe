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
    """How a picture was, down to what is in its arrays and lists."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.attributes = dict(vars(picture))
        kept = ((name, value) for name, value in self.attributes.items() if isinstance(value, _WRITABLE))
        self._contents = {name: _content(value) for name, value in kept}

    def holds(self) -> bool:
        """Return whether the picture is still the same."""
        now, before = vars(self.picture), self.attributes
        if now.keys() != before.keys():
            return False
        for name, value in now.items():
            if value is before[name]:
                if name in self._contents and _content(value) != self._contents[name]:
                    return False
            elif _content(value) != (self._contents[name] if name in self._contents else _content(before[name])):
                return False
        return True


_WRITABLE = (np.ndarray, list)


def _content(value: Any) -> Any:
    """Return what can be compared of a value: an array or a list may have been written to."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return [_content(part) for part in value]
    return value if isinstance(value, bool | int | float | str | None) else _Same(value)


class _Same:
    """Equals what holds the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]
