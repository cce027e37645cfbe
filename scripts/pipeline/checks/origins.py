"""Every number, color cell, length and curve on screen is a value of the Trace, and shows what that value is."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from internals_math import trace_store
from scenes.kit.formula import FormulaPart
from scenes.kit.picture import Data, Picture
from scenes.kit.recorder import TEXT, Drawn, Look, Recording
from scenes.kit.traced import Traced
from scenes.kit.typed_numbers import typed
from scripts.pipeline.checks import Finding, finding
from scripts.pipeline.checks.stillness import PASSING_SECONDS, resting_ids, still_things

RULE = "origin"
VALUE = "value"
LONGEST_MOTION = 6.0  # seconds from one traced state to the next
TICK = 0.02  # share of its place by which a tick may be rounded
# What the ledger writes for something that is drawn but not written: "curve", "12 colors".
_PICTORIAL = re.compile(r"[a-z][a-z ]*|[0-9]+ (colors|dots|slots)")
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
_SCALES = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40, "PiB": 2.0**50}
_SCALES |= {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "%": 0.01, "°": 1.0, "": 1.0}
_NUMBER = re.compile(
    r"(?P<mantissa>[-+]?[0-9][0-9,]*(\.[0-9]+)?|[-+]?\.[0-9]+)"
    r"(e(?P<e>[-+]?[0-9]+)| × 10(?P<ten>-?[0-9]+))? ?(?P<unit>[KMGTP]i?B?|B|%|°)?"
)


def check_origins(recording: Recording) -> Iterator[Finding]:
    """Yield what was drawn without an origin, or differs from the value it says it is."""
    if recording.trace is None:
        return  # it could not be had, which is the error of the recording
    fields = Fields(recording.trace, recording.scene.core)
    yield from _untrue_entries(recording, fields)
    known: set[tuple[int, str]] = set()
    seen: set[int] = set()
    for look in recording.looks:
        for thing in look.things:
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            untraced = ((RULE, message) for message in _untraced(thing, type(recording.scene).notation))
            untrue = ((VALUE, message) for message in (*fields.forged(thing.values), *_wrong_ticks(thing)))
            for rule, message in (*untraced, *untrue):
                if (id(thing.picture), message) not in known:
                    known.add((id(thing.picture), message))
                    yield finding(recording, look.start, thing.name, rule, message)
    yield from _other_measures(recording)
    yield from _adrift(recording, fields)
    for look, thing in still_things(recording):
        for data in thing.data:
            message = fields.wrong_drawing(data)
            if message:
                yield finding(recording, look.start, thing.name, VALUE, message)


def _untrue_entries(recording: Recording, fields: "Fields") -> Iterator[Finding]:
    """Yield what the ledger lists and the Trace does not hold."""
    listed = ((look, thing, entry) for look in recording.looks for thing in look.things for entry in thing.ledger)
    known: set[tuple[str, str, str]] = set()
    for look, thing, (shown, origin) in listed:
        kind = type(thing.picture).__name__
        if (kind, shown, origin) not in known:
            known.add((kind, shown, origin))
            problem = fields.problem(shown, origin)
            if problem:
                yield finding(recording, look.start, f"{kind} {shown!r}", *problem)


def _adrift(recording: Recording, fields: "Fields") -> Iterator[Finding]:
    """Yield drawings that leave the values of the Trace for longer than a motion takes, or do not come back."""
    runs: dict[int, tuple[Look, Drawn, float]] = {}  # of each picture that is off its values, since when
    wrong: dict[int, bool] = {}
    for look in recording.looks:
        for thing in look.things:
            if not thing.data:
                continue
            if id(thing) not in wrong:
                wrong[id(thing)] = any(fields.wrong_drawing(data) for data in thing.data)
            if wrong[id(thing)]:
                first, _, _ = runs.get(id(thing.picture), (look, thing, 0.0))
                runs[id(thing.picture)] = first, thing, look.end - first.start
            elif runs.get(id(thing.picture), (look, thing, 0.0))[2] <= LONGEST_MOTION:
                runs.pop(id(thing.picture), None)
    for first, thing, seconds in runs.values():
        if seconds > PASSING_SECONDS:
            message = f"its drawing is off the values of {thing.data[0].values.origin} for {seconds:.1f} s"
            yield finding(recording, first.start, thing.name, VALUE, message)


def _untraced(thing: Drawn, notation: Sequence[str]) -> Iterator[str]:
    """Yield what a picture draws without saying where it comes from."""
    picture = thing.picture
    if not isinstance(picture, Picture):
        yield "a mobject of Manim's own carries no origin: draw it with the kit"
        return
    own = [name for name in _TOLD_BY_THE_KIT if not _is_of_the_kit(getattr(type(picture), name))]
    if own:
        yield f"has a `{own[0]}` of its own: what draws, and what says of which data, belongs in scenes/kit"
    if isinstance(picture, FormulaPart):
        return  # its source was read when it was made
    written = {shown for shown, _ in thing.ledger if not _PICTORIAL.fullmatch(shown)}
    ticks = {text for text, _ in thing.instrument}
    allowed = sorted({*written, *ticks, *notation}, key=len, reverse=True)
    for mark in thing.marks:
        if mark.kind != TEXT or mark.text in written:
            continue
        rest = mark.text
        for part in allowed:
            rest = rest.replace(part, " ")
        number = typed(rest)
        if number:
            yield f"{number!r} in {mark.text!r} has no origin"


def _wrong_ticks(thing: Drawn) -> Iterator[str]:
    for text, place in thing.instrument:
        power = re.fullmatch("([0-9]+)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
        if power:
            is_true = np.isclose(float(power[1]) ** int(power[2].translate(_SUPERSCRIPTS)), place)
        else:
            numbers = [match[0] for match in _NUMBER.finditer(text.translate(_SUPERSCRIPTS))]
            is_true = len(numbers) == 1 and shows(numbers[0], place, share=TICK)
        if typed(text) and not is_true:
            yield f"the tick at {place:g} says {text!r}"


def _other_measures(recording: Recording) -> Iterator[Finding]:
    """Yield pictures that stand together and draw equal amounts of one field with unequal lengths or colors."""
    resting, told = resting_ids(recording), set[str]()
    for look in recording.looks:
        seen: dict[tuple[str, str], tuple[float, str]] = {}
        for thing in look.things:
            if thing.measure is None or id(thing) not in resting:
                continue
            field, kind, unit = thing.measure
            first, other = seen.setdefault((field, kind), (unit, thing.name))
            if not np.isclose(unit, first, rtol=1e-3) and field not in told:
                told.add(field)
                message = f"{kind} has the unit {unit:.3g}, beside {first:.3g} in {other}: give both one limit"
                yield finding(recording, look.start, thing.name, VALUE, message)


_TOLD_BY_THE_KIT = ("draw", "render_to", "ledger", "data", "measure", "instrument")


def _is_of_the_kit(method: Any) -> bool:
    return method.__module__.startswith("scenes.kit.")


class Fields:
    """The values that a scene's ledger speaks of."""

    def __init__(self, trace: Any, core: ModuleType) -> None:
        self.trace = trace
        self.provenance = trace_store.provenance(core)
        self._true: set[int] = set()  # ids of values that were compared

    def problem(self, shown: str, origin: str) -> tuple[str, str] | None:
        """Return the rule that a ledger entry breaks and how, or None."""
        for part in origin.split(" over "):
            try:
                value = self.resolve(part)
            except (LookupError, AttributeError, ValueError):
                return RULE, f"{part} is no value of the Trace"
        if isinstance(value, str):
            return None if shown.strip() == value else (VALUE, f"shows {shown!r}, but {origin} is {value!r}")
        if _PICTORIAL.fullmatch(shown) and shown not in ("yes", "no"):
            return None
        if np.size(value) != 1:
            return VALUE, f"writes one number for the {np.size(value)} values of {origin}"
        number = np.asarray(value).item()
        if not shows(shown, number):
            return VALUE, f"shows {shown!r}, but {origin} is {number!r}"
        return None

    def resolve(self, origin: str) -> Any:
        """Return the value that an origin such as `keys[2, :]` or `config.base` names.

        Raises:
            LookupError, AttributeError, ValueError: there is no such value.
        """
        steps = re.findall(r"\.?([^.\[\]]+)|\[((?:[^\[\]]|\[[^\]]*\])*)\]", origin)
        value: Any = {"provenance": self.provenance} if steps[0][0] == "provenance" else self.trace
        for name, index in steps:
            value = _step(value, name) if name else _cells(value, index)
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            raise ValueError(f"{origin} is a record")
        return value if isinstance(value, str) else np.asarray(value)

    def forged(self, held: Iterable[Traced]) -> Iterator[str]:
        """Yield what is wrong with values that say they are the Trace's. They must live as long as this object."""
        for values in held:
            if id(values) in self._true:
                continue
            try:
                true = np.asarray(self.resolve(values.field)).reshape(-1)[values.cells]
            except (LookupError, AttributeError, ValueError):
                yield f"{values.field} is no field of the Trace"
                continue
            if np.array_equal(true, values.values, equal_nan=True):
                self._true.add(id(values))
            else:
                yield f"its values are not those of {values.origin}"

    def wrong_drawing(self, data: Data) -> str | None:
        """Return how a drawing differs from the values it is of."""
        meant, drawn = np.broadcast_arrays(data.meant, data.drawn)
        scale = np.nanmax(np.abs(meant), initial=0.0) or 1.0
        if not np.allclose(drawn, meant, rtol=0, atol=1e-5 * scale, equal_nan=True):
            worst = np.nanmax(np.abs(drawn - meant))
            return f"the drawing is off the values of {data.values.origin} by up to {worst:.3g}"
        return None


