import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math.online_softmax import merge_softmax_states, online_softmax, rescale_factor

streams = st.lists(st.floats(-50, 50), min_size=1, max_size=30).map(lambda x: torch.tensor(x, dtype=torch.float64))


def state(scores, values):
    """Maximum, sum and accumulator of a set of keys, computed from all of them at once."""
    top = scores.amax(dim=-1)
    weights = torch.exp(scores - top[..., None])
    return top, weights.sum(dim=-1), weights @ values


@given(streams)
def test_the_running_maximum_and_sum_are_those_of_each_prefix(scores):
    stream = online_softmax(scores)
    torch.testing.assert_close(stream.running_max, scores.cummax(dim=0).values, atol=0, rtol=0)
    logsumexp = torch.logcumsumexp(scores, dim=0)
    torch.testing.assert_close(stream.running_max + stream.running_sum.log(), logsumexp, atol=1e-12, rtol=1e-12)


@given(streams)
def test_one_pass_gives_the_softmax(scores):
    torch.testing.assert_close(online_softmax(scores).probs, torch.softmax(scores, dim=0), atol=1e-14, rtol=1e-12)


@given(streams)
def test_the_sum_is_at_least_one_because_the_maximum_counts_one(scores):
    assert (online_softmax(scores).running_sum >= 1).all()


def test_every_row_of_a_batch_is_a_stream_of_its_own():
    scores = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(online_softmax(scores).probs, torch.softmax(scores, dim=-1))


def test_masked_scores_before_the_first_visible_one_count_nothing():
    scores = torch.tensor([-math.inf, -math.inf, 2.0, 1.0])
    torch.testing.assert_close(online_softmax(scores).probs, torch.softmax(scores, dim=0))


@given(st.permutations(range(9)), st.integers(1, 4), st.integers(5, 8))
def test_parts_can_be_merged_in_any_order_and_grouping(order, first, second):
    generator = torch.Generator().manual_seed(1)
    scores = 5 * torch.randn(2, 9, generator=generator, dtype=torch.float64)[:, list(order)]
    values = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)[:, list(order)]
    whole = state(scores[:, None], values)
    cuts = (slice(0, first), slice(first, second), slice(second, 9))
    a, b, c = (tuple(part[:, 0] for part in state(scores[:, None, cut], values[:, cut])) for cut in cuts)
    for merged in (
        merge_softmax_states(*merge_softmax_states(*a, *b), *c),
        merge_softmax_states(*a, *merge_softmax_states(*b, *c)),
        merge_softmax_states(*merge_softmax_states(*c, *a), *b),
    ):
        for ours, expected in zip(merged, whole, strict=True):
            torch.testing.assert_close(ours, expected[:, 0], atol=1e-12, rtol=1e-12)


def test_the_empty_set_changes_nothing_and_makes_no_nan():
    empty = torch.tensor([-math.inf]), torch.zeros(1), torch.zeros(1, 2)
    some = torch.tensor([3.0]), torch.tensor([1.5]), torch.tensor([[1.0, -2.0]])
    for merged in (merge_softmax_states(*empty, *some), merge_softmax_states(*some, *empty)):
        for ours, expected in zip(merged, some, strict=True):
            torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    assert not any(part.isnan().any() for part in merge_softmax_states(*empty, *empty))


def test_the_factor_is_at_most_one_and_zero_when_there_was_nothing():
    assert float(rescale_factor(torch.tensor(1.0), torch.tensor(3.0))) == pytest.approx(math.exp(-2))
    assert float(rescale_factor(torch.tensor(-math.inf), torch.tensor(3.0))) == 0.0
    assert float(rescale_factor(torch.tensor(-math.inf), torch.tensor(-math.inf))) == 0.0


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="online_softmax needs at least one score, got none"):
        online_softmax(torch.zeros(2, 0))
