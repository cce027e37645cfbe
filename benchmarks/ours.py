"""The benchmark's contents with the kit, through the project's own encoder and pool of processes.

python -m benchmarks.ours CONTENT QUALITY JOBS TARGET prints one JSON object. A content has two parts, as a video has
chapters: each picture begins where the other ended.
"""

import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

CONTENTS = ("number_grids", "bars_and_curves", "formulas")
PARTS = 2


def render_part(content: str, part: int, quality_name: str, path: str) -> dict[str, float]:
    """Render one part; returns CPU seconds of all and of the encoder alone, frames, and the peak memory."""
    from manim import tempconfig

    from benchmarks import kit_scenes
    from scenes.kit import theme
    from scenes.kit.camera import DirectRenderer, KitCamera
    from scripts.pipeline.encode import Encoder, UnitWriter
    from scripts.pipeline.quality import QUALITIES

    gc.collect()  # as a worker does before each unit
    start = time.process_time()
    encode_seconds = 0.0

    class TimedEncoder(Encoder):
        def write(self, *arguments: Any) -> None:
            nonlocal encode_seconds
            before = time.process_time()
            super().write(*arguments)
            encode_seconds += time.process_time() - before

    quality = QUALITIES[quality_name]
    media = str(Path(path).with_suffix(""))
    with tempconfig({**quality.manim_settings(), "background_color": theme.BACKGROUND, "media_dir": media}):
        encoder = TimedEncoder(Path(path), quality)
        writer: Any = lambda given: UnitWriter(given, encoder)  # noqa: E731
        scene = kit_scenes.SCENES[content](DirectRenderer(file_writer_class=writer, camera_class=KitCamera))
        scene.part = part
        scene.render()
    return {
        "cpu_seconds": time.process_time() - start,
        "encode_seconds": encode_seconds,
        "frames": encoder.frames,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(content: str, quality: str, jobs: str, target: str) -> None:
    """Render a content with some processes and join its parts."""
    from scripts.pipeline import ffmpeg
    from scripts.pipeline.render import workers

    paths = [Path(target).with_suffix(f".{part}.mp4") for part in range(PARTS)]
    with workers(int(jobs)) as pool:
        parts = [pool.submit(render_part, content, k, quality, str(path)) for k, path in enumerate(paths)]
        results = [part.result() for part in parts]
    marks = Path(target).with_suffix(".marks")
    marks.write_text(";FFMETADATA1\n")
    ffmpeg.join(paths, None, marks, Path(target))
    whole = {name: sum(result[name] for result in results) for name in ("cpu_seconds", "encode_seconds", "frames")}
    print(json.dumps({**whole, "peak_mb": max(result["peak_mb"] for result in results)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
