"""What the latent-attention video shows: a matrix that moves, scores that stay, keys that are not there any more."""

import numpy as np
import pytest

from internals_math import trace_store
from scenes.kit.bars import Bars
from scenes.kit.label import Label
from scenes.kit.shapes import Frame
from scenes.kit.vector_plane import VectorPlane
from scenes.multi_latent_attention import MultiLatentAttention
from tests.scenes.watching import grids, pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(MultiLatentAttention.core)


def shown_scores(scene):
    """Return the texts of the scores that are there, and whether keys and the matrix are."""
    scores = grids(scene, "scores_content")
    texts = [grid.texts[row][0] for grid in scores for row in range(grid.rows) if grid.presence[row, 0] > 0]
    keys = any(grid.presence.max() > 0 for grid in grids(scene, "k_nope"))
    matrices = grids(scene, "w_uk")
    return tuple(texts), keys, tuple(matrices[0].get_center()[:2]) if matrices else None


def test_in_the_loop_the_matrix_moves_there_and_back_while_no_score_changes(trace):
    scene, seen = watched(MultiLatentAttention, "loop", shown_scores)
    scores = {texts for texts, _, _ in seen}
    assert len(scores) == 1
    assert len(next(iter(scores))) == len(trace.tokens)
    places = np.array([place for _, _, place in seen])
    assert np.allclose(places[0], shown_scores(scene)[2])
    farthest = np.linalg.norm(places - places[0], axis=1).argmax()
    assert np.linalg.norm(places[farthest] - places[0]) > 2
    assert seen[0][1]
    assert not seen[farthest][1]  # with the matrix at the query there are no keys
    assert seen[-1][1]


def test_the_loop_says_that_there_are_no_keys_only_while_there_are_none():
    def look(scene):
        said = [label.text for label in pictures(scene, Label) if label.opacity > 0]
        return "no keys" in said, "keys of one head" in said, bool(grids(scene, "k_nope"))

    _, seen = watched(MultiLatentAttention, "loop", look)
    assert any(none for none, _, _ in seen)
    assert all(named == drawn and not (none and drawn) for none, named, drawn in seen)


def test_once_the_matrix_has_moved_no_key_comes_back_and_the_scores_stay(trace):
    _, seen = watched(MultiLatentAttention, "never_rebuild", shown_scores)
    full = [k for k, (texts, _, _) in enumerate(seen) if len(texts) == len(trace.tokens)]
    assert len({seen[k][0] for k in full}) == 1
    last_key = max(k for k, (_, keys, _) in enumerate(seen) if keys)
    assert last_key < max(full)


@pytest.mark.parametrize("unit", ["loop", "never_rebuild"])
def test_the_outlined_score_is_always_in_the_row_that_the_query_is_on(unit, trace):
    def look(scene):
        """Return the heights of the outline in the column of scores and of the one that sweeps over the latents."""
        frames = [frame for frame in pictures(scene, Frame) if frame.opacity == 1]
        scores, latents = (grids(scene, field) for field in ("scores_content", "c_kv"))
        if not scores or len(frames) != 2:
            return None
        return tuple(
            next(frame.get_y() for frame in frames if frame.get_x() == pytest.approx(grid.get_x()))
            for grid in (scores[0], latents[0])
        )

    _, seen = watched(MultiLatentAttention, unit, look)
    met = [heights for heights in seen if heights]
    assert len({round(score, 2) for score, _ in met}) >= len(trace.tokens)
    assert [score for score, _ in met] == pytest.approx([query for _, query in met])


def test_the_same_output_is_reached_by_values_and_by_the_mixed_latent():
    def look(scene):
        return bool(grids(scene, "head_output")), bool(grids(scene, "value")), bool(grids(scene, "mixed_latent"))

    _, seen = watched(MultiLatentAttention, "never_rebuild", look)
    assert any(output and value for output, value, _ in seen)
    assert any(output and mixed and not value for output, value, mixed in seen)


def test_every_distance_leaves_its_matrix_while_the_dial_turns(trace):
    def look(scene):
        dials = [dial.values.origin for dial in pictures(scene, VectorPlane)]
        return dials[0] if dials else None, len(grids(scene, "rope_coupled"))

    _, seen = watched(MultiLatentAttention, "rope_in_the_way", look)
    assert len({dial for dial, _ in seen if dial}) == len(trace.distances)
    assert seen[-1][1] == len(trace.distances) + 1  # the large one and its copies


def test_the_bill_is_drawn_to_one_scale(trace):
    def look(scene):
        return {bars.values.field: (bars.amounts.copy(), float(bars.limit)) for bars in pictures(scene, Bars)}

    _, seen = watched(MultiLatentAttention, "bill", look)
    drawn = {field: bars for frame in seen for field, bars in frame.items()}
    amounts, limit = drawn["published.elements"]
    assert amounts.tolist() == trace.published.elements[:3].tolist()
    assert limit == max(amounts)
    assert drawn["models.excess"][0].tolist() == pytest.approx(trace.models.excess.tolist())
