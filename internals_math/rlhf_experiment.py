"""The whole pipeline on the shared preference task: demonstrations, comparisons, a reward model, and the climb.

All answers are enumerated, so policy, divergence and both rewards are exact sums at every stage; only the training
itself draws samples.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import preference_task, progress, tiny_lm
from internals_math.distributions import kl_divergence, pooled
from internals_math.preference_task import (
    ANSWER_LENGTH,
    Preferences,
    PreferenceTask,
    answer_at,
    answer_probs,
    answer_texts,
    answer_token_logps,
    place_of,
    words,
)
from internals_math.rlhf import (
    BEST_OF,
    SCATTERED,
    SHOWN,
    SHOWN_COMPARISONS,
    BestOfN,
    Comparisons,
    Config,
    bayes_accuracy,
    best_of_n_kl_bound,
    best_of_n_policy,
    bradley_terry_probability,
    expected_reward,
    kl_shaped_rewards,
    normalize_reward_bias,
    optimal_policy,
    pairwise_reward_loss,
    reinforce_loss,
    reward_accuracy,
    rlhf_objective,
    sft_loss,
)

GOOD = 1.0  # true reward of an answer that may be shown as a demonstration
SFT_PASSES, SFT_BATCH, SFT_RATE = 3, 32, 5e-4  # more passes would leave the climb little to do
# Of 2048 pairs the held-out ones are predicted best after 125 steps (loss .581); 200 steps learn the labels by heart.
REWARD_STEPS, REWARD_BATCH, REWARD_RATE, WEIGHT_DECAY = 125, 64, 3e-4, 0.1
HELD_OUT = 0.2  # of the comparisons
RECORD_EVERY = 5  # steps


class RewardModel(torch.nn.Module):
    """A language model whose output head is a single number, read at the last token."""

    def __init__(self, language_model: tiny_lm.TinyLM, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone = tiny_lm.copy_of(language_model)
        width = language_model.config.hidden_size
        # Of variance 1 / (width + 1), as in 1909.08593: some order, which means nothing yet.
        self.head = torch.nn.Parameter(torch.randn(width, generator=generator) / (width + 1) ** 0.5)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Return one score for each text."""
        _, records = self.backbone(ids, record=("residual",))
        last = records["residual"][-1, :, -1]  # (B, D) after the last layer
        return tiny_lm.rms_norm(last, self.backbone.model.norm.weight, self.backbone.config.rms_norm_eps) @ self.head


@dataclass
class Run:
    """The pipeline and what was recorded of it; probabilities and rewards in float64, answers flattened (K, V²)."""

    config: Config
    task: PreferenceTask
    base: tiny_lm.TinyLM
    generator: torch.Generator
    gold: Float[Tensor, "K N"]
    pretrained_probs: Float[Tensor, "K N"]
    # stage 1
    sft: tiny_lm.TinyLM
    demonstrations: Int[Tensor, "D T"] = field(init=False)
    sft_curve: list[Tensor] = field(default_factory=list)  # over all demonstrations
    sft_probs: Float[Tensor, "K N"] = field(init=False)
    # stage 2
    pairs: Preferences = field(init=False)
    reward_models: list[RewardModel] = field(init=False)  # at every record
    proxy: Float[Tensor, "K N"] = field(init=False)  # normalized
    bias: float = field(init=False)
    # stage 3
    policy: tiny_lm.TinyLM = field(init=False)
    rl_probs: list[Tensor] = field(default_factory=list)  # (K, N) at every record
    episode: dict[str, Any] = field(default_factory=dict)


def train(config: Config, *, n_prompts: int = 6) -> Run:
    """Run the three stages."""
    base = tiny_lm.load("base")
    task = preference_task.make_preference_task(base, n_prompts=n_prompts, seed=config.seed)
    run = Run(
        config=config,
        task=task,
        base=base,
        generator=torch.Generator().manual_seed(config.seed),
        gold=task.gold_rewards.double().flatten(1),
        pretrained_probs=answer_probs(base, task),
        sft=tiny_lm.copy_of(base),
    )
    imitate(run)
    fit_reward(run)
    climb(run)
    return run


# -- stage 1 -----------------------------------------------------------------------------------------------------------


