import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import paged_attention as topic
from internals_math import paged_attention_experiment as experiment
from internals_math import progress, tiny_lm, trace_store
from internals_math.attention import scaled_dot_product_attention
from internals_math.paged_attention import (
    BlockAllocator,
    BlockTable,
    BuddyAllocator,
    Config,
    PagedKVCache,
    contiguous_reservation,
    expected_last_block_waste,
    max_kv_slots,
    paged_attention,
    simulate_serving,
    slot_mapping,
)
from internals_math.paged_blocks import Slot
from internals_math.paged_serving import POLICIES, Request
from tests.oracles import randn
from tests.oracles.paged_attention import random_operations


@pytest.fixture(scope="module", params=["kept", "anew"])
def trace(request):
    """The trace that comes with the project, and one whose parts but the large server are computed here and now."""
    kept = trace_store.get(topic)
    if request.param == "kept":
        return kept
    run, parts = experiment.serve(kept.config), (experiment.contiguous_fields, experiment.paged_fields)
    parts += (experiment.decode_fields, experiment.serving_fields)
    values = {name: value for part in parts for name, value in part(run, kept.config).items()}
    return replace(kept, **values, **experiment.share_fields(kept.config), **experiment.quoted_fields())


def paged(lengths, *, block_size, groups=2, head_dim=4, dtype=torch.float64, seed=0):
    """Return a NaN-filled pool with random sequences in shuffled blocks, and the tables."""
    blocks = sum(-(-length // block_size) for length in lengths) + 2
    pool = PagedKVCache(1, blocks, block_size, groups, head_dim, dtype)
    allocator = BlockAllocator(blocks, block_size, order="shuffled", seed=seed)
    tables = []
    for number, length in enumerate(lengths):
        table = BlockTable(allocator)
        slots = table.append_slots(length)
        pool.write(0, slots, *(randn(groups, length, head_dim, seed=9 * number + k, dtype=dtype) for k in (1, 2)))
        tables.append(table)
    widest = max(len(table.physical_blocks) for table in tables)
    padded = [table.physical_blocks + [-1] * (widest - len(table.physical_blocks)) for table in tables]
    return pool, tables, torch.tensor(padded)


# -- the kernel --------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=4),
    block_size=st.sampled_from([1, 2, 3, 4, 16]),
    groups=st.integers(1, 3),
    n_rep=st.integers(1, 3),
    precision=st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)]),
)
def test_walking_over_blocks_is_attention_over_the_gathered_sequence(lengths, block_size, groups, n_rep, precision):
    dtype, tolerance = precision
    pool, tables, padded = paged(lengths, block_size=block_size, groups=groups, dtype=dtype)
    query = randn(len(lengths), groups * n_rep, 4, seed=5, dtype=dtype)
    output, _ = paged_attention(query, pool.keys[0], pool.values[0], padded, torch.tensor(lengths))
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        key, value = pool.gather(0, table.physical_blocks, length)
        expected, _ = scaled_dot_product_attention(query[row][None, :, None], key[None], value[None])
        torch.testing.assert_close(output[row], expected[0, :, 0], atol=tolerance, rtol=0)


def test_where_the_blocks_lie_does_not_matter():
    query, lengths = randn(2, 2, 4, seed=5), torch.tensor([7, 5])
    outputs = []
    for seed in range(3):
        pool, tables, padded = paged([7, 5], block_size=3, seed=seed)
        outputs.append(paged_attention(query, pool.keys[0], pool.values[0], padded, lengths)[0])
        assert [table.num_filled for table in tables] == [[3, 3, 1], [3, 2]]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_query_sees_its_context_and_not_what_follows():
    pool, tables, padded = paged([9], block_size=4)
    query = randn(1, 2, 4, seed=5)
    for context in range(1, 10):
        output, _ = paged_attention(query, pool.keys[0], pool.values[0], padded, torch.tensor([context]))
        key, value = pool.gather(0, tables[0].physical_blocks, context)
        expected, _ = scaled_dot_product_attention(query[0][None, :, None], key[None], value[None])
        torch.testing.assert_close(output, expected[:, :, 0])


@pytest.mark.parametrize("stale", [math.nan, math.inf, 1e30])
def test_what_unfilled_slots_hold_never_reaches_the_output(stale):
    pool, _, padded = paged([6, 1], block_size=4)
    clean = (pool.keys[0].nan_to_num(), pool.values[0].nan_to_num())
    dirty = tuple(store[0].masked_fill(store[0].isnan(), stale) for store in (pool.keys, pool.values))
    query, lengths = randn(2, 4, 4, seed=5), torch.tensor([6, 1])
    outputs = [paged_attention(query, *store, padded, lengths)[0] for store in (clean, dirty)]
    assert outputs[1].isfinite().all()
    assert torch.equal(*outputs)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_scores_of_any_size_stay_finite(size):
    pool, _, padded = paged([7], block_size=2, groups=1, head_dim=1, dtype=torch.float32)
    pool.keys[0] = torch.where(pool.keys[0].isnan(), pool.keys[0], size * pool.keys[0].sign())
    output, partials = paged_attention(
        torch.ones(1, 1, 1), pool.keys[0], pool.values[0], padded, torch.tensor([7]), scale=1.0
    )
    assert output.isfinite().all()
    assert float(partials.running_max[0, 0, -1]) == 1e4


