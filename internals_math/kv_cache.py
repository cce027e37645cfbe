"""KV cache: keys and values of old tokens never change in a causal model, so they are computed once and kept.

Notation: L = num_hidden_layers, D = hidden_size, H = num_attention_heads, G = num_key_value_heads, d = head_dim,
V = vocab_size, P = prompt length, S = forward passes, T = P + S - 1 cached positions, n = context length.
Sources: Vaswani et al. 2017 (1706.03762) eq. 1; Shazeer 2019 (1911.02150); Ainslie et al. 2023 (2305.13245);
Kwon et al. 2023 (vLLM, 2309.06180) section 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internals_math import tiny_lm
from internals_math.attention import (
    attention_flops,
    causal_mask,
    masked_softmax,
    project_qkv,
    scaled_dot_product_attention,
)
from internals_math.model_shapes import ModelShape, parameter_count, preset
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "GenerationOutput", "KVCache", "Trace", "attention_flops", "causal_mask", "decode_attention_intensity",
    "generation_flops", "greedy_generate", "kv_cache_bytes", "kv_cache_bytes_per_token", "linear_flops_per_token",
    "max_key_change", "project_qkv", "recompute_counts", "scaled_dot_product_attention", "trace",
]  # fmt: skip


class KVCache:
    """Keys (already rotated) and values of all earlier positions, layer by layer.

    Raises:
        ValueError: fewer than one layer.
    """

    def __init__(self, num_hidden_layers: int) -> None:
        if num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers must be at least 1, got {num_hidden_layers}")
        self.keys: list[Tensor | None] = [None] * num_hidden_layers
        self.values: list[Tensor | None] = [None] * num_hidden_layers

    def update(
        self, key_states: Float[Tensor, "B G q d"], value_states: Float[Tensor, "B G q d"], layer_idx: int
    ) -> tuple[Float[Tensor, "B G n d"], Float[Tensor, "B G n d"]]:
        """Append new positions to a layer and return all of its keys and values.

        Raises:
            ValueError: layer_idx out of range, K and V of different shapes, or batch, heads, head_dim or dtype that
                differ from what is stored.
        """
        self._check_layer(layer_idx)
        if key_states.shape != value_states.shape:
            raise ValueError(
                f"keys and values need the same shape, got {tuple(key_states.shape)} and {tuple(value_states.shape)}"
            )
        old_keys, old_values = self.keys[layer_idx], self.values[layer_idx]
        if old_keys is not None and old_values is not None:
            for axis, name in ((0, "batch"), (1, "heads"), (3, "head_dim")):
                if old_keys.shape[axis] != key_states.shape[axis]:
                    raise ValueError(
                        f"the cache holds {name} {old_keys.shape[axis]}, got {name} {key_states.shape[axis]}"
                    )
            if old_keys.dtype != key_states.dtype:
                raise ValueError(f"the cache holds {old_keys.dtype}, got {key_states.dtype}")
            key_states = torch.cat([old_keys, key_states], dim=2)
            value_states = torch.cat([old_values, value_states], dim=2)
        self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached positions of a layer."""
        self._check_layer(layer_idx)
        keys = self.keys[layer_idx]
        return 0 if keys is None else keys.shape[2]

    def crop(self, max_length: int) -> None:
        """Forget all positions from `max_length` on, as if they had never been seen."""
        if max_length < 0:
            raise ValueError(f"max_length must be at least 0, got {max_length}")
        for store in (self.keys, self.values):
            for layer, states in enumerate(store):
                if states is not None:
                    store[layer] = states[:, :, :max_length]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all stored keys and values."""
        stored = [states for states in (*self.keys, *self.values) if states is not None]
        return sum(states.numel() * states.element_size() for states in stored)

    def _check_layer(self, layer_idx: int) -> None:
        if not 0 <= layer_idx < len(self.keys):
            raise ValueError(f"layer_idx must be in 0..{len(self.keys) - 1}, got {layer_idx}")


@dataclass(frozen=True, eq=False)
class GenerationOutput:
    """What `greedy_generate` wrote, and how sure it was."""

    sequences: Int[Tensor, "B N"]
    step_logits: Float[Tensor, "S B V"]
    cache: KVCache | None


@torch.no_grad()
def greedy_generate(
    model: Callable[..., Any], input_ids: Int[Tensor, "B P"], max_new_tokens: int, use_cache: bool
) -> GenerationOutput:
    """Write `max_new_tokens` most likely tokens; with a cache each pass after the first reads one token only.

    Raises:
        ValueError: max_new_tokens below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    cache = KVCache(model.config.num_hidden_layers) if use_cache else None  # type: ignore[attr-defined]
    sequence, unread, steps = input_ids, input_ids, []
    for _ in range(max_new_tokens):
        logits = model(unread if use_cache else sequence, cache=cache)[:, -1]
        steps.append(logits)
        unread = logits.argmax(dim=-1, keepdim=True)
        sequence = torch.cat([sequence, unread], dim=1)
    return GenerationOutput(sequence, torch.stack(steps), cache)


