import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import tensor_pipeline_parallelism, tiny_lm, trace_store
from internals_math import tensor_pipeline_parallelism_experiment as experiment
from internals_math.gpt_pretraining import gpt_parameter_count
from internals_math.model_shapes import parameter_count, preset
from internals_math.next_token import next_token_loss
from internals_math.tensor_pipeline_parallelism import (
    KINDS,
    Config,
    Op,
    activation_bytes_per_layer,
    all_reduce,
    all_reduce_time,
    bubble_fraction,
    bubble_ratio,
    column_parallel,
    gpt_parameters,
    iteration_flops,
    parallel_attention,
    parallel_mlp,
    parallel_mlp_backward,
    pp_elements_per_boundary,
    ring_all_reduce_states,
    row_parallel,
    schedule,
    simulate,
    split_columns,
    split_rows,
    tp_elements_per_layer,
    training_days,
    vocab_parallel_cross_entropy,
    zero_bubble_sizes,
)
from tests.oracles import randn

seeds = st.integers(0, 1000)
ranks = st.sampled_from([1, 2, 4])
few = settings(max_examples=25)

# -- layers on several ranks -------------------------------------------------------------------------------------------


@few
@given(seeds, ranks)
def test_slices_side_by_side_and_partials_added_up_are_the_whole(seed, t):
    x, weight = randn(3, 8, seed=seed), randn(4, 8, seed=seed + 1)
    slices = column_parallel(x, split_columns(weight, t))
    torch.testing.assert_close(torch.cat(slices, dim=-1), x @ weight.T)
    partials, total = row_parallel(list(x.chunk(t, dim=-1)), split_rows(weight, t))
    assert len(partials) == t
    torch.testing.assert_close(total, x @ weight.T)
    assert torch.equal(total, all_reduce(partials))


