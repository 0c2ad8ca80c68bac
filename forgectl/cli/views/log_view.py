"""Shows the logs of a mesh, or of a service's meshes: all that exists, or until they have ended."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from pathlib import Path

from forgectl.cli.views import render
from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.errors import NotFoundError
from forgectl.log_output.log_stream import LogSource, LogStream, read_all
from forgectl.log_output.log_writer import LogWriter
from forgectl.log_output.terminal_text import wants_color
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.protocol.control import BringLogs, FollowLogs, LogsHome
from forgectl.wire.unix_sockets import Connection

IDLE_SECONDS = 0.05
"""The pause after nothing new was found; looking again takes one system call per log."""

SLOW_SECONDS = 3.0
"""Time after which the user sees that logs are being fetched."""
BRING_SECONDS = 60.0
"""Further time after which the logs are shown as they are."""
STATE_SECONDS = 0.5
"""How often a follower asks for the mesh's state."""


def show_logs(
    run: RunDir, meshes: tuple[str, ...], *, follow: bool, last: int | None, ranks: frozenset[int] | None, prefix: bool
) -> None:
    """Write logs to stdout: those of the current generation, and with `follow` those of later ones.

    Raises NotFoundError for a rank that the mesh does not have.
    """
    terminal = sys.stdout.isatty()
    writer = LogWriter(sys.stdout.buffer, terminal=terminal, color=wants_color(sys.stdout), prefix=prefix)
    absent = () if follow else _fetch_logs(run, meshes)
    status = client.document(run)
    sources = _sources(status, meshes, ranks)
    if follow:
        _follow(run, meshes, LogStream(terminal=terminal), writer, last, ranks)
        return
    _warn_of_missing(status, meshes, absent)
    for chunk in read_all(sources, last, terminal=terminal):
        writer.write(chunk)


def _fetch_logs(run: RunDir, meshes: tuple[str, ...]) -> tuple[str, ...]:
    """Fetch what ranks on ssh hosts have written so far; returns the hosts whose logs could not be fetched."""
    if not any(not host.local for host in run.read_plan().hosts):
        return ()
    line = client.connect(run)
    if line is None:
        return ()  # all logs were fetched when the run ended
    with contextlib.closing(line):
        line.send(BringLogs(meshes))
        for patience, news in (
            (SLOW_SECONDS, "fetching logs from hosts"),
            (BRING_SECONDS, "some logs have not come yet"),
        ):
            try:
                answer = line.receive(patience)
            except TimeoutError:
                _print_notice(news)
            else:
                return answer.without if isinstance(answer, LogsHome) else ()
    return ()


def _warn_of_missing(status: RunStatus, meshes: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """Print the hosts of shown ranks from which lines may be missing."""
    shown = {rank.host for name in meshes for rank in status.mesh(name).ranks}
    lost = [h.name for h in status.hosts if h.state == "lost" and h.name in shown]
    away = [name for name in absent if name in shown and name not in lost]
    if lost:
        _print_notice(f"lost, so that last lines may be missing: {', '.join(lost)}")
    if away:
        _print_notice(f"not reached just now, so that lines may be missing: {', '.join(away)}")


def _print_notice(text: str) -> None:
    render.stderr().print(render.plain(f"forgectl: {text}"))


class _Follower:
    """Asks a run's controller to fetch logs, and asks again when another controller takes over."""

    def __init__(self, run: RunDir, meshes: tuple[str, ...]) -> None:
        self._run = run
        self._request = FollowLogs(meshes)
        self._remote = any(not host.local for host in run.read_plan().hosts)
        self._line: Connection | None = None

    def keep(self) -> None:
        """Ask the controller, unless the connection on which it was asked still stands."""
        if self._line is not None and select.select([self._line.socket], [], [], 0)[0]:
            self._line.close()
            self._line = None
        if self._remote and self._line is None:
            self._line = client.connect(self._run)
            if self._line is not None:
                with contextlib.suppress(ConnectionError):
                    self._line.send(self._request)


def _sources(status: RunStatus, meshes: tuple[str, ...], ranks: frozenset[int] | None) -> list[LogSource]:
    return [source for name in meshes for source in _sources_of(status.mesh(name), ranks)]


def _sources_of(mesh: MeshStatus, ranks: frozenset[int] | None) -> list[LogSource]:
    known = {r.rank for r in mesh.ranks}
    if ranks is not None and (missing := sorted(ranks - known)):
        raise NotFoundError(f"mesh {mesh.mesh!r} has no rank {missing[0]}", hint=f"it has ranks 0 to {max(known)}")
    return [
        LogSource(f"{mesh.mesh}/{r.rank}@{r.host}", Path(r.log))
        for r in mesh.ranks
        if r.log and (ranks is None or r.rank in ranks)
    ]


def _follow(
    run: RunDir,
    meshes: tuple[str, ...],
    stream: LogStream,
    writer: LogWriter,
    last: int | None,
    ranks: frozenset[int] | None,
) -> None:
    over = False
    follower = _Follower(run, meshes)
    asked = float("-inf")
    while not (over and stream.done):
        if not over and time.monotonic() - asked >= STATE_SECONDS:
            asked = time.monotonic()
            follower.keep()
            status = client.document(run)
            for source in _sources(status, meshes, ranks):
                stream.add(source, last)
            last = None  # later generations are shown from their beginning
            over = all(status.mesh(name).ended for name in meshes)
            if over:
                stream.end()
        idle = True
        for chunk in stream.poll():
            idle = False
            writer.write(chunk)
        if idle and not (over and stream.done):
            time.sleep(IDLE_SECONDS)
