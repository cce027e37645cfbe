"""Rotary Position Embedding: turn query and key by their position, and the score sees only the distance.

Notation: d = head_dim, j = pair index 0 .. d/2 - 1, m = query position, n = key position, Δ = m - n,
theta_j = base^(-2j/d).
Source: Su et al. 2021, RoFormer, arXiv 2104.09864: eq. 13 (2-D matrix), 16 (relative form), 34 (element-wise form),
35-37 (decay). Position Interpolation: arXiv 2306.15595. NTK-aware base: discussed in YaRN, arXiv 2309.00071.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Layout = Literal["half", "interleaved"]
LAYOUTS = ("half", "interleaved")


def rope_frequencies(head_dim: int, base: float = 10000.0) -> Float[Tensor, " d_half"]:
    """Return theta_j = base^(-2j/d) in float64, fastest first, in radians per position.

    Raises:
        ValueError: head_dim is odd or below 2, or base is not above 1.

    >>> rope_frequencies(8, base=10000.0)
    tensor([1.0000, 0.1000, 0.0100, 0.0010], dtype=torch.float64)
    """
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim must be even and at least 2, got {head_dim}")
    if not base > 1:
        raise ValueError(f"base must be > 1, got {base}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return float(base) ** -exponents


def wavelengths(inv_freq: Float[Tensor, " d_half"]) -> Float[Tensor, " d_half"]:
    """Return the number of positions each pair needs for one full turn."""
    return 2 * math.pi / inv_freq


def rope_angles(
    positions: Shaped[Tensor, "*batch T"], inv_freq: Float[Tensor, " d_half"]
) -> Float[Tensor, "*batch T d_half"]:
    """Return position · theta_j in radians, in at least float32; positions may be fractional or negative."""
    wide = torch.promote_types(inv_freq.dtype, positions.dtype if positions.is_floating_point() else inv_freq.dtype)
    dtype = torch.promote_types(wide, torch.float32)
    return positions.to(dtype)[..., None] * inv_freq.to(dtype)


def rope_cos_sin(
    positions: Shaped[Tensor, "*batch T"], inv_freq: Float[Tensor, " d_half"], layout: Layout = "half"
) -> tuple[Float[Tensor, "*batch T d"], Float[Tensor, "*batch T d"]]:
    """Return the cosines and sines that `apply_rotary` multiplies with, laid out for `layout`."""
    _check_layout(layout)
    angles = rope_angles(positions, inv_freq)
    if layout == "half":
        angles = torch.cat([angles, angles], dim=-1)
    else:
        angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(
    x: Float[Tensor, "*batch T d"],
    cos: Float[Tensor, "..."],
    sin: Float[Tensor, "..."],
    layout: Layout = "half",
) -> Float[Tensor, "*batch T d"]:
    """Rotate every pair of x by its angle; the result has the dtype of x.

    Args:
        x: (..., T, d) queries or keys.
        cos, sin: (..., T, d) from `rope_cos_sin` with the same layout.
        layout: "half" pairs (j, j + d/2) as in Hugging Face Llama; "interleaved" pairs (2j, 2j + 1) as in the paper.

    Raises:
        ValueError: unknown layout, or last axes that differ.
    """
    _check_layout(layout)
    if x.shape[-1] != cos.shape[-1] or cos.shape != sin.shape:
        raise ValueError(
            f"x, cos and sin need the same last axis, got {x.shape[-1]}, {cos.shape[-1]} and {sin.shape[-1]}"
        )
    return (x * cos + _quarter_turn(x, layout) * sin).to(x.dtype)


def apply_rotary_complex(
    x: Float[Tensor, "*batch T d"], positions: Shaped[Tensor, " T"], inv_freq: Float[Tensor, " d_half"]
) -> Float[Tensor, "*batch T d"]:
    """Rotate interleaved pairs as complex numbers: z -> z · e^(i m theta)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    angles = rope_angles(positions, inv_freq)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotation_matrix(
    position: float, inv_freq: Float[Tensor, " d_half"], layout: Layout = "half"
) -> Float[Tensor, "d d"]:
    """Return the block rotation R_m as a matrix (eq. 13), so that R_m @ x rotates a column vector."""
    _check_layout(layout)
    half = len(inv_freq)
    matrix = torch.zeros(2 * half, 2 * half, dtype=torch.float64)
    for j, theta in enumerate(inv_freq.double().tolist()):
        a, b = (j, j + half) if layout == "half" else (2 * j, 2 * j + 1)
        cos, sin = math.cos(position * theta), math.sin(position * theta)
        matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


