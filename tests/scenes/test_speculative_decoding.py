"""What the speculative decoding video shows: words that appear when their pass is over, mass that moves and is kept."""

from dataclasses import replace

import numpy as np
import pytest

from internals_math import speculative_decoding, trace_store
from internals_math import speculative_decoding_experiment as experiment
from internals_math.speculative_decoding import Config, optimal_gamma, walltime_improvement
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart
from scenes.kit.darts import Darts
from scenes.kit.gantt import Gantt
from scenes.kit.label import Label, Readout
from scenes.kit.shapes import Frame
from scenes.kit.token_row import TokenRow
from scenes.speculative_decoding import SpeculativeDecoding
from tests.scenes.watching import pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(speculative_decoding)


def captions(unit, trace=None):
    return [caption.text for caption in watched(SpeculativeDecoding, unit, trace=trace)[0].captions]


def field_of(row):
    """Return which field of the Trace the words of a row are of."""
    return row.tokens[0].origin.split("[")[0]


def rows_of(scene, field):
    return [row for row in pictures(scene, TokenRow) if field_of(row) == field]


def tiles_with_color(rows, role):
    color = theme.rgb(getattr(theme, role))
    return [str(t) for row in rows for t, c in zip(row.tokens, row.color, strict=True) if np.allclose(c, color)]


def test_the_video_has_the_seven_chapters_of_its_story():
    assert [unit.title for unit in SpeculativeDecoding.chapter_units()] == [
        "One pass, one word",
        "Guess, then check",
        "Two shapes",
        "Move the excess",
        "Run it",
        "Prediction meets measurement",
        "The price",
    ]


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("one_by_one", "Each word costs one full pass of the large model."),
        ("guess_and_check", "One pass of the large model reads all guesses at once."),
        ("two_shapes", "The overlap of the two shapes is the chance of acceptance."),
        ("move_the_excess", "Rejected mass is poured exactly where p is still missing."),
        ("run_it", "Same distribution, fewer passes."),
        ("prediction", "One miss ends the rest: longer guesses pay less and less."),
        ("price", "Guess too far and you pay for work you throw away."),
    ],
)
def test_every_chapter_says_its_sentence(unit, sentence):
    assert sentence in captions(unit)


def test_each_word_comes_out_when_its_pass_is_over_and_no_earlier(trace):
    def look(scene):
        (passes,) = pictures(scene, Gantt)
        (words,) = [row for row in rows_of(scene, "plain_words") if len(row.tokens) > 1]
        return float(passes.now), int((words.presence > 0).sum())

    scene, seen = watched(SpeculativeDecoding, "one_by_one", look)
    assert all(shown <= int(now + 1e-6) for now, shown in seen)
    assert {shown for _, shown in seen} == set(range(8))
    assert look(scene) == (8.0, 8)


def test_one_wide_pass_reads_all_guesses_and_the_text_grows_by_what_it_kept(trace):
    def look(scene):
        beams = [beam for beam in pictures(scene, Frame) if beam.opacity >= 1]
        guesses = [row for row in rows_of(scene, "draft_words") if len(row.tokens) == trace.config.gamma]
        if not beams or not guesses:
            return None
        (beam,), row = beams, guesses[0]
        return beam.get_left()[0] < row.get_left()[0] and row.get_right()[0] < beam.get_right()[0]

    scene, seen = watched(SpeculativeDecoding, "guess_and_check", look)
    assert True in seen
    (passes,) = pictures(scene, Gantt)
    drafts, target = passes.ends - passes.starts, (passes.ends - passes.starts)[-1]
    assert target == pytest.approx(drafts[0] / trace.config.c, rel=1e-4)
    story = rows_of(scene, "prompt")[0]
    shown = trace.shown_iteration
    end, count = int(trace.words_after_pass[shown]), int(trace.words_of_pass[shown])
    assert [str(t) for t in story.tokens[1:]] == list(trace.words.word[:end])
    landed = [row for row in pictures(scene, TokenRow) if len(row.tokens) == 1 and row is not story]
    assert [str(row.tokens[0]) for row in landed] == list(trace.words.word[end - count : end])
    for k, row in enumerate(landed):
        np.testing.assert_allclose(row.get_center(), story.tile_center(len(story.tokens) - count + k), atol=1e-6)
    assert tiles_with_color(landed, "SCORE") == [trace.next_words[shown]]  # the replaced one


