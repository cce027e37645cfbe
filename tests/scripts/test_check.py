"""Each rule of `check` finds what breaks it, and nothing in what does not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from manim import DOWN, RIGHT, UP, Group, Square, Text, UpdateFromAlphaFunc, ValueTracker, linear

from scenes import series
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.formula import Formula
from scenes.kit.label import Label, Readout
from scenes.kit.number_line import NumberLine
from scenes.kit.picture import Picture
from scenes.kit.recorder import record
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.tile_map import TileMap
from scenes.kit.topic_scene import Caption, CaptionBand, TopicScene, chapter, loop
from scenes.kit.traced import Traced, TracedFields, mark, traced
from scenes.kit.vector_plane import VectorPlane
from scripts.pipeline.checks.layout import check_contrast
from scripts.pipeline.checks.origins import Fields, shows
from scripts.pipeline.checks.pixels import FRAME_RATE, check_gif, check_pixels, flashes, relative_luminance
from scripts.pipeline.checks.reading import check_length
from scripts.pipeline.checks.topic import check_recording
from tests.scripts.conftest import call
from tests.scripts.topics import broken, fatal, tiny

CORE = tiny.Tiny.core
NUMBERS = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -0.75]])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC,))


def topic_of(play_it, title="One"):
    """Return a topic whose one chapter calls `play_it(scene)`."""

    class One(TopicScene):
        """Is it found?"""

        core = CORE
        takeaway = "Yes."
        notation = ("FP16",)

        @chapter(title)
        def one(self):
            """One."""
            self.say("A beat.")
            play_it(self)

    return One


def recording_of(play_it, *, title="One", numbers=NUMBERS, **options):
    """Record a chapter that calls `play_it(scene)`."""
    trace = CORE.Trace(CORE.Config(), numbers, numbers[:1])
    return record(topic_of(play_it, title), "one", trace=trace, **options)


def rules(play_it, **options):
    """Return the rules that a chapter breaks, with the messages."""
    return [(found.rule, found.message) for found in check_recording(recording_of(play_it, **options))]


def showing(*make):
    """Play: what is made of the scene rests for a second."""

    def play_it(scene):
        scene.add(*(thing(scene) for thing in make))
        scene.hold(1.0)

    return play_it


class Painting(Picture):
    """Draws whatever it is told, and says nothing of it."""

    def __init__(self, paint, entries=()):
        super().__init__(1, 1)
        self.paint, self.entries = paint, tuple(entries)

    def draw(self, painter):
        self.paint(painter)

    def ledger(self):
        return list(self.entries)


def test_a_clean_chapter_passes_every_check():
    play_it = showing(
        lambda s: TensorGrid(s.trace.numbers, role="KEY"),
        lambda s: Label(f"largest {s.trace.numbers[1, 1]:.1f}, in FP16").move_to([0, 2, 0]),
        lambda s: Bars(s.trace.numbers[0], signed=True).move_to([3.5, 0, 0]),
        lambda s: Formula("x^2 / 2").move_to([-4, 1, 0]),
    )
    assert rules(play_it) == []
    assert list(check_contrast(recording_of(play_it, theme_name="light"))) == []


# -- origins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Label("loss 0.37"),  # typed
        lambda s: Label(f"{float(s.trace.numbers[0, 0]) * 2:.2f}"),  # computed
        lambda s: Label(f"{s.trace.numbers[0, 0] * 2:.2f}"),  # computed with traced values
        lambda s: Formula("x = 0.37"),
        lambda s: TensorGrid(NUMBERS.numpy()),
        lambda s: Bars(np.array([1.0, 2.0])),
        lambda s: Square(),
        lambda s: Painting(lambda p: p.text("37", 0, 0, Label("x").style, color=theme.TEXT), [("x", "config.seed")]),
        lambda s: Painting(lambda painter: painter.box(0, 0, 1, 2, fill=theme.KEY)),
    ],
    ids=["typed", "computed", "arithmetic", "formula", "cells", "lengths", "stock", "own text", "own shape"],
)  # fmt: skip
def test_what_is_drawn_without_an_origin_is_found(make):
    assert "origin" in {rule for rule, _ in rules(showing(make))}


def test_a_value_that_is_computed_and_given_a_false_origin_is_found():
    def forged(scene):
        return Label(f"{traced(float(scene.trace.numbers[0, 0]) * 2, 'numbers[0, 0]'):.2f}")

    assert rules(showing(forged)) == [("value", "shows '2.00', but numbers[0, 0] is 1.0")]


def chart(*, x=None, spread=None, level=None):
    """Make a chart of true numbers but for what is given."""

    def make(scene):
        row = scene.trace.numbers[0]
        axes = Chart(4, 3, x=(-6, 6), y=(-6, 6))
        axes.curve(row if x is None else x, row, role="KEY", spread=None if spread is None else (spread, row))
        return axes if level is None else axes.level(level)

    return make


FORGED = Traced("numbers", NUMBERS.numpy() * 1.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: TensorGrid(FORGED, number=None),
        lambda s: TensorGrid(s.trace.numbers, number=None).weigh_rows(FORGED[:, 1]),
        lambda s: Bars(FORGED[0], number=None, signed=True).leave_ghosts().set_values(s.trace.numbers[0]),
        chart(x=FORGED[0]),
        chart(spread=FORGED[1]),
        chart(level=FORGED[0, 0]),
        lambda s: VectorPlane(s.trace.numbers[:, :2], ["KEY", "QUERY"]).sector(FORGED[0, :2]),
        lambda s: VectorPlane(FORGED[:, :2], ["KEY", "QUERY"]).leave_ghosts().set_tips(s.trace.numbers[:, :2]),
        lambda s: VectorPlane(s.trace.numbers[:, :2], ["KEY", "QUERY"]).tick(FORGED[0]),
        lambda s: TileMap(4, (2, 2), size=2, skipped=(FORGED[0, :1], s.trace.numbers[0, :1])),
    ],
    ids=["cells", "tints", "ghosts", "x", "spread", "level", "sector", "ghost arrows", "marks", "tiles"],
)  # fmt: skip
def test_forged_values_are_found_wherever_a_picture_holds_them(make):
    found = rules(showing(make))
    assert {rule for rule, _ in found} == {"value"}
    assert all(message.startswith("its values are not those of numbers") for _, message in found)


def test_a_picture_that_draws_or_tells_with_code_of_its_own_is_found():
    class Longer(Bars):
        def draw(self, painter):
            super().draw(painter)
            painter.box(0, 0, 3, 0.2, fill=theme.LOSS)

    class Mute(Bars):
        def data(self):
            return ()

    for kind, method in ((Longer, "draw"), (Mute, "data")):
        found = rules(showing(lambda s, kind=kind: kind(s.trace.numbers[0], signed=True, number=None)))
        assert found == [
            ("origin", f"has a `{method}` of its own: what draws, and what says of which data, belongs in scenes/kit")
        ]


def swapped(scene):
    scene.full_trace = replace(scene.full_trace, numbers=NUMBERS * 3)
    scene.trace = TracedFields(scene.full_trace)


def rewritten(scene):
    scene.full_trace.numbers[0, 0] = 7.0


@pytest.mark.parametrize("change", [swapped, rewritten])
def test_a_trace_that_the_scene_changes_is_found(change):
    def play_it(scene):
        change(scene)
        scene.add(TensorGrid(scene.trace.numbers, number=None))
        scene.hold(0.5)

    found = [(one.rule, one.message) for one in check_recording(recording_of(play_it, numbers=NUMBERS.clone()))]
    assert found == [("value", "its values are not those of numbers")]


@pytest.mark.parametrize("words", ["37 nats", "37 colors", "7 heads"])
def test_a_number_among_words_is_no_drawing_of_many_values(words):
    assert rules(showing(lambda s: Label(mark(words, "numbers"))))


def test_a_title_with_a_number_in_it_is_found():
    found = check_recording(recording_of(lambda scene: None, title="Only ⅓ is left"))
    assert [(one.rule, one.message) for one in found] == [("origin", "'⅓' in 'Only ⅓ is left' has no origin")]


def test_a_field_that_does_not_exist_is_found():
    found = rules(showing(lambda s: Label(f"{traced(1.0, 'nowhere'):.1f}")))
    assert found == [("origin", "nowhere is no value of the Trace")]


def test_a_stale_number_is_found():
    class Stale(Readout):
        def set_value(self, value, keep=(-1, 0)):
            self.parts = ((self.text, value.origin),)  # the words of before with the origin of now
            return self

    def play_it(scene):
        readout = Stale(lambda v: f"{v:.2f}", scene.trace.numbers[0, 0])
        scene.add(readout)
        scene.hold(0.5)
        readout.set_value(scene.trace.numbers[0, 1])
        scene.hold(0.5)

    assert rules(play_it) == [("value", "shows '1.00', but numbers[0, 1] is -2.0")]


def test_stale_colors_and_lengths_are_found():
    def stale_grid(scene):
        grid = TensorGrid(scene.trace.numbers[0], number=None, limit=3.0)
        shade = grid.shade
        grid.set_values(scene.trace.numbers[1]).shade = shade
        return grid

    def stale_bars(scene):
        bars = Bars(scene.trace.numbers[0], number=None, limit=3.0, signed=True).move_to([3, 2, 0])
        amounts = bars.amounts
        bars.set_values(scene.trace.numbers[1]).amounts = amounts
        return bars

    found = rules(showing(stale_grid, stale_bars))
    assert found == [("value", "the drawing is off the values of numbers[1, :] by up to 5")] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda grid, label: grid.texts[0].__setitem__(0, "+7.7"),
        lambda grid, label: grid.shade.__setitem__((0, 0), -1.0),
        lambda grid, label: label.lines.__setitem__(0, "7.7"),
    ],
    ids=["numbers", "colors", "words"],
)  # fmt: skip
def test_what_is_changed_in_place_is_seen(change):
    def play_it(scene):
        grid, label = TensorGrid(scene.trace.numbers), Label("words").move_to([0, 2, 0])
        scene.add(grid, label)
        scene.hold(0.5)
        change(grid, label)
        scene.hold(0.5)

    assert {rule for rule, _ in rules(play_it)} & {"value", "origin"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Chart(4, 3, x=(0, 1), y=(0, 1), y_ticks=[0.5], y_format=lambda v: f"{2 * v:g}"), "0.5 says '1'"),
        (lambda s: Chart(4, 3, x=(0, 1), y=(0, 1), x_ticks=[0.5], x_format=lambda v: "99% on"), "0.5 says '99% on'"),
        (lambda s: NumberLine(s.trace.numbers[0], span=(-3, 3), ticks=[1.5], tick_format="d"), "1.5 says '1'"),
    ],
)  # fmt: skip
def test_a_tick_that_names_another_place_is_found(make, message):
    assert rules(showing(make)) == [("value", f"the tick at {message}")]


def test_ticks_in_words_units_and_powers_pass():
    def make(scene):
        words = {0.0: "none", 2.0: "2×", 128.0: "2⁷", 512.0: "512 B", 2048.0: "2 KiB", 4000.0: "4 K words"}
        sizes = {"y_ticks": tuple(words), "y_format": words.get, "x_ticks": [1 / 3, 1.0], "x_format": ".2f"}
        return Chart(4, 3, x=(0, 1), y=(1, 4096), log_y=True, **sizes)

    assert rules(showing(make)) == []


@pytest.mark.parametrize("ranges", [{"y": (0, 1), "x": (-3, 3)}, {"y": (-4, 4), "x": (-1, 1)}])
def test_a_curve_that_leaves_its_axes_is_found(ranges):
    def make(scene):
        axes = Chart(3, 2, **ranges)
        axes.curve(scene.trace.numbers[0], scene.trace.numbers[0], role="KEY")
        return axes

    assert {rule for rule, _ in rules(showing(make))} == {"value"}


def test_a_bar_that_stops_halfway_is_found():
    def play_it(scene):
        bars = Bars(scene.trace.numbers[0], signed=True, number=None).hide()
        scene.add(bars)
        scene.play(bars.animate(rate_func=lambda t: t / 2).show(), run_time=0.5)
        scene.hold(0.5)

    assert rules(play_it) == [("value", "the drawing is off the values of numbers[0, :] by up to 1")]


def test_a_plane_that_is_stretched_is_found():
    def stretched(scene):
        return VectorPlane(scene.trace.numbers[:, :2], ["KEY", "QUERY"]).stretch(1.5, 0)

    assert {rule for rule, _ in rules(showing(stretched))} == {"value"}


@pytest.mark.parametrize(
    "make",
    [
        lambda row, **looks: Bars(row, number=None, **looks),
        lambda row, **looks: TensorGrid(row, number=None, map="KEY", **looks),
    ],
)
def test_pictures_of_one_field_that_stand_together_need_one_measure(make):
    def pair(**looks):
        first, last = (lambda s, k=k: make(s.trace.numbers[0, k : k + 1], **looks).move_to([k, k, 0]) for k in (0, 2))
        return rules(showing(first, last))

    ((rule, message),) = pair()
    assert rule == "value"
    assert message.endswith("give both one limit")
    assert pair(limit=3.0) == []


def test_what_is_there_for_one_frame_of_a_motion_is_found():
    intruder = Square()

    def blink(label, alpha):
        scene = label.scene
        if 0.36 < alpha < 0.37:
            scene.add(intruder)
            label.set_text(mark("37", "numbers[0, 0]"))
        elif intruder in scene.mobjects:
            scene.remove(intruder)
            label.set_text("words")

    def play_it(scene):
        label = Label("words")
        label.scene = scene
        scene.play(UpdateFromAlphaFunc(label, blink, rate_func=linear), run_time=1.5)

    assert {rule for rule, _ in rules(play_it, every=0)} == {"origin", "value"}


@pytest.mark.parametrize(("seconds", "comes_back"), [(3.0, False), (7.0, True)])
def test_a_drawing_that_is_long_off_its_values_is_found_though_it_never_rests(seconds, comes_back):
    def play_it(scene):
        bars = Bars(scene.trace.numbers[0], signed=True, number=None)
        true = bars.amounts
        scene.add(bars)
        wave = UpdateFromAlphaFunc(bars, lambda b, t: setattr(b, "amounts", true * np.cos(40 * t)))
        scene.play(wave, run_time=seconds)
        if comes_back:
            bars.amounts = true
            scene.finish_beat()
        else:
            scene.remove(bars)

    found = [message for rule, message in rules(play_it) if rule == "value"]
    assert len(found) == 1
    assert found[0].startswith("its drawing is off the values of numbers[0, :] for ")


def test_a_glide_from_value_to_value_passes():
    def play_it(scene):
        bars = Bars(scene.trace.numbers[0], signed=True, number=None, limit=3.0)
        scene.add(bars)
        scene.play(bars.animate.set_values(scene.trace.numbers[1]), run_time=4)

    assert rules(play_it) == []


def test_a_finding_names_file_line_chapter_time_and_object():
    def play_it(scene):
        scene.hold(2.0)
        scene.add(Label(f"{traced(2.5, 'numbers[0, 0]'):.1f}"))
        scene.hold(1.0)

    (found,) = check_recording(recording_of(play_it))
    assert (found.topic, found.chapter, found.object) == ("tiny", "one", "Label '2.5'")
    assert found.file == "tests/scripts/test_check.py"
    assert found.line > 0
    assert found.seconds == pytest.approx(2.0, abs=0.05)
    assert str(found).startswith(f"tests/scripts/test_check.py:{found.line}  one 2.0 s  Label '2.5': shows '2.5'")


@pytest.mark.parametrize(
    ("shown", "value", "holds"),
    [
        ("0.37", 0.3749, True), ("0.37", 0.3751, False), ("−2.0", -2.04, True), ("+2.0", -2.0, False),
        ("1.0 × 10⁻⁴", 1.04e-4, True), ("1.0 × 10⁻⁴", 1.06e-4, False), ("512 KiB", 524288, True),
        ("511 KiB", 524288, False), ("43.7 K", 43744, True), ("43.8 K", 43744, False), ("37%", 0.374, True),
        ("3.7%", 0.374, False), ("31°", 30.6, True), ("1,048,576", 1048576, True), ("1,048,577", 1048576, False),
        ("yes", True, True), ("no", True, False), ("seven", 7, False), ("1e−05", 1e-5, True),
    ],
)  # fmt: skip
def test_a_written_number_is_compared_to_its_last_digit(shown, value, holds):
    assert shows(shown, value) is holds


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("numbers", NUMBERS), ("numbers[1, 2]", -0.75), ("numbers[0, :]", NUMBERS[0]),
        ("numbers[:, 1:3]", NUMBERS[:, 1:]), ("numbers[[0, 1], 0]", NUMBERS[:, 0]), ("config.seed", 0),
        ("numbers[nothing]", []),
    ],
)  # fmt: skip
def test_an_origin_names_values_of_the_trace(origin, expected):
    trace = CORE.Trace(CORE.Config(), NUMBERS, NUMBERS[:1])
    fields = Fields(trace, CORE)
    np.testing.assert_array_equal(fields.resolve(origin), np.asarray(expected))


@pytest.mark.parametrize("origin", ["nothing", "numbers[7, 0]", "numbers[0]", "config", "config.sed", "numbers.x"])
def test_an_origin_that_names_nothing_is_refused(origin):
    trace = CORE.Trace(CORE.Config(), NUMBERS, NUMBERS[:1])
    with pytest.raises((LookupError, AttributeError, ValueError)):
        Fields(trace, CORE).resolve(origin)


# -- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "side"), [([6.6, 0, 0], "right"), ([-6.6, 0, 0], "left"), ([0, 3.4, 0], "top"), ([0, -3.0, 0], "bottom")]
)
def test_words_outside_the_safe_area_are_found(place, side):
    ((rule, message),) = rules(showing(lambda s: Label("far out there").move_to(place)))
    assert rule == "safe-area"
    assert f"beyond the {side}" in message


def test_what_only_passes_through_is_not_measured():
    def play_it(scene):
        label = Label("passing").move_to([8, 0, 0])
        scene.play(label.animate.move_to([0, 0, 0]), run_time=0.5)
        scene.hold(1.0)

    assert rules(play_it) == []


def moving_on(*words, seconds):
    def play_it(scene):
        both = Group(*(Label(text).shift(0.05 * k * UP) for k, text in enumerate(words)))
        scene.add(both)
        scene.play(both.animate.shift(3 * RIGHT), run_time=seconds)
        scene.remove(both)

    return play_it


def test_text_that_overlaps_for_long_while_it_moves_is_found():
    ((rule, message),) = rules(moving_on("some words here", "other words there", seconds=3))
    assert rule == "overlap"
    assert message.startswith("'other words there' overlaps 'some words here' for ")
    assert rules(moving_on("some words here", "other words there", seconds=1)) == []


def test_words_that_move_for_long_are_measured_too():
    def tiny(scene):
        label = Label("tiny", size=0.12)
        scene.add(label)
        scene.play(label.animate.shift(2 * RIGHT), run_time=3)
        scene.remove(label)

    assert [rule for rule, _ in rules(tiny)] == ["text-size"]


def test_text_on_text_and_text_across_cells_are_found():
    def word(scene):
        return Label("some words that reach over").move_to([0.3, 0.05, 0])

    ((rule, message),) = rules(showing(lambda s: Label("other words"), word))
    assert rule == "overlap"
    assert "overlaps 'other words'" in message
    found = rules(showing(lambda s: TensorGrid(s.trace.numbers, number=None), word))
    assert {rule for rule, _ in found} == {"overlap"}
    assert "lies across a cell of TensorGrid 'numbers'" in found[0][1]
    found = rules(showing(word, lambda s: TensorGrid(s.trace.numbers, number=None)))
    assert "is half under a cell" in found[0][1]


def test_a_row_that_lies_over_its_place_and_words_inside_one_cell_do_not_overlap():
    def play_it(scene):
        grid = TensorGrid(scene.trace.numbers, cell=(1.2, 0.8), number=None)
        numbered = TensorGrid(scene.trace.numbers).move_to([0, 2, 0])
        scene.add(grid, numbered, numbered.row(1), Label("in", color=theme.TEXT).move_to(grid.cell_center(1, 0)))
        scene.hold(1.0)

    assert rules(play_it) == []


def test_words_that_are_too_small_or_too_faint_are_found():
    ((rule, message),) = rules(showing(lambda s: Label("tiny", size=0.12)))
    assert (rule, message) == ("text-size", "'tiny' is 0.120 high; the smallest that can be read is 0.16")
    ((rule, message),) = rules(showing(lambda s: Label("faint", color=theme.LINES)))
    assert rule == "contrast"
    assert message.startswith("'faint' has contrast ")
    assert message.endswith("in the dark theme; it needs 4.5:1")


def test_words_that_step_back_after_they_could_be_read_pass():
    def play_it(scene):
        label = Label("leads, then recedes")
        scene.add(label)
        scene.hold(0.5)
        scene.play(label.animate.set_opacity(0.4), run_time=0.3)
        scene.hold(1.0)

    assert rules(play_it) == []


def test_the_ground_under_a_text_counts_for_its_contrast():
    def panel(scene):
        return Painting(lambda p: p.box(-2, -1, 4, 2, fill=theme.TEXT), [("length", "numbers[0, 0]")])

    found = rules(showing(panel, lambda s: Label("white on white")))
    assert [message for rule, message in found if rule == "contrast"] == [
        "'white on white' has contrast 1.00:1 in the dark theme; it needs 4.5:1"
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("background_color", "#888888", "the ground is not the theme's"),
        ("frame_width", 40.0, "the camera does not show the whole frame"),
        ("frame_center", np.array([3.0, 0.0, 0.0]), "the camera does not show the whole frame"),
    ],
)
def test_a_camera_that_shows_something_else_is_found(name, value, message):
    def play_it(scene):
        setattr(scene.camera, name, value)
        scene.hold(0.5)

    assert rules(play_it) == [("camera", message)]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_captions_that_are_too_fast_or_stand_too_long_are_found():
    def fast(scene):
        scene.say("A caption of so many words that no one can read it.")
        scene.captions[-1].end = scene.now
        band, scene._band = scene._band, None
        scene.remove(band)

    found = rules(fast)
    assert {rule for rule, _ in found} >= {"caption"}
    assert any("characters a second" in message for _, message in found)
    ((rule, message),) = rules(lambda scene: scene.hold(9))
    assert (rule, message) == ("caption", "stands for 9.0 s; allowed are 1 to 7 s")


def test_a_caption_over_the_cut_and_a_chapter_shorter_than_its_captions_are_found():
    def play_it(scene):
        scene.captions[-1].end = scene.now + 60

    recording = recording_of(play_it)
    recording.captions[-1].end = recording.seconds + 1
    assert any("ends 1.00 s after its chapter" in found.message for found in check_recording(recording))
    recording = recording_of(lambda scene: None)
    recording.seconds = 0.5
    assert "length" in {found.rule for found in check_recording(recording)}


def test_captions_that_only_the_picture_or_only_the_tracks_have_are_found():
    def play_it(scene):
        scene.finish_beat()
        band = CaptionBand("By hand, and gone before it is read.")
        scene.add(band)
        scene.hold(0.4)
        scene.remove(band)
        scene.captions.append(Caption(scene.now, scene.now + 2, "In the tracks."))
        scene.hold(2)

    assert rules(play_it) == [
        ("caption", "is shown, but not said: use self.say"),
        ("caption", "is said, but not shown"),
    ]


def test_a_chapter_that_says_nothing_is_found():
    recording = recording_of(lambda scene: None)
    recording.scene.captions.clear()
    assert "says nothing" in {found.message for found in check_recording(recording)}


@pytest.mark.parametrize(("seconds", "found"), [(84.9, True), (85, False), (120, False), (120.1, True)])
def test_a_video_has_85_to_120_seconds(seconds, found):
    assert bool(list(check_length("tiny", "x.py", seconds))) is found


def test_an_error_of_the_scene_is_a_finding_with_its_line():
    def play_it(scene):
        scene.say("Still fine.")
        raise ZeroDivisionError("as planned")

    (found,) = check_recording(recording_of(play_it))
    assert (found.rule, found.object, found.message) == ("plays", "ZeroDivisionError", "as planned")
    assert found.line > 0


def test_a_scene_that_ends_the_program_is_a_finding():
    def play_it(scene):
        raise SystemExit(0)

    assert rules(play_it) == [("plays", "ends the program")]


def test_a_value_that_only_drives_others_is_not_drawn():
    def play_it(scene):
        dial, label = ValueTracker(0), Label("words")
        label.add_updater(lambda words: words.set_opacity(1 - dial.get_value()))
        scene.add(label)
        scene.hold(0.5)
        scene.play(dial.animate.set_value(0.5), run_time=0.5)

    assert rules(play_it) == []


def test_a_finding_about_a_mobject_of_manim_names_the_whole_of_it():
    found = check_recording(recording_of(showing(lambda s: Group(Label("words"), Text("37").shift(DOWN)))))
    assert [(one.object, one.rule) for one in found] == [("Text", "origin")]


# -- pixels ----------------------------------------------------------------------------------------------------------


def blinking(hertz, *, share=1.0, seconds=2.0, dark=0.0, light=1.0):
    """Return (T, 90, 160) luminance of an area that blinks on a dark ground."""
    frames = int(seconds * FRAME_RATE)
    picture = np.full((frames, 90, 160), dark, dtype=np.float32)
    on = (np.arange(frames) * 2 * hertz / FRAME_RATE).astype(int) % 2 == 1
    picture[on, :, : int(160 * share)] = light
    return picture


def test_more_than_three_flashes_a_second_are_found():
    ((second, share),) = list(flashes(blinking(5, seconds=1.6), FRAME_RATE))
    assert second <= 1
    assert share == pytest.approx(1.0)


@pytest.mark.parametrize(
    "luminance",
    [blinking(2.5), blinking(5, share=0.05), blinking(5, light=0.09), blinking(5, dark=0.85), blinking(1.25)],
    ids=["two a second", "small", "weak", "bright", "one a second"],
)
def test_slow_small_weak_and_bright_changes_are_no_flashes(luminance):
    assert list(flashes(luminance, FRAME_RATE)) == []


def scattered(phases, *, hertz=4.3, rate=60, seconds=2):
    """Return luminance of which one pixel in three blinks, each in its phase (turns)."""
    time = np.arange(seconds * rate)[:, None, None] / rate
    where = np.random.default_rng(0).random((90, 160)) < 1 / 3
    return (where & ((hertz * time + phases) % 1 < 0.5)).astype(np.float32)


def test_many_small_areas_flash_together_if_they_flash_at_once():
    assert list(flashes(scattered(0.0), 60))
    assert not list(flashes(scattered(np.random.default_rng(1).random((90, 160))), 60))


def test_flashes_that_swell_and_fade_are_found():
    time = np.arange(120)[:, None, None] / 60
    swelling = np.broadcast_to(0.5 + 0.5 * np.sin(2 * np.pi * 5 * time), (120, 90, 160)).astype(np.float32)
    assert list(flashes(swelling, 60))


def test_the_luminance_is_that_of_wcag():
    frame = np.array([[[255, 255, 255], [0, 0, 0], [14, 17, 22]]], dtype=np.uint8)
    white, black, ground = relative_luminance(frame)[0]
    assert (white, black) == (pytest.approx(1), 0)
    assert ground == pytest.approx(theme.luminance("#0E1116"), rel=1e-4)


def looping(play_it):
    class Round(TopicScene):
        """Does it close?"""

        core = CORE
        takeaway = "Yes."

        @loop
        def around(self):
            play_it(self)

    return Round


def there(scene):
    grid = TensorGrid(scene.trace.numbers, cell=(1.2, 0.9), number=None, role="KEY")
    scene.add(grid)
    scene.hold(0.4)
    scene.play(grid.animate.shift(2 * RIGHT + DOWN), run_time=0.4)
    scene.hold(0.4)
    return grid


def there_and_back(scene):
    scene.play(there(scene).animate.shift(-2 * RIGHT - DOWN), run_time=0.4)


def test_a_loop_that_does_not_close_is_found():
    open_one, closed = looping(there), looping(there_and_back)
    assert {f.rule for f in check_pixels(open_one, "loop", record(open_one, "loop"))} == {"loop"}
    assert list(check_pixels(closed, "loop", record(closed, "loop"))) == []


def blinking_field(color):
    """Play: a large field of a color, asked for when it is drawn, comes and goes."""

    def play_it(scene):
        for _ in range(8):
            field = Painting(lambda p: p.box(-4, -3, 8, 6, fill=color()))
            scene.add(field)
            scene.hold(0.1)
            scene.remove(field)
            scene.hold(0.1)

    return play_it


def pixel_findings(play_it):
    scene = topic_of(play_it)
    return list(check_pixels(scene, "one", record(scene, "one")))


def test_a_blinking_chapter_is_found():
    assert [one.rule for one in pixel_findings(blinking_field(lambda: "#FFFFFF"))] == ["flashes"]


def test_a_flicker_that_fifteen_frames_a_second_would_miss_is_found():
    def play_it(scene):  # four frames of sixty for a period
        field = Painting(lambda p: p.box(-4, -3, 8, 6, fill="#FFFFFF"))
        flicker = UpdateFromAlphaFunc(field, lambda f, t: f.set_opacity(round(60 * t) % 4 < 2), rate_func=linear)
        scene.play(flicker, run_time=1)

    found = pixel_findings(play_it)
    assert [(one.rule, one.message.endswith("(dark theme)")) for one in found] == [("flashes", True)]


def test_a_ground_that_flashes_in_the_light_theme_alone_is_found():
    found = pixel_findings(blinking_field(lambda: theme.LINES))  # nearly as dark as the dark ground
    assert [(one.rule, one.message.endswith("(light theme)")) for one in found] == [("flashes", True)]
    assert theme.current() == "dark"


def test_a_loop_that_ends_almost_the_same_is_found():
    def other_number(scene):
        readout = Readout(lambda v: f"{v:.2f}", scene.trace.numbers[0, 0], size=theme.SMALL)
        scene.add(readout)
        scene.hold(0.4)
        readout.set_value(scene.trace.numbers[1, 1])
        scene.hold(0.4)

    def other_cell(scene):
        grid = TensorGrid(scene.trace.numbers, cell=(0.3, 0.3), number=None)
        scene.add(grid)
        scene.hold(0.4)
        grid.recede(rows=1, columns=2)
        scene.hold(0.4)

    def messages(play_it):
        scene = looping(play_it)
        trace = CORE.Trace(CORE.Config(), NUMBERS, NUMBERS[:1])
        return [one.message for one in check_pixels(scene, "loop", record(scene, "loop", trace=trace))]

    assert messages(other_number) == [
        "'1.00' is there only when the loop begins", "'3.00' is there only when the loop ends",
    ]  # fmt: skip
    assert messages(other_cell) == [
        "a cell is there only when the loop begins",
        "a cell is there only when the loop ends",
    ]


def test_a_gif_with_other_colors_than_the_color_map_is_found(tmp_path):
    from PIL import Image

    from scripts.pipeline.checks.pixels import low_quality_frames

    scene = looping(there_and_back)
    frames, _ = low_quality_frames(scene, "loop", (640, 360))
    for name, shift in (("true", 0), ("false", 3)):
        pictures = [Image.fromarray(np.clip(frame.astype(int) + shift, 0, 255).astype(np.uint8)) for frame in frames]
        first, *others = [picture.quantize(64) for picture in pictures]
        first.save(tmp_path / f"{name}.gif", save_all=True, append_images=others, duration=1000 / FRAME_RATE, loop=0)
    assert list(check_gif(scene, tmp_path / "true.gif", FRAME_RATE)) == []
    (found,) = check_gif(scene, tmp_path / "false.gif", FRAME_RATE)
    assert found.rule == "gif-color"


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_findings_as_lines_and_as_json_and_fails():
    result = call("check", "tiny", "--quick", "--jobs", 1)
    assert result.exit_code == 1  # the tiny topic lasts a few seconds
    assert "video: lasts " in result.stdout
    found = json.loads(call("check", "tiny", "--quick", "--jobs", 1, "--json").stdout)
    assert [one["rule"] for one in found] == ["length"]
    assert list(found[0]) == ["topic", "file", "line", "chapter", "seconds", "object", "rule", "message"]


def check_of(monkeypatch, *, topic=tiny.TOPIC, **parts):
    """Return what `check --json` finds in a tiny topic with other parts, and its exit code."""
    for name, part in parts.items():
        monkeypatch.setattr(tiny.Tiny, name, part)
    monkeypatch.setattr(series, "TOPICS", (topic, broken.TOPIC))
    result = call("check", topic.slug, "broken", "--quick", "--jobs", 1, "--json")
    return json.loads(result.stdout), result.exit_code


def test_a_broken_chapter_is_reported_once_and_everything_else_goes_on(monkeypatch):
    found, code = check_of(monkeypatch)
    assert code == 1
    assert [(one["topic"], one["rule"]) for one in found] == [("tiny", "length"), ("broken", "plays")]
    assert (found[1]["chapter"], found[1]["object"], found[1]["message"]) == (
        "not_fine", "ZeroDivisionError", "as planned",
    )  # fmt: skip


def test_what_a_scene_prints_does_not_get_among_the_findings(monkeypatch):
    def noisy(scene):
        print("still here")
        scene.say("A beat.")

    found, _ = check_of(monkeypatch, grid=chapter("Noisy")(noisy))
    assert [one["rule"] for one in found] == ["length", "plays"]


def test_an_error_before_the_scene_plays_is_a_finding_of_each_unit(monkeypatch):
    def refuse(scene, *_, **__):
        raise SystemExit(3)

    found, code = check_of(monkeypatch, __init__=refuse)
    assert code == 1
    assert {(one["topic"], one["chapter"], one["rule"]) for one in found} == {
        *(("tiny", unit, "plays") for unit in ("opening", "grid", "row", "ending", "loop")),
        ("broken", "not_fine", "plays"),
    }


def test_a_file_that_cannot_be_imported_is_a_finding_and_the_others_go_on(monkeypatch):
    found, code = check_of(monkeypatch, topic=replace(tiny.TOPIC, module="tests.scripts.topics.nowhere"))
    assert code == 1
    assert [(one["topic"], one["file"], one["rule"]) for one in found] == [
        ("tiny", "tests/scripts/topics/nowhere.py", "plays"),
        ("broken", "tests/scripts/topics/broken.py", "plays"),
    ]


def test_a_chapter_that_kills_its_process_takes_no_other_with_it(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (fatal.TOPIC, broken.TOPIC))
    result = call("check", "fatal", "broken", "--quick", "--jobs", 2, "--json")
    assert result.exit_code == 1
    assert [(one["topic"], one["chapter"], one["message"]) for one in json.loads(result.stdout)] == [
        ("fatal", "last", "the process that played it was killed"),
        ("broken", "not_fine", "as planned"),
    ]


@pytest.mark.parametrize(
    ("in_light", "rule", "message"),
    [
        (lambda scene: 1 / 0, "plays", "division by zero (light theme)"),
        (lambda scene: scene.add(Label("tiny", size=0.12)), "text-size", "can be read is 0.16 (light theme)"),
        (lambda scene: scene.add(Square()), "origin", "carries no origin: draw it with the kit (light theme)"),
    ],
    ids=["raises", "small", "stock"],
)  # fmt: skip
def test_what_is_wrong_in_the_light_theme_alone_is_found(monkeypatch, in_light, rule, message):
    def fickle(scene):
        scene.say("A beat.")
        if theme.current() == "light":
            in_light(scene)

    found, _ = check_of(monkeypatch, grid=chapter("Fickle")(fickle))
    (one,) = [one for one in found if one["chapter"] == "grid"]
    assert one["rule"] == rule
    assert one["message"].endswith(message)


def test_findings_are_the_same_in_every_run(monkeypatch):
    first, _ = check_of(monkeypatch, grid=chapter("Both")(lambda scene: scene.add(Label("tiny", size=0.12), Square())))
    assert first == check_of(monkeypatch)[0]
    assert len(first) > 3


def test_a_topic_without_a_scene_is_refused(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (replace(tiny.TOPIC, status=series.PLANNED), broken.TOPIC))
    result = call("check", "tiny")
    assert result.exit_code == 2
    assert "tiny has no scene yet" in result.stderr


def test_other_settings_can_be_checked_too(monkeypatch):
    def largest(scene):
        scene.say("A beat.")
        scene.add(Label(f"first {scene.trace.shifted[0, 0]:.2f}"))
        if scene.trace.config.shift > 0:
            scene.add(Label("tiny", size=0.12).move_to([0, -2, 0]))

    monkeypatch.setattr(tiny.Tiny, "row", chapter("Largest")(largest))
    for settings, expected in ((), ["length"]), (("--set", "shift=0.5"), ["text-size", "length"]):
        found = json.loads(call("check", "tiny", *settings, "--quick", "--jobs", 1, "--json").stdout)
        assert [one["rule"] for one in found] == expected


def test_the_pixels_are_those_of_the_settings(monkeypatch):
    def moving(scene):
        grid = TensorGrid(scene.trace.numbers)
        scene.add(grid)
        scene.play(grid.animate.shift(RIGHT), run_time=0.4)
        if scene.trace.config.seed == 0:
            scene.play(grid.animate.shift(-RIGHT), run_time=0.4)

    monkeypatch.setattr(tiny.Tiny, "there_and_back", loop(moving))
    for seed, expected in (0, {"length"}), (1, {"length", "loop"}):
        found = json.loads(call("check", "tiny", "--set", f"seed={seed}", "--jobs", 1, "--json").stdout)
        assert {one["rule"] for one in found} == expected


def test_a_setting_that_a_topic_does_not_have_is_refused_before_any_check(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC, broken.TOPIC))
    result = call("check", "tiny", "broken", "--quick", "--jobs", 1, "--set", "shift=2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: tiny: shift must be in -1.0..1.0, got 2.0\n"
