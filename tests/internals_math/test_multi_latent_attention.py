from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import multi_latent_attention as mla
from internals_math import multi_latent_attention_experiment as experiment
from internals_math import tiny_lm, trace_store
from internals_math.attention import causal_mask
from internals_math.multi_latent_attention import (
    Config,
    MLAWeights,
    absorb,
    cache_bytes,
    compress,
    expand,
    gqa_equivalent_groups,
    joint_low_rank_factorization,
    macs_per_cached_token,
    mla_attention_absorbed,
    mla_attention_expanded,
    mla_cache_elements_per_token,
    project_queries,
    rope_coupled_matrix,
)
from internals_math.tiny_lm.checkpoints import attention_factory
from tests.oracles import randn
from tests.oracles.multi_latent_attention import as_multi_query, random_weights

WIDTH = 14  # of random_weights


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(mla)


def parts(w, tokens=8, *, positions=None, seed=1, dtype=torch.float64):
    """q_nope, q_rope, c_kv, k_rope of random hidden states."""
    hidden = randn(2, tokens, WIDTH, seed=seed, dtype=dtype)
    positions = torch.arange(tokens) if positions is None else positions
    return (*project_queries(hidden, w, positions), *compress(hidden, w, positions))


# -- attention ---------------------------------------------------------------------------------------------------------


@given(
    precision=st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)]),
    norms=st.booleans(),
    queries=st.integers(1, 6),
    more=st.integers(0, 4),
    causal=st.booleans(),
)
def test_absorbed_and_rebuilt_attention_are_the_same(precision, norms, queries, more, causal):
    dtype, tolerance = precision
    w = random_weights(norms=norms, dtype=dtype)
    q_nope, q_rope, c_kv, k_rope = parts(w, queries + more, dtype=dtype)
    inputs = (q_nope[:, :, more:], q_rope[:, :, more:], c_kv, k_rope, w)
    rebuilt, absorbed = (
        mla_attention_expanded(*inputs, is_causal=causal),
        mla_attention_absorbed(*inputs, is_causal=causal),
    )
    torch.testing.assert_close(absorbed, rebuilt, atol=tolerance, rtol=tolerance)
    assert rebuilt[0].shape == (2, queries, WIDTH)
    torch.testing.assert_close(rebuilt[1].sum(dim=-1), torch.ones(2, 3, queries, dtype=dtype))
    if causal:
        assert (rebuilt[1].masked_select(~causal_mask(queries, queries + more)) == 0).all()


def test_the_library_gives_another_result_with_its_own_scale():
    assert as_multi_query(scale=True) < 1e-12
    assert as_multi_query(scale=False) > 1e-3  # 1 / sqrt(c + r) in place of 1 / sqrt(dh + r)


def test_steps_with_a_cache_give_the_rows_of_one_call():
    w, hidden = random_weights(), randn(2, 7, WIDTH, seed=1)
    expected, _ = mla_attention_expanded(*parts(w, 7), w)
    cache, absorbed = experiment.LatentCache(1), absorb(w)
    for position in range(7):
        x, places = hidden[:, position : position + 1], torch.tensor([position])
        kept = cache.update(*compress(x, w, places), 0)
        output, _ = mla_attention_absorbed(*project_queries(x, w, places), *kept, w, absorbed=absorbed)
        torch.testing.assert_close(output[:, 0], expected[:, position])
    assert cache.get_seq_length() == 7
    assert cache.nbytes == 2 * 7 * mla_cache_elements_per_token(7, 4) * 8


@given(shift=st.integers(1, 500), layout=st.sampled_from(["half", "interleaved"]))
def test_moving_the_whole_text_changes_nothing(shift, layout):
    w = replace(random_weights(), rope_layout=layout)
    here, moved = (mla_attention_expanded(*parts(w, positions=torch.arange(8) + s), w)[0] for s in (0, shift))
    torch.testing.assert_close(moved, here, atol=1e-9, rtol=0)


def test_moving_a_part_of_the_text_changes_the_output():
    w = random_weights()
    here = mla_attention_expanded(*parts(w), w)[0]
    torn = torch.tensor([0, 1, 2, 3, 4, 5, 6, 9])
    assert (mla_attention_expanded(*parts(w, positions=torn), w)[0] - here)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["w_qr", "w_kr"])
