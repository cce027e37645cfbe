"""Structured pruning: remove whole heads, channels and layers, so that what is left is a smaller dense model.

Notation: D = hidden_size, d = head_dim, H = heads, G = key-value heads, F = channels of the feed-forward, L = layers,
N:M = N kept of every M weights. Which units go is the business of `pruning_scores`.
Sources: LLM-Pruner (2305.11627) section 3.1; ShortGPT (2403.03853); Mishra et al. 2021 (2104.08378) section 3.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from internals_math import tiny_lm
from internals_math.attention import (
    attention_parameter_count,
    causal_mask,
    merge_heads,
    project_qkv,
    scaled_dot_product_attention,
)
from internals_math.model_compression import apply_mask, magnitude_mask, sparsity
from internals_math.model_shapes import ModelShape
from internals_math.pruning_scores import (
    METHODS,
    ablate_head_loss,
    angular_distance,
    block_influence,
    channel_importance,
    gate_gradients,
    head_contributions,
    head_importance,
    predicted_delta,
    rank_correlation,
)
from internals_math.rope import apply_rotary
from internals_math.tiny_lm.model import Cache
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "METHODS", "Config", "Frontier", "PrunedShape", "SlicedAttention", "Trace", "ablate_head_loss", "angular_distance",
    "apply_mask", "block_influence", "channel_importance", "count_params", "drop_layers", "flops_per_token",
    "gate_gradients", "head_contributions", "head_importance", "magnitude_mask", "nm_bits", "nm_compress",
    "nm_decompress", "nm_mask", "predicted_delta", "prune_model", "rank_correlation", "row_mask", "slice_ffn",
    "slice_heads", "sparsity", "trace",
]  # fmt: skip


# -- units that leave with all their rows and columns ------------------------------------------------------------------


def slice_heads(
    w_q: Float[Tensor, "HD D"],
    w_k: Float[Tensor, "GD D_k"],
    w_v: Float[Tensor, "GD_v D_v"],
    w_o: Float[Tensor, "D_o HD_o"],
    keep: Iterable[int],
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four projections with some query heads only, in rising order, and the key-value heads they read.

    A key-value head goes when all query heads of its group go.

    Raises:
        ValueError: keep empty, repeated or out of range, shapes that do not fit head_dim, or groups of unequal size.
    """
    heads, groups = _count_heads(w_q, w_k, w_v, w_o, head_dim)
    kept = _check_keep(keep, heads, "keep")
    size = heads // groups
    members = [[head for head in kept if head // size == group] for group in range(groups)]
    sizes = {len(group) for group in members if group}
    if len(sizes) > 1:
        raise ValueError(
            f"keep must leave groups of equal size: of the groups of {size} heads it leaves "
            f"{[len(group) for group in members]}"
        )
    rows = _blocks(kept, head_dim)
    shared = _blocks([group for group, of in enumerate(members) if of], head_dim)
    return w_q[rows], w_k[shared], w_v[shared], w_o[:, rows]


def slice_ffn(
    w_gate: Float[Tensor, "F D"], w_up: Float[Tensor, "F_u D_u"], w_down: Float[Tensor, "D_d F_d"], keep: Iterable[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three matrices with some channels only, in rising order: rows of two, columns of the third.

    Raises:
        ValueError: keep empty, repeated or out of range, or shapes that do not fit each other.
    """
    if not w_gate.shape == w_up.shape == w_down.T.shape:
        raise ValueError(
            "w_gate and w_up must be (F, D) and w_down (D, F), got "
            f"{tuple(w_gate.shape)}, {tuple(w_up.shape)} and {tuple(w_down.shape)}"
        )
    kept = _check_keep(keep, len(w_gate), "keep")
    return w_gate[kept], w_up[kept], w_down[:, kept]


def row_mask(weight: Float[Tensor, "o i"], share: float) -> Bool[Tensor, "o i"]:
    """Return the mask that removes the round(share o) rows of least L2 norm.

    Raises:
        ValueError: share not in [0, 1).
    """
    return magnitude_mask(weight.norm(dim=1), share)[:, None].expand_as(weight)


def _check_keep(keep: Iterable[int], size: int, name: str) -> list[int]:
    kept = sorted(keep)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"{name} must hold one or more different numbers in 0..{size - 1}, got {kept}")
    return kept


def _blocks(units: Sequence[int], width: int) -> Int[Tensor, " n"]:
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def _count_heads(w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, head_dim: int) -> tuple[int, int]:
    (rows, width), (shared, _) = w_q.shape, w_k.shape
    fits = w_k.shape == w_v.shape and w_k.shape[1] == width and w_o.shape == (width, rows)
    if head_dim < 1 or rows % head_dim or shared % head_dim or not fits or rows % shared:
        raise ValueError(
            f"w_q (H {head_dim}, D), w_k and w_v (G {head_dim}, D) and w_o (D, H {head_dim}) do not fit head_dim "
            f"{head_dim}: got {', '.join(str(tuple(w.shape)) for w in (w_q, w_k, w_v, w_o))}"
        )
    return rows // head_dim, shared // head_dim


# -- the smaller model -------------------------------------------------------------------------------------------------


class SlicedAttention(nn.Module):
    """Attention of fewer heads, each as wide as before; its place in the model is that of `tiny_lm`'s own."""

    def __init__(self, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, head_dim: int) -> None:
        super().__init__()
        self.heads, self.groups = _count_heads(w_q, w_k, w_v, w_o, head_dim)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (_linear(weight) for weight in (w_q, w_k, w_v, w_o))

    def forward(
        self,
        normed: Float[Tensor, "B T D"],
        layer_idx: int,
        position_ids: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: Cache | None,
        mask: Tensor | None,
    ) -> Float[Tensor, "B T D"]:
        """Return what these heads add to the residual stream."""
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        query, key, value = project_qkv(normed, *weights, self.heads, self.groups)
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, layer_idx)
        if mask is None:
            mask = causal_mask(query.shape[2], key.shape[2], device=normed.device)
        output, _ = scaled_dot_product_attention(query, key, value, mask)
        return merge_heads(output) @ self.o_proj.weight.T


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer


def prune_model(
    model: tiny_lm.TinyLM,
    keep_heads: Sequence[Iterable[int]] | None = None,
    keep_channels: Sequence[Iterable[int]] | None = None,
    keep_layers: Iterable[int] | None = None,
) -> tiny_lm.TinyLM:
    """Return a smaller dense copy that computes what the model computes with the other units off.

    Args:
        keep_heads, keep_channels: what to keep in each layer of `model`, dropped ones included; None = all.
        keep_layers: None = all.

    Raises:
        ValueError: not one entry for each layer, or anything kept that is empty, repeated or out of range.
    """
    layers = model.config.num_hidden_layers
    for name, kept in (("keep_heads", keep_heads), ("keep_channels", keep_channels)):
        if kept is not None and len(kept) != layers:
            raise ValueError(f"{name} must have an entry for each of the {layers} layers, got {len(kept)}")
    smaller = copy.deepcopy(model)
    chosen = range(layers) if keep_layers is None else _check_keep(keep_layers, layers, "keep_layers")
    smaller.model.layers = nn.ModuleList(smaller.model.layers[index] for index in chosen)
    smaller.config = replace(model.config, num_hidden_layers=len(chosen))
    for index, layer in zip(chosen, _layers(smaller), strict=True):
        if keep_heads is not None:
            w_q, w_k, w_v, w_o = (getattr(layer.self_attn, f"{name}_proj").weight for name in ("q", "k", "v", "o"))
            sliced = slice_heads(w_q, w_k, w_v, w_o, keep_heads[index], model.config.head_dim)
            layer.self_attn = SlicedAttention(*sliced, model.config.head_dim)
        if keep_channels is not None:
            gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
            smaller_ffn = slice_ffn(gate, up, down, keep_channels[index])
            layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj = (_linear(weight) for weight in smaller_ffn)
    return smaller.requires_grad_(False)


def drop_layers(model: tiny_lm.TinyLM, layers: Iterable[int]) -> tiny_lm.TinyLM:
    """Return a copy without some layers; the residual stream passes where they were.

    Raises:
        ValueError: layers out of range or repeated, or all of them.
    """
    total = model.config.num_hidden_layers
    dropped = list(layers)
    gone = set(_check_keep(dropped, total, "layers")) if dropped else set()
    if len(gone) == total:
        raise ValueError(f"at least one of the {total} layers must stay, got layers {sorted(gone)}")
    return prune_model(model, keep_layers=[layer for layer in range(total) if layer not in gone])


def _layers(model: tiny_lm.TinyLM) -> list[Any]:
    return list(model.model.layers)


# -- N of M ------------------------------------------------------------------------------------------------------------


def nm_mask(
    weight: Float[Tensor, "o i"], n: int = 2, m: int = 4, scores: Float[Tensor, "o i_s"] | None = None
) -> Bool[Tensor, "o i"]:
    """Return the mask that keeps the n highest scores of every m neighbors along the inputs.

    Args:
        scores: |w| by default; of equal ones the later stay.

    Raises:
        ValueError: n not in 1..m - 1, inputs that do not divide by m, scores of another shape.
    """
    _check_nm(n, m, weight.shape[1])
    scores = weight.abs() if scores is None else scores
    if scores.shape != weight.shape:
        raise ValueError(f"scores must be of shape {tuple(weight.shape)}, got {tuple(scores.shape)}")
    groups = scores.unflatten(1, (-1, m))
    lowest = groups.argsort(dim=-1, stable=True)[..., : m - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, lowest, False).flatten(1)


def nm_compress(
    weight: Float[Tensor, "o i"], mask: Bool[Tensor, "o i_m"], m: int = 4
) -> tuple[Float[Tensor, "o kept"], UInt8[Tensor, "o kept"]]:
    """Return the kept values of every row, and the place of each within its group of m.

    Raises:
        ValueError: a mask of another shape, or that does not keep as many in every group.
    """
    if mask.shape != weight.shape:
        raise ValueError(f"the mask must be of shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
    _check_nm(1, m, weight.shape[1])
    groups = mask.unflatten(1, (-1, m))
    n = int(groups[0, 0].sum())
    if not (groups.sum(dim=-1) == n).all():
        raise ValueError(f"the mask must keep as many weights in every group of {m}, got {groups.sum(dim=-1).unique()}")
    places = torch.arange(m, dtype=torch.uint8).expand_as(groups)[groups]
    return weight[mask].view(len(weight), -1), places.view(len(weight), -1)


def nm_decompress(
    values: Float[Tensor, "o kept"], indices: UInt8[Tensor, "o kept"], n: int = 2, m: int = 4
) -> Float[Tensor, "o i"]:
    """Return the whole matrix, zeros included, that `nm_compress` made smaller.

    Raises:
        ValueError: n not in 1..m - 1, values that do not divide by n.
    """
    _check_nm(n, m, m)
    if values.shape[1] % n:
        raise ValueError(f"each group keeps {n} values, got rows of {values.shape[1]}")
    groups = values.new_zeros(len(values), values.shape[1] // n, m)
    return groups.scatter_(-1, indices.long().unflatten(1, (-1, n)), values.unflatten(1, (-1, n))).flatten(1)


def nm_bits(numel: int, value_bits: int, n: int = 2, m: int = 4) -> int:
    """Return the bits of a compressed matrix: n of m values, each with its place in ⌈log2 m⌉ bits.

    Raises:
        ValueError: n not in 1..m - 1, numel that does not divide by m.

    >>> nm_bits(64, 16) / (64 * 16)
    0.5625
    """
    _check_nm(n, m, numel)
    return numel // m * n * (value_bits + (m - 1).bit_length())


def _check_nm(n: int, m: int, size: int) -> None:
    if not 1 <= n < m:
        raise ValueError(f"n must be in 1..m - 1, got n {n} of m {m}")
    if size % m:
        raise ValueError(f"weights must come in whole groups of {m}, got {size}")


# -- what it costs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrunedShape:
    """A gated decoder without biases whose layers may differ in heads and channels.

    Raises:
        ValueError: not as many entries for heads, key_value_heads and channels.
    """

    hidden_size: int
    head_dim: int
    vocab_size: int
    heads: tuple[int, ...]  # of each layer
    key_value_heads: tuple[int, ...]
    channels: tuple[int, ...]
    tied: bool = False

    def __post_init__(self) -> None:
        if not len(self.heads) == len(self.key_value_heads) == len(self.channels):
            raise ValueError(
                "heads, key_value_heads and channels need an entry for each layer, got "
                f"{len(self.heads)}, {len(self.key_value_heads)} and {len(self.channels)}"
            )

    @classmethod
    def of(cls, model: "ModelShape | tiny_lm.TinyLM") -> "PrunedShape":
        """Return the shape of a published model before pruning, or of a tiny one as it is."""
        if isinstance(model, ModelShape):
            layers = model.num_hidden_layers
            return cls(
                model.hidden_size,
                model.head_dim,
                model.vocab_size,
                (model.num_attention_heads,) * layers,
                (model.num_key_value_heads,) * layers,
                (model.intermediate_size,) * layers,
                model.tied,
            )
        config, layers = model.config, _layers(model)
        return cls(
            config.hidden_size,
            config.head_dim,
            config.vocab_size,
            tuple(len(layer.self_attn.q_proj.weight) // config.head_dim for layer in layers),
            tuple(len(layer.self_attn.k_proj.weight) // config.head_dim for layer in layers),
            tuple(len(layer.mlp.gate_proj.weight) for layer in layers),
            config.tie_word_embeddings,
        )

    @property
    def block_weights(self) -> int:
        """Return the weights of the matrices in all layers."""
        width = self.hidden_size
        return sum(
            attention_parameter_count(width, heads, self.head_dim, groups) + 3 * width * channels
            for heads, groups, channels in zip(self.heads, self.key_value_heads, self.channels, strict=True)
        )


def count_params(shape: PrunedShape) -> int:
    """Return all weights: layers with two norms each, embedding, last norm, and the head unless it is tied."""
    tables = (1 if shape.tied else 2) * shape.vocab_size
    return shape.block_weights + (tables + 2 * len(shape.heads) + 1) * shape.hidden_size


def flops_per_token(shape: PrunedShape, context: int) -> int:
    """Return the FLOPs of one token that attends to `context` positions: 2 per weight of a product, 4 H d per position.

    The output head is a product, the embedding a look-up.

    Raises:
        ValueError: context below 1.
    """
    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    products = shape.block_weights + shape.vocab_size * shape.hidden_size
    return 2 * products + 4 * shape.head_dim * sum(shape.heads) * context


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    keep_heads: int = option(2, "heads that stay in each layer", minimum=1, maximum=4)
    ffn_keep: float = option(0.5, "share of the feed-forward's channels that stays", minimum=0.1, maximum=1)
    drop_layers: int = option(1, "layers that go", minimum=0, maximum=2)
    recover_steps: int = option(100, "optimizer steps after each cut", minimum=0, maximum=500)
    calibration_sequences: int = option(64, "training texts that the scores look at", minimum=4, maximum=256)
    seed: int = option(0, "of random scores and the order of texts", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Frontier:
    """The model after each cut, before and after recovery."""

    name: tuple[str, ...]
    kind: tuple[str, ...]  # heads, channels, layers, 2:4, combined
    params: Int[Tensor, " P"]  # stored values; 2:4 stores half of the block weights
    flops: Int[Tensor, " P"]  # per token that attends to FLOPS_CONTEXT positions; 2:4 with a kernel that skips zeros
    loss_before: Float[Tensor, " P"]  # held-out nats per token
    loss_after: Float[Tensor, " P"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. L layers, H heads, F channels, P cuts. Losses are held-out nats per token."""

    config: Config
    crop_matrix: str
    crop: Float[Tensor, "24 24"]  # real weights
    scattered: Bool[Tensor, "24 24"]  # True = kept
    sliced: Bool[Tensor, "24 24"]
    sliced_crop: Float[Tensor, "12 24"]  # the same cut with its gaps closed
    crop_sparsity: float
    flops_dense: int  # of the crop times one vector
    flops_scattered: int  # dense hardware multiplies zeros
    flops_useful: int  # of those, what is not a product with 0
    flops_sliced: int
    tokens: tuple[str, ...]
    shown_layer: int
    shown_position: int
    attention_maps: Float[Tensor, "H 10 10"]
    head_vectors: Float[Tensor, "H 2"]  # what each head adds at shown_position, in the plane of most of it
    head_plane_share: float  # of their squared length
    attn_out: Float[Tensor, " 2"]
    head_chain: Float[Tensor, "H1 2"]  # tip to tail; the last is attn_out
    head_chain_without: Float[Tensor, "H H 2"]  # row h: the chain of the other heads
    head_gap: Float[Tensor, " H"]  # length of what head h adds, in all dimensions
    importance: Float[Tensor, "L H"]  # mean |∂L/∂ξ| over calibration texts
    predicted_delta: Float[Tensor, "L H"]  # signed, on the same texts
    true_delta: Float[Tensor, "L H"]  # held out
    predicted_span: Float[Tensor, " 2"]  # smallest and largest
    true_span: Float[Tensor, " 2"]
    rank_correlation: float  # of importance and true_delta
    rank_correlation_signed: float  # of predicted_delta and true_delta
    head_score_names: tuple[str, ...]  # what may decide which heads stay; all look at calibration texts
    head_score_loss: Float[Tensor, " 4"]  # with config.keep_heads left in each layer, no recovery
    pair: tuple[str, ...]  # the two heads whose joint loss exceeds the sum of their own most
    pair_delta: Float[Tensor, " 3"]  # first off, second off, both off
    ffn_layer: int
    W_gate: Float[Tensor, "12 12"]  # first channels, first inputs
    W_up: Float[Tensor, "12 12"]
    W_down: Float[Tensor, "12 12"]  # first outputs, first channels
    channel_scores: Float[Tensor, " F"]
    channel_order: Int[Tensor, " 12"]  # the crop's channels, weakest first
    crop_scores: Float[Tensor, " 12"]
    crop_keep: Int[Tensor, " 6"]
    W_gate_sliced: Float[Tensor, "6 12"]
    W_up_sliced: Float[Tensor, "6 12"]
    W_down_sliced: Float[Tensor, "12 6"]
    keep_channels: Int[Tensor, " kept"]  # of ffn_layer, at config.ffn_keep
    max_abs_diff_logits: float  # of the masked model and the sliced one: heads and channels at the config's shares
    score_names: tuple[str, ...]
    score_loss: Float[Tensor, " 5"]  # at config.ffn_keep, no recovery
    hidden_cos: Float[Tensor, " L"]  # mean over tokens
    BI: Float[Tensor, " L"]
    angular: Float[Tensor, "L L"]  # row n - 1: n layers from each start; NaN = no such block
    layer_true_delta: Float[Tensor, " L"]
    dropped_layers: Int[Tensor, " dropped"]  # of least influence
    cheapest_layers: Int[Tensor, " dropped"]  # of least true cost on calibration texts
    path_token: str
    x_path: Float[
        Tensor, "L1 2"
    ]  # directions (of length 1) of one token's residual stream, in the plane of most of them
    x_path_share: float
    x_path_norm: Float[Tensor, " L1"]  # its length
    x_path_degrees: Float[Tensor, " L"]  # how far each layer turns this token's stream, in all dimensions
    x_path_skipped: Float[Tensor, "L L1 2"]  # row l: directions of the same token when layer l is skipped
    nm_block: Float[Tensor, "8 8"]
    nm_scores: Float[Tensor, "8 8"]
    nm_block_mask: Bool[Tensor, "8 8"]
    nm_values: Float[Tensor, "8 4"]
    nm_indices: Int[Tensor, "8 4"]
    nm_patterns: int
    nm_share_16bit: float
    nm_share_8bit: float
    frontier: Frontier
    flops_context: int
    params_dense: int
    flops_dense_model: int
    loss_dense: float
    entropy_floor: float


def trace(config: Config) -> Trace:
    """Score, cut and recover the tiny LM in every way of the video (about 40 s on one core)."""
    from internals_math import structured_pruning_experiment as experiment  # it is built on the functions above

    return experiment.run(config)
