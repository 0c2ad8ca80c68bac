"""Where a handle comes from, and how it finds back to the mesh itself in the process that launched it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forgectl.frozen import dataclass

_launched: Callable[[str, str], Any] | None = None


def find_launched_by(find: Callable[[str, str], Any]) -> None:
    """`find` gives a mesh of this process by its run and name, None where it launched no such. Ranks need none."""
    global _launched
    _launched = find


@dataclass(frozen=True)
class Origin:
    """Where a handle comes from: the run, and how a process on the launching machine takes part in its messages."""

    run: str
    machine: str  # its boot id
    folder: str  # of its sockets for messages
    agent: str  # the socket of its agent

    def launched_here(self, mesh: str) -> Any:
        """The mesh of that name, where this process launched it; else None."""
        return _launched and _launched(self.run, mesh)
