"""The block manager of paged attention: who owns which block, where a position lives, and the pool they share.

Notation: B = block_size, N = num_blocks, J = logical blocks of a sequence, T = positions, G = key-value heads,
d = head_dim. Logical block j of a sequence holds its positions jB … (j + 1)B - 1; the block table says in which
physical block of the pool they lie.
Source: Kwon et al. 2023 (vLLM), arXiv 2309.06180, sections 4.2 to 4.4.
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class BlockAllocator:
    """A pool of equal blocks with a reference count each; a block whose count falls to 0 is free again.

    Args:
        order: in which order fresh blocks are handed out: "fifo" (0, 1, 2 …), "shuffled" (by `seed`), or block ids,
            each once. Freed blocks queue up behind the others.

    Raises:
        ValueError: a size below 1 or an unknown order.
    """

    def __init__(self, num_blocks: int, block_size: int, *, order: str | Sequence[int] = "fifo", seed: int = 0) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        if isinstance(order, str):
            if order not in ("fifo", "shuffled"):
                raise ValueError(f"order must be fifo, shuffled or the block ids, got {order!r}")
            ids = list(range(num_blocks))
            if order == "shuffled":
                random.Random(seed).shuffle(ids)
        else:
            ids = list(order)
            if sorted(ids) != list(range(num_blocks)):
                raise ValueError(f"order must name each of the {num_blocks} blocks once, got {ids}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = deque(ids)
        self._counts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def ref_count(self, block: int) -> int:
        """Return in how many block tables a block is; 0 if it is free."""
        self._check(block)
        return self._counts[block]

    def allocate(self) -> int:
        """Return a free block, now with a count of 1.

        Raises:
            MemoryError: every block is taken.
        """
        if not self._free:
            raise MemoryError(f"all {self.num_blocks} blocks are taken")
        block = self._free.popleft()
        self._counts[block] = 1
        return block

    def fork(self, block: int) -> None:
        """Let one more table hold a block.

        Raises:
            ValueError: no such block, or a free one.
        """
        self._check_taken(block)
        self._counts[block] += 1

    def free(self, block: int) -> None:
        """Let one table less hold a block.

        Raises:
            ValueError: no such block, or one that is free already.
        """
        self._check_taken(block)
        self._counts[block] -= 1
        if not self._counts[block]:
            self._free.append(block)

    def _check(self, block: int) -> None:
        if not 0 <= block < self.num_blocks:
            raise ValueError(f"block must be in 0..{self.num_blocks - 1}, got {block}")

    def _check_taken(self, block: int) -> None:
        self._check(block)
        if not self._counts[block]:
            raise ValueError(f"block {block} is free already")


class Slot(NamedTuple):
    """Where one token lives: in which logical and physical block, and at which place in it."""

    logical: int
    physical: int
    offset: int


class CopyOp(NamedTuple):
    """One block to copy, keys and values of all layers, before the writer goes on."""

    src: int
    dst: int


class BlockTable:
    """Where the blocks of one sequence are."""

    def __init__(self, allocator: BlockAllocator) -> None:
        self.allocator = allocator
        self.physical_blocks: list[int] = []
        self.length = 0
        self._copies: list[CopyOp] = []

    @property
    def num_filled(self) -> list[int]:
        """Return how many positions of each block are filled."""
        size = self.allocator.block_size
        return [min(size, self.length - j * size) for j in range(len(self.physical_blocks))]

    def blocks_needed(self, count: int) -> int:
        """Return how many free blocks `append_slots(count)` takes."""
        return -(-(self.length + count) // self.allocator.block_size) - len(self.physical_blocks) + self._must_copy()

    def append_slots(self, count: int) -> list[Slot]:
        """Return the slots of the next `count` tokens, in order; all of them or none.

        A last block that is partly filled and shared is replaced by a copy first (copy-on-write): the CopyOp waits in
        `take_copy_ops`, and must be carried out before anything is written.

        Raises:
            ValueError: count below 1.
            MemoryError: too few free blocks; nothing has changed.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        needed = self.blocks_needed(count)
        if needed > self.allocator.num_free:
            raise MemoryError(f"{count} more tokens need {needed} blocks, {self.allocator.num_free} are free")
        if self._must_copy():
            shared, own = self.physical_blocks[-1], self.allocator.allocate()
            self.allocator.free(shared)
            self.physical_blocks[-1] = own
            self._copies.append(CopyOp(shared, own))
        slots = []
        for position in range(self.length, self.length + count):
            logical, offset = divmod(position, self.allocator.block_size)
            if logical == len(self.physical_blocks):
                self.physical_blocks.append(self.allocator.allocate())
            slots.append(Slot(logical, self.physical_blocks[logical], offset))
        self.length += count
        return slots

    def _must_copy(self) -> bool:
        """Return whether the next token would land in a block that another table holds too."""
        partly_filled = self.length % self.allocator.block_size != 0
        return partly_filled and self.allocator.ref_count(self.physical_blocks[-1]) > 1

    def take_copy_ops(self) -> list[CopyOp]:
        """Return the copies that wait to be carried out, and forget them."""
        copies, self._copies = self._copies, []
        return copies

    def fork(self) -> "BlockTable":
        """Return a second table over the same blocks; no key and no value is copied.

        Raises:
            ValueError: a copy still waits: the new table would share a block that is not filled yet.
        """
        if self._copies:
            raise ValueError(f"carry out {self._copies} before the table is forked")
        child = BlockTable(self.allocator)
        for block in self.physical_blocks:
            self.allocator.fork(block)
        child.physical_blocks, child.length = list(self.physical_blocks), self.length
        return child

    def free(self) -> None:
        """Give all blocks back; the table is empty and may be used again."""
        for block in self.physical_blocks:
            self.allocator.free(block)
        self.physical_blocks, self.length, self._copies = [], 0, []


