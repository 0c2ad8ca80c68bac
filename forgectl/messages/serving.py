"""The answering side: a rank's socket, and one task for each request that comes in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import zmq

from forgectl.messages import pickling
from forgectl.messages.frames import CAST, ERROR, VALUE, BadFrames, head, request_head
from forgectl.messages.sockets import LoopSocket, bind_private, new_socket

log = logging.getLogger("forgectl")


class Server:
    """Listens at `path` from now on, in the running loop.

    `perform` is given what a caller sent and returns an answer, or raises; `carry` makes of what it raises the value
    that goes to the caller. Requests of one caller are begun in their order.
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
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        made = new_socket(zmq.ROUTER)
        made.router_mandatory = False  # an answer to a caller that has ended is dropped
        bind_private(made, path)
        self._socket = LoopSocket(made, self._on_message)

    def _on_message(self, frames: list[Any]) -> None:
        try:
            caller, first, *body = frames
            kind, number = request_head(bytes(first))
            if not body:
                raise BadFrames("a request without a body")
        except (BadFrames, ValueError) as e:
            log.warning("what is no request was dropped: %s", e)
            return
        task = self._loop.create_task(self._serve(caller, kind, number, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, caller: bytes, kind: int, number: int, body: list[Any]) -> None:
        what: Any = None
        try:
            what = pickling.loads(body)
            del body
            value = await self._perform(what)
            if kind == CAST:
                value = None
            answer = [head(VALUE, number), *pickling.dumps(value, snapshot=True)]  # the next endpoint may change it
            del value
        except BaseException as e:
            if kind == CAST and isinstance(e, Exception):
                self._cast_failed(what, e)
                answer = [head(VALUE, number), *pickling.dumps(None)]
            else:
                answer = [head(ERROR, number), *pickling.dumps(self._carry(e))]
        self._socket.send([caller, *answer])
