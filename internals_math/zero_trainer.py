"""Data-parallel training with the model states cut in pieces: ZeRO's three stages, one thread for each rank.

Every rank has tensors of its own and meets the others only in collectives. At stage 0 every rank holds everything;
stage 1 cuts the optimizer states, stage 2 the gradients too, stage 3 the 16-bit weights too. At stage 3 a rank borrows
a layer for the moment in which an operation touches it, and does not borrow again what is still there. All stages add
up gradients in one order, so they give the same bits.

Notation: Ψ = parameters, N = ranks (dp_degree), U = layers (units that are gathered together), P = elements of one
partition: rank r owns the r-th part of every layer, padded with zeros to N equal parts.
Source: Rajbhandari et al. 2019, arXiv 1910.02054, section 5; Adam: Kingma and Ba 2014, arXiv 1412.6980, algorithm 1,
with the decoupled weight decay of AdamW (1711.05101).
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from internals_math.collectives import ring_all_gather, ring_reduce_scatter

STAGES = (0, 1, 2, 3)
MEETING_SECONDS = 300  # a rank that never comes must not hold up the others forever

ModelFn = Callable[[dict[str, Tensor], Any], Tensor]


# -- one long vector ---------------------------------------------------------------------------------------------------


def flatten(params: Sequence[Tensor]) -> tuple[Float[Tensor, " Ψ"], list[torch.Size]]:
    """Return all values in one row, and the shapes that `unflatten` needs.

    Raises:
        ValueError: no tensors.
    """
    if not params:
        raise ValueError("flatten needs at least one tensor, got none")
    return torch.cat([param.reshape(-1) for param in params]), [param.shape for param in params]


def unflatten(flat: Float[Tensor, " Ψ"], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return views of a row in the given shapes, one after the other.

    Raises:
        ValueError: the shapes do not hold as many values as the row.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) != len(flat):
        raise ValueError(f"shapes with {sum(sizes)} values do not fit a row of {len(flat)}")
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def partition(flat: Float[Tensor, " Ψ"], dp_degree: int) -> Float[Tensor, "N P"]:
    """Cut a row into N equal parts; the last ones are filled up with zeros.

    Raises:
        ValueError: dp_degree below 1.

    >>> partition(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([[1., 2.],
            [3., 0.]])
    """
    check_degree(dp_degree)
    part = math.ceil(len(flat) / dp_degree)
    return torch.nn.functional.pad(flat, (0, part * dp_degree - len(flat))).view(dp_degree, part)


def adam_update(
    master: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return the new weights, momentum and variance: w - lr (m̂ / (√v̂ + ε) + λ w), with bias correction.

    Args:
        step: counted from 1.

    Raises:
        ValueError: step below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    beta1, beta2 = betas
    # Plain products and sums, each rounded on its own: a fused operation may round the end of a row differently.
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)
    momentum, variance = exp_avg / (1 - beta1**step), exp_avg_sq / (1 - beta2**step)
    return master - lr * (momentum / (variance.sqrt() + eps) + weight_decay * master), exp_avg, exp_avg_sq


def check_degree(dp_degree: int) -> None:
    """Raise ValueError unless there is a rank."""
    if dp_degree < 1:
        raise ValueError(f"dp_degree must be at least 1, got {dp_degree}")


def check_stage(stage: int) -> None:
    """Raise ValueError unless the stage exists."""
    if stage not in STAGES:
        raise ValueError(f"stage must be one of 0, 1, 2, 3, got {stage}")


# -- how ranks meet ----------------------------------------------------------------------------------------------------


@runtime_checkable
class Group(Protocol):
    """What a rank needs of the others: real processes can take the place of threads."""

    rank: int
    size: int

    @property
    def sent(self) -> int:
        """Elements that this rank has sent so far."""
        ...

    def reduce_scatter(self, full: Tensor) -> Tensor:
        """Return this rank's chunk of the mean over all ranks."""
        ...

    def all_gather(self, shard: Tensor) -> Tensor:
        """Return the chunks of all ranks side by side."""
        ...


class _Ring:
    """Where the threads of all ranks meet; a collective runs once everyone has brought its tensor."""

    def __init__(self, size: int) -> None:
        self.brought: list[tuple[str, Tensor]] = [("", torch.empty(0))] * size
        self.results: Tensor = torch.empty(0)
        self.sent: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.long)
        self.barrier = threading.Barrier(size, action=self._meet, timeout=MEETING_SECONDS)

    def _meet(self) -> None:
        kinds = {kind for kind, _ in self.brought}
        assert len(kinds) == 1, f"ranks wait in different collectives: {sorted(kinds)}"
        collective = ring_reduce_scatter if kinds == {"reduce_scatter"} else ring_all_gather
        self.results, schedule = collective(torch.stack([tensor for _, tensor in self.brought]))
        self.sent += schedule.elements_sent(len(self.brought))


