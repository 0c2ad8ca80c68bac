"""A call under way: the answers of its ranks so far, whatever thread and event loop they are read in."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from forgectl.errors import UnreachableError
from forgectl.messages.frames import LOST
from forgectl.system.futures import Future
from forgectl.system.loops import in_loop, loop_of_calls, plain_loop, running_loop

R = TypeVar("R")
_counting = threading.Lock()  # of answers


class CallSender(Protocol):
    """What a call needs of the exchange that sent it."""

    def forget(self, call: Call[Any]) -> None:
        """Nobody waits for it any more."""
        ...

    def read_elsewhere(self, call: Call[Any]) -> None:
        """Its loop has changed."""
        ...


class Call(Future[R]):
    """One call of several ranks: their answers so far, and in the end what `finish` makes of them.

    `loads` makes a value of an answer (its kind and body) or raises. `loop` takes answers in.
    """

    __slots__ = ("_arrived", "_finish", "_loads", "_missing", "_timer", "exchange", "loop", "on_end", "parts", "values")

    def __init__(
        self, label: str, count: int, loads: Callable[[int, Sequence[Any]], Any], finish: Callable[[list[Any]], R]
    ) -> None:
        super().__init__(label)
        self.loop = loop_of_calls()
        self.values: list[Any] = [None] * count
        self.parts: list[Any] = []
        """Its messages, the exchange's own."""
        self.exchange: CallSender | None = None
        """What it was sent by."""
        self.on_end: Callable[[Call[R]], Any] | None = None
        self._missing = count
        self._loads = loads
        self._finish = finish
        self._arrived: deque[tuple[int, int, Sequence[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def fail_after(self, seconds: float, and_then: Callable[[], Any]) -> None:
        """Have it end by TimeoutError, if it has no answer by then; `and_then` is called in that case."""
        if self.loop is not running_loop():
            in_loop(self.loop, self.fail_after, seconds, and_then)
        elif not self.done():
            self._timer = self.loop.call_later(seconds, self._time_out, seconds, and_then)

    def _time_out(self, seconds: float, and_then: Callable[[], Any]) -> None:
        if not self.done():
            self.fail(TimeoutError(f"{self._label} has not answered within {seconds:g} s; it may still be running"))
            and_then()

    def arrived(self, index: int, kind: int, body: Sequence[Any], here: asyncio.AbstractEventLoop | None) -> None:
        """What the rank of that index answers, read in the loop `here`."""
        if self.loop is here:
            self._answer(index, kind, body)
            return
        self._arrived.append((index, kind, body))
        if self.loop.is_running():
            in_loop(self.loop, self._take)
        else:
            self._take()

    def _take(self) -> None:
        while self._arrived:
            try:
                answer = self._arrived.popleft()
            except IndexError:  # another thread was quicker: the loop is not running
                return
            self._answer(*answer)

    def _answer(self, index: int, kind: int, body: Sequence[Any]) -> None:
        if self.done():
            return
        try:
            if kind == LOST:
                raise UnreachableError(f"{self._label}: {bytes(body[0]).decode(errors='replace')}")
            self.values[index] = self._loads(kind, body)
        except Exception as e:
            self.fail(e)
            return
        with _counting:
            self._missing -= 1
        if not self._missing:
            self.succeed(self._finish(self.values))

    def _waited_for(self) -> None:
        if self.loop is not running_loop() and not self.loop.is_running():  # it has ended, or will stand still
            self.loop = plain_loop()
            if self.exchange is not None:
                self.exchange.read_elsewhere(self)
            self._take()

    def _ended(self) -> None:
        if self._timer is not None and self.loop is running_loop():
            self._timer.cancel()
        self._timer = None
        if self._missing and self.exchange is not None:
            self.exchange.forget(self)
        self.parts = []  # they know it: what it got would be kept until somebody collects garbage
        if self.on_end is not None:
            self.on_end(self)
            self.on_end = None
