"""Whether a process that died of SIGKILL was killed by the kernel for want of memory, and how we know."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forgectl.system import cgroups

_VICTIM = re.compile(r"Killed process (\d+) \(|^oom-kill:.*,pid=(\d+),")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO: only there are the kernel's pids also ours


class OomWitness:
    """Notes the kernel's OOM counters and log position, and later says what has been added to them.

    The log names its victim, so it is exact; it takes privilege to read. A counter says only that somebody in
    that cgroup was killed: together with a death by SIGKILL that none of us sent, it is good evidence.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Notes how things stand now. `folder`: the v2 cgroup of the mesh, where it has one of its own."""
        self._folder = folder
        self._noted: dict[Path, int] = {}
        self._victims: dict[int, str] = {}
        self._kmsg = _open_kmsg()
        self.note()

    def note(self, pid: int | None = None) -> None:
        """Remember how things stand in our own cgroups, or in those of `pid`: a rank that may be in others."""
        for path in [*_counters_of(pid), *_counters_above(self._folder)]:
            count = _oom_kills(path)
            if count is not None:
                self._noted.setdefault(path, count)

    def killed(self, pid: int) -> str | None:
        """The evidence, in words, that `pid` was OOM-killed since; None where there is none."""
        self._read_kmsg()
        if pid in self._victims:
            return f"the kernel log says: {self._victims[pid]}"
        for path, before in self._noted.items():
            now = _oom_kills(path)
            if now is not None and now > before:
                return f"{path} counts {now - before} OOM kill{'s' if now - before > 1 else ''} since the start"
        return None

    def close(self) -> None:
        """Close the kernel log."""
        if self._kmsg is not None:
            os.close(self._kmsg)
            self._kmsg = None

    def _read_kmsg(self) -> None:
        """One record a read; EPIPE: some were overwritten before we came; EAGAIN: that is all."""
        while self._kmsg is not None:
            try:
                record = os.read(self._kmsg, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue
            except OSError:
                return
            text = record.partition(";")[2].partition("\n")[0]
            if match := _VICTIM.search(text):
                self._victims[int(match[1] or match[2])] = text


def _open_kmsg() -> int | None:
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != _INITIAL_PID_NAMESPACE:
            return None
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        return None
    return fd


def _counters_of(pid: int | None) -> list[Path]:
    """The files that count OOM kills around a process (None: this one), of cgroup v1 and v2."""
    who = "self" if pid is None else str(pid)
    try:
        own = Path(f"/proc/{who}/cgroup").read_text()
        mountinfo = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []
    v1 = cgroups.locate_v1(mountinfo, own, "memory")
    found = [v1 / "memory.oom_control"] if v1 else []
    return found + _counters_above(cgroups.locate(mountinfo, own))


def _counters_above(folder: Path | None) -> list[Path]:
    """The nearest memory.events at or above a v2 cgroup: the memory controller need not reach down to it."""
    for place in [folder, *folder.parents] if folder else []:
        if (place / "memory.events").exists():
            return [place / "memory.events"]
    return []


def _oom_kills(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
