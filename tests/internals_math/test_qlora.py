import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import lora_experiment, qlora, tiny_lm, trace_store
from internals_math import qlora_experiment as experiment
from internals_math.qlora import (
    BLOCK_SIZES,
    CODES,
    Config,
    QuantizedWeight,
    bits_per_parameter,
    blockwise_absmax,
    code_book,
    code_entropy,
    code_usage,
    dequantize_blockwise,
    double_quantize,
    double_quantized,
    finetuning_memory,
    memory_65b,
    pack_int4,
    paged_optimizer_schedule,
    qlora_input_gradient,
    qlora_linear,
    quantization_error,
    quantize_blockwise,
    unpack_int4,
)
from tests.internals_math import made_adapters
from tests.oracles import randn

seeds = st.integers(0, 10_000)
names = st.sampled_from(CODES)
block_sizes = st.sampled_from([2, 6, 16, 50, 64])
OUT, IN = 6, 9


def weights(seed, *shape):
    return randn(*(shape or (OUT, IN)), seed=seed)


def spread(absmax, quantized):
    """The scale of every value."""
    shape = quantized.shape
    return absmax.repeat_interleave(quantized.block_size)[: math.prod(shape)].view(shape)


# -- codes -------------------------------------------------------------------------------------------------------------


@given(seeds, names, block_sizes)
def test_every_value_gets_its_nearest_level_and_its_blocks_scale(seed, name, block_size):
    weight, code = weights(seed), code_book(name)
    quantized = quantize_blockwise(weight, code, block_size)
    blocks = weight.flatten().split(block_size)
    absmax = torch.stack([block.abs().max() for block in blocks])
    assert torch.equal(quantized.absmax, absmax)
    assert torch.equal(blockwise_absmax(weight, block_size), absmax)
    nearest = torch.cat(
        [((block / c)[:, None] - code).abs().argmin(dim=1) for block, c in zip(blocks, absmax, strict=True)]
    )
    assert torch.equal(quantized.codes.long(), nearest)
    decoded = dequantize_blockwise(quantized)
    torch.testing.assert_close(decoded, spread(absmax, quantized) * code[nearest].view(OUT, IN))


@given(seeds, names, block_sizes, st.booleans())
def test_what_is_decoded_once_keeps_its_codes_and_levels_are_exact(seed, name, block_size, double):
    quantized = quantize_blockwise(weights(seed), code_book(name), block_size)
    quantized = double_quantized(quantized) if double and (quantized.absmax > 0.1).all() else quantized
    decoded = dequantize_blockwise(quantized)
    again = quantize_blockwise(decoded, code_book(name), block_size)
    assert torch.equal(again.codes, quantized.codes)
    torch.testing.assert_close(dequantize_blockwise(again), decoded, rtol=1e-12, atol=0)


@given(seeds, names, block_sizes)
def test_no_error_is_larger_than_half_the_widest_gap_and_the_largest_value_has_none(seed, name, block_size):
    weight, code = weights(seed), code_book(name)
    quantized = quantize_blockwise(weight, code, block_size)
    decoded, scale = dequantize_blockwise(quantized), spread(quantized.absmax, quantized)
    assert ((weight - decoded).abs() <= scale * float(code.diff().max()) / 2 * (1 + 1e-12)).all()
    largest = weight.abs() == scale
    assert int(largest.sum()) == len(quantized.absmax)
    torch.testing.assert_close(decoded[largest], weight[largest], rtol=1e-15, atol=0)


def test_the_widest_gap_of_nf4_is_at_its_negative_end():
    gaps = code_book("nf4").diff()
    assert int(gaps.argmax()) == 0
    assert float(gaps[0]) == pytest.approx(1 - 0.6961928, abs=1e-7)
    assert float(gaps[0]) / 2 < 0.152


@given(seeds, names, st.integers(-20, 20))
def test_zero_stays_zero_and_a_factor_moves_to_the_scale(seed, name, exponent):
    weight, code = weights(seed), code_book(name)
    weight[2, 3] = 0
    quantized = quantize_blockwise(weight, code, 16)
    scaled = quantize_blockwise(2.0**exponent * weight, code, 16)
    assert dequantize_blockwise(quantized)[2, 3] == 0
    assert torch.equal(scaled.codes, quantized.codes)
    assert torch.equal(dequantize_blockwise(scaled), 2.0**exponent * dequantize_blockwise(quantized))


