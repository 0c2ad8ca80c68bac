"""Waits until processes have ended, without polling."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial

from forgectl.system.cgroups import Cgroup, EmptyWatch
from forgectl.system.processes import Identity, ProcessTable, open_pidfd
from forgectl.system.tasks import within

_AT_ONCE = 128  # descriptors in one wait; the other processes come in the next
_POLL = 0.02  # seconds, where the kernel gives us no descriptor to wait on
_TURN = 0.001  # seconds, so that a caller that waits again and again lets other tasks run


async def all_ended(
    processes: Iterable[Identity],
    groups: Sequence[Cgroup],
    timeout: float,
    wakeup: asyncio.Event,
    table: ProcessTable,
) -> None:
    """Return when the processes have ended and the cgroups are empty, when `wakeup` is set, or after `timeout` seconds.

    With very many processes it returns when some have ended. So the caller has to look again.
    """
    loop = asyncio.get_running_loop()
    waiting: set[int] = set()

    def over(fd: int) -> None:
        loop.remove_reader(fd)
        waiting.discard(fd)
        if not waiting:
            wakeup.set()

    def changed(watch: EmptyWatch) -> None:
        if not watch.populated():
            over(watch.fileno())

    with ExitStack() as stack:
        for group in groups:
            if watch := _watch(group):
                stack.callback(watch.close)
                stack.callback(loop.remove_reader, watch.fileno())
                if watch.populated():
                    waiting.add(watch.fileno())
                    loop.add_reader(watch.fileno(), partial(changed, watch))
        fds, blind = _pidfds(processes, table)
        for fd in fds:
            stack.callback(os.close, fd)
            stack.callback(loop.remove_reader, fd)
            waiting.add(fd)
            loop.add_reader(fd, partial(over, fd))
        limit = _POLL if blind else timeout if waiting else _TURN
        try:
            await within(max(_TURN, min(limit, timeout)), wakeup.wait())
        except asyncio.TimeoutError:
            pass


def _watch(group: Cgroup) -> EmptyWatch | None:
    try:
        return EmptyWatch(group)
    except OSError:
        return None


def _pidfds(processes: Iterable[Identity], table: ProcessTable) -> tuple[list[int], bool]:
    """Descriptors of those that still exist, and whether one of them could not be opened."""
    fds: list[int] = []
    for identity in processes:
        if len(fds) == _AT_ONCE:
            break
        try:
            fd = open_pidfd(identity, table)
        except OSError:
            return fds, True
        if fd is not None:
            fds.append(fd)
    return fds, False
