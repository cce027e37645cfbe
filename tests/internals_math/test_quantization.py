import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import progress, quantization, tiny_lm, trace_store
from internals_math import quantization_experiment as experiment
from internals_math.quantization import (
    Config,
    bits_per_weight,
    choose_qparams,
    dequantize,
    dequantize_absmax,
    dequantize_codebook,
    double_quantize,
    fake_quantize,
    gptq_quantize,
    input_hessian,
    int8_matmul,
    model_bytes,
    mse,
    normal_float_codebook,
    pack_int4,
    quantize,
    quantize_codebook,
    sqnr_db,
    unpack_int4,
)
from tests.oracles import randn

seeds = st.integers(0, 10_000)
bit_counts = st.integers(2, 16)
group_sizes = st.sampled_from([None, 3, 4, 6])
exponents = st.integers(-20, 20)


def rows(seed, *, offset=0.0, shape=(5, 12)):
    return randn(*shape, seed=seed) + offset


# -- even grids --------------------------------------------------------------------------------------------------------


@given(seeds, bit_counts, st.booleans(), group_sizes, st.floats(-3, 3))
def test_no_value_moves_further_than_half_a_step(seed, bits, symmetric, group_size, offset):
    x = rows(seed, offset=offset)
    grid = choose_qparams(x, bits, symmetric, group_size)
    codes = quantize(x, grid)
    half_step = (grid.scale / 2).repeat_interleave(grid.group_size, dim=-1)
    assert ((dequantize(codes, grid) - x).abs() <= half_step * (1 + 1e-5)).all()
    assert int(codes.min()) >= grid.qmin
    assert int(codes.max()) <= grid.qmax


@given(seeds, bit_counts, st.booleans(), group_sizes)
def test_what_lies_on_the_grid_stays_there(seed, bits, symmetric, group_size):
    x = rows(seed)
    grid = choose_qparams(x, bits, symmetric, group_size)
    codes = quantize(x, grid)
    assert torch.equal(quantize(dequantize(codes, grid), grid), codes)


@given(seeds, st.integers(2, 8), st.booleans())
def test_every_value_gets_its_nearest_level(seed, bits, symmetric):
    x = rows(seed)
    grid = choose_qparams(x, bits, symmetric)
    nearest = (x[..., None] - grid.levels()).abs().amin(dim=-1)
    torch.testing.assert_close((fake_quantize(x, bits, symmetric) - x).abs(), nearest)


@given(seeds, bit_counts, st.booleans(), st.floats(-3, 3))
def test_zero_is_kept_exactly(seed, bits, symmetric, offset):
    x = rows(seed, offset=offset)
    x[:, 4] = 0
    assert (fake_quantize(x, bits, symmetric)[:, 4] == 0).all()


@given(seeds, bit_counts)
def test_symmetric_codes_of_the_negative_are_the_negative_codes(seed, bits):
    x = rows(seed)
    grid = choose_qparams(x, bits)
    assert torch.equal(quantize(-x, grid), -quantize(x, grid))


@given(seeds, bit_counts, st.booleans(), exponents)
def test_a_power_of_two_scales_the_step_and_leaves_the_codes(seed, bits, symmetric, exponent):
    x = rows(seed)
    before, after = (choose_qparams(values, bits, symmetric) for values in (x, x * 2.0**exponent))
    assert torch.equal(after.scale, before.scale * 2.0**exponent)
    assert torch.equal(quantize(x * 2.0**exponent, after), quantize(x, before))


@given(seeds, bit_counts, st.booleans())
def test_finer_groups_never_have_a_coarser_step(seed, bits, symmetric):
    x = rows(seed)
    whole, halves, thirds = (choose_qparams(x, bits, symmetric, size).scale for size in (12, 6, 3))
    assert (halves.amax(dim=1, keepdim=True) <= whole).all()
    assert (thirds.unflatten(1, (2, 2)).amax(dim=2) <= halves).all()


@given(seeds, st.booleans())
def test_sixteen_bits_are_nearly_exact(seed, symmetric):
    x = rows(seed)
    assert (x - fake_quantize(x, 16, symmetric)).norm() < 1e-4 * x.norm()


def test_the_largest_value_is_reached_and_one_of_sixteen_codes_stays_unused():
    grid = choose_qparams(torch.tensor([[-1.4, 0.3, 0.7, 0.0]]), 4)
    assert float(grid.scale) == pytest.approx(0.2)
    assert grid.levels().shape == (1, 1, 15)
    assert quantize(torch.tensor([[-1.4, 0.3, 0.7, 0.0]]), grid).tolist() == [[-7, 2, 4, 0]]  # 1.5 and 3.5: to even


