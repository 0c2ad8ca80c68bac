"""One replica of a service: how many requests run on it, and the line of those that wait for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from forgectl.actor.service.metrics import AnswerCounts
from forgectl.errors import ActorDied, ServiceStopped

ATTEMPTS = 3
"""How many replicas an idempotent request may see die: one that kills its replica must not kill them all."""


class ReplicaMesh(Protocol):
    """The actor mesh behind a replica, which others start, watch and relaunch."""

    name: str  # of the mesh, "policy.0"

    @property
    def healthy(self) -> bool:
        """Ready for calls now."""

    @property
    def ended(self) -> Exception | None:
        """Why it will never be healthy again (an ActorDied), else None."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, in the loop, whenever `healthy` or `ended` changes."""

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Raises ActorDied if the mesh is not healthy, dies or is shut down meanwhile; else the user's exception."""

    async def shutdown(self) -> None:
        """End it; calls that still run raise ActorDied."""


class Request:
    """A call, or a batch of calls: it waits in at most one line, or else holds a slot of at most one replica.

    `pinned`: for this replica and no other (fanout).
    """

    def __init__(self, endpoint: str, session: str | None = None, pinned: bool = False) -> None:
        self.endpoint = endpoint
        self.session = session
        self.pinned = pinned
        self.line: RequestQueue | None = None
        self.replica: Replica | None = None
        self.deadline = 0.0  # in the loop's time, while it waits for any replica to be healthy

    @property
    def weight(self) -> int:
        """How many calls it is."""
        return 1

    def granted(self) -> None:
        """A slot of `self.replica` is its own: start."""
        raise NotImplementedError

    def revoked(self) -> None:
        """The slot is gone before it has started; another will come, or `fail`."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """It will never start."""
        raise NotImplementedError

    def parts(self, choose: Callable[[str, str | None], Replica | None]) -> list[tuple[Request, Replica | None]]:
        """Itself and the replica that it should go to, None if none is healthy; several where it has to be split."""
        return [(self, choose(self.endpoint, self.session))]


class SingleCall(Request):
    """A single call, whose caller awaits `turn()`."""

    def __init__(self, endpoint: str, session: str | None = None, pinned: bool = False) -> None:
        super().__init__(endpoint, session, pinned)
        self._turn = asyncio.get_running_loop().create_future()

    async def turn(self) -> Replica:
        """The replica of which it now holds a slot. Cancelled, it leaves its line."""
        try:
            while self.replica is None:  # woken by a slot that was revoked since, it waits for the next
                await self._turn
        except BaseException:
            self._leave()
            raise
        self.replica.started(self)
        return self.replica

    def _leave(self) -> None:
        if self._turn.done() and not self._turn.cancelled():
            self._turn.exception()  # seen, so that asyncio does not report it as never retrieved
        if self.line is not None:
            self.line.discard(self)
        elif self.replica is not None:
            self.replica.started(self)
            self.replica.release()

    def granted(self) -> None:
        if not self._turn.done():
            self._turn.set_result(None)

    def revoked(self) -> None:
        self._turn = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self._turn.done():
            self._turn.set_exception(error)


class RequestQueue:
    """Requests in order of arrival; one may leave from the middle at no more cost than from the front."""

    def __init__(self) -> None:
        self._requests: OrderedDict[Request, None] = OrderedDict()
        self.size = 0  # calls in it, a batch counting as all of its own

    def push(self, request: Request) -> None:
        request.line = self
        self._requests[request] = None
        self.size += request.weight

    def first(self) -> Request:
        return next(iter(self._requests))

    def pop(self) -> Request:
        request = self.first()
        self.discard(request)
        return request

    def discard(self, request: Request) -> None:
        del self._requests[request]
        request.line = None
        self.size -= request.weight

    def take(self, wanted: Callable[[Request], bool] = lambda request: True) -> list[Request]:
        """Remove those wanted, in order."""
        taken = [request for request in self._requests if wanted(request)]
        for request in taken:
            self.discard(request)
        return taken


class Replica:
    """At most `limit` requests run on the mesh, the rest wait in line.

    `notice` is told when the mesh may have changed. `epoch` grows whenever the replica goes up or down, so that the
    news of a death is not held against the mesh that was launched since.
    """

    def __init__(self, index: int, mesh: ReplicaMesh, limit: int, notice: Callable[[Replica], None]) -> None:
        self.index = index
        self.mesh = mesh
        self.limit = limit
        self.running = 0
        self.line = RequestQueue()
        self.stats = AnswerCounts()
        self.up = False  # routed to; `check` keeps it
        self.epoch = 0
        self.retiring = False
        self._notice = notice
        self._suspect = False  # a call said that it died, and the mesh has said nothing yet
        self._granted: dict[Request, None] = {}  # they have slots, but have not woken up yet
        self._quiet = asyncio.Event()
        self._ending: asyncio.Future[None] | None = None
        mesh.subscribe(self.look_again)

    @property
    def queued(self) -> int:
        return self.line.size

    @property
    def alive(self) -> bool:
        return self.mesh.healthy and not self._suspect

    @property
    def free(self) -> bool:
        """Whether a request would start at once. Not before those which are about to."""
        return self.running < self.limit and not self.line.size and not self._granted

    def take_slot(self) -> bool:
        """Start at once, without a place in line, if there is room."""
        if self.running < self.limit and not self.line.size and not self._granted:
            self.running += 1
            return True
        return False

    def look_again(self) -> None:
        """The mesh has news, or it is time to look."""
        self._suspect = False
        self._notice(self)

    def check(self) -> bool:
        """Bring `up` up to date; whether it has changed."""
        up = self.alive and not self.retiring
        if up == self.up:
            return False
        self.up = up
        self.epoch += 1
        return True

    def add(self, request: Request) -> None:
        """To the end of the line; it starts when it is its turn."""
        start = self.free
        self.line.push(request)
        if start:
            self._pump()

    def _pump(self) -> None:
        while self.line.size and self.running < self.limit:
            if not self.alive:
                self._notice(self)
                return
            request = self.line.pop()
            request.replica = self
            self.running += 1
            self._granted[request] = None
            request.granted()

    def started(self, request: Request) -> None:
        """It has woken up, and calls `call` or `release` next."""
        del self._granted[request]
        self._pump()

    def release(self) -> None:
        """A slot is free again."""
        self.running -= 1
        self._pump()
        self.settle()

    def settle(self) -> None:
        if not self.running and not self.line.size:
            self._quiet.set()

    def take_back(self) -> list[Request]:
        """Those which another replica must run, in order: all that have not started, if this one is dead."""
        if self.alive:
            taken = self.line.take(lambda request: not request.pinned)
        else:
            revoked, self._granted = list(self._granted), {}
            self.running -= len(revoked)
            for request in revoked:
                request.replica = None
                request.revoked()
            taken = revoked + self.line.take()
        self.settle()
        return taken

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], began: Iterable[float]) -> Any:
        """Run it in a slot that is held, and give the slot back. `began`: when its callers came, one each.

        Raises what the mesh's call does, or ServiceStopped if it was shut down meanwhile.
        """
        epoch, stats = self.epoch, self.stats
        try:
            result = await self.mesh.call(endpoint, args, kwargs)
        except asyncio.CancelledError:
            stats.cancelled += 1
            raise
        except BaseException as error:
            for each in began:
                stats.failed(each)
            if isinstance(error, ActorDied) and self.owns(error):
                self._died(error, epoch, endpoint)
            raise
        else:
            for each in began:
                stats.succeeded(each)
            return result
        finally:
            self.release()

    def owns(self, error: ActorDied) -> bool:
        """Whether it tells of this mesh, and not of another that the user's code had called."""
        return error.mesh is None or error.mesh == self.mesh.name

    def _died(self, error: ActorDied, epoch: int, endpoint: str) -> None:
        if self._ending is not None:
            raise ServiceStopped(f"{self.mesh.name} was shut down while it ran {endpoint}") from error
        if epoch == self.epoch:
            self._suspect = True  # before the slot is free: the next in line must not go there
            self._notice(self)

    def death(self) -> Exception:
        """What a request is told that was for this replica only."""
        reason = self.mesh.ended
        if isinstance(reason, ActorDied):
            return reason
        return ActorDied(f"{self.mesh.name} died before the request started", mesh=self.mesh.name)

    async def idle(self) -> None:
        """Until nothing runs on it or waits for it."""
        while self.running or self.line.size:
            self._quiet.clear()
            await self._quiet.wait()

    async def shutdown(self) -> None:
        """End the mesh, once; what still runs raises ServiceStopped."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self.mesh.shutdown())
        await asyncio.shield(self._ending)
