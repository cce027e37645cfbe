import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import lora, tiny_lm, trace_store
from internals_math import lora_experiment as experiment
from internals_math.lora import (
    Config,
    amplification_factor,
    break_even_rank,
    captured_energy,
    init_lora,
    lora_delta_weight,
    lora_gradients,
    lora_linear,
    lora_parameter_count,
    lora_scaling,
    merge_lora,
    projected_norm,
    rank_one_terms,
    stable_rank,
    subspace_similarity,
    subspace_similarity_grid,
    truncate_rank,
    unmerge_lora,
)
from tests.internals_math import made_adapters
from tests.oracles import randn

seeds = st.integers(0, 10_000)
ranks = st.integers(1, 5)
OUT, IN = 6, 9


def adapter(r, seed):
    """Random W, A and B."""
    return randn(OUT, IN, seed=seed), randn(r, IN, seed=seed + 1), randn(OUT, r, seed=seed + 2)


def start(seed=0):
    return torch.Generator().manual_seed(seed)


@given(seeds, ranks, st.sampled_from(["kaiming", "gaussian"]))
def test_before_the_first_step_nothing_is_changed_and_only_b_learns(seed, r, init):
    weight, x = randn(OUT, IN, seed=seed), randn(4, IN, seed=seed + 1)
    lora_a, lora_b = init_lora(IN, OUT, r, init=init, generator=start(seed), dtype=torch.float64)
    assert torch.equal(lora_linear(x, weight, lora_a, lora_b, 2.0), x @ weight.T)
    grad_a, grad_b = lora_gradients(randn(OUT, IN, seed=seed + 2), lora_a, lora_b, 2.0)
    assert (grad_a == 0).all()
    assert grad_b.abs().min() > 0


def test_the_first_draw_of_a_stays_in_its_bound_or_has_its_spread():
    kaiming = init_lora(100, 200, 50, generator=start())[0]
    assert kaiming.abs().max() <= 0.1
    assert float(kaiming.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.03)
    gaussian = init_lora(100, 200, 50, init="gaussian", generator=start())[0]
    assert float(gaussian.std()) == pytest.approx(1 / 50, rel=0.03)


@given(seeds, ranks)
def test_a_change_is_a_sum_of_outer_products_of_rank_r_at_most(seed, r):
    _, lora_a, lora_b = adapter(r, seed)
    delta = lora_delta_weight(lora_a, lora_b, 1.5)
    terms = rank_one_terms(lora_a, lora_b, 1.5)
    torch.testing.assert_close(terms.sum(dim=0), delta)
    assert all(int(torch.linalg.matrix_rank(term)) == 1 for term in terms)
    sigma = torch.linalg.svdvals(delta)
    assert (sigma[r:] < 1e-10 * sigma[0]).all()


@given(seeds, ranks)
def test_merging_gives_the_same_outputs_and_unmerging_undoes_it(seed, r):
    weight, lora_a, lora_b = adapter(r, seed)
    x, bias = randn(2, 3, IN, seed=seed + 3), randn(OUT, seed=seed + 4)
    merged = merge_lora(weight, lora_a, lora_b, 1.5)
    torch.testing.assert_close(lora_linear(x, weight, lora_a, lora_b, 1.5, bias), x @ merged.T + bias)
    torch.testing.assert_close(unmerge_lora(merged, lora_a, lora_b, 1.5), weight, atol=1e-12, rtol=0)


@given(seeds, ranks)
def test_what_a_cannot_see_passes_unchanged(seed, r):
    weight, lora_a, lora_b = adapter(r, seed)
    x = randn(4, IN, seed=seed + 3)
    invisible = x - x @ torch.linalg.pinv(lora_a) @ lora_a
    torch.testing.assert_close(lora_linear(invisible, weight, lora_a, lora_b, 1.5), invisible @ weight.T)


@given(seeds, ranks)
def test_only_the_product_is_determined_not_its_factors(seed, r):
    _, lora_a, lora_b = adapter(r, seed)
    turn = torch.linalg.qr(randn(r, r, seed=seed + 3))[0] @ torch.diag(1 + randn(r, seed=seed + 4).abs())
    same = lora_delta_weight(torch.linalg.inv(turn) @ lora_a, lora_b @ turn, 1.5)
    torch.testing.assert_close(same, lora_delta_weight(lora_a, lora_b, 1.5))


