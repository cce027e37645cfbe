import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from internals_math import speculative_decoding, tiny_lm, trace_store
from internals_math import speculative_decoding_experiment as experiment
from internals_math.speculative_decoding import (
    Config,
    accept_drafts,
    acceptance_probability,
    estimate_alpha,
    expected_tokens,
    expected_tokens_from_betas,
    fit_bigram,
    operations_factor,
    optimal_gamma,
    output_distribution,
    residual_distribution,
    speculative_decode,
    standardize,
    total_variation,
    verify,
    walltime_improvement,
)
from tests.oracles import randn

seeds = st.integers(0, 10_000)
shares = st.floats(0, 1)
gammas = st.integers(0, 12)


@st.composite
def pairs_of_distributions(draw):
    """p and q over the same 2 to 8 tokens, zeros and certainty included."""
    size = draw(st.integers(2, 8))
    weight = st.just(0.0) | st.floats(1e-6, 1) | st.floats(1e-300, 1e-200)
    pair = [
        torch.tensor(draw(st.lists(weight, min_size=size, max_size=size).filter(lambda w: max(w) > 1e-9)))
        for _ in range(2)
    ]
    return [weights.double() / weights.double().sum() for weights in pair]


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- one token ---------------------------------------------------------------------------------------------------------


@given(pairs_of_distributions())
def test_what_comes_out_is_distributed_as_the_target(pair):
    p, q = pair
    torch.testing.assert_close(output_distribution(p, q), p, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([1.0, 0, 0], [0, 0.5, 0.5]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([0, 1.0, 0], [0, 1.0, 0]),
        ([0.5, 0.5], [1, 0]),
    ],
)
def test_disjoint_equal_and_certain_distributions_come_out_right(p, q):
    p, q = (torch.tensor(values, dtype=torch.float64) for values in (p, q))
    torch.testing.assert_close(output_distribution(p, q), p, atol=1e-15, rtol=0)
    residual = residual_distribution(p, q)
    assert float(residual.sum()) == pytest.approx(1)


@given(pairs_of_distributions())
def test_beta_is_symmetric_and_the_overlap(pair):
    p, q = pair
    beta = acceptance_probability(p, q)
    assert beta == acceptance_probability(q, p)
    assert float(beta) == pytest.approx(1 - float(total_variation(p, q)), abs=1e-12)
    assert float(acceptance_probability(p, p)) == pytest.approx(1)
    if not ((p > 0) & (q > 0)).any():
        assert beta == 0


def test_beta_is_one_only_for_equal_shapes():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.5001, 0.4999])
    assert acceptance_probability(p, q) < 1


@given(pairs_of_distributions())
def test_a_kept_guess_or_its_replacement_is_a_draw_from_p(pair):
    """The rule itself, enumerated: every draft token, both sides of its ratio, every replacement."""
    p, q = pair
    law = torch.zeros_like(p)
    after = torch.stack([p, p])
    for token in range(len(p)):
        if q[token] == 0:
            continue
        for uniform, chance in sides(float(p[token] / q[token])):
            _, kept, following = accept_drafts(torch.tensor([token]), q[None], after, as_row(uniform))
            weight = float(q[token]) * chance
            law += weight * (torch.eye(len(p), dtype=torch.float64)[token] if kept else following)
    torch.testing.assert_close(law, p, atol=1e-12, rtol=0)


def as_row(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def sides(ratio):
    """A uniform number below and one above the ratio, and the chance of each side."""
    inside = min(1.0, ratio)
    parts = [(inside / 2, inside), ((1 + inside) / 2, 1 - inside)]
    return [(number, chance) for number, chance in parts if chance > 0]


def test_a_word_that_the_target_rules_out_is_never_kept():
    ratio, kept, following = accept_drafts(
        torch.tensor([0]), as_row(0.5, 0.5)[None], torch.stack([as_row(0, 1), as_row(0, 1)]), as_row(0.0)
    )
    assert (ratio, kept) == (0, 0)
    assert following.tolist() == [0, 1]


@given(seeds, st.floats(0.1, 3), st.integers(1, 9))
def test_standardized_logits_are_distributions_cut_to_the_best(seed, temperature, top_k):
    logits = randn(4, 9, seed=seed)
    probs = standardize(logits, temperature, top_k=top_k)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(4, dtype=torch.float64))
    assert ((probs > 0).sum(dim=-1) == top_k).all()
    kept = probs > 0
    torch.testing.assert_close(probs, (logits / temperature).masked_fill(~kept, -math.inf).softmax(dim=-1))


