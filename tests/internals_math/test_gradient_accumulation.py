import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import gradient_accumulation, tiny_lm, trace_store
from internals_math import gradient_accumulation_experiment as experiment
from internals_math.gradient_accumulation import (
    CLOUD_BATCHES,
    Config,
    accumulate_gradients,
    activation_bytes,
    effective_batch_size,
    expected_squared_norm,
    finite_population_variance,
    flatten_gradients,
    full_batch_gradient,
    gradient_covariance_trace,
    hessian_noise_scale,
    mean_of_means_weights,
    measured_saved_tensor_bytes,
    noise_scale_from_norms,
    optimal_step_progress,
    per_sequence_gradients,
    simple_noise_scale,
    steps_examples_tradeoff,
    token_losses,
    training_memory,
)
from tests.oracles import largest_difference, randn
from tests.oracles.gradient_accumulation import loss_fn, rows, weights

seeds = st.integers(0, 100)
noises = st.floats(0.1, 1000)
F64 = torch.float64


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(gradient_accumulation)


def flat(grads):
    return flatten_gradients(grads)


def accumulated(params, batches, **arguments):
    return accumulate_gradients(loss_fn, params, batches, accum_dtype=F64, **arguments)


# -- adding up ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seeds, st.lists(st.integers(1, 11), max_size=4, unique=True), st.permutations(range(12)))
def test_every_partition_in_every_order_gives_the_gradient_of_the_whole_batch(seed, cuts, order):
    params, batch = weights(seed), rows(12, seed)  # unequal lengths, the rest ignored
    whole = flat(full_batch_gradient(loss_fn, params, batch))
    parts = batch[list(order)].tensor_split(sorted(cuts))
    result = accumulated(params, parts)
    assert largest_difference(flat(result.grads), whole) < 1e-12
    assert result.token_counts.tolist() == [int((part[:, 1:] != -100).sum()) for part in parts]
    in_float32 = accumulate_gradients(loss_fn, [p.float() for p in params], parts)
    assert all(grad.dtype == torch.float32 for grad in in_float32.grads)
    assert largest_difference(flat(in_float32.grads), whole) < 1e-6


