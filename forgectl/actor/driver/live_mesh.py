"""A mesh that this process launched: follows its generations, and constructs the actors of each one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.deaths import died
from forgectl.actor.driver.run_client import RunClient
from forgectl.actor.endpoint import SETUP
from forgectl.actor.handle import ActorHandle
from forgectl.actor.making import Making
from forgectl.actor.performer import call_ids
from forgectl.actor.ranks import Ranks
from forgectl.actor.verbs import CONSTRUCT, INVOKE
from forgectl.errors import ActorDied, ForgeError
from forgectl.model.status import MeshStatus
from forgectl.protocol.control import Report
from forgectl.system.tasks import Background

if TYPE_CHECKING:
    from forgectl.actor.foreign_mesh import ForeignMesh


class LiveMesh(CalledMesh):
    """One mesh, from its first generation to its end. It runs in the client's loop; any event loop may call it."""

    def __init__(self, client: RunClient, name: str, making: Making) -> None:
        super().__init__(name, making.interface, making.procs)
        self._client = client
        self._making = making
        self._attempted = -1  # the last generation whose actors we began to construct
        self._reported_up: tuple[int, int] | None = None  # (generation, connection) for which we reported success
        self._making_ranks: Ranks | None = None
        self._known: Ranks | None = None  # the ranks of the last generation that was up
        self._error: BaseException | None = None  # raised by a constructor or `setup`
        self._over: concurrent.futures.Future[MeshStatus] = concurrent.futures.Future()
        self._listeners: list[Callable[[], None]] = []
        self._tasks = Background()

    # ------------------------------------------------------------ what callers see

    def foreign(self, ranks: Ranks | None = None) -> ForeignMesh:
        """The mesh in a form that other processes can use, up or not: they follow its state by themselves."""
        from forgectl.actor.foreign_mesh import ForeignMesh

        known = ranks or self._known
        assert known is not None, "a handle exists only after the mesh was up"
        return ForeignMesh(self.name, self.interface, self.procs, self._client.origin, known.generation, known.places)

    @property
    def healthy(self) -> bool:
        """Whether the mesh can be called now."""
        return self._ranks is not None

    @property
    def ended(self) -> BaseException | None:
        """Why the mesh will never be up again; None while it may come up."""
        return self._why_over

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the client's loop whenever `healthy` or `ended` has changed."""
        self._listeners.append(listener)

    async def shutdown(self, grace: float = 10.0) -> None:
        """End the mesh; returns when none of its processes is left. Does nothing after its end."""
        if not self._over.done():
            await self._client.stop(self.name, grace)
            await asyncio.shield(asyncio.wrap_future(self._over))

    def report_timeout(self, generation: int, what: str) -> None:
        """Report it to the controller."""
        self._client.loop.call_soon_threadsafe(self._tasks.begin, self._client.send_late(self.name, generation, what))

    # ------------------------------------------------------------ its state

    @classmethod
    def begun(cls, client: RunClient, name: str, making: Making) -> LiveMesh:
        """Create one that follows its mesh from now on. Call it in the client's loop."""
        mesh = client.meshes[name] = cls(client, name, making)
        client.watch(name, mesh._take)
        return mesh

    def _take(self, now: MeshStatus) -> None:
        if self._making.logs:
            self._client.show_output(now)
        alive = now.state in ("pending", "starting", "ready")
        for ranks in (self._ranks, self._making_ranks):
            if ranks is not None and (not alive or now.generation != ranks.generation):
                self._lose(ranks, now)
        if now.ended:
            self._end(now)
        elif now.open and now.generation > self._attempted:
            self._attempted = now.generation
            self._tasks.begin(self._fill(now))
        elif now.state == "ready" and now.generation > self._attempted:
            self._adopt(now)
        elif now.state == "starting" and self._ranks is not None and now.generation == self._ranks.generation:
            self._tasks.begin(self._report_up(now.generation))  # a new controller may not have received the report

    def _lose(self, ranks: Ranks, now: MeshStatus) -> None:
        was_up = ranks is self._ranks
        if was_up:  # before `die`: whoever gets the error may call again at once, and must wait for the next ranks
            self._ranks = None
        ranks.die(died(now))
        if was_up:
            self._notify_listeners()

    def _end(self, now: MeshStatus) -> None:
        if self._over.done():
            return
        self._client.forget(self.name, self._take)
        self._is_over(self._error or _refused(now) or died(now))
        self._over.set_result(now)
        self._notify_listeners()

    def _notify_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    # ------------------------------------------------------------ a generation

    def _adopt(self, now: MeshStatus) -> None:
        """Use a generation that an earlier driver constructed."""
        self._attempted = now.generation
        self.adopted = True
        self._known = self._ranks_of(now)
        self._came_up(self._known)
        self._notify_listeners()

    def _ranks_of(self, now: MeshStatus) -> Ranks:
        places = [self._client.place_of(rank.host) for rank in now.ranks]
        return Ranks(self.name, now.generation, places, self._client.here)

    async def _fill(self, now: MeshStatus) -> None:
        """Construct an actor in each rank of a generation, run `setup`, and report the result."""
        generation = now.generation
        ranks = self._making_ranks = self._ranks_of(now)
        try:
            await self._make(ranks)
            if self._client.may_restart:  # first: the next driver must know of every generation that was called
                await self._report_up(generation)
        except ActorDied as e:
            if ranks.died is None:  # another mesh died, whose handle the constructor used
                await self._report_failure(generation, e)
            return  # its own death: the state of the mesh has the reason
        except Exception as e:
            await self._report_failure(generation, e)
            return
        finally:
            self._making_ranks = None
        if ranks.died is not None:
            return
        self._known = ranks
        self._came_up(ranks)
        self._notify_listeners()
        await self._report_up(generation)

    async def _report_failure(self, generation: int, error: Exception) -> None:
        self._error = error
        remote = str(error.__cause__).strip() if error.__cause__ else ""
        text = remote or "".join(traceback.format_exception(error))
        what = f"its constructor or setup raised {_one_line(error)}"
        await self._client.report(Report(self.name, generation, what, text))

    async def _make(self, ranks: Ranks) -> None:
        making, every = self._making, range(self.procs)
        payload = making.payload()
        handle = ActorHandle(self.foreign(ranks))
        await ranks.call(every, (CONSTRUCT, making.surroundings, handle, payload))
        await ranks.call(every, (INVOKE, SETUP, (), {}, (next(call_ids),)))

    async def _report_up(self, generation: int) -> None:
        key = (generation, self._client.connections)
        if self._reported_up != key:
            self._reported_up = key
            await self._client.report(Report(self.name, generation))


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _refused(now: MeshStatus) -> ForgeError | None:
    """The error that kept the mesh from starting, if it did not come from the user's code."""
    if now.error is None or now.error.code == 1:
        return None
    return now.error.error(f"mesh {now.mesh}: ")
