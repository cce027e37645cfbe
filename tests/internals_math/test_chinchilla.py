import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import chinchilla, chinchilla_experiment, chinchilla_runs, scaling_fit, tiny_lm, trace_store
from internals_math.chinchilla import (
    BESIROGLU_2024,
    HOFFMANN_2022,
    HOFFMANN_2022_ROUNDED,
    Config,
    ScalingLaw,
    allocation_exponents,
    compute_for_optimal_size,
    effective_compute,
    fit_isoflop_parabola,
    fit_parametric_loss,
    fit_power_law,
    frontier_loss,
    huber,
    isoflop_profile,
    loss_terms,
    lower_envelope,
    optimal_allocation,
    overparameterization,
    parametric_loss,
    power_law_allocation,
    tokens_per_parameter,
)

laws = st.builds(
    ScalingLaw,
    E=st.floats(0.1, 3),
    A=st.floats(1, 5000),
    B=st.floats(1, 5000),
    alpha=st.floats(0.1, 1),
    beta=st.floats(0.1, 1),
)
budgets = st.floats(17, 27).map(lambda exponent: 10**exponent)
sizes = st.floats(6, 13).map(lambda exponent: 10**exponent)
SIZES = torch.logspace(7, 10, 6, dtype=torch.float64)
TOKENS = torch.logspace(8, 11, 5, dtype=torch.float64)
N, D = (axis.flatten() for axis in torch.meshgrid(SIZES, TOKENS, indexing="ij"))


@pytest.fixture(scope="module", params=["kept", "anew"])
def trace(request):
    """The trace that comes with the project, and one whose pictures of the law are computed here and now."""
    kept = trace_store.get(chinchilla)
    if request.param == "kept":
        return kept
    slow = {name: getattr(kept, name) for name in kept.__dataclass_fields__ if name.startswith(("tiny_", "fit_"))}
    slow |= chinchilla_experiment.isoflop_profiles(kept.tiny_n, kept.tiny_d, kept.tiny_loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chinchilla_experiment, "tiny_laws", lambda config: slow | {"entropy_floor": kept.entropy_floor})
        patch.setattr(chinchilla_experiment, "two_fits", lambda law, compute, seed: {})
        return chinchilla.trace(Config())


# -- the best use of a budget ------------------------------------------------------------------------------------------


@given(laws, budgets)
def test_the_best_size_and_tokens_spend_the_budget(law, compute):
    n_params, n_tokens = optimal_allocation(compute, law)
    assert float(6 * n_params * n_tokens) == pytest.approx(compute, rel=1e-9)
    a, b, _ = allocation_exponents(law)
    assert a + b == pytest.approx(1)
    assert float(tokens_per_parameter(compute, law)) == pytest.approx(float(n_tokens / n_params))


@given(laws, budgets)
def test_at_the_best_point_one_percent_of_size_is_worth_one_percent_of_data(law, compute):
    size_term, data_term = loss_terms(*optimal_allocation(compute, law), law)
    assert float(law.alpha * size_term) == pytest.approx(float(law.beta * data_term), rel=1e-9)
    assert float(size_term / data_term) == pytest.approx(law.beta / law.alpha, rel=1e-9)


@settings(max_examples=30)
@given(laws, budgets)
def test_no_other_point_of_the_budget_is_better(law, compute):
    best_n, _ = optimal_allocation(compute, law)
    n_params, n_tokens, losses = isoflop_profile(
        compute, best_n * torch.logspace(-1, 1, 2001, dtype=torch.float64), law
    )
    torch.testing.assert_close(6 * n_params * n_tokens, torch.full((2001,), compute, dtype=torch.float64))
    assert int(losses.argmin()) == 1000
    assert float(losses[1000]) == pytest.approx(float(frontier_loss(compute, law)), rel=1e-12)
    assert (losses >= frontier_loss(compute, law) * (1 - 1e-12)).all()


