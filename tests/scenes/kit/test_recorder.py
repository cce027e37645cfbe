"""Record mode notes what would have been drawn: where, how large, in which color, for how long."""

import numpy as np
import pytest
import torch
from manim import FadeIn, tempconfig

from scenes import series
from scenes.kit import theme
from scenes.kit.formula import Formula
from scenes.kit.label import Label
from scenes.kit.painter import Painter
from scenes.kit.recorder import BOX, TEXT, RecordingPainter, record
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.topic_scene import TopicScene, chapter
from scenes.kit.traced import Traced
from tests.scenes.kit.drawing import pixels
from tests.scripts.topics import tiny

series.TOPICS = tuple(topic for topic in series.TOPICS if topic is not tiny.TOPIC)
CORE = tiny.Tiny.core
NUMBERS = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -0.75]])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC,))


def recorded(play_it, **options):
    """Record one chapter that calls `play_it(scene)`."""

    class One(TopicScene):
        """Is it recorded?"""

        core = CORE
        takeaway = "Yes."

        @chapter("One")
        def one(self):
            """One."""
            play_it(self)

    return record(One, "one", trace=CORE.Trace(CORE.Config(), NUMBERS, NUMBERS[:1]), **options)


def show(*pictures):
    def play_it(scene):
        scene.add(*(picture() for picture in pictures))
        scene.hold(1.0)

    return play_it


def test_a_text_is_noted_with_its_words_size_color_and_place():
    label = Label("fits", size=0.3, color=theme.QUERY).move_to([2, 1, 0])
    (mark,) = RecordingPainter.marks_of(label.scale(0.5))
    assert (mark.kind, mark.text, mark.color) == (TEXT, "fits", theme.QUERY)
    assert mark.size == pytest.approx(0.15)
    assert (mark.left + mark.right) / 2 == pytest.approx(2, abs=0.02)
    assert mark.bottom <= label.get_bottom()[1] + 1e-6


def test_the_noted_boxes_hold_all_that_is_painted():
    grid = TensorGrid(Traced("numbers", NUMBERS.numpy()), role="KEY").move_to([1.5, -0.7, 0]).rotate(0.4)
    image = pixels(grid)
    painted = np.argwhere((image != image[0, 0]).any(axis=-1))
    unit = image.shape[0] / 8
    top, left = painted.min(axis=0) / unit
    bottom, right = (painted.max(axis=0) + 1) / unit
    marks = RecordingPainter.marks_of(grid)
    half = image.shape[1] / unit / 2
    slack = 0.1  # half a line, and what a rotation adds to an upright box
    assert min(m.left for m in marks) + half == pytest.approx(left, abs=slack)
    assert max(m.right for m in marks) + half == pytest.approx(right, abs=slack)
    assert 4 - max(m.top for m in marks) == pytest.approx(top, abs=slack)
    assert 4 - min(m.bottom for m in marks) == pytest.approx(bottom, abs=slack)


def test_every_word_of_the_painter_is_noted():
    """A word that the recorder does not know would draw on a cairo context that is not there."""
    words = {name for name in vars(Painter) if not name.startswith("_") and name != "ink"}
    assert words - set(vars(RecordingPainter)) <= {"arrow"}  # made of polylines


def test_what_does_not_change_is_one_state_and_what_moves_is_many():
    def play_it(scene):
        moving, resting = Label("moving"), Label("resting")
        scene.add(resting)
        scene.hold(0.5)
        scene.play(moving.animate.shift([1, 0, 0]), run_time=1.0)

    states = {}
    for look in recorded(play_it).looks:
        for thing in look.things:
            states.setdefault(thing.name, set()).add(id(thing))
    assert len(states["Label 'resting'"]) == 1
    assert len(states["Label 'moving'"]) > 5


def test_times_and_length_are_those_of_the_rendered_video():
    def play_it(scene):
        scene.say("A beat of some words.")
        scene.play(FadeIn(TensorGrid(scene.trace.numbers)), run_time=0.55)

    recording = recorded(play_it)
    with tempconfig({"pixel_width": 160, "pixel_height": 90, "frame_rate": 60, "dry_run": True}):
        scene = type(recording.scene)(unit="one", trace=recording.scene.full_trace)
        scene.render()
    assert recording.seconds == pytest.approx(scene.now)
    assert recording.captions == scene.captions
    assert recording.scene.ledger == scene.ledger
    ends = [look.end for look in recording.looks]
    assert [look.start for look in recording.looks][1:] == pytest.approx(ends[:-1])


def test_the_parts_of_a_formula_are_one_text_also_when_one_goes_its_own_way():
    def play_it(scene):
        law = Formula("{{ q : query }} dot k / sqrt(d)", size=0.3, query="QUERY")
        scene.add(law)
        scene.hold(0.5)
        scene.play(law.select("query").animate.shift([0, 0.5, 0]), run_time=0.5)
        scene.hold(0.5)

    recording = recorded(play_it)
    texts = [mark for thing in recording.looks[0].things for mark in thing.marks if mark.kind == TEXT and mark.size]
    formula = [mark for mark in texts if "sqrt" in mark.text]
    assert {mark.color.upper() for mark in formula} == {theme.QUERY, theme.TEXT}
    assert formula[0].size == pytest.approx(0.3)
    assert all(mark.text for thing in recording.looks[-1].things for mark in thing.marks if mark.kind != BOX)


def test_an_error_of_the_scene_is_part_of_the_recording():
    def play_it(scene):
        scene.hold(0.5)
        raise ZeroDivisionError("as planned")

    recording = recorded(play_it)
    assert isinstance(recording.error, ZeroDivisionError)
    assert recording.seconds == pytest.approx(0.5)
    assert recording.error_line > 0


@pytest.mark.parametrize("name", theme.THEMES)
def test_a_recording_has_the_colors_of_its_theme_and_leaves_the_current_one(name):
    recording = recorded(show(lambda: Label("words")), theme_name=name)
    colors = {mark.color for thing in recording.looks[-1].things for mark in thing.marks}
    assert theme.THEMES[name]["TEXT"] in colors
    assert theme.current() == "dark"
