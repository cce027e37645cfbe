"""Attention Is All You Need, arXiv 1706.03762."""

from internals_math.attention import attention_flops
from tests.published import Published

ROWS = (
    Published(
        "FLOPs of scores and mix, T = S = 1024, 16 heads x 64, batch 64",
        lambda: 64 * attention_flops(1024, 1024, 16, 64),
        274_877_906_944,
        0,
        "4 T S d H B: two products for each head",
    ),
)
