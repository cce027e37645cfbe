"""Multi-head latent attention: cache one short latent per token, and let every head rebuild its own keys and values.

Notation, as in the paper: d = model width, h = heads, dh = width of a head's content key, dv = of its value, c = width
of the cached latent (kv_lora_rank, the paper's d_c), cq = of the query latent (q_lora_rank, d_c'), r = of the rotary
key (qk_rope_head_dim, d_h^R), n queries over m cached tokens. In the trace: T tokens.
Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv 2405.04434, sections 2.1.2 to 2.1.4, equations 9 to 19 and Table 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from internals_math import tiny_lm
from internals_math.attention import causal_mask, masked_softmax
from internals_math.checks import check_sizes
from internals_math.model_shapes import LatentShape, ModelShape, preset
from internals_math.rope import apply_rotary, rope_cos_sin, rope_frequencies, rotation_matrix
from internals_math.trace import TopicConfig, TopicTrace, option


@dataclass(frozen=True, eq=False)
class MLAWeights:
    """The matrices of one layer, (out, in) as in nn.Linear: a head is a block of rows, in w_o a block of columns.

    Args:
        w_dq: down-projection of the query; None: w_uq and w_qr read the hidden state itself (DeepSeek-V2-Lite).
        q_norm, kv_norm: weights of the RMSNorm after each down-projection; None = no norm.
        rope_layout: which elements of the rotary parts make a pair, see `rope.apply_rotary`.

    Raises:
        ValueError: an odd qk_rope_head_dim, a size below 1, or a matrix that does not fit the sizes.
    """

    w_dq: Float[Tensor, "cq d"] | None
    w_uq: Float[Tensor, "h_dh cq"]
    w_qr: Float[Tensor, "h_r cq"]
    w_dkv: Float[Tensor, "c d"]
    w_uk: Float[Tensor, "h_dh c"]
    w_uv: Float[Tensor, "h_dv c"]
    w_kr: Float[Tensor, "r d"]
    w_o: Float[Tensor, "d h_dv"]
    q_norm: Float[Tensor, " cq"] | None
    kv_norm: Float[Tensor, " c"] | None
    num_heads: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    rope_layout: str = "half"

    def __post_init__(self) -> None:
        check_sizes(
            num_heads=self.num_heads,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
        )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even (rotary pairs), got {self.qk_rope_head_dim}")
        d, c = self.w_o.shape[0], self.w_dkv.shape[0]
        cq = d if self.w_dq is None else self.w_dq.shape[0]
        shapes = {
            "w_dq": (cq, d),
            "w_uq": (self.num_heads * self.qk_nope_head_dim, cq),
            "w_qr": (self.num_heads * self.qk_rope_head_dim, cq),
            "w_dkv": (c, d),
            "w_uk": (self.num_heads * self.qk_nope_head_dim, c),
            "w_uv": (self.num_heads * self.v_head_dim, c),
            "w_kr": (self.qk_rope_head_dim, d),
            "w_o": (d, self.num_heads * self.v_head_dim),
            "q_norm": (cq,),
            "kv_norm": (c,),
        }
        for name, shape in shapes.items():
            weight = getattr(self, name)
            if weight is not None and tuple(weight.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(weight.shape)}")

    @property
    def scale(self) -> float:
        """Return 1 / sqrt(dh + r), whatever width the keys have that are really multiplied."""
        return 1 / math.sqrt(self.qk_nope_head_dim + self.qk_rope_head_dim)


@dataclass(frozen=True, eq=False)
class AbsorbedWeights:
    """What is left when keys and values never exist: one matrix before the latents, one after them, per head."""

    w_uk_per_head: Float[Tensor, "h dh c"]  # a query times this is a query in latent space
    w_ov: Float[Tensor, "h d c"]  # W_O times W_UV


def compress(
    hidden: Float[Tensor, "*batch T d"], w: MLAWeights, positions: Shaped[Tensor, "*positions"]
) -> tuple[Float[Tensor, "*batch T c"], Float[Tensor, "*batch T r"]]:
    """Return (c_kv, k_rope), exactly what is cached: the normalized latent (eq. 9) and the rotated key (eq. 15).

    Raises:
        ValueError: positions that are not one for each token.
    """
    rotary = _rotary(hidden, w, positions)
    latent = _norm(hidden @ w.w_dkv.T, w.kv_norm, w.norm_eps)
    return latent, apply_rotary(hidden @ w.w_kr.T, *rotary, w.rope_layout)


def project_queries(
    hidden: Float[Tensor, "*batch T d"], w: MLAWeights, positions: Shaped[Tensor, "*positions"]
) -> tuple[Float[Tensor, "*batch h T dh"], Float[Tensor, "*batch h T r"]]:
    """Return (q_nope, q_rope) of every head (eq. 12 to 14), the second already rotated.

    Raises:
        ValueError: positions that are not one for each token.
    """
    cos, sin = (part.unsqueeze(-3) for part in _rotary(hidden, w, positions))  # the same for all heads
    latent = hidden if w.w_dq is None else _norm(hidden @ w.w_dq.T, w.q_norm, w.norm_eps)
    q_rope = _heads(latent @ w.w_qr.T, w.num_heads)
    return _heads(latent @ w.w_uq.T, w.num_heads), apply_rotary(q_rope, cos, sin, w.rope_layout)


def expand(
    c_kv: Float[Tensor, "*batch m c"], w: MLAWeights
) -> tuple[Float[Tensor, "*batch h m dh"], Float[Tensor, "*batch h m dv"]]:
    """Return the content keys and the values that every head makes of the latents (eq. 10 and 11)."""
    return _heads(c_kv @ w.w_uk.T, w.num_heads), _heads(c_kv @ w.w_uv.T, w.num_heads)


def mla_attention_expanded(
    q_nope: Float[Tensor, "*batch h n dh"],
    q_rope: Float[Tensor, "*batch h n r"],
    c_kv: Float[Tensor, "*batch m c"],
    k_rope: Float[Tensor, "*batch m r"],
    w: MLAWeights,
    *,
    is_causal: bool = True,
    mask: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch h n m"]]:
    """Return (u, weights) by rebuilding every key and value (eq. 16 to 19): right for a whole prompt.

    The causal mask is aligned to the last token: query i sees token j iff j <= i + (m - n).

    Args:
        c_kv, k_rope: of all tokens so far, as `compress` returns them.
        mask: True = visible, in place of the causal mask.

    Raises:
        ValueError: inputs that do not fit the weights or each other, or more queries than tokens in a causal call.
    """
    k_nope, value = expand(c_kv, w)
    content = torch.einsum("...hnd,...hmd->...hnm", q_nope, k_nope)
    weights = _weights(content, q_rope, c_kv, k_rope, w, is_causal, mask)
    output = torch.einsum("...hnm,...hmv->...hnv", weights, value)  # (*batch, h, n, dv)
    return output.transpose(-3, -2).flatten(-2) @ w.w_o.T, weights


def absorb(w: MLAWeights) -> AbsorbedWeights:
    """Return the matrices of a decoding step: W_UK head by head, and W_UV folded into W_O (section 2.1.2)."""
    w_uk = w.w_uk.unflatten(0, (w.num_heads, w.qk_nope_head_dim))
    w_uv = w.w_uv.unflatten(0, (w.num_heads, w.v_head_dim))
    w_o = w.w_o.unflatten(1, (w.num_heads, w.v_head_dim))  # (d, h, dv): columns
    return AbsorbedWeights(w_uk, torch.einsum("dhv,hvc->hdc", w_o, w_uv))


def mla_attention_absorbed(
    q_nope: Float[Tensor, "*batch h n dh"],
    q_rope: Float[Tensor, "*batch h n r"],
    c_kv: Float[Tensor, "*batch m c"],
    k_rope: Float[Tensor, "*batch m r"],
    w: MLAWeights,
    *,
    is_causal: bool = True,
    mask: Bool[Tensor, "..."] | None = None,
    absorbed: AbsorbedWeights | None = None,
) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch h n m"]]:
    """Return the same as `mla_attention_expanded` without ever forming a key or a value: right for decoding.

    `absorbed` is `absorb(w)`, which a decoder computes once.
    """
    absorbed = absorb(w) if absorbed is None else absorbed
    q_latent = q_nope @ absorbed.w_uk_per_head  # (*batch, h, n, c)
    content = torch.einsum("...hnc,...mc->...hnm", q_latent, c_kv)
    weights = _weights(content, q_rope, c_kv, k_rope, w, is_causal, mask)
    mixed = torch.einsum("...hnm,...mc->...hnc", weights, c_kv)
    return torch.einsum("...hnc,hdc->...nd", mixed, absorbed.w_ov), weights


def rope_coupled_matrix(w: MLAWeights, head: int, delta: float) -> Float[Tensor, "cq c"]:
    """Return W_UQᵀ R(delta) W_UK of one head: what would have to be merged if the content keys were rotated (2.1.3).

    Args:
        delta: position of the key minus that of the query.

    Raises:
        ValueError: no such head, or content keys of odd width.
    """
    if not 0 <= head < w.num_heads:
        raise ValueError(f"head must be in 0..{w.num_heads - 1}, got {head}")
    rotation = rotation_matrix(delta, rope_frequencies(w.qk_nope_head_dim, w.rope_theta), w.rope_layout)
    w_uq = w.w_uq.unflatten(0, (w.num_heads, -1))[head]  # (dh, cq)
    w_uk = w.w_uk.unflatten(0, (w.num_heads, -1))[head]  # (dh, c)
    return w_uq.T @ rotation.to(w_uk) @ w_uk


def joint_low_rank_factorization(
    w_k: Float[Tensor, "h_dh d"], w_v: Float[Tensor, "h_dv d"], rank: int
) -> tuple[Float[Tensor, "rank d"], Float[Tensor, "h_dh rank"], Float[Tensor, "h_dv rank"], Float[Tensor, " s"]]:
    """Return (w_dkv, w_uk, w_uv, singular_values) of the best shared latent: a truncated SVD of [W_K; W_V].

    The singular values are those of the whole stack, min(rows, d) of them, largest first.

    Raises:
        ValueError: a rank below 1 or above the smaller side of the stack.
    """
    stacked = torch.cat([w_k, w_v])
    if not 1 <= rank <= min(stacked.shape):
        raise ValueError(f"rank must be in 1..{min(stacked.shape)}, got {rank}")
    left, singular_values, right = torch.linalg.svd(stacked, full_matrices=False)
    w_uk, w_uv = (left[:, :rank] * singular_values[:rank]).split([w_k.shape[0], w_v.shape[0]])
    return right[:rank], w_uk, w_uv, singular_values


def mla_cache_elements_per_token(kv_lora_rank: int, qk_rope_head_dim: int, num_hidden_layers: int = 1) -> int:
    """Return (c + r) · layers: what one token leaves, whatever the number of heads (Table 1)."""
    check_sizes(kv_lora_rank=kv_lora_rank, qk_rope_head_dim=qk_rope_head_dim, num_hidden_layers=num_hidden_layers)
    return (kv_lora_rank + qk_rope_head_dim) * num_hidden_layers


def gqa_equivalent_groups(kv_lora_rank: int, qk_rope_head_dim: int, head_dim: int) -> float:
    """Return how many key-value heads of grouped-query attention weigh the same (Table 1)."""
    check_sizes(head_dim=head_dim)
    return mla_cache_elements_per_token(kv_lora_rank, qk_rope_head_dim) / (2 * head_dim)


def cache_bytes(elements: int, bits: float) -> float:
    """Return the bytes of so many elements.

    Raises:
        ValueError: a negative count, or bits that are not positive.
    """
    if elements < 0 or not bits > 0:
        raise ValueError(f"elements must be at least 0 and bits positive, got {elements} and {bits}")
    return elements * bits / 8


def macs_per_cached_token(
    qk_nope_head_dim: int, qk_rope_head_dim: int, v_head_dim: int, kv_lora_rank: int
) -> tuple[int, int]:
    """Return the multiply-adds of one head and query for one cached token: with rebuilt keys, and absorbed.

    The first leaves out what rebuilding itself costs.
    """
    check_sizes(
        qk_nope_head_dim=qk_nope_head_dim, qk_rope_head_dim=qk_rope_head_dim, v_head_dim=v_head_dim,
        kv_lora_rank=kv_lora_rank,
    )  # fmt: skip
    return qk_nope_head_dim + qk_rope_head_dim + v_head_dim, 2 * kv_lora_rank + qk_rope_head_dim


def _heads(x: Float[Tensor, "*batch T h_width"], num_heads: int) -> Float[Tensor, "*batch h T width"]:
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def _norm(x: Float[Tensor, "*batch T width"], weight: Tensor | None, eps: float) -> Float[Tensor, "*batch T width"]:
    return x if weight is None else tiny_lm.rms_norm(x, weight, eps)


def _rotary(hidden: Tensor, w: MLAWeights, positions: Tensor) -> tuple[Tensor, Tensor]:
    if hidden.shape[-1] != w.w_dkv.shape[1]:
        raise ValueError(f"hidden must be {w.w_dkv.shape[1]} wide, got {hidden.shape[-1]}")
    if positions.ndim == 0 or positions.shape[-1] != hidden.shape[-2]:
        raise ValueError(
            f"each token needs its position, got {hidden.shape[-2]} tokens and positions of shape "
            f"{tuple(positions.shape)}"
        )
    cos, sin = rope_cos_sin(positions, rope_frequencies(w.qk_rope_head_dim, w.rope_theta), w.rope_layout)
    return cos.to(hidden), sin.to(hidden)


def _weights(
    content: Float[Tensor, "*batch h n m"],
    q_rope: Float[Tensor, "*batch h n r"],
    c_kv: Float[Tensor, "*batch m c"],
    k_rope: Float[Tensor, "*batch m r"],
    w: MLAWeights,
    is_causal: bool,
    mask: Tensor | None,
) -> Float[Tensor, "*batch h n m"]:
    """Return the softmax of the scaled sum of content and rotary scores."""
    if c_kv.shape[-2] != k_rope.shape[-2]:
        raise ValueError(f"each latent needs its rotary key, got {c_kv.shape[-2]} latents and {k_rope.shape[-2]} keys")
    scores = (content + rotary_scores(q_rope, k_rope)) * w.scale
    if mask is None and is_causal:
        queries, keys = scores.shape[-2:]
        if queries > keys:
            raise ValueError(
                f"causal attention needs at least as many cached tokens as queries, got {keys} and {queries}"
            )
        mask = causal_mask(queries, keys, device=scores.device)
    return masked_softmax(scores, mask)


def rotary_scores(
    q_rope: Float[Tensor, "*batch h n r"], k_rope: Float[Tensor, "*batch m r"]
) -> Float[Tensor, "*batch h n m"]:
    """Return the dot products with the one rotary key that all heads share, not scaled."""
    return torch.einsum("...hnr,...mr->...hnm", q_rope, k_rope)


# -- what the video shows ----------------------------------------------------------------------------------------------

RANKS = (32, 28, 24, 20, 16, 12, 8, 4)
DISTANCES = 8  # 0 .. 7
SHOWN_ROWS = 16  # of the wall whose directions are counted
SHARED_GROUPS = 2  # of the grouped-query model in the first picture
# Latents of 6 bits on average (section 3.2.3) against a 16-bit cache of DeepSeek-67B: the abstract's 93.3 %.
PAPER_BITS, USUAL_BITS = 6, 16


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`.

    Another kv_lora_rank, qk_rope_head_dim or seed than the default trains a model of its own, about 70 s.
    """

    kv_lora_rank: int = option(8, "width of the cached latent", minimum=4, maximum=32)
    qk_rope_head_dim: int = option(8, "width of the shared rotary key", choices=(2, 4, 8))
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    head: int = option(0, "attention head whose keys are taken apart", minimum=0, maximum=3)
    num_tokens: int = option(8, "tokens of the story", minimum=4, maximum=12)
    story_index: int = option(0, "held-out story to show", minimum=0, maximum=31)
    seed: int = option(0, "of weights and data order of the latent model", minimum=0, maximum=9)


