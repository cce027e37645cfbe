"""Sizes of the RAG paper's system and of DPR's index, and values that formulas of their papers give."""

import math

import torch

from internals_math.rag import in_batch_contrastive_loss, normalize_embeddings
from internals_math.rag_experiment import published_sizes
from internals_math.retrieval import bm25_idf
from tests.oracles import randn
from tests.published import Published

RAG, DPR = "RAG, arXiv 2005.11401, appendix", "DPR, arXiv 2004.04906"


def _chance() -> float:
    """The loss of a batch of 128 whose scores are all equal."""
    queries = torch.ones(128, 4, dtype=torch.float64)
    return float(in_batch_contrastive_loss(queries, queries, temperature=1.0))


def _spread_of_cosines() -> float:
    vectors = normalize_embeddings(randn(400, 768, seed=1))
    rows, columns = torch.triu_indices(400, 400, offset=1)
    return float((vectors @ vectors.T)[rows, columns].std(correction=0))


ROWS = (
    Published("trainable parameters", lambda: published_sizes()["parameters"], 626_000_000, 0, RAG),
    Published(
        "index of 21,015,324 passages, bytes", lambda: published_sizes()["index_bytes"], 64.56e9, 1e-4, f"{DPR}, 4.1"
    ),
    Published("FLOPs of one exact search", lambda: published_sizes()["search_flops"], 32.3e9, 1e-3, f"{DPR}, 4.1"),
    Published("contrastive loss by chance, B = 128", _chance, 4.852, 1e-4, f"{DPR}, batch of 128: ln 128"),
    Published(
        "BM25 idf, 1 of 12 documents", lambda: float(bm25_idf(12, torch.tensor(1.0))), 2.1595, 3e-5,
        "Lucene: ln(1 + (M - df + 0.5) / (df + 0.5))",
    ),
    Published(
        "spread of cosines, random 768-d vectors", _spread_of_cosines, 1 / math.sqrt(768), 0.03, "1 / sqrt(dimension)"
    ),
)  # fmt: skip