@given(laws, sizes, sizes)
def test_more_parameters_and_more_tokens_lower_the_loss_towards_e(law, n_params, n_tokens):
    loss = float(parametric_loss(n_params, n_tokens, law))
    assert float(parametric_loss(2 * n_params, n_tokens, law)) < loss
    assert float(parametric_loss(n_params, 2 * n_tokens, law)) < loss
    size_term, data_term = loss_terms(n_params, n_tokens, law)
    assert loss == pytest.approx(law.E + float(size_term) + float(data_term))
    assert float(loss_terms(2 * n_params, n_tokens, law)[0] / size_term) == pytest.approx(2**-law.alpha)
    assert float(loss_terms(n_params, 2 * n_tokens, law)[1] / data_term) == pytest.approx(2**-law.beta)
    assert float(parametric_loss(1e200, 1e200, law)) == pytest.approx(law.E, rel=1e-6)


@given(laws, budgets)
def test_on_the_frontier_the_excess_falls_as_one_power_of_compute(law, compute):
    before, after = (float(frontier_loss(c, law)) - law.E for c in (compute, 100 * compute))
    assert after / before == pytest.approx(100 ** -(law.alpha * law.beta / (law.alpha + law.beta)), rel=1e-6)
    n_before, n_after = (float(optimal_allocation(c, law)[0]) for c in (compute, 100 * compute))
    assert n_after / n_before == pytest.approx(100 ** (law.beta / (law.alpha + law.beta)))


@given(laws, sizes, sizes)
def test_no_model_is_worth_more_than_it_cost(law, n_params, n_tokens):
    needed = float(effective_compute(n_params, n_tokens, law))
    assert needed <= 6 * n_params * n_tokens * (1 + 1e-9)
    assert float(frontier_loss(needed, law)) == pytest.approx(float(parametric_loss(n_params, n_tokens, law)), rel=1e-9)


@given(laws, budgets)
def test_on_the_frontier_nothing_is_wasted_and_nothing_too_large(law, compute):
    n_params, n_tokens = optimal_allocation(compute, law)
    assert float(effective_compute(n_params, n_tokens, law)) == pytest.approx(compute, rel=1e-6)
    assert float(overparameterization(n_params, n_tokens, law)) == pytest.approx(1, rel=1e-9)
    assert float(compute_for_optimal_size(n_params, law)) == pytest.approx(compute, rel=1e-9)
    _, b, _ = allocation_exponents(law)
    # four times the size with a quarter of the tokens: the same budget
    assert float(overparameterization(4 * n_params, n_tokens / 4, law)) == pytest.approx(4, rel=1e-9)
    assert float(overparameterization(4 * n_params, n_tokens, law)) == pytest.approx(4**b, rel=1e-9)


@given(budgets, st.floats(0.1, 1), st.floats(1, 1000))
def test_a_symmetric_law_spends_half_on_each(compute, exponent, coefficient):
    law = ScalingLaw(1.0, coefficient, coefficient, exponent, exponent)
    n_params, n_tokens = optimal_allocation(compute, law)
    assert float(n_params) == pytest.approx(math.sqrt(compute / 6))
    assert float(n_tokens) == pytest.approx(math.sqrt(compute / 6))


def test_many_budgets_are_answered_at_once():
    compute = torch.tensor([[1e20, 1e22], [1e24, 1e26]], dtype=torch.float64)
    n_params, _ = optimal_allocation(compute, HOFFMANN_2022)
    assert n_params.shape == (2, 2)
    assert float(n_params[1, 0]) == pytest.approx(float(optimal_allocation(1e24, HOFFMANN_2022)[0]))
    assert optimal_allocation(torch.tensor(1e24), HOFFMANN_2022)[0].dtype == torch.float64


@given(budgets, st.floats(0.1, 0.9))
def test_a_power_law_runs_through_its_anchor_and_spends_the_budget(compute, exponent):
    anchor = (1e21, 3e9)
    n_params, n_tokens = power_law_allocation(compute, exponent, anchor)
    assert float(6 * n_params * n_tokens) == pytest.approx(compute)
    assert float(n_params) == pytest.approx(3e9 * (compute / 1e21) ** exponent)
    assert float(power_law_allocation(1e21, exponent, anchor)[0]) == pytest.approx(3e9)


# -- from runs to a law ------------------------------------------------------------------------------------------------


