"""What a Python module binds at its top level, read from its source without running it.

A module is `closed` if its source shows for certain which names it has: no star import, no names that code makes.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_BYTES = 4 << 20
_BINDS_BY_CODE = re.compile(
    r"(?<![.\w])(globals|locals|vars)\(\)|(?<![.\w])exec\(|\bmodules\[|\bf_globals\b|^\s+global\s", re.MULTILINE
)
_ALWAYS = frozenset(
    {"__name__", "__doc__", "__file__", "__path__", "__dict__", "__spec__", "__loader__", "__package__"}
)


@dataclass(frozen=True)
class Import:
    """A name that an import binds: `name` of `module`, or the module itself if `name` is None."""

    module: str
    name: str | None = None


Binding = ast.stmt | Import | Literal["other"]


def bindings_of(body: ast.Module | ast.ClassDef, package: str = "") -> dict[str, list[Binding]]:
    """Name → everything in `body` that binds it, also in blocks such as `if` and `try`."""
    found: dict[str, list[Binding]] = {}
    for node in _statements(body):
        for name, binding in _bound_by(node, package):
            found.setdefault(name, []).append(binding)
    return found


def _statements(body: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run with `body` itself. Without recursion: an expression may be very deep."""
    waiting = [body]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            yield child
            if not isinstance(child, (*Function, ast.ClassDef, ast.Lambda)):
                waiting.append(child)


def _bound_by(node: ast.AST, package: str) -> Iterator[tuple[str, Binding]]:
    if isinstance(node, (*Function, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield (
                alias.asname or alias.name.partition(".")[0],
                Import(alias.name if alias.asname else alias.name.partition(".")[0]),
            )
    elif isinstance(node, ast.ImportFrom):
        module = _absolute(node, package)
        for alias in node.names:
            yield alias.asname or alias.name, Import(module, alias.name) if module else "other"
    elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id, "other"
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name, "other"
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest, "other"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module of `from … import`; "" if it lies outside of every package."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1] if package else []
    return ".".join([*parts, *([node.module] if node.module else [])]) if parts else ""


@dataclass
class Module:
    """One module. `path` is its source; None if it has none, as a namespace package or an extension."""

    name: str
    path: Path | None
    folders: tuple[str, ...] = ()  # where its submodules are; empty if it is no package
    ready_made: bool = False

    @cached_property
    def _read(self) -> tuple[str, ast.Module | SyntaxError | None]:
        if self.path is None:
            return "", None
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                return "", None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are for the import
                return data.decode(errors="replace"), ast.parse(data, str(self.path))
        except SyntaxError as e:
            return "", e
        except (OSError, ValueError, RecursionError, MemoryError):
            return "", None

    @property
    def error(self) -> SyntaxError | None:
        """Why its source is not Python."""
        return self._read[1] if isinstance(self._read[1], SyntaxError) else None

    @property
    def readable(self) -> bool:
        """Whether it has source that could be read."""
        return isinstance(self._read[1], ast.Module)

    @cached_property
    def bindings(self) -> dict[str, list[Binding]]:
        """Name → everything that binds it."""
        tree = self._read[1]
        package = self.name if self.folders else self.name.rpartition(".")[0]
        return bindings_of(tree, package) if isinstance(tree, ast.Module) else {}

    @cached_property
    def closed(self) -> bool:
        """Whether `bindings` has every name that the module can have."""
        made = {"*", "__getattr__"} & self.bindings.keys() or _BINDS_BY_CODE.search(self._read[0])
        return self.readable and (self.ready_made or not made)

    def may_have(self, name: str) -> bool:
        """Whether an import of `name` from the module may succeed."""
        return not self.closed or name in self.bindings or name in _ALWAYS

    def changes(self, cls: str) -> bool:
        """Whether its text seems to change a class of its own from outside of the class's body."""
        return re.search(rf"\b{re.escape(cls)}\.\w+\s*=(?!=)|\bsetattr\({re.escape(cls)}\b", self._read[0]) is not None


@dataclass(frozen=True)
class Origin:
    """Where an interpreter finds a module: its file, if it has one, and the folders of its submodules."""

    file: str | None = None
    folders: tuple[str, ...] = ()


Elsewhere = Callable[[str], Origin | None]
"""Where the interpreter finds a top-level module; None: nowhere."""


class Library:
    """Finds modules as an interpreter does that has `folders` first in its path, and reads each once.

    `ready_made` is the folder of the package that forgectl brings along; every other module of its name comes first.
    """

    def __init__(self, folders: Sequence[str], elsewhere: Elsewhere, ready_made: Path) -> None:
        self.folders = list(folders)
        self._elsewhere = elsewhere
        self._ready_made = ready_made
        self._known: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """The module of that name; None if there is none."""
        if name not in self._known:
            origin = self._origin(name)
            self._known[name] = self._module(name, origin) if origin else None
        return self._known[name]

    def has_first(self, top: str) -> bool:
        """Whether its own folders, which come before those of the interpreter, have a module of that name."""
        return bool(self.folders) and _found(top, self.folders) is not None

    def of_ready_made(self, name: str) -> Module | None:
        """A module of the package that forgectl brings along, whatever hides it."""
        own = Library([], lambda _: None, self._ready_made)
        return own.module(name) if name.partition(".")[0] == self._ready_made.name else None

    def _origin(self, name: str) -> Origin | None:
        parent = name.rpartition(".")[0]
        if parent:
            package = self.module(parent)
            return _found(name, package.folders) if package and package.folders else None
        origin = _found(name, self.folders) if self.folders else None
        if origin is None or origin.file is None:  # a regular package elsewhere comes before a folder without __init__
            origin = self._elsewhere(name) or origin
        if origin is None and name == self._ready_made.name:
            origin = _found(name, [str(self._ready_made.parent)])
        return origin

    def _module(self, name: str, origin: Origin) -> Module:
        path = Path(origin.file) if origin.file and origin.file.endswith(".py") else None
        return Module(name, path, origin.folders, path == self._ready_made / "__init__.py")


def _found(name: str, folders: Sequence[str]) -> Origin | None:
    try:
        spec = PathFinder.find_spec(name, list(folders))
    except Exception:  # a folder, or a hook for one, that cannot be asked
        return Origin()
    return origin_of(spec) if spec else None


def origin_of(spec: ModuleSpec) -> Origin:
    """The origin that the spec of a module has."""
    return Origin(spec.origin if spec.has_location else None, tuple(spec.submodule_search_locations or ()))
