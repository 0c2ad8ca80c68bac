"""Cgroup v2 directories: find, make, list, kill, watch and remove them."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from pathlib import Path

from forgectl.frozen import dataclass


def locate(mountinfo: str, cgroup: str) -> Path | None:
    """The directory of a process's own v2 cgroup, from /proc/self/mountinfo and /proc/PID/cgroup, or None."""
    mounted = [(root, point) for root, point, kind, _ in _cgroup_mounts(mountinfo) if kind == "cgroup2"]
    return _below(mounted, next((line[3:] for line in cgroup.splitlines() if line.startswith("0::/")), None))


def locate_v1(mountinfo: str, cgroup: str, controller: str) -> Path | None:
    """The same for its cgroup v1 directory of one controller."""
    mounted = [
        (root, point)
        for root, point, kind, options in _cgroup_mounts(mountinfo)
        if kind == "cgroup" and controller in options
    ]
    entries = (line.split(":", 2) for line in cgroup.splitlines())
    return _below(mounted, next((e[2] for e in entries if len(e) == 3 and controller in e[1].split(",")), None))


def _below(mounted: list[tuple[str, str]], own: str | None) -> Path | None:
    if own is None or own.startswith("/..") or own.endswith(" (deleted)"):
        return None
    for root, point in mounted:
        inside = os.path.relpath(own, root)  # a mount may show only a part of the hierarchy (containers)
        if inside != ".." and not inside.startswith("../"):
            return Path(point) / inside
    return None


def _cgroup_mounts(mountinfo: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """(the part of the hierarchy that is mounted, where, cgroup or cgroup2, options) of each cgroup mount."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        if kinds[0] in ("cgroup", "cgroup2") and len(fields) >= 5 and len(kinds) >= 3:
            yield _unescape(fields[3]), _unescape(fields[4]), kinds[0], kinds[2].split(",")


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def mounts() -> list[Path]:
    """Where cgroup v2 is mounted on this host: none, one, rarely more."""
    found = _cgroup_mounts(_text(Path("/proc/self/mountinfo")))
    return [Path(point) for _, point, kind, _ in found if kind == "cgroup2"]


def find(*names: str) -> list[Cgroup]:
    """Every v2 cgroup of this host whose path ends in name/name/…, whatever cgroup its maker ran in."""
    inner = Path(*names[1:])
    found = [
        Cgroup(Path(folder, names[0], inner))
        for mount in mounts()
        for folder, below, _ in os.walk(mount)  # not glob, which fails when a cgroup is removed meanwhile
        if names[0] in below
    ]
    return [group for group in found if group.path.is_dir()]


def own() -> Path | None:
    """The v2 cgroup of this process, or None."""
    return locate(_text(Path("/proc/self/mountinfo")), _text(Path("/proc/self/cgroup")))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Cgroup:
    """One v2 cgroup and all below it (user code may have made more there)."""

    path: Path

    @classmethod
    def create(cls, parent: Path | None, *names: str) -> Cgroup | None:
        """PARENT/name/name/…, or None if we cannot make it or cannot kill it as a whole (needs Linux 5.14)."""
        if parent is None or not _may_hold(parent):
            return None
        group = cls(parent.joinpath(*names))
        for _ in range(10):  # another agent of the run may be removing the empty folders above right now
            try:
                group.path.mkdir(parents=True, exist_ok=True)
                break
            except FileNotFoundError:
                continue
            except OSError:
                return None
        if not (group.path / "cgroup.kill").exists() or _text(group.path / "cgroup.type").strip() != "domain":
            group.remove(above=len(names) - 1)
            return None
        return group

    @property
    def procs_path(self) -> str:
        """The file to which a process writes "0" to join."""
        return str(self.path / "cgroup.procs")

    def tree(self) -> list[Path]:
        """Its directories, the deepest first."""
        return [Path(folder) for folder, _, _ in os.walk(self.path, topdown=False)]

    def pids(self) -> set[int]:
        """The processes in it and below. 0 (a process outside our pid namespace) is left out."""
        found = (int(p) for folder in self.tree() for p in _text(folder / "cgroup.procs").split())
        return {pid for pid in found if pid > 0}

    def populated(self) -> bool:
        """Whether any process is left, as the kernel counts; zombies do not count."""
        return "populated 1" in _text(self.path / "cgroup.events")

    def kill(self) -> None:
        """SIGKILL every process in it and below at once: no fork escapes."""
        self._write(self.path / "cgroup.kill", "1")

    def thaw(self) -> None:
        """Undo a freeze by user code, so that a signal can be acted upon."""
        for folder in self.tree():
            self._write(folder / "cgroup.freeze", "0")

    def remove(self, above: int = 0) -> bool:
        """Remove it if it is empty, and up to `above` directories over it where they are empty too."""
        for folder in [*self.tree(), *list(self.path.parents)[:above]]:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break
        return not self.path.exists()

    @staticmethod
    def _write(path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError:
            pass  # removed meanwhile; the caller checks what is left


def _may_hold(parent: Path) -> bool:
    """Whether we may make cgroups there and move processes into them.

    Moving needs write access to the `cgroup.procs` of the common ancestor, which is `parent`.
    """
    return all(os.access(p, os.W_OK, effective_ids=True) for p in (parent, parent / "cgroup.procs"))


class EmptyWatch:
    """A descriptor that becomes readable when a cgroup gains its first or loses its last process.

    `cgroup.events` signals changes as priority data, which asyncio does not watch; an epoll inside does.
    """

    def __init__(self, group: Cgroup) -> None:
        self._events = os.open(group.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._events, select.EPOLLPRI | select.EPOLLERR)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def populated(self) -> bool:
        """Read the state and arm the watch again."""
        try:
            return b"populated 1" in os.pread(self._events, 4096, 0)
        except OSError:
            return False  # removed, so empty

    def close(self) -> None:
        self._epoll.close()
        os.close(self._events)
