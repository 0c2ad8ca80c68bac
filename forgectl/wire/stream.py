"""A stream of typed messages in an asyncio program: bounded lines, the peer's uid checked."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

from forgectl.system.tasks import within
from forgectl.version import __version__
from forgectl.wire.envelope import MAX_LINE, Hello, ProtocolError, decode, encode
from forgectl.wire.unix_sockets import HANDSHAKE_SECONDS, dial, peer_pid, peer_uid, wrong_version

_MAX_BACKLOG = 16 * MAX_LINE  # bytes


class Stream:
    """One connection in an asyncio program: typed messages in and out, bounded both ways."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: tuple[type, ...]) -> None:
        self._reader = reader
        self._writer = writer
        self._incoming = incoming
        self.closed = False
        self.received = 0  # bytes

    @classmethod
    async def connect(cls, path: Path, incoming: tuple[type, ...]) -> Stream:
        """Connect to the socket at `path`; raises OSError."""
        reader, writer = await asyncio.open_unix_connection(sock=dial(path, 5.0), limit=MAX_LINE)
        return cls(reader, writer, incoming)

    def is_ours(self) -> bool:
        """Whether the peer runs as our own user."""
        return peer_uid(self._writer.get_extra_info("socket")) == os.getuid()

    @property
    def peer_pid(self) -> int | None:
        """The pid of the process that connected to us, or that listens where we connected; None once that is over."""
        return None if self._writer.is_closing() else peer_pid(self._writer.get_extra_info("socket"))

    async def greet(self, run: str) -> bool:
        """Answer the Hello of a client that asks about a run; False if it sent none, or runs another version."""
        hello = await self.receive(HANDSHAKE_SECONDS)
        if not isinstance(hello, Hello) or await self.refuse_version(hello):
            return False
        self.send(Hello(__version__, run))
        return True

    async def refuse_version(self, hello: Hello) -> bool:
        """Refuse a peer with another version of forgectl, naming both; returns whether it has one."""
        refusal = wrong_version(hello.version)
        if refusal is not None:
            self.send(refusal)
            await self.close()
        return refusal is not None

    def send(self, message: Any) -> None:
        """Queue a message. A peer that does not read is dropped once its backlog is too long."""
        if self.closed:
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > _MAX_BACKLOG:
            self.abort()

    async def drain(self) -> None:
        """Wait until the peer has read most of what was queued; raises ConnectionError."""
        await self._writer.drain()

    @property
    def congested(self) -> bool:
        """Whether the peer is slow to read; senders of repeated reports should skip one."""
        return self._writer.transport.get_write_buffer_size() > MAX_LINE // 4

    async def receive(self, timeout: float | None = None) -> Any:
        """The next message, or None at the end of the connection; raises ProtocolError, TimeoutError."""
        try:
            reading = self._reader.readuntil(b"\n")
            line = await (reading if timeout is None else within(timeout, reading))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except asyncio.LimitOverrunError:
            raise ProtocolError(f"a message of more than {MAX_LINE} bytes") from None
        self.received += len(line)
        return decode(line, self._incoming)

    def abort(self) -> None:
        """End the connection at once, dropping unsent messages."""
        self.closed = True
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection once the queued messages are sent; waits up to 2 s."""
        self.closed = True
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await within(2.0, self._writer.wait_closed())
