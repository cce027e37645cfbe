"""Sizes, compute and losses that the GPT papers print, and the weights of the released checkpoints.

GPT-2's paper prints 117M, 345M, 762M and 1542M (Table 2); its checkpoints are larger, and the formula gives theirs.
"""

import math

import torch

from internals_math.gpt_pretraining import (
    bits_per_token,
    gpt_parameter_count,
    next_token_loss,
    perplexity,
    training_flops,
)
from internals_math.gpt_pretraining_experiment import GPT3_TOKENS, PETAFLOP_DAY
from tests.published import Published

CHECKPOINT = "sum over the tensors of the released checkpoint"
GPT1 = "Improving Language Understanding by Generative Pre-Training, section 4.1"
GPT3 = "Language Models are Few-Shot Learners, arXiv 2005.14165"


def _gpt2(layers: int, width: int):
    return lambda: gpt_parameter_count(layers, width, 50257, 1024)


def _gpt3() -> int:
    return gpt_parameter_count(96, 12288, 50257, 2048)


def _uniform_loss() -> float:
    return float(next_token_loss(torch.zeros(1, 4, 50257, dtype=torch.float64), torch.tensor([[1, 50256, 0, 40000]])))


ROWS = (
    Published("GPT-2, weights", _gpt2(12, 768), 124_439_808, 0, CHECKPOINT),
    Published("GPT-2-medium, weights", _gpt2(24, 1024), 354_823_168, 0, CHECKPOINT),
    Published("GPT-2-large, weights", _gpt2(36, 1280), 774_030_080, 0, CHECKPOINT),
    Published("GPT-2-XL, weights", _gpt2(48, 1600), 1_557_611_200, 0, CHECKPOINT),
    Published("GPT-3, weights (printed as 175.0B)", _gpt3, 175.0e9, 0.005, f"{GPT3}, Table 2.1"),
    Published("GPT-3, counted", _gpt3, 174_604_259_328, 0, "the same formula by hand"),
    Published(
        "GPT-3, FLOPs of its training", lambda: training_flops(_gpt3(), GPT3_TOKENS), 3.14e23, 0.01,
        f"{GPT3}, Table D.1",
    ),
    Published(
        "the same in petaflop/s-days", lambda: training_flops(_gpt3(), GPT3_TOKENS) / PETAFLOP_DAY, 3.64e3, 0.01,
        f"{GPT3}, Table D.1",
    ),
    Published(
        "GPT-1, weights (117M; no final norm)", lambda: gpt_parameter_count(12, 768, 40478, 512) - 2 * 768,
        116_534_784, 0, GPT1,
    ),
    Published("loss of equal logits over GPT-2's vocabulary", _uniform_loss, 10.825, 1e-4, "ln 50257"),
    Published("perplexity of GPT-1, 18.4, as a loss", lambda: math.log(18.4), 2.912, 1e-3, GPT1),
    Published("that loss as a perplexity", lambda: perplexity(2.912), 18.4, 1e-3, GPT1),
    Published("that loss in bits", lambda: bits_per_token(2.912), 4.20, 1e-3, GPT1),
)  # fmt: skip
