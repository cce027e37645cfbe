"""Squares: areas that are traced values, one in the corner of the other."""

from collections.abc import Sequence

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Data, Parts
from scenes.kit.traced import Traced, require_traced


class Squares(Parts):
    """Squares that share their lower left corner, the first behind the others; a hidden one has no area.

    Args:
        values: a traced amount for each square.
        side: of the square that the largest amount fills.
        roles: theme role of each square.
    """

    animated = ("opacity", "amounts", "presence", "emphasis")

    def __init__(self, values: Sequence[Traced], *, side: float, roles: Sequence[str]) -> None:
        self.values = tuple(require_traced(value, "Squares") for value in values)
        if len(roles) != len(self.values) or any(value.size != 1 for value in self.values):
            raise ValueError(f"Squares needs single values and as many roles, got {len(self.values)} and {len(roles)}")
        self.amounts = np.array([float(value) for value in self.values])
        if not (self.amounts > 0).all():
            raise ValueError(f"an area is above 0, got {self.amounts.tolist()}")
        super().__init__(side, side)
        self.unit = side * side / float(self.amounts.max())
        self.roles = tuple(roles)
        self.presence, self.emphasis = np.ones(len(roles)), np.ones(len(roles))

    def side(self, k: int) -> float:
        """Return the side of a square when it is whole, in the picture's own units."""
        return float(np.sqrt(self.unit * self.amounts[k]))

    def corner(self, k: int) -> np.ndarray:
        """Return the scene point at the upper right corner of a square."""
        end = self.side(k) - self.local_width / 2
        return self.to_scene(end, end)

    def draw(self, painter: Painter) -> None:
        half = self.local_width / 2
        for k, role in enumerate(self.roles):
            side = self.side(k) * float(np.sqrt(self.presence[k]))
            color = theme.recede(getattr(theme, role), float(self.emphasis[k]))
            if side > 0:
                painter.box(-half, -half, side, side, fill=color, radius=min(0.06, side / 4))

    def data(self) -> tuple[Data, ...]:
        stretch = self.proportion()
        return tuple(
            Data(value, np.array(float(value) if there > 0 else 0.0), np.array(amount * there * stretch))
            for value, amount, there in zip(self.values, self.amounts, self.presence, strict=True)
        )

    def ledger(self) -> list[tuple[str, str]]:
        return [("square", value.origin) for value, there in zip(self.values, self.presence, strict=True) if there > 0]
