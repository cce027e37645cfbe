import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math import rag as topic
from internals_math import rag_experiment as experiment
from internals_math import tiny_lm, trace_store
from internals_math.rag import (
    Config,
    answer_accuracy,
    bm25_scores,
    build_ivf,
    contrastive_gradients,
    document_posterior,
    in_batch_contrastive_loss,
    index_bytes,
    ivf_search,
    marginalize_next_token,
    mean_reciprocal_rank,
    normalize_embeddings,
    rag_sequence_log_prob,
    rag_token_log_prob,
    recall_at_k,
    retrieval_prior,
    retrieve,
    similarity,
    tf_idf,
)
from tests.oracles import randn

sizes = st.integers(1, 6)
seeds = st.integers(0, 1000)


@pytest.fixture(scope="module", params=["kept", "anew"])
def trace(request):
    """The trace that comes with the project, and one that is computed here and now."""
    return trace_store.get(topic) if request.param == "kept" else topic.trace(Config())


# -- words -------------------------------------------------------------------------------------------------------------


@given(docs=sizes, vocabulary=st.integers(2, 8), seed=seeds)
def test_without_a_shared_word_both_lexical_scores_are_zero(docs, vocabulary, seed):
    counts = randn(docs, vocabulary, seed=seed).abs().round()
    counts[:, 0] = 0  # a word that no document has
    counts[0, 1] = 1
    assert (bm25_scores(torch.tensor([0, 0]), counts) == 0).all()
    query = torch.zeros(1, vocabulary, dtype=torch.float64)
    query[0, 0] = 1
    assert (tf_idf(torch.cat([counts, query]))[:-1] @ tf_idf(torch.cat([counts, query]))[-1] == 0).all()


@given(docs=sizes, vocabulary=sizes, seed=seeds)
def test_tf_idf_rows_have_length_1(docs, vocabulary, seed):
    counts = randn(docs, vocabulary, seed=seed).abs().round()
    norms = tf_idf(counts).norm(dim=1)
    filled = counts.sum(dim=1) > 0
    torch.testing.assert_close(norms[filled], torch.ones_like(norms[filled]))
    assert (norms[~filled] == 0).all()


def test_bm25_is_the_formula_summed_by_hand():
    counts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    mean, k1, b = 3.5, 1.2, 0.75
    expected = []
    for row in counts.tolist():
        total = 0.0
        for word in (0, 1, 1):
            df = sum(doc[word] > 0 for doc in counts.tolist())
            idf = math.log(1 + (2 - df + 0.5) / (df + 0.5))
            total += idf * row[word] * (k1 + 1) / (row[word] + k1 * (1 - b + b * sum(row) / mean))
        expected.append(total)
    assert bm25_scores(torch.tensor([0, 1, 1]), counts).tolist() == pytest.approx(expected)


def test_a_word_that_is_repeated_adds_less_and_less_and_at_k1_0_nothing():
    counts = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [0.0, 10.0]])
    steps = bm25_scores(torch.tensor([0]), counts)[[3, 0, 1, 2]].diff()
    assert (steps > 0).all()
    assert (steps.diff() < 0).all()
    flat = bm25_scores(torch.tensor([0]), counts, k1=0.0)
    assert flat[0] == flat[1] == flat[2] > flat[3] == 0


# -- vectors -----------------------------------------------------------------------------------------------------------


@given(docs=st.integers(2, 8), width=st.integers(1, 5), seed=seeds)
def test_on_vectors_of_length_1_all_metrics_rank_alike(docs, width, seed):
    query, vectors = normalize_embeddings(randn(1, width, seed=seed)), normalize_embeddings(randn(docs, width, seed=1))
    scores = {metric: similarity(query, vectors, metric=metric)[0] for metric in ("cosine", "dot", "l2")}
    torch.testing.assert_close(scores["l2"], 2 * scores["cosine"] - 2)
    torch.testing.assert_close(scores["dot"], scores["cosine"])


def test_a_long_vector_wins_by_dot_product_and_loses_by_cosine_and_by_distance():
    query, docs = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.2], [5.0, 5.0]])
    winners = [retrieve(similarity(query, docs, metric=metric), 1)[1].item() for metric in ("cosine", "dot", "l2")]
    assert winners == [0, 1, 0]