@dataclass
class _RingMember:
    """One rank's place in the ring."""

    ring: _Ring
    rank: int
    size: int

    @property
    def sent(self) -> int:
        return int(self.ring.sent[self.rank])

    def reduce_scatter(self, full: Tensor) -> Tensor:
        return self._meet("reduce_scatter", full)

    def all_gather(self, shard: Tensor) -> Tensor:
        return self._meet("all_gather", shard)

    def _meet(self, kind: str, tensor: Tensor) -> Tensor:
        self.ring.brought[self.rank] = (kind, tensor.detach())
        self.ring.barrier.wait()
        return self.ring.results[self.rank].clone()  # nothing is shared


# -- one rank ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something a rank did, and the bytes of model states that it held afterwards."""

    kind: str  # gather, forward, release, backward, gradient, reduce_scatter, all_reduce, all_gather, update
    layer: int  # -1: all of them
    state_bytes: tuple[int, int, int]  # parameters, gradients, optimizer states
    elements_sent: int  # on the way to this event


@dataclass
class _Layer:
    """The 16-bit weights of one layer at one rank; at stage 3 their storage is empty until they are borrowed."""

    numel: int
    values: Tensor  # of all its weights in a row, padded at stage 3
    weights: dict[str, Tensor]  # in the same storage: what autograd differentiates
    shard: Tensor | None = None  # this rank's part, stage 3 only
    missing: int = 0  # gradients that this backward pass still owes

    @property
    def is_here(self) -> bool:
        return self.values.untyped_storage().nbytes() > 0


