"""Hashes of source code: which files a module is made of, so that a cached result dies with the code behind it."""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("internals_math", "scenes", "scripts", "tests")


@cache
def source_files(module: str) -> tuple[Path, ...]:
    """Return the files of `module` and of everything in this project that it imports, sorted by path.

    Raises:
        ValueError: the module is not part of this project.
    """
    if _file_of(module) is None:
        raise ValueError(f"{module} is not a module of this project ({', '.join(PACKAGES)})")
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += _imports(path)
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


def _imports(path: Path) -> list[str]:
    package = path.relative_to(ROOT).parent.parts
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package this file lies in, each further dot its parent
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*start, node.module] if node.module else start)
            # `from package import thing`: thing may be a module of its own
            names += [origin] + [f"{origin}.{alias.name}" for alias in node.names]
    # importing a.b.c runs the __init__ of a and a.b
    parents = [".".join(n.split(".")[:k]) for n in names for k in range(1, n.count(".") + 1)]
    return names + parents
