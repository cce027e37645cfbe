"""The tiny LM trained in 32 bits and in five ways of using 16; what its gradients, updates and sums look like there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.float_formats import bit_tiles
from internals_math.mixed_precision import (
    BF16,
    CLIFF,
    CROP,
    EDGES,
    FP16,
    FP32,
    MODES,
    SCALES,
    SHOWN_FORMATS,
    SMALL,
    SUMMED,
    UPDATES,
    Config,
    DynamicLossScaler,
    FloatFormat,
    FormatTable,
    ScaleTable,
    Trace,
    TrainCurve,
    accumulate,
    apply_updates,
    low_precision_linear,
    max_power_of_two_scale,
    range_report,
    representable_values,
    round_to_format,
    stored,
    training_bytes_per_param,
    ulp,
    unscale_,
)
from internals_math.next_token import IGNORE, next_token_loss

BATCH = 8  # documents
GRAD_BATCH = 32  # documents, about 1500 predicted tokens
HELD_OUT = 200
TRAINED, EARLY = "base", "base_step50"
HEAD = "head"
SHOWN = "model.layers.2.mlp.gate_proj.weight"  # whose output's gradient is on screen
CONDITIONS = {SMALL: ("fp16_master",), CLIFF: ("fp16_master", "fp16_scaled")}
WINDOW_START = 0.7  # of the run: where the updates of one weight are recorded

Watch = Callable[[int, tiny_lm.TinyLM, torch.optim.Optimizer], None]  # (steps done, model, Adam)


@dataclass(frozen=True)
class Recipe:
    """How a mode uses its 16 bits."""

    fmt: FloatFormat | None = None
    master: bool = True  # float32 weights behind the 16-bit ones
    scaled: bool = False


RECIPES = dict(
    zip(
        MODES,
        (
            Recipe(),
            Recipe(FP16, master=False),
            Recipe(FP16),
            Recipe(FP16, scaled=True),
            Recipe(BF16, master=False),
            Recipe(BF16),
        ),
        strict=True,
    )
)


# -- training ----------------------------------------------------------------------------------------------------------


def compute_logits(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T"], fmt: FloatFormat | None) -> Float[Tensor, "B T V"]:
    """Return the model's logits with its weights, matrix products and their gradients in a format; None = float32.

    The residual stream, norms, rotations and attention's softmax stay in float32.
    """
    if fmt is None:
        return model(ids)
    weights = {name: stored(weight, fmt) for name, weight in model.named_parameters()}

    def linear(name: str, x: Tensor, weight: Tensor) -> Tensor:
        return low_precision_linear(x, weight, fmt)

    # The model's own head has no hook, so its product is made again from the last residual.
    _, records = tiny_lm.forward(model, weights, ids, linear_fn=linear, record=("residual",))
    last = tiny_lm.rms_norm(records["residual"][-1], weights["model.norm.weight"], model.config.rms_norm_eps)
    return low_precision_linear(last, weights["model.embed_tokens.weight"], fmt)


def train(config: Config, mode: str, *, loss_factor: float = 1.0, watch: Watch | None = None) -> TrainCurve:
    """Run one of MODES; see `mixed_precision.train_mixed`.

    Args:
        loss_factor: multiplies the loss, and the gradients are divided by it before Adam sees them.
        watch: told the number of steps done, the model and its Adam, before the first and after every step.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in RECIPES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    recipe = RECIPES[mode]
    model = tiny_lm.TinyLM(seed=config.seed)
    if recipe.fmt is not None and not recipe.master:
        round_weights(model, recipe.fmt)
    weights = list(model.parameters())
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
    scaler = DynamicLossScaler(
        2.0**config.init_scale_log2, backoff_factor=config.backoff_factor, growth_interval=config.growth_interval
    )
    records: dict[str, list[float]] = {"loss": [], "scale": [], "skipped": [], "lost_share": [], "zeroed_share": []}
    title = f"{mode}, loss times {loss_factor:g}" if loss_factor != 1 else mode
    if watch is not None:
        watch(0, model, optimizer)
    with tiny_lm.one_thread():
        for step, (ids, labels) in enumerate(batches(config)):
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            scale = scaler.scale if recipe.scaled else 1.0
            optimizer.zero_grad()
            loss = next_token_loss(compute_logits(model, ids, recipe.fmt), labels)
            (loss * (scale * loss_factor)).backward()
            grads, found_inf = unscale_([w.grad for w in weights if w.grad is not None], scale * loss_factor)
            skipped = recipe.scaled and found_inf
            records["loss"].append(float(loss.detach()))
            records["scale"].append(scale)
            records["skipped"].append(skipped)
            records["zeroed_share"].append(sum(int((g == 0).sum()) for g in grads) / model.num_params)
            records["lost_share"].append(0.0 if skipped else take_step(model, optimizer, recipe))
            if recipe.scaled:
                scaler.update(found_inf)
            if watch is not None:
                watch(step + 1, model, optimizer)
            progress.report(title, step + 1, config.train_steps)
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in records.items()}
    columns["skipped"] = columns["skipped"].bool()
    return TrainCurve(**columns, final_eval_loss=evaluate(model, recipe))


