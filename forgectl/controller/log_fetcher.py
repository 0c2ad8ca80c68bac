"""Brings the logs of ssh hosts home: each generation's when it is over, others while somebody follows or asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from forgectl.controller.agent_link import AgentLink, note
from forgectl.controller.host_claims import LOG_KEY, check_parts
from forgectl.controller.records import AgentLost, Happened
from forgectl.controller.run_dir import RunDir
from forgectl.protocol.supervision import LogAt, LogPart, LogParts, MeshGone, RankStarted, ReadLogs
from forgectl.system.files import open_to_write
from forgectl.system.log_cap import LogCap

ANSWER_SECONDS = 30.0
WAIT_SECONDS = 1.0
"""How long an agent may wait for news before it answers that there are none."""
REST_SECONDS = 0.5
"""How long a host is left alone that could not be asked."""
AT_ONCE = 256
"""Logs that one question asks for."""
MOST_LOG = 1 << 40
"""Bytes of a log that come home, holes included: what follows stays on its host. 1 TiB is a file that no tool minds."""


@dataclass
class _Log:
    """One rank's log on an ssh host, and how far it is here."""

    host: str
    mesh: str
    generation: int
    rank: int
    path: Path  # here
    offset: int = 0
    final: bool = False  # nothing more will be written
    end: int | None = None  # its size, once it is final: a host that names a larger one later is not asked for ever
    home: bool = False  # nothing more is to be fetched

    @property
    def key(self) -> LOG_KEY:
        return self.mesh, self.generation, self.rank


