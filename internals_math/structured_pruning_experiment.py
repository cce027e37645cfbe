"""The tiny LM loses heads, channels, layers and two of every four weights: scores, the truth, and recovery."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.model_compression import magnitude_mask, sparsity
from internals_math.model_compression_experiment import MaskedWeights
from internals_math.pruning_scores import (
    METHODS,
    ablate_head_loss,
    angular_distance,
    block_influence,
    channel_importance,
    head_contributions,
    head_importance,
    predicted_delta,
    rank_correlation,
)
from internals_math.rope import rope_cos_sin
from internals_math.structured_pruning import (
    Config,
    Frontier,
    PrunedShape,
    Trace,
    count_params,
    drop_layers,
    flops_per_token,
    nm_bits,
    nm_compress,
    nm_mask,
    prune_model,
    row_mask,
    slice_ffn,
)
from internals_math.tiny_lm.training import fine_tuning_recipe
from internals_math.tiny_lm.vocabulary import PAD

LAYER, POSITION = 1, 9  # of the head vectors and the attention maps: the tenth token of the series story
CROP, CHANNELS = 24, 12
CROP_MATRIX = f"model.layers.{LAYER}.self_attn.v_proj.weight"
HELD_OUT, FEW = 100, 40  # documents
CHANNEL_METHOD = "taylor_element"
HEAD_SCORES = ("gradient", "signed gradient", "ablation", "random")
HEADS, SHARES = (3, 2, 1), (0.75, 0.5, 0.25, 0.1)
FLOPS_CONTEXT = 64
RECOVER_BATCH, RECOVER_RATE = 8, 3e-3

Model = tiny_lm.TinyLM
Kept = list[list[int]]


def base() -> Model:
    """Return the model that is cut."""
    return tiny_lm.load("base")


def calibration(config: Config) -> list[tiny_lm.Corpus]:
    """Return training texts in two batches."""
    n = config.calibration_sequences
    texts = tiny_lm.training_corpus(size=n)
    return [texts.rows(range(n // 2)), texts.rows(range(n // 2, n))]


def loss_of(model: Model, documents: int = HELD_OUT, **forward: Any) -> float:
    """Return the held-out loss."""
    return tiny_lm.evaluate(model, tiny_lm.held_out(documents), **forward)


def strongest(scores: Float[Tensor, "L n"], count: int) -> Kept:
    """Return the units of each layer with the highest scores, in rising order."""
    return [sorted(row.topk(count).indices.tolist()) for row in scores]


def channel_count(model: Model, share: float) -> int:
    """Return how many channels of a layer stay, at least one."""
    return max(1, round(share * model.config.intermediate_size))


def plane(points: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "2 D"], float]:
    """Return the two directions that hold most of the squared length of points, and how much of it they hold."""
    _, sigma, vh = torch.linalg.svd(points, full_matrices=False)
    return vh[:2], float(sigma[:2].square().sum() / sigma.square().sum())


# -- what hardware sees ------------------------------------------------------------------------------------------------


def zeros_that_cost() -> dict[str, Any]:
    """Return a crop of real weights with half of it gone, scattered and by rows."""
    crop = base().state_dict()[CROP_MATRIX][:CROP, :CROP].clone()
    scattered, sliced = magnitude_mask(crop, 0.5), row_mask(crop, 0.5).contiguous()
    rows = sliced.any(dim=1)
    return {
        "crop_matrix": tiny_lm.short_name(CROP_MATRIX),
        "crop": crop,
        "scattered": scattered,
        "sliced": sliced,
        "sliced_crop": crop[rows],
        "crop_sparsity": sparsity(sliced),
        "flops_dense": 2 * crop.numel(),
        "flops_scattered": 2 * crop.numel(),
        "flops_useful": 2 * int(scattered.sum()),
        "flops_sliced": 2 * crop[rows].numel(),
    }


# -- heads -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def heads_add_up() -> dict[str, Any]:
    """Return what the heads of one layer add at one token, tip to tail in the plane of most of it."""
    model = base()
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: POSITION + 1]])
    _, record = model(ids, record=("normed", "weights"))
    state, heads = model.state_dict(), model.config.num_attention_heads
    w_q, w_k, w_v, w_o = (state[f"model.layers.{LAYER}.self_attn.{name}_proj.weight"] for name in ("q", "k", "v", "o"))
    cos, sin = (part.float() for part in rope_cos_sin(torch.arange(ids.shape[1]), model.inv_freq()))
    added = head_contributions(record["normed"][LAYER, 0], w_q, w_k, w_v, w_o, heads, rotary=(cos, sin))
    added = added[:, POSITION]  # (H, D)
    axes, share = plane(added)
    vectors = added @ axes.T
    start = torch.zeros(1, 2)
    without = [torch.cat([start, vectors[torch.arange(heads) != head].cumsum(dim=0)]) for head in range(heads)]
    return {
        "tokens": tiny_lm.tokens(ids[0]),
        "shown_layer": LAYER,
        "shown_position": POSITION,
        "attention_maps": record["weights"][LAYER, 0],
        "head_vectors": vectors,
        "head_plane_share": share,
        "attn_out": vectors.sum(dim=0),
        "head_chain": torch.cat([start, vectors.cumsum(dim=0)]),
        "head_chain_without": torch.stack(without),
        "head_gap": added.norm(dim=1),
    }


def head_scores(config: Config, scores: "Scores") -> dict[str, Any]:
    """Return what gradients say of every head, what its loss says, and two heads that stand in for each other."""
    model, importance, predicted = base(), scores.heads["gradient"], scores.heads["signed gradient"]
    true = ablate_head_loss(model, [tiny_lm.held_out(HELD_OUT)])
    progress.report("scoring heads", 1, 2)
    names, deltas = most_redundant_pair(ablate_head_loss(model, [tiny_lm.held_out(FEW)]))
    progress.report("scoring heads", 2, 2)
    return {
        "importance": importance,
        "predicted_delta": predicted,
        "true_delta": true,
        "predicted_span": torch.stack([predicted.min(), predicted.max()]),
        "true_span": torch.stack([true.min(), true.max()]),
        "rank_correlation": rank_correlation(importance.flatten(), true.flatten()),
        "rank_correlation_signed": rank_correlation(predicted.flatten(), true.flatten()),
        "head_score_names": HEAD_SCORES,
        "head_score_loss": torch.tensor(
            [loss_of(prune_model(model, keep_heads=scores.keep_heads(config.keep_heads, name))) for name in HEAD_SCORES]
        ),
        "pair": names,
        "pair_delta": deltas,
    }


def most_redundant_pair(alone: Float[Tensor, "L H"]) -> tuple[tuple[str, ...], Float[Tensor, " 3"]]:
    """Return the two heads that cost most beyond the sum of what each costs alone, and the three costs."""
    model, whole = base(), loss_of(base(), FEW)
    heads = list(torch.cartesian_prod(*(torch.arange(size) for size in alone.shape)))
    best, found = -torch.inf, None
    for first, second in combinations(heads, 2):
        mask = torch.ones_like(alone)
        mask[tuple(first)] = mask[tuple(second)] = 0.0
        both = loss_of(model, FEW, head_mask=mask) - whole
        own = [float(alone[tuple(head)]) for head in (first, second)]
        if both - sum(own) > best:
            best, found = both - sum(own), (first, second, torch.tensor([*own, both]))
    assert found is not None
    return tuple(f"layer {int(layer)} head {int(head)}" for layer, head in found[:2]), found[2]


# -- channels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scores:
    """What decides which units go."""

    heads: dict[str, Float[Tensor, "L H"]]  # by what decides
    channels: dict[str, Float[Tensor, "L F"]]

    def keep_heads(self, count: int, method: str = "gradient") -> Kept:
        """Return the heads of each layer that stay."""
        return strongest(self.heads[method], count)

    def keep_channels(self, share: float, method: str = CHANNEL_METHOD) -> Kept:
        """Return the channels of each layer that stay."""
        return strongest(self.channels[method], channel_count(base(), share))


def all_scores(config: Config) -> Scores:
    """Return the scores of all heads and channels."""
    texts, generator = calibration(config), torch.Generator().manual_seed(config.seed)
    channels = {method: channel_importance(base(), texts, method, generator) for method in METHODS}
    importance = head_importance(base(), texts)
    chosen = (
        importance,
        predicted_delta(base(), texts),
        ablate_head_loss(base(), texts),
        torch.rand(importance.shape, generator=generator),
    )
    return Scores(dict(zip(HEAD_SCORES, chosen, strict=True)), channels)


def channels_leave(config: Config, scores: Scores) -> dict[str, Any]:
    """Return three crops whose channels leave together, and what each score's choice costs."""
    state = base().state_dict()
    gate, up, down = (
        state[f"model.layers.{LAYER}.mlp.{name}_proj.weight"][:CHANNELS, :CHANNELS] for name in ("gate", "up", "down")
    )
    ranked = scores.channels[CHANNEL_METHOD][LAYER]
    order = ranked[:CHANNELS].argsort(stable=True)
    keep = order[CHANNELS // 2 :].sort().values
    sliced = slice_ffn(gate, up, down, keep.tolist())
    kept = scores.keep_channels(config.ffn_keep)
    losses = [
        loss_of(prune_model(base(), keep_channels=scores.keep_channels(config.ffn_keep, method))) for method in METHODS
    ]
    return {
        "ffn_layer": LAYER,
        "W_gate": gate,
        "W_up": up,
        "W_down": down,
        "channel_scores": ranked,
        "channel_order": order,
        "crop_scores": ranked[:CHANNELS],
        "crop_keep": keep,
        "W_gate_sliced": sliced[0],
        "W_up_sliced": sliced[1],
        "W_down_sliced": sliced[2],
        "keep_channels": torch.tensor(kept[LAYER]),
        "max_abs_diff_logits": masked_difference(scores.keep_heads(config.keep_heads), kept),
        "score_names": METHODS,
        "score_loss": torch.tensor(losses),
    }


@torch.no_grad()
def masked_difference(keep_heads: Kept, keep_channels: Kept) -> float:
    """Return the largest difference of logits between the model with units off and the model without them."""
    model, ids = base(), tiny_lm.held_out(8).ids
    masks = [
        torch.stack([torch.zeros(size).index_fill(0, torch.tensor(row), 1.0) for row in kept])
        for kept, size in (
            (keep_heads, model.config.num_attention_heads),
            (keep_channels, model.config.intermediate_size),
        )
    ]
    masked = model(ids, head_mask=masks[0], channel_mask=masks[1])
    return float((masked - prune_model(model, keep_heads, keep_channels)(ids)).abs().max())


# -- layers ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def layers_turn(config: Config) -> dict[str, Any]:
    """Return how far each layer turns the residual stream, what skipping it costs, and one token's path."""
    model, layers = base(), base().config.num_hidden_layers
    texts = tiny_lm.training_corpus(size=config.calibration_sequences)
    _, record = model(texts.ids, record=("residual",))
    stream = record["residual"]  # (L + 1, N, T, D)
    influence = block_influence(stream[:, texts.ids != PAD])
    last = stream[:, torch.arange(len(texts.ids)), texts.lengths - 1]
    angular = torch.full((layers, layers), torch.nan)
    for n in range(1, layers + 1):
        angular[n - 1, : layers - n + 1] = angular_distance(last, n)
    whole = loss_of(model)
    true = torch.tensor([loss_of(model, skip_layers=[layer]) - whole for layer in range(layers)])

    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[: POSITION + 1]])

    def path(skipped: tuple[int, ...] = ()) -> Float[Tensor, "L1 D"]:
        _, record = model(ids, skip_layers=skipped, record=("residual",))
        return record["residual"][:, 0, POSITION]

    def directions(points: Float[Tensor, "L1 D"]) -> Float[Tensor, "L1 D"]:
        return points / points.norm(dim=1, keepdim=True)

    axes, share = plane(directions(path()))
    on_calibration = [tiny_lm.evaluate(model, texts, skip_layers=[layer]) for layer in range(layers)]
    return {
        "hidden_cos": 1 - influence,
        "BI": influence,
        "angular": angular,
        "layer_true_delta": true,
        "dropped_layers": weakest_layers(influence, config.drop_layers),
        "cheapest_layers": weakest_layers(torch.tensor(on_calibration), config.drop_layers),
        "path_token": tiny_lm.tokens(ids[0])[POSITION],
        "x_path": directions(path()) @ axes.T,
        "x_path_norm": path().norm(dim=1),
        "x_path_share": share,
        "x_path_degrees": 180 * angular_distance(path(), 1),
        "x_path_skipped": torch.stack([directions(path((layer,))) @ axes.T for layer in range(layers)]),
    }


