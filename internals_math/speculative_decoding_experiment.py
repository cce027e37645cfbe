"""The tiny LM as a target, with a one-layer model or a table of word pairs as its draft: one run, and many."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.kv_cache import KVCache
from internals_math.speculative_decoding import (
    GAMMAS,
    REST,
    SHOWN,
    SHOWN_PREFIX,
    Config,
    LanguageModel,
    Timeline,
    Words,
    accept_drafts,
    acceptance_probability,
    estimate_alpha,
    expected_tokens,
    expected_tokens_from_betas,
    fit_bigram,
    output_distribution,
    residual_distribution,
    speculative_decode,
    standardize,
)
from internals_math.tiny_lm.vocabulary import EOS, PAD, VOCAB_SIZE

DRAFTS = ("bigram", "small")
BIGRAM_TEXTS = 8000
RUNS, RUN_LENGTH = 200, 24
RUN_PROMPT = "one day the"  # so short that no story ends within a run
# Runs begin after 0 to 8 more words. If all began at one place, their iterations would keep step with the story.
PHASES = 9
FIRST_WORDS = 20_000
DARTS = 40
LEAST_EXPECTED = 5  # of a cell of the chi-square test; rarer words are counted together


def language_model(model: tiny_lm.TinyLM) -> LanguageModel:
    """Return the model as a function that takes one text or a batch of them."""
    return lambda ids: model(ids) if ids.ndim > 1 else model(ids[None])[0]


@cache
def bigram_logits() -> Float[Tensor, "V V"]:
    """Return the log of how often words follow each other in the first training texts."""
    return fit_bigram(tiny_lm.training_corpus(size=BIGRAM_TEXTS).ids, VOCAB_SIZE, ignore_index=PAD).log()


def draft_model(name: str) -> LanguageModel:
    """Return a draft by its name."""
    if name == "bigram":
        return lambda ids: bigram_logits()[ids]
    return language_model(tiny_lm.load("draft"))


def target_model() -> LanguageModel:
    """Return the tiny LM."""
    return language_model(tiny_lm.load("base"))


class CachedModel:
    """A model that keeps keys, values and logits of the text it read last, and rolls them back where a new one differs.

    Takes one text (T,) and returns logits (T, V), as the model itself would.
    """

    def __init__(self, model: tiny_lm.TinyLM) -> None:
        self.model = model
        self.cache = KVCache(model.config.num_hidden_layers)
        self.ids = torch.zeros(0, dtype=torch.long)
        self.logits = torch.zeros(0, model.config.vocab_size)
        self.tokens_read = 0

    def __call__(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
        shared = min(len(ids), len(self.ids))
        same = int((ids[:shared] == self.ids[:shared]).long().cumprod(dim=0).sum())
        self.cache.crop(same)
        self.logits = self.logits[:same]
        if same < len(ids):
            fresh = self.model(ids[None, same:], cache=self.cache)[0]
            self.logits = torch.cat([self.logits, fresh])
            self.tokens_read += len(ids) - same
        self.ids = ids
        return self.logits


def operations_ratio(draft: str) -> float:
    """Return ĉ: multiply-adds of a draft token by those of a target token, counted as weights; a table needs none."""
    return tiny_lm.load("draft").num_params / tiny_lm.load("base").num_params if draft == "small" else 0.0


# -- one run -----------------------------------------------------------------------------------------------------------


def shown_run(config: Config) -> dict[str, Any]:
    """Return one text written word by word, with every guess and every verdict."""
    generator = torch.Generator().manual_seed(config.seed)
    run = speculative_decode(
        CachedModel(tiny_lm.load("base")),
        draft_model(config.draft),
        torch.tensor(tiny_lm.encode(tiny_lm.PROMPT)),
        config.max_new_tokens,
        config.gamma,
        temperature=config.temperature,
        generator=generator,
        eos_token_id=EOS,
    )
    iterations, count = run.iterations, len(run.tokens)
    counts = torch.tensor([one.num_accepted for one in iterations])
    telling = [k for k, kept in enumerate(counts.tolist()) if 0 < kept < config.gamma]
    roles, of_iteration = [], []
    for k, one in enumerate(iterations):
        last = "bonus" if one.num_accepted == config.gamma else "replaced"
        roles += ["accepted"] * one.num_accepted + [last]
        of_iteration += [k] * len(one.tokens)
    after = (counts + 1).cumsum(dim=0).clamp(max=count)
    ratios = torch.stack([one.accept_ratio for one in iterations])
    q, p = _probabilities(config, run.tokens, iterations)
    return {
        "prompt": tiny_lm.PROMPT,
        "plain_words": plain_words(config),
        "words": Words(tiny_lm.tokens(run.tokens), tuple(roles[:count]), torch.tensor(of_iteration[:count])),
        "draft_words": tuple(word for one in iterations for word in tiny_lm.tokens(one.draft_tokens)),
        "next_words": tiny_lm.tokens(one.next_token for one in iterations),
        "draft_prob": q,
        "target_prob": p,
        "accept_ratio": ratios,
        "uniforms": torch.stack([one.uniforms for one in iterations]),
        "accepted": torch.stack([one.accepted for one in iterations]),
        "num_accepted": counts,
        "was_bonus": counts == config.gamma,
        "words_after_pass": after,
        "words_of_pass": after.diff(prepend=torch.tensor([0])),
        "shown_iteration": telling[0] if telling else 0,
        "passes": torch.arange(1, len(iterations) + 1),
        "timeline_plain": Timeline(
            ("target",) * count,
            torch.arange(count).float(),
            torch.arange(1, count + 1).float(),
            torch.arange(count) + 1,
        ),
        "timeline_speculative": speculative_timeline(after.tolist(), config.gamma, config.c),
    }


def plain_words(config: Config) -> tuple[str, ...]:
    """Return the words that the target writes after the prompt alone, one for each of its passes."""
    generator = torch.Generator().manual_seed(config.seed)
    (text,) = tiny_lm.generate(
        tiny_lm.load("base"),
        [tiny_lm.PROMPT],
        config.max_new_tokens,
        temperature=config.temperature,
        generator=generator,
    )
    return tuple(text.split())


@torch.no_grad()
def _probabilities(config: Config, written: Tensor, iterations: list[Any]) -> tuple[Tensor, Tensor]:
    """Return q and p of every guessed word."""
    draft, target = draft_model(config.draft), target_model()
    text = torch.tensor(tiny_lm.encode(tiny_lm.PROMPT))
    rows_q, rows_p = [], []
    for one in iterations:
        guessed = torch.cat([text, one.draft_tokens])
        for model, rows in ((draft, rows_q), (target, rows_p)):
            probs = standardize(model(guessed)[-config.gamma - 1 : -1].double(), config.temperature)
            rows.append(probs.gather(1, one.draft_tokens[:, None])[:, 0])
        text = torch.cat([text, torch.tensor(one.tokens)])
    return torch.stack(rows_q), torch.stack(rows_p)


def speculative_timeline(words_after: list[int], gamma: int, c: float) -> Timeline:
    """Return γ draft passes of length c and a target pass of length 1 for every iteration."""
    models, starts, ends, words = [], [], [], []
    now, before = 0.0, 0
    for after in words_after:
        for length, model in ((c, "draft"),) * gamma + ((1.0, "target"),):
            models.append(model)
            starts.append(now)
            now += length
            ends.append(now)
            words.append(after if model == "target" else before)
        before = after
    return Timeline(tuple(models), torch.tensor(starts), torch.tensor(ends), torch.tensor(words))


# -- one position ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def shown_position(config: Config) -> dict[str, Any]:
    """Return both distributions after one prefix, how one is turned into the other, and a test that it worked."""
    ids = torch.tensor(tiny_lm.encode(tiny_lm.story())[:SHOWN_PREFIX])
    p, q = (
        standardize(model(ids)[-1].double(), config.temperature)
        for model in (target_model(), draft_model(config.draft))
    )
    top = (p + q).topk(SHOWN).indices
    top = top[p[top].argsort(descending=True, stable=True)]
    output = output_distribution(p, q)
    smaller = torch.minimum(p, q)

    def bars(values: Float[Tensor, " V"]) -> Float[Tensor, " K"]:
        return torch.cat([values[top], (values.sum() - values[top].sum()).clamp(min=0)[None]])

    generator = torch.Generator().manual_seed(config.seed)
    first_words = first_tokens(p, q, FIRST_WORDS, generator)
    counts = torch.bincount(first_words, minlength=len(p))
    shown_counts = torch.cat([counts[top], (FIRST_WORDS - counts[top].sum())[None]])
    return {
        "shown_prefix": tiny_lm.tokens(ids),
        "top_words": (*tiny_lm.tokens(top), REST),
        "p_top": bars(p),
        "q_top": bars(q),
        "min_pq": bars(smaller),
        "excess_top": bars(q - smaller),
        "gap_top": bars(p - smaller),
        "residual": bars(residual_distribution(p, q)),
        "output_top": bars(output),
        "beta": float(acceptance_probability(p, q)),
        "rejected": float(1 - acceptance_probability(p, q)),
        "max_abs_diff_output": float((output - p).abs().max()),
        **_darts(p, q, top, generator),
        "exact_counts": shown_counts,
        "exact_expected": FIRST_WORDS * bars(p),
        "exact_share": shown_counts / FIRST_WORDS,
        "exact_runs": FIRST_WORDS,
        **chi_square(counts, p),
    }


def first_tokens(
    p: Float[Tensor, " V"], q: Float[Tensor, " V"], count: int, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Draw `count` times the first token that one guess and its check give."""
    drafts = torch.multinomial(q.expand(count, -1), 1, generator=generator)  # (count, 1)
    uniforms = torch.rand(count, 1, dtype=torch.float64, generator=generator)
    after = torch.stack([p, p]).expand(count, 2, -1)  # the bonus row is not used: only first tokens are kept
    _, kept, following = accept_drafts(drafts, q.expand(count, 1, -1), after, uniforms)
    replaced = torch.multinomial(following, 1, generator=generator)
    return torch.where(kept == 1, drafts[:, 0], replaced[:, 0])


