"""A mesh of actors as its callers have it: the generation that is up, and the calls that wait for one."""

from __future__ import annotations

import functools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from forgectl.actor.deaths import fresh_copy
from forgectl.actor.endpoint import Interface
from forgectl.actor.ranks import Ranks, new_call
from forgectl.errors import ActorDied
from forgectl.messages import pickling
from forgectl.messages.call import Call
from forgectl.rank.progress import made_call
from forgectl.system.futures import Future

R = TypeVar("R")
REPORT_SECONDS = 60.0
"""Least time between two reports of a process that calls of a mesh had no answer in time."""
Send = Callable[[Ranks], object]
Fail = Callable[[BaseException], object]


class Called:
    """Who is called, one generation after another. Calls may come from any thread.

    A call that comes while no generation is up waits for the next one. Waiting calls are sent before any that is made
    later, in the order in which they were made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()  # what is sent may fail at once, and whoever learns of it may call again
        self._ranks: Ranks | None = None
        self._why_over: BaseException | None = None
        self._waiting: deque[tuple[Send, Fail]] = deque()

    def _timed_out(self, label: str, seconds: float) -> None:
        """A call had no answer in time."""

    def now(self) -> Ranks | None:
        """The ranks of the generation that is up, if one is."""
        return self._ranks

    def ranks(self) -> Future[Ranks]:
        """Those of the generation that is up or comes next; it fails where there will be none."""
        future = Future[Ranks](f"mesh {self.name}")
        self._send(future.succeed, future.fail)
        return future

    def call(
        self,
        ranks: Sequence[int],
        request: Any,
        finish: Callable[[list[Any]], R],
        *,
        label: str,
        timeout: float | None = None,
    ) -> Future[R]:
        """Send a request to some ranks, now or once the mesh is up; `finish` makes the future's value of their answers.

        The future fails with ActorDied as soon as a death is reported, with the exception of the first rank that
        raises (the remote traceback is its cause), with TimeoutError after `timeout` seconds, and with UnreachableError
        when a connection is lost, and with what pickling raises.
        """
        made_call()
        call = new_call(label, len(ranks), finish)
        if timeout is not None:
            call.fail_after(timeout, functools.partial(self._timed_out, label, timeout))
        try:
            frames = pickling.dumps(request)
            now = self.now()
        except Exception as e:
            call.fail(e)
            return call
        if now is not None:
            now.send(call, ranks, frames)
        else:
            self._call_later(call, ranks, pickling.copied(frames))
        return call

    def _call_later(self, call: Call[Any], ranks: Sequence[int], frames: list[Any]) -> None:
        def send(now: Ranks) -> None:
            if not call.done():
                now.send(call, ranks, frames)

        self._send(send, call.fail)

    def _send(self, send: Send, fail: Fail) -> None:
        """Have `send` called with the ranks once they are there, or `fail` with the reason why there will be none."""
        ranks = self.now()
        if ranks is None:
            with self._lock:
                ranks = self._ranks
                if ranks is None and self._why_over is None:
                    self._waiting.append((send, fail))
                    return
        if ranks is not None:
            send(ranks)
        else:
            assert self._why_over is not None
            fail(_copy(self._why_over))

    # ------------------------------------------------------------ what becomes of it

    def _came_up(self, ranks: Ranks) -> None:
        with self._lock:
            while self._waiting:
                self._waiting.popleft()[0](ranks)
            self._ranks = ranks

    def _is_over(self, why: BaseException) -> None:
        with self._lock:
            self._ranks = None
            self._why_over = why
            waiting, self._waiting = self._waiting, deque()
        for _, fail in waiting:
            fail(_copy(why))


class CalledMesh(Called, ABC):
    """What a handle needs of its mesh."""

    def __init__(self, name: str, interface: Interface, procs: int) -> None:
        super().__init__(name)
        self.interface = interface
        self.procs = procs
        self.adopted = False  # whether this process drives it, and an earlier driver constructed it
        self._reported_at = -REPORT_SECONDS

    @abstractmethod
    def foreign(self) -> Any:
        """The mesh as other processes may have it."""

    @abstractmethod
    async def shutdown(self, grace: float) -> None:
        """End it, and return when nothing is left of it."""

    @abstractmethod
    def report_timeout(self, generation: int, what: str) -> None:
        """Report that a call of its ranks had no answer in time; `what` says which. Does not wait."""

    def _timed_out(self, label: str, seconds: float) -> None:
        ranks, now = self.now(), time.monotonic()
        if ranks is not None and now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            self.report_timeout(ranks.generation, f"{label} has not answered within {seconds:g} s")


def _copy(error: BaseException) -> BaseException:
    return fresh_copy(error) if isinstance(error, ActorDied) else error