def kv_cache_bytes_per_token(
    num_hidden_layers: int, num_key_value_heads: int, head_dim: int, bytes_per_element: int = 2
) -> int:
    """Return 2 · L · G · d · b, the bytes that one more token of one sequence adds (2 = key and value)."""
    for name, value in (
        ("num_hidden_layers", num_hidden_layers),
        ("num_key_value_heads", num_key_value_heads),
        ("head_dim", head_dim),
        ("bytes_per_element", bytes_per_element),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return 2 * num_hidden_layers * num_key_value_heads * head_dim * bytes_per_element


def kv_cache_bytes(
    num_hidden_layers: int,
    num_key_value_heads: int,
    head_dim: int,
    seq_len: int,
    batch_size: int = 1,
    bytes_per_element: int = 2,
) -> int:
    """Return the bytes of a whole cache."""
    if seq_len < 0 or batch_size < 1:
        raise ValueError(f"seq_len must be at least 0 and batch_size at least 1, got {seq_len} and {batch_size}")
    per_token = kv_cache_bytes_per_token(num_hidden_layers, num_key_value_heads, head_dim, bytes_per_element)
    return per_token * seq_len * batch_size


def linear_flops_per_token(shape: ModelShape) -> int:
    """Return the FLOPs of one token in all block matrices of the stack, the output head left out."""
    wide, narrow = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention = 2 * shape.hidden_size * wide + 4 * shape.hidden_size * narrow + 2 * wide * shape.hidden_size
    feed_forward = (6 if shape.gated else 4) * shape.hidden_size * shape.intermediate_size
    return shape.num_hidden_layers * (attention + feed_forward)


def generation_flops(shape: ModelShape, prompt_len: int, max_new_tokens: int, use_cache: bool) -> Int[Tensor, " S"]:
    """Return the FLOPs of each forward pass (pass 0 is the prefill), masked scores included.

    Raises:
        ValueError: prompt_len or max_new_tokens below 1.
    """
    _check_lengths(prompt_len, max_new_tokens)
    head = 2 * shape.hidden_size * shape.vocab_size
    flops = []
    for step in range(max_new_tokens):
        context = prompt_len + step
        queries = context if step == 0 or not use_cache else 1
        attention = attention_flops(queries, context, shape.num_attention_heads, shape.head_dim)
        flops.append(queries * linear_flops_per_token(shape) + shape.num_hidden_layers * attention + head)
    return torch.tensor(flops)


def decode_attention_intensity(num_heads: int, num_key_value_heads: int, bytes_per_element: int = 2) -> float:
    """Return FLOPs per byte read of one decode step's attention: (2 / b) · (H / G), whatever the context length."""
    if num_key_value_heads < 1 or num_heads % num_key_value_heads:
        raise ValueError(
            f"num_attention_heads ({num_heads}) must be divisible by num_key_value_heads ({num_key_value_heads})"
        )
    if bytes_per_element < 1:
        raise ValueError(f"bytes_per_element must be at least 1, got {bytes_per_element}")
    return 2 / bytes_per_element * num_heads / num_key_value_heads


def recompute_counts(prompt_len: int, new_tokens: int) -> tuple[Int[Tensor, " S"], Int[Tensor, " S"]]:
    """Return the key rows projected per layer at each pass: (P, 1, 1, …) with a cache, (P, P + 1, …) without."""
    _check_lengths(prompt_len, new_tokens)
    without = torch.arange(prompt_len, prompt_len + new_tokens)
    with_cache = torch.ones_like(without)
    with_cache[0] = prompt_len
    return with_cache, without


@torch.no_grad()
def key_changes(
    model: Callable[..., Any], input_ids: Int[Tensor, "1 T"], split: int, causal: bool
) -> Float[Tensor, "L split"]:
    """Return how far each of the first `split` keys moves, per layer, when the later tokens are appended.

    A key's move is the largest absolute change over its heads and dimensions.
    """
    if not 1 <= split < input_ids.shape[1]:
        raise ValueError(f"split must be in 1..{input_ids.shape[1] - 1}, got {split}")

    def keys(ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = causal_mask(length) if causal else torch.ones(length, length, dtype=torch.bool)
        return model(ids, mask=mask, record=("k_rot",))[1]["k_rot"][:, 0]  # (L, G, T, d)

    change = keys(input_ids)[:, :, :split] - keys(input_ids[:, :split])
    return change.abs().amax(dim=(1, 3))


def max_key_change(
    model: Callable[..., Any], input_ids: Int[Tensor, "1 T"], split: int, causal: bool
) -> Float[Tensor, " L"]:
    """Return the largest of `key_changes` in each layer."""
    return key_changes(model, input_ids, split, causal).amax(dim=1)


def _check_lengths(prompt_len: int, new_tokens: int) -> None:
    if prompt_len < 1 or new_tokens < 1:
        raise ValueError(f"prompt and new tokens must be at least 1 each, got {prompt_len} and {new_tokens}")


# -- what the video shows ----------------------------------------------------------------------------------------------

# NVIDIA A100 80GB SXM datasheet: 312 TFLOPS dense FP16/BF16 tensor core, 2,039 GB/s.
CHIP_NAME, CHIP_FLOPS, CHIP_BYTES_PER_SECOND = "NVIDIA A100", 312e12, 2039e9
SHOWN_PRESETS = ("llama-2-7b", "opt-13b", "llama-2-70b", "llama-3-8b", "mistral-7b")
LONG_CONTEXT = 64  # what the tiny LM was trained on


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    prompt: str = option(tiny_lm.PROMPT, "words of the story world, 2 to 12 of them")
    max_new_tokens: int = option(4, "words to write", minimum=2, maximum=8)
    # Of the twelve heads, layer 1 head 0 shows most: its queries spread over several words and prefer different ones.
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(0, "attention head to show", minimum=0, maximum=3)
    real_model: str = option("llama-2-7b", "the real model of the memory bill", choices=SHOWN_PRESETS)
    context_length: int = option(4096, "context of the memory bill in tokens", minimum=1, maximum=131072)
    batch_size: int = option(1, "sequences at once in the memory bill", minimum=1, maximum=256)

    def check(self) -> None:
        if not 2 <= len(self.prompt.split()) <= 12:
            raise ValueError(f"prompt must have 2 to 12 words, got {len(self.prompt.split())}")
        tiny_lm.encode(self.prompt)


@dataclass(frozen=True, eq=False)
class Presets:
    """Published models, one row each; bytes are FP16."""

    name: tuple[str, ...]
    layers: Int[Tensor, " R"]
    attention_heads: Int[Tensor, " R"]
    key_value_heads: Int[Tensor, " R"]
    bytes_per_token: Int[Tensor, " R"]
    intensity: Float[Tensor, " R"]  # FLOP per byte of decode attention


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Rows of S follow the forward passes, rows of T the cached positions."""

    config: Config
    tokens: tuple[str, ...]  # T + 1: prompt, then what was written; the last one is never fed back
    contexts: Int[Tensor, " S"]  # P .. P + S - 1
    inputs: Float[Tensor, "T D"]  # normed inputs of the shown layer
    w_key: Float[Tensor, "d D"]  # the shown head's rows of W_K
    w_value: Float[Tensor, "d D"]
    keys: Float[Tensor, "T d"]  # after RoPE, as cached
    values: Float[Tensor, "T d"]
    keys_recomputed: Float[Tensor, "S T d"]  # from the whole text at every pass; NaN beyond the context
    key_differences: Float[Tensor, "S T d"]  # |recomputed - cached|; NaN beyond the context
    max_abs_diff: Float[Tensor, " S"]
    queries: Float[Tensor, "S d"]  # of the newest token of each pass
    scores: Float[Tensor, "S T"]  # q · k / sqrt(d); NaN beyond the context
    weights: Float[Tensor, "S T"]
    outputs: Float[Tensor, "S d"]
    most_attended: tuple[str, ...]  # S: the token with the largest weight of each pass
    logits_cached: Float[Tensor, "S V"]
    logits_uncached: Float[Tensor, "S V"]
    max_abs_diff_logits: float
    key_change_causal: Float[Tensor, "L T"]  # of the prompt's keys when S - 1 tokens follow; NaN: not there yet
    key_change_bidirectional: Float[Tensor, "L T"]
    max_change_causal: Float[Tensor, " L"]
    max_change_bidirectional: Float[Tensor, " L"]
    rows_with_cache: Int[Tensor, " S"]
    rows_without_cache: Int[Tensor, " S"]
    rows_with_cache_total: Int[Tensor, " S"]
    rows_without_cache_total: Int[Tensor, " S"]
    flops_with_cache: Int[Tensor, " S"]
    flops_without_cache: Int[Tensor, " S"]
    long_contexts: Int[Tensor, " N"]  # P .. LONG_CONTEXT: the same counts for a longer text
    long_flops_with_cache: Int[Tensor, " N"]
    long_flops_without_cache: Int[Tensor, " N"]
    long_flops_ratio: Float[Tensor, " N"]  # without / with
    tiny_cache_bytes: int
    presets: Presets
    bill_contexts: Int[Tensor, " K"]  # 1, 2, 4 … and the chosen context
    bill_bytes: Int[Tensor, "K R"]  # batch_size sequences of that context
    real_name: str
    real_row: int  # of real_model in presets
    real_weight_bytes: int  # FP16
    real_cache_bytes: int
    intensity: float
    decode_bytes_read: Int[Tensor, " T"]  # FP16 bytes of the shown head read up to key j, running total
    decode_flops: Int[Tensor, " T"]
    offer_names: tuple[str, ...]  # who asks for, or can do, how much work per byte
    offer_intensity: Float[Tensor, " 2"]  # FLOP per byte: of a decode step, and of the chip at full speed


def tiny_shape() -> ModelShape:
    """Return the shape of the series' own model."""
    config = tiny_lm.load("base").config
    return ModelShape(
        "tiny LM",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        tied=True,
    )


@torch.no_grad()
def trace(config: Config) -> Trace:
    """Write with and without a cache, and keep what one head saw at every pass."""
    model = tiny_lm.load("base")
    layer, head, steps = config.layer, config.head, config.max_new_tokens
    prompt = torch.tensor([tiny_lm.encode(config.prompt)])
    cached = greedy_generate(model, prompt, steps, use_cache=True)
    uncached = greedy_generate(model, prompt, steps, use_cache=False)
    if not torch.equal(cached.sequences, uncached.sequences):
        raise ArithmeticError("generation with and without cache chose different tokens; choose another prompt")
    prompt_len, total = prompt.shape[1], prompt.shape[1] + steps - 1
    assert cached.cache is not None
    keys, values = (store[layer][0, head] for store in (cached.cache.keys, cached.cache.values))  # type: ignore[index]

    seen = _passes(model, cached.sequences, layer, head, prompt_len, steps)
    differences = (seen["keys"] - keys).abs()
    _, record = model(cached.sequences[:, :total], record=("normed",))
    shape = tiny_shape()
    weights = model.state_dict()
    projection = f"model.layers.{layer}.self_attn.{{}}_proj.weight"
    rows = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
    changes = [key_changes(model, cached.sequences[:, :total], prompt_len, causal) for causal in (True, False)]
    with_cache, without_cache = recompute_counts(prompt_len, steps)
    long_steps = max(LONG_CONTEXT - prompt_len + 1, 1)
    long_with, long_without = (generation_flops(shape, prompt_len, long_steps, use) for use in (True, False))
    head_bytes = 2 * 2 * shape.head_dim  # key and value row in FP16
    head_flops = 2 * 2 * shape.head_dim  # one multiply-add for each of their numbers
    positions = torch.arange(1, total + 1)
    bill = _bill(config)
    intensity = decode_attention_intensity(shape.num_attention_heads, shape.num_key_value_heads)
    return Trace(
        config=config,
        tokens=tiny_lm.tokens(cached.sequences[0]),
        contexts=torch.arange(prompt_len, prompt_len + steps),
        inputs=record["normed"][layer, 0],
        w_key=weights[projection.format("k")][rows],
        w_value=weights[projection.format("v")][rows],
        keys=keys,
        values=values,
        keys_recomputed=seen["keys"],
        key_differences=differences,
        max_abs_diff=differences.nan_to_num().amax(dim=(1, 2)),
        queries=seen["queries"],
        scores=seen["scores"],
        weights=seen["weights"],
        outputs=seen["outputs"],
        most_attended=tiny_lm.tokens(cached.sequences[0, seen["weights"].nan_to_num().argmax(dim=1)].tolist()),
        logits_cached=cached.step_logits[:, 0],
        logits_uncached=uncached.step_logits[:, 0],
        max_abs_diff_logits=float((cached.step_logits - uncached.step_logits).abs().max()),
        key_change_causal=nn.functional.pad(changes[0], (0, steps - 1), value=math.nan),
        key_change_bidirectional=nn.functional.pad(changes[1], (0, steps - 1), value=math.nan),
        max_change_causal=changes[0].amax(dim=1),
        max_change_bidirectional=changes[1].amax(dim=1),
        rows_with_cache=with_cache,
        rows_without_cache=without_cache,
        rows_with_cache_total=with_cache.cumsum(0),
        rows_without_cache_total=without_cache.cumsum(0),
        flops_with_cache=generation_flops(shape, prompt_len, steps, use_cache=True),
        flops_without_cache=generation_flops(shape, prompt_len, steps, use_cache=False),
        long_contexts=torch.arange(prompt_len, prompt_len + long_steps),
        long_flops_with_cache=long_with,
        long_flops_without_cache=long_without,
        long_flops_ratio=long_without / long_with,
        tiny_cache_bytes=cached.cache.nbytes,
        intensity=intensity,
        decode_bytes_read=positions * head_bytes,
        decode_flops=positions * head_flops,
        offer_names=("a decode step asks", f"{CHIP_NAME} offers (datasheet)"),
        offer_intensity=torch.tensor([intensity, CHIP_FLOPS / CHIP_BYTES_PER_SECOND]),
        **bill,
    )


def _passes(
    model: tiny_lm.TinyLM, sequence: Int[Tensor, "1 N"], layer: int, head: int, prompt_len: int, steps: int
) -> dict[str, Tensor]:
    """Run every pass from the whole text and keep the shown head's keys and its newest query's attention."""
    head_dim, total = model.config.head_dim, prompt_len + steps - 1
    seen = {
        "keys": torch.full((steps, total, head_dim), math.nan),
        "queries": torch.empty(steps, head_dim),
        "scores": torch.full((steps, total), math.nan),
        "weights": torch.full((steps, total), math.nan),
        "outputs": torch.empty(steps, head_dim),
    }
    for step in range(steps):
        context = prompt_len + step
        names = ("q_rot", "k_rot", "v", "scores")
        _, record = model(sequence[:, :context], record=names)
        scores = record["scores"][layer, 0, head, -1]  # the newest query's row
        weights = masked_softmax(scores[None])[0]
        seen["keys"][step, :context] = record["k_rot"][layer, 0, head]
        seen["queries"][step] = record["q_rot"][layer, 0, head, -1]
        seen["scores"][step, :context] = scores
        seen["weights"][step, :context] = weights
        seen["outputs"][step] = weights @ record["v"][layer, 0, head]
    return seen


def _bill(config: Config) -> dict[str, Any]:
    """Return what the caches of real models weigh, over doubling contexts up to the chosen one."""
    shapes = [preset(name) for name in SHOWN_PRESETS]
    per_token = torch.tensor(
        [kv_cache_bytes_per_token(s.num_hidden_layers, s.num_key_value_heads, s.head_dim) for s in shapes]
    )
    contexts = [2**k for k in range(18) if 2**k < config.context_length]
    bill_contexts = torch.tensor([*contexts, config.context_length])
    real = preset(config.real_model)
    row = SHOWN_PRESETS.index(config.real_model)
    return {
        "presets": Presets(
            name=tuple(s.name for s in shapes),
            layers=torch.tensor([s.num_hidden_layers for s in shapes]),
            attention_heads=torch.tensor([s.num_attention_heads for s in shapes]),
            key_value_heads=torch.tensor([s.num_key_value_heads for s in shapes]),
            bytes_per_token=per_token,
            intensity=torch.tensor(
                [decode_attention_intensity(s.num_attention_heads, s.num_key_value_heads) for s in shapes]
            ),
        ),
        "bill_contexts": bill_contexts,
        "bill_bytes": bill_contexts[:, None] * per_token * config.batch_size,
        "real_name": real.name,
        "real_row": row,
        "real_weight_bytes": 2 * parameter_count(real),
        "real_cache_bytes": int(per_token[row]) * config.context_length * config.batch_size,
    }