@given(batch=st.integers(2, 6), width=sizes, temperature=st.floats(0.05, 5), seed=seeds)
def test_the_closed_form_gradients_are_those_of_autograd(batch, width, temperature, seed):
    q, d = randn(batch, width, seed=seed).requires_grad_(), randn(batch, width, seed=seed + 1).requires_grad_()
    in_batch_contrastive_loss(q, d, temperature=temperature).backward()
    grads = contrastive_gradients(q.detach(), d.detach(), temperature=temperature)
    torch.testing.assert_close(grads, (q.grad, d.grad), atol=1e-10, rtol=1e-8)


@given(batch=st.integers(2, 20))
def test_equal_scores_cost_ln_b_and_equal_documents_pull_as_much_as_they_push(batch):
    queries, docs = randn(batch, 3, seed=batch), torch.ones(batch, 3, dtype=torch.float64)
    loss = in_batch_contrastive_loss(queries, docs, temperature=0.1)
    assert float(loss) == pytest.approx(math.log(batch))
    torch.testing.assert_close(
        contrastive_gradients(queries, docs, temperature=0.1)[0], torch.zeros_like(queries), atol=1e-12, rtol=0
    )


# -- search ------------------------------------------------------------------------------------------------------------


def test_retrieve_sorts_and_gives_ties_to_the_lower_index():
    scores, indices = retrieve(torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]), 3)
    assert indices.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert scores[0].tolist() == [3, 3, 2]


