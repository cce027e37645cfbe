import pytest

from internals_math import tiny_lm
from internals_math.tiny_lm import walks


def test_the_roads_are_permutations_without_fixed_points_that_generate_all_720():
    for road in walks.ROADS.values():
        assert sorted(road) == sorted(road.values())
        assert all(start != end for start, end in road.items())
    red, blue = (tuple(walks.PLACES.index(road[place]) for place in walks.PLACES) for road in walks.ROADS.values())
    reached, waiting = {tuple(range(6))}, [tuple(range(6))]
    while waiting:
        here = waiting.pop()
        for road in (red, blue):
            there = tuple(road[place] for place in here)
            if there not in reached:
                reached.add(there)
                waiting.append(there)
    assert len(reached) == 720


def test_the_example_of_the_module_is_walked_right():
    text = "the fox is in the barn : one red two blue ? think : one bridge two well . answer : well ."
    prefix = text.removesuffix(" one bridge two well . answer : well .").split()
    document = walks.walk_of(2, steps=True)
    from internals_math.tiny_lm.grammar import next_choice

    assert next_choice(document, [*prefix, "one"]) == {"bridge": 1.0}
    assert next_choice(document, text.split()) == {"<eos>": 1.0}


def test_step_by_step_the_model_walks_any_distance_and_at_once_it_does_not():
    model = tiny_lm.load("walk")
    assert min(tiny_lm.walk_accuracy(model, moves, steps=True, questions=50) for moves in walks.MOVES) >= 0.98
    at_once = {moves: tiny_lm.walk_accuracy(model, moves, steps=False, questions=100) for moves in (1, 2, 5, 8)}
    assert at_once[1] >= 0.98
    assert at_once[2] >= 0.95
    # Guessing one of six places gets 0.17 +- 0.04; half right would need reasoning.
    assert max(at_once[5], at_once[8]) < 0.5


def test_a_walk_of_no_or_nine_moves_is_refused():
    for moves in (0, 9):
        with pytest.raises(ValueError, match=rf"moves must be in 1..8, got {moves}"):
            walks.walk_of(moves, steps=True)
