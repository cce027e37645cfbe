"""Retrieval and mixing against scikit-learn, torch and transformers."""

from types import SimpleNamespace

import torch
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from transformers.models.rag.modeling_rag import RagTokenForGeneration

from internals_math import rag_experiment as experiment
from internals_math.rag import (
    Config,
    contrastive_gradients,
    in_batch_contrastive_loss,
    marginalize_next_token,
    rag_sequence_log_prob,
    retrieve,
    similarity,
    tf_idf,
)
from tests.oracles import Oracle, largest_difference, randn


def _tf_idf() -> float:
    """The documents and questions of the library, and an empty text."""
    library = experiment.make_library(Config(n_docs=24))
    counts = experiment.word_counts([*library.texts(), *library.questions(True), ""]).double()
    theirs = TfidfTransformer().fit_transform(counts.numpy()).toarray()
    return largest_difference(tf_idf(counts), torch.from_numpy(theirs))


def _cosine() -> float:
    queries, docs = randn(7, 16, seed=1), randn(30, 16, seed=2)
    return largest_difference(similarity(queries, docs), torch.from_numpy(cosine_similarity(queries, docs)))


def _distance() -> float:
    queries, docs = randn(7, 16, seed=1), randn(30, 16, seed=2)
    theirs = NearestNeighbors(n_neighbors=30, metric="euclidean").fit(docs.numpy()).kneighbors(queries.numpy())[0]
    ours, _ = retrieve(similarity(queries, docs, metric="l2"), 30)
    return largest_difference((-ours).sqrt(), torch.from_numpy(theirs))


def _neighbors(metric: str, theirs: str) -> float:
    """Documents that differ, among the ten best of each question; real vectors of the tiny LM."""
    library = experiment.make_library(Config(n_docs=24))
    words = experiment.token_embeddings().double()
    counts = [experiment.word_counts(texts)[:, : len(words)].double() for texts in _texts(library)]
    docs, queries = (count @ words / count.sum(dim=1, keepdim=True) for count in counts)
    search = NearestNeighbors(n_neighbors=10, metric=theirs, algorithm="brute").fit(docs.numpy())
    expected = torch.from_numpy(search.kneighbors(queries.numpy())[1])
    return float((retrieve(similarity(queries, docs, metric=metric), 10)[1] != expected).sum())


def _texts(library: experiment.Library) -> tuple[list[str], list[str]]:
    return library.texts(), library.questions(False)


def _loss() -> float:
    queries, docs = randn(9, 4, seed=1), randn(9, 4, seed=2)
    theirs = torch.nn.functional.cross_entropy(queries @ docs.T / 0.3, torch.arange(9))
    return largest_difference(in_batch_contrastive_loss(queries, docs, temperature=0.3), theirs)


def _gradients() -> float:
    queries, docs = (randn(9, 4, seed=seed).requires_grad_() for seed in (1, 2))
    in_batch_contrastive_loss(queries, docs, temperature=0.3).backward()
    ours = contrastive_gradients(queries.detach(), docs.detach(), temperature=0.3)
    assert queries.grad is not None
    assert docs.grad is not None
    return max(largest_difference(ours[0], queries.grad), largest_difference(ours[1], docs.grad))


def _marginalized() -> float:
    logits, scores = randn(2 * 3, 5, 11, seed=1), randn(2, 3, seed=2)
    stub = SimpleNamespace(config=SimpleNamespace(n_docs=3))
    theirs = RagTokenForGeneration.marginalize(stub, logits, scores)  # type: ignore[arg-type]
    log_probs = torch.log_softmax(logits, dim=-1).view(2, 3, 5, 11).transpose(1, 2)  # (batch, T, k, V)
    log_prior = torch.log_softmax(scores, dim=-1)[:, None].expand(2, 5, 3)
    return largest_difference(marginalize_next_token(log_prior, log_probs), theirs)


def _sequence() -> float:
    """A mixture of whole answers, as torch writes mixtures of independent choices."""
    logits, scores, answer = randn(3, 5, 11, seed=1), randn(3, seed=2), torch.tensor([1, 0, 7, 7, 10])
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=scores),
        torch.distributions.Independent(torch.distributions.Categorical(logits=logits), 1),
    )
    token_log_probs = torch.log_softmax(logits, dim=-1)[:, torch.arange(5), answer]
    ours = rag_sequence_log_prob(torch.log_softmax(scores, dim=0), token_log_probs)
    return largest_difference(ours, mixture.log_prob(answer))


ROWS = (
    Oracle("tf-idf of the library", _tf_idf, 1e-12, "scikit-learn: TfidfTransformer"),
    Oracle("cosine similarity", _cosine, 1e-12, "scikit-learn: cosine_similarity"),
    Oracle("distances", _distance, 1e-9, "scikit-learn: NearestNeighbors, euclidean"),
    Oracle("ten best documents by cosine", lambda: _neighbors("cosine", "cosine"), 0, "scikit-learn: NearestNeighbors"),
    Oracle("ten best by distance", lambda: _neighbors("l2", "euclidean"), 0, "scikit-learn: NearestNeighbors"),
    Oracle("contrastive loss", _loss, 1e-12, "torch: cross_entropy"),
    Oracle("contrastive gradients", _gradients, 1e-12, "torch: autograd"),
    Oracle("RAG-Token, next token", _marginalized, 1e-12, "transformers: RagTokenForGeneration.marginalize"),
    Oracle("RAG-Sequence", _sequence, 1e-12, "torch: MixtureSameFamily"),
)
