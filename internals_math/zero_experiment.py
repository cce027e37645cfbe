"""The tiny LM, trained from its first weights by N ranks at every ZeRO stage, and by one process on all their texts.

Texts are packed: documents follow each other without padding, so that every micro-batch has as many tokens as the next
and the mean of the ranks' losses is the loss of the joint batch.
"""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.collectives import all_gather_schedule, reduce_scatter_schedule, replay, ring_reduce_scatter
from internals_math.next_token import next_token_loss
from internals_math.zero import Config, RankEvents, communication_volume, model_state_bytes
from internals_math.zero_trainer import STAGES, StepRecord, ZeroTrainer, flatten, partition

ROWS = 4  # of each rank's micro-batch
ROW_LENGTH = 33  # ids, hence 32 predictions
DOCUMENTS = 2000
LEARNING_RATE = 0.01
SHOWN_LAYER = 1  # the first decoder layer: its gradient circles the ring, its weights are shown with their owners
CROP = 12
GRID = 32


@cache
def skeleton(seed: int) -> tiny_lm.TinyLM:
    """Return the untrained model."""
    return tiny_lm.TinyLM(seed=seed).requires_grad_(False)


def first_weights(seed: int) -> dict[str, Tensor]:
    """Return the weights that every run starts from, by name."""
    return dict(skeleton(seed).named_parameters())


def layers() -> dict[str, list[str]]:
    """Return what is gathered together: the embedding, each decoder layer, the last norm."""
    names = list(first_weights(0))
    blocks = range(skeleton(0).config.num_hidden_layers)
    decoder = {f"layer {block}": [name for name in names if f".layers.{block}." in name] for block in blocks}
    return {"embedding": ["model.embed_tokens.weight"], **decoder, "norm": ["model.norm.weight"]}


