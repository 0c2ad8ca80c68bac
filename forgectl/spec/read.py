"""Turns the tree of a spec into plain values: fills in `${VAR}`, resolves free YAML, notes each place."""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass, field
from typing import Any

from forgectl.spec.document import Item, Mapping, Scalar, Sequence
from forgectl.spec.problems import Place, Problems, quoted, show, step

MAX_FILLED = 4 << 20  # characters that all variables together may add
MAX_VARIABLES = 10_000

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<body>[^}]*)(?P<end>\}?))")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Null(str):
    """An empty value, or `null`: a field counts as absent, but a variable gets the text."""

    def __bool__(self) -> bool:
        return False


class _TooMuch(Exception):
    """Variables add more than any spec needs."""


def escape(text: str) -> str:
    """`text` escaped, so that a spec takes it literally, without filling in variables."""
    return text.replace("$", "$$")


def read(root: Item, environ: MappingOf[str, str], problems: Problems) -> Any:
    """The values under `root` as dicts, lists and texts; notes places and problems in `problems`."""
    reader = _Reader(environ, problems)
    try:
        reader.secrets = _secrets(root, environ)
        return reader.value(root, "", ())
    except _TooMuch as e:
        problems.stop("", str(e))


def _secrets(root: Item, environ: MappingOf[str, str]) -> frozenset[str]:
    """The names under `secrets`, which must be known before the rest is read."""
    reader = _Reader(environ, Problems())
    node = root.node.entries.get("secrets") if isinstance(root.node, Mapping) else None
    if node is None or not isinstance(node.node, Sequence):
        return frozenset()
    items = (item.node for item in node.node.items)
    return frozenset(reader.fill(item.text, "") for item in items if isinstance(item, Scalar))


@dataclass
class _Reader:
    environ: MappingOf[str, str]
    problems: Problems
    secrets: frozenset[str] = frozenset()
    filled: int = 0
    variables: int = 0
    failed: bool = False  # the value being read cannot be filled in
    places: dict[str, Place] = field(init=False)

    def __post_init__(self) -> None:
        self.places = self.problems.places

    def value(self, item: Item, where: str, path: tuple[str, ...]) -> Any:
        self.places[where] = item.place
        self.problems.keys[where] = item.key or item.place
        node = item.node
        free = len(path) > 2 and path[0] in ("actors", "services") and path[2] == "args"
        if isinstance(node, Scalar):
            return self.scalar(node, where, free=free and len(path) > 3)
        if isinstance(node, Sequence):
            return [self.value(child, step(where, i), (*path, str(i))) for i, child in enumerate(node.items)]
        result = {}
        for key, child in node.entries.items():
            under = step(where, key)
            if free and child.plain_key and not isinstance(resolve(key), str):
                self.problems.add(under, f"a key must be text; write {quoted(key)} in quotes", place=child.key)
            result[key] = self.value(child, under, (*path, key))
        return result

    def scalar(self, node: Scalar, where: str, *, free: bool) -> Any:
        self.failed = False
        text = self.fill(node.text, where)
        if "\0" in text:
            text = self.unreadable(where, "contains a NUL character, which cannot be passed to a program")
        if self.failed:
            self.problems.unreadable.add(where)
        if free and node.plain:
            try:
                return resolve(text)
            except ValueError:
                self.problems.add(where, f"number too long: {show(text)}")
                return 0
        if node.plain and node.text in _NULL:
            return Null(text)
        return text

    def fill(self, text: str, where: str) -> str:
        return _VARIABLE.sub(lambda m: self.variable(m, where), text) if "$" in text else text

    def variable(self, match: re.Match[str], where: str) -> str:
        self.variables += 1
        if self.variables > MAX_VARIABLES:
            raise _TooMuch(f"more than {MAX_VARIABLES} variables")
        if match["dollar"]:
            return "$"
        if not match["end"]:
            return self.unreadable(where, "'${' without its '}'; a literal one is written $${")
        body = _BODY.fullmatch(match["body"])
        if not body:
            return self.unreadable(
                where,
                f"cannot read {show(match[0])}; write ${{NAME}} or ${{NAME:-default}}, or $${{ for '${{'",
            )
        name, default = body["name"], body["default"]
        if default is not None and "${" in default:
            return self.unreadable(where, f"the default of ${{{name}}} cannot hold another variable")
        if name in self.secrets:
            return self.unreadable(
                where,
                f"{name} is a secret and is never written into a plan; ranks find it in their environment",
            )
        value = self.environ.get(name)
        if default is not None and not value:
            value = default
        if value is None:
            return self.unreadable(where, f"variable {name} is not set; set it, or write ${{{name}:-default}}")
        if not _encodable(value):
            return self.unreadable(where, f"the value of variable {name} is not UTF-8")
        self.filled += len(value)
        if self.filled > MAX_FILLED:
            raise _TooMuch(f"variables make it larger than {MAX_FILLED >> 20} MiB")
        return value

    def unreadable(self, where: str, message: str) -> str:
        self.problems.add(where, message)
        self.failed = True
        return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def resolve(text: str) -> Any:
    """The value of a plain scalar by the core rules of YAML 1.2; raises ValueError for a number that is too long."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text
