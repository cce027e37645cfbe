"""How much a model would miss a head, a channel or a layer: gradients, activations, norms, angles, and the truth.

Notation: D = hidden_size, H = heads, F = channels of the feed-forward, L = layers, T = positions, N = texts, ξ = a gate
(1 = on) on one unit's output, x_l = residual stream before layer l.
Sources: Michel, Levy, Neubig 2019 (1905.10650) section 4; LLM-Pruner (2305.11627); Minitron (2407.14679); ShortGPT
(2403.03853) eq. 1; Gromov et al. 2024 (2403.17887) eq. 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.attention import causal_mask, multi_head_attention
from internals_math.next_token import target_surprisal
from internals_math.tiny_lm.vocabulary import PAD

METHODS = ("taylor_vector", "taylor_element", "activation", "magnitude", "random")
Batches = Sequence[tiny_lm.Corpus]


# -- scores of heads and channels --------------------------------------------------------------------------------------


def head_contributions(
    x: Float[Tensor, "T D"],
    w_q: Float[Tensor, "HD D"],
    w_k: Float[Tensor, "GD D"],
    w_v: Float[Tensor, "GD D"],
    w_o: Float[Tensor, "D HD"],
    n_heads: int,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "H T D"]:
    """Return what each head of a causal layer adds to the residual stream; the sum is the layer's output.

    Args:
        x: the normed input of the layer.
        rotary: (cos, sin) of `rope.rope_cos_sin`.
    """
    mask = causal_mask(len(x), device=x.device)
    output = multi_head_attention(x[None], w_q, w_k, w_v, w_o, n_heads, mask=mask, rotary=rotary)
    return output.head_contributions[0]


@dataclass(frozen=True, eq=False)
class GateGradients:
    """∂L(x)/∂ξ of every head and channel, for each text x; L(x) is the mean loss of its tokens."""

    heads: Float[Tensor, "N L H"]
    channels: Float[Tensor, "N L F"]
    tokens: Int[Tensor, " N"]  # predicted in each text


def gate_gradients(model: tiny_lm.TinyLM, batches: Batches) -> GateGradients:
    """Return how the loss of each text reacts to a gate on each head and channel, at ξ = 1 (1905.10650, eq. 2).

    No gate is needed: ∂L/∂ξ is the inner product of the unit's output with ∂L/∂(this output).

    Raises:
        ValueError: no batches.
    """
    _check_batches(batches)
    heads, channels, tokens = [], [], []
    layers = range(model.config.num_hidden_layers)
    for corpus in batches:
        leaf = tiny_lm.copy_of(model)  # trainable, so that its activations have gradients
        losses, counts, inputs = _text_losses(leaf, corpus)
        names = [f"model.layers.{k}.{part}.weight" for part in ("self_attn.o_proj", "mlp.down_proj") for k in layers]
        grads = torch.autograd.grad(losses.sum(), [inputs[name] for name in names])
        products = [(inputs[name].detach() * grad).sum(dim=1) for name, grad in zip(names, grads, strict=True)]
        by_column = torch.stack(products[: len(layers)], dim=1)  # (N, L, H d)
        heads.append(by_column.unflatten(-1, (model.config.num_attention_heads, -1)).sum(dim=-1))
        channels.append(torch.stack(products[len(layers) :], dim=1))
        tokens.append(counts)
    return GateGradients(torch.cat(heads), torch.cat(channels), torch.cat(tokens))


def _text_losses(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return each text's mean loss (N,), its predicted tokens (N,), and the inputs of all linear layers."""
    logits, record = model(corpus.ids, record=("linear_inputs",))
    surprisal = target_surprisal(logits[:, :-1], corpus.labels()[:, 1:])  # (N, T - 1), 0 where ignored
    counts = corpus.lengths - 1
    return surprisal.sum(dim=1) / counts, counts, record["linear_inputs"]


def head_importance(model: tiny_lm.TinyLM, batches: Batches, normalize: bool = False) -> Float[Tensor, "L H"]:
    """Return I_h, the mean over texts of |∂L(x)/∂ξ_h| (1905.10650, eq. 2): taken per text, signs must not cancel.

    Args:
        normalize: divide by the L2 norm of the layer's scores.

    Raises:
        ValueError: no batches.
    """
    scores = gate_gradients(model, batches).heads.abs().mean(dim=0)
    return scores / scores.norm(dim=1, keepdim=True) if normalize else scores


def predicted_delta(model: tiny_lm.TinyLM, batches: Batches) -> Float[Tensor, "L H"]:
    """Return the change of the loss per token that a straight line from ξ = 1 to 0 predicts: -∂L/∂ξ, signed.

    Raises:
        ValueError: no batches.
    """
    gates = gate_gradients(model, batches)
    weights = gates.tokens / gates.tokens.sum()
    return -(gates.heads * weights[:, None, None]).sum(dim=0)


def ablate_head_loss(model: tiny_lm.TinyLM, batches: Batches) -> Float[Tensor, "L H"]:
    """Return the true change of the loss per token with one head off at a time.

    Raises:
        ValueError: no batches.
    """
    _check_batches(batches)
    tokens = [int((corpus.lengths - 1).sum()) for corpus in batches]
    changes = [tiny_lm.head_ablation(model, corpus) * count for corpus, count in zip(batches, tokens, strict=True)]
    return torch.stack(changes).sum(dim=0) / sum(tokens)


