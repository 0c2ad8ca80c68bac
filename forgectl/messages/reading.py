"""Which event loops of a process read its sockets: those that wait for answers, in any thread."""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable
from typing import Any

from forgectl.messages.sockets import SharedSocket, has_come


class LoopWatch:
    """Whether one event loop reads answers, and for how many it waits."""

    __slots__ = ("waits_for", "watching")

    def __init__(self) -> None:
        self.waits_for = 0  # answers
        self.watching = False


class Readers:
    """Lets event loops read sockets. Call all methods except `wait` under `lock`, which the sockets' owner has.

    `drain(source, True)` receives all messages of a socket, also later ones; `drain(source)` only the first.
    """

    def __init__(self, lock: threading.Lock, drain: Callable[..., Any]) -> None:
        self.used: set[SharedSocket] = set()
        """Sockets that were used: this may have cleared the sign of an answer (see `look`)."""
        self._lock = lock
        self._drain = drain
        self._watches: dict[asyncio.AbstractEventLoop, LoopWatch] = {}
        self._on: dict[int, Callable[[], Any]] = {}

    def watch(self, loop: asyncio.AbstractEventLoop) -> LoopWatch:
        """Have a loop read answers, as it is about to wait for some; loops that wait for none stop reading."""
        watch = self._watches.get(loop)
        if watch is None:
            for closed in [other for other in self._watches if other.is_closed()]:
                del self._watches[closed]
            watch = self._watches[loop] = LoopWatch()
        if watch.watching:
            return watch
        watch.watching = True
        for fd, read in self._on.items():
            _now_or_soon(loop, loop.add_reader, fd, read)
        for other, idle in self._watches.items():
            if idle.watching and not idle.waits_for and other is not loop:
                in_loop(other, self._stop_watching, other)
        return watch

    def _stop_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            watch = self._watches[loop]
            if watch.watching and not watch.waits_for:
                watch.watching = False
                for fd in self._on:
                    loop.remove_reader(fd)

    def _watching(self) -> list[asyncio.AbstractEventLoop]:
        return [loop for loop, watch in self._watches.items() if watch.watching and not loop.is_closed()]

    def add(self, source: SharedSocket, read: Callable[[], Any] | None = None) -> None:
        """Have a socket read from now on, by `read`, or else by `drain`."""
        do = self._on[source.fd] = read or (lambda: self._drain(source))
        for loop in self._watching():
            _now_or_soon(loop, loop.add_reader, source.fd, do)
            in_loop(loop, do)  # for messages from before

    def retire(self, sources: list[SharedSocket]) -> None:
        """Close sockets that nobody needs any more, once no loop watches their descriptors."""
        for source in sources:
            self._on.pop(source.fd, None)
            self.used.discard(source)
        left = self._watching()

        def stop_reading(loop: asyncio.AbstractEventLoop) -> None:
            for source in sources:
                loop.remove_reader(source.fd)
            with self._lock:
                left.remove(loop)
                if not left:
                    close()

        def close() -> None:
            for source in sources:
                source.socket.close()

        if not left:
            close()
        for loop in list(left):
            in_loop(loop, stop_reading, loop)

    def look(self) -> None:
        """Check the sockets that were used, in a loop that reads."""
        used, self.used = self.used, set()
        here = running_loop()
        for source in used:
            if source.socket.closed or (here is not None and source.looked_at_in is here):
                continue
            if here is not None and here in self._watches:
                source.looked_at_in = here
                here.call_soon(self._drain, source, True)
            elif has_come(source.socket) and (loops := self._watching()):
                in_loop(loops[0], self._drain, source)

    def wait(self, seconds: float) -> None:
        """Wait until a socket is readable, or for `seconds`."""
        poll = select.poll()
        for fd in list(self._on):
            poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this code runs in, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _now_or_soon(loop: asyncio.AbstractEventLoop, do: Callable[..., Any], *arguments: Any) -> None:
    if loop is running_loop():
        do(*arguments)
    else:
        in_loop(loop, do, *arguments)


def in_loop(loop: asyncio.AbstractEventLoop, do: Callable[..., Any], *arguments: Any) -> None:
    """Call `do` soon in that loop, from any thread; not if the loop is closed, as nobody waits there any more."""
    try:
        loop.call_soon_threadsafe(do, *arguments)
    except RuntimeError:
        pass
