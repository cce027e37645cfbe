import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math.distributions import entropy, kl_divergence, total_variation
from internals_math.gpt_pretraining import (
    bits_per_token,
    next_token_loss,
    perplexity,
    sample,
    sequence_log_prob,
    shift_for_next_token,
    token_surprisal,
    training_flops,
)

probabilities = st.lists(st.floats(0.01, 10), min_size=2, max_size=8).map(
    lambda weights: torch.tensor(weights, dtype=torch.float64) / sum(weights)
)


def logits_and_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    return logits, labels


@given(st.integers(0, 30), st.booleans())
def test_the_loss_is_torch_cross_entropy_of_the_shifted_labels(seed, ignore):
    logits, labels = logits_and_labels(seed)
    if ignore:
        labels[0, 3:] = -100
    oracle = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(next_token_loss(logits, labels), oracle)


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
    surprise = token_surprisal(torch.zeros(4, 8), torch.tensor([0, 1, 2, 7]))
    assert perplexity(float(surprise.mean())) == pytest.approx(8, rel=1e-5)
    assert bits_per_token(float(surprise.mean())) == pytest.approx(3, rel=1e-5)


def test_samples_follow_the_probabilities_and_cold_samples_the_maximum():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(sample(logits, 1.0, generator), minlength=3) / 20_000
    # five standard errors of a share of 0.7 in 20,000 draws
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.017, rtol=0)
    assert (sample(logits, 0.01, generator) == 0).all()


def test_six_flops_for_each_weight_and_token():
    assert training_flops(175_000_000_000, 300_000_000_000) == 315 * 10**21  # GPT-3: 3.15e23, arXiv 2005.14165, table D.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample(torch.zeros(3), 0.0), "temperature must be > 0 .*got 0.0"),
        (lambda: next_token_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.long)), "at least 2 positions"),
        (lambda: next_token_loss(torch.zeros(1, 3, 3), torch.full((1, 3), -100)), "at least one label"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(probabilities)
def test_entropy_is_that_of_torch(p):
    torch.testing.assert_close(entropy(p), torch.distributions.Categorical(probs=p).entropy())


@given(probabilities, st.randoms(use_true_random=False))
def test_kl_is_that_of_torch_and_bounds_the_total_variation(p, rng):
    q = p[torch.tensor(rng.sample(range(len(p)), len(p)))]
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=p), torch.distributions.Categorical(probs=q)
    )
    torch.testing.assert_close(kl_divergence(p, q), oracle)
    assert kl_divergence(p, q) >= -1e-12
    assert 2 * total_variation(p, q) ** 2 <= kl_divergence(p, q) + 1e-12  # Pinsker


def test_zero_probabilities_follow_their_conventions():
    sure, fair = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert entropy(sure) == 0
    assert float(kl_divergence(sure, fair)) == pytest.approx(math.log(2))
    assert kl_divergence(fair, sure) == math.inf
    assert total_variation(sure, sure.flip(0)) == 1
