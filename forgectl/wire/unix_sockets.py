"""Unix sockets of the control plane: private, short-named, versions compared; and a blocking connection."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from forgectl.errors import NotOursError
from forgectl.system import private
from forgectl.system.files import short_path
from forgectl.version import __version__
from forgectl.wire.envelope import MAX_LINE, ProtocolError, Refusal, decode, encode

HANDSHAKE_SECONDS = 5.0


def private_folder(path: Path) -> Path:
    """Make `path` (0700) or check that it is ours alone; raises NotOursError, or another OSError."""
    try:
        private.private_folder(str(path))
    except private.NotPrivateError as e:
        raise NotOursError(str(e)) from None
    return path


def check_private(path: Path, *, hint: str | None = None) -> Path:
    """Raise NotOursError unless `path` is a folder of ours alone, as system.private checks it; it need not exist."""
    try:
        private.check_private(str(path))
    except private.NotPrivateError as e:
        raise NotOursError(str(e), hint=hint) from None
    return path


def listen(path: Path) -> socket.socket:
    """A listening Unix socket (0600) at `path`, replacing a dead one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        with short_path(path) as name:
            sock.bind(name)
    finally:
        os.umask(before)
    sock.listen(128)
    return sock


def dial(path: Path, timeout: float | None = None) -> socket.socket:
    """A blocking connection to the socket at `path`; raises OSError, such as TimeoutError.

    All our connections to Unix sockets are opened here. Another user may have bound a socket where ours was: nothing is
    sent to such a listener (NotOursError, which is an OSError too).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Not settimeout: with it connect() fails at once, with EAGAIN, where many others wait to be accepted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout or 0.0))
        with short_path(path) as name:
            sock.connect(name)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0.0))
        sock.settimeout(timeout)
        if (uid := peer_uid(sock)) != os.getuid():
            raise NotOursError(f"a process of {private.who(uid)} listens at {path}, not one of yours")
    except BlockingIOError:
        sock.close()
        raise TimeoutError(f"nobody accepted a connection within {timeout:g} s") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))


def peer_uid(sock: Any) -> int:
    """The uid of the process at the other end of a Unix socket."""
    return _peer(sock)[1]


def peer_pid(sock: Any) -> int:
    """The pid of the process that connected, or that listened, at the other end of a Unix socket."""
    return _peer(sock)[0]


def _peer(sock: Any) -> tuple[int, int, int]:
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid, gid


def wrong_version(version: str) -> Refusal | None:
    """The refusal for a peer with another version, naming both; None if it has ours."""
    if version == __version__:
        return None
    return Refusal(
        70,
        f"this is forgectl {__version__}, the other end is forgectl {version[:40]}",
        "use the version that started the run, or shut the run down with it first",
    )


class Connection:
    """One connection in a blocking program (the CLI): typed messages in and out."""

    def __init__(self, sock: socket.socket, incoming: tuple[type, ...]) -> None:
        self.socket = sock
        self._incoming = incoming
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a whole message has been read already."""
        return b"\n" in self._buffer

    def send(self, message: Any) -> None:
        """Send a message; raises OSError when the other end is gone."""
        self.socket.sendall(encode(message))

    def receive(self, timeout: float | None = None) -> Any:
        """The next message, or None at the end of the connection; raises TimeoutError, ProtocolError."""
        line = self.receive_line(timeout)
        return None if line is None else decode(line, self._incoming)

    def receive_line(self, timeout: float | None = None) -> bytes | None:
        """The bytes of the next line, without its end; None at the end of the connection.

        `timeout` is for the whole line, however slowly its bytes come.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise ProtocolError(f"a message of more than {MAX_LINE} bytes")
            self.socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                chunk = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not chunk:
                return None
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Send bytes whose number a message has announced; raises OSError when the other end is gone."""
        self.socket.sendall(data)

    def receive_bytes(self, count: int, timeout: float | None = None) -> bytes:
        """Exactly `count` bytes; raises ConnectionError at the end of the connection, TimeoutError."""
        self.socket.settimeout(timeout)
        data = self.take_buffered(count)
        while len(data) < count:
            chunk = self.socket.recv(min(count - len(data), 1 << 20))
            if not chunk:
                raise ConnectionResetError("the connection ended within a file")
            data += chunk
        return bytes(data)

    def take_buffered(self, most: int) -> bytearray:
        """At most `most` of the bytes that were read beyond the last message."""
        data = self._buffer[:most]
        del self._buffer[:most]
        return data

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def listen_tcp(address: str) -> socket.socket:
    """A listening TCP socket on a free port of `address` alone; raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind((address, 0))
    sock.listen(4096)
    return sock
