"""Speculative decoding: a draft guesses some tokens, one pass of the target checks all of them, nothing is lost.

Notation: p = target's and q = draft's distribution (2302.01318 swaps the letters), V = vocabulary, γ = gamma, draft
tokens of one iteration, n = how many of them are kept, β = chance that one is kept, α = its mean, c = time of a draft
pass in target passes, ĉ = the same ratio of arithmetic.
Source: Leviathan et al. 2023, arXiv 2211.17192: sections 2.3 and 3, Algorithm 1, appendix A.1. Chen et al. 2023
(2302.01318) found the same scheme.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.distributions import total_variation
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "SpeculativeRun", "Trace", "Verification", "accept_drafts", "acceptance_probability", "estimate_alpha",
    "expected_tokens", "expected_tokens_from_betas", "fit_bigram", "operations_factor", "optimal_gamma",
    "output_distribution", "residual_distribution", "speculative_decode", "standardize", "total_variation", "trace",
    "verify", "walltime_improvement",
]  # fmt: skip

LanguageModel = Callable[[Tensor], Tensor]  # ids (*batch, T) -> logits (*batch, T, V)


# -- one token ---------------------------------------------------------------------------------------------------------


def standardize(
    logits: Float[Tensor, "*batch V"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*batch V"]:
    """Return the distribution that is really sampled from (section 2.2); draft and target need the same settings.

    Args:
        temperature: 0 puts all weight on the largest logit (the lowest id if several are largest).
        top_k: keep the k most likely tokens; those that are as likely as the k-th stay too.
        top_p: keep the fewest tokens, most likely first, whose weights reach top_p.

    Raises:
        ValueError: a negative temperature, top_k below 1, top_p out of 0..1 (0 excluded).
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    scaled = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if top_p is not None:
        probs, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        surplus = probs.cumsum(dim=-1) - probs >= top_p  # what came before is enough
        dropped = torch.zeros_like(surplus).scatter(-1, order, surplus)
        scaled = scaled.masked_fill(dropped, -torch.inf)
    return scaled.softmax(dim=-1)


