"""Files that are whole or absent: written aside under the name of one call of the pipeline, then renamed."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.pipeline.errors import UserError


def check_folder(folder: Path) -> None:
    """Make a folder and make sure that it can be written to.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error


@contextmanager
def written_aside(folder: Path, run: str) -> Iterator[tuple[Path, list[Path]]]:
    """Give a folder to write files into; when all is well they are renamed into `folder` and listed.

    Args:
        folder: where the files belong.
        run: the call of the pipeline, which sweeps away what an ended worker leaves.
    """
    check_folder(folder)
    files: list[Path] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=part_prefix(run)) as name:
        aside = Path(name)
        yield aside, files
        for path in sorted(aside.iterdir()):
            files.append(path.replace(folder / path.name))


def part_prefix(run: str) -> str:
    """Return how the names of what a call of the pipeline has not finished begin."""
    return f".part-{run}-"


def sweep(folder: Path, run: str) -> None:
    """Remove what the ended workers of one call left half-written in a folder."""
    for path in folder.glob(f"{part_prefix(run)}*"):
        shutil.rmtree(path, ignore_errors=True)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
