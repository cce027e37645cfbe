from pathlib import Path

import av
import numpy as np
import pytest

from scripts.pipeline import ffmpeg
from scripts.pipeline.encode import HARDWARE_OPTIONS, Encoder, read_frames, read_stills, require_encoder
from scripts.pipeline.errors import UserError
from scripts.pipeline.quality import ENCODERS, Quality

QUALITY = Quality(160, 90, 15)
# colors of the theme: background, query, positive, negative, maximum
COLORS = [(14, 17, 22), (255, 126, 182), (242, 138, 46), (47, 127, 224), (244, 211, 94)]


def flat_frames(count: int = 5) -> list[np.ndarray]:
    """Frames with five fields in the colors of the theme, whose borders move."""
    frames = []
    for number in range(count):
        frame = np.full((90, 160, 4), 255, dtype=np.uint8)
        for index, color in enumerate(COLORS):
            frame[:, 32 * index + number :, :3] = color
        frame[:, :number, :3] = COLORS[0]
        frames.append(frame)
    return frames


def write(path: Path, frames: list[np.ndarray], *, repeat: int = 1, lossless: bool = False) -> Path:
    encoder = Encoder(path, QUALITY, lossless=lossless)
    for frame in frames:
        encoder.write(frame, repeat)
    encoder.close()
    return path


def test_a_lossless_master_holds_every_pixel_to_the_bit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 4), dtype=np.uint8)
    frames = [*flat_frames(), noise]
    read = list(read_frames(write(tmp_path / "master.mp4", frames, lossless=True)))
    assert len(read) == len(frames)
    assert all((frame[..., :3] == back).all() for frame, back in zip(frames, read, strict=True))


def test_flat_colors_survive_the_video_within_four_levels(tmp_path):
    frame = next(read_frames(write(tmp_path / "video.mp4", flat_frames())))
    for index, color in enumerate(COLORS):
        # 8-bit YUV alone rounds blue by up to 2; the matrix of another standard would be off by more than 10
        assert np.abs(frame[45, 32 * index + 16].astype(int) - color).max() <= 4, color


def test_the_video_says_which_colors_it_holds(tmp_path):
    with av.open(str(write(tmp_path / "video.mp4", flat_frames()))) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)  # bt709
        assert context.pix_fmt == "yuv420p"


def test_the_same_frames_give_the_same_bytes(tmp_path):
    first, second = (write(tmp_path / f"{k}.mp4", flat_frames(20)).read_bytes() for k in range(2))
    assert first == second


def test_a_frame_held_still_is_shown_as_often_as_it_was_asked_for(tmp_path):
    frames = list(read_frames(write(tmp_path / "held.mp4", flat_frames(3), repeat=30)))
    assert len(frames) == 90
    assert np.abs(frames[0].astype(int) - frames[29]).max() <= 3
    assert np.abs(frames[0].astype(int) - frames[89]).max() > 50


def test_joined_videos_hold_exactly_the_frames_of_their_parts(tmp_path):
    parts = [write(tmp_path / "a.mp4", flat_frames(40)), write(tmp_path / "b.mp4", flat_frames(25)[::-1])]
    marks = tmp_path / "marks"
    marks.write_text(";FFMETADATA1\n")
    ffmpeg.join(parts, None, marks, tmp_path / "joined.mp4")
    expected = [frame for part in parts for frame in read_frames(part)]
    joined = list(read_frames(tmp_path / "joined.mp4"))
    assert len(joined) == 65
    assert all((a == b).all() for a, b in zip(expected, joined, strict=True))
    with av.open(str(tmp_path / "joined.mp4")) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    assert np.allclose(times, np.arange(65) / 15, atol=1e-3)  # ffmpeg rounds where parts meet


@pytest.mark.parametrize(("time", "number"), [(0.0, 0), (0.1, 1), (2 / 15, 2), (0.2, 3), (9.0, 4)])
def test_a_still_is_the_frame_on_screen_at_that_time(tmp_path, time, number):
    frames = flat_frames()
    path = write(tmp_path / "master.mp4", frames, lossless=True)
    assert (read_stills(path, [time])[0] == frames[number][..., :3]).all()


def test_a_hardware_encoder_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(ENCODERS, "nvenc", "no_such_encoder")
    with pytest.raises(
        UserError, match=r"the nvenc encoder does not work here \(.+\); leave out --encoder to use x264"
    ):
        require_encoder("nvenc")


def test_the_encoder_everyone_has_works():
    require_encoder("x264")


def test_every_hardware_encoder_has_its_options():
    assert set(HARDWARE_OPTIONS) == set(ENCODERS) - {"x264"}