def acceptance_probability(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Return β = sum of min(p, q) = 1 - total variation: the overlap of the two shapes (theorem 3.5)."""
    return torch.minimum(p, q).sum(dim=-1)


def residual_distribution(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Return max(0, p - q), normalized: where a rejected token is replaced from.

    Where p = q nothing is ever rejected, and p itself is returned.
    """
    gap = (p - q).clamp(min=0)
    mass = gap.sum(dim=-1, keepdim=True)
    return torch.where(mass > 0, gap / mass.where(mass > 0, 1), p)


def output_distribution(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
    """Return min(p, q) + (1 - β) · residual: what an accepted or replaced draft token is distributed as.

    That this is p for every q is the theorem (appendix A.1).
    """
    rejected = 1 - acceptance_probability(p, q)
    return torch.minimum(p, q) + rejected[..., None] * residual_distribution(p, q)


# -- one iteration -----------------------------------------------------------------------------------------------------


def accept_drafts(
    draft_tokens: Int[Tensor, "*batch gamma"],
    draft_probs: Float[Tensor, "*batch gamma V"],
    target_probs: Float[Tensor, "*batch gamma_plus_1 V"],
    uniforms: Float[Tensor, "*batch gamma"],
) -> tuple[Float[Tensor, "*batch gamma"], Int[Tensor, "*batch"], Float[Tensor, "*batch V"]]:
    """Return p/q of every draft token, how many are kept, and the distribution of the token that follows them.

    A token is kept if its uniform number in [0, 1) is below p/q, and all before it are kept. The paper rejects if it is
    above, which would keep a token of p = 0 at the number 0.

    Args:
        draft_probs: the distributions the tokens were drawn from; row i is conditioned on i earlier draft tokens.
        target_probs: the target's after the same prefixes, and one more row after all draft tokens.
    """
    gamma = draft_tokens.shape[-1]
    picked = draft_tokens[..., None]
    ratio = (target_probs[..., :gamma, :].gather(-1, picked) / draft_probs.gather(-1, picked))[..., 0]
    kept = (uniforms < ratio).long().cumprod(dim=-1)
    num_accepted = kept.sum(dim=-1)
    # The token after a rejection comes from the residual of the rejected position, a bonus token from p unchanged.
    residuals = residual_distribution(target_probs[..., :gamma, :], draft_probs)
    choices = torch.cat([residuals, target_probs[..., gamma:, :]], dim=-2)
    row = num_accepted[..., None, None].expand(*num_accepted.shape, 1, choices.shape[-1])
    return ratio, num_accepted, choices.gather(-2, row)[..., 0, :]


@dataclass(frozen=True, eq=False)
class Verification:
    """One iteration: what was guessed, what was kept, what the target added."""

    draft_tokens: Int[Tensor, " gamma"]
    accept_ratio: Float[Tensor, " gamma"]  # p/q, may exceed 1
    uniforms: Float[Tensor, " gamma"]
    accepted: Bool[Tensor, " gamma"]  # False from the first rejection on
    num_accepted: int
    next_token: int
    next_distribution: Float[Tensor, " V"]

    @property
    def tokens(self) -> list[int]:
        """Return the 1 to γ + 1 tokens that the iteration wrote."""
        return [*self.draft_tokens[: self.num_accepted].tolist(), self.next_token]


def verify(
    draft_tokens: Int[Tensor, " gamma"],
    draft_probs: Float[Tensor, "gamma V"],
    target_probs: Float[Tensor, "gamma_plus_1 V"],
    uniforms: Float[Tensor, " gamma"],
    *,
    generator: torch.Generator,
) -> Verification:
    """Check the draft tokens of one iteration and draw the token that follows (Algorithm 1); arguments as above.

    Raises:
        ValueError: no draft tokens, shapes that do not fit, rows that do not sum to 1, a draft token of q = 0.
    """
    gamma = len(draft_tokens)
    if gamma == 0:
        raise ValueError("verify needs at least one draft token")
    vocab_size = draft_probs.shape[-1]
    wanted = {"draft_probs": (gamma, vocab_size), "target_probs": (gamma + 1, vocab_size), "uniforms": (gamma,)}
    for (name, shape), value in zip(wanted.items(), (draft_probs, target_probs, uniforms), strict=True):
        if value.shape != shape:
            raise ValueError(f"{name} must be {shape} for {gamma} draft tokens, got {tuple(value.shape)}")
    for name, probs in (("draft_probs", draft_probs), ("target_probs", target_probs)):
        if not ((probs.sum(dim=-1) - 1).abs() < 1e-4).all() or not (probs >= 0).all():
            raise ValueError(f"the rows of {name} must be distributions, got sums {probs.sum(dim=-1).tolist()}")
    if not (draft_probs.gather(1, draft_tokens[:, None]) > 0).all():
        raise ValueError("a draft token has q = 0: draft_probs are not the distributions the tokens were drawn from")
    ratio, num_accepted, following = accept_drafts(draft_tokens, draft_probs, target_probs, uniforms)
    return Verification(
        draft_tokens=draft_tokens,
        accept_ratio=ratio,
        uniforms=uniforms,
        accepted=torch.arange(gamma) < num_accepted,
        num_accepted=int(num_accepted),
        next_token=int(torch.multinomial(following, 1, generator=generator)),
        next_distribution=following,
    )


@dataclass(frozen=True, eq=False)
class SpeculativeRun:
    """What `speculative_decode` wrote; the last iteration may have guessed more than was asked for."""

    tokens: Int[Tensor, " new"]
    iterations: list[Verification]
    target_calls: int
    draft_calls: int


@torch.no_grad()
def speculative_decode(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Int[Tensor, " T"],
    max_new_tokens: int,
    gamma: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator,
    eos_token_id: int | None = None,
) -> SpeculativeRun:
    """Write tokens distributed exactly as the target's own, in fewer calls of it.

    An iteration draws its γ draft tokens, then γ uniform numbers, then one token more, all from `generator`.

    Args:
        target, draft: ids (T,) -> logits (T, V); a table of bigrams is a draft too.
        eos_token_id: the text ends after its first one, also if a draft guessed it.

    Raises:
        ValueError: an empty prompt, gamma or max_new_tokens below 1, a negative temperature.
    """
    if not len(prompt) or max_new_tokens < 1 or gamma < 1:
        raise ValueError(
            f"speculative_decode needs a prompt, and max_new_tokens and gamma of at least 1, got {len(prompt)} tokens, "
            f"max_new_tokens {max_new_tokens}, gamma {gamma}"
        )
    text, end = prompt, len(prompt) + max_new_tokens
    iterations: list[Verification] = []
    while len(text) < end and not (eos_token_id is not None and (text[len(prompt) :] == eos_token_id).any()):
        guessed, draft_rows = text, []
        for _ in range(gamma):
            row = standardize(draft(guessed)[-1].double(), temperature)
            draft_rows.append(row)
            guessed = torch.cat([guessed, torch.multinomial(row, 1, generator=generator)])
        target_rows = standardize(target(guessed)[-gamma - 1 :].double(), temperature)
        uniforms = torch.rand(gamma, dtype=torch.float64, generator=generator)
        done = verify(guessed[-gamma:], torch.stack(draft_rows), target_rows, uniforms, generator=generator)
        iterations.append(done)
        text = torch.cat([text, torch.tensor(done.tokens)])
    written = text[len(prompt) : end]
    if eos_token_id is not None and (written == eos_token_id).any():
        written = written[: int((written == eos_token_id).nonzero()[0]) + 1]
    return SpeculativeRun(written, iterations, len(iterations), gamma * len(iterations))


# -- how much it saves -------------------------------------------------------------------------------------------------


def expected_tokens(alpha: float, gamma: int) -> float:
    """Return the mean number of tokens per target pass, (1 - α^(γ+1)) / (1 - α), if all β are independent (eq. 1).

    >>> expected_tokens(0.5, 2)
    1.75

    Raises:
        ValueError: alpha out of 0..1, gamma below 0.
    """
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(f"alpha must be in 0..1 and gamma at least 0, got alpha {alpha}, gamma {gamma}")
    return float(sum(alpha**k for k in range(gamma + 1)))  # the quotient would be 0 / 0 at α = 1


def expected_tokens_from_betas(betas: Float[Tensor, "N gamma"]) -> float:
    """Return 1 + the mean number of leading successes, sum over k of E[β_1 ··· β_k]: no two β need be independent."""
    return float(1 + betas.double().cumprod(dim=-1).sum(dim=-1).mean())


def walltime_improvement(alpha: float, gamma: int, c: float) -> float:
    """Return how much faster γ guesses are than none, if one pass checks all at the time of one (theorem 3.8)."""
    if not c >= 0:
        raise ValueError(f"c must be at least 0, got {c}")
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def operations_factor(alpha: float, gamma: int, c_hat: float) -> float:
    """Return how much more arithmetic a token costs than without guesses (theorem 3.11)."""
    if not c_hat >= 0:
        raise ValueError(f"c_hat must be at least 0, got {c_hat}")
    return (gamma * c_hat + gamma + 1) / expected_tokens(alpha, gamma)


def optimal_gamma(alpha: float, c: float, max_gamma: int = 64) -> int:
    """Return the number of guesses with the largest walltime improvement, the smallest of equals (section 3.5)."""
    return max(range(max_gamma + 1), key=lambda gamma: walltime_improvement(alpha, gamma, c))


def fit_bigram(
    corpus_tokens: Int[Tensor, "*batch T"], vocab_size: int, ignore_index: int | None = None
) -> Float[Tensor, "V V"]:
    """Return how often each token follows each other one, as rows of a table; a token never seen is followed by any.

    Args:
        ignore_index: pairs with this token (such as <pad>) do not count.

    Raises:
        ValueError: fewer than two tokens in a row, or ids out of 0..vocab_size - 1.
    """
    if corpus_tokens.shape[-1] < 2:
        raise ValueError(f"a bigram needs at least 2 tokens in a row, got {corpus_tokens.shape[-1]}")
    if not 0 <= int(corpus_tokens.min()) <= int(corpus_tokens.max()) < vocab_size:
        raise ValueError(
            f"ids must be in 0..{vocab_size - 1}, got {int(corpus_tokens.min())}..{int(corpus_tokens.max())}"
        )
    first, second = corpus_tokens[..., :-1].flatten(), corpus_tokens[..., 1:].flatten()
    if ignore_index is not None:
        counted = (first != ignore_index) & (second != ignore_index)
        first, second = first[counted], second[counted]
    counts = torch.bincount(first * vocab_size + second, minlength=vocab_size**2).view(vocab_size, vocab_size).double()
    totals = counts.sum(dim=1, keepdim=True)
    return torch.where(totals > 0, counts / totals.clamp(min=1), 1 / vocab_size)


@torch.no_grad()
def estimate_alpha(
    target: LanguageModel, draft: LanguageModel, tokens: Int[Tensor, "N T"], temperature: float = 1.0
) -> tuple[float, Float[Tensor, "N T"]]:
    """Return α and the β after every prefix of texts that the target wrote (corollary 3.6).

    Args:
        target, draft: ids (N, T) -> logits (N, T, V).
    """
    p, q = (standardize(model(tokens).double(), temperature) for model in (target, draft))
    betas = acceptance_probability(p, q)
    return float(betas.mean()), betas


# -- what the video shows ----------------------------------------------------------------------------------------------

SHOWN = 6  # words of the histograms; all others share one more bar
SHOWN_PREFIX = 21  # tokens of the series story, up to `took the lamp to the`: here draft and target differ
GAMMAS = tuple(range(1, 9))
CURVE = tuple(range(25))
LAW = tuple(range(1, 11))  # up to the longest guess of Table 1
COSTS = (0.0, 0.05, 0.1, 0.2)
# The paper's Table 1: α and γ, with c = ĉ = 0.
TABLE1 = ((0.6, 2), (0.7, 3), (0.8, 2), (0.8, 5), (0.9, 2), (0.9, 10))
REST = "all others"


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    gamma: int = option(4, "words guessed in each iteration", minimum=1, maximum=8)
    draft: str = option("small", "who guesses: a one-layer model or a table of word pairs", choices=("bigram", "small"))
    temperature: float = option(1.0, "of draft and target; 0 = always the most likely word", minimum=0, maximum=2)
    c: float = option(0.05, "time of a draft pass, in target passes", minimum=0, maximum=1)
    max_new_tokens: int = option(24, "words to write", minimum=8, maximum=32)
    seed: int = option(0, "of all draws", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Timeline:
    """Passes one after another, one row each; the unit of time is one target pass."""

    model: tuple[str, ...]  # "draft" or "target"
    start: Float[Tensor, " passes"]
    end: Float[Tensor, " passes"]
    words: Int[Tensor, " passes"]  # final words when it ends, over all


@dataclass(frozen=True, eq=False)
class Words:
    """The words of the run, one row each."""

    word: tuple[str, ...]
    role: tuple[str, ...]  # "accepted", "replaced" or "bonus"
    iteration: Int[Tensor, " W"]


@dataclass(frozen=True, eq=False)
class PaperRow:
    """Settings of the paper's Table 1, computed."""

    alpha: Float[Tensor, " R"]
    gamma: Int[Tensor, " R"]
    operations: Float[Tensor, " R"]
    speed: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. I iterations of γ guesses; K = 7 bars, the last one for all other words."""

    config: Config
    prompt: str
    plain_words: tuple[str, ...]  # what the target writes alone: other draws of the same distribution
    words: Words
    draft_words: tuple[str, ...]  # I · γ, iteration by iteration
    next_words: tuple[str, ...]  # I: what the target added
    draft_prob: Float[Tensor, "I gamma"]  # q of each guessed word
    target_prob: Float[Tensor, "I gamma"]  # p
    accept_ratio: Float[Tensor, "I gamma"]
    uniforms: Float[Tensor, "I gamma"]
    accepted: Bool[Tensor, "I gamma"]
    num_accepted: Int[Tensor, " I"]
    was_bonus: Bool[Tensor, " I"]
    shown_iteration: int  # the first that keeps some guesses and rejects one
    words_after_pass: Int[Tensor, " I"]
    words_of_pass: Int[Tensor, " I"]
    passes: Int[Tensor, " I"]
    timeline_plain: Timeline
    timeline_speculative: Timeline
    shown_prefix: tuple[str, ...]
    top_words: tuple[str, ...]  # K
    p_top: Float[Tensor, " K"]
    q_top: Float[Tensor, " K"]
    min_pq: Float[Tensor, " K"]
    excess_top: Float[Tensor, " K"]  # q - min: what may be rejected
    gap_top: Float[Tensor, " K"]  # p - min: what is still missing
    residual: Float[Tensor, " K"]  # the gap, normalized
    output_top: Float[Tensor, " K"]
    beta: float
    rejected: float  # 1 - β: all of the excess, all of the gap
    max_abs_diff_output: float  # |output - p| over the whole vocabulary
    dart_words: tuple[str, ...]  # D draws from q, of words that have a bar
    dart_bar: Int[Tensor, " D"]
    dart_ratio: Float[Tensor, " D"]
    dart_uniform: Float[Tensor, " D"]
    dart_height: Float[Tensor, " D"]  # r · q, where it hits the bar of q: it is kept if that is below p
    dart_accepted: Bool[Tensor, " D"]
    dart_shown: Int[Tensor, " shown"]  # the first that is kept, and the one that is most clearly not (if any is)
    draft_names: tuple[str, ...]  # bigram, small
    alpha: dict[str, float]
    beta_edges: Float[Tensor, " edges"]
    beta_counts: dict[str, Int[Tensor, " bins"]]
    measured_positions: int
    measured_runs: int
    gammas: Int[Tensor, " G"]
    tokens_per_call_measured: dict[str, Float[Tensor, " G"]]
    tokens_per_call_stderr: dict[str, Float[Tensor, " G"]]
    tokens_per_call_formula: dict[str, Float[Tensor, " G"]]  # independent β
    tokens_per_call_from_betas: dict[str, Float[Tensor, " G"]]  # β of neighbors in the target's own texts
    law_gammas: Int[Tensor, " L"]
    law_alphas: Float[Tensor, " A"]  # of Table 1
    law_tokens: Float[Tensor, "A L"]
    perfect_tokens: Float[Tensor, " L"]  # of a draft that is always right, γ + 1
    curve_gammas: Int[Tensor, " C"]
    speedup_costs: Float[Tensor, " S"]
    speedup_curves: Float[Tensor, "S C"]  # at the α of the chosen draft
    speedup_best: Int[Tensor, " S"]  # γ; 64, the most that is tried, where more is always better
    speedup: Float[Tensor, " C"]  # at config.c
    optimal_gamma: int
    c_hat: float  # counted from the weights of both models
    operations_curve: Float[Tensor, " C"]
    table1: PaperRow
    exact_counts: Int[Tensor, " K"]  # first words of many runs after shown_prefix
    exact_expected: Float[Tensor, " K"]
    exact_share: Float[Tensor, " K"]  # of exact_counts in all
    exact_runs: int
    chi_square: float
    degrees_of_freedom: int
    p_value: float


def trace(config: Config) -> Trace:
    """Decode with both drafts and set the formulas beside what was counted (about 30 s on one core)."""
    from internals_math import speculative_decoding_experiment as experiment  # it is built on the functions above

    alphas, measured = experiment.measurements(config)
    alpha, c_hat = alphas[config.draft], experiment.operations_ratio(config.draft)
    paper_alphas = sorted({a for a, _ in TABLE1})
    rows = [(expected_tokens(a, g), operations_factor(a, g, 0)) for a, g in TABLE1]
    return Trace(
        config=config,
        **experiment.shown_run(config),
        **experiment.shown_position(config),
        alpha=alphas,
        **measured,
        law_gammas=torch.tensor(LAW),
        law_alphas=torch.tensor(paper_alphas),
        law_tokens=torch.tensor([[expected_tokens(a, g) for g in LAW] for a in paper_alphas]),
        perfect_tokens=torch.tensor([expected_tokens(1, g) for g in LAW]),
        curve_gammas=torch.tensor(CURVE),
        speedup_costs=torch.tensor(COSTS),
        speedup_curves=torch.tensor([[walltime_improvement(alpha, g, c) for g in CURVE] for c in COSTS]),
        speedup_best=torch.tensor([optimal_gamma(alpha, c) for c in COSTS]),
        speedup=torch.tensor([walltime_improvement(alpha, g, config.c) for g in CURVE]),
        optimal_gamma=optimal_gamma(alpha, config.c),
        c_hat=c_hat,
        operations_curve=torch.tensor([operations_factor(alpha, g, c_hat) for g in CURVE]),
        table1=PaperRow(
            alpha=torch.tensor([a for a, _ in TABLE1]),
            gamma=torch.tensor([g for _, g in TABLE1]),
            operations=torch.tensor([operations for _, operations in rows]),
            speed=torch.tensor([speed for speed, _ in rows]),
        ),
    )
