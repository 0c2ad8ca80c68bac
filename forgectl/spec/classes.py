"""Checks the classes that a spec names, and their arguments, from source alone: no code of the user's runs.

It refuses only what cannot work. Whatever the source does not show for certain (a class that code makes, a star
import, an extension module) is accepted; a launch then finds out.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgectl.spec.model import Actor, Document
from forgectl.spec.problems import Problems, did_you_mean, nearest, show, step
from forgectl.spec.python_source import Binding, Elsewhere, Function, Import, Library, Module, bindings_of

Interpreters = Callable[[str | None], Elsewhere]
"""Tells where an interpreter finds modules; None is the one that runs forgectl."""
READY_MADE = Path(__file__).parents[1].with_name("actors")
FOREIGN = frozenset({"monarch", "numpy", "pydantic", "torch", "transformers", "typing_extensions"})
"""Packages, besides the standard library, none of whose classes is a ForgeActor."""
INERT = frozenset({"abc.ABC", "typing.Generic", "typing.Protocol", "typing_extensions.Generic", "builtins.object"})
"""Base classes that take no arguments of a constructor away."""
HOOKS = frozenset({"launch", "as_actor", "as_service", "options", "__new__", "__init_subclass__"})
"""What a class may define so that the arguments in the spec need not be its constructor's."""
MOST_BASES = 100


def check_classes(
    document: Document,
    workdir: Path,
    environ: Mapping[str, str],
    problems: Problems,
    broken: Collection[str],
    interpreters: Interpreters,
) -> None:
    """Check every class of `document`, as the run's driver will import it. Values at `broken` paths were wrong."""
    local = next((host for host in document.all_hosts if host.local), None)
    driver = document.driver
    python = (driver and driver.python) or (local and local.python) or None
    variables = [environ, document.env, *([local.env] if local else []), *([driver.env] if driver else [])]
    paths = [path for v in reversed(variables) for path in v.get("PYTHONPATH", "").split(os.pathsep) if path]
    folders = [str(workdir), *(str(workdir / path) for path in paths)]
    look = Look(workdir, Library(folders, interpreters(python), READY_MADE), python, problems)
    for kind, group in (("actors", document.actors), ("services", document.services)):
        for name, actor in group.items():
            where = step(kind, name)
            wrong = {p for p in (*broken, *problems.unreadable) if p == where or p.startswith(f"{where}.")}
            if where not in wrong and f"{where}.class" not in wrong:
                look.check(where, actor, with_args=not any(p.startswith(f"{where}.args") for p in wrong))


@dataclass(frozen=True)
class Class:
    """A class with its source."""

    module: Module
    node: ast.ClassDef

    @property
    def bindings(self) -> dict[str, list[Binding]]:
        return bindings_of(self.node)


class Outside(str):
    """The dotted name of a class that is defined outside of what is read; ForgeActor is one."""

    @property
    def is_actor(self) -> bool | None:
        """Whether it is a ForgeActor; None if that is not known."""
        module, _, name = self.rpartition(".")
        top = module.partition(".")[0]
        if top == "forgectl":
            return True if name == "ForgeActor" else None
        return False if top in FOREIGN or top in sys.stdlib_module_names or top == "builtins" else None


Base = Class | Outside | None
"""A base class; None: not known."""


