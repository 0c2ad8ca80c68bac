"""The one place where typed dataclasses become JSON and come back, checked against their annotations.

The JSON of a dataclass has its fields, in their order. Where an annotation allows several dataclasses, the JSON names
the type: `Prepared | Refused` is written as `{"type": "Prepared", …}`.
A class whose JSON has another shape has a FORM, which is a dataclass of that shape, and `to_form` and `from_form`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from forgectl.frozen import UNLESS_DEFAULT

T = TypeVar("T")
Reader = Callable[[Any], Any]
PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types whose values are the same in JSON."""


class CodecError(ValueError):
    """A JSON value does not fit its type; `where` is its path, such as `Event.what`."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what, where)
        self.what = what
        self.where = where

    def within(self, place: str) -> CodecError:
        """The same error, with `place` in front of its path."""
        return CodecError(self.what, place + self.where)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


# ---------------------------------------------------------------- to JSON


def to_json(value: Any) -> Any:
    """A dataclass, or a container of them, as plain JSON values."""
    kind: Any = type(value)
    if kind in PLAIN:
        return value
    if (fields := _written(kind)) is not None:
        if hasattr(kind, "FORM"):
            return to_json(value.to_form())
        found = {
            name: v if type(v := getattr(value, name)) in PLAIN else (to_tagged if tagged else to_json)(v)
            for name, tagged in fields
        }
        for name, default in _optional(kind):
            if getattr(value, name) == default:
                del found[name]
        return found
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def to_tagged(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object that names its type."""
    return {"type": type(value).__name__, **to_json(value)}


@functools.cache
def _written(kind: type) -> tuple[tuple[str, bool], ...] | None:
    """The fields of a dataclass, and whether their values are tagged; None for another type."""
    if not dataclasses.is_dataclass(kind):
        return None
    hints = _hints(kind)
    return tuple((f.name, len(_choice(hints[f.name])) > 1) for f in dataclasses.fields(kind))


@functools.cache
def _optional(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass that JSON has only where they differ from their defaults, and those as JSON."""
    return tuple((f.name, to_json(f.default)) for f in dataclasses.fields(kind) if f.metadata == UNLESS_DEFAULT)


# ---------------------------------------------------------------- annotations


def _hints(cls: type) -> dict[str, Any]:
    """Field → its annotation."""
    return {
        f.name: _annotation(f.type, cls.__module__) if isinstance(f.type, str) else f.type
        for f in dataclasses.fields(cls)
    }


@functools.cache
def _annotation(text: str, module: str) -> Any:
    """The type that an annotation's text names in a module. Cached by text: most are `str` or `int | None`."""
    holder = types.SimpleNamespace(__annotations__={"it": text})
    return typing.get_type_hints(holder, vars(sys.modules[module]))["it"]


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _choice(kind: Any) -> tuple[type, ...]:
    """The dataclasses of a union."""
    return tuple(filter(dataclasses.is_dataclass, typing.get_args(kind))) if _is_union(kind) else ()


def _plain(kind: Any) -> frozenset[Any]:
    """The types whose values need no conversion."""
    if _is_union(kind):
        return frozenset[Any]().union(*map(_plain, typing.get_args(kind)))
    return frozenset({kind}) & PLAIN if isinstance(kind, type) else frozenset()


# ---------------------------------------------------------------- from JSON


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """`value` as a `cls` (a dataclass or any annotation built of them); raises CodecError."""
    try:
        return typing.cast("T", _reader(cls)(value))
    except CodecError as e:
        raise e.within(where or getattr(cls, "__name__", str(cls))) from None


def from_tagged(table: tuple[type, ...], value: Any, where: str = "") -> Any:
    """A JSON object that names its type, one of the dataclasses in `table`; raises CodecError."""
    if not isinstance(value, dict):
        raise CodecError("the message is not a JSON object")
    name = value.get("type")
    if not isinstance(name, str):
        raise CodecError("the message does not name its type")
    kind = _by_name(table).get(name)
    if kind is None:
        raise CodecError(f"unknown message {name[:60]!r}")
    try:
        return _dataclass(kind)({k: v for k, v in value.items() if k != "type"})
    except CodecError as e:
        raise e.within(where + name) from None


@functools.cache
def _by_name(table: tuple[type, ...]) -> dict[str, type]:
    return {kind.__name__: kind for kind in table}


@functools.cache
def _dataclass(cls: type) -> Reader:
    """The reader of a dataclass. It resolves annotations once: programs read thousands of ranks and events."""
    if hasattr(cls, "FORM"):
        form, made = _dataclass(cls.FORM), cls.from_form  # type: ignore[attr-defined]
        return lambda value: made(form(value))
    hints = _hints(cls)
    fields = dataclasses.fields(cls)
    plain = {f.name: _plain(hints[f.name]) for f in fields}
    readers = {f.name: _reader(hints[f.name]) for f in fields}
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}

    def read(value: Any) -> Any:
        data = _expect(dict, value)
        if data.keys() != readers.keys():
            if unknown := data.keys() - readers.keys():
                raise CodecError(f"unknown field {min(unknown)!r}")
            if missing := required - data.keys():
                raise CodecError(f"field {min(missing)!r} is missing")
        found = {}
        name = ""
        try:
            for name, v in data.items():
                found[name] = v if type(v) in plain[name] else readers[name](v)
        except CodecError as e:
            raise e.within(f".{name}") from None
        return cls(**found)

    return read


