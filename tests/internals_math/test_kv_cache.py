import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import kv_cache, tiny_lm
from internals_math.kv_cache import (
    Config,
    KVCache,
    decode_attention_intensity,
    generation_flops,
    greedy_generate,
    key_changes,
    kv_cache_bytes,
    kv_cache_bytes_per_token,
    linear_flops_per_token,
    max_key_change,
    recompute_counts,
)
from internals_math.model_shapes import ModelShape

IDS = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])


@pytest.fixture(scope="module")
def model():
    return tiny_lm.load("base")


@pytest.fixture(scope="module")
def double(model):
    return tiny_lm.copy_of(model).double()


def filled(model, ids, cuts):
    """Feed a prompt in chunks that end at `cuts`; returns the cache and the logits of the last chunk."""
    cache, start, logits = KVCache(model.config.num_hidden_layers), 0, None
    for end in cuts:
        logits = model(ids[:, start:end], cache=cache)
        start = end
    return cache, logits


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_cached_and_uncached_logits_agree_at_every_step(model, double, dtype, tolerance):
    chosen = model if dtype == torch.float32 else double
    with_cache = greedy_generate(chosen, IDS[:, :8], 20, use_cache=True)
    without = greedy_generate(chosen, IDS[:, :8], 20, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(with_cache.step_logits, without.step_logits, atol=tolerance, rtol=0)


@settings(max_examples=20)
@given(st.sets(st.integers(1, 19), max_size=6))
def test_any_chunking_of_the_prompt_fills_the_same_cache(cuts):
    model = tiny_lm.copy_of(tiny_lm.load("base")).double()
    ids = IDS[:, :20]
    whole, at_once = filled(model, ids, [20])
    parts, chunked = filled(model, ids, [*sorted(cuts), 20])
    torch.testing.assert_close(chunked[:, -1], at_once[:, -1], atol=1e-10, rtol=0)
    for layer in range(3):
        torch.testing.assert_close(parts.keys[layer], whole.keys[layer], atol=1e-10, rtol=0)
        torch.testing.assert_close(parts.values[layer], whole.values[layer], atol=1e-10, rtol=0)


def test_in_a_causal_model_no_old_key_moves_when_the_text_grows(model):
    assert (max_key_change(model, IDS[:, :20], 8, causal=True) < 1e-6).all()


def test_without_the_causal_mask_old_keys_move_from_the_second_layer_on(model):
    change = key_changes(model, IDS[:, :20], 8, causal=False)
    assert change.shape == (3, 8)
    assert (change[0] < 1e-6).all()
    assert (change[1:].amax(dim=1) > 1e-3).all()


def test_cropping_is_as_if_the_rest_had_never_been_seen(double):
    cache, _ = filled(double, IDS[:, :16], [16])
    cache.crop(9)
    assert cache.get_seq_length() == 9
    short, expected = filled(double, IDS[:, :14], [9, 14])
    torch.testing.assert_close(double(IDS[:, 9:14], cache=cache), expected, atol=1e-10, rtol=0)
    assert cache.nbytes == short.nbytes


def test_positions_that_start_again_after_the_prefill_change_the_logits(model):
    cache, right = filled(model, IDS[:, :12], [8, 12])
    cache, _ = filled(model, IDS[:, :8], [8])
    wrong = model(IDS[:, 8:12], cache=cache, position_ids=torch.arange(4))
    assert (wrong - right).abs().max() > 0.1


@given(st.integers(1, 30), st.integers(1, 12))
def test_row_counts_add_up_as_the_closed_forms_say(prompt, steps):
    with_cache, without = recompute_counts(prompt, steps)
    assert with_cache.sum() == prompt + steps - 1
    assert without.sum() == sum(prompt + t for t in range(steps))


@given(st.integers(1, 80), st.sampled_from([1, 2, 8]), st.integers(1, 128), st.integers(0, 4096), st.integers(1, 8))
def test_bytes_scale_with_every_factor(layers, groups, head_dim, tokens, batch):
    size = kv_cache_bytes(layers, groups, head_dim, tokens, batch)
    assert size == kv_cache_bytes_per_token(layers, groups, head_dim) * tokens * batch
    assert kv_cache_bytes(layers, 2 * groups, head_dim, tokens, batch) == 2 * size
    assert kv_cache_bytes(layers, groups, head_dim, tokens, batch, bytes_per_element=4) == 2 * size


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_the_bytes_of_a_real_cache_are_the_formula(groups):
    model = tiny_lm.TinyLM(tiny_lm.ModelConfig(num_key_value_heads=groups))
    cache, _ = filled(model, IDS[:, :10], [10])
    assert cache.nbytes == kv_cache_bytes(3, groups, 8, 10, bytes_per_element=4)


def test_a_cached_step_costs_one_token_and_an_uncached_one_the_whole_text():
    shape = ModelShape("tiny", 3, 32, 4, 4, 8, 96, 112)
    head, attention = 2 * 32 * 112, 3 * 4 * 1 * 10 * 4 * 8
    cached = generation_flops(shape, 8, 4, use_cache=True)
    assert int(cached[2]) == linear_flops_per_token(shape) + attention + head
    uncached = generation_flops(shape, 8, 4, use_cache=False)
    assert int(uncached[2]) == 10 * linear_flops_per_token(shape) + 10 * attention + head
    assert cached[0] == uncached[0]  # the prefill is the same work


# -- refused -----------------------------------------------------------------------------------------------------------


def state(batch=1, heads=2, length=3, width=4, dtype=torch.float32):
    return torch.zeros(batch, heads, length, width, dtype=dtype)


def cache_with(*states):
    cache = KVCache(2)
    cache.update(*(states or (state(), state())), 0)
    return cache


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KVCache(0), "num_hidden_layers must be at least 1, got 0"),
        (lambda: KVCache(2).update(state(), state(), 2), r"layer_idx must be in 0\.\.1, got 2"),
        (lambda: KVCache(2).get_seq_length(-1), r"layer_idx must be in 0\.\.1, got -1"),
        (lambda: cache_with().update(state(batch=2), state(batch=2), 0), "the cache holds batch 1, got batch 2"),
        (lambda: cache_with().update(state(heads=1), state(heads=1), 0), "the cache holds heads 2, got heads 1"),
        (lambda: cache_with().update(state(width=8), state(width=8), 0), "the cache holds head_dim 4, got head_dim 8"),
        (
            lambda: cache_with().update(state(dtype=torch.float64), state(dtype=torch.float64), 0),
            "the cache holds torch.float32, got torch.float64",
        ),
        (lambda: cache_with().crop(-1), "max_length must be at least 0, got -1"),
        (
            lambda: KVCache(2).update(state(), state(length=4), 0),
            r"the same shape, got \(1, 2, 3, 4\) and \(1, 2, 4, 4\)",
        ),
        (
            lambda: greedy_generate(tiny_lm.load("base"), IDS[:, :4], 0, use_cache=True),
            "max_new_tokens must be at least 1",
        ),
        (lambda: key_changes(tiny_lm.load("base"), IDS[:, :4], 4, causal=True), r"split must be in 1\.\.3, got 4"),
        (lambda: generation_flops(ModelShape("m", 1, 2, 1, 1, 2, 2, 2), 4, 0, use_cache=True), "got 4 and 0"),
        (lambda: kv_cache_bytes(1, 1, 1, -1), "seq_len must be at least 0"),
        (lambda: kv_cache_bytes(1, 1, 1, 1, 0), "batch_size at least 1, got 1 and 0"),
        (lambda: decode_attention_intensity(4, 4, 0), "bytes_per_element must be at least 1, got 0"),
        (lambda: kv_cache_bytes_per_token(0, 1, 1), "num_hidden_layers must be at least 1, got 0"),
        (lambda: decode_attention_intensity(12, 5), r"num_attention_heads \(12\) must be divisible"),
        (lambda: recompute_counts(0, 1), "must be at least 1 each, got 0 and 1"),
        (lambda: Config(prompt="one day the dragon found a"), "'dragon' is not one of the 112 words"),
        (lambda: Config(prompt="one"), "prompt must have 2 to 12 words, got 1"),
        (lambda: Config(real_model="gpt-5"), "real_model must be one of llama-2-7b"),
        (lambda: Config(context_length=0), r"context_length must be in 1\.\.131072, got 0"),
    ],
)
@pytest.mark.usefixtures("plain_python")
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- what the video shows ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    return kv_cache.trace(Config())


