import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import preference_task, rlhf, rlhf_experiment, tiny_lm, trace_store
from internals_math.distributions import kl_divergence
from internals_math.dpo import expected_reward
from internals_math.rlhf import (
    AdaptiveKLController,
    Config,
    adaptive_kl_update,
    bayes_accuracy,
    best_of_n_kl_bound,
    best_of_n_policy,
    goodhart_curve,
    kl_shaped_rewards,
    normalize_reward_bias,
    optimal_policy,
    pairwise_reward_loss,
    ranking_pairs,
    ranking_reward_loss,
    reinforce_loss,
    reward_accuracy,
    rlhf_objective,
    sft_loss,
)
from tests.internals_math.policies import divergence, places_of, worth
from tests.oracles import randn

betas = st.floats(0.05, 2)
seeds = st.integers(0, 100)
BETAS = torch.logspace(1, -2, 25, dtype=torch.float64)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(rlhf)


@pytest.fixture(scope="module")
def small_run():
    return rlhf_experiment.train(
        Config(n_comparisons=256, rl_steps=22, samples_per_step=33, sft_demos=40, seed=1), n_prompts=2
    )


@pytest.fixture(params=["default", "small"])
def either_trace(request):
    """What holds for every run is asked of the default one and of a run made here and now."""
    return request.getfixturevalue("trace" if request.param == "default" else "small_trace")


@pytest.fixture(scope="module")
def small_trace(small_run):
    """What the trace says of the small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf_experiment, "train", lambda config: small_run)
        return rlhf.trace(small_run.config)


@pytest.fixture(scope="module")
def made_run():
    """A run of tables and models that were made up: quick, and what is read from the wrong one is noticed."""
    base, sft = tiny_lm.load("base"), tiny_lm.load("base_seed1")
    policy = tiny_lm.copy_of(base).requires_grad_(False)
    policy.model.norm.weight *= 0.9
    task = preference_task.make_preference_task(base, n_prompts=2, seed=1)
    task = replace(task, gold_rewards=task.gold_rewards * torch.tensor([1, 0.5])[:, None, None])
    config = Config(n_comparisons=256, rl_steps=22, seed=1)
    generator, gold = torch.Generator().manual_seed(1), task.gold_rewards.double().flatten(1)
    run = rlhf_experiment.Run(config, task, base, generator, gold, preference_task.answer_probs(base, task), sft)
    run.sft_probs = preference_task.answer_probs(sft, task)
    run.sft_curve = [torch.tensor(2.0), torch.tensor(1.5)]
    run.pairs = preference_task.sample_preferences(task, run.sft_probs.log().view_as(task.gold_rewards), 256, generator)
    run.reward_models = [rlhf_experiment.RewardModel(sft, generator) for _ in range(3)]
    run.proxy, run.bias, run.policy = gold + 0.5 * randn(*gold.shape, seed=2), 0.3, policy
    better = best_of_n_policy(run.sft_probs, run.proxy, 3)
    run.rl_probs = [run.sft_probs.lerp(better, share) for share in (0, 0.2, 0.5, 0.6, 0.9, 1)]
    run.episode = {
        "episode_tokens": ("golden", "key"),
        "episode_score": 2.0,
        "token_rewards": torch.tensor([0.1, 1.9]),
        "token_kl": torch.tensor([-0.5, 0.5]),
    }
    return run


@pytest.fixture(scope="module")
def made_trace(made_run):
    """What the trace says of the made run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf_experiment, "train", lambda config: made_run)
        return rlhf.trace(made_run.config)


def changed(run, **values):
    """A copy of a run with other values."""
    other = copy.copy(run)
    vars(other).update(values)
    return other


def some_probs(*shape, seed=0):
    return torch.softmax(2 * randn(*shape, seed=seed), dim=-1)


def tied_rewards(*shape, seed=0):
    return randn(*shape, seed=seed).round()


# -- imitate -----------------------------------------------------------------------------------------------------------


def test_every_response_token_counts_the_same_whatever_row_it_stands_in():
    logits, labels = randn(2, 5, 7, seed=0), torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False, False, False, False, True], [False, False, True, True, True]])
    alone = [sft_loss(logits[[row]], labels[[row]], mask[[row]]) for row in (0, 1)]
    torch.testing.assert_close(sft_loss(logits, labels, mask), (alone[0] + 3 * alone[1]) / 4)


def test_a_response_that_starts_the_text_or_is_missing_is_refused():
    logits, labels = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="mask must be False at position 0"):
        sft_loss(logits, labels, torch.tensor([[True, True, True]]))
    with pytest.raises(ValueError, match=r"an empty mask in rows \[0\]"):
        sft_loss(logits, labels, torch.tensor([[False, False, False]]))


# -- fit a reward ------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(-50, 50))
def test_the_level_of_all_rewards_does_not_change_the_loss(seed, constant):
    rewards = randn(4, 5, seed=seed)
    torch.testing.assert_close(ranking_reward_loss(rewards + constant), ranking_reward_loss(rewards))


def test_equal_rewards_cost_log_2_and_a_reversed_ranking_costs_more_than_a_right_one():
    log_2 = torch.tensor(math.log(2), dtype=torch.float64)
    torch.testing.assert_close(ranking_reward_loss(torch.ones(3, 4, dtype=torch.float64)), log_2)
    right = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert ranking_reward_loss(right) < log_2 < ranking_reward_loss(right.flip(1))


