"""The shapes of published models, as far as memory and work depend on them.

Sources: the models' own configs (Hugging Face `config.json`) and papers: Llama 2 (2307.09288), Llama 3 (2407.21783),
Mistral 7B (2310.06825), Mixtral (2401.04088), OPT (2205.01068), GPT-2, GPT-3 (2005.14165, Table 2.1), PaLM
(2204.02311, Table 1), DeepSeek LLM (2401.02954), DeepSeek-V2 and -Lite (2405.04434), OLMoE (2409.02060), Qwen3. The
tests tie each to transformers or to a number that its paper prints. Activations: Korthikanti et al. 2022, arXiv
2205.05198.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentShape:
    """The widths of latent attention (2405.04434, section 2.1): what is cached, and what each head makes of it."""

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None  # None: queries come straight from the hidden state


@dataclass(frozen=True)
class ModelShape:
    """A decoder's shape, in the words of Hugging Face configs.

    Raises:
        ValueError: a size below 1, query heads that cannot share the key-value heads, or more active experts than
            experts.
    """

    name: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int  # of one expert, if there are experts
    vocab_size: int
    gated: bool = True  # SwiGLU has three matrices, a plain MLP two
    tied: bool = False  # one matrix for embedding and output head
    biased: bool = False  # every linear layer and norm has a bias
    norms: int = 2  # norms in a layer; one is left where attention and feed-forward run in parallel
    num_positions: int = 0  # rows of a learned position table
    qk_norm_width: int = 0  # weights of the norms on query and key, together
    num_experts: int = 1
    num_experts_per_tok: int = 1
    num_shared_experts: int = 0  # run for every token, besides the chosen ones
    num_dense_layers: int = 0  # the first layers have one wide feed-forward in place of experts
    dense_intermediate_size: int = 0  # of those
    latent: LatentShape | None = None  # keys and values come from a latent; num_key_value_heads is then that of MHA

    def __post_init__(self) -> None:
        for name in (
            "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "vocab_size", "num_experts_per_tok",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok must be at most num_experts ({self.num_experts}), got {self.num_experts_per_tok}"
            )


def _gpt(name: str, layers: int, hidden_size: int, heads: int, positions: int, vocab_size: int = 50257) -> ModelShape:
    """Return a model of the GPT-2 family (OPT too): plain MLP of 4 D, biases, learned positions, tied head."""
    head_dim = hidden_size // heads
    return ModelShape(
        name, layers, hidden_size, heads, heads, head_dim, 4 * hidden_size, vocab_size,
        gated=False, tied=True, biased=True, num_positions=positions,
    )  # fmt: skip


_OPT_POSITIONS = 2048 + 2  # OPT's table has two unused rows in front
_SHAPES = (
    ModelShape("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32000),
    ModelShape("Llama-2-13B", 40, 5120, 40, 40, 128, 13824, 32000),
    ModelShape("Llama-2-70B", 80, 8192, 64, 8, 128, 28672, 32000),
    ModelShape("Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("Mistral-7B", 32, 4096, 32, 8, 128, 14336, 32000),
    ModelShape("DeepSeek-67B", 95, 8192, 64, 8, 128, 22016, 102400),
    ModelShape(
        "DeepSeek-V2",
        60,
        5120,
        128,
        128,
        128,
        1536,
        102400,
        num_experts=160,
        num_experts_per_tok=6,
        num_shared_experts=2,
        num_dense_layers=1,
        dense_intermediate_size=12288,
        latent=LatentShape(512, 128, 64, 128, q_lora_rank=1536),
    ),
    ModelShape(
        "DeepSeek-V2-Lite",
        27,
        2048,
        16,
        16,
        128,
        1408,
        102400,
        num_experts=64,
        num_experts_per_tok=6,
        num_shared_experts=2,
        num_dense_layers=1,
        dense_intermediate_size=10944,
        latent=LatentShape(512, 128, 64, 128),
    ),
    # Pathways runs attention and feed-forward in parallel behind one norm.
    ModelShape("PaLM-540B", 118, 18432, 48, 1, 256, 73728, 256000, tied=True, norms=1),
    ModelShape("Mixtral-8x7B", 32, 4096, 32, 8, 128, 14336, 32000, num_experts=8, num_experts_per_tok=2),
    ModelShape(
        "OLMoE-1B-7B", 16, 2048, 16, 16, 128, 1024, 50304, qk_norm_width=4096, num_experts=64, num_experts_per_tok=8
    ),
    ModelShape(
        "Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 768, 151936, qk_norm_width=256, num_experts=128, num_experts_per_tok=8
    ),
    _gpt("OPT-13B", 40, 5120, 40, _OPT_POSITIONS, 50272),
    _gpt("OPT-66B", 64, 9216, 72, _OPT_POSITIONS, 50272),
    _gpt("OPT-175B", 96, 12288, 96, _OPT_POSITIONS, 50272),
    _gpt("GPT-2", 12, 768, 12, 1024),
    _gpt("GPT-2-medium", 24, 1024, 16, 1024),
    _gpt("GPT-2-large", 36, 1280, 20, 1024),
    _gpt("GPT-2-XL", 48, 1600, 25, 1024),
    _gpt("GPT-3", 96, 12288, 96, 2048),
)
PRESETS = {shape.name.lower(): shape for shape in _SHAPES}


def preset(name: str) -> ModelShape:
    """Return a published model's shape by its name; capitals do not matter.

    Raises:
        ValueError: unknown name.
    """
    if name.lower() not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name.lower()]


def parameter_count(shape: ModelShape) -> int:
    """Return the number of all weights: embeddings, positions, attention, feed-forward or experts, norms, head."""
    return _count(shape, shape.num_experts)


def active_parameter_count(shape: ModelShape) -> int:
    """Return the weights that one token passes through: of the experts only those the router chooses."""
    return _count(shape, shape.num_experts_per_tok)


def _count(shape: ModelShape, experts: int) -> int:
    width, bias = shape.hidden_size, int(shape.biased)
    query_rows = shape.num_attention_heads * shape.head_dim
    key_rows = shape.num_key_value_heads * shape.head_dim
    attention = (width + bias) * (query_rows + 2 * key_rows) + (query_rows + bias) * width + shape.qk_norm_width
    if shape.latent is not None:
        attention = _latent_attention(width, shape.num_attention_heads, shape.latent)
    norm = (1 + bias) * width
    tables = shape.vocab_size * (1 if shape.tied else 2) + shape.num_positions
    router = width * shape.num_experts if shape.num_experts > 1 else 0
    routed = (experts + shape.num_shared_experts) * _feed_forward(shape, shape.intermediate_size) + router
    dense = _feed_forward(shape, shape.dense_intermediate_size)
    inner = (shape.num_hidden_layers - shape.num_dense_layers) * routed + shape.num_dense_layers * dense
    return tables * width + shape.num_hidden_layers * (attention + shape.norms * norm) + inner + norm


def _feed_forward(shape: ModelShape, inner: int) -> int:
    width, bias = shape.hidden_size, int(shape.biased)
    return (2 if shape.gated else 1) * (width + bias) * inner + (inner + bias) * width


def _latent_attention(width: int, heads: int, latent: LatentShape) -> int:
    """Return the weights of one layer, the norms of the two latents included."""
    c, cq = latent.kv_lora_rank, latent.q_lora_rank
    query_rows = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    query = width * query_rows if cq is None else cq * (width + 1 + query_rows)
    down = width * (c + latent.qk_rope_head_dim) + c
    up = c * heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    return query + down + up + heads * latent.v_head_dim * width


def activation_bytes_per_layer(
    seq_len: int,
    batch_size: int,
    hidden_size: int,
    num_attention_heads: int,
    tensor_parallel: int = 1,
    mode: str = "none",
    *,
    recompute: str = "none",
) -> int:
    """Return the bytes that one GPT layer keeps for its backward pass in 16 bit (arXiv 2205.05198, section 4).

    Args:
        tensor_parallel: ranks t that share the layer; the bytes are those of one rank.
        mode: "none"; "tensor": s b h (10 + 24/t + 5 a s / (h t)), eq. 2; "tensor+sequence": all of it divided by t.
        recompute: "selective" forgets the attention scores, the term with 5 a s / h; "full" keeps the layer's input.

    Raises:
        ValueError: a size below 1, heads or width that t does not divide, or an unknown mode or recompute.
    """
    sizes = (seq_len, batch_size, hidden_size, num_attention_heads, tensor_parallel)
    if min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1, got {sizes}")
    if num_attention_heads % tensor_parallel or hidden_size % tensor_parallel:
        raise ValueError(
            f"num_attention_heads ({num_attention_heads}) and hidden_size ({hidden_size}) must be divisible by "
            f"tensor_parallel ({tensor_parallel})"
        )
    if mode not in ("none", "tensor", "tensor+sequence"):
        raise ValueError(f"mode must be none, tensor or tensor+sequence, got {mode!r}")
    if recompute not in ("none", "selective", "full"):
        raise ValueError(f"recompute must be none, selective or full, got {recompute!r}")
    tokens = seq_len * batch_size
    if recompute == "full":
        return 2 * tokens * hidden_size
    scores = 5 * num_attention_heads * seq_len if recompute == "none" else 0
    if mode == "none":
        return tokens * (34 * hidden_size + scores)
    if mode == "tensor":
        return tokens * (10 * hidden_size + (24 * hidden_size + scores) // tensor_parallel)
    return tokens * (34 * hidden_size + scores) // tensor_parallel