class ZeroRank:
    """One rank's model states, all of them its own tensors, and what it does with them.

    Args: as `ZeroTrainer`; `group` is how it meets the others.
    """

    def __init__(
        self,
        group: Group,
        model_fn: ModelFn,
        params: Mapping[str, Tensor],
        stage: int,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float | None,
        dtype: torch.dtype,
        layers: Sequence[Sequence[str]],
    ) -> None:
        self.group, self.model_fn, self.stage, self.dtype = group, model_fn, stage, dtype
        self.adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.max_grad_norm = max_grad_norm
        self.steps_done = 0
        self.grad_norm: float | None = None
        self.events: list[Event] = []
        self._sent_before = 0
        self._grad_shards: dict[int, Tensor] = {}
        self._passing, self._last = "", ("", -1)  # forward or backward; the last layer that was used in which
        self.shapes = {name: value.shape for name, value in params.items()}
        # 16-bit weights round what a small step changes; the master copy does not.
        self.master_dtype = torch.float32 if dtype.itemsize < 4 else dtype
        flats = [flatten([params[name].detach() for name in names])[0].to(self.master_dtype) for names in layers]
        self.numels = [len(flat) for flat in flats]
        self.master = torch.cat([self._own(flat) for flat in flats])
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.layers = [self._make_layer(list(names), flat) for names, flat in zip(layers, flats, strict=True)]
        self._layer_of = {layer.values.untyped_storage()._cdata: index for index, layer in enumerate(self.layers)}
        for index, layer in enumerate(self.layers):
            for weight in layer.weights.values():
                weight.register_post_accumulate_grad_hook(lambda _, index=index: self._on_grad(index))

    def _own(self, flat: Tensor) -> Tensor:
        """Return the part of a layer whose optimizer states live here: all of it at stage 0."""
        return flat if self.stage == 0 else partition(flat, self.group.size)[self.group.rank]

    def _make_layer(self, names: list[str], flat: Tensor) -> _Layer:
        parts = partition(flat.to(self.dtype), self.group.size)
        values = parts.flatten().clone() if self.stage == 3 else flat.to(self.dtype)
        # .data: a layer that is filled again is no change that autograd must know of.
        parts_of_it = unflatten(values[: len(flat)].data, [self.shapes[name] for name in names])
        weights = {name: view.data.requires_grad_() for name, view in zip(names, parts_of_it, strict=True)}
        layer = _Layer(len(flat), values, weights)
        if self.stage == 3:
            layer.shard = parts[self.group.rank].clone()
            values.untyped_storage().resize_(0)
        return layer

    # -- memory

    def tensors(self) -> dict[str, list[Tensor]]:
        """Return everything this rank holds between and within steps: parameters, gradients, optimizer states."""
        shards = [layer.shard for layer in self.layers if layer.shard is not None]
        grads = [w.grad for layer in self.layers for w in layer.weights.values() if w.grad is not None]
        return {
            "params": [layer.values for layer in self.layers] + shards,
            "grads": grads + list(self._grad_shards.values()),
            "optimizer": [self.master, self.exp_avg, self.exp_avg_sq],
        }

    def state_bytes(self) -> tuple[int, int, int]:
        """Return the bytes of the storages behind parameters, gradients and optimizer states, as they are now."""
        sizes = [sum(tensor.untyped_storage().nbytes() for tensor in held) for held in self.tensors().values()]
        return sizes[0], sizes[1], sizes[2]

    def _log(self, kind: str, layer: int = -1) -> None:
        self.events.append(Event(kind, layer, self.state_bytes(), self.group.sent - self._sent_before))
        self._sent_before = self.group.sent

    # -- forward and backward

    def backward(self, batch: Any) -> float:
        """Run forward and backward on this rank's batch, and return its loss; gradients stay until `update`."""
        self.events, self._passing, self._last = [], "forward", ("", -1)
        for layer in self.layers:
            layer.missing = len(layer.weights)
        with _Touched(self) if self.stage == 3 else nullcontext():
            loss = self.model_fn({name: w for layer in self.layers for name, w in layer.weights.items()}, batch)
            if self.stage < 3:
                self._log("forward")
            self._passing = "backward"
            loss.backward()
        for index, layer in enumerate(self.layers):
            if layer.missing:  # some of its weights took no part
                for weight in layer.weights.values():
                    weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                layer.missing = 1
                self._on_grad(index)
            self._release(index)
        return float(loss.detach())

    def touch_storage(self, tensor: Tensor) -> None:
        """Make a layer present before an operation reads it; any other one that was borrowed goes back."""
        index = self._layer_of.get(tensor.untyped_storage()._cdata)
        if index is None:
            return
        if not self.layers[index].is_here:
            for other in range(len(self.layers)):
                self._release(other)
            self._gather(index)
        if self._last != (self._passing, index):
            self._log(self._passing, index)
            self._last = (self._passing, index)

    def _gather(self, index: int) -> None:
        layer = self.layers[index]
        assert layer.shard is not None
        full = self.group.all_gather(layer.shard)
        layer.values.untyped_storage().resize_(full.untyped_storage().nbytes())
        layer.values.copy_(full)
        self._log("gather", index)

    def _release(self, index: int) -> None:
        if self.stage == 3 and self.layers[index].is_here:
            self.layers[index].values.untyped_storage().resize_(0)
            self._log("release", index)

    def _on_grad(self, index: int) -> None:
        """Count a gradient; hand the layer's to its owners as soon as all are there, if gradients are cut."""
        self.layers[index].missing -= 1
        if self.layers[index].missing:
            return
        self._log("gradient", index)
        if self.stage >= 2:
            self._grad_shards[index] = self._reduced(index)
            self._log("reduce_scatter", index)
            self._release(index)

    # -- update

    @torch.no_grad()
    def update(self) -> None:
        """Average the gradients, take one step of Adam on what this rank owns, and refresh the 16-bit weights."""
        if self.stage < 2:
            for index in range(len(self.layers)):
                self._grad_shards[index] = self._reduced(index)
                self._log("all_reduce" if self.stage == 0 else "reduce_scatter", index)
        grad = torch.cat([self._grad_shards[index] for index in range(len(self.layers))]).to(self.master_dtype)
        self._grad_shards = {}
        if self.max_grad_norm is not None:
            grad = grad * self._clip_factor(grad, self.max_grad_norm)
        self.steps_done += 1
        self.master, self.exp_avg, self.exp_avg_sq = adam_update(
            self.master, grad, self.exp_avg, self.exp_avg_sq, self.steps_done, **self.adam
        )
        for index, (layer, part) in enumerate(zip(self.layers, self.master_parts(), strict=True)):
            if self.stage == 3:
                layer.shard = part.to(self.dtype, copy=True)
            elif self.stage == 0:
                layer.values.copy_(part)
            else:
                layer.values.copy_(self.group.all_gather(part.to(self.dtype))[: layer.numel])
                self._log("all_gather", index)
        self._log("update")

    def master_parts(self) -> list[Tensor]:
        """Return this rank's part of the full-precision weights, layer by layer; views."""
        sizes = self.numels if self.stage == 0 else [math.ceil(numel / self.group.size) for numel in self.numels]
        return list(self.master.split(sizes))

    def _reduced(self, index: int) -> Tensor:
        """Return the averaged gradient of what this rank owns of a layer, and free its own."""
        layer = self.layers[index]
        grads = [weight.grad for weight in layer.weights.values() if weight.grad is not None]
        shard = self.group.reduce_scatter(partition(flatten(grads)[0], self.group.size).flatten())
        for weight in layer.weights.values():
            weight.grad = None
        if self.stage == 0:  # an all-reduce, in two halves
            shard = self.group.all_gather(shard)[: layer.numel].clone()  # without the padding
        return shard

    def _clip_factor(self, grad: Tensor, max_grad_norm: float) -> Tensor:
        """Return what brings the norm over all ranks down to max_grad_norm, as torch.nn.utils.clip_grad_norm_ does."""
        if self.stage == 0:  # the very sums that the owners would make, so that all stages agree to the bit
            parts = [partition(part, self.group.size) for part in grad.split(self.numels)]
            squares = torch.stack([row.square().sum() for row in torch.cat(parts, dim=1)])
        else:
            squares = self.group.all_gather(grad.square().sum()[None])
            self._log("all_gather")
        norm = squares.sum().sqrt()
        self.grad_norm = float(norm)
        return (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)


