import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import ppo, preference_task, tiny_lm, trace_store
from internals_math import ppo_experiment as experiment
from internals_math.distributions import kl_divergence
from internals_math.ppo import (
    Config,
    adaptive_kl_beta,
    clip_fraction,
    clip_gradient_mask,
    clipped_surrogate,
    generalized_advantage_estimation,
    interpolate_policies,
    kl_estimators,
    kl_penalized_surrogate,
    ppo_loss,
    probability_ratio,
    surrogate,
    value_loss,
    whiten,
)
from internals_math.preference_task import optimal_policy
from internals_math.rlhf import kl_shaped_rewards
from tests.oracles import randn

seeds = st.integers(0, 100)
shares = st.floats(0, 1)
epsilons = st.floats(0.05, 0.95)
SMALL = Config(epochs=2, batch_size=40, iterations=5)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(ppo)


@pytest.fixture(scope="module")
def world():
    return experiment.make_world(SMALL)


@pytest.fixture(scope="module")
def study(world):
    return experiment.study_one_batch(world)


@pytest.fixture(scope="module")
def small_world(world):
    """Two prompts in place of six, for what goes through all answers many times."""
    task = preference_task.make_preference_task(world.base, n_prompts=2, seed=SMALL.seed)
    return replace(
        world, task=task, reference_probs=world.reference_probs[:2], rewards=task.gold_rewards.double().flatten(1)
    )


@pytest.fixture(scope="module")
def small_study(small_world):
    return experiment.study_one_batch(small_world)


class TwoWords:
    """A policy over answers of two words out of V, as a table of logits: everything about it can be enumerated."""

    def __init__(self, seed, vocab=4):
        self.first = randn(vocab, seed=seed).requires_grad_()
        self.second = randn(vocab, vocab, seed=seed + 1).requires_grad_()

    @property
    def parameters(self):
        return (self.first, self.second)

    def logps(self):
        """ln p of both words of every answer: (V², 2)."""
        first, second = self.first.log_softmax(-1), self.second.log_softmax(-1)
        return torch.stack([first[:, None].expand_as(second), second], dim=-1).flatten(0, 1)


def objective(policy, reference, rewards, beta):
    """E[r] - beta·KL(π ‖ π_ref), summed over all answers."""
    logps = policy.logps().sum(dim=1)
    return (logps.exp() * (rewards - beta * (logps - reference.logps().detach().sum(dim=1)))).sum()


# -- the surrogate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clipped", [False, True])
@settings(max_examples=15)
@given(seed=seeds)
def test_at_the_old_policy_the_surrogate_has_the_gradient_of_the_exact_regularized_objective(lam, clipped, seed):
    policy, reference, beta = TwoWords(seed), TwoWords(seed + 50), 0.3
    scores = randn(16, seed=seed + 9)
    old = policy.logps().detach()
    everything = torch.ones_like(old, dtype=torch.bool)
    rewards = kl_shaped_rewards(scores, old, reference.logps().detach(), everything, beta)
    # with the true values of both states every λ is unbiased
    second = old[:, 1].exp().view(4, 4)
    after_first = (second * rewards[:, 1].view(4, 4)).sum(dim=1)
    start = (old[::4, 0].exp() * (rewards[::4, 0] + after_first)).sum()
    values = torch.stack([start.expand(16), after_first.repeat_interleave(4)], dim=1)
    if lam == 1:  # and λ = 1 needs no values at all
        values = torch.stack([start.new_tensor(0.7).expand(16), randn(4, seed=seed).repeat_interleave(4)], dim=1)
    advantages, _ = generalized_advantage_estimation(rewards, values, 1.0, lam)
    ratio = probability_ratio(policy.logps(), old)
    value = clipped_surrogate(ratio, advantages, 0.2) if clipped else surrogate(ratio, advantages)
    expected = (old.sum(dim=1).exp()[:, None] * value).sum()
    ours = torch.autograd.grad(expected, policy.parameters)
    theirs = torch.autograd.grad(objective(policy, reference, scores, beta), policy.parameters)
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact)


@given(seeds, epsilons, st.floats(0.05, 3))
def test_the_clipped_surrogate_is_never_more_than_the_plain_one_and_equal_inside(seed, epsilon, epsilon_high):
    ratio, advantages = randn(50, seed=seed).exp(), randn(50, seed=seed + 1)
    plain = surrogate(ratio, advantages)
    clipped = clipped_surrogate(ratio, advantages, epsilon, epsilon_high)
    assert (clipped <= plain).all()
    inside = (ratio >= 1 - epsilon) & (ratio <= 1 + epsilon_high)
    torch.testing.assert_close(clipped[inside], plain[inside], rtol=0, atol=0)
    torch.testing.assert_close(
        clipped_surrogate(ratio, advantages, epsilon), clipped_surrogate(ratio, advantages, epsilon, epsilon)
    )