def test_the_overlap_is_drawn_as_high_as_the_lower_of_both_outlines(trace):
    scene, _ = watched(SpeculativeDecoding, "two_shapes")
    shared, draft, target = (pictures(scene, Bars, field)[0] for field in ("min_pq", "q_top", "p_top"))
    for k in range(len(trace.top_words) - 1):  # the last bar is a sum over many words
        assert shared.tip(k)[1] == pytest.approx(min(draft.tip(k)[1], target.tip(k)[1]))
    shares = {label.text for label in pictures(scene, Readout)}
    assert shares == {f"{trace.beta:.0%}", f"{trace.rejected:.0%}"}


def pieces(scene, field):
    """Return the pieces of a field on screen: how high each is, and where its middle is."""
    found = [bars for bars in pictures(scene, Bars, field) if len(bars.values) == 1]
    return [(piece.height, piece.get_center()[:2], float(piece.opacity)) for piece in found]


@pytest.mark.parametrize("unit", ["move_the_excess", "loop"])
def test_what_is_cut_off_is_stacked_and_what_is_poured_is_as_much(unit, trace):
    def look(scene):
        return pieces(scene, "excess_top"), pieces(scene, "gap_top"), pictures(scene, Bars, "p_top")[0].copy()

    _, seen = watched(SpeculativeDecoding, unit, look, frame_rate=20)
    stacked = [red for red, yellow, _ in seen if red and len({round(x, 3) for _, (x, _), _ in red}) == 1]
    assert stacked  # the red pieces stood one on the other in one place
    height = sum(height for height, _, _ in stacked[0])
    bottom = min(y - height / 2 for height, (_, y), _ in stacked[0])
    top = max(y + height / 2 for height, (_, y), _ in stacked[0])
    assert top - bottom == pytest.approx(height, abs=1e-6)  # without gaps and overlaps
    poured = [yellow for _, yellow, _ in seen if yellow]
    assert sum(height for height, _, _ in poured[0]) == pytest.approx(height, rel=0.01)  # but for what is too thin
    places = np.array([[x for _, (x, _), _ in yellow] for yellow in poured if len(yellow) == len(poured[0])])
    assert len(np.unique(places[:, 0].round(3))) > 10  # it flies, it does not jump


@pytest.mark.parametrize("unit", ["move_the_excess", "loop"])
def test_the_poured_pieces_end_flush_with_the_target(unit, trace):
    def look(scene):
        target = pictures(scene, Bars, "p_top")[0]
        tops = [target.tip(k)[1] for k in range(len(trace.top_words))]
        centers = [target.tip(k)[0] for k in range(len(trace.top_words))]
        found = [(y + height / 2, x) for height, (x, y), opacity in pieces(scene, "gap_top") if opacity >= 1]
        over = [min(range(len(tops)), key=lambda k: abs(centers[k] - x)) for _, x in found]
        aligned = all(abs(centers[k] - x) < 1e-6 for k, (_, x) in zip(over, found, strict=True))
        return aligned and bool(found) and max(abs(tops[k] - top) for k, (top, _) in zip(over, found, strict=True))

    _, seen = watched(SpeculativeDecoding, unit, look)
    ends = [worst for worst in seen if worst is not False]
    assert ends
    assert max(ends) < 1e-6


