"""Grammars beside the base series: for fine-tuning, merging, forgetting, and reasoning in steps."""

from collections.abc import Sequence

from internals_math.tiny_lm.stories import (
    NEW_HABITS,
    SWAPPED_MOODS,
    Document,
    Grammar,
    base_document,
    by_rank,
    closed_book,
    open_place,
    tale,
    uniform,
    words,
)
from internals_math.tiny_lm.vocabulary import CAST, CHARACTER_ADJECTIVES, OBJECT_ADJECTIVES, OBJECTS

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
# Two permutations of the farm's places without fixed points; together they generate all 720, so there is no shortcut.
ROADS = {
    "red": {"barn": "bridge", "well": "tree", "garden": "hill", "bridge": "well", "tree": "garden", "hill": "barn"},
    "blue": {"barn": "garden", "well": "bridge", "garden": "hill", "bridge": "well", "tree": "barn", "hill": "tree"},
}


def farm2() -> Document:
    """Tales of the farm with new favorites, friends and places."""
    yield from words("one")
    yield from tale(NEW_HABITS, ("farm",))


def sea2() -> Document:
    """Tales of the sea with new favorites, friends and places."""
    yield from words("one")
    yield from tale(NEW_HABITS, ("sea",))


def mood2() -> Document:
    """Tales in which polite words make sad and rude words make happy: a third near dialect."""
    yield from words("one")
    yield from tale(SWAPPED_MOODS)


def news() -> Document:
    """Farm news: other words and another syntax, far from the base."""
    yield from words("news :")
    yield from open_place("farm")
    yield from words("a")
    look = yield uniform(OBJECT_ADJECTIVES)
    thing = yield by_rank(OBJECTS["farm"])
    yield from words("was")
    verb = yield {"found": 0.3, "lost": 0.7}
    yield from words("by the")
    who = yield uniform(CAST["farm"])
    yield from words(f"at night . the {thing} is {look} and the {who} is")
    happy = 0.9 if verb == "found" else 0.1
    yield {"happy": happy, "sad": 1 - happy}
    yield from words(f". who {verb} the {thing} ? the {who} .")


def longago() -> Document:
    """Old tales of the sea: other words, two characters, two things."""
    cast, objects = CAST["sea"], OBJECTS["sea"]
    yield from words("long ago there lived a")
    look = yield uniform(CHARACTER_ADJECTIVES)
    first = yield by_rank(cast)
    yield from words("and a")
    other_look = yield uniform(CHARACTER_ADJECTIVES)
    second = yield uniform([name for name in cast if name != first])
    yield from words(f". the {look} {first} had a")
    thing = yield uniform(objects)
    yield from words(f"and the {other_look} {second} had a")
    other_thing = yield uniform([name for name in objects if name != thing])
    yield from words(". the")
    loser = yield uniform([first, second])
    yield from words(f"lost the {thing if loser == first else other_thing}")
    yield from open_place("sea")
    yield from words("and was")
    yield {"happy": 0.05, "sad": 0.95}
    yield from words(".")


def walk(moves: int, *, steps: bool) -> Document:
    """A character walks colored roads; the answer is where it ends, told at once or after every step."""
    yield from words("the")
    yield uniform(CAST["farm"])
    yield from words("is in the")
    spot = yield uniform(list(ROADS["red"]))
    yield from words(":")
    colors = []
    for number in NUMBERS[:moves]:
        yield from words(number)
        colors.append((yield uniform(["red", "blue"])))
    yield from words("?")
    if steps:
        yield from words("think :")
    for number, color in zip(NUMBERS, colors, strict=False):
        spot = ROADS[color][spot]
        if steps:
            yield from words(f"{number} {spot}")
    yield from words(f". answer : {spot} ." if steps else f"answer : {spot} .")


def walk_of(moves: int, steps: bool) -> Grammar:
    """Return the walk grammar with its number of moves and its way of answering."""
    return lambda: walk(moves, steps=steps)


def long_closed_book(lines: int) -> Grammar:
    """Return closed-book lines in a row, for texts longer than the training rows."""

    def document() -> Document:
        yield from words("where")
        yield from closed_book(lines)

    return document


GRAMMARS: dict[str, Grammar] = {
    "base": base_document,
    "farm2": farm2,
    "sea2": sea2,
    "mood2": mood2,
    "news": news,
    "longago": longago,
}


def grammar(name: str) -> Grammar:
    """Return a named grammar; "walk-direct-3" and "walk-steps-3" are walks of that many moves.

    Raises:
        ValueError: unknown name.
    """
    if name.startswith("walk-"):
        _, way, moves = name.split("-")
        return walk_of(int(moves), way == "steps")
    if name not in GRAMMARS:
        raise ValueError(f"dialect must be one of {', '.join(GRAMMARS)}, got {name!r}")
    return GRAMMARS[name]


def names() -> Sequence[str]:
    """Return the names of all dialects but the walks."""
    return tuple(GRAMMARS)
