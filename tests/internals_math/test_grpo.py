import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import grpo, mixed_precision, preference_task, tiny_lm, trace_store
from internals_math import grpo_experiment as experiment
from internals_math.distributions import kl_divergence
from internals_math.grpo import (
    LOSS_TYPES,
    METHODS,
    Config,
    expected_prompt_weight,
    gradient_statistics,
    group_advantages,
    grpo_loss,
    kl_k3,
    optimal_scalar_baseline,
    rl_training_memory,
    token_weights,
    zero_signal_probability,
)
from internals_math.ppo import kl_estimators, ppo_loss
from tests.oracles import randn

seeds = st.integers(0, 100)
sizes = st.integers(2, 12)
probabilities = st.floats(0.01, 0.99)
CENTERED = ("group_mean", "rloo", "grpo")
SMALL = Config(train_steps=10, gradient_samples=50)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(grpo)


@pytest.fixture(scope="module")
def world():
    return experiment.make_world(SMALL)


@pytest.fixture(scope="module")
def gradients(world):
    return experiment.make_gradients(world)


# -- the baseline ------------------------------------------------------------------------------------------------------


@given(seeds, sizes, st.sampled_from([0, 1]))
def test_centered_advantages_add_up_to_nothing_and_grpo_has_unit_spread(seed, size, ddof):
    rewards = randn(3, size, seed=seed)
    rewards[0] = 0.3  # a silent group, whose mean is not exact
    for method in CENTERED:
        advantages = group_advantages(rewards, method=method, ddof=ddof)
        torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
        assert (advantages[0] == 0).all()
    spread = group_advantages(rewards, ddof=ddof)[1:].std(dim=1, correction=ddof)
    torch.testing.assert_close(spread, torch.ones(2, dtype=torch.float64))


@given(seeds, sizes, st.floats(0.1, 9), st.floats(-9, 9))
def test_grpo_ignores_scale_and_zero_of_the_rewards_and_group_means_ignore_the_zero_of_each_prompt(
    seed, size, scale, zero
):
    rewards = randn(3, size, seed=seed)
    torch.testing.assert_close(group_advantages(scale * rewards + zero), group_advantages(rewards))
    shifted = rewards + torch.tensor([[1.0], [-3.0], [zero]])
    for method in CENTERED:
        torch.testing.assert_close(
            group_advantages(shifted, method=method), group_advantages(rewards, method=method), atol=1e-9, rtol=1e-6
        )
    total = group_advantages(rewards, method="batch_mean")
    torch.testing.assert_close(total, rewards - rewards.sum() / (3 * size))
    torch.testing.assert_close(group_advantages(rewards, method="none"), rewards)


@given(seeds, sizes)
def test_leave_one_out_compares_with_the_mean_of_the_others(seed, size):
    rewards = randn(2, size, seed=seed)
    others = torch.stack(
        [torch.cat([rewards[:, :i], rewards[:, i + 1 :]], dim=1).mean(dim=1) for i in range(size)], dim=1
    )
    torch.testing.assert_close(group_advantages(rewards, method="rloo"), rewards - others)
    shrunk = group_advantages(rewards, method="group_mean")
    torch.testing.assert_close(group_advantages(rewards, method="rloo"), size / (size - 1) * shrunk)


@given(st.integers(1, 7))
def test_a_success_is_worth_the_root_of_the_odds_against_it(successes):
    rewards = (torch.arange(8) < successes).double()[None]
    p = successes / 8
    advantages = group_advantages(rewards)[0]
    assert float(advantages[0]) == pytest.approx(math.sqrt((1 - p) / p))
    assert float(advantages[-1]) == pytest.approx(-math.sqrt(p / (1 - p)))


def test_eps_is_added_to_the_standard_deviation():
    assert group_advantages(torch.tensor([[0.0, 2.0]]), eps=1.0).tolist() == [[-0.5, 0.5]]


def mean_update(method, rewards, logits, size, ddof=0):
    """The expected mean of Â·∇ln π over all groups of this size."""
    log_probs = logits.log_softmax(dim=-1)
    total = torch.zeros_like(logits)
    for group in itertools.product(range(len(rewards)), repeat=size):
        chosen = list(group)
        advantages = group_advantages(rewards[chosen][None], method=method, ddof=ddof)[0]
        (update,) = torch.autograd.grad((advantages * log_probs[chosen]).mean(), logits, retain_graph=True)
        total = total + log_probs[chosen].sum().exp().detach() * update
    return total


@pytest.mark.parametrize(
    ("method", "share"), [("none", 1.0), ("rloo", 1.0), ("group_mean", 2 / 3), ("batch_mean", 2 / 3)]
)
@settings(max_examples=5)
@given(seed=seeds)
def test_a_baseline_leaves_the_direction_of_the_mean_update_alone(method, share, seed):
    logits, rewards = randn(4, seed=seed).requires_grad_(), randn(4, seed=seed + 1)
    (exact,) = torch.autograd.grad((logits.softmax(dim=-1) * rewards).sum(), logits)
    torch.testing.assert_close(mean_update(method, rewards, logits, 3), share * exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("ddof", "factor"), [(0, 1.0), (1, math.sqrt(2 / 3))])
