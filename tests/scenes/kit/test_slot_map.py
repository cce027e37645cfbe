import numpy as np
import pytest

from scenes.kit import theme
from scenes.kit.page_table import PageTable
from scenes.kit.slot_map import EMPTY, FULL, KEPT, WASTE, SlotMap
from scenes.kit.traced import Traced, TracedText
from tests.scenes.kit.drawing import color_at, halfway, pixels

NOBODY = -1
BESIDE = np.array([-0.1, 0.12, 0])  # of the middle of a slot: off its diagonal


def field(name, values):
    return Traced(name, np.array(values))


def memory(**options):
    owner, state = field("owner", [0, 0, 1, NOBODY]), field("state", [1, 0, 1, 0])
    settings = {"block": 2, "roles": ("WEIGHT", "GRADIENT"), "per_line": 2, "cell": (1.0, 0.6)}
    return SlotMap(owner, state, **(settings | options))


def test_a_full_slot_has_its_owners_color_and_an_empty_one_the_ground():
    slots = memory()
    image = pixels(slots)
    seen = [color_at(image, slots.slot_center(k)) for k in range(4)]
    assert seen == [theme.WEIGHT, theme.SURFACE, theme.GRADIENT, theme.SURFACE]


def test_hidden_slots_look_empty_and_come_back():
    slots = memory().hide()
    assert color_at(pixels(slots), slots.slot_center(0)) == theme.SURFACE
    assert not np.any(slots.data()[0].drawn)
    slots.show([0])
    image = pixels(slots)
    assert color_at(image, slots.slot_center(0)) == theme.WEIGHT
    assert color_at(image, slots.slot_center(2)) == theme.SURFACE


def test_blocks_can_be_laid_out_anew_and_glide_there():
    strip = memory(per_line=4)
    np.testing.assert_allclose([strip.slot_center(k)[0] for k in range(4)], [-1.5, -0.5, 0.5, 1.5])
    column = strip.copy().lay(2, (1.0, 0.6), gap=(0.0, 0.1))
    assert (column.width, column.height) == pytest.approx((2.0, 1.3))
    np.testing.assert_allclose(column.block_center(1), [0, -0.35, 0])
    np.testing.assert_allclose(column.block_left(1), [-1, -0.35, 0])
    between = halfway(strip, column)
    np.testing.assert_allclose(between.slot_center(3), (strip.slot_center(3) + column.slot_center(3)) / 2)
    beside = strip.copy().lay(2, (1.0, 0.6), lines=1, aisle=0.4)
    np.testing.assert_allclose(beside.block_left(1)[0] - beside.slot_center(1)[0], 0.5 + 0.4)


def test_slots_fall_to_the_lines_of_another_map_without_moving_sideways():
    strip, column = memory(per_line=4).shift([2, 1, 0]), memory().shift([0, -2, 0])
    fallen = strip.copy().fall(column)
    for k in range(4):
        assert fallen.slot_center(k)[0] == pytest.approx(strip.slot_center(k)[0])
        assert fallen.slot_center(k)[1] == pytest.approx(column.slot_center(k)[1])
    assert (fallen.width, fallen.height) == pytest.approx((strip.width, column.height))


def test_a_gap_parts_the_blocks_of_a_line():
    strip = memory().lay(4, (1.0, 0.6), gap=(0.3, 0.0))
    steps = np.diff([strip.slot_center(k)[0] for k in range(4)])
    np.testing.assert_allclose(steps, [1.0, 1.3, 1.0])


def test_a_claimed_block_is_outlined_in_its_owners_color():
    slots = memory().move_to([0, 0, 0])
    edge = slots.block_left(0)
    assert color_at(pixels(slots, 1600), edge) != theme.WEIGHT
    assert color_at(pixels(slots.claim([0]), 1600), edge) == theme.WEIGHT
    assert color_at(pixels(slots.release(), 1600), edge) != theme.WEIGHT


def test_waste_is_seen_only_in_hindsight():
    looks = (EMPTY, FULL, KEPT, WASTE)
    slots = SlotMap(
        field("owner", [0, 0]), field("state", [2, 3]), block=1, roles=("WEIGHT",), looks=looks, per_line=2,
        cell=(1.0, 1.0),
    ).look_back(0)  # fmt: skip
    image = pixels(slots)
    assert [color_at(image, slots.slot_center(k)) for k in (0, 1)] == [theme.SURFACE] * 2
    image = pixels(slots.look_back(), 1600)
    assert color_at(image, slots.slot_center(0)) not in (theme.SURFACE, theme.WEIGHT)  # part of the owner's color
    assert color_at(image, slots.slot_center(1)) == theme.LOSS  # on its diagonal
    assert color_at(image, slots.slot_center(1) + BESIDE) == theme.SURFACE


def test_words_numbers_and_slots_are_in_the_ledger_only_while_they_are_seen():
    slots = memory(names=field("ids", [10, 11]), counts=field("counts", [2, 0]))
    slots.write(0, TracedText("fox", "words[0]")).write(1, TracedText("hen", "words[1]"))
    shown = slots.ledger()
    assert ("fox", "words[0]") in shown
    assert "hen" not in dict(shown)  # its slot is not full
    assert {("10", "ids[0]"), ("11", "ids[1]"), ("2", "counts[0]")} <= set(shown)
    hidden = dict(slots.hide().show_names(0).ledger())
    assert not {"fox", "10", "2"} & set(hidden)


def test_values_change_over_but_who_is_shown_stays():
    slots = memory().hide([3])
    slots.set_values(field("later", [1, 1, 1, 1]), field("states", [1, 1, 1, 1]))
    image = pixels(slots)
    seen = [color_at(image, slots.slot_center(k)) for k in range(4)]
    assert seen == [theme.GRADIENT] * 3 + [theme.SURFACE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: memory(block=3), "4 slots cannot be cut into blocks of 3"),
        (lambda: memory().set_values(field("a", [0]), field("b", [0])), "4 slots need an owner and a state each"),
        (lambda: memory().write(0, "typed"), "shows tokens of the Trace"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        change()


def table():
    blocks, filled = field("blocks", [10.0, 5.0, np.nan]), field("filled", [4.0, 1.0, np.nan])
    return PageTable(blocks, filled, role="WEIGHT", row=0.4)


def test_a_page_table_has_a_row_for_each_block_it_has():
    pages = table()
    assert pages.rows() == [0, 1]
    assert pages.ledger() == [("10", "blocks[0]"), ("4", "filled[0]"), ("5", "blocks[1]"), ("1", "filled[1]")]
    np.testing.assert_allclose(pages.row_end(0) - pages.row_end(2), [0, 0.8, 0])
    assert pages.row_end(0)[0] == pytest.approx(pages.get_right()[0])


def test_a_block_that_is_taken_but_holds_nothing_yet_has_no_count():
    pages = PageTable(field("blocks", [10.0, 5.0]), field("filled", [4.0, np.nan]), role="WEIGHT", row=0.4)
    assert pages.rows() == [0, 1]
    assert pages.ledger() == [("10", "blocks[0]"), ("4", "filled[0]"), ("5", "blocks[1]")]
    assert pixels(pages).any()


def test_rows_of_a_page_table_can_be_hidden():
    pages = table().hide(1)
    assert len(pages.ledger()) == 2
    ring = pages.row_end(1) + np.array([-0.005, 0, 0])
    assert color_at(pixels(pages, 1600), ring) == theme.SURFACE
    assert color_at(pixels(pages.show(), 1600), ring) == theme.WEIGHT
