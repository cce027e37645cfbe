"""QLoRA: keep a frozen weight as 4-bit codes, decode it where it is multiplied, and learn beside it in full precision.

Notation: W = frozen weight (out, in), cut row by row into blocks of B = block_size values; c = absmax of a block; q =
code book, rising levels in -1..1; Ŵ = decoded weight; A, B, s = lora_A, lora_B, scaling as in `lora`; G = gradient of
the loss with respect to the layer's output.
Source: Dettmers et al. 2023, arXiv 2305.14314: eqs. 1 and 2 (blocks), section 3 (NF4, double quantization, paged
optimizers), eqs. 5 and 6 (the layer), appendix E (the levels). What codes and scales are made of is in `normal_float`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from internals_math.distributions import entropy
from internals_math.lora import lora_linear, lora_trainable_parameters
from internals_math.quantization import (
    DoubleQuantizedAbsmax,
    bits_per_weight,
    dequantize_absmax,
    dequantize_codebook,
    double_quantize,
    model_bytes,
    mse,
    normal_float_codebook,
    pack_int4,
    quantize_codebook,
    sqnr_db,
    unpack_int4,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "Config", "DoubleQuantizedAbsmax", "Memory", "QuantizedWeight", "Trace", "bits_per_parameter", "blockwise_absmax",
    "code_book", "code_entropy", "code_usage", "dequantize_absmax", "dequantize_blockwise", "double_quantize",
    "double_quantized", "finetuning_memory", "model_bytes", "normal_float_levels", "pack_int4",
    "paged_optimizer_schedule", "qlora_input_gradient", "qlora_linear", "quantization_error", "quantize_blockwise",
    "trace", "unpack_int4",
]  # fmt: skip

# -- codes -------------------------------------------------------------------------------------------------------------

CODES = ("nf4", "int4", "fp4")
E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # 1 sign, 2 exponent and 1 mantissa bit

normal_float_levels = normal_float_codebook


def code_book(name: str) -> Float[Tensor, " levels"]:
    """Return the rising levels of a 4-bit type in -1..1, in float64.

    Args:
        name: "nf4"; "int4", the 15 even levels -7/7 … 7/7 (one code stays unused); "fp4", the 15 different values of
            E2M1 divided by 6. (The fp4 of bitsandbytes is another table.)

    Raises:
        ValueError: unknown name.
    """
    if name not in CODES:
        raise ValueError(f"code must be one of {', '.join(CODES)}, got {name!r}")
    if name == "nf4":
        return normal_float_levels()
    steps = torch.tensor(E2M1 if name == "fp4" else range(1, 8), dtype=torch.float64)
    above = steps / steps[-1]
    return torch.cat([-above.flip(0), torch.zeros(1, dtype=torch.float64), above])


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight as one code for every value and one absmax for every block."""

    codes: UInt8[Tensor, " n"]  # indices into `code`, row by row
    absmax: Float[Tensor, " blocks"]
    code: Float[Tensor, " levels"]
    block_size: int
    shape: tuple[int, ...]


def blockwise_absmax(weight: Float[Tensor, "..."], block_size: int) -> Float[Tensor, " blocks"]:
    """Return max |w| of every block of the flattened weight; the last block may be short.

    Raises:
        ValueError: block_size below 2 or odd.
    """
    _check_block_size(block_size)
    flat = weight.flatten().abs()
    return torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size).amax(dim=1)


def quantize_blockwise(
    weight: Float[Tensor, "..."], code: Float[Tensor, " levels"], block_size: int = 64
) -> QuantizedWeight:
    """Return the index of the level nearest to w / c for every value, c being its block's absmax (eq. 1).

    A block of zeros has c = 0 and decodes to exact zeros.

    Args:
        code: up to 256 rising levels, -1, 0 and 1 among them: the largest value and zero of a block are then exact.

    Raises:
        ValueError: block_size below 2 or odd, an empty weight or one that is not finite, a code without -1, 0 or 1.
    """
    _check_block_size(block_size)
    if not torch.isin(torch.tensor([-1, 0, 1]).to(code), code).all():
        raise ValueError(f"code must have the levels -1, 0 and 1, got {code.tolist()[:5]} … ({len(code)})")
    codes, absmax = quantize_codebook(weight, code, block_size)
    return QuantizedWeight(codes, absmax, code.to(weight.dtype), block_size, tuple(weight.shape))


