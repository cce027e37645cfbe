"""What the video of mixture of experts shows: scores, a shared bar, a bead on a line, loads, seats, and a bill."""

from functools import partial

import numpy as np
import pytest
import torch

from internals_math import mixture_of_experts, mixture_of_experts_experiment, trace_store
from internals_math.mixture_of_experts import Config
from internals_math.mixture_of_experts_experiment import RUNS, Run, history_steps, moe_lm
from scenes.kit.bars import Bars
from scenes.kit.label import Label, Readout
from scenes.kit.links import Links
from scenes.kit.mixing_plane import MixingPlane
from scenes.kit.number_line import NumberLine
from scenes.kit.slot_map import SlotMap
from scenes.kit.squares import Squares
from scenes.kit.stacked_bar import StackedBar
from scenes.kit.tensor_grid import TensorGrid
from scenes.mixture_of_experts import MixtureOfExperts
from tests.scenes import watching
from tests.scenes.watching import pictures, sayings

UNITS = [unit.name for unit in MixtureOfExperts.chapter_units()]


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(MixtureOfExperts.core)


seen_in = partial(watching.seen_in, MixtureOfExperts)


def pictures_of(scene, kind):
    """Return the pictures of a kind that tell their data in another way than `values`."""
    return [picture for picture in scene.get_mobject_family_members() if isinstance(picture, kind)]


def bars(scene, *fields):
    return [bar for bar in pictures(scene, Bars) if bar.values.field in fields and bar.opacity > 0]


# -- scores and weights ------------------------------------------------------------------------------------------------


def test_every_row_of_products_becomes_the_bar_of_its_score(trace):
    def look(scene):
        products = [grid for grid in pictures(scene, TensorGrid, "products") if grid.opacity > 0]
        scores = bars(scene, "logits")
        return (
            (max((grid.values.origin for grid in products), default=""), scores[0].presence.copy()) if scores else None
        )

    scene, seen = seen_in("scoring", look)
    for origin, presence in seen:
        done = np.flatnonzero(presence > 0)
        assert done.tolist() == list(range(len(done)))
        if origin and len(done):  # no bar before its products
            assert done[-1] <= int(origin.split("[")[1].split(",")[0])
    (scores,) = bars(scene, "logits")
    np.testing.assert_allclose(scores.amounts, trace.logits[trace.shown_token])
    np.testing.assert_allclose(scores.presence, 1)


def test_scores_become_probabilities_and_only_the_chosen_keep_a_weight(trace):
    def look(scene):
        found = bars(scene, "logits", "probs", "gates")
        return max(found, key=lambda bar: len(bar.amounts)).values.field if found else None

    scene, seen = seen_in("choosing", look)
    assert list(dict.fromkeys(seen)) == ["logits", "probs", "gates"]
    (whole,) = [bar for bar in bars(scene, "gates") if len(bar.amounts) == 8]
    assert np.flatnonzero(whole.amounts).tolist() == sorted(trace.indices[trace.shown_token].tolist())
    assert whole.ghosts.field == "probs"


def test_the_weights_of_the_chosen_fill_the_whole_bar_without_a_gap():
    scene, _ = seen_in("choosing", lambda scene: None)
    (bar,) = (bar for bar in pictures_of(scene, StackedBar) if bar.opacity > 0)
    left, right = (bar.to_scene(x, 0)[0] for x in (-bar.local_width / 2, bar.local_width / 2))
    first, second = bar.amounts * bar.local_width
    assert bar.end()[0] == pytest.approx(right, abs=1e-4)
    assert bar.part_center(0)[0] == pytest.approx(left + first / 2, abs=1e-5)
    assert bar.part_center(1)[0] == pytest.approx(left + first + second / 2, abs=1e-5)


# -- the plane ---------------------------------------------------------------------------------------------------------


def mix_seen(scene):
    """Return the bead, and the lengths of the pieces of the shared bar as shares of the whole."""
    planes = [plane for plane in pictures_of(scene, MixingPlane) if plane.seen > 0]
    shared = [bar for bar in pictures_of(scene, StackedBar) if bar.opacity > 0]
    if not planes or not shared:
        return None
    return planes[0].bead.copy(), shared[0].amounts.tolist(), planes[0].places


