"""Our rendering beside stock Manim's: python -m benchmarks [--quick] [--quality h,m,l] [--repeats 2]

Runs `manim render --disable_caching` and ours alternately on the same contents and writes a table, the measurements as
JSON and a plot to benchmarks/results/. CPU ratios hold also on a machine that does other work; wall times need a quiet
one.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import growth, report, topic_edits
from benchmarks.ours import CONTENTS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STOCK_NAMES = {"number_grids": "NumberGrids", "bars_and_curves": "BarsAndCurves", "formulas": "Formulas"}


def measured(command: list[str]) -> tuple[dict[str, float], str]:
    """Run a command; returns its wall and CPU seconds and the peak memory of its processes, and its output."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}, said


def stock(content: str, quality: str, folder: Path) -> tuple[dict[str, float], Path]:
    """Render a content with the stock command."""
    options = [f"-q{quality}", "--disable_caching", "--media_dir", str(folder / "media"), "-v", "ERROR"]
    command = [sys.executable, "-m", "manim", "render", *options, "benchmarks/stock_scenes.py", STOCK_NAMES[content]]
    result, _ = measured(command)
    video = next((folder / "media").glob(f"videos/stock_scenes/*/{STOCK_NAMES[content]}.mp4"))
    return result, video.replace(folder / f"stock-{content}-{quality}.mp4")


def ours(content: str, quality: str, jobs: int, folder: Path) -> tuple[dict[str, float], Path]:
    """Render a content with the kit and some processes."""
    video = folder / f"ours-{content}-{quality}-{jobs}.mp4"
    command = [sys.executable, "-m", "benchmarks.ours", content, quality, str(jobs), str(video)]
    result, said = measured(command)
    inside = json.loads(said.splitlines()[-1])
    whole = {**result, "render_cpu": inside["cpu_seconds"], "encode_cpu": inside["encode_seconds"]}
    return {**whole, "frames": inside["frames"], "peak_mb": inside["peak_mb"]}, video


def compare(content: str, quality: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Measure a content both ways, alternating; medians."""
    runs: dict[str, list[dict[str, float]]] = {"stock": [], "ours": [], "ours_1_process": []}
    for _ in range(repeats):
        result, stock_video = stock(content, quality, folder)
        runs["stock"].append(result)
        result, video = ours(content, quality, 2, folder)
        runs["ours"].append(result)
        runs["ours_1_process"].append(ours(content, quality, 1, folder)[0])
    medians = {
        side: {name: round(statistics.median(run[name] for run in results), 2) for name in results[0]}
        for side, results in runs.items()
    }
    # the processes of a pool are not this command's to count; one process does the same work and all is counted
    medians["ours"]["cpu"] = medians["ours_1_process"]["cpu"]
    sides = medians["stock"], medians["ours"]
    return {
        "content": content,
        "quality": quality,
        **medians,
        "wall_ratio": round(sides[0]["wall"] / sides[1]["wall"], 2),
        "cpu_ratio": round(sides[0]["cpu"] / sides[1]["cpu"], 2),
        "render_cpu_over_encode": round(sides[1]["render_cpu"] / sides[1]["encode_cpu"], 2),
        "speedup_of_2_processes": round(medians["ours_1_process"]["wall"] / sides[1]["wall"], 2),
        "ssim": ssim(video, stock_video),
        "kilobytes": {"stock": stock_video.stat().st_size // 1000, "ours": video.stat().st_size // 1000},
    }


def ssim(ours_video: Path, stock_video: Path) -> float:
    """Return ffmpeg's SSIM of two YUV 4:2:0 videos, in which luma counts twice as much as both chromas together.

    Stock Manim writes BT.601 without saying so, ours is BT.709.
    """
    same = "scale=in_color_matrix={}:out_color_matrix=bt709:in_range=tv:out_range=tv,format=yuv420p"
    graph = f"[0:v]{same.format('bt709')}[a];[1:v]{same.format('bt601')}[b];[a][b]ssim"
    command: list[Any] = [
        "ffmpeg",
        "-v",
        "info",
        "-i",
        ours_video,
        "-i",
        stock_video,
        "-lavfi",
        graph,
        "-f",
        "null",
        "-",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return float(re.findall(r"All:([\d.]+)", said)[-1])


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    packages = {name: version(name) for name in ("llm-internals", "manim", "av", "numpy", "pycairo")}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    load = round(os.getloadavg()[0], 1)
    return {"processor": processor, "cores": os.cpu_count(), "system": platform.system(), "load_before": load,
            "python": platform.python_version(), **packages}  # fmt: skip


def main() -> None:
    """Measure and write the results; what is measured already is written at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quality", default="h,m,l", help="of l, m, h, separated by commas")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="contents alone: no growth, no real topic")
    chosen = parser.parse_args()
    facts: dict[str, Any] = {"machine": machine(), "contents": []}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for quality in chosen.quality.split(","):
            for content in CONTENTS:
                facts["contents"].append(compare(content, quality, chosen.repeats, Path(name)))
                print(json.dumps(facts["contents"][-1]), file=sys.stderr)
                report.write(facts, RESULTS)
        if not chosen.quick:
            facts["growth"] = growth.measure()
            facts["edits"] = topic_edits.measure(Path(name))
            report.write(facts, RESULTS)
    print(RESULTS / "results.md")


if __name__ == "__main__":
    main()
