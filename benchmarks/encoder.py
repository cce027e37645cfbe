"""Our encoder settings beside x264's defaults, which stock Manim uses: python -m benchmarks.encoder

Renders chapters at 1080p60 without loss, encodes the same frames both ways on one thread, alternating, and prints
the median CPU seconds, the size and the SSIM against the lossless frames. Ratios hold on any machine, seconds do not.
"""

import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from manim import CairoRenderer, tempconfig

from scenes import series
from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scripts.pipeline import encode
from scripts.pipeline.encode import Encoder, UnitWriter, read_frames
from scripts.pipeline.quality import QUALITIES

CHAPTERS = (("kv_cache", "same_work_again"), ("rope", "turning"), ("rope", "longer"))
FRAMES = slice(120, 480)  # after the title has come in
REPEATS = 3
QUALITY = QUALITIES["h"]
STOCK = {"crf": "23", "preset": "medium"}


def render_lossless(slug: str, unit: str, path: Path) -> None:
    """Render one chapter to the bit."""
    theme.use("dark")
    settings = {**QUALITY.manim_settings(), "background_color": theme.BACKGROUND, "media_dir": str(path.parent)}
    with tempconfig(settings):
        encoder = Encoder(path, QUALITY, lossless=True)
        writer: Any = lambda given: UnitWriter(given, encoder)  # noqa: E731
        renderer = CairoRenderer(file_writer_class=writer, camera_class=KitCamera)
        series.scene_class(slug)(renderer, unit=unit).render()


def encode_with(options: dict[str, str], frames: list[np.ndarray], path: Path) -> float:
    """Encode RGBA frames with some x264 options; returns CPU seconds."""
    before = encode.VIDEO_OPTIONS, encode.PARAMETERS
    if options is STOCK:
        encode.VIDEO_OPTIONS, encode.PARAMETERS = STOCK, ""
    try:
        start = time.process_time()
        encoder = Encoder(path, QUALITY)
        for frame in frames:
            encoder.write(frame)
        encoder.close()
        return time.process_time() - start
    finally:
        encode.VIDEO_OPTIONS, encode.PARAMETERS = before


def ssim(path: Path, reference: Path) -> float:
    """Return the SSIM of two videos, over the three colors."""
    graph = "[0:v]scale=in_color_matrix=bt709:in_range=tv,format=gbrp[a];[1:v]format=gbrp[b];[a][b]ssim"
    command: list[Any] = ["ffmpeg", "-v", "info", "-i", path, "-i", reference, "-lavfi", graph, "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return float(re.findall(r"All:([\d.]+)", said)[-1])


def main() -> None:
    """Print one line for each chapter and setting, and the ratios."""
    print(f"{'chapter':26} {'settings':9} {'CPU s':>6} {'kB':>6} {'SSIM':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for slug, unit in CHAPTERS:
            master, reference = Path(folder) / "master.mp4", Path(folder) / "reference.mp4"
            render_lossless(slug, unit, master)
            frames = [np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]) for rgb in read_frames(master)][FRAMES]
            whole = Encoder(reference, QUALITY, lossless=True)
            for frame in frames:
                whole.write(frame)
            whole.close()
            ours = encode.VIDEO_OPTIONS
            paths = {"defaults": Path(folder) / "defaults.mp4", "ours": Path(folder) / "ours.mp4"}
            times: dict[str, list[float]] = {"defaults": [], "ours": []}
            for _ in range(REPEATS):
                times["defaults"].append(encode_with(STOCK, frames, paths["defaults"]))
                times["ours"].append(encode_with(ours, frames, paths["ours"]))
            for name, path in paths.items():
                seconds, size = statistics.median(times[name]), path.stat().st_size
                print(f"{slug + ' ' + unit:26} {name:9} {seconds:6.2f} {size / 1000:6.0f} {ssim(path, reference):8.5f}")
            cpu = statistics.median(a / b for a, b in zip(times["ours"], times["defaults"], strict=True))
            bytes_ratio = paths["ours"].stat().st_size / paths["defaults"].stat().st_size
            print(f"{'':26} {'ratio':9} {cpu:6.2f} {bytes_ratio:6.2f}")


if __name__ == "__main__":
    main()
