"""Retrieval: scoring documents against a query by words or by vectors, learning the vectors, and searching them.

Notation: M = documents, V = vocabulary, Q = queries, B = batch, e = embedding width, k = documents to keep,
tau = temperature.
Sources: Robertson and Zaragoza 2009 (BM25; its idf in Lucene's form, which is never negative); tf-idf as scikit-learn's
default (smooth idf, rows of norm 1); Karpukhin et al. 2020 (DPR, arXiv 2004.04906), eq. 1 and 2; Johnson, Douze and
Jégou 2017 (arXiv 1702.08734), inverted file.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# -- words -------------------------------------------------------------------------------------------------------------


def tf_idf(counts: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
    """Return rows of word count times ln((1 + M) / (1 + documents with the word)) + 1, scaled to norm 1.

    A document without words stays 0.
    """
    containing = (counts > 0).sum(dim=0)
    idf = torch.log((1 + len(counts)) / (1 + containing.to(counts.dtype))) + 1
    weighted = counts * idf
    norm = weighted.norm(dim=-1, keepdim=True)
    return weighted / norm.where(norm > 0, 1.0)


def bm25_idf(num_docs: int, containing: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return ln(1 + (M - df + 0.5) / (df + 0.5)): what it is worth to share a word that df of M documents have."""
    return torch.log1p((num_docs - containing + 0.5) / (containing + 0.5))


def bm25_scores(
    query_ids: Int[Tensor, " words"], doc_counts: Float[Tensor, "M V"], *, k1: float = 1.2, b: float = 0.75
) -> Float[Tensor, " M"]:
    """Return the BM25 score of every document; a word that stands twice in the query counts twice.

    Raises:
        ValueError: k1 below 0, b outside 0..1, a query word outside the vocabulary, or documents without any word.
    """
    return bm25_by_word(query_ids, doc_counts, k1=k1, b=b).sum(dim=0)


def bm25_by_word(
    query_ids: Int[Tensor, " words"], doc_counts: Float[Tensor, "M V"], *, k1: float = 1.2, b: float = 0.75
) -> Float[Tensor, "words M"]:
    """Return what each word of the query adds to the score of each document; arguments as in `bm25_scores`."""
    if not (k1 >= 0 and 0 <= b <= 1):
        raise ValueError(f"k1 must be at least 0 and b in 0..1, got {k1} and {b}")
    docs, vocabulary = doc_counts.shape
    if not ((query_ids >= 0) & (query_ids < vocabulary)).all():
        raise ValueError(f"query_ids must be in 0..{vocabulary - 1}, got {query_ids.tolist()}")
    lengths = doc_counts.sum(dim=1)
    if not lengths.sum() > 0:
        raise ValueError("bm25 needs documents with words, got none")
    count = doc_counts[:, query_ids].T  # (words, M)
    idf = bm25_idf(docs, (count > 0).sum(dim=1).to(doc_counts.dtype))
    damping = k1 * (1 - b + b * lengths / lengths.mean())  # (M,)
    # with k1 = 0 a word counts once, however often it stands there; 0 / 0 where it does not
    shares = (count * (k1 + 1) / (count + damping)).nan_to_num()
    return idf[:, None] * shares


# -- vectors -----------------------------------------------------------------------------------------------------------


