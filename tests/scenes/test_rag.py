"""What the RAG video shows: a memory that stays behind, arrows that find each other, answers that follow documents."""

from functools import partial

import numpy as np
import pytest

from internals_math import rag, trace_store
from internals_math.rag import Config
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.fan import Fan
from scenes.kit.label import Label
from scenes.kit.links import Links
from scenes.kit.shapes import Frame
from scenes.kit.token_row import TokenRow
from scenes.kit.vector_plane import VectorPlane
from scenes.rag import RAG
from tests.scenes import watching
from tests.scenes.watching import pictures

UNITS = [unit.name for unit in RAG.chapter_units()]


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(rag)


def texts(scene):
    return {label.text for label in pictures(scene, Label) if label.opacity > 0}


def planes(scene, field):
    return [plane for plane in pictures(scene, VectorPlane, field) if plane.opacity > 0]


seen_in = partial(watching.seen_in, RAG)


def test_the_video_has_the_eight_chapters_of_its_story():
    assert [unit.title for unit in RAG.chapter_units()] == [
        "Stale memory",
        "Words miss",
        "Arrows on a circle",
        "Search",
        "Without looking at all",
        "Reading",
        "Mixing",
        "Swap the library",
    ]


def test_the_thing_moves_to_another_place_and_the_belief_stays(trace):
    def look(scene):
        things = [row for row in pictures(scene, TokenRow) if row.tokens[0].origin.startswith("doc_names")]
        bars = pictures(scene, Bars, "closed_book")
        if not things or not bars:
            return None
        return things[0].get_x(), bars[0].amounts.tolist(), [bars[0].tip(k)[0] for k in range(12)]

    scene, seen = seen_in("stale_memory", look)
    places = seen[0][2]
    assert seen[0][0] == pytest.approx(places[trace.old_place])
    assert seen[-1][0] == pytest.approx(places[trace.true_place])
    assert all(amounts == trace.closed_book.tolist() for _, amounts, _ in seen)
    (bars,) = pictures(scene, Bars)
    assert theme.hex_color(tuple(bars.color[trace.old_place])) == theme.LOSS
    assert {"still 99%", "0.2%"} <= texts(scene)


def test_only_equal_words_light_and_the_paraphrase_finds_none(trace):
    scene, _ = seen_in("words_miss", lambda scene: None)
    lit = {}
    for row in pictures(scene, TokenRow):
        colors = [theme.hex_color(tuple(color)) for color in row.color]
        lit[row.tokens[0].origin] = {str(t) for t, c in zip(row.tokens, colors, strict=True) if c == theme.SCORE}
        if row.tokens[0].origin == "query_words[0]":
            lost = {str(t) for t, c in zip(row.tokens, colors, strict=True) if c == theme.LOSS}
    assert lost == {"where", trace.paraphrase, "?"}
    for doc in trace.lexical_shown.tolist():
        assert lit[f"doc_words[{doc}][0]"] == set(trace.query_words) & set(trace.doc_words[doc])
    (bars,) = pictures(scene, Bars)
    np.testing.assert_allclose(bars.amounts, trace.lexical_scores[trace.lexical_shown])
    assert len(pictures(scene, Frame)) == int(trace.lexical_best.sum()) == 2


def test_training_turns_every_question_until_it_points_to_its_document(trace):
    def look(scene):
        docs, questions = planes(scene, "training_docs"), planes(scene, "training_queries")
        if not docs or not questions:
            return None
        charts = pictures(scene, Chart)
        return questions[0].angles - docs[0].angles, float(charts[0].drawn[0]) if charts else 0.0

    _, seen = seen_in("arrows_on_a_circle", look)
    apart = [np.abs((turn + np.pi) % (2 * np.pi) - np.pi).max() for turn, _ in seen]
    assert apart[0] > 1
    assert apart[-1] < 0.02
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_two_forces_start_at_the_tip_of_the_shown_question_and_oppose_each_other(trace):
    def look(scene):
        pull, push = planes(scene, "pull_turn"), planes(scene, "push_turn")
        if not pull or push[0].presence[0] < 1:
            return None
        tip = planes(scene, "training_queries")[0].tip(trace.gold)
        links = pictures(scene, Links, "rivals")[0]
        return tip, pull[0].get_center(), push[0].get_center(), pull[0].angles[0] - push[0].angles[0], links

    _, seen = seen_in("arrows_on_a_circle", look)
    tip, pull, push, turn, links = seen[-1]
    np.testing.assert_allclose(pull, tip, atol=1e-6)
    np.testing.assert_allclose(push, tip, atol=1e-6)
    assert abs(np.cos(turn) + 1) < 1e-6
    assert links.strength[0, trace.gold] == 0
    assert (links.strength[0] > 0).sum() == 11


def test_the_wedge_opens_around_the_question_until_it_holds_the_best_documents(trace):
    def look(scene):
        fans, docs = pictures(scene, Fan, "wedge"), planes(scene, "doc_points")
        return (fans[0].ends.copy(), docs[0].emphasis.copy(), docs[0].angles) if fans and docs else None

    scene, seen = seen_in("search", look)
    widths = [last - first for (first, last), _, _ in seen]
    assert widths == sorted(widths)
    assert widths[0] < 0.2 < widths[-1]
    (first, last), emphasis, angles = seen[-1]
    assert (first + last) / 2 == pytest.approx(trace.query_angle, abs=1e-5)
    inside = (angles >= first - 1e-3) & (angles <= last + 1e-3)
    assert set(np.flatnonzero(inside)) == set(np.flatnonzero(emphasis == 1)) == set(trace.topk_indices.tolist())
    (prior,) = pictures(scene, Bars, "prior")
    np.testing.assert_allclose(prior.amounts, trace.prior)
    np.testing.assert_allclose(prior.presence, 1)


