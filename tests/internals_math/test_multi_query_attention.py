import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import multi_query_attention as mqa
from internals_math import tiny_lm, trace_store
from internals_math.attention import causal_mask, scaled_dot_product_attention
from internals_math.kv_cache import kv_cache_bytes_per_token
from internals_math.multi_query_attention import (
    Config,
    asymptotic_ratio,
    convert_to_one_head,
    decode_traffic,
    matched_ffn_width,
    max_context_length,
    memory_to_arithmetic_ratio,
    multi_query_attention,
    multi_query_self_attention_step,
    projection_weights,
)
from internals_math.rope import apply_rotary, rope_cos_sin
from tests.oracles import randn

sizes = st.integers(1, 6)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(mqa)


# -- attention ---------------------------------------------------------------------------------------------------------


@given(
    precision=st.sampled_from([(torch.float32, 1e-6), (torch.float64, 1e-12)]),
    heads=sizes,
    queries=sizes,
    more_keys=st.integers(0, 5),
    width=sizes,
)
def test_it_is_multi_head_attention_over_equal_heads(precision, heads, queries, more_keys, width):
    (dtype, tolerance), keys = precision, queries + more_keys
    query = randn(2, heads, queries, width, seed=1, dtype=dtype)
    key, value = randn(2, keys, width, seed=2, dtype=dtype), randn(2, keys, 3, seed=3, dtype=dtype)
    output, weights = multi_query_attention(query, key, value)
    many_keys, many_values = (part[:, None].expand(-1, heads, -1, -1) for part in (key, value))
    expected = scaled_dot_product_attention(query, many_keys, many_values, causal_mask(queries, keys))
    torch.testing.assert_close((output, weights), expected, atol=tolerance, rtol=0)


@given(heads=sizes, queries=sizes, more_keys=st.integers(0, 5))
def test_weights_are_shares_of_the_past_alone(heads, queries, more_keys):
    keys = queries + more_keys
    _, weights = multi_query_attention(randn(heads, queries, 4, seed=1), randn(keys, 4, seed=2), randn(keys, 4, seed=3))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(heads, queries, dtype=torch.float64))
    assert (weights.masked_select(~causal_mask(queries, keys)) == 0).all()


def test_permuting_the_query_heads_permutes_the_outputs_and_nothing_else():
    query, key, value = randn(4, 5, 8, seed=1), randn(5, 8, seed=2), randn(5, 8, seed=3)
    order = [2, 0, 3, 1]
    output, _ = multi_query_attention(query, key, value)
    assert torch.equal(multi_query_attention(query[order], key, value)[0], output[order])


def test_without_a_mask_every_query_sees_every_key():
    query, key, value = randn(2, 6, 4, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)
    _, weights = multi_query_attention(query, key, value, is_causal=False)
    assert (weights > 0).all()


