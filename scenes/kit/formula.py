"""Formulas set by Typst, whose symbols take the colors of the objects they stand for."""

import tempfile
from collections.abc import Iterable
from typing import Any, Self

import cairo
import numpy as np
from manim import MathTypst, VMobject, config, tempconfig

from scenes.kit import theme
from scenes.kit.painter import Painter
from scenes.kit.picture import Picture
from scenes.kit.traced import read_text

# Typst sizes its letters by the em; this brings a formula's capital to the height of a label's at the same `size`.
_FONT_SIZE_PER_UNIT = 150
_FINE = 1e-3  # unit of kept paths: cairo keeps whole 1/256 of them


class FormulaPart(Picture):
    """Some signs of a formula as one kept path in one color; its box is that of all signs in it, inner parts' too."""

    animated = ("opacity", "tint")

    def __init__(self, name: tuple[Any, ...], signs: Iterable[VMobject], within: Iterable[VMobject], role: str) -> None:
        points = np.vstack([sign.points for sign in within])
        low, high = points.min(axis=0), points.max(axis=0)
        super().__init__(*(high - low)[:2])
        self.role = role
        self.path_name = name  # tells its path from those of all other formulas
        self.path = _path(signs, -(low + high) / 2)
        self.tint = np.array(theme.rgb(getattr(theme, role)))
        self.move_to((low + high) / 2)

    def set_color(self, color: Any = None, family: bool = True) -> Self:
        self.tint = np.array(theme.rgb(str(color)))
        for part in self.submobjects if family else ():
            part.set_color(color)  # type: ignore[attr-defined]
        return self

    def draw(self, painter: Painter) -> None:
        painter.outline(self.path, self.path_name, 0, 0, _FINE, theme.hex_color(tuple(self.tint)))


class Formula(FormulaPart):
    """A formula; `{{ q_t : query }}` in the source with `query="QUERY"` colors that part.

    Labeled parts are pictures of their own inside the formula, for `select`; a part may hold smaller ones.

    Formula(r"{{ q : query }} dot {{ k_j : key }} / sqrt(d)", query="QUERY", key="KEY")

    A lone digit is part of the law (x², 1/2); longer numbers are formatted traced values.
    """

    def __init__(self, source: str, *, size: float = theme.LABEL, **roles: str) -> None:
        read = read_text(source, lone_digits=True)
        source, self.traced_parts = read.plain, read.parts
        # A formula out of Manim's cache of drawings would come back with other line widths.
        # Manim sets it through files: in a folder of its own, no other process takes them away.
        with tempfile.TemporaryDirectory() as folder, tempconfig({"tex_dir": folder}):
            typst = MathTypst(source, color=theme.TEXT, font_size=size * _FONT_SIZE_PER_UNIT, use_svg_cache=False)
        signs = {id(sign): sign for sign in typst.family_members_with_points()}
        held = {label: _signs_of(typst, label) for label in typst._label_aliases if not label.startswith("_")}
        for label in roles:
            held.setdefault(label, _signs_of(typst, label))  # an unknown label is Typst's KeyError
        owner: dict[int, str] = {}
        by_size = sorted(held, key=lambda label: len(held[label]))
        for label in by_size:
            for sign in held[label]:
                owner.setdefault(sign, label)
        own = (sign for key, sign in signs.items() if key not in owner)
        super().__init__(("formula", source, size), own, signs.values(), "TEXT")
        self.parts: dict[str, FormulaPart] = {}
        for label in reversed(by_size):  # the largest first: it may hold others, which take its color
            around: FormulaPart = next((self.parts[k] for k in by_size if held[label] < held[k]), self)
            own = (sign for key, sign in signs.items() if owner.get(key) == label)
            within = [signs[key] for key in held[label]]
            part = FormulaPart((*self.path_name, label), own, within, roles.get(label, around.role))
            around.add(part)
            self.parts[label] = part

    def ledger(self) -> list[tuple[str, str]]:
        return list(self.traced_parts)

    def select(self, label: str) -> FormulaPart:
        """Return a labeled part.

        Raises:
            KeyError: no part of the formula has this label.
        """
        if label not in self.parts:
            raise KeyError(f"the formula has no part {label!r}; it has {', '.join(self.parts) or 'none'}")
        return self.parts[label]


def _signs_of(typst: MathTypst, label: str) -> set[int]:
    return {id(sign) for sign in typst.select(label).family_members_with_points()}


def _stroke_unit() -> float:
    """Return the frame units of a Typst line that is 1 wide in Manim, which gives it a width that grows with the
    pixels of the video."""
    return 0.01 * 1920 / config.pixel_width


def _path(signs: Iterable[VMobject], shift: np.ndarray) -> cairo.Path:
    """Return the outlines of signs as one path to fill; a line becomes the outline of its stroke."""
    context = cairo.Context(cairo.RecordingSurface(cairo.CONTENT_ALPHA, None))
    for sign in signs:
        points = (sign.points + shift)[:, :2] / _FINE
        if sign.get_fill_opacity() > 0:
            for start, end in sign.get_subpath_split_indices_from_points(sign.points, n_dims=2):
                context.move_to(*points[start])
                for k in range(int(start), int(end), 4):
                    context.curve_to(*points[k + 1 : k + 4].ravel())
                context.close_path()
        elif sign.get_stroke_width() > 0:
            half = sign.get_stroke_width() * _stroke_unit() / _FINE / 2
            for first, last in zip(points[0::4], points[3::4], strict=True):
                along = (last - first) / (np.linalg.norm(last - first) or 1)
                aside = half * np.array([-along[1], along[0]])
                # around in the sense of the signs: where a line overlaps one, both count
                context.move_to(*(first - aside))
                for corner in (last - aside, last + aside, first + aside):
                    context.line_to(*corner)
                context.close_path()
    return context.copy_path()
