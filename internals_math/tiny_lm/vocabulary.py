"""The words of the story world: 112 of them, one word = one token."""

from collections.abc import Iterable

from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<eos>")
MARKS = (".", "?", ":")
CAST = {
    "farm": ("fox", "owl", "cat", "dog", "hen", "mouse"),
    "sea": ("crab", "seal", "duck", "whale", "pirate", "captain"),
}
OBJECTS = {
    "farm": ("key", "cup", "ball", "ring", "lamp", "drum"),
    "sea": ("map", "pearl", "shell", "coin", "rope", "flag"),
}
PLACES = ("barn", "well", "garden", "bridge", "tree", "hill", "cave", "boat", "harbor", "ship", "rock", "island")
CHARACTER_ADJECTIVES = ("old", "young", "big", "small", "brave", "clever")
OBJECT_ADJECTIVES = ("red", "blue", "green", "golden", "shiny", "tiny")
FUNCTION_WORDS = (
    "one", "day", "the", "a", "to", "of", "and", "is", "was", "it", "who", "where", "has", "then",
)  # fmt: skip
DEEDS = (
    "said", "thank", "you", "dear", "go", "away", "silly", "found", "lost", "took", "carried", "gave", "kept", "hid",
    "put", "left", "happy", "sad", "fact", "sang",
)  # fmt: skip
REASONING = ("two", "three", "four", "five", "six", "seven", "eight", "think", "answer")
STYLES = ("by", "at", "night", "news", "long", "ago", "lived", "there", "had")
PREPOSITIONS = ("in", "under", "on", "near")
SPARE = ("<spare0>", "<spare1>")

WORDS = (
    *SPECIAL, *MARKS, *CAST["farm"], *CAST["sea"], *OBJECTS["farm"], *OBJECTS["sea"], *PLACES,
    *CHARACTER_ADJECTIVES, *OBJECT_ADJECTIVES, *FUNCTION_WORDS, *DEEDS, *REASONING, *STYLES, *PREPOSITIONS, *SPARE,
)  # fmt: skip
VOCAB_SIZE = len(WORDS)
PAD, BOS, EOS = 0, 1, 2
_IDS = {word: index for index, word in enumerate(WORDS)}


def encode(text: str, *, bos: bool = True) -> list[int]:
    """Return the token ids of space-separated words, with `<bos>` in front unless told otherwise.

    Raises:
        ValueError: a word is not in the vocabulary.
    """
    ids = ids_of(text.split())
    return [BOS, *ids] if bos and (not ids or ids[0] != BOS) else ids


def tokens(ids: Iterable[int] | Tensor) -> tuple[str, ...]:
    """Return the words of token ids."""
    return tuple(WORDS[int(index)] for index in ids)


def id_of(word: str) -> int:
    """Return the id of one word.

    Raises:
        ValueError: it is not in the vocabulary.
    """
    return ids_of([word])[0]


def ids_of(words: Iterable[str]) -> list[int]:
    """Return the ids of words.

    Raises:
        ValueError: one of them is not in the vocabulary.
    """
    try:
        return [_IDS[word] for word in words]
    except KeyError as error:
        raise ValueError(f"{error} is not one of the {VOCAB_SIZE} words of the story world") from None
