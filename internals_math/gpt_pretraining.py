"""GPT pretraining: text that labels itself, and a mask that asks T questions in one pass.

The objective itself is in `next_token`: the model is trained with it, so every trace of the series depends on that
module, and on this one its own alone.

Notation: T = sequence, V = vocab_size, D = hidden_size, d = head_dim, M = predicted tokens, S = snapshots of a training
run. Losses are nats per predicted token.
Sources: Radford et al. 2018 (GPT), eq. 1; Radford et al. 2019 (GPT-2), Table 2; Brown et al. 2020, arXiv 2005.14165,
Table 2.1 and appendix D; Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3 (the mask).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.attention import attention_scores, causal_mask, masked_softmax
from internals_math.distributions import entropy
from internals_math.next_token import (
    IGNORE,
    bits_per_token,
    next_token_loss,
    perplexity,
    sample,
    sequence_log_prob,
    shift_for_next_token,
    token_surprisal,
    training_flops,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "Trace", "bits_per_token", "causal_attention", "causal_jacobian", "causal_mask", "gpt_parameter_count",
    "loss_gradient", "next_token_loss", "ngram_entropy", "perplexity", "prefix_logits", "sample", "sequence_log_prob",
    "shift_for_next_token", "token_surprisal", "trace", "training_flops", "unigram_distribution",
]  # fmt: skip

LEVELS = ("uniform", "unigram", "bigram", "trigram", "floor")
TOP = 5  # words that compete at each position
FOCUS_WORDS = 11  # bars of one position; the twelfth is all others together
SNAPSHOT_WORDS = 7  # likewise, in the course of the training


# -- one pass over all prefixes ----------------------------------------------------------------------------------------


def causal_attention(
    query: Float[Tensor, "*batch T d"],
    key: Float[Tensor, "*batch T d"],
    value: Float[Tensor, "*batch T dv"],
    *,
    causal: bool = True,
) -> tuple[Float[Tensor, "*batch T dv"], Float[Tensor, "*batch T T"], Float[Tensor, "*batch T T"]]:
    """Return (output, weights, scores) of one head; the scores are those before the mask.

    The mask comes before the softmax: zeros put in afterwards would leave rows that do not sum to 1, and denominators
    that have seen the future.
    """
    scores = attention_scores(query, key)
    weights = masked_softmax(scores, causal_mask(scores.shape[-1], device=scores.device) if causal else None)
    return weights @ value, weights, scores


def causal_jacobian(model_fn: Callable[[Tensor], Tensor], embeddings: Float[Tensor, "T D"]) -> Float[Tensor, "T T"]:
    """Return ‖∂z_t/∂e_s‖: how much the logits at t move with the embedding at s (Frobenius norm, by autograd).

    Args:
        model_fn: embeddings (T, D) -> logits (T, V).
    """
    jacobian = torch.autograd.functional.jacobian(model_fn, embeddings, vectorize=True)  # (T, V, T, D)
    assert isinstance(jacobian, Tensor)
    return jacobian.square().sum(dim=(1, 3)).sqrt()


@torch.no_grad()
def prefix_logits(model_fn: Callable[[Tensor], Tensor], input_ids: Int[Tensor, " T"]) -> Float[Tensor, "T V"]:
    """Return the last logits of T separate passes, one over each prefix: the slow way to ask what one pass asks.

    Args:
        model_fn: (1, t) ids -> (1, t, V) logits.
    """
    return torch.stack([model_fn(input_ids[None, :end])[0, -1] for end in range(1, len(input_ids) + 1)])


# -- the loss ----------------------------------------------------------------------------------------------------------


def loss_gradient(
    logits: Float[Tensor, "*batch T V"], input_ids: Int[Tensor, "*batch T"]
) -> Float[Tensor, "*batch T V"]:
    """Return the gradient of the mean loss with respect to the logits: (p - onehot) / M, and 0 where nothing is asked.

    Nothing is asked at the last position and where the next token is ignored (-100).

    Raises:
        ValueError: fewer than 2 positions, a token out of the vocabulary, or nothing to average.
    """
    next_token_loss(logits, input_ids)  # checks both
    shifted, targets = shift_for_next_token(logits, input_ids)
    kept = targets != IGNORE
    gradient = torch.softmax(shifted, dim=-1)
    gradient = gradient - torch.nn.functional.one_hot(targets.where(kept, 0), logits.shape[-1]).to(gradient.dtype)
    gradient = gradient * kept[..., None] / kept.sum()
    return torch.cat([gradient, torch.zeros_like(logits[..., -1:, :])], dim=-2)


# -- what counting words alone would reach -----------------------------------------------------------------------------


def unigram_distribution(token_stream: Int[Tensor, " n"], vocab_size: int) -> Float[Tensor, " V"]:
    """Return the share of each token in a text (float64).

    Raises:
        ValueError: an empty text, or a token out of the vocabulary.
    """
    _check_stream(token_stream, 1, vocab_size)
    return torch.bincount(token_stream, minlength=vocab_size).double() / len(token_stream)


def ngram_entropy(
    token_stream: Int[Tensor, " n"], order: int, vocab_size: int, *, predicted: Bool[Tensor, " n"] | None = None
) -> float:
    """Return the entropy of a token given the order - 1 before it, in nats, from the counts of n-grams in a text.

    It is the least loss, on this very text, of a model that looks at so few words.

    Args:
        order: length of the n-gram; 1 = unigram, 2 = bigram.
        predicted: which tokens count as the last of an n-gram; by default all that have order - 1 before them. Orders
            are comparable when they predict the same tokens.

    Raises:
        ValueError: order below 1, a text shorter than one n-gram, a token out of the vocabulary, a predicted token with
            too few before it or none at all, or more possible n-grams than an integer can number.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1 (a single word), got {order}")
    _check_stream(token_stream, order, vocab_size)
    if vocab_size**order > 2**63:
        raise ValueError(f"{vocab_size} words make too many {order}-grams to number them with 63 bits")
    grams = token_stream.unfold(0, order, 1)  # (n - order + 1, order)
    if predicted is not None:
        if predicted[: order - 1].any():
            raise ValueError(f"the first {order - 1} tokens have too few before them for order {order}")
        grams = grams[predicted[order - 1 :]]
    if not len(grams):
        raise ValueError("ngram_entropy needs at least one predicted token")
    place = vocab_size ** torch.arange(order - 1, -1, -1)
    numbers = (grams * place).sum(dim=1)
    whole, context = (_counted_entropy(part) for part in (numbers, numbers.div(vocab_size, rounding_mode="floor")))
    return whole - context


