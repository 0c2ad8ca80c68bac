"""Reaches an agent on an ssh host through the relay. It dials again whenever the connection was lost."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from forgectl.errors import UnreachableError
from forgectl.protocol.host_survey import AgentReached, AgentStarted, NoAgent, ReachAgent, StartAgent
from forgectl.protocol.supervision import AGENT_TO_CONTROLLER, AgentConfig
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import RelayConnection, dial
from forgectl.wire.envelope import MAX_LINE, ProtocolError
from forgectl.wire.stream import Stream

T = TypeVar("T")
DIAL_SECONDS = 5
"""For TCP and the login after a loss. The sooner a dial gives up, the sooner the next one finds the link restored."""
_threads = ThreadPoolExecutor(128, thread_name_prefix="ssh")


class SshWay:
    """The way to the agent that listens, or will listen, at `socket` on an ssh host.

    `relay` is a connection that the launching command opened, if any.
    """

    may_drop = True

    def __init__(self, to: Destination, socket: str, relay: RelayConnection | None) -> None:
        self._to = to
        self._socket = socket
        self._relay = relay
        self._current: RelayConnection | None = None  # the relay that now passes bytes to the agent
        self._dialling: subprocess.Popen[bytes] | None = None
        self._closed = False

    async def connect(self) -> Stream | None:
        """A connection to the agent, or None if none is alive; raises ForgeError if the host is not reached."""
        self._drop()
        handed, self._relay = self._relay, None
        if handed is not None:
            with contextlib.suppress(UnreachableError):  # lost since it was opened: dial a new one
                return await self._reach(handed)
        return await self._reach(await _in_thread(self._dial))

    async def _reach(self, relay: RelayConnection) -> Stream | None:
        """Make a relay a pipe to the agent; None if no agent is alive."""
        try:
            answer = await _in_thread(relay.ask, ReachAgent(self._socket))
            if isinstance(answer, NoAgent):
                self._relay = relay
                return None
            if not isinstance(answer, AgentReached):
                raise ProtocolError(f"no answer to ReachAgent: {answer!r}")
        except BaseException:
            relay.close()
            raise
        self._current = relay
        reader, writer = await asyncio.open_unix_connection(sock=relay.line.socket, limit=MAX_LINE)
        return Stream(reader, writer, AGENT_TO_CONTROLLER)

    def _dial(self) -> RelayConnection:
        def note(process: subprocess.Popen[bytes]) -> None:
            self._dialling = process
            if self._closed:
                process.kill()

        try:
            relay = dial(self._to, tries=1, seconds=DIAL_SECONDS, started=note)
        finally:
            self._dialling = None
        if self._closed:  # nobody waits for it any more
            relay.close()
        return relay

    async def start_agent(self, config: AgentConfig) -> int:
        """Start an agent where `connect` found none; returns its pid. Raises ForgeError with what it printed."""
        if self._relay is None:
            raise UnreachableError(f"host {self._to.name}: the connection was lost")
        answer = await _in_thread(self._relay.ask, StartAgent(config))
        if not isinstance(answer, AgentStarted):
            raise ProtocolError(f"no answer to StartAgent: {answer!r}")
        return answer.pid

    def kill_agent(self, stream: Stream) -> None:
        """Do nothing: it cannot be killed from here, and will fence itself."""

    def rebooted(self, boot: str | None) -> bool:
        """False, as it is not known: a host that reboots cannot be reached for a while, and is lost."""
        return False

    async def wait_gone(self, pid: int | None, boot: str | None) -> None:
        """Do nothing: the connection ended together with the agent."""

    def _drop(self) -> None:
        """End the ssh of a lost connection: it may still wait for the network."""
        if self._current is not None:
            self._current.close()
            self._current = None

    def close(self) -> None:
        """End every connection, and a dial that is under way."""
        self._closed = True
        self._drop()
        if self._relay is not None:
            self._relay.close()
        if (process := self._dialling) is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)
