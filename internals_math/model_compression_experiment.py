"""The tiny LM gets smaller: pruned at once and in steps, imitated by a student, stored in few bits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.model_compression import (
    AXIS,
    METHODS,
    TEMPERATURES,
    Config,
    Storage,
    Trace,
    apply_mask,
    cubic_sparsity,
    distillation_loss,
    entropy_bits,
    global_magnitude_masks,
    huffman_code_lengths,
    huffman_mean_length,
    kmeans_1d,
    magnitude_mask,
    random_mask,
    soften,
    sparse_bits,
    sparsity,
    wanda_mask,
)
from internals_math.quantization_experiment import block_matrices, linear_inputs
from internals_math.tiny_lm.training import fine_tuning_recipe

MATRIX = "model.layers.1.self_attn.v_proj.weight"
ROW_MATRIX, ROW_SPARSITY, SHOWN = "model.layers.1.self_attn.o_proj.weight", 0.5, 12
HELD_OUT, CALIBRATION = 100, 64  # documents
KNEE_NATS = 0.1
BINS = 41
PRUNE_BATCH, PRUNE_RATE = 16, 3e-3
RECORDS, WATCHED = 30, 40  # records of a run, and held-out documents that each looks at
PRUNING_SHARE = 2 / 3  # of a run; the rest repairs
STUDENT_STEPS, STUDENT_RECORDS = 400, 16
# A model this narrow bears far higher rates than its teacher, and needs them in so short a run.
STUDENT = tiny_lm.Recipe(steps=STUDENT_STEPS, batch_size=16, muon_lr=0.04, adam_lr=0.02, warmup=20)
FEW = 200  # documents, each of them seen 32 times
KMEANS_ITERS = 40
STORED_BITS = 16  # of a weight or a shared value
LENGTH_BITS = 8  # of a code word's length
POINTER_BITS = 16

State = Mapping[str, Tensor]
Masks = dict[str, Tensor]


def base_state() -> dict[str, Tensor]:
    """Return the weights of the tiny LM."""
    return dict(tiny_lm.load("base").state_dict())


def prunable(state: State) -> dict[str, Tensor]:
    """Return the linear weights of all layers."""
    return {name: state[name] for name in block_matrices()}


def masked(state: State, masks: Masks) -> dict[str, Tensor]:
    """Return a state with the masks applied."""
    return {**state, **{name: apply_mask(state[name], mask) for name, mask in masks.items()}}


def loss_of(state: State, documents: int = HELD_OUT) -> float:
    """Return the held-out loss of the tiny LM with these weights."""
    model = tiny_lm.copy_of(tiny_lm.load("base"), state).requires_grad_(False)
    return tiny_lm.evaluate(model, tiny_lm.held_out(documents))


# -- one shot ----------------------------------------------------------------------------------------------------------


def one_shot_masks(method: str, share: float, seed: int = 0) -> Masks:
    """Return masks of all linear weights by one of METHODS; random, layerwise and wanda treat each matrix alike."""
    state = base_state()
    weights = prunable(state)
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: random_mask(weight, share, generator) for name, weight in weights.items()}
    if method == "layerwise":
        return {name: magnitude_mask(weight, share) for name, weight in weights.items()}
    if method == "global":
        return global_magnitude_masks(weights, share)
    masks: Masks = {}
    for layer in range(tiny_lm.load("base").config.num_hidden_layers):  # each sees what the pruned ones before it give
        inputs = linear_inputs(masked(state, masks), tiny_lm.training_corpus(size=CALIBRATION))
        for name in (name for name in weights if name.startswith(f"model.layers.{layer}.")):
            masks[name] = wanda_mask(weights[name], inputs[name], share)
    return masks


def sweep(config: Config) -> dict[str, Any]:
    """Return the loss of every method at every sparsity, and where each one's knee is."""
    state = base_state()
    losses = {method: torch.zeros(len(AXIS)) for method in METHODS}
    for column, share in enumerate(AXIS):
        for method in METHODS:
            losses[method][column] = loss_of(masked(state, one_shot_masks(method, share, config.seed)))
        progress.report("pruning without retraining", column + 1, len(AXIS))
    dense = loss_of(state)
    knees = {method: int((loss <= dense + KNEE_NATS).nonzero().max()) for method, loss in losses.items()}
    global_masks = one_shot_masks("global", config.sparsity)
    return {
        "sparsity_axis": torch.tensor(AXIS),
        "num_params": tiny_lm.load("base").num_params,
        "num_prunable": sum(weight.numel() for weight in prunable(state).values()),
        "loss_dense": dense,
        "entropy_floor": tiny_lm.held_out(HELD_OUT).entropy_floor,
        **{f"loss_{method}": loss for method, loss in losses.items()},
        "knee_excess": KNEE_NATS,
        "knee_index": knees,
        "knee_sparsity": {method: AXIS[index] for method, index in knees.items()},
        "knee_loss": {method: float(losses[method][index]) for method, index in knees.items()},
        "layer_names": tuple(tiny_lm.short_name(name) for name in global_masks),
        "layer_sparsity_global": torch.tensor([sparsity(mask) for mask in global_masks.values()]),
    }


