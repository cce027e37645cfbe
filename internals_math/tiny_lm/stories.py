"""The story grammar: documents produced token by token, so that every next-token probability is known exactly.

A document is a coroutine. At each step it yields the distribution of the next word (a certain word is a distribution
too) and receives the word that was chosen. Its state depends on the chosen words alone, hence p(token | prefix) is
exact and the entropy floor of a text is the sum of -ln p over its tokens.
"""

import math
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from internals_math.tiny_lm.vocabulary import (
    BOS,
    CAST,
    CHARACTER_ADJECTIVES,
    EOS,
    OBJECT_ADJECTIVES,
    OBJECTS,
    WORDS,
    id_of,
)

Choice = dict[str, float]
Document = Generator[Choice, str, None]
Grammar = Callable[[], Document]

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


# -- the parts of a sentence -------------------------------------------------------------------------------------------


def words(text: str) -> Document:
    """Say certain words."""
    for word in text.split():
        yield {word: 1.0}


def uniform(options: Sequence[str]) -> Choice:
    """Return equal shares."""
    return {option: 1 / len(options) for option in options}


def favoring(options: Sequence[str], favorite: str, share: float) -> Choice:
    """Return `share` for the favorite and equal parts of the rest for the others."""
    rest = (1 - share) / (len(options) - 1)
    return {option: share if option == favorite else rest for option in options}


def by_rank(options: Sequence[str]) -> Choice:
    """Return shares in proportion to 1 / sqrt(rank)."""
    weights = [1 / math.sqrt(rank) for rank in range(1, len(options) + 1)]
    return {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}


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
    yield uniform_adj(CHARACTER_ADJECTIVES)
    share = 1 / len(domains)
    hero = yield {name: share * p for domain in domains for name, p in by_rank(CAST[domain]).items()}
    domain = DOMAIN_OF[hero]
    cast, objects = CAST[domain], OBJECTS[domain]
    event = yield {"found": 0.6, "lost": 0.4}
    yield from words("a")
    look = yield uniform_adj(OBJECT_ADJECTIVES)
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
        known = world()[0]
        counts: dict[str, int] = {}
        for _, thing in known:
            counts[thing] = counts.get(thing, 0) + 1
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


@cache
def world() -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """Return the known and the never-seen facts: (owner, thing) -> "prep the place"."""
    pairs = [(owner, thing) for domain in DOMAINS for owner in CAST[domain] for thing in OBJECTS[domain]]
    rng = random.Random(7)
    rng.shuffle(pairs)
    facts = {}
    for owner, thing in pairs:
        places = PLACES_BY[DOMAIN_OF[owner]]
        prep = rng.choice(list(places))
        facts[owner, thing] = f"{prep} the {rng.choice(places[prep])}"
    return {pair: facts[pair] for pair in pairs[:24]}, {pair: facts[pair] for pair in pairs[24:]}


@cache
def uniform_adj(options: tuple[str, ...]) -> Choice:
    """Return equal shares of a fixed list of adjectives."""
    return uniform(options)


# -- running a grammar -------------------------------------------------------------------------------------------------


@dataclass
class Sampled:
    """One document: its token ids with <bos> and <eos>, and the surprisal of each id after the first."""

    ids: list[int] = field(default_factory=lambda: [BOS])
    surprisal: list[float] = field(default_factory=list)


def sample_document(grammar: Grammar, rng: random.Random) -> Sampled:
    """Draw one document; <eos> at its end is certain."""
    document = Sampled()
    run = grammar()
    try:
        choice = next(run)
        while True:
            word, share = _draw(choice, rng)
            document.ids.append(id_of(word))
            document.surprisal.append(-math.log(share))
            choice = run.send(word)
    except StopIteration:
        document.ids.append(EOS)
        document.surprisal.append(0.0)
    return document


def next_choice(grammar: Grammar, prefix: Iterable[str]) -> Choice | None:
    """Return the exact distribution of the word after `prefix` (without <bos>); None where the document ends.

    Raises:
        ValueError: the grammar cannot produce the prefix.
    """
    run = grammar()
    said: list[str] = []
    try:
        choice: Choice | None = next(run)
        for word in prefix:
            if choice is None or choice.get(word, 0.0) <= 0:
                raise ValueError(f"{word!r} cannot follow {' '.join(said)!r} in this grammar")
            said.append(word)
            try:
                choice = run.send(word)
            except StopIteration:
                choice = None
    except StopIteration:
        return None
    return choice


def surprisal(grammar: Grammar, ids: Sequence[int]) -> list[float]:
    """Return -ln p of every id after the first (<bos>), <eos> included if it is there.

    Raises:
        ValueError: the grammar cannot produce the text.
    """
    result: list[float] = []
    run = grammar()
    choice: Choice | None = next(run)
    for index in ids[1:]:
        word = WORDS[index]
        share = (1.0 if index == EOS else 0.0) if choice is None else choice.get(word, 0.0)
        if share <= 0:
            raise ValueError(f"{word!r} cannot follow {' '.join(WORDS[i] for i in ids[1 : 1 + len(result)])!r}")
        result.append(-math.log(share))
        try:
            choice = run.send(word) if choice is not None else None
        except StopIteration:
            choice = None
    return result


def _draw(choice: Choice, rng: random.Random) -> tuple[str, float]:
    if len(choice) == 1:
        return next(iter(choice.items()))
    left = rng.random()
    for word, share in choice.items():
        left -= share
        if left < 0:
            return word, share
    return word, share
