"""Two folders that all processes of a run on one host share: in memory, and on disk. Neither outlives the run there.

Who keeps them holds a lock beside the one in memory. So the next one on this machine removes what is left after an end
that nobody could clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

from forgectl.system.private import NotPrivateError, check_private, private_folder

MEMORY = Path("/dev/shm")
LOCK = ".lock"


class SharedFolders(NamedTuple):
    """Where they are. Who uses one makes it."""

    memory: Path
    """As `disk` on a machine that has no file system in memory, or where another user made our folder there."""
    disk: Path

    def remove(self) -> None:
        """Remove both, and the lock."""
        for folder in set(self):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            _lock_of(self.memory).unlink(missing_ok=True)
            self.disk.parent.rmdir()
        with contextlib.suppress(OSError):
            _in_memory().rmdir()


def shared_folders(run: str, run_dir: Path, host: str) -> SharedFolders:
    """Those of one host of a run; `run_dir` is the run's directory there."""
    disk = run_dir / "shared" / host
    if not _is_ours_alone(_in_memory()):
        return SharedFolders(disk, disk)
    mark = zlib.crc32(os.fsencode(disk))  # runs of several homes, or launched by several machines, may share a name
    return SharedFolders(_in_memory() / f"{run}-{mark:08x}", disk)


def keep(folders: SharedFolders) -> int | None:
    """Remove what ended runs have left, and lock these folders until the descriptor is closed; None without memory."""
    if folders.memory == folders.disk:
        return None
    try:
        private_folder(str(folders.memory.parent))  # first: what is removed here must be ours, not where a link leads
        for lock in _in_memory().glob(f"*{LOCK}"):
            if (fd := _locked(lock)) is not None:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
                os.close(fd)
        return _locked(_lock_of(folders.memory), create=True)
    except OSError:
        return None  # whoever uses the folder learns of it


def _locked(lock: Path, *, create: bool = False) -> int | None:
    """The descriptor of a lock that nobody else holds."""
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(lock.stat(), os.fstat(fd)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:  # it was removed meanwhile
            pass
        os.close(fd)
        if not create:
            return None


def _is_ours_alone(folder: Path) -> bool:
    """Whether we have this folder in memory, or can make it. Others can predict its name, and be the first."""
    try:
        check_private(str(folder))
    except NotPrivateError:
        return False
    return os.access(MEMORY, os.W_OK)


def _lock_of(memory: Path) -> Path:
    return memory.with_name(memory.name + LOCK)


def _in_memory() -> Path:
    return MEMORY / f"forgectl-{os.getuid()}"