def test_a_fit_of_exact_runs_finds_the_law_whatever_their_order():
    law = ScalingLaw(1.4, 350.0, 700.0, 0.33, 0.31)
    losses = parametric_loss(N, D, law)
    order = torch.randperm(len(N), generator=torch.Generator().manual_seed(1))
    for fit in (fit_parametric_loss(N, D, losses), fit_parametric_loss(N[order], D[order], losses[order])):
        assert pytest.approx(1.4, abs=1e-3) == fit.law.E
        assert fit.law.alpha == pytest.approx(0.33, abs=1e-3)
        assert fit.law.beta == pytest.approx(0.31, abs=1e-3)
        assert fit.objective < 1e-12
        assert fit.converged
        assert 0 < fit.n_starts <= scaling_fit.STARTS < fit.n_iterations


def test_a_known_floor_is_held_and_a_wrong_one_fits_worse():
    law = ScalingLaw(1.4, 350.0, 700.0, 0.33, 0.31)
    losses = parametric_loss(N, D, law)
    right, wrong = (fit_parametric_loss(N, D, losses, fixed_E=floor) for floor in (1.4, 1.0))
    assert pytest.approx(1.4, rel=1e-12) == right.law.E
    assert right.law.alpha == pytest.approx(0.33, abs=1e-4)
    assert pytest.approx(1.0, rel=1e-12) == wrong.law.E
    assert wrong.objective > 1e-4 > right.objective


def test_one_wild_run_moves_a_huber_fit_little():
    law = ScalingLaw(1.4, 350.0, 700.0, 0.33, 0.31)
    losses = parametric_loss(N, D, law)
    losses[7] *= 1.3
    fit = fit_parametric_loss(N, D, losses)
    assert fit.law.alpha == pytest.approx(0.33, abs=0.01)
    # all of the objective is the wild run: delta·(|r| - delta/2)
    assert fit.objective == pytest.approx(1e-3 * (math.log(1.3) - 5e-4), rel=0.02)


def test_starts_may_be_given_and_the_objective_is_a_sum_whatever_was_minimized():
    losses = parametric_loss(N, D, BESIROGLU_2024)
    start = torch.tensor([[0.6, 6.2, 7.6, 0.35, 0.36]], dtype=torch.float64)
    summed, averaged = (
        fit_parametric_loss(N, D, losses, init_grid=start, reduction=how, ftol=1.0) for how in ("sum", "mean")
    )
    assert summed.n_starts == averaged.n_starts == 1
    assert summed.n_iterations == averaged.n_iterations == 1  # ftol 1 stops after any step
    by_hand = huber((parametric_loss(N, D, averaged.law) / losses).log(), 1e-3).sum()
    assert averaged.objective == pytest.approx(float(by_hand), rel=1e-6)
    assert not summed.converged


def test_the_slope_that_ends_a_search_is_that_of_what_is_minimized():
    losses = parametric_loss(N, D, BESIROGLU_2024)
    start = torch.tensor([0.6, 6.2, 7.6, 0.35, 0.36], dtype=torch.float64, requires_grad=True)
    e, a, b, alpha, beta = start
    terms = torch.stack([e.expand(len(N)), a - alpha * N.log(), b - beta * D.log()])
    residuals = terms.logsumexp(dim=0) - losses.log()
    for how, objective in (("sum", huber(residuals, 1e-3).sum()), ("mean", huber(residuals, 1e-3).mean())):
        slope = float(torch.autograd.grad(objective, start, retain_graph=True)[0].abs().max())
        stays, moves = (
            fit_parametric_loss(N, D, losses, init_grid=start.detach()[None], reduction=how, gtol=gtol, ftol=1.0)
            for gtol in (1.01 * slope, 0.99 * slope)
        )
        assert (stays.n_iterations, moves.n_iterations) == (0, 1)


@pytest.mark.parametrize("growing", [N, D])
def test_losses_that_rise_with_size_or_data_have_no_law(growing):
    falling = D if growing is N else N
    losses = 2 * growing**0.05 * falling**-0.02
    start = torch.tensor([[-1.0, 0.5, 0.5, -0.05, 0.02], [-1.0, 0.5, 0.5, 0.02, -0.05]], dtype=torch.float64)
    with pytest.raises(ValueError, match="no start led to a law with alpha and beta > 0"):
        fit_parametric_loss(N, D, losses, init_grid=start[[0 if growing is N else 1]])


