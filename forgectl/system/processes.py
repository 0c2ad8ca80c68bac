"""Exact identity of processes: a signal reaches the intended process, or none."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from forgectl.frozen import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_KTHREAD = 0x00200000
_libc = ctypes.CDLL(None, use_errno=True)  # loaded at import, so that no forked child has to


@dataclass(frozen=True)
class Identity:
    """One process of this host, told apart from any later one with the same pid."""

    pid: int
    start_time: int  # clock ticks after boot: field 22 of /proc/PID/stat
    boot_id: str


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that we need."""

    pid: int
    name: str
    state: str  # R S D T t Z X I
    ppid: int
    session: int
    threads: int
    start_time: int
    kernel: bool = False

    @property
    def dead(self) -> bool:
        """Whether it is a zombie. Not if only its first thread has ended: the others live on and hold its resources."""
        return self.state in "ZXx" and self.threads <= 1


def parse_stat(data: bytes) -> Stat:
    """The content of /proc/PID/stat; the name in it may hold blanks, parentheses and newlines."""
    head, _, rest = data.rpartition(b")")
    pid, _, name = head.partition(b"(")
    fields = rest.split()  # fields[0] is the third field of proc_pid_stat(5)
    return Stat(
        pid=int(pid),
        name=name.decode(errors="replace"),
        state=fields[0].decode(),
        ppid=int(fields[1]),
        session=int(fields[3]),
        kernel=bool(int(fields[6]) & _PF_KTHREAD),
        threads=int(fields[17]),
        start_time=int(fields[19]),
    )


class ProcessTable:
    """All that the agent reads from /proc, and all signals that it sends. Tests replace it to stage rare cases."""

    _boot_id: str | None = None

    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        if self._boot_id is None:
            self._boot_id = _read("/proc/sys/kernel/random/boot_id").decode().strip()
        return self._boot_id

    def pids(self) -> list[int]:
        """The pids of all visible processes, ascending."""
        return sorted(int(e.name) for e in os.scandir("/proc") if e.name.isdigit())

    def stat(self, pid: int) -> Stat | None:
        """The state of a process, or None if there is none with this pid."""
        data = _read(f"/proc/{pid}/stat")
        return parse_stat(data) if data else None

    def environ(self, pid: int) -> bytes:
        """The environment it was executed with (later changes do not show), or b"" if we may not read it."""
        return _read(f"/proc/{pid}/environ")

    def wchan(self, pid: int) -> str:
        """The kernel function in which it sleeps, or ""."""
        name = _read(f"/proc/{pid}/wchan").decode(errors="replace").strip()
        return "" if name == "0" else name

    def owner(self, pid: int) -> int | None:
        """The effective user id, or None if there is no such process."""
        try:
            return Path(f"/proc/{pid}").stat().st_uid
        except OSError:
            return None

    def open(self, pid: int) -> int:
        """A pidfd; raises ProcessLookupError if there is no such process."""
        return os.pidfd_open(pid)

    def send(self, pidfd: int, signum: int) -> None:
        """Signal the process behind a pidfd."""
        signal.pidfd_send_signal(pidfd, signum)

    def kill(self, pid: int, signum: int) -> None:
        """Signal by pid, for when no pidfd can be opened."""
        os.kill(pid, signum)


REAL = ProcessTable()


def _read(path: str) -> bytes:
    """A whole file of /proc, or b"" if the process is gone or we may not read it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, 65536)
        if len(data) < 4096:
            return data  # procfs returns a page or more at a time, so a shorter read has all of it
        parts = [data]
        while chunk := os.read(fd, 65536):
            parts.append(chunk)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def boot_id() -> str:
    """The kernel's id of this boot: a pid recorded under another boot names no process of this one."""
    return REAL.boot_id()


def identify(pid: int, table: ProcessTable = REAL) -> Identity | None:
    """The identity of the process that has this pid now (a zombie has one too), or None."""
    stat = table.stat(pid)
    return Identity(pid, stat.start_time, table.boot_id()) if stat else None


def alive(identity: Identity, table: ProcessTable = REAL) -> bool:
    """Whether exactly this process still runs. A zombie does not."""
    stat = _exact(identity, table)
    return stat is not None and not stat.dead


def _exact(identity: Identity, table: ProcessTable) -> Stat | None:
    if identity.pid <= 0 or identity.boot_id != table.boot_id():
        return None
    stat = table.stat(identity.pid)
    return stat if stat and stat.start_time == identity.start_time else None


def open_pidfd(identity: Identity, table: ProcessTable = REAL) -> int | None:
    """A pidfd of exactly this process, or None if it is gone; raises OSError if no pidfd can be opened at all.

    The identity is checked again after opening: from then on the descriptor cannot refer to another process.
    """
    if _exact(identity, table) is None:
        return None
    try:
        pidfd = table.open(identity.pid)
    except ProcessLookupError:
        return None
    if _exact(identity, table) is None:
        os.close(pidfd)
        return None
    return pidfd


def signal_exactly(identity: Identity, signum: int, table: ProcessTable = REAL) -> bool:
    """Signal exactly this process. False if it is gone, or if we may not signal its user."""
    try:
        pidfd = open_pidfd(identity, table)
    except OSError:  # out of descriptors, or a kernel before 5.3: better a tiny race than a survivor
        return _signal_by_number(identity, signum, table)
    if pidfd is None:
        return False
    try:
        table.send(pidfd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def _signal_by_number(identity: Identity, signum: int, table: ProcessTable) -> bool:
    if _exact(identity, table) is None:
        return False
    try:
        table.kill(identity.pid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def collect_children() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of every child that has ended, until none is left to collect."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def signal_name(number: int) -> str:
    """`SIGTERM`, or `signal 35` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def become_subreaper() -> None:
    """Make orphans below this process its children, not those of init; it must reap them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent, which has the pid `parent`, ends.

    The kernel does so when the parent's *thread* that forked ends. If the parent is gone already, end this process now.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
