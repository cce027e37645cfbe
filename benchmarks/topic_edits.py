"""Times of a real topic at 480p15: rendered for the first time, with nothing changed, and with one chapter edited.

Works on a copy of the project, so that the edit touches nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOPIC, CHAPTER = "kv_cache", "bill"


def measure(folder: Path) -> dict[str, Any]:
    """Return wall seconds and how many units were rendered and reused, for each case."""
    copy = folder / "project"
    for package in ("internals_math", "scenes", "scripts"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    found = {"first": _render(copy), "nothing_changed": _render(copy)}
    scene = copy / "scenes" / f"{TOPIC}.py"
    edited = re.sub(rf'(def {CHAPTER}\(self\):\n        """.*?"""\n)', r"\1        self.hold(0.1)\n", scene.read_text())
    scene.write_text(edited)
    return {"topic": TOPIC, **found, "one_chapter_edited": _render(copy)}


def _render(copy: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "LLM_INTERNALS_CACHE": str(copy / "cache")}
    command = [sys.executable, "-m", "scripts.cli", "render", TOPIC, "-q", "l", "--json", "--out", str(copy / "media")]
    start = time.perf_counter()
    said = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True).stdout
    seconds = time.perf_counter() - start
    result = json.loads(said)[0]
    return {"seconds": round(seconds, 2), "rendered": result["units_rendered"], "reused": result["units_reused"]}
