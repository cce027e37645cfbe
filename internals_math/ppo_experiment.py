"""PPO on the shared preference task: one batch used in three ways, one episode with its credit, and a full run.

The reader's score of an answer is noisy, as a real reward model's is; what is true of a policy is an exact sum over all
V² answers. Values come from a linear head on the frozen base model's last hidden state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import preference_task, progress, tiny_lm
from internals_math.distributions import kl_divergence, pooled
from internals_math.dpo import expected_reward
from internals_math.next_token import sample_token
from internals_math.ppo import (
    METHODS,
    SHOWN,
    Config,
    adaptive_kl_beta,
    clip_fraction,
    clip_gradient_mask,
    clipped_surrogate,
    generalized_advantage_estimation,
    interpolate_policies,
    kl_estimators,
    kl_penalized_surrogate,
    ppo_loss,
    probability_ratio,
    surrogate,
    whiten,
)
from internals_math.preference_task import (
    ANSWER_LENGTH,
    REPEATED,
    PreferenceTask,
    alone,
    answer_probs,
    optimal_policy,
    place_of,
    words,
)
from internals_math.rlhf import kl_shaped_rewards

EARLIER_ROLLOUTS = 256  # that the value head is fitted on
RIDGE = 1.0
EPISODE_LENGTH = 8
INNER_EPOCHS = 10  # on each batch of the full run
TARGET_KL = 0.02  # nats per token, of the adaptive penalty
ADAPT_EVERY = 5  # epochs: a new price needs a few steps before its effect can be measured
INTERPOLATION_EPOCH = 3
SIMPLEX_KL = 0.05


@dataclass(frozen=True, eq=False)
class World:
    """What does not change; probabilities and rewards in float64, answers flattened (K, V²)."""

    config: Config
    base: tiny_lm.TinyLM  # the old policy of the one batch, and the reference
    task: PreferenceTask
    reference_probs: Float[Tensor, "K N"]
    rewards: Float[Tensor, "K N"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Answers of one policy, with what is known when they are written."""

    prompt: Int[Tensor, " B"]
    ids: Int[Tensor, "B T_all"]  # prompts with their answers
    log_probs: Float[Tensor, "B 2 V"]  # of all next words, before each word of the answer
    logps: Float[Tensor, "B 2"]  # of the word that came
    features: Float[Tensor, "B 2 D"]  # of both states, for the value head
    rewards: Float[Tensor, "B 2"]  # the price of leaving the reference, and at the end the noisy score


@dataclass(frozen=True, eq=False)
class Path:
    """Where one method takes the policy, epoch by epoch (index 0 = before the first step)."""

    probs: Float[Tensor, "E_1 K N"]
    ratios: Float[Tensor, "E_1 B 2"]
    betas: Float[Tensor, " E_1"]  # price of KL(old ‖ new); only "kl_penalty" pays it
    early_weights: dict[str, Tensor]  # after INTERPOLATION_EPOCH epochs


@dataclass(frozen=True, eq=False)
class Study:
    """One batch of the base's answers, and the paths that it leads to."""

    world: World
    batch: Batch
    advantages: Float[Tensor, "B 2"]  # whitened: what the policies are trained on
    plain_advantages: Float[Tensor, "B 2"]  # return - V, in units of the reward
    paths: dict[str, Path]


def make_world(config: Config) -> World:
    """Load the base and enumerate what it answers."""
    base = tiny_lm.load("base")
    task = preference_task.make_preference_task(base, seed=config.seed)
    return World(config, base, task, answer_probs(base, task), task.gold_rewards.double().flatten(1))


# -- batches and values ------------------------------------------------------------------------------------------------


@torch.no_grad()
def collect(world: World, policy: tiny_lm.TinyLM, n: int, generator: torch.Generator) -> Batch:
    """Let the policy write n answers, prompts in turn, and the reader score them."""
    config, task = world.config, world.task
    prompt = torch.arange(n) % len(task.prefixes)
    answers = preference_task.sample_answers(policy, task.prefixes[prompt], 1, generator)[:, 0]
    ids = preference_task.answer_texts(task, prompt, answers)
    scores = task.gold_rewards[prompt, *answers.T] + config.reward_noise * torch.randn(n, generator=generator)
    log_probs = next_log_probs(policy, ids)
    logps, reference = (chosen(part, ids) for part in (log_probs, next_log_probs(world.base, ids)))
    rewards = kl_shaped_rewards(scores, logps, reference, torch.ones_like(logps, dtype=torch.bool), config.beta_ref)
    return Batch(prompt, ids, log_probs, logps, hidden(world.base, ids, ANSWER_LENGTH), rewards)


