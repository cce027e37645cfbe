import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math.collectives import (
    all_gather_schedule,
    reduce_scatter_schedule,
    replay,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
)
from tests.oracles import randn

rings = st.integers(1, 8)
widths = st.integers(1, 5)
seeds = st.integers(0, 1000)
ops = st.sampled_from(["mean", "sum"])


@given(rings, widths, seeds, ops)
def test_scatter_then_gather_is_all_reduce_is_the_plain_mean_or_sum(n, width, seed, op):
    values = randn(n, n * width, seed=seed)
    plain = values.mean(dim=0) if op == "mean" else values.sum(dim=0)
    owned, first = ring_reduce_scatter(values, op)
    full, second = ring_all_gather(owned)
    reduced, whole = ring_all_reduce(values, op)
    torch.testing.assert_close(owned.flatten(), plain, atol=1e-12, rtol=0)
    assert torch.equal(full, owned.flatten().expand(n, -1))
    assert torch.equal(reduced, full)
    assert whole.num_steps == first.num_steps + second.num_steps == 2 * (n - 1)


@given(rings, widths)
def test_each_rank_sends_its_share_and_every_link_works_in_every_step(n, width):
    for schedule in (reduce_scatter_schedule(n, width), all_gather_schedule(n, width)):
        assert schedule.elements_sent(n).tolist() == [(n - 1) * width] * n
        for step in range(schedule.num_steps):
            now = schedule.step == step
            links = list(zip(schedule.src[now].tolist(), schedule.dst[now].tolist(), strict=True))
            assert links == [(r, (r + 1) % n) for r in range(n)]
        assert schedule.num_steps == n - 1


@given(rings)
def test_the_schedule_is_the_papers_with_chunks_renamed_so_that_rank_r_owns_chunk_r(n):
    scatter, gather = reduce_scatter_schedule(n, 1), all_gather_schedule(n, 1)
    for schedule, adds in ((scatter, True), (gather, False)):
        assert (schedule.adds == adds).all()
    for step, src, chunk in zip(scatter.step.tolist(), scatter.src.tolist(), scatter.chunk.tolist(), strict=True):
        papers = (src - step) % n  # there, rank r ends up with chunk r + 1
        assert chunk == (papers - 1) % n
    for step, src, chunk in zip(gather.step.tolist(), gather.src.tolist(), gather.chunk.tolist(), strict=True):
        assert chunk == (src - step) % n


@given(st.integers(2, 6), seeds)
def test_sums_are_made_in_the_order_of_the_ring_to_the_bit(n, seed):
    values = randn(n, 3 * n, seed=seed).float() * torch.tensor([1.0, 1e4, 1e8]).repeat(n)  # order matters
    owned, _ = ring_reduce_scatter(values, "sum")
    for chunk in range(n):
        here = slice(3 * chunk, 3 * chunk + 3)
        total = values[(chunk + 1) % n, here]
        for hop in range(2, n + 1):
            total = values[(chunk + hop) % n, here] + total
        assert torch.equal(owned[chunk], total)


def test_sixteen_bits_are_added_in_thirty_two_and_rounded_once():
    small = torch.tensor([[1.0], [2.0**-9], [2.0**-9], [2.0**-9]]).repeat(1, 4).bfloat16()
    assert ring_reduce_scatter(small, "sum")[0].dtype == torch.bfloat16
    assert ring_reduce_scatter(small, "sum")[0].flatten().tolist() == [1 + 2.0**-7] * 4  # one by one they would vanish


@given(st.integers(2, 6), widths, seeds)
def test_a_replay_ends_a_half_with_one_complete_chunk_and_the_whole_with_all(n, width, seed):
    values = randn(n, n * width, seed=seed)
    _, schedule = ring_all_reduce(values, "sum")
    states = replay(schedule, values)
    total = values.sum(dim=0)
    assert len(states) == 2 * (n - 1) + 1
    assert torch.equal(states[0], values)
    done = (states.view(-1, n, n, width) - total.view(n, width)).abs().amax(dim=-1) < 1e-12  # (state, rank, chunk)
    assert torch.equal(done[n - 1], torch.eye(n, dtype=torch.bool))
    assert done[-1].all()
    assert done.sum(dim=(1, 2)).tolist() == [0] * (n - 1) + [n * k for k in range(1, n + 1)]
    changed = (states.diff(dim=0) != 0).view(-1, n, n, width).any(dim=-1).sum(dim=2)
    assert (changed == 1).all()  # every rank takes in one chunk a step


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ring_reduce_scatter(torch.ones(3, 4)), r"buffer \(4 elements\) must be divisible .* ranks \(3\)"),
        (lambda: ring_all_reduce(torch.ones(3, 4)), r"buffer \(4 elements\) must be divisible .* ranks \(3\)"),
        (lambda: ring_reduce_scatter(torch.ones(2, 4), "max"), "op must be mean or sum, got 'max'"),
        (lambda: replay(reduce_scatter_schedule(3, 1), torch.ones(3, 4)), r"divisible by the number of ranks \(3\)"),
        (lambda: reduce_scatter_schedule(0, 1), "num_ranks >= 1 .* got 0 and 1"),
        (lambda: all_gather_schedule(2, -1), "chunks of >= 0, got 2 and -1"),
    ],
)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_ring_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
