import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import sliding_window_attention as sliding
from internals_math import tiny_lm, trace_store
from internals_math.attention import causal_mask
from internals_math.sliding_window_attention import (
    Config,
    RollingKVCache,
    band_to_dense,
    cache_elements,
    dense_to_band,
    influence_kernel,
    input_influence,
    masked_attention,
    prefill_chunked,
    reachability,
    receptive_field,
    sliding_window_attention,
    sliding_window_mask,
    visible_attention_flops,
    visible_pairs,
)
from tests.oracles import randn

N = 11
windows = st.integers(1, N + 3)


def inputs(*batch, length=N, dtype=torch.float64):
    return tuple(randn(*batch, length, 8, seed=seed).to(dtype) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def model():
    return tiny_lm.load("base")


@pytest.fixture(scope="module")
def shown():
    return trace_store.get(sliding)


# -- the band ----------------------------------------------------------------------------------------------------------


@given(windows, st.integers(1, N), st.integers(0, 3))
def test_a_row_sees_its_window_and_the_sinks_that_are_not_in_it(window, q_len, sinks):
    mask = sliding_window_mask(q_len, N, window=window, num_sink_tokens=sinks)
    for row in range(q_len):
        i = row + N - q_len
        seen = {j for j in range(N) if j <= i and (i - j < window or j < sinks)}
        assert set(mask[row].nonzero()[:, 0].tolist()) == seen


@given(st.integers(1, 40), st.integers(1, 45))
def test_the_mask_holds_as_many_pairs_as_the_formula(length, window):
    assert int(sliding_window_mask(length, window=window).sum()) == visible_pairs(length, window)
    assert int(causal_mask(length).sum()) == visible_pairs(length)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("window", range(1, N + 4))
def test_the_band_alone_gives_what_a_masked_matrix_gives(window, dtype, tolerance):
    q, k, v = inputs(2, 3, dtype=dtype)
    output, band = sliding_window_attention(q, k, v, window)
    expected, weights = masked_attention(q, k, v, sliding_window_mask(N, window=window))
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(band_to_dense(band, N), weights, atol=tolerance, rtol=0)
    torch.testing.assert_close(dense_to_band(weights, window), band, atol=tolerance, rtol=0)
    torch.testing.assert_close(band.sum(dim=-1), torch.ones(2, 3, N, dtype=dtype))


def test_no_tensor_of_the_band_is_as_large_as_the_matrix():
    length, window = 400, 2
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            seen.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Watch():
        sliding_window_attention(*inputs(length=length), window)
    assert seen
    assert max(seen) <= 8 * (length + window) * window < length**2


def test_a_window_of_one_returns_the_own_value_and_a_wide_one_is_full_attention():
    q, k, v = inputs(1, 1)
    torch.testing.assert_close(sliding_window_attention(q, k, v, 1)[0], v)
    expected = masked_attention(q, k, v, causal_mask(N))[0]
    torch.testing.assert_close(sliding_window_attention(q, k, v, N + 2)[0], expected)


def test_the_work_is_linear_for_long_texts_and_quadratic_without_a_window():
    short, long = (visible_attention_flops(n, 64, 8, window=128) for n in (2**14, 2**15))
    assert long / short == pytest.approx(2, rel=0.01)
    short, long = (visible_attention_flops(n, 64, 8) for n in (2**14, 2**15))
    assert long / short == pytest.approx(4, rel=0.01)
    assert visible_attention_flops(10, 3, 2) == 4 * 55 * 3 * 2


# -- reach and influence -----------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 12))
def test_the_receptive_field_is_where_masks_on_masks_end(layers, window, position):
    reach = reachability(layers, window, 13)
    assert int(reach[-1][position].nonzero()[0]) == receptive_field(layers, window, position)
    assert receptive_field(layers, window, position) == max(0, position - layers * (window - 1))
    assert torch.equal(reach[0], torch.eye(13, dtype=torch.bool))


@given(st.permutations([2, 3, None]))
def test_one_global_layer_sees_the_whole_past(pattern):
    assert receptive_field(3, list(pattern), 12) == 0
    assert reachability(3, list(pattern), 13)[-1][12].all()


@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 1))
def test_the_kernel_has_the_sum_the_mean_and_the_variance_of_the_formulas(layers, window, kept):
    kernel = influence_kernel(layers, window, kept)
    place = torch.arange(len(kernel), dtype=torch.float64)
    mean = float((kernel * place).sum())
    one = (1 - kept) * (window - 1) / 2
    variance = layers * ((1 - kept) * (window - 1) * (2 * window - 1) / 6 - one**2)
    assert len(kernel) == layers * (window - 1) + 1
    assert (kernel >= 0).all()
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(layers * one, abs=1e-9)
    assert float((kernel * (place - mean) ** 2).sum()) == pytest.approx(variance, abs=1e-9)