def test_a_nucleus_holds_the_fewest_words_that_reach_its_share():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    assert (standardize(logits, top_p=0.5) > 0).tolist() == [True, False, False, False]
    assert (standardize(logits, top_p=0.51) > 0).tolist() == [True, True, False, False]
    torch.testing.assert_close(standardize(logits, top_p=0.79), as_row(0.625, 0.375, 0, 0))
    torch.testing.assert_close(standardize(logits, top_p=1.0), logits.exp())


def test_temperature_zero_takes_the_first_of_the_largest():
    assert standardize(torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]]), 0).tolist() == [[0, 1, 0], [1, 0, 0]]


# -- whole sequences, by enumeration -----------------------------------------------------------------------------------

SIZE, GAMMA, LENGTH = 3, 2, 3


def table_model(seed):
    """A distribution over 3 tokens for every prefix of up to 2, some of them with an impossible token."""
    tables = {}
    for number, prefix in enumerate(p for length in range(LENGTH) for p in product(range(SIZE), repeat=length)):
        probs = (2 * randn(SIZE, seed=1000 * seed + number)).softmax(dim=-1)
        if (number + seed) % 4 == 0:
            probs[number % SIZE] = 0
        tables[prefix] = probs / probs.sum()
    return tables


def right_rule(drafts, q_rows, p_rows, uniforms):
    _, kept, following = accept_drafts(torch.tensor(drafts), q_rows, p_rows, uniforms)
    return int(kept), following


def resample_from_p(drafts, q_rows, p_rows, uniforms):
    kept, _ = right_rule(drafts, q_rows, p_rows, uniforms)
    return kept, p_rows[kept]


def residual_of_the_row_before(drafts, q_rows, p_rows, uniforms):
    kept, following = right_rule(drafts, q_rows, p_rows, uniforms)
    return kept, following if kept == GAMMA else residual_distribution(p_rows[kept], q_rows[max(0, kept - 1)])


def residual_for_the_bonus(drafts, q_rows, p_rows, uniforms):
    kept, following = right_rule(drafts, q_rows, p_rows, uniforms)
    return kept, following if kept < GAMMA else residual_distribution(p_rows[GAMMA], q_rows[GAMMA - 1])


def law_of_sequences(p, q, rule):
    """The exact distribution of the first 3 tokens: all draft paths, all sides of all ratios, all last tokens."""
    law = dict.fromkeys(product(range(SIZE), repeat=LENGTH), 0.0)
    for drafts in product(range(SIZE), repeat=GAMMA):
        prefixes = [drafts[:k] for k in range(GAMMA + 1)]
        q_rows = torch.stack([q[prefix] for prefix in prefixes[:GAMMA]])
        p_rows = torch.stack([p[prefix] for prefix in prefixes])
        chances = [float(row[token]) for row, token in zip(q_rows, drafts, strict=True)]
        if not all(chances):
            continue
        ratios = [float(p_rows[k][token]) / chances[k] for k, token in enumerate(drafts)]
        for pattern in product(*(sides(ratio) for ratio in ratios)):
            weight = math.prod(chances) * math.prod(chance for _, chance in pattern)
            kept, following = rule(drafts, q_rows, p_rows, as_row(*(number for number, _ in pattern)))
            for token in range(SIZE):
                complete(law, (*drafts[:kept], token), weight * float(following[token]), p)
    return law


def complete(law, written, weight, p):
    """Give the weight of a short output to its continuations by p, that of a long one to its first 3 tokens."""
    if len(written) >= LENGTH:
        law[written[:LENGTH]] += weight
        return
    for token in range(SIZE):
        complete(law, (*written, token), weight * float(p[written][token]), p)


def distance_to_the_target(seed, rule):
    p, q = table_model(seed), table_model(seed + 500)
    law = law_of_sequences(p, q, rule)
    return max(abs(law[path] - math.prod(float(p[path[:k]][path[k]]) for k in range(LENGTH))) for path in law)


@pytest.mark.parametrize("seed", range(6))
def test_sequences_are_distributed_exactly_as_the_targets_own(seed):
    assert distance_to_the_target(seed, right_rule) < 1e-12


