"""Group Relative Policy Optimization: the answers to one prompt are each other's baseline, and no critic is needed.

Notation: K = prompts, G = group_size, N = answers of a batch, T = tokens of an answer, P = parameters, S = sampled
gradients, p = probability that an answer succeeds; Â = advantage, ρ = π_new / π_old of a token.
Sources: Shao et al. 2024, arXiv 2402.03300 (DeepSeekMath; equations below); Liu et al. 2025, arXiv 2503.20783
(Dr. GRPO); Yu et al. 2025, arXiv 2503.14476 (DAPO); Ahmadian et al. 2024, arXiv 2402.14740 (RLOO).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.ppo import clip_fraction, clipped_surrogate, kl_estimators, probability_ratio
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "GRPOLoss", "Trace", "clipped_surrogate", "expected_prompt_weight", "gradient_statistics",
    "group_advantages", "grpo_loss", "kl_k3", "optimal_scalar_baseline", "rl_training_memory", "token_weights", "trace",
    "zero_signal_probability",
]  # fmt: skip

METHODS = ("none", "batch_mean", "group_mean", "rloo", "grpo")
LOSS_TYPES = ("grpo", "dapo", "dr_grpo")
TRAINED_BYTES = 16  # per parameter: weight and gradient in 2 bytes each, master weight and two moments in 4 each
FROZEN_BYTES = 2
MODELS = {  # what is held while training: trained or frozen
    "ppo": {"policy": TRAINED_BYTES, "value": TRAINED_BYTES, "reference": FROZEN_BYTES, "reward": FROZEN_BYTES},
    "grpo": {"policy": TRAINED_BYTES, "reference": FROZEN_BYTES, "reward": FROZEN_BYTES},
    "grpo_rule": {"policy": TRAINED_BYTES, "reference": FROZEN_BYTES},  # rewards from a rule, not from a model
}


# -- the baseline ------------------------------------------------------------------------------------------------------


def group_advantages(
    rewards: Float[Tensor, "K G"], *, method: str = "grpo", ddof: int = 0, eps: float = 0.0
) -> Float[Tensor, "K G"]:
    """Return how much better each answer is than its baseline.

    The expected update with them, against the gradient g of the prompt's mean reward: "none" and "rloo" g;
    "group_mean" (1 - 1/G)g, for the mean includes the answer itself; "grpo" depends on the prompt, see
    `expected_prompt_weight`.

    Args:
        rewards: a group of answers to one prompt in each row.
        method: "none" r; "batch_mean" r - mean over all prompts; "group_mean" r - mean of the group (2503.20783);
            "rloo" r - mean of the others (2402.14740); "grpo" (r - mean) / std of the group (section 4.1.2).
        ddof: 0 = population, 1 = unbiased standard deviation, as in TRL ("grpo" only).
        eps: added to the standard deviation; TRL has 1e-4.

    Raises:
        ValueError: groups of less than 2 answers, an unknown method, ddof not 0 or 1, or a negative eps.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    tensor([[ 1., -1., -1.,  1.]])
    """
    group_size = rewards.shape[1]
    _check_group_size(group_size)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    if method == "none":
        return rewards.clone()
    if method == "batch_mean":
        return rewards - rewards.mean()
    silent = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centered = (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(silent, 0.0)  # not what rounding leaves
    if method == "group_mean":
        return centered
    if method == "rloo":
        return centered * (group_size / (group_size - 1))
    spread = rewards.std(dim=1, correction=ddof, keepdim=True)
    return (centered / (spread + eps)).masked_fill(silent, 0.0)


def zero_signal_probability(p: Float[Tensor, "*shape"], group_size: int) -> Float[Tensor, "*shape"]:
    """Return how likely a group of 0/1 rewards is silent: all successes or all failures, p^G + (1 - p)^G.

    Raises:
        ValueError: groups of less than 2 answers, or p not between 0 and 1.
    """
    _check_group_size(group_size)
    _check_open(p)
    return p**group_size + (1 - p) ** group_size


def expected_prompt_weight(p: Float[Tensor, "*shape"], group_size: int) -> Float[Tensor, "*shape"]:
    """Return w(p, G): with 0/1 rewards the expected update of "grpo" (ddof 0) is w·∇p, not ∇p.

    w = E[√(k(G - k)) / G] / (p(1 - p)) over the number k of successes; its limit for large groups is 1/√(p(1 - p)), so
    that easy and hard prompts weigh more.

    Raises:
        ValueError: groups of less than 2 answers, or p not between 0 and 1.

    >>> expected_prompt_weight(torch.tensor([0.1, 0.5]), 2)
    tensor([1., 1.])
    """
    _check_group_size(group_size)
    _check_open(p)
    k = torch.arange(1, group_size, dtype=p.dtype, device=p.device)  # at 0 and at G the group is silent
    ways = math.lgamma(group_size + 1) - (k + 1).lgamma() - (group_size - k + 1).lgamma()  # ln of "G choose k"
    likely = (ways + k * p[..., None].log() + (group_size - k) * (-p[..., None]).log1p()).exp()  # (*shape, G - 1)
    spread = (k * (group_size - k)).sqrt() / group_size
    return (likely * spread).sum(dim=-1) / (p * (1 - p))


def optimal_scalar_baseline(
    rewards: Float[Tensor, " N"], scores: Float[Tensor, "N P"], probs: Float[Tensor, " N"]
) -> float:
    """Return the constant baseline of least variance: E[r‖∇ln π‖²] / E[‖∇ln π‖²].

    Args:
        rewards: of every answer.
        scores: ∇ln π(answer).
        probs: π(answer); they sum to 1.

    Raises:
        ValueError: tensors that do not fit, or scores that are all 0.
    """
    if not len(rewards) == len(scores) == len(probs):
        raise ValueError(
            f"rewards (N,), scores (N, P) and probs (N,) must fit, got N {len(rewards)}, {len(scores)}, {len(probs)}"
        )
    weights = probs * scores.square().sum(dim=1)
    if not weights.sum() > 0:
        raise ValueError("scores must not all be 0: without a gradient every baseline is as good")
    return float((weights * rewards).sum() / weights.sum())


def gradient_statistics(samples: Float[Tensor, "S P"], exact: Float[Tensor, " P"]) -> dict[str, Any]:
    """Compare sampled gradients with the exact one.

    Returns:
        bias ‖mean - exact‖ / ‖exact‖; cosines (S,) of each sample with the exact gradient, and cosine_mean;
        relative_variance: the sum of all variances (population) over ‖mean‖², which does not depend on the scale.

    Raises:
        ValueError: no sample, or an exact gradient of 0.
    """
    if not len(samples):
        raise ValueError("gradient_statistics needs at least one sample")
    if not exact.norm() > 0:
        raise ValueError("exact must not be 0: nothing can be compared with it")
    mean = samples.mean(dim=0)
    cosines = torch.nn.functional.cosine_similarity(samples, exact[None], dim=1)
    return {
        "bias": float((mean - exact).norm() / exact.norm()),
        "cosine_mean": float(cosines.mean()),
        "relative_variance": float(samples.var(dim=0, correction=0).sum() / mean.square().sum()),
        "cosines": cosines,
    }


# -- the loss ----------------------------------------------------------------------------------------------------------


def token_weights(lengths: Int[Tensor, " N"], *, loss_type: str, max_length: int | None = None) -> Tensor:
    """Return what one token of each answer weighs in the loss: (N,), float64.

    Args:
        loss_type: "grpo" 1/(N|o|): every answer the same, so the tokens of long ones less (eq. 3); "dapo" 1/Σ|o|: every
            token the same (2503.14476, eq. 8); "dr_grpo" 1/(N·max_length): a constant (2503.20783).
        max_length: the limit on answers, for "dr_grpo".

    Raises:
        ValueError: an unknown loss_type, an answer without a token, or a max_length that is missing or too small.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}")
    if not (lengths > 0).all():
        raise ValueError(f"every answer needs a token, got lengths {lengths.tolist()}")
    sizes = lengths.double()
    if loss_type == "grpo":
        return 1 / (len(sizes) * sizes)
    if loss_type == "dapo":
        return torch.ones_like(sizes) / sizes.sum()
    if max_length is None or max_length < int(lengths.max()):
        raise ValueError(f"dr_grpo needs max_length >= {int(lengths.max())} (the longest answer), got {max_length}")
    return torch.ones_like(sizes) / (len(sizes) * max_length)


