"""Our GIFs beside Manim's own `--format gif`, of the same frames: python -m benchmarks.gif [TOPIC…]

Renders a loop three times at 640 x 360, 25 frames/s: without loss (the reference), by Manim's GIF writer, and as
our GIF from the reference. Prints bytes, the mean error of a color channel (0 to 255), the share of pixels inside areas
of one color that are exact to the bit, and the mean SSIM.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from manim import CairoRenderer, tempconfig

from scenes import series
from scenes.kit import theme
from scenes.kit.camera import KitCamera
from scripts.pipeline import gif
from scripts.pipeline.encode import Encoder, UnitWriter
from scripts.pipeline.gif import Clip
from scripts.pipeline.quality import Quality
from scripts.pipeline.similarity import ssim

TOPICS = ("kv_cache", "rope", "flash_attention")
QUALITY = Quality(640, 360, 25)
SAMPLES = 40
REFERENCE = "reference.mp4"


def render(slug: str, folder: Path, encoder: Encoder | None) -> Path:
    """Render a loop with our writer, or with Manim's own as a GIF; returns the file."""
    theme.use("dark")
    settings = {**QUALITY.manim_settings(), "background_color": theme.BACKGROUND, "media_dir": str(folder)}
    form = {"format": "gif", "write_to_movie": True} if encoder is None else {}
    with tempconfig(settings | form):
        if encoder is None:
            renderer = CairoRenderer(camera_class=KitCamera)
        else:
            writer: Any = lambda given: UnitWriter(given, encoder)  # noqa: E731
            renderer = CairoRenderer(file_writer_class=writer, camera_class=KitCamera)
        series.scene_class(slug)(renderer, unit="loop").render()
        return Path(renderer.file_writer.gif_file_path) if encoder is None else folder / REFERENCE


def compare(shown: Clip, reference: Clip) -> tuple[float, float, float]:
    """Return the mean error of a channel, the share of flat pixels that are exact, and the SSIM."""
    errors, exact, flat, alike = [], 0, 0, []
    length = sum(reference.hundredths)
    for time in range(0, length, max(1, length // SAMPLES)):
        ours, wanted = shown.at(time), reference.at(time)
        errors.append(np.abs(ours.astype(int) - wanted).mean())
        alike.append(ssim(ours, wanted))
        inner = wanted[1:-1, 1:-1]
        around = (wanted[:-2, 1:-1], wanted[2:, 1:-1], wanted[1:-1, :-2], wanted[1:-1, 2:])
        area = np.logical_and.reduce([(inner == side).all(axis=-1) for side in around])
        exact += int(((ours[1:-1, 1:-1] == inner).all(axis=-1) & area).sum())
        flat += int(area.sum())
    return float(np.mean(errors)), exact / flat, float(np.mean(alike))


def main() -> None:
    """Print two lines for each topic, and the ratio of the sizes."""
    print(f"{'loop':26} {'made by':8} {'kB':>6} {'error':>6} {'exact':>7} {'SSIM':>7}")
    for slug in sys.argv[1:] or TOPICS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            encoder = Encoder(folder / REFERENCE, QUALITY, lossless=True)
            render(slug, folder, encoder)
            reference = gif.read_clip(folder / REFERENCE, QUALITY.width, QUALITY.frame_rate)
            paths = {"Manim": render(slug, folder, None), "ours": folder / "ours.gif"}
            gif.write_gif(folder / REFERENCE, paths["ours"])
            for maker, path in paths.items():
                error, exact, alike = compare(gif.read_gif(path), reference)
                size = path.stat().st_size
                print(f"{slug:26} {maker:8} {size / 1000:6.0f} {error:6.2f} {exact:7.2%} {alike:7.4f}", flush=True)
            ratio = paths["ours"].stat().st_size / paths["Manim"].stat().st_size
            print(f"{'':26} {'ratio':8} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
