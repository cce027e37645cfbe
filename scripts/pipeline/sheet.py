"""Contact sheets: the key frames of every chapter in one picture, to look at before anything is called done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scenes.kit.theme import THEMES
from scenes.kit.typography import FILES, FOLDER

COLUMNS = 4
STILL_WIDTH = 640  # as wide as a GIF: what cannot be read here cannot be read there
GAP = 16
LABEL_HEIGHT = 34
FONT_SIZE = 19


@dataclass(frozen=True)
class Still:
    """One key frame."""

    name: str  # for a file
    heading: str  # its chapter
    seconds: float  # from the start of the video
    picture: Image.Image


def write_sheet(
    stills: Sequence[Still], target: Path, *, theme: str, columns: int | None = None, width: int = STILL_WIDTH
) -> None:
    """Write the stills as one PNG, each with its chapter and time under it."""
    colors = THEMES[theme]
    font = ImageFont.truetype(str(FOLDER / FILES["words", False]), FONT_SIZE)
    columns = min(columns or COLUMNS, max(1, len(stills)))
    width = min(width, stills[0].picture.width)
    height = round(width * stills[0].picture.height / stills[0].picture.width)
    rows = -(-len(stills) // columns)
    step_x, step_y = width + GAP, height + LABEL_HEIGHT + GAP
    sheet = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), colors["LINES"])
    pen = ImageDraw.Draw(sheet)
    for index, still in enumerate(stills):
        row, column = divmod(index, columns)
        x, y = GAP + column * step_x, GAP + row * step_y
        sheet.paste(still.picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (x, y))
        minutes, seconds = divmod(still.seconds, 60)
        pen.text((x, y + height + 7), f"{int(minutes)}:{seconds:04.1f}", font=font, fill=colors["TEXT"])
        pen.text((x + 76, y + height + 7), still.heading, font=font, fill=colors["TEXT"])
    sheet.save(target)
