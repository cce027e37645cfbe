"""Sizes of files as people write them: 800kB, 1.5 MB, 8GB (powers of 1000), 5MiB (of 1024)."""

import re

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def read_size(text: str) -> int:
    """Return bytes.

    Raises:
        ValueError: not a number with one of the units.

    >>> read_size("1.5MB")
    1500000
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in UNITS:
        raise ValueError(f"a size is a number with a unit such as 800kB, 1.5MB or 8GB, got {text!r}")
    return round(float(found[1]) * UNITS[found[2].lower()])


def write_size(size: int) -> str:
    """Return bytes as a short text.

    >>> write_size(1_540_000), write_size(999)
    ('1.5 MB', '999 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    raise AssertionError("the loop returns")