@given(seeds)
def test_the_first_step_is_the_full_gradient_seen_through_a(seed):
    grad, (lora_a, lora_b) = (
        randn(OUT, IN, seed=seed),
        init_lora(IN, OUT, 2, generator=start(seed), dtype=torch.float64),
    )
    _, grad_b = lora_gradients(grad, lora_a, lora_b, 2.0)
    delta = lora_delta_weight(lora_a, lora_b - 0.1 * grad_b, 2.0)
    torch.testing.assert_close(delta, -0.1 * 2.0**2 * grad @ lora_a.T @ lora_a)


def test_alpha_scales_the_change_and_r_divides_it():
    assert lora_scaling(8, 4) == 2
    assert lora_scaling(8, 4, use_rslora=True) == 4
    _, lora_a, lora_b = adapter(2, 0)
    once, twice = (lora_delta_weight(lora_a, lora_b, lora_scaling(alpha, 2)) for alpha in (4, 8))
    torch.testing.assert_close(twice, 2 * once)


def test_adapters_may_come_in_batches():
    lora_a, lora_b = randn(3, 2, IN, seed=1), randn(3, OUT, 2, seed=2)
    together = lora_delta_weight(lora_a, lora_b, 0.5)
    torch.testing.assert_close(together[1], lora_delta_weight(lora_a[1], lora_b[1], 0.5))


# -- rank and subspaces ------------------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 6))
def test_no_product_of_rank_r_comes_closer_than_the_truncated_matrix(seed, r):
    matrix = randn(OUT, IN, seed=seed)
    best = float((matrix - truncate_rank(matrix, r)).norm())
    assert best <= float((matrix - truncate_rank(matrix, max(0, r - 1))).norm()) + 1e-12
    if r:
        # The best B for a random A is least squares; even so it loses.
        lora_a = randn(r, IN, seed=seed + 1)
        rival = matrix @ torch.linalg.pinv(lora_a) @ lora_a
        assert best <= float((matrix - rival).norm()) + 1e-12
    torch.testing.assert_close(truncate_rank(matrix, 6), matrix)


@given(seeds, st.integers(1, 5))
def test_energy_rises_to_one_and_counts_the_directions(seed, r):
    matrix = lora_delta_weight(*adapter(r, seed)[1:], 1.0)
    energy = captured_energy(matrix)
    assert (energy.diff() >= -1e-12).all()
    assert float(energy[r - 1]) == pytest.approx(1)
    assert 1 <= stable_rank(matrix) <= r + 1e-9
    assert stable_rank(torch.eye(4)) == pytest.approx(4)


@given(seeds)
def test_similarity_is_symmetric_bounded_and_blind_to_a_change_of_basis(seed):
    first, second = randn(3, IN, seed=seed), randn(5, IN, seed=seed + 1)
    grid = subspace_similarity_grid(first, second)
    torch.testing.assert_close(grid.T, subspace_similarity_grid(second, first))
    assert ((grid >= 0) & (grid <= 1 + 1e-12)).all()
    turned = torch.linalg.qr(randn(3, 3, seed=seed + 2))[0] @ first
    torch.testing.assert_close(subspace_similarity_grid(turned, second), grid)
    mixed = (torch.eye(3) + randn(3, 3, seed=seed + 2).triu(1)) @ first  # invertible: only the whole span stays
    torch.testing.assert_close(subspace_similarity_grid(mixed, second)[-1], grid[-1])
    assert [subspace_similarity(first, first, k, k) for k in (1, 2, 3)] == pytest.approx([1, 1, 1])


def test_random_subspaces_overlap_by_their_share_of_the_space():
    pairs = [subspace_similarity(randn(2, 20, seed=k), randn(5, 20, seed=k + 1000), 2, 5) for k in range(300)]
    assert sum(pairs) / 300 == pytest.approx(5 / 20, abs=0.02)


def test_amplification_compares_a_change_with_what_was_there():
    weight = torch.diag(torch.tensor([10.0, 1, 0.1, 0.1]))
    delta = torch.zeros(4, 4)
    delta[2, 2] = 2.0  # a direction that the weight holds but does not stress
    assert amplification_factor(weight, delta, 1) == pytest.approx(20)
    assert projected_norm(weight, weight, 2) == pytest.approx(math.sqrt(101))


def test_adapters_of_the_break_even_rank_save_nothing():
    assert break_even_rank(32, 32) == 16
    assert lora_parameter_count(32, 32, 16) == 32 * 32
    assert lora_parameter_count(30, 20, 6) == 2 * lora_parameter_count(30, 20, 3)