def imitate(run: Run) -> None:
    """Train a copy of the base on good answers of its own."""
    run.demonstrations = demonstrations(run)
    mask = torch.zeros_like(run.demonstrations, dtype=torch.bool)
    mask[:, -ANSWER_LENGTH:] = True

    def loss_of(rows: Tensor) -> Tensor:
        return sft_loss(run.sft(run.demonstrations[rows]), run.demonstrations[rows], mask[rows])

    count = len(run.demonstrations)
    everything = torch.arange(count)
    batches = [
        rows
        for _ in range(SFT_PASSES)
        for rows in torch.randperm(count, generator=run.generator).split(min(SFT_BATCH, count))
    ]
    optimizer = torch.optim.Adam(run.sft.parameters(), lr=SFT_RATE)
    run.sft_curve.append(loss_of(everything).detach())
    for step, rows in enumerate(batches, 1):
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step()
        run.sft_curve.append(loss_of(everything).detach())
        progress.report("imitating demonstrations", step, len(batches))
    run.sft.eval().requires_grad_(False)
    run.sft_probs = answer_probs(run.sft, run.task)


def demonstrations(run: Run) -> Int[Tensor, "D T"]:
    """Draw answers from the base until enough of them are good; returns whole texts."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < run.config.sft_demos:
        answers = preference_task.sample_answers(run.base, run.task.prefixes, 16, run.generator).flatten(0, 1)
        prompt = torch.arange(len(run.task.prompts)).repeat_interleave(16)
        good = run.task.gold_rewards[prompt, *answers.T] >= GOOD
        kept.append(answer_texts(run.task, prompt, answers)[good])
    found = torch.cat(kept)
    return found[torch.randperm(len(found), generator=run.generator)[: run.config.sft_demos]]


# -- stage 2 -----------------------------------------------------------------------------------------------------------


def fit_reward(run: Run) -> None:
    """Let the reader compare answers of the imitator, and fit a reward to four fifths of the comparisons."""
    task = run.task
    log_probs = run.sft_probs.log().float().view_as(task.gold_rewards)
    run.pairs = preference_task.sample_preferences(task, log_probs, run.config.n_comparisons, run.generator)
    chosen, rejected = pair_texts(task, run.pairs)
    run.reward_models = train_reward_model(run.sft, chosen, rejected, run.generator)
    model = run.reward_models[-1]
    with torch.no_grad():
        run.proxy, run.bias = normalize_reward_bias(score_all(model, task), model(run.demonstrations))


def pair_texts(task: PreferenceTask, pairs: Preferences) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return the chosen and the rejected answers as whole texts."""
    return answer_texts(task, pairs.prompt, pairs.chosen), answer_texts(task, pairs.prompt, pairs.rejected)


