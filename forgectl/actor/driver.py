"""The driver of a run: brings up what the spec declares, and answers `forgectl call`."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import signal
from typing import Any

from forgectl import __version__
from forgectl.actor import home as homes
from forgectl.actor.endpoint import signature_of
from forgectl.actor.forge_actor import ForgeActor
from forgectl.actor.handle import ActorHandle
from forgectl.actor.service_handle import ServiceHandle
from forgectl.doorway import Doorway
from forgectl.errors import ForgeError, NotFoundError, TimedOutError, UsageError
from forgectl.plan.model import Declaration
from forgectl.protocol import CLI_TO_DRIVER, Call, GetMetrics, Hello, Metrics, ProtocolError, Refusal, Values
from forgectl.stream import Stream
from forgectl.wire import HANDSHAKE_SECONDS, wrong_version

_declared: dict[str, Any] = {}


def get(name: str) -> Any:
    """The handle of an actor or service that the spec declares, already up. In the driver; raises NotFoundError."""
    if name in _declared:
        return _declared[name]
    there = ", ".join(_declared) or "none: only the driver of a spec with actors or services has them"
    raise NotFoundError(f"the spec declares no actor or service {name!r}; there is {there}")


def bring_up() -> None:
    """Launch every actor and service that the spec declares, all at once; raises what the first failure raised."""
    home = homes.home()
    asyncio.run_coroutine_threadsafe(Door(home).keep(), home.loop)
    asyncio.run(_bring_up(home))


async def _bring_up(home: homes.Home) -> None:
    classes = [_class_of(d) for d in home.plan.declared]
    launches = [_launch(home, d, cls) for d, cls in zip(home.plan.declared, classes, strict=True)]
    for declaration, handle in zip(home.plan.declared, await asyncio.gather(*launches), strict=True):
        _declared[declaration.name] = handle


def _class_of(declaration: Declaration) -> Any:
    module, _, path = declaration.target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        if not hasattr(found, part):
            raise NotFoundError(f"{declaration.kind}s.{declaration.name}.class: {module} has no {path}")
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, ForgeActor)):
        raise UsageError(f"{declaration.kind}s.{declaration.name}.class: {declaration.target} is no ForgeActor")
    return found


async def _launch(home: homes.Home, declaration: Declaration, cls: Any) -> Any:
    plan = home.plan.mesh(declaration.meshes[0])
    configured = cls.options(mesh_name=declaration.name, procs=plan.procs, **declaration.settings)
    if declaration.kind == "actor":
        return await configured.as_actor(**declaration.args)
    return await configured.options(num_replicas=len(declaration.meshes)).as_service(**declaration.args)


def stay() -> None:
    """Serve until told to end."""
    while True:
        signal.pause()


class Door:
    """Where the driver is asked: a Unix socket beside the controller's."""

    def __init__(self, home: homes.Home) -> None:
        self._home = home
        self._door = Doorway(home.run.driver_socket, self._serve)

    async def keep(self) -> None:
        """Answer until the process ends."""
        await self._door.open()
        await self._door.keep_open()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer, CLI_TO_DRIVER)
        try:
            if stream.is_ours() and await self._greet(stream):
                while (request := await stream.receive()) is not None:
                    stream.send(await self._answer(request))
        except (ProtocolError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            stream.abort()

    async def _greet(self, stream: Stream) -> bool:
        hello = await stream.receive(HANDSHAKE_SECONDS)
        if not isinstance(hello, Hello):
            return False
        if refusal := wrong_version(hello.version):
            stream.send(refusal)
            await stream.close()
            return False
        stream.send(Hello(__version__, self._home.run.run))
        return True

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