@pytest.mark.parametrize("unit", ["mixing", "who_learns"])
def test_the_bead_is_at_every_moment_the_average_that_the_bar_tells(unit):
    _, seen = seen_in(unit, mix_seen)
    assert len(seen) > 20
    for bead, shares, corners in seen:
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(shares @ corners, bead, atol=1e-3)
    assert np.ptp([shares[0] for _, shares, _ in seen]) > 0.3


def test_the_bead_visits_each_expert_alone_before_it_comes_to_its_place(trace):
    _, seen = seen_in("mixing", mix_seen)
    shares = np.array([shares[0] for _, shares, _ in seen])
    assert shares[0] == 1
    assert shares.min() == pytest.approx(0, abs=0.02)
    assert shares[-1] == pytest.approx(float(trace.weights[trace.shown_token, 0]), abs=1e-5)


def test_a_step_moves_the_bead_towards_the_shadow_and_the_two_scores_apart(trace):
    scene, _ = seen_in("who_learns", lambda scene: None)
    (plane,) = pictures_of(scene, MixingPlane)
    start, shadow = (np.asarray(point, dtype=float) for point in (plane.start, plane.shadow))
    assert (plane.bead - start) @ (shadow - start) > 0
    (scores,) = bars(scene, "logits_after")
    change = scores.amounts - np.asarray(scores.ghosts, dtype=float)
    first, second = trace.indices[trace.shown_token].tolist()
    assert change[first] == pytest.approx(-change[second], abs=1e-5)
    assert np.flatnonzero(np.abs(change) > 1e-6).tolist() == sorted([first, second])
    (gradient,) = pictures(scene, TensorGrid, "router_grad_task")
    assert [row[0] for row in gradient.texts].count("0") == 6


# -- loads and seats ---------------------------------------------------------------------------------------------------


