"""Ring collectives: ranks on a circle add up, or hand round, what they hold, one chunk to the next rank at a time.

Notation: N = ranks, P = elements of each rank's buffer, cut into N chunks of P/N; M = messages of a schedule.
Rank r ends with chunk r complete: at step s of a reduce-scatter it sends chunk (r - 1 - s) mod N to rank r + 1, which
adds it; at step s of an all-gather it sends chunk (r - s) mod N, which replaces what the next rank had there.
Sources: Rajbhandari et al. 2019 (ZeRO), arXiv 1910.02054, section 7.1; Patarasuk and Yuan 2009 (bandwidth-optimal
all-reduce). The paper's labels are rotated by one, so that rank r owns chunk r.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """Who sends what to whom; the messages of one step travel at the same time, one on every link of the ring."""

    step: Int[Tensor, " M"]
    src: Int[Tensor, " M"]
    dst: Int[Tensor, " M"]
    chunk: Int[Tensor, " M"]
    num_elements: Int[Tensor, " M"]
    adds: Bool[Tensor, " M"]  # True: the receiver adds the chunk to its own; False: it takes it over

    @property
    def num_steps(self) -> int:
        return int(self.step.max()) + 1 if len(self.step) else 0

    def elements_sent(self, num_ranks: int) -> Int[Tensor, " N"]:
        """Return how many elements each rank sends."""
        return torch.zeros(num_ranks, dtype=torch.long).index_add(0, self.src, self.num_elements)

    def then(self, later: "Schedule") -> "Schedule":
        """Return this schedule followed by another one."""
        parts = {name: torch.cat([getattr(self, name), getattr(later, name)]) for name in vars(self)}
        return Schedule(**parts | {"step": torch.cat([self.step, later.step + self.num_steps])})


def reduce_scatter_schedule(num_ranks: int, chunk_elements: int) -> Schedule:
    """Return the N - 1 steps after which rank r holds the sum of all chunks r.

    Chunk c starts at rank c + 1, and each rank adds its own to what arrives: (((g[c+1] + g[c+2]) + …) + g[c]).
    """
    return _schedule(num_ranks, chunk_elements, first_chunk=-1, adds=True)


def all_gather_schedule(num_ranks: int, chunk_elements: int) -> Schedule:
    """Return the N - 1 steps after which every rank holds chunk r as rank r had it, for all r."""
    return _schedule(num_ranks, chunk_elements, first_chunk=0, adds=False)


def _schedule(num_ranks: int, chunk_elements: int, *, first_chunk: int, adds: bool) -> Schedule:
    if num_ranks < 1 or chunk_elements < 0:
        raise ValueError(f"a ring needs num_ranks >= 1 and chunks of >= 0, got {num_ranks} and {chunk_elements}")
    step = torch.arange(num_ranks - 1).repeat_interleave(num_ranks)
    src = torch.arange(num_ranks).repeat(num_ranks - 1)
    return Schedule(
        step=step,
        src=src,
        dst=(src + 1) % num_ranks,
        chunk=(src + first_chunk - step) % num_ranks,
        num_elements=torch.full_like(src, chunk_elements),
        adds=torch.full_like(src, adds, dtype=torch.bool),
    )


def ring_reduce_scatter(
    per_rank: Float[Tensor, "N P"], op: str = "mean"
) -> tuple[Float[Tensor, "N P_chunk"], Schedule]:
    """Return (owned, schedule): row r is chunk r of the sum or mean over ranks, as rank r ends up with it.

    16-bit values are added in float32, in the order of the ring, and rounded once at the end; a mean divides once, at
    the owner. The order depends on nothing but N and the chunk, so that equal inputs give equal bits.

    Raises:
        ValueError: an op other than "mean" and "sum", or P not divisible by N.
    """
    _check_op(op)
    schedule = reduce_scatter_schedule(len(per_rank), _chunk_elements(per_rank))
    *_, buffers = _play(schedule, _wide(per_rank))
    ranks = range(len(per_rank))
    sums = buffers.view(len(per_rank), len(per_rank), -1)[ranks, ranks]  # (N, P_chunk): chunk r of rank r
    return (sums / len(per_rank) if op == "mean" else sums).to(per_rank.dtype), schedule


def ring_all_gather(owned: Float[Tensor, "N P_chunk"]) -> tuple[Float[Tensor, "N P"], Schedule]:
    """Return (full, schedule): every row is all chunks side by side."""
    num_ranks, width = owned.shape
    schedule = all_gather_schedule(num_ranks, width)
    full = owned.new_zeros(num_ranks, num_ranks, width)
    full[range(num_ranks), range(num_ranks)] = owned
    *_, buffers = _play(schedule, full.flatten(1))
    return buffers, schedule


def ring_all_reduce(per_rank: Float[Tensor, "N P"], op: str = "mean") -> tuple[Float[Tensor, "N P"], Schedule]:
    """Return (values, schedule): every row is the sum or mean over ranks; a reduce-scatter, then an all-gather.

    Raises:
        ValueError: as `ring_reduce_scatter`.
    """
    owned, first = ring_reduce_scatter(per_rank, op)
    values, second = ring_all_gather(owned)
    return values, first.then(second)


def replay(schedule: Schedule, per_rank: Float[Tensor, "N P"]) -> Float[Tensor, "states N P"]:
    """Return every rank's buffer before the first step and after each step; sums are not divided yet.

    Raises:
        ValueError: P not divisible by N.
    """
    _chunk_elements(per_rank)
    return torch.stack([buffers.clone() for buffers in _play(schedule, _wide(per_rank))])


def _play(schedule: Schedule, per_rank: Float[Tensor, "N P"]) -> Iterator[Float[Tensor, "N P"]]:
    """Yield the buffers before the first step and after each step; they are changed in place from step to step."""
    num_ranks = len(per_rank)
    buffers = per_rank.clone()
    chunks = buffers.view(num_ranks, num_ranks, -1)  # (rank, chunk, element)
    yield buffers
    for now in range(schedule.num_steps):
        (messages,) = (schedule.step == now).nonzero(as_tuple=True)
        src, dst, chunk, adds = (
            column[messages] for column in (schedule.src, schedule.dst, schedule.chunk, schedule.adds)
        )
        arriving = chunks[src, chunk]  # a copy: all messages of a step travel at once
        chunks[dst, chunk] = torch.where(adds[:, None], arriving + chunks[dst, chunk], arriving)
        yield buffers


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.element_size() < 4 else values


def _chunk_elements(per_rank: Tensor) -> int:
    num_ranks, width = per_rank.shape
    if num_ranks < 1 or width % num_ranks:
        raise ValueError(f"the buffer ({width} elements) must be divisible by the number of ranks ({num_ranks})")
    return width // num_ranks


def _check_op(op: str) -> None:
    if op not in ("mean", "sum"):
        raise ValueError(f"op must be mean or sum, got {op!r}")