def test_the_partial_states_add_up_block_by_block():
    pool, tables, padded = paged([10, 3], block_size=4)
    query, lengths = randn(2, 2, 4, seed=5), torch.tensor([10, 3])
    output, partials = paged_attention(query, pool.keys[0], pool.values[0], padded, lengths)
    assert partials.scores.shape == (2, 2, 3, 4)
    key, value = pool.gather(0, tables[0].physical_blocks, 10)
    scores = torch.einsum("hd,htd->ht", query[0], key) / 2  # sqrt of head_dim 4
    torch.testing.assert_close(partials.scores[0].flatten(1)[:, :10], scores)
    for j, seen in enumerate((4, 8, 10)):
        terms = torch.exp(scores[:, :seen] - scores[:, :seen].amax(dim=1, keepdim=True))
        torch.testing.assert_close(partials.running_max[0, :, j], scores[:, :seen].amax(dim=1))
        torch.testing.assert_close(partials.running_sum[0, :, j], terms.sum(dim=1))
        torch.testing.assert_close(partials.running_acc[0, :, j], torch.einsum("ht,htd->hd", terms, value[:, :seen]))
    torch.testing.assert_close(partials.block_sum[0].sum(dim=1) > 0, torch.tensor([True, True]))
    # the second sequence has no second and third block: they add nothing
    assert (partials.block_sum[1, :, 1:] == 0).all()
    torch.testing.assert_close(partials.running_acc[1, :, 0] / partials.running_sum[1, :, 0, None], output[1])


def test_half_precision_queries_are_answered_from_float32_sums():
    pool, _, padded = paged([9], block_size=4, dtype=torch.float32)
    query, lengths = randn(1, 2, 4, seed=5, dtype=torch.float32), torch.tensor([9])
    exact, _ = paged_attention(query, pool.keys[0], pool.values[0], padded, lengths)
    half = [part.bfloat16() for part in (query, pool.keys[0], pool.values[0])]
    output, partials = paged_attention(*half, padded, lengths)
    assert output.dtype == torch.bfloat16
    assert partials.running_sum.dtype == torch.float32
    torch.testing.assert_close(output.float(), exact, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_lens": torch.tensor([0])}, r"context_lens must be in 1..8, what the tables hold, got \[0\]"),
        ({"context_lens": torch.tensor([9])}, r"context_lens must be in 1..8, what the tables hold, got \[9\]"),
        ({"block_tables": torch.tensor([[0, -1]])}, r"blocks of the context must be in 0..2, got \[-1\]"),
        ({"block_tables": torch.tensor([[0, 3]])}, r"blocks of the context must be in 0..2, got \[3\]"),
        ({"query": torch.zeros(1, 3, 8)}, r"num_attention_heads \(3\) must be divisible by num_key_value_heads \(2\)"),
        ({"query": torch.zeros(1, 2, 6)}, r"need the same shape \(N, B, G, 6\), got \(3, 4, 2, 8\)"),
        ({"value_cache": torch.zeros(3, 4, 1, 8)}, "key and value cache need the same shape"),
        ({"query": torch.zeros(2, 2, 8)}, "2 queries need as many block tables and context lengths, got 1 and 1"),
    ],
)
def test_pages_that_do_not_fit_are_refused(plain_python, change, message):
    arguments = {
        "query": torch.zeros(1, 2, 8),
        "key_cache": torch.zeros(3, 4, 2, 8),
        "value_cache": torch.zeros(3, 4, 2, 8),
        "block_tables": torch.tensor([[0, 1]]),
        "context_lens": torch.tensor([6]),
    }
    with pytest.raises(ValueError, match=message):
        paged_attention(**arguments | change)


def test_a_missing_block_beyond_the_context_is_allowed():
    pool, _, _ = paged([4], block_size=4)
    block = int((~pool.keys[0, :, 0, 0, 0].isnan()).nonzero()[0, 0])
    output, _ = paged_attention(
        randn(1, 2, 4, seed=1), pool.keys[0], pool.values[0], torch.tensor([[block, -1]]), torch.tensor([4])
    )
    assert output.isfinite().all()


# -- the block manager -------------------------------------------------------------------------------------------------


@settings(max_examples=25)  # of 40 operations each
@given(st.integers(0, 10_000))
def test_random_appends_forks_and_ends_never_mix_up_what_was_stored(seed):
    for check in random_operations(seed):
        allocator, tables = check.allocator, check.tables
        used = [block for table in tables for block in table.physical_blocks]
        counts = [allocator.ref_count(block) for block in range(allocator.num_blocks)]
        assert sum(counts) == len(used)
        assert allocator.num_free + sum(count > 0 for count in counts) == allocator.num_blocks
        for table in tables:
            blocks = len(table.physical_blocks)
            assert blocks == math.ceil(table.length / allocator.block_size)
            assert blocks * allocator.block_size - table.length < allocator.block_size
            assert sum(table.num_filled) == table.length
        assert check.difference == 0
    for table in tables:
        table.free()
    assert allocator.num_free == allocator.num_blocks
    assert all(allocator.ref_count(block) == 0 for block in range(allocator.num_blocks))


def test_two_sequences_share_a_slot_only_where_their_texts_agree():
    for check in (check for seed in range(4) for check in random_operations(seed, steps=60)):
        for first, a in enumerate(check.tables):
            for second, b in list(enumerate(check.tables))[:first]:
                shared = set(map(tuple, _slots(a))) & set(map(tuple, _slots(b)))
                for logical, _, offset in shared:
                    end = logical * check.allocator.block_size + offset + 1
                    assert check.texts[first][:end] == check.texts[second][:end]


