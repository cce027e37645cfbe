import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import tiny_lm
from internals_math.distributions import kl_divergence
from internals_math.preference_task import (
    SAMPLES,
    after_words,
    alone,
    answer_at,
    answer_log_probs,
    answer_probs,
    answer_texts,
    answer_token_logps,
    exact_expected_reward,
    exact_kl,
    make_preference_task,
    optimal_policy,
    place_of,
    sample_answers,
    sample_preferences,
    words,
)
from tests.oracles import randn

betas = st.floats(0.05, 5)


@pytest.fixture(scope="module")
def task():
    return make_preference_task(tiny_lm.load("base"))


@pytest.fixture(scope="module")
def log_probs(task):
    with torch.no_grad():
        return answer_log_probs(tiny_lm.load("base"), task).double()


def some_probs(*shape, seed=0):
    return torch.softmax(2 * randn(*shape, seed=seed), dim=-1)


def test_the_first_prompt_is_that_of_the_series_and_every_character_comes_once(task):
    assert task.prompts[0] == tiny_lm.PROMPT
    characters = [prompt.split()[4] for prompt in make_preference_task(tiny_lm.load("base"), n_prompts=12).prompts]
    assert len(set(characters)) == 12
    assert all(prompt.startswith("one day the ") and prompt.endswith(" found a") for prompt in task.prompts)
    assert make_preference_task(tiny_lm.load("base"), seed=1).prompts[1:] != task.prompts[1:]


def test_the_reader_likes_treasure_and_no_repetition(task):
    def reward(first, second):
        return float(task.gold_rewards[0, tiny_lm.encode(first, bos=False)[0], tiny_lm.encode(second, bos=False)[0]])

    assert [reward("golden", "key"), reward("red", "key"), reward("tiny", "key"), reward("tiny", "drum")] == [
        2,
        1,
        0,
        -2,
    ]
    assert [reward("lamp", "lamp"), reward("key", "key"), reward("drum", "drum")] == [-0.5, 1.5, -2.5]


def test_probabilities_of_all_answers_sum_to_one_and_equal_a_row_read_alone(task, log_probs):
    torch.testing.assert_close(log_probs.exp().sum(dim=(1, 2)), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
    ids = torch.tensor([tiny_lm.encode(f"{task.prompts[2]} golden key")])
    with torch.no_grad():
        rows = tiny_lm.load("base")(ids).log_softmax(dim=-1)[0]
    one_by_one = rows[-3, ids[0, -2]] + rows[-2, ids[0, -1]]
    assert float(log_probs[2, ids[0, -2], ids[0, -1]]) == pytest.approx(float(one_by_one), abs=1e-5)


def test_answer_log_probs_carry_a_gradient(task):
    model = tiny_lm.copy_of(tiny_lm.load("base"))
    small = make_preference_task(model, n_prompts=1)
    answer_log_probs(model, small)[0, 5, 6].backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_sampled_answers_follow_the_enumerated_probabilities(task, log_probs):
    drawn = sample_answers(tiny_lm.load("base"), task.prefixes, 600, torch.Generator().manual_seed(0))
    assert drawn.shape == (6, 600, 2)
    counts = torch.zeros(6, tiny_lm.VOCAB_SIZE, tiny_lm.VOCAB_SIZE, dtype=torch.float64)
    for prompt in range(6):
        counts[prompt].index_put_(tuple(drawn[prompt].T), torch.ones(600, dtype=torch.float64), accumulate=True)
    probs = log_probs.exp()
    spread = (probs * (1 - probs) / 600).sqrt()
    likely = probs > 0.01
    assert (((counts / 600 - probs) / spread)[likely].abs() < 5).all()


def test_pairs_differ_and_the_better_answer_wins_as_often_as_bradley_and_terry_say(task, log_probs):
    pairs = sample_preferences(task, log_probs, 6000, torch.Generator().manual_seed(0))
    assert (pairs.chosen != pairs.rejected).any(dim=1).all()
    chosen, rejected = (task.gold_rewards[pairs.prompt, *words.T] for words in (pairs.chosen, pairs.rejected))
    for gap in (0.0, 1.0, 2.0):
        rows = (chosen - rejected).abs() == gap
        wins = float((chosen > rejected)[rows].double().mean()) if gap else 0.5
        assert wins == pytest.approx(1 / (1 + math.exp(-gap)), abs=4 * 0.5 / math.sqrt(int(rows.sum())))
    assert torch.bincount(pairs.prompt, minlength=6).min() > 800
    again = sample_preferences(task, log_probs, 6000, torch.Generator().manual_seed(0))
    assert torch.equal(again.chosen, pairs.chosen)


def test_texts_of_answers_are_prompts_with_two_words_more(task):
    ids = answer_texts(task, torch.tensor([0, 3]), torch.tensor([[7, 8], [9, 10]]))
    assert ids.shape == (2, task.prefixes.shape[1] + 2)
    assert torch.equal(ids[1, :-2], task.prefixes[3])
    assert ids[1, -2:].tolist() == [9, 10]


def test_an_answer_has_the_place_that_its_two_words_count_to():
    answers = torch.tensor([[[0, 0], [0, 5]], [[2, 1], [111, 111]]])
    assert place_of(answers).tolist() == [[0, 5], [2 * 112 + 1, 112 * 112 - 1]]
    assert torch.equal(answer_at(place_of(answers)), answers)
    assert words(2 * 112 + 1) == " ".join(tiny_lm.tokens([2, 1]))


def test_all_others_have_no_value_of_their_own():
    shown = alone(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0]))
    assert shown[:2].tolist() == [4, 1]
    assert len(shown) == 3
    assert shown[2].isnan()