def next_log_probs(policy: tiny_lm.TinyLM, ids: Int[Tensor, "B T_all"]) -> Float[Tensor, "B 2 V"]:
    """Return ln p of every next word in the two states before the answer's words."""
    return policy(ids)[:, -ANSWER_LENGTH - 1 : -1].log_softmax(dim=-1)


def chosen(log_probs: Float[Tensor, "B 2 V"], ids: Int[Tensor, "B T_all"]) -> Float[Tensor, "B 2"]:
    """Look up ln p of the words that came."""
    return log_probs.gather(-1, ids[:, -ANSWER_LENGTH:, None])[..., 0]


@torch.no_grad()
def hidden(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T_all"], steps: int) -> Float[Tensor, "B steps D"]:
    """Return the last hidden state before each of the last `steps` words, with a 1 for the bias."""
    _, records = model(ids, record=("residual",))
    last = tiny_lm.rms_norm(records["residual"][-1], model.model.norm.weight, model.config.rms_norm_eps)
    return torch.nn.functional.pad(last[:, -steps - 1 : -1], (0, 1), value=1.0)


def returns_of(rewards: Float[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """Return the discounted sum of what is still to come."""
    return generalized_advantage_estimation(rewards, torch.zeros_like(rewards), gamma, 1.0)[1]


def fit_values(features: Float[Tensor, "*batch D"], returns: Float[Tensor, "*batch"]) -> Float[Tensor, " D"]:
    """Fit the value head by ridge regression."""
    x, y = features.flatten(0, -2).double(), returns.flatten().double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y).float()


# -- one batch, three ways ---------------------------------------------------------------------------------------------


def study_one_batch(world: World) -> Study:
    """Take Adam steps on one batch of the base's answers, with each of the three objectives."""
    config = world.config
    generator = torch.Generator().manual_seed(config.seed)
    earlier = collect(world, world.base, EARLIER_ROLLOUTS, generator)
    head = fit_values(earlier.features, returns_of(earlier.rewards, config.gamma))
    batch = collect(world, world.base, config.batch_size, generator)
    values = batch.features @ head
    advantages, _ = generalized_advantage_estimation(batch.rewards, values, config.gamma, config.lam)
    plain, _ = generalized_advantage_estimation(batch.rewards, values, config.gamma, 1.0)
    study = Study(world, batch, whiten(advantages), plain, {})
    for method in METHODS:
        study.paths[method] = follow(study, method)
    return study


def follow(study: Study, method: str) -> Path:
    """Train a copy of the base on the study's batch and note where it is after every epoch."""
    config, batch, advantages = study.world.config, study.batch, study.advantages
    policy = tiny_lm.copy_of(study.world.base)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    probs, ratios, betas, early_weights = [], [], [], {}
    beta = 1.0
    for epoch in range(config.epochs + 1):
        log_probs = next_log_probs(policy, batch.ids)
        kl = kl_divergence(batch.log_probs.exp(), log_probs.exp())  # (B, 2)
        if epoch and epoch % ADAPT_EVERY == 0:
            beta = adaptive_kl_beta(beta, float(kl.detach().mean()), TARGET_KL)
        ratio = probability_ratio(chosen(log_probs, batch.ids), batch.logps)
        if epoch == min(INTERPOLATION_EPOCH, config.epochs):
            early_weights = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
        probs.append(answer_probs(policy, study.world.task))
        ratios.append(ratio.detach())
        betas.append(beta)
        if method == "clip":
            objective = clipped_surrogate(ratio, advantages, config.epsilon)
        elif method == "kl_penalty":
            objective = kl_penalized_surrogate(ratio, advantages, kl, beta)
        else:
            objective = surrogate(ratio, advantages)
        optimizer.zero_grad()
        (-objective.mean()).backward()
        optimizer.step()
        done = METHODS.index(method) * (config.epochs + 1) + epoch + 1
        progress.report("three ways to use one batch", done, len(METHODS) * (config.epochs + 1))
    return Path(torch.stack(probs), torch.stack(ratios), torch.tensor(betas), early_weights)


def histories(study: Study) -> dict[str, Any]:
    """Return what the batch says of each path, and what is true."""
    config, reference, rewards = study.world.config, study.world.reference_probs, study.world.rewards
    values: dict[str, Any] = {
        name: {}
        for name in (
            "ratio_history", "still_pushed", "surrogate_estimate", "true_reward", "true_objective", "kl_old_new",
            "kl_new_ref", "clip_fraction",
        )
    }  # fmt: skip
    flat = study.advantages.flatten()
    for method, path in study.paths.items():
        gain = expected_reward(path.probs - reference, rewards).mean(dim=1)
        kl_new_ref = kl_divergence(path.probs, reference).mean(dim=1)
        ratios = path.ratios.flatten(1)  # (E + 1, S)
        values["ratio_history"][method] = ratios
        values["still_pushed"][method] = clip_gradient_mask(ratios, flat.expand_as(ratios), config.epsilon)
        values["surrogate_estimate"][method] = promised(study, path.ratios)
        values["true_reward"][method] = gain
        values["true_objective"][method] = gain - config.beta_ref * kl_new_ref
        values["kl_old_new"][method] = kl_divergence(reference, path.probs).mean(dim=1)
        values["kl_new_ref"][method] = kl_new_ref
        values["clip_fraction"][method] = torch.tensor([clip_fraction(row, config.epsilon) for row in ratios])
    return values | {
        "epochs": torch.arange(config.epochs + 1),
        "batch_advantages": flat,
        "penalty_beta": study.paths["kl_penalty"].betas,
    }


def promised(study: Study, ratios: Float[Tensor, "rows B 2"], epsilon: float | None = None) -> Float[Tensor, " rows"]:
    """Return the gain that the batch promises: the mean over answers of Σ(ρ - 1)Â, or of its clipped form."""
    advantages = study.plain_advantages.expand_as(ratios)
    value = surrogate(ratios, advantages) if epsilon is None else clipped_surrogate(ratios, advantages, epsilon)
    return (value - advantages).sum(dim=-1).mean(dim=-1).double()


def bars_and_dots(study: Study) -> dict[str, Any]:
    """Return the policies' bars after prompt 0, and the batch's own answers to it."""
    world, batch = study.world, study.batch
    shown = world.reference_probs[0].argsort(descending=True)[:SHOWN]
    rows = batch.prompt == 0
    is_bar = place_of(batch.ids[rows, -ANSWER_LENGTH:])[:, None] == shown  # (dots, 8)
    return {
        "prompt_tokens": tiny_lm.tokens(world.task.prefixes[0]),
        "answer_tokens": (*(words(answer) for answer in shown.tolist()), "all others"),
        "gold_rewards": alone(world.rewards[0], shown),
        "policy_probs": {method: pooled(path.probs[:, 0], shown) for method, path in study.paths.items()},
        "dot_bars": torch.where(is_bar.any(dim=1), is_bar.int().argmax(dim=1), SHOWN),
        "dot_ratios": {method: path.ratios[:, rows].prod(dim=-1) for method, path in study.paths.items()},
    }


def estimators(study: Study) -> dict[str, Any]:
    """Return what each answer says of KL(old ‖ clipped policy), and what it is."""
    path = study.paths["clip"]
    old = study.batch.logps.sum(dim=1)
    new = old + path.ratios[-1].log().sum(dim=1)
    exact_kl = kl_divergence(study.world.reference_probs, path.probs[-1]).mean()
    return {"kl_samples": kl_estimators(old, new), "kl_exact": float(exact_kl)}


@torch.no_grad()
def interpolation(study: Study) -> dict[str, Any]:
    """Walk the line from the old weights through those of an early unclipped epoch (as Fig. 2, with the truth)."""
    world, batch = study.world, study.batch
    alphas = torch.linspace(0, 1.5, 41, dtype=torch.float64)
    old = dict(world.base.named_parameters())
    line = interpolate_policies(old, study.paths["unclipped"].early_weights, alphas)
    ratios, probs = [], []
    for index in range(len(alphas)):
        policy = tiny_lm.copy_of(world.base, {name: curve[index] for name, curve in line.items()})
        ratios.append(probability_ratio(chosen(next_log_probs(policy, batch.ids), batch.ids), batch.logps))
        probs.append(answer_probs(policy, world.task))
    exact_probs, reference = torch.stack(probs), world.reference_probs
    return {
        "interpolation_alpha": alphas,
        "interpolation_epoch": min(INTERPOLATION_EPOCH, world.config.epochs),
        "interp_cpi": promised(study, torch.stack(ratios)),
        "interp_clip": promised(study, torch.stack(ratios), world.config.epsilon),
        "interp_kl": kl_divergence(reference, exact_probs).mean(dim=1),
        "interp_true": expected_reward(exact_probs - reference, world.rewards).mean(dim=1),
    }


def simplex(study: Study) -> dict[str, Any]:
    """Return the policies as points of a triangle: the three most likely answers to prompt 0, renormalized."""
    reference = study.world.reference_probs[0]
    corners = reference.argsort(descending=True)[:3]
    old = reference[corners] / reference[corners].sum()
    paths = {method: path.probs[:, 0, corners] for method, path in study.paths.items()}
    return {
        "simplex_tokens": tuple(words(answer) for answer in corners.tolist()),
        "simplex_old": old,
        "simplex_rewards": study.world.rewards[0, corners],
        "simplex_paths": {method: path / path.sum(dim=1, keepdim=True) for method, path in paths.items()},
        "simplex_kl": SIMPLEX_KL,
        "simplex_kl_contour": kl_contour(old, SIMPLEX_KL, 60),
    }


def kl_contour(center: Float[Tensor, " 3"], kl: float, points: int) -> Float[Tensor, "points 3"]:
    """Return distributions q with KL(center ‖ q) = kl in all directions, by bisection between center and border."""
    angles = torch.arange(points, dtype=center.dtype) * (2 * torch.pi / points)
    plane = torch.tensor([[2.0, -1.0, -1.0], [0.0, 3**0.5, -(3**0.5)]], dtype=center.dtype)  # orthogonal, sum 0
    directions = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane
    far = (center / -directions).where(directions < 0, torch.inf).amin(dim=1)  # where a probability reaches 0
    near = torch.zeros_like(far)
    for _ in range(60):
        middle = (near + far) / 2
        inside = kl_divergence(center, center + middle[:, None] * directions) < kl
        near, far = middle.where(inside, near), far.where(inside, middle)
    return center + near[:, None] * directions


# -- one episode -------------------------------------------------------------------------------------------------------


def one_episode(world: World) -> dict[str, Any]:
    """Return an episode of eight words with a reward at its end, the first one that earns something."""
    config = world.config
    generator = torch.Generator().manual_seed(config.seed)
    prompt = world.task.prefixes[0]
    ids = prompt.repeat(2 * EARLIER_ROLLOUTS, 1)
    for _ in range(EPISODE_LENGTH):
        ids = torch.cat([ids, sample_token(world.base(ids)[:, -1], 1.0, generator)[:, None]], dim=1)
    rewards = torch.zeros(len(ids), EPISODE_LENGTH)
    rewards[:, -1] = episode_scores(world.task, ids[:, -EPISODE_LENGTH:])
    features = hidden(world.base, ids, EPISODE_LENGTH)
    head = fit_values(features[:EARLIER_ROLLOUTS], returns_of(rewards[:EARLIER_ROLLOUTS], config.gamma))
    paying = rewards[EARLIER_ROLLOUTS:, -1] > 0
    row = EARLIER_ROLLOUTS + int(paying.int().argmax())
    reward, value = rewards[row : row + 1], (features[row] @ head)[None]

    def advantages(lam: float) -> Tensor:
        return generalized_advantage_estimation(reward, value, config.gamma, lam)[0][0]

    shown, targets = generalized_advantage_estimation(reward, value, config.gamma, config.lam)
    lambdas, dial = torch.tensor([0.0, config.lam, 1.0]), torch.linspace(0, 1, 21)
    return {
        "rollout_tokens": tiny_lm.tokens(ids[row, -EPISODE_LENGTH:]),
        "rollout_rewards": reward[0],
        "rollout_values": value[0],
        "rollout_deltas": advantages(0.0),
        "rollout_advantages": shown[0],
        "rollout_returns": targets[0],
        "rollout_shares": config.gamma * config.lam * shown[0],
        "lambdas": lambdas,
        "advantages_by_lambda": torch.stack([advantages(lam) for lam in (0.0, config.lam, 1.0)]),
        "dial_lambdas": dial,
        "dial_advantages": torch.stack([advantages(lam) for lam in dial.tolist()]),
    }


def episode_scores(task: PreferenceTask, words_: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Return the reader's reward of longer texts: the scores of all words, less for each immediate repetition."""
    repeated = (words_[:, 1:] == words_[:, :-1]).sum(dim=1)
    return task.word_scores[words_].sum(dim=1) + REPEATED * repeated


def hinge(epsilon: float) -> dict[str, Any]:
    """Return the clipped surrogate of one sample over its ratio, for Â = 1 and Â = -1, and its slope (Fig. 1)."""
    ratio = torch.linspace(0, 2, 101, dtype=torch.float64)
    values: dict[str, Any] = {"hinge_ratio": ratio}
    for name, sign in (("positive", 1.0), ("negative", -1.0)):
        advantages = torch.full_like(ratio, sign)
        values[f"hinge_{name}"] = clipped_surrogate(ratio, advantages, epsilon)
        values[f"hinge_{name}_slope"] = advantages.where(clip_gradient_mask(ratio, advantages, epsilon), 0.0)
        values[f"hinge_{name}_unclipped"] = surrogate(ratio, advantages)
    return values


# -- the full run ------------------------------------------------------------------------------------------------------


def full_run(world: World) -> dict[str, Any]:
    """Train with a fresh batch at every iteration, with and without the clip."""
    config = world.config
    ways = ("unclipped", "clip")
    curves: dict[str, dict[str, Tensor]] = {"reward": {}, "kl_ref": {}, "objective": {}}
    policies = {"before": world.base}
    for number, method in enumerate(ways):
        epsilon = config.epsilon if method == "clip" else None
        policies[method], probs = train(
            world, epsilon, done=number * config.iterations, of=len(ways) * config.iterations
        )
        reward = expected_reward(probs, world.rewards).mean(dim=1)
        kl = kl_divergence(probs, world.reference_probs).mean(dim=1)
        curves["reward"][method], curves["kl_ref"][method] = reward, kl
        curves["objective"][method] = reward - config.beta_ref * kl
    samples, tale_loss = preference_task.after_words(world.task, policies, config.seed)
    return {
        **{f"learning_curve_{name}": curve for name, curve in curves.items()},
        "iterations": torch.arange(config.iterations + 1),
        "objective_optimum": best_objective(world),
        "samples": samples,
        "tale_loss": tale_loss,
    }


def train(
    world: World, epsilon: float | None, *, done: int, of: int
) -> tuple[tiny_lm.TinyLM, Float[Tensor, "I_1 K N"]]:
    """Return a trained copy of the base and where it was before each iteration and at the end.

    Args:
        epsilon: None = without the clip.
        done, of: iterations for the progress bar.
    """
    config = world.config
    generator = torch.Generator().manual_seed(config.seed)
    policy = tiny_lm.copy_of(world.base)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    earlier = collect(world, policy, EARLIER_ROLLOUTS, generator)
    features, rewards = earlier.features, earlier.rewards
    probs = [answer_probs(policy, world.task)]
    for iteration in range(config.iterations):
        head = fit_values(features, returns_of(rewards, config.gamma))
        batch = collect(world, policy, config.batch_size, generator)
        advantages, _ = generalized_advantage_estimation(batch.rewards, batch.features @ head, config.gamma, config.lam)
        advantages = whiten(advantages)
        for _ in range(INNER_EPOCHS):
            logps = chosen(next_log_probs(policy, batch.ids), batch.ids)
            if epsilon is None:
                loss = -surrogate(probability_ratio(logps, batch.logps), advantages).mean()
            else:
                everything = torch.ones_like(logps, dtype=torch.bool)
                loss = ppo_loss(logps, batch.logps, advantages, everything, epsilon).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        features = torch.cat([features, batch.features])[-EARLIER_ROLLOUTS:]
        rewards = torch.cat([rewards, batch.rewards])[-EARLIER_ROLLOUTS:]
        probs.append(answer_probs(policy, world.task))
        progress.report("training with and without the clip", done + iteration + 1, of)
    return policy.eval().requires_grad_(False), torch.stack(probs)


def best_objective(world: World) -> float:
    """Return the largest E[r*] - beta_ref·KL that any policy reaches, averaged over the prompts."""
    beta = world.config.beta_ref
    if beta == 0:
        return float(world.rewards.amax(dim=1).mean())
    return float(beta * optimal_policy(world.reference_probs, world.rewards, beta)[1].mean())
