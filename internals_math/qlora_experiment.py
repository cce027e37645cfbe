"""The tiny LM in 4 bits: its weights on three code books, and a dialect learned beside frozen codes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.lora_experiment import NEAR, Adapters, loss_of, train_adapters
from internals_math.next_token import next_token_loss
from internals_math.qlora import (
    BLOCK_SIZES,
    CODES,
    SCALING,
    Config,
    QuantizedWeight,
    bits_per_parameter,
    blockwise_absmax,
    code_book,
    code_entropy,
    code_usage,
    dequantize_absmax,
    dequantize_blockwise,
    double_quantize,
    double_quantized,
    pack_int4,
    qlora_input_gradient,
    quantize_blockwise,
)
from internals_math.quantization import mse
from internals_math.quantization_experiment import block_matrices, weights

LEARNING_RATE = 1e-2
BASE_TEXTS = 200  # held-out documents
GAUSSIAN_SAMPLES, GAUSSIAN_BLOCK = 2**20, 64
TOKEN = 7  # the last word of the prompt in the series story


def shown_name(config: Config) -> str:
    """Return the state-dict name of the shown matrix."""
    return f"model.layers.{config.layer}.self_attn.{config.module}.weight"


def quantize_model(code: str, block_size: int, double_quant: bool) -> dict[str, QuantizedWeight]:
    """Return every block matrix in 4 bits; embedding and norms stay as they are."""
    levels, found = code_book(code), {}
    for name in block_matrices():
        quantized = quantize_blockwise(weights()[name], levels, block_size)
        found[name] = double_quantized(quantized) if double_quant else quantized
    return found


def decode(model: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """Return the weights that these codes stand for."""
    return {name: dequantize_blockwise(quantized) for name, quantized in model.items()}


def one_matrix(config: Config) -> dict[str, Any]:
    """Return one matrix and its first block on the way through 4 bits, and its scales on the way through 8."""
    name = shown_name(config)
    weight, levels = weights()[name], code_book(config.code).float()
    exact = quantize_blockwise(weight, levels, config.block_size)
    doubled = double_quantize(exact.absmax)
    dequantized = decode(quantize_model(config.code, config.block_size, config.double_quant))[name]
    block = slice(config.block_size)
    values, codes = weight.flatten()[block], exact.codes[block].long()
    return {
        "matrix": tiny_lm.short_name(name),
        "weight": weight,
        "codes": exact.codes.view(weight.shape).long(),
        "dequantized": dequantized,
        "error": dequantized - weight,
        "block_values": values,
        "block_absmax": float(exact.absmax[0]),
        "block_normalized": values / exact.absmax[0],
        "block_codes": codes,
        "block_packed": pack_int4(codes).long(),
        "block_levels": levels[codes],
        "block_dequantized": dequantize_blockwise(exact).flatten()[block],
        "absmax": exact.absmax,
        "absmax_codes": doubled.codes.long(),
        "absmax_dequantized": dequantize_absmax(doubled),
        "absmax_mean": float(doubled.mean),
        "absmax_centered": exact.absmax - doubled.mean,
        "absmax_step": float(doubled.scale[0]),
        "levels": levels,
        "level_codes": torch.arange(len(levels)),
        "boundaries": (levels[1:] + levels[:-1]) / 2,
    }


def code_books(config: Config) -> dict[str, Any]:
    """Return how three code books meet the model's weights, and numbers that are really normal."""
    matrices = [weights()[name] for name in block_matrices()]
    normalized = torch.cat(
        [w.flatten() / blockwise_absmax(w, config.block_size).repeat_interleave(config.block_size) for w in matrices]
    )
    counts, edges = torch.histogram(normalized, bins=64, range=(-1.0, 1.0))
    flat = torch.cat([w.flatten() for w in matrices])
    gaussian = torch.randn(GAUSSIAN_SAMPLES, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"code_usage": {}, "code_entropy": {}, "mse": {}, "gaussian_mse": {}}
    for name in CODES:
        levels = code_book(name)
        # All matrices hold whole blocks, so that flat is cut where they are.
        quantized = quantize_blockwise(flat, levels, config.block_size)
        found[f"levels_{name}"] = levels.float()
        found["code_usage"][name] = code_usage(quantized.codes, len(levels)).float()
        found["code_entropy"][name] = code_entropy(quantized.codes, len(levels))
        found["mse"][name] = float(mse(flat, dequantize_blockwise(quantized)))
        drawn = quantize_blockwise(gaussian, levels, GAUSSIAN_BLOCK)
        found["gaussian_mse"][name] = float(mse(gaussian, dequantize_blockwise(drawn)))
    by_block = [dequantize_blockwise(quantize_blockwise(flat, code_book(config.code), size)) for size in BLOCK_SIZES]
    return found | {
        "normalized_histogram": counts.long(),
        "histogram_edges": edges,
        "block_sizes": torch.tensor(BLOCK_SIZES),
        "mse_by_block": torch.stack([mse(flat, decoded) for decoded in by_block]),
        "bits_by_block": torch.tensor([bits_per_parameter(size, config.double_quant) for size in BLOCK_SIZES]),
    }