@given(seeds)
def test_a_ranking_of_two_is_a_pair(seed):
    rewards = randn(6, 2, seed=seed)
    torch.testing.assert_close(ranking_reward_loss(rewards), pairwise_reward_loss(rewards[:, 0], rewards[:, 1]))


def test_ranked_pairs_put_the_better_answer_first_and_meet_every_pair_once():
    better, worse = ranking_pairs(5)
    assert (better < worse).all()
    assert len(set(zip(better.tolist(), worse.tolist(), strict=True))) == 10


def test_accuracy_counts_right_orders_and_half_of_the_ties():
    one, other = torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 0.0])
    assert reward_accuracy(one, other, torch.tensor([1, 0, 1, 0])) == 2.5 / 4
    assert reward_accuracy(one[:2], other[:2], torch.tensor([1, 0])) == 1
    assert reward_accuracy(one[:2], other[:2], torch.tensor([0, 1])) == 0


@given(seeds)
def test_no_reward_predicts_noisy_labels_better_than_the_true_one(seed):
    gold_1, gold_2 = randn(20_000, seed=seed), randn(20_000, seed=seed + 1000)
    coin = torch.rand(20_000, generator=torch.Generator().manual_seed(seed + 3000), dtype=torch.float64)
    labels = (coin < torch.sigmoid(gold_1 - gold_2)).long()
    ceiling = bayes_accuracy(gold_1, gold_2)
    assert 0.5 <= ceiling <= 1
    standard_error = 0.5 / math.sqrt(20_000)
    assert abs(reward_accuracy(gold_1, gold_2, labels) - ceiling) < 4 * standard_error
    wrong = gold_1 + 2 * randn(20_000, seed=seed + 2000)
    assert reward_accuracy(wrong, gold_2, labels) < ceiling


def test_certain_labels_have_a_ceiling_of_one_and_coin_flips_of_one_half():
    far, level = torch.tensor([100.0, -100.0]), torch.zeros(2)
    assert bayes_accuracy(far, level) == 1
    assert bayes_accuracy(level, level) == 0.5


def test_demonstrations_get_a_mean_reward_of_zero_and_differences_stay():
    rewards, demonstrations = randn(3, 4, seed=1), randn(6, seed=2) + 5
    shifted, bias = normalize_reward_bias(rewards, demonstrations)
    assert bias == pytest.approx(float(demonstrations.mean()))
    torch.testing.assert_close(shifted + bias, rewards)
    assert float(normalize_reward_bias(demonstrations, demonstrations)[0].mean()) == pytest.approx(0, abs=1e-12)


# -- the leash ---------------------------------------------------------------------------------------------------------


@given(seeds, st.floats(0, 2))
def test_token_rewards_add_up_to_the_score_less_the_toll(seed, beta):
    scores, policy, reference = randn(3, seed=seed), randn(3, 6, seed=seed + 1), randn(3, 6, seed=seed + 2)
    mask = torch.tensor(
        [
            [False, True, True, False, False, False],
            [False, False, False, True, True, True],
            [True, False, True, False, False, False],
        ]
    )
    policy[~mask] = torch.inf  # what stands outside a response must not matter
    rewards = kl_shaped_rewards(scores, policy, reference, mask, beta)
    assert (rewards[~mask] == 0).all()
    ratio = (policy - reference).where(mask, 0.0)
    torch.testing.assert_close(rewards.sum(dim=1), scores - beta * ratio.sum(dim=1))
    last = torch.tensor([2, 5, 2])
    rows = torch.arange(3)
    torch.testing.assert_close(rewards[rows, last], scores - beta * ratio[rows, last])


@given(seeds, betas)
def test_the_best_policy_is_worth_beta_log_z_and_nothing_is_worth_more(seed, beta):
    reference, rewards = some_probs(3, 8, seed=seed), randn(3, 8, seed=seed + 1)
    best, log_partition = optimal_policy(reference, rewards, beta)
    value = rlhf_objective(best, reference, rewards, beta)
    torch.testing.assert_close(value, beta * log_partition)
    for other in (reference, some_probs(3, 8, seed=seed + 2), 0.99 * best + 0.01 * reference):
        assert (rlhf_objective(other, reference, rewards, beta) <= value + 1e-12).all()


def test_without_a_toll_only_the_reward_counts_even_at_infinite_divergence():
    policy, reference = torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0])
    assert float(rlhf_objective(policy, reference, torch.tensor([1.0, 2.0]), 0.0)) == 1.75
    assert float(rlhf_objective(policy, reference, torch.tensor([1.0, 2.0]), 0.1)) == -math.inf


@given(seeds, betas, st.floats(0.1, 10))
def test_scaling_the_reward_and_its_price_together_changes_nothing(seed, beta, factor):
    reference, rewards = some_probs(8, seed=seed), randn(8, seed=seed + 1)
    scaled = optimal_policy(reference, factor * rewards, factor * beta)[0]
    torch.testing.assert_close(scaled, optimal_policy(reference, rewards, beta)[0])


