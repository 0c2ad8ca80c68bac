"""Finds the files that a spec runs, from its workdir; reports missing ones with similar names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from forgectl.spec.model import Document, Runnable
from forgectl.spec.problems import Problems, nearest, show, step

R = TypeVar("R", bound=Runnable)


def find_workdir(document: Document, folder: Path, problems: Problems) -> Path | None:
    """The absolute path of the folder where ranks start; None, and a problem, if there is no such folder."""
    workdir = folder / document.workdir
    if _is("dir", workdir):
        return workdir.resolve()
    what = "is not a folder" if _is("there", workdir) else f"no such folder{tilde(document.workdir)}"
    problems.add("workdir", f"{show(document.workdir)}: {what}; looked for {show(str(workdir))}")
    return None


def find_files(document: Document, workdir: Path, problems: Problems) -> Document:
    """The document, after a look for the file of each `run:`; relative ones begin at `workdir`.

    Paths stay as written, as ranks get them as sys.argv[0], unless they would lead elsewhere in a copy of workdir.
    """
    files = _Files(workdir, problems)
    copied_to = {host.name for host in document.hosts if not host.local and document.sync == "content"}
    scripts = {}
    for name, script in document.scripts.items():
        copied = bool(copied_to) if not isinstance(script.hosts, tuple) else not copied_to.isdisjoint(script.hosts)
        scripts[name] = files.found(script, step("scripts", name), copied=copied)
    if document.driver:
        files.found(document.driver, "driver")
    return document.model_copy(update={"scripts": scripts})


@dataclass
class _Files:
    workdir: Path
    problems: Problems
    listings: dict[Path, list[str]] = field(default_factory=dict)

    def found(self, script: R, where: str, *, copied: bool = False) -> R:
        """`script`, after a look for its file; a missing one is added to the problems.

        `copied`: it may run on hosts that get only a copy of workdir, so its file must be in workdir.
        """
        if not script.run:
            return script
        target, *arguments = script.run
        path = self.workdir / target
        if not _is("file", path):
            self.problems.add(f"{where}.run", self.missing(target, path))
        elif copied:
            real = path.parent.resolve() / path.name
            if not real.is_relative_to(self.workdir):
                message = f"{show(target)} is outside of workdir, and only workdir is copied to ssh hosts"
                self.problems.add(f"{where}.run", f"{message}; move it there, or set sync: none if they have it")
            elif real != path or Path(target).is_absolute():
                return script.model_copy(update={"run": (str(real), *arguments)})
        return script

    def missing(self, target: str, path: Path) -> str:
        if _is("dir", path):
            return f"{show(target)} is a folder; name the Python file in it, or use module"
        if _is("there", path):
            return f"{show(target)} is not a regular file"
        message = f"no such file {show(target)} in {show(str(self.workdir))}{tilde(target)}"
        near = nearest(path.name, () if self.problems.full else self.listing(path.parent))
        if near:
            return f"{message}; did you mean {show(str(Path(target).with_name(near)))}?"
        return message + "; use command for a program that is not a Python file, module for a module"

    def listing(self, folder: Path) -> list[str]:
        """The Python files of a folder."""
        if folder not in self.listings:
            try:
                self.listings[folder] = sorted(p.name for p in folder.glob("*.py"))
            except (OSError, ValueError):
                self.listings[folder] = []
        return self.listings[folder]


def tilde(path: str) -> str:
    """Advice for a path that begins with `~`, which a shell would expand; else ""."""
    return "; '~' is not expanded, write ${HOME}" if path.startswith("~") else ""


def _is(what: str, path: Path) -> bool:
    try:
        return {"dir": path.is_dir, "file": path.is_file, "there": path.exists}[what]()
    except (OSError, ValueError):  # such as a name too long for the file system
        return False
