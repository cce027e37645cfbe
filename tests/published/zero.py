"""The memory and traffic that the ZeRO paper prints; GB = 10⁹ bytes."""

from internals_math.zero import communication_volume, max_model_size, model_state_bytes
from tests.published import Published

PAPER = "ZeRO, arXiv 1910.02054"


def _gigabytes(num_params: float, stage: int, gpus: int):
    return lambda: model_state_bytes(num_params, stage, gpus).total / 1e9


def _volume(stage: int):
    return lambda: communication_volume(1e9, stage, 64)["total"] / 1e9


def _row(name: str, ours, printed: str, source: str, unit: float = 0.5) -> Published:
    """A printed number, right to `unit` of its last digit; the tables round, but cut off the large models' digits."""
    digits = len(printed.partition(".")[2])
    tolerance = unit * 10**-digits / float(printed) * (1 + 1e-9)  # 41.25 is printed 41.3
    return Published(name, ours, float(printed), tolerance, source)


TABLE_1 = {
    1: ("120", "52.5", "35.6", "31.4", "30.4", "30.1"),
    2: ("120", "41.3", "21.6", "16.6", "15.4", "15.1"),
    3: ("120", "30", "7.5", "1.88", "0.47", "0.12"),
}
LARGE = (("128B on 64", 128e9, 64), ("1T on 1024", 1e12, 1024))
TRUNCATED = {
    1: ("536", "4011"),
    2: ("284", "2013"),
    3: ("32", "15.6"),
}
ROWS = (
    *(
        _row(f"7.5B on 64 GPUs, stage {stage}, GB", _gigabytes(7.5e9, stage, 64), printed, f"{PAPER}, figure 1")
        for stage, printed in enumerate(("120", "31.4", "16.6", "1.9"))
    ),
    *(
        _row(f"7.5B on {gpus} GPUs, stage {stage}, GB", _gigabytes(7.5e9, stage, gpus), value, f"{PAPER}, table 1")
        for stage, printed in TABLE_1.items()
        for gpus, value in zip((1, 4, 16, 64, 256, 1024), printed, strict=True)
    ),
    *(
        _row(f"{name}, stage {stage}, GB", _gigabytes(size, stage, gpus), value, f"{PAPER}, table 1 (digits cut)", 1)
        for stage, printed in TRUNCATED.items()
        for (name, size, gpus), value in zip(LARGE, printed, strict=True)
    ),
    *(
        _row(f"traffic, stage {stage}, in Ψ", _volume(stage), printed, f"{PAPER}, section 7", 0)
        for stage, printed in enumerate(("2", "2", "2", "3"))
    ),
    *(
        Published(
            f"largest model, 64 GPUs of 32 GB, stage {stage}, billions",
            lambda s=stage: max_model_size(32e9, s, 64) / 1e9,
            value,
            0.035,
            f"{PAPER}, section 5.4: about",
        )
        for stage, value in ((1, 7.5), (2, 14), (3, 128))
    ),
    _row("GPT-2 (1.5B), 16-bit weights, GB", lambda: model_state_bytes(1.5e9, 0, 1).params / 1e9, "3", f"{PAPER}, 3.1"),
    _row("GPT-2 (1.5B), model states, GB", _gigabytes(1.5e9, 0, 1), "24", f"{PAPER}, section 3.1"),
)
