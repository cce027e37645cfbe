import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import model_merging, tiny_lm, trace_store
from internals_math import model_merging_experiment as experiment
from internals_math.model_merging import (
    METHODS,
    TASKS,
    Config,
    apply_task_vector,
    average,
    cosine_matrix,
    dare,
    dare_output_std,
    disjoint_mean,
    elect_sign,
    flatten,
    lerp,
    loss_plane,
    merge,
    permute_channels,
    sign_conflict_rate,
    slerp,
    slerp_state_dicts,
    task_arithmetic,
    task_vector,
    ties,
    trim,
    unflatten,
)
from tests.oracles import randn

seeds = st.integers(0, 10_000)
densities = st.floats(0.05, 1)
scopes = st.sampled_from(["global", "tensor"])
SHAPES = {"a": (6, 5), "b": (40,), "c": (3, 4, 2)}


def start(seed=0):
    return torch.Generator().manual_seed(seed)


def state(seed):
    """Three random tensors."""
    return {name: randn(*shape, seed=seed + k) for k, (name, shape) in enumerate(SHAPES.items())}


def family(seed, n=3):
    """A base and n models."""
    return state(seed), [state(seed + 10 * k) for k in range(1, n + 1)]


def same(first, second, tolerance=1e-12):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], atol=tolerance, rtol=0)


# -- arrows ------------------------------------------------------------------------------------------------------------


@given(seeds)
def test_a_task_vector_leads_from_the_base_to_the_model_and_back(seed):
    base, (model,) = family(seed, 1)
    tau = task_vector(base, model)
    same(apply_task_vector(base, tau), model)
    same(apply_task_vector(base, tau, 0), base)
    same(apply_task_vector(model, tau, -1), base)


@given(seeds)
def test_one_task_at_full_scale_is_the_model_and_at_none_the_base(seed):
    base, (model,) = family(seed, 1)
    for method, settings in (("task_arithmetic", {}), ("ties", {"density": 1.0}), ("dare_linear", {"drop_rate": 0.0})):
        same(merge(base, [model], method, generator=start(), **settings), model)
        same(merge(base, [model], method, generator=start(), scale=0.0, **settings), base)


@given(seeds)
def test_an_average_is_task_arithmetic_with_one_nth_from_any_base(seed):
    base, models = family(seed)
    same(average(models), merge(base, models, "task_arithmetic", scale=1 / 3))
    same(average(models), merge(state(seed + 500), models, "task_arithmetic", weights=[1 / 3] * 3))
    same(merge(base, models, "average"), average(models))


@given(seeds, st.sampled_from(["average", "task_arithmetic", "ties"]))
def test_the_order_of_the_models_does_not_matter(seed, method):
    base, models = family(seed)
    same(merge(base, models, method), merge(base, models[::-1], method))


def test_weights_belong_to_their_models():
    taus = torch.eye(3)
    assert task_arithmetic(taus, [1.0, 2.0, -4.0]).tolist() == [1, 2, -4]
    assert task_arithmetic(taus).tolist() == [1, 1, 1]
    batch = randn(2, 3, 4, seed=0)
    torch.testing.assert_close(task_arithmetic(batch, [0.5, 3.0]), 0.5 * batch[0] + 3 * batch[1])


@given(seeds)
def test_flattening_is_undone_and_keeps_the_order(seed):
    model = state(seed)
    line, spec = flatten(model)
    assert len(line) == 30 + 40 + 24
    assert torch.equal(line[30:70], model["b"])
    same(unflatten(line, spec), model, 0)


# -- TIES --------------------------------------------------------------------------------------------------------------


@given(seeds, densities)
def test_trimming_keeps_exactly_the_largest_share(seed, density):
    tau = randn(8, 10, seed=seed)
    trimmed = trim(tau, density)
    kept = trimmed != 0
    assert int(kept.sum()) == math.floor(density * 80)
    assert torch.equal(trimmed[kept], tau[kept])
    if not kept.all():
        assert tau[kept].abs().min() > tau[~kept].abs().max()


def test_of_equal_magnitudes_the_first_stays():
    assert trim(torch.tensor([1.0, -2.0, 2.0, -1.0, 1.0]), 0.6).tolist() == [1, -2, 2, 0, 0]
    assert trim(torch.ones(1000), 0.3).nonzero()[:, 0].tolist() == list(range(300))


def test_mass_and_heads_may_elect_other_signs_and_a_tie_is_positive():
    taus = torch.tensor([[1.0, 2.0, 0.0], [1.0, -2.0, 0.0], [-5.0, 0.0, 0.0]])
    assert elect_sign(taus).tolist() == [-1, 1, 1]
    assert elect_sign(taus, "count").tolist() == [1, 1, 1]
    assert elect_sign(-taus, "count").tolist() == [-1, 1, 1]


