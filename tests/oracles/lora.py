"""PEFT's LoRA layer, autograd's gradients, subspace angles and singular values of SciPy."""

import math

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from scipy import linalg
from torch import Tensor, nn

from internals_math import lora_experiment as experiment
from internals_math import tiny_lm
from internals_math.lora import (
    captured_energy,
    init_lora,
    lora_delta_weight,
    lora_gradients,
    lora_linear,
    lora_scaling,
    merge_lora,
    stable_rank,
    subspace_similarity_grid,
    truncate_rank,
)
from internals_math.next_token import next_token_loss
from tests.oracles import Oracle, largest_difference, randn

R, ALPHA = 3, 7.0


class _One(nn.Module):
    """A model of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(10, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _peft(use_rslora: bool = False):
    """Return PEFT's model and layer with a random A and B."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=R, lora_alpha=int(ALPHA), target_modules=["proj"], use_rslora=use_rslora)
        model = get_peft_model(_One(), config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
    layer = model.base_model.model.proj
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(randn(R, 10, seed=1))
        layer.lora_B["default"].weight.copy_(randn(6, R, seed=2))
    return model, layer


def _parts(layer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    base = layer.base_layer
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return base.weight.detach(), base.bias.detach(), lora_a.detach().double(), lora_b.detach().double()


def _output(use_rslora: bool) -> float:
    model, layer = _peft(use_rslora)
    weight, bias, lora_a, lora_b = _parts(layer)
    x = randn(2, 5, 10, seed=3)
    ours = lora_linear(x, weight, lora_a, lora_b, lora_scaling(ALPHA, R, use_rslora), bias)
    return largest_difference(ours, model(x).detach())


def _delta(use_rslora: bool) -> float:
    _, layer = _peft(use_rslora)
    _, _, lora_a, lora_b = _parts(layer)
    scaling = lora_scaling(ALPHA, R, use_rslora)
    theirs = layer.get_delta_weight("default").detach()
    return max(
        largest_difference(lora_delta_weight(lora_a, lora_b, scaling), theirs), abs(scaling - layer.scaling["default"])
    )


def _merged() -> float:
    model, layer = _peft()
    weight, _, lora_a, lora_b = _parts(layer)
    ours = merge_lora(weight, lora_a, lora_b, lora_scaling(ALPHA, R))
    return largest_difference(ours, model.merge_and_unload().proj.weight.detach())


def _initial_bound() -> float:
    """Largest |A| of many draws against the bound of torch's Kaiming initialization (relative)."""
    ours = init_lora(64, 8, 8, generator=torch.Generator().manual_seed(0))[0].abs().max()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.init.kaiming_uniform_(torch.empty(4000, 64), a=math.sqrt(5)).abs().max()
    return abs(float(ours / theirs) - 1)


def _gradients() -> float:
    x, weight = randn(9, 10, seed=3), randn(6, 10, seed=4)
    lora_a, lora_b = randn(R, 10, seed=1).requires_grad_(), randn(6, R, seed=2).requires_grad_()
    scaling = lora_scaling(ALPHA, R)

    def loss(output: Tensor) -> Tensor:
        return output.sin().sum() + output.square().mean()

    theirs = torch.autograd.grad(loss(lora_linear(x, weight, lora_a, lora_b, scaling)), (lora_a, lora_b))
    full = merge_lora(weight, lora_a, lora_b, scaling).detach().requires_grad_()
    grad = torch.autograd.grad(loss(x @ full.T), full)[0]
    ours = lora_gradients(grad, lora_a.detach(), lora_b.detach(), scaling)
    return max(largest_difference(*pair) for pair in zip(ours, theirs, strict=True))


def _first_step_in_the_model() -> float:
    """One SGD step from B = 0 inside the tiny LM gives -η s² G A^T A, G from autograd on the full weight."""
    model = tiny_lm.copy_of(tiny_lm.load("base")).double().requires_grad_(False)
    name, ids = experiment.matrices()[4], torch.tensor([tiny_lm.encode(tiny_lm.story())])
    weight = dict(model.named_parameters())[name]
    weight.requires_grad_(True)
    grad = torch.autograd.grad(next_token_loss(model(ids), ids), weight)[0]
    weight.requires_grad_(False)
    lora_a, lora_b = randn(R, 32, seed=5) / 6, torch.zeros(32, R, dtype=torch.float64, requires_grad=True)

    def linear(key: str, x: Tensor, w: Tensor) -> Tensor:
        return lora_linear(x, w, lora_a, lora_b, 2.0) if key == name else x @ w.T

    step = torch.autograd.grad(next_token_loss(model(ids, linear_fn=linear), ids), lora_b)[0]
    ours = lora_delta_weight(lora_a, -0.3 * step, 2.0)
    return largest_difference(ours, -0.3 * 2.0**2 * grad @ lora_a.T @ lora_a)


def _similarity() -> float:
    first, second = randn(4, 12, seed=6), randn(6, 12, seed=7)
    ours = subspace_similarity_grid(first, second)
    worst = 0.0
    for i in range(1, 5):
        for j in range(1, 7):
            basis_1, basis_2 = (np.linalg.svd(a.numpy())[2][:k].T for a, k in ((first, i), (second, j)))
            theirs = (np.cos(linalg.subspace_angles(basis_1, basis_2)) ** 2).sum() / min(i, j)
            worst = max(worst, abs(float(ours[i - 1, j - 1]) - theirs))
    return worst


def _energy() -> float:
    matrix = randn(7, 9, seed=8)
    sigma = linalg.svdvals(matrix.numpy())
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    return max(
        largest_difference(captured_energy(matrix), torch.from_numpy(energy)),
        abs(stable_rank(matrix) - (sigma**2).sum() / sigma[0] ** 2),
    )


def _truncation() -> float:
    """The error of rank r is the energy of the other singular values."""
    matrix = randn(7, 9, seed=9)
    sigma = linalg.svdvals(matrix.numpy())
    return max(
        abs(float((matrix - truncate_rank(matrix, r)).square().sum()) - float((sigma[r:] ** 2).sum())) for r in range(8)
    )


PEFT = "peft: lora.Linear"
ROWS = (
    *(
        Oracle(f"{what}, {name}", lambda f=run, u=use: f(u), 1e-10, PEFT)
        for what, run in (("output", _output), ("ΔW and its scale", _delta))
        for name, use in (("α / r", False), ("rsLoRA", True))
    ),
    Oracle("merged weight", _merged, 1e-10, "peft: merge_and_unload"),
    Oracle("bound of A at the start (relative)", _initial_bound, 0.02, "torch.nn.init.kaiming_uniform_"),
    Oracle("gradients of A and B", _gradients, 1e-10, "torch.autograd"),
    Oracle("first step inside the tiny LM", _first_step_in_the_model, 1e-12, "torch.autograd on the full weight"),
    Oracle("similarity of subspaces", _similarity, 1e-10, "scipy.linalg.subspace_angles"),
    Oracle("energy and stable rank", _energy, 1e-12, "scipy.linalg.svdvals"),
    Oracle("error of the best low rank", _truncation, 1e-10, "scipy.linalg.svdvals"),
)
