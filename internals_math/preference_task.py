"""The task that DPO, RLHF, PPO and GRPO share: small enough that everything about it is an exact sum.

After `one day the [adjective] [character] found a` the model names a find in two words, and the reader likes treasure.
All V² answers are enumerated, so probabilities, KL, expected reward and the best policy are sums, not estimates.

Notation: K = prompts, T = words of a prompt, V = vocab_size, B = answers, N = answers in all (V² if flattened), where
V times the first word plus the second is the place of an answer.
Source: Rafailov et al. 2023 (DPO), arXiv 2305.18290, eqs. 1, 3 and 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.distributions import entropy, kl_divergence
from internals_math.next_token import sample_token, token_surprisal
from internals_math.tiny_lm.vocabulary import CAST, CHARACTER_ADJECTIVES, ids_of

LIKED = ("golden", "shiny", "key", "ring", "pearl", "coin")
DISLIKED = ("tiny", "drum", "ball", "rope", "flag")
REPEATED = -0.5  # on top, for the same word twice
ANSWER_LENGTH = 2
FEWEST_BITS = 2.0  # of an answer: less would leave nothing to choose
SMALLEST_SIGN = 0.05  # probability of a good and of a bad answer
SAMPLES = 6  # answers that show what a model has become


@dataclass(frozen=True, eq=False)
class PreferenceTask:
    """Prompts and the reward that the reader has in mind; no model is ever shown it."""

    prompts: tuple[str, ...]  # K
    prefixes: Int[Tensor, "K T"]
    word_scores: Float[Tensor, " V"]
    gold_rewards: Float[Tensor, "K V V"]


@dataclass(frozen=True, eq=False)
class Preferences:
    """Comparisons: of two answers to a prompt, the reader chose one."""

    prompt: Int[Tensor, " B"]  # row of the task
    chosen: Int[Tensor, "B 2"]
    rejected: Int[Tensor, "B 2"]


def make_preference_task(model: tiny_lm.TinyLM, *, n_prompts: int = 6, seed: int = 0) -> PreferenceTask:
    """Return the task; prompt 0 is that of the whole series, the seed chooses characters and adjectives of the others.

    Raises:
        ValueError: n_prompts out of 1..12, or a model for which the task would be trivial: answers of less than 2 bits,
            or good or bad ones of less than 5 % after some prompt.
    """
    characters = [name for cast in CAST.values() for name in cast]
    if not 1 <= n_prompts <= len(characters):
        raise ValueError(f"n_prompts must be in 1..{len(characters)} (one for each character), got {n_prompts}")
    generator = torch.Generator().manual_seed(seed)
    others = [characters[1 + k] for k in torch.randperm(len(characters) - 1, generator=generator).tolist()]
    adjectives = torch.randint(len(CHARACTER_ADJECTIVES), (len(others),), generator=generator).tolist()
    written = [
        f"one day the {CHARACTER_ADJECTIVES[k]} {name} found a" for k, name in zip(adjectives, others, strict=True)
    ]
    prompts = (tiny_lm.PROMPT, *written)[:n_prompts]
    scores = word_scores()
    rewards = scores[:, None] + scores + REPEATED * torch.eye(len(scores))
    prefixes = torch.tensor([tiny_lm.encode(prompt) for prompt in prompts])
    task = PreferenceTask(prompts, prefixes, scores, rewards.expand(n_prompts, -1, -1))
    with torch.no_grad():
        _check(task, answer_log_probs(model, task).double().exp())
    return task


def word_scores() -> Float[Tensor, " V"]:
    """Return the reader's taste: +1 for treasure, -1 for junk, 0 for every other word."""
    scores = torch.zeros(tiny_lm.VOCAB_SIZE)
    scores[ids_of(LIKED)] = 1.0
    scores[ids_of(DISLIKED)] = -1.0
    return scores


