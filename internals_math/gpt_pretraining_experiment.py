"""The tiny LM learns the next word from fresh weights, once with the causal mask and once without it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.distributions import pooled
from internals_math.gpt_pretraining import (
    FOCUS_WORDS,
    LEVELS,
    SNAPSHOT_WORDS,
    TOP,
    Config,
    Trace,
    causal_attention,
    causal_jacobian,
    gpt_parameter_count,
    loss_gradient,
    ngram_entropy,
    prefix_logits,
)
from internals_math.next_token import (
    next_token_loss,
    perplexity,
    sample,
    target_surprisal,
    token_surprisal,
    training_flops,
)
from internals_math.tiny_lm.datasets import CORPUS_SIZE
from internals_math.tiny_lm.vocabulary import id_of

FOCUS_RATE = 1.0
DOCUMENTS = 128  # behind every point of the learning curve
# An open-book document is one of 936, so all of them are soon known by heart; the others are too many for that.
REPEATED_KIND = "open book"
LEAKY_STEPS = 300
LEAKY_SNAPSHOTS = 9
LEAKY_DOCUMENTS = 32  # each is read once for each of its prefixes
SAMPLE_PROMPT = "one day the"
SAMPLE_WORDS = 18
WRITTEN_FROM, WRITTEN_WORDS = 5, 6  # tokens of the sentence, and words that the series' model adds
OTHERS = "all others"
GPT3_TOKENS = 300_000_000_000  # 2005.14165, Table 2.2 and appendix D
PETAFLOP_DAY = 86400e15


# -- texts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Texts:
    """What a run reads, and what it is judged by."""

    read: tiny_lm.Corpus  # every document of the run, in the corpus's order
    read_judged: tiny_lm.Corpus  # some of them, of the kinds that `unread` has
    unread: tiny_lm.Corpus  # held-out documents, none of which is among the read ones
    known_by_heart: int  # held-out documents that were left out for that reason


@cache
def texts(steps: int) -> Texts:
    """Return the documents of a run; whole documents are compared, since short sentences are bound to recur."""
    read = tiny_lm.training_corpus(size=min(steps * tiny_lm.Recipe().batch_size, CORPUS_SIZE))
    held_out = tiny_lm.held_out()
    seen = {tuple(row) for row in read.ids.tolist()}
    fresh, known = [], 0
    for index, row in enumerate(held_out.ids.tolist()):
        if len(fresh) == DOCUMENTS:
            break
        if tuple(row) in seen or repeats(row):
            known += tuple(row) in seen
        else:
            fresh.append(index)
    judged = [index for index, row in enumerate(read.ids.tolist()) if not repeats(row)]
    return Texts(read, read.rows(judged[:DOCUMENTS]), held_out.rows(fresh), known)


def repeats(row: Sequence[int]) -> bool:
    """Say whether a document is of the kind that there are few of."""
    return row[1] == id_of(tiny_lm.KINDS[REPEATED_KIND])


def levels(read: tiny_lm.Corpus, unread: tiny_lm.Corpus) -> dict[str, float]:
    """Return what a model reaches that knows nothing, the words' frequencies, pairs, triples, or the grammar.

    Frequencies are those of the read documents, the repeated kind left out, and every word but <bos> is predicted.
    """
    kept = read.rows([index for index, row in enumerate(read.ids.tolist()) if not repeats(row)])
    real = kept.ids != tiny_lm.PAD
    stream = kept.ids[real]
    predicted = stream != tiny_lm.BOS
    predicted[1] = False  # the only one without two words before it: every other document follows an <eos>
    orders = [ngram_entropy(stream, order, tiny_lm.VOCAB_SIZE, predicted=predicted) for order in (1, 2, 3)]
    return dict(zip(LEVELS, (math.log(tiny_lm.VOCAB_SIZE), *orders, unread.entropy_floor), strict=True))


# -- two runs ----------------------------------------------------------------------------------------------------------


def log_spaced(last: int, count: int) -> list[int]:
    """Return `count` steps from 0 to `last`, each further from the one before; as far as whole numbers allow."""
    steps = [0]
    for index in range(1, count):
        steps.append(max(steps[-1] + 1, round(last ** (index / (count - 1)))))
    return steps


def in_sight(ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 1 T"]:
    """Return a mask without causality: every position sees all words; only the padding is hidden."""
    return (ids != tiny_lm.PAD)[:, None, None, :]


def leaky_loss(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Return the loss that a model without a causal mask reports."""
    return next_token_loss(model(ids, mask=in_sight(ids)), labels)