class _Touched(TorchDispatchMode):
    """Tells a rank which of its layers the next operation reads, in forward and in backward."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; True would import the compiler at the first operation

    def __init__(self, rank: ZeroRank) -> None:
        super().__init__()
        self.rank = rank

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    self.rank.touch_storage(tensor)
        return func(*args, **(kwargs or {}))


# -- all ranks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What one step did at every rank."""

    loss: float  # mean over ranks
    state_bytes: Int[Tensor, "N 3"]  # parameters, gradients, optimizer states, between backward and update
    events: list[list[Event]]  # of each rank, in its own order
    elements_sent: Int[Tensor, " N"]
    grad_norm: float | None  # over all ranks and layers, if gradients are clipped

    def memory_timeline(self, rank: int) -> Int[Tensor, "events 3"]:
        """Return the bytes of parameters, gradients and optimizer states that a rank held after each of its events."""
        return torch.tensor([event.state_bytes for event in self.events[rank]])

    def collectives(self, rank: int) -> list[str]:
        """Return the collectives that a rank took part in, in order."""
        return [event.kind for event in self.events[rank] if event.elements_sent]


class ZeroTrainer:
    """N ranks in one process that train one model on batches of their own.

    Args:
        model_fn: (weights by name, batch) -> scalar loss, differentiable. N threads call it at a time: it must not
            keep anything (torch.func.functional_call needs a module for each of them).
        params: the weights to start from, by name.
        dp_degree: N, the number of ranks.
        stage: 0 = plain data parallelism, 1, 2, 3.
        lr, betas, eps, weight_decay: of AdamW; weight_decay 0 makes it Adam.
        max_grad_norm: clip the averaged gradient to this norm.
        dtype: of weights and gradients; with 16 bits, Adam works on a float32 master copy.
        layers: names of the weights that are gathered together; by default all weights are one layer.

    Raises:
        ValueError: unknown stage, dp_degree below 1, no weights, or layers that do not name every weight once.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        params: Mapping[str, Tensor],
        dp_degree: int,
        stage: int,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        dtype: torch.dtype = torch.bfloat16,
        layers: Sequence[Sequence[str]] | None = None,
    ) -> None:
        check_stage(stage)
        check_degree(dp_degree)
        groups = [list(params)] if layers is None else [list(names) for names in layers]
        if not params or sorted(name for names in groups for name in names) != sorted(params):
            raise ValueError(f"layers must name each of the {len(params)} weights once, got {groups}")
        self.stage, self._ring = stage, _Ring(dp_degree)
        self.ranks = [
            ZeroRank(
                _RingMember(self._ring, rank, dp_degree),
                model_fn,
                params,
                stage,
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                max_grad_norm=max_grad_norm,
                dtype=dtype,
                layers=groups,
            )
            for rank in range(dp_degree)
        ]

    def backward(self, batches: Sequence[Any]) -> float:
        """Run forward and backward, each rank on its own batch; return the mean loss. Gradients stay until `update`.

        Raises:
            ValueError: not one batch for each rank.
        """
        if len(batches) != len(self.ranks):
            raise ValueError(f"step needs one batch for each of {len(self.ranks)} ranks, got {len(batches)}")
        losses = self._at_once([lambda r=r, b=b: r.backward(b) for r, b in zip(self.ranks, batches, strict=True)])
        return sum(losses) / len(losses)

    def update(self) -> None:
        """Average the gradients and move the weights."""
        self._at_once([rank.update for rank in self.ranks])

    def step(self, batches: Sequence[Any]) -> StepRecord:
        """Run `backward` and `update`."""
        sent_before = self._ring.sent.clone()
        loss = self.backward(batches)
        state_bytes = measure_states(self)
        self.update()
        events = [list(rank.events) for rank in self.ranks]
        return StepRecord(loss, state_bytes, events, self._ring.sent - sent_before, self.ranks[0].grad_norm)

    def gather_parameters(self) -> dict[str, Tensor]:
        """Return the weights in full precision, put together from the master copies of all ranks."""
        found: dict[str, Tensor] = {}
        owners = self.ranks[:1] if self.stage == 0 else self.ranks
        for layer, *parts in zip(self.ranks[0].layers, *(rank.master_parts() for rank in owners), strict=True):
            shapes = [weight.shape for weight in layer.weights.values()]
            values = unflatten(torch.cat(parts)[: layer.numel], shapes)
            found |= dict(zip(layer.weights, values, strict=True))
        return found

    def _at_once(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run one call for each rank, all at the same time, and return what they return."""

        def run(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except BaseException:
                self._ring.barrier.abort()  # the others would wait in vain
                raise

        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(run, call) for call in calls]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error  # first what went wrong, not that others gave up because of it
        return [future.result() for future in futures]


def measure_states(trainer: ZeroTrainer) -> Int[Tensor, "N 3"]:
    """Return the bytes of parameters, gradients and optimizer states that each rank holds now, from its live tensors.

    The formulas are those of the moment between `backward` and `update`.
    """
    return torch.tensor([rank.state_bytes() for rank in trainer.ranks])