def _darts(p: Tensor, q: Tensor, top: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Return the first words drawn from q among those with a bar, and where a dart thrown at that bar hits it."""
    drawn = torch.multinomial(q, 1000, replacement=True, generator=generator)
    uniforms = torch.rand(1000, dtype=torch.float64, generator=generator)
    has_bar = torch.isin(drawn, top)
    drawn, uniforms = drawn[has_bar][:DARTS], uniforms[has_bar][:DARTS]
    ratio, height = p[drawn] / q[drawn], uniforms * q[drawn]
    kept = uniforms < ratio
    above = (height - p[drawn]).masked_fill(kept, -1)
    shown = [int(kept.nonzero()[0])] if kept.any() else []
    shown += [] if kept.all() else [int(above.argmax())]
    return {
        "dart_words": tiny_lm.tokens(drawn),
        "dart_bar": torch.stack([(top == word).nonzero()[0, 0] for word in drawn]),
        "dart_ratio": ratio,
        "dart_uniform": uniforms,
        "dart_height": height,
        "dart_accepted": kept,
        "dart_shown": torch.tensor(shown),
    }


def chi_square(counts: Int[Tensor, " V"], p: Float[Tensor, " V"]) -> dict[str, Any]:
    """Return Pearson's statistic of counts against p, its degrees of freedom, and the chance of a larger one.

    Words that are expected fewer than 5 times are counted together. Where one word is certain nothing can differ: 1.
    """
    expected = p * counts.sum()
    frequent = expected >= LEAST_EXPECTED
    cells = torch.cat([counts[frequent].double(), counts[~frequent].sum()[None].double()])
    wanted = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    cells, wanted = cells[wanted > 0], wanted[wanted > 0]
    statistic = float(((cells - wanted).square() / wanted).sum())
    freedom = len(cells) - 1
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    p_value = float(torch.special.gammaincc(half[0], half[1])) if freedom else 1.0
    return {"chi_square": statistic, "degrees_of_freedom": freedom, "p_value": p_value}


# -- many runs ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_batch(
    target: LanguageModel,
    draft: LanguageModel,
    texts: Int[Tensor, "runs T"],
    begin: Int[Tensor, " runs"],
    max_new_tokens: int,
    gamma: int,
    *,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "runs new"], Int[Tensor, " calls"]]:
    """Go on with many texts at once; with one run, draw for draw what `speculative_decode` does.

    Args:
        begin: how many tokens of each text are its prompt; the others are not looked at.

    Returns:
        the new tokens, and of every target call how many tokens it gave (also beyond max_new_tokens, so that their
        mean is not that of calls cut short).
    """
    room = int(begin.max()) + max_new_tokens + gamma + 1
    text = torch.nn.functional.pad(texts, (0, max(0, room - texts.shape[1])))
    length = begin.clone()
    gains = []
    while True:
        active = (length < begin + max_new_tokens).nonzero()[:, 0]
        if not len(active):
            new = begin[:, None] + torch.arange(max_new_tokens)
            return text.gather(1, new), torch.cat(gains)
        part, ends, rows = text[active], length[active], torch.arange(len(active))
        draft_rows = []
        for k in range(gamma):
            logits = draft(part[:, : int(ends.max()) + k])[rows, ends + k - 1]
            draft_rows.append(standardize(logits.double(), temperature))
            part[rows, ends + k] = torch.multinomial(draft_rows[-1], 1, generator=generator)[:, 0]
        window = ends[:, None] + torch.arange(gamma + 1) - 1  # (rows, γ + 1)
        logits = target(part[:, : int(ends.max()) + gamma])[rows[:, None], window]
        guessed = part[rows[:, None], window[:, 1:]]
        uniforms = torch.rand(len(active), gamma, dtype=torch.float64, generator=generator)
        _, kept, following = accept_drafts(
            guessed, torch.stack(draft_rows, dim=1), standardize(logits.double(), temperature), uniforms
        )
        part[rows, ends + kept] = torch.multinomial(following, 1, generator=generator)[:, 0]
        text[active], length[active] = part, ends + kept + 1
        gains.append(kept + 1)


@torch.no_grad()
def target_texts(config: Config) -> Int[Tensor, "runs T"]:
    """Return texts that the target wrote alone, prompt included; at high temperatures they may contain an <eos>."""
    generator = torch.Generator().manual_seed(config.seed)
    model = tiny_lm.load("base")
    text = unread = torch.tensor([tiny_lm.encode(RUN_PROMPT)]).repeat(RUNS, 1)
    cache = KVCache(model.config.num_hidden_layers)
    for _ in range(RUN_LENGTH + PHASES - 1):
        probs = standardize(model(unread, cache=cache)[:, -1], config.temperature)
        unread = torch.multinomial(probs, 1, generator=generator)
        text = torch.cat([text, unread], dim=1)
    return text


def measurements(config: Config) -> tuple[dict[str, float], dict[str, Any]]:
    """Return α of both drafts, and tokens per target pass: counted, by the formula, and from the β of neighbors."""
    target, texts = target_model(), target_texts(config)
    shortest = len(tiny_lm.encode(RUN_PROMPT))
    begin = shortest + torch.arange(RUNS) % PHASES
    edges = torch.linspace(0, 1, 21)
    alphas: dict[str, float] = {}
    tables: dict[str, dict[str, Any]] = {
        name: {} for name in ("beta_counts", "measured", "stderr", "formula", "from_betas")
    }
    positions = 0
    for name in DRAFTS:
        draft = draft_model(name)
        # β after the prompt and after every new token but the last, whose successor is not in the text.
        _, every = estimate_alpha(target, draft, texts[:, :-1], config.temperature)
        betas = every[:, shortest - 1 :]
        positions = betas.numel()
        alphas[name] = float(betas.mean())
        bins = (betas.flatten() * (len(edges) - 1)).long().clamp(max=len(edges) - 2)
        tables["beta_counts"][name] = torch.bincount(bins, minlength=len(edges) - 1)
        gains = []
        for gamma in GAMMAS:
            generator = torch.Generator().manual_seed(config.seed)
            settings = {"temperature": config.temperature, "generator": generator}
            gains.append(run_batch(target, draft, texts, begin, RUN_LENGTH, gamma, **settings)[1].double())
            progress.report(f"decoding with the {name} draft", gamma, len(GAMMAS))
        tables["measured"][name] = torch.stack([part.mean() for part in gains]).float()
        tables["stderr"][name] = torch.stack([part.std() / len(part) ** 0.5 for part in gains]).float()
        tables["formula"][name] = torch.tensor([expected_tokens(alphas[name], gamma) for gamma in GAMMAS])
        windows = [betas.unfold(1, gamma, 1).flatten(0, 1) for gamma in GAMMAS]
        tables["from_betas"][name] = torch.tensor([expected_tokens_from_betas(part) for part in windows])
    return alphas, {
        "draft_names": DRAFTS,
        "beta_edges": edges,
        "beta_counts": tables["beta_counts"],
        "measured_positions": positions,
        "measured_runs": RUNS,
        "gammas": torch.tensor(GAMMAS),
        **{f"tokens_per_call_{way}": tables[way] for way in ("measured", "stderr", "formula", "from_betas")},
    }