def train_reward_model(
    language_model: tiny_lm.TinyLM,
    chosen: Int[Tensor, "B T"],
    rejected: Int[Tensor, "B T"],
    generator: torch.Generator,
    steps: int = REWARD_STEPS,
) -> list[RewardModel]:
    """Return the reward model before training and after every RECORD_EVERY steps; the last comparisons are held out."""
    model = RewardModel(language_model, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=REWARD_RATE, weight_decay=WEIGHT_DECAY)
    taught = len(chosen) - held_out_count(len(chosen))
    batch, order = min(REWARD_BATCH, taught), torch.empty(0, dtype=torch.long)
    kept = [copy.deepcopy(model)]
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(taught, generator=generator)
        rows, order = order[:batch], order[batch:]
        loss = pairwise_reward_loss(*model(torch.cat([chosen[rows], rejected[rows]])).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % RECORD_EVERY == 0:
            kept.append(copy.deepcopy(model))
        progress.report("fitting the reward", step, steps)
    return kept


def held_out_count(n_comparisons: int) -> int:
    """Return how many comparisons, the last ones, are never trained on."""
    return round(HELD_OUT * n_comparisons)


@torch.no_grad()
def score_all(model: RewardModel, task: PreferenceTask) -> Float[Tensor, "K N"]:
    """Return the score of every answer to every prompt."""
    vocabulary = torch.arange(tiny_lm.VOCAB_SIZE)
    answers = torch.cartesian_prod(vocabulary, vocabulary)
    rows = []
    for prompt in range(len(task.prompts)):
        parts = [
            model(answer_texts(task, torch.full((len(part),), prompt), part))
            for part in answers.split(16 * tiny_lm.VOCAB_SIZE)
        ]
        rows.append(torch.cat(parts).double())
        progress.report("scoring all answers", prompt + 1, len(task.prompts))
    return torch.stack(rows)


# -- stage 3 -----------------------------------------------------------------------------------------------------------


def climb(run: Run) -> None:
    """Move a copy of the imitator to answers that the reward model likes, on the leash of beta."""
    config, task = run.config, run.task
    policy = tiny_lm.copy_of(run.sft)
    run.policy = policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    places = torch.arange(config.samples_per_step)
    prompt, turn = places % len(task.prompts), places // len(task.prompts)
    each = torch.ones(config.samples_per_step, ANSWER_LENGTH, dtype=torch.bool)
    run.rl_probs.append(run.sft_probs)
    for step in range(1, config.rl_steps + 1):
        drawn = preference_task.sample_answers(policy, task.prefixes, int(turn[-1]) + 1, run.generator)
        answers = drawn[prompt, turn]
        ids = answer_texts(task, prompt, answers)
        logps, reference_logps = (answer_token_logps(model, ids) for model in (policy, run.sft))
        scores = run.proxy.view_as(task.gold_rewards)[prompt, *answers.T].float()
        rewards = kl_shaped_rewards(scores, logps.detach(), reference_logps, each, config.beta)
        loss = reinforce_loss(logps.sum(dim=1), rewards.sum(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % RECORD_EVERY == 0 or step == config.rl_steps:
            run.rl_probs.append(answer_probs(policy, task))
        if step == config.rl_steps:
            run.episode = {
                "episode_tokens": tiny_lm.tokens(answers[0]),
                "episode_score": float(scores[0]),
                "token_rewards": rewards[0],
                "token_kl": (logps - reference_logps).detach()[0],
            }
        progress.report("climbing the reward", step, config.rl_steps)
    policy.eval().requires_grad_(False)


# -- what is shown -----------------------------------------------------------------------------------------------------


def shown_answers(run: Run, exploited: int) -> Int[Tensor, " 8"]:
    """Return the answers to prompt 0 that get a bar, likeliest first: the most likely ones of the pretrained model,
    one of the worst of its 64 most likely, and the one that the reward model overrates most."""
    likely = run.pretrained_probs[0].argsort(descending=True).tolist()
    worst = min(likely[:64], key=lambda answer: float(run.gold[0, answer]))
    chosen = list(dict.fromkeys([exploited, worst, *likely]))[:SHOWN]
    return torch.tensor(sorted(chosen, key=likely.index))


@torch.no_grad()
def reward_records(run: Run, shown: Int[Tensor, " 8"]) -> dict[str, Any]:
    """Return how the reward model does on comparisons it was never shown, and where it puts the shown answers."""
    pairs = run.pairs
    held_out = slice(len(pairs.prompt) - held_out_count(len(pairs.prompt)), None)
    prompt = pairs.prompt[held_out]
    texts = torch.cat([part[held_out] for part in pair_texts(run.task, pairs)])
    beads = answer_texts(run.task, torch.zeros_like(shown), answer_at(shown))
    losses, accuracies, ladder = [], [], []
    for model in run.reward_models:
        chosen, rejected = model(texts).chunk(2)
        losses.append(pairwise_reward_loss(chosen, rejected))
        accuracies.append(reward_accuracy(chosen, rejected, torch.ones_like(prompt)))
        ladder.append(model(beads))
    gold = [run.task.gold_rewards[prompt, *part[held_out].T].double() for part in (pairs.chosen, pairs.rejected)]
    return {
        "reward_steps": torch.arange(len(run.reward_models)) * RECORD_EVERY,
        "reward_curve": torch.stack(losses),
        "reward_accuracy_curve": torch.tensor(accuracies, dtype=torch.float64),
        "bayes_accuracy": bayes_accuracy(*gold),
        "held_out_pairs": len(prompt),
        "ladder_rewards": torch.stack(ladder).double(),
        "reward_bias": run.bias,
    }


def comparisons(run: Run, shown: Int[Tensor, " 8"]) -> Comparisons:
    """Return the first comparisons of two shown answers, as the labeler met them: the likelier answer first."""
    pairs = run.pairs
    place = {answer: index for index, answer in enumerate(shown.tolist())}
    chosen, rejected = place_of(pairs.chosen), place_of(pairs.rejected)
    met = [
        (place[won], place[lost])
        for prompt, won, lost in zip(pairs.prompt.tolist(), chosen.tolist(), rejected.tolist(), strict=True)
        if prompt == 0 and won in place and lost in place
    ][:SHOWN_COMPARISONS]
    won, lost = torch.tensor(met, dtype=torch.long).view(-1, 2).T
    first, second = torch.minimum(won, lost), torch.maximum(won, lost)
    gold = run.gold[0, shown]
    return Comparisons(
        answer_1=tuple(words(int(shown[place_])) for place_ in first),
        answer_2=tuple(words(int(shown[place_])) for place_ in second),
        place_1=first,
        place_2=second,
        winner=torch.where(won == first, 1, 2),
        gold_gap=gold[first] - gold[second],
        probability=bradley_terry_probability(gold[first], gold[second]),
        surprising=gold[won] < gold[lost],
    )


def scatter(run: Run) -> dict[str, Any]:
    """Return true and learned reward of answers that the imitator gives, and of answers drawn from all V² alike."""
    generator = torch.Generator().manual_seed(run.config.seed)
    drawn = {
        "": run.sft_probs.flatten().multinomial(SCATTERED, replacement=True, generator=generator),
        "far_": torch.randint(run.gold.numel(), (SCATTERED,), generator=generator),
    }
    values: dict[str, Any] = {}
    for name, rows in drawn.items():
        gold, proxy = run.gold.flatten()[rows], run.proxy.flatten()[rows]
        values[f"{name}gold_rewards"], values[f"{name}proxy_rewards"] = gold, proxy
        values[f"{name or 'reward_'}correlation"] = float(torch.corrcoef(torch.stack([gold, proxy]))[0, 1])
    # One level for both clouds: comparisons leave the level of the proxy open, but not its unit.
    level = float((values["proxy_rewards"] - values["gold_rewards"]).mean())
    overrated = {
        f"{name}overrated": values[f"{name}proxy_rewards"] - values[f"{name}gold_rewards"] - level > 1 for name in drawn
    }
    return values | overrated | {"diagonal_level": level}


def best_of_n(run: Run) -> BestOfN:
    """Return the best of n answers of the imitator, by the learned reward, exactly."""
    policies = [best_of_n_policy(run.sft_probs, run.proxy, n) for n in BEST_OF]
    return BestOfN(
        ns=torch.tensor(BEST_OF),
        kl=torch.stack([kl_divergence(policy, run.sft_probs).mean() for policy in policies]),
        proxy=torch.stack([expected_reward(policy, run.proxy).mean() for policy in policies]),
        gold=torch.stack([expected_reward(policy, run.gold).mean() for policy in policies]),
        kl_bound=torch.tensor([best_of_n_kl_bound(n) for n in BEST_OF], dtype=torch.float64),
    )


def rl_records(run: Run, shown: Int[Tensor, " 8"]) -> dict[str, Any]:
    """Return where the climb led, beside the best that can be reached at its beta; means over prompts."""
    probs, beta = torch.stack(run.rl_probs), run.config.beta
    best, _ = optimal_policy(run.sft_probs, run.proxy, beta)
    steps = [min(index * RECORD_EVERY, run.config.rl_steps) for index in range(len(probs))]
    reference, proxy = run.sft_probs.expand_as(probs), run.proxy.expand_as(probs)
    return {
        "rl_steps": torch.tensor(steps),
        "rl_kl": kl_divergence(probs, reference).mean(dim=1),
        "rl_proxy": expected_reward(probs, run.proxy).mean(dim=1),
        "rl_gold": expected_reward(probs, run.gold).mean(dim=1),
        "rl_objective": rlhf_objective(probs, reference, proxy, beta).mean(dim=1),
        "rl_probs": pooled(probs[:, 0], shown),
        "final_probs": pooled(probs[-1, 0], shown),
        "optimal_kl": float(kl_divergence(best, run.sft_probs).mean()),
        "optimal_proxy": float(expected_reward(best, run.proxy).mean()),
        "optimal_gold": float(expected_reward(best, run.gold).mean()),
    }


def after_words(run: Run) -> dict[str, Any]:
    """Return what the models of all stages answer, and what they make of ordinary stories."""
    stages = {"pretrained": run.base, "sft": run.sft, "rl": run.policy}
    samples, tale_loss = preference_task.after_words(run.task, stages, run.config.seed)
    return {"samples": samples, "tale_loss": tale_loss}