def test_without_the_rotary_lane_nobody_knows_the_order(name):
    w = random_weights()
    blind = replace(w, **{name: torch.zeros_like(getattr(w, name))})
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3, 7])  # the last token stays the last
    hidden, places = randn(2, 8, WIDTH, seed=1), torch.arange(8)

    def last(weights, tokens):
        q_nope, q_rope = project_queries(tokens, weights, places)
        latents = compress(tokens, weights, places)
        output, shares = mla_attention_expanded(q_nope[:, :, -1:], q_rope[:, :, -1:], *latents, weights)
        return output, shares[..., -1, :]

    (output, shares), (mixed_output, mixed_shares) = last(blind, hidden), last(blind, hidden[:, order])
    torch.testing.assert_close(mixed_output, output)
    torch.testing.assert_close(mixed_shares, shares[..., order])
    assert (last(w, hidden[:, order])[0] - last(w, hidden)[0]).abs().max() > 1e-3  # with it, everybody does


def test_another_basis_of_the_latent_is_invisible():
    w, basis = random_weights(norms=False), randn(7, 7, seed=5)
    inverse = torch.linalg.inv(basis)
    other = replace(w, w_dkv=basis @ w.w_dkv, w_uk=w.w_uk @ inverse, w_uv=w.w_uv @ inverse)
    torch.testing.assert_close(mla_attention_absorbed(*parts(other), other)[0], mla_attention_absorbed(*parts(w), w)[0])


def test_a_mask_takes_the_place_of_the_causal_one():
    w, visible = random_weights(), torch.eye(8, dtype=torch.bool)
    for attend in (mla_attention_expanded, mla_attention_absorbed):
        output, shares = attend(*parts(w), w, mask=visible)
        torch.testing.assert_close(shares, visible.double().expand(2, 3, 8, 8))
    _, value = expand(parts(w)[2], w)
    torch.testing.assert_close(output, value.transpose(1, 2).flatten(2) @ w.w_o.T)  # each token sees itself alone


def test_batches_may_have_positions_of_their_own():
    w, hidden = random_weights(), randn(2, 8, WIDTH, seed=1)
    places = torch.stack([torch.arange(8), torch.arange(8) * 3])
    (_, q_rope), (_, k_rope) = project_queries(hidden, w, places), compress(hidden, w, places)
    torch.testing.assert_close(q_rope[1], project_queries(hidden[1], w, places[1])[1])
    torch.testing.assert_close(k_rope[1], compress(hidden[1], w, places[1])[1])


# -- why the rotation is decoupled -------------------------------------------------------------------------------------


@given(distance=st.integers(-9, 9), head=st.integers(0, 2), layout=st.sampled_from(["half", "interleaved"]))
def test_the_coupled_matrix_gives_the_scores_of_rotated_content_keys(distance, head, layout):
    from internals_math.rope import apply_rotary, rope_cos_sin, rope_frequencies

    w = replace(random_weights(), rope_layout=layout)
    query, latent = randn(9, seed=3), randn(7, seed=4)
    q, k = (m.unflatten(0, (3, -1))[head] @ x for m, x in ((w.w_uq, query), (w.w_uk, latent)))
    cos, sin = rope_cos_sin(torch.tensor([20, 20 + distance]), rope_frequencies(6, w.rope_theta), layout)
    rotated = apply_rotary(torch.stack([q, k]), cos, sin, layout)
    merged = query @ rope_coupled_matrix(w, head, distance) @ latent
    torch.testing.assert_close(merged, rotated[0] @ rotated[1])


def test_every_distance_has_another_matrix():
    w = random_weights()
    coupled = torch.stack([rope_coupled_matrix(w, 1, delta) for delta in range(6)])
    w_uq, w_uk = (m.unflatten(0, (3, -1))[1] for m in (w.w_uq, w.w_uk))
    torch.testing.assert_close(coupled[0], w_uq.T @ w_uk)
    assert torch.linalg.matrix_rank(coupled).max() <= 6
    for one in range(6):
        for other in range(one):
            assert (coupled[one] - coupled[other]).norm() > 0.05 * coupled[0].norm()


# -- low rank ----------------------------------------------------------------------------------------------------------


