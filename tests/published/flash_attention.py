"""What the papers print about traffic, memory and the online softmax. Counts are elements of one head unless marked."""

import torch

from internals_math.flash_attention import (
    attention_matmul_flops,
    block_sizes,
    extra_memory_elements,
    hbm_accesses_flash1,
    hbm_accesses_standard,
    online_softmax,
)
from tests.published import Published

FLASH = "FlashAttention, arXiv 2205.14135"
FIGURE_2 = f"{FLASH}, figure 2: N 1,024, d 64, 16 heads, batch 64, FP16"
COUNT = "counted from algorithms 0, 1, 3 and 4 of 2205.14135"
ONLINE = "Online normalizer, arXiv 1805.02867, algorithm 3 on 1, 3, 2, 5"
N, D, BLOCK = 1024, 64, 384
ALL_HEADS_BYTES = 2 * 16 * 64


def _bytes(backward_too):
    return ALL_HEADS_BYTES * sum(backward_too(backward) for backward in (False, True))


def _standard(backward=False):
    return hbm_accesses_standard(N, D, backward)


def _flash(backward=False):
    return hbm_accesses_flash1(N, D, BLOCK, backward)


def _stream(name: str, step: int):
    return lambda: float(getattr(online_softmax(torch.tensor([1.0, 3.0, 2.0, 5.0])), name)[step])


ROWS = (
    Published("B_r for 192 KiB of FP16, d 64", lambda: block_sizes(98_304, 64)[0], 64, 0, f"{FLASH}, algorithm 1"),
    Published("B_c for 192 KiB of FP16, d 64", lambda: block_sizes(98_304, 64)[1], 384, 0, f"{FLASH}, algorithm 1"),
    Published("forward, standard", _standard, 4_456_448, 0, COUNT),
    Published("forward, FlashAttention", _flash, 800_768, 0, COUNT),
    Published("forward, ratio", lambda: _standard() / _flash(), 5.57, 1e-3, COUNT),
    Published("backward, standard", lambda: _standard(True), 7_864_320, 0, COUNT),
    Published("backward, FlashAttention", lambda: _flash(True), 1_447_936, 0, COUNT),
    Published("bytes there and back, FlashAttention", lambda: _bytes(_flash), 4.605e9, 1e-3, COUNT),
    Published("the same, as measured", lambda: _bytes(_flash), 4.4e9, 0.05, FIGURE_2),
    # the paper measures 40.3 GB: its baseline passes over the scores again for mask and dropout
    Published("bytes there and back, standard, no mask or dropout", lambda: _bytes(_standard), 25.23e9, 1e-3, COUNT),
    Published(
        "forward FLOPs of the setting", lambda: 16 * 64 * attention_matmul_flops(N, N, D), 274.9e9, 1e-3, "4 N² d"
    ),
    *(
        Published(f"forward elements with B_c = {block}", lambda b=block: hbm_accesses_flash1(N, D, b), count, 0, COUNT)
        for block, count in ((64, 3_409_920), (128, 1_804_288), (256, 1_001_472), (512, 600_064))
    ),
    Published(
        "FP16 bytes of scores and weights, N 65,536",
        lambda: 2 * extra_memory_elements(65_536, "standard"), 17_179_869_184, 0, "2 N² · 2 bytes",
    ),
    Published(
        "FP32 bytes of L, N 65,536", lambda: 4 * extra_memory_elements(65_536, "flash2"), 262_144, 0, "N · 4 bytes"
    ),
    *(
        Published(f"running maximum after score {k + 1}", _stream("running_max", k), value, 0, ONLINE)
        for k, value in enumerate((1, 3, 3, 5))
    ),
    *(
        Published(f"running sum after score {k + 1}", _stream("running_sum", k), value, 1e-4, ONLINE)
        for k, value in enumerate((1, 1.1353, 1.5032, 1.2034))
    ),
)  # fmt: skip
