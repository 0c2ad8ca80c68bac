"""A process table that is made up: for D states, reused pids and races, which cannot be had on demand."""

import os
import signal
from dataclasses import replace

from forgectl.system.processes import Identity, ProcessTable, Stat

BOOT = "boot-1"


class FakeTable(ProcessTable):
    """Processes as a dict; SIGKILL removes one unless it is in state D; SIGSTOP and SIGCONT change the state.

    `on_scan` is called before each listing, where races happen.
    """

    def __init__(self):
        self.stats = {}
        self.environs = {}
        self.signals = []
        self.on_scan = lambda: None
        self.no_pidfds = None  # an OSError to raise instead
        self._opened = {}
        self.add(os.getpid(), ppid=1, start_time=5)

    def add(self, pid, *, ppid=1, session=None, start_time=100, state="S", name="python", threads=1, **environ):
        self.stats[pid] = Stat(pid, name, state, ppid, session or pid, threads, start_time)
        self.environs[pid] = b"".join(b"%s=%s\0" % (k.encode(), v.encode()) for k, v in environ.items())
        return Identity(pid, start_time, BOOT)

    def remove(self, pid):
        self.stats.pop(pid, None)
        self.stats = {p: replace(s, ppid=1) if s.ppid == pid else s for p, s in self.stats.items()}

    def signalled(self, signum):
        return [pid for pid, number in self.signals if number == signum]

    def boot_id(self):
        return BOOT

    def pids(self):
        self.on_scan()
        return sorted(self.stats)

    def stat(self, pid):
        return self.stats.get(pid)

    def environ(self, pid):
        return self.environs.get(pid, b"")

    def wchan(self, pid):
        return "nfs_wait_bit_killable" if self.stats[pid].state == "D" else ""

    def owner(self, pid):
        return 1000 if pid in self.stats else None

    def open(self, pid):
        if self.no_pidfds:
            raise self.no_pidfds
        if pid not in self.stats:
            raise ProcessLookupError
        fd = os.eventfd(0)  # never readable, like the pidfd of one that lives
        self._opened[fd] = (pid, self.stats[pid].start_time)
        return fd

    def send(self, pidfd, signum):
        pid, start_time = self._opened[pidfd]
        if pid not in self.stats or self.stats[pid].start_time != start_time:
            raise ProcessLookupError
        self.kill(pid, signum)

    def kill(self, pid, signum):
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