@settings(max_examples=5)
@given(seed=seeds)
def test_dividing_by_the_spread_weighs_a_prompt_by_its_difficulty(ddof, factor, seed):
    logits, rewards = randn(4, seed=seed).requires_grad_(), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    p = (logits.softmax(dim=-1) * rewards).sum()
    (exact,) = torch.autograd.grad(p, logits)
    share = factor * expected_prompt_weight(p.detach(), 3)
    torch.testing.assert_close(mean_update("grpo", rewards, logits, 3, ddof), share * exact, atol=1e-10, rtol=0)


@given(probabilities, sizes)
def test_the_weight_of_a_prompt_is_one_for_pairs_symmetric_and_grows_to_its_limit(p, size):
    p = torch.tensor(p, dtype=torch.float64)
    weight = expected_prompt_weight(p, size)
    torch.testing.assert_close(expected_prompt_weight(p, 2), torch.ones_like(p))
    torch.testing.assert_close(weight, expected_prompt_weight(1 - p, size))
    limit = (p * (1 - p)).rsqrt()
    assert float(weight) < float(expected_prompt_weight(p, size + 1)) < float(limit)


def test_large_groups_reach_the_limit():
    p = torch.tensor([0.1, 0.5], dtype=torch.float64)
    torch.testing.assert_close(expected_prompt_weight(p, 900), (p * (1 - p)).rsqrt(), rtol=5e-3, atol=0)


@given(probabilities, sizes)
def test_a_group_is_silent_if_all_succeed_or_all_fail(p, size):
    p = torch.tensor(p, dtype=torch.float64)
    outcomes = torch.tensor(list(itertools.product([0, 1], repeat=min(size, 8))), dtype=torch.float64)
    likely = (p**outcomes * (1 - p) ** (1 - outcomes)).prod(dim=1)
    quiet = (outcomes.amin(dim=1) == outcomes.amax(dim=1)).double()
    torch.testing.assert_close(zero_signal_probability(p, min(size, 8)), (likely * quiet).sum())


@given(seeds)
def test_the_best_baseline_has_the_least_variance_and_leaves_the_mean(seed):
    logits, rewards = randn(5, seed=seed), randn(5, seed=seed + 1) + 2
    probs = logits.softmax(dim=-1)
    scores = torch.eye(5, dtype=torch.float64) - probs  # ∇ln π of a softmax

    def spread(baseline):
        updates = (rewards - baseline)[:, None] * scores
        mean = probs @ updates
        torch.testing.assert_close(mean, probs @ (rewards[:, None] * scores))
        return float(probs @ (updates - mean).square().sum(dim=1))

    best = optimal_scalar_baseline(rewards, scores, probs)
    assert spread(best) < min(spread(best + 0.01), spread(best - 0.01), spread(0.0))


def test_gradient_statistics_on_two_samples():
    statistics = gradient_statistics(torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([1.0, 0.0]))
    assert statistics["bias"] == pytest.approx(math.sqrt(2))  # the mean is (2, 1)
    assert statistics["cosines"].tolist() == pytest.approx([1, 1 / math.sqrt(5)])
    assert statistics["cosine_mean"] == pytest.approx((1 + 1 / math.sqrt(5)) / 2)
    assert statistics["relative_variance"] == pytest.approx(2 / 5)


@given(seeds, st.floats(0.1, 10))
def test_relative_variance_and_cosines_do_not_know_the_scale(seed, scale):
    samples, exact = randn(6, 3, seed=seed) + 1, randn(3, seed=seed + 1)
    one, other = gradient_statistics(samples, exact), gradient_statistics(scale * samples, exact)
    for name in ("relative_variance", "cosine_mean"):
        assert one[name] == pytest.approx(other[name])


# -- KL: values, and what they pull at ---------------------------------------------------------------------------------


