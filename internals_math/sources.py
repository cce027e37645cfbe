"""Hashes of source code: which files a module is made of, so that a cached result dies with the code behind it."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("internals_math", "scenes", "scripts")


@cache
def source_files(module: str) -> tuple[Path, ...]:
    """Return the files of `module` and of everything in this project that it imports, sorted by path."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += _imports(name, path)
    return tuple(sorted(found))


@cache
def source_hash(module: str) -> str:
    """Return 16 hex digits that change when the module or a project module behind it changes."""
    digest = hashlib.sha256()
    for path in source_files(module):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _file_of(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(name: str, path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import thing`: thing may be a module of its own
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    # importing a.b.c runs the __init__ of a and a.b
    parents = [".".join(n.split(".")[:k]) for n in names for k in range(1, n.count(".") + 1)]
    return names + parents
