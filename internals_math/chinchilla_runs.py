"""Real runs for a scaling law: one-layer models of several sizes, each trained on the Zipf fact book from start to end.

Every run has its own warm-up and decay, which end with its last token: a checkpoint read off a longer schedule would
overstate the loss (Hoffmann et al. 2022, section 3.1). Each fact told is seen once; a shorter run reads the beginning
of the same stream. N counts all weights, embeddings included; D counts the answers that are predicted.

Notation: R = runs. The runs are kept by `trace_store`, apart from what is made of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.next_token import target_surprisal
from internals_math.tiny_lm.datasets import Corpus
from internals_math.tiny_lm.fact_book import WORDS_IN_BOOK
from internals_math.trace import TopicConfig, TopicTrace, option

# (hidden_size, intermediate_size). Without the smallest widths the smallest model would be the best of every budget.
SIZES = ((4, 8), (8, 16), (16, 32), (16, 96), (32, 192), (48, 384), (64, 512), (96, 768))
SHORTEST = 2**15  # answers; each level doubles them
BATCH = 256
NARROW, NARROW_RATE, RATE = 8, 0.02, 0.01  # Adam; widths up to NARROW bear the higher rate


@dataclass(frozen=True)
class Config(TopicConfig):
    """Which runs."""

    sizes: int = option(6, "model sizes, from the smallest", minimum=4, maximum=len(SIZES))
    token_levels: int = option(5, "numbers of training tokens, each double the one before", minimum=4, maximum=6)
    seed: int = option(0, "of weights, texts and their order", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """One row for each run: all levels of tokens of the smallest model first."""

    config: Config
    n_params: Int[Tensor, " R"]
    n_tokens: Int[Tensor, " R"]
    losses: Float[Tensor, " R"]  # nats an answer, summed exactly over all facts and answers
    entropy_floor: float  # what no model can beat


def trace(config: Config) -> Trace:
    """Train every size on every number of tokens."""
    levels = [SHORTEST * 2**level for level in range(config.token_levels)]
    told = tiny_lm.fact_book().sample(levels[-1], config.seed)
    plan = [(size, n_tokens) for size in SIZES[: config.sizes] for n_tokens in levels]
    n_params, losses = [], []
    for done, (size, n_tokens) in enumerate(plan):
        progress.report("training models of many sizes", done, len(plan))
        model = train(size, told[:n_tokens], config.seed)
        n_params.append(model.num_params)
        losses.append(tiny_lm.fact_book().exact_loss(model))
    progress.report("training models of many sizes", len(plan), len(plan))
    return Trace(
        config=config,
        n_params=torch.tensor(n_params),
        n_tokens=torch.tensor([n_tokens for _, n_tokens in plan]),
        losses=torch.tensor(losses, dtype=torch.float64),
        entropy_floor=tiny_lm.fact_book().entropy_floor,
    )


def train(size: tuple[int, int], told: Int[Tensor, "D 3"], seed: int) -> tiny_lm.TinyLM:
    """Return a model of this width and number of channels, trained once over what is told."""
    width, channels = size
    heads = max(1, width // 8)  # 8 wide, as in the tiny LM
    shape = tiny_lm.ModelConfig(
        WORDS_IN_BOOK,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=channels,
        tie_word_embeddings=False,
    )
    model = tiny_lm.TinyLM(shape, seed=seed)
    count = len(told)
    corpus = Corpus(told, torch.zeros(count, told.shape[1] - 1), torch.full((count,), told.shape[1]))
    recipe = tiny_lm.Recipe(
        steps=count // BATCH,
        batch_size=BATCH,
        muon_lr=0.0,
        adam_lr=NARROW_RATE if width <= NARROW else RATE,
        adam_betas=(0.9, 0.95),
        warmup=10,
    )
    tiny_lm.train(model, corpus, recipe, seed=seed, labels=told, loss_fn=answer_loss)
    return model


def answer_loss(model: tiny_lm.TinyLM, ids: Int[Tensor, "B 3"], labels: Int[Tensor, "B 3"]) -> Float[Tensor, ""]:
    """Return the mean surprisal of the answers; the cues are given."""
    return target_surprisal(model(ids[:, :-1])[:, -1], labels[:, -1]).mean()
