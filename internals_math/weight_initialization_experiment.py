"""Random networks measured layer by layer, and what their size does to training: a deep MLP and the tiny LM."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from internals_math import progress, tiny_lm
from internals_math.distributions import entropy
from internals_math.next_token import next_token_loss
from internals_math.tiny_lm.layers import ModelConfig
from internals_math.weight_initialization import (
    BINS,
    REACH,
    Config,
    Propagation,
    Trace,
    activation_moments,
    histogram,
    init_weight,
    propagate,
    random_walk_terms,
    residual_growth,
    symmetry_run,
    variance_preserving_gain,
    weight_std,
)

GAINS, HIST_GAINS = 9, (0.9, 1.0, 1.1)
BATCH = 16
WORK = 8 * 50 * 256**2  # layers times weights of all draws
WALKS, WALK_DRAWS, WALK_FANS = 32, 4096, (4, 16, 64, 256)
FAN_IN, FAN_OUT, FAN_DRAWS = 64, 256, 200
STREAM_WIDTH, STREAM_DRAWS = 128, 24
SYMMETRY, SYMMETRY_STEPS = 6, 60
MLP_DEPTH, MLP_BATCH, MLP_STEPS, MLP_RATE = 30, 256, 200, 0.03
MLP_SCHEMES = {"He": ("kaiming_fan_in", 0.02), "Xavier": ("xavier", 0.02), "std 0.02": ("constant_std", 0.02)}
LM_SCHEMES = {
    "std 0.002": ("constant_std", 0.002),
    "GPT-2": ("gpt2", 0.02),
    "Xavier": ("xavier", 0.02),
    "std 0.2": ("constant_std", 0.2),
    "std 1": ("constant_std", 1.0),
}
LM_RATE = 0.005
LAST = 20  # steps whose mean is the final loss

Init = Callable[[str, Sequence[int], ModelConfig, torch.Generator], Tensor]


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own for each part, so that none shifts the luck of another."""
    return torch.Generator().manual_seed(seed)


# -- chapters of random networks ---------------------------------------------------------------------------------------


