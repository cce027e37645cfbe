"""Words on the stage: labels whose box is the height of a capital, so that things align by their baselines."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from manim import Animation

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.traced import Traced, read_text, require_traced
from scenes.kit.typography import Style, shape, width

LINE_SPACING = 1.9  # baseline to baseline, in heights of a capital


class Label(Picture):
    """One or more lines of text. Digits must come from the Trace (see `scenes.kit.traced`).

    The box is as wide as the text and as high as its capitals: descenders hang below it, so `align_to(other, DOWN)`
    and `next_to(other, RIGHT)` put words on one baseline.
    """

    animated = ("opacity", "tint")

    def __init__(
        self,
        text: str,
        *,
        size: float = theme.LABEL,
        color: str | None = None,
        bold: bool = False,
        face: str = "words",
        align: float = 0.0,
    ) -> None:
        self.style = Style(size, face, bold)
        self.align = align  # 0 = lines start together, 0.5 = centered, 1 = end together
        self._take(text)
        super().__init__(*self._extent())
        self.tint = np.array(theme.rgb(color or theme.TEXT))

    def _take(self, text: str) -> None:
        read = read_text(text)
        self.lines = read.plain.split("\n")
        self.parts = read.parts
        # a line the fonts cannot draw fails here, not in the middle of a render
        for line in self.lines:
            shape(line, self.style.face, self.style.bold)

    def _extent(self) -> tuple[float, float]:
        height = self.style.size * (1 + LINE_SPACING * (len(self.lines) - 1))
        return max(max(width(line, self.style) for line in self.lines), 1e-3), height

    @property
    def text(self) -> str:
        """The text as a viewer reads it."""
        return "\n".join(self.lines)

    def set_text(self, text: str, keep: Any = (-1, 0)) -> Self:
        """Show another text; the side `keep` of the box (LEFT by default) stays where it is."""
        self._take(text)
        return self.resize_local(*self._extent(), keep=keep)

    def set_color(self, color: Any = None, family: bool = True) -> Self:
        self.tint = np.array(theme.rgb(str(color)))
        return self

    def blend(self, start: "Label", end: "Label", alpha: float) -> None:
        nearer = start if alpha < 0.5 else end
        self.lines, self.parts, self.style = nearer.lines, nearer.parts, nearer.style
        if start.lines != end.lines:
            self.local_width, self.local_height = nearer.local_width, nearer.local_height
            self.points = nearer.points.copy()
            self.opacity = self.opacity * abs(2 * alpha - 1)

    def draw(self, painter: Painter) -> None:
        color = theme.hex_color(tuple(self.tint))
        x = (self.align - 0.5) * self.local_width
        y = self.local_height / 2 - self.style.size
        for line in self.lines:
            painter.text(line, x, y, self.style, color=color, align=self.align)
            y -= LINE_SPACING * self.style.size

    def ledger(self) -> list[tuple[str, str]]:
        return list(self.parts)


class Readout(Label):
    """A traced value that stays linked to its words: `Readout(lambda v: f"{v:.2f} nats", self.trace.loss)`."""

    def __init__(self, write: Callable[[Traced], str], value: Traced, **style: Any) -> None:
        self.write = write
        self.value = require_traced(value, "Readout")
        style.setdefault("face", "numbers")
        super().__init__(write(value), **style)

    def set_value(self, value: Traced, keep: Any = (-1, 0)) -> Self:
        """Show another traced value in the same words."""
        self.value = require_traced(value, "Readout")
        return self.set_text(self.write(value), keep)

    def blend(self, start: "Label", end: "Label", alpha: float) -> None:
        # a counter snaps: a number between two real ones would be no number of the Trace
        nearer = start if alpha < 0.5 else end
        self.lines, self.parts, self.style = nearer.lines, nearer.parts, nearer.style
        if start.lines != end.lines:
            self.local_width = nearer.local_width
            self.points = nearer.points.copy()


class StepThrough(Animation):
    """Show one traced value after the other in a Readout; ends on the last one.

    Args:
        at: the share of the run time at which each value comes up, rising; by default evenly, the first one at once.
            Until the first one comes up, the readout stays as it is.
    """

    def __init__(
        self,
        readout: Readout,
        values: Traced,
        keep: Any = (-1, 0),
        *,
        at: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.values = require_traced(values, "StepThrough")
        if at is not None and len(at) != len(self.values):
            raise ValueError(f"{len(self.values)} values need as many moments, got {len(at)}")
        self.at = at
        self.keep = keep
        self.shown = -1
        super().__init__(readout, **kwargs)

    def interpolate_mobject(self, alpha: float) -> None:
        share = self.rate_func(alpha)
        if self.at is None:
            step = min(int(share * len(self.values)), len(self.values) - 1)
        else:
            step = int(np.searchsorted(self.at, share + 1e-9, side="right")) - 1
        if step != self.shown:
            self.shown = step
            self.mobject.set_value(self.values[step], self.keep)  # type: ignore[attr-defined]


def counted(number: Any, one: str, more: str = "") -> str:
    """Return a traced whole number of things: "1 slot", "4 slots"; `more` if the plural is no `one` + s."""
    return f"{number:d} {one if number == 1 else more or one + 's'}"
