"""DPO by torch's own losses and distributions, by scipy, and by a search over all policies."""

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import rel_entr, softmax
from torch.distributions import Categorical

from internals_math.dpo import dpo_loss, kl_divergence, optimal_policy, sequence_log_probs
from tests.oracles import Oracle, largest_difference, randn

REFERENCE = torch.softmax(randn(7, seed=1), dim=-1)
REWARDS = randn(7, seed=2)
BETA = 0.4


def _loss(label_smoothing: float) -> float:
    logps = [randn(50, seed=seed) for seed in range(4)]
    result = dpo_loss(*logps, BETA, label_smoothing=label_smoothing)
    margins = BETA * ((logps[0] - logps[2]) - (logps[1] - logps[3]))
    target = torch.full_like(margins, 1 - label_smoothing)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(margins, target, reduction="none")
    return largest_difference(result.loss, theirs)


def _sequence() -> float:
    logits = randn(4, 9, 11, seed=5)
    labels = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, start in enumerate((1, 3, 5, 8)):
        mask[row, start:] = True
    theirs = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels.masked_fill(~mask, -100)[:, 1:], ignore_index=-100, reduction="none"
    ).sum(dim=1)
    return largest_difference(sequence_log_probs(logits, labels, mask), -theirs)


def _kl() -> float:
    other = torch.softmax(REWARDS, dim=-1)
    ours = kl_divergence(REFERENCE, other)
    torchs = torch.distributions.kl_divergence(Categorical(REFERENCE), Categorical(other))
    scipys = rel_entr(REFERENCE.numpy(), other.numpy()).sum()
    return max(largest_difference(ours, torchs), abs(float(ours) - float(scipys)))


def _tilt() -> float:
    theirs = torch.from_numpy(softmax(REFERENCE.log().numpy() + REWARDS.numpy() / BETA))
    return largest_difference(optimal_policy(REFERENCE, REWARDS, BETA)[0], theirs)


def _search() -> float:
    """The goal of eq. 3, climbed without knowing its solution."""

    def loss(logits):
        policy = softmax(logits)
        return -(policy @ REWARDS.numpy() - BETA * rel_entr(policy, REFERENCE.numpy()).sum())

    found = minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-9})
    return largest_difference(optimal_policy(REFERENCE, REWARDS, BETA)[0], torch.from_numpy(softmax(found.x)))


ROWS = (
    Oracle("loss", lambda: _loss(0.0), 1e-12, "torch: binary_cross_entropy_with_logits"),
    Oracle("loss with smoothed labels", lambda: _loss(0.2), 1e-12, "torch: binary_cross_entropy_with_logits"),
    Oracle("ln p of responses", _sequence, 1e-12, "torch: cross_entropy, summed"),
    Oracle("KL divergence", _kl, 1e-12, "torch.distributions; scipy: rel_entr"),
    Oracle("the best policy", _tilt, 1e-12, "scipy: softmax of ln p + r / beta"),
    Oracle("the best policy, found by search", _search, 1e-5, "scipy: minimize (BFGS)"),
)
