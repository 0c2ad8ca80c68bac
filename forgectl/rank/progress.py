"""Counts what shows that this rank makes progress, in memory that the agent reads without stopping the rank.

A rank that was stopped, or whose C code holds the GIL, can be looked at all the same. In any other process the counts
are kept and nobody reads them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

HEARTBEATS, BEGUN, ENDED, MADE = range(4)
"""The places of the counts in the file: heartbeats, endpoint calls that have begun and ended here, calls of others."""
SIZE = 4 * 8

_counts = memoryview(bytearray(SIZE)).cast("Q")


def show(path: str) -> None:
    """Keep the counts in a new file from now on; raises OSError."""
    global _counts  # noqa: PLW0603  (a heartbeat must cost no more than an addition)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, SIZE)  # else a full disk would be a SIGBUS later
        _counts = memoryview(mmap.mmap(fd, SIZE)).cast("Q")
    finally:
        os.close(fd)


def heartbeat() -> None:
    """Report progress, where neither collectives nor endpoint calls show it: see `hang:` of a mesh.

    It takes less than a microsecond, so call it in each step; from any thread, and from processes that this rank forks.
    Outside a run it does nothing.
    """
    _counts[HEARTBEATS] += 1


def made_call() -> None:
    """Note that this process calls a mesh, as an endpoint may do that only calls others."""
    _counts[MADE] += 1


@contextlib.contextmanager
def endpoint_call() -> Iterator[None]:
    """A context in which an endpoint, or the constructor, of this rank's actor runs. For one thread alone."""
    _counts[BEGUN] += 1
    try:
        yield
    finally:
        _counts[ENDED] += 1