def _slots(table):
    size = table.allocator.block_size
    return [(p // size, table.physical_blocks[p // size], p % size) for p in range(table.length)]


@pytest.mark.parametrize(("prompt", "copies"), [(7, [1, 0, 0]), (8, [0, 0, 0]), (1, [1, 0, 0])])
def test_writers_copy_a_shared_block_once_each_and_never_a_full_one(prompt, copies):
    """The prompt is shared by two: the first writer copies the last block, the second finds itself alone with it."""
    allocator = BlockAllocator(8, 4)
    first = BlockTable(allocator)
    first.append_slots(prompt)
    second = first.fork()
    made = []
    for table in (first, second, first):
        table.append_slots(1)
        made.append(len(table.take_copy_ops()))
    assert made == copies


@pytest.mark.parametrize("writers", [2, 3, 4])
def test_of_n_sharers_all_but_the_last_writer_copy(writers):
    allocator = BlockAllocator(12, 4)
    tables = [BlockTable(allocator)]
    tables[0].append_slots(6)
    tables += [tables[0].fork() for _ in range(writers - 1)]
    for table in tables:
        table.append_slots(1)
    assert sum(len(table.take_copy_ops()) for table in tables) == writers - 1
    assert len({table.physical_blocks[1] for table in tables}) == writers
    assert allocator.ref_count(tables[0].physical_blocks[0]) == writers


def test_the_other_table_does_not_change_when_a_sharer_writes():
    allocator, pool = BlockAllocator(6, 4, order="shuffled"), PagedKVCache(2, 6, 4, 1, 3)
    first = BlockTable(allocator)
    states = randn(2, 1, 6, 3, seed=1, dtype=torch.float32)
    slots = first.append_slots(6)
    for layer in range(2):
        pool.write(layer, slots, states[layer], -states[layer])
    second = first.fork()
    before = list(second.physical_blocks)
    slots = first.append_slots(1)
    ops = first.take_copy_ops()
    pool.copy_blocks(ops)
    new = torch.full((1, 1, 3), 9.0)
    for layer in range(2):
        pool.write(layer, slots, new, -new)
    assert ops[0].src == before[-1]
    assert second.physical_blocks == before
    for layer in range(2):  # keys and values of all layers came along
        assert torch.equal(pool.gather(layer, second.physical_blocks, 6)[0], states[layer])
        key, value = pool.gather(layer, first.physical_blocks, 7)
        assert torch.equal(key, torch.cat([states[layer], new], dim=1))
        assert torch.equal(value, -key)


def test_append_takes_all_or_nothing_when_blocks_run_out():
    allocator = BlockAllocator(3, 4)
    table, other = BlockTable(allocator), BlockTable(allocator)
    table.append_slots(6)
    shared = table.fork()
    other.append_slots(1)
    with pytest.raises(MemoryError, match="3 more tokens need 2 blocks, 0 are free"):
        table.append_slots(3)  # one copy, one new block
    assert table.physical_blocks == shared.physical_blocks == [0, 1]
    assert (table.length, allocator.num_free, table.take_copy_ops()) == (6, 0, [])


def test_slots_come_in_order_and_may_cross_blocks():
    table = BlockTable(BlockAllocator(4, 4, order=[2, 0, 3, 1]))
    assert table.append_slots(3) == [(0, 2, 0), (0, 2, 1), (0, 2, 2)]
    assert table.append_slots(3) == [(0, 2, 3), (1, 0, 0), (1, 0, 1)]
    assert table.num_filled == [4, 2]


@given(length=st.integers(1, 40), block_size=st.sampled_from([1, 3, 4, 16]))
def test_the_slot_mapping_names_the_slots_of_the_table_and_none_twice(length, block_size):
    allocator = BlockAllocator(40, block_size, order="shuffled")
    BlockTable(allocator).append_slots(3)
    if -(-length // block_size) > allocator.num_free:
        return
    table = BlockTable(allocator)
    slots = table.append_slots(length)
    mapped = slot_mapping(torch.tensor(table.physical_blocks), torch.arange(length), block_size)
    assert mapped.tolist() == [slot.physical * block_size + slot.offset for slot in slots]
    assert len(set(mapped.tolist())) == length


def test_freed_blocks_are_used_again_and_shared_ones_stay():
    allocator = BlockAllocator(3, 2)
    first = BlockTable(allocator)
    first.append_slots(4)
    second = first.fork()
    first.free()
    assert allocator.num_free == 1
    assert (first.length, second.length) == (0, 4)
    first.append_slots(2)
    assert first.physical_blocks == [2]


def _error_cases():
    def table_with_waiting_copy():
        table = BlockTable(BlockAllocator(4, 4))
        table.append_slots(2)
        other = table.fork()
        other.append_slots(1)
        return other

    pool = PagedKVCache(1, 2, 4, 1, 3)
    return [
        (lambda: BlockAllocator(0, 4), ValueError, "num_blocks and block_size must be at least 1, got 0 and 4"),
        (lambda: BlockAllocator(2, 4, order="random"), ValueError, "fifo, shuffled or the block ids, got 'random'"),
        (lambda: BlockAllocator(3, 4, order=[0, 1, 1]), ValueError, r"each of the 3 blocks once, got \[0, 1, 1\]"),
        (lambda: BlockAllocator(2, 4).free(0), ValueError, "block 0 is free already"),
        (lambda: BlockAllocator(2, 4).fork(1), ValueError, "block 1 is free already"),
        (lambda: BlockAllocator(2, 4).ref_count(2), ValueError, r"block must be in 0..1, got 2"),
        (lambda: BlockTable(BlockAllocator(2, 4)).append_slots(0), ValueError, "count must be at least 1, got 0"),
        (lambda: BlockTable(BlockAllocator(2, 4)).append_slots(9), MemoryError, "9 more tokens need 3 blocks, 2 are"),
        (lambda: table_with_waiting_copy().fork(), ValueError, "carry out .* before the table is forked"),
        (lambda: slot_mapping(torch.tensor([1]), torch.tensor([4]), 4), ValueError, r"must be in 0..3, got \[4\]"),
        (lambda: slot_mapping(torch.tensor([1]), torch.tensor([-1]), 4), ValueError, r"must be in 0..3, got \[-1\]"),
        (lambda: slot_mapping(torch.tensor([-1]), torch.tensor([0]), 4), ValueError, "the table has no block"),
        (lambda: slot_mapping(torch.tensor([1]), torch.tensor([0]), 0), ValueError, "block_size must be at least 1"),
        (lambda: PagedKVCache(1, 2, 0, 1, 3), ValueError, "sizes of a PagedKVCache must be at least 1"),
        (
            lambda: pool.write(0, [(0, 0, 0)], torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)),
            ValueError,
            r"must have the shape \(1, 1, 3\), got \(1, 2, 3\)",
        ),
        (lambda: pool.gather(0, [1], 5), ValueError, r"positions must be in 0..3"),
        (lambda: BuddyAllocator(0), ValueError, "num_slots must be at least 1, got 0"),
        (lambda: BuddyAllocator(8).allocate(0), ValueError, "size must be at least 1, got 0"),
        (lambda: BuddyAllocator(8).allocate(9), MemoryError, "no free chunk of 16 slots; 8 slots are free"),
        (lambda: BuddyAllocator(8).free(4), ValueError, "no chunk starts at 4"),
        (lambda: contiguous_reservation("paged", 1, 1, 8), ValueError, "max, pow2 or oracle, got 'paged'"),
        (lambda: contiguous_reservation("max", 5, 4, 8), ValueError, r"at most max_model_len \(8\), got 5 and 4"),
        (lambda: max_kv_slots(-1, 1, 1, 1), ValueError, "memory_bytes must be at least 0, got -1"),
        (lambda: expected_last_block_waste([], 4), ValueError, "must be at least 1"),
        (lambda: simulate_serving([], num_slots=8, max_model_len=8), ValueError, "at least one request"),
        (
            lambda: simulate_serving([Request(1, 1)], "first", num_slots=8, max_model_len=8),
            ValueError,
            "policy must be one of max, pow2, oracle, paged, got 'first'",
        ),
        (
            lambda: simulate_serving([Request(6, 6)], "paged", num_slots=8, max_model_len=32, block_size=4),
            ValueError,
            r"request 0 \(6, 6\) cannot fit into 8 slots",
        ),
        (
            lambda: simulate_serving([Request(1, 1)], "max", num_slots=24, max_model_len=32),
            ValueError,
            r"request 0 \(1, 1\) cannot fit into 24 slots",
        ),
        (
            lambda: simulate_serving([Request(1, 1)], num_slots=8, max_model_len=8, max_num_seqs=0),
            ValueError,
            "max_num_seqs must be at least 1, got 0",
        ),
        (lambda: Config(block_size=1, num_blocks=16), ValueError, r"num_blocks \(16\) times block_size \(1\)"),
        (lambda: Config(block_size=3), ValueError, "block_size must be one of 1, 2, 4, 8, 16, got 3"),
    ]


@pytest.mark.parametrize(("call", "kind", "message"), _error_cases())
def test_wrong_use_is_refused_with_its_reason(plain_python, call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# -- the server --------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30), num_slots=st.integers(20, 100))
def test_buddies_never_overlap_and_join_to_what_they_were(sizes, num_slots):
    buddies, fresh = BuddyAllocator(num_slots), BuddyAllocator(num_slots)
    starts = []
    for turn, size in enumerate(sizes):
        try:
            starts.append(buddies.allocate(size))
            assert buddies.taken[starts[-1]] == 1 << (size - 1).bit_length()
        except MemoryError:
            assert all(held < size for held, free in buddies._free.items() if free)
        if turn % 3 == 2 and starts:
            buddies.free(starts.pop(turn % len(starts)))
        held = [slot for start, size in buddies.taken.items() for slot in range(start, start + size)]
        assert len(held) == len(set(held)) == num_slots - buddies.num_free
        assert all(0 <= slot < num_slots for slot in held)
        assert all(start % size == 0 for start, size in buddies.taken.items())
    for start in starts:
        buddies.free(start)
    assert {k: v for k, v in buddies._free.items() if v} == {k: v for k, v in fresh._free.items() if v}


requests = st.lists(st.builds(Request, st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12)


@given(requests=requests, policy=st.sampled_from(POLICIES), block_size=st.sampled_from([1, 3, 4]))
def test_the_states_of_the_slots_add_up_to_the_memory_in_every_tick(requests, policy, block_size):
    served = simulate_serving(requests, policy, num_slots=40, block_size=block_size, max_model_len=24, record=True)
    assert (served.usage >= 0).all()
    assert (served.usage.sum(dim=1) == 40).all()
    assert torch.equal(served.running + served.waiting + served.finished, _alive(served, len(requests)))
    for tick, holdings in enumerate(served.holdings):
        assert int(served.usage[tick, 0]) == sum(held.stored for held in holdings.values())
        held = [slot for one in holdings.values() for slot in experiment.slots_of(one, block_size)]
        assert len(held) == len(set(held))
        if policy == "paged":
            rest = [one.allocated - one.stored for one in holdings.values()]
            assert all(0 <= waste < block_size for waste in rest)
            assert int(served.usage[tick, 1:3].sum()) == sum(rest)


def _alive(served, count):
    """Requests that finish in a tick are counted as running and as finished."""
    ends = torch.bincount(served.finish_tick, minlength=len(served.running))
    return count + ends


@settings(max_examples=40)
@given(requests=requests, block_size=st.sampled_from([1, 2, 4]))
def test_preemption_loses_no_token_and_keeps_the_order(requests, block_size):
    stored = {index: [] for index in range(len(requests))}

    def store(sequence, table, slots):
        stored[sequence].append((table.length - len(slots), table.length))

    tight = simulate_serving(requests, num_slots=24, block_size=block_size, max_model_len=24, store=store, record=True)
    preempted = [event.sequence for event in tight.events if event.kind == "preempt"]
    assert len(preempted) == int(tight.preemptions[-1])
    for index, request in enumerate(requests):
        runs = stored[index]
        # a prompt, then token by token; every return of a preempted request is one more run
        assert len(runs) == request.output_len + 1 + preempted.count(index)
        assert runs[-1][1] == request.total
        for (_, end), (start, _) in itertools.pairwise(runs):
            assert start in (end, 0)  # goes on, or takes everything up again from the first token
    roomy = simulate_serving(requests, num_slots=400, block_size=block_size, max_model_len=24)
    assert int(roomy.preemptions[-1]) == 0
    assert (tight.finish_tick >= roomy.finish_tick).all()


def test_the_one_who_came_last_gives_way():
    served = simulate_serving(
        [Request(4, 8), Request(4, 8), Request(4, 4)], num_slots=16, block_size=4, max_model_len=12, record=True
    )
    victims = [event.sequence for event in served.events if event.kind == "preempt"]
    assert victims[0] == 2  # then the second, never the first
    assert set(victims) == {1, 2}
    admitted = [event.sequence for event in served.events if event.kind == "admit"]
    assert [admitted.count(sequence) for sequence in range(3)] == [1, 1 + victims.count(1), 1 + victims.count(2)]
    assert served.finish_tick[0] < served.finish_tick[1] < served.finish_tick[2]


def test_a_block_is_taken_just_before_its_first_token_and_given_back_at_the_end():
    served = simulate_serving([Request(3, 2)], num_slots=8, block_size=2, max_model_len=5, record=True)
    told = [(event.tick, event.kind, event.logical, event.physical, event.offset) for event in served.events]
    nowhere = (-1, -1, -1)
    assert told == [
        (0, "admit", *nowhere),
        (0, "allocate", 0, 0, -1),
        (0, "append", 0, 0, 0),
        (0, "append", 0, 0, 1),
        (0, "allocate", 1, 1, -1),
        (0, "append", 1, 1, 0),
        (1, "append", 1, 1, 1),
        (2, "allocate", 2, 2, -1),
        (2, "append", 2, 2, 0),
        *((2, "free", block, block, -1) for block in range(3)),
    ]


def test_on_a_crowded_server_blocks_hold_more_tokens_than_any_contiguous_policy():
    rng = random.Random(1)
    requests = [Request(rng.randint(1, 40), rng.randint(1, 80)) for _ in range(80)]
    served = {
        policy: simulate_serving(requests, policy, num_slots=500, block_size=4, max_model_len=128)
        for policy in POLICIES
    }
    paged = served.pop("paged")
    for other in served.values():
        assert paged.mean_usage[0] > other.mean_usage[0]
        assert paged.mean_running > other.mean_running
    assert paged.mean_usage[0] > 0.9


def test_a_limit_on_running_requests_is_kept():
    served = simulate_serving([Request(3, 3)] * 6, num_slots=64, block_size=4, max_model_len=8, max_num_seqs=2)
    assert int(served.running.max()) == 2
    assert served.finish_tick.tolist() == [3, 3, 7, 7, 11, 11]


@given(length=st.integers(1, 300), block_size=st.sampled_from([1, 2, 16]))
def test_the_waste_of_one_sequence_is_less_than_a_block(length, block_size):
    waste = expected_last_block_waste([length], block_size)
    assert 0 <= waste < block_size / (length + block_size - 1) + 1e-12
    assert expected_last_block_waste([length], 1) == 0


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_paged_generation_is_contiguous_generation(trace):
    assert trace.max_abs_diff_logits < 1e-5
    assert trace.steps_compared == int(trace.output_len.sum())
    for name, prompt, output in zip(trace.request_names, trace.prompt_len, trace.output_len, strict=True):
        words = trace.request_tokens[name]
        assert len(words) == int(prompt + output)
        text = tiny_lm.generate(tiny_lm.load("base"), [" ".join(words[1:prompt])], 16, stop=".")[0]
        assert " ".join(words[prompt:]) == text


@pytest.mark.parametrize("limit", [None, 1])
def test_generation_is_the_same_when_blocks_run_out(limit):
    """32 slots hold two texts and a bit: with no limit on running requests, some are preempted and computed again."""
    config = Config(block_size=4, num_blocks=8, num_requests=6)
    run = experiment.serve(config, max_num_seqs=limit)
    assert (int(run.serving.preemptions[-1]) > 0) == (limit is None)
    assert run.max_abs_diff < 1e-5
    assert run.texts == [answer.ids for answer in run.answers]


def test_a_prefill_of_several_tokens_reads_only_the_past():
    model, config = tiny_lm.load("base"), Config()
    ids = tiny_lm.encode(tiny_lm.story())[:14]
    table = BlockTable(BlockAllocator(config.num_blocks, config.block_size, order="shuffled"))
    pool = experiment.pool_for(model, config)
    chunks = []
    for part in (ids[:6], ids[6:7], ids[7:]):
        view = experiment.PagedView(pool, table, table.append_slots(len(part)))
        chunks.append(experiment.read_tokens(model, part, view))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(chunks), model(torch.tensor([ids]))[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 8**-0.5])
def test_the_pool_is_read_at_the_scale_that_the_model_asks_for(scale):
    pool, (table,), _ = paged([6], block_size=4)
    keys, values = pool.gather(0, table.physical_blocks, 6)
    view = experiment.PagedView(pool, table, [Slot(1, table.physical_blocks[1], 1)])  # the sixth token is new
    query = randn(1, 4, 1, 4, seed=5)
    mask = torch.ones(1, 6, dtype=torch.bool)
    expected, _ = scaled_dot_product_attention(query, keys[None], values[None], mask, scale)
    torch.testing.assert_close(view.attend(query, keys[None], values[None], mask, scale, 0), expected)


def test_the_drawn_run_serves_three_at_a_time_from_scattered_blocks_and_ends_empty(trace):
    taken = trace.physical_owner >= 0
    assert torch.equal(taken, trace.ref_counts > 0)
    assert torch.equal(trace.blocks_free, 16 - taken.sum(dim=1))
    assert int((trace.sequence_length > 0).sum(dim=1).max()) == 3
    assert torch.equal(trace.filled.sum(dim=1), trace.sequence_length.sum(dim=1))
    kinds = list(trace.events.kind)
    assert kinds.count("allocate") == kinds.count("free")
    assert kinds.count("append") == int((trace.prompt_len + trace.output_len).sum())
    first = trace.block_tables[0, 0]
    assert abs(float(first[1] - first[0])) > 1  # not side by side


def test_replaying_the_events_gives_the_tables_of_every_tick(trace):
    tables = {}
    events = trace.events
    for tick, kind, sequence, logical, physical, offset, word in zip(
        events.tick.tolist(), events.kind, events.sequence.tolist(), events.logical.tolist(), events.physical.tolist(),
        events.offset.tolist(), events.word, strict=True,
    ):  # fmt: skip
        if kind == "append":
            place = logical * 4 + offset
            assert trace.request_tokens[trace.request_names[sequence]][place] == word
            assert tables[sequence][logical] == physical
        elif kind == "allocate":
            tables.setdefault(sequence, []).append(physical)
        elif kind == "free":
            if logical == 0:  # freed at the end of its tick: the picture of the tick still shows it
                row = trace.block_tables[tick, sequence]
                assert row[~row.isnan()].tolist() == tables[sequence]
            tables[sequence].remove(physical)
    assert not any(tables.values())


def test_all_blocks_of_a_table_are_full_but_the_last(trace):
    pictures = (
        (trace.block_tables, trace.table_filled, trace.fill_share, trace.ref_counts),
        (trace.share_tables, trace.share_filled, trace.share_fill_share, trace.share_ref_counts),
    )
    for tables, filled, shares, counts in pictures:
        assert torch.equal(tables.isnan(), filled.isnan())
        for moment in range(len(tables)):
            held = {}
            for table, fill in zip(tables[moment], filled[moment], strict=True):
                blocks, tokens = table[~table.isnan()].int().tolist(), fill[~fill.isnan()].tolist()
                assert all(count == 4 for count in tokens[:-1])
                assert all(1 <= count <= 4 for count in tokens[-1:])
                for block, count in zip(blocks, tokens, strict=True):
                    held.setdefault(block, []).append(count)
            expected = [max(held.get(block, [0])) / 4 for block in range(16)]
            assert shares[moment].tolist() == expected
            assert counts[moment].tolist() == [len(held.get(block, [])) for block in range(16)]
    total = trace.table_filled.nansum(dim=2)
    assert torch.equal(total.long(), trace.sequence_length)


def test_a_slot_belongs_to_the_owner_of_its_block_and_blocks_fill_from_the_left(trace):
    pictures = (
        (trace.slot_owner, (trace.slot_state == 1).long(), trace.physical_owner, trace.filled),
        (trace.share_slot_owner, trace.share_slot_filled, trace.share_owner, (trace.share_fill_share * 4).long()),
    )
    assert trace.block_ids.tolist() == list(range(16))
    for owners, full, block_owners, filled in pictures:
        for block in range(16):
            slots = slice(block * 4, block * 4 + 4)
            assert (owners[:, slots] == block_owners[:, block, None]).all()
            assert torch.equal(full[:, slots].sum(dim=1), filled[:, block])
            assert (full[:, slots].diff(dim=1) <= 0).all()


def test_only_the_last_block_of_a_text_has_empty_slots_and_they_are_kept_for_its_tokens_to_come(trace):
    totals = trace.prompt_len + trace.output_len
    blocks = -(-trace.sequence_length // 4)
    held = trace.sequence_length > 0
    to_come = torch.minimum(totals.expand_as(blocks), blocks * 4) - trace.sequence_length
    usage = torch.stack([trace.sequence_length.sum(dim=1), (to_come * held).sum(dim=1)], dim=1)
    assert torch.equal(trace.slot_usage[:, :2], usage)
    empty = trace.slot_usage[:, 1:3].sum(dim=1)
    assert torch.equal(empty, (blocks * 4 - trace.sequence_length).sum(dim=1))
    assert (empty < 4 * held.sum(dim=1)).all()
    assert (trace.slot_usage.sum(dim=1) == trace.num_slots).all()
    states = torch.stack([(trace.slot_state == k).sum(dim=1) for k in range(1, 4)], dim=1)
    assert torch.equal(states, trace.slot_usage[:, :3])
    assert torch.equal(trace.slot_owner == -1, trace.slot_state == 0)
    assert int(held.sum(dim=1).max()) == trace.shown_at_once


def test_the_largest_score_of_the_walk_comes_late_and_every_block_is_looked_into(trace):
    assert (trace.running_max.diff() > 0).sum() >= 2
    assert (trace.block_weights.nansum(dim=1) > 0.05).all()


def test_a_word_is_stored_by_the_sample_that_wrote_it(trace):
    written = {name: [] for name in trace.share_tokens}
    for writer, word in zip(trace.share_writer.tolist(), trace.share_word, strict=True):
        assert (writer == -1) == (word == "")
        if writer >= 0:
            written[list(written)[writer]].append(word)
    assert {name: tuple(words) for name, words in written.items()} == trace.share_tokens
    assert trace.share_writer.tolist()[:2] == [-1, -1]  # the prompt, and the fork


def test_the_walking_query_lands_on_the_reference(trace):
    assert trace.max_abs_diff < 1e-6
    keys, values = (part.flatten(0, 1)[: len(trace.decode_tokens)] for part in (trace.keys, trace.values))
    weights = torch.softmax(keys @ trace.query / math.sqrt(8), dim=0)
    torch.testing.assert_close(weights @ values, trace.output)
    shown = trace.block_weights.flatten()
    torch.testing.assert_close(shown[: len(weights)], weights)
    assert shown[len(weights) :].isnan().all()
    assert len(shown) > len(weights)  # the last block is not full: there is something to mask
    torch.testing.assert_close(trace.running_output[-1], trace.output)


def test_every_block_on_the_walk_hands_on_a_softmax_of_what_it_has_seen(trace):
    scores = trace.keys @ trace.query / math.sqrt(8)  # NaN where nothing is stored
    torch.testing.assert_close(trace.block_scores, scores, equal_nan=True)
    seen = scores.nan_to_num(-math.inf)
    torch.testing.assert_close(trace.block_max, seen.amax(dim=1))
    torch.testing.assert_close(trace.block_sum, (seen - trace.block_max[:, None]).exp().sum(dim=1))
    for block in range(len(seen)):
        so_far = seen[: block + 1].flatten()
        torch.testing.assert_close(trace.running_max[block], so_far.max())
        assert float(trace.running_sum[block]) == pytest.approx(float((so_far - so_far.max()).exp().sum()), rel=1e-5)
        mixed = so_far.softmax(dim=0) @ trace.values[: block + 1].flatten(0, 1).nan_to_num(0)
        torch.testing.assert_close(trace.running_output[block], mixed)
    torch.testing.assert_close(trace.reference_output, trace.output)
    assert len(set(trace.decode_blocks.tolist())) == len(seen) == math.ceil(len(trace.decode_tokens) / 4)


def test_forked_samples_write_what_they_would_write_alone(trace):
    assert trace.share_max_abs_diff < 1e-5
    assert trace.share_copies == 1
    answers = list(trace.share_tokens.values())
    assert answers[0][0] != answers[1][0]  # they disagree at once
    frame = int((trace.share_copy_from >= 0).nonzero()[0, 0])
    source, target = int(trace.share_copy_from[frame]), int(trace.share_copy_to[frame])
    assert trace.share_ref_counts[1].tolist().count(2) == trace.share_blocks_used[1]
    assert trace.share_ref_counts[frame, source] == trace.share_ref_counts[frame, target] == 1
    assert trace.share_owner[frame, target] == trace.share_writer[frame]
    assert (trace.share_blocks_used <= trace.share_blocks_alone).all()
    assert trace.share_blocks_alone[-1] - trace.share_blocks_used[-1] == 1  # the full block stays shared


@pytest.mark.parametrize("length", [4, 5, 8])
def test_the_model_copies_only_where_the_prompt_leaves_a_block_open(length):
    run = experiment.share_prompt(Config(num_samples=3), tiny_lm.encode(tiny_lm.story())[:length])
    copies = [frame.copy for frame in run.frames if frame.copy.src >= 0]
    assert len(copies) == (0 if length % 4 == 0 else 2)
    assert run.max_abs_diff < 1e-5


def test_the_first_chapter_shows_every_slot_in_one_state(trace):
    used = torch.stack([(trace.contiguous_state == k).sum(dim=1) for k in range(5)], dim=1)
    assert torch.equal(used[:, 1:4], trace.usage["max"][:, :3])
    assert torch.equal(trace.contiguous_owner == -1, trace.contiguous_state == 0)
    assert (trace.running["max"] <= 2).all()  # 64 slots, 32 each
    assert (trace.usage["max"].sum(dim=1) == trace.num_slots).all()


def test_more_requests_fit_when_memory_is_paged(trace):
    for table in (trace.serving, trace.large_serving):
        assert table.policy == POLICIES
        shares = table.mean_tokens + table.mean_reserved + table.mean_never_used + table.mean_free
        torch.testing.assert_close(shares, torch.ones(4))
        assert table.mean_tokens.argmax() == 3
        assert (table.mean_running[3] > table.mean_running[:3]).all()
        assert table.finish_tick.argmin() == 3
    assert trace.large_serving.mean_tokens[3] > 0.95
    assert 4 < float(trace.large_serving.running_ratio[3]) < 6
    # not far from what the paper measured with its own lengths and arrivals
    assert tuple(trace.quoted_kv_use) == POLICIES
    near = {"max": 0.03, "pow2": 0.05, "oracle": 0.03, "paged": 0.03}
    for policy, share in zip(POLICIES, trace.large_serving.mean_tokens.tolist(), strict=True):
        assert share == pytest.approx(trace.quoted_kv_use[policy], abs=near[policy])


def test_the_stacked_shares_rise_to_the_whole_memory_and_stop_when_all_is_done(trace):
    for policy in POLICIES:
        stack = trace.large_stack[policy]
        done = stack[:, 0].isnan()
        assert (stack[~done].diff(dim=1) >= 0).all()
        torch.testing.assert_close(stack[~done, 3], torch.ones(int((~done).sum())))
        assert torch.equal(done, trace.large_running[policy].isnan())
    finished = [int(trace.large_stack[p][:, 0].isnan().sum()) for p in POLICIES]
    assert finished[3] > finished[0] == 0


def test_the_lengths_of_the_large_simulation_have_the_published_means():
    requests = experiment.large_requests(20_000, 0)
    for lengths, mean in (
        ([request.prompt_len for request in requests], experiment.MEAN_PROMPT),
        ([request.output_len for request in requests], experiment.MEAN_OUTPUT),
    ):
        lengths = torch.tensor(lengths, dtype=torch.float64)
        assert 0.96 * mean < float(lengths.mean()) < 1.01 * mean  # the longest are cut
        median = mean * math.exp(-(experiment.SPREAD**2) / 2)  # of a log-normal, which the cut leaves
        assert float(lengths.median()) == pytest.approx(median, rel=0.03)


def test_the_large_server_is_the_papers(trace):
    assert trace.usage_names == ("tokens", "reserved", "never used", "free or lost")
    assert trace.slot_states == ("free", "token", "reserved", "never used", "rounding")
    # ShareGPT's means (figure 11), 13B in 12 GB (table 1), texts of at most 2048 tokens; ten standard errors
    assert trace.large_mean_prompt == pytest.approx(161.31, rel=0.15)
    assert trace.large_mean_output == pytest.approx(337.99, rel=0.15)
    assert trace.large_max_model_len == 2048
    assert trace.large_slots == trace.model_slots.slots[0] == 15_728
    assert trace.model_slots.slots.tolist() == [15_728, 9_557, 60_074]
    assert trace.model_slots.full_texts.tolist() == [7, 4, 29]
    assert trace.model_slots.bytes_per_token.tolist() == [819_200, 2_359_296, 4_718_592]
    longest = int(trace.large_serving.finish_tick.max())
    assert (int(trace.large_ticks[0]), int(trace.large_ticks[-1])) == (0, longest)
    assert (trace.large_ticks.diff() > 0).all()
    mean = trace.large_mean_prompt + trace.large_mean_output
    expected = [math.ceil(mean / size) for size in trace.sweep_block_sizes.tolist()]
    assert trace.sweep_table_entries.tolist() == expected
    assert len(experiment.large_requests(7, 0)) == 7
    assert trace.large_requests >= 100
    # what the authors measured: abstract; section 7.1
    assert (float(trace.quoted_speedup.lowest[0]), float(trace.quoted_speedup.highest[0])) == (2, 4)
    assert trace.quoted_kernel_overhead.tolist() == pytest.approx([0.20, 0.26])


def test_a_smaller_large_server_counts_the_same_way(monkeypatch):
    monkeypatch.setattr(experiment, "LARGE_REQUESTS", 12)
    monkeypatch.setattr(experiment, "SWEEP_REQUESTS", 4)
    heard = []
    with progress.listening(lambda *news: heard.append(news)):
        found = experiment.large_fields(Config(seed=2))
    steps = len(POLICIES) + len(experiment.SWEEP)
    assert heard == [("simulating a server", done, steps) for done in range(1, steps + 1)]
    requests = experiment.large_requests(12, 2)
    assert found["large_requests"] == 12
    assert found["large_mean_prompt"] == pytest.approx(sum(prompt for prompt, _ in requests) / 12)
    assert found["large_mean_output"] == pytest.approx(sum(output for _, output in requests) / 12)
    mean = sum(prompt + output for prompt, output in requests) / 12
    entries = [math.ceil(mean / size) for size in experiment.SWEEP]
    assert found["sweep_table_entries"].tolist() == entries
    for stack in found["large_stack"].values():
        torch.testing.assert_close(stack[~stack[:, 0].isnan(), 3].unique(), torch.ones(1))


def test_the_waste_is_the_share_of_taken_slots_without_a_token():
    served = simulate_serving([Request(3, 2)], num_slots=8, block_size=2, max_model_len=5)
    # 3 of 4 slots, 4 of 4, 5 of 6
    assert experiment.block_waste(served) == pytest.approx((1 / 4 + 0 + 1 / 6) / 3)


def test_larger_pages_waste_more_and_need_shorter_tables(trace):
    assert trace.sweep_waste[0] == 0
    assert (trace.sweep_waste.diff() > 0).all()
    assert (trace.sweep_table_entries.diff() < 0).all()
    at_16 = trace.sweep_waste[trace.sweep_block_sizes == trace.large_block_size]
    assert float(at_16) < 0.04  # "under 4 %" (the project's blog)


def test_other_settings_tell_the_same_story():
    config = Config(block_size=2, num_blocks=24, num_requests=4, policy="paged", num_samples=3, layer=2, head=3, seed=2)
    run = experiment.serve(config)
    assert run.max_abs_diff < 1e-5
    fields = experiment.contiguous_fields(run, config) | experiment.paged_fields(run, config)
    served = experiment.serving_fields(run, config)
    used = torch.stack([(fields["contiguous_state"] == k).sum(dim=1) for k in range(1, 4)], dim=1)
    assert torch.equal(used, served["usage"]["paged"][:, :3])
    assert experiment.decode_fields(run, config)["max_abs_diff"] < 1e-6
    for head in range(4):  # wherever on the walk a head finds its largest score
        weights = experiment.decode_fields(run, replace(config, head=head))["block_weights"]
        assert float(weights.nansum()) == pytest.approx(1)
    shared = experiment.share_fields(config)
    assert shared["share_copies"] == 2
    assert shared["share_max_abs_diff"] < 1e-5
