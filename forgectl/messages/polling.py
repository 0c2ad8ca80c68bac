"""A messenger's loop: its sockets and other descriptors, and timers.

A socket's descriptor shows only that something has changed, and any use of the socket may clear that sign. So each
socket that was used in a round is checked in the next one. zmq.Poller would check all of them every time.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from forgectl.messages.sockets import Socket, receive, send, taken


class Polled:
    """A socket in a loop: `on_message` gets the frames of each message, in order.

    If `named`, ZeroMQ's first frame itself comes before them, as in `receive`.
    """

    def __init__(
        self, loop: Poll, made: Socket, on_message: Callable[[list[Any]], None], *, named: bool = False
    ) -> None:
        self.socket = made
        self.descriptor: int = made.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._loop = loop
        self._on_message = on_message
        self._named = named
        self._busy = False
        loop.watch(self.descriptor, self.touched)
        self.touched()

    def send(self, parts: Sequence[Any]) -> None:
        """Queue a message; raises zmq.ZMQError if no peer has the name in its first frame."""
        self._loop.used[self] = None
        send(self.socket, parts)

    def touched(self) -> None:
        """Have the socket checked in the next round; call this after any other use of it."""
        self._loop.used[self] = None

    def drain(self) -> None:
        """Receive messages. The first one is passed on before the next is looked for."""
        messages = taken(self.socket, all_=self._busy, named=self._named)
        self._busy = bool(messages)
        for frames in messages:
            self._loop.guarded(self._on_message, frames)
        if messages:
            self.touched()

    def drain_all(self) -> None:
        """Receive all messages that have arrived, now."""
        while (frames := receive(self.socket, self._named)) is not None:
            self._loop.guarded(self._on_message, frames)
        self.touched()

    def close(self) -> None:
        """Stop receiving, and close the socket."""
        self._loop.unwatch(self.descriptor)
        self._loop.used.pop(self, None)
        self.socket.close()


class Poll:
    """The loop. It passes every exception of a callback to `failed`, and goes on."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self.used: dict[Polled, None] = {}  # in order
        self._failed = failed
        self._epoll = select.epoll()
        self._on: dict[int, Callable[[], None]] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever the descriptor is readable."""
        self._on[descriptor] = on_readable
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """End `watch`."""
        del self._on[descriptor]
        self._epoll.unregister(descriptor)

    def do_later(self, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` once, after `seconds`."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), do))

    def serve(self) -> None:
        """Run forever."""
        while True:
            for descriptor, _ in self._epoll.poll(self._pause()):
                if (do := self._on.get(descriptor)) is not None:  # it may have been closed in this round
                    self.guarded(do)
            used, self.used = self.used, {}
            for socket in used:
                if not socket.socket.closed:
                    self.guarded(socket.drain)
            while self._later and self._later[0][0] <= time.monotonic():
                self.guarded(heapq.heappop(self._later)[2])

    def _pause(self) -> float | None:
        if self.used:
            return 0
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def guarded(self, do: Callable[..., None], *arguments: Any) -> None:
        """Call `do`; report an exception: whatever a peer sends, at worst it is dropped."""
        try:
            do(*arguments)
        except Exception as e:
            self._failed(e)