@given(seeds, densities, st.sampled_from(["mass", "count"]))
def test_what_ties_merges_lies_among_those_who_agree(seed, density, method):
    taus = randn(3, 40, seed=seed)
    result = ties(taus, density, method=method)
    assert (result.merged * result.sign >= 0).all()
    assert torch.equal(result.agree_mask, result.trimmed.sign() == result.sign)
    heard = result.agree_mask.any(dim=0)
    assert (result.merged[~heard] == 0).all()
    low = result.trimmed.masked_fill(~result.agree_mask, math.inf).amin(dim=0)
    high = result.trimmed.masked_fill(~result.agree_mask, -math.inf).amax(dim=0)
    assert ((low <= result.merged + 1e-12) & (result.merged <= high + 1e-12))[heard].all()
    assert torch.equal(result.trimmed, torch.stack([trim(tau, density) for tau in taus]))


@given(seeds, densities, st.floats(0.01, 100))
def test_ties_scales_with_its_task_vectors(seed, density, factor):
    taus = randn(3, 40, seed=seed)
    torch.testing.assert_close(ties(factor * taus, density).merged, factor * ties(taus, density).merged)


@given(seeds, densities)
def test_equal_models_give_their_trimmed_task_vector_and_silent_ones_do_not_count(seed, density):
    taus = randn(2, 40, seed=seed)
    torch.testing.assert_close(ties(taus[:1].expand(4, 40), density).merged, trim(taus[0], density))
    with_silent = torch.cat([taus, torch.zeros(1, 40)])
    torch.testing.assert_close(ties(with_silent, density).merged, ties(taus, density).merged)
    assert not torch.allclose(with_silent.mean(dim=0), taus.mean(dim=0))


def test_weights_do_not_vote_and_two_ways_to_normalize_differ():
    taus, sign = torch.tensor([[2.0, 1.0], [4.0, -3.0], [-1.0, -6.0]]), torch.tensor([1.0, -1.0])
    weights = [1.0, 0.5, 10.0]
    assert disjoint_mean(taus, sign).tolist() == [3, -4.5]
    assert disjoint_mean(taus, sign, weights).tolist() == pytest.approx([(2 + 2) / 2, (-1.5 - 60) / 2])
    by_weight = disjoint_mean(taus, sign, weights, normalize="weights")
    assert by_weight.tolist() == pytest.approx([4 / 1.5, -61.5 / 10.5])
    assert disjoint_mean(taus, torch.tensor([1.0, 1.0]), normalize="weights").tolist() == [3, 1]


def test_the_scope_of_trimming_decides_which_tensors_are_heard():
    base = {"loud": torch.zeros(10), "quiet": torch.zeros(10)}
    steps = torch.arange(1.0, 11)
    models = [{"loud": 100 * steps, "quiet": steps}] * 2
    everywhere = merge(base, models, "ties", density=0.5)
    assert everywhere["quiet"].abs().sum() == 0
    torch.testing.assert_close(everywhere["loud"], 100 * steps)
    each = merge(base, models, "ties", density=0.5, scope="tensor")
    assert each["quiet"].tolist() == [0] * 5 + [6, 7, 8, 9, 10]
    assert each["loud"].tolist() == [0] * 5 + [600, 700, 800, 900, 1000]


@given(seeds, scopes, densities)
def test_merging_whole_models_is_ties_on_their_flattened_task_vectors(seed, scope, density):
    base, models = family(seed)
    settings = {"scale": 0.7, "weights": [1.0, 2.0, 0.5], "sign_method": "count", "normalize": "weights"}
    merged = merge(base, models, "ties", density=density, scope=scope, **settings)
    taus = [task_vector(base, model) for model in models]
    if scope == "global":
        lines = torch.stack([trim(flatten(tau)[0], density) for tau in taus])
        wanted = unflatten(disjoint_mean(lines, elect_sign(lines, "count"), [1, 2, 0.5], "weights"), flatten(base)[1])
    else:
        stacked = {name: torch.stack([trim(tau[name], density) for tau in taus]) for name in base}
        wanted = {
            name: disjoint_mean(tau, elect_sign(tau, "count"), [1, 2, 0.5], "weights") for name, tau in stacked.items()
        }
    same(merged, apply_task_vector(base, wanted, 0.7))