@given(seeds)
def test_each_estimator_pulls_at_another_kl(seed):
    logits, reference = randn(6, seed=seed).requires_grad_(), torch.softmax(randn(6, seed=seed + 1), dim=-1)
    log_policy = logits.log_softmax(dim=-1)
    policy = log_policy.exp()
    held = policy.detach()  # samples, which no gradient moves
    pulls = {
        name: torch.autograd.grad((held * estimate).sum(), logits, retain_graph=True)[0]
        for name, estimate in kl_estimators(log_policy, reference.log()).items()
    }
    (there,) = torch.autograd.grad(kl_divergence(policy, reference), logits, retain_graph=True)
    (back,) = torch.autograd.grad(kl_divergence(reference, policy), logits, retain_graph=True)
    torch.testing.assert_close(pulls["k1"], torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(pulls["k2"], there)
    torch.testing.assert_close(pulls["k3"], back)
    assert not torch.allclose(there, back, rtol=1e-2)
    # k1 as a price inside the reward pulls at KL(π ‖ reference): the score function does it
    price = kl_estimators(held.log(), reference.log())["k1"]
    (inside,) = torch.autograd.grad((held * price * log_policy).sum(), logits)
    torch.testing.assert_close(inside, there)


@given(seeds)
def test_k3_is_positive_zero_only_at_the_reference_and_right_on_average(seed):
    policy, reference = (torch.softmax(randn(6, seed=seed + k), dim=-1) for k in (0, 1))
    k3 = kl_k3(policy.log(), reference.log())
    assert (k3 > 0).all()
    assert (kl_k3(policy.log(), policy.log()) == 0).all()
    torch.testing.assert_close((policy * k3).sum(), kl_divergence(policy, reference))


# -- the loss ----------------------------------------------------------------------------------------------------------


def some_batch(seed, lengths=(4, 2, 3)):
    old = randn(len(lengths), max(lengths), seed=seed) - 2
    new, reference = old + 0.4 * randn(*old.shape, seed=seed + 1), old + 0.3 * randn(*old.shape, seed=seed + 2)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return new, old, reference, randn(len(lengths), seed=seed + 3), mask


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_token_weights_share_one_whole(lengths):
    counts = torch.tensor(lengths)
    total = {kind: float((token_weights(counts, loss_type=kind, max_length=9) * counts).sum()) for kind in LOSS_TYPES}
    assert total["grpo"] == pytest.approx(1)
    assert total["dapo"] == pytest.approx(1)
    assert total["dr_grpo"] == pytest.approx(counts.double().mean() / 9)
    same = torch.full((4,), lengths[0])
    torch.testing.assert_close(token_weights(same, loss_type="grpo"), token_weights(same, loss_type="dapo"))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@given(seed=seeds)
def test_what_the_mask_hides_does_not_move_the_loss(loss_type, seed):
    new, old, reference, advantages, mask = some_batch(seed)
    before = grpo_loss(new, old, reference, advantages, mask, loss_type=loss_type, max_length=5)
    hidden = torch.where(mask, 0, torch.nan)
    after = grpo_loss(
        new + hidden, old - hidden, reference + hidden, advantages, mask, loss_type=loss_type, max_length=5
    )
    torch.testing.assert_close(after.loss, before.loss)
    assert after.clip_fraction == before.clip_fraction
    torch.testing.assert_close(before.loss, before.policy + 0.04 * before.kl)
    assert before.kl > 0


@settings(max_examples=20)
@given(seeds)
def test_with_equal_lengths_and_no_price_it_is_the_loss_of_ppo(seed):
    new, old, reference, advantages, mask = some_batch(seed, (3, 3, 3))
    for kind in ("grpo", "dapo"):
        ours = grpo_loss(new, old, reference, advantages, mask, beta=0.0, epsilon=0.3, loss_type=kind)
        theirs = ppo_loss(new, old, advantages[:, None].expand(3, 3), mask, 0.3)
        torch.testing.assert_close(ours.loss, theirs.total)
        assert ours.clip_fraction == theirs.clip_fraction
    one, two = (grpo_loss(new, old, reference, advantages, mask, epsilon_high=high) for high in (None, 0.2))
    torch.testing.assert_close(one.loss, two.loss)


def test_a_higher_roof_lets_good_answers_rise_further():
    new, old, mask = torch.tensor([[0.25]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)  # ratio 1.284
    losses = [
        float(grpo_loss(new, old, new, torch.ones(1), mask, epsilon_high=high).policy) for high in (None, 0.28, 0.4)
    ]
    assert losses == pytest.approx([-1.2, -1.28, -math.exp(0.25)])


@given(seeds)
def test_on_policy_the_loss_is_near_nothing_and_its_gradient_is_not(seed):
    logps = (randn(6, 3, seed=seed) - 2).requires_grad_()
    advantages = group_advantages(randn(2, 3, seed=seed + 1)).flatten()
    mask = torch.arange(3) < torch.tensor([1, 2, 3, 3, 1, 2])[:, None]
    result = grpo_loss(logps, logps.detach(), logps.detach(), advantages, mask)
    assert float(result.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert (float(result.kl.detach()), result.clip_fraction) == (0, 0)
    (pull,) = torch.autograd.grad(result.loss, logps)
    weights = token_weights(mask.sum(dim=1), loss_type="grpo")
    torch.testing.assert_close(pull, -(weights * advantages)[:, None] * mask)
    raised = grpo_loss(logps, logps.detach(), logps.detach(), advantages + 0.5, mask)
    assert float(raised.loss.detach()) == pytest.approx(-0.5)


def test_a_silent_group_pulls_at_nothing_but_the_reference():
    new, old, reference, _, mask = some_batch(1)
    new.requires_grad_()
    advantages = group_advantages(torch.full((1, 3), 0.7, dtype=torch.float64))[0]
    result = grpo_loss(new, old, reference, advantages, mask)
    pulls = torch.autograd.grad(result.policy, new, retain_graph=True)[0], torch.autograd.grad(result.kl, new)[0]
    assert (pulls[0] == 0).all()
    assert (pulls[1][mask] != 0).all()


def expected_pull(loss_type, rewards, method):
    """The mean gradient of the loss over all pairs of three answers, of 1, 2 and 3 tokens, and that of the reward."""
    stop = randn(2, seed=5).requires_grad_()  # logits of an end after the first and after the second token

    def table():
        first, second = stop[0].sigmoid(), stop[1].sigmoid()
        zero = torch.zeros((), dtype=torch.float64)
        rows = [
            [first.log(), zero, zero],
            [(1 - first).log(), second.log(), zero],
            [(1 - first).log(), (1 - second).log(), zero],  # a last token that is certain
        ]
        return torch.stack([torch.stack(row) for row in rows])

    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    probs = table().sum(dim=1).exp()
    (exact,) = torch.autograd.grad((probs * rewards).sum(), stop)
    total = torch.zeros(2, dtype=torch.float64)
    for group in itertools.product(range(3), repeat=2):
        chosen = list(group)
        advantages = group_advantages(rewards[chosen][None], method=method)[0]
        logps = table()[chosen]
        loss = grpo_loss(
            logps, logps.detach(), logps.detach(), advantages, mask[chosen], loss_type=loss_type, max_length=4, beta=0.0
        ).loss
        total += probs[chosen].prod().detach() * torch.autograd.grad(loss, stop)[0]
    return -total, exact


def test_only_a_constant_length_gives_the_gradient_of_the_mean_reward():
    rewards = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    pull, exact = expected_pull("dr_grpo", rewards, "rloo")
    torch.testing.assert_close(pull, exact / 4)
    pull, exact = expected_pull("dr_grpo", rewards, "group_mean")
    torch.testing.assert_close(pull, exact / 8)
    for kind in ("grpo", "dapo"):
        pull, exact = expected_pull(kind, rewards, "rloo")
        assert float(torch.nn.functional.cosine_similarity(pull, exact, dim=0)) < 0.999


# -- memory ------------------------------------------------------------------------------------------------------------


def test_grpo_holds_one_trained_model_and_ppo_two():
    assert rl_training_memory(1, "ppo") == {"policy": 16, "value": 16, "reference": 2, "reward": 2}
    assert rl_training_memory(10, "grpo") == {"policy": 160, "reference": 20, "reward": 20}
    assert rl_training_memory(1, "grpo_rule") == {"policy": 16, "reference": 2}
    trained = mixed_precision.training_bytes_per_param("mixed")
    assert sum(trained.values()) == grpo.TRAINED_BYTES
    assert trained["weights"] == grpo.FROZEN_BYTES


# -- refused -----------------------------------------------------------------------------------------------------------

two = torch.zeros(1, 2)
yes = torch.ones(1, 2, dtype=torch.bool)
p_half = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_advantages(two[:, :1]), "a group needs at least 2 answers, got 1"),
        (lambda: group_advantages(two, method="median"), "method must be one of none, batch_mean, .* got 'median'"),
        (lambda: group_advantages(two, ddof=2), "ddof must be 0 or 1, got 2"),
        (lambda: group_advantages(two, eps=-1.0), "eps must be >= 0, got -1.0"),
        (lambda: zero_signal_probability(p_half, 1), "a group needs at least 2 answers, got 1"),
        (lambda: zero_signal_probability(p_half * 0, 2), "p must be between 0 and 1, got 0.0"),
        (lambda: expected_prompt_weight(p_half * 2, 2), "p must be between 0 and 1, got 1.0"),
        (lambda: expected_prompt_weight(p_half, 1), "a group needs at least 2 answers, got 1"),
        (lambda: optimal_scalar_baseline(two[0], two, two[0]), r"must fit, got N 2, 1, 2"),
        (lambda: optimal_scalar_baseline(two[0, :1], two, two[0, :1]), "scores must not all be 0"),
        (lambda: gradient_statistics(two[:0], two[0]), "at least one sample"),
        (lambda: gradient_statistics(two, two[0]), "exact must not be 0"),
        (lambda: token_weights(torch.tensor([1]), loss_type="bnpo"), "loss_type must be one of .* got 'bnpo'"),
        (lambda: token_weights(torch.tensor([0, 1]), loss_type="grpo"), r"needs a token, got lengths \[0, 1\]"),
        (lambda: token_weights(torch.tensor([3]), loss_type="dr_grpo"), r"max_length >= 3 .* got None"),
        (lambda: token_weights(torch.tensor([3]), loss_type="dr_grpo", max_length=2), r"max_length >= 3 .* got 2"),
        (lambda: grpo_loss(two, two, two, two[0, :1], yes, beta=-1.0), "beta must be >= 0, got -1.0"),
        (lambda: grpo_loss(two, two, two, two[0, :1], yes, epsilon=1.0), "epsilon must be between 0 and 1, got 1.0"),
        (lambda: grpo_loss(two, two, two, two[0], yes), r"must fit, got \[\(1, 2\)\] and \(2,\)"),
        (lambda: grpo_loss(two, two[:, :1], two, two[0, :1], yes), r"must fit, got \[\(1, 1\), \(1, 2\)\]"),
        (lambda: grpo_loss(two, two, two, two[0, :1], ~yes), r"every answer needs a token, got lengths \[0\]"),
        (lambda: kl_k3(two, two[:, :1]), "must have one shape"),
        (lambda: rl_training_memory(0, "ppo"), "n_params must be > 0, got 0"),
        (lambda: rl_training_memory(1, "dpo"), "algorithm must be one of ppo, grpo, grpo_rule, got 'dpo'"),
    ],
)
def test_what_makes_no_sense_is_refused(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "setting",
    ["group_size=5", "method=median", "reward=human", "reward_offset=9", "prompt_offset=-1", "beta=1", "epsilon=0",
     "train_steps=5", "learning_rate=1", "gradient_samples=10"],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the experiment, in small ------------------------------------------------------------------------------------------


def test_rewards_are_shifted_by_one_number_per_prompt(world):
    shifts = world.rewards - world.gold
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts))
    assert len(shifts[:, 0].unique()) == 6
    assert float((shifts[:, 0] - SMALL.reward_offset).abs().max()) > 0.1
    binary = experiment.make_world(Config(reward="binary"))
    assert set(binary.rewards.unique().tolist()) == {0, 1}
    torch.testing.assert_close(binary.rewards, (binary.gold >= 1).double())
    assert torch.equal(binary.shifted_gold, world.rewards)


