"""One file lock per GPU: a lease lasts exactly as long as the processes that hold it."""

from __future__ import annotations

import fcntl
import os
import random
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forgectl.errors import BusyError, UsageError
from forgectl.frozen import dataclass
from forgectl.hosts import gpu_holders
from forgectl.hosts.gpu_holders import is_lock_file, lock_name
from forgectl.model.plan import Gpu
from forgectl.system.files import open_folder

VARIABLE = "FORGECTL_GPU_LOCK_DIR"
PATIENCE = 0.15  # seconds; a process that only checks, or gives up half-way, holds a lock for microseconds
LONG_PATIENCE = 2.0  # seconds, if no holder is found and still a lock cannot be taken

_SYSTEM_FOLDERS = (Path("/run/lock"), Path("/tmp"))
_FOLDER_HINT = f"set {VARIABLE} to a local folder owned by root with mode 1777, the same for all, or unset it"


@dataclass(frozen=True)
class GpuLease:
    """GPUs of one host, held until `release()` and the end of every process that received the locks."""

    uuids: tuple[str, ...]
    locks: tuple[int, ...]  # open descriptors; ranks are sent them, so a lease outlives its agent

    def release(self) -> None:
        """Release this process's share. The files stay: otherwise two runs could lock two files of one name."""
        locks = self.locks
        object.__setattr__(self, "locks", ())  # never close twice: the number may belong to another file by then
        for lock in locks:
            os.close(lock)


class GpuTaken(BusyError):
    """GPUs that somebody else has; `holders` says who, by UUID."""

    def __init__(self, gpus: Sequence[Gpu], holders: Mapping[str, str], *, mesh: str, host: str) -> None:
        self.holders = dict(holders)
        taken = [g for g in gpus if g.uuid in holders]
        who = "; ".join(f"GPU {g.visible} by {holders[g.uuid]}" for g in taken)
        count = f"{len(taken)} of the {len(gpus)} GPUs" if len(gpus) > 1 else "the GPU"
        verb = "is" if len(taken) == 1 else "are"
        super().__init__(
            f"{count} of mesh {mesh} on host {host} {verb} taken: {who}",
            hint="wait until they are free, or name others with `gpus:` of the host",
        )


def lock_dir(environ: Mapping[str, str]) -> Path:
    """The folder of the locks, the same for all users of a machine; raises UsageError if it cannot be trusted.

    Without FORGECTL_GPU_LOCK_DIR it is a system folder where all may write and none may remove what others made: a
    folder of ours would belong to the first user. Its mode decides, not whether the caller may write (root always
    may), so that all users choose the same one. /tmp comes last: old files may be deleted there.
    """
    chosen = environ.get(VARIABLE)
    if not chosen:
        return next((path for path in _SYSTEM_FOLDERS if _is_shared(path)), _SYSTEM_FOLDERS[-1])
    path = Path(chosen)
    if not path.is_absolute():
        raise UsageError(f"{VARIABLE}={chosen}: not an absolute path", hint=_FOLDER_HINT)
    made = False
    try:
        path.mkdir(0o1777)
        made = True
    except FileExistsError:
        pass
    except OSError as e:
        raise UsageError(f"{VARIABLE}={chosen}: cannot be created: {e.strerror}", hint=_FOLDER_HINT) from e
    with _opened(path) as folder:
        if made:
            os.fchmod(folder, 0o1777)  # whatever the umask
    return path


def acquire(gpus: Sequence[Gpu], *, run: str, mesh: str, host: str, directory: Path) -> GpuLease:
    """Lease all of `gpus` or none; blocks for up to PATIENCE, then raises GpuTaken, which names each holder.

    Blocks for up to LONG_PATIENCE while no holder is found.
    """
    uuids = tuple(sorted({g.uuid for g in gpus}))  # all use the same order, so that one of two rivals succeeds
    start = time.monotonic()
    with _opened(directory) as folder:
        while True:
            locks, blocked = _lock_all(folder, uuids, directory)
            if locks is not None:
                break
            waited = time.monotonic() - start
            if waited >= PATIENCE:
                taken = gpu_holders.holders_in(folder, uuids)
                if not taken and waited >= LONG_PATIENCE:
                    taken = {blocked: gpu_holders.blocker(folder, blocked)}
                if taken:
                    raise GpuTaken(gpus, taken, mesh=mesh, host=host)
            time.sleep(random.uniform(0.002, 0.02))
    for lock in locks:
        gpu_holders.write_record(lock, run=run, mesh=mesh)
    return GpuLease(uuids, locks)


def holders(uuids: Iterable[str], directory: Path) -> dict[str, str]:
    """UUID → who holds it, in words; without free GPUs. It never takes a GPU from anybody."""
    with _opened(directory) as folder:
        return gpu_holders.holders_in(folder, uuids)


def _is_shared(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) and mode & 0o1777 == 0o1777


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor of the folder, so that nobody can replace it meanwhile; raises UsageError if it is not safe."""
    try:
        folder = open_folder(directory)
    except OSError as e:
        why = "it is a symbolic link" if directory.is_symlink() else e.strerror
        raise UsageError(f"GPU lock folder {directory} cannot be used: {why}", hint=_FOLDER_HINT) from e
    try:
        found = os.fstat(folder)
        # In a user namespace the system's own folders do not belong to root.
        if found.st_uid not in (0, os.geteuid()) and directory not in _SYSTEM_FOLDERS:
            why = f"it belongs to another user (uid {found.st_uid}), who may replace its content"
            raise UsageError(f"GPU lock folder {directory} cannot be used: {why}", hint=_FOLDER_HINT)
        if found.st_mode & 0o1002 == 0o0002:
            why = "it has no sticky bit, so everybody may remove what others made there"
            raise UsageError(f"GPU lock folder {directory} cannot be used: {why}", hint=_FOLDER_HINT)
        yield folder
    finally:
        os.close(folder)


def _lock_all(folder: int, uuids: Iterable[str], directory: Path) -> tuple[tuple[int, ...] | None, str]:
    """Descriptors of all locks; or None and the first GPU whose lock failed, with no lock kept."""
    locks: list[int] = []
    with ExitStack() as undo:
        for uuid in uuids:
            name = lock_name(uuid)
            try:
                lock = _open_lock(folder, name)
                if lock is None:
                    return None, uuid
                undo.callback(os.close, lock)
                if not _lock(lock, folder, name):
                    return None, uuid
            except OSError as e:
                what = f"GPU lock {directory / name} cannot be taken: {e.strerror}"
                raise BusyError(what, hint=f"{VARIABLE} may name another folder, the same for all") from e
            locks.append(lock)
        undo.pop_all()
    return tuple(locks), ""


def _open_lock(folder: int, name: str) -> int | None:
    """A descriptor of the lock file, which is created if missing; None if others put something unusable there."""
    while True:
        # First without O_CREAT, which fails on other users' files in sticky folders (fs.protected_regular).
        # Their files can be read only, and that is enough for a flock.
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                return os.open(name, flags | gpu_holders.OPEN, dir_fd=folder)
            except FileNotFoundError:
                break
            except OSError as e:
                if e.errno not in gpu_holders.NOT_OURS:
                    raise
        else:
            return None
        try:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | gpu_holders.OPEN, 0o644, dir_fd=folder)
        except FileExistsError:
            continue  # another process was faster
        os.fchmod(lock, 0o644)  # whatever the umask: other users must be able to open it
        return lock


def _lock(lock: int, folder: int, name: str) -> bool:
    """Whether `lock` is now ours, and still the file of that name."""
    if not is_lock_file(os.fstat(lock)):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False
