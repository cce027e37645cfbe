"""Looking at scenes: contact sheets and stills from quickly rendered units."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from scenes.kit import theme as kit_theme
from scripts.pipeline.errors import UserError
from scripts.pipeline.outputs import check_folder, stills_of, suffix
from scripts.pipeline.render import Report, Request, render_units
from scripts.pipeline.sheet import write_sheet


def sheets(
    slug: str,
    quality: str,
    themes: Sequence[str],
    settings: Sequence[str],
    chapter: str | None,
    columns: int,
    out: Path,
    stills: Path | None,
    report: Report,
) -> list[Path]:
    """Write a contact sheet for each theme and return the paths (and those of the stills).

    Raises:
        UserError: the topic could not be rendered; its traceback was reported.
    """
    check_folder(out)
    request = Request(quality, tuple(themes), tuple(settings), chapter, (), None, out)
    written: list[Path] = []
    for theme, units in render_units(slug, request, report).items():
        if not units:
            raise UserError(f"{slug} could not be rendered; see above")
        kit_theme.use(theme)
        frames = stills_of(units)
        part = f"-{units[0].unit}" if chapter else ""
        target = out / slug / f"sheet{part}{suffix(theme)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(list(frames), target, columns=columns)
        written.append(target)
        if stills is not None:
            check_folder(stills)
            for number, still in enumerate(frames):
                path = stills / f"{number:02d}-{still.unit}{suffix(theme)}.png"
                Image.fromarray(still.pixels).save(path)
                written.append(path)
    return written
