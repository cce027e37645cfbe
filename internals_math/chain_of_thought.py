"""Chain of thought: every written token carries a result from the top of the network back to its bottom.

The task is a shell game: c cups, a ball, swaps of two cups; where is the ball in the end? Answered at once, a network
with L layers has L steps for any number of swaps; written down state by state, it has L more with every token.

Notation: c = n_cups, K = max_swaps (slots of the question), n = swaps of a game, w = swaps, s_t = cup after t swaps,
L = layers, V = vocabulary, B = batch, m = votes.
Sources: Wei et al. 2022 (2201.11903); Wang et al. 2022, self-consistency (2203.11171); Li et al. 2024 (2402.12875):
constant depth without a chain stays in AC0/TC0, T written steps simulate circuits of size T; Pfau et al. 2024, filler
tokens (2404.15758); Barrington 1989: the word problem of S5 is NC1-complete.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.kv_cache import KVCache
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "ShellGame", "Trace", "accuracy_by_length", "apply_swaps", "cached_model_fn", "chain_accuracy",
    "chain_log_prob", "compose_permutations", "encode_chain", "encode_question", "generate_chain", "logit_lens",
    "majority_vote", "majority_vote_accuracy", "make_shell_game", "marginal_answer_distribution", "plurality_accuracy",
    "serial_depth", "trace", "transpositions", "vocab_size",
]  # fmt: skip

ModelFn = Callable[[Tensor], Tensor]  # token ids (B, T) -> logits (B, T or fewer, V); only the last position is read


# -- the game ----------------------------------------------------------------------------------------------------------


def transpositions(n_cups: int) -> list[tuple[int, int]]:
    """Return all pairs of cups that can be swapped, c (c - 1) / 2 of them.

    >>> transpositions(3)
    [(0, 1), (0, 2), (1, 2)]

    Raises:
        ValueError: fewer than two cups.
    """
    if n_cups < 2:
        raise ValueError(f"n_cups must be at least 2, got {n_cups}")
    return list(itertools.combinations(range(n_cups), 2))


def apply_swaps(start: Int[Tensor, " B"], swaps: Int[Tensor, "B K"], n_cups: int) -> Int[Tensor, "B K1"]:
    """Return where the ball is before the first swap and after each one.

    Args:
        start: cups 0 .. c - 1.
        swaps: indices into `transpositions`; the number after the last one does nothing.

    Raises:
        ValueError: a cup or a swap out of range.
    """
    tables = _swap_tables(n_cups)  # (swaps + 1, c)
    _check_range("start", start, n_cups)
    _check_range("swaps", swaps, len(tables))
    states = [start]
    for step in range(swaps.shape[1]):
        states.append(tables[swaps[:, step], states[-1]])
    return torch.stack(states, dim=1)


def compose_permutations(perms: Int[Tensor, "*batch K c"]) -> Int[Tensor, "*batch c"]:
    """Return the permutation that does all rows in turn, the first row first; row[x] is where x goes.

    >>> compose_permutations(torch.tensor([[1, 0, 2], [0, 2, 1]]))
    tensor([2, 0, 1])

    Raises:
        ValueError: a row that is not a permutation of 0 .. c - 1.
    """
    n = perms.shape[-1]
    if not (perms.sort(dim=-1).values == torch.arange(n)).all():
        raise ValueError(f"each row must be a permutation of 0..{n - 1}")
    total = torch.arange(n).expand(*perms.shape[:-2], n)
    for step in range(perms.shape[-2]):
        total = perms[..., step, :].gather(-1, total)
    return total


@dataclass(frozen=True, eq=False)
class ShellGame:
    """A batch of games. Token ids: cups 0 .. c - 1, then the swaps, then no-op, then the filler dot."""

    n_cups: int
    swaps: Int[Tensor, "B K"]  # indices into `transpositions`; slots after the game's end hold the no-op
    lengths: Int[Tensor, " B"]  # swaps of each game
    states: Int[Tensor, "B K1"]

    @property
    def answers(self) -> Int[Tensor, " B"]:
        return self.states[:, -1]


def make_shell_game(
    batch: int, n_cups: int, max_swaps: int, *, generator: torch.Generator, length: int | None = None
) -> ShellGame:
    """Draw games with 1 .. max_swaps swaps, or all with `length` of them.

    Raises:
        ValueError: a batch or max_swaps below 1, fewer than two cups, or a length out of 1..max_swaps.
    """
    no_op = len(transpositions(n_cups))
    if batch < 1 or max_swaps < 1:
        raise ValueError(f"batch and max_swaps must be at least 1, got {batch} and {max_swaps}")
    if length is not None and not 1 <= length <= max_swaps:
        raise ValueError(f"length must be in 1..{max_swaps}, got {length}")
    lengths = torch.randint(1, max_swaps + 1, (batch,), generator=generator)
    if length is not None:
        lengths = torch.full_like(lengths, length)
    swaps = torch.randint(no_op, (batch, max_swaps), generator=generator)
    swaps = swaps.masked_fill(torch.arange(max_swaps) >= lengths[:, None], no_op)
    start = torch.randint(n_cups, (batch,), generator=generator)
    return ShellGame(n_cups, swaps, lengths, apply_swaps(start, swaps, n_cups))


def vocab_size(n_cups: int) -> int:
    """Return the number of tokens: cups, swaps, no-op, dot."""
    return n_cups + len(transpositions(n_cups)) + 2


def encode_question(game: ShellGame) -> Int[Tensor, "B K1"]:
    """Return the ids [w_1 … w_K] [s_0]: state t is predicted exactly K places after swap t."""
    return torch.cat([game.n_cups + game.swaps, game.states[:, :1]], dim=1)


def encode_chain(game: ShellGame) -> Int[Tensor, "B K"]:
    """Return the ids of s_1 … s_K, the chain that a model learns to write; the last one is the answer."""
    return game.states[:, 1:]


# -- writing a chain ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate_chain(
    model_fn: ModelFn,
    question_ids: Int[Tensor, "B K1"],
    n_steps: int,
    *,
    state_ids: Int[Tensor, " c"],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    forced: Mapping[int, Int[Tensor, " B"]] | None = None,
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n c"]]:
    """Write `n_steps` states, each fed back as the next input, and return them with the beliefs behind them.

    Args:
        state_ids: token ids of the cups; only these can be written.
        temperature: of the draw; 0 takes the most likely cup.
        forced: step (counted from 1) -> the cups to write there, whatever the model believes.

    Returns:
        chain: cups 0 .. c - 1.
        step_probs: softmax over the cups at temperature 1.

    Raises:
        ValueError: more steps than slots (K), a negative temperature, a forced step or cup out of range.
    """
    slots, n_cups = question_ids.shape[1] - 1, len(state_ids)
    if not 1 <= n_steps <= slots:
        raise ValueError(f"n_steps must be in 1..{slots} (the slots of the question), got {n_steps}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    forced = forced or {}
    for step, states in forced.items():
        if not 1 <= step <= n_steps:
            raise ValueError(f"a forced step must be in 1..{n_steps}, got {step}")
        _check_range("forced states", states, n_cups)
    sequence, chain, beliefs = question_ids, [], []
    for step in range(1, n_steps + 1):
        logits = model_fn(sequence)[:, -1, state_ids]  # (B, c)
        beliefs.append(logits.softmax(dim=-1))
        if step in forced:
            state = forced[step]
        elif temperature == 0:
            state = logits.argmax(dim=-1)
        else:
            state = torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]
        chain.append(state)
        sequence = torch.cat([sequence, state_ids[state][:, None]], dim=1)
    return torch.stack(chain, dim=1), torch.stack(beliefs, dim=1)


def cached_model_fn(model: Any) -> ModelFn:
    """Return the model as a function of a growing sequence that reads only the ids which it has not seen."""
    cache = KVCache(model.config.num_hidden_layers)
    return lambda ids: model(ids[:, cache.get_seq_length() :], cache=cache)


@torch.no_grad()
def chain_log_prob(
    model_fn: ModelFn,
    question_ids: Int[Tensor, "B K1"],
    chain: Int[Tensor, "B n"],
    *,
    state_ids: Int[Tensor, " c"],
) -> Float[Tensor, " B"]:
    """Return ln p(chain | question), the sum of its steps' log-probabilities among the cups, in one pass.

    `model_fn` must return the logits of all positions here.

    Raises:
        ValueError: a chain longer than the slots of the question, or a cup out of range.
    """
    slots, steps = question_ids.shape[1] - 1, chain.shape[1]
    if not 1 <= steps <= slots:
        raise ValueError(f"a chain must have 1..{slots} steps (the slots of the question), got {steps}")
    _check_range("chain", chain, len(state_ids))
    sequence = torch.cat([question_ids, state_ids[chain[:, :-1]]], dim=1)
    logits = model_fn(sequence)[:, slots:, state_ids]  # the position of state t - 1 predicts state t
    return logits.log_softmax(dim=-1).gather(-1, chain[..., None])[..., 0].sum(dim=1)


# -- many chains -------------------------------------------------------------------------------------------------------


def majority_vote(
    answers: Int[Tensor, "m ..."], n_classes: int
) -> tuple[Int[Tensor, "..."], Int[Tensor, "... n_classes"]]:
    """Return the most frequent answer and how often each was given; of tied answers the one given first wins.

    Raises:
        ValueError: no votes, or an answer out of range.
    """
    if not len(answers):
        raise ValueError("a vote needs at least one answer")
    _check_range("answers", answers, n_classes)
    one_hot = torch.nn.functional.one_hot(answers, n_classes)  # (m, *batch, n_classes)
    counts = one_hot.sum(dim=0)
    first_given = one_hot.argmax(dim=0)  # the first vote for each answer; 0 too where there is none
    leads = counts == counts.amax(dim=-1, keepdim=True)
    return first_given.masked_fill(~leads, len(answers)).argmin(dim=-1), counts


def majority_vote_accuracy(p: float, m: int) -> float:
    """Return P(more than half of m votes are right), each right with probability p, on its own; two outcomes.

    >>> round(majority_vote_accuracy(0.6, 3), 3)
    0.648

    Raises:
        ValueError: p out of 0..1, or m not odd and positive.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in 0..1, got {p}")
    if m < 1 or m % 2 == 0:
        raise ValueError(f"m must be odd and at least 1 (an even number of votes can tie), got {m}")
    return math.fsum(math.comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m // 2 + 1, m + 1))


def plurality_accuracy(probs: Float[Tensor, " c"], correct: int, m: int) -> float:
    """Return P(the right one of c answers wins m votes), exactly; a tie counts by equal shares.

    Raises:
        ValueError: probabilities that are negative or do not sum to 1, correct out of range, or m out of 1..15.
    """
    shares = probs.double().tolist()
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-4:
        raise ValueError(f"probs must be at least 0 and sum to 1, got sum {sum(shares):g}")
    if not 0 <= correct < len(shares):
        raise ValueError(f"correct must be in 0..{len(shares) - 1}, got {correct}")
    if not 1 <= m <= 15:
        raise ValueError(f"m must be in 1..15 (all outcomes are listed), got {m}")
    total = 0.0
    for counts in _counts(m, len(shares)):
        leaders = [answer for answer, count in enumerate(counts) if count == max(counts)]
        if correct in leaders:
            ways = math.factorial(m) // math.prod(math.factorial(count) for count in counts)
            total += ways * math.prod(p**k for p, k in zip(shares, counts, strict=True)) / len(leaders)
    return total


def marginal_answer_distribution(
    chain_probs: Float[Tensor, " R"], answers: Int[Tensor, " R"], n_classes: int
) -> Float[Tensor, " n_classes"]:
    """Return p(answer) = sum over the chains that end in it; it sums to what the listed chains cover.

    Raises:
        ValueError: a negative probability, a sum above 1, or an answer out of range.
    """
    if (chain_probs < 0).any() or chain_probs.sum() > 1 + 1e-4:
        raise ValueError(f"chain_probs must be at least 0 and sum to at most 1, got sum {float(chain_probs.sum()):g}")
    _check_range("answers", answers, n_classes)
    return chain_probs.new_zeros(n_classes).index_add(0, answers, chain_probs)


# -- measures ----------------------------------------------------------------------------------------------------------


def chain_accuracy(step_accuracies: Float[Tensor, " n"]) -> float:
    """Return P(every step is right), each accuracy given that all earlier steps were right.

    Raises:
        ValueError: an accuracy out of 0..1.
    """
    if not ((step_accuracies >= 0) & (step_accuracies <= 1)).all():
        raise ValueError(f"accuracies must be in 0..1, got {step_accuracies.tolist()}")
    return float(step_accuracies.double().prod())


def serial_depth(n_layers: int, n_chain_tokens: int) -> int:
    """Return how many layers the answer can have passed through one after another: L (n + 1).

    Each of the n written tokens re-enters at the bottom with what the top has found. This is an upper bound of what a
    network may use, not what a task needs.

    Raises:
        ValueError: fewer than one layer, or a negative number of tokens.
    """
    if n_layers < 1 or n_chain_tokens < 0:
        raise ValueError(f"n_layers must be at least 1 and n_chain_tokens 0, got {n_layers} and {n_chain_tokens}")
    return n_layers * (n_chain_tokens + 1)


def accuracy_by_length(
    pred: Int[Tensor, " B"], target: Int[Tensor, " B"], lengths: Int[Tensor, " B"], max_len: int
) -> Float[Tensor, " max_len"]:
    """Return the share of right answers among the games with 1, 2 … max_len swaps; NaN where there is no game.

    Raises:
        ValueError: a length out of 1..max_len.
    """
    _check_range("lengths", lengths - 1, max_len)
    right = torch.zeros(max_len).index_add(0, lengths - 1, (pred == target).float())
    return right / torch.bincount(lengths - 1, minlength=max_len)


def logit_lens(
    hidden_states: Float[Tensor, "L1 *batch d"],
    norm_fn: Callable[[Tensor], Tensor],
    unembed: Float[Tensor, "V d"],
    ids: Int[Tensor, " c"],
) -> Float[Tensor, "L1 *batch c"]:
    """Return what each layer already believes: the output head on its state, softmax over some tokens only."""
    return (norm_fn(hidden_states) @ unembed[ids].T).softmax(dim=-1)


def _swap_tables(n_cups: int) -> Int[Tensor, "swaps c"]:
    """Return where each cup's ball goes, one row for each swap and a last one that moves nothing."""
    tables = torch.arange(n_cups).repeat(len(transpositions(n_cups)) + 1, 1)
    for row, (i, j) in enumerate(transpositions(n_cups)):
        tables[row, i], tables[row, j] = j, i
    return tables


def _counts(m: int, classes: int) -> list[tuple[int, ...]]:
    """Return all ways to spread m votes over the classes."""
    if classes == 1:
        return [(m,)]
    return [(k, *rest) for k in range(m + 1) for rest in _counts(m - k, classes - 1)]


def _check_range(name: str, values: Tensor, size: int) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
        raise ValueError(f"{name} must be in 0..{size - 1}, got {int(values.min())}..{int(values.max())}")


# -- what the video shows ----------------------------------------------------------------------------------------------

CUP_NAMES = "ABCDEF"
LOOP_SWAPS = 4


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    n_cups: int = option(5, "cups", minimum=3, maximum=6)
    max_swaps: int = option(10, "swaps of the longest game", minimum=4, maximum=12)
    n_layers: int = option(2, "layers of the model", minimum=1, maximum=4)
    train_steps: int = option(750, "optimizer steps of each training run", minimum=200, maximum=1500)
    example_length: int = option(8, "swaps of the game on screen", minimum=2, maximum=12)
    corrupt_step: int = option(4, "written state that is overwritten with a wrong one", minimum=1, maximum=12)
    votes: int = option(21, "sampled chains of one game, an odd number", minimum=1, maximum=41)
    temperature: float = option(1.0, "of the sampled chains", minimum=0.2, maximum=2)
    seed: int = option(0, "of weights, training games and samples", minimum=0, maximum=99)

    def check(self) -> None:
        if self.example_length > self.max_swaps:
            raise ValueError(f"example_length must be at most max_swaps ({self.max_swaps}), got {self.example_length}")
        if self.corrupt_step > self.example_length:
            raise ValueError(
                f"corrupt_step must be at most example_length ({self.example_length}), got {self.corrupt_step}"
            )
        if self.votes % 2 == 0:
            raise ValueError(f"votes must be odd (an even number can tie), got {self.votes}")


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. K slots, c cups, L layers, n swaps of the game on screen.

    Measured on trained models, but for four fields that are counted or follow from the rules: `chance`,
    `corrupted_expected`, `passes` and `depth`. Published accuracies of other models are no fields.

    Models of one size and one training: direct answers at once, filler after K - 1 equal dots, chain writes every
    state; direct_deep is direct with twice the layers. Cups are numbers, `cup_names` names them.
    """

    config: Config
    cup_names: tuple[str, ...]  # c
    swaps: Int[Tensor, "n 2"]  # cups
    states: Int[Tensor, " n1"]  # where the ball is before the first swap and after each
    question_ids: Int[Tensor, " K1"]
    question_words: tuple[str, ...]  # K + 1: swaps such as "A-C", "-" in slots that are not used, the first cup
    chain: Int[Tensor, " K"]  # what the chain model writes
    chain_words: tuple[str, ...]
    step_probs: Float[Tensor, "K c"]  # its beliefs
    direct_probs: Float[Tensor, " c"]  # what the direct model believes of the end
    direct_answer: int
    lens_cot: Float[Tensor, "L1 K"]  # belief in the right cup after each layer, at each step
    lens_direct: Float[Tensor, " L1"]
    attention: Float[Tensor, "K P"]  # from each step to question and chain (P = 2 K), averaged over the heads
    attention_layer: int  # the layer of `attention`: the one that looks most at its own swap
    attention_target_share: Float[Tensor, "K 2"]  # weight on the step's own swap and on the previous state
    attention_share_mean: Float[Tensor, " 2"]  # the same over held-out games
    accuracy_direct: Float[Tensor, " K"]  # by number of swaps, on held-out games
    accuracy_filler: Float[Tensor, " K"]
    accuracy_cot: Float[Tensor, " K"]
    accuracy_direct_deep: Float[Tensor, " K"]
    games_per_length: int
    chance: float
    corrupted_chain: Int[Tensor, " K"]  # the game on screen with one state overwritten
    corrupted_expected: Int[Tensor, " K"]  # what follows from the wrong state by the rules
    following_rate: float  # share of long games whose answer follows from the wrong state
    recovered_rate: float  # share whose answer is that of the real game
    corrupted_games: int
    early_step: int  # training steps of the model that votes: imperfect on purpose
    vote_m: Int[Tensor, " M"]
    vote_accuracy: Float[Tensor, " M"]
    vote_games: int
    vote_single_accuracy: float  # of one sampled chain
    vote_greedy_accuracy: float  # of the chain without sampling
    vote_answers: Int[Tensor, " votes"]  # of one game: where the first chain errs and the vote is right
    vote_chains: Int[Tensor, "votes K"]
    vote_counts: Int[Tensor, " c"]
    vote_winner: int
    vote_truth: Int[Tensor, " K"]  # the real states of that game
    train_curves: dict[str, Tensor]  # steps; loss_* and accuracy_* of direct, filler, chain
    passes: dict[str, int]  # forward passes of one answer
    depth: dict[str, int]  # layers that the answer can have passed through one after another
    loop_swaps: Int[Tensor, "4 2"]  # four swaps that bring the ball back
    loop_states: Int[Tensor, " 5"]
    loop_probs: Float[Tensor, "4 c"]
    loop_lens: Float[Tensor, "L1 4"]
    walk_moves: Int[Tensor, " W"]  # the same finding on the series' own model, fine-tuned on walks
    walk_direct: Float[Tensor, " W"]
    walk_steps: Float[Tensor, " W"]
    walk_chance: float
    walk_questions: int  # for each number of moves
    walk_prompt: str
    walk_answer: str  # what the model wrote step by step
    walk_direct_answer: str


def trace(config: Config) -> Trace:
    """Train the four models (about 90 s on one core) and let them play."""
    from internals_math import chain_of_thought_experiment as experiment  # it is built on the functions above

    models = experiment.train_models(config)
    chain, direct = models["chain"], models["direct"]
    game = experiment.example_game(config)
    slots = config.max_swaps
    layers = {name: model.config.num_hidden_layers for name, model in models.items()}
    return Trace(
        config=config,
        cup_names=tuple(CUP_NAMES[: config.n_cups]),
        swaps=experiment.swapped_cups(game),
        states=game.states[0, : config.example_length + 1],
        **experiment.play(config, chain, direct, game),
        **experiment.look(chain, game),
        **{
            f"accuracy_{'cot' if name == 'chain' else name}": experiment.accuracy(name, model, config)
            for name, model in models.items()
        },
        games_per_length=experiment.GAMES_PER_LENGTH,
        chance=1 / config.n_cups,
        **experiment.interfere(config, chain, game),
        **experiment.vote(config, models.early_chain),
        train_curves=models.curves,
        passes={name: 1 if name.startswith("direct") else slots for name in models},
        # Dots are known before the first pass, so no result of one pass enters the next: they add no depth.
        depth={name: serial_depth(layers[name], slots - 1 if name == "chain" else 0) for name in models},
        **experiment.loop(config, chain),
        **experiment.walk(),
    )
