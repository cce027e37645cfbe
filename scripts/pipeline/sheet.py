"""Contact sheets: the key frames of every chapter in one picture, to look at before anything is called done."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scenes.kit import theme
from scenes.kit.typography import FILES, FOLDER

COLUMNS = 4
STILL_WIDTH = 480
GAP = 14
LABEL_HEIGHT = 30


@dataclass(frozen=True)
class Still:
    """One key frame."""

    unit: str
    seconds: float  # from the start of the video
    pixels: np.ndarray


def write_sheet(stills: list[Still], target: Path, *, columns: int = COLUMNS, width: int = STILL_WIDTH) -> None:
    """Write the stills as one PNG, each with its chapter and time under it."""
    font = ImageFont.truetype(str(FOLDER / FILES["words", False]), 15)
    height = round(width * stills[0].pixels.shape[0] / stills[0].pixels.shape[1])
    rows = -(-len(stills) // columns)
    step_x, step_y = width + GAP, height + LABEL_HEIGHT + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), theme.SURFACE)
    pen = ImageDraw.Draw(sheet)
    for index, still in enumerate(stills):
        row, column = divmod(index, columns)
        x, y = GAP + column * step_x, GAP + row * step_y
        sheet.paste(Image.fromarray(still.pixels).resize((width, height), Image.Resampling.LANCZOS), (x, y))
        pen.text((x + 4, y + height + 6), f"{still.unit}  ·  {still.seconds:.1f} s", font=font, fill=theme.TEXT)
    sheet.save(target)