def test_the_estimate_pushes_answers_above_the_mean_up_and_none_if_all_returns_are_equal():
    logps = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loss = reinforce_loss(logps, torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, logps)
    torch.testing.assert_close(-gradient, torch.tensor([-2.0, -1.0, 3.0], dtype=torch.float64) / 3)
    (gradient,) = torch.autograd.grad(reinforce_loss(logps, torch.full((3,), 7.0, dtype=torch.float64)), logps)
    assert (gradient == 0).all()


def test_returns_are_constants_for_the_gradient():
    logps = randn(4, seed=0).requires_grad_()
    (gradient,) = torch.autograd.grad(reinforce_loss(logps, 2 * logps), logps)
    torch.testing.assert_close(gradient, -2 * (logps - logps.mean()).detach() / 4)


@given(st.floats(0.01, 2), st.floats(0, 50), st.floats(0.1, 10), st.integers(1, 500), st.integers(500, 20_000))
def test_beta_follows_the_divergence_within_its_clip(beta, kl, target, n_steps, horizon):
    new = adaptive_kl_update(beta, kl, target, n_steps, horizon)
    share = n_steps / horizon
    assert 1 - 0.2 * share - 1e-12 <= new / beta <= 1 + 0.2 * share + 1e-12
    assert (new - beta) * (kl - target) >= -1e-12
    assert adaptive_kl_update(beta, target, target, n_steps, horizon) == beta
    slightly = adaptive_kl_update(beta, 1.1 * target, target, n_steps, horizon)
    assert slightly == pytest.approx(beta * (1 + 0.1 * share))


def test_a_controller_carries_its_beta_from_batch_to_batch():
    controller = AdaptiveKLController(0.2, target=6.0, horizon=1000)
    assert controller.update(9.0, 100) == pytest.approx(0.2 * 1.02)
    assert controller.update(0.0, 100) == pytest.approx(0.2 * 1.02 * 0.98)
    assert controller.beta == pytest.approx(0.2 * 1.02 * 0.98)


