"""The handle that `as_service` returns: one for all replicas, usable from any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from forgectl.actor.driver.live_mesh import LiveMesh
from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.endpoint import endpoints_of, interface_of, streams_only
from forgectl.actor.ends import Ends
from forgectl.actor.handle import ActorHandle
from forgectl.actor.inflow import Inflow, RoutedInflow
from forgectl.actor.service.service import ServiceCore
from forgectl.actor.service.session import Session, current_session
from forgectl.actor.shown import Shown
from forgectl.actor.stream import Stream
from forgectl.errors import ForgeError
from forgectl.system.futures import Future
from forgectl.wire.codec import to_json


class _Replica:
    """Adapts a launched actor to what a service needs (`ReplicaMesh`)."""

    def __init__(self, cls: Any, handle: ActorHandle, *, first_rank: bool) -> None:
        assert isinstance(handle._mesh, LiveMesh), "this process launched it"
        self.name = handle.mesh_name
        self._cls = cls
        self._handle = handle
        self._mesh = handle._mesh
        self._first_rank = first_rank

    @property
    def healthy(self) -> bool:
        return self._mesh.healthy

    @property
    def ended(self) -> Exception | None:
        error = self._mesh.ended
        return error if error is None or isinstance(error, Exception) else ForgeError(str(error))

    def subscribe(self, listener: Callable[[], None]) -> None:
        self._mesh.subscribe(listener)

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = await getattr(self._handle, endpoint).call(*args, **kwargs)
        return values.get(0) if self._first_rank else values

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inflow:
        begun: Inflow = getattr(self._handle, endpoint)._inflow(args, kwargs, first_only=True)
        return begun

    async def shutdown(self) -> None:
        await self._cls.shutdown(self._handle)


class ServiceHandle(Ends):
    """A service. `service.ENDPOINT.route(…)` calls one healthy replica, `fanout(…)` each; see `ServiceEndpoint`.

    `with` and `async with` shut it down at their end.
    """

    def __init__(self, client: RunClient, cls: type, core: ServiceCore) -> None:
        self._client = client
        self._cls = cls
        self._interface = interface_of(cls)
        self._core = core

    def __getattr__(self, name: str) -> ServiceEndpoint:
        if name.startswith("__") or "_core" not in self.__dict__:
            raise AttributeError(name)
        if name not in self._interface.endpoints:
            raise AttributeError(self._interface.unknown(name))
        endpoint = self.__dict__[name] = ServiceEndpoint(self, name)
        return endpoint

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._interface.endpoints})

    @property
    def name(self) -> str:
        """The service's name. The meshes of its replicas are NAME.0, NAME.1 and so on."""
        return self._core.name

    def session(self) -> Session:
        """`async with service.session():` calls inside go to one replica as long as it lives."""
        return self._core.session()

    async def start_session(self) -> str:
        """Start a session and return its id, for `route(…, sess_id=ID)`. It lasts until `terminate_session`."""
        return self._core.start_session()

    async def terminate_session(self, session: str) -> None:
        """End a session; raises NotFoundError if it is unknown."""
        self._core.terminate_session(session)

    async def scale(self, replicas: int) -> None:
        """Change the number of replicas; no request is lost. Raises ValueError below 1.

        If a new replica fails to start, none is added, and its error is raised.
        """
        await self._client.in_loop(self._core.scale(replicas), f"{self.name}.scale")

    def metrics(self) -> dict[str, Any]:
        """Totals, successes, failures, rates per second, latencies in seconds, queues, sessions; also by replica."""
        found: dict[str, Any] = to_json(self._core.metrics())
        return found

    def shutdown(self, timeout: float = 10.0) -> Future[None]:
        """End the service: queued requests raise ServiceStopped, running ones have `timeout` seconds to finish.

        A second call does nothing more.
        """
        return self._client.in_loop(self._shutdown(timeout), f"{self.name}.shutdown")

    async def _shutdown(self, timeout: float) -> None:
        await self._core.shutdown(timeout)
        if self._client.services.get(self.name) is self:  # not a later service of the same name
            del self._client.services[self.name]

    def __repr__(self) -> str:
        return f"<service {self.name} of {self._cls.__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"service {self.name} routes in the driver; pass an actor's handle, or a result, to other actors"
        )


class ServiceEndpoint(Shown):
    """One endpoint of a service."""

    def __init__(self, service: ServiceHandle, name: str) -> None:
        self._service = service
        self._streams = name in service._interface.streaming
        super().__init__(service._interface, name, f"{service.name}.{name}")

    def route(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Future[Any]:
        """Call one healthy replica, chosen by the current session or else by the router: the value of rank 0.

        `sess_id` names another session. Every rank of the replica runs the endpoint; with the setting
        `return_first_rank_result=False` the result is a ValueMesh of all ranks. Raises what the endpoint raises;
        ActorDied if the replica dies during the call (an idempotent endpoint runs again on another replica);
        ServiceUnavailable, ServiceOverloaded or ServiceStopped; NotFoundError for an unknown session.
        """
        if self._streams:
            return self._refused()
        core = self._service._core
        session = sess_id if sess_id is not None else current_session(core)
        return self._service._client.in_loop(core.route(self.name, args, kwargs, session), self._label)

    def fanout(self, *args: Any, **kwargs: Any) -> Future[list[Any]]:
        """Call every healthy replica: their values in the order of replicas."""
        if self._streams:
            return self._refused()
        return self._service._client.in_loop(self._service._core.fanout(self.name, args, kwargs), self._label)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self.name} is an endpoint of a service: use {self.name}.route(…) or fanout")

    def _reject(self, verb: str) -> NoReturn:
        what = "fanout" if verb in ("call", "broadcast", "stream") else "route"
        raise NotImplementedError(f"{self._service.name} is a service: use {self.name}.{what}(…) in place of {verb}")

    def call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("call")

    def call_one(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("call_one")

    def choose(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("choose")

    def broadcast(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Only actors have it: raises NotImplementedError."""
        self._reject("broadcast")

    def stream(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Stream[Any]:
        """Of an endpoint that yields: the values that rank 0 of one healthy replica yields, chosen as `route` does.

        Every rank of the replica runs the endpoint. The stream is a running request until its generators have ended.
        It raises what `route` raises, and is not repeated on another replica.
        """
        if not self._streams:
            self._reject("stream")
        core = self._service._core
        session = sess_id if sess_id is not None else current_session(core)
        begun = self._service._client.in_loop(core.stream(self.name, args, kwargs, session), self._label)
        return Stream(RoutedInflow(self._label, begun))

    def _refused(self) -> Future[Any]:
        return Future.failed(self._label, TypeError(streams_only(self._label, self.name)))


async def launch_service(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ServiceHandle:
    """Start `cls.num_replicas` replicas and the service that routes to them."""
    client = await asyncio.to_thread(run_client, cls._unit())
    name = client.service_name(cls._base_name(), named=cls.mesh_name is not None)
    settings = cls._settings()

    async def start(index: int) -> _Replica:
        replica = cls.options(mesh_name=f"{name}.{index}")
        replica._kind = "service"
        return _Replica(cls, await replica.launch(*args, **kwargs), first_rank=settings.return_first_rank_result)

    core = ServiceCore(name, settings.service_config(cls.num_replicas), endpoints_of(cls), start)
    service = ServiceHandle(client, cls, core)
    client.services[name] = service
    try:
        await client.in_loop(core.start(), f"the launch of {name}")
    except BaseException:
        del client.services[name]
        raise
    return service
