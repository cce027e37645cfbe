import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import mixture_of_experts, tiny_lm, trace_store
from internals_math import mixture_of_experts_experiment as experiment
from internals_math.mixture_of_experts import (
    Config,
    dispatch_with_capacity,
    effective_experts,
    entropy,
    expert_capacity,
    expert_combinations,
    expert_ffn,
    expert_load,
    importance_cv_squared,
    load_balancing_loss,
    load_balancing_loss_grad,
    moe_forward,
    moe_parameter_count,
    mutual_information,
    router_logit_grad,
    router_probs,
    router_z_loss,
    specialization,
    top_k_gating,
    update_selection_bias,
)
from internals_math.model_shapes import preset
from tests.oracles import randn

seeds = st.integers(0, 10_000)
experts_and_k = st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def layer(num_experts, *, seed=0, width=6, size=5):
    """Random weights of one MoE layer: router, gate_up_proj, down_proj."""
    return (
        randn(num_experts, width, seed=seed),
        randn(num_experts, 2 * size, width, seed=seed + 1),
        randn(num_experts, width, size, seed=seed + 2),
    )


def dense_mixture(x, router, gate_up, down, top_k, *, norm=True):
    """Every expert on every token, then a mask: what the sparse layer must equal."""
    probs = (x @ router.T).softmax(dim=-1)
    kept = probs.topk(top_k, dim=-1).indices
    gates = torch.zeros_like(probs).scatter(-1, kept, probs.gather(-1, kept))
    if norm:
        gates = gates / gates.sum(dim=-1, keepdim=True)
    every = torch.stack([expert_ffn(x, *pair) for pair in zip(gate_up, down, strict=True)], dim=-2)
    return (gates[..., None] * every).sum(dim=-2)


# -- routing -----------------------------------------------------------------------------------------------------------


@given(experts_and_k, seeds)
def test_gates_sum_to_one_and_equal_a_softmax_over_the_kept_logits(sizes, seed):
    num_experts, top_k = sizes
    logits = 3 * randn(4, 5, num_experts, seed=seed)
    probs = logits.softmax(dim=-1)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(4, 5, dtype=torch.float64))
    weights, indices = top_k_gating(probs, top_k)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 5, dtype=torch.float64))
    torch.testing.assert_close(weights, logits.gather(-1, indices).softmax(dim=-1))
    assert (indices.sort(dim=-1).values.diff(dim=-1) > 0).all()  # k different experts
    assert (weights.diff(dim=-1) <= 0).all()  # best first


def test_the_kept_experts_are_the_most_likely_ones_and_ties_go_to_the_lower_index():
    weights, indices = top_k_gating(torch.tensor([0.1, 0.4, 0.1, 0.4]), 3, norm_topk_prob=False)
    assert indices.tolist() == [1, 3, 0]
    assert weights.tolist() == pytest.approx([0.4, 0.4, 0.1])
    assert top_k_gating(torch.full((64,), 1 / 64), 8)[1].tolist() == list(range(8))


def test_the_router_works_in_float32_even_for_half_precision_tokens():
    logits, probs = router_probs(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16))
    assert logits.dtype == probs.dtype == torch.float32


@given(experts_and_k, seeds, st.booleans())
def test_sending_tokens_to_their_experts_equals_computing_all_and_masking(sizes, seed, norm):
    num_experts, top_k = sizes
    weights = layer(num_experts, seed=seed)
    x = randn(2, 7, 6, seed=seed + 3)
    sparse = moe_forward(x, *weights, top_k, norm_topk_prob=norm)
    torch.testing.assert_close(sparse.output, dense_mixture(x, *weights, top_k, norm=norm), atol=1e-10, rtol=0)
    assert not sparse.dropped.any()


def test_with_all_experts_raw_and_renormalized_gates_give_the_dense_mixture():
    weights, x = layer(5), randn(9, 6, seed=4)
    raw, norm = (moe_forward(x, *weights, 5, norm_topk_prob=flag).output for flag in (False, True))
    torch.testing.assert_close(raw, norm)
    torch.testing.assert_close(raw, dense_mixture(x, *weights, 5))


@given(experts_and_k, seeds)
def test_equal_experts_make_any_routing_equal_to_one_expert(sizes, seed):
    num_experts, top_k = sizes
    router, gate_up, down = layer(num_experts, seed=seed)
    x = randn(8, 6, seed=seed + 3)
    output = moe_forward(x, router, gate_up[:1].expand_as(gate_up), down[:1].expand_as(down), top_k).output
    torch.testing.assert_close(output, expert_ffn(x, gate_up[0], down[0]))


