"""What `forgectl run` is to run: a Python file, a module or any program, and the name of its mesh."""

from __future__ import annotations

import os
import shlex
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from forgectl.errors import ForgeError, NotFoundError, UsageError
from forgectl.names import name_of, nearest

HEAD = 1024
"""Bytes of a file that show whether it is Python."""


def program_of(words: list[str], *, module: bool, command: bool, workdir: Path | None) -> tuple[str, list[str]]:
    """What ranks run, as a key of a spec and its value: `run`, `module` or `command`.

    `module`: the first word is a module; `command`: it is a program, whatever a file of that name has. A file's path
    is absolute where ranks do not start in this folder, but in `workdir`. Raises UsageError, or NotFoundError.
    """
    if module and command:
        raise UsageError("-m and --no-python exclude each other; keep one")
    if not words:
        what = "a MODULE after -m" if module else "a PROGRAM: a Python file or any other, or a module with -m"
        raise UsageError(f"nothing to run: name {what}", hint="forgectl run -n 2 train.py")
    first, *arguments = words
    if module:
        return "module", words
    if command:
        return "command", [_there(first, Path(first), workdir) if "/" in first else first, *arguments]
    path = Path(first).expanduser()
    if path.is_file():
        return _file(first, path, arguments, workdir)
    if "/" not in first and not first.endswith(".py") and shutil.which(first):
        return "command", words
    raise _nothing(first, path)


def mesh_name(kind: str, target: str) -> str:
    """The name of the mesh that runs it: its own, without folder, suffix and package."""
    own = target.rpartition(".")[2] if kind == "module" else Path(target).stem
    letters = unicodedata.normalize("NFKD", own)
    return name_of("".join(c for c in letters if not unicodedata.combining(c)), "script").rstrip("._-")


def _file(first: str, path: Path, arguments: list[str], workdir: Path | None) -> tuple[str, list[str]]:
    """A file that exists: one in Python is run as by torchrun, any other as by a shell."""
    there = _there(first, path, workdir)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as e:
        raise NotFoundError(f"cannot read {first}: {e.strerror}") from None
    if _is_python(path, head):
        return "run", [there, *arguments]
    if not os.access(path, os.X_OK):
        again = shlex.join(["forgectl", "run", *head[2:].split(b"\n")[0].decode("utf-8", "replace").split(), first])
        raise NotFoundError(
            f"{first} is no Python file, and it is not executable", hint=f"chmod +x {shlex.quote(first)}, or {again}"
        )
    if path.suffix == ".sh" and not head.startswith(b"#!"):
        raise NotFoundError(
            f"{first} has no first line such as #!/bin/sh, so the system cannot run it",
            hint=f"add one, or {shlex.join(['forgectl', 'run', 'sh', first])}",
        )
    return "command", [there if "/" in there else f"./{there}", *arguments]


def _is_python(path: Path, head: bytes) -> bool:
    """Whether a file is Python's: by its suffix, its first line, or else because it is text, as torchrun assumes."""
    if path.suffix in (".py", ".pyw"):
        return True
    if b"\0" in head:
        return False
    if head.startswith(b"#!"):
        return b"python" in head.split(b"\n")[0]
    return path.suffix != ".sh"


def _there(first: str, path: Path, workdir: Path | None) -> str:
    """The path as typed, which is right in this folder; made absolute for another one."""
    if workdir is not None:
        return str(path.absolute())
    if first.startswith("-"):  # `forgectl run -- -x.py`: no option of what runs it
        return f"./{first}"
    return str(path) if first.startswith("~") else first


def _nothing(first: str, path: Path) -> ForgeError:
    """The error for a first word that names neither a file nor a program."""
    if path.is_dir():
        return NotFoundError(f"{first} is a folder, not a program", hint=_in_folder(first, path))
    if first.startswith("-"):
        return UsageError(f"{first!r} is no option of `forgectl run`", hint=f"a file of that name is ./{first}")
    dotted = first.replace("/", ".").strip(".")
    if _is_module(dotted):
        return NotFoundError(f"no file {first}; looked in {Path.cwd()}", hint=f"forgectl run -m {dotted}")
    if "/" in first or first.endswith(".py"):
        where = path.absolute().parent
        return NotFoundError(f"no script {first}; looked in {where}", hint=_near(first, path))
    other = "`--no-python` runs a program that only the hosts have"
    near = _near(first, path)
    return NotFoundError(f"no script {first} in {Path.cwd()}, and no such program in PATH", hint=near or other)


def _in_folder(first: str, path: Path) -> str | None:
    """What in a folder could be meant: it as a module, or the Python files in it."""
    module = first.strip("/").removeprefix("./").replace("/", ".")
    if (path / "__main__.py").is_file() and not first.startswith(("/", "~", "..")):
        return f"forgectl run -m {module}"
    try:
        files = sorted(p.name for p in path.glob("*.py"))
    except OSError:
        files = []
    shown = [str(Path(first) / name) for name in files if name != "__init__.py"][:3]
    return f"name a file in it, such as {', '.join(shown)}" if shown else "name a file"


def _is_module(dotted: str) -> bool:
    """Whether this folder has a module of that name; looks for files, and imports nothing."""
    if not all(part.isidentifier() for part in dotted.split(".")):
        return False
    path = Path(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def _near(first: str, path: Path) -> str | None:
    """`did you mean …?` for a file of a similar name; suffixes do not count, since most have the same."""
    stems: dict[str, str] = {}
    for name in _names(path.absolute().parent):
        if Path(name).suffix == path.suffix or not path.suffix:
            stems.setdefault(Path(name).stem.casefold(), name)
    near = nearest(path.stem.casefold(), stems)
    return f"did you mean {str(Path(first).with_name(stems[near]))!r}?" if near else None


def _names(folder: Path) -> Iterator[str]:
    try:
        for number, entry in enumerate(os.scandir(folder)):
            if number == 1000:
                return
            if entry.is_file():
                yield entry.name
    except OSError:
        return