def test_one_cell_costs_less_and_misses_a_document_that_two_cells_find(trace):
    def look(scene):
        rings = [frame for frame in pictures(scene, Frame) if frame.opacity >= 1]
        return [theme.hex_color(tuple(ring.tint)) for ring in rings] or None

    scene, seen = seen_in("without_looking_at_all", look)
    assert seen[0] == [theme.LOSS]
    costs = [bar.texts[0] for bar in pictures(scene, Bars)]
    assert costs == ["12", "7", "7", "10"]
    shown = {text for text in texts(scene) if " of " in text}
    assert shown == {"3 of 3", "2 of 3"}
    (ring,) = pictures(scene, Frame)
    assert theme.hex_color(tuple(ring.tint)) == theme.KEY
    (docs,) = planes(scene, "doc_points")
    (missed,) = trace.border_topk[~trace.border_found[0]].tolist()
    np.testing.assert_allclose(ring.get_center(), docs.tip(missed), atol=1e-6)
    lit = {int(fan.values.origin[len("ivf_sectors[")]) for fan in pictures(scene, Fan) if fan.light == 1}
    assert lit == set(trace.border_cells[:2].tolist())


def test_the_answer_goes_to_the_place_of_the_document_that_is_read(trace):
    def look(scene):
        bars = [bar for bar in pictures(scene, Bars) if bar.values.field in ("closed_book", "per_doc")]
        links = pictures(scene, Links, "reader_attention")
        if not bars:
            return None
        return bars[0].values.origin, int(np.argmax(bars[0].amounts)), links[0].strength.argmax() if links else None

    _, seen = seen_in("reading", look)
    answers = {origin: top for origin, top, _ in seen}
    places = [trace.doc_words[doc][-2] for doc in trace.topk_indices.tolist()]
    assert answers["closed_book"] == trace.old_place
    assert trace.answer_words[answers["per_doc[0, :]"]] == places[0]
    assert trace.answer_words[answers["per_doc[2, :]"]] == places[2]
    assert {int(end) for _, _, end in seen if end is not None} == {trace.reader_place - 1}


def test_the_pieces_of_the_rows_pile_up_to_the_mixture_and_the_credit_is_the_posterior(trace):
    def look(scene):
        totals = [bar for bar in pictures(scene, Bars, "marginal") if bar.opacity == 1 and bar.presence.all()]
        pieces = [bar for bar in pictures(scene, Bars, "contributions") if len(bar.values) == 1]
        return (totals[0], [piece.get_top() for piece in pieces]) if totals and pieces else None

    _, seen = seen_in("mixing", look)
    total, tops = seen[0]
    for k in np.flatnonzero(total.amounts > 0.03):
        highest = max(y for x, y, _ in tops if abs(x - total.tip(k)[0]) < 0.1)
        assert highest == pytest.approx(total.tip(k)[1], abs=0.01)

    def shares(scene):
        found = [bar for bar in pictures(scene, Bars) if bar.values.field in ("prior", "posterior")]
        return found[0].amounts.tolist() if found else None

    _, seen = seen_in("mixing", shares)
    assert seen[0] == pytest.approx(trace.prior.tolist())
    assert seen[-1] == pytest.approx(trace.posterior.tolist())


def test_todays_library_makes_todays_answers_and_yesterdays_none(trace):
    def look(scene):
        bars = pictures(scene, Bars, "swap_accuracy")
        names = {text for text in texts(scene) if text.startswith("library")}
        return (names, (bars[0].presence == 1).sum()) if bars else None

    scene, seen = seen_in("swap_the_library", look)
    order = [name for names, _ in seen for name in sorted(names)]
    assert list(dict.fromkeys(order)) == ["library A: yesterday", "library B: today"]
    for name, count in (("library A: yesterday", 2), ("library B: today", 3)):
        assert max(shown for names, shown in seen if names == {name}) == count
    assert [pictures(scene, Bars, field)[0].texts for field in ("accuracy_hit", "accuracy_miss")] == [["100%"], ["6%"]]
    (bars,) = pictures(scene, Bars, "wrong_doc_answer")
    assert trace.answer_words[int(np.argmax(bars.amounts))] == trace.doc_words[trace.wrong_doc][-2]


def test_the_loop_reads_what_lies_in_the_wedge_and_ends_with_the_circle_alone(trace):
    def look(scene):
        bars = [bar for bar in pictures(scene, Bars) if bar.opacity == 1]
        return (bars[0].values.field, int(np.argmax(bars[0].amounts))) if bars else None

    scene, seen = seen_in("loop", look)
    assert seen[0] == ("closed_book", trace.old_place)
    assert ("marginal", trace.true_place) in seen
    assert not pictures(scene, Fan)
    (circle,) = pictures(scene, VectorPlane)
    assert circle.emphasis.min() == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"n_docs": 24, "top_k": 6, "query_index": 20, "n_probe": 4},
        {"n_docs": 6, "top_k": 1, "use_paraphrase": False},
        {"embed_dim": 32, "top_k": 2, "temperature": 1.0, "query_index": 7},
    ],
    ids=str,
)
def test_other_settings_can_be_shown(settings):
    trace = rag.trace(Config(**settings))
    for unit in [*UNITS, "loop"]:
        scene, _ = seen_in(unit, lambda scene: None, trace, frame_rate=2)
        assert scene.ledger
        if unit == "words_miss" and not trace.config.use_paraphrase:
            said = [caption.text for caption in scene.captions]
            assert "Here the words suffice." in said
