"""How far windowed layers can see, and how much of what is far away still arrives.

Notation: W = window, L = layers, N = sequence length, D = hidden_size. One layer reaches W - 1 tokens back, L layers
L (W - 1): each layer passes on what the layer below has already collected.
Source: Mistral 7B, arXiv 2310.06825, section 2 (the round figure L W).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from internals_math import tiny_lm
from internals_math.attention import causal_mask
from internals_math.sliding_window_band import check_window, sliding_window_mask


def receptive_field(num_layers: int, window: int | Sequence[int | None] | None, position: int) -> int:
    """Return the earliest position whose input can reach `position` after all layers.

    Args:
        window: one for all layers or one for each; None is a global layer.

    Raises:
        ValueError: fewer than one layer, a list of another length, a window below 1, or a position below 0.
    """
    windows = _per_layer(num_layers, window)
    if position < 0:
        raise ValueError(f"position must be at least 0, got {position}")
    if None in windows:
        return 0
    return max(0, position - sum(w - 1 for w in windows if w is not None))


def reachability(
    num_layers: int, window: int | Sequence[int | None] | None, seq_len: int
) -> Bool[Tensor, "L_plus_1 N N"]:
    """Return whether the input at j can reach position i after 0, 1, … L layers."""
    reach = [torch.eye(seq_len, dtype=torch.bool)]
    for width in _per_layer(num_layers, window):
        layer = causal_mask(seq_len) if width is None else sliding_window_mask(seq_len, window=width)
        reach.append((layer.float() @ reach[-1].float()) > 0)
    return torch.stack(reach)


def influence_kernel(num_layers: int, window: int, residual_weight: float) -> Float[Tensor, " distance"]:
    """Return how much of the input at each distance is left after L layers that average over their window.

    Every layer keeps the share `residual_weight` of a position and takes the rest as the mean of its window: the
    kernel is the L-fold convolution of one layer's. It sums to 1 and ends at distance L (W - 1).

    Raises:
        ValueError: fewer than one layer, a window below 1, or a residual_weight outside 0..1.
    """
    _per_layer(num_layers, window)
    if not 0 <= residual_weight <= 1:
        raise ValueError(f"residual_weight must be in 0..1, got {residual_weight}")
    layer = torch.full((window,), (1 - residual_weight) / window, dtype=torch.float64)
    layer[0] += residual_weight
    kernel = torch.ones(1, dtype=torch.float64)
    for _ in range(num_layers):
        padded = nn.functional.pad(kernel, (window - 1, window - 1))
        kernel = nn.functional.conv1d(padded[None, None], layer.flip(0)[None, None])[0, 0]
    return kernel


def input_influence(
    model: tiny_lm.TinyLM, input_ids: Int[Tensor, "1 N"], window: int | None, position: int, layer: int = 0
) -> Float[Tensor, " N"]:
    """Return the size of d(final state of `position`) / d(state of each position before `layer`), by autograd.

    The state before layer 0 is the token embedding; sizes are Frobenius norms. None is full causal attention.

    Raises:
        ValueError: a window below 1, or a position or layer that does not exist.
    """
    length, layers = input_ids.shape[1], model.config.num_hidden_layers
    if not 0 <= position < length or not 0 <= layer <= layers:
        raise ValueError(f"position must be in 0..{length - 1} and layer in 0..{layers}, got {position} and {layer}")
    mask = causal_mask(length) if window is None else sliding_window_mask(length, window=window)
    with torch.no_grad():
        states = model(input_ids, mask=mask, record=("residual",))[1]["residual"]
    start = states[layer].clone().requires_grad_()
    _, seen = model(inputs_embeds=start, skip_layers=range(layer), mask=mask, record=("residual",))
    final = seen["residual"][-1][0, position]  # (D,)
    each = torch.eye(len(final), dtype=final.dtype)
    jacobian = torch.autograd.grad(final, start, each, is_grads_batched=True)[0]  # (D, 1, N, D)
    return jacobian[:, 0].pow(2).sum(dim=(0, 2)).sqrt()


def _per_layer(num_layers: int, window: int | Sequence[int | None] | None) -> list[int | None]:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    windows = list(window) if isinstance(window, Sequence) else [window] * num_layers
    if len(windows) != num_layers:
        raise ValueError(f"{num_layers} layers need as many windows, got {len(windows)}")
    for width in windows:
        if width is not None:
            check_window(width)
    return windows