def test_a_range_on_one_side_of_zero_is_widened_to_hold_it():
    grid = choose_qparams(torch.tensor([[3.0, 4.0, 6.0]]), 4, symmetric=False)
    assert (float(grid.scale), int(grid.zero_point)) == (pytest.approx(0.4), 0)
    below = choose_qparams(torch.tensor([[-3.0, -6.0]]), 4, symmetric=False)
    assert (float(below.scale), int(below.zero_point)) == (pytest.approx(0.4), 15)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_zeros_gets_the_step_one(symmetric):
    x = torch.cat([torch.zeros(1, 4), torch.ones(1, 4)], dim=1)
    grid = choose_qparams(x, 4, symmetric, 4)
    assert grid.scale[0, 0] == 1
    assert torch.equal(fake_quantize(x, 4, symmetric, 4), x)


@given(seeds, st.integers(1, 3))
def test_leading_axes_are_independent(seed, batch):
    x = rows(seed, shape=(batch, 4, 12))
    whole = fake_quantize(x, 4, False, 6)
    assert torch.equal(whole[-1], fake_quantize(x[-1], 4, False, 6))


def test_a_uniform_source_gains_six_decibels_with_every_bit():
    x = torch.linspace(0, 1, 2**16, dtype=torch.float64)[None]
    noise = torch.stack([sqnr_db(x, fake_quantize(x, bits, False)) for bits in (5, 6, 7, 8)])
    torch.testing.assert_close(noise.diff(), torch.full((3,), 6.02, dtype=torch.float64), atol=0.15, rtol=0)
    step = 1 / 255
    assert float(mse(x, fake_quantize(x, 8, False))) == pytest.approx(step**2 / 12, rel=1e-3)


def test_signal_to_noise_is_infinite_without_noise_and_zero_when_noise_is_the_signal():
    x = rows(0)
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(x, 0 * x) == 0
    assert float(sqnr_db(x, 0.9 * x)) == pytest.approx(20)


# -- code books --------------------------------------------------------------------------------------------------------


def test_nf4_has_seven_levels_below_zero_and_eight_above():
    book = normal_float_codebook()
    assert (book < 0).sum() == 7
    assert (book == 0).sum() == 1
    assert (book[0], book[-1]) == (-1, 1)
    assert (book.diff() > 0).all()


def test_the_averaged_quantiles_that_the_paper_prints_are_not_the_released_levels():
    quantiles = torch.special.ndtri(torch.arange(1, 17, dtype=torch.float64) / 17)
    printed = (quantiles[1:] + quantiles[:-1]) / 2
    assert (printed / printed.max() - normal_float_codebook()[1:]).abs().max() > 0.02


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_other_widths_follow_the_same_recipe(bits):
    book = normal_float_codebook(bits)
    assert len(book) == 2**bits
    assert (book.diff() > 0).all()
    assert book[2 ** (bits - 1) - 1] == 0


@given(seeds, st.integers(1, 80))
def test_code_books_keep_zero_and_the_largest_value_of_every_block(seed, block_size):
    x = rows(seed)
    x[2, 3] = 0
    book = normal_float_codebook()
    indices, absmax = quantize_codebook(x, book, block_size)
    x_hat = dequantize_codebook(indices, absmax, book, (5, 12), block_size)
    assert x_hat[2, 3] == 0
    largest = x.abs() == absmax.repeat_interleave(block_size)[:60].view(5, 12)
    torch.testing.assert_close(x_hat[largest], x[largest], rtol=1e-12, atol=0)
    widest_gap = float(book.diff().max())
    bound = absmax.repeat_interleave(block_size)[:60].view(5, 12) * widest_gap / 2
    assert ((x - x_hat).abs() <= bound * (1 + 1e-9)).all()


def test_a_block_of_zeros_is_kept():
    indices, absmax = quantize_codebook(torch.zeros(8), normal_float_codebook(), 4)
    assert indices.tolist() == [7] * 8
    assert absmax.tolist() == [0, 0]
    assert (dequantize_codebook(indices, absmax, normal_float_codebook(), (2, 4), 4) == 0).all()


def test_a_value_between_two_levels_gets_the_lower_one():
    indices, _ = quantize_codebook(torch.tensor([-1.0, -0.5, 0.5, 1.0]), torch.tensor([-1.0, 0.0, 1.0]), 4)
    assert indices.tolist() == [0, 0, 1, 2]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=41))
def test_packing_is_undone_by_unpacking_and_halves_the_bytes(codes):
    packed = pack_int4(torch.tensor(codes))
    assert packed.numel() == math.ceil(len(codes) / 2)
    assert unpack_int4(packed, len(codes)).tolist() == codes
    assert packed.tolist() == [16 * high + low for high, low in zip(codes[::2], [*codes[1::2], 0], strict=False)]


def test_packing_works_row_by_row():
    codes = torch.randint(0, 16, (3, 4, 7), generator=torch.Generator().manual_seed(0))
    packed = pack_int4(codes)
    assert packed.shape == (3, 4, 4)
    assert torch.equal(unpack_int4(packed, 7), codes.to(torch.uint8))
    assert torch.equal(unpack_int4(packed[..., :3]), codes[..., :6].to(torch.uint8))


