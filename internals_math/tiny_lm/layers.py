"""The parts of the decoder: its shape, its weights under Hugging Face's names, and the two functions it is made of.

Notation: D = hidden_size, F = intermediate_size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from internals_math.tiny_lm.vocabulary import VOCAB_SIZE


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
    sliding_window: int | None = None  # each position sees itself and the sliding_window - 1 before it

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be at least 0, got {self.num_hidden_layers}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads}) into heads of even width (rotary pairs)"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1 (None = no window), got {self.sliding_window}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


Factory = Callable[[ModelConfig], nn.Module]


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig, attention: Factory, feed_forward: Factory) -> None:
        super().__init__()
        self.input_layernorm = Norm(config)
        self.self_attn = attention(config)
        self.post_attention_layernorm = Norm(config)
        self.mlp = feed_forward(config)


class Decoder(nn.Module):
    """Embedding, layers and final norm, under the names of Hugging Face's LlamaModel."""

    def __init__(self, config: ModelConfig, attention: Factory, feed_forward: Factory) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, attention, feed_forward) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config)
