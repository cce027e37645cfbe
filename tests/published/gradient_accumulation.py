"""Batches of published training runs, their memory, and the laws on small numbers."""

import torch

from internals_math.gradient_accumulation import (
    activation_bytes,
    effective_batch_size,
    mean_of_means_weights,
    optimal_step_progress,
    steps_examples_tradeoff,
    training_memory,
)
from internals_math.gradient_accumulation_experiment import published_memory
from internals_math.mixed_precision import BF16, FP32, accumulate, round_to_format
from internals_math.model_shapes import parameter_count, preset
from tests.published import Published

NANOGPT = "nanoGPT, config/train_gpt2.py"
NOISE = "An Empirical Model of Large-Batch Training, arXiv 1812.06162"
SELECTIVE = "Reducing Activation Recomputation, arXiv 2205.05198, eq. 2"
GPT3 = "GPT-3, arXiv 2005.14165, Table 2.1"
BUG = "Σn / (K n_k)"
COUNTS = torch.tensor([3, 5, 40, 12])


def _sum_of_thousandths() -> float:
    return float(accumulate(torch.full((1024,), 1e-3), BF16)[-1])


def _true_sum_of_thousandths() -> float:
    return float(accumulate(round_to_format(torch.full((1024,), 1e-3), BF16), FP32)[-1])


def _gpt2() -> int:
    return activation_bytes(12, 1024, 1, 768, 12)


ROWS = (
    Published("GPT-2 by nanoGPT, tokens a step", lambda: effective_batch_size(12, 40, 1, 1024), 491_520, 0, NANOGPT),
    Published("the same on 8 GPUs, 5 each", lambda: effective_batch_size(12, 5, 8, 1024), 491_520, 0, NANOGPT),
    Published("GPT-3 175B, tokens a step / 2048", lambda: 3.2e6 / effective_batch_size(1, 1, 1, 2048), 1562.5, 0, GPT3),
    Published(
        "GPT-3, activations of one sequence, GB",
        lambda: activation_bytes(96, 2048, 1, 12288, 96) / 1e9, 275.4, 0.1 / 275.4, SELECTIVE,
    ),
    Published("GPT-2 parameters", lambda: parameter_count(preset("GPT-2")), 124_439_808, 0, "GPT-2's checkpoint"),
    Published(
        "GPT-2, weights and optimizer, GB",
        lambda: training_memory(parameter_count(preset("GPT-2")), 1, 0)["static"] / 1e9, 1.99, 0.01, "16 B a parameter",
    ),
    Published("GPT-2, activations of one sequence, GB", lambda: _gpt2() / 1e9, 1.076, 0.01, SELECTIVE),
    Published("of 480 sequences", lambda: published_memory()["gpt2_activations_480"], 516, 0.01, SELECTIVE),
    Published("of 12 sequences", lambda: published_memory()["gpt2_activations_12"], 12.9, 0.01, SELECTIVE),
    Published("GPT-3 as shown", lambda: published_memory()["gpt3_activations_1"], 275.4, 0.1 / 275.4, SELECTIVE),
    *(
        Published(f"weight of a token among {n}", lambda k=k: float(mean_of_means_weights(COUNTS)[k]), value, 0, BUG)
        for k, (n, value) in enumerate({3: 5.0, 5: 3.0, 40: 0.375, 12: 1.25}.items())
    ),
    Published("1024 times 0.001 in bfloat16", _sum_of_thousandths, 0.5, 0, "IEEE 754-2019, ties to even"),
    Published("the true sum of these terms", _true_sum_of_thousandths, 1.0234, 1e-4, "0.001 in bfloat16 is 0.00099945"),
    *(
        Published(f"progress at B = {r:g} B_noise", lambda r=r: optimal_step_progress(r, 1.0), value, 1e-12, NOISE)
        for r, value in ((0.25, 0.2), (1, 0.5), (4, 0.8))
    ),
    Published("steps at B = B_noise", lambda: steps_examples_tradeoff(7, 7.0)[0], 2, 0, f"{NOISE}, eq. 2.11"),
    Published("examples at B = B_noise", lambda: steps_examples_tradeoff(7, 7.0)[1], 2, 0, f"{NOISE}, eq. 2.11"),
)  # fmt: skip
