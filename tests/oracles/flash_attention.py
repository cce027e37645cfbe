"""Fused attention, logsumexp and gradients of torch and scipy."""

import numpy as np
import torch
from scipy.special import logsumexp

from internals_math import tiny_lm
from internals_math.flash_attention import (
    flash_attention_backward,
    flash_attention_forward,
    merge_softmax_states,
    online_softmax,
)
from tests.oracles import Oracle, largest_difference, randn

SHAPE = (2, 4, 37, 8)  # 37 rows: no tile size divides them


def _inputs() -> tuple[torch.Tensor, ...]:
    return tuple(randn(*SHAPE, seed=seed) for seed in (1, 2, 3))


def _sdpa(causal: bool, order: str) -> float:
    q, k, v = _inputs()
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return largest_difference(flash_attention_forward(q, k, v, 8, 5, causal, order=order).output, theirs)  # type: ignore[arg-type]


def _kernel(causal: bool) -> tuple[float, float]:
    """A real FlashAttention kernel: its output and its logsumexp."""
    q, k, v = _inputs()
    output, rows = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)[:2]
    ours = flash_attention_forward(q, k, v, 16, 16, causal)
    return largest_difference(ours.output, output), largest_difference(ours.logsumexp, rows.to(torch.float64))


def _gradient(index: int) -> float:
    q, k, v = (part.requires_grad_() for part in _inputs())
    grad_output = randn(*SHAPE, seed=4)
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    theirs = torch.autograd.grad(output, (q, k, v), grad_output)[index]
    q, k, v = (part.detach() for part in (q, k, v))
    forward = flash_attention_forward(q, k, v, 8, 8, causal=True)
    ours = flash_attention_backward(q, k, v, forward.output, forward.logsumexp, grad_output, 8, 8, causal=True)[index]
    return largest_difference(ours, theirs)


def _row_logsumexp() -> float:
    q, k, v = (part[0, 0] for part in _inputs())
    theirs = logsumexp((q @ k.T).numpy() / np.sqrt(8), axis=1)
    return largest_difference(flash_attention_forward(q, k, v, 7, 7).logsumexp, torch.from_numpy(theirs))


def _softmax() -> float:
    scores = 30 * randn(5, 41, seed=5)
    return largest_difference(online_softmax(scores).probs, torch.softmax(scores, dim=-1))


def _merged_halves() -> float:
    """Two halves of the keys, each attended to alone by torch, against attention to all of them."""
    q, k, v = _inputs()
    states = []
    for half in (slice(0, 20), slice(20, None)):
        scores = q @ k[..., half, :].transpose(-2, -1) / np.sqrt(8)
        top = scores.amax(dim=-1)
        rows = torch.exp(scores - top[..., None])
        states += [top, rows.sum(dim=-1), rows @ v[..., half, :]]
    _, total, acc = merge_softmax_states(*states)
    return largest_difference(acc / total[..., None], torch.nn.functional.scaled_dot_product_attention(q, k, v))


@torch.no_grad()
def _model() -> float:
    """Logits of the trained model with our tiles and with torch's fused attention in every layer."""
    model, ids = tiny_lm.load("base"), tiny_lm.held_out(8).ids[:, :-1]

    def tiles(query, key, value, mask, scale, layer):
        return flash_attention_forward(query, key, value, 16, 8, causal=True, scale=scale).output

    def fused(query, key, value, mask, scale, layer):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)

    return largest_difference(model(ids, attention_fn=tiles), model(ids, attention_fn=fused))


SDPA = "torch: scaled_dot_product_attention"
KERNEL = "torch: its FlashAttention kernel for CPUs"
ROWS = (
    Oracle("output, queries outside", lambda: _sdpa(False, "q_outer"), 1e-12, SDPA),
    Oracle("output, queries outside, causal", lambda: _sdpa(True, "q_outer"), 1e-12, SDPA),
    Oracle("output, keys outside", lambda: _sdpa(False, "kv_outer"), 1e-12, SDPA),
    Oracle("output, keys outside, causal", lambda: _sdpa(True, "kv_outer"), 1e-12, SDPA),
    Oracle("output of the kernel", lambda: _kernel(False)[0], 1e-12, KERNEL),
    Oracle("logsumexp of the kernel, causal", lambda: _kernel(True)[1], 1e-12, KERNEL),
    Oracle("logsumexp of a row", _row_logsumexp, 1e-12, "scipy: logsumexp"),
    Oracle("gradient of the query", lambda: _gradient(0), 1e-10, "torch: autograd through SDPA"),
    Oracle("gradient of the key", lambda: _gradient(1), 1e-10, "torch: autograd through SDPA"),
    Oracle("gradient of the value", lambda: _gradient(2), 1e-10, "torch: autograd through SDPA"),
    Oracle("softmax in one pass", _softmax, 1e-12, "torch: softmax"),
    Oracle("two halves merged", _merged_halves, 1e-12, SDPA),
    Oracle("logits of the trained model", _model, 1e-3, "torch: SDPA in every layer, float32"),
)