def _counted_entropy(numbers: Int[Tensor, " n"]) -> float:
    counts = torch.unique(numbers, return_counts=True)[1]
    return float(entropy(counts.double() / counts.sum()))


def _check_stream(token_stream: Tensor, least: int, vocab_size: int) -> None:
    if len(token_stream) < least:
        raise ValueError(f"the text must have at least {least} tokens, got {len(token_stream)}")
    low, high = int(token_stream.min()), int(token_stream.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens must be in 0..{vocab_size - 1}, got {low}..{high}")


# -- sizes -------------------------------------------------------------------------------------------------------------


def gpt_parameter_count(n_layer: int, d_model: int, vocab_size: int, n_ctx: int) -> int:
    """Return the weights of a GPT-2 or GPT-3: Vd + n_ctx d + L (12d² + 13d) + 2d.

    The output head is the embedding; biases, both norms of a layer and the final one are counted.

    Raises:
        ValueError: a size below 1.

    >>> gpt_parameter_count(12, 768, 50257, 1024)
    124439808
    """
    sizes = (n_layer, d_model, vocab_size, n_ctx)
    if min(sizes) < 1:
        raise ValueError(f"n_layer, d_model, vocab_size and n_ctx must be at least 1, got {sizes}")
    layer = 12 * d_model**2 + 13 * d_model
    return (vocab_size + n_ctx) * d_model + n_layer * layer + 2 * d_model


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    story_index: int = option(0, "held-out story whose first words are shown", minimum=0, maximum=19)
    num_tokens: int = option(10, "tokens of it, <bos> included", minimum=6, maximum=12)
    layer: int = option(1, "decoder layer of the mask chapter", minimum=0, maximum=2)
    head: int = option(0, "attention head of that layer", minimum=0, maximum=3)
    train_steps: int = option(600, "optimizer steps of the training that is watched", minimum=100, maximum=1500)
    snapshots: int = option(16, "points of its curve, closer together at the start", minimum=4, maximum=24)
    temperature: float = option(1.0, "of the texts it writes", minimum=0.2, maximum=2)
    seed: int = option(0, "of weights, order of documents, and luck in writing", minimum=0, maximum=9999)


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws.

    One sentence of T tokens through the series' model, and two training runs from fresh weights: one with the mask, one
    without it. P = T - 1 predictions; S, Q = snapshots of the two runs; R = positions of a document that are predicted.
    """

    config: Config
    # one sentence
    tokens: tuple[str, ...]
    input_ids: Int[Tensor, " T"]
    num_predictions: int
    top_words: tuple[str, ...]  # the 5 most likely at each position, position by position
    top_probs: Float[Tensor, "P 5"]
    target_probs: Float[Tensor, " P"]  # of the real next word
    surprisal: Float[Tensor, " P"]
    true_next_probs: Float[Tensor, " P"]  # the grammar's own probability of that word
    running_prob: Float[Tensor, " P"]  # product of target_probs so far
    running_surprisal: Float[Tensor, " P"]  # sum of surprisal so far
    sentence_loss: float  # mean of surprisal
    sentence_perplexity: float
    # the mask
    scores: Float[Tensor, "T T"]  # of one head, scaled, before the mask
    mask: Bool[Tensor, "T T"]
    scores_seen: Float[Tensor, "T T"]  # NaN where the mask hides
    weights: Float[Tensor, "T T"]
    weights_unmasked: Float[Tensor, "T T"]
    future_share: Float[Tensor, " T"]  # of the unmasked weights on words to come
    jacobian: Float[Tensor, "T T"]  # ‖∂z_t/∂e_s‖
    max_abs_diff_prefix: float  # between one pass and T passes
    # one push
    focus_position: int  # the most surprised one
    focus_target: int  # bar of the right word
    focus_words: tuple[str, ...]  # the most likely ones and the right one, then all others together
    focus_probs_before: Float[Tensor, " 12"]
    focus_gradient: Float[Tensor, " 12"]  # p - onehot
    focus_probs_after: Float[Tensor, " 12"]
    focus_rate: float  # size of the step on the logits
    # learning
    loss_steps: Int[Tensor, " S"]
    train_loss: Float[Tensor, " S"]  # on documents that the training reads
    eval_loss: Float[Tensor, " S"]  # on documents that it does not
    levels: dict[str, float]  # uniform, unigram, bigram, trigram of the read documents; floor of the unread ones
    passed_at: dict[str, int]  # first step of loss_steps below each level; -1 = never
    train_floor: float
    documents_read: int
    documents_unread: int  # behind eval_loss
    documents_shared: int  # of these, those that occur word for word among the read ones
    known_by_heart: int  # held-out documents that do, and were left out
    snapshot_prefix: tuple[str, ...]
    snapshot_words: tuple[str, ...]  # 7, then all others together
    snapshot_probs: Float[Tensor, "S 8"]
    snapshot_true_probs: Float[Tensor, " 8"]  # the grammar's
    loss_by_position: Float[Tensor, " R"]  # after the last step; NaN where no document is that long
    floor_by_position: Float[Tensor, " R"]
    # cheating
    leaky_steps: Int[Tensor, " Q"]
    leaky_train_loss: Float[Tensor, " Q"]  # what it reports, on unread documents, with all words in sight
    leaky_honest_loss: Float[Tensor, " Q"]  # on the same ones, each prefix alone
    leaky_floor: float  # of these documents
    leaky_below_floor_at: int  # first step of leaky_steps whose report is below it; -1 = never
    leaky_layer: int  # of the head with the most weight on the next word, on these documents
    leaky_head: int
    leaky_weights: Float[Tensor, "T T"]  # of it on the sentence, while it reads the whole story
    leaky_next_share: float  # its mean weight on the next word
    leaky_next_share_free: float  # … where the grammar leaves a choice
    leaky_next_share_certain: float  # … where it does not
    # writing
    samples: dict[str, str]  # step -> what the model wrote then, with the same luck
    written_tokens: tuple[str, ...]  # by the series' model, after the sentence's first words
    written_probs: Float[Tensor, " W"]  # of each word that it chose
    counts: dict[str, int | float]


def trace(config: Config) -> Trace:
    """Read one sentence with the tiny LM, and watch two trainings: with the mask and without it."""
    from internals_math.gpt_pretraining_experiment import observe  # it is built on the functions above

    return observe(config)
