"""GRPO on the shared preference task: baselines compared on gradients of the tiny LM, and in training.

A sampled gradient is a weighted sum of ∇ln π of the answers in its batch. So these are computed once for every answer
that was drawn at all, and lengths and angles of all sampled gradients follow from their inner products.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math import preference_task, progress, tiny_lm
from internals_math.distributions import kl_divergence
from internals_math.dpo import expected_reward
from internals_math.grpo import (
    BATCH_SIZE,
    LOSS_TYPES,
    METHODS,
    MODELS,
    Config,
    expected_prompt_weight,
    gradient_statistics,
    group_advantages,
    grpo_loss,
    rl_training_memory,
    token_weights,
    zero_signal_probability,
)
from internals_math.next_token import target_surprisal
from internals_math.ppo import kl_estimators
from internals_math.preference_task import (
    ANSWER_LENGTH,
    PreferenceTask,
    answer_probs,
    answer_token_logps,
    place_of,
    words,
)

SHOWN = 8  # answers of a group on screen
CLOUD = 60
COMPARED_SIZES = (2, 4, 8, 16)
ZERO_SHIFTS = torch.linspace(-6, 3, 19, dtype=torch.float64)
TRAINED = ("none", "batch_mean", "group_mean", "grpo")  # rloo is group_mean on another scale, which Adam ignores
SUCCESS = 1.0  # the least gold reward that counts
LENGTH_PROMPT = "one day the old fox lost a red key in the barn ."
LENGTH_LIMIT = 16
PARAMETERS = 7e9


@dataclass(frozen=True, eq=False)
class World:
    """What does not change; probabilities and rewards in float64, answers flattened (K, V²)."""

    config: Config
    base: tiny_lm.TinyLM  # the starting policy and the reference
    task: PreferenceTask
    reference_probs: Float[Tensor, "K N"]
    gold: Float[Tensor, "K N"]
    rewards: Float[Tensor, "K N"]  # what the training is told
    shifted_gold: Float[Tensor, "K N"]


def make_world(config: Config) -> World:
    """Load the base, enumerate what it answers, and give every prompt its zero."""
    base = tiny_lm.load("base")
    task = preference_task.make_preference_task(base, seed=config.seed)
    gold = task.gold_rewards.double().flatten(1)
    generator = torch.Generator().manual_seed(config.seed)
    shifts = config.prompt_offset * torch.randn(len(gold), 1, generator=generator, dtype=torch.float64)
    shifted = gold + config.reward_offset + shifts
    rewards = succeeds(gold).double() if config.reward == "binary" else shifted
    return World(config, base, task, answer_probs(base, task), gold, rewards, shifted)


def succeeds(gold: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Return which answers count as a success."""
    return gold >= SUCCESS


# -- one group, one batch ----------------------------------------------------------------------------------------------


def one_group(world: World) -> dict[str, Any]:
    """Return eight answers to prompt 0: the first group with positive rewards of three kinds, if there is one."""
    generator = torch.Generator().manual_seed(world.config.seed)
    groups = draw(world.reference_probs[:1], SHOWN * 100, generator).view(-1, SHOWN)
    rewards = world.shifted_gold[0, groups]
    kinds = torch.tensor([len(row.unique()) for row in rewards])
    row = int((2 * (kinds >= 3).int() + (rewards.amin(dim=1) > 0).int()).argmax())
    shown = rewards[row : row + 1]
    return {
        "prompt_tokens": tiny_lm.tokens(world.task.prefixes[0]),
        "group_tokens": tuple(words(answer) for answer in groups[row].tolist()),
        "group_rewards": shown[0],
        "zero_shifts": ZERO_SHIFTS,
        "zero_rewards": shown + ZERO_SHIFTS[:, None],
        "group_mean": float(shown.mean()),
        "group_std": float(shown.std(correction=0)),
        "group_centered": group_advantages(shown, method="group_mean")[0],
        "group_advantage": group_advantages(shown, method=world.config.method)[0],
    }


def one_batch(world: World) -> dict[str, Any]:
    """Return rewards and advantages of eight answers to each prompt."""
    generator = torch.Generator().manual_seed(world.config.seed)
    rewards = world.rewards.gather(1, draw(world.reference_probs, SHOWN, generator))
    return {
        "prompts": world.task.prompts,
        "prompt_success": expected_reward(world.reference_probs, succeeds(world.gold).double()),
        "batch_rewards": rewards,
        "batch_mean": float(rewards.mean()),
        "batch_group_means": rewards.mean(dim=1),
        "batch_advantages": {method: group_advantages(rewards, method=method) for method in METHODS},
    }