@pytest.mark.parametrize("rule", [resample_from_p, residual_of_the_row_before, residual_for_the_bonus])
def test_the_enumeration_catches_the_usual_mistakes(rule):
    assert max(distance_to_the_target(seed, rule) for seed in range(6)) > 0.004  # the right rule: < 1e-12


# -- one iteration and whole runs --------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 5))
def test_an_iteration_keeps_guesses_up_to_the_first_rejection(seed, gamma):
    q, p = randn(gamma, 7, seed=seed).softmax(-1), randn(gamma + 1, 7, seed=seed + 1).softmax(-1)
    drafts = torch.multinomial(q, 1, generator=make_generator(seed))[:, 0]
    uniforms = torch.rand(gamma, dtype=torch.float64, generator=make_generator(seed + 1))
    done = verify(drafts, q, p, uniforms, generator=make_generator(seed))
    torch.testing.assert_close(done.accept_ratio, p[range(gamma), drafts] / q[range(gamma), drafts])
    flags = (uniforms < done.accept_ratio).tolist()
    expected = flags.index(False) if False in flags else gamma
    assert done.num_accepted == int(done.accepted.sum()) == expected
    assert done.tokens == [*drafts.tolist()[:expected], done.next_token]
    wanted = p[gamma] if expected == gamma else residual_distribution(p[expected], q[expected])
    torch.testing.assert_close(done.next_distribution, wanted)
    assert done.next_distribution[done.next_token] > 0


def toy_models(seed, size=5):
    """A target and a draft whose next token depends on the last two, and on the position."""
    tables = [2 * randn(size, size, 7, size, seed=seed + k) for k in (0, 1)]

    def model(table):
        def logits(ids):
            before = torch.cat([ids[:1], ids[:-1]])
            return table[before, ids, torch.arange(len(ids)) % 7]

        return logits

    return model(tables[0]), model(tables[1])


@given(seeds, st.integers(1, 5), st.integers(1, 12))
def test_greedy_text_is_the_targets_own_for_every_draft(seed, gamma, length):
    target, draft = toy_models(seed)
    prompt = torch.tensor([0, 1])
    run = speculative_decode(target, draft, prompt, length, gamma, temperature=0, generator=make_generator())
    text = prompt
    for _ in range(length):
        text = torch.cat([text, target(text)[-1].argmax()[None]])
    assert torch.equal(run.tokens, text[2:])


@given(seeds, st.integers(1, 5), st.integers(1, 12))
def test_calls_are_counted_and_every_one_gives_one_to_gamma_plus_one_tokens(seed, gamma, length):
    target, draft = toy_models(seed)
    run = speculative_decode(target, draft, torch.tensor([0]), length, gamma, generator=make_generator(seed))
    written = [token for one in run.iterations for token in one.tokens]
    assert written[:length] == run.tokens.tolist()
    assert len(written) - length <= gamma
    assert all(1 <= len(one.tokens) <= gamma + 1 for one in run.iterations)
    assert run.target_calls == len(run.iterations) <= length
    assert run.draft_calls == gamma * run.target_calls


def test_a_draft_that_is_the_target_is_always_believed():
    target, _ = toy_models(3)
    run = speculative_decode(target, target, torch.tensor([0]), 15, 4, generator=make_generator())
    assert [one.num_accepted for one in run.iterations] == [4, 4, 4]
    assert run.target_calls == 3


def test_the_text_ends_with_the_first_end_token_even_if_it_was_guessed():
    target, _ = toy_models(3)
    full = speculative_decode(target, target, torch.tensor([0]), 15, 4, generator=make_generator()).tokens.tolist()
    end = full[2]
    run = speculative_decode(target, target, torch.tensor([0]), 15, 4, generator=make_generator(), eos_token_id=end)
    assert run.tokens.tolist() == full[: full.index(end) + 1]
    assert run.target_calls == 1


def test_a_prompt_that_contains_the_end_token_is_gone_on_with():
    target, draft = toy_models(3)
    run = speculative_decode(target, draft, torch.tensor([4, 4]), 3, 2, generator=make_generator(), eos_token_id=4)
    assert len(run.tokens) >= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_run_with_and_without_a_cache(seed):
    model, draft = tiny_lm.load("base"), experiment.draft_model("small")
    prompt = torch.tensor(tiny_lm.encode(tiny_lm.PROMPT))
    cached = experiment.CachedModel(model)
    runs = [
        speculative_decode(target, draft, prompt, 10, 3, generator=make_generator(seed))
        for target in (experiment.target_model(), experiment.target_model(), cached)
    ]
    assert runs[0].tokens.tolist() == runs[1].tokens.tolist() == runs[2].tokens.tolist()
    assert [one.uniforms.tolist() for one in runs[0].iterations] == [
        one.uniforms.tolist() for one in runs[2].iterations
    ]
    assert cached.tokens_read < sum(len(prompt) + 3 * k for k in range(1, runs[2].target_calls + 1))


