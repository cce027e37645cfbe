from manim import DOWN, RIGHT

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.legend import sign_key
from scenes.kit.shapes import Frame


def test_each_sign_stands_beside_its_color_in_both_directions():
    for direction, axis in ((DOWN, 1), (RIGHT, 0)):
        above, below = sign_key(direction)
        for (sample, words), color, text in (
            (above, theme.POSITIVE, "above zero"),
            (below, theme.NEGATIVE, "below zero"),
        ):
            assert isinstance(sample, Frame)
            assert isinstance(words, Label)
            assert theme.hex_color(tuple(sample.tint)) == color.upper()
            assert words.text == text
            assert words.get_left()[0] > sample.get_right()[0]
        assert abs(above.get_center()[axis] - below.get_center()[axis]) > 0.1