def shows(shown: str, value: float | bool, *, share: float = np.inf) -> bool:
    """Return whether a written number is `value`, rounded to the digits that are written, by no more than a share."""
    if isinstance(value, bool):
        return shown == ("yes" if value else "no")
    match = _NUMBER.fullmatch(shown.strip().translate(_SUPERSCRIPTS))
    if match is None:
        return False
    mantissa = match["mantissa"].replace(",", "")
    power = int(match["e"] or match["ten"] or 0)
    unit = 10.0**power * _SCALES[match["unit"] or ""]
    decimals = len(mantissa.partition(".")[2])
    rounding = min((0.5 * 10.0**-decimals + 1e-9) * unit, share * abs(value))
    return abs(float(mantissa) * unit - value) <= rounding + 1e-9 * abs(value)


def _step(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value[name]
    if not dataclasses.is_dataclass(value):
        raise AttributeError(name)
    return getattr(value, name)


def _cells(value: Any, index: str) -> Any:
    """Return the cells of a field that an origin's brackets name."""
    if isinstance(value, tuple | list):
        if re.fullmatch("[0-9]+", index):
            return value[int(index)]
        value = np.asarray(value)
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if index == "nothing" or index.endswith(" cells"):
        return array.reshape(-1)[: 0 if index == "nothing" else int(index.split()[0])]
    axes = [_axis(part.strip()) for part in re.findall(r"\[[^\]]*\]|[^,\[\]]+", index) if part.strip()]
    if len(axes) != array.ndim:
        raise LookupError(index)
    for dimension, axis in reversed(list(enumerate(axes))):
        array = array[(slice(None),) * dimension + (axis,)]
    return array


def _axis(part: str) -> Any:
    if part.startswith("["):
        return [int(number) for number in part[1:-1].split(",")]
    if ":" in part:
        first, last = part.split(":")
        return slice(int(first) if first else None, int(last) if last else None)
    return int(part)
