import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from internals_math import structured_pruning, tiny_lm, trace_store
from internals_math import structured_pruning_experiment as experiment
from internals_math.kv_cache import KVCache, linear_flops_per_token
from internals_math.model_shapes import parameter_count, preset
from internals_math.next_token import next_token_loss
from internals_math.rope import rope_cos_sin
from internals_math.structured_pruning import (
    METHODS,
    Config,
    PrunedShape,
    SlicedAttention,
    ablate_head_loss,
    angular_distance,
    block_influence,
    channel_importance,
    count_params,
    drop_layers,
    flops_per_token,
    gate_gradients,
    head_contributions,
    head_importance,
    nm_bits,
    nm_compress,
    nm_decompress,
    nm_mask,
    predicted_delta,
    prune_model,
    rank_correlation,
    row_mask,
    slice_ffn,
    slice_heads,
    sparsity,
)
from tests.oracles import randn

seeds = st.integers(0, 10_000)
BASE = tiny_lm.load("base")
IDS = tiny_lm.held_out(3).ids
TEXTS = tiny_lm.held_out(8)
HALVES = [TEXTS.rows(range(3)), TEXTS.rows(range(3, 8))]


def projections(seed, heads=4, groups=4, head_dim=4, width=6):
    shapes = ((heads * head_dim, width), (groups * head_dim, width), (groups * head_dim, width))
    weights = [randn(*shape, seed=seed + k) for k, shape in enumerate(shapes)]
    return (*weights, randn(width, heads * head_dim, seed=seed + 3))


def gate(sizes, kept):
    """A mask that is 1 where a unit is kept."""
    mask = torch.zeros(sizes)
    for layer, units in enumerate(kept):
        mask[layer, list(units)] = 1.0
    return mask


# -- units that leave --------------------------------------------------------------------------------------------------


def added_by(weights, x, rotary):
    """What sliced attention of heads of width 4 adds for one text."""
    positions = torch.arange(len(x))
    layer = SlicedAttention(*weights, 4)
    return layer(x[None], layer_idx=0, position_ids=positions, rotary=rotary, cache=None, mask=None)[0].detach()


ROTARY = rope_cos_sin(torch.arange(5), torch.tensor([1.0, 0.1], dtype=torch.float64))


@settings(max_examples=20)
@given(seeds)
def test_what_the_heads_of_a_layer_add_sums_to_its_output(seed):
    weights, x = projections(seed), randn(5, 6, seed=seed + 4)
    parts = head_contributions(x, *weights, 4, ROTARY)
    torch.testing.assert_close(parts.sum(dim=0), added_by(weights, x, ROTARY), atol=1e-5, rtol=0)
    alone = head_contributions(x, *slice_heads(*weights, [2], 4), 1, ROTARY)
    torch.testing.assert_close(alone[0], parts[2])
    assert not torch.allclose(head_contributions(x, *weights, 4), parts)  # the rotation matters
    changed = head_contributions(torch.cat([x[:1], -x[1:]]), *weights, 4, ROTARY)
    torch.testing.assert_close(changed[:, 0], parts[:, 0])  # the first token does not see the others


def test_heads_leave_with_their_rows_and_columns_in_rising_order():
    w_q, w_k, w_v, w_o = projections(0)
    sliced = slice_heads(w_q, w_k, w_v, w_o, [3, 1], 4)
    rows = [4, 5, 6, 7, 12, 13, 14, 15]
    for part, whole in zip(sliced, (w_q[rows], w_k[rows], w_v[rows], w_o[:, rows]), strict=True):
        assert torch.equal(part, whole)
    gate_up_down = randn(5, 6, seed=1), randn(5, 6, seed=2), randn(6, 5, seed=3)
    w_gate, w_up, w_down = slice_ffn(*gate_up_down, [4, 0, 2])
    assert torch.equal(w_gate, gate_up_down[0][[0, 2, 4]])
    assert torch.equal(w_up, gate_up_down[1][[0, 2, 4]])
    assert torch.equal(w_down, gate_up_down[2][:, [0, 2, 4]])


def test_a_key_value_head_leaves_with_the_last_of_its_group():
    w_q, w_k, w_v, w_o = projections(0, heads=4, groups=2)
    q, k, v, o = slice_heads(w_q, w_k, w_v, w_o, [2, 3], 4)
    assert torch.equal(q, w_q[8:])
    assert torch.equal(k, w_k[4:])
    assert torch.equal(v, w_v[4:])
    assert torch.equal(o, w_o[:, 8:])
    both = slice_heads(w_q, w_k, w_v, w_o, [0, 3], 4)  # one of each group: both key-value heads stay
    assert torch.equal(both[1], w_k)
    x, off = randn(5, 6, seed=9), w_o.clone()
    off[:, 4:12] = 0
    torch.testing.assert_close(added_by(both, x, ROTARY), added_by((w_q, w_k, w_v, off), x, ROTARY))
    with pytest.raises(ValueError, match=r"groups of equal size: of the groups of 2 heads it leaves \[2, 1\]"):
        slice_heads(w_q, w_k, w_v, w_o, [0, 1, 3], 4)