# -- too much of a good thing ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seeds, st.integers(1, 40))
def test_the_best_of_n_gains_reward_within_the_bound_of_its_divergence(seed, n):
    reference, rewards = some_probs(3, 9, seed=seed), tied_rewards(3, 9, seed=seed + 1)
    policy, more = (best_of_n_policy(reference, rewards, count) for count in (n, n + 1))
    torch.testing.assert_close(policy.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    assert (expected_reward(more, rewards) >= expected_reward(policy, rewards) - 1e-12).all()
    assert (kl_divergence(policy, reference) <= best_of_n_kl_bound(n) + 1e-12).all()


@given(seeds)
def test_the_best_of_one_is_the_reference_and_ties_keep_its_shares(seed):
    reference, rewards = some_probs(9, seed=seed), tied_rewards(9, seed=seed + 1)
    torch.testing.assert_close(best_of_n_policy(reference, rewards, 1), reference)
    ratio = best_of_n_policy(reference, rewards, 5) / reference
    for value in rewards.unique():
        tied = ratio[rewards == value]
        torch.testing.assert_close(tied, tied[:1].expand_as(tied))


def test_many_rare_answers_reach_the_bound_and_a_sure_answer_cannot_differ():
    uniform = torch.full((4000,), 1 / 4000, dtype=torch.float64)
    policy = best_of_n_policy(uniform, torch.arange(4000, dtype=torch.float64), 4)
    assert float(kl_divergence(policy, uniform)) == pytest.approx(best_of_n_kl_bound(4), abs=1e-3)
    sure = torch.tensor([1.0, 0.0])
    assert best_of_n_policy(sure, torch.tensor([0.0, 1.0]), 8).tolist() == [1, 0]
    assert best_of_n_kl_bound(1) == 0


@settings(max_examples=20)
@given(seeds)
def test_a_smaller_beta_goes_further_and_raises_the_proxy(seed):
    reference, proxy, gold = some_probs(3, 9, seed=seed), randn(3, 9, seed=seed + 1), randn(3, 9, seed=seed + 2)
    curve = goodhart_curve(reference, proxy, gold, BETAS)
    assert (curve.kl.diff() >= -1e-12).all()
    assert (curve.proxy.diff() >= -1e-12).all()
    true = goodhart_curve(reference, gold, gold, BETAS)
    torch.testing.assert_close(true.proxy, true.gold)
    middle = optimal_policy(reference, proxy, float(BETAS[12]))[0]
    torch.testing.assert_close(curve.gold[12], (middle * gold).sum(dim=1).mean())
    torch.testing.assert_close(curve.kl[12], kl_divergence(middle, reference).mean())


def test_a_proxy_that_contradicts_the_truth_lowers_it():
    reference, gold = some_probs(9, seed=1), randn(9, seed=2)
    curve = goodhart_curve(reference, -gold, gold, BETAS)
    assert (curve.gold.diff() <= 1e-12).all()


# -- refused -----------------------------------------------------------------------------------------------------------

PAIR = torch.tensor([0.5, 0.5])
TWO = torch.zeros(2)
LOGPS = torch.zeros(2, 3)
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_reward_loss(TWO, torch.zeros(3)), r"must have one shape .* got \(2,\) and \(3,\)"),
        (lambda: pairwise_reward_loss(torch.zeros(0), torch.zeros(0)), "at least one entry"),
        (lambda: ranking_reward_loss(torch.zeros(2, 1)), "a ranking needs at least 2 answers, got 1"),
        (lambda: reward_accuracy(TWO, TWO, torch.tensor([1, 2])), r"labels must be 1 .* or 0, got \[1, 2\]"),
        (lambda: reward_accuracy(TWO, TWO, torch.tensor([1])), r"rewards and labels must have one shape"),
        (lambda: bayes_accuracy(TWO, torch.zeros(3)), "gold_1 and gold_2 must have one shape"),
        (lambda: normalize_reward_bias(TWO, torch.zeros(0)), "needs at least one demonstration"),
        (lambda: kl_shaped_rewards(TWO, LOGPS, LOGPS, ALL, -0.1), "beta must be >= 0, got -0.1"),
        (lambda: kl_shaped_rewards(TWO, LOGPS, LOGPS, ~ALL, 0.1), r"an empty mask in rows \[0, 1\]"),
        (lambda: kl_shaped_rewards(TWO, LOGPS, LOGPS[:, :2], ALL, 0.1), "must fit"),
        (lambda: kl_shaped_rewards(torch.zeros(3), LOGPS, LOGPS, ALL, 0.1), "must fit"),
        (lambda: reinforce_loss(TWO, torch.zeros(3)), "logps and returns must have one shape"),
        (lambda: rlhf_objective(PAIR, PAIR, TWO, -1.0), "beta must be >= 0, got -1.0"),
        (lambda: rlhf_objective(PAIR, PAIR, TWO, math.nan), "beta must be >= 0, got nan"),
        (lambda: rlhf_objective(2 * PAIR, PAIR, TWO, 1.0), "policy_probs must sum to 1 over the last axis, got 2"),
        (lambda: rlhf_objective(PAIR, 2 * PAIR, TWO, 1.0), "reference_probs must sum to 1 over the last axis, got 2"),
        (lambda: best_of_n_policy(PAIR, TWO, 0), "n must be at least 1 answer, got 0"),
        (lambda: best_of_n_policy(2 * PAIR, TWO, 2), "reference_probs must sum to 1 over the last axis, got 2"),
        (lambda: best_of_n_kl_bound(0), "n must be at least 1 answer, got 0"),
        (lambda: goodhart_curve(PAIR, TWO, TWO, torch.zeros(1)), "beta must be > 0, got 0.0"),
        (lambda: adaptive_kl_update(0.1, 1.0, 0.0, 1, 10), "target must be > 0 nats, got 0.0"),
        (lambda: adaptive_kl_update(0.1, 1.0, 1.0, 0, 10), "n_steps and horizon must be at least 1, got 0 and 10"),
        (lambda: AdaptiveKLController(0.1, 1.0, 0), "n_steps and horizon must be at least 1, got 1 and 0"),
        (lambda: AdaptiveKLController(-0.1, 1.0, 10), "beta must be >= 0, got -0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "setting",
    ["n_comparisons=10", "beta=0", "rl_steps=1000", "samples_per_step=1", "sft_demos=1", "learning_rate=1", "seed=-1"],
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the pipeline ------------------------------------------------------------------------------------------------------


def test_demonstrations_are_good_answers_and_are_imitated(small_run):
    answers = small_run.demonstrations[:, -2:]
    scores = preference_task.word_scores()[answers].sum(dim=1) - 0.5 * (answers[:, 0] == answers[:, 1])
    assert len(answers) == 40
    assert (scores >= 1).all()
    assert small_run.sft_curve[-1] < small_run.sft_curve[0]
    assert len(small_run.sft_curve) == 1 + 3 * 2  # three passes over batches of 32 and 8
    assert not torch.equal(small_run.sft.model.norm.weight, small_run.base.model.norm.weight)


def test_demonstrations_have_a_learned_reward_of_zero_on_average(small_run):
    with torch.no_grad():
        scores = small_run.reward_models[-1](small_run.demonstrations)
    assert float(scores.mean()) == pytest.approx(small_run.bias, abs=1e-6)
    words = small_run.demonstrations[:, -2:]
    prompt = (small_run.demonstrations[:, None, :-2] == small_run.task.prefixes).all(dim=2).float().argmax(dim=1)
    table = small_run.proxy.view_as(small_run.task.gold_rewards)[prompt, words[:, 0], words[:, 1]]
    torch.testing.assert_close(table, (scores - scores.mean()).double(), atol=1e-5, rtol=0)


def test_the_reward_is_read_at_the_last_word_through_the_final_norm(made_run):
    model, ids = made_run.reward_models[0], rlhf_experiment.pair_texts(made_run.task, made_run.pairs)[0][:3]
    with torch.no_grad():
        scores = model(ids)
        table = model.backbone.model.embed_tokens.weight
        logits = model.backbone(ids)[:, -1]  # tied: the final state times the embedding
        state = torch.linalg.lstsq(table, logits.T).solution.T
    torch.testing.assert_close(scores, state @ model.head.detach(), atol=1e-4, rtol=1e-4)


def test_held_out_comparisons_do_not_teach(made_run):
    chosen, rejected = rlhf_experiment.pair_texts(made_run.task, made_run.pairs)
    held_out = torch.arange(256) >= 256 - 51

    def head_after(first, second):
        generator = torch.Generator().manual_seed(3)
        return rlhf_experiment.train_reward_model(made_run.sft, first, second, generator, steps=10)[-1].head

    def swapped(rows):
        return torch.where(rows[:, None], rejected, chosen), torch.where(rows[:, None], chosen, rejected)

    before = head_after(chosen, rejected)
    assert torch.equal(head_after(*swapped(held_out)), before)
    assert not torch.equal(head_after(*swapped(~held_out)), before)


def test_reward_records_judge_the_held_out_comparisons_alone(made_run):
    records = rlhf_experiment.reward_records(made_run, torch.arange(8))
    texts = rlhf_experiment.pair_texts(made_run.task, made_run.pairs)
    for row, model in enumerate(made_run.reward_models):
        with torch.no_grad():
            chosen, rejected = (model(part)[-51:] for part in texts)
        right = float((chosen > rejected).double().mean())
        assert float(records["reward_accuracy_curve"][row]) == pytest.approx(right)
        loss = float(torch.nn.functional.softplus(rejected - chosen).mean())
        assert float(records["reward_curve"][row]) == pytest.approx(loss, abs=1e-5)
    assert records["held_out_pairs"] == 51
    assert records["reward_steps"].tolist() == [0, 5, 10]


def test_the_climb_gains_what_it_is_paid_for_and_records_its_last_step(small_run):
    records = rlhf_experiment.rl_records(small_run, torch.arange(8))
    assert records["rl_steps"].tolist() == [0, 5, 10, 15, 20, 22]
    objective = records["rl_objective"]
    torch.testing.assert_close(objective, records["rl_proxy"] - 0.2 * records["rl_kl"])
    assert objective[-1] > objective[0]
    assert objective[-1] < records["optimal_proxy"] - 0.2 * records["optimal_kl"]


def test_a_fifth_of_the_comparisons_is_held_out():
    assert [rlhf_experiment.held_out_count(n) for n in (128, 256, 2048)] == [26, 51, 410]


def test_a_new_reward_head_is_drawn_with_the_variance_of_the_paper(made_run):
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(4))
    model = rlhf_experiment.RewardModel(made_run.sft, torch.Generator().manual_seed(4))
    torch.testing.assert_close(model.head.detach(), drawn / math.sqrt(33))