@dataclass(frozen=True, eq=False)
class Caches:
    """What one token leaves in one layer of the tiny LM, by the kind of attention."""

    name: tuple[str, ...]
    elements: Int[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class RankSweep:
    """The tiny LM with [W_K; W_V] of every layer cut to a rank by a plain SVD; nothing is retrained."""

    rank: Int[Tensor, " R"]
    eval_loss: Float[Tensor, " R"]  # held-out nats per token


@dataclass(frozen=True, eq=False)
class Models:
    """Three tiny LMs of (nearly) equal size from the same texts: own memories, one memory, one latent."""

    name: tuple[str, ...]
    cache_elements: Int[Tensor, " M"]  # per token and layer
    num_params: Int[Tensor, " M"]
    eval_loss: Float[Tensor, " M"]
    excess: Float[Tensor, " M"]  # nats above the entropy floor


@dataclass(frozen=True, eq=False)
class PublishedCaches:
    """What one token leaves in published models."""

    name: tuple[str, ...]
    num_hidden_layers: Int[Tensor, " P"]
    elements_per_layer: Int[Tensor, " P"]
    elements: Int[Tensor, " P"]
    bytes: Float[Tensor, " P"]  # in 16 bit


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. The wall is the tiny LM's; the latents are those of the model trained with them."""

    config: Config
    tokens: tuple[str, ...]  # T
    head_names: tuple[str, ...]  # h
    keys_mha: Float[Tensor, "h T dh"]  # the tiny LM's cache in this layer, keys after RoPE
    values_mha: Float[Tensor, "h T dh"]
    caches: Caches
    wall: Float[Tensor, "rows kv"]  # [K | V] of the tiny LM before RoPE, first tokens of the held-out texts
    wall_width: int
    wall_directions: int  # singular values that are not rounding errors
    singular_values_cache: Float[Tensor, " kv"]  # of the wall of 512 tokens
    singular_values_weights: Float[Tensor, " d"]  # of [W_K; W_V]
    ranks: RankSweep
    hidden: Float[Tensor, "T d"]  # what attention reads
    w_dkv: Float[Tensor, "c d"]
    w_uk: Float[Tensor, "h dh c"]
    w_uv: Float[Tensor, "h dv c"]
    c_kv: Float[Tensor, "T c"]
    k_rope: Float[Tensor, "T r"]
    k_nope: Float[Tensor, "h T dh"]
    value: Float[Tensor, "h T dv"]
    q_nope: Float[Tensor, "h T dh"]
    q_absorbed: Float[Tensor, "h T c"]  # the same queries in latent space
    w_uq: Float[Tensor, "h dh cq"]
    scores_content: Float[Tensor, "h T T"]  # scaled; NaN = not visible
    scores_content_absorbed: Float[Tensor, "h T T"]
    scores_rope: Float[Tensor, "h T T"]
    scores: Float[Tensor, "h T T"]  # their sum
    weights: Float[Tensor, "h T T"]
    mixed_latent: Float[Tensor, "h T c"]  # latents mixed by the weights
    head_output: Float[Tensor, "h T dv"]  # values mixed by the weights
    output_expanded: Float[Tensor, "T d"]
    output_absorbed: Float[Tensor, "T d"]
    max_abs_diff: float  # of the two outputs
    max_abs_diff_scores: float
    distances: Int[Tensor, " D"]
    rope_coupled: Float[Tensor, "D cq c"]  # of the head, at these distances
    rope_hands: Float[Tensor, "D pairs 2"]  # where RoPE would turn each pair of a key of that width
    rope_change: Float[Tensor, " D"]  # |M(distance) - M(0)| / |M(0)|
    macs_names: tuple[str, ...]
    macs_per_cached_token: Int[Tensor, " 2"]  # of DeepSeek-V2, per head
    cache_elements_per_token: Int[Tensor, " 2"]  # latent, rotary key
    models: Models
    loss_seed_spread: Float[Tensor, " 2"]  # lowest and highest of three seeds of the tiny LM
    entropy_floor: float
    published: PublishedCaches
    cache_ratio: float  # DeepSeek-V2 with a key and a value for each head, over its latents
    equal_groups: float  # key-value heads that would weigh the same
    saved_by_elements: float  # share of DeepSeek-67B's elements
    saved_in_the_paper: float  # with 6 bits for 16


@torch.no_grad()
def trace(config: Config) -> Trace:
    """Squeeze the tiny LM's own cache, then read a model that was trained with latents."""
    from internals_math import multi_latent_attention_experiment as experiment  # it is built on the functions above

    base, latent = tiny_lm.load("base"), experiment.latent_lm(config)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story(config.story_index))[: config.num_tokens]])
    _, record = base(ids, record=("k_rot", "v"))
    wall = experiment.wall(base, config.layer)
    w_k, w_v = experiment.key_and_value_weights(base, config.layer)
    distances = torch.arange(DISTANCES)
    w = experiment.attention_of(latent, config.layer).weights()
    coupled = torch.stack([rope_coupled_matrix(w, config.head, -distance) for distance in distances.tolist()])
    change = (coupled - coupled[0]).flatten(1).norm(dim=1) / coupled[0].norm()
    angles = -distances[:, None] * rope_frequencies(w.qk_nope_head_dim, w.rope_theta)
    v2 = deepseek_v2()
    published = published_caches()
    elements = dict(zip(published.name, published.elements.tolist(), strict=True))
    own, big = elements["DeepSeek-V2"], elements["DeepSeek-67B"]
    floor = tiny_lm.held_out().entropy_floor
    return Trace(
        config=config,
        tokens=tiny_lm.tokens(ids[0].tolist()),
        head_names=tuple(f"head {k + 1}" for k in range(base.config.num_attention_heads)),
        keys_mha=record["k_rot"][config.layer, 0],
        values_mha=record["v"][config.layer, 0],
        caches=tiny_caches(config),
        wall=wall[:SHOWN_ROWS],
        wall_width=wall.shape[1],
        wall_directions=int(torch.linalg.matrix_rank(wall)),
        singular_values_cache=torch.linalg.svdvals(wall.double()).float(),
        singular_values_weights=joint_low_rank_factorization(w_k, w_v, 1)[3],
        ranks=experiment.rank_sweep(base, RANKS),
        **experiment.read_layer(latent, ids, config.layer),
        distances=distances,
        rope_coupled=coupled,
        rope_hands=torch.stack([angles.cos(), angles.sin()], dim=-1).float(),
        rope_change=change,
        macs_names=("with rebuilt keys", "in latent space"),
        macs_per_cached_token=torch.tensor(
            macs_per_cached_token(v2.qk_nope_head_dim, v2.qk_rope_head_dim, v2.v_head_dim, v2.kv_lora_rank)
        ),
        cache_elements_per_token=torch.tensor([config.kv_lora_rank, config.qk_rope_head_dim]),
        models=experiment.compare(base, latent, config),
        loss_seed_spread=experiment.seed_spread(),
        entropy_floor=floor,
        published=published,
        cache_ratio=elements["DeepSeek-V2 with own keys"] / own,
        equal_groups=gqa_equivalent_groups(v2.kv_lora_rank, v2.qk_rope_head_dim, v2.qk_nope_head_dim),
        saved_by_elements=1 - own / big,
        saved_in_the_paper=1 - cache_bytes(own, PAPER_BITS) / cache_bytes(big, USUAL_BITS),
    )


