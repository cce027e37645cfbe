import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right

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


def test_hidden_keys_get_no_weight_at_all():
    weights = masked_softmax(randn(3, 3), causal_mask(3))
    assert weights.triu(1).abs().sum() == 0


def test_heads_split_and_merge_without_loss_and_head_h_is_block_h():
    x = randn(2, 5, 12)
    heads = split_heads(x, 3)
    torch.testing.assert_close(heads[:, 1], x[:, :, 4:8])
    torch.testing.assert_close(merge_heads(heads), x)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal_mask(3, 2), "1 <= q_len <= kv_len, got q_len 3 and kv_len 2"),
        (lambda: causal_mask(0), "got q_len 0"),
        (lambda: split_heads(randn(1, 2, 10), 4), r"the width \(10\) must be divisible by num_heads \(4\)"),
        (lambda: repeat_kv(randn(1, 1, 1, 1), 0), "n_rep must be at least 1, got 0"),
        (
            lambda: scaled_dot_product_attention(randn(1, 3, 1, 2), randn(1, 2, 1, 2), randn(1, 2, 1, 2)),
            r"num_attention_heads \(3\) must be divisible by num_key_value_heads \(2\)",
        ),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
