"""A mesh as used by a process other than its driver: any process that received a handle may call it."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from forgectl.actor import follower
from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.deaths import died
from forgectl.actor.endpoint import Interface
from forgectl.actor.errands import driver
from forgectl.actor.membership import here_of
from forgectl.actor.origin import Origin
from forgectl.actor.ranks import Ranks
from forgectl.actor.verbs import LATE, STOP
from forgectl.errors import UnreachableError
from forgectl.model.status import OVER
from forgectl.protocol.supervision import MeshNews
from forgectl.system.futures import Future
from forgectl.system.loops import loop_of_calls


class ForeignMesh(CalledMesh):
    """A mesh as this machine's agent reports it: the generation that is up, or why the mesh has ended."""

    def __init__(
        self, name: str, interface: Interface, procs: int, origin: Origin, generation: int, places: tuple[str, ...]
    ) -> None:
        super().__init__(name, interface, procs)
        self.origin = origin
        self._from_driver = generation, places  # the generation that the driver knew when it pickled the handle
        self._following: follower.Follower | None = None

    def __reduce__(self) -> Any:
        ranks = self._ranks
        generation, places = (ranks.generation, ranks.places) if ranks else self._from_driver
        return _restore, (self.name, self.interface, self.procs, self.origin, generation, places)

    @property
    def first(self) -> int:
        """The generation that the driver knew when it pickled the handle: this tells it from an earlier mesh."""
        return self._from_driver[0]

    def foreign(self) -> ForeignMesh:
        """Itself: it is in that form already."""
        return self

    def now(self) -> Ranks | None:
        """The ranks of the generation that is up, else None. Connects to the agent first, if that is not done yet."""
        if self._following is None:
            self._follow()
        return self._ranks

    def _follow(self) -> None:
        here, agent = here_of(self.origin)
        with self._lock:
            if self._following is not None:
                return
            self._here = here
            self._following = follower.follower(self.origin.run, agent)
        self._following.watch(self.name, self._take)
        try:
            self._following.synced.result(follower.NEWS_SECONDS)
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

    def report_timeout(self, generation: int, what: str) -> None:
        """Have the driver report it."""
        report = driver(self.origin).ask(what, LATE, self.name, generation, what)
        Future.of(report, loop_of_calls(), what)._then(lambda ended: ended.cancelled() or ended.exception())

    async def shutdown(self, grace: float) -> None:
        """Have the driver end the mesh. Does nothing after its end."""
        if self._why_over is None:
            await driver(self.origin).ask(f"{self.name}.shutdown", STOP, self.name, self.first, grace)


def _restore(
    name: str, interface: Interface, procs: int, origin: Origin, generation: int, places: tuple[str, ...]
) -> CalledMesh:
    """The LiveMesh if this process launched the mesh, so that a returned handle is a full one; else a ForeignMesh."""
    return origin.launched_here(name) or ForeignMesh(name, interface, procs, origin, generation, places)