def test_gradients_of_answers_are_those_of_autograd(world):
    ids = torch.cat([world.task.prefixes[:2], torch.tensor([[30, 40], [50, 60]])], dim=1)
    ours = experiment.answer_gradients(world.base, ids)
    policy = tiny_lm.copy_of(world.base)
    for row in range(2):
        logp = policy(ids[row : row + 1])[0].log_softmax(dim=-1)
        total = logp[-3, ids[row, -2]] + logp[-2, ids[row, -1]]
        parts = torch.autograd.grad(total, list(policy.parameters()))
        torch.testing.assert_close(ours[row], torch.cat([part.flatten() for part in parts]), rtol=1e-3, atol=1e-4)


def test_the_exact_gradient_is_the_slope_of_the_mean_reward(world):
    gradient = experiment.exact_gradient(world)
    length, reached = float(gradient.norm()), []
    for step in (0.02, -0.02):
        policy = tiny_lm.copy_of(world.base)
        vector = torch.nn.utils.parameters_to_vector(policy.parameters()) + step * gradient / length
        torch.nn.utils.vector_to_parameters(vector, policy.parameters())
        probs = preference_task.answer_probs(policy, world.task)
        reached.append(float((probs * world.rewards).sum(dim=1).mean()))
    assert (reached[0] - reached[1]) / 0.04 == pytest.approx(length, rel=0.02)


