"""Tensor and pipeline parallelism: cut every layer, or cut between layers, and what each cut costs.

Notation (2104.04473): t = tensor-, p = pipeline-, d = data-parallel size, n = t·p·d GPUs; B = global batch, b =
microbatch size, m = B/(d·b) microbatches; s = sequence length, h = hidden size, l = layers, a = heads, V = vocabulary,
v = chunks of layers per pipeline rank. Its parts: `tensor_parallel` (layers), `pipeline_schedule` (bubbles).
Sources: Shoeybi et al. 2019 (Megatron-LM), arXiv 1909.08053; Narayanan et al. 2021, arXiv 2104.04473; Korthikanti et
al. 2022, arXiv 2205.05198.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math.checks import check_sizes
from internals_math.model_shapes import activation_bytes_per_layer, preset
from internals_math.pipeline_schedule import (
    KINDS,
    Op,
    TimedOp,
    Timeline,
    bubble_fraction,
    bubble_ratio,
    schedule,
    simulate,
    zero_bubble_sizes,
)
from internals_math.tensor_parallel import (
    ParallelMLP,
    RingTrace,
    all_reduce,
    column_parallel,
    parallel_attention,
    parallel_mlp,
    parallel_mlp_backward,
    ring_all_reduce_states,
    row_parallel,
    split_columns,
    split_rows,
    vocab_parallel_cross_entropy,
)
from internals_math.trace import TopicConfig, TopicTrace, option

__all__ = [
    "KINDS", "Config", "Op", "ParallelMLP", "RingTrace", "TimedOp", "Timeline", "Trace", "activation_bytes_per_layer",
    "all_reduce", "all_reduce_time", "bubble_fraction", "bubble_ratio", "column_parallel", "gpt_parameters",
    "iteration_flops", "parallel_attention", "parallel_mlp", "parallel_mlp_backward", "pp_elements_per_boundary",
    "ring_all_reduce_states", "row_parallel", "schedule", "simulate", "split_columns", "split_rows",
    "tp_elements_per_layer", "trace", "training_days", "vocab_parallel_cross_entropy", "zero_bubble_sizes",
]  # fmt: skip

SECONDS_PER_DAY = 86_400

# -- what the cuts cost ------------------------------------------------------------------------------------------------


def tp_elements_per_layer(b: int, s: int, h: int, t: int) -> float:
    """Return the elements that a rank sends per layer and microbatch: four all-reduces of b s h, 8 b s h (t - 1)/t.

    Two are of the forward pass (after attention and after the MLP), two of the backward pass (2104.04473, section 3.2).

    Raises:
        ValueError: a size below 1.
    """
    check_sizes(b=b, s=s, h=h, t=t)
    return 4 * 2 * (t - 1) / t * b * s * h


def pp_elements_per_boundary(b: int, s: int, h: int) -> int:
    """Return the elements that cross from one stage to the next per microbatch and direction: b s h.

    Raises:
        ValueError: a size below 1.
    """
    check_sizes(b=b, s=s, h=h)
    return b * s * h


def all_reduce_time(num_bytes: float, t: int, alpha: float, beta: float) -> float:
    """Return the seconds of a ring all-reduce: 2 (t - 1) alpha + 2 (t - 1)/t · bytes / beta.

    Args:
        alpha: seconds until a message arrives, whatever its size.
        beta: bytes per second of a link in one direction.

    Raises:
        ValueError: t below 1, negative bytes or alpha, beta not above 0.
    """
    check_sizes(t=t)
    if not (num_bytes >= 0 and alpha >= 0 and beta > 0):
        raise ValueError(f"bytes and alpha must be at least 0, beta above 0, got {num_bytes}, {alpha} and {beta}")
    return 2 * (t - 1) * alpha + 2 * (t - 1) / t * num_bytes / beta


def gpt_parameters(l: int, h: int, V: int, s: int) -> int:  # noqa: E741 - the paper's letters
    """Return P = 12 l h² (1 + 13/(12 h) + (V + s)/(12 l h)), eq. 2 of 2104.04473.

    It is the exact count of a GPT with biases, a tied head and learned positions, but for the final norm's 2 h.

    Raises:
        ValueError: a size below 1.

    >>> gpt_parameters(96, 12288, 51200, 2048)
    174615822336
    """
    check_sizes(l=l, h=h, V=V, s=s)
    return 12 * l * h**2 + 13 * l * h + (V + s) * h


def iteration_flops(B: int, s: int, l: int, h: int, V: int) -> float:  # noqa: E741
    """Return F = 96 B s l h² (1 + s/(6 h) + V/(16 l h)), eq. 3: one iteration with every forward pass run twice.

    A multiply-add is 2 FLOPs; recomputing all activations makes it 4 passes in place of 3.

    Raises:
        ValueError: a size below 1.
    """
    check_sizes(B=B, s=s, l=l, h=h, V=V)
    return 96 * B * s * l * h**2 * (1 + s / (6 * h) + V / (16 * l * h))


def training_days(T: float, P: float, n: int, X: float) -> float:
    """Return 8 T P / (n X), eq. 4, in days: T tokens, P parameters, n GPUs at X FLOP/s each, activations recomputed.

    Raises:
        ValueError: one of them is not above 0.
    """
    if not min(T, P, n, X) > 0:
        raise ValueError(f"T, P, n and X must be above 0, got {T}, {P}, {n} and {X}")
    return 8 * T * P / (n * X) / SECONDS_PER_DAY


# -- what the video shows ----------------------------------------------------------------------------------------------

CURVE = 64  # microbatches

# 2104.04473, table 1: layers, hidden size, tensor-, pipeline-parallel size and GPUs of the paper's weak-scaling runs.
TABLE_1 = (
    (24, 2304, 1, 1, 32), (30, 3072, 2, 1, 64), (36, 4096, 4, 1, 128), (40, 6144, 8, 1, 256), (48, 8192, 8, 2, 512),
    (60, 10240, 8, 4, 1024), (80, 12288, 8, 8, 1536), (96, 16384, 8, 16, 1920), (105, 20480, 8, 35, 2520),
    (128, 25600, 8, 64, 3072),
)  # fmt: skip
VOCAB_SIZE, SEQ_LEN = 51_200, 2048

# NVIDIA A100 datasheet and DGX A100: NVLink 600 GB/s both directions together; one 200 Gb/s InfiniBand port per GPU.
LINKS = {"NVLink": 300e9, "InfiniBand": 25e9}  # bytes per second in one direction
NODE = 8  # GPUs that NVLink joins


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    tensor_parallel: int = option(2, "ranks that share a layer", choices=(1, 2, 4))
    stages: int = option(4, "pipeline ranks", minimum=2, maximum=8)
    microbatches: int = option(8, "microbatches in flight per batch", minimum=1, maximum=16)
    virtual_chunks: int = option(2, "chunks of layers on each pipeline rank", minimum=1, maximum=4)
    backward_ratio: float = option(2.0, "time of a backward, in forwards", minimum=1, maximum=3)
    seed: int = option(0, "of the texts that the pipeline trains on", minimum=0, maximum=99)

    def check(self) -> None:
        if self.virtual_chunks > 1 and self.microbatches % self.stages:
            raise ValueError(
                f"microbatches ({self.microbatches}) must be divisible by stages ({self.stages}), or virtual_chunks be "
                f"1, got {self.virtual_chunks}"
            )


@dataclass(frozen=True, eq=False)
class Blocks:
    """A schedule as blocks in time, in the order in which they start; the unit of time is one forward of a rank."""

    rank: Int[Tensor, " E"]
    kind: tuple[str, ...]  # "F" or "B"
    stage: Int[Tensor, " E"]
    chunk: Int[Tensor, " E"]  # of the rank's v chunks
    microbatch: Int[Tensor, " E"]
    start: Float[Tensor, " E"]
    end: Float[Tensor, " E"]


@dataclass(frozen=True, eq=False)
class ModelTable:
    """Table 1 of 2104.04473, with the parameters by eq. 2 and the data-parallel size d = n / (t p)."""

    layers: Int[Tensor, " R"]
    hidden_size: Int[Tensor, " R"]
    tensor: Int[Tensor, " R"]
    pipeline: Int[Tensor, " R"]
    data: Int[Tensor, " R"]
    gpus: Int[Tensor, " R"]
    billions: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. The 8 x 8 matrices are corners of the tiny LM's: a problem of its own, on purpose.

    Keys of schedules: "gpipe", "1f1b", "interleaved". "filling" is GPipe with few microbatches. Durations are a model:
    a forward of a rank takes 1, a backward `backward_ratio`, a chunk 1/v of both, a transfer nothing.
    """

    config: Config
    tokens: tuple[str, ...]  # 6
    x: Float[Tensor, "6 8"]
    w_gate_shards: Float[Tensor, "t w 8"]
    w_up_shards: Float[Tensor, "t w 8"]
    w_down_shards: Float[Tensor, "t 8 w"]
    hidden_shards: Float[Tensor, "t 6 w"]
    partials: Float[Tensor, "t 6 8"]
    output: Float[Tensor, "6 8"]
    output_reference: Float[Tensor, "6 8"]
    max_abs_diff: float
    layer_weights: Float[Tensor, "3 8 8"]  # one corner of each layer, for the two ways to cut a stack
    gate_partials: Float[Tensor, "2 6 8"]  # the gate, cut by rows in two: what a rank would have before the sum
    gap_inputs: Float[Tensor, " 3"]  # u, w and u + w where the gap is widest
    gap_outputs: Float[Tensor, " 3"]  # silu of each
    gap_sum: float  # silu(u) + silu(w)
    nonlinear_gap: float  # |silu(u) + silu(w) - silu(u + w)|
    silu_inputs: Float[Tensor, " C"]
    silu_outputs: Float[Tensor, " C"]
    head_partials: Float[Tensor, "t 6 8"]  # real attention on t ranks, a corner
    head_output: Float[Tensor, "6 8"]
    layer_diffs: dict[str, float]  # largest difference to the unsplit layer: "mlp t=2", "attention t=4" …
    partial_shares: dict[str, float]  # how far a rank's partial is from the answer, relative to the answer's length
    ring_states: Float[Tensor, "7 4 4 2"]  # one token's partial outputs on four ranks, added up
    ring_sent: Int[Tensor, " 7"]
    ring_factors: Float[Tensor, " 7"]  # the same, in outputs: it ends at 2 (t - 1)/t
    filling_one: Blocks  # m = 1
    filling_some: Blocks  # m = half of config.microbatches
    filling_microbatches: Int[Tensor, " 3"]  # 1, half, all
    filling_to_ideal: Float[Tensor, " 3"]
    filling_of_total: Float[Tensor, " 3"]
    gpipe: Blocks
    one_f_one_b: Blocks
    interleaved: Blocks
    makespans: dict[str, float]
    ideal: float
    bubbles: dict[str, Float[Tensor, " p"]]  # idle time of each rank
    bubble_to_ideal: dict[str, float]
    bubble_of_total: dict[str, float]
    times: dict[str, Float[Tensor, " times"]]  # when something starts or ends
    in_flight: dict[str, Int[Tensor, "p times"]]  # forwards begun whose backward is not over
    peak_in_flight: dict[str, Int[Tensor, " p"]]
    peak_microbatches: dict[str, Float[Tensor, " p"]]  # the same activations in whole microbatches of a rank: peak / v
    curve_microbatches: Int[Tensor, " 64"]
    curve_to_ideal: Float[Tensor, " 64"]
    curve_of_total: Float[Tensor, " 64"]
    curve_interleaved: Float[Tensor, " 64"]  # to ideal, with v chunks; NaN where p does not divide m
    comm_bytes: dict[str, float]  # GPT-3 at b = 1, t = 8, 16 bit; sent by a rank per microbatch
    comm_times: dict[str, float]  # seconds, bandwidth alone
    link_bandwidths: dict[str, float]  # bytes per second in one direction
    table1: ModelTable
    pipeline_loss: float  # the real tiny LM, a layer on each of three ranks, in 1F1B order
    full_batch_loss: float
    pipeline_grad_diff: float  # largest difference of the gradients to those of the full batch
    pipeline_grad_max: float
    stored: Int[Tensor, " 3"]  # microbatches whose activations each rank held at most
    stored_expected: Int[Tensor, " 3"]  # min(p - i, m)