def test_a_cached_model_rolls_back_what_was_rejected():
    model = tiny_lm.load("base")
    cached, ids = experiment.CachedModel(model), torch.tensor(tiny_lm.encode(tiny_lm.story()))
    for text in (ids[:9], torch.cat([ids[:6], ids[20:24]]), ids[:4], ids[:30]):
        torch.testing.assert_close(cached(text), model(text[None])[0], atol=1e-4, rtol=1e-4)
    assert cached.tokens_read == 9 + 4 + 26


# -- how much it saves -------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.999), gammas, st.floats(0, 0.5))
def test_more_and_better_guesses_give_more_tokens_up_to_a_limit(alpha, gamma, more):
    tokens = expected_tokens(alpha, gamma)
    assert tokens == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))
    assert 1 <= tokens <= 1 / (1 - alpha) * (1 + 1e-12)
    assert expected_tokens(alpha, gamma + 1) >= tokens
    assert expected_tokens(min(1, alpha + more), gamma) >= tokens


@given(shares, gammas, st.floats(0, 1))
def test_guessing_nothing_changes_nothing_and_free_guesses_never_slow_down(alpha, gamma, c):
    assert walltime_improvement(alpha, 0, c) == 1
    assert walltime_improvement(alpha, gamma + 1, 0) >= walltime_improvement(alpha, gamma, 0)


@given(shares, gammas)
def test_arithmetic_never_falls_and_stays_the_same_for_a_perfect_draft(alpha, gamma):
    assert operations_factor(alpha, gamma, 0) >= 1 - 1e-12
    assert operations_factor(1, gamma, 0) == 1


@given(shares, st.floats(0, 1))
def test_guessing_pays_exactly_when_the_draft_is_better_than_it_is_slow(alpha, c):
    gamma = optimal_gamma(alpha, c)
    if alpha > c:
        assert walltime_improvement(alpha, gamma, c) >= (1 + alpha) / (1 + c) * (1 - 1e-12)
    else:
        assert gamma == 0 or walltime_improvement(alpha, gamma, c) <= 1 + 1e-12


def test_a_perfect_free_draft_is_asked_for_as_much_as_allowed():
    assert optimal_gamma(1, 0, max_gamma=20) == 20
    assert expected_tokens(1, 20) == 21


def test_dependent_betas_change_the_mean_that_their_average_promises():
    together = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert expected_tokens_from_betas(together) == 2
    assert expected_tokens_from_betas(apart) == 1.5
    assert expected_tokens(0.5, 2) == 1.75


def test_a_bigram_counts_pairs_and_guesses_anything_after_a_word_it_never_saw():
    table = fit_bigram(torch.tensor([[1, 2, 1, 3, 0], [1, 2, 0, 0, 0]]), 5, ignore_index=0)
    assert table[1].tolist() == pytest.approx([0, 0, 2 / 3, 1 / 3, 0])
    assert table[2].tolist() == [0, 1, 0, 0, 0]
    assert table[4].tolist() == pytest.approx([0.2] * 5)
    torch.testing.assert_close(table.sum(dim=1), torch.ones(5, dtype=torch.float64))


def test_alpha_is_the_mean_overlap_along_a_text():
    p, q = randn(4, 4, seed=1), randn(4, 4, seed=2)
    tokens = torch.tensor([[0, 1, 2], [3, 3, 0]])
    alpha, betas = estimate_alpha(lambda ids: p[ids], lambda ids: q[ids], tokens)
    wanted = [[float(torch.minimum(p[t].softmax(-1), q[t].softmax(-1)).sum()) for t in row] for row in tokens.tolist()]
    torch.testing.assert_close(betas, torch.tensor(wanted, dtype=torch.float64))
    assert alpha == pytest.approx(sum(map(sum, wanted)) / 6)


# -- refused input -----------------------------------------------------------------------------------------------------

