import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from internals_math.attention import (
    attention_flops,
    attention_scores,
    causal_mask,
    masked_softmax,
    merge_heads,
    project_qkv,
    repeat_kv,
    scaled_dot_product_attention,
    split_heads,
)
from internals_math.rope import apply_rotary, rope_cos_sin, rope_frequencies


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 12), st.integers(0, 12))
def test_the_causal_mask_is_aligned_to_the_newest_token(q_len, more):
    mask = causal_mask(q_len, q_len + more)
    assert mask[-1].all()
    assert mask.sum(dim=1).tolist() == [more + 1 + i for i in range(q_len)]
    assert causal_mask(1, q_len).all()
    assert torch.equal(causal_mask(q_len), torch.ones(q_len, q_len).tril().bool())


@given(st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(1, 5), st.integers(0, 4), st.integers(0, 5))
def test_attention_agrees_with_torch_for_chunks_and_groups(heads, q_len, more, seed):
    (query_heads, groups), kv_len = heads, q_len + more
    q = randn(2, query_heads, q_len, 8, seed=seed)
    k, v = randn(2, groups, kv_len, 8, seed=seed + 1), randn(2, groups, kv_len, 8, seed=seed + 2)
    oracle = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=causal_mask(q_len, kv_len), enable_gqa=query_heads != groups
    )
    output, weights = scaled_dot_product_attention(q, k, v, causal_mask(q_len, kv_len))
    torch.testing.assert_close(output, oracle)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, query_heads, q_len, dtype=torch.float64))
    assert (weights >= 0).all()


def test_our_mask_is_torch_own_lower_right_mask():
    q, k, v = randn(1, 2, 3, 4), randn(1, 2, 7, 4, seed=1), randn(1, 2, 7, 4, seed=2)
    oracle = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(3, 7))
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, causal_mask(3, 7))[0], oracle)


def test_a_scale_of_its_own_replaces_one_over_root_d():
    q, k = randn(2, 4), randn(3, 4, seed=1)
    torch.testing.assert_close(attention_scores(q, k), q @ k.T / 2)
    torch.testing.assert_close(attention_scores(q, k, scale=1.0), q @ k.T)


def test_hidden_keys_get_no_weight_at_all_and_the_first_query_sees_itself_only():
    weights = masked_softmax(randn(3, 3), causal_mask(3))
    assert weights.triu(1).abs().sum() == 0
    assert weights[0].tolist() == [1, 0, 0]


@given(st.integers(1, 8), st.integers(0, 20))
def test_masking_before_the_softmax_is_the_softmax_of_the_visible_part(visible, seed):
    scores, mask = randn(1, 8, seed=seed), torch.arange(8)[None] < visible
    expected = torch.softmax(scores[:, :visible], dim=-1)
    torch.testing.assert_close(masked_softmax(scores, mask)[:, :visible], expected)


