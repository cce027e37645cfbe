"""Files made of one unit's video alone, kept in the unit's folder: a loop that did not change is converted once."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from internals_math.sources import source_hash
from scripts.pipeline.files import file_hash
from scripts.pipeline.units import RenderedUnit

HASH_LENGTH = 24


def make_once(unit: RenderedUnit, target: Path, make: Callable[[Path, Path], object]) -> None:
    """Write `target` with make(video, target), or copy what the same code made of the unit before.

    Args:
        unit: rendered; nothing but its video goes into the file.
        target: file to write; its suffix tells its kind.
        make: a function of a module of the pipeline, always called with its defaults.
    """
    parts = [make.__module__, make.__qualname__, source_hash(make.__module__), version("av"), shutil.which("gifsicle")]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:HASH_LENGTH]
    for kept in unit.folder.glob(f"made-{key}-*{target.suffix}"):
        with contextlib.suppress(OSError):
            if kept.stem.endswith(file_hash(kept)[:HASH_LENGTH]):
                shutil.copyfile(kept, target)
                return
            kept.unlink()  # damaged
    make(unit.video, target)
    with contextlib.suppress(OSError):  # the cache was pruned meanwhile, or has no room: it is made again next time
        kept = unit.folder / f"made-{key}-{file_hash(target)[:HASH_LENGTH]}{target.suffix}"
        aside = unit.folder / f".{kept.name}"
        shutil.copyfile(target, aside)
        aside.replace(kept)