def take_step(model: tiny_lm.TinyLM, optimizer: torch.optim.Optimizer, recipe: Recipe) -> float:
    """Let Adam move the weights; returns the share of its updates that did not reach the stored 16 bits.

    Only a mode without master weights can lose them: its weights are rounded at once.
    """
    if recipe.fmt is None or recipe.master:
        optimizer.step()
        return 0.0
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer.step()
    moved = [weight.detach() != old for weight, old in zip(model.parameters(), before, strict=True)]
    round_weights(model, recipe.fmt)
    stayed = [weight.detach() == old for weight, old in zip(model.parameters(), before, strict=True)]
    lost = sum(int((m & s).sum()) for m, s in zip(moved, stayed, strict=True))
    return lost / max(1, sum(int(m.sum()) for m in moved))


@torch.no_grad()
def round_weights(model: tiny_lm.TinyLM, fmt: FloatFormat) -> None:
    for weight in model.parameters():
        weight.copy_(round_to_format(weight, fmt))


def evaluate(model: tiny_lm.TinyLM, recipe: Recipe) -> float:
    """Return the held-out loss of the weights that a forward pass would use, computed in float32."""
    copy = tiny_lm.copy_of(model)
    if recipe.fmt is not None:
        round_weights(copy, recipe.fmt)
    return tiny_lm.evaluate(copy, tiny_lm.held_out(HELD_OUT))


def learning_rate(config: Config, step: int) -> float:
    """Return the rate of a step, counted from 0: a cosine from the full one to 1 % of it."""
    share = 0.5 * (1 + math.cos(math.pi * step / (config.train_steps - 1)))
    return config.learning_rate * (0.01 + 0.99 * share)