def test_a_query_that_sees_no_key_gets_zeros_as_in_torch_and_finite_gradients():
    q, k, v = (randn(1, 2, 3, 4, seed=seed).requires_grad_() for seed in range(3))
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    output, weights = scaled_dot_product_attention(q, k, v, mask)
    assert (weights[:, :, 1] == 0).all()
    torch.testing.assert_close(output, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    for gradient in torch.autograd.grad(output.square().sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()


def test_the_softmax_may_run_over_any_axis():
    scores, mask = randn(2, 4, 4), causal_mask(4)
    expected = masked_softmax(scores.mT, mask.mT).mT
    torch.testing.assert_close(masked_softmax(scores, mask, dim=-2), expected)
    torch.testing.assert_close(masked_softmax(scores, mask, dim=1), expected)


@given(st.integers(0, 20), st.floats(-1e4, 1e4))
def test_huge_scores_and_a_constant_added_to_a_row_change_nothing(seed, constant):
    scores = randn(5, 5, seed=seed)
    torch.testing.assert_close(
        masked_softmax(scores + constant, causal_mask(5)), masked_softmax(scores, causal_mask(5))
    )
    assert torch.isfinite(masked_softmax(scores * 1e4, causal_mask(5))).all()


@given(st.integers(0, 20))
def test_the_output_is_an_average_of_the_visible_values(seed):
    q, k, v = (randn(1, 2, 6, 4, seed=3 * seed + part) for part in range(3))
    output, _ = scaled_dot_product_attention(q, k, v, causal_mask(6))
    for i in range(6):
        visible = v[:, :, : i + 1]
        assert (output[:, :, i] >= visible.amin(dim=2) - 1e-12).all()
        assert (output[:, :, i] <= visible.amax(dim=2) + 1e-12).all()


@given(st.integers(0, 5), st.integers(0, 20))
def test_a_later_token_never_changes_an_earlier_output(changed, seed):
    q, k, v = (randn(1, 2, 6, 4, seed=3 * seed + part) for part in range(3))
    before, _ = scaled_dot_product_attention(q, k, v, causal_mask(6))
    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[:, :, changed] += 1
    after, _ = scaled_dot_product_attention(*other, causal_mask(6))
    torch.testing.assert_close(after[:, :, :changed], before[:, :, :changed], atol=0, rtol=0)
    assert not torch.allclose(after[:, :, changed], before[:, :, changed])


def test_without_mask_and_position_the_order_of_the_keys_does_not_count():
    q, k, v = (randn(1, 2, 6, 4, seed=seed) for seed in range(3))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    output, weights = scaled_dot_product_attention(q, k, v)
    permuted, moved_weights = scaled_dot_product_attention(q, k[:, :, order], v[:, :, order])
    torch.testing.assert_close(permuted, output)
    torch.testing.assert_close(moved_weights, weights[..., order])
    torch.testing.assert_close(scaled_dot_product_attention(q[:, :, order], k, v)[0], output[:, :, order])


def test_equal_keys_and_a_scale_of_zero_average_and_a_huge_scale_picks():
    q, k, v = (randn(1, 1, 4, 8, seed=seed) for seed in range(3))
    mean = v.mean(dim=2, keepdim=True).expand_as(v)
    torch.testing.assert_close(scaled_dot_product_attention(q, k[:, :, :1].expand_as(k), v)[0], mean)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, scale=0.0)[0], mean)
    winner = (q @ k.mT).argmax(dim=-1)[0, 0]
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, scale=1e6)[0], v[:, :, winner])


def test_heads_split_and_merge_without_loss_and_head_h_is_block_h():
    x = randn(2, 5, 12)
    heads = split_heads(x, 3)
    torch.testing.assert_close(heads[:, 1], x[:, :, 4:8])
    torch.testing.assert_close(merge_heads(heads), x)


def test_grouped_heads_are_those_of_llama():
    k = randn(2, 2, 3, 4)
    assert torch.equal(repeat_kv(k, 3), modeling_llama.repeat_kv(k, 3))


