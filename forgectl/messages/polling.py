"""A messenger's loop: its sockets and other descriptors, and what is to be done later.

ZeroMQ shows on a socket's descriptor only that something has changed, and any use of the socket may take that sign
away. So each socket that was used in a round is looked at in the next one. zmq.Poller asks all of them every time.
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

    If `named`, after ZeroMQ's first frame itself, as `receive` has it.
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
        """Queue a message; raises zmq.ZMQError where nobody is connected under its first frame."""
        self._loop.used[self] = None
        send(self.socket, parts)

    def touched(self) -> None:
        """To be said after anything else was done with the socket: it is looked at in the next round."""
        self._loop.used[self] = None

    def drain(self) -> None:
        """Take in what has come. The first message is passed on before the next is looked for."""
        messages = taken(self.socket, all_=self._busy, named=self._named)
        self._busy = bool(messages)
        for frames in messages:
            self._loop.guarded(self._on_message, frames)
        if messages:
            self.touched()

    def drain_all(self) -> None:
        """Take in all that has come, before anything else is."""
        while (frames := receive(self.socket, self._named)) is not None:
            self._loop.guarded(self._on_message, frames)
        self.touched()

    def close(self) -> None:
        """Take in no more."""
        self._loop.unwatch(self.descriptor)
        self._loop.used.pop(self, None)
        self.socket.close()


class Poll:
    """The loop. Whatever a callback raises goes to `failed`; the loop goes on."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self.used: dict[Polled, None] = {}  # in order
        self._failed = failed
        self._epoll = select.epoll()
        self._on: dict[int, Callable[[], None]] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Call it whenever something can be read there."""
        self._on[descriptor] = on_readable
        self._epoll.register(descriptor, select.EPOLLIN)

    def unwatch(self, descriptor: int) -> None:
        """No more."""
        del self._on[descriptor]
        self._epoll.unregister(descriptor)

    def do_later(self, seconds: float, do: Callable[[], None]) -> None:
        """Once, in so many seconds."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), do))

    def serve(self) -> None:
        """Without end."""
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
        """Whatever a peer has sent: at worst it is dropped, and reported."""
        try:
            do(*arguments)
        except Exception as e:
            self._failed(e)