def _reader(kind: Any) -> Reader:
    """The function that reads the JSON of an annotation."""
    if kind is Any:
        return lambda value: value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return lambda value: _dataclass(kind)(value)  # noqa: PLW0108  (made on first use: most commands see no failure)
    if _is_union(kind):
        return _union(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return _literal(typing.get_args(kind))
    if origin is tuple:
        items = _items(typing.get_args(kind)[0])
        return lambda value: tuple(items(value))
    if origin is list:
        return _items(typing.get_args(kind)[0])
    if origin is dict:
        return _dict(*typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    return _float if kind is float else lambda value: _expect(kind, value)


def _union(kind: Any) -> Reader:
    options = [k for k in typing.get_args(kind) if k is not type(None)]
    has_none = len(options) < len(typing.get_args(kind))
    if len(table := _choice(kind)) > 1:
        readers: list[Reader] = [lambda value: from_tagged(table, value, "/")]
    else:
        readers = [_reader(k) for k in options]

    def read(value: Any) -> Any:
        if value is None and has_none:
            return None
        error: CodecError | None = None
        for reader in readers:
            try:
                return reader(value)
            except CodecError as e:
                error = error or e
        raise error or CodecError("no type to read it as")

    return read


def _literal(choices: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if value in choices:
            return value
        raise CodecError(f"{value!r} is not one of {', '.join(map(repr, choices))}")

    return read


def _items(kind: Any) -> Callable[[Any], list[Any]]:
    plain, reader = _plain(kind), _reader(kind)

    def read(value: Any) -> list[Any]:
        found: list[Any] = []
        try:
            for v in _expect(list, value):
                found.append(v if type(v) in plain else reader(v))  # noqa: PERF401  (its length says where an error is)
        except CodecError as e:
            raise e.within(f"[{len(found)}]") from None
        return found

    return read


def _dict(key: Any, kind: Any) -> Reader:
    reader = _reader(kind)

    def read(value: Any) -> Any:
        found: dict[Any, Any] = {}
        for k, v in _expect(dict, value).items():
            try:
                found[_whole(k) if key is int else k] = reader(v)
            except CodecError as e:
                raise e.within(f".{k}") from None
        return found

    return read


def _enum(kind: type[enum.Enum]) -> Reader:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError as e:
            raise CodecError(str(e)) from None

    return read


def _float(value: Any) -> float:
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise CodecError("the number is too large") from None
    return typing.cast("float", _expect(float, value))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CodecError(f"{text[:40]!r} is not a number") from None


def _expect(kind: Any, value: Any) -> Any:
    if type(value) is kind or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise CodecError(f"expected {getattr(kind, '__name__', kind)}, got {type(value).__name__}")
