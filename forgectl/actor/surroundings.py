"""What ranks take over from the script that launched them: import path, folder and variables as they were then."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping

from forgectl.frozen import dataclass
from forgectl.names import SECRETS
from forgectl.redaction import of_process

AT_IMPORT = ("LD_", "MALLOC_", "PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH")
"""How variables begin that the interpreter, or modules as they are imported, read: a fork server must start with them.

All others are set in the rank, after the fork: a fork server for each change would import torch again.
"""


@dataclass(frozen=True)
class Moment:
    """The variables, the folder and the import path of this process at one time."""

    variables: dict[str, str]
    folder: str | None  # None: it has been removed
    path: list[str]

    @classmethod
    def now(cls) -> Moment:
        """The present."""
        try:
            folder = os.getcwd()  # noqa: PTH109 (as text)
        except OSError:
            folder = None
        last = sorted(sys.path, key=lambda p: p == "")  # the folder itself comes last, so that it hides no module
        path = [p for p in last if folder is not None or os.path.isabs(p)]  # noqa: PTH117
        return cls(dict(os.environ), folder, [os.path.abspath(p) for p in path])  # noqa: PTH100


@dataclass(frozen=True)
class Surroundings:
    """What a rank takes over before it imports the user's code. It is sent to the rank alone, and is on no disk.

    `changes` has, by name, the value of a variable when the run began and when the mesh was launched; None: not set.
    """

    path: list[str]
    folder: str | None
    changes: dict[str, tuple[str | None, str | None]]

    @classmethod
    def between(cls, begin: Moment | None, now: Moment, fixed: Collection[str]) -> Surroundings:
        """What has changed since the run began, without the variables `fixed`.

        `begin` is None in the driver of a spec: there the spec says what ranks get, on any machine.
        """
        if begin is None:
            return cls(now.path, None, {})
        changes = {name: both for name, both in _changes(begin.variables, now.variables) if name not in fixed}
        _redact(changes)
        return cls(now.path, now.folder if now.folder != begin.folder else None, changes)

    @property
    def at_import(self) -> dict[str, str]:
        """The new values with which a fork server must start; without secrets, as plans are stored."""
        early = {n: now for n, (_, now) in self.changes.items() if now is not None and n.startswith(AT_IMPORT)}
        return {name: value for name, value in early.items() if name not in _secrets()}

    def enter(self) -> None:
        """Take it over in this rank, except variables that forgectl has set: those are not as when the run began."""
        for name, (before, now) in self.changes.items():
            if os.environ.get(name) != before:
                continue
            if now is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = now
        _redact(self.changes)
        if self.folder is not None:
            os.chdir(self.folder)
        sys.path += [p for p in self.path if p not in sys.path]


def _changes(begin: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    for name in begin.keys() | now.keys():
        before, after = begin.get(name), now.get(name)
        if before != after and not name.startswith("FORGE_"):
            yield name, (before, after)


def _secrets() -> Collection[str]:
    return os.environ.get(SECRETS, "").split(",")


def _redact(changes: Mapping[str, tuple[str | None, str | None]]) -> None:
    """Remove the new values of secrets from what this process reports, too."""
    of_process().add(now for name, (_, now) in changes.items() if now and name in _secrets())
