"""What the formulas of GRPO and its variants give on small numbers, and the settings that the paper prints."""

import torch

from internals_math.grpo import (
    Config,
    expected_prompt_weight,
    group_advantages,
    rl_training_memory,
    token_weights,
    zero_signal_probability,
)
from tests.published import Published

GRPO = "DeepSeekMath, arXiv 2402.03300"
TRL = "TRL, GRPOTrainer"
RLOO = "Back to Basics, arXiv 2402.14740"
DR = "Understanding R1-Zero-Like Training, arXiv 2503.20783"
DAPO = "DAPO, arXiv 2503.14476"
BYTES = "16 bytes per trained, 2 per frozen parameter (ZeRO, arXiv 1910.02054, section 3.1)"
REWARDS = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.float64)


def _advantage(answer: int, method: str = "grpo", ddof: int = 0, eps: float = 0.0):
    return lambda: float(group_advantages(REWARDS, method=method, ddof=ddof, eps=eps)[0, answer])


def _weight(p: float, size: int):
    return lambda: float(expected_prompt_weight(torch.tensor(p, dtype=torch.float64), size))


def _silent(p: float, size: int):
    return lambda: float(zero_signal_probability(torch.tensor(p, dtype=torch.float64), size))


def _token(loss_type: str, answer: int):
    return lambda: float(token_weights(torch.tensor([2, 4]), loss_type=loss_type, max_length=8)[answer])


def _gigabytes(algorithm: str):
    return lambda: sum(rl_training_memory(7e9, algorithm).values()) / 1e9


ROWS = (
    Published("advantage of a success", _advantage(0), 1.73205, 1e-4, f"{GRPO}, section 4.1.2"),
    Published("advantage of a failure", _advantage(1), -0.57735, 1e-4, f"{GRPO}, section 4.1.2"),
    Published("success, unbiased std", _advantage(0, ddof=1), 1.62019, 1e-3, TRL),
    Published("failure, unbiased std", _advantage(1, ddof=1), -0.54006, 1e-3, TRL),
    Published("success, unbiased std + 1e-4", _advantage(0, ddof=1, eps=1e-4), 1.62019, 1e-3, TRL),
    Published("success, leave one out", _advantage(0, "rloo"), 0.85714, 1e-4, RLOO),
    Published("failure, leave one out", _advantage(1, "rloo"), -0.28571, 1e-4, RLOO),
    Published("success, group mean", _advantage(0, "group_mean"), 0.75, 1e-4, DR),
    Published("failure, group mean", _advantage(1, "group_mean"), -0.25, 1e-4, DR),
    *(
        Published(f"weight of a prompt, p = {p:g}, G = 8", _weight(p, 8), value, 1e-3, f"{DR}, section 3.1")
        for p, value in ((0.05, 2.4731), (0.1, 2.3277), (0.5, 1.8557))
    ),
    *(
        Published(f"its limit, p = {p:g}, G = 1000", _weight(p, 1000), value, 0.02, f"{DR}, section 3.1")
        for p, value in ((0.05, 4.5883), (0.1, 3.3333), (0.5, 2.0))
    ),
    *(
        Published(f"silent groups, p = {p:g}, G = {size}", _silent(p, size), value, 2e-3, f"{DAPO}, section 3.2")
        for p, size, value in ((0.05, 8, 0.6634), (0.1, 8, 0.4305), (0.5, 8, 0.0078), (0.05, 64, 0.0375))
    ),
    Published("token of a short answer, grpo", _token("grpo", 0), 0.25, 1e-4, f"{GRPO}, eq. 3"),
    Published("token of a long answer, grpo", _token("grpo", 1), 0.125, 1e-4, f"{GRPO}, eq. 3"),
    *(
        Published(f"token of a {length} answer, {kind}", _token(kind, answer), value, tolerance, source)
        for kind, value, tolerance, source in (
            ("dapo", 0.1667, 1e-3, f"{DAPO}, eq. 8"),
            ("dr_grpo", 0.0625, 1e-4, f"{DR}, section 3.2"),
        )
        for answer, length in enumerate(("short", "long"))
    ),
    Published("memory of PPO, 7B parameters, GB", _gigabytes("ppo"), 252, 0, BYTES),
    Published("memory of GRPO", _gigabytes("grpo"), 140, 0, BYTES),
    Published("memory of GRPO with rule rewards", _gigabytes("grpo_rule"), 126, 0, BYTES),
    Published("price of the KL", lambda: Config().beta, 0.04, 0, f"{GRPO}, section 4.2"),
)