@pytest.mark.parametrize("name", CODES)
def test_a_block_of_zeros_decodes_to_zeros(name):
    weight = torch.cat([torch.zeros(4), torch.ones(4)])
    quantized = quantize_blockwise(weight, code_book(name), 4)
    assert quantized.codes[:4].tolist() == [7] * 4  # seven levels below zero in every book
    assert quantized.absmax.tolist() == [0, 1]
    assert torch.equal(dequantize_blockwise(quantized), weight)


def test_the_last_block_may_be_short():
    quantized = quantize_blockwise(torch.tensor([[1.0, -4.0, 0.5], [0.0, 2.0, -2.0], [8.0, 3.0, -5.0]]), E3, 4)
    assert quantized.absmax.tolist() == [4, 8, 5]
    assert quantized.codes.tolist() == [1, 0, 1, 1, 1, 1, 2, 1, 0]
    assert blockwise_absmax(torch.tensor([1.0, -4.0, 0.5]), 2).tolist() == [4, 0.5]


E3 = torch.tensor([-1.0, 0.0, 1.0])


@given(seeds, st.integers(1, 60), names)
def test_codes_survive_their_bytes(seed, count, name):
    codes = quantize_blockwise(weights(seed, count), code_book(name)).codes
    packed = pack_int4(codes)
    assert len(packed) == math.ceil(count / 2)
    assert torch.equal(unpack_int4(packed, count), codes)
    assert int(packed[0]) >> 4 == int(codes[0])  # the first one is in the high half


def test_smaller_blocks_cost_more_bits_and_lose_less():
    x = randn(2**14, seed=0)
    for name in CODES:
        code = code_book(name)
        errors = [
            float((x - dequantize_blockwise(quantize_blockwise(x, code, b))).square().mean()) for b in BLOCK_SIZES
        ]
        assert errors == sorted(errors)
        assert errors[0] < 0.8 * errors[-1]
    for double in (False, True):
        bits = [bits_per_parameter(b, double) for b in BLOCK_SIZES]
        assert bits == sorted(bits, reverse=True)


@given(seeds, st.integers(1, 40))
def test_other_scales_decode_to_other_values_and_lose_at_most_a_step(seed, block_size):
    quantized = quantize_blockwise(weights(seed, 24, 32), code_book("nf4"), 16)
    doubled = double_quantized(quantized, block_size)
    assert torch.equal(doubled.codes, quantized.codes)
    assert torch.equal(dequantize_blockwise(doubled), dequantize_blockwise(quantized, doubled.absmax))
    found = double_quantize(quantized.absmax, block_size)
    deviation = (quantized.absmax - quantized.absmax.mean()).split(block_size)
    steps = torch.cat([(d.abs().max() / 128).expand(len(d)) for d in deviation])
    lost = (doubled.absmax - quantized.absmax).abs()
    clamped = found.codes == 127
    assert (lost[~clamped] <= steps[~clamped] / 2 * (1 + 1e-9) + 1e-15).all()
    assert (lost[clamped] <= steps[clamped] * (1 + 1e-9)).all()


@pytest.mark.parametrize(("name", "levels"), [("int4", range(-7, 8)), ("fp4", (-6, -4, -3, -2, -1.5, -1, -0.5, 0))])
def test_code_books_hold_what_their_types_can_say(name, levels):
    levels = torch.tensor(levels, dtype=torch.float64)
    code = code_book(name)
    assert len(code) == 15
    torch.testing.assert_close(code[: len(levels)], levels / levels.abs().max())
    assert torch.equal(code, -code.flip(0))


# -- the layer ---------------------------------------------------------------------------------------------------------


def layer(seed, r=2, code=None, block_size=16):
    quantized = quantize_blockwise(weights(seed), code_book("nf4") if code is None else code, block_size)
    return quantized, randn(r, IN, seed=seed + 1), randn(OUT, r, seed=seed + 2)


