"""A service that this process launched: it routes in the loop of the run's client."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from forgectl.actor.called_service import CalledService, ServiceForm
from forgectl.actor.driver.launching import launch
from forgectl.actor.driver.live_mesh import LiveMesh
from forgectl.actor.driver.run_client import RunClient
from forgectl.actor.driver.service_record import ServiceRecord
from forgectl.actor.endpoint import EndpointInfo, endpoints_of, interface_of
from forgectl.actor.errands import Grant
from forgectl.actor.foreign_service import ForeignService
from forgectl.actor.handle import ActorHandle
from forgectl.actor.inflow import Inflow, RoutedInflow
from forgectl.actor.making import Blueprint, Launch
from forgectl.actor.service.service import ServiceConfig, ServiceCore
from forgectl.actor.service.session import SessionTable
from forgectl.actor.service_handle import ServiceHandle
from forgectl.actor.stream import Stream
from forgectl.errors import ForgeError, NotFoundError
from forgectl.system.futures import Future
from forgectl.system.tasks import Background
from forgectl.wire.codec import to_json


class LiveReplica:
    """Adapts a launched actor to what a service needs (`ReplicaMesh`)."""

    def __init__(self, handle: ActorHandle, end: Callable[[ActorHandle], Awaitable[None]], *, first_rank: bool) -> None:
        assert isinstance(handle._mesh, LiveMesh), "this process launched it"
        self.name = handle.mesh_name
        self._handle = handle
        self._mesh = handle._mesh
        self._end = end
        self._first_rank = first_rank

    @property
    def healthy(self) -> bool:
        return self._mesh.healthy

    @property
    def adopted(self) -> bool:
        return self._mesh.adopted

    @property
    def ended(self) -> Exception | None:
        error = self._mesh.ended
        return error if error is None or isinstance(error, Exception) else ForgeError(str(error))

    @property
    def grant(self) -> Grant | None:
        """The generation that is up, for another process to call; None if none is."""
        ranks = self._mesh.now()
        return None if ranks is None else Grant(self.name, ranks.generation, ranks.places)

    def subscribe(self, listener: Callable[[], None]) -> None:
        self._mesh.subscribe(listener)

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = await getattr(self._handle, endpoint).call(*args, **kwargs)
        return values.get(0) if self._first_rank else values

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inflow:
        begun: Inflow = getattr(self._handle, endpoint)._inflow(args, kwargs, first_only=True)
        return begun

    async def shutdown(self) -> None:
        await self._end(self._handle)


class LiveService(CalledService):
    """A service of this process. `key` is what other processes call it: a later one of the same name has another key.

    `cls`: its class, if this process has it.
    """

    def __init__(
        self, client: RunClient, form: ServiceForm, core: ServiceCore, record: ServiceRecord, cls: type | None
    ) -> None:
        super().__init__(form)
        self.key = record.key
        self._record = record
        self.core = core
        self.cls = cls
        self._client = client
        self._tasks = Background()

    def foreign(self) -> ForeignService:
        """The service in a form that other processes can use."""
        return ForeignService(self.key, self.form, self._client.origin)

    def route(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Future[Any]:
        """Call one replica."""
        return self._client.in_loop(self.core.route(endpoint, args, kwargs, session), self.form.label(endpoint))

    def fanout(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[list[Any]]:
        """Call each healthy replica."""
        return self._client.in_loop(self.core.fanout(endpoint, args, kwargs), self.form.label(endpoint))

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any], session: str | None) -> Stream[Any]:
        """Begin a stream on one replica."""
        label = self.form.label(endpoint)
        begun = self._client.in_loop(self.core.stream(endpoint, args, kwargs, session), label)
        return Stream(RoutedInflow(label, begun))

    async def start_session(self) -> str:
        """Start a session and return its id."""
        return self.core.start_session()

    async def terminate_session(self, session: str) -> None:
        """End a session; raises NotFoundError if it is unknown."""
        self.core.terminate_session(session)

    async def scale(self, replicas: int) -> None:
        """Change the number of replicas."""
        await self._client.in_loop(self.core.scale(replicas), self.form.label("scale"))

    def metrics(self) -> dict[str, Any]:
        """The numbers of the service and of each replica."""
        found: dict[str, Any] = to_json(self.core.metrics())
        return found

    def shutdown(self, timeout: float) -> Future[None]:
        """End the service."""
        return self._client.in_loop(self.close(timeout), self.form.label("shutdown"))

    async def close(self, timeout: float) -> None:
        """The same, in the client's loop. It goes on if the caller gives it up."""
        await asyncio.shield(self._tasks.begin(self._close(timeout)))

    async def _close(self, timeout: float) -> None:
        await self.core.shutdown(timeout)
        self.forget()
        self._record.delete()

    def forget(self) -> None:
        """Give its name free; requests of other processes are told that it has stopped."""
        self._client.keyed_services.pop(self.key, None)
        if self._client.services.get(self.form.name) is self:  # not a later service of the same name
            del self._client.services[self.form.name]


