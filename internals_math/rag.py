"""Retrieval-augmented generation: next-token prediction that is conditioned on documents found by a dot product.

Notation: x = question, z = document, y = answer of T tokens, k = retrieved documents, M = n_docs, V = vocabulary,
e = embed_dim, W = answer words, S = snapshots of training, P = cells probed.
Sources: Lewis et al. 2020 (RAG, arXiv 2005.11401), sections 2.1 to 2.3; the retriever: see retrieval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.retrieval import (
    IVFIndex,
    bm25_scores,
    build_ivf,
    check_temperature,
    contrastive_gradients,
    in_batch_contrastive_loss,
    index_bytes,
    ivf_search,
    mean_reciprocal_rank,
    normalize_embeddings,
    recall_at_k,
    retrieve,
    similarity,
    tf_idf,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "IVFIndex", "Trace", "answer_accuracy", "bm25_scores", "build_ivf", "contrastive_gradients",
    "document_posterior", "in_batch_contrastive_loss", "index_bytes", "ivf_search", "marginalize_next_token",
    "mean_reciprocal_rank", "normalize_embeddings", "rag_sequence_log_prob", "rag_token_log_prob", "recall_at_k",
    "retrieval_prior", "retrieve", "similarity", "tf_idf", "trace",
]  # fmt: skip


def retrieval_prior(topk_scores: Float[Tensor, "*batch k"], *, temperature: float) -> Float[Tensor, "*batch k"]:
    """Return p(z | x), the softmax of scores / temperature over the retrieved documents alone (section 2.2).

    Raises:
        ValueError: temperature is not > 0.
    """
    check_temperature(temperature)
    return torch.softmax(topk_scores / temperature, dim=-1)


def rag_sequence_log_prob(
    doc_log_prior: Float[Tensor, " k"], token_log_probs: Float[Tensor, "k T"]
) -> Float[Tensor, ""]:
    """Return ln Σ_z p(z | x) Π_i p(y_i | x, z, y_<i): one document explains the whole answer (RAG-Sequence).

    Raises:
        ValueError: priors that do not sum to 1, or another number of documents.
    """
    _check_prior(doc_log_prior, token_log_probs)
    return torch.logsumexp(doc_log_prior + token_log_probs.sum(dim=-1), dim=0)


def rag_token_log_prob(doc_log_prior: Float[Tensor, " k"], token_log_probs: Float[Tensor, "k T"]) -> Float[Tensor, ""]:
    """Return Σ_i ln Σ_z p(z | x) p(y_i | x, z, y_<i): the documents are mixed at every token (RAG-Token).

    Raises:
        ValueError: priors that do not sum to 1, or another number of documents.
    """
    _check_prior(doc_log_prior, token_log_probs)
    return torch.logsumexp(doc_log_prior[:, None] + token_log_probs, dim=0).sum()


def marginalize_next_token(
    doc_log_prior: Float[Tensor, "*batch k"], log_probs: Float[Tensor, "*batch k V"]
) -> Float[Tensor, "*batch V"]:
    """Return ln Σ_z p(z | x) p(token | x, z) of every token.

    Raises:
        ValueError: priors that do not sum to 1, or another number of documents.
    """
    _check_prior(doc_log_prior, log_probs[..., 0])
    return torch.logsumexp(doc_log_prior[..., None] + log_probs, dim=-2)


def document_posterior(
    doc_log_prior: Float[Tensor, " k"], answer_log_probs: Float[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """Return p(z | x, y), the credit of each document for the answer.

    Raises:
        ValueError: priors that do not sum to 1, another number of documents, or an answer that no document allows.
    """
    _check_prior(doc_log_prior, answer_log_probs)
    joint = doc_log_prior + answer_log_probs
    if not (joint > -math.inf).any():
        raise ValueError("no document with a prior above 0 gives the answer any probability")
    return torch.softmax(joint, dim=0)


def answer_accuracy(recall: float, accuracy_hit: float, accuracy_miss: float) -> float:
    """Return recall · accuracy with the right document + (1 - recall) · accuracy with a wrong one.

    Raises:
        ValueError: one of them outside 0..1.
    """
    for name, share in (("recall", recall), ("accuracy_hit", accuracy_hit), ("accuracy_miss", accuracy_miss)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in 0..1, got {share}")
    return recall * accuracy_hit + (1 - recall) * accuracy_miss


def _check_prior(doc_log_prior: Tensor, per_document: Tensor) -> None:
    documents = per_document.shape[doc_log_prior.ndim - 1]
    if doc_log_prior.shape[-1] != documents:
        raise ValueError(f"{documents} documents need as many priors, got {doc_log_prior.shape[-1]}")
    total = torch.logsumexp(doc_log_prior, dim=-1)
    if not (total.abs() <= 1e-4).all():
        raise ValueError(f"the priors must sum to 1, got {total.exp().tolist()}")


# -- what the video shows ----------------------------------------------------------------------------------------------

TRAIN_TEMPERATURE = 0.1  # of the contrastive loss; 0.02 trains badly in two dimensions
TRAIN_STEPS, LEARNING_RATE = 400, 0.05
CELLS = 4


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    n_docs: int = option(12, "documents in the library", minimum=6, maximum=24)
    top_k: int = option(3, "documents to retrieve", minimum=1, maximum=6)
    embed_dim: int = option(2, "width of the retriever's vectors", choices=(2, 8, 32))
    temperature: float = option(0.05, "of the softmax over the retrieved documents", minimum=0.01, maximum=1)
    query_index: int = option(0, "document that the question asks for", minimum=0, maximum=23)
    use_paraphrase: bool = option(True, "ask with another word for the owner than the document's")
    n_probe: int = option(1, "cells that the approximate search visits", minimum=1, maximum=CELLS)
    seed: int = option(0, "of the moves, the training, and the cells", minimum=0, maximum=9)

    def check(self) -> None:
        if self.query_index >= self.n_docs:
            raise ValueError(f"query_index must be in 0..{self.n_docs - 1} (n_docs - 1), got {self.query_index}")


@dataclass(frozen=True, eq=False)
class Embedders:
    """Ways to find one of 48 facts that the model has never read, by its own question; nothing here is trained."""

    name: tuple[str, ...]
    recall_at_1: Float[Tensor, " R"]
    mean_reciprocal_rank: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Systems:
    """A retriever's best document and the reader, over questions by name and by paraphrase; NaN: never happened."""

    name: tuple[str, ...]
    recall_at_1: Float[Tensor, " R"]
    accuracy_hit: Float[Tensor, " R"]  # of the answers that read the right document
    accuracy_miss: Float[Tensor, " R"]
    accuracy: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    World A is what the model learned; in world B everything has moved, and the library tells world B. The retriever is
    trained for this video; the reader is the tiny LM as it is. Points are vectors in the plane that is drawn: with
    embed_dim 2 the vectors themselves, else their two main directions.
    """

    config: Config
    # The library and the question.
    doc_texts: tuple[str, ...]  # M
    old_doc_texts: tuple[str, ...]  # M: the same facts in world A
    doc_words: tuple[Sequence[str], ...]  # M; a file gives lists back
    doc_names: tuple[str, ...]  # M: short, for labels
    query_text: str  # as the retriever sees it
    reader_question: str  # as the reader sees it: it knows no paraphrase
    query_words: tuple[str, ...]
    owner: str
    paraphrase: str
    gold: int  # the document that answers
    # Chapter 1: what the model remembers.
    answer_words: tuple[str, ...]  # W
    closed_book: Float[Tensor, " W"]  # p(place | question), summed over prepositions
    old_place: int  # index into answer_words, world A
    true_place: int  # world B
    closed_book_old: float
    closed_book_true: float
    # Chapter 2: words.
    lexical_words: Float[Tensor, "words M"]  # BM25 that each word of the question adds to each document
    lexical_running: Float[Tensor, "words M"]  # the same, added up from the first word on
    lexical_scores: Float[Tensor, " M"]
    lexical_scores_by_name: Float[Tensor, " M"]  # the same question with the owner's name
    word_matches: Bool[Tensor, "M words"]  # whether the document has the word
    lexical_best: Bool[Tensor, " M"]  # which documents have the highest score
    lexical_shown: Int[Tensor, " shown"]  # documents with the highest scores, in the order of the library
    # Chapter 3: training the retriever.
    doc_vectors: Float[Tensor, "M e"]
    query_vector: Float[Tensor, " e"]
    doc_points: Float[Tensor, "M 2"]
    query_point: Float[Tensor, " 2"]
    plane_share: float  # of the squared lengths of the document vectors
    training_steps: Int[Tensor, " S"]
    training_docs: Float[Tensor, "S M 2"]
    training_queries: Float[Tensor, "S M 2"]
    training_loss: Float[Tensor, " S"]
    chance_loss: float  # ln M
    shown_step: int  # index into training_steps of the step below
    batch_scores: Float[Tensor, "M M"]  # query i against document j, divided by the temperature
    batch_softmax: Float[Tensor, "M M"]
    pull: Float[Tensor, "M 2"]  # pull + push = minus the gradient on the query
    push: Float[Tensor, "M 2"]
    pull_turn: Float[Tensor, "M 2"]  # the part of pull across the query: the rest is undone, as all lengths stay 1
    push_turn: Float[Tensor, "M 2"]
    rivals: Float[Tensor, "M M"]  # batch_softmax of all documents but the query's own (NaN)
    # Chapter 4: exact search.
    cosines: Float[Tensor, " M"]
    angles: Float[Tensor, " M"]  # radians between query and document
    doc_angles: Float[Tensor, " M"]  # radians on the circle
    query_angle: float
    wedge: Float[Tensor, "k 2"]  # first and last angle of the symmetric wedge that holds 1 … k documents
    topk_indices: Int[Tensor, " k"]
    topk_cosines: Float[Tensor, " k"]
    prior: Float[Tensor, " k"]
    recall_ks: Int[Tensor, " K"]
    recall_dense: Float[Tensor, " K"]  # over all documents, asked for by name and by paraphrase
    recall_lexical: Float[Tensor, " K"]  # equal scores in random order
    embedders: Embedders
    # Chapter 5: search in cells.
    ivf_centroids: Float[Tensor, "cells e"]
    ivf_points: Float[Tensor, "cells 2"]
    ivf_assignments: Int[Tensor, " M"]
    ivf_sectors: Float[Tensor, "cells 2"]  # first and last angle of each cell on the circle
    ivf_recall: Float[Tensor, " P"]  # share of the exact top k that is found with 1 … P cells, over all questions
    ivf_cost: Float[Tensor, " P"]  # mean dot products
    ivf_visited: Int[Tensor, " n_probe"]  # cells that the shown question visits
    ivf_scored: Bool[Tensor, " M"]  # documents it is compared with
    ivf_topk: Int[Tensor, " found"]
    ivf_found: Bool[Tensor, "P k"]  # which of the exact top k the shown question finds
    ivf_found_count: Int[Tensor, " P"]
    ivf_query_cost: Int[Tensor, " P"]
    border_index: int  # the question that loses most with one cell
    border_text: str
    border_point: Float[Tensor, " 2"]
    border_cells: Int[Tensor, " cells"]  # the nearest first
    border_topk: Int[Tensor, " k"]  # of the exact search
    border_found: Bool[Tensor, "P k"]
    border_found_count: Int[Tensor, " P"]
    border_cost: Int[Tensor, " P"]
    exact_cost: int
    # Chapter 6: reading.
    per_doc: Float[Tensor, "k W"]  # p(place | question, document)
    reader_tokens: tuple[Sequence[str], ...]  # (k, T): a document, the question, and the answer up to its place
    reader_attention: Float[Tensor, "k T"]  # of the last token, in the head below
    reader_layer: int
    reader_head: int
    reader_place: int  # position of the document's place
    reader_place_weight: Float[Tensor, " k"]
    # Chapter 7: mixing.
    marginal: Float[Tensor, " W"]
    contributions: Float[Tensor, "k W"]  # prior · per_doc; they add up to marginal
    posterior: Float[Tensor, " k"]  # for the true place
    answer_tokens: tuple[str, ...]  # the whole true answer
    answer_log_prob_sequence: float  # RAG-Sequence, nats
    answer_log_prob_token: float  # RAG-Token
    surprise_closed: float  # nats at the true place
    surprise_open: float
    information_gain: float
    accuracy_ks: Int[Tensor, " mixed"]
    accuracy_by_k: Float[Tensor, " mixed"]  # of the mixture over k documents
    confidence_by_k: Float[Tensor, " mixed"]  # mean probability of the true place
    fusion_documents: Int[Tensor, " 3"]  # the right document and 0, 1, 2 others in one prompt
    fusion_accuracy: Float[Tensor, " 3"]
    # Chapter 8: another library.
    swap_names: tuple[str, ...]
    swap_accuracy: Float[Tensor, " 3"]  # on world B: from memory, with library A, with library B
    accuracy_hit: float  # reading the right document
    accuracy_miss: float  # reading a wrong one, over all pairs
    miss_copies: float  # share of wrong documents whose place is the answer
    wrong_doc: int  # the best match among documents with another place
    wrong_doc_answer: Float[Tensor, " W"]
    systems: Systems
    sizes: dict[str, int]  # published systems


def trace(config: Config) -> Trace:
    """Train a small retriever on the library, let the tiny LM read what it finds, and move everything."""
    from internals_math import rag_experiment as experiment

    library = experiment.make_library(config)
    retriever = experiment.train_retriever(library, config)
    readings = experiment.read_everything(library)
    return Trace(
        config=config,
        **experiment.library_fields(library, readings, config),
        **experiment.lexical_fields(library, config),
        **experiment.training_fields(retriever, config),
        **experiment.search_fields(library, retriever, config),
        **experiment.ivf_fields(library, retriever, config),
        **experiment.reading_fields(library, retriever, readings, config),
        **experiment.swap_fields(library, retriever, readings, config),
        embedders=experiment.embedders(),
        sizes=experiment.published_sizes(),
    )
