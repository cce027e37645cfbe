"""PPO by plain loops over samples, by SciPy's filter, and by torch's own losses, distributions and gradients."""

import math

import torch
from scipy.signal import lfilter
from torch.distributions import Categorical

from internals_math.ppo import (
    clip_gradient_mask,
    clipped_surrogate,
    generalized_advantage_estimation,
    interpolate_policies,
    kl_estimators,
    ppo_loss,
    value_loss,
    whiten,
)
from tests.oracles import Oracle, largest_difference, randn

EPSILON = 0.2


def _batch(seed: int = 0):
    old = randn(6, 7, seed=seed) - 3
    new = old + 0.5 * randn(6, 7, seed=seed + 1)
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[:, 0] = True
    return new, old, randn(6, 7, seed=seed + 2), mask


def _roof(advantage: float, low: float, high: float) -> float:
    """The most that a sample can promise: what is left of eq. 7 when its cases are written out."""
    return (1 + high) * advantage if advantage >= 0 else (1 - low) * advantage


def _clip(epsilon_high: float | None) -> float:
    new, old, advantages, _ = _batch()
    ratio = (new - old).exp()
    high = EPSILON if epsilon_high is None else epsilon_high
    theirs = [
        min(r * a, _roof(a, EPSILON, high))
        for r, a in zip(ratio.flatten().tolist(), advantages.flatten().tolist(), strict=True)
    ]
    ours = clipped_surrogate(ratio, advantages, EPSILON, epsilon_high).flatten()
    return largest_difference(ours, torch.tensor(theirs, dtype=torch.float64))


def _gradient_pattern() -> float:
    new, old, advantages, _ = _batch(3)
    ratio = (new - old).exp().requires_grad_()
    lost = torch.maximum(-ratio * advantages, -torch.clamp(ratio, 0.8, 1.2) * advantages)  # as in 1909.08593's code
    (slope,) = torch.autograd.grad(lost.sum(), ratio)
    ours = clip_gradient_mask(ratio.detach(), advantages, EPSILON)
    return largest_difference(ours.double(), (slope != 0).double())


def _loss() -> float:
    """Eq. 9, token by token."""
    new, old, advantages, mask = _batch(5)
    values, old_values, returns = (randn(6, 7, seed=seed) for seed in (8, 9, 10))
    entropy = randn(6, 7, seed=11).abs()
    policy, value, bonus, kl, outside, count = 0.0, 0.0, 0.0, 0.0, 0, 0
    for b in range(6):
        for t in range(7):
            if not mask[b, t]:
                continue
            count += 1
            ratio = math.exp(float(new[b, t]) - float(old[b, t]))
            advantage = float(advantages[b, t])
            policy += min(ratio * advantage, _roof(advantage, EPSILON, EPSILON))
            v, v_old, target = (float(x[b, t]) for x in (values, old_values, returns))
            near = min(max(v, v_old - 0.3), v_old + 0.3)
            value += max((v - target) ** 2, (near - target) ** 2) / 2
            bonus += float(entropy[b, t])
            kl += ratio - 1 - math.log(ratio)
            outside += not 0.8 <= ratio <= 1.2
    ours = ppo_loss(
        new, old, advantages, mask, EPSILON, values=values, old_values=old_values, returns=returns, value_coef=0.1,
        value_clip=0.3, entropy=entropy, entropy_coef=0.01,
    )  # fmt: skip
    theirs = (-policy + 0.1 * value - 0.01 * bonus, -policy, value, outside, kl)
    mine = (ours.total, ours.policy, ours.value, ours.clip_fraction, ours.approx_kl)
    return max(abs(float(a) - b / count) for a, b in zip(mine, theirs, strict=True))


def _gae_filter() -> float:
    rewards, values = randn(5, 12, seed=1), randn(5, 12, seed=2)
    gamma, lam = 0.93, 0.8
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + gamma * following - values).numpy()
    theirs = lfilter([1], [1, -gamma * lam], deltas[:, ::-1], axis=1)[:, ::-1].copy()
    ours, returns = generalized_advantage_estimation(rewards, values, gamma, lam)
    return max(
        largest_difference(ours, torch.from_numpy(theirs)),
        largest_difference(returns, torch.from_numpy(theirs) + values),
    )


def _gae_loop() -> float:
    """The sum of eq. 11, forwards, on episodes of different lengths."""
    rewards, values = randn(4, 9, seed=3), randn(4, 9, seed=4)
    lengths, gamma, lam = (9, 1, 4, 7), 0.9, 0.7
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    theirs = torch.zeros(4, 9, dtype=torch.float64)
    for b, length in enumerate(lengths):
        value = [*values[b, :length].tolist(), 0.0]
        delta = [float(rewards[b, t]) + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            theirs[b, t] = sum((gamma * lam) ** step * delta[t + step] for step in range(length - t))
    ours, returns = generalized_advantage_estimation(rewards, values, gamma, lam, mask)
    targets = (theirs + values).where(mask, 0)
    return max(largest_difference(ours, theirs), largest_difference(returns, targets))


def _value() -> float:
    values, returns = randn(8, seed=1), randn(8, seed=2)
    return abs(float(value_loss(values, values, returns)) - float(torch.nn.functional.mse_loss(values, returns)) / 2)


def _whiten() -> float:
    x = randn(5, 6, seed=7) * 3 + 2
    mask = x > 0
    theirs = torch.nn.functional.layer_norm(x[mask], (int(mask.sum()),), eps=1e-8)
    return largest_difference(whiten(x, mask)[mask], theirs)


def _kl() -> float:
    q, p = (torch.softmax(randn(9, seed=seed), dim=-1) for seed in (1, 2))
    theirs = float(torch.distributions.kl_divergence(Categorical(q), Categorical(p)))
    ours = kl_estimators(q.log(), p.log())
    return max(abs(float((q * ours[name]).sum()) - theirs) for name in ("k1", "k3"))


def _line() -> float:
    old, new = {"w": randn(2, 3, seed=1)}, {"w": randn(2, 3, seed=2)}
    ours = interpolate_policies(old, new, torch.tensor([0.0, 0.3, 1.0, 1.5], dtype=torch.float64))["w"]
    theirs = torch.stack([torch.lerp(old["w"], new["w"], alpha) for alpha in (0.0, 0.3, 1.0, 1.5)])
    return largest_difference(ours, theirs)


ROWS = (
    Oracle("clipped surrogate", lambda: _clip(None), 1e-12, "its cases, in a loop over samples"),
    Oracle("clipped surrogate with two epsilons", lambda: _clip(0.28), 1e-12, "its cases, in a loop over samples"),
    Oracle("where the clipped gradient is alive", _gradient_pattern, 0, "torch: clamp, maximum and autograd"),
    Oracle("the whole loss", _loss, 1e-12, "eq. 9 in a loop over tokens"),
    Oracle("advantages and targets", _gae_filter, 1e-12, "scipy: lfilter"),
    Oracle("advantages of masked episodes", _gae_loop, 1e-12, "eq. 11 in a loop over steps"),
    Oracle("value loss", _value, 1e-12, "torch: mse_loss"),
    Oracle("whitening", _whiten, 1e-12, "torch: layer_norm"),
    Oracle("k1 and k3 over all answers", _kl, 1e-12, "torch.distributions: kl_divergence"),
    Oracle("line between two policies", _line, 1e-12, "torch: lerp"),
)
