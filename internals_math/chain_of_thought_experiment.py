"""Shell games for the tiny LM: trained to answer at once, after dots, or in written steps; and what it then does.

Runs: "direct" (the answer right after the question), "filler" (the answer after K - 1 equal dots), "chain" (every
state written), "direct_deep" (as direct, with twice the layers). Weights are fresh and the vocabulary is the game's.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.chain_of_thought import (
    CUP_NAMES,
    LOOP_SWAPS,
    Config,
    ShellGame,
    accuracy_by_length,
    apply_swaps,
    cached_model_fn,
    encode_chain,
    encode_question,
    generate_chain,
    logit_lens,
    majority_vote,
    make_shell_game,
    transpositions,
    vocab_size,
)
from internals_math.next_token import IGNORE
from internals_math.tiny_lm import walks
from internals_math.tiny_lm.datasets import HELD_OUT_SEED, Corpus, make_corpus
from internals_math.tiny_lm.layers import ModelConfig, rms_norm
from internals_math.tiny_lm.training import OnStep, copy_of

RUNS = ("direct", "filler", "chain", "direct_deep")
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
TRAINING_SEED = 1000  # of the games; held-out games have HELD_OUT_SEED and the numbers after it
CURVE_EVERY = 50  # steps
CURVE_GAMES = 500
EARLY_STEP = 120  # the chain model then still errs in long games
GAMES_PER_LENGTH = 200
CORRUPTED_GAMES = 500
VOTE_GAMES = 300
WALK_QUESTIONS = 100


# -- training ----------------------------------------------------------------------------------------------------------


class Models(dict[str, tiny_lm.TinyLM]):
    """The trained models by run, the chain model at EARLY_STEP, and how training went."""

    def __init__(self) -> None:
        super().__init__()
        self.early_chain: tiny_lm.TinyLM
        self.curves: dict[str, Tensor] = {}


def game_model(config: Config, n_layers: int) -> tiny_lm.TinyLM:
    """Return a fresh model of the series' shape with the game's vocabulary."""
    shape = ModelConfig(vocab_size=vocab_size(config.n_cups), num_hidden_layers=n_layers)
    return tiny_lm.TinyLM(shape, seed=config.seed)


def layout(run: str, game: ShellGame) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return the ids that a run reads and the labels that it learns (unshifted; -100 = not learned).

    Raises:
        ValueError: unknown run.
    """
    if run not in RUNS:
        raise ValueError(f"run must be one of {', '.join(RUNS)}, got {run!r}")
    question, chain = encode_question(game), encode_chain(game)
    if run == "chain":
        written = chain
    elif run == "filler":
        dots = torch.full_like(chain[:, 1:], vocab_size(game.n_cups) - 1)
        written = torch.cat([dots, chain[:, -1:]], dim=1)
    else:
        written = chain[:, -1:]
    ids = torch.cat([question, written], dim=1)
    learned = written.shape[1] if run == "chain" else 1
    labels = torch.full_like(ids, IGNORE)
    labels[:, -learned:] = ids[:, -learned:]
    return ids, labels


def training_games(config: Config) -> ShellGame:
    """Return the games of a whole run; every model sees the same ones, each once."""
    generator = torch.Generator().manual_seed(TRAINING_SEED + config.seed)
    return make_shell_game(config.train_steps * BATCH_SIZE, config.n_cups, config.max_swaps, generator=generator)