def loss_fn(weights: dict[str, Tensor], ids: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the mean loss of a micro-batch; the softmax is taken in 32 bits at least."""
    # functional_call swaps a module's weights while it runs, so every thread needs a module of its own.
    logits = tiny_lm.forward(copy.deepcopy(skeleton(0)), weights, ids)
    return next_token_loss(logits.float() if logits.element_size() < 4 else logits, ids)


@cache
def _packed_rows() -> Int[Tensor, "rows T"]:
    ids = tiny_lm.training_corpus(size=DOCUMENTS).ids
    stream = ids[ids != tiny_lm.PAD]
    return stream[: len(stream) // ROW_LENGTH * ROW_LENGTH].view(-1, ROW_LENGTH)


def batches(config: Config) -> list[tuple[Tensor, ...]]:
    """Return one micro-batch for each rank, step by step."""
    rows = _packed_rows()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    wanted = order[: config.train_steps * config.dp_degree * ROWS]
    steps = rows[wanted].view(config.train_steps, config.dp_degree, ROWS, ROW_LENGTH)
    return [step.unbind() for step in steps]


def make_trainer(config: Config, stage: int, dp_degree: int, dtype: torch.dtype = torch.bfloat16) -> ZeroTrainer:
    """Return a trainer of the untrained tiny LM, whose layers are gathered one by one."""
    return ZeroTrainer(
        loss_fn,
        first_weights(config.seed),
        dp_degree,
        stage,
        lr=LEARNING_RATE,
        dtype=dtype,
        layers=list(layers().values()),
    )


@dataclass(frozen=True, eq=False)
class Run:
    """What one training run left."""

    losses: Float[Tensor, " T"]
    weights: dict[str, Tensor]  # full precision
    steps: list[StepRecord]


def train(config: Config, stage: int, *, title: str, joint: bool = False, dtype: torch.dtype = torch.bfloat16) -> Run:
    """Train on the micro-batches of `batches`; `joint`: as one process that gets the micro-batches as one batch."""
    trainer = make_trainer(config, stage, 1 if joint else config.dp_degree, dtype)
    steps: list[StepRecord] = []
    for parts in batches(config):
        steps.append(trainer.step((torch.cat(parts),) if joint else parts))
        progress.report(title, len(steps), config.train_steps)
    losses = torch.tensor([step.loss for step in steps], dtype=torch.float64)
    return Run(losses, trainer.gather_parameters(), steps)


def training(config: Config, runs: dict[str, Run]) -> dict[str, Any]:
    """Return what the stages' results have in common, and what they sent for them; two more runs to compare with."""
    single = train(config, 0, title="one process", joint=True)
    wide = train(config, 0, title="32-bit weights", dtype=torch.float32)
    others = {name: run for name, run in runs.items() if name != "stage 0"}
    others |= {"single device": single, "float32": wide}
    base, start = runs["stage 0"], first_weights(config.seed)
    sent = {name: int(run.steps[0].elements_sent[0]) for name, run in runs.items()}
    num_params = sum(weight.numel() for weight in start.values())
    return {
        "loss_curves": {name: run.losses for name, run in runs.items()},
        "loss_single_device": single.losses,
        "loss_float32": wide.losses,
        "max_abs_diff_weights": {name: farthest(run.weights, base.weights) for name, run in others.items()},
        "max_abs_diff_loss": {name: float((run.losses - base.losses).abs().max()) for name, run in others.items()},
        "max_abs_update": farthest(base.weights, start),
        "elements_sent": sent,
        "elements_sent_ratio": {name: elements / sent["stage 0"] for name, elements in sent.items()},
        "volume_formula": {
            f"stage {stage}": communication_volume(num_params, stage, config.dp_degree, exact=True)["total"]
            for stage in STAGES
        },
    }


def farthest(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the largest difference of two models' weights."""
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def layer_sizes() -> Int[Tensor, " U"]:
    """Return how many weights each layer has."""
    return torch.tensor([sum(first_weights(0)[name].numel() for name in names) for names in layers().values()])


def memory(config: Config, runs: dict[str, Run]) -> dict[str, Any]:
    """Return what the ranks held, against the formula, and what they did in the first step."""
    sizes = layer_sizes().tolist()
    expected = []
    for stage in STAGES:
        parts = [model_state_bytes(size, stage, config.dp_degree, padded=True) for size in sizes]
        expected.append([sum(getattr(part, name) for part in parts) for name in ("params", "grads", "optimizer")])
    first = {name: run.steps[0] for name, run in runs.items()}
    timelines = {name: step.memory_timeline(0) for name, step in first.items()}
    shown = [
        (rank, order, event)
        for rank, events in enumerate(first[f"stage {config.stage}"].events)
        for order, event in enumerate(events)
    ]
    return {
        "bytes_measured": torch.stack([run.steps[-1].state_bytes for run in runs.values()]),
        "bytes_expected": torch.tensor(expected),
        "num_params": sum(sizes),
        "num_params_padded": sum(-(-size // config.dp_degree) * config.dp_degree for size in sizes),
        "layer_names": tuple(layers()),
        "layer_sizes": torch.tensor(sizes),
        "memory_timeline": timelines,
        "timeline_events": {name: tuple(event.kind for event in step.events[0]) for name, step in first.items()},
        "timeline_layers": {name: torch.tensor([e.layer for e in step.events[0]]) for name, step in first.items()},
        "memory_borrowed": {name: line[:, 0] - line[-1, 0] for name, line in timelines.items()},
        "gantt": RankEvents(
            rank=torch.tensor([rank for rank, _, _ in shown]),
            event=tuple(event.kind for _, _, event in shown),
            layer=torch.tensor([event.layer for _, _, event in shown]),
            order=torch.tensor([order for _, order, _ in shown]),
            elements_sent=torch.tensor([event.elements_sent for _, _, event in shown]),
        ),
    }


def ownership(config: Config) -> dict[str, Any]:
    """Return who owns what of the flat vector, and a piece of a weight matrix that a border runs through."""
    owners = [owner_of(size, config.dp_degree) for size in layer_sizes().tolist()]
    flat = torch.cat(owners)
    middles = (torch.arange(GRID * GRID) + 0.5) * len(flat) / (GRID * GRID)
    weights, start = first_weights(config.seed), 0
    border = int((owners[SHOWN_LAYER] == 1).nonzero()[0])
    for name in list(layers().values())[SHOWN_LAYER]:
        weight = weights[name]
        if start <= border < start + weight.numel():
            row, column = divmod(border - start, weight.shape[1])
            top, left = (
                min(max(at - CROP // 2, 0), size - CROP)
                for at, size in ((row, weight.shape[0]), (column, weight.shape[1]))
            )
            crop = (slice(top, top + CROP), slice(left, left + CROP))
            theirs = owners[SHOWN_LAYER][start : start + weight.numel()].view(weight.shape)
            break
        start += weight.numel()
    return {
        "partition_owner": flat[middles.long()].view(GRID, GRID),
        "crop_name": name,
        "weight_crop": weight[crop],
        "crop_owner": theirs[crop],
    }


def owner_of(size: int, dp_degree: int) -> Int[Tensor, " size"]:
    """Return the rank that owns each weight of a layer's flat vector."""
    parts = partition(torch.zeros(size), dp_degree)
    return torch.arange(dp_degree).repeat_interleave(parts.shape[1])[:size]


def ring(config: Config) -> dict[str, Any]:
    """Return the all-reduce of one layer's real gradient, one number of each chunk followed from hop to hop."""
    trainer = make_trainer(config, 1, config.dp_degree)
    trainer.backward(batches(config)[0])
    shown = [rank.layers[SHOWN_LAYER].weights.values() for rank in trainer.ranks]
    gradients = [flatten([weight.grad for weight in weights if weight.grad is not None])[0] for weights in shown]
    chunks = torch.stack([partition(gradient.float(), config.dp_degree) for gradient in gradients])  # (rank, chunk, P)
    chosen = chunks.mean(dim=0).abs().argmax(dim=1)  # in each chunk
    values = chunks[:, torch.arange(config.dp_degree), chosen]  # (rank, chunk)
    scatter = reduce_scatter_schedule(config.dp_degree, chunks.shape[2])
    gather = all_gather_schedule(config.dp_degree, chunks.shape[2])
    whole = scatter.then(gather)
    mine = whole.num_elements.where(whole.src == 0, 0)
    per_step = torch.zeros(whole.num_steps, dtype=torch.long).index_add(0, whole.step, mine)
    return {
        "ring_schedule_rs": scatter,
        "ring_schedule_ag": gather,
        "ring_weights": chosen + torch.arange(config.dp_degree) * chunks.shape[2],
        "ring_values": replay(whole, values),
        "ring_complete": replay(whole, torch.ones_like(values)) == config.dp_degree,
        "ring_mean": ring_reduce_scatter(values)[0][:, 0],
        "ring_sent": torch.cat([torch.zeros(1, dtype=torch.long), per_step.cumsum(dim=0)]),
    }
