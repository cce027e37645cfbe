"""The stage of the paged attention video: block tables at the left, the pool they point into at the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP

from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.page_table import COLUMN, PageTable
from scenes.kit.shapes import Stroke
from scenes.kit.slot_map import COUNTS, EMPTY, FULL, KEPT, LOST, WASTE, SlotMap
from scenes.kit.token_row import TokenRow
from scenes.kit.traced import Traced

ROLES = ("WEIGHT", "GRADIENT", "VALUE", "LATENT", "QUERY", "KEY")  # of the sequences, in turn
LOOKS = (EMPTY, FULL, KEPT, WASTE, LOST)  # of the states of a slot
SHARED = "INPUT"  # of a block that several hold
TOP, HEIGHT = 2.5, 5.1  # of tables and pool
LINES = 16  # of the pool, before it goes on beside


def role_of(sequence: int) -> str:
    """Return the color of a sequence."""
    return ROLES[sequence % len(ROLES)]


@dataclass(frozen=True)
class Course:
    """The traced course of a pool: at each moment its tables, and whose each slot is."""

    tables: Traced  # (moments, sequences, J)
    filled: Traced
    owner: Traced  # (moments, slots)
    state: Traced  # an index into LOOKS
    counts: Traced | None = None


class Pages:
    """Some lanes, each with the block table of a sequence; the pool; and an arrow for each row of a table.

    Args:
        course: what is drawn.
        sequences: one for each lane, None for a lane that is still empty.
        ids: traced number of each block.
        block: slots of a block.
        names: words for every sequence.
        roles: of the owners in the pool.
        moment: that is shown first.
    """

    def __init__(
        self, course: Course, sequences: Sequence[int | None], *, ids: Traced, block: int, names: Sequence[str],
        roles: Sequence[str], moment: int = 0,
    ) -> None:  # fmt: skip
        self.course, self.block, self.words = course, block, tuple(names)
        self.lanes: dict[int, int] = {}  # sequence -> lane
        self.count = len(sequences)
        self.now = moment
        self.pool = SlotMap(
            course.owner[moment], course.state[moment], block=block, roles=roles, looks=LOOKS, names=ids,
            counts=None if course.counts is None else course.counts[moment], **self.layout(len(ids)),
        ).look_back(0)  # fmt: skip
        self.put_pool()
        self.arrows: dict[tuple[int, int], Stroke] = {}
        self.tables: dict[int, PageTable] = {}
        self.names: dict[int, Label] = {}
        for lane, sequence in enumerate(sequences):
            if sequence is not None:
                self.seat(sequence, lane)
        place = self._table_place(0)
        self.heads = [
            Label(words, color=theme.MUTED).move_to(place + x * RIGHT + 0.16 * UP)
            for words, x in (("text", -1.55), ("block", -COLUMN / 2), ("filled", COLUMN / 2))
        ]
        right = self.pool.get_right()[0]
        self.pool_heads = [Label("block", color=theme.MUTED)]
        self.pool_heads[0].move_to([right + 0.44, TOP + 0.18, 0], aligned_edge=RIGHT)
        if course.counts is not None:
            held = Label("held by", color=theme.MUTED)
            self.pool_heads.append(held.move_to([right + COUNTS + 0.08, TOP + 0.18, 0]))
        for heads, words, x in (
            (self.heads, "block tables", place[0]), (self.pool_heads, "memory", self.pool.get_x()),
        ):  # fmt: skip
            heads.append(Label(words, bold=True).move_to([x, TOP + 0.52, 0]))

    def layout(self, blocks: int) -> dict[str, Any]:
        """Return how the pool lies: a block in a line, sixteen lines."""
        parts = -(-blocks // LINES)
        whole, aisle = (4.0, 0.55) if self.course.counts is None or parts == 1 else (5.4, 1.2)
        wide = (whole - aisle * (parts - 1)) / parts
        pitch = HEIGHT / LINES
        return {"per_line": self.block, "cell": (wide / self.block, pitch - 0.05), "gap": (0.0, 0.05), "lines": LINES,
                "aisle": aisle}  # fmt: skip

    def put_pool(self) -> SlotMap:
        """Put the pool where it belongs, at the right."""
        edge = 5.05 if self.course.counts is not None else 6.0
        return self.pool.move_to([edge - self.pool.width / 2, TOP - self.pool.height / 2, 0])

    # -- lanes -------------------------------------------------------------------------------------------------------

    def _lane_height(self) -> float:
        return HEIGHT / self.count

    def _table_place(self, lane: int) -> np.ndarray:
        """Return the middle of the upper edge of a lane's table."""
        return np.array([-4.15, TOP - lane * self._lane_height(), 0])

    def mouth(self, sequence: int) -> np.ndarray:
        """Return where the words of a sequence appear."""
        return self._table_place(self.lanes[sequence]) + 1.55 * LEFT + 0.62 * DOWN

    def seat(self, sequence: int, lane: int | None = None) -> PageTable:
        """Give a sequence a lane (the first free one) with its table and its name, at the moment `now`."""
        taken = set(self.lanes.values())
        lane = next(k for k in range(self.count) if k not in taken) if lane is None else lane
        self.lanes[sequence] = lane
        blocks, filled = self.table_of(sequence)
        row = min(0.36, (self._lane_height() - 0.3) / len(blocks))
        table = PageTable(blocks, filled, role=role_of(sequence), row=row)
        table.set_z_index(1)  # words on their way to the pool pass behind it
        self.tables[sequence] = table.move_to(self._table_place(lane), aligned_edge=UP)
        name = Label(self.words[sequence], size=0.3, bold=True, color=getattr(theme, role_of(sequence)))
        self.names[sequence] = name.move_to(self._table_place(lane) + 1.55 * LEFT + 0.18 * DOWN)
        return table

    def leave(self, sequence: int) -> list[Any]:
        """Take a sequence out of its lane; return what goes with it."""
        del self.lanes[sequence]
        arrows = [self.arrows.pop(key) for key in [key for key in self.arrows if key[0] == sequence]]
        return [self.tables.pop(sequence), self.names.pop(sequence), *arrows]

    def parts(self) -> list[Any]:
        """Return everything that stands there."""
        return [
            self.pool, *self.heads, *self.pool_heads, *self.tables.values(), *self.names.values(),
            *self.arrows.values(),
        ]  # fmt: skip

    # -- tables and pool ----------------------------------------------------------------------------------------------

    def blocks_of(self, sequence: int) -> list[int]:
        """Return the physical blocks of a sequence now."""
        table = self.course.tables.values[self.now, sequence]
        return [int(block) for block in table[~np.isnan(table)]]

    def table_of(self, sequence: int) -> tuple[Traced, Traced]:
        """Return the blocks of a sequence now, and how many slots of each are filled."""
        return self.course.tables[self.now, sequence], self.course.filled[self.now, sequence]

    def slots_of(self, sequence: int) -> list[int]:
        """Return the slots that hold the tokens of a sequence now, in order."""
        filled = self.course.filled.values[self.now, sequence]
        counts = [int(count) for count in filled[~np.isnan(filled)]]
        blocks = self.blocks_of(sequence)
        return [block * self.block + k for block, count in zip(blocks, counts, strict=True) for k in range(count)]

    def values(self) -> tuple[Traced, Traced]:
        """Return owners and states of the slots now."""
        return self.course.owner[self.now], self.course.state[self.now]

    def counts(self) -> Traced | None:
        """Return how many tables hold each block now."""
        return None if self.course.counts is None else self.course.counts[self.now]

    def stand(self, *, arrows: bool = True) -> None:
        """Let everything be as it is now: blocks outlined, arrows drawn."""
        for sequence in self.lanes:
            self.pool.claim(self.blocks_of(sequence))
            for j in self.missing(sequence) if arrows else ():
                self.point(sequence, j).draw_to(1)

    def point(self, sequence: int, j: int) -> Stroke:
        """Return a new arrow from row j of a table to its block, not drawn yet."""
        return self._arrow(self.tables[sequence].row_end(j), sequence, j)

    def point_from(self, place: np.ndarray, sequence: int, j: int) -> Stroke:
        """Return such an arrow for a table that is still on its way to a place."""
        table = self.tables[sequence]
        return self._arrow(table.row_end(j) + place - table.get_center(), sequence, j)

    def _arrow(self, start: np.ndarray, sequence: int, j: int) -> Stroke:
        end = self.pool.block_left(self.blocks_of(sequence)[j])
        color = getattr(theme, role_of(sequence))
        line = Stroke(start + 0.06 * RIGHT, end + 0.06 * LEFT, color=color, line=0.025, head=0.16).draw_to(0)
        self.arrows[sequence, j] = line
        return line

    def missing(self, sequence: int) -> list[int]:
        """Return the rows of a table that have no arrow yet."""
        return [j for j in range(len(self.blocks_of(sequence))) if (sequence, j) not in self.arrows]

    def go_to(self, moment: int) -> None:
        """Let pool and tables be those of a moment; tokens that are new in the pool stay hidden."""
        course, full = self.course, self.course.state.values == LOOKS.index(FULL)
        before = full[self.now] & (course.owner.values[self.now] >= 0)
        changed = course.owner.values[self.now] != course.owner.values[moment]
        self.now = moment
        counts = None if course.counts is None else course.counts[moment]
        self.pool.set_values(course.owner[moment], course.state[moment], counts=counts)
        self.pool.hide(full[moment] & (~before | changed & (self.pool.presence == 0)))

    def take(self, before: int) -> None:
        """Let the tables name the blocks of now, but count only the tokens of the moment before."""
        for sequence, table in self.tables.items():
            table.set_values(self.table_of(sequence)[0], self.course.filled[before, sequence])

    def fill_in(self) -> None:
        """Let the tables be those of now."""
        for sequence, table in self.tables.items():
            table.set_values(*self.table_of(sequence))

    def word(self, text: Any, sequence: int) -> TokenRow:
        """Return a word as it comes out of the model, beside its table."""
        tile = TokenRow((text,), size=theme.SMALL, height=0.34, roles=role_of(sequence))
        return tile.move_to(self.mouth(sequence))
