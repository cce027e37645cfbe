"""The machinery of chapters: what plays, how long captions stay, and what the ledger remembers."""

import numpy as np
import pytest
import torch
from manim import FadeIn, FadeOut, linear, tempconfig

from scenes import series
from scenes.kit import theme
from scenes.kit.label import Label, Readout, StepThrough
from scenes.kit.motion import ColumnByColumn, RowByRow, Visit, pour
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.topic_scene import CaptionBand, Header, TopicScene, chapter, loop
from scenes.kit.traced import traced
from tests.scripts.topics import tiny

# Importing the small topic has put it into the registry, as it must in a worker; other tests want the real one.
series.TOPICS = tuple(topic for topic in series.TOPICS if topic is not tiny.TOPIC)
CORE = tiny.Tiny.core
SMALL = {"pixel_width": 160, "pixel_height": 90, "frame_rate": 10, "dry_run": True, "verbosity": "ERROR"}


def play(scene_class, unit):
    """Play one unit of a scene over a fixed trace; writes nothing."""
    numbers = torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -0.75]])
    trace = CORE.Trace(CORE.Config(), numbers, numbers[:1])
    with tempconfig(SMALL):
        scene = scene_class(trace=trace, unit=unit)
        scene.render()
    return scene


class Story(TopicScene):
    """Does it work?"""

    core = CORE
    takeaway = "It does."

    @chapter("Second to be named, first to be defined")
    def zebra(self):
        """Order is that of definition."""
        self.say("A beat with words that take a good two seconds to read.")
        self.say("The next.")

    @chapter("A grid")
    def apple(self):
        """Numbers come and go."""
        grid = TensorGrid(self.trace.numbers)
        self.play(FadeIn(grid), run_time=0.5)
        self.hold(1.0)
        self.play(FadeOut(grid), run_time=0.5)
        self.hold(0.5)

    @loop
    def around(self):
        """Nothing moves."""
        self.add(TensorGrid(self.trace.numbers))
        self.hold(0.5)


def test_chapters_play_in_the_order_of_their_definition_between_title_and_end_card(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC,))
    assert [unit.name for unit in Story.units()] == ["opening", "zebra", "apple", "ending"]
    assert Story.units()[1].sentence == "Order is that of definition."
    assert Story.has_loop()


def test_a_subclass_keeps_the_chapters_it_does_not_change():
    class Longer(Story):
        """Does it work longer?"""

        @chapter("A last one")
        def last(self):
            """One more."""

    assert [unit.name for unit in Longer.chapter_units()] == ["zebra", "apple", "last"]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC,))


def test_a_beat_lasts_until_its_words_could_be_read(registered):
    scene = play(Story, "zebra")
    first, second = scene.captions
    assert first.end - first.start >= len(first.text) / theme.READING_SPEED
    assert second.start == pytest.approx(first.end)
    assert second.end - second.start >= theme.SHORTEST_CAPTION
    assert scene.now >= second.end + theme.HOLD - 0.05


def test_the_ledger_says_what_was_on_screen_from_when_to_when(registered):
    scene = play(Story, "apple")
    entry = next(e for e in scene.ledger if e["origin"] == "numbers[0, 1]")
    assert (entry["object"], entry["shown"], entry["start"]) == ("TensorGrid", "−2.0", 0.0)
    assert entry["end"] == pytest.approx(1.9, abs=0.11)  # it leaves with the fade, before the chapter ends
    assert scene.now > 2.2


def test_the_ledger_sees_what_comes_and_goes_within_one_motion(registered):
    class Stepping(Story):
        @chapter("Step")
        def step(self):
            """Three values in a second."""
            readout = Readout(lambda v: f"{v:.2f}", self.trace.numbers[0, 0])
            self.play(StepThrough(readout, self.trace.numbers[0]), run_time=1.0)

    shown = [entry["shown"] for entry in play(Stepping, "step").ledger]
    assert shown == ["1.00", "−2.00", "0.50"]


def test_values_can_come_up_at_moments_of_their_own(registered):
    class Stepping(Story):
        @chapter("Step")
        def step(self):
            """Nothing changes until the first moment."""
            readout = Readout(lambda v: f"{v:.2f}", self.trace.numbers[0, 2])
            self.play(StepThrough(readout, self.trace.numbers[0, :2], at=(0.5, 1.0), rate_func=linear), run_time=1.0)

    entries = {entry["shown"]: entry for entry in play(Stepping, "step").ledger}
    assert list(entries) == ["0.50", "1.00", "−2.00"]
    assert entries["1.00"]["start"] == pytest.approx(0.5, abs=0.11)
    with pytest.raises(ValueError, match="2 values need as many moments, got 1"):
        StepThrough(Readout(lambda v: f"{v:.0f}", traced(5, "one")), traced((1, 2), "two"), at=(0.5,))