# -- DARE --------------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0, 0.99), st.booleans())
def test_dare_keeps_entries_as_they_are_or_rescaled(seed, drop_rate, rescale):
    tau = randn(6, 30, seed=seed)
    sparse, mask = dare(tau, drop_rate, start(seed), rescale)
    wanted = tau / (1 - drop_rate) if rescale else tau
    torch.testing.assert_close(sparse[mask], wanted[mask])
    assert (sparse[~mask] == 0).all()
    again, same_mask = dare(tau, drop_rate, start(seed), rescale)
    assert torch.equal(again, sparse)
    assert torch.equal(same_mask, mask)


def test_dare_drops_its_share_and_nothing_at_rate_zero():
    tau = randn(200, 200, seed=0)
    for drop_rate in (0.2, 0.9):
        _, mask = dare(tau, drop_rate, start())
        assert float((~mask).double().mean()) == pytest.approx(drop_rate, abs=4 * math.sqrt(0.25 / 40_000))
    sparse, mask = dare(tau, 0.0, start())
    assert torch.equal(sparse, tau)
    assert mask.all()


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_dare_is_right_on_average(drop_rate):
    tau = randn(20, seed=1)
    draws, _ = dare(tau.expand(2000, 20), drop_rate, start(2))
    error = draws.std(dim=0) / math.sqrt(2000)
    assert ((draws.mean(dim=0) - tau).abs() <= 4 * error).all()
    assert (draws.mean(dim=0) - tau).abs().max() > 0


@pytest.mark.parametrize("drop_rate", [0.5, 0.9, 0.97])
def test_the_spread_of_an_output_has_a_closed_form(drop_rate):
    tau, x = randn(4, 50, seed=3), randn(50, seed=4)
    draws = dare(tau.expand(5000, 4, 50), drop_rate, start(5))[0] @ x
    torch.testing.assert_close(draws.std(dim=0), dare_output_std(tau, x, drop_rate), rtol=0.05, atol=0)
    by_hand = [drop_rate / (1 - drop_rate) * sum(float(t * v) ** 2 for t, v in zip(row, x, strict=True)) for row in tau]
    assert dare_output_std(tau, x, drop_rate).square().tolist() == pytest.approx(by_hand)


def test_models_draw_one_after_the_other_from_one_generator():
    base, models = family(7, 2)
    source = start(3)
    lines = torch.stack([dare(flatten(task_vector(base, model))[0], 0.4, source)[0] for model in models])
    spec = flatten(base)[1]
    added = merge(base, models, "dare_linear", drop_rate=0.4, weights=[2, 1], scale=0.5, generator=start(3))
    same(added, apply_task_vector(base, unflatten(2 * lines[0] + lines[1], spec), 0.5))
    voted = merge(base, models, "dare_ties", drop_rate=0.4, scale=0.5, generator=start(3))
    same(voted, apply_task_vector(base, unflatten(disjoint_mean(lines, elect_sign(lines)), spec), 0.5))
    plain = merge(base, models, "dare_linear", drop_rate=0.4, generator=start(3), rescale=False)
    same(plain, apply_task_vector(base, unflatten(0.6 * lines.sum(dim=0), spec)))


# -- SLERP -------------------------------------------------------------------------------------------------------------

shares = st.floats(0, 1)


@given(seeds, shares)
def test_slerp_ends_at_its_ends_and_may_be_walked_from_both(seed, t):
    a, b = randn(3, 4, seed=seed), randn(3, 4, seed=seed + 1)
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)
    torch.testing.assert_close(slerp(a, b, t), slerp(b, a, 1 - t), atol=1e-9, rtol=1e-9)


@given(seeds, shares)
def test_unit_vectors_stay_on_their_sphere_and_turn_evenly(seed, t):
    a, b = (vector / vector.norm() for vector in (randn(5, seed=seed), randn(5, seed=seed + 1)))
    point = slerp(a, b, t)
    assert float(point.norm()) == pytest.approx(1, abs=1e-9)
    omega = math.acos(float(a @ b))
    assert math.acos(min(1.0, float(a @ point))) == pytest.approx(t * omega, abs=1e-6)


@given(st.floats(2, 177), shares, st.floats(0.1, 10))
def test_in_two_dimensions_slerp_is_a_rotation(degrees, t, length):
    omega = math.radians(degrees)
    a = torch.tensor([length, 0.0], dtype=torch.float64)
    b = length * torch.tensor([math.cos(omega), math.sin(omega)], dtype=torch.float64)
    wanted = length * torch.tensor([math.cos(t * omega), math.sin(t * omega)], dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, t), wanted, atol=1e-9, rtol=0)


