"""What rests on screen: a viewer reads what stands still, so most rules are about that."""

from collections import defaultdict
from collections.abc import Iterator

from scenes.kit.recorder import Drawn, Look, Recording

REST_SECONDS = 0.3


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
