"""The stages of the mixture of experts video: rooms with seats, a bar that is shared out, a load over training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.label import Label, Readout
from scenes.kit.number_line import NumberLine
from scenes.kit.shapes import Frame
from scenes.kit.slot_map import SlotMap
from scenes.kit.stacked_bar import StackedBar
from scenes.kit.token_row import TokenRow
from scenes.kit.traced import Traced

CHOICES = ("VALUE", "LATENT", "KEY", "QUERY")  # roles of a word's first, second … expert
SEATED = "WEIGHT"  # of a word in a room
EDGE = 6.55  # of the stage
LEVELS = 3  # of words that wait above a room
NARROW = 1.0  # width of a room whose neighbors' words would touch on one level


def beside(label: Label, point: Any, others: Sequence[Label]) -> Label:
    """Put a label beside a scene point, where it is on the stage and clear of other labels."""
    for side in (UP, RIGHT, LEFT, DOWN):
        label.next_to(point, side, buff=0.14)
        near = any(
            abs(label.get_x() - other.get_x()) < (label.width + other.width) / 2 + 0.1
            and abs(label.get_y() - other.get_y()) < (label.height + other.height) / 2 + 0.1
            for other in others
        )
        if not near and label.get_right()[0] < EDGE and theme.STAGE_BOTTOM < label.get_bottom()[1] < 2.8:
            return label
    return label


class Rooms:
    """A column of seats for each expert, filled from below.

    Args:
        tokens: the words that may come.
        seats: traced (places, N), who sits where, -1 for nobody; `taken`, 1 where one does.
        names: of the experts.
        width, height: of all rooms together; `foot` is the middle of their lower edge.
        size: of the names below; `word_size` of the words in seats.
    """

    def __init__(
        self, tokens: Sequence[Any], seats: Traced, taken: Traced, *, names: Sequence[Any], width: float, height: float,
        foot: Any, size: float = 0.26, word_size: float = theme.LABEL,
    ) -> None:  # fmt: skip
        self.tokens = tokens
        self.rows, self.count = seats.shape
        pitch = width / self.count
        aisle = 0.14 * pitch
        seat = (pitch - aisle, height / self.rows)
        self.map = SlotMap(
            seats[::-1].reshape(-1), taken[::-1].reshape(-1), block=1, roles=[SEATED] * len(tokens),
            per_line=self.count, cell=seat, gap=(aisle, 0.0), word_size=word_size,
        ).move_to(np.asarray(foot) + height / 2 * UP).hide()  # fmt: skip
        for slot, token in enumerate(self.map.owner):
            if int(token) >= 0:
                self.map.write(slot, tokens[int(token)])
        self.frames = [
            Frame(seat[0] + 0.06, height + 0.06, color=theme.MUTED).move_to(self.map.to_scene(self._x(expert), 0))
            for expert in range(self.count)
        ]
        self.names = [
            Label(f"{name}", size=size, bold=True, color=theme.MUTED).next_to(frame, DOWN, buff=0.16)
            for name, frame in zip(names, self.frames, strict=True)
        ]

    def _x(self, expert: int) -> float:
        return float(self.map.places[expert, 0])

    def slot(self, expert: int, seat: int) -> int:
        """Return which slot of the map a seat is."""
        return (self.rows - 1 - seat) * self.count + expert

    def seat(self, expert: int, seat: int) -> np.ndarray:
        """Return the scene point in the middle of a seat."""
        return self.map.slot_center(self.slot(expert, seat))

    def door(self, expert: int, before: int) -> tuple[int, np.ndarray]:
        """Return on which level and where a word waits at a full room, after so many others; levels are used again."""
        level = before % LEVELS if self.map.size[0] > NARROW else expert % LEVELS
        return level, self.frames[expert].get_top() + (0.34 + 0.52 * level) * UP

    def guest(self, row: TokenRow, token: int) -> TokenRow:
        """Return a word that is to leave its place in a row, still unseen."""
        tile = row.tile(token).lead().paint(0, SEATED).set_opacity(0)
        smallest = theme.SMALL / row.style.size
        return tile.scale(max(smallest, min(1.0, float(self.map.size[0]) / tile.width)))

    def parts(self) -> list[Any]:
        """Return everything that stands there."""
        return [self.map, *self.frames, *self.names]


class SharedBar:
    """One bar cut into as many pieces as there are shares; the last one ends where all of it is given away.

    Args:
        shares: traced (k,) amounts that sum to at most 1.
        left: scene point at its left end.
        length: of an amount of 1.
    """

    def __init__(self, shares: Traced, *, left: Any, length: float, height: float = 0.5) -> None:
        self.left, self.length = np.asarray(left, dtype=float), length
        middle = self.left + length / 2 * RIGHT
        self.room = Frame(length + 0.08, height + 0.04, color=theme.MUTED).move_to(middle)
        self.pieces = StackedBar(
            shares, limit=1.0, length=length, thickness=0.84 * height, roles=CHOICES[: len(shares)]
        ).move_to(middle)

    def written(self, shares: Traced, names: Sequence[Any]) -> list[Label]:
        """Return who has which share, one after the other below the bar, in the color of its piece."""
        labels = [
            Label(f"{name}: {share:.2f}", size=0.24, bold=True, color=getattr(theme, CHOICES[k]))
            for k, (name, share) in enumerate(zip(names, shares, strict=True))
        ]
        place = self.left + 0.52 * DOWN
        for label in labels:
            label.move_to(place, aligned_edge=LEFT)
            place = place + (self.length / len(labels)) * RIGHT
        return labels


class LoadPanel:
    """The load of each expert at one moment of a training run, and how many experts that is in effect.

    Args:
        loads: traced (S, N); `effective` (S,).
        even: traced load of each expert if it was even.
        limit: the load whose column has the full height.
        note: words below the title.
        x: of its middle.
    """

    def __init__(
        self, title: str, note: str, loads: Traced, effective: Traced, *, names: Sequence[Any], even: Traced,
        limit: float, x: float, role: str,
    ) -> None:  # fmt: skip
        self.loads, self.effective = loads, effective
        count, width, height, color = len(names), 3.8, 2.6, getattr(theme, role)
        self.bars = Bars(
            loads[0], direction="up", limit=limit, length=height, step=width / count, thickness=0.74, role=role,
            number=None, names=names,
        ).move_to([x, 0.45, 0])  # fmt: skip
        self.ground = Chart(width, height, x=(0, 1), y=(0, limit)).move_to(self.bars)
        self.ground.level(even)
        self.title = Label(title, size=0.26, bold=True, color=color).move_to([x, 2.3, 0])
        self.line = NumberLine(
            effective[0], span=(1, count), length=width, ticks=[1, count // 2, count], tick_format="d", roles=role
        ).move_to([x, -1.55, 0])
        self.note = Label(note, color=theme.MUTED).next_to(self.title, DOWN, buff=0.2)
        self.readout = Readout(lambda value: f"{value:.1f}", effective[0], size=0.36, bold=True, color=color)
        self.words = Label("effective experts", color=theme.MUTED)
        self.readout.move_to([x - 1.35, -2.5, 0])
        self.words.next_to(self.readout, RIGHT, buff=0.25).align_to(self.readout, DOWN)

    def parts(self) -> list[Any]:
        """Return everything that stands there."""
        return [self.ground, self.bars, self.title, self.note, self.line, self.readout, self.words]

    def go_to(self, record: int) -> list[Any]:
        """Return the motions to another record of the run."""
        return [
            self.bars.animate.set_values(self.loads[record]),
            self.line.animate.set_values(self.effective[record]),
            self.readout.animate.set_value(self.effective[record]),
        ]
