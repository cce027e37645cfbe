import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.loss.loss_utils import ForCausalLMLoss

from internals_math import tiny_lm
from internals_math.gpt_pretraining import (
    bits_per_token,
    next_token_loss,
    perplexity,
    sample,
    sample_token,
    sequence_log_prob,
    shift_for_next_token,
    target_surprisal,
    token_surprisal,
    training_flops,
)


def logits_and_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    return logits, labels


# -- the loss ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.booleans(), st.sampled_from(["mean", "sum", "none"]))
def test_the_loss_is_torch_cross_entropy_of_the_shifted_labels(seed, ignore, reduction):
    logits, labels = logits_and_labels(seed)
    if ignore:
        labels[0, 3:] = -100
    flat = logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1)
    oracle = torch.nn.functional.cross_entropy(*flat, reduction=reduction)
    ours = next_token_loss(logits, labels, reduction=reduction)
    torch.testing.assert_close(ours.flatten() if reduction == "none" else ours, oracle)


def test_the_loss_is_that_of_hugging_face_which_shifts_by_itself_too():
    logits, labels = logits_and_labels()
    labels[1, :4] = -100
    oracle = ForCausalLMLoss(logits.float(), labels, vocab_size=11)
    torch.testing.assert_close(next_token_loss(logits.float(), labels), oracle)


def test_labels_may_differ_from_the_text_and_be_ignored_by_another_number():
    logits, ids = logits_and_labels()
    labels = ids.clone()
    labels[:, :3] = 7_000
    masked = next_token_loss(logits, ids, labels=labels, ignore_index=7_000)
    torch.testing.assert_close(masked, token_surprisal(logits, ids)[:, 2:].mean())


def test_the_sum_is_minus_the_log_probability_of_the_sequences_and_the_mean_times_the_count():
    logits, ids = logits_and_labels()
    total = next_token_loss(logits, ids, reduction="sum")
    torch.testing.assert_close(total, -sequence_log_prob(logits, ids).sum())
    torch.testing.assert_close(total, next_token_loss(logits, ids) * 3 * 5)


@given(st.integers(0, 20))
def test_a_constant_added_to_the_logits_of_a_position_changes_nothing(seed):
    logits, ids = logits_and_labels(seed)
    shifted = logits + torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(next_token_loss(shifted, ids), next_token_loss(logits, ids))


@pytest.mark.parametrize("vocab_size", [2, 11, 50_257])
def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(vocab_size):
    ids = torch.randint(0, vocab_size, (2, 5), generator=torch.Generator().manual_seed(0))
    loss = next_token_loss(torch.zeros(2, 5, vocab_size, dtype=torch.float64), ids)
    assert float(loss) == pytest.approx(math.log(vocab_size), abs=1e-12)


def test_reordering_the_batch_reorders_the_losses_only():
    logits, ids = logits_and_labels()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        next_token_loss(logits[order], ids[order], reduction="none"),
        next_token_loss(logits, ids, reduction="none")[order],
    )


def test_every_position_is_judged_by_the_token_after_it():
    logits, labels = logits_and_labels()
    kept, targets = shift_for_next_token(logits, labels)
    torch.testing.assert_close(kept[:, 2], logits[:, 2])
    assert torch.equal(targets[:, 2], labels[:, 3])


def test_a_sequence_is_as_likely_as_the_product_of_its_tokens():
    logits, labels = logits_and_labels()
    probs = torch.softmax(logits, dim=-1)
    expected = [math.prod(float(probs[row, t, labels[row, t + 1]]) for t in range(5)) for row in range(3)]
    torch.testing.assert_close(sequence_log_prob(logits, labels).exp(), torch.tensor(expected, dtype=torch.float64))


def test_equally_likely_words_have_a_perplexity_of_their_number():
    surprise = target_surprisal(torch.zeros(4, 8), torch.tensor([0, 1, 2, 7]))
    assert perplexity(float(surprise.mean())) == pytest.approx(8, rel=1e-5)
    assert bits_per_token(float(surprise.mean())) == pytest.approx(3, rel=1e-5)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_samples_follow_the_probabilities_and_cold_samples_the_maximum():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(sample_token(logits, 1.0, generator), minlength=3) / 20_000
    # five standard errors of a share of 0.7 in 20,000 draws
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.017, rtol=0)
    assert (sample_token(logits, 0.01, generator) == 0).all()


def test_every_sampled_token_is_fed_back_as_a_question():
    def counts_up(ids):  # always sure of the successor of the last token
        return torch.nn.functional.one_hot((ids + 1) % 10, 10) * 1e4

    written = sample(counts_up, torch.tensor([3, 4]), 7, generator=torch.Generator().manual_seed(0))
    assert written.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert sample(counts_up, torch.tensor([3]), 0).tolist() == [3]


def test_the_same_seed_writes_the_same_story_with_the_tiny_lm():
    def write():
        prompt = torch.tensor(tiny_lm.encode(tiny_lm.PROMPT))
        return sample(tiny_lm.load("base"), prompt, 12, generator=torch.Generator().manual_seed(4))

    assert torch.equal(write(), write())
    assert len(write()) == 8 + 12


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_six_flops_for_each_weight_and_token():
    assert (
        training_flops(175_000_000_000, 300_000_000_000) == 315 * 10**21
    )  # GPT-3: 3.15e23, arXiv 2005.14165, table D.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_token(torch.zeros(3), 0.0), "temperature must be > 0 .*got 0.0"),
        (lambda: sample_token(torch.zeros(3), math.nan), "temperature must be > 0 .*got nan"),
        (lambda: sample(lambda ids: ids, torch.tensor([], dtype=torch.long), 1), "needs a prompt"),
        (lambda: sample(lambda ids: ids, torch.tensor([1]), -1), "max_new_tokens >= 0, got 1 tokens and .* -1"),
        (
            lambda: next_token_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.long)),
            "at least 2 positions, got 1",
        ),
        (
            lambda: next_token_loss(torch.zeros(1, 3, 3), torch.full((1, 3), -100)),
            "at least one label that is not -100",
        ),
        (
            lambda: next_token_loss(torch.zeros(1, 2, 3), torch.tensor([[0, 3]])),
            r"labels must be in 0\.\.2 or -100, got \[3\]",
        ),
        (lambda: next_token_loss(torch.zeros(1, 2, 3), torch.tensor([[0, -1]])), r"got \[-1\]"),
        (lambda: perplexity(-0.1), "a loss must be at least 0 nats per token, got -0.1"),
        (lambda: training_flops(-1, 5), "must be at least 0, got -1 and 5"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