def dequantize_blockwise(
    quantized: QuantizedWeight, absmax: Float[Tensor, " blocks"] | None = None
) -> Float[Tensor, "..."]:
    """Return Ŵ = c · q[code] in the weight's shape (eq. 2); `absmax` replaces the block scales.

    Raises:
        ValueError: codes beyond the code book, or counts that do not fit.
    """
    scales = quantized.absmax if absmax is None else absmax
    return dequantize_codebook(quantized.codes, scales, quantized.code, quantized.shape, quantized.block_size)


def double_quantized(quantized: QuantizedWeight, block_size: int = 256) -> QuantizedWeight:
    """Return the same codes with block scales that went through 8 bits (`double_quantize`)."""
    return replace(quantized, absmax=dequantize_absmax(double_quantize(quantized.absmax, block_size)))


def _check_block_size(block_size: int) -> None:
    if block_size < 2 or block_size % 2:
        raise ValueError(f"block_size must be even and at least 2 (two codes share a byte), got {block_size}")


# -- the layer ---------------------------------------------------------------------------------------------------------


def qlora_linear(
    x: Float[Tensor, "*batch i"],
    quantized: QuantizedWeight,
    lora_A: Float[Tensor, "r i_a"],
    lora_B: Float[Tensor, "o_b r_b"],
    scaling: float,
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "*batch o"]:
    """Return x Ŵ^T + s (x A^T) B^T (+ bias), eq. 5: the codes are decoded for this product and forgotten.

    For scales that went through 8 bits (eq. 6) pass `double_quantized(quantized)`.

    Raises:
        ValueError: shapes that do not fit.
    """
    return lora_linear(x, dequantize_blockwise(quantized), lora_A, lora_B, scaling, bias)


def qlora_input_gradient(
    grad_output: Float[Tensor, "*batch o"],
    dequantized: Float[Tensor, "o_w i"],
    lora_A: Float[Tensor, "r i_a"],
    lora_B: Float[Tensor, "o_b r_b"],
    scaling: float,
) -> Float[Tensor, "*batch i"]:
    """Return G Ŵ + s (G B) A, what the layer hands back; codes and scales are constants and get nothing.

    Raises:
        ValueError: shapes that do not fit.
    """
    (o, i), r = dequantized.shape, len(lora_A)
    if grad_output.shape[-1] != o or lora_A.shape != (r, i) or lora_B.shape != (o, r):
        shapes = ", ".join(str(tuple(t.shape)) for t in (grad_output, dequantized, lora_A, lora_B))
        raise ValueError(f"gradient, weight, A and B must be (…, out), (out, in), (r, in), (out, r), got {shapes}")
    return grad_output @ dequantized + scaling * (grad_output @ lora_B) @ lora_A


# -- what it loses -----------------------------------------------------------------------------------------------------


def quantization_error(weight: Float[Tensor, "*shape"], reconstructed: Float[Tensor, "*shape"]) -> dict[str, float]:
    """Return mse, mae and max_abs of the difference, and sqnr_db, the signal's power above its power in decibels."""
    distance = (reconstructed - weight).abs()
    return {
        "mse": float(mse(weight, reconstructed)),
        "mae": float(distance.mean()),
        "max_abs": float(distance.max()),
        "sqnr_db": float(sqnr_db(weight, reconstructed)),
    }


def code_usage(codes: Integer[Tensor, "..."], n_levels: int) -> Float[Tensor, " n_levels"]:
    """Return the share of values that got each code, in float64.

    Raises:
        ValueError: no codes, or one out of 0..n_levels - 1.
    """
    if not codes.numel():
        raise ValueError("codes must not be empty")
    if not 0 <= int(codes.min()) <= int(codes.max()) < n_levels:
        raise ValueError(f"codes must be in 0..{n_levels - 1}, got {int(codes.min())}..{int(codes.max())}")
    return torch.bincount(codes.flatten().long(), minlength=n_levels).double() / codes.numel()


def code_entropy(codes: Integer[Tensor, "..."], n_levels: int) -> float:
    """Return the entropy of the codes in bits, at most log2(n_levels); less = some codes are hardly used."""
    return float(entropy(code_usage(codes, n_levels))) / math.log(2)


