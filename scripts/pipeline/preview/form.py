"""The parameters of a topic as a page shows them, from the fields of its Config."""

import dataclasses
import typing
from typing import Any

from internals_math.trace import TopicConfig


def form_of(config: TopicConfig) -> list[dict[str, Any]]:
    """Return one entry for each field: name, help, kind, range or choices, value and default as `--set` writes them.

    Kinds: "whole", "number", "switch", "choice", "text". A number with both ends is a slider, which steps through
    magnitudes (`log`) if its range spans a factor of 1000.
    """
    hints = typing.get_type_hints(type(config))
    default = type(config)()
    entries = []
    for spec in dataclasses.fields(config):
        low, high, choices = (spec.metadata.get(name) for name in ("minimum", "maximum", "choices"))
        kind = hints[spec.name]
        if typing.get_origin(kind) is typing.Literal:
            choices = choices or typing.get_args(kind)
        entries.append(
            {
                "name": spec.name,
                "help": spec.metadata.get("help", ""),
                "kind": "choice" if choices else {int: "whole", float: "number", bool: "switch"}.get(kind, "text"),
                "minimum": low,
                "maximum": high,
                "log": bool(low and high and low > 0 and high / low >= 1000),
                "choices": [setting_text(choice) for choice in choices or ()],
                "value": setting_text(getattr(config, spec.name)),
                "default": setting_text(getattr(default, spec.name)),
            }
        )
    return entries


def setting_text(value: Any) -> str:
    """Return a value as `--set name=value` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(setting_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