async def begin_service(
    client: RunClient, cls: Any, asked: Launch, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ServiceHandle:
    """Start the service of a class that this process has."""
    settings = cls._settings()

    async def start(name: str) -> LiveReplica:
        replica = cls.options(mesh_name=name)
        replica._kind = "service"
        handle = await replica.launch(*args, **kwargs)
        return LiveReplica(handle, cls.shutdown, first_rank=settings.return_first_rank_result)

    endpoints = endpoints_of(cls)
    record = _record(client, cls._base_name(), asked)
    form = ServiceForm(record.name, interface_of(cls), _batched(endpoints), settings.return_first_rank_result)
    return await _begin(client, form, settings.service_config(cls.num_replicas), endpoints, start, record, cls)


async def begin_blueprint(client: RunClient, asked: Launch, blueprint: Blueprint) -> ServiceHandle:
    """Start a service that another process asks for. Raises NotFoundError if the launch is over and it has ended."""
    if asked.is_over and asked.claim not in client.records.earlier:
        raise NotFoundError(f"service {blueprint.name} has ended")
    making = blueprint.making.received()

    async def start(name: str) -> LiveReplica:
        unit = dataclasses.replace(blueprint.unit, mesh=name)
        handle = await launch(client, unit, making, Launch(True, name), may_be_declared=False)
        return LiveReplica(handle, ActorHandle.shutdown, first_rank=blueprint.first_rank)

    record = _record(client, blueprint.name, asked)
    form = ServiceForm(record.name, making.interface, _batched(blueprint.endpoints), blueprint.first_rank)
    return await _begin(client, form, blueprint.config, blueprint.endpoints, start, record, None)


def _record(client: RunClient, name: str, asked: Launch) -> ServiceRecord:
    """That of the service which an earlier driver began by this launch, else a new one."""
    if (earlier := client.records.earlier.pop(asked.claim, None)) is not None:
        return earlier
    return client.records.begin(client.service_name(name, named=asked.named), asked.claim)


def _batched(endpoints: Mapping[str, EndpointInfo]) -> frozenset[str]:
    return frozenset(name for name, info in endpoints.items() if info.batch_size > 1)


async def _begin(
    client: RunClient,
    form: ServiceForm,
    config: ServiceConfig,
    endpoints: Mapping[str, EndpointInfo],
    start: Callable[[str], Awaitable[LiveReplica]],
    record: ServiceRecord,
    cls: type | None,
) -> ServiceHandle:
    """Start the service and all its replicas; `start` starts the one of a name. After an error no new mesh is left."""
    sessions = SessionTable(form.name, known=record.sessions, note=record.note, note_end=record.note_end)
    core = ServiceCore(form.name, config, endpoints, lambda index: start(f"{form.name}.{index}"), sessions)
    service = LiveService(client, form, core, record, cls)
    client.services[form.name] = service
    awaited = client.inherited.get(service.key)
    try:
        living, first_new = await client.living_replicas(form.name)
        record.write()
        client.keyed_services[service.key] = service
        if awaited is not None:
            awaited.set()
        await core.start(living, first_new)
    except BaseException:
        service.forget()
        if awaited is None:
            record.delete()
        raise
    service.adopted = bool(living)
    return ServiceHandle(service)