@given(seeds)
def test_a_wide_clip_is_no_clip(seed):
    ratio, advantages = randn(50, seed=seed).exp(), randn(50, seed=seed + 1)
    wide = clipped_surrogate(ratio, advantages, 1 - 1e-12, 1e9)
    torch.testing.assert_close(wide, surrogate(ratio, advantages))
    assert clip_gradient_mask(ratio, advantages, 1 - 1e-12, 1e9).all()


@pytest.mark.parametrize(
    ("advantage", "ratio", "pushed"),
    [
        (1.0, 1.25, False), (1.0, 0.75, True), (-1.0, 1.25, True), (-1.0, 0.75, False),
        (1.0, 1.1, True), (-1.0, 0.9, True), (0.0, 1.0, False), (1.0, 1.22, False), (-1.0, 0.79, False),
    ],
)  # fmt: skip
def test_the_gradient_dies_only_on_the_side_that_pays(advantage, ratio, pushed):
    rho, a = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    (slope,) = torch.autograd.grad(clipped_surrogate(rho, a, 0.2).sum(), rho)
    assert bool(slope != 0) == pushed == bool(clip_gradient_mask(rho, a, 0.2))
    if pushed:
        assert float(slope) == advantage


def test_two_epsilons_move_one_edge_each():
    ratio, ones = torch.tensor([0.75, 1.25]), torch.ones(2)
    assert clip_gradient_mask(ratio, ones, 0.2, 0.3).tolist() == [True, True]
    assert clip_gradient_mask(ratio, -ones, 0.3, 0.2).tolist() == [True, True]
    assert clip_fraction(ratio, 0.2, 0.3) == clip_fraction(ratio, 0.3, 0.2) == 0.5


def test_the_clip_fraction_counts_both_sides_under_the_mask():
    ratio = torch.tensor([0.5, 0.9, 1.1, 1.5, 1.7])
    assert clip_fraction(ratio, 0.2) == pytest.approx(0.6)
    assert clip_fraction(ratio, 0.2, mask=torch.tensor([True, True, False, False, False])) == 0.5


def test_the_ratio_is_new_over_old():
    assert float(probability_ratio(torch.tensor(0.6).log(), torch.tensor(0.3).log())) == pytest.approx(2)


# -- KL ----------------------------------------------------------------------------------------------------------------


@given(seeds)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(seed):
    q, p = (torch.softmax(randn(9, seed=seed + k), dim=-1) for k in (0, 1))
    estimates = kl_estimators(q.log(), p.log())
    exact = kl_divergence(q, p)
    for name in ("k1", "k3"):
        torch.testing.assert_close((q * estimates[name]).sum(), exact)
    assert (estimates["k3"] >= 0).all()
    assert not torch.isclose((q * estimates["k2"]).sum(), exact)


@given(seeds)
def test_on_samples_of_the_old_policy_k1_and_k3_pull_like_the_exact_kl_and_k2_does_not(seed):
    logits, q = randn(6, seed=seed).requires_grad_(), torch.softmax(randn(6, seed=seed + 1), dim=-1)
    p = logits.softmax(dim=-1)
    (exact,) = torch.autograd.grad(kl_divergence(q, p), logits, retain_graph=True)
    pulls = {
        name: torch.autograd.grad((q * estimate).sum(), logits, retain_graph=True)[0]
        for name, estimate in kl_estimators(q.log(), p.log()).items()
    }
    torch.testing.assert_close(pulls["k1"], exact)
    torch.testing.assert_close(pulls["k3"], exact)
    assert not torch.allclose(pulls["k2"], exact, rtol=1e-3)


def test_a_penalty_takes_its_price_from_the_surrogate():
    ratio, advantages, kl = torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.5])
    assert float(kl_penalized_surrogate(ratio, advantages, kl, 4.0)) == 4.0
    assert float(kl_penalized_surrogate(ratio, advantages, kl, 0.0)) == 6.0


@given(st.floats(0.1, 10), st.floats(0.001, 1))
def test_beta_halves_doubles_or_stays_at_the_thresholds(beta, target):
    assert adaptive_kl_beta(beta, target / 1.5 * 0.999, target) == beta / 2
    assert adaptive_kl_beta(beta, target / 1.5, target) == beta
    assert adaptive_kl_beta(beta, target * 1.5, target) == beta
    assert adaptive_kl_beta(beta, target * 1.5 * 1.001, target) == 2 * beta


# -- advantages and values ---------------------------------------------------------------------------------------------


