"""The calling side: one socket per process, the calls that wait for answers, and how many may be under way.

Calls of one process to one rank arrive in the order in which they were made, from any thread. Calls of several ranks
arrive in the same order on each: two threads may call endpoints with collectives. No call is sent twice. At most
`WINDOW` calls and `WINDOW_BYTES` are under way to a slow rank; later ones wait here.

Every thread sends by itself, under a lock. Any event loop that waits for answers reads them, and delivers each in the
loop of its call: with one loop, as in most programs, no message goes from one thread to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from forgectl.messages import frames, pickling
from forgectl.messages.call import Call
from forgectl.messages.dialling import HELLO, REDIAL_MS
from forgectl.messages.far import Far
from forgectl.messages.frames import (
    CALL,
    CAST,
    FORGET,
    LOST,
    MESSENGER,
    SHARED,
    TAKEN,
    TO_CALLERS,
    WAY,
    Address,
    BadFrames,
    pack,
    unpack,
)
from forgectl.messages.reading import LoopWatch, Readers
from forgectl.messages.shared import Gone, opened, share
from forgectl.messages.sockets import SharedSocket, ipc, new_socket, of_this_process, send, taken
from forgectl.system.loops import in_loop, loop_of_calls, running_loop
from forgectl.system.private import check_private

log = logging.getLogger("forgectl")

WINDOW = 1024
WINDOW_BYTES = 256 * 2**20
POLL_SECONDS = 0.05
"""How often a broadcast that waits for room checks whether its ranks are still alive."""


class Here(NamedTuple):
    """Where this process is: the folder of its machine's sockets, and the machine's place.

    `driver` is the pid of the run's driver, if this process is the driver: it may dial other machines by itself.
    """

    folder: str
    place: str
    driver: int = 0


class _Part:
    """A message to one rank; `call` is None if nobody awaits it. `watch` is that of the loop that sent it."""

    __slots__ = ("call", "frames", "index", "kind", "line", "number", "shared", "size", "watch", "way")

    def __init__(
        self, kind: int, body: _Body, line: _Line, watch: LoopWatch, call: Call[Any] | None, index: int
    ) -> None:
        shared = body.shared if line.far is None else None
        self.kind = kind if shared is None else kind + SHARED
        self.frames = body.frames if shared is None else [shared.reference]
        self.size = body.size
        self.line = line
        self.watch = watch
        self.call = call
        self.index = index
        self.number = 0
        self.way: SharedSocket | None = None  # the socket that sent it
        self.shared = shared


class _Body:
    """A call's content: in shared memory for ranks here, and as frames for all others. Values may change afterwards."""

    __slots__ = ("frames", "shared", "size")

    def __init__(self, frames: list[Any], near: int, far: int) -> None:
        """For so many ranks here and elsewhere."""
        self.size = pickling.size(frames)
        self.shared = share(frames, self.size, near) if near else None
        self.frames = pickling.copied(frames) if self.shared is None or far else []


class _Line:
    """The messages to one rank, in order: over `near` to `peer`, or over `far`; `way` is None while that is broken."""

    __slots__ = ("bounded", "bytes", "far", "peer", "rank", "to", "under_way", "waiting", "way")

    def __init__(self, rank: Address, near: SharedSocket, peer: bytes, far: Far | None, *, bounded: bool) -> None:
        self.rank = rank
        self.bounded = bounded
        self.to = rank.to() if far else b""
        self.way: SharedSocket | None = near
        self.peer = peer
        self.far = far
        self.waiting: deque[_Part] = deque()
        self.under_way = 0
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        in_window = self.under_way < WINDOW and self.bytes < WINDOW_BYTES
        return (in_window or not self.bounded) and self.way is not None

    def send(self, kind: int, number: int, body: Sequence[Any], way: SharedSocket) -> None:
        """Raises zmq.Again."""
        message = pack(kind, number, body, self.to)
        send(way.socket, message if self.far is not None and way is self.far.way else (self.peer, *message))


Answered = list[tuple["_Part", int, list[Any]]]


