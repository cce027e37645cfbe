import math
import time
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import trace_store, zero
from internals_math import zero_experiment as experiment
from internals_math.mixed_precision import training_bytes_per_param
from internals_math.zero import (
    STAGES,
    Config,
    ZeroTrainer,
    adam_update,
    communication_volume,
    flatten,
    max_model_size,
    measure_states,
    model_state_bytes,
    partition,
    unflatten,
)
from tests.oracles import randn

sizes = st.floats(1, 1e12)
degrees = st.integers(1, 1024)
stages = st.sampled_from(STAGES)

# -- the bill ----------------------------------------------------------------------------------------------------------


@given(sizes, degrees)
def test_one_rank_pays_sixteen_bytes_and_each_stage_cuts_one_more_state(num_params, n):
    alone = [model_state_bytes(num_params, stage, 1).total for stage in STAGES]
    assert alone == pytest.approx([16 * num_params] * 4)
    cut = [model_state_bytes(num_params, stage, n) for stage in STAGES]
    for stage, state in zip(STAGES, cut, strict=True):
        assert state.optimizer == pytest.approx(12 * num_params / (n if stage >= 1 else 1))
        assert state.grads == pytest.approx(2 * num_params / (n if stage >= 2 else 1))
        assert state.params == pytest.approx(2 * num_params / (n if stage >= 3 else 1))
        assert state.total == state.params + state.grads + state.optimizer


@given(sizes, stages, st.integers(1, 512))
def test_bytes_never_rise_with_the_stage_or_the_number_of_ranks(num_params, stage, n):
    here = model_state_bytes(num_params, stage, n).total
    assert model_state_bytes(num_params, stage, n + 1).total <= here
    if stage < 3:
        assert model_state_bytes(num_params, stage + 1, n).total <= here


def test_many_ranks_leave_four_two_and_no_bytes_per_parameter():
    limits = [model_state_bytes(1.0, stage, 10**9).total for stage in STAGES]
    assert limits == pytest.approx([16, 4, 2, 0], abs=1e-7)


@given(sizes, stages, degrees, st.floats(1, 20), st.floats(1, 8), st.floats(1, 8))
def test_the_largest_model_fills_the_memory(num_params, stage, n, optimizer, weight, gradient):
    widths = {"optimizer_bytes": optimizer, "param_bytes": weight, "grad_bytes": gradient}
    memory = model_state_bytes(num_params, stage, n, **widths).total
    assert max_model_size(memory, stage, n, **widths) == pytest.approx(num_params)


def test_sixteen_bytes_are_those_of_mixed_precision_training():
    kept = training_bytes_per_param("mixed")
    state = model_state_bytes(1, 0, 1)
    assert (state.params, state.grads) == (kept["weights"], kept["gradients"])
    assert state.optimizer == kept["master"] + kept["momentum"] + kept["variance"]


def test_padding_rounds_a_part_up_to_whole_elements():
    state = model_state_bytes(10, 3, 4, padded=True)
    assert (state.params, state.grads, state.optimizer) == (6, 6, 36)
    assert model_state_bytes(10, 1, 4, padded=True).params == 20
    assert model_state_bytes(10, 1, 4).optimizer == 30


@given(sizes, st.integers(2, 1024))
def test_only_stage_three_sends_more_and_exactly_half_as_much_again(num_params, n):
    for exact in (False, True):
        total = [communication_volume(num_params, stage, n, exact=exact)["total"] for stage in STAGES]
        assert total[0] == total[1] == total[2]
        assert total[3] / total[0] == pytest.approx(1.5, rel=1e-15)
        share = (n - 1) / n if exact else 1
        assert total[0] == pytest.approx(2 * num_params * share)


def test_accumulation_repeats_what_is_not_kept():
    once, four = ([communication_volume(100, s, 4, accumulation_steps=a)["total"] for s in STAGES] for a in (1, 4))
    assert once == [200, 200, 200, 300]
    assert four == [200, 200, 500, 1200]  # stage 2 reduces four times, stage 3 does everything four times
    assert communication_volume(100, 2, 1, exact=True)["total"] == 0