# -- what it costs -----------------------------------------------------------------------------------------------------


def bits_per_parameter(block_size: int, double_quant: bool, absmax_block: int = 256, bits: float = 4) -> float:
    """Return bits + the share of a scale: 32 / B, or 8 / B + 32 / (B · absmax_block) with double quantization.

    (One more number, the mean of all scales, is left out: it serves a whole matrix.)

    >>> bits_per_parameter(64, False), bits_per_parameter(64, True)
    (4.5, 4.126953125)

    Raises:
        ValueError: block_size below 2 or odd, absmax_block below 1, negative bits.
    """
    _check_block_size(block_size)
    scale_bits = bits_per_weight(8, absmax_block, scale_bits=32) if double_quant else 32
    return bits_per_weight(bits, block_size, scale_bits)


METHODS = ("full16", "lora16", "qlora")
TRAINED_BYTES = {"gradients": 2, "optimizer": 8}  # of a trained weight: a 16-bit gradient, two fp32 moments of Adam


def finetuning_memory(n_params: int, *, method: str, lora_params: int, block_size: int = 64) -> dict[str, float]:
    """Return the bytes of weights, gradients, optimizer and adapters; activations are not counted.

    Args:
        method: "full16" trains all 16-bit weights (12 bytes each in all), "lora16" only the adapters beside them,
            "qlora" the same beside NF4 weights with double quantization.
        lora_params: weights of all adapters, 16 bits each; full16 has none.

    Raises:
        ValueError: unknown method, a negative number of weights, block_size below 2 or odd.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    bits = bits_per_parameter(block_size, True) if method == "qlora" else 16
    weights = model_bytes(n_params, bits)
    adapters = model_bytes(0 if method == "full16" else lora_params, 16)
    trained = n_params if method == "full16" else lora_params
    return {
        "weights": weights,
        **{part: float(size * trained) for part, size in TRAINED_BYTES.items()},
        "adapters": adapters,
    }


def paged_optimizer_schedule(
    activation_bytes: Float[Tensor, " T"] | Int[Tensor, " T"],
    fixed_bytes: float,
    optimizer_bytes: float,
    page_bytes: float,
    gpu_bytes: float,
) -> tuple[Int[Tensor, " T"], Float[Tensor, " T"]]:
    """Simulate a paged optimizer: in every step as many of its pages stay on the GPU as fit beside the rest.

    Args:
        activation_bytes: of every step.
        fixed_bytes: weights, adapters and gradients, which never leave.

    Returns:
        pages on the GPU, and bytes that moved before the step: above 0 back to the GPU, below 0 out to the CPU. The
        first step finds its pages where they are.

    Raises:
        ValueError: a step whose activations do not fit even without the optimizer, a page of no bytes, negative bytes.
    """
    if not page_bytes > 0 or min(fixed_bytes, optimizer_bytes, float(activation_bytes.min())) < 0:
        raise ValueError("page_bytes must be above 0 and all other bytes at least 0")
    free = gpu_bytes - fixed_bytes - activation_bytes.double()
    if free.min() < 0:
        raise ValueError(
            f"gpu_bytes must hold the fixed bytes and the activations, {gpu_bytes - float(free.min()):g} in the "
            f"fullest step, got {gpu_bytes:g}"
        )
    resident = (free / page_bytes).floor().clamp(max=math.ceil(optimizer_bytes / page_bytes)).long()
    moved = page_bytes * resident.diff(prepend=resident[:1]).double()
    return resident, moved


# -- what the video shows ----------------------------------------------------------------------------------------------

BLOCK_SIZES = (16, 32, 64, 128, 256)
SCALING = 2.0  # lora_alpha / r of all adapters
GB = 1e9
# LLaMA-65B, arXiv 2302.13971, Table 2: (out, in) of the matrices of one of 80 layers; the paper adapts all, rank 64.
LLAMA_PARAMS, LLAMA_LAYERS, LLAMA_WIDTH, LLAMA_CHANNELS, LLAMA_RANK = 65 * 10**9, 80, 8192, 22016, 64
LLAMA_SHAPES = 4 * [(LLAMA_WIDTH, LLAMA_WIDTH)] + 2 * [(LLAMA_CHANNELS, LLAMA_WIDTH)] + [(LLAMA_WIDTH, LLAMA_CHANNELS)]
GPU_BYTES = 48 * 10**9  # "a single 48GB GPU"
# The simulated timeline: tokens of twelve mini-batches of four texts, two of them nearly four times 2048.
BATCH_TOKENS = (1024, 1536, 1200, 2048, 1400, 7936, 8192, 1800, 1100, 4096, 1300, 1600)
PAGE_BYTES = 4 * 10**8  # what one drawn tile stands for; a real page is far smaller


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    code: str = option("nf4", "levels of the 4-bit codes", choices=CODES)
    block_size: int = option(64, "weights that share one scale", choices=BLOCK_SIZES)
    double_quant: bool = option(True, "quantize the scales too")
    r: int = option(4, "rank of the adapters", minimum=1, maximum=8)
    layer: int = option(1, "decoder layer to show", minimum=0, maximum=2)
    module: str = option("q_proj", "matrix to show", choices=("q_proj", "k_proj", "v_proj", "o_proj"))
    train_steps: int = option(150, "optimizer steps of each run", minimum=20, maximum=400)
    seed: int = option(0, "of the adapters and of the order of the texts", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class Memory:
    """Fine-tuning a model of 65 billion weights in three ways, a row each, in GB (10^9 bytes), without activations."""

    method: tuple[str, ...]
    weights: Float[Tensor, " M"]
    gradients: Float[Tensor, " M"]
    optimizer: Float[Tensor, " M"]
    adapters: Float[Tensor, " M"]
    total: Float[Tensor, " M"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. One matrix (32 x 32) and its blocks; numbers by code book are for the whole model.

    L levels of config.code, S = block_size, N blocks of the matrix. What is called decoded or dequantized went through
    8-bit scales if config.double_quant, but for the one block of chapter 2.
    """

    config: Config
    matrix: str
    weight: Float[Tensor, "o i"]
    codes: Int[Tensor, "o i"]
    dequantized: Float[Tensor, "o i"]
    error: Float[Tensor, "o i"]  # dequantized - weight
    block_values: Float[Tensor, " S"]  # the first block
    block_absmax: float
    block_normalized: Float[Tensor, " S"]
    block_codes: Int[Tensor, " S"]
    block_packed: Int[Tensor, " half"]  # its bytes, two codes each
    block_levels: Float[Tensor, " S"]  # what the codes stand for, in -1..1
    block_dequantized: Float[Tensor, " S"]  # by its exact absmax
    absmax: Float[Tensor, " N"]
    absmax_codes: Int[Tensor, " N"]  # 8-bit
    absmax_dequantized: Float[Tensor, " N"]
    absmax_mean: float
    absmax_centered: Float[Tensor, " N"]  # absmax - its mean, what the 8 bits hold
    absmax_step: float
    levels: Float[Tensor, " L"]
    level_codes: Int[Tensor, " L"]  # 0, 1 …
    boundaries: Float[Tensor, " gaps"]  # halfway between neighbors of `levels`
    levels_nf4: Float[Tensor, " 16"]
    levels_int4: Float[Tensor, " 15"]
    levels_fp4: Float[Tensor, " 15"]
    normalized_histogram: Int[Tensor, " 64"]  # of all block matrices
    histogram_edges: Float[Tensor, " 65"]
    code_usage: dict[str, Tensor]  # share of the weights that got each level, by code book
    code_entropy: dict[str, float]  # bits
    mse: dict[str, float]
    gaussian_mse: dict[str, float]  # the same on a million draws of N(0, 1), blocks of 64
    block_sizes: Int[Tensor, " K"]
    mse_by_block: Float[Tensor, " K"]  # of config.code
    bits_by_block: Float[Tensor, " K"]  # per weight, with config.double_quant
    loss: dict[str, float]  # held-out nats per token on the model's own texts
    loss_added: dict[str, float]  # above float32's; below 0 if a code happens to help
    entropy_floor: float
    finetune_steps: Int[Tensor, " steps"]  # 1, 2 …
    finetune_curves: dict[str, Tensor]  # loss of every step's batch; both runs see the same texts
    finetune_final: dict[str, float]  # held-out loss of the dialect
    base_codes_changed: int  # by the training
    num_codes: int
    grad_norms: dict[str, float | None]  # of all adapters after training, on the series story; None = no gradient
    lora_A: Float[Tensor, "r i"]  # of the shown matrix, after training
    lora_B: Float[Tensor, "o r"]
    token: str  # of the series story, whose way through the layer is shown
    x: Float[Tensor, " i"]
    base_output: Float[Tensor, " o"]  # Ŵ x
    coords: Float[Tensor, " r"]  # A x
    adapter_output: Float[Tensor, " o"]
    output: Float[Tensor, " o"]
    grad_output: Float[Tensor, " o"]  # of the story's loss
    grad_through_base: Float[Tensor, " i"]  # G Ŵ
    grad_coords: Float[Tensor, " r"]  # s G B, at the bottleneck of the adapter
    grad_through_adapter: Float[Tensor, " i"]  # s (G B) A
    grad_input: Float[Tensor, " i"]  # the sum of both ways
    grad_A: Float[Tensor, "r i"]  # over all tokens of the story
    grad_B: Float[Tensor, "o r"]
    memory_65b: Memory
    gpu_gb: float
    bits: dict[str, float]  # per weight
    saved_gb: float  # by double quantization, of 65 billion weights
    paging_tokens: Int[Tensor, " T"]  # simulated: tokens of each mini-batch
    paging_activations: Float[Tensor, " T"]  # GB
    paging_resident: Int[Tensor, " T"]  # optimizer pages on the GPU
    paging_evicted: Int[Tensor, " T"]  # and on the CPU
    paging_moved: Float[Tensor, " T"]  # GB, below 0 = out
    paging_fixed: float  # GB of weights, adapters and gradients
    paging_page: float  # GB


