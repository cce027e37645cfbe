import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import rope
from internals_math.rope import (
    Config,
    apply_rotary,
    apply_rotary_complex,
    decay_bound,
    interpolate_positions,
    ntk_scaled_base,
    pair_contributions,
    permute_half_to_interleaved,
    permute_interleaved_to_half,
    relative_score,
    rope_angles,
    rope_cos_sin,
    rope_frequencies,
    rotation_matrix,
    to_pairs,
)

HEAD_DIMS = st.sampled_from([2, 4, 8, 16])
LAYOUTS = st.sampled_from(rope.LAYOUTS)
POSITIONS = st.integers(0, 200)


def vectors(count, head_dim, seed=0, dtype=torch.float64):
    return torch.randn(count, head_dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def turn(x, positions, inv_freq, layout="half"):
    positions = torch.as_tensor(positions).reshape(-1)
    return apply_rotary(x, *rope_cos_sin(positions, inv_freq, layout), layout)


# -- laws ------------------------------------------------------------------------------------------------------------


@given(HEAD_DIMS, POSITIONS, LAYOUTS)
def test_a_rotation_keeps_the_length(head_dim, position, layout):
    x = vectors(1, head_dim)
    turned = turn(x, position, rope_frequencies(head_dim), layout)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("layout", rope.LAYOUTS)
def test_each_text_of_a_batch_may_have_positions_of_its_own(layout):
    positions, inv_freq = torch.tensor([[0, 1, 2], [5, 7, 11]]), rope_frequencies(8)
    x = vectors(6, 8).view(2, 3, 8)
    together = apply_rotary(x, *rope_cos_sin(positions, inv_freq, layout), layout)
    for alone, places, whole in zip(x, positions, together, strict=True):
        torch.testing.assert_close(turn(alone, places, inv_freq, layout), whole)


@given(HEAD_DIMS, POSITIONS, POSITIONS, LAYOUTS)
def test_rotation_matrices_form_a_group(head_dim, m, n, layout):
    inv_freq = rope_frequencies(head_dim)
    one, other = rotation_matrix(m, inv_freq, layout), rotation_matrix(n, inv_freq, layout)
    torch.testing.assert_close(one @ other, rotation_matrix(m + n, inv_freq, layout))
    torch.testing.assert_close(one.T, rotation_matrix(-m, inv_freq, layout))
    torch.testing.assert_close(rotation_matrix(0, inv_freq, layout), torch.eye(head_dim, dtype=torch.float64))
    assert torch.linalg.det(one) == pytest.approx(1.0)


@given(HEAD_DIMS, POSITIONS, POSITIONS, st.integers(0, 10_000))
def test_only_the_distance_of_the_positions_counts(head_dim, m, n, shift):
    inv_freq = rope_frequencies(head_dim)
    q, k = vectors(2, head_dim).split(1)
    here = (turn(q, m, inv_freq) * turn(k, n, inv_freq)).sum()
    there = (turn(q, m + shift, inv_freq) * turn(k, n + shift, inv_freq)).sum()
    # float64 angles of up to 10,000 rad carry 1e-12, times the lengths of q and k
    torch.testing.assert_close(here, there, atol=1e-10, rtol=0)


@given(HEAD_DIMS, st.integers(0, 100))
def test_the_shift_leaves_float32_scores_alone_too(head_dim, shift):
    inv_freq = rope_frequencies(head_dim)
    q, k = vectors(2, head_dim, dtype=torch.float32).split(1)
    here = (turn(q, 5, inv_freq) * turn(k, 2, inv_freq)).sum()
    there = (turn(q, 5 + shift, inv_freq) * turn(k, 2 + shift, inv_freq)).sum()
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


@given(HEAD_DIMS, POSITIONS, POSITIONS, LAYOUTS)
def test_the_sum_of_cosines_is_the_dot_product_of_the_rotated_vectors(head_dim, m, n, layout):
    inv_freq = rope_frequencies(head_dim)
    q, k = vectors(2, head_dim)
    explicit = rotation_matrix(m, inv_freq, layout) @ q @ (rotation_matrix(n, inv_freq, layout) @ k)
    torch.testing.assert_close(relative_score(q, k, inv_freq, torch.tensor([m - n]), layout)[0], explicit)


def test_at_distance_zero_the_score_is_the_plain_dot_product():
    q, k = vectors(2, 8)
    torch.testing.assert_close(relative_score(q, k, rope_frequencies(8), torch.tensor([0]))[0], q @ k)


def test_the_score_depends_on_who_comes_first_unless_query_and_key_are_equal():
    q, k = vectors(2, 8)
    distances = torch.tensor([-3, 3])
    before, after = relative_score(q, k, rope_frequencies(8), distances)
    assert abs(before - after) > 0.1
    before, after = relative_score(q, q, rope_frequencies(8), distances)
    torch.testing.assert_close(before, after)


@given(HEAD_DIMS, POSITIONS)
def test_matrix_complex_and_elementwise_forms_agree(head_dim, position):
    inv_freq, x = rope_frequencies(head_dim), vectors(1, head_dim)
    places = torch.tensor([position])
    complex_form = apply_rotary_complex(x, places, inv_freq)
    torch.testing.assert_close(turn(x, position, inv_freq, "interleaved"), complex_form)
    torch.testing.assert_close((rotation_matrix(position, inv_freq, "interleaved") @ x[0])[None], complex_form)
    torch.testing.assert_close((rotation_matrix(position, inv_freq, "half") @ x[0])[None], turn(x, position, inv_freq))


def test_permuting_the_weights_and_switching_the_layout_changes_no_score():
    heads, head_dim, width, length = 3, 8, 12, 5
    w_q, w_k = vectors(heads * head_dim, width, 1), vectors(heads * head_dim, width, 2)
    x, places = vectors(length, width, 3), torch.arange(length)
    inv_freq = rope_frequencies(head_dim)

    def scores(w_q, w_k, layout):
        q, k = ((x @ w.T).view(length, heads, head_dim).transpose(0, 1) for w in (w_q, w_k))
        return turn(q, places, inv_freq, layout) @ turn(k, places, inv_freq, layout).transpose(1, 2)

    moved = [permute_interleaved_to_half(w, heads) for w in (w_q, w_k)]
    torch.testing.assert_close(scores(w_q, w_k, "interleaved"), scores(*moved, "half"))
    torch.testing.assert_close(permute_half_to_interleaved(moved[0], heads), w_q)
    assert not torch.allclose(scores(w_q, w_k, "interleaved"), scores(w_q, w_k, "half"))


@given(st.floats(1, 16), st.sampled_from([4, 8, 64]))
def test_the_ntk_base_keeps_the_fastest_hand_and_slows_the_slowest_by_the_scale(scale, head_dim):
    before, after = rope_frequencies(head_dim), rope_frequencies(head_dim, ntk_scaled_base(1e4, head_dim, scale))
    assert after[0] == 1
    assert float(after[-1]) == pytest.approx(float(before[-1]) / scale, rel=1e-9)


@given(st.floats(1, 16))
def test_interpolated_positions_slow_every_hand_by_the_scale(scale):
    inv_freq, places = rope_frequencies(8), torch.arange(5)
    angles = rope_angles(interpolate_positions(places.double(), scale), inv_freq)
    torch.testing.assert_close(angles, rope_angles(places, inv_freq / scale))


def test_the_decay_bound_starts_at_its_exact_maximum():
    bound = decay_bound(128, 1e4, torch.arange(500))
    assert bound[0] == pytest.approx((128 / 2 + 1) / 2)
    assert (bound <= bound[0]).all()


@given(st.integers(0, 1000), st.integers(0, 20))
def test_no_score_exceeds_the_abel_bound(distance, seed):
    q, k = vectors(2, 16, seed)
    inv_freq = rope_frequencies(16)
    q_pairs, k_pairs = (torch.view_as_complex(to_pairs(v).contiguous()) for v in (q, k))
    products = torch.cat([q_pairs * k_pairs.conj(), torch.zeros(1, dtype=torch.complex128)])
    largest = products.diff().abs().max()
    angles = distance * inv_freq
    sums = torch.polar(torch.ones_like(angles), angles).cumsum(0).abs().sum()
    assert relative_score(q, k, inv_freq, torch.tensor([distance])).abs() <= largest * sums + 1e-9


def test_gradients_pass_through_with_their_length_unchanged():
    x = vectors(4, 8).requires_grad_()
    upstream = vectors(4, 8, seed=9)
    turn(x, torch.arange(4), rope_frequencies(8)).backward(upstream)
    torch.testing.assert_close(x.grad.norm(dim=-1), upstream.norm(dim=-1))


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope_frequencies(7), "head_dim must be even and at least 2, got 7"),
        (lambda: rope_frequencies(0), "head_dim must be even and at least 2, got 0"),
        (lambda: rope_frequencies(8, 1.0), "base must be > 1, got 1.0"),
        (lambda: apply_rotary(torch.ones(1, 6), torch.ones(1, 8), torch.ones(1, 8)), "the same last axis, got 6, 8"),
        (lambda: rope_cos_sin(torch.arange(2), rope_frequencies(4), "spiral"), "layout must be one of half"),
        (lambda: interpolate_positions(torch.arange(2), 0.5), "scale must be >= 1, got 0.5"),
        (lambda: ntk_scaled_base(1e4, 2, 4), "head_dim must be even and at least 4"),
        (lambda: permute_interleaved_to_half(torch.ones(6, 2), 4), "rows .6. must be an even number"),
        (lambda: Config(key_index=9, query_index=7), "key_index <= query_index"),
        (lambda: Config(prompt="one day the old dragon found a"), "'dragon' is not one of the 112 words"),
        (lambda: Config(prompt="one day"), "prompt must have 6 to 12 words, got 2"),
        (lambda: Config(base=1), "base must be in 2..10000000"),
    ],
)
@pytest.mark.usefixtures("plain_python")
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- what the video shows --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    return rope.trace(Config())


