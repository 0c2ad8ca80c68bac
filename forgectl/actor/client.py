"""This process as its run's one Monarch client: it spawns ranks, and hears at once of errors in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forgectl.actor import engine, shells
from forgectl.actor.engine import HostWorker, Spawned, Tls

LONG = frozenset({"ranks"})
"""What a mesh's state has of every rank: no part of why it ended."""


class Client:
    """Made once a process. `errors` is where ranks send what they raise, besides their answer to the call."""

    def __init__(self, folder: Path, tls: Tls | None = None) -> None:
        engine.start_client(folder, tls)
        self.errors, self._receiver = engine.open_port()
        self._has_hosts = tls is not None
        self._shells: weakref.WeakSet[shells.Shells] = weakref.WeakSet()

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
        hosts: Sequence[HostWorker | None] | None = None,
    ) -> tuple[Spawned, shells.Shells]:
        """Start a generation's ranks by the commands `forwarder(rank)`, run by `hosts[rank]` or, if None, from here."""
        spawned = engine.spawn(mesh, procs, forwarder, hosts)
        made = shells.Shells(mesh, generation, spawned.shells, give_up)
        self._shells.add(made)
        return spawned, made

    def tell_of_end(self, generation: int, document: dict[str, Any]) -> None:
        """Tell ranks on other hosts, which nobody else tells, that a generation of a mesh has ended."""
        if not self._has_hosts:
            return
        news = {key: value for key, value in document.items() if key not in LONG}
        for others in list(self._shells):
            if others.mesh != document["mesh"] and others.died is None:
                others.monarchs.hear.broadcast(generation, news)