def tiny_caches(config: Config) -> Caches:
    """Return what one token leaves in a layer of the tiny LM with four, two and one key-value head, and as a latent."""
    shape = tiny_lm.ModelConfig()
    groups = {
        "a memory for each head": shape.num_attention_heads,
        "two heads share": SHARED_GROUPS,
        "all heads share": 1,
    }
    elements = [2 * number * shape.head_dim for number in groups.values()]
    elements.append(mla_cache_elements_per_token(config.kv_lora_rank, config.qk_rope_head_dim))
    return Caches((*groups, "one latent"), torch.tensor(elements))


def deepseek_v2() -> LatentShape:
    """Return the latent sizes of DeepSeek-V2."""
    latent = preset("deepseek-v2").latent
    assert latent is not None
    return latent


def published_caches() -> PublishedCaches:
    """Return what one token leaves in DeepSeek's models, and in DeepSeek-V2 if each head kept its own keys."""
    v2, lite, big = (preset(name) for name in ("deepseek-v2", "deepseek-v2-lite", "deepseek-67b"))
    rows = [
        ("DeepSeek-V2 with own keys", v2.num_hidden_layers, 2 * v2.num_attention_heads * v2.head_dim),
        ("DeepSeek-67B", big.num_hidden_layers, 2 * big.num_key_value_heads * big.head_dim),
        ("DeepSeek-V2", v2.num_hidden_layers, latent_elements(v2)),
        ("DeepSeek-V2-Lite with own keys", lite.num_hidden_layers, 2 * lite.num_attention_heads * lite.head_dim),
        ("DeepSeek-V2-Lite", lite.num_hidden_layers, latent_elements(lite)),
    ]
    layers, per_layer = torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows])
    elements = layers * per_layer
    return PublishedCaches(tuple(row[0] for row in rows), layers, per_layer, elements, elements * USUAL_BITS / 8)


def latent_elements(shape: ModelShape) -> int:
    """Return what one token leaves in one layer of a model with latent attention."""
    assert shape.latent is not None
    return mla_cache_elements_per_token(shape.latent.kv_lora_rank, shape.latent.qk_rope_head_dim)