@given(queries=sizes, docs=st.integers(1, 8), seed=seeds)
def test_recall_rises_with_k_to_1(queries, docs, seed):
    scores = randn(queries, docs, seed=seed)
    gold = torch.arange(queries) % docs
    recalls = [recall_at_k(retrieve(scores, k)[1], gold) for k in range(1, docs + 1)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1
    rank = (scores >= scores.gather(1, gold[:, None])).sum(dim=1)
    assert mean_reciprocal_rank(scores, gold) == pytest.approx(float((1 / rank).double().mean()))
    ks = torch.arange(1, docs + 1)
    torch.testing.assert_close(experiment.expected_recall(scores, gold, ks), torch.tensor(recalls).float())


def test_equal_scores_share_the_recall():
    scores, gold = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([1])
    assert experiment.expected_recall(scores, gold, torch.tensor([1, 2, 3])).tolist() == [0.5, 1, 1]


@given(docs=st.integers(2, 20), cells=st.integers(1, 5), k=st.integers(1, 4), seed=seeds)
def test_searching_every_cell_is_exact_and_fewer_cells_never_find_more(docs, cells, k, seed):
    cells, k = min(cells, docs), min(k, docs)
    vectors, query = randn(docs, 3, seed=seed), randn(3, seed=seed + 1)
    index = build_ivf(vectors, cells, generator=torch.Generator().manual_seed(seed))
    exact = retrieve(similarity(query[None], vectors), k)[1][0]
    found = []
    for probes in range(1, cells + 1):
        hits, cost = ivf_search(query, index, vectors, k, probes)
        nearest = retrieve(similarity(query[None], index.centroids), probes)[1][0]
        assert cost == cells + sum(int((index.assignments == cell).sum()) for cell in nearest)
        found.append(int(torch.isin(exact, hits).sum()))
    assert hits.tolist() == exact.tolist()
    assert cost == cells + docs
    assert found == sorted(found)


def test_cells_are_those_of_their_nearest_centroids_which_have_length_1():
    docs = randn(30, 4, seed=1)
    index = build_ivf(docs, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(index.centroids.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(index.assignments, similarity(docs, index.centroids).argmax(dim=1))

    def fit(index):
        return float(similarity(docs, index.centroids).amax(dim=1).mean())

    start = build_ivf(docs, 5, generator=torch.Generator().manual_seed(0), iterations=0)
    assert fit(index) > fit(start)


def test_the_sectors_of_the_circle_are_the_cells():
    angles = torch.tensor([0.2, 3.0, -1.4, 1.5], dtype=torch.float64)
    centroids = torch.stack([angles.cos(), angles.sin()], dim=1)
    borders = experiment.sectors(centroids)
    assert float((borders[:, 1] - borders[:, 0]).sum()) == pytest.approx(2 * math.pi)
    for angle in torch.linspace(-3, 3, 50, dtype=torch.float64):
        cell = int((torch.stack([angle.cos(), angle.sin()]) @ centroids.T).argmax())
        first, last = borders[cell].tolist()
        assert any(first <= float(angle) + turn <= last for turn in (0, 2 * math.pi, -2 * math.pi))


# -- mixing ------------------------------------------------------------------------------------------------------------


@given(k=sizes, seed=seeds)
def test_the_prior_sums_to_1_and_runs_from_uniform_to_the_best(k, seed):
    scores = randn(k, seed=seed)
    assert float(retrieval_prior(scores, temperature=0.3).sum()) == pytest.approx(1)
    torch.testing.assert_close(
        retrieval_prior(scores, temperature=1e9), torch.full_like(scores, 1 / k), atol=1e-6, rtol=0
    )
    cold = retrieval_prior(scores, temperature=1e-9)
    assert float(cold[scores.argmax()]) == pytest.approx(1)


def mixture(k, length, vocabulary, seed):
    prior = torch.log_softmax(randn(k, seed=seed), dim=0)
    return prior, torch.log_softmax(randn(k, length, vocabulary, seed=seed + 1), dim=-1)


@given(k=sizes, seed=seeds)
def test_both_mixtures_are_distributions_over_answers(k, seed):
    prior, log_probs = mixture(k, 2, 3, seed)
    totals = [0.0, 0.0]
    for answer in itertools.product(range(3), repeat=2):
        chosen = log_probs[:, torch.arange(2), torch.tensor(answer)]
        for row, log_prob in enumerate((rag_sequence_log_prob, rag_token_log_prob)):
            totals[row] += float(log_prob(prior, chosen).exp())
    assert totals == pytest.approx([1, 1])


@given(k=sizes, length=sizes, seed=seeds)
def test_one_token_or_one_document_makes_both_mixtures_equal(k, length, seed):
    prior, log_probs = mixture(k, 1, 5, seed)
    torch.testing.assert_close(
        rag_sequence_log_prob(prior, log_probs[..., 2]), rag_token_log_prob(prior, log_probs[..., 2])
    )
    alone, log_probs = mixture(1, length, 5, seed)
    for log_prob in (rag_sequence_log_prob, rag_token_log_prob):
        torch.testing.assert_close(log_prob(alone, log_probs[..., 2]), log_probs[0, :, 2].sum())


def test_mixing_at_every_token_allows_answers_that_no_document_supports():
    prior = torch.tensor([0.5, 0.5]).log()
    reads = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()  # p(y_1), p(y_2) of the answer "a d": the documents say ab, cd
    assert float(rag_sequence_log_prob(prior, reads)) == -math.inf
    assert float(rag_token_log_prob(prior, reads).exp()) == pytest.approx(0.25)


@given(k=st.integers(2, 6), seed=seeds)
def test_the_order_of_documents_and_one_without_prior_do_not_matter(k, seed):
    prior, log_probs = mixture(k, 3, 4, seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    more_prior = torch.cat([prior, torch.tensor([-math.inf], dtype=torch.float64)])
    more = torch.cat([log_probs, torch.full((1, 3, 4), -math.inf, dtype=torch.float64)])
    for log_prob in (rag_sequence_log_prob, rag_token_log_prob):
        expected = log_prob(prior, log_probs[..., 1])
        torch.testing.assert_close(log_prob(prior[order], log_probs[order][..., 1]), expected)
        torch.testing.assert_close(log_prob(more_prior, more[..., 1]), expected)
    torch.testing.assert_close(
        marginalize_next_token(more_prior, more[:, 0]), marginalize_next_token(prior, log_probs[:, 0])
    )
    assert marginalize_next_token(prior, log_probs[:, 0]).exp().sum() == pytest.approx(1)


@given(k=sizes, seed=seeds)
def test_the_posterior_is_bayes_rule_and_equal_readers_leave_the_prior(k, seed):
    prior, log_probs = mixture(k, 1, 4, seed)
    reads = log_probs[:, 0, 0]
    posterior = document_posterior(prior, reads)
    assert float(posterior.sum()) == pytest.approx(1)
    torch.testing.assert_close(posterior, prior.exp() * reads.exp() / (prior.exp() * reads.exp()).sum())
    torch.testing.assert_close(document_posterior(prior, torch.full_like(prior, -2.0)), prior.exp())


def test_accuracy_weighs_hits_and_misses_by_the_recall():
    assert answer_accuracy(0.75, 0.8, 0.4) == pytest.approx(0.75 * 0.8 + 0.25 * 0.4)
    assert [answer_accuracy(recall, 0.9, 0.2) for recall in (0, 1)] == [0.2, 0.9]


def _error_cases():
    q, prior = torch.ones(2, 3), torch.tensor([0.5, 0.5]).log()
    index = build_ivf(torch.eye(3), 2, generator=torch.Generator())
    return [
        (lambda: retrieve(torch.ones(1, 3), 0), r"k must be in 1..3, the number of documents, got 0"),
        (lambda: retrieve(torch.ones(1, 3), 4), r"k must be in 1..3, the number of documents, got 4"),
        (lambda: normalize_embeddings(torch.zeros(2, 3)), "a vector of length 0 has no direction"),
        (lambda: similarity(q, torch.zeros(2, 3)), "a vector of length 0 has no direction"),
        (lambda: similarity(q, torch.ones(2, 4)), "the same width, got 3 and 4"),
        (lambda: similarity(q, q, metric="hamming"), "cosine, dot or l2, got 'hamming'"),
        (lambda: in_batch_contrastive_loss(q, q, temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: in_batch_contrastive_loss(q[:1], q[:1], temperature=1.0), "two or more queries"),
        (lambda: contrastive_gradients(q, torch.ones(3, 3), temperature=1.0), "two or more queries"),
        (lambda: retrieval_prior(torch.ones(2), temperature=-1.0), "temperature must be > 0, got -1.0"),
        (lambda: rag_sequence_log_prob(prior, torch.zeros(3, 2)), "3 documents need as many priors, got 2"),
        (lambda: rag_token_log_prob(2 * prior, torch.zeros(2, 2)), r"the priors must sum to 1, got 0.5"),
        (lambda: marginalize_next_token(prior + 0.1, torch.zeros(2, 5)), "the priors must sum to 1"),
        (lambda: document_posterior(prior, torch.full((2,), -math.inf)), "gives the answer any probability"),
        (lambda: ivf_search(torch.ones(3), index, torch.eye(3), 1, 3), r"n_probe must be in 1..2"),
        (lambda: ivf_search(torch.ones(3), index, torch.eye(3), 4, 1), r"k must be in 1..3"),
        (lambda: build_ivf(torch.eye(3), 4, generator=torch.Generator()), r"n_list must be in 1..3"),
        (lambda: build_ivf(torch.eye(3), 2, generator=torch.Generator(), iterations=-1), "iterations must be"),
        (lambda: bm25_scores(torch.tensor([3]), torch.ones(2, 3)), r"query_ids must be in 0..2, got \[3\]"),
        (lambda: bm25_scores(torch.tensor([0]), torch.ones(2, 3), b=1.5), "b in 0..1, got 1.2 and 1.5"),
        (lambda: bm25_scores(torch.tensor([0]), torch.zeros(2, 3)), "documents with words"),
        (lambda: index_bytes(0, 3), "at least 1, got 0, 3 and 4"),
        (lambda: answer_accuracy(1.2, 1, 0), r"recall must be in 0..1, got 1.2"),
        (lambda: Config(query_index=12), r"query_index must be in 0..11 \(n_docs - 1\), got 12"),
        (lambda: Config(temperature=0.0), r"temperature must be in 0.01..1, got 0.0"),
    ]


@pytest.mark.parametrize(("call", "message"), _error_cases())
def test_wrong_use_is_refused_with_its_reason(plain_python, call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the trace ---------------------------------------------------------------------------------------------------------


def test_the_model_remembers_the_old_place_and_reads_the_new_one(trace):
    assert trace.closed_book.argmax() == trace.old_place != trace.true_place
    assert trace.closed_book_old > 0.9
    assert trace.closed_book_true < 0.05
    assert trace.per_doc[0].argmax() == trace.true_place
    assert trace.information_gain == pytest.approx(trace.surprise_closed - trace.surprise_open)
    assert trace.information_gain > 3
    assert (trace.closed_book.sum() <= 1 + 1e-5).item()
    assert trace.closed_book.sum() > 0.95


def test_the_reader_is_the_tiny_lm_itself(trace):
    text = f"fact : {trace.doc_texts[trace.gold]} {trace.reader_question}"
    answer = tiny_lm.generate(tiny_lm.load("base"), [text], 6, stop=".")[0]
    assert answer.split()[-2] == trace.answer_words[trace.true_place]
    assert " ".join(trace.reader_tokens[0][1:]).startswith(text)


def test_after_every_document_the_reader_looks_at_the_place_in_it(trace):
    assert len(trace.reader_tokens) == len(trace.reader_attention) == 3
    torch.testing.assert_close(trace.reader_attention.sum(dim=1), torch.ones(3))
    for row, doc in enumerate(trace.topk_indices.tolist()):
        words = list(trace.doc_words[doc])
        assert list(trace.reader_tokens[row][3 : 3 + len(words)]) == words
        assert trace.reader_tokens[row][trace.reader_place] == words[-2]
        assert list(trace.reader_tokens[row][-2:]) == [words[-4], "the"]
        assert trace.answer_words[int(trace.per_doc[row].argmax())] == words[-2]
    assert (trace.reader_attention.argmax(dim=1) == trace.reader_place).all()
    torch.testing.assert_close(trace.reader_place_weight, trace.reader_attention.amax(dim=1))


def test_world_b_differs_from_world_a_in_every_place_and_in_nothing_but_places(trace):
    for old, new, words in zip(trace.old_doc_texts, trace.doc_texts, trace.doc_words, strict=True):
        assert new.split() == list(words)
        assert old.split()[:6] == new.split()[:6]
        assert old.split()[-2] != words[-2]
    assert trace.old_doc_texts[trace.gold].split()[-2] == trace.answer_words[trace.old_place]


def test_a_paraphrase_leaves_word_matching_with_documents_it_cannot_tell_apart(trace):
    assert trace.paraphrase in trace.query_words
    column = trace.query_words.index(trace.paraphrase)
    assert not trace.word_matches[:, column].any()
    assert (trace.lexical_words[column] == 0).all()
    torch.testing.assert_close(trace.lexical_words.sum(dim=0), trace.lexical_scores)
    assert int(trace.lexical_best.sum()) > 1
    assert trace.lexical_scores_by_name.argmax() == trace.gold
    assert trace.recall_lexical[0] < trace.recall_dense[0] == 1
    torch.testing.assert_close(trace.lexical_running[-1], trace.lexical_scores)
    torch.testing.assert_close(trace.lexical_running.diff(dim=0), trace.lexical_words[1:])


def test_where_not_all_documents_have_room_the_best_matches_have(trace):
    shown = trace.lexical_shown.tolist()
    assert shown == sorted(set(shown))
    assert len(shown) == 6
    assert trace.gold in shown
    assert min(trace.lexical_scores[shown]) >= trace.lexical_scores.sort(descending=True).values[5]


def test_training_turns_every_question_to_its_document(trace):
    first, last = (
        similarity(trace.training_queries[step], trace.training_docs[step]).argmax(dim=1) for step in (0, -1)
    )
    assert torch.equal(last, torch.arange(12))
    assert not torch.equal(first, last)
    assert trace.training_loss[-1] < trace.chance_loss / 3
    torch.testing.assert_close(trace.training_docs.norm(dim=-1), torch.ones(30, 12))
    assert trace.plane_share == 1


def test_pull_and_push_are_the_gradient_of_the_shown_step(trace):
    q, d = trace.training_queries[trace.shown_step], trace.training_docs[trace.shown_step]
    gradient, _ = contrastive_gradients(q, d, temperature=topic.TRAIN_TEMPERATURE)
    torch.testing.assert_close(trace.pull + trace.push, -gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(trace.batch_softmax.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(similarity(trace.pull, d).diagonal(), torch.ones(12))
    assert trace.rivals.diagonal().isnan().all()
    torch.testing.assert_close(trace.rivals.nansum(dim=1) + trace.batch_softmax.diagonal(), torch.ones(12))


def test_what_turns_a_query_is_the_gradient_through_its_normalization(trace):
    raw = trace.training_queries[trace.shown_step].clone().requires_grad_()
    docs = trace.training_docs[trace.shown_step]
    in_batch_contrastive_loss(normalize_embeddings(raw), docs, temperature=topic.TRAIN_TEMPERATURE).backward()
    assert raw.grad is not None
    torch.testing.assert_close(trace.pull_turn + trace.push_turn, -raw.grad, atol=1e-6, rtol=1e-5)
    # its own document pulls the shown query to itself
    query, own = raw.detach()[trace.gold], docs[trace.gold]
    assert trace.pull_turn[trace.gold] @ (own - query) > 0 > trace.push_turn[trace.gold] @ (own - query)


def test_the_wedge_opens_until_it_holds_the_retrieved_documents(trace):
    torch.testing.assert_close(trace.doc_points @ trace.query_point, trace.cosines)
    torch.testing.assert_close(trace.angles.cos(), trace.cosines, atol=1e-6, rtol=0)
    for count, (first, last) in enumerate(trace.wedge.tolist(), start=1):
        turns = torch.stack([trace.doc_angles + turn for turn in (-2 * math.pi, 0, 2 * math.pi)])
        inside = ((turns >= first - 1e-4) & (turns <= last + 1e-4)).any(dim=0)
        held = trace.cosines > trace.topk_cosines[count - 1] - 1e-3  # neighbors on both sides may be equally near
        assert torch.equal(inside, held)
        assert held[trace.topk_indices[:count]].all()


def test_the_mixture_adds_up_and_credits_the_document_that_answers(trace):
    torch.testing.assert_close(trace.contributions.sum(dim=0), trace.marginal)
    torch.testing.assert_close(trace.prior[:, None] * trace.per_doc, trace.contributions)
    joint = trace.contributions[:, trace.true_place]
    torch.testing.assert_close(trace.posterior, joint / joint.sum())
    assert trace.topk_indices[trace.posterior.argmax()] == trace.gold
    assert trace.answer_log_prob_sequence != pytest.approx(trace.answer_log_prob_token, abs=1e-3)


def test_more_documents_dilute_the_mixture_and_overwhelm_the_prompt(trace):
    assert (trace.confidence_by_k.diff() < 1e-6).all()
    assert trace.confidence_by_k[0] - trace.confidence_by_k[-1] > 0.05
    assert trace.fusion_accuracy[0] == 1
    assert (trace.fusion_accuracy[1:] <= 0.5).all()


def test_mixtures_of_more_and_more_documents_are_those_of_a_loop(trace):
    library = experiment.make_library(trace.config)
    open_book = experiment.read_everything(library).open["B"]
    retriever, places = experiment.train_retriever(library, trace.config), library.places().tolist()
    questions = [*enumerate(library.questions(False)), *enumerate(library.questions(True))]
    assert trace.accuracy_ks.tolist() == list(range(1, 13))
    for k in (1, 3, 12):
        right = sure = 0.0
        for gold, question in questions:
            cosines = (trace.doc_vectors @ retriever.encode([question])[0]).tolist()
            best = sorted(range(12), key=lambda index: -cosines[index])[:k]
            shares = torch.softmax(torch.tensor([cosines[index] for index in best]) / 0.05, dim=0)
            mixed = sum(share * open_book[gold, index] for share, index in zip(shares, best, strict=True))
            right += int(mixed.argmax()) == places[gold]
            sure += float(mixed[places[gold]])
        assert float(trace.accuracy_by_k[k - 1]) == pytest.approx(right / 24)
        assert float(trace.confidence_by_k[k - 1]) == pytest.approx(sure / 24, abs=1e-4)
    assert trace.fusion_documents.tolist() == [1, 2, 3]


def test_cells_find_and_cost_what_a_loop_over_the_questions_counts(trace):
    library = experiment.make_library(trace.config)
    retriever, docs = experiment.train_retriever(library, trace.config), trace.doc_vectors
    questions = library.questions(False) + library.questions(True)
    found, spent = torch.zeros(4, 24), torch.zeros(4, 24)
    for column, question in enumerate(questions):
        query = retriever.encode([question])[0]
        exact = (docs @ query).topk(3).indices
        nearest = (trace.ivf_centroids @ query).argsort(descending=True)
        for row in range(4):
            scored = torch.isin(trace.ivf_assignments, nearest[: row + 1])
            found[row, column] = scored[exact].sum() / 3  # what is scored at all is among the best of the scored
            spent[row, column] = 4 + scored.sum()
    torch.testing.assert_close(trace.ivf_recall, found.mean(dim=1))
    torch.testing.assert_close(trace.ivf_cost, spent.mean(dim=1))
    assert trace.border_index == int(found[0].argmin())
    assert trace.border_text == questions[trace.border_index]
    shown = questions.index(trace.query_text)
    for fields, counts, cost, column in (
        (trace.ivf_found, trace.ivf_found_count, trace.ivf_query_cost, shown),
        (trace.border_found, trace.border_found_count, trace.border_cost, trace.border_index),
    ):
        torch.testing.assert_close(fields.float().mean(dim=1), found[:, column])
        torch.testing.assert_close(counts / 3, found[:, column])
        assert cost.tolist() == spent[:, column].tolist()
    query = retriever.encode([trace.border_text])[0]
    assert trace.border_topk.tolist() == (docs @ query).topk(3).indices.tolist()
    assert trace.border_cells.tolist() == (trace.ivf_centroids @ query).argsort(descending=True).tolist()


def test_few_cells_cost_less_and_miss_some(trace):
    assert (trace.ivf_recall.diff() >= 0).all()
    assert trace.ivf_recall[0] < 1 == trace.ivf_recall[-1]
    assert trace.ivf_cost[0] < trace.exact_cost < trace.ivf_cost[-1] == trace.exact_cost + 4
    assert not trace.border_found[0].all()
    assert torch.equal(torch.isin(trace.ivf_assignments, trace.ivf_visited), trace.ivf_scored)
    assert int(trace.ivf_scored.sum()) + 4 == trace.ivf_query_cost[0]
    assert trace.ivf_scored[trace.ivf_topk].all()


def test_the_answers_follow_the_library_and_a_wrong_document_misleads(trace):
    memory, old, new = trace.swap_accuracy.tolist()
    assert memory < 0.2
    assert old < 0.2
    assert new == 1
    assert trace.accuracy_hit == 1
    assert trace.accuracy_miss < 0.15 < trace.miss_copies
    wrong = trace.doc_texts[trace.wrong_doc].split()[-2]
    assert trace.answer_words[trace.wrong_doc_answer.argmax()] == wrong != trace.answer_words[trace.true_place]
    assert trace.wrong_doc_answer.max() > 0.9  # confident, and wrong


def test_wrong_documents_are_counted_pair_by_pair_and_the_nearest_of_them_is_shown():
    library = experiment.make_library(Config(n_docs=6))
    readings, retriever = experiment.read_everything(library), experiment.train_retriever(library, Config(n_docs=6))
    places = library.places().tolist()
    pairs = [(question, doc) for question in range(6) for doc in range(6) if question != doc]
    answers = [int(readings.open["B"][pair].argmax()) for pair in pairs]
    for asked in range(6):
        found = experiment.swap_fields(library, retriever, readings, Config(n_docs=6, query_index=asked))
        right = sum(answer == places[question] for answer, (question, _) in zip(answers, pairs, strict=True))
        copied = sum(answer == places[doc] for answer, (_, doc) in zip(answers, pairs, strict=True))
        assert found["accuracy_miss"] == pytest.approx(right / 30)
        assert found["miss_copies"] == pytest.approx(copied / 30)
        near = similarity(retriever.questions[-1, asked][None], retriever.docs[-1])[0].tolist()
        wrong = [doc for doc in range(6) if places[doc] != places[asked]]
        assert found["wrong_doc"] == max(wrong, key=near.__getitem__)
        assert torch.equal(found["wrong_doc_answer"], readings.open["B"][asked, found["wrong_doc"]])


@pytest.mark.parametrize("count", [6, 12])
def test_both_systems_are_counted_question_by_question(count):
    library = experiment.make_library(Config(n_docs=count))
    readings, vectors = experiment.read_everything(library), experiment.train_retriever(library, Config(n_docs=count))
    open_book, places = readings.open["B"], library.places().tolist()
    questions = library.questions(False) + library.questions(True)
    systems = experiment.systems(library, vectors, readings)
    for row, all_scores in enumerate((
        experiment.lexical_scores(library),
        similarity(vectors.encode(questions), vectors.docs[-1]),
    )):  # fmt: skip
        found, right, right_and_found = 0.0, 0.0, 0.0
        for index, scores in enumerate(all_scores.tolist()):
            gold = index % count
            best = [doc for doc, score in enumerate(scores) if score == max(scores)]  # equal scores: any of them
            for doc in best:
                correct = int(open_book[gold, doc].argmax()) == places[gold]
                found += (doc == gold) / len(best)
                right += correct / len(best)
                right_and_found += (doc == gold and correct) / len(best)
        assert float(systems.recall_at_1[row]) == pytest.approx(found / len(questions), abs=1e-6)
        assert float(systems.accuracy[row]) == pytest.approx(right / len(questions), abs=1e-6)
        assert float(systems.accuracy_hit[row]) == pytest.approx(right_and_found / found, abs=1e-6)
        missed = (right - right_and_found) / (len(questions) - found) if round(len(questions) - found, 9) else math.nan
        assert float(systems.accuracy_miss[row]) == pytest.approx(missed, abs=1e-6, nan_ok=True)


def test_accuracy_is_recall_times_hits_and_the_rest_times_misses(trace):
    table = trace.systems
    for row in range(len(table.name)):
        recall, hit, miss, right = (
            float(column[row])
            for column in (table.recall_at_1, table.accuracy_hit, table.accuracy_miss, table.accuracy)
        )
        expected = recall * hit if math.isnan(miss) else answer_accuracy(recall, hit, miss)
        assert right == pytest.approx(expected, abs=1e-6)
    assert table.recall_at_1[0] == pytest.approx(float(trace.recall_lexical[0]))
    assert table.accuracy[1] > table.accuracy[0]


def test_centered_word_vectors_find_facts_and_the_last_hidden_state_does_not(trace):
    words, centered, raw, hidden = trace.embedders.recall_at_1.tolist()
    assert words == centered == 1
    assert centered > raw > hidden
    assert hidden < 0.2


@pytest.mark.parametrize("count", [6, 12, 24])
def test_in_world_b_everything_has_moved_and_no_two_of_a_round_are_at_the_same_place(count):
    library = experiment.make_library(Config(n_docs=count, seed=3))
    assert len({(fact.owner, fact.thing) for fact in library.facts}) == count
    assert (library.places("A") != library.places("B")).all()
    assert len(set(library.places("B")[:12].tolist())) == min(count, 12)
    for text in library.texts():  # the model's own grammar knows every document
        tiny_lm.entropy_floor(torch.tensor([[*tiny_lm.encode(f"fact : {text} {_question(text)}"), tiny_lm.EOS]]))


def _question(text):
    words = text.split()
    return f"where is the {words[1]} of the {words[4]} ? {' '.join(words[6:])}"


def test_more_dimensions_leave_no_crowd():
    """24 arrows crowd on a circle: the loss stays high and the prior flat; in 8 dimensions neither happens."""
    traces = {}
    for width in (2, 8):
        config = Config(n_docs=24, embed_dim=width)
        library = experiment.make_library(config)
        traces[width] = experiment.train_retriever(library, config)
        fields = experiment.search_fields(library, traces[width], config)
        assert fields["recall_dense"][0] >= 0.95
    assert traces[2].losses[-1] > 0.5 > 0.1 > traces[8].losses[-1]
    flat = experiment.plane(traces[8])
    torch.testing.assert_close(flat.T @ flat, torch.eye(2), atol=1e-5, rtol=0)
    assert experiment.sectors(traces[8].docs[-1][:4]).isnan().all()