def batches(config: Config) -> list[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """Return ids and labels of every step: documents that no step repeats, in the seed's order."""
    corpus = tiny_lm.training_corpus("base", config.train_steps * BATCH)
    order = torch.randperm(len(corpus.ids), generator=torch.Generator().manual_seed(config.seed))
    return [_trimmed(corpus, rows) for rows in order.split(BATCH)]


def _trimmed(corpus: tiny_lm.Corpus, rows: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    width = int(corpus.lengths[rows].max())
    return corpus.ids[rows, :width], corpus.labels()[rows, :width]


# -- the gradients of one batch ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the mean loss of one batch, in float32."""

    activations: dict[str, Float[Tensor, "B T o"]]  # of the output of every matrix product
    weights: dict[str, Tensor]
    ids: Int[Tensor, "B T"]
    tokens: int  # predicted

    def all_activations(self) -> Float[Tensor, " N"]:
        return torch.cat([grad.flatten() for grad in self.activations.values()])

    def all_weights(self) -> Float[Tensor, " N"]:
        return torch.cat([grad.flatten() for grad in self.weights.values()])


def gradients(model: tiny_lm.TinyLM) -> Gradients:
    """Return all gradients of GRAD_BATCH held-out documents."""
    corpus = tiny_lm.held_out(GRAD_BATCH)
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor, weight: Tensor) -> Tensor:
        outputs[name] = x @ weight.T
        return outputs[name]

    outputs[HEAD] = model(corpus.ids, linear_fn=linear)
    named = dict(model.named_parameters())
    loss = next_token_loss(outputs[HEAD], corpus.labels())
    grads = torch.autograd.grad(loss, [*outputs.values(), *named.values()])
    return Gradients(
        activations=dict(zip(outputs, grads[: len(outputs)], strict=True)),
        weights=dict(zip(named, grads[len(outputs) :], strict=True)),
        ids=corpus.ids,
        tokens=int((corpus.labels()[:, 1:] != IGNORE).sum()),
    )


def kept_share(x: Float[Tensor, " N"]) -> ScaleTable:
    """Return what FP16 makes of the gradients at every loss scale."""
    reports = [range_report(x, FP16, 2.0**k) for k in SCALES]
    columns = {name: torch.tensor([getattr(report, name) for report in reports]) for name in vars(reports[0])}
    return ScaleTable(log2_scale=torch.tensor(SCALES), **columns)


def histogram(x: Float[Tensor, " N"]) -> tuple[Int[Tensor, " bins"], int]:
    """Return how many magnitudes lie in [2^k, 2^(k+1)) for all k of EDGES but the last, and how many below."""
    exponents = torch.frexp(x[x != 0]).exponent.long() - 1
    inside = exponents[(exponents >= EDGES[0]) & (exponents < EDGES[-1])]
    return torch.bincount(inside - EDGES[0], minlength=len(EDGES) - 1), int((exponents < EDGES[0]).sum())


def gradient_fields(config: Config) -> dict[str, Any]:
    """Return the gradients of the trained tiny LM and what 16 bits make of them."""
    found = gradients(tiny_lm.copy_of(tiny_lm.load(TRAINED)))
    early = gradients(tiny_lm.copy_of(tiny_lm.load(EARLY)))
    activations, weights = found.all_activations(), found.all_weights()
    counts, below = histogram(activations)
    weight_counts, weight_below = histogram(weights)
    value = activations[activations.abs().argmax()]
    copies = {fmt: round_to_format(value, fmt) for fmt in (FP32, FP16, BF16)}
    rows, channels = CROP
    tale = int((found.ids[:, 1] == tiny_lm.encode(tiny_lm.KINDS["tale"])[-1]).nonzero()[0])
    crop = found.activations[SHOWN][tale, :rows, :channels]
    scale = 2.0**config.init_scale_log2
    return {
        "bits_fp32": bit_tiles(copies[FP32], FP32),
        "bits_fp16": bit_tiles(copies[FP16], FP16),
        "bits_bf16": bit_tiles(copies[BF16], BF16),
        "bit_values": torch.stack(list(copies.values())),
        "grad_tokens": found.tokens,
        "hist_edges": torch.tensor(EDGES),
        "hist_activations": counts,
        "hist_activations_below": below,
        "hist_weights": weight_counts,
        "hist_weights_below": weight_below,
        "report_by_scale": kept_share(activations),
        "report_weights_by_scale": kept_share(weights),
        "report_bf16": range_report(activations, BF16),
        "report_early": range_report(early.all_activations(), FP16),
        "safe_scale_log2": round(math.log2(max_power_of_two_scale([activations, weights], FP16))),
        "act_name": tiny_lm.short_name(SHOWN),
        "act_tokens": tiny_lm.tokens(found.ids[tale, :rows]),
        "act_grad": crop,
        "act_grad_fp16": round_to_format(crop, FP16),
        "act_grad_scaled": round_to_format(crop * scale, FP16) / scale,
    }


# -- sums and updates --------------------------------------------------------------------------------------------------


@cache
def losses() -> Float[Tensor, " 2048"]:
    """Return the trained model's loss at the first SUMMED predicted tokens of held-out texts."""
    corpus = tiny_lm.held_out(HELD_OUT)
    found = tiny_lm.token_losses(tiny_lm.load(TRAINED), corpus.ids)
    return found[corpus.ids[:, 1:] != tiny_lm.PAD][:SUMMED]


@dataclass
class Window:
    """The block matrices of a run before and after UPDATES successive steps."""

    start: int
    names: list[str]
    states: list[dict[str, Tensor]]

    def __call__(self, step: int, model: tiny_lm.TinyLM, optimizer: torch.optim.Optimizer) -> None:
        if self.start <= step <= self.start + UPDATES:
            self.states.append({name: model.get_parameter(name).detach().clone() for name in self.names})


def window(config: Config) -> Window:
    """Return an empty window late in the run, where updates are small."""
    model = tiny_lm.load(TRAINED)
    names = list(tiny_lm.block_matrices(model))
    return Window(min(round(WINDOW_START * config.train_steps), config.train_steps - UPDATES), names, [])


def update_fields(seen: Window) -> dict[str, Any]:
    """Return the weight that wanders farthest, in units of its FP16 spacing, by updates that are all too small for it.

    Its first value is rounded to FP16, and the updates of the fp32 run are added to it in three formats.
    """
    best, farthest = ("", 0, 0), -1.0
    for name in seen.names:
        states = torch.stack([state[name] for state in seen.states])  # (U + 1, o, i)
        spacing = ulp(states[0], FP16)
        small = states.diff(dim=0).abs().amax(dim=0) < spacing / 2
        binade = ulp(states.abs().amin(dim=0), FP16) == ulp(states.abs().amax(dim=0), FP16)  # one spacing all the way
        drift = ((states[-1] - states[0]).abs() / spacing).where(small & binade, -1)
        if float(drift.max()) > farthest:
            farthest = float(drift.max())
            best = (name, *divmod(int(drift.argmax()), drift.shape[1]))
    name, row, column = best
    weight = torch.stack([state[name][row, column] for state in seen.states])
    start, deltas = round_to_format(weight[:1], FP16)[0], weight.diff()
    paths = {fmt: update_path(start, deltas, fmt) for fmt in (FP16, BF16, FP32)}
    low, high = float(paths[FP32].min()), float(paths[FP32].max())
    half = {fmt: float(ulp(start, fmt)) / 2 for fmt in (FP16, BF16)}
    return {
        "update_name": f"{tiny_lm.short_name(name)}, row {row}, column {column}",
        "update_step": seen.start,
        "update_w": float(start),
        "update_delta": deltas,
        "update_ticks": representable_values(FP16, low - 4 * half[FP16], high + 4 * half[FP16]),
        "half_ulp_fp16": half[FP16],
        "half_ulp_bf16": half[BF16],
        "w_fp16_path": paths[FP16],
        "w_bf16_path": paths[BF16],
        "w_master_path": paths[FP32],
        "w_copy_path": round_to_format(paths[FP32], FP16),
    }


def update_path(start: Float[Tensor, ""], deltas: Float[Tensor, " U"], fmt: FloatFormat) -> Float[Tensor, " W"]:
    """Return the weight before the first and after every update."""
    path = [apply_updates(start, deltas[:0], fmt)]
    for delta in deltas:
        path.append(apply_updates(path[-1], delta[None], fmt))
    return torch.stack(path)


# -- all of it ---------------------------------------------------------------------------------------------------------


def format_table() -> FormatTable:
    """Return the formats as columns."""
    formats = SHOWN_FORMATS
    counts = {name: [getattr(f, name) for f in formats] for name in ("bits", "exponent_bits", "mantissa_bits")}
    sizes = {name: [getattr(f, name) for f in formats] for name in ("max", "min_normal", "min_subnormal", "eps")}
    return FormatTable(
        name=tuple(f.name for f in formats),
        **{name: torch.tensor(values) for name, values in counts.items()},
        **{name: torch.tensor(values, dtype=torch.float64) for name, values in sizes.items()},
        max_exponent=torch.tensor([f.max_exponent for f in formats]),
        min_normal_exponent=torch.tensor([1 - f.bias for f in formats]),
        min_subnormal_exponent=torch.tensor([1 - f.bias - f.mantissa_bits for f in formats]),
    )


def run(config: Config) -> Trace:
    """Train in every mode and collect what the video shows."""
    seen = window(config)
    runs = {mode: train(config, mode, watch=seen if mode == "fp32" else None) for mode in MODES}
    small, cliff = (
        {mode: train(config, mode, loss_factor=2.0**log2) for mode in modes} for log2, modes in CONDITIONS.items()
    )
    values = gradient_fields(config) | update_fields(seen)
    zeroed = [curves["fp16_master"].zeroed_share.mean() for curves in (runs, small, cliff)]
    return Trace(
        config=config,
        formats=format_table(),
        levels_fp16=representable_values(FP16, 1, 2)[:-1],
        levels_bf16=representable_values(BF16, 1, 2)[:-1],
        sum_fp32=accumulate(losses(), FP32),
        sum_fp16=accumulate(losses(), FP16),
        sum_bf16=accumulate(losses(), BF16),
        curves={mode: curve.loss.float() for mode, curve in runs.items()},
        lost_update_share={mode: runs[mode].lost_share.float() for mode in MODES if not RECIPES[mode].master},
        scale_path=runs["fp16_scaled"].scale.float(),
        skipped_steps=runs["fp16_scaled"].skipped.nonzero()[:, 0],
        final_losses={mode: curve.final_eval_loss for mode, curve in runs.items()},
        small_log2=SMALL,
        curves_small={mode: curve.loss.float() for mode, curve in small.items()},
        final_losses_small={mode: curve.final_eval_loss for mode, curve in small.items()},
        cliff_log2=CLIFF,
        curves_cliff={mode: curve.loss.float() for mode, curve in cliff.items()},
        final_losses_cliff={mode: curve.final_eval_loss for mode, curve in cliff.items()},
        zeroed_share=torch.stack(zeroed).float(),
        entropy_floor=tiny_lm.held_out(HELD_OUT).entropy_floor,
        bytes_fp32=training_bytes_per_param("fp32"),
        bytes_mixed=training_bytes_per_param("mixed"),
        **values,
    )