def held_out_games(config: Config, length: int | None = None, count: int = GAMES_PER_LENGTH) -> ShellGame:
    """Return games that no model was trained on (short ones cannot all be new: there are too few of them)."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + (length or 0))
    return make_shell_game(count, config.n_cups, config.max_swaps, generator=generator, length=length)


def train_models(config: Config) -> Models:
    """Train all of RUNS."""
    models, games, judges = Models(), training_games(config), held_out_games(config, count=CURVE_GAMES)
    recipe = tiny_lm.Recipe(steps=config.train_steps, batch_size=BATCH_SIZE, muon_lr=0.0, adam_lr=LEARNING_RATE)
    records = [*range(CURVE_EVERY, config.train_steps, CURVE_EVERY), config.train_steps]
    models.curves["steps"] = torch.tensor(records)
    for run in RUNS:
        model = game_model(config, config.n_layers * (2 if run == "direct_deep" else 1))
        ids, labels = layout(run, games)
        width = ids.shape[1]
        corpus = Corpus(ids, torch.zeros(len(ids), width - 1), torch.full((len(ids),), width))
        losses: list[float] = []
        report = progress.on_step(f"training {run}")

        def on_step(done: int, total: int, loss: float, losses: list[float] = losses, report: OnStep = report) -> None:
            losses.append(loss)
            report(done, total, loss)

        snapshots = [*records, EARLY_STEP] if run != "direct_deep" else ()
        kept = tiny_lm.train(
            model, corpus, recipe, seed=config.seed, labels=labels, snapshots=snapshots, on_step=on_step
        )
        models[run] = model.eval().requires_grad_(False)
        if run == "chain":
            models.early_chain = frozen(model, kept[EARLY_STEP])
        if run != "direct_deep":
            chunks = torch.tensor(losses).split(CURVE_EVERY)
            models.curves[f"loss_{run}"] = torch.stack([chunk.mean() for chunk in chunks])
            right = [answers(run, frozen(model, kept[step]), judges) == judges.answers for step in records]
            models.curves[f"accuracy_{run}"] = torch.stack(right).float().mean(dim=1)
    return models


def frozen(model: tiny_lm.TinyLM, weights: dict[str, Tensor]) -> tiny_lm.TinyLM:
    """Return the model with other weights, ready to use."""
    return copy_of(model, weights).eval().requires_grad_(False)


# -- playing -----------------------------------------------------------------------------------------------------------


def write(model: tiny_lm.TinyLM, game: ShellGame, **how: Any) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K c"]]:
    """Let the chain model write all states of some games."""
    cups = torch.arange(game.n_cups)
    return generate_chain(cached_model_fn(model), encode_question(game), game.swaps.shape[1], state_ids=cups, **how)


def answers(run: str, model: tiny_lm.TinyLM, game: ShellGame) -> Int[Tensor, " B"]:
    """Return the cups that a trained model names, without sampling."""
    if run == "chain":
        return write(model, game)[0][:, -1]
    return direct_beliefs(run, model, game).argmax(dim=-1)


@torch.no_grad()
def direct_beliefs(run: str, model: tiny_lm.TinyLM, game: ShellGame) -> Float[Tensor, "B c"]:
    """Return the beliefs of a model that writes only the answer, softmax over the cups."""
    ids, _ = layout(run, game)
    return model(ids[:, :-1])[:, -1, : game.n_cups].softmax(dim=-1)


def accuracy(run: str, model: tiny_lm.TinyLM, config: Config) -> Float[Tensor, " K"]:
    """Return the share of right answers for every number of swaps."""
    right = []
    for length in range(1, config.max_swaps + 1):
        game = held_out_games(config, length)
        by_length = accuracy_by_length(answers(run, model, game), game.answers, game.lengths, config.max_swaps)
        right.append(by_length[length - 1])
    return torch.stack(right)


def example_game(config: Config) -> ShellGame:
    """Return the first held-out game of the wanted length in which the ball moves at least half of the time."""
    games = held_out_games(config, config.example_length)
    moves = (games.states.diff(dim=1) != 0).sum(dim=1)
    return _one(games, int((2 * moves >= config.example_length).int().argmax()))


def swapped_cups(game: ShellGame) -> Int[Tensor, "n 2"]:
    """Return the two cups of every swap of a single game."""
    pairs = transpositions(game.n_cups)
    return torch.tensor([pairs[int(swap)] for swap in game.swaps[0, : int(game.lengths[0])]])


def play(config: Config, chain: tiny_lm.TinyLM, direct: tiny_lm.TinyLM, game: ShellGame) -> dict[str, Any]:
    """Return what both models say of one game."""
    written, beliefs = write(chain, game)
    guess = direct_beliefs("direct", direct, game)[0]
    names = CUP_NAMES
    used = [f"{names[i]}-{names[j]}" for i, j in swapped_cups(game).tolist()]
    unused = ["-"] * (config.max_swaps - len(used))
    ids, _ = layout("direct", game)
    return {
        "question_ids": encode_question(game)[0],
        "question_words": (*used, *unused, names[int(game.states[0, 0])]),
        "chain": written[0],
        "chain_words": tuple(names[int(cup)] for cup in written[0]),
        "step_probs": beliefs[0],
        "direct_probs": guess,
        "direct_answer": int(guess.argmax()),
        "lens_direct": lens(direct, ids[:, :-1], game.answers, config.n_cups)[:, 0],
    }


@torch.no_grad()
def lens(
    model: tiny_lm.TinyLM, ids: Int[Tensor, "1 T"], right: Int[Tensor, " n"], n_cups: int
) -> Float[Tensor, "L1 n"]:
    """Return each layer's belief in the right cup at the last n positions of one text."""
    _, record = model(ids, record=("residual",))
    residual = record["residual"][:, 0, -len(right) :]  # (L + 1, n, D)

    def norm(x: Tensor) -> Tensor:
        return rms_norm(x, model.model.norm.weight, model.config.rms_norm_eps)

    beliefs = logit_lens(residual, norm, model.model.embed_tokens.weight, torch.arange(n_cups))
    return beliefs[:, torch.arange(len(right)), right]


