"""The numbers themselves: a topic's Trace as a table, as JSON, or as a safetensors file."""

import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from internals_math import progress, trace_store
from internals_math.trace import TopicTrace
from scripts.pipeline.errors import WrongUse
from scripts.pipeline.files import check_folder
from scripts.pipeline.progress import WorkProgress

SHOWN = 8  # numbers of a tensor in the table
SHOWN_WORDS = 20


def load(slug: str, settings: Iterable[str], *, fresh: bool = False) -> TopicTrace:
    """Return a topic's trace for `name=value` settings.

    Raises:
        WrongUse: a setting that the topic does not have, or a value out of its range.
    """
    return trace_of(importlib.import_module(f"internals_math.{slug}"), settings, fresh=fresh)


def trace_of(core: ModuleType, settings: Iterable[str], *, fresh: bool = False) -> Any:
    """Return the trace of a core module for `name=value` settings; raises as `load` does."""
    try:
        config = core.Config.parse(settings)
    except ValueError as error:
        raise WrongUse(str(error)) from error
    with WorkProgress() as bars, progress.listening(bars):
        return trace_store.get(core, config, fresh=fresh)


def commit(slug: str) -> Path:
    """Keep a topic's default trace beside its core, so that nobody waits for its experiments."""
    core = importlib.import_module(f"internals_math.{slug}")
    with WorkProgress() as bars, progress.listening(bars):
        return trace_store.commit(core)


def to_table(trace: TopicTrace) -> str:
    """Return one line for each field: name, shape, first values."""
    rows = [(name, *_describe(value)) for name, value in trace.to_flat().items()]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    config = ", ".join(f"{name}={value}" for name, value in trace.config.to_dict().items())  # type: ignore[attr-defined]
    lines = [f"{name:{wide[0]}}  {shape:{wide[1]}}  {text}" for name, shape, text in rows]
    return "\n".join([f"config: {config}", f"hash:   {trace.hash}", *lines])


def to_json(trace: TopicTrace) -> str:
    """Return config, hash and all values; NaN ("no cell here") is null."""
    values = {name: _plain(value) for name, value in trace.to_flat().items()}
    config = trace.config.to_dict()  # type: ignore[attr-defined]
    return json.dumps({"config": config, "hash": trace.hash, "values": values}, ensure_ascii=False, allow_nan=False)


def save(trace: TopicTrace, slug: str, path: Path) -> Path:
    """Write the trace as safetensors."""
    core = importlib.import_module(f"internals_math.{slug}")
    check_folder(path.parent)
    trace.save(path, **trace_store.provenance(core))
    return path


def _describe(value: Any) -> tuple[str, str]:
    """Return the shape of a value and how it begins."""
    if isinstance(value, Tensor):
        flat = value.reshape(-1)
        shown = " ".join(_text(number) for number in flat[:SHOWN].tolist())
        return "×".join(map(str, value.shape)) or "()", shown + (" …" if flat.numel() > SHOWN else "")
    if isinstance(value, list):
        separator = " | " if any(" " in str(part) or not part for part in value) else " "  # phrases, not words
        shown = separator.join(map(str, value[:SHOWN_WORDS]))
        return str(len(value)), shown + (f"{separator}…" if len(value) > SHOWN_WORDS else "")
    return "", _text(value)


def _text(value: Any) -> str:
    """Return five digits of a fraction, and everything else whole."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