def test_a_climb_starts_at_the_imitator_and_is_recorded_every_five_steps_and_at_its_end(made_run):
    run = changed(made_run, config=Config(rl_steps=22, samples_per_step=33), rl_probs=[])
    rlhf_experiment.climb(run)
    assert len(run.rl_probs) == 1 + 4 + 1
    assert torch.equal(run.rl_probs[0], made_run.sft_probs)
    last = preference_task.answer_probs(run.policy, run.task)
    torch.testing.assert_close(run.rl_probs[-1], last)
    assert not torch.allclose(run.rl_probs[-2], last)
    assert worth(last, run.proxy) > worth(made_run.sft_probs, run.proxy)
    assert torch.equal(run.sft.model.norm.weight, tiny_lm.load("base_seed1").model.norm.weight)


def test_another_seed_meets_other_prompts(small_run):
    assert small_run.task.prompts[0] == tiny_lm.PROMPT
    assert small_run.task.prompts[1] != preference_task.make_preference_task(tiny_lm.load("base")).prompts[1]


def test_words_of_an_answer_are_read_where_they_stand(small_run):
    ids = small_run.demonstrations[:5]
    prompt = (ids[:, None, :-2] == small_run.task.prefixes).all(dim=2).float().argmax(dim=1)
    whole = small_run.rl_probs[-1][prompt, ids[:, -2] * tiny_lm.VOCAB_SIZE + ids[:, -1]]
    logps = rlhf_experiment.answer_token_logps(small_run.policy, ids)
    torch.testing.assert_close(logps.sum(dim=1).double(), whole.log(), atol=1e-4, rtol=1e-4)


# -- what the trace says of a run --------------------------------------------------------------------------------------


def test_bars_are_looked_up_in_the_policies_and_rewards_after_the_shown_prompt(made_run, made_trace):
    shown = places_of(made_trace.answer_tokens[:-1])
    for bars, table in (
        (made_trace.pretrained_probs, made_run.pretrained_probs),
        (made_trace.sft_probs, made_run.sft_probs),
        (made_trace.rl_probs[2], made_run.rl_probs[2]),
        (made_trace.final_probs, made_run.rl_probs[-1]),
        (made_trace.shown_gold, made_run.gold),
        (made_trace.shown_proxy, made_run.proxy),
    ):
        torch.testing.assert_close(bars[:-1], table[0, shown])
    texts = torch.tensor([tiny_lm.encode(f"{tiny_lm.PROMPT} {answer}") for answer in made_trace.answer_tokens[:-1]])
    with torch.no_grad():
        ladder = torch.stack([model(texts) for model in made_run.reward_models]).double()
    torch.testing.assert_close(made_trace.ladder_rewards, ladder)
    assert made_trace.prompt_tokens == tiny_lm.tokens(made_run.task.prefixes[0])
    assert made_trace.pretrained_gold == pytest.approx(worth(made_run.pretrained_probs, made_run.gold))
    assert made_trace.sft_gold == pytest.approx(worth(made_run.sft_probs, made_run.gold))


