"""What `as_service` gives: one handle before all replicas, usable from any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from forgectl.actor.driver.live_mesh import LiveMesh
from forgectl.actor.driver.run_client import RunClient, run_client
from forgectl.actor.endpoint import endpoints_of, interface_of
from forgectl.actor.handle import ActorHandle
from forgectl.actor.service.service import ServiceCore
from forgectl.actor.service.session import Session, current_session
from forgectl.errors import ForgeError
from forgectl.wire.codec import to_json


class _Replica:
    """A launched actor as its service needs it."""

    def __init__(self, cls: Any, handle: ActorHandle, *, first_rank: bool) -> None:
        assert isinstance(handle._mesh, LiveMesh), "it was launched here"
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

    async def shutdown(self) -> None:
        await self._cls.shutdown(self._handle)


class ServiceHandle:
    """A service. `service.ENDPOINT.route(…)` calls one healthy replica, `fanout(…)` all; see `ServiceEndpoint`."""

    def __init__(self, home: RunClient, cls: type, core: ServiceCore) -> None:
        self._home = home
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

    @property
    def name(self) -> str:
        """Its replicas' meshes are NAME.0 and on."""
        return self._core.name

    def session(self) -> Session:
        """`async with service.session():` — calls inside stick to one replica, while that lives."""
        return self._core.session()

    async def start_session(self) -> str:
        """A new session's id, for `route(…, sess_id=ID)`. It lasts until `terminate_session`."""
        return self._core.start_session()

    async def terminate_session(self, session: str) -> None:
        """End a session; raises NotFoundError for one that is not known."""
        self._core.terminate_session(session)

    async def scale(self, replicas: int) -> None:
        """Have so many replicas; no request is lost. Raises ValueError below 1."""
        await self._home.in_loop(self._core.scale(replicas))

    def metrics(self) -> dict[str, Any]:
        """Totals, successes, failures, rates per second, latencies in seconds, queues and sessions; by replica too."""
        found: dict[str, Any] = to_json(self._core.metrics())
        return found

    async def shutdown(self, timeout: float = 10.0) -> None:
        """End it: running requests have `timeout` seconds, queued ones raise ServiceStopped. Again: nothing."""
        await self._home.in_loop(self._core.shutdown(timeout))
        if self._home.services.get(self.name) is self:  # and not a later one of the same name
            del self._home.services[self.name]

    def __repr__(self) -> str:
        return f"<service {self.name} of {self._cls.__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"service {self.name} routes in the driver; hand an actor's handle, or a result, to other actors"
        )


class ServiceEndpoint:
    """One endpoint of a service."""

    def __init__(self, service: ServiceHandle, name: str) -> None:
        self._service = service
        self.name = name

    async def route(self, *args: Any, sess_id: str | None = None, **kwargs: Any) -> Any:
        """One healthy replica, chosen by the router, or by the session that this code is in: the value of its rank 0.

        Every rank of the replica runs the endpoint. Raises what it raises; ActorDied when the replica dies meanwhile
        (unless the endpoint is idempotent); ServiceUnavailable, ServiceOverloaded or ServiceStopped.
        """
        core = self._service._core
        session = sess_id if sess_id is not None else current_session(core)
        return await self._service._home.in_loop(core.route(self.name, args, kwargs, session))

    async def fanout(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Every healthy replica: their values in the order of replicas."""
        return await self._service._home.in_loop(self._service._core.fanout(self.name, args, kwargs))

    def _instead(self, verb: str) -> NoReturn:
        what = "fanout" if verb in ("call", "broadcast", "stream") else "route"
        raise NotImplementedError(f"{self._service.name} is a service: use {self.name}.{what}(…) in place of {verb}")

    def call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Of actors alone: raises NotImplementedError."""
        self._instead("call")

    def call_one(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Of actors alone: raises NotImplementedError."""
        self._instead("call_one")

    def choose(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Of actors alone: raises NotImplementedError."""
        self._instead("choose")

    def broadcast(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Of actors alone: raises NotImplementedError."""
        self._instead("broadcast")

    def stream(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Of actors alone: raises NotImplementedError."""
        self._instead("stream")


async def launch_service(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ServiceHandle:
    """Bring up `cls.num_replicas` replicas, and a service before them."""
    home = await asyncio.to_thread(run_client, cls._unit())
    name = home.service_name(cls._base_name(), named=cls.mesh_name is not None)
    settings = cls._settings

    async def start(index: int) -> _Replica:
        replica = cls.options(mesh_name=f"{name}.{index}")
        replica._kind = "service"
        return _Replica(cls, await replica.launch(*args, **kwargs), first_rank=settings.return_first_rank_result)

    core = ServiceCore(name, settings.service_config(cls.num_replicas), endpoints_of(cls), start)
    service = ServiceHandle(home, cls, core)
    home.services[name] = service
    try:
        await home.in_loop(core.start())
    except BaseException:
        del home.services[name]
        raise
    return service
