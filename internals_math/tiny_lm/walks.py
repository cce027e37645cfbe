"""Walks: the one task of the story world that needs several steps of reasoning.

A character walks colored roads from place to place; the map is never told, it is knowledge in the weights. The answer
is where the walk ends, told at once ("direct") or after every move ("in steps").

    the fox is in the barn : one red two blue ? answer : well .
    the fox is in the barn : one red two blue ? think : one bridge two well . answer : well .
"""

from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from internals_math.tiny_lm.datasets import HELD_OUT_SEED, Corpus, make_corpus
from internals_math.tiny_lm.generation import generate
from internals_math.tiny_lm.grammar import Document, Grammar, uniform, words
from internals_math.tiny_lm.model import TinyLM
from internals_math.tiny_lm.vocabulary import CAST, PAD, id_of

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
MOVES = range(1, len(NUMBERS) + 1)
# Two permutations of the farm's places without fixed points; together they generate all 720, so there is no shortcut.
ROADS = {
    "red": {"barn": "bridge", "well": "tree", "garden": "hill", "bridge": "well", "tree": "garden", "hill": "barn"},
    "blue": {"barn": "garden", "well": "bridge", "garden": "hill", "bridge": "well", "tree": "barn", "hill": "tree"},
}
PLACES = tuple(ROADS["red"])


def walk(moves: int, *, steps: bool) -> Document:
    """Ask where a walk of `moves` moves ends, and answer at once or in steps."""
    yield from words("the")
    yield uniform(CAST["farm"])
    yield from words("is in the")
    spot = yield uniform(PLACES)
    yield from words(":")
    colors = []
    for number in NUMBERS[:moves]:
        yield from words(number)
        colors.append((yield uniform(["red", "blue"])))
    yield from words("? think :" if steps else "?")
    for number, color in zip(NUMBERS, colors, strict=False):
        spot = ROADS[color][spot]
        if steps:
            yield from words(f"{number} {spot}")
    yield from words(f". answer : {spot} ." if steps else f"answer : {spot} .")


def walk_of(moves: int, steps: bool) -> Grammar:
    """Return the walk grammar with its number of moves and its way of answering.

    Raises:
        ValueError: moves out of 1..8.
    """
    if moves not in MOVES:
        raise ValueError(f"moves must be in 1..{MOVES[-1]}, got {moves}")
    return lambda: walk(moves, steps=steps)


@cache
def walk_corpus(size: int, seed: int) -> Corpus:
    """Return walks of 1 to 8 moves in equal parts, half of them answered at once and half in steps."""
    kinds = [walk_of(moves, steps) for steps in (False, True) for moves in MOVES]
    parts = [make_corpus(kind, size // len(kinds), seed + index) for index, kind in enumerate(kinds)]
    return Corpus(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "surprisal", "lengths")))


def answer_labels(ids: Int[Tensor, "N T"]) -> Int[Tensor, "N T"]:
    """Return labels that count only what follows the first `?` of each row; the rest is -100."""
    after = (ids == id_of("?")).cumsum(dim=1) > 0
    after = after.roll(1, dims=1).index_fill(1, torch.tensor([0]), False)
    return ids.masked_fill(~after | (ids == PAD), -100)


def walk_accuracy(model: TinyLM, moves: int, *, steps: bool, questions: int = 200) -> float:
    """Return the share of held-out walks whose end the model names, writing greedily from `think` or `answer` on."""
    texts = make_corpus(walk_of(moves, steps), questions, HELD_OUT_SEED).texts()
    prompts = [f"{text.split(' ? ')[0]} ? {'think' if steps else 'answer'} :" for text in texts]
    longest = 2 * moves + 6  # number and place of every move, then `. answer : [place] .` and <eos>
    answers = generate(model, prompts, longest)
    right = [answer.split()[-2:] == text.split()[-2:] for answer, text in zip(answers, texts, strict=True)]
    return sum(right) / questions