def _check(task: PreferenceTask, probs: Float[Tensor, "K V V"]) -> None:
    bits = entropy(probs.flatten(1)) / torch.log(torch.tensor(2.0))
    good, bad = ((probs * sign).flatten(1).sum(dim=1) for sign in (task.gold_rewards > 0, task.gold_rewards < 0))
    if bits.min() < FEWEST_BITS or torch.minimum(good, bad).min() < SMALLEST_SIGN:
        raise ValueError(
            f"the task needs answers of at least {FEWEST_BITS:g} bits, good and bad ones each with a probability of "
            f"{SMALLEST_SIGN:.0%}; got {bits.min():.2f} bits, {good.min():.1%} good, {bad.min():.1%} bad"
        )


def answer_log_probs(model: tiny_lm.TinyLM, task: PreferenceTask) -> Float[Tensor, "K V V"]:
    """Return ln p(answer | prompt) of every answer, differentiable: K + K·V short rows through the model."""
    prefixes = task.prefixes
    prompts, vocab_size = len(prefixes), tiny_lm.VOCAB_SIZE
    first = model(prefixes)[:, -1].log_softmax(dim=-1)  # (K, V)
    words = torch.arange(vocab_size).repeat(prompts)[:, None]
    longer = torch.cat([prefixes.repeat_interleave(vocab_size, dim=0), words], dim=1)  # (K·V, T + 1)
    second = model(longer)[:, -1].log_softmax(dim=-1).view(prompts, vocab_size, vocab_size)
    return first[:, :, None] + second


@torch.no_grad()
def answer_probs(model: tiny_lm.TinyLM, task: PreferenceTask) -> Float[Tensor, "K N"]:
    """Return p(answer | prompt) of every answer, in float64."""
    return exact(answer_log_probs(model, task))


def exact(log_probs: Float[Tensor, "K V V"]) -> Float[Tensor, "K N"]:
    """Return the probabilities of all answers in float64; they sum to 1 as exactly as float64 can."""
    return log_probs.double().flatten(1).softmax(dim=-1)


def place_of(answers: Int[Tensor, "*batch 2"]) -> Int[Tensor, "*batch"]:
    """Return the places of answers among all V²."""
    return answers[..., 0] * tiny_lm.VOCAB_SIZE + answers[..., 1]


