"""Fetches the logs of ssh hosts: those of a generation when it is over, others while somebody follows or asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from forgectl.controller.agent_link import AgentLink, note
from forgectl.controller.host_claims import LOG_KEY, check_parts
from forgectl.controller.records import AgentLost, AgentUp, Happened
from forgectl.controller.run_dir import RunDir
from forgectl.protocol.supervision import LogAt, LogPart, LogParts, MeshGone, RankStarted, ReadLogs
from forgectl.system.files import open_to_write
from forgectl.system.log_cap import LogCap
from forgectl.system.log_times import SAMPLE, LogTimes, append_samples

ANSWER_SECONDS = 30.0
WAIT_SECONDS = 1.0
"""How long an agent may wait for new log data before it answers that there is none."""
REST_SECONDS = 0.5
"""The pause before a host that could not be asked is asked again."""
CLOCKS_AGREE = 1.0
"""Seconds by which a host's clock may differ before the times of its logs are corrected for it."""
LATEST = 253402300799 * 10**9
"""The last time that a date can have, in nanoseconds."""
AT_ONCE = 256
"""Most logs in one request."""
MOST_LOG = 1 << 40
"""Most bytes of a log that are fetched, holes included: the rest stays on its host. Every tool can handle 1 TiB."""


@dataclass
class _Log:
    """One rank's log on an ssh host, and how much of it is here."""

    host: str
    mesh: str
    generation: int
    rank: int
    path: Path  # on this machine
    offset: int = 0
    final: bool = False  # nothing more will be written
    end: int | None = None  # its size when it was final; a larger one reported later is ignored, so that fetching ends
    complete: bool = False  # nothing more will be fetched
    timed: tuple[int, int] = (0, 0)  # its last sample here, as in `system.log_times`

    @property
    def key(self) -> LOG_KEY:
        return self.mesh, self.generation, self.rank


