"""What the RoPE video shows: angles that are the real ones, a wedge that is rigid, words that come from the trace."""

import math

import numpy as np
import pytest

from internals_math import trace_store
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.number_line import NumberLine
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import read_text, traced
from scenes.kit.vector_plane import VectorPlane
from scenes.rope import RoPE
from tests.scenes.watching import pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(RoPE.core)


def nothing(scene):
    return None


def captions(unit, trace=None):
    return [caption.text for caption in watched(RoPE, unit, nothing, trace)[0].captions]


def test_the_video_has_the_seven_chapters_of_its_story():
    assert [unit.title for unit in RoPE.chapter_units()] == [
        "A dot product is blind to order",
        "A number that turns",
        "Only the difference survives",
        "Four clock hands",
        "A sum of waves",
        "What the model sees",
        "Longer than trained",
    ]


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("blind_to_order", "Without positions, the first layer cannot tell these apart."),
        ("turning", "Position m turns the arrow by m times theta."),
        ("rigid_wedge", "Move both words together and the score stays put."),
        ("clock_hands", "Fast hands see neighbors, slow hands see far away."),
        ("waves", "Each pair adds one wave of the distance."),
        ("scores_seen", "Shifted by 1,000 positions: the same logits, to rounding."),
        ("longer", "Slow the hands down and old angles cover new positions."),
    ],
)
def test_every_chapter_says_its_sentence(unit, sentence):
    assert sentence in captions(unit)


def test_numbers_in_captions_are_those_of_the_trace(trace):
    def written(field, value, spec):
        return read_text(format(traced(value, field), spec)).plain

    first, last = (written("score_apart", trace.score_apart[k], ".1f") for k in (0, -1))
    assert f"Move the query alone and the score goes from {first} to {last}." in captions("rigid_wedge")
    slowest = written("wavelengths", trace.wavelengths[-1], ".0f")
    assert any(text.endswith(f"the slowest in {slowest}.") for text in captions("clock_hands"))
    losses = [written("loss", loss[-1], ".2f") for loss in (trace.loss_none, trace.loss_ntk, trace.loss_linear)]
    said = " ".join(captions("longer"))
    assert f"{losses[0]} as trained, {losses[1]} with slow hands slower" in said
    assert f"without training for it: {losses[2]}." in said


def test_swapped_words_take_their_weights_along_and_leave_the_output_as_it_was(trace):
    first, second = RoPE.core.SWAPPED

    def look(scene):
        bars = pictures(scene, Bars)
        return (bars[0].values.field, bars[0].places.copy()) if bars else None

    scene, seen = watched(RoPE, "blind_to_order", look)
    stood = [places for field, places in filter(None, seen) if field == "swap_test.weights_before"]
    assert stood[0][first] == first
    assert (stood[-1][first], stood[-1][second]) == (second, first)
    assert any(first < places[first] < second for places in stood)  # it went there, it did not jump
    shown = {entry["origin"]: entry["shown"] for entry in scene.ledger if entry["object"] == "TensorGrid"}
    for column in range(len(trace.q)):
        assert shown[f"swap_test.output_before[{column}]"] == shown[f"swap_test.output_after[{column}]"]
        assert f"swap_test.rope_output_before[{column}]" in shown


@pytest.mark.parametrize("unit", ["rigid_wedge", "loop"])
def test_both_arrows_turn_by_the_real_angle_and_neither_wedge_nor_score_moves(unit, trace):
    def look(scene):
        """Return the query's direction, the wedge and the end of the bar while both words are on their way."""
        (plane,), bars, lines = (pictures(scene, kind) for kind in (VectorPlane, Bars, NumberLine))
        at_home = lines and lines[0].places[0] < int(trace.key_positions[0]) + 1e-6
        return None if at_home else (float(plane.angles[0]), plane.wedge_angle(), bars[0].tip(0)[0])

    scene, seen = watched(RoPE, unit, look)
    moving = [what for what in seen if what is not None]
    assert len(moving) > 50
    angles, wedges, tips = map(np.array, zip(*moving, strict=True))
    np.testing.assert_allclose(wedges, math.radians(float(trace.angle_between[0, 0])), atol=1e-4)
    np.testing.assert_allclose(tips, tips[0], atol=1e-4)
    # 44 words on, the query has turned by 44 times theta
    (plane,) = pictures(scene, VectorPlane)
    start = float(np.arctan2(*trace.arrows_by_shift[0, 0, 0].tolist()[::-1]))
    assert float(plane.angles[0]) - start == pytest.approx(44 * float(trace.inv_freq[0]), abs=1e-3)
    assert angles[-1] - angles[0] > 6 * 2 * math.pi


