"""Reads one rank's log onward, while the rank writes and the agent drops its oldest part."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from forgectl.system.log_cap import next_data

CHUNK = 256 * 1024
"""Bytes that one read takes at most."""


@dataclass(frozen=True)
class Read:
    """What one read gave: `dropped` bytes are gone from the log just before `data`."""

    dropped: int
    data: bytes


NOTHING = Read(0, b"")


class LogFile:
    """A place in a log that need not exist yet. Holds no descriptor, so any number can be followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.stop: int | None = None

    def start_at_last(self, lines: int) -> None:
        """Skip to the last `lines` lines of what is there now; a log that comes later is read in full."""
        size = self._size()
        if size == 0:
            return
        with self.path.open("rb", buffering=0) as file:
            self.offset = _start_of_last(file.fileno(), size, lines)

    def stop_here(self) -> None:
        """Read what is there now, but nothing that is written later."""
        if self.stop is None:
            self.stop = self._size()

    @property
    def at_end(self) -> bool:
        """Whether all up to `stop_here` has been read."""
        return self.stop is not None and self.offset >= self.stop

    def read(self) -> Read:
        """The next bytes, at most CHUNK; NOTHING where there is nothing new."""
        size = self._size()
        if size < self.offset:  # somebody emptied the log
            self.offset = 0
        if self.stop is not None:
            size = self.stop = min(size, self.stop)
        if size <= self.offset:
            return NOTHING
        try:
            with self.path.open("rb", buffering=0) as file:
                return self._read_from(file.fileno(), size)
        except FileNotFoundError:
            return NOTHING

    def _read_from(self, fd: int, size: int) -> Read:
        dropped = 0
        while True:
            data = os.pread(fd, min(CHUNK, size - self.offset), self.offset)
            # Zeros are a hole, made before or while this was read, or else the rank wrote them.
            begin = next_data(fd, self.offset, size) if b"\0" in data else self.offset
            if begin == self.offset:
                self.offset += len(data)
                return Read(dropped, data)
            dropped += begin - self.offset
            self.offset = begin

    def _size(self) -> int:
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _start_of_last(fd: int, size: int, lines: int) -> int:
    """Where the last `lines` lines begin; 0 where there are fewer, so that a hole before them is told of."""
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
