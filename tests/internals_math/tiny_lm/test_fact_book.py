import math

import pytest
import torch

from internals_math.tiny_lm import ModelConfig, TinyLM, fact_book

SHAPE = ModelConfig(100, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)


def test_the_floor_is_the_entropy_of_one_answer():
    book = fact_book()
    assert book.entropy_floor == pytest.approx(0.7778, abs=5e-5)  # printed to four decimals in the design
    answer = torch.full((100,), 0.1 / 100, dtype=torch.float64)
    answer[17] += 0.9
    assert book.entropy_floor == pytest.approx(float(torch.distributions.Categorical(answer).entropy()), abs=1e-12)


def test_facts_have_different_cues_and_falling_shares():
    book = fact_book()
    assert len(torch.unique(book.cues, dim=0)) == len(book.cues) == 8000
    assert float(book.shares.sum()) == pytest.approx(1)
    assert float(book.shares[0] / book.shares[3]) == pytest.approx(4**1.5)


def test_what_is_told_follows_shares_and_reliability():
    book = fact_book(facts=50)
    told = book.sample(40_000, seed=1)
    first = (told[:, :2] == book.cues[0]).all(dim=1)
    share = float(book.shares[0])
    assert abs(float(first.float().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 40_000)
    right = float((told[first, 2] == book.answers[0]).float().mean())
    assert abs(right - 0.901) < 4 * math.sqrt(0.901 * 0.099 / int(first.sum()))
    assert torch.equal(told, book.sample(40_000, seed=1))


def test_the_exact_loss_is_a_plain_sum_over_facts_and_answers():
    book = fact_book(facts=30)
    model = TinyLM(SHAPE, seed=1)
    expected = 0.0
    with torch.no_grad():
        for cue, answer, share in zip(book.cues, book.answers, book.shares, strict=True):
            log_probs = model(cue[None])[0, -1].log_softmax(dim=-1)
            for word in range(100):
                told = 0.1 / 100 + (0.9 if word == answer else 0.0)
                expected -= float(share) * told * float(log_probs[word])
    assert book.exact_loss(model) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_is_at_ln_100():
    model = TinyLM(SHAPE, init=lambda name, shape, config, generator: torch.zeros(*shape))
    assert fact_book().exact_loss(model) == pytest.approx(math.log(100), rel=1e-6)


def test_impossible_books_are_refused():
    with pytest.raises(ValueError, match=r"facts must be in 1..10000, got 10001"):
        fact_book(facts=10_001)
    with pytest.raises(ValueError, match=r"reliability must be above 0 and at most 1, got 0\.0"):
        fact_book(reliability=0.0)