def answer_at(places: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch 2"]:
    """Return the two words of the answers at some places among all V²."""
    return torch.stack([places // tiny_lm.VOCAB_SIZE, places % tiny_lm.VOCAB_SIZE], dim=-1)


def words(place: int) -> str:
    """Return the answer at a place among all V² as it is read."""
    return " ".join(tiny_lm.tokens(divmod(place, tiny_lm.VOCAB_SIZE)))


def alone(values: Float[Tensor, " N"], shown: Int[Tensor, " n"]) -> Float[Tensor, " n_more"]:
    """Return values of the shown answers; NaN for all others together, which have no single one."""
    return torch.cat([values[shown], torch.tensor([torch.nan], dtype=values.dtype)])


def answer_texts(
    task: PreferenceTask, prompt: Int[Tensor, " B"], answers: Int[Tensor, "B 2"]
) -> Int[Tensor, "B T_all"]:
    """Return whole rows of ids: prompts with their answers."""
    return torch.cat([task.prefixes[prompt], answers], dim=1)


def answer_token_logps(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T_all"]) -> Float[Tensor, "B 2"]:
    """Return ln p of each word of the answers that end these texts, differentiable."""
    return -token_surprisal(model(ids), ids)[:, -ANSWER_LENGTH:]


@torch.no_grad()
def sample_answers(
    model: tiny_lm.TinyLM, prompts: Int[Tensor, "K T"], n: int, generator: torch.Generator
) -> Int[Tensor, "K n 2"]:
    """Draw n answers to each prompt, word by word, at temperature 1.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 answer, got {n}")
    text = prompts.repeat_interleave(n, dim=0)
    for _ in range(ANSWER_LENGTH):
        chosen = sample_token(model(text)[:, -1], 1.0, generator)
        text = torch.cat([text, chosen[:, None]], dim=1)
    return text[:, -ANSWER_LENGTH:].reshape(len(prompts), n, ANSWER_LENGTH)


def sample_preferences(
    task: PreferenceTask, log_probs: Float[Tensor, "K V V"], n_pairs: int, generator: torch.Generator
) -> Preferences:
    """Draw pairs of different answers and let the reader compare them (Bradley and Terry: σ of the reward gap).

    Args:
        log_probs: of the policy that writes the answers.

    Raises:
        ValueError: n_pairs is below 1.
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}")
    probs = log_probs.detach().flatten(1).exp()
    prompt = torch.randint(len(probs), (n_pairs,), generator=generator)
    order = prompt.argsort(stable=True)
    counts = torch.bincount(prompt, minlength=len(probs)).tolist()

    def draw() -> Tensor:
        drawn = [
            row.multinomial(count, replacement=True, generator=generator)
            for row, count in zip(probs, counts, strict=True)
            if count
        ]
        return torch.empty_like(prompt).scatter(0, order, torch.cat(drawn))

    one, other = draw(), draw()
    while (same := one == other).any():  # a pair of equal answers would say nothing
        other = torch.where(same, draw(), other)
    rewards = task.gold_rewards.flatten(1)
    wins = torch.sigmoid(rewards[prompt, one] - rewards[prompt, other])
    first = torch.rand(n_pairs, generator=generator) < wins
    chosen, rejected = torch.where(first, one, other), torch.where(first, other, one)
    return Preferences(prompt, answer_at(chosen), answer_at(rejected))


@torch.no_grad()
def after_words(
    task: PreferenceTask, models: Mapping[str, tiny_lm.TinyLM], seed: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """Return what each model answers to prompt 0 with the same luck, and its loss on ordinary stories."""
    tales = tiny_lm.held_out_kind("tale")
    samples, tale_loss = {}, {}
    for name, model in models.items():
        generator = torch.Generator().manual_seed(seed)
        answers = sample_answers(model, task.prefixes[:1], SAMPLES, generator)[0]
        samples[name] = tuple(words(place) for place in place_of(answers).tolist())
        tale_loss[name] = tiny_lm.evaluate(model, tales)
    return samples, tale_loss


def exact_kl(p: Float[Tensor, "K V V"], q: Float[Tensor, "K V V"]) -> Float[Tensor, " K"]:
    """Return KL(p ‖ q) over all answers to each prompt, in nats."""
    return kl_divergence(p.flatten(1), q.flatten(1))


def exact_expected_reward(probs: Float[Tensor, "K V V"], rewards: Float[Tensor, "K V V"]) -> Float[Tensor, " K"]:
    """Return the mean reward over all answers to each prompt."""
    return (probs * rewards).flatten(1).sum(dim=1)


def optimal_policy(
    reference_probs: Float[Tensor, "*batch N"], rewards: Float[Tensor, "*batch N"], beta: float
) -> tuple[Float[Tensor, "*batch N"], Float[Tensor, "*batch"]]:
    """Return the policy that maximizes E[r] - beta·KL(policy ‖ reference), and ln Z (2305.18290, eq. 4).

    The best policy is the reference tilted by exp(r / beta); beta·ln Z is the value that it reaches.

    Raises:
        ValueError: beta is not > 0, or probabilities that do not sum to 1 (within 1e-4).

    >>> policy, log_partition = optimal_policy(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), beta=1.0)
    >>> policy
    tensor([0.2689, 0.7311])
    """
    check_beta(beta)
    check_probs(reference_probs, "reference_probs")
    tilted = reference_probs.log() + rewards / beta  # -inf where the reference rules an answer out
    log_partition = tilted.logsumexp(dim=-1)
    return (tilted - log_partition[..., None]).exp(), log_partition


def check_beta(beta: float) -> None:
    """Raise ValueError if beta, the price of leaving the reference, is not > 0."""
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")


def check_probs(probs: Tensor, name: str) -> None:
    """Raise ValueError if the last axis does not sum to 1 within 1e-4."""
    totals = probs.sum(dim=-1)
    if not bool(((totals - 1).abs() <= 1e-4).all()):
        worst = totals.flatten()[(totals - 1).abs().nan_to_num(torch.inf).argmax()]
        raise ValueError(f"{name} must sum to 1 over the last axis, got {float(worst):.6g}")
