"""The oracle: whatever is left of runs on this machine, of every kind that there is.

It asks the kernel and the file system, and nothing of forgectl. `python -m tests.faults.oracle HOME [LOCKS]` asks about
the runs of a home; it exits 1 if something is left.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MEMORY = Path("/dev/shm") / f"forgectl-{os.getuid()}"
SHORT = Path("/tmp") / f"forgectl-{os.getuid()}"
"""Where sockets for messages are if the path of the home is too long."""
CGROUPS = Path("/sys/fs/cgroup")
Left = dict[str, list[str]]
"""Kind → what is left of it; kinds of which nothing is left are not in it."""


@dataclass(frozen=True)
class Traces:
    """Where runs of one home may leave traces on this machine. `gpu_locks`: FORGECTL_GPU_LOCK_DIR."""

    home: Path
    gpu_locks: Path | None = None
    runs: tuple[str, ...] = field(default=())
    """None given: all that the home knows."""

    def left(self, *, settle: float = 5.0) -> Left:
        """What is left once the last of it had so many seconds to end. Ask after the end of the runs."""
        deadline = time.monotonic() + settle
        while (found := self._now()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def processes(self) -> dict[int, str]:
        """Pid → command line of each process of the runs, also of one that has replaced its environment."""
        marks = {f"FORGE_RUN_ID={run}".encode() for run in self._runs()}
        if not self.runs:
            marks.add(f"FORGECTL_HOME={self.home}".encode())
        ours = (*self._folders(), *(str(cgroup) for cgroup in self._cgroups()))
        return {
            pid: command
            for pid in _pids()
            if (marks & _environment(pid) or _holds(pid, ours)) and (command := command_of(pid)) is not None
        }

    def _now(self) -> Left:
        processes = self.processes()
        found: Left = {
            "processes": [f"{pid}: {command}" for pid, command in processes.items()],
            "listening ports": sorted(f"{a}:{p} of {pid}" for pid in processes for a, p in _listening(pid)),
            "locks and leases": self._held_locks(),
            "sockets": [str(path) for folder in self._socket_folders() for path in _below(folder)],
            "open sockets": _open_sockets(self._socket_folders()),
            "shared memory": [str(p) for run in self._runs() for p in MEMORY.glob(f"{run}-*")],
            "cgroups": [str(path) for path in self._cgroups()],
            "folders": [str(p) for run in self._runs() for p in (self.home / "runs" / run).glob("shared")],
            "keys": [str(p) for run in self._runs() for p in (self.home / "runs" / run).glob("message-keys")],
        }
        return {kind: what for kind, what in found.items() if what}

    def _runs(self) -> tuple[str, ...]:
        if self.runs:
            return self.runs
        with contextlib.suppress(OSError):
            return tuple(p.name for p in (self.home / "runs").iterdir() if not p.name.startswith("."))
        return ()

    def _folders(self) -> tuple[str, ...]:
        """What only processes of the runs hold open or have mapped."""
        if not self.runs:
            return (f"{self.home}/",)
        return tuple(f"{self.home}/runs/{run}/" for run in self.runs)

    def _socket_folders(self) -> list[Path]:
        sockets = self.home / "sockets"
        folders = [sockets / run for run in self._runs()] if self.runs else [sockets]
        short = (SHORT / f"{zlib.crc32(os.fsencode(sockets / run)):08x}" for run in self._runs())
        return [*folders, *short]

    def _held_locks(self) -> list[str]:
        files = [p for run in self._runs() for p in (self.home / "runs" / run).rglob("*.lock")]
        files += [p for run in self._runs() for p in MEMORY.glob(f"{run}-*.lock")]
        if self.gpu_locks is not None:
            files += _below(self.gpu_locks)
        held = {tuple(line.split()[5].split(":")) for line in Path("/proc/locks").read_text().splitlines()}
        found = []
        for path in files:
            with contextlib.suppress(OSError):
                info = path.stat()
                major, minor = os.major(info.st_dev), os.minor(info.st_dev)
                if (f"{major:02x}", f"{minor:02x}", str(info.st_ino)) in held:
                    found.append(str(path))
        return found

    def _cgroups(self) -> list[Path]:
        names = {f"forgectl-{run}" for run in self._runs()}
        return [Path(folder) for folder, _, _ in os.walk(CGROUPS) if names and Path(folder).name in names]


def with_variable(variable: str) -> dict[int, str]:
    """Pid → command line of every process that has NAME=VALUE in its environment; zombies do not count."""
    mark = variable.encode()
    return {p: command for p in _pids() if mark in _environment(p) and (command := command_of(p)) is not None}


def command_of(pid: int) -> str | None:
    """The command line of a process; None if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _environment(pid: int) -> set[bytes]:
    with contextlib.suppress(OSError):
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return set()


def _holds(pid: int, places: tuple[str, ...]) -> bool:
    """Whether a process has a file open below one of the places, or is in one that is a cgroup."""
    with contextlib.suppress(OSError):
        if any(f"/{Path(place).name}" in _text(pid, "cgroup") for place in places if place.startswith(str(CGROUPS))):
            return True
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(places):
                    return True
    return False


def _text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(errors="replace")


def _listening(pid: int) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that a process listens on."""
    import psutil

    found: set[tuple[str, int]] = set()
    with contextlib.suppress(psutil.Error):
        for c in psutil.Process(pid).net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN:
                found.add((c.laddr.ip, c.laddr.port))
    return found


def listening_ports(pids: Iterable[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that one of `pids` listens on."""
    return {port for pid in pids for port in _listening(pid)}


def _open_sockets(folders: list[Path]) -> list[str]:
    """Unix sockets that are bound below the folders and open, though perhaps their files were removed."""
    names = tuple(f"{folder}/" for folder in folders)
    bound = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text(errors="replace").splitlines())
    return sorted({words[7] for words in bound if len(words) == 8 and words[7].startswith(names)})


def _below(folder: Path) -> list[Path]:
    """What is in a folder, however deep; the folder itself, too, if it is for one run alone."""
    return sorted(folder.rglob("*")) if folder.is_dir() else []


def main() -> int:
    """Print what is left of the runs of a home."""
    [_, home, *more] = sys.argv
    found = Traces(Path(home), Path(more[0]) if more else None).left()
    for kind, what in found.items():
        sys.stdout.write("".join(f"{kind}: {one}\n" for one in what))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