@given(rank=st.integers(1, 9))
def test_what_a_rank_loses_is_the_tail_of_the_singular_values(rank):
    w_k, w_v = randn(12, 9, seed=1), randn(10, 9, seed=2)
    w_dkv, w_uk, w_uv, singular_values = joint_low_rank_factorization(w_k, w_v, rank)
    error = torch.cat([w_uk @ w_dkv - w_k, w_uv @ w_dkv - w_v]).norm()
    torch.testing.assert_close(error, singular_values[rank:].square().sum().sqrt(), atol=1e-12, rtol=1e-9)
    assert (singular_values.diff() <= 0).all()
    assert w_dkv.shape == (rank, 9)


def test_at_full_rank_the_tiny_lm_is_unchanged():
    base = tiny_lm.load("base")
    whole, cut = experiment.low_rank_lm(base, 32), experiment.low_rank_lm(base, 8)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    with torch.no_grad():
        torch.testing.assert_close(whole(ids), base(ids), atol=1e-3, rtol=0)
        assert (cut(ids) - base(ids)).abs().max() > 1
    assert len(joint_low_rank_factorization(*experiment.key_and_value_weights(base, 0), 1)[3]) == 32  # of 64 rows


# -- counting ----------------------------------------------------------------------------------------------------------


@given(c=st.integers(1, 600), r=st.integers(1, 64), layers=st.integers(1, 80), head_dim=st.integers(1, 256))
def test_the_bill_is_that_of_so_many_key_value_heads(c, r, layers, head_dim):
    elements = mla_cache_elements_per_token(c, r, layers)
    assert elements == layers * mla_cache_elements_per_token(c, r)
    assert 2 * gqa_equivalent_groups(c, r, head_dim) * head_dim * layers == pytest.approx(elements)
    assert cache_bytes(elements, 16) == 2 * elements


def test_the_multiply_adds_are_those_of_the_tensors():
    w = random_weights()
    w_uk = absorb(w).w_uk_per_head
    rebuilt = w_uk.shape[1] + w.w_kr.shape[0] + w.v_head_dim
    absorbed = w_uk.shape[2] + w.w_kr.shape[0] + w_uk.shape[2]
    assert macs_per_cached_token(6, 4, 5, 7) == (rebuilt, absorbed)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: replace(w, qk_rope_head_dim=3), r"qk_rope_head_dim must be even \(rotary pairs\), got 3"),
        (lambda w: replace(w, num_heads=0), "num_heads must be at least 1, got 0"),
        (lambda w: replace(w, w_uk=w.w_uv), r"w_uk must have shape \(18, 7\), got \(15, 7\)"),
        (lambda w: replace(w, w_o=w.w_o.T), r"w_dq must have shape \(9, 15\), got \(9, 14\)"),
        (lambda w: replace(w, kv_norm=torch.ones(3)), r"kv_norm must have shape \(7,\), got \(3,\)"),
        (lambda w: compress(torch.zeros(5, 13), w, torch.arange(5)), "hidden must be 14 wide, got 13"),
        (lambda w: compress(torch.zeros(5, 14), w, torch.arange(4)), "each token needs its position, got 5 tokens"),
        (lambda w: rope_coupled_matrix(w, 3, 1), r"head must be in 0\.\.2, got 3"),
        (lambda w: mla_attention_expanded(*parts(w)[:3], torch.zeros(2, 7, 4), w), "each latent needs its rotary key"),
        (
            lambda w: mla_attention_absorbed(*parts(w)[:2], *(part[:, :5] for part in parts(w)[2:]), w),
            "at least as many cached tokens as queries, got 5 and 8",
        ),
        (lambda w: joint_low_rank_factorization(w.w_uk, w.w_uv, 8), r"rank must be in 1\.\.7, got 8"),
        (lambda w: joint_low_rank_factorization(w.w_uk, w.w_uv, 0), r"rank must be in 1\.\.7, got 0"),
        (lambda w: mla_cache_elements_per_token(0, 4), "kv_lora_rank must be at least 1, got 0"),
        (lambda w: cache_bytes(8, 0), "bits positive, got 8 and 0"),
        (lambda w: attention_factory("os:system"), "attention must be the module:name of one of this project"),
        (lambda w: attention_factory("internals_math.rope:Rope"), "got 'internals_math.rope:Rope'"),
        (lambda w: Config(qk_rope_head_dim=3), "qk_rope_head_dim must be one of 2, 4, 8, got 3"),
        (lambda w: Config(kv_lora_rank=3), r"kv_lora_rank must be in 4\.\.32, got 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call(random_weights())


def test_content_keys_of_odd_width_cannot_be_rotated(plain_python):
    w = random_weights()
    odd = MLAWeights(
        **{**vars(w), "w_uq": w.w_uq[:15], "w_uk": w.w_uk[:15], "qk_nope_head_dim": 5},
    )
    with pytest.raises(ValueError, match="head_dim must be even"):
        rope_coupled_matrix(odd, 0, 1)


# -- the tiny LM with latents ------------------------------------------------------------------------------------------


def test_the_model_writes_the_same_with_a_cache_of_latents():
    model, cache = tiny_lm.get_variant("mla"), experiment.LatentCache(3)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(3))])
    with torch.no_grad():
        full = model(ids)
        chunks = [model(chunk, cache=cache) for chunk in (ids[:, :5], ids[:, 5:6], ids[:, 6:9], ids[:, 9:10])]
    torch.testing.assert_close(torch.cat(chunks, dim=1), full[:, :10], atol=1e-4, rtol=0)
    assert cache.nbytes == 10 * 3 * 16 * 4


