"""Direct Preference Optimization: preferences train the policy by one classification loss.

Notation: K = prompts, V = vocab_size, B = pairs, T = positions, N = answers, M = values of beta, R = records of the
training; σ = sigmoid. The shared task and the best policy are in `preference_task`.
Source: Rafailov et al. 2023, arXiv 2305.18290 (equations below); IPO: Azar et al. 2023, arXiv 2310.12036.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from internals_math.distributions import kl_divergence, pooled
from internals_math.next_token import IGNORE, shift_for_next_token, target_surprisal
from internals_math.preference_task import alone, check_beta, check_probs, optimal_policy, words
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "DPOLoss", "Trace", "bradley_terry_probability", "dpo_gradient_weights", "dpo_loss", "expected_reward",
    "implicit_reward", "implied_reward", "kl_divergence", "optimal_policy", "reward_kl_frontier", "sequence_log_probs",
    "trace",
]  # fmt: skip

LOSS_TYPES = ("sigmoid", "hinge", "ipo")
SHOWN = 8  # answers with a bar of their own; the ninth bar is all others together
DOTS = 24  # pairs that are followed through the training


# -- the loss ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DPOLoss:
    """What `dpo_loss` says of each pair."""

    loss: Float[Tensor, " B"]
    chosen_rewards: Float[Tensor, " B"]  # implicit, in the units of the reward
    rejected_rewards: Float[Tensor, " B"]
    margins: Float[Tensor, " B"]
    accuracies: Float[Tensor, " B"]  # 1 = ordered as the reader did, 0 = not, ½ = a tie


def bradley_terry_probability(
    reward_1: Float[Tensor, "*shape"], reward_2: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the probability that the first answer is preferred: σ(r₁ - r₂) (eq. 1).

    >>> bradley_terry_probability(torch.tensor(1.0), torch.tensor(0.0))
    tensor(0.7311)
    """
    return torch.sigmoid(reward_1 - reward_2)


