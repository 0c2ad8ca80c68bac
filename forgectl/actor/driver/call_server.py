"""Answers the CLI in the driver: calls that a service routes, the metrics of services, and what endpoints there are."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from forgectl.actor.endpoint import Interface
from forgectl.actor.plain_calls import check, plain
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError, NotFoundError, TimedOutError
from forgectl.protocol.endpoint_calls import (
    CLI_TO_DRIVER,
    CallEndpoint,
    Endpoints,
    GetEndpoints,
    GetMetrics,
    Metrics,
    Values,
)
from forgectl.redaction import of_process
from forgectl.system.tasks import within
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.listener import Listener
from forgectl.wire.stream import Stream


class Served(Protocol):
    """What the server needs of the RunClient: the run that this process drives, its meshes and services."""

    run: RunDir
    meshes: dict[str, Any]
    services: dict[str, Any]


class CallServer:
    """Serves requests of the CLI on a Unix socket next to the controller's."""

    def __init__(self, client: Served) -> None:
        self._client = client
        self._listener = Listener(client.run.driver_socket, self._serve)

    async def keep(self) -> None:
        """Answer requests until cancelled."""
        await self._listener.open()
        await self._listener.keep_open()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer, CLI_TO_DRIVER)
        try:
            if stream.is_ours() and await stream.greet(self._client.run.run):
                while (request := await stream.receive()) is not None:
                    stream.send(await self._answer(request))
        except (ProtocolError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            stream.abort()

    async def _answer(self, request: Any) -> Any:
        if isinstance(request, GetMetrics):
            return Metrics({name: service.core.metrics() for name, service in self._client.services.items()})
        if isinstance(request, GetEndpoints):
            return Endpoints({name: _endpoints(what) for name, what in self._interfaces().items()})
        try:
            return Values([plain(await self._call(request))])
        except ForgeError as e:
            return Refusal(e.exit_code, of_process()(e.message), e.hint)
        except (asyncio.TimeoutError, TimeoutError):
            late = TimedOutError(f"{request.target}.{request.endpoint} did not answer within {request.timeout:g} s")
            return Refusal.of(late)
        except Exception as e:
            remote = f"\n{str(e.__cause__).strip()}" if e.__cause__ else ""
            what = f"{request.target}.{request.endpoint} raised {type(e).__name__}: {e}{remote}"
            return Refusal(1, of_process()(what))

    def _interfaces(self) -> dict[str, Interface]:
        meshes = {name: mesh.interface for name, mesh in self._client.meshes.items()}
        return meshes | {name: service.form.interface for name, service in self._client.services.items()}

    async def _call(self, call: CallEndpoint) -> Any:
        service = self._client.services.get(call.target)
        if service is None:
            there = ", ".join(self._client.services) or "none yet"
            raise NotFoundError(f"run {self._client.run.run} has no service {call.target!r}; its services: {there}")
        if service.cls is not None:
            check(service.cls, call.endpoint, call.args, call.kwargs)
        elif call.endpoint not in service.form.interface.endpoints:  # an actor launched it
            raise NotFoundError(service.form.interface.unknown(call.endpoint))
        routed = service.route(call.endpoint, tuple(call.args), call.kwargs, None)
        return await within(call.timeout, routed)


def _endpoints(interface: Interface) -> dict[str, str]:
    """Those that `forgectl call` can call, with their signatures."""
    return {name: text for name, text in interface.endpoints.items() if name not in interface.streaming}
