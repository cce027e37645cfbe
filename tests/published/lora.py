"""How many weights the paper's adapters have, and how much its ΔW amplifies."""

import math

import torch

from internals_math.lora import amplification_factor, gpt3_counts, lora_trainable_parameters
from tests.oracles import randn
from tests.published import Published

PAPER = "LoRA, arXiv 2106.09685"


def _square(layers: int, width: int, matrices: int, r: int):
    return lambda: lora_trainable_parameters(layers, [(width, width)] * matrices, r)


def _amplification(r: int, delta_norm: float, projected_norm: float):
    """Build W and ΔW with the norms of Table 7: W, of norm 61.95, holds little in the directions of ΔW."""

    def ours() -> float:
        u, v = (torch.linalg.qr(randn(2 * r, 2 * r, seed=seed))[0] for seed in (1, 2))
        rest = math.sqrt(61.95**2 - projected_norm**2)
        weight = torch.tensor([projected_norm, rest], dtype=torch.float64).repeat_interleave(r) / math.sqrt(r)
        delta = torch.tensor([delta_norm, 0], dtype=torch.float64).repeat_interleave(r) / math.sqrt(r)
        return amplification_factor(u @ weight.diag() @ v.T, u @ delta.diag() @ v.T, r)

    return ours


ROWS = (
    Published("GPT-3, r = 4 on two matrices", _square(96, 12288, 2, 4), 18_874_368, 0, f"{PAPER}, Table 5: 18M"),
    Published("its fp16 checkpoint, MB", lambda: gpt3_counts()["lora_bytes"] / 1e6, 35, 0.08, f"{PAPER}, section 4.2"),
    Published("GPT-3's fp16 checkpoint, GB", lambda: gpt3_counts()["full_bytes"] / 1e9, 350, 0.003, f"{PAPER}, 4.2"),
    Published("how many times smaller", lambda: gpt3_counts()["ratio"], 10_000, 0.1, f"{PAPER}, section 4.2"),
    Published(
        "100 adapted models, GB", lambda: gpt3_counts()["hundred_lora_bytes"] / 1e9, 354, 0.004, f"{PAPER}, footnote 4"
    ),
    Published("100 full models, TB", lambda: gpt3_counts()["hundred_full_bytes"] / 1e12, 35, 0.003, f"{PAPER}, 4.2"),
    Published("GPT-3, r = 1 on two matrices", _square(96, 12288, 2, 1), 4_718_592, 0, f"{PAPER}, Table 4: 4.7M"),
    Published("GPT-3, r = 2 on one matrix", _square(96, 12288, 1, 2), 4_718_592, 0, f"{PAPER}, Table 4: 4.7M"),
    Published("GPT-3, r = 8 on two matrices", _square(96, 12288, 2, 8), 37_748_736, 0, f"{PAPER}, Table 4: 37.7M"),
    Published("GPT-3, r = 4 on four matrices", _square(96, 12288, 4, 4), 37_748_736, 0, f"{PAPER}, Table 4: 37.7M"),
    Published("RoBERTa-base, r = 8", _square(12, 768, 2, 8), 294_912, 0, f"{PAPER}, Table 2: 0.3M"),
    Published("RoBERTa-large, r = 8", _square(24, 1024, 2, 8), 786_432, 0, f"{PAPER}, Table 2: 0.8M"),
    Published("amplification, r = 4", _amplification(4, 6.91, 0.32), 21.5, 0.0093, f"{PAPER}, Table 7: 6.91 / 0.32"),
    Published("amplification, r = 64", _amplification(64, 3.57, 1.90), 1.9, 0.1, f"{PAPER}, Table 7: 3.57 / 1.90"),
    Published(
        "weights of the paper's GPT-3 over ours of rank 4",
        lambda: 175_255_800_000 / gpt3_counts()["lora_params"],
        9285,
        1e-4,
        f"{PAPER}, Table 4: 175,255.8M",
    ),
)