@given(seeds)
def test_renaming_the_experts_renames_the_choices_and_leaves_the_output(seed):
    router, gate_up, down = layer(6, seed=seed)
    x, order = randn(8, 6, seed=seed + 3), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    before = moe_forward(x, router, gate_up, down, 2)
    after = moe_forward(x, router[order], gate_up[order], down[order], 2)
    assert torch.equal(order[after.indices], before.indices)
    torch.testing.assert_close(after.output, before.output)


def test_reordering_the_tokens_reorders_the_outputs():
    weights, x, order = layer(6), randn(8, 6, seed=4), torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    torch.testing.assert_close(moe_forward(x[order], *weights, 2).output, moe_forward(x, *weights, 2).output[order])


def test_two_renormalized_experts_put_the_output_on_the_segment_between_theirs():
    router, gate_up, down = layer(6)
    x = randn(8, 6, seed=4)
    result = moe_forward(x, router, gate_up, down, 2)
    first, second = (
        torch.stack([expert_ffn(x[t], gate_up[e], down[e]) for t, e in enumerate(result.indices[:, choice])])
        for choice in (0, 1)
    )
    gate = result.weights[:, :1]
    torch.testing.assert_close(result.output, second + gate * (first - second))


def test_the_gate_half_of_the_fused_projection_comes_first():
    gate_up = torch.tensor([[1.0], [0.0]])  # gate reads the token, up reads nothing
    assert expert_ffn(torch.ones(1), gate_up, torch.ones(1, 1)) == 0
    turned = expert_ffn(torch.tensor([-30.0]), torch.tensor([[1.0], [1.0]]), torch.ones(1, 1))
    assert abs(float(turned)) < 1e-9  # silu(-30) · -30 is nearly 0: one factor passes the nonlinearity, the other not
    assert float(expert_ffn(torch.tensor([2.0]), torch.tensor([[1.0], [-3.0]]), torch.ones(1, 1))) == pytest.approx(
        2 / (1 + math.exp(-2)) * -6
    )


# -- gradients and balance ---------------------------------------------------------------------------------------------


@given(experts_and_k, seeds)
def test_the_task_gradient_sums_to_zero_and_spares_unselected_experts(sizes, seed):
    num_experts, top_k = sizes
    weights, indices = top_k_gating(randn(5, num_experts, seed=seed).softmax(dim=-1), top_k)
    grad = router_logit_grad(randn(5, 7, seed=1), randn(5, top_k, 7, seed=2), weights, indices, num_experts)
    torch.testing.assert_close(grad.sum(dim=-1), torch.zeros(5, dtype=torch.float64), atol=1e-10, rtol=0)
    outside = torch.ones_like(grad).scatter(1, indices, 0) == 1
    assert (grad[outside] == 0).all()
    assert (grad[~outside] != 0).all() or top_k == 1


