import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scenes.kit.traced import (
    Traced,
    TracedFields,
    TracedText,
    allow_notation,
    format_number,
    names_read,
    read_text,
    require_traced,
    traced,
)
from tests.scripts.topics.cores import tiny

KEYS = Traced("keys", np.arange(24.0).reshape(4, 6))


@pytest.mark.parametrize(
    ("view", "origin"),
    [
        (KEYS, "keys"),
        (KEYS[2], "keys[2, :]"),
        (KEYS[-1, 3], "keys[3, 3]"),
        (KEYS[1:3, ::2], "keys[1:3, [0, 2, 4]]"),
        (KEYS.T[4], "keys[:, 4]"),
        (KEYS.reshape(2, 12)[1], "keys[2:4, :]"),
        (KEYS.transpose(1, 0)[0, 0], "keys[0, 0]"),
    ],
)
def test_a_view_names_the_cells_it_shows(view, origin):
    assert view.origin == origin


@given(st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_every_cell_of_every_view_still_names_its_own_place(row, column, flip):
    view = KEYS.T if flip else KEYS
    cell = view[column, row] if flip else view[row, column]
    assert cell.origin == f"keys[{row}, {column}]"
    assert float(cell) == row * 6 + column


@pytest.mark.parametrize(
    "compute",
    [
        lambda v: v + 1, lambda v: 2 * v, lambda v: v - v, lambda v: -v, lambda v: v / 2, lambda v: v // 2,
        lambda v: v % 2, lambda v: 2**v, lambda v: round(v),
    ],
)  # fmt: skip
def test_arithmetic_is_refused_because_a_scene_never_computes(compute):
    with pytest.raises(TypeError, match="a scene draws and never computes: keys is in the Trace"):
        compute(KEYS)


def test_a_number_that_numpy_computed_has_no_origin_and_is_refused():
    with pytest.raises(TypeError, match=r"Bars shows values of the Trace .* got ndarray"):
        require_traced(np.sum(KEYS, axis=0), "Bars")


def test_traced_values_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        KEYS.values[0, 0] = 7


def test_a_formatted_value_carries_its_origin_into_the_text():
    read = read_text(f"loss {KEYS[1, 2]:.2f} nats after {TracedText('fox', 'tokens[5]')}")
    assert read.plain == "loss 8.00 nats after fox"
    assert read.parts == (("8.00", "keys[1, 2]"), ("fox", "tokens[5]"))


@pytest.mark.parametrize(
    "text",
    [
        "42 rows", f"{float(KEYS[1, 1]):.1f}", "16.4× less work", "scale ³⁷", "½ the loss", "step ③", "part Ⅷ",
        "ninety-seven in all", "fifteen heads", "A hundred words", "five million words", "ten percent",
    ],
)  # fmt: skip
def test_a_typed_or_computed_number_is_refused(text):
    with pytest.raises(ValueError, match="has no origin"):
        read_text(text)


@pytest.mark.parametrize("text", ["four heads, two groups", "millions of words", f"{KEYS[1, 1]:.0f} million words"])
def test_what_a_glance_can_count_may_be_said_in_words(text):
    assert read_text(text).plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{KEYS[0, 3]:.0f}{KEYS[1, 1]:.0f} nats", "37"),
        (f"{KEYS[0, 3]:.0f}.{KEYS[1, 1]:.0f} nats", "3.7"),
        (f"{KEYS[0, 3]:.0f},{KEYS[1, 1]:.0f} nats", "3,7"),
        (f"loss −{KEYS[0, 3]:.1f}", "−3"),
        (f"-{KEYS[0, 3]:.1f} nats", "-3"),
        (f"{KEYS[0, 3]:.1f}% of all words", "3.0%"),
        (f"{KEYS[0, 3]:.0f}K words", "3K"),
    ],
)  # fmt: skip
def test_what_makes_another_number_of_a_traced_value_is_refused(text, found):
    with pytest.raises(ValueError, match=f"'{re.escape(found)}' in .* is another number than the traced value"):
        read_text(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{KEYS[0, 3]:.0f}×", f"{KEYS[0, 3]:.0f}°", f"{KEYS[0, 3]:.0%} of all",
        f"layers {KEYS[0, 3]:.0f}–{KEYS[1, 1]:.0f}",
        f"{KEYS[0, 3]:.0f}, {KEYS[1, 1]:.0f} and {KEYS[1, 2]:.0f}", f"top-{KEYS[0, 3]:.0f}", f"{KEYS[0, 3]:.0f}KB",
        f"{KEYS[1, 1]:.0f} − {KEYS[0, 3]:.0f}", f"at {KEYS[0, 3]:.0f}.",
    ],
)  # fmt: skip
def test_words_and_signs_around_a_traced_value_stay_free(text):
    assert read_text(text).parts


