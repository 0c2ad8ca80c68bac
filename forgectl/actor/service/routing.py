"""Which replica a request goes to: the routers, and the placement that asks them and keeps those none can take yet."""

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
    """Chooses a replica for each request; subclass it for a choice of your own.

    One instance serves one service, or one endpoint of it. Within a session it is asked once, for the first call, and
    again when the session's replica has died.
    """

    def pick(self, replicas: Sequence[Load]) -> Load:
        """One of `replicas`: the healthy ones, never empty, ordered by index. What it raises goes to the caller."""
        raise NotImplementedError(f"{type(self).__name__} does not define pick(replicas)")


class RoundRobin(Router):
    """Each in its turn, by index, also while replicas come and go."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, replicas: Sequence[Load]) -> Load:
        last = self._last
        chosen = min(replicas, key=lambda r: (r.index <= last, r.index))
        self._last = chosen.index
        return chosen


class LeastLoaded(RoundRobin):
    """The one with the fewest requests running and queued; equals take turns."""

    def pick(self, replicas: Sequence[Load]) -> Load:
        loads = [r.running + r.queued for r in replicas]
        least = min(loads)
        return super().pick([r for r, load in zip(replicas, loads, strict=True) if load == least])


class SessionRouter(RoundRobin):
    """Sessions spread evenly over replicas, and stick, as they do with every router; other calls take turns."""


ROUTERS: dict[str, type[Router]] = {"round_robin": RoundRobin, "least_loaded": LeastLoaded, "session": SessionRouter}


def make_router(router: Any) -> Router:
    """A router of this name or class, or the instance itself. Raises ValueError, naming the choices, for others."""
    if isinstance(router, str) and router in ROUTERS:
        return ROUTERS[router]()
    if isinstance(router, Router):
        return router
    if inspect.isclass(router) and issubclass(router, Router) and router is not Router:
        return router()
    near = nearest(router, ROUTERS) if isinstance(router, str) else None
    guess = f"; did you mean {near!r}?" if near else ""
    choices = ", ".join(map(repr, ROUTERS))
    raise ValueError(f"router {router!r} is none{guess}; choices: {choices}, or a subclass of Router")


class Placement:
    """Brings requests to healthy replicas, and holds back, in order, those that come while there is none.

    `timeout`: seconds that a request waits for a healthy replica. `changed` is told of each replica that went up or
    down, after its requests were moved.
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
        self.coming = 0  # replicas that are being started
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
        self.look(replica)

    def remove(self, replica: Replica) -> None:
        self.replicas.pop(replica.index, None)

    def choose(self, endpoint: str, session: str | None) -> Replica | None:
        """The session's own replica, else the router's choice; None if none is healthy. Raises what the router does."""
        while self.up:
            home = self._sessions.home(session) if session is not None else None
            replica = self.replicas.get(home) if home is not None else None
            if replica is None or not replica.up:
                replica = self._picked(endpoint)
                if session is not None:
                    self._sessions.move(session, replica.index)
            if replica.mesh.healthy:
                return replica
            self.look(replica)  # it died before its news came
        return None

    def _picked(self, endpoint: str) -> Replica:
        router = self._routers.get(endpoint, self._router)
        picked: Any = router.pick(self.up)
        if isinstance(picked, Replica) and picked.up and self.replicas.get(picked.index) is picked:
            return picked
        raise TypeError(f"{type(router).__name__}.pick returned {picked!r}, which is none of the replicas it was given")

    def place(self, request: Request) -> None:
        """Send it to a healthy replica, or hold it back until there is one. Never raises: errors go to the request."""
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
            else:  # it was found dead while the next part was placed
                self.place(part)

    def hold(self, request: Request) -> None:
        """Until a replica is healthy again; fails at once if none will be."""
        error = self.no_hope()
        if error is not None:
            request.fail(error)
            return
        request.deadline = asyncio.get_running_loop().time() + self._timeout
        self.held.push(request)
        self._set_timer()

    def look(self, replica: Replica) -> None:
        """Act on what its mesh says now: requests leave a dead replica, and come to one that is back."""
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
        self.give_up_if_hopeless()

    def look_at_all(self) -> None:
        """The safety net: as if each mesh had news."""
        for replica in list(self.replicas.values()):
            replica.look_again()
        self.give_up_if_hopeless()

    def give_up_if_hopeless(self) -> None:
        """Fail what is held back for replicas that will not come."""
        if not self.up and self.held.size and self.no_hope() is not None:
            for request in self.held.take():
                self.hold(request)

    def no_hope(self) -> ServiceUnavailable | None:
        """The error to raise if no replica is healthy and none will be."""
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
                    hint="see `forgectl status` and `forgectl logs` for why; unavailable_timeout says how long to wait",
                )
            )
        self._set_timer()

    def waiting(self) -> int:
        """Calls that wait, for a replica or for any."""
        return self.held.size + sum(r.line.size for r in list(self.replicas.values()))

    def stop(self) -> None:
        """Fail all that has not started, and all that comes."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines = [self.held, *(r.line for r in self.replicas.values())]
        for request in [request for line in lines for request in line.take()]:
            request.fail(self.stopped_error())
        for replica in self.replicas.values():
            replica.settle()

    def stopped_error(self) -> ServiceStopped:
        return ServiceStopped(f"service {self._service} is shut down, or was before the request started")
