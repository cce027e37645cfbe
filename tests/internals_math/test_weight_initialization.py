import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import tiny_lm, trace_store, weight_initialization
from internals_math import weight_initialization_experiment as experiment
from internals_math.tiny_lm.layers import ModelConfig
from internals_math.tiny_lm.training import plain_loss
from internals_math.weight_initialization import (
    ACTIVATIONS,
    HOMOGENEOUS,
    SCHEMES,
    Config,
    activation_moments,
    calculate_fan_in_and_fan_out,
    init_weight,
    initial_loss_estimate,
    predict_backward,
    predict_forward,
    propagate,
    pytorch_gain,
    random_walk_terms,
    residual_growth,
    symmetry_run,
    variance_fixed_point,
    variance_map,
    variance_preserving_gain,
    weight_std,
)

CURVED = tuple(name for name in ACTIVATIONS if name not in HOMOGENEOUS)


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(weight_initialization)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(actual, expected, relative):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=relative, atol=0)


# -- one weight --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["normal", "uniform", "orthogonal"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_drawn_weight_has_the_spread_of_its_scheme(scheme, distribution):
    weight = init_weight((500, 200), scheme, generator(), distribution, num_residual_branches=6, nonlinearity="tanh")
    std = weight_std(scheme, 200, 500, "tanh", num_residual_branches=6)
    assert abs(float(weight.mean())) < 0.02 * std
    if distribution == "orthogonal":
        gain = std * math.sqrt(200)
        torch.testing.assert_close(weight.T @ weight, gain**2 * torch.eye(200), atol=1e-5 * gain**2, rtol=1e-4)
        return
    assert float(weight.std()) == pytest.approx(std, rel=0.03)
    if distribution == "uniform":
        assert float(weight.abs().max()) == pytest.approx(math.sqrt(3) * std, rel=1e-3)
        assert float(weight.abs().max()) <= math.sqrt(3) * std * (1 + 1e-6)


def test_orthogonal_rows_of_a_wide_weight_and_of_a_convolution():
    wide = init_weight((20, 50), "lecun", generator(), "orthogonal", dtype=torch.float64)
    torch.testing.assert_close(wide @ wide.T, torch.eye(20, dtype=torch.float64))
    kernel = init_weight((20, 5, 3, 3), "kaiming_fan_in", generator(), "orthogonal", dtype=torch.float64).flatten(1)
    torch.testing.assert_close(kernel @ kernel.T, 2 * torch.eye(20, dtype=torch.float64))


def test_orthogonal_matrices_point_everywhere():
    entries = torch.stack([init_weight((2, 2), "lecun", generator(seed), "orthogonal") for seed in range(400)])
    assert entries.mean(dim=0).abs().max() < 0.15  # without the signs of R every first entry would be negative
    assert entries[:, 0, 0].min() < -0.9
    assert entries[:, 0, 0].max() > 0.9


@given(st.integers(1, 600), st.integers(1, 600))
def test_schemes_stand_in_the_proportions_of_their_formulas(fan_in, fan_out):
    def variance(scheme, *more):
        return weight_std(scheme, fan_in, fan_out, *more) ** 2

    assert variance("lecun") == pytest.approx(1 / fan_in)
    assert variance("kaiming_fan_in") == pytest.approx(2 / fan_in)
    assert variance("kaiming_fan_out") == pytest.approx(2 / fan_out)
    assert variance("kaiming_fan_in", "leaky_relu") == pytest.approx(2 / (1.0001 * fan_in))
    # Xavier lies between the two conditions: the harmonic mean of 1/fan_in and 1/fan_out
    assert 1 / variance("xavier") == pytest.approx((fan_in + fan_out) / 2)
    assert variance("torch_linear") == pytest.approx(variance("lecun") / 3)
    assert variance("gpt2_residual", "relu", 24, 0.5) == pytest.approx(0.25 / 24)


def test_fan_in_counts_the_kernel():
    assert calculate_fan_in_and_fan_out((8, 4)) == (4, 8)
    assert calculate_fan_in_and_fan_out((8, 4, 3, 5)) == (60, 120)


