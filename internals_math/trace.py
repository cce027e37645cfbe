"""What every topic's Config and Trace share: ranges, parsing, hashing, saving and loading.

A topic declares

    @dataclass(frozen=True)
    class Config(TopicConfig):
        layer: int = option(0, "decoder layer to show", minimum=0, maximum=2)

    @dataclass(frozen=True, eq=False)
    class Trace(TopicTrace):
        config: Config
        keys: Float[Tensor, "T d"]

and both get their checks, `--set name=value`, hashes and safetensors files from here.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import operator
import os
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Not typing.Self: the run-time shape checks of the tests look at methods one by one and do not know their class.
ConfigType = TypeVar("ConfigType", bound="TopicConfig")
TraceType = TypeVar("TraceType", bound="TopicTrace")


def option(
    default: Any,
    help: str,
    *,
    minimum: int | float | None = None,
    maximum: int | float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Declare a Config field with its help text and the values it allows (inclusive bounds)."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TopicConfig:
    """Base of every topic's Config: each field is checked against the range that `option` gave it."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec in fields(self):
            value = _of_kind(spec.name, getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)  # 100 becomes 100.0: equal settings, equal hash
            _check_range(spec, value)
        self.check()

    def check(self) -> None:
        """Check what one field's range cannot say; raise ValueError with the sentence a user reads."""

    @classmethod
    def parse(cls: type[ConfigType], assignments: Iterable[str]) -> ConfigType:
        """Make a Config from `name=value` texts, as the command line gives them.

        Raises:
            ValueError: unknown name (the nearest is suggested), a value of the wrong kind or out of range.
        """
        specs = {spec.name: spec for spec in fields(cls)}
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise ValueError(f"a setting must read name=value, got {assignment!r}")
            name = name.strip()
            if name not in specs:
                close = difflib.get_close_matches(name, specs, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(f"unknown setting {name!r}; {hint}allowed: {', '.join(specs)}")
            values[name] = _parse_value(name, text.strip(), hints[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def hash(self) -> str:
        """Return 16 hex digits that change with any field."""
        return digest(type(self).__module__, json.dumps(self.to_dict(), sort_keys=True))


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return the value as the type its field declares; other annotations than those of _KINDS are trusted."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return value if value is None else _of_kind(name, value, _not_none(kind))
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
        return tuple(_of_kind(name, item, typing.get_args(kind)[0]) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in _KINDS and type(value) is not kind:
        raise TypeError(f"{name} must be {_KINDS[kind]}, got {value!r}")
    return value


def _check_range(spec: dataclasses.Field, value: Any) -> None:
    low, high, choices = (spec.metadata.get(key) for key in ("minimum", "maximum", "choices"))
    if value is None:
        return
    if choices is not None and value not in choices:
        raise ValueError(f"{spec.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    if low is None and high is None:
        return
    for item in value if isinstance(value, tuple) else (value,):
        too_low, too_high = low is not None and item < low, high is not None and item > high
        if not math.isfinite(item) or too_low or too_high:
            raise ValueError(f"{spec.name} must be {_range_text(low, high)}, got {value!r}")


def _range_text(low: int | float | None, high: int | float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"in {low}..{high}"


def _not_none(kind: Any) -> Any:
    """Return the `int` of `int | None`."""
    return next(part for part in typing.get_args(kind) if part is not type(None))


def _parse_value(name: str, text: str, kind: Any) -> Any:
    """Turn command-line text into the field's type; `kind` is its annotation."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if text.lower() == "none" else _parse_value(name, text, _not_none(kind))
    if origin is typing.Literal:
        return text
    if origin is tuple:
        return tuple(_parse_value(name, part.strip(), typing.get_args(kind)[0]) for part in text.split(",") if part)
    if kind is bool:
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise ValueError(f"{name} must be true or false, got {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {_KINDS.get(kind, kind.__name__)}, got {text!r}") from None


@dataclass(frozen=True, eq=False)
class TopicTrace:
    """Base of every topic's Trace: everything its scene draws, and nothing else.

    A field is a Tensor, a number, bool, str or None, a tuple of str, a dict from str to one of these, or a frozen
    dataclass whose columns have equal length. `to_flat` names the parts of the last two with dots.
    """

    def to_flat(self) -> dict[str, Any]:
        """Return all fields but config under flat dotted names."""
        flat: dict[str, Any] = {}
        for spec in fields(self):
            if spec.name != "config":
                flat.update(_flatten(spec.name, getattr(self, spec.name)))
        return flat

    @property
    def hash(self) -> str:
        """Return 16 hex digits over every value, bit by bit."""
        parts = [json.dumps(self.config.to_dict(), sort_keys=True)]  # type: ignore[attr-defined]
        for name, value in self.to_flat().items():
            parts += [name, _bytes(value) if isinstance(value, Tensor) else json.dumps(value)]
        return digest(*parts)

    def hash_of(self, names: Iterable[str]) -> str:
        """Return 16 hex digits over the values of some fields, such as "keys" or "config.base", bit by bit."""
        parts: list[str | bytes] = []
        for name in sorted(names):
            parts += [name, *_value_parts(operator.attrgetter(name)(self))]
        return digest(*parts)

    def save(self, path: Path, **provenance: str) -> None:
        """Write one safetensors file; it is written aside and renamed, so it is whole or absent.

        Args:
            path: the file to make; its folder is made too.
            provenance: what produced the values (checkpoint hash, versions), kept beside them.
        """
        flat = self.to_flat()
        kept = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
        tensors = {name: value.detach().contiguous().clone() for name, value in kept.items()}
        about = {
            "config": self.config.to_dict(),  # type: ignore[attr-defined]
            "values": {name: value for name, value in flat.items() if not isinstance(value, Tensor)},
            "order": list(flat),
            "hash": self.hash,
            "provenance": provenance,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            # One entry only: safetensors writes several in an order that changes from run to run.
            save_file(tensors, aside, {"about": json.dumps(about, sort_keys=True)})
            aside.chmod(0o644)  # safetensors makes private files
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls: type[TraceType], path: Path) -> TraceType:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file is damaged, foreign, or its values do not match its hash.
        """
        try:
            about, flat = _read(path)
            flat.update(about["values"])
            flat = {name: flat[name] for name in about["order"]}
            kinds = {spec.name: spec.type for spec in fields(cls)}
            config = kinds.pop("config")(**_tuples(about["config"]))  # type: ignore[operator]
            trace = cls(config, **{name: _rebuild(name, kind, flat) for name, kind in kinds.items()})  # type: ignore[call-arg]
        except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a {cls.__module__} trace of this version: {error}") from error
        if trace.hash != about["hash"]:
            raise ValueError(f"{path} is damaged: its values do not match its hash {about['hash']}")
        return trace


def read_provenance(path: Path) -> dict[str, str]:
    """Return what `TopicTrace.save` was told about the origin of the values in `path`.

    Raises:
        ValueError: the file is damaged or foreign.
    """
    try:
        return _read(path)[0]["provenance"]
    except (SafetensorError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a trace of this version: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a file says of itself, and its tensors."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        value = {spec.name: getattr(value, spec.name) for spec in fields(value)}
    parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return {key: list(part) if isinstance(part, tuple) else part for key, part in parts.items()}


def _value_parts(value: Any) -> list[str | bytes]:
    """Return a field's values as texts and bytes, with what it is made of in front."""
    if isinstance(value, Tensor):
        return [_bytes(value)]
    if dataclasses.is_dataclass(value):
        value = {spec.name: getattr(value, spec.name) for spec in fields(value)}
    if isinstance(value, dict):
        return [json.dumps(list(value)), *(part for item in value.values() for part in _value_parts(item))]
    if isinstance(value, tuple | list):
        return [str(len(value)), *(part for item in value for part in _value_parts(item))]
    return [json.dumps(value)]


def _rebuild(name: str, kind: Any, flat: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(kind):
        return kind(**{spec.name: _tuples(flat[f"{name}.{spec.name}"]) for spec in fields(kind)})  # type: ignore[operator]
    if typing.get_origin(kind) is dict:
        prefix = f"{name}."
        return {key.removeprefix(prefix): _tuples(part) for key, part in flat.items() if key.startswith(prefix)}
    return _tuples(flat[name])


def _tuples(value: Any) -> Any:
    """Turn the lists that JSON gives back into the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _bytes(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return head + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(*parts: str | bytes) -> str:
    """Return 16 hex digits over the parts; moving a byte from one part to the next changes them."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]