@given(experts_and_k, seeds)
def test_with_raw_gates_the_score_of_every_expert_learns_and_the_sum_is_still_zero(sizes, seed):
    num_experts, top_k = sizes
    probs = randn(5, num_experts, seed=seed).softmax(dim=-1)
    weights, indices = top_k_gating(probs, top_k, norm_topk_prob=False)
    outputs, delta = randn(5, top_k, 7, seed=2), randn(5, 7, seed=1)
    grad = router_logit_grad(delta, outputs, weights, indices, num_experts, probs=probs)
    torch.testing.assert_close(grad.sum(dim=-1), torch.zeros(5, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (grad != 0).all()
    if top_k == num_experts:  # nobody is left out: raw gates sum to 1
        torch.testing.assert_close(grad, router_logit_grad(delta, outputs, weights, indices, num_experts))


def test_an_expert_that_lowers_the_loss_more_than_the_mixture_is_scored_higher_next_time():
    expert_outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    grad_output = torch.tensor([[-1.0, 0.0]])  # more of the first direction would help
    weights, indices = torch.tensor([[0.75, 0.25]]), torch.tensor([[2, 0]])
    grad = router_logit_grad(grad_output, expert_outputs, weights, indices, 4)
    assert grad.tolist() == [[pytest.approx(0.1875), 0, pytest.approx(-0.1875), 0]]


@pytest.mark.parametrize("norm", [True, False])
def test_one_expert_with_a_gate_of_one_gives_the_router_nothing_to_learn(norm):
    router, gate_up, down = layer(4)
    router.requires_grad_()
    moe_forward(randn(6, 6, seed=4), router, gate_up, down, 1, norm_topk_prob=norm).output.square().sum().backward()
    assert router.grad is not None
    largest = float(router.grad.abs().max())
    assert largest < 1e-12 if norm else largest > 1e-3  # raw probabilities do learn, hence Switch's choice


def test_unselected_experts_get_no_gradient():
    router, gate_up, down = (weight.requires_grad_() for weight in layer(4))
    result = moe_forward(randn(1, 6, seed=4), router, gate_up, down, 2)
    result.output.square().sum().backward()
    idle = sorted(set(range(4)) - set(result.indices.flatten().tolist()))
    for weight in (router, gate_up, down):
        assert weight.grad is not None
        assert (weight.grad[idle].abs() < 1e-12).all()  # the softmax's terms cancel up to rounding
        assert (weight.grad[result.indices[0]].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("per", "uniform", "collapsed"), [("assignment", 1, 8), ("token", 1, 8)])
def test_the_balance_loss_is_one_when_even_and_n_when_one_expert_takes_all(per, uniform, collapsed):
    assert load_balancing_loss(torch.zeros(10, 8), 1, per=per) == pytest.approx(uniform)
    one = torch.zeros(10, 8)
    one[:, 3] = 100
    assert load_balancing_loss(one, 1, per=per) == pytest.approx(collapsed)


@given(experts_and_k, seeds)
def test_counting_per_token_makes_the_balance_loss_k_times_larger(sizes, seed):
    num_experts, top_k = sizes
    logits = randn(3, 6, num_experts, seed=seed)
    ours, theirs = (load_balancing_loss(logits, top_k, per=per) for per in ("assignment", "token"))
    torch.testing.assert_close(theirs, top_k * ours)
    assert load_balancing_loss(torch.zeros_like(logits), top_k, per="token") == pytest.approx(top_k)


@given(experts_and_k, seeds)
def test_the_balance_gradient_sums_to_zero_over_the_experts(sizes, seed):
    num_experts, top_k = sizes
    grad = load_balancing_loss_grad(3 * randn(3, 6, num_experts, seed=seed), top_k)
    torch.testing.assert_close(grad.sum(dim=-1), torch.zeros(3, 6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_balance_gradient_pushes_busy_experts_down():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0], [2.0, 0.5, 0.5]])
    grad = load_balancing_loss_grad(logits, 1)
    assert (grad[:, 0] > 0).all()
    assert (grad[:, 1:] < 0).all()


@given(experts_and_k, seeds, st.floats(-5, 5))
def test_a_constant_on_all_logits_changes_the_z_loss_only(sizes, seed, shift):
    num_experts, top_k = sizes
    logits = randn(6, num_experts, seed=seed)
    before, after = (top_k_gating(h.softmax(dim=-1), top_k) for h in (logits, logits + shift))
    assert torch.equal(before[1], after[1])
    torch.testing.assert_close(before[0], after[0])
    torch.testing.assert_close(load_balancing_loss(logits, top_k), load_balancing_loss(logits + shift, top_k))
    log_z = logits.exp().sum(dim=-1).log()
    torch.testing.assert_close(router_z_loss(logits + shift), (log_z + shift).square().mean())


def test_importance_is_even_or_one_sided():
    assert importance_cv_squared(torch.full((6, 4), 0.25)) == 0
    one_sided = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 6)
    assert importance_cv_squared(one_sided) == pytest.approx(3)  # mean 6/4, variance 27/4: N - 1


def test_load_is_a_share_of_assignments_or_of_tokens():
    indices = torch.tensor([[0, 1], [0, 2], [0, 1]])
    assert expert_load(indices, 4).tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert expert_load(indices, 4, per="token").tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])


# -- loss-free balance -------------------------------------------------------------------------------------------------


def test_the_bias_lifts_idle_experts_and_lowers_busy_ones_by_the_same_step():
    bias = update_selection_bias(torch.zeros(4), torch.tensor([0.5, 0.25, 0.25, 0.0]), 0.1)
    assert bias.tolist() == pytest.approx([-0.1, 0, 0, 0.1])


