"""How many requests fit into the memory of a server: contiguous reservations against blocks on demand.

Four ways to give a request memory: "max" reserves room for the longest allowed text, "pow2" for the prompt and the
output rounded up to a power of two, "oracle" for the length it will really have (all three as one contiguous chunk of a
buddy allocator), "paged" hands out one block at a time.
Source: Kwon et al. 2023 (vLLM), arXiv 2309.06180, section 3.1 (kinds of waste), 4.5 (scheduling and preemption), 6.1
(the contiguous baselines, called Orca (Max), Orca (Pow2) and Orca (Oracle) there).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.kv_cache import kv_cache_bytes_per_token
from internals_math.paged_blocks import BlockAllocator, BlockTable, Slot

POLICIES = ("max", "pow2", "oracle", "paged")
USAGE = ("tokens", "reserved", "never used", "free or lost")


class Request(NamedTuple):
    """A prompt that waits, and the number of tokens its answer will turn out to have."""

    prompt_len: int
    output_len: int

    @property
    def total(self) -> int:
        return self.prompt_len + self.output_len


class BuddyAllocator:
    """Contiguous chunks of power-of-two sizes; a chunk is halved to serve a smaller one, free halves are joined again.

    Raises:
        ValueError: num_slots below 1.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}")
        self.num_slots = num_slots
        self.taken: dict[int, int] = {}  # start of each chunk -> its size
        self._free: dict[int, set[int]] = {}  # size -> starts
        start = 0
        for bit in reversed(range(num_slots.bit_length())):  # a pool of 12 is a chunk of 8 and one of 4
            if num_slots & (1 << bit):
                self._free.setdefault(1 << bit, set()).add(start)
                start += 1 << bit

    @property
    def num_free(self) -> int:
        """Return the slots that no chunk holds; they need not lie together."""
        return self.num_slots - sum(self.taken.values())

    def allocate(self, size: int) -> int:
        """Return the start of a chunk of `size` slots, rounded up to a power of two; the lowest smallest one that fits.

        Raises:
            ValueError: size below 1.
            MemoryError: no free chunk is large enough, however many slots are free.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        wanted = next_power_of_two(size)
        found = min((held for held, starts in self._free.items() if held >= wanted and starts), default=None)
        if found is None:
            raise MemoryError(f"no free chunk of {wanted} slots; {self.num_free} slots are free")
        start = min(self._free[found])
        self._free[found].remove(start)
        while found > wanted:
            found //= 2
            self._free.setdefault(found, set()).add(start + found)
        self.taken[start] = wanted
        return start

    def free(self, start: int) -> None:
        """Give a chunk back, and join it with its buddy as long as that is free too.

        Raises:
            ValueError: no chunk starts there.
        """
        if start not in self.taken:
            raise ValueError(f"no chunk starts at {start}; chunks start at {sorted(self.taken)}")
        size = self.taken.pop(start)
        while (buddy := start ^ size) in self._free.get(size, ()):
            self._free[size].remove(buddy)
            start, size = min(start, buddy), 2 * size
        self._free.setdefault(size, set()).add(start)


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number >= 1."""
    return 1 << (number - 1).bit_length()


def contiguous_reservation(policy: str, prompt_len: int, output_len: int, max_model_len: int) -> int:
    """Return the slots that a contiguous policy sets aside for a request, before the allocator rounds them up.

    >>> contiguous_reservation("pow2", prompt_len=100, output_len=25, max_model_len=2048)
    132

    Raises:
        ValueError: an unknown policy, a length below 1, or a request that exceeds max_model_len.
    """
    if min(prompt_len, output_len) < 1 or prompt_len + output_len > max_model_len:
        raise ValueError(
            f"prompt and output must be at least 1 and together at most max_model_len ({max_model_len}), got "
            f"{prompt_len} and {output_len}"
        )
    if policy == "max":
        return max_model_len
    if policy == "pow2":
        return min(prompt_len + next_power_of_two(output_len), max_model_len)
    if policy == "oracle":
        return prompt_len + output_len
    raise ValueError(f"policy must be max, pow2 or oracle, got {policy!r}")


def max_kv_slots(
    memory_bytes: int, num_hidden_layers: int, num_key_value_heads: int, head_dim: int, bytes_per_element: int = 2
) -> int:
    """Return how many tokens' keys and values fit into a memory.

    Raises:
        ValueError: a negative memory or a size below 1.
    """
    if memory_bytes < 0:
        raise ValueError(f"memory_bytes must be at least 0, got {memory_bytes}")
    return memory_bytes // kv_cache_bytes_per_token(num_hidden_layers, num_key_value_heads, head_dim, bytes_per_element)


