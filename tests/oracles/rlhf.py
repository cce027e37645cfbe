"""RLHF by torch's own losses, by a logistic regression, by drawing the best of n, and by autograd."""

import numpy as np
import torch
from scipy.special import rel_entr, softmax
from sklearn.linear_model import LogisticRegression

from internals_math.rlhf import (
    best_of_n_policy,
    optimal_policy,
    pairwise_reward_loss,
    ranking_pairs,
    ranking_reward_loss,
    reinforce_loss,
    rlhf_objective,
    sft_loss,
)
from tests.oracles import Oracle, largest_difference, randn

REFERENCE = torch.softmax(randn(9, seed=1), dim=-1)
REWARDS = torch.tensor([2, -1, 0, 1, 1, 0, -1, 2, 1], dtype=torch.float64)
BETA = 0.4
DRAWS = 100_000


def _sft() -> float:
    logits = randn(3, 8, 11, seed=5)
    labels = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(3, 8, dtype=torch.bool)
    for row, start in enumerate((1, 4, 6)):
        mask[row, start:] = True
    targets = labels.masked_fill(~mask, -100)[:, 1:]
    theirs = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    return largest_difference(sft_loss(logits, labels, mask), theirs)


def _pairwise() -> float:
    chosen, rejected = 3 * randn(50, seed=1), 3 * randn(50, seed=2)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, torch.ones_like(chosen))
    return largest_difference(pairwise_reward_loss(chosen, rejected), theirs)


def _ranking() -> float:
    rewards = randn(6, 5, seed=3)
    margins = [rewards[:, i] - rewards[:, j] for i in range(5) for j in range(i + 1, 5)]
    theirs = torch.stack([-torch.log(torch.sigmoid(margin)) for margin in margins]).mean()
    return largest_difference(ranking_reward_loss(rewards), theirs)


def _fitted_reward() -> float:
    """A reward that is linear in features, fitted by our loss, is a logistic regression on feature differences."""
    features, truth = randn(40, 4, seed=4), randn(4, seed=5)
    first, second = ranking_pairs(40)
    coin = torch.rand(first.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    won = coin < torch.sigmoid((features[first] - features[second]) @ truth)
    chosen, rejected = torch.where(won, first, second), torch.where(won, second, first)
    weight = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        rewards = features @ weight
        loss = pairwise_reward_loss(rewards[chosen], rewards[rejected])
        loss.backward()
        return loss

    optimizer.step(closure)
    theirs = LogisticRegression(fit_intercept=False, C=1e9, tol=1e-10, max_iter=1000)
    theirs.fit((features[first] - features[second]).numpy(), won.numpy())
    return largest_difference(weight.detach(), torch.from_numpy(theirs.coef_[0]))


def _objective() -> float:
    policy = torch.softmax(randn(9, seed=2), dim=-1)
    theirs = policy @ REWARDS - BETA * float(rel_entr(policy.numpy(), REFERENCE.numpy()).sum())
    return largest_difference(rlhf_objective(policy, REFERENCE, REWARDS, BETA), theirs)


def _tilt() -> float:
    theirs = torch.from_numpy(softmax(REFERENCE.log().numpy() + REWARDS.numpy() / BETA))
    return largest_difference(optimal_policy(REFERENCE, REWARDS, BETA)[0], theirs)


def _best_of_four() -> float:
    """Return the largest distance from drawn frequencies, in standard errors."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(9, size=(DRAWS, 4), p=REFERENCE.numpy())
    best = drawn[np.arange(DRAWS), REWARDS.numpy()[drawn].argmax(axis=1)]  # the first of equals, at random by the draw
    frequencies = np.bincount(best, minlength=9) / DRAWS
    probs = best_of_n_policy(REFERENCE, REWARDS, 4).numpy()
    return float((np.abs(frequencies - probs) / np.sqrt(probs * (1 - probs) / DRAWS)).max())


def _gradient() -> float:
    """The score-function estimate on answers that make up the policy exactly, and autograd of the enumerated goal."""
    shares = torch.tensor([4, 2, 1, 1])
    logits = (shares / 8.0).double().log().requires_grad_()
    reference, rewards = torch.softmax(randn(4, seed=1), dim=-1), randn(4, seed=2)
    goal = rlhf_objective(logits.softmax(dim=-1), reference, rewards, BETA)
    (theirs,) = torch.autograd.grad(goal, logits)
    answers = torch.arange(4).repeat_interleave(shares)
    logps = logits.log_softmax(dim=-1)[answers]
    returns = rewards[answers] - BETA * (logps.detach() - reference.log()[answers])
    (ours,) = torch.autograd.grad(reinforce_loss(logps, returns), logits)
    return largest_difference(-ours, theirs)


ROWS = (
    Oracle("loss on demonstrations", _sft, 1e-12, "torch: cross_entropy with ignore_index"),
    Oracle("loss on comparisons", _pairwise, 1e-12, "torch: binary_cross_entropy_with_logits"),
    Oracle("loss on rankings", _ranking, 1e-12, "a loop over all pairs"),
    Oracle("reward fitted to comparisons", _fitted_reward, 1e-4, "scikit-learn: LogisticRegression without intercept"),
    Oracle("value of a policy", _objective, 1e-12, "scipy: rel_entr"),
    Oracle("the best policy", _tilt, 1e-12, "scipy: softmax of ln p + r / beta"),
    Oracle("best of 4, in standard errors", _best_of_four, 3, "numpy: 100,000 draws"),
    Oracle("policy gradient", _gradient, 1e-12, "torch: autograd of the enumerated goal"),
)