@dataclass(frozen=True, eq=False)
class Run:
    """A training run: models at its snapshots, by step."""

    texts: Texts
    models: dict[int, tiny_lm.TinyLM]

    @property
    def steps(self) -> list[int]:
        return list(self.models)

    @property
    def last(self) -> tiny_lm.TinyLM:
        return self.models[self.steps[-1]]


@cache
def train(steps: int, snapshots: int, seed: int, *, leaky: bool = False) -> Run:
    """Train a fresh tiny LM by the recipe of the series, cut to `steps`."""
    told = texts(steps)
    model = tiny_lm.TinyLM(seed=seed)
    kept = tiny_lm.train(
        model,
        told.read,
        tiny_lm.Recipe(steps=steps),
        seed=seed,
        loss_fn=leaky_loss if leaky else None,
        snapshots=log_spaced(steps, snapshots),
        on_step=progress.on_step("training without the mask" if leaky else "training from fresh weights"),
    )
    models = {step: tiny_lm.copy_of(model, state).eval().requires_grad_(False) for step, state in kept.items()}
    return Run(told, models)


@torch.no_grad()
def honest_loss(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus, *, leaky: bool) -> float:
    """Return the loss when every prefix is given alone, so that there is no future to look at."""
    total = 0.0
    for end in range(1, int(corpus.lengths.max())):
        ids = corpus.ids[corpus.lengths > end]
        prefix = ids[:, :end]
        logits = model(prefix, mask=in_sight(prefix) if leaky else None)[:, -1]
        total += float(target_surprisal(logits, ids[:, end]).double().sum())
    return total / int((corpus.lengths - 1).sum())


@torch.no_grad()
def reported_loss(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus) -> float:
    """Return the loss that a model without a mask reports on texts."""
    return float(leaky_loss(model, corpus.ids, corpus.labels()))


def first_below(steps: Sequence[int], losses: Sequence[float], level: float) -> int:
    """Return the first step with a loss below the level, -1 if there is none."""
    return next((step for step, loss in zip(steps, losses, strict=True) if loss < level), -1)


def cheating(config: Config, steps: int) -> dict[str, Any]:
    """Train without the mask and say what the model reports, what it can do, and where it looks."""
    run = train(steps, min(LEAKY_SNAPSHOTS, config.snapshots), config.seed, leaky=True)
    judged = run.texts.unread.first(LEAKY_DOCUMENTS)
    reported, honest = [], []
    for index, model in enumerate(run.models.values()):
        reported.append(reported_loss(model, judged))
        honest.append(honest_loss(model, judged, leaky=True))
        progress.report("reading every prefix alone", index + 1, len(run.models))
    return {
        "leaky_steps": torch.tensor(run.steps),
        "leaky_train_loss": torch.tensor(reported),
        "leaky_honest_loss": torch.tensor(honest),
        "leaky_floor": judged.entropy_floor,
        "leaky_below_floor_at": first_below(run.steps, reported, judged.entropy_floor),
        **looking_ahead(run.last, judged, config),
    }


@torch.no_grad()
def looking_ahead(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus, config: Config) -> dict[str, Any]:
    """Return the head that spends the most weight on the next word, and how it reads the whole story."""
    ids, free = corpus.ids, corpus.surprisal > 0
    weights = model(ids, mask=in_sight(ids), record=("weights",))[1]["weights"]  # (L, B, H, T, T)
    ahead = weights.diagonal(offset=1, dim1=-2, dim2=-1).transpose(1, 2)  # (L, H, B, T - 1)
    there = ids[:, 1:] != tiny_lm.PAD
    share = ahead[:, :, there].mean(dim=-1)
    layer, head = divmod(int(share.argmax()), share.shape[1])
    story = torch.tensor([tiny_lm.encode(tiny_lm.story(config.story_index))])
    on_story = model(story, mask=in_sight(story), record=("weights",))[1]["weights"][layer, 0, head]
    return {
        "leaky_layer": layer,
        "leaky_head": head,
        "leaky_weights": on_story[: config.num_tokens, : config.num_tokens],
        "leaky_next_share": float(share[layer, head]),
        "leaky_next_share_free": float(ahead[layer, head, free].mean()),
        "leaky_next_share_certain": float(ahead[layer, head, there & ~free].mean()),
    }


# -- what the honest run learns ----------------------------------------------------------------------------------------


