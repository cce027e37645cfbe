"""Tells which source files were saved."""

from collections.abc import AsyncIterator
from pathlib import Path

from watchfiles import Change, awatch

from scripts.pipeline.files import file_hash
from scripts.pipeline.preview.mistakes import ROOT

QUIET_MILLISECONDS = 20  # an editor may write a file in several steps
LONGEST_MILLISECONDS = 200


async def saves(module: str) -> AsyncIterator[set[str]]:
    """Yield the Python files whose content has just changed: of the core, the scenes, and the folder of `module`.

    Saving a file as it is, and the several events of one save, change nothing after the first.
    """
    own = ROOT.joinpath(*module.split(".")).parent
    known: dict[str, str] = {}
    folders = {ROOT / "internals_math", ROOT / "scenes", own}
    async for changes in awatch(
        *sorted(folders), watch_filter=_is_source, step=QUIET_MILLISECONDS, debounce=LONGEST_MILLISECONDS
    ):
        found = {path: _content(path) for _, path in changes}
        changed = {path for path, content in found.items() if known.get(path) != content}
        known |= found
        if changed:
            yield changed


def _content(path: str) -> str:
    try:
        return file_hash(Path(path))
    except OSError:  # it was removed
        return ""


def _is_source(_: Change, path: str) -> bool:
    return path.endswith(".py") and not Path(path).name.startswith(".")
