"""A service: routes requests among replicas of one actor mesh, and changes their number while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.batching import NO_REPLICA, Batcher, checked
from forgectl.actor.service.metrics import AnswerCounts
from forgectl.actor.service.replica import ATTEMPTS, NeverSent, Replica, ReplicaMesh, SingleCall, Streaming, Work
from forgectl.actor.service.routing import Placement, make_router
from forgectl.actor.service.service_call import ServiceCall
from forgectl.actor.service.session import SessionTable
from forgectl.errors import ActorDied, NotFoundError, ServiceOverloaded
from forgectl.model.status import ReplicaStatus, ServiceStatus
from forgectl.names import nearest
from forgectl.system.tasks import Background


@dataclass(frozen=True)
class ServiceConfig:
    """How a service runs. Raises ValueError for values out of range.

    router: see `make_router`.
    max_concurrent_requests: requests that run on one replica at a time; a batch counts as one; others wait in a queue.
    max_queue: calls that may wait in the whole service; None: no limit.
    unavailable_timeout: seconds that a call waits while no replica is healthy.
    health_poll_rate: seconds between checks of the replicas, in addition to their notifications.
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
            if not isinstance(value, int) and (value is not None or name != "max_queue"):
                raise TypeError(f"{name} is {value!r}; it must be a whole number")
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")
        for name in ("unavailable_timeout", "health_poll_rate"):
            if not isinstance(getattr(self, name), (int, float)):
                raise TypeError(f"{name} is {getattr(self, name)!r}; it must be a number of seconds")
        if self.unavailable_timeout < 0:
            raise ValueError(f"unavailable_timeout is {self.unavailable_timeout}; seconds cannot be negative")
        if self.health_poll_rate <= 0:
            raise ValueError(f"health_poll_rate is {self.health_poll_rate}; it must be more than 0 seconds")


