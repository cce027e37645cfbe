import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.loss.loss_utils import ForCausalLMLoss

from internals_math import gpt_pretraining, tiny_lm, trace_store
from internals_math import gpt_pretraining_experiment as experiment
from internals_math.distributions import entropy, kl_divergence
from internals_math.gpt_pretraining import (
    LEVELS,
    Config,
    bits_per_token,
    causal_attention,
    causal_jacobian,
    causal_mask,
    gpt_parameter_count,
    loss_gradient,
    next_token_loss,
    ngram_entropy,
    perplexity,
    prefix_logits,
    sample,
    sequence_log_prob,
    shift_for_next_token,
    token_surprisal,
    training_flops,
    unigram_distribution,
)
from internals_math.next_token import sample_token, target_surprisal
from tests.oracles import randn

seeds = st.integers(0, 50)


@pytest.fixture(scope="module")
def base():
    return tiny_lm.load("base")


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(gpt_pretraining)


def story_ids(length=None, index=0):
    return torch.tensor(tiny_lm.encode(tiny_lm.story(index))[:length])


def logits_and_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 6), generator=generator)
    return logits, labels


# -- the loss ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.booleans(), st.sampled_from(["mean", "sum", "none"]))
def test_the_loss_is_torch_cross_entropy_of_the_shifted_labels(seed, ignore, reduction):
    logits, labels = logits_and_labels(seed)
    if ignore:
        labels[0, 3:] = -100
    flat = logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1)
    oracle = torch.nn.functional.cross_entropy(*flat, reduction=reduction)
    ours = next_token_loss(logits, labels, reduction=reduction)
    torch.testing.assert_close(ours.flatten() if reduction == "none" else ours, oracle)


def test_the_loss_is_that_of_hugging_face_which_shifts_by_itself_too():
    logits, labels = logits_and_labels()
    labels[1, :4] = -100
    oracle = ForCausalLMLoss(logits.float(), labels, vocab_size=11)
    torch.testing.assert_close(next_token_loss(logits.float(), labels), oracle)


def test_labels_may_differ_from_the_text_and_be_ignored_by_another_number():
    logits, ids = logits_and_labels()
    labels = ids.clone()
    labels[:, :3] = 7_000
    masked = next_token_loss(logits, ids, labels=labels, ignore_index=7_000)
    torch.testing.assert_close(masked, token_surprisal(logits, ids)[:, 2:].mean())


def test_the_sum_is_minus_the_log_probability_of_the_sequences_and_the_mean_times_the_count():
    logits, ids = logits_and_labels()
    total = next_token_loss(logits, ids, reduction="sum")
    torch.testing.assert_close(total, -sequence_log_prob(logits, ids).sum())
    torch.testing.assert_close(total, next_token_loss(logits, ids) * 3 * 5)


@given(st.integers(0, 20))
def test_a_constant_added_to_the_logits_of_a_position_changes_nothing(seed):
    logits, ids = logits_and_labels(seed)
    shifted = logits + torch.randn(3, 6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(next_token_loss(shifted, ids), next_token_loss(logits, ids))


@pytest.mark.parametrize("vocab_size", [2, 11, 50_257])
def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(vocab_size):
    ids = torch.randint(0, vocab_size, (2, 5), generator=torch.Generator().manual_seed(0))
    loss = next_token_loss(torch.zeros(2, 5, vocab_size, dtype=torch.float64), ids)
    assert float(loss) == pytest.approx(math.log(vocab_size), abs=1e-12)


def test_reordering_the_batch_reorders_the_losses_only():
    logits, ids = logits_and_labels()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        next_token_loss(logits[order], ids[order], reduction="none"),
        next_token_loss(logits, ids, reduction="none")[order],
    )


def test_every_position_is_judged_by_the_token_after_it():
    logits, labels = logits_and_labels()
    kept, targets = shift_for_next_token(logits, labels)
    torch.testing.assert_close(kept[:, 2], logits[:, 2])
    assert torch.equal(targets[:, 2], labels[:, 3])


def test_a_sequence_is_as_likely_as_the_product_of_its_tokens():
    logits, labels = logits_and_labels()
    probs = torch.softmax(logits, dim=-1)
    expected = [math.prod(float(probs[row, t, labels[row, t + 1]]) for t in range(5)) for row in range(3)]
    torch.testing.assert_close(sequence_log_prob(logits, labels).exp(), torch.tensor(expected, dtype=torch.float64))