@given(seeds, st.integers(1, 70), st.integers(1, 40))
def test_scales_lose_at_most_half_a_step_but_a_whole_one_at_the_upper_end(seed, count, block_size):
    absmax = randn(count, seed=seed).abs()
    quantized = double_quantize(absmax, block_size)
    steps = (dequantize_absmax(quantized) - absmax) / quantized.scale.repeat_interleave(block_size)[:count]
    clamped = quantized.codes == 127
    assert (steps[~clamped].abs() <= 0.5 + 1e-9).all()
    assert (steps[clamped].abs() <= 1 + 1e-9).all()


def test_equal_scales_survive_double_quantization():
    quantized = double_quantize(torch.full((5,), 0.25), 2)
    assert quantized.scale.tolist() == [1, 1, 1]
    assert quantized.codes.tolist() == [0, 0, 0, 0, 0]
    assert torch.equal(dequantize_absmax(double_quantize(torch.full((5,), 0.25))), torch.full((5,), 0.25))


# -- 8-bit multiplication ----------------------------------------------------------------------------------------------


@given(seeds)
def test_with_every_dim_in_the_lane_the_product_is_exact(seed):
    x, weight = rows(seed), rows(seed + 1, shape=(7, 12))
    result = int8_matmul(x, weight, 1e-9)
    torch.testing.assert_close(result.output, x @ weight.T, atol=1e-12, rtol=0)
    assert result.outlier_dims.tolist() == list(range(12))


@given(seeds)
def test_the_integer_product_is_exact_and_its_error_stays_within_the_bound(seed):
    x, weight = rows(seed, shape=(2, 5, 12)), rows(seed + 1, shape=(7, 12))
    result = int8_matmul(x, weight)
    product = result.x_int8.long() @ result.w_int8.long().T
    scales = result.x_absmax[..., None] * result.w_absmax / 127**2
    torch.testing.assert_close(result.output, scales * product, rtol=1e-12, atol=1e-12)
    s_x, s_w = result.x_absmax[..., None] / 127, result.w_absmax / 127
    sums_x, sums_w = x.abs().sum(dim=-1, keepdim=True), weight.abs().sum(dim=-1)
    bound = sums_x * s_w / 2 + sums_w * s_x / 2 + 12 * s_x * s_w / 4
    assert ((result.output - x @ weight.T).abs() <= bound).all()
    assert result.outlier_dims.numel() == 0


def test_long_sums_do_not_overflow():
    x = torch.full((1, 100_000), 3.0)
    assert float(int8_matmul(x, x).output) == pytest.approx(900_000, rel=1e-5)


@given(seeds, st.floats(20, 200))
def test_a_loud_channel_leaves_the_function_alone_and_ruins_naive_int8(seed, factor):
    x, weight = rows(seed), rows(seed + 1, shape=(7, 12))
    loud, small = x.clone(), weight.clone()
    loud[:, 3] *= factor
    small[:, 3] /= factor
    loud[0, 3] = factor  # at least one entry is loud
    x[0, 3] = 1
    torch.testing.assert_close(loud @ small.T, x @ weight.T, atol=1e-9, rtol=0)
    quiet, naive, split = (
        float((int8_matmul(a, w, threshold).output - x @ weight.T).norm())
        for a, w, threshold in ((x, weight, None), (loud, small, None), (loud, small, 6.0))
    )
    assert naive > 1.5 * max(quiet, split)


def test_scales_are_taken_after_the_outlier_dims_are_removed():
    x, weight = torch.tensor([[1.0, 50.0], [0.5, 0.0]]), torch.tensor([[2.0, 80.0]])
    result = int8_matmul(x, weight, 6.0)
    assert result.x_absmax.tolist() == [1.0, 0.5]
    assert result.w_absmax.tolist() == [2.0]
    assert result.x_int8.tolist() == [[127, 0], [127, 0]]
    torch.testing.assert_close(result.output, x @ weight.T)


# -- GPTQ --------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 8), st.booleans(), st.sampled_from([None, 3, 6]))
def test_independent_inputs_of_equal_power_make_gptq_plain_rounding(seed, bits, symmetric, group_size):
    weight = rows(seed, shape=(5, 6))
    x = 2 * torch.eye(6, dtype=torch.float64)
    result = gptq_quantize(weight, x, bits, symmetric, group_size)
    grid = choose_qparams(weight, bits, symmetric, group_size)
    assert torch.equal(result.q, quantize(weight, grid))
    assert torch.equal(result.w_hat, dequantize(result.q, grid))


@given(seeds, st.booleans(), st.sampled_from([None, 3, 6]))
def test_what_gptq_returns_agrees_with_itself(seed, symmetric, group_size):
    weight, x = rows(seed, shape=(5, 6)), randn(20, 6, seed=seed + 1) @ randn(6, 6, seed=seed + 2)
    result = gptq_quantize(weight, x, 4, symmetric, group_size, record=True)
    torch.testing.assert_close(result.w_hat, dequantize(result.q, result.qparams), rtol=1e-12, atol=1e-12)
    assert result.layer_error == pytest.approx(float((x @ weight.T - x @ result.w_hat.T).square().sum()))
    assert torch.equal(result.steps[-1], result.w_hat)
    for column in range(1, 6):
        assert torch.equal(result.steps[column][:, :column], result.steps[column - 1][:, :column])


