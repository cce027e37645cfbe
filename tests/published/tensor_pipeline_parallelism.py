"""What Megatron-LM's papers, GPipe and zero-bubble scheduling print."""

from fractions import Fraction

from internals_math.model_shapes import activation_bytes_per_layer
from internals_math.pipeline_schedule import bubble_fraction, bubble_ratio, schedule, simulate, zero_bubble_sizes
from internals_math.tensor_pipeline_parallelism import (
    SEQ_LEN,
    VOCAB_SIZE,
    gpt_parameters,
    tp_elements_per_layer,
    training_days,
)
from tests.published import Published

NARAYANAN = "Megatron-LM, arXiv 2104.04473"
KORTHIKANTI = "Activation recomputation, arXiv 2205.05198"
ZERO_BUBBLE = "Zero bubble, arXiv 2401.10241"
GPIPE = "GPipe, arXiv 1811.06965"

PARAMETERS = {  # layers, hidden size: billions
    (24, 2304): 1.7, (30, 3072): 3.6, (36, 4096): 7.5, (40, 6144): 18.4, (48, 8192): 39.1, (60, 10240): 76.1,
    (80, 12288): 145.6, (96, 16384): 310.1, (105, 20480): 529.6, (128, 25600): 1008.0,
}  # fmt: skip


def _billions(layers: int, hidden: int):
    return lambda: gpt_parameters(layers, hidden, VOCAB_SIZE, SEQ_LEN) / 1e9


def _bubble(v: int, of_total: bool):
    """p = 4, m = 8 and t_b = 2 t_f, simulated."""

    def ours() -> float:
        line = simulate(schedule("interleaved", 4, 8, v), 4 * v, Fraction(1, v), Fraction(2, v))
        return float(line.bubble[0] / (line.makespan if of_total else 24))

    return ours


def _peak() -> float:
    """Rank 0 of eight with two chunks each, against plain 1F1B."""
    ours = simulate(schedule("interleaved", 8, 16, 2), 16, 1, 2).peak_in_flight[0] / 2
    return ours / simulate(schedule("1f1b", 8, 16), 8, 1, 2).peak_in_flight[0]


def _scores(heads: int, hidden: int):
    """The term 5 a s / h: what a layer's scores add per token and channel."""

    def ours() -> float:
        sizes = (SEQ_LEN, 1, hidden, heads)
        kept = activation_bytes_per_layer(*sizes) - activation_bytes_per_layer(*sizes, recompute="selective")
        return kept / (SEQ_LEN * hidden)

    return ours


def _zero_bubble(name: str):
    return lambda: float(zero_bubble_sizes(2, 1, 1, 1)[name])


def _layer_bytes(mode: str):
    """GPT-3's layer on eight ranks, in units of s b h bytes."""
    return lambda: activation_bytes_per_layer(2048, 1, 12288, 96, 8, mode) / (2048 * 12288)


ROWS = (
    *(
        Published(
            f"parameters, {layers} layers x {hidden}, billions",
            _billions(layers, hidden),
            printed,
            (0.05 + 1e-9) / printed,
            f"{NARAYANAN}, table 1",
        )
        for (layers, hidden), printed in PARAMETERS.items()
    ),
    Published("GPT-3's shape, billions", _billions(96, 12288), 174.6, 0.0003, f"{NARAYANAN}, eq. 2"),
    Published(
        "175B, 300B tokens, 1024 A100, days",
        lambda: training_days(300e9, 175e9, 1024, 140e12),
        34,
        0.5 / 34,
        f"{NARAYANAN}, section 5.1",
    ),
    Published(
        "1T, 450B tokens, 3072 A100, days",
        lambda: training_days(450e9, 1e12, 3072, 163e12),
        84,
        1 / 84,
        f"{NARAYANAN}, section 5.1",
    ),
    Published("p = 4, m = 8: bubble to ideal", _bubble(1, False), 0.375, 0, f"{NARAYANAN}, section 2.2.1"),
    Published("p = 4, m = 8: bubble of total", _bubble(1, True), 9 / 33, 1e-12, f"{GPIPE}, section 2.3"),
    Published("p = 4, m = 8, v = 2: to ideal", _bubble(2, False), 0.1875, 0, f"{NARAYANAN}, section 2.2.2"),
    Published("m = 4 p, large p: bubble to ideal, at most", lambda: bubble_ratio(10**6, 4 * 10**6), 0.25, 1e-5, GPIPE),
    Published("m = 4 p, large p: of total, at most", lambda: bubble_fraction(10**6, 4 * 10**6), 0.2, 1e-5, GPIPE),
    Published(
        "a layer on 8, in b s h", lambda: tp_elements_per_layer(1, 1, 1, 8), 7, 1e-12, f"{NARAYANAN}, section 3.2"
    ),
    Published("peak activations, p = 8, v = 2", _peak, 1 + 7 / 16, 0, f"{KORTHIKANTI}, section 4.2.3"),
    *(
        Published(f"5as/h, {name}", _scores(heads, hidden), printed, 0.05 / printed, f"{KORTHIKANTI}, section 5")
        for name, heads, hidden, printed in (
            ("22B", 64, 6144, 106.7),
            ("175B", 96, 12288, 80),
            ("530B", 128, 20480, 64),
            ("1T", 160, 25600, 64),
        )
    ),
    Published("a layer's activations, t = 8", _layer_bytes("tensor"), 10 + 24 / 8 + 80 / 8, 0, f"{KORTHIKANTI}, eq. 2"),
    Published("with sequence parallelism", _layer_bytes("tensor+sequence"), (34 + 80) / 8, 0, f"{KORTHIKANTI}, eq. 4"),
    *(
        Published(f"bubble of {name}, equal times", _zero_bubble(name), value, 0, f"{ZERO_BUBBLE}, table 2")
        for name, value in (("1f1b", 3), ("zb-h1", 1), ("zb-h2", 0))
    ),
)
