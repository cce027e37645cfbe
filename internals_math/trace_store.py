"""Traces that were computed once: committed beside the core for costly defaults, else in the user's cache folder."""

import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from internals_math.sources import source_hash
from internals_math.tiny_lm.checkpoints import cache_folder, committed_names, committed_path, file_hash
from internals_math.tiny_lm.training import one_thread
from internals_math.trace import TopicConfig, digest

COMMITTED = Path(__file__).parent / "traces"


def get(core: ModuleType, config: TopicConfig | None = None, *, fresh: bool = False) -> Any:
    """Return core.trace(config), computed on one thread or read from the store.

    Args:
        core: a topic's module with Config, Trace and trace.
        config: its default if None.
        fresh: compute again even if it is stored.
    """
    chosen = core.Config() if config is None else config
    if not fresh:
        for path in (committed_file(core, chosen), cached_file(core, chosen)):
            if path.is_file():
                try:
                    return core.Trace.load(path)
                except ValueError:
                    continue  # a damaged entry of something that can be made again
    with one_thread(), torch.random.fork_rng(devices=[]):  # the caller's threads and random numbers stay as they were
        torch.manual_seed(0)
        trace = core.trace(chosen)
    trace.save(cached_file(core, chosen), **provenance(core))
    return trace


def committed_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return where a trace that comes with the project is or would be."""
    return COMMITTED / f"{slug(core)}-{key(core, config)}.safetensors"


def cached_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return where this trace is or would be cached."""
    return cache_folder() / "traces" / f"{slug(core)}-{key(core, config)}.safetensors"


def stored_file(core: ModuleType, config: TopicConfig) -> Path:
    """Return the file that holds a trace which `get` has returned before."""
    committed = committed_file(core, config)
    return committed if committed.is_file() else cached_file(core, config)


def key(core: ModuleType, config: TopicConfig) -> str:
    """Return a hash of all that the trace depends on: config, source, checkpoints, torch."""
    return digest(config.hash, source_hash(core.__name__), checkpoints_hash(), torch.__version__)


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