def test_four_times_the_layers_spread_only_twice_as_far(shown):
    spread = dict(zip(shown.depths.tolist(), shown.kernel_std.tolist(), strict=True))
    assert spread[32] == pytest.approx(2 * spread[8])
    assert spread[8] == pytest.approx(2 * spread[2])


def test_a_layer_that_keeps_everything_passes_nothing_on():
    kernel = influence_kernel(3, 4, 1.0)
    assert kernel.tolist() == [1.0] + [0.0] * 9


def test_a_word_beyond_the_reach_changes_nothing_to_the_bit_and_one_at_its_edge_does(model):
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:16]])
    mask = sliding_window_mask(16, window=4)  # three layers reach nine words back
    before = model(ids, mask=mask)[0, -1]
    for back, changes in ((9, True), (10, False), (15, False)):
        other = ids.clone()
        other[0, 15 - back] = tiny_lm.encode("pearl")[1]
        assert torch.equal(model(other, mask=mask)[0, -1], before) is not changes


@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_gradients_live_exactly_inside_the_cone(model, window):
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:16]])
    reach = reachability(3, window, 16)
    for layer in range(4):
        influence = input_influence(model, ids, window, 15, layer)
        assert torch.equal(influence > 0, reach[3 - layer][15])


def test_the_influence_is_the_size_of_the_jacobian(model):
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:6]])
    embeddings = model.model.embed_tokens(ids).detach()

    def final(x):
        return model(inputs_embeds=x, record=("residual",))[1]["residual"][-1][0, 5]

    jacobian = torch.autograd.functional.jacobian(final, embeddings)[:, 0]
    expected = torch.linalg.matrix_norm(jacobian.permute(1, 0, 2))
    torch.testing.assert_close(input_influence(model, ids, None, 5), expected, rtol=1e-4, atol=0)


# -- the ring ----------------------------------------------------------------------------------------------------------


@given(windows)
def test_the_ring_gives_windowed_attention_after_every_token(window):
    q, k, v = inputs(1)
    cache = RollingKVCache(window, 1, 8, torch.float64)
    expected = masked_attention(q[None], k[None], v[None], sliding_window_mask(N, window=window))[0][0]
    for i in range(N):
        cache.append(k[:, i : i + 1], v[:, i : i + 1], i)
        keys, values, positions = cache.get()
        assert positions.tolist() == list(range(max(0, i - window + 1), i + 1))
        assert cache.positions[cache.slot(i)] == i
        assert cache.slot(i) == i % window
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(i))
        for shuffle in (slice(None), order):
            output, _ = masked_attention(q[None, :, i : i + 1], keys[None, :, shuffle], values[None, :, shuffle])
            torch.testing.assert_close(output[0], expected[:, i : i + 1], atol=1e-12, rtol=0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 5))
def test_several_tokens_at_once_leave_the_ring_as_one_by_one(sizes, window):
    total = sum(sizes)
    _, k, v = inputs(2, length=total)
    single, chunks = (RollingKVCache(window, 2, 8, torch.float64) for _ in range(2))
    for i in range(total):
        single.append(k[:, i : i + 1], v[:, i : i + 1], i)
    start = 0
    for size in sizes:
        chunks.append(k[:, start : start + size], v[:, start : start + size], start)
        start += size
    assert torch.equal(single.positions, chunks.positions)
    assert torch.equal(single.keys, chunks.keys)
    assert torch.equal(single.values, chunks.values)


@settings(max_examples=40)
@given(st.integers(1, 6), st.sampled_from([1, 2, 3, 4, 5, 6, 7, N]))
def test_a_prompt_in_chunks_is_a_prompt_at_once(window, chunk_size):
    q, _, _ = inputs(4)
    k, v = randn(2, N, 8, seed=2), randn(2, N, 8, seed=3)
    expected = masked_attention(q[None], k[None], v[None], sliding_window_mask(N, window=window))[0][0]
    torch.testing.assert_close(prefill_chunked(q, k, v, window, chunk_size), expected, atol=1e-12, rtol=0)