def to_pairs(x: Float[Tensor, "*batch d"], layout: Layout = "half") -> Float[Tensor, "*batch d_half 2"]:
    """Return the plane coordinates (a, b) of every pair, in pair order."""
    _check_layout(layout)
    if layout == "half":
        return torch.stack(x.chunk(2, dim=-1), dim=-1)
    return x.reshape(*x.shape[:-1], -1, 2)


def permute_interleaved_to_half(weight: Float[Tensor, "HD D"], num_heads: int) -> Float[Tensor, "HD D"]:
    """Reorder the rows of W_q or W_k, head by head, from interleaved pairs to the half layout."""
    return weight[_row_order(weight.shape[0], num_heads)]


def permute_half_to_interleaved(weight: Float[Tensor, "HD D"], num_heads: int) -> Float[Tensor, "HD D"]:
    """Undo `permute_interleaved_to_half`."""
    return weight[_row_order(weight.shape[0], num_heads).argsort()]


def pair_contributions(
    q: Float[Tensor, " d"],
    k: Float[Tensor, " d"],
    inv_freq: Float[Tensor, " d_half"],
    distances: Shaped[Tensor, " n"],
    layout: Layout = "half",
) -> Float[Tensor, "d_half n"]:
    """Return each pair's part of the score at each distance: |q_j| |k_j| cos(Δ theta_j + φ_j)."""
    q_pairs, k_pairs = to_pairs(q, layout), to_pairs(k, layout)
    size = q_pairs.norm(dim=-1) * k_pairs.norm(dim=-1)
    phase = _angle(q_pairs) - _angle(k_pairs)
    angles = rope_angles(distances, inv_freq).T + phase[:, None]
    return size[:, None] * angles.cos()


def relative_score(
    q: Float[Tensor, " d"],
    k: Float[Tensor, " d"],
    inv_freq: Float[Tensor, " d_half"],
    distances: Shaped[Tensor, " n"],
    layout: Layout = "half",
) -> Float[Tensor, " n"]:
    """Return the dot product of the rotated vectors as a function of Δ = m - n alone (no 1/sqrt(d))."""
    return pair_contributions(q, k, inv_freq, distances, layout).sum(dim=0)


def decay_bound(head_dim: int, base: float, distances: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return B(Δ), the mean of |S_1| .. |S_{d/2}| with S_j the partial sums of e^(iΔ theta) (section 3.4.3)."""
    angles = rope_angles(distances, rope_frequencies(head_dim, base))
    partial_sums = torch.polar(torch.ones_like(angles), angles).cumsum(dim=-1)
    return partial_sums.abs().mean(dim=-1)


def interpolate_positions(positions: Shaped[Tensor, "..."], scale: float) -> Float[Tensor, "..."]:
    """Return positions / scale (Position Interpolation): every hand turns `scale` times slower."""
    _check_scale(scale)
    return positions / scale


def ntk_scaled_base(base: float, head_dim: int, scale: float) -> float:
    """Return base · scale^(d/(d-2)): the fastest pair keeps its speed, the slowest turns `scale` times slower."""
    _check_scale(scale)
    if head_dim < 4 or head_dim % 2:
        raise ValueError(f"head_dim must be even and at least 4 for an NTK base, got {head_dim}")
    return base * scale ** (head_dim / (head_dim - 2))


def _quarter_turn(x: Tensor, layout: Layout) -> Tensor:
    """Turn every pair by 90 degrees: (a, b) -> (-b, a)."""
    if layout == "half":
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)
    return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)


def _angle(pairs: Tensor) -> Tensor:
    return torch.atan2(pairs[..., 1], pairs[..., 0])


def _row_order(rows: int, num_heads: int) -> Tensor:
    if num_heads < 1 or rows % (2 * num_heads):
        raise ValueError(f"the rows ({rows}) must be an even number for each of num_heads ({num_heads})")
    order = torch.arange(rows).view(num_heads, -1, 2)  # (H, d/2, 2): the interleaved pairs
    return order.transpose(1, 2).reshape(-1)


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def _check_scale(scale: float) -> None:
    if not scale >= 1:
        raise ValueError(f"scale must be >= 1, got {scale}")
