"""Comparisons with independent implementations, topic by topic: what the tests run and `verify` shows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Oracle:
    """One comparison of our result with that of someone else's code on the same input."""

    name: str
    difference: Callable[[], float]  # largest absolute difference of the two results
    tolerance: float  # 0 = equal to the bit
    source: str

    @property
    def ok(self) -> bool:
        """Return whether both agree."""
        return self.difference() <= self.tolerance  # False for NaN


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two tensors, which must have the same shape."""
    if ours.shape != theirs.shape:
        raise ValueError(f"results of different shape: ours {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    return float((ours.double() - theirs.double()).abs().max())


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the same random input at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