@settings(max_examples=8)
@given(st.data())
def test_a_sliced_model_computes_what_the_masked_one_computes(data):
    some = lambda n: st.lists(st.integers(0, n - 1), min_size=1, unique=True)  # noqa: E731
    heads = [data.draw(some(4)) for _ in range(3)]
    channels = [data.draw(some(96)) for _ in range(3)]
    layers = data.draw(some(3))
    for kept_heads, kept_channels, kept_layers in (
        (heads, None, None), (None, channels, None), (None, None, layers), (heads, channels, layers)
    ):  # fmt: skip
        sliced = prune_model(BASE, kept_heads, kept_channels, kept_layers)
        masked = BASE(
            IDS,
            head_mask=None if kept_heads is None else gate((3, 4), kept_heads),
            channel_mask=None if kept_channels is None else gate((3, 96), kept_channels),
            skip_layers=() if kept_layers is None else set(range(3)) - set(kept_layers),
        )
        torch.testing.assert_close(sliced(IDS), masked, atol=1e-5 * float(masked.abs().max()), rtol=0)
        shape = PrunedShape.of(sliced)
        assert count_params(shape) == sliced.num_params
        assert len(shape.heads) == (3 if kept_layers is None else len(kept_layers))
    assert BASE.num_params == 43744  # the model itself is as it was


def test_a_smaller_model_writes_with_a_cache_as_without():
    sliced = prune_model(BASE, [[0, 2], [1], [0, 1, 3]], None, [0, 2])
    cache = KVCache(2)
    steps = [sliced(IDS[:, t : t + 1], cache=cache) for t in range(6)]
    torch.testing.assert_close(torch.cat(steps, dim=1), sliced(IDS[:, :6]), atol=1e-4, rtol=1e-4)
    visible = torch.ones(6, 6, dtype=torch.bool)
    assert not torch.allclose(sliced(IDS[:, :6], mask=visible), sliced(IDS[:, :6]))


def test_dropping_a_layer_adds_nothing_where_it_was():
    for layer in range(3):
        torch.testing.assert_close(drop_layers(BASE, [layer])(IDS), BASE(IDS, skip_layers=[layer]))
    assert torch.equal(drop_layers(BASE, [])(IDS), BASE(IDS))
    assert drop_layers(BASE, [0, 2]).config.num_hidden_layers == 1


def test_a_residual_dimension_is_no_free_unit():
    """Deleting an all-zero dimension changes every norm, and the gain must make up for it."""
    x, weight = randn(5, 8, seed=0), 1 + 0.1 * randn(8, seed=1)
    x[:, 3] = 0
    kept = [k for k in range(8) if k != 3]
    whole = tiny_lm.rms_norm(x, weight, 0.0)[:, kept]
    torch.testing.assert_close(tiny_lm.rms_norm(x[:, kept], weight[kept], 0.0), whole * math.sqrt(7 / 8))
    torch.testing.assert_close(tiny_lm.rms_norm(x[:, kept], weight[kept] * math.sqrt(8 / 7), 0.0), whole)


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gates():
    return gate_gradients(BASE, HALVES)


def test_a_channels_gate_moves_the_loss_as_its_up_row_and_its_down_column_do():
    """Both are linear in the gate; the gate matrix, inside SiLU, is not."""
    model = tiny_lm.copy_of(BASE)
    text = TEXTS.rows([0])
    next_token_loss(model(text.ids), text.labels()).backward()
    expected = gate_gradients(BASE, [text]).channels[0]
    for layer in range(3):
        mlp = model.model.layers[layer].mlp
        down, up, inner = ((p.weight * p.weight.grad).detach() for p in (mlp.down_proj, mlp.up_proj, mlp.gate_proj))
        torch.testing.assert_close(down.sum(dim=0), expected[layer], atol=1e-5, rtol=0)
        torch.testing.assert_close(up.sum(dim=1), expected[layer], atol=1e-5, rtol=0)
        assert (inner.sum(dim=1) - expected[layer]).abs().max() > 1e-3


def test_a_heads_gate_moves_the_loss_as_its_values_and_its_columns_do():
    model = tiny_lm.copy_of(BASE)
    text = TEXTS.rows([1])
    next_token_loss(model(text.ids), text.labels()).backward()
    expected = gate_gradients(BASE, [text]).heads[0]
    for layer in range(3):
        attention = model.model.layers[layer].self_attn
        out, value, query = (
            (p.weight * p.weight.grad).detach() for p in (attention.o_proj, attention.v_proj, attention.q_proj)
        )
        torch.testing.assert_close(out.view(32, 4, 8).sum(dim=(0, 2)), expected[layer], atol=1e-5, rtol=0)
        torch.testing.assert_close(value.view(4, 8, 32).sum(dim=(1, 2)), expected[layer], atol=1e-5, rtol=0)
        assert (query.view(4, 8, 32).sum(dim=(1, 2)) - expected[layer]).abs().max() > 1e-3