def test_moving_the_query_alone_opens_the_wedge_and_moves_the_score(trace):
    def look(scene):
        planes, bars = pictures(scene, VectorPlane), pictures(scene, Bars)
        return (planes[0].wedge_angle(), float(bars[0].amounts[0])) if planes and bars else None

    _, seen = watched(RoPE, "rigid_wedge", look)
    widest, lowest = max(seen[k][0] for k in range(len(seen)) if seen[k]), min(s[1] for s in seen if s)
    assert math.degrees(widest) == pytest.approx(float(trace.apart_angles[-1, 0]), abs=1e-2)
    assert lowest == pytest.approx(float(trace.score_apart[-1]), abs=1e-4)


def test_the_words_slide_along_the_line_at_their_own_distance(trace):
    def look(scene):
        return pictures(scene, NumberLine)[0].places.copy()

    _, seen = watched(RoPE, "rigid_wedge", look)
    together = [places for places in seen if places[0] > int(trace.key_positions[0]) + 1e-9]
    assert len(together) > 40
    gaps = np.array([query - key for key, query in together])
    np.testing.assert_allclose(gaps, int(trace.word_distance), atol=1e-9)


def test_every_hand_turns_at_the_speed_of_its_pair(trace):
    def look(scene):
        return [float(plane.angles[0]) for plane in pictures(scene, VectorPlane)]

    _, seen = watched(RoPE, "clock_hands", look)
    turned = np.array(seen[-1]) - np.array(seen[0])
    np.testing.assert_allclose(turned, 44 * np.array(trace.inv_freq), atol=1e-4)


def test_the_waves_pile_up_to_the_score_by_distance(trace):
    scene, _ = watched(RoPE, "waves", nothing)
    (big,) = (chart for chart in pictures(scene, Chart) if chart.x_label)
    steps = RoPE.core.STEPS_PER_WORD
    np.testing.assert_allclose(big.heights[0][::steps], trace.score_by_distance.numpy(), atol=1e-5)


def test_shifting_the_text_changes_positions_and_no_written_score(trace):
    def look(scene):
        grids = pictures(scene, TensorGrid)
        return (grids[0].values.field, grids[0].values.origin, grids[0].texts) if grids else None

    _, seen = watched(RoPE, "scores_seen", look)
    texts = {origin: text for field, origin, text in filter(None, seen) if field == "score_matrix_shifted"}
    (rotated,) = {str(text) for field, _, text in filter(None, seen) if field == "score_matrix_rope"}
    assert len(texts) == len(trace.shift_test_shifts)
    assert {str(text) for text in texts.values()} == {rotated}


def test_the_slowest_hand_turns_as_measured_and_only_unslowed_leaves_the_trained_angles(trace):
    low, high = trace.trained_arc.tolist()

    def look(scene):
        """Return the loss that is being drawn, and the hand beside it."""
        (chart,), (hand,) = pictures(scene, Chart), pictures(scene, VectorPlane)
        drawing = [curve.y.field for curve, share in zip(chart.curves, chart.drawn, strict=True) if 0 < share < 1]
        return (drawing[0], hand.values.field, float(hand.angles[0])) if drawing else None

    _, seen = watched(RoPE, "longer", look)
    reached = {}
    for loss, field, angle in filter(None, seen):
        assert field == loss.replace("loss", "slow_hand")
        reached.setdefault(loss, []).append(angle % (2 * math.pi))
    assert max(reached["loss_none"]) > high
    for loss in ("loss_linear", "loss_ntk"):
        assert low <= min(reached[loss]) < max(reached[loss]) <= high


def test_other_words_give_another_wedge():
    trace = trace_store.get(RoPE.core, RoPE.core.Config(key_index=2))
    scene, _ = watched(RoPE, "rigid_wedge", nothing, trace)
    assert scene.captions[1].text != captions("rigid_wedge")[1]
    assert {"shown": trace.key_token, "origin": "key_token"}.items() <= {
        key: value for entry in scene.ledger if entry["origin"] == "key_token" for key, value in entry.items()
    }.items()
