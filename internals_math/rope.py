"""Rotary Position Embedding: turn query and key by their position, and the score sees only the distance.

Notation: d = head_dim, j = pair index 0 .. d/2 - 1, m = query position, n = key position, Δ = m - n,
theta_j = base^(-2j/d).
Source: Su et al. 2021, RoFormer, arXiv 2104.09864: eq. 13 (2-D matrix), 16 (relative form), 34 (element-wise form),
35-37 (decay). Position Interpolation: arXiv 2306.15595. NTK-aware base: discussed in YaRN, arXiv 2309.00071.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option

Layout = str  # one of LAYOUTS
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
    angles = torch.cat([angles, angles], dim=-1) if layout == "half" else angles.repeat_interleave(2, dim=-1)
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


# -- what the video shows ----------------------------------------------------------------------------------------------

SHOWN_DISTANCES = 65  # 0 .. 64, the length the tiny LM was trained on
LONG_SHIFTS = (1, 7, 100, 1000)
LINE = 12  # tokens of a closed-book line; losses are averaged over the lines, each without its first word
SWAP_TEXT = "the fox took the lamp to the cat . the"  # what comes next is who got the lamp
SWAPPED = (2, 8)  # positions of the two words that change places in the order test: fox and cat
APART = 3  # places of the query, from its own on, while the key stays
STEPS_PER_WORD = 4  # the waves are drawn finer than words, which would turn a fast one into a zigzag


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    base: float = option(100.0, "base of the frequencies; the tiny LM was trained with 100", minimum=2, maximum=1e7)
    query_index: int = option(7, "position of the query's word in the prompt", minimum=1, maximum=12)
    key_index: int = option(5, "position of the key's word in the prompt", minimum=0, maximum=12)
    shift_max: int = option(44, "how far both words are moved", minimum=12, maximum=200)
    layer: int = option(2, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(2, "attention head to show", minimum=0, maximum=3)
    prompt: str = option("one day the old fox found a", "words of the story world, 6 to 12 of them")
    scale: float = option(4.0, "how many times longer than trained", minimum=1, maximum=16)

    def check(self) -> None:
        from internals_math import tiny_lm  # the model is built on this module's functions

        tiny_lm.encode(self.prompt)
        words = len(self.prompt.split())
        if not 6 <= words <= 12:
            raise ValueError(f"prompt must have 6 to 12 words, got {words}")
        if not self.key_index <= self.query_index <= words:
            raise ValueError(
                f"key_index <= query_index <= {words} (the last word) must hold, got {self.key_index} and "
                f"{self.query_index}"
            )


@dataclass(frozen=True, eq=False)
class SwapTest:
    """The last word's attention in the first layer when two earlier words change places."""

    head: int  # of the first layer: the one whose output changes most when positions are on
    tokens_before: tuple[str, ...]
    tokens_after: tuple[str, ...]
    weights_before: Float[Tensor, " T"]  # all positions set to 0
    weights_after: Float[Tensor, " T"]
    output_before: Float[Tensor, " d"]
    output_after: Float[Tensor, " d"]
    rope_weights_before: Float[Tensor, " T"]  # true positions
    rope_weights_after: Float[Tensor, " T"]
    rope_output_before: Float[Tensor, " d"]
    rope_output_after: Float[Tensor, " d"]
    positions_without: Int[Tensor, " T"]  # all 0
    positions_with: Int[Tensor, " T"]
    change_without: float  # max |difference| of the first layer's output (all heads)
    change_with: float
    change_last_without: float  # the same after the last layer: the causal mask leaks order
    change_last_with: float


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Pairs run from fast to slow; S = shift_max + 1 shifts."""

    config: Config
    tokens: tuple[str, ...]
    inv_freq: Float[Tensor, " pairs"]  # radians per position
    wavelengths: Float[Tensor, " pairs"]  # positions per turn
    query_token: str
    key_token: str
    q: Float[Tensor, " d"]  # before the rotation
    k: Float[Tensor, " d"]
    q_pairs: Float[Tensor, "pairs 2"]
    k_pairs: Float[Tensor, "pairs 2"]
    shifts: Int[Tensor, " S"]
    query_positions: Int[Tensor, " S"]
    key_positions: Int[Tensor, " S"]
    q_turned: Float[Tensor, "S pairs 1 2"]  # the query at positions 0 .. shift_max, one arrow
    arrows_by_shift: Float[Tensor, "S pairs 2 2"]  # query and key, both moved by the shift
    turn_angles: Float[Tensor, "S pairs"]  # direction of the query at position m, radians
    turns: Float[Tensor, "S pairs"]  # full turns after m positions
    angle_between: Float[Tensor, "S pairs"]  # degrees from key to query, -180 .. 180
    score_by_shift: Float[Tensor, " S"]  # q · k after both rotations
    score_spread: float
    word_distance: int  # from the key's word to the query's
    apart_positions: Int[Tensor, " apart"]  # of the query, when it moves on alone
    arrows_apart: Float[Tensor, "apart pairs 2 2"]  # query and key, the key at its own place
    apart_angles: Float[Tensor, "apart pairs"]  # degrees from key to query
    score_apart: Float[Tensor, " apart"]
    distances: Int[Tensor, " n"]
    contributions: Float[Tensor, "pairs n"]
    partial_sums: Float[Tensor, "pairs n"]  # the first 1, 2, … pairs added
    score_by_distance: Float[Tensor, " n"]
    wave_distances: Float[Tensor, " fine"]  # the same span in quarters of a word, for drawing
    waves: Float[Tensor, "pairs fine"]
    wave_sums: Float[Tensor, "pairs fine"]  # the first 1, 2, … waves added
    score_positions: Int[Tensor, " T"]
    score_matrix_plain: Float[Tensor, "T T"]
    score_matrix_rope: Float[Tensor, "T T"]
    shift_test_shifts: Int[Tensor, " k"]
    shift_test_diff: Float[Tensor, " k"]  # max |difference of logits|
    shifted_positions: Int[Tensor, "k T"]
    score_matrix_shifted: Float[Tensor, "k T T"]
    swap_test: SwapTest
    train_length: int
    loss_positions: Float[Tensor, " blocks"]  # middle of each line of the long text
    loss_none: Float[Tensor, " blocks"]
    loss_linear: Float[Tensor, " blocks"]
    loss_ntk: Float[Tensor, " blocks"]
    loss_floor: Float[Tensor, " blocks"]
    inv_freq_linear: Float[Tensor, " pairs"]
    inv_freq_ntk: Float[Tensor, " pairs"]
    trained_arc: Float[Tensor, " 2"]  # radians: from and to where the slowest hand turns within the trained length
    slow_hand_none: Float[Tensor, "blocks 1 2"]  # direction of the slowest hand at loss_positions
    slow_hand_linear: Float[Tensor, "blocks 1 2"]
    slow_hand_ntk: Float[Tensor, "blocks 1 2"]
    decay_distances: Int[Tensor, " m"]
    decay_curve: Float[Tensor, " m"]  # head_dim 128, base 10,000


@torch.no_grad()
def trace(config: Config) -> Trace:
    """Read one head's query and key, move them, and test what the model sees of positions."""
    from internals_math import tiny_lm  # the model is built on this module's functions

    model = tiny_lm.load("base_seed1")
    ids = torch.tensor([tiny_lm.encode(config.prompt)])
    layer, head = config.layer, config.head
    inv_freq = rope_frequencies(model.config.head_dim, config.base)
    _, record = model(ids, inv_freq=inv_freq, record=("q", "k"))
    queries, keys = record["q"][layer, 0, head], record["k"][layer, 0, head]  # (T, d)
    q, k = queries[config.query_index], keys[config.key_index]

    shifts = torch.arange(config.shift_max + 1)
    moved_q = _turn(q.expand(len(shifts), -1), shifts + config.query_index, inv_freq)
    moved_k = _turn(k.expand(len(shifts), -1), shifts + config.key_index, inv_freq)
    q_turned = to_pairs(_turn(q.expand(len(shifts), -1), shifts, inv_freq))
    arrows = torch.stack([to_pairs(moved_q), to_pairs(moved_k)], dim=2)  # (S, pairs, 2, 2)
    scores = (moved_q * moved_k).sum(dim=-1)
    apart_positions = torch.arange(APART) + config.query_index
    apart_q = _turn(q.expand(APART, -1), apart_positions, inv_freq)
    apart_k = moved_k[:1].expand(APART, -1)
    arrows_apart = torch.stack([to_pairs(apart_q), to_pairs(apart_k)], dim=2)  # (apart, pairs, 2, 2)
    distances = torch.arange(SHOWN_DISTANCES)
    contributions = pair_contributions(q, k, inv_freq, distances).float()
    wave_distances = torch.arange((SHOWN_DISTANCES - 1) * STEPS_PER_WORD + 1) / STEPS_PER_WORD
    waves = pair_contributions(q, k, inv_freq, wave_distances).float()
    places = torch.arange(ids.shape[1])
    tokens = tiny_lm.tokens(ids[0])
    decay_distances = torch.arange(251)
    return Trace(
        config=config,
        tokens=tokens,
        inv_freq=inv_freq.float(),
        wavelengths=wavelengths(inv_freq).float(),
        query_token=tokens[config.query_index],
        key_token=tokens[config.key_index],
        q=q,
        k=k,
        q_pairs=to_pairs(q),
        k_pairs=to_pairs(k),
        shifts=shifts,
        query_positions=shifts + config.query_index,
        key_positions=shifts + config.key_index,
        q_turned=q_turned[:, :, None],
        arrows_by_shift=arrows,
        turn_angles=_angle(q_turned),
        turns=(shifts[:, None] * inv_freq / (2 * math.pi)).float(),
        angle_between=_degrees_between(arrows),
        score_by_shift=scores,
        score_spread=float(scores.max() - scores.min()),
        word_distance=config.query_index - config.key_index,
        apart_positions=apart_positions,
        arrows_apart=arrows_apart,
        apart_angles=_degrees_between(arrows_apart),
        score_apart=(apart_q * apart_k).sum(dim=-1),
        distances=distances,
        contributions=contributions,
        partial_sums=contributions.cumsum(dim=0),
        score_by_distance=contributions.sum(dim=0),
        wave_distances=wave_distances,
        waves=waves,
        wave_sums=waves.cumsum(dim=0),
        score_positions=places,
        score_matrix_plain=queries @ keys.T,
        score_matrix_rope=_rotated_scores(queries, keys, places, inv_freq),
        **_shift_test(model, ids, inv_freq),
        shifted_positions=torch.stack([places + shift for shift in LONG_SHIFTS]),
        score_matrix_shifted=torch.stack(
            [_rotated_scores(queries, keys, places + shift, inv_freq) for shift in LONG_SHIFTS]
        ),
        swap_test=_swap_test(model, inv_freq),
        **_long_run(model, config, inv_freq),
        decay_distances=decay_distances,
        decay_curve=decay_bound(128, 10000.0, decay_distances).float(),
    )


