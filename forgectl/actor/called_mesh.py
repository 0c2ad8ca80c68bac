"""The interface through which handles call a mesh of actors."""

from __future__ import annotations

from typing import Any, Protocol

from forgectl.actor.endpoint import Interface
from forgectl.actor.ranks import Ranks


class CalledMesh(Protocol):
    """What a handle needs from its mesh."""

    name: str
    interface: Interface
    procs: int

    def foreign(self) -> Any:
        """The mesh in a form that other processes can use."""
        ...

    async def ranks(self) -> Ranks:
        """The ranks of the current generation; waits while the mesh restarts, raises ActorDied once it has ended."""
        ...

    def now(self) -> Ranks | None:
        """The ranks of the current generation if it is up, else None."""
        ...

    async def shutdown(self, grace: float) -> None:
        """End the mesh; returns when none of its processes is left."""
        ...
