import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import grouped_query_attention as gqa
from internals_math import tiny_lm, trace_store
from internals_math.attention import causal_mask, scaled_dot_product_attention
from internals_math.grouped_query_attention import (
    Config,
    convert_mha_to_gqa,
    convert_model,
    converted_model,
    decode_attention_intensity,
    group_of_head,
    grouped_query_attention,
    head_similarity,
    kv_bytes_per_device,
    kv_cache_bytes_per_token,
    repeat_kv,
    uptrain,
)
from internals_math.kv_cache import KVCache, greedy_generate
from internals_math.multi_query_attention import multi_query_attention
from tests.oracles import randn

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 4), st.integers(1, 5))
IDS = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(gqa)


@pytest.fixture(scope="module")
def base():
    return tiny_lm.load("base")


# -- attention ---------------------------------------------------------------------------------------------------------


@given(shapes, st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)]))
def test_it_is_multi_head_attention_over_repeated_heads(shape, precision):
    (groups, size, queries, more, width), (dtype, tolerance) = shape, precision
    query = randn(2, groups * size, queries, width, seed=1, dtype=dtype)
    key, value = (randn(2, groups, queries + more, width, seed=seed, dtype=dtype) for seed in (2, 3))
    expected = scaled_dot_product_attention(
        query, repeat_kv(key, size), repeat_kv(value, size), causal_mask(queries, queries + more)
    )
    torch.testing.assert_close(grouped_query_attention(query, key, value), expected, atol=tolerance, rtol=0)


def test_one_group_is_multi_query_attention():
    query, key, value = randn(3, 4, 5, 8, seed=1), randn(3, 1, 7, 8, seed=2), randn(3, 1, 7, 6, seed=3)
    expected = multi_query_attention(query, key[:, 0], value[:, 0])
    torch.testing.assert_close(grouped_query_attention(query, key, value), expected)


def test_dealing_the_memories_out_in_turn_is_something_else():
    query, key, value = randn(1, 4, 6, 8, seed=1), randn(1, 2, 6, 8, seed=2), randn(1, 2, 6, 8, seed=3)
    tiled, _ = scaled_dot_product_attention(query, key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1), causal_mask(6))
    ours, _ = grouped_query_attention(query, key, value)
    wrong = (ours - tiled).abs().amax(dim=(0, 2, 3))
    assert (wrong[1:3] > 0.5).all()
    torch.testing.assert_close(ours[:, [0, 3]], tiled[:, [0, 3]])


def test_permuting_heads_inside_a_group_permutes_the_outputs_alone():
    query, key, value = randn(4, 6, 8, seed=1), randn(2, 6, 8, seed=2), randn(2, 6, 8, seed=3)
    output, _ = grouped_query_attention(query, key, value)
    swapped, _ = grouped_query_attention(query[[1, 0, 2, 3]], key, value)
    assert torch.equal(swapped, output[[1, 0, 2, 3]])
    across, _ = grouped_query_attention(query[[2, 1, 0, 3]], key, value)
    assert (across - output[[2, 1, 0, 3]]).abs().max() > 0.5


def test_the_gradient_is_the_numerical_one():
    inputs = [randn(4, 3, 4, seed=1), randn(2, 5, 4, seed=2), randn(2, 5, 4, seed=3)]
    for tensor in inputs:
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda q, k, v: grouped_query_attention(q, k, v), inputs)