def _turn(
    x: Float[Tensor, "T d"], positions: Int[Tensor, " T"], inv_freq: Float[Tensor, " d_half"]
) -> Float[Tensor, "T d"]:
    return apply_rotary(x, *rope_cos_sin(positions, inv_freq))


def _rotated_scores(
    queries: Float[Tensor, "T d"], keys: Float[Tensor, "T d"], positions: Int[Tensor, " T"], inv_freq: Tensor
) -> Float[Tensor, "T T"]:
    return _turn(queries, positions, inv_freq) @ _turn(keys, positions, inv_freq).T


def _degrees_between(arrows: Float[Tensor, "n pairs 2 2"]) -> Float[Tensor, "n pairs"]:
    """Return the angle from the second arrow to the first, in -180 .. 180."""
    between = _angle(arrows[:, :, 0]) - _angle(arrows[:, :, 1])
    return torch.rad2deg(torch.remainder(between + math.pi, 2 * math.pi) - math.pi)


def _shift_test(model: Any, ids: Tensor, inv_freq: Tensor) -> dict[str, Tensor]:
    """Move the whole text and compare the logits."""
    places = torch.arange(ids.shape[1])
    here = model(ids, inv_freq=inv_freq)
    moved = [model(ids, position_ids=places + shift, inv_freq=inv_freq) for shift in LONG_SHIFTS]
    diff = torch.stack([(logits - here).abs().max() for logits in moved])
    return {"shift_test_shifts": torch.tensor(LONG_SHIFTS), "shift_test_diff": diff}