@torch.no_grad()
def learning(run: Run) -> dict[str, Any]:
    """Return the learning curve and the levels it passes."""
    told, losses, train_losses = run.texts, [], []
    for index, model in enumerate(run.models.values()):
        losses.append(tiny_lm.evaluate(model, told.unread))
        train_losses.append(tiny_lm.evaluate(model, told.read_judged))
        progress.report("judging the snapshots", index + 1, len(run.models))
    lines = levels(told.read, told.unread)
    read = {tuple(row) for row in told.read.ids.tolist()}
    surprisal = tiny_lm.token_losses(run.last, told.unread.ids).double()
    there = told.unread.ids[:, 1:] != tiny_lm.PAD
    count = there.sum(dim=0)  # 0 / 0 is NaN: no document is that long
    return {
        "loss_steps": torch.tensor(run.steps),
        "train_loss": torch.tensor(train_losses),
        "eval_loss": torch.tensor(losses),
        "levels": lines,
        "passed_at": {name: first_below(run.steps, losses, level) for name, level in lines.items()},
        "train_floor": told.read_judged.entropy_floor,
        "documents_read": len(told.read.ids),
        "documents_unread": len(told.unread.ids),
        "documents_shared": sum(tuple(row) in read for row in told.unread.ids.tolist()),
        "known_by_heart": told.known_by_heart,
        "loss_by_position": (surprisal.sum(dim=0) / count).float(),
        "floor_by_position": (told.unread.surprisal.double().sum(dim=0) / count).float(),
    }


@torch.no_grad()
def snapshot_predictions(run: Run, prefix: Int[Tensor, " t"]) -> dict[str, Any]:
    """Return how the prediction after one prefix forms: the words that were ever likely, and all others."""
    probs = torch.stack([model(prefix[None])[0, -1].softmax(dim=-1) for model in run.models.values()])  # (S, V)
    truth = tiny_lm.true_next_probs(" ".join(tiny_lm.tokens(prefix[1:])))
    shown = probs.amax(dim=0).argsort(descending=True)[:SNAPSHOT_WORDS]
    return {
        "snapshot_prefix": tiny_lm.tokens(prefix),
        "snapshot_words": (*tiny_lm.tokens(shown), OTHERS),
        "snapshot_probs": pooled(probs, shown),
        "snapshot_true_probs": pooled(truth, shown),
    }


def write(model: tiny_lm.TinyLM, prompt: Int[Tensor, " t"], words: int, config: Config) -> Int[Tensor, " t_all"]:
    """Let a model go on after a prompt; the same seed is the same luck for every model."""
    generator = torch.Generator().manual_seed(config.seed)
    return sample(model, prompt, words, temperature=config.temperature, generator=generator)


def samples(run: Run, config: Config) -> dict[str, str]:
    """Return what the model writes at the start, after a twenty-fourth and a sixth of the run, and at its end."""
    prompt = torch.tensor(tiny_lm.encode(SAMPLE_PROMPT))
    chosen = [min(run.steps, key=lambda step: abs(step - share * run.steps[-1])) for share in (0, 1 / 24, 1 / 6, 1)]
    texts_ = {step: write(run.models[step], prompt, SAMPLE_WORDS, config) for step in chosen}
    return {str(step): " ".join(tiny_lm.tokens(text[1:])) for step, text in texts_.items()}


# -- one sentence through the series' model ----------------------------------------------------------------------------


@torch.no_grad()
def one_sentence(model: tiny_lm.TinyLM, ids: Int[Tensor, " T"], config: Config) -> dict[str, Any]:
    """Return what the model says of every next word, and one head with and without its mask."""
    logits, records = model(ids[None], record=("q_rot", "k_rot", "v"))
    surprisal = token_surprisal(logits[0], ids)
    probs = logits[0, :-1].softmax(dim=-1)
    top = probs.topk(TOP)
    words = tiny_lm.tokens(ids)
    truth = [tiny_lm.true_next_probs(" ".join(words[1:end]))[ids[end]] for end in range(1, len(ids))]
    head = [records[name][config.layer, 0, config.head] for name in ("q_rot", "k_rot", "v")]
    _, weights, scores = causal_attention(*head)
    _, unmasked, _ = causal_attention(*head, causal=False)
    mask = torch.ones_like(scores, dtype=torch.bool).tril()
    one_by_one = prefix_logits(model, ids)
    return {
        "tokens": words,
        "input_ids": ids,
        "num_predictions": len(surprisal),
        "top_words": tiny_lm.tokens(top.indices.flatten()),
        "top_probs": top.values,
        "target_probs": (-surprisal).exp(),
        "surprisal": surprisal,
        "true_next_probs": torch.stack(truth),
        "running_prob": (-surprisal).cumsum(dim=0).exp(),
        "running_surprisal": surprisal.cumsum(dim=0),
        "sentence_loss": float(surprisal.mean()),
        "sentence_perplexity": perplexity(float(surprisal.mean())),
        "scores": scores,
        "mask": mask,
        "scores_seen": scores.masked_fill(~mask, torch.nan),
        "weights": weights,
        "weights_unmasked": unmasked,
        "future_share": unmasked.triu(1).sum(dim=-1),
        "max_abs_diff_prefix": float((logits[0] - one_by_one).abs().max()),
        **one_push(logits[0], ids),
    }


