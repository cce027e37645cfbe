"""What the attention video shows: real lengths that become scores, weights that add up, sums that are the model's."""

from functools import partial

import numpy as np
import pytest

from internals_math import trace_store
from scenes.attention import LOOP_ROWS, Attention
from scenes.kit.bars import Bars
from scenes.kit.key_plane import KeyPlane
from scenes.kit.label import Label, Readout
from scenes.kit.number_line import NumberLine
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.traced import read_text, traced
from tests.scenes import watching
from tests.scenes.watching import pictures

seen_in = partial(watching.seen_in, Attention)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(Attention.core)


def nothing(scene):
    return None


def grids(scene, field):
    return [grid for grid in pictures(scene, TensorGrid) if grid.values.field == field]


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("needs_neighbors", "So they cannot say what comes next. Which other words can?"),
        ("three_views", "The same word, projected three ways: ask, advertise, offer."),
        ("match", "Score: how far each key points along the query."),
        ("why_scale", "Divide by √d: the spread is the same at any width."),
        ("become_weights", "Each row becomes weights that add up to one."),
        ("mix_values", "The answer is a weighted average of what others offer."),
        ("four_heads", "And what the heads found simply adds up."),
        ("which_matter", "Some heads do a job we can name. Others hardly matter."),
    ],
)
def test_every_chapter_says_its_sentence(unit, sentence):
    assert [chapter.name for chapter in Attention.chapter_units()].count(unit) == 1
    assert sentence in [caption.text for caption in seen_in(unit, nothing)[0].captions]


def test_equal_words_enter_with_equal_columns_that_come_to_lie_on_each_other(trace):
    def look(scene):
        columns = grids(scene, "embeddings")
        return [(str(grid.values.origin), float(grid.get_center()[0])) for grid in columns]

    _, seen = seen_in("needs_neighbors", look)
    home = dict(seen[0])
    last = int(trace.query_position)
    twins = trace.same_positions[:-1].tolist()
    assert len(twins) == 2
    for twin in twins:
        places = [x for frame in seen for origin, x in frame if origin == f"embeddings[{twin}, :]"]
        assert max(places) == pytest.approx(home[f"embeddings[{last}, :]"], abs=0.1)  # one frame before the end


def test_a_key_lays_down_the_very_length_that_becomes_its_score(trace):
    scene, seen = seen_in("match", lambda scene: [bar.tip(0) for bar in pictures(scene, Bars) if not bar.names])
    (plane,), (bars,) = pictures(scene, KeyPlane), pictures(scene, Bars)
    np.testing.assert_allclose(plane.dropped, 1)
    np.testing.assert_allclose(bars.presence, 1)
    zero = bars.to_scene((float(bars.zero) - 0.5) * bars.local_width, 0)[0]
    for k, length in enumerate(trace.key_plane[:, 0].tolist()):
        assert bars.tip(k)[0] - zero == pytest.approx(length * plane.unit, abs=1e-4)
    assert any(seen)  # lengths were on their way, they did not jump
    best = int(trace.weights[trace.query_position].argmax())
    assert (f"{float(trace.scores[-1, best]):+.1f}", f"scores[12, {best}]") in bars.ledger()


def test_an_angle_is_written_beside_the_key_it_belongs_to(trace):
    scene, _ = seen_in("match", nothing)
    written = {entry["origin"]: entry["shown"] for entry in scene.ledger if "°" in entry["shown"]}
    order = trace.scores[-1].argsort().tolist()
    assert set(written) == {f"key_angle[{order[-1]}]", f"key_angle[{order[0]}]"}
    for origin, text in written.items():
        index = int(origin.split("[")[1][:-1])
        assert text == f"{float(trace.key_angle[index]):.0f}°"


def test_beads_fly_apart_with_the_width_and_come_back_with_the_factor(trace):
    def look(scene):
        lines = pictures(scene, NumberLine)
        return (lines[0].values[0].field, float(np.ptp(lines[0].places))) if lines else None

    _, seen = seen_in("why_scale", look)
    raw = [spread for field, spread in seen if field == "example_scores_raw"]
    widest = float(trace.example_scores_raw[-1].max() - trace.example_scores_raw[-1].min())
    assert max(raw) == pytest.approx(widest, abs=0.01)
    scaled = float(trace.example_scores_scaled[-1].max() - trace.example_scores_scaled[-1].min())
    own = trace.dk_grid.tolist().index(trace.head_dim)
    last = trace.example_scores_scaled[own]
    assert seen[-1] == ("example_scores_scaled", pytest.approx(float(last.max() - last.min()), abs=0.01))
    assert widest > 10 * scaled


def test_the_loss_with_and_without_the_factor_is_measured(trace):
    scene, _ = seen_in("why_scale", nothing)
    assert {bar.values.field: bar.texts for bar in pictures(scene, Bars)} == {
        "loss_base": [f"{trace.loss_base:.2f}"],
        "loss_unscaled": [f"{trace.loss_unscaled:.2f}"],
    }


