"""What is in an output folder: the names of its files, manifest.json, and whether it is up to date.

Imports nothing heavy: a render in which nothing changed is answered from here.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import internals_math
from internals_math.sources import source_hash
from scenes.series import Topic
from scripts.pipeline.errors import UserError
from scripts.pipeline.quality import Quality
from scripts.pipeline.units import file_hash

MANIFEST = "manifest.json"
PART = ".part-"  # begins the name of what is not whole yet
FORMATS = ("mp4", "captions", "gif", "webp", "loop", "poster", "sheet")
PACKAGES = ("llm-internals", "manim", "torch", "numpy", "av")


def suffix(theme: str) -> str:
    """Return what a theme adds to the name of a file: nothing for dark, "-light" for light."""
    return "" if theme == "dark" else f"-{theme}"


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


def sweep(folder: Path) -> None:
    """Remove what ended workers left half-written in an output folder."""
    for path in folder.glob(f"{PART}*"):
        shutil.rmtree(path, ignore_errors=True)


def versions() -> dict[str, str]:
    """Return the versions that a picture depends on."""
    return {name: version(name) for name in PACKAGES}


def request_hash(topic: Topic, quality: Quality, settings: Iterable[str], formats: Sequence[str]) -> str:
    """Return a hash of all that a topic's output files depend on, found without importing torch or Manim."""
    data = sorted(path for folder in ("tiny_lm/checkpoints", "traces") for path in _package_files(folder))
    parts = [
        asdict(topic),
        source_hash(topic.module),
        source_hash("scripts.pipeline.worker"),
        [[path.name, file_hash(path)] for path in data],
        versions(),
        asdict(quality),
        sorted(settings),
        sorted(formats),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _package_files(folder: str) -> Iterable[Path]:
    return Path(internals_math.__path__[0], folder).glob("*.safetensors")


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of an output folder; {} if there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest if isinstance(manifest.get("renders"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def unchanged_files(folder: Path, theme: str, request: str) -> list[Path] | None:
    """Return the files of an earlier render if it was of the same `request` and they are all still whole."""
    render = read(folder)["renders"].get(theme) if read(folder) else None
    if not render or render.get("request") != request:
        return None
    files = {folder / name: facts for name, facts in render["files"].items()}
    if not all(path.is_file() and file_hash(path) == facts["sha256"] for path, facts in files.items()):
        return None
    return [*files, folder / MANIFEST]


def known_seconds(folder: Path) -> dict[str, float]:
    """Return how long each unit was in an earlier render."""
    renders = read(folder).get("renders", {}).values()
    return {unit["name"]: unit["seconds"] for render in renders for unit in render.get("units", [])}


def write(folder: Path, about: dict[str, Any], theme: str, render: dict[str, Any], files: Sequence[Path]) -> Path:
    """Add one theme's render to the manifest; what an earlier one said about the other theme stays."""
    facts = {path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in files}
    renders = {name: kept for name, kept in read(folder).get("renders", {}).items() if name != theme}
    renders[theme] = {**render, "files": facts}
    path = folder / MANIFEST
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps({**about, "renders": dict(sorted(renders.items()))}, indent=1, ensure_ascii=False))
    return aside.replace(path)