def one_matrix() -> dict[str, Any]:
    """Return a real projection, the order in which its weights go, and what is left of it at every sparsity."""
    weight = base_state()[MATRIX].clone()
    order = weight.abs().flatten().argsort(stable=True)
    masks = torch.stack([magnitude_mask(weight, share) for share in AXIS])
    edge = float(weight.abs().max())
    return {
        "matrix": tiny_lm.short_name(MATRIX),
        "W": weight,
        "prune_order": order.argsort().view(weight.shape),
        "threshold_at": torch.stack([apply_mask(weight, ~mask).abs().max() for mask in masks]),
        "mask_at": masks,
        "W_edges": torch.linspace(-edge, edge, BINS + 1),
        "W_counts": histogram(weight.flatten(), edge),
        "W_kept_counts": torch.stack([histogram(weight[mask], edge) for mask in masks]),
    }


def histogram(values: Float[Tensor, " n"], edge: float) -> Int[Tensor, " H"]:
    """Return how many values lie in each of BINS equal bins from -edge to edge."""
    return torch.histogram(values, bins=BINS, range=(-edge, edge)).hist.long()


def one_row() -> dict[str, Any]:
    """Return a real output row in which a loud input saves a smaller weight, as a crop of 12 inputs."""
    state = base_state()
    weight = state[ROW_MATRIX]
    x = linear_inputs(state, tiny_lm.training_corpus(size=CALIBRATION))[ROW_MATRIX]
    norms = x.norm(dim=0)
    by_magnitude = wanda_mask(weight, torch.ones(1, weight.shape[1]), ROW_SPARSITY)  # all inputs equally loud
    by_wanda = wanda_mask(weight, x, ROW_SPARSITY)
    row = int((by_magnitude != by_wanda).sum(dim=1).argmax())
    size, scores = weight[row].abs(), weight[row].abs() * norms
    only_magnitude, only_wanda = (
        (kept[row] & ~other[row]).nonzero()[:, 0]
        for kept, other in ((by_magnitude, by_wanda), (by_wanda, by_magnitude))
    )
    swap = [int(only_magnitude[scores[only_magnitude].argmin()]), int(only_wanda[scores[only_wanda].argmax()])]
    others = [j for j in range(weight.shape[1]) if j not in swap]
    even = torch.linspace(0, len(others) - 1, SHOWN - len(swap)).round().long()
    shown = torch.tensor(sorted([*swap, *(others[int(j)] for j in even)]))
    return {
        "row_matrix": tiny_lm.short_name(ROW_MATRIX),
        "row_index": row,
        "row_sparsity": ROW_SPARSITY,
        "row_inputs": shown,
        "row_weights": size[shown],
        "row_norms": norms[shown],
        "row_scores": scores[shown],
        "row_kept_magnitude": by_magnitude[row, shown],
        "row_kept_wanda": by_wanda[row, shown],
        "row_swap": torch.tensor([shown.tolist().index(j) for j in swap]),
    }


# -- prune and retrain -------------------------------------------------------------------------------------------------


