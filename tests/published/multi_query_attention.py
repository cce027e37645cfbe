"""What the MQA paper and the paper on serving 540B models print."""

from internals_math.multi_query_attention import (
    PAPER_HEADS,
    PAPER_WIDTH,
    matched_ffn_width,
    multihead_540b_cache_bytes,
    palm_context,
    paper_token_us,
)
from tests.published import Published

SHAZEER = "Fast Transformer Decoding, arXiv 1911.02150"
TABLE_1, TABLE_2, PROSE = f"{SHAZEER}, Table 1", f"{SHAZEER}, Table 2", f"{SHAZEER}, section 4.3"
POPE = "Efficiently Scaling Transformer Inference, arXiv 2211.05102, section 4.2 and Table 1"


def _matched(num_key_value_heads: int, new_num_heads: int):
    """The translation model: 6 encoder, 6 decoder and 6 cross attentions, 12 feed-forwards of two matrices."""
    return lambda: matched_ffn_width(
        PAPER_WIDTH, 4096, PAPER_HEADS, 128, num_key_value_heads=num_key_value_heads, new_num_heads=new_num_heads,
        num_attention_layers=18, num_ffn_layers=12, ffn_matrices=2,
    )  # fmt: skip


def _us_per_token(milliseconds: float, tokens: int):
    return lambda: milliseconds * 1000 / tokens


ROWS = (
    Published("FFN width that gives MQA its weights back", _matched(1, 8), 5440, 0, TABLE_1),
    Published("the same for a single head", _matched(1, 1), 6784, 0, TABLE_1),
    Published("decoder, µs a token, multi-head", lambda: float(paper_token_us()[0]), 46, 0.003, TABLE_2),
    Published("decoder, µs a token, multi-query", lambda: float(paper_token_us()[1]), 3.8, 0.005, TABLE_2),
    Published("encoder, µs a token, multi-head", _us_per_token(222, 1024 * 128), 1.7, 0.01, PROSE),
    Published("encoder, µs a token, multi-query", _us_per_token(195, 1024 * 128), 1.5, 0.01, PROSE),
    Published("training, µs a token, multi-head", _us_per_token(433, 32768), 13.2, 0.004, PROSE),
    Published("training, µs a token, multi-query", _us_per_token(425, 32768), 13.0, 0.004, PROSE),
    Published("cache of a multi-head 540B model, bytes", multihead_540b_cache_bytes, 3e12, 0.02, POPE),
    Published("longest context, multi-head", lambda: palm_context(48, 128, "heads"), 1320, 0.02, POPE),
    Published("MQA, sharded over heads", lambda: palm_context(1, 256, "heads"), 660, 0.02, POPE),
    Published("MQA, sharded over the batch", lambda: palm_context(1, 256, "batch"), 43_000, 0.02, POPE),
)  # fmt: skip