def test_the_frontier_is_the_imitator_tilted_by_the_learned_reward(made_run, made_trace):
    shown, imitator = places_of(made_trace.answer_tokens[:-1]), made_run.sft_probs
    assert made_trace.goodhart_betas[[0, 20, 60]].tolist() == pytest.approx([10, 1, 0.01])
    for row in (0, 20, 60):
        tilted = torch.softmax(imitator.log() + made_run.proxy / made_trace.goodhart_betas[row], dim=1)
        assert float(made_trace.goodhart_kl[row]) == pytest.approx(divergence(tilted, imitator))
        assert float(made_trace.goodhart_proxy[row]) == pytest.approx(worth(tilted, made_run.proxy))
        assert float(made_trace.goodhart_gold[row]) == pytest.approx(worth(tilted, made_run.gold))
        torch.testing.assert_close(made_trace.goodhart_probs[row, :-1], tilted[0, shown])
    assert places_of([" ".join(made_trace.over_optimized_answer)]) == tilted[0].argmax()
    best = torch.softmax(imitator.log() + made_run.proxy / made_run.config.beta, dim=1)
    assert made_trace.optimal_kl == pytest.approx(divergence(best, imitator))
    assert made_trace.optimal_proxy == pytest.approx(worth(best, made_run.proxy))
    assert made_trace.optimal_gold == pytest.approx(worth(best, made_run.gold))


def test_the_climb_and_the_best_of_n_are_sums_over_all_answers(made_run, made_trace):
    last, imitator, row = made_run.rl_probs[-1], made_run.sft_probs, 2
    assert float(made_trace.rl_kl[-1]) == pytest.approx(divergence(last, imitator))
    assert float(made_trace.rl_proxy[-1]) == pytest.approx(worth(last, made_run.proxy))
    assert float(made_trace.rl_gold[-1]) == pytest.approx(worth(last, made_run.gold))
    n = int(made_trace.best_of_n.ns[row])
    best = best_of_n_policy(imitator, made_run.proxy, n)
    assert float(made_trace.best_of_n.kl[row]) == pytest.approx(divergence(best, imitator))
    assert float(made_trace.best_of_n.proxy[row]) == pytest.approx(worth(best, made_run.proxy))
    assert float(made_trace.best_of_n.gold[row]) == pytest.approx(worth(best, made_run.gold))
    assert float(made_trace.best_of_n.kl_bound[row]) == pytest.approx(math.log(4) - 3 / 4)


def test_scattered_answers_are_those_of_the_imitator_or_of_all_alike(made_run, made_trace):
    pairs = set(zip(made_run.gold.flatten().tolist(), made_run.proxy.flatten().tolist(), strict=True))
    for gold, proxy, policy in (
        (made_trace.gold_rewards, made_trace.proxy_rewards, made_run.sft_probs),
        (made_trace.far_gold_rewards, made_trace.far_proxy_rewards, torch.full_like(made_run.gold, 112.0**-2)),
    ):
        assert pairs.issuperset(zip(gold.tolist(), proxy.tolist(), strict=True))
        assert float(gold.mean()) == pytest.approx(worth(policy, made_run.gold), abs=4 * float(gold.std()) / 200**0.5)
    level = float((made_trace.proxy_rewards - made_trace.gold_rewards).mean())
    assert made_trace.diagonal_level == pytest.approx(level)
    above = made_trace.far_proxy_rewards - made_trace.far_gold_rewards - level
    assert made_trace.far_overrated.tolist() == (above > 1).tolist()
    by_hand = torch.corrcoef(torch.stack([made_trace.far_gold_rewards, made_trace.far_proxy_rewards]))[0, 1]
    assert made_trace.far_correlation == pytest.approx(float(by_hand))


def test_comparisons_of_shown_answers_are_those_that_the_labeler_made(made_run, made_trace):
    shown, pairs = places_of(made_trace.answer_tokens[:-1]).tolist(), made_run.pairs
    won, lost = (words[:, 0] * tiny_lm.VOCAB_SIZE + words[:, 1] for words in (pairs.chosen, pairs.rejected))
    met = [
        (shown.index(winner), shown.index(loser))
        for prompt, winner, loser in zip(pairs.prompt.tolist(), won.tolist(), lost.tolist(), strict=True)
        if prompt == 0 and winner in shown and loser in shown
    ][:12]
    seen = made_trace.comparisons
    winners = torch.where(seen.winner == 1, seen.place_1, seen.place_2).tolist()
    losers = torch.where(seen.winner == 1, seen.place_2, seen.place_1).tolist()
    assert list(zip(winners, losers, strict=True)) == met != []
    gap = made_trace.shown_gold[seen.place_1] - made_trace.shown_gold[seen.place_2]
    torch.testing.assert_close(seen.gold_gap, gap)
    torch.testing.assert_close(seen.probability, torch.sigmoid(gap))
    assert seen.surprising.tolist() == (torch.where(seen.winner == 1, gap, -gap) < 0).tolist()


