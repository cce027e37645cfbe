import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import mixed_precision, tiny_lm, trace_store
from internals_math import mixed_precision_experiment as experiment
from internals_math.float_formats import bit_tiles, cast
from internals_math.mixed_precision import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    TF32,
    Config,
    DynamicLossScaler,
    FloatFields,
    FloatFormat,
    accumulate,
    apply_updates,
    compose,
    decompose,
    low_precision_linear,
    max_power_of_two_scale,
    range_report,
    representable_values,
    round_to_format,
    train_mixed,
    training_bytes_per_param,
    ulp,
    underflow_fraction,
    unscale_,
)
from internals_math.next_token import next_token_loss
from tests.oracles import randn

seeds = st.integers(0, 100)
formats = st.builds(FloatFormat, st.just("any"), st.integers(2, 8), st.integers(1, 23), st.booleans())
small_formats = st.builds(FloatFormat, st.just("small"), st.integers(2, 4), st.integers(1, 3), st.booleans())
SHORT = Config(train_steps=50)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(mixed_precision)


def spread(fmt, seed, count=200):
    """Return float64 numbers of all magnitudes of a format, and a little beyond both ends."""
    low, high = 1 - fmt.bias - fmt.mantissa_bits - 2, fmt.max_exponent + 2
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(low, high, (count,), generator=generator)
    return torch.ldexp(randn(count, seed=seed), exponents.double())


def counted(fmt):
    """Return all finite values >= 0 by the definition, value after value."""
    values = []
    for exponent in range(2**fmt.exponent_bits):
        for mantissa in range(2**fmt.mantissa_bits):
            top = exponent == 2**fmt.exponent_bits - 1
            if top and (fmt.ieee or mantissa == 2**fmt.mantissa_bits - 1):
                continue
            fraction = mantissa / 2**fmt.mantissa_bits
            values.append((fraction if exponent == 0 else 1 + fraction) * 2.0 ** (max(exponent, 1) - fmt.bias))
    return values


# -- formats -----------------------------------------------------------------------------------------------------------


@given(small_formats)
def test_a_format_holds_the_values_that_its_definition_counts(fmt):
    values = counted(fmt)
    assert representable_values(fmt, 0, math.inf).tolist() == values
    assert representable_values(fmt, -math.inf, math.inf).tolist() == [-v for v in values[:0:-1]] + values
    assert (fmt.min_subnormal, fmt.max) == (values[1], values[-1])
    assert fmt.min_normal == values[2**fmt.mantissa_bits]
    assert 1 + fmt.eps == min(v for v in values if v > 1)
    assert fmt.max_exponent == math.floor(math.log2(values[-1]))
    assert fmt.bits == 1 + fmt.exponent_bits + fmt.mantissa_bits


@given(small_formats, seeds)
def test_rounding_finds_the_nearest_value_and_halves_go_to_the_even_one(fmt, seed):
    values = counted(fmt)
    midpoints = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    x = torch.cat([spread(fmt, seed).abs(), torch.tensor(midpoints, dtype=torch.float64)])
    x = x[x <= fmt.max]

    def nearest(number):
        best = min(range(len(values)), key=lambda k: (abs(values[k] - number), k % 2))
        return values[best]

    assert round_to_format(x, fmt).tolist() == [nearest(number) for number in x.tolist()]


@given(formats, seeds)
def test_rounding_is_idempotent_odd_and_monotone(fmt, seed):
    x = spread(fmt, seed).sort().values
    once = round_to_format(x, fmt)
    torch.testing.assert_close(round_to_format(once, fmt), once, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(round_to_format(-x, fmt), -once, rtol=0, atol=0, equal_nan=True)
    finite = once[once.abs() <= fmt.max]
    assert (finite.diff() >= 0).all()


@given(formats, seeds)
def test_the_error_is_at_most_half_a_step(fmt, seed):
    x = spread(fmt, seed)
    rounded = round_to_format(x, fmt)
    inside = x.abs() <= fmt.max
    error = (rounded - x).abs()[inside]
    normal = (rounded.abs() >= fmt.min_normal)[inside]
    assert (error[normal] <= fmt.eps / 2 * rounded.abs()[inside][normal]).all()
    assert (error[~normal] <= fmt.min_subnormal / 2).all()
    assert (error <= ulp(x, fmt)[inside] / 2).all()


@given(formats)
def test_overflow_begins_half_a_step_beyond_the_largest_value(fmt):
    border = fmt.max + float(ulp(torch.tensor(fmt.max, dtype=torch.float64), fmt)) / 2
    before, at, after = (border * (1 - 2.0**-50), border, border * (1 + 2.0**-50))
    x = torch.tensor([before, at, after, math.inf], dtype=torch.float64)
    rounded = round_to_format(torch.cat([x, -x]), fmt)
    beyond = (rounded.isinf() if fmt.ieee else rounded.isnan()).tolist()
    if fmt.ieee:
        assert beyond == [False, True, True, True] * 2
        assert (rounded[:4] > 0).all()
        assert (rounded[4:] < 0).all()
    else:  # the largest mantissa is even where all ones are NaN, so that a tie stays
        assert beyond == [False, False, True, True] * 2
    held = round_to_format(torch.cat([x, -x]), fmt, saturate=True)
    assert held.tolist() == [fmt.max] * 4 + [-fmt.max] * 4


def test_zero_keeps_its_sign_and_nan_stays():
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, math.nan])
    for fmt in (FP16, FP8_E4M3, FP8_E5M2):
        rounded = round_to_format(x, fmt)
        assert rounded[:4].signbit().tolist() == [False, True, False, True]
        assert (rounded[:4] == 0).all()
        assert rounded[4].isnan()
        assert round_to_format(x, fmt, saturate=True)[4].isnan()
    assert round_to_format(x, FP16).dtype == torch.float32


