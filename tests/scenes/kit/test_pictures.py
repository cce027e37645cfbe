"""The pictures as a viewer gets them: pixels, boxes, and states between two states."""

import numpy as np
import pytest
from manim import LEFT, RIGHT

from scenes.kit import theme
from scenes.kit.label import Label, Readout
from scenes.kit.memory_blocks import MemoryBlocks
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.token_row import RowNames, TokenRow
from scenes.kit.traced import Traced, TracedText
from scenes.kit.typography import Style, shape, width
from tests.scenes.kit.drawing import color_at, pixels

VALUES = Traced("keys", np.array([[1.0, -0.5, 0.0], [2.0, np.nan, -2.0]]))
TOKENS = tuple(TracedText(token, f"tokens[{k}]") for k, token in enumerate(["<bos>", "one", "day"]))


@pytest.mark.parametrize("name", theme.THEMES)
def test_cells_have_exactly_the_colors_of_the_map(name):
    theme.use(name)
    grid = TensorGrid(VALUES, number=None, limit=2.0)
    image = pixels(grid)
    for row, column, share in [(0, 0, 0.5), (0, 1, -0.25), (0, 2, 0.0), (1, 0, 1.0), (1, 2, -1.0)]:
        assert color_at(image, grid.cell_center(row, column)) == theme.signed_color(share)
    assert color_at(image, grid.cell_center(1, 1)) == theme.BACKGROUND  # NaN: no cell here
    theme.use("dark")


def test_a_grid_moves_scales_and_keeps_its_cells_in_place():
    grid = TensorGrid(VALUES, number=None).shift(RIGHT).scale(1.5)
    assert color_at(pixels(grid), grid.cell_center(1, 0)) == theme.signed_color(1.0)
    np.testing.assert_allclose(grid.row(0).get_center(), grid.row_center(0))


def test_halfway_between_two_states_the_colors_are_halfway():
    start, end = TensorGrid(VALUES, number=None, limit=2), TensorGrid(VALUES, number=None, limit=2).hide(rows=0)
    middle = start.copy().interpolate(start, end, 0.5)
    np.testing.assert_allclose(middle.presence, [[0.5] * 3, [1.0] * 3])


def test_appended_rows_start_hidden_below_and_the_others_stay():
    grid = TensorGrid(VALUES[:1])
    before = grid.cell_center(0, 1)
    grid.append_rows(VALUES)
    np.testing.assert_allclose(grid.cell_center(0, 1), before)
    assert grid.presence.tolist() == [[1.0] * 3, [0.0] * 3]


def test_a_copy_does_not_follow_its_original():
    grid = TensorGrid(VALUES)
    clone = grid.copy()
    grid.shift(RIGHT).recede(rows=0)
    assert clone.get_center()[0] == pytest.approx(0)
    assert clone.emphasis.min() == 1


def test_a_grid_refuses_bare_arrays_and_other_shapes():
    with pytest.raises(TypeError, match="TensorGrid shows values of the Trace"):
        TensorGrid(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"set_values needs the shape \(2, 3\), got \(1, 3\)"):
        TensorGrid(VALUES).set_values(VALUES[0])


def test_a_map_without_colors_for_negative_values_refuses_them():
    with pytest.raises(ValueError, match=r"the map 'KEY' has no color for negative values, .* \(down to -2\)"):
        TensorGrid(Traced("x", np.array([[1.0, -2.0]])), map="KEY")
    assert TensorGrid(Traced("x", np.array([[1.0, -1e-9]])), map="KEY").columns == 2


def test_the_ledger_lists_every_number_with_its_cell():
    assert TensorGrid(VALUES).ledger() == [
        ("+1.0", "keys[0, 0]"),
        ("−0.5", "keys[0, 1]"),
        ("0.0", "keys[0, 2]"),
        ("+2.0", "keys[1, 0]"),
        ("−2.0", "keys[1, 2]"),
    ]


def test_numbers_in_cells_keep_their_contrast_even_when_dimmed():
    for name in theme.THEMES:
        theme.use(name)
        for step in np.linspace(-1, 1, 33):
            color = theme.signed_color(step)
            assert theme.contrast(theme.ink_on(color, name), color) >= 4.5
            dimmed = theme.mix(theme.BACKGROUND, color, theme.DIMMED)
            ink = theme.mix(dimmed, theme.ink_on(dimmed, name), 0.62)
            assert theme.contrast(ink, dimmed) >= 4.5
    theme.use("dark")


@pytest.mark.parametrize("name", theme.THEMES)
def test_text_reads_on_the_background_and_roles_can_be_told_from_it(name):
    colors = theme.THEMES[name]
    for role in ("TEXT", "MUTED", "QUERY", "KEY", "VALUE", "SCORE", "WEIGHT", "GRADIENT", "LOSS", "FROZEN"):
        needed = 4.5 if role in ("TEXT", "MUTED") else 3.0
        assert theme.contrast(colors[role], colors["BACKGROUND"]) >= needed, role


def test_a_label_is_as_high_as_its_capitals_whatever_its_letters():
    assert Label("gypsy").height == pytest.approx(Label("HX").height) == pytest.approx(theme.LABEL)


def test_a_label_that_changes_keeps_its_left_side():
    label = Label("short").shift(LEFT)
    left = label.get_left()
    label.set_text("a much longer text")
    np.testing.assert_allclose(label.get_left(), left)


def test_a_readout_writes_its_value_and_says_where_it_is_from():
    readout = Readout(lambda v: f"{v:d} rows", Traced("rows", np.array([8, 9]))[1])
    assert readout.text == "9 rows"
    assert readout.ledger() == [("9", "rows[1]")]


def test_kerning_and_tabular_digits_come_from_the_font():
    assert width("11111", Style(0.2)) == pytest.approx(width("88888", Style(0.2)))
    assert width("AV", Style(0.2)) < width("A", Style(0.2)) + width("V", Style(0.2))
    with pytest.raises(ValueError, match="no glyph"):
        shape("漢")


def test_the_names_of_rows_stand_beside_their_rows():
    grid = TensorGrid(Traced("keys", np.zeros((3, 4)))).shift(RIGHT)
    names = RowNames(TOKENS, grid)
    assert names.get_right()[0] < grid.get_left()[0]
    assert names.get_top()[1] == pytest.approx(grid.get_top()[1])


def test_a_token_row_shows_only_tokens_of_the_trace():
    assert TokenRow(TOKENS).ledger()[1] == ("one", "tokens[1]")
    with pytest.raises(TypeError, match="shows tokens of the Trace"):
        TokenRow(["one"])


def test_a_slot_of_memory_is_filled_to_its_traced_share():
    blocks = MemoryBlocks(Traced("fill", np.array([1.0, 0.5, 0.0])), columns=3, slot=(1.0, 1.0), roles="KEY")
    image = pixels(blocks)
    left, right = np.array([-0.25, 0, 0]), np.array([0.25, 0, 0])
    assert color_at(image, blocks.slot_center(1) + left) == theme.KEY
    assert color_at(image, blocks.slot_center(1) + right) == theme.SURFACE
    assert color_at(image, blocks.slot_center(2)) == theme.SURFACE
    with pytest.raises(ValueError, match=r"fill must be a share in 0\.\.1"):
        MemoryBlocks(Traced("fill", np.array([1.5])), columns=1)