class MaskedWeights:
    """Weights whose removed entries stay 0 while an optimizer moves the others.

    Removed entries get no gradient, but momentum from before would still move them: call `apply` after every step.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        for name, weight in self.weights.items():
            weight.register_hook(lambda grad, name=name: apply_mask(grad, self.masks[name]))

    def prune(self, share: float) -> None:
        """Remove the smallest weights of each matrix; what is 0 already is among them, so masks only grow."""
        self.masks = {name: magnitude_mask(weight.detach(), share) for name, weight in self.weights.items()}
        self.apply()

    def apply(self) -> int:
        """Set what is masked to 0 and return how many entries were not."""
        moved = 0
        with torch.no_grad():
            for name, weight in self.weights.items():
                moved += int(weight[~self.masks[name]].count_nonzero())
                weight.copy_(apply_mask(weight, self.masks[name]))
        return moved

    def survivors(self) -> Float[Tensor, " n"]:
        """Return all entries that are not removed."""
        return torch.cat([weight.detach()[self.masks[name]] for name, weight in self.weights.items()])


@dataclass(frozen=True, eq=False)
class PruneRun:
    """A pruning run: its records, and the model at its end."""

    state: dict[str, Tensor]
    masks: Masks
    loss: float  # of the model at the end
    event_steps: list[int]
    event_sparsity: list[float]
    event_before: list[float] = field(default_factory=list)  # loss on fewer documents
    event_after: list[float] = field(default_factory=list)
    event_survivors: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # on fewer documents
    sparsities: list[float] = field(default_factory=list)
    revived: list[int] = field(default_factory=list)  # masked weights that each step moved


def event_steps(config: Config) -> list[int]:
    """Return how many steps are done before each pruning: evenly over the first part of the run, the first at 0."""
    n = config.prune_events
    return [round(PRUNING_SHARE * config.finetune_steps * k / n) for k in range(n)]


def prune_and_finetune(config: Config) -> PruneRun:
    """Prune to config.sparsity in config.prune_events steps of the cubic schedule while the model trains.

    One event is one-shot pruning: everything goes before the first step. All runs take the same number of steps.
    """
    model = tiny_lm.copy_of(tiny_lm.load("base"))
    pruned = MaskedWeights(tiny_lm.block_matrices(model))
    n, total = config.prune_events, config.finetune_steps
    shares = [cubic_sparsity(k + 1, 0, n, 1, 0.0, config.sparsity) for k in range(n)]
    events = event_steps(config)
    run = PruneRun({}, pruned.masks, 0.0, events, shares)
    watched, every = tiny_lm.held_out(WATCHED), max(1, total // RECORDS)

    def record(step: int) -> float:
        run.steps.append(step)
        run.losses.append(tiny_lm.evaluate(model, watched))
        run.sparsities.append(sparsity(torch.cat([mask.flatten() for mask in pruned.masks.values()])))
        return run.losses[-1]

    def after_step(step: int) -> None:
        if step > 0:
            run.revived.append(pruned.apply())
        due = [share for share, event in zip(shares, events, strict=True) if event == step]
        for share in due:
            run.event_before.append(record(step))
            pruned.prune(share)
            run.event_after.append(record(step))
            run.event_survivors.append(pruned.survivors())
        if not due and (step % every == 0 or step == total):
            record(step)

    after_step(0)
    if total > 0:
        recipe = replace(fine_tuning_recipe(total, PRUNE_BATCH, PRUNE_RATE), constant_share=PRUNING_SHARE)
        tiny_lm.train(
            model,
            tiny_lm.training_corpus(size=max(PRUNE_BATCH, total * PRUNE_BATCH)),
            recipe,
            seed=config.seed,
            after_step=after_step,
            on_step=progress.on_step(f"pruning in {n} steps" if n > 1 else "pruning at once"),
        )
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return replace(run, state=state, masks=pruned.masks, loss=loss_of(state))


def pruning_runs(config: Config) -> tuple[dict[str, Any], PruneRun]:
    """Return what happens to the loss and to the weights, all at once and step by step; and the stepwise run."""
    iterative = prune_and_finetune(config)
    at_once = prune_and_finetune(replace(config, prune_events=1))
    before = torch.cat([weight.flatten() for weight in prunable(base_state()).values()])
    after = torch.cat([iterative.state[name][mask] for name, mask in iterative.masks.items()])
    edge = float(torch.cat([before, after, *iterative.event_survivors]).abs().max())
    return {
        "hist_edges": torch.linspace(-edge, edge, BINS + 1),
        "hist_before": histogram(before, edge),
        "hist_pruned": histogram(at_once.event_survivors[0], edge),
        "hist_retrained": histogram(after, edge),
        "hist_run": torch.stack([histogram(values, edge) for values in iterative.event_survivors]),
        "schedule_t": torch.tensor(iterative.event_steps),
        "schedule_s": torch.tensor(iterative.event_sparsity),
        "event_loss_before": torch.tensor(iterative.event_before),
        "event_loss_after": torch.tensor(iterative.event_after),
        "run_steps": torch.tensor(iterative.steps),
        "run_loss": torch.tensor(iterative.losses),
        "run_sparsity": torch.tensor(iterative.sparsities),
        "oneshot_steps": torch.tensor(at_once.steps),
        "oneshot_loss": torch.tensor(at_once.losses),
        "loss_oneshot": loss_of(masked(base_state(), one_shot_masks("layerwise", config.sparsity))),
        "loss_oneshot_retrained": at_once.loss,
        "loss_iterative": iterative.loss,
        "most_revived": max(iterative.revived, default=0),
    }, iterative


# -- teacher and student -----------------------------------------------------------------------------------------------


def student_shape(config: Config, layers: int = 2) -> tiny_lm.ModelConfig:
    """Return the student's shape: heads of about 8, a feed-forward three times as wide, like its teacher's."""
    width = config.student_dim
    heads = max(1, width // 8)
    return tiny_lm.ModelConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=3 * width,
    )


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A student's training."""

    model: tiny_lm.TinyLM
    loss: float
    curve_steps: list[int] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)  # held-out loss on fewer documents
    probs: list[Tensor] = field(default_factory=list)  # (V,) after the context of the video, at config.temperature