def expected_last_block_waste(lengths: Sequence[int], block_size: int) -> float:
    """Return the share of the slots in the blocks of these sequences that nobody has filled (yet).

    Raises:
        ValueError: no lengths, a length below 1, or block_size below 1.
    """
    if not lengths or min(lengths) < 1 or block_size < 1:
        raise ValueError(f"lengths and block_size must be at least 1, got {list(lengths)} and {block_size}")
    held = sum(-(-length // block_size) * block_size for length in lengths)
    return 1 - sum(lengths) / held


# -- the server --------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One thing that the scheduler or the block manager did; -1 where there is nothing to tell."""

    tick: int
    kind: str  # admit, allocate, append, copy_on_write, free, preempt
    sequence: int
    logical: int = -1
    physical: int = -1
    offset: int = -1


class Holding(NamedTuple):
    """What one request holds at the end of a tick: its blocks in order, or one chunk."""

    starts: tuple[int, ...]  # first slot of each block, or of the chunk
    stored: int  # tokens of it that are in memory
    allocated: int  # slots set aside for it, the rounding of the chunk not counted
    chunk: int  # slots it really takes


@dataclass(frozen=True, eq=False)
class ServingTrace:
    """What a server did, tick by tick; the kinds of waste are known in hindsight only."""

    usage: Int[Tensor, "ticks 4"]  # slots: tokens, reserved for tokens to come, never used, free or lost to rounding
    running: Int[Tensor, " ticks"]
    waiting: Int[Tensor, " ticks"]
    finished: Int[Tensor, " ticks"]  # this tick's included
    preemptions: Int[Tensor, " ticks"]  # so far
    finish_tick: Int[Tensor, " R"]  # the tick in which each request stored its last token
    events: tuple[Event, ...]
    holdings: tuple[dict[int, Holding], ...]  # of every tick, by sequence; only if it was asked for

    @property
    def busy(self) -> Tensor:
        """Return which ticks count for a mean: with somebody waiting, since else free memory is no waste."""
        busy = self.waiting > 0
        return busy if busy.any() else torch.ones_like(busy)

    @property
    def mean_usage(self) -> Float[Tensor, " 4"]:
        """Return the mean share of the pool in each state while somebody waits."""
        return self.usage[self.busy].double().mean(dim=0) / int(self.usage[0].sum())

    @property
    def mean_running(self) -> float:
        """Return the mean number of requests at work at once while somebody waits."""
        return float(self.running[self.busy].double().mean())


@dataclass(eq=False)
class _Sequence:
    """A request on its way."""

    index: int
    request: Request
    stored: int = 0  # tokens in memory
    written: int = 0  # tokens that exist, so that a preempted request takes them all up again at once

    def __post_init__(self) -> None:
        self.written = self.request.prompt_len


class _Contiguous:
    """One chunk for each request, taken at once and kept until the end."""

    def __init__(self, policy: str, num_slots: int, max_model_len: int) -> None:
        self.policy, self.max_model_len = policy, max_model_len
        self.buddies = BuddyAllocator(num_slots)
        self.starts: dict[int, int] = {}

    def reservation(self, sequence: _Sequence) -> int:
        return contiguous_reservation(self.policy, *sequence.request, self.max_model_len)

    def fits_alone(self, sequence: _Sequence) -> bool:
        largest = 1 << (self.buddies.num_slots.bit_length() - 1)
        return self.reservation(sequence) <= largest

    def admit(self, sequence: _Sequence) -> bool:
        try:
            self.starts[sequence.index] = self.buddies.allocate(self.reservation(sequence))
        except MemoryError:
            return False
        return True

    def grow(self, sequence: _Sequence) -> bool:
        return True

    def release(self, sequence: _Sequence) -> None:
        self.buddies.free(self.starts.pop(sequence.index))

    def allocated(self, sequence: _Sequence) -> int:
        return self.reservation(sequence)

    def holding(self, sequence: _Sequence) -> Holding:
        start = self.starts[sequence.index]
        return Holding((start,), sequence.stored, self.reservation(sequence), self.buddies.taken[start])


class _Paged:
    """Blocks on demand; reports what it does, and hands every stored token to `store`."""

    def __init__(
        self,
        allocator: BlockAllocator,
        report: Callable[..., None] | None,
        store: Callable[[int, BlockTable, list[Slot]], None] | None,
    ) -> None:
        self.allocator, self.report, self.store = allocator, report, store
        self.tables: dict[int, BlockTable] = {}

    def fits_alone(self, sequence: _Sequence) -> bool:
        return sequence.request.total <= self.allocator.num_blocks * self.allocator.block_size

    def admit(self, sequence: _Sequence) -> bool:
        table = BlockTable(self.allocator)
        if table.blocks_needed(sequence.written + 1) > self.allocator.num_free:  # the next token must have room too
            return False
        self.tables[sequence.index] = table
        if self.report is not None:
            self.report("admit", sequence.index)
        self._append(sequence.index, sequence.written)
        return True

    def grow(self, sequence: _Sequence) -> bool:
        try:
            self._append(sequence.index, 1)
        except MemoryError:
            return False
        return True

    def _append(self, index: int, count: int) -> None:
        slots = self.tables[index].append_slots(count)
        if self.report is not None:
            for slot in slots:
                if slot.offset == 0:
                    self.report("allocate", index, slot.logical, slot.physical)
                self.report("append", index, *slot)
        if self.store is not None:
            self.store(index, self.tables[index], slots)

    def release(self, sequence: _Sequence) -> None:
        table = self.tables.pop(sequence.index)
        if self.report is not None:
            for logical, block in enumerate(table.physical_blocks):
                self.report("free", sequence.index, logical, block)
        table.free()

    def allocated(self, sequence: _Sequence) -> int:
        return len(self.tables[sequence.index].physical_blocks) * self.allocator.block_size

    def holding(self, sequence: _Sequence) -> Holding:
        starts = tuple(b * self.allocator.block_size for b in self.tables[sequence.index].physical_blocks)
        size = self.allocated(sequence)
        return Holding(starts, sequence.stored, size, size)


def simulate_serving(
    requests: Sequence[Request],
    policy: str = "paged",
    *,
    num_slots: int,
    block_size: int = 16,
    max_model_len: int,
    order: str | Sequence[int] = "fifo",
    seed: int = 0,
    max_num_seqs: int | None = None,
    record: bool = False,
    store: Callable[[int, BlockTable, list[Slot]], None] | None = None,
) -> ServingTrace:
    """Serve requests that all wait from the start, first come first served, and count who holds what.

    In a tick every running request stores one more token, then waiting ones are admitted as long as memory allows:
    they store their prompt. Whoever has stored all of its tokens gives its memory back at the end of the tick. When
    blocks run out, the request that came last gives up all of its blocks and waits in front of the others; it computes
    its prompt and what it has written again when it comes back.

    Args:
        policy: "max", "pow2", "oracle" or "paged".
        num_slots: tokens that the memory can hold.
        block_size, order, seed: of the blocks ("paged"); order and seed as in BlockAllocator.
        max_model_len: the longest text the server allows.
        max_num_seqs: how many may run at once; None = as many as fit.
        record: keep what everybody holds in every tick, and the events.
        store: told (sequence, its table, the new slots) whenever "paged" stores tokens.

    Raises:
        ValueError: no requests, an unknown policy, max_num_seqs below 1, or a request that does not fit into
            max_model_len or into the empty memory.
    """
    if not requests:
        raise ValueError("simulate_serving needs at least one request")
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if max_num_seqs is not None and max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
    tick, events, holdings = 0, [], []

    def report(*what: str | int) -> None:
        events.append(Event(tick, *what))  # type: ignore[arg-type]

    if policy == "paged":
        allocator = BlockAllocator(max(num_slots // block_size, 1), block_size, order=order, seed=seed)
        memory = _Paged(allocator, report if record else None, store)
    else:
        memory = _Contiguous(policy, num_slots, max_model_len)
    sequences = [_Sequence(index, Request(*request)) for index, request in enumerate(requests)]
    for sequence in sequences:
        contiguous_reservation("oracle", *sequence.request, max_model_len)  # checks the lengths
        if not memory.fits_alone(sequence):
            raise ValueError(f"request {sequence.index} {tuple(sequence.request)} cannot fit into {num_slots} slots")

    waiting, running = deque(sequences), []
    finish_tick = torch.zeros(len(sequences), dtype=torch.long)
    rows, done, preempted = [], 0, 0
    while waiting or running:
        crowded = False
        for sequence in list(running):
            while sequence in running and not memory.grow(sequence):
                victim = running.pop()
                if record:
                    report("preempt", victim.index)
                memory.release(victim)
                victim.stored = 0
                waiting.appendleft(victim)
                crowded, preempted = True, preempted + 1
            if sequence in running:
                sequence.stored += 1
                sequence.written = sequence.stored
        while waiting and not crowded and (max_num_seqs is None or len(running) < max_num_seqs):
            if not memory.admit(waiting[0]):
                break
            running.append(waiting.popleft())
            running[-1].stored = running[-1].written

        complete = [sequence for sequence in running if sequence.stored == sequence.request.total]
        done += len(complete)
        rows.append((*_usage(running, memory, num_slots), len(running), len(waiting), done, preempted))
        if record:
            holdings.append({sequence.index: memory.holding(sequence) for sequence in running})
        for sequence in complete:
            memory.release(sequence)
            running.remove(sequence)
            finish_tick[sequence.index] = tick
        tick += 1
    table = torch.tensor(rows)
    return ServingTrace(
        usage=table[:, :4],
        running=table[:, 4],
        waiting=table[:, 5],
        finished=table[:, 6],
        preemptions=table[:, 7],
        finish_tick=finish_tick,
        events=tuple(events),
        holdings=tuple(holdings),
    )


def _usage(running: Sequence[_Sequence], memory: _Contiguous | _Paged, num_slots: int) -> tuple[int, int, int, int]:
    """Return the slots of USAGE."""
    tokens = reserved = never = 0
    for sequence in running:
        allocated, total = memory.allocated(sequence), sequence.request.total
        tokens += sequence.stored
        reserved += min(allocated, total) - sequence.stored
        never += max(allocated - total, 0)
    return tokens, reserved, never, num_slots - tokens - reserved - never
