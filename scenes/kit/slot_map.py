"""SlotMap: memory slot by slot, whose each one is and what it holds, in blocks that can be laid out anew."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.token_row import BOS, require_tokens
from scenes.kit.traced import Traced, format_number, require_traced
from scenes.kit.typography import Style, width

EMPTY, FULL, KEPT, WASTE, LOST = "empty", "full", "kept", "waste", "lost"
COUNTS = 0.95  # from a block to the middle of its count
ROOM, WORD_ROOM = 0.24, 0.55  # height of a slot that has room for text, and its width
KEPT_SHARE = 0.42  # how much of its owner's color a slot has that is kept for later


class SlotMap(Parts):
    """Slots in lines; a slot has an owner (its color) and a look (full, kept for later, wasted, lost to rounding).

    Args:
        owner: traced number of each slot's owner, -1 for nobody.
        state: traced number of each slot's state, an index into `looks`.
        looks: how each state is drawn.
        roles: theme role of each owner.
        block: slots in a block.
        names, counts: traced whole numbers of each block, written at its right.
        word_size: of the words in slots.
        layout: as of `lay`.
    """

    animated = ("opacity", "places", "size", "presence", "emphasis", "color", "claimed", "hindsight", "ink")

    def __init__(
        self,
        owner: Traced,
        state: Traced,
        *,
        block: int,
        roles: Sequence[str],
        looks: Sequence[str] = (EMPTY, FULL),
        names: Traced | None = None,
        counts: Traced | None = None,
        word_size: float = theme.SMALL,
        **layout: Any,
    ) -> None:
        self.block, self.roles, self.looks = block, tuple(roles), tuple(looks)
        self.names = None if names is None else require_traced(names, "SlotMap")
        self.counts = None if counts is None else require_traced(counts, "SlotMap")
        count = len(require_traced(state, "SlotMap"))
        if count % block:
            raise ValueError(f"{count} slots cannot be cut into blocks of {block}")
        self.style = Style(word_size)
        self.words: tuple[Any, ...] = ("",) * count
        super().__init__(1.0, 1.0)
        self._take(owner, state)
        self.presence, self.emphasis = np.ones(count), np.ones(count)
        self.claimed = np.zeros(count // block)  # opacity of the outline of each block
        self.hindsight = np.array(1.0)  # opacity of what is known only when all is over: waste
        self.ink = np.array(1.0)  # opacity of names and counts
        self.lay(**layout)

    def _take(self, owner: Traced, state: Traced) -> None:
        owner, state = require_traced(owner, "SlotMap"), require_traced(state, "SlotMap")
        if owner.shape != state.shape or owner.shape != (len(self.words),):
            raise ValueError(
                f"{len(self.words)} slots need an owner and a state each, got {owner.shape}, {state.shape}"
            )
        self.owner, self.state = owner, state
        roles = [theme.rgb(getattr(theme, role)) for role in (*self.roles, "MUTED")]  # nobody's, -1, is the last
        self.color = np.array([roles[number] for number in owner.values.tolist()])

    # -- changes, all of them animatable ----------------------------------------------------------------------------

    def lay(
        self,
        per_line: int,
        cell: tuple[float, float],
        *,
        gap: tuple[float, float] = (0.0, 0.0),
        lines: int | None = None,
        aisle: float = 0.6,
    ) -> Self:
        """Put `per_line` slots in a line, a gap after each block and line, and after `lines` lines go on beside."""
        line, column = np.divmod(np.arange(len(self.words)), per_line)
        part, line = np.divmod(line, lines or int(line.max()) + 1)
        wide = per_line * cell[0] + (per_line // self.block - 1) * gap[0]
        x = column * cell[0] + column // self.block * gap[0] + part * (wide + aisle) + cell[0] / 2
        y = line * (cell[1] + gap[1]) + cell[1] / 2
        size = float(x.max()) + cell[0] / 2, float(y.max()) + cell[1] / 2
        self.places = np.stack([x - size[0] / 2, size[1] / 2 - y], axis=1)
        self.size = np.array(cell)
        return self.resize_local(*size, keep=(0, 0))

    def fall(self, other: "SlotMap") -> Self:
        """Put every slot on the line that it has in another map; from left to right it stays where it is."""
        self.places = np.stack([self.places[:, 0], other.places[:, 1]], axis=1)
        self.size = np.array([self.size[0], other.size[1]])
        self.resize_local(self.local_width, other.local_height, keep=(0, 0))
        return self.set_y(other.get_y())

    def set_values(self, owner: Traced, state: Traced, *, counts: Traced | None = None) -> Self:
        """Show the slots at another time; who is shown and which blocks are outlined stays as it is."""
        self._take(owner, state)
        if counts is not None:
            self.counts = require_traced(counts, "SlotMap")
        return self

    def write(self, slot: int, word: Any) -> Self:
        """Write a traced word into a slot; it is seen while the slot is full and wide enough."""
        (word,) = require_tokens([word], "SlotMap")
        self.words = (*self.words[:slot], word, *self.words[slot + 1 :])
        return self

    def claim(self, blocks: Any) -> Self:
        """Outline blocks in the color of their owner."""
        return self._set("claimed", blocks, 1.0)

    def release(self, blocks: Any = slice(None)) -> Self:
        """Take the outline of blocks away."""
        return self._set("claimed", blocks, 0.0)

    def look_back(self, share: float = 1.0) -> Self:
        """Show (or hide, 0) what is known only afterwards: which slots are for later, and which are never used."""
        self.hindsight = np.array(float(share))
        return self

    def show_names(self, share: float = 1.0) -> Self:
        """Show or hide names and counts."""
        self.ink = np.array(float(share))
        return self

    def blend(self, start: "SlotMap", end: "SlotMap", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.owner, self.state, self.words, self.counts = nearer.owner, nearer.state, nearer.words, nearer.counts

    # -- geometry ---------------------------------------------------------------------------------------------------

    def slots(self, block: int) -> slice:
        """Return the slots of a block."""
        return slice(block * self.block, (block + 1) * self.block)

    def slot_center(self, slot: int) -> np.ndarray:
        """Return the scene point in the middle of a slot."""
        return self.to_scene(*self.places[slot])

    def block_center(self, block: int) -> np.ndarray:
        """Return the scene point in the middle of a block."""
        return self.to_scene(*self.places[self.slots(block)].mean(axis=0))

    def block_left(self, block: int) -> np.ndarray:
        """Return the scene point at the left edge of a block."""
        x, y = self.places[block * self.block]
        return self.to_scene(x - self.size[0] / 2, y)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, painter: Painter) -> None:
        gap = min(0.05, 0.14 * float(self.size.min()))
        wide, high = self.size[0] - gap, self.size[1] - gap
        looks = [self.looks[number] for number in self.state.values.tolist()]
        for slot, (x, y) in enumerate(self.places.tolist()):
            box = x - wide / 2, y - high / 2, wide, high
            ground = {"stroke": theme.LINES, "line": theme.HAIRLINE} if wide > 0.15 else {}
            painter.box(*box, fill=theme.SURFACE, radius=min(0.05, wide / 8), **ground)
            presence = float(self.presence[slot]) * (1.0 if looks[slot] == FULL else float(self.hindsight))
            if presence > 0 and looks[slot] != EMPTY:
                self._draw_slot(painter, slot, looks[slot], box, presence)
        for block, claimed in enumerate(self.claimed.tolist()):
            if claimed > 0:
                self._outline(painter, block, claimed)
        self._write_numbers(painter)

    def _strong(self, slot: int, share: float = 1.0) -> str:
        """Return the color of a slot's owner, as strong as the slot is now."""
        return theme.recede(theme.hex_color(tuple(self.color[slot])), float(self.emphasis[slot]), share)

    def _draw_slot(
        self, painter: Painter, slot: int, look: str, box: tuple[float, float, float, float], presence: float
    ) -> None:
        x, y, wide, high = box
        if look in (WASTE, LOST):
            color = theme.LOSS if look == WASTE else theme.MUTED
            painter.polyline([(x, y), (x + wide, y + high)], stroke=color, line=theme.HAIRLINE, opacity=presence)
            painter.box(*box, stroke=color, line=theme.HAIRLINE, radius=min(0.05, wide / 8), opacity=presence)
            return
        color = self._strong(slot, KEPT_SHARE if look == KEPT else 1.0)
        edge = {"stroke": self._strong(slot), "line": theme.HAIRLINE} if look == KEPT else {}
        painter.box(*box, fill=color, radius=min(0.05, wide / 8), opacity=presence, **edge)
        if look == FULL and self._has_room(slot):
            ink = theme.ink_on(color, theme.current())
            if self.words[slot] == BOS:
                painter.circle(x + wide / 2, y + high / 2, 0.05, fill=ink, opacity=presence)
            else:
                baseline = y + high / 2 - 0.37 * self.style.size
                painter.text(str(self.words[slot]), x + wide / 2, baseline, self.style, color=ink, opacity=presence)

    def _has_room(self, slot: int) -> bool:
        word = self.words[slot]
        if not word or self.size[1] < ROOM or self.size[0] < WORD_ROOM:
            return False
        return word == BOS or width(str(word), self.style) <= self.size[0] - 0.08

    def _outline(self, painter: Painter, block: int, opacity: float) -> None:
        first, last = self.places[block * self.block], self.places[(block + 1) * self.block - 1]
        left, bottom = first - self.size / 2
        painter.box(
            left, bottom, last[0] + self.size[0] / 2 - left, self.size[1], stroke=self._strong(block * self.block),
            radius=0.06, opacity=opacity,
        )  # fmt: skip

    def _write_numbers(self, painter: Painter) -> None:
        if self.ink <= 0 or self.size[1] < ROOM:
            return
        style = Style(theme.SMALL, "numbers")
        for block in range(len(self.claimed)):
            x, y = self.places[(block + 1) * self.block - 1] + [self.size[0] / 2, -style.size / 2]
            if self.names is not None:
                text, opacity = format_number(int(self.names[block]), "d"), float(self.ink)
                painter.text(text, x + 0.42, y, style, color=theme.MUTED, align=1.0, opacity=opacity)
            if self._counts(block):
                text = format_number(int(self._counts(block) or 0), "d")
                strong = Style(theme.SMALL, "numbers", bold=True)
                color = theme.TEXT if int(text) < 2 else theme.SCORE
                painter.text(text, x + COUNTS, y, strong, color=color, opacity=float(self.ink))

    def _counts(self, block: int) -> Traced | None:
        """Return how many hold a block, None if nobody does or it is not shown."""
        return self.counts[block] if self.counts is not None and int(self.counts[block]) else None

    def data(self) -> tuple[Data, ...]:
        full = np.array([float(self.looks[number] == FULL) for number in self.state.values.tolist()])
        return (Data(self.state, np.where(self.presence > 0, full, 0.0), full * self.presence),)

    def ledger(self) -> list[tuple[str, str]]:
        entries = [(f"{len(self.words)} slots", self.state.origin), ("owners", self.owner.origin)]
        full = [self.looks[number] == FULL for number in self.state.values.tolist()]
        for slot, word in enumerate(self.words):
            if full[slot] and self.presence[slot] > 0 and self._has_room(slot):
                entries.append((str(word), word.origin))
        if self.ink > 0 and self.size[1] >= ROOM:
            for numbers in (self.names, self.counts):
                entries += [] if numbers is None else [(format_number(int(one), "d"), one.origin) for one in numbers]
        return entries