def test_half_of_the_smallest_value_is_zero_and_anything_more_is_not():
    half = 2.0**-25
    x = torch.tensor([half, half * (1 + 2.0**-23), 1.5 * 2.0**-24], dtype=torch.float64)
    assert round_to_format(x, FP16).tolist() == [0.0, 2.0**-24, 2.0**-23]


@given(formats, seeds)
def test_fields_put_together_are_the_number_again(fmt, seed):
    x = round_to_format(spread(fmt, seed), fmt)
    x = torch.cat([x, torch.tensor([0.0, -0.0, math.nan, fmt.min_subnormal, fmt.min_normal, -fmt.max])])
    fields = decompose(x, fmt)
    back = compose(fields, fmt).double()
    torch.testing.assert_close(back, x, rtol=0, atol=0, equal_nan=True)
    assert (back.signbit() == x.signbit())[~x.isnan()].all()
    assert fields.exponent.max() <= 2**fmt.exponent_bits - 1
    assert (fields.mantissa >= 0).all()
    assert (fields.mantissa < 2**fmt.mantissa_bits).all()


def test_every_value_of_16_bits_is_a_value_of_32():
    for fmt in (FP16, BF16, TF32):
        x = round_to_format(spread(fmt, 0, 5000), fmt)
        assert (round_to_format(x, FP32) == x).all()


def test_the_tiles_of_a_number_are_its_bits():
    assert bit_tiles(torch.tensor(-1.5), FP16).tolist() == [1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert bit_tiles(torch.tensor([math.inf, 448.0]), FP8_E5M2)[0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    x = randn(50, seed=0, dtype=torch.float32)
    codes = (bit_tiles(x, FP32) * 2 ** torch.arange(31, -1, -1)).sum(dim=1)
    assert codes.tolist() == [code % 2**32 for code in x.view(torch.int32).tolist()]
    # bfloat16 is the front half of float32
    assert (bit_tiles(round_to_format(x, BF16), FP32)[:, :16] == bit_tiles(round_to_format(x, BF16), BF16)).all()


def test_the_spacing_grows_with_the_number_and_ends_at_the_subnormals():
    x = torch.tensor([0.0, 2.0**-24, 2.0**-14, 1.0, 1.999, 2.0, 2048.0, 65504.0, math.inf, math.nan])
    steps = ulp(x, FP16)
    assert steps[:8].tolist() == [2.0**-24, 2.0**-24, 2.0**-24, 2.0**-10, 2.0**-10, 2.0**-9, 2.0, 32.0]
    assert steps[8:].isnan().all()
    assert (ulp(-x, FP16)[:8] == steps[:8]).all()


def test_values_between_two_bounds_are_listed_with_the_bounds():
    assert representable_values(FP8_E5M2, -0.5, 0.5).tolist()[0] == -0.5
    assert representable_values(FP8_E5M2, -0.5, 0.5).tolist()[-1] == 0.5
    assert representable_values(FP16, 1 + 2.0**-11, 1 + 2.5 * 2.0**-10).tolist() == [1 + 2.0**-10, 1 + 2 * 2.0**-10]
    assert representable_values(FP16, -1 - 2.0**-9, -1 - 2.0**-12).tolist() == [-1 - 2.0**-9, -1 - 2.0**-10]
    assert representable_values(FP16, 2.0**-26, 2.0**-25).tolist() == []
    assert representable_values(FP16, -(2.0**-25), 2.0**-24).tolist() == [0.0, 2.0**-24]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: FloatFormat("x", 1, 3), r"exponent_bits must be in 2\.\.8, got 1"),
        (lambda: FloatFormat("x", 9, 3), r"exponent_bits must be in 2\.\.8, got 9"),
        (lambda: FloatFormat("x", 4, 0), r"mantissa_bits must be in 1\.\.23, got 0"),
        (lambda: FloatFormat("x", 4, 24), r"mantissa_bits must be in 1\.\.23, got 24"),
        (lambda: round_to_format(torch.tensor([1]), FP16), "x must be float32 or float64, got torch.int64"),
        (lambda: ulp(torch.tensor([1.0]).half(), FP16), "x must be float32 or float64, got torch.float16"),
        (lambda: decompose(torch.tensor([0.1]), FP16), r"x must hold values of FP16 only \(round_to_format first\)"),
        (lambda: decompose(torch.tensor([math.inf]), FP8_E4M3), "x must hold values of FP8 E4M3 only"),
        (lambda: representable_values(FP32, 1, 2), "at most 65536 values can be listed, got 8388609 from 1 to 2"),
        (lambda: representable_values(FP16, 2, 1), "low must be at most high, got 2 and 1"),
        (lambda: representable_values(FP16, math.nan, 1), "low must be at most high, got nan and 1"),
        (lambda: compose(fields(exponent=32), FP16), r"exponent of FP16 must be in 0\.\.31, got 32"),
        (lambda: compose(fields(mantissa=-1), FP16), r"mantissa of FP16 must be in 0\.\.1023, got -1"),
        (lambda: compose(fields(sign=2), FP16), r"sign of FP16 must be in 0\.\.1, got 2"),
    ],
)
def test_what_no_format_can_be_or_hold_is_refused(plain_python, run, message):
    with pytest.raises(ValueError, match=message):
        run()


