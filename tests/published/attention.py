"""Attention Is All You Need, arXiv 1706.03762, and the sizes of models that came after it."""

from functools import cache

import torch

from internals_math.attention import (
    attention_flops,
    attention_parameter_count,
    score_statistics,
    split_heads,
)
from tests.published import Published

PAPER = "Attention Is All You Need, arXiv 1706.03762"
FOOTNOTE = f"{PAPER}, footnote 4: q · k has variance d_k"
MONTE_CARLO = "Monte Carlo, 4,000 Gaussian rows of 16 keys"
WIDTHS = (8, 64, 512)


@cache
def _statistics():
    return score_statistics(WIDTHS, 32_000, 16, torch.Generator().manual_seed(1))


def _variance(index: int):
    return lambda: float(_statistics()["std_raw"][index]) ** 2


def _entropy(kind: str, index: int):
    return lambda: float(_statistics()[f"entropy_{kind}"][index])


ROWS = (
    Published("width of a head: 512 over 8", lambda: split_heads(torch.zeros(1, 1, 512), 8).shape[-1], 64, 0, PAPER),
    Published("variance of q · k, d_k = 8", _variance(0), 8, 0.05, FOOTNOTE),
    Published("variance of q · k, d_k = 64", _variance(1), 64, 0.05, FOOTNOTE),
    Published("variance of q · k, d_k = 512", _variance(2), 512, 0.05, FOOTNOTE),
    Published("bits of a scaled row, d_k = 8", _entropy("scaled", 0), 3.41, 0.009, MONTE_CARLO),
    Published("bits of a scaled row, d_k = 64", _entropy("scaled", 1), 3.41, 0.009, MONTE_CARLO),
    Published("bits of a scaled row, d_k = 512", _entropy("scaled", 2), 3.41, 0.009, MONTE_CARLO),
    Published("bits without the scale, d_k = 8", _entropy("raw", 0), 1.87, 0.027, MONTE_CARLO),
    Published("bits without the scale, d_k = 64", _entropy("raw", 1), 0.60, 0.083, MONTE_CARLO),
    Published("bits without the scale, d_k = 512", _entropy("raw", 2), 0.19, 0.26, MONTE_CARLO),
    Published("weights, Llama-2-7B", lambda: attention_parameter_count(4096, 32, 128), 67_108_864, 0, "formula"),
    Published("weights, Llama-2-70B", lambda: attention_parameter_count(8192, 64, 128, 8), 150_994_944, 0, "formula"),
    Published(
        "weights, GPT-2 small with biases",
        lambda: attention_parameter_count(768, 12, 64, bias=True),
        1_771_776 + 590_592,
        0,
        "GPT-2: c_attn 1,771,776 and c_proj 590,592",
    ),
    Published(
        "FLOPs of scores and mix, T = S = 1024, 16 heads x 64, batch 64",
        lambda: 64 * attention_flops(1024, 1024, 16, 64),
        274_877_906_944,
        0,
        "4 T S d H B: two products for each head",
    ),
)
