"""Rotary embeddings of Hugging Face and of three lines of complex numbers."""

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from internals_math import tiny_lm
from internals_math.rope import (
    apply_rotary,
    ntk_scaled_base,
    permute_half_to_interleaved,
    rope_angles,
    rope_cos_sin,
    rope_frequencies,
)
from tests.oracles import Oracle, largest_difference, randn


def _llama() -> float:
    """The half layout, in the float32 that Llama uses."""
    parameters = {"rope_type": "default", "rope_theta": 100.0}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=parameters)
    q, k = (randn(1, 4, 9, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(q, torch.arange(9)[None])
    theirs = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)
    turn = rope_cos_sin(torch.arange(9), rope_frequencies(8, 100.0).float())
    return largest_difference(torch.stack([apply_rotary(x, *turn) for x in (q, k)]), torch.stack(theirs))


def _rotate_half() -> float:
    """A quarter turn of every pair is Llama's rotate_half: cos 0, sin 1."""
    x = randn(3, 5, 8, seed=3)
    ours = apply_rotary(x, torch.zeros_like(x), torch.ones_like(x))
    return largest_difference(ours, modeling_llama.rotate_half(x))


def _gptj() -> float:
    """The interleaved layout; GPT-J takes sine before cosine."""
    places, inv_freq = torch.arange(6), rope_frequencies(8)
    x = randn(1, 6, 2, 8, seed=4)  # (B, T, H, d)
    angles = rope_angles(places, inv_freq)[None]
    theirs = modeling_gptj.apply_rotary_pos_emb(x, angles.sin(), angles.cos())
    ours = apply_rotary(x.transpose(1, 2), *rope_cos_sin(places, inv_freq, "interleaved"), "interleaved")
    return largest_difference(ours.transpose(1, 2), theirs)


def _complex_numbers() -> float:
    x, places, inv_freq = randn(7, 8, seed=5), torch.arange(7), rope_frequencies(8)
    turns = torch.polar(torch.ones(7, 4, dtype=torch.float64), places[:, None] * inv_freq)
    turned = torch.view_as_real(torch.view_as_complex(torch.stack([x[:, :4], x[:, 4:]], dim=-1)) * turns)
    theirs = torch.cat([turned[..., 0], turned[..., 1]], dim=-1)
    return largest_difference(apply_rotary(x, *rope_cos_sin(places, inv_freq)), theirs)


def _layouts() -> float:
    """Scores of the tiny LM's own weights: Llama's layout, against GPT-J's after a permutation of the rows."""
    attention = tiny_lm.load("base_seed1").model.get_submodule("layers.0.self_attn")
    x, places = randn(1, 9, 32, seed=6, dtype=torch.float32), torch.arange(9)
    angles = rope_angles(places, rope_frequencies(8, 100.0))[None].float()

    def project(name: str, *, permute: bool) -> Tensor:
        weight = attention.get_parameter(f"{name}.weight")
        return (x @ (permute_half_to_interleaved(weight, 4) if permute else weight).T).view(1, 9, 4, 8)

    turn = rope_cos_sin(places, rope_frequencies(8, 100.0).float())
    q, k = (apply_rotary(project(name, permute=False).transpose(1, 2), *turn) for name in ("q_proj", "k_proj"))
    q_gptj, k_gptj = (
        modeling_gptj.apply_rotary_pos_emb(project(name, permute=True), angles.sin(), angles.cos()).transpose(1, 2)
        for name in ("q_proj", "k_proj")
    )
    return largest_difference(q @ k.mT, q_gptj @ k_gptj.mT)


def _frequencies(kind: str, scale: float) -> Tensor:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": scale}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128, rope_parameters=parameters)
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=256)[0].double()


def _linear(scale: float) -> float:
    return largest_difference(rope_frequencies(16) / scale, _frequencies("linear", scale))


def _dynamic(scale: float) -> float:
    """At length n the dynamic form is the static NTK base with factor s n / L - (s - 1); here n = 2 L."""
    factor = scale * 256 / 128 - (scale - 1)
    return largest_difference(rope_frequencies(16, ntk_scaled_base(1e4, 16, factor)), _frequencies("dynamic", scale))


LLAMA, GPTJ = "transformers: LlamaRotaryEmbedding, apply_rotary_pos_emb", "transformers: GPT-J apply_rotary_pos_emb"
INIT = "transformers: ROPE_INIT_FUNCTIONS"
ROWS = (
    Oracle("half layout, float32", _llama, 1e-6, LLAMA),
    Oracle("a quarter turn of every pair", _rotate_half, 0, "transformers: rotate_half"),
    Oracle("interleaved layout", _gptj, 1e-12, GPTJ),
    Oracle("half layout as complex numbers", _complex_numbers, 1e-12, "torch.polar and torch.view_as_complex"),
    # scores of trained weights are up to 30, and float32 keeps 7 digits
    Oracle("scores of trained weights in both layouts", _layouts, 1e-4, GPTJ),
    # Hugging Face rounds frequencies, at most 1, to float32
    *(Oracle(f"linear scaling by {scale:g}", lambda s=scale: _linear(s), 1e-7, INIT) for scale in (1.0, 2.0, 8.0)),
    *(Oracle(f"NTK scaling by {scale:g}", lambda s=scale: _dynamic(s), 1e-7, INIT) for scale in (1.0, 2.0, 8.0)),
)