def fields(sign=0, exponent=0, mantissa=0):
    return FloatFields(torch.tensor(sign), torch.tensor(exponent), torch.tensor(mantissa))


# -- range and loss scaling --------------------------------------------------------------------------------------------


def test_a_report_says_where_each_gradient_lands():
    x = torch.tensor([0.0, 2.0**-25, 2.0**-24, 2.0**-15, 2.0**-14, -1.0, 65504.0, 65520.0])
    report = range_report(x, FP16)
    assert (report.zeroed, report.subnormal, report.normal, report.overflowed) == (1 / 7, 2 / 7, 3 / 7, 1 / 7)
    assert underflow_fraction(x, FP16) == 1 / 7
    assert underflow_fraction(x, FP16, 2.0) == 0
    assert range_report(x, FP16, 2.0).overflowed == 2 / 7
    assert range_report(torch.tensor([500.0, -500.0, 448.0]), FP8_E4M3).overflowed == 2 / 3
    assert range_report(torch.tensor([3e38, 1.0]), FP16, 1e10).overflowed == 1  # beyond float32 too


@given(seeds)
def test_a_larger_scale_never_zeroes_more_and_the_shares_are_everything(seed):
    x = spread(FP16, seed)
    reports = [range_report(x, FP16, 2.0**k) for k in range(0, 30, 3)]
    zeroed = [report.zeroed for report in reports]
    assert zeroed == sorted(zeroed, reverse=True)
    assert zeroed[0] > zeroed[-1]
    for report in reports:
        assert sum(vars(report).values()) == pytest.approx(1)


@given(seeds, st.sampled_from([FP16, BF16, FP8_E4M3]))
def test_the_safe_scale_keeps_all_finite_and_its_double_does_not(seed, fmt):
    grads = [randn(20, seed=seed) * 2.0**-20, randn(3, 4, seed=seed + 1) * 2.0**-18]
    scale = max_power_of_two_scale(grads, fmt)
    assert math.frexp(scale)[0] == 0.5
    assert max(float(grad.abs().max()) for grad in grads) * scale <= fmt.max
    assert max(float(grad.abs().max()) for grad in grads) * scale * 2 > fmt.max


def test_a_gradient_that_is_exactly_the_largest_value_needs_no_scale():
    assert max_power_of_two_scale([torch.tensor([-65504.0])], FP16) == 1
    assert max_power_of_two_scale([torch.tensor([65505.0], dtype=torch.float64)], FP16) == 0.5
    assert max_power_of_two_scale([torch.tensor([32752.0])], FP16) == 2


@given(seeds)
def test_scaling_the_loss_by_a_power_of_two_changes_no_gradient_that_stays_in_range(seed):
    x, w = randn(6, 5, seed=seed, dtype=torch.float32), randn(4, 5, seed=seed + 1, dtype=torch.float32)
    upstream = randn(6, 4, seed=seed + 2, dtype=torch.float32) * 0.1

    def grads(scale):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        (low_precision_linear(*leaves, FP16) * upstream * scale).sum().backward()
        given_ = [leaf.grad for leaf in leaves]
        assert all(range_report(g, FP16).subnormal == 0 for g in given_)
        unscaled, found_inf = unscale_(given_, scale)
        assert not found_inf
        assert unscaled[0] is given_[0]
        return unscaled

    plain = grads(16.0)
    for k in (5, 8, 11):
        for ours, theirs in zip(grads(2.0**k), plain, strict=True):
            assert (ours == theirs).all()


