"""One recipe for every training run of the series, deterministic on one thread.

Muon (Jordan 2024: Nesterov momentum, orthogonalized by five Newton-Schulz steps) moves the block matrices, AdamW the
embedding and the norms; 50 steps of warm-up, then linearly to zero. Measured: AdamW alone reaches the floor on tales
but forms induction late or not at all within the same number of steps.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.next_token import IGNORE, next_token_loss, target_surprisal
from internals_math.tiny_lm.datasets import Corpus, training_corpus
from internals_math.tiny_lm.model import TinyLM, block_matrices
from internals_math.tiny_lm.vocabulary import PAD

OnStep = Callable[[int, int, float], None]  # (steps done, steps in all, loss of the last step)
LossFn = Callable[[TinyLM, Tensor, Tensor], Tensor]
FINE_TUNE_DOCUMENTS = 3200


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; a run is a function of recipe, model seed and corpus alone."""

    steps: int = 1600
    batch_size: int = 32
    muon_lr: float = 0.01  # 0 = AdamW for everything
    adam_lr: float = 0.005
    adam_betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 50
    clip: float | None = None
    constant_share: float = 0.0  # of the run at full rate before the linear decay

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        decay_from = max(self.warmup, round(self.constant_share * self.steps))
        return min(1.0, (self.steps - step) / max(1, self.steps - decay_from))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized: every direction of a matrix moves at the same speed."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                momentum.mul_(group["momentum"]).add_(weight.grad)
                update = orthogonalize(weight.grad + group["momentum"] * momentum)
                scale = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Float[Tensor, "rows columns"], steps: int = 5) -> Float[Tensor, "rows columns"]:
    """Push all singular values towards 1 by the quintic Newton-Schulz iteration of Muon."""
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def train(
    model: TinyLM,
    corpus: Corpus,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    labels: Tensor | None = None,
    skip_batches: int = 0,
    loss_fn: LossFn | None = None,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    after_step: Callable[[int], None] | None = None,
    snapshots: Collection[int] = (),
    on_step: OnStep | None = None,
) -> dict[int, dict[str, Tensor]]:
    """Train `model` in place; returns copies of its weights at the steps named in `snapshots` (0 = before training).

    Args:
        corpus: documents; every epoch shuffles them with the run's own generator.
        seed: of the order of the documents.
        labels: (N, T) unshifted, -100 = ignored; by default every token but <pad>.
        skip_batches: batches of the same stream that an earlier run has seen already.
        loss_fn: (model, ids, labels) -> scalar to minimize, in place of the next-token loss.
        optimizers: in place of the recipe's; their learning rates follow the recipe's schedule.
        after_step: told the number of steps done once the weights have moved; it may move them again (a pruning mask).
        on_step: told (steps done, steps in all, loss) after each step.
    """
    recipe = recipe or Recipe()
    labels = corpus.labels() if labels is None else labels
    loss_fn = loss_fn or plain_loss
    optimizers = make_optimizers(model, recipe) if optimizers is None else optimizers
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    kept = {0: _snapshot(model)} if 0 in snapshots else {}
    batches = _batches(len(corpus.ids), recipe.batch_size, torch.Generator().manual_seed(seed))
    with one_thread():
        for step, rows in enumerate(islice(batches, skip_batches, skip_batches + recipe.steps)):
            for optimizer, rates in zip(optimizers, full_rates, strict=True):
                optimizer.zero_grad()
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * recipe.rate(step)
            width = int(corpus.lengths[rows].max())  # trimmed to the longest document
            loss = loss_fn(model, corpus.ids[rows, :width], labels[rows, :width])
            loss.backward()
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer in optimizers:
                optimizer.step()
            if after_step is not None:
                after_step(step + 1)
            if step + 1 in snapshots:
                kept[step + 1] = _snapshot(model)
            if on_step is not None:
                on_step(step + 1, recipe.steps, float(loss.detach()))
    return kept