class ServiceCore:
    """Routes calls to replicas. Everything runs in one event loop.

    `start` brings up the replica of an index, and cleans up when it is cancelled. An index is used once: a replica that
    is added later gets a new one. The mesh itself restarts after a death; the service waits for it, or uses the others.
    """

    def __init__(
        self,
        name: str,
        config: ServiceConfig,
        endpoints: Mapping[str, EndpointInfo],
        start: Callable[[int], Awaitable[ReplicaMesh]],
        sessions: SessionTable | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._endpoints = dict(endpoints)
        self._start_mesh = start
        self._sessions = SessionTable(name) if sessions is None else sessions
        routers = {n: make_router(info.router) for n, info in endpoints.items() if info.router is not None}
        self._placement = Placement(
            name, make_router(config.router), routers, self._sessions, config.unavailable_timeout, self._changed
        )
        self._batcher = Batcher(self._placement.place)
        self._stats = AnswerCounts()
        self._next_index = 0
        self._sizing = asyncio.Lock()  # held by start and scale, so that only one runs at a time
        self._starting: set[asyncio.Future[ReplicaMesh]] = set()
        self._background = Background()  # tasks that go on if the caller that began them is cancelled
        self._poll_timer: asyncio.TimerHandle | None = None
        self._grace_over = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    # Calls

    async def route(
        self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None = None
    ) -> Any:
        """Call an endpoint on one healthy replica: the session's replica, else the router's choice.

        Raises the user's exception; ActorDied if the replica dies during the call; ServiceUnavailable,
        ServiceOverloaded or ServiceStopped; NotFoundError for an unknown endpoint or a terminated session. After a
        death an idempotent endpoint runs again on another replica, and raises ActorDied only after `replica.ATTEMPTS`
        deaths.
        """
        info = self._checked(endpoint)
        call = ServiceCall(endpoint, info, args, kwargs, session, time.monotonic())
        return await self._in_session(call, self._batched if info.batch_size > 1 else self._single)

    async def lend(self, endpoint: str, session: str | None, work: Work) -> Any:
        """Choose a replica as `route` does, and count `work` on it as its call: another process calls the replica.

        It does not gather batches. `work` runs again where `route` would call again.
        """
        info = self._checked(endpoint)
        return await self._in_session(
            ServiceCall(endpoint, info, (), {}, session, time.monotonic(), work), self._single
        )

    async def _in_session(self, call: ServiceCall, run: Callable[[ServiceCall], Awaitable[Any]]) -> Any:
        with self._using(call.session):
            return await self._stats.counted(run(call), call.began)

    def _using(self, session: str | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if session is None else self._sessions.use(session)

    async def _single(self, call: ServiceCall) -> Any:
        attempts = 0
        while True:
            replica = await self._slot(call, is_first=not attempts)
            try:
                return await replica.call(call.endpoint, call.run, (call.began,))
            except ActorDied as error:
                attempts += 1
                harmless = call.info.idempotent or isinstance(error, NeverSent)
                again = harmless and replica.owns(error) and attempts < ATTEMPTS
                if not again or self._placement.stopped:
                    raise

    async def stream(
        self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None = None
    ) -> Any:
        """Begin a stream on one healthy replica, where it is a request until its generators have ended.

        Raises what `route` raises before its call; the stream raises the rest. It is not begun again elsewhere.
        """
        info = self._checked(endpoint)
        call = ServiceCall(endpoint, info, args, kwargs, session, time.monotonic())
        with contextlib.ExitStack() as use:
            use.enter_context(self._using(session))
            replica = await self._slot(call, is_first=True)
            try:
                stream = replica.mesh.stream(endpoint, args, kwargs)
            except BaseException:
                replica.release()
                raise
            self._background.begin(self._follow(replica, call, stream, use.pop_all()))
        return stream

    async def _follow(
        self, replica: Replica, call: ServiceCall, stream: Streaming, use: contextlib.ExitStack[bool | None]
    ) -> None:
        with use, contextlib.suppress(Exception):  # whoever iterates over the stream gets it
            work = replica.call(call.endpoint, lambda _: stream.opened, (call.began,))
            await self._stats.counted(work, call.began)

    async def _slot(self, call: ServiceCall, *, is_first: bool) -> Replica:
        """The replica on which a call may run now, as soon as there is one."""
        replica = self._placement.choose(call.endpoint, call.session)
        if replica is None or not replica.take_slot():
            if is_first:
                self._check_room()
            replica = await self._turn(SingleCall(call.endpoint, call.session), replica)
        return replica

    async def _turn(self, request: SingleCall, replica: Replica | None) -> Replica:
        """Wait for a slot of this replica, or of any if `replica` is None."""
        if replica is None:
            self._placement.hold(request)
        else:
            replica.add(request)
        return await request.turn()

    async def _batched(self, call: ServiceCall) -> Any:
        placement = self._placement
        if not any(replica.free for replica in placement.up):
            self._check_room()
        unavailable = placement.unavailable_error()
        if unavailable is not None:
            raise unavailable
        index = None
        if call.session is not None:
            replica = placement.choose(call.endpoint, call.session)
            index = NO_REPLICA if replica is None else replica.index
        return await self._batcher.call(call, index)

    async def fanout(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call an endpoint on every healthy replica; returns the results in their order.

        If calls raise, waits until all are done, and raises the first exception. If no replica is healthy, waits for
        one, as `route` does. Each replica's part is a request of its own, in the queue and in the metrics. With
        `batch_size` above 1 the method gets lists of length 1.
        """
        replicas = await self.all_up(endpoint)
        info = self._endpoints[endpoint]
        if info.batch_size > 1:
            args, kwargs = tuple([arg] for arg in args), {name: [arg] for name, arg in kwargs.items()}
        call = ServiceCall(endpoint, info, args, kwargs, None, time.monotonic())
        results = await asyncio.gather(*(self._part(replica, call) for replica in replicas), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    async def all_up(self, endpoint: str) -> tuple[Replica, ...]:
        """The healthy replicas, for a fanout; waits until there is one. Raises ServiceOverloaded if queues are full."""
        self._checked(endpoint)
        while not self._placement.up:
            self._check_room()
            replica = await self._turn(SingleCall(endpoint), None)
            replica.release()
        replicas = self._placement.up
        busy = sum(not replica.free for replica in replicas)
        if busy:
            self._check_room(busy)
        return replicas

    def staying(self, index: int) -> Replica | None:
        """The replica of that index, healthy or not; None if it was scaled away."""
        replica = self._placement.replicas.get(index)
        return None if replica is None or replica.retiring else replica

    async def lend_part(self, replica: Replica, endpoint: str, work: Work) -> Any:
        """As `lend`, for this replica's part of a fanout."""
        return await self._part(
            replica, ServiceCall(endpoint, self._endpoints[endpoint], (), {}, None, time.monotonic(), work)
        )

    async def _part(self, replica: Replica, call: ServiceCall) -> Any:
        return await self._stats.counted(self._on(replica, call), call.began)

    async def _on(self, replica: Replica, call: ServiceCall) -> Any:
        """This replica's part of a fanout."""
        self._check_running()
        if not replica.take_slot():
            await self._turn(SingleCall(call.endpoint, pinned=True), replica)
        result = await replica.call(call.endpoint, call.run, (call.began,))
        if call.info.batch_size == 1 or call.lent is not None:
            return result
        return checked(call.endpoint, result, 1)[0]

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
        """Raise ServiceOverloaded if so many more calls may not wait."""
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

    def start_session(self) -> str:
        """Start a session and return its id. It lasts until `terminate_session`."""
        self._check_running()
        return self._sessions.start()

    def terminate_session(self, session: str) -> None:
        """End a session. Its running calls go on. Raises NotFoundError for an unknown session."""
        self._sessions.terminate(session)

    # Size

    async def start(self, living: Sequence[int] = (), first_new: int = 0) -> None:
        """Start all replicas at the same time. If one fails, shuts the others down and raises its error.

        `living`: the indexes that an earlier driver gave to replicas that live; `start` adopts these. It may be more
        than the configured number, and is then as `scale` left it. New replicas have `first_new` and later ones.
        """
        async with self._sizing:
            self._check_running()
            if self._poll_timer is not None:
                raise RuntimeError(f"service {self.name} is started already")
            self._next_index = first_new
            await self._add(max(0, self.config.num_replicas - len(living)), living)
            self._poll()

    async def scale(self, n: int) -> None:
        """Change the number of replicas to `n`; replicas that ended for good do not count, and are removed.

        New replicas get new indexes. If one fails to start, none is added, and its error is raised. If there are too
        many, those with the highest indexes go after their running requests are done; their waiting requests move to
        other replicas. Calls of `scale` run one after the other. Raises ValueError below 1.
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

    async def _add(self, new: int, living: Sequence[int] = ()) -> None:
        indexes = [*living, *range(self._next_index, self._next_index + new)]
        self._next_index += new
        count = len(indexes)
        starts = [asyncio.ensure_future(self._start_mesh(index)) for index in indexes]
        self._starting.update(starts)
        self._placement.coming += count
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
            self._check_running()
            failed = [s for s in starts if s.done() and (s.cancelled() or s.exception() is not None)]
            meshes = [s.result() for s in failed or starts]  # raises the error of the first one that failed
            for index, mesh in zip(indexes, meshes, strict=True):
                limit = self.config.max_concurrent_requests
                self._placement.add(Replica(index, mesh, limit, self._placement.update))
        except BaseException:
            await asyncio.shield(self._background.begin(self._abandon(starts)))
            raise
        finally:
            self._starting.difference_update(starts)
            self._placement.coming -= count
            self._placement.fail_if_hopeless()

    async def _abandon(self, starts: Sequence[asyncio.Future[ReplicaMesh]]) -> None:
        for start in starts:
            start.cancel()
        meshes = await asyncio.gather(*starts, return_exceptions=True)
        up = [mesh for mesh in meshes if not isinstance(mesh, BaseException) and not mesh.adopted]
        await asyncio.gather(*(mesh.shutdown() for mesh in up), return_exceptions=True)

    async def _retire(self, replicas: list[Replica]) -> None:
        for replica in replicas:
            replica.retiring = True
        for replica in replicas:
            self._placement.update(replica)
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
            self._placement.recheck_all()

    def _changed(self, replica: Replica) -> None:
        self._batcher.flush(NO_REPLICA if replica.up else replica.index)

    # End

    async def shutdown(self, timeout: float = 10.0) -> None:
        """End all replicas when running requests are done, or after `timeout` seconds. Waiting requests fail at once.

        A second call waits for the same end; the shortest timeout counts.
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
        async with self._sizing:  # wait until a running `scale` has noticed the end
            await asyncio.gather(*self._background, *self._batcher.tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # Numbers

    def metrics(self) -> ServiceStatus:
        """The metrics of the service and of each replica. From any thread."""
        sessions = self._sessions.count()
        present = list(self._placement.replicas.values())  # a copy: another thread may change it during the loop
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
    for replica in replicas:  # one after the other is enough: they get no new requests
        await replica.idle()