def test_coordinates_keep_lengths_and_angles():
    rows = randn(5, 40, seed=1)
    rows[4] = rows[0] - rows[1]  # the span has fewer dimensions than rows
    coordinates = experiment.isometric(rows)
    torch.testing.assert_close(coordinates @ coordinates.T, rows @ rows.T)


@pytest.mark.parametrize("method", METHODS)
def test_sampled_gradients_are_means_over_groups_with_prompts_in_turn(method):
    answers = torch.randint(7, (3, 100), generator=torch.Generator().manual_seed(0))
    sampled = experiment.Gradients(answers, randn(3, 100, seed=1), randn(7, 4, seed=2), randn(4, seed=3))
    ours = experiment.sampled_gradients(sampled, method, 24, 2)
    used = [0, 0, 0]
    for batch in range(2):
        rows, rewards = [], []
        for group in range(4):
            prompt = (batch * 4 + group) % 3
            columns = range(used[prompt], used[prompt] + 24)
            used[prompt] += 24
            rows.append(answers[prompt, list(columns)])
            rewards.append(sampled.rewards[prompt, list(columns)])
        advantages = group_advantages(torch.stack(rewards), method=method)
        theirs = sum(
            float(a) * sampled.scores[answer]
            for group, answers_ in zip(advantages, rows, strict=True)
            for a, answer in zip(group, answers_, strict=True)
        )
        torch.testing.assert_close(ours[batch], theirs / 96)