HALF = torch.full((2, 2), 0.5)
ONE = torch.zeros(1, dtype=torch.long)
WRONG = [
    (lambda: standardize(HALF, -1.0), "temperature must be at least 0, got -1.0"),
    (lambda: standardize(HALF, math.nan), "temperature must be at least 0, got nan"),
    (lambda: standardize(HALF, top_k=0), "top_k must be at least 1, got 0"),
    (lambda: standardize(HALF, top_p=0.0), "top_p must be above 0 and at most 1, got 0.0"),
    (
        lambda: verify(ONE[:0], HALF[:0], HALF[:1], torch.rand(0), generator=make_generator()),
        "at least one draft token",
    ),
    (
        lambda: verify(ONE, HALF[:1], HALF[:1], torch.rand(1), generator=make_generator()),
        r"target_probs must be \(2, 2\) for 1 draft tokens, got \(1, 2\)",
    ),
    (
        lambda: verify(ONE, HALF[:1], HALF, torch.rand(2), generator=make_generator()),
        r"uniforms must be \(1,\)",
    ),
    (
        lambda: verify(ONE, HALF[:1] * 2, HALF, torch.rand(1), generator=make_generator()),
        r"rows of draft_probs must be distributions, got sums \[2.0\]",
    ),
    (
        lambda: verify(ONE, torch.tensor([[0.0, 1.0]]), HALF, torch.rand(1), generator=make_generator()),
        "a draft token has q = 0",
    ),
    (
        lambda: speculative_decode(lambda i: i, lambda i: i, ONE, 4, 0, generator=make_generator()),
        "gamma of at least 1, .* gamma 0",
    ),
    (
        lambda: speculative_decode(lambda i: i, lambda i: i, ONE[:0], 4, 1, generator=make_generator()),
        "needs a prompt, .* got 0 tokens",
    ),
    (lambda: expected_tokens(1.1, 2), "alpha must be in 0..1 .* got alpha 1.1"),
    (lambda: expected_tokens(0.5, -1), "gamma at least 0, got alpha 0.5, gamma -1"),
    (lambda: walltime_improvement(0.5, 1, -0.1), "c must be at least 0, got -0.1"),
    (lambda: operations_factor(0.5, 1, -0.1), "c_hat must be at least 0, got -0.1"),
    (lambda: fit_bigram(ONE, 5), "at least 2 tokens in a row, got 1"),
    (lambda: fit_bigram(torch.tensor([0, 5]), 5), "ids must be in 0..4, got 0..5"),
    (lambda: Config(draft="large"), "draft must be one of bigram, small, got 'large'"),
    (lambda: Config(gamma=9), "gamma must be in 1..8, got 9"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.usefixtures("plain_python")
def test_what_makes_no_sense_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the tiny LM and its drafts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return trace_store.get(speculative_decoding)


@pytest.mark.parametrize("draft", ["small", "bigram"])
def test_one_text_of_a_batch_is_the_run_of_one_text_draw_for_draw(draft):
    prompt = torch.tensor(tiny_lm.encode("one day the"))
    models = experiment.target_model(), experiment.draft_model(draft)
    alone = speculative_decode(*models, prompt, 12, 3, generator=make_generator(5))
    begin = torch.tensor([len(prompt)])
    together, gains = experiment.run_batch(
        *models, prompt[None], begin, 12, 3, temperature=1.0, generator=make_generator(5)
    )
    assert torch.equal(alone.tokens, together[0])
    assert gains.tolist() == [len(one.tokens) for one in alone.iterations]


def test_texts_of_a_batch_may_begin_at_different_places():
    story = torch.tensor(tiny_lm.encode(tiny_lm.story()))
    models = experiment.target_model(), experiment.draft_model("bigram")
    begin = torch.tensor([4, 9])
    new, _ = experiment.run_batch(*models, story.repeat(2, 1), begin, 6, 2, temperature=0.0, generator=make_generator())
    for row, length in zip(new, begin.tolist(), strict=True):
        alone = speculative_decode(*models, story[:length], 6, 2, temperature=0.0, generator=make_generator())
        assert torch.equal(row, alone.tokens)


def test_the_shown_run_agrees_with_itself(default):
    gamma, iterations = default.config.gamma, len(default.num_accepted)
    assert len(default.words.word) == default.config.max_new_tokens == len(default.words.role)
    assert len(default.draft_words) == gamma * iterations
    torch.testing.assert_close(default.accept_ratio, default.target_prob / default.draft_prob, rtol=1e-3, atol=1e-6)
    kept = (default.uniforms < default.accept_ratio).long().cumprod(dim=1)
    assert torch.equal(kept.bool(), default.accepted)
    assert torch.equal(kept.sum(dim=1), default.num_accepted)
    written = []
    for k, count in enumerate(default.num_accepted.tolist()):
        written += [*default.draft_words[k * gamma : k * gamma + count], default.next_words[k]]
    assert tuple(written[: len(default.words.word)]) == default.words.word
    assert int(default.words_after_pass[-1]) == len(default.words.word)
    assert torch.equal(default.words_of_pass.cumsum(dim=0), default.words_after_pass)
    assert 0 < int(default.num_accepted[default.shown_iteration]) < gamma


def test_every_iteration_ends_with_a_word_of_the_target(default):
    assert default.was_bonus.tolist() == [count == 4 for count in default.num_accepted.tolist()]
    roles = []
    for k, (count, bonus) in enumerate(zip(default.num_accepted.tolist(), default.was_bonus.tolist(), strict=True)):
        roles += [("accepted", k)] * count + [("bonus" if bonus else "replaced", k)]
    shown = list(zip(default.words.role, default.words.iteration.tolist(), strict=True))
    assert shown == roles[: len(shown)]


def test_the_timelines_lie_end_to_end_and_the_speculative_one_is_shorter(default):
    for line in (default.timeline_plain, default.timeline_speculative):
        torch.testing.assert_close(line.start[1:], line.end[:-1])
        assert int(line.words[-1]) == len(default.words.word)
    per_iteration = 1 + default.config.gamma * default.config.c
    assert float(default.timeline_speculative.end[-1]) == pytest.approx(per_iteration * len(default.passes), rel=1e-5)
    assert default.timeline_speculative.end[-1] < default.timeline_plain.end[-1]


def test_the_bars_are_poured_flush_to_p(default):
    assert default.max_abs_diff_output < 1e-12
    torch.testing.assert_close(default.output_top, default.p_top, atol=1e-12, rtol=0)
    torch.testing.assert_close(default.min_pq + default.excess_top, default.q_top)
    torch.testing.assert_close(default.min_pq + default.gap_top, default.p_top)
    torch.testing.assert_close((1 - default.beta) * default.residual, default.gap_top)
    for bars in (default.p_top, default.q_top, default.residual):
        assert float(bars.sum()) == pytest.approx(1)
    assert float(default.min_pq.sum()) == pytest.approx(default.beta)
    assert float(default.excess_top.sum()) == pytest.approx(default.rejected)
    assert float(default.gap_top.sum()) == pytest.approx(default.rejected)
    assert 0.3 < default.beta < 0.9  # both colors can be seen


@torch.no_grad()
def test_the_bars_are_what_both_models_say_after_the_prefix(default):
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:21]])
    assert default.shown_prefix == tiny_lm.tokens(ids[0])
    p, q = (tiny_lm.load(name)(ids)[0, -1].double().softmax(dim=-1) for name in ("base", "draft"))
    shown = list(tiny_lm.encode(" ".join(default.top_words[:-1]), bos=False))
    others = [word for word in range(len(p)) if word not in shown]
    for bars, probs in (
        (default.p_top, p), (default.q_top, q), (default.min_pq, torch.minimum(p, q)),
        (default.gap_top, (p - q).clamp(min=0)), (default.excess_top, (q - p).clamp(min=0)),
    ):  # fmt: skip
        expected = torch.cat([probs[shown], probs[others].sum()[None]])
        torch.testing.assert_close(bars, expected, atol=1e-6, rtol=0)
    assert float((p + q)[shown].min()) >= float((p + q)[others].max())
    torch.testing.assert_close(default.exact_expected, 20_000 * default.p_top)
    # five standard errors of a count
    assert ((default.exact_counts - default.exact_expected).abs() <= 5 * default.exact_expected.sqrt() + 1).all()