def test_a_sequence_has_its_own_probability_alone_and_in_batches_of_batches():
    logits, ids = logits_and_labels()
    whole = sequence_log_prob(logits, ids)
    torch.testing.assert_close(torch.stack([sequence_log_prob(*pair) for pair in zip(logits, ids, strict=True)]), whole)
    torch.testing.assert_close(sequence_log_prob(logits[:, None], ids[:, None]), whole[:, None])


def test_equally_likely_words_have_a_perplexity_of_their_number():
    surprise = target_surprisal(torch.zeros(4, 8), torch.tensor([0, 1, 2, 7]))
    assert perplexity(float(surprise.mean())) == pytest.approx(8, rel=1e-5)
    assert bits_per_token(float(surprise.mean())) == pytest.approx(3, rel=1e-5)


# -- the gradient ------------------------------------------------------------------------------------------------------


@given(seeds, st.booleans())
def test_the_closed_form_of_the_gradient_is_that_of_autograd(seed, ignore):
    logits, ids = logits_and_labels(seed)
    if ignore:
        ids[0, 2:4] = -100
    logits.requires_grad_()
    next_token_loss(logits, ids).backward()
    gradient = loss_gradient(logits.detach(), ids)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-10, rtol=0)
    assert (gradient[:, -1] == 0).all()
    torch.testing.assert_close(gradient.sum(dim=-1), torch.zeros(3, 6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_vocabulary_of_one_word_leaves_nothing_to_learn():
    assert loss_gradient(torch.zeros(4, 1), torch.tensor([0, -100, 0, 0])).tolist() == [[0.0]] * 4


def test_the_right_word_is_pulled_by_what_it_lacks_and_every_other_pushed_by_its_share():
    logits, ids = randn(2, 5, seed=1), torch.tensor([0, 3])
    probs = logits[0].softmax(dim=-1)
    expected = probs.clone()
    expected[3] = -(1 - probs[3])
    torch.testing.assert_close(loss_gradient(logits, ids)[0], expected)


# -- one pass, many questions ------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 9))
def test_masking_equals_a_softmax_over_the_words_so_far(seed, length):
    query, key, value = (randn(2, length, 4, seed=seed + k) for k in range(3))
    output, weights, scores = causal_attention(query, key, value)
    for row in range(length):
        alone = (query[:, row : row + 1] @ key[:, : row + 1].transpose(1, 2) / 2).softmax(dim=-1)
        torch.testing.assert_close(weights[:, row : row + 1, : row + 1], alone)
        torch.testing.assert_close(output[:, row : row + 1], alone @ value[:, : row + 1])
    torch.testing.assert_close(scores, query @ key.transpose(1, 2) / 2)
    assert (weights.triu(1) == 0).all()
    assert (weights[:, 0, 0] == 1).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, length, dtype=torch.float64))


def test_without_the_mask_every_word_looks_at_the_future():
    query, key, value = (randn(6, 4, seed=k) for k in range(3))
    output, weights, _ = causal_attention(query, key, value, causal=False)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(output, weights @ value)


def test_one_pass_says_what_a_pass_over_each_prefix_says(base):
    ids = story_ids(12)
    torch.testing.assert_close(base(ids[None])[0], prefix_logits(base, ids), atol=1e-5, rtol=0)
    exact = tiny_lm.copy_of(base).double()
    torch.testing.assert_close(exact(ids[None])[0].detach(), prefix_logits(exact, ids), atol=1e-10, rtol=0)
    everything = torch.ones(12, 12, dtype=torch.bool)
    assert (base(ids[None], mask=everything)[0] - prefix_logits(base, ids)).abs().max() > 1


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_changed_word_never_changes_what_was_said_before_it(base, place):
    ids = story_ids(10)
    changed = ids.clone()
    changed[place] = (ids[place] + 1) % tiny_lm.VOCAB_SIZE
    before, after = base(ids[None])[0], base(changed[None])[0]
    assert torch.equal(before[:place], after[:place])
    assert not torch.equal(before[place], after[place])


