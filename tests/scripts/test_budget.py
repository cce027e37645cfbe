import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.pipeline import budget, gif
from scripts.pipeline.budget import Limits
from scripts.pipeline.encode import Encoder
from scripts.pipeline.errors import UserError
from scripts.pipeline.gif import GifSettings
from scripts.pipeline.platforms import PLATFORMS
from scripts.pipeline.quality import Quality

ASKED = GifSettings(width=160)


@pytest.fixture(scope="module")
def master(tmp_path_factory) -> Path:
    """Half a second at 320 x 180 in which a field of cells with fine marks moves over another one."""
    path = tmp_path_factory.mktemp("master") / "loop.mp4"
    encoder = Encoder(path, Quality(320, 180, 50), lossless=True)
    cells = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(cells).resize((320, 180), Image.Resampling.NEAREST).convert("RGBA")).copy()
    ground[4:-4:20, :, :3] = ground[:, 4:-4:20, :3] = 255
    for number in range(25):
        frame = ground.copy()
        frame[40:140, 4 * number : 4 * number + 100] = ground[:100, 60:160]
        encoder.write(frame)
    encoder.close()
    return path


@pytest.fixture(scope="module")
def asked(master, tmp_path_factory) -> budget.Made:
    folder = tmp_path_factory.mktemp("asked")
    return budget.fit(master, folder, ASKED, Limits())[1]


def test_a_gif_that_fits_is_left_as_it_was_asked_for(master, asked, tmp_path):
    path, made, first = budget.fit(master, tmp_path, ASKED, Limits(asked.bytes))
    assert made == first == asked
    assert path.stat().st_size == asked.bytes
    assert "within the limits as asked" in budget.report("loop.gif", first, made)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_budget_is_kept_and_what_was_given_up_is_said(master, asked, tmp_path, share):
    limit = int(share * asked.bytes)
    path, made, first = budget.fit(master, tmp_path, ASKED, Limits(limit), least=0.5)
    assert path.stat().st_size == made.bytes <= limit
    assert 0.5 <= made.likeness < first.likeness
    shown = gif.read_gif(path)
    assert shown.frames[0].shape[1] == made.settings.width
    said = budget.report("loop.gif", first, made)
    assert len(budget.given_up(first, made)) >= 1
    for name in ("frame_rate", "colors", "width", "lossy"):
        before, after = (getattr(each.settings, name) for each in (first, made))
        assert before == after or str(after) in said


def test_of_two_ways_that_fit_the_one_that_looks_more_alike_is_taken(master, asked, tmp_path):
    limit = int(0.7 * asked.bytes)
    _, made, _ = budget.fit(master, tmp_path, ASKED, Limits(limit), least=0.5)
    workshop = budget.Workshop(master, tmp_path, ASKED.width, ASKED.frame_rate)
    ways = (replace(ASKED, **step) for step in ({"frame_rate": 10}, {"colors": 32}, {"width": 80}, {"lossy": 120}))
    fitting = [each for each in map(workshop.make, ways) if each.bytes <= limit]
    assert fitting  # or this test says nothing
    assert all(made.likeness >= each.likeness - 0.005 for each in fitting)  # the prediction is not exact


def test_a_budget_out_of_reach_is_refused_with_the_smallest_size_that_is_not(master, asked, tmp_path):
    with pytest.raises(UserError, match=r"no GIF of at most 1 kB has an SSIM of 0.9 or more") as refused:
        budget.fit(master, tmp_path, ASKED, Limits(1000), least=0.9)
    allowed = re.search(r"--max-size (\d+)kB", str(refused.value))
    assert allowed is not None
    limit = 1000 * int(allowed[1])
    assert limit < asked.bytes + 1000
    _, made, _ = budget.fit(master, tmp_path, ASKED, Limits(limit), least=0.9)
    assert made.bytes <= limit
    assert made.likeness >= 0.9


def test_a_limit_on_frames_or_pixels_is_kept_too(master, asked, tmp_path):
    few = budget.fit(master, tmp_path, ASKED, Limits(max_frames=asked.frames - 1), least=0.5)[1]
    assert few.frames < asked.frames
    assert few.settings.frame_rate < ASKED.frame_rate
    small = budget.fit(master, tmp_path, ASKED, Limits(max_pixels=asked.pixels // 3), least=0.5)[1]
    assert small.pixels <= asked.pixels // 3


def test_without_gifsicle_a_budget_is_kept_without_lossiness(master, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _, made, _ = budget.fit(master, tmp_path, ASKED, Limits(asked.bytes // 2), least=0.5)
    assert made.settings.lossy == 0
    assert made.bytes <= asked.bytes // 2


def test_likeness_sees_what_each_step_takes_away(master, tmp_path):
    workshop = budget.Workshop(master, tmp_path, ASKED.width, ASKED.frame_rate)
    for way in budget._steps(ASKED):
        likeness = [workshop.make(step).likeness for step in way]
        assert likeness[0] == max(likeness), way
        assert likeness[-1] < likeness[0] - 0.002, way


@pytest.mark.parametrize(
    ("name", "limit"),
    # as the documentation of each place prints it; see scripts/pipeline/platforms.py
    [("github", 10e6), ("x", 15e6), ("devto", 25e6), ("medium", 25e6), ("notion", 5e6), ("linkedin", 5e6)],
)
def test_a_platform_has_its_documented_limit_and_a_lower_budget_wins(name, limit):
    assert Limits.of(PLATFORMS[name], None).max_bytes == limit
    assert Limits.of(PLATFORMS[name], 1000).max_bytes == 1000
    assert Limits.of(PLATFORMS[name], 10**9).max_bytes == limit
    assert PLATFORMS[name].width <= PLATFORMS[name].max_width
