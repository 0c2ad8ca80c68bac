"""The relay: answers requests about its host, then copies bytes between its standard streams and the agent."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from forgectl.errors import ForgeError
from forgectl.hosts import facts, reach
from forgectl.hosts.examination import examine
from forgectl.protocol.host_survey import (
    LAUNCHER_TO_RELAY,
    AgentReached,
    AgentStarted,
    Dialled,
    DialOut,
    Examine,
    GetFacts,
    Listening,
    ListenOn,
    NoAgent,
    ReachAgent,
    RelayReady,
    StartAgent,
)
from forgectl.protocol.tree_sync import SYNC_TO_RELAY, Sync
from forgectl.relay import agents
from forgectl.sync import receiver
from forgectl.system.processes import boot_id
from forgectl.version import __version__
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection, peer_pid

GONE_SECONDS = 5.0
LONGEST_SILENCE = 600.0
"""Seconds without a request after which a relay ends: its launcher may have gone without closing the connection."""


class Streams:
    """Standard input and output with the methods of a socket that `Connection` uses."""

    def __init__(self) -> None:
        self._timeout: float | None = None

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def recv(self, most: int) -> bytes:
        if self._timeout is not None and not select.select([0], [], [], self._timeout)[0]:
            raise TimeoutError("the other end sends nothing")
        return os.read(0, most)

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def close(self) -> None:
        os.close(1)


class Relay:
    """Serves one connection."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.line = Connection(cast("socket.socket", Streams()), (*LAUNCHER_TO_RELAY, *SYNC_TO_RELAY))
        self._listeners: list[socket.socket] = []
        self._answers: dict[type, Callable[[Any], Any]] = {
            GetFacts: lambda r: facts.report(self._root, r),
            Examine: lambda r: examine(self._root, r, addresses=facts.dialled_at(), machine=boot_id()),
            ListenOn: self._listen,
            DialOut: lambda r: Dialled(reach.dial_all(r.targets)),
            StartAgent: lambda r: AgentStarted(agents.start(r.config)),
        }

    def serve(self) -> None:
        """Answer requests until the other end hangs up, or until it asks for the agent: then copy bytes.

        Raises TimeoutError, ConnectionError and ProtocolError.
        """
        self.line.send(RelayReady(__version__, os.getpid()))
        while (request := self.line.receive(LONGEST_SILENCE)) is not None:
            if isinstance(request, ReachAgent):
                agent = agents.reach(Path(request.socket))
                if agent is not None:
                    self.line.send(AgentReached(peer_pid(agent)))
                    self._copy(agent)
                    return
                self.line.send(NoAgent())
                continue
            if isinstance(request, Sync):
                receiver.receive(self.line, request, self._root)
                continue
            try:
                self.line.send(self._answers[type(request)](request))
            except ForgeError as e:
                self.line.send(Refusal.of(e))

    def _listen(self, request: ListenOn) -> Listening:
        self._listeners, ports = reach.listen_on(request.addresses)
        return Listening(ports)

    def _copy(self, agent: socket.socket) -> None:
        """Copy bytes to and from the agent until it hangs up; the process exits when the launcher does."""
        for listener in self._listeners:
            listener.close()
        agent.settimeout(None)
        agent.sendall(self.line.take_buffered(1 << 24))

        def to_agent() -> None:
            try:
                while data := os.read(0, 1 << 16):
                    agent.sendall(data)
            finally:
                os._exit(0)  # the launcher hung up; its agent lives on

        threading.Thread(target=to_agent, daemon=True).start()
        streams, pidfd = Streams(), agents.watch(agent)
        while data := agent.recv(1 << 16):
            streams.sendall(data)
        if pidfd is not None:  # the launcher takes the end of its connection for the end of the agent: wait for that
            select.select([pidfd], [], [], GONE_SECONDS)


def main(root: str) -> None:
    """Serve this process's standard streams."""
    try:
        Relay(Path(root)).serve()
    except (ConnectionError, TimeoutError, ProtocolError):
        os._exit(1)
    os._exit(0)
