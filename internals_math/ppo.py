"""Proximal Policy Optimization: how far a policy may move before the batch that moves it starts to lie.

Notation: B = answers or episodes, T = steps (tokens), K = prompts, N = answers to a prompt, E = epochs on one batch,
I = iterations, S = B·2 tokens of a batch; ρ = π_new / π_old of a token (the paper's r), Â = advantage, ε = epsilon.
State: the prompt and the tokens so far; action: the next token.
Sources: Schulman et al. 2017, arXiv 1707.06347 (PPO; equations below); Schulman et al. 2016, arXiv 1506.02438 (GAE);
Ziegler et al. 2019, arXiv 1909.08593 and its code (language models); Schulman 2020, "Approximating KL Divergence".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.preference_task import exact_expected_reward, exact_kl
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "PPOLoss", "Trace", "adaptive_kl_beta", "clip_fraction", "clip_gradient_mask", "clipped_surrogate",
    "exact_expected_reward", "exact_kl", "generalized_advantage_estimation", "interpolate_policies", "kl_estimators",
    "kl_penalized_surrogate", "ppo_loss", "probability_ratio", "surrogate", "trace", "value_loss", "whiten",
]  # fmt: skip

METHODS = ("unclipped", "clip", "kl_penalty")
SHOWN = 8  # answers with a bar of their own; the ninth bar is all others together
WHITENING_EPS = 1e-8


# -- the objective -----------------------------------------------------------------------------------------------------


def probability_ratio(
    new_logps: Float[Tensor, "*shape"], old_logps: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return ρ = π_new / π_old of what was sampled, from its log-probabilities.

    Raises:
        ValueError: tensors of different shapes.
    """
    _check_shapes(new_logps=new_logps, old_logps=old_logps)
    return (new_logps - old_logps).exp()