def test_a_parabola_returns_its_own_centre_and_depth():
    logs = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64) + math.log(5e8)
    losses = 2.5 + 0.1 * (logs - math.log(5e8)) ** 2
    n_opt, loss_min, coefficients = fit_isoflop_parabola(logs.exp(), losses)
    assert n_opt == pytest.approx(5e8)
    assert loss_min == pytest.approx(2.5)
    assert float(coefficients[0]) == pytest.approx(0.1)
    values = torch.stack([logs**2, logs, torch.ones_like(logs)], dim=1) @ coefficients
    torch.testing.assert_close(values, losses)


def test_a_narrower_window_brings_the_vertex_to_the_true_minimum():
    best = float(optimal_allocation(1e21, HOFFMANN_2022)[0])
    misses = []
    for decades in (2.0, 1.0, 0.3):
        window = best * torch.logspace(-decades / 2, decades / 2, 9, dtype=torch.float64)
        sizes_, _, losses = isoflop_profile(1e21, window, HOFFMANN_2022)
        misses.append(abs(math.log(fit_isoflop_parabola(sizes_, losses)[0] / best)))
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.01 < misses[0]


@given(st.floats(0.01, 100), st.floats(-2, 2))
def test_a_power_law_is_found_again(coefficient, exponent):
    x = torch.tensor([1.0, 3.0, 20.0, 500.0], dtype=torch.float64)
    found = fit_power_law(x, coefficient * x**exponent)
    assert found == pytest.approx((coefficient, exponent), rel=1e-9, abs=1e-9)


def test_huber_is_a_parabola_inside_and_a_line_outside():
    residuals = torch.tensor([-3.0, -0.5, 0.0, 0.25, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    values = huber(residuals, 0.5)
    assert values.tolist() == [0.5 * 2.75, 0.125, 0, 0.03125, 0.125, 0.5 * 1.75]
    (slopes,) = torch.autograd.grad(values.sum(), residuals)
    assert slopes.tolist() == [-0.5, -0.5, 0, 0.25, 0.5, 0.5]


def test_the_envelope_is_the_lowest_run_in_each_interval_of_compute():
    compute = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [4.0, 40.0, 10_000.0]], dtype=torch.float64)
    losses = torch.tensor([[5.0, 4.0, 3.5], [5.5, 3.8, 3.0], [6.0, 4.2, math.nan]], dtype=torch.float64)
    found, loss, run = lower_envelope(compute, losses, 4)  # decades
    assert found.tolist() == [1.0, 20.0, 200.0]  # the last decade has no loss
    assert loss.tolist() == [5.0, 3.8, 3.0]
    assert run.tolist() == [0, 1, 1]
    found, loss, run = lower_envelope(compute, losses, 1)
    assert (found.tolist(), loss.tolist(), run.tolist()) == ([200.0], [3.0], [1])


# -- refused -----------------------------------------------------------------------------------------------------------

