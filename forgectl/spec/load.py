"""Reads a spec file into a checked `Spec`, or raises one SpecError with all its problems."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgectl.errors import NotFoundError
from forgectl.names import DEFAULT_SPECS, NAME
from forgectl.spec import overrides as override
from forgectl.spec import programs, sources
from forgectl.spec.checks import Checks
from forgectl.spec.classes import Interpreters, check_classes
from forgectl.spec.document import MAX_BYTES, compose
from forgectl.spec.model import Body, Document, Spec
from forgectl.spec.problems import CannotGoOn, Place, Problems, one_line, show
from forgectl.spec.read import Null, read
from forgectl.spec.scalars import NAME_RULE
from forgectl.spec.validate import validated

MAX_ENTRIES = 1000  # hosts, or meshes of one kind


def load(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str],
    name: str | None = None,
    interpreters: Interpreters | None = None,
) -> Spec:
    """The spec in a file. `overrides` are `a.b.c=YAML`, `environ` fills in `${VAR}`, `name` renames the run.

    With `interpreters` its classes are checked, too. Raises NotFoundError if the file cannot be read, SpecError if it
    has problems.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        raise _not_found(path, e) from None
    folder = path.parent.absolute()
    return parse(
        text,
        source=str(path),
        folder=folder,
        overrides=overrides,
        environ=environ,
        name=name,
        interpreters=interpreters,
    )


def parse(
    text: bytes,
    *,
    source: str,
    folder: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str],
    name: str | None = None,
    interpreters: Interpreters | None = None,
) -> Spec:
    """The spec in `text`; its relative paths start at `folder`. `source` is its name in errors. Raises SpecError."""
    problems = Problems()
    spec = None
    try:
        spec = _parse(text, source, folder, overrides, environ, name, interpreters, problems)
    except CannotGoOn:
        pass
    problems.check(source)
    assert spec is not None
    return spec


def _parse(
    text: bytes,
    source: str,
    folder: Path,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    name: str | None,
    interpreters: Interpreters | None,
    problems: Problems,
) -> Spec | None:
    root = compose(text, problems)
    if root is None:
        problems.stop("", "the spec is empty", place=Place(1, 1))
    data = read(override.apply(root, overrides, problems), environ, problems)
    if isinstance(data, Null):
        problems.stop("", "the spec is empty")
    if not isinstance(data, dict):
        problems.stop("", f"expected a map with keys such as scripts and hosts, got {show(data)}")
    if name is not None and not NAME.fullmatch(name):
        problems.add("--name", f"{show(name)} is not a name for a run: {NAME_RULE}", place=Place())
    unread = sources.fill_in(data, folder, environ, problems)
    _limit(data, problems)
    _with_empty_meshes(data)
    document, broken = validated(Document, data, problems)
    checks = Checks(document, data, environ, problems, broken | unread)
    checks.run()
    workdir = None
    if checks.sound("workdir"):
        workdir = programs.find_workdir(document, folder, problems)
    if workdir:
        document = programs.find_files(document, workdir, problems)
        if interpreters and (document.actors or document.services):
            check_classes(document, workdir, environ, problems, checks.broken, interpreters)
    if problems.found or workdir is None:
        return None
    fields = {field: getattr(document, field) for field in Body.model_fields}
    run_name = name or document.name or _name_of(folder / Path(source).name)
    spec = Spec(name=run_name, source=source, folder=folder, workdir=workdir, **fields)
    spec._places.update(problems.places)
    spec._text = text
    return spec


def _limit(data: dict[str, Any], problems: Problems) -> None:
    """Refuse data that would take long to check and cannot be a real spec."""
    for key in ("hosts", "actors", "services", "scripts"):
        if isinstance(data.get(key), (list, dict)) and len(data[key]) > MAX_ENTRIES:
            problems.stop(key, f"{len(data[key])} entries; at most {MAX_ENTRIES} are supported")


def _with_empty_meshes(data: dict[str, Any]) -> None:
    """Turn empty meshes into empty maps, so that their missing keys are reported."""
    for kind in ("actors", "services", "scripts"):
        if isinstance(group := data.get(kind), dict):
            data[kind] = {name: {} if isinstance(mesh, Null) else mesh for name, mesh in group.items()}


def _name_of(file: Path) -> str:
    """A valid name for the run, as near to the name of its file as possible, or of its folder if that has one spec."""
    own = file.parent.resolve().name if file.name in DEFAULT_SPECS else file.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", own).lstrip("._-")[:63].rstrip("-") or "run"


def _not_found(path: Path, error: Exception) -> NotFoundError:
    folder, shown = path.parent.absolute(), one_line(str(path))
    try:
        if path.is_dir():
            folder = path.absolute()
            near = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))[:5]
            message = f"{shown} is a folder, not a spec file"
        elif isinstance(error, FileNotFoundError):
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            near = difflib.get_close_matches(path.name, names[:1000], n=3)
            message = f"no spec file {shown}; looked in {one_line(str(folder))}"
        else:
            near, message = [], f"cannot read {shown}: {getattr(error, 'strerror', None) or error}"
    except (OSError, ValueError):
        near, message = [], f"cannot read {shown}: {getattr(error, 'strerror', None) or error}"
    return NotFoundError(message, hint=_spec_hint([one_line(name) for name in near]))


def _spec_hint(near: Sequence[str]) -> str | None:
    """What to do: of the names nearby only those of specs can be meant."""
    specs = [name for name in near if Path(name).suffix in (".yaml", ".yml")]
    if not specs:
        return "`forgectl init DIR` writes a first spec" if not near else None
    return f"did you mean {specs[0]}?" if len(specs) == 1 else f"specs there: {', '.join(specs)}"
