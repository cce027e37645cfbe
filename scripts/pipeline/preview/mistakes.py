"""Errors as the page shows them: what, in which file and line, and the code around it. Imports nothing heavy."""

import linecache
import traceback
from pathlib import Path
from typing import Any

from scripts.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("internals_math", "scenes", "scripts", "tests")
LINES_AROUND = 2


def is_ours(path: str | Path | None) -> bool:
    """Return whether a file is a source of this project."""
    return (
        bool(path) and Path(str(path)).is_relative_to(ROOT) and Path(str(path)).relative_to(ROOT).parts[0] in PACKAGES
    )


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data.

    `file` and `line` are those of the deepest place in the sources that a user edits (a scene before the kit that it
    called), None for what is no mistake of the code; `excerpt` is a list of (line number, text).
    """
    if isinstance(error, UserError):
        return plain(str(error))
    path, line = _place(error)
    text = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    return {
        "message": f"{type(error).__name__}: {text}" if text else type(error).__name__,
        "file": path.relative_to(ROOT).as_posix() if path else None,
        "line": line,
        "excerpt": _excerpt(path, line) if path and line else [],
        "traceback": "".join(traceback.format_exception(error)).strip(),
    }


def plain(message: str) -> dict[str, Any]:
    """Return what went wrong outside of the sources, as `describe` does."""
    return {"message": message, "file": None, "line": None, "excerpt": [], "traceback": ""}


def _place(error: BaseException) -> tuple[Path | None, int | None]:
    if isinstance(error, SyntaxError) and is_ours(error.filename):
        return Path(str(error.filename)), error.lineno
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    ours = [(path, line) for path, line in frames if is_ours(path)]
    # the kit refuses what a scene gave it, and the pipeline only passes it on: the scene is where to look first
    edited = [place for place in ours if not _is_machinery(place[0])]
    return (edited or ours or [(None, None)])[-1]


def _is_machinery(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return parts[0] == "scripts" or parts[:2] == ("scenes", "kit")


def _excerpt(path: Path, line: int) -> list[tuple[int, str]]:
    linecache.checkcache(str(path))
    lines = linecache.getlines(str(path))
    first, last = max(1, line - LINES_AROUND), min(len(lines), line + LINES_AROUND)
    return [(number, lines[number - 1].rstrip("\n")) for number in range(first, last + 1)]