@settings(max_examples=30)
@given(seeds, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_with_equal_counts_the_mean_of_means_is_right_and_without_a_division_it_is_k_times_as_long(seed, steps):
    params, batch = weights(seed), rows(12, seed, equal=True)
    parts = batch.chunk(steps)
    whole = flat(full_batch_gradient(loss_fn, params, batch))
    means = flat(accumulated(params, parts, normalization="mean_of_means").grads)
    assert largest_difference(means, whole) < 1e-12
    sums = flat(accumulated(params, parts, normalization="none").grads)
    assert largest_difference(sums, steps * means) < 1e-11


@settings(max_examples=20)
@given(seeds)
def test_with_unequal_counts_the_mean_of_means_weights_the_tokens_of_short_batches_up(seed):
    params, parts = weights(seed), rows(12, seed).split(3)
    result = accumulated(params, parts, normalization="mean_of_means")
    factors = mean_of_means_weights(result.token_counts)
    whole = flat(full_batch_gradient(loss_fn, params, torch.cat(parts)))
    assert len(result.token_counts.unique()) > 1
    assert largest_difference(flat(result.grads), whole) > 1e-6

    def weighted(leaves, batch):
        sums = [factor * loss_fn(leaves, part)[0] for factor, part in zip(factors, parts, strict=True)]
        return sum(sums), result.token_counts.sum()

    assert largest_difference(flat(result.grads), flat(full_batch_gradient(weighted, params, None))) < 1e-12
    # without a division the sum of means is K times the same, buggy gradient
    sums = flat(accumulated(params, parts, normalization="none").grads)
    assert largest_difference(sums, 4 * flat(result.grads)) < 1e-11


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_weights_of_tokens_are_right_on_average(counts):
    n = torch.tensor(counts)
    factors = mean_of_means_weights(n)
    assert float((n * factors).sum()) == pytest.approx(float(n.sum()))
    assert (factors[n == n.min()] >= 1 - 1e-12).all()
    if len(counts) == 1:
        assert factors.tolist() == [1.0]


def test_the_buffers_grow_micro_batch_by_micro_batch():
    params, parts = weights(1), rows(12, 1).split(3)
    seen = []
    result = accumulated(params, parts, record=True, on_micro_batch=lambda k, buffers: seen.append((k, flat(buffers))))
    total = int(result.token_counts.sum())
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    for k, (_, buffers) in enumerate(seen, start=1):
        so_far = flat(full_batch_gradient(loss_fn, params, torch.cat(parts[:k])))
        expected = so_far * int(result.token_counts[:k].sum())
        assert largest_difference(buffers, expected) < 1e-12
        assert largest_difference(result.running[k - 1], expected / total) < 1e-13
    assert torch.equal(result.running[-1], flat(result.grads))
    for part, norm in zip(parts, result.micro_norms, strict=True):
        assert float(norm) == pytest.approx(float(flat(full_batch_gradient(loss_fn, params, part)).norm()))
    assert accumulated(params, parts).running is None


def test_a_micro_batch_without_tokens_adds_nothing_to_the_tokens_of_the_others():
    params, batch = weights(2), rows(4, 2)
    silent = torch.full_like(batch, -100)
    silent[:, 0] = 1
    result = accumulated(params, [batch, silent])
    assert result.token_counts[1] == 0
    assert largest_difference(flat(result.grads), flat(full_batch_gradient(loss_fn, params, batch))) < 1e-12


def test_parameters_are_only_read():
    params = [p.requires_grad_() for p in weights(0)]
    before = [p.detach().clone() for p in params]
    accumulated(params, [rows(2, 0)])
    full_batch_gradient(loss_fn, params, rows(2, 0))
    assert all(p.grad is None and p.requires_grad for p in params)
    assert all(torch.equal(p.detach(), old) for p, old in zip(params, before, strict=True))


def test_in_bfloat16_a_long_window_stops_adding():
    params = [torch.zeros(1)]

    def one(leaves, batch):
        return leaves[0].sum() * 1e-3, torch.tensor(1)

    results = {
        dtype: accumulate_gradients(one, params, [None] * 1024, normalization="none", accum_dtype=dtype).grads[0]
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert float(results[torch.float32]) == pytest.approx(1.024, rel=1e-5)
    assert float(results[torch.bfloat16]) == 0.5


@settings(max_examples=20)
@given(seeds)
def test_clipping_each_micro_batch_is_another_algorithm(seed):
    params, parts = weights(seed), rows(12, seed).split(3)

    def clipped(grads, limit):
        grads = [grad.clone() for grad in grads]
        leaves = [torch.zeros_like(grad, requires_grad=True) for grad in grads]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        torch.nn.utils.clip_grad_norm_(leaves, limit)
        return flat([leaf.grad for leaf in leaves])

    def both(limit):
        means = [full_batch_gradient(loss_fn, params, part) for part in parts]
        after = clipped(accumulated(params, parts, normalization="mean_of_means").grads, limit)
        return after, torch.stack([clipped(mean, limit) for mean in means]).mean(dim=0)

    assert largest_difference(*both(1e6)) < 1e-12
    limit = float(accumulated(params, parts, normalization="mean_of_means").micro_norms.min()) / 4
    assert largest_difference(*both(limit)) > 1e-6


def test_token_losses_are_a_sum_and_a_number():
    logits, targets = randn(3, 4, 5, seed=0), torch.tensor([[0, 1, 2, 3], [4, -100, 0, 1], [-100] * 4])
    loss, count = token_losses(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert float(loss) == pytest.approx(float(expected))
    assert int(count) == 7
    assert int(token_losses(logits[:1], targets[:1], ignore_index=0)[1]) == 3


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: accumulated(weights(0), []), "micro_batches must hold at least one micro-batch, got none"),
        (
            lambda: accumulated(weights(0), [rows(2, 0)], normalization="mean"),
            "normalization must be one of tokens, mean_of_means, none, got 'mean'",
        ),
        (lambda: accumulated(weights(0), [silent()]), "the window has no token to predict"),
        (
            lambda: accumulated(weights(0), [rows(2, 0), silent()], normalization="mean_of_means"),
            "micro-batch 1 has no token to predict, so that it has no mean",
        ),
        (lambda: full_batch_gradient(loss_fn, weights(0), silent()), "the batch has no token to predict"),
        (lambda: effective_batch_size(4, 0), r"must be at least 1, got \(4, 0, 1, 1\)"),
        (lambda: mean_of_means_weights(torch.tensor([3, 0])), r"must be one or more numbers > 0, got \[3, 0\]"),
        (lambda: mean_of_means_weights(torch.tensor([], dtype=torch.long)), r"numbers > 0, got \[\]"),
        (lambda: gradient_covariance_trace(torch.ones(1, 3)), "at least 2 examples, got 1"),
        (
            lambda: simple_noise_scale(torch.tensor([[1.0], [-1.0]])),
            "the mean of 2 gradients does not rise above its noise",
        ),
        (lambda: noise_scale_from_norms(1.0, 1.0, 4, 4), "must be 1 <= b_small < b_big, got 4 and 4"),
        (lambda: noise_scale_from_norms(1.0, 1.0, 0, 4), "must be 1 <= b_small < b_big, got 0 and 4"),
        (lambda: noise_scale_from_norms(2.0, 1.0, 1, 2), "a true gradient of length 0"),
        (lambda: finite_population_variance(1.0, 5, 4), "batch must be at most the population of 4, got 5"),
        (lambda: expected_squared_norm(1.0, 1.0, 0), "batch must be at least 1, got 0"),
        (lambda: optimal_step_progress(1, 0.0), "batch and b_noise must be > 0, got 1 and 0.0"),
        (lambda: steps_examples_tradeoff(0, 1.0), "batch and b_noise must be > 0, got 0 and 1.0"),
        (lambda: activation_bytes(0, 1, 1, 1, 1), "layers must be at least 1, got 0"),
        (lambda: training_memory(1, 1, -1), "micro_batch must be at least 0"),
        (lambda: training_memory(0, 1, 1), "the others at least 1"),
        (
            lambda: hessian_noise_scale(loss_fn, weights(0), rows(2, 0), torch.ones(1, 96), 1),
            "at least 2 examples and 1 probe are needed, got 1 and 1",
        ),
        (
            lambda: hessian_noise_scale(bowl(-1.0), [torch.zeros(2)], None, torch.tensor([[1.0, 0], [1.0, 1]]), 1),
            "the loss must curve upwards along the gradient",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def silent():
    batch = torch.full((2, 9), -100)
    batch[:, 0] = 1
    return batch


def bowl(factor, curvature=(1.0, 1.0)):
    """Return a loss ½ Σ h w² and one token."""

    def loss(leaves, batch):
        h = torch.tensor(curvature, dtype=leaves[0].dtype)
        return factor * 0.5 * (h * leaves[0].square()).sum(), torch.tensor(1)

    return loss


# -- noise -------------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seeds)
def test_gradients_of_single_sequences_are_those_of_each_alone_and_average_to_the_whole(seed):
    params, batch = weights(seed), rows(7, seed, equal=True)
    each = per_sequence_gradients(loss_fn, params, batch, chunk=3)
    assert each.shape == (7, 96)
    for row, grad in zip(batch, each, strict=True):
        assert largest_difference(grad, flat(full_batch_gradient(loss_fn, params, row[None]))) < 1e-12
    assert largest_difference(each.mean(dim=0), flat(full_batch_gradient(loss_fn, params, batch))) < 1e-12


@given(seeds)
def test_the_covariance_is_zero_only_where_all_gradients_are_equal(seed):
    grads = randn(9, 5, seed=seed)
    assert gradient_covariance_trace(grads) > 0
    assert gradient_covariance_trace(grads[:1].expand(4, 5)) == pytest.approx(0, abs=1e-20)
    assert gradient_covariance_trace(3 * grads + 7) == pytest.approx(9 * gradient_covariance_trace(grads))


@given(seeds)
def test_batches_drawn_without_replacement_scatter_as_the_formula_says(seed):
    grads = randn(6, 4, seed=seed)
    mean = grads.mean(dim=0)
    own = gradient_covariance_trace(grads) * 5 / 6
    for batch in (1, 2, 3, 6):
        chosen = torch.combinations(torch.arange(6), batch)  # every batch there is
        errors = (grads[chosen].mean(dim=1) - mean).square().sum(dim=1)
        expected = finite_population_variance(own, batch, 6)
        assert float(errors.mean()) == pytest.approx(expected, abs=1e-12)
        lengths = grads[chosen].mean(dim=1).square().sum(dim=1).mean()
        assert float(lengths) == pytest.approx(expected_squared_norm(float(mean.square().sum()), expected, 1))
    assert finite_population_variance(own, 6, 6) == 0


def test_the_error_falls_with_the_root_of_the_batch():
    population = randn(4000, 3, seed=0)
    generator = torch.Generator().manual_seed(1)
    trace = gradient_covariance_trace(population)
    for batch in (1, 4, 16, 64):
        chosen = torch.randint(4000, (3000, batch), generator=generator)  # with replacement
        errors = (population[chosen].mean(dim=1) - population.mean(dim=0)).square().sum(dim=1)
        assert float(errors.mean()) == pytest.approx(trace / batch, rel=0.08)
        assert expected_squared_norm(0.0, trace, batch) == trace / batch


@given(noises, noises, st.integers(1, 50), st.integers(1, 50))
def test_two_lengths_give_signal_and_noise_back(grad_sq, trace, small, more):
    big = small + more
    lengths = [expected_squared_norm(grad_sq, trace, batch) for batch in (small, big)]
    found = noise_scale_from_norms(lengths[0], lengths[1], small, big)
    assert found[0] == pytest.approx(grad_sq, rel=1e-6, abs=1e-6 * trace)
    assert found[1] == pytest.approx(trace, rel=1e-6, abs=1e-6 * grad_sq)
    assert found[2] == pytest.approx(found[1] / found[0])


def test_the_simple_noise_scale_is_unbiased_and_free_of_units():
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([6.0, 0.0, 8.0], dtype=F64)
    signal = []
    for _ in range(400):
        grads = true + 7 * torch.randn(12, 3, generator=generator, dtype=F64)
        scale = simple_noise_scale(grads)
        signal.append(gradient_covariance_trace(grads) / scale)
    assert sum(signal) / 400 == pytest.approx(100, rel=0.05)  # without the correction it would be 112
    assert simple_noise_scale(7 * grads) == pytest.approx(scale)


@given(noises, noises)
def test_progress_and_the_bill_follow_the_law(batch, b_noise):
    assert 0 < optimal_step_progress(batch, b_noise) < 1
    assert optimal_step_progress(b_noise, b_noise) == 0.5
    assert optimal_step_progress(2 * batch, b_noise) > optimal_step_progress(batch, b_noise)
    steps, examples = steps_examples_tradeoff(batch, b_noise)
    assert (steps - 1) * (examples - 1) == pytest.approx(1)
    assert steps * optimal_step_progress(batch, b_noise) == pytest.approx(1)
    assert examples / steps == pytest.approx(batch / b_noise)


def test_the_hessian_weighs_the_noise_of_every_direction():
    """A bowl of known curvature: tr(HΣ) and G^T H G by hand."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(500, 2, generator=generator, dtype=F64) * torch.tensor([1.0, 3.0]) + torch.tensor([2.0, 0.5])
    mean, centered = grads.mean(dim=0), grads - grads.mean(dim=0)
    h = torch.tensor([5.0, 0.2], dtype=F64)
    noise = float((h * centered.square()).sum() / 499)
    signal = float((h * mean.square()).sum()) - noise / 500
    found = hessian_noise_scale(
        bowl(1.0, (5.0, 0.2)), [torch.zeros(2, dtype=F64)], None, grads, 1500, torch.Generator().manual_seed(1)
    )
    assert found == pytest.approx(noise / signal, rel=0.1)
    flat_bowl = hessian_noise_scale(
        bowl(1.0), [torch.zeros(2, dtype=F64)], None, grads, 1500, torch.Generator().manual_seed(2)
    )
    assert flat_bowl == pytest.approx(simple_noise_scale(grads), rel=0.1)  # equal curvature: the simple scale


# -- memory ------------------------------------------------------------------------------------------------------------


def test_saved_bytes_are_counted_once_for_each_storage_and_not_for_parameters():
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(5, 10)
    assert measured_saved_tensor_bytes(lambda: x @ weight) == 5 * 10 * 4
    y = torch.ones(5, 10, requires_grad=True)
    assert measured_saved_tensor_bytes(lambda: y @ weight, [weight]) == 5 * 10 * 4
    assert measured_saved_tensor_bytes(lambda: y @ weight) == (5 * 10 + 100) * 4
    assert measured_saved_tensor_bytes(lambda: y * y + y.view(-1).view(5, 10) * y) == 5 * 10 * 4
    assert measured_saved_tensor_bytes(lambda: y[:1].exp().exp(), [y]) == 2 * 10 * 4
    assert measured_saved_tensor_bytes(lambda: x + 1) == 0


def test_activations_grow_with_the_micro_batch_and_not_with_their_number():
    params = weights(0)
    batch = rows(24, 0, equal=True)

    def peak(size, steps):
        parts = batch[: size * steps].split(size)
        return measured_saved_tensor_bytes(partial(accumulate_gradients, loss_fn, params, parts))

    assert peak(3, 1) == peak(3, 4) == peak(3, 8)
    sizes = [peak(size, 2) for size in (1, 2, 4, 8)]
    per_sequence = sizes[1] - sizes[0]
    assert [b - a for a, b in itertools.pairwise(sizes)] == [per_sequence, 2 * per_sequence, 4 * per_sequence]


def test_static_memory_does_not_know_the_batch():
    small, large = training_memory(1000, 50, 1), training_memory(1000, 50, 8)
    assert small["static"] == large["static"] == 16_000
    assert (small["activations"], large["activations"]) == (50, 400)
    assert large["total"] == 16_400
    assert training_memory(10, 1, 0, bytes_per_param=12)["total"] == 120
    assert activation_bytes(2, 8, 3, 16, 4) == 2 * 3 * activation_bytes(1, 8, 1, 16, 4)
    assert effective_batch_size(4, 8, 2, 10) == 640


# -- the run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", ["micro_batch=17", "accumulation_steps=0", "clouds=2", "checkpoint=last", "variable_length=maybe"]
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


def test_the_chain_of_arrows_ends_at_k_times_the_full_gradient(trace):
    steps = trace.config.accumulation_steps
    torch.testing.assert_close(trace.running_2d[1:], trace.micro_grads_2d.cumsum(dim=0), atol=1e-5, rtol=1e-4)
    assert trace.running_2d[0].tolist() == [0, 0]
    torch.testing.assert_close(trace.running_2d[-1] / steps, trace.full_2d, atol=1e-6, rtol=1e-4)
    assert trace.max_abs_diff < 1e-6
    assert len(trace.grad_window) == steps == 8


def test_the_window_of_the_trace_is_added_up_from_real_texts(trace):
    config = trace.config
    model, ids = experiment.model_at(config.checkpoint), experiment.texts(config)
    batches = experiment.trays(config, ids)
    assert trace.sequence_tokens.sum(dim=1).tolist() == trace.token_counts.tolist()
    assert (trace.sequence_tokens.flatten().diff() >= 0).all()  # grouped by length
    place = model.names.index(trace.window_name)
    tray = full_batch_gradient(model.loss, model.params, batches[0])[place]
    share = float(trace.token_counts[0] / trace.token_counts.sum())
    torch.testing.assert_close(trace.grad_window[0], share * tray[:8, :8], atol=1e-7, rtol=1e-4)
    rows_ = ids[experiment.POPULATION : experiment.POPULATION + 32]
    whole = full_batch_gradient(model.loss, model.params, rows_)[place]
    torch.testing.assert_close(trace.grad_window[-1], whole[:8, :8], atol=1e-7, rtol=1e-4)
    losses = [float(tiny_lm.token_losses(model.template, batch).sum()) for batch in batches]
    assert trace.true_loss == pytest.approx(sum(losses) / int(trace.token_counts.sum()), rel=1e-5)
    means = [loss / int(n) for loss, n in zip(losses, trace.token_counts, strict=True)]
    assert trace.naive_loss == pytest.approx(sum(means) / 8, rel=1e-5)


def test_the_quiet_bug_turns_the_gradient(trace):
    weights_ = mean_of_means_weights(trace.token_counts)
    torch.testing.assert_close(trace.naive_weights, weights_)
    true, naive = trace.naive_2d
    assert true[1] == 0 < true[0]
    angle = math.degrees(math.atan2(float(naive[1]), float(naive[0])))
    assert trace.naive_angle_deg == pytest.approx(angle, abs=1e-3)
    assert trace.naive_error == pytest.approx(float((naive - true).norm() / true.norm()), rel=1e-3)
    assert 5 < trace.naive_angle_deg < 60
    assert abs(trace.naive_loss - trace.true_loss) > 0.01


def test_a_window_of_equal_lengths_has_no_bug():
    config = Config(variable_length=False, micro_batch=2, accumulation_steps=3)
    model, ids = experiment.model_at("late"), experiment.texts(config)
    plane = torch.eye(2, sum(p.numel() for p in model.params))
    values = experiment.window_fields(config, model, ids, plane)
    assert values["token_counts"].tolist() == [48, 48, 48]
    assert values["naive_angle_deg"] < 0.01
    assert values["naive_error"] < 1e-5
    assert values["naive_loss"] == pytest.approx(values["true_loss"])
    assert values["sgd_update_ratio"] == pytest.approx(3, rel=1e-5)
    assert values["adam_update_ratio"] == pytest.approx(1, abs=0.01)
    assert values["running_2d"].shape == (4, 2)


def test_the_cloud_shrinks_by_half_for_four_times_the_batch(trace):
    assert trace.batches.tolist() == list(CLOUD_BATCHES) == [1, 4, 16, 64, 256, 1024]
    torch.testing.assert_close(trace.rms_error[:-1], trace.rms_predicted[:-1], rtol=0.2, atol=0)
    assert trace.rms_error[-1] == trace.rms_predicted[-1] == 0
    ratios = trace.rms_predicted[:4] / trace.rms_predicted[1:5]
    assert (ratios[:3] > 1.99).all()
    torch.testing.assert_close(trace.mean_sq_norm, trace.sq_norm_predicted, rtol=0.25, atol=0)
    assert (trace.mean_sq_norm.diff() < 0).all()
    torch.testing.assert_close(trace.cloud_2d[-1], trace.true_2d.expand(64, 2), atol=1e-5, rtol=0)
    assert abs(float(trace.true_2d[1])) < 1e-6  # axis 1 is the true gradient
    assert float(trace.true_2d[0]) ** 2 == pytest.approx(float(trace.sq_norm_predicted[-1]), rel=1e-4)
    spread = trace.cloud_2d.std(dim=1).norm(dim=1)
    assert (spread.diff() < 0).all()
    assert 0 < trace.energy_in_plane < 0.3 < trace.energy_by_batch[-1] <= 1 + 1e-5
    assert (trace.energy_by_batch.diff() > 0).all()


def test_the_second_axis_is_where_gradients_vary_most():
    scales = torch.tensor([9.0, 5.0, 1.0, 0.1], dtype=torch.float32)
    centered = randn(200, 4, seed=0, dtype=torch.float32) * scales
    centered -= centered.mean(dim=0)
    mean = torch.tensor([3.0, 0.0, 0.0, 0.0])
    direction = experiment.leading_direction(centered, mean)
    assert abs(float(direction @ mean)) < 1e-5
    assert float(direction.norm()) == pytest.approx(1, abs=1e-6)
    rest = centered[:, 1:]
    best = torch.linalg.svd(rest).Vh[0]
    assert abs(float(direction[1:] @ best)) > 0.999


def test_batches_are_drawn_without_replacement():
    chosen = experiment.draws(16, 5, torch.Generator().manual_seed(0))
    assert ((chosen > 0).sum(dim=1) == 16).all()
    torch.testing.assert_close(chosen.sum(dim=1), torch.ones(5))
    assert len(chosen.unique(dim=0)) == 5


def made_up_gradients():
    """1024 gradients of 5 numbers, centered, and their mean."""
    rows = randn(1024, 5, seed=1, dtype=torch.float32) + torch.tensor([0.6, 0.0, -0.2, 0.0, 0.3])
    return rows - rows.mean(dim=0), rows.mean(dim=0)


def test_clouds_of_made_up_gradients_are_as_wide_and_as_long_as_predicted():
    centered, mean = made_up_gradients()
    plane = torch.stack([mean / mean.norm(), experiment.leading_direction(centered, mean)])
    found = experiment.cloud_fields(Config(), centered, mean, plane)
    spread = float(centered.double().square().sum()) / 1024  # tr Σ of these 1024 themselves
    variances = [spread / batch * (1024 - batch) / 1023 for batch in CLOUD_BATCHES]
    assert found["rms_predicted"].square().tolist() == pytest.approx(variances, rel=1e-5)
    lengths = [float(mean.square().sum()) + variance for variance in variances]
    assert found["sq_norm_predicted"].tolist() == pytest.approx(lengths, rel=1e-5)
    torch.testing.assert_close(found["rms_error"], found["rms_predicted"], rtol=0.15, atol=0)  # exactly 0 at the end
    torch.testing.assert_close(found["mean_sq_norm"], found["sq_norm_predicted"], rtol=0.15, atol=0)
    torch.testing.assert_close(found["cloud_2d"].mean(dim=1), found["true_2d"].expand(6, 2), atol=0.3, rtol=0)
    inside = ((centered + mean) @ plane.T).square().sum() / (centered + mean).square().sum()
    assert found["energy_in_plane"] == pytest.approx(float(inside), rel=1e-4)
    assert found["energy_by_batch"][-1] == pytest.approx(1, abs=1e-5)  # the true gradient is the first axis


def test_the_noise_scale_of_a_run_is_read_from_groups_of_4_and_of_32():
    centered, mean = made_up_gradients()
    grads = (centered + mean).double()
    small, big = (grads.view(-1, size, 5).mean(dim=1).square().sum(dim=1).mean() for size in (4, 32))
    length = (32 * big - 4 * small) / 28
    expected = (small - big) / (1 / 4 - 1 / 32) / length
    assert experiment.noise_from_norms(centered, mean) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_the_loss_beside_the_weights_is_that_of_the_moved_model():
    model, ids = experiment.model_at("early"), tiny_lm.held_out(5).ids
    shift = 0.01 * randn(sum(param.numel() for param in model.params), seed=0, dtype=torch.float32)
    moved = dict(zip(model.names, model.params, strict=True))
    for name, part in zip(model.names, shift.split([param.numel() for param in model.params]), strict=True):
        moved[name] = moved[name] + part.view_as(moved[name])
    land = experiment.Landscape(model, ids)
    for ours, weights_ in ((land.loss(), {}), (land.loss(shift), moved)):
        judged = tiny_lm.copy_of(model.template, model.template.state_dict() | weights_)
        rows_ = [row[row != tiny_lm.PAD][None] for row in ids]
        expected = [float(tiny_lm.token_losses(judged, row).mean()) for row in rows_]
        assert ours == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_steps_into_a_round_bowl_gain_what_the_law_says(monkeypatch):
    centered, mean = made_up_gradients()

    class Bowl(experiment.Landscape):
        """Its floor lies at -√2 times the mean gradient."""

        def loss(self, shift=None):
            return 0.0 if shift is None else float(mean @ shift + shift.square().sum() / 8**0.5)

    monkeypatch.setattr(experiment, "Landscape", Bowl)
    length = float(mean.double().square().sum())
    noise = gradient_covariance_trace(centered) / length
    model, config = experiment.model_at("late"), Config(seed=3)
    found = experiment.progress_fields(config, model, torch.zeros(1, 2, dtype=torch.long), centered, mean, noise)
    assert float(found["progress_step_sizes"][-1]) == pytest.approx(2**0.5)
    laws = [1 / (1 + noise * 1023 / 1024 / batch * (1024 - batch) / 1023) for batch in CLOUD_BATCHES]
    assert found["progress_predicted"].tolist() == pytest.approx(laws, rel=1e-5)
    torch.testing.assert_close(found["progress_measured"], found["progress_predicted"], atol=0.15, rtol=0)
    assert found["progress_measured"][-1] == 1
    # batches of one, of other draws than the clouds'
    grads = experiment.draws(1, 12, torch.Generator().manual_seed(4)) @ centered + mean
    gains = [
        float((size * grads @ mean - (size * grads).square().sum(dim=1) / 8**0.5).mean())
        for size in (2**0.5 * laws[0] * ratio for ratio in experiment.RATIOS)
    ]
    assert float(found["progress_measured"][0]) == pytest.approx(max(gains) / (length / 2**0.5), rel=1e-3)


def test_noise_grows_as_the_model_learns(trace):
    early, mid, late = trace.b_simple_by_checkpoint.tolist()
    assert early < mid < late
    assert mid == pytest.approx(trace.b_simple)
    assert 1 < trace.b_simple < 1024
    assert trace.b_simple_from_norms == pytest.approx(trace.b_simple, rel=0.3)
    assert trace.b_noise / trace.b_simple == pytest.approx(1, abs=0.7)
    assert trace.checkpoint_steps.tolist() == [25, 200, 1600]


def test_measured_progress_bends_like_the_law(trace):
    measured, law = trace.progress_measured, trace.progress_predicted
    assert measured[-1] == law[-1] == 1
    assert (measured.diff() > 0).all()
    assert (law.diff() > 0).all()
    assert (measured - law).abs().max() < 0.15
    assert (trace.progress_error[:-1] > 0).all()
    assert (trace.progress_step_sizes.diff() > 0).all()
    own = trace.b_noise * 1023 / 1024
    for batch, value in zip(trace.batches.tolist(), law.tolist(), strict=True):
        assert value == pytest.approx(1 / (1 + own / batch * (1024 - batch) / 1023), rel=1e-5)
    torch.testing.assert_close(1 / trace.curve_progress, trace.curve_steps)
    torch.testing.assert_close((trace.curve_steps - 1) * (trace.curve_examples - 1), torch.ones(41), rtol=1e-3, atol=0)
    assert trace.curve_batch[[0, -1]].tolist() == pytest.approx([1, 1024])


def test_the_best_step_of_a_parabola_is_found():
    land = experiment.Landscape(experiment.model_at("late"), torch.zeros(1, 2, dtype=torch.long))

    class Parabola(experiment.Landscape):
        def loss(self, shift=None):
            return 0.0 if shift is None else float(shift.sum() + shift.square().sum())

    land = Parabola(land.model, land.ids)
    gains, size = land.best_step(torch.tensor([[1.0], [2.0]]), (0.1, 0.2, 0.3, 0.4, 0.5))
    # sizes s: mean decrease 1.5 s - 2.5 s², largest at 0.3
    assert size == 0.3
    assert gains.tolist() == pytest.approx([0.3 - 0.09, 0.6 - 0.36])


def test_saved_bytes_of_the_tiny_model_are_a_straight_line(trace):
    batch, saved = trace.memory_batch.double(), trace.memory_bytes_measured.double()
    slope = (saved[-1] - saved[0]) / (batch[-1] - batch[0])
    residual = saved - saved[0] - slope * (batch - batch[0])
    assert 1 - float(residual.square().sum() / (saved - saved.mean()).square().sum()) > 0.999
    assert slope > 1000 * 64 * 4  # hundreds of numbers for every token
    assert trace.memory_static_bytes == 16 * 43_744
    assert trace.memory_model["gpt2_activations_480"] == pytest.approx(480 * trace.memory_model["gpt2_activations_1"])


def test_small_print(trace):
    assert float(trace.bf16_sum[-1]) == 0.5
    assert float(trace.fp32_sum[-1]) == pytest.approx(1.024, rel=1e-5)
    assert float(trace.bf16_sum.max()) == 0.5
    assert trace.sgd_update_ratio == pytest.approx(8, rel=1e-6)
    assert trace.adam_update_ratio == pytest.approx(1, abs=0.01)