# -- one long vector ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5), st.integers(1, 6))
def test_a_flat_vector_is_cut_and_put_together_without_loss(shapes, n):
    tensors = [randn(*shape, seed=k) for k, shape in enumerate(shapes)]
    flat, kept = flatten(tensors)
    assert torch.equal(flat, torch.nn.utils.parameters_to_vector(tensors))
    assert all(torch.equal(a, b) for a, b in zip(tensors, unflatten(flat, kept), strict=True))
    parts = partition(flat, n)
    assert parts.shape == (n, math.ceil(len(flat) / n))
    assert torch.equal(parts.flatten()[: len(flat)], flat)
    assert (parts.flatten()[len(flat) :] == 0).all()


@given(st.integers(1, 50))
def test_adam_moves_every_weight_by_its_rate_however_small_the_gradient(step):
    """With a constant gradient, bias correction makes both averages exact from the first step on."""
    grad = torch.tensor([1e-3, -5.0, 200.0], dtype=torch.float64)
    m, v = (1 - 0.9 ** (step - 1)) * grad, (1 - 0.99 ** (step - 1)) * grad**2
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0}
    moved, *_ = adam_update(torch.zeros_like(grad), grad, m, v, step, **settings, weight_decay=0.0)
    torch.testing.assert_close(moved, -0.1 * grad.sign())
    decayed, *_ = adam_update(torch.ones_like(grad), grad, m, v, step, **settings, weight_decay=0.5)
    torch.testing.assert_close(decayed, 1 - 0.1 * (grad.sign() + 0.5))


# -- ranks train -------------------------------------------------------------------------------------------------------

WEIGHTS = {"w1": randn(7, 5, seed=1), "b1": randn(7, seed=2), "w2": randn(3, 7, seed=3), "spare": randn(2, seed=4)}
LAYERS = [["w1", "b1"], ["w2"], ["spare"]]  # 42, 21 and 2 weights: 4 divides none of them
SETTINGS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}


def net(weights, batch):
    """A small network; "spare" takes no part, as an expert that no token is sent to."""
    x, y = (part.to(weights["w1"].dtype) for part in batch)
    hidden = torch.tanh(x @ weights["w1"].T + weights["b1"])
    return (hidden @ weights["w2"].T - y).square().mean()


def micro_batches(n, step):
    return [(randn(4, 5, seed=100 * step + r), randn(4, 3, seed=100 * step + r + 50)) for r in range(n)]


def make(stage, n, dtype, max_grad_norm=None, layers=LAYERS, **changed):
    return ZeroTrainer(
        net, WEIGHTS, n, stage, dtype=dtype, max_grad_norm=max_grad_norm, layers=layers, **SETTINGS | changed
    )


@cache
def trained(stage, n, dtype, max_grad_norm=None, layered=True):
    trainer = make(stage, n, dtype, max_grad_norm, LAYERS if layered else None)
    records = [trainer.step(micro_batches(n, step)) for step in range(3)]
    return trainer, records


