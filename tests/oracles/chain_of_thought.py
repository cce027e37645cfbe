"""Permutations of SymPy and NumPy, binomial and multinomial sums of SciPy, greedy decoding of Hugging Face's Llama."""

import itertools

import numpy as np
import torch
from scipy import stats
from sympy.combinatorics import Permutation, PermutationGroup
from transformers import LlamaConfig, LlamaForCausalLM

from internals_math.chain_of_thought import (
    Config,
    apply_swaps,
    chain_log_prob,
    compose_permutations,
    encode_question,
    generate_chain,
    majority_vote,
    majority_vote_accuracy,
    make_shell_game,
    plurality_accuracy,
    transpositions,
)
from internals_math.chain_of_thought_experiment import game_model
from tests.oracles import Oracle, largest_difference

CONFIG = Config()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _matrices() -> float:
    """Swapping cups is multiplying the ball's one-hot vector by permutation matrices."""
    game = make_shell_game(50, 5, 10, generator=_generator(1))
    eye = np.eye(5)
    matrices = [eye[[j if x == i else i if x == j else x for x in range(5)]] for i, j in transpositions(5)] + [eye]
    worst = 0.0
    for row in range(50):
        ball = eye[int(game.states[row, 0])]
        for step, swap in enumerate(game.swaps[row]):
            ball = ball @ matrices[int(swap)]
            worst = max(worst, abs(float(ball.argmax()) - float(game.states[row, step + 1])))
    return worst


def _composition() -> float:
    """SymPy's product p * q also does p first."""
    perms = torch.stack([torch.randperm(6, generator=_generator(seed)) for seed in range(7)])
    theirs = Permutation(list(range(6)))
    for row in perms.tolist():
        theirs = theirs * Permutation(row)
    return largest_difference(compose_permutations(perms), torch.tensor([theirs(x) for x in range(6)]))


def _group_order(cups: int) -> float:
    """All products of our swaps are the symmetric group, and it is solvable only below five cups."""
    tables = [
        apply_swaps(torch.arange(cups), torch.full((cups, 1), w), cups)[:, 1] for w in range(len(transpositions(cups)))
    ]
    group = PermutationGroup([Permutation(table.tolist()) for table in tables])
    reached = {tuple(range(cups))}
    while True:
        more = reached | {tuple(table[list(p)].tolist()) for p in reached for table in tables}
        if more == reached:
            break
        reached = more
    assert group.is_solvable == (cups < 5)
    return abs(len(reached) - int(group.order()))


def _binomial() -> float:
    cases = itertools.product((0.0, 0.2, 0.5, 0.63, 1.0), (1, 3, 9, 41))
    return max(abs(majority_vote_accuracy(p, m) - float(stats.binom.sf(m // 2, m, p))) for p, m in cases)


def _multinomial() -> float:
    """Every outcome of 7 votes for 4 answers; ties by equal shares."""
    probs, worst = np.array([0.4, 0.3, 0.2, 0.1]), 0.0
    for correct in range(4):
        total = 0.0
        for counts in itertools.product(range(8), repeat=4):
            if sum(counts) == 7 and counts[correct] == max(counts):
                total += float(stats.multinomial.pmf(counts, 7, probs)) / counts.count(max(counts))
        worst = max(worst, abs(total - plurality_accuracy(torch.from_numpy(probs), correct, 7)))
    return worst


def _mode() -> float:
    """Where one answer leads alone, SciPy's mode is the winner."""
    votes = torch.randint(5, (11, 400), generator=_generator(2))
    winner, counts = majority_vote(votes, 5)
    alone = (counts == counts.amax(dim=-1, keepdim=True)).sum(dim=-1) == 1
    assert alone.any()
    theirs = torch.from_numpy(stats.mode(votes.numpy(), axis=0).mode)
    return largest_difference(winner[alone], theirs[alone])


def _llama() -> tuple[LlamaForCausalLM, torch.Tensor]:
    model = game_model(CONFIG, 2)
    shape = model.config
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 100.0}, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict({**model.state_dict(), "lm_head.weight": model.model.embed_tokens.weight})
    return theirs, encode_question(make_shell_game(20, 5, 10, generator=_generator(3)))


def _greedy_chain() -> float:
    """An untrained model, so that every token of the vocabulary can win; all of them may be written here."""
    theirs, question = _llama()
    everything = torch.arange(theirs.config.vocab_size)
    ours, _ = generate_chain(game_model(CONFIG, 2), question, 10, state_ids=everything)
    written = theirs.generate(question, do_sample=False, max_new_tokens=10, attention_mask=torch.ones_like(question))
    return largest_difference(ours, written[:, 11:])


def _log_prob() -> float:
    """Minus Hugging Face's own loss, times the steps, with every token allowed."""
    theirs, question = _llama()
    everything = torch.arange(theirs.config.vocab_size)
    chain = torch.randint(5, (1, 10), generator=_generator(4))
    ids = torch.cat([question[:1], chain], dim=1)
    labels = ids.masked_fill(torch.arange(21) < 11, -100)
    with torch.no_grad():
        loss = theirs(ids, labels=labels).loss
    ours = chain_log_prob(game_model(CONFIG, 2), question[:1], chain, state_ids=everything)
    return largest_difference(ours, -10 * loss[None])


LLAMA = "transformers: LlamaForCausalLM"
ROWS = (
    Oracle("where the ball is", _matrices, 0, "numpy: permutation matrices"),
    Oracle("composition, first row first", _composition, 0, "sympy: Permutation"),
    *(
        Oracle(f"permutations of {c} cups and their solvability", lambda c=c: _group_order(c), 0, "sympy: order")
        for c in (3, 4, 5)
    ),
    Oracle("majority vote accuracy", _binomial, 1e-12, "scipy.stats.binom.sf"),
    Oracle("plurality accuracy", _multinomial, 1e-12, "scipy.stats.multinomial.pmf"),
    Oracle("majority vote", _mode, 0, "scipy.stats.mode"),
    Oracle("greedy chain", _greedy_chain, 0, f"{LLAMA}.generate(do_sample=False)"),
    Oracle("log-probability of a chain, float32", _log_prob, 1e-4, f"{LLAMA}'s loss"),
)