class LogFetcher:
    """Fetches all remote logs of a run. `take` gets each record of an ssh host; only hosts with changes are asked."""

    def __init__(self, run_dir: RunDir, limit: int, follow: Callable[[], Collection[str] | None]) -> None:
        self._dir = run_dir
        self._links: dict[str, AgentLink] = {}
        self._cap = LogCap(limit)
        self._followed = follow  # the meshes that somebody follows; None for all
        self._logs: defaultdict[str, dict[LOG_KEY, _Log]] = defaultdict(dict)  # by host
        self._has_changes = asyncio.Event()
        self._changed: set[str] = set()  # hosts that may have more to fetch than when they were last checked
        self._resting: set[str] = set()  # hosts that could not be asked just now
        self.fetched = 0  # bytes

    def attach(self, links: Iterable[AgentLink]) -> None:
        """Set the links to agents; those of ssh hosts are used."""
        self._links = {link.name: link for link in links if not link.host.plan.local}

    def take(self, record: Happened | AgentUp | AgentLost) -> None:
        """Note what a record of an ssh host means for its logs."""
        if isinstance(record, AgentUp):  # it may have come back, with logs of before
            self._mark_changed(record.host)
            return
        if isinstance(record, AgentLost):  # its ranks ended with it; the next agent finds their logs
            self._end(record.host, self._logs[record.host].values())
            return
        what = record.what
        if isinstance(what, RankStarted):
            path = self._dir.log(what.mesh, what.generation, what.rank)
            key = (what.mesh, what.generation, what.rank)
            if key not in self._logs[record.host]:
                self._logs[record.host][key] = _Log(record.host, *key, path, _size(path), timed=LogTimes(path).last())
        elif isinstance(what, MeshGone):
            gone = (what.mesh, what.generation)
            logs = self._logs[record.host].values()
            self._end(record.host, (log for log in logs if (log.mesh, log.generation) == gone))
        self._mark_changed(record.host)

    def _end(self, host: str, logs: Iterable[_Log]) -> None:
        for log in logs:
            log.final = True
        self._mark_changed(host)

    def wake(self) -> None:
        """Check every host again: somebody has begun to follow logs."""
        self._mark_changed(*self._links)

    def _mark_changed(self, *hosts: str) -> None:
        """Check these hosts again: there may be more to fetch from them."""
        self._changed.update(hosts)
        self._has_changes.set()

    def has_all(self, host: str) -> bool:
        """Whether all final logs of a host have been fetched."""
        return all(log.complete or not log.final for log in self._logs[host].values())

    async def run(self) -> None:
        """Fetch until cancelled, from all hosts at once."""
        busy: dict[str, asyncio.Task[bool]] = {}
        self.wake()
        try:
            while True:
                self._has_changes.clear()
                for host in (self._changed & self._links.keys()) - busy.keys() - self._resting:
                    self._changed.discard(host)
                    if wanted := self._wanted(host):
                        busy[host] = asyncio.create_task(self._fetch_once(host, wanted, WAIT_SECONDS))
                change = asyncio.create_task(self._has_changes.wait())
                done, _ = await asyncio.wait({change, *busy.values()}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
                for host in [h for h, task in busy.items() if task in done]:
                    if not _succeeded(busy.pop(host)):
                        self._rest(host)
                    self._changed.add(host)
        finally:
            for task in busy.values():
                task.cancel()

    def _rest(self, host: str) -> None:
        """Leave a host that could not be asked alone for REST_SECONDS."""

        def again() -> None:
            self._resting.discard(host)
            self._mark_changed(host)

        self._resting.add(host)
        asyncio.get_running_loop().call_later(REST_SECONDS, again)

    def _wanted(self, host: str) -> list[_Log]:
        if self._links[host].host.given_up:
            return []
        followed = self._followed()
        return [
            log
            for log in self._logs[host].values()
            if not log.complete and (log.final or followed is None or log.mesh in followed)
        ]

    async def bring(self, meshes: Collection[str]) -> tuple[str, ...]:
        """Fetch what ranks of these meshes have written so far; returns the hosts that could not be asked."""
        hosts = sorted(host for host in self._logs if self._incomplete(host, meshes))
        results = await asyncio.gather(*(self._bring(host, meshes) for host in hosts))
        return tuple(host for host, done in zip(hosts, results, strict=True) if not done)

    def _incomplete(self, host: str, meshes: Collection[str]) -> list[_Log]:
        return [log for log in self._logs[host].values() if log.mesh in meshes and not log.complete]

    async def _bring(self, host: str, meshes: Collection[str]) -> bool:
        targets: dict[LOG_KEY, int] = {}  # the size of each log in the first answer
        left = self._incomplete(host, meshes)
        while left:
            if not await self._fetch_once(host, left, 0.0, targets):
                return False
            left = [log for log in left if not log.complete and log.offset < targets.get(log.key, 1 << 62)]
        return True

    async def _fetch_once(
        self, host: str, logs: list[_Log], wait: float, sizes: dict[LOG_KEY, int] | None = None
    ) -> bool:
        """Send one request and store the answer; False if the host does not answer, or sends nothing that is due."""
        asked, of_host = logs[:AT_ONCE], self._logs[host]
        for log in asked:  # if there are more logs than AT_ONCE, the others come first the next time
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
                _store_times(log, part, _ahead(answer.now, time.time()))
                _store(log, part, is_final=log.key in final)
                self.fetched += len(part.data)
            if sizes is not None:
                sizes.setdefault(log.key, part.size)
        self._cap.check([log.path for log in asked])
        self._links[host].push()  # a Quit may have waited for these logs
        due = [
            log
            for log in asked
            if not log.complete and (log.key in final or log.offset < (sizes or {}).get(log.key, 0))
        ]
        return not due or any(log.complete or log.offset > before[log.key] for log in asked)


def _succeeded(task: asyncio.Task[bool]) -> bool:
    """The result of a fetch; False, and a line in the log, if it raised: it must not end the others."""
    try:
        return task.result()
    except Exception:
        note(traceback.format_exc())
        return False


def _store(log: _Log, part: LogPart, *, is_final: bool) -> None:
    """Write a part at its offset. A full disk here loses the part, but does not end the run."""
    data = base64.b64decode(part.data)
    if part.size > MOST_LOG:
        log.complete = True
        note(f"{log.path} has more than {MOST_LOG} bytes on host {log.host}: the rest stays there")
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
        log.complete = log.offset >= log.end


def _ahead(theirs: float, ours: float) -> int:
    """By how much a host's clock is ahead, in nanoseconds; 0 if it is less than the answer may have taken."""
    return int((theirs - ours) * 1e9) if abs(theirs - ours) > CLOCKS_AGREE else 0


def _store_times(log: _Log, part: LogPart, ahead: int) -> None:
    """Write the times of a part down, by our clock; a full disk loses them."""
    samples = b""
    for size, when in SAMPLE.iter_unpack(base64.b64decode(part.times)):
        last, latest = log.timed
        if size > last:
            log.timed = size, max(latest, min(max(0, when - ahead), LATEST))
            samples += SAMPLE.pack(*log.timed)
    if samples:
        with contextlib.suppress(OSError):
            log.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            append_samples(log.path, samples)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
