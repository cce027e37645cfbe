"""Numbers that someone else printed, topic by topic, each with its source: what the tests compare with."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One printed number."""

    name: str
    ours: Callable[[], float]
    value: float
    relative_tolerance: float  # 0 = exact
    source: str

    @property
    def ok(self) -> bool:
        """Return whether our number is the printed one, to the digits that were printed."""
        return abs(self.ours() - self.value) <= self.relative_tolerance * abs(self.value)