ONES = torch.ones(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScalingLaw(1.0, 0.0, 1.0, 0.3, 0.3), "A of a scaling law must be > 0 and finite, got 0.0"),
        (lambda: ScalingLaw(1.0, 1.0, -1.0, 0.3, 0.3), "B of a scaling law must be > 0 and finite, got -1.0"),
        (lambda: ScalingLaw(1.0, 1.0, 1.0, 0.0, 0.3), "alpha of a scaling law must be > 0"),
        (lambda: ScalingLaw(1.0, 1.0, 1.0, 0.3, math.nan), "beta of a scaling law must be > 0"),
        (lambda: ScalingLaw(-0.1, 1.0, 1.0, 0.3, 0.3), "E of a scaling law must be >= 0 nats and finite, got -0.1"),
        (lambda: parametric_loss(0.0, 1e9, HOFFMANN_2022), "n_params must be > 0 and finite, got 0.0"),
        (lambda: parametric_loss(1e9, -1.0, HOFFMANN_2022), "n_tokens must be > 0 and finite, got -1.0"),
        (lambda: optimal_allocation(0.0, HOFFMANN_2022), "compute must be > 0"),
        (lambda: frontier_loss(math.inf, HOFFMANN_2022), "compute must be > 0 and finite, got inf"),
        (lambda: compute_for_optimal_size(-1.0, HOFFMANN_2022), "n_params must be > 0"),
        (lambda: power_law_allocation(1e20, 0.5, (0.0, 1e9)), "anchor must be > 0"),
        (
            lambda: effective_compute(1e300, 1e300, ScalingLaw(1.0, 1.0, 1.0, 2.0, 2.0)),
            "effective_compute needs a loss above E",
        ),
        (lambda: fit_isoflop_parabola(torch.tensor([1.0, 2.0, 2.0]), torch.ones(3)), "at least 3 different sizes"),
        (
            lambda: fit_isoflop_parabola(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 1.0])),
            "the losses have no lowest point",
        ),
        (lambda: fit_power_law(torch.ones(3), torch.ones(3)), "at least 2 different points"),
        (lambda: fit_power_law(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])), "y must be > 0"),
        (lambda: huber(ONES, 0.0), "delta must be > 0, got 0.0"),
        (
            lambda: fit_parametric_loss(ONES[:4], ONES[:4], ONES[:4]),
            "5 free parameters need at least as many runs, got 4",
        ),
        (lambda: fit_parametric_loss(ONES[:3], ONES[:3], ONES[:3], fixed_E=1.0), "4 free parameters need"),
        (lambda: fit_parametric_loss(ONES, ONES[:4], ONES), "got 5 n_params, 4 n_tokens and 5 losses"),
        (lambda: fit_parametric_loss(ONES, ONES, 0 * ONES), "losses must be > 0"),
        (lambda: fit_parametric_loss(ONES, ONES, ONES, reduction="max"), "reduction must be sum or mean, got .max."),  # type: ignore[arg-type]
        (lambda: lower_envelope(torch.ones(1, 2), torch.ones(1, 2), 0), "at least 1 interval"),
        (lambda: lower_envelope(torch.ones(1, 2), torch.full((1, 2), torch.nan), 1), "a loss for each point"),
        (lambda: lower_envelope(torch.zeros(1, 2), torch.ones(1, 2), 1), "compute must be > 0"),
    ],
)
def test_what_makes_no_sense_is_refused(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "setting", ["law=kaplan", "log10_compute=30", "n_isoflop=2", "sizes=3", "token_levels=7", "seed=-1"]
)
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- real runs ---------------------------------------------------------------------------------------------------------


def test_a_run_reads_each_fact_once_with_a_schedule_of_its_own():
    told = tiny_lm.fact_book().sample(4 * 256, seed=0)
    one, other = (chinchilla_runs.train((4, 8), told[:count], seed=0) for count in (2 * 256, 4 * 256))
    assert one.num_params == 2 * 100 * 4 + 4 * 4 * 4 + 3 * 4 * 8 + 3 * 4  # embedding and head, attention, SwiGLU, norms
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    again = chinchilla_runs.train((4, 8), told[: 2 * 256], seed=0)
    assert torch.equal(one.lm_head.weight, again.lm_head.weight)
    unread = chinchilla_runs.train((4, 8), torch.cat([told[: 2 * 256], told[:255]]), seed=0)  # no whole batch more
    assert not torch.equal(one.lm_head.weight, unread.lm_head.weight)


def test_narrow_models_learn_faster_and_wide_ones_have_a_head_for_every_8_numbers(monkeypatch):
    heard = []
    monkeypatch.setattr(tiny_lm, "train", lambda model, corpus, recipe, **_: heard.append((model, corpus, recipe)))
    told = tiny_lm.fact_book().sample(2 * 256 + 9, seed=0)
    for width in (4, 8, 16, 32):
        chinchilla_runs.train((width, 8), told, seed=0)
    assert [model.config.num_attention_heads for model, *_ in heard] == [1, 1, 2, 4]
    assert [recipe.adam_lr for *_, recipe in heard] == [0.02, 0.02, 0.01, 0.01]
    assert {recipe.steps for *_, recipe in heard} == {2}
    assert {tuple(corpus.surprisal.shape) for _, corpus, _ in heard} == {(521, 2)}  # of the cue's end and the answer