@given(seeds)
def test_without_a_change_the_layer_is_its_decoded_base(seed):
    quantized, lora_a, lora_b = layer(seed)
    x, bias = randn(2, 3, IN, seed=seed + 3), randn(OUT, seed=seed + 4)
    output = qlora_linear(x, quantized, lora_a, 0 * lora_b, 2.0, bias)
    torch.testing.assert_close(output, x @ dequantize_blockwise(quantized).T + bias)
    changed = qlora_linear(x, quantized, lora_a, lora_b, 2.0, bias)
    torch.testing.assert_close(changed - output, 2 * x @ lora_a.T @ lora_b.T)


@given(seeds, st.integers(1, 4))
def test_the_input_gradient_is_that_of_a_constant_base(seed, r):
    quantized, lora_a, lora_b = layer(seed, r)
    x, grad = randn(2, 3, IN, seed=seed + 3).requires_grad_(), randn(2, 3, OUT, seed=seed + 4)
    wanted = torch.autograd.grad(qlora_linear(x, quantized, lora_a, lora_b, 1.5), x, grad)[0]
    ours = qlora_input_gradient(grad, dequantize_blockwise(quantized), lora_a, lora_b, 1.5)
    torch.testing.assert_close(ours, wanted)


def test_gradients_pass_through_the_base_and_leave_it_alone():
    quantized, lora_a, lora_b = layer(0)
    for part in (lora_a, lora_b):
        part.requires_grad_()
    qlora_linear(randn(3, IN, seed=5), quantized, lora_a, lora_b, 1.5).square().sum().backward()
    assert lora_a.grad.norm() > 0
    assert lora_b.grad.norm() > 0
    assert quantized.absmax.grad is None
    assert not quantized.codes.is_floating_point()


@given(seeds)
def test_with_255_even_levels_the_layer_approaches_lora(seed):
    fine = torch.arange(-127, 128).double() / 127
    quantized, lora_a, lora_b = layer(seed, code=fine)
    scale = spread(quantized.absmax, quantized)
    assert ((dequantize_blockwise(quantized) - weights(seed)).abs() <= scale / 254 * (1 + 1e-9)).all()
    x = randn(4, IN, seed=seed + 3)
    plain = x @ weights(seed).T + 2 * x @ lora_a.T @ lora_b.T
    bound = x.abs() @ scale.T / 254
    assert ((qlora_linear(x, quantized, lora_a, lora_b, 2.0) - plain).abs() <= bound * (1 + 1e-9)).all()


# -- what it loses, what it costs --------------------------------------------------------------------------------------


def test_errors_are_measured_in_four_ways():
    error = quantization_error(torch.tensor([2.0, -2.0, 1.0, 1.0]), torch.tensor([2.5, -2.0, 0.0, 1.5]))
    assert error["mse"] == pytest.approx(1.5 / 4)
    assert error["mae"] == pytest.approx(2 / 4)
    assert error["max_abs"] == 1
    assert error["sqnr_db"] == pytest.approx(10 * math.log10(10 / 1.5))


@given(st.lists(st.integers(0, 15), min_size=1, max_size=50))
def test_usage_counts_codes_and_entropy_stays_below_their_bits(codes):
    usage = code_usage(torch.tensor(codes), 16)
    assert usage.tolist() == pytest.approx([codes.count(k) / len(codes) for k in range(16)])
    assert 0 <= code_entropy(torch.tensor(codes), 16) <= 4 + 1e-12


def test_equal_use_gives_all_bits_and_a_single_code_none():
    assert code_entropy(torch.arange(8).repeat(3), 8) == pytest.approx(3)
    assert code_entropy(torch.tensor([5, 5, 5]), 8) == 0


NORMAL = [("nf4", 0.0085, 3.88), ("fp4", 0.0112, None), ("int4", 0.0116, 3.5)]  # measured on 4.2 million samples