# -- one layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_variance_preserving_gain_keeps_an_input_of_size_one(name):
    gain = variance_preserving_gain(name)
    # what enters has the variance gain² · 1 only if the gain stands in front of φ: φ of unit Gaussians, times gain
    assert gain**2 * activation_moments(name)[1] == pytest.approx(1)
    assert variance_map(1.0, gain**2, name) == pytest.approx(1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_are_those_of_many_random_numbers(name):
    z = math.sqrt(2.0) * torch.randn(400_000, generator=generator(), dtype=torch.float64)
    mean, second, _ = activation_moments(name, 2.0)
    value = ACTIVATIONS[name](z)
    assert float(value.mean()) == pytest.approx(mean, abs=0.01)
    assert float(value.square().mean()) == pytest.approx(second, rel=0.01)


@given(st.floats(0.1, 5), st.floats(0.2, 3))
def test_only_kinked_lines_treat_all_scales_alike(q, factor):
    for name in HOMOGENEOUS:
        assert variance_map(factor**2 * q, 1.3, name) == pytest.approx(factor**2 * variance_map(q, 1.3, name))
    if abs(factor - 1) > 0.05:
        for name in CURVED:
            assert variance_map(factor**2 * q, 1.3, name) != pytest.approx(factor**2 * variance_map(q, 1.3, name))


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_squashing_draws_every_variance_to_the_fixed_one(name):
    fixed = variance_fixed_point(4.0, name)
    assert variance_map(fixed, 4.0, name) == pytest.approx(fixed)
    for q in (0.01, 30.0):
        for _ in range(200):
            q = variance_map(q, 4.0, name)
        assert q == pytest.approx(fixed, rel=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_smooth_relus_are_driven_away_from_their_fixed_variance(name):
    weights = variance_preserving_gain(name) ** 2
    assert variance_fixed_point(weights, name) == pytest.approx(1)
    small, large = 0.9, 1.1
    for _ in range(80):
        small, large = variance_map(small, weights, name), variance_map(large, weights, name)
    assert small < 1e-3
    assert large > 1e2


def test_one_relu_layer_of_width_n_scatters_the_length_by_five_over_n():
    draws, width = 20_000, 32
    x = torch.randn(width, generator=generator(1))
    weights = init_weight((draws * width, width), "kaiming_fan_in", generator()).view(draws, width, width)
    factors = (weights @ x).relu().square().sum(dim=1) / x.square().sum()
    assert float(factors.mean()) == pytest.approx(1, abs=0.01)
    assert float(factors.var()) == pytest.approx(5 / width, rel=0.1)


def test_by_fan_in_the_signal_is_kept_by_fan_out_the_gradient_and_never_both():
    found = experiment.two_ways(Config())
    close(found["fan_demo"], [[1, 4], [0.25, 1], [0.2, 0.8]], 0.02)
    torch.testing.assert_close(found["fan_predicted"], torch.tensor([[1, 4], [0.25, 1], [0.2, 0.8]]))


# -- many layers -------------------------------------------------------------------------------------------------------


def test_the_correct_gain_keeps_signal_and_gradient_level_on_average():
    runs = [propagate(20, 256, 2, "kaiming_fan_in", "relu", generator(seed)) for seed in range(100)]
    for name in ("second_moment", "grad_second_moment"):
        mean = torch.stack([getattr(run, name) for run in runs]).mean(dim=0)
        close(mean, torch.ones(21), 0.15)
    close(torch.stack([run.preact_variance for run in runs]).mean(dim=0), 2 * torch.ones(20), 0.15)
    # while a typical one decays: the logarithm falls by about 5 / (2n) a layer
    typical = torch.stack([run.second_moment.log() for run in runs]).mean(dim=0)
    assert float(typical[-1] - typical[0]) == pytest.approx(-5 * 20 / (2 * 256), abs=0.12)


@settings(max_examples=20)
@given(st.floats(0.7, 1.4))
def test_a_gain_multiplies_the_signal_in_every_layer(scale):
    level, other = (propagate(12, 32, 8, g * math.sqrt(2 / 32), "relu", generator(3)) for g in (1.0, scale))
    torch.testing.assert_close(other.second_moment / level.second_moment, predict_forward(12, scale**2))
    torch.testing.assert_close(other.grad_second_moment / level.grad_second_moment, predict_backward(12, scale**2))


@pytest.mark.parametrize("name", ["tanh", "gelu", "sigmoid", "leaky_relu"])
def test_wide_networks_do_what_is_predicted_for_every_activation(name):
    config = Config(depth=8, nonlinearity=name)
    gain = 1.1 * variance_preserving_gain(name)
    runs = [propagate(8, 256, 16, gain / 16, name, generator(seed)) for seed in range(12)]
    signal, gradient = experiment.predicted(config, gain)
    close(torch.stack([run.second_moment for run in runs]).mean(dim=0).sqrt(), signal, 0.05)
    close(torch.stack([run.grad_second_moment for run in runs]).mean(dim=0).sqrt(), gradient, 0.05)


def test_predictions_of_a_relu_network_are_powers():
    signal, gradient = experiment.predicted(Config(depth=50), 0.9 * math.sqrt(2))
    torch.testing.assert_close(signal.square(), predict_forward(50, 0.81))
    torch.testing.assert_close(gradient.square(), predict_backward(50, 0.81))


def test_histograms_hold_the_share_of_each_bin():
    run = propagate(3, 64, 100, "kaiming_fan_in", "relu", generator())
    torch.testing.assert_close(run.histograms.sum(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)
    centers = (run.bin_edges[1:] + run.bin_edges[:-1]) / 2
    spread = (run.histograms * centers.square()).sum(dim=1)
    close(spread, torch.cat([run.second_moment[:1], run.preact_variance]), 0.03)


def test_orthogonal_linear_layers_keep_every_length_at_any_depth():
    x = start = torch.randn(10, 32, generator=generator(), dtype=torch.float64)
    for seed in range(100):
        x = x @ init_weight((32, 32), "lecun", generator(seed), "orthogonal", dtype=torch.float64).T
    torch.testing.assert_close(x.norm(dim=1), start.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("scale", [1.0, 12**-0.5])
def test_residual_streams_grow_as_predicted(prenorm, scale):
    runs = [experiment.stream(seed, 12, scale, prenorm=prenorm) for seed in range(24)]
    expected = residual_growth(12, scale, "prenorm" if prenorm else "unnormalized")
    close(torch.stack(runs).mean(dim=0), expected, 0.1)


def test_branches_scaled_by_their_number_stay_below_e_or_add_one_share():
    for branches in (1, 7, 200):
        scaled = residual_growth(branches, branches**-0.5)
        assert 2 <= float(scaled[-1]) < math.e
        normed = residual_growth(branches, branches**-0.5, "prenorm", branch_variance=0.3)
        assert float(normed[-1]) == pytest.approx(1.3)
        steps = residual_growth(branches, 1.0, "prenorm", branch_variance=0.3).diff()
        close(steps, torch.full((branches,), 0.3, dtype=torch.float64), 1e-9)
    assert residual_growth(3, 2.0, branch_variance=0.5).tolist() == [1, 3, 9, 27]


def test_a_neuron_adds_up_as_a_random_walk():
    x = torch.tensor([[1.0, -2.0, 3.0]]).expand(20_000, 3)
    sums = random_walk_terms(3, 0.5, x, generator())
    assert (sums[:, 0] == 0).all()
    close(sums[:, 1:].square().mean(dim=0), [0.25, 1.25, 3.5], 0.05)
    steps = sums.diff(dim=1) / x  # the weights themselves
    assert steps.T.corrcoef().fill_diagonal_(0).abs().max() < 0.03
    assert float(steps.std()) == pytest.approx(0.5, rel=0.02)


# -- symmetry, and the first loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[0.0] * 4, [0.5] * 4, [0.3, -1.0, 2.0, 0.1]])
def test_equal_neurons_never_part(row):
    run = symmetry_run(torch.tensor([row] * 5), 80)
    assert run.shape == (81, 5, 4)
    assert (run == run[:, :1]).all()
    assert (run[-1] - run[0]).abs().max() > 0.05  # they do learn


def test_neurons_that_start_apart_stay_apart():
    run = symmetry_run(init_weight((5, 4), "lecun", generator()), 80)
    assert all(torch.nn.functional.pdist(w).min() > 0.05 for w in run)


def test_the_symmetric_task_is_learned_by_descent():
    run = symmetry_run(init_weight((5, 4), "lecun", generator()).double(), 2)
    task = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=task, dtype=torch.float64)
    y = (x @ torch.randn(5, 4, generator=task, dtype=torch.float64).T).tanh().sum(dim=1)

    def loss(w):
        return ((x @ w.T).tanh().sum(dim=1) - y).square().mean()

    expected = run[0] - 0.02 * torch.func.grad(loss)(run[0])
    torch.testing.assert_close(run[1], expected)


@settings(max_examples=20)
@given(st.integers(0, 20), st.floats(0, 0.5))
def test_logits_cost_half_their_variance(seed, spread):
    logits = spread * torch.randn(4000, 100, generator=generator(seed), dtype=torch.float64)
    targets = torch.randint(100, (4000,), generator=generator(seed + 1))
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    assert loss == pytest.approx(initial_loss_estimate(100, spread**2), abs=0.05)
    assert initial_loss_estimate(100, 0.0) == math.log(100)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calculate_fan_in_and_fan_out((5,)), r"at least 2 dimensions, got shape \(5,\)"),
        (lambda: activation_moments("swish"), "nonlinearity must be one of linear, .*got 'swish'"),
        (lambda: activation_moments("relu", -1.0), "a variance must be at least 0, got -1.0"),
        (lambda: pytorch_gain("silu"), "not for 'silu'; variance_preserving_gain computes one"),
        (lambda: weight_std("he", 3, 3), "scheme must be one of xavier, .*got 'he'"),
        (lambda: weight_std("xavier", 0, 3), "must be at least 1, got 0 and 3"),
        (lambda: weight_std("gpt2", 3, 3, base_std=0.0), "base_std must be > 0, got 0.0"),
        (lambda: weight_std("gpt2_residual", 3, 3), "needs num_residual_branches of at least 1, got None"),
        (lambda: init_weight((3, 3), "xavier", generator(), "cauchy"), "must be normal, uniform or orthogonal"),
        (lambda: variance_map(1.0, -1.0, "tanh"), "at least 0, got -1.0"),
        (lambda: variance_fixed_point(2.0, "relu"), "relu multiplies every variance by the same factor"),
        (lambda: variance_fixed_point(0.5, "tanh"), "tanh has no fixed variance at .* = 0.5"),
        (lambda: predict_forward(0, 1.0), "depth must be at least 1 .*got 0 and 1.0"),
        (lambda: predict_backward(3, -1.0), "the factor at least 0, got 3 and -1.0"),
        (lambda: residual_growth(0, 1.0), "num_branches must be at least 1"),
        (lambda: residual_growth(3, 1.0, "postnorm"), "mode must be unnormalized or prenorm, got 'postnorm'"),
        (lambda: initial_loss_estimate(0, 1.0), "vocab_size must be at least 1"),
        (lambda: propagate(0, 3, 3, 0.1, "relu", generator()), "must be at least 1, got 0, 3 and 3"),
        (lambda: propagate(1, 3, 3, 0.0, "relu", generator()), "must be > 0, got 0.0"),
        (lambda: propagate(1, 3, 3, 0.1, "relu", generator(), prenorm=True), "prenorm is of residual branches"),
        (lambda: symmetry_run(torch.zeros(2, 2), -1), "steps must be at least 0, got -1"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_walk_needs_an_input_for_every_term(plain_python):
    with pytest.raises(ValueError, match="x must have fan_in = 4 columns .*got 3"):
        random_walk_terms(4, 1.0, torch.ones(2, 3), generator())


@pytest.mark.parametrize(
    "setting",
    ["depth=1", "depth=101", "width=16", "nonlinearity=swish", "gain_scale=0.4", "num_layers=97", "train_steps=19"],
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the experiments ---------------------------------------------------------------------------------------------------


def test_the_deep_mlp_is_what_torch_makes_of_its_layers():
    weights = experiment.mlp_weights("kaiming_fan_in", 0.02, 1, depth=2)
    layers = [torch.nn.Linear(64, rows) for rows in (64, 64, 112)]
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    oracle = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    x = torch.randn(7, 64, generator=generator())
    torch.testing.assert_close(experiment.mlp_logits(weights, x), oracle(x))
    assert all((bias == 0).all() for bias in weights[1::2])


def test_the_mlp_is_asked_for_the_word_after_two(trace):
    x, y = experiment.word_pairs()
    table = tiny_lm.load("base").model.embed_tokens.weight
    table = table / table.square().mean().sqrt()
    first = tiny_lm.training_corpus(size=2000).ids[0]
    torch.testing.assert_close(x[3], torch.cat([table[first[3]], table[first[4]]]))
    assert y[3] == first[5]
    assert (y != tiny_lm.PAD).all()
    words = torch.tensor([0, 0, 1, 2])
    assert experiment.word_entropy(words) == pytest.approx(1.5 * math.log(2))


def test_a_model_starts_from_the_scheme_it_was_given():
    gpt2 = tiny_lm.TinyLM(init=experiment.lm_init("gpt2", 0.02))
    state = gpt2.state_dict()
    # 2 branches for each of 3 layers; 1024 to 3584 weights each
    for name, std in (
        ("self_attn.q_proj", 0.02),
        ("self_attn.o_proj", 0.02 / 6**0.5),
        ("mlp.down_proj", 0.02 / 6**0.5),
    ):
        assert float(state[f"model.layers.1.{name}.weight"].std()) == pytest.approx(std, rel=0.1)
    assert float(state["model.embed_tokens.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert (state["model.layers.0.input_layernorm.weight"] == 1).all()
    plain = tiny_lm.TinyLM(init=experiment.lm_init("constant_std", 0.2)).state_dict()
    assert float(plain["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(0.2, rel=0.1)


def test_the_start_of_a_model_is_measured_on_its_words_alone():
    corpus = tiny_lm.held_out(5)
    model = tiny_lm.TinyLM(seed=1)
    start = experiment.at_the_start(model, corpus)
    assert start["loss"] == pytest.approx(tiny_lm.evaluate(model, corpus), abs=1e-5)
    real = corpus.ids != tiny_lm.PAD
    assert start["variance"] == pytest.approx(float(model(corpus.ids)[real].detach().var(dim=1).mean()), rel=0.01)
    loss = plain_loss(model, corpus.ids, corpus.labels())
    parameters = [list(layer.parameters()) for layer in model.model.layers]
    for norm, weights in zip(start["norms"], parameters, strict=True):
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        expected = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
        assert float(norm) == pytest.approx(expected, rel=1e-4)


def test_the_stream_is_measured_after_every_branch():
    model, corpus = tiny_lm.load("base"), tiny_lm.held_out(4)
    sizes = experiment.stream_rms(model, corpus)
    assert sizes.shape == (7,)
    real = corpus.ids != tiny_lm.PAD
    with torch.no_grad():
        _, records = model(corpus.ids, record=("residual", "linear_inputs"))
    for layer, residual in enumerate(records["residual"]):
        assert float(sizes[2 * layer]) == pytest.approx(float(residual[real].square().mean().sqrt()), rel=1e-5)
    entering = records["linear_inputs"]["model.layers.0.mlp.gate_proj.weight"]  # the normed stream after attention
    weight = model.model.layers[0].post_attention_layernorm.weight
    attended = records["residual"][1] - tiny_lm.swiglu(
        entering, *(getattr(model.model.layers[0].mlp, name).weight for name in ("gate_proj", "up_proj", "down_proj"))
    )
    torch.testing.assert_close(tiny_lm.rms_norm(attended, weight, 1e-5), entering, atol=1e-4, rtol=1e-4)
    assert float(sizes[1]) == pytest.approx(float(attended[real].square().mean().sqrt()), rel=1e-4)


def test_profiles_are_means_over_draws_that_all_gains_share(monkeypatch):
    monkeypatch.setattr(experiment, "WORK", 3 * 2 * 32**2)
    config = Config(depth=2, width=32, seed=7)
    found = experiment.depth_profiles(config)
    assert found["draws"] == 3
    for index, gain in ((0, 0.8), (6, 1.1)):
        std = gain * math.sqrt(2 / 32)
        runs = [propagate(2, 32, 16, std, "relu", generator(7 + 10_000 * draw)) for draw in range(3)]
        mean = torch.stack([run.second_moment for run in runs]).mean(dim=0)
        torch.testing.assert_close(found["signal"][index], mean.sqrt())
        back = torch.stack([run.grad_second_moment for run in runs]).mean(dim=0)
        torch.testing.assert_close(found["gradient"][index], back.sqrt())
        torch.testing.assert_close(found["signal_predicted"][index], gain ** torch.arange(3.0).double())
    # gain 1.1 of the ridge: the first draw of the profile's seventh gain
    torch.testing.assert_close(found["hist"][2].double(), runs[0].histograms, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["bin_centers"], torch.linspace(-6, 6, 83, dtype=torch.float64)[1::2])


def test_streams_are_means_over_draws_with_and_without_scale_and_norm():
    found = experiment.streams(Config(num_layers=1, seed=2))
    assert found["num_branches"] == 2
    for name, scale, prenorm in (
        ("residual_plain", 1.0, False), ("residual_scaled", 0.5**0.5, False),
        ("prenorm_plain", 1.0, True), ("prenorm_scaled", 0.5**0.5, True),
    ):  # fmt: skip
        runs = [experiment.stream(2 + 10_000 * draw, 2, scale, prenorm=prenorm) for draw in range(24)]
        torch.testing.assert_close(found[name], torch.stack(runs).mean(dim=0))
        assert found[name][0] == 1
        expected = residual_growth(2, scale, "prenorm" if prenorm else "unnormalized")
        torch.testing.assert_close(found[f"{name}_predicted"], expected)


def test_what_costs_little_is_the_same_when_it_is_measured_again(trace):
    config = Config()
    parts = (experiment.walks, experiment.half_of_the_energy, experiment.two_ways, experiment.symmetries)
    for name, value in {key: part for parts_ in parts for key, part in parts_(config).items()}.items():
        kept = getattr(trace, name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, kept, atol=1e-5, rtol=1e-4, msg=name)
        else:
            assert value == kept


@pytest.mark.parametrize(("row", "scheme"), [(0, "kaiming_fan_in"), (1, "xavier"), (2, "constant_std")])
def test_the_mlp_descends_by_plain_gradient_steps(trace, row, scheme):
    losses, first = experiment.train_mlp(scheme, 0.02, 0, steps=2)
    torch.testing.assert_close(losses, trace.mlp_losses[row, :2], atol=1e-5, rtol=1e-5)
    assert first == pytest.approx(float(trace.mlp_first_layer_grad[row]), rel=1e-3)
    x, y = experiment.word_pairs()
    order = torch.randperm(len(x), generator=generator(0))
    weights = experiment.mlp_weights(scheme, 0.02, 0)
    assert len(weights) == 2 * (trace.mlp_depth + 1)
    for step in range(2):
        rows = order[256 * step : 256 * (step + 1)]
        loss = torch.nn.functional.cross_entropy(experiment.mlp_logits(weights, x[rows]), y[rows])
        assert float(loss.detach()) == pytest.approx(float(losses[step]), abs=1e-5)
        gradients = torch.autograd.grad(loss, weights)
        if step == 0:
            assert first == pytest.approx(float(gradients[0].norm()), rel=1e-3)
        weights = [(w - 0.03 * g).detach().requires_grad_() for w, g in zip(weights, gradients, strict=True)]


def test_every_start_reads_the_same_documents_with_adam():
    config = Config(seed=3)
    start, losses = experiment.train_lm("constant_std", 0.2, config, 2)
    corpus = tiny_lm.training_corpus(size=64)
    model = tiny_lm.TinyLM(init=experiment.lm_init("constant_std", 0.2), seed=3)
    assert start["loss"] == pytest.approx(tiny_lm.evaluate(model, corpus.first(32)), abs=1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    order = torch.randperm(64, generator=generator(3))
    for step, rate in enumerate((0.005 / 50, 0.005 * 2 / 50)):  # warm-up
        rows = order[32 * step : 32 * (step + 1)]
        loss = plain_loss(model, corpus.ids[rows], corpus.labels()[rows])
        assert float(losses[step]) == pytest.approx(float(loss.detach()), abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_fifty_layers_do_what_one_factor_predicts(trace):
    torch.testing.assert_close(trace.gains, torch.linspace(0.8, 1.2, 9, dtype=torch.float64))
    assert trace.correct_gain == pytest.approx(math.sqrt(2))
    powers = trace.gains[:, None] ** torch.arange(51)
    torch.testing.assert_close(trace.signal_predicted, powers)
    torch.testing.assert_close(trace.gradient_predicted, powers.flip(1))
    # the mean of a few draws is off by the same factor for every gain, and by less than 1.6
    assert (trace.signal / trace.signal_predicted).log().abs().max() < math.log(1.6)
    assert (trace.gradient / trace.gradient_predicted).log().abs().max() < math.log(1.6)
    assert trace.hist.sum(dim=2)[:2].min() > 0.99
    assert trace.hist[2].sum(dim=1)[-1] < 0.2  # flooded: most of it lies beyond the edges
    assert trace.hist[0, -1, 20] > 0.9  # a needle in the middle bin
    torch.testing.assert_close(trace.bin_centers, (trace.bin_edges[1:] + trace.bin_edges[:-1]) / 2)


def test_walks_spread_by_the_root_and_a_relu_halves_the_energy(trace):
    close(trace.walk_std, trace.walk_std_predicted, 0.03)
    assert trace.walk_std_predicted.tolist() == [2, 4, 8, 16]
    assert (trace.walk[:, 0] == 0).all()
    close(trace.relu_moments, [1, 0.5, 1], 0.05)
    torch.testing.assert_close(trace.relu_after[21:], trace.relu_before[21:])
    assert float(trace.relu_after[20]) == pytest.approx(0.5 + float(trace.relu_before[20]) / 2, abs=0.02)
    assert (trace.relu_after[:20] == 0).all()


def test_streams_grow_or_stay_as_predicted(trace):
    assert trace.num_branches == 24
    for name in ("residual_plain", "residual_scaled", "prenorm_plain", "prenorm_scaled"):
        close(getattr(trace, name), getattr(trace, f"{name}_predicted"), 0.25)
    assert float(trace.residual_plain[-1]) > 1e7
    assert float(trace.residual_scaled[-1]) < math.e * 1.1
    assert (trace.stream_rms_init.diff() > 0).all()
    assert float(trace.stream_rms_trained[-1]) > 10 * float(trace.stream_rms_init[-1])
    torch.testing.assert_close(
        trace.stream_rms_trained, experiment.stream_rms(tiny_lm.load("base"), tiny_lm.held_out_kind("tale", 32))
    )


def test_symmetric_neurons_of_the_trace_stay_one(trace):
    assert (trace.symmetry_gap == 0).all()
    assert (trace.symmetry_random_gap > 0.1).all()
    assert float(trace.symmetry_random_gap[3]) == pytest.approx(
        float(torch.cdist(trace.symmetry_random[3], trace.symmetry_random[3]).fill_diagonal_(9).min()), abs=1e-5
    )


def test_only_he_gets_a_deep_mlp_to_learn(trace):
    he, xavier, small = trace.mlp_final.tolist()
    assert he < trace.mlp_unigram_entropy - 0.2
    assert min(xavier, small) > trace.mlp_unigram_entropy  # they drift towards the frequencies by the last bias
    assert trace.mlp_first_layer_grad[0] > 0.1
    assert 0 < trace.mlp_first_layer_grad[1] < 1e-3
    assert trace.mlp_first_layer_grad[2] == 0
    torch.testing.assert_close(trace.mlp_final, trace.mlp_losses[:, -20:].mean(dim=1))


def test_with_norms_and_adam_the_start_matters_most(trace):
    start = trace.lm_initial_loss.tolist()
    assert start == sorted(start)
    assert trace.lm_schemes == ("std 0.002", "GPT-2", "Xavier", "std 0.2", "std 1")
    assert start[0] == pytest.approx(trace.ln_vocab, abs=1e-3)
    assert start[1] == pytest.approx(initial_loss_estimate(112, float(trace.lm_logit_variance[1])), abs=0.02)
    assert start[-1] > 3 * trace.ln_vocab
    assert (trace.lm_final[:-1] < trace.unigram_entropy).all()
    assert trace.lm_final[-1] > trace.lm_final[:-1].max()
    torch.testing.assert_close(trace.lm_losses[:, 0], trace.lm_initial_loss, atol=0.4, rtol=0.05)  # another batch
    assert trace.lm_grad_norm_by_layer.shape == (5, ModelConfig().num_hidden_layers)
