"""Adapters and weights that are made up in place of trained ones: quick, and different for every run."""

from collections.abc import Mapping

import torch
from torch import Tensor

from internals_math import tiny_lm
from internals_math.lora_experiment import Adapters, matrices


def train_adapters(
    dialect: str,
    r: int,
    scaling: float,
    *,
    steps: int,
    seed: int,
    watched: str,
    names: list[str] | None = None,
    base: Mapping[str, Tensor] | None = None,
    learning_rate: float = 0.0,
    title: str = "",
) -> Adapters:
    """Take the place of `lora_experiment.train_adapters`; the gradient norms of step k are k and 100 + k."""
    state = tiny_lm.load("base").state_dict()
    generator = torch.Generator().manual_seed(1000 * seed + 20 * r + 2 * len(dialect) + (base is None))
    shapes = {name: state[name].shape for name in names or matrices()}

    def draw(scale: float, side: int) -> dict[str, Tensor]:
        sizes = {name: ((r, shape[1]), (shape[0], r))[side] for name, shape in shapes.items()}
        return {name: scale * torch.randn(size, generator=generator) for name, size in sizes.items()}

    adapters = Adapters(
        lora_a=draw(0.3, 0),
        lora_b=draw(0.1, 1),
        scaling=scaling,
        lora_a_init=draw(0.3, 0),
        losses=[4 - step / steps for step in range(steps)],
        grad_norms=[(float(step), 100.0 + step) for step in range(steps)],
    )
    a, b = adapters.lora_a[watched], adapters.lora_b[watched]
    adapters.pairs.extend((a, b * (step / steps)) for step in range(steps + 1))
    return adapters


def train_fully(dialect: str, *, steps: int, seed: int) -> dict[str, Tensor]:
    """Take the place of `lora_experiment.train_fully`."""
    generator = torch.Generator().manual_seed(1000 * seed + steps + len(dialect))
    changed = {name: value.clone() for name, value in tiny_lm.load("base").state_dict().items()}
    for name in matrices():
        changed[name] += 0.05 * torch.randn(changed[name].shape, generator=generator)
    return changed
