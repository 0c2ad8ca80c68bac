"""A mesh as used by a process other than its driver: any process that received a handle may call it."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

from forgectl.actor import follower
from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.deaths import died
from forgectl.actor.endpoint import Interface
from forgectl.actor.origin import Origin
from forgectl.actor.ranks import Ranks
from forgectl.errors import ForgeError, UnreachableError
from forgectl.messages.calling import Here
from forgectl.model.status import OVER
from forgectl.protocol.supervision import MeshNews
from forgectl.system.processes import boot_id

NEWS_SECONDS = 30.0
"""How long the agent of this host may take to send the state of the meshes."""


class ForeignMesh(CalledMesh):
    """A mesh as this machine's agent reports it: the generation that is up, or why the mesh has ended."""

    def __init__(
        self, name: str, interface: Interface, procs: int, origin: Origin, generation: int, places: tuple[str, ...]
    ) -> None:
        super().__init__(name, interface, procs)
        self._origin = origin
        self._from_driver = generation, places  # the generation that the driver knew when it pickled the handle
        self._following: follower.Follower | None = None

    def __reduce__(self) -> Any:
        ranks = self._ranks
        generation, places = (ranks.generation, ranks.places) if ranks else self._from_driver
        return _restore, (self.name, self.interface, self.procs, self._origin, generation, places)

    @property
    def run(self) -> str:
        """The run that it is of."""
        return self._origin.run

    def foreign(self) -> ForeignMesh:
        """Itself: it is in that form already."""
        return self

    def now(self) -> Ranks | None:
        """The ranks of the generation that is up, else None. Connects to the agent first, if that is not done yet."""
        if self._following is None:
            self._follow()
        return self._ranks

    def _follow(self) -> None:
        here, agent = _here(self._origin)
        with self._lock:
            if self._following is not None:
                return
            self._here = here
            self._following = follower.follower(self._origin.run, agent)
        self._following.watch(self.name, self._take)
        try:
            self._following.synced.result(NEWS_SECONDS)
        except concurrent.futures.TimeoutError:
            raise UnreachableError(f"mesh {self.name}: the agent of this host does not answer") from None

    def _take(self, now: MeshNews) -> None:
        """Apply news of the mesh. Called by the follower."""
        known, places = self._from_driver
        if self._why_over is not None:
            return
        if now.generation < known:  # older than the handle
            now = MeshNews(self.name, known, "ready", places)
        ranks = self._ranks
        alive = now.state in ("starting", "ready")
        if ranks is not None and (not alive or now.generation != ranks.generation):
            self._ranks = None
            ranks.die(died(now))
        if now.state in OVER:
            self._is_over(died(now))
        elif self._ranks is None and (now.state == "ready" or (alive and now.generation == known)):
            self._came_up(Ranks(self.name, now.generation, now.places, self._here))

    async def shutdown(self, grace: float) -> None:
        """Raises ForgeError: only the driver may shut a mesh down."""
        raise ForgeError(f"mesh {self.name} is shut down by the driver that launched it, not by an actor")


def _here(origin: Origin) -> tuple[Here, str]:
    """How this process takes part in messages, and its agent's socket; raises UnreachableError outside the run."""
    if os.environ.get("FORGE_RUN_ID") == origin.run and (folder := os.environ.get("FORGE_MESSAGES")):
        return Here(folder, os.environ.get("FORGE_PLACE", "")), os.environ["FORGE_AGENT"]
    if boot_id() == origin.machine:
        return Here(origin.folder, ""), origin.agent
    raise UnreachableError(
        f"a handle of run {origin.run} cannot be used here: this process is not one of that run",
        hint="handles work in the run's own processes, and in others on the machine that launched it",
    )


def _restore(
    name: str, interface: Interface, procs: int, origin: Origin, generation: int, places: tuple[str, ...]
) -> CalledMesh:
    """The LiveMesh if this process launched the mesh, so that a returned handle is a full one; else a ForeignMesh."""
    return origin.launched_here(name) or ForeignMesh(name, interface, procs, origin, generation, places)
