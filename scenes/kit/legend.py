"""What colors mean, in words beside a sample of them."""

import numpy as np
from manim import DOWN, LEFT, ORIGIN, RIGHT, Group

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.shapes import Frame


def sign_key(direction: np.ndarray = DOWN) -> Group:
    """Return which color of a signed map is which sign, one after the other in a direction."""
    rows = [
        Group(Frame(0.06, 0.06, color=color, line=theme.THICK, radius=0.02), Label(words, color=theme.MUTED))
        for color, words in ((theme.POSITIVE, "above zero"), (theme.NEGATIVE, "below zero"))
    ]
    is_column = bool(direction[1])
    return Group(*(row.arrange(RIGHT, buff=0.18) for row in rows)).arrange(
        direction, buff=0.16 if is_column else 0.4, aligned_edge=LEFT if is_column else ORIGIN
    )
