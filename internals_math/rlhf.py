"""RLHF: imitate demonstrations, fit a reward to comparisons, then climb it on a leash.

Notation: B = batch, T = positions, V = vocab_size, K = ranked answers of one prompt, N = answers, M = values of beta;
σ = sigmoid. The shared task and the best policy are in `preference_task`.
Sources: Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, section 3.5, equations below; Ziegler et al. 2019,
arXiv 1909.08593 (the toll of every token, the adaptive beta); Gao et al. 2022, arXiv 2210.10760 (best-of-n, gold and
proxy).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from internals_math import tiny_lm
from internals_math.distributions import kl_divergence, pooled
from internals_math.dpo import bradley_terry_probability, expected_reward, sequence_log_probs
from internals_math.preference_task import alone, check_probs, optimal_policy, words
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "AdaptiveKLController", "BestOfN", "Comparisons", "Config", "GoodhartCurve", "Trace", "adaptive_kl_update",
    "bayes_accuracy", "best_of_n_kl_bound", "best_of_n_policy", "goodhart_curve", "kl_shaped_rewards",
    "normalize_reward_bias", "optimal_policy", "pairwise_reward_loss", "ranking_pairs", "ranking_reward_loss",
    "reinforce_loss", "reward_accuracy", "rlhf_objective", "sft_loss", "trace",
]  # fmt: skip

KL_ERROR_CLIP = 0.2  # of the adaptive beta, as in 1909.08593
SHOWN = 8  # answers with a bar of their own; the ninth bar is all others together
SHOWN_COMPARISONS = 12
SCATTERED = 200
BEST_OF = (1, 2, 4, 8, 16)


# -- stage 1: imitate --------------------------------------------------------------------------------------------------


def sft_loss(
    logits: Float[Tensor, "B T V"], labels: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Return the mean surprisal of the response tokens of all rows together, in nats.

    Args:
        logits: position t predicts labels[:, t + 1]; the shift happens here.
        labels: prompt and response, unshifted.
        mask: True = a token of the response.

    Raises:
        ValueError: shapes that do not fit, a row without a response, or a response that starts at position 0.
    """
    return -sequence_log_probs(logits, labels, mask).sum() / mask.sum()


# -- stage 2: fit a reward ---------------------------------------------------------------------------------------------


def pairwise_reward_loss(
    chosen_rewards: Float[Tensor, " B"], rejected_rewards: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Return the mean of -ln σ(r_chosen - r_rejected): eq. 1 for one pair of each prompt.

    Raises:
        ValueError: no pairs, or a different number of chosen and rejected ones.
    """
    _check_same_shape(chosen_rewards, rejected_rewards, "chosen_rewards and rejected_rewards")
    return -logsigmoid(chosen_rewards - rejected_rewards).mean()


def ranking_pairs(n_answers: int) -> Int[Tensor, "2 pairs"]:
    """Return the places (better, worse) of all pairs among answers that are ranked from best to worst.

    Raises:
        ValueError: fewer than 2 answers.

    >>> ranking_pairs(3)
    tensor([[0, 0, 1],
            [1, 2, 2]])
    """
    if n_answers < 2:
        raise ValueError(f"a ranking needs at least 2 answers, got {n_answers}")
    return torch.combinations(torch.arange(n_answers)).T


def ranking_reward_loss(rewards: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Return -ln σ(r_better - r_worse), averaged over all K(K-1)/2 pairs of each ranking (eq. 1).

    Args:
        rewards: (B, K) of the answers to B prompts, each row from the best answer to the worst.

    Raises:
        ValueError: fewer than 2 answers, or no rankings.
    """
    better, worse = ranking_pairs(rewards.shape[-1])
    return pairwise_reward_loss(rewards[:, better].flatten(), rewards[:, worse].flatten())


def reward_accuracy(rewards_1: Float[Tensor, " B"], rewards_2: Float[Tensor, " B"], labels: Int[Tensor, " B"]) -> float:
    """Return the share of comparisons that the rewards order as the labels do; equal rewards count half.

    Args:
        labels: 1 = the first answer was preferred, 0 = the second.

    Raises:
        ValueError: labels other than 0 and 1, no comparisons, or tensors of different shapes.
    """
    _check_same_shape(rewards_1, rewards_2, "rewards_1 and rewards_2")
    _check_same_shape(rewards_1, labels, "rewards and labels")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be 1 (the first answer won) or 0, got {sorted(set(labels.tolist()))}")
    agreement = (rewards_1 - rewards_2).sign() * (2 * labels - 1)  # 1 right, -1 wrong, 0 a tie
    return float((agreement + 1).double().mean() / 2)


def bayes_accuracy(gold_1: Float[Tensor, " B"], gold_2: Float[Tensor, " B"]) -> float:
    """Return how often even the true reward predicts a noisy (Bradley-Terry) label: the mean of max(p, 1 - p).

    Raises:
        ValueError: no comparisons, or tensors of different shapes.
    """
    _check_same_shape(gold_1, gold_2, "gold_1 and gold_2")
    return float(bradley_terry_probability(gold_1, gold_2).sub(0.5).abs().mean() + 0.5)


def normalize_reward_bias(
    rewards: Float[Tensor, "*shape"], demonstration_rewards: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "*shape"], float]:
    """Return rewards shifted so that demonstrations have mean 0, and the bias that was taken off.

    Comparisons say nothing about the level of a reward; this fixes it (section 3.5).

    Raises:
        ValueError: no demonstrations.
    """
    if not len(demonstration_rewards):
        raise ValueError("normalize_reward_bias needs at least one demonstration")
    bias = float(demonstration_rewards.mean())
    return rewards - bias, bias


