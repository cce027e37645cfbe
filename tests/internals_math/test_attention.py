import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from internals_math import attention, tiny_lm, trace_store
from internals_math.attention import (
    HEAD_CLASSES,
    Config,
    attention_entropy,
    attention_flops,
    attention_parameter_count,
    attention_scores,
    causal_mask,
    classify_head,
    effective_tokens,
    key_plane_coordinates,
    masked_softmax,
    merge_heads,
    multi_head_attention,
    project_qkv,
    repeat_kv,
    scaled_dot_product_attention,
    score_statistics,
    softmax_jacobian,
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
    with pytest.raises(IndexError, match="out of range"):  # the mask has no first axis of its own to look along
        masked_softmax(scores, mask, dim=0)


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


# -- a layer of heads --------------------------------------------------------------------------------------------------


def layer_of_heads(groups=4, seed=0, **how):
    """Run four heads of width 3 over 6 positions, with random weights."""
    w_q, w_o = randn(12, 10, seed=seed + 1), randn(10, 12, seed=seed + 4)
    w_k, w_v = (randn(3 * groups, 10, seed=seed + part) for part in (2, 3))
    x = randn(2, 6, 10, seed=seed)
    return multi_head_attention(x, w_q, w_k, w_v, w_o, 4, groups, **how), (x, w_q, w_k, w_v, w_o)


@given(st.sampled_from([4, 2, 1]), st.integers(0, 20))
def test_the_heads_of_a_layer_simply_add_up(groups, seed):
    output, (_, *_, w_o) = layer_of_heads(groups, seed, mask=causal_mask(6))
    torch.testing.assert_close(output.head_contributions.sum(dim=1), output.output)
    torch.testing.assert_close(merge_heads(output.per_head) @ w_o.T, output.output)
    # a head's part does not depend on what the other heads say
    alone = torch.zeros_like(output.per_head)
    alone[:, 2] = output.per_head[:, 2]
    torch.testing.assert_close(merge_heads(alone) @ w_o.T, output.head_contributions[:, 2])


def test_as_many_memories_as_heads_is_multi_head_attention_and_one_memory_is_read_by_all():
    own, (x, w_q, w_k, w_v, w_o) = layer_of_heads(4)
    torch.testing.assert_close(multi_head_attention(x, w_q, w_k, w_v, w_o, 4).output, own.output)
    shared, (x, w_q, w_k, w_v, w_o) = layer_of_heads(1)
    copied = multi_head_attention(x, w_q, w_k.repeat(4, 1), w_v.repeat(4, 1), w_o, 4)
    torch.testing.assert_close(shared.output, copied.output)
    torch.testing.assert_close(shared.weights, copied.weights)


def test_turned_by_position_the_same_words_get_other_weights():
    turn = rope_cos_sin(torch.arange(6), rope_frequencies(4, 100.0))
    weights = [randn(12, 10, seed=seed) for seed in (1, 2, 3)]
    x, w_o = randn(1, 1, 10).expand(1, 6, 10), randn(10, 12, seed=4)
    plain = multi_head_attention(x, *weights, w_o, 3)
    torch.testing.assert_close(plain.weights, torch.full_like(plain.weights, 1 / 6))
    turned = multi_head_attention(x, *weights, w_o, 3, rotary=turn)
    assert turned.weights.std() > 0.01
    torch.testing.assert_close(turned.output, plain.output)  # equal values mix to themselves


def test_a_scale_reaches_the_heads_of_a_layer():
    flat, _ = layer_of_heads(scale=0.0)
    torch.testing.assert_close(flat.weights, torch.full_like(flat.weights, 1 / 6))


# -- what weights and scores look like ---------------------------------------------------------------------------------


@given(st.integers(0, 30), st.floats(0, 30))
def test_entropy_lies_between_none_and_that_of_an_even_share(seed, sharpness):
    bits = attention_entropy(masked_softmax(sharpness * randn(7, 7, seed=seed), causal_mask(7)))
    assert (bits >= 0).all()
    assert (bits <= torch.arange(1, 8).double().log2() + 1e-9).all()
    assert bits[0] == 0


def test_keys_that_share_evenly_count_as_that_many_tokens():
    torch.testing.assert_close(effective_tokens(torch.full((3, 5), 0.2)), torch.full((3,), 5.0))
    assert effective_tokens(torch.tensor([0.0, 1.0, 0.0])) == 1


@given(st.integers(0, 30), st.floats(0, 10))
def test_the_derivative_of_a_softmax_moves_weight_and_creates_none(seed, sharpness):
    jacobian = softmax_jacobian(torch.softmax(sharpness * randn(6, seed=seed), dim=-1))
    torch.testing.assert_close(jacobian.sum(dim=-1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(jacobian, jacobian.T)
    assert (torch.linalg.eigvalsh(jacobian) >= -1e-12).all()


def test_a_sharp_softmax_stops_learning():
    scores = randn(8, seed=3)
    norms = [float(softmax_jacobian(torch.softmax(scale * scores, dim=-1)).norm()) for scale in (1, 10, 100, 1000)]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] > 0.1
    assert norms[-1] < 1e-9


@given(st.integers(1, 12), st.integers(0, 30))
def test_the_plane_of_a_query_keeps_all_that_the_score_uses(dim, seed):
    query, keys = randn(dim, seed=seed), randn(5, dim, seed=seed + 1)
    plane = key_plane_coordinates(query, keys)
    torch.testing.assert_close(plane.square().sum(dim=-1), keys.square().sum(dim=-1))
    scores = attention_scores(query[None], keys)[0]
    torch.testing.assert_close(plane[:, 0] * query.norm() / math.sqrt(dim), scores)
    assert (plane[:, 1] >= 0).all()


def test_random_scores_spread_with_the_root_of_the_width_and_the_factor_takes_it_back():
    stats = score_statistics((4, 64), 16_000, 16, torch.Generator().manual_seed(5))
    torch.testing.assert_close(stats["std_raw"], torch.tensor([2.0, 8.0]), atol=0, rtol=0.03)
    assert stats["entropy_raw"][0] > stats["entropy_raw"][1] + 1
    assert abs(stats["entropy_scaled"][0] - stats["entropy_scaled"][1]) < 0.1
    assert stats["maxw_raw"][1] > 0.8 > 0.3 > stats["maxw_scaled"][1]


def test_one_component_has_nothing_to_scale():
    stats = score_statistics((1,), 1600, 16, torch.Generator().manual_seed(5))
    assert stats["entropy_raw"] == stats["entropy_scaled"]


@pytest.mark.parametrize(
    ("columns", "share"),
    [
        ([0, 1, 2, 3, 4], {"self": 1.0}),
        ([0, 0, 1, 2, 3], {"previous": 1.0}),  # position 0 is the previous one of row 1 first
        ([0, 0, 0, 0, 0], {"previous": 0.25, "first": 0.75}),
        ([0, 1, 2, 1, 2], {"self": 0.5, "same": 0.5}),  # rows 3 and 4 look at their earlier copies
        ([0, 0, 1, 2, 1], {"previous": 0.75, "rest": 0.25}),
    ],
)
def test_a_head_is_classed_by_where_its_weight_goes(columns, share):
    weights = torch.nn.functional.one_hot(torch.tensor(columns), 5).float()
    expected = dict.fromkeys(HEAD_CLASSES, 0.0) | share
    assert classify_head(weights, torch.tensor([9, 7, 8, 7, 8])) == expected


@given(st.integers(0, 30))
def test_the_classes_of_a_head_share_its_whole_weight(seed):
    weights = masked_softmax(randn(6, 6, seed=seed), causal_mask(6))
    ids = torch.randint(3, (6,), generator=torch.Generator().manual_seed(seed))
    assert sum(classify_head(weights, ids).values()) == pytest.approx(1)


@given(st.integers(1, 6), st.sampled_from([1, 2, 4]), st.booleans())
def test_parameters_are_those_of_the_four_matrices(head_dim, groups, bias):
    sizes = [(10, 4 * head_dim), (10, groups * head_dim), (10, groups * head_dim), (4 * head_dim, 10)]
    layers = [torch.nn.Linear(*size, bias=bias) for size in sizes]
    expected = sum(weight.numel() for layer in layers for weight in layer.parameters())
    assert attention_parameter_count(10, 4, head_dim, groups, bias=bias) == expected


# -- the trace ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(attention)


@torch.no_grad()
def seen_by_the_model(prompt):
    ids = torch.tensor([tiny_lm.encode(prompt)])
    names = ("scores", "weights", "head_outputs", "residual", "k_rot")
    return tiny_lm.load("base_seed1")(ids, record=names)


def test_the_shown_head_is_the_best_at_recall_and_its_numbers_are_the_models_own(trace):
    found = tiny_lm.find_head(tiny_lm.load("base_seed1"), "object recall")
    assert (trace.layer, trace.head) == (found.layer, found.head)
    logits, record = seen_by_the_model(trace.config.prompt)
    torch.testing.assert_close(trace.all_weights, record["weights"][:, 0])
    torch.testing.assert_close(trace.weights, record["weights"][found.layer, 0, found.head])
    torch.testing.assert_close(trace.scores, record["scores"][found.layer, 0, found.head])
    torch.testing.assert_close(trace.k_rot, record["k_rot"][found.layer, 0, found.head])
    torch.testing.assert_close(trace.head_contributions, record["head_outputs"][found.layer, 0, :, -1])
    assert trace.next_prob == pytest.approx(float(logits[0, -1].softmax(dim=-1).max()))


def test_the_last_word_fetches_what_was_lost(trace):
    assert trace.tokens[-3:] == ("fox", "found", "the")
    assert trace.next_token == "cup"
    assert trace.next_prob > 0.9
    assert trace.strongest_token[trace.head] == "cup"
    assert trace.strongest_weight[trace.head] > 0.8
    assert len(set(trace.strongest_token)) == 4  # four heads, four questions
    embedded = trace.embeddings[trace.same_positions]
    assert torch.equal(embedded, embedded[-1:].expand_as(embedded))


def test_every_picture_of_the_trace_follows_from_the_one_before(trace):
    torch.testing.assert_close(trace.x @ trace.w_q.T, trace.q)
    torch.testing.assert_close(trace.x @ trace.w_v.T, trace.v)
    torch.testing.assert_close(trace.q_rot @ trace.k_rot.T, trace.scores_raw)
    torch.testing.assert_close(trace.scores_raw / math.sqrt(trace.head_dim), trace.scores)
    row = trace.scores[trace.query_position, : trace.num_visible]
    torch.testing.assert_close(trace.key_plane[: trace.num_visible, 0] * trace.score_factor, row)
    shares = trace.score_powers / trace.power_sum
    torch.testing.assert_close(shares, trace.weights[trace.query_position, : trace.num_visible])
    torch.testing.assert_close(trace.weight_sums, torch.ones(len(trace.tokens)))
    past = torch.ones(len(trace.tokens), len(trace.tokens), dtype=torch.bool).tril()
    for whole, seen in ((trace.scores, trace.scores_seen), (trace.weights, trace.weights_seen)):
        assert torch.equal(seen.isnan(), ~past)
        assert torch.equal(seen[past], whole[past])
    torch.testing.assert_close(trace.weights @ trace.v, trace.outputs)
    torch.testing.assert_close(trace.partial_outputs[-1], trace.outputs[trace.query_position])
    assert trace.partial_weights[-1] == pytest.approx(1)
    torch.testing.assert_close(trace.head_outputs[trace.head], trace.outputs[trace.query_position])
    torch.testing.assert_close(trace.residual_steps[-1], trace.residual_after)
    degrees = torch.rad2deg(torch.acos(torch.nn.functional.cosine_similarity(
        trace.q_rot[trace.query_position][None], trace.k_rot
    )))  # fmt: skip
    torch.testing.assert_close(trace.key_angle, degrees, atol=1e-3, rtol=0)


def test_the_measures_of_the_heads_are_taken_where_they_are_shown(trace):
    ids, place = torch.tensor(tiny_lm.encode(trace.config.prompt)), trace.query_position
    torch.testing.assert_close(trace.x @ trace.w_k.T, trace.k)
    turn = rope_cos_sin(torch.arange(len(ids)), tiny_lm.load("base_seed1").inv_freq().float())
    torch.testing.assert_close(apply_rotary(trace.k, *turn), trace.k_rot)
    bits = -torch.xlogy(trace.all_weights, trace.all_weights).sum(dim=-1) / math.log(2)
    torch.testing.assert_close(trace.entropy, bits, atol=1e-5, rtol=0)
    torch.testing.assert_close(trace.effective_words, 2 ** bits[trace.layer, :, place])
    assert trace.even_position == int(bits[trace.layer, trace.head].argmax())
    rows = trace.all_weights[trace.layer, :, place]
    torch.testing.assert_close(trace.strongest_weight, rows.amax(dim=1))
    assert trace.strongest_token == tuple(trace.tokens[int(row.argmax())] for row in rows)
    for key in range(trace.num_visible):
        assert float(trace.partial_weights[key]) == pytest.approx(float(trace.weights[place, : key + 1].sum()))
    for layer, head in ((0, 1), (2, 3)):
        shares = classify_head(trace.all_weights[layer, head], ids)
        assert trace.head_class[layer, head].tolist() == pytest.approx([shares[name] for name in HEAD_CLASSES])
    residual = seen_by_the_model(trace.config.prompt)[1]["residual"]
    torch.testing.assert_close(trace.residual_before, residual[trace.layer, 0, place])
    assert trace.query_plane.tolist() == pytest.approx([float(trace.q_rot[place].norm()), 0])


def test_the_loss_without_the_scale_is_that_of_queries_that_are_as_much_longer(trace):
    longer = tiny_lm.copy_of(tiny_lm.load("base_seed1")).requires_grad_(False)
    for layer in longer.model.layers:
        layer.self_attn.q_proj.weight *= math.sqrt(trace.head_dim)
    loss = tiny_lm.evaluate(longer, tiny_lm.held_out(trace.documents))
    assert trace.loss_unscaled == pytest.approx(loss, abs=1e-5)


def test_the_random_example_grows_component_by_component(trace):
    luck = torch.Generator().manual_seed(trace.config.seed)
    query, keys = torch.randn(512, generator=luck), torch.randn(16, 512, generator=luck)
    for row, width in enumerate(trace.dk_grid.tolist()):
        products = keys[:, :width] @ query[:width]
        torch.testing.assert_close(trace.example_scores_raw[row], products, atol=1e-3, rtol=1e-4)


def test_without_the_scale_the_model_gets_much_worse_and_some_heads_matter_far_more_than_others(trace):
    assert trace.loss_unscaled > trace.loss_base + 0.2
    ablated = trace.loss_head_ablated.flatten().sort().values
    assert 0 < ablated[0] < 0.02
    assert ablated[-1] > 50 * ablated[0]
    corpus, model = tiny_lm.held_out(trace.documents), tiny_lm.load("base_seed1")
    mask = torch.ones(3, 4)
    mask[2, 0] = 0
    change = tiny_lm.evaluate(model, corpus, head_mask=mask) - tiny_lm.evaluate(model, corpus)
    assert trace.loss_head_ablated[2, 0] == pytest.approx(change, abs=1e-6)


def test_a_head_is_named_only_after_what_it_spends_more_than_half_of_its_weight_on(trace):
    assert (trace.head_class.sum(dim=-1) - 1).abs().max() < 1e-5
    assert (trace.skill_scores > 0.5).all()
    assert "the word before" not in trace.skill_names  # no head of this model does that
    assert len({tuple(head) for head in trace.skill_heads.tolist()}) == len(trace.skill_names) >= 3
    for name, (layer, head), score in zip(trace.skill_names, trace.skill_heads, trace.skill_scores, strict=True):
        if name == "goes on with a song":
            scores = tiny_lm.head_scores(tiny_lm.load("base_seed1"), "induction")
            assert scores[layer, head] == pytest.approx(float(score))


def test_random_scores_grow_with_their_vectors_and_the_scaled_ones_do_not(trace):
    widths = trace.dk_grid.float()
    torch.testing.assert_close(trace.std_raw, widths.sqrt(), atol=0, rtol=0.03)
    torch.testing.assert_close(trace.example_scores_raw, trace.example_scores_scaled * widths.sqrt()[:, None])
    torch.testing.assert_close(trace.example_weights_raw, trace.example_scores_raw.softmax(dim=-1))


def test_another_question_another_scale_and_an_open_mask_change_the_head_as_they_should():
    prompt = "the fox took the key to the hen . the"
    causal = trace_store.get(attention, Config(prompt=prompt, query_index=3, layer=0, head=1))
    assert (causal.query_token, causal.num_visible) == ("took", 4)
    sharp = trace_store.get(attention, Config(prompt=prompt, query_index=3, layer=0, head=1, scale_mode="none"))
    torch.testing.assert_close(sharp.scores, causal.scores_raw)
    assert sharp.entropy[0, 1].mean() < causal.entropy[0, 1].mean()
    torch.testing.assert_close(sharp.residual_before, causal.residual_before)
    open_mask = trace_store.get(attention, Config(prompt=prompt, query_index=3, layer=0, head=1, causal=False))
    assert open_mask.num_visible == 11
    assert (open_mask.weights > 0).all()
    torch.testing.assert_close(open_mask.scores, causal.scores)


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
        (lambda: attention_parameter_count(8, 3, 2, 2), r"num_attention_heads \(3\) must be divisible .*\(2\)"),
        (lambda: attention_parameter_count(0, 1, 1), "must be at least 1, got 0, 1 and 1"),
        (
            lambda: multi_head_attention(randn(1, 2, 4), *[randn(4, 4)] * 3, randn(4, 6), 2),
            "w_o must have a column for each of the 4 rows of w_q, got 6",
        ),
        (lambda: key_plane_coordinates(torch.zeros(3), randn(2, 3).float()), "a vector of length 0"),
        (lambda: score_statistics((8, 0), 16, 4, torch.Generator()), r"at least 1, got \[8, 0\] and 4"),
        (lambda: score_statistics((), 16, 4, torch.Generator()), r"at least 1, got \[\] and 4"),
        (lambda: score_statistics((8,), 18, 4, torch.Generator()), r"multiple of num_keys \(4\), got 18"),
        (lambda: classify_head(torch.ones(1, 1), torch.tensor([1])), "got 1 and 1"),
        (lambda: classify_head(torch.ones(3, 3), torch.tensor([1, 2])), "got 3 and 2"),
        (lambda: Config(prompt="the fox found"), "prompt must have 4 to 12 words, got 3"),
        (
            lambda: Config(prompt="the fox found a", query_index=5),
            r"query_index must be in -5\.\.4 for this prompt, got 5",
        ),
        (lambda: Config(head=1), "give both layer and head or none of them, got None and 1"),
        (lambda: Config(scale_mode="half"), "scale_mode must be one of sqrt, none, got 'half'"),
    ],
)
@pytest.mark.usefixtures("plain_python")
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