def sequence_log_probs(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Return ln p of each response: the sum, not the mean, over its tokens.

    Args:
        logits: position t predicts labels[:, t + 1]; the shift happens here.
        labels: prompt and response, unshifted.
        mask: True = a token of the response. The first position is predicted by nothing and must be False.

    Raises:
        ValueError: shapes that do not fit, a row without a response, or a response that starts at position 0.
    """
    if logits.shape[:2] != labels.shape or mask.shape != labels.shape:
        raise ValueError(
            f"logits (B, T, V), labels (B, T) and mask (B, T) must fit, got {tuple(logits.shape)}, "
            f"{tuple(labels.shape)} and {tuple(mask.shape)}"
        )
    if mask[:, 0].any():
        raise ValueError("mask must be False at position 0: no logits predict the first token")
    if not mask.any(dim=1).all():
        empty = (~mask.any(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(f"every row needs at least one response token, got an empty mask in rows {empty}")
    shifted, targets = shift_for_next_token(logits, labels.masked_fill(~mask, IGNORE))
    return -target_surprisal(shifted, targets).sum(dim=-1)


def implicit_reward(
    policy_logps: Float[Tensor, "*shape"], reference_logps: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """Return beta·(ln π - ln π_ref): the reward for which the policy would be the best one, but for a constant of the
    prompt (eq. 5).

    Raises:
        ValueError: beta is not > 0.
    """
    check_beta(beta)
    return beta * (policy_logps - reference_logps)


def dpo_loss(
    policy_chosen_logps: Float[Tensor, " B"],
    policy_rejected_logps: Float[Tensor, " B"],
    reference_chosen_logps: Float[Tensor, " B"],
    reference_rejected_logps: Float[Tensor, " B"],
    beta: float,
    *,
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> DPOLoss:
    """Return the loss of each pair, with the implicit rewards behind it.

    Args:
        policy_chosen_logps: (B,) ln π(chosen | prompt), summed over the response; the others likewise.
        loss_type: "sigmoid" -ln σ(m) (eq. 7); "hinge" max(0, 1 - m); "ipo" (m / beta - 1 / (2 beta))² (2310.12036,
            eq. 17), where m is the margin of the implicit rewards.
        label_smoothing: share of labels that are taken to be wrong (sigmoid only).

    Raises:
        ValueError: beta is not > 0, an unknown loss_type, label_smoothing outside 0..0.5 or with another loss, or
            tensors of different shapes.
    """
    check_beta(beta)
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing must be in 0..0.5, got {label_smoothing}")
    if label_smoothing and loss_type != "sigmoid":
        raise ValueError(f"label_smoothing is of the sigmoid loss; {loss_type} takes 0, got {label_smoothing}")
    given = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    if len({tuple(logps.shape) for logps in given}) > 1:
        raise ValueError(f"the four log-probabilities must have one shape, got {[tuple(p.shape) for p in given]}")
    chosen = implicit_reward(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = implicit_reward(policy_rejected_logps, reference_rejected_logps, beta)
    margins = chosen - rejected
    if loss_type == "sigmoid":
        loss = -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)
    elif loss_type == "hinge":
        loss = (1 - margins).clamp(min=0)
    else:
        loss = (margins / beta - 1 / (2 * beta)).square()
    accuracies = (margins.sign() + 1) / 2
    return DPOLoss(loss, chosen, rejected, margins, accuracies)


def dpo_gradient_weights(margins: Float[Tensor, " B"], beta: float) -> Float[Tensor, " B"]:
    """Return beta·σ(-m): how hard each pair pushes its two log-probabilities apart (section 4).

    Raises:
        ValueError: beta is not > 0.
    """
    check_beta(beta)
    return beta * torch.sigmoid(-margins)


# -- what the loss stands for ------------------------------------------------------------------------------------------


def implied_reward(
    policy_probs: Float[Tensor, "*batch N"], reference_probs: Float[Tensor, "*batch N"], beta: float
) -> Float[Tensor, "*batch N"]:
    """Return the reward that makes the policy the best one, with the constant chosen so that its mean under the
    reference is 0; -inf where the policy rules an answer out.

    Raises:
        ValueError: beta is not > 0, probabilities that do not sum to 1, or a reference that rules an answer out.
    """
    check_probs(policy_probs, "policy_probs")
    check_probs(reference_probs, "reference_probs")
    if not (reference_probs > 0).all():
        raise ValueError("reference_probs must be > 0: an answer that the reference rules out has no reward")
    rewards = implicit_reward(policy_probs.log(), reference_probs.log(), beta)
    return rewards - expected_reward(reference_probs, rewards)[..., None]


def expected_reward(probs: Float[Tensor, "*batch N"], rewards: Float[Tensor, "... N"]) -> Float[Tensor, "*batch"]:
    """Return the mean reward over the last axis; one table of rewards serves a batch of policies."""
    return (probs * rewards).sum(dim=-1)


def reward_kl_frontier(
    reference_probs: Float[Tensor, "*batch N"], rewards: Float[Tensor, "*batch N"], betas: Float[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Return KL to the reference (nats) and expected reward of the best policy at each beta, averaged over prompts:
    no policy has more reward at that KL.

    Raises:
        ValueError: a beta that is not > 0, or probabilities that do not sum to 1.
    """
    kls, means = [], []
    for beta in betas.tolist():
        policy, _ = optimal_policy(reference_probs, rewards, beta)
        kls.append(kl_divergence(policy, reference_probs).mean())
        means.append(expected_reward(policy, rewards).mean())
    return torch.stack(kls), torch.stack(means)


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    beta: float = option(0.3, "price of leaving the reference", minimum=0.05, maximum=2)
    n_pairs: int = option(2048, "comparisons to learn from", minimum=128, maximum=8192)
    train_steps: int = option(150, "optimizer steps of 64 pairs", minimum=20, maximum=400)
    learning_rate: float = option(5e-4, "of Adam", minimum=1e-4, maximum=5e-3)
    label_smoothing: float = option(0.0, "share of labels taken to be wrong", minimum=0, maximum=0.4)
    seed: int = option(0, "of the prompts, the pairs and their order", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Answers: SHOWN of prompt 0, then all others together (NaN where that has no meaning).

    Records of the training: before the first step, then every 5 steps. Log-probabilities and KL in nats.
    """

    config: Config
    prompt_tokens: tuple[str, ...]
    answer_tokens: tuple[str, ...]  # 9
    reference_probs: Float[Tensor, " 9"]
    gold_rewards: Float[Tensor, " 9"]
    optimal_probs: Float[Tensor, " 9"]
    tilt_betas: Float[Tensor, " M"]
    tilted_probs: Float[Tensor, "M 9"]
    log_ratios: Float[Tensor, " 9"]  # beta·ln(optimal / reference): the reward less one level for all
    scaled_log_partition: float  # that level: beta·ln Z
    implied_rewards: Float[Tensor, " 9"]  # the same ratios with mean 0 under the reference
    floors: Float[Tensor, " F"]  # other levels that the same comparisons could have
    lifted_rewards: Float[Tensor, "F 2"]  # rewards of the best and the worst answer above each floor
    lifted_gap: float
    chosen_tokens: tuple[str, ...]  # of one real pair after prompt 0
    rejected_tokens: tuple[str, ...]
    token_logps_policy: Float[Tensor, "2 2"]  # chosen, rejected; word by word, after training
    token_logps_reference: Float[Tensor, "2 2"]
    sequence_logps_policy: Float[Tensor, " 2"]
    sequence_logps_reference: Float[Tensor, " 2"]
    curve_margins: Float[Tensor, " C"]
    curve_loss: Float[Tensor, " C"]
    steps: Int[Tensor, " R"]
    loss_curve: Float[Tensor, " R"]  # over all pairs
    accuracy_curve: Float[Tensor, " R"]
    margin_mean: Float[Tensor, " R"]
    chosen_reward_curve: Float[Tensor, " R"]
    rejected_reward_curve: Float[Tensor, " R"]
    chosen_logp_curve: Float[Tensor, " R"]
    rejected_logp_curve: Float[Tensor, " R"]
    margins_history: Float[Tensor, "R 24"]
    weights_history: Float[Tensor, "R 24"]  # σ(-m)
    losses_history: Float[Tensor, "R 24"]
    trained_probs: Float[Tensor, "R 9"]
    kl_path: Float[Tensor, " R"]
    reward_path: Float[Tensor, " R"]
    total_variation: Float[Tensor, " R"]  # to the best policy
    frontier_betas: Float[Tensor, " G"]
    frontier_kl: Float[Tensor, " G"]
    frontier_reward: Float[Tensor, " G"]
    optimal_kl: float  # of the best policy at config.beta, averaged over prompts
    optimal_reward: float
    sampled_before: tuple[str, ...]  # what the models answer to prompt 0, drawn with one seed
    sampled_after: tuple[str, ...]
    tale_loss_before: float  # nats a word, on whole stories that the training never touched
    tale_loss_after: float


def trace(config: Config) -> Trace:
    """Let a reader compare answers of the base model, and train a copy of it on the comparisons."""
    from internals_math import dpo_experiment as experiment  # it is built on the functions above

    run = experiment.train(config)
    shown = experiment.shown_answers(run)
    optimal, log_partition = optimal_policy(run.reference_probs, run.rewards, config.beta)
    ratios = config.beta * (optimal[0] / run.reference_probs[0]).log()
    implied = implied_reward(optimal, run.reference_probs, config.beta)[0]
    tilt_betas = torch.logspace(math.log10(5), math.log10(0.05), 41, dtype=torch.float64)
    tilted = torch.stack([optimal_policy(run.reference_probs[0], run.rewards[0], b)[0] for b in tilt_betas.tolist()])
    betas = torch.logspace(2, -2, 60, dtype=torch.float64)
    frontier_kl, frontier_reward = reward_kl_frontier(run.reference_probs, run.rewards, betas)
    floors = torch.linspace(-1, 1, 17, dtype=torch.float64)
    lifted = floors[:, None] + run.rewards[0, shown[[-2, -1]]]
    margins = torch.linspace(-4, 6, 101, dtype=torch.float64)
    values: dict[str, Any] = experiment.one_pair(run) | experiment.records(run, shown) | experiment.after_words(run)
    return Trace(
        config=config,
        prompt_tokens=experiment.tiny_lm.tokens(run.task.prefixes[0]),
        answer_tokens=(*(words(answer) for answer in shown.tolist()), "all others"),
        reference_probs=pooled(run.reference_probs[0], shown),
        gold_rewards=alone(run.rewards[0], shown),
        optimal_probs=pooled(optimal[0], shown),
        tilt_betas=tilt_betas,
        tilted_probs=pooled(tilted, shown),
        log_ratios=alone(ratios, shown),
        scaled_log_partition=float(config.beta * log_partition[0]),
        implied_rewards=alone(implied, shown),
        floors=floors,
        lifted_rewards=lifted,
        lifted_gap=float(lifted[0, 0] - lifted[0, 1]),
        curve_margins=margins,
        curve_loss=-logsigmoid(margins),
        frontier_betas=betas,
        frontier_kl=frontier_kl,
        frontier_reward=frontier_reward,
        optimal_kl=float(kl_divergence(optimal, run.reference_probs).mean()),
        optimal_reward=float(expected_reward(optimal, run.rewards).mean()),
        **values,
    )
