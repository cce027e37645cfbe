"""Sizes that papers and model cards print, and the activation memory of arXiv 2205.05198."""

from internals_math.model_shapes import (
    activation_bytes_per_layer,
    active_parameter_count,
    parameter_count,
    preset,
)
from tests.published import Published

CARD = "sum over the tensors of the released checkpoint"
ACTIVATIONS = "Reducing Activation Recomputation, arXiv 2205.05198"


def _size(name: str):
    return lambda: parameter_count(preset(name))


def _active(name: str):
    return lambda: active_parameter_count(preset(name))


def _active_without_table(name: str):
    """The embedding is looked up, not multiplied; only so do DeepSeek-V2's printed counts come out."""
    shape = preset(name)
    return lambda: active_parameter_count(shape) - shape.vocab_size * shape.hidden_size


def _scores_share(heads: int, hidden_size: int):
    """The term 5as/h of eq. 2 at s = 2048: what the scores add to the 34 bytes of a token and channel."""
    sizes = (2048, 1, hidden_size, heads)

    def ours() -> float:
        all_of_it, without = (activation_bytes_per_layer(*sizes, recompute=how) for how in ("none", "selective"))
        return (all_of_it - without) / (2048 * hidden_size)

    return ours


ROWS = (
    Published("Llama-2-7B, weights", _size("llama-2-7b"), 6_738_415_616, 0, CARD),
    Published("Llama-2-13B, weights", _size("llama-2-13b"), 13_015_864_320, 0, CARD),
    Published("Llama-2-70B, weights", _size("llama-2-70b"), 68_976_648_192, 0, CARD),
    Published("Llama-3-8B, weights", _size("llama-3-8b"), 8_030_261_248, 0, CARD),
    Published("Mistral-7B, weights", _size("mistral-7b"), 7_241_732_096, 0, CARD),
    Published("Mixtral-8x7B, weights", _size("mixtral-8x7b"), 46_702_792_704, 0, CARD),
    Published("Mixtral-8x7B, active (printed as 13B)", _active("mixtral-8x7b"), 13e9, 0.02, "arXiv 2401.04088"),
    Published("OLMoE-1B-7B, weights", _size("olmoe-1b-7b"), 6_919_161_856, 0, "arXiv 2409.02060: 6.9B"),
    Published("OLMoE-1B-7B, active", _active("olmoe-1b-7b"), 1_282_017_280, 0, "arXiv 2409.02060: 1.3B"),
    Published("Qwen3-30B-A3B, weights", _size("qwen3-30b-a3b"), 30_532_122_624, 0, "model card: 30.5B"),
    Published("Qwen3-30B-A3B, active", _active("qwen3-30b-a3b"), 3_353_032_704, 0, "model card: 3.3B"),
    Published("GPT-2, weights", _size("gpt-2"), 124_439_808, 0, CARD),
    Published("GPT-2-medium, weights", _size("gpt-2-medium"), 354_823_168, 0, CARD),
    Published("GPT-2-large, weights", _size("gpt-2-large"), 774_030_080, 0, CARD),
    Published("GPT-2-XL, weights", _size("gpt-2-xl"), 1_557_611_200, 0, CARD),
    Published("GPT-3, weights (printed as 175.0B)", _size("gpt-3"), 175.0e9, 0.005, "arXiv 2005.14165, Table 2.1"),
    Published("PaLM-540B, weights", _size("palm-540b"), 540.35e9, 0.0001, "arXiv 2204.02311, Table 1: 540.35B"),
    Published("DeepSeek-67B, weights", _size("deepseek-67b"), 67e9, 0.01, "arXiv 2401.02954, its name"),
    Published("DeepSeek-V2, weights", _size("deepseek-v2"), 236e9, 0.003, "arXiv 2405.04434: 236B"),
    Published("DeepSeek-V2, active", _active_without_table("deepseek-v2"), 21e9, 0.025, "arXiv 2405.04434: 21B"),
    Published("DeepSeek-V2-Lite, weights", _size("deepseek-v2-lite"), 15.7e9, 0.003, "arXiv 2405.04434: 15.7B"),
    Published("V2-Lite, active", _active_without_table("deepseek-v2-lite"), 2.4e9, 0.025, "arXiv 2405.04434: 2.4B"),
    Published("OPT-66B, weights", _size("opt-66b"), 66e9, 0.01, "arXiv 2205.01068, Table 1"),
    Published("OPT-175B, weights", _size("opt-175b"), 175e9, 0.005, "arXiv 2205.01068, Table 1"),
    Published(
        "GPT-3, activations of one sequence, bytes",
        lambda: 96 * activation_bytes_per_layer(2048, 1, 12288, 96),
        275.4e9,
        0.0004,
        f"{ACTIVATIONS}, eq. 1",
    ),
    *(
        Published(f"5as/h, {name}", _scores_share(heads, hidden_size), value, 0.0004, f"{ACTIVATIONS}, section 5")
        for name, heads, hidden_size, value in (
            ("22B", 64, 6144, 106.7),
            ("175B", 96, 12288, 80),
            ("530B", 128, 20480, 64),
            ("1T", 160, 25600, 64),
        )
    ),
)
