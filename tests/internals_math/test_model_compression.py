import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import model_compression, tiny_lm, trace_store
from internals_math import model_compression_experiment as experiment
from internals_math.model_compression import (
    Config,
    apply_mask,
    cubic_sparsity,
    distillation_grad,
    distillation_loss,
    entropy_bits,
    global_magnitude_masks,
    huffman_code_lengths,
    huffman_mean_length,
    kmeans_1d,
    magnitude_mask,
    prune_and_finetune,
    random_mask,
    soften,
    sparse_bits,
    sparsity,
    wanda_mask,
    weight_sharing_rate,
)
from internals_math.next_token import next_token_loss
from tests.oracles import randn

seeds = st.integers(0, 10_000)
shares = st.floats(0, 0.99)
temperatures = st.floats(0.5, 20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_masks(n, gone):
    """Every mask of n entries that removes so many."""
    masks = torch.ones(math.comb(n, gone), n, dtype=torch.bool)
    for mask, removed in zip(masks, combinations(range(n), gone), strict=True):
        mask[list(removed)] = False
    return masks


# -- masks -------------------------------------------------------------------------------------------------------------


@given(seeds, shares)
def test_exactly_the_rounded_number_of_weights_goes(seed, share):
    weight = randn(7, 9, seed=seed)
    gone = round(share * 63)
    for mask in (
        magnitude_mask(weight, share),
        random_mask(weight, share, generator(seed)),
        global_magnitude_masks({"only": weight}, share)["only"],
    ):
        assert int((~mask).sum()) == gone
        assert sparsity(mask) == gone / 63
        assert int((apply_mask(weight, mask) == 0).sum()) == gone
    assert ((~wanda_mask(weight, randn(5, 9, seed=seed + 1), share)).sum(dim=1) == round(share * 9)).all()


@given(seeds, shares, shares)
def test_pruning_further_removes_what_was_removed_before(seed, one, other):
    weight, x = randn(6, 8, seed=seed), randn(5, 8, seed=seed + 1)
    less, more = sorted((one, other))
    for mask in (magnitude_mask, lambda w, s: wanda_mask(w, x, s), lambda w, s: random_mask(w, s, generator(seed))):
        assert (mask(weight, less) | ~mask(weight, more)).all()


def test_of_equal_weights_the_first_goes():
    weight = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 2.0, 1.0]])
    assert magnitude_mask(weight, 0.5).tolist() == [[False, False, False], [True, True, True]]
    masks = global_magnitude_masks({"first": torch.ones(2), "second": torch.ones(2)}, 0.5)
    assert [masks[name].tolist() for name in ("first", "second")] == [[False, False], [True, True]]
    assert wanda_mask(torch.ones(2, 4), torch.ones(1, 4), 0.5).tolist() == [[False, False, True, True]] * 2


@given(seeds)
def test_one_threshold_for_all_tensors_gives_each_its_own_share(seed):
    weights = {"small": 0.1 * randn(5, 8, seed=seed), "large": randn(8, 5, seed=seed + 1)}
    masks = global_magnitude_masks(weights, 0.5)
    assert sum(int((~mask).sum()) for mask in masks.values()) == 40
    assert sparsity(masks["small"]) > sparsity(masks["large"])
    gone = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    kept = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    assert gone.max() <= kept.min()


@given(seeds, st.floats(0.01, 100))
def test_the_size_of_a_layer_matters_only_to_the_global_threshold(seed, scale):
    first, second = randn(5, 8, seed=seed), randn(5, 8, seed=seed + 1)
    assert torch.equal(magnitude_mask(scale * first, 0.5), magnitude_mask(first, 0.5))
    together = global_magnitude_masks({"first": 10 + first.abs(), "second": second}, 0.25)
    assert together["first"].all()
    assert int((~together["second"]).sum()) == 20


@given(seeds, st.integers(1, 5))
def test_no_mask_of_its_size_leaves_the_weight_closer_to_what_it_was(seed, gone):
    weight = randn(2, 4, seed=seed)
    best = (weight - apply_mask(weight, magnitude_mask(weight, gone / 8))).square().sum()
    for mask in all_masks(8, gone):
        assert best <= (weight.flatten()[~mask]).square().sum() + 1e-12


@given(seeds, shares)
def test_equally_loud_inputs_make_wanda_magnitude_pruning_of_each_row(seed, share):
    weight = randn(5, 8, seed=seed)
    for x in (3 * torch.eye(8, dtype=torch.float64), torch.tensor([[1.0, -1.0] * 4], dtype=torch.float64)):
        mask = wanda_mask(weight, x, share)
        assert torch.equal(mask, torch.stack([magnitude_mask(row, share) for row in weight]))


