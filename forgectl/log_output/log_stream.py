"""Follows the logs of many ranks at once, in bounded memory, and returns whole lines."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgectl.log_output.log_file import CHUNK, LogFile, Read
from forgectl.system.log_times import LogTimes

LONGEST_LINE = 64 * 1024
"""Most bytes of an unfinished line that are kept; a longer one is returned in parts."""

SMALL = 16 * 1024
"""Least bytes of one read, where so many logs are merged that larger ones would take much memory."""

PATIENCE = 1.0
"""Seconds after which an unfinished line is returned as it is."""

PROGRESS_EVERY = 5.0
"""Seconds between two states of one progress bar on a terminal."""


@dataclass(frozen=True)
class LogSource:
    """A log and its label, for example "trainer/3@gpu01"."""

    label: str
    path: Path


@dataclass(frozen=True)
class Chunk:
    """Bytes of one log: whole lines, except for a last line that is too long or has not ended for a while.

    `when`: the unix time by which they were written; 0.0 unless the stream merges.
    """

    source: LogSource
    data: bytes
    when: float = 0.0


class LogStream:
    """The new output of all added logs, until they are ended and have been read to their ends.

    Without a terminal, the chunks of a source together are its log, byte for byte, plus a marker where a part was
    dropped. For a terminal, a line that carriage returns rewrite is returned now and then, as a line of its own.
    `most`: bytes of one read. `merged`: chunks come in the order of time, whichever log they are of, as far as hosts'
    clocks agree; only what is read later than it was written can come late.
    """

    def __init__(
        self,
        *,
        terminal: bool = False,
        most: int = CHUNK,
        merged: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal = terminal
        self._merged = merged
        self._most = most
        self._clock = clock
        self._logs: dict[LogSource, _FollowedLog] = {}
        self._newest: dict[str, LogSource] = {}

    def add(
        self,
        source: LogSource,
        last: int | None = None,
        *,
        since: float | None = None,
        until: float | None = None,
    ) -> None:
        """Follow one more log, from the beginning or from its `last` lines; it need not exist yet.

        Of what exists, lines written before `since` or after `until` are left out (unix times).

        An earlier log with the same label is ended: a rank's next generation begins when the previous one is gone.
        """
        before = self._newest.get(source.label)
        if source == before:
            return
        if before in self._logs:
            self._logs[before].file.stop_here()
        self._newest[source.label] = source
        file = LogFile(source.path, self._most)
        times = LogTimes(source.path) if self._merged else None
        log = self._logs[source] = _FollowedLog(file, self._terminal, self._clock, times)
        if since is not None or until is not None:
            file.keep_between(since, until)
        if last is not None:
            log.file.start_at_last(last)

    def end(self, sources: Iterable[LogSource] | None = None) -> None:
        """Note that nothing more will be written to these logs (None: all): each is dropped once it has been read."""
        for source in list(self._logs) if sources is None else sources:
            if source in self._logs:
                self._logs[source].file.stop_here()

    @property
    def done(self) -> bool:
        """Whether every log was ended and read to its end."""
        return not self._logs

    def poll(self) -> Iterator[Chunk]:
        """Read a bounded part of the new output of each log. If it yields nothing, the caller should wait a little."""
        if self._merged:
            yield from self._poll_merged()
            return
        for source, log in list(self._logs.items()):
            for data, _ in log.advance():
                yield Chunk(source, data)
            if log.file.at_end:
                self._logs.pop(source, None)

    def _poll_merged(self) -> Iterator[Chunk]:
        """A log that is not read to its present end holds back what others wrote later than what is read of it."""
        behind = True
        while behind:
            for source, log in self._logs.items():
                if not log.waiting:
                    log.waiting.extend(Chunk(source, data, when) for data, when in log.advance())
            behind = any(log.file.behind for log in self._logs.values())
            limit = min((log.when for log in self._logs.values() if log.file.behind), default=float("inf"))
            ready = heapq.merge(*(log.take(limit) for log in self._logs.values()), key=lambda chunk: chunk.when)
            for chunk in ready:
                behind = False
                yield chunk
            for source, log in list(self._logs.items()):
                if log.file.at_end and not log.waiting:
                    self._logs.pop(source, None)


def read_all(
    sources: Sequence[LogSource],
    last: int | None = None,
    *,
    since: float | None = None,
    until: float | None = None,
    terminal: bool = False,
) -> Iterator[Chunk]:
    """The present content of the logs, in the order of time; the other arguments are those of `LogStream.add`."""
    stream = LogStream(terminal=terminal, merged=True, most=max(SMALL, CHUNK // max(1, len(sources) // 16)))
    for source in sources:
        stream.add(source, last, since=since, until=until)
    stream.end()
    while not stream.done:
        yield from stream.poll()


class _FollowedLog:
    """One log, and its unfinished line."""

    def __init__(
        self, file: LogFile, terminal: bool, clock: Callable[[], float], times: LogTimes | None = None
    ) -> None:
        self.file = file
        self.when = 0.0  # by when what was read last had been written
        self.waiting: deque[Chunk] = deque()
        self._times = times
        self._terminal = terminal
        self._clock = clock
        self._partial = b""
        self._since = 0.0  # when the unfinished line began, by the clock
        self._shown = b""  # the state of the progress bar that was last returned, and when
        self._shown_at = float("-inf")
        self._open = False  # whether the output so far ends inside a line

    def take(self, limit: float) -> Iterator[Chunk]:
        """What waits and was written by `limit`, an unix time."""
        while self.waiting and self.waiting[0].when <= limit:
            yield self.waiting.popleft()

    def advance(self) -> Iterator[tuple[bytes, float]]:
        """Read once, and yield what is ready, with the unix time by which it was written (0.0 if that is not known)."""
        read = self.file.read()
        for data in self._about_loss(read):
            yield data, self.when
        if read.data and self._times is None:
            yield from ((data, 0.0) for data in self._take(read.data))
        elif read.data and self._times is not None:
            for piece, when in self._times.pieces(read.offset, read.data, self.file.written_at):
                self.when = max(self.when, when)
                yield from ((data, self.when) for data in self._take(piece))
        if self._partial:
            yield from ((data, self.when) for data in self._late())

    def _about_loss(self, read: Read) -> Iterator[bytes]:
        if read.dropped:
            yield from self._hand_on(self._partial)
            self._partial = b""
            yield from self._hand_on(b"\n" * self._open + _dropped(read.dropped))

    def _take(self, data: bytes) -> Iterator[bytes]:
        if not self._partial:
            self._since = self._clock()
        lines, newline, rest = data.rpartition(b"\n")
        if newline:
            yield from self._hand_on(self._partial + lines + newline)
            self._partial, self._shown = rest, b""
            self._since = self._clock()
        else:
            self._partial += data
        if self._terminal and b"\r" in self._partial:
            self._partial = _latest(self._partial)
        if len(self._partial) >= LONGEST_LINE:
            yield from self._hand_on(self._partial)
            self._partial = b""

    def _late(self) -> Iterator[bytes]:
        """Yield the unfinished line if it is time: at the end of the log, or after a while."""
        now = self._clock()
        if self.file.at_end or now - self._since >= PATIENCE:
            if not self._terminal or b"\r" not in self._partial or self.file.at_end:
                yield from self._hand_on(self._partial)
                self._partial = b""
            elif now - self._shown_at >= PROGRESS_EVERY and self._partial != self._shown:
                self._shown, self._shown_at = self._partial, now
                yield from self._hand_on(self._partial)

    def _hand_on(self, data: bytes) -> Iterator[bytes]:
        if data:
            self._open = not self._terminal and not data.endswith(b"\n")
            yield data


def _latest(line: bytes) -> bytes:
    """A rewritten line without its earlier states, which nobody can see any more, still marked as rewritten."""
    before, _, state = line.rpartition(b"\r")
    if state.strip():
        return b"\r" + state
    return b"\r" + next((s for s in reversed(before.split(b"\r")) if s.strip()), b"") + b"\r" + state


def _dropped(count: int) -> bytes:
    size = f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
    return f"[forgectl: {size} dropped here, log_limit reached or disk full]\n".encode()