def channel_importance(
    model: tiny_lm.TinyLM, batches: Batches, method: str, generator: torch.Generator | None = None
) -> Float[Tensor, "L F"]:
    """Return a score of every channel of the feed-forward; its group is two rows and a column.

    Args:
        method: "taylor_vector" |Σ w ∂L/∂w| over the group, "taylor_element" Σ |w ∂L/∂w| (2305.11627, section 3.2),
            with L the loss per token; "activation" mean |a_j| over tokens (2407.14679, section 2.2); "magnitude" the
            product of the three norms; "random" by lot.
        generator: of "random", seeded with 0 by default.

    Raises:
        ValueError: unknown method, no batches.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    _check_batches(batches)
    layers = range(model.config.num_hidden_layers)
    state = model.state_dict()
    groups = [
        [state[f"model.layers.{k}.mlp.{part}.weight"] for part in ("gate_proj", "up_proj", "down_proj")] for k in layers
    ]
    if method == "random":
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return torch.rand(len(groups), len(groups[0][0]), generator=generator)
    if method == "magnitude":
        return torch.stack([gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0) for gate, up, down in groups])
    if method == "activation":
        totals, count = torch.zeros(len(groups), len(groups[0][0])), 0
        for corpus in batches:
            with torch.no_grad():
                _, _, inputs = _text_losses(model, corpus)
            real = corpus.ids != PAD
            hidden = torch.stack([inputs[f"model.layers.{k}.mlp.down_proj.weight"][real] for k in layers])
            totals, count = totals + hidden.abs().sum(dim=1), count + int(real.sum())
        return totals / count
    terms = _weight_times_gradient(model, batches)
    if method == "taylor_element":
        terms = {name: term.abs() for name, term in terms.items()}
    axes = {"gate_proj": 1, "up_proj": 1, "down_proj": 0}  # a channel is a row, a row and a column
    sums = [
        torch.stack([terms[f"model.layers.{k}.mlp.{part}.weight"].sum(dim=axis) for part, axis in axes.items()])
        for k in layers
    ]
    return torch.stack(sums).sum(dim=1).abs()  # (L, 3, F) before the sum


def _weight_times_gradient(model: tiny_lm.TinyLM, batches: Batches) -> dict[str, Tensor]:
    """Return w ∂L/∂w of every weight, L the loss per token over all batches."""
    leaf = tiny_lm.copy_of(model)
    total = sum(int((corpus.lengths - 1).sum()) for corpus in batches)
    for corpus in batches:
        losses, counts, _ = _text_losses(leaf, corpus)
        ((losses * counts).sum() / total).backward()
    return {name: weight.detach() * weight.grad for name, weight in leaf.named_parameters() if weight.grad is not None}


def _check_batches(batches: Batches) -> None:
    if not batches:
        raise ValueError("batches must hold at least one set of texts, got none")


def rank_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Return Spearman's correlation, Pearson's of the ranks; equal values share their mean rank.

    Raises:
        ValueError: different lengths, or one of them constant.
    """
    if first.shape != second.shape:
        raise ValueError(f"both need as many values, got {len(first)} and {len(second)}")
    ranks = []
    for values in (first, second):
        smaller = (values[:, None] > values).sum(dim=1)
        ranks.append(smaller + ((values[:, None] == values).sum(dim=1) + 1) / 2)
    a, b = (rank.double() - rank.double().mean() for rank in ranks)
    if not a.any() or not b.any():
        raise ValueError("a constant has no ranks to correlate")
    return float((a * b).sum() / (a.norm() * b.norm()))


# -- scores of layers --------------------------------------------------------------------------------------------------


def block_influence(hidden: Float[Tensor, "L1 *tokens D"]) -> Float[Tensor, " L"]:
    """Return 1 - the mean cosine of a layer's input and output (2403.03853, eq. 1): 0 = it does not turn the stream.

    Args:
        hidden: the residual stream before the first layer and after each.

    Raises:
        ValueError: a hidden state of zeros.
    """
    return 1 - _cosine(hidden, 1).mean(dim=-1)


def angular_distance(hidden: Float[Tensor, "L1 *tokens D"], n: int) -> Float[Tensor, " starts"]:
    """Return arccos(cosine) / π of the stream before layer l and n layers later, for every l (2403.17887, eq. 4).

    Args:
        hidden: the residual stream at the last token of each text, before the first layer and after each.

    Raises:
        ValueError: n out of 1..L, a hidden state of zeros.
    """
    if not 1 <= n < len(hidden):
        raise ValueError(f"n must be in 1..{len(hidden) - 1} (the layers), got {n}")
    return (_cosine(hidden, n).clamp(-1, 1).acos() / math.pi).mean(dim=-1)


def _cosine(hidden: Tensor, n: int) -> Float[Tensor, "starts N"]:
    flat = hidden.flatten(1, -2) if hidden.ndim > 2 else hidden[:, None]
    norms = flat.norm(dim=-1)
    if (norms == 0).any():
        raise ValueError("a hidden state of zeros has no direction")
    return (flat[:-n] * flat[n:]).sum(dim=-1) / (norms[:-n] * norms[n:])
