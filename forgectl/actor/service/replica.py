"""One replica of a service: the requests that run on it, and the queue of those that wait for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from forgectl.actor.service.metrics import AnswerCounts
from forgectl.errors import ActorDied, ServiceStopped

ATTEMPTS = 3
"""On how many replicas an idempotent request may run: one that kills its replica must not kill them all."""


class Streaming(Protocol):
    """A stream. `opened` raises what a call would."""

    @property
    def opened(self) -> Awaitable[Any]:
        """Done once its generators have ended."""


class ReplicaMesh(Protocol):
    """The actor mesh behind a replica. Code outside the service starts, watches and restarts it."""

    name: str  # such as "policy.0"

    @property
    def adopted(self) -> bool:
        """Whether an earlier driver constructed it."""

    @property
    def healthy(self) -> bool:
        """Ready for calls now."""

    @property
    def ended(self) -> Exception | None:
        """Why the mesh will never be healthy again (an ActorDied), else None."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the service's loop whenever `healthy` or `ended` changes."""

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call every rank. Raises the user's exception; ActorDied if the mesh is not healthy, dies, or is shut down."""

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streaming:
        """Begin a stream of the values that rank 0 yields; every rank runs the endpoint."""

    async def shutdown(self) -> None:
        """End the mesh; calls that still run raise ActorDied."""


Work = Callable[[ReplicaMesh], Awaitable[Any]]
"""What a request does with the mesh whose slot it has; raises what `ReplicaMesh.call` raises, or NeverSent."""


class NeverSent(ActorDied):
    """The mesh died before the request was sent to it: every endpoint may run on another replica."""


