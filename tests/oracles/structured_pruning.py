"""transformers' Llama and pruned layers, sparsifiers of torch and torchao, SciPy's ranks, autograd, enumeration."""

import warnings
from itertools import combinations

import scipy.stats
import torch
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune
from torchao.sparsity.wanda import WandaSparsifier
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import prune_linear_layer

from internals_math import tiny_lm
from internals_math.next_token import next_token_loss
from internals_math.structured_pruning import (
    PrunedShape,
    ablate_head_loss,
    block_influence,
    channel_importance,
    count_params,
    gate_gradients,
    nm_mask,
    predicted_delta,
    prune_model,
    rank_correlation,
    row_mask,
    slice_ffn,
    slice_heads,
)
from tests.oracles import Oracle, largest_difference, randn

KEEP, CHANNELS = [0, 2], list(range(0, 96, 2))


def _texts() -> list[tiny_lm.Corpus]:
    texts = tiny_lm.held_out(12)
    return [texts.rows(range(5)), texts.rows(range(5, 12))]


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _sliced_heads() -> float:
    w_q, w_k, w_v, w_o = (randn(32, 32, seed=seed).float() for seed in range(4))
    index = torch.cat([torch.arange(8 * head, 8 * head + 8) for head in KEEP])
    ours = slice_heads(w_q, w_k, w_v, w_o, KEEP, 8)
    theirs = [prune_linear_layer(_linear(w), index, dim) for w, dim in ((w_q, 0), (w_k, 0), (w_v, 0), (w_o, 1))]
    return max(largest_difference(a, b.weight.detach()) for a, b in zip(ours, theirs, strict=True))


def _sliced_channels() -> float:
    gate, up, down = (randn(*shape, seed=4).float() for shape in ((96, 32), (96, 32), (32, 96)))
    index = torch.tensor(CHANNELS)
    theirs = [prune_linear_layer(_linear(w), index, dim) for w, dim in ((gate, 0), (up, 0), (down, 1))]
    ours = slice_ffn(gate, up, down, CHANNELS)
    return max(largest_difference(a, b.weight.detach()) for a, b in zip(ours, theirs, strict=True))


