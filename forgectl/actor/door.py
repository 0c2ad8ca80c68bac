"""Where a driver is asked by the CLI: calls of endpoints, and the metrics of services."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING, Any

from forgectl.actor.endpoint import signature_of
from forgectl.actor.handle import ActorHandle
from forgectl.actor.service_handle import ServiceHandle
from forgectl.doorway import Doorway
from forgectl.errors import ForgeError, NotFoundError, TimedOutError, UsageError
from forgectl.protocol import CLI_TO_DRIVER, Call, GetMetrics, Metrics, ProtocolError, Refusal, Values
from forgectl.stream import Stream

if TYPE_CHECKING:
    from forgectl.actor.home import Home


class Door:
    """Where the driver is asked: a Unix socket beside the controller's."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._door = Doorway(home.run.driver_socket, self._serve)

    async def keep(self) -> None:
        """Answer until the process ends."""
        await self._door.open()
        await self._door.keep_open()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer, CLI_TO_DRIVER)
        try:
            if stream.is_ours() and await stream.greet(self._home.run.run):
                while (request := await stream.receive()) is not None:
                    stream.send(await self._answer(request))
        except (ProtocolError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            stream.abort()

    async def _answer(self, request: Any) -> Any:
        if isinstance(request, GetMetrics):
            return Metrics({name: service.metrics() for name, service in self._home.services.items()})
        try:
            return Values([_plain(v) for v in await self._call(request)])
        except ForgeError as e:
            return Refusal(e.exit_code, e.message, e.hint)
        except (asyncio.TimeoutError, TimeoutError):
            late = TimedOutError(f"{request.target}.{request.endpoint} did not answer within {request.timeout:g} s")
            return Refusal(late.exit_code, late.message)
        except Exception as e:
            remote = f"\n{str(e.__cause__).strip()}" if e.__cause__ else ""
            return Refusal(1, f"{request.target}.{request.endpoint} raised {type(e).__name__}: {e}{remote}")

    async def _call(self, call: Call) -> list[Any]:
        target = self._find(call.target)
        interface = target._interface if isinstance(target, ServiceHandle) else target._mesh.interface
        if call.endpoint not in interface.endpoints:
            raise NotFoundError(interface.unknown(call.endpoint))
        cls = target._cls if isinstance(target, ServiceHandle) else target._mesh.cls
        signature = signature_of(cls, call.endpoint)
        try:
            signature.bind(*call.args, **call.kwargs)
        except TypeError as e:
            raise UsageError(f"{call.endpoint}{_short(signature)}: {e}") from None
        return await asyncio.wait_for(self._values(target, call), call.timeout)

    async def _values(self, target: Any, call: Call) -> list[Any]:
        endpoint = getattr(target, call.endpoint)
        if isinstance(target, ServiceHandle):
            return [await endpoint.route(*call.args, **call.kwargs)]
        return list((await endpoint.call(*call.args, **call.kwargs)).values())

    def _find(self, name: str) -> Any:
        if service := self._home.services.get(name):
            return service
        if mesh := self._home.meshes.get(name):
            return ActorHandle(mesh)
        there = ", ".join([*self._home.services, *self._home.meshes]) or "none yet"
        raise NotFoundError(f"run {self._home.run.run} has no actor or service {name!r}; there is {there}")


def _short(signature: inspect.Signature) -> str:
    return str(signature).replace("'", "")


def _plain(value: Any) -> Any:
    """A value that JSON can hold, or its repr."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value
