"""ZeRO in real processes: our own rank code over gloo's collectives, and torch's ZeroRedundancyOptimizer."""

import torch
from torch import Tensor
from torch import distributed as dist

from internals_math import tiny_lm
from internals_math import zero_experiment as experiment
from internals_math.zero_trainer import STAGES, ZeroRank

STEPS, LEARNING_RATE, CLIP = 3, 0.01, 1.5
LAYERS = list(experiment.layers().values())


def batch(step: int, rank: int) -> Tensor:
    """Return the micro-batch of a rank."""
    return torch.randint(3, tiny_lm.VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(10 * step + rank))


class GlooGroup:
    """What a rank needs of the others, from the real thing."""

    sent = 0  # gloo does not tell

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def reduce_scatter(self, full: Tensor) -> Tensor:
        total = full.float() if full.element_size() < 4 else full
        owned = total.new_empty(len(total) // self.size)
        dist.reduce_scatter_tensor(owned, total)
        return (owned / self.size).to(full.dtype)

    def all_gather(self, shard: Tensor) -> Tensor:
        full = shard.new_empty(len(shard) * self.size)
        dist.all_gather_into_tensor(full, shard)
        return full


def train(rank: int, ranks: int) -> dict[str, Tensor]:
    """Train a few steps at every stage; then with ZeroRedundancyOptimizer, in float64 and without clipping."""
    found = {}
    for stage in STAGES:
        me = ZeroRank(
            GlooGroup(rank, ranks),
            experiment.loss_fn,
            experiment.first_weights(0),
            stage,
            lr=LEARNING_RATE,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=0.01,
            max_grad_norm=CLIP,
            dtype=torch.bfloat16,
            layers=LAYERS,
        )
        for step in range(STEPS):
            me.backward(batch(step, rank))
            found[f"bytes {stage}"] = torch.tensor(me.state_bytes())
            me.update()
        found[f"master {stage}"] = me.master
    return found | _torchs_own(rank, ranks)


def _torchs_own(rank: int, ranks: int) -> dict[str, Tensor]:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import, and only real ranks need it

    model = tiny_lm.copy_of(experiment.skeleton(0)).double()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        experiment.loss_fn(dict(model.named_parameters()), batch(step, rank)).backward()
        for weight in model.parameters():
            dist.all_reduce(weight.grad)
            weight.grad /= ranks
        optimizer.step()
    return {f"weight {name}": weight.detach() for name, weight in model.named_parameters()}