def _llama(layers: int, heads: int, channels: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tiny_lm.VOCAB_SIZE, hidden_size=32, head_dim=8, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=channels, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def _smaller_llama() -> float:
    """A Llama of two layers, two heads and half the channels, with rows and columns of the tiny LM's weights."""
    base = tiny_lm.load("base")
    state, rows = base.state_dict(), torch.cat([torch.arange(8 * head, 8 * head + 8) for head in KEEP])
    layers, columns = (0, 2), torch.tensor(CHANNELS)
    twin = _llama(2, 2, 48)
    weights = {name: value for name, value in state.items() if ".layers." not in name}
    for new, old in enumerate(layers):
        for name in (name for name in state if name.startswith(f"model.layers.{old}.")):
            value = state[name]
            if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
                value = value[rows]
            elif name.split(".")[-2] == "o_proj":
                value = value[:, rows]
            elif name.split(".")[-2] in ("gate_proj", "up_proj"):
                value = value[columns]
            elif name.split(".")[-2] == "down_proj":
                value = value[:, columns]
            weights[name.replace(f"layers.{old}.", f"layers.{new}.")] = value
    twin.load_state_dict(weights | {"lm_head.weight": state["model.embed_tokens.weight"]})
    ours = prune_model(base, [KEEP] * 3, [CHANNELS] * 3, layers)
    ids = tiny_lm.held_out(4).ids
    return largest_difference(ours(ids), twin(ids).logits)


def _params() -> float:
    base = tiny_lm.load("base")
    ours = prune_model(base, [KEEP] * 3, [CHANNELS] * 3, [0, 2])
    counts = {count_params(PrunedShape.of(ours)), _llama(2, 2, 48).num_parameters(), ours.num_params}
    return float(max(counts) - min(counts))


def _row_mask() -> float:
    layer = _linear(randn(10, 7, seed=7))
    weight = layer.weight.detach().clone()
    prune.ln_structured(layer, "weight", amount=0.3, n=2, dim=0)
    return largest_difference(row_mask(weight, 0.3).double(), layer.weight_mask)


def _two_of_four_torch() -> float:
    model = nn.Sequential(_linear(randn(16, 32, seed=8).float()))
    weight = model[0].weight.detach().clone()
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    return largest_difference(nm_mask(weight).double(), model[0].parametrizations.weight[0].mask)


def _two_of_four_wanda() -> float:
    model = nn.Sequential(_linear(randn(16, 32, seed=9).float()))
    weight, x = model[0].weight.detach().clone(), (randn(40, 32, seed=10) * torch.arange(1.0, 33.0)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsifier = WandaSparsifier(semi_structured_block_size=4)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        model(x)
        sparsifier.step()
    # torchao's observer keeps the squared norm of every input, where the paper has the norm.
    ours = nm_mask(weight, scores=weight.abs() * x.square().sum(dim=0))
    return largest_difference(ours.double(), model[0].parametrizations.weight[0].mask)


def _best_pattern() -> float:
    """How much more score one of the six patterns of a group of four would keep: nothing."""
    scores = randn(20, 16, seed=11).abs()
    groups = scores.view(20, 4, 4)
    patterns = torch.stack([torch.zeros(4).index_fill(0, torch.tensor(pair), 1) for pair in combinations(range(4), 2)])
    best = (groups[:, :, None, :] * patterns).sum(dim=-1).amax(dim=-1)
    kept = (groups * nm_mask(scores).view(20, 4, 4)).sum(dim=-1)
    return largest_difference(kept, best)


def _ranks() -> float:
    first = torch.tensor([3.0, 1, 2, 2, 5, 5, 5, 0])
    second = torch.tensor([1.0, 1, 4, 3, 9, 0, 2, 2])
    return abs(rank_correlation(first, second) - scipy.stats.spearmanr(first, second).statistic)


def _influence() -> float:
    hidden = randn(4, 6, 5, 8, seed=12)
    theirs = [1 - torch.cosine_similarity(hidden[k], hidden[k + 1], dim=-1).mean() for k in range(3)]
    return largest_difference(block_influence(hidden), torch.stack(theirs))


def _gates() -> float:
    """Autograd on the model's own gates, text by text."""
    model, worst = tiny_lm.load("base"), 0.0
    ours = gate_gradients(model, _texts())
    for row in range(12):
        text = tiny_lm.held_out(12).rows([row])
        heads, channels = torch.ones(3, 4, requires_grad=True), torch.ones(3, 96, requires_grad=True)
        loss = next_token_loss(model(text.ids, head_mask=heads, channel_mask=channels), text.labels())
        theirs = torch.autograd.grad(loss, (heads, channels))
        worst = max(worst, largest_difference(ours.heads[row], theirs[0]))
        worst = max(worst, largest_difference(ours.channels[row], theirs[1]))
    return worst


def _central_differences() -> float:
    model, texts, step = tiny_lm.copy_of(tiny_lm.load("base")).double(), tiny_lm.held_out(12), 1e-4
    predicted, worst = predicted_delta(model, _texts()), 0.0
    for head in ((0, 1), (1, 2), (2, 3)):
        losses = []
        for sign in (1, -1):
            mask = torch.ones(3, 4, dtype=torch.float64)
            mask[head] += sign * step
            losses.append(tiny_lm.evaluate(model, texts, head_mask=mask))
        worst = max(worst, abs(float(predicted[head]) + (losses[0] - losses[1]) / (2 * step)))
    return worst


def _ablation() -> float:
    """Zero the columns of W_o that read a head, on all texts at once."""
    base, texts = tiny_lm.load("base"), tiny_lm.held_out(12)
    ours, whole, worst = ablate_head_loss(base, _texts()), tiny_lm.evaluate(base, texts), 0.0
    for layer, head in ((0, 3), (1, 0), (2, 2)):
        state = dict(base.state_dict())
        name = f"model.layers.{layer}.self_attn.o_proj.weight"
        state[name] = state[name].clone()
        state[name][:, 8 * head : 8 * head + 8] = 0
        off = tiny_lm.evaluate(tiny_lm.copy_of(base, state), texts)
        worst = max(worst, abs(float(ours[layer, head]) - (off - whole)))
    return worst


def _weights_and_gradients() -> float:
    """|Σ w g| and Σ |w g| of every channel from one backward pass over all texts (relative)."""
    base, texts = tiny_lm.copy_of(tiny_lm.load("base")), tiny_lm.held_out(12)
    next_token_loss(base(texts.ids), texts.labels()).backward()
    worst = 0.0
    for method, inner, outer in (("taylor_vector", lambda t: t, torch.abs), ("taylor_element", torch.abs, lambda t: t)):
        ours = channel_importance(tiny_lm.load("base"), _texts(), method)
        for k in range(3):
            mlp = base.model.layers[k].mlp
            gate, up, down = (
                inner(p.weight.detach() * p.weight.grad) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            )
            theirs = outer(torch.stack([gate[j].sum() + up[j].sum() + down[:, j].sum() for j in range(96)]))
            worst = max(worst, largest_difference(ours[k], theirs) / float(theirs.max()))
    return worst


HF = "transformers: LlamaForCausalLM"
ROWS = (
    Oracle("sliced heads", _sliced_heads, 0, "transformers: prune_linear_layer"),
    Oracle("sliced channels", _sliced_channels, 0, "transformers: prune_linear_layer"),
    Oracle("logits of a smaller model", _smaller_llama, 1e-4, HF),
    Oracle("its weights", _params, 0, HF),
    Oracle("rows of least norm", _row_mask, 0, "torch.nn.utils.prune.ln_structured"),
    Oracle("2:4 by magnitude", _two_of_four_torch, 0, "torch.ao.pruning.WeightNormSparsifier"),
    Oracle("2:4 by Wanda", _two_of_four_wanda, 0, "torchao.sparsity.wanda.WandaSparsifier"),
    Oracle("best of the six patterns", _best_pattern, 0, "itertools.combinations"),
    Oracle("rank correlation", _ranks, 1e-12, "scipy.stats.spearmanr"),
    Oracle("block influence", _influence, 1e-12, "torch.nn.functional.cosine_similarity"),
    Oracle("gradients of gates", _gates, 1e-6, "torch.autograd on the gates"),
    Oracle("predicted change", _central_differences, 1e-7, "central differences of the loss"),
    Oracle("true change", _ablation, 1e-6, "zeroed columns"),
    Oracle("first-order scores of channels (relative)", _weights_and_gradients, 1e-4, "torch.autograd"),
)