def test_darts_hit_the_bars_of_the_draft_and_those_below_p_are_kept(default):
    assert len(default.dart_words) == 40
    assert default.dart_words == tuple(default.top_words[bar] for bar in default.dart_bar.tolist())
    p, q = default.p_top[default.dart_bar], default.q_top[default.dart_bar]
    torch.testing.assert_close(p / q, default.dart_ratio)
    torch.testing.assert_close(default.dart_uniform * q, default.dart_height)
    assert torch.equal(default.dart_uniform < default.dart_ratio, default.dart_accepted)
    assert torch.equal(default.dart_height < p, default.dart_accepted)


def test_the_darts_shown_one_by_one_are_the_first_kept_and_the_clearest_rejected(default):
    kept, rejected = default.dart_shown.tolist()
    assert default.dart_accepted[: kept + 1].tolist() == [False] * kept + [True]
    above = default.dart_height - default.p_top[default.dart_bar]
    assert float(above[rejected]) == float(above.max()) > 0.05  # to be seen beside the border


def test_plain_decoding_writes_a_text_of_its_own_from_the_same_prompt(default):
    alone = tiny_lm.generate(
        tiny_lm.load("base"), [default.prompt], 24, temperature=1.0, generator=make_generator(0)
    )  # fmt: skip
    assert " ".join(default.plain_words) == alone[0]
    assert len(default.plain_words) == len(default.timeline_plain.end)


