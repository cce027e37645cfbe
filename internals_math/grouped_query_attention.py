"""Grouped-query attention: a dial between a key-value head for each query head and one for all.

Notation: H = query heads, G = key-value heads (the paper's groups; not Hugging Face's num_key_value_groups, which is
H / G), d = head_dim, D = model width, n queries over m keys, T = tokens. Neighbors share: query head i reads key-value
head i // (H / G).
Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
arXiv 2305.13245, sections 2.1, 2.2 and 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.attention import causal_mask, masked_softmax, repeat_kv
from internals_math.kv_cache import KVCache, decode_attention_intensity, kv_cache_bytes, kv_cache_bytes_per_token
from internals_math.model_shapes import preset
from internals_math.tiny_lm.training import fine_tuning_recipe
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "Trace", "UptrainResult", "convert_mha_to_gqa", "convert_model", "decode_attention_intensity",
    "group_of_head", "grouped_query_attention", "head_similarity", "kv_bytes_per_device", "kv_cache_bytes",
    "kv_cache_bytes_per_token", "repeat_kv", "trace", "uptrain",
]  # fmt: skip

BASE_STEPS = tiny_lm.Recipe().steps
UPTRAIN_RATE = 3e-3  # AdamW, as in every fine-tuning of the series
METHODS = ("mean", "first", "random")


def group_of_head(num_heads: int, num_key_value_heads: int) -> Int[Tensor, " H"]:
    """Return the key-value head of each query head: consecutive heads share.

    >>> group_of_head(4, 2).tolist()
    [0, 0, 1, 1]

    Raises:
        ValueError: heads that the key-value heads do not divide.
    """
    _check_groups(num_heads, num_key_value_heads)
    return torch.arange(num_heads) // (num_heads // num_key_value_heads)


def grouped_query_attention(
    query: Float[Tensor, "*batch H n d"],
    key: Float[Tensor, "*batch G m d"],
    value: Float[Tensor, "*batch G m dv"],
    *,
    is_causal: bool = True,
    scale: float | None = None,
) -> tuple[Float[Tensor, "*batch H n dv"], Float[Tensor, "*batch H n m"]]:
    """Return (output, weights) of H query heads over G key-value heads, none of which is copied.

    The causal mask is aligned to the last key: query i sees key j iff j <= i + (m - n).

    Raises:
        ValueError: G does not divide H, widths, lengths or batch axes that do not fit, more queries than keys in a
            causal call, or a scale that is not a positive number.
    """
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(f"query, key and value need a head axis, got {query.ndim}, {key.ndim} and {value.ndim} axes")
    if query.shape[:-3] != key.shape[:-3] or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            "query, key and value need the same batch axes, and each key its value; "
            f"got shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need the same head_dim, got {query.shape[-1]} and {key.shape[-1]}")
    heads, queries, width = query.shape[-3:]
    groups, keys = key.shape[-3:-1]
    _check_groups(heads, groups)
    scale = 1 / math.sqrt(width) if scale is None else scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale}")
    if is_causal and queries > keys:
        raise ValueError(f"causal attention needs at least as many keys as queries, got {keys} keys and {queries}")
    mask = causal_mask(queries, keys, device=query.device) if is_causal else None
    grouped = query.unflatten(-3, (groups, heads // groups))  # (*batch, G, H/G, n, d)
    weights = masked_softmax(torch.einsum("...grnd,...gmd->...grnm", grouped, key) * scale, mask)
    output = torch.einsum("...grnm,...gmv->...grnv", weights, value)
    return output.flatten(-4, -3), weights.flatten(-4, -3)


def convert_mha_to_gqa(
    proj_weight: Float[Tensor, "*shape"],
    num_heads: int,
    num_key_value_heads: int,
    method: str = "mean",
    *,
    std: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*smaller"]:
    """Turn a key or value projection of H heads into one of G heads (section 2.1; a bias works too).

    Args:
        proj_weight: (H d, D) as in nn.Linear: a head is a block of rows.
        method: "mean" of each group's heads, the "first" of them, or "random", drawn with `std` as at the start.

    Raises:
        ValueError: unknown method, G does not divide H, rows that the heads do not divide, or no std for "random".
    """
    _check_groups(num_heads, num_key_value_heads)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    rows = proj_weight.shape[0]
    if rows % num_heads:
        raise ValueError(f"the projection must have rows for {num_heads} heads, got {rows} rows")
    head_dim = rows // num_heads
    heads = proj_weight.unflatten(0, (num_key_value_heads, -1, head_dim))  # (G, H/G, d, *columns)
    if method == "mean":
        return heads.mean(dim=1).flatten(0, 1)
    if method == "first":
        return heads[:, 0].flatten(0, 1)
    if std is None or not std > 0:
        raise ValueError(f"random heads need the std > 0 of the first initialization, got {std}")
    shape = (num_key_value_heads * head_dim, *proj_weight.shape[1:])
    return torch.randn(shape, generator=generator, dtype=proj_weight.dtype) * std


def convert_model(
    state: Mapping[str, Tensor],
    num_heads: int,
    num_key_value_heads: int,
    method: str = "mean",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return a state dict with fewer key-value heads in every layer; queries, outputs and all else stay."""
    converted = dict(state)
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            std = 1 / math.sqrt(weight.shape[1])  # of the tiny LM's own initialization
            converted[name] = convert_mha_to_gqa(
                weight, num_heads, num_key_value_heads, method, std=std, generator=generator
            )
    return converted


