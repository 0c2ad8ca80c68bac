"""A process table that is made up: for D states, reused pids and races, which cannot be had on demand."""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace

from forgectl.system.processes import Identity, ProcessTable, Stat

BOOT = "boot-1"
OURS = {"FORGE_RUN_ID": "r", "FORGE_HOST": "h", "FORGE_MESH": "m"}
"""The environment of a rank of mesh m, which the tests are about."""


class FakeTable(ProcessTable):
    """Processes as a dict; SIGKILL removes one unless it is in state D; SIGSTOP and SIGCONT change the state.

    `on_scan` is called before each listing, where races happen.
    """

    def __init__(self) -> None:
        self.stats: dict[int, Stat] = {}
        self.environs: dict[int, bytes] = {}
        self.signals: list[tuple[int, int]] = []  # pid, signal
        self.on_scan: Callable[[], object] = lambda: None
        self.no_pidfds: OSError | None = None  # to raise instead
        self._opened: dict[int, tuple[int, int]] = {}  # pidfd → pid and start time
        self.add(os.getpid(), ppid=1, start_time=5)

    def add(
        self,
        pid: int,
        environ: Mapping[str, str] | None = None,
        *,
        ppid: int = 1,
        session: int | None = None,
        start_time: int = 100,
        state: str = "S",
        name: str = "python",
        threads: int = 1,
    ) -> Identity:
        self.stats[pid] = Stat(pid, name, state, ppid, session or pid, threads, start_time)
        self.environs[pid] = b"".join(b"%s=%s\0" % (k.encode(), v.encode()) for k, v in (environ or {}).items())
        return Identity(pid, start_time, BOOT)

    def remove(self, pid: int) -> None:
        self.stats.pop(pid, None)
        self.stats = {p: replace(s, ppid=1) if s.ppid == pid else s for p, s in self.stats.items()}

    def signalled(self, signum: int) -> list[int]:
        return [pid for pid, number in self.signals if number == signum]

    def boot_id(self) -> str:
        return BOOT

    def pids(self) -> list[int]:
        self.on_scan()
        return sorted(self.stats)

    def stat(self, pid: int) -> Stat | None:
        return self.stats.get(pid)

    def environ(self, pid: int) -> bytes:
        return self.environs.get(pid, b"")

    def wchan(self, pid: int) -> str:
        return "nfs_wait_bit_killable" if self.stats[pid].state == "D" else ""

    def owner(self, pid: int) -> int | None:
        return 1000 if pid in self.stats else None

    def open(self, pid: int) -> int:
        if self.no_pidfds:
            raise self.no_pidfds
        if pid not in self.stats:
            raise ProcessLookupError
        fd = os.eventfd(0)  # never readable, like the pidfd of one that lives
        self._opened[fd] = (pid, self.stats[pid].start_time)
        return fd

    def send(self, pidfd: int, signum: int) -> None:
        pid, start_time = self._opened[pidfd]
        if pid not in self.stats or self.stats[pid].start_time != start_time:
            raise ProcessLookupError
        self.kill(pid, signum)

    def kill(self, pid: int, signum: int) -> None:
        self.signals.append((pid, signum))
        stat = self.stats[pid]
        if stat.state == "D":
            return
        if signum == signal.SIGKILL:
            self.remove(pid)
        elif signum == signal.SIGSTOP:
            self.stats[pid] = replace(stat, state="T")
        elif signum == signal.SIGCONT:
            self.stats[pid] = replace(stat, state="S")
