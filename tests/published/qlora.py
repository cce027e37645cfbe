"""The NF4 table, what scales cost, and what 65 billion weights cost."""

from internals_math.qlora import LLAMA_PARAMS, bits, bits_per_parameter, code_book, memory_65b, model_bytes
from tests.published import Published
from tests.published.quantization import NF4

PAPER = "QLoRA, arXiv 2305.14314"


def _overhead(double_quant: bool) -> float:
    return bits_per_parameter(64, double_quant) - 4


ROWS = (
    *(
        Published(
            f"NF4 level {k}", lambda k=k: float(code_book("nf4")[k]), value, 2e-7 / max(abs(value), 1e-9),
            f"{PAPER}, appendix E; the released constants",
        )
        for k, value in enumerate(NF4)
    ),
    Published("bits of the scales", lambda: _overhead(False), 0.5, 0, f"{PAPER}, section 3"),
    Published("bits of the scales, double quantized", lambda: _overhead(True), 0.127, 1e-3, f"{PAPER}, section 3"),
    Published("bits saved", lambda: bits(64)["saved"], 0.373, 1e-3, f"{PAPER}, section 3"),
    Published(
        "saved on 65B, GB", lambda: model_bytes(LLAMA_PARAMS, bits(64)["saved"]) / 1e9, 3, 0.0167,
        f"{PAPER}, section 3: about 3 GB",
    ),
    Published(
        "16-bit fine-tuning of 65B, GB", lambda: float(memory_65b().total[0]), 780, 0, f"{PAPER}, section 1: > 780 GB"
    ),
    Published("65B in NF4, GB", lambda: float(memory_65b().weights[2]), 33.5, 0.003, f"{PAPER}, 4.127 bits each"),
)  # fmt: skip