def test_unscaling_finds_inf_and_nan():
    for bad in (math.inf, -math.inf, math.nan):
        assert unscale_([torch.ones(2), torch.tensor([1.0, bad])], 4.0)[1]
    grads, found_inf = unscale_([torch.tensor([6.0])], 4.0)
    assert (grads[0].tolist(), found_inf) == ([1.5], False)


def test_the_scale_grows_after_quiet_steps_in_a_row_and_halves_at_an_overflow():
    scaler = DynamicLossScaler(growth_interval=2)
    found = (False, False, True, False, False)
    assert [scaler.update(bad) for bad in found] == [65536, 131072, 65536, 65536, 131072]
    assert scaler.growth_tracker == 0
    scaler = DynamicLossScaler(8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=3)
    assert [scaler.update(bad) for bad in (False, False, True, False, False, False)] == [8, 8, 2, 2, 2, 6]


def test_the_scale_never_leaves_float32():
    scaler = DynamicLossScaler(2.0**126, growth_interval=1)
    assert [scaler.update(False) for _ in range(3)] == [2.0**127] * 3
    assert scaler.growth_tracker == 0
    assert DynamicLossScaler(FP32.max / 2, growth_interval=1).update(False) == FP32.max


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: underflow_fraction(torch.ones(2), FP16, 0.0), "scale must be positive and finite, got 0.0"),
        (lambda: range_report(torch.ones(2), FP16, math.inf), "scale must be positive and finite, got inf"),
        (lambda: unscale_([torch.ones(2)], -1.0), "scale must be positive and finite, got -1.0"),
        (lambda: range_report(torch.zeros(2), FP16), "at least one entry that is not 0"),
        (lambda: range_report(torch.tensor([math.nan]), FP16), "x must be finite"),
        (lambda: max_power_of_two_scale([torch.zeros(2)], FP16), "got a largest magnitude of 0.0"),
        (lambda: max_power_of_two_scale([torch.tensor([math.inf])], FP16), "got a largest magnitude of inf"),
        (lambda: max_power_of_two_scale([], FP16), "got a largest magnitude of 0.0"),
        (lambda: DynamicLossScaler(math.nan), "scale must be positive and finite, got nan"),
        (lambda: DynamicLossScaler(growth_factor=1.0), "growth_factor must be > 1 and finite, got 1.0"),
        (lambda: DynamicLossScaler(backoff_factor=1.0), "backoff_factor must be between 0 and 1, got 1.0"),
        (lambda: DynamicLossScaler(backoff_factor=0.0), "backoff_factor must be between 0 and 1, got 0.0"),
        (lambda: DynamicLossScaler(growth_interval=0), "growth_interval must be at least 1, got 0"),
        (lambda: training_bytes_per_param("int8"), "mode must be one of fp32, mixed, no_master, got 'int8'"),
        (lambda: train_mixed(SHORT, "fp8"), "mode must be one of fp32, fp16_pure, .*, got 'fp8'"),
    ],
)
def test_what_cannot_be_scaled_or_trained_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()


# -- arithmetic in few bits --------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([FP16, BF16, FP8_E4M3]))
def test_a_running_sum_rounds_the_values_and_every_sum(seed, fmt):
    values = randn(12, seed=seed, dtype=torch.float32)
    total, expected = torch.tensor(0.0), []
    for value in values:
        total = round_to_format(total + round_to_format(value, fmt), fmt)
        expected.append(float(total))
    assert accumulate(values, fmt).tolist() == expected
    assert accumulate(values[:0], fmt).shape == (0,)


def test_an_update_below_half_a_step_never_lands_however_often_it_comes():
    w = representable_values(FP16, 1, 2)[:-1]
    lost = w / 4096
    for sign in (1, -1):
        assert (apply_updates(w, (sign * lost).expand(5, -1), FP16) == w).all()
    assert (apply_updates(w, (w / 1023).expand(1, -1), FP16) > w).all()
    assert apply_updates(torch.tensor(1.0), torch.full((100,), -0.0001), FP16) == 1
    assert float(apply_updates(torch.tensor(1.0), torch.full((100,), -0.0001), FP32)) == pytest.approx(0.99, abs=1e-5)
    assert float(apply_updates(torch.tensor(0.1), torch.zeros(0), BF16)) == 0.10009765625