def test_the_words_of_an_answer_have_the_log_probs_that_multiply_to_that_of_the_answer(task, log_probs):
    model, prompt, answers = tiny_lm.load("base"), torch.tensor([0, 3]), torch.tensor([[7, 8], [9, 10]])
    with torch.no_grad():
        found = answer_token_logps(model, answer_texts(task, prompt, answers))
        first = model(task.prefixes)[:, -1].log_softmax(dim=-1)
    torch.testing.assert_close(found[:, 0], first[prompt, answers[:, 0]])
    torch.testing.assert_close(found.sum(dim=1).double(), log_probs[prompt, answers[:, 0], answers[:, 1]])
    probs = answer_probs(model, task)
    torch.testing.assert_close(probs[prompt, place_of(answers)], found.sum(dim=1).double().exp(), rtol=1e-5, atol=0)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)


def test_models_answer_the_first_prompt_with_the_same_luck(task):
    model = tiny_lm.load("base")
    samples, tale_loss = after_words(task, {"one": model, "other": tiny_lm.load("base_seed1"), "again": model}, seed=4)
    drawn = sample_answers(model, task.prefixes[:1], SAMPLES, torch.Generator().manual_seed(4))
    assert samples["one"] == tuple(" ".join(tiny_lm.tokens(answer)) for answer in drawn[0].tolist())
    assert samples["again"] == samples["one"]
    assert tale_loss["one"] == tale_loss["again"] == tiny_lm.evaluate(model, tiny_lm.held_out_kind("tale"))
    assert tale_loss["other"] != tale_loss["one"]


def test_exact_sums_are_those_of_a_loop(task, log_probs):
    p, q = log_probs.exp(), some_probs(6, tiny_lm.VOCAB_SIZE**2).view_as(log_probs)
    assert float(exact_kl(p, q)[1]) == pytest.approx(float(kl_divergence(p[1].reshape(-1), q[1].reshape(-1))))
    mean = sum(float((p[1, first] * task.gold_rewards[1, first]).sum()) for first in range(tiny_lm.VOCAB_SIZE))
    assert float(exact_expected_reward(p, task.gold_rewards.double())[1]) == pytest.approx(mean, rel=1e-5)


@given(betas, st.integers(0, 50))
def test_the_optimal_policy_reaches_beta_log_z_and_no_other_policy_does(beta, seed):
    reference, rewards = some_probs(3, 7, seed=seed), randn(3, 7, seed=seed + 1)
    policy, log_partition = optimal_policy(reference, rewards, beta)

    def value(p):
        return (p * rewards).sum(dim=-1) - beta * kl_divergence(p, reference)

    torch.testing.assert_close(policy.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(value(policy), beta * log_partition)
    for other in (reference, some_probs(3, 7, seed=seed + 2), 0.9 * policy + 0.1 * reference):
        assert (value(other) <= value(policy) + 1e-12).all()


@given(betas, st.floats(-5, 5))
def test_a_constant_of_the_prompt_changes_no_policy(beta, shift):
    reference, rewards = some_probs(2, 6), randn(2, 6, seed=4)
    torch.testing.assert_close(
        optimal_policy(reference, rewards, beta)[0], optimal_policy(reference, rewards + shift, beta)[0]
    )


def test_a_large_beta_keeps_the_reference_and_a_small_one_takes_the_best_answer():
    reference = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 2.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(optimal_policy(reference, rewards, 1e9)[0], reference)
    assert optimal_policy(reference, rewards, 1e-3)[0].tolist() == pytest.approx([0, 0, 1, 0])


@pytest.mark.parametrize("n_prompts", [0, 13])
def test_a_number_of_prompts_that_there_are_not_is_refused(n_prompts):
    with pytest.raises(ValueError, match=rf"n_prompts must be in 1..12 \(one for each character\), got {n_prompts}"):
        make_preference_task(tiny_lm.load("base"), n_prompts=n_prompts)


def test_a_model_that_is_sure_of_its_answer_is_refused():
    sure = tiny_lm.copy_of(tiny_lm.load("base")).requires_grad_(False)
    sure.model.norm.weight *= 30
    with pytest.raises(ValueError, match=r"at least 2 bits, good and bad ones each with a probability of 5%; got \d"):
        make_preference_task(sure)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta must be > 0, got {beta}"):
        optimal_policy(torch.tensor([0.5, 0.5]), torch.zeros(2), beta)


def test_probabilities_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"reference_probs must sum to 1 over the last axis, got 0.9"):
        optimal_policy(torch.tensor([[0.5, 0.5], [0.5, 0.4]]), torch.zeros(2, 2), 1.0)


@pytest.mark.parametrize("count", [0, -3])
def test_no_answers_and_no_pairs_are_refused(task, log_probs, count):
    with pytest.raises(ValueError, match=f"n must be at least 1 answer, got {count}"):
        sample_answers(tiny_lm.load("base"), task.prefixes, count, torch.Generator())
    with pytest.raises(ValueError, match=f"n_pairs must be at least 1, got {count}"):
        sample_preferences(task, log_probs, count, torch.Generator())
