"""The tiny LM learns a dialect: all weights of its attention, or adapters of several ranks beside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import lora, progress, tiny_lm
from internals_math.lora import (
    HISTORY,
    INPUTS,
    RANKS,
    WIDE_RANK,
    Config,
    Trace,
    amplification_factor,
    captured_energy,
    init_lora,
    lora_delta_weight,
    lora_linear,
    lora_parameter_count,
    lora_scaling,
    lora_trainable_parameters,
    merge_lora,
    projected_norm,
    rank_one_terms,
    stable_rank,
    subspace_similarity_grid,
    truncate_rank,
)
from internals_math.next_token import next_token_loss
from internals_math.tiny_lm.training import FINE_TUNE_DOCUMENTS, fine_tuning_recipe
from internals_math.tiny_lm.vocabulary import PAD

NEAR, FAR = "farm2", "news"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
FULL_RATE, BATCH = 2e-3, 16
HELD_OUT = 200  # documents of each kind

LinearFn = Callable[[str, Tensor, Tensor], Tensor]


def matrices() -> list[str]:
    """Return the names of the adapted weights: queries, keys, values and outputs of every layer."""
    layers = range(tiny_lm.load("base").config.num_hidden_layers)
    return [f"model.layers.{layer}.self_attn.{module}.weight" for layer in layers for module in MODULES]


@dataclass(frozen=True, eq=False)
class Adapters:
    """A and B of every adapted weight, and what happened to one of them in training."""

    lora_a: dict[str, Float[Tensor, "r i"]]
    lora_b: dict[str, Float[Tensor, "o r"]]
    scaling: float
    lora_a_init: dict[str, Float[Tensor, "r i"]]
    losses: list[float] = field(default_factory=list)  # of every step's batch
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # A, B of the watched weight after 0, 1, 2 … steps
    grad_norms: list[tuple[float, float]] = field(default_factory=list)  # of their gradients

    def delta(self, name: str) -> Float[Tensor, "o i"]:
        """Return the change of one weight."""
        return lora_delta_weight(self.lora_a[name], self.lora_b[name], self.scaling).detach()

    def linear_fn(self, base: Mapping[str, Tensor] | None = None) -> LinearFn:
        """Return the matrix product of a model with these adapters; `base` replaces some of its frozen weights."""
        replaced = base or {}

        def linear(name: str, x: Tensor, weight: Tensor) -> Tensor:
            frozen = replaced.get(name, weight)
            if name not in self.lora_a:
                return x @ frozen.T
            return lora_linear(x, frozen, self.lora_a[name], self.lora_b[name], self.scaling)

        return linear


def train_adapters(
    dialect: str,
    r: int,
    scaling: float,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    watched: str,
    names: list[str] | None = None,
    base: Mapping[str, Tensor] | None = None,
    title: str = "",
) -> Adapters:
    """Train adapters of the frozen tiny LM; the same seed gives the same A and the same texts in the same order.

    Args:
        names: the adapted weights, all of `matrices` by default.
        base: frozen weights in place of the model's own, such as dequantized ones.
    """
    model = tiny_lm.copy_of(tiny_lm.load("base")).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    pairs = {
        name: init_lora(state[name].shape[1], state[name].shape[0], r, generator=generator)
        for name in (names or matrices())
    }
    adapters = Adapters(
        lora_a={name: pair[0].requires_grad_() for name, pair in pairs.items()},
        lora_b={name: pair[1].requires_grad_() for name, pair in pairs.items()},
        scaling=scaling,
        lora_a_init={name: pair[0].detach().clone() for name, pair in pairs.items()},
    )
    a, b = adapters.lora_a[watched], adapters.lora_b[watched]
    adapters.pairs.append((a.detach().clone(), b.detach().clone()))
    linear = adapters.linear_fn(base)

    def loss_fn(model: tiny_lm.TinyLM, ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        loss = next_token_loss(model(ids, linear_fn=linear), labels)
        adapters.losses.append(float(loss.detach()))
        return loss

    def after_step(step: int) -> None:
        assert a.grad is not None
        assert b.grad is not None
        adapters.grad_norms.append((float(a.grad.norm()), float(b.grad.norm())))
        adapters.pairs.append((a.detach().clone(), b.detach().clone()))

    weights = [*adapters.lora_a.values(), *adapters.lora_b.values()]
    recipe = fine_tuning_recipe(steps, BATCH, learning_rate)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=recipe.adam_betas, weight_decay=0.0)
    tiny_lm.train(
        model,
        tiny_lm.training_corpus(dialect, FINE_TUNE_DOCUMENTS),
        recipe,
        seed=seed,
        loss_fn=loss_fn,
        optimizers=[optimizer],
        after_step=after_step,
        on_step=progress.on_step(title or f"{dialect}: adapters of rank {r}"),
    )
    for weight in weights:
        weight.requires_grad_(False)
    return adapters


def train_fully(dialect: str, *, steps: int, seed: int) -> dict[str, Tensor]:
    """Train the same matrices without adapters, on the same texts, and return the model's weights."""
    model = tiny_lm.copy_of(tiny_lm.load("base")).requires_grad_(False)
    trained = dict(model.named_parameters())
    for name in matrices():
        trained[name].requires_grad_(True)
    recipe = fine_tuning_recipe(steps, BATCH, FULL_RATE)
    corpus = tiny_lm.training_corpus(dialect, FINE_TUNE_DOCUMENTS)
    tiny_lm.train(model, corpus, recipe, seed=seed, on_step=progress.on_step(f"{dialect}: all weights of attention"))
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def loss_of(dialect: str, changed: Mapping[str, Tensor] | None = None, linear_fn: LinearFn | None = None) -> float:
    """Return the held-out loss of a dialect with some weights changed, or with another matrix product."""
    base = tiny_lm.load("base")
    model = base if changed is None else tiny_lm.copy_of(base, {**base.state_dict(), **changed}).requires_grad_(False)
    return tiny_lm.evaluate(model, tiny_lm.held_out(HELD_OUT, dialect), linear_fn=linear_fn)