def test_the_loop_shows_the_filled_bars_a_while_and_fades_them_as_a_whole():
    def look(scene):
        shared = pictures(scene, Bars, "min_pq")
        filled = [opacity for _, _, opacity in pieces(scene, "gap_top")]
        return float(shared[0].opacity) if shared else 0, filled

    _, seen = watched(SpeculativeDecoding, "loop", look, frame_rate=20)
    first = next(k for k, (shared, filled) in enumerate(seen) if filled and shared < 1)  # it begins to fade
    assert all(opacity == pytest.approx(shared) for shared, filled in seen[first:] for opacity in filled)
    assert seen[first - 1][1] == [1.0] * len(seen[first][1])


def test_every_dart_hits_the_bar_of_its_word_and_those_in_the_green_are_the_kept(trace):
    def look(scene):
        darts = pictures(scene, Darts)
        if not darts or not (darts[0].presence >= 1).all():
            return None
        draft, shared = pictures(scene, Bars, "q_top")[0], pictures(scene, Bars, "min_pq")[0]
        hits = []
        for k, bar in enumerate(trace.dart_bar.tolist()):
            x, y, _ = darts[0].place(k)
            assert abs(x - draft.tip(bar)[0]) < draft.thickness * draft.step / 2
            assert y < draft.tip(bar)[1]
            hits.append(y < shared.tip(bar)[1])
        return hits

    _, seen = watched(SpeculativeDecoding, "move_the_excess", look)
    hits = [one for one in seen if one]
    assert hits
    assert hits[-1] == trace.dart_accepted.tolist()


def test_both_ways_run_in_the_same_time_and_words_are_there_when_their_pass_is_over(trace):
    ends = trace.timeline_speculative.end[trace.config.gamma :: trace.config.gamma + 1]

    def look(scene):
        now = {round(float(gantt.now), 6) for gantt in pictures(scene, Gantt)}
        shown = sum(int((row.presence > 0).sum()) for row in rows_of(scene, "words.word") if len(row.tokens) > 1)
        return now, shown

    scene, seen = watched(SpeculativeDecoding, "run_it", look)
    race = [(max(now), shown) for now, shown in seen if len(now) == 1]
    assert race
    for now, shown in race:
        over = int((ends <= now + 1e-4).sum())
        assert shown <= int(trace.words_after_pass[over - 1]) if over else shown == 0
    counts = {label.text for label in pictures(scene, Readout)}
    assert counts == {"24 words", "24 passes", "6 passes"}


def test_both_counters_count_only_passes_that_are_over(trace):
    ends = trace.timeline_speculative.end[trace.config.gamma :: trace.config.gamma + 1]

    def look(scene):
        lanes, counters = (
            sorted(pictures(scene, kind), key=lambda one: -one.get_center()[1]) for kind in (Gantt, Readout)
        )
        return (*(float(lane.now) for lane in lanes), *(int(label.text.split()[0]) for label in counters))

    _, seen = watched(SpeculativeDecoding, "run_it", look, frame_rate=20)
    assert seen[0] == (0, 0, 0, 0, 0, 0)
    for alone, checked, words, passes, checked_words, checked_passes in seen:
        over = int(alone + 1e-3)
        assert over - 1 <= words == passes <= over  # a frame late perhaps, never early
        assert checked_passes <= int((ends <= checked + 1e-3).sum())
        assert checked_words == (trace.words_after_pass[checked_passes - 1] if checked_passes else 0)


def test_the_words_of_the_text_wear_the_color_of_how_they_came(trace):
    scene, _ = watched(SpeculativeDecoding, "run_it")
    rows = rows_of(scene, "words.word")
    for role, color in (("accepted", "KEY"), ("replaced", "SCORE"), ("bonus", "VALUE")):
        expected = [word for word, kind in zip(trace.words.word, trace.words.role, strict=True) if kind == role]
        assert tiles_with_color(rows, color) == expected


