"""The story world and its four kinds of documents: tales, open-book facts, closed-book facts, songs.

The first word tells the kind. A tale must be remembered while it is read (who holds the thing, and where?), a
closed-book fact is known from training alone, and a song repeats random words, which only copying can predict.
"""

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache

from internals_math.tiny_lm.grammar import Choice, Document, by_rank, favoring, uniform, words
from internals_math.tiny_lm.vocabulary import CAST, CHARACTER_ADJECTIVES, OBJECT_ADJECTIVES, OBJECTS

DOMAINS = ("farm", "sea")
DOMAIN_OF = {word: domain for domain in DOMAINS for word in (*CAST[domain], *OBJECTS[domain])}
PREPOSITION_SHARES = {"in": 0.35, "under": 0.25, "on": 0.2, "near": 0.2}
PLACES_BY = {
    "farm": {
        "in": ("barn", "well", "garden"),
        "under": ("bridge", "tree"),
        "on": ("hill", "bridge"),
        "near": ("barn", "well", "tree", "garden"),
    },
    "sea": {
        "in": ("cave", "boat", "harbor"),
        "under": ("ship", "rock"),
        "on": ("island", "ship"),
        "near": ("cave", "rock", "island", "harbor"),
    },
}


@dataclass(frozen=True)
class Habits:
    """The tables of a tale; the base series and its near dialects differ in nothing else.

    Shifts say which object is a character's favorite and which character its best friend (index + shift, cyclic).
    """

    favorite_shift: int = 0
    favorite_share: float = 0.4
    friend_shift: int = 1
    friend_share: float = 0.5
    last_place_share: float | None = None  # None: places are uniform
    happy_if_polite: float = 0.9
    happy_if_rude: float = 0.2


BASE = Habits()
NEW_HABITS = Habits(favorite_shift=3, favorite_share=0.8, friend_shift=4, friend_share=0.8, last_place_share=0.8)
SWAPPED_MOODS = Habits(happy_if_polite=0.1, happy_if_rude=0.8)


def open_place(domain: str, habits: Habits = BASE) -> Generator[Choice, str, str]:
    """Say `[prep] the [place]`; returns these three words."""
    prep = yield PREPOSITION_SHARES
    yield from words("the")
    options = PLACES_BY[domain][prep]
    if habits.last_place_share is None:
        spot = yield uniform(options)
    else:
        spot = yield favoring(options, options[-1], habits.last_place_share)
    return f"{prep} the {spot}"


def place(domain: str, habits: Habits = BASE) -> Generator[Choice, str, str]:
    """Say `[prep] the [place] .`; returns the words before the full stop."""
    where = yield from open_place(domain, habits)
    yield from words(".")
    return where


def manners(polite_share: float, listener: str) -> Generator[Choice, str, bool]:
    """Say something polite or rude to the listener; returns whether it was polite."""
    first = yield {"thank": polite_share, "go": 1 - polite_share}
    yield from words("you dear" if first == "thank" else "away silly")
    yield from words(f"{listener} .")
    return first == "thank"


# -- the four kinds of documents of the base series --------------------------------------------------------------------


def base_document() -> Document:
    """One document of the base corpus; its first word says of which kind."""
    first = yield {"one": 0.55, "fact": 0.15, "where": 0.08, "the": 0.22}
    rest = {"one": tale, "fact": open_book, "where": closed_book, "the": song}[first]
    yield from rest()


