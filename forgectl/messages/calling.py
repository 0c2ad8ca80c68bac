"""The calling side: one socket a process, the calls that wait for answers, and how many may be under way.

Calls of one process to one rank arrive in the order in which they were made, from whatever threads, and calls of
several ranks in the same order on each: two threads may call endpoints with collectives. No call is sent twice.
To a rank that is slow at most `WINDOW` calls and `WINDOW_BYTES` are under way; later ones wait here.

Every thread sends by itself, under a lock. Answers are read by whichever event loop waits for any, and given in the
loop of their call: with one loop, as in most programs, no message crosses from one thread to another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future as ThreadFuture
from pathlib import Path
from typing import Any

import zmq

from forgectl.frozen import dataclass
from forgectl.messages import pickling
from forgectl.messages.frames import (
    CALL,
    CAST,
    FORGET,
    LOST,
    MESSENGER,
    Address,
    BadFrames,
    answer_head,
    head,
)
from forgectl.messages.sockets import TURN, ipc, new_socket, receive, send
from forgectl.private import check_private

log = logging.getLogger("forgectl")

WINDOW = 1024
WINDOW_BYTES = 256 * 2**20
POLL_SECONDS = 0.05
"""How often a broadcast that waits for room looks whether its ranks are still there."""


@dataclass(frozen=True)
class Here:
    """Where this process is: the folder of its machine's sockets, and the machine's place."""

    folder: str
    place: str


class LostError(Exception):
    """A call whose answer will not come: its connection was lost on the way."""


class Call:
    """One call of several ranks: a future in its loop, and the answers so far.

    `future` is set once all have answered, or to the first exception. From any other thread only `cut` may be called.
    """

    __slots__ = ("_loads", "_missing", "future", "loop", "parts", "values")

    def __init__(self, count: int, loads: Callable[[int, Sequence[Any]], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Any]] = self.loop.create_future()
        self.values: list[Any] = [None] * count
        self.parts: list[_Part] = []
        self._missing = count
        self._loads = loads

    @property
    def unanswered(self) -> bool:
        """Whether answers of ranks are yet to come."""
        return self._missing > 0

    def answer(self, index: int, kind: int, body: Sequence[Any]) -> None:
        """Take in what the rank of that index answers."""
        if self.future.done():
            return
        try:
            if kind == LOST:
                raise LostError(bytes(body[0]).decode(errors="replace"))
            self.values[index] = self._loads(kind, body)
        except Exception as e:
            self.fail(e)
            return
        self._missing -= 1
        if not self._missing:
            self.future.set_result(self.values)

    def fail(self, error: BaseException) -> None:
        """End it by an exception. In its loop."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen, also where nobody awaits it any more

    def cut(self, error: BaseException) -> None:
        """The same from any thread."""
        _in_loop(self.loop, self.fail, error)


class _Part:
    """A message to one rank; `call` is None for one that nobody awaits. `watch`: of the loop that it came from."""

    __slots__ = ("call", "frames", "index", "kind", "line", "number", "size", "watch")

    def __init__(
        self, kind: int, frames: list[Any], size: int, line: _Line, watch: _Watch, call: Call | None, index: int
    ) -> None:
        self.kind = kind
        self.frames = frames
        self.size = size
        self.line = line
        self.watch = watch
        self.call = call
        self.index = index
        self.number = 0


class _Line:
    """What goes to one rank, in order."""

    __slots__ = ("bytes", "to", "under_way", "waiting")

    def __init__(self, to: tuple[bytes, ...]) -> None:
        self.to = to  # the frames before the head
        self.waiting: deque[_Part] = deque()
        self.under_way = 0
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        return self.under_way < WINDOW and self.bytes < WINDOW_BYTES


class _Watch:
    """One event loop's part in reading answers."""

    __slots__ = ("waits_for", "watching")

    def __init__(self) -> None:
        self.waits_for = 0  # answers
        self.watching = False


Answered = list[tuple["_Part", int, list[Any]]]