def test_for_small_angles_arc_and_chord_meet_quadratically():
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    gaps = []
    for omega in (0.4, 0.2, 0.1, 0.05):
        b = torch.tensor([math.cos(omega), math.sin(omega)], dtype=torch.float64)
        gaps.append(float((slerp(a, b, 0.3, dot_threshold=1) - lerp(a, b, 0.3)).norm()))
    assert [before / after for before, after in itertools.pairwise(gaps)] == pytest.approx([4] * 3, rel=0.05)


def test_beyond_the_threshold_slerp_is_lerp_on_both_sides():
    a = torch.tensor([1.0, 0.0])
    for degrees, straight in ((1.7, True), (1.9, False), (178.3, True), (178.1, False)):
        b = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
        assert torch.equal(slerp(a, b, 0.25), lerp(a, b, 0.25)) == straight
    assert slerp(a, -a, 0.5).tolist() == [0, 0]


def test_the_middle_of_unequal_vectors_is_no_mean_of_their_lengths():
    a, b = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(a, b, 0.5), math.sqrt(0.5) * torch.tensor([4.0, 1.0]))
    assert slerp(a, a, 0.3).tolist() == a.tolist()


@given(seeds, shares)
def test_models_turn_tensor_by_tensor_or_as_a_whole_with_or_without_their_base(seed, t):
    base, (a, b) = family(seed, 2)
    same(slerp_state_dicts(a, b, t), {name: slerp(a[name], b[name], t) for name in a})
    same(merge(base, [a, b], "slerp", t=t), slerp_state_dicts(a, b, t))
    whole = slerp(flatten(a)[0], flatten(b)[0], t)
    same(slerp_state_dicts(a, b, t, scope="global"), unflatten(whole, flatten(a)[1]))
    taus = task_vector(base, a), task_vector(base, b)
    turned = {name: base[name] + slerp(taus[0][name], taus[1][name], t) for name in base}
    same(merge(base, [a, b], "slerp", t=t, on="task_vectors"), turned)
    whole = slerp(flatten(taus[0])[0], flatten(taus[1])[0], t)
    same(
        slerp_state_dicts(a, b, t, base, "task_vectors", "global"),
        apply_task_vector(base, unflatten(whole, flatten(a)[1])),
    )


# -- what stands in the way --------------------------------------------------------------------------------------------


def test_conflicts_are_counted_where_two_models_speak():
    taus = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, -1.0, 0.0, -1.0, 0.0], [2.0, 1.0, -1.0, 0.0, 0.0]])
    assert sign_conflict_rate(taus) == pytest.approx(2 / 3)
    assert sign_conflict_rate(torch.tensor([[1.0, 2.0], [3.0, 4.0]])) == 0


@given(seeds)
def test_cosines_are_those_of_the_pairs(seed):
    taus = randn(3, 20, seed=seed)
    cosines = cosine_matrix(taus)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3, dtype=torch.float64))
    wanted = torch.nn.functional.cosine_similarity(taus[0], taus[2], dim=0)
    torch.testing.assert_close(cosines[0, 2], wanted)
    torch.testing.assert_close(cosines, cosines.T)


def test_a_loss_plane_is_direct_evaluation_with_rows_for_the_first_arrow():
    base, (first, second) = family(3, 2)
    taus = task_vector(base, first), task_vector(base, second)

    def judge(found):
        return flatten(found)[0].square().sum()

    grid = loss_plane(judge, base, *taus, torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0]))
    assert grid.shape == (3, 2)
    torch.testing.assert_close(grid[0, 0], judge(base))
    torch.testing.assert_close(grid[2, 0], judge(first))
    torch.testing.assert_close(grid[0, 1], judge(second))
    torch.testing.assert_close(grid[2, 1], judge(apply_task_vector(first, taus[1])))