def test_the_committed_model_is_as_big_as_its_rivals():
    sizes = {name: tiny_lm.load(name).num_params for name in ("base", "mqa", "mla")}
    assert sizes["mla"] - sizes["base"] == 3 * 8  # the norm of the latent in three layers
    assert sizes["mqa"] == sizes["base"]


def test_other_sizes_train_a_model_of_their_own(monkeypatch):
    short = replace(tiny_lm.VARIANTS["mla"], recipe=tiny_lm.Recipe(steps=2, batch_size=4))
    monkeypatch.setitem(tiny_lm.VARIANTS, "mla", short)
    model = experiment.latent_lm(Config(kv_lora_rank=6, qk_rope_head_dim=2))
    w = experiment.attention_of(model, 2).weights()
    assert w.w_dkv.shape == (6, 32)
    assert w.w_kr.shape == (2, 32)


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_the_pictures_of_one_head_belong_together(trace):
    scale = 16**-0.5  # 8 content + 8 rotary
    for head in range(4):
        keys = trace.c_kv @ trace.w_uk[head].T
        torch.testing.assert_close(trace.k_nope[head], keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(trace.value[head], trace.c_kv @ trace.w_uv[head].T, atol=1e-5, rtol=0)
        torch.testing.assert_close(trace.q_absorbed[head], trace.q_nope[head] @ trace.w_uk[head], atol=1e-5, rtol=0)
        future = ~causal_mask(8)
        for scores in (trace.scores_content, trace.scores_content_absorbed):
            expected = (trace.q_nope[head] @ keys.T * scale).masked_fill(future, torch.nan)
            torch.testing.assert_close(scores[head], expected, atol=1e-5, rtol=0, equal_nan=True)
        torch.testing.assert_close(trace.mixed_latent[head], trace.weights[head] @ trace.c_kv, atol=1e-5, rtol=0)
        rebuilt = trace.mixed_latent[head] @ trace.w_uv[head].T
        torch.testing.assert_close(trace.head_output[head], rebuilt, atol=1e-5, rtol=0)
    total = torch.softmax(trace.scores.nan_to_num(nan=-torch.inf), dim=-1)
    torch.testing.assert_close(trace.weights, total, atol=1e-5, rtol=0)
    assert trace.max_abs_diff < 1e-5 > trace.max_abs_diff_scores
    torch.testing.assert_close(trace.output_absorbed, trace.output_expanded, atol=1e-5, rtol=0)


def test_every_head_rebuilds_other_keys_from_the_same_latents(trace):
    for one in range(4):
        for other in range(one):
            assert (trace.k_nope[one] - trace.k_nope[other]).abs().mean() > 0.1


def test_the_wall_of_64_numbers_has_32_directions(trace):
    assert trace.wall.shape == (16, 64)
    assert (trace.wall_width, trace.wall_directions) == (64, 32)
    values = trace.singular_values_cache
    assert len(values) == 64
    assert (values[:32] > 1e-2 * values[0]).all()
    assert (values[32:] < 1e-5 * values[0]).all()


def test_cutting_directions_costs_more_and_more(trace):
    losses = trace.ranks.eval_loss
    assert trace.ranks.rank.tolist() == [32, 28, 24, 20, 16, 12, 8, 4]
    assert losses[0] == pytest.approx(float(trace.models.eval_loss[0]), abs=1e-3)  # exact at full rank
    assert losses[1] < losses[0] + 0.002  # graceful
    assert (losses.diff() > 0).all()
    assert losses[-1] > 3  # sharp


def test_the_merged_matrix_drifts_away_with_the_distance(trace):
    assert trace.rope_change[0] == 0
    assert (trace.rope_change[1:] > 0.2).all()
    w = experiment.attention_of(tiny_lm.load("mla"), 1).weights()
    torch.testing.assert_close(trace.rope_coupled[3], rope_coupled_matrix(w, 0, -3), atol=1e-5, rtol=0)


def test_where_query_and_key_stand_in_one_place_the_rotary_score_is_that_of_unturned_vectors(trace):
    w = experiment.attention_of(tiny_lm.load("mla"), 1).weights()
    keys, queries = trace.hidden @ w.w_kr.T, (trace.hidden @ w.w_qr.T).unflatten(-1, (4, 8)).transpose(0, 1)
    expected = (queries * keys).sum(dim=-1) / 4  # scale 1/√16
    torch.testing.assert_close(trace.scores_rope.diagonal(dim1=1, dim2=2), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.k_rope.norm(dim=1), keys.norm(dim=1))
    torch.testing.assert_close(trace.scores, trace.scores_content + trace.scores_rope, equal_nan=True)
    assert torch.equal(trace.scores_rope.isnan(), (~causal_mask(8)).expand(4, 8, 8))


def test_the_hands_stand_where_a_key_of_that_many_words_ago_is_turned_to(trace):
    places = torch.arange(len(trace.distances))
    assert torch.equal(trace.distances, places)
    angles = -places[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(trace.rope_hands, torch.stack([angles.cos(), angles.sin()], dim=-1), atol=1e-5, rtol=0)


def test_the_directions_of_the_weights_are_the_singular_values_of_both_matrices_together(trace):
    w_k, w_v = experiment.key_and_value_weights(tiny_lm.load("base"), 1)
    expected = torch.linalg.svdvals(torch.cat([w_k, w_v]).double()).float()
    torch.testing.assert_close(trace.singular_values_weights, expected, atol=1e-5, rtol=1e-4)


def test_the_shown_ratios_are_the_papers(trace):
    assert trace.head_names == ("head 1", "head 2", "head 3", "head 4")
    assert trace.macs_per_cached_token.tolist() == [320, 1088]
    assert len(trace.macs_names) == 2
    assert trace.equal_groups == 2.25  # 2405.04434, table 1
    assert trace.cache_ratio == pytest.approx(32_768 / 576)
    assert trace.saved_by_elements == pytest.approx(1 - 34_560 / 194_560)
    assert trace.saved_in_the_paper == pytest.approx(0.933, abs=5e-4)  # abstract
    low, high = trace.loss_seed_spread.tolist()
    assert low <= float(trace.models.eval_loss[0]) + 1e-4
    assert float(trace.models.eval_loss[0]) <= high + 1e-4


def test_the_latent_model_keeps_as_little_as_the_one_with_a_single_memory(trace):
    own, shared, latent = trace.models.cache_elements.tolist()
    assert (own, shared, latent) == (64, 16, 16)
    assert trace.caches.elements.tolist() == [64, 32, 16, 16]
    assert trace.cache_elements_per_token.tolist() == [8, 8]
    facts = tiny_lm.read_facts(tiny_lm.committed_path("mla"))
    assert float(trace.models.eval_loss[2]) == pytest.approx(facts["loss"], abs=1e-4)
    torch.testing.assert_close(trace.models.excess, trace.models.eval_loss - trace.entropy_floor)


def test_the_caches_of_the_tiny_models_are_those_of_the_tensors(trace):
    per_token = trace.keys_mha[:, 0].numel() + trace.values_mha[:, 0].numel()
    assert per_token == trace.caches.elements[0]
    assert trace.c_kv[0].numel() + trace.k_rope[0].numel() == trace.caches.elements[3]