DTYPES = [torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_grad_norm", [None, 0.3])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_all_stages_give_the_same_weights_to_the_bit(n, max_grad_norm, dtype):
    base, base_records = trained(0, n, dtype, max_grad_norm)
    weights = base.gather_parameters()
    assert any(not torch.equal(weights[name], value.to(weights[name].dtype)) for name, value in WEIGHTS.items())
    for stage in (1, 2, 3):
        other, records = trained(stage, n, dtype, max_grad_norm)
        found = other.gather_parameters()
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
        assert [record.loss for record in records] == [record.loss for record in base_records]
        assert [record.grad_norm for record in records] == [record.grad_norm for record in base_records]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("max_grad_norm", [None, 0.3, 1e6])
def test_ranks_learn_what_one_process_learns_from_the_joint_batch(stage, max_grad_norm):
    trainer, records = trained(stage, 4, torch.float64, max_grad_norm)
    weights = {name: value.clone().requires_grad_() for name, value in WEIGHTS.items()}
    optimizer = torch.optim.AdamW(weights.values(), **SETTINGS)
    for step, record in enumerate(records):
        joint = [torch.cat(parts) for parts in zip(*micro_batches(4, step), strict=True)]
        optimizer.zero_grad(set_to_none=False)
        loss = net(weights, joint)
        loss.backward()
        weights["spare"].grad = torch.zeros(2, dtype=torch.float64)
        if max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(weights.values(), max_grad_norm)
            assert record.grad_norm == pytest.approx(float(norm), rel=1e-6)
        optimizer.step()
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, value in trainer.gather_parameters().items():
        torch.testing.assert_close(value, weights[name].detach(), atol=1e-9, rtol=0)


def test_one_layer_of_all_weights_is_cut_as_well():
    whole, _ = trained(3, 4, torch.float64, None, False)
    layered, _ = trained(3, 4, torch.float64)
    for name, value in layered.gather_parameters().items():
        torch.testing.assert_close(whole.gather_parameters()[name], value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_live_tensors_take_the_bytes_of_the_formula_at_every_rank(stage, dtype):
    n, width = 4, dtype.itemsize
    trainer = make(stage, n, dtype)
    trainer.step(micro_batches(n, 0))
    trainer.backward(micro_batches(n, 1))
    widths = {"param_bytes": width, "grad_bytes": width, "optimizer_bytes": 3 * max(4, width), "padded": True}
    parts = [model_state_bytes(size, stage, n, **widths) for size in (42, 21, 2)]
    expected = [sum(getattr(part, name) for part in parts) for name in ("params", "grads", "optimizer")]
    assert measure_states(trainer).tolist() == [expected] * n
    padded = sum(math.ceil(size / n) * n for size in (42, 21, 2))
    everyone = int(measure_states(trainer)[:, 2].sum())
    assert everyone == 3 * max(4, width) * (n * 65 if stage == 0 else padded)  # no copy twice from stage 1 on
    trainer.update()
    assert measure_states(trainer)[:, 1].tolist() == [0] * n  # gradients are gone


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_share_no_tensors(stage):
    trainer = make(stage, 4, torch.bfloat16)
    for _ in range(2):
        trainer.backward(micro_batches(4, 0))
        owned = [
            {t.untyped_storage().data_ptr() for kind in rank.tensors().values() for t in kind if t.numel()} - {0}
            for rank in trainer.ranks
        ]
        given = {value.untyped_storage().data_ptr() for value in WEIGHTS.values()}
        assert all(owned)
        assert len(set.union(given, *owned)) == len(given) + sum(map(len, owned))
        trainer.update()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_padding_stays_zero(stage):
    trainer, _ = trained(stage, 4, torch.float32)
    last = trainer.ranks[-1]
    for moments in (last.master, last.exp_avg, last.exp_avg_sq):
        w1_b1, w2, spare = moments.split([11, 6, 1])  # 44, 24 and 4 places for 42, 21 and 2 weights
        assert (w1_b1[-2:] == 0).all()
        assert (w2[-3:] == 0).all()
        assert (spare == 0).all()
        assert (w1_b1[:-2] != 0).all()


def chain(weights, x):
    return torch.tanh(torch.tanh(x @ weights["w1"].T) @ weights["w2"].T)


def tied(weights, x):
    """As in a language model, the first matrix is the output head too."""
    return chain(weights, x) @ weights["w1"].T


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("net", [chain, tied])
def test_ranks_send_what_the_formula_says_and_stage_three_half_as_much_again(net, n):
    weights = {"w1": randn(8, 4, seed=1), "w2": randn(4, 8, seed=3)}
    sent = []
    for stage in STAGES:
        settings = {"lr": 0.1, "layers": [["w1"], ["w2"]], "dtype": torch.float32}
        trainer = ZeroTrainer(lambda w, x: net(w, x).square().mean(), weights, n, stage, **settings)
        sent.append(trainer.step([randn(2, 4, seed=r).float() for r in range(n)]).elements_sent.tolist())
    exact = [int(communication_volume(64, stage, n, exact=True)["total"]) for stage in STAGES]
    assert sent[:3] == [[exact[0]] * n] * 3
    # Without the tie, the last matrix is still there when backward begins, and backward does not need the first.
    assert sent[3] == [exact[3] if net is tied else exact[0]] * n


def test_the_sixteen_bit_weights_are_those_of_the_master_copy():
    for stage in (0, 1, 2):
        trainer, _ = trained(stage, 2, torch.bfloat16)
        for rank in trainer.ranks:
            values = torch.cat([layer.values for layer in rank.layers])
            found = [trainer.gather_parameters()[name].flatten() for names in LAYERS for name in names]
            assert torch.equal(values, torch.cat(found).bfloat16())
    trainer, _ = trained(3, 2, torch.bfloat16)
    for rank in trainer.ranks:
        assert torch.equal(torch.cat([layer.shard for layer in rank.layers]), rank.master.bfloat16())


def test_small_steps_add_up_in_the_master_copy():
    """A step of 1e-4 is below half a unit of a bfloat16 near 1; sixty of them are not."""
    trainer = ZeroTrainer(lambda w, _: w["w"].sum().float(), {"w": torch.ones(2)}, 2, 1, lr=1e-4)
    trainer.step([None, None])
    assert (trainer.ranks[0].layers[0].values == 1).all()
    for _ in range(59):
        trainer.step([None, None])
    assert (trainer.ranks[0].layers[0].values < 1).all()
    torch.testing.assert_close(trainer.gather_parameters()["w"], torch.full((2,), 1 - 60e-4), atol=4e-6, rtol=0)


def test_stage_three_holds_one_whole_layer_at_a_time_and_none_in_between():
    trainer, records = trained(3, 4, torch.bfloat16)
    for rank in trainer.ranks:
        assert not any(layer.is_here for layer in rank.layers)
    for record in records:
        for rank in range(4):
            timeline = record.memory_timeline(rank)
            borrowed = timeline[:, 0] - 2 * (11 + 6 + 1)
            assert int(borrowed.max()) == 2 * 44  # the largest layer, padded
            assert borrowed[-1] == 0
            assert set(borrowed.tolist()) <= {0, 2 * 44, 2 * 24}


def test_events_follow_the_layers_down_and_up_again():
    events = trained(3, 2, torch.bfloat16)[1][1].events
    kinds = [(event.kind, event.layer) for event in events[0]]
    assert kinds == [
        ("gather", 0), ("forward", 0), ("release", 0), ("gather", 1), ("forward", 1),
        ("backward", 1), ("gradient", 1), ("reduce_scatter", 1), ("release", 1),
        ("gradient", 0), ("reduce_scatter", 0),
        ("gradient", 2), ("reduce_scatter", 2), ("update", -1),
    ]  # fmt: skip
    assert [(event.kind, event.layer) for event in events[1]] == kinds


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, ["all_reduce"] * 3),
        (1, ["reduce_scatter"] * 3 + ["all_gather"] * 3),
        (2, ["reduce_scatter"] * 3 + ["all_gather"] * 3),
    ],
)
def test_collectives_of_a_step_are_those_of_the_stage(stage, expected):
    record = trained(stage, 2, torch.bfloat16)[1][1]
    assert record.collectives(0) == record.collectives(1) == expected
    gradient_bytes = record.memory_timeline(0)[:, 1]
    assert int(gradient_bytes.max()) == 2 * (65 if stage < 2 else 42 + 11)


