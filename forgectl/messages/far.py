"""A driver's own connection to the messenger of another machine: saves two hops per call.

It asks the messenger of its machine for the address and the keys (WAY). Without such a connection, calls go through
that messenger. A broken connection is dialled again, and calls wait for it: on the other way they might overtake
earlier calls. A line changes its way when none of its calls is under way.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import zmq

from forgectl.messages.dialling import HELLO, REDIAL_MS, CurveKeys, dial, event_of
from forgectl.messages.sockets import SharedSocket, new_socket, send, taken

ASK_SECONDS = 1.0
"""Between two questions for the address of a machine without a connection."""


class Far:
    """The connection to one machine. Use it under the lock of its exchange."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.way: SharedSocket | None = None
        """The connection, once it is made."""
        self.monitor: SharedSocket | None = None
        """Reports events of the connection, made or dialled."""
        self.broken = False
        """There was a connection, and there may be another one."""
        self.asked = 0
        """The number of the unanswered request for the address, or 0."""
        self.trying = False
        """A timer is set that asks again."""
        self._address = ""
        self._dealer: SharedSocket | None = None
        self._next = 0.0

    @property
    def wants_asking(self) -> bool:
        """Whether it is time to ask for the address (again)."""
        return self.way is None and time.monotonic() >= self._next

    def ask(self, number: int) -> None:
        """Note that a request for the address was sent."""
        self.asked = number
        self._next = time.monotonic() + ASK_SECONDS

    def dial(self, answer: Any) -> list[SharedSocket]:
        """Dial the address in a messenger's answer, if it is new; returns sockets to close, as `hang_up` does."""
        self.asked = 0
        found = json.loads(bytes(answer))
        address = found["address"]
        if address and address == self._address:
            return []
        retired = self.hang_up()
        self.broken = self.broken and bool(address)
        if address:
            made, ours = new_socket(zmq.DEALER), CurveKeys(found["secret"], found["public"])
            self.monitor = SharedSocket(dial(made, ours, found["server"], address))
            self._address, self._dealer = address, SharedSocket(made)
        return retired

    @property
    def sources(self) -> list[SharedSocket]:
        """The sockets to read until there is a connection (`listen`)."""
        return [self.monitor, self._dealer] if self.monitor is not None and self._dealer is not None else []

    def listen(self) -> bool | None:
        """Read what has come. True: the connection is made; False: it has ended, or failed; None: nothing new."""
        if self.monitor is None or self._dealer is None:
            return None
        for event in map(event_of, taken(self.monitor.socket, all_=True)):
            if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return False
            with contextlib.suppress(zmq.Again):  # the monitor will report its end
                send(self._dealer.socket, (HELLO,))
        if self.way is None and taken(self._dealer.socket, all_=False):  # we were greeted
            self.way, self.broken = self._dealer, False
            return True
        return None

    def hang_up(self) -> list[SharedSocket]:
        """Give up the connection; returns the sockets that nobody should read any more, and that must be closed."""
        if self.monitor is None or self._dealer is None:
            return []
        self._dealer.socket.disable_monitor()
        retired = self.sources
        self.broken = self.broken or self.way is not None
        self.monitor = self.way = self._dealer = None
        self._address = ""
        self._next = time.monotonic() + (REDIAL_MS / 1000 if self.broken else ASK_SECONDS)
        return retired
