"""The losses and the attention of torch and of transformers, autograd's gradient, entropies of scipy."""

import numpy as np
import torch
from scipy import stats
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel
from transformers.loss.loss_utils import ForCausalLMLoss

from internals_math import tiny_lm
from internals_math.gpt_pretraining import (
    causal_attention,
    causal_mask,
    gpt_parameter_count,
    loss_gradient,
    next_token_loss,
    ngram_entropy,
    prefix_logits,
    unigram_distribution,
)
from tests.internals_math.tiny_lm.llama_oracle import llama_of
from tests.oracles import Oracle, largest_difference, randn


def _labels(*, ignored: bool) -> torch.Tensor:
    labels = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))
    if ignored:
        labels[0, 3:] = labels[2, :2] = -100
    return labels


def _cross_entropy() -> float:
    logits, labels = randn(3, 6, 11, seed=2), _labels(ignored=True)
    theirs = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return largest_difference(next_token_loss(logits, labels), theirs)


def _hugging_face() -> float:
    logits, labels = randn(3, 6, 11, seed=2).float(), _labels(ignored=True)
    return largest_difference(next_token_loss(logits, labels), ForCausalLMLoss(logits, labels, vocab_size=11))


def _gradient() -> float:
    logits, labels = randn(3, 6, 11, seed=3).requires_grad_(), _labels(ignored=True)
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    assert logits.grad is not None
    return largest_difference(loss_gradient(logits.detach(), labels), logits.grad)


def _attention(causal: bool) -> float:
    query, key, value = (randn(2, 3, 7, 5, seed=seed) for seed in (4, 5, 6))
    theirs = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return largest_difference(causal_attention(query, key, value, causal=causal)[0], theirs)


def _mask() -> float:
    theirs = nn.Transformer.generate_square_subsequent_mask(9)  # 0 = visible, -inf = hidden
    return largest_difference(torch.zeros(9, 9).masked_fill(~causal_mask(9), -1.0), theirs.clamp(min=-1))


def _story() -> torch.Tensor:
    return torch.tensor([tiny_lm.encode(tiny_lm.story())])


@torch.no_grad()
def _llama(what: str) -> float:
    """Llama is told our rotary frequencies; it would round its own."""
    model, ids = tiny_lm.load("base"), _story()
    llama = llama_of(model)
    own = llama.model.rotary_emb.inv_freq
    theirs = llama(ids, labels=ids)
    if what == "loss":
        return largest_difference(next_token_loss(model(ids, inv_freq=own), ids), theirs.loss)
    return largest_difference(prefix_logits(lambda prefix: model(prefix, inv_freq=own), ids[0]), theirs.logits[0])


def _entropy() -> float:
    stream = _story()[0]
    theirs = stats.entropy(np.bincount(stream.numpy(), minlength=tiny_lm.VOCAB_SIZE))
    of_shares = stats.entropy(unigram_distribution(stream, tiny_lm.VOCAB_SIZE).numpy())
    ours = ngram_entropy(stream, 1, tiny_lm.VOCAB_SIZE)
    return max(abs(ours - float(theirs)), abs(ours - float(of_shares)))


def _conditional_entropy() -> float:
    """H(w | context) as the mean of one scipy entropy for each context, weighted by how often it is met."""
    stream = tiny_lm.held_out(40).ids.flatten().tolist()
    worst = 0.0
    for order in (2, 3):
        followers: dict[tuple[int, ...], list[int]] = {}
        for start in range(len(stream) - order + 1):
            *context, word = stream[start : start + order]
            followers.setdefault(tuple(context), []).append(word)
        total = sum(len(words) for words in followers.values())
        theirs = sum(len(words) / total * stats.entropy(np.bincount(words)) for words in followers.values())
        worst = max(worst, abs(ngram_entropy(torch.tensor(stream), order, tiny_lm.VOCAB_SIZE) - float(theirs)))
    return worst


def _parameters(layers: int, width: int, vocab_size: int, positions: int) -> float:
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=vocab_size, n_positions=positions)
    with torch.device("meta"):  # shapes without memory
        theirs = GPT2LMHeadModel(config).num_parameters()
    return abs(gpt_parameter_count(layers, width, vocab_size, positions) - theirs)


def _gpt1_parameters() -> float:
    with torch.device("meta"):
        theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_layer=12, n_embd=768, n_head=12)).num_parameters()
    return abs(gpt_parameter_count(12, 768, 40478, 512) - 2 * 768 - theirs)  # it has no final norm


ROWS = (
    Oracle("loss of shifted labels, some ignored", _cross_entropy, 1e-12, "torch: cross_entropy"),
    Oracle("loss of unshifted labels", _hugging_face, 1e-6, "transformers: ForCausalLMLoss"),
    Oracle("gradient of the loss", _gradient, 1e-12, "torch: autograd through cross_entropy"),
    Oracle("causal attention", lambda: _attention(True), 1e-12, "torch: scaled_dot_product_attention(is_causal=True)"),
    Oracle("attention without the mask", lambda: _attention(False), 1e-12, "torch: scaled_dot_product_attention"),
    Oracle("causal mask", _mask, 0, "torch: Transformer.generate_square_subsequent_mask"),
    Oracle("loss of the tiny LM on a story", lambda: _llama("loss"), 1e-5, "transformers: LlamaForCausalLM"),
    Oracle("its logits, prefix by prefix", lambda: _llama("logits"), 1e-4, "transformers: LlamaForCausalLM"),
    Oracle("unigram entropy", _entropy, 1e-12, "scipy: entropy"),
    Oracle("bigram and trigram entropy", _conditional_entropy, 1e-10, "scipy: entropy, context by context"),
    *(
        Oracle(f"weights of {name}", lambda sizes=sizes: _parameters(*sizes), 0, "transformers: GPT2LMHeadModel")
        for name, sizes in (
            ("GPT-2", (12, 768, 50257, 1024)),
            ("GPT-2-medium", (24, 1024, 50257, 1024)),
            ("GPT-2-XL", (48, 1600, 50257, 1024)),
            ("GPT-3", (96, 12288, 50257, 2048)),
        )
    ),
    Oracle("weights of GPT-1", _gpt1_parameters, 0, "transformers: OpenAIGPTLMHeadModel"),
)
