"""One decoder layer and the loss on two real ranks, forward and backward; and torch's own parallel modules."""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import silu

from internals_math.attention import causal_mask, multi_head_attention
from internals_math.tensor_parallel import column_parallel, row_parallel, split_columns, split_rows
from tests.oracles import randn

BATCH, LENGTH, WIDTH, HIDDEN, VOCAB, HEADS, KV_HEADS = 2, 5, 12, 10, 14, 4, 2
SHAPES = {"q": (12, 12), "k": (6, 12), "v": (6, 12), "o": (12, 12), "gate": (10, 12), "up": (10, 12), "down": (12, 10),
          "head": (14, 12)}  # fmt: skip
CUT_BY_ROWS = ("o", "down")


def weights() -> dict[str, Tensor]:
    return {name: randn(*shape, seed=seed) / 3 for seed, (name, shape) in enumerate(SHAPES.items())}


def x() -> Tensor:
    return randn(BATCH, LENGTH, WIDTH, seed=20)


def targets() -> Tensor:
    return torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(21))


sent = {"forward": 0, "backward": 0}


class _F(torch.autograd.Function):
    """Megatron's f, in front of a column-parallel layer: nothing forward, an all-reduce backward."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        sent["backward"] += 1
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _G(torch.autograd.Function):
    """Megatron's g, behind a row-parallel layer: an all-reduce forward, nothing backward."""

    @staticmethod
    def forward(ctx, x):
        sent["forward"] += 1
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


def layer(rank: int, ranks: int) -> dict[str, Tensor]:
    """Run one decoder layer and a vocabulary-parallel loss on this rank's shards."""
    shards = {
        name: (split_rows if name in CUT_BY_ROWS else split_columns)(weight, ranks)[rank].clone().requires_grad_()
        for name, weight in weights().items()
    }
    entered = x().requires_grad_()
    heads = multi_head_attention(
        _F.apply(entered), *(shards[name] for name in "qkvo"), HEADS // ranks, KV_HEADS // ranks, causal_mask(LENGTH)
    )
    attended = entered + _G.apply(heads.output)
    copied = _F.apply(attended)
    gate, up = (column_parallel(copied, [shards[name]])[0] for name in ("gate", "up"))
    _, partial = row_parallel([silu(gate) * up], [shards["down"]])
    output = attended + _G.apply(partial)
    exchanged = dict(sent)
    loss = _cross_entropy(column_parallel(_F.apply(output), [shards["head"]])[0], rank, ranks)
    loss.mean().backward()
    found = {name: shard.grad for name, shard in shards.items()}
    counts = torch.tensor([exchanged["forward"], sent["backward"] - 1])  # one backward is the head's
    return found | {"output": output.detach(), "loss": loss.detach(), "grad_x": entered.grad, "all_reduces": counts}


def _cross_entropy(logits: Tensor, rank: int, ranks: int) -> Tensor:
    """Exchange maximum, sum of exponentials and the target's logit, one number a token each."""
    maximum = logits.detach().amax(dim=-1)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    sums = _G.apply((logits - maximum[..., None]).exp().sum(dim=-1))
    local = targets() - rank * (VOCAB // ranks)
    is_here = (local >= 0) & (local < VOCAB // ranks)
    owned = logits.gather(-1, local.where(is_here, 0)[..., None])[..., 0].where(is_here, 0.0)
    return sums.log() + maximum - _G.apply(owned)


class _MLP(nn.Module):
    """SwiGLU as torch parallelizes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False, dtype=torch.float64) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


def modules(rank: int, ranks: int) -> dict[str, Tensor]:
    """Let torch cut the same feed-forward."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mlp, entered = _MLP(), x().requires_grad_()
    with torch.no_grad():
        for name, linear in mlp.named_children():
            linear.weight.copy_(weights()[name])
    plan = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    mlp = parallelize_module(mlp, dist.device_mesh.init_device_mesh("cpu", (ranks,)), plan)
    output = mlp(entered)
    (output * x()).sum().backward()
    found = {f"torch {name}": linear.weight.grad.to_local() for name, linear in mlp.named_children()}
    # A clone waits for the collective that is still under way.
    return found | {"torch output": output.detach().clone(), "torch grad_x": entered.grad.clone()}


def run(rank: int, ranks: int) -> dict[str, Tensor]:
    return layer(rank, ranks) | modules(rank, ranks)