def test_the_prediction_errs_by_the_square_of_how_far_a_gate_closes():
    model, errors = tiny_lm.copy_of(BASE).double(), []
    predicted, whole = predicted_delta(model, HALVES), tiny_lm.evaluate(model, TEXTS)
    for step in (0.02, 0.01, 0.005):
        mask = torch.ones(3, 4, dtype=torch.float64)
        mask[1, 0] -= step
        errors.append(tiny_lm.evaluate(model, TEXTS, head_mask=mask) - whole - step * float(predicted[1, 0]))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_importance_takes_every_texts_size_before_the_mean_and_signs_would_cancel(gates):
    importance = head_importance(BASE, HALVES)
    torch.testing.assert_close(importance, gates.heads.abs().mean(dim=0))
    assert (importance > gates.heads.mean(dim=0).abs()).all()
    weights = gates.tokens / gates.tokens.sum()
    torch.testing.assert_close(predicted_delta(BASE, HALVES), -torch.einsum("n,nlh->lh", weights, gates.heads))
    assert torch.equal(gates.tokens, TEXTS.lengths - 1)
    normal = head_importance(BASE, HALVES, normalize=True)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(normal / normal[:, :1], importance / importance[:, :1])


def test_scores_do_not_depend_on_the_order_or_the_size_of_batches():
    for score in (
        head_importance,
        predicted_delta,
        ablate_head_loss,
        lambda model, texts: channel_importance(model, texts, "taylor_vector"),
        lambda model, texts: channel_importance(model, texts, "taylor_element"),
        lambda model, texts: channel_importance(model, texts, "activation"),
    ):
        forward = score(BASE, HALVES)
        torch.testing.assert_close(score(BASE, HALVES[::-1]), forward, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(score(BASE, [TEXTS]), forward, atol=1e-6, rtol=1e-4)


def test_renaming_heads_renames_their_scores_and_changes_nothing_else():
    order = [2, 0, 3, 1]
    rows = torch.cat([torch.arange(8 * head, 8 * head + 8) for head in order])
    state = dict(BASE.state_dict())
    for name in ("q_proj", "k_proj", "v_proj"):
        state[f"model.layers.1.self_attn.{name}.weight"] = state[f"model.layers.1.self_attn.{name}.weight"][rows]
    out = "model.layers.1.self_attn.o_proj.weight"
    state[out] = state[out][:, rows]
    renamed = tiny_lm.copy_of(BASE, state).requires_grad_(False)
    torch.testing.assert_close(renamed(IDS), BASE(IDS), atol=1e-3, rtol=1e-4)
    before, after = head_importance(BASE, [TEXTS]), head_importance(renamed, [TEXTS])
    torch.testing.assert_close(after[1], before[1][order], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-6, rtol=1e-3)


def test_a_dead_channel_has_no_score_by_any_measure():
    state = dict(BASE.state_dict())
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name].clone()
    state[name][7] = 0
    model = tiny_lm.copy_of(state=state, model=BASE).requires_grad_(False)
    for method in ("taylor_vector", "activation", "magnitude"):
        scores = channel_importance(model, [TEXTS], method)
        assert scores.shape == (3, 96)
        assert int(scores[1].argmin()) == 7
        assert scores[1, 7] == pytest.approx(0, abs=1e-6)
        assert (scores >= 0).all()


