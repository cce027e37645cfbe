"""Text as outlines: shaped by HarfBuzz from the bundled fonts, so that every machine draws the same glyphs.

A line of text is shaped once and kept as a cairo path in font units; drawing it again costs one fill.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cairo
import uharfbuzz as hb

FOLDER = Path(__file__).parent / "fonts"
FILES = {
    ("words", False): "Inter-Regular.otf",
    ("words", True): "Inter-SemiBold.otf",
    ("numbers", False): "JetBrainsMono-Regular.ttf",
    ("numbers", True): "JetBrainsMono-SemiBold.ttf",
}


@dataclass(frozen=True)
class Style:
    """How a text looks; `size` is the height of a capital letter in frame units."""

    size: float
    face: str = "words"  # or "numbers": tabular digits
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """One shaped line in font units: its outline, its advance, and the ink above and below the baseline."""

    path: cairo.Path
    advance: float
    top: float
    bottom: float
    cap_height: float


class _Font:
    def __init__(self, file: str) -> None:
        self.face = hb.Face(hb.Blob.from_file_path(str(FOLDER / file)))
        self.font = hb.Font(self.face)
        extents = self.font.get_glyph_extents(self.font.get_nominal_glyph(ord("H")))
        self.cap_height = float(extents.y_bearing)


@cache
def _font(face: str, bold: bool) -> _Font:
    return _Font(FILES[face, bold])


def has_glyphs(text: str, face: str = "words", bold: bool = False) -> bool:
    """Return whether the font can draw every character of `text`."""
    font = _font(face, bold).font
    return all(font.get_nominal_glyph(ord(character)) for character in text)


@cache
def shape(text: str, face: str = "words", bold: bool = False) -> Line:
    """Shape one line: kerning and ligatures applied, outlines laid along the baseline from x = 0."""
    if "\n" in text:
        raise ValueError(f"shape takes one line, got {text!r}")
    source = _font(face, bold)
    # Characters the mono face lacks (superscripts, arrows) come from the words face.
    if not has_glyphs(text, face, bold):
        missing = [c for c in text if not has_glyphs(c, face, bold)]
        if face == "words" or not has_glyphs("".join(missing), "words", bold):
            raise ValueError(f"the bundled fonts have no glyph for {''.join(missing)!r} in {text!r}")
        return shape(text, "words", bold)
    buffer = hb.Buffer()
    buffer.add_str(text)
    buffer.guess_segment_properties()
    hb.shape(source.font, buffer, {"tnum": True} if face == "words" else {"calt": False, "liga": False})
    context = cairo.Context(cairo.RecordingSurface(cairo.CONTENT_ALPHA, None))
    pen = _Pen(context)
    x, top, bottom = 0.0, 0.0, 0.0
    for info, position in zip(buffer.glyph_infos, buffer.glyph_positions, strict=True):
        pen.origin = (x + position.x_offset, position.y_offset)
        source.font.draw_glyph(info.codepoint, _draw_funcs(), pen)
        extents = source.font.get_glyph_extents(info.codepoint)
        if extents is not None and extents.height:
            top = max(top, extents.y_bearing + position.y_offset)
            bottom = min(bottom, extents.y_bearing + extents.height + position.y_offset)
        x += position.x_advance
    return Line(context.copy_path(), x, top, bottom, source.cap_height)


def width(text: str, style: Style) -> float:
    """Return the advance of one line in frame units."""
    line = shape(text, style.face, style.bold)
    return line.advance * style.size / line.cap_height


class _Pen:
    """Receives HarfBuzz's outline of a glyph and adds it to a cairo path, shifted to `origin`."""

    def __init__(self, context: cairo.Context) -> None:
        self.context = context
        self.origin = (0.0, 0.0)
        self.at = (0.0, 0.0)

    def point(self, x: float, y: float) -> tuple[float, float]:
        return x + self.origin[0], y + self.origin[1]


def _move_to(x: float, y: float, pen: _Pen) -> None:
    pen.at = pen.point(x, y)
    pen.context.move_to(*pen.at)


def _line_to(x: float, y: float, pen: _Pen) -> None:
    pen.at = pen.point(x, y)
    pen.context.line_to(*pen.at)


def _cubic_to(x1: float, y1: float, x2: float, y2: float, x: float, y: float, pen: _Pen) -> None:
    pen.at = pen.point(x, y)
    pen.context.curve_to(*pen.point(x1, y1), *pen.point(x2, y2), *pen.at)


def _quadratic_to(x1: float, y1: float, x: float, y: float, pen: _Pen) -> None:
    (x0, y0), (cx, cy), (ex, ey) = pen.at, pen.point(x1, y1), pen.point(x, y)
    # cairo knows cubics only: its control points lie two thirds of the way to the quadratic's
    first = (x0 + 2 / 3 * (cx - x0), y0 + 2 / 3 * (cy - y0))
    second = (ex + 2 / 3 * (cx - ex), ey + 2 / 3 * (cy - ey))
    pen.context.curve_to(*first, *second, ex, ey)
    pen.at = (ex, ey)


def _close_path(pen: _Pen) -> None:
    pen.context.close_path()


@cache
def _draw_funcs() -> hb.DrawFuncs:
    functions = hb.DrawFuncs()
    functions.set_move_to_func(_move_to)
    functions.set_line_to_func(_line_to)
    functions.set_cubic_to_func(_cubic_to)
    functions.set_quadratic_to_func(_quadratic_to)
    functions.set_close_path_func(_close_path)
    return functions
