"""When the parts of a rank's log were written, as its agent has noted it beside the log."""

from __future__ import annotations

import bisect
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from forgectl.system.files import open_to_append, open_to_read

SAMPLE = struct.Struct("<QQ")
"""A size of the log, and the time of the last write before it had more: unix time in nanoseconds."""
AT_ONCE = 4096
"""Samples that are read at once."""


def times_path(log: Path) -> Path:
    """The file of samples beside a log."""
    return log.with_suffix(".times")


class LogTimes:
    """The samples of one log, in order: sizes and times both only grow. It holds no descriptor."""

    def __init__(self, log: Path) -> None:
        self._path = times_path(log)
        self._index = 0  # of the first sample that may be of use to `pieces`

    def pieces(self, offset: int, data: bytes, newest: float) -> Iterator[tuple[bytes, float]]:
        """Cut data of the log that begins at `offset` into parts written by one time, each with that time.

        The samples may not reach its end yet: the rest was written by `newest`. Call it with later parts of the log.
        """
        begin, end = offset, offset + len(data)
        for size, when in self._from(offset, end):
            if size > begin:
                yield data[begin - offset : min(size, end) - offset], when
                begin = min(size, end)
        if begin < end:
            yield data[begin - offset :], newest

    def _from(self, offset: int, end: int) -> Iterator[tuple[int, float]]:
        """The samples that end after `offset`, up to the first that ends at or after `end`."""
        while samples := self._read(self._index, AT_ONCE):
            for size, when in samples:
                if size > offset:
                    yield size, when
                if size >= end:
                    return  # the next data may begin inside this sample
                self._index += 1

    def last(self) -> tuple[int, int]:
        """The last sample as it is stored; zeros if there is none."""
        found = self._bytes(max(0, self._count() - 1), 1)
        return SAMPLE.unpack(found) if found else (0, 0)

    def packed(self, offset: int, end: int, most: int) -> bytes:
        """The samples of sizes from `offset` to `end`, at most `most`, as they are stored."""
        first = bisect.bisect_left(range(self._count()), offset, key=lambda i: self._sample(i)[0])
        found = self._bytes(first, most)
        sizes = (size for size, _ in SAMPLE.iter_unpack(found))
        return found[: SAMPLE.size * sum(1 for _ in itertools.takewhile(lambda size: size <= end, sizes))]

    def size_at(self, when: float, size: int, newest: float) -> int:
        """How much of a log of `size`, last written at `newest`, had been written at a time; holds for samples only."""
        if when >= newest:
            return size
        later = bisect.bisect_right(range(self._count()), when, key=lambda i: self._sample(i)[1])
        return self._sample(later - 1)[0] if later else 0

    def _count(self) -> int:
        try:
            return self._path.stat().st_size // SAMPLE.size
        except OSError:
            return 0

    def _sample(self, index: int) -> tuple[int, float]:
        return self._read(index, 1)[0]

    def _read(self, index: int, most: int) -> list[tuple[int, float]]:
        return [(size, when / 1e9) for size, when in SAMPLE.iter_unpack(self._bytes(index, most))]

    def _bytes(self, index: int, most: int) -> bytes:
        try:
            fd = open_to_read(self._path)
        except OSError:
            return b""
        try:
            data = os.pread(fd, most * SAMPLE.size, index * SAMPLE.size)
        finally:
            os.close(fd)
        return data[: len(data) // SAMPLE.size * SAMPLE.size]


def append_samples(log: Path, samples: bytes) -> None:
    """Append whole samples to those of a log, or nothing. Raises OSError."""
    fd = open_to_append(times_path(log))
    try:
        if os.write(fd, samples) != len(samples):
            os.ftruncate(fd, os.fstat(fd).st_size // SAMPLE.size * SAMPLE.size)
    finally:
        os.close(fd)