def test_scale_and_mask_are_optional():
    query, key, value = randn(4, 6, 4, seed=1), randn(2, 3, 4, seed=2), randn(2, 3, 4, seed=3)
    output, weights = grouped_query_attention(query, key, value, is_causal=False)
    assert (weights > 0).all()
    torch.testing.assert_close(grouped_query_attention(query, key, value, is_causal=False, scale=0.5)[0], output)


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        (((6, 5, 8), (4, 5, 8), (4, 5, 8)), {}, r"num_attention_heads \(6\) must be divisible by .* \(4\)"),
        (((5, 8), (5, 8), (5, 8)), {}, "need a head axis"),
        (((4, 5, 8), (2, 5, 6), (2, 5, 6)), {}, "same head_dim, got 8 and 6"),
        (((4, 5, 8), (2, 5, 8), (2, 4, 8)), {}, "each key its value"),
        (((2, 4, 5, 8), (3, 2, 5, 8), (3, 2, 5, 8)), {}, "same batch axes"),
        (((4, 5, 8), (2, 3, 8), (2, 3, 8)), {}, "at least as many keys as queries"),
        (((4, 5, 8), (2, 5, 8), (2, 5, 8)), {"scale": math.inf}, "scale must be a positive number, got inf"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(plain_python, sizes, arguments, message):
    with pytest.raises(ValueError, match=message):
        grouped_query_attention(*(torch.zeros(*size) for size in sizes), **arguments)


# -- converting --------------------------------------------------------------------------------------------------------


def test_a_head_is_a_block_of_rows():
    weight = torch.arange(4).repeat_interleave(3)[:, None].expand(-1, 5).double()  # rows carry their head's number
    assert convert_mha_to_gqa(weight, 4, 2)[:, 0].tolist() == [0.5] * 3 + [2.5] * 3
    assert convert_mha_to_gqa(weight, 4, 2, "first")[:, 0].tolist() == [0] * 3 + [2] * 3
    assert convert_mha_to_gqa(weight[:, 0], 4, 1).tolist() == [1.5] * 3  # a bias


@pytest.mark.parametrize("method", ["mean", "first"])
def test_as_many_groups_as_heads_change_nothing(method):
    weight = randn(12, 7, seed=1)
    assert torch.equal(convert_mha_to_gqa(weight, 4, 4, method), weight)


def test_averaging_in_two_stages_is_averaging_at_once_and_linear():
    one, two = randn(16, 7, seed=1), randn(16, 7, seed=2)
    twice = convert_mha_to_gqa(convert_mha_to_gqa(one, 8, 4), 4, 2)
    torch.testing.assert_close(twice, convert_mha_to_gqa(one, 8, 2))
    both = convert_mha_to_gqa(2 * one - two, 8, 2)
    torch.testing.assert_close(both, 2 * convert_mha_to_gqa(one, 8, 2) - convert_mha_to_gqa(two, 8, 2))


def test_random_heads_have_the_spread_that_was_asked_for():
    generator = torch.Generator().manual_seed(0)
    drawn = convert_mha_to_gqa(torch.zeros(400, 100), 4, 2, "random", std=0.3, generator=generator)
    assert drawn.shape == (200, 100)
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2, "median"), "method must be one of mean, first, random, got 'median'"),
        ((4, 3), r"num_attention_heads \(4\) must be divisible by num_key_value_heads \(3\)"),
        ((5, 1), "must have rows for 5 heads, got 12 rows"),
        ((4, 2, "random"), "random heads need the std > 0 of the first initialization, got None"),
    ],
)
def test_impossible_conversions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_mha_to_gqa(torch.zeros(12, 3), *arguments)


def test_a_model_whose_group_mates_are_equal_keeps_its_logits(base):
    state = dict(base.state_dict())
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = weight[[*range(8), *range(8), *range(16, 24), *range(16, 24)]]
    equal = tiny_lm.copy_of(base, state).requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(converted_model(equal, 2)(IDS), equal(IDS), atol=1e-4, rtol=0)


def test_conversion_touches_keys_and_values_alone(base):
    before = base.state_dict()
    after = convert_model(before, 4, 2)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{layer}.self_attn.{which}_proj.weight" for layer in range(3) for which in ("k", "v")
    }


def test_it_is_the_pooling_that_the_variants_of_the_model_start_from(base):
    pooled = tiny_lm.pool_key_value_heads(base.state_dict(), base.config, 2)
    for name, weight in convert_model(base.state_dict(), 4, 2).items():
        assert torch.equal(weight, pooled[name])


@torch.no_grad()
def test_keys_of_the_first_layer_are_averages_after_turning_too(base):
    shared = converted_model(base, 2)
    keys = [model(IDS, record=("k_rot",))[1]["k_rot"][:, 0] for model in (base, shared)]
    averaged = keys[0].unflatten(1, (2, 2)).mean(dim=2)
    torch.testing.assert_close(keys[1][0], averaged[0], atol=1e-5, rtol=0)
    assert (keys[1][1] - averaged[1]).abs().max() > 0.1  # deeper layers read something else


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_cache_holds_the_groups_and_decoding_with_it_changes_nothing(base, groups):
    model = converted_model(base, groups).eval()
    with_cache = greedy_generate(model, IDS[:, :8], 12, use_cache=True)
    without = greedy_generate(model, IDS[:, :8], 12, use_cache=False)
    torch.testing.assert_close(with_cache.step_logits, without.step_logits, atol=1e-4, rtol=0)
    assert isinstance(with_cache.cache, KVCache)
    keys = with_cache.cache.keys[0]
    assert keys is not None
    assert keys.shape == (1, groups, 19, 8)
    assert with_cache.cache.nbytes == 19 * kv_cache_bytes_per_token(3, groups, 8, bytes_per_element=4)


@given(st.integers(1, 64), st.integers(1, 8))
def test_the_work_per_byte_is_the_group_size_in_16_bit_and_half_of_it_in_32(groups, size):
    assert decode_attention_intensity(groups * size, groups) == size
    assert decode_attention_intensity(groups * size, groups, 4) == size / 2


def test_more_devices_save_bytes_only_as_long_as_there_are_heads_to_deal_out():
    per_device = [kv_bytes_per_device(80, 8, 128, devices) for devices in (1, 2, 4, 8, 16, 32)]
    assert per_device == [327_680, 163_840, 81_920, 40_960, 40_960, 40_960]
    with pytest.raises(ValueError, match=r"num_key_value_heads \(8\) and tensor_parallel \(3\) must divide one"):
        kv_bytes_per_device(80, 8, 128, 3)
    with pytest.raises(ValueError, match="tensor_parallel must be at least 1, got 0"):
        kv_bytes_per_device(80, 8, 128, 0)


def test_neighbors_share():
    assert group_of_head(8, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="must be divisible"):
        group_of_head(8, 3)