def test_every_draw_knows_its_reward_and_its_gradient(gradients, world):
    assert gradients.answers.shape == gradients.rewards.shape
    assert gradients.answers.shape[1] >= 50 * 96 // 6 + 16
    assert len(gradients.scores) == len(gradients.answers.unique())
    # two draws of one answer agree in both; the mean reward is near the exact one
    flat = gradients.answers.flatten()
    for answer in flat[:5].tolist():
        assert len(gradients.rewards.flatten()[flat == answer].unique()) == 1
    exact = (world.reference_probs * world.rewards).sum(dim=1)
    torch.testing.assert_close(gradients.rewards.mean(dim=1), exact, atol=0.2, rtol=0)
    # the length of one coordinate vector is that of the real gradient
    answer = int((world.reference_probs[0]).argmax())
    ids = torch.cat([world.task.prefixes[0], torch.tensor(divmod(answer, 112))])[None]
    norm = experiment.answer_gradients(world.base, ids)[0].double().norm()
    lengths = gradients.scores[gradients.answers[0].unique()].norm(dim=1)
    assert float((lengths - norm).abs().min()) < 1e-3 * float(norm)


def test_group_methods_do_not_see_any_offset(gradients):
    moved = dataclasses.replace(gradients, rewards=gradients.rewards + 3 * torch.arange(6)[:, None])
    for method in METHODS:
        one, other = (experiment.sampled_gradients(each, method, 8, 20) for each in (gradients, moved))
        assert torch.allclose(one, other, atol=1e-9) == (method in CENTERED)


def test_the_mean_of_many_sampled_gradients_is_the_exact_one_or_its_share(gradients):
    samples = {method: experiment.sampled_gradients(gradients, method, 8, 50) for method in METHODS}
    for method in ("none", "rloo"):
        statistics = gradient_statistics(samples[method], gradients.exact)
        assert statistics["bias"] < 3 * math.sqrt(statistics["relative_variance"] / 50)
    torch.testing.assert_close(samples["group_mean"], 7 / 8 * samples["rloo"])


def test_clouds_are_projected_on_the_exact_gradient_and_across_it():
    exact = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([[3.0, 1.0, 0.1], [5.0, -1.0, -0.1], [4.0, 2.0, 0.0], [4.0, -2.0, 0.0]], dtype=torch.float64)
    projected = experiment.project({"a": rows, "b": 10 * rows}, exact)
    torch.testing.assert_close(projected["a"], projected["b"])
    torch.testing.assert_close(projected["a"][:, 0], rows[:, 0] / 4)
    torch.testing.assert_close(projected["a"][:, 1].abs(), rows[:, 1].abs() / 4, atol=1e-2, rtol=0)


def test_training_starts_at_the_reference_and_climbs(world):
    policy, probs, silent = experiment.train(world, "grpo", done=0, of=10)
    assert probs.shape == (11, 6, 112 * 112)
    assert silent.shape == (11,)
    torch.testing.assert_close(probs[0], world.reference_probs, atol=1e-9, rtol=0)
    reward = (probs * world.gold).sum(dim=2).mean(dim=1)
    assert float(reward[-1]) > float(reward[0]) + 0.8
    torch.testing.assert_close(preference_task.answer_probs(policy, world.task), probs[-1])


def test_rewards_that_are_all_equal_teach_nothing(world):
    equal = dataclasses.replace(world, rewards=0 * world.rewards + 1)
    _, probs, silent = experiment.train(equal, "group_mean", done=0, of=10)
    assert (silent == 1).all()
    torch.testing.assert_close(probs[-1], probs[0], atol=1e-6, rtol=0)


def test_memory_is_listed_in_gigabytes_with_zero_for_what_is_not_there():
    values = experiment.memory()
    assert values["memory_parts"] == ("policy", "value", "reference", "reward")
    assert values["memory_gb"]["grpo_rule"].tolist() == [112, 0, 14, 0]
    assert values["memory_total_gb"] == {"ppo": 252, "grpo": 140, "grpo_rule": 126}


def test_the_dial_turns_answers_into_successes_one_by_one():
    values = experiment.dial(0)
    rewards = values["dial_rewards"]
    torch.testing.assert_close(values["dial_p"], torch.linspace(0.05, 0.95, 19, dtype=torch.float64))
    assert (rewards.diff(dim=0) >= 0).all()
    silent = rewards.amin(dim=1) == rewards.amax(dim=1)
    assert (values["dial_advantages"][silent] == 0).all()
    assert (values["dial_advantages"][~silent] != 0).all()
    assert float(rewards.mean()) == pytest.approx(0.5, abs=0.2)
    torch.testing.assert_close(values["dial_silent"], zero_signal_probability(values["dial_p"], 8))


# -- the run -----------------------------------------------------------------------------------------------------------


