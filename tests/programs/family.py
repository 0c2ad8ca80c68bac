"""Stands in for a fork server with one rank that founds a family: `family.py KIND CGROUP_PROCS|- FD`.

Says "rank PID START_TIME" on standard output, reaps what falls to it, and lives until its standard input ends.
Every process of the family writes its pid as a line to FD and keeps FD open, so the pipe ends with the last.
Run as `family.py rest|bomb FD`, it is a member of the family that was executed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36


def rest(fd: int) -> NoReturn:
    """Join the family and live until a signal ends it."""
    os.write(fd, b"%d\n" % os.getpid())
    while True:
        signal.pause()


def child(work: Callable[..., object], *args: object) -> int:
    """Fork a process that does `work` and never returns."""
    if (pid := os.fork()) == 0:
        try:
            work(*args)
        finally:
            os._exit(0)
    return pid


def tree(fd: int, depth: int = 2) -> NoReturn:
    if depth:
        for _ in range(2):
            child(tree, fd, depth - 1)
    rest(fd)


def daemon(fd: int, then: Callable[[int], object]) -> NoReturn:
    """The double fork: `then(fd)` runs in a session of its own, with its parents gone."""

    def middle() -> None:
        os.setsid()
        child(then, fd)

    os.waitpid(child(middle), 0)
    rest(fd)


def executed(fd: int, env: Mapping[str, str] | None = None, what: str = "rest") -> NoReturn:
    os.execve(sys.executable, [sys.executable, "-S", __file__, what, str(fd)], os.environ if env is None else env)


def leave(fd: int) -> None:
    """The rank ends at once and leaves children, one of them in a session of its own."""
    child(rest, fd)
    child(daemon, fd, executed)


def leave_hidden(fd: int) -> None:
    """Likewise, but what is in a session of its own has not been executed."""
    child(rest, fd)
    child(daemon, fd, rest)


def stubborn(fd: int) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tree(fd, 1)


def stopped(fd: int) -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    child(rest, fd)
    os.write(fd, b"%d\n" % os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    rest(fd)


def bomb(fd: int, left: int = 400) -> NoReturn:
    """Ever new pids and sessions, two alive at a time, `left` times; ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while left:
        left -= 1
        os.write(fd, b"%d\n" % os.getpid())
        child(time.sleep, 0.02)
        if os.fork():
            os._exit(0)  # the fuse burns on in the child, under another pid
        os.setsid()
    rest(fd)


def headless(fd: int) -> None:
    """Its first thread ends, another lives on: /proc shows a zombie that is none."""
    threading.Thread(target=rest_in_thread, args=(fd,)).start()
    ctypes.CDLL(None).pthread_exit(None)


def rest_in_thread(fd: int) -> None:
    os.write(fd, b"%d\n" % os.getpid())
    select.select([], [], [])


def escapes_cgroup(fd: int) -> NoReturn:
    """Moves to the root of cgroup v2, as `systemd-run` or a container engine would move it."""
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if os.path.exists(f"{root}/cgroup.procs"):
            with open(f"{root}/cgroup.procs", "w") as file:
                file.write("0")
            break
    rest(fd)


def own_cgroup(fd: int) -> NoReturn:
    """Makes a cgroup below its own, and moves a child there."""
    below = os.path.join(os.path.dirname(sys.argv[2]), "below")
    if sys.argv[2] == "-":
        tree(fd, 1)

    def moved() -> NoReturn:
        os.mkdir(below)
        with open(f"{below}/cgroup.procs", "w") as file:
            file.write("0")
        rest(fd)

    child(moved)
    rest(fd)


KINDS: dict[str, Callable[[int], object]] = {
    "tree": tree,
    "daemon": lambda fd: daemon(fd, rest),
    "daemon-executed": lambda fd: daemon(fd, executed),
    "daemon-cleared": lambda fd: daemon(fd, lambda fd: executed(fd, {})),
    "leave": leave,
    "leave-hidden": leave_hidden,
    "stubborn": stubborn,
    "stopped": stopped,
    "bomb": bomb,
    "bomb-executed": lambda fd: executed(fd, what="bomb"),
    "headless": headless,
    "escapes-cgroup": escapes_cgroup,
    "own-cgroup": own_cgroup,
}


def rank(kind: str, cgroup: str, fd: int) -> None:
    os.setsid()
    if cgroup != "-":
        with open(cgroup, "w") as file:
            file.write("0")
    os.environ["FORGE_MESH"] = os.environ.pop("FAMILY_MESH")
    os.environ.pop("FORGE_ROLE", None)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    KINDS[kind](fd)


def main() -> None:
    if len(sys.argv) == 3:
        {"rest": rest, "bomb": bomb}[sys.argv[1]](int(sys.argv[2]))
    kind, cgroup, fd = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.set_inheritable(fd, True)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup, wakeup_in = os.pipe()
    os.set_blocking(wakeup_in, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_in)
    pid = child(rank, kind, cgroup, fd)
    os.close(fd)
    with open(f"/proc/{pid}/stat") as file:  # not reaped yet, so this is it
        start_time = file.read().rpartition(")")[2].split()[19]
    print("rank", pid, start_time, flush=True)
    while True:
        ready, _, _ = select.select([0, wakeup], [], [])
        if 0 in ready:
            return
        os.read(wakeup, 4096)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


main()