def normalize_embeddings(x: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch e"]:
    """Return vectors of length 1.

    Raises:
        ValueError: a vector of length 0 has no direction.
    """
    norm = x.norm(dim=-1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError("a vector of length 0 has no direction; cosine needs vectors that are not 0")
    return x / norm


def similarity(
    queries: Float[Tensor, "Q e"], docs: Float[Tensor, "M width"], *, metric: str = "cosine"
) -> Float[Tensor, "Q M"]:
    """Return how well each document matches each query, higher = better.

    Args:
        metric: "cosine", "dot", or "l2" (minus the squared distance). On vectors of length 1 all rank alike.

    Raises:
        ValueError: an unknown metric, vectors of different width, or a vector of length 0 with "cosine".
    """
    if queries.shape[-1] != docs.shape[-1]:
        raise ValueError(f"queries and documents need the same width, got {queries.shape[-1]} and {docs.shape[-1]}")
    if metric == "cosine":
        return normalize_embeddings(queries) @ normalize_embeddings(docs).T
    if metric == "dot":
        return queries @ docs.T
    if metric == "l2":
        return -(queries[:, None] - docs).square().sum(dim=-1)
    raise ValueError(f"metric must be cosine, dot or l2, got {metric!r}")


def in_batch_contrastive_loss(
    queries: Float[Tensor, "B e"], docs: Float[Tensor, "B e"], *, temperature: float
) -> Float[Tensor, ""]:
    """Return the mean of -ln softmax(q_i · d_j / tau)[i]: document i is the right one, all others are negatives.

    Raises:
        ValueError: fewer than two pairs (nothing to tell apart), another number of documents, or temperature not > 0.
    """
    _check_batch(queries, docs, temperature)
    log_probs = torch.log_softmax(queries @ docs.T / temperature, dim=-1)
    return -log_probs.diagonal().mean()


def contrastive_gradients(
    queries: Float[Tensor, "B e"], docs: Float[Tensor, "B e"], *, temperature: float
) -> tuple[Float[Tensor, "B e"], Float[Tensor, "B e"]]:
    """Return the gradients of `in_batch_contrastive_loss` with respect to queries and documents, in closed form.

    A query is pulled to its document and pushed from the softmax-weighted mean of all:
    (Σ_j π_ij d_j - d_i) / (tau B). Errors as there.
    """
    _check_batch(queries, docs, temperature)
    probs = torch.softmax(queries @ docs.T / temperature, dim=-1)
    scale = temperature * len(queries)
    return (probs @ docs - docs) / scale, (probs.T @ queries - queries) / scale


def _check_batch(queries: Tensor, docs: Tensor, temperature: float) -> None:
    check_temperature(temperature)
    if queries.shape != docs.shape or len(queries) < 2:
        raise ValueError(
            f"a batch needs two or more queries with a document each, got {tuple(queries.shape)} and "
            f"{tuple(docs.shape)}"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a temperature is a positive number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be > 0, got {temperature}")


# -- search ------------------------------------------------------------------------------------------------------------


def retrieve(scores: Float[Tensor, "Q M"], k: int) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Return (scores, indices) of the k best documents of each query, best first; ties go to the lower index.

    Raises:
        ValueError: k outside 1..M.
    """
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k must be in 1..{scores.shape[-1]}, the number of documents, got {k}")
    ordered, indices = scores.sort(dim=-1, descending=True, stable=True)
    return ordered[:, :k], indices[:, :k]


def recall_at_k(indices: Int[Tensor, "Q k"], gold: Int[Tensor, " Q"]) -> float:
    """Return the share of queries whose right document is among the retrieved ones."""
    return float((indices == gold[:, None]).any(dim=1).double().mean())


def mean_reciprocal_rank(scores: Float[Tensor, "Q M"], gold: Int[Tensor, " Q"]) -> float:
    """Return the mean of 1 / rank of the right document."""
    _, order = retrieve(scores, scores.shape[1])
    rank = (order == gold[:, None]).double().argmax(dim=1) + 1
    return float((1 / rank).mean())


@dataclass(frozen=True, eq=False)
class IVFIndex:
    """Cells of the space, and in which of them each document lies."""

    centroids: Float[Tensor, "cells e"]  # length 1
    assignments: Int[Tensor, " M"]


def build_ivf(docs: Float[Tensor, "M e"], n_list: int, *, generator: torch.Generator, iterations: int = 10) -> IVFIndex:
    """Return an inverted file: k-means by cosine, started from `n_list` random documents.

    A cell that loses all its documents keeps its centroid.

    Raises:
        ValueError: n_list outside 1..M, iterations below 0, or a document of length 0.
    """
    if not 1 <= n_list <= len(docs):
        raise ValueError(f"n_list must be in 1..{len(docs)}, the number of documents, got {n_list}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    unit = normalize_embeddings(docs)
    centroids = unit[torch.randperm(len(docs), generator=generator)[:n_list]]
    for _ in range(iterations):
        members = torch.nn.functional.one_hot((unit @ centroids.T).argmax(dim=1), n_list).to(docs.dtype)
        sums = members.T @ unit  # (cells, e)
        norm = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(norm > 0, sums / norm.where(norm > 0, 1.0), centroids)
    return IVFIndex(centroids, (unit @ centroids.T).argmax(dim=1))


def ivf_search(
    query: Float[Tensor, " e"], index: IVFIndex, docs: Float[Tensor, "M e"], k: int, n_probe: int
) -> tuple[Int[Tensor, " found"], int]:
    """Return the best documents of the n_probe nearest cells by cosine, and the dot products it took.

    Fewer than k are returned if the cells hold fewer.

    Raises:
        ValueError: n_probe outside 1..number of cells, k outside 1..M, or a vector of length 0.
    """
    cells = len(index.centroids)
    if not 1 <= n_probe <= cells:
        raise ValueError(f"n_probe must be in 1..{cells}, the number of cells, got {n_probe}")
    if not 1 <= k <= len(docs):
        raise ValueError(f"k must be in 1..{len(docs)}, the number of documents, got {k}")
    nearest = retrieve(similarity(query[None], index.centroids), n_probe)[1][0]
    visited = torch.isin(index.assignments, nearest).nonzero()[:, 0]
    if not len(visited):
        return visited, cells
    scores = similarity(query[None], docs[visited])
    best = retrieve(scores, min(k, len(visited)))[1][0]
    return visited[best], cells + len(visited)


def index_bytes(n_vectors: int, dim: int, bytes_per_value: int = 4) -> int:
    """Return the bytes of the raw vectors.

    Raises:
        ValueError: a size below 1.
    """
    if min(n_vectors, dim, bytes_per_value) < 1:
        raise ValueError(
            f"n_vectors, dim and bytes_per_value must be at least 1, got {n_vectors}, {dim} and {bytes_per_value}"
        )
    return n_vectors * dim * bytes_per_value