@given(seeds)
def test_the_product_rounds_operands_output_and_three_gradients(seed):
    x, w, grad = (randn(*shape, seed=seed + k, dtype=torch.float32) for k, shape in enumerate([(3, 5), (4, 5), (3, 4)]))
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    output = low_precision_linear(*leaves, BF16)
    rx, rw, rg = (round_to_format(t, BF16) for t in (x, w, grad))
    assert (output == round_to_format(rx @ rw.T, BF16)).all()
    to_x, to_w = torch.autograd.grad(output, leaves, grad)
    assert (to_x == round_to_format(rg @ rw, BF16)).all()
    assert (to_w == round_to_format(rg.T @ rx, BF16)).all()
    assert (low_precision_linear(x[0], w, BF16) == low_precision_linear(x, w, BF16)[0]).all()


def test_in_float32_the_product_is_the_ordinary_one():
    x, w = randn(3, 5, seed=1, dtype=torch.float32), randn(4, 5, seed=2, dtype=torch.float32)
    assert (low_precision_linear(x, w, FP32) == x @ w.T).all()


def test_a_stored_weight_and_its_gradient_have_16_bits():
    weight = torch.tensor([1 / 3], requires_grad=True)
    copy = mixed_precision.stored(weight, FP16)
    assert copy.detach() == torch.tensor(1 / 3).half().float()
    (copy * 1e-8).sum().backward()
    assert weight.grad == 0  # underflow


def test_a_cast_from_float64_rounds_once():
    x = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    assert float(cast(x, FP16)) == 1 + 2.0**-10
    assert float(cast(x.float(), FP16)) == 1.0  # float32 has dropped the bit that breaks the tie


# -- training ----------------------------------------------------------------------------------------------------------