def weakest_layers(scores: Float[Tensor, " L"], count: int) -> Int[Tensor, " count"]:
    """Return the layers of the lowest scores, in rising order."""
    return scores.argsort(stable=True)[:count].sort().values


# -- two of four -------------------------------------------------------------------------------------------------------


def two_of_four() -> dict[str, Any]:
    """Return a block of real weights, its mask, and the half that is stored."""
    block = base().state_dict()[CROP_MATRIX][:8, :8].clone()
    mask = nm_mask(block)
    values, indices = nm_compress(block, mask)
    return {
        "nm_block": block,
        "nm_scores": block.abs(),
        "nm_block_mask": mask,
        "nm_values": values,
        "nm_indices": indices.long(),
        "nm_patterns": len(list(combinations(range(4), 2))),
        "nm_share_16bit": nm_bits(64, 16) / (64 * 16),
        "nm_share_8bit": nm_bits(64, 8) / (64 * 8),
    }


# -- the frontier ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cut:
    """One way to make the model smaller."""

    name: str
    kind: str
    make: Callable[[], Model]
    is_nm: bool = False


def cuts(config: Config, scores: Scores, turned: dict[str, Any]) -> list[Cut]:
    """Return all points of the frontier, the config's own among them."""
    model = base()

    def heads(count: int, method: str = "gradient") -> Callable[[], Model]:
        return lambda: prune_model(model, keep_heads=scores.keep_heads(count, method))

    def channels(share: float) -> Callable[[], Model]:
        return lambda: prune_model(model, keep_channels=scores.keep_channels(share))

    def layers(gone: Int[Tensor, " dropped"]) -> Callable[[], Model]:
        return lambda: drop_layers(model, gone.tolist())

    found = [Cut(plural(n, "head"), "heads", heads(n)) for n in sorted({*HEADS, config.keep_heads}, reverse=True)]
    found.append(Cut(f"{plural(config.keep_heads, 'head')} by ablation", "heads", heads(config.keep_heads, "ablation")))
    shares = sorted({*SHARES, config.ffn_keep}, reverse=True)
    found += [Cut(f"{share:.0%} of channels", "channels", channels(share)) for share in shares]
    if config.drop_layers:
        name = f"{plural(config.drop_layers, 'layer')} less"
        found.append(Cut(name, "layers", layers(turned["dropped_layers"])))
        found.append(Cut(f"{name} by loss", "layers", layers(turned["cheapest_layers"])))
    found.append(Cut("2 of 4 weights", "2:4", lambda: tiny_lm.copy_of(model), is_nm=True))
    both = scores.keep_heads(config.keep_heads, "ablation"), scores.keep_channels(config.ffn_keep)
    found.append(Cut("heads and channels", "combined", lambda: prune_model(model, *both)))
    return found


