"""Keeps logs below a size on disk by punching holes into their oldest part, and finds the data after such holes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from forgectl.frozen import dataclass

Why: TypeAlias = Literal["limit", "disk full"]

SMALLEST_KEPT = 256 * 1024
"""Bytes at the end of a log that stay even when the disk is full."""

NEARLY_FULL = 64 * 1024 * 1024
"""Free bytes below which a disk counts as nearly full; on a small one, a hundredth of it."""

_KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_*, see fallocate(2)
_NO_HOLES_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL})


@dataclass(frozen=True)
class Trimmed:
    """The oldest `dropped` bytes of `path` were freed now, `total` bytes since it began; `kept` bytes are left."""

    path: Path
    dropped: int
    total: int
    kept: int
    why: Why

    @property
    def worth_reporting(self) -> bool:
        """True the first time, then when the total passes a power of two: a flood is trimmed every second or so."""
        return self.total.bit_length() > (self.total - self.dropped).bit_length()

    def describe(self) -> str:
        """One sentence for the user."""
        why = "it was over log_limit" if self.why == "limit" else "its disk is nearly full"
        return f"dropped the oldest {self.total / 1e6:.1f} MB of {self.path.name}, as {why}"


@dataclass(frozen=True)
class Uncapped:
    """`path` cannot be trimmed, now or later, because of `reason`. Reported once."""

    path: Path
    reason: str
    worth_reporting: ClassVar[bool] = True

    def describe(self) -> str:
        """One sentence for the user."""
        return f"cannot keep {self.path.name} within log_limit: {self.reason}"


class LogCap:
    """Keeps each log below `limit` bytes on disk by punching holes into its oldest part.

    The writer is not disturbed and all offsets stay valid: the dropped part becomes a hole at the beginning,
    so the file itself shows how much is gone. Call `check` every second or so.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._untrimmable: set[Path] = set()

    def check(self, paths: Iterable[Path]) -> list[Trimmed | Uncapped]:
        """Trim the logs over the limit, and big ones if the disk is nearly full. Raises no OSError."""
        sizes = {path: _on_disk(path) for path in paths if path not in self._untrimmable}
        results: list[Trimmed | Uncapped] = []
        for path, taken in sizes.items():
            if taken > self.limit:  # down to half, so that a steady flood is not trimmed at every call
                results += self._trim(path, self.limit // 2, "limit")
        results += self._make_room([path for path, taken in sizes.items() if taken > SMALLEST_KEPT])
        return results

    def _make_room(self, paths: list[Path]) -> Iterator[Trimmed | Uncapped]:
        for path in sorted(paths, key=_on_disk, reverse=True):
            if path in self._untrimmable or not _nearly_full(path):
                continue
            keep = max(_on_disk(path) // 2, SMALLEST_KEPT)
            yield from self._trim(path, keep, "disk full")

    def _trim(self, path: Path, keep: int, why: Why) -> Iterator[Trimmed | Uncapped]:
        try:
            dropped, total = _drop_all_but(path, keep)
        except OSError as e:
            if e.errno in _NO_HOLES_HERE:
                self._untrimmable.add(path)
                yield Uncapped(path, f"its file system cannot free a part of a file ({os.strerror(e.errno)})")
            return  # any other error, such as a missing log, may be gone next time
        if dropped:
            yield Trimmed(path, dropped, total, _on_disk(path), why)


def _drop_all_but(path: Path, keep: int) -> tuple[int, int]:
    """Free all but the last `keep` bytes, in whole blocks; returns the bytes freed now, and all ever freed."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return 0, 0
        end = (status.st_size - keep) // status.st_blksize * status.st_blksize
        begin = leading_hole(fd)
        if end <= begin:
            return 0, begin
        _punch_hole(fd, 0, end)
        return end - begin, end
    finally:
        os.close(fd)


def leading_hole(fd: int) -> int:
    """How many bytes at the beginning of a log were dropped."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as e:
        return os.fstat(fd).st_size if e.errno == errno.ENXIO else 0


def next_data(fd: int, offset: int, size: int) -> int:
    """The first byte at or after `offset` that is not in a hole, or `size`."""
    try:
        return min(os.lseek(fd, offset, os.SEEK_DATA), size)
    except OSError as e:
        return size if e.errno == errno.ENXIO else offset  # a file system that does not report holes has none


def _on_disk(path: Path) -> int:
    """Bytes that the file takes on its disk; 0 where it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _nearly_full(path: Path) -> bool:
    with contextlib.suppress(OSError):
        disk = os.statvfs(path)
        return disk.f_bavail * disk.f_frsize < min(NEARLY_FULL, disk.f_blocks * disk.f_frsize // 100)
    return False


_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate  # musl has only one, with 64-bit offsets
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _punch_hole(fd: int, start: int, length: int) -> None:
    """Give the blocks of a range back to the file system; the range then reads as zeros."""
    if _fallocate(fd, _KEEP_SIZE_AND_PUNCH_HOLE, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