def test_the_papers_table_lies_on_the_law(trace):
    scene, _ = watched(SpeculativeDecoding, "prediction")
    (chart,) = pictures(scene, Chart)
    number = {curve.y.origin: k for k, curve in enumerate(chart.curves)}
    table = number["table1.speed"]
    assert (chart.drawn == 1).all()
    for k, (alpha, gamma) in enumerate(zip(trace.table1.alpha, trace.table1.gamma.tolist(), strict=True)):
        row = int((trace.law_alphas == alpha).nonzero()[0])
        law = chart.point(number[f"law_tokens[{row}, :]"], trace.law_gammas.tolist().index(gamma))
        np.testing.assert_allclose(chart.point(table, k), law, atol=1e-5)


def test_the_marker_passes_the_highest_speed_while_the_arithmetic_only_grows(trace):
    def look(scene):
        charts = {chart.curves[0].y.field: chart for chart in pictures(scene, Chart) if chart.curves}
        return {field: float(chart.rider[0]) for field, chart in charts.items()}

    scene, seen = watched(SpeculativeDecoding, "price", look)
    rides = [places for places in seen if len(places) == 2]
    assert all(places["speedup"] == pytest.approx(places["operations_curve"]) for places in rides)
    best, last = trace.optimal_gamma, len(trace.curve_gammas) - 1
    rests = {round(places["speedup"] * last, 3) for places in rides}
    assert {0, best, last} <= rests
    assert rides[-1]["speedup"] * last == pytest.approx(best)  # it comes back
    texts = {label.text for label in pictures(scene, Label)}
    assert f"{trace.speedup[best]:.1f}×" in texts
    assert f"{trace.operations_curve[best]:.1f}×" in texts
    assert str(best) in texts


def shown_with(trace, **settings):
    """Return a trace of other settings whose measurements over many texts are still those of the default."""
    config = Config(**settings)
    alpha = trace.alpha[config.draft]
    gammas = trace.curve_gammas.tolist()
    speedup = np.array([walltime_improvement(alpha, gamma, config.c) for gamma in gammas], dtype=np.float32)
    return replace(
        trace,
        config=config,
        **experiment.shown_run(config),
        **experiment.shown_position(config),
        speedup=trace.speedup.new_tensor(speedup),
        optimal_gamma=optimal_gamma(alpha, config.c),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1},
        {"gamma": 8, "draft": "bigram"},
        {"temperature": 0.0},
        {"temperature": 2.0, "c": 1.0, "draft": "bigram", "max_new_tokens": 32},
        {"c": 0.0, "max_new_tokens": 8},
    ],
    ids=str,
)
def test_other_settings_can_be_shown(settings, trace):
    other = shown_with(trace, **settings)
    for unit in ("one_by_one", "guess_and_check", "two_shapes", "move_the_excess", "run_it", "price", "loop"):
        scene, _ = watched(SpeculativeDecoding, unit, trace=other, frame_rate=4)
        assert scene.ledger
        if unit == "run_it":
            words = [str(token) for row in rows_of(scene, "words.word") for token in row.tokens]
            assert words == list(other.words.word)


def test_a_run_is_called_another_one_only_if_its_words_are_others(trace):
    note, sentence = (
        "another random run: other words, same chances",
        "Other words than one by one, but the same chances.",
    )
    greedy = shown_with(trace, temperature=0.0)
    for shown, is_other in ((trace, True), (greedy, False)):
        scene, _ = watched(SpeculativeDecoding, "guess_and_check", trace=shown, frame_rate=4)
        assert (note in {label.text for label in pictures(scene, Label)}) == is_other
        assert (sentence in captions("run_it", shown)) == is_other


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"c": 0.0}, "More guesses always pay here, but the arithmetic grows."),
        ({"c": 1.0, "draft": "bigram"}, "This draft is too slow: guessing never pays."),
    ],
)
def test_the_price_is_told_as_it_is(settings, sentence, trace):
    said = captions("price", shown_with(trace, **settings))
    assert sentence in said
    assert "Guess too far and you pay for work you throw away." not in said


def test_when_every_guess_is_kept_the_large_model_adds_a_word(trace):
    full = replace(trace, shown_iteration=int(trace.was_bonus.nonzero()[0]))
    assert "It keeps them all, and adds a word of its own." in captions("guess_and_check", full)