def context() -> tuple[str, str]:
    """Return the first words of the series story up to its object, and that object."""
    words = tiny_lm.story().split()
    place = len(tiny_lm.PROMPT.split()) + 1
    return " ".join(words[:place]), words[place]


def train_student(config: Config, alpha: float, documents: int | None = None, steps: int = STUDENT_STEPS) -> StudentRun:
    """Train a student from scratch; the same seed gives the same start and the same texts in the same order."""
    model, teacher = tiny_lm.TinyLM(student_shape(config), seed=config.seed), tiny_lm.load("base")
    run = StudentRun(model, 0.0)
    watched = tiny_lm.held_out(WATCHED)
    kept = {round(steps * k / STUDENT_RECORDS) for k in range(STUDENT_RECORDS + 1)}

    def loss_fn(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        with torch.no_grad():
            heard = teacher(ids[:, :-1])
        return distillation_loss(model(ids[:, :-1]), heard, labels[:, 1:], config.temperature, alpha).total

    def after_step(step: int) -> None:
        if step in kept:
            run.curve_steps.append(step)
            run.curve.append(tiny_lm.evaluate(model, watched))
            with torch.no_grad():
                run.probs.append(soften(tiny_lm.next_token_logits(context()[0], model), config.temperature))

    after_step(0)
    who = "labels" if alpha == 0 else f"a teacher at temperature {config.temperature:g}"
    tiny_lm.train(
        model,
        tiny_lm.training_corpus(size=documents or steps * STUDENT.batch_size),
        replace(STUDENT, steps=steps),
        seed=config.seed,
        loss_fn=None if alpha == 0 else loss_fn,
        after_step=after_step,
        on_step=progress.on_step(f"a student of {who}, {documents or 'new'} texts"),
    )
    model.requires_grad_(False)
    return replace(run, loss=tiny_lm.evaluate(model, tiny_lm.held_out(HELD_OUT)))


def what_the_teacher_knows(config: Config) -> dict[str, Any]:
    """Return the teacher's probabilities of the next word at every temperature, and what the label says."""
    text, label = context()
    logits = tiny_lm.next_token_logits(text)
    top = logits.topk(8).indices
    softened = torch.stack([soften(logits, temperature)[top] for temperature in TEMPERATURES])
    words = tuple(tiny_lm.tokens(top))
    return {
        "context_words": tuple(text.split()),
        "label_word": label,
        "top_words": words,
        "label_onehot": torch.tensor([float(word == label) for word in words]),
        "true_probs": tiny_lm.true_next_probs(text)[top],
        "temperatures": torch.tensor(TEMPERATURES),
        "teacher_probs_T": softened,
        "teacher_rest_T": 1 - softened.sum(dim=1),
        "teacher_probs": soften(logits, config.temperature)[top],
    }


def students(config: Config) -> dict[str, Any]:
    """Return how students learn from labels and from the teacher, with few texts and with many."""
    regimes = (FEW, None)
    hard = [train_student(config, 0.0, documents) for documents in regimes]
    kd = [train_student(config, config.alpha, documents) for documents in regimes]
    knows = what_the_teacher_knows(config)
    top = tiny_lm.next_token_logits(context()[0]).topk(8).indices
    probs = torch.stack(kd[1].probs)[:, top]
    teacher = tiny_lm.load("base")
    params = kd[0].model.num_params
    return knows | {
        "student_steps": torch.tensor(kd[1].curve_steps),
        "student_probs": probs,
        "student_gap": probs - knows["teacher_probs"],
        "student_probs_before": probs[0],
        "student_probs_after": probs[-1],
        "regimes": (f"{FEW} texts", "new texts"),
        "curve_steps": torch.tensor(kd[0].curve_steps),
        "student_curve_hard": torch.tensor([run.curve for run in hard]),
        "student_curve_kd": torch.tensor([run.curve for run in kd]),
        "params_teacher": teacher.num_params,
        "params_student": params,
        "params_student_one_layer": tiny_lm.TinyLM(student_shape(config, layers=1)).num_params,
        "share_student": params / teacher.num_params,
        "loss_teacher": tiny_lm.evaluate(teacher, tiny_lm.held_out(HELD_OUT)),
        "loss_student_hard": torch.tensor([run.loss for run in hard]),
        "loss_student_kd": torch.tensor([run.loss for run in kd]),
    }


# -- bits --------------------------------------------------------------------------------------------------------------


def count_bits(config: Config, run: PruneRun) -> dict[str, Any]:
    """Return what the pruned model takes in every way of storing it, and its loss with shared values.

    One table of shared values serves all matrices: with a table for each, a matrix this small would be mostly table.
    """
    names = list(run.masks)
    survivors = torch.cat([run.state[name][run.masks[name]] for name in names])
    centroids, assignment = kmeans_1d(survivors, config.clusters, KMEANS_ITERS)
    parts = centroids[assignment].split([int(mask.sum()) for mask in run.masks.values()])
    shared = dict(run.state)
    for name, part in zip(names, parts, strict=True):
        shared[name] = torch.zeros_like(run.state[name]).masked_scatter(run.masks[name], part)
    counts = torch.bincount(assignment, minlength=config.clusters)
    lengths = huffman_code_lengths(counts)
    flat = torch.cat([mask.flatten() for mask in run.masks.values()])

    n, kept, k = flat.numel(), len(survivors), config.clusters
    rows = (
        ("dense float32", 32 * n, 0, 0),
        ("dense float16", STORED_BITS * n, 0, 0),
        ("pruned, a bit for each position", STORED_BITS * kept, n, 0),
        ("shared values", (k - 1).bit_length() * kept, n, STORED_BITS * k),
        ("Huffman words", int((counts * lengths).sum()), n, (STORED_BITS + LENGTH_BITS) * k),
    )
    values, positions, tables = (torch.tensor(column) for column in zip(*(row[1:] for row in rows), strict=True))
    total = values + positions + tables
    others = tiny_lm.load("base").num_params - n  # embedding and norms
    model = total + others * torch.tensor([32] + [STORED_BITS] * (len(rows) - 1))
    return {
        "centroids": centroids,
        "assignment_hist": counts,
        "huffman_lengths": lengths,
        "huffman_mean_bits": huffman_mean_length(counts),
        "assignment_entropy_bits": entropy_bits(counts),
        "survivors": kept,
        "loss_shared": loss_of(shared),
        "position_bits": {
            "bitmask": sparse_bits(flat, 0, "bitmask"),
            "csr": sum(sparse_bits(mask, 0, "csr", POINTER_BITS) for mask in run.masks.values()),
            "relative": sum(sparse_bits(mask, 0, "relative") for mask in run.masks.values()),
        },
        "bits": Storage(
            name=tuple(row[0] for row in rows),
            value_bits=values,
            position_bits=positions,
            table_bits=tables,
            total_bits=total,
            times_smaller=total[0] / total,
            model_times_smaller=model[0] / model,
        ),
    }


def run(config: Config) -> Trace:
    """Prune, retrain, teach and store."""
    pruning, iterative = pruning_runs(config)
    return Trace(
        config=config,
        **one_matrix(),
        **sweep(config),
        **one_row(),
        **pruning,
        **students(config),
        **count_bits(config, iterative),
    )
