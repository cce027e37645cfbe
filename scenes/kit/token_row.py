"""Tokens: a row of tiles, and the names beside the rows of a grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import PaintedParts, Parts
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import TracedText
from scenes.kit.typography import Style, width

BOS = "<bos>"
RECEDED = 0.65  # strength of a word that steps back: it can still be read in both themes


def require_tokens(tokens: Sequence[Any], what: str) -> tuple[TracedText, ...]:
    """Return tokens that know their origin."""
    for token in tokens:
        if not isinstance(token, TracedText):
            raise TypeError(f"{what} shows tokens of the Trace, got {token!r}")
    return tuple(tokens)


class TokenRow(PaintedParts):
    """A sentence as tiles from left to right; `<bos>` is a dot.

    Args:
        tokens: traced strings.
        tile: width of every tile, None to fit each word.
        roles: theme role of each tile's outline and word, or one for all.
    """

    animated = ("opacity", "presence", "emphasis", "color")

    def __init__(
        self,
        tokens: Sequence[Any],
        *,
        tile: float | None = None,
        height: float = 0.46,
        size: float = theme.LABEL,
        roles: str | Sequence[str] = "TEXT",
    ) -> None:
        self.tokens = require_tokens(tokens, "TokenRow")
        self.style = Style(size)
        self.tile_height = height
        fitted = [0.4 if t == BOS else width(str(t), self.style) + 0.3 for t in self.tokens]
        self.widths = np.array([tile] * len(self.tokens) if tile else fitted, dtype=float)
        super().__init__(self.widths.sum(), height)
        self.presence = np.ones(len(self.tokens))
        self.emphasis = np.ones(len(self.tokens))
        names = [roles] * len(self.tokens) if isinstance(roles, str) else list(roles)
        self.color = np.array([theme.rgb(getattr(theme, name)) for name in names])

    def _left(self, k: int) -> float:
        return float(self.widths[:k].sum()) - self.local_width / 2

    def tile_center(self, k: int) -> np.ndarray:
        """Return the scene point in the middle of tile k."""
        k %= len(self.tokens)
        return self.to_scene(self._left(k) + self.widths[k] / 2, 0)

    def tile(self, k: int) -> "TokenRow":
        """Return one tile as a row of its own, lying exactly over it."""
        k %= len(self.tokens)
        part = TokenRow(
            self.tokens[k : k + 1], tile=float(self.widths[k]), height=self.tile_height, size=self.style.size
        )
        part.color = self.color[k : k + 1].copy()
        return part.move_to(self.tile_center(k))

    def draw(self, painter: Painter) -> None:
        for k, token in enumerate(self.tokens):
            presence = float(self.presence[k])
            if presence <= 0:
                continue
            strength = RECEDED + (1 - RECEDED) * float(self.emphasis[k])
            color = theme.mix(theme.BACKGROUND, theme.hex_color(tuple(self.color[k])), round(strength * 20) / 20)
            left, middle = self._left(k), self._left(k) + self.widths[k] / 2
            painter.box(
                left + 0.04,
                -self.tile_height / 2,
                self.widths[k] - 0.08,
                self.tile_height,
                fill=theme.SURFACE,
                stroke=theme.mix(theme.BACKGROUND, color, 0.55),
                line=theme.HAIRLINE,
                radius=0.1,
                opacity=presence,
            )
            if token == BOS:
                painter.circle(middle, 0, 0.06, fill=color, opacity=presence)
            else:
                painter.text(str(token), middle, -self.style.size / 2, self.style, color=color, opacity=presence)

    def ledger(self) -> list[tuple[str, str]]:
        return [(str(t), t.origin) for t, presence in zip(self.tokens, self.presence, strict=True) if presence > 0]


class RowNames(Parts):
    """The tokens of a grid's rows, right-aligned beside it, on the middle of each row."""

    animated = ("opacity", "presence", "emphasis")

    def __init__(
        self, tokens: Sequence[Any], grid: TensorGrid, *, size: float = theme.LABEL, gap: float = 0.25
    ) -> None:
        self.tokens = require_tokens(tokens, "RowNames")
        self.style = Style(size)
        self.step = grid.cell[1]
        wide = max(width(str(t), self.style) for t in self.tokens)
        super().__init__(wide, len(self.tokens) * self.step)
        self.presence = np.ones(len(self.tokens))
        self.emphasis = np.ones(len(self.tokens))
        top_left = grid.to_scene(-grid.local_width / 2, grid.local_height / 2)
        self.shift(top_left - self.to_scene(wide / 2 + gap, self.local_height / 2))

    def draw(self, painter: Painter) -> None:
        right = self.local_width / 2
        for k, token in enumerate(self.tokens):
            color = theme.mix(theme.MUTED, theme.TEXT, round(float(self.emphasis[k]) * 16) / 16)
            middle = self.local_height / 2 - (k + 0.5) * self.step
            if token == BOS:
                painter.circle(right - 0.08, middle, 0.06, fill=color, opacity=float(self.presence[k]))
            else:
                baseline = middle - self.style.size * 0.37  # words sit by the height of their small letters
                painter.text(
                    str(token), right, baseline, self.style, color=color, align=1.0, opacity=float(self.presence[k])
                )

    def ledger(self) -> list[tuple[str, str]]:
        return [(str(t), t.origin) for t, presence in zip(self.tokens, self.presence, strict=True) if presence > 0]
