"""What the equations of the DPO and IPO papers give on small numbers, and what the DPO paper prints."""

import math
from typing import Literal

import torch

from internals_math.distributions import kl_divergence
from internals_math.dpo import (
    bradley_terry_probability,
    dpo_gradient_weights,
    dpo_loss,
    expected_reward,
    optimal_policy,
)
from internals_math.dpo_experiment import BATCH_SIZE
from tests.published import Published

DPO = "Direct Preference Optimization, arXiv 2305.18290"
IPO = "A General Theoretical Paradigm, arXiv 2310.12036, eq. 17"
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def _pair(policy: tuple[float, float], loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"):
    logps = [torch.tensor([value], dtype=torch.float64) for value in (*policy, -3.5, -3.9)]
    return dpo_loss(*logps, 0.1, loss_type=loss_type)


def _best(beta: float):
    return optimal_policy(REFERENCE, REWARDS, beta)


def _gap(gap: float):
    return lambda: float(bradley_terry_probability(torch.tensor(gap), torch.tensor(0.0)))


MOVED = (-3.0, -4.0)
ROWS = (
    Published("loss before training", lambda: float(_pair((-3.5, -3.9)).loss), math.log(2), 1e-6, f"{DPO}, eq. 7"),
    Published("preference at a reward gap of 1", _gap(1.0), 0.7311, 1e-4, f"{DPO}, eq. 1"),
    Published("preference at a reward gap of 2", _gap(2.0), 0.8808, 1e-4, f"{DPO}, eq. 1"),
    Published("margin of one pair", lambda: float(_pair(MOVED).margins), 0.06, 1e-4, f"{DPO}, eq. 7"),
    Published("loss of that pair", lambda: float(_pair(MOVED).loss), 0.66360, 1e-4, f"{DPO}, eq. 7"),
    Published(
        "its weight in the gradient", lambda: float(dpo_gradient_weights(_pair(MOVED).margins, 0.1)), 0.0485, 1e-3,
        f"{DPO}, section 4",
    ),
    Published("IPO loss of that pair", lambda: float(_pair(MOVED, "ipo").loss), 19.36, 1e-5, IPO),
    Published("best policy, first answer", lambda: float(_best(1.0)[0][0]), 0.17900, 1e-4, f"{DPO}, eq. 4"),
    Published("best policy, second answer", lambda: float(_best(1.0)[0][1]), 0.29194, 1e-4, f"{DPO}, eq. 4"),
    Published("best policy, third answer", lambda: float(_best(1.0)[0][2]), 0.52906, 1e-4, f"{DPO}, eq. 4"),
    Published("its normalizer Z", lambda: math.exp(_best(1.0)[1]), 2.79330, 1e-4, f"{DPO}, eq. 4"),
    Published("its KL", lambda: float(kl_divergence(_best(1.0)[0], REFERENCE)), 0.32283, 1e-4, f"{DPO}, eq. 3"),
    Published("its reward", lambda: float(expected_reward(_best(1.0)[0], REWARDS)), 1.35006, 1e-4, f"{DPO}, eq. 3"),
    Published("its value, beta ln Z", lambda: float(_best(1.0)[1]), 1.02722, 1e-4, f"{DPO}, eq. 4"),
    Published("third answer at beta 0.5", lambda: float(_best(0.5)[0][2]), 0.80077, 1e-4, f"{DPO}, eq. 4"),
    Published("third answer at beta 10", lambda: float(_best(10.0)[0][2]), 0.22706, 1e-4, f"{DPO}, eq. 4"),
    Published("pairs in a batch", lambda: BATCH_SIZE, 64, 0, f"{DPO}, appendix B"),
)  # fmt: skip