def depth_profiles(config: Config) -> dict[str, Any]:
    """Return signal and gradient over the depth for gains around the correct one, measured and predicted."""
    gain = variance_preserving_gain(config.nonlinearity)
    gains = torch.linspace(0.8, 1.2, GAINS, dtype=torch.float64) * config.gain_scale
    draws = max(1, min(64, WORK // (config.depth * config.width**2)))
    signal, gradient, signal_predicted, gradient_predicted = [], [], [], []
    for index, scale in enumerate(gains.tolist()):
        runs = [run_of(config, scale * gain, draw) for draw in range(draws)]
        signal.append(torch.stack([run.second_moment for run in runs]).mean(dim=0).sqrt())
        gradient.append(torch.stack([run.grad_second_moment for run in runs]).mean(dim=0).sqrt())
        forward, backward = predicted(config, scale * gain)
        signal_predicted.append(forward)
        gradient_predicted.append(backward)
        progress.report("random networks of every gain", index + 1, GAINS)
    shown = [run_of(config, scale * config.gain_scale * gain, 0) for scale in HIST_GAINS]
    edges = shown[0].bin_edges
    return {
        "correct_gain": gain,
        "gains": gains,
        "draws": draws,
        "signal": torch.stack(signal),
        "signal_predicted": torch.stack(signal_predicted),
        "gradient": torch.stack(gradient),
        "gradient_predicted": torch.stack(gradient_predicted),
        "hist_gains": torch.tensor(HIST_GAINS, dtype=torch.float64) * config.gain_scale,
        "hist": torch.stack([run.histograms for run in shown]).float(),
        "bin_edges": edges,
        "bin_centers": (edges[1:] + edges[:-1]) / 2,
    }


def run_of(config: Config, gain: float, draw: int) -> Propagation:
    """Return one draw; all gains have the same luck."""
    std = gain / math.sqrt(config.width)
    generator = seeded(config.seed + 10_000 * draw)
    return propagate(config.depth, config.width, BATCH, std, config.nonlinearity, generator)


def predicted(config: Config, gain: float) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return what an infinitely wide network does to a signal and to a gradient of size 1 (root mean squares)."""
    entering = gain**2  # variance before the first activation
    signal, factors = [1.0], []
    for _ in range(config.depth):
        _, second, slope = activation_moments(config.nonlinearity, entering)
        signal.append(second)
        factors.append(gain**2 * slope)
        entering = gain**2 * second
    gradient = torch.tensor([1.0, *reversed(factors)], dtype=torch.float64).cumprod(dim=0).flip(0)
    return torch.tensor(signal, dtype=torch.float64).sqrt(), gradient.sqrt()


def walks(config: Config) -> dict[str, Any]:
    """Return sums of random terms, and how far many of them spread."""
    generator, longest = seeded(config.seed), WALK_FANS[-1]
    inputs = torch.ones(WALK_DRAWS, longest, dtype=torch.float64)
    sums = random_walk_terms(longest, 1.0, inputs, generator)
    fans = torch.tensor(WALK_FANS)
    return {
        "walk": sums[:WALKS].float(),
        "walk_fans": fans.float(),
        "walk_std": sums[:, fans].std(dim=0, correction=0).float(),
        "walk_std_predicted": fans.float().sqrt(),
        "walk_draws": WALK_DRAWS,
    }


def half_of_the_energy(config: Config) -> dict[str, Any]:
    """Return what one ReLU does to a layer's outputs, and what weights of twice the variance give back."""
    generator = seeded(config.seed)
    x = torch.randn(BATCH, config.width, generator=generator)
    z = x @ init_weight((config.width, config.width), "lecun", generator).T
    edges = torch.linspace(-REACH, REACH, BINS + 1)
    moments = [z, z.relu(), (math.sqrt(2) * z).relu()]
    return {
        "relu_before": histogram(z, edges),
        "relu_after": histogram(z.relu(), edges),
        "relu_moments": torch.stack([values.square().mean() for values in moments]),
    }


def two_ways(config: Config) -> dict[str, Any]:
    """Return what a layer from 64 to 256 ReLUs does to a signal and to a gradient, by scheme."""
    generator, schemes = seeded(config.seed), ("kaiming_fan_in", "kaiming_fan_out", "xavier")
    measured, expected = [], []
    for scheme in schemes:
        factors = torch.zeros(2, dtype=torch.float64)
        for _ in range(FAN_DRAWS):
            weight = init_weight((FAN_OUT, FAN_IN), scheme, generator, dtype=torch.float64)
            x = torch.randn(BATCH, FAN_IN, generator=generator, dtype=torch.float64).requires_grad_()
            y = (x @ weight.T).relu()
            above = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            (below,) = torch.autograd.grad(y, x, above)
            pairs = ((y.detach(), x.detach()), (below, above))
            factors += torch.stack([out.square().mean() / come.square().mean() for out, come in pairs]) / FAN_DRAWS
        variance = weight_std(scheme, FAN_IN, FAN_OUT) ** 2
        measured.append(factors)
        expected.append([FAN_IN * variance / 2, FAN_OUT * variance / 2])
    return {
        "fan_schemes": schemes,
        "fan_demo": torch.stack(measured).float(),
        "fan_predicted": torch.tensor(expected),
        "fan_in": FAN_IN,
        "fan_out": FAN_OUT,
    }


def streams(config: Config) -> dict[str, Any]:
    """Return how residual streams grow, with and without norms, with branches as they are and scaled by 1/√N."""
    branches = 2 * config.num_layers
    draws = min(STREAM_DRAWS, max(4, 24 * STREAM_DRAWS // branches))
    modes: tuple[tuple[str, Literal["unnormalized", "prenorm"]], ...]
    modes = (("residual", "unnormalized"), ("prenorm", "prenorm"))
    found: dict[str, Any] = {"num_branches": branches}
    for name, mode in modes:
        for kind, scale in (("plain", 1.0), ("scaled", 1 / math.sqrt(branches))):
            runs = [
                stream(config.seed + 10_000 * draw, branches, scale, prenorm=mode == "prenorm") for draw in range(draws)
            ]
            found[f"{name}_{kind}"] = torch.stack(runs).mean(dim=0)
            found[f"{name}_{kind}_predicted"] = residual_growth(branches, scale, mode)
            progress.report("residual streams", len(found) // 2, 4)
    return found


def stream(seed: int, branches: int, scale: float, *, prenorm: bool) -> Float[Tensor, " K"]:
    """Return the second moments of one residual stream, divided by that of its start."""
    moments = propagate(
        branches, STREAM_WIDTH, 8, "kaiming_fan_in", "relu", seeded(seed),
        residual=True, branch_scale=scale, prenorm=prenorm,
    ).second_moment  # fmt: skip
    return moments / moments[0]


@torch.no_grad()
def stream_rms(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus) -> Float[Tensor, " branches_more"]:
    """Return the size of the tiny LM's residual stream: of the embedding, then after every attention and every MLP."""
    _, records = model(corpus.ids, record=("residual", "head_outputs"))
    residual = records["residual"]  # (L + 1, B, T, D)
    after_attention = residual[:-1] + records["head_outputs"].sum(dim=2)
    states = [residual[0], *(state for pair in zip(after_attention, residual[1:], strict=True) for state in pair)]
    real = corpus.ids != tiny_lm.PAD
    return torch.stack([state[real].square().mean().sqrt() for state in states])


def symmetries(config: Config) -> dict[str, Any]:
    """Return the weights of six neurons that start equal, and of six that start at random."""
    generator = seeded(config.seed)
    row = torch.randn(1, SYMMETRY, generator=generator) / math.sqrt(SYMMETRY)
    equal = symmetry_run(row.repeat(SYMMETRY, 1), SYMMETRY_STEPS)
    apart = symmetry_run(init_weight((SYMMETRY, SYMMETRY), "lecun", generator), SYMMETRY_STEPS)
    return {
        "symmetry_weights": equal,
        "symmetry_random": apart,
        "symmetry_gap": (equal - equal[:, :1]).abs().amax(dim=(1, 2)),
        "symmetry_random_gap": torch.stack([nn.functional.pdist(w).min() for w in apart]),
    }


# -- training a deep MLP -----------------------------------------------------------------------------------------------


def word_pairs() -> tuple[Float[Tensor, "n D2"], Int[Tensor, " n"]]:
    """Return the embeddings of two words side by side, of second moment 1, and the word that follows them."""
    ids = tiny_lm.training_corpus(size=2000).ids
    real = ids[:, 2:] != tiny_lm.PAD
    table = tiny_lm.load("base").model.embed_tokens.weight
    table = table / table.square().mean().sqrt()
    return torch.cat([table[ids[:, :-2][real]], table[ids[:, 1:-1][real]]], dim=1), ids[:, 2:][real]


def mlp_weights(scheme: str, base_std: float, seed: int, depth: int = MLP_DEPTH) -> list[Tensor]:
    """Return weight and bias of `depth` hidden layers and of the readout; biases are 0."""
    width = 2 * ModelConfig().hidden_size
    generator = seeded(seed)
    parts = []
    for rows in (*[width] * depth, tiny_lm.VOCAB_SIZE):
        parts += [init_weight((rows, width), scheme, generator, base_std=base_std), torch.zeros(rows)]
    return [part.requires_grad_() for part in parts]


def mlp_logits(weights: Sequence[Tensor], x: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
    """Run the MLP: ReLU after every layer but the readout, no norm, no shortcut."""
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    for weight, bias in layers[:-1]:
        x = (x @ weight.T + bias).relu()
    weight, bias = layers[-1]
    return x @ weight.T + bias


def train_mlp(
    scheme: str, base_std: float, seed: int, *, steps: int = MLP_STEPS, depth: int = MLP_DEPTH
) -> tuple[Float[Tensor, " steps"], float]:
    """Train the MLP by plain SGD; return the loss of every batch and the first layer's gradient norm at the start."""
    x, y = word_pairs()
    order = torch.randperm(len(x), generator=seeded(seed))
    weights = mlp_weights(scheme, base_std, seed, depth)
    optimizer = torch.optim.SGD(weights, lr=MLP_RATE)
    losses, first = [], 0.0
    for step in range(steps):
        rows = order[step * MLP_BATCH : (step + 1) * MLP_BATCH]
        loss = nn.functional.cross_entropy(mlp_logits(weights, x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert weights[0].grad is not None
            first = float(weights[0].grad.norm())
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), first


def deep_mlp(config: Config) -> dict[str, Any]:
    """Return how the MLP learns from each start."""
    runs = []
    for index, (scheme, base_std) in enumerate(MLP_SCHEMES.values()):
        runs.append(train_mlp(scheme, base_std, config.seed))
        progress.report("a deep MLP from every start", index + 1, len(MLP_SCHEMES))
    losses = torch.stack([run[0] for run in runs])
    return {
        "mlp_schemes": tuple(MLP_SCHEMES),
        "mlp_depth": MLP_DEPTH,
        "mlp_losses": losses,
        "mlp_final": losses[:, -LAST:].mean(dim=1),
        "mlp_first_layer_grad": torch.tensor([run[1] for run in runs]),
        "mlp_unigram_entropy": word_entropy(word_pairs()[1]),
    }


def word_entropy(words: Int[Tensor, " n"]) -> float:
    """Return the entropy of the words' frequencies."""
    counts = torch.bincount(words).double()
    return float(entropy(counts / counts.sum()))


# -- training the tiny LM ----------------------------------------------------------------------------------------------


def lm_init(scheme: str, base_std: float) -> Init:
    """Return how a tiny LM draws its weights; norms start at 1. GPT-2 shrinks what writes to the residual stream."""

    def init(name: str, shape: Sequence[int], config: ModelConfig, generator: torch.Generator) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(*shape)
        writes = scheme == "gpt2" and name.endswith(("o_proj.weight", "down_proj.weight"))
        branches = 2 * config.num_hidden_layers
        chosen = "gpt2_residual" if writes else scheme
        return init_weight(shape, chosen, generator, base_std=base_std, num_residual_branches=branches)

    return init


def at_the_start(model: tiny_lm.TinyLM, corpus: tiny_lm.Corpus) -> dict[str, Any]:
    """Return loss, variance of the logits, and gradient norm of every layer before training."""
    logits = model(corpus.ids)
    loss = next_token_loss(logits, corpus.labels())
    loss.backward()
    norms = [
        torch.cat([weight.grad.flatten() for weight in layer.parameters() if weight.grad is not None]).norm()
        for layer in model.model.layers
    ]
    model.zero_grad()
    real = corpus.ids != tiny_lm.PAD
    return {
        "loss": float(loss.detach()),
        "variance": float(logits.detach()[real].var(dim=-1, correction=0).mean()),
        "norms": torch.stack(norms),
    }


def train_lm(
    scheme: str, base_std: float, config: Config, steps: int
) -> tuple[dict[str, Any], Float[Tensor, " steps"]]:
    """Train a tiny LM by AdamW from one start; all starts read the same documents in the same order."""
    recipe = tiny_lm.Recipe(steps=steps, muon_lr=0.0, adam_lr=LM_RATE)
    corpus = tiny_lm.training_corpus(size=steps * recipe.batch_size)
    model = tiny_lm.TinyLM(init=lm_init(scheme, base_std), seed=config.seed)
    start = at_the_start(model, corpus.first(recipe.batch_size))
    losses: list[float] = []
    tiny_lm.train(model, corpus, recipe, seed=config.seed, on_step=lambda done, total, loss: losses.append(loss))
    return start, torch.tensor(losses)


def language_models(config: Config) -> dict[str, Any]:
    """Return how the tiny LM starts and learns from each initialization."""
    starts, losses = [], []
    for index, (scheme, base_std) in enumerate(LM_SCHEMES.values()):
        start, curve = train_lm(scheme, base_std, config, config.train_steps)
        starts.append(start)
        losses.append(curve)
        progress.report("the tiny LM from every start", index + 1, len(LM_SCHEMES))
    corpus = tiny_lm.training_corpus(size=config.train_steps * tiny_lm.Recipe().batch_size)
    words = corpus.ids[:, 1:]
    curves = torch.stack(losses)
    return {
        "lm_schemes": tuple(LM_SCHEMES),
        "lm_losses": curves,
        "lm_final": curves[:, -LAST:].mean(dim=1),
        "lm_grad_norm_by_layer": torch.stack([start["norms"] for start in starts]),
        "lm_initial_loss": torch.tensor([start["loss"] for start in starts]),
        "lm_logit_variance": torch.tensor([start["variance"] for start in starts]),
        "ln_vocab": math.log(tiny_lm.VOCAB_SIZE),
        "unigram_entropy": word_entropy(words[words != tiny_lm.PAD]),
    }


def measure(config: Config) -> Trace:
    """Measure everything that the scene draws."""
    stories = tiny_lm.held_out_kind("tale", 32)
    values: dict[str, Any] = {
        **depth_profiles(config),
        **walks(config),
        **half_of_the_energy(config),
        **two_ways(config),
        **streams(config),
        **symmetries(config),
        **deep_mlp(config),
        **language_models(config),
    }
    return Trace(
        config=config,
        stream_rms_init=stream_rms(tiny_lm.TinyLM(seed=config.seed), stories),
        stream_rms_trained=stream_rms(tiny_lm.load("base"), stories),
        **values,
    )