def plural(count: int, unit: str) -> str:
    """Return `1 head` or `2 heads`."""
    return f"{count} {unit}{'s' if count > 1 else ''}"


def recover(model: Model, config: Config, title: str, masked: MaskedWeights | None = None) -> None:
    """Train a cut model on, in place; what is masked stays 0."""
    if config.recover_steps == 0:
        return

    def after_step(step: int) -> None:
        if masked is not None:
            masked.apply()

    tiny_lm.train(
        model.requires_grad_(True),
        tiny_lm.training_corpus(size=config.recover_steps * RECOVER_BATCH),
        fine_tuning_recipe(config.recover_steps, RECOVER_BATCH, RECOVER_RATE),
        seed=config.seed,
        after_step=after_step,
        on_step=progress.on_step(f"recovering: {title}"),
    )
    model.requires_grad_(False)


def frontier(config: Config, scores: Scores, turned: dict[str, Any]) -> dict[str, Any]:
    """Return size, work and loss of every cut, before and after recovery."""
    whole = PrunedShape.of(base())
    rows = []
    for cut in cuts(config, scores, turned):
        model, masked = cut.make(), None
        shape = PrunedShape.of(model)
        params, flops = count_params(shape), flops_per_token(shape, FLOPS_CONTEXT)
        if cut.is_nm:
            weights = tiny_lm.block_matrices(model)
            masked = MaskedWeights(weights)
            masked.masks = {name: nm_mask(weight.detach()) for name, weight in weights.items()}
            masked.apply()
            params, flops = params - shape.block_weights // 2, flops - shape.block_weights
        before = loss_of(model)
        recover(model, config, cut.name, masked)
        rows.append((cut.name, cut.kind, params, flops, before, loss_of(model)))
    name, kind, params, flops, before, after = zip(*rows, strict=True)
    return {
        "frontier": Frontier(
            name=name,
            kind=kind,
            params=torch.tensor(params),
            flops=torch.tensor(flops),
            loss_before=torch.tensor(before),
            loss_after=torch.tensor(after),
        ),
        "flops_context": FLOPS_CONTEXT,
        "params_dense": count_params(whole),
        "flops_dense_model": flops_per_token(whole, FLOPS_CONTEXT),
        "loss_dense": loss_of(base()),
        "entropy_floor": tiny_lm.held_out(HELD_OUT).entropy_floor,
    }


def run(config: Config) -> Trace:
    """Score, cut and recover."""
    scores, turned = all_scores(config), layers_turn(config)
    return Trace(
        config=config,
        **zeros_that_cost(),
        **heads_add_up(),
        **head_scores(config, scores),
        **channels_leave(config, scores),
        **turned,
        **two_of_four(),
        **frontier(config, scores, turned),
    )