def test_every_pass_recomputes_the_rows_that_are_cached(shown):
    assert shown.max_abs_diff.max() < 1e-5
    for step, context in enumerate(shown.contexts.tolist()):
        recomputed = shown.keys_recomputed[step]
        torch.testing.assert_close(recomputed[:context], shown.keys[:context], atol=1e-5, rtol=0)
        assert recomputed[context:].isnan().all()
    differences = (shown.keys_recomputed - shown.keys).abs()
    torch.testing.assert_close(shown.key_differences, differences, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(shown.max_abs_diff, differences.nan_to_num().amax(dim=(1, 2)))


def test_the_output_is_the_weighted_sum_of_the_cached_values(shown):
    weights = shown.weights.nan_to_num()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))
    torch.testing.assert_close(shown.outputs, weights @ shown.values, atol=1e-5, rtol=0)
    scores = shown.queries @ shown.keys.T / 8**0.5
    seen = ~shown.scores.isnan()
    torch.testing.assert_close(shown.scores[seen], scores[seen], atol=1e-5, rtol=0)
    low, high = shown.values.amin(dim=0), shown.values.amax(dim=0)
    assert ((shown.outputs >= low - 1e-5) & (shown.outputs <= high + 1e-5)).all()


def test_the_new_row_is_the_product_of_the_input_and_the_weights_on_screen(shown):
    torch.testing.assert_close(shown.inputs @ shown.w_value.T, shown.values, atol=1e-5, rtol=0)
    # a rotation keeps the length of a key
    torch.testing.assert_close((shown.inputs @ shown.w_key.T).norm(dim=1), shown.keys.norm(dim=1), atol=1e-5, rtol=0)