def slot_mapping(block_table: Int[Tensor, " J"], positions: Int[Tensor, " T"], block_size: int) -> Int[Tensor, " T"]:
    """Return the slot of each position in the whole pool: block_table[p // B] · B + p mod B.

    Raises:
        ValueError: block_size below 1, a position outside the table, or one whose block is missing (-1).

    >>> slot_mapping(torch.tensor([7, 1]), torch.tensor([0, 3, 4]), block_size=4)
    tensor([28, 31,  4])
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    held = len(block_table) * block_size
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < held:
        raise ValueError(f"positions must be in 0..{held - 1}, got {positions.tolist()}")
    blocks = block_table[positions // block_size]
    if (blocks < 0).any():
        raise ValueError(f"the table has no block for some of the positions {positions.tolist()}")
    return blocks * block_size + positions % block_size


class PagedKVCache:
    """One pool of blocks for the keys (already rotated) and values of all sequences, in every layer.

    A block id means the same block in all layers and in both tensors, so a sequence needs one table only. Slots that
    nobody has written hold NaN: whoever reads one finds out.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        num_hidden_layers: int,
        num_blocks: int,
        block_size: int,
        num_key_value_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        sizes = (num_hidden_layers, num_blocks, block_size, num_key_value_heads, head_dim)
        if min(sizes) < 1:
            raise ValueError(f"all sizes of a PagedKVCache must be at least 1, got {sizes}")
        shape = (num_hidden_layers, num_blocks, block_size, num_key_value_heads, head_dim)
        self.keys = torch.full(shape, torch.nan, dtype=dtype)  # (L, N, B, G, d)
        self.values = torch.full_like(self.keys, torch.nan)

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    def write(
        self, layer: int, slots: Sequence[Slot], key: Float[Tensor, "G n d"], value: Float[Tensor, "G n d"]
    ) -> None:
        """Store the keys and values of n tokens of one layer in their slots.

        Raises:
            ValueError: other shapes than the pool's, or another number of slots than tokens.
        """
        expected = (self.keys.shape[3], len(slots), self.keys.shape[4])
        if key.shape != expected or value.shape != expected:
            raise ValueError(
                f"keys and values must have the shape {expected}, got {tuple(key.shape)} and {tuple(value.shape)}"
            )
        blocks, offsets = [slot.physical for slot in slots], [slot.offset for slot in slots]
        self.keys[layer, blocks, offsets] = key.transpose(0, 1)
        self.values[layer, blocks, offsets] = value.transpose(0, 1)

    def copy_blocks(self, ops: Sequence[CopyOp]) -> None:
        """Carry out copies, in order: keys and values of every layer."""
        for src, dst in ops:
            self.keys[:, dst] = self.keys[:, src]
            self.values[:, dst] = self.values[:, src]

    def gather(
        self, layer: int, block_table: Sequence[int], length: int
    ) -> tuple[Float[Tensor, "G T d"], Float[Tensor, "G T d"]]:
        """Return the first `length` keys and values of a sequence, side by side as if they had never been cut.

        Raises:
            ValueError: a length beyond the table.
        """
        slots = slot_mapping(torch.tensor(list(block_table)), torch.arange(length), self.block_size)
        keys, values = (store[layer].flatten(0, 1)[slots].transpose(0, 1) for store in (self.keys, self.values))
        return keys, values
