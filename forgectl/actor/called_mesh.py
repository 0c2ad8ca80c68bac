"""A mesh of actors as its callers have it."""

from __future__ import annotations

from typing import Any, Protocol

from forgectl.actor.endpoint import Interface
from forgectl.actor.ranks import Ranks


class CalledMesh(Protocol):
    """What a handle needs of its mesh."""

    name: str
    interface: Interface
    procs: int

    def foreign(self) -> Any:
        """The mesh as other processes may have it; raises ActorDied while it is not up."""
        ...

    async def ranks(self) -> Ranks:
        """Those of the living generation; waits while it restarts, and raises ActorDied once it is over."""
        ...

    def now(self) -> Ranks | None:
        """Those of the living generation, if it is up."""
        ...

    async def shutdown(self, grace: float) -> None:
        """End it, and return when nothing is left of it."""
        ...