@pytest.mark.parametrize(
    "source",
    [
        "x = 37", "x = 3 7", "x = 1 . 3", 'x = 3"7"', "{{ 3 : a }}{{ 7 : b }}", "bold(3) 7", "3 thin 7", "3/**/7", "³⁷",
        "#(9 * 9)", "#calc.pow(2, 9)", r"\u{39}", f"x = {KEYS[0, 3]:.0f}7", f"x = 7.{KEYS[0, 3]:.0f}",
        f"x = -{KEYS[0, 3]:.0f}", f"x = - {KEYS[0, 3]:.0f}", f"{KEYS[0, 3]:.0f} {KEYS[1, 1]:.0f}",
    ],
)  # fmt: skip
def test_digits_that_would_stand_together_in_a_formula_are_refused(source):
    with pytest.raises(ValueError, match="has no origin|is another number"):
        read_text(source, lone_digits=True)


@pytest.mark.parametrize(
    "source",
    [
        "x^2 + 1/2", "mat(1, 0; 0, 1)", "sqrt(2) / 3", "e^(-x) = 1", f"x - {KEYS[0, 3]:.0f}", "a #h(1em) b",
        f"{KEYS[0, 3]:.0f} dot {KEYS[1, 1]:.0f} = {KEYS[3, 3]:.0f}", f"1/{KEYS[0, 3]:.0f}", f"2 times {KEYS[0, 3]:.1f}",
    ],
)  # fmt: skip
def test_lone_digits_and_traced_values_may_stand_in_a_formula(source):
    assert read_text(source, lone_digits=True).plain


@pytest.mark.parametrize("name", ["0.37", "37", "loss 0.37", "37%", "about 37", "½"])
def test_a_number_is_no_proper_name(name):
    with pytest.raises(ValueError, match="is a number and no name"):
        allow_notation([name])


@pytest.mark.parametrize(
    "name", ["FP16", "Llama-2-7B", "GPT-2 medium", "Gemma 3", "540 billion", "1.58-bit", "Phi-3.5"]
)
def test_names_with_numbers_in_them_can_be_listed(name):
    allow_notation([name])
    assert read_text(f"with {name}").plain == f"with {name}"
    allow_notation([])


def test_a_proper_name_may_hold_digits_when_the_scene_lists_it():
    allow_notation(["Llama-2-7B"])
    assert read_text("Llama-2-7B").plain == "Llama-2-7B"
    with pytest.raises(ValueError, match="has no origin"):
        read_text("Llama-2-13B")
    allow_notation([])


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (524288, "binary", "512 KiB"),
        (2**31, "binary", "2 GiB"),
        (700, "binary", "700 B"),
        (1500, "binary", "1.5 KiB"),
        (43744, "count", "43.7 K"),
        (-1.26, "+.1f", "−1.3"),
        (-0.04, "+.1f", "0.0"),
        (0.04, "+.1f", "0.0"),
        (4.8e-7, ".1e", "4.8 × 10⁻⁷"),
        (0.0, ".1e", "0"),
        (4096, ",", "4,096"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, spec, text):
    assert format_number(value, spec) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_written(value):
    with pytest.raises(ValueError, match="is no number that can be written"):
        format_number(value, ".2f")


@pytest.mark.parametrize("spec", ["c", "x", "b"])
def test_a_number_is_written_in_decimal(spec):
    with pytest.raises(ValueError, match="is written in decimal"):
        format_number(97, spec)


def test_trace_fields_of_every_kind_become_traced():
    assert traced(torch.ones(2, 3), "x")[1].origin == "x[1, :]"
    assert traced(3, "n").origin == "n"
    assert traced(("a", "b"), "tokens")[1].origin == "tokens[1]"
    assert traced({"full": 1.5}, "loss")["full"].origin == "loss.full"


def test_the_fields_that_were_read_are_known_by_name():
    trace = tiny.Trace(tiny.Config(), torch.ones(2, 3), torch.ones(1, 3))
    fields = TracedFields(trace)
    assert names_read(fields) == []
    _ = fields.numbers, fields.config.seed
    assert names_read(fields) == ["config.seed", "numbers"]