def test_the_arrows_on_screen_are_the_rotated_query_and_key(shown):
    inv_freq = rope_frequencies(8, 100.0)
    for shift in (0, 1, 44):
        q = rotation_matrix(7 + shift, inv_freq) @ shown.q.double()
        torch.testing.assert_close(shown.arrows_by_shift[shift, :, 0].double(), to_pairs(q), atol=1e-5, rtol=0)


def test_the_score_bar_does_not_move_and_the_wedge_is_rigid(shown):
    assert shown.score_spread < 1e-5
    assert (shown.angle_between - shown.angle_between[0]).abs().max() < 1e-3
    assert shown.score_by_distance[2] == pytest.approx(float(shown.score_by_shift[0]), abs=1e-4)


def test_the_loop_closes_after_seven_turns(shown):
    assert 44 - 7 * 2 * math.pi == pytest.approx(0.018, abs=1e-3)
    assert shown.turns[44, 0] == pytest.approx(7.0028, abs=1e-4)


def test_the_waves_add_up_to_the_score(shown):
    torch.testing.assert_close(shown.partial_sums[-1], shown.score_by_distance)
    places = pair_contributions(shown.q, shown.k, rope_frequencies(8, 100.0), torch.arange(65))
    torch.testing.assert_close(shown.contributions, places.float())


