"""The tiny LM in few bits: its weights on a grid, its loud channel, its layers under GPTQ, its loss."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.distributions import entropy
from internals_math.quantization import (
    BITS,
    CHANNELS,
    GRANULARITIES,
    OUTLIER_SCALES,
    ROW,
    SAMPLES,
    SENTENCE,
    THRESHOLD,
    Config,
    Granularity,
    Method,
    bits_per_weight,
    choose_qparams,
    dequantize,
    dequantize_codebook,
    fake_quantize,
    gptq_quantize,
    input_hessian,
    int8_matmul,
    model_bytes,
    mse,
    normal_float_codebook,
    quantize,
    quantize_codebook,
    sqnr_db,
)
from internals_math.tiny_lm.vocabulary import PAD

LAYER = 1
MATRIX = f"model.layers.{LAYER}.self_attn.k_proj.weight"  # its rows have very different largest weights
HISTOGRAM = f"model.layers.{LAYER}.mlp.gate_proj.weight"
BLOCK = 64
HELD_OUT = 100  # documents, 4,700 predicted tokens
METHODS = ("round, a scale for each row", "round, a scale for each group", "GPTQ, a scale for each row")

State = Mapping[str, Tensor]


@cache
def weights() -> dict[str, Tensor]:
    """Return the weights of the tiny LM."""
    return dict(tiny_lm.load("base").state_dict())


@cache
def block_matrices() -> tuple[str, ...]:
    """Return the names of all linear weights of the tiny LM."""
    return tuple(tiny_lm.block_matrices(tiny_lm.load("base")))


def zero_bits(config: Config, bits: int) -> int:
    """Return what a zero-point costs: nothing where it is always 0."""
    return 0 if config.symmetric else bits


# -- grids -------------------------------------------------------------------------------------------------------------


def number_line(config: Config) -> dict[str, Any]:
    """Return eight weights on the grids of 2 to 8 bits."""
    matrix = weights()[MATRIX]
    row = matrix[0, :ROW]
    grids = {bits: choose_qparams(row, bits, config.symmetric) for bits in BITS}
    codes = {bits: quantize(row, grid) for bits, grid in grids.items()}
    hats = {bits: dequantize(codes[bits], grid) for bits, grid in grids.items()}
    levels = torch.full((len(BITS), 2 ** BITS[-1] - int(config.symmetric)), torch.nan)
    for line, grid in zip(levels, grids.values(), strict=True):
        values = grid.levels()[0]
        line[: len(values)] = values
    rounded = [fake_quantize(matrix, bits, config.symmetric) for bits in BITS]
    noise = torch.stack([sqnr_db(matrix, hat) for hat in rounded])
    chosen = config.bits
    step = float(grids[chosen].scale)
    return {
        "matrix": tiny_lm.short_name(MATRIX),
        "w_row": row,
        "grid": grids[chosen].levels()[0],
        "grid_codes": torch.arange(grids[chosen].qmin, grids[chosen].qmax + 1),
        "q_row": codes[chosen],
        "w_row_hat": hats[chosen],
        "err_row": hats[chosen] - row,
        "step": step,
        "half_step": step / 2,
        "sweep_bits": torch.tensor(BITS),
        "sweep_grid": levels,
        "sweep_q": torch.stack(list(codes.values())),
        "sweep_hat": torch.stack(list(hats.values())),
        "sweep_err": torch.stack([hat - row for hat in hats.values()]),
        "sweep_half_step": torch.cat([grid.scale / 2 for grid in grids.values()]),
        "sweep_mse": torch.stack([mse(matrix, hat) for hat in rounded]),
        "sweep_sqnr_db": noise,
        "sweep_gain_db": noise.diff(),
    }


def widest(matrix: Float[Tensor, "rows i"], group_size: int, symmetric: bool) -> Bool[Tensor, "rows i"]:
    """Return which weights the step of their group comes from: the largest, or both ends of the range."""
    groups = matrix.reshape(-1, group_size)
    if symmetric:
        ends = groups.abs() == groups.abs().amax(dim=1, keepdim=True)
    else:
        high, low = groups.amax(dim=1, keepdim=True), groups.amin(dim=1, keepdim=True)
        ends = ((groups == high) & (high > 0)) | ((groups == low) & (low < 0))
    return ends.view_as(matrix)


def granularities(config: Config) -> dict[str, Any]:
    """Return a crop of weights with one scale for all, for each row and for each group."""
    crop = weights()[MATRIX][:ROW]  # (8, 32)
    bits, columns, sizes = config.bits, [], []
    for shared, group_size in ((crop.reshape(1, -1), None), (crop, None), (crop, config.group_size)):
        grid = choose_qparams(shared, bits, config.symmetric, group_size)
        sizes.append(grid.group_size)
        codes = quantize(shared, grid)
        w_hat = dequantize(codes, grid).view_as(crop)
        scale = grid.scale.repeat_interleave(grid.group_size, dim=1).view_as(crop)
        cost = bits_per_weight(bits, grid.group_size, zero_bits=zero_bits(config, bits))
        columns.append((codes.view_as(crop), w_hat, w_hat - crop, scale, grid.scale.numel(), mse(crop, w_hat), cost))
    codes, w_hat, err, scale, counts, errors, costs = zip(*columns, strict=True)
    return {
        "crop": crop,
        "granularity": Granularity(
            name=GRANULARITIES,
            codes=torch.stack(codes),
            w_hat=torch.stack(w_hat),
            err=torch.stack(err),
            abs_err=torch.stack(err).abs(),
            sets_scale=torch.stack([widest(crop, size, config.symmetric) for size in sizes]),
            scale=torch.stack(scale),
            num_scales=torch.tensor(counts),
            mse=torch.stack(errors),
            bits_per_weight=torch.tensor(costs),
        ),
    }


def code_books() -> dict[str, Any]:
    """Return a matrix in blocks of 64 on 15 even levels and on the 16 of NF4."""
    weight = weights()[HISTOGRAM]
    books = {"nf4": normal_float_codebook().float(), "int4": torch.arange(-7, 8) / 7}
    found: dict[str, Any] = {"hist_matrix": tiny_lm.short_name(HISTOGRAM)}
    for name, book in books.items():
        indices, absmax = quantize_codebook(weight, book, BLOCK)
        counts = torch.bincount(indices, minlength=len(book))
        w_hat = dequantize_codebook(indices, absmax, book, tuple(weight.shape), BLOCK)
        found[f"{name}_code"] = book
        found[f"{name}_counts"] = counts
        found[f"{name}_mse"] = float(mse(weight, w_hat))
        found[f"{name}_entropy_bits"] = float(entropy(counts / counts.sum()) / torch.tensor(2.0).log())
    normalized = weight.view(-1, BLOCK) / weight.view(-1, BLOCK).abs().amax(dim=1, keepdim=True)
    counts, edges = torch.histogram(normalized.flatten(), bins=41, range=(-1.0, 1.0))
    return found | {"hist_counts": counts.long(), "hist_edges": edges}


# -- one loud channel --------------------------------------------------------------------------------------------------


def make_loud(state: State, dim: int, factor: float) -> dict[str, Tensor]:
    """Return weights of the same function: one normed channel `factor` times larger, its readers as much smaller."""
    loud = dict(state)
    norm = f"model.layers.{LAYER}.input_layernorm.weight"
    loud[norm] = state[norm].clone()
    loud[norm][dim] *= factor
    for reader in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.{LAYER}.self_attn.{reader}.weight"
        loud[name] = state[name].clone()
        loud[name][:, dim] /= factor
    return loud


@torch.no_grad()
def loud_channel(config: Config) -> dict[str, Any]:
    """Return what one loud channel does to multiplication in 8 bits, with and without a lane of its own."""
    model, state = tiny_lm.load("base"), weights()
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())[:SENTENCE]])

    def read(state: State) -> tuple[Tensor, Tensor]:
        logits, record = tiny_lm.forward(model, state, ids, record=("normed",))
        return logits, record["normed"][LAYER, 0]

    logits, quiet = read(state)
    dim = int(quiet[:, :CHANNELS].abs().mean(dim=0).argmax())
    loud_state = make_loud(state, dim, config.outlier_scale)
    loud_logits, x = read(loud_state)
    weight = loud_state[MATRIX]
    exact = x @ weight.T
    naive, split = int8_matmul(x, weight), int8_matmul(x, weight, THRESHOLD)
    lane = x[:, split.outlier_dims] @ weight[:, split.outlier_dims].T
    shown = (slice(None), slice(CHANNELS))

    louder = tiny_lm.copy_of(model, loud_state).requires_grad_(False)
    found: dict[str, Any] = {}
    for done, (way, threshold) in enumerate((("naive", None), ("split", THRESHOLD))):

        def linear(name: str, x: Tensor, weight: Tensor, threshold: float | None = threshold) -> Tensor:
            return int8_matmul(x, weight, threshold).output

        errors = []
        for factor in OUTLIER_SCALES:
            state_k = make_loud(state, dim, factor)
            x_k, w_k = read(state_k)[1], state_k[MATRIX]
            errors.append((linear("", x_k, w_k) - x_k @ w_k.T).square().mean().sqrt())
        found[f"y_rmse_{way}"] = torch.stack(errors)
        found[f"loss_int8_{way}"] = tiny_lm.evaluate(louder, tiny_lm.held_out(HELD_OUT), linear_fn=linear)
        progress.report("multiplying in 8 bits", done + 1, 2)
    return {
        "sentence": tiny_lm.tokens(ids[0]),
        "outlier_dim": dim,
        "outlier_threshold": THRESHOLD,
        "x_quiet": quiet[shown],
        "x_out": x[shown],
        "x_out_int8_naive": naive.x_int8[shown].long(),
        "x_out_int8_split": split.x_int8[shown].long(),
        "x_lane": x[:, split.outlier_dims],
        "outlier_dims": split.outlier_dims,
        "y_int8": (split.output - lane)[shown],
        "y_lane": lane[shown],
        "y_split": split.output[shown],
        "y_exact": exact[shown],
        "y_err_naive": (naive.output - exact)[shown],
        "y_err_split": (split.output - exact)[shown],
        "outlier_max_abs_diff_logits": float((loud_logits - logits).abs().max()),
        "outlier_scales": torch.tensor(OUTLIER_SCALES),
        **found,
    }


# -- GPTQ --------------------------------------------------------------------------------------------------------------


def calibration(config: Config) -> tiny_lm.Corpus:
    """Return training texts, other ones for each seed."""
    first = config.seed * config.calibration_sequences
    after = first + config.calibration_sequences
    return tiny_lm.training_corpus(size=after).rows(range(first, after))


@torch.no_grad()
def linear_inputs(state: State, corpus: tiny_lm.Corpus) -> dict[str, Float[Tensor, "n i"]]:
    """Return what every block matrix reads of real texts, <pad> left out."""
    _, record = tiny_lm.forward(tiny_lm.load("base"), state, corpus.ids, record=("linear_inputs",))
    return {name: x[corpus.ids != PAD] for name, x in record["linear_inputs"].items()}


def error_feedback(config: Config) -> dict[str, Any]:
    """Return GPTQ at work on the first 8 inputs and outputs of a real projection, with their real Hessian."""
    weight = weights()[MATRIX][:ROW, :ROW].clone()
    x = linear_inputs(weights(), calibration(config))[MATRIX][:, :ROW]
    result = gptq_quantize(weight, x, config.bits, config.symmetric, record=True)
    assert result.steps is not None
    before = torch.cat([weight[None], result.steps[:-1]])
    hessian = input_hessian(x)
    upper = torch.linalg.cholesky(hessian.inverse(), upper=True)
    rounded = fake_quantize(weight, config.bits, config.symmetric)
    half_rounded = torch.stack([torch.cat([rounded[:, : k + 1], weight[:, k + 1 :]], dim=1) for k in range(ROW)])

    def output_errors(candidates: Float[Tensor, "k o i"]) -> Float[Tensor, " k"]:
        return ((candidates - weight) @ x.T).square().sum(dim=(1, 2))

    rtn_errors = output_errors(half_rounded)
    return {
        "gptq_W": weight,
        "gptq_W_steps": result.steps,
        "gptq_nudges": result.steps - before,
        "gptq_shift": result.steps - weight,
        "gptq_H": hessian.float(),
        "gptq_flow": (upper / upper.diagonal()[:, None]).float(),
        "gptq_codes": result.q,
        "rtn_W": rounded,
        "gptq_err_after_column": output_errors(result.steps),
        "rtn_err_after_column": rtn_errors,
        "gptq_err": result.layer_error,
        "rtn_err": float(rtn_errors[-1]),
        "gptq_weight_mse": float(mse(weight, result.w_hat)),
        "rtn_weight_mse": float(mse(weight, rounded)),
    }


def gptq_model(
    config: Config, bits: int, corpus: tiny_lm.Corpus
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    """Quantize the model layer by layer, each on what the quantized layers before it give.

    Returns:
        the weights, and for every matrix its output error on these inputs after plain rounding and after GPTQ.
    """
    state, errors = dict(weights()), {}
    for layer in range(tiny_lm.load("base").config.num_hidden_layers):
        inputs = linear_inputs(state, corpus)
        for name in (name for name in block_matrices() if name.startswith(f"model.layers.{layer}.")):
            result = gptq_quantize(state[name], inputs[name], bits, config.symmetric)
            rounded = fake_quantize(state[name], bits, config.symmetric)
            plain = float(((state[name] - rounded) @ inputs[name].T).square().sum())
            errors[name] = (plain, result.layer_error)
            state[name] = result.w_hat
    return state, errors


# -- the whole model ---------------------------------------------------------------------------------------------------


def rounded_model(config: Config, bits: int, group_size: int | None) -> dict[str, Tensor]:
    """Return the model's weights with every block matrix rounded to the nearest level."""
    rounded = {name: fake_quantize(weights()[name], bits, config.symmetric, group_size) for name in block_matrices()}
    return weights() | rounded


