"""The one place where typed dataclasses become JSON and come back, checked against their annotations.

A class whose JSON has another shape names a dataclass of that shape, its FORM, and has `to_form` and `from_form`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")
_SCALARS = frozenset((str, int, float, bool, type(None)))


class CodecError(ValueError):
    """A JSON value does not fit the type it should become; the message names the place."""


def to_json(value: Any) -> Any:
    """A dataclass, or a container of them, as plain JSON values."""
    if type(value) in _SCALARS:  # most are, so this comes first: a report of many ranks takes a third of the time
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "to_form"):
            value = value.to_form()
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """`value` as a `cls` (a dataclass or any annotation built of them); raises CodecError."""
    return typing.cast(T, _convert(cls, value, where or getattr(cls, "__name__", str(cls))))


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    }


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return _first_fit(options, value, where)
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise CodecError(f"{where}: {value!r} is none of {', '.join(map(repr, typing.get_args(kind)))}")
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where)))
    if origin is list:
        item = typing.get_args(kind)[0]
        return [_convert(item, v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where))]
    if origin is dict:
        key, item = typing.get_args(kind)
        return {
            (_whole(k, where) if key is int else k): _convert(item, v, f"{where}.{k}")
            for k, v in _expect(dict, value, where).items()
        }
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError as e:
            raise CodecError(f"{where}: {e}") from None
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise CodecError(f"{where}: a number that is too large") from None
    return _expect(kind, value, where)


def _whole(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CodecError(f"{where}: {text[:40]!r} is no number") from None


def _dataclass(cls: Any, value: Any, where: str) -> Any:
    if hasattr(cls, "FORM"):
        return cls.from_form(_dataclass(cls.FORM, value, where))
    data = _expect(dict, value, where)
    fields = _fields(cls)
    if unknown := sorted(data.keys() - fields.keys()):
        raise CodecError(f"{where}: unknown field {unknown[0]!r}")
    if missing := sorted(n for n, (_, required) in fields.items() if required and n not in data):
        raise CodecError(f"{where}: field {missing[0]!r} is missing")
    return cls(**{n: _convert(fields[n][0], v, f"{where}.{n}") for n, v in data.items()})


def _first_fit(options: list[Any], value: Any, where: str) -> Any:
    error: CodecError | None = None
    for option in options:
        try:
            return _convert(option, value, where)
        except CodecError as e:
            error = error or e
    raise error or CodecError(f"{where}: no type to read it as")


def _expect(kind: Any, value: Any, where: str) -> Any:
    if kind is type(None):
        kind_ok = value is None
    else:
        kind_ok = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not kind_ok:
        raise CodecError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
    return value
