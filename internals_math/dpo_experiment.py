"""DPO on the shared preference task: a copy of the base model learns from comparisons of the base's own answers.

Everything about the policy is an exact sum over all V² answers, every few steps.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import preference_task, progress, tiny_lm
from internals_math.distributions import kl_divergence, pooled, total_variation
from internals_math.dpo import DOTS, SHOWN, Config, DPOLoss, dpo_loss, expected_reward, sequence_log_probs
from internals_math.preference_task import (
    ANSWER_LENGTH,
    Preferences,
    PreferenceTask,
    answer_token_logps,
    exact,
    optimal_policy,
    place_of,
)

BATCH_SIZE = 64  # as in the paper
RECORD_EVERY = 5  # steps


@dataclass
class Run:
    """One training run and what was recorded of it; probabilities and rewards in float64, answers flattened (K, V²)."""

    config: Config
    task: PreferenceTask
    pairs: Preferences
    base: tiny_lm.TinyLM
    policy: tiny_lm.TinyLM
    reference_probs: Float[Tensor, "K N"]
    rewards: Float[Tensor, "K N"]
    steps: list[int] = field(default_factory=list)
    losses: list[DPOLoss] = field(default_factory=list)  # over all pairs
    logps: list[Tensor] = field(default_factory=list)  # (B, 2) of chosen and rejected
    probs: list[Tensor] = field(default_factory=list)  # (K, N)


def train(config: Config) -> Run:
    """Sample pairs from the base, let the reader choose, and train a copy of the base on the choices."""
    base = tiny_lm.load("base")
    task = preference_task.make_preference_task(base, seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        reference = preference_task.answer_log_probs(base, task)
    pairs = preference_task.sample_preferences(task, reference, config.n_pairs, generator)
    reference_logps = pair_log_probs(reference, pairs)
    run = Run(config, task, pairs, base, tiny_lm.copy_of(base), exact(reference), task.gold_rewards.double().flatten(1))
    optimizer = torch.optim.Adam(run.policy.parameters(), lr=config.learning_rate)
    batch = min(BATCH_SIZE, config.n_pairs)
    order = torch.empty(0, dtype=torch.long)
    record(run, 0, reference_logps)
    for step in range(1, config.train_steps + 1):
        if len(order) < batch:
            order = torch.randperm(config.n_pairs, generator=generator)
        rows, order = order[:batch], order[batch:]
        chosen, rejected = answer_logps(run.policy, task, pairs, rows)
        reference_chosen, reference_rejected = reference_logps[rows].unbind(dim=1)
        loss = dpo_loss(
            chosen, rejected, reference_chosen, reference_rejected, config.beta, label_smoothing=config.label_smoothing
        ).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % RECORD_EVERY == 0 or step == config.train_steps:
            record(run, step, reference_logps)
        progress.report("training on comparisons", step, config.train_steps)
    run.policy.eval().requires_grad_(False)
    return run


def answer_logps(
    policy: tiny_lm.TinyLM, task: PreferenceTask, pairs: Preferences, rows: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return ln π of the chosen and of the rejected answers of some pairs, by one pass over both."""
    prompt = pairs.prompt[rows].repeat(2)
    ids = preference_task.answer_texts(task, prompt, torch.cat([pairs.chosen[rows], pairs.rejected[rows]]))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -ANSWER_LENGTH:] = True
    chosen, rejected = sequence_log_probs(policy(ids), ids, mask).chunk(2)
    return chosen, rejected


def pair_log_probs(log_probs: Float[Tensor, "K V V"], pairs: Preferences) -> Float[Tensor, "B 2"]:
    """Look up ln p of the chosen and the rejected answer of each pair."""
    return torch.stack([log_probs[pairs.prompt, *words.T] for words in (pairs.chosen, pairs.rejected)], dim=1)