def test_the_law_is_drawn_through_the_points_of_table_1(default):
    points = zip(default.table1.alpha, default.table1.gamma, default.table1.speed, strict=True)
    for alpha, gamma, speed in points:
        (row,) = (default.law_alphas == alpha).nonzero()[:, 0].tolist()
        assert default.law_tokens[row, default.law_gammas.tolist().index(int(gamma))] == speed
    assert torch.equal(default.perfect_tokens, default.law_gammas + 1.0)


def test_many_first_words_follow_p(default):
    assert int(default.exact_counts.sum()) == default.exact_runs == 20_000
    torch.testing.assert_close(default.exact_share * 20_000, default.exact_counts.float())
    assert default.p_value > 0.01
    assert default.degrees_of_freedom >= 4


def test_the_test_of_exactness_would_notice_a_biased_rule():
    p, q = as_row(0.5, 0.3, 0.2), as_row(0.2, 0.3, 0.5)
    right = experiment.first_tokens(p, q, 20_000, make_generator())
    assert experiment.chi_square(torch.bincount(right, minlength=3), p)["p_value"] > 0.01
    drawn = torch.multinomial(q, 20_000, replacement=True, generator=make_generator())
    kept = torch.rand(20_000, generator=make_generator(1)) < p[drawn] / q[drawn]
    again = torch.multinomial(p, 20_000, replacement=True, generator=make_generator(2))  # from p, not the residual
    assert experiment.chi_square(torch.bincount(drawn.where(kept, again), minlength=3), p)["p_value"] < 1e-6


def test_the_statistic_is_pearsons_with_rare_words_in_one_cell_however_rare():
    p, counts = as_row(0.6, 0.394, 0.004, 0.002), torch.tensor([58, 40, 1, 1])  # the last two: 0.6 expected in 100
    expected = stats.chisquare([58, 40, 2], [60, 39.4, 0.6])
    found = experiment.chi_square(counts, p)
    assert found["degrees_of_freedom"] == 2
    assert (found["chi_square"], found["p_value"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6)


def test_few_short_runs_are_measured_as_many_long_ones(monkeypatch):
    for name, value in {"RUNS": 4, "RUN_LENGTH": 6, "PHASES": 2, "GAMMAS": (1, 3)}.items():
        monkeypatch.setattr(experiment, name, value)
    config = Config(seed=2)
    alpha, found = experiment.measurements(config)
    texts, target = experiment.target_texts(config), experiment.target_model()
    assert texts.shape == (4, 4 + 7)  # <bos> one day the, and 6 + 1 more
    begin = torch.tensor([4, 5, 4, 5])
    for name in experiment.DRAFTS:
        draft = experiment.draft_model(name)
        betas = estimate_alpha(target, draft, texts[:, :-1])[1][:, 3:]
        assert alpha[name] == pytest.approx(float(betas.mean()))
        assert int(found["beta_counts"][name].sum()) == found["measured_positions"] == 4 * 7
        for column, gamma in enumerate((1, 3)):
            settings = {"temperature": 1.0, "generator": make_generator(2)}
            _, gains = experiment.run_batch(target, draft, texts, begin, 6, gamma, **settings)
            gains = gains.tolist()
            mean = sum(gains) / len(gains)
            error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1) / len(gains))
            assert float(found["tokens_per_call_measured"][name][column]) == pytest.approx(mean)
            assert float(found["tokens_per_call_stderr"][name][column]) == pytest.approx(error)
            kept = [
                sum(math.prod(row[start : start + k]) for k in range(gamma + 1))
                for row in betas.tolist()
                for start in range(7 - gamma + 1)
            ]
            from_betas = float(found["tokens_per_call_from_betas"][name][column])
            assert from_betas == pytest.approx(sum(kept) / len(kept))


