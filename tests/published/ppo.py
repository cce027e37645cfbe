"""What the equations of PPO and GAE give on small numbers, and what the note on KL estimators prints."""

import torch
from torch.distributions import Normal

from internals_math.distributions import kl_divergence
from internals_math.ppo import (
    Config,
    adaptive_kl_beta,
    clipped_surrogate,
    generalized_advantage_estimation,
    kl_estimators,
)
from tests.published import Published

PPO = "Proximal Policy Optimization, arXiv 1707.06347"
GAE = "Generalized Advantage Estimation, arXiv 1506.02438"
NOTE = "J. Schulman, Approximating KL Divergence, 2020"
CODE = "Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, released code"


def _float64(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def _clip(advantage: float, ratio: float):
    return lambda: float(clipped_surrogate(_float64(ratio), _float64(advantage), 0.2))


def _gae(lam: float, step: int):
    rewards, values = _float64(0, 0, 1), _float64(0.2, 0.4, 0.6)
    return lambda: float(generalized_advantage_estimation(rewards, values, 1.0, lam)[0][0, step])


def _discounted(step: int):
    rewards, values = _float64(1, 0, -1, 2), _float64(0.5, 0.25, 0, 0.75)
    return lambda: float(generalized_advantage_estimation(rewards, values, 0.9, 0.8)[0][0, step])


Q, P = (torch.tensor(values, dtype=torch.float64) for values in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5)))


def _three_answers(name: str):
    return lambda: float((Q * kl_estimators(Q.log(), P.log())[name]).sum())


def _normal(shift: float, name: str, deed: str):
    """Bias or standard deviation of one sample's estimate over the true KL, for q = N(0, 1) and p = N(shift, 1)."""

    def ours() -> float:
        x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
        q, p = Normal(x.new_tensor(0.0), x.new_tensor(1.0)), Normal(x.new_tensor(shift), x.new_tensor(1.0))
        weights = q.log_prob(x).exp() * float(x[1] - x[0])
        estimates = kl_estimators(q.log_prob(x), p.log_prob(x))[name]
        mean, true = float((weights * estimates).sum()), shift**2 / 2
        if deed == "bias":
            return (mean - true) / true
        return float((weights * (estimates - mean).square()).sum().sqrt()) / true

    return ours


def _estimator(shift: float, name: str, deed: str, value: float) -> Published:
    title = f"{name} for q = N(0, 1), p = N({shift:g}, 1): {deed} / true KL"
    return Published(title, _normal(shift, name, deed), value, 0.02, NOTE)


def _beta(kl: float):
    return lambda: adaptive_kl_beta(1.0, kl, 0.02)


ROWS = (
    Published("L^CLIP of A = 1, ratio 1.5", _clip(1, 1.5), 1.2, 1e-6, f"{PPO}, eq. 7 and Fig. 1"),
    Published("L^CLIP of A = 1, ratio 0.5", _clip(1, 0.5), 0.5, 1e-6, f"{PPO}, eq. 7 and Fig. 1"),
    Published("L^CLIP of A = -1, ratio 1.5", _clip(-1, 1.5), -1.5, 1e-6, f"{PPO}, eq. 7 and Fig. 1"),
    Published("L^CLIP of A = -1, ratio 0.5", _clip(-1, 0.5), -0.8, 1e-6, f"{PPO}, eq. 7 and Fig. 1"),
    *(
        Published(f"advantage {step + 1} of 3, lambda {lam:g}", _gae(lam, step), value, 1e-3, f"{PPO}, eqs. 11 and 12")
        for lam, values in ((0, (0.2, 0.2, 0.4)), (0.95, (0.751, 0.58, 0.4)), (1, (0.8, 0.6, 0.4)))
        for step, value in enumerate(values)
    ),
    *(
        Published(f"advantage {step + 1} of 4, discounted", _discounted(step), value, 1e-5, f"{GAE}, eq. 16")
        for step, value in enumerate((0.84308, 0.164, 0.575, 1.25))
    ),
    Published("KL of three answers", lambda: float(kl_divergence(Q, P)), 0.274887, 1e-5, NOTE),
    Published("mean of k2 on them", _three_answers("k2"), 0.293856, 1e-5, NOTE),
    Published("mean of k3 on them", _three_answers("k3"), 0.274887, 1e-5, NOTE),
    _estimator(0.1, "k1", "std", 20),
    _estimator(0.1, "k2", "std", 1.42),
    _estimator(0.1, "k2", "bias", 0.0025),
    _estimator(0.1, "k3", "std", 1.42),
    _estimator(1.0, "k1", "std", 2.00),
    _estimator(1.0, "k2", "std", 1.73),
    _estimator(1.0, "k2", "bias", 0.25),
    _estimator(1.0, "k3", "std", 1.69),
    Published("beta after KL below target / 1.5", _beta(0.0133), 0.5, 0, f"{PPO}, section 4"),
    Published("beta after KL between", _beta(0.02), 1, 0, f"{PPO}, section 4"),
    Published("beta after KL above 1.5 target", _beta(0.0301), 2, 0, f"{PPO}, section 4"),
    Published("epsilon", lambda: Config().epsilon, 0.2, 0, f"{PPO}, section 6.1; {CODE}"),
    Published("lambda of a language model", lambda: Config().lam, 0.95, 0, CODE),
    Published("gamma of a language model", lambda: Config().gamma, 1, 0, CODE),
)
