"""Votes, compounding errors and depth: what a formula says, worked out by hand or with a binomial table."""

import torch

from internals_math.chain_of_thought import chain_accuracy, majority_vote_accuracy, serial_depth, transpositions
from tests.published import Published

BINOMIAL = "sum of the binomial distribution; self-consistency, arXiv 2203.11171"
DEPTH = "L (n + 1); arXiv 2402.12875: T written steps simulate circuits of size T"


def _whole_chain(step: float, steps: int):
    return lambda: chain_accuracy(torch.full((steps,), step, dtype=torch.float64))


ROWS = (
    Published("transpositions of 5 cups", lambda: len(transpositions(5)), 10, 0, "c (c - 1) / 2"),
    *(
        Published(f"{m} votes of 0.6 each", lambda m=m: majority_vote_accuracy(0.6, m), value, 1e-5, BINOMIAL)
        for m, value in ((1, 0.6), (3, 0.648), (5, 0.68256), (9, 0.73343), (21, 0.82562), (41, 0.90348))
    ),
    Published("41 votes of 0.4 each", lambda: majority_vote_accuracy(0.4, 41), 0.09652, 1e-4, BINOMIAL),
    *(
        Published(f"{n} steps of {s} each", _whole_chain(s, n), value, 2e-4, f"{s} to the power of {n}")
        for s, n, value in ((0.99, 10, 0.9044), (0.95, 10, 0.5987), (0.95, 20, 0.3585))
    ),
    *(
        Published(f"depth of 2 layers with {n} written tokens", lambda n=n: serial_depth(2, n), value, 0, DEPTH)
        for n, value in ((0, 2), (9, 20), (10, 22))
    ),
)