def test_rows_are_quantized_independently():
    weight, x = rows(1, shape=(5, 6)), randn(20, 6, seed=2) @ randn(6, 6, seed=3)
    whole, one = gptq_quantize(weight, x, 3).w_hat, gptq_quantize(weight[2:3], x, 3).w_hat
    torch.testing.assert_close(whole[2:3], one)


def test_the_order_of_the_columns_matters():
    weight, x = rows(1, shape=(5, 6)), randn(20, 6, seed=2) @ randn(6, 6, seed=3)
    forth, back = gptq_quantize(weight, x, 3), gptq_quantize(weight.flip(1), x.flip(1), 3)
    assert not torch.equal(forth.q, back.q.flip(1))


def test_correlated_inputs_lower_the_output_error_while_the_weights_move_further():
    better = 0
    for seed in range(20):
        weight, x = rows(seed, shape=(8, 6)), randn(40, 6, seed=seed + 1) @ randn(6, 6, seed=seed + 2)
        result, plain = gptq_quantize(weight, x, 4), fake_quantize(weight, 4)
        assert mse(weight, result.w_hat) > mse(weight, plain)
        better += result.layer_error < float(((weight - plain) @ x.T).square().sum())
    assert better > 15  # no theorem: a sweep is greedy


def test_an_input_that_is_always_zero_gets_zero_weights():
    weight, x = rows(1, shape=(5, 6)), randn(20, 6, seed=2)
    x[:, 2] = 0
    weight[:, 2] = 9.0
    result = gptq_quantize(weight, x, 4)
    assert (result.w_hat[:, 2] == 0).all()
    assert (result.qparams.scale == choose_qparams(weight, 4).scale).all()  # chosen before the weights were zeroed
    assert input_hessian(x, damp=0.0)[2, 2] == 1


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_scales_and_zero_points_cost_bits():
    assert bits_per_weight(4, 128, 16, 4) == 4.15625
    assert bits_per_weight(4, 64, 32) == 4.5
    assert model_bytes(10, 4.5) == 5.625


# -- refused input -----------------------------------------------------------------------------------------------------