@torch.no_grad()
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_projection_rotation_and_attention_together_are_llamas_attention_layer(groups):
    parameters = {"rope_type": "default", "rope_theta": 100.0}
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=groups, rope_parameters=parameters,
        attn_implementation="eager",
    )  # fmt: skip
    layer = modeling_llama.LlamaAttention(config, layer_idx=0).eval()
    x = randn(2, 6, 32).float()
    rotary = modeling_llama.LlamaRotaryEmbedding(config)(x, torch.arange(6)[None])
    blocked = torch.zeros(1, 1, 6, 6).masked_fill(~causal_mask(6), float("-inf"))
    expected, expected_weights = layer(x, position_embeddings=rotary, attention_mask=blocked)

    projections = (layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight)
    q, k, v = project_qkv(x, *projections, num_heads=4, num_key_value_heads=groups)
    turn = rope_cos_sin(torch.arange(6), rope_frequencies(8, 100.0).float())
    output, weights = scaled_dot_product_attention(apply_rotary(q, *turn), apply_rotary(k, *turn), v, causal_mask(6))
    torch.testing.assert_close(merge_heads(output) @ layer.o_proj.weight.T, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(weights, expected_weights, atol=1e-6, rtol=0)


def test_projection_uses_weights_as_nn_linear_does():
    x = randn(1, 4, 6)
    w_q, w_k, w_v = (randn(rows, 6, seed=rows) for rows in (8, 4, 4))
    q, k, v = project_qkv(x, w_q, w_k, w_v, num_heads=4, num_key_value_heads=2)
    torch.testing.assert_close(merge_heads(q), torch.nn.functional.linear(x, w_q))
    torch.testing.assert_close(merge_heads(k), torch.nn.functional.linear(x, w_k))
    torch.testing.assert_close(merge_heads(v), torch.nn.functional.linear(x, w_v))
    assert (q.shape, k.shape, v.shape) == ((1, 4, 4, 2), (1, 2, 4, 2), (1, 2, 4, 2))


def test_query_heads_of_a_group_lie_next_to_each_other():
    k = randn(1, 2, 3, 4)
    repeated = repeat_kv(k, 2)
    torch.testing.assert_close(repeated[:, 0], repeated[:, 1])
    torch.testing.assert_close(repeated[:, 2], k[:, 1])


def test_attention_flops_count_both_products_of_every_head():
    assert attention_flops(3, 5, 2, 8) == 2 * 2 * (3 * 5 * 8) * 2
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(randn(1, 2, 3, 8), randn(1, 2, 5, 8), randn(1, 2, 5, 8))
    assert counter.get_total_flops() == attention_flops(3, 5, 2, 8)


def attend(query, key, value=None):
    """Attention over random tensors of these shapes."""
    return scaled_dot_product_attention(randn(*query), randn(*key), randn(*(value or key)))


def project(w_q, w_k, w_v=None):
    """Four query heads and two key-value heads from weights of these shapes."""
    return project_qkv(randn(1, 3, 4), randn(*w_q), randn(*w_k), randn(*(w_v or w_k)), 4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_mask(3, 2), "1 <= q_len <= kv_len, got q_len 3 and kv_len 2"),
        (lambda: causal_mask(0), "got q_len 0"),
        (lambda: split_heads(randn(1, 2, 10), 4), r"the width \(10\) must be divisible by num_heads \(4\)"),
        (lambda: split_heads(randn(1, 2, 10), 0), r"by num_heads \(0\)"),
        (lambda: repeat_kv(randn(1, 1, 1, 1), 0), "n_rep must be at least 1, got 0"),
        (lambda: attend((1, 3, 1, 2), (1, 2, 1, 2)), r"num_attention_heads \(3\) must be divisible .*\(2\)"),
        (lambda: attend((1, 2, 1, 4), (1, 2, 1, 2)), "query and key need the same head_dim, got 4 and 2"),
        (lambda: attend((1, 2, 1, 2), (1, 2, 3, 2), (1, 2, 4, 2)), "got 3 keys in 2 heads and 4 values in 2"),
        (lambda: attend((1, 2, 1, 2), (1, 2, 3, 2), (1, 1, 3, 2)), "got 3 keys in 2 heads and 3 values in 1"),
        (
            lambda: masked_softmax(randn(2, 2), torch.zeros(2, 2)),
            "a mask must be boolean with True = visible, got torch.float32",
        ),
        (lambda: project((8, 4), (3, 4)), "w_k must have 2 heads of 2 rows, got 3 rows"),
        (lambda: project((8, 4), (4, 4), (6, 4)), "w_v must have 2 heads of 2 rows, got 6 rows"),
        (lambda: project((9, 4), (4, 4)), "w_q must have 4 heads of 2 rows, got 9 rows"),
        (lambda: attention_flops(0, 1, 1, 1), "must be at least 1, got 0, 1, 1 and 1"),
    ],
)
@pytest.mark.usefixtures("plain_python")
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
