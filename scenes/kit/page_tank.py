"""PageTank: a memory that fills up, and the pages that leave it for a shelf below when there is no room for them."""

from typing import Self

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Measure, Picture
from scenes.kit.traced import Traced, require_traced

OUTLINE = 0.06  # from what is stored to the walls


class PageTank(Picture):
    """A tank with a part that never leaves, one that grows and shrinks, and pages; those that leave lie on the shelf.

    The upper half of the box is the tank, as long as its capacity; the lower one is the shelf.

    Args:
        capacity: traced amount that the tank holds.
        fixed: traced amount that never leaves.
        varying: traced amount of every step.
        resident, evicted: traced number of pages in the tank and on the shelf, in every step.
        page: traced size of a page.
        length: of the tank; `height` of a page, `gap` between tank and shelf.
        roles: theme roles of the fixed part, the varying part and the pages.
    """

    animated = ("opacity", "filled", "places")

    def __init__(
        self,
        capacity: Traced,
        fixed: Traced,
        varying: Traced,
        resident: Traced,
        evicted: Traced,
        page: Traced,
        *,
        length: float,
        height: float = 0.9,
        gap: float = 0.9,
        roles: tuple[str, str, str] = ("FROZEN", "SCORE", "LATENT"),
    ) -> None:
        self.capacity, self.fixed, self.page = (require_traced(one, "PageTank") for one in (capacity, fixed, page))
        self.varying, self.resident, self.evicted = (
            require_traced(one, "PageTank") for one in (varying, resident, evicted)
        )
        steps = [len(one) for one in (self.varying, self.resident, self.evicted)]
        pages = {int(there) + int(gone) for there, gone in zip(self.resident, self.evicted, strict=False)}
        if len(set(steps)) != 1 or len(pages) != 1:
            raise ValueError(f"every step needs an amount and the same pages, got {steps} steps and {pages} pages")
        self.page_height, self.gap, self.roles = height, gap, roles
        self.unit = length / float(self.capacity)
        super().__init__(length, 2 * height + gap)
        self.set_step(0)

    def set_step(self, step: int) -> Self:
        """Show another step: the varying part grows or shrinks, pages move along, out or back."""
        self.step = step
        self.filled = np.array(float(self.varying[step]))
        there, gone = int(self.resident[step]), int(self.evicted[step])
        wide, left = self.unit * float(self.page), -self.local_width / 2
        start = left + self.unit * (float(self.fixed) + float(self.filled))
        inside = [(start + k * wide, self.local_height / 2 - self.page_height) for k in range(there)]
        outside = [(left + k * wide, -self.local_height / 2) for k in range(gone)]
        self.places = np.array([*inside, *outside])  # lower left corners
        return self

    def blend(self, start: "PageTank", end: "PageTank", alpha: float) -> None:
        self.step = (start if alpha < 0.5 else end).step

    # -- geometry ---------------------------------------------------------------------------------------------------

    def fixed_center(self) -> np.ndarray:
        """Return the scene point in the middle of what never leaves."""
        x = self.unit * float(self.fixed) / 2 - self.local_width / 2
        return self.to_scene(x, (self.local_height - self.page_height) / 2)

    def page_center(self, k: int) -> np.ndarray:
        """Return the scene point in the middle of a page."""
        x, y = self.places[k]
        return self.to_scene(x + self.unit * float(self.page) / 2, y + self.page_height / 2)

    def shelf_left(self) -> np.ndarray:
        """Return the scene point at the left end of the shelf, at half the height of a page."""
        return self.to_scene(-self.local_width / 2, (self.page_height - self.local_height) / 2)

    # -- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, painter: Painter) -> None:
        left, top, high = -self.local_width / 2, self.local_height / 2, self.page_height
        for y in (top - high, top - self.local_height):
            painter.box(
                left - OUTLINE, y - OUTLINE, self.local_width + 2 * OUTLINE, high + 2 * OUTLINE, fill=theme.SURFACE,
                stroke=theme.MUTED, line=theme.HAIRLINE, radius=0.06,
            )  # fmt: skip
        fixed, varying, pages = (getattr(theme, role) for role in self.roles)
        edge = left + self.unit * float(self.fixed)
        painter.box(left, top - high, edge - left - 0.02, high, fill=fixed, radius=0.04)
        painter.box(edge, top - high, self.unit * float(self.filled) - 0.02, high, fill=varying, radius=0.04)
        wide = self.unit * float(self.page)
        gap = 0.2 * wide
        for x, y in self.places.tolist():
            painter.box(x, y, wide - gap, high, fill=pages, radius=min(0.03, wide / 4))

    def data(self) -> tuple[Data, ...]:
        count = self.resident[self.step]
        inside = (self.places[:, 1] > 0).sum()
        return (
            Data(self.varying, np.asarray(self.varying[self.step], dtype=float), self.filled),
            Data(self.resident, np.asarray(count, dtype=float), np.asarray(float(inside))),
        )

    def measure(self) -> Measure:
        return Measure(self.varying.field, "a part of a tank", self.unit * float(np.linalg.norm(self._frame()[1])))

    def ledger(self) -> list[tuple[str, str]]:
        parts = (
            ("walls", self.capacity), ("length", self.fixed), ("length", self.varying[self.step]),
            ("pages", self.resident[self.step]), ("pages", self.evicted[self.step]), ("page size", self.page),
        )  # fmt: skip
        return [(shown, one.origin) for shown, one in parts]