def test_the_counters_and_the_bill_are_the_published_formulas(shown):
    assert shown.rows_with_cache_total.tolist() == [8, 9, 10, 11]
    assert shown.rows_without_cache_total.tolist() == [8, 17, 27, 38]
    assert shown.presets.name[shown.real_row] == shown.real_name == "Llama-2-7B"
    assert shown.real_cache_bytes == 2**31
    assert shown.real_weight_bytes == 2 * 6_738_415_616  # FP16
    assert shown.bill_bytes[-1, shown.real_row] == 2**31
    assert torch.equal(shown.decode_bytes_read, shown.decode_flops)  # one FLOP for each byte
    assert shown.long_flops_ratio[-1] == pytest.approx(59.95, abs=0.01)


def test_the_light_floods_back_only_without_the_mask(shown):
    prompt, later = slice(0, 8), slice(8, None)
    for field in (shown.key_change_causal, shown.key_change_bidirectional):
        assert torch.equal(field.isnan(), torch.arange(11).expand(3, 11) >= 8)  # later keys have no past to differ from
        assert field[:, later].isnan().all()
    assert (shown.key_change_causal[:, prompt] < 1e-6).all()
    assert (shown.key_change_bidirectional[0, prompt] < 1e-6).all()
    assert (shown.key_change_bidirectional[1:, prompt] > 0.1).all()
    assert torch.equal(shown.max_change_causal, shown.key_change_causal[:, prompt].amax(dim=1))
    assert torch.equal(shown.max_change_bidirectional, shown.key_change_bidirectional[:, prompt].amax(dim=1))


def test_the_long_curve_starts_with_the_short_one_and_ends_at_the_trained_length(shown):
    assert (int(shown.long_contexts[0]), int(shown.long_contexts[-1])) == (8, 64)
    for short, long in (
        (shown.contexts, shown.long_contexts),
        (shown.flops_with_cache, shown.long_flops_with_cache),
        (shown.flops_without_cache, shown.long_flops_without_cache),
    ):
        assert torch.equal(long[: len(short)], short)


def test_the_chip_can_do_the_work_of_its_datasheet_for_each_byte(shown):
    # NVIDIA A100 80GB SXM: 312 TFLOPS and 2,039 GB/s
    assert shown.offer_intensity.tolist() == pytest.approx([1.0, 312_000 / 2039])


def test_another_prompt_and_head_are_traced_the_same_way():
    trace = kv_cache.trace(
        Config(prompt="one day the young crab lost a", layer=2, head=3, max_new_tokens=2, batch_size=4)
    )
    assert trace.keys.shape == (9, 8)
    assert trace.real_cache_bytes == 2**33
    assert trace.max_abs_diff_logits < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "one day", "max_new_tokens": 8, "layer": 0, "head": 3},
        {"prompt": "one day the old fox found a golden key in the well", "max_new_tokens": 2, "layer": 2},
        {"real_model": "llama-2-70b", "context_length": 1, "batch_size": 256},
        {"real_model": "mistral-7b", "context_length": 131_072, "batch_size": 256},
        {"context_length": 4097},
    ],
)
def test_every_corner_of_the_settings_can_be_traced(settings):
    trace = kv_cache.trace(Config(**settings))
    prompt, steps = len(trace.config.prompt.split()) + 1, trace.config.max_new_tokens
    assert len(trace.tokens) == prompt + steps
    assert trace.contexts.tolist() == list(range(prompt, prompt + steps))
    for field in (trace.scores, trace.weights, trace.keys_recomputed[..., 0], trace.key_differences[..., 0]):
        beyond = torch.arange(prompt + steps - 1) >= trace.contexts[:, None]
        assert torch.equal(field.isnan(), beyond)
    bill = trace.bill_bytes[-1, trace.real_row]
    assert trace.bill_contexts[-1] == trace.config.context_length
    assert (trace.bill_contexts.diff() > 0).all()
    assert bill == trace.real_cache_bytes
    assert trace.tiny_cache_bytes == kv_cache_bytes(3, 4, 8, prompt + steps - 1, bytes_per_element=4)


def test_the_shown_head_spreads_its_weights_and_looks_at_several_words(shown):
    weights = shown.weights.nan_to_num()
    assert weights.amax(dim=1).min() > 0.2
    assert weights.amax(dim=1).max() < 0.8
    assert len(set(weights.argmax(dim=1).tolist())) >= 3
