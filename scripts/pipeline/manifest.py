"""What is in an output folder: the names of its files, manifest.json, and whether it is up to date.

Imports nothing heavy: a render in which nothing changed is answered from here.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import internals_math
from scenes.series import Topic
from scripts.pipeline.files import file_hash
from scripts.pipeline.known_sources import source_hash
from scripts.pipeline.quality import Quality

MANIFEST = "manifest.json"
FORMATS = ("mp4", "captions", "gif", "webp", "loop", "poster", "sheet")
LOOP_FORMATS = ("gif", "webp", "mp4", "poster")  # of what articles embed
PACKAGES = ("llm-internals", "manim", "torch", "numpy", "av")


def suffix(theme: str) -> str:
    """Return what a theme adds to the name of a file: nothing for dark, "-light" for light."""
    return "" if theme == "dark" else f"-{theme}"


def versions() -> dict[str, str]:
    """Return the versions that a picture depends on."""
    return {name: version(name) for name in PACKAGES}


def request_hash(
    topic: Topic, quality: Quality, settings: Iterable[str], formats: Sequence[str], encoder: str = "x264"
) -> str:
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
        encoder,
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