def kl_k3(policy_logps: Float[Tensor, "*shape"], reference_logps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return u - ln u - 1 with u = π_ref / π of each sample of the policy (eq. 4).

    Its mean is KL(π ‖ π_ref). Its gradient, on samples held fixed, is that of the other direction, KL(π_ref ‖ π), on
    average; k2 would have that of KL(π ‖ π_ref), and k1 none (2510.01555).
    """
    return kl_estimators(policy_logps, reference_logps)["k3"]


@dataclass(frozen=True, eq=False)
class GRPOLoss:
    """What `grpo_loss` says of a batch; loss = policy + beta·kl."""

    loss: Float[Tensor, ""]  # to minimize
    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]  # k3, weighted as the loss
    clip_fraction: float  # of all tokens


def grpo_loss(
    new_logps: Float[Tensor, "N T"],
    old_logps: Float[Tensor, "N T"],
    reference_logps: Float[Tensor, "N T"],
    advantages: Float[Tensor, " N"],
    mask: Bool[Tensor, "N T"],
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.04,
    loss_type: str = "grpo",
    max_length: int | None = None,
) -> GRPOLoss:
    """Return the negative of eq. 3: PPO's clipped surrogate and a price on KL, all tokens of an answer with its Â.

    Args:
        new_logps, old_logps, reference_logps: ln p of every token under the policy, the sampling one, the reference.
        mask: True = a token of the answer.
        epsilon_high: another ε above 1 (DAPO: 0.2 and 0.28); None = the same.
        beta: price of the KL, which stands in the loss and not in the reward.
        loss_type, max_length: as in `token_weights`.

    Raises:
        ValueError: epsilon not between 0 and 1, a negative beta, tensors that do not fit, an answer without a token, or
            what `token_weights` refuses.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    shapes = {tuple(part.shape) for part in (new_logps, old_logps, reference_logps, mask)}
    if len(shapes) > 1 or tuple(advantages.shape) != (len(new_logps),):
        raise ValueError(
            f"log-probabilities and mask (N, T) and advantages (N,) must fit, got {sorted(shapes)} and "
            f"{tuple(advantages.shape)}"
        )
    weights = token_weights(mask.sum(dim=1), loss_type=loss_type, max_length=max_length).to(new_logps.dtype)
    ratio = probability_ratio(new_logps, old_logps)
    surrogate = clipped_surrogate(ratio, advantages[:, None].expand_as(ratio), epsilon, epsilon_high)
    spread = weights[:, None].expand_as(ratio)[mask]
    policy = -(spread * surrogate[mask]).sum()
    kl = (spread * kl_k3(new_logps, reference_logps)[mask]).sum()
    return GRPOLoss(policy + beta * kl, policy, kl, clip_fraction(ratio, epsilon, epsilon_high, mask))


def rl_training_memory(n_params: float, algorithm: str) -> dict[str, float]:
    """Return the bytes of every model that training holds, all of one size; activations are not counted.

    16 bytes per trained and 2 per frozen parameter; "grpo_rule" has rewards from a rule in place of a model.

    Raises:
        ValueError: n_params is not > 0, or an unknown algorithm.
    """
    if not n_params > 0:
        raise ValueError(f"n_params must be > 0, got {n_params}")
    if algorithm not in MODELS:
        raise ValueError(f"algorithm must be one of {', '.join(MODELS)}, got {algorithm!r}")
    return {model: n_params * per_param for model, per_param in MODELS[algorithm].items()}


def _check_group_size(group_size: int) -> None:
    if group_size < 2:
        raise ValueError(f"a group needs at least 2 answers, got {group_size}")


def _check_open(p: Tensor) -> None:
    if not ((p > 0) & (p < 1)).all():
        raise ValueError(f"p must be between 0 and 1, got {p.tolist()}")


# -- what the video shows ----------------------------------------------------------------------------------------------

BATCH_SIZE = 96  # answers of every batch, whatever the group size
GROUP_SIZES = tuple(size for size in range(2, 33) if BATCH_SIZE % size == 0)


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    group_size: int = option(8, "answers to one prompt; 96 in all", choices=GROUP_SIZES)
    method: str = option("grpo", "baseline of the worked group and of the curves", choices=METHODS)
    reward: str = option("gold", "gold: the reader's taste; binary: 1 if it is at least 1", choices=("gold", "binary"))
    reward_offset: float = option(2.0, "added to every gold reward", minimum=-3, maximum=5)
    prompt_offset: float = option(1.5, "standard deviation of what each prompt adds", minimum=0, maximum=3)
    beta: float = option(0.04, "price of leaving the reference", minimum=0, maximum=0.5)
    epsilon: float = option(0.2, "half-width of the clip around a ratio of 1", minimum=0.05, maximum=0.5)
    train_steps: int = option(60, "updates, one on each batch", minimum=10, maximum=150)
    learning_rate: float = option(1e-3, "of Adam", minimum=1e-4, maximum=1e-2)
    gradient_samples: int = option(200, "batches whose gradients are compared", minimum=50, maximum=400)
    seed: int = option(0, "of the prompts, their offsets and the answers", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Gradients are over all parameters of the tiny LM; KL in nats per answer."""

    config: Config
    prompt_tokens: tuple[str, ...]
    group_tokens: tuple[str, ...]  # 8 answers to prompt 0
    group_rewards: Float[Tensor, " 8"]  # gold with its offsets
    group_mean: float
    group_std: float  # population
    group_centered: Float[Tensor, " 8"]
    group_advantage: Float[Tensor, " 8"]  # by config.method, the group alone
    zero_shifts: Float[Tensor, " 19"]  # added to every reward: the same preferences with another zero
    zero_rewards: Float[Tensor, "19 8"]  # the group's, at each zero
    zero_variance: dict[str, Float[Tensor, " 19"]]  # of sampled gradients, relative
    prompts: tuple[str, ...]  # 6
    prompt_success: Float[Tensor, " 6"]  # exact, before training
    batch_rewards: Float[Tensor, "6 8"]
    batch_mean: float
    batch_group_means: Float[Tensor, " 6"]
    batch_advantages: dict[str, Float[Tensor, "6 8"]]
    gradient_cloud: dict[str, Float[Tensor, "60 2"]]  # along the exact gradient, across; mean length 1
    gradient_tip: Float[Tensor, " 2"]  # of the exact gradient on the same scale
    gradient_variance: dict[str, float]  # relative: Σ Var / ‖mean‖²
    gradient_cosine: dict[str, float]  # mean over samples, with the exact gradient
    gradient_bias: dict[str, float]  # ‖mean - exact‖ / ‖exact‖
    gradient_bias_noise: dict[str, float]  # of which this much is expected of chance alone
    group_sizes: Int[Tensor, " 4"]
    variance_by_group_size: dict[str, Float[Tensor, " 4"]]  # relative, 96 answers in all
    weight_p: Float[Tensor, " 99"]
    weight_curve: Float[Tensor, " 99"]  # w(p, config.group_size)
    weight_curve_limit: Float[Tensor, " 99"]
    silent_curve: Float[Tensor, " 99"]
    silent_by_group_size: dict[str, Float[Tensor, " 99"]]
    dial_p: Float[Tensor, " 19"]
    dial_rewards: Float[Tensor, "19 8"]  # 0 or 1: eight answers with one luck each, at growing p
    dial_advantages: Float[Tensor, "19 8"]
    dial_silent: Float[Tensor, " 19"]  # probability that a group of eight is silent
    length_prompt: str
    length_answers: tuple[str, ...]  # 8 real ends of one sentence
    answer_lengths: Int[Tensor, " 8"]
    length_limit: int
    token_weight: dict[str, Float[Tensor, " 8"]]
    kl_u: Float[Tensor, " 101"]
    kl_k1: Float[Tensor, " 101"]
    kl_k3: Float[Tensor, " 101"]
    steps: Int[Tensor, " steps"]
    curve_reward: dict[str, Float[Tensor, " steps"]]  # exact E[r*]
    curve_success: dict[str, Float[Tensor, " steps"]]
    curve_kl: dict[str, Float[Tensor, " steps"]]  # exact KL to the reference
    curve_silent: dict[str, Float[Tensor, " steps"]]  # share of silent groups in the step's batch
    samples_before: tuple[str, ...]  # answers to prompt 0, drawn with one seed
    samples_after: tuple[str, ...]  # by config.method
    tale_loss_before: float  # nats a word, on whole stories that the training never touched
    tale_loss_after: float
    memory_parts: tuple[str, ...]
    memory_gb: dict[str, Float[Tensor, " 4"]]  # 7B parameters, 10⁹ bytes; 0 = there is no such model
    memory_total_gb: dict[str, float]


def trace(config: Config) -> Trace:
    """Compare the baselines on one group, on sampled gradients, and in training."""
    from internals_math import grpo_experiment as experiment  # it is built on the functions above

    world = experiment.make_world(config)
    values: dict[str, Any] = {}
    for part in (
        experiment.one_group(world),
        experiment.one_batch(world),
        experiment.gradient_noise(world),
        experiment.prompt_weights(config.group_size),
        experiment.dial(config.seed),
        experiment.lengths(world),
        experiment.estimator_shapes(),
        experiment.training(world),
        experiment.memory(),
    ):
        values |= part
    return Trace(config=config, **values)
