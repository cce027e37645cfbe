"""MoE layers, routers and balance losses of Hugging Face, autograd's gradients, entropies of SciPy and scikit-learn."""

import torch
from scipy import stats
from sklearn.metrics import mutual_info_score
from torch import Tensor
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral import modeling_mixtral
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from internals_math import tiny_lm
from internals_math.mixture_of_experts import (
    dispatch_with_capacity,
    effective_experts,
    expert_ffn,
    load_balancing_loss,
    load_balancing_loss_grad,
    moe_forward,
    mutual_information,
    router_logit_grad,
    router_probs,
    router_z_loss,
    specialization,
    top_k_gating,
)
from internals_math.mixture_of_experts_experiment import experts_of, moe_lm, read_layer
from tests.oracles import Oracle, largest_difference, randn


def _block() -> tuple[modeling_mixtral.MixtralSparseMoeBlock, Tensor]:
    config = MixtralConfig(hidden_size=12, intermediate_size=10, num_local_experts=6, num_experts_per_tok=2)
    block = modeling_mixtral.MixtralSparseMoeBlock(config).eval().requires_grad_(False)
    for seed, weight in enumerate((block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj)):
        weight.copy_(randn(*weight.shape, seed=seed, dtype=torch.float32) / 2)
    return block, randn(3, 7, 12, seed=9, dtype=torch.float32)


def _mixtral_output() -> float:
    block, x = _block()
    ours = moe_forward(x, block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj, 2)
    return largest_difference(ours.output, block(x))


def _mixtral_router() -> float:
    block, x = _block()
    logits, probs = router_probs(x.view(-1, 12), block.gate.weight)
    weights, indices = top_k_gating(probs, 2)
    theirs = block.gate(x)
    assert torch.equal(indices, theirs[2])
    return max(largest_difference(logits, theirs[0]), largest_difference(weights, theirs[1]))


def _logits(*shape: int, seed: int = 3) -> Tensor:
    return 2 * randn(*shape, seed=seed)


def _mixtral_balance(top_k: int) -> float:
    """Theirs counts per token, ours with per="assignment" is k times smaller."""
    logits = _logits(40, 8)
    theirs = modeling_mixtral.load_balancing_loss_func((logits,), 8, top_k)
    assert isinstance(theirs, Tensor)
    ours = load_balancing_loss(logits, top_k)
    same = load_balancing_loss(logits, top_k, per="token")
    return max(largest_difference(top_k * ours, theirs), largest_difference(same, theirs))


def _switch_balance() -> float:
    logits = _logits(1, 50, 8)
    probs = logits.softmax(dim=-1)
    theirs = switch.load_balancing_loss_func(probs, probs.argmax(dim=-1))
    assert isinstance(theirs, Tensor)
    return largest_difference(load_balancing_loss(logits, 1), theirs)


def _switch_z() -> float:
    logits = _logits(2, 25, 8)
    theirs = switch.router_z_loss_func(logits)
    assert isinstance(theirs, Tensor)
    return largest_difference(router_z_loss(logits), theirs)


def _switch_capacity() -> float:
    """Who keeps a seat, k = 1: theirs is a one-hot mask with the overflow masked out."""
    config = SwitchTransformersConfig(hidden_size=12, num_experts=5, expert_capacity=4)
    router = switch.SwitchTransformersTop1Router(config).eval().requires_grad_(False)
    x = randn(1, 30, 12, seed=4, dtype=torch.float32)
    kept, probs, _ = router(x)
    _, ours = router_probs(x[0], router.classifier.weight)
    weights, indices = top_k_gating(ours, 1, norm_topk_prob=False)
    _, dropped = dispatch_with_capacity(indices, 5, 4)
    assert dropped.any()
    mask = torch.nn.functional.one_hot(indices[:, 0], 5) * ~dropped
    return max(largest_difference(mask, kept[0]), largest_difference(weights, probs[0]))


def _task_gradient(top_k: int, seed: int = 5, *, raw: bool = False) -> float:
    """Closed form against autograd through softmax, top-k and renormalization (if any), for any loss of the output."""
    logits = _logits(9, 6, seed=seed).requires_grad_()
    outputs, target = randn(9, 6, 7, seed=6), randn(9, 7, seed=7)
    probs = logits.softmax(dim=-1)
    weights, indices = top_k_gating(probs, top_k, norm_topk_prob=not raw)
    chosen = outputs.gather(1, indices[..., None].expand(-1, -1, 7))
    y = (weights[..., None] * chosen).sum(dim=1)
    loss = (y - target).square().sum() + y.sin().sum()
    delta, theirs = torch.autograd.grad(loss, (y, logits))
    all_probs = probs.detach() if raw else None
    return largest_difference(router_logit_grad(delta, chosen, weights.detach(), indices, 6, probs=all_probs), theirs)


