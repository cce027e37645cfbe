import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import dpo, dpo_experiment, preference_task, tiny_lm, trace_store
from internals_math.dpo import (
    Config,
    dpo_gradient_weights,
    dpo_loss,
    expected_reward,
    implicit_reward,
    implied_reward,
    kl_divergence,
    optimal_policy,
    reward_kl_frontier,
    sequence_log_probs,
)
from tests.internals_math.policies import divergence, places_of, worth
from tests.oracles import randn

betas = st.floats(0.05, 2)
seeds = st.integers(0, 100)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(dpo)


@pytest.fixture(params=["default", "short"])
def either_trace(request):
    """What holds for every run is asked of the default one and of a run made here and now."""
    return request.getfixturevalue("trace" if request.param == "default" else "short_trace")


@pytest.fixture(scope="module")
def short_run():
    """A short run whose prompts pay differently, so that what is read of the wrong one is noticed."""
    run = dpo_experiment.train(Config(n_pairs=128, train_steps=22))
    run.rewards = run.rewards * torch.linspace(1, 0.5, len(run.rewards), dtype=torch.float64)[:, None]
    return run


@pytest.fixture(scope="module")
def short_trace(short_run):
    """What the trace says of the short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo_experiment, "train", lambda config: short_run)
        return dpo.trace(short_run.config)


def some_probs(*shape, seed=0):
    return torch.softmax(2 * randn(*shape, seed=seed), dim=-1)


def four(seed, count=5):
    return [randn(count, seed=seed + k) - 4 for k in range(4)]


# -- the loss ----------------------------------------------------------------------------------------------------------


@given(betas, seeds)
def test_a_policy_that_is_the_reference_has_loss_log_2_and_only_ties(beta, seed):
    chosen, rejected, _, _ = four(seed)
    result = dpo_loss(chosen, rejected, chosen, rejected, beta)
    torch.testing.assert_close(result.loss, torch.full((5,), math.log(2), dtype=torch.float64))
    assert (result.margins == 0).all()
    assert (result.accuracies == 0.5).all()
    torch.testing.assert_close(
        dpo_gradient_weights(result.margins, beta), torch.full((5,), beta / 2, dtype=torch.float64)
    )


@given(betas, seeds)
def test_the_gradient_pushes_both_answers_apart_with_the_weight_of_the_pair(beta, seed):
    chosen, rejected, *reference = (logps.requires_grad_() for logps in four(seed))
    result = dpo_loss(chosen, rejected, *reference, beta)
    up, down = torch.autograd.grad(result.loss.sum(), (chosen, rejected))
    weight = dpo_gradient_weights(result.margins, beta)
    torch.testing.assert_close(up, -weight)
    torch.testing.assert_close(down, weight)


@given(betas, seeds)
def test_swapping_the_answers_turns_the_margin_around(beta, seed):
    chosen, rejected, reference_chosen, reference_rejected = four(seed)
    one = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
    other = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, beta)
    torch.testing.assert_close(other.margins, -one.margins)
    torch.testing.assert_close(one.loss - other.loss, -one.margins)
    torch.testing.assert_close(one.accuracies + other.accuracies, torch.ones(5, dtype=torch.float64))
    smooth = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta, label_smoothing=0.5)
    flipped = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, beta, label_smoothing=0.5)
    torch.testing.assert_close(smooth.loss, flipped.loss)


@given(betas, seeds)
def test_margins_are_differences_of_implicit_rewards(beta, seed):
    chosen, rejected, reference_chosen, reference_rejected = four(seed)
    result = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta)
    torch.testing.assert_close(result.chosen_rewards, implicit_reward(chosen, reference_chosen, beta))
    torch.testing.assert_close(result.margins, result.chosen_rewards - result.rejected_rewards)


def test_the_hinge_stops_pushing_at_a_margin_of_one():
    chosen = torch.tensor([0.0, 2.0, 20.0])
    zero = torch.zeros(3)
    assert dpo_loss(chosen, zero, zero, zero, 0.5, loss_type="hinge").loss.tolist() == [1.0, 0.0, 0.0]


def test_ipo_has_its_minimum_at_half_the_inverse_of_beta():
    gaps = torch.linspace(-5, 15, 201)
    zero = torch.zeros(201)
    loss = dpo_loss(gaps, zero, zero, zero, 0.1, loss_type="ipo").loss
    assert float(gaps[loss.argmin()]) == pytest.approx(5, abs=1e-4)


@given(seeds)
def test_logits_of_the_prompt_do_not_count(seed):
    logits, labels = randn(2, 6, 9, seed=seed), torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[False, False, False, True, True, False], [False, False, False, False, True, True]])
    before = sequence_log_probs(logits, labels, mask)
    changed = logits.clone()
    changed[0, [0, 1, 4, 5]] += randn(4, 9, seed=seed + 1)  # positions 2 and 3 predict the response of row 0
    changed[1, [0, 1, 2, 5]] += randn(4, 9, seed=seed + 2)
    torch.testing.assert_close(sequence_log_probs(changed, labels, mask), before)
    changed[0, 2] += randn(9, seed=seed + 3)
    assert not torch.allclose(sequence_log_probs(changed, labels, mask)[0], before[0])


# -- what it stands for ------------------------------------------------------------------------------------------------


@given(betas, seeds)
def test_the_ratio_of_the_best_policy_gives_the_reward_back(beta, seed):
    reference, rewards = some_probs(3, 6, seed=seed), randn(3, 6, seed=seed + 1)
    policy, log_partition = optimal_policy(reference, rewards, beta)
    expected = rewards - expected_reward(reference, rewards)[:, None]
    torch.testing.assert_close(implied_reward(policy, reference, beta), expected, atol=1e-5, rtol=1e-5)
    level = beta * log_partition[:, None]
    torch.testing.assert_close(implicit_reward(policy.log(), reference.log(), beta), rewards - level)


def test_soft_labels_on_all_pairs_lead_to_the_best_policy():
    reference, rewards = some_probs(8), randn(8, seed=3)
    first, second = torch.combinations(torch.arange(8)).T
    preferred = torch.sigmoid(rewards[first] - rewards[second])
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logps, ref = logits.log_softmax(dim=-1), reference.log()
        right = dpo_loss(logps[first], logps[second], ref[first], ref[second], 0.5).loss
        wrong = dpo_loss(logps[second], logps[first], ref[second], ref[first], 0.5).loss
        loss = (preferred * right + (1 - preferred) * wrong).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    best = optimal_policy(reference, rewards, 0.5)[0]
    assert float((logits.detach().softmax(dim=-1) - best).abs().sum() / 2) < 1e-4


@settings(max_examples=20)
@given(seeds)
def test_along_the_frontier_both_kl_and_reward_fall_with_beta(seed):
    reference, rewards = some_probs(3, 9, seed=seed), randn(3, 9, seed=seed + 1)
    kl, reward = reward_kl_frontier(reference, rewards, torch.logspace(-2, 3, 40, dtype=torch.float64))
    assert (kl.diff() <= 1e-9).all()
    assert (reward.diff() <= 1e-9).all()
    assert float(kl[-1]) < 1e-4


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"label_smoothing": 0.6}, r"label_smoothing must be in 0\.\.0\.5, got 0\.6"),
        ({"loss_type": "robust"}, "loss_type must be one of sigmoid, hinge, ipo, got 'robust'"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing is of the sigmoid loss; ipo takes 0, got 0.1"),
        ({"policy_rejected_logps": torch.zeros(3)}, r"must have one shape, got \[\(2,\), \(3,\), \(2,\), \(2,\)\]"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(plain_python, arguments, message):
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    given_ = dict.fromkeys(names, torch.zeros(2)) | {"beta": 0.1} | arguments
    with pytest.raises(ValueError, match=message):
        dpo_loss(**given_)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[True, True, False]], "mask must be False at position 0"),
        ([[False, False, False]], r"at least one response token, got an empty mask in rows \[0\]"),
        ([[False, True]], r"must fit, got \(1, 3, 4\), \(1, 3\) and \(1, 2\)"),
    ],
)
def test_a_response_that_cannot_be_scored_is_refused(plain_python, mask, message):
    with pytest.raises(ValueError, match=message):
        sequence_log_probs(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.tensor(mask))


def test_rewards_of_impossible_or_unnormalized_answers_are_refused():
    whole = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="policy_probs must sum to 1 over the last axis, got 1.5"):
        implied_reward(torch.tensor([1.0, 0.5]), whole, 1.0)
    with pytest.raises(ValueError, match="an answer that the reference rules out has no reward"):
        implied_reward(whole, torch.tensor([1.0, 0.0]), 1.0)
    assert kl_divergence(whole, torch.tensor([1.0, 0.0])) == math.inf


@pytest.mark.parametrize(
    "setting", ["beta=0", "n_pairs=5", "train_steps=1000", "learning_rate=1", "label_smoothing=0.5"]
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- what the trace says of a run --------------------------------------------------------------------------------------


def test_bars_are_looked_up_in_the_policies_after_the_shown_prompt(short_run, short_trace):
    shown, reference, rewards = places_of(short_trace.answer_tokens[:-1]), short_run.reference_probs, short_run.rewards
    beta = short_run.config.beta
    best = torch.softmax(reference.log() + rewards / beta, dim=1)
    for bars, table in (
        (short_trace.reference_probs, reference),
        (short_trace.gold_rewards, rewards),
        (short_trace.optimal_probs, best),
        (short_trace.trained_probs[2], short_run.probs[2]),
    ):
        torch.testing.assert_close(bars[:-1], table[0, shown])
    assert short_trace.scaled_log_partition == pytest.approx(
        beta * math.log(float((reference[0] * (rewards[0] / beta).exp()).sum()))
    )
    assert short_trace.tilt_betas[[0, -1]].tolist() == pytest.approx([5, 0.05])
    for row in (0, 20, 40):
        tilted = torch.softmax(reference[0].log() + rewards[0] / short_trace.tilt_betas[row], dim=0)
        torch.testing.assert_close(short_trace.tilted_probs[row, :-1], tilted[shown])


def test_the_likeliest_answers_are_shown_and_then_the_likeliest_of_the_best_and_of_the_worst(short_run, short_trace):
    table, rewards = short_run.reference_probs[0].tolist(), short_run.rewards[0].tolist()
    by_likelihood = sorted(range(len(table)), key=lambda place: -table[place])
    likely, rest = by_likelihood[:6], by_likelihood[6:]
    best, worst = (next(place for place in rest if rewards[place] == extreme) for extreme in (2, -2))
    assert places_of(short_trace.answer_tokens[:-1]).tolist() == [*likely, best, worst]


def test_frontier_and_path_are_sums_over_all_answers(short_run, short_trace):
    reference, rewards = short_run.reference_probs, short_run.rewards
    best = torch.softmax(reference.log() + rewards / short_run.config.beta, dim=1)
    assert short_trace.optimal_kl == pytest.approx(divergence(best, reference))
    assert short_trace.optimal_reward == pytest.approx(worth(best, rewards))
    assert short_trace.frontier_betas[[0, -1]].tolist() == pytest.approx([100, 0.01])
    for row in (10, 30, 59):
        tilted = torch.softmax(reference.log() + rewards / short_trace.frontier_betas[row], dim=1)
        assert float(short_trace.frontier_kl[row]) == pytest.approx(divergence(tilted, reference), rel=1e-5)
        assert float(short_trace.frontier_reward[row]) == pytest.approx(worth(tilted, rewards))
    last = short_run.probs[-1]
    assert float(short_trace.kl_path[-1]) == pytest.approx(divergence(last, reference))
    assert float(short_trace.reward_path[-1]) == pytest.approx(worth(last, rewards))
    distance = 0.5 * (last - best).abs().sum(dim=1).mean()
    assert float(short_trace.total_variation[-1]) == pytest.approx(float(distance))


def test_curves_follow_from_the_log_probabilities_of_all_pairs(short_run, short_trace):
    """Every pair is scored anew, from the exact tables of both policies."""
    assert short_trace.steps.tolist() == [0, 5, 10, 15, 20, 22]
    pairs, beta = short_run.pairs, short_run.config.beta
    won, lost = (
        [table[pairs.prompt, words[:, 0] * tiny_lm.VOCAB_SIZE + words[:, 1]].log()
         for table in (short_run.probs[-1], short_run.reference_probs)]
        for words in (pairs.chosen, pairs.rejected)
    )  # fmt: skip
    chosen, rejected = beta * (won[0] - won[1]), beta * (lost[0] - lost[1])
    for curve, expected in (
        (short_trace.chosen_logp_curve, won[0]),
        (short_trace.rejected_logp_curve, lost[0]),
        (short_trace.chosen_reward_curve, chosen),
        (short_trace.rejected_reward_curve, rejected),
        (short_trace.margin_mean, chosen - rejected),
        (short_trace.loss_curve, torch.nn.functional.softplus(rejected - chosen)),
        (short_trace.accuracy_curve, (chosen > rejected).double()),
    ):
        assert float(curve[-1]) == pytest.approx(float(expected.mean()), abs=1e-5)
    assert short_trace.margins_history[-1].tolist() == pytest.approx((chosen - rejected)[:24].tolist(), abs=1e-4)
    assert float(short_trace.margin_mean[-1]) > 0.05
    assert float(short_trace.loss_curve[-1]) < float(short_trace.loss_curve[0])


def test_the_shown_pair_is_the_first_one_after_its_prompt_that_follows_the_rewards(short_run, short_trace):
    taste, pairs = preference_task.word_scores(), short_run.pairs
    for prompt, won, lost in zip(pairs.prompt.tolist(), pairs.chosen, pairs.rejected, strict=True):
        better, worse = (float(taste[words].sum()) - 0.5 * float(words[0] == words[1]) for words in (won, lost))
        if prompt == 0 and better > worse:
            break
    assert short_trace.chosen_tokens == tiny_lm.tokens(won)
    assert short_trace.rejected_tokens == tiny_lm.tokens(lost)
    for row, tokens in enumerate((short_trace.chosen_tokens, short_trace.rejected_tokens)):
        place = places_of([" ".join(tokens)])
        for logps, table in (
            (short_trace.sequence_logps_policy, short_run.probs[-1]),
            (short_trace.sequence_logps_reference, short_run.reference_probs),
        ):
            assert float(logps[row]) == pytest.approx(float(table[0, place].log()), abs=1e-4)


# -- the run -----------------------------------------------------------------------------------------------------------


def test_training_starts_at_the_reference(trace):
    assert trace.steps[0] == 0
    assert float(trace.loss_curve[0]) == pytest.approx(math.log(2), abs=1e-6)
    assert trace.margins_history[0].abs().max() < 1e-5
    assert trace.kl_path[0] == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(trace.trained_probs[0], trace.reference_probs, atol=1e-9, rtol=0)


def test_every_trained_point_lies_below_the_frontier(trace):
    task = preference_task.make_preference_task(tiny_lm.load("base"))
    reference = preference_task.exact(preference_task.answer_log_probs(tiny_lm.load("base"), task).detach())
    rewards = task.gold_rewards.double().flatten(1)
    for kl, reward in zip(trace.kl_path.tolist(), trace.reward_path.tolist(), strict=True):
        # the frontier as the least of its tangents: reward <= beta·KL + mean of beta·ln Z, for every beta
        for beta in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0):
            ceiling = beta * kl + float(beta * optimal_policy(reference, rewards, beta)[1].mean())
            assert reward <= ceiling + 1e-5


def test_the_trained_policy_comes_near_the_best_one_and_both_answers_lose_probability(trace):
    assert float(trace.reward_path[-1]) > 1.5 > float(trace.reward_path[0])
    assert float(trace.total_variation[-1]) < 0.35 < float(trace.total_variation[0])
    assert float(trace.accuracy_curve[-1]) > 0.7
    # likelihood displacement (2410.08847): the chosen answers fall too, the rejected ones further
    assert float(trace.chosen_logp_curve.diff().sum()) < 0
    assert float(trace.rejected_logp_curve[-1]) < float(trace.chosen_logp_curve[-1])
    assert trace.tale_loss_before < trace.tale_loss_after < 0.6


def test_the_bars_and_arrows_of_the_trace_belong_together(either_trace):
    for probs in (
        either_trace.reference_probs,
        either_trace.optimal_probs,
        either_trace.tilted_probs,
        either_trace.trained_probs,
    ):
        torch.testing.assert_close(probs.sum(dim=-1), torch.ones(probs.shape[:-1], dtype=torch.float64))
    single = slice(0, -1)
    torch.testing.assert_close(
        either_trace.log_ratios[single] + either_trace.scaled_log_partition, either_trace.gold_rewards[single]
    )
    ratio = either_trace.config.beta * (either_trace.optimal_probs / either_trace.reference_probs).log()
    torch.testing.assert_close(ratio[single], either_trace.log_ratios[single])
    gaps = either_trace.implied_rewards[single] - either_trace.gold_rewards[single]
    torch.testing.assert_close(gaps, gaps[:1].expand(8), atol=1e-5, rtol=0)
    assert torch.isnan(either_trace.gold_rewards[-1])
    task = preference_task.make_preference_task(tiny_lm.load("base"))
    with torch.no_grad():
        reference = preference_task.answer_log_probs(tiny_lm.load("base"), task).double().exp()[0]
    mean = float((reference * task.gold_rewards[0]).sum())  # of prompt 0, over all answers
    torch.testing.assert_close(
        either_trace.implied_rewards[single] + mean, either_trace.gold_rewards[single], atol=1e-5, rtol=0
    )
    best_and_worst = either_trace.gold_rewards[[-3, -2]]
    assert best_and_worst.tolist() == [2, -2]
    torch.testing.assert_close(either_trace.lifted_rewards - either_trace.floors[:, None], best_and_worst.expand(17, 2))
    assert either_trace.answer_tokens[-1] == "all others"
    torch.testing.assert_close(
        either_trace.lifted_rewards.diff(dim=1)[:, 0], torch.full((17,), -either_trace.lifted_gap, dtype=torch.float64)
    )


def test_the_pair_on_screen_is_read_word_by_word(either_trace):
    torch.testing.assert_close(either_trace.token_logps_reference.sum(dim=1), either_trace.sequence_logps_reference)
    torch.testing.assert_close(either_trace.token_logps_policy.sum(dim=1), either_trace.sequence_logps_policy)
    ids = tiny_lm.encode(f"{tiny_lm.PROMPT} {' '.join(either_trace.chosen_tokens)}")
    logits = tiny_lm.load("base")(torch.tensor([ids]))
    mask = torch.zeros(1, len(ids), dtype=torch.bool)
    mask[:, -2:] = True
    whole = sequence_log_probs(logits, torch.tensor([ids]), mask)
    assert float(whole) == pytest.approx(float(either_trace.sequence_logps_reference[0]), abs=1e-5)


def test_dots_weights_and_losses_follow_the_margins(either_trace):
    torch.testing.assert_close(either_trace.weights_history, torch.sigmoid(-either_trace.margins_history))
    torch.testing.assert_close(either_trace.losses_history, torch.nn.functional.softplus(-either_trace.margins_history))
    torch.testing.assert_close(either_trace.curve_loss, torch.nn.functional.softplus(-either_trace.curve_margins))
    assert either_trace.kl_path.shape == either_trace.steps.shape
    assert either_trace.curve_margins[[0, -1]].tolist() == [-4, 6]
    assert either_trace.floors[[0, -1]].tolist() == [-1, 1]


def test_another_seed_meets_other_prompts_and_smoothed_labels_keep_margins_small():
    short = {"n_pairs": 128, "train_steps": 20}
    plain, smooth = (dpo.trace(Config(**short, label_smoothing=share)) for share in (0.0, 0.4))
    assert float(smooth.margin_mean[-1]) < float(plain.margin_mean[-1])
    assert plain.steps.tolist() == [0, 5, 10, 15, 20]
    other = dpo_experiment.train(Config(**short, seed=1))
    assert other.task.prompts[0] == tiny_lm.PROMPT
    assert other.task.prompts[1:] != preference_task.make_preference_task(tiny_lm.load("base")).prompts[1:]