def test_counted_tokens_lie_near_the_formula_but_not_on_it(default):
    for name in default.draft_names:
        counted, formula = default.tokens_per_call_measured[name], default.tokens_per_call_formula[name]
        assert ((counted / formula - 1).abs() < 0.05).all()
        assert (counted <= default.gammas + 1).all()
        assert (counted[1:] - counted[:-1]).min() > -0.1
        neighbors = default.tokens_per_call_from_betas[name]
        assert ((counted / neighbors - 1).abs() < 0.06).all()
        assert int(default.beta_counts[name].sum()) == default.measured_positions >= 4000
    far = (counted - formula).abs() / default.tokens_per_call_stderr[name]
    assert far.max() > 3  # the β of neighboring words are not independent
    assert default.alpha["bigram"] + 0.2 < default.alpha["small"] < 1


def test_the_optimum_lies_on_the_drawn_curve(default):
    best = default.optimal_gamma
    assert float(default.speedup[best]) == float(default.speedup.max())
    assert best < len(default.curve_gammas) - 1
    assert (default.operations_curve >= 1).all()


def test_the_curves_are_the_papers_formulas(default):
    alpha, gammas = default.alpha["small"], range(25)
    tokens = [sum(alpha**k for k in range(gamma + 1)) for gamma in gammas]  # 1 + α + … + α^γ
    for cost, best, curve in zip(
        default.speedup_costs.tolist(), default.speedup_best.tolist(), default.speedup_curves, strict=True
    ):
        speeds = [tokens[gamma] / (gamma * cost + 1) for gamma in gammas]
        assert curve.tolist() == pytest.approx(speeds, rel=1e-5)
        assert best == (64 if cost == 0 else int(torch.tensor(speeds).argmax()))
    torch.testing.assert_close(default.speedup, default.speedup_curves[1])
    sizes = [tiny_lm.load(name).num_params for name in ("draft", "base")]
    assert default.c_hat == pytest.approx(sizes[0] / sizes[1])
    work = [(gamma * default.c_hat + gamma + 1) / tokens[gamma] for gamma in gammas]
    assert default.operations_curve.tolist() == pytest.approx(work, rel=1e-5)
    assert [round(value, 2) for value in default.table1.operations.tolist()] == [1.53, 1.58, 1.23, 1.63, 1.11, 1.60]
    assert [round(value, 2) for value in default.table1.speed.tolist()] == [1.96, 2.53, 2.44, 3.69, 2.71, 6.86]


def test_the_histograms_have_the_mean_that_is_called_alpha(default):
    middles = (default.beta_edges[1:] + default.beta_edges[:-1]) / 2
    assert default.beta_edges.tolist() == pytest.approx([k / 20 for k in range(21)])
    for name in default.draft_names:
        counts = default.beta_counts[name]
        mean = float((counts * middles).sum() / counts.sum())
        assert mean == pytest.approx(default.alpha[name], abs=1 / 40)  # half a bin
    assert default.measured_positions % default.measured_runs == 0


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"draft": "bigram", "gamma": 8}])
def test_other_settings_can_be_shown_too(settings):
    config = Config(**settings)
    run, position = experiment.shown_run(config), experiment.shown_position(config)
    assert len(run["words"].word) == 24
    assert position["p_value"] > 0.001
    differences = (position["output_top"] - position["p_top"])[:-1].abs()
    assert float(differences.max()) <= position["max_abs_diff_output"] < 1e-12
    kept = position["dart_accepted"]
    first = [int(kept.nonzero()[0])] if kept.any() else []
    assert position["dart_shown"].tolist()[: len(first)] == first
    assert not kept[position["dart_shown"][-1]]
    assert torch.equal(kept, position["dart_height"] < position["p_top"][position["dart_bar"]])


def test_a_trace_survives_the_store(default, tmp_path):
    default.save(tmp_path / "trace.safetensors")
    assert speculative_decoding.Trace.load(tmp_path / "trace.safetensors").hash == default.hash
