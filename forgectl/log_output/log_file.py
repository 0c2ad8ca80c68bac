"""Reads one rank's log step by step, while the rank writes it and the agent drops its oldest part."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from forgectl.system.log_cap import next_data
from forgectl.system.log_times import LogTimes

CHUNK = 256 * 1024
"""Most bytes of one read."""


@dataclass(frozen=True)
class Read:
    """The result of one read: `dropped` bytes are missing from the log just before `data`, which begins at `offset`."""

    dropped: int
    data: bytes
    offset: int = 0


NOTHING = Read(0, b"")


class LogFile:
    """A position in a log, which need not exist yet. It holds no descriptor, so any number can be followed."""

    def __init__(self, path: Path, most: int = CHUNK) -> None:
        self.path = path
        self._most = most
        self.offset = 0
        self.stop: int | None = None
        self.written_at = 0.0  # when the log was last written, in unix time, as of the last look at it
        self.behind = False  # whether the last read left something unread

    def start_at_last(self, lines: int) -> None:
        """Skip to the last `lines` lines of the present content; a log that appears later is read in full."""
        size = self._size() if self.stop is None else min(self._size(), self.stop)
        if size == 0:
            return
        with self.path.open("rb", buffering=0) as file:
            self.offset = max(self.offset, _start_of_last(file.fileno(), size, lines))

    def keep_between(self, since: float | None, until: float | None) -> None:
        """Read only lines that were written after `since`, and of the present ones up to `until`: unix times."""
        size, times = self._size(), LogTimes(self.path)
        if until is not None:
            self.stop = self._start_of_line(times.size_at(until, size, self.written_at), size)
        if since is not None:
            self.offset = self._start_of_line(times.size_at(since, size, self.written_at), size)

    def stop_here(self) -> None:
        """Read only up to the present end of the log."""
        if self.stop is None:
            self.stop = self._size()

    @property
    def at_end(self) -> bool:
        """Whether everything up to the end set by `stop_here` has been read."""
        return self.stop is not None and self.offset >= self.stop

    def read(self) -> Read:
        """The next bytes, at most `most`; NOTHING if there are no new ones."""
        size = self._size()
        if size < self.offset:  # somebody emptied the log
            self.offset = 0
        if self.stop is not None:
            size = self.stop = min(size, self.stop)
        self.behind = False
        if size <= self.offset:
            return NOTHING
        try:
            with self.path.open("rb", buffering=0) as file:
                read = self._read_from(file.fileno(), size)
        except FileNotFoundError:
            return NOTHING
        self.behind = self.offset < size
        return read

    def _read_from(self, fd: int, size: int) -> Read:
        dropped = 0
        while True:
            data = os.pread(fd, min(self._most, size - self.offset), self.offset)
            # Zeros are a hole, made before or during this read, or the rank wrote them.
            begin = next_data(fd, self.offset, size) if b"\0" in data else self.offset
            if begin == self.offset:
                self.offset += len(data)
                return Read(dropped, data, begin)
            dropped += begin - self.offset
            self.offset = begin

    def _start_of_line(self, offset: int, size: int) -> int:
        """Where the line begins that was unfinished at `offset`; a line belongs to the time of its end."""
        if not 0 < offset < size:
            return offset
        with self.path.open("rb", buffering=0) as file:
            return _start_of_line(file.fileno(), offset)

    def _size(self) -> int:
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return 0
        self.written_at = status.st_mtime
        return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _start_of_line(fd: int, offset: int) -> int:
    """Where the line with the byte before `offset` begins if that byte does not end it, else `offset`."""
    start = max(0, offset - CHUNK)
    block = os.pread(fd, offset - start, start)
    return start + block.rfind(b"\n") + 1 if b"\n" in block else start


def _start_of_last(fd: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin; 0 if there are fewer, so that a hole before them is reported."""
    if lines <= 0:
        return size
    begin = next_data(fd, 0, size)
    end = size
    missing = lines + (os.pread(fd, 1, size - 1) == b"\n")  # the last line's own newline does not count
    while end > begin:
        start = max(begin, end - CHUNK)
        block = os.pread(fd, end - start, start)
        if block.count(b"\n") >= missing:
            at = len(block)
            for _ in range(missing):
                at = block.rindex(b"\n", 0, at)
            return start + at + 1
        missing -= block.count(b"\n")
        end = start
    return 0