@torch.no_grad()
def record(run: Run, step: int, reference_logps: Float[Tensor, "B 2"]) -> None:
    """Note where the policy is."""
    log_probs = preference_task.answer_log_probs(run.policy, run.task)
    logps = pair_log_probs(log_probs, run.pairs)
    config = run.config
    run.steps.append(step)
    (chosen, rejected), (reference_chosen, reference_rejected) = logps.unbind(dim=1), reference_logps.unbind(dim=1)
    smoothing = config.label_smoothing
    run.losses.append(
        dpo_loss(chosen, rejected, reference_chosen, reference_rejected, config.beta, label_smoothing=smoothing)
    )
    run.logps.append(logps)
    run.probs.append(exact(log_probs))


# -- what is shown -----------------------------------------------------------------------------------------------------


def shown_answers(run: Run) -> Int[Tensor, " 8"]:
    """Return the answers to prompt 0 that get a bar: the most likely ones, then the likeliest of the highest and of the
    lowest reward among the rest."""
    probs, rewards = run.reference_probs[0], run.rewards[0]
    likely = probs.argsort(descending=True)[: SHOWN - 2]
    rest = probs.clone()
    rest[likely] = 0
    possible = rest > 1e-4
    extremes = []
    for sign in (1, -1):
        ranked = (sign * rewards).where(possible, -torch.inf)
        extremes.append(rest.where(ranked == ranked.max(), 0.0).argmax())
    return torch.cat([likely, torch.stack(extremes)])


@torch.no_grad()
def one_pair(run: Run) -> dict[str, Any]:
    """Return the first pair after prompt 0 whose choice follows the rewards, with its words' log-probabilities."""
    pairs = run.pairs
    rewards = [run.rewards[pairs.prompt, place_of(answers)] for answers in (pairs.chosen, pairs.rejected)]
    row = int(((pairs.prompt == 0) & (rewards[0] > rewards[1])).nonzero()[0])
    answers = torch.stack([pairs.chosen[row], pairs.rejected[row]])
    ids = preference_task.answer_texts(run.task, torch.tensor([0, 0]), answers)
    policy, reference = (answer_token_logps(model, ids) for model in (run.policy, run.base))
    return {
        "chosen_tokens": tiny_lm.tokens(answers[0]),
        "rejected_tokens": tiny_lm.tokens(answers[1]),
        "token_logps_policy": policy,
        "token_logps_reference": reference,
        "sequence_logps_policy": policy.sum(dim=1),
        "sequence_logps_reference": reference.sum(dim=1),
    }


def records(run: Run, shown: Int[Tensor, " 8"]) -> dict[str, Any]:
    """Return the history of the training; records come first."""
    losses, probs = run.losses, torch.stack(run.probs)  # (R, K, N)
    mean = {name: torch.stack([getattr(record, name).mean() for record in losses]) for name in vars(losses[0])}
    margins = torch.stack([record.margins[:DOTS] for record in losses])
    chosen, rejected = torch.stack([logps.mean(dim=0) for logps in run.logps]).unbind(dim=1)
    optimal, _ = optimal_policy(run.reference_probs, run.rewards, run.config.beta)
    return {
        "steps": torch.tensor(run.steps),
        "loss_curve": mean["loss"],
        "accuracy_curve": mean["accuracies"],
        "margin_mean": mean["margins"],
        "chosen_reward_curve": mean["chosen_rewards"],
        "rejected_reward_curve": mean["rejected_rewards"],
        "chosen_logp_curve": chosen,
        "rejected_logp_curve": rejected,
        "margins_history": margins,
        "weights_history": torch.sigmoid(-margins),
        "losses_history": -torch.nn.functional.logsigmoid(margins),
        "trained_probs": pooled(probs[:, 0], shown),
        "kl_path": kl_divergence(probs, run.reference_probs).mean(dim=1),
        "reward_path": expected_reward(probs, run.rewards).mean(dim=1),
        "total_variation": total_variation(probs, optimal).mean(dim=1),
    }


def after_words(run: Run) -> dict[str, Any]:
    """Return what both models answer, and what they make of ordinary stories."""
    samples, losses = preference_task.after_words(run.task, {"before": run.base, "after": run.policy}, run.config.seed)
    return {
        "sampled_before": samples["before"],
        "sampled_after": samples["after"],
        "tale_loss_before": losses["before"],
        "tale_loss_after": losses["after"],
    }