def test_shuffled_channels_say_the_same_and_lie_elsewhere():
    model = tiny_lm.load("base")
    weights = dict(model.state_dict())
    ids = tiny_lm.held_out(4).ids
    perm = torch.randperm(96, generator=start())
    shuffled = permute_channels(weights, 1, perm)
    logits = [tiny_lm.forward(model, found, ids) for found in (weights, shuffled)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    name = "model.layers.1.mlp.gate_proj.weight"
    assert torch.equal(shuffled[name][0], weights[name][perm[0]])
    changed = [key for key in weights if not torch.equal(weights[key], shuffled[key])]
    assert len(changed) == 3
    assert (shuffled[name] - weights[name]).norm() > weights[name].norm()
    same(permute_channels(shuffled, 1, perm.argsort()), weights, 0)


# -- refused input -----------------------------------------------------------------------------------------------------

ONE, TWO = torch.ones(4), torch.ones(2, 4)
S, LONGER, OTHER = {"a": ONE}, {"a": torch.ones(5)}, {"b": ONE}
WHOLE = {"a": torch.ones(4, dtype=torch.long)}
WRONG = [
    (lambda: task_vector(S, OTHER), r"same names, but differ in \['a', 'b'\]"),
    (lambda: task_vector(S, LONGER), r"a must have one shape, got \(4,\), \(5,\)"),
    (lambda: task_vector(WHOLE, WHOLE), "a must be floating point, got torch.int64"),
    (lambda: average([]), "models must not be empty"),
    (lambda: average([S, LONGER]), "a must have one shape"),
    (lambda: flatten({}), "models must not be empty"),
    (lambda: unflatten(ONE, flatten(LONGER)[1]), "hold 5 weights, got 4"),
    (lambda: task_arithmetic(TWO, [1.0]), "weights must be one for each of 2 models, got 1"),
    (lambda: trim(ONE, 0), "density must be above 0 and at most 1, got 0"),
    (lambda: trim(ONE, 1.1), "density must be above 0 and at most 1, got 1.1"),
    (lambda: trim(ONE, 0.2), "density 0.2 keeps none of 4 entries"),
    (lambda: elect_sign(TWO, "majority"), "method must be one of mass, count, got 'majority'"),
    (lambda: disjoint_mean(TWO, ONE, [1, 2, 3]), "one for each of 2 models, got 3"),
    (lambda: disjoint_mean(TWO, ONE, normalize="sum"), "normalize must be one of count, weights, got 'sum'"),
    (lambda: disjoint_mean(TWO, ONE, [1, 0], "weights"), r"weights must be above 0 to be divided by, got \[1, 0\]"),
    (lambda: dare(ONE, 1.0, start()), "drop_rate must be at least 0 and below 1, got 1.0"),
    (lambda: dare_output_std(TWO, ONE, -0.1), "drop_rate must be at least 0 and below 1, got -0.1"),
    (lambda: slerp(ONE, LONGER["a"], 0.5), r"one shape, got \(4,\) and \(5,\)"),
    (lambda: slerp(ONE, 0 * ONE, 0.5), "a vector of zeros has no direction"),
    (lambda: slerp_state_dicts(S, S, 0.5, on="taus"), "on must be one of weights, task_vectors, got 'taus'"),
    (lambda: slerp_state_dicts(S, S, 0.5, on="task_vectors"), "task vectors need a base, got None"),
    (lambda: slerp_state_dicts(S, S, 0.5, scope="layer"), "scope must be one of global, tensor, got 'layer'"),
    (lambda: slerp_state_dicts(S, OTHER, 0.5), "same names"),
    (lambda: merge(S, [S], "soup"), f"method must be one of {', '.join(METHODS)}, got 'soup'"),
    (lambda: merge(S, [], "ties"), "models must not be empty"),
    (lambda: merge(S, [S], "slerp"), "slerp merges exactly two models, got 1"),
    (lambda: merge(S, [S, S], "dare_ties"), "DARE draws at random: pass a generator"),
    (lambda: merge(S, [S], "ties", scope="all"), "scope must be one of global, tensor, got 'all'"),
    (lambda: merge(S, [LONGER], "task_arithmetic"), "a must have one shape"),
    (lambda: sign_conflict_rate(torch.eye(3)), "no entry is different from 0 in two models"),
    (lambda: cosine_matrix(torch.zeros(2, 3)), "a vector of zeros has no direction"),
    (lambda: permute_channels(S, 0, torch.arange(4)), "no feed-forward in layer 0"),
    (lambda: permute_channels(dict(tiny_lm.load("base").state_dict()), 0, torch.zeros(96).long()), "0..95 once"),
    (lambda: Config(n_tasks=4), "n_tasks must be in 2..3, got 4"),
    (lambda: Config(drop_rate=1.0), "drop_rate must be in 0..0.99, got 1.0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- experts of the tiny LM --------------------------------------------------------------------------------------------

CONFIG = Config(n_tasks=2, finetune_steps=20, scale=0.8, t=0.25, drop_rate=0.5, density=0.3)


@pytest.fixture(scope="module")
def experts():
    return experiment.train_experts(CONFIG, TASKS[:2])


@pytest.fixture
def few_texts(monkeypatch):
    """Judge on little, so that a test takes a second."""
    monkeypatch.setattr(experiment, "HELD_OUT", 2)
    monkeypatch.setattr(experiment, "DRAWS", 2)
    monkeypatch.setattr(experiment, "SCALES", (0.2, 0.6))
    monkeypatch.setattr(experiment, "TIES_DENSITIES", (0.1,))
    monkeypatch.setattr(experiment, "PLANE_TEXTS", 2)
    monkeypatch.setattr(experiment, "PLANE_ALPHAS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(experiment, "DROP_RATES", (0.0, 0.9))


def test_experts_left_the_base_in_the_direction_of_their_task(experts):
    assert experts.taus.shape == (2, 43_744)
    for k, (task, expert) in enumerate(zip(experts.tasks, experts.experts, strict=True)):
        same(experts.moved(experts.taus[k]), expert, 1e-6)
        own = experiment.losses(expert, (task,), 12)
        assert own < experiment.losses(experts.base, (task,), 12)
    assert experts.tasks == ("farm2", "sea2")


def test_crops_are_cut_from_one_matrix_and_follow_ties(experts):
    found = experiment.arrows(CONFIG, experts)
    name = experiment.MATRIX
    for k, expert in enumerate(experts.experts):
        torch.testing.assert_close(found["expert_crop"][k], expert[name][:10, :10])
        torch.testing.assert_close(
            found["tau_crop"][k], found["expert_crop"][k] - found["base_crop"], atol=1e-6, rtol=0
        )
    result = ties(experts.taus, CONFIG.density)
    for field, whole in (("sign_crop", result.sign), ("merged_crop", result.merged)):
        assert torch.equal(found[field], unflatten(whole, experts.spec)[name][:10, :10])
    torch.testing.assert_close(found["mean_crop"], found["tau_crop"].mean(dim=0))
    assert torch.equal(found["agree_crop"], found["trimmed_crop"].sign() == found["sign_crop"])
    assert torch.equal(found["conflict_crop"], found["tau_crop"][0] * found["tau_crop"][1] < 0)
    assert found["conflict_rate"] == pytest.approx(
        float((experts.taus[0] * experts.taus[1] < 0).double().mean()), abs=0.01
    )
    assert int((result.trimmed[0] != 0).sum()) == int(0.3 * 43_744)
    torch.testing.assert_close(found["norms"], experts.taus.norm(dim=1))
    base = flatten(experts.base)[0]
    torch.testing.assert_close(found["relative_norms"] * base.norm(), found["norms"])
    assert float((experts.taus[0].abs() <= found["median_change"][0]).double().mean()) == pytest.approx(0.5, abs=1e-3)
    assert found["tau_hist_counts"].sum(dim=1).tolist() == pytest.approx([0.995 * 43_744] * 2, rel=0.01)
    assert found["crop_matrix"] == "layer 1 q_proj"


def test_the_toy_shows_every_step():
    toy = experiment.toy()
    torch.testing.assert_close(toy["toy_mass_above"] + toy["toy_mass_below"], toy["toy_sum"])
    assert toy["toy_mass_above"].tolist() == [5, 2.5, 0, 4.5]
    assert toy["toy_mass_below"].tolist() == [-1, -3, 0, -4]
    assert toy["toy_sign"].tolist() == [1, -1, 1, 1]
    assert (toy["toy_trimmed"][:, 2] == 0).all()
    assert toy["toy_merged"].tolist() == [2.5, -1.5, 0, 2.25]


@pytest.mark.usefixtures("few_texts")
def test_the_plane_holds_base_experts_and_the_shadow_of_ties(experts):
    found = experiment.plane(CONFIG, experts)
    first, second, points = found["plane_loss_1"], found["plane_loss_2"], found["points"]
    assert first.shape == (3, 3)
    rows = {name: k for k, name in enumerate(points.name)}
    corners = {"base": (0, 0), "farm2": (2, 0), "sea2": (0, 2), "average": (1, 1), "sum": (2, 2)}
    for name, (row, column) in corners.items():
        torch.testing.assert_close(points.loss_1[rows[name]], first[row, column], atol=1e-4, rtol=0)
        torch.testing.assert_close(points.loss_2[rows[name]], second[row, column], atol=1e-4, rtol=0)
        place = [float(points.alpha[rows[name]]), float(points.beta[rows[name]])]
        assert place == [row / 2, column / 2]
    direct = experiment.losses(experts.experts[0], ("farm2", "sea2"), 2)
    torch.testing.assert_close(torch.stack([first[2, 0], second[2, 0]]), direct, atol=1e-4, rtol=0)
    best = rows["best of the grid"]
    assert float(points.loss_1[best] + points.loss_2[best]) == pytest.approx(float((first + second).min()), abs=1e-4)
    merged = ties(experts.taus, CONFIG.density).merged
    shadow = (points.alpha[-1] * experts.taus[0] + points.beta[-1] * experts.taus[1]) / CONFIG.scale
    torch.testing.assert_close((merged - shadow) @ experts.taus.T, torch.zeros(2), atol=1e-3, rtol=0)
    assert float(points.residual[-1]) == pytest.approx(float((merged - shadow).norm() / merged.norm()), rel=1e-4)
    assert points.residual[:-1].tolist() == [0] * 6
    ours = experiment.losses(experts.moved(CONFIG.scale * merged), ("farm2", "sea2"), 2)
    torch.testing.assert_close(torch.stack([points.loss_1[-1], points.loss_2[-1]]), ours, atol=1e-4, rtol=0)


def test_two_dimensions_show_what_happens_in_all(experts):
    found = experiment.arc_and_chord(CONFIG, experts)
    first, second = experts.taus
    for k in (0, 7, 30):
        t = float(found["slerp_t"][k])
        assert float(found["slerp_norms"][k]) == pytest.approx(float(slerp(first, second, t).norm()), rel=1e-4)
        assert float(found["lerp_norms"][k]) == pytest.approx(float(lerp(first, second, t).norm()), rel=1e-4)
    torch.testing.assert_close(found["slerp_arc"][[0, -1]], torch.stack([found["slerp_a"], found["slerp_b"]]))
    torch.testing.assert_close(found["slerp_chord"][[0, -1]], torch.stack([found["slerp_a"], found["slerp_b"]]))
    a, b = found["slerp_a"], found["slerp_b"]
    assert float(a @ b) == pytest.approx(float(first @ second), abs=1e-3)
    torch.testing.assert_close(found["slerp_point"], slerp(a, b, 0.25))
    torch.testing.assert_close(found["lerp_point"], lerp(a, b, 0.25))
    assert 60 < found["omega_tau_deg"] < 95
    assert found["omega_weights_deg"] < 5
    models = torch.stack([flatten(expert)[0] for expert in experts.experts]).double()
    cosine = float(cosine_matrix(models)[0, 1])
    assert found["omega_weights_deg"] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-4)
    fallen = [
        torch.equal(slerp(x, experts.experts[1][name], 0.25), lerp(x, experts.experts[1][name], 0.25))
        for name, x in experts.experts[0].items()
    ]
    assert found["slerp_fallbacks"] == sum(fallen) > 0
    assert found["num_tensors"] == 29
    assert 0 < found["slerp_lerp_max_abs_diff"] < 0.01


@pytest.mark.usefixtures("few_texts")
def test_dropping_is_shown_on_real_outputs_and_losses(experts):
    found = experiment.dropping(CONFIG, experts)
    tau = unflatten(experts.taus[0], experts.spec)[experiment.MATRIX]
    torch.testing.assert_close(found["dare_crop"], tau[:10, :10] * found["dare_mask"] * found["dare_factor"])
    assert found["dare_factor"] == 2
    assert found["dare_band"].tolist() == pytest.approx(
        [found["dare_exact"] - found["dare_std"], found["dare_exact"] + found["dare_std"]]
    )
    spread = found["dare_draws"] - found["dare_exact"]
    assert 0.5 < float(spread.square().mean().sqrt()) / found["dare_std"] < 1.6
    assert len(found["dare_draws"]) == model_merging.JITTER
    own = experiment.losses(experts.experts[0], ("farm2",))
    for field in ("dare_loss", "drop_only_loss"):
        torch.testing.assert_close(found[field][0], own.expand(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(found[f"{field}_mean"], found[field].mean(dim=1))
    torch.testing.assert_close(found["magnitude_loss"][:1], own, atol=1e-4, rtol=0)
    tenth = experts.moved(trim(experts.taus[0], 1 - 0.9))
    torch.testing.assert_close(found["magnitude_loss"][1:], experiment.losses(tenth, ("farm2",)))
    draw = dare(experts.taus[0], 0.9, start(1))[0]
    torch.testing.assert_close(found["dare_loss"][1, 1], experiment.losses(experts.moved(draw), ("farm2",))[0])
    torch.testing.assert_close(
        found["drop_only_loss"][1, 1], experiment.losses(experts.moved(0.1 * draw), ("farm2",))[0], atol=1e-4, rtol=0
    )
    assert found["dare_std_ratio"].tolist() == pytest.approx([0, 3])


@pytest.mark.usefixtures("few_texts")
def test_the_table_judges_what_merge_returns(experts):
    found = experiment.every_method(CONFIG, experts)
    table, tasks = found["table"], experts.tasks
    rows = dict(zip(table.name, table.loss, strict=True))
    base, models = experts.base, experts.experts
    wanted = {
        "base": base,
        "expert of sea2": models[1],
        "average": average(models),
        "sum, λ = 0.8": merge(base, models, "task_arithmetic", scale=0.8),
        "TIES, 30 %": merge(base, models, "ties", density=0.3, scale=0.8),
        "TIES, 10 %": merge(base, models, "ties", density=0.1, scale=0.8),
        "TIES, 30 % of each tensor": merge(base, models, "ties", density=0.3, scope="tensor", scale=0.8),
        "SLERP of two, weights": merge(base, models, "slerp", t=0.25),
        "SLERP of two, task vectors": merge(base, models, "slerp", t=0.25, on="task_vectors"),
    }
    for name, model in wanted.items():
        torch.testing.assert_close(rows[name], experiment.losses(model, tasks))
    for name, method in (("DARE, 50 % dropped", "dare_linear"), ("DARE + TIES, 50 % dropped", "dare_ties")):
        drawn = torch.stack(
            [
                experiment.losses(merge(base, models, method, scale=0.8, drop_rate=0.5, generator=start(k)), tasks)
                for k in range(2)
            ]
        )
        torch.testing.assert_close(rows[name], drawn.mean(dim=0))
        means = drawn.mean(dim=1)
        torch.testing.assert_close(table.spread[table.name.index(name)], means.max() - means.min())
    torch.testing.assert_close(table.mean, table.loss.mean(dim=1))
    best = int(found["scale_loss"].mean(dim=1).argmin())
    assert found["best_scale"] == (0.2, 0.6)[best]
    torch.testing.assert_close(rows[f"sum, best λ of 2: {found['best_scale']:g}"], found["scale_loss"][best])
    lowest = merge(base, models, "task_arithmetic", scale=0.2)
    torch.testing.assert_close(found["scale_loss"][0], experiment.losses(lowest, tasks))


@pytest.mark.usefixtures("few_texts")
def test_strangers_do_not_average(experts):
    found = experiment.another_address(CONFIG, experts)
    gap = found["permuted_gap"]
    assert found["permuted_max_abs_diff_logits"] < 1e-4
    assert gap["shuffled"] == pytest.approx(gap["base"], abs=1e-5)
    assert gap["other seed"] == pytest.approx(gap["base"], abs=0.1)
    assert gap["base + shuffled"] > gap["base"] + 2
    assert gap["base + other seed"] > gap["base"] + 2
    assert torch.equal(found["channel_crop"], experts.base[experiment.CHANNELS][:10, :10])
    moved = experts.base[experiment.CHANNELS][found["channel_order"], :10]
    assert torch.equal(found["channel_crop_permuted"], moved)
    assert found["permuted_distance"] > 0.5


def test_the_default_run_tells_what_the_video_says(tmp_path):
    trace = trace_store.get(model_merging)
    rows = dict(zip(trace.table.name, trace.table.loss, strict=True))
    mean = dict(zip(trace.table.name, trace.table.mean.tolist(), strict=True))
    for k in range(3):
        assert int(torch.stack([rows[f"expert of {name}"][k] for name in trace.tasks]).argmin()) == k
        assert rows["average"][k] < rows["base"][k]
        assert (trace.entropy_floors[k] < torch.stack(list(rows.values()))[:, k]).all()
    assert mean["average"] < min(mean[f"expert of {name}"] for name in trace.tasks)
    assert abs(float(trace.cosines[0, 1])) < 0.05  # farm and sea share no direction
    assert trace.cosines[0, 2] > 0.1  # moods change in both
    assert mean["TIES, 20 %"] < mean["sum, λ = 1"]  # without tuning
    assert mean["average"] < mean["TIES, 20 %"]  # but not better than the mean
    assert abs(trace.omega_tau_deg - 90) < 5
    assert trace.omega_weights_deg < 10
    # the changes are large for a model this small: dropping 90 % hurts, and rescaled noise hurts more than silence
    p = trace.dare_p_axis.tolist()
    assert trace.dare_loss_mean[p.index(0.5)] < trace.drop_only_loss_mean[p.index(0.5)]
    assert trace.dare_loss_mean[4] > trace.drop_only_loss_mean[4] + 1
    assert trace.median_change[0] > 0.005
    far = dict(zip(trace.far_table.name, trace.far_table.loss, strict=True))
    assert (far["average"] > torch.stack([far["expert of news"][0], far["expert of longago"][1]]) + 1).all()
    trace.save(tmp_path / "trace.safetensors")
    assert model_merging.Trace.load(tmp_path / "trace.safetensors").hash == trace.hash
