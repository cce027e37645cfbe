"""The decoder: Llama's architecture in plain PyTorch, small enough to read in one sitting.

RMSNorm before attention and before SwiGLU, rotary positions, shared key-value heads, no biases, tied output head.
Parameter names are those of Hugging Face's LlamaForCausalLM, so its state dict loads there.

Notation: B = batch, T = positions of this call, S = positions seen (cache included), D = hidden_size, F = channels,
H = query heads, G = key-value heads, d = head_dim, L = layers, V = vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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
from internals_math.tiny_lm.layers import (
    Attention,
    Decoder,
    Factory,
    FeedForward,
    Layer,
    ModelConfig,
    lecun_normal,
    rms_norm,
    swiglu,
)

RECORDS = (
    "normed", "q", "k", "v", "q_rot", "k_rot", "scores", "weights", "head_outputs", "residual", "linear_inputs",
)  # fmt: skip

AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor, float, int], Tensor]
LinearFn = Callable[[str, Tensor, Tensor], Tensor]


@runtime_checkable
class Cache(Protocol):
    """What the decoder needs of a key-value cache."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self, layer_idx: int = 0) -> int: ...


class TinyLM(nn.Module):
    """A causal language model.

    Args:
        config: its shape.
        init: (name, shape, config, generator) -> weight, called for every parameter in order.
        seed: of the generator that `init` receives.
        attention, feed_forward: factories config -> module, to put other techniques into the layers. What they make
            returns its addition to the residual stream when it is called as
            attention(normed, layer_idx=, position_ids=, rotary=(cos, sin), cache=, mask=) and feed_forward(normed).
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        init: Callable[..., Tensor] = lecun_normal,
        seed: int = 0,
        attention: Factory = Attention,
        feed_forward: Factory = FeedForward,
    ) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        with torch.random.fork_rng(devices=[]):  # PyTorch's own initialization must not touch the global generator
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
        mask: Tensor | Sequence[Tensor] | None = None,
        attention_fn: AttentionFn | None = None,
        linear_fn: LinearFn | None = None,
        head_mask: Float[Tensor, "L H"] | None = None,
        skip_layers: Iterable[int] = (),
        channel_mask: Float[Tensor, "L F"] | None = None,
        record: Sequence[str] = (),
    ) -> Any:
        """Return the logits (B, T, V); with `record`, a tuple of logits and a dict of what was seen on the way.

        Args:
            input_ids, inputs_embeds: one of the two.
            position_ids: (T,) or (B, T); by default they go on after the cache. They may be fractional.
            inv_freq: other rotary frequencies than the trained ones.
            cache: keys (already rotated) and values of earlier positions; it is updated.
            mask: True = visible, broadcast to (B, H, T, S), or a list with one for each layer; None = causal.
            attention_fn: (query, key, value, mask, scale, layer_idx) -> (B, H, T, d), in place of softmax attention.
            linear_fn: (name, x, weight) -> x @ weight.T, in place of every block matrix product; names as in the
                state dict ("model.layers.0.self_attn.q_proj.weight").
            head_mask: factor on the output of each head.
            skip_layers: layers whose additions are left out; they record nothing but the residual stream.
            channel_mask: factor on each hidden channel of the feed-forward.
            record: names out of RECORDS. Each is stacked over layers: normed, the input of attention (L, B, T, D);
                q, q_rot (L, B, H, T, d); k, v of this call (L, B, G, T, d); k_rot with the cached keys (L, B, G, S, d);
                scores (before the mask), weights (L, B, H, T, S); head_outputs (L, B, H, T, D), whose sum over H is
                what attention adds; residual (L + 1, B, T, D). linear_inputs is a dict: name -> x of every block matrix
                product, unstacked, so that gradients can be taken with respect to it.

        Raises:
            ValueError: both or none of input_ids and inputs_embeds, ids out of the vocabulary, a layer to skip that
                does not exist, an unknown record or one that this call never computes.
        """
        unknown = set(record) - set(RECORDS)
        if unknown:
            raise ValueError(f"record must be out of {', '.join(RECORDS)}, got {', '.join(sorted(unknown))}")
        skipped = set(skip_layers)
        if not skipped <= set(range(self.config.num_hidden_layers)):
            raise ValueError(f"skip_layers must be in 0..{self.config.num_hidden_layers - 1}, got {sorted(skipped)}")
        x = self._embed(input_ids, inputs_embeds)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)
        cos, sin = rope_cos_sin(position_ids, self.inv_freq().to(x.device) if inv_freq is None else inv_freq)
        if position_ids.ndim == 2:
            cos, sin = cos[:, None], sin[:, None]  # (B, 1, T, d): the same for all heads
        call = _Call(
            position_ids=position_ids,
            rotary=(cos.to(x.dtype), sin.to(x.dtype)),
            cache=cache,
            mask=mask,
            attention_fn=attention_fn,
            linear_fn=linear_fn,
            head_mask=head_mask,
            channel_mask=channel_mask,
            kept={name: [] for name in record if name != "linear_inputs"},
            linear_inputs={} if "linear_inputs" in record else None,
        )

        call.keep("residual", x)
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            if index not in skipped:
                x = x + self._attend(index, layer, x, call)
                x = x + self._feed_forward(index, layer, x, call)
            call.keep("residual", x)
        x = rms_norm(x, self.model.norm.weight, self.config.rms_norm_eps)
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        logits = x @ head.weight.T
        return (logits, call.records()) if record else logits

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward needs either input_ids or inputs_embeds")
        if inputs_embeds is not None:
            return inputs_embeds
        try:
            return self.model.embed_tokens(input_ids)
        except IndexError as error:
            raise ValueError(f"input_ids must be in 0..{self.config.vocab_size - 1}, got {input_ids}") from error

    def _attend(self, index: int, layer: Layer, x: Tensor, call: "_Call") -> Tensor:
        """Return what the layer's attention adds to the residual stream."""
        normed = rms_norm(x, layer.input_layernorm.weight, self.config.rms_norm_eps)
        call.keep("normed", normed)
        attention = layer.self_attn
        mask = call.mask if call.mask is None or isinstance(call.mask, Tensor) else call.mask[index]
        if not isinstance(attention, Attention):
            return attention(
                normed,
                layer_idx=index,
                position_ids=call.position_ids,
                rotary=call.rotary,
                cache=call.cache,
                mask=mask,
            )
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        prefix = f"model.layers.{index}.self_attn"
        query = split_heads(call.linear(f"{prefix}.q_proj.weight", normed, attention.q_proj.weight), heads)
        key = split_heads(call.linear(f"{prefix}.k_proj.weight", normed, attention.k_proj.weight), groups)
        value = split_heads(call.linear(f"{prefix}.v_proj.weight", normed, attention.v_proj.weight), groups)
        for name, part in (("q", query), ("k", key), ("v", value)):
            call.keep(name, part)
        query, key = (apply_rotary(part, *call.rotary) for part in (query, key))
        if call.cache is not None:
            key, value = call.cache.update(key, value, index)
        call.keep("q_rot", query)
        call.keep("k_rot", key)

        if mask is None:
            mask = self._visible(query.shape[2], key.shape[2], x.device)
        if call.wants("scores"):
            call.keep("scores", attention_scores(query, repeat_kv(key, heads // groups)))
        if call.attention_fn is None:
            output, weights = scaled_dot_product_attention(query, key, value, mask)
            call.keep("weights", weights)
        else:
            output = call.attention_fn(query, key, value, mask, 1 / math.sqrt(self.config.head_dim), index)
        if call.head_mask is not None:
            output = output * call.head_mask[index].view(1, -1, 1, 1)
        w_o = attention.o_proj.weight
        if call.wants("head_outputs"):
            per_head = w_o.view(w_o.shape[0], heads, -1)  # (D, H, d)
            call.keep("head_outputs", torch.einsum("bhtd,Dhd->bhtD", output, per_head))
        return call.linear(f"{prefix}.o_proj.weight", merge_heads(output), w_o)

    def _visible(self, q_len: int, kv_len: int, device: torch.device) -> Tensor:
        """Return the model's own mask (q_len, kv_len): causal, cut to the window if there is one."""
        mask = causal_mask(q_len, kv_len, device=device)
        if self.config.sliding_window is not None:
            mask = mask.triu(kv_len - q_len - self.config.sliding_window + 1)
        return mask

    def _feed_forward(self, index: int, layer: Layer, x: Tensor, call: "_Call") -> Tensor:
        """Return what the layer's feed-forward adds to the residual stream."""
        normed = rms_norm(x, layer.post_attention_layernorm.weight, self.config.rms_norm_eps)
        mlp = layer.mlp
        if not isinstance(mlp, FeedForward):
            return mlp(normed)
        if call.linear_fn is None and call.channel_mask is None and call.linear_inputs is None:
            return swiglu(normed, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        prefix = f"model.layers.{index}.mlp"
        gate = call.linear(f"{prefix}.gate_proj.weight", normed, mlp.gate_proj.weight)
        up = call.linear(f"{prefix}.up_proj.weight", normed, mlp.up_proj.weight)
        hidden = nn.functional.silu(gate) * up
        if call.channel_mask is not None:
            hidden = hidden * call.channel_mask[index]
        return call.linear(f"{prefix}.down_proj.weight", hidden, mlp.down_proj.weight)


def forward(model: TinyLM, state: Mapping[str, Tensor], input_ids: Tensor | None = None, **arguments: Any) -> Any:
    """Run `model` with other weights, as a pure function of them: for torch.func.grad, vmap and edited weights."""
    return torch.func.functional_call(model, dict(state), (input_ids,), arguments)


def block_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all linear weights by their names: attention and feed-forward of every layer."""
    return {name: weight for name, weight in model.named_parameters() if ".layers." in name and weight.ndim == 2}


def short_name(name: str) -> str:
    """Return `layer 1 k_proj` for `model.layers.1.self_attn.k_proj.weight`."""
    parts = name.split(".")
    return f"layer {parts[2]} {parts[4]}"


@dataclass
class _Call:
    """What all layers of one forward call share, and what they keep for the caller."""

    position_ids: Tensor
    rotary: tuple[Tensor, Tensor]
    cache: Cache | None
    mask: Tensor | Sequence[Tensor] | None
    attention_fn: AttentionFn | None
    linear_fn: LinearFn | None
    head_mask: Tensor | None
    channel_mask: Tensor | None
    kept: dict[str, list[Tensor]]
    linear_inputs: dict[str, Tensor] | None

    def linear(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        if self.linear_inputs is not None:
            self.linear_inputs[name] = x
        return x @ weight.T if self.linear_fn is None else self.linear_fn(name, x, weight)

    def wants(self, name: str) -> bool:
        return name in self.kept

    def keep(self, name: str, value: Tensor) -> None:
        if name in self.kept:
            self.kept[name].append(value)

    def records(self) -> dict[str, Any]:
        missing = [name for name, parts in self.kept.items() if not parts]
        if missing:
            raise ValueError(f"no layer of this call computes {', '.join(missing)}; drop it from record")
        stacked: dict[str, Any] = {name: torch.stack(parts) for name, parts in self.kept.items()}
        return stacked if self.linear_inputs is None else stacked | {"linear_inputs": self.linear_inputs}