def losses(config: Config) -> dict[str, Any]:
    """Return the held-out loss of the model in float32 and in every code."""
    base, corpus = tiny_lm.load("base"), tiny_lm.held_out(BASE_TEXTS)
    loss = {"fp32": tiny_lm.evaluate(base, corpus)}
    ways = [(name, name, False) for name in CODES] + [("nf4_double_quantized", "nf4", True)]
    for done, (key, code, double_quant) in enumerate(ways):
        decoded = decode(quantize_model(code, config.block_size, double_quant))
        model = tiny_lm.copy_of(base, {**base.state_dict(), **decoded}).requires_grad_(False)
        loss[key] = tiny_lm.evaluate(model, corpus)
        progress.report("reading with 4-bit weights", done + 1, len(ways))
    added = {name: value - loss["fp32"] for name, value in loss.items() if name != "fp32"}
    return {"loss": loss, "loss_added": added, "entropy_floor": corpus.entropy_floor}


def fine_tuning(config: Config) -> dict[str, Any]:
    """Return two runs on the same texts, beside float32 and beside decoded weights, and one backward pass."""
    quantized = quantize_model(config.code, config.block_size, config.double_quant)
    stored = {name: matrix.codes.clone() for name, matrix in quantized.items()}
    decoded = decode(quantized)
    bases: dict[str, dict[str, Tensor] | None] = {"lora": None, "qlora": decoded}
    runs = {
        way: train_adapters(
            NEAR,
            config.r,
            SCALING,
            steps=config.train_steps,
            learning_rate=LEARNING_RATE,
            seed=config.seed,
            watched=shown_name(config),
            names=list(block_matrices()),
            base=base,
            title=f"{NEAR}: adapters beside {'float32' if base is None else 'decoded 4-bit'} weights",
        )
        for way, base in bases.items()
    }
    # What the training left of its decoded weights must still read as the stored codes.
    levels = code_book(config.code)
    after = {name: quantize_blockwise(w, levels, config.block_size).codes for name, w in decoded.items()}
    changed = sum(int((after[name] != codes).sum()) for name, codes in stored.items())
    return {
        "finetune_steps": torch.arange(1, config.train_steps + 1),
        "finetune_curves": {way: torch.tensor(run.losses) for way, run in runs.items()},
        "finetune_final": {
            "fp32": loss_of(NEAR),
            "quantized": loss_of(NEAR, decoded),
            **{way: loss_of(NEAR, linear_fn=run.linear_fn(bases[way])) for way, run in runs.items()},
            "floor": tiny_lm.held_out(BASE_TEXTS, NEAR).entropy_floor,
        },
        "base_codes_changed": changed,
        "num_codes": sum(codes.numel() for codes in stored.values()),
        **backward(config, runs["qlora"], decoded),
    }


def gradient_norm(weights: Iterable[Tensor]) -> float | None:
    """Return the norm of all gradients together; None if there is none."""
    grads = [weight.grad.norm() for weight in weights if weight.grad is not None]
    return float(torch.stack(grads).norm()) if grads else None


def backward(config: Config, adapters: Adapters, decoded: dict[str, Tensor]) -> dict[str, Any]:
    """Return what flows through the shown layer, forward and back, for the series story."""
    name = shown_name(config)
    model = tiny_lm.copy_of(tiny_lm.load("base"), {**weights(), **decoded}).requires_grad_(False)
    ids = torch.tensor([tiny_lm.encode(tiny_lm.story())])
    trained_a, trained_b = (
        {key: value.clone().requires_grad_() for key, value in side.items()}
        for side in (adapters.lora_a, adapters.lora_b)
    )
    linear = replace(adapters, lora_a=trained_a, lora_b=trained_b).linear_fn()
    seen: dict[str, Tensor] = {}

    def watched(key: str, x: Tensor, weight: Tensor) -> Tensor:
        output = linear(key, x, weight)
        if key == name:
            output.retain_grad()
            seen.update(x=x.detach()[0, TOKEN], output=output)
        return output

    next_token_loss(model(ids, linear_fn=watched), ids).backward()
    assert seen["output"].grad is not None
    x, grad_output = seen["x"], seen["output"].grad[0, TOKEN]
    lora_a, lora_b, weight = adapters.lora_a[name], adapters.lora_b[name], decoded[name]
    coords = lora_a @ x
    added = adapters.scaling * lora_b @ coords
    grad_coords = adapters.scaling * grad_output @ lora_b
    return {
        "grad_norms": {
            "lora_A": gradient_norm(trained_a.values()),
            "lora_B": gradient_norm(trained_b.values()),
            "base": gradient_norm(model.parameters()),
        },
        "lora_A": lora_a,
        "lora_B": lora_b,
        "token": tiny_lm.tokens(ids[0])[TOKEN],
        "x": x,
        "base_output": weight @ x,
        "coords": coords,
        "adapter_output": added,
        "output": weight @ x + added,
        "grad_output": grad_output,
        "grad_through_base": grad_output @ weight,
        "grad_coords": grad_coords,
        "grad_through_adapter": grad_coords @ lora_a,
        "grad_input": qlora_input_gradient(grad_output, weight, lora_a, lora_b, adapters.scaling),
        "grad_A": trained_a[name].grad,
        "grad_B": trained_b[name].grad,
    }
