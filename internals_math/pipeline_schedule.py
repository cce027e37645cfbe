"""Pipeline schedules: which rank runs which part of the model on which microbatch, and when.

The model is cut into p·v chunks of layers; chunk c of rank r is part c·p + r, called a stage. F is a forward, B a
backward of one stage on one microbatch. Times may be ints, floats or Fractions, and stay what they are.

Notation: p = ranks (pipeline size), m = microbatches, v = chunks per rank, t_f, t_b = time of F and B of one stage.
Sources: Narayanan et al. 2021, arXiv 2104.04473, section 2.2; Huang et al. 2018 (GPipe), arXiv 1811.06965; Qi et al.
2023 (zero bubble), arXiv 2401.10241, table 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Time = int | float | Fraction

KINDS = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Op:
    """One forward ("F") or backward ("B") of a stage on a microbatch; both counted from 0."""

    kind: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}(stage {self.stage}, microbatch {self.microbatch})"


@dataclass(frozen=True)
class TimedOp:
    """An operation with its rank and the time it takes up."""

    rank: int
    op: Op
    start: Time
    end: Time


@dataclass(frozen=True)
class Timeline:
    """When everything happens, in the order in which it starts."""

    ops: tuple[TimedOp, ...]
    num_ranks: int

    @property
    def makespan(self) -> Time:
        return max(timed.end for timed in self.ops)

    @property
    def bubble(self) -> list[Time]:
        """The time that each rank is idle."""
        busy: list[Time] = [0] * self.num_ranks
        for timed in self.ops:
            busy[timed.rank] += timed.end - timed.start
        return [self.makespan - time for time in busy]

    def in_flight(self, time: Time) -> list[int]:
        """Return how many forwards each rank has begun whose backward is not over: activations that it must keep."""
        kept = [0] * self.num_ranks
        for timed in self.ops:
            if timed.op.kind == "F" and timed.start <= time:
                kept[timed.rank] += 1
            if timed.op.kind == "B" and timed.end <= time:
                kept[timed.rank] -= 1
        return kept

    @property
    def peak_in_flight(self) -> list[int]:
        """The largest `in_flight` of each rank, in stages of size 1/v."""
        counts = [self.in_flight(timed.start) for timed in self.ops]
        return [max(count[rank] for count in counts) for rank in range(self.num_ranks)]


def schedule(kind: str, p: int, m: int, v: int = 1) -> list[list[Op]]:
    """Return what each rank does, in order.

    Args:
        kind: "gpipe", all forwards and then all backwards; "1f1b", alternating as soon as the first backward can run;
            "interleaved", 1F1B with v chunks on every rank (with v = 1 there is nothing to interleave: 1f1b).

    Raises:
        ValueError: unknown kind; p, m or v below 1; v above 1 without interleaving; interleaving with m % p.
    """
    check_pipeline(p, m, v)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind != "interleaved" and v != 1:
        raise ValueError(f"only the interleaved schedule has more than one chunk on a rank, got v {v} for {kind}")
    if kind == "interleaved" and v > 1 and m % p:
        raise ValueError(f"the interleaved schedule needs microbatches (m = {m}) divisible by ranks (p = {p})")
    return [_rank_order(kind, p, m, v, rank) for rank in range(p)]


def _rank_order(kind: str, p: int, m: int, v: int, rank: int) -> list[Op]:
    count = m * v
    if kind == "gpipe":
        warm_up = count
    elif v == 1:
        warm_up = min(p - 1 - rank, count)
    else:
        warm_up = min(2 * (p - rank - 1) + (v - 1) * p, count)

    def op(letter: str, k: int) -> Op:
        """The rank's k-th forward or backward: p microbatches through one chunk, then through the next."""
        if v == 1:
            return Op(letter, rank, k)
        chunk = k // p % v
        chunk = chunk if letter == "F" else v - 1 - chunk
        return Op(letter, chunk * p + rank, k // (p * v) * p + k % p)

    return [
        *(op("F", k) for k in range(warm_up)),
        *(one for k in range(count - warm_up) for one in (op("F", warm_up + k), op("B", k))),
        *(op("B", k) for k in range(count - warm_up, count)),
    ]


def simulate(
    orders: Sequence[Sequence[Op]],
    n_stages: int,
    t_f: Time | Sequence[Time],
    t_b: Time | Sequence[Time],
    t_comm: Time = 0,
) -> Timeline:
    """Run the orders of all ranks: an operation starts when its rank is free and what it needs is there.

    F needs the F of the stage before, B the B of the stage after and its own F. What comes from another rank arrives
    t_comm after it is made.

    Args:
        n_stages: p·v.
        t_f, t_b: of one stage, or one value for each stage. For v chunks, pass a rank's time divided by v.

    Raises:
        ValueError: a time not above 0 (t_comm below 0), stages out of range or on two ranks.
        RuntimeError: the orders wait for each other; the message names the blocked operations.
    """
    forward, backward = (_per_stage(times, n_stages, name) for times, name in ((t_f, "t_f"), (t_b, "t_b")))
    if t_comm < 0:
        raise ValueError(f"t_comm must be at least 0, got {t_comm}")
    home = _homes(orders, n_stages)
    ends: dict[Op, Time] = {}
    free: list[Time] = [0] * len(orders)
    waiting = [list(order) for order in orders]
    timed: list[TimedOp] = []
    while any(waiting):
        progress = False
        for rank, queue in enumerate(waiting):
            while queue and all(need in ends for need in _needs(queue[0], n_stages)):
                op = queue.pop(0)
                arrivals = [ends[n] + (t_comm if home[n.stage] != rank else 0) for n in _needs(op, n_stages)]
                start = max([free[rank], *arrivals])
                free[rank] = ends[op] = start + (forward if op.kind == "F" else backward)[op.stage]
                timed.append(TimedOp(rank, op, start, ends[op]))
                progress = True
        if not progress:
            blocked = ", ".join(f"rank {rank}: {queue[0]}" for rank, queue in enumerate(waiting) if queue)
            raise RuntimeError(f"deadlock: every rank waits for another one ({blocked})")
    return Timeline(tuple(sorted(timed, key=lambda one: (one.start, one.rank))), len(orders))


def _needs(op: Op, n_stages: int) -> list[Op]:
    if op.kind == "F":
        return [Op("F", op.stage - 1, op.microbatch)] if op.stage else []
    after = [Op("B", op.stage + 1, op.microbatch)] if op.stage + 1 < n_stages else []
    return [Op("F", op.stage, op.microbatch), *after]


def _per_stage(times: Any, n_stages: int, name: str) -> list[Time]:
    values = list(times) if isinstance(times, Sequence) else [times] * n_stages
    if len(values) != n_stages or not all(value > 0 for value in values):
        raise ValueError(f"{name} must be above 0, one value or one for each of {n_stages} stages, got {times}")
    return values


def _homes(orders: Sequence[Sequence[Op]], n_stages: int) -> dict[int, int]:
    home: dict[int, int] = {}
    for rank, order in enumerate(orders):
        for op in order:
            if not 0 <= op.stage < n_stages or home.setdefault(op.stage, rank) != rank:
                raise ValueError(f"each of {n_stages} stages belongs to one rank, got {op} on rank {rank}")
    return home


def check_pipeline(p: int, m: int, v: int) -> None:
    """Raise ValueError unless there are ranks, microbatches and chunks."""
    if min(p, m, v) < 1:
        raise ValueError(f"ranks p, microbatches m and chunks v must be at least 1, got {p}, {m} and {v}")


# -- closed forms ------------------------------------------------------------------------------------------------------


def bubble_ratio(p: int, m: int, v: int = 1) -> float:
    """Return idle time over ideal time, (p - 1) / (v m): the convention of 2104.04473.

    Raises:
        ValueError: p, m or v below 1.
    """
    check_pipeline(p, m, v)
    return (p - 1) / (v * m)


def bubble_fraction(p: int, m: int, v: int = 1) -> float:
    """Return idle time over total time, (p - 1) / (v m + p - 1): the convention of GPipe.

    Raises:
        ValueError: p, m or v below 1.
    """
    check_pipeline(p, m, v)
    return (p - 1) / (v * m + p - 1)


def zero_bubble_sizes(p: int, t_f: Time, t_b: Time, t_w: Time) -> dict[str, Time]:
    """Return the idle time of a rank when the gradients of inputs (t_b) and of weights (t_w) are computed apart.

    ZB-H1 fills the drain with weight gradients within the memory of 1F1B, ZB-H2 with twice of it (2401.10241, table 2).

    Raises:
        ValueError: p below 1 or a time not above 0.
    """
    if p < 1 or not min(t_f, t_b, t_w) > 0:
        raise ValueError(f"p must be at least 1 and times above 0, got p {p}, t_f {t_f}, t_b {t_b}, t_w {t_w}")
    return {
        "1f1b": (p - 1) * (t_f + t_b + t_w),
        "zb-h1": (p - 1) * (t_f + t_b - t_w),
        "zb-h2": (p - 1) * (t_f + t_b - 2 * t_w),
    }