class Exchange:
    """This process's connections to all ranks. Get it by `exchange()`."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self._lock = threading.Lock()  # guards all that follows
        near = new_socket(zmq.ROUTER)
        near.setsockopt(zmq.ROUTING_ID, of_this_process())
        self._near = SharedSocket(near)  # to ranks of this machine, and to its messenger
        self._connected: set[bytes] = set()
        self._far: dict[str, Far] = {}  # by place
        self._may_dial = here.driver == os.getpid()
        self._lines: dict[Address, _Line] = {}
        self._unbounded: set[Address] = set()
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Part] = {}
        self._readers = Readers(self._lock, self._drain)
        self._readers.add(self._near)

    # ------------------------------------------------------------ sending

    def call(self, call: Call[Any], ranks: Sequence[Address], frames: list[Any]) -> None:
        """Send pickled `frames` (`pickling.dumps`) to these ranks, from any thread."""
        body = self._body(ranks, frames)
        with self._lock:
            call.exchange = self
            call.parts = self._post(CALL, ranks, body, self._readers.watch(call.loop), call)
            self._readers.look()
        if call.done():  # cancelled, or too late, by another thread meanwhile
            self.forget(call)

    def unbound(self, rank: Address) -> None:
        """From now on, send calls of it at once, however many are under way: it answers some only after later ones."""
        with self._lock:
            self._unbounded.add(rank)

    def cast(self, ranks: Sequence[Address], frames: list[Any], died: Callable[[], bool]) -> None:
        """Send `frames` to these ranks, whose answers nobody awaits.

        If too much is under way, it blocks until there is room, or until `died()`.
        """
        body = self._body(ranks, frames)
        with self._lock:
            parts = self._post(CAST, ranks, body, self._readers.watch(loop_of_calls()), None)
            self._readers.look()
        while any(len(p.line.waiting) >= WINDOW for p in parts) and not died():
            if not sum(self._drain(way, True) for way in self._ways()):
                self._readers.wait(POLL_SECONDS)

    def _body(self, ranks: Sequence[Address], frames: list[Any]) -> _Body:
        near = sum(rank.place == self.here.place for rank in ranks)
        return _Body(frames, near, len(ranks) - near)

    def _post(
        self, kind: int, ranks: Sequence[Address], body: _Body, watch: LoopWatch, call: Call[Any] | None
    ) -> list[_Part]:
        parts = [_Part(kind, body, self._line(rank), watch, call, i) for i, rank in enumerate(ranks)]
        watch.waits_for += len(parts)
        for part in parts:
            line = part.line
            if line.far is not None:
                self._choose(line, line.far)
            if line.waiting or not line.has_room:
                line.waiting.append(part)
            else:
                self._send(part)
        return parts

    def _line(self, rank: Address) -> _Line:
        line = self._lines.get(rank)
        if line is None:
            near = rank.place == self.here.place
            far = None if near else self._far.setdefault(rank.place, Far(rank.place))
            peer = self._connect(rank.name if near else MESSENGER)
            line = self._lines[rank] = _Line(rank, self._near, peer, far, bounded=rank not in self._unbounded)
        return line

    def _connect(self, socket: str) -> bytes:
        name = socket.encode()
        if name not in self._connected:
            check_private(self.here.folder)  # ZeroMQ does not show who listens; in a private folder only we can
            self._connected.add(name)
            self._near.socket.connect_routing_id = name
            self._near.socket.connect(ipc(Path(self.here.folder, socket)))
            self._readers.used.add(self._near)
        return name

    def _send(self, part: _Part) -> None:
        line = part.line
        part.way = way = line.way
        assert way is not None
        part.number = next(self._numbers)
        self._readers.used.add(way)
        try:
            line.send(part.kind, part.number, part.frames, way)
        except zmq.Again:  # the connection has just broken: nothing was sent, and the monitor will report its end
            line.way = None
            line.waiting.appendleft(part)
            return
        self._under_way[part.number] = part
        line.under_way += 1
        line.bytes += part.size
        part.frames = []

    def _send_waiting(self, line: _Line) -> None:
        """Send waiting messages while there is room."""
        while line.waiting and line.has_room:
            part = line.waiting.popleft()
            if part.call is not None and part.call.done():  # cancelled, or too late
                part.watch.waits_for -= 1
            else:
                self._send(part)

    # ------------------------------------------------------------ to other machines

    def _choose(self, line: _Line, far: Far) -> None:
        """Choose the way for the calls of a line; it changes only while none of them is under way."""
        if line.under_way or (line.waiting and line.way is not None):
            return
        way = far.way or (None if far.broken else self._near)
        if way is None:
            line.way = None
            self._try_again(far)
        elif way is not line.way:
            line.way = way

    def _ask(self, far: Far) -> None:
        """Ask the messenger how to dial a machine, if it is time to."""
        if self._may_dial and far.wants_asking:
            far.ask(next(self._numbers))
            send(self._near.socket, (self._connect(MESSENGER), *pack(WAY, far.asked, to=far.place.encode())))
            self._readers.used.add(self._near)

    def _dial(self, number: int, body: Sequence[Any]) -> bool:
        """Use the messenger's answer to `_ask`; False if it is no such answer."""
        far = next((f for f in self._far.values() if f.asked == number), None)
        if far is None:
            return False
        monitor = far.monitor
        self._readers.retire(far.dial(body[0]))
        if far.monitor is not None and far.monitor is not monitor:
            for source in far.sources:
                self._readers.add(source, lambda: self._listen(far))
        self._resume(far)
        return True

    def _listen(self, far: Far) -> None:
        """React to a connection that was made, or that ended."""
        lost: Answered = []
        with self._lock:
            connected = far.listen()
            if connected:
                assert far.way is not None
                self._readers.add(far.way)
                self._resume(far)
            elif connected is not None:
                for part in [p for p in self._under_way.values() if p.way is not None and p.way is far.way]:
                    del self._under_way[part.number]
                    self._leave_window(part)
                    lost.append((part, LOST, [frames.lost(far.place).encode()]))
                self._readers.retire(far.hang_up())
                self._resume(far)
            self._readers.look()
        self._deliver(lost, running_loop())

    def _resume(self, far: Far) -> None:
        for line in self._lines.values():
            if line.far is far and (line.way not in (self._near, far.way) or line.waiting):
                self._choose(line, far)
                self._send_waiting(line)

    def _try_again(self, far: Far) -> None:
        """Ask again from time to time, as long as calls wait for a broken connection."""

        def again() -> None:
            with self._lock:
                far.trying = False
                if any(line.far is far and line.way is None and line.waiting for line in self._lines.values()):
                    self._try_again(far)
                    self._readers.look()

        self._ask(far)
        if not far.trying:
            far.trying = True
            loop = loop_of_calls()
            in_loop(loop, loop.call_later, REDIAL_MS / 1000, again)

    # ------------------------------------------------------------ answers

    def _ways(self) -> list[SharedSocket]:
        return [self._near, *(far.way for far in self._far.values() if far.way is not None)]

    def _drain(self, way: SharedSocket, again: bool = False) -> int:
        """Receive and deliver answers; returns how many. It delivers the first before it looks for the next."""
        here = running_loop()
        with self._lock:
            if again and way.looked_at_in is here:
                way.looked_at_in = None
            messages = taken(way.socket, all_=again)
            answered = self._matched(way, messages)
        self._deliver(answered, here)
        with self._lock:
            if messages:
                self._readers.used.add(way)
            self._readers.look()
        return len(messages)

    def _matched(self, way: SharedSocket, messages: list[list[Any]]) -> Answered:
        """Match answers with their calls, and send messages that waited for room."""
        answered: Answered = []
        for message in messages:
            try:
                near = way is self._near
                kind, number, _, body = unpack(message[near:], TO_CALLERS)
                part = self._under_way.get(number)
                if part is None or part.way is not way:
                    if near and message[0] == MESSENGER.encode() and self._dial(number, body):
                        continue
                    raise BadFrames(f"an answer to number {number}, which was not asked there")
            except (BadFrames, LookupError, ValueError) as e:
                if message == [HELLO]:
                    continue  # a messenger checks so whether we are still connected
                log.warning("dropped an answer that nobody waits for: %r", e)
                continue
            del self._under_way[number]
            if part.shared is not None:
                part.shared.received()
            self._leave_window(part)
            if kind > SHARED:
                kind -= SHARED
                try:
                    body = self._opened(part, body)
                except Gone:
                    continue  # the rank has ended: its death will be reported
                except (BadFrames, OSError) as e:
                    kind, body = LOST, [f"its answer could not be received: {e}".encode()]
            answered.append((part, kind, body))
            line = part.line
            if line.waiting:
                self._send_waiting(line)
            if line.far is not None and line.way is self._near:
                self._ask(line.far)
        return answered

    def _opened(self, part: _Part, body: list[Any]) -> list[Any]:
        """An answer in the memory of a rank here; tells the rank that it may reuse that memory."""
        try:
            return opened(body[0]) if part.call is not None and not part.call.done() else body
        finally:
            part.line.send(TAKEN, part.number, (), self._near)
            self._readers.used.add(self._near)

    def _leave_window(self, part: _Part) -> None:
        part.line.under_way -= 1
        part.line.bytes -= part.size
        part.watch.waits_for -= 1
        part.shared = None

    @staticmethod
    def _deliver(answered: Answered, here: asyncio.AbstractEventLoop | None) -> None:
        for part, kind, body in answered:
            if part.call is not None:
                part.call.arrived(part.index, kind, body, here)

    # ------------------------------------------------------------ ends

    def read_elsewhere(self, call: Call[Any]) -> None:
        """Have its answers read in the loop that it has now: that of before does not run."""
        with self._lock:
            watch = self._readers.watch(call.loop)
            for part in call.parts:
                if part.watch is not watch and (part.number in self._under_way or part in part.line.waiting):
                    part.watch.waits_for -= 1
                    part.watch = watch
                    watch.waits_for += 1

    def forget(self, call: Call[Any]) -> None:
        """Nobody waits for a call any more: messengers need not remember it. What waits is left out at its turn."""
        with self._lock:
            for part in call.parts:
                if part.number in self._under_way and part.line.far is not None:
                    self._abandon(part)
            call.parts = []
            self._readers.look()

    def _abandon(self, part: _Part) -> None:
        del self._under_way[part.number]
        self._leave_window(part)
        if part.line.far is not None and part.way is not None:
            self._readers.used.add(part.way)
            with contextlib.suppress(zmq.Again):
                part.line.send(FORGET, part.number, (), part.way)

    def drop(self, ranks: Sequence[Address]) -> None:
        """Forget these ranks, which have ended."""
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
                if line.far is None:
                    self._connected.discard(line.peer)
                    self._near.socket.disconnect(ipc(Path(self.here.folder, rank.name)))
                    self._readers.used.add(self._near)
            self._readers.look()


_exchanges: dict[Here, Exchange] = {}
_lock = threading.Lock()


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
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _exchanges.clear()


os.register_at_fork(after_in_child=_begin_anew)
