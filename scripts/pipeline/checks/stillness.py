"""What rests on screen: a viewer reads what stands still, so most rules are about that."""

from collections import defaultdict
from collections.abc import Iterator

from scenes.kit.recorder import Drawn, Look, Recording

REST_SECONDS = 0.3
PASSING_SECONDS = 2.0  # what moves for longer than this does not just pass: it is meant to be read


def readable_things(recording: Recording) -> Iterator[tuple[Look, Drawn]]:
    """Yield each state of a picture that rests, and one of each picture that is there for long without any rest."""
    resting, rested = resting_ids(recording), set[int]()
    moving: dict[int, list[tuple[Look, Drawn]]] = defaultdict(list)
    for look in recording.looks:
        for thing in look.things:
            if id(thing) in resting:
                rested.add(id(thing.picture))
            else:
                moving[id(thing.picture)].append((look, thing))
    yield from still_things(recording)
    for picture, states in moving.items():
        seconds = sum(look.end - look.start for look, _ in states)
        if picture not in rested and seconds > PASSING_SECONDS:
            yield states[len(states) // 2]


def still_things(recording: Recording) -> Iterator[tuple[Look, Drawn]]:
    """Yield each state of a picture that rests, with the first look at it."""
    resting = resting_ids(recording)
    seen: set[int] = set()
    for look in recording.looks:
        for thing in look.things:
            if id(thing) in resting and id(thing) not in seen:
                seen.add(id(thing))
                yield look, thing


def resting_ids(recording: Recording) -> set[int]:
    """Return the ids of the states that are on screen for long enough to be read."""
    seconds: dict[int, float] = defaultdict(float)
    for look in recording.looks:
        for thing in look.things:
            seconds[id(thing)] += look.end - look.start
    return {key for key, total in seconds.items() if total >= REST_SECONDS - 1e-6}