def _check_same_shape(one: Tensor, other: Tensor, names: str) -> None:
    if one.shape != other.shape or not one.numel():
        raise ValueError(
            f"{names} must have one shape and at least one entry, got {tuple(one.shape)} and {tuple(other.shape)}"
        )


# -- stage 3: climb it on a leash --------------------------------------------------------------------------------------


def kl_shaped_rewards(
    scores: Float[Tensor, " B"],
    policy_logps: Float[Tensor, "B T"],
    reference_logps: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    beta: float,
) -> Float[Tensor, "B T"]:
    """Return the reward of every token: each pays beta·(ln π - ln π_ref), the last one also earns the score.

    The sum over a row is the bracket of eq. 2 (1909.08593, section 2.2, token by token).

    Args:
        scores: of whole responses.
        policy_logps, reference_logps: ln p of every token given what stands before it.
        mask: True = a token of the response; all other places return 0.

    Raises:
        ValueError: beta below 0, shapes that do not fit, or a row without a response.
    """
    check_price(beta)
    shapes = [tuple(part.shape) for part in (policy_logps, reference_logps, mask)]
    if len(set(shapes)) > 1 or shapes[0][:1] != tuple(scores.shape):
        raise ValueError(f"scores (B,) and log-probabilities and mask (B, T) must fit, got {scores.shape} and {shapes}")
    if not mask.any(dim=1).all():
        empty = (~mask.any(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(f"every row needs at least one response token, got an empty mask in rows {empty}")
    toll = (-beta * (policy_logps - reference_logps)).where(mask, 0.0)  # what stands under the mask may be anything
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1, keepdim=True)
    return toll.scatter_add(1, last, scores[:, None].to(toll.dtype))


def reinforce_loss(logps: Float[Tensor, " B"], returns: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the loss whose negative gradient is the mean of (return - baseline)·∇ln π; the baseline is the batch mean.

    Args:
        logps: ln π of whole responses that were drawn from π, with gradient.
        returns: the bracket of eq. 2 for each, taken as constants.

    Raises:
        ValueError: no responses, or tensors of different shapes.
    """
    _check_same_shape(logps, returns, "logps and returns")
    advantages = (returns - returns.mean()).detach()
    return -(advantages * logps).mean()


def rlhf_objective(
    policy_probs: Float[Tensor, "*batch N"],
    reference_probs: Float[Tensor, "*batch N"],
    rewards: Float[Tensor, "*batch N"],
    beta: float,
) -> Float[Tensor, "*batch"]:
    """Return E[r] - beta·KL(policy ‖ reference) of each prompt, by enumeration (eq. 2 with gamma = 0).

    Raises:
        ValueError: beta below 0, or probabilities that do not sum to 1 (within 1e-4).
    """
    check_price(beta)
    check_probs(policy_probs, "policy_probs")
    check_probs(reference_probs, "reference_probs")
    earned = expected_reward(policy_probs, rewards)
    if beta == 0:
        return earned  # no toll, not even where the divergence is infinite
    return earned - beta * kl_divergence(policy_probs, reference_probs)


def check_price(beta: float) -> None:
    """Raise ValueError if beta, the price of leaving the reference, is below 0; 0 is no leash at all."""
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")


def adaptive_kl_update(beta: float, current_kl: float, target: float, n_steps: int, horizon: int) -> float:
    """Return the next beta: higher if the policy went further than the target, lower if less (1909.08593, section 2.2).

    The relative error is clipped to ±0.2; one batch moves beta by that share of n_steps / horizon.

    Args:
        n_steps: episodes since the last update.
        horizon: episodes over which the whole clipped error is applied.

    Raises:
        ValueError: beta below 0, target not > 0, horizon or n_steps below 1.

    >>> round(adaptive_kl_update(0.2, current_kl=9.0, target=6.0, n_steps=64, horizon=10_000), 6)
    0.200256
    """
    check_price(beta)
    if not target > 0:
        raise ValueError(f"target must be > 0 nats, got {target}")
    if n_steps < 1 or horizon < 1:
        raise ValueError(f"n_steps and horizon must be at least 1, got {n_steps} and {horizon}")
    error = min(max(current_kl / target - 1, -KL_ERROR_CLIP), KL_ERROR_CLIP)
    return beta * (1 + error * n_steps / horizon)


class AdaptiveKLController:
    """Keeps a beta that follows the divergence to a target.

    Raises:
        ValueError: as `adaptive_kl_update`.
    """

    def __init__(self, initial: float, target: float, horizon: int) -> None:
        adaptive_kl_update(initial, target, target, 1, horizon)  # refuses what makes no sense
        self.beta = initial
        self.target = target
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> float:
        """Move beta after a batch of n_steps episodes whose mean divergence was current_kl, and return it."""
        self.beta = adaptive_kl_update(self.beta, current_kl, self.target, n_steps, self.horizon)
        return self.beta


# -- too much of a good thing ------------------------------------------------------------------------------------------


def best_of_n_policy(
    reference_probs: Float[Tensor, "*batch N"], rewards: Float[Tensor, "*batch N"], n: int
) -> Float[Tensor, "*batch N"]:
    """Return the exact distribution of the best of n answers drawn from the reference; a tie is broken at random.

    The best answer lies in a group of equal rewards if all n lie there or below, but not all below: Fⁿ - F₋ⁿ, which the
    group's answers share as the reference does.

    Raises:
        ValueError: n below 1, or probabilities that do not sum to 1.

    >>> best_of_n_policy(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 2.0]), n=2)
    tensor([0.2500, 0.3900, 0.3600])
    """
    _check_n(n)
    check_probs(reference_probs, "reference_probs")
    answers = reference_probs.shape[-1]
    rows = zip(reference_probs.reshape(-1, answers), rewards.reshape(-1, answers), strict=True)
    return torch.stack([_best_of_n(probs, row, n) for probs, row in rows]).view_as(reference_probs)


def _best_of_n(probs: Float[Tensor, " N"], rewards: Float[Tensor, " N"], n: int) -> Float[Tensor, " N"]:
    _, group = rewards.unique(return_inverse=True)  # sorted by reward
    mass = torch.zeros(int(group.max()) + 1, dtype=probs.dtype, device=probs.device).index_add(0, group, probs)
    up_to = mass.cumsum(dim=0) / mass.sum()
    below = torch.cat([torch.zeros_like(up_to[:1]), up_to[:-1]])
    lift = ((up_to**n - below**n) / mass).where(mass > 0, 0.0)
    return probs * lift[group]


def best_of_n_kl_bound(n: int) -> float:
    """Return ln n - (n - 1) / n, the most that the best of n can differ from the reference, in nats; reached only if no
    two answers have the same reward and each is rare (2210.10760, section 3.1).

    Raises:
        ValueError: n below 1.
    """
    _check_n(n)
    return math.log(n) - (n - 1) / n


def _check_n(n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1 answer, got {n}")


@dataclass(frozen=True, eq=False)
class GoodhartCurve:
    """Where the best policy lies at each beta, averaged over prompts."""

    kl: Float[Tensor, " M"]  # to the reference, nats
    proxy: Float[Tensor, " M"]  # expected value of the reward that was climbed
    gold: Float[Tensor, " M"]  # and of the true one


def goodhart_curve(
    reference_probs: Float[Tensor, "*batch N"],
    proxy: Float[Tensor, "*batch N"],
    gold: Float[Tensor, "*batch N"],
    betas: Float[Tensor, " M"],
) -> GoodhartCurve:
    """Return divergence and both rewards of the policy that is best for the proxy, at each beta (2210.10760).

    Raises:
        ValueError: a beta that is not > 0, or probabilities that do not sum to 1.
    """
    points = []
    for beta in betas.tolist():
        policy, _ = optimal_policy(reference_probs, proxy, beta)
        values = (
            kl_divergence(policy, reference_probs),
            expected_reward(policy, proxy),
            expected_reward(policy, gold),
        )
        points.append(torch.stack([value.mean() for value in values]))
    return GoodhartCurve(*torch.stack(points).unbind(dim=1))


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    n_comparisons: int = option(2048, "comparisons by the simulated labeler", minimum=128, maximum=8192)
    beta: float = option(0.2, "price of leaving the imitator", minimum=0.01, maximum=2)
    rl_steps: int = option(120, "steps of the climb", minimum=20, maximum=300)
    samples_per_step: int = option(192, "answers drawn in each step", minimum=32, maximum=512)
    sft_demos: int = option(128, "good answers to imitate", minimum=16, maximum=512)
    learning_rate: float = option(3e-4, "of the climb (Adam)", minimum=1e-5, maximum=5e-3)
    seed: int = option(0, "of prompts, demonstrations, labels and samples", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """What the simulated labeler saw and chose, up to SHOWN_COMPARISONS times; places count the shown answers."""

    answer_1: tuple[str, ...]
    answer_2: tuple[str, ...]
    place_1: Int[Tensor, " C"]
    place_2: Int[Tensor, " C"]
    winner: Int[Tensor, " C"]  # 1 or 2
    gold_gap: Float[Tensor, " C"]  # true reward of answer 1 less that of answer 2
    probability: Float[Tensor, " C"]  # that answer 1 wins
    surprising: Bool[Tensor, " C"]  # the answer with the lower true reward won


@dataclass(frozen=True, eq=False)
class BestOfN:
    """The best of n answers by the learned reward, exactly; averaged over prompts."""

    ns: Int[Tensor, " n"]
    kl: Float[Tensor, " n"]
    proxy: Float[Tensor, " n"]
    gold: Float[Tensor, " n"]
    kl_bound: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    Bars (9): SHOWN answers to prompt 0, then all others together (NaN where that has no meaning). "Proxy" is the
    learned reward with its mean over the demonstrations at 0, "gold" the true one. Divergence in nats, from the
    imitator; KL and rewards of whole policies are means over the prompts. Records: before the first step, then every 5.
    """

    config: Config
    prompt_tokens: tuple[str, ...]
    answer_tokens: tuple[str, ...]  # 9
    pretrained_probs: Float[Tensor, " 9"]
    sft_probs: Float[Tensor, " 9"]
    final_probs: Float[Tensor, " 9"]
    shown_gold: Float[Tensor, " 9"]
    shown_proxy: Float[Tensor, " 9"]
    pretrained_gold: float  # mean true reward
    sft_gold: float
    sft_curve: Float[Tensor, " T1"]  # loss over all demonstrations, after 0, 1, 2 … steps
    comparisons: Comparisons
    reward_steps: Int[Tensor, " T2"]
    reward_curve: Float[Tensor, " T2"]  # loss on held-out comparisons
    reward_accuracy_curve: Float[Tensor, " T2"]
    bayes_accuracy: float  # what the true reward would reach there, on average over the labels
    held_out_pairs: int
    ladder_rewards: Float[Tensor, "T2 8"]  # of the shown answers, before the bias is taken off
    reward_bias: float
    gold_rewards: Float[Tensor, " S"]  # of answers that the imitator gives
    proxy_rewards: Float[Tensor, " S"]
    reward_correlation: float
    far_gold_rewards: Float[Tensor, " S"]  # of answers drawn from all V² alike
    far_proxy_rewards: Float[Tensor, " S"]
    far_correlation: float
    diagonal_level: float  # mean of proxy - gold over the imitator's answers: where the diagonal lies
    overrated: Bool[Tensor, " S"]  # more than 1 above the diagonal
    far_overrated: Bool[Tensor, " S"]
    episode_tokens: tuple[str, ...]  # the first answer of the last step
    episode_score: float
    token_rewards: Float[Tensor, " 2"]
    token_kl: Float[Tensor, " 2"]  # ln π - ln π_ref of each word
    rl_steps: Int[Tensor, " T3"]
    rl_kl: Float[Tensor, " T3"]
    rl_proxy: Float[Tensor, " T3"]
    rl_gold: Float[Tensor, " T3"]
    rl_objective: Float[Tensor, " T3"]  # proxy - beta·KL
    rl_probs: Float[Tensor, "T3 9"]
    optimal_kl: float  # of the best policy at config.beta
    optimal_proxy: float
    optimal_gold: float
    goodhart_betas: Float[Tensor, " M"]
    goodhart_kl: Float[Tensor, " M"]
    goodhart_proxy: Float[Tensor, " M"]
    goodhart_gold: Float[Tensor, " M"]
    goodhart_probs: Float[Tensor, "M 9"]
    best_of_n: BestOfN
    over_optimized_answer: tuple[str, ...]  # the best policy's favorite at the smallest beta
    over_optimized_place: int  # among the shown
    kl_peak: float | None  # where the true reward of the best policy is highest; None if it never falls
    samples: dict[str, tuple[str, ...]]  # by stage: answers to prompt 0, drawn with one seed
    tale_loss: dict[str, float]  # by stage: nats a word, on whole stories that the training never touched


