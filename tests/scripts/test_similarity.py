import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.pipeline.similarity import ssim

seeds = st.integers(0, 10_000)


def picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth noise: the blocks of a small random picture, blown up."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("noise", [0, 4, 25, 90])
def test_ssim_is_that_of_ffmpeg(tmp_path: Path, noise):
    first = picture(1, 96, 128)
    change = np.random.default_rng(2).normal(0, max(noise, 1e-9), first.shape)
    second = np.clip(first + change.round(), 0, 255).astype(np.uint8)
    for name, pixels in (("first", first), ("second", second)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    graph = "[0:v]format=gbrp[a];[1:v]format=gbrp[b];[a][b]ssim"
    inputs = ["-i", str(tmp_path / "first.png"), "-i", str(tmp_path / "second.png")]
    command = ["ffmpeg", "-v", "info", *inputs, "-lavfi", graph, "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    oracle = np.mean([float(value) for value in re.findall(r"[GBR]:([\d.]+)", said)])
    assert ssim(first, second) == pytest.approx(oracle, abs=2e-5)  # ffmpeg rounds C1 and C2 to whole numbers


@given(seeds, seeds)
def test_ssim_is_1_for_equal_pictures_less_for_others_and_symmetric(a, b):
    first, second = picture(a), picture(b)
    assert ssim(first, first) == pytest.approx(1)
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert a == b or ssim(first, second) < 0.99


@given(seeds, st.integers(1, 20))
def test_more_noise_never_looks_more_alike(seed, amount):
    clean = picture(seed).astype(float)
    noise = np.random.default_rng(seed).choice([-1, 1], clean.shape)
    assert ssim(clean, clean + 2 * amount * noise) < ssim(clean, clean + amount * noise)


def test_pictures_of_two_sizes_are_refused_by_shape():
    with pytest.raises(ValueError, match=r"two pictures of one size.*got \(48, 64, 3\), \(24, 32, 3\)"):
        ssim(picture(0), picture(0, 24, 32))