@dataclass
class Look:
    """A look at classes that a spec names; what is wrong is added to `problems`."""

    workdir: Path
    library: Library
    python: str | None
    """The interpreter that will import them; None is this one, whose syntax is known."""
    problems: Problems

    def check(self, where: str, actor: Actor, *, with_args: bool) -> None:
        """Check the class of one actor or service, and its arguments."""
        module, _, path = actor.class_.partition(":")
        found = self._module(module, path, f"{where}.class")
        cls = found and self._class(found, path, f"{where}.class")
        if cls and self._is_actor(cls, f"{where}.class") and with_args:
            self._arguments(cls, actor.args, where)

    # ------------------------------------------------------------ the module

    def _module(self, name: str, path: str, where: str) -> Module | None:
        module = self.library.module(name)
        if module is None:
            self._no_module(name, path, where)
        elif module.error is not None and self.python is None:
            place = f"{self._shown(module)}:{module.error.lineno or 1}"
            self.problems.add(where, f"{place} is not valid Python: {module.error.msg}")
        elif module.readable:
            return module
        return None

    def _no_module(self, name: str, path: str, where: str) -> None:
        parent, _, last = name.rpartition(".")
        package = self.library.module(parent) if parent else None
        if parent and package is None:
            self._no_module(parent, path, where)
            return
        if package and not package.closed and (package.path or not package.folders):
            return  # its code may make modules
        near = nearest(last, _modules_in(package.folders if package else self.library.folders))
        message = f"no module {show(name)}" + ("" if package else f" in {show(str(self.workdir))}")
        if near:
            message += f"; did you mean {show(f'{parent}.{near}' if parent else near)}?"
        elif hiding := self._hiding(name, path):
            message += f": {hiding}"
        elif package is None:
            message += f", and none is installed for {self.python or sys.executable}; is workdir its folder?"
        elif not package.folders:
            message += f": {self._shown(package)} is not a package"
        self.problems.add(where, message)

    def _hiding(self, module: str, path: str) -> str | None:
        """What hides a ready-made class of that name, if something does."""
        top = self.library.module(module.partition(".")[0])
        wanted = self.library.of_ready_made(module)
        if top is None or top.ready_made or wanted is None or not wanted.may_have(path.partition(".")[0]):
            return None
        return f"{top.path or top.folders[0]} hides forgectl's package {top.name}; give that file another name"

    def _shown(self, module: Module) -> str:
        path = module.path or Path(module.name)
        return str(path.relative_to(self.workdir) if path.is_relative_to(self.workdir) else path)

    # ------------------------------------------------------------ the class

    def _class(self, module: Module, path: str, where: str) -> Class | None:
        name, *inner = path.split(".")
        if not module.may_have(name) and not self.library.module(f"{module.name}.{name}"):
            self._no_class(module, path, where)
            return None
        found = self._resolve(module, name)
        if isinstance(found, Outside) and not inner and found.is_actor is False:
            self.problems.add(where, f"{show(name)} of {self._shown(module)} is {found}, which is not a ForgeActor")
        if isinstance(found, Function) and not inner and not found.decorator_list:
            self.problems.add(where, f"{self._shown(module)}:{found.lineno}: {show(name)} is a function, not a class")
        for part in inner:
            bound = _only(found.bindings, part) if isinstance(found, Class) else None
            found = Class(module, bound) if isinstance(bound, ast.ClassDef) else None
        return found if isinstance(found, Class) else None

    def _no_class(self, module: Module, path: str, where: str) -> None:
        classes = [n for n, bound in module.bindings.items() if any(isinstance(b, ast.ClassDef) for b in bound)]
        message = f"{self._shown(module)} has no class {show(path)}"
        if near := did_you_mean(path, classes or module.bindings):
            message += near
        elif hiding := self._hiding(module.name, path):
            message += f": {hiding}"
        elif actors := [n for n in classes if self._actor(module, n)]:
            message += f"; its actors are {', '.join(actors[:8])}"
        self.problems.add(where, message)

    def _actor(self, module: Module, name: str) -> bool:
        found = self._resolve(module, name)
        return isinstance(found, Class) and self._derives(found) is True

    def _is_actor(self, cls: Class, where: str) -> bool:
        """Whether it is a ForgeActor, whose arguments can be checked, too."""
        if cls.node.decorator_list:
            return False
        actor = self._derives(cls)
        place = f"{self._shown(cls.module)}:{cls.node.lineno}"
        if actor is False:
            name = cls.node.name
            message = f"{name} ({place}) is not a ForgeActor; write class {name}(ForgeActor)"
            self.problems.add(where, message)
        elif actor and (missing := self._abstract(cls)):
            self.problems.add(where, f"{cls.node.name} ({place}) is abstract: it does not define {', '.join(missing)}")
            return False
        return actor is True

    def _resolve(self, module: Module, name: str, depth: int = 0) -> Class | Outside | ast.AST | None:
        """What a name of a module stands for; None if that is not known."""
        if name not in module.bindings:
            return Outside(f"builtins.{name}") if module.closed and hasattr(builtins, name) else None
        found = _only(module.bindings, name)
        if isinstance(found, ast.ClassDef):
            return Class(module, found)
        if isinstance(found, Import) and found.name is not None and depth < MOST_BASES:
            return self._imported(found.module, found.name, depth + 1)
        return found if isinstance(found, ast.AST) else None

    def _imported(self, module: str, name: str, depth: int) -> Class | Outside | ast.AST | None:
        outside, top = Outside(f"{module}.{name}"), module.partition(".")[0]
        if top == "forgectl" or (outside.is_actor is False and not self.library.has_first(top)):
            return outside
        found = self.library.module(module)
        return self._resolve(found, name, depth) if found and found.readable else None

    def _bases(self, cls: Class) -> Iterator[Base]:
        for node in cls.node.bases:
            yield self._base(cls.module, node)

    def _base(self, module: Module, node: ast.expr) -> Base:
        if isinstance(node, ast.Subscript):
            node = node.value
        if isinstance(node, ast.Name):
            found = self._resolve(module, node.id)
            return found if isinstance(found, (Class, Outside)) else None
        dotted = ast.unparse(node)
        root, _, rest = dotted.partition(".")
        bound = _only(module.bindings, root)
        if not rest.replace(".", "").isidentifier() or not isinstance(bound, Import):
            return None
        start = bound.module if bound.name is None else f"{bound.module}.{bound.name}"
        holder, _, name = f"{start}.{rest}".rpartition(".")
        found = self._imported(holder, name, 0)
        return found if isinstance(found, (Class, Outside)) else None

    def _family(self, cls: Class) -> list[Base]:
        """The class and all its bases, each as often as it is met."""
        family: list[Base] = [cls]
        for member in family:
            if isinstance(member, Class) and len(family) < MOST_BASES:
                family += self._bases(member)
        return family

    def _derives(self, cls: Class) -> bool | None:
        """Whether it is a ForgeActor; None if that is not known."""
        kinds = {_kind(member) for member in self._family(cls)[1:]}
        return True if True in kinds else None if None in kinds else False

    def _known(self, cls: Class) -> list[Class] | None:
        """The family, if nothing but its source says how it is constructed."""
        family = self._family(cls)
        classes = [member for member in family if isinstance(member, Class)]
        outside = {m for m in family if not isinstance(m, Class) and not (m and (m.is_actor or m in INERT))}
        plain = all(_is_plain(c) and not c.module.changes(c.node.name) for c in classes)
        return classes if plain and not outside and len(family) < MOST_BASES else None

    def _abstract(self, cls: Class) -> list[str]:
        defined: dict[str, list[Binding]] = {}
        for member in self._known(cls) or ():
            for name, bound in member.bindings.items():
                defined.setdefault(name, []).extend(bound)
        return [name for name, bound in defined.items() if all(map(_is_abstract, bound))]

    # ------------------------------------------------------------ its arguments

    def _arguments(self, cls: Class, given: dict[str, Any], where: str) -> None:
        constructor = self._constructor(cls)
        if constructor is None:
            return
        taken = constructor.args
        positional = [*taken.posonlyargs, *taken.args]
        names = [a.arg for a in (*taken.args, *taken.kwonlyargs) if a is not positional[0]]
        name = cls.node.name
        for key in given:
            if key not in names and taken.kwarg is None:
                near = did_you_mean(key, names)
                others = f"; it takes {', '.join(names)}" if names else "; it takes none"
                message = f"{name} has no argument {show(key)}{near or others}"
                self.problems.add(step(f"{where}.args", key), message, at_key=True)
        optional = {a.arg for a in positional[len(positional) - len(taken.defaults) :]}
        optional |= {a.arg for a, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default}
        if missing := [n for n in names if n not in optional and n not in given]:
            s = "s" * (len(missing) > 1)
            self.problems.add(f"{where}.args", f"{name} needs the argument{s} {', '.join(map(show, missing))}")

    def _constructor(self, cls: Class) -> ast.FunctionDef | None:
        """The `__init__` that will be called, if that is certain."""
        family = self._known(cls)
        if family is None or any(HOOKS & member.bindings.keys() for member in family):
            return None
        member: Base = cls
        while isinstance(member, Class):
            if "__init__" in member.bindings:
                found = _only(member.bindings, "__init__")
                if not isinstance(found, ast.FunctionDef) or found.decorator_list:
                    return None
                return found if found.args.posonlyargs or found.args.args else None
            classes = [base for base in self._bases(member) if isinstance(base, Class)]
            member = classes[0] if len(classes) == 1 else None
        return None


def _only(bindings: dict[str, list[Binding]], name: str) -> Binding | None:
    """What binds a name, if there is only one."""
    found = bindings.get(name, [])
    return found[0] if len(found) == 1 else None


def _kind(member: Base) -> bool | None:
    if isinstance(member, Class):
        return False if not member.node.decorator_list else None
    return member.is_actor if member is not None else None


def _is_plain(cls: Class) -> bool:
    keywords = [ast.unparse(keyword) for keyword in cls.node.keywords]
    return not cls.node.decorator_list and all(k in ("metaclass=ABCMeta", "metaclass=abc.ABCMeta") for k in keywords)


def _is_abstract(bound: Binding) -> bool:
    if not isinstance(bound, Function):
        return False
    return any(ast.unparse(d) in ("abstractmethod", "abc.abstractmethod") for d in bound.decorator_list)


def _modules_in(folders: list[str] | tuple[str, ...]) -> Iterator[str]:
    for folder in folders:
        try:
            for entry in Path(folder).iterdir():
                if entry.suffix == ".py" or (entry.suffix == "" and entry.is_dir() and any(entry.glob("*.py"))):
                    yield entry.stem
        except OSError:
            continue
