"""How many weights mixtures own and use, and what a router's choices are worth."""

import torch

from internals_math.mixture_of_experts import (
    expert_capacity,
    expert_combinations,
    load_balancing_loss,
    moe_parameter_count,
)
from internals_math.model_shapes import parameter_count, preset
from tests.published import Published

MIXTRAL = "Mixtral of Experts, arXiv 2401.04088"
DEEPSEEK = "DeepSeekMoE, arXiv 2401.06066, section 3.1"
SWITCH = "Switch Transformers, arXiv 2101.03961"


def _total(name: str):
    return lambda: moe_parameter_count(preset(name))[0]


def _active(name: str):
    return lambda: moe_parameter_count(preset(name))[1]


def _expert() -> int:
    shape = preset("mixtral-8x7b")
    return 3 * shape.hidden_size * shape.intermediate_size


def _repeats_first() -> float:
    return 1 / expert_combinations(8, 1)


def _repeats_any() -> float:
    """Two of the next token's experts avoid the last two only if both come from the other six."""
    return 1 - expert_combinations(6, 2) / expert_combinations(8, 2)


def _below_one() -> float:
    """Six tokens lean to one of two experts, four are sure of the other."""
    probs = torch.tensor([[0.51, 0.49]] * 6 + [[1e-12, 1 - 1e-12]] * 4, dtype=torch.float64)
    return float(load_balancing_loss(probs.log(), 1))


ROWS = (
    Published("Mixtral, weights of one expert", _expert, 176_160_768, 0, f"{MIXTRAL}, Table 1: 3 · 4096 · 14336"),
    Published("Mixtral 8x7B, all weights", _total("mixtral-8x7b"), 46_702_792_704, 0, "its checkpoint"),
    Published("Mixtral 8x7B (printed as 47B)", _total("mixtral-8x7b"), 47e9, 0.01, f"{MIXTRAL}, section 2"),
    Published("Mixtral 8x7B, active weights", _active("mixtral-8x7b"), 12_879_925_248, 0, "count; printed as 13B"),
    Published("Mixtral 8x7B, active (printed as 13B)", _active("mixtral-8x7b"), 13e9, 0.01, f"{MIXTRAL}, abstract"),
    Published(
        "8 x Mistral-7B, not what Mixtral is",
        lambda: 8 * parameter_count(preset("mistral-7b")),
        57_933_856_768,
        0,
        "8 · 7,241,732,096: attention would not be shared",
    ),
    Published("OLMoE, all weights", _total("olmoe-1b-7b"), 6_919_161_856, 0, "OLMoE, 2409.02060: 6.9B"),
    Published("OLMoE, active weights", _active("olmoe-1b-7b"), 1_282_017_280, 0, "OLMoE, 2409.02060: 1.3B"),
    Published("Qwen3-30B-A3B, all weights", _total("qwen3-30b-a3b"), 30_532_122_624, 0, "model card: 30.5B"),
    Published("Qwen3-30B-A3B, active weights", _active("qwen3-30b-a3b"), 3_353_032_704, 0, "model card: 3.3B"),
    Published("ways to choose 2 of 16", lambda: expert_combinations(16, 2), 120, 0, DEEPSEEK),
    Published("ways to choose 8 of 64", lambda: expert_combinations(64, 8), 4_426_165_368, 0, DEEPSEEK),
    Published("chance to repeat the first expert", _repeats_first, 0.125, 0, f"{MIXTRAL}, routing analysis"),
    Published("chance to share one of two experts", _repeats_any, 0.464, 0.002, f"{MIXTRAL}, routing analysis"),
    Published("seats, factor 1.0", lambda: expert_capacity(6, 3, 1, 1.0), 2, 0, f"{SWITCH}, Figure 3"),
    Published("seats, factor 1.5", lambda: expert_capacity(6, 3, 1, 1.5), 3, 0, f"{SWITCH}, Figure 3"),
    # 2 · (0.6 · 0.306 + 0.4 · 0.694), by hand
    Published("a balance loss below 1", _below_one, 0.9224, 1e-9, f"{SWITCH}, eqs. 4-6, worked by hand"),
)