def draw(probs: Float[Tensor, "K N"], n: int, generator: torch.Generator) -> Int[Tensor, "K n"]:
    """Draw n answers to each prompt from their exact probabilities."""
    return probs.multinomial(n, replacement=True, generator=generator)


# -- gradients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gradients:
    """∇ln π of every drawn answer and the exact gradient, in coordinates that keep all lengths and angles."""

    answers: Int[Tensor, "K n"]  # which of the rows below each draw is
    rewards: Float[Tensor, "K n"]
    scores: Float[Tensor, "U D"]
    exact: Float[Tensor, " D"]  # of the mean reward over prompts and answers


def make_gradients(world: World) -> Gradients:
    """Draw answers for all batches and compute each different one's gradient once."""
    config, prompts = world.config, len(world.task.prefixes)
    generator = torch.Generator().manual_seed(config.seed)
    longest = max(*COMPARED_SIZES, config.group_size)
    each = config.gradient_samples * BATCH_SIZE // prompts + longest  # groups need not end where draws do
    drawn = draw(world.reference_probs, each, generator)
    vocab_size = tiny_lm.VOCAB_SIZE
    keys = drawn + torch.arange(prompts)[:, None] * vocab_size**2
    unique, answers = keys.unique(return_inverse=True)
    prompt, answer = unique // vocab_size**2, unique % vocab_size**2
    ids = preference_task.answer_texts(
        world.task, prompt, torch.stack([answer // vocab_size, answer % vocab_size], dim=1)
    )
    rows = torch.cat([answer_gradients(world.base, ids), exact_gradient(world)[None]])
    coordinates = isometric(rows)
    return Gradients(answers, world.rewards.gather(1, drawn), coordinates[:-1], coordinates[-1])


def answer_gradients(model: tiny_lm.TinyLM, ids: Int[Tensor, "U T_all"]) -> Float[Tensor, "U P"]:
    """Return ∇ln π(answer | prompt) over all parameters, for each row."""
    state = {name: weight.detach() for name, weight in model.named_parameters()}

    def log_prob(state: dict[str, Tensor], row: Tensor) -> Tensor:
        logits = tiny_lm.forward(model, state, row[None])[0, -ANSWER_LENGTH - 1 : -1]
        return -target_surprisal(logits, row[-ANSWER_LENGTH:]).sum()

    gradient = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0))
    parts = []
    for start in range(0, len(ids), 64):
        chunk = gradient(state, ids[start : start + 64])
        parts.append(torch.cat([part.flatten(1) for part in chunk.values()], dim=1))
        progress.report("gradients of answers", min(start + 64, len(ids)), len(ids))
    return torch.cat(parts)


def exact_gradient(world: World) -> Float[Tensor, " P"]:
    """Return the gradient of the mean reward, by enumeration."""
    policy = tiny_lm.copy_of(world.base)
    probs = preference_task.answer_log_probs(policy, world.task).flatten(1).exp()
    # what a prompt adds to all its rewards has no gradient, only rounding
    rewards = world.rewards - expected_reward(world.reference_probs, world.rewards)[:, None]
    gradient = torch.autograd.grad((probs * rewards.float()).sum(dim=1).mean(), list(policy.parameters()))
    return torch.cat([part.flatten() for part in gradient])


def isometric(rows: Float[Tensor, "R P"]) -> Float[Tensor, "R R"]:
    """Return coordinates (float64) of the rows in their own span: every inner product stays what it is."""
    rows = rows.double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors * values.clamp(min=0).sqrt()


def sampled_gradients(gradients: Gradients, method: str, group_size: int, count: int) -> Float[Tensor, "count D"]:
    """Return the mean of Â·∇ln π over each of `count` batches: groups of one size, prompts in turn."""
    prompts = len(gradients.answers)
    per_batch = BATCH_SIZE // group_size
    group = torch.arange(count * per_batch)
    prompt, turn = group % prompts, group // prompts
    columns = turn[:, None] * group_size + torch.arange(group_size)  # (groups, G)
    answers = gradients.answers[prompt[:, None], columns].view(count, BATCH_SIZE)
    rewards = gradients.rewards[prompt[:, None], columns].view(count, per_batch, group_size)
    advantages = torch.stack([group_advantages(batch, method=method) for batch in rewards]).view(count, BATCH_SIZE)
    weights = torch.zeros(count, len(gradients.scores), dtype=torch.float64)
    weights.scatter_add_(1, answers, advantages / BATCH_SIZE)
    return weights @ gradients.scores