def test_a_rank_that_fails_stops_the_others_at_once():
    def wrong(weights, batch):
        if batch == 1:
            raise RuntimeError("no such batch")
        return weights["w"].sum()

    trainer = ZeroTrainer(wrong, {"w": torch.ones(4)}, 2, 3, lr=0.1)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="no such batch"):
        trainer.step([0, 1])
    assert time.monotonic() - start < 30


# -- refused input -----------------------------------------------------------------------------------------------------

WRONG = [
    (lambda: model_state_bytes(1, 4, 2), "stage must be one of 0, 1, 2, 3, got 4"),
    (lambda: model_state_bytes(1, 1, 0), "dp_degree must be at least 1, got 0"),
    (lambda: model_state_bytes(-1, 1, 2), "num_params must be at least 0, got -1"),
    (lambda: model_state_bytes(1, 1, 2, grad_bytes=-2), "grad_bytes must be at least 0, got -2"),
    (lambda: max_model_size(-1, 1, 2), "memory_bytes must be at least 0, got -1"),
    (lambda: max_model_size(1, 5, 2), "stage must be one of 0, 1, 2, 3, got 5"),
    (lambda: communication_volume(1, 1, 2, accumulation_steps=0), "accumulation_steps must be .* got 0 and 1"),
    (lambda: communication_volume(-1, 1, 2), "num_params at least 0, got 1 and -1"),
    (lambda: communication_volume(1, -1, 2), "stage must be one of 0, 1, 2, 3, got -1"),
    (lambda: partition(torch.ones(3), 0), "dp_degree must be at least 1, got 0"),
    (lambda: flatten([]), "flatten needs at least one tensor"),
    (lambda: unflatten(torch.ones(3), [torch.Size([2])]), "shapes with 2 values do not fit a row of 3"),
    (lambda: adam_update(*[torch.ones(1)] * 4, 0, **SETTINGS), "step must be at least 1, got 0"),
    (lambda: make(4, 2, torch.float32), "stage must be one of 0, 1, 2, 3, got 4"),
    (lambda: make(1, 0, torch.float32), "dp_degree must be at least 1, got 0"),
    (lambda: make(1, 2, torch.float32, layers=[["w1"]]), "layers must name each of the 4 weights once"),
    (lambda: ZeroTrainer(net, {}, 2, 1, lr=0.1), "layers must name each of the 0 weights once"),
    (lambda: make(1, 2, torch.float32).step([None]), "one batch for each of 2 ranks, got 1"),
    (lambda: Config(dp_degree=3), "dp_degree must be one of 2, 4, 8, got 3"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    """The whole trace after very few steps."""
    return trace_store.get(zero, Config(dp_degree=2, train_steps=2, gpus=16, model_billion=1.0))


def test_the_tiny_lm_learns_the_same_at_every_stage(quick):
    assert {quick.max_abs_diff_weights[f"stage {s}"] for s in (1, 2, 3)} == {0.0}
    assert {quick.max_abs_diff_loss[f"stage {s}"] for s in (1, 2, 3)} == {0.0}
    assert 0 < quick.max_abs_diff_loss["single device"] < 0.01
    assert 0 < quick.max_abs_diff_loss["float32"] < 0.02
    assert quick.max_abs_diff_weights["single device"] > 0  # other roundings, which Adam blows up
    assert quick.max_abs_update <= 2.5 * experiment.LEARNING_RATE
    for curve in (*quick.loss_curves.values(), quick.loss_single_device, quick.loss_float32):
        assert curve[1] < curve[0]


def test_the_tiny_lm_takes_the_bytes_and_the_traffic_of_the_formulas(quick):
    assert torch.equal(quick.bytes_measured, quick.bytes_expected[:, None].expand(4, 2, 3))
    total = [model_state_bytes(quick.num_params, stage, 2).total for stage in STAGES]
    assert quick.bytes_expected.sum(dim=1).tolist() == total  # no padding: 2 divides every layer
    assert quick.num_params == quick.num_params_padded == int(quick.layer_sizes.sum()) == 43_744
    assert quick.elements_sent == {name: int(value) for name, value in quick.volume_formula.items()}
    assert list(quick.elements_sent_ratio.values()) == [1, 1, 1, 1.5]


def test_rank_0_borrows_one_layer_at_a_time(quick):
    assert int(quick.memory_borrowed["stage 3"].max()) == 2 * int(quick.layer_sizes.max())
    assert all((quick.memory_borrowed[f"stage {s}"] == 0).all() for s in (0, 1, 2))
    events, layers = quick.timeline_events["stage 3"], quick.timeline_layers["stage 3"].tolist()
    gathers = [layer for event, layer in zip(events, layers, strict=True) if event == "gather"]
    names = [quick.layer_names[layer] for layer in gathers]
    # The embedding is the output head too, and is still there when backward begins.
    down = ["embedding", "layer 0", "layer 1", "layer 2", "norm", "embedding"]
    assert names == [*down, "norm", "layer 2", "layer 1", "layer 0"]
    assert len(quick.gantt.event) == 2 * len(quick.timeline_events["stage 3"])
    assert quick.gantt.event[: len(quick.gantt.event) // 2] == quick.timeline_events["stage 3"]
    assert int(quick.gantt.elements_sent[quick.gantt.rank == 1].sum()) == quick.elements_sent["stage 3"]
    assert quick.gantt.order.tolist() == 2 * list(range(len(quick.gantt.event) // 2))


def test_owners_are_drawn_where_they_own(quick):
    assert quick.partition_owner.unique().tolist() == [0, 1]
    counts = quick.partition_owner.flatten().bincount()
    assert abs(int(counts[0] - counts[1])) <= 2 * len(quick.layer_sizes)
    assert quick.partition_owner.flatten()[[0, 83, 84]].tolist() == [0, 1, 0]  # the embedding takes the first 84 cells
    assert quick.crop_owner.unique().tolist() == [0, 1]
    weight = experiment.first_weights(0)[quick.crop_name]
    assert any(
        torch.equal(weight[r : r + 12, c : c + 12], quick.weight_crop)
        for r in range(weight.shape[0] - 11)
        for c in range(weight.shape[1] - 11)
    )


def test_the_ring_sums_a_real_gradient(quick):
    states = quick.ring_values
    torch.testing.assert_close(states[-1], states[0].sum(dim=0).expand(2, 2))
    torch.testing.assert_close(quick.ring_mean, states[0].mean(dim=0))
    assert quick.ring_complete.sum(dim=(1, 2)).tolist() == [0, 2, 4]
    assert quick.ring_sent.tolist() == [0, 6688, 13376]
    for messages, adds in ((quick.ring_schedule_rs, True), (quick.ring_schedule_ag, False)):
        assert messages.elements_sent(2).tolist() == [6688, 6688]
        assert (messages.adds == adds).all()
    grads = []
    for ids in experiment.batches(quick.config)[0]:
        weights = {name: value.bfloat16().requires_grad_() for name, value in experiment.first_weights(0).items()}
        experiment.loss_fn(weights, ids).backward()
        grads.append(torch.cat([weights[name].grad.flatten() for name in experiment.layers()["layer 0"]]).float())
    mean = torch.stack(grads).mean(dim=0)
    largest = [int(half.abs().argmax()) for half in mean.split(6688)]
    assert quick.ring_weights.tolist() == [largest[0], 6688 + largest[1]]
    torch.testing.assert_close(quick.ring_mean, mean[quick.ring_weights])


def test_the_large_models_bill_is_the_formula(quick):
    state = model_state_bytes(1e9, 2, 16)
    assert quick.bytes_formula[2].tolist() == [state.params, state.grads, state.optimizer]
    torch.testing.assert_close(quick.total_gigabytes, quick.bytes_formula.sum(dim=1) / 1e9)
    torch.testing.assert_close(quick.total_bytes, quick.total_gigabytes * 1e9)
    assert quick.bytes_per_param.tolist() == list(training_bytes_per_param("mixed").values())
    assert quick.scaling["stage 1"][4] == model_state_bytes(1e9, 1, 16).total
    assert quick.scaling_gpus.tolist() == [2**k for k in range(11)]
    assert quick.trillion_fits_at == 512
    assert quick.scaling_trillion_gigabytes["stage 3"][-2:].tolist() == [31.25, 15.625]
    assert quick.trillion_total_terabytes == 16
    for stage, kept in enumerate((16, 4, 2, 0)):  # bytes a parameter that every GPU holds; the others are shared out
        expected = [1e12 * (kept + (16 - kept) / 2**k) for k in range(11)]
        assert quick.scaling_trillion[f"stage {stage}"].tolist() == pytest.approx(expected)
        assert quick.scaling[f"stage {stage}"].tolist() == pytest.approx([n / 1e3 for n in expected])
    torch.testing.assert_close(quick.fit_table_billion * 1e9, quick.fit_table)
    assert quick.fit_table.tolist() == pytest.approx([max_model_size(32e9, stage, 16) for stage in STAGES])
    assert (quick.device_bytes, quick.device_gigabytes) == (32e9, 32)


def test_micro_batches_are_packed_and_differ_from_rank_to_rank():
    config = Config(dp_degree=4, train_steps=3, seed=5)
    rows = torch.stack([torch.stack(parts) for parts in experiment.batches(config)]).flatten(0, 2)
    assert rows.shape == (3 * 4 * experiment.ROWS, experiment.ROW_LENGTH)
    assert (rows != 0).all()  # no padding: every rank has as many tokens
    assert len(rows.unique(dim=0)) == len(rows)
    assert not torch.equal(rows[:4], torch.cat(experiment.batches(Config(dp_degree=4, train_steps=1))[0])[:4])


def test_a_trace_survives_the_store(quick, tmp_path):
    quick.save(tmp_path / "trace.safetensors")
    assert zero.Trace.load(tmp_path / "trace.safetensors").hash == quick.hash


@pytest.mark.slow
def test_the_default_runs_tell_what_the_video_says():
    trace = trace_store.get(zero)
    assert max(trace.max_abs_diff_weights[f"stage {stage}"] for stage in (1, 2, 3)) == 0
    assert float(trace.loss_single_device[-1]) < float(trace.loss_single_device[0]) - 1.5
    assert trace.max_abs_diff_loss["single device"] < 0.02
    assert trace.elements_sent_ratio["stage 3"] == 1.5
