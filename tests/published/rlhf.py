"""What the equations of the RLHF papers give on small numbers, and what they print."""

import torch

from internals_math.distributions import kl_divergence
from internals_math.rlhf import (
    AdaptiveKLController,
    best_of_n_kl_bound,
    best_of_n_policy,
    ranking_pairs,
)
from tests.published import Published

INSTRUCT = "InstructGPT, arXiv 2203.02155, section 3.5 and appendix C.2"
ZIEGLER = "Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, section 2.2"
GAO = "Scaling Laws for Reward Model Overoptimization, arXiv 2210.10760"
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def _bound(n: int) -> Published:
    printed = {4: 0.6363, 16: 1.8351, 64: 3.1745, 1000: 5.9088}[n]
    return Published(f"most divergence of the best of {n}", lambda: best_of_n_kl_bound(n), printed, 1e-4, GAO)


def _share(n: int, answer: int, printed: float) -> Published:
    name = f"best of {n}: {('first', 'second', 'third')[answer]} answer"
    return Published(name, lambda: float(best_of_n_policy(REFERENCE, REWARDS, n)[answer]), printed, 2e-4, GAO)


def _kl(n: int) -> float:
    return float(kl_divergence(best_of_n_policy(REFERENCE, REWARDS, n), REFERENCE))


def _reward(n: int) -> float:
    return float(best_of_n_policy(REFERENCE, REWARDS, n) @ REWARDS)


ROWS = (
    Published("pairs of 4 ranked answers", lambda: ranking_pairs(4).shape[1], 6, 0, INSTRUCT),
    Published("pairs of 9 ranked answers", lambda: ranking_pairs(9).shape[1], 36, 0, INSTRUCT),
    Published("comparisons of 64 prompts", lambda: 64 * ranking_pairs(9).shape[1], 2304, 0, INSTRUCT),
    *map(_bound, (4, 16, 64, 1000)),
    _share(4, 0, 0.0625),
    _share(4, 1, 0.3471),
    _share(4, 2, 0.5904),
    Published("best of 4: divergence", lambda: _kl(4), 0.55975, 1e-4, GAO),
    Published("best of 4: reward", lambda: _reward(4), 1.5279, 1e-4, GAO),
    _share(2, 0, 0.25),
    _share(2, 1, 0.39),
    _share(2, 2, 0.36),
    Published("best of 2: divergence", lambda: _kl(2), 0.14064, 1e-4, GAO),
    Published("best of 2: reward", lambda: _reward(2), 1.11, 1e-4, GAO),
    Published(
        "beta after a batch far beyond the target", lambda: AdaptiveKLController(0.2, 6, 10_000).update(9, 64),
        0.200256, 1e-6, ZIEGLER,
    ),
)  # fmt: skip