def gradient_noise(world: World) -> dict[str, Any]:
    """Return how sampled gradients spread: by method, by group size, and by where the rewards have their zero."""
    config, gradients = world.config, make_gradients(world)
    count = config.gradient_samples
    samples = {method: sampled_gradients(gradients, method, config.group_size, count) for method in METHODS}
    statistics = {method: gradient_statistics(rows, gradients.exact) for method, rows in samples.items()}
    by_size: dict[str, Tensor] = {}
    for method in METHODS:
        rows = [sampled_gradients(gradients, method, size, count) for size in COMPARED_SIZES]
        by_size[method] = torch.tensor([gradient_statistics(row, gradients.exact)["relative_variance"] for row in rows])
    return {
        "gradient_cloud": project(samples, gradients.exact),
        "gradient_tip": torch.tensor([1.0, 0.0], dtype=torch.float64),
        "gradient_variance": {method: values["relative_variance"] for method, values in statistics.items()},
        "gradient_cosine": {method: values["cosine_mean"] for method, values in statistics.items()},
        "gradient_bias": {method: values["bias"] for method, values in statistics.items()},
        "gradient_bias_noise": {
            method: float(
                (statistics[method]["relative_variance"] / count) ** 0.5
                * rows.mean(dim=0).norm()
                / gradients.exact.norm()
            )
            for method, rows in samples.items()
        },
        "group_sizes": torch.tensor(COMPARED_SIZES),
        "variance_by_group_size": by_size,
        "zero_variance": {method: variance_by_zero(gradients, method, config) for method in METHODS},
    }


def variance_by_zero(gradients: Gradients, method: str, config: Config) -> Float[Tensor, " zeros"]:
    """Return the relative variance of sampled gradients for each of ZERO_SHIFTS."""
    values = []
    for shift in ZERO_SHIFTS.tolist():
        moved = replace(gradients, rewards=gradients.rewards + shift)
        rows = sampled_gradients(moved, method, config.group_size, config.gradient_samples)
        values.append(gradient_statistics(rows, gradients.exact)["relative_variance"])
    return torch.tensor(values, dtype=torch.float64)


def project(
    samples: dict[str, Float[Tensor, "S D"]], exact_: Float[Tensor, " D"]
) -> dict[str, Float[Tensor, "cloud 2"]]:
    """Return the first samples of each method in two dimensions, every method scaled to a mean gradient of length 1:
    along the exact gradient, and along the direction across it in which all methods together spread most."""
    along = exact_ / exact_.norm()
    scaled = {method: rows / rows.mean(dim=0).norm() for method, rows in samples.items()}
    pooled = torch.cat([rows - rows.mean(dim=0) for rows in scaled.values()])
    across = principal_direction(pooled - (pooled @ along)[:, None] * along)
    return {method: torch.stack([rows @ along, rows @ across], dim=1)[:CLOUD] for method, rows in scaled.items()}


def principal_direction(centered: Float[Tensor, "S D"]) -> Float[Tensor, " D"]:
    """Return the direction of largest variance of rows whose mean is 0."""
    return torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1]


# -- curves ------------------------------------------------------------------------------------------------------------


def prompt_weights(group_size: int) -> dict[str, Any]:
    """Return how much a prompt of success probability p weighs, and how often its group is silent."""
    p = torch.arange(1, 100, dtype=torch.float64) / 100
    return {
        "weight_p": p,
        "weight_curve": expected_prompt_weight(p, group_size),
        "weight_curve_limit": (p * (1 - p)).rsqrt(),
        "silent_curve": zero_signal_probability(p, group_size),
        "silent_by_group_size": {str(size): zero_signal_probability(p, size) for size in (2, 4, 8, 16, 32, 64)},
    }