def test_fp32_is_a_plain_training_loop_to_the_bit(plain_python):
    ours = train_mixed(SHORT, "fp32")
    model = tiny_lm.TinyLM(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step, (ids, labels) in enumerate(experiment.batches(SHORT)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 49)))
        optimizer.zero_grad()
        loss = next_token_loss(model(ids), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert ours.loss.tolist() == losses
    assert ours.final_eval_loss == tiny_lm.evaluate(model, tiny_lm.held_out(experiment.HELD_OUT))
    assert ours.scale.unique().tolist() == [1.0]
    assert not ours.skipped.any()


def test_a_factor_on_the_loss_is_taken_out_of_the_gradients_to_the_bit(plain_python, monkeypatch):
    steps = experiment.batches(SHORT)[:3]
    monkeypatch.setattr(experiment, "batches", lambda config: steps)
    monkeypatch.setattr(experiment, "HELD_OUT", 2)
    plain, small = (experiment.train(SHORT, "fp32", loss_factor=factor) for factor in (1.0, 2.0**-8))
    assert plain.loss.tolist() == small.loss.tolist()  # a power of two rounds nothing


def test_a_skipped_step_leaves_weights_moments_and_step_count_alone(plain_python):
    config = Config(train_steps=50, init_scale_log2=24, growth_interval=2000)
    seen = []

    def watch(step, model, optimizer):
        parts = [w.detach().clone() for w in model.parameters()]
        for state in optimizer.state.values():
            parts += [state[name].clone() for name in ("exp_avg", "exp_avg_sq", "step")]
        seen.append(parts)

    curve = experiment.train(config, "fp16_scaled", watch=watch)
    assert curve.skipped[0]  # 2^24 is too much for the first gradients
    for step, skipped in enumerate(curve.skipped.tolist()):
        before, after = seen[step], seen[step + 1]
        same = len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == skipped
    # every overflow halves the scale, and nothing else changes it
    halvings = curve.skipped.double().cumsum(0)
    assert curve.scale[0] == 2.0**24
    assert (curve.scale[1:] == 2.0 ** (24 - halvings[:-1])).all()


def test_weights_without_a_master_have_16_bits_after_every_step(plain_python):
    shares = []

    def watch(step, model, optimizer):
        assert all((round_to_format(w.detach(), BF16) == w).all() for w in model.parameters())
        shares.append(torch.cat([w.detach().flatten() for w in model.parameters()]).clone())

    curve = experiment.train(SHORT, "bf16_pure", watch=watch)
    stood = [float((a == b).float().mean()) for a, b in itertools.pairwise(shares)]
    # every weight has a gradient in most steps, so what stood still is what was lost
    assert abs(stood[-1] - float(curve.lost_share[-1])) < 0.01
    assert curve.lost_share[0] < 0.05 < 0.9 < curve.lost_share[-1]


@settings(max_examples=10)
@given(st.sampled_from([FP16, BF16]), seeds)
def test_logits_in_few_bits_come_from_rounded_weights(fmt, seed):
    model = tiny_lm.copy_of(tiny_lm.load("base"))
    ids = torch.tensor([tiny_lm.encode(tiny_lm.PROMPT)])
    logits = experiment.compute_logits(model, ids, fmt)
    assert (round_to_format(logits, fmt) == logits).all()
    torch.testing.assert_close(logits, model(ids), atol=0.2 if fmt is BF16 else 0.03, rtol=0)
    assert (experiment.compute_logits(model, ids, None) == model(ids)).all()


@pytest.mark.parametrize(
    "setting",
    [
        "train_steps=10", "learning_rate=1", "init_scale_log2=25", "growth_interval=1", "backoff_factor=1.0", "seed=-1",
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the run -----------------------------------------------------------------------------------------------------------


def test_tiles_tables_and_levels_of_the_trace_are_those_of_the_formats(trace):
    assert trace.formats.name[0] == "FP32"
    assert (trace.formats.max == 2 ** (trace.formats.max_exponent.double()) * (
        torch.where(torch.tensor([name != "FP8 E4M3" for name in trace.formats.name]), 2.0, 2.0 - trace.formats.eps)
        - trace.formats.eps
    )).all()  # fmt: skip
    assert (trace.formats.min_normal.log2() == trace.formats.min_normal_exponent).all()
    assert (trace.formats.min_subnormal.log2() == trace.formats.min_subnormal_exponent).all()
    for fmt, bits, value in zip(
        (FP32, FP16, BF16), (trace.bits_fp32, trace.bits_fp16, trace.bits_bf16), trace.bit_values, strict=True
    ):
        assert (bit_tiles(value, fmt) == bits).all()
        assert round_to_format(trace.bit_values[0], fmt) == value
    assert torch.equal(trace.bits_bf16[:9], trace.bits_fp32[:9])  # the exponent is FP32's own
    assert len(trace.bit_values.unique()) == 3
    for levels, fmt in ((trace.levels_fp16, FP16), (trace.levels_bf16, BF16)):
        assert torch.equal(levels, 1 + torch.arange(2**fmt.mantissa_bits) * fmt.eps)


def test_histogram_and_reports_are_of_the_trained_models_gradients(trace):
    found = experiment.gradients(tiny_lm.copy_of(tiny_lm.load("base")))
    x = found.all_activations()
    x = x[x != 0].double().abs()
    assert int(trace.hist_activations.sum()) + trace.hist_activations_below == pytest.approx(len(x), rel=1e-5)
    assert trace.hist_edges.tolist() == list(range(-48, 5))
    # the smallest gradients are made of rounding errors, which differ between processors
    for k, rounding in ((-48, 0.1), (-26, 0.01), (-20, 0.001), (-12, 0.001)):
        expected = int(((x >= 2.0**k) & (x < 2.0 ** (k + 1))).sum())
        assert int(trace.hist_activations[k + 48]) == pytest.approx(expected, rel=rounding)
    assert trace.report_by_scale.zeroed[0] == pytest.approx(float((x <= 2.0**-25).double().mean()), abs=1e-5)
    # the loss is a mean over tokens: a real share falls under the edge, and the scale takes it back
    table = trace.report_by_scale
    assert table.log2_scale.tolist() == list(range(33))
    assert table.zeroed[0] > 0.4 > 0.02 > table.zeroed[16]
    assert (table.zeroed.diff() <= 0).all()
    assert (table.overflowed.diff() >= 0).all()
    assert table.overflowed[20] == 0 < table.overflowed[32]
    torch.testing.assert_close(
        table.zeroed + table.subnormal + table.normal + table.overflowed, torch.ones(33), atol=1e-6, rtol=0
    )
    assert trace.report_bf16.zeroed == trace.report_bf16.overflowed == 0
    assert trace.report_early.zeroed < 0.05  # gradients shrink as the model learns
    largest = max(float(g.abs().max()) for g in (*found.activations.values(), *found.weights.values()))
    assert largest * 2.0**trace.safe_scale_log2 <= FP16.max < largest * 2.0 ** (trace.safe_scale_log2 + 1)
    assert trace.grad_tokens == 1489


def test_magnitudes_are_counted_by_powers_of_two():
    x = torch.tensor([0.0, 2.0**-49, 2.0**-48, -1.5 * 2.0**-48, 1.0, 1.99, -8.0, 15.9, 16.0])
    counts, below = experiment.histogram(x)
    assert below == 1
    assert len(counts) == 52  # [2^-48, 2^-47) to [8, 16)
    assert {place - 48: count for place, count in enumerate(counts.tolist()) if count} == {-48: 2, 0: 2, 3: 2}


def test_the_gradients_are_computed_as_they_are_kept(trace, monkeypatch):
    monkeypatch.setattr(experiment, "SCALES", (0, 16))
    anew = experiment.gradient_fields(trace.config)
    assert anew.keys() <= vars(trace).keys()
    for name in ("bits_fp32", "bits_fp16", "bits_bf16", "hist_edges", "grad_tokens", "act_tokens", "safe_scale_log2"):
        kept = getattr(trace, name)
        assert torch.equal(anew[name], kept) if isinstance(kept, torch.Tensor) else anew[name] == kept
    for name in ("hist_activations", "hist_weights"):
        # the smallest gradients are made of rounding errors, which differ between processors
        torch.testing.assert_close(anew[name], getattr(trace, name), atol=20, rtol=0.1)
    for name, rounding in (("act_grad", 2e-10), ("act_grad_scaled", 2e-10), ("act_grad_fp16", 2.0**-24)):
        torch.testing.assert_close(anew[name], getattr(trace, name), atol=rounding, rtol=1e-2)
    for name in ("report_by_scale", "report_weights_by_scale"):
        for column, values in vars(anew[name]).items():
            kept = getattr(getattr(trace, name), column)
            torch.testing.assert_close(values, kept[[0, 16]], atol=1e-3, rtol=0)


def test_the_weights_gradients_land_where_they_are_cast_to(trace):
    found = experiment.gradients(tiny_lm.copy_of(tiny_lm.load("base")))
    x = torch.cat([grad.flatten() for grad in found.weights.values()])
    x, table = x[x != 0].double(), trace.report_weights_by_scale
    for k in (0, 8, 16, 24, 32):
        scaled = (x * 2.0**k).abs()
        shares = {
            "zeroed": scaled <= 2.0**-25,
            "subnormal": (scaled > 2.0**-25) & (scaled < 2.0**-14 - 2.0**-25),
            "overflowed": scaled >= 65520,
        }
        for name, chosen in shares.items():
            assert float(getattr(table, name)[k]) == pytest.approx(float(chosen.double().mean()), abs=1e-4)


def test_gradients_of_weights_agree_with_backward(trace):
    model = tiny_lm.copy_of(tiny_lm.load("base"))
    corpus = tiny_lm.held_out(experiment.GRAD_BATCH)
    next_token_loss(model(corpus.ids), corpus.labels()).backward()
    found = experiment.gradients(tiny_lm.copy_of(tiny_lm.load("base")))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found.weights[name], weight.grad)
    # a weight's gradient is the sum of its output's gradients times its inputs
    outputs = found.activations["head"]
    assert outputs.sum(dim=-1).abs().max() < 1e-7  # softmax: logits' gradients of a token cancel
    assert len(found.activations) == 22
    assert int(trace.hist_weights.sum()) + trace.hist_weights_below == model.num_params


def test_the_crop_is_dark_without_a_scale_and_comes_back_with_it(trace):
    assert torch.equal(trace.act_grad_fp16, round_to_format(trace.act_grad, FP16))
    assert torch.equal(trace.act_grad_scaled * 2.0**16, round_to_format(trace.act_grad * 2.0**16, FP16))
    assert (trace.act_grad != 0).all()
    assert (trace.act_grad_fp16 == 0).float().mean() > 0.3
    assert (trace.act_grad_scaled == 0).float().mean() < 0.05
    assert trace.act_tokens[:3] == ("<bos>", "one", "day")


def test_long_sums_lose_in_16_bits_and_most_in_bf16(trace):
    losses = trace.sum_fp32.double().diff(prepend=torch.zeros(1))
    exact = losses.sum()
    errors = [abs(float(s[-1]) - float(exact)) for s in (trace.sum_fp32, trace.sum_fp16, trace.sum_bf16)]
    assert errors[0] < 1e-2 < 1 < errors[1] < errors[2]
    for values, fmt in ((trace.sum_fp16, FP16), (trace.sum_bf16, BF16)):
        assert (round_to_format(values, fmt) == values).all()
    for values, dtype in ((trace.sum_fp32, torch.float32), (trace.sum_fp16, torch.float16)):
        total, expected = torch.zeros((), dtype=dtype), []
        for loss in experiment.losses().to(dtype):
            total = total + loss  # rounded by torch
            expected.append(float(total))
        assert values.tolist() == pytest.approx(expected, rel=1e-4)


def test_small_updates_move_only_the_master(trace):
    delta = trace.update_delta
    assert delta.abs().max() < trace.half_ulp_fp16 < trace.half_ulp_bf16
    assert trace.half_ulp_bf16 == 8 * trace.half_ulp_fp16
    assert len(trace.w_fp16_path.unique()) == len(trace.w_bf16_path.unique()) == 1
    assert float(trace.w_fp16_path[0]) == trace.update_w == float(trace.w_master_path[0])
    torch.testing.assert_close(trace.w_master_path.diff(), delta, atol=1e-7, rtol=0)
    assert torch.equal(trace.w_copy_path, round_to_format(trace.w_master_path, FP16))
    assert len(trace.w_copy_path.unique()) >= 3  # the copy jumps, tick by tick
    ticks = set(trace.update_ticks.tolist())
    assert set(trace.w_copy_path.tolist()) <= ticks
    assert torch.equal(trace.update_ticks, round_to_format(trace.update_ticks, FP16))
    assert trace.update_step == 140


def test_the_weight_on_screen_wanders_farthest_in_steps_too_small_for_fp16():
    name = "model.layers.1.self_attn.k_proj.weight"
    updates = {  # from where, and by how many quarters of an FP16 step there; 2 quarters may reach the next number
        (0, 0): (1.5 + 2.0**-13, [-1.0] * 3 + [1.5] * 20 + [0.0]),  # 27 quarters in all
        (0, 1): (0.75, [-1.875] + [1.25] * 22 + [0.875]),  # 26.5
        (0, 2): (1.0 + 2.0**-12, [-1.5] * 24),  # 36, but on the way the steps become half as large
        (1, 0): (0.75, [2.0] * 24),  # 48, but FP16 would keep them
        (1, 1): (6.0, [1.0] * 24),  # 24 of the largest steps
    }
    states = torch.zeros(25, 2, 3)
    for place, (start, quarters) in updates.items():
        step = 2.0 ** (math.floor(math.log2(start)) - 10)
        states[:, *place] = start + torch.tensor([0.0, *quarters]).cumsum(dim=0) * step / 4
    found = experiment.update_fields(experiment.Window(7, [name], [{name: state} for state in states]))
    assert (found["update_name"], found["update_step"]) == ("layer 1 k_proj, row 0, column 0", 7)
    assert (found["half_ulp_fp16"], found["half_ulp_bf16"]) == (2.0**-11, 2.0**-8)
    assert found["update_w"] == 1.5  # as FP16 has it
    moves = torch.tensor(updates[0, 0][1]) * 2.0**-12
    assert torch.equal(found["update_delta"], moves)
    path = torch.cat([torch.tensor([1.5]), 1.5 + moves.cumsum(dim=0)])
    assert torch.equal(found["w_master_path"], path)
    assert torch.equal(found["w_copy_path"], path.half().float())
    assert found["w_fp16_path"].tolist() == found["w_bf16_path"].tolist() == [1.5] * 25
    # From 0.75 steps below 1.5 to 6.75 above, and two steps more to both sides, lie the steps -2 to 8.
    assert found["update_ticks"].tolist() == [1.5 + 2.0**-10 * step for step in range(-2, 9)]


def test_the_runs_start_together_and_end_where_their_bits_allow(trace):
    curves, final = trace.curves, trace.final_losses
    assert list(curves) == list(final) == list(mixed_precision.MODES)
    for others in (trace.curves_small, trace.curves_cliff):  # a factor on the loss does not move the first one
        assert {len(curve) for curve in others.values()} == {200}
        assert all(float(curve[0]) == pytest.approx(float(curves["fp32"][0]), abs=0.02) for curve in others.values())
    assert all(len(curve) == 200 for curve in curves.values())
    first = [float(curve[0]) for curve in curves.values()]
    assert max(first) - min(first) < 0.02
    assert abs(final["fp16_master"] - final["fp32"]) < 0.01  # at this size unscaled FP16 trains fine
    assert abs(final["bf16_mixed"] - final["fp32"]) < 0.01
    assert final["fp32"] < final["fp16_pure"] < final["fp32"] + 0.1 < final["bf16_pure"]
    assert trace.entropy_floor < final["fp32"]
    lost = trace.lost_update_share
    assert list(lost) == ["fp16_pure", "bf16_pure"]
    assert (lost["bf16_pure"][20:] > lost["fp16_pure"][20:]).all()
    assert lost["fp16_pure"][-1] > 0.9 > 0.1 > lost["fp16_pure"][0]


def test_the_scale_is_a_staircase_with_a_step_down_at_every_skip(trace):
    scale = trace.scale_path.double()
    assert scale[0] == 2.0**16
    assert len(trace.skipped_steps) >= 3
    down = (scale[1:] < scale[:-1]).nonzero()[:, 0]
    assert down.tolist() == [step for step in trace.skipped_steps.tolist() if step < 199]
    assert set((scale[1:] / scale[:-1]).tolist()) == {0.5, 1.0, 2.0}


def test_a_loss_that_is_small_enough_breaks_fp16_and_scaling_repairs_it(trace):
    assert (trace.small_log2, trace.cliff_log2) == (-8, -14)
    at_one, small, cliff = trace.zeroed_share.tolist()
    assert at_one < small < 0.05 < 0.3 < cliff
    assert abs(trace.final_losses_small["fp16_master"] - trace.final_losses["fp32"]) < 0.05
    assert trace.final_losses_cliff["fp16_master"] > trace.final_losses["fp32"] + 0.5
    assert abs(trace.final_losses_cliff["fp16_scaled"] - trace.final_losses["fp32"]) < 0.05
    assert sum(trace.bytes_fp32.values()) == sum(trace.bytes_mixed.values()) == 16
    assert sum(training_bytes_per_param("no_master").values()) == 12
