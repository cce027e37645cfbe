"""Values that know where they come from.

A scene never holds a bare tensor: `self.trace.keys` is a `Traced` array, and every view of it (slice, transpose,
reshape) still knows which cells of which field it shows. Arithmetic is refused: a scene draws and never computes.
Text made with an f-string keeps the origin too (`f"{self.trace.loss:.2f}"`), because a formatted value carries its
origin in marks that `read_text` takes out again before anything is drawn.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from scenes.kit import typed_numbers

_OPEN, _MIDDLE, _CLOSE = typed_numbers.OPEN, "\ue001", typed_numbers.CLOSE
_MARKED = re.compile(f"{_OPEN}([^{_MIDDLE}]*){_MIDDLE}([^{_CLOSE}]*){_CLOSE}")


class Traced:
    """A read-only array of one Trace field, or a part of it, with the origin of every cell."""

    __slots__ = ("_field_shape", "_indices", "field", "values")

    def __init__(
        self,
        field: str,
        values: np.ndarray,
        indices: np.ndarray | None = None,
        field_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.field = field
        self.values = values
        self.values.setflags(write=False)
        self._field_shape = values.shape if field_shape is None else field_shape
        self._indices = np.arange(values.size).reshape(values.shape) if indices is None else indices

    # -- views keep the origin --------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> "Traced":
        key = tuple(_plain(k) for k in key) if isinstance(key, tuple) else _plain(key)
        return self._view(np.asarray(self.values[key]), np.asarray(self._indices[key]))

    @property
    def T(self) -> "Traced":
        return self._view(self.values.T, self._indices.T)

    def reshape(self, *shape: int) -> "Traced":
        return self._view(self.values.reshape(*shape), self._indices.reshape(*shape))

    def transpose(self, *axes: int) -> "Traced":
        return self._view(self.values.transpose(*axes), self._indices.transpose(*axes))

    def __iter__(self) -> Iterator["Traced"]:
        if not self.ndim:
            raise TypeError(f"{self.origin} is a single value")
        return (self[k] for k in range(len(self)))

    def _view(self, values: np.ndarray, indices: np.ndarray) -> "Traced":
        return Traced(self.field, values, indices, self._field_shape)

    # -- reading ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return self.values.size

    def __len__(self) -> int:
        return len(self.values)

    def __float__(self) -> float:
        return float(self.values)

    def __int__(self) -> int:
        return int(self.values)

    def __index__(self) -> int:
        if self.ndim or not np.issubdtype(self.values.dtype, np.integer):
            raise TypeError(f"{self.origin} is not a whole number")
        return int(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=True) if copy or dtype else self.values

    def __bool__(self) -> bool:
        return bool(self.values)

    def __lt__(self, other: Any) -> Any:
        return np.less(self.values, other)

    def __gt__(self, other: Any) -> Any:
        return np.greater(self.values, other)

    def __eq__(self, other: Any) -> Any:
        return np.equal(self.values, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Traced({self.origin}, shape {self.shape})"

    # -- origin -----------------------------------------------------------------------------------------------------

    @property
    def cells(self) -> np.ndarray:
        """Return which cells of the field these are: indices into the flat field, in the shape of the values."""
        return self._indices

    @property
    def origin(self) -> str:
        """Return the field and the cells this is, as one would write it: `keys[2, :]`."""
        if not self._field_shape or self.size == math.prod(self._field_shape):
            return self.field
        if not self.size:
            return f"{self.field}[nothing]"
        if self.size == 1:
            place = np.unravel_index(int(self._indices.item()), self._field_shape)
            return f"{self.field}[{', '.join(map(str, map(int, place)))}]"
        axes = [np.unique(axis) for axis in np.unravel_index(self._indices.reshape(-1), self._field_shape)]
        if math.prod(len(axis) for axis in axes) != self.size:
            return f"{self.field}[{self.size} cells]"
        return f"{self.field}[{', '.join(_span(a, n) for a, n in zip(axes, self._field_shape, strict=True))}]"

    def __format__(self, spec: str) -> str:
        if self.size != 1:
            raise TypeError(f"only a single value can be written, {self.origin} has shape {self.shape}")
        return mark(format_number(self.values.item(), spec), self.origin)

    # -- a scene draws and never computes ---------------------------------------------------------------------------

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"a scene draws and never computes: {self.origin} is in the Trace, so let its core module compute "
            "what you need of it into a field of its own"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse  # type: ignore[assignment]
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse  # type: ignore[assignment]
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = __neg__ = __abs__ = __round__ = _refuse  # type: ignore[assignment]


class TracedText(str):
    """A string of a Trace (a token, a name) that knows its origin."""

    origin: str

    def __new__(cls, text: str, origin: str) -> "TracedText":
        self = super().__new__(cls, text)
        self.origin = origin
        return self

    def __format__(self, spec: str) -> str:
        return mark(format(str(self), spec), self.origin)


class TracedFields:
    """The read-only fields of a Trace, a Config or one of their tables, as traced values.

    It notes the name of every field that is read: these are the inputs of the picture.
    """

    def __init__(self, record: Any, prefix: str = "", read: set[str] | None = None) -> None:
        self._record, self._prefix = record, prefix
        self._read = set[str]() if read is None else read

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(self._record, name):
            what = type(self._record).__qualname__
            raise AttributeError(f"the {what} of {type(self._record).__module__} has no field {name!r}")
        value, full_name = getattr(self._record, name), f"{self._prefix}{name}"
        if dataclasses.is_dataclass(value):
            return TracedFields(value, f"{full_name}.", self._read)
        self._read.add(full_name)
        return traced(value, full_name)


def names_read(fields: TracedFields) -> list[str]:
    """Return the names of the fields that were read so far, such as `keys` or `config.base`."""
    return sorted(fields._read)


def traced(value: Any, origin: str) -> Any:
    """Return a Trace field as values that know they are `origin`."""
    if isinstance(value, Tensor):
        return Traced(origin, value.detach().cpu().numpy().copy())
    if isinstance(value, bool | int | float):
        return Traced(origin, np.asarray(value))
    if isinstance(value, str):
        return TracedText(value, origin)
    if isinstance(value, dict):
        return {key: traced(part, f"{origin}.{key}") for key, part in value.items()}
    if dataclasses.is_dataclass(value):
        return TracedFields(value, f"{origin}.")
    if isinstance(value, tuple | list):
        if all(isinstance(part, bool | int | float) for part in value):
            return Traced(origin, np.asarray(value))
        return tuple(traced(part, f"{origin}[{k}]") for k, part in enumerate(value))
    return value


def require_traced(value: Any, what: str) -> Traced:
    """Return `value` if it knows its origin; a picture of anything else would not be a picture of the Trace."""
    if not isinstance(value, Traced):
        raise TypeError(
            f"{what} shows values of the Trace (self.trace.…), got {type(value).__name__}; "
            "arithmetic loses the origin, so compute it in the core"
        )
    return value


# -- text ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReadText:
    """A text without its marks, and the traced parts it is made of: (what is shown, origin)."""

    plain: str
    parts: tuple[tuple[str, str], ...]


def mark(text: str, origin: str) -> str:
    """Return `text` carrying its origin through string formatting."""
    return f"{_OPEN}{origin}{_MIDDLE}{text}{_CLOSE}"


_notation: tuple[str, ...] = ()


def allow_notation(names: Iterable[str]) -> None:
    """Let texts hold these proper names with digits that are no data ("Llama-2-7B"); replaces the earlier list.

    Raises:
        ValueError: one of them is a number and no name ("37", "loss 0.37").
    """
    global _notation
    listed = tuple(sorted(names, key=len, reverse=True))
    for name in listed:
        if not typed_numbers.is_name(name):
            raise ValueError(
                f"{name!r} in the scene's `notation` is a number and no name such as 'FP16' or 'Gemma 3': "
                "format a traced value (f'{self.trace.field:.2f}')"
            )
    _notation = listed


def read_text(text: str, *, lone_digits: bool = False) -> ReadText:
    """Take the marks out of `text`: words with formatted traced values in them.

    Args:
        lone_digits: it is the source of a formula; let digits pass that are no part of a longer number, as in x².

    Raises:
        ValueError: a number, in digits or in words, that is neither a formatted traced value nor part of a listed name;
            or something beside a traced value that makes another number of it.
    """
    parts = [(match[2], match[1]) for match in _MARKED.finditer(text)]
    if isinstance(text, TracedText):
        return ReadText(str(text), ((str(text), text.origin),))
    plain = _MARKED.sub(lambda match: match[2], text)
    values = _MARKED.sub(lambda match: f"{_OPEN}{match[2]}{_CLOSE}", text)
    altered = typed_numbers.altered_in_formula(values) if lone_digits else typed_numbers.altered(values)
    if altered:
        raise ValueError(
            f"{altered!r} in {plain!r} is another number than the traced value: part them, or use a format"
        )
    rest = _MARKED.sub(" ", text)
    for name in _notation:
        rest = rest.replace(name, " ")
    typed = typed_numbers.typed_in_formula(rest) if lone_digits else typed_numbers.typed(rest)
    if typed:
        raise ValueError(
            f"{typed!r} in {plain!r} has no origin: format a traced value (f'{{self.trace.field:.2f}}'), "
            "or list a proper name in the scene's `notation`"
        )
    return ReadText(plain, tuple(parts))


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_THOUSANDS = ("", " K", " M", " G", " T", " P")


def format_number(value: float, spec: str = "") -> str:
    """Write a number with a true minus sign, no negative zero, and powers of ten as such.

    Besides Python's own formats: `binary` (524288 -> 512 KiB), `count` (43744 -> 43.7 K), `.1e` (3.2 × 10⁻⁷).

    Raises:
        ValueError: the value is infinite or no number, or the format is not decimal.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number that can be written")
    if spec[-1:] in ("b", "c", "o", "x", "X"):
        raise ValueError(f"a number is written in decimal, got the format {spec!r}")
    if spec == "binary":
        step = 0
        while abs(value) >= 1024 and step < len(_BINARY) - 1:
            value, step = value / 1024, step + 1
        return f"{value:.0f} {_BINARY[step]}" if value == int(value) else f"{value:.1f} {_BINARY[step]}"
    if spec == "count":
        step = 0
        while abs(value) >= 1000 and step < len(_THOUSANDS) - 1:
            value, step = value / 1000, step + 1
        return f"{value:.0f}" if not step else f"{value:.3g}{_THOUSANDS[step]}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not spec and isinstance(value, float):
        spec = "g"
    text = format(value, spec)
    if spec.endswith("e") and "e" in text:
        if value == 0:
            return "0"
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return text.replace("-", "−")
    if re.fullmatch(r"[-+]0(\.0*)?%?", text):
        text = text[1:]
    return text.replace("-", "−")


def _plain(key: Any) -> Any:
    return key.values if isinstance(key, Traced) else key


def _span(axis: np.ndarray, length: int) -> str:
    first, last = int(axis[0]), int(axis[-1])
    if len(axis) == 1:
        return str(first)
    if len(axis) == length:
        return ":"
    if last - first + 1 == len(axis):
        return f"{first}:{last + 1}"
    return "[" + ", ".join(str(int(k)) for k in axis) + "]"
