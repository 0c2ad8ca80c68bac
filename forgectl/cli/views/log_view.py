"""Shows the logs of a run, or of some of its meshes: all that exists, or until they have ended."""

from __future__ import annotations

import contextlib
import heapq
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from forgectl.cli.address import no_rank
from forgectl.cli.find import Found
from forgectl.cli.outcome import exit_code, outcome
from forgectl.cli.views import render
from forgectl.cli.views.hang_news import HangNews
from forgectl.cli.watch import RunWatch
from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.errors import NotFoundError
from forgectl.frozen import dataclass
from forgectl.log_output.log_stream import Chunk, LogSource, LogStream, read_all
from forgectl.log_output.log_writer import LogWriter
from forgectl.log_output.terminal_text import wants_color
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.protocol.control import BringLogs, FollowLogs, LogsHome

SLOW_SECONDS = 3.0
"""Time after which the user sees that logs are being fetched."""
BRING_SECONDS = 60.0
"""Further time after which the logs are shown as they are."""


@dataclass(frozen=True)
class LogView:
    """What of the logs to show, and how: options of `forgectl logs`. `generation` -1 is the previous one."""

    last: int | None
    since: float | None
    until: float | None
    grep: re.Pattern[bytes] | None
    generation: int | None
    times: bool
    prefix: bool


@dataclass(frozen=True)
class Selection:
    """Which ranks of a run to show."""

    found: tuple[Found, ...]
    ranks: frozenset[int] | None

    def ranks_of(self, mesh: str) -> list[frozenset[int] | None]:
        """The ranks of a mesh that are shown, as several sets; None stands for all."""
        of_mesh = [f for f in self.found if f.target is None or mesh in f.meshes]
        return [self.ranks if f.rank is None else f.ranks for f in of_mesh]

    def shows(self, mesh: str, rank: int) -> bool:
        """Whether this rank is shown."""
        return any(ranks is None or rank in ranks for ranks in self.ranks_of(mesh))

    @property
    def meshes(self) -> tuple[str, ...] | None:
        """The meshes that were named; None for the whole run."""
        if any(f.target is None for f in self.found):
            return None
        return tuple(dict.fromkeys(m for f in self.found for m in f.meshes))


def show_logs(run: RunDir, found: Sequence[Found], ranks: frozenset[int] | None, view: LogView, *, follow: bool) -> int:
    """Write logs to stdout: those of the current generation, and with `follow` those of later ones.

    Returns the exit code of what was followed, else 0. Raises NotFoundError for a rank or generation that does not
    exist.
    """
    terminal = sys.stdout.isatty()
    writer = LogWriter(
        sys.stdout.buffer, terminal=terminal, color=wants_color(sys.stdout), prefix=view.prefix, times=view.times
    )
    printer = _Printer(writer.write, view.grep, view.last)
    selection = Selection(tuple(found), ranks)
    if follow:
        return _follow(run, selection, view, printer, writer, terminal=terminal)
    absent = _fetch_logs(run, tuple(dict.fromkeys(m for f in found for m in f.meshes)))
    status = client.document(run)
    sources = _sources(run, status, selection, view.generation)
    _warn_of_missing(status, _shown(status, selection), absent)
    for sentence in HangNews().of(status, _shown(status, selection)):
        _print_notice(sentence)
    for chunk in read_all(sources, printer.last, since=view.since, until=view.until, terminal=terminal):
        printer.write(chunk)
    printer.caught_up()
    writer.end()
    return 0


class _Printer:
    """Writes chunks, or only the lines with a pattern. Then `last` counts those, so they are held back at first."""

    def __init__(self, write: Callable[[Chunk], None], grep: re.Pattern[bytes] | None, last: int | None) -> None:
        self._write = write
        self._grep = grep
        self._most = last
        self.busy = True  # whether there was something new at the last look
        self.last = last if grep is None else None  # how many lines of each log to read at all
        self._held: dict[LogSource, deque[Chunk]] | None = {} if grep is not None and last is not None else None

    def write(self, chunk: Chunk) -> None:
        """Write what of a chunk is wanted."""
        if self._grep is None:
            self._write(chunk)
            return
        for line in chunk.data.splitlines(keepends=True):
            if not self._grep.search(line.rstrip(b"\r\n")):
                continue
            found = Chunk(chunk.source, line, chunk.when)
            if self._held is None:
                self._write(found)
            else:
                self._held.setdefault(chunk.source, deque(maxlen=self._most)).append(found)

    def next_look(self) -> float | None:
        """When to look again, by the monotonic clock: at once while there is always more; None if that can wait."""
        return time.monotonic() if self.busy else None

    def caught_up(self) -> None:
        """Note that all that existed at the beginning has been read."""
        held, self._held = self._held, None
        for chunk in heapq.merge(*(held or {}).values(), key=lambda chunk: chunk.when):
            self._write(chunk)


