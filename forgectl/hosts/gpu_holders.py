"""Who holds a GPU's lock, in words.

The lock files are in a folder where every user of the machine may write. We never follow, wait for or trust what
another user put there: at worst it makes a GPU look taken.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import re
import stat
import urllib.parse
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

OPEN = os.O_NOFOLLOW | os.O_NONBLOCK
"""Never follow a link; never wait for the other end of a FIFO or for the holder of a file lease."""

NOT_OURS = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EAGAIN, errno.EROFS}
"""Errors of `open` if others put something else in the place of a lock file. Any other error is a real failure."""

_RECORD_LIMIT = 1024  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def lock_name(uuid: str) -> str:
    """The name of a GPU's lock file; different UUIDs have different files, whatever they contain."""
    return f"forgectl-gpu-{urllib.parse.quote(uuid, safe='')}.lock"


def is_lock_file(found: os.stat_result) -> bool:
    """Whether it is a plain file with one name: one with a second name (a hard link) has another purpose."""
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def holders_in(folder: int, uuids: Iterable[str]) -> dict[str, str]:
    """UUID → who holds it, in words; without free GPUs. `folder` is a descriptor of the lock folder."""
    found = {uuid: _holder(folder, uuid) for uuid in uuids}
    return {uuid: words for uuid, words in found.items() if words is not None}


def blocker(folder: int, uuid: str) -> str:
    """Who blocks a lock that cannot be opened, or that somebody holds shared although forgectl does not."""
    name = lock_name(uuid)
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return f"somebody who keeps removing its lock file {name}"
    if _lockers(found):
        return _locker_words(found)
    return f"user {_user(found.st_uid)}, whose {name} cannot be locked: not a plain file, or closed to others"


def write_record(lock: int, *, run: str, mesh: str) -> None:
    """Write to a lock's file who holds it. We cannot write to another user's file; /proc/locks then shows our pid."""
    owner = os.fstat(lock).st_uid
    if owner != os.geteuid():
        return
    record = {"run": run, "mesh": mesh, "user": _user(owner), "pid": os.getpid(), "pidns": _pid_namespace()}
    line = json.dumps(record).encode() + b"\n"
    with suppress(OSError):  # a full disk must not cost the lease
        os.pwrite(lock, line, 0)
        os.ftruncate(lock, len(line))


def process_words(pid: int) -> str | None:
    """`pid 812 (python train.py) of user bob`, or None if no such process is visible."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            command, user = process.cmdline() or [process.name()], process.username()
    except (psutil.Error, OSError, ValueError):
        return None
    return f"pid {pid} ({_harmless(_program(command))}) of user {_harmless(user)}"


def _program(command: list[str]) -> str:
    """The program that runs, without its arguments: they may be secrets, and this text ends up in logs."""
    name = Path(command[0]).name
    if not name.startswith("python"):
        return name
    for i, word in enumerate(command[1:], 1):
        if word in ("-", "-c") or word.startswith("--"):
            break
        if word == "-m" or not word.startswith("-"):
            return " ".join([name, *command[i : i + 1 + (word == "-m")]])
    return name


def _holder(folder: int, uuid: str) -> str | None:
    """Who holds a GPU, or None. Only the kernel knows whether a lock is held: try a shared lock, and release it."""
    try:
        lock = os.open(lock_name(uuid), os.O_RDONLY | OPEN, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno in NOT_OURS:
            return blocker(folder, uuid)
        raise
    try:
        if not is_lock_file(os.fstat(lock)):
            return blocker(folder, uuid)
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _record_words(lock) or _locker_words(os.fstat(lock))
    finally:
        os.close(lock)


def _record_words(lock: int) -> str | None:
    """What the file says about its holder; None if the kernel names another one: the record may be old."""
    try:
        record = json.loads(os.pread(lock, _RECORD_LIMIT, 0).split(b"\n")[0])
        run, mesh, pid, namespace = (record[k] for k in ("run", "mesh", "pid", "pidns"))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 2**31:
        return None
    if not all(type(name) is str and _NAME.fullmatch(name) for name in (run, mesh)):
        return None
    found = os.fstat(lock)
    words = f"run {run}, mesh {mesh}, of user {_user(found.st_uid)}, pid {pid}"
    if namespace != _pid_namespace():
        return f"{words} of another container"
    lockers = _lockers(found)
    if lockers and pid not in lockers:
        return None
    return words if psutil.pid_exists(pid) else f"{words} (ended, but not all that it started)"


def _locker_words(found: os.stat_result) -> str:
    for pid in _lockers(found):
        return process_words(pid) or f"what is left of pid {pid}, which has ended"
    return "a process that cannot be seen from here"


def _lockers(found: os.stat_result) -> list[int]:
    """The pids that took the flock of this file, as far as /proc/locks shows them.

    It shows none of other containers. In a container, it shows none that has ended while others still hold its lock.
    """
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return []
    # "12: FLOCK  ADVISORY  WRITE 4711 00:19:5678 0 EOF"; those that wait have "->" before FLOCK
    table = [line.split() for line in lines]
    return [int(row[4]) for row in table if len(row) > 5 and row[1] == "FLOCK" and row[5] == place]


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _user(uid: int) -> str:
    try:
        return _harmless(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


def _harmless(text: str, limit: int = 60) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
