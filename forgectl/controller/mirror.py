"""Brings the logs of ssh hosts home: each generation's when it is over, others while somebody follows or asks."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgectl.controller.links import Link
from forgectl.controller.records import AgentLost, Happened
from forgectl.controller.rundir import RunDir
from forgectl.log_cap import LogCap
from forgectl.protocol import HAPPENINGS, LogAt, LogPart, LogParts, MeshGone, RankStarted, ReadLogs, unpack

ANSWER_SECONDS = 30.0
WAIT_SECONDS = 1.0
"""How long an agent may wait for news before it answers that there are none."""
REST_SECONDS = 0.5
"""How long a host is left alone that could not be asked."""
AT_ONCE = 256
"""Logs that one question asks for."""


@dataclass
class _Log:
    """One rank's log on an ssh host, and how far it is here."""

    host: str
    mesh: str
    generation: int
    rank: int
    path: Path  # at home
    offset: int = 0
    final: bool = False  # nothing more will be written
    home: bool = False  # nothing more is to be fetched


class Mirror:
    """All remote logs of a run. Told of every record; wakes for what must come home."""

    def __init__(self, run_dir: RunDir, limit: int, follow: Callable[[], Collection[str] | None]) -> None:
        self._dir = run_dir
        self._links: dict[str, Link] = {}
        self._cap = LogCap(limit)
        self._followed = follow  # the meshes that somebody follows; None: all
        self._logs: dict[tuple[str, int, int], _Log] = {}
        self._news = asyncio.Event()
        self._resting: set[str] = set()
        self.fetched = 0  # bytes

    def attach(self, links: Iterable[Link]) -> None:
        """Know the hosts that are reached by ssh."""
        self._links = {link.name: link for link in links if not link.host.plan.local}

    def take(self, record: Happened | AgentLost) -> None:
        """Note what a record of an ssh host says of its logs."""
        if isinstance(record, AgentLost):  # its ranks ended with it; the next agent finds their logs
            self._end(log for log in self._logs.values() if log.host == record.host)
            return
        what: Any = unpack(record.what, HAPPENINGS)
        if isinstance(what, RankStarted):
            path = self._dir.log(what.mesh, what.generation, what.rank)
            key = (what.mesh, what.generation, what.rank)
            if key not in self._logs:
                self._logs[key] = _Log(record.host, *key, path, _size(path))
        elif isinstance(what, MeshGone):
            gone = (record.host, what.mesh, what.generation)
            self._end(log for log in self._logs.values() if (log.host, log.mesh, log.generation) == gone)
        self.wake()

    def _end(self, logs: Iterable[_Log]) -> None:
        for log in logs:
            log.final = True
        self.wake()

    def wake(self) -> None:
        """Something has changed of what is wanted."""
        self._news.set()

    def is_home(self, host: str) -> bool:
        """Whether nothing that is final is still to be fetched from a host."""
        return all(log.home or not log.final for log in self._logs.values() if log.host == host)

    async def run(self) -> None:
        """Fetch until cancelled, from all hosts at once."""
        busy: dict[str, asyncio.Task[bool]] = {}
        try:
            while True:
                self._news.clear()
                for host in self._links.keys() - busy.keys() - self._resting:
                    if wanted := self._wanted(host):
                        busy[host] = asyncio.create_task(self._round(host, wanted, WAIT_SECONDS))
                news = asyncio.create_task(self._news.wait())
                done, _ = await asyncio.wait({news, *busy.values()}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                for host in [h for h, task in busy.items() if task in done]:
                    if not busy.pop(host).result():
                        self._rest(host)
        finally:
            for task in busy.values():
                task.cancel()

    def _rest(self, host: str) -> None:
        """The host could not be asked just now."""

        def again() -> None:
            self._resting.discard(host)
            self.wake()

        self._resting.add(host)
        asyncio.get_running_loop().call_later(REST_SECONDS, again)

    def _wanted(self, host: str) -> list[_Log]:
        if self._links[host].host.given_up:
            return []
        followed = self._followed()
        return [
            log
            for log in self._logs.values()
            if log.host == host and not log.home and (log.final or followed is None or log.mesh in followed)
        ]

    async def bring(self, meshes: Collection[str]) -> tuple[str, ...]:
        """Fetch what ranks of these meshes have written until now; the hosts that could not be asked."""
        hosts = {log.host for log in self._logs.values() if log.mesh in meshes and not log.home}
        results = await asyncio.gather(*(self._bring(host, meshes) for host in sorted(hosts)))
        return tuple(host for host, well in zip(sorted(hosts), results, strict=True) if not well)

    async def _bring(self, host: str, meshes: Collection[str]) -> bool:
        targets: dict[tuple[str, int, int], int] = {}  # how long each was when it was first looked at
        left = [log for log in self._logs.values() if log.host == host and log.mesh in meshes and not log.home]
        while left:
            if not await self._round(host, left, 0.0, targets):
                return False
            left = [log for log in left if log.offset < targets.get((log.mesh, log.generation, log.rank), 1 << 62)]
        return True

    async def _round(
        self, host: str, logs: list[_Log], wait: float, sizes: dict[tuple[str, int, int], int] | None = None
    ) -> bool:
        """One question and its answer; False where the host does not answer."""
        asked = logs[:AT_ONCE]
        for each in asked:  # of more than that, the others come first the next time
            key = (each.mesh, each.generation, each.rank)
            self._logs[key] = self._logs.pop(key)
        wait = 0.0 if any(log.final for log in asked) else wait
        places = tuple(LogAt(log.mesh, log.generation, log.rank, log.offset) for log in asked)
        answer = await self._links[host].ask(ReadLogs(places, wait), LogParts, ANSWER_SECONDS)
        if answer is None:
            return False
        for part in answer.parts:
            key = (part.at.mesh, part.at.generation, part.at.rank)
            log = self._logs.get(key)
            if log is not None and log.offset == part.at.offset:
                _store(log, part)
                self.fetched += len(part.data)
            if sizes is not None:
                sizes.setdefault(key, part.size)
        self._cap.check([log.path for log in asked])
        self._links[host].push()  # it may have waited for its logs before it quits
        return True


def _store(log: _Log, part: LogPart) -> None:
    """Write a part where it belongs. A full disk at home loses it, and no run."""
    with contextlib.suppress(OSError, binascii.Error):
        data = base64.b64decode(part.data, validate=True)
        log.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(log.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view, at = memoryview(data), part.offset
            while view:
                written = os.pwrite(fd, view, at)
                view, at = view[written:], at + written
            if part.offset + len(data) > os.fstat(fd).st_size:
                os.ftruncate(fd, part.offset + len(data))
        finally:
            os.close(fd)
    log.offset = _end(part)
    if log.final and log.offset >= part.size:
        log.home = True


def _end(part: LogPart) -> int:
    """Where the part ends, in the log."""
    padding = len(part.data) - len(part.data.rstrip("="))
    return part.offset + len(part.data) // 4 * 3 - padding


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
