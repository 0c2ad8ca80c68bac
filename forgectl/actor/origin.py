"""The origin of a handle: in the process that launched the mesh, an unpickled handle finds the mesh by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forgectl.frozen import dataclass

_lookup: Callable[[str, str], Any] | None = None


def set_launched_lookup(find: Callable[[str, str], Any]) -> None:
    """Set the function that finds a mesh or service which this process launched, by run and name. A rank needs none.

    `find` returns None if this process launched no such mesh or service.
    """
    global _lookup  # noqa: PLW0603  # a driver sets it once; imports the other way round would load the driver in ranks
    _lookup = find


_own: Origin | None = None


def join(origin: Origin) -> None:
    """Note that this process is a rank of that run."""
    global _own  # noqa: PLW0603  # a process is a rank of one run
    _own = origin


def own_origin() -> Origin | None:
    """The origin of handles of this process's run, if it is a rank of an actor."""
    return _own


@dataclass(frozen=True)
class Origin:
    """The run of a handle, and what a process on the launching machine needs to send messages to its ranks."""

    run: str
    machine: str  # boot id of the launching machine
    folder: str  # folder of the message sockets there
    agent: str  # socket of the agent there
    driver_may_restart: bool = False

    def launched_here(self, name: str) -> Any:
        """The mesh of this name, or the service of this key, if this process launched it, else None."""
        return _lookup and _lookup(self.run, name)
