"""The driver's side of errands.py: answers what other processes of the run ask the driver for.

It listens among the run's ranks, so no port and no key are added. Everything runs in the loop of the run's client, and
no request holds up another one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from forgectl.actor.driver.errand_table import ErrandTable
from forgectl.actor.driver.launching import launch
from forgectl.actor.driver.live_service import LiveReplica, LiveService, begin_blueprint
from forgectl.actor.driver.run_client import RunClient
from forgectl.actor.errands import BEAT_SECONDS, Grant
from forgectl.actor.handle import ActorHandle
from forgectl.actor.making import Blueprint, Launch, SentMaking
from forgectl.actor.remote_errors import RemoteError, RemoteTraceback, carrier
from forgectl.actor.service.lending import Loan
from forgectl.actor.service.replica import NeverSent, Work
from forgectl.actor.service_handle import ServiceHandle
from forgectl.actor.verbs import (
    ALIVE,
    BEGIN,
    CANCEL,
    CLOSE,
    DESK,
    ENDED,
    KEEP,
    LATE,
    LAUNCH,
    LEND,
    PART,
    PARTS,
    ROUTE,
    SCALE,
    SERVE,
    STOP,
    TERMINATE,
)
from forgectl.errors import ActorDied, ForgeError, ServiceStopped, ServiceUnavailable, UnreachableError
from forgectl.messages import pickling
from forgectl.messages.frames import socket_name
from forgectl.messages.serving import Server
from forgectl.model.plan import Unit
from forgectl.system.tasks import within

log = logging.getLogger("forgectl")

INHERITANCE_SECONDS = 60.0
"""How long requests wait for a service of an earlier driver."""


class Desk:
    """Listens from now on, in the running loop."""

    def __init__(self, client: RunClient) -> None:
        self._client = client
        self._errands = ErrandTable()
        self._loans: dict[tuple[str, int, int], Loan] = {}  # by asker, number and part
        self._do: dict[str, Callable[..., Awaitable[Any]]] = {
            LAUNCH: self._launch,
            SERVE: self._serve,
            KEEP: self._keep,
            STOP: self._stop,
            LATE: self._late,
            ROUTE: self._route,
            PARTS: self._parts,
            BEGIN: self._begin_session,
            TERMINATE: self._terminate_session,
            SCALE: self._scale,
            CLOSE: self._close,
        }
        self._lend: dict[str, Callable[..., Awaitable[Any]]] = {
            LEND: self._lend_one,
            PART: self._lend_part,
        }
        path = Path(client.here.folder, socket_name(DESK, client.generation, 0))
        self._server = Server(path, self._perform, _carried, _cast_failed)
        self._tick()

    def _tick(self) -> None:
        self._errands.tick()
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._tick)

    async def _perform(self, request: Any) -> Any:
        verb, asker, number, *rest = request
        self._errands.heard(asker)
        if verb == ALIVE:
            self._errands.reconcile(asker, *rest)
            return None
        if verb == CANCEL:
            self._errands.give_up(asker, number)
            return None
        try:
            if verb == ENDED:
                return await self._ended(asker, number, *rest)
            return await self._run(verb, asker, number, rest)
        except asyncio.CancelledError:  # as it asked; then it does not listen any more
            raise UnreachableError(
                "the driver has given this request up: the process that asked showed no sign of life for too long"
            ) from None

    async def _run(self, verb: str, asker: str, number: int, rest: list[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._errands.add(asker, number, task)
        try:
            if verb in self._lend:
                return await self._lend[verb](asker, number, *rest)
            return await self._do[verb](*rest)
        finally:
            self._errands.remove(asker, number, task)

    # ------------------------------------------------------------ meshes

    async def _launch(self, asked: Launch, unit: Unit, making: SentMaking) -> ActorHandle:
        return await launch(self._client, unit, making.received(), asked, may_be_declared=False)

    async def _serve(self, asked: Launch, blueprint: Blueprint) -> ServiceHandle:
        return await begin_blueprint(self._client, asked, blueprint)

    async def _keep(self, verb: str, *what: Any) -> bool:
        """Adopt what the asker had launched by an earlier driver; False if that has ended."""
        try:
            await self._do[verb](*what)
        except ForgeError:
            return False
        return True

    async def _stop(self, mesh: str, generation: int, grace: float) -> None:
        live = self._client.launched(mesh, generation)
        if live is not None:
            await live.shutdown(grace)
        else:
            await self._client.end_orphan(mesh, generation, grace)

    async def _late(self, mesh: str, generation: int, what: str) -> None:
        await self._client.send_late(mesh, generation, what)

    # ------------------------------------------------------------ services

    async def _service(self, key: str) -> LiveService:
        """The service of a key; waits for one that an earlier driver had, and that this one has not launched yet."""
        service = key.partition(" ")[0]
        if (here := self._client.inherited.get(key)) is not None and not here.is_set():
            try:
                await within(INHERITANCE_SECONDS, here.wait())
            except (asyncio.TimeoutError, TimeoutError):
                raise ServiceUnavailable(
                    f"service {service}: the driver was restarted {INHERITANCE_SECONDS:g} s ago, and has not launched "
                    "it again"
                ) from None
        found: LiveService | None = self._client.keyed_services.get(key)
        if found is None:
            raise ServiceStopped(f"service {service} is shut down, or was before the request started")
        return found

    async def _route(
        self, key: str, endpoint: str, args: list[list[Any]], kwargs: dict[str, list[Any]], session: str | None
    ) -> Any:
        unopened = tuple(map(_Unopened, args)), {name: _Unopened(arg) for name, arg in kwargs.items()}
        return await (await self._service(key)).core.route(endpoint, *unopened, session)

    async def _begin_session(self, key: str) -> str:
        return (await self._service(key)).core.start_session()

    async def _terminate_session(self, key: str, session: str) -> None:
        (await self._service(key)).core.terminate_session(session)

    async def _scale(self, key: str, replicas: int) -> None:
        await (await self._service(key)).core.scale(replicas)

    async def _close(self, key: str, timeout: float) -> None:
        if key in self._client.keyed_services or key in self._client.inherited:
            await (await self._service(key)).close(timeout)

    # ------------------------------------------------------------ replicas lent to other processes

    async def _lend_one(self, asker: str, number: int, key: str, endpoint: str, session: str | None) -> Grant:
        core = (await self._service(key)).core
        return await _granted(self._begin(asker, number, 0, functools.partial(core.lend, endpoint, session)))

    async def _parts(self, key: str, endpoint: str) -> list[int]:
        core = (await self._service(key)).core
        return [replica.index for replica in await core.all_up(endpoint)]

    async def _lend_part(self, asker: str, number: int, part: int, key: str, endpoint: str) -> Grant | None:
        core = (await self._service(key)).core
        if (replica := core.staying(part)) is None:
            return None  # it was scaled away meanwhile
        return await _granted(self._begin(asker, number, part, functools.partial(core.lend_part, replica, endpoint)))

    def _begin(self, asker: str, number: int, part: int, begin: Callable[[Work], Coroutine[Any, Any, Any]]) -> Loan:
        loan = self._loans[asker, number, part] = Loan(begin)
        self._errands.add(asker, number, loan)

        def end() -> None:
            self._errands.remove(asker, number, loan)
            del self._loans[asker, number, part]

        loan.on_end(end)
        return loan

    async def _ended(
        self, asker: str, number: int, part: int, how: str, error: ActorDied | None = None
    ) -> Grant | None:
        """Note how a call of another process ended; the grant to call again, None if its own error is final."""
        loan = self._loans.get((asker, number, part))
        if loan is None:
            return None
        if how == "answered":
            loan.ended(None)
            return None
        if how == "raised":
            loan.ended(_RaisedError())
            return None
        died = error or NeverSent("its replica died before the request was sent")
        loan.ended(died)
        try:
            return await _granted(loan)
        except ActorDied as e:
            if e is error:
                return None
            raise


async def _granted(loan: Loan) -> Grant:
    while True:
        replica = await loan.turn()
        assert isinstance(replica, LiveReplica)
        if (grant := replica.grant) is not None:
            return grant
        loan.ended(NeverSent(f"{replica.name} died before the request was sent", mesh=replica.name))


class _RaisedError(Exception):
    """In place of what an endpoint raised: its caller has that."""


class _Unopened:
    """An argument that the driver passes on as it came: ranks get the value."""

    def __init__(self, frames: list[Any]) -> None:
        self._frames = frames

    def __reduce__(self) -> Any:
        return pickling.loads, (pickling.as_part(self._frames),)


def _carried(error: BaseException) -> RemoteError:
    """The error for the asker; one that came from a rank keeps the traceback of there."""
    carried = carrier(error)
    if isinstance(error.__cause__, RemoteTraceback):
        return RemoteError(carried.pickled, carried.line, str(error.__cause__.args[0]))
    return carried


def _cast_failed(request: Any, error: Exception) -> None:
    log.error("a request to the driver failed: %s", request[0] if isinstance(request, tuple) else "?", exc_info=error)


async def open_desk(client: RunClient) -> None:
    """Listen for requests of other processes, if this process does not yet. Call it in the client's loop."""
    if client.desk is None:
        client.desk = Desk(client)
