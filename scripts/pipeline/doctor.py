"""What is there on this machine, what is missing, and the command that fixes it.

Nothing is imported before it is looked for, so that the answer comes also where much is missing.
"""

import importlib
import importlib.metadata
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import internals_math
from internals_math.storage import cache_folder
from scripts.pipeline.errors import INSTALL_FFMPEG, INSTALL_GIFSICLE

# name on the package index -> module
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "av": "av",
    "typst": "typst",
    "uharfbuzz": "uharfbuzz",
    "safetensors": "safetensors",
    "jaxtyping": "jaxtyping",
    "ffmpeg-python": "ffmpeg",
    "rich": "rich",
}
REINSTALL = "scripts/run doctor   (installs the pinned packages)"
FONTS = ("Inter-Regular.otf", "Inter-SemiBold.otf", "JetBrainsMono-Regular.ttf", "JetBrainsMono-SemiBold.ttf")
REPOSITORY = Path(internals_math.__path__[0]).parent


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Look at everything rendering needs."""
    packages = [_package(name, module) for name, module in PACKAGES.items()]
    return [_python(), *packages, _manim(), _ffmpeg(), _gifsicle(), _chromium(), _fonts(), _checkpoints(), _cache()]


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def _package(name: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(name, True, importlib.metadata.version(name))
    except (ImportError, OSError) as error:
        return Finding(name, False, str(error), REINSTALL)


def _manim() -> Finding:
    """Import Manim, which needs the system libraries cairo and pango."""
    try:
        importlib.import_module("manim")
        return Finding("manim", True, f"{importlib.metadata.version('manim')} (with cairo and pango)")
    except (ImportError, OSError) as error:
        fix = (
            "apt install libpango1.0-dev libcairo2-dev pkg-config · dnf install pango-devel cairo-devel pkgconf · "
            f"brew install pango cairo pkg-config; then {REINSTALL}"
        )
        return Finding("manim", False, str(error), fix)


def _ffmpeg() -> Finding:
    path = shutil.which("ffmpeg")
    return Finding("ffmpeg", path is not None, path or "not found", INSTALL_FFMPEG)


def _gifsicle() -> Finding:
    path = shutil.which("gifsicle")
    fix = f"{INSTALL_GIFSICLE}   (optional: smaller GIFs)"
    return Finding("gifsicle", path is not None, path or "not found", fix, needed=False)


def _chromium() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    fix = "apt install chromium · dnf install chromium · brew install --cask chromium   (optional: tests of pages)"
    return Finding("chromium", path is not None, path or "not found", fix, needed=False)


def _fonts() -> Finding:
    missing = [name for name in FONTS if not (REPOSITORY / "scenes" / "kit" / "fonts" / name).is_file()]
    return Finding("fonts", not missing, ", ".join(missing) or "bundled", "git checkout scenes/kit/fonts")


def _checkpoints() -> Finding:
    fix = "git checkout internals_math/tiny_lm/checkpoints   (or make them again: llm-internals train)"
    try:
        checkpoints = importlib.import_module("internals_math.tiny_lm.checkpoints")
        names = checkpoints.committed_names()
        for name in names:
            checkpoints.read_facts(checkpoints.committed_path(name))
    except (ImportError, OSError, ValueError) as error:
        return Finding("checkpoints", False, str(error), fix)
    return Finding("checkpoints", "base" in names, ", ".join(names) or "none", fix)


def _cache() -> Finding:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
        return Finding("cache folder", False, reason, "set LLM_INTERNALS_CACHE to a folder that can be written to")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Finding("cache folder", True, f"{folder} ({size / 1e6:.0f} MB)")
