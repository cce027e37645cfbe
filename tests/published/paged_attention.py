"""What the PagedAttention paper prints: sizes, examples, and the two walks through its block tables."""

from collections.abc import Callable

from internals_math.model_shapes import preset
from internals_math.paged_attention import (
    BlockAllocator,
    BlockTable,
    contiguous_reservation,
    expected_last_block_waste,
    kv_cache_bytes_per_token,
    max_kv_slots,
)
from tests.published import Published

VLLM = "PagedAttention (vLLM), arXiv 2309.06180"
TABLE_1, FIG_3, FIG_6, FIG_8 = f"{VLLM}, Table 1", f"{VLLM}, Figure 3", f"{VLLM}, Figure 6", f"{VLLM}, Figure 8"
FREE_LIST = [7, 1, 3, 0, 2, 4, 5, 6]


def _size(name: str) -> tuple[int, int, int]:
    shape = preset(name)
    return shape.num_hidden_layers, shape.num_key_value_heads, shape.head_dim


def _slots(name: str, gib: int) -> Callable[[], int]:
    return lambda: max_kv_slots(gib * 2**30, *_size(name))


def _walk(new_tokens: int) -> str:
    """The block table of Figure 6 after a prompt of 7 tokens and some more: physical block:filled of each."""
    table = BlockTable(BlockAllocator(8, 4, order=FREE_LIST))
    table.append_slots(7)
    for _ in range(new_tokens):
        table.append_slots(1)
    return "".join(f"{block}{filled}" for block, filled in zip(table.physical_blocks, table.num_filled, strict=True))


def _shared(writes: int) -> tuple[list[BlockTable], list]:
    """Figure 8: two samples of that prompt, of which the first `writes` have written a token."""
    tables = [BlockTable(BlockAllocator(8, 4, order=FREE_LIST))]
    tables[0].append_slots(7)
    tables.append(tables[0].fork())
    copies = []
    for table in tables[:writes]:
        table.append_slots(1)
        copies += table.take_copy_ops()
    return tables, copies


def _counts(writes: int) -> int:
    """Reference counts of blocks 7, 1 and 3, as digits."""
    tables, _ = _shared(writes)
    return int("".join(str(tables[0].allocator.ref_count(block)) for block in (7, 1, 3)))


def _copies(writes: int) -> int:
    """Copies as digits, source and target."""
    return int("".join(f"{src}{dst}" for src, dst in _shared(writes)[1]))


def _per_token() -> int:
    return kv_cache_bytes_per_token(*_size("opt-13b"))


def _never_used(prompt: int, output: int, longest: int) -> Callable[[], int]:
    return lambda: contiguous_reservation("max", prompt, output, longest) - prompt - output


def _rounded_output() -> int:
    return contiguous_reservation("pow2", 100, 25, 2048) - 100


def _waste() -> float:
    """The mean over lengths that fill the last block in every possible way."""
    return expected_last_block_waste(range(322, 338), 16)


SECTION_3, SECTION_6, FIG_11 = (
    f"{VLLM}, section 3",
    f"{VLLM}, section 6.1",
    f"{VLLM}, Figure 11 (mean lengths; derived)",
)
ROWS = (
    Published("OPT-13B, bytes per token (printed as 800 KB)", _per_token, 819_200, 0, SECTION_3),
    Published("OPT-13B, 2,048 tokens (up to 1.6 GB)", lambda: 2048 * _per_token(), 1_677_721_600, 0, SECTION_3),
    Published("slots of the 13B model, 12 GB (15.7K)", _slots("opt-13b", 12), 15_728, 0, TABLE_1),
    Published("slots of the 66B model, 21 GB (rounded)", _slots("opt-66b", 21), 9_700, 0.02, TABLE_1),
    Published("the same, counted", _slots("opt-66b", 21), 9_557, 0, "21 * 2^30 / (2 * 64 * 9216 * 2) by hand"),
    Published("slots of the 175B model, 264 GB (60.1K)", _slots("opt-175b", 264), 60_074, 0, TABLE_1),
    Published("request A: never used of 2,048", _never_used(7, 3, 2048), 2_038, 0, FIG_3),
    Published("request B: never used of 512", _never_used(3, 2, 512), 507, 0, FIG_3),
    Published("output of 25, rounded up (Orca Pow2)", _rounded_output, 32, 0, SECTION_6),
    Published("prompt of 7: blocks 7, 1 hold 4, 3", lambda: int(_walk(0)), 7413, 0, FIG_6),
    Published("first token: blocks 7, 1 hold 4, 4", lambda: int(_walk(1)), 7414, 0, FIG_6),
    Published("second token: block 3 holds 1", lambda: int(_walk(2)), 741431, 0, FIG_6),
    Published("two samples: counts of blocks 7, 1, 3", lambda: _counts(0), 220, 0, FIG_8),
    Published("first writer copies block 1 to 3", lambda: _copies(1), 13, 0, FIG_8),
    Published("counts afterwards", lambda: _counts(1), 211, 0, FIG_8),
    Published("the second writer copies nothing", lambda: _copies(2), 13, 0, FIG_8),
    Published("waste in the last block, 330 tokens, B = 16", _waste, 7.5 / 337.5, 0.01, FIG_11),
)