class LogFetcher:
    """All remote logs of a run. It is shown every record, and looks at the hosts of which there is news."""

    def __init__(self, run_dir: RunDir, limit: int, follow: Callable[[], Collection[str] | None]) -> None:
        self._dir = run_dir
        self._links: dict[str, AgentLink] = {}
        self._cap = LogCap(limit)
        self._followed = follow  # the meshes that somebody follows; None: all
        self._logs: defaultdict[str, dict[LOG_KEY, _Log]] = defaultdict(dict)  # by host
        self._news = asyncio.Event()
        self._stirred: set[str] = set()  # hosts from which more may be wanted than when they were looked at
        self._resting: set[str] = set()
        self.fetched = 0  # bytes

    def attach(self, links: Iterable[AgentLink]) -> None:
        """Know the hosts that are reached by ssh."""
        self._links = {link.name: link for link in links if not link.host.plan.local}

    def take(self, record: Happened | AgentLost) -> None:
        """Note what a record of an ssh host says of its logs."""
        if isinstance(record, AgentLost):  # its ranks ended with it; the next agent finds their logs
            self._end(record.host, self._logs[record.host].values())
            return
        what = record.what
        if isinstance(what, RankStarted):
            path = self._dir.log(what.mesh, what.generation, what.rank)
            key = (what.mesh, what.generation, what.rank)
            if key not in self._logs[record.host]:
                self._logs[record.host][key] = _Log(record.host, *key, path, _size(path))
        elif isinstance(what, MeshGone):
            gone = (what.mesh, what.generation)
            logs = self._logs[record.host].values()
            self._end(record.host, (log for log in logs if (log.mesh, log.generation) == gone))
        self._stir(record.host)

    def _end(self, host: str, logs: Iterable[_Log]) -> None:
        for log in logs:
            log.final = True
        self._stir(host)

    def wake(self) -> None:
        """Something has changed of what is wanted of every host."""
        self._stir(*self._links)

    def _stir(self, *hosts: str) -> None:
        """Something has changed of what is wanted of these."""
        self._stirred.update(hosts)
        self._news.set()

    def is_home(self, host: str) -> bool:
        """Whether nothing that is final is still to be fetched from a host."""
        return all(log.home or not log.final for log in self._logs[host].values())

    async def run(self) -> None:
        """Fetch until cancelled, from all hosts at once."""
        busy: dict[str, asyncio.Task[bool]] = {}
        self.wake()
        try:
            while True:
                self._news.clear()
                for host in (self._stirred & self._links.keys()) - busy.keys() - self._resting:
                    self._stirred.discard(host)
                    if wanted := self._wanted(host):
                        busy[host] = asyncio.create_task(self._round(host, wanted, WAIT_SECONDS))
                news = asyncio.create_task(self._news.wait())
                done, _ = await asyncio.wait({news, *busy.values()}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                for host in [h for h, task in busy.items() if task in done]:
                    if not _well(busy.pop(host)):
                        self._rest(host)
                    self._stirred.add(host)
        finally:
            for task in busy.values():
                task.cancel()

    def _rest(self, host: str) -> None:
        """The host could not be asked just now."""

        def again() -> None:
            self._resting.discard(host)
            self._stir(host)

        self._resting.add(host)
        asyncio.get_running_loop().call_later(REST_SECONDS, again)

    def _wanted(self, host: str) -> list[_Log]:
        if self._links[host].host.given_up:
            return []
        followed = self._followed()
        return [
            log
            for log in self._logs[host].values()
            if not log.home and (log.final or followed is None or log.mesh in followed)
        ]

    async def bring(self, meshes: Collection[str]) -> tuple[str, ...]:
        """Fetch what ranks of these meshes have written until now; the hosts that could not be asked."""
        hosts = sorted(host for host in self._logs if self._not_home(host, meshes))
        results = await asyncio.gather(*(self._bring(host, meshes) for host in hosts))
        return tuple(host for host, well in zip(hosts, results, strict=True) if not well)

    def _not_home(self, host: str, meshes: Collection[str]) -> list[_Log]:
        return [log for log in self._logs[host].values() if log.mesh in meshes and not log.home]

    async def _bring(self, host: str, meshes: Collection[str]) -> bool:
        targets: dict[LOG_KEY, int] = {}  # how long each was when it was first looked at
        left = self._not_home(host, meshes)
        while left:
            if not await self._round(host, left, 0.0, targets):
                return False
            left = [log for log in left if not log.home and log.offset < targets.get(log.key, 1 << 62)]
        return True

    async def _round(self, host: str, logs: list[_Log], wait: float, sizes: dict[LOG_KEY, int] | None = None) -> bool:
        """One question and its answer; False where the host does not answer, or not with what is due."""
        asked, of_host = logs[:AT_ONCE], self._logs[host]
        for log in asked:  # of more than that, the others come first the next time
            of_host[log.key] = of_host.pop(log.key)
        final = {log.key for log in asked if log.final}
        before = {log.key: log.offset for log in asked}
        places = tuple(LogAt(*log.key, log.offset) for log in asked)
        answer = await self._links[host].ask(
            ReadLogs(places, 0.0 if final else wait),
            LogParts,
            ANSWER_SECONDS,
            lambda parts: check_parts(of_host, parts),
        )
        if answer is None:
            return False
        for part in answer.parts:
            log = of_host[part.at.mesh, part.at.generation, part.at.rank]
            if log.offset == part.at.offset:
                _store(log, part, is_final=log.key in final)
                self.fetched += len(part.data)
            if sizes is not None:
                sizes.setdefault(log.key, part.size)
        self._cap.check([log.path for log in asked])
        self._links[host].push()  # it may have waited for its logs before it quits
        due = [
            log for log in asked if not log.home and (log.key in final or log.offset < (sizes or {}).get(log.key, 0))
        ]
        return not due or any(log.home or log.offset > before[log.key] for log in asked)


def _well(task: asyncio.Task[bool]) -> bool:
    """Whether a round went well; one that raised must not end the others."""
    try:
        return task.result()
    except Exception:
        note(traceback.format_exc())
        return False


def _store(log: _Log, part: LogPart, *, is_final: bool) -> None:
    """Write a part where it belongs. A full disk here loses it, and no run."""
    data = base64.b64decode(part.data)
    if part.size > MOST_LOG:
        log.home = True
        note(f"{log.path} is longer on host {log.host} than {MOST_LOG} bytes: the rest stays there")
        return
    with contextlib.suppress(OSError):
        log.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_to_write(log.path)
        try:
            view, at = memoryview(data), part.offset
            while view:
                written = os.pwrite(fd, view, at)
                view, at = view[written:], at + written
            if part.offset + len(data) > os.fstat(fd).st_size:
                os.ftruncate(fd, part.offset + len(data))
        finally:
            os.close(fd)
    log.offset = part.offset + len(data)
    if is_final:
        log.end = part.size if log.end is None else log.end
        log.home = log.offset >= log.end


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
