"""ZeroMQ's sockets as this package needs them: one context per process, private Unix sockets, and event loops.

Callers (calling.py) bound the queues, as they know what is unanswered. ZeroMQ's own limits are not used: at them, a
socket blocks or drops.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq
import zmq.backend
from zmq.backend import zmq_poll

from forgectl.messages.frames import LONG

RECONNECT_MS = 10
"""Between attempts to connect to a rank that does not listen yet."""
LONGEST_PATH = 107
"""Bytes of a Unix socket's address."""
TURN = 64
"""Messages of one socket that are received before other sockets have their turn."""

Socket = zmq.Socket[bytes]

_send = zmq.backend.Socket.send
"""The backend's method: that of zmq.Socket also checks options in Python, which takes as long again."""
_NOW, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)

_context: tuple[int, zmq.Context[zmq.Socket[bytes]]] | None = None


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's context; a forked child gets its own."""
    global _context  # noqa: PLW0603  (one per process)
    if _context is None or _context[0] != os.getpid():
        made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        made.set(zmq.MAX_SOCKETS, made.get(zmq.SOCKET_LIMIT))
        _context = os.getpid(), made
    return _context[1]


def new_socket(kind: int) -> Socket:
    """A socket that drops nothing while it is open, and that closes without waiting."""
    made = context().socket(kind)
    made.linger = 0
    made.set_hwm(0)
    made.reconnect_ivl = RECONNECT_MS
    if kind == zmq.ROUTER:
        made.router_mandatory = True
    return made


def of_this_process() -> bytes:
    """A new name, for ranks of this machine, of a socket of this process; `process_of` reads the pid from it."""
    return f"{_pid_namespace()}.{os.getpid()}.{os.urandom(6).hex()}".encode()


def process_of(caller: bytes) -> int | None:
    """The pid in the name of a socket; None if it is of another PID namespace, where pids mean other processes."""
    namespace, _, rest = caller.partition(b".")
    pid, _, _ = rest.partition(b".")
    return int(pid) if namespace == str(_pid_namespace()).encode() and pid.isdigit() and len(pid) < 10 else None


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def bind_private(bound: Socket, path: Path) -> None:
    """Listen at `path`, whose folder must be ours alone (0700), for processes of this user; raises OSError."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(f"{path} is longer than the {LONGEST_PATH} bytes of a socket's address")
    bound.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    before = os.umask(0o177)
    try:
        bound.bind(ipc(path))
    finally:
        os.umask(before)


def ipc(path: Path) -> str:
    """A Unix socket's address in ZeroMQ's form."""
    return f"ipc://{path}"


def send(to: Socket, parts: Sequence[Any]) -> None:
    """Queue a message without waiting; long parts are not copied. Raises zmq.ZMQError."""
    last = len(parts) - 1
    for i, part in enumerate(parts):
        long = not isinstance(part, bytes) or len(part) >= LONG
        _send(to, part, _MORE if i < last else _NOW, copy=not long)


def taken(from_: Socket, *, all_: bool, named: bool = False) -> list[list[Any]]:
    """The next message that has arrived, or with `all_` up to TURN; if none, the descriptor will show the next one.

    Without `all_` one is expected, and received at once. With `all_` there may be none, which is found out first:
    an attempt that finds none takes as long as several messages. `named`: see `receive`.
    """
    if from_.closed or (all_ and not has_come(from_)):
        return []
    found: list[list[Any]] = []
    while (frames := receive(from_, named)) is not None:
        found.append(frames)
        if not all_ or len(found) == TURN:
            break
    return found


def has_come(from_: Socket) -> bool:
    """Whether a message can be received."""
    return bool(zmq_poll([(from_, _POLLIN)], 0))  # less than the socket's option EVENTS, which pyzmq looks up first


def receive(from_: Socket, named: bool = False) -> list[Any] | None:
    """The frames of the next message that has arrived: bytes, or memoryviews of long ones; None if there is no message.

    If `named`, ZeroMQ's first frame comes before them; it has the key and the connection of the sender.
    """
    try:
        frame = from_.recv(_NOW, copy=False)
    except zmq.Again:
        return None
    frames: list[Any] = [frame] if named else []
    frames.append(_content(frame))
    while frame.more:
        frame = from_.recv(_NOW, copy=False)
        frames.append(_content(frame))
    return frames


def key_of(frame: zmq.Frame) -> str:
    """The key with which the sender of a frame was accepted."""
    return str(frame.get("User-Id"))


def connection_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection by which a frame came."""
    return int(frame.get(zmq.SRCFD))


def _content(frame: zmq.Frame) -> bytes | memoryview:
    return frame.bytes if len(frame) < LONG else frame.buffer


class SharedSocket:
    """A socket that several event loops may read, its descriptor, and the loop that is about to check it anyway."""

    __slots__ = ("fd", "looked_at_in", "socket")

    def __init__(self, made: Socket) -> None:
        self.socket = made
        self.fd: int = made.getsockopt(zmq.FD)  # type: ignore[assignment]
        self.looked_at_in: asyncio.AbstractEventLoop | None = None


class LoopSocket:
    """A socket in an event loop: `on_message` gets the frames of each message, in order."""

    def __init__(self, made: Socket, on_message: Callable[[list[Any]], None]) -> None:
        self.socket = made
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd: int = made.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._loop.add_reader(self._fd, self._drain)
        self._will_look = False

    def send(self, parts: Sequence[Any]) -> None:
        """Queue a message; raises zmq.ZMQError if no peer has the name in its first frame.

        The socket is checked soon afterwards: sending may clear the descriptor's sign of an arrived message.
        """
        send(self.socket, parts)
        self._look_soon()

    def _look_soon(self) -> None:
        if not self._will_look:
            self._will_look = True
            self._loop.call_soon(self._drain, True)

    def _drain(self, again: bool = False) -> None:
        """Receive messages. The first one is handled before the next is looked for."""
        if again:
            self._will_look = False
        messages = taken(self.socket, all_=again)
        for frames in messages:
            self._on_message(frames)
        if messages:
            self._look_soon()
