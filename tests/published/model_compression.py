"""Sizes of compressed models, worked examples, and the schedule's half-way point."""

from itertools import pairwise

import torch

from internals_math.model_compression import cubic_sparsity, magnitude_mask, sparse_bits, weight_sharing_rate
from internals_math.model_shapes import ModelShape, parameter_count
from tests.published import Published

DEEP, PRUNING, DISTIL = "1510.00149", "1506.02626", "DistilBERT, 1910.01108"


def _bert(layers: int, segments: int) -> int:
    """An encoder of BERT's width; its norm stands after the embedding where a decoder has its last one."""
    return parameter_count(
        ModelShape(
            "BERT", layers, 768, 12, 12, 64, 3072, 30522, gated=False, tied=True, biased=True,
            num_positions=512 + segments,
        )
    )  # fmt: skip


def bert_base() -> int:
    return _bert(12, segments=2) + 768 * (768 + 1)  # the pooler


def distilbert() -> int:
    return _bert(6, segments=0)


def _mlp(*widths: int) -> int:
    return sum((i + 1) * o for i, o in pairwise(widths))


def _bitmask_share() -> float:
    mask = magnitude_mask(torch.arange(1.0, 1001.0), 0.9)
    return sparse_bits(mask, 16, "bitmask") / sparse_bits(mask, 16, "dense")


ROWS = (
    Published("16 weights of 32 bits, 4 shared", lambda: weight_sharing_rate(16, 32, 4), 3.2, 0, f"{DEEP}, section 3"),
    Published("AlexNet 240 MB to 6.9 MB", lambda: 240 / 6.9, 35, 0.007, f"{DEEP}, Table 1: 35x"),
    Published("VGG-16 552 MB to 11.3 MB", lambda: 552 / 11.3, 49, 0.005, f"{DEEP}, Table 1: 49x"),
    Published("AlexNet 61M weights to 6.7M", lambda: 61 / 6.7, 9, 0.012, f"{PRUNING}, Table 1: 9x"),
    Published("VGG-16 138M weights to 10.3M", lambda: 138 / 10.3, 13, 0.031, f"{PRUNING}, Table 1: 13x"),
    Published("LeNet-300-100 weights", lambda: _mlp(784, 300, 100, 10), 266_610, 0, f"{PRUNING}, Table 1: 267K"),
    Published("LeNet-300-100, 22K left", lambda: _mlp(784, 300, 100, 10) / 22e3, 12, 0.01, f"{PRUNING}, Table 1: 12x"),
    Published("BERT-base encoder", bert_base, 109_482_240, 0, "transformers: BertModel(BertConfig())"),
    Published("DistilBERT encoder", distilbert, 66_362_880, 0, "transformers: DistilBertModel(DistilBertConfig())"),
    Published("share that DistilBERT saves", lambda: 1 - distilbert() / bert_base(), 0.4, 0.016, f"{DISTIL}: 40%"),
    Published("DistilBERT's speed-up", lambda: 668 / 410, 1.63, 0.006, f"{DISTIL}, Table 3, 668 s and 410 s"),
    Published(
        "schedule half-way to 0.9",
        lambda: cubic_sparsity(5, 0, 10, 1, 0.0, 0.9),
        0.7875,
        1e-15,
        "1710.01878, eq. 1",
    ),
    Published("a bit for each position, 90% of fp16 gone", _bitmask_share, 0.1625, 0, "(1 + 0.1 x 16) / 16"),
)