def test_scale_multiplies_the_scores():
    query, key, value = randn(2, 3, 4, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)
    plain, scaled = (
        multi_query_attention(q, key, value, scale=scale)[0] for q, scale in ((query, 0.5), (2 * query, 0.25))
    )
    torch.testing.assert_close(plain, scaled)
    with_default = multi_query_attention(query, key, value)[0]
    torch.testing.assert_close(with_default, plain)  # 1 / sqrt(4)


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        (((5, 8), (5, 8), (5, 8)), {}, "the query needs one axis more"),
        (((4, 5, 8), (5, 6), (5, 8)), {}, "same head_dim, got 8 and 6"),
        (((4, 5, 8), (5, 8), (4, 8)), {}, "each key needs its value, got 5 keys and 4 values"),
        (((4, 5, 8), (3, 8), (3, 8)), {}, "at least as many keys as queries, got 3 keys and 5"),
        (((4, 5, 8), (5, 8), (5, 8)), {"scale": 0.0}, "scale must be a positive number, got 0.0"),
        (((4, 5, 8), (5, 8), (5, 8)), {"scale": math.nan}, "scale must be a positive number, got nan"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(plain_python, shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        multi_query_attention(*(torch.zeros(*shape) for shape in shapes), **arguments)


@pytest.mark.parametrize("prefill", [0, 1, 4])
def test_steps_give_the_rows_and_the_memory_of_one_full_call(prefill):
    heads, width, head_dim, length = 4, 12, 6, 7
    q, k, v = (randn(rows, width, seed=s) for s, rows in enumerate((heads * head_dim, head_dim, head_dim), start=1))
    o, x = randn(width, heads * head_dim, seed=4), randn(2, length, width, seed=5)
    cos, sin = rope_cos_sin(torch.arange(length), torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64))
    query = apply_rotary((x @ q.T).unflatten(-1, (heads, head_dim)).transpose(1, 2), cos, sin)
    keys, values = apply_rotary(x @ k.T, cos, sin), x @ v.T
    expected = multi_query_attention(query, keys, values)[0].transpose(1, 2).flatten(2) @ o.T

    key, value = keys[:, :prefill], values[:, :prefill]
    for position in range(prefill, length):
        rotary = cos[position : position + 1], sin[position : position + 1]
        y, key, value = multi_query_self_attention_step(
            x[:, position], key, value, q, k, v, o, num_heads=heads, rotary=rotary
        )
        torch.testing.assert_close(y, expected[:, position])
    torch.testing.assert_close((key, value), (keys, values))


def test_a_step_refuses_projections_that_do_not_fit_the_heads():
    x, memory = torch.zeros(1, 8), torch.zeros(1, 0, 4)
    k = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="q_weight must have 3 heads of 4 rows, got 8 rows"):
        multi_query_self_attention_step(x, memory, memory, torch.zeros(8, 8), k, k, torch.zeros(8, 8), num_heads=3)
    with pytest.raises(ValueError, match="o_weight must have 2 heads of 4 columns, got 12 columns"):
        multi_query_self_attention_step(x, memory, memory, torch.zeros(8, 8), k, k, torch.zeros(8, 12), num_heads=2)


# -- converting --------------------------------------------------------------------------------------------------------


def test_a_model_whose_heads_are_equal_is_converted_without_a_trace():
    base = tiny_lm.load("base")
    state = dict(base.state_dict())
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = weight[:8].repeat(4, 1)
    equal = tiny_lm.copy_of(base, state)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    with torch.no_grad():
        torch.testing.assert_close(convert_to_one_head(equal)(ids), equal(ids), atol=1e-4, rtol=0)


def test_turning_commutes_with_averaging_over_heads():
    keys = randn(4, 9, 8, seed=1)
    cos, sin = rope_cos_sin(torch.arange(9), torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64))
    torch.testing.assert_close(apply_rotary(keys, cos, sin).mean(dim=0), apply_rotary(keys.mean(dim=0), cos, sin))


def test_the_saved_weights_of_the_tiny_lm_are_a_feed_forward_that_is_16_wider():
    config = tiny_lm.load("base").config
    width = matched_ffn_width(
        32, config.intermediate_size, 4, 8, num_key_value_heads=1, num_attention_layers=3, num_ffn_layers=3,
        ffn_matrices=3,
    )  # fmt: skip
    assert width == 96 + 16 == tiny_lm.load("mqa").config.intermediate_size
    assert tiny_lm.load("mqa").num_params == tiny_lm.load("base").num_params


def test_a_width_that_does_not_come_out_even_is_refused():
    with pytest.raises(ValueError, match="the 1536 saved weights must fill whole units"):
        matched_ffn_width(32, 96, 4, 8, num_key_value_heads=1, num_attention_layers=1, num_ffn_layers=1, ffn_matrices=5)


# -- counting ----------------------------------------------------------------------------------------------------------


@given(batch=sizes, heads=sizes, head_dim=sizes, width=sizes)
def test_one_shared_head_divides_the_reading_of_the_cache_by_the_number_of_heads(batch, heads, head_dim, width):
    own, shared = (decode_traffic(batch, 9, width, heads, head_dim, groups) for groups in (heads, 1))
    assert torch.equal(own.kv_reads, heads * shared.kv_reads)
    assert torch.equal(own.kv_writes, heads * shared.kv_writes)
    assert torch.equal(own.activations, shared.activations)
    if heads > 1:  # the weights fall too, but not as much
        assert (own.weight_reads > shared.weight_reads).all()
        assert (own.weight_reads < heads * shared.weight_reads).all()
    attention = [t.macs - batch * t.weight_reads for t in (own, shared)]
    assert torch.equal(*attention)  # the scores cost what they cost before


