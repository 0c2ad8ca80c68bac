"""The answering side: a rank's socket, and one task for each request."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import zmq

from forgectl.messages import pickling
from forgectl.messages.frames import CAST, ERROR, LOST, SHARED, TAKEN, TO_RANKS, VALUE, BadFrames, pack, unpack
from forgectl.messages.shared import LEAST, Gone, Shared, opened, share
from forgectl.messages.sockets import LoopSocket, bind_private, new_socket, process_of
from forgectl.system.tasks import Background, on_exit

log = logging.getLogger("forgectl")


class Server:
    """Listens at `path` from now on, in the running loop.

    `perform` gets what a caller sent, and returns an answer or raises. `carry` turns that exception into the value that
    is sent to the caller. `cast_failed` gets the request and the exception of a cast. Requests of one caller are
    started in their order.
    """

    def __init__(
        self,
        path: Path,
        perform: Callable[[Any], Awaitable[Any]],
        carry: Callable[[BaseException], Any],
        cast_failed: Callable[[Any, Exception], None],
    ) -> None:
        self._perform = perform
        self._carry = carry
        self._cast_failed = cast_failed
        self._tasks = Background()
        self._stopped = False
        self._shared = _SharedAnswers()
        made = new_socket(zmq.ROUTER)
        made.router_mandatory = False  # an answer to a caller that has ended is dropped
        bind_private(made, path)
        self._socket = LoopSocket(made, self._on_message)

    async def stop(self, seconds: float) -> None:
        """Begin no more requests, cancel those that run, and give them some seconds to end. None gets an answer."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if running := tuple(self._tasks):
            await asyncio.wait(running, timeout=seconds)

    def _on_message(self, frames: list[Any]) -> None:
        if self._stopped:
            return
        try:
            caller = frames[0]
            kind, number, _, body = unpack(frames[1:], TO_RANKS)
            if kind == TAKEN:
                self._shared.taken(caller, number)
                return
            if kind > SHARED:
                kind, body = kind - SHARED, opened(body[0])
        except (Gone, OSError) as e:
            why = f"it could not be read from its sender's memory: {e}"
            self._socket.send((caller, *pack(LOST, number, [why.encode()])))
            return
        except (BadFrames, ValueError) as e:
            log.warning("dropped a message that is not a request: %s", e)
            return
        self._tasks.begin(self._serve(caller, kind, number, body))

    async def _serve(self, caller: bytes, kind: int, number: int, body: list[Any]) -> None:
        what: Any = None
        try:
            what = pickling.loads(body)
            del body
            value = await self._perform(what)
            if kind == CAST:
                value = None
            answer, frames = VALUE, pickling.dumps(value)
            del value
        except BaseException as e:
            if self._stopped and isinstance(e, asyncio.CancelledError):
                return
            if kind == CAST and isinstance(e, Exception):
                self._cast_failed(what, e)
                answer, frames = VALUE, pickling.dumps(None)
            else:
                answer, frames = ERROR, pickling.dumps(self._carry(e))
        if self._stopped:
            return
        size = pickling.size(frames)
        if size >= LEAST and (reference := self._shared.put(caller, number, frames, size)) is not None:
            self._socket.send((caller, *pack(answer + SHARED, number, [reference])))
        else:  # copied, as the next endpoint may change the value
            self._socket.send((caller, *pack(answer, number, pickling.copied(frames))))


class _SharedAnswers:
    """The answers that callers on this machine have not opened yet. They are dropped when their caller ends."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[int, Shared]] = {}

    def put(self, caller: bytes, number: int, frames: list[Any], size: int) -> bytes | None:
        """Share an answer; returns the reference to it, or None if it cannot be shared."""
        if caller not in self._of and not self._watch(caller):
            return None
        shared = share(frames, size, 1)
        if shared is None:
            return None
        self._of[caller][number] = shared
        return shared.reference

    def taken(self, caller: bytes, number: int) -> None:
        """Note that the caller has opened the answer with this number."""
        if (shared := self._of.get(caller, {}).pop(number, None)) is not None:
            shared.received()

    def _watch(self, caller: bytes) -> bool:
        pid = process_of(caller)
        if pid is None:
            return False
        try:
            on_exit(pid, functools.partial(self._of.pop, caller))
        except OSError:
            return False
        self._of[caller] = {}
        return True