@given(seeds)
def test_the_bias_changes_who_is_chosen_but_never_how_much_they_count(seed):
    probs = randn(20, 6, seed=seed).softmax(dim=-1)
    bias = torch.tensor([0.0, 0, 0, 0, 0, 1.0], dtype=torch.float64)
    weights, indices = top_k_gating(probs, 2, selection_bias=bias)
    assert (indices[:, 0] == 5).all()
    chosen = probs.gather(1, indices)
    torch.testing.assert_close(weights, chosen / chosen.sum(dim=1, keepdim=True))
    same, also = (top_k_gating(probs, 2, selection_bias=b) for b in (None, torch.full((6,), 0.5, dtype=torch.float64)))
    assert torch.equal(same[1], also[1])
    torch.testing.assert_close(same[0], also[0])


def test_a_bias_that_follows_the_load_evens_it():
    probs = (randn(400, 6, seed=3) + torch.arange(6)).softmax(dim=-1)
    bias = torch.zeros(6, dtype=torch.float64)
    before = effective_experts(expert_load(top_k_gating(probs, 2)[1], 6))
    for _ in range(400):
        bias = update_selection_bias(bias, expert_load(top_k_gating(probs, 2, selection_bias=bias)[1], 6), 0.005)
    after = effective_experts(expert_load(top_k_gating(probs, 2, selection_bias=bias)[1], 6))
    assert before < 3.5
    assert after > 5.6


def test_sigmoid_scores_are_renormalized_over_the_chosen_experts():
    scores = torch.tensor([0.9, 0.2, 0.6])
    weights, indices = top_k_gating(scores, 2, scores="sigmoid")
    assert indices.tolist() == [0, 2]
    assert weights.tolist() == pytest.approx([0.6, 0.4])


# -- capacity ----------------------------------------------------------------------------------------------------------


def test_first_choices_of_late_tokens_come_before_second_choices_of_early_ones():
    indices = torch.tensor([[0, 1], [2, 1], [1, 0]])
    slot, dropped = dispatch_with_capacity(indices, 3, 2)
    assert slot.tolist() == [[0, 1], [0, -1], [0, 1]]  # the third token's first choice takes the first seat of expert 1
    assert dropped.tolist() == [[False, False], [False, True], [False, False]]


@given(experts_and_k, seeds, st.integers(1, 12))
def test_no_expert_has_more_guests_than_seats_and_nobody_is_turned_away_from_a_free_one(sizes, seed, capacity):
    num_experts, top_k = sizes
    _, indices = top_k_gating(randn(12, num_experts, seed=seed).softmax(dim=-1), top_k)
    slot, dropped = dispatch_with_capacity(indices, num_experts, capacity)
    for expert in range(num_experts):
        asked = indices == expert
        taken = slot[asked & ~dropped].tolist()
        assert sorted(taken) == list(range(min(capacity, int(asked.sum()))))
    assert (slot[dropped] == -1).all()


def test_enough_seats_for_everybody_drop_nothing():
    _, indices = top_k_gating(randn(12, 4, seed=1).softmax(dim=-1), 2)
    assert not dispatch_with_capacity(indices, 4, 2 * 12)[1].any()


def test_a_token_that_lost_both_experts_adds_nothing():
    router, gate_up, down = layer(3)
    x = randn(1, 6, seed=4).expand(5, 6)  # five equal tokens want the same two experts
    result = moe_forward(x, router, gate_up, down, 2, capacity=2)
    assert result.dropped.tolist() == [[False, False], [False, False], [True, True], [True, True], [True, True]]
    assert (result.output[2:] == 0).all()


def test_a_token_that_lost_one_expert_keeps_the_gate_of_the_other():
    _, gate_up, down = layer(4)
    router = torch.eye(4, 6, dtype=torch.float64)
    x = torch.tensor([[2.0, 1, 0, 0, 1, 1], [2, 0, 1, 0, 1, 1]], dtype=torch.float64)  # both want expert 0 most
    result = moe_forward(x, router, gate_up, down, 2, capacity=1)
    assert result.dropped.tolist() == [[False, False], [True, False]]
    torch.testing.assert_close(result.output[1], result.weights[1, 1] * expert_ffn(x[1], gate_up[2], down[2]))


def test_seats_are_rounded_up_but_not_by_rounding_errors():
    assert expert_capacity(12, 8, 2, 1.0) == 3
    assert expert_capacity(13, 8, 2, 1.0) == 4
    assert expert_capacity(100, 1, 1, 1.1) == 110  # 1.1 · 100 = 110.00000000000001


# -- measures ----------------------------------------------------------------------------------------------------------