def test_the_counts_of_one_step_are_those_of_the_tensors_it_moves():
    batch, d, h, k = 3, 12, 4, 5
    x, q, kv, o = torch.zeros(batch, d), torch.zeros(h * k, d), torch.zeros(k, d), torch.zeros(d, h * k)
    memory = torch.zeros(batch, 6, k)
    _, key, value = multi_query_self_attention_step(x, memory, memory, q, kv, kv, o, num_heads=h)
    traffic = decode_traffic(batch, 7, d, h, k, 1)
    assert traffic.kv_reads[6] == key.numel() + value.numel()
    assert traffic.kv_writes[6] == key.numel() - memory.numel() + value.numel() - memory.numel()
    assert traffic.weight_reads[6] == q.numel() + 2 * kv.numel() + o.numel() == projection_weights(d, h, k, 1)
    assert traffic.activations[6] == 2 * x.numel() + 2 * batch * h * k  # x, y, query, heads' outputs


def test_more_reading_than_arithmetic_grows_with_the_text_only_in_multi_head_attention():
    own, shared = (memory_to_arithmetic_ratio(decode_traffic(128, 4096, 1024, 8, 128, g)) for g in (8, 1))
    assert own[-1] / own[0] > 50 > 10 > shared[-1] / shared[0]
    assert own[-1] / shared[-1] > 6


@given(n=st.integers(1, 5000), b=st.integers(1, 500), h=st.integers(1, 64))
def test_the_ratio_of_the_paper_rises_with_length_and_falls_with_the_batch(n, b, h):
    for variant in ("multihead", "multiquery"):
        ratio = asymptotic_ratio(n, 1024, h, b, variant)
        assert asymptotic_ratio(n + 1, 1024, h, b, variant) > ratio > asymptotic_ratio(n, 1024, h, b + 1, variant)
    one = asymptotic_ratio(n, 1024, 1, b, "multiquery")
    assert one == pytest.approx(asymptotic_ratio(n, 1024, 1, b, "multihead") + 1 / 1024)
    far = [asymptotic_ratio(1e12, 1024, h, b, variant) for variant in ("multihead", "multiquery")]
    assert far[0] / far[1] == pytest.approx(h, rel=1e-4)


