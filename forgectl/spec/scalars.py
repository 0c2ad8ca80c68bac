"""The kinds of values in a spec: each reads a text as written, and its error says in plain words what it expected."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from forgectl.model.plan import MAX_RANKS
from forgectl.names import NAME
from forgectl.spec.problems import did_you_mean, show
from forgectl.system.sizes import BYTES
from forgectl.system.times import SECONDS

NAME_RULE = "at most 63 letters, digits, '.', '_' or '-', the first a letter or digit"
_LINE = 20_000  # characters; splitting takes microseconds for each

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)")
_SECONDS = {"": 1.0} | SECONDS
_BYTES = {"": 1} | BYTES
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_OPTION = re.compile(r"(^|@|://)(-|%2d)", re.IGNORECASE)
_SHELL = frozenset("'`\"$\\;&<>|(){}")
"""Characters that ssh would pass to a shell with the name, as for ProxyCommand; newer versions refuse them."""
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CLASS = re.compile(rf"{_MODULE.pattern}:{_MODULE.pattern}")


def wrong(message: str, *, at: str = "") -> PydanticCustomError:
    """The error for a wrong value. `at` is the place inside the field, such as the index in a list."""
    return PydanticCustomError("spec", "{message}", {"message": message, "at": at})


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(f"expected text, got {show(value)}")
    return str(value)


def some_text(value: Any) -> str:
    if not text(value).strip():
        raise wrong("expected text, got an empty one")
    return str(value)


def as_written(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        raise wrong(f"expected text, got {show(value)}")
    return str(value)


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLS:
        return _BOOLS[value.lower()]
    raise wrong(f"expected true or false, got {show(value)}")


def whole(least: int, most: int, what: str = "a whole number") -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(f"expected {what}, got {show(value)}{_without_zeros(value)}")
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise wrong(f"must be {bound}, got {value}")
        return value

    return read


def _without_zeros(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"0[0-9]{1,17}", value):
        return f"; write {int(value)}"
    return ""


def seconds(least: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        amount = _amount(value, _SECONDS, "a duration such as 30s, 10m, 1h or 500ms")
        if amount < least:
            raise wrong(f"must be at least {least:g} s, got {show(value)}")
        if amount > 366 * 86400:
            raise wrong(f"must be at most a year, got {show(value)}")
        return amount

    return read


def size(value: Any) -> int:
    amount = _amount(value, _BYTES, "a size such as 2GiB, 500MB or a number of bytes")
    if not 4096 <= amount <= 1 << 60:
        raise wrong(f"must be between 4KiB and 1EiB, got {show(value)}")
    return int(amount)


def _amount(value: Any, units: dict[str, Any], what: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise wrong(f"expected {what}, got {show(value)}")
    unit = match[2] if match[2] in units else match[2].lower()
    if unit not in units:
        raise wrong(f"expected {what}, got {show(value)}: unknown unit {show(match[2])}")
    return float(match[1]) * float(units[unit])


def duration_text(seconds: float) -> str:
    """A duration as a spec has it: `30s`, `10m`."""
    for unit in ("d", "h", "m"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{int(seconds / SECONDS[unit])}{unit}"
    return f"{f'{seconds:.15f}'.rstrip('0').rstrip('.')}s"


def size_text(count: int) -> str:
    """A size as a spec has it: `2GiB`."""
    for unit, letters in (("tib", "TiB"), ("gib", "GiB"), ("mib", "MiB"), ("kib", "KiB")):
        if count >= BYTES[unit] and count % BYTES[unit] == 0:
            return f"{count // BYTES[unit]}{letters}"
    return str(count)


def choice(*options: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if isinstance(value, str) and value in options:
            return str(value)
        near = did_you_mean(value, options) if isinstance(value, str) else ""
        listed = f"{', '.join(options[:-1])} or {options[-1]}"
        raise wrong(f"expected {listed}, got {show(value)}{near}")

    return read


def choices(*options: str) -> Callable[[Any], tuple[str, ...]]:
    """A list of some of the options, each at most once; the result has their order."""
    one = choice(*options)

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)):
            raise wrong(f"expected a list of {', '.join(options)}, got {show(value)}")
        if not value:
            raise wrong(f"expected a list of {', '.join(options)}, got an empty list")
        found: set[str] = set()
        for i, item in enumerate(value):
            try:
                word = one(item)
            except PydanticCustomError as e:
                raise wrong(str(e), at=str(i)) from None
            if word in found:
                raise wrong(f"{word} is listed twice", at=str(i))
            found.add(word)
        return tuple(o for o in options if o in found)

    return read


def words(value: Any) -> Any:
    """A program with its arguments: a string, which is split as a shell does, or a list."""
    if isinstance(value, str):
        if len(value) > _LINE:
            raise wrong(f"a command line of over {_LINE} characters; write it as a list")
        try:
            value = shlex.split(value)
        except ValueError as e:
            raise wrong(f"cannot split into arguments: {str(e).lower()}") from None
    elif not isinstance(value, (list, tuple)):
        raise wrong(f"expected a program with its arguments, as text or a list, got {show(value)}")
    if not value or not isinstance(value[0], str) or not value[0].strip():
        raise wrong("expected a program, got nothing" if not value else "the program has no name")
    if value[0].startswith("-"):
        raise wrong(f"a program cannot begin with '-', got {show(value[0])}")
    return tuple(value)


def shell_line(value: Any) -> Any:
    """A command: text is a line for the shell, a list is a program with its arguments."""
    if isinstance(value, str) and value.strip():
        if len(value) > _LINE:
            raise wrong(f"a command line of over {_LINE} characters; put it into a file")
        return ("/bin/sh", "-c", value)
    return words(value)


def class_path(value: Any) -> str:
    if not _CLASS.fullmatch(text(value)):
        raise wrong(f"expected module:Class, such as actors.trainer:Trainer, got {show(value)}")
    return str(value)


def preloaded(value: Any) -> str:
    if not _MODULE.fullmatch(text(value).removesuffix("?")):
        raise wrong(f"expected the name of a module, got {show(value)}")
    return str(value)


def name(value: Any) -> str:
    if not NAME.fullmatch(text(value)):
        raise wrong(f"{show(value)} is not a name: {NAME_RULE}")
    return str(value)


def bare(value: Any) -> str:
    """Text for a command line: never an option, without blanks."""
    if not some_text(value).isprintable() or " " in value:
        raise wrong(f"{show(value)} has blanks or control characters")
    if _OPTION.search(value):
        raise wrong(f"{show(value)} would be taken for an option")
    if not _SHELL.isdisjoint(value):
        raise wrong(f"{show(value)} has characters that a shell would act on")
    return str(value)


def program(value: Any) -> str:
    if some_text(value).startswith("-"):
        raise wrong(f"expected a program, got {show(value)}")
    return str(value)


def folder(value: Any) -> str:
    """A folder on another machine; it must be absolute or begin with ~/, as nothing defines a relative one."""
    if not some_text(value).startswith(("/", "~/")) or not value.isprintable():
        raise wrong(f"expected an absolute path, or one that begins with ~/, got {show(value)}")
    return str(value)


def gpus(value: Any) -> Any:
    if value in ("auto", "none"):
        return str(value)
    what = "auto, none, a number of GPUs or a list of indices"
    if isinstance(value, str) and not value.isdecimal():
        raise wrong(f"expected {what}, got {show(value)}{did_you_mean(value, ('auto', 'none'))}")
    if not isinstance(value, (list, tuple)):
        return whole(0, 1024, what)(value)
    indices: dict[int, None] = {}
    for i, item in enumerate(value):
        try:
            index = whole(0, 1023, "the index of a GPU")(item)
        except PydanticCustomError as e:
            raise wrong(str(e), at=str(i)) from None
        if index in indices:
            raise wrong(f"GPU {index} is listed twice", at=str(i))
        indices[index] = None
    return tuple(indices)


def spread(value: Any) -> Any:
    """The `hosts` of a mesh: their number, or their names."""
    what = "a number of hosts or a list of host names"
    if not isinstance(value, (list, tuple)):
        if isinstance(value, str) and NAME.fullmatch(value) and not value[0].isdigit():
            raise wrong(f"expected {what}, got {show(value)}; for a single host write [{value}]")
        return whole(1, MAX_RANKS, what)(value)
    if not value:
        raise wrong(f"expected {what}, got an empty list")
    seen: set[str] = set()
    for i, item in enumerate(value):
        if not isinstance(item, str):
            raise wrong(f"expected the name of a host, got {show(item)}", at=str(i))
        if item in seen:
            raise wrong(f"host {show(item)} is listed twice", at=str(i))
        seen.add(item)
    return tuple(map(str, value))


def or_variable(*options: dict[str, Any]) -> WithJsonSchema:
    """JSON Schema of a value with one of these forms, or of text that has it once its variables are filled in."""
    return WithJsonSchema({"anyOf": [*options, _VARIABLE]})


_INTEGER = {"type": "integer"}
_STRING = {"type": "string"}
_TEXTS = {"type": "array", "items": _STRING}
_COMMAND = {"anyOf": [_STRING, {**_TEXTS, "items": {"type": ["string", "number"]}, "minItems": 1}]}
_NAMED = {"type": "string", "pattern": rf"^{NAME.pattern}$"}
_DURATION = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)?$"}
_SIZE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKMGT]i?)?[bB]?$"}
_AS_DURATION = PlainSerializer(duration_text)
_AS_SIZE = PlainSerializer(size_text)

Text = Annotated[str, BeforeValidator(text)]
SomeText = Annotated[str, BeforeValidator(some_text)]
Bool = Annotated[bool, BeforeValidator(boolean), or_variable({"type": "boolean"})]
Name = Annotated[str, BeforeValidator(name), or_variable(_NAMED, {"type": "number"})]
EnvText = Annotated[str, BeforeValidator(as_written), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]
Procs = Annotated[
    int, BeforeValidator(whole(1, MAX_RANKS)), or_variable(_INTEGER | {"minimum": 1, "maximum": MAX_RANKS})
]
Count = Annotated[int, BeforeValidator(whole(0, 10**9)), or_variable(_INTEGER | {"minimum": 0})]
Slots = Annotated[
    int, BeforeValidator(whole(0, MAX_RANKS)), or_variable(_INTEGER | {"minimum": 0, "maximum": MAX_RANKS})
]
Lease = Annotated[
    float, BeforeValidator(seconds(1)), _AS_DURATION, or_variable({"type": "number", "minimum": 1}, _DURATION)
]
Within = Annotated[
    float,
    BeforeValidator(seconds(0.001)),
    _AS_DURATION,
    or_variable({"type": "number", "exclusiveMinimum": 0}, _DURATION),
]
Backoff = Annotated[
    float, BeforeValidator(seconds(0)), _AS_DURATION, or_variable({"type": "number", "minimum": 0}, _DURATION)
]
Size = Annotated[int, BeforeValidator(size), _AS_SIZE, or_variable({"type": "number", "minimum": 4096}, _SIZE)]
Words = Annotated[tuple[Text, ...], BeforeValidator(words), WithJsonSchema(_COMMAND)]
ShellLine = Annotated[tuple[Text, ...], BeforeValidator(shell_line), WithJsonSchema(_COMMAND)]
ClassPath = Annotated[str, BeforeValidator(class_path), or_variable({"type": "string", "pattern": ":"})]
Preloaded = Annotated[str, BeforeValidator(preloaded)]
Bare = Annotated[str, BeforeValidator(bare)]
Folder = Annotated[str, BeforeValidator(folder)]
Interpreter = Annotated[str, BeforeValidator(program)]