def test_effective_experts_count_the_experts_that_share_the_work():
    assert effective_experts(torch.full((8,), 0.125)) == pytest.approx(8)
    assert effective_experts(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(2)
    assert effective_experts(torch.tensor([3.0, 0, 0, 0])) == pytest.approx(1)


@given(experts_and_k, seeds)
def test_specialization_lies_between_zero_and_the_entropy_of_the_mean(sizes, seed):
    probs = (4 * randn(10, sizes[0], seed=seed)).softmax(dim=-1)
    value = float(specialization(probs))
    assert -1e-12 <= value <= float(entropy(probs.mean(dim=0))) + 1e-12 <= math.log(sizes[0]) + 2e-12


def test_specialization_is_nothing_when_all_tokens_agree_and_ln_n_when_each_has_its_own():
    assert specialization(torch.tensor([[0.7, 0.3]] * 4)) == pytest.approx(0, abs=1e-6)
    assert specialization(torch.eye(4)) == pytest.approx(math.log(4))


def test_mutual_information_is_zero_for_independent_counts_and_full_for_a_diagonal():
    assert mutual_information(torch.tensor([[2, 4], [3, 6]])) == pytest.approx(0, abs=1e-12)
    assert mutual_information(torch.eye(8)) == pytest.approx(math.log(8))


def test_active_weights_never_exceed_all_and_equal_them_when_every_expert_runs():
    shape = preset("mixtral-8x7b")
    assert moe_parameter_count(shape)[1] < moe_parameter_count(shape)[0]
    everybody = dataclasses.replace(shape, num_experts_per_tok=8)
    assert moe_parameter_count(everybody) == (moe_parameter_count(shape)[0],) * 2


# -- refused input -----------------------------------------------------------------------------------------------------

EVEN = torch.full((3, 4), 0.25)
WRONG = [
    (lambda: top_k_gating(EVEN, 0), r"top_k must be in 1..4 .*, got 0"),
    (lambda: top_k_gating(EVEN, 5), r"top_k must be in 1..4 .*, got 5"),
    (lambda: top_k_gating(EVEN * 2, 2), r"rows of probs must sum to 1, got sums \[2.0, 2.0, 2.0\]"),
    (lambda: top_k_gating(EVEN * math.nan, 2), r"rows of probs must sum to 1"),
    (lambda: top_k_gating(EVEN, 2, scores="relu"), r"scores must be softmax or sigmoid, got 'relu'"),
    (lambda: top_k_gating(EVEN * 4, 2, scores="sigmoid"), r"sigmoid scores must be between 0 and 1"),
    (lambda: top_k_gating(EVEN, 2, selection_bias=torch.zeros(3)), r"selection_bias needs 4 numbers, got shape \(3,\)"),
    (lambda: router_probs(torch.zeros(2, 5), torch.zeros(4, 6)), r"tokens have width 5, but the router's rows have 6"),
    (lambda: expert_ffn(torch.zeros(2, 6), torch.zeros(5, 6), torch.zeros(6, 2)), r"even number of rows.*got 5"),
    (lambda: expert_ffn(torch.zeros(2, 5), torch.zeros(4, 6), torch.zeros(6, 2)), r"width 5, but the experts 6"),
    (lambda: expert_ffn(torch.zeros(2, 6), torch.zeros(4, 6), torch.zeros(6, 4)), r"must be \(6, 2\).*got \(6, 4\)"),
    (
        lambda: moe_forward(torch.zeros(2, 6), torch.zeros(3, 6), torch.zeros(4, 4, 6), torch.zeros(4, 6, 2), 1),
        r"the router has 3 rows, but gate_up_proj 4 experts",
    ),
    (
        lambda: router_logit_grad(
            torch.zeros(3, 6), torch.zeros(3, 1, 6), torch.ones(3, 1), torch.zeros(3, 1).long(), 4, probs=EVEN
        ),
        r"raw gates must be the probabilities of the chosen experts",
    ),
    (lambda: expert_load(torch.tensor([[0, 1]]), 4, per="expert"), r"per must be assignment or token, got 'expert'"),
    (lambda: expert_load(torch.tensor([[0, 4]]), 4), r"indices must be in 0..3, got 0..4"),
    (lambda: expert_load(torch.zeros(0, 2, dtype=torch.long), 4), r"at least one assignment"),
    (lambda: load_balancing_loss(torch.zeros(3, 4), 5), r"top_k must be in 1..4"),
    (lambda: load_balancing_loss(torch.zeros(3, 4), 1, per="row"), r"per must be assignment or token, got 'row'"),
    (lambda: expert_capacity(0, 4, 1, 1.0), r"num_tokens and num_experts must be at least 1, got 0 and 4"),
    (lambda: expert_capacity(6, 4, 5, 1.0), r"top_k must be in 1..4"),
    (lambda: expert_capacity(6, 4, 1, 0.0), r"capacity_factor must be above 0, got 0.0"),
    (lambda: expert_capacity(6, 4, 1, math.inf), r"capacity_factor must be above 0, got inf"),
    (lambda: dispatch_with_capacity(torch.zeros(2, 1, dtype=torch.long), 4, 0), r"capacity must be at least 1, got 0"),
    (lambda: expert_combinations(4, 5), r"top_k must be in 1..4"),
    (lambda: effective_experts(torch.zeros(4)), r"load must be at least 0 and not 0 everywhere"),
    (lambda: effective_experts(torch.tensor([-1.0, 2.0])), r"load must be at least 0"),
    (lambda: Config(top_k=5), r"top_k must be in 1..4, got 5"),
    (lambda: experiment.train_run("free lunch", **experiment.settings(Config())), r"run must be one of free, aux"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM with experts ------------------------------------------------------------------------------------------


def test_the_layer_that_trains_and_the_sparse_layer_agree():
    model = experiment.moe_lm(8, 16, 2, seed=3)
    for experts in experiment.experts_of(model):
        experts.selection_bias = 0.05 * torch.randn(8, generator=torch.Generator().manual_seed(1))
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
        trained, sparse = experts(x), experts.sparse(x)
        torch.testing.assert_close(trained, sparse.output, atol=1e-5, rtol=0)
        assert torch.equal(experts.seen.indices, sparse.indices)


def test_the_tiny_models_have_the_weights_that_are_counted():
    config = Config()
    model = experiment.moe_lm(config.num_experts, config.expert_size, config.top_k, seed=0)
    assert model.num_params == moe_parameter_count(mixture_of_experts.tiny_shape(config))[0]


@pytest.fixture(scope="module")
def quick():
    """The whole trace after a training too short to teach much, with three experts a token and few seats."""
    config = Config(top_k=3, train_steps=50, capacity_factor=0.5, num_experts=4, expert_size=8)
    return mixture_of_experts.trace(config)


def test_the_trace_agrees_with_itself(quick):
    trace = quick
    torch.testing.assert_close(trace.products.sum(dim=1), trace.logits[trace.shown_token], atol=1e-5, rtol=0)
    torch.testing.assert_close(trace.hidden @ trace.router_weight.T, trace.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(trace.logits.softmax(dim=1), trace.probs)
    torch.testing.assert_close(trace.gates.gather(1, trace.indices), trace.weights)
    torch.testing.assert_close(trace.gates.sum(dim=1), torch.ones(12))
    mixed = (trace.weights[..., None] * trace.expert_outputs).sum(dim=1)
    torch.testing.assert_close(mixed, trace.output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trace.kept_probability, (trace.probs * (trace.gates > 0)).sum(dim=1))
    mixes = trace.mix_gates @ trace.plane[trace.shown_token, :3]
    torch.testing.assert_close(mixes, trace.plane[trace.shown_token, :4], atol=1e-4, rtol=0)
    assert trace.expert_names == ("A", "B", "C", "D")
    assert trace.even_load == 0.25
    assert len(trace.tokens) == 12
    assert trace.tokens[0] == "<bos>"


def test_the_plane_keeps_lengths_and_angles_of_the_first_two_experts(quick):
    first_two = quick.expert_outputs[:, :2]
    torch.testing.assert_close(
        first_two @ first_two.mT, quick.plane[:, :2] @ quick.plane[:, :2].mT, atol=1e-4, rtol=1e-4
    )
    bead = (quick.weights[..., None] * quick.plane[:, :3]).sum(dim=1)
    torch.testing.assert_close(quick.plane[:, 3], bead, atol=1e-5, rtol=1e-4)
    assert (quick.plane_lost > 0).all()  # three outputs do not fit a plane through the origin
    assert (quick.plane_lost < 1).all()


def test_the_shadow_is_the_foot_of_the_gradient_on_the_segment(quick):
    bead, tip = quick.plane[:, 3], quick.plane[:, 4]
    line = quick.plane[:, 1] - quick.plane[:, 0]
    to_foot, to_tip = quick.shadow - bead, tip - quick.shadow
    torch.testing.assert_close((to_tip * line).sum(dim=1), torch.zeros(12), atol=1e-3, rtol=0)
    cross = to_foot[:, 0] * line[:, 1] - to_foot[:, 1] * line[:, 0]
    torch.testing.assert_close(cross, torch.zeros(12), atol=1e-3, rtol=0)


def test_the_drawn_arrow_goes_against_the_gradient(quick):
    push = quick.plane[:, 4] - quick.plane[:, 3]
    for expert in (0, 1):
        drawn = (push * quick.plane[:, expert]).sum(dim=1)
        real = (quick.output_grad * quick.expert_outputs[:, expert]).sum(dim=1)
        torch.testing.assert_close(drawn, -quick.gradient_scale * real, atol=1e-3, rtol=1e-3)


def test_the_output_gradient_is_that_of_the_mean_loss_of_the_sentence():
    model = experiment.moe_lm(8, 16, 2, seed=0).double().requires_grad_(False)
    ids = experiment.sentence()
    reading = experiment.read_layer(model, ids, 1)
    nudge = 1e-5 * randn(12, 32, seed=5)
    layer_1 = list(experiment.experts_of(model))[1]

    def loss(sign):
        padded = torch.nn.functional.pad(sign * nudge, (0, 0, 0, 1))  # the last id is only a target
        hook = layer_1.register_forward_hook(lambda module, args, output: output + padded)
        logits = model(ids[None])[0, :-1]
        hook.remove()
        return torch.nn.functional.cross_entropy(logits, ids[1:])

    slope = (loss(1) - loss(-1)) / 2
    torch.testing.assert_close((reading.output_grad * nudge).sum(), slope, atol=1e-12, rtol=1e-5)


def test_a_router_step_follows_the_gradient_and_changes_the_shown_token_by_at_most_one(quick):
    change = quick.logits_after - quick.logits
    assert float(change[quick.shown_token].abs().max()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(change, -quick.router_step * quick.router_grad_task, atol=1e-5, rtol=0)
    assert (change[quick.gates == 0] == 0).all()
    torch.testing.assert_close(quick.weights_after.sum(dim=1), torch.ones(12))


def test_the_shown_gradient_is_half_as_long_as_the_line_between_the_outputs(quick):
    first, second, _, bead, tip = quick.plane[quick.shown_token]
    assert float((tip - bead).norm()) == pytest.approx(float((second - first).norm()) / 2, rel=1e-4)


def reading_of(outputs, grad):
    """Return what is known of tokens with these two outputs and gradients (T, 2) in two dimensions, gates alike."""
    outputs, grad = torch.tensor(outputs), torch.tensor(grad)
    half = torch.full(grad.shape, 0.5)
    indices = torch.tensor([[0, 1]] * len(grad))
    routing = mixture_of_experts.MoEOutput(outputs.mean(dim=1), half, half, half, indices, indices < 0)
    return experiment.Reading(grad, torch.eye(2), routing, outputs, outputs.mean(dim=1), grad)


def test_the_shown_token_has_an_open_triangle_and_a_gradient_aslant_to_its_side():
    open_triangle, flat = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.9, 0.1]]
    aslant, along, across = [-1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]
    reading = reading_of([open_triangle] * 4 + [flat], [aslant, along, across, aslant, aslant])
    assert experiment.telling_token(reading, torch.ones(5, 2)) == 3  # token 0 is <bos>
    assert experiment.telling_token(reading, torch.tensor([[1.0]] * 4 + [[20.0]]).expand(5, 2)) == 4


def test_the_seats_of_the_trace_are_those_of_its_capacity(quick):
    assert quick.capacity == 5  # ⌈0.5 · 3 · 12 / 4⌉
    assert quick.num_dropped == int(quick.dropped.sum()) > 0
    assert int((quick.slot >= 0).sum()) == 36 - quick.num_dropped
    assert (quick.kept_weights[quick.dropped] == 0).all()
    assert quick.num_assignments == 36
    for token, (experts, slots) in enumerate(zip(quick.indices.tolist(), quick.slot.tolist(), strict=True)):
        for expert, slot in zip(experts, slots, strict=True):
            assert slot == -1 or quick.seat_token[slot, expert] == token
    assert int(quick.seat_taken.sum()) == int((quick.seat_token >= 0).sum()) == 36 - quick.num_dropped
    assert quick.arrival[:, 0].tolist() == list(range(12))
    assert quick.arrival[:, 1].tolist() == list(range(12, 24))


def test_without_a_limit_every_word_stands_behind_those_before_it(quick):
    for expert in range(4):
        column = quick.queue_token[:, expert].tolist()
        came = [token for token, chosen in enumerate(quick.indices.tolist()) if expert in chosen]
        assert column == came + [-1] * (len(column) - len(came))
    assert torch.equal(quick.queue_taken, (quick.queue_token >= 0).long())
    places = quick.queue_token[quick.queue_slot, quick.indices]
    assert torch.equal(places, torch.arange(12)[:, None].expand(12, 3))


def test_histories_start_before_training_and_end_with_it(quick):
    assert quick.history_steps.tolist() == [0, 10, 20, 30, 40, 50]
    for name in ("free", "aux", "bias"):
        load = getattr(quick, f"load_history_{name}")
        assert load.shape == (6, 4)
        torch.testing.assert_close(load.sum(dim=1), torch.ones(6))
        torch.testing.assert_close(getattr(quick, f"effective_history_{name}"), effective_experts(load))
        loss = getattr(quick, f"loss_history_{name}")
        assert loss[-1] < loss[0]
    assert torch.equal(quick.load_history_free[0], quick.load_history_aux[0])  # the same start


def test_the_classes_cover_every_word_once():
    classes = experiment.word_classes()
    counted = [word for members in experiment.CLASSES.values() for word in members]
    assert len(counted) == len(set(counted))
    assert set(counted) <= set(tiny_lm.tokens(range(tiny_lm.VOCAB_SIZE)))
    assert int(classes.max()) == len(experiment.CLASSES)


def test_labels_never_tell_more_than_they_hold_and_shuffled_ones_tell_almost_nothing(quick):
    assert quick.labels.name == ("word", "word class", "kind of text", "farm or sea")
    assert (quick.labels.bits <= quick.labels.entropy_bits + 1e-5).all()
    assert (quick.labels.shuffled_bits < 0.03).all()
    assert quick.labels.bits[0] >= quick.labels.bits[1]  # the class is a function of the word
    torch.testing.assert_close(quick.class_by_expert.sum(dim=1), torch.ones(8))
    assert quick.class_by_expert_shuffled.std(dim=0).max() < quick.class_by_expert.std(dim=0).max()


def test_a_trace_survives_the_store(quick, tmp_path):
    quick.save(tmp_path / "trace.safetensors")
    assert mixture_of_experts.Trace.load(tmp_path / "trace.safetensors").hash == quick.hash


@settings(max_examples=3)
@given(st.sampled_from([1, 2, 4]))
def test_any_number_of_chosen_experts_can_be_drawn(top_k):
    model = experiment.moe_lm(4, 8, top_k, seed=0)
    model.requires_grad_(False)
    reading = experiment.read_layer(model, experiment.sentence(), 0)
    task = experiment.task_gradient(reading)
    torch.testing.assert_close(task.sum(dim=1), torch.zeros(12), atol=1e-5, rtol=0)
    assert (task.abs().sum(dim=1) > 0).all()  # a lone raw gate teaches its router too
    drawn = experiment.geometry(reading, task, experiment.telling_token(reading, task))
    assert drawn["plane"].shape == (12, top_k + 2, 2)
    assert all(torch.as_tensor(value).isfinite().all() for value in drawn.values())
    if top_k < 3:
        assert (drawn["plane_lost"] < 1e-5).all()
    after = drawn["logits_after"].softmax(dim=1).gather(1, reading.routing.indices)
    expected = after if top_k == 1 else after / after.sum(dim=1, keepdim=True)
    torch.testing.assert_close(drawn["weights_after"], expected)


# -- what the runs found -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_runs_tell_what_the_video_says():
    trace = trace_store.get(mixture_of_experts)
    free, aux, bias = (float(getattr(trace, f"effective_history_{name}")[-1]) for name in ("free", "aux", "bias"))
    assert free < 7 < aux < 7.9 < bias
    assert float(trace.load_history_free[-1].min()) < 0.03  # one expert nearly starves
    losses = trace.eval_loss
    assert abs(losses["free"] - losses["aux"]) < trace.loss_seed_spread + 0.02  # balance neither helps nor hurts
    assert losses["dense_total"] < min(value for name, value in losses.items() if name != "dense_total")
    assert trace.entropy_floor < min(losses.values())
