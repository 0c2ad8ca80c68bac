"""A rank's standard output and error: each line is written at once, and a full disk loses lines, never the rank."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import sys
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})

_writers: weakref.WeakSet[LossyWriter] = weakref.WeakSet()


class LossyWriter:
    """Writes to a descriptor at once. It counts the bytes that do not fit on the disk, and marks the loss later.

    It buffers nothing and holds no lock, so a fork in any thread and a print in a signal handler are safe. A text
    stream above it makes one call for each line, so one write(2), which O_APPEND keeps whole.

    A line costs hardly more than in CPython's own streams (benchmarks, flood). For that, the class of a writer is
    its state: an attribute would be checked at every line. The class has slots and no base class from io, because
    an instance dictionary would be searched for `write`, `flush` and `closed` at every line.
    """

    __slots__ = ("__weakref__", "_fd", "_marker", "_raw_write", "lost", "name")

    mode = "wb"
    closed = False
    flush = [].reverse  # nothing is buffered: a call that does nothing, in C
    _write = staticmethod(os.write)  # a reference, for what is flushed while the interpreter is torn down

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self.lost = 0  # bytes lost and not yet reported
        self._fd = fd
        self._marker = b""  # the rest of a marker that did not fit either
        self._raw_write = io.FileIO(fd, "w", closefd=False).write  # faster than os.write
        _writers.add(self)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`, or count it as lost; returns its full size in both cases."""
        try:
            size = len(data)  # type: ignore[arg-type]
            if size == (written := self._raw_write(data)):
                return size
        except OSError as e:
            if e.errno not in DISK_FULL:
                raise
            written = 0
        return self._write_rest(memoryview(data).cast("B"), written or 0)

    def _write_rest(self, data: memoryview, done: int) -> int:
        try:
            self._mark()
            while done < len(data):
                done += self._write(self._fd, data[done:])
        except OSError as e:
            if e.errno not in DISK_FULL:
                raise
            self.lost += len(data) - done
            self.__class__ = _Behind
        return len(data)

    def _mark(self) -> None:
        """Write a marker for the loss; raises OSError while there is still no room."""
        while self.lost or self._marker:
            marker = self._marker or f"\n[forgectl: {self.lost} bytes lost, disk full]\n".encode()
            written = self._write(self._fd, marker)
            if not self._marker:
                self.lost = 0
            self._marker = marker[written:]
        if not self.closed:
            self.__class__ = LossyWriter

    def mark_at_exit(self) -> None:
        """Write the marker for a loss that no later line reported, if there is room by now."""
        try:
            self._mark()
        except OSError:
            pass

    def forget(self) -> None:
        """In a forked child: forget the parent's losses, which the parent reports itself."""
        self.lost, self._marker = 0, b""

    def writelines(self, lines: Iterable[ReadableBuffer], /) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def close(self) -> None:
        """Refuse to write from now on; the descriptor stays open, as with CPython's own streams."""
        self.__class__ = _Closed

    def fileno(self) -> int:
        """The descriptor, as in CPython's own standard streams."""
        return self._fd

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Always true."""
        return True

    def readable(self) -> bool:
        """Always false."""
        return False

    def seekable(self) -> bool:
        """Always false: lines are only added."""
        return False

    def _refuse(self, *_: object) -> NoReturn:
        raise io.UnsupportedOperation(f"{self.name} is only written to")

    read = read1 = readinto = readinto1 = readline = readlines = seek = tell = truncate = detach = _refuse

    def __enter__(self) -> LossyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Behind(LossyWriter):
    """A writer that has lost bytes and has not written the marker for them yet."""

    __slots__ = ()

    def write(self, data: ReadableBuffer, /) -> int:
        return self._write_rest(memoryview(data).cast("B"), 0)


class _Closed(LossyWriter):
    """A writer that was closed."""

    __slots__ = ()

    closed = True

    def write(self, data: ReadableBuffer, /) -> int:
        raise ValueError("write to closed file")


io.BufferedIOBase.register(LossyWriter)


def install() -> None:
    """Replace `sys.stdout`, `sys.stderr` and the originals behind them by streams over a LossyWriter."""
    stdout_errors = getattr(sys.stdout, "errors", None) or "strict"  # what CPython chose for this locale
    sys.stdout = sys.__stdout__ = _replace(sys.stdout, 1, "<stdout>", stdout_errors)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _replace(sys.stderr, 2, "<stderr>", "backslashreplace")  # type: ignore[misc]
    if sys.stdin is not None:  # made for another descriptor: it may have looked at what that one can do
        encoding, errors = sys.stdin.encoding, sys.stdin.errors
        sys.stdin = sys.__stdin__ = open(0, encoding=encoding, errors=errors, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    os.register_at_fork(after_in_child=_forget_losses)
    atexit.register(_mark_losses)


def _replace(old: Any, fd: int, name: str, errors: str) -> io.TextIOWrapper:
    """A text stream on `fd`, in UTF-8 or in the encoding that PYTHONIOENCODING asked for."""
    if old is not None:
        with contextlib.suppress(OSError):
            old.flush()
    encoding = getattr(old, "encoding", None) if os.environ.get("PYTHONIOENCODING") else None
    stream = io.TextIOWrapper(LossyWriter(fd, name), encoding or "utf-8", errors, line_buffering=True)
    stream.mode = "w"  # type: ignore[misc]  # what open() would have set, as for CPython's own
    return stream


def _forget_losses() -> None:
    for writer in _writers:
        writer.forget()


def _mark_losses() -> None:
    for writer in _writers:
        writer.mark_at_exit()
