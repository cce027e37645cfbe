"""The shapes of published models, as far as memory and work depend on them.

Sources: the models' own configs (Hugging Face `config.json`) and papers; the tests tie each preset to a number that
its paper prints.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder's shape, in the words of Hugging Face configs."""

    name: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    gated: bool = True  # SwiGLU has three matrices, a plain MLP two
    tied: bool = False  # one matrix for embedding and output head

    def __post_init__(self) -> None:
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads})"
            )


_SHAPES = (
    ModelShape("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32000),
    ModelShape("Llama-2-13B", 40, 5120, 40, 40, 128, 13824, 32000),
    ModelShape("Llama-2-70B", 80, 8192, 64, 8, 128, 28672, 32000),
    ModelShape("Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelShape("Mistral-7B", 32, 4096, 32, 8, 128, 14336, 32000),
    ModelShape("OPT-13B", 40, 5120, 40, 40, 128, 20480, 50272, gated=False, tied=True),
    ModelShape("OPT-66B", 64, 9216, 72, 72, 128, 36864, 50272, gated=False, tied=True),
    ModelShape("OPT-175B", 96, 12288, 96, 96, 128, 49152, 50272, gated=False, tied=True),
)
PRESETS = {shape.name.lower(): shape for shape in _SHAPES}


def preset(name: str) -> ModelShape:
    """Return a published model's shape by its lower-case name.

    Raises:
        ValueError: unknown name.
    """
    if name.lower() not in PRESETS:
        raise ValueError(f"model must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name.lower()]


def parameter_count(shape: ModelShape) -> int:
    """Return the number of weights of a bias-free decoder: embeddings, attention, feed-forward, norms.

    Biases and learned positions (OPT has both) are left out.
    """
    attention = shape.hidden_size * shape.head_dim * (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads)
    feed_forward = (3 if shape.gated else 2) * shape.hidden_size * shape.intermediate_size
    norms = 2 * shape.hidden_size
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied else 2)
    return embeddings + shape.num_hidden_layers * (attention + feed_forward + norms) + shape.hidden_size