class Request:
    """A call or a batch of calls. It waits in at most one queue, or holds a slot of at most one replica.

    `pinned`: only this replica may run it (fanout).
    """

    def __init__(self, endpoint: str, session: str | None = None, pinned: bool = False) -> None:
        self.endpoint = endpoint
        self.session = session
        self.pinned = pinned
        self.queue: RequestQueue | None = None
        self.replica: Replica | None = None
        self.deadline = 0.0  # in the loop's time; set while it waits for a healthy replica

    @property
    def weight(self) -> int:
        """The number of calls in it."""
        return 1

    def granted(self) -> None:
        """Start: the request now has a slot of `self.replica`."""
        raise NotImplementedError

    def revoked(self) -> None:
        """The slot was lost before the request started. `granted` or `fail` will follow."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """The request will never start, because of `error`."""
        raise NotImplementedError

    def parts(self, choose: Callable[[str, str | None], Replica | None]) -> list[tuple[Request, Replica | None]]:
        """Itself and its replica, None if no replica is healthy. A batch may return several parts."""
        return [(self, choose(self.endpoint, self.session))]


class SingleCall(Request):
    """A single call, whose caller awaits `turn()`."""

    def __init__(self, endpoint: str, session: str | None = None, pinned: bool = False) -> None:
        super().__init__(endpoint, session, pinned)
        self._turn = asyncio.get_running_loop().create_future()

    async def turn(self) -> Replica:
        """Wait for a slot, and return its replica. If cancelled, gives up the slot or the place in the queue."""
        try:
            while self.replica is None:  # the slot that woke it may have been revoked since
                await self._turn
        except BaseException:
            self._leave()
            raise
        self.replica.started(self)
        return self.replica

    def _leave(self) -> None:
        if self._turn.done() and not self._turn.cancelled():
            self._turn.exception()  # retrieve it, so that asyncio does not report an unseen exception
        if self.queue is not None:
            self.queue.discard(self)
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
    """Requests in order of arrival. Removing one from the middle costs no more than from the front."""

    def __init__(self) -> None:
        self._requests: OrderedDict[Request, None] = OrderedDict()
        self.size = 0  # calls in it; every call of a batch counts

    def push(self, request: Request) -> None:
        request.queue = self
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
        request.queue = None
        self.size -= request.weight

    def take(self, wanted: Callable[[Request], bool] = lambda request: True) -> list[Request]:
        """Remove and return the requests for which `wanted` is true, in order."""
        taken = [request for request in self._requests if wanted(request)]
        for request in taken:
            self.discard(request)
        return taken


class Replica:
    """Runs at most `limit` requests on a mesh; the others wait in the queue.

    `on_change` is called when the mesh may have changed. `epoch` grows whenever the replica goes up or down, so that a
    late error of a dead generation does not mark the next one as dead.
    """

    def __init__(self, index: int, mesh: ReplicaMesh, limit: int, on_change: Callable[[Replica], None]) -> None:
        self.index = index
        self.mesh = mesh
        self.limit = limit
        self.running = 0
        self.queue = RequestQueue()
        self.stats = AnswerCounts()
        self.up = False  # whether requests are routed to it; `check` updates this
        self.epoch = 0
        self.retiring = False
        self._on_change = on_change
        self._suspect = False  # a call raised ActorDied, but the mesh has not reported it yet
        self._granted: dict[Request, None] = {}  # requests that have slots, but have not woken up yet
        self._quiet = asyncio.Event()
        self._ending: asyncio.Future[None] | None = None
        mesh.subscribe(self.recheck)

    @property
    def queued(self) -> int:
        return self.queue.size

    @property
    def alive(self) -> bool:
        return self.mesh.healthy and not self._suspect

    @property
    def free(self) -> bool:
        """Whether a request would start at once. False while others have slots but have not started."""
        return self.running < self.limit and not self.queue.size and not self._granted

    def take_slot(self) -> bool:
        """Take a slot without queueing, if one is free; whether it was taken."""
        if self.free:
            self.running += 1
            return True
        return False

    def recheck(self) -> None:
        """Trust the state of the mesh again, and check it. On news of the mesh, and at each poll."""
        self._suspect = False
        self._on_change(self)

    def check(self) -> bool:
        """Update `up`; whether it has changed."""
        up = self.alive and not self.retiring
        if up == self.up:
            return False
        self.up = up
        self.epoch += 1
        return True

    def add(self, request: Request) -> None:
        """Append to the queue. The request starts at its turn."""
        start = self.free
        self.queue.push(request)
        if start:
            self._pump()

    def _pump(self) -> None:
        while self.queue.size and self.running < self.limit:
            if not self.alive:
                self._on_change(self)
                return
            request = self.queue.pop()
            request.replica = self
            self.running += 1
            self._granted[request] = None
            request.granted()

    def started(self, request: Request) -> None:
        """A request with a slot has woken up. It calls `call` or `release` next."""
        del self._granted[request]
        self._pump()

    def release(self) -> None:
        """Give a slot back."""
        self.running -= 1
        self._pump()
        self.settle()

    def settle(self) -> None:
        if not self.running and not self.queue.size:
            self._quiet.set()

    def take_back(self) -> list[Request]:
        """Remove and return, in order, the requests that must leave.

        From a dead replica: all that have not started. From a living one that takes no more: all in the queue that are
        not pinned.
        """
        if self.alive:
            taken = self.queue.take(lambda request: not request.pinned)
        else:
            revoked, self._granted = list(self._granted), {}
            self.running -= len(revoked)
            for request in revoked:
                request.replica = None
                request.revoked()
            taken = revoked + self.queue.take()
        self.settle()
        return taken

    async def call(self, endpoint: str, work: Work, began: Iterable[float]) -> Any:
        """Run a request in its slot, then free the slot. `began`: the arrival time of each call in it.

        Raises what `work` raises; ServiceStopped if the replica was shut down during the call.
        """
        epoch, stats = self.epoch, self.stats
        try:
            result = await work(self.mesh)
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
        """Whether the error is about this mesh, not about another mesh that the user's code called."""
        return error.mesh is None or error.mesh == self.mesh.name

    def _died(self, error: ActorDied, epoch: int, endpoint: str) -> None:
        if self._ending is not None:
            raise ServiceStopped(f"{self.mesh.name} was shut down while it ran {endpoint}") from error
        if epoch == self.epoch:
            self._suspect = True  # before the slot is freed: the next request must not go there
            self._on_change(self)

    def death(self) -> Exception:
        """The error for a request pinned to this replica."""
        reason = self.mesh.ended
        if isinstance(reason, ActorDied):
            return reason
        return ActorDied(f"{self.mesh.name} died before the request started", mesh=self.mesh.name)

    async def idle(self) -> None:
        """Wait until nothing runs on it or waits for it."""
        while self.running or self.queue.size:
            self._quiet.clear()
            await self._quiet.wait()

    async def shutdown(self) -> None:
        """End the mesh, once; calls that still run raise ServiceStopped."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self.mesh.shutdown())
        await asyncio.shield(self._ending)