def size(config: Config, bits: int, group_size: int | None) -> tuple[float, float]:
    """Return the bits per weight of the block matrices and the bytes of the whole model."""
    state = weights()
    matrices = [state[name] for name in block_matrices()]
    quantized = sum(weight.numel() for weight in matrices)
    total_bits = sum(
        weight.numel() * bits_per_weight(bits, group_size or weight.shape[1], zero_bits=zero_bits(config, bits))
        for weight in matrices
    )
    kept = sum(weight.numel() for weight in state.values()) - quantized
    return total_bits / quantized, total_bits / 8 + model_bytes(kept, 32)


def whole_model(config: Config) -> dict[str, Any]:
    """Return loss, size and writing of the model at every number of bits, and GPTQ's gain in every matrix."""
    base, corpus, texts = tiny_lm.load("base"), tiny_lm.held_out(HELD_OUT), calibration(config)
    loss = torch.zeros(len(METHODS), len(BITS))
    errors: dict[str, tuple[float, float]] = {}
    writers = {"float32": base}

    def judge(state: State) -> tuple[tiny_lm.TinyLM, float]:
        model = tiny_lm.copy_of(base, state).requires_grad_(False)
        return model, tiny_lm.evaluate(model, corpus)

    for column, bits in enumerate(BITS):
        model, loss[0, column] = judge(rounded_model(config, bits, None))
        _, loss[1, column] = judge(rounded_model(config, bits, config.group_size))
        state, found = gptq_model(config, bits, texts)
        _, loss[2, column] = judge(state)
        errors = found if bits == config.bits else errors
        if bits in SAMPLES:
            writers[f"{bits} bits"] = model
        progress.report("quantizing the model", column + 1, len(BITS))
    names = ["float32", *(f"{bits} bits" for bits in SAMPLES)]
    samples = [tiny_lm.generate(writers[name], [tiny_lm.PROMPT], 24)[0] for name in names]
    row_sizes, group_sizes = ([size(config, bits, group) for bits in BITS] for group in (None, config.group_size))
    sizes = torch.tensor([row_sizes, group_sizes, row_sizes])  # (M, B, 2)
    loss_fp32 = tiny_lm.evaluate(base, corpus)
    plain, improved = (torch.tensor(column) for column in zip(*errors.values(), strict=True))
    return {
        "layer_names": tuple(tiny_lm.short_name(name) for name in errors),
        "layer_err_rtn": plain,
        "layer_err_gptq": improved,
        "layers_improved": int((improved < plain).sum()),
        "num_matrices": len(errors),
        "bits_axis": torch.tensor(BITS),
        "methods": Method(METHODS, loss, loss - loss_fp32, sizes[..., 0], sizes[..., 1]),
        "loss_fp32": loss_fp32,
        "entropy_floor": corpus.entropy_floor,
        "num_params": base.num_params,
        "num_quantized": sum(weights()[name].numel() for name in block_matrices()),
        "bytes_fp32": model_bytes(base.num_params, 32),
        "sample_names": tuple(names),
        "samples": tuple(samples),
        "sample_words": tuple(" ".join(samples).split()),
        "sample_bounds": torch.tensor([0, *(len(sample.split()) for sample in samples)]).cumsum(dim=0),
        "prompt": tiny_lm.PROMPT,
    }