@given(seeds, shares)
def test_lambda_one_trusts_the_rewards_and_lambda_zero_the_values(seed, gamma):
    rewards, values = randn(3, 6, seed=seed), randn(3, 6, seed=seed + 1)
    returns = torch.zeros_like(rewards)
    for t in range(6):
        for later in range(t, 6):
            returns[:, t] += gamma ** (later - t) * rewards[:, later]
    trusting, targets = generalized_advantage_estimation(rewards, values, gamma, 1.0)
    torch.testing.assert_close(trusting, returns - values)
    torch.testing.assert_close(targets, returns)
    deltas, _ = generalized_advantage_estimation(rewards, values, gamma, 0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    torch.testing.assert_close(deltas, rewards + gamma * following - values)


@given(seeds, shares, shares)
def test_returns_are_advantages_above_the_values(seed, gamma, lam):
    rewards, values = randn(3, 6, seed=seed), randn(3, 6, seed=seed + 1)
    advantages, returns = generalized_advantage_estimation(rewards, values, gamma, lam)
    torch.testing.assert_close(returns - advantages, values)
    # Â_t = δ_t + γλ Â_{t+1}
    deltas, _ = generalized_advantage_estimation(rewards, values, gamma, 0.0)
    torch.testing.assert_close(advantages[:, :-1], deltas[:, :-1] + gamma * lam * advantages[:, 1:])


@given(seeds, shares, shares)
def test_masked_steps_contribute_nothing(seed, gamma, lam):
    rewards, values = randn(2, 6, seed=seed), randn(2, 6, seed=seed + 1)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    short = generalized_advantage_estimation(rewards[:1, :4], values[:1, :4], gamma, lam)
    rewards[0, 4:], values[0, 4:] = torch.nan, torch.inf
    for masked, alone in zip(generalized_advantage_estimation(rewards, values, gamma, lam, mask), short, strict=True):
        torch.testing.assert_close(masked[:1, :4], alone)
        assert (masked[0, 4:] == 0).all()


def test_without_discount_and_values_the_advantage_is_the_reward_to_go():
    advantages, _ = generalized_advantage_estimation(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 3), 1.0, 1.0)
    assert advantages.tolist() == [[6, 5, 3]]


