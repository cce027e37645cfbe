import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from scripts.pipeline import gif
from scripts.pipeline.encode import Encoder
from scripts.pipeline.quality import Quality
from tests.scripts.test_encode import COLORS


@pytest.fixture(scope="module")
def master(tmp_path_factory) -> Path:
    """A loop at 1280 x 720 in which five flat fields slide over a smooth ramp of thousands of colors."""
    path = tmp_path_factory.mktemp("master") / "loop.mp4"
    encoder = Encoder(path, Quality(1280, 720, 50), lossless=True)
    across, down = np.meshgrid(np.linspace(0, 255, 1280), np.linspace(0, 255, 720))
    ramp = np.stack([across, down, 255 - across, np.full_like(across, 255)], axis=-1).astype(np.uint8)
    for number in range(10):
        frame = ramp.copy()
        for index, color in enumerate(COLORS):
            frame[100:500, 200 * index + 8 * number : 200 * index + 8 * number + 160, :3] = color
        encoder.write(frame)
    encoder.close()
    return path


def rgb_frames(path: Path) -> list[np.ndarray]:
    return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(path))]


def test_flat_colors_of_a_gif_are_exact_to_the_bit(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif")
    frames = rgb_frames(tmp_path / "loop.gif")
    assert frames[0].shape == (360, 640, 3)
    for number, frame in enumerate(frames):
        for index, color in enumerate(COLORS):
            left = 100 * index + 8 * number  # half the size, half the frames
            assert (frame[52:248, left + 2 : left + 78] == color).all(), (number, color)


def test_a_gif_loops_for_ever_at_the_frame_rate_asked_for(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif", width=320, frame_rate=10)
    image = Image.open(tmp_path / "loop.gif")
    assert (image.width, image.info["duration"], image.info["loop"]) == (320, 100, 0)


def test_a_gif_is_never_wider_than_its_master(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif", width=3000, frame_rate=10)
    assert Image.open(tmp_path / "loop.gif").width == 1280


def test_without_gifsicle_the_gif_is_larger_but_shows_the_same(master, tmp_path, monkeypatch):
    ffmpeg_alone = tmp_path / "bin"
    ffmpeg_alone.mkdir()
    (ffmpeg_alone / "ffmpeg").symlink_to(shutil.which("ffmpeg") or "")
    gif.write_gif(master, tmp_path / "small.gif")
    monkeypatch.setenv("PATH", str(ffmpeg_alone))
    assert gif.write_gif(master, tmp_path / "large.gif") is False
    frames = zip(rgb_frames(tmp_path / "small.gif"), rgb_frames(tmp_path / "large.gif"), strict=True)
    assert all((a == b).all() for a, b in frames)


def test_a_frame_rate_that_delays_cannot_hold_is_refused(master, tmp_path):
    with pytest.raises(ValueError, match="frame rate of a GIF must be one of 10, 20, 25, got 30"):
        gif.write_gif(master, tmp_path / "loop.gif", frame_rate=30)


def test_webp_and_mp4_of_a_loop_have_its_length(master, tmp_path):
    gif.write_webp(master, tmp_path / "loop.webp")
    gif.write_loop_mp4(master, tmp_path / "loop.mp4")
    assert Image.open(tmp_path / "loop.webp").size == (640, 360)
    assert b"moov" in (tmp_path / "loop.mp4").read_bytes()[:4000]  # at the front: it starts at once