def test_scores_of_later_words_are_struck_out_before_the_softmax(trace):
    def look(scene):
        scores, weights = grids(scene, "scores"), grids(scene, "weights_seen")
        return (scores[0].presence.copy() if scores else None, len(weights))

    scene, seen = seen_in("become_weights", look)
    struck = [presence for presence, weights in seen if presence is not None and not weights]
    np.testing.assert_allclose(struck[0], 1)
    np.testing.assert_allclose(struck[-1], trace.mask.numpy(), atol=0.1)
    assert not any(presence is not None for presence, weights in seen if weights)
    (weights,), (sums,) = grids(scene, "weights_seen"), grids(scene, "weight_sums")
    assert {text for row in sums.texts for text in row} == {"1.00"}
    assert weights.texts[1][2:] == [""] * 11  # no cell at all where the mask hides


def test_the_sum_grows_row_by_row_to_the_models_own_output(trace):
    def look(scene):
        running = grids(scene, "partial_outputs")
        counts = [text for text in pictures(scene, Readout) if text.value.field == "partial_weights"]
        return (running[0].values.origin, running[0].shade.copy(), counts[0].text) if running and counts else None

    scene, seen = seen_in("mix_values", look)
    assert [f"partial_outputs[{k}, :]" for k in range(13)] == list(dict.fromkeys(origin for origin, *_ in seen))
    assert seen[-1][2] == "1.00 of the weight"
    (outputs,) = grids(scene, "outputs")
    np.testing.assert_allclose(seen[-1][1][0] * outputs.limit, trace.outputs[12], atol=0.05)  # a frame before the end
    shown = np.flatnonzero(outputs.presence[:, 0] > 0.9).tolist()
    assert shown == [int(trace.even_position), int(trace.query_position)]


def test_each_head_finds_its_own_word_and_all_four_sums_are_shown(trace):
    def look(scene):
        stream = [*grids(scene, "residual_before"), *grids(scene, "residual_steps")]
        return stream[0].values.origin if stream else None

    scene, seen = seen_in("four_heads", look)
    assert list(dict.fromkeys(seen)) == ["residual_before", *(f"residual_steps[{k}, :]" for k in range(4))]
    texts = [label.text for label in pictures(scene, Label)]
    for word, weight in zip(trace.strongest_token, trace.strongest_weight.tolist(), strict=True):
        assert f"{word} {weight:.2f}" in texts
    assert f"after the last layer: “{trace.next_token}” {trace.next_prob:.2f}" in texts


def test_every_head_has_its_map_its_loss_and_only_a_measured_job(trace):
    scene, _ = seen_in("which_matter", nothing)
    assert len(grids(scene, "all_weights")) == 12
    written = {bar.values.origin: bar.texts[0] for bar in pictures(scene, Bars)}
    for layer in range(3):
        for head in range(4):
            rise = traced(trace.loss_head_ablated, "loss")[layer, head]
            assert written[f"loss_head_ablated[{layer}, {head}]"] == read_text(f"{rise:+.3f}").plain
    jobs = [label.text for label in pictures(scene, Label) if "of its weight" in label.text]
    assert jobs == [
        f"{name}\nwith {score:.2f} of its weight"
        for name, score in zip(trace.skill_names, trace.skill_scores.tolist(), strict=True)
    ]


def test_in_the_loop_a_query_visits_every_key_it_may_see_and_leaves_a_weight(trace):
    def look(scene):
        columns, queries = grids(scene, "weights_seen"), grids(scene, "q_rot")
        if not columns or not queries:
            return None
        return columns[0].values.origin, int((columns[0].presence > 0).sum())

    scene, seen = seen_in("loop", look, frame_rate=20)  # as in the gallery
    count = len(trace.tokens)
    for row in LOOP_ROWS:
        filled = [cells for origin, cells in seen if origin == f"weights_seen[{count + row}, :]"]
        assert filled == sorted(filled)
        assert filled[0] < 3
        assert filled[-1] == count + row + 1
    assert 4 <= scene.now <= 8


def test_in_the_loop_the_row_that_visits_the_keys_is_called_the_query():
    def look(scene):
        queries = grids(scene, "q_rot")
        names = [label for label in pictures(scene, Label) if label.text == "query"]
        return (queries, names) if queries else None

    _, seen = seen_in("loop", look)
    assert len(seen) > 10
    for (query,), (name,) in seen:
        assert name.get_left()[0] > query.get_right()[0]
        assert name.get_center()[1] == pytest.approx(query.get_center()[1], abs=0.05)


def test_another_question_is_drawn_as_well():
    core = Attention.core
    config = core.Config(prompt="the fox took the key to the hen . the", query_index=3, layer=0, head=1)
    trace = trace_store.get(core, config)
    for unit in [chapter.name for chapter in Attention.chapter_units()] + ["loop"]:
        scene, _ = seen_in(unit, nothing, trace)
        assert scene.now > 5
