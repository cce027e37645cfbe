"""RoFormer (2104.09864) and the models that use it; the values are in `topics/rope` of the specification."""

import torch

from internals_math import rope
from tests.published import Published

DEFINITION = "RoFormer, arXiv 2104.09864, section 3.2.2: theta_i = 10000^(-2(i-1)/d)"
DECAY = "RoFormer, arXiv 2104.09864, section 3.4.3, eq. 37"
NTK = "NTK-aware base, discussed in YaRN, arXiv 2309.00071"


def _theta(head_dim: int, base: float, pair: int):
    return lambda: float(rope.rope_frequencies(head_dim, base)[pair])


def _wavelength(head_dim: int, base: float, pair: int):
    return lambda: float(rope.wavelengths(rope.rope_frequencies(head_dim, base))[pair])


def _bound(distance: int):
    return lambda: float(rope.decay_bound(128, 10000.0, torch.tensor([distance])))


def _ntk(base: float, head_dim: int, scale: float):
    return lambda: rope.ntk_scaled_base(base, head_dim, scale)


ROWS = (
    *(
        Published(f"theta_{j}, d = 8, base 10,000", _theta(8, 1e4, j), value, 1e-12, DEFINITION)
        for j, value in enumerate((1.0, 0.1, 0.01, 0.001))
    ),
    *(
        Published(f"theta_{j}, d = 8, base 100", _theta(8, 100, j), value, 1e-4, DEFINITION)
        for j, value in enumerate((1.0, 0.31623, 0.1, 0.031623))
    ),
    *(
        Published(f"wavelength of pair {j}, d = 8, base 100", _wavelength(8, 100, j), value, 1e-3, "2 pi / theta")
        for j, value in enumerate((6.283, 19.87, 62.83, 198.7))
    ),
    *(
        Published(f"wavelength of pair {j}, d = 8, base 10,000", _wavelength(8, 1e4, j), value, 1e-4, "2 pi / theta")
        for j, value in enumerate((6.2832, 62.832, 628.32, 6283.2))
    ),
    Published("slowest theta, d = 128", _theta(128, 1e4, -1), 1.15478e-4, 1e-4, DEFINITION),
    Published("longest wavelength, d = 128", _wavelength(128, 1e4, -1), 54410, 1e-4, "2 pi / theta"),
    Published("longest wavelength, Llama 3", _wavelength(128, 5e5, -1), 2559196, 1e-4, "base: arXiv 2407.21783, 3.2"),
    Published("longest wavelength, base 10^6", _wavelength(128, 1e6, -1), 5063256, 1e-4, "base: arXiv 2308.12950"),
    *(
        Published(f"NTK base, d = {d}, base {base:g}, scale {scale}", _ntk(base, d, scale), value, 1e-4, NTK)
        for base, d, scale, value in (
            (1e4, 128, 2, 20221.3),
            (1e4, 128, 4, 40889.9),
            (1e4, 128, 8, 82684.6),
            (1e4, 8, 4, 63496.0),
            (1e4, 8, 8, 160000.0),
            (100, 8, 4, 634.96),
            (100, 8, 8, 1600.0),
        )
    ),
    *(
        Published(f"decay bound B({distance}), d = 128", _bound(distance), value, 1e-3, DECAY)
        for distance, value in ((0, 32.5), (1, 31.538), (10, 17.954), (50, 12.629), (100, 10.227), (250, 6.548))
    ),
)
