"""Finds out whether the kernel killed a process because memory ran out, and the evidence for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from forgectl.system import cgroups

_VICTIM = re.compile(r"Killed process (\d+) \(|^oom-kill:.*,pid=(\d+),")
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO: only in it do we and the kernel use the same pids


class OomWitness:
    """Notes the kernel's OOM counters and log position, and later reports what was added to them.

    The log names the victim, so it is exact, but reading it needs privileges. A counter shows only that some process
    of that cgroup was killed. Together with a SIGKILL that none of us sent, it is good evidence.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Note the counters now. `folder`: the mesh's own v2 cgroup, where it has one."""
        self._folder = folder
        self._noted: dict[Path, int] = {}
        self._victims: dict[int, str] = {}
        self._kmsg = _open_kmsg()
        self.note()

    def note(self, pid: int | None = None) -> None:
        """Note the counters of our own cgroups, or of those of `pid`: a rank may be in other cgroups."""
        for path in [*_counters_of(pid), *_counters_above(self._folder)]:
            count = _oom_kills(path)
            if count is not None:
                self._noted.setdefault(path, count)

    def killed(self, pid: int) -> str | None:
        """The evidence, as text, that `pid` was OOM-killed since then; None if there is none."""
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
        """Each read gives one record. EPIPE: some were overwritten before we read them. EAGAIN: there are no more."""
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
    """The nearest memory.events at or above a v2 cgroup: the memory controller may be enabled only above it."""
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