def mlp(seed, dtype):
    return [randn(*shape, seed=seed + k).to(dtype) for k, shape in enumerate(((2, 3, 6), (8, 6), (8, 6), (6, 8)))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@few
@given(seeds, ranks)
def test_partials_of_a_feed_forward_add_up_to_the_unsplit_layer(dtype, tolerance, seed, t):
    x, gate, up, down = mlp(seed, dtype)
    cut = parallel_mlp(x, gate, up, down, t)
    torch.testing.assert_close(cut.output, tiny_lm.swiglu(x, gate, up, down), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(cut.partials.sum(dim=0), cut.output, atol=tolerance, rtol=tolerance)
    assert [tuple(shard.shape) for shard in cut.hidden_shards] == [(2, 3, 8 // t)] * t


@few
@given(seeds, ranks)
def test_gradients_of_a_cut_feed_forward_are_those_of_autograd(seed, t):
    leaves = [value.requires_grad_() for value in mlp(seed, torch.float64)]
    grad_out = randn(2, 3, 6, seed=seed + 9)
    theirs = torch.autograd.grad(tiny_lm.swiglu(*leaves), leaves, grad_out)
    partials, grad_x, shards = parallel_mlp_backward(leaves[0].detach(), grad_out, *leaves[1:], t)
    torch.testing.assert_close(grad_x, theirs[0])
    torch.testing.assert_close(partials.sum(dim=0), theirs[0])
    for name, axis, expected in zip(("gate", "up", "down"), (0, 0, 1), theirs[1:], strict=True):
        assert len(shards[name]) == t
        torch.testing.assert_close(torch.cat(shards[name], dim=axis), expected)


def test_one_rank_gives_the_same_bits():
    x, gate, up, down = mlp(0, torch.float32)
    assert torch.equal(parallel_mlp(x, gate, up, down, 1).output, tiny_lm.swiglu(x, gate, up, down))
    logits, targets = randn(5, 8, seed=1).float(), torch.tensor([0, 7, 3, 2, 5])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(vocab_parallel_cross_entropy([logits], targets), expected)


@few
@given(seeds, st.sampled_from([(4, 4), (4, 2), (2, 2)]), st.booleans())
def test_attention_may_be_cut_at_any_head(seed, heads, causal):
    """The unsplit layer is the one on one rank; the oracles tie that to torch."""
    n_heads, groups = heads
    x = randn(2, 5, 6, seed=seed)
    weights = [randn(h * 4, 6, seed=seed + k) for k, h in enumerate((n_heads, groups, groups))]
    weights.append(randn(6, n_heads * 4, seed=seed + 5))
    whole = parallel_attention(x, *weights, n_heads, 1, is_causal=causal)[1]
    partials, output = parallel_attention(x, *weights, n_heads, 2, is_causal=causal)
    assert partials.shape == (2, 2, 5, 6)
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close(partials.sum(dim=0), whole)
    first = parallel_attention(x[:, :1], *weights, n_heads, 2, is_causal=causal)[1]
    assert torch.allclose(first, output[:, :1]) == causal  # a causal first token sees no other


@pytest.mark.parametrize("scale", [1.0, 1e4])
@few
@given(seeds, ranks)
def test_a_cut_vocabulary_gives_the_loss_of_the_whole(scale, seed, t):
    logits = (scale * randn(6, 8, seed=seed)).float().requires_grad_()
    targets = torch.randint(8, (6,), generator=torch.Generator().manual_seed(seed))
    theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    ours = vocab_parallel_cross_entropy(logits.chunk(t, dim=-1), targets)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * scale, rtol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_cut_vocabulary_takes_any_batch_of_tokens():
    logits, targets = randn(2, 3, 8, seed=1), torch.tensor([[0, 7, 3], [4, 2, 5]])
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    ours = vocab_parallel_cross_entropy(logits.chunk(4, dim=-1), targets)
    torch.testing.assert_close(ours, theirs.view(2, 3))
    with pytest.raises(ValueError, match="0..7 over 4 shards"):
        vocab_parallel_cross_entropy(logits.chunk(4, dim=-1), torch.full((2, 3), 8))


@few
@given(st.integers(1, 6), st.integers(1, 3), seeds)
def test_the_ring_adds_everything_up_in_two_rounds(t, n, seed):
    chunks = randn(t, t, n, seed=seed)
    moves = ring_all_reduce_states(chunks)
    total = chunks.sum(dim=0)
    assert moves.states.shape == (2 * (t - 1) + 1, t, t, n)
    assert torch.equal(moves.states[0], chunks)
    torch.testing.assert_close(moves.states[-1], total.expand(t, t, n))
    for rank in range(t):  # half way, each owns one
        torch.testing.assert_close(moves.states[t - 1, rank, rank], total[rank])
    assert moves.sent_elements.tolist() == [n * step for step in range(2 * t - 1)]
    assert float(moves.sent_elements[-1]) == pytest.approx(2 * (t - 1) / t * chunks[0].numel())


# -- schedules ---------------------------------------------------------------------------------------------------------

GRID = [(2, 6), (4, 4), (4, 8), (4, 16), (8, 32)]
EXACT = [(kind, p, m, 1) for p, m in [*GRID, (4, 2), (8, 3), (1, 5)] for kind in ("gpipe", "1f1b")]
EXACT += [("interleaved", p, m, v) for (p, m), v in itertools.product(GRID, (1, 2, 4)) if m % p == 0]


def line_of(kind, p, m, v=1, backward=2):
    """A rank's forward takes 1, so that of a chunk 1/v."""
    return simulate(schedule(kind, p, m, v), p * v, Fraction(1, v), Fraction(backward, v))


@pytest.mark.parametrize(("kind", "p", "m", "v"), EXACT)
def test_the_simulated_bubble_is_the_closed_form_exactly(kind, p, m, v):
    line = line_of(kind, p, m, v)
    ideal = 3 * m
    assert line.makespan - ideal == Fraction(3 * (p - 1), v)
    assert line.bubble == [Fraction(3 * (p - 1), v)] * p
    assert float(line.bubble[0] / ideal) == pytest.approx(bubble_ratio(p, m, v), rel=1e-15)
    assert float(line.bubble[0] / line.makespan) == pytest.approx(bubble_fraction(p, m, v), rel=1e-15)


@pytest.mark.parametrize(("kind", "p", "m", "v"), EXACT)
def test_everything_runs_once_in_turn_and_after_what_it_needs(kind, p, m, v):
    line = line_of(kind, p, m, v)
    ends = {one.op: one.end for one in line.ops}
    assert sorted(ends, key=str) == sorted((Op(k, s, i) for k in "FB" for s in range(p * v) for i in range(m)), key=str)
    assert len(line.ops) == 2 * p * v * m
    for rank in range(p):
        mine = [one for one in line.ops if one.rank == rank]
        assert {one.op.stage % p for one in mine} == {rank}
        assert all(before.end <= after.start for before, after in itertools.pairwise(mine))
    for one in line.ops:
        op, step = one.op, {"F": -1, "B": 1}[one.op.kind]
        if 0 <= op.stage + step < p * v:
            assert ends[Op(op.kind, op.stage + step, op.microbatch)] <= one.start
        if op.kind == "B":
            assert ends[Op("F", op.stage, op.microbatch)] <= one.start
        assert one.end - one.start == Fraction(2 if op.kind == "B" else 1, v)


@pytest.mark.parametrize(("p", "m"), [*GRID, (4, 2), (8, 3)])
def test_1f1b_keeps_few_activations_and_gpipe_all(p, m):
    assert line_of("gpipe", p, m).peak_in_flight == [m] * p
    assert line_of("1f1b", p, m).peak_in_flight == [min(p - rank, m) for rank in range(p)]


def test_interleaving_keeps_more_chunks_but_they_are_smaller():
    line = line_of("interleaved", 4, 8, 2)
    assert line.peak_in_flight == [11, 9, 7, 5]
    for p, m, v in ((4, 16, 2), (8, 16, 2), (4, 8, 4)):
        first = line_of("interleaved", p, m, v).peak_in_flight[0]
        assert first == 2 * (p - 1) + (v - 1) * p + 1
        assert first / v / p == pytest.approx(1 + (p - 1) / (p * v))
    assert schedule("interleaved", 4, 8, 1) == schedule("1f1b", 4, 8)


def test_what_is_in_flight_has_begun_and_is_not_over():
    line = line_of(
        "1f1b", 2, 2
    )  # rank 0: F0 at 0, F1 at 1, B0 at 4, B1 at 7; rank 1: F0 at 1, B0 at 2, F1 at 4, B1 at 5
    assert [(str(one.op), one.start) for one in line.ops if one.rank == 0] == [
        ("F(stage 0, microbatch 0)", 0), ("F(stage 0, microbatch 1)", 1),
        ("B(stage 0, microbatch 0)", 4), ("B(stage 0, microbatch 1)", 7),
    ]  # fmt: skip
    assert [line.in_flight(time) for time in (0, 1, 3, 4, 6, 7, 9)] == [
        [1, 0], [2, 1], [2, 1], [2, 1], [1, 1], [1, 0], [0, 0],
    ]  # fmt: skip


def test_transfers_between_ranks_take_their_time_and_those_within_a_rank_none():
    there_and_back = simulate(schedule("gpipe", 3, 1), 3, 1, 2, t_comm=10)
    assert there_and_back.makespan == 9 + 4 * 10
    alone = simulate(schedule("interleaved", 1, 2, 3), 3, 1, 2, t_comm=10)
    assert alone.makespan == 2 * 9


def test_stages_may_take_different_times():
    line = simulate(schedule("gpipe", 2, 1), 2, [1, 5], [3, 7])
    assert line.makespan == 16
    assert line.bubble == [16 - 4, 16 - 12]


def test_orders_that_wait_for_each_other_are_named():
    orders = schedule("1f1b", 2, 2)
    orders[1] = [Op("B", 1, 0), Op("F", 1, 0), Op("F", 1, 1), Op("B", 1, 1)]
    with pytest.raises(RuntimeError, match=r"deadlock.*rank 0: B\(stage 0, microbatch 0\), rank 1: B\(stage 1"):
        simulate(orders, 2, 1, 2)


@given(st.integers(2, 12), st.integers(1, 64), st.integers(1, 4))
def test_bubbles_shrink_with_microbatches_and_chunks_and_grow_with_ranks(p, m, v):
    r = bubble_ratio(p, m, v)
    assert bubble_fraction(p, m, v) == pytest.approx(r / (1 + r))
    assert bubble_ratio(p, m + 1, v) < r < bubble_ratio(p + 1, m, v)
    assert bubble_ratio(p, m, v + 1) < r
    if m >= 4 * p:  # GPipe's rule of thumb
        assert r <= 0.25
        assert bubble_fraction(p, m, v) <= 0.2
    assert bubble_ratio(1, m, v) == 0


def test_splitting_the_backward_fills_the_bubble():
    assert zero_bubble_sizes(4, 1, 1, 1) == {"1f1b": 9, "zb-h1": 3, "zb-h2": 0}
    assert zero_bubble_sizes(3, 5, 4, 3) == {"1f1b": 24, "zb-h1": 12, "zb-h2": 6}
    assert zero_bubble_sizes(4, 1, 1, 1)["1f1b"] == line_of("1f1b", 4, 8).bubble[0]


# -- what the cuts cost ------------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 4), st.integers(1, 100), st.integers(1, 64), st.integers(1, 16))
def test_four_all_reduces_a_layer_against_one_message_a_boundary(b, s, h, t):
    ring = ring_all_reduce_states(torch.zeros(t, t, 1)).sent_elements[-1] / t  # of one element of the tensor
    assert tp_elements_per_layer(b, s, h, t) == pytest.approx(4 * float(ring) * b * s * h)
    assert pp_elements_per_boundary(b, s, h) == b * s * h
    assert tp_elements_per_layer(b, s, h, t) < 8 * b * s * h  # it saturates


def test_an_all_reduce_pays_for_its_steps_and_its_bytes():
    assert all_reduce_time(0, 8, 2.0, 5.0) == 28
    assert all_reduce_time(80, 8, 0.0, 5.0) == pytest.approx(2 * 7 / 8 * 16)
    assert all_reduce_time(80, 4, 1.0, 5.0) == pytest.approx(6 + 24)
    assert all_reduce_time(80, 1, 1.0, 5.0) == 0


def test_the_papers_count_is_the_exact_one_but_for_the_final_norm():
    for name in ("gpt-2", "gpt-2-xl", "gpt-3"):
        shape = preset(name)
        sizes = (shape.num_hidden_layers, shape.hidden_size, shape.vocab_size, shape.num_positions)
        assert parameter_count(shape) == gpt_parameter_count(*sizes) == gpt_parameters(*sizes) + 2 * shape.hidden_size


def test_flops_of_an_iteration_are_four_passes_over_all_weights_and_scores():
    """Eq. 3 term by term: 24 b s h² + 4 b s² h a layer and pass, four passes; 6 b s h V for the head, three."""
    batch, s, layers, h, vocab = 3, 20, 5, 16, 70
    by_hand = 4 * layers * (24 * batch * s * h**2 + 4 * batch * s**2 * h) + 6 * batch * s * h * vocab
    assert iteration_flops(batch, s, layers, h, vocab) == pytest.approx(by_hand)


def test_training_days_count_eight_flops_a_token_and_parameter():
    assert training_days(86_400, 1e6, 8, 1e3) == pytest.approx(1e3 / 1e3 * 1e6 / 1e3)
    assert training_days(2e9, 1e9, 4, 1e12) == pytest.approx(training_days(1e9, 1e9, 2, 1e12))


def test_activations_of_a_layer_shrink_with_the_cut():
    sizes = (128, 2, 64, 8)
    whole, tensor, sequence = (
        activation_bytes_per_layer(*sizes, 4, mode) / (128 * 2 * 64) for mode in ("none", "tensor", "tensor+sequence")
    )
    scores = 5 * 8 * 128 / 64
    assert (whole, tensor, sequence) == (34 + scores, 10 + 24 / 4 + scores / 4, (34 + scores) / 4)


# -- refused input -----------------------------------------------------------------------------------------------------

W = torch.ones(6, 4)
Q, X = torch.ones(6, 6), torch.ones(1, 2, 6)
WRONG = [
    (lambda: split_columns(W, 4), r"outputs of the layer \(6\) must be divisible by t >= 1, got t 4"),
    (lambda: split_rows(W, 3), r"inputs of the layer \(4\) must be divisible by t >= 1, got t 3"),
    (lambda: split_rows(W, 0), "got t 0"),
    (lambda: all_reduce([]), "all_reduce needs the part of at least one rank"),
    (lambda: row_parallel([W], [W, W]), "got 1 slices for 2 shards"),
    (lambda: parallel_mlp(X, Q, Q, Q, 4), r"outputs of the layer \(6\) must be divisible"),
    (lambda: parallel_attention(X, Q, Q, Q, Q, 3, 2), r"query heads \(3\) and key-value heads \(3\) .* by t, got 2"),
    (lambda: parallel_attention(X, Q, Q[:2], Q[:2], Q, 3, 3), r"key-value heads \(1\) must be divisible by t, got 3"),
    (lambda: parallel_attention(X, Q, Q, Q, Q, 4, 2), "w_q must have 4 heads"),
    (lambda: parallel_attention(X, Q, Q[:3], Q[:3], Q, 3, 1), "whole ones of the same width, got 6 and 3 rows"),
    (lambda: vocab_parallel_cross_entropy([W], torch.tensor([4] * 6)), r"targets must be in 0..3 over 1 shards"),
    (lambda: vocab_parallel_cross_entropy([W], torch.tensor([-1] * 6)), r"targets must be in 0..3 over 1 shards"),
    (lambda: ring_all_reduce_states(torch.ones(2, 3, 1)), r"one chunk for each rank, got \(2, 3, 1\)"),
    (lambda: schedule("pipe", 2, 2), "kind must be one of gpipe, 1f1b, interleaved, got 'pipe'"),
    (lambda: schedule("1f1b", 2, 2, 2), "only the interleaved schedule .* got v 2 for 1f1b"),
    (lambda: schedule("interleaved", 4, 6, 2), r"microbatches \(m = 6\) divisible by ranks \(p = 4\)"),
    (lambda: schedule("gpipe", 0, 2), "must be at least 1, got 0, 2 and 1"),
    (lambda: bubble_ratio(2, 0), "must be at least 1, got 2, 0 and 1"),
    (lambda: bubble_fraction(2, 2, 0), "must be at least 1, got 2, 2 and 0"),
    (lambda: simulate(schedule("gpipe", 2, 2), 2, 0, 1), "t_f must be above 0, .* got 0"),
    (lambda: simulate(schedule("gpipe", 2, 2), 2, 1, [1]), r"t_b must be above 0, one value .* 2 stages, got \[1\]"),
    (lambda: simulate(schedule("gpipe", 2, 2), 2, 1, 1, -1), "t_comm must be at least 0, got -1"),
    (lambda: simulate(schedule("gpipe", 2, 2), 1, 1, 1), "each of 1 stages belongs to one rank, got F.stage 1"),
    (lambda: simulate([[Op("F", 0, 0)], [Op("B", 0, 0)]], 1, 1, 1), "belongs to one rank, got B.stage 0"),
    (lambda: zero_bubble_sizes(2, 1, 1, 0), "times above 0, got p 2, t_f 1, t_b 1, t_w 0"),
    (lambda: tp_elements_per_layer(1, 1, 1, 0), "t must be at least 1, got 0"),
    (lambda: pp_elements_per_boundary(1, 0, 1), "s must be at least 1, got 0"),
    (lambda: all_reduce_time(1, 2, 0, 0), "beta above 0, got 1, 0 and 0"),
    (lambda: gpt_parameters(0, 1, 1, 1), "l must be at least 1, got 0"),
    (lambda: iteration_flops(1, 1, 1, 1, 0), "V must be at least 1, got 0"),
    (lambda: training_days(1, 1, 0, 1), "must be above 0, got 1, 1, 0 and 1"),
    (lambda: Config(microbatches=6), r"microbatches \(6\) must be divisible by stages \(4\)"),
    (lambda: Config(tensor_parallel=3), "tensor_parallel must be one of 1, 2, 4, got 3"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    return trace_store.get(tensor_pipeline_parallelism)


def test_the_shown_partials_add_up_to_the_real_layer(shown):
    assert shown.max_abs_diff < 1e-6
    gate, up, down = (
        torch.cat(list(shards), dim=axis)
        for shards, axis in ((shown.w_gate_shards, 0), (shown.w_up_shards, 0), (shown.w_down_shards, 1))
    )
    state = tiny_lm.load("base").state_dict()
    assert torch.equal(up, state["model.layers.1.mlp.up_proj.weight"][:8, :8])
    torch.testing.assert_close(tiny_lm.swiglu(shown.x, gate, up, down), shown.output_reference)
    torch.testing.assert_close(shown.partials.sum(dim=0), shown.output_reference, atol=1e-6, rtol=0)
    hidden = torch.nn.functional.silu(shown.x @ gate.T) * (shown.x @ up.T)
    torch.testing.assert_close(torch.cat(list(shown.hidden_shards), dim=-1), hidden)
    torch.testing.assert_close(shown.head_partials.sum(dim=0), shown.head_output, atol=1e-5, rtol=0)
    assert max(shown.layer_diffs.values()) < 1e-4 * float(shown.output.abs().max() + 1)
    assert (
        set(shown.layer_diffs)
        == set(shown.partial_shares)
        == {f"{w} t={t}" for w in ("mlp", "attention") for t in (2, 4)}
    )
    assert min(shown.partial_shares.values()) > 0.3  # a partial is no approximation of the answer
    assert shown.layer_weights.shape == (3, 8, 8)
    assert torch.equal(shown.layer_weights[1], up)


def test_the_tiny_lms_attention_is_the_one_that_is_cut(shown):
    seen = experiment.inputs()
    _, records = tiny_lm.load("base")(seen.ids, record=("head_outputs",))
    added = records["head_outputs"][experiment.LAYER].sum(dim=1)  # (B, T, D)
    torch.testing.assert_close(shown.head_output, added[0, :6, :8], atol=1e-5, rtol=0)
    by_rank = records["head_outputs"][experiment.LAYER, 0].unflatten(0, (2, 2)).sum(dim=1)  # two heads a rank
    torch.testing.assert_close(shown.head_partials, by_rank[:, :6, :8], atol=1e-5, rtol=0)


def test_the_gap_is_that_of_a_real_gate_cut_the_wrong_way_round(shown):
    silu = torch.nn.functional.silu
    u, w, both = shown.gap_inputs
    torch.testing.assert_close(u + w, both)
    torch.testing.assert_close(shown.gap_outputs, silu(shown.gap_inputs))
    assert shown.gap_sum == pytest.approx(float(silu(u) + silu(w)), abs=1e-6)
    assert shown.nonlinear_gap == pytest.approx(abs(shown.gap_sum - float(silu(both))), abs=1e-6)
    halves = shown.gate_partials
    gate = torch.cat(list(shown.w_gate_shards))
    torch.testing.assert_close(halves[0], shown.x[:, :4] @ gate[:, :4].T)
    torch.testing.assert_close(halves.sum(dim=0), shown.x @ gate.T)
    gaps = (silu(halves[0]) + silu(halves[1]) - silu(halves.sum(dim=0))).abs()
    assert shown.nonlinear_gap == pytest.approx(float(gaps.max()), abs=1e-6)
    assert shown.nonlinear_gap > 0.1
    torch.testing.assert_close(shown.silu_outputs, silu(shown.silu_inputs))


def test_the_ring_adds_a_real_tokens_partials(shown):
    torch.testing.assert_close(shown.ring_states[-1].flatten(1), shown.output[5].expand(4, 8), atol=1e-6, rtol=0)
    assert shown.ring_sent.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert shown.ring_factors.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_the_shown_schedules_have_the_bubbles_of_the_formulas(shown):
    assert shown.makespans == {"gpipe": 33, "1f1b": 33, "interleaved": 28.5}
    assert shown.ideal == 24
    assert shown.bubble_to_ideal == {"gpipe": 0.375, "1f1b": 0.375, "interleaved": 0.1875}
    assert shown.bubble_of_total["1f1b"] == pytest.approx(9 / 33)
    assert shown.bubble_of_total["interleaved"] == pytest.approx(4.5 / 28.5)
    assert shown.bubbles["gpipe"].tolist() == [9] * 4
    assert shown.filling_microbatches.tolist() == [1, 4, 8]
    assert shown.filling_to_ideal.tolist() == [3, 0.75, 0.375]
    assert shown.filling_of_total.tolist() == pytest.approx([0.75, 3 / 7, 9 / 33])
    assert float(shown.filling_one.end.max()) == 12
    assert float(shown.filling_some.end.max()) == 21
    assert {kind: peaks.tolist() for kind, peaks in shown.peak_in_flight.items()} == {
        "gpipe": [8] * 4, "1f1b": [4, 3, 2, 1], "interleaved": [11, 9, 7, 5],
    }  # fmt: skip
    assert shown.peak_microbatches["interleaved"].tolist() == [5.5, 4.5, 3.5, 2.5]
    assert shown.curve_to_ideal[[0, 7, 63]].tolist() == [3, 0.375, 3 / 64]
    assert shown.curve_of_total[7] == pytest.approx(9 / 33)
    assert shown.curve_interleaved.isnan().tolist() == [m % 4 != 0 for m in range(1, 65)]
    assert shown.curve_interleaved[7] == 0.1875
    assert shown.curve_microbatches.tolist() == list(range(1, 65))


def test_blocks_are_the_simulated_operations(shown):
    for name, kind, v in (("gpipe", "gpipe", 1), ("one_f_one_b", "1f1b", 1), ("interleaved", "interleaved", 2)):
        blocks, line = getattr(shown, name), line_of(kind, 4, 8, v)
        assert blocks.kind == tuple(one.op.kind for one in line.ops)
        assert blocks.stage.tolist() == [one.op.stage for one in line.ops]
        assert blocks.microbatch.tolist() == [one.op.microbatch for one in line.ops]
        assert blocks.start.tolist() == [float(one.start) for one in line.ops]
        assert blocks.end.tolist() == [float(one.end) for one in line.ops]
        assert torch.equal(blocks.chunk * 4 + blocks.rank, blocks.stage)
        times = shown.times[kind]
        assert shown.in_flight[kind].T.tolist() == [line.in_flight(time) for time in times.tolist()]
        assert shown.in_flight[kind].amax(dim=1).tolist() == line.peak_in_flight
        assert (times.diff() > 0).all()
        assert set(times.tolist()) == {*blocks.start.tolist(), *blocks.end.tolist()}


def test_traffic_of_gpt_3_is_the_formula(shown):
    layer, boundary = 2 * tp_elements_per_layer(1, 2048, 12288, 8), 2 * 2048 * 12288
    assert shown.comm_bytes == {
        "tensor, a layer": layer,
        "tensor, a stage of 12 layers": 12 * layer,
        "pipeline, a boundary": 2 * boundary,
    }
    assert shown.comm_times["tensor, a layer, NVLink"] == pytest.approx(layer / 300e9)
    assert shown.comm_times["tensor, a layer, InfiniBand"] == pytest.approx(layer / 25e9)
    assert shown.comm_times["pipeline, a boundary, NVLink"] == pytest.approx(2 * boundary / 300e9)
    assert shown.comm_times["pipeline, a boundary, InfiniBand"] == pytest.approx(2 * boundary / 25e9)
    table = shown.table1
    assert (table.tensor * table.pipeline * table.data == table.gpus).all()
    assert table.billions[-1] == pytest.approx(1008.0, abs=0.05)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_a_pipeline_gives_loss_and_gradients_of_the_full_batch(kind):
    """In float64, with documents of different lengths; a microbatch counts by its tokens."""
    model = tiny_lm.copy_of(tiny_lm.load("base")).double()
    batch = tiny_lm.held_out(10).rows([0, 3, 4, 7, 8, 9])
    run = experiment.run_pipeline(model, list(batch.ids.split([1, 2, 1, 2])), kind)
    assert run.peaks == ([4, 4, 4] if kind == "gpipe" else [3, 2, 1])
    loss = next_token_loss(model(batch.ids), batch.ids, labels=batch.labels())
    loss.backward()
    assert run.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(run.gradients[name], weight.grad, atol=1e-7, rtol=1e-6)


def test_the_shown_pipeline_is_exact_up_to_rounding(shown):
    assert shown.pipeline_loss == pytest.approx(shown.full_batch_loss, abs=1e-5)
    assert shown.pipeline_grad_diff < 1e-5 * shown.pipeline_grad_max
    assert torch.equal(shown.stored, shown.stored_expected)
    assert shown.stored.tolist() == [3, 2, 1]


def test_other_settings_give_another_trace(tmp_path):
    config = Config(tensor_parallel=4, stages=2, microbatches=1, virtual_chunks=1)
    trace = trace_store.get(tensor_pipeline_parallelism, config)
    assert trace.partials.shape == (4, 6, 8)
    assert trace.filling_microbatches.tolist() == [1, 1, 1]
    assert trace.stored.tolist() == [1, 1, 1]
    assert trace.makespans == dict.fromkeys(KINDS, 6.0)
    trace.save(tmp_path / "trace.safetensors")
    assert tensor_pipeline_parallelism.Trace.load(tmp_path / "trace.safetensors").hash == trace.hash