def _task_gradient_in_the_model() -> float:
    """The same inside a tiny LM: what autograd says of the router's logits, from the language model's own loss."""
    model = moe_lm(8, 16, 2, seed=0).double()
    ids = torch.tensor(tiny_lm.encode(tiny_lm.story())[:13])
    reading = read_layer(model, ids, 1)
    routing = reading.routing
    ours = router_logit_grad(reading.output_grad, reading.expert_outputs, routing.weights, routing.indices, 8)
    experts = list(experts_of(model))[1]
    hidden = reading.hidden.detach()

    def output(logits: Tensor) -> Tensor:
        weights, indices = top_k_gating(logits.softmax(dim=-1), 2)
        every = torch.stack(
            [expert_ffn(hidden, *pair) for pair in zip(experts.gate_up_proj, experts.down_proj, strict=True)], dim=1
        )
        return (weights[..., None] * every.gather(1, indices[..., None].expand(-1, -1, 32))).sum(dim=1)

    logits = routing.logits.detach().requires_grad_()
    theirs = torch.autograd.grad(output(logits), logits, reading.output_grad)[0]
    return largest_difference(ours, theirs)


def _balance_gradient(top_k: int, per: str) -> float:
    logits = _logits(3, 10, 8).requires_grad_()
    theirs = torch.autograd.grad(load_balancing_loss(logits, top_k, per=per), logits)[0]
    return largest_difference(load_balancing_loss_grad(logits.detach(), top_k, per=per), theirs)


def _effective() -> float:
    load = _logits(4, 8).softmax(dim=-1)
    return largest_difference(effective_experts(load).log(), torch.from_numpy(stats.entropy(load.numpy(), axis=1)))


def _specialization() -> float:
    probs = _logits(60, 8).softmax(dim=-1).numpy()
    theirs = stats.entropy(probs.mean(axis=0)) - stats.entropy(probs, axis=1).mean()
    return float(abs(specialization(torch.from_numpy(probs)) - theirs))


def _mutual_information() -> float:
    generator = torch.Generator().manual_seed(8)
    labels, experts = (torch.randint(0, high, (500,), generator=generator) for high in (5, 8))
    labels[experts < 3] = 0
    joint = torch.bincount(labels * 8 + experts, minlength=40).view(5, 8)
    return float(abs(mutual_information(joint) - mutual_info_score(labels.numpy(), experts.numpy())))


MIXTRAL, SWITCH = "transformers: MixtralSparseMoeBlock", "transformers: Switch Transformers"
ROWS = (
    Oracle("output of an MoE layer, float32", _mixtral_output, 1e-5, MIXTRAL),
    Oracle("router logits, gates and experts", _mixtral_router, 1e-5, MIXTRAL),
    *(
        Oracle(f"balance loss, k = {k}", lambda k=k: _mixtral_balance(k), 1e-6, "transformers: Mixtral's loss")
        for k in (1, 2, 3)
    ),
    Oracle("balance loss of Switch", _switch_balance, 1e-6, SWITCH),
    Oracle("router z-loss", _switch_z, 1e-12, SWITCH),
    Oracle("who keeps a seat", _switch_capacity, 1e-6, SWITCH),
    *(
        Oracle(f"task gradient on the logits, k = {k}", lambda k=k: _task_gradient(k), 1e-10, "torch.autograd")
        for k in (1, 2, 4, 6)
    ),
    *(
        Oracle(f"the same with raw gates, k = {k}", lambda k=k: _task_gradient(k, raw=True), 1e-10, "torch.autograd")
        for k in (1, 2, 6)
    ),
    Oracle("task gradient inside the tiny LM", _task_gradient_in_the_model, 1e-10, "torch.autograd"),
    *(
        Oracle(
            f"balance gradient, k = {k}, per {per}", lambda k=k, per=per: _balance_gradient(k, per), 1e-10, "autograd"
        )
        for k, per in ((1, "assignment"), (2, "assignment"), (2, "token"))
    ),
    Oracle("entropy of the load", _effective, 1e-12, "scipy.stats.entropy"),
    Oracle("specialization", _specialization, 1e-12, "scipy.stats.entropy"),
    Oracle("mutual information of labels and experts", _mutual_information, 1e-12, "sklearn: mutual_info_score"),
)
