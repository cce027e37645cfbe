"""Verification and assisted generation of transformers, distances and tests of SciPy, brute force over all paths."""

from itertools import product

import numpy as np
import torch
from scipy import optimize, stats
from scipy.spatial import distance
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import utils

from internals_math import tiny_lm
from internals_math.speculative_decoding import (
    accept_drafts,
    expected_tokens,
    expected_tokens_from_betas,
    optimal_gamma,
    speculative_decode,
    standardize,
    total_variation,
    walltime_improvement,
)
from internals_math.speculative_decoding_experiment import chi_square, draft_model, target_model
from tests.oracles import Oracle, largest_difference, randn


def _speculative_sampling() -> float:
    """Kept guesses of 500 random iterations, from the same uniform numbers, and the tokens that come of them."""
    worst = 0
    for seed in range(500):
        q_logits, p_logits = 2 * randn(1, 4, 6, seed=seed), 2 * randn(1, 5, 6, seed=seed + 1000)
        q, p = q_logits.softmax(dim=-1), p_logits.softmax(dim=-1)
        drafts = torch.multinomial(q[0], 1, generator=torch.Generator().manual_seed(seed))[:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens, theirs = utils._speculative_sampling(drafts[None], q_logits, 4, p_logits)
            torch.manual_seed(seed)
            uniforms = torch.rand_like(q[0, :, 0])
            _, kept, following = accept_drafts(drafts, q[0], p[0], uniforms)
            last = torch.multinomial(following[None], 1)[0]
        ours = torch.cat([drafts[: int(kept)], last])
        worst = max(worst, abs(int(kept) - int(theirs)), int(not torch.equal(ours, tokens[0])))
    return float(worst)


def _llama(model: tiny_lm.TinyLM) -> LlamaForCausalLM:
    shape = model.config.to_dict()
    shape.pop("sliding_window")
    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    twin = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    twin.load_state_dict(dict(model.state_dict()), strict=False)
    return twin.eval()


def _assisted_generation() -> float:
    """Greedy assisted generation of the same two models by transformers."""
    prompt = torch.tensor(tiny_lm.encode(tiny_lm.PROMPT))
    target, draft = _llama(tiny_lm.load("base")), _llama(tiny_lm.load("draft"))
    theirs = target.generate(
        prompt[None], attention_mask=torch.ones_like(prompt)[None], assistant_model=draft, do_sample=False,
        max_new_tokens=24,
    )  # fmt: skip
    assert isinstance(theirs, Tensor)
    generator = torch.Generator().manual_seed(0)
    run = speculative_decode(
        target_model(), draft_model("small"), prompt, 24, 4, temperature=0.0, generator=generator, eos_token_id=2
    )
    return largest_difference(run.tokens, theirs[0, len(prompt) :])


def _total_variation() -> float:
    p, q = (randn(30, seed=seed).softmax(dim=-1) for seed in (1, 2))
    return abs(float(total_variation(p, q)) - distance.cityblock(p.numpy(), q.numpy()) / 2)


def _chi_square() -> float:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    counts = torch.tensor([520, 270, 210])
    theirs = stats.chisquare(counts.numpy(), 1000 * p.numpy())
    ours = chi_square(counts, p)
    return max(abs(ours["chi_square"] - theirs.statistic), abs(ours["p_value"] - theirs.pvalue))


def _optimum() -> float:
    """How far our γ is outside the integers around the optimum of the same curve over real γ."""
    worst = 0.0
    for alpha, c in product((0.5, 0.7, 0.8, 0.9), (0.02, 0.1, 0.3)):
        found = optimize.minimize_scalar(
            lambda g, a=alpha, c=c: -(1 - a ** (g + 1)) / ((1 - a) * (g * c + 1)), bounds=(0, 64), method="bounded"
        )
        best = found.x  # type: ignore[union-attr]
        gamma = optimal_gamma(alpha, c)
        worst = max(worst, np.floor(best - 1e-3) - gamma, gamma - np.ceil(best + 1e-3))
    return max(worst, 0.0)


def _tokens_by_patterns(alpha: float, gamma: int) -> float:
    """Mean tokens per pass, summed over every pattern of kept and rejected guesses."""
    mean = 0.0
    for pattern in product((True, False), repeat=gamma):
        chance = np.prod([alpha if kept else 1 - alpha for kept in pattern])
        mean += chance * (1 + int(np.cumprod(pattern).sum()))
    same = torch.full((3, gamma), alpha, dtype=torch.float64)
    return max(abs(expected_tokens(alpha, gamma) - mean), abs(expected_tokens_from_betas(same) - mean))


def _improvement_by_simulation() -> float:
    """Theorem 3.8 against passes laid end to end (relative)."""
    alpha, gamma, c = 0.7, 4, 0.1
    kept = (np.random.default_rng(0).random((400_000, gamma)) < alpha).cumprod(axis=1).sum(axis=1)
    simulated = (kept + 1).sum() / (len(kept) * (gamma * c + 1))
    return abs(walltime_improvement(alpha, gamma, c) / simulated - 1)


def _nucleus() -> float:
    """Top-k and top-p by the logits warpers of transformers."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * randn(20, 15, seed=3)
    ids = torch.zeros(20, 1, dtype=torch.long)
    top_k = TopKLogitsWarper(5)(ids, (logits / 0.7))  # type: ignore[arg-type]
    both = TopPLogitsWarper(0.8)(ids, top_k)  # type: ignore[arg-type]
    return max(
        largest_difference(standardize(logits, 0.7, top_k=5), top_k.softmax(dim=-1)),
        largest_difference(standardize(logits, 0.7, top_k=5, top_p=0.8), both.softmax(dim=-1)),
    )


ROWS = (
    Oracle("kept guesses and tokens, 500 iterations", _speculative_sampling, 0, "transformers: _speculative_sampling"),
    Oracle("greedy text of the tiny LM with its draft", _assisted_generation, 0, "transformers: assisted generation"),
    Oracle("temperature, top-k and top-p", _nucleus, 1e-12, "transformers: logits warpers"),
    Oracle("total variation", _total_variation, 1e-12, "scipy.spatial.distance.cityblock"),
    Oracle("chi-square test", _chi_square, 1e-10, "scipy.stats.chisquare"),
    Oracle("best number of guesses", _optimum, 0, "scipy.optimize over real γ"),
    *(
        Oracle(f"tokens per pass, α = {a}, γ = {g}", lambda a=a, g=g: _tokens_by_patterns(a, g), 1e-12, "all patterns")
        for a, g in ((0.0, 3), (0.6, 2), (0.8, 5), (1.0, 4))
    ),
    Oracle("walltime improvement (relative)", _improvement_by_simulation, 0.005, "simulation of 400,000 iterations"),
)