@given(st.integers(1, 5000), st.integers(1, 2000))
def test_a_mixed_stack_keeps_what_the_formula_says(length, window):
    pattern = ("local",) * 5 + ("global",)
    share = cache_elements(length, window, pattern) / cache_elements(length, window, ("global",) * 6)
    assert share == pytest.approx((length + 5 * min(window, length)) / (6 * length))


# -- refused -----------------------------------------------------------------------------------------------------------


def filled_ring():
    cache = RollingKVCache(3, 1, 2)
    cache.append(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 0)
    return cache


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliding_window_mask(4, window=0), "window must be at least 1, got 0"),
        (lambda: sliding_window_mask(4, 3, window=2), "1 <= q_len <= kv_len, got q_len 4 and kv_len 3"),
        (lambda: sliding_window_mask(4, window=2, num_sink_tokens=-1), "num_sink_tokens must be at least 0, got -1"),
        (lambda: sliding_window_attention(*inputs(), 0), "window must be at least 1, got 0"),
        (
            lambda: sliding_window_attention(inputs()[0], *inputs(length=5)[1:], 2),
            r"must have equal length.* got \(11, 8\), \(5, 8\) and \(5, 8\)",
        ),
        (lambda: band_to_dense(torch.zeros(3, 2), 4), "the band has 3 rows, got length 4"),
        (lambda: dense_to_band(torch.zeros(3, 4), 2), r"weights must be square, got \(3, 4\)"),
        (lambda: visible_pairs(0), "seq_len must be at least 1, got 0"),
        (lambda: visible_pairs(4, -1), "window must be at least 1, got -1"),
        (lambda: visible_attention_flops(4, 0, 1), "head_dim and num_heads must be at least 1, got 0 and 1"),
        (lambda: receptive_field(0, 3, 4), "num_layers must be at least 1, got 0"),
        (lambda: receptive_field(2, [3, None, 3], 4), "2 layers need as many windows, got 3"),
        (lambda: receptive_field(2, 3, -1), "position must be at least 0, got -1"),
        (lambda: influence_kernel(2, 0, 0.5), "window must be at least 1, got 0"),
        (lambda: influence_kernel(2, 3, 1.5), r"residual_weight must be in 0\.\.1, got 1\.5"),
        (
            lambda: input_influence(tiny_lm.load("base"), torch.zeros(1, 4, dtype=torch.long), 2, 4),
            r"position must be in 0\.\.3 and layer in 0\.\.3, got 4 and 0",
        ),
        (lambda: RollingKVCache(0, 1, 2), "must be at least 1, got 0, 1 and 2"),
        (lambda: filled_ring().append(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 4), "position must be 2, .* got 4"),
        (lambda: filled_ring().append(torch.zeros(2, 1, 2), torch.zeros(2, 1, 2), 2), r"shape \(1, n, 2\), got"),
        (lambda: prefill_chunked(*inputs(1), 2, 0), "chunk_size must be at least 1, got 0"),
        (lambda: cache_elements(0, 2, ["local"]), "seq_len must be at least 1, got 0"),
        (lambda: cache_elements(4, 2, ["local", "wide"]), "layers must be local or global, got wide"),
        (lambda: cache_elements(4, 2, []), "layers must be local or global, got none"),
        (lambda: Config(num_tokens=8, window=8), r"window must be below num_tokens \(8\), got 8"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- what the video shows ----------------------------------------------------------------------------------------------


def test_the_shown_weights_are_the_models_own(shown, model):
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:16]])
    layer, head = shown.config.layer, shown.config.head
    full = model(ids, record=("weights",))[1]["weights"][layer, 0, head]
    torch.testing.assert_close(shown.weights_full.nan_to_num(), full, atol=1e-6, rtol=0)
    # the first layer reads embeddings, which no mask has touched
    narrow = model(ids, mask=sliding_window_mask(16, window=4), record=("weights",))[1]["weights"][layer, 0, head]
    torch.testing.assert_close(shown.weights_window.nan_to_num(), narrow, atol=1e-6, rtol=0)
    torch.testing.assert_close(shown.last_window, narrow[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(shown.last_cut / shown.last_cut.sum(), shown.last_window)
    torch.testing.assert_close(band_to_dense(shown.band_weights.nan_to_num(), 16), narrow, atol=1e-6, rtol=0)


def test_the_cone_opens_by_a_window_in_every_layer(shown):
    assert shown.reach.tolist() == [0, 3, 6, 9]
    assert shown.cone.sum(dim=1).tolist() == [10, 7, 4, 1]
    assert torch.equal(shown.influence_cone > 0, shown.cone > 0)
    for layer in range(3):
        assert torch.equal(shown.cone_links[layer].sum(dim=1) > 0, shown.cone[layer + 1] > 0)
        assert torch.equal(shown.cone_links[layer].amax(dim=0), shown.cone[layer])


def test_what_arrives_from_the_edge_is_faint_and_nothing_comes_from_beyond(shown):
    assert shown.influence_beyond == 0.0
    assert 0 < shown.influence_edge < 0.1
    assert (shown.influence_full > 0).all()
    assert shown.influence_full[10:].max() > 0.5  # with the whole past in view, far words count


def test_the_ring_of_the_video_wraps_and_agrees_with_the_mask(shown):
    assert shown.ring_slot.tolist() == [i % 4 for i in range(16)]
    assert shown.ring_positions[2].tolist() == [0, 1, 2, -1]
    assert shown.ring_positions[5].tolist() == [4, 5, 2, 3]
    assert shown.max_abs_diff_ring < 1e-5
    torch.testing.assert_close(shown.ring_weights.nan_to_num().sum(dim=1), torch.ones(16))
    empty = shown.ring_positions < 0
    assert torch.equal(shown.ring_keys.isnan()[:, :, 0], empty)
    assert torch.equal(shown.ring_values.isnan()[:, :, 0], empty)
    assert torch.equal(shown.ring_weights.isnan(), empty)  # nothing to look at, not a look of 0


def test_the_loss_falls_with_the_window_until_nothing_is_cut_off(shown):
    losses = shown.loss_by_window.tolist()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(shown.loss_full, abs=1e-6)
    assert losses[-2] == pytest.approx(shown.loss_full, abs=1e-3)  # 48 words: no story looks further back
    assert losses[0] > 10 * shown.loss_full
    assert len(shown.loss_by_window_with_sink) == len(losses)


def test_layers_learn_to_relay_when_they_are_trained_with_the_window(shown):
    untrained = dict(zip(shown.loss_windows.tolist(), shown.loss_by_window.tolist(), strict=True))
    trained = dict(zip(shown.trained_windows.tolist(), shown.loss_trained.tolist(), strict=True))
    assert all(loss < 0.5 * untrained[window] for window, loss in trained.items())
    assert trained[24] < 1.1 * shown.loss_full  # three hops of 23 reach over a whole story
    assert trained[4] > 1.5 * shown.loss_full  # nine words do not
    assert shown.trained_reach.tolist() == [3 * (window - 1) for window in trained]


def test_pairs_on_screen_are_the_formulas(shown):
    assert shown.pairs_full == 136
    assert shown.pairs_window == 58
    assert shown.length_pairs.tolist() == [10, 36, 136]
    assert shown.pairs_ratio == pytest.approx(visible_pairs(256) / visible_pairs(256, 4))


def test_sinks_stay_visible_in_the_shown_mask():
    shown = sliding.trace(Config(num_sink_tokens=1))
    assert shown.mask[:, 0].all()
    assert int(shown.mask.sum()) == visible_pairs(16, 4) + 12


def test_the_kernel_of_the_video_ends_at_its_reach(shown):
    for depth, reach, kernel in zip(
        shown.depths.tolist(), shown.kernel_reach.tolist(), shown.kernel_by_depth, strict=True
    ):
        assert reach == depth * 3
        assert kernel[: reach + 1].sum() == pytest.approx(1, abs=1e-6)
        assert kernel[reach + 1 :].isnan().all()
        assert not math.isnan(kernel[reach])


def test_mistral_reads_as_far_as_its_layers_relay_and_keeps_a_window(shown):
    assert (shown.real_name, shown.real_layers, shown.real_window) == ("Mistral-7B", 32, 4096)
    assert shown.real_reach == 32 * 4095
    # keys and values of 8 heads of 128 in two bytes, in every layer
    assert shown.real_cache_bytes.tolist() == [2 * 32 * 8 * 128 * 2 * length for length in (shown.real_length, 4096)]


def test_the_masks_of_the_mixed_stack_are_five_bands_and_a_triangle(shown):
    past = torch.ones(16, 16).tril()
    assert torch.equal(shown.hybrid_masks[5], past)
    assert all(torch.equal(mask, past.triu(-3)) for mask in shown.hybrid_masks[:5])