@pytest.mark.parametrize(("name", "mse", "entropy"), NORMAL)
def test_normal_numbers_lose_least_on_normal_levels(name, mse, entropy):
    x = randn(2**19, seed=1)
    quantized = quantize_blockwise(x, code_book(name), 64)
    assert quantization_error(x, dequantize_blockwise(quantized))["mse"] == pytest.approx(mse, rel=0.015)
    if entropy is not None:
        assert code_entropy(quantized.codes, len(quantized.code)) == pytest.approx(entropy, abs=0.01)


def test_codes_of_nf4_are_not_used_equally():
    usage = code_usage(quantize_blockwise(randn(2**19, seed=2), code_book("nf4"), 64).codes, 16)
    assert float(usage.min()) == pytest.approx(0.017, abs=0.001)
    assert float(usage.max()) == pytest.approx(0.092, abs=0.002)
    assert int(usage.argmin()) in (0, 15)


def test_scales_cost_bits():
    assert bits_per_parameter(64, False) == 4.5
    assert bits_per_parameter(64, True) == 4.126953125
    assert bits_per_parameter(128, True, absmax_block=64, bits=3) == 3 + 8 / 128 + 32 / (128 * 64)
    assert list(qlora.bits(32).values()) == [4, 1, 0.25390625, 5, 4.25390625, 0.74609375]


def test_only_trained_weights_have_gradients_and_moments():
    sizes = {method: finetuning_memory(1000, method=method, lora_params=10, block_size=64) for method in qlora.METHODS}
    assert sizes["full16"] == {"weights": 2000, "gradients": 2000, "optimizer": 8000, "adapters": 0}
    assert sizes["lora16"] == {"weights": 2000, "gradients": 20, "optimizer": 80, "adapters": 20}
    assert sizes["qlora"] == sizes["lora16"] | {"weights": 1000 * 4.126953125 / 8}
    assert finetuning_memory(1000, method="qlora", lora_params=0, block_size=32)["weights"] == 1000 * 4.25390625 / 8


def test_only_with_four_bits_the_large_model_fits_one_gpu():
    memory = memory_65b()
    assert memory.method == ("full16", "lora16", "qlora")
    parts = memory.weights + memory.gradients + memory.optimizer + memory.adapters
    torch.testing.assert_close(memory.total, parts)
    assert memory.total[2] < 48 < memory.total[1]
    # rank 64 on seven matrices of 80 layers of width 8192 and 22016 channels
    assert float(memory.adapters[2]) == pytest.approx(2 * 64 * 80 * (4 * 2 * 8192 + 3 * (8192 + 22016)) / 1e9)


def test_pages_leave_when_activations_need_the_room_and_come_back():
    resident, moved = paged_optimizer_schedule(torch.tensor([10.0, 41.0, 59.0, 60.0, 0.0]), 30, 25, 10, 90)
    assert resident.tolist() == [3, 1, 0, 0, 3]
    assert moved.tolist() == [0, -20, -10, 0, 30]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 20))
def test_a_schedule_never_overfills_the_gpu_and_leaves_no_room_for_a_page(activations, page):
    resident, moved = paged_optimizer_schedule(torch.tensor(activations), 5, 30, page, 50)
    used = 5 + torch.tensor(activations) + page * resident
    assert (used <= 50).all()
    assert ((used + page > 50) | (resident == math.ceil(30 / page))).all()
    assert float(moved.sum()) == page * int(resident[-1] - resident[0])


def test_the_simulated_gpu_is_never_overfull():
    found, memory = qlora.paging(), memory_65b()
    # fp16 inputs of 80 layers of width 8192
    assert found["paging_activations"].tolist() == pytest.approx([t * 80 * 8192 * 2 / 1e9 for t in qlora.BATCH_TOKENS])
    assert found["paging_fixed"] == pytest.approx(float(memory.total[2] - memory.optimizer[2]))
    used = found["paging_fixed"] + found["paging_activations"] + found["paging_page"] * found["paging_resident"]
    assert (used <= qlora.GPU_BYTES / 1e9).all()
    pages = found["paging_resident"] + found["paging_evicted"]
    assert set(pages.tolist()) == {16}  # 6.4 GB in tiles of 0.4
    assert found["paging_evicted"].tolist()[5:8] == [14, 15, 0]
    assert found["paging_moved"].tolist()[1:] == pytest.approx((0.4 * found["paging_resident"].diff()).tolist())