def test_similarity_is_one_with_oneself_and_with_a_longer_copy():
    weight = randn(12, 7, seed=1)
    weight[9:] = 3 * weight[:3]
    similarity = head_similarity(weight, 4)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(4, dtype=torch.float64))
    assert similarity[0, 3] == pytest.approx(1)
    assert (similarity[0, 1:3].abs() < 0.8).all()
    with pytest.raises(ValueError, match="rows for 5 heads, got 12"):
        head_similarity(weight, 5)


# -- training on -------------------------------------------------------------------------------------------------------


def test_no_further_training_leaves_the_model_as_it_is(base):
    model = converted_model(base, 2)
    result = uptrain(model, 0.0, 1600, seed=0)
    assert result.model is model
    assert result.steps.tolist() == [0, 0]
    assert result.train_loss.numel() == 0
    with pytest.raises(ValueError, match=r"alpha must be at least 0, got -0\.1"):
        uptrain(model, -0.1, 1600, seed=0)


def test_the_same_seed_trains_the_same_way(base):
    first, second = (uptrain(converted_model(base, 2), 0.005, 1600, seed=0, judged=2) for _ in range(2))
    assert first.steps.tolist() == [0, 4, 8]
    assert torch.equal(first.train_loss, second.train_loss)
    assert torch.equal(first.loss_curve, second.loss_curve)
    assert first.loss_curve[0] > first.loss_curve[-1]


def test_the_stream_of_texts_goes_on_where_the_base_run_stopped(base):
    ours = uptrain(converted_model(base, 2), 0.005, 1600, seed=0).model
    theirs = tiny_lm.continue_training(converted_model(base, 2), 8)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_fewer_memories_hurt_more_and_training_heals_most_of_it(trace):
    losses = dict(zip(zip(trace.conversions.num_key_value_heads.tolist(), trace.conversions.name, strict=True),
                      trace.conversions.eval_loss.tolist(), strict=True))  # fmt: skip
    for way in ("averaged", "first head kept", "drawn anew"):
        assert losses[1, way] > losses[2, way] > 2
    for groups in (2, 1):
        assert losses[groups, "drawn anew"] > max(losses[groups, "averaged"], losses[groups, "first head kept"]) + 1
    assert trace.entropy_floor < trace.eval_loss_base < trace.eval_loss_uptrained["2"] < 0.55
    assert trace.eval_loss_uptrained["2"] < trace.eval_loss_uptrained["1"] < 1
    assert trace.healed["2"] > 0.95 > trace.healed["1"] > 0.85
    for groups in ("2", "1"):
        low, high = trace.loss_seed_spread[groups].tolist()
        assert low - 1e-6 <= trace.eval_loss_uptrained[groups] <= high + 1e-6  # the spread is kept in float32
        assert (trace.curves[groups][0] > 5 * trace.curves[groups][-1]).item()


def test_trained_heads_have_little_in_common(trace):
    assert trace.largest_similarity < 0.2


def test_the_wrong_wiring_harms_the_heads_whose_memory_changed(trace):
    moved = trace.group_of_head["2"] != trace.tiled_group_of_head
    assert moved.tolist() == [False, True, True, False]
    assert ((trace.tiled_head_difference > 0.1) == moved).all()
    torch.testing.assert_close((trace.output_tiled - trace.output_shared).abs(), trace.tiled_difference)
    assert trace.tiled_head_difference.tolist() == [max(row) for row in trace.tiled_difference.tolist()]
    assert trace.max_tiled_difference == max(trace.tiled_head_difference.tolist())


def test_the_spread_of_a_loss_is_that_of_three_orders_of_the_texts(base, monkeypatch):
    monkeypatch.setattr(gqa, "uptrain", lambda *_: pytest.fail("all three runs are known"))
    known = {seed: {"2": 1.0 + seed, "1": 9.0 - seed} for seed in range(3)}
    spread = gqa._spread(base, 0.05, known)
    assert {groups: pair.tolist() for groups, pair in spread.items()} == {"2": [1, 3], "1": [7, 9]}


def test_the_pictures_belong_together(trace):
    for groups in ("4", "2", "1"):
        assert trace.key_by_g[groups].shape[0] == int(groups)
        torch.testing.assert_close(trace.weights_by_g[groups].sum(dim=-1), torch.ones(4, len(trace.tokens)))
    assert trace.cache_bytes.tolist() == [trace.cache_bytes_per_token[str(g)] for g in trace.groups.tolist()]
    assert trace.cache_bytes.tolist() == [768, 384, 192]
    assert torch.equal(trace.cache_growth[:, 0], trace.cache_bytes)
    torch.testing.assert_close(trace.w_k_grouped[0], trace.w_k_heads[:2].mean(dim=0))
    with torch.no_grad():
        output, _ = grouped_query_attention(trace.query, trace.key_by_g["4"], trace.value_by_g["4"])
    assert output.isfinite().all()


def test_the_config_is_checked():
    with pytest.raises(ValueError, match="num_key_value_heads must be one of 4, 2, 1, got 3"):
        Config(num_key_value_heads=3)