def test_every_size_is_trained_on_every_level_of_tokens_from_one_stream(monkeypatch):
    told_to = []

    def untrained(size, told, seed):
        told_to.append((size, told))
        return tiny_lm.TinyLM(tiny_lm.ModelConfig(100, size[0], 1, 1, 1, size[1]), seed=seed)

    monkeypatch.setattr(chinchilla_runs, "train", untrained)
    monkeypatch.setattr(chinchilla_runs, "SHORTEST", 4)
    runs = chinchilla_runs.trace(chinchilla_runs.Config(sizes=4, token_levels=4, seed=3))
    assert runs.n_tokens.tolist() == [4, 8, 16, 32] * 4
    assert [size for size, _ in told_to] == [size for size in chinchilla_runs.SIZES[:4] for _ in range(4)]
    stream = tiny_lm.fact_book().sample(32, 3)
    assert all(torch.equal(told, stream[:n]) for (_, told), n in zip(told_to, runs.n_tokens.tolist(), strict=True))
    assert (runs.losses > runs.entropy_floor).all()


def test_only_the_answer_is_learned():
    model = tiny_lm.TinyLM(
        tiny_lm.ModelConfig(100, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    )
    ids = tiny_lm.fact_book().sample(7, seed=3)
    with torch.no_grad():
        loss = chinchilla_runs.answer_loss(model, ids, ids)
        expected = -model(ids).log_softmax(dim=-1)[torch.arange(7), 1, ids[:, 2]].mean()
    torch.testing.assert_close(loss, expected)


def test_budgets_are_shared_by_as_many_sizes_as_the_tokens_reach():
    width, groups = chinchilla_experiment.profile_budgets([1.0, 2.0, 4.0, 8.0, 16.0], 1.0, 16.0)
    assert width == 4
    assert [first for first, _ in groups] == [0, 1]
    assert [budget for _, budget in groups] == pytest.approx([6 * math.sqrt(8 * 16), 6 * math.sqrt(16 * 32)])
    width, groups = chinchilla_experiment.profile_budgets([1.0, 2.0, 4.0, 8.0], 1.0, 4.0)
    assert width == 3
    assert groups == [(0, 24.0), (1, 48.0)]
    with pytest.raises(ValueError, match="no budget is shared by 3 of the sizes"):
        chinchilla_experiment.profile_budgets([1.0, 10.0, 100.0], 1.0, 2.0)


def test_values_between_runs_lie_on_straight_lines():
    x, y = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 3.0, 2.0])
    found = [float(chinchilla_experiment.interpolate(x, y, torch.tensor(at))) for at in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert found == [5.0, 4.0, 3.0, 2.5, 2.0]


def test_the_measured_runs_fill_the_grid_and_stay_above_the_floor(trace):
    assert len(trace.tiny_n) == 30
    assert trace.tiny_n.unique().tolist() == [972, 2264, 5808, 8880, 29024, 74256]
    assert trace.tiny_d.unique().tolist() == [2**level for level in range(15, 20)]
    assert trace.entropy_floor == pytest.approx(0.7778, abs=5e-5)
    assert (trace.tiny_loss > trace.entropy_floor).all()
    assert (trace.tiny_loss < math.log(100)).all()
    table = trace.tiny_loss.view(6, 5)
    assert (table.diff(dim=1) < 0).all()  # more tokens always help


def test_our_own_law_finds_the_floor_within_the_spread_that_it_says(trace):
    assert pytest.approx(trace.entropy_floor, rel=0.1) == trace.tiny_fit.E
    assert pytest.approx(trace.entropy_floor, rel=1e-9) == trace.tiny_fixed_fit.E
    for law, residuals, rms in (
        (trace.tiny_fit, trace.tiny_fit_residuals, trace.tiny_fit_rms),
        (trace.tiny_fixed_fit, trace.tiny_fixed_fit_residuals, trace.tiny_fixed_fit_rms),
    ):
        fitted = parametric_loss(trace.tiny_n, trace.tiny_d, law)
        torch.testing.assert_close(residuals, fitted.log() - trace.tiny_loss.log())
        assert rms == pytest.approx(math.sqrt(float((residuals**2).mean())))
        assert rms < 0.03
    free, fixed = (huber(r, 1e-3).sum() for r in (trace.tiny_fit_residuals, trace.tiny_fixed_fit_residuals))
    assert free <= fixed
    ranges = trace.tiny_ranges
    assert ranges.runs.tolist() == [18, 24, 30, 18, 24, 18]
    assert ranges.most_tokens.tolist() == [2**17, 2**18, 2**19, 2**18, 2**19, 2**19]
    assert float(ranges.floor[2]) == trace.tiny_fit.E
    assert float(ranges.floor.max() - ranges.floor.min()) > 0.01


def test_ranges_hold_three_levels_or_more_and_all_runs_between(monkeypatch):
    """The fits are replaced by the number of runs."""
    law = {"A": 1.0, "B": 1.0, "alpha": 0.5, "beta": 0.5}
    monkeypatch.setattr(
        chinchilla_experiment,
        "fit_parametric_loss",
        lambda n, d, losses: scaling_fit.FitResult(ScalingLaw(E=float(losses.sum()), **law), 0.0, True, 1, 1),
    )
    n_params, n_tokens = torch.tensor([1.0, 2.0]).repeat_interleave(4), torch.tensor([10.0, 20.0, 40.0, 80.0]).repeat(2)
    found = chinchilla_experiment.range_fits(n_params, n_tokens, torch.arange(8.0) + 1)
    assert found.fewest_tokens.tolist() == [10, 10, 20]
    assert found.most_tokens.tolist() == [40, 80, 80]
    assert found.runs.tolist() == [6, 8, 6]
    assert found.floor.tolist() == [6 + 18, 36, 9 + 21]


def test_measured_cups_have_two_sides(trace):
    points, vertices = trace.tiny_isoflop, trace.tiny_isoflop_opt
    assert points.shape == (3, 4, 2)
    for cup, vertex, compute in zip(points, vertices, trace.tiny_isoflop_compute.tolist(), strict=True):
        assert cup[0, 0] < vertex[0] < cup[-1, 0]
        lowest = int(cup[:, 1].argmin())
        assert 0 < lowest < 3
        n_params, loss = cup[0].tolist()
        n_tokens = compute / (6 * n_params)
        runs = trace.tiny_n == n_params
        above, below = (trace.tiny_loss[runs & side] for side in (trace.tiny_d <= n_tokens, trace.tiny_d >= n_tokens))
        assert below.max() <= loss <= above.min()
    assert (vertices[:, 0].diff() > 0).all()  # a larger budget wants a larger model
    assert (vertices[:, 1].diff() < 0).all()
    for curve, vertex in zip(trace.tiny_isoflop_curve, vertices, strict=True):
        assert float(curve[:, 1].min()) == pytest.approx(float(vertex[1]), abs=1e-3)


# -- the published laws on screen --------------------------------------------------------------------------------------


def test_the_landscape_and_its_frontier_are_one_law(trace):
    assert trace.law == BESIROGLU_2024
    assert float(trace.grid_loss[3, 20]) == pytest.approx(
        float(parametric_loss(10 ** float(trace.grid_log_n[3]), 10 ** float(trace.grid_log_d[20]), BESIROGLU_2024))
    )
    assert (trace.grid_loss.diff(dim=0) < 0).all()
    assert (trace.grid_loss.diff(dim=1) < 0).all()
    torch.testing.assert_close(6 * trace.frontier_n * trace.frontier_d, trace.frontier_c)
    torch.testing.assert_close(parametric_loss(trace.frontier_n, trace.frontier_d, trace.law), trace.frontier_loss)
    torch.testing.assert_close(trace.frontier_ratio, trace.frontier_d / trace.frontier_n)
    torch.testing.assert_close(trace.frontier_n_by_law["besiroglu_2024"], trace.frontier_n)
    torch.testing.assert_close(
        trace.frontier_n_by_law["hoffmann_2022"], optimal_allocation(trace.frontier_c, HOFFMANN_2022)[0]
    )
    for row in range(5):
        spent = 6 * trace.isoflop_n[row] * trace.isoflop_d[row]
        torch.testing.assert_close(spent, trace.isoflop_compute[row].expand(40))
        assert (trace.isoflop_loss[row] >= trace.isoflop_opt[row, 1]).all()
        assert float(trace.isoflop_opt[row, 1]) == pytest.approx(float(trace.isoflop_loss[row].min()), rel=1e-3)


def test_the_walk_trades_one_shortage_for_the_other_at_one_budget(trace):
    assert trace.walk_compute == pytest.approx(10**23.5)
    torch.testing.assert_close(
        6 * trace.walk_n * trace.walk_d, torch.full((60,), trace.walk_compute, dtype=torch.float64)
    )
    assert (trace.walk_size_term.diff() < 0).all()
    assert (trace.walk_data_term.diff() > 0).all()
    torch.testing.assert_close(trace.law.E + trace.walk_size_term + trace.walk_data_term, trace.walk_loss)
    crossing = int((trace.walk_size_slope > trace.walk_data_slope).sum())  # the needles balance between two steps
    assert trace.walk_n[crossing - 1] < trace.walk_best_n < trace.walk_n[crossing]
    assert trace.walk_best_loss <= float(trace.walk_loss.min())
    assert 6 * trace.walk_best_n * trace.walk_best_d == pytest.approx(trace.walk_compute)
    # a slope is what one e-fold changes
    by_hand = (trace.walk_size_term[1:] - trace.walk_size_term[:-1]) / trace.walk_n.log().diff()
    torch.testing.assert_close(-by_hand, trace.walk_size_slope[:-1], rtol=0.05, atol=0)


def test_published_models_stand_beside_the_best_use_of_their_budgets(trace):
    rows = trace.models
    assert rows.name == ("GPT-3", "Gopher", "MT-NLG", "Chinchilla")
    torch.testing.assert_close(rows.excess, rows.n_params / rows.optimal_n)
    torch.testing.assert_close(6 * rows.optimal_n * rows.optimal_d, rows.compute)
    torch.testing.assert_close(trace.law.E + rows.size_term + rows.data_term, rows.loss)
    assert (rows.loss > rows.optimal_loss).all()
    assert (rows.excess[:3] > 3).all()
    assert float(rows.excess[3]) == pytest.approx(0.957, abs=1e-3)
    assert float(rows.effective_share[3]) > 0.99 > 0.7 > float(rows.effective_share[0])
    other = chinchilla.models(HOFFMANN_2022)
    assert (other.excess > rows.excess).all()  # the first fit wants smaller models still


def test_the_two_lines_of_advice_start_together_and_part(trace):
    assert float(trace.kaplan_n[0]) == pytest.approx(4e8)
    assert float(trace.chinchilla_n[0]) == pytest.approx(4e8)
    ratio = trace.kaplan_n / trace.chinchilla_n
    assert (ratio.diff() > 0).all()
    torch.testing.assert_close(ratio, (trace.advice_compute / 1.92e19) ** 0.23)
    # from the smallest budget of 2203.15556, table 3
    assert trace.advice_compute[[0, -1]].tolist() == pytest.approx([1.92e19, 1e26])


def test_a_fit_that_stops_early_gives_other_advice(trace):
    assert trace.fit_tight["converged"] == 1
    assert trace.fit_loose["converged"] == 0
    assert trace.fit_loose["objective"] > 1.5 * trace.fit_tight["objective"]
    assert trace.fit_loose["iterations"] < trace.fit_tight["iterations"]
    true = trace.law
    assert abs(trace.fit_tight_law.beta - true.beta) < 0.05 < abs(trace.fit_loose_law.beta - true.beta)
    n_params, n_tokens, losses = chinchilla_experiment.synthetic_runs(true, 0)
    for name in ("tight", "loose"):
        law = getattr(trace, f"fit_{name}_law")
        objective = huber((parametric_loss(n_params, n_tokens, law) / losses).log(), 1e-3).sum()
        assert getattr(trace, f"fit_{name}")["objective"] == pytest.approx(float(objective), rel=1e-6)
        torch.testing.assert_close(getattr(trace, f"fit_{name}_n"), optimal_allocation(trace.frontier_c, law)[0])
    assert (len(n_params.unique()), len(n_tokens.unique()), len(losses)) == (8, 7, 56)
    noise = (losses / parametric_loss(n_params, n_tokens, true)).log()
    assert 0.005 < float(noise.std()) < 0.015


def test_the_printed_constants_are_too_coarse():
    sizes_ = [float(optimal_allocation(5.76e23, law)[0]) for law in (HOFFMANN_2022, HOFFMANN_2022_ROUNDED)]
    assert abs(sizes_[1] / sizes_[0] - 1) > 0.15