@given(seeds, st.floats(0.1, 5))
def test_whitened_values_have_mean_0_and_standard_deviation_1_under_the_mask(seed, scale):
    x = scale * randn(4, 5, seed=seed) + 3
    mask = torch.arange(20).view(4, 5) % 3 > 0
    white = whiten(x, mask)
    torch.testing.assert_close(white[mask].mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(white[mask].std(correction=0), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(whiten(x, mask, shift_mean=False)[mask], white[mask] + x[mask].mean())
    torch.testing.assert_close(whiten(x), whiten(x, torch.ones_like(mask)))


def test_the_clipped_value_loss_takes_the_worse_of_two_errors():
    old, target = torch.tensor([0.0]), torch.tensor([1.0])
    assert float(value_loss(torch.tensor([0.9]), old, target)) == pytest.approx(0.005)
    assert float(value_loss(torch.tensor([0.9]), old, target, 0.2)) == pytest.approx(0.32)  # 0.2 is further away
    assert float(value_loss(torch.tensor([-0.9]), old, target, 0.2)) == pytest.approx(1.805)  # -0.9 is
    assert (
        float(value_loss(torch.tensor([3.0, 9.0]), torch.zeros(2), torch.zeros(2), None, torch.tensor([True, False])))
        == 4.5
    )


# -- the whole loss ----------------------------------------------------------------------------------------------------


@given(seeds)
def test_what_the_mask_hides_does_not_move_the_loss(seed):
    new, old, advantages = (randn(3, 4, seed=seed + k) for k in range(3))
    mask = torch.arange(12).view(3, 4) % 4 > 0
    before = ppo_loss(new, old, advantages, mask, 0.2)
    hidden = torch.where(mask, 0, torch.nan)
    after = ppo_loss(new + hidden, old, advantages - hidden, mask, 0.2)
    torch.testing.assert_close(before.total, after.total)
    assert before.approx_kl == after.approx_kl >= 0
    assert before.clip_fraction == after.clip_fraction


def test_at_the_old_policy_the_loss_is_minus_the_mean_advantage():
    logps, advantages = randn(3, 4, seed=1), randn(3, 4, seed=2)
    result = ppo_loss(logps, logps, advantages, torch.ones(3, 4, dtype=torch.bool), 0.2)
    torch.testing.assert_close(result.total, -advantages.mean())
    assert (result.clip_fraction, result.approx_kl, float(result.value)) == (0, 0, 0)


def test_values_cost_and_entropy_pays():
    zero, mask = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    result = ppo_loss(
        zero, zero, torch.ones(2), mask, 0.2, values=zero, old_values=zero, returns=2 * torch.ones(2), value_coef=0.5,
        entropy=3 * torch.ones(2), entropy_coef=0.1,
    )  # fmt: skip
    assert float(result.total) == pytest.approx(-1 + 0.5 * 2 - 0.3)
    assert (float(result.policy), float(result.value)) == (-1, 2)
    clipped = ppo_loss(
        zero, zero, zero, mask, 0.2, values=2 * torch.ones(2), old_values=zero, returns=2 * torch.ones(2),
        value_coef=1.0, value_clip=0.5,
    )  # fmt: skip
    assert float(clipped.value) == pytest.approx(1.5**2 / 2)


def test_a_line_of_policies_passes_both_ends_and_goes_on():
    old, new = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}
    line = interpolate_policies(old, new, torch.tensor([0.0, 0.5, 1.0, 2.0]))
    assert line["w"].tolist() == [[1, 2], [2, 2], [3, 2], [5, 2]]


# -- refused -----------------------------------------------------------------------------------------------------------

one, two = torch.zeros(1, 1), torch.zeros(1, 2)
no = torch.zeros(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipped_surrogate(one, one, 0.0), "epsilon must be between 0 and 1, got 0.0"),
        (lambda: clipped_surrogate(one, one, 1.0), "epsilon must be between 0 and 1, got 1.0"),
        (lambda: clipped_surrogate(one, one, 0.2, 0.0), "epsilon_high must be > 0, got 0.0"),
        (lambda: clip_gradient_mask(one, two, 0.2), r"ratio, advantages must have one shape, got \(1, 1\), \(1, 2\)"),
        (lambda: clip_fraction(one, math.nan), "epsilon must be between 0 and 1, got nan"),
        (lambda: clip_fraction(one, 0.2, mask=no), "mask must keep at least one token"),
        (lambda: probability_ratio(one, two), "new_logps, old_logps must have one shape"),
        (lambda: surrogate(one, two), "ratio, advantages must have one shape"),
        (lambda: kl_estimators(one, two), "logp_sampling, logp_other must have one shape"),
        (lambda: kl_penalized_surrogate(one, one, two, 1.0), "ratio, advantages, kl must have one shape"),
        (lambda: kl_penalized_surrogate(one, one, one, -1.0), "beta must be >= 0, got -1.0"),
        (lambda: adaptive_kl_beta(1.0, 0.1, 0.0), "target must be > 0 nats, got 0.0"),
        (lambda: generalized_advantage_estimation(one, one, 1.1, 0.9), r"gamma must be in 0\.\.1, got 1.1"),
        (lambda: generalized_advantage_estimation(one, one, 1.0, -0.1), r"lam must be in 0\.\.1, got -0.1"),
        (lambda: generalized_advantage_estimation(one, two, 1.0, 0.9), "rewards, values, mask must have one shape"),
        (lambda: generalized_advantage_estimation(one, one, 1.0, 0.9, no), r"got an empty mask in rows \[0\]"),
        (lambda: whiten(one, no), "mask must keep at least one token"),
        (lambda: whiten(two, ~no), "values, mask must have one shape"),
        (lambda: value_loss(one, one, two), "values, old_values, returns must have one shape"),
        (lambda: value_loss(one, one, one, 0.0), "clip_range must be > 0, got 0.0"),
        (lambda: value_loss(one, one, one, None, no), "mask must keep at least one token"),
        (lambda: ppo_loss(one, one, one, no, 0.2), "mask must keep at least one token"),
        (lambda: ppo_loss(one, one, two, ~no, 0.2), "new_logps, old_logps, advantages, mask must have one shape"),
        (lambda: ppo_loss(one, one, one, ~no, 0.2, value_coef=0.1), "value_coef 0.1 needs values"),
        (lambda: ppo_loss(one, one, one, ~no, 0.2, entropy_coef=0.1), "entropy_coef 0.1 needs the entropy"),
        (lambda: interpolate_policies({"a": one}, {"b": one}, one[0]), r"only one of each of \['a', 'b'\]"),
        (lambda: interpolate_policies({"a": one}, {"a": two}, one[0]), "theta_old.a, theta_new.a must have one shape"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "setting",
    ["epsilon=0", "lam=2", "gamma=0.5", "epochs=0", "batch_size=8", "learning_rate=1", "iterations=2", "beta_ref=-1"],
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the experiment, in small ------------------------------------------------------------------------------------------


def test_a_batch_of_the_reference_pays_nothing_and_earns_at_its_end(world):
    batch = experiment.collect(world, world.base, 14, torch.Generator().manual_seed(0))
    assert batch.prompt.tolist() == [0, 1, 2, 3, 4, 5] * 2 + [0, 1]
    assert batch.rewards[:, 0].abs().max() < 1e-6
    answers = batch.ids[:, -2:]
    gold = world.task.gold_rewards[batch.prompt, answers[:, 0], answers[:, 1]]
    noise = batch.rewards[:, 1] - gold
    assert 0.5 < float(noise.std()) < 2
    whole = batch.logps.double().sum(dim=1).exp()
    torch.testing.assert_close(
        whole,
        world.reference_probs[batch.prompt, answers[:, 0] * tiny_lm.VOCAB_SIZE + answers[:, 1]],
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(batch.log_probs.exp().sum(dim=-1), torch.ones(14, 2))


def test_another_policy_pays_for_leaving_the_reference(world):
    moved = tiny_lm.copy_of(world.base)
    with torch.no_grad():
        moved.model.embed_tokens.weight.mul_(1.1)
    batch = experiment.collect(world, moved, 6, torch.Generator().manual_seed(0))
    reference = experiment.chosen(experiment.next_log_probs(world.base, batch.ids), batch.ids)
    torch.testing.assert_close(batch.rewards[:, 0], -SMALL.beta_ref * (batch.logps - reference)[:, 0].detach())


def test_values_are_the_ridge_regression_of_returns():
    x, y = randn(40, 3, seed=1).float(), randn(40, seed=2).float()
    head = experiment.fit_values(x[:, None], y[:, None])
    slope = x.T @ (x @ head - y) + experiment.RIDGE * head  # of half the squared error and half the penalty
    torch.testing.assert_close(slope, torch.zeros(3), atol=1e-4, rtol=0)
    assert experiment.returns_of(torch.tensor([[1.0, 2.0]]), 0.5).tolist() == [[2, 2]]


def test_the_value_head_sees_the_state_before_each_word(world):
    ids = torch.cat([world.task.prefixes[:1], torch.tensor([[5, 6, 7]])], dim=1)
    features = experiment.hidden(world.base, ids, 2)
    changed = ids.clone()
    changed[0, -1] = 9  # the last word itself cannot be known
    torch.testing.assert_close(experiment.hidden(world.base, changed, 2), features)
    changed[0, -2] = 9
    after = experiment.hidden(world.base, changed, 2)
    torch.testing.assert_close(after[:, 0], features[:, 0])
    assert not torch.allclose(after[:, 1], features[:, 1])
    assert features.shape == (1, 2, world.base.config.hidden_size + 1)
    assert (features[..., -1] == 1).all()


def test_all_ways_start_at_the_old_policy_and_take_the_same_first_step(study, world):
    for path in study.paths.values():
        torch.testing.assert_close(path.probs[0], world.reference_probs, atol=1e-9, rtol=0)
        torch.testing.assert_close(path.ratios[0], torch.ones(40, 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(path.probs[1], study.paths["clip"].probs[1], atol=1e-6, rtol=1e-3)
    assert float((study.paths["clip"].probs[2] - study.paths["unclipped"].probs[2]).abs().max()) > 1e-4
    assert float((study.paths["kl_penalty"].probs[2] - study.paths["unclipped"].probs[2]).abs().max()) > 1e-5
    assert float(study.advantages.mean()) == pytest.approx(0, abs=1e-5)


def test_histories_say_what_the_batch_promises_and_what_is_true(study, world):
    values = experiment.histories(study)
    batch, config = study.batch, world.config
    assert values["epochs"].tolist() == [0, 1, 2]
    for method, path in study.paths.items():
        promise = ((path.ratios[-1] - 1) * study.plain_advantages).sum() / 40
        assert float(values["surrogate_estimate"][method][-1]) == pytest.approx(float(promise), abs=1e-5)
        probs, reference = path.probs[-1].view(6, 112, 112), world.reference_probs.view(6, 112, 112)
        gold = world.task.gold_rewards.double()
        gain = ppo.exact_expected_reward(probs, gold) - ppo.exact_expected_reward(reference, gold)
        assert float(values["true_reward"][method][-1]) == pytest.approx(float(gain.mean()))
        back, forth = ppo.exact_kl(probs, reference).mean(), ppo.exact_kl(reference, probs).mean()
        assert float(values["kl_new_ref"][method][-1]) == pytest.approx(float(back))
        assert float(values["kl_old_new"][method][-1]) == pytest.approx(float(forth))
        objective_ = float(gain.mean() - config.beta_ref * back)
        assert float(values["true_objective"][method][-1]) == pytest.approx(objective_)
        outside = (path.ratios[-1] - 1).abs() > config.epsilon
        assert float(values["clip_fraction"][method][-1]) == pytest.approx(float(outside.float().mean()))
    ratio = values["ratio_history"]["clip"][-1]
    torch.testing.assert_close(
        values["still_pushed"]["clip"][-1], clip_gradient_mask(ratio, values["batch_advantages"], config.epsilon)
    )
    assert batch.logps.shape == study.advantages.shape


def test_plain_advantages_are_returns_above_values(study, world):
    generator = torch.Generator().manual_seed(SMALL.seed)
    earlier = experiment.collect(world, world.base, experiment.EARLIER_ROLLOUTS, generator)
    scores = earlier.rewards.sum(dim=1, keepdim=True).expand(-1, 2)
    head = experiment.fit_values(earlier.features, scores)
    batch = experiment.collect(world, world.base, 40, generator)
    expected = batch.rewards.sum(dim=1, keepdim=True) - batch.features @ head
    torch.testing.assert_close(study.plain_advantages, expected, atol=1e-4, rtol=1e-4)


def test_estimates_of_the_kl_are_of_the_clipped_policy(study):
    values = experiment.estimators(study)
    ratio = study.paths["clip"].ratios[-1].prod(dim=1)
    torch.testing.assert_close(values["kl_samples"]["k1"], -ratio.log(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values["kl_samples"]["k3"], ratio - 1 - ratio.log(), atol=1e-4, rtol=1e-3)
    kl = kl_divergence(study.paths["clip"].probs[0], study.paths["clip"].probs[-1]).mean()
    assert values["kl_exact"] == pytest.approx(float(kl))


@pytest.mark.parametrize("kl", [0.02, 0.4])
def test_every_point_of_the_contour_is_equally_far(kl):
    center = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    contour = experiment.kl_contour(center, kl, 60)
    assert contour.shape == (60, 3)
    torch.testing.assert_close(kl_divergence(center, contour), torch.full((60,), kl, dtype=torch.float64))
    torch.testing.assert_close(contour.sum(dim=1), torch.ones(60, dtype=torch.float64))
    assert (contour > 0).all()
    # around the center: all sextants are met
    steps = (contour - center).sign()
    assert len({tuple(step.tolist()) for step in steps}) >= 6


def test_scores_of_longer_texts_count_words_and_repetitions(world):
    golden, key, drum = (tiny_lm.encode(word)[-1] for word in ("golden", "key", "drum"))
    texts = torch.tensor([[golden, key, drum], [key, key, key], [drum, 5, drum]])
    assert experiment.episode_scores(world.task, texts).tolist() == [1, 2, -2]


def test_without_a_price_the_best_objective_is_the_best_reward(world):
    free = experiment.World(Config(beta_ref=0), world.base, world.task, world.reference_probs, world.rewards)
    assert experiment.best_objective(free) == 2
    policy, _ = optimal_policy(world.reference_probs, world.rewards, 0.2)
    reached = (policy * world.rewards).sum(dim=1) - 0.2 * kl_divergence(policy, world.reference_probs)
    assert experiment.best_objective(world) == pytest.approx(float(reached.mean()))


def test_the_hinge_has_the_slope_that_it_shows():
    values = experiment.hinge(0.3)
    for name in ("positive", "negative"):
        ratio = values["hinge_ratio"].clone().requires_grad_()
        sign = torch.full_like(ratio, 1.0 if name == "positive" else -1.0)
        value = clipped_surrogate(ratio, sign, 0.3)
        (slope,) = torch.autograd.grad(value.sum(), ratio)
        corner = ((ratio - 0.7).abs() < 1e-9) | ((ratio - 1.3).abs() < 1e-9)
        torch.testing.assert_close(values[f"hinge_{name}"], value.detach())
        torch.testing.assert_close(values[f"hinge_{name}_slope"][~corner], slope[~corner])
        torch.testing.assert_close(values[f"hinge_{name}_unclipped"], sign * ratio.detach())


# -- the run -----------------------------------------------------------------------------------------------------------


def test_every_gain_starts_at_zero_and_no_kl_is_negative(trace):
    for name in ("true_reward", "true_objective", "surrogate_estimate", "kl_old_new", "kl_new_ref"):
        for curve in getattr(trace, name).values():
            assert float(curve[0]) == pytest.approx(0, abs=1e-6)
    for name in ("kl_old_new", "kl_new_ref"):
        for curve in getattr(trace, name).values():
            assert (curve[1:] > 0).all()


def test_the_estimate_leaves_the_truth_behind_and_further_without_the_clip(trace):
    estimate, truth = trace.surrogate_estimate, trace.true_objective
    assert float(estimate["unclipped"][-1]) > 2.5 * float(truth["unclipped"][-1])
    gaps = {method: float(estimate[method][-1] - truth[method][-1]) for method in ppo.METHODS}
    assert gaps["unclipped"] > 2 * gaps["clip"] > 2 * gaps["kl_penalty"] > 0
    assert float(trace.kl_old_new["unclipped"][-1]) > 10 > 1 > float(trace.kl_old_new["clip"][-1])
    # and more steps on the same answers make the goal worse
    assert float(truth["unclipped"].max()) > float(truth["unclipped"][-1]) + 0.05
    assert float(truth["clip"].max()) > float(truth["clip"][-1]) + 0.05


def test_the_full_run_ends_near_the_optimum_only_with_the_clip(trace):
    objective_ = trace.learning_curve_objective
    assert trace.objective_optimum - 0.15 < float(objective_["clip"][-1]) < trace.objective_optimum
    assert float(objective_["unclipped"][-1]) < trace.objective_optimum - 0.5
    # raw reward does not tell them apart
    assert float(trace.learning_curve_reward["unclipped"][-1]) > float(trace.learning_curve_reward["clip"][-1])
    for method, curve in objective_.items():
        assert (curve < trace.objective_optimum).all()
        price = trace.config.beta_ref * trace.learning_curve_kl_ref[method]
        torch.testing.assert_close(curve, trace.learning_curve_reward[method] - price)
    assert trace.tale_loss["before"] < trace.tale_loss["clip"] < trace.tale_loss["unclipped"]


def test_the_clipped_objective_peaks_near_the_old_policy(trace):
    assert float(trace.interp_kl[0]) == pytest.approx(0, abs=1e-9)
    assert float(trace.interpolation_alpha[trace.interp_clip.argmax()]) < 0.5
    assert (trace.interp_clip <= trace.interp_cpi + 1e-6).all()
    assert float(trace.interpolation_alpha[trace.interp_cpi.argmax()]) > 1
    at_one = (trace.interpolation_alpha - 1).abs().argsort()[:2]  # 1 lies between two grid points
    low, high = sorted(float(trace.interp_true[k]) for k in at_one)
    assert low < float(trace.true_reward["unclipped"][trace.interpolation_epoch]) < high


def check_bars_and_dots(values):
    for method in ppo.METHODS:
        bars, ratios = values["policy_probs"][method], values["dot_ratios"][method]
        torch.testing.assert_close(bars.sum(dim=1), torch.ones(len(bars), dtype=torch.float64))
        # a dot's ratio is its bar's growth, for the answers that have a bar
        alone = values["dot_bars"] < 8
        growth = bars[-1, values["dot_bars"][alone]] / bars[0, values["dot_bars"][alone]]
        assert 0.3 < float(alone.float().mean()) < 1
        torch.testing.assert_close(ratios[-1, alone].double(), growth, rtol=1e-3, atol=1e-6)


def test_bars_and_dots_show_the_same_policies(trace, study):
    check_bars_and_dots(vars(trace))
    values = experiment.bars_and_dots(study)
    check_bars_and_dots(values)
    assert len(values["dot_bars"]) == 7  # every sixth of 40 answers is to prompt 0
    assert torch.isnan(values["gold_rewards"]).tolist() == [False] * 8 + [True]
    taste = preference_task.word_scores()
    for answer, reward in zip(values["answer_tokens"][:8], values["gold_rewards"].tolist()[:8], strict=True):
        assert float(taste[tiny_lm.encode(f"a {answer}")[-2:]].sum()) == reward


def test_the_triangle_shows_the_first_three_bars(trace, study):
    for values in (vars(trace), experiment.bars_and_dots(study) | experiment.simplex(study)):
        for method in ppo.METHODS:
            bars, corners = values["policy_probs"][method], values["simplex_paths"][method]
            torch.testing.assert_close(corners, bars[:, :3] / bars[:, :3].sum(dim=1, keepdim=True))
        torch.testing.assert_close(values["simplex_old"], values["simplex_paths"]["clip"][0])
        assert values["simplex_tokens"] == values["answer_tokens"][:3]
        assert values["simplex_rewards"].tolist() == values["gold_rewards"].tolist()[:3]
        distance = kl_divergence(values["simplex_old"], values["simplex_kl_contour"])
        torch.testing.assert_close(distance, torch.full((60,), values["simplex_kl"], dtype=torch.float64))


def test_the_episode_is_a_real_text_and_its_credit_adds_up(trace, world):
    for values in (vars(trace), experiment.one_episode(world)):
        written = " ".join(values["rollout_tokens"])
        scores = preference_task.word_scores()[tiny_lm.encode(f"{tiny_lm.PROMPT} {written}")[-8:]]
        rewards, state_values = values["rollout_rewards"], values["rollout_values"]
        assert float(rewards.sum()) == float(rewards[-1]) == float(scores.sum()) > 0
        by_lambda = values["advantages_by_lambda"]
        torch.testing.assert_close(by_lambda[0], values["rollout_deltas"])
        torch.testing.assert_close(by_lambda[1], values["rollout_advantages"])
        torch.testing.assert_close(by_lambda[2], rewards.flip(0).cumsum(0).flip(0) - state_values)
        torch.testing.assert_close(values["lambdas"], torch.tensor([0.0, 0.95, 1.0]))
        torch.testing.assert_close(values["rollout_returns"], values["rollout_advantages"] + state_values)
        poured = values["rollout_deltas"][:-1] + values["rollout_shares"][1:]
        torch.testing.assert_close(poured, values["rollout_advantages"][:-1])
        torch.testing.assert_close(values["dial_advantages"][[0, 19, 20]], by_lambda)
        assert values["dial_lambdas"][[0, 19, 20]].tolist() == pytest.approx([0, 0.95, 1])


def test_values_of_an_episode_follow_what_was_written(world):
    """After both words of the find their reward is known: the head must see it."""
    values = experiment.one_episode(world)["rollout_values"]
    assert float((values[2:] - 1).abs().mean()) < 0.6


def test_the_zones_of_the_trace_are_those_of_the_clip(trace):
    assert (trace.clip_low, trace.clip_high) == (0.8, 1.2)
    ratio, advantages = trace.ratio_history["clip"], trace.batch_advantages
    dead = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    assert (trace.still_pushed["clip"] == ~dead).float().mean() > 0.999
    assert trace.penalty_beta[[0, 4]].tolist() == [1, 1]
    assert set(trace.penalty_beta.log2().diff().abs().tolist()) <= {0.0, 1.0}


def test_the_line_passes_the_early_policy(small_study, small_world):
    values = experiment.interpolation(small_study)
    assert values["interpolation_epoch"] == 2
    assert values["interpolation_alpha"][[0, -1]].tolist() == [0, 1.5]
    path, epsilon = small_study.paths["unclipped"], small_world.config.epsilon
    before, after = 26, 27  # alpha = 0.975 and 1.0125
    histories = experiment.histories(small_study)
    for name, curve in (
        ("interp_cpi", "surrogate_estimate"),
        ("interp_kl", "kl_old_new"),
        ("interp_true", "true_reward"),
    ):
        low, high = values[name][before], values[name][after]
        assert float(low) < float(histories[curve]["unclipped"][2]) < float(high)
        assert float(values[name][0]) == pytest.approx(0, abs=1e-6)
    advantages = small_study.plain_advantages
    clipped = (clipped_surrogate(path.ratios[2], advantages, epsilon) - advantages).sum(dim=1).mean()
    low, high = sorted(values["interp_clip"][[before, after]].tolist())
    assert low < float(clipped) < high


def test_the_full_run_reports_both_ways(small_world, monkeypatch):
    monkeypatch.setattr(experiment, "INNER_EPOCHS", 3)  # a shorter run
    values = experiment.full_run(small_world)
    assert values["iterations"].tolist() == [0, 1, 2, 3, 4, 5]
    policy, probs = experiment.train(small_world, SMALL.epsilon, done=0, of=5)
    rewards = ppo.exact_expected_reward(probs[-1].view(2, 112, 112), small_world.task.gold_rewards.double())
    kl = ppo.exact_kl(probs[-1].view(2, 112, 112), small_world.reference_probs.view(2, 112, 112))
    assert float(values["learning_curve_reward"]["clip"][-1]) == pytest.approx(float(rewards.mean()))
    assert float(values["learning_curve_kl_ref"]["clip"][-1]) == pytest.approx(float(kl.mean()))
    objective_ = float((rewards - SMALL.beta_ref * kl).mean())
    assert float(values["learning_curve_objective"]["clip"][-1]) == pytest.approx(objective_)
    assert float(values["learning_curve_reward"]["clip"][-1]) > float(values["learning_curve_reward"]["clip"][0]) + 0.1
    assert probs.shape == (6, 2, 112 * 112)
    assert values["learning_curve_reward"].keys() == {"unclipped", "clip"}
    assert not torch.allclose(*values["learning_curve_reward"].values(), atol=1e-3)
    assert values["tale_loss"].keys() == values["samples"].keys() == {"before", "unclipped", "clip"}
    assert values["tale_loss"]["before"] == pytest.approx(
        tiny_lm.evaluate(small_world.base, tiny_lm.held_out_kind("tale"))
    )
    torch.testing.assert_close(preference_task.answer_probs(policy, small_world.task), probs[-1])
    assert not policy.training
    assert not any(weight.requires_grad for weight in policy.parameters())


def test_the_full_run_judges_what_each_way_has_learned(small_world, monkeypatch):
    policies = {None: tiny_lm.load("base_seed1"), SMALL.epsilon: tiny_lm.load("base")}
    tables = {epsilon: randn(6, 2, 112 * 112, seed=k).softmax(dim=-1) for k, epsilon in enumerate(policies)}
    calls = []

    def train(world, epsilon, *, done, of):
        calls.append((epsilon, done, of))
        return policies[epsilon], tables[epsilon]

    monkeypatch.setattr(experiment, "train", train)
    values = experiment.full_run(small_world)
    assert calls == [(None, 0, 10), (SMALL.epsilon, 5, 10)]  # ten iterations in all
    gold, reference = small_world.task.gold_rewards.double().flatten(1), small_world.reference_probs
    for method, probs in (("unclipped", tables[None]), ("clip", tables[SMALL.epsilon])):
        reward = (probs * gold).sum(dim=2).mean(dim=1)
        kl = (probs * (probs / reference).log()).sum(dim=2).mean(dim=1)
        torch.testing.assert_close(values["learning_curve_reward"][method], reward)
        torch.testing.assert_close(values["learning_curve_kl_ref"][method], kl)
        torch.testing.assert_close(values["learning_curve_objective"][method], reward - SMALL.beta_ref * kl)
    models = {"before": small_world.base, "unclipped": policies[None], "clip": policies[SMALL.epsilon]}
    samples, tale_loss = preference_task.after_words(small_world.task, models, SMALL.seed)
    assert (values["samples"], values["tale_loss"]) == (samples, tale_loss)
    assert values["objective_optimum"] == experiment.best_objective(small_world)