def trace(config: Config) -> Trace:
    """Run the pipeline on copies of the base model, and enumerate what it did."""
    from internals_math import rlhf_experiment as experiment  # it is built on the functions above

    run = experiment.train(config)
    betas = torch.logspace(1, -2, 61, dtype=torch.float64)
    curve = goodhart_curve(run.sft_probs, run.proxy, run.gold, betas)
    tilted = torch.stack([optimal_policy(run.sft_probs[0], run.proxy[0], beta)[0] for beta in betas.tolist()])
    favorite = int(tilted[-1].argmax())
    shown = experiment.shown_answers(run, favorite)
    peak = int(curve.gold.argmax())
    values: dict[str, Any] = experiment.reward_records(run, shown) | experiment.rl_records(run, shown)
    values |= experiment.scatter(run) | experiment.after_words(run) | run.episode
    return Trace(
        config=config,
        prompt_tokens=tiny_lm.tokens(run.task.prefixes[0]),
        answer_tokens=(*(words(answer) for answer in shown.tolist()), "all others"),
        pretrained_probs=pooled(run.pretrained_probs[0], shown),
        sft_probs=pooled(run.sft_probs[0], shown),
        shown_gold=alone(run.gold[0], shown),
        shown_proxy=alone(run.proxy[0], shown),
        pretrained_gold=float(expected_reward(run.pretrained_probs, run.gold).mean()),
        sft_gold=float(expected_reward(run.sft_probs, run.gold).mean()),
        sft_curve=torch.stack(run.sft_curve),
        comparisons=experiment.comparisons(run, shown),
        goodhart_betas=betas,
        goodhart_kl=curve.kl,
        goodhart_proxy=curve.proxy,
        goodhart_gold=curve.gold,
        goodhart_probs=pooled(tilted, shown),
        best_of_n=experiment.best_of_n(run),
        over_optimized_answer=tuple(words(favorite).split()),
        over_optimized_place=shown.tolist().index(favorite),
        kl_peak=None if peak == len(betas) - 1 else float(curve.kl[peak]),
        **values,
    )
