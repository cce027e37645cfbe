"""ZeRO: the model states of data-parallel training, kept once instead of once on every GPU.

Notation: Ψ = num_params, N = dp_degree (data-parallel ranks), K = optimizer_bytes per parameter, 12 for mixed-precision
Adam: float32 master copy, momentum and variance. Weights and gradients take 2 bytes each.
Memory is counted in bytes (GB = 10⁹), communication in elements.
Source: Rajbhandari et al. 2019, arXiv 1910.02054: sections 3.1, 5 and 7, figure 1, table 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.collectives import Schedule, ring_all_gather, ring_all_reduce, ring_reduce_scatter
from internals_math.trace import TopicConfig, TopicTrace, option
from internals_math.zero_trainer import (
    STAGES,
    StepRecord,
    ZeroTrainer,
    adam_update,
    check_degree,
    check_stage,
    flatten,
    measure_states,
    partition,
    unflatten,
)

__all__ = [
    "STAGES", "Config", "ModelStateBytes", "Schedule", "StepRecord", "Trace", "ZeroTrainer", "adam_update",
    "communication_volume", "flatten", "max_model_size", "measure_states", "model_state_bytes", "partition",
    "ring_all_gather", "ring_all_reduce", "ring_reduce_scatter", "trace", "unflatten",
]  # fmt: skip

ADAM_BYTES = 12
TRILLION = 1e12
DEVICE_BYTES = 32e9  # the paper's V100
SCALING_GPUS = tuple(2**k for k in range(11))


# -- the bill ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelStateBytes:
    """What one rank keeps of the model states, in bytes."""

    params: float
    grads: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.params + self.grads + self.optimizer


def model_state_bytes(
    num_params: float,
    stage: int,
    dp_degree: int,
    *,
    optimizer_bytes: float = ADAM_BYTES,
    param_bytes: float = 2,
    grad_bytes: float = 2,
    padded: bool = False,
) -> ModelStateBytes:
    """Return the bytes of model states per device (sections 5.1 to 5.3), activations and buffers not included.

    Stage 1 cuts the optimizer states into N parts, stage 2 the gradients too, stage 3 the parameters too.

    Args:
        num_params: Ψ; of a single layer if each layer is cut on its own.
        optimizer_bytes, param_bytes, grad_bytes: per parameter; the defaults are those of mixed-precision Adam.
        padded: count a part as ⌈Ψ/N⌉ elements, as a rank really holds it, in place of Ψ/N.

    Raises:
        ValueError: unknown stage, dp_degree below 1, a negative size.

    >>> model_state_bytes(7.5e9, 3, 64).total / 1e9
    1.875
    """
    check_stage(stage)
    check_degree(dp_degree)
    sizes = {
        "num_params": num_params,
        "optimizer_bytes": optimizer_bytes,
        "param_bytes": param_bytes,
        "grad_bytes": grad_bytes,
    }
    for name, size in sizes.items():
        if not size >= 0:
            raise ValueError(f"{name} must be at least 0, got {size}")
    part = math.ceil(num_params / dp_degree) if padded else num_params / dp_degree
    return ModelStateBytes(
        params=param_bytes * (part if stage >= 3 else num_params),
        grads=grad_bytes * (part if stage >= 2 else num_params),
        optimizer=optimizer_bytes * (part if stage >= 1 else num_params),
    )


def max_model_size(
    memory_bytes: float,
    stage: int,
    dp_degree: int,
    *,
    optimizer_bytes: float = ADAM_BYTES,
    param_bytes: float = 2,
    grad_bytes: float = 2,
) -> float:
    """Return how many parameters' model states fill the memory of one device: the inverse of `model_state_bytes`.

    Raises:
        ValueError: negative memory, or as `model_state_bytes`.
    """
    if not memory_bytes >= 0:
        raise ValueError(f"memory_bytes must be at least 0, got {memory_bytes}")
    one = model_state_bytes(
        1, stage, dp_degree, optimizer_bytes=optimizer_bytes, param_bytes=param_bytes, grad_bytes=grad_bytes
    )
    return memory_bytes / one.total


def communication_volume(
    num_params: float, stage: int, dp_degree: int, *, exact: bool = False, accumulation_steps: int = 1
) -> dict[str, float]:
    """Return the elements that each rank sends per optimizer step (section 7), by collective and in total.

    An all-reduce counts as the reduce-scatter and the all-gather that it is made of.

    Args:
        exact: what the ring sends, (N - 1)/N of Ψ for each collective, in place of the paper's Ψ for large N.
        accumulation_steps: micro-batches per step. Stage 2 reduces the gradients of each of them, since it keeps no
            full ones; stage 3 also gathers the weights for each of them.

    Raises:
        ValueError: unknown stage, dp_degree or accumulation_steps below 1, a negative size.
    """
    check_stage(stage)
    check_degree(dp_degree)
    if accumulation_steps < 1 or not num_params >= 0:
        raise ValueError(
            f"accumulation_steps must be at least 1 and num_params at least 0, "
            f"got {accumulation_steps} and {num_params}"
        )
    once = num_params * (dp_degree - 1) / dp_degree if exact else num_params
    volume: dict[str, float] = {
        "reduce_scatter": once * (accumulation_steps if stage >= 2 else 1),
        "gather_forward": once * accumulation_steps if stage == 3 else 0,
        "gather_backward": once * accumulation_steps if stage == 3 else 0,
        "gather_updated": 0 if stage == 3 else once,
    }
    return volume | {"total": sum(volume.values())}


# -- what the video shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    """What the video shows; each field can be changed with `--set name=value`."""

    dp_degree: int = option(4, "simulated ranks that train the tiny LM", choices=(2, 4, 8))
    stage: int = option(3, "ZeRO stage of the shown schedule and memory line", minimum=0, maximum=3)
    train_steps: int = option(20, "optimizer steps of each run", minimum=1, maximum=60)
    model_billion: float = option(7.5, "parameters of the large model, in billions", minimum=0.1, maximum=1000)
    gpus: int = option(64, "GPUs that train the large model", minimum=1, maximum=1024)
    seed: int = option(0, "of the first weights and of the order of the texts", minimum=0, maximum=99)


@dataclass(frozen=True, eq=False)
class RankEvents:
    """What every rank did in one step, in its own order; rows of one rank follow each other.

    Events: gather, forward, release, backward, gradient, reduce_scatter, all_reduce, all_gather, update.
    """

    rank: Int[Tensor, " E"]
    event: tuple[str, ...]
    layer: Int[Tensor, " E"]  # -1: all of them
    order: Int[Tensor, " E"]  # not time: ranks go through the same events side by side
    elements_sent: Int[Tensor, " E"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    """Everything the scene draws. Keys of dicts: "stage 0" to "stage 3"; columns of three: params, grads, optimizer.

    The tiny LM is trained from its first weights: N ranks with one micro-batch each. Bytes of the tiny LM are measured
    on live tensors between backward and update. U = layers, T = train_steps, G = numbers of GPUs.
    """

    config: Config
    state_names: tuple[str, ...]  # what the bytes of one parameter are made of
    bytes_per_param: Int[Tensor, " 5"]
    bytes_formula: Float[Tensor, "4 3"]  # the large model, per GPU
    total_bytes: Float[Tensor, " 4"]
    total_gigabytes: Float[Tensor, " 4"]
    device_bytes: float  # of the paper's GPU
    device_gigabytes: float
    bytes_measured: Int[Tensor, "4 N 3"]  # the tiny LM
    bytes_expected: Int[Tensor, "4 3"]  # the formula with padded parts, summed over layers
    num_params: int
    num_params_padded: int
    layer_names: tuple[str, ...]
    layer_sizes: Int[Tensor, " U"]
    partition_owner: Int[Tensor, "32 32"]  # rank that owns the middle of each of 1024 equal pieces of the flat vector
    crop_name: str
    weight_crop: Float[Tensor, "12 12"]
    crop_owner: Int[Tensor, "12 12"]
    ring_schedule_rs: Schedule  # of one layer's real gradient
    ring_schedule_ag: Schedule
    ring_weights: Int[Tensor, " N"]  # the weight of each chunk whose gradient is followed: the largest on average
    ring_values: Float[Tensor, "states N N"]  # its sums at each rank (row), reduce-scatter, then all-gather
    ring_complete: Bool[Tensor, "states N N"]  # where the sum over all ranks is there
    ring_mean: Float[Tensor, " N"]  # the averaged gradient of each followed weight, as its owner gets it
    ring_sent: Int[Tensor, " states"]  # elements each rank has sent so far
    gantt: RankEvents  # of the first step at config.stage
    memory_timeline: dict[str, Int[Tensor, "events 3"]]  # of rank 0 in the first step
    timeline_events: dict[str, tuple[str, ...]]  # what happened before each row
    timeline_layers: dict[str, Int[Tensor, " events"]]
    memory_borrowed: dict[str, Int[Tensor, " events"]]  # bytes of parameters beyond what rank 0 keeps
    loss_curves: dict[str, Float[Tensor, " T"]]
    loss_single_device: Float[Tensor, " T"]  # the same rows as one batch of one process
    loss_float32: Float[Tensor, " T"]  # N ranks, stage 0, with 32-bit weights and gradients
    max_abs_diff_weights: dict[str, float]  # from stage 0, also of "single device" and "float32"
    max_abs_diff_loss: dict[str, float]
    max_abs_update: float  # how far the farthest weight came, to compare with
    elements_sent: dict[str, int]  # by one rank in one step
    elements_sent_ratio: dict[str, float]  # to stage 0
    volume_formula: dict[str, float]  # exact ring count for the tiny LM
    scaling_gpus: Int[Tensor, " G"]
    scaling: dict[str, Float[Tensor, " G"]]  # bytes per GPU, the large model
    scaling_trillion: dict[str, Float[Tensor, " G"]]  # bytes per GPU, 10^12 parameters
    scaling_trillion_gigabytes: dict[str, Float[Tensor, " G"]]
    trillion_total_terabytes: float
    trillion_fits_at: int  # the first number of GPUs of the grid at which stage 3 fits the device
    fit_table: Float[Tensor, " 4"]  # the largest model on the device at config.gpus, parameters
    fit_table_billion: Float[Tensor, " 4"]


def trace(config: Config) -> Trace:
    """Train the tiny LM at every stage, and write the large model's bill."""
    from internals_math import zero_experiment as experiment  # it is built on the functions above

    runs = {f"stage {stage}": experiment.train(config, stage, title=f"ZeRO stage {stage}") for stage in STAGES}
    size = config.model_billion * 1e9
    formula = torch.tensor([_columns(size, stage, config.gpus) for stage in STAGES], dtype=torch.float64)
    gpus = torch.tensor(SCALING_GPUS)
    trillion = _scaling(TRILLION)
    fits = gpus[trillion["stage 3"] <= DEVICE_BYTES]
    largest = torch.tensor([max_model_size(DEVICE_BYTES, stage, config.gpus) for stage in STAGES], dtype=torch.float64)
    return Trace(
        config=config,
        state_names=("weight", "gradient", "master copy", "momentum", "variance"),
        bytes_per_param=torch.tensor([2, 2, 4, 4, 4]),
        bytes_formula=formula,
        total_bytes=formula.sum(dim=1),
        total_gigabytes=formula.sum(dim=1) / 1e9,
        device_bytes=DEVICE_BYTES,
        device_gigabytes=DEVICE_BYTES / 1e9,
        scaling_gpus=gpus,
        scaling=_scaling(size),
        scaling_trillion=trillion,
        scaling_trillion_gigabytes={name: line / 1e9 for name, line in trillion.items()},
        trillion_total_terabytes=float(trillion["stage 0"][0]) / 1e12,
        trillion_fits_at=int(fits[0]),
        fit_table=largest,
        fit_table_billion=largest / 1e9,
        **experiment.memory(config, runs),
        **experiment.ownership(config),
        **experiment.ring(config),
        **experiment.training(config, runs),
    )


def _columns(num_params: float, stage: int, dp_degree: int) -> list[float]:
    state = model_state_bytes(num_params, stage, dp_degree)
    return [state.params, state.grads, state.optimizer]


def _scaling(num_params: float) -> dict[str, Tensor]:
    return {
        f"stage {stage}": torch.tensor(
            [model_state_bytes(num_params, stage, gpus).total for gpus in SCALING_GPUS], dtype=torch.float64
        )
        for stage in STAGES
    }
