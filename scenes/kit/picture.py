"""The base of everything the kit draws: ONE mobject over arrays, with a draw function of its own.

A Picture lives in local units around its own center; the four corners it keeps as Manim points carry position, size
and rotation, so `shift`, `scale`, `next_to`, `animate`, FadeIn and the others work as on any mobject. What else
changes over time is an array named in `animated`, and is interpolated between the states of `.animate`.
"""

import copy
from typing import Any, NamedTuple, Self

import cairo
import numpy as np
from manim import Mobject

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.traced import Traced

_CORNERS = np.array([[-0.5, 0.5, 0], [0.5, 0.5, 0], [-0.5, -0.5, 0], [0.5, -0.5, 0]])


class Data(NamedTuple):
    """Traced values, the array their drawing should be made of, and the one it is made of."""

    values: Traced
    meant: np.ndarray
    drawn: np.ndarray


class Measure(NamedTuple):
    """How amounts of a field are drawn: pictures of one field that stand together must agree on it."""

    field: str
    kind: str  # what is long, or which color map is used
    unit: float  # frame units of an amount of 1, or the amount that has the full color


class Picture(Mobject):
    """A drawn object. Subclasses draw themselves in `draw` and list what they show in `ledger`."""

    # Names of the array attributes that an animation interpolates; a change of shape snaps at half time.
    animated: tuple[str, ...] = ("opacity",)
    # Whether the strength of a color is the datum, so that a small amount may be as faint as the ground.
    color_is_amount = False

    def __init__(self, width: float, height: float) -> None:
        super().__init__()
        self.local_width, self.local_height = float(width), float(height)
        self.points = _CORNERS * [self.local_width, self.local_height, 1]
        self.opacity = np.array(1.0)

    def draw(self, painter: Painter) -> None:
        """Draw in local units: x to the right, y up, (0, 0) in the middle."""
        raise NotImplementedError

    def ledger(self) -> list[tuple[str, str]]:
        """Return what is shown now and where it comes from: (as displayed, origin)."""
        return []

    def data(self) -> tuple["Data", ...]:
        """Return the data behind what is drawn now, for the check that the drawing is that data."""
        return ()

    def measure(self) -> Measure | None:
        """Return how the amounts of the picture's field are drawn, if others may be compared with them."""
        return None

    def instrument(self) -> tuple[tuple[str, float], ...]:
        """Return the written numbers that are no data: the ticks of an axis, as written and where they stand."""
        return ()

    # -- where things are -------------------------------------------------------------------------------------------

    def to_scene(self, x: float, y: float) -> np.ndarray:
        """Return the scene point of a local one."""
        middle, right, up = self._frame()
        return middle + x * right + y * up

    def _frame(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        upper_left, upper_right, lower_left, lower_right = self.points
        middle = (upper_left + upper_right + lower_left + lower_right) / 4
        right = (upper_right - upper_left) / (self.local_width or 1)
        up = (upper_left - lower_left) / (self.local_height or 1)
        return middle, right, up

    def proportion(self) -> float:
        """Return how much wider than high something square in the picture is on screen: 1 if it was not stretched."""
        _, right, up = self._frame()
        return float(np.linalg.norm(right) / (np.linalg.norm(up) or 1))

    def resize_local(self, width: float, height: float, *, keep: np.ndarray | tuple[float, float]) -> Self:
        """Change the local size; the corner or side `keep` (such as UL) stays where it is, the scale does too."""
        middle, right, up = self._frame()
        fixed = middle + keep[0] * right * self.local_width / 2 + keep[1] * up * self.local_height / 2
        self.local_width, self.local_height = float(width), float(height)
        middle = fixed - keep[0] * right * width / 2 - keep[1] * up * height / 2
        self.points = middle + _CORNERS[:, :1] * right * width + _CORNERS[:, 1:2] * up * height
        return self

    # -- what changes -----------------------------------------------------------------------------------------------

    def _set(self, name: str, which: Any, amount: Any) -> Self:
        """Set some elements of an array that is animated; it is replaced, as a copy of the picture may hold it too."""
        state = getattr(self, name).copy()
        state[which] = amount
        setattr(self, name, state)
        return self

    # -- drawing ----------------------------------------------------------------------------------------------------

    def render_to(self, context: cairo.Context) -> None:
        """Draw on a context in scene units."""
        if self.opacity <= 0:
            return
        middle, right, up = self._frame()
        context.save()
        context.transform(cairo.Matrix(right[0], right[1], up[0], up[1], middle[0], middle[1]))
        self.draw(Painter(context, float(self.opacity)))
        context.restore()

    # -- what Manim's animations ask of a mobject -------------------------------------------------------------------

    def set_opacity(self, opacity: float) -> Self:
        self.opacity = np.array(float(opacity))
        for part in self.submobjects:
            part.set_opacity(opacity)  # type: ignore[attr-defined]
        return self

    def fade(self, darkness: float = 0.5, family: bool = True) -> Self:
        self.opacity = self.opacity * (1 - darkness)
        return super().fade(darkness, family)

    def interpolate(self, mobject1: Any, mobject2: Any, alpha: float, path_func: Any = None) -> Self:
        if path_func is None:
            self.points = (1 - alpha) * mobject1.points + alpha * mobject2.points
        else:
            self.points = path_func(mobject1.points, mobject2.points, alpha)
        nearer = mobject1 if alpha < 0.5 else mobject2
        self.local_width = mobject1.local_width + (mobject2.local_width - mobject1.local_width) * alpha
        self.local_height = mobject1.local_height + (mobject2.local_height - mobject1.local_height) * alpha
        for name in self.animated:
            first, second = getattr(mobject1, name), getattr(mobject2, name)
            if first.shape == second.shape:
                setattr(self, name, first + (second - first) * alpha if first is not second else first)
            else:
                setattr(self, name, getattr(nearer, name))
        self.blend(mobject1, mobject2, alpha)
        return self

    def blend(self, start: Any, end: Any, alpha: float) -> None:
        """Take over what is not an array (texts, values) on the way from `start` to `end`."""

    def align_points(self, mobject: Any) -> Self:
        return self

    def become(self, mobject: Any, *_: Any, **__: Any) -> Self:
        self.__dict__.update(mobject.copy().__dict__)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copy shares everything but what animations write to; arrays are replaced, never written in place.
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone.submobjects = [copy.deepcopy(part, memo) for part in self.submobjects]
        clone.updaters = list(self.updaters)
        clone.points = self.points.copy()
        clone.original_id = str(id(self))  # type: ignore[attr-defined]
        return clone


class Parts(Picture):
    """A picture of parts that come and go, lead and recede, each for itself; a subclass makes both arrays."""

    presence: np.ndarray  # of each part: 0 is not there, 1 is
    emphasis: np.ndarray  # 0 recedes, 1 leads

    def show(self, which: Any = slice(None)) -> Self:
        """Let parts be there."""
        return self._set("presence", which, 1.0)

    def hide(self, which: Any = slice(None)) -> Self:
        """Let parts be gone; they keep their room, and `.animate.show()` brings them back."""
        return self._set("presence", which, 0.0)

    def lead(self, which: Any = slice(None)) -> Self:
        """Bring parts back to full color."""
        return self._set("emphasis", which, 1.0)

    def recede(self, which: Any = slice(None)) -> Self:
        """Step parts back, so that the others lead."""
        return self._set("emphasis", which, 0.0)

    def focus(self, which: Any) -> Self:
        """Let everything recede but these parts."""
        return self._set("emphasis", slice(None), 0.0)._set("emphasis", which, 1.0)


class PaintedParts(Parts):
    """Parts that have a color each; a subclass makes that array too."""

    color: np.ndarray  # (parts, 3)

    def paint(self, which: Any, role: str) -> Self:
        """Give parts the color of a role."""
        return self._set("color", which, theme.rgb(getattr(theme, role)))