class Exchange:
    """This process's way to every rank. Get it by `exchange()`."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self._lock = threading.Lock()  # of all that follows
        self._socket = new_socket(zmq.ROUTER)
        self._fd: int = self._socket.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._connected: set[bytes] = set()
        self._lines: dict[Address, _Line] = {}
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Part] = {}
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}

    # ------------------------------------------------------------ sending

    def call(self, ranks: Sequence[Address], what: Any, loads: Callable[[int, Sequence[Any]], Any]) -> Call:
        """Send `what` to these ranks, in an event loop; raises what pickling raises.

        `loads` makes a value of an answer (its kind and body) or raises.
        """
        frames = pickling.dumps(what)  # before the lock: it runs the values' own code
        call = Call(len(ranks), loads)
        with self._lock:
            call.parts = self._post(CALL, ranks, frames, self._watch(call.loop), call)
            self._look()
        return call

    def cast(self, ranks: Sequence[Address], what: Any, died: ThreadFuture[Any]) -> None:
        """Send `what` to these ranks, whose answers nobody awaits; raises what pickling raises.

        Where too much is under way it blocks until there is room, or until `died` is done.
        """
        frames = pickling.dumps(what, snapshot=True)  # nobody awaits it: its values may change at once
        loop = running_loop()
        with self._lock:
            parts = self._post(CAST, ranks, frames, self._watch(loop or _loop_of_plain_code()), None)
            self._look()
        while any(len(p.line.waiting) >= WINDOW for p in parts) and not died.done():
            if not self._drain():
                select.select([self._fd], [], [], POLL_SECONDS)

    def _post(
        self, kind: int, ranks: Sequence[Address], frames: list[Any], watch: _Watch, call: Call | None
    ) -> list[_Part]:
        size = pickling.size(frames)
        parts = [_Part(kind, frames, size, self._line(rank), watch, call, i) for i, rank in enumerate(ranks)]
        watch.waits_for += len(parts)
        for part in parts:
            line = part.line
            if line.waiting or not line.has_room:
                line.waiting.append(part)
            else:
                self._send(part)
        return parts

    def _line(self, rank: Address) -> _Line:
        line = self._lines.get(rank)
        if line is None:
            near = rank.place == self.here.place
            name = (rank.name if near else MESSENGER).encode()
            if name not in self._connected:
                check_private(self.here.folder)  # ZeroMQ does not say who listens: in such a folder it is one of ours
                self._connected.add(name)
                self._socket.connect_routing_id = name
                self._socket.connect(ipc(Path(self.here.folder, name.decode())))
            line = self._lines[rank] = _Line((name,) if near else (name, rank.to()))
        return line

    def _send(self, part: _Part) -> None:
        part.number = next(self._numbers)
        self._under_way[part.number] = part
        part.line.under_way += 1
        part.line.bytes += part.size
        send(self._socket, [*part.line.to, head(part.kind, part.number), *part.frames])
        part.frames = []

    # ------------------------------------------------------------ answers

    def _watch(self, loop: asyncio.AbstractEventLoop) -> _Watch:
        """Have the loop read answers, as it is about to wait for some; others that wait for none read no more."""
        watch = self._watches.get(loop)
        if watch is None:
            for closed in [other for other in self._watches if other.is_closed()]:
                del self._watches[closed]
            watch = self._watches[loop] = _Watch()
        if watch.watching:
            return watch
        watch.watching = True
        if loop is running_loop():
            loop.add_reader(self._fd, self._drain)
        else:
            _in_loop(loop, loop.add_reader, self._fd, self._drain)
        for other, idle in self._watches.items():
            if idle.watching and not idle.waits_for and other is not loop:
                _in_loop(other, self._stop_watching, other)
        return watch

    def _stop_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            watch = self._watches[loop]
            if watch.watching and not watch.waits_for:
                watch.watching = False
                loop.remove_reader(self._fd)

    def _look(self) -> None:
        """Have answers read that have come already: whatever else the socket does may take their sign away."""
        if self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator, arg-type]
            here = running_loop()
            if here is not None and here in self._watches:
                here.call_soon(self._drain)
                return
            loops = [loop for loop, watch in self._watches.items() if watch.watching and not loop.is_closed()]
            if loops:
                _in_loop(loops[0], self._drain)

    def _drain(self) -> int:
        """Take in what has come; how much it was."""
        with self._lock:
            answered = self._receive()
            if len(answered) == TURN:
                self._look()
        self._give(answered, running_loop())
        return len(answered)

    def _receive(self) -> Answered:
        """The answers that have come, at most TURN; what waited for room is sent."""
        answered: Answered = []
        while len(answered) < TURN and (frames := receive(self._socket)) is not None:
            try:
                kind, number = answer_head(bytes(frames[1]))
                part = self._under_way.pop(number)
            except (BadFrames, IndexError, KeyError) as e:
                log.warning("an answer that nobody waits for was dropped: %r", e)
                continue
            self._took_off(part)
            answered.append((part, kind, frames[2:]))
            line = part.line
            while line.waiting and line.has_room:
                waiting = line.waiting.popleft()
                if waiting.call is not None and waiting.call.future.done():  # cancelled, or too late
                    waiting.watch.waits_for -= 1
                else:
                    self._send(waiting)
        return answered

    def _took_off(self, part: _Part) -> None:
        part.line.under_way -= 1
        part.line.bytes -= part.size
        part.watch.waits_for -= 1

    @staticmethod
    def _give(answered: Answered, here: asyncio.AbstractEventLoop | None) -> None:
        for part, kind, body in answered:
            call = part.call
            if call is None:
                continue
            if call.loop is here:
                call.answer(part.index, kind, body)
            else:
                _in_loop(call.loop, call.answer, part.index, kind, body)

    # ------------------------------------------------------------ ends

    def forget(self, call: Call) -> None:
        """Nobody waits for a call any more: messengers need not remember it. What waits is left out at its turn."""
        with self._lock:
            for part in call.parts:
                if part.number in self._under_way and len(part.line.to) > 1:
                    self._abandon(part)
            self._look()

    def _abandon(self, part: _Part) -> None:
        del self._under_way[part.number]
        self._took_off(part)
        if len(part.line.to) > 1:
            send(self._socket, [*part.line.to, head(FORGET, part.number)])

    def drop(self, ranks: Sequence[Address]) -> None:
        """These ranks are no more."""
        with self._lock:
            for rank in ranks:
                line = self._lines.pop(rank, None)
                if line is None:
                    continue
                for part in line.waiting:
                    part.watch.waits_for -= 1
                line.waiting.clear()
                for part in [p for p in self._under_way.values() if p.line is line]:
                    self._abandon(part)
                if len(line.to) == 1:
                    self._connected.discard(line.to[0])
                    self._socket.disconnect(ipc(Path(self.here.folder, rank.name)))
            self._look()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this code runs in, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_loop(loop: asyncio.AbstractEventLoop, do: Callable[..., Any], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(do, *arguments)
    except RuntimeError:  # it is closed: nobody waits there any more
        pass


_exchanges: dict[Here, Exchange] = {}
_plain: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def _loop_of_plain_code() -> asyncio.AbstractEventLoop:
    """A loop, in a thread of its own, that reads answers for code without one."""
    global _plain
    with _lock:
        if _plain is None:
            _plain = asyncio.new_event_loop()
            threading.Thread(target=_plain.run_forever, name="forgectl-answers", daemon=True).start()
        return _plain


def exchange(here: Here) -> Exchange:
    """This process's exchange."""
    found = _exchanges.get(here)
    if found is None:
        with _lock:
            found = _exchanges.get(here)
            if found is None:
                found = _exchanges[here] = Exchange(here)
    return found


def _begin_anew() -> None:
    """In a forked child: its parent's sockets, and locks that other threads may hold, are not its own."""
    global _lock, _plain
    _lock, _plain = threading.Lock(), None
    _exchanges.clear()


os.register_at_fork(after_in_child=_begin_anew)
