"""The controller's link to one agent: start it, greet it, pass commands and events, and replace it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from forgectl import __version__
from forgectl.controller.commands import Command, key
from forgectl.controller.records import AgentLost, AgentUp, Happened, Record
from forgectl.controller.state import Host
from forgectl.errors import ForgeError, UnreachableError
from forgectl.processes import boot_id
from forgectl.protocol import (
    AGENT_TO_CONTROLLER,
    Ack,
    AgentConfig,
    Event,
    GetStats,
    Hello,
    Ping,
    ProtocolError,
    Quit,
    RankStats,
    Refusal,
    Stats,
    Synced,
    Welcome,
)
from forgectl.stream import Stream
from forgectl.transport import local
from forgectl.wire import HANDSHAKE_SECONDS

Use = dict[str, dict[int, RankStats]]
STATS_SECONDS = 2.0
START_TIMES = 5


class Owner(Protocol):
    """What a link needs of its controller."""

    def record(self, record: Record) -> None: ...

    def commands_for(self, host: str) -> list[Command]: ...


class Link:
    """Keeps one host's agent connected from the start of the run to its end."""

    def __init__(
        self, host: Host, config: Callable[[bool], AgentConfig], socket: Path, owner: Owner, *, unsure: bool = False
    ) -> None:
        self.host = host
        self.name = host.plan.name
        self._config = config  # of an agent that is (not) the first of its host
        self._socket = socket
        self._owner = owner
        self._unsure = unsure  # whether an agent was here that the journal does not know of any more
        self._stream: Stream | None = None
        self._synced = False
        self._sent: set[tuple[object, ...]] = set()
        self._quit_sent = False
        self._stats: asyncio.Future[Use] | None = None
        self._lease = config(False).lease

    async def run(self) -> None:
        """Serve until the agent has quit on command."""
        while not self._quit_sent:
            stream = await self._connect()
            if stream is None:
                if any(isinstance(c, Quit) for c in self._owner.commands_for(self.name)):
                    break  # there is nothing left to begin one for
                if not await self._begin_agent():
                    return
                continue
            try:
                await self._converse(stream)
            except ForgeError as e:
                self._owner.record(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
                return
            except (ProtocolError, ConnectionError, asyncio.TimeoutError):
                pass
            finally:
                self._stream, self._synced = None, False
                stream.abort()
                self._fail_stats()
        await local.wait_gone(self.host.pid, self.host.boot_id)
        self.host.state = "gone"

    async def _connect(self) -> Stream | None:
        """A connection to the host's agent, or None where none lives."""
        try:
            return await Stream.connect(self._socket, AGENT_TO_CONTROLLER)
        except OSError:
            return None

    async def _begin_agent(self) -> bool:
        """Start an agent where none lives; the ranks of an earlier one are gone with it."""
        first = self.host.pid is None and not self._unsure
        why = "" if first else self._why_gone()
        try:
            pid = await self._start_agent(sweep=not first)
        except ForgeError as e:
            self._owner.record(AgentLost(self.name, e.message, e.exit_code, e.hint, final=True))
            return False
        if not first and pid != self.host.pid:
            self._owner.record(AgentLost(self.name, why))
        return True

    async def _start_agent(self, *, sweep: bool) -> int:
        """Start an agent, and others where that is killed: without one nobody ends what an earlier one left."""
        for _ in range(START_TIMES - 1):
            with contextlib.suppress(local.AgentKilledError):
                return await local.start_agent(self._config(sweep), self.host.plan.python)
        return await local.start_agent(self._config(sweep), self.host.plan.python)

    def _why_gone(self) -> str:
        if self.host.boot_id not in (boot_id(), None):
            return f"host {self.name} was rebooted"
        return f"the agent on host {self.name} was killed or fenced itself, and its ranks ended with it"

    # ------------------------------------------------------------ one connection

    async def _converse(self, stream: Stream) -> None:
        stream.send(Hello(__version__, self._config(False).run, self.host.last_seq, self.host.pid or 0))
        try:
            welcome = await stream.receive(max(self._lease, HANDSHAKE_SECONDS))
        except asyncio.TimeoutError:
            self._put_down(stream.peer_pid)
            return
        if isinstance(welcome, Refusal):
            raise UnreachableError(f"host {self.name}: {welcome.message}", hint=welcome.hint)
        if not isinstance(welcome, Welcome):
            raise ProtocolError("no welcome")
        self._sent = set()
        self._stream = stream
        self._owner.record(AgentUp(self.name, welcome.pid, welcome.boot_id))
        pinging = asyncio.create_task(self._ping(stream))
        try:
            while True:
                message = await stream.receive(self._lease)
                if message is None:
                    return
                self.host.last_seen = time.time()
                self._take(stream, message)
        except asyncio.TimeoutError:
            self._put_down(welcome.pid)
        finally:
            pinging.cancel()

    def _take(self, stream: Stream, message: object) -> None:
        if isinstance(message, Event):
            self._owner.record(Happened(self.name, message.seq, message.what))
            stream.send(Ack(message.seq))
        elif isinstance(message, Synced):
            self._synced = True
            self.push()
        elif isinstance(message, Stats) and self._stats is not None and not self._stats.done():
            self._stats.set_result(message.meshes)

    async def _ping(self, stream: Stream) -> None:
        while True:
            stream.send(Ping())
            await asyncio.sleep(min(self._lease / 4, 2.0))

    def _put_down(self, pid: int) -> None:
        """An agent that was silent for a whole lease is as good as dead: make it so."""
        identity = local.agent_identity(pid, boot_id())  # it holds the other end: nobody else has its pid
        if identity is not None:
            local.kill_agent(identity)

    # ------------------------------------------------------------ commands

    def push(self) -> None:
        """Send what the agent should be doing and has not been told over this connection."""
        if self._stream is None or not self._synced:
            return
        for command in self._owner.commands_for(self.name):
            if key(command) not in self._sent:
                self._sent.add(key(command))
                self._quit_sent = self._quit_sent or isinstance(command, Quit)
                self._stream.send(command)

    async def stats(self) -> Use:
        """What the ranks of this host use now; nothing where the agent does not answer in time."""
        if self._stream is None:
            return {}
        if self._stats is None or self._stats.done():
            self._stats = asyncio.get_running_loop().create_future()
            self._stream.send(GetStats())
        try:
            return await asyncio.wait_for(asyncio.shield(self._stats), STATS_SECONDS)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            return {}

    def _fail_stats(self) -> None:
        if self._stats is not None and not self._stats.done():
            self._stats.set_result({})