def dial(seed: int) -> dict[str, Any]:
    """Return eight answers that succeed one after the other as p grows: each has its own luck."""
    luck = torch.rand(SHOWN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = torch.arange(1, 20, dtype=torch.float64) / 20
    rewards = (luck < p[:, None]).double()
    return {
        "dial_p": p,
        "dial_rewards": rewards,
        "dial_advantages": group_advantages(rewards),
        "dial_silent": zero_signal_probability(p, SHOWN),
    }


def lengths(world: World) -> dict[str, Any]:
    """Return eight real ends of a sentence, which differ in length, and what a token of each weighs."""
    generator = torch.Generator().manual_seed(world.config.seed)
    written = tiny_lm.generate(
        world.base, [LENGTH_PROMPT] * SHOWN, LENGTH_LIMIT, temperature=1.0, generator=generator, stop="."
    )
    sizes = torch.tensor([len(text.split()) for text in written])
    return {
        "length_prompt": LENGTH_PROMPT,
        "length_answers": tuple(written),
        "answer_lengths": sizes,
        "length_limit": LENGTH_LIMIT,
        "token_weight": {kind: token_weights(sizes, loss_type=kind, max_length=LENGTH_LIMIT) for kind in LOSS_TYPES},
    }


def estimator_shapes() -> dict[str, Any]:
    """Return k1 and k3 over u = π_ref / π."""
    u = torch.linspace(0.05, 4, 101, dtype=torch.float64)
    estimates = kl_estimators(torch.zeros_like(u), u.log())
    return {"kl_u": u, "kl_k1": estimates["k1"], "kl_k3": estimates["k3"]}


def memory() -> dict[str, Any]:
    """Return what training a model of 7 billion parameters holds, model by model."""
    parts = tuple(MODELS["ppo"])
    held = {algorithm: rl_training_memory(PARAMETERS, algorithm) for algorithm in MODELS}
    gb = {
        name: torch.tensor([models.get(part, 0.0) for part in parts], dtype=torch.float64) / 1e9
        for name, models in held.items()
    }
    return {
        "memory_parts": parts,
        "memory_gb": gb,
        "memory_total_gb": {name: float(row.sum()) for name, row in gb.items()},
    }


# -- training ----------------------------------------------------------------------------------------------------------


def training(world: World) -> dict[str, Any]:
    """Train with each baseline, the same number of answers and the same seed."""
    config = world.config
    methods = [method for method in METHODS if method in {*TRAINED, config.method}]
    curves: dict[str, dict[str, Tensor]] = {"reward": {}, "success": {}, "kl": {}, "silent": {}}
    tuned = world.base
    for number, method in enumerate(methods):
        policy, probs, curves["silent"][method] = train(
            world, method, done=number * config.train_steps, of=len(methods) * config.train_steps
        )
        curves["reward"][method] = expected_reward(probs, world.gold).mean(dim=1)
        curves["success"][method] = expected_reward(probs, succeeds(world.gold).double()).mean(dim=1)
        curves["kl"][method] = kl_divergence(probs, world.reference_probs).mean(dim=1)
        tuned = policy if method == config.method else tuned
    samples, tale_loss = preference_task.after_words(world.task, {"before": world.base, "after": tuned}, config.seed)
    return {
        "steps": torch.arange(config.train_steps + 1),
        **{f"curve_{name}": by_method for name, by_method in curves.items()},
        "samples_before": samples["before"],
        "samples_after": samples["after"],
        "tale_loss_before": tale_loss["before"],
        "tale_loss_after": tale_loss["after"],
    }


def train(
    world: World, method: str, *, done: int, of: int
) -> tuple[tiny_lm.TinyLM, Float[Tensor, "steps K N"], Float[Tensor, " steps"]]:
    """Return a trained copy of the base; where it was before every step and at the end; how many groups were silent.

    Args:
        done, of: steps for the progress bar.
    """
    config, task = world.config, world.task
    generator = torch.Generator().manual_seed(config.seed)
    policy = tiny_lm.copy_of(world.base)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    groups = BATCH_SIZE // config.group_size
    probs, silent = [], []
    for step in range(config.train_steps + 1):
        prompt = (torch.arange(groups) + step * groups) % len(task.prefixes)
        answers = preference_task.sample_answers(policy, task.prefixes[prompt], config.group_size, generator)
        rewards = world.rewards[prompt[:, None], place_of(answers)]  # (groups, G)
        probs.append(answer_probs(policy, task))
        silent.append(float((rewards.amax(dim=1) == rewards.amin(dim=1)).float().mean()))
        if step == config.train_steps:
            break
        advantages = group_advantages(rewards, method=method).flatten().float()
        ids = preference_task.answer_texts(task, prompt.repeat_interleave(config.group_size), answers.flatten(0, 1))
        logps = answer_token_logps(policy, ids)
        with torch.no_grad():
            reference = answer_token_logps(world.base, ids)
        loss = grpo_loss(
            logps, logps.detach(), reference, advantages, torch.ones_like(logps, dtype=torch.bool),
            epsilon=config.epsilon, beta=config.beta,
        ).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.report("training with each baseline", done + step + 1, of)
    return policy.eval().requires_grad_(False), torch.stack(probs), torch.tensor(silent)
