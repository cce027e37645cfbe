"""Loops for articles: GIFs whose flat colors are exact, WebP and MP4 from the same lossless master."""

import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.pipeline import ffmpeg
from scripts.pipeline.encode import read_frames, steady_x264, video_width

GIF_WIDTH = 640
FRAME_RATES = (10, 20, 25)  # a GIF's delays are whole hundredths of a second; others would stutter
EXACT_COLORS = 208  # the most frequent colors are kept to the bit; the rest of the palette serves the edges


def write_gif(master: Path, target: Path, *, width: int = GIF_WIDTH, frame_rate: int = 25) -> bool:
    """Write a GIF with one palette for the whole loop; returns whether gifsicle could make it smaller.

    Args:
        master: lossless video.
        target: file to write.
        width: pixels, at most those of the master.
        frame_rate: one of FRAME_RATES.

    Raises:
        ValueError: a frame rate that the delays of a GIF cannot hold.
        UserError: ffmpeg is missing or failed.
    """
    if frame_rate not in FRAME_RATES:
        raise ValueError(f"the frame rate of a GIF must be one of {', '.join(map(str, FRAME_RATES))}, got {frame_rate}")
    width = min(width, video_width(master))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        small, colors, raw = (Path(folder) / name for name in ("small.mp4", "palette.png", "loop.gif"))
        ffmpeg.scaled(master, small, frame_rate=frame_rate, width=width)
        Image.fromarray(palette_of(small)).save(colors)
        ffmpeg.gif_with_palette(small, colors, raw)
        gifsicle = shutil.which("gifsicle")
        if gifsicle:
            subprocess.run([gifsicle, "-O3", "--no-warnings", str(raw), "-o", str(raw)], check=True)
        raw.replace(target)
    return gifsicle is not None


def palette_of(video: Path) -> np.ndarray:
    """Return a (16, 16, 3) palette: the most frequent colors exactly, and what serves the remaining ones best."""
    counts: Counter[int] = Counter()
    for frame in read_frames(video):
        packed = frame.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
        for color, count in zip(*np.unique(packed, return_counts=True), strict=True):
            counts[int(color)] += int(count)
    ranked = [color for color, _ in counts.most_common()]
    exact, rest = ranked[:EXACT_COLORS], ranked[EXACT_COLORS:]
    palette = [_unpack(color) for color in exact]
    if rest:
        strip = np.array([_unpack(color) for color in rest], dtype=np.uint8)[None]
        merged = Image.fromarray(strip).quantize(256 - len(exact), method=Image.Quantize.MEDIANCUT)
        extra = np.array(merged.getpalette(), dtype=np.uint8).reshape(-1, 3)[: 256 - len(exact)]
        palette += [tuple(int(c) for c in color) for color in extra]
    palette += [palette[0]] * (256 - len(palette))
    return np.array(palette, dtype=np.uint8).reshape(16, 16, 3)


def write_webp(master: Path, target: Path, *, width: int = GIF_WIDTH) -> None:
    """Write an animated WebP."""
    width = min(width, video_width(master))
    settings = {
        "vf": f"fps=25,scale={width}:-2:flags=area",
        "c:v": "libwebp_anim",
        "quality": 82,
        "loop": 0,
        "f": "webp",
    }
    ffmpeg.convert(master, target, settings)


def write_loop_mp4(master: Path, target: Path) -> None:
    """Write a silent MP4 that starts at once."""
    color = {"vf": "scale=out_color_matrix=bt709:out_range=tv", "pix_fmt": "yuv420p", "color_range": "tv"}
    color |= {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}
    settings = {"c:v": "libx264", "crf": 20, "preset": "slow", "threads": 1, "movflags": "+faststart", "f": "mp4"}
    settings |= {"x264-params": steady_x264(), "fflags": "+bitexact"}
    ffmpeg.convert(master, target, {**color, **settings})


def _unpack(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255