# -- refused input -----------------------------------------------------------------------------------------------------

W, A, B = torch.ones(6, 9), torch.ones(2, 9), torch.ones(6, 2)
NF4 = code_book("nf4")
TOO_HIGH = QuantizedWeight(torch.full((4,), 15, dtype=torch.uint8), torch.ones(1), E3, 4, (2, 2))
WRONG = [
    (lambda: code_book("nf3"), "code must be one of nf4, int4, fp4, got 'nf3'"),
    (lambda: quantize_blockwise(W, NF4, 1), "block_size must be even and at least 2 .*, got 1"),
    (lambda: quantize_blockwise(W, NF4, 63), "block_size must be even and at least 2 .*, got 63"),
    (lambda: blockwise_absmax(W, 0), "block_size must be even and at least 2 .*, got 0"),
    (lambda: quantize_blockwise(W / 0, NF4), "finite ones only"),
    (lambda: quantize_blockwise(W[:0], NF4), "at least one value"),
    (lambda: quantize_blockwise(W, NF4[:-1]), "must have the levels -1, 0 and 1"),
    (lambda: quantize_blockwise(W, NF4[NF4 != 0]), "must have the levels -1, 0 and 1"),
    (lambda: quantize_blockwise(W, NF4.flip(0)), "codebook must hold 2..256 rising levels"),
    (lambda: quantize_blockwise(W, torch.linspace(-1, 1, 257)), r"rising levels, .* \(257\)"),
    (lambda: dequantize_blockwise(TOO_HIGH), "codes must be in 0..2, got 15"),
    (lambda: qlora_linear(W, quantize_blockwise(W, NF4), A, torch.ones(6, 3), 1.0), "A has rank 2, but B 3"),
    (lambda: qlora_linear(W, quantize_blockwise(W, NF4), B.T, A.T, 1.0), r"weight of shape \(9, 6\), got \(6, 9\)"),
    (lambda: qlora_input_gradient(W, W, A, B, 1.0), r"must be .*got \(6, 9\), \(6, 9\), \(2, 9\), \(6, 2\)"),
    (lambda: qlora_input_gradient(W.T, W, A, torch.ones(6, 3), 1.0), r"must be .*\(6, 3\)"),
    (lambda: qlora_input_gradient(W.T, W, torch.ones(2, 8), B, 1.0), r"must be .*\(2, 8\)"),
    (lambda: code_usage(torch.tensor([0, 4]), 4), "codes must be in 0..3, got 0..4"),
    (lambda: code_usage(torch.tensor([-1, 3]), 4), "codes must be in 0..3, got -1..3"),
    (lambda: code_usage(torch.tensor([], dtype=torch.long), 4), "codes must not be empty"),
    (lambda: bits_per_parameter(65, True), "block_size must be even .*, got 65"),
    (lambda: finetuning_memory(9, method="full", lora_params=1), "method must be one of full16, lora16, qlora, got"),
    (lambda: paged_optimizer_schedule(torch.tensor([1, 9]), 4, 3, 1, 12), "gpu_bytes must hold .* 13 in .*, got 12"),
    (lambda: paged_optimizer_schedule(torch.tensor([1]), 4, 3, 0, 12), "page_bytes must be above 0"),
    (lambda: paged_optimizer_schedule(torch.tensor([1]), 4, -3, 1, 12), "all other bytes at least 0"),
    (lambda: Config(block_size=48), "block_size must be one of 16, 32, 64, 128, 256, got 48"),
    (lambda: Config(code="int8"), "code must be one of nf4, int4, fp4, got 'int8'"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM in four bits ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """Another code, another block size, and a training too short to teach much."""
    config = Config(code="int4", block_size=32, r=2, layer=0, module="v_proj", train_steps=20)
    return trace_store.get(qlora, config)


@pytest.fixture(scope="module")
def made():
    """The same with adapters that were made up, and on fewer texts and numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train_adapters", made_adapters.train_adapters)
        patch.setattr(experiment, "BASE_TEXTS", 20)
        patch.setattr(experiment, "GAUSSIAN_SAMPLES", 2**14)
        patch.setattr(lora_experiment, "HELD_OUT", 20)
        return qlora.trace(Config(code="int4", block_size=32, r=2, layer=0, module="v_proj", train_steps=20))


def check_agreement(trace):
    torch.testing.assert_close(trace.error, trace.dequantized - trace.weight)
    assert torch.equal(trace.block_values, trace.weight.flatten()[:32])
    assert torch.equal(trace.block_normalized * trace.block_absmax, trace.block_values)
    assert torch.equal(trace.codes.flatten()[:32], trace.block_codes)
    assert torch.equal(trace.levels[trace.block_codes], trace.block_levels)
    torch.testing.assert_close(trace.block_dequantized, trace.block_levels * trace.block_absmax)
    assert unpack_int4(trace.block_packed.to(torch.uint8)).tolist() == trace.block_codes.tolist()
    scales = trace.absmax_dequantized.repeat_interleave(32).view(32, 32)
    torch.testing.assert_close(trace.dequantized, scales * trace.levels[trace.codes])
    assert torch.equal(trace.levels, trace.levels_int4)
    torch.testing.assert_close(
        trace.absmax_dequantized, trace.absmax_mean + trace.absmax_step * trace.absmax_codes, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(trace.boundaries * 2, trace.levels[1:] + trace.levels[:-1])
    torch.testing.assert_close(trace.absmax_centered + trace.absmax_mean, trace.absmax)
    assert trace.level_codes.tolist() == list(range(len(trace.levels)))
    assert trace.finetune_steps.tolist() == list(range(1, 21))
    for name, added in trace.loss_added.items():
        assert trace.loss["fp32"] + added == pytest.approx(trace.loss[name])
    assert set(trace.loss) - set(trace.loss_added) == {"fp32"}


def test_the_trace_agrees_with_itself(quick):
    check_agreement(quick)


def test_a_trace_that_was_made_up_agrees_with_itself(made):
    check_agreement(made)


def check_one_word(trace):
    torch.testing.assert_close(trace.base_output, trace.dequantized @ trace.x)
    torch.testing.assert_close(trace.coords, trace.lora_A @ trace.x)
    torch.testing.assert_close(trace.adapter_output, qlora.SCALING * trace.lora_B @ trace.coords)
    torch.testing.assert_close(trace.output, trace.base_output + trace.adapter_output)
    torch.testing.assert_close(trace.grad_through_base, trace.grad_output @ trace.dequantized)
    torch.testing.assert_close(trace.grad_coords, qlora.SCALING * trace.grad_output @ trace.lora_B)
    through_adapter = qlora.SCALING * trace.grad_output @ trace.lora_B @ trace.lora_A
    torch.testing.assert_close(trace.grad_through_adapter, through_adapter)
    torch.testing.assert_close(trace.grad_input, trace.grad_through_base + through_adapter)
    assert trace.grad_output.norm() > 0
    assert trace.token == tiny_lm.story().split()[experiment.TOKEN - 1]


def test_one_word_goes_through_the_layer_and_its_gradient_back(quick):
    check_one_word(quick)


def test_one_word_goes_through_a_made_up_layer_and_its_gradient_back(made):
    check_one_word(made)


def test_the_shown_word_and_gradients_are_those_of_the_adapted_quantized_model():
    config = Config(code="fp4", block_size=16, double_quant=False, r=1, module="k_proj", layer=2, train_steps=20)
    decoded = experiment.decode(experiment.quantize_model("fp4", 16, False))
    adapters = experiment.Adapters(
        {name: randn(1, w.shape[1], seed=k, dtype=torch.float32) for k, (name, w) in enumerate(decoded.items())},
        {name: 0.1 * randn(len(w), 1, seed=k + 50, dtype=torch.float32) for k, (name, w) in enumerate(decoded.items())},
        qlora.SCALING,
        {},
    )
    found = experiment.backward(config, adapters, decoded)
    name = experiment.shown_name(config)
    merged = {key: w + adapters.delta(key) for key, w in decoded.items()}
    base = tiny_lm.load("base")
    model = tiny_lm.copy_of(base, {**base.state_dict(), **merged})
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())])
    logits, record = model(ids, record=("linear_inputs", "k"))
    torch.testing.assert_close(found["x"], record["linear_inputs"][name][0, experiment.TOKEN].detach())
    torch.testing.assert_close(found["output"], merged[name] @ found["x"])
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()
    grad = dict(model.named_parameters())[name].grad
    wanted_a = qlora.SCALING * adapters.lora_b[name].T @ grad
    wanted_b = qlora.SCALING * grad @ adapters.lora_a[name].T
    torch.testing.assert_close(found["grad_A"], wanted_a, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(found["grad_B"], wanted_b, atol=2e-5, rtol=1e-3)
    sizes = [
        (adapters.lora_b[key].T @ weight.grad, weight.grad @ adapters.lora_a[key].T)
        for key, weight in model.named_parameters()
        if key in merged
    ]
    for side, norm in enumerate((found["grad_norms"]["lora_A"], found["grad_norms"]["lora_B"])):
        wanted = qlora.SCALING * math.sqrt(sum(float(pair[side].square().sum()) for pair in sizes))
        assert norm == pytest.approx(wanted, rel=1e-3)


def check_adapters_only(trace):
    assert trace.base_codes_changed == 0
    assert trace.num_codes == 39_936  # the 21 block matrices
    assert trace.grad_norms["base"] is None
    assert trace.grad_norms["lora_A"] > 0
    assert trace.grad_norms["lora_B"] > 0


def test_training_touches_adapters_only(quick):
    check_adapters_only(quick)


def test_only_made_up_adapters_have_gradients(made):
    check_adapters_only(made)


def check_statistics(trace):
    assert int(trace.normalized_histogram.sum()) == trace.num_codes
    assert int(trace.normalized_histogram[[0, -1]].sum()) >= trace.num_codes / 32  # a largest value in every block
    assert len(trace.histogram_edges) == 65
    for name in CODES:
        assert float(trace.code_usage[name].sum()) == pytest.approx(1)
        assert trace.code_entropy[name] < 4
        used = trace.code_usage[name].double()
        assert trace.code_entropy[name] == pytest.approx(float(-torch.xlogy(used, used).sum() / math.log(2)), abs=1e-5)
    assert (trace.mse_by_block.diff() > 0).all()
    assert (trace.bits_by_block.diff() < 0).all()
    assert float(trace.mse_by_block[1]) == pytest.approx(trace.mse["int4"])
    state = tiny_lm.load("base").state_dict()
    decoded = experiment.decode(experiment.quantize_model("nf4", 32, False))
    lost = sum(float((state[name] - w).square().sum()) for name, w in decoded.items()) / trace.num_codes
    assert trace.mse["nf4"] == pytest.approx(lost, rel=1e-4)


def test_statistics_cover_all_weights(quick):
    check_statistics(quick)


def test_statistics_of_a_made_up_run_cover_all_weights(made):
    check_statistics(made)


def coded(code, block_size=32, double_quant=True):
    """The weights of the model, its matrices in 4 bits."""
    state = dict(tiny_lm.load("base").state_dict())
    for name in [key for key in state if key.endswith("_proj.weight")]:
        quantized = quantize_blockwise(state[name], code_book(code), block_size)
        state[name] = dequantize_blockwise(double_quantized(quantized) if double_quant else quantized)
    return state


def judged(weights, dialect="base"):
    """The loss of the tiny LM with these weights on 20 held-out texts."""
    model = tiny_lm.copy_of(tiny_lm.load("base"), weights).requires_grad_(False)
    return tiny_lm.evaluate(model, tiny_lm.held_out(20, dialect))


def test_losses_are_those_of_models_with_decoded_weights(made):
    assert made.loss["fp32"] == pytest.approx(judged(tiny_lm.load("base").state_dict()))
    for key, code, double_quant in (*((name, name, False) for name in CODES), ("nf4_double_quantized", "nf4", True)):
        assert made.loss[key] == pytest.approx(judged(coded(code, double_quant=double_quant)))
    assert made.entropy_floor == tiny_lm.held_out(20).entropy_floor


def test_both_fine_tunings_are_judged_on_their_own_weights(made):
    state, decoded = tiny_lm.load("base").state_dict(), coded("int4")
    names = [name for name in state if name.endswith("_proj.weight")]
    final = made.finetune_final
    assert final["fp32"] == pytest.approx(judged(state, "farm2"))
    assert final["quantized"] == pytest.approx(judged(decoded, "farm2"))
    assert final["floor"] == tiny_lm.held_out(20, "farm2").entropy_floor
    settings = {"steps": 20, "seed": 0, "watched": names[0], "names": names}
    for way, weights, base in (("lora", state, None), ("qlora", decoded, decoded)):
        adapters = made_adapters.train_adapters("farm2", 2, qlora.SCALING, base=base, **settings)
        changed = {name: weights[name] + adapters.delta(name) for name in names}
        assert final[way] == pytest.approx(judged({**weights, **changed}, "farm2"), rel=1e-4)
        assert made.finetune_curves[way].tolist() == pytest.approx(adapters.losses)
    assert made.num_codes == sum(state[name].numel() for name in names)


def test_errors_and_bits_are_those_of_every_block_size(made):
    state = tiny_lm.load("base").state_dict()
    names = [name for name in state if name.endswith("_proj.weight")]
    for row, size in enumerate(BLOCK_SIZES):
        decoded = coded("int4", size, double_quant=False)
        lost = sum(float((decoded[name] - state[name]).square().sum()) for name in names)
        assert float(made.mse_by_block[row]) == pytest.approx(lost / made.num_codes, rel=1e-4)
        assert float(made.bits_by_block[row]) == pytest.approx(bits_per_parameter(size, True))
    blocks = torch.cat([state[name].flatten() for name in names]).view(-1, 32)
    counts, edges = np.histogram((blocks / blocks.abs().amax(dim=1, keepdim=True)).numpy(), bins=64, range=(-1, 1))
    assert (made.normalized_histogram - torch.from_numpy(counts)).abs().sum() <= 4  # a value on an edge may fall aside
    assert made.histogram_edges.tolist() == pytest.approx(edges.tolist())
    for name, error, _ in NORMAL:
        assert made.gaussian_mse[name] == pytest.approx(error, rel=0.05)


def test_the_shown_block_and_its_scale_are_the_first_ones(made):
    weight = tiny_lm.load("base").state_dict()["model.layers.0.self_attn.v_proj.weight"]
    first = weight.flatten()[:32]
    assert torch.equal(made.weight, weight)
    assert made.block_absmax == float(first.abs().max())
    assert torch.equal(made.absmax, weight.flatten().view(-1, 32).abs().amax(dim=1))
    assert made.absmax_mean == pytest.approx(float(made.absmax.mean()))
    assert made.absmax_step == pytest.approx(float((made.absmax - made.absmax.mean()).abs().max()) / 128)
    assert torch.equal(made.dequantized, coded("int4")["model.layers.0.self_attn.v_proj.weight"])
    assert len(made.boundaries) == len(made.levels) - 1


def test_a_trace_survives_the_store(quick, tmp_path):
    quick.save(tmp_path / "trace.safetensors")
    assert qlora.Trace.load(tmp_path / "trace.safetensors").hash == quick.hash


def test_the_default_run_tells_what_the_video_says():
    trace = trace_store.get(qlora)
    assert min(trace.mse, key=trace.mse.__getitem__) == "nf4"
    assert min(trace.gaussian_mse, key=trace.gaussian_mse.__getitem__) == "nf4"
    excess = {name: loss - trace.loss["fp32"] for name, loss in trace.loss.items()}
    assert all(0 < excess[name] < 0.01 for name in excess if name != "fp32")
    assert abs(trace.loss["nf4_double_quantized"] - trace.loss["nf4"]) < 5e-4
    final = trace.finetune_final
    gain = final["fp32"] - final["lora"]
    assert final["quantized"] > final["fp32"]
    assert final["fp32"] - final["qlora"] > 0.9 * gain
    assert final["floor"] < min(final["lora"], final["qlora"])
