"""Formulas set by Typst, whose symbols take the colors of the objects they stand for."""

from manim import MathTypst, VGroup

from scenes.kit import theme

# Typst sizes its letters by the em; this brings a formula's capital to the height of a label's at the same `size`.
_FONT_SIZE_PER_UNIT = 150


def Formula(source: str, *, size: float = theme.LABEL, **roles: str) -> MathTypst:
    """Return a formula; `{{ q_t : query }}` in the source with `query="QUERY"` colors that symbol.

    Formula(r"{{ q : query }} dot {{ k_j : key }} / sqrt(d)", query="QUERY", key="KEY")
    """
    formula = MathTypst(source, color=theme.TEXT, font_size=size * _FONT_SIZE_PER_UNIT)
    for label, role in roles.items():
        part: VGroup = formula.select(label)
        part.set_color(getattr(theme, role))
    return formula
