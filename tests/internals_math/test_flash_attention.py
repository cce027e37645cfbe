import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import flash_attention as flash
from internals_math import tiny_lm, trace_store
from internals_math.attention import causal_mask
from internals_math.flash_attention import (
    Config,
    attention_matmul_flops,
    block_sizes,
    extra_memory_elements,
    flash_attention_backward,
    flash_attention_forward,
    hbm_accesses_flash1,
    hbm_accesses_flash2,
    hbm_accesses_standard,
    standard_attention,
)
from tests.oracles import randn

ORDERS = ("q_outer", "kv_outer")
sizes = st.integers(1, 13)


def inputs(*batch, q_len=11, kv_len=11, dtype=torch.float64):
    return tuple(randn(*batch, n, 8, seed=s).to(dtype) for n, s in ((q_len, 1), (kv_len, 2), (kv_len, 3)))


@pytest.fixture(scope="module")
def shown():
    return trace_store.get(flash)


# -- forward -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(sizes, sizes, st.booleans(), st.sampled_from(ORDERS))
def test_any_tiles_in_either_order_give_the_output_of_standard_attention(block_q, block_k, causal, order):
    q, k, v = inputs(2, 3)
    ours = flash_attention_forward(q, k, v, block_q, block_k, causal, order=order)
    output, scores, _ = standard_attention(q, k, v, causal)
    torch.testing.assert_close(ours.output, output, atol=1e-12, rtol=0)
    if causal:
        scores = scores.masked_fill(~causal_mask(11), -math.inf)
    torch.testing.assert_close(ours.logsumexp, torch.logsumexp(scores, dim=-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_float32_stays_within_its_rounding(order):
    q, k, v = inputs(4, q_len=50, kv_len=50, dtype=torch.float32)
    ours = flash_attention_forward(q, k, v, 7, 9, causal=True, order=order).output
    torch.testing.assert_close(ours, standard_attention(q, k, v, True)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_fewer_queries_than_keys_are_the_newest_ones(order):
    q, k, v = inputs(2, q_len=3)
    ours = flash_attention_forward(q, k, v, 2, 4, causal=True, order=order)
    torch.testing.assert_close(ours.output, standard_attention(q, k, v, True)[0], atol=1e-12, rtol=0)


@given(st.permutations(range(11)))
def test_the_order_in_which_keys_come_does_not_matter(order):
    q, k, v = inputs()
    usual, other = (flash_attention_forward(q, k[p], v[p], 4, 3).output for p in (list(range(11)), list(order)))
    torch.testing.assert_close(other, usual, atol=1e-12, rtol=0)


def test_values_may_have_another_width_than_keys():
    q, k, v = inputs(q_len=5, kv_len=5)
    ours = flash_attention_forward(q, k, v[:, :3], 2, 2)
    torch.testing.assert_close(ours.output, standard_attention(q, k, v[:, :3])[0], atol=1e-12, rtol=0)


def test_a_scale_of_our_own_replaces_the_root_of_the_width():
    q, k, v = inputs()
    ours = flash_attention_forward(q, k, v, 4, 4, scale=1.0).output
    torch.testing.assert_close(ours, torch.softmax(q @ k.T, dim=-1) @ v, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_huge_scores_stay_finite_and_right(order):
    q, k, v = inputs()
    q = q * 1e4
    ours = flash_attention_forward(q, k, v, 3, 4, causal=True, order=order)
    assert ours.output.isfinite().all()
    assert ours.logsumexp.isfinite().all()
    torch.testing.assert_close(ours.output, standard_attention(q, k, v, True)[0], atol=1e-9, rtol=0)


def test_a_constant_on_all_scores_of_a_row_moves_only_its_logsumexp():
    q, k, v = inputs()
    extra = torch.ones(11, 1, dtype=torch.float64)
    shifted_q, shifted_k = torch.cat([q, 5 * extra], 1), torch.cat([k, extra], 1)  # adds 5 to every q · k
    plain = flash_attention_forward(q, k, v, 4, 4, scale=1.0)
    shifted = flash_attention_forward(shifted_q, shifted_k, v, 4, 4, scale=1.0)
    torch.testing.assert_close(shifted.output, plain.output, atol=1e-12, rtol=0)
    torch.testing.assert_close(shifted.logsumexp, plain.logsumexp + 5, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
@given(sizes, sizes, st.booleans())
def test_maxima_never_fall_factors_stay_below_one_and_sums_above(order, block_q, block_k, causal):
    q, k, v = inputs()
    steps = flash_attention_forward(q, k, v, block_q, block_k, causal, order=order, record=True).steps
    assert steps
    last = {}
    for step in steps:
        assert ((step.rescale >= 0) & (step.rescale <= 1)).all()
        seen = step.running_max > -math.inf
        assert (step.running_sum[seen] >= 1).all()
        if step.tile_i in last:
            assert (step.running_max >= last[step.tile_i].running_max).all()
        last[step.tile_i] = step


def test_a_step_holds_what_the_keys_so_far_give():
    q, k, v = inputs()
    steps = flash_attention_forward(q, k, v, 4, 3, record=True).steps
    assert steps
    for step in steps:
        rows, keys = slice(4 * step.tile_i, 4 * step.tile_i + 4), slice(0, 3 * step.tile_j + 3)
        scores = q[rows] @ k[keys].T / math.sqrt(8)
        top = scores.amax(dim=1)
        weights = torch.exp(scores - top[:, None])
        torch.testing.assert_close(step.running_max, top)
        torch.testing.assert_close(step.running_sum, weights.sum(dim=1))
        torch.testing.assert_close(step.acc, weights @ v[keys])
        torch.testing.assert_close(step.weights, weights[:, 3 * step.tile_j :])
        torch.testing.assert_close(step.scores, scores[:, 3 * step.tile_j :])
        torch.testing.assert_close(step.kept_sum, weights[:, : 3 * step.tile_j].sum(dim=1))
        torch.testing.assert_close(step.kept_acc, weights[:, : 3 * step.tile_j] @ v[: 3 * step.tile_j])


@pytest.mark.parametrize(("block", "tiles"), [(4, 3), (3, 4), (2, 6), (1, 12)])
@pytest.mark.parametrize("order", ORDERS)
def test_causal_attention_skips_the_tiles_above_the_diagonal(block, tiles, order):
    q, k, v = inputs(q_len=12, kv_len=12)
    steps = flash_attention_forward(q, k, v, block, block, causal=True, order=order, record=True).steps
    visited = [(step.tile_i, step.tile_j) for step in steps or ()]
    assert len(set(visited)) == len(visited) == tiles**2 - tiles * (tiles - 1) // 2
    assert all(j <= i for i, j in visited)


def test_each_order_keeps_its_own_tile_in_the_outer_loop():
    q, k, v = inputs(q_len=12, kv_len=12)
    visits = {
        order: [
            (s.tile_i, s.tile_j) for s in flash_attention_forward(q, k, v, 6, 6, order=order, record=True).steps or ()
        ]
        for order in ORDERS
    }
    assert visits == {"q_outer": [(0, 0), (0, 1), (1, 0), (1, 1)], "kv_outer": [(0, 0), (1, 0), (0, 1), (1, 1)]}


def test_sixteen_bit_inputs_keep_float32_statistics():
    q, k, v = inputs(dtype=torch.float32)
    ours = flash_attention_forward(q.bfloat16(), k.bfloat16(), v.bfloat16(), 3, 3)
    assert ours.output.dtype == torch.bfloat16
    assert ours.logsumexp.dtype == torch.float32
    exact = standard_attention(*(part.bfloat16().double() for part in (q, k, v)))[0]
    torch.testing.assert_close(ours.output.double(), exact, atol=2e-2, rtol=0)  # bfloat16 has 8 bits


# -- backward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blocks", [(1, 1), (3, 4), (11, 5), (4, 20)])
def test_recomputed_gradients_are_those_of_autograd(dtype, tolerance, causal, blocks):
    parts = [part.requires_grad_() for part in inputs(2, dtype=dtype)]
    grad_output = randn(2, 11, 8, seed=4).to(dtype)
    expected = torch.autograd.grad(standard_attention(*parts, causal)[0], parts, grad_output)
    q, k, v = (part.detach() for part in parts)
    forward = flash_attention_forward(q, k, v, *blocks, causal)
    ours = flash_attention_backward(q, k, v, forward.output, forward.logsumexp, grad_output, *blocks, causal)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=0)


def test_one_dot_product_a_row_replaces_the_sum_over_all_weights():
    q, k, v = inputs()
    grad_output = randn(11, 8, seed=4)
    output, _, weights = standard_attention(q, k, v)
    by_weights = (weights * (grad_output @ v.T)).sum(dim=1)
    torch.testing.assert_close((grad_output * output).sum(dim=1), by_weights, atol=1e-12, rtol=0)


def test_the_backward_pass_makes_the_final_weights_again_from_one_number_a_row():
    q, k, v = inputs()
    forward = flash_attention_forward(q, k, v, 4, 4, causal=True)
    weights = standard_attention(q, k, v, True)[2]
    steps = []
    flash_attention_backward(
        q, k, v, forward.output, forward.logsumexp, torch.ones_like(q), 4, 4, causal=True, steps=steps
    )
    for step in steps:
        rows, columns = slice(4 * step.tile_i, 4 * step.tile_i + 4), slice(4 * step.tile_j, 4 * step.tile_j + 4)
        torch.testing.assert_close(step.weights, weights[rows, columns])


# -- traffic and memory ------------------------------------------------------------------------------------------------


@given(st.integers(1, 25), sizes, sizes)
def test_a_run_moves_what_the_closed_forms_say(length, block_q, block_k):
    q, k, v = inputs(q_len=length, kv_len=length)
    second = flash_attention_forward(q, k, v, block_q, block_k, record=True)
    assert second.io.total == hbm_accesses_flash2(length, 8, block_q)
    assert second.steps
    assert second.steps[-1].reads + second.steps[-1].writes == second.io.total
    first = flash_attention_forward(q, k, v, block_q, block_k, order="kv_outer")
    assert first.io.total == hbm_accesses_flash1(length, 8, block_k)


def test_outputs_leave_once_with_queries_outside_and_every_time_with_keys_outside():
    q, k, v = inputs(q_len=12, kv_len=12)
    second, first = (flash_attention_forward(q, k, v, 4, 4, order=order).io for order in ORDERS)
    assert second.writes == 12 * 8 + 12
    assert first.writes == (12 * 8 + 2 * 12) * (1 + 3)


@given(st.integers(1, 300), st.integers(1, 64))
def test_one_tile_for_all_costs_a_few_strips_and_bigger_tiles_never_more(length, dim):
    assert hbm_accesses_flash1(length, dim, length) == 6 * length * dim + 6 * length
    assert hbm_accesses_flash2(length, dim, length) == 4 * length * dim + length
    for count in (hbm_accesses_flash1, hbm_accesses_flash2):
        assert count(length, dim, 8) >= count(length, dim, 9)


def test_doubling_the_text_quadruples_traffic_but_only_doubles_flash_memory():
    n = 2**14
    assert hbm_accesses_standard(2 * n, 64) / hbm_accesses_standard(n, 64) == pytest.approx(4, rel=0.01)
    assert hbm_accesses_flash1(2 * n, 64, 128) / hbm_accesses_flash1(n, 64, 128) == pytest.approx(4, rel=0.02)
    assert hbm_accesses_flash2(2 * n, 64, 128) / hbm_accesses_flash2(n, 64, 128) == pytest.approx(4, rel=0.02)
    growth = {kind: extra_memory_elements(2 * n, kind) / extra_memory_elements(n, kind)
              for kind in ("standard", "flash1", "flash2")}  # fmt: skip
    assert growth == {"standard": 4, "flash1": 2, "flash2": 2}


def test_too_small_tiles_move_more_than_the_standard_algorithm():
    assert hbm_accesses_flash1(1024, 64, 16) > hbm_accesses_standard(1024, 64) > hbm_accesses_flash1(1024, 64, 128)


@given(st.integers(1, 128), st.integers(4, 2000))
def test_four_tiles_and_their_scores_fit_where_they_should(dim, factor):
    elements = factor * dim
    block_q, block_k = block_sizes(elements, dim)
    assert block_q <= min(block_k, dim)
    assert 4 * dim * (block_k - 1) < elements  # a tile is a quarter, rounded up by at most one row


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flash_attention_forward(*inputs(), 0, 4), "block_q and block_k must be at least 1, got 0 and 4"),
        (lambda: flash_attention_forward(*inputs(), 4, -1), "block_q and block_k must be at least 1, got 4 and -1"),
        (
            lambda: flash_attention_forward(*inputs(kv_len=7), 4, 4, causal=True),
            "causal attention needs at least as many keys as queries, got 7 and 11",
        ),
        (
            lambda: flash_attention_forward(randn(3, 4, seed=0), *inputs()[1:], 4, 4),
            "query and key need the same head_dim, got 4 and 8",
        ),
        (
            lambda: flash_attention_forward(*inputs()[:2], randn(5, 8, seed=0), 4, 4),
            "each key needs its value, got 11 keys and 5 values",
        ),
        (
            lambda: flash_attention_forward(*inputs(), 4, 4, order="rows"),
            "order must be q_outer or kv_outer, got 'rows'",
        ),
        (
            lambda: flash_attention_backward(*inputs(), inputs()[0], torch.zeros(5), inputs()[0], 4, 4),
            r"logsumexp \(11,\), got \(11, 8\), \(11, 8\) and \(5,\)",
        ),
        (lambda: block_sizes(255, 64), "sram_elements must be at least 256, .* got 255"),
        (lambda: block_sizes(255, 0), "head_dim must be at least 1, got 0"),
        (lambda: hbm_accesses_standard(0, 8), "seq_len must be at least 1, got 0"),
        (lambda: hbm_accesses_flash1(8, 8, 0), "block_k must be at least 1, got 0"),
        (lambda: hbm_accesses_flash2(8, 8, 0), "block_q must be at least 1, got 0"),
        (lambda: extra_memory_elements(8, "paged"), "algorithm must be one of standard, flash1, flash2, got 'paged'"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- what the video shows ----------------------------------------------------------------------------------------------


def test_the_tiny_model_attends_by_tiles_with_the_same_loss(shown):
    assert shown.loss_flash == pytest.approx(shown.loss_standard, abs=1e-6)
    assert shown.max_abs_diff_logits < 1e-3
    assert shown.loss_flash_bfloat16 == pytest.approx(shown.loss_standard, abs=1e-3)
    corpus = tiny_lm.held_out(flash.HELD_OUT)
    assert shown.loss_standard == pytest.approx(tiny_lm.evaluate(tiny_lm.load("base"), corpus))


def test_the_shown_head_is_the_models_own(shown):
    model = tiny_lm.load("base")
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:12]])
    _, seen = model(ids, record=("q_rot", "k_rot", "v", "weights"))
    layer, head = shown.config.layer, shown.config.head
    for ours, name in ((shown.query, "q_rot"), (shown.key, "k_rot"), (shown.value, "v"), (shown.weights, "weights")):
        torch.testing.assert_close(ours.nan_to_num(), seen[name][layer, 0, head], atol=1e-6, rtol=0)


def test_both_algorithms_gave_the_same_output_and_gradients(shown):
    assert 0 <= shown.max_abs_diff < 1e-5
    torch.testing.assert_close(shown.difference, (shown.output - shown.flash_output).abs())
    assert (shown.grad_error < 1e-6).all()
    assert shown.grad_query.abs().max() > 1e-4  # not a comparison of nothing with nothing


def test_the_bytes_of_the_video_are_those_of_the_algorithms(shown):
    assert int(shown.standard_bytes[-1]) == 4 * hbm_accesses_standard(12, 8)
    # causal: three query tiles need one, two and three pairs of key and value tiles of 2 · 4 · 8 numbers
    assert int(shown.flash_bytes[-1]) == 4 * (12 * 8 + (1 + 2 + 3) * 64 + 12 * 8 + 12)
    assert (shown.flash_bytes.diff() > 0).all()
    assert shown.io_chip_block == 384


def test_the_row_of_the_video_streams_to_its_softmax(shown):
    torch.testing.assert_close(shown.row_softmax, torch.softmax(shown.scores[-1], dim=0))
    assert (shown.row_rescale[1:] < 1).sum() >= 3  # a video about corrections needs some
    torch.testing.assert_close(shown.row_terms.nan_to_num().sum(dim=1), shown.row_sum)
    torch.testing.assert_close(shown.row_kept[1:], shown.row_sum[:-1] * shown.row_rescale[1:])
    assert shown.half_naive.isinf().any()
    assert shown.half_safe.isfinite().all()


@pytest.mark.parametrize(
    "config", [Config(num_tokens=9, block_q=4, block_k=2), Config(block_q=8, block_k=1), Config(causal=False)]
)
def test_other_tiles_are_recorded_with_gaps_where_a_tile_is_cut_off(config):
    shown = flash.trace(config)
    steps, r, c = shown.tile_scores.shape
    assert (r, c) == (config.block_q, config.block_k)
    tiles = -(-config.num_tokens // r) * -(-config.num_tokens // c)
    assert steps + len(shown.skipped_i) == tiles
    expected = (shown.tile_scores - shown.running_max[:, :, None]).exp()  # NaN where nothing is visible, not 0
    torch.testing.assert_close(shown.tile_weights, expected, equal_nan=True)
    for step in range(steps):
        height = min(r, config.num_tokens - r * int(shown.tile_i[step]))
        assert shown.running_sum[step].isfinite().sum() == height
        assert shown.acc[step].isfinite().all(dim=1).sum() == height


def test_the_recipe_for_a_larger_text_doubles_strips_and_quadruples_matrices(shown):
    strips, matrices = shown.wall_bytes.T
    assert (strips[1:] == 2 * strips[:-1]).all()
    assert (matrices[1:] == 4 * matrices[:-1]).all()
    assert matrices[0] == 2 * 12 * 12 * 4
    for longer, ours in (
        (shown.wall_query[:12], shown.query), (shown.wall_key[:12], shown.key), (shown.wall_value[:12], shown.value),
        (shown.wall_weights[:12, :12], shown.weights.nan_to_num()),
    ):  # fmt: skip
        torch.testing.assert_close(longer, ours, equal_nan=True, atol=1e-5, rtol=0)
    assert shown.wall_scores.shape == (48, 48)
    assert shown.wall_scores.isfinite().all()


def test_the_paper_setting_counts_a_fifth_backward_product(shown):
    forward = 16 * 64 * attention_matmul_flops(1024, 1024, 64)
    assert shown.paper_flops.tolist() == [forward * 3, forward * 7 // 2]