def trace(config: Config) -> Trace:
    """Cut the tiny LM's layers across ranks and its stack into stages, and lay the schedules out in time."""
    from internals_math import (
        tensor_pipeline_parallelism_experiment as experiment,
    )  # it is built on the functions above

    microbatches = torch.arange(1, CURVE + 1)
    p, v = config.stages, config.virtual_chunks
    return Trace(
        config=config,
        curve_microbatches=microbatches,
        curve_to_ideal=torch.tensor([bubble_ratio(p, m) for m in microbatches.tolist()], dtype=torch.float64),
        curve_of_total=torch.tensor([bubble_fraction(p, m) for m in microbatches.tolist()], dtype=torch.float64),
        curve_interleaved=torch.tensor(
            [bubble_ratio(p, m, v) if m % p == 0 else torch.nan for m in microbatches.tolist()], dtype=torch.float64
        ),
        link_bandwidths=dict(LINKS),
        table1=table_1(),
        **communication(),
        **experiment.small_problem(config),
        **experiment.real_layers(config),
        **experiment.ring(),
        **experiment.schedules(config),
        **experiment.real_pipeline(config),
    )


def table_1() -> ModelTable:
    """Return the models of table 1 with the parameters that eq. 2 gives them."""
    layers, hidden, tensor, pipeline, gpus = (torch.tensor(column) for column in zip(*TABLE_1, strict=True))
    sizes = [gpt_parameters(row[0], row[1], VOCAB_SIZE, SEQ_LEN) for row in TABLE_1]
    return ModelTable(
        layers=layers,
        hidden_size=hidden,
        tensor=tensor,
        pipeline=pipeline,
        data=gpus // (tensor * pipeline),
        gpus=gpus,
        billions=torch.tensor(sizes, dtype=torch.float64) / 1e9,
    )


def communication() -> dict[str, dict[str, float]]:
    """Return what a GPU of a GPT-3 sends per microbatch of one sequence, in bytes of 16 bits, and how long it takes.

    Twelve layers make a stage: 96 layers on eight stages.
    """
    shape = preset("gpt-3")
    layer = 2 * tp_elements_per_layer(1, SEQ_LEN, shape.hidden_size, NODE)
    boundary = 2 * pp_elements_per_boundary(1, SEQ_LEN, shape.hidden_size)
    times = {}
    for link, beta in LINKS.items():
        times[f"tensor, a layer, {link}"] = 4 * all_reduce_time(boundary, NODE, 0.0, beta)  # two in each direction
        times[f"pipeline, a boundary, {link}"] = 2 * boundary / beta
    return {
        "comm_bytes": {
            "tensor, a layer": layer,
            "tensor, a stage of 12 layers": 12 * layer,
            "pipeline, a boundary": 2.0 * boundary,  # activations forward, gradients back
        },
        "comm_times": times,
    }