def converted_model(model: tiny_lm.TinyLM, num_key_value_heads: int, method: str = "mean") -> tiny_lm.TinyLM:
    """Return a copy of the model with fewer key-value heads, not trained further."""
    config = model.config
    shape = tiny_lm.ModelConfig(**{**config.to_dict(), "num_key_value_heads": num_key_value_heads})
    generator = torch.Generator().manual_seed(0)
    state = convert_model(model.state_dict(), config.num_attention_heads, num_key_value_heads, method, generator)
    return tiny_lm.copy_of(tiny_lm.TinyLM(shape), state)


@dataclass(frozen=True, eq=False)
class UptrainResult:
    """A model after a share of its first training, on the texts that would have come next."""

    model: tiny_lm.TinyLM
    steps: Int[Tensor, " K"]  # at which it was judged, 0 first
    loss_curve: Float[Tensor, " K"]  # nats per token there, on 300 held-out texts
    train_loss: Float[Tensor, " S"]  # of every step's batch


def uptrain(model: tiny_lm.TinyLM, alpha: float, base_steps: int, seed: int, *, judged: int = 0) -> UptrainResult:
    """Continue the base run of `base_steps` steps for round(alpha · base_steps) more (section 2.1).

    Args:
        seed: of the base run whose stream of texts goes on.
        judged: how many times the model is judged on held-out texts on the way, evenly.

    Raises:
        ValueError: alpha below 0.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    steps = round(alpha * base_steps)
    stops = {round(k * steps / judged) for k in range(1, judged)} if judged else set()
    trained, losses, kept = model, [], {}
    if steps:
        trained = tiny_lm.copy_of(model)
        kept = tiny_lm.train(
            trained,
            tiny_lm.training_corpus(),
            fine_tuning_recipe(steps, tiny_lm.Recipe().batch_size, UPTRAIN_RATE),
            seed=seed,
            skip_batches=base_steps,
            snapshots=stops - {0, steps},
            on_step=lambda done, of, loss: losses.append(loss),
        )
    way = [model, *(tiny_lm.copy_of(model, kept[step]) for step in sorted(kept)), trained]
    return UptrainResult(
        model=trained,
        steps=torch.tensor([0, *sorted(kept), steps]),
        loss_curve=torch.tensor([tiny_lm.evaluate(stage, tiny_lm.held_out(300)) for stage in way]),
        train_loss=torch.tensor(losses),
    )


def head_similarity(weight: Float[Tensor, "rows D"], num_heads: int) -> Float[Tensor, "H H"]:
    """Return the cosine between the heads' blocks of a projection, each taken as one long vector."""
    if num_heads < 1 or weight.shape[0] % num_heads:
        raise ValueError(f"the projection must have rows for {num_heads} heads, got {weight.shape[0]} rows")
    heads = torch.nn.functional.normalize(weight.reshape(num_heads, -1), dim=1)
    return heads @ heads.T


