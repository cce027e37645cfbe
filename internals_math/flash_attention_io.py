"""What attention moves between HBM and SRAM, counted from the algorithms; in elements (numbers) of one head.

Notation: N = seq_len, d = head_dim, B_r = block_q, B_c = block_k, T_r = ceil(N / B_r), T_c = ceil(N / B_c).
Sources: FlashAttention, arXiv 2205.14135, algorithms 0, 1, 3 and 4; FlashAttention-2, arXiv 2307.08691, algorithm 1.
"""

from dataclasses import dataclass

from internals_math.attention import attention_flops
from internals_math.checks import check_sizes


@dataclass
class IOCounter:
    """Elements that a run read from HBM and wrote to it, for one head."""

    reads: int = 0
    writes: int = 0

    def read(self, elements: int) -> None:
        self.reads += elements

    def write(self, elements: int) -> None:
        self.writes += elements

    @property
    def total(self) -> int:
        return self.reads + self.writes


def block_sizes(sram_elements: int, head_dim: int) -> tuple[int, int]:
    """Return (B_r, B_c) so that four tiles of Q, K, V and O fit into SRAM (2205.14135, algorithm 1, line 1).

    Args:
        sram_elements: in numbers, not in bytes.

    Raises:
        ValueError: head_dim below 1, or an SRAM that holds less than one row of each tile.

    >>> block_sizes(98_304, head_dim=64)
    (64, 384)
    """
    check_sizes(head_dim=head_dim)
    if sram_elements < 4 * head_dim:
        raise ValueError(
            f"sram_elements must be at least {4 * head_dim}, one row of {head_dim} in each of 4 tiles, "
            f"got {sram_elements}"
        )
    block_k = -(-sram_elements // (4 * head_dim))
    return min(block_k, head_dim), block_k


def hbm_accesses_standard(seq_len: int, head_dim: int, backward: bool = False) -> int:
    """Return 4 N² + 4 N d (scores and weights both go out and come back), or 7 N² + 8 N d for the backward pass."""
    check_sizes(seq_len=seq_len, head_dim=head_dim)
    matrices, strips = (7, 8) if backward else (4, 4)
    return matrices * seq_len**2 + strips * seq_len * head_dim


def hbm_accesses_flash1(seq_len: int, head_dim: int, block_k: int, backward: bool = False) -> int:
    """Return the accesses of FlashAttention: outer loop over key tiles, output and statistics back in HBM each time.

    Forward: N d + 2 N to set O, l and m up, 2 N d for K and V once, T_c (3 N d + 4 N) for Q, O, l and m.
    Backward: 7 N d + T_c (5 N d + 2 N). The height of a query tile does not matter.
    """
    check_sizes(seq_len=seq_len, head_dim=head_dim, block_k=block_k)
    strip, rounds = seq_len * head_dim, -(-seq_len // block_k)
    if backward:
        return 7 * strip + rounds * (5 * strip + 2 * seq_len)
    return 3 * strip + 2 * seq_len + rounds * (3 * strip + 4 * seq_len)


def hbm_accesses_flash2(seq_len: int, head_dim: int, block_q: int) -> int:
    """Return 2 N d + N + 2 T_r N d: Q read once, O and L written once, K and V read for every query tile."""
    check_sizes(seq_len=seq_len, head_dim=head_dim, block_q=block_q)
    strip, rounds = seq_len * head_dim, -(-seq_len // block_q)
    return 2 * strip + seq_len + 2 * rounds * strip


def extra_memory_elements(seq_len: int, algorithm: str) -> int:
    """Return what a head needs in HBM besides Q, K, V and O: scores and weights, or a few numbers a row."""
    check_sizes(seq_len=seq_len)
    sizes = {"standard": 2 * seq_len**2, "flash1": 2 * seq_len, "flash2": seq_len}
    if algorithm not in sizes:
        raise ValueError(f"algorithm must be one of {', '.join(sizes)}, got {algorithm!r}")
    return sizes[algorithm]


def attention_matmul_flops(q_len: int, kv_len: int, head_dim: int) -> int:
    """Return 4 N_q N_k d, the forward matrix products of one head, whatever the algorithm."""
    return attention_flops(q_len, kv_len, 1, head_dim)
