"""Hashes of source code, remembered while no file of the project changes: to parse them all is most of the work of a
render in which nothing changed."""

import contextlib
import hashlib
import json
import os
from functools import cache

from internals_math import sources
from internals_math.storage import cache_folder


def source_hash(module: str) -> str:
    """Return what `sources.source_hash` does, from an earlier call if all files are as they were then."""
    state, path = _state(), cache_folder() / "sources.json"
    known = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    if not isinstance(known, dict) or known.get("state") != state:
        known = {"state": state}
    if module not in known:
        known[module] = sources.source_hash(module)
        with contextlib.suppress(OSError):  # next time then
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".sources-{os.getpid()}.json")
            aside.write_text(json.dumps(known))
            aside.replace(path)
    return known[module]


@cache
def _state() -> str:
    """Return a hash of every source file of the project, whether it is imported or not."""
    digest = hashlib.sha256()
    for package in sources.PACKAGES:
        for path in sorted((sources.ROOT / package).rglob("*.py")):
            digest.update(path.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
