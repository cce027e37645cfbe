"""The random numbers of the benchmark's three contents; both sides draw the same."""

import numpy as np

SIDE, BARS, CURVES, POINTS = 8, 48, 8, 120
_random = np.random.default_rng(0)
GRIDS = _random.uniform(-2, 2, (2, 3, SIDE, SIDE)).round(1)  # two grids, each in three states
AMOUNTS = _random.uniform(0.05, 1, (2, 3, BARS))  # two rows of bars, each in three states
X = np.linspace(0, 1, POINTS)
_waves = _random.uniform(0.5, 3, (3, CURVES, 1)) * 2 * np.pi * X + _random.uniform(0, 6, (3, CURVES, 1))
HEIGHTS = 0.5 + 0.4 * np.sin(_waves) * _random.uniform(0.3, 1, (3, CURVES, 1))  # curves in three states
FORMULAS = (
    r"\"softmax\"(z)_i = e^(z_i) / (sum_(j=1)^V e^(z_j))",
    r"\"Attention\"(Q, K, V) = \"softmax\"(Q K^top / sqrt(d_k)) V",
    r"cal(L)(theta) = - 1 / N sum_(n=1)^N log p_theta (x_n | x_(< n))",
    r"hat(m)_t = m_t / (1 - beta_1^t), quad hat(v)_t = v_t / (1 - beta_2^t)",
    r"theta_(t+1) = theta_t - eta hat(m)_t / (sqrt(hat(v)_t) + epsilon)",
    r"nabla_theta J = EE [sum_t nabla_theta log pi_theta (a_t | s_t) A_t]",
    r"\"KL\"(p || q) = integral p(x) log p(x) / q(x) dif x",
    r"x_(l+1) = x_l + \"FFN\"(x_l / sqrt(1 / d sum_(i=1)^d x_(l,i)^2 + epsilon))",
)
FORMULAS = tuple(formula.replace('\\"', '"') for formula in FORMULAS)
MOVE_SECONDS = 0.6  # of each animation; whole frames at 15, 30 and 60 a second


def formula_place(row: int) -> list[float]:
    """Return where a formula stands: two columns of four."""
    return [-3.3 + 6.6 * (row % 2), 2.4 - 1.6 * (row // 2), 0]