def kv_bytes_per_device(
    num_hidden_layers: int,
    num_key_value_heads: int,
    head_dim: int,
    tensor_parallel: int,
    bytes_per_element: int = 2,
) -> int:
    """Return the cache bytes per token on each of P devices; fewer heads than devices are copied (section 2.2).

    Raises:
        ValueError: heads and devices of which neither number divides the other.
    """
    if tensor_parallel < 1:
        raise ValueError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
    if num_key_value_heads % tensor_parallel and tensor_parallel % num_key_value_heads:
        raise ValueError(
            f"num_key_value_heads ({num_key_value_heads}) and tensor_parallel ({tensor_parallel}) must divide one "
            "another"
        )
    heads = max(1, num_key_value_heads // tensor_parallel)
    return kv_cache_bytes_per_token(num_hidden_layers, heads, head_dim, bytes_per_element)


def _check_groups(num_heads: int, num_key_value_heads: int) -> None:
    if num_heads < 1 or num_key_value_heads < 1 or num_heads % num_key_value_heads:
        raise ValueError(
            f"num_attention_heads ({num_heads}) must be divisible by num_key_value_heads ({num_key_value_heads})"
        )


# -- what the video shows ----------------------------------------------------------------------------------------------

SHOWN_GROUPS = (4, 2, 1)
SHOWN_MODELS = ("llama-2-7b", "llama-2-70b", "llama-3-8b", "mistral-7b")
READERS = ((1, 1), (64, 8), (64, 1))  # query heads over key-value heads: MHA, Llama-2-70B, MQA with 64 heads
# Time per sample in seconds and average quality over the tasks, measured on TPU v4 (2305.13245, Table 1).
PUBLISHED: tuple[tuple[str, float, float], ...] = (
    ("MHA-Large", 0.37, 46.0),
    ("MHA-XXL", 1.51, 47.2),
    ("MQA-XXL", 0.24, 46.6),
    ("GQA-8-XXL", 0.28, 47.1),
)


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    num_key_value_heads: int = option(2, "key-value heads of the converted weights", choices=SHOWN_GROUPS)
    # The paper's 0.05 heals two heads of the tiny LM to 0.74 nats, this one to 0.47 (the tiny LM: 0.44).
    alpha: float = option(0.1, "further training, as a share of the first", minimum=0.01, maximum=0.2)
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    num_tokens: int = option(8, "tokens of the story", minimum=4, maximum=12)
    seed: int = option(0, "of the stream of texts that goes on", minimum=0, maximum=9)


@dataclass(frozen=True, eq=False)
class Conversions:
    """The tiny LM with fewer key-value heads, right after the conversion."""

    name: tuple[str, ...]
    num_key_value_heads: Int[Tensor, " C"]
    eval_loss: Float[Tensor, " C"]  # held-out nats per token


@dataclass(frozen=True, eq=False)
class RealModels:
    """Published models, in 16 bit."""

    name: tuple[str, ...]
    attention_heads: Int[Tensor, " R"]
    key_value_heads: Int[Tensor, " R"]
    bytes_per_token: Int[Tensor, " R"]
    bytes_with_all_heads: Int[Tensor, " R"]  # if every query head had its own


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """Measurements of the paper, Table 1."""

    name: tuple[str, ...]
    seconds: Float[Tensor, " P"]  # per sample
    quality: Float[Tensor, " P"]
    speedup: Float[Tensor, " P"]  # over MHA-XXL
    quality_lost: Float[Tensor, " P"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. A dict's key is the number G of key-value heads; "4" is the tiny LM itself.

    The models with G = 2 and 1 were averaged from it and trained on for `uptrain_steps`.
    """

    config: Config
    tokens: tuple[str, ...]  # T
    head_names: tuple[str, ...]  # H
    groups: Int[Tensor, " 3"]  # the stops of the dial: 4, 2, 1
    group_of_head: dict[str, Int[Tensor, " H"]]
    tiled_group_of_head: Int[Tensor, " H"]  # the wrong wiring for G = 2: head i reads memory i mod G
    own_memory: Float[Tensor, "H H"]  # 1 where query head i is wired, in multi-head attention
    query: Float[Tensor, "H T d"]
    key_by_g: dict[str, Float[Tensor, "_ T d"]]  # as cached, in `layer`
    value_by_g: dict[str, Float[Tensor, "_ T d"]]
    weights_by_g: dict[str, Float[Tensor, "H T T"]]
    output_shared: Float[Tensor, "H d"]  # of the newest token with G = 2
    output_tiled: Float[Tensor, "H d"]  # the same with the wrong wiring
    tiled_difference: Float[Tensor, "H d"]
    tiled_head_difference: Float[Tensor, " H"]  # largest of each head
    max_tiled_difference: float
    w_k_heads: Float[Tensor, "H d D"]  # of the tiny LM, in `layer`
    w_k_grouped: Float[Tensor, "G d D"]
    head_similarity_k: Float[Tensor, "H H"]
    head_similarity_v: Float[Tensor, "H H"]
    largest_similarity: float  # between two different key heads, in absolute value
    conversions: Conversions
    eval_loss_base: float
    entropy_floor: float
    uptrain_steps: int
    curve_steps: Int[Tensor, " K"]
    curves: dict[str, Float[Tensor, " K"]]  # held-out loss on the way
    eval_loss_uptrained: dict[str, float]
    healed: dict[str, float]  # share of the damage that the training took back
    loss_seed_spread: dict[str, Float[Tensor, " 2"]]  # lowest and highest over three streams of texts
    cache_bytes_per_token: dict[str, int]  # of the tiny LM in float32, all layers
    cache_bytes: Int[Tensor, " 3"]  # the same as one field, for the stops of the dial
    cache_growth: Int[Tensor, "3 T"]  # after each token
    real_models: RealModels
    tradeoff: Tradeoff
    reader_names: tuple[str, ...]
    intensity: Float[Tensor, " 3"]  # FLOP per byte in 16 bit, for READERS
    readers: dict[str, Float[Tensor, " _"]]  # a 1 for each query head that uses the fetched row
    per_device_bytes: dict[str, Int[Tensor, " P"]]  # of Llama-2-70B's shape with G heads on 1, 2, 4, 8 devices


@torch.no_grad()
def _read(model: tiny_lm.TinyLM, ids: Int[Tensor, "1 T"], layer: int) -> dict[str, Tensor]:
    """Return what a layer keeps and how its heads attend."""
    cache = KVCache(model.config.num_hidden_layers)
    _, record = model(ids, cache=cache, record=("q_rot", "weights"))
    keys, values = cache.keys[layer], cache.values[layer]
    assert keys is not None
    assert values is not None
    kept = {"keys": keys[0], "values": values[0], "bytes": torch.tensor(cache.nbytes // ids.shape[1])}
    return kept | {name: part[layer, 0] for name, part in record.items()}


def trace(config: Config) -> Trace:
    """Turn the dial on the trained tiny LM: convert, judge, train on, and read one story with each."""
    base = tiny_lm.load("base")
    heads, layer = base.config.num_attention_heads, config.layer
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(0))[: config.num_tokens]])
    runs = {
        str(groups): uptrain(converted_model(base, groups), config.alpha, BASE_STEPS, config.seed, judged=10)
        for groups in SHOWN_GROUPS[1:]
    }
    models = {"4": base, **{name: run.model for name, run in runs.items()}}
    seen = {name: _read(model, ids, layer) for name, model in models.items()}
    floor, loss_base = tiny_lm.held_out().entropy_floor, tiny_lm.evaluate(base, tiny_lm.held_out())
    conversions = _conversions(base)
    uptrained = {name: tiny_lm.evaluate(run.model, tiny_lm.held_out()) for name, run in runs.items()}
    averaged: dict[str, float] = dict(zip(("2", "1"), conversions.eval_loss[[0, 3]].tolist(), strict=True))
    weights = base.state_dict()
    w_k, w_v = (weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "kv")
    similarity = head_similarity(w_k, heads)
    cache_bytes = torch.stack([part["bytes"] for part in seen.values()])
    wiring: dict[str, Any] = _wrong_wiring(seen["2"])
    return Trace(
        config=config,
        tokens=tiny_lm.tokens(ids[0].tolist()),
        head_names=tuple(f"head {k + 1}" for k in range(heads)),
        groups=torch.tensor(SHOWN_GROUPS),
        group_of_head={str(groups): group_of_head(heads, groups) for groups in SHOWN_GROUPS},
        own_memory=torch.eye(heads),
        query=seen["4"]["q_rot"],
        key_by_g={name: part["keys"] for name, part in seen.items()},
        value_by_g={name: part["values"] for name, part in seen.items()},
        weights_by_g={name: part["weights"] for name, part in seen.items()},
        **wiring,
        w_k_heads=w_k.unflatten(0, (heads, -1)),
        w_k_grouped=convert_mha_to_gqa(w_k, heads, config.num_key_value_heads).unflatten(
            0, (config.num_key_value_heads, -1)
        ),
        head_similarity_k=similarity,
        head_similarity_v=head_similarity(w_v, heads),
        largest_similarity=float((similarity - torch.eye(heads)).abs().max()),
        conversions=conversions,
        eval_loss_base=loss_base,
        entropy_floor=floor,
        uptrain_steps=int(runs["2"].steps[-1]),
        curve_steps=runs["2"].steps,
        curves={name: run.loss_curve for name, run in runs.items()},
        eval_loss_uptrained=uptrained,
        healed={name: (averaged[name] - loss) / (averaged[name] - loss_base) for name, loss in uptrained.items()},
        loss_seed_spread=_spread(base, config.alpha, {config.seed: uptrained}),
        cache_bytes_per_token={name: int(part["bytes"]) for name, part in seen.items()},
        cache_bytes=cache_bytes,
        cache_growth=cache_bytes[:, None] * torch.arange(1, ids.shape[1] + 1),
        real_models=_real_models(),
        tradeoff=tradeoff(),
        reader_names=("MHA", "Llama-2-70B", "MQA, as many heads"),
        intensity=torch.tensor([decode_attention_intensity(*pair) for pair in READERS]),
        readers={f"{h // g}": torch.ones(h // g) for h, g in READERS},
        per_device_bytes={
            str(groups): torch.tensor([kv_bytes_per_device(80, groups, 128, devices) for devices in (1, 2, 4, 8)])
            for groups in (64, 8, 1)
        },
    )


def _wrong_wiring(seen: dict[str, Tensor]) -> dict[str, Any]:
    """Return what the newest token's heads put out when two memories are dealt out in turn, not to neighbors."""
    query, keys, values = seen["q_rot"][:, -1:], seen["keys"], seen["values"]
    groups, heads = keys.shape[0], query.shape[0]
    tiled = torch.arange(heads) % groups
    right, _ = grouped_query_attention(query, keys, values)
    wrong, _ = grouped_query_attention(query, keys[tiled], values[tiled])
    difference = (wrong - right)[:, 0].abs()
    return {
        "tiled_group_of_head": tiled,
        "output_shared": right[:, 0],
        "output_tiled": wrong[:, 0],
        "tiled_difference": difference,
        "tiled_head_difference": difference.amax(dim=1),
        "max_tiled_difference": float(difference.max()),
    }


def _conversions(base: tiny_lm.TinyLM) -> Conversions:
    """Judge every way to convert, without any training."""
    ways = [(groups, method) for groups in (2, 1) for method in METHODS]
    words = {"mean": "averaged", "first": "first head kept", "random": "drawn anew"}
    losses = [tiny_lm.evaluate(converted_model(base, *way), tiny_lm.held_out()) for way in ways]
    return Conversions(
        name=tuple(words[method] for _, method in ways),
        num_key_value_heads=torch.tensor([groups for groups, _ in ways]),
        eval_loss=torch.tensor(losses),
    )


def _spread(base: tiny_lm.TinyLM, alpha: float, known: dict[int, dict[str, float]]) -> dict[str, Float[Tensor, " 2"]]:
    """Return the lowest and highest loss after training with three orders of the texts."""
    spread = {}
    for groups in SHOWN_GROUPS[1:]:
        losses = [
            known[seed][str(groups)]
            if seed in known
            else tiny_lm.evaluate(
                uptrain(converted_model(base, groups), alpha, BASE_STEPS, seed).model, tiny_lm.held_out()
            )
            for seed in range(3)
        ]
        spread[str(groups)] = torch.tensor([min(losses), max(losses)])
    return spread


def _real_models() -> RealModels:
    shapes = [preset(name) for name in SHOWN_MODELS]

    def per_token(heads: list[int]) -> Int[Tensor, " R"]:
        pairs = zip(shapes, heads, strict=True)
        return torch.tensor([kv_cache_bytes_per_token(s.num_hidden_layers, g, s.head_dim) for s, g in pairs])

    own, shared = [s.num_attention_heads for s in shapes], [s.num_key_value_heads for s in shapes]
    return RealModels(
        tuple(s.name for s in shapes), torch.tensor(own), torch.tensor(shared), per_token(shared), per_token(own)
    )


def tradeoff() -> Tradeoff:
    """Return the paper's measurements and what follows from them."""
    names = tuple(name for name, *_ in PUBLISHED)
    full = names.index("MHA-XXL")
    times, points = (torch.tensor([row[column] for row in PUBLISHED]) for column in (1, 2))
    return Tradeoff(names, times, points, times[full] / times, points[full] - points)