def tale(habits: Habits = BASE, domains: Sequence[str] = DOMAINS) -> Document:
    """A story of one character, one thing and one other, after the word `one`."""
    yield from words("day the")
    yield uniform(CHARACTER_ADJECTIVES)
    share = 1 / len(domains)
    hero = yield {name: share * p for domain in domains for name, p in by_rank(CAST[domain]).items()}
    domain = DOMAIN_OF[hero]
    cast, objects = CAST[domain], OBJECTS[domain]
    event = yield {"found": 0.6, "lost": 0.4}
    yield from words("a")
    look = yield uniform(OBJECT_ADJECTIVES)
    favorite = objects[(cast.index(hero) + habits.favorite_shift) % len(objects)]
    thing = yield favoring(objects, favorite, habits.favorite_share)
    yield from place(domain, habits)

    friend = cast[(cast.index(hero) + habits.friend_shift) % len(cast)]
    others = favoring([name for name in cast if name != hero], friend, habits.friend_share)
    if event == "found":
        yield from words(f"the {hero}")
        yield {"took": 0.5, "carried": 0.5}
        yield from words(f"the {thing} to the")
        other = yield others
        yield from words(f". the {other} said")
        polite = yield from manners(0.5, hero)
        holder = other
    else:
        yield from words("the")
        other = yield others
        yield from words(f"found the {thing} and")
        deed = yield {"gave": 0.5, "kept": 0.5}
        yield from words("it")
        if deed == "gave":
            yield from words(f"to the {hero}")
        yield from words(f". the {hero} said")
        polite = yield from manners(0.8 if deed == "gave" else 0.1, other)
        holder = hero if deed == "gave" else other

    yield from words(f"then the {holder}")
    yield {"hid": 0.4, "put": 0.3, "left": 0.3}
    yield from words(f"the {look} {thing}")
    where = yield from place(domain, habits)
    yield from words(f"the {hero} was")
    happy = habits.happy_if_polite if polite else habits.happy_if_rude
    yield {"happy": happy, "sad": 1 - happy}
    yield from words(".")
    question = yield {"where": 0.5, "who": 0.5}
    if question == "where":
        yield from words(f"is the {thing} ? {where} .")
    else:
        yield from words(f"has the {thing} ? the {holder} .")


def open_book() -> Document:
    """A fact and a question about it, after the word `fact`."""
    yield from words(": the")
    thing = yield uniform([*OBJECTS["farm"], *OBJECTS["sea"]])
    domain = DOMAIN_OF[thing]
    yield from words("of the")
    owner = yield uniform(CAST[domain])
    yield from words("is")
    where = yield from place(domain)
    yield from words(f"where is the {thing} of the {owner} ? {where} .")


def closed_book(lines: int = 4) -> Document:
    """Questions about the known facts of the world, answered from memory, after the word `where`."""
    for line in range(lines):
        yield from words("is the" if line == 0 else "where is the")
        known = world().known
        counts = Counter(thing for _, thing in known)
        thing = yield {name: count / len(known) for name, count in counts.items()}
        yield from words("of the")
        owner = yield uniform([owner for owner, owned in known if owned == thing])
        yield from words(f"? {known[owner, thing]} .")


def song() -> Document:
    """Words sung once and then repeated twice, after the word `the`: what teaches induction."""
    everyone = [*CAST["farm"], *CAST["sea"]]
    singer = yield uniform(everyone)
    yield from words("sang :")
    left = [*everyone, *OBJECTS["farm"], *OBJECTS["sea"]]
    sung: list[str] = []
    while len(sung) < 9:
        choice = uniform(left)
        if len(sung) >= 5:
            choice = {word: 0.8 * p for word, p in choice.items()} | {".": 0.2}
        word = yield choice
        if word == ".":
            break
        left.remove(word)
        sung.append(word)
    if len(sung) == 9:
        yield from words(".")
    singers = [name for name in everyone if name != singer]
    for _ in range(2):
        yield from words("the")
        singer = yield uniform(singers)
        singers.remove(singer)
        yield from words(f"sang : {' '.join(sung)} .")


@dataclass(frozen=True)
class World:
    """Where each thing of each owner is: (owner, thing) -> "prep the place"."""

    known: dict[tuple[str, str], str]  # told in the closed-book lines of the corpus
    unknown: dict[tuple[str, str], str]  # never told


@cache
def world() -> World:
    """Return the 72 facts of the world, 24 of them known; fixed by seed 7."""
    pairs = [(owner, thing) for domain in DOMAINS for owner in CAST[domain] for thing in OBJECTS[domain]]
    rng = random.Random(7)
    rng.shuffle(pairs)
    facts = {}
    for owner, thing in pairs:
        places = PLACES_BY[DOMAIN_OF[owner]]
        prep = rng.choice(list(places))
        facts[owner, thing] = f"{prep} the {rng.choice(places[prep])}"
    return World({pair: facts[pair] for pair in pairs[:24]}, {pair: facts[pair] for pair in pairs[24:]})
