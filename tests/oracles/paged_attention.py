"""Paged attention against torch's attention, transformers' generation, and a dictionary that never pages anything."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from internals_math import paged_attention_experiment as experiment
from internals_math import tiny_lm
from internals_math.paged_attention import BlockAllocator, BlockTable, Config, PagedKVCache, paged_attention
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn


def _torch_attention(lengths: tuple[int, ...], block_size: int, heads: int, groups: int, dtype: torch.dtype) -> float:
    """Attention of one query a sequence over a NaN-filled pool, and torch's over the sequence in one piece."""
    blocks = sum(-(-length // block_size) for length in lengths)
    allocator = BlockAllocator(blocks, block_size, order="shuffled", seed=3)
    pool = PagedKVCache(1, blocks, block_size, groups, 8, dtype)
    tables = torch.full((len(lengths), max(-(-length // block_size) for length in lengths)), -1)
    expected = []
    query = randn(len(lengths), heads, 8, seed=1, dtype=dtype)
    for row, length in enumerate(lengths):
        key, value = (randn(groups, length, 8, seed=10 * row + k, dtype=dtype) for k in (2, 3))
        table = BlockTable(allocator)
        pool.write(0, table.append_slots(length), key, value)
        tables[row, : len(table.physical_blocks)] = torch.tensor(table.physical_blocks)
        expected.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[row][None, :, None], key[None], value[None], enable_gqa=True
            )[0, :, 0]
        )
    ours, _ = paged_attention(query, pool.keys[0], pool.values[0], tables, torch.tensor(lengths))
    return largest_difference(ours, torch.stack(expected))


@torch.no_grad()
def _llama_tokens() -> float:
    """Tokens that differ between the paged run of six requests and Llama's own greedy generation."""
    run = experiment.serve(Config())
    model = llama_of(tiny_lm.load("base"))
    wrong = 0
    for text, answer in zip(run.texts, run.answers, strict=True):
        prompt = torch.tensor([text[: answer.request.prompt_len]])
        written = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=answer.request.output_len,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        wrong += int((written[0] != torch.tensor(text)).sum())
    return float(wrong)


# -- a block manager without blocks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """The state after one random operation: what is stored, and how far `gather` is from it."""

    allocator: BlockAllocator
    tables: list[BlockTable]
    texts: list[list[int]]
    difference: float


def random_operations(seed: int, steps: int = 40) -> Iterator[Check]:
    """Append, fork and end sequences at random, in a pool and in a dictionary (sequence, position) -> value."""
    rng = random.Random(seed)
    allocator = BlockAllocator(rng.randint(3, 12), rng.choice((1, 2, 4)), order="shuffled", seed=seed)
    pool = PagedKVCache(2, allocator.num_blocks, allocator.block_size, 1, 1, torch.float64)
    tables: list[BlockTable] = []
    stored: dict[tuple[int, int], int] = {}  # by identity of the table, so that nothing is ever moved
    clock = 0
    for _ in range(steps):
        action = rng.choice(("start", "append", "append", "append", "fork", "end"))
        if action == "start" and len(tables) < 5:
            tables.append(BlockTable(allocator))
        elif action == "fork" and tables and len(tables) < 5:
            parent = rng.choice(tables)
            tables.append(parent.fork())
            for position in range(parent.length):
                stored[id(tables[-1]), position] = stored[id(parent), position]
        elif action == "end" and tables:
            table = tables.pop(rng.randrange(len(tables)))
            for position in range(table.length):
                del stored[id(table), position]
            table.free()
        elif action == "append" and tables:
            table, count = rng.choice(tables), rng.randint(1, 6)
            start = table.length
            try:
                slots = table.append_slots(count)
            except MemoryError:
                slots = []
            pool.copy_blocks(table.take_copy_ops())
            values = [clock + step for step in range(len(slots))]
            clock += len(slots)
            if slots:
                states = torch.tensor(values, dtype=torch.float64).view(1, -1, 1)
                for layer in range(2):
                    pool.write(layer, slots, states, -states - layer)
            stored |= {(id(table), start + step): value for step, value in enumerate(values)}
        yield Check(
            allocator,
            tables,
            [[stored[id(table), position] for position in range(table.length)] for table in tables],
            _gathered_difference(pool, tables, stored),
        )


def _gathered_difference(pool: PagedKVCache, tables: list[BlockTable], stored: dict[tuple[int, int], int]) -> float:
    largest = 0.0
    for table in tables:
        if not table.length:
            continue
        wanted = torch.tensor([stored[id(table), position] for position in range(table.length)]).view(1, -1, 1)
        for layer in range(2):
            key, value = pool.gather(layer, table.physical_blocks, table.length)
            for ours, expected in ((key, wanted), (value, -wanted - layer)):
                difference = largest_difference(ours, expected)
                largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def _replayed() -> float:
    return max(check.difference for seed in range(8) for check in random_operations(seed, steps=60))


SDPA = "torch: SDPA with enable_gqa on the gathered keys"
ROWS = (
    Oracle("paged attention", lambda: _torch_attention((7, 12, 1), 4, 4, 4, torch.float64), 1e-12, SDPA),
    Oracle("grouped heads", lambda: _torch_attention((7, 12, 1), 4, 6, 2, torch.float64), 1e-12, SDPA),
    Oracle("one shared head, blocks of 1", lambda: _torch_attention((5, 9), 1, 4, 1, torch.float64), 1e-12, SDPA),
    Oracle("one block holds all, float32", lambda: _torch_attention((5, 9), 16, 4, 2, torch.float32), 1e-5, SDPA),
    Oracle("tokens of six texts served from blocks", _llama_tokens, 0, "transformers: LlamaForCausalLM.generate"),
    Oracle("appends, forks, copies and ends", _replayed, 0, "a dictionary (sequence, position) -> value"),
)
