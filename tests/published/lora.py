"""How many weights the paper's adapters have, and how much its ΔW amplifies."""

from internals_math.lora import gpt3_counts, lora_trainable_parameters
from tests.published import Published

PAPER = "LoRA, arXiv 2106.09685"


def _square(layers: int, width: int, matrices: int, r: int):
    return lambda: lora_trainable_parameters(layers, [(width, width)] * matrices, r)


ROWS = (
    Published("GPT-3, r = 4 on two matrices", _square(96, 12288, 2, 4), 18_874_368, 0, f"{PAPER}, Table 5: 18M"),
    Published("its fp16 checkpoint, MB", lambda: gpt3_counts()["lora_bytes"] / 1e6, 35, 0.08, f"{PAPER}, section 4.2"),
    Published("GPT-3's fp16 checkpoint, GB", lambda: gpt3_counts()["full_bytes"] / 1e9, 350, 0.003, f"{PAPER}, 4.2"),
    Published("how many times smaller", lambda: gpt3_counts()["ratio"], 10_000, 0.1, f"{PAPER}, section 4.2"),
    Published(
        "100 adapted models, GB", lambda: gpt3_counts()["hundred_lora_bytes"] / 1e9, 354, 0.004, f"{PAPER}, footnote 4"
    ),
    Published("100 full models, TB", lambda: gpt3_counts()["hundred_full_bytes"] / 1e12, 35, 0.003, f"{PAPER}, 4.2"),
    Published("GPT-3, r = 1 on two matrices", _square(96, 12288, 2, 1), 4_718_592, 0, f"{PAPER}, Table 4: 4.7M"),
    Published("GPT-3, r = 2 on one matrix", _square(96, 12288, 1, 2), 4_718_592, 0, f"{PAPER}, Table 4: 4.7M"),
    Published("GPT-3, r = 8 on two matrices", _square(96, 12288, 2, 8), 37_748_736, 0, f"{PAPER}, Table 4: 37.7M"),
    Published("GPT-3, r = 4 on four matrices", _square(96, 12288, 4, 4), 37_748_736, 0, f"{PAPER}, Table 4: 37.7M"),
    Published("RoBERTa-base, r = 8", _square(12, 768, 2, 8), 294_912, 0, f"{PAPER}, Table 2: 0.3M"),
    Published("RoBERTa-large, r = 8", _square(24, 1024, 2, 8), 786_432, 0, f"{PAPER}, Table 2: 0.8M"),
)