@torch.no_grad()
def look(chain: tiny_lm.TinyLM, game: ShellGame) -> dict[str, Any]:
    """Return where each step of a written chain looks, and what each layer believes there."""
    slots = game.swaps.shape[1]

    def weights(games: ShellGame) -> Float[Tensor, "L B K P"]:
        written, _ = write(chain, games)
        ids = torch.cat([encode_question(games), written[:, :-1]], dim=1)  # the answer is not read again
        return chain(ids, record=("weights",))[1]["weights"].mean(dim=2)[:, :, slots:]

    def shares(attention: Float[Tensor, "... K P"]) -> Float[Tensor, "... K 2"]:
        steps = torch.arange(slots)
        return torch.stack([attention[..., steps, steps], attention[..., steps, slots + steps]], dim=-1)

    others = make_shell_game(
        GAMES_PER_LENGTH, game.n_cups, slots, generator=torch.Generator().manual_seed(HELD_OUT_SEED), length=slots
    )
    everywhere = shares(weights(others)).mean(dim=(1, 2))  # (L, 2)
    layer = int(everywhere[:, 0].argmax())
    shown = weights(game)[layer, 0]
    written, _ = write(chain, game)
    ids = torch.cat([encode_question(game), written[:, :-1]], dim=1)
    return {
        "attention": shown,
        "attention_layer": layer,
        "attention_target_share": shares(shown),
        "attention_share_mean": everywhere[layer],
        "lens_cot": lens(chain, ids, game.states[0, 1:], game.n_cups),
    }


# -- interfering and voting --------------------------------------------------------------------------------------------


def interfere(config: Config, chain: tiny_lm.TinyLM, game: ShellGame) -> dict[str, Any]:
    """Overwrite one written state with a wrong cup and see what the rest of the chain makes of it."""
    step = config.corrupt_step
    games = held_out_games(config, config.max_swaps, CORRUPTED_GAMES)
    generator = torch.Generator().manual_seed(config.seed)
    shift = torch.randint(1, config.n_cups, (CORRUPTED_GAMES,), generator=generator)
    wrong = (games.states[:, step] + shift) % config.n_cups
    end = write(chain, games, forced={step: wrong})[0][:, -1]
    shown_wrong = (game.states[:, step] + 1) % config.n_cups
    return {
        "corrupted_chain": write(chain, game, forced={step: shown_wrong})[0][0],
        "corrupted_expected": corrupted_states(game, step, shown_wrong)[0],
        "following_rate": float((end == corrupted_states(games, step, wrong)[:, -1]).float().mean()),
        "recovered_rate": float((end == games.answers).float().mean()),
        "corrupted_games": CORRUPTED_GAMES,
    }


def corrupted_states(game: ShellGame, step: int, wrong: Int[Tensor, " B"]) -> Int[Tensor, "B K"]:
    """Return s_1 … s_K if the ball were under the cups `wrong` after `step` swaps."""
    return torch.cat([game.states[:, 1:step], apply_swaps(wrong, game.swaps[:, step:], game.n_cups)], dim=1)