def one_push(logits: Float[Tensor, "T V"], ids: Int[Tensor, " T"]) -> dict[str, Any]:
    """Take one step on the logits of the position that is surprised the most."""
    position = int(token_surprisal(logits, ids).argmax())
    pair = slice(position, position + 2)  # a text of two tokens: one prediction, so the gradient is p - onehot
    gradient = loss_gradient(logits[pair], ids[pair])[0]
    before, after = logits[position].softmax(dim=-1), (logits[position] - FOCUS_RATE * gradient).softmax(dim=-1)
    target = int(ids[position + 1])
    ranked = [index for index in before.argsort(descending=True).tolist() if index != target]
    shown = torch.tensor([*ranked[: FOCUS_WORDS - 1], target])
    shown = shown[before[shown].argsort(descending=True)]
    return {
        "focus_position": position,
        "focus_target": int((shown == target).nonzero()[0]),
        "focus_words": (*tiny_lm.tokens(shown), OTHERS),
        "focus_probs_before": pooled(before, shown),
        "focus_gradient": torch.cat([gradient[shown], -gradient[shown].sum()[None]]),  # all of them sum to 0
        "focus_probs_after": pooled(after, shown),
        "focus_rate": FOCUS_RATE,
    }


def embedding_jacobian(model: tiny_lm.TinyLM, ids: Int[Tensor, " T"]) -> Float[Tensor, "T T"]:
    """Return how much the logits at each position move with each word's embedding."""
    embeddings = model.model.embed_tokens(ids)
    return causal_jacobian(lambda x: model(inputs_embeds=x[None])[0], embeddings)


@torch.no_grad()
def writing(model: tiny_lm.TinyLM, ids: Int[Tensor, " T"], config: Config) -> dict[str, Any]:
    """Return what the series' model writes after the first words of the sentence."""
    text = write(model, ids[:WRITTEN_FROM], WRITTEN_WORDS, config)
    surprisal = token_surprisal(model(text[None])[0] / config.temperature, text)
    return {"written_tokens": tiny_lm.tokens(text), "written_probs": (-surprisal[WRITTEN_FROM - 1 :]).exp()}


def counts(run: Run) -> dict[str, int | float]:
    """Return sizes and FLOPs of published models and of the run."""
    gpt3 = gpt_parameter_count(96, 12288, 50257, 2048)
    read = int((run.texts.read.lengths - 1).sum())
    flops = training_flops(gpt3, GPT3_TOKENS)
    return {
        "gpt1_params": gpt_parameter_count(12, 768, 40478, 512) - 2 * 768,  # no final norm
        "gpt2_params": gpt_parameter_count(12, 768, 50257, 1024),
        "gpt2_xl_params": gpt_parameter_count(48, 1600, 50257, 1024),
        "gpt3_params": gpt3,
        "gpt3_tokens": GPT3_TOKENS,
        "gpt3_flops": flops,
        "gpt3_petaflop_days": flops / PETAFLOP_DAY,
        "tiny_params": run.last.num_params,
        "tiny_tokens": read,
        "tiny_flops": training_flops(run.last.num_params, read),
    }


def observe(config: Config) -> Trace:
    """Read one sentence with the series' model, and watch the two runs."""
    model = tiny_lm.load("base")
    ids = torch.tensor(tiny_lm.encode(tiny_lm.story(config.story_index))[: config.num_tokens])
    sentence = one_sentence(model, ids, config)
    run = train(config.train_steps, config.snapshots, config.seed)
    values: Mapping[str, Any] = {
        **sentence,
        **learning(run),
        **snapshot_predictions(run, ids[:-1]),
        **cheating(config, min(LEAKY_STEPS, config.train_steps)),
        **writing(model, ids, config),
    }
    return Trace(
        config=config,
        jacobian=embedding_jacobian(model, ids),
        samples=samples(run, config),
        counts=counts(run),
        **values,
    )
