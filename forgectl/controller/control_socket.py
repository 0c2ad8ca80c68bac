"""The control socket: answers CLI commands about one run, and streams its changes to followers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from forgectl.controller.agent_link import Use
from forgectl.controller.log_fetcher import LogFetcher
from forgectl.controller.run_state import Run
from forgectl.model.status import RunStatus
from forgectl.protocol.control import (
    CLI_TO_CONTROLLER,
    AddMesh,
    Attach,
    BringLogs,
    CallTimedOut,
    FollowLogs,
    GetStatus,
    HostStacks,
    LogsHome,
    MeshAdded,
    Report,
    Restart,
    ShowStacks,
    Shutdown,
    StacksShown,
    StatusReport,
)
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.listener import Listener
from forgectl.wire.stream import Stream


class Subject(Protocol):
    """What the server needs from its controller."""

    run: Run
    log_fetcher: LogFetcher

    def document(self, use: Use | None = None) -> RunStatus: ...

    async def use(self) -> Use: ...

    def stacks(self, request: ShowStacks) -> AsyncIterator[HostStacks]: ...

    def ask_stop(self, meshes: tuple[str, ...] | None, grace: float, by: str, exit_code: int = 0) -> None: ...

    def call_timed_out(self, what: CallTimedOut) -> None: ...
    def ask_restart(self, meshes: dict[str, int], grace: float, by: str) -> None: ...

    async def add_mesh(self, request: AddMesh) -> MeshAdded | Refusal: ...

    def take_report(self, report: Report) -> None: ...

    def owner_left(self) -> None: ...


class ControlServer:
    """Serves any number of CLI connections; a slow or hostile one harms only itself."""

    def __init__(self, subject: Subject, path: Path) -> None:
        self._subject = subject
        self._followers: set[Stream] = set()
        self._owners: set[Stream] = set()
        self._readers: dict[Stream, FollowLogs] = {}
        self.listener = Listener(path, self._serve)

    @property
    def is_followed(self) -> bool:
        """Whether anybody receives status reports."""
        return bool(self._followers)

    def broadcast(self, document: RunStatus) -> bool:
        """Send the state to all followers; False if one reads too slowly and was left out."""
        slow = False
        report = StatusReport(document)
        for stream in list(self._followers):
            if stream.congested:
                slow = True
            else:
                stream.send(report)
        return not slow

    def followed(self) -> set[str] | None:
        """The meshes whose logs somebody follows; None for all."""
        wanted: set[str] = set()
        for request in self._readers.values():
            if request.meshes is None:
                return None
            wanted |= set(request.meshes)
        return wanted

    async def close(self, document: RunStatus) -> None:
        """Send the final state to all followers and close every connection."""
        self.listener.close()
        self._owners.clear()
        for stream in self._followers:
            stream.send(StatusReport(document, ended=True))
        await asyncio.gather(*(stream.close() for stream in self._followers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer, CLI_TO_CONTROLLER)
        with contextlib.suppress(ProtocolError, asyncio.TimeoutError, ConnectionError):
            if stream.is_ours() and await stream.greet(self._subject.run.id):
                while (request := await stream.receive()) is not None:
                    await self._answer(stream, request)
                    await stream.drain()  # a client that asks without reading blocks only itself
        self._followers.discard(stream)
        self._readers.pop(stream, None)
        if stream in self._owners:
            self._owners.discard(stream)
            self._subject.owner_left()
        stream.abort()

    async def _answer(self, stream: Stream, request: object) -> None:
        if isinstance(request, GetStatus):
            use = await self._subject.use() if request.stats else None
            stream.send(StatusReport(self._subject.document(use)))
        elif isinstance(request, Attach):
            self._followers.add(stream)
            if request.owner:
                self._owners.add(stream)
            stream.send(StatusReport(self._subject.document()))
        elif isinstance(request, FollowLogs):
            self._readers[stream] = request
            self._subject.log_fetcher.wake()
        elif isinstance(request, BringLogs):
            stream.send(LogsHome(await self._subject.log_fetcher.bring(request.meshes)))
        elif isinstance(request, ShowStacks):
            async for part in self._subject.stacks(request):
                stream.send(part)
            stream.send(StacksShown())
        elif isinstance(request, AddMesh):
            stream.send(await self._subject.add_mesh(request))
        elif isinstance(request, Report):
            self._subject.take_report(request)
        elif isinstance(request, CallTimedOut):
            self._subject.call_timed_out(request)
        elif isinstance(request, Restart):
            self._subject.ask_restart(request.meshes, request.grace, request.by)
        elif isinstance(request, Shutdown):
            self._subject.ask_stop(request.meshes, request.grace, request.by, request.exit_code)