def surrogate(ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ρÂ, whose mean is L^CPI (eq. 6): an estimate of the gain that is right at ρ = 1 and optimistic elsewhere.

    Raises:
        ValueError: tensors of different shapes.
    """
    _check_shapes(ratio=ratio, advantages=advantages)
    return ratio * advantages


def clipped_surrogate(
    ratio: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    epsilon: float,
    epsilon_high: float | None = None,
) -> Float[Tensor, "*shape"]:
    """Return min(ρÂ, clip(ρ, 1 - ε, 1 + ε)Â), whose mean is L^CLIP (eq. 7): never more than ρÂ.

    Args:
        epsilon_high: another ε above 1 (2503.14476); None = the same.

    Raises:
        ValueError: epsilon not between 0 and 1, epsilon_high not > 0, or tensors of different shapes.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    tensor([ 1.2000, -1.5000,  0.5000, -0.8000])
    """
    low, high = ratio_range(epsilon, epsilon_high)
    return torch.minimum(surrogate(ratio, advantages), ratio.clamp(low, high) * advantages)


def clip_gradient_mask(
    ratio: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    epsilon: float,
    epsilon_high: float | None = None,
) -> Bool[Tensor, "*shape"]:
    """Return where the clipped surrogate still pushes on ρ: not beyond 1 ± ε on the side that pays, nor where Â = 0.

    Raises:
        ValueError: as `clipped_surrogate`.
    """
    low, high = ratio_range(epsilon, epsilon_high)
    _check_shapes(ratio=ratio, advantages=advantages)
    quiet = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low)) | (advantages == 0)
    return ~quiet


def clip_fraction(
    ratio: Float[Tensor, "*shape"],
    epsilon: float,
    epsilon_high: float | None = None,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> float:
    """Return the share of samples whose ρ is outside 1 ± ε, on either side.

    Raises:
        ValueError: epsilon as in `clipped_surrogate`, or an empty mask.
    """
    low, high = ratio_range(epsilon, epsilon_high)
    return float(_mean(((ratio < low) | (ratio > high)).to(ratio.dtype), mask))


def ratio_range(epsilon: float, epsilon_high: float | None = None) -> tuple[float, float]:
    """Return 1 - ε and 1 + ε.

    Raises:
        ValueError: epsilon not between 0 and 1, or epsilon_high not > 0.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
    if epsilon_high is not None and not epsilon_high > 0:
        raise ValueError(f"epsilon_high must be > 0, got {epsilon_high}")
    return 1 - epsilon, 1 + (epsilon if epsilon_high is None else epsilon_high)


# -- KL ----------------------------------------------------------------------------------------------------------------


def kl_estimators(
    logp_sampling: Float[Tensor, "*shape"], logp_other: Float[Tensor, "*shape"]
) -> dict[str, Float[Tensor, "*shape"]]:
    """Return three estimates of KL(q ‖ p) per sample drawn from q, with u = p / q of the sample.

    k1 = -ln u and k3 = u - 1 - ln u are unbiased, and k3 is never negative; k2 = ½(ln u)² is biased.
    Differentiated with respect to p, on samples that q drew, k1 and k3 have the gradient of KL(q ‖ p) as their mean,
    k2 has not.

    Args:
        logp_sampling: ln q(x), of the policy that drew the samples.
        logp_other: ln p(x).

    Raises:
        ValueError: tensors of different shapes.
    """
    _check_shapes(logp_sampling=logp_sampling, logp_other=logp_other)
    log_u = logp_other - logp_sampling
    return {"k1": -log_u, "k2": log_u.square() / 2, "k3": log_u.expm1() - log_u}


def kl_penalized_surrogate(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], kl: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """Return ρÂ - beta·KL(π_old ‖ π_new) (eq. 8): the other way to stay near.

    Args:
        kl: of the next-token distributions in each state, in nats.

    Raises:
        ValueError: a negative beta, or tensors of different shapes.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    _check_shapes(ratio=ratio, advantages=advantages, kl=kl)
    return surrogate(ratio, advantages) - beta * kl


def adaptive_kl_beta(beta: float, kl: float, target: float) -> float:
    """Return beta for the next update: half below target / 1.5, double above 1.5·target (section 4).

    The proportional controller of 1909.08593 is another rule; RLHF has it.

    Raises:
        ValueError: target is not > 0.

    >>> adaptive_kl_beta(1.0, kl=0.01, target=0.02)
    0.5
    """
    if not target > 0:
        raise ValueError(f"target must be > 0 nats, got {target}")
    if kl < target / 1.5:
        return beta / 2
    return 2 * beta if kl > 1.5 * target else beta


# -- advantages and values ---------------------------------------------------------------------------------------------


def generalized_advantage_estimation(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    gamma: float,
    lam: float,
    mask: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Return advantages and value targets (eqs. 11 and 12), from the last step to the first: Â_t = δ_t + γλ Â_{t+1}.

    Args:
        rewards: of each step.
        values: V(s_t), before the step; after the last step of an episode the value is 0.
        lam: 0 trusts the values, Â = δ; 1 trusts the rewards, Â = return - V.
        mask: True = a step of the episode; others get 0 and contribute nothing.

    Raises:
        ValueError: gamma or lam not in 0..1, tensors of different shapes, or an episode without a step.
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0..1, got {value}")
    if mask is None:
        mask = torch.ones_like(rewards, dtype=torch.bool)
    _check_shapes(rewards=rewards, values=values, mask=mask)
    if not mask.any(dim=1).all():
        raise ValueError(
            f"every episode needs a step, got an empty mask in rows {(~mask.any(dim=1)).nonzero()[:, 0].tolist()}"
        )
    rewards, values = rewards.where(mask, 0), values.where(mask, 0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage).where(mask[:, t], 0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None, shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """Scale values to standard deviation 1 (population) and, with `shift_mean`, mean 0 over the mask; 0 elsewhere.

    Raises:
        ValueError: an empty mask or one of another shape.
    """
    mean = _mean(values, mask)
    spread = (_mean((values - mean).square(), mask) + WHITENING_EPS).sqrt()
    whitened = (values - mean) / spread + (0 if shift_mean else mean)
    return whitened if mask is None else whitened.where(mask, 0)


def value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    clip_range: float | None = None,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, ""]:
    """Return half the mean squared error of the values; with a clip range, of the worse of V and V kept near V_old.

    The clipped form is that of the released code (1909.08593), not of the paper.

    Raises:
        ValueError: clip_range is not > 0, tensors of different shapes, or an empty mask.
    """
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"clip_range must be > 0, got {clip_range}")
    _check_shapes(values=values, old_values=old_values, returns=returns)
    errors = (values - returns).square()
    if clip_range is not None:
        near = old_values + (values - old_values).clamp(-clip_range, clip_range)
        errors = torch.maximum(errors, (near - returns).square())
    return _mean(errors, mask) / 2


@dataclass(frozen=True, eq=False)
class PPOLoss:
    """What `ppo_loss` says of a batch."""

    total: Float[Tensor, ""]  # to minimize
    policy: Float[Tensor, ""]  # -L^CLIP
    value: Float[Tensor, ""]  # L^VF, before its coefficient; 0 without values
    clip_fraction: float
    approx_kl: float  # KL(π_old ‖ π_new) per token in nats, by k3


def ppo_loss(
    new_logps: Float[Tensor, "*shape"],
    old_logps: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    epsilon: float,
    *,
    values: Float[Tensor, "*shape"] | None = None,
    old_values: Float[Tensor, "*shape"] | None = None,
    returns: Float[Tensor, "*shape"] | None = None,
    value_coef: float = 0.0,
    value_clip: float | None = None,
    entropy: Float[Tensor, "*shape"] | None = None,
    entropy_coef: float = 0.0,
) -> PPOLoss:
    """Return -L^CLIP + value_coef·L^VF - entropy_coef·S, means over the mask: eq. 9 with its sign turned, to minimize.

    Args:
        mask: True = a token of an answer.
        values, old_values, returns: all three, or none (then value_coef must be 0).
        entropy: of the next-token distribution in each state, in nats.

    Raises:
        ValueError: epsilon not between 0 and 1, tensors of different shapes, an empty mask, or a coefficient without
            what it multiplies.
    """
    _check_shapes(new_logps=new_logps, old_logps=old_logps, advantages=advantages, mask=mask)
    ratio = probability_ratio(new_logps, old_logps)
    policy = -_mean(clipped_surrogate(ratio, advantages, epsilon), mask)
    total, value = policy, torch.zeros_like(policy)
    if values is not None and old_values is not None and returns is not None:
        value = value_loss(values, old_values, returns, value_clip, mask)
        total = total + value_coef * value
    elif value_coef:
        raise ValueError(f"value_coef {value_coef} needs values, old_values and returns")
    if entropy is not None:
        total = total - entropy_coef * _mean(entropy, mask)
    elif entropy_coef:
        raise ValueError(f"entropy_coef {entropy_coef} needs the entropy of each state")
    kl = _mean(kl_estimators(old_logps, new_logps)["k3"], mask)
    return PPOLoss(total, policy, value, clip_fraction(ratio, epsilon, mask=mask), float(kl.detach()))


def _mean(values: Float[Tensor, "*shape"], mask: Tensor | None) -> Float[Tensor, ""]:
    if mask is None:
        return values.mean()
    _check_shapes(values=values, mask=mask)
    if not mask.any():
        raise ValueError("mask must keep at least one token, got an empty mask")
    return values[mask].mean()


def _check_shapes(**tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if len(set(shapes)) > 1:
        raise ValueError(f"{', '.join(tensors)} must have one shape, got {', '.join(map(str, shapes))}")


def interpolate_policies(
    theta_old: Mapping[str, Tensor], theta_new: Mapping[str, Tensor], alphas: Float[Tensor, " A"]
) -> dict[str, Tensor]:
    """Return every parameter at each alpha of the straight line (1 - α)θ_old + αθ_new, stacked: (A, *its shape).

    Args:
        alphas: 0 is the old policy, 1 the new one; beyond 1 the line goes on.

    Raises:
        ValueError: parameters of different names or shapes.
    """
    if theta_old.keys() != theta_new.keys():
        odd = sorted(theta_old.keys() ^ theta_new.keys())
        raise ValueError(f"theta_old and theta_new must name the same parameters, got only one of each of {odd}")
    curves = {}
    for name, old in theta_old.items():
        _check_shapes(**{f"theta_old.{name}": old, f"theta_new.{name}": theta_new[name]})
        curves[name] = old + alphas.to(old.dtype).view(-1, *[1] * old.ndim) * (theta_new[name] - old)
    return curves


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    epsilon: float = option(0.2, "half-width of the clip around a ratio of 1", minimum=0.05, maximum=0.5)
    lam: float = option(0.95, "λ of the advantages: 0 trusts the values, 1 the rewards", minimum=0, maximum=1)
    gamma: float = option(1.0, "discount of a reward per token", minimum=0.8, maximum=1)
    epochs: int = option(30, "steps on the one batch that is followed", minimum=1, maximum=60)
    batch_size: int = option(96, "answers in a batch", minimum=32, maximum=256)
    learning_rate: float = option(2e-3, "of Adam", minimum=1e-4, maximum=1e-2)
    iterations: int = option(20, "fresh batches of the full run, 10 steps on each", minimum=5, maximum=40)
    beta_ref: float = option(0.2, "price of leaving the reference", minimum=0, maximum=1)
    reward_noise: float = option(1.0, "standard deviation of the noise in each score", minimum=0, maximum=3)
    seed: int = option(0, "of the prompts, the answers and the noise", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    "unclipped", "clip" and "kl_penalty" are three ways to use one batch of answers of the old policy, the tiny LM;
    index 0 of their histories is before the first step. Gains are above the old policy, in units of the reward; KL is
    in nats per answer, averaged over the prompts. Bars: SHOWN answers to prompt 0, then all others together.
    """

    config: Config
    prompt_tokens: tuple[str, ...]
    answer_tokens: tuple[str, ...]  # 9
    gold_rewards: Float[Tensor, " 9"]  # NaN for all others
    policy_probs: dict[str, Float[Tensor, "E_1 9"]]
    dot_bars: Int[Tensor, " dots"]  # the batch's answers to prompt 0: which bar each was drawn from
    dot_ratios: dict[str, Float[Tensor, "E_1 dots"]]  # of the whole answer
    rollout_tokens: tuple[str, ...]  # 8, written by the tiny LM after prompt 0
    rollout_rewards: Float[Tensor, " 8"]
    rollout_values: Float[Tensor, " 8"]
    rollout_deltas: Float[Tensor, " 8"]
    rollout_advantages: Float[Tensor, " 8"]
    rollout_returns: Float[Tensor, " 8"]
    rollout_shares: Float[Tensor, " 8"]  # what each step pours into the one on its left: γλÂ
    lambdas: Float[Tensor, " 3"]  # 0, config.lam, 1
    advantages_by_lambda: Float[Tensor, "3 8"]
    dial_lambdas: Float[Tensor, " 21"]
    dial_advantages: Float[Tensor, "21 8"]
    clip_low: float
    clip_high: float
    hinge_ratio: Float[Tensor, " 101"]
    hinge_positive: Float[Tensor, " 101"]  # clipped surrogate of Â = 1, then of Â = -1
    hinge_negative: Float[Tensor, " 101"]
    hinge_positive_slope: Float[Tensor, " 101"]  # its derivative
    hinge_negative_slope: Float[Tensor, " 101"]
    hinge_positive_unclipped: Float[Tensor, " 101"]
    hinge_negative_unclipped: Float[Tensor, " 101"]
    epochs: Int[Tensor, " E_1"]
    ratio_history: dict[str, Float[Tensor, "E_1 S"]]
    batch_advantages: Float[Tensor, " S"]  # whitened
    still_pushed: dict[str, Bool[Tensor, "E_1 S"]]  # outside the two zones where the clipped gradient is 0
    surrogate_estimate: dict[str, Float[Tensor, " E_1"]]  # mean over answers of Σ(ρ - 1)Â, Â = return - V
    true_reward: dict[str, Float[Tensor, " E_1"]]  # exact gain of E[r*]
    true_objective: dict[str, Float[Tensor, " E_1"]]  # exact gain of E[r*] - beta_ref·KL(new ‖ reference)
    kl_old_new: dict[str, Float[Tensor, " E_1"]]  # KL(old ‖ new)
    kl_new_ref: dict[str, Float[Tensor, " E_1"]]  # KL(new ‖ reference)
    clip_fraction: dict[str, Float[Tensor, " E_1"]]
    penalty_beta: Float[Tensor, " E_1"]  # of "kl_penalty", as it adapts
    kl_samples: dict[str, Float[Tensor, " B"]]  # k1, k2, k3 of KL(old ‖ "clip") after the last epoch
    kl_exact: float
    interpolation_alpha: Float[Tensor, " 41"]  # 0 = old, 1 = "unclipped" after `interpolation_epoch`
    interpolation_epoch: int
    interp_cpi: Float[Tensor, " 41"]  # gains, as surrogate_estimate
    interp_clip: Float[Tensor, " 41"]
    interp_kl: Float[Tensor, " 41"]  # KL(old ‖ new)
    interp_true: Float[Tensor, " 41"]
    simplex_tokens: tuple[str, ...]  # 3, the most likely answers to prompt 0
    simplex_old: Float[Tensor, " 3"]  # renormalized
    simplex_rewards: Float[Tensor, " 3"]
    simplex_paths: dict[str, Float[Tensor, "E_1 3"]]
    simplex_kl: float
    simplex_kl_contour: Float[Tensor, "60 3"]  # KL(old ‖ ·) = simplex_kl
    iterations: Int[Tensor, " I_1"]
    learning_curve_reward: dict[str, Float[Tensor, " I_1"]]  # exact E[r*] of the full run, "unclipped" and "clip"
    learning_curve_kl_ref: dict[str, Float[Tensor, " I_1"]]
    learning_curve_objective: dict[str, Float[Tensor, " I_1"]]
    objective_optimum: float  # of any policy
    samples: dict[str, tuple[str, ...]]  # answers to prompt 0 before and after the full run, drawn with one seed
    tale_loss: dict[str, float]  # nats a word, on whole stories that the training never touched


def trace(config: Config) -> Trace:
    """Use one batch of answers in three ways, watch what it promises and what is true, then train in earnest."""
    from internals_math import ppo_experiment as experiment  # it is built on the functions above

    low, high = ratio_range(config.epsilon)
    world = experiment.make_world(config)
    study = experiment.study_one_batch(world)
    values: dict[str, Any] = {}
    for part in (
        experiment.bars_and_dots(study),
        experiment.one_episode(world),
        experiment.hinge(config.epsilon),
        experiment.histories(study),
        experiment.estimators(study),
        experiment.interpolation(study),
        experiment.simplex(study),
        experiment.full_run(world),
    ):
        values |= part
    return Trace(config=config, clip_low=low, clip_high=high, **values)