# -- refused input -----------------------------------------------------------------------------------------------------

A, B, W = torch.ones(2, 9), torch.ones(6, 2), torch.ones(6, 9)
WRONG = [
    (lambda: lora_scaling(0, 2), "lora_alpha must be above 0 and r at least 1, got lora_alpha 0, r 2"),
    (lambda: lora_scaling(2, 0), "got lora_alpha 2, r 0"),
    (lambda: init_lora(9, 6, 7, generator=start()), "r must be in 1..6 .*, got 7"),
    (lambda: init_lora(9, 6, 0, generator=start()), "r must be in 1..6 .*, got 0"),
    (lambda: init_lora(9, 6, 2, init="zeros", generator=start()), "init must be kaiming or gaussian, got 'zeros'"),
    (lambda: lora_delta_weight(A, torch.ones(6, 3), 1), "A has rank 2, but B 3"),
    (lambda: merge_lora(torch.ones(9, 6), A, B, 1), r"weight of shape \(6, 9\), got \(9, 6\)"),
    (lambda: lora_linear(torch.ones(8), W, A, B, 1), "x has 8 input features, but the weight 9"),
    (lambda: lora_gradients(W.T, A, B, 1), r"weight of shape \(6, 9\), got \(9, 6\)"),
    (lambda: truncate_rank(W, -1), "r must be in 0..6, got -1"),
    (lambda: truncate_rank(W, 7), "r must be in 0..6, got 7"),
    (lambda: captured_energy(0 * W), "a matrix of zeros has no directions"),
    (lambda: amplification_factor(W, 0 * W, 1), "a matrix of zeros has no directions"),
    (lambda: projected_norm(W, W.T, 1), r"one shape, got \(6, 9\) and \(9, 6\)"),
    (lambda: subspace_similarity(A, A, 3, 1), "i must be in 1..2 and j in 1..2, got 3 and 1"),
    (lambda: lora_parameter_count(9, 6, 7), "r must be in 1..6 .*, got 7"),
    (lambda: Config(module="gate_proj"), "module must be one of q_proj, .* got 'gate_proj'"),
    (lambda: Config(r=9), "r must be in 1..8, got 9"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM learns a dialect --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """The whole trace after a training too short to teach much."""
    return trace_store.get(lora, Config(r=3, lora_alpha=6.0, train_steps=20, module="v_proj", layer=2))


@pytest.fixture(scope="module")
def made():
    """The whole trace of adapters and weights that were made up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train_adapters", made_adapters.train_adapters)
        patch.setattr(experiment, "train_fully", made_adapters.train_fully)
        patch.setattr(experiment, "HELD_OUT", 20)
        return experiment.run(Config(r=3, lora_alpha=6.0, train_steps=30, module="v_proj", layer=2, seed=1))


NAME = "model.layers.2.self_attn.v_proj.weight"


def made_run(dialect, r, seed=1):
    return made_adapters.train_adapters(dialect, r, 2.0, steps=30, seed=seed, watched=NAME)


def merged(adapters):
    """The weights of the base model with these adapters added."""
    state = tiny_lm.load("base").state_dict()
    return state | {
        name: state[name] + adapters.scaling * adapters.lora_b[name] @ a for name, a in adapters.lora_a.items()
    }


def judged(weights, dialect):
    """The loss of the tiny LM with these weights on 20 held-out texts."""
    model = tiny_lm.copy_of(tiny_lm.load("base"), weights).requires_grad_(False)
    return tiny_lm.evaluate(model, tiny_lm.held_out(20, dialect))


def check_agreement(trace):
    torch.testing.assert_close(trace.merged_weight, trace.weight + trace.lora_delta)
    torch.testing.assert_close(trace.full_weight, trace.weight + trace.full_delta, atol=1e-6, rtol=0)
    torch.testing.assert_close(trace.rank_one_terms.sum(dim=0), trace.lora_delta, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(trace.partial_deltas[1], trace.rank_one_terms[0] + trace.rank_one_terms[1])
    torch.testing.assert_close(trace.partial_deltas[-1], trace.lora_delta, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(trace.coords, trace.inputs @ trace.lora_A.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.outputs, trace.inputs @ trace.lora_delta.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.full_terms.sum(dim=0), truncate_rank(trace.full_delta, 4), atol=1e-5, rtol=1e-4)
    for left, sheets in zip(trace.full_residuals, trace.full_terms.cumsum(dim=0), strict=True):
        torch.testing.assert_close(left, trace.full_delta - sheets, atol=1e-6, rtol=1e-4)
    assert trace.largest_weight == float(trace.weight.abs().max())
    assert trace.largest_change == float(trace.full_delta.abs().max())
    assert trace.largest_delta == float(trace.lora_delta.abs().max())
    assert (trace.matrix_numbers, trace.adapter_numbers) == (1024, 192)
    assert trace.ranks.tolist() == [1, 2, 3, 4, 8]
    assert trace.parameter_counts["full"] == 12 * 32 * 32
    assert trace.parameter_counts["r=3"] == 12 * 3 * 64
    assert trace.base_weights_changed == 0
    assert trace.max_abs_diff_logits < 1e-4


def test_the_trace_agrees_with_itself(quick):
    check_agreement(quick)


def test_a_trace_that_was_made_up_agrees_with_itself(made):
    check_agreement(made)


def test_what_is_shown_of_a_run_is_read_from_that_run(made):
    near, far, state = made_run("farm2", 3), made_run("news", 3), tiny_lm.load("base").state_dict()
    assert made.scaling == 2
    assert torch.equal(made.weight, state[NAME])
    assert torch.equal(made.lora_A, near.lora_a[NAME])
    assert torch.equal(made.lora_B, near.lora_b[NAME])
    assert torch.equal(made.lora_A_init, near.lora_a_init[NAME])
    torch.testing.assert_close(made.lora_delta, 2 * near.lora_b[NAME] @ near.lora_a[NAME])
    assert torch.equal(made.second_lora_A, far.lora_a[NAME])
    assert torch.equal(made.second_lora_B, far.lora_b[NAME])
    torch.testing.assert_close(made.second_delta, 2 * far.lora_b[NAME] @ far.lora_a[NAME])
    torch.testing.assert_close(made.second_merged_weight, state[NAME] + made.second_delta)
    assert torch.equal(made.full_weight, made_adapters.train_fully("farm2", steps=30, seed=1)[NAME])
    assert made.history_steps[[0, 1, -1]].tolist() == [0, 1, 29]
    torch.testing.assert_close(made.delta_history, made.lora_delta * made.history_steps[:, None, None] / 30)
    torch.testing.assert_close(made.lora_B_history, made.lora_B * made.history_steps[:, None, None] / 30)
    assert torch.equal(made.lora_A_history, made.lora_A.expand_as(made.lora_A_history))
    assert torch.equal(made.grad_norm_A, made.history_steps.float())
    assert torch.equal(made.grad_norm_B, 100 + made.history_steps.float())


def test_spectra_are_those_of_the_change_the_weight_and_noise_of_the_same_size(made):
    for values, matrix in ((made.full_singular_values, made.full_delta), (made.weight_singular_values, made.weight)):
        torch.testing.assert_close(values.square(), torch.linalg.eigvalsh(matrix.T @ matrix).flip(0), atol=1e-4, rtol=0)
    assert made.directions.tolist() == list(range(1, 33))
    energy = made.full_singular_values.square()
    torch.testing.assert_close(made.captured_energy, energy.cumsum(0) / energy.sum())
    assert made.full_stable_rank == pytest.approx(float(energy.sum() / energy[0]), rel=1e-5)
    noise = made.random_singular_values.square()
    torch.testing.assert_close(noise.sum(), made.full_delta.square().sum())
    torch.testing.assert_close(made.random_captured_energy, noise.cumsum(0) / noise.sum())
    assert len(made.full_terms) == 4
    for count in (1, 2, 3, 4):
        torch.testing.assert_close(made.full_terms[:count].sum(dim=0), truncate_rank(made.full_delta, count))


def test_losses_are_those_of_models_with_these_weights(made):
    state, full = tiny_lm.load("base").state_dict(), made_adapters.train_fully("farm2", steps=30, seed=1)
    far_full = made_adapters.train_fully("news", steps=30, seed=1)
    for loss, weights, dialect in (
        (made.loss_base, state, "farm2"),
        (made.far_loss_base, state, "news"),
        (made.old_task_loss_base, state, "base"),
        (made.loss_full, full, "farm2"),
        (made.far_loss_full, far_full, "news"),
        (made.old_task_loss_full, full, "base"),
    ):
        assert loss == pytest.approx(judged(weights, dialect), rel=1e-4)
    for row, r in enumerate((1, 2, 3, 4, 8)):
        near = merged(made_run("farm2", r))
        assert float(made.loss_lora[row]) == pytest.approx(judged(near, "farm2"), rel=1e-4)
        assert float(made.old_task_loss_lora[row]) == pytest.approx(judged(near, "base"), rel=1e-4)
        assert float(made.far_loss_lora[row]) == pytest.approx(judged(merged(made_run("news", r)), "news"), rel=1e-4)
        cut = {name: state[name] + truncate_rank(full[name] - state[name], r) for name in experiment.matrices()}
        gain = made.loss_base - made.loss_full
        for share, loss in ((made.gain_lora, made.loss_lora), (made.gain_truncated, made.loss_truncated)):
            assert float(share[row]) == pytest.approx((made.loss_base - float(loss[row])) / gain, abs=1e-5)
        assert float(made.loss_truncated[row]) == pytest.approx(judged(state | cut, "farm2"), rel=1e-4)
    for floor, dialect in ((made.loss_floor, "farm2"), (made.far_loss_floor, "news")):
        assert floor == tiny_lm.held_out(20, dialect).entropy_floor


def test_inputs_are_spread_over_real_ones_of_the_adapted_model(made):
    corpus = tiny_lm.held_out(8, "farm2")
    model = tiny_lm.copy_of(tiny_lm.load("base"), merged(made_run("farm2", 3))).requires_grad_(False)
    _, record = model(corpus.ids, record=("linear_inputs",))
    seen = torch.cat([
        row[:length] for row, length in zip(record["linear_inputs"][NAME], corpus.lengths.tolist(), strict=True)
    ])  # fmt: skip
    places = [round(place * (len(seen) - 1) / 63) for place in range(64)]
    torch.testing.assert_close(made.inputs, seen[places], atol=1e-4, rtol=1e-4)


def test_the_invisible_part_stands_at_right_angles_to_the_rows_of_a(made):
    rows = torch.linalg.qr(made.lora_A.T)[0]  # a basis of what A sees
    visible = made.inputs @ rows @ rows.T
    share = 1 - visible.square().sum(dim=1) / made.inputs.square().sum(dim=1)
    assert made.invisible_share == pytest.approx(float(share.mean()), abs=1e-5)
    usual = int((share - share.median()).abs().argmin())
    hidden = made.inputs - visible
    other = int((hidden - hidden[usual]).norm(dim=1).argmax())
    alike = torch.stack([made.inputs[usual], visible[usual], visible[usual] + hidden[other]])
    torch.testing.assert_close(made.alike_inputs, alike, atol=1e-4, rtol=0)


def test_counts_are_those_of_square_matrices_of_width_32(made):
    assert made.lora_params.tolist() == [12 * r * (32 + 32) for r in (1, 2, 3, 4, 8)]
    torch.testing.assert_close(made.lora_share, made.lora_params / 12_288)
    assert made.parameter_counts["model"] == tiny_lm.load("base").num_params
    assert made.break_even_rank == 16


def test_subspaces_are_those_of_two_seeds_and_of_the_change(made):
    one, other = (torch.linalg.svd(made_run("farm2", 8, seed).lora_a[NAME])[2] for seed in (1, 2))
    for i, j in ((1, 1), (2, 5), (8, 3), (8, 8)):
        overlap = float((one[:i] @ other[:j].T).square().sum()) / min(i, j)
        assert float(made.similarity_grid[i - 1, j - 1]) == pytest.approx(overlap, abs=1e-4)
        assert float(made.similarity_random[i - 1, j - 1]) == pytest.approx(max(i, j) / 32)
    u, _, vh = torch.linalg.svd(made.lora_delta)
    there = float((u[:, :3].T @ made.weight @ vh[:3].T).norm())
    assert float(made.projected_norms[0]) == pytest.approx(there, rel=1e-4)
    assert made.amplification == pytest.approx(float(made.lora_delta.norm()) / there, rel=1e-4)
    assert float(made.projected_norms[1]) == pytest.approx(float(made.weight_singular_values[:3].norm()), rel=1e-4)
    assert made.projected_norms[2] < made.projected_norms[1]


def test_a_hundred_tasks_take_a_hundred_models_or_one_with_a_hundred_adapters():
    counts = lora.gpt3_counts()
    assert (counts["rank"], counts["tasks"]) == (4, 100)
    assert counts["hundred_full_bytes"] == 100 * counts["full_bytes"]
    assert counts["hundred_lora_bytes"] == counts["full_bytes"] + 100 * counts["lora_bytes"]


def test_history_starts_at_zero_with_a_gradient_for_b_alone(quick):
    assert (quick.delta_history[0] == 0).all()
    assert quick.grad_norm_A[0] == 0
    assert quick.grad_norm_B[0] > 0
    assert (quick.grad_norm_A[1:] > 0).all()
    assert quick.history_steps[0] == 0
    assert quick.history_steps[-1] == 19
    assert (quick.history_steps.diff() >= 0).all()


def check_alike(trace):
    first, second, third = trace.alike_inputs
    assert (first - second).norm() > 0.3 * first.norm()
    assert (first - third).norm() > 0.3 * first.norm()
    for field in (trace.alike_coords, trace.alike_outputs):
        torch.testing.assert_close(field, field[:1].expand_as(field), atol=1e-4, rtol=0)
    assert 0.5 < trace.invisible_share < 1


def test_inputs_that_differ_in_what_a_cannot_see_get_the_same_change(quick):
    check_alike(quick)


def test_alike_inputs_of_a_made_up_run_get_the_same_change(made):
    check_alike(made)


def test_spectra_hold_the_same_energy(quick):
    sizes = [values.square().sum() for values in (quick.full_singular_values, quick.random_singular_values)]
    torch.testing.assert_close(*sizes)
    assert (quick.captured_energy[:8] > quick.random_captured_energy[:8]).all()


def test_cutting_the_full_change_costs_less_and_less(quick):
    assert quick.loss_truncated[-1] - quick.loss_full < quick.loss_truncated[0] - quick.loss_full
    assert quick.loss_full < quick.loss_base
    assert (quick.loss_lora < quick.loss_base).all()
    assert (quick.far_loss_lora < quick.far_loss_base).all()
    assert quick.loss_floor < quick.loss_full


def test_another_run_gives_the_same_adapters():
    name = experiment.matrices()[0]
    settings = {"steps": 3, "learning_rate": 1e-2, "seed": 4, "watched": name}
    once, again = (experiment.train_adapters("farm2", 2, 2.0, **settings) for _ in range(2))
    assert all(torch.equal(once.lora_b[name], again.lora_b[name]) for name in experiment.matrices())
    assert len(once.pairs) == 4
    start, end = once.pairs[0], once.pairs[-1]
    assert torch.equal(start[0], once.lora_a_init[name])
    assert (start[1] == 0).all()
    assert torch.equal(end[0], once.lora_a[name])
    assert torch.equal(end[1], once.lora_b[name])
    assert len(once.grad_norms) == 3


def test_history_covers_a_run_of_any_length_with_more_records_at_its_start():
    for steps in (5, 20, 24, 150, 500):  # the first is shorter than the history
        chosen = experiment.history_steps(steps)
        assert len(chosen) == lora.HISTORY
        assert chosen[0] == 0
        assert chosen[-1] == steps - 1
    assert int(chosen[5]) < 10


def test_a_trace_survives_the_store(quick, tmp_path):
    quick.save(tmp_path / "trace.safetensors")
    assert lora.Trace.load(tmp_path / "trace.safetensors").hash == quick.hash


@pytest.mark.slow
def test_the_default_runs_tell_what_the_video_says():
    trace = trace_store.get(lora)
    gain = trace.loss_base - trace.loss_full
    assert (trace.loss_base - trace.loss_lora > 0.8 * gain).all()  # rank 1 has most of it, rank 2 all
    assert abs(float(trace.loss_lora[1]) - trace.loss_full) < 0.01
    assert (trace.far_loss_lora.diff() < 0).all()  # far away, rank counts
    assert trace.far_loss_lora[-1] > trace.far_loss_floor + 0.2  # the new words' embeddings are frozen
    assert trace.loss_truncated[0] - trace.loss_full > 0.03  # the first direction alone is not enough
    assert (
        tiny_lm.held_out(experiment.HELD_OUT, "base").entropy_floor
        < trace.old_task_loss_base
        < trace.old_task_loss_full
    )
    assert trace.similarity_grid[0, 0] > 3 * trace.similarity_random[0, 0]
    assert trace.amplification > 2
