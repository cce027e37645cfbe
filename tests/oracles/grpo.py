"""GRPO by SciPy's scores and binomials, scikit-learn's axes, torch's KL, and every group that there can be."""

import itertools
import math

import numpy as np
import torch
from scipy.stats import binom, zscore
from sklearn.decomposition import PCA
from torch.distributions import Categorical

from internals_math.grpo import (
    expected_prompt_weight,
    group_advantages,
    grpo_loss,
    kl_k3,
    optimal_scalar_baseline,
    zero_signal_probability,
)
from internals_math.grpo_experiment import principal_direction
from tests.oracles import Oracle, largest_difference, randn

P = torch.tensor([0.03, 0.2, 0.5, 0.9], dtype=torch.float64)


def _standardized(ddof: int) -> float:
    rewards = randn(5, 7, seed=1)
    theirs = torch.from_numpy(zscore(rewards.numpy(), axis=1, ddof=ddof))
    return largest_difference(group_advantages(rewards, ddof=ddof), theirs)


def _weight() -> float:
    differences = []
    for size in (2, 3, 8, 64):
        k = np.arange(size + 1)
        theirs = [(binom.pmf(k, size, p) * np.sqrt(k * (size - k)) / size).sum() / (p * (1 - p)) for p in P.tolist()]
        ours = expected_prompt_weight(P, size)
        differences.append(largest_difference(ours, torch.tensor(theirs, dtype=torch.float64)))
    return max(differences)


def _silent() -> float:
    theirs = [binom.pmf(0, 8, p) + binom.pmf(8, 8, p) for p in P.tolist()]
    return largest_difference(zero_signal_probability(P, 8), torch.tensor(theirs, dtype=torch.float64))


def _every_group(method: str) -> float:
    """The mean update over all 4³ groups of three answers, beside the gradient of the mean reward."""
    logits = randn(4, seed=3).requires_grad_()
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0]) if method == "grpo" else randn(4, seed=4)
    rewards = rewards.double()
    probs = logits.softmax(dim=-1)
    mean = torch.zeros(4, dtype=torch.float64)
    for group in itertools.product(range(4), repeat=3):
        chosen = list(group)
        advantages = group_advantages(rewards[chosen][None], method=method)[0]
        update = (advantages * logits.log_softmax(dim=-1)[chosen]).mean()
        mean += probs[chosen].prod().detach() * torch.autograd.grad(update, logits, retain_graph=True)[0]
    (exact,) = torch.autograd.grad((probs * rewards).sum(), logits)
    p = float((probs * rewards).sum().detach())
    share = {"none": 1.0, "rloo": 1.0, "group_mean": 2 / 3, "grpo": 0.0}[method]
    if method == "grpo":
        counts = {1: 3 * p * (1 - p) ** 2, 2: 3 * p**2 * (1 - p)}
        share = sum(likely * math.sqrt(k * (3 - k)) / 3 for k, likely in counts.items()) / (p * (1 - p))
    return largest_difference(mean, share * exact)


def _kl_value() -> float:
    policy, reference = (torch.softmax(randn(9, seed=seed), dim=-1) for seed in (1, 2))
    theirs = torch.distributions.kl_divergence(Categorical(policy), Categorical(reference))
    return abs(float((policy * kl_k3(policy.log(), reference.log())).sum()) - float(theirs))


def _kl_gradient() -> float:
    """What a sum over samples that are held fixed pulls at: the KL from the reference."""
    logits, reference = randn(9, seed=1).requires_grad_(), torch.softmax(randn(9, seed=2), dim=-1)
    log_policy = logits.log_softmax(dim=-1)
    held = log_policy.detach().exp()
    (ours,) = torch.autograd.grad((held * kl_k3(log_policy, reference.log())).sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(torch.nn.functional.kl_div(log_policy, reference, reduction="sum"), logits)
    return largest_difference(ours, theirs)


def _loss(loss_type: str) -> float:
    """Eq. 3 and its variants in a loop over tokens."""
    old, noise, apart = randn(4, 6, seed=1) - 2, randn(4, 6, seed=2), randn(4, 6, seed=3)
    new, reference, advantages = old + 0.5 * noise, old + 0.3 * apart, randn(4, seed=4)
    lengths = (6, 2, 3, 5)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    total = 0.0
    for i, length in enumerate(lengths):
        answer = 0.0
        for t in range(length):
            ratio = math.exp(float(new[i, t] - old[i, t]))
            a = float(advantages[i])
            u = math.exp(float(reference[i, t] - new[i, t]))
            answer += min(ratio * a, min(max(ratio, 0.8), 1.28) * a) - 0.1 * (u - math.log(u) - 1)
        total += answer / {"grpo": 4 * length, "dapo": sum(lengths), "dr_grpo": 4 * 10}[loss_type]
    ours = grpo_loss(
        new, old, reference, advantages, mask, epsilon=0.2, epsilon_high=0.28, beta=0.1, loss_type=loss_type,
        max_length=10,
    )  # fmt: skip
    return abs(float(ours.loss) + total)


def _baseline() -> float:
    """The least variance, found on a grid."""
    probs, rewards, scores = torch.softmax(randn(5, seed=1), dim=-1), randn(5, seed=2), randn(5, 3, seed=3)
    scores = scores - probs @ scores  # as scores are, their mean is 0
    grid = torch.linspace(-5, 5, 100001, dtype=torch.float64)
    second = (probs * (rewards - grid[:, None]).square() * scores.square().sum(dim=1)).sum(dim=1)
    return abs(optimal_scalar_baseline(rewards, scores, probs) - float(grid[second.argmin()]))


def _axis() -> float:
    rows = randn(50, 6, seed=1) * torch.arange(1, 7)
    rows = rows - rows.mean(dim=0)
    theirs = torch.from_numpy(PCA(1).fit(rows.numpy()).components_[0])
    ours = principal_direction(rows)
    return min(largest_difference(ours, theirs), largest_difference(-ours, theirs))


ROWS = (
    Oracle("advantages, population std", lambda: _standardized(0), 1e-12, "scipy: zscore"),
    Oracle("advantages, unbiased std", lambda: _standardized(1), 1e-12, "scipy: zscore"),
    Oracle("weight of a prompt", _weight, 1e-12, "scipy: binom"),
    Oracle("silent groups", _silent, 1e-12, "scipy: binom"),
    *(
        Oracle(f"mean update of {method}", lambda method=method: _every_group(method), 1e-10, "all groups of three")
        for method in ("none", "rloo", "group_mean", "grpo")
    ),
    Oracle("k3 over all answers", _kl_value, 1e-12, "torch.distributions: kl_divergence"),
    Oracle("pull of k3", _kl_gradient, 1e-12, "torch: kl_div and autograd"),
    *(
        Oracle(f"loss, {kind}", lambda kind=kind: _loss(kind), 1e-12, "eq. 3 in a loop over tokens")
        for kind in ("grpo", "dapo", "dr_grpo")
    ),
    Oracle("baseline of least variance", _baseline, 1e-4, "search on a grid"),
    Oracle("second axis of the cloud", _axis, 1e-10, "scikit-learn: PCA"),
)
