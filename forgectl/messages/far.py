"""A driver's own connection to the messenger of another machine: two hops a call less than through its machine's.

It asks the messenger of its machine for the address and the keys (WAY). Where there is no such connection (yet), calls
go through that messenger. One that was there and has broken is dialled again, and calls wait: had they gone the other
way meanwhile, they might overtake what is still on its way. Lines change over when nothing of theirs is under way.
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
"""Between two questions for the address of a machine that is not reached."""


class Far:
    """The way to one machine. To be used under the lock of its exchange."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.way: SharedSocket | None = None
        """The connection, once there is one."""
        self.told: SharedSocket | None = None
        """What tells of the one that there is, or that is dialled."""
        self.broken = False
        """There was one, and there may be another."""
        self.asked = 0
        """The number of the request for the address that is unanswered."""
        self.trying = False
        """Somebody asks again from time to time."""
        self._address = ""
        self._dealer: SharedSocket | None = None
        self._next = 0.0

    @property
    def wants_asking(self) -> bool:
        """Whether it is time to ask for the address (again)."""
        return self.way is None and time.monotonic() >= self._next

    def ask(self, number: int) -> None:
        """It is asked for."""
        self.asked = number
        self._next = time.monotonic() + ASK_SECONDS

    def dial(self, answer: Any) -> list[SharedSocket]:
        """Dial what a messenger has answered, if that is anything new. What is no more, as `hang_up` has it."""
        self.asked = 0
        told = json.loads(bytes(answer))
        address = told["address"]
        if address and address == self._address:
            return []
        retired = self.hang_up()
        self.broken = self.broken and bool(address)
        if address:
            made, ours = new_socket(zmq.DEALER), CurveKeys(told["secret"], told["public"])
            self.told = SharedSocket(dial(made, ours, told["server"], address))
            self._address, self._dealer = address, SharedSocket(made)
        return retired

    @property
    def sources(self) -> list[SharedSocket]:
        """What is to be read until there is a connection (`listen`)."""
        return [self.told, self._dealer] if self.told is not None and self._dealer is not None else []

    def listen(self) -> bool | None:
        """What has become of it: True, there is a connection; False, there is none any more; None: nothing new."""
        if self.told is None or self._dealer is None:
            return None
        for event in map(event_of, taken(self.told.socket, all_=True)):
            if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return False
            with contextlib.suppress(zmq.Again):  # its end will be told
                send(self._dealer.socket, (HELLO,))
        if self.way is None and taken(self._dealer.socket, all_=False):  # we were greeted
            self.way, self.broken = self._dealer, False
            return True
        return None

    def hang_up(self) -> list[SharedSocket]:
        """It is no more: what nobody is to read any more, and then to be closed."""
        if self.told is None or self._dealer is None:
            return []
        self._dealer.socket.disable_monitor()
        retired = self.sources
        self.broken = self.broken or self.way is not None
        self.told = self.way = self._dealer = None
        self._address = ""
        self._next = time.monotonic() + (REDIAL_MS / 1000 if self.broken else ASK_SECONDS)
        return retired