def test_shifting_the_whole_text_changes_the_logits_by_rounding_only(shown):
    assert (shown.shift_test_diff < 1e-4).all()
    assert (shown.shift_test_diff > 0).all()  # the positions did move: float32 angles round differently there


def test_slowed_hands_and_the_decay_curve_are_the_formulas(shown):
    torch.testing.assert_close(shown.inv_freq_linear, shown.inv_freq / 4)
    assert shown.inv_freq_ntk[0] == shown.inv_freq[0] == 1
    assert shown.inv_freq_ntk[-1] == pytest.approx(float(shown.inv_freq_linear[-1]))
    assert shown.decay_curve[[0, 100, 250]].tolist() == pytest.approx([32.5, 10.227, 6.548], rel=1e-3)


def test_the_single_hand_starts_as_it_is_and_turns_by_theta_at_each_step(shown):
    torch.testing.assert_close(shown.q_turned[0, :, 0], shown.q_pairs)
    for step in (1, 44):
        expected = to_pairs(rotation_matrix(step, rope_frequencies(8, 100.0)) @ shown.q.double())
        torch.testing.assert_close(shown.q_turned[step, :, 0].double(), expected, atol=1e-5, rtol=0)
    whole_turns = (shown.turn_angles - shown.turn_angles[0]) / (2 * math.pi) - shown.turns
    torch.testing.assert_close(whole_turns, whole_turns.round(), atol=1e-5, rtol=0)


def test_rows_of_the_score_matrices_are_queries_and_columns_are_keys(shown):
    row, column = shown.config.query_index, shown.config.key_index
    assert shown.score_matrix_plain[row, column] == pytest.approx(float(shown.q @ shown.k), abs=1e-4)
    assert shown.score_matrix_rope[row, column] == pytest.approx(float(shown.score_by_shift[0]), abs=1e-4)


def test_without_positions_the_first_layer_is_blind_to_order_and_later_layers_are_not(shown):
    test = shown.swap_test
    assert test.change_without < 1e-6
    assert test.change_with > 0.5
    assert test.change_last_without > 0.01  # the causal mask leaks order
    swapped = test.weights_before.clone()
    first, second = rope.SWAPPED
    swapped[[first, second]] = swapped[[second, first]]
    torch.testing.assert_close(test.weights_after, swapped)


