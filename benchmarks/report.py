"""The benchmark's results as a table, as JSON and as a plot."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from scenes.kit import theme
from scenes.kit.typography import FILES, FOLDER

BARS = {"number_grids": 5.0, "bars_and_curves": 3.0, "formulas": 3.0}  # wall time of stock over ours at 1080p60
SIZES = {"l": "480p15", "m": "720p30", "h": "1080p60"}


def write(facts: dict[str, Any], folder: Path) -> None:
    """Write results.json, results.md and results.png."""
    (folder / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "results.md").write_text(table(facts))
    plot(facts["contents"], folder / "results.png")


def table(facts: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["# Stock Manim and ours, the same contents", ""]
    lines += [f"{name.replace('_', ' ')}: {value}  " for name, value in facts["machine"].items()]
    lines += [
        "",
        "Ratios are stock over ours; times are seconds with start-up, ours on two processes. "
        "CPU / encode compares all CPU seconds of ours without start-up to those of converting and encoding alone.",
        "",
        "| content | size | wall stock | wall ours | ratio | CPU stock | CPU ours | ratio | CPU / encode "
        "| 1 → 2 processes | SSIM | kB stock | kB ours | MB a worker |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in facts["contents"]:
        stock, ours, size = row["stock"], row["ours"], row["kilobytes"]
        cells = [
            row["content"].replace("_", " "), SIZES[row["quality"]],
            stock["wall"], ours["wall"], f"**{row['wall_ratio']}**",
            stock["cpu"], ours["cpu"], f"**{row['cpu_ratio']}**", row["render_cpu_over_encode"],
            row["speedup_of_2_processes"],
            f"{row['ssim']:.4f}", size["stock"], size["ours"], f"{ours['peak_mb']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    if "growth" in facts:
        lines += ["", "Milliseconds to draw one 1080p frame of a moving grid, by number of cells:", ""]
        lines += ["| cells | ours | stock squares |", "|--:|--:|--:|"]
        lines += [f"| {row['cells']} | {row['ours_ms']} | {row.get('stock_ms', '')} |" for row in facts["growth"]]
    if "edits" in facts:
        lines += ["", f"`llm-internals render {facts['edits']['topic']} -q l`:", ""]
        lines += ["| | seconds | units rendered | reused |", "|---|--:|--:|--:|"]
        cases = {name: case for name, case in facts["edits"].items() if name != "topic"}
        lines += [
            f"| {name.replace('_', ' ')} | {case['seconds']} | {case['rendered']} | {case['reused']} |"
            for name, case in cases.items()
        ]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a pair of bars, stock over ours in CPU and in wall time, for each content and size."""
    step, left, width = 66, 330, 1100
    image = Image.new("RGB", (width, 80 + step * len(rows)), theme.BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(str(FOLDER / FILES["words", False]), 20)
    top = max([6.0, *(max(row["wall_ratio"], row["cpu_ratio"]) for row in rows)])
    unit = (width - left - 120) / top
    draw.text((20, 20), "Stock Manim over ours:", theme.TEXT, font)
    draw.text((240, 20), "times less wall time", theme.KEY, font)
    draw.text((440, 20), "times less CPU", theme.VALUE, font)
    draw.text((590, 20), "what we aim at", theme.SCORE, font)
    for k, row in enumerate(rows):
        y = 70 + step * k
        draw.text((20, y + 10), f"{row['content'].replace('_', ' ')}, {SIZES[row['quality']]}", theme.TEXT, font)
        for name, color, shift in (("wall_ratio", theme.KEY, 0), ("cpu_ratio", theme.VALUE, 25)):
            draw.rectangle((left, y + shift, left + unit * row[name], y + shift + 20), color)
            draw.text((left + unit * row[name] + 8, y + shift - 3), f"{row[name]:.1f}", color, font)
        if row["quality"] == "h":
            bar = left + unit * BARS[row["content"]]
            draw.line((bar, y - 4, bar, y + 49), theme.SCORE, 3)
    image.save(path, optimize=True)
