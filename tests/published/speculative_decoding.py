"""The expected cost and gain that the paper prints."""

from internals_math.speculative_decoding import (
    expected_tokens,
    operations_factor,
    optimal_gamma,
    walltime_improvement,
)
from tests.published import Published

PAPER = "Leviathan et al. 2023, arXiv 2211.17192"
BY_HAND = f"{PAPER}, theorem 3.8: (1 - α^(γ + 1)) / ((1 - α)(γ c + 1)) by hand"
TABLE1 = (  # alpha, gamma, operations, speed
    (0.6, 2, 1.53, 1.96),
    (0.7, 3, 1.58, 2.53),
    (0.8, 2, 1.23, 2.44),
    (0.8, 5, 1.63, 3.69),
    (0.9, 2, 1.11, 2.71),
    (0.9, 10, 1.60, 6.86),
)

ROWS = (
    *(
        Published(
            f"{what}, α = {alpha}, γ = {gamma}",
            lambda f=ours, a=alpha, g=gamma: f(a, g, 0.0),
            value,
            0.005 / value,
            f"{PAPER}, Table 1",
        )
        for alpha, gamma, operations, speed in TABLE1
        for what, ours, value in (
            ("operations", operations_factor, operations),
            ("speed", walltime_improvement, speed),
        )
    ),
    Published("bigram draft, α = 0.2, γ = 3", lambda: walltime_improvement(0.2, 3, 0.0), 1.25, 0.004, f"{PAPER}, 4.2"),
    # Table 2 measures 3.4x for T5-small: between a draft that costs nothing and one that costs a fiftieth.
    Published("α = 0.75, γ = 7, free draft", lambda: walltime_improvement(0.75, 7, 0.0), 3.60, 0.005 / 3.60, BY_HAND),
    Published("the same at c = 0.02", lambda: walltime_improvement(0.75, 7, 0.02), 3.16, 0.005 / 3.16, BY_HAND),
    # Corollary 3.9: at γ = 1 the gain is (1 + α) / (1 + c); worked by hand for α = 0.8, c = 0.2.
    Published("one guess", lambda: walltime_improvement(0.8, 1, 0.2), 1.5, 1e-12, f"{PAPER}, corollary 3.9"),
    Published("a draft as slow as it is good", lambda: optimal_gamma(0.5, 0.5), 0, 0, f"{PAPER}, section 3.5"),
    Published("tokens of a perfect draft", lambda: expected_tokens(1.0, 7), 8, 0, f"{PAPER}, eq. 1: γ + 1"),
)
