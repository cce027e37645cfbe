"""ZeRO by torch's Adam on one process, and by two real processes with gloo and ZeroRedundancyOptimizer."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from internals_math import zero_experiment as experiment
from internals_math.collectives import ring_all_gather, ring_all_reduce, ring_reduce_scatter
from internals_math.zero_trainer import STAGES, ZeroTrainer, adam_update, measure_states
from tests import gloo
from tests.gloo.zero import CLIP, LAYERS, LEARNING_RATE, STEPS, batch
from tests.oracles import Oracle, largest_difference, randn

RANKS = 2


def _trainer(stage: int, dtype: torch.dtype, **settings: float) -> ZeroTrainer:
    return ZeroTrainer(
        experiment.loss_fn,
        experiment.first_weights(0),
        RANKS,
        stage,
        lr=LEARNING_RATE,
        dtype=dtype,
        layers=LAYERS,
        **settings,
    )


def _train(trainer: ZeroTrainer) -> Tensor:
    """Train as the real processes do, and return the bytes between backward and update."""
    for step in range(STEPS):
        trainer.backward([batch(step, rank) for rank in range(RANKS)])
        state_bytes = measure_states(trainer)
        trainer.update()
    return state_bytes


@cache
def _real() -> list[dict[str, Tensor]]:
    return gloo.run("tests.gloo.zero:train", ranks=RANKS)


@cache
def _simulated(stage: int) -> tuple[list[Tensor], Tensor]:
    trainer = _trainer(stage, torch.bfloat16, weight_decay=0.01, max_grad_norm=CLIP)
    state_bytes = _train(trainer)
    return [rank.master for rank in trainer.ranks], state_bytes


def _weights(stage: int) -> float:
    ours, _ = _simulated(stage)
    return max(largest_difference(ours[rank], _real()[rank][f"master {stage}"]) for rank in range(RANKS))


def _bytes() -> float:
    """Over all stages and ranks."""
    return max(
        largest_difference(_simulated(stage)[1], torch.stack([rank[f"bytes {stage}"] for rank in _real()]))
        for stage in STAGES
    )


def _zero_redundancy(stage: int) -> float:
    trainer = _trainer(stage, torch.float64)
    _train(trainer)
    theirs = _real()[0]
    return max(
        largest_difference(value, theirs[f"weight {name}"]) for name, value in trainer.gather_parameters().items()
    )


def _joint_batch(stage: int) -> float:
    """AdamW of one process on both micro-batches together, clipped by clip_grad_norm_."""
    trainer = _trainer(stage, torch.float64, weight_decay=0.1, max_grad_norm=CLIP)
    _train(trainer)
    weights = {name: value.double().requires_grad_() for name, value in experiment.first_weights(0).items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, weight_decay=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        experiment.loss_fn(weights, torch.cat([batch(step, rank) for rank in range(RANKS)])).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        optimizer.step()
    return max(largest_difference(value, weights[name].detach()) for name, value in trainer.gather_parameters().items())


def _adam() -> float:
    """Five steps of one tensor on random gradients."""
    ours, moments = randn(7, seed=1), (torch.zeros(7, dtype=torch.float64),) * 2
    theirs = ours.clone().requires_grad_()
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
    optimizer = torch.optim.AdamW([theirs], **settings)
    for step in range(1, 6):
        grad = randn(7, seed=10 + step)
        ours, *moments = adam_update(ours, grad, *moments, step, **settings)
        theirs.grad = grad
        optimizer.step()
    return largest_difference(ours, theirs.detach())


def _collectives(op: str) -> float:
    values = randn(5, 15, seed=2)
    theirs = torch.from_numpy((np.mean if op == "mean" else np.sum)(values.numpy(), axis=0))
    owned = ring_reduce_scatter(values, op)[0]
    return max(
        largest_difference(owned.flatten(), theirs),
        largest_difference(ring_all_gather(owned)[0], theirs.expand(5, 15)),
        largest_difference(ring_all_reduce(values, op)[0], theirs.expand(5, 15)),
    )


GLOO = "torch: gloo, two real processes"
ROWS = (
    *(Oracle(f"collectives, {op}", lambda o=op: _collectives(o), 1e-12, "numpy over ranks") for op in ("mean", "sum")),
    Oracle("five steps of Adam", _adam, 1e-12, "torch.optim.AdamW"),
    *(
        Oracle(f"stage {stage}, joint batch", lambda s=stage: _joint_batch(s), 1e-9, "torch.optim.AdamW, one process")
        for stage in STAGES
    ),
    *(Oracle(f"stage {stage}, bits of bfloat16 training", lambda s=stage: _weights(s), 0, GLOO) for stage in STAGES),
    Oracle("bytes of every stage and rank", _bytes, 0, GLOO),
    Oracle("stage 1, float64", lambda: _zero_redundancy(1), 1e-9, "torch: ZeroRedundancyOptimizer, two processes"),
)
