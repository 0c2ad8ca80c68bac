"""`orphans.py WAY`: who gets a process whose parent ends, and who ends with its own; it fails where that is wrong."""

from __future__ import annotations

import os
import signal
import sys

from forgectl.system.processes import become_subreaper, die_with_parent


def fall_to_a_subreaper() -> None:
    become_subreaper()
    ready, told = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(told)
            os.read(ready, 1)  # until every other holder of the pipe is gone or has closed it
            os._exit(7)
        os._exit(0)
    os.wait()
    os.close(told)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7


def die(too_late: bool) -> None:
    """Where it is too late, the parent has ended before the child asks to end with it."""
    become_subreaper()
    ready, told = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        if os.fork() == 0:
            while too_late and os.getppid() == parent:
                os.sched_yield()
            die_with_parent(parent)
            os.write(told, b"x")
            signal.pause()
        if not too_late:
            os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL


def live_with_a_living_parent() -> None:
    parent = os.getpid()
    if os.fork() == 0:
        die_with_parent(parent)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7


WAYS = {
    "fall": fall_to_a_subreaper,
    "die": lambda: die(too_late=False),
    "die-too-late": lambda: die(too_late=True),
    "live": live_with_a_living_parent,
}
WAYS[sys.argv[1]]()
