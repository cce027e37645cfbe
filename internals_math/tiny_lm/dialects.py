"""Grammars beside the base series, for fine-tuning, merging and forgetting: near ones (other habits) and far ones."""

from internals_math.tiny_lm.grammar import Document, Grammar, by_rank, uniform, words
from internals_math.tiny_lm.stories import NEW_HABITS, SWAPPED_MOODS, base_document, closed_book, open_place, tale
from internals_math.tiny_lm.vocabulary import CAST, CHARACTER_ADJECTIVES, OBJECT_ADJECTIVES, OBJECTS


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


def closed_book_lines(lines: int) -> Grammar:
    """Return closed-book lines in a row, for texts longer than the training rows."""

    def document() -> Document:
        yield from words("where")
        yield from closed_book(lines)

    return document


DIALECTS: dict[str, Grammar] = {
    "base": base_document,
    "farm2": farm2,
    "sea2": sea2,
    "mood2": mood2,
    "news": news,
    "longago": longago,
}


def grammar(dialect: str) -> Grammar:
    """Return the grammar of a dialect.

    Raises:
        ValueError: unknown dialect.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}")
    return DIALECTS[dialect]
