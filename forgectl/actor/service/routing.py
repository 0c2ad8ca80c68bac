"""Chooses the replica of a request: the routers, and the placement, which holds requests while none is healthy."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from forgectl.actor.service.replica import Replica, Request, RequestQueue
from forgectl.actor.service.session import SessionTable
from forgectl.errors import ServiceStopped, ServiceUnavailable
from forgectl.names import nearest


class Load(Protocol):
    """A replica as routers see it: `running` and `queued` count requests."""

    @property
    def index(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def queued(self) -> int: ...


class Router:
    """Chooses a replica for each request; subclass it to choose differently.

    One instance serves one service, or one endpoint of it. In a session, `pick` runs for the first call, and again
    after the session's replica has died.
    """

    def pick(self, replicas: Sequence[Load]) -> Load:
        """Return one of `replicas`: the healthy ones, at least one, by index. The caller gets what it raises."""
        raise NotImplementedError(f"{type(self).__name__} does not define pick(replicas)")


class RoundRobin(Router):
    """Replicas take turns in order of index, also while some come and go."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, replicas: Sequence[Load]) -> Load:
        last = self._last
        chosen = min(replicas, key=lambda r: (r.index <= last, r.index))
        self._last = chosen.index
        return chosen


class LeastLoaded(RoundRobin):
    """The replica with the fewest requests, running and queued; equal ones take turns."""

    def pick(self, replicas: Sequence[Load]) -> Load:
        loads = [r.running + r.queued for r in replicas]
        least = min(loads)
        return super().pick([r for r, load in zip(replicas, loads, strict=True) if load == least])


class SessionRouter(RoundRobin):
    """Spreads sessions evenly; other calls take turns. A session keeps its replica, as with every router."""


ROUTERS: dict[str, type[Router]] = {"round_robin": RoundRobin, "least_loaded": LeastLoaded, "session": SessionRouter}


def make_router(router: Any) -> Router:
    """A router from its name or class, or the instance itself. Else raises ValueError, which names the choices."""
    if isinstance(router, str) and router in ROUTERS:
        return ROUTERS[router]()
    if isinstance(router, Router):
        return router
    if inspect.isclass(router) and issubclass(router, Router) and router is not Router:
        return router()
    near = nearest(router, ROUTERS) if isinstance(router, str) else None
    guess = f"; did you mean {near!r}?" if near else ""
    choices = ", ".join(map(repr, ROUTERS))
    raise ValueError(f"unknown router {router!r}{guess}; choices: {choices}, or a subclass of Router")


