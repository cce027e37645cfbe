"""What is there on this machine, what is missing, and the command that fixes it."""

import importlib.metadata
import shutil
import sys
from dataclasses import dataclass

from internals_math.tiny_lm.checkpoints import cache_folder, committed_names, read_facts
from internals_math.tiny_lm.checkpoints import committed_path as checkpoint_path
from scenes.kit.typography import FILES, FOLDER
from scripts.pipeline.ffmpeg import INSTALL

PACKAGES = ("manim", "torch", "numpy", "av", "typst", "uharfbuzz", "safetensors", "click", "rich", "ffmpeg-python")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ok: bool
    found: str
    fix: str
    needed: bool = True


def examine() -> list[Finding]:
    """Look at everything rendering needs."""
    return [_python(), *map(_package, PACKAGES), _manim(), _ffmpeg(), _gifsicle(), _fonts(), _checkpoints(), _cache()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name), "")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "scripts/run doctor   (installs the pinned packages)")


def _manim() -> Finding:
    """Import Manim, which needs the system libraries cairo and pango."""
    try:
        import manim  # noqa: F401
    except ImportError as error:
        fix = (
            "apt install libpango1.0-dev libcairo2-dev pkg-config · dnf install pango-devel cairo-devel pkgconf · "
            "brew install pango cairo pkg-config"
        )
        return Finding("cairo and pango", False, str(error), fix)
    return Finding("cairo and pango", True, "Manim imports", "")


def _ffmpeg() -> Finding:
    path = shutil.which("ffmpeg")
    return Finding("ffmpeg", path is not None, path or "not found", INSTALL)


def _gifsicle() -> Finding:
    path = shutil.which("gifsicle")
    fix = "apt install gifsicle · dnf install gifsicle · brew install gifsicle   (optional: smaller GIFs)"
    return Finding("gifsicle", path is not None, path or "not found", fix, needed=False)


def _fonts() -> Finding:
    missing = [file for file in FILES.values() if not (FOLDER / file).is_file()]
    return Finding("fonts", not missing, ", ".join(missing) or "bundled", "git checkout scenes/kit/fonts")


def _checkpoints() -> Finding:
    fix = "git checkout internals_math/tiny_lm/checkpoints   (or: llm-internals train)"
    try:
        names = committed_names()
        for name in names:
            read_facts(checkpoint_path(name))
    except ValueError as error:
        return Finding("checkpoints", False, str(error), fix)
    return Finding("checkpoints", "base" in names, ", ".join(names), fix)


def _cache() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("cache folder", False, f"{folder}: {error.strerror}", "set LLM_INTERNALS_CACHE to a writable folder")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Finding("cache folder", True, f"{folder} ({size / 1e6:.0f} MB)", "")