def plain_loss(model: TinyLM, ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the mean next-token loss of one batch."""
    return next_token_loss(model(ids), labels)


def make_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the block matrices (if the recipe has a rate for it) and AdamW for the rest."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    chosen = block_matrices(model).keys() & trained.keys() if recipe.muon_lr > 0 else set()
    matrices = [weight for name, weight in trained.items() if name in chosen]
    others = [weight for name, weight in trained.items() if name not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=recipe.muon_lr))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=recipe.adam_lr, betas=recipe.adam_betas, weight_decay=0.0))
    return optimizers


@torch.no_grad()
def evaluate(
    model: TinyLM, corpus: Corpus, *, labels: Tensor | None = None, batch_size: int = 100, **forward: Any
) -> float:
    """Return the held-out loss in nats per predicted token; keyword arguments go to the model's forward.

    `labels` (N, T), unshifted, says which tokens count (-100 = ignored); by default all but <pad>.
    """
    labels = corpus.labels() if labels is None else labels
    total, count = 0.0, 0
    for start in range(0, len(corpus.ids), batch_size):
        rows = slice(start, start + batch_size)
        targets = labels[rows, 1:]
        total += float(target_surprisal(model(corpus.ids[rows], **forward)[:, :-1], targets).double().sum())
        count += int((targets != IGNORE).sum())
    return total / count


@torch.no_grad()
def token_losses(model: TinyLM, ids: Int[Tensor, "N T"], **forward: Any) -> Float[Tensor, "N T_pred"]:
    """Return the model's surprisal at every token after the first; 0 on <pad>."""
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == PAD, IGNORE)
    return target_surprisal(model(ids, **forward)[:, :-1], targets)


def fine_tune(
    model: TinyLM,
    texts: str | Corpus,
    *,
    steps: int = 150,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    **train_arguments: Any,
) -> TinyLM:
    """Return a copy of `model` trained on with AdamW: the recipe of every fine-tuning topic.

    Args:
        texts: the name of a dialect, whose 3200 training documents are then used, or documents.
        train_arguments: for `train`; a `loss_fn` receives the copy.
    """
    corpus = training_corpus(texts, FINE_TUNE_DOCUMENTS) if isinstance(texts, str) else texts
    tuned = copy_of(model)
    recipe = fine_tuning_recipe(steps, batch_size, learning_rate)
    train(tuned, corpus, recipe, seed=seed, **train_arguments)
    return tuned


def fine_tuning_recipe(steps: int, batch_size: int, learning_rate: float) -> Recipe:
    """Return AdamW for every weight: Muon's orthogonal steps would move a trained model too far."""
    return Recipe(steps=steps, batch_size=batch_size, muon_lr=0.0, adam_lr=learning_rate, warmup=5)


def continue_training(
    model: TinyLM, steps: int, *, learning_rate: float = 3e-3, seed: int = 0, **train_arguments: Any
) -> TinyLM:
    """Return a copy of `model` trained on with AdamW and the documents that follow in the base run's stream.

    `seed` is that of the base run; `train_arguments` go to `train`.
    """
    base = Recipe()
    return fine_tune(
        model,
        training_corpus(),
        steps=steps,
        batch_size=base.batch_size,
        learning_rate=learning_rate,
        seed=seed,
        skip_batches=base.steps,
        **train_arguments,
    )


def copy_of(model: TinyLM, state: Mapping[str, Tensor] | None = None) -> TinyLM:
    """Return a trainable copy of a model, with the weights of `state` if it is given."""
    clone = copy.deepcopy(model)
    if state is not None:
        clone.load_state_dict(state)
    return clone.train().requires_grad_(True)


def _batches(documents: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Tell the rows of one batch after another, in a new order every epoch; an incomplete last batch is left out."""
    batch_size = min(batch_size, documents)
    while True:
        order = torch.randperm(documents, generator=generator)
        for start in range(0, documents - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def _snapshot(model: TinyLM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread, so that sums are added in the same order on every machine of the same kind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