def test_activation_and_magnitude_scores_are_what_they_say():
    _, record = BASE(TEXTS.ids, record=("linear_inputs",))
    hidden = record["linear_inputs"]["model.layers.2.mlp.down_proj.weight"]
    real = torch.cat([row[:length] for row, length in zip(hidden, TEXTS.lengths.tolist(), strict=True)])
    torch.testing.assert_close(channel_importance(BASE, HALVES, "activation")[2], real.abs().mean(dim=0))
    mlp = BASE.model.layers[0].mlp
    product = mlp.gate_proj.weight[5].norm() * mlp.up_proj.weight[5].norm() * mlp.down_proj.weight[:, 5].norm()
    assert float(channel_importance(BASE, HALVES, "magnitude")[0, 5]) == pytest.approx(float(product))
    lots = [channel_importance(BASE, HALVES, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(lots[0], lots[1])
    assert not torch.equal(lots[0], lots[2])


# -- layers ------------------------------------------------------------------------------------------------------------


@given(seeds)
def test_influence_and_angle_of_one_layer_are_one_measure(seed):
    hidden = randn(4, 1, 6, seed=seed)
    influence, angle = block_influence(hidden), angular_distance(hidden, 1)
    torch.testing.assert_close(influence, 1 - torch.cos(math.pi * angle))
    assert ((influence >= 0) & (influence <= 2)).all()
    for n in (1, 2, 3):
        assert angular_distance(hidden, n).shape == (4 - n,)
        assert ((angular_distance(hidden, n) >= 0) & (angular_distance(hidden, n) <= 1)).all()
    torch.testing.assert_close(angular_distance(hidden, 2)[1], angular_distance(hidden[[1, 3]], 1)[0])


def test_a_layer_that_adds_nothing_has_no_influence_and_one_that_reverses_has_all():
    x = randn(3, 5, 8, seed=0)
    hidden = torch.stack([x, x, 2 * x, -x])
    torch.testing.assert_close(block_influence(hidden), torch.tensor([0.0, 0, 2], dtype=torch.float64))
    assert torch.equal(angular_distance(hidden, 1).round(decimals=6), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    right = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    assert float(angular_distance(right, 1)) == pytest.approx(0.5)
    mixed = torch.stack([torch.stack([x[0, 0], x[0, 1]]), torch.stack([x[0, 0], -x[0, 1]])])
    assert float(block_influence(mixed)) == pytest.approx(1)  # the mean over tokens of 0 and 2
    assert float(angular_distance(mixed, 1)) == pytest.approx(0.5)
    assert block_influence(hidden[:, 0, 0]).shape == (3,)


@given(seeds)
def test_ranks_alone_decide_the_rank_correlation(seed):
    values = randn(9, seed=seed)
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1)


# -- N of M ------------------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)]))
def test_every_group_keeps_its_n_highest_and_comes_back_whole(seed, pattern):
    n, m = pattern
    weight = randn(3, 3 * m, seed=seed)
    mask = nm_mask(weight, n, m)
    groups, kept = weight.abs().view(3, 3, m), mask.view(3, 3, m)
    assert (kept.sum(dim=-1) == n).all()
    assert sparsity(mask) == pytest.approx(1 - n / m)
    best = torch.stack([groups[..., list(pick)].sum(dim=-1) for pick in combinations(range(m), n)]).amax(dim=0)
    torch.testing.assert_close((groups * kept).sum(dim=-1), best)
    values, indices = nm_compress(weight, mask, m)
    assert values.shape == indices.shape == (3, 3 * n)
    assert indices.max() < m
    assert torch.equal(nm_decompress(values, indices, n, m), weight * mask)
    order = [2, 0, 1]
    shuffled = weight.view(3, 3, m)[:, order].flatten(1)
    assert torch.equal(nm_mask(shuffled, n, m), kept[:, order].flatten(1))


def test_two_of_four_by_hand():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    mask = nm_mask(weight)
    assert mask.tolist() == [[False, True, True, False, False, False, True, True]]  # of equal ones the later stay
    values, indices = nm_compress(weight, mask)
    assert values.tolist() == [[-3.0, 2.0, 0.0, 0.0]]
    assert indices.tolist() == [[1, 2, 2, 3]]
    by_score = nm_mask(weight, scores=torch.tensor([[9.0, 0, 0, 8, 1, 2, 3, 4]]))
    assert by_score.tolist() == [[True, False, False, True, False, False, True, True]]
    assert nm_bits(8, 16) == 4 * 18
    assert nm_bits(16, 8, 1, 8) == 2 * (8 + 3)


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama-2-7B", "Llama-3-8B", "Llama-2-70B"])
def test_an_unpruned_shape_counts_as_the_published_one(name):
    shape = PrunedShape.of(preset(name))
    assert count_params(shape) == parameter_count(preset(name))
    attended = 4 * 128 * preset(name).num_attention_heads * preset(name).num_hidden_layers
    head = 2 * shape.vocab_size * shape.hidden_size
    assert flops_per_token(shape, 1) == linear_flops_per_token(preset(name)) + head + attended
    assert flops_per_token(shape, 11) - flops_per_token(shape, 1) == 10 * attended


def test_the_cost_of_a_unit_is_the_same_wherever_it_leaves():
    def cost(heads, channels):
        shape = PrunedShape(32, 8, 112, heads, heads, channels, tied=True)
        return count_params(shape), flops_per_token(shape, 64)

    whole = cost((4, 4, 4), (96, 96, 96))
    assert whole[0] == 43744
    for one, other, both in (
        (((3, 4, 4), (96,) * 3), ((4, 4, 2), (96,) * 3), ((3, 4, 2), (96,) * 3)),
        (((4,) * 3, (90, 96, 96)), ((4, 1, 4), (96,) * 3), ((4, 1, 4), (90, 96, 96))),
    ):
        for k in (0, 1):
            assert whole[k] - cost(*both)[k] == (whole[k] - cost(*one)[k]) + (whole[k] - cost(*other)[k])
    # a head is 4 x 32 x 8 weights and 4 x 8 FLOPs for each of 64 positions; a channel is 3 x 32 weights
    assert whole[0] - cost((3, 4, 4), (96,) * 3)[0] == 1024
    assert whole[1] - cost((3, 4, 4), (96,) * 3)[1] == 2 * 1024 + 4 * 8 * 64
    assert whole[1] - cost((4, 4, 4), (95, 96, 96))[1] == 2 * 96


@given(seeds)
def test_rows_of_least_norm_go(seed):
    weight = randn(6, 4, seed=seed)
    mask = row_mask(weight, 0.5)
    assert sparsity(mask) == 0.5
    assert (mask.all(dim=1) | ~mask.any(dim=1)).all()
    norms = weight.norm(dim=1)
    assert norms[mask.any(dim=1)].min() >= norms[~mask.any(dim=1)].max()


# -- refused input -----------------------------------------------------------------------------------------------------

QKVO, FFN = projections(0), (torch.ones(5, 6), torch.ones(5, 6), torch.ones(6, 5))
W, MASK = torch.ones(2, 8), nm_mask(torch.ones(2, 8))
WRONG = [
    (lambda: slice_heads(*QKVO, [], 4), "keep must hold one or more different numbers in 0..3, got \\[\\]"),
    (lambda: slice_heads(*QKVO, [1, 1], 4), "in 0..3, got \\[1, 1\\]"),
    (lambda: slice_heads(*QKVO, [4], 4), "in 0..3, got \\[4\\]"),
    (lambda: slice_heads(*QKVO, [-1], 4), "in 0..3, got \\[-1\\]"),
    (lambda: slice_heads(*QKVO, [0], 5), "do not fit head_dim 5: got \\(16, 6\\)"),
    (lambda: slice_heads(*QKVO, [0], 0), "do not fit head_dim 0"),
    (lambda: slice_heads(QKVO[0], QKVO[1][:4], *QKVO[2:], [0], 4), "do not fit head_dim 4: .* \\(4, 6\\)"),
    (lambda: slice_heads(*QKVO[:3], QKVO[3][:, :4], [0], 4), "do not fit head_dim 4: .* \\(6, 4\\)"),
    (lambda: slice_heads(*projections(0, 4, 3), [0], 4), "do not fit head_dim 4"),
    (lambda: slice_ffn(*FFN, []), "in 0..4, got \\[\\]"),
    (lambda: slice_ffn(*FFN, [5]), "in 0..4, got \\[5\\]"),
    (lambda: slice_ffn(*FFN, [2, 2]), "in 0..4, got \\[2, 2\\]"),
    (lambda: slice_ffn(FFN[0], FFN[1][:3], FFN[2], [0]), "got \\(5, 6\\), \\(3, 6\\) and \\(6, 5\\)"),
    (lambda: slice_ffn(FFN[0], FFN[1], FFN[2].T, [0]), "and \\(5, 6\\)"),
    (lambda: prune_model(BASE, keep_heads=[[0]]), "keep_heads must have an entry for each of the 3 layers, got 1"),
    (lambda: prune_model(BASE, keep_channels=[[0]] * 4), "keep_channels must have .* 3 layers, got 4"),
    (lambda: prune_model(BASE, keep_layers=[]), "keep_layers must hold .* in 0..2, got \\[\\]"),
    (lambda: prune_model(BASE, keep_layers=[3]), "keep_layers must hold .* got \\[3\\]"),
    (lambda: drop_layers(BASE, [0, 1, 2]), "at least one of the 3 layers must stay, got layers \\[0, 1, 2\\]"),
    (lambda: drop_layers(BASE, [3]), "layers must hold .* in 0..2, got \\[3\\]"),
    (lambda: drop_layers(BASE, [1, 1]), "layers must hold .* got \\[1, 1\\]"),
    (lambda: channel_importance(BASE, [TEXTS], "hessian"), "method must be one of taylor_vector, .* got 'hessian'"),
    (lambda: channel_importance(BASE, [], "magnitude"), "batches must hold at least one set of texts"),
    (lambda: head_importance(BASE, []), "batches must hold at least one set of texts"),
    (lambda: ablate_head_loss(BASE, []), "batches must hold at least one set of texts"),
    (lambda: rank_correlation(torch.ones(3), torch.ones(2)), "as many values, got 3 and 2"),
    (lambda: rank_correlation(torch.ones(3), torch.arange(3.0)), "a constant has no ranks"),
    (lambda: rank_correlation(torch.arange(3.0), torch.ones(3)), "a constant has no ranks"),
    (lambda: block_influence(torch.zeros(3, 2, 4)), "a hidden state of zeros has no direction"),
    (lambda: angular_distance(torch.zeros(3, 2, 4), 1), "a hidden state of zeros has no direction"),
    (lambda: angular_distance(torch.ones(3, 2, 4), 3), r"n must be in 1..2 \(the layers\), got 3"),
    (lambda: angular_distance(torch.ones(3, 2, 4), 0), "got 0"),
    (lambda: nm_mask(torch.ones(2, 6)), "whole groups of 4, got 6"),
    (lambda: nm_mask(W, 4, 4), "n must be in 1..m - 1, got n 4 of m 4"),
    (lambda: nm_mask(W, 0, 4), "got n 0 of m 4"),
    (lambda: nm_mask(W, scores=torch.ones(2, 4)), r"scores must be of shape \(2, 8\), got \(2, 4\)"),
    (lambda: nm_compress(W, MASK[:, :4]), r"the mask must be of shape \(2, 8\), got \(2, 4\)"),
    (lambda: nm_compress(W, torch.arange(16).view(2, 8) < 3), "keep as many weights in every group of 4"),
    (lambda: nm_decompress(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.uint8)), "keeps 2 values, got rows of 3"),
    (lambda: nm_bits(6, 16), "whole groups of 4, got 6"),
    (lambda: nm_bits(8, 16, 4, 4), "got n 4 of m 4"),
    (lambda: flops_per_token(PrunedShape.of(BASE), 0), "context must be at least 1, got 0"),
    (lambda: PrunedShape(32, 8, 112, (4, 4), (4, 4), (96,)), "entry for each layer, got 2, 2 and 1"),
    (lambda: row_mask(W, 1.0), r"sparsity must be in \[0, 1\), got 1.0"),
    (lambda: Config(keep_heads=5), "keep_heads must be in 1..4, got 5"),
    (lambda: Config(drop_layers=3), "drop_layers must be in 0..2, got 3"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM is cut ------------------------------------------------------------------------------------------------


def test_recovery_keeps_two_of_four_and_the_removed_at_zero():
    weights = {name: weight for name, weight in BASE.state_dict().items() if ".layers." in name and weight.ndim == 2}
    model = tiny_lm.copy_of(BASE)
    masked = experiment.MaskedWeights({name: dict(model.named_parameters())[name] for name in weights})
    masked.masks = {name: nm_mask(weight) for name, weight in weights.items()}
    masked.apply()
    experiment.recover(model, Config(recover_steps=3), "two of four", masked)
    for name, weight in model.state_dict().items():
        if name in weights:
            kept = nm_mask(weights[name])
            assert (weight[~kept] == 0).all()
            assert (weight[kept] != weights[name][kept]).float().mean() > 0.9


def test_the_masked_and_the_cut_model_say_the_same():
    heads, channels = [[0, 2], [1], [0, 1, 3]], [[0, 95], list(range(40)), [7]]
    assert experiment.masked_difference(heads, channels) < 1e-4


def test_a_share_of_the_channels_is_rounded_and_never_none():
    assert [experiment.channel_count(BASE, share) for share in (1.0, 0.5, 0.1, 0.001)] == [96, 48, 10, 1]


def test_the_pair_that_costs_most_beyond_its_parts_is_found(monkeypatch):
    own = torch.arange(12.0).view(3, 4)

    def made_up(model, documents, head_mask=None):
        """A loss that rises by each head's own cost, and more where two stand in for each other."""
        gone = torch.zeros(3, 4) if head_mask is None else 1 - head_mask
        together = 5 * gone[0, 3] * gone[2, 1] + 4 * gone[1, 0] * gone[1, 1]
        return 2.0 + float((own * gone).sum() + together)

    monkeypatch.setattr(experiment, "loss_of", made_up)
    names, deltas = experiment.most_redundant_pair(own)
    assert names == ("layer 0 head 3", "layer 2 head 1")
    assert deltas.tolist() == [3, 9, 3 + 9 + 5]


def made_up_scores():
    heads = {name: randn(3, 4, seed=seed) for seed, name in enumerate(experiment.HEAD_SCORES)}
    return experiment.Scores(heads, {method: randn(3, 96, seed=9) for method in METHODS})


def test_the_frontier_goes_from_the_largest_model_to_the_smallest_in_each_way():
    turned = {"dropped_layers": torch.tensor([0]), "cheapest_layers": torch.tensor([2])}
    cuts = experiment.cuts(Config(ffn_keep=0.6), made_up_scores(), turned)
    assert [cut.name for cut in cuts] == [
        "3 heads", "2 heads", "1 head", "2 heads by ablation",
        "75% of channels", "60% of channels", "50% of channels", "25% of channels", "10% of channels",
        "1 layer less", "1 layer less by loss", "2 of 4 weights", "heads and channels",
    ]  # fmt: skip
    for cut, gone in zip(cuts[9:11], ([0], [2]), strict=True):
        for ours, expected in zip(cut.make().parameters(), drop_layers(BASE, gone).parameters(), strict=True):
            assert torch.equal(ours, expected)


def test_two_of_four_halves_what_is_stored_and_spares_a_flop_a_weight(monkeypatch):
    monkeypatch.setattr(
        experiment, "cuts", lambda *_: [experiment.Cut("n:m", "2:4", lambda: tiny_lm.copy_of(BASE), True)]
    )
    found = experiment.frontier(Config(recover_steps=0), made_up_scores(), {})
    assert found["frontier"].params.tolist() == [43_744 - 39_936 // 2]
    # 2 FLOPs a weight, of which half are gone
    assert found["frontier"].flops.tolist() == [found["flops_dense_model"] - 39_936]
    pruned = {name: weight * nm_mask(weight) for name, weight in tiny_lm.block_matrices(BASE).items()}
    model = tiny_lm.copy_of(BASE, BASE.state_dict() | pruned)
    expected = tiny_lm.evaluate(model, tiny_lm.held_out(experiment.HELD_OUT))
    assert found["frontier"].loss_before.tolist() == found["frontier"].loss_after.tolist() == pytest.approx([expected])


@pytest.fixture(scope="module", params=["kept", "anew"])
def default(request):
    """The trace that comes with the project, and one whose quick parts are computed here and now."""
    kept = trace_store.get(structured_pruning)
    if request.param == "kept":
        return kept
    parts = (experiment.zeros_that_cost, experiment.heads_add_up, experiment.two_of_four)
    return replace(kept, **{name: value for part in parts for name, value in part().items()})


def test_both_crops_are_half_empty_but_only_one_is_smaller(default):
    assert sparsity(default.scattered) == sparsity(default.sliced) == default.crop_sparsity == 0.5
    assert default.flops_scattered == default.flops_dense == 2 * 24 * 24
    assert default.flops_sliced == default.flops_useful == 24 * 24
    assert torch.equal(default.sliced_crop, default.crop[default.sliced[:, 0]])


def test_crops_and_maps_are_those_of_the_real_model(default):
    state = BASE.state_dict()
    value = state["model.layers.1.self_attn.v_proj.weight"]
    assert default.crop_matrix == "layer 1 v_proj"
    assert torch.equal(default.crop, value[:24, :24])
    assert torch.equal(default.nm_block, value[:8, :8])
    assert torch.equal(default.nm_scores, value[:8, :8].abs())
    assert (default.nm_share_16bit, default.nm_share_8bit) == (0.5625, 0.625)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:10]])
    _, record = BASE(ids, record=("weights", "head_outputs", "residual"))
    assert (default.shown_layer, default.shown_position, default.ffn_layer) == (1, 9, 1)
    torch.testing.assert_close(default.attention_maps, record["weights"][1, 0])
    added = record["head_outputs"][1, 0][:, 9]  # (H, D)
    torch.testing.assert_close(default.head_gap, added.norm(dim=1), atol=1e-4, rtol=1e-4)
    # a plane keeps the angles of what lies in it: the two-dimensional sum is as long as the real one, or shorter
    assert default.attn_out.norm() <= added.sum(dim=0).norm() + 1e-4
    for name in ("gate", "up", "down"):
        assert torch.equal(getattr(default, f"W_{name}"), state[f"model.layers.1.mlp.{name}_proj.weight"][:12, :12])
    stream = record["residual"][:, 0, 9]  # (L + 1, D)
    assert default.path_token == tiny_lm.tokens(ids[0])[9]
    torch.testing.assert_close(default.x_path_norm, stream.norm(dim=1))
    cosines = torch.nn.functional.cosine_similarity(stream[1:], stream[:-1], dim=1)
    torch.testing.assert_close(default.x_path_degrees, torch.rad2deg(cosines.acos()), atol=1e-2, rtol=1e-4)


def test_arrows_of_heads_lie_tip_to_tail(default):
    torch.testing.assert_close(default.head_chain[-1], default.attn_out)
    torch.testing.assert_close(default.head_chain.diff(dim=0), default.head_vectors)
    for head in range(4):
        torch.testing.assert_close(default.head_chain_without[head, -1], default.attn_out - default.head_vectors[head])
    assert (default.head_vectors.norm(dim=1) <= default.head_gap + 1e-5).all()
    share = default.head_vectors.square().sum() / default.head_gap.square().sum()
    assert float(share) == pytest.approx(default.head_plane_share, abs=1e-5)
    torch.testing.assert_close(default.attention_maps.sum(dim=-1), torch.ones(4, 10))


def test_the_channels_of_the_crop_leave_weakest_first(default):
    assert (default.crop_scores[default.channel_order].diff() >= 0).all()
    assert torch.equal(default.crop_scores, default.channel_scores[:12])
    assert set(default.crop_keep.tolist()) == set(default.channel_order[6:].tolist())
    assert torch.equal(default.W_gate_sliced, default.W_gate[default.crop_keep])
    assert torch.equal(default.W_up_sliced, default.W_up[default.crop_keep])
    assert torch.equal(default.W_down_sliced, default.W_down[:, default.crop_keep])
    assert len(default.keep_channels) == 48
    threshold = default.channel_scores[default.keep_channels].min()
    assert int((default.channel_scores >= threshold).sum()) == 48
    assert default.max_abs_diff_logits < 1e-4
    assert default.score_names == METHODS


def test_the_path_turns_by_the_angles_that_are_shown(default):
    torch.testing.assert_close(default.BI, 1 - default.hidden_cos)
    assert float(default.x_path.square().sum() / 4) == pytest.approx(default.x_path_share, abs=1e-5)
    assert (default.x_path.norm(dim=1) <= 1 + 1e-5).all()
    assert default.angular.isnan().sum() == 3
    for layer in range(3):  # up to the skipped layer nothing changes, and over it the path stands still
        skipped = default.x_path_skipped[layer]
        torch.testing.assert_close(skipped[: layer + 1], default.x_path[: layer + 1])
        torch.testing.assert_close(skipped[layer + 1], skipped[layer])


def test_the_block_of_two_of_four_is_whole_again_when_read_back(default):
    values, indices = default.nm_values, default.nm_indices.to(torch.uint8)
    assert torch.equal(nm_decompress(values, indices), default.nm_block * default.nm_block_mask)
    assert torch.equal(default.nm_block_mask, nm_mask(default.nm_block))
    assert default.nm_patterns == math.comb(4, 2)


def test_the_frontier_has_the_cost_of_real_models(default):
    points = default.frontier
    rows = dict(zip(points.name, zip(points.params.tolist(), points.flops.tolist(), strict=True), strict=True))
    assert rows["2 heads"] == rows["2 heads by ablation"]
    assert rows["2 heads"][0] == 43744 - 3 * 2 * 1024
    assert rows["50% of channels"][0] == 43744 - 3 * 48 * 96
    assert rows["1 layer less"][0] == 43744 - (4 * 32 * 32 + 3 * 32 * 96 + 64)
    assert rows["2 of 4 weights"][0] == 43744 - 39936 // 2
    assert rows["2 of 4 weights"][1] == default.flops_dense_model - 39936
    assert default.params_dense == BASE.num_params
    assert (points.params < default.params_dense).all()
    assert (points.flops < default.flops_dense_model).all()
    assert (points.loss_after < points.loss_before).all()
    assert (points.loss_before > default.loss_dense).all()


def test_spans_ranks_and_weakest_layers_are_those_of_the_scores(default):
    for span, scores in ((default.predicted_span, default.predicted_delta), (default.true_span, default.true_delta)):
        assert span.tolist() == [float(scores.min()), float(scores.max())]
    true = default.true_delta.flatten().tolist()
    for ours, scores in (
        (default.rank_correlation, default.importance), (default.rank_correlation_signed, default.predicted_delta)
    ):  # fmt: skip
        assert ours == pytest.approx(float(stats.spearmanr(scores.flatten().tolist(), true).statistic), abs=1e-6)
    assert default.dropped_layers.tolist() == [int(default.BI.argmin())]
    rows = dict(zip(default.frontier.name, default.frontier.loss_before.tolist(), strict=True))
    for name, layers in (("1 layer less", default.dropped_layers), ("1 layer less by loss", default.cheapest_layers)):
        assert rows[name] == pytest.approx(default.loss_dense + float(default.layer_true_delta[layers[0]]), abs=1e-5)
    by_head_score = dict(zip(default.head_score_names, default.head_score_loss.tolist(), strict=True))
    assert tuple(by_head_score) == ("gradient", "signed gradient", "ablation", "random")
    assert by_head_score["gradient"] == pytest.approx(rows["2 heads"], abs=1e-6)
    assert by_head_score["ablation"] == pytest.approx(rows["2 heads by ablation"], abs=1e-6)
    assert default.flops_context == 64
    # 2 FLOPs a weight of a product, the tied head included; 4 H d a position
    assert default.flops_dense_model == 2 * (39_936 + 112 * 32) + 3 * 4 * 32 * 64
    assert default.entropy_floor < default.loss_dense


def test_the_default_runs_tell_what_the_video_says(default):
    points = default.frontier
    before = dict(zip(points.name, points.loss_before.tolist(), strict=True))
    after = dict(zip(points.name, points.loss_after.tolist(), strict=True))
    # A trained model sits where gradients vanish: they neither rank nor size the damage.
    assert default.predicted_delta.abs().max() < 0.1 * default.true_delta.max()
    assert default.rank_correlation < 0.5
    assert (default.true_delta > 0).all()
    # The score decides: ablation picks better heads than gradients, at the same cost.
    assert before["2 heads by ablation"] < before["2 heads"]
    assert min(default.score_loss[:4]) < default.score_loss[4]
    # Each of three layers matters, and the angle picks the wrong one.
    assert default.layer_true_delta.min() > 1
    assert int(default.BI.argmin()) != int(default.layer_true_delta.argmin())
    # Retraining brings most of it back; half of the channels are nearly free.
    assert after["50% of channels"] < default.loss_dense + 0.05
    assert after["1 layer less"] > after["50% of channels"]
    assert default.pair_delta[2] > default.pair_delta[:2].sum()


def test_a_trace_survives_the_store(default, tmp_path):
    default.save(tmp_path / "trace.safetensors")
    assert structured_pruning.Trace.load(tmp_path / "trace.safetensors").hash == default.hash
