"""A service: replicas of one actor mesh, requests routed among them, and their number changed while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.batching import HOMELESS, Batcher, checked
from forgectl.actor.service.metrics import AnswerCounts
from forgectl.actor.service.replica import ATTEMPTS, Replica, ReplicaMesh, SingleCall
from forgectl.actor.service.routing import Placement, make_router
from forgectl.actor.service.service_call import ServiceCall
from forgectl.actor.service.session import Session, SessionTable
from forgectl.errors import ActorDied, NotFoundError, ServiceOverloaded
from forgectl.model.status import ReplicaStatus, ServiceStatus
from forgectl.names import nearest
from forgectl.system.tasks import Background


@dataclass(frozen=True)
class ServiceConfig:
    """How a service runs. Raises ValueError for values that make no sense.

    router: see `make_router`. max_concurrent_requests: on one replica, a batch counting once; more wait in line.
    max_queue: calls that may wait over the whole service, None for any number. unavailable_timeout: seconds that a
    call waits while no replica is healthy. health_poll_rate: seconds between looks at the replicas, besides events.
    """

    num_replicas: int = 1
    router: Any = "round_robin"
    max_concurrent_requests: int = 10
    max_queue: int | None = None
    unavailable_timeout: float = 60.0
    health_poll_rate: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("num_replicas", 1), ("max_concurrent_requests", 1), ("max_queue", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")
        if self.unavailable_timeout < 0:
            raise ValueError(f"unavailable_timeout is {self.unavailable_timeout}; seconds cannot be negative")
        if self.health_poll_rate <= 0:
            raise ValueError(f"health_poll_rate is {self.health_poll_rate}; it must be more than 0 seconds")


class ServiceCore:
    """Routes calls to replicas that `start` brings up, one for each index it is given. All within one event loop.

    `start` cleans up after itself when it is cancelled. An index is given once: a replica that is added later gets a
    new one. Relaunching a dead mesh is up to the mesh; the service waits for it, or does without.
    """

    def __init__(
        self,
        name: str,
        config: ServiceConfig,
        endpoints: Mapping[str, EndpointInfo],
        start: Callable[[int], Awaitable[ReplicaMesh]],
    ) -> None:
        self.name = name
        self.config = config
        self._endpoints = dict(endpoints)
        self._start_mesh = start
        self._sessions = SessionTable(name)
        routers = {n: make_router(info.router) for n, info in endpoints.items() if info.router is not None}
        self._placement = Placement(
            name, make_router(config.router), routers, self._sessions, config.unavailable_timeout, self._changed
        )
        self._batcher = Batcher(self._placement.place)
        self._stats = AnswerCounts()
        self._next_index = 0
        self._sizing = asyncio.Lock()  # start and scale take turns
        self._starting: set[asyncio.Future[ReplicaMesh]] = set()
        self._background = Background()  # it goes on when the caller that began it is cancelled
        self._poll_timer: asyncio.TimerHandle | None = None
        self._grace_over = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    # Calls

    async def route(
        self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None = None
    ) -> Any:
        """Call it on one healthy replica: the session's own, else the router's choice.

        Raises the user's exception; ActorDied if the replica dies meanwhile, unless the endpoint is idempotent: then
        it runs again on another, and raises after so many deaths as `replica.ATTEMPTS`; ServiceUnavailable,
        ServiceOverloaded, ServiceStopped; NotFoundError for an endpoint or session that is not known.
        """
        info = self._checked(endpoint)
        if session is not None:
            self._sessions.check(session)
        call = ServiceCall(endpoint, info, args, kwargs, session, time.monotonic())
        answer = self._batched(call) if info.batch_size > 1 else self._single(call)
        return await self._stats.counted(answer, call.began)

    async def _single(self, call: ServiceCall) -> Any:
        attempts = 0
        while True:
            replica = self._placement.choose(call.endpoint, call.session)
            if replica is None or not replica.take_slot():
                if not attempts:
                    self._check_room()
                replica = await self._turn(SingleCall(call.endpoint, call.session), replica)
            try:
                return await replica.call(call.endpoint, call.args, call.kwargs, (call.began,))
            except ActorDied as error:
                attempts += 1
                again = call.info.idempotent and replica.owns(error) and attempts < ATTEMPTS
                if not again or self._placement.stopped:
                    raise

    async def _turn(self, request: SingleCall, replica: Replica | None) -> Replica:
        """In line at this replica, or until one is healthy."""
        if replica is None:
            self._placement.hold(request)
        else:
            replica.add(request)
        return await request.turn()

    async def _batched(self, call: ServiceCall) -> Any:
        placement = self._placement
        if not any(replica.free for replica in placement.up):
            self._check_room()
        hopeless = placement.no_hope()
        if hopeless is not None:
            raise hopeless
        home = None
        if call.session is not None:
            replica = placement.choose(call.endpoint, call.session)
            home = HOMELESS if replica is None else replica.index
        return await self._batcher.call(call, home)

    async def fanout(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call it on every healthy replica: the results in their order, or the first exception once all are done.

        If none is healthy it waits for one, as `route` does. Each replica's part is a request of its own: it counts,
        and waits in line, as such. With `batch_size` above 1 the method gets lists of one.
        """
        info = self._checked(endpoint)
        while not self._placement.up:
            self._check_room()
            replica = await self._turn(SingleCall(endpoint), None)
            replica.release()
        replicas = self._placement.up
        busy = sum(not replica.free for replica in replicas)
        if busy:
            self._check_room(busy)
        call = ServiceCall(endpoint, info, args, kwargs, None, time.monotonic())

        async def part(replica: Replica) -> Any:
            return await self._stats.counted(self._on(replica, call), call.began)

        results = await asyncio.gather(*map(part, replicas), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def _on(self, replica: Replica, call: ServiceCall) -> Any:
        """This replica's part of a fanout."""
        self._check_running()
        if not replica.take_slot():
            await self._turn(SingleCall(call.endpoint, pinned=True), replica)
        if call.info.batch_size == 1:
            return await replica.call(call.endpoint, call.args, call.kwargs, (call.began,))
        lists = tuple([arg] for arg in call.args), {name: [arg] for name, arg in call.kwargs.items()}
        return checked(call.endpoint, await replica.call(call.endpoint, *lists, (call.began,)), 1)[0]

    def _checked(self, endpoint: str) -> EndpointInfo:
        self._check_running()
        info = self._endpoints.get(endpoint)
        if info is None:
            near = nearest(endpoint, self._endpoints)
            guess = f"; did you mean {near!r}?" if near else ""
            there = ", ".join(sorted(self._endpoints)) or "none"
            raise NotFoundError(f"service {self.name} has no endpoint {endpoint!r}{guess}; endpoints: {there}")
        return info

    def _check_running(self) -> None:
        if self._placement.stopped:
            raise self._placement.stopped_error()

    def _check_room(self, more: int = 1) -> None:
        """Whether so many more calls may wait."""
        limit = self.config.max_queue
        if limit is None:
            return
        waiting = self._placement.waiting() + self._batcher.gathering()
        if waiting + more > limit:
            raise ServiceOverloaded(
                f"service {self.name}: {waiting} requests wait already, and max_queue is {limit}",
                hint="call less often, or give it more replicas, max_concurrent_requests or max_queue",
            )

    # Sessions

    def session(self) -> Session:
        """`async with service.session() as session_id`; `current_session(service)` says which one a context is in."""
        return Session(self)

    def start_session(self) -> str:
        """A new session's id. It lasts until `terminate_session`."""
        self._check_running()
        return self._sessions.start()

    def terminate_session(self, session: str) -> None:
        """Calls already under way go on. Raises NotFoundError for a session that is not known."""
        self._sessions.terminate(session)

    # Size

    async def start(self) -> None:
        """Bring up all replicas at once; if one fails the others are shut down, and its error is raised."""
        async with self._sizing:
            self._check_running()
            if self._poll_timer is not None:
                raise RuntimeError(f"service {self.name} is started already")
            await self._add(self.config.num_replicas)
            self._poll()

    async def scale(self, n: int) -> None:
        """Have so many replicas, not counting those that ended for good, which go. Scale calls take turns.

        New ones get new indexes; if one fails to start, none is added, and its error is raised. Of too many those with
        the highest indexes go, once what runs on them is done; what waits there moves. Raises ValueError below 1.
        """
        if n < 1:
            raise ValueError(f"a service needs at least 1 replica, not {n}; `shutdown` ends it")
        async with self._sizing:
            self._check_running()
            lasting = [r for r in self._placement.replicas.values() if r.mesh.ended is None and not r.retiring]
            if n > len(lasting):
                await self._add(n - len(lasting))
            kept = set(lasting[:n])
            ended = [r for r in self._placement.replicas.values() if r.mesh.ended is not None]
            await self._retire([*ended, *(r for r in lasting if r not in kept)])

    async def _add(self, count: int) -> None:
        indexes = range(self._next_index, self._next_index + count)
        self._next_index += count
        starts = [asyncio.ensure_future(self._start_mesh(index)) for index in indexes]
        self._starting.update(starts)
        self._placement.coming += count
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
            self._check_running()
            failed = [s for s in starts if s.done() and (s.cancelled() or s.exception() is not None)]
            meshes = [s.result() for s in failed or starts]  # raises what the first that failed has raised
            for index, mesh in zip(indexes, meshes, strict=True):
                limit = self.config.max_concurrent_requests
                self._placement.add(Replica(index, mesh, limit, self._placement.look))
        except BaseException:
            await asyncio.shield(self._background.begin(self._abandon(starts)))
            raise
        finally:
            self._starting.difference_update(starts)
            self._placement.coming -= count
            self._placement.give_up_if_hopeless()

    async def _abandon(self, starts: Sequence[asyncio.Future[ReplicaMesh]]) -> None:
        for start in starts:
            start.cancel()
        meshes = await asyncio.gather(*starts, return_exceptions=True)
        up = [mesh for mesh in meshes if not isinstance(mesh, BaseException)]
        await asyncio.gather(*(mesh.shutdown() for mesh in up), return_exceptions=True)

    async def _retire(self, replicas: list[Replica]) -> None:
        for replica in replicas:
            replica.retiring = True
        for replica in replicas:
            self._placement.look(replica)
        endings = [self._background.begin(self._end(replica)) for replica in replicas]
        for result in await asyncio.shield(asyncio.gather(*endings, return_exceptions=True)):
            if isinstance(result, BaseException):
                raise result

    async def _end(self, replica: Replica) -> None:
        await replica.idle()
        try:
            await replica.shutdown()
        finally:
            self._placement.remove(replica)

    def _poll(self) -> None:
        if not self._placement.stopped:
            self._poll_timer = asyncio.get_running_loop().call_later(self.config.health_poll_rate, self._poll)
            self._placement.look_at_all()

    def _changed(self, replica: Replica) -> None:
        self._batcher.flush(HOMELESS if replica.up else replica.index)

    # End

    async def shutdown(self, timeout: float = 10.0) -> None:
        """End all replicas, once what runs is done or `timeout` seconds have passed; what waits fails at once.

        Called again, it waits for the same end, which comes no later than the shortest timeout says.
        """
        self._stop_taking()
        timer = asyncio.get_running_loop().call_later(max(0.0, timeout), self._grace_over.set)
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        self._stopping.add_done_callback(lambda _: timer.cancel())
        await asyncio.shield(self._stopping)

    def _stop_taking(self) -> None:
        if self._placement.stopped:
            return
        self._placement.stop()
        self._batcher.stop(self._placement.stopped_error)
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        for start in self._starting:
            start.cancel()

    async def _stop(self) -> None:
        replicas = list(self._placement.replicas.values())
        idle = self._background.begin(_all_idle(replicas))
        grace = self._background.begin(self._grace_over.wait())
        await asyncio.wait([idle, grace], return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        grace.cancel()
        results = await asyncio.gather(*(replica.shutdown() for replica in replicas), return_exceptions=True)
        async with self._sizing:  # a scale under way has seen that all is over
            await asyncio.gather(*self._background, *self._batcher.tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # Numbers

    def metrics(self) -> ServiceStatus:
        """The service's numbers and each replica's. From any thread."""
        sessions = self._sessions.count()
        present = list(self._placement.replicas.values())  # at once: another thread may change it meanwhile
        replicas = tuple(
            ReplicaStatus(
                index=r.index,
                mesh=r.mesh.name,
                healthy=r.up,
                ended=None if r.mesh.ended is None else str(r.mesh.ended),
                active=r.running,
                queued=r.queued,
                sessions=sessions[r.index],
                **r.stats.numbers(),
            )
            for r in present
        )
        return ServiceStatus(
            service=self.name,
            active=sum(replica.active for replica in replicas),
            queued=self._placement.waiting() + self._batcher.gathering(),
            sessions=len(self._sessions),
            **self._stats.numbers(),
            replicas=replicas,
        )


async def _all_idle(replicas: Sequence[Replica]) -> None:
    for replica in replicas:  # one after the other will do: they get no more requests
        await replica.idle()