def test_the_worked_group_is_rehung_from_its_mean(trace, world):
    taste = preference_task.word_scores()
    for values in (vars(trace), experiment.one_group(world)):
        rewards = values["group_rewards"]
        assert (rewards > 0).all()
        assert len(rewards.unique()) >= 3
        torch.testing.assert_close(values["group_centered"], rewards - values["group_mean"])
        torch.testing.assert_close(values["group_advantage"], values["group_centered"] / values["group_std"])
        gold = [float(taste[tiny_lm.encode(f"a {words}")][-2:].sum()) for words in values["group_tokens"]]
        assert torch.allclose(rewards - torch.tensor(gold).double(), rewards[:1] - gold[0])
        assert len(values["prompt_tokens"]) == 8
        torch.testing.assert_close(values["zero_rewards"][12], rewards)
        torch.testing.assert_close(values["zero_rewards"] - values["zero_shifts"][:, None], rewards.expand(19, 8))


def test_a_group_without_positive_rewards_is_still_one_of_three_kinds():
    low = experiment.make_world(Config(reward_offset=-3, prompt_offset=0, method="rloo"))
    values = experiment.one_group(low)
    assert len(values["group_rewards"].unique()) >= 3
    torch.testing.assert_close(values["group_advantage"], 8 / 7 * values["group_centered"])


def test_one_mean_for_all_prompts_mislabels_whole_groups(trace, world):
    for values in (vars(trace), experiment.one_batch(world)):
        rewards = values["batch_rewards"]
        assert values["batch_mean"] == pytest.approx(float(rewards.mean()))
        torch.testing.assert_close(values["batch_group_means"], rewards.mean(dim=1))
        for method in METHODS:
            torch.testing.assert_close(values["batch_advantages"][method], group_advantages(rewards, method=method))
        one_sided = (values["batch_advantages"]["batch_mean"] > 0).double().mean(dim=1)
        assert ((one_sided == 0) | (one_sided == 1)).sum() >= 2
        succeeded = (world.gold >= 1).double()
        success = (world.reference_probs * succeeded).sum(dim=1)
        torch.testing.assert_close(values["prompt_success"], success, rtol=1e-5, atol=1e-6)
        assert values["prompts"] == world.task.prompts


def test_noise_is_measured_on_the_sampled_gradients(world, gradients):
    values = experiment.gradient_noise(world)
    for method in METHODS:
        samples = experiment.sampled_gradients(gradients, method, 8, 50)
        statistics = gradient_statistics(samples, gradients.exact)
        assert values["gradient_variance"][method] == pytest.approx(statistics["relative_variance"])
        assert values["gradient_cosine"][method] == pytest.approx(statistics["cosine_mean"])
        assert values["gradient_bias"][method] == pytest.approx(statistics["bias"])
        # what the mean of 50 unbiased samples would miss by: its standard error
        error = samples.var(dim=0, correction=0).sum().div(50).sqrt() / gradients.exact.norm()
        assert values["gradient_bias_noise"][method] == pytest.approx(float(error))
        assert float(values["variance_by_group_size"][method][2]) == pytest.approx(statistics["relative_variance"])
        assert float(values["zero_variance"][method][12]) == pytest.approx(statistics["relative_variance"])
        assert values["gradient_cloud"][method].shape == (50, 2)
    pairs = gradient_statistics(experiment.sampled_gradients(gradients, "rloo", 2, 50), gradients.exact)
    assert float(values["variance_by_group_size"]["rloo"][0]) == pytest.approx(pairs["relative_variance"])
    lifted = dataclasses.replace(gradients, rewards=gradients.rewards + 3)
    far = gradient_statistics(experiment.sampled_gradients(lifted, "none", 8, 50), gradients.exact)
    assert float(values["zero_variance"]["none"][-1]) == pytest.approx(far["relative_variance"])


def test_a_baseline_for_each_prompt_takes_most_of_the_variance(trace):
    variance = trace.gradient_variance
    assert variance["none"] > 1.3 * variance["batch_mean"] > 1.3 * 2 * variance["rloo"]
    assert variance["group_mean"] == pytest.approx(variance["rloo"])
    assert variance["grpo"] == pytest.approx(variance["rloo"], rel=0.15)
    assert trace.gradient_cosine["none"] < trace.gradient_cosine["batch_mean"] < trace.gradient_cosine["rloo"]
    for method in ("none", "batch_mean", "rloo"):
        assert trace.gradient_bias[method] < 2.5 * trace.gradient_bias_noise[method]
    assert abs(trace.gradient_bias["group_mean"] - 1 / 8) < 2.5 * trace.gradient_bias_noise["group_mean"]
    sizes = trace.variance_by_group_size
    assert trace.group_sizes.tolist() == [2, 4, 8, 16]
    assert (sizes["rloo"].diff() < 0).all()  # pairs are noisy
    assert float(sizes["grpo"][0]) > float(sizes["rloo"][0])
    for method in METHODS:
        assert float(sizes[method][2]) == pytest.approx(variance[method], rel=1e-6)


