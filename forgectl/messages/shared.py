"""Long messages between processes of one machine: through shared memory, copied once.

The sender writes a message's frames into a file in memory (memfd) and sends a reference. The receiver opens the file
through the sender's folder in /proc and maps it privately, so that it may change and keep what it received. The file
has no name: the kernel frees it when its last user ends, in whatever way.

A sender reuses memory once nobody else has it open, which it checks by a write lease. Reusing pages makes three
quarters of the gain over a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forgectl.messages.frames import BadFrames

LEAST = 256 * 1024
"""Bytes of the smallest message that is shared."""
MOST_KEPT = 256 * 2**20
"""Bytes that a process keeps for later messages."""
MOST_SEGMENTS = 128
"""Segments, each with a descriptor, that a process has at most; further messages go through sockets."""
ALIGNED = 64
_NAME = "forgectl-message"
_HEAD = struct.Struct(">IIQH")
MOST_FRAMES = 0xFFFF
_lock = threading.RLock()
_open: set[Segment] = set()
_idle: list[Segment] = []  # the latest last


class Segment:
    """Memory that holds one message at a time. It is reused when nobody has it open any more."""

    __slots__ = ("_fd", "_inode", "_size", "reference")

    def __init__(self, size: int) -> None:
        """Raises OSError."""
        made = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            self._inode = os.fstat(made).st_ino
            # For a lease, the first descriptor of a memfd does not count as a writer; those of receivers do.
            self._fd = os.open(f"/proc/self/fd/{made}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(made)
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)  # if a lease is broken: the default, SIGIO, would kill us
        self._size = size
        self.reference = b""
        _open.add(self)

    def write(self, frames: Sequence[Any]) -> None:
        """Write a message and set `reference`; raises OSError if there is no room."""
        sizes, at = [], 0
        for frame in frames:
            view = memoryview(frame).cast("B")
            sizes.append(view.nbytes)
            done = 0
            while done < view.nbytes:
                done += os.pwrite(self._fd, view[done:], at + done)
            at = _aligned(at + done)
        if os.fstat(self._fd).st_size < at:
            os.ftruncate(self._fd, at)
        first = _HEAD.pack(os.getpid(), self._fd, self._inode, len(sizes))
        self.reference = first + struct.pack(f">{len(sizes)}Q", *sizes)

    def fits(self, size: int) -> bool:
        """Whether a message of that size may use it now: the sizes match, and nobody else has it open."""
        if not size <= self._size <= 4 * size:
            return False
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the memory up; it cannot be reused."""
        if self in _open:
            _open.discard(self)
            os.close(self._fd)

    def release(self) -> None:
        """All receivers have opened it: keep it for reuse, once they have closed it."""
        with _lock:
            if self not in _open:
                return
            _idle.append(self)
            while len(_idle) > MOST_SEGMENTS // 2 or sum(s._size for s in _idle) > MOST_KEPT:
                _idle.pop(0).close()


class Shared:
    """A message in shared memory, until all its receivers have opened it, or this object is deleted."""

    __slots__ = ("_missing", "_segment", "reference")

    def __init__(self, segment: Segment, receivers: int) -> None:
        self._segment = segment
        self._missing = receivers
        self.reference = segment.reference

    def received(self) -> None:
        """Note that one more receiver has opened it."""
        self._missing -= 1
        if not self._missing:
            self._segment.release()

    def __del__(self) -> None:
        if self._missing > 0:  # a late receiver must not find another message here
            self._segment.close()


def share(frames: Sequence[Any], size: int, receivers: int) -> Shared | None:
    """Put a message where processes of this machine can read it; None if it is too short, or there is no room."""
    if size < LEAST or len(frames) > MOST_FRAMES or not _can_be_opened():
        return None
    try:
        segment = _segment(size + ALIGNED * len(frames))
    except OSError:
        return None
    if segment is None:
        return None
    try:
        segment.write(frames)
    except OSError:
        segment.close()
        return None
    return Shared(segment, receivers)


def _segment(size: int) -> Segment | None:
    with _lock:
        for segment in reversed(_idle):
            if segment.fits(size):
                _idle.remove(segment)
                return segment
        if len(_open) >= MOST_SEGMENTS:
            if not _idle:
                return None
            _idle.pop(0).close()
        return Segment(size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _can_be_opened() -> bool:
    """Whether other processes of this user may read our folder in /proc: not if this process changed its user."""
    return Path("/proc/self/fd").stat().st_uid == os.geteuid()


# ---------------------------------------------------------------- receiving


class Gone(Exception):
    """The sender does not have the message any more, because it has ended."""


def opened(reference: Any) -> list[memoryview]:
    """The frames of a message that another process shares; raises Gone, BadFrames or OSError."""
    try:
        pid, number, inode, count = _HEAD.unpack_from(reference)
        sizes = struct.unpack_from(f">{count}Q", reference, _HEAD.size)
    except struct.error as e:
        raise BadFrames(f"no reference to shared memory: {e}") from None
    path = f"/proc/{pid}/fd/{number}"
    try:
        if not str(Path(path).readlink()).startswith(f"/memfd:{_NAME}"):
            raise Gone("its sender has closed it")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError):
        raise Gone("its sender has ended, or is in another PID namespace") from None
    try:
        found, size = os.fstat(fd), sum(map(_aligned, sizes))
        if found.st_ino != inode:  # the descriptor's number was reused
            raise Gone("its sender has closed it")
        if not 0 < size <= found.st_size:
            raise BadFrames(f"{size} bytes of shared memory, of which there are {found.st_size}")
        memory = _mapped(fd, size)
    finally:
        os.close(fd)
    frames, at = [], 0
    for size in sizes:
        frames.append(memory[at : at + size])
        at += _aligned(size)
    return frames


def _mapped(fd: int, size: int) -> memoryview:
    """A private mapping, which ends with its last view."""
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, mmap.MAP_PRIVATE, trackfd=False))
    # Up to Python 3.12, mmap keeps a descriptor for each mapping: a thousand arrays would use up all descriptors.
    length = 1 << (size - 1).bit_length()  # few array types are made; nobody reads beyond the file's end
    address = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no memory can be mapped")
    kind = _kinds.get(length) or _kinds.setdefault(length, type("Mapping", (_Mapping,), {"_length_": length}))
    return memoryview(kind.from_address(address)).cast("B")[:size]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Mapping(ctypes.Array):  # type: ignore[type-arg]
    _type_ = ctypes.c_ubyte
    _length_ = 0

    def __del__(self, unmap: Any = _libc.munmap, address: Any = ctypes.addressof) -> None:
        unmap(address(self), len(self))


_kinds: dict[int, type[_Mapping]] = {}


# ---------------------------------------------------------------- forks


def _reset_after_fork() -> None:
    """In a forked child: give up the parent's memory."""
    global _lock  # noqa: PLW0603  (one per process)
    _lock = threading.RLock()
    _idle.clear()
    for segment in list(_open):
        with contextlib.suppress(OSError):
            segment.close()


os.register_at_fork(after_in_child=_reset_after_fork)
