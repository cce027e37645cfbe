"""How much two pictures look the same: SSIM.

Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment", eq. 13, over windows of 8 x 8 pixels that
overlap by half, as ffmpeg's `ssim` filter takes them, whose numbers these are.
"""

import numpy as np

STEP = 4  # half a window
C1, C2 = (0.01 * 255) ** 2 / 64, (0.03 * 255) ** 2  # ffmpeg and x264 have a 64th of the paper's C1


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean SSIM over windows and channels, 1 for equal pictures.

    Args:
        first, second: (height, width, channels) in 0..255; pixels that do not fill half a window are left out.
    """
    if first.shape != second.shape or first.ndim != 3 or min(first.shape[:2]) < 2 * STEP:
        raise ValueError(
            f"two pictures of one size, at least {2 * STEP} x {2 * STEP}, are needed, got {first.shape}, {second.shape}"
        )
    x, y = first.astype(np.float32), second.astype(np.float32)
    count = (2 * STEP) ** 2
    mean_x, mean_y = _window_sums(x) / count, _window_sums(y) / count
    square_x, square_y, product = (_window_sums(part) / count for part in (x * x, y * y, x * y))
    unbiased = count / (count - 1)
    variances = (square_x - mean_x**2 + square_y - mean_y**2) * unbiased
    covariance = (product - mean_x * mean_y) * unbiased
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + C1) * (variances + C2))).mean())


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Return the sums over all windows, each made of four quarters that its neighbors share."""
    rows, columns = (size // STEP for size in values.shape[:2])
    cut = values[: rows * STEP, : columns * STEP].astype(np.float64)
    quarters = cut.reshape(rows, STEP, columns, STEP, -1).sum(axis=(1, 3))
    return quarters[:-1, :-1] + quarters[1:, :-1] + quarters[:-1, 1:] + quarters[1:, 1:]