def test_the_ceiling_is_that_of_the_held_out_comparisons(made_run, made_trace):
    pairs, gold = made_run.pairs, made_run.gold.view_as(made_run.task.gold_rewards)
    one, other = (gold[pairs.prompt, words[:, 0], words[:, 1]][-51:] for words in (pairs.chosen, pairs.rejected))
    wins = 1 / (1 + (other - one).exp())
    assert made_trace.bayes_accuracy == pytest.approx(float(torch.maximum(wins, 1 - wins).mean()))


def test_stages_are_judged_on_tales_and_answer_with_the_same_luck(made_run, made_trace):
    tales = tiny_lm.held_out_kind("tale")
    for stage, model in (("pretrained", made_run.base), ("sft", made_run.sft), ("rl", made_run.policy)):
        assert made_trace.tale_loss[stage] == pytest.approx(tiny_lm.evaluate(model, tales))
        luck = torch.Generator().manual_seed(made_run.config.seed)
        answers = preference_task.sample_answers(model, made_run.task.prefixes[:1], 6, luck)[0]
        assert made_trace.samples[stage] == tuple(" ".join(tiny_lm.tokens(answer)) for answer in answers)


def test_the_likeliest_answers_are_shown_with_a_bad_one_and_the_most_overrated_one(made_run):
    table = made_run.pretrained_probs[0].tolist()
    likely = sorted(range(len(table)), key=lambda place: -table[place])
    gold = torch.zeros_like(made_run.gold)
    gold[0, likely[63]], gold[0, likely[64]] = -1, -2  # the second one is too rare to be shown
    gold[1, likely[20]] = -3  # after another prompt
    shown = rlhf_experiment.shown_answers(changed(made_run, gold=gold), likely[90])
    assert shown.tolist() == [*likely[:6], likely[63], likely[90]]
    assert rlhf_experiment.shown_answers(changed(made_run, gold=gold), likely[2]).tolist() == [*likely[:7], likely[63]]


def test_a_reward_that_is_the_truth_never_lowers_it(made_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf_experiment, "train", lambda config: changed(made_run, proxy=made_run.gold / 100))
        trace = rlhf.trace(made_run.config)
    assert (trace.goodhart_gold.diff() > 0).all()
    assert trace.kl_peak is None


# -- the run -----------------------------------------------------------------------------------------------------------