def _shown(status: RunStatus, selection: Selection) -> tuple[str, ...]:
    return tuple(m.mesh for m in status.meshes if selection.ranks_of(m.mesh))


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


def _sources(run: RunDir, status: RunStatus, selection: Selection, generation: int | None) -> list[LogSource]:
    """The logs to show. Raises NotFoundError if a rank, or for all meshes the generation, does not exist."""
    meshes = [status.mesh(name) for name in _shown(status, selection)]
    _check_ranks(meshes, selection)
    found = [source for mesh in meshes for source in _sources_of(run, mesh, selection, generation)]
    if generation is not None and not found:
        wanted = f"generation {generation}" if generation >= 0 else "previous generation"
        present = ", ".join(f"{m.mesh} is in generation {m.generation}" for m in meshes)
        raise NotFoundError(f"there is no log of a {wanted}: {present}")
    return found


def _check_ranks(meshes: Sequence[MeshStatus], selection: Selection) -> None:
    """Raise NotFoundError for a rank that was named, but that none of the meshes has."""
    for mesh in meshes:
        for ranks in selection.ranks_of(mesh.mesh):
            missing = sorted((ranks or frozenset()) - {r.rank for m in meshes for r in m.ranks})
            if missing:
                raise no_rank(mesh.mesh, missing[0], mesh.desired)


def _sources_of(run: RunDir, mesh: MeshStatus, selection: Selection, generation: int | None) -> Iterable[LogSource]:
    number = mesh.generation - 1 if generation == -1 else generation
    for rank in mesh.ranks:
        if not selection.shows(mesh.mesh, rank.rank):
            continue
        if number in (None, mesh.generation):
            if rank.log:
                yield LogSource(f"{mesh.mesh}/{rank.rank}@{rank.host}", Path(rank.log))
        elif number is not None and (path := run.log(mesh.mesh, number, rank.rank)).exists():
            yield LogSource(f"{mesh.mesh}/{rank.rank}#{number}", path)  # it may have been on another host


def _follow(
    run: RunDir, selection: Selection, view: LogView, printer: _Printer, writer: LogWriter, *, terminal: bool
) -> int:
    named = selection.meshes
    stream = LogStream(terminal=terminal, merged=True)
    watch = RunWatch(run, logs=FollowLogs(named))
    last, since, hangs = printer.last, view.since, HangNews()
    for status in watch.steps(printer.next_look):
        if status is not None:
            for source in _sources(run, status, selection, None):
                stream.add(source, last, since=since)
            last = since = None  # later generations are shown from their beginning
        if not _print_new(stream, printer):
            printer.caught_up()
        for sentence in hangs.of(status, named) if status is not None else ():
            _print_notice(sentence)
        if named is not None and watch.status is not None and _are_over(watch.status, named):
            _fetch_logs(run, named)
            break
    stream.end()
    while not stream.done:
        _print_new(stream, printer)
    printer.caught_up()
    writer.end()
    status = watch.status
    assert status is not None, "its end was seen"
    sys.stdout.flush()
    render.stderr().print(render.plain(f"forgectl: {outcome(status, named)}"), style="dim")
    return exit_code(status, named)


def _print_new(stream: LogStream, printer: _Printer) -> bool:
    """Print what is new; whether anything was."""
    printer.busy = False
    for chunk in stream.poll():
        printer.busy = True
        printer.write(chunk)
    return printer.busy


def _are_over(status: RunStatus, meshes: Collection[str]) -> bool:
    return all(m.ended for m in status.meshes if m.mesh in meshes)
