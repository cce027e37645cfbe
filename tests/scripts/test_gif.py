import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from scenes.kit import theme
from scripts.pipeline import gif
from scripts.pipeline.encode import Encoder
from scripts.pipeline.errors import UserError
from scripts.pipeline.gif import Clip, GifSettings
from scripts.pipeline.quality import Quality
from tests.scripts.test_encode import COLORS

GROUND = theme.THEMES["dark"]["BACKGROUND"]


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


@pytest.fixture(scope="module")
def square(tmp_path_factory) -> Path:
    """A loop at 320 x 180 in which a cell moves over the background of the theme, then rests as another one does."""
    path = tmp_path_factory.mktemp("square") / "loop.mp4"
    encoder = Encoder(path, Quality(320, 180, 50), lossless=True)
    frame = np.full((180, 320, 4), 255, np.uint8)
    for left in (40, 60, 80):
        frame[..., :3] = rgb(GROUND)
        frame[40:100, left : left + 80, :3] = rgb(theme.THEMES["dark"]["POSITIVE"])
        frame[120:160, 200:300, :3] = rgb(theme.THEMES["dark"]["NEGATIVE"])
        encoder.write(frame.copy(), repeat=50 if left == 80 else 2)
    encoder.close()
    return path


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


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


def test_flat_colors_stay_exact_where_pixels_and_cells_do_not_line_up_and_colors_are_few(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif", GifSettings(width=500, colors=16))
    for index, color in enumerate(COLORS):
        left = (200 * index) * 500 / 1280
        frame = rgb_frames(tmp_path / "loop.gif")[0]
        assert (frame[45:190, int(left) + 3 : int(left + 60)] == color).all(), color


def test_every_step_of_the_color_maps_survives_in_both_themes(tmp_path):
    try:
        for name in theme.THEMES:
            theme.use(name)
            colors = [theme.signed_color(step / theme.SIGNED_STEPS) for step in range(-16, 17)]
            colors += [theme.sequential_color(step / theme.SEQUENTIAL_STEPS) for step in range(25)]
            encoder = Encoder(tmp_path / "cells.mp4", Quality(640, 360, 50), lossless=True)
            frame = np.full((360, 640, 4), 255, np.uint8)
            for index, color in enumerate(colors):
                row, column = divmod(index, 12)
                frame[60 * row : 60 * row + 60, 50 * column : 50 * column + 50, :3] = rgb(color)
            frame[:, 600:, :3] = np.random.default_rng(0).integers(0, 256, (360, 40, 3))  # 14,400 colors of no area
            encoder.write(frame, repeat=4)
            encoder.close()
            gif.write_gif(tmp_path / "cells.mp4", tmp_path / "cells.gif")
            shown = rgb_frames(tmp_path / "cells.gif")[0]
            for index, color in enumerate(colors):
                row, column = divmod(index, 12)
                cell = shown[60 * row + 2 : 60 * row + 58, 50 * column + 2 : 50 * column + 48]
                assert (cell == rgb(color)).all(), (name, color)
    finally:
        theme.use("dark")


def test_a_gif_loops_for_ever_at_the_frame_rate_asked_for(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif", GifSettings(width=320, frame_rate=10))
    image = Image.open(tmp_path / "loop.gif")
    assert (image.width, image.info["duration"], image.info["loop"]) == (320, 100, 0)


@pytest.mark.parametrize("frame_rate", gif.FRAME_RATES)
def test_a_picture_held_still_is_one_frame_of_its_length(square, tmp_path, frame_rate):
    gif.write_gif(square, tmp_path / "loop.gif", GifSettings(width=320, frame_rate=frame_rate))
    shown = gif.read_gif(tmp_path / "loop.gif")
    assert len(shown.frames) <= 3
    assert sum(shown.hundredths) == pytest.approx(108, abs=100 / frame_rate)
    assert max(shown.hundredths) >= 100


def test_the_picture_at_a_time_is_the_one_shown_then():
    clip = Clip(tuple(np.full((2, 2, 3), value, np.uint8) for value in range(3)), (4, 40, 4))
    assert [int(clip.at(time)[0, 0, 0]) for time in (0, 3, 4, 43, 44, 47, 1000)] == [0, 0, 1, 1, 2, 2, 2]


def test_a_gif_is_never_wider_than_its_master(master, tmp_path):
    gif.write_gif(master, tmp_path / "loop.gif", GifSettings(width=3000, frame_rate=10))
    assert Image.open(tmp_path / "loop.gif").width == 1280


def test_without_gifsicle_the_gif_is_larger_but_shows_the_same(master, tmp_path, monkeypatch):
    assert gif.write_gif(master, tmp_path / "small.gif") is True
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gif.write_gif(master, tmp_path / "large.gif") is False
    frames = zip(rgb_frames(tmp_path / "small.gif"), rgb_frames(tmp_path / "large.gif"), strict=True)
    assert all((a == b).all() for a, b in frames)
    assert (tmp_path / "large.gif").stat().st_size > (tmp_path / "small.gif").stat().st_size
    with pytest.raises(UserError, match="lossy GIFs need the program `gifsicle`; install it .*apt install gifsicle"):
        gif.write_gif(master, tmp_path / "lossy.gif", GifSettings(lossy=20))


def test_a_failing_gifsicle_shows_its_last_lines(square, tmp_path, monkeypatch):
    program = tmp_path / "gifsicle"
    program.write_text("#!/bin/sh\necho 'no space left, says gifsicle' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="gifsicle failed with exit code 3:\nno space left, says gifsicle"):
        gif.write_gif(square, tmp_path / "loop.gif")
    assert not (tmp_path / "loop.gif").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_rate": 30}, "frame rate of a GIF must be one of 10, 20, 25, got 30"),
        ({"colors": 257}, "a GIF has 2 to 256 colors, got 257"),
        ({"width": 8}, "a GIF needs a width of at least 16 and lossy >= 0, got 8 and 0"),
        ({"lossy": -1}, "a GIF needs a width of at least 16 and lossy >= 0, got 640 and -1"),
    ],
)
def test_settings_that_a_gif_cannot_have_are_refused_by_value(settings, message):
    with pytest.raises(ValueError, match=message):
        GifSettings(**settings)


def test_through_a_transparent_background_the_page_is_seen_in_gif_webp_and_poster(square, tmp_path):
    gif.write_gif(square, tmp_path / "loop.gif", GifSettings(width=320, transparent=GROUND))
    gif.write_webp(square, tmp_path / "loop.webp", width=320, transparent=GROUND)
    for image in (Image.open(tmp_path / "loop.gif"), Image.open(tmp_path / "loop.webp")):
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            alpha = np.array(frame.convert("RGBA"))[..., 3]
            left = (40, 60, 80)[index]
            assert (alpha[44:96, left + 4 : left + 76] == 255).all()
            assert (alpha[:36] == 0).all()
            assert (alpha[:, : left - 4] == 0).all()  # also where the cell has been before
    poster = np.array(gif.make_transparent(Image.fromarray(gif.read_clip(square, 320, 25).frames[-1]), GROUND))
    assert (poster[44:96, 84:156, 3] == 255).all()
    assert (poster[:36, :, 3] == 0).all()


def test_webp_and_mp4_of_a_loop_have_its_length(master, tmp_path):
    gif.write_webp(master, tmp_path / "loop.webp", frame_rate=10)
    gif.write_loop_mp4(master, tmp_path / "loop.mp4")
    webp = Image.open(tmp_path / "loop.webp")
    assert (webp.size, webp.info["loop"]) == ((640, 360), 0)
    assert webp.n_frames == 2  # of a tenth of a second each
    assert b"moov" in (tmp_path / "loop.mp4").read_bytes()[:4000]  # at the front: it starts at once
    with av.open(str(tmp_path / "loop.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]  # muted
        assert container.streams.video[0].frames == 10
        assert container.streams.video[0].pix_fmt == "yuv420p"  # what every browser plays


def test_an_mp4_can_be_narrower_than_its_master(master, tmp_path):
    gif.write_loop_mp4(master, tmp_path / "loop.mp4", width=480)
    with av.open(str(tmp_path / "loop.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (480, 270)


def test_gifsicle_is_on_this_machine_or_the_tests_above_say_nothing():
    assert subprocess.run([shutil.which("gifsicle") or "gifsicle", "--version"], check=False).returncode == 0
