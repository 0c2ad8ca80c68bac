"""Agents that start nothing: they take a controller's commands and report what a host's agent would."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from measure import BenchmarkError

NO_PID = 1 << 22
"""Beyond all pids of Linux: nobody waits for the end of such a process."""
MAX_LINE = 16 << 20


class FakeAgents:
    """One for each host of a run with one mesh of `each` ranks on every host, all in this event loop."""

    def __init__(self, sockets: list[Path], hosts: list[str], mesh: str, each: int, version: str) -> None:
        self.bytes: dict[str, int] = {}  # kind of message → how many bytes of it came
        self.counts: dict[str, int] = {}
        self._sockets, self._hosts = sockets, hosts
        self._mesh, self._each, self._version = mesh, each, version
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._news = asyncio.Event()

    async def listen(self) -> None:
        """Have every agent listen."""
        for index, path in enumerate(self._sockets):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int = index) -> None:
                await self._serve(index, reader, writer)

            self._servers.append(await asyncio.start_unix_server(serve, path, limit=MAX_LINE))

    async def until(self, kind: str, count: int, seconds: float = 300.0) -> None:
        """Wait until so many messages of a kind have come; BenchmarkError where they do not."""
        deadline = time.monotonic() + seconds
        while self.counts.get(kind, 0) < count:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise BenchmarkError(f"{self.counts.get(kind, 0)} of {count} {kind} came in {seconds:.0f} s") from None

    async def close(self) -> None:
        """End all connections."""
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agent = _Agent(index, self._hosts[index], self._mesh, self._each, self._version, writer)
        self._writers.append(writer)
        while line := await reader.readline():
            kind = agent.obey(line)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.bytes[kind] = self.bytes.get(kind, 0) + len(line)
            self._news.set()


class _Agent:
    """One connection of one agent."""

    def __init__(self, index: int, host: str, mesh: str, each: int, version: str, writer: asyncio.StreamWriter) -> None:
        self._index, self._host, self._mesh, self._version = index, host, mesh, version
        self._ranks = range(index * each, (index + 1) * each)
        self._writer = writer
        self._seq = 0

    def obey(self, line: bytes) -> str:
        """Answer a command; the kind of message that it was."""
        kind = line[9 : line.index(b'"', 9)].decode()  # after {"type":"
        if kind == "Hello":
            welcome = {"version": self._version, "host": self._host, "pid": NO_PID + 1 + self._index, "boot_id": "b"}
            self._say("Welcome", welcome)
            self._say("Synced", {})
        elif kind == "Ping":
            self._say("Pong", {})
        elif kind == "Prepare":
            self._report("Prepared", {})
        elif kind == "OpenStore":
            self._report("StoreOpened", {"generation": 0, "port": 4000})
        elif kind == "Start":
            for rank in self._ranks:
                started = {"pid": NO_PID + rank, "start_time": 1, "log": f"/tmp/logs/{self._mesh}/0/rank-{rank}.log"}
                self._report("RankStarted", {"generation": 0, "rank": rank, **started})
        elif kind == "Stop":
            for rank in self._ranks:
                ended = {"exit_code": None, "signal": 15, "asked": True, "log_tail": ["step 1", "step 2"]}
                self._report("RankExited", {"generation": 0, "rank": rank, **ended})
            self._report("MeshGone", {"generation": 0})
        return kind

    def _report(self, kind: str, what: dict[str, Any]) -> None:
        self._seq += 1
        self._say("Event", {"seq": self._seq, "what": {"type": kind, "mesh": self._mesh, **what}})

    def _say(self, kind: str, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps({"type": kind, **message}).encode() + b"\n")