def test_exact_and_asymptotic_ratios_grow_at_the_same_rate_in_n():
    """In the exact count, n / d comes with 1/2 (mean length n/2, 2 numbers a position, 4 d² multiply-adds … / 2)."""
    n = torch.tensor([512, 1024])
    ratio = memory_to_arithmetic_ratio(decode_traffic(512, 1024, 4096, 32, 128, 32))[n - 1]
    paper = [asymptotic_ratio(int(steps), 4096, 32, 512, "multihead") for steps in n]
    assert float(ratio[1] / ratio[0]) == pytest.approx(paper[1] / paper[0], rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decode_traffic(0, 1, 1, 1, 1, 1), "batch_size must be at least 1, got 0"),
        (lambda: decode_traffic(1, 1, 8, 4, 2, 3), r"num_heads \(4\) must be divisible by num_key_value_heads \(3\)"),
        (lambda: asymptotic_ratio(0, 1, 1, 1, "multihead"), "must be positive"),
        (lambda: asymptotic_ratio(1, 1, 1, 1, "grouped"), "multihead or multiquery, got 'grouped'"),
        (lambda: max_context_length(1e9, 4, 4, 2, 1, 8, shard="tokens"), "heads or batch, got 'tokens'"),
        (lambda: max_context_length(1e9, 4, 6, 2, 1, 8, shard="batch"), r"batch_size \(6\) must be divisible"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_lone_head_is_copied_to_every_chip_unless_the_batch_is_split():
    by_heads, by_batch = (max_context_length(1e9, 8, 16, 2, 1, 8, shard=shard) for shard in ("heads", "batch"))
    assert by_batch == pytest.approx(8 * by_heads, rel=1e-3)
    # 12 heads do not divide by 8 chips: some hold two, and the fullest chip decides
    assert max_context_length(1e9, 8, 16, 2, 12, 8, shard="heads") == by_heads // 2


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_the_bytes_on_screen_are_those_of_the_formula(trace):
    per_layer = [kv_cache_bytes_per_token(1, heads, 8, bytes_per_element=4) for heads in (4, 1)]
    tokens = torch.arange(1, len(trace.tokens) + 1)
    assert torch.equal(trace.bytes_read_mha, tokens * per_layer[0])
    assert torch.equal(trace.bytes_read_mqa, tokens * per_layer[1])
    assert torch.equal(trace.cache_elements_mha, trace.cache_ratio * trace.cache_elements_mqa)
    assert trace.cache_ratio == 4


def test_the_pictures_of_the_shared_memory_belong_together(trace):
    output, weights = multi_query_attention(trace.query_mqa, trace.key_mqa, trace.value_mqa)
    torch.testing.assert_close(weights, trace.weights_mqa, atol=1e-5, rtol=0)
    torch.testing.assert_close(output[:, -1], trace.output_mqa, atol=1e-5, rtol=0)
    assert torch.equal(trace.last_weights_mqa.T, trace.weights_mqa[:, -1])
    assert torch.equal(trace.cache_mqa, torch.cat([trace.key_mqa, trace.value_mqa], dim=1))
    assert torch.equal(trace.cache_mha[3, 8:16], trace.key_mha[1, 3])


def test_the_four_heads_of_the_shared_model_look_at_different_words(trace):
    assert len(set(trace.last_weights_mqa.argmax(dim=0).tolist())) >= 3


def test_averaging_breaks_the_model_and_training_heals_it_in_part(trace):
    floor, own, averaged, healed, shared = trace.models.eval_loss.tolist()
    assert floor == pytest.approx(trace.entropy_floor)
    assert floor < own < shared < healed < averaged
    assert averaged > 3
    assert healed < 1.2
    # the model that always had one memory is worse than the luck of the seed explains, but close
    low, high = trace.loss_seed_spread.tolist()
    assert low <= own <= high
    assert high + 10 * (high - low) < shared < own + 0.03


def test_reading_costs_more_than_multiplying_and_alone_grows_from_nothing(trace):
    assert (trace.cache_us_mha[-1] > 20 * trace.multiply_us[-1]).item()
    torch.testing.assert_close(trace.cache_us_mha, trace.paper_heads * trace.cache_us_mqa)
    assert (trace.multiply_us[-1] < 2 * trace.multiply_us[0]).item()


def test_the_batch_size_multiplies_the_reading_of_the_cache_and_not_that_of_the_weights():
    one, two = (mqa.long_times(batch) for batch in (8, 16))
    torch.testing.assert_close(two["cache_us_mha"], 2 * one["cache_us_mha"])
    assert torch.equal(two["weights_us"], one["weights_us"])


def test_the_times_of_a_step_are_its_bytes_and_flops_over_those_of_the_datasheet():
    times = mqa.long_times(128)
    # At 1024 words: 128 texts of 1024 keys and values of 8 heads of 128 numbers, and four matrices of 1024 x 1024, each
    # number 2 bytes of 2039 GB/s; per text, the matrices and 2 x 1024 words x 1024 numbers at 2 FLOPs of 312 TFLOPS.
    assert float(times["cache_us_mha"][-1]) == pytest.approx(128 * 1024 * 2 * 8 * 128 * 2 / 2.039e6, rel=1e-6)
    assert float(times["weights_us"][-1]) == pytest.approx(4 * 1024 * 1024 * 2 / 2.039e6, rel=1e-6)
    assert float(times["multiply_us"][-1]) == pytest.approx(
        128 * (4 * 1024 * 1024 + 2 * 1024 * 1024) * 2 / 312e6, rel=1e-6
    )


def test_the_config_is_checked():
    with pytest.raises(ValueError, match=r"num_tokens must be in 4\.\.12, got 13"):
        Config(num_tokens=13)
