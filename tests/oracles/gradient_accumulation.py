"""Autograd on the whole batch, transformers' loss, accelerate's accumulation, numpy.cov, torch's optimizers."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from internals_math import gradient_accumulation_experiment as experiment
from internals_math.gradient_accumulation import (
    accumulate_gradients,
    flatten_gradients,
    full_batch_gradient,
    gradient_covariance_trace,
    hessian_noise_scale,
    per_sequence_gradients,
    token_losses,
)
from tests.oracles import Oracle, largest_difference, randn

V, D = 8, 6
IGNORE = -100


def weights(seed: int) -> list[Tensor]:
    """Return the weights of a small language model, float64: a word is embedded, squashed, and read out."""
    return [randn(V, D, seed=seed), randn(D, V, seed=seed + 1)]


def rows(count: int, seed: int, equal: bool = False) -> Tensor:
    """Return texts of unequal lengths; -100 follows their end. With `equal` all are full."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (count, 9), generator=generator)
    if equal:
        return ids
    ends = torch.randint(2, 10, (count, 1), generator=generator)
    ends[0] = 2
    ends[-1] = 9
    return ids.where(torch.arange(9) < ends, IGNORE)


def logits_of(params: Sequence[Tensor], ids: Tensor) -> Tensor:
    embedding, head = params
    return torch.tanh(embedding[ids.clamp(min=0)]) @ head


def loss_fn(params: Sequence[Tensor], batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the token losses of rows of ids, or of one row, and their number."""
    return token_losses(logits_of(params, batch[..., :-1]), batch[..., 1:])


class _Net(nn.Module):
    """The same model as a module."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.embedding, self.head = (nn.Parameter(p.clone()) for p in params)

    def forward(self, ids: Tensor) -> Tensor:
        return logits_of((self.embedding, self.head), ids)


def _flat(net: nn.Module) -> Tensor:
    return flatten_gradients([p.grad for p in net.parameters() if p.grad is not None])


def _autograd() -> float:
    params, batch = weights(0), rows(10, 0)
    net = _Net(params)
    kept = batch[:, 1:] != IGNORE
    log_probs = net(batch[:, :-1]).log_softmax(dim=-1)
    (-log_probs[kept].gather(-1, batch[:, 1:][kept][:, None]).mean()).backward()
    ours = accumulate_gradients(loss_fn, params, batch.split(3), accum_dtype=torch.float64)
    return max(
        largest_difference(flatten_gradients(ours.grads), _flat(net)),
        largest_difference(flatten_gradients(full_batch_gradient(loss_fn, params, batch)), _flat(net)),
    )


def _transformers(fixed: bool) -> float:
    """Their losses of micro-batches added up: with the tokens of the whole window as divisor, or each by its own."""
    params, batch = weights(1), rows(12, 1)
    net = _Net(params)
    parts = batch.split(3)
    total = int((batch[:, 1:] != IGNORE).sum())
    for part in parts:
        # their loss casts to float32
        if fixed:
            loss = ForCausalLMLoss(net(part), part, vocab_size=V, num_items_in_batch=total)  # type: ignore[arg-type]
        else:
            loss = ForCausalLMLoss(net(part), part, vocab_size=V) / len(parts)
        loss.backward()
    ours = accumulate_gradients(loss_fn, params, parts, normalization="tokens" if fixed else "mean_of_means")
    return largest_difference(flatten_gradients(ours.grads), _flat(net))


def _accelerate() -> float:
    """Its backward divides every loss by the number of steps; the optimizer moves once for each window."""
    params, batch = weights(2), rows(12, 2, equal=True)
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    net = accelerator.prepare_model(_Net(params))
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(net.parameters(), lr=0.5))
    for part in batch.split(3):
        with accelerator.accumulate(net):
            loss_sum, count = token_losses(net(part[:, :-1]), part[:, 1:])
            accelerator.backward(loss_sum / count)
            optimizer.step()
            optimizer.zero_grad()
    ours = accumulate_gradients(
        loss_fn, params, batch.split(3), normalization="mean_of_means", accum_dtype=torch.float64
    )
    moved = [p - 0.5 * grad for p, grad in zip(params, ours.grads, strict=True)]
    return largest_difference(flatten_gradients(moved), flatten_gradients(p.detach() for p in net.parameters()))


def _each() -> float:
    """One backward pass after another, in place of vmap, in the tiny LM itself."""
    model = experiment.model_at("mid")
    ids = experiment.texts(experiment.Config())[:5]
    each = per_sequence_gradients(model.loss, model.params, ids)
    theirs = torch.stack([flatten_gradients(full_batch_gradient(model.loss, model.params, row[None])) for row in ids])
    return largest_difference(each, theirs)


def _covariance() -> float:
    grads = randn(30, 5, seed=3)
    return abs(gradient_covariance_trace(grads) - float(np.trace(np.cov(grads.numpy(), rowvar=False))))


def _hessian() -> float:
    """The whole Hessian, 96 x 96, against products with it (relative; as many probes as make the noise small)."""
    params, batch = weights(4), rows(40, 4, equal=True)
    each = per_sequence_gradients(loss_fn, params, batch)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in params])
        loss_sum, count = loss_fn([f.view_as(p) for f, p in zip(parts, params, strict=True)], batch)
        return loss_sum / count

    hessian = torch.autograd.functional.hessian(loss, flatten_gradients(params))
    assert isinstance(hessian, Tensor)
    noise = torch.trace(hessian @ torch.from_numpy(np.cov(each.numpy(), rowvar=False)))
    mean = each.mean(dim=0)
    theirs = float(noise / (mean @ hessian @ mean - noise / len(each)))
    ours = hessian_noise_scale(loss_fn, params, batch, each, 2000, torch.Generator().manual_seed(0))
    return abs(ours / theirs - 1)


def _optimizers() -> float:
    """SGD moves 4 times as far without the division, Adam's first step hardly at all (by eps alone)."""
    long = [4 * randn(20, seed=5), 4 * randn(3, 3, seed=6)]
    short = [grad / 4 for grad in long]
    sgd = experiment.update_ratio(torch.optim.SGD, long, short)
    adam = experiment.update_ratio(torch.optim.Adam, long, short)
    eps = 1e-8
    first = [torch.cat([(g / (g.abs() + eps)).flatten() for g in grads]).norm() for grads in (long, short)]
    return max(abs(sgd - 4), abs(adam - float(first[0] / first[1])))


ROWS = (
    Oracle("accumulated gradient, unequal lengths", _autograd, 1e-12, "torch.autograd on the whole batch"),
    Oracle("accumulated gradient, tokens", lambda: _transformers(True), 1e-6, "transformers: num_items_in_batch"),
    Oracle("accumulated gradient, mean of means", lambda: _transformers(False), 1e-6, "transformers: without it"),
    Oracle("weights after a window", _accelerate, 1e-12, "accelerate: accumulate, SGD"),
    Oracle("gradients of single sequences, tiny LM", _each, 1e-5, "torch.autograd, one by one"),
    Oracle("trace of the covariance", _covariance, 1e-12, "numpy.cov"),
    Oracle("noise scale with the Hessian (relative)", _hessian, 0.1, "torch.autograd.functional.hessian"),
    Oracle("first updates without 1 / K", _optimizers, 1e-7, "torch.optim: SGD, Adam"),
)
