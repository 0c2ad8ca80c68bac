"""Background tasks, and ends of processes, in an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Keeps tasks alive until they end; an event loop does not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work` as a task of the running loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(tuple(self._tasks))


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """What `work` gives. After so many seconds it is cancelled; raises asyncio.TimeoutError unless it ends even so.

    asyncio.wait_for loses a cancellation that comes just as the work ends (before Python 3.12): its task would go on.
    """
    task = asyncio.ensure_future(work)
    late = False
    try:
        await asyncio.wait([task], timeout=seconds)
        late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, so that nothing logs it
    if late and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


def on_exit(pid: int, gone: Callable[[], object]) -> Callable[[], None]:
    """Call `gone` in the running loop once a process has exited; returns what stops that, once or several times.

    Raises ProcessLookupError if there is no such process, OSError if it cannot be watched.
    """
    pidfd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    open_fds = [pidfd]

    def stop() -> None:
        while open_fds:
            loop.remove_reader(pidfd)
            os.close(open_fds.pop())

    def exited() -> None:
        stop()
        gone()

    loop.add_reader(pidfd, exited)
    return stop