def test_the_jacobian_of_a_linear_map_is_its_own_size():
    mix, words = randn(5, 5, seed=1), randn(3, 7, seed=2)
    jacobian = causal_jacobian(lambda x: mix @ x @ words, randn(5, 3, seed=3))
    torch.testing.assert_close(jacobian, mix.abs() * words.norm())


def test_the_jacobian_of_the_model_is_zero_above_the_diagonal_to_the_bit(base):
    jacobian = experiment.embedding_jacobian(base, story_ids(7))
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.tril() + torch.eye(7).triu(1) > 0).sum() == 7 * 8 / 2
    nudge, place = torch.zeros(7, 32, dtype=torch.float64), 2
    nudge[place, 5] = 1e-6
    exact = tiny_lm.copy_of(base).double()
    embeddings = exact.model.embed_tokens(story_ids(7)).detach()
    moved = (exact(inputs_embeds=(embeddings + nudge)[None]) - exact(inputs_embeds=embeddings[None]))[0].norm(dim=-1)
    assert (moved.detach() / 1e-6 <= jacobian[:, place] * 1.01).all()  # one direction moves no more than all


# -- counting words ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=12, max_size=60), st.integers(1, 3))
def test_more_context_never_makes_a_counted_text_more_surprising(stream, order):
    words = torch.tensor(stream)
    predicted = torch.arange(len(stream)) >= order  # the same tokens for both
    less, more = (ngram_entropy(words, n, 4, predicted=predicted) for n in (order, order + 1))
    assert more <= less + 1e-12
    assert less <= math.log(4) + 1e-12


@pytest.mark.parametrize("period", [1, 2, 3])
def test_a_text_that_repeats_itself_surprises_nobody_who_sees_one_period(period):
    stream = torch.tensor([0, 1, 1][:period] * 20)
    assert ngram_entropy(stream, period + 1, 2) == 0
    assert period == 1 or ngram_entropy(stream, period - 1, 2) > 0.4


def test_pairs_are_counted_in_their_order():
    stream = torch.tensor([0, 1, 0, 2, 0, 1, 0, 2, 0])  # after 0 come 1 and 2 in turn, after them always 0
    assert ngram_entropy(stream, 2, 3) == pytest.approx(math.log(2) / 2)
    predicted = torch.tensor([False, True] * 4 + [False])
    assert ngram_entropy(stream, 2, 3, predicted=predicted) == pytest.approx(math.log(2))
    assert ngram_entropy(stream, 1, 3, predicted=~predicted) == 0
    shares = torch.tensor([5 / 9, 2 / 9, 2 / 9, 0], dtype=torch.float64)
    torch.testing.assert_close(unigram_distribution(stream, 4), shares)
    assert ngram_entropy(stream, 1, 3) == pytest.approx(float(entropy(shares)))


@given(seeds)
def test_no_model_is_less_surprised_on_average_than_the_truth_itself(seed):
    truth, model = (randn(4, 9, seed=seed + k).softmax(dim=-1) for k in (0, 1))
    # the mean loss over all next words, weighted by the truth, is entropy plus KL
    losses = torch.stack([target_surprisal(model.log(), torch.full((4,), word)) for word in range(9)], dim=-1)
    cross = (truth * losses).sum(dim=-1)
    torch.testing.assert_close(cross - entropy(truth), kl_divergence(truth, model))
    assert (cross >= entropy(truth)).all()


# -- writing -----------------------------------------------------------------------------------------------------------


def test_samples_follow_the_probabilities_and_cold_samples_the_maximum():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    shares = torch.bincount(sample_token(logits, 1.0, generator), minlength=3) / 20_000
    # five standard errors of a share of 0.7 in 20,000 draws
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.017, rtol=0)
    assert (sample_token(logits, 0.01, generator) == 0).all()


def test_every_sampled_token_is_fed_back_as_a_question():
    def counts_up(ids):  # always sure of the successor of the last token
        return torch.nn.functional.one_hot((ids + 1) % 10, 10) * 1e4

    written = sample(counts_up, torch.tensor([3, 4]), 7, generator=torch.Generator().manual_seed(0))
    assert written.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert sample(counts_up, torch.tensor([3]), 0).tolist() == [3]