class Placement:
    """Sends requests to healthy replicas. While there is none, it holds requests in order of arrival.

    `timeout`: seconds that a request waits for a healthy replica. `changed` is called with each replica that went up
    or down, after its requests have moved.
    """

    def __init__(
        self,
        service: str,
        router: Router,
        routers: Mapping[str, Router],
        sessions: SessionTable,
        timeout: float,
        changed: Callable[[Replica], None] = lambda replica: None,
    ) -> None:
        self.replicas: dict[int, Replica] = {}  # by index, ascending
        self.up: tuple[Replica, ...] = ()
        self.held = RequestQueue()
        self.coming = 0  # number of replicas that are starting
        self.stopped = False
        self._service = service
        self._router = router
        self._routers = routers
        self._sessions = sessions
        self._timeout = timeout
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None

    def add(self, replica: Replica) -> None:
        self.replicas[replica.index] = replica
        self.update(replica)

    def remove(self, replica: Replica) -> None:
        self.replicas.pop(replica.index, None)

    def choose(self, endpoint: str, session: str | None) -> Replica | None:
        """The session's replica, else the router's choice; None if none is healthy. Raises what the router raises."""
        while self.up:
            index = self._sessions.replica_of(session) if session is not None else None
            replica = self.replicas.get(index) if index is not None else None
            if replica is None or not replica.up:
                replica = self._picked(endpoint)
                if session is not None:
                    self._sessions.move(session, replica.index)
            if replica.mesh.healthy:
                return replica
            self.update(replica)  # it died, and its notification has not arrived yet
        return None

    def _picked(self, endpoint: str) -> Replica:
        router = self._routers.get(endpoint, self._router)
        picked: Any = router.pick(self.up)
        if isinstance(picked, Replica) and picked.up and self.replicas.get(picked.index) is picked:
            return picked
        raise TypeError(f"{type(router).__name__}.pick returned {picked!r}, which is not one of the given replicas")

    def place(self, request: Request) -> None:
        """Send a request to a healthy replica, or hold it until there is one. Never raises: the request gets errors."""
        if self.stopped:
            request.fail(self.stopped_error())
            return
        try:
            parts = request.parts(self.choose)
        except Exception as error:
            request.fail(error)
            return
        for part, replica in parts:
            if replica is None:
                self.hold(part)
            elif replica.up:
                replica.add(part)
            else:  # it was found dead while another part was placed
                self.place(part)

    def hold(self, request: Request) -> None:
        """Hold the request until a replica is healthy; fail it at once if none will be."""
        error = self.unavailable_error()
        if error is not None:
            request.fail(error)
            return
        request.deadline = asyncio.get_running_loop().time() + self._timeout
        self.held.push(request)
        self._set_timer()

    def update(self, replica: Replica) -> None:
        """Act on the present state of a replica: requests leave a dead one, and held requests go to one that is up."""
        changed = replica.check()
        if changed:
            self.up = tuple(r for r in self.replicas.values() if r.up)
        if not replica.up:
            for request in replica.take_back():
                if request.pinned:
                    request.fail(self.stopped_error() if self.stopped else replica.death())
                else:
                    self.place(request)
        while self.up and self.held.size:
            self.place(self.held.pop())
        if changed:
            self._changed(replica)
        self.fail_if_hopeless()

    def recheck_all(self) -> None:
        """Recheck every replica, in case a notification was missed."""
        for replica in list(self.replicas.values()):
            replica.recheck()
        self.fail_if_hopeless()

    def fail_if_hopeless(self) -> None:
        """Fail the held requests if no replica will ever be healthy."""
        if not self.up and self.held.size and self.unavailable_error() is not None:
            for request in self.held.take():
                self.hold(request)

    def unavailable_error(self) -> ServiceUnavailable | None:
        """The error if no replica is healthy and none will be, else None."""
        if self.up or self.coming:
            return None
        staying = [r for r in self.replicas.values() if not r.retiring]
        if any(r.mesh.ended is None for r in staying):
            return None
        reasons = "; ".join(f"{r.mesh.name}: {r.mesh.ended}" for r in staying)
        none = f"none of its {len(staying)} replicas will come back ({reasons})" if staying else "it has no replicas"
        error = ServiceUnavailable(f"service {self._service}: {none}")
        error.__cause__ = next((r.mesh.ended for r in staying), None)
        return error

    def _set_timer(self) -> None:
        if self._timer is None and self.held.size:
            self._timer = asyncio.get_running_loop().call_at(self.held.first().deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self.held.size and self.held.first().deadline <= now:
            names = ", ".join(r.mesh.name for r in self.replicas.values()) or "no replica has started"
            self.held.pop().fail(
                ServiceUnavailable(
                    f"service {self._service}: no healthy replica for {self._timeout:g} s ({names})",
                    hint="see `forgectl status` and `forgectl logs` for why; unavailable_timeout sets how long to wait",
                )
            )
        self._set_timer()

    def waiting(self) -> int:
        """The number of calls that wait, for one replica or for any."""
        return self.held.size + sum(r.queue.size for r in list(self.replicas.values()))

    def stop(self) -> None:
        """Fail all requests that have not started, and all later ones."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queues = [self.held, *(r.queue for r in self.replicas.values())]
        for request in [request for queue in queues for request in queue.take()]:
            request.fail(self.stopped_error())
        for replica in self.replicas.values():
            replica.settle()

    def stopped_error(self) -> ServiceStopped:
        return ServiceStopped(f"service {self._service} is shut down, or was before the request started")
