"""Words with traced numbers in them."""

import pytest

from scenes.kit.label import counted
from scenes.kit.traced import read_text, traced


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [(1, ("slot",), "1 slot"), (4, ("slot",), "4 slots"), (2, ("pass", "passes"), "2 passes")],
)
def test_a_number_of_things_has_a_singular_and_keeps_its_origin(number, words, text):
    read = read_text(counted(traced(number, "count"), *words))
    assert read.plain == text
    assert read.parts == ((str(number), "count"),)