def test_only_without_a_baseline_does_it_matter_where_zero_is(trace):
    for method, variance in trace.zero_variance.items():
        assert float(variance[12]) == pytest.approx(trace.gradient_variance[method])
        assert (float(variance.max()) < 1.001 * float(variance.min())) == (method != "none")
    none = trace.zero_variance["none"]
    assert 3 < int(none.argmin()) < 12  # some zeros are better than others, even without a baseline
    assert float(none[-1]) > 2 * float(none.min())


def test_clouds_are_centered_on_one_tip(trace):
    assert trace.gradient_tip.tolist() == [1, 0]
    for cloud in trace.gradient_cloud.values():
        assert cloud.shape == (60, 2)
        assert float(cloud[:, 0].mean()) == pytest.approx(1, abs=0.25)
        assert float(cloud[:, 1].mean()) == pytest.approx(0, abs=0.25)
    spread = {method: float(cloud.var(dim=0).sum()) for method, cloud in trace.gradient_cloud.items()}
    assert spread["none"] > spread["batch_mean"] > spread["rloo"]


def test_curves_of_weight_and_silence(trace):
    for values in (vars(trace), experiment.prompt_weights(8)):
        p = values["weight_p"]
        torch.testing.assert_close(values["weight_curve"], expected_prompt_weight(p, 8))
        torch.testing.assert_close(values["weight_curve_limit"], 1 / (p * (1 - p)).sqrt())
        torch.testing.assert_close(values["silent_curve"], zero_signal_probability(p, 8))
        assert values["silent_by_group_size"].keys() == {"2", "4", "8", "16", "32", "64"}
        for size, curve in values["silent_by_group_size"].items():
            torch.testing.assert_close(curve, zero_signal_probability(p, int(size)))
        assert p[[0, 49, 98]].tolist() == [0.01, 0.5, 0.99]


def test_ends_of_a_lost_tale_differ_in_length_and_so_do_the_weights(trace, world):
    for values in (vars(trace), experiment.lengths(world)):
        sizes = values["answer_lengths"]
        assert sizes.tolist() == [len(text.split()) for text in values["length_answers"]]
        assert set(sizes.tolist()) == {9, 12}
        assert all(text.endswith(" .") for text in values["length_answers"])
        assert len(set(values["length_answers"])) > 2
        for kind, weights in values["token_weight"].items():
            limit = values["length_limit"]
            torch.testing.assert_close(weights, token_weights(sizes, loss_type=kind, max_length=limit))


def test_estimator_shapes_touch_zero_at_the_reference(trace):
    for values in (vars(trace), experiment.estimator_shapes()):
        torch.testing.assert_close(values["kl_k1"], -values["kl_u"].log())
        torch.testing.assert_close(values["kl_k3"], values["kl_u"] - 1 - values["kl_u"].log())


def test_curves_of_training_are_exact(world, monkeypatch):
    monkeypatch.setattr(experiment, "TRAINED", ())  # only the method of the config
    values = experiment.training(world)
    policy, probs, silent = experiment.train(world, "grpo", done=0, of=10)
    torch.testing.assert_close(values["curve_silent"]["grpo"], silent)
    gold = world.task.gold_rewards.double()
    for step in (0, 10):
        now = probs[step].view(6, 112, 112)
        reward = preference_task.exact_expected_reward(now, gold).mean()
        success = preference_task.exact_expected_reward(now, (gold >= 1).double()).mean()
        kl = preference_task.exact_kl(now, world.reference_probs.view(6, 112, 112)).mean()
        torch.testing.assert_close(values["curve_reward"]["grpo"][step], reward)
        torch.testing.assert_close(values["curve_success"]["grpo"][step], success)
        torch.testing.assert_close(values["curve_kl"]["grpo"][step], kl)
    assert values["steps"].tolist() == list(range(11))
    samples, tale_loss = preference_task.after_words(world.task, {"after": policy}, world.config.seed)
    assert (values["samples_after"], values["tale_loss_after"]) == (samples["after"], tale_loss["after"])
    assert values["tale_loss_before"] < values["tale_loss_after"]
    assert len(values["samples_before"]) == 6


def test_every_method_learns_the_task_and_group_baselines_learn_it_sooner(trace):
    for method in ("none", "batch_mean", "group_mean", "grpo"):
        assert float(trace.curve_kl[method][0]) == pytest.approx(0, abs=1e-9)
        assert float(trace.curve_success[method][-1]) > 0.95
        assert trace.curve_silent[method].shape == trace.steps.shape
    early = {method: float(curve[5]) for method, curve in trace.curve_success.items()}
    assert min(early["group_mean"], early["grpo"]) > early["batch_mean"] > early["none"]
    # a task that is solved says nothing more: most groups are silent in the end
    assert float(trace.curve_silent["grpo"][-20:].mean()) > 0.5 > float(trace.curve_silent["grpo"][:5].mean())
    assert trace.tale_loss_before < trace.tale_loss_after < 1