def test_a_loop_has_neither_header_nor_captions(registered):
    scene = play(Story, "loop")
    assert scene.captions == []
    assert not any(isinstance(thing, Header | CaptionBand) for thing in scene.mobjects)


def test_the_whole_scene_names_the_start_of_each_unit(registered):
    scene = play(Story, None)
    assert [name for name, _ in scene.unit_starts] == ["opening", "zebra", "apple", "ending"]
    starts = [start for _, start in scene.unit_starts]
    assert starts == sorted(starts)


def test_holds_are_whole_frames(registered):
    class Holding(Story):
        @chapter("Hold")
        def hold_odd(self):
            """A third of a second."""
            before = self.now
            self.hold(0.33)
            self.held = self.now - before

    assert play(Holding, "hold_odd").held == pytest.approx(0.4)  # four frames of a tenth


def test_clear_stage_keeps_header_caption_and_what_is_asked_for(registered):
    class Clearing(Story):
        @chapter("Clear")
        def clearing(self):
            """Two labels, one stays."""
            self.say("Two words.")
            kept, gone = Label("kept"), Label("gone")
            self.play(FadeIn(kept, gone), run_time=0.2)
            self.clear_stage(kept)
            self.left = [type(thing).__name__ for thing in self.mobjects]

    assert sorted(play(Clearing, "clearing").left) == ["CaptionBand", "Header", "Label"]


def test_a_caption_that_is_too_long_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"at most 2 lines of 42 characters, .*split it into two beats"):
        CaptionBand("one two three four five " * 5)


def test_captions_break_into_lines_of_about_equal_length_and_never_at_a_hyphen():
    lines = CaptionBand("Models that share key-value heads stay small.").lines
    assert lines == ["Models that share key-value", "heads stay small."]


def test_rows_appear_one_after_the_other(registered):
    class Rows(Story):
        seen: list

        @chapter("Rows")
        def rows(self):
            """Row by row."""
            self.seen = []
            grid = TensorGrid(self.trace.numbers).hide()
            grid.add_updater(lambda g: self.seen.append(g.presence[:, 0].copy()))
            self.add(grid)
            self.play(RowByRow(grid), run_time=1.0)

    presences = play(Rows, "rows").seen
    assert all(first >= second for first, second in presences)
    assert presences[-1][0] == 1


def test_columns_appear_one_after_the_other(registered):
    class Columns(Story):
        @chapter("Columns")
        def columns(self):
            """Column by column."""
            self.seen = []
            self.grid = TensorGrid(self.trace.numbers).hide()
            self.play(ColumnByColumn(self.grid), run_time=1.0)

        def update_to_time(self, t):
            super().update_to_time(t)
            self.seen.append(self.grid.presence.copy())

    scene = play(Columns, "columns")
    assert all((presence == presence[0]).all() for presence in scene.seen)  # a column is there as a whole
    assert all((np.diff(presence[0]) <= 0).all() for presence in scene.seen)
    assert any(presence[0, 0] == 1 and presence[0, -1] == 0 for presence in scene.seen)
    assert (scene.grid.presence == 1).all()


def test_a_visit_rests_at_every_stop_in_order(registered):
    class Visiting(Story):
        @chapter("Visit")
        def visiting(self):
            """Two stops."""
            self.rests = []
            mover, stops = Label("x"), [[1, 0, 0], [1, 1, 0]]
            self.play(Visit(mover, stops, on_rest=lambda k, share: self.rests.append((k, share))), run_time=1.0)
            self.place = mover.get_center()

    scene = play(Visiting, "visiting")
    assert scene.rests[-1] == (1, 1.0)
    assert [k for k, _ in scene.rests] == sorted(k for k, _ in scene.rests) or (0, 1.0) in scene.rests
    assert scene.place[:2] == pytest.approx([1, 1])


def test_poured_rows_end_in_their_target_and_are_gone(registered):
    class Pouring(Story):
        @chapter("Pour")
        def pouring(self):
            """Two rows into one."""
            grid = TensorGrid(self.trace.numbers)
            self.rows = [grid.row(k) for k in range(2)]
            target = grid.row(0).shift([0, 2, 0])
            self.play(pour(self.rows, target), run_time=0.5)
            self.target = target.get_center()

    scene = play(Pouring, "pouring")
    for row in scene.rows:
        assert row.opacity == 0
        assert row.get_center() == pytest.approx(scene.target)


def test_a_readout_never_shows_a_number_between_two_real_ones(registered):
    class Counting(Story):
        @chapter("Count")
        def counting(self):
            """From one value to another."""
            self.texts = set()
            readout = Readout(lambda v: f"{v:.2f}", self.trace.numbers[0, 0])
            readout.add_updater(lambda r: self.texts.add(r.text))
            self.play(readout.animate.set_value(self.trace.numbers[0, 1]), run_time=1.0)

    assert play(Counting, "counting").texts == {"1.00", "−2.00"}
