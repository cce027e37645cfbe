"""The decoder: Llama's architecture in plain PyTorch, small enough to read in one sitting.

RMSNorm before attention and before SwiGLU, rotary positions, shared key-value heads, no biases, tied output head.
Parameter names are those of Hugging Face's LlamaForCausalLM, so its state dict loads there.

Notation: B = batch, T = positions of this call, S = positions seen (cache included), D = hidden_size, H = query heads,
G = key-value heads, d = head_dim, L = layers, V = vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from internals_math.attention import (
    attention_scores,
    causal_mask,
    merge_heads,
    repeat_kv,
    scaled_dot_product_attention,
    split_heads,
)
from internals_math.rope import apply_rotary, rope_cos_sin, rope_frequencies
from internals_math.tiny_lm.vocabulary import VOCAB_SIZE

RECORDS = (
    "normed", "q", "k", "v", "q_rot", "k_rot", "scores", "weights", "head_outputs", "residual", "linear_inputs",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, in the words of Hugging Face configs."""

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 32
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    intermediate_size: int = 96
    rope_theta: float = 100.0  # 64 positions need no slower pair; 10,000 is much slower to learn induction
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads})"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Cache(Protocol):
    """What the decoder needs of a key-value cache."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self, layer_idx: int = 0) -> int: ...


def rms_norm(x: Float[Tensor, "*batch D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*batch D"]:
    """Scale x to unit root mean square, then by weight (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def swiglu(
    x: Float[Tensor, "*batch D"],
    w_gate: Float[Tensor, "F D"],
    w_up: Float[Tensor, "F D"],
    w_down: Float[Tensor, "D F"],
) -> Float[Tensor, "*batch D"]:
    """Return w_down (silu(w_gate x) * w_up x) (Shazeer 2020, arXiv 2002.05202)."""
    return (nn.functional.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def lecun_normal(name: str, shape: Sequence[int], config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Draw a weight with std 1/sqrt(fan_in); what writes to the residual stream is smaller by sqrt(2L)."""
    if name.endswith("norm.weight"):
        return torch.ones(*shape)
    std = 1 / math.sqrt(shape[-1])  # weights are (out, in); an embedding's "in" is its width
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        std /= math.sqrt(2 * config.num_hidden_layers)
    return torch.randn(*shape, generator=generator) * std


class Attention(nn.Module):
    """The four projections of one layer's attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        wide, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)


class FeedForward(nn.Module):
    """The three projections of one layer's SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class Norm(nn.Module):
    """The weight of one RMSNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))


class Layer(nn.Module):
    """One decoder layer. A factory may put another attention or feed-forward module in its place."""

    def __init__(
        self, config: ModelConfig, attention: Callable[[ModelConfig], nn.Module], feed_forward: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.input_layernorm = Norm(config)
        self.self_attn = attention(config)
        self.post_attention_layernorm = Norm(config)
        self.mlp = feed_forward(config)


class Decoder(nn.Module):
    """Embedding, layers and final norm, under the names of Hugging Face's LlamaModel."""

    def __init__(self, config: ModelConfig, attention: Any, feed_forward: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, attention, feed_forward) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config)


class TinyLM(nn.Module):
    """A causal language model.

    Args:
        config: its shape.
        init: (name, shape, config, generator) -> weight, called for every parameter in order.
        seed: of the generator that `init` receives.
        attention, feed_forward: factories config -> module; a module other than the default is called as
            module(x, **context) with the call's keyword arguments and returns its addition to the residual stream.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        init: Callable[..., Tensor] = lecun_normal,
        seed: int = 0,
        attention: Callable[[ModelConfig], nn.Module] = Attention,
        feed_forward: Callable[[ModelConfig], nn.Module] = FeedForward,
    ) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.model = Decoder(self.config, attention, feed_forward)
        if not self.config.tie_word_embeddings:
            self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(init(name, parameter.shape, self.config, generator))

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def inv_freq(self) -> Float[Tensor, " d_half"]:
        """Return the rotary frequencies this model was trained with (float64)."""
        return rope_frequencies(self.config.head_dim, self.config.rope_theta)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        position_ids: Shaped[Tensor, "..."] | None = None,
        inv_freq: Float[Tensor, " d_half"] | None = None,
        cache: Cache | None = None,
        mask: Any = None,
        attention_fn: Callable[..., Tensor] | None = None,
        linear_fn: Callable[[str, Tensor, Tensor], Tensor] | None = None,
        head_mask: Float[Tensor, "L H"] | None = None,
        skip_layers: Iterable[int] = (),
        channel_mask: Float[Tensor, "L F"] | None = None,
        record: Sequence[str] = (),
    ) -> Any:
        """Return the logits (B, T, V); with `record`, a tuple of logits and a dict of stacked tensors.

        Args:
            input_ids, inputs_embeds: one of the two.
            position_ids: (T,) or (B, T); by default they go on after the cache. They may be fractional.
            inv_freq: other rotary frequencies than the trained ones.
            cache: keys (already rotated) and values of earlier positions; it is updated.
            mask: True = visible, broadcast to (B, H, T, S), or a list with one for each layer; None = causal.
            attention_fn: (query, key, value, mask, scale, layer_idx) -> (B, H, T, d), in place of softmax attention.
            linear_fn: (name, x, weight) -> x @ weight.T, in place of every block matrix product.
            head_mask: factor on the output of each head.
            skip_layers: layers whose additions are left out.
            channel_mask: factor on each hidden channel of the feed-forward.
            record: names out of RECORDS. Each is stacked over layers: q, q_rot (L, B, H, T, d); k, k_rot, v
                (L, B, G, S, d) - k and v of this call's T positions, k_rot with the cache; scores (before mask), weights
                (L, B, H, T, S); head_outputs (L, B, H, T, D); normed (L, B, T, D); residual (L + 1, B, T, D);
                linear_inputs: dict of name -> input.

        Raises:
            ValueError: both or none of input_ids and inputs_embeds, ids out of the vocabulary, unknown record.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward needs either input_ids or inputs_embeds")
        unknown = set(record) - set(RECORDS)
        if unknown:
            raise ValueError(f"record must be out of {', '.join(RECORDS)}, got {', '.join(sorted(unknown))}")
        if input_ids is not None:
            if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.config.vocab_size:
                raise ValueError(f"input_ids must be in 0..{self.config.vocab_size - 1}, got {int(input_ids.max())}")
            x = self.model.embed_tokens(input_ids)
        else:
            x = inputs_embeds
        seen = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)
        rotary = rope_cos_sin(position_ids, self.inv_freq() if inv_freq is None else inv_freq)
        if position_ids.ndim == 2:
            rotary = tuple(part[:, None] for part in rotary)  # one head axis for all heads
        rotary = tuple(part.to(x.dtype) for part in rotary)
        call = _Call(rotary, cache, mask, attention_fn, linear_fn, head_mask, channel_mask, _Recorder(record))

        call.records.add("residual", x)
        skipped = set(skip_layers)
        for index, layer in enumerate(self.model.layers):
            if index not in skipped:
                x = x + self._attend(index, layer, x, call)
                x = x + self._feed_forward(index, layer, x, call)
            call.records.add("residual", x)
        x = rms_norm(x, self.model.norm.weight, self.config.rms_norm_eps)
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        logits = x @ head.weight.T
        return (logits, call.records.stacked()) if record else logits

    def _attend(self, index: int, layer: Layer, x: Tensor, call: "_Call") -> Tensor:
        """Return what the layer's attention adds to the residual stream."""
        normed = rms_norm(x, layer.input_layernorm.weight, self.config.rms_norm_eps)
        call.records.add("normed", normed)
        attention = layer.self_attn
        if not isinstance(attention, Attention):
            return attention(normed, layer_idx=index, rotary=call.rotary, cache=call.cache, mask=call.mask)
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        prefix = f"model.layers.{index}.self_attn"
        query = split_heads(call.linear(f"{prefix}.q_proj", normed, attention.q_proj.weight), heads)
        key = split_heads(call.linear(f"{prefix}.k_proj", normed, attention.k_proj.weight), groups)
        value = split_heads(call.linear(f"{prefix}.v_proj", normed, attention.v_proj.weight), groups)
        for name, part in (("q", query), ("k", key), ("v", value)):
            call.records.add(name, part)
        cos, sin = call.rotary
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        if call.cache is not None:
            key, value = call.cache.update(key, value, index)
        call.records.add("q_rot", query)
        call.records.add("k_rot", key)

        mask = call.mask[index] if isinstance(call.mask, list | tuple) else call.mask
        if mask is None:
            mask = causal_mask(query.shape[2], key.shape[2], device=x.device)
        if call.attention_fn is not None:
            output = call.attention_fn(query, key, value, mask, 1 / math.sqrt(self.config.head_dim), index)
        else:
            output, weights = scaled_dot_product_attention(query, key, value, mask)
            call.records.add("weights", weights)
            if call.records.wants("scores"):
                call.records.add("scores", attention_scores(query, repeat_kv(key, heads // groups)))
        if call.head_mask is not None:
            output = output * call.head_mask[index].view(1, -1, 1, 1)
        w_o = attention.o_proj.weight
        if call.records.wants("head_outputs"):
            per_head = w_o.view(w_o.shape[0], heads, -1)  # (D, H, d)
            call.records.add("head_outputs", torch.einsum("bhtd,Dhd->bhtD", output, per_head))
        return call.linear(f"{prefix}.o_proj", merge_heads(output), w_o)

    def _feed_forward(self, index: int, layer: Layer, x: Tensor, call: "_Call") -> Tensor:
        """Return what the layer's feed-forward adds to the residual stream."""
        normed = rms_norm(x, layer.post_attention_layernorm.weight, self.config.rms_norm_eps)
        mlp = layer.mlp
        if not isinstance(mlp, FeedForward):
            return mlp(normed)
        if call.linear_fn is None and call.channel_mask is None and not call.records.wants("linear_inputs"):
            return swiglu(normed, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        prefix = f"model.layers.{index}.mlp"
        gate = call.linear(f"{prefix}.gate_proj", normed, mlp.gate_proj.weight)
        up = call.linear(f"{prefix}.up_proj", normed, mlp.up_proj.weight)
        hidden = nn.functional.silu(gate) * up
        if call.channel_mask is not None:
            hidden = hidden * call.channel_mask[index]
        return call.linear(f"{prefix}.down_proj", hidden, mlp.down_proj.weight)


class _Recorder:
    """Collects the tensors a caller asked for, layer by layer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.kept: dict[str, Any] = {name: {} if name == "linear_inputs" else [] for name in names}

    def wants(self, name: str) -> bool:
        return name in self.kept

    def add(self, name: str, value: Tensor) -> None:
        if name in self.kept:
            self.kept[name].append(value)

    def stacked(self) -> dict[str, Any]:
        return {name: parts if isinstance(parts, dict) else torch.stack(parts) for name, parts in self.kept.items()}


@dataclass
class _Call:
    """What all layers of one forward call share."""

    rotary: tuple[Tensor, Tensor]
    cache: Cache | None
    mask: Any
    attention_fn: Callable[..., Tensor] | None
    linear_fn: Callable[[str, Tensor, Tensor], Tensor] | None
    head_mask: Tensor | None
    channel_mask: Tensor | None
    records: _Recorder

    def linear(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        if self.records.wants("linear_inputs"):
            self.records.kept["linear_inputs"][f"{name}.weight"] = x
        return x @ weight.T if self.linear_fn is None else self.linear_fn(name, x, weight)
