import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internals_math import chain_of_thought, tiny_lm, trace_store
from internals_math import chain_of_thought_experiment as experiment
from internals_math.chain_of_thought import (
    Config,
    accuracy_by_length,
    apply_swaps,
    cached_model_fn,
    chain_accuracy,
    chain_log_prob,
    compose_permutations,
    encode_chain,
    encode_question,
    generate_chain,
    logit_lens,
    majority_vote,
    majority_vote_accuracy,
    make_shell_game,
    marginal_answer_distribution,
    plurality_accuracy,
    serial_depth,
    transpositions,
    vocab_size,
)
from tests.oracles import randn

CUPS = torch.arange(5)
seeds = st.integers(0, 10_000)
cups = st.integers(2, 6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    """Untrained, so that its beliefs are spread."""
    return experiment.game_model(Config(), 2).double().requires_grad_(False)


@pytest.fixture(scope="module")
def games():
    return make_shell_game(30, 5, 10, generator=seeded(7))


# -- the game ----------------------------------------------------------------------------------------------------------


@given(cups, seeds)
def test_a_swap_twice_changes_nothing_and_a_swap_moves_only_its_two_cups(n_cups, seed):
    number = seed % len(transpositions(n_cups))
    i, j = transpositions(n_cups)[number]
    start = torch.arange(n_cups)
    states = apply_swaps(start, torch.full((n_cups, 2), number), n_cups)
    assert torch.equal(states[:, 2], start)
    assert {x for x in range(n_cups) if states[x, 1] != x} == {i, j}
    assert states[i, 1] == j


def test_the_number_after_the_last_swap_moves_nothing():
    assert torch.equal(apply_swaps(CUPS, torch.full((5, 3), 10), 5), CUPS[:, None].expand(5, 4))


@given(cups, st.integers(1, 9), seeds)
def test_n_swaps_compose_to_a_permutation_of_parity_n(n_cups, length, seed):
    swaps = torch.randint(len(transpositions(n_cups)), (length,), generator=seeded(seed))
    rows = apply_swaps(torch.arange(n_cups), swaps.expand(n_cups, length), n_cups)
    tables = torch.stack([apply_swaps(torch.arange(n_cups), w.expand(n_cups, 1), n_cups)[:, 1] for w in swaps])
    total = compose_permutations(tables)
    assert torch.equal(total, rows[:, -1])  # the game and the product of permutations agree
    inversions = sum(int(total[a] > total[b]) for a in range(n_cups) for b in range(a + 1, n_cups))
    assert inversions % 2 == length % 2


def test_the_first_row_of_a_composition_is_applied_first():
    first, second = torch.tensor([1, 2, 0]), torch.tensor([0, 2, 1])
    assert compose_permutations(torch.stack([first, second])).tolist() == [2, 1, 0]
    assert compose_permutations(torch.stack([second, first])).tolist() == [1, 0, 2]


@given(seeds, st.integers(1, 8))
def test_every_game_can_be_replayed_from_its_first_cup_and_its_swaps(seed, max_swaps):
    game = make_shell_game(20, 4, max_swaps, generator=seeded(seed))
    assert torch.equal(game.states, apply_swaps(game.states[:, 0], game.swaps, 4))
    unused = torch.arange(max_swaps) >= game.lengths[:, None]
    assert (game.swaps[unused] == 6).all()  # no-op
    assert (game.swaps[~unused] < 6).all()
    assert torch.equal(game.answers, game.states[torch.arange(20), game.lengths])
    assert 1 <= int(game.lengths.min()) <= int(game.lengths.max()) <= max_swaps


def test_a_length_fixes_the_number_of_swaps():
    assert (make_shell_game(50, 5, 10, generator=seeded(), length=3).lengths == 3).all()


def test_the_swap_of_a_state_stands_exactly_k_places_before_the_position_that_predicts_it(games):
    ids = torch.cat([encode_question(games), encode_chain(games)], dim=1)
    assert ids.shape == (30, 21)
    assert (ids < vocab_size(5)).all()
    for state in range(1, 11):
        position = 10 + state - 1  # of state - 1, which predicts this state
        assert torch.equal(ids[:, position], games.states[:, state - 1])
        assert torch.equal(ids[:, position - 10], 5 + games.swaps[:, state - 1])
        assert torch.equal(ids[:, position + 1], games.states[:, state])


def test_training_and_held_out_games_of_full_length_have_nothing_in_common():
    config = Config()
    train, held_out = experiment.training_games(config), experiment.held_out_games(config, 10, 500)

    def keys(game):
        return {tuple(row) for row in encode_question(game)[game.lengths == 10].tolist()}

    assert len(keys(held_out)) == 500
    assert not keys(train) & keys(held_out)


# -- writing a chain ---------------------------------------------------------------------------------------------------


def test_a_greedy_chain_is_the_argmax_fed_back(model, games):
    question = encode_question(games)
    chain, beliefs = generate_chain(model, question, 10, state_ids=CUPS)
    sequence = question
    for step in range(10):
        logits = model(sequence)[:, -1, :5]
        torch.testing.assert_close(beliefs[:, step], logits.softmax(dim=-1))
        sequence = torch.cat([sequence, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(chain, sequence[:, 11:])


def test_a_cache_changes_no_chain(model, games):
    question = encode_question(games)
    plain, cached = (
        generate_chain(fn, question, 10, state_ids=CUPS, temperature=1.0, generator=seeded(3))
        for fn in (model, cached_model_fn(model))
    )
    assert torch.equal(plain[0], cached[0])
    torch.testing.assert_close(plain[1], cached[1])


@settings(max_examples=10)
@given(seeds)
def test_the_probability_of_a_chain_is_the_product_of_its_steps(seed):
    model = experiment.game_model(Config(), 2).double()
    question = encode_question(make_shell_game(6, 5, 10, generator=seeded(seed)))
    chain, beliefs = generate_chain(model, question, 7, state_ids=CUPS, temperature=1.0, generator=seeded(seed))
    product = beliefs.gather(-1, chain[..., None])[..., 0].log().sum(dim=1)
    torch.testing.assert_close(chain_log_prob(model, question, chain, state_ids=CUPS), product, atol=1e-9, rtol=0)


def test_all_chains_of_two_steps_have_probability_one_together(model, games):
    question = encode_question(games)[:1]
    chains = torch.cartesian_prod(CUPS, CUPS)
    total = chain_log_prob(model, question.expand(25, -1), chains, state_ids=CUPS).exp().sum()
    assert total == pytest.approx(1)


def test_the_temperature_divides_the_logits_of_the_draw_but_not_the_reported_beliefs(model, games):
    question = encode_question(games)[:1].expand(20_000, -1)
    drawn, beliefs = generate_chain(model, question, 1, state_ids=CUPS, temperature=0.5, generator=seeded())
    torch.testing.assert_close(beliefs[0, 0], model(question[:1])[0, -1, :5].softmax(dim=-1))
    sharpened = beliefs[0, 0].square() / beliefs[0, 0].square().sum()
    shares = torch.bincount(drawn[:, 0], minlength=5) / 20_000
    torch.testing.assert_close(shares.double(), sharpened, atol=0.015, rtol=0)  # four standard errors
    cold, _ = generate_chain(model, question[:50], 1, state_ids=CUPS, temperature=1e-4, generator=seeded())
    assert (cold == beliefs[0, 0].argmax()).all()


def test_forcing_nothing_or_the_models_own_choice_changes_nothing(model, games):
    question = encode_question(games)
    free, _ = generate_chain(model, question, 10, state_ids=CUPS)
    for forced in ({}, {4: free[:, 3]}, {1: free[:, 0], 10: free[:, 9]}):
        assert torch.equal(generate_chain(model, question, 10, state_ids=CUPS, forced=forced)[0], free)


def test_a_forced_state_is_what_the_next_step_reads(model, games):
    question = encode_question(games)
    free, _ = generate_chain(model, question, 10, state_ids=CUPS)
    wrong = (free[:, 3] + 1) % 5
    chain, beliefs = generate_chain(model, question, 10, state_ids=CUPS, forced={4: wrong})
    assert torch.equal(chain[:, :3], free[:, :3])
    assert torch.equal(chain[:, 3], wrong)
    read = torch.cat([question, chain[:, :4]], dim=1)
    torch.testing.assert_close(beliefs[:, 4], model(read)[:, -1, :5].softmax(dim=-1))


def test_other_token_ids_for_the_cups_give_cups_all_the_same(model, games):
    shifted = torch.tensor([3, 1, 4, 0, 2])
    chain, beliefs = generate_chain(model, encode_question(games), 1, state_ids=shifted)
    logits = model(encode_question(games))[:, -1, shifted]
    assert torch.equal(chain[:, 0], logits.argmax(dim=-1))
    torch.testing.assert_close(beliefs[:, 0], logits.softmax(dim=-1))


# -- many chains -------------------------------------------------------------------------------------------------------


def test_the_most_frequent_answer_wins_and_of_tied_ones_the_first_given():
    winner, counts = majority_vote(torch.tensor([4, 2, 0, 2, 4, 1]), 5)
    assert int(winner) == 4
    assert counts.tolist() == [1, 1, 2, 0, 2]
    assert int(majority_vote(torch.tensor([2, 4, 0, 4, 2]), 5)[0]) == 2
    assert int(majority_vote(torch.tensor([0, 3, 3]), 5)[0]) == 3


def test_every_column_of_votes_is_counted_on_its_own():
    votes = torch.tensor([[0, 2], [1, 2], [1, 0]])
    winner, counts = majority_vote(votes, 3)
    assert winner.tolist() == [1, 2]
    assert counts.tolist() == [[1, 2, 0], [1, 0, 2]]


@given(st.floats(0.01, 0.99), st.integers(0, 20))
def test_more_votes_help_above_one_half_and_hurt_below(p, half):
    few, more = majority_vote_accuracy(p, 2 * half + 1), majority_vote_accuracy(p, 2 * half + 3)
    assert majority_vote_accuracy(p, 1) == pytest.approx(p)
    assert (more - few) * (p - 0.5) >= -1e-12
    assert majority_vote_accuracy(0.5, 2 * half + 1) == pytest.approx(0.5)


@given(st.floats(0, 1), st.sampled_from([1, 3, 7, 15]))
def test_the_plurality_of_two_answers_is_the_majority(p, m):
    assert plurality_accuracy(torch.tensor([1 - p, p]), 1, m) == pytest.approx(majority_vote_accuracy(p, m), abs=1e-6)


def test_a_right_answer_below_one_half_can_still_win_the_plurality():
    spread = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15])
    assert plurality_accuracy(spread, 0, 15) > 0.75 > majority_vote_accuracy(0.4, 15)
    assert plurality_accuracy(spread, 0, 1) == pytest.approx(0.4)


@given(seeds, st.integers(1, 6))
def test_the_chances_of_all_answers_sum_to_one_even_with_ties(seed, m):
    probs = randn(4, seed=seed).softmax(dim=-1)
    assert sum(plurality_accuracy(probs, answer, m) for answer in range(4)) == pytest.approx(1)


def test_the_answer_of_the_likeliest_chain_is_not_always_the_likeliest_answer():
    chains, ends = torch.tensor([0.3, 0.25, 0.2, 0.15]), torch.tensor([0, 1, 1, 2])
    marginal = marginal_answer_distribution(chains, ends, 4)
    assert marginal.tolist() == pytest.approx([0.3, 0.45, 0.15, 0])
    assert int(ends[chains.argmax()]) == 0 != int(marginal.argmax())
    assert float(marginal.sum()) == pytest.approx(float(chains.sum()))


# -- measures ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_chain_is_never_better_than_its_worst_step(steps):
    accuracies = torch.tensor(steps, dtype=torch.float64)
    assert chain_accuracy(accuracies) <= float(accuracies.min()) + 1e-12


@given(st.integers(1, 9), st.integers(0, 20))
def test_every_written_token_adds_all_layers_once_more(layers, written):
    assert serial_depth(layers, 0) == layers
    assert serial_depth(layers, written + 1) - serial_depth(layers, written) == layers


def test_accuracy_is_counted_apart_for_every_length():
    pred, target = torch.tensor([1, 2, 3, 0, 1]), torch.tensor([1, 2, 0, 0, 0])
    rates = accuracy_by_length(pred, target, torch.tensor([1, 1, 2, 2, 4]), 4)
    assert rates[:2].tolist() == [1, 0.5]
    assert math.isnan(rates[2])
    assert rates[3] == 0


def test_the_last_layer_of_the_lens_is_the_models_own_belief(model, games):
    question = encode_question(games)
    logits, record = model(question, record=("residual",))
    norm = tiny_lm.rms_norm
    beliefs = logit_lens(
        record["residual"], lambda x: norm(x, model.model.norm.weight, 1e-5), model.model.embed_tokens.weight, CUPS
    )
    assert beliefs.shape == (3, 30, 11, 5)
    torch.testing.assert_close(beliefs[-1], logits[..., :5].softmax(dim=-1))


# -- refused input -----------------------------------------------------------------------------------------------------

QUESTION = torch.zeros(2, 11, dtype=torch.long)


def no_model(ids):
    raise AssertionError("input must be refused before any work")


def chain(**changes):
    return generate_chain(no_model, QUESTION, **{"n_steps": 3, "state_ids": CUPS, **changes})


WRONG = [
    (lambda: transpositions(1), r"n_cups must be at least 2, got 1"),
    (lambda: apply_swaps(CUPS, torch.full((5, 1), 11), 5), r"swaps must be in 0..10, got 11..11"),
    (lambda: apply_swaps(CUPS, torch.full((5, 1), -1), 5), r"swaps must be in 0..10, got -1..-1"),
    (lambda: apply_swaps(CUPS + 1, torch.zeros(5, 1, dtype=torch.long), 5), r"start must be in 0..4, got 1..5"),
    (lambda: compose_permutations(torch.tensor([[0, 0, 1]])), r"each row must be a permutation of 0..2"),
    (lambda: make_shell_game(0, 5, 10, generator=seeded()), r"batch and max_swaps must be at least 1, got 0 and 10"),
    (lambda: make_shell_game(1, 1, 10, generator=seeded()), r"n_cups must be at least 2, got 1"),
    (lambda: make_shell_game(1, 5, 10, generator=seeded(), length=11), r"length must be in 1..10, got 11"),
    (lambda: chain(n_steps=11), r"n_steps must be in 1..10 .*got 11"),
    (lambda: chain(n_steps=0), r"n_steps must be in 1..10 .*got 0"),
    (lambda: chain(temperature=-0.1), r"temperature must be at least 0, got -0.1"),
    (lambda: chain(temperature=math.nan), r"temperature must be at least 0, got nan"),
    (lambda: chain(forced={4: CUPS[:2]}), r"a forced step must be in 1..3, got 4"),
    (lambda: chain(forced={0: CUPS[:2]}), r"a forced step must be in 1..3, got 0"),
    (lambda: chain(forced={2: CUPS[:2] + 4}), r"forced states must be in 0..4, got 4..5"),
    (lambda: chain_log_prob(no_model, QUESTION, QUESTION, state_ids=CUPS), r"must have 1..10 steps .*got 11"),
    (lambda: chain_log_prob(no_model, QUESTION, QUESTION[:, :2] + 5, state_ids=CUPS), r"chain must be in 0..4"),
    (lambda: majority_vote(torch.zeros(0, dtype=torch.long), 5), r"a vote needs at least one answer"),
    (lambda: majority_vote(torch.tensor([5]), 5), r"answers must be in 0..4, got 5..5"),
    (lambda: majority_vote_accuracy(0.6, 4), r"m must be odd and at least 1 .*got 4"),
    (lambda: majority_vote_accuracy(1.1, 3), r"p must be in 0..1, got 1.1"),
    (lambda: plurality_accuracy(torch.tensor([0.5, 0.6]), 0, 3), r"probs must be at least 0 and sum to 1, got sum 1.1"),
    (lambda: plurality_accuracy(torch.tensor([1.5, -0.5]), 0, 3), r"probs must be at least 0"),
    (lambda: plurality_accuracy(torch.tensor([0.5, 0.5]), 2, 3), r"correct must be in 0..1, got 2"),
    (lambda: plurality_accuracy(torch.tensor([0.5, 0.5]), 0, 16), r"m must be in 1..15 .*got 16"),
    (lambda: marginal_answer_distribution(torch.tensor([0.9, 0.9]), torch.tensor([0, 1]), 2), r"sum to at most 1"),
    (lambda: marginal_answer_distribution(torch.tensor([0.9]), torch.tensor([2]), 2), r"answers must be in 0..1"),
    (lambda: chain_accuracy(torch.tensor([0.9, 1.1])), r"accuracies must be in 0..1"),
    (lambda: serial_depth(0, 3), r"n_layers must be at least 1 and n_chain_tokens 0, got 0 and 3"),
    (lambda: serial_depth(2, -1), r"got 2 and -1"),
    (lambda: accuracy_by_length(CUPS, CUPS, CUPS, 5), r"lengths must be in"),
    (lambda: Config(example_length=11), r"example_length must be at most max_swaps \(10\), got 11"),
    (lambda: Config(corrupt_step=9), r"corrupt_step must be at most example_length \(8\), got 9"),
    (lambda: Config(votes=20), r"votes must be odd .*got 20"),
    (lambda: Config(temperature=0.0), r"temperature must be in 0.2..2, got 0.0"),
    (lambda: experiment.layout("aloud", make_shell_game(1, 5, 4, generator=seeded())), r"run must be one of direct"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the experiment ----------------------------------------------------------------------------------------------------


def test_each_run_reads_and_learns_its_own_layout():
    game = make_shell_game(3, 5, 4, generator=seeded(2))
    question, chain = encode_question(game), encode_chain(game)
    for run, written, learned in (
        ("direct", chain[:, -1:], 1),
        ("direct_deep", chain[:, -1:], 1),
        ("filler", torch.cat([torch.full((3, 3), 16), chain[:, -1:]], dim=1), 1),
        ("chain", chain, 4),
    ):
        ids, labels = experiment.layout(run, game)
        assert torch.equal(ids, torch.cat([question, written], dim=1))
        assert (labels[:, :-learned] == -100).all()
        assert torch.equal(labels[:, -learned:], ids[:, -learned:])


def test_a_corrupted_chain_goes_on_from_the_wrong_cup_by_the_rules():
    game = make_shell_game(40, 5, 6, generator=seeded(5), length=6)
    wrong = (game.states[:, 2] + 3) % 5
    states = experiment.corrupted_states(game, 2, wrong)
    assert states.shape == (40, 6)
    assert torch.equal(states[:, 0], game.states[:, 1])
    assert torch.equal(states[:, 1], wrong)
    assert torch.equal(states[:, 1:], apply_swaps(wrong, game.swaps[:, 2:], 5))
    assert (states[:, -1] != game.answers).all()  # permutations never bring two cups together


def test_rates_tell_a_chain_that_follows_its_wrong_state_from_one_that_ignores_it(model, monkeypatch):
    config, game = Config(), experiment.example_game(Config())

    def follow(_, games, forced):
        ((step, wrong),) = forced.items()
        return experiment.corrupted_states(games, step, wrong), None

    def ignore(_, games, forced):
        return encode_chain(games), None

    for write, following, recovered in ((follow, 1, 0), (ignore, 0, 1)):
        monkeypatch.setattr(experiment, "write", write)
        rates = experiment.interfere(config, model, game)
        assert (rates["following_rate"], rates["recovered_rate"]) == (following, recovered)


def test_the_first_1_3_5_chains_of_every_game_vote(model, monkeypatch):
    config = Config(votes=5, max_swaps=4, example_length=4)
    drawn = torch.randint(5, (experiment.VOTE_GAMES * 5, 4), generator=seeded(8))

    def write(_, games, temperature=0.0, generator=None):
        return (drawn if temperature else encode_chain(games)), None  # without sampling always right

    monkeypatch.setattr(experiment, "write", write)
    values = experiment.vote(config, model)
    truth = experiment.held_out_games(config, 4, experiment.VOTE_GAMES).answers.tolist()
    ends = drawn[:, -1].view(-1, 5).tolist()
    for row, m in enumerate((1, 3, 5)):
        # max takes the first of equally frequent answers in the order in which they were given
        right = [max(votes[:m], key=votes[:m].count) == answer for votes, answer in zip(ends, truth, strict=True)]
        assert float(values["vote_accuracy"][row]) == pytest.approx(sum(right) / len(right))
    single = [vote == answer for votes, answer in zip(ends, truth, strict=True) for vote in votes]
    assert values["vote_single_accuracy"] == pytest.approx(sum(single) / len(single))
    assert values["vote_greedy_accuracy"] == 1
    shown = next(k for k, (votes, answer) in enumerate(zip(ends, truth, strict=True)) if votes[0] != answer == max(
        votes, key=votes.count
    ))  # fmt: skip
    assert values["vote_answers"].tolist() == ends[shown]
    assert values["vote_truth"][-1] == values["vote_winner"] == truth[shown]


def test_accuracy_is_that_of_the_games_of_each_length(model, monkeypatch):
    config = Config(max_swaps=4, example_length=4)

    def answers(run, _, game):  # right only after two swaps
        return torch.where(game.lengths == 2, game.answers, (game.answers + 1) % 5)

    monkeypatch.setattr(experiment, "answers", answers)
    assert experiment.accuracy("direct", model, config).tolist() == [0, 1, 0, 0]


def test_attention_is_averaged_over_heads_games_and_steps_in_the_layer_that_looks_most_at_its_swap():
    chain, slots = experiment.game_model(Config(), 2).requires_grad_(False), 4
    game = make_shell_game(1, 5, slots, generator=seeded(3), length=slots)
    found = experiment.look(chain, game)
    luck = seeded(experiment.HELD_OUT_SEED)
    others = make_shell_game(experiment.GAMES_PER_LENGTH, 5, slots, generator=luck, length=slots)
    written, _ = generate_chain(chain, encode_question(others), slots, state_ids=CUPS)
    _, record = chain(torch.cat([encode_question(others), written[:, :-1]], dim=1), record=("weights",))
    # the query of step t stands at slots + t; its swap at t, the state before it at its own place
    swap, last = (
        sum(record["weights"][..., slots + t, key + t].mean(dim=(1, 2)) for t in range(slots)) / slots
        for key in (0, slots)
    )
    assert found["attention_layer"] == int(swap.argmax())
    expected = torch.stack([swap, last], dim=1)[found["attention_layer"]]
    torch.testing.assert_close(found["attention_share_mean"], expected)


@pytest.fixture(scope="module")
def quick():
    """The whole trace of the smallest game and the shortest training."""
    config = Config(n_cups=3, max_swaps=4, train_steps=200, example_length=3, corrupt_step=2, votes=5)
    return chain_of_thought.trace(config)


def test_the_game_on_screen_is_a_game(quick):
    pairs = transpositions(3)
    numbers = torch.tensor([pairs.index((int(i), int(j))) for i, j in quick.swaps])
    assert torch.equal(quick.states, apply_swaps(quick.states[:1], numbers[None], 3)[0])
    assert quick.question_ids.tolist() == [*(3 + numbers).tolist(), 6, int(quick.states[0])]  # one slot is not used
    assert quick.question_words[3:] == ("-", quick.cup_names[int(quick.states[0])])
    assert quick.chain_words == tuple(quick.cup_names[int(cup)] for cup in quick.chain)
    assert torch.equal(quick.step_probs.argmax(dim=1), quick.chain)
    assert quick.direct_answer == int(quick.direct_probs.argmax())


def test_the_lens_ends_in_what_the_models_believe(quick):
    truth = torch.cat([quick.states[1:], quick.states[-1:]])
    torch.testing.assert_close(quick.lens_cot[-1], quick.step_probs[torch.arange(4), truth], atol=1e-5, rtol=0)
    assert float(quick.lens_direct[-1]) == pytest.approx(float(quick.direct_probs[truth[-1]]), abs=1e-5)
    loop_truth = quick.loop_states[1:]
    torch.testing.assert_close(quick.loop_lens[-1], quick.loop_probs[torch.arange(4), loop_truth], atol=1e-5, rtol=0)


def test_attention_rows_are_distributions_and_the_shares_are_cut_from_them(quick):
    torch.testing.assert_close(quick.attention.sum(dim=1), torch.ones(4), atol=1e-5, rtol=0)
    steps = torch.arange(4)
    assert (quick.attention[steps[:, None], torch.arange(8)] * (torch.arange(8) > 4 + steps[:, None])).sum() == 0
    own, last = quick.attention[steps, steps], quick.attention[steps, 4 + steps]
    assert torch.equal(quick.attention_target_share, torch.stack([own, last], dim=1))


def test_the_votes_on_screen_are_counted_right(quick):
    assert torch.equal(quick.vote_answers, quick.vote_chains[:, -1])
    winner, counts = majority_vote(quick.vote_answers, 3)
    assert (int(winner), counts.tolist()) == (quick.vote_winner, quick.vote_counts.tolist())
    assert quick.vote_m.tolist() == [1, 3, 5]
    assert float(quick.vote_accuracy[0]) == pytest.approx(quick.vote_single_accuracy, abs=0.1)


def test_the_overwritten_step_is_wrong_and_the_rest_is_the_models(quick):
    assert quick.corrupted_chain[0] == quick.chain[0]
    assert quick.corrupted_chain[1] == quick.corrupted_expected[1] != quick.states[2]
    assert 0 <= quick.following_rate + quick.recovered_rate <= 1


def test_passes_and_depth_are_those_of_the_layouts(quick):
    assert quick.passes == {"direct": 1, "filler": 4, "chain": 4, "direct_deep": 1}
    assert quick.depth == {"direct": 2, "filler": 2, "chain": 8, "direct_deep": 4}


def test_the_ball_of_the_loop_comes_back(quick):
    assert quick.loop_states[0] == quick.loop_states[-1]
    assert int((quick.loop_states.diff() != 0).sum()) >= 3


def test_curves_have_a_point_for_every_record(quick):
    assert quick.train_curves["steps"].tolist() == [50, 100, 150, 200]
    for run in ("direct", "filler", "chain"):
        assert quick.train_curves[f"loss_{run}"].shape == (4,)
        assert ((quick.train_curves[f"accuracy_{run}"] > 0) & (quick.train_curves[f"accuracy_{run}"] <= 1)).all()


def test_even_the_short_run_learns_to_write_chains_but_not_to_answer_at_once(quick):
    assert quick.accuracy_cot.min() > 0.9
    assert quick.accuracy_direct[-1] < 0.75
    assert quick.following_rate > 0.9


def test_the_series_own_model_walks_step_by_step_but_not_in_its_head(quick):
    assert quick.walk_steps.min() > 0.98
    assert quick.walk_direct[0] > 0.95
    assert quick.walk_direct[4:].max() < 0.4
    assert quick.walk_prompt.endswith("?")
    assert quick.walk_answer.startswith("think : one ")


def test_a_trace_survives_the_store(quick, tmp_path):
    quick.save(tmp_path / "trace.safetensors")
    assert chain_of_thought.Trace.load(tmp_path / "trace.safetensors").hash == quick.hash


@pytest.mark.slow
def test_the_default_runs_tell_what_the_video_says():
    trace = trace_store.get(chain_of_thought)
    assert trace.accuracy_cot.min() > 0.97
    for name in ("direct", "filler", "direct_deep"):
        rates = getattr(trace, f"accuracy_{name}")
        assert rates[0] > 0.95
        assert rates[6:].max() < 0.35  # chance is 0.2
    assert trace.following_rate > 0.97
    assert trace.recovered_rate < 0.02
    assert torch.equal(trace.chain[:8], trace.states[1:])
    # the vote repairs what sampling broke, up to the level of the chain without sampling
    assert trace.vote_accuracy[-1] > trace.vote_single_accuracy + 0.05
    assert abs(float(trace.vote_accuracy[-1]) - trace.vote_greedy_accuracy) < 0.06
