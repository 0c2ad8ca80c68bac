"""This process as its run's one Monarch client: it spawns ranks, and hears at once of errors in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from forgectl.actor import engine, shells
from forgectl.actor.engine import Spawned


class Client:
    """Made once a process. `errors` is where ranks send what they raise, besides their answer to the call."""

    def __init__(self, folder: Path) -> None:
        engine.start_client(folder)
        self.errors, self._receiver = engine.open_port()

    async def hear_errors(self) -> None:
        """Cut calls short by what one of their ranks raised, as long as the process lives."""
        while True:
            number, raised = await self._receiver.recv()
            shells.cut(number, raised)

    def spawn(
        self,
        mesh: str,
        generation: int,
        procs: int,
        forwarder: Callable[[int], list[str]],
        give_up: Callable[[str], None],
    ) -> tuple[Spawned, shells.Shells]:
        """Start the ranks of a generation through the commands `forwarder(rank)`."""
        spawned = engine.spawn(mesh, procs, forwarder)
        return spawned, shells.Shells(mesh, generation, spawned.shells, give_up)
