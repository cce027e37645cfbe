import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from internals_math.distributions import entropy, kl_divergence, pooled, total_variation


@st.composite
def pairs_of_distributions(draw, zeros=False):
    """Two distributions over the same 2 to 8 outcomes."""
    size = draw(st.integers(2, 8))
    weights = st.lists(st.floats(0.01, 10) | (st.just(0.0) if zeros else st.nothing()), min_size=size, max_size=size)
    pair = [torch.tensor(draw(weights.filter(any)), dtype=torch.float64) for _ in range(2)]
    return [weights / weights.sum() for weights in pair]


@given(pairs_of_distributions())
def test_entropy_and_kl_are_those_of_torch(pair):
    p, q = pair
    torch.testing.assert_close(entropy(p), Categorical(probs=p).entropy())
    torch.testing.assert_close(kl_divergence(p, q), torch_kl(Categorical(probs=p), Categorical(probs=q)))


@given(pairs_of_distributions(zeros=True))
def test_impossible_outcomes_count_as_in_scipy(pair):
    p, q = pair
    assert float(entropy(p)) == pytest.approx(scipy.stats.entropy(p.numpy()), abs=1e-12)
    assert float(kl_divergence(p, q)) == pytest.approx(scipy.stats.entropy(p.numpy(), q.numpy()), abs=1e-12)


@given(pairs_of_distributions(zeros=True))
def test_entropy_lies_between_certainty_and_the_uniform_distribution(pair):
    p, _ = pair
    assert -1e-12 <= float(entropy(p)) <= math.log(len(p)) + 1e-12


@given(pairs_of_distributions(zeros=True))
def test_total_variation_is_a_distance_that_kl_bounds(pair):
    p, q = pair
    distance = float(total_variation(p, q))
    assert 0 <= distance <= 1 + 1e-12
    assert distance == float(total_variation(q, p))
    assert total_variation(p, p) == 0
    assert 2 * distance**2 <= float(kl_divergence(p, q)) + 1e-12  # Pinsker


@given(pairs_of_distributions())
def test_total_variation_is_the_largest_difference_that_an_event_can_have(pair):
    p, q = pair
    event = p > q
    assert float(total_variation(p, q)) == pytest.approx(float((p - q)[event].sum()), abs=1e-12)


def test_zero_probabilities_follow_their_conventions():
    sure, fair = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert entropy(sure) == 0
    assert float(kl_divergence(sure, fair)) == pytest.approx(math.log(2))
    assert kl_divergence(fair, sure) == math.inf
    assert total_variation(sure, sure.flip(0)) == 1


def test_rows_of_a_batch_are_measured_one_by_one_along_the_axis_that_is_named():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(entropy(p), torch.tensor([0.0, math.log(2)]))
    torch.testing.assert_close(entropy(p.T, dim=0), entropy(p))
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros(2))


def test_kl_keeps_finite_gradients_where_both_are_zero():
    p = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    kl_divergence(p, torch.tensor([0.25, 0.75, 0.0])).backward()
    assert torch.isfinite(p.grad[:2]).all()


def test_pooled_keeps_the_shown_outcomes_and_adds_up_the_rest_in_every_row():
    p = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    shown = torch.tensor([3, 1])
    expected = torch.tensor([[[0.4, 0.2, 0.4], [0.0, 0.25, 0.75], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(pooled(p, shown), expected)
    torch.testing.assert_close(pooled(p[0, 0], shown), expected[0, 0])