def _swap_test(model: Any, inv_freq: Tensor) -> SwapTest:
    """Let two words change places and look at what the last word sees, with and without positions."""
    from internals_math import tiny_lm

    ids = torch.tensor([tiny_lm.encode(SWAP_TEXT)])
    first, second = SWAPPED
    order = list(range(ids.shape[1]))
    order[first], order[second] = second, first
    swapped = ids[:, order]
    nowhere, places = torch.zeros(ids.shape[1], dtype=torch.long), torch.arange(ids.shape[1])

    def look(text: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        names = ("weights", "v", "head_outputs", "residual")
        _, record = model(text, position_ids=positions, inv_freq=inv_freq, record=names)
        weights = record["weights"][0, 0, :, -1]  # (H, T) of the last word in the first layer
        outputs = (weights[:, None] @ record["v"][0, 0])[:, 0]  # (H, d)
        return weights, outputs, record["head_outputs"][0, 0, :, -1].sum(dim=0), record["residual"][-1, 0, -1]

    blind, blind_swapped = look(ids, nowhere), look(swapped, nowhere)
    seeing, seeing_swapped = look(ids, places), look(swapped, places)
    head = int((seeing[1] - seeing_swapped[1]).abs().amax(dim=-1).argmax())

    def change(one: tuple[Tensor, ...], other: tuple[Tensor, ...], part: int) -> float:
        return float((one[part] - other[part]).abs().max())

    return SwapTest(
        head=head,
        tokens_before=tiny_lm.tokens(ids[0]),
        tokens_after=tiny_lm.tokens(swapped[0]),
        weights_before=blind[0][head],
        weights_after=blind_swapped[0][head],
        output_before=blind[1][head],
        output_after=blind_swapped[1][head],
        rope_weights_before=seeing[0][head],
        rope_weights_after=seeing_swapped[0][head],
        rope_output_before=seeing[1][head],
        rope_output_after=seeing_swapped[1][head],
        positions_without=nowhere,
        positions_with=places,
        change_without=change(blind, blind_swapped, 2),
        change_with=change(seeing, seeing_swapped, 2),
        change_last_without=change(blind, blind_swapped, 3),
        change_last_with=change(seeing, seeing_swapped, 3),
    )


def _long_run(model: Any, config: Config, inv_freq: Tensor) -> dict[str, Any]:
    """Measure the loss by position on texts four times longer than any training row, without fine-tuning.

    A line's first word is left out: no training text has a fifth line, so there the model expects <eos> whatever the
    positions are, and that surprise of 15 nats would bury what the positions do.
    """
    from internals_math import tiny_lm

    text = tiny_lm.long_text()
    length = text.ids.shape[1]
    places = torch.arange(length)
    ntk = rope_frequencies(model.config.head_dim, ntk_scaled_base(config.base, model.config.head_dim, config.scale))
    runs = {
        "loss_none": {"position_ids": places, "inv_freq": inv_freq},
        "loss_linear": {"position_ids": interpolate_positions(places, config.scale), "inv_freq": inv_freq},
        "loss_ntk": {"position_ids": places, "inv_freq": ntk},
    }
    blocks = (length - 1) // LINE

    def by_line(losses: Tensor) -> Tensor:
        return losses[:, : blocks * LINE].reshape(-1, blocks, LINE)[:, :, 1:].mean(dim=(0, 2))

    measured = {name: by_line(tiny_lm.token_losses(model, text.ids, **how)) for name, how in runs.items()}
    middles = torch.arange(blocks) * float(LINE) + LINE / 2

    def slow_hand(inv_freq: Tensor) -> Tensor:
        angles = rope_angles(middles, inv_freq[-1:]).float()  # (blocks, 1)
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    trained = SHOWN_DISTANCES - 1
    return {
        **measured,
        "trained_arc": torch.tensor([0.0, trained * float(inv_freq[-1])]),
        "slow_hand_none": slow_hand(inv_freq),
        "slow_hand_linear": slow_hand(inv_freq / config.scale),
        "slow_hand_ntk": slow_hand(ntk),
        "loss_floor": by_line(text.surprisal),
        "loss_positions": middles,
        "train_length": trained,
        "inv_freq_linear": (inv_freq / config.scale).float(),
        "inv_freq_ntk": ntk.float(),
    }
