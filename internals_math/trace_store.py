"""Traces that were computed once: committed beside the core for costly defaults, else in the user's cache folder."""

import importlib.metadata
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from internals_math.sources import source_hash
from internals_math.tiny_lm.checkpoints import cache_folder, committed_names, committed_path, file_hash, names_loaded
from internals_math.tiny_lm.training import one_thread
from internals_math.trace import TopicConfig, digest, read_provenance

COMMITTED = Path(__file__).parent / "traces"


def get(core: ModuleType, config: TopicConfig | None = None, *, fresh: bool = False) -> Any:
    """Return core.trace(config), computed on one thread or read from the store.

    Args:
        core: a topic's module with Config, Trace and trace.
        config: its default if None.
        fresh: compute again even if it is stored.
    """
    chosen = core.Config() if config is None else config
    found = None if fresh else _find(core, chosen)
    if found is not None:
        return found[1]
    return compute(core, chosen, cached_file(core, chosen))


def compute(core: ModuleType, config: TopicConfig, path: Path) -> Any:
    """Compute a trace and keep it in `path` with what it was made of."""
    with (
        one_thread(),
        torch.random.fork_rng(devices=[]),  # the caller's threads and random numbers stay as they were
        names_loaded() as names,
    ):
        torch.manual_seed(0)
        trace = core.trace(config)
    models = {name: file_hash(committed_path(name)) for name in sorted(names)}
    trace.save(path, **provenance(core), models=json.dumps(models))
    return trace


def commit(core: ModuleType) -> Path:
    """Compute the default trace of a topic again and keep it beside the core, in place of an earlier one."""
    target = committed_file(core, core.Config())
    compute(core, core.Config(), target)
    for path in COMMITTED.glob(f"{slug(core)}-*.safetensors"):
        if path != target:
            path.unlink()
    return target


def committed_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return where a trace that comes with the project is or would be."""
    return COMMITTED / f"{slug(core)}-{key(core, config)}.safetensors"


def cached_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return where this trace is or would be cached."""
    return cache_folder() / "traces" / f"{slug(core)}-{digest(key(core, config), torch.__version__)}.safetensors"


def stored_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return the file that holds a trace which `get` has returned before."""
    found = _find(core, config)
    return cached_file(core, config) if found is None else found[0]


def _find(core: ModuleType, config: TopicConfig) -> tuple[Path, Any] | None:
    """Return a stored trace that is whole and whose checkpoints are still the committed ones, and its file."""
    for path in (committed_file(core, config), cached_file(core, config)):
        try:
            if path.is_file() and _models_are_current(path):
                return path, core.Trace.load(path)
        except ValueError:
            continue  # a damaged entry of something that can be made again
    return None


def _models_are_current(path: Path) -> bool:
    models = json.loads(read_provenance(path).get("models", "{}"))
    return all(name in committed_names() and file_hash(committed_path(name)) == models[name] for name in models)


def key(core: ModuleType, config: TopicConfig) -> str:
    """Return a hash of config and source; the checkpoints behind a trace are named in its file."""
    return digest(config.hash, source_hash(core.__name__))


def checkpoints_hash() -> str:
    """Return a hash over the committed checkpoints."""
    return digest(*(file_hash(committed_path(name)) for name in committed_names()))


def slug(core: ModuleType) -> str:
    """Return the topic's name."""
    return core.__name__.rsplit(".", 1)[-1]


def provenance(core: ModuleType) -> dict[str, str]:
    """Return what the numbers were made with: model checkpoints, core source, versions."""
    return {
        "model": checkpoints_hash()[:8],
        "core": source_hash(core.__name__)[:8],
        "llm-internals": importlib.metadata.version("llm-internals"),
        "torch": torch.__version__.split("+")[0],
    }
