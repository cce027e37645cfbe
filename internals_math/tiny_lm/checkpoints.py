"""Checkpoints: safetensors files that say what they are; the base models are committed, the others cached."""

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from internals_math.storage import cache_folder as cache_folder
from internals_math.tiny_lm.layers import Attention, Factory
from internals_math.tiny_lm.model import ModelConfig, TinyLM

FORMAT = "llm-internals tiny LM 1"
COMMITTED = Path(__file__).parent / "checkpoints"


def save_checkpoint(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any] | None = None,
    *,
    attention: str | None = None,
) -> Path:
    """Write weights with their shape and facts (recipe, seed, loss, floor …); written aside and renamed.

    The same weights and facts give the same bytes. `attention` names the layers' attention, see `attention_factory`.
    """
    said: dict[str, Any] = {"format": FORMAT, "config": config.to_dict()}
    said["facts"] = {**(facts or {}), "torch": torch.__version__}
    if attention is not None:
        said["attention"] = attention
    # One entry only: safetensors writes several in an order that changes from run to run.
    about = json.dumps(said, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, aside, {"about": about})
        aside.chmod(0o644)  # safetensors makes private files
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> TinyLM:
    """Load a model, frozen and ready to use.

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint of this project.
    """
    about, weights = _open(path)
    try:
        model = TinyLM(ModelConfig(**about["config"]), attention=attention_factory(about.get("attention")))
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights that its own description promises: {error}") from error
    return model.eval().requires_grad_(False)


def attention_factory(name: str | None) -> Factory:
    """Return what makes a layer's attention: the model's own, or a topic's, written module:name.

    The model knows no topic, so the module is imported when its attention is needed.

    Raises:
        ValueError: no such attention in this project.
    """
    if name is None:
        return Attention
    module, _, attribute = name.partition(":")
    try:
        if not module.startswith("internals_math."):
            raise ImportError("it is not a module of internals_math")
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"attention must be the module:name of one of this project, got {name!r}: {error}") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself: recipe, seed, loss, entropy floor, corpus hash, torch version.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    return _open(path)[0]["facts"]


def file_hash(path: Path) -> str:
    """Return 16 hex digits over the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def committed_path(name: str) -> Path:
    """Return where the committed checkpoint `name` is or would be."""
    return COMMITTED / f"{name}.safetensors"


def committed_names() -> tuple[str, ...]:
    """Return the checkpoints that come with the project."""
    return tuple(sorted(path.stem for path in COMMITTED.glob("*.safetensors")))


_listeners: list[set[str]] = []


@contextmanager
def names_loaded() -> Iterator[set[str]]:
    """Give a set that fills with the names of the committed models that are asked for."""
    names: set[str] = set()
    _listeners.append(names)
    try:
        yield names
    finally:
        _listeners.remove(names)


def load(name: str = "base") -> TinyLM:
    """Return a committed model, frozen and ready to use; the same object at each call.

    Raises:
        ValueError: no such checkpoint, or a damaged file.
    """
    for names in _listeners:
        names.add(name)
    return _load(name)


@cache
def _load(name: str) -> TinyLM:
    if name not in committed_names():
        raise ValueError(
            f"checkpoint must be one of {', '.join(committed_names())}, got {name!r}; "
            "others are trained on demand (`llm-internals train --help`)"
        )
    return read_checkpoint(committed_path(name))


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}; `llm-internals train` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}); `llm-internals train` makes it again"
        ) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of the tiny LM; `llm-internals train` makes one")
    return about, weights