def memory_65b() -> Memory:
    """Return what fine-tuning LLaMA-65B takes, with adapters of rank 64 on every matrix as in the paper."""
    lora_params = lora_trainable_parameters(LLAMA_LAYERS, LLAMA_SHAPES, LLAMA_RANK)
    rows = [finetuning_memory(LLAMA_PARAMS, method=method, lora_params=lora_params) for method in METHODS]
    columns = {part: torch.tensor([row[part] / GB for row in rows], dtype=torch.float64) for part in rows[0]}
    return Memory(METHODS, **columns, total=torch.stack(list(columns.values())).sum(dim=0))


def paging() -> dict[str, Any]:
    """Return the simulated memory timeline of QLoRA on LLaMA-65B; only each layer's input is kept for the backward."""
    memory = memory_65b()
    fixed = float(memory.weights[-1] + memory.adapters[-1] + memory.gradients[-1]) * GB
    tokens = torch.tensor(BATCH_TOKENS)
    activations = 2 * LLAMA_LAYERS * LLAMA_WIDTH * tokens
    optimizer = float(memory.optimizer[-1]) * GB
    resident, moved = paged_optimizer_schedule(activations, fixed, optimizer, PAGE_BYTES, GPU_BYTES)
    return {
        "paging_tokens": tokens,
        "paging_activations": activations / GB,
        "paging_resident": resident,
        "paging_evicted": math.ceil(optimizer / PAGE_BYTES) - resident,
        "paging_moved": moved / GB,
        "paging_fixed": fixed / GB,
        "paging_page": PAGE_BYTES / GB,
    }


def bits(block_size: int) -> dict[str, float]:
    """Return bits per weight: codes alone, scales in fp32 and in 8 bits, both sums, and what is saved."""
    plain, double = (bits_per_parameter(block_size, double_quant) for double_quant in (False, True))
    return {
        "codes": 4.0,
        "scales": plain - 4,
        "scales_double_quantized": double - 4,
        "total": plain,
        "total_double_quantized": double,
        "saved": plain - double,
    }


def trace(config: Config) -> Trace:
    """Put the tiny LM into 4 bits, and teach it a dialect with adapters beside float32 and beside 4-bit weights."""
    from internals_math import qlora_experiment as experiment  # it is built on the functions above

    return Trace(
        config=config,
        **experiment.one_matrix(config),
        **experiment.code_books(config),
        **experiment.losses(config),
        **experiment.fine_tuning(config),
        memory_65b=memory_65b(),
        gpu_gb=GPU_BYTES / GB,
        bits=bits(config.block_size),
        saved_gb=model_bytes(LLAMA_PARAMS, bits(config.block_size)["saved"]) / GB,
        **paging(),
    )