def vote(config: Config, model: tiny_lm.TinyLM) -> dict[str, Any]:
    """Sample many chains of an imperfect model and let their answers vote."""
    games = held_out_games(config, config.max_swaps, VOTE_GAMES)
    generator = torch.Generator().manual_seed(config.seed)
    swaps, lengths, states = (
        part.repeat_interleave(config.votes, dim=0) for part in (games.swaps, games.lengths, games.states)
    )
    many = ShellGame(config.n_cups, swaps, lengths, states)
    chains, _ = write(model, many, temperature=config.temperature, generator=generator)
    chains = chains.view(VOTE_GAMES, config.votes, -1)
    given = chains[..., -1].T  # (votes, games)
    sizes = torch.arange(1, config.votes + 1, 2)
    winners = [majority_vote(given[: int(m)], config.n_cups)[0] for m in sizes]
    helped = (given[0] != games.answers) & (winners[-1] == games.answers)
    shown = int(helped.int().argmax())  # game 0 if no vote ever helped
    winner, counts = majority_vote(given[:, shown], config.n_cups)
    return {
        "early_step": EARLY_STEP,
        "vote_m": sizes,
        "vote_accuracy": torch.stack([(winner == games.answers).float().mean() for winner in winners]),
        "vote_games": VOTE_GAMES,
        "vote_single_accuracy": float((given == games.answers).float().mean()),
        "vote_greedy_accuracy": float((answers("chain", model, games) == games.answers).float().mean()),
        "vote_answers": given[:, shown],
        "vote_chains": chains[shown],
        "vote_counts": counts,
        "vote_winner": int(winner),
        "vote_truth": games.states[shown, 1:],
    }


# -- pictures of their own ---------------------------------------------------------------------------------------------


def loop(config: Config, chain: tiny_lm.TinyLM) -> dict[str, Any]:
    """Return a game whose four swaps move the ball three times or more and bring it back, and what the model writes.

    Of the games that the model plays without an error, the first one (the first of all if there is none).
    """
    games = held_out_games(config, LOOP_SWAPS, 20 * GAMES_PER_LENGTH)
    states = games.states[:, : LOOP_SWAPS + 1]
    returns = (states[:, 0] == states[:, -1]) & ((states.diff(dim=1) != 0).sum(dim=1) >= 3)
    rows = returns.nonzero()[:, 0]
    right = [row for row in rows.tolist() if torch.equal(write(chain, _one(games, row))[0][0], games.states[row, 1:])]
    game = _one(games, right[0] if right else int(rows[0]))
    written, beliefs = write(chain, game)
    ids = torch.cat([encode_question(game), written[:, :-1]], dim=1)
    return {
        "loop_swaps": swapped_cups(game),
        "loop_states": game.states[0, : LOOP_SWAPS + 1],
        "loop_probs": beliefs[0, :LOOP_SWAPS],
        "loop_lens": lens(chain, ids, game.states[0, 1:], game.n_cups)[:, :LOOP_SWAPS],
    }


def walk() -> dict[str, Any]:
    """Return the same finding on the series' own model: it walks colored roads, in its head or step by step."""
    model = tiny_lm.load("walk")
    text = make_corpus(walks.walk_of(walks.MOVES[-1], steps=True), 1, HELD_OUT_SEED).texts()[0]
    prompt = f"{text.split(' ? ')[0]} ?"
    result: dict[str, Any] = {
        "walk_moves": torch.tensor(walks.MOVES),
        "walk_chance": 1 / len(walks.PLACES),
        "walk_questions": WALK_QUESTIONS,
        "walk_prompt": prompt,
        "walk_answer": f"think : {tiny_lm.generate(model, [f'{prompt} think :'], 24)[0]}",
        "walk_direct_answer": f"answer : {tiny_lm.generate(model, [f'{prompt} answer :'], 2)[0]}",
    }
    for name, steps in (("walk_direct", False), ("walk_steps", True)):
        rates = []
        for done, moves in enumerate(walks.MOVES, start=1):
            rates.append(tiny_lm.walk_accuracy(model, moves, steps=steps, questions=WALK_QUESTIONS))
            progress.report(name.replace("_", " "), done, len(walks.MOVES))
        result[name] = torch.tensor(rates)
    return result


def _one(games: ShellGame, row: int) -> ShellGame:
    chosen = slice(row, row + 1)
    return ShellGame(games.n_cups, games.swaps[chosen], games.lengths[chosen], games.states[chosen])