def test_all_runs_and_the_clock_are_at_the_same_record_of_training(trace):
    def look(scene):
        panels = [bar.values for bar in pictures(scene, Bars) if bar.values.field.startswith("load_history")]
        needles = [line.values[0] for line in pictures(scene, NumberLine)]
        (clock,) = [label for label in pictures_of(scene, Readout) if label.value.field == "history_steps"]
        if len(panels) != 3:
            return None
        step = int(clock.text.split()[1])
        return [*(int(loads.cells[0]) // 8 for loads in panels), *(int(needle.cells) for needle in needles), step // 10]

    scene, seen = seen_in("uneven_load", look)
    running = seen[seen.index([0] * 7) :]
    assert [records[0] for records in running] == sorted(records[0] for records in running)
    assert all(len(set(records)) == 1 for records in running)
    assert running[-1] == [30] * 7
    least = int(trace.load_history_free[-1].argmin())
    assert any(f"expert {trace.expert_names[least]} gets" in words for words in sayings(scene))


def test_the_rooms_end_with_those_who_found_a_seat_and_first_choices_came_first(trace):
    def look(scene):
        maps = pictures_of(scene, SlotMap)
        return maps[0].presence.copy() if maps else None

    _, seen = seen_in("full_house", look)
    full = max(seen, key=np.sum)
    taken = trace.seat_taken.flip(0).flatten().numpy()
    np.testing.assert_array_equal(full * taken, taken)
    assert int((full * taken).sum()) == 24 - trace.num_dropped
    first = np.zeros_like(taken)
    for token, (expert, slot) in enumerate(zip(trace.indices[:, 0].tolist(), trace.slot[:, 0].tolist(), strict=True)):
        if slot >= 0:
            assert trace.seat_token[slot, expert] == token
            first[(trace.capacity - 1 - slot) * 8 + expert] = 1
    for presence in seen:
        if (presence * taken * (1 - first)).any():
            assert (presence * first).sum() == first.sum()


def test_a_word_passes_the_experts_only_if_all_of_them_were_full(trace):
    scene, _ = seen_in("full_house", lambda scene: None)
    assert trace.num_bypassed == int(trace.dropped.all(dim=1).sum()) == 1
    assert "A word without any seat passes by, unchanged." in sayings(scene)


# -- who does what, and the bill ---------------------------------------------------------------------------------------


def test_shuffled_labels_are_drawn_on_the_color_scale_of_the_real_ones():
    limits = {}

    def look(scene):
        for grid in pictures(scene, TensorGrid):
            limits[grid.values.field] = grid.limit

    seen_in("who_does_what", look)
    assert limits["class_by_expert"] == limits["class_by_expert_shuffled"]


def test_the_words_about_who_does_what_are_true(trace):
    scene, _ = seen_in("who_does_what", lambda scene: None)
    assert "Experts split by word, hardly by topic." in sayings(scene)
    bits = dict(zip(trace.labels.name, trace.labels.bits.tolist(), strict=True))
    assert bits["farm or sea"] < 0.05 * bits["word"]
    assert max(bits, key=bits.get) == "word"


def test_the_bill_shows_owned_and_used_weights_and_says_whether_it_paid(trace):
    def look(scene):
        found = pictures_of(scene, Squares)
        return [int(amount) for amount in found[0].amounts] if found else None

    scene, seen = seen_in("the_bill", look)
    tiny, mixtral = list(dict.fromkeys(map(tuple, seen)))
    assert tiny == (53728, 26080)
    assert mixtral == (46_702_792_704, 12_879_925_248)
    gain = trace.eval_loss["dense_active"] - trace.eval_loss["aux"]
    assert abs(gain) < trace.loss_seed_spread
    assert any("Not here" in words for words in sayings(scene))


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_in_the_loop_every_word_links_to_its_own_experts_with_its_weights(trace):
    linked = {}

    def look(scene):
        for links in pictures(scene, Links):
            linked[links.values.origin] = links.strength[0].copy()
        maps = pictures_of(scene, SlotMap)
        return float(maps[0].presence.sum()) if maps else None

    _, seen = seen_in("loop", look)
    assert len(linked) == 12
    for token in range(12):
        np.testing.assert_allclose(linked[f"gates[{token}, :]"], trace.gates[token], atol=1e-6)
    assert max(seen) == 24
    assert seen[-1] == 0


# -- other settings ----------------------------------------------------------------------------------------------------


def untrained(monkeypatch, **options):
    """Return a trace of models that nobody trained, with made-up histories, for settings that change shapes."""
    config = Config(**options)
    records = len(history_steps(config.train_steps))
    loads = torch.softmax(torch.randn(3, records, config.num_experts, generator=torch.Generator().manual_seed(0)), -1)

    def runs(config):
        model = moe_lm(config.num_experts, config.expert_size, config.top_k, config.seed).requires_grad_(False)
        names = (*RUNS, "dense_active_again")
        return {name: Run(model, torch.ones(records), loads, 1.0 - 0.01 * k) for k, name in enumerate(names)}

    monkeypatch.setattr(mixture_of_experts_experiment, "train_runs", runs)
    return mixture_of_experts.trace(config)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 4, "num_experts": 4}, {"num_experts": 16, "top_k": 3}])
def test_other_numbers_of_experts_are_drawn_and_told_as_they_are(monkeypatch, options):
    trace = untrained(monkeypatch, **options)
    said = []
    for unit in [*UNITS, "loop"]:
        scene, _ = seen_in(unit, lambda scene: None, trace)
        said += sayings(scene)
    texts = " ".join(said)
    if options["top_k"] == 1:
        assert "Its probability is its weight." in texts
        assert "average" not in texts
        assert "Only the chosen experts receive a gradient." not in texts  # a raw gate moves every score
    else:
        assert f"average of {options['top_k']} experts" in texts


def test_with_more_than_two_experts_the_plane_says_what_it_leaves_out(monkeypatch):
    trace = untrained(monkeypatch, top_k=3)
    scene, _ = seen_in("mixing", lambda scene: None, trace)
    texts = [label.text for label in pictures_of(scene, Label)]
    assert f"{trace.plane_lost[trace.shown_token]:.0%} of their energy lies outside this plane" in texts