@torch.no_grad()
def module_inputs(adapters: Adapters, name: str) -> Float[Tensor, "N i"]:
    """Return real inputs of a module inside the adapted model, spread over held-out texts of the near dialect."""
    corpus = tiny_lm.held_out(8, NEAR)
    model = tiny_lm.load("base")
    _, record = model(corpus.ids, linear_fn=adapters.linear_fn(), record=("linear_inputs",))
    seen = record["linear_inputs"][name][corpus.ids != PAD]
    return seen[torch.linspace(0, len(seen) - 1, INPUTS).round().long()]


def history_steps(steps: int) -> Int[Tensor, " T"]:
    """Return HISTORY steps from 0 to the last, close together at the start."""
    ratio = (steps - 1) ** (1 / (HISTORY - 2))
    chosen = [0]
    for k in range(HISTORY - 1):
        chosen.append(max(chosen[-1] + 1, round(ratio**k)))
    return torch.tensor(chosen).clamp(max=steps - 1)


def run(config: Config) -> Trace:
    """Train everything and read the chosen matrix."""
    name = f"model.layers.{config.layer}.self_attn.{config.module}.weight"
    state = tiny_lm.load("base").state_dict()
    before = {key: value.clone() for key, value in state.items()}
    scaling = lora_scaling(config.lora_alpha, config.r)
    ranks = sorted({*RANKS, config.r})
    settings = {"steps": config.train_steps, "learning_rate": config.learning_rate, "watched": name}
    runs = {
        (dialect, r): train_adapters(dialect, r, scaling, seed=config.seed, **settings)
        for dialect in (NEAR, FAR)
        for r in ranks
    }
    other_seed = train_adapters(NEAR, WIDE_RANK, scaling, seed=config.seed + 1, **settings)
    full = {dialect: train_fully(dialect, steps=config.train_steps, seed=config.seed) for dialect in (NEAR, FAR)}
    deltas = {key: full[NEAR][key] - state[key] for key in matrices()}
    chosen, second = runs[NEAR, config.r], runs[FAR, config.r]
    weight, full_delta, delta = state[name], deltas[name], chosen.delta(name)

    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(config.seed))
    noise = noise * full_delta.norm() / noise.norm()
    u, sigma, vh = torch.linalg.svd(full_delta)
    sheets = sigma[:4, None, None] * u.T[:4, :, None] * vh[:4, None, :]

    def losses(dialect: str, judged: str) -> Float[Tensor, " R"]:
        return torch.tensor([loss_of(judged, linear_fn=runs[dialect, r].linear_fn()) for r in ranks])

    cuts = [{key: state[key] + truncate_rank(value, r) for key, value in deltas.items()} for r in ranks]
    loss_base, loss_full, loss_lora = loss_of(NEAR), loss_of(NEAR, full[NEAR]), losses(NEAR, NEAR)
    loss_truncated = torch.tensor([loss_of(NEAR, cut) for cut in cuts])
    shapes = [(32, 32)] * len(MODULES)
    layers = tiny_lm.load("base").config.num_hidden_layers
    params = [lora_trainable_parameters(layers, shapes, r) for r in ranks]
    all_params = sum(state[key].numel() for key in matrices())
    steps = history_steps(config.train_steps)
    norms = torch.tensor(chosen.grad_norms)[steps]
    lora_a_history, lora_b_history = (torch.stack(side)[steps] for side in zip(*chosen.pairs, strict=True))

    lora_a, lora_b = chosen.lora_a[name], chosen.lora_b[name]
    terms = rank_one_terms(lora_a, lora_b, scaling)
    inputs = module_inputs(chosen, name)
    seen = inputs @ torch.linalg.pinv(lora_a) @ lora_a  # the part in the row space of A
    unseen = inputs - seen
    invisible = unseen.square().sum(dim=1) / inputs.square().sum(dim=1)
    usual = int((invisible - invisible.median()).abs().argmin())
    other = int((unseen - unseen[usual]).norm(dim=1).argmax())
    alike = torch.stack([inputs[usual], seen[usual], seen[usual] + unseen[other]])

    def adapted(x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ lora_a.T, scaling * (x @ lora_a.T) @ lora_b.T

    coords, outputs = adapted(inputs)
    alike_coords, alike_outputs = adapted(alike)
    wide = torch.arange(1, WIDE_RANK + 1)
    return Trace(
        config=config,
        matrix=f"layer {config.layer} {config.module}",
        scaling=scaling,
        weight=weight,
        full_delta=full_delta,
        full_weight=full[NEAR][name],
        largest_weight=float(weight.abs().max()),
        largest_change=float(full_delta.abs().max()),
        largest_delta=float(delta.abs().max()),
        directions=torch.arange(1, len(sigma) + 1),
        full_singular_values=sigma,
        weight_singular_values=torch.linalg.svdvals(weight),
        random_singular_values=torch.linalg.svdvals(noise),
        captured_energy=captured_energy(full_delta),
        random_captured_energy=captured_energy(noise),
        full_terms=sheets,
        full_residuals=full_delta - sheets.cumsum(dim=0),
        full_stable_rank=stable_rank(full_delta),
        lora_A_init=chosen.lora_a_init[name],
        lora_A=lora_a,
        lora_B=lora_b,
        lora_delta=delta,
        rank_one_terms=terms,
        partial_deltas=terms.cumsum(dim=0),
        matrix_numbers=weight.numel(),
        adapter_numbers=lora_parameter_count(weight.shape[1], weight.shape[0], config.r),
        merged_weight=weight + delta,
        second_lora_A=second.lora_a[name],
        second_lora_B=second.lora_b[name],
        second_delta=second.delta(name),
        second_merged_weight=weight + second.delta(name),
        history_steps=steps,
        delta_history=lora_delta_weight(lora_a_history, lora_b_history, scaling),
        lora_A_history=lora_a_history,
        lora_B_history=lora_b_history,
        grad_norm_A=norms[:, 0],
        grad_norm_B=norms[:, 1],
        inputs=inputs,
        coords=coords,
        outputs=outputs,
        alike_inputs=alike,
        alike_coords=alike_coords,
        alike_outputs=alike_outputs,
        invisible_share=float(invisible.mean()),
        ranks=torch.tensor(ranks),
        loss_base=loss_base,
        loss_full=loss_full,
        loss_lora=loss_lora,
        loss_truncated=loss_truncated,
        gain_lora=(loss_base - loss_lora) / (loss_base - loss_full),
        gain_truncated=(loss_base - loss_truncated) / (loss_base - loss_full),
        loss_floor=tiny_lm.held_out(HELD_OUT, NEAR).entropy_floor,
        far_loss_base=loss_of(FAR),
        far_loss_full=loss_of(FAR, full[FAR]),
        far_loss_lora=losses(FAR, FAR),
        far_loss_floor=tiny_lm.held_out(HELD_OUT, FAR).entropy_floor,
        old_task_loss_base=loss_of("base"),
        old_task_loss_full=loss_of("base", full[NEAR]),
        old_task_loss_lora=losses(NEAR, "base"),
        parameter_counts={"model": tiny_lm.load("base").num_params, "full": all_params}
        | {f"r={r}": count for r, count in zip(ranks, params, strict=True)},
        lora_params=torch.tensor(params),
        lora_share=torch.tensor(params) / all_params,
        break_even_rank=lora.break_even_rank(32, 32),
        similarity_grid=subspace_similarity_grid(runs[NEAR, WIDE_RANK].lora_a[name], other_seed.lora_a[name]),
        similarity_random=torch.maximum(wide[:, None], wide) / weight.shape[1],
        amplification=amplification_factor(weight, delta, config.r),
        projected_norms=torch.tensor([projected_norm(weight, other, config.r) for other in (delta, weight, noise)]),
        max_abs_diff_logits=merged_difference(chosen),
        base_weights_changed=sum(int((state[key] != value).sum()) for key, value in before.items()),
        gpt3_counts=lora.gpt3_counts(),
    )


@torch.no_grad()
def merged_difference(adapters: Adapters) -> float:
    """Return the largest difference of logits between the model with adapters and the merged model."""
    base = tiny_lm.load("base")
    ids = tiny_lm.held_out(8, NEAR).ids
    state = base.state_dict()
    merged = {
        name: merge_lora(state[name], adapters.lora_a[name], adapters.lora_b[name], adapters.scaling)
        for name in adapters.lora_a
    }
    both = base(ids, linear_fn=adapters.linear_fn()) - tiny_lm.forward(base, {**state, **merged}, ids)
    return float(both.abs().max())