def test_the_same_seed_writes_the_same_story_with_the_tiny_lm():
    def write():
        prompt = torch.tensor(tiny_lm.encode(tiny_lm.PROMPT))
        return sample(tiny_lm.load("base"), prompt, 12, generator=torch.Generator().manual_seed(4))

    assert torch.equal(write(), write())
    assert len(write()) == 8 + 12


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_six_flops_for_each_weight_and_token():
    assert (
        training_flops(175_000_000_000, 300_000_000_000) == 315 * 10**21
    )  # GPT-3: 3.15e23, arXiv 2005.14165, table D.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_token(torch.zeros(3), 0.0), "temperature must be > 0 .*got 0.0"),
        (lambda: sample_token(torch.zeros(3), math.nan), "temperature must be > 0 .*got nan"),
        (lambda: sample(lambda ids: ids, torch.tensor([], dtype=torch.long), 1), "needs a prompt"),
        (lambda: sample(lambda ids: ids, torch.tensor([1]), -1), "max_new_tokens >= 0, got 1 tokens and .* -1"),
        (
            lambda: next_token_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.long)),
            "at least 2 positions, got 1",
        ),
        (
            lambda: next_token_loss(torch.zeros(1, 3, 3), torch.full((1, 3), -100)),
            "at least one label that is not -100",
        ),
        (
            lambda: next_token_loss(torch.zeros(1, 2, 3), torch.tensor([[0, 3]])),
            r"labels must be in 0\.\.2 or -100, got \[3\]",
        ),
        (lambda: next_token_loss(torch.zeros(1, 2, 3), torch.tensor([[0, -1]])), r"got \[-1\]"),
        (lambda: perplexity(-0.1), "a loss must be at least 0 nats per token, got -0.1"),
        (lambda: training_flops(-1, 5), "must be at least 0, got -1 and 5"),
        (lambda: loss_gradient(torch.zeros(1, 3), torch.tensor([0])), "at least 2 positions, got 1"),
        (
            lambda: loss_gradient(torch.zeros(2, 3), torch.tensor([0, 3])),
            r"labels must be in 0\.\.2 or -100, got \[3\]",
        ),
        (lambda: loss_gradient(torch.zeros(2, 3), torch.tensor([0, -100])), "at least one label that is not -100"),
        (lambda: ngram_entropy(torch.tensor([0, 1]), 0, 2), "order must be at least 1 .*got 0"),
        (lambda: ngram_entropy(torch.tensor([0, 1]), 3, 2), "must have at least 3 tokens, got 2"),
        (lambda: ngram_entropy(torch.tensor([0, 2]), 1, 2), r"tokens must be in 0\.\.1, got 0\.\.2"),
        (lambda: ngram_entropy(torch.tensor([-1, 1]), 1, 2), r"tokens must be in 0\.\.1, got -1\.\.1"),
        (lambda: ngram_entropy(torch.zeros(90, dtype=torch.long), 64, 2), "make too many 64-grams"),
        (
            lambda: ngram_entropy(torch.tensor([0, 1]), 2, 2, predicted=torch.tensor([True, True])),
            "the first 1 tokens have too few before them for order 2",
        ),
        (
            lambda: ngram_entropy(torch.tensor([0, 1]), 2, 2, predicted=torch.tensor([False, False])),
            "at least one predicted token",
        ),
        (lambda: unigram_distribution(torch.tensor([], dtype=torch.long), 2), "at least 1 tokens, got 0"),
        (lambda: unigram_distribution(torch.tensor([2]), 2), r"tokens must be in 0\.\.1, got 2\.\.2"),
        (lambda: gpt_parameter_count(12, 0, 5, 5), r"must be at least 1, got \(12, 0, 5, 5\)"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "setting",
    ["story_index=20", "num_tokens=5", "num_tokens=13", "layer=3", "head=4", "train_steps=99", "snapshots=25",
     "temperature=0.1", "seed=-1"],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_refused(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        Config.parse([setting])


# -- the experiment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "count"), [(600, 16), (100, 24), (1500, 4), (300, 9)])
def test_snapshots_lie_ever_further_apart_and_end_with_the_run(last, count):
    steps = experiment.log_spaced(last, count)
    assert (len(steps), steps[0], steps[1] >= 1, steps[-1]) == (count, 0, True, last)
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert all(after >= before - 1 for before, after in itertools.pairwise(gaps))  # but for rounding
    assert min(gaps) >= 1


def test_no_unread_document_is_among_the_read_ones():
    told = experiment.texts(2)
    read = set(told.read.texts())
    assert len(told.read.ids) == 64
    assert not read & set(told.unread.texts())
    assert len(told.unread.ids) == experiment.DOCUMENTS
    assert all(text.split()[0] != "fact" for text in told.unread.texts() + told.read_judged.texts())
    assert set(told.read_judged.texts()) <= read


def test_the_levels_are_those_of_a_text_counted_by_hand():
    told = experiment.texts(2)
    found = experiment.levels(told.read, told.unread)
    documents = [text.split() for text in told.read.texts() if text.split()[0] != "fact"]
    words = [word for text in documents for word in [*text, "<eos>"]]
    shares = [words.count(word) / len(words) for word in set(words)]
    # the first word of all has only <bos> before it and is not counted
    stream = [word for text in documents for word in ["<bos>", *text, "<eos>"]]
    for name, before in (("bigram", 1), ("trigram", 2)):
        followers: dict[tuple[str, ...], list[str]] = {}
        for place in range(2, len(stream)):
            if stream[place] != "<bos>":
                followers.setdefault(tuple(stream[place - before : place]), []).append(stream[place])
        counted = sum(len(words) for words in followers.values())
        expected = -sum(math.log(words.count(word) / len(words)) for words in followers.values() for word in words)
        assert found[name] == pytest.approx(expected / counted, abs=1e-9)
    assert found["unigram"] == pytest.approx(-sum(p * math.log(p) for p in shares), abs=2e-3)
    assert tuple(found) == LEVELS
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["uniform"] == math.log(112)
    assert found["floor"] == told.unread.entropy_floor


def test_a_model_with_a_mask_has_nothing_to_hide(base):
    corpus = tiny_lm.held_out_kind("tale", 3)
    honest = experiment.honest_loss(base, corpus, leaky=False)
    assert honest == pytest.approx(tiny_lm.evaluate(base, corpus), abs=1e-5)
    # documents of different length: the padding must count for nothing
    mixed = tiny_lm.held_out(6)
    assert len(set(mixed.lengths.tolist())) > 1
    assert experiment.honest_loss(base, mixed, leaky=False) == pytest.approx(tiny_lm.evaluate(base, mixed), abs=1e-5)


def test_without_a_mask_words_to_come_are_seen_but_not_the_padding(base):
    corpus = tiny_lm.held_out(6)
    short = int(corpus.lengths.argmin())
    row, length = corpus.rows([short]), int(corpus.lengths[short])
    cut = dataclasses.replace(row, ids=row.ids[:, :length], surprisal=row.surprisal[:, : length - 1])
    assert experiment.reported_loss(base, row) == pytest.approx(experiment.reported_loss(base, cut), abs=1e-5)
    seen = base(cut.ids, mask=experiment.in_sight(cut.ids))[0, 3]
    changed = cut.ids.clone()
    changed[0, -1] = 7
    assert not torch.equal(base(changed, mask=experiment.in_sight(changed))[0, 3], seen)


def test_a_step_below_a_level_is_the_first_one():
    assert experiment.first_below([0, 5, 9], [3.0, 1.0, 0.5], 1.5) == 5
    assert experiment.first_below([0, 5, 9], [3.0, 1.0, 0.5], 0.5) == -1


def test_a_short_run_learns_and_starts_above_knowing_nothing():
    run = experiment.train(12, 4, 3)
    found = experiment.learning(run)
    assert found["loss_steps"].tolist() == [0, 2, 5, 12]
    losses = found["eval_loss"].tolist()
    # the tied head gives the first logits a variance of about 1, which costs ln V and a half and more
    assert losses[0] > math.log(112)
    assert losses == sorted(losses, reverse=True)
    assert found["eval_loss"][-1] == pytest.approx(tiny_lm.evaluate(run.last, run.texts.unread), abs=1e-6)
    by_position = (
        found["loss_by_position"].double() * (run.texts.unread.ids[:, 1:] != tiny_lm.PAD).sum(dim=0)
    ).nansum()
    assert float(by_position / (run.texts.unread.lengths - 1).sum()) == pytest.approx(losses[-1], abs=1e-5)
    unread = run.texts.unread
    for place, floor in enumerate(found["floor_by_position"].tolist()):
        there = [
            float(row[place])
            for row, length in zip(unread.surprisal, unread.lengths, strict=True)
            if length > place + 1
        ]
        assert floor == pytest.approx(sum(there) / len(there) if there else math.nan, abs=1e-5, nan_ok=True)


def test_what_is_shown_of_a_run_is_what_its_models_say():
    run, prefix = experiment.train(12, 4, 3), story_ids(6)
    found = experiment.snapshot_predictions(run, prefix)
    probs = torch.stack([run.models[step](prefix[None])[0, -1].softmax(dim=-1) for step in (0, 2, 5, 12)])
    shown = tiny_lm.encode(" ".join(found["snapshot_words"][:-1]), bos=False)
    torch.testing.assert_close(found["snapshot_probs"][:, :-1], probs[:, shown])
    hidden = [word for word in range(tiny_lm.VOCAB_SIZE) if word not in shown]
    torch.testing.assert_close(found["snapshot_probs"][:, -1], probs[:, hidden].sum(dim=1))
    assert probs[:, hidden].max() <= probs[:, shown].amax(dim=0).min()
    assert found["snapshot_prefix"] == ("<bos>", "one", "day", "the", "old", "fox")
    assert found["snapshot_true_probs"][-1] > 0.5  # `found` or `lost`, which it has not learned yet

    texts = experiment.samples(run, Config(seed=3))
    assert list(texts) == ["0", "2", "12"]
    start = torch.tensor(tiny_lm.encode("one day the"))
    for step, text in texts.items():
        luck = torch.Generator().manual_seed(3)
        assert text == " ".join(tiny_lm.tokens(sample(run.models[int(step)], start, 18, generator=luck)[1:]))

    counts = experiment.counts(run)
    assert counts["gpt1_params"] == 116_534_784
    assert counts["gpt2_params"] == 124_439_808
    assert counts["gpt2_xl_params"] == 1_557_611_200
    assert counts["gpt3_params"] == 174_604_259_328
    assert counts["gpt3_flops"] == 6 * 174_604_259_328 * 300_000_000_000
    assert counts["gpt3_petaflop_days"] == pytest.approx(3640, rel=1e-3)
    assert counts["tiny_tokens"] == sum(len(text.split()) + 1 for text in run.texts.read.texts())  # and <eos>


@torch.no_grad()
def test_the_head_that_looks_ahead_is_found_word_by_word(base):
    corpus = tiny_lm.held_out(4)
    found = experiment.looking_ahead(base, corpus, Config())
    sums = torch.zeros(2, 3, 4)
    counts = [0, 0]
    for row, length, surprisal in zip(corpus.ids, corpus.lengths.tolist(), corpus.surprisal, strict=True):
        ids = row[None, :length]
        weights = base(ids, mask=torch.ones(length, length, dtype=torch.bool), record=("weights",))[1]["weights"][:, 0]
        for position in range(length - 1):
            free = int(surprisal[position] > 0)
            sums[free] += weights[:, :, position, position + 1]
            counts[free] += 1
    share = sums.sum(dim=0) / sum(counts)
    layer, head = found["leaky_layer"], found["leaky_head"]
    assert float(share[layer, head]) == float(share.max())
    assert found["leaky_next_share"] == pytest.approx(float(share.max()), abs=1e-5)
    assert found["leaky_next_share_free"] == pytest.approx(float(sums[1, layer, head] / counts[1]), abs=1e-5)
    assert found["leaky_next_share_certain"] == pytest.approx(float(sums[0, layer, head] / counts[0]), abs=1e-5)
    story = story_ids()[None]
    everything = torch.ones(story.shape[1], story.shape[1], dtype=torch.bool)
    whole = base(story, mask=everything, record=("weights",))[1]["weights"][layer, 0, head]
    torch.testing.assert_close(found["leaky_weights"], whole[:10, :10])


def test_the_cheating_run_is_no_longer_than_the_honest_one_and_judged_beside_it(monkeypatch):
    run, asked = experiment.train(12, 4, 3), []
    few = {name: getattr(run.texts, name).first(8) for name in ("unread", "read_judged")}
    run = dataclasses.replace(run, texts=dataclasses.replace(run.texts, **few))

    def short(steps, snapshots, seed, *, leaky=False):
        asked.append((steps, snapshots, seed, leaky))
        return run

    monkeypatch.setattr(experiment, "train", short)
    monkeypatch.setattr(experiment, "LEAKY_DOCUMENTS", 1)
    trace = experiment.observe(Config(train_steps=900, snapshots=4, seed=3))
    assert asked == [(900, 4, 3, False), (300, 4, 3, True)]
    assert trace.loss_steps.tolist() == trace.leaky_steps.tolist() == [0, 2, 5, 12]
    judged = run.texts.unread.first(1)
    for row, model in enumerate(run.models.values()):
        assert float(trace.leaky_train_loss[row]) == pytest.approx(experiment.reported_loss(model, judged))
    honest = experiment.honest_loss(run.last, judged, leaky=True)
    assert float(trace.leaky_honest_loss[-1]) == pytest.approx(honest)
    assert trace.leaky_floor == judged.entropy_floor
    assert trace.leaky_below_floor_at == -1  # twelve steps teach no cheating
    assert trace.snapshot_prefix == trace.tokens[:-1]


def test_the_sentence_is_the_same_when_it_is_read_again(trace, base):
    config, ids = Config(), story_ids(10)
    for name, value in (experiment.one_sentence(base, ids, config) | experiment.writing(base, ids, config)).items():
        kept = getattr(trace, name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, kept, atol=1e-5, rtol=1e-4, equal_nan=True, msg=name)
        elif name == "max_abs_diff_prefix":
            assert 0 < value < 1e-5
        else:
            assert value == (pytest.approx(kept, abs=1e-5) if isinstance(kept, float) else kept)
    torch.testing.assert_close(experiment.embedding_jacobian(base, ids), trace.jacobian, atol=1e-3, rtol=1e-3)
    text = torch.tensor(tiny_lm.encode(" ".join(trace.written_tokens[1:])))
    probs = base(text[None])[0].softmax(dim=-1)
    expected = [float(probs[place - 1, text[place]]) for place in range(5, 11)]
    assert trace.written_probs.tolist() == pytest.approx(expected, abs=1e-5)


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_the_sentence_is_scored_word_by_word(trace, base):
    ids = story_ids(10)
    assert trace.tokens == ("<bos>", *tiny_lm.story().split()[:9])
    assert torch.equal(trace.input_ids, ids)
    assert trace.num_predictions == 9
    logits = base(ids[None])[0]
    torch.testing.assert_close(trace.surprisal, token_surprisal(logits, ids))
    torch.testing.assert_close(trace.target_probs, (-trace.surprisal).exp())
    torch.testing.assert_close(trace.running_prob, trace.target_probs.cumprod(dim=0))
    torch.testing.assert_close(trace.running_surprisal, trace.surprisal.cumsum(dim=0))
    assert float(trace.running_surprisal[-1] / 9) == pytest.approx(trace.sentence_loss, abs=1e-6)
    assert trace.sentence_perplexity == pytest.approx(math.exp(trace.sentence_loss))
    assert trace.true_next_probs.tolist()[:3] == pytest.approx([0.55, 1, 1])  # one; day; the
    assert (trace.top_probs.diff(dim=1) <= 0).all()
    for position in range(9):
        words = trace.top_words[5 * position : 5 * position + 5]
        probs = logits[position].softmax(dim=-1)[list(tiny_lm.encode(" ".join(words), bos=False))]
        torch.testing.assert_close(trace.top_probs[position], probs)
    assert (trace.target_probs - trace.true_next_probs).abs().max() < 0.06  # it has learned the grammar


def test_the_head_on_screen_is_the_models_own(trace, base):
    _, records = base(trace.input_ids[None], record=("scores", "weights"))
    torch.testing.assert_close(trace.scores, records["scores"][1, 0, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trace.weights, records["weights"][1, 0, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(trace.weights_unmasked, trace.scores.softmax(dim=-1))
    torch.testing.assert_close(trace.future_share, (trace.weights_unmasked * ~trace.mask).sum(dim=-1))
    assert torch.equal(trace.mask, causal_mask(10))
    assert torch.equal(trace.scores_seen.isnan(), ~trace.mask)
    assert torch.equal(trace.scores_seen[trace.mask], trace.scores[trace.mask])
    assert (trace.jacobian.triu(1) == 0).all()
    assert (trace.jacobian.diagonal() > 0).all()
    assert 0 < trace.max_abs_diff_prefix < 1e-5


def test_one_push_raises_the_right_word_and_lowers_every_rival(trace):
    before, gradient, after = trace.focus_probs_before, trace.focus_gradient, trace.focus_probs_after
    assert trace.focus_position == int(trace.surprisal.argmax())
    right = trace.focus_target
    assert trace.focus_words[right] == trace.tokens[trace.focus_position + 1]
    assert len(set(trace.focus_words)) == 12
    for probs in (before, after):
        assert float(probs.sum()) == pytest.approx(1, abs=1e-6)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)
    assert float(gradient[right]) == pytest.approx(float(before[right]) - 1, abs=1e-6)
    rivals = torch.arange(12) != right
    torch.testing.assert_close(gradient[rivals], before[rivals], atol=1e-6, rtol=1e-5)
    assert after[right] > before[right]
    assert (after[rivals] < before[rivals]).all()
    # softmax of moved logits, relative to the right word; "all others" moves as many words, not as one
    moved = before * (-trace.focus_rate * gradient).exp()
    torch.testing.assert_close((after / after[right])[:-1], (moved / moved[right])[:-1], atol=1e-5, rtol=1e-4)


def test_learning_passes_frequencies_pairs_and_triples_and_stays_above_the_floor(trace):
    steps, losses = trace.loss_steps.tolist(), trace.eval_loss.tolist()
    assert steps == experiment.log_spaced(600, 16)
    passed = [trace.passed_at[name] for name in LEVELS]
    assert 0 < passed[0] < passed[1] < passed[2] < passed[3] < 600
    assert passed[4] == -1
    assert losses == sorted(losses, reverse=True)
    assert trace.levels["floor"] < losses[-1] < trace.levels["floor"] * 1.15
    assert list(trace.levels.values()) == sorted(trace.levels.values(), reverse=True)
    # what it reads and what it does not are learned alike
    assert abs((trace.train_loss[-1] - trace.train_floor) - (losses[-1] - trace.levels["floor"])) < 0.02
    assert trace.documents_shared == 0
    assert trace.known_by_heart > 0
    assert (trace.documents_read, trace.documents_unread) == (19_200, 128)


def test_below_the_floor_there_is_only_cheating(trace):
    reported, honest = trace.leaky_train_loss.tolist(), trace.leaky_honest_loss.tolist()
    assert reported[-1] < trace.leaky_floor / 10
    assert trace.leaky_below_floor_at in trace.leaky_steps.tolist()
    assert honest[-1] > reported[-1] + 3
    assert min(honest) > trace.levels["trigram"]  # alone with a prefix it never gets as far as counted triples
    assert trace.leaky_next_share_free > trace.leaky_next_share_certain > 0.2
    assert trace.leaky_weights.shape == (10, 10)
    assert (trace.leaky_weights.sum(dim=-1) <= 1 + 1e-5).all()


def test_predictions_after_one_prefix_come_near_the_grammar(trace):
    assert trace.snapshot_prefix == trace.tokens[:-1]
    torch.testing.assert_close(trace.snapshot_probs.sum(dim=1), torch.ones(16))
    assert float(trace.snapshot_true_probs.sum()) == pytest.approx(1)
    total_variation = (trace.snapshot_probs - trace.snapshot_true_probs).abs().sum(dim=1) / 2
    assert total_variation[-1] < 0.3 < total_variation[0]
    assert trace.snapshot_words[-1] == "all others"


def test_the_models_write_better_the_longer_they_learn(trace):
    assert next(iter(trace.samples)) == "0"
    assert list(trace.samples)[-1] == "600"
    assert trace.written_tokens[:5] == trace.tokens[:5]
    assert len(trace.written_tokens) == 5 + len(trace.written_probs)
    assert trace.counts["gpt3_petaflop_days"] == pytest.approx(3640, rel=0.01)
    assert trace.counts["tiny_params"] == 43_744
    assert trace.counts["tiny_flops"] == 6 * 43_744 * trace.counts["tiny_tokens"]