X = torch.ones(2, 6)
BOOK = torch.tensor([-1.0, 0.0, 1.0])
WRONG = [
    (lambda: choose_qparams(X, 1), "bits must be in 2..16, got 1"),
    (lambda: choose_qparams(X, 17), "bits must be in 2..16, got 17"),
    (lambda: choose_qparams(X, 4, group_size=4), "group_size must divide the row length 6, got 4"),
    (lambda: choose_qparams(X, 4, group_size=0), "group_size must divide the row length 6, got 0"),
    (lambda: choose_qparams(X / 0, 4), "x must hold at least one value, and finite ones only"),
    (lambda: choose_qparams(torch.zeros(2, 0), 4), "x must hold at least one value"),
    (lambda: quantize(torch.ones(2, 5), choose_qparams(X, 4)), r"chosen for shape \(2, 6\), got \(2, 5\)"),
    (lambda: quantize(X * math.nan, choose_qparams(X, 4)), "x must hold finite values only"),
    (lambda: dequantize(8 * X.int(), choose_qparams(X, 4)), r"codes must be in -7..7, got 8..8"),
    (lambda: dequantize(-X.int(), choose_qparams(X, 4, False)), r"codes must be in 0..15, got -1..-1"),
    (lambda: bits_per_weight(4, 0), "group_size must be at least 1 .* got group_size 0"),
    (lambda: bits_per_weight(-1, 8), "bits at least 0, .* bits -1"),
    (lambda: model_bytes(-1, 4), "must be at least 0, got -1 parameters"),
    (lambda: int8_matmul(X, torch.ones(3, 5)), "x has 6 input dims, but the weight 5"),
    (lambda: int8_matmul(X, X, 0.0), r"threshold must be above 0 .*got 0.0"),
    (lambda: int8_matmul(torch.ones(1, 140_000), torch.ones(1, 140_000)), "32-bit sums .* got 140000"),
    (lambda: gptq_quantize(X, torch.ones(9, 5), 4), r"x must be \(n, 6\) .* got \(9, 5\)"),
    (lambda: gptq_quantize(X, torch.ones(0, 6), 4), r"x must be \(n, 6\) with n at least 1"),
    (lambda: gptq_quantize(X, torch.ones(9, 6), 4, damp=-0.1), "damp must be at least 0, got -0.1"),
    (lambda: gptq_quantize(X, torch.ones(9, 6), 4, damp=0.0), "9 calibration rows do not span the 6 inputs"),
    (lambda: normal_float_codebook(1), "bits must be in 2..8, got 1"),
    (lambda: normal_float_codebook(4, offset=1.0), "offset must be between 0.5 and 1, got 1.0"),
    (lambda: quantize_codebook(X, BOOK.flip(0)), "codebook must hold 2..256 rising levels"),
    (lambda: quantize_codebook(X, torch.linspace(-1, 1, 257)), r"2..256 rising levels, .*\(257\)"),
    (lambda: quantize_codebook(X, BOOK, 0), "block_size must be at least 1, got 0"),
    (lambda: quantize_codebook(X / 0, BOOK), "x must hold at least one value, and finite ones only"),
    (
        lambda: dequantize_codebook(torch.zeros(4, dtype=torch.uint8), torch.ones(1), BOOK, (2, 3)),
        r"4 codes and 1 scales of blocks of 64 do not fill shape \(2, 3\)",
    ),
    (
        lambda: dequantize_codebook(torch.full((6,), 3, dtype=torch.uint8), torch.ones(1), BOOK, (2, 3)),
        "codes must be in 0..2, got 3",
    ),
    (lambda: double_quantize(torch.ones(0)), "absmax must hold at least one value"),
    (lambda: double_quantize(torch.ones(3), 0), "block_size must be at least 1, got 0"),
    (lambda: pack_int4(torch.tensor([16])), r"codes must be in 0..15, got 16..16"),
    (lambda: pack_int4(torch.tensor([], dtype=torch.long)), "codes must not be empty"),
    (lambda: unpack_int4(torch.zeros(2, dtype=torch.uint8), 5), "2 bytes hold 3 or 4 codes, got n 5"),
    (lambda: Config(group_size=5), "group_size must be one of 4, 8, 16, 32, got 5"),
    (lambda: Config(bits=9), "bits must be in 2..8, got 9"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM in few bits -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["kept", "anew"])
def default(request):
    """The trace that comes with the project, and one whose quick parts are computed here and now."""
    kept = trace_store.get(quantization)
    if request.param == "kept":
        return kept
    parts = (experiment.number_line, experiment.granularities, experiment.loud_channel, experiment.error_feedback)
    values = experiment.code_books() | {name: value for part in parts for name, value in part(kept.config).items()}
    return replace(kept, **values)


@pytest.fixture(scope="module")
def heard():
    """What the run below said of its progress."""
    return []


@pytest.fixture(scope="module")
def whole(heard):
    """The whole model in 2 and 4 bits, judged on few texts."""
    with pytest.MonkeyPatch.context() as patch, progress.listening(lambda *news: heard.append(news)):
        patch.setattr(experiment, "BITS", (2, 4))
        patch.setattr(experiment, "SAMPLES", (4, 2))
        patch.setattr(experiment, "HELD_OUT", 10)
        return experiment.whole_model(Config(calibration_sequences=4))


def test_the_number_line_agrees_with_itself(default):
    assert (default.err_row.abs() <= default.half_step * (1 + 1e-5)).all()
    torch.testing.assert_close(default.w_row + default.err_row, default.w_row_hat)
    torch.testing.assert_close(default.grid[default.q_row.long() + 7], default.w_row_hat)
    assert default.grid_codes.tolist() == list(range(-7, 8))
    torch.testing.assert_close(default.grid_codes * default.step, default.grid)
    assert (default.sweep_err.abs() <= default.sweep_half_step[:, None] * (1 + 1e-5)).all()
    levels = (~default.sweep_grid.isnan()).sum(dim=1)
    assert levels.tolist() == [3, 7, 15, 31, 63, 127, 255]
    torch.testing.assert_close(default.sweep_sqnr_db.diff(), default.sweep_gain_db)
    assert (default.sweep_gain_db > 5.5).all()


def test_the_numbers_of_the_line_are_the_real_weights_rounded_by_hand(default):
    assert default.matrix == "layer 1 k_proj"
    matrix = tiny_lm.load("base").state_dict()["model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(default.w_row, matrix[0, :8])
    assert torch.equal(default.crop, matrix[:8])
    assert default.sweep_bits.tolist() == [2, 3, 4, 5, 6, 7, 8]
    for k, bits in enumerate(default.sweep_bits.tolist()):
        top = 2 ** (bits - 1) - 1
        step = default.w_row.abs().max() / top
        assert default.sweep_q[k].tolist() == (default.w_row / step).round().tolist()
        torch.testing.assert_close(default.sweep_hat[k], default.sweep_q[k] * step)
        torch.testing.assert_close(default.sweep_err[k], default.sweep_hat[k] - default.w_row)
        assert float(default.sweep_half_step[k]) == pytest.approx(float(step) / 2)
        steps = matrix.abs().amax(dim=1, keepdim=True) / top  # a scale for each row of the whole matrix
        error = (matrix / steps).round() * steps - matrix
        assert float(default.sweep_mse[k]) == pytest.approx(float(error.square().mean()), rel=1e-4)
        decibels = 10 * math.log10(float(matrix.square().mean() / error.square().mean()))
        assert float(default.sweep_sqnr_db[k]) == pytest.approx(decibels, abs=1e-3)
    torch.testing.assert_close(default.granularity.mse, default.granularity.err.square().mean(dim=(1, 2)))


def test_finer_scales_lower_the_error_of_the_crop_and_cost_bits(default):
    table = default.granularity
    assert table.num_scales.tolist() == [1, 8, 32]
    assert (table.mse.diff() < 0).all()
    assert table.bits_per_weight.tolist() == [4.0625, 4.5, 6.0]
    torch.testing.assert_close(table.w_hat, default.crop + table.err)
    torch.testing.assert_close(table.codes * table.scale, table.w_hat)
    torch.testing.assert_close(table.abs_err, table.err.abs())
    for k, scales in enumerate(table.num_scales.tolist()):
        assert len(table.scale[k].unique()) <= scales
        assert int(table.sets_scale[k].sum()) == scales
        setters = table.sets_scale[k]
        torch.testing.assert_close(default.crop[setters].abs() / 7, table.scale[k][setters])


def test_a_range_comes_from_both_of_its_ends_or_from_zero_and_one():
    rows = torch.tensor([[-2.0, 1.0, 3.0, 0.5], [1.0, 4.0, 2.0, 3.0], [-1.0, -5.0, 0.0, -2.0]])
    ends = experiment.widest(rows, 4, symmetric=False)
    assert ends.tolist() == [[True, False, True, False], [False, True, False, False], [False, True, False, False]]
    assert experiment.widest(rows, 2, symmetric=True)[0].tolist() == [True, False, True, False]


def test_nf4_fits_these_weights_better_than_an_even_grid_and_uses_more_of_its_bits(default):
    assert default.nf4_mse < 0.8 * default.int4_mse
    assert default.int4_entropy_bits < default.nf4_entropy_bits < 4
    counts = (default.nf4_counts, default.int4_counts, default.hist_counts)
    assert [int(part.sum()) for part in counts] == [96 * 32] * 3


def test_every_weight_of_the_histogram_goes_to_its_nearest_code(default):
    assert default.hist_matrix == "layer 1 gate_proj"
    weight = tiny_lm.load("base").state_dict()["model.layers.1.mlp.gate_proj.weight"].view(-1, 64)
    absmax = weight.abs().amax(dim=1, keepdim=True)
    shares = (weight / absmax).flatten()
    assert torch.equal(torch.histogram(shares, default.hist_edges).hist.long(), default.hist_counts)
    assert default.hist_edges.tolist() == pytest.approx([-1 + 2 * k / 41 for k in range(42)], abs=1e-6)
    torch.testing.assert_close(default.int4_code * 7, torch.arange(-7.0, 8.0))
    for name in ("nf4", "int4"):
        code, counts = getattr(default, f"{name}_code"), getattr(default, f"{name}_counts")
        nearest = (shares[:, None] - code).abs().argmin(dim=1)
        assert torch.equal(torch.bincount(nearest, minlength=len(code)), counts)
        error = (code[nearest].view_as(weight) * absmax - weight).square().mean()
        assert getattr(default, f"{name}_mse") == pytest.approx(float(error), rel=1e-4)
        bits = -sum(n / len(shares) * math.log2(n / len(shares)) for n in counts.tolist() if n)
        assert getattr(default, f"{name}_entropy_bits") == pytest.approx(bits, abs=1e-5)


def test_the_loud_channel_changes_nothing_but_the_integers(default):
    assert default.outlier_max_abs_diff_logits < 1e-4
    dim = default.outlier_dim
    assert default.outlier_dims.tolist() == [dim]
    torch.testing.assert_close(default.x_out[:, dim], 20 * default.x_quiet[:, dim])
    assert default.x_out_int8_naive[:, dim].abs().max() == 127
    torch.testing.assert_close(default.x_lane[:, 0], default.x_out[:, dim])
    torch.testing.assert_close(default.y_int8 + default.y_lane, default.y_exact + default.y_err_split)
    torch.testing.assert_close(default.y_int8 + default.y_lane, default.y_split)
    assert default.y_err_naive.square().mean() > 9 * default.y_err_split.square().mean()
    rising = default.y_rmse_naive
    assert (rising[1:] > rising[:-1]).all()
    assert rising[-1] > 10 * default.y_rmse_split[-1]
    assert default.y_rmse_split[2:].std() < 1e-5  # in the lane, loudness does not matter
    assert default.loss_int8_split < default.loss_int8_naive < default.loss_fp32 + 0.01  # one layer's noise is mild


def test_the_integers_of_both_lanes_are_those_of_the_loudest_entry_of_each_token(default):
    """Of all 32 inputs, not of the eight that are shown: these are read again from the model."""
    model = tiny_lm.load("base")
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: len(default.sentence)]])
    assert default.sentence == tiny_lm.tokens(ids[0])
    _, record = model(ids, record=("normed",))
    quiet, dim = record["normed"][1, 0].detach(), default.outlier_dim
    torch.testing.assert_close(default.x_quiet, quiet[:, :8])
    x, weight = quiet.clone(), model.state_dict()["model.layers.1.self_attn.k_proj.weight"]
    x[:, dim] *= default.config.outlier_scale
    assert default.outlier_threshold == 6.0
    assert [k for k in range(32) if x[:, k].abs().max() >= 6] == default.outlier_dims.tolist()
    others = x.clone()
    others[:, dim] = 0
    for rows, shown in ((x, default.x_out_int8_naive), (others, default.x_out_int8_split)):
        codes = rows * 127 / rows.abs().amax(dim=1, keepdim=True)
        assert (codes[:, :8] - shown).abs().max() <= 0.5 + 1e-3
    torch.testing.assert_close(default.y_exact, (quiet @ weight.T)[:, :8], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(default.y_lane, quiet[:, dim, None] * weight[:8, dim], atol=1e-4, rtol=1e-4)
    assert default.outlier_scales.tolist() == sorted(default.outlier_scales.tolist())
    louder = default.outlier_scales.tolist().index(default.config.outlier_scale)
    readers = weight.clone()
    readers[:, dim] /= default.config.outlier_scale
    for threshold, errors in ((None, default.y_rmse_naive), (6.0, default.y_rmse_split)):
        miss = int8_matmul(x, readers, threshold).output - quiet @ weight.T
        assert float(errors[louder]) == pytest.approx(float(miss.square().mean().sqrt()), rel=1e-3)


def test_gptq_moves_the_weights_further_and_the_output_less(default):
    assert default.gptq_err < default.rtn_err
    assert default.gptq_weight_mse > default.rtn_weight_mse
    assert float(default.gptq_err_after_column[-1]) == pytest.approx(default.gptq_err, rel=1e-5)
    assert float(default.rtn_err_after_column[-1]) == pytest.approx(default.rtn_err, rel=1e-5)
    torch.testing.assert_close(default.gptq_W + default.gptq_nudges.sum(dim=0), default.gptq_W_steps[-1])
    torch.testing.assert_close(default.gptq_W + default.gptq_shift, default.gptq_W_steps)
    torch.testing.assert_close(default.gptq_shift, default.gptq_nudges.cumsum(dim=0), atol=1e-6, rtol=1e-4)
    for column, nudge in enumerate(default.gptq_nudges):
        assert (nudge[:, :column] == 0).all()
        spread = nudge[:, column, None] * default.gptq_flow[column, column:]
        torch.testing.assert_close(nudge[:, column:], spread, atol=1e-6, rtol=1e-4)


def test_the_errors_of_gptq_and_of_plain_rounding_are_those_on_the_calibration_texts(default):
    weights, config = tiny_lm.load("base").state_dict(), default.config
    texts = experiment.calibration(config)
    _, record = tiny_lm.load("base")(texts.ids, record=("linear_inputs",))
    name = "model.layers.1.self_attn.k_proj.weight"
    x = record["linear_inputs"][name][texts.ids != tiny_lm.PAD].detach().double()[:, :8]
    products = 2 * x.T @ x
    expected = products + 0.01 * products.diagonal().mean() * torch.eye(8)
    torch.testing.assert_close(default.gptq_H.double(), expected, atol=1e-2, rtol=1e-4)
    for rounded, error in ((default.rtn_W, default.rtn_err), (default.gptq_W_steps[-1], default.gptq_err)):
        miss = (rounded - default.gptq_W).double()
        assert float((miss @ x.T).square().sum()) == pytest.approx(error, rel=1e-4)
    step = default.gptq_W.abs().amax(dim=1, keepdim=True) / 7
    torch.testing.assert_close(default.rtn_W, (default.gptq_W / step).round() * step)
    torch.testing.assert_close(default.gptq_W_steps[-1], default.gptq_codes * step, atol=1e-6, rtol=1e-5)
    assert default.layer_names[:3] == ("layer 0 q_proj", "layer 0 k_proj", "layer 0 v_proj")
    assert int((default.layer_err_gptq < default.layer_err_rtn).sum()) == default.layers_improved
    first = "model.layers.0.self_attn.q_proj.weight"  # nothing before it is quantized
    weight, x = weights[first], record["linear_inputs"][first][texts.ids != tiny_lm.PAD].detach()
    step = weight.abs().amax(dim=1, keepdim=True) / 7
    plain = (((weight / step).round() * step - weight) @ x.T).double().square().sum()
    assert float(default.layer_err_rtn[0]) == pytest.approx(float(plain), rel=1e-3)
    torch.testing.assert_close(default.methods.excess, default.methods.loss - default.loss_fp32)
    assert default.num_params == 43_744
    assert default.prompt == tiny_lm.PROMPT


def test_gptq_lowers_the_output_error_of_nearly_every_matrix(default):
    assert len(default.layer_names) == default.num_matrices == 21
    assert default.layers_improved >= 20


def test_the_whole_model_is_judged_with_every_matrix_rounded(whole):
    base = tiny_lm.load("base")
    state, config, corpus = base.state_dict(), Config(calibration_sequences=4), tiny_lm.held_out(10)
    names = [name for name in state if name.endswith("_proj.weight")]

    def judged(changed):
        return tiny_lm.evaluate(tiny_lm.copy_of(base, {**state, **changed}).requires_grad_(False), corpus)

    assert whole["loss_fp32"] == judged({})
    assert whole["entropy_floor"] == corpus.entropy_floor
    assert whole["bits_axis"].tolist() == [2, 4]
    table = whole["methods"]
    torch.testing.assert_close(table.excess, table.loss - whole["loss_fp32"])
    for column, bits in enumerate((2, 4)):
        for row, group in enumerate((None, config.group_size)):
            changed = {}
            for name in names:
                blocks = state[name].view(-1, group or state[name].shape[1])
                step = blocks.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                changed[name] = ((blocks / step).round() * step).view_as(state[name])
            assert float(table.loss[row, column]) == pytest.approx(judged(changed), rel=1e-4)
    found, errors = experiment.gptq_model(config, 4, experiment.calibration(config))
    assert float(table.loss[2, 1]) == pytest.approx(judged(found), rel=1e-4)
    assert whole["layer_err_rtn"].tolist() == pytest.approx([plain for plain, _ in errors.values()])
    assert whole["layer_err_gptq"].tolist() == pytest.approx([improved for _, improved in errors.values()])
    assert whole["layers_improved"] == sum(improved < plain for plain, improved in errors.values())
    assert whole["sample_names"] == ("float32", "4 bits", "2 bits")
    assert whole["samples"][0] == tiny_lm.generate(base, [tiny_lm.PROMPT], 24)[0] != whole["samples"][2]


def test_the_whole_model_is_counted_in_weights_and_bytes(whole):
    assert whole["num_quantized"] == 39_936
    assert whole["bytes_fp32"] == 4 * whole["num_params"] == 4 * 43_744


def test_progress_is_told_up_to_the_end(whole, heard):
    assert heard == [("quantizing the model", done, 2) for done in (1, 2)]
    heard.clear()
    with pytest.MonkeyPatch.context() as patch, progress.listening(lambda *news: heard.append(news)):
        patch.setattr(experiment, "HELD_OUT", 2)
        experiment.loud_channel(Config())
    assert heard == [("multiplying in 8 bits", done, 2) for done in (1, 2)]


def test_the_model_keeps_talking_at_four_bits_and_breaks_at_two(default):
    bits = default.bits_axis.tolist()
    loss = default.methods.loss
    assert (loss[:, bits.index(8)] - default.loss_fp32).abs().max() < 0.001
    assert (loss[:, bits.index(4)] - default.loss_fp32).max() < 0.01
    assert (loss[:, bits.index(2)] - default.loss_fp32).min() > 1
    assert loss[2, bits.index(3)] < loss[0, bits.index(3)]  # GPTQ against plain rounding
    assert default.loss_fp32 > default.entropy_floor
    assert default.samples[0] != default.samples[-1]
    assert len(default.samples) == len(default.sample_names) == 4
    bounds = default.sample_bounds.tolist()
    cuts = [" ".join(default.sample_words[start:end]) for start, end in pairwise(bounds)]
    assert cuts == list(default.samples)


def test_sizes_count_what_is_stored(default):
    bits = default.bits_axis.tolist()
    assert default.num_quantized == 39_936
    row_scales = 3 * (4 * 32 + 2 * 96 + 32)
    expected = (4 * 39_936 + 16 * row_scales) / 8 + 4 * (43_744 - 39_936)
    assert float(default.methods.model_bytes[0, bits.index(4)]) == pytest.approx(expected)
    assert float(default.methods.bits_per_weight[1, bits.index(4)]) == 6.0
    assert default.bytes_fp32 == 4 * 43_744


def test_grids_with_a_zero_point_can_be_shown_too():
    config = Config(symmetric=False, bits=3, group_size=32)
    line, table = experiment.number_line(config), experiment.granularities(config)["granularity"]
    assert len(line["grid"]) == 8
    assert (line["err_row"].abs() <= line["half_step"] * (1 + 1e-5)).all()
    torch.testing.assert_close(table.bits_per_weight[1:], torch.full((2,), 3 + 19 / 32))
    assert experiment.size(config, 3, 32)[0] == pytest.approx(3 + 19 / 32)


def test_calibration_texts_change_with_the_seed():
    first, second = (experiment.calibration(Config(seed=seed, calibration_sequences=4)) for seed in (0, 1))
    assert first.hash != second.hash
    assert torch.equal(first.ids, tiny_lm.training_corpus(size=10).ids[:4])


def test_a_trace_survives_the_store(default, tmp_path):
    default.save(tmp_path / "trace.safetensors")
    assert quantization.Trace.load(tmp_path / "trace.safetensors").hash == default.hash