def test_the_loss_rises_beyond_the_trained_positions_and_an_ntk_base_holds_longer(shown):
    places = shown.loss_positions
    inside, beyond = places < shown.train_length - rope.LINE, places > shown.train_length
    middle = (places > 80) & (places < 140)
    assert shown.loss_none[inside].mean() < 1.05 * shown.loss_floor[inside].mean()
    assert shown.loss_none[beyond].mean() > 2 * shown.loss_none[inside].mean()
    assert shown.loss_ntk[middle].mean() < shown.loss_none[middle].mean()
    assert (shown.loss_linear > shown.loss_none).all()  # slowing every hand without training hurts this model


def test_a_lines_loss_and_its_slow_hands_stand_at_the_middle_of_the_line(shown):
    assert shown.loss_positions.tolist() == [6 + 12 * line for line in range(21)]  # whole lines of 256 predictions
    for hand, slower in ((shown.slow_hand_none, 1.0), (shown.slow_hand_linear, 4.0)):
        angles = shown.loss_positions.double() * 10**-1.5 / slower
        expected = torch.stack([angles.cos(), angles.sin()], dim=-1)
        torch.testing.assert_close(hand[:, 0].double(), expected, atol=1e-5, rtol=0)


def test_the_word_that_stands_in_the_place_gets_the_weight_once_positions_are_on(shown):
    test = shown.swap_test
    place = rope.SWAPPED[1]
    assert (test.tokens_before[place], test.tokens_after[place]) == ("cat", "fox")
    assert test.rope_weights_before.argmax() == test.rope_weights_after.argmax() == place


def test_moving_one_word_alone_opens_the_wedge_and_changes_the_score(shown):
    torch.testing.assert_close(shown.score_apart, shown.score_by_distance[2:5], atol=1e-4, rtol=0)
    steps = shown.apart_angles[1:, 0] - shown.apart_angles[:-1, 0]
    torch.testing.assert_close(steps, torch.rad2deg(torch.ones_like(steps)))  # one radian a word
    assert (shown.score_apart[1:] < shown.score_apart[:-1] - 1).all()


def test_the_fine_waves_pass_through_the_contributions_of_whole_distances(shown):
    torch.testing.assert_close(shown.waves[:, :: rope.STEPS_PER_WORD], shown.contributions)
    torch.testing.assert_close(shown.wave_sums[-1, :: rope.STEPS_PER_WORD], shown.score_by_distance)


def test_the_scores_of_the_shifted_text_are_those_of_the_text_to_rounding(shown):
    assert shown.shifted_positions[-1].tolist() == list(range(1000, 1000 + len(shown.tokens)))
    difference = shown.score_matrix_shifted - shown.score_matrix_rope
    assert 0 < difference.abs().max() < 1e-3


def test_slowed_down_the_slowest_hand_stays_within_the_angles_it_was_trained_on(shown):
    low, high = shown.trained_arc.tolist()
    assert (low, high) == (0, pytest.approx(64 / 10**1.5))
    beyond = shown.loss_positions > shown.train_length

    def angles(hand):
        torch.testing.assert_close(hand.norm(dim=-1), torch.ones(len(hand), 1))
        return torch.atan2(hand[beyond, 0, 1], hand[beyond, 0, 0]) % (2 * math.pi)

    assert (angles(shown.slow_hand_none) > high).any()
    assert (angles(shown.slow_hand_linear) <= high).all()
    assert (angles(shown.slow_hand_ntk) <= high).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "one day the old fox found", "query_index": 6, "key_index": 6, "shift_max": 12, "scale": 1},
        {"prompt": "one day the old fox found a golden key in the well", "query_index": 12, "key_index": 0},
        {"base": 1e7, "shift_max": 200, "layer": 0, "head": 3, "scale": 16},
        {"base": 2},
    ],
)
def test_every_corner_of_the_settings_can_be_traced(settings):
    trace = rope.trace(Config(**settings))
    assert trace.score_spread < 1e-4
    distance = trace.config.query_index - trace.config.key_index
    assert trace.score_by_distance[distance] == pytest.approx(float(trace.score_by_shift[0]), abs=1e-4)
    plain, turned = (matrix.diagonal() for matrix in (trace.score_matrix_plain, trace.score_matrix_rope))
    torch.testing.assert_close(turned, plain, atol=1e-4, rtol=0)  # a word is at distance 0 of itself
    for value in trace.to_flat().values():
        assert not isinstance(value, torch.Tensor) or torch.isfinite(value).all()


def test_a_scale_of_one_changes_no_hand_and_no_loss():
    trace = rope.trace(Config(scale=1))
    torch.testing.assert_close(trace.inv_freq_ntk, trace.inv_freq)
    torch.testing.assert_close(trace.inv_freq_linear, trace.inv_freq)
    torch.testing.assert_close(trace.loss_ntk, trace.loss_none)
    torch.testing.assert_close(trace.loss_linear, trace.loss_none)