def test_bars_are_whole_distributions_at_every_stage(either_trace):
    bars = (
        either_trace.pretrained_probs,
        either_trace.sft_probs,
        either_trace.final_probs,
        either_trace.rl_probs,
        either_trace.goodhart_probs,
    )
    for probs in bars:
        assert (probs >= -1e-12).all()
        torch.testing.assert_close(probs.sum(dim=-1), torch.ones(probs.shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(either_trace.rl_probs[0], either_trace.sft_probs)
    torch.testing.assert_close(either_trace.rl_probs[-1], either_trace.final_probs)
    assert (either_trace.pretrained_probs[:-1].diff() <= 0).all()
    assert len(either_trace.answer_tokens) == 9
    assert either_trace.answer_tokens[-1] == "all others"
    assert torch.isnan(either_trace.shown_gold[-1])
    assert torch.isnan(either_trace.shown_proxy[-1])


def test_true_rewards_of_the_shown_answers_follow_the_table_of_words(either_trace):
    scores = dict(zip(tiny_lm.tokens(range(tiny_lm.VOCAB_SIZE)), preference_task.word_scores().tolist(), strict=True))
    for answer, gold in zip(either_trace.answer_tokens[:-1], either_trace.shown_gold[:-1].tolist(), strict=True):
        first, second = answer.split()
        assert gold == scores[first] + scores[second] - 0.5 * (first == second)


def test_every_policy_lies_below_the_tangents_of_the_frontier(either_trace):
    # at the best policy of each beta, proxy - beta·KL is as high as it can be
    ceilings = either_trace.goodhart_proxy - either_trace.goodhart_betas * either_trace.goodhart_kl
    for kls, proxies in (
        (either_trace.rl_kl, either_trace.rl_proxy),
        (either_trace.best_of_n.kl, either_trace.best_of_n.proxy),
    ):
        values = proxies - either_trace.goodhart_betas[:, None] * kls
        assert (values <= ceilings[:, None] + 1e-9).all()
        assert values[:, 0].max() < values[:, -1].max()  # both leave the imitator for something better


def test_along_the_frontier_the_proxy_rises_and_the_truth_does_not_follow(trace):
    assert (trace.goodhart_betas.diff() < 0).all()
    assert (trace.goodhart_kl.diff() >= -1e-12).all()
    assert (trace.goodhart_proxy.diff() >= -1e-12).all()
    peak = int(trace.goodhart_gold.argmax())
    assert 0 < peak < len(trace.goodhart_gold) - 1
    assert trace.kl_peak == float(trace.goodhart_kl[peak])
    assert trace.goodhart_gold[-1] < trace.sft_gold < trace.goodhart_gold[peak]
    assert int(trace.goodhart_probs[-1, :-1].argmax()) == trace.over_optimized_place
    assert trace.answer_tokens[trace.over_optimized_place].split() == list(trace.over_optimized_answer)
    assert float(trace.shown_proxy[trace.over_optimized_place]) == float(trace.shown_proxy[:-1].max())
    assert float(trace.shown_gold[trace.over_optimized_place]) < float(trace.shown_gold[:-1].max())


def test_sampling_misses_the_answers_that_only_the_exact_optimum_finds(trace):
    assert trace.rl_gold[-1] > trace.sft_gold > trace.pretrained_gold
    assert trace.rl_kl[-1] < trace.optimal_kl / 3
    assert trace.rl_gold[-1] > trace.optimal_gold + 1
    assert trace.optimal_proxy > trace.rl_proxy[-1]
    assert (trace.best_of_n.gold.diff() > 0).all()
    assert (trace.best_of_n.kl <= trace.best_of_n.kl_bound + 1e-12).all()


def test_all_curves_start_at_the_imitator(either_trace):
    assert float(either_trace.rl_kl[0]) == pytest.approx(0, abs=1e-12)
    assert float(either_trace.best_of_n.kl[0]) == pytest.approx(0, abs=1e-12)
    assert float(either_trace.rl_gold[0]) == pytest.approx(either_trace.sft_gold)
    assert float(either_trace.best_of_n.gold[0]) == pytest.approx(either_trace.sft_gold)
    assert float(either_trace.best_of_n.proxy[0]) == pytest.approx(float(either_trace.rl_proxy[0]))
    assert either_trace.best_of_n.ns.tolist() == [1, 2, 4, 8, 16]
    torch.testing.assert_close(
        either_trace.rl_objective, either_trace.rl_proxy - either_trace.config.beta * either_trace.rl_kl
    )


def test_the_toll_of_the_episode_is_paid_word_by_word_and_the_score_at_the_end(either_trace):
    tolls = -either_trace.config.beta * either_trace.token_kl
    assert float(either_trace.token_rewards[0]) == pytest.approx(float(tolls[0]))
    assert float(either_trace.token_rewards[1]) == pytest.approx(float(tolls[1]) + either_trace.episode_score)
    assert len(either_trace.episode_tokens) == 2


def test_the_labeler_follows_bradley_and_terry(trace):
    shown = trace.comparisons
    gap = trace.shown_gold[shown.place_1] - trace.shown_gold[shown.place_2]
    torch.testing.assert_close(shown.gold_gap, gap)
    torch.testing.assert_close(shown.probability, torch.sigmoid(gap))
    winner_gap = torch.where(shown.winner == 1, gap, -gap)
    assert shown.surprising.tolist() == (winner_gap < 0).tolist()
    assert (shown.place_1 < shown.place_2).all()
    assert [trace.answer_tokens[place] for place in shown.place_2.tolist()] == list(shown.answer_2)
    assert [trace.answer_tokens[place] for place in shown.place_1.tolist()] == list(shown.answer_1)
    assert len(shown.winner) == 12
    assert 0 < int(shown.surprising.sum()) < 6


def test_the_reward_model_comes_near_the_ceiling_of_noisy_labels(trace):
    standard_error = 0.5 / math.sqrt(trace.held_out_pairs)
    assert trace.held_out_pairs == round(0.2 * trace.config.n_comparisons)
    assert float(trace.reward_accuracy_curve[-1]) > trace.bayes_accuracy - 2 * standard_error
    assert float(trace.reward_accuracy_curve[-1]) < trace.bayes_accuracy + 2 * standard_error
    assert float(trace.reward_accuracy_curve[-1]) > 0.5 + 4 * standard_error
    assert float(trace.reward_curve[0]) == pytest.approx(math.log(2), abs=0.05)  # untrained: no opinion yet
    assert trace.reward_curve[-1] < trace.reward_curve[0]
    torch.testing.assert_close(trace.ladder_rewards[-1] - trace.reward_bias, trace.shown_proxy[:-1], atol=1e-5, rtol=0)
    assert trace.reward_steps.tolist() == list(range(0, 126, 5))


def test_the_proxy_is_right_where_it_was_trained_and_blind_elsewhere(trace):
    for gold, proxy, correlation, marked in (
        (trace.gold_rewards, trace.proxy_rewards, trace.reward_correlation, trace.overrated),
        (trace.far_gold_rewards, trace.far_proxy_rewards, trace.far_correlation, trace.far_overrated),
    ):
        centered = [values - values.mean() for values in (gold, proxy)]
        by_hand = (centered[0] * centered[1]).sum() / (centered[0].norm() * centered[1].norm())
        assert correlation == pytest.approx(float(by_hand))
        assert marked.tolist() == (proxy - gold - trace.diagonal_level > 1).tolist()
    assert float((trace.proxy_rewards - trace.gold_rewards).mean()) == pytest.approx(trace.diagonal_level)
    assert trace.reward_correlation > 0.8 > 0.3 > trace.far_correlation
    assert trace.far_overrated.sum() > 5 * trace.overrated.sum()


def test_each_stage_costs_some_of_the_stories(trace):
    assert list(trace.tale_loss) == ["pretrained", "sft", "rl"]
    assert trace.tale_loss["pretrained"] < trace.tale_loss["sft"] < trace.tale_loss["rl"] < 0.7
    assert {len(answers) for answers in trace.samples.values()} == {6}
    assert len(set(trace.samples["rl"])) <= len(set(trace.samples["pretrained"]))
