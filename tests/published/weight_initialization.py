"""Gains, spreads and growth that the papers print or that their formulas give."""

import math

from internals_math import tiny_lm
from internals_math.weight_initialization import (
    activation_moments,
    calculate_fan_in_and_fan_out,
    initial_loss_estimate,
    predict_forward,
    pytorch_gain,
    residual_growth,
    variance_fixed_point,
    variance_preserving_gain,
    weight_std,
)
from tests.published import Published

HE = "Delving Deep into Rectifiers, arXiv 1502.01852, section 2.2"
GPT2 = "Language Models are Unsupervised Multitask Learners, section 2.3: 1/√N, N residual branches"
QUADRATURE = "Gaussian integral, adaptive quadrature"


def _conv(channels: int) -> float:
    return weight_std("kaiming_fan_in", *calculate_fan_in_and_fan_out((channels, channels, 3, 3)))


def _shrink() -> float:
    """Std 0.01 in place of He's, from conv10 down to conv2 of the paper's model."""
    return math.prod(_conv(channels) / 0.01 for channels in (64, 128, 128, 256, 256, 512, 512, 512, 512))


def _second(name: str):
    return lambda: activation_moments(name)[1]


def _slope(name: str):
    return lambda: activation_moments(name)[2]


def _chi(name: str):
    return lambda: activation_moments(name)[2] * variance_preserving_gain(name) ** 2


def _xavier_factor() -> float:
    return 512 * weight_std("xavier", 512, 512) ** 2 * activation_moments("relu")[1]


def _growth(branches: int, scale: float):
    return lambda: float(residual_growth(branches, scale)[-1])


ROWS = (
    *(
        row
        for name, second, slope, gain, tolerance in (
            ("relu", 0.5, 0.5, 1.41421, 1e-9),
            ("tanh", 0.394294, 0.464403, 1.59254, 1e-5),
            ("silu", 0.355776, 0.379482, 1.67653, 1e-5),
            ("gelu", 0.425221, 0.455851, 1.53353, 1e-5),
        )
        for row in (
            Published(f"E[φ²], {name}", _second(name), second, tolerance, QUADRATURE),
            Published(f"E[φ'²], {name}", _slope(name), slope, tolerance, QUADRATURE),
            Published(
                f"gain 1/√E[φ²], {name}", lambda name=name: variance_preserving_gain(name), gain, 1e-4, QUADRATURE
            ),
        )
    ),
    *(
        Published(f"gradient factor of a level signal, {name}", _chi(name), chi, 1e-3, QUADRATURE)
        for name, chi in (("relu", 1.0), ("tanh", 1.178), ("silu", 1.067), ("gelu", 1.072))
    ),
    Published(
        "fixed variance of tanh at torch's gain 5/3", lambda: variance_fixed_point(pytorch_gain("tanh") ** 2, "tanh"),
        1.17848, 1e-3, "variance map",
    ),
    *(
        Published(f"He std, 3×3 convolution, {channels} channels", lambda c=channels: _conv(c), std, 2e-3, HE)
        for channels, std in ((64, 0.0589), (128, 0.0417), (256, 0.0295), (512, 0.0208))
    ),
    Published("shrink of the gradient with std 0.01, conv10 to conv2", _shrink, 1.7e4, 0.03, HE),
    Published(
        "second moment after 30 ReLU layers with Xavier",
        lambda: float(predict_forward(30, _xavier_factor())[-1]),
        2.0**-30, 1e-9, f"{HE}: the 30-layer model stalls with Xavier",
    ),
    Published("β = 0.9 after 50 layers", lambda: math.sqrt(predict_forward(50, 0.81)[-1]), 0.0052, 0.01, "0.9^50"),
    Published("β = 1.1 after 50 layers", lambda: math.sqrt(predict_forward(50, 1.21)[-1]), 117, 0.005, "1.1^50"),
    *(
        Published(
            f"GPT-2 residual std, {layers} layers",
            lambda n=2 * layers: weight_std("gpt2_residual", 768, 768, num_residual_branches=n), std, 2e-4, GPT2,
        )
        for layers, std in ((12, 0.004082), (24, 0.002887), (48, 0.002041))
    ),
    *(
        row
        for branches, plain, scaled in ((12, 4096, 2.613), (24, 16_777_216, 2.664), (48, 2.815e14, 2.690))
        for row in (
            Published(f"2^N, {branches} branches", _growth(branches, 1.0), plain, 1e-3, "(1 + c²)^N"),
            Published(f"(1 + 1/N)^N, {branches}", _growth(branches, branches**-0.5), scaled, 1e-3, "(1 + c²)^N"),
        )
    ),
    Published("SwiGLU branch, E[(SiLU(a) b)²]", _second("silu"), 0.3558, 1e-3, "independent unit a and b"),
    Published(
        "nn.Linear, default std at fan_in 4096", lambda: weight_std("torch_linear", 4096, 4096), 0.009021, 1e-4,
        "torch: kaiming_uniform_(a=√5)",
    ),
    Published(
        "factor of a ReLU layer with nn.Linear's default",
        lambda: 64 * weight_std("torch_linear", 64, 64) ** 2 * activation_moments("relu")[1], 1 / 6, 1e-9,
        "½ · fan_in · 1/(3 fan_in)",
    ),
    Published("ln V of the tiny LM", lambda: initial_loss_estimate(tiny_lm.VOCAB_SIZE, 0.0), 4.7185, 1e-4, "ln 112"),
)  # fmt: skip