@given(seeds, st.integers(1, 5))
def test_on_orthogonal_inputs_wanda_changes_the_output_least(seed, gone):
    inputs = 6
    loudness = 1 + randn(inputs, seed=seed + 1).abs()
    x = torch.linalg.qr(randn(9, inputs, seed=seed))[0] * loudness
    weight = randn(1, inputs, seed=seed + 2)
    best = (x @ (weight - apply_mask(weight, wanda_mask(weight, x, gone / inputs))).T).norm()
    changes = torch.stack([weight[0] * ~mask for mask in all_masks(inputs, gone)])
    assert best <= (x @ changes.T).norm(dim=0).min() + 1e-12


def test_a_loud_input_saves_a_smaller_weight():
    weight = torch.tensor([[0.5, 0.3]])
    assert wanda_mask(weight, torch.tensor([[1.0, 2.0], [0.0, 2.0]]), 0.5).tolist() == [[False, True]]
    assert magnitude_mask(weight, 0.5).tolist() == [[True, False]]


def test_random_masks_differ_by_seed_and_not_otherwise():
    weight = torch.ones(20, 20)
    first, again, other = (random_mask(weight, 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.3 < float((first & other).sum() / first.sum()) < 0.7


# -- the schedule ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 50), st.floats(0, 0.5), st.floats(0.5, 0.98))
def test_the_schedule_rises_from_start_to_end_ever_more_slowly(t0, n, dt, start, end):
    s = [cubic_sparsity(t0 + k * dt, t0, n, dt, start, end) for k in range(n + 1)]
    assert s[0] == pytest.approx(start)
    assert s[-1] == end
    steps = [after - before for before, after in pairwise(s)]
    assert all(step >= -1e-12 for step in steps)
    assert all(after <= before + 1e-12 for before, after in pairwise(steps))
    assert cubic_sparsity(t0 - 1, t0, n, dt, start, end) == pytest.approx(start)
    assert cubic_sparsity(t0 + n * dt + 1, t0, n, dt, start, end) == end


def test_a_quarter_of_the_way_the_schedule_has_done_more_than_half():
    assert cubic_sparsity(10, 5, 4, 5, 0.2, 0.84) == pytest.approx(0.84 - 0.64 * 0.75**3)


# -- distillation ------------------------------------------------------------------------------------------------------


def pair(seed, *shape):
    return 3 * randn(*shape, seed=seed), 3 * randn(*shape, seed=seed + 1)


@given(seeds, temperatures, st.floats(1, 5))
def test_a_higher_temperature_never_lowers_the_entropy(seed, temperature, factor):
    logits = 3 * randn(6, seed=seed)
    entropy = [-torch.xlogy(p, p).sum() for p in (soften(logits, temperature), soften(logits, temperature * factor))]
    assert entropy[1] >= entropy[0] - 1e-12
    torch.testing.assert_close(soften(logits, 1e9), torch.full((6,), 1 / 6, dtype=torch.float64))
    cold = soften(logits, 1e-3)
    assert int(cold.argmax()) == int(logits.argmax())
    torch.testing.assert_close(soften(logits, 1.0), logits.softmax(dim=-1))


@given(seeds, temperatures)
def test_nothing_is_left_to_learn_from_a_teacher_that_agrees(seed, temperature):
    z, _ = pair(seed, 4, 6)
    z.requires_grad_()
    loss = distillation_loss(z, z.detach() + 2.0, torch.zeros(4, dtype=torch.long), temperature, 1.0)
    assert loss.soft.abs() < 1e-9  # adding a constant to all logits changes nothing
    assert torch.autograd.grad(loss.total, z)[0].abs().max() < 1e-9
    assert distillation_grad(z.detach(), z.detach(), temperature).abs().max() == 0


@given(seeds, temperatures)
def test_the_gradient_is_the_gap_of_probabilities_over_the_temperature(seed, temperature):
    z, v = pair(seed, 3, 6)
    expected = ((z / temperature).softmax(-1) - (v / temperature).softmax(-1)) / temperature
    torch.testing.assert_close(distillation_grad(z, v, temperature), expected)
    leaf = z.clone().requires_grad_()
    soft = distillation_loss(leaf, v, torch.zeros(3, dtype=torch.long), temperature, 1.0).soft
    published = temperature * (soften(z, temperature) - soften(v, temperature)) / 3  # T² times the KL's, 3 tokens
    torch.testing.assert_close(torch.autograd.grad(soft, leaf)[0], published, atol=1e-6, rtol=0)


@given(seeds)
def test_a_very_hot_student_matches_logits(seed):
    z, v = pair(seed, 8)
    z, v = z - z.mean(), v - v.mean()
    torch.testing.assert_close(8 * 1000**2 * distillation_grad(z, v, 1000.0), z - v, rtol=0.01, atol=0.03)


@given(seeds, temperatures, st.floats(0, 1))
def test_alpha_mixes_teacher_and_labels(seed, temperature, alpha):
    z, v = pair(seed, 2, 4, 6)
    targets = torch.randint(0, 6, (2, 4), generator=generator(seed))
    hard = torch.nn.functional.cross_entropy(z.flatten(0, 1), targets.flatten())
    loss = distillation_loss(z, v, targets, temperature, alpha)
    torch.testing.assert_close(loss.total, alpha * loss.soft + (1 - alpha) * hard)
    torch.testing.assert_close(distillation_loss(z, v, targets, temperature, 0.0).total, hard)
    torch.testing.assert_close(distillation_loss(z, v, targets, temperature, 1.0).total, loss.soft)


def test_ignored_positions_teach_nothing():
    z, v = pair(0, 3, 6)
    targets = torch.tensor([1, -100, 4])
    kept = distillation_loss(z[[0, 2]], v[[0, 2]], targets[[0, 2]], 2.0, 0.5)
    loss = distillation_loss(z, v, targets, 2.0, 0.5)
    torch.testing.assert_close([loss.total, loss.soft, loss.hard], [kept.total, kept.soft, kept.hard])
    other = distillation_loss(z, v, torch.tensor([1, 0, 4]), 2.0, 0.5, ignore_index=0)
    torch.testing.assert_close(other.total, kept.total)


def test_the_teacher_comes_first_in_the_divergence():
    """A word that the teacher finds likely and the student does not costs more than the other way round."""
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    target = torch.zeros(1, dtype=torch.long)
    assert distillation_loss(sure, unsure, target, 1.0, 1.0).soft > 3
    assert distillation_loss(unsure, sure, target, 1.0, 1.0).soft < 0.7
    hopeless = torch.tensor([[500.0, 0.0]])  # the student's probability underflows to 0, its logarithm does not
    assert float(distillation_loss(hopeless, unsure, target, 1.0, 1.0).soft) == pytest.approx(250 - math.log(2))


# -- storage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seeds, st.integers(1, 12), st.sampled_from(["linear", "density"]))
def test_every_round_of_k_means_brings_values_closer_to_their_centroids(seed, k, init):
    values = randn(40, seed=seed)
    inertia = []
    for iters in range(6):
        centroids, assignment = kmeans_1d(values, k, iters, init)
        assert (centroids.diff() >= 0).all()
        nearest = (values[:, None] - centroids).abs().min(dim=1).values
        torch.testing.assert_close((values - centroids[assignment]).abs(), nearest)
        inertia.append(float((values - centroids[assignment]).square().sum()))
    assert all(after <= before + 1e-12 for before, after in pairwise(inertia))


@settings(max_examples=30)
@given(seeds, st.integers(1, 12))
def test_as_many_centroids_as_values_reproduce_them(seed, n):
    values = randn(n, seed=seed) ** 3  # far from even: many clusters start empty
    centroids, assignment = kmeans_1d(values, n, iters=4 * n)
    torch.testing.assert_close(centroids[assignment], values)


def test_a_start_that_is_even_on_the_line_keeps_the_rare_large_weights():
    values = torch.cat([0.1 * randn(500, seed=0), torch.tensor([3.0, -3.0], dtype=torch.float64)])
    line, mass = (kmeans_1d(values, 8, 0, init)[0] for init in ("linear", "density"))
    torch.testing.assert_close(line, torch.linspace(-3, 3, 8, dtype=torch.float64))
    assert int((mass.abs() < 0.3).sum()) == 6
    errors = [(values - c[a]).abs()[-2:].max() for c, a in (kmeans_1d(values, 8, 20), kmeans_1d(values, 8, 0))]
    assert errors[0] < 1e-9
    assert errors[1] == 0


def test_one_shared_value_is_the_mean_and_takes_no_index():
    values = randn(9, seed=1)
    centroids, assignment = kmeans_1d(values, 1, 1)
    torch.testing.assert_close(centroids[0], values.mean())
    assert (assignment == 0).all()
    assert weight_sharing_rate(100, 16, 1) == 100


counts_lists = st.lists(st.integers(0, 200), min_size=2, max_size=20).filter(
    lambda counts: sum(count > 0 for count in counts) >= 2
)


@settings(max_examples=30)
@given(counts_lists)
def test_huffman_words_fill_the_tree_and_come_within_a_bit_of_the_entropy(numbers):
    counts = torch.tensor(numbers)
    lengths = huffman_code_lengths(counts)
    assert ((lengths > 0) == (counts > 0)).all()
    assert sum(2.0 ** -int(length) for length in lengths if length > 0) == 1
    assert entropy_bits(counts) - 1e-9 <= huffman_mean_length(counts) < entropy_bits(counts) + 1
    for i, j in combinations(range(len(numbers)), 2):
        if counts[i] > counts[j] > 0:
            assert lengths[i] <= lengths[j]  # a common symbol never has the longer word


def test_a_tree_made_by_hand_has_these_word_lengths():
    assert huffman_code_lengths(torch.tensor([1, 2, 4, 8])).tolist() == [3, 3, 2, 1]
    assert huffman_code_lengths(torch.tensor([0, 5, 0])).tolist() == [0, 0, 0]
    # Lengths 1, 2, 3, 4, 4 would be as good on average; of equal weights a symbol is joined first.
    assert huffman_code_lengths(torch.tensor([4, 2, 2, 1, 1])).tolist() == [2, 2, 2, 3, 3]
    assert huffman_mean_length(torch.tensor([1, 2, 4, 8])) == pytest.approx((3 + 6 + 8 + 8) / 15)
    assert entropy_bits(torch.tensor([4, 4, 4, 4])) == pytest.approx(2)


@given(seeds, shares, st.integers(2, 32))
def test_a_bit_for_each_position_pays_when_few_enough_weights_are_left(seed, share, value_bits):
    mask = random_mask(torch.empty(64), share, generator(seed))
    kept = int(mask.sum())
    assert sparse_bits(mask, value_bits, "dense") == 64 * value_bits
    assert sparse_bits(mask, value_bits, "bitmask") == 64 + kept * value_bits
    smaller = sparse_bits(mask, value_bits, "bitmask") < sparse_bits(mask, value_bits, "dense")
    assert smaller == (kept / 64 < 1 - 1 / value_bits)


def test_relative_indices_are_counted_as_in_the_papers_figure():
    """Figure 2 of 1510.00149: weights at 1, 4 and 15, three bits for a distance: one padding zero."""
    mask = torch.zeros(16, dtype=torch.bool)
    mask[[1, 4, 15]] = True
    assert sparse_bits(mask, 5, "relative", index_bits=3) == 4 * (5 + 3)
    assert sparse_bits(mask, 5, "relative", index_bits=4) == 3 * (5 + 4)
    assert sparse_bits(mask, 5, "relative", index_bits=2) == 6 * (5 + 2)  # distances 2, 3 and 3 + 3 + 3 + 2
    assert sparse_bits(torch.zeros(4, dtype=torch.bool), 5, "relative") == 0
    assert sparse_bits(mask.view(4, 4), 5, "csr", index_bits=2) == 3 * (5 + 2) + 5 * 2


# -- refused input -----------------------------------------------------------------------------------------------------

W, X, MASK = torch.ones(2, 3), torch.ones(4, 3), torch.ones(2, 3, dtype=torch.bool)
Z, Y = torch.ones(2, 5), torch.zeros(2, dtype=torch.long)
FLAGS = torch.ones(3, dtype=torch.bool)
WRONG = [
    (lambda: magnitude_mask(W, 1.0), r"sparsity must be in \[0, 1\), got 1.0"),
    (lambda: magnitude_mask(W, -0.1), r"sparsity must be in \[0, 1\), got -0.1"),
    (lambda: magnitude_mask(W, math.nan), "got nan"),
    (lambda: global_magnitude_masks({"w": W}, 1.0), r"sparsity must be in \[0, 1\), got 1.0"),
    (lambda: global_magnitude_masks({}, 0.5), "needs at least one tensor, got none"),
    (lambda: wanda_mask(W, X, 1.5), r"sparsity must be in \[0, 1\), got 1.5"),
    (lambda: wanda_mask(W, torch.ones(4, 2), 0.5), "x has 2 input features, but the weight 3"),
    (lambda: random_mask(W, 2.0, generator()), r"sparsity must be in \[0, 1\), got 2.0"),
    (lambda: apply_mask(W, MASK.T), r"shape \(2, 3\), got torch.bool \(3, 2\)"),
    (lambda: apply_mask(W, W), r"must be boolean .* got torch.float32"),
    (lambda: sparsity(MASK[:0]), "an empty mask has no sparsity"),
    (lambda: cubic_sparsity(1, 0, 0, 5, 0.0, 0.9), "n dt must be above 0, got n 0, dt 5"),
    (lambda: cubic_sparsity(1, 0, 5, -1, 0.0, 0.9), "got n 5, dt -1"),
    (lambda: cubic_sparsity(1, 0, 5, 1, 0.9, 0.5), r"s_final must be at least s_initial \(0.9\), got 0.5"),
    (lambda: cubic_sparsity(1, 0, 5, 1, -0.1, 0.5), "got -0.1"),
    (lambda: cubic_sparsity(1, 0, 5, 1, 0.0, 1.0), "got 1.0"),
    (lambda: soften(Z, 0.0), "temperature must be > 0 .*, got 0.0"),
    (lambda: distillation_loss(Z, Z, Y, -1.0, 0.5), "temperature must be > 0 .*, got -1.0"),
    (lambda: distillation_loss(Z, Z, Y, 1.0, 1.1), "alpha must be in 0..1, got 1.1"),
    (lambda: distillation_loss(Z, Z, Y, 1.0, -0.1), "alpha must be in 0..1, got -0.1"),
    (lambda: distillation_loss(Z, Z[:1], Y, 1.0, 0.5), r"one shape, got \(2, 5\) and \(1, 5\)"),
    (lambda: distillation_loss(Z, Z, Y[:1], 1.0, 0.5), r"each of \(2,\) positions, got \(1,\)"),
    (lambda: distillation_loss(Z, Z, Y - 100, 1.0, 0.5), "every target is ignored"),
    (lambda: distillation_grad(Z, Z.T, 1.0), r"one shape, got \(2, 5\) and \(5, 2\)"),
    (lambda: distillation_grad(Z, Z, 0.0), "temperature must be > 0"),
    (lambda: kmeans_1d(torch.ones(3), 0, 1), r"k must be in 1..3 .*, got 0"),
    (lambda: kmeans_1d(torch.ones(3), 4, 1), r"k must be in 1..3 .*, got 4"),
    (lambda: kmeans_1d(torch.ones(3), 2, -1), "iters must be at least 0, got -1"),
    (lambda: kmeans_1d(torch.ones(3), 2, 1, "forgy"), "init must be linear or density, got 'forgy'"),
    (lambda: weight_sharing_rate(16, 32, 17), "got n 16, b 32, k 17"),
    (lambda: weight_sharing_rate(16, 32, 0), "got n 16, b 32, k 0"),
    (lambda: weight_sharing_rate(0, 32, 1), "got n 0"),
    (lambda: weight_sharing_rate(16, 0, 1), "b 0"),
    (lambda: huffman_code_lengths(torch.tensor([1, -1])), r"counts must be at least 0 .* got \[1, -1\]"),
    (lambda: huffman_mean_length(torch.tensor([0, 0])), r"one above 0, got \[0, 0\]"),
    (lambda: entropy_bits(torch.tensor([2, -1])), r"counts must be at least 0 .* got \[2, -1\]"),
    (lambda: sparse_bits(MASK, 8, "coo"), "format must be one of dense, bitmask, csr, relative, got 'coo'"),
    (lambda: sparse_bits(MASK, -1, "dense"), "value_bits must be at least 0 .* got -1"),
    (lambda: sparse_bits(MASK, 8, "relative", 0), "index_bits at least 1, got 8 and 0"),
    (lambda: sparse_bits(FLAGS, 8, "csr"), r"csr needs rows and columns, got a mask of shape \(3,\)"),
    (lambda: sparse_bits(MASK, 8, "csr", 2), r"must hold column 2 and pointer 6, got 2 bits \(up to 3\)"),
    (lambda: Config(student_dim=15), "student_dim must be one of 8, 12, 16, 20, 24, got 15"),
    (lambda: Config(sparsity=0.99), "sparsity must be in 0.1..0.98, got 0.99"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- masks and an optimizer --------------------------------------------------------------------------------------------


def test_masked_weights_stay_zero_though_momentum_would_revive_them():
    weight = torch.nn.Parameter(randn(6, 8, seed=0))
    pruned = experiment.MaskedWeights({"w": weight})
    optimizer = torch.optim.Adam([weight], lr=0.1)
    targets = randn(6, 8, seed=1)

    def step():
        optimizer.zero_grad()
        (weight - targets).square().sum().backward()
        optimizer.step()

    for _ in range(5):
        step()
        assert pruned.apply() == 0  # nothing is masked yet
    pruned.prune(0.5)
    assert int((weight == 0).sum()) == 24
    gone, revived = ~pruned.masks["w"], []
    kept_before = weight.detach()[~gone].clone()
    for _ in range(30):
        step()
        assert (weight.grad[gone] == 0).all()
        assert (weight.grad[~gone] != 0).all()
        revived.append(pruned.apply())
        assert (weight[gone] == 0).all()
    assert revived[0] == 24  # without the mask, all of them would be back after one step
    assert (weight.detach()[~gone] != kept_before).all()
    assert len(pruned.survivors()) == 24
    pruned.prune(0.75)
    assert (~pruned.masks["w"])[gone].all()  # what was removed stays removed


@pytest.fixture(scope="module")
def short():
    """A run of 12 steps with 3 prunings."""
    return prune_and_finetune(Config(sparsity=0.5, prune_events=3, finetune_steps=12))


def test_a_run_follows_the_schedule_and_ends_with_exactly_its_zeros(short):
    assert short.event_steps == [0, 3, 5]
    assert short.event_sparsity == pytest.approx([0.5 * (1 - (2 / 3) ** 3), 0.5 * (1 - (1 / 3) ** 3), 0.5])
    assert short.steps[0] == short.steps[1] == 0
    assert short.steps[-1] == 12
    assert short.sparsities == sorted(short.sparsities)
    assert short.sparsities[-1] == 0.5
    for name, mask in short.masks.items():
        assert (short.state[name][~mask] == 0).all()
        assert (short.state[name][mask] != 0).all()
        assert sparsity(mask) == 0.5
    counts = [len(values) for values in short.event_survivors]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 39936 // 2
    assert len(short.revived) == 12
    assert short.revived[:3] == [0, 0, 0]  # nothing has momentum when it is pruned before the first step
    assert short.revived[3] > 1000
    assert short.loss == pytest.approx(experiment.loss_of(short.state))


def test_the_model_holds_zeros_after_every_step_of_a_run(monkeypatch):
    applied = experiment.MaskedWeights.apply
    seen = []

    def checked(self):
        moved = applied(self)
        seen.append(sum(int(weight[~self.masks[name]].count_nonzero()) for name, weight in self.weights.items()))
        return moved

    monkeypatch.setattr(experiment.MaskedWeights, "apply", checked)
    prune_and_finetune(Config(sparsity=0.8, prune_events=2, finetune_steps=6))
    assert seen == [0] * 8  # 6 steps and 2 prunings


def test_without_a_step_the_run_is_one_shot_pruning():
    run = prune_and_finetune(Config(sparsity=0.4, prune_events=4, finetune_steps=0))
    masks = experiment.one_shot_masks("layerwise", 0.4)
    assert all(torch.equal(run.masks[name], mask) for name, mask in masks.items())
    assert run.loss == pytest.approx(experiment.loss_of(experiment.masked(experiment.base_state(), masks)))
    assert experiment.event_steps(Config(prune_events=1)) == [0]


def test_wanda_sees_what_the_pruned_layers_before_it_give():
    masks = experiment.one_shot_masks("wanda", 0.5)
    weights = experiment.prunable(experiment.base_state())
    corpus = tiny_lm.training_corpus(size=experiment.CALIBRATION)
    inputs = experiment.linear_inputs(experiment.base_state(), corpus)
    dense = {name: wanda_mask(weight, inputs[name], 0.5) for name, weight in weights.items()}
    same = {name: bool(torch.equal(mask, dense[name])) for name, mask in masks.items()}
    assert all(same[f"model.layers.0.self_attn.{m}.weight"] for m in ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert not any(same[name] for name in masks if name.startswith("model.layers.2.mlp.down"))
    assert all(sparsity(mask) == 0.5 for mask in masks.values())


# -- students ----------------------------------------------------------------------------------------------------------


def test_a_student_of_labels_alone_is_trained_on_plain_cross_entropy():
    config = Config(student_dim=8, seed=3)
    run = experiment.train_student(config, 0.0, documents=32, steps=4)
    twin = tiny_lm.TinyLM(experiment.student_shape(config), seed=3)
    corpus = tiny_lm.training_corpus(size=32)
    recipe = replace(experiment.STUDENT, steps=4)
    tiny_lm.train(twin, corpus, recipe, seed=3, loss_fn=lambda m, ids, labels: next_token_loss(m(ids), labels))
    for name, weight in twin.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], weight)
    assert run.curve_steps == [0, 1, 2, 3, 4]
    assert len(run.probs) == len(run.curve) == 5
    assert run.curve[-1] < run.curve[0]


def test_a_student_learns_from_the_teacher_alone():
    """Three steps on the teacher's words only bring the student's distribution closer to the teacher's."""
    corpus = tiny_lm.held_out(20)
    teacher = tiny_lm.load("base")

    def divergence(model):
        targets = corpus.labels()[:, 1:]
        with torch.no_grad():
            return float(distillation_loss(model(corpus.ids)[:, :-1], teacher(corpus.ids)[:, :-1], targets, 3, 1).soft)

    config = Config(student_dim=8)
    start = divergence(tiny_lm.TinyLM(experiment.student_shape(config)))
    run = experiment.train_student(config, 1.0, documents=64, steps=12)
    assert divergence(run.model) < 0.9 * start


@pytest.mark.parametrize("width", [8, 12, 16, 20, 24])
def test_every_width_of_a_student_is_a_model(width):
    for layers in (1, 2):
        assert tiny_lm.TinyLM(experiment.student_shape(Config(student_dim=width), layers)).num_params < 43744


# -- the whole trace ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return trace_store.get(model_compression)


def test_the_matrix_loses_its_weights_in_the_order_of_the_clock(default):
    n = default.W.numel()
    assert sorted(default.prune_order.flatten().tolist()) == list(range(n))
    for share, mask, threshold in zip(
        default.sparsity_axis.tolist(), default.mask_at, default.threshold_at.tolist(), strict=True
    ):
        assert torch.equal(mask, default.prune_order >= round(share * n))
        assert (default.W[mask].abs() >= threshold).all()
    assert (default.W_kept_counts.sum(dim=1) == default.mask_at.sum(dim=(1, 2))).all()
    assert torch.equal(default.W_counts, default.W_kept_counts[0])
    assert default.W_counts.sum() == n


def test_the_bins_of_the_histograms_hold_the_real_weights(default):
    state = tiny_lm.load("base").state_dict()
    assert default.matrix == "layer 1 v_proj"
    assert torch.equal(default.W, state["model.layers.1.self_attn.v_proj.weight"])
    linear = torch.cat([w.flatten() for name, w in state.items() if ".layers." in name and w.ndim == 2])
    for values, edges, counts in (
        (default.W.flatten(), default.W_edges, default.W_counts),
        (linear, default.hist_edges, default.hist_before),
    ):
        assert float(edges[-1]) == -float(edges[0]) >= float(values.abs().max())
        torch.testing.assert_close(edges.diff(), edges.diff()[:1].expand(len(counts)))
        assert torch.equal(torch.histogram(values, edges).hist.long(), counts)
    for mask, counts in zip(default.mask_at, default.W_kept_counts, strict=True):
        assert torch.equal(torch.histogram(default.W[mask], default.W_edges).hist.long(), counts)


def test_a_row_in_the_video_is_ranked_as_wanda_ranks_it(default):
    torch.testing.assert_close(default.row_scores, default.row_weights * default.row_norms)
    lost, saved = default.row_swap.tolist()
    assert default.row_kept_magnitude[lost]
    assert not default.row_kept_wanda[lost]
    assert default.row_kept_wanda[saved]
    assert not default.row_kept_magnitude[saved]
    assert default.row_weights[lost] > default.row_weights[saved]
    assert default.row_scores[lost] < default.row_scores[saved]
    assert default.row_scores[default.row_kept_wanda].min() > default.row_scores[~default.row_kept_wanda].max()
    assert (
        default.row_weights[default.row_kept_magnitude].min() > default.row_weights[~default.row_kept_magnitude].max()
    )


def test_that_row_is_a_real_one_and_so_loud_are_its_inputs(default):
    layer, name = default.row_matrix.removeprefix("layer ").split()
    part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    full = f"model.layers.{layer}.{part}.{name}.weight"
    weight = tiny_lm.load("base").state_dict()[full]
    x = experiment.linear_inputs(experiment.base_state(), tiny_lm.training_corpus(size=experiment.CALIBRATION))[full]
    row, inputs = weight[default.row_index].abs(), default.row_inputs
    assert (inputs.diff() > 0).all()
    assert torch.equal(default.row_weights, row[inputs])
    norms = x.double().square().sum(dim=0).sqrt()
    torch.testing.assert_close(default.row_norms, norms[inputs].float())
    kept = len(row) - round(default.row_sparsity * len(row))
    for scores, mask in ((row, default.row_kept_magnitude), (row * norms, default.row_kept_wanda)):
        assert torch.equal(torch.isin(inputs, scores.topk(kept).indices), mask)


def test_the_loss_of_every_method_starts_at_the_dense_models(default):
    for method in model_compression.METHODS:
        curve = getattr(default, f"loss_{method}")
        assert float(curve[0]) == pytest.approx(default.loss_dense)
        knee = default.knee_index[method]
        assert float(curve[knee]) == pytest.approx(default.knee_loss[method])
        assert default.knee_loss[method] <= default.loss_dense + default.knee_excess
        assert (curve[knee + 1 :] > default.loss_dense + default.knee_excess).all()
    assert default.entropy_floor < default.loss_dense


def test_the_saw_tooth_bites_at_every_pruning_and_the_histogram_hollows_out(default):
    assert (default.event_loss_after > default.event_loss_before).all()
    assert default.schedule_s[-1] == pytest.approx(default.config.sparsity)
    assert default.run_sparsity[-1] == pytest.approx(default.config.sparsity, abs=1e-3)
    assert (default.hist_run[1:, default.hist_run.shape[1] // 2] == 0).all()
    assert default.hist_before.sum() == default.num_prunable
    assert default.hist_retrained.sum() == default.hist_pruned.sum() == default.survivors
    assert default.most_revived > 10_000


def test_the_records_of_a_run_hold_both_sides_of_every_pruning(default):
    assert default.schedule_t.tolist() == experiment.event_steps(default.config)
    assert default.schedule_s.tolist() == pytest.approx([0.9 * (1 - (1 - k / 8) ** 3) for k in range(1, 9)])
    for step, before, after in zip(
        default.schedule_t, default.event_loss_before, default.event_loss_after, strict=True
    ):
        assert default.run_loss[default.run_steps == step].tolist() == [float(before), float(after)]
    for steps, losses in (
        (default.run_steps, default.run_loss), (default.oneshot_steps, default.oneshot_loss)
    ):  # fmt: skip
        assert (steps[0], steps[1], steps[-1]) == (0, 0, default.config.finetune_steps)
        assert (steps.diff() >= 0).all()
        assert float(losses[0]) == pytest.approx(default.loss_dense, rel=0.1)  # on fewer documents
    assert float(default.oneshot_loss[1]) == pytest.approx(default.loss_oneshot, rel=0.1)


def test_the_students_are_as_small_as_their_matrices_say(default):
    width = default.config.student_dim
    layer = 4 * width**2 + 3 * width * 3 * width + 2 * width  # attention, SwiGLU, two norms
    assert default.params_teacher == default.num_params == 43_744
    assert default.params_student == 112 * width + 2 * layer + width
    assert default.params_student_one_layer == 112 * width + layer + width
    assert default.share_student == pytest.approx(default.params_student / 43_744)
    assert default.loss_teacher == default.loss_dense
    for losses, curves in (
        (default.loss_student_hard, default.student_curve_hard), (default.loss_student_kd, default.student_curve_kd)
    ):  # fmt: skip
        torch.testing.assert_close(losses, curves[:, -1], rtol=0.1, atol=0)  # on fewer documents
    assert len(default.regimes) == len(default.loss_student_kd) == 2
    assert torch.equal(default.student_probs_before, default.student_probs[0])
    assert torch.equal(default.student_probs_after, default.student_probs[-1])
    assert default.student_steps.tolist() == default.curve_steps.tolist()
    words = tiny_lm.encode(" ".join(default.top_words), bos=False)
    text = " ".join(default.context_words)
    torch.testing.assert_close(default.true_probs, tiny_lm.true_next_probs(text)[list(words)])
    logits = tiny_lm.next_token_logits(text)
    temperatures, bars = (*default.temperatures, 3.0), (*default.teacher_probs_T, default.teacher_probs)
    for temperature, probs in zip(temperatures, bars, strict=True):
        torch.testing.assert_close((logits / temperature).softmax(dim=-1)[list(words)], probs)


def test_the_teachers_bars_and_the_rest_make_a_distribution(default):
    assert (default.teacher_rest_T.diff() > 0).all()
    torch.testing.assert_close(default.teacher_probs_T.sum(dim=1) + default.teacher_rest_T, torch.ones(5))
    assert default.label_onehot.sum() == 1
    assert default.top_words[int(default.label_onehot.argmax())] == default.label_word
    assert " ".join((*default.context_words, default.label_word)) in tiny_lm.story()
    torch.testing.assert_close(default.student_gap, default.student_probs - default.teacher_probs)
    assert default.student_gap[-1].abs().sum() < 0.5 * default.student_gap[0].abs().sum()


def test_the_bits_add_up(default):
    bits = default.bits
    assert torch.equal(bits.total_bits, bits.value_bits + bits.position_bits + bits.table_bits)
    assert bits.total_bits[0] == 32 * default.num_prunable
    assert bits.value_bits[2] == 16 * default.survivors
    assert bits.value_bits[3] == 4 * default.survivors
    assert bits.value_bits[4] == (default.assignment_hist * default.huffman_lengths).sum()
    assert (bits.times_smaller.diff() > 0).all()
    assert (bits.model_times_smaller <= bits.times_smaller).all()
    torch.testing.assert_close(bits.times_smaller, bits.total_bits[0] / bits.total_bits)
    kept = default.num_params - default.num_prunable
    assert float(bits.model_times_smaller[1]) == 2
    assert float(bits.model_times_smaller[2]) == pytest.approx(
        32 * default.num_params / (int(bits.total_bits[2]) + 16 * kept)
    )
    assert default.assignment_hist.sum() == default.survivors
    assert (default.centroids.diff() > 0).all()
    assert default.position_bits["bitmask"] == default.num_prunable
    assert default.assignment_entropy_bits <= default.huffman_mean_bits < default.assignment_entropy_bits + 1


def test_the_default_runs_tell_what_the_video_says(default):
    # 30% of the weights are free, and no score saves a model that has lost nearly all of them.
    assert float(default.loss_layerwise[3]) < default.loss_dense + 0.01
    assert default.knee_sparsity["random"] == 0
    assert default.loss_layerwise[9] > 5
    assert default.loss_oneshot > 5
    assert default.loss_iterative < default.loss_oneshot_retrained < 1.1
    assert default.loss_iterative > default.loss_dense + 0.3  # not free: this model has little slack
    assert default.layer_sparsity_global.max() > 0.99  # one threshold for all empties a matrix
    few, many = default.student_curve_kd[:, -1] - default.student_curve_hard[:, -1]
    assert few < -0.03  # soft targets help where texts are few (-0.07 or -0.12, by how a processor rounds)
    assert many > few + 0.05  # and hardly, or not, where they never end
    assert default.loss_shared < default.loss_iterative + 0.1


def test_a_trace_survives_the_store(default, tmp_path):
    default.save(tmp_path / "trace.safetensors")
    assert model_compression.Trace.load(tmp_path / "trace.safetensors").hash == default.hash
