"""The agent's end of a fork server: asks it for forks, receives exits, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forgectl.agent import rank_logs
from forgectl.agent.forkserver.server import PACKET
from forgectl.agent.forkserver.spawn import StartedForkServer
from forgectl.agent.reaper import Reaper
from forgectl.system.processes import Identity, boot_id


class ForkServerError(Exception):
    """The fork server cannot serve; `detail` is a traceback or its output, or empty.

    `absent` is the module that it was to preload and that its interpreter does not have.
    """

    def __init__(self, message: str, detail: str = "", absent: str = "") -> None:
        super().__init__(message)
        self.detail = detail
        self.absent = absent


@dataclass
class ForkedProcess:
    """A process that a fork server forked. `exited` resolves to (wait status, unix time).

    If its server ended before it, `orphaned` is how.
    """

    identity: Identity
    pidfd: int
    exited: asyncio.Future[tuple[int, float]]
    orphaned: str | None = None


class ForkServer:
    """One running fork server. Its children live no longer than it does."""

    def __init__(self, warming: StartedForkServer, reaper: Reaper) -> None:
        self._log = warming.log
        self._pid = warming.pid
        self._code: int | None = None  # its exit code; a signal is negative
        self._ended = asyncio.Event()  # it was collected, and `_code` is known
        self._socket = warming.socket
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._tokens = 0
        self._asked: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._children: dict[int, ForkedProcess] = {}
        self._outbox: list[tuple[bytes, list[int]]] = []
        self.has_torch = False  # once it is warm
        self._was_checked = False  # whether somebody has read why it did not get warm, if it did not
        self.warm: asyncio.Future[None] = self._loop.create_future()
        self.warm.add_done_callback(lambda f: f.cancelled() or f.exception())  # so asyncio never logs it as unread
        reaper.claim(self._pid, self._on_end)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_message)

    @property
    def alive(self) -> bool:
        """Whether the server can still take requests."""
        return self._socket.fileno() >= 0

    @property
    def spent(self) -> bool:
        """Whether it has ended and somebody has read why: the next mesh needs another one."""
        return not self.alive and self._was_checked

    def check_warm(self) -> None:
        """Raise ForkServerError if it did not get warm; call it once `warm` is done."""
        self._was_checked = True
        self.warm.result()

    async def fork(self, request: dict[str, Any], fds: Sequence[int]) -> ForkedProcess:
        """Ask the server, once it is warm, to fork a child; raises ForkServerError."""
        await asyncio.shield(self.warm)
        if not self.alive:
            await self._ended.wait()
            raise self._end()
        self._tokens += 1
        token = self._tokens
        asked: asyncio.Future[ForkedProcess] = self._loop.create_future()
        self._asked[token] = asked
        data = json.dumps({"fork": token, **request}).encode()
        if len(data) > PACKET:
            del self._asked[token]
            raise ForkServerError(f"environment and arguments of a rank take {len(data)} bytes; {PACKET} fit")
        self._outbox.append((data, list(fds)))
        self._flush()
        return await asked

    def _flush(self) -> None:
        while self._outbox and self.alive:
            data, fds = self._outbox[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                self._outbox.clear()
                return
            self._outbox.pop(0)
        if self.alive:
            self._loop.remove_writer(self._socket)

    def _on_message(self) -> bool:
        """Take one message; False when there is none left."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, PACKET, 4)
        except BlockingIOError:
            return False
        except OSError:
            data, fds = b"", []
        if not data:
            self._hang_up()
            return False
        message = json.loads(data)
        if "warm" in message:
            self.has_torch = bool(message["torch"])
            self.warm.set_result(None)
        elif "cold" in message:
            self.warm.set_exception(ForkServerError(message["cold"], message["traceback"], message.get("absent", "")))
        elif "forked" in message:
            identity = Identity(message["pid"], message["start_time"], boot_id())
            self._on_forked(message["forked"], identity, fds[0])
        elif "refused" in message:
            self._asked.pop(message["refused"]).set_exception(ForkServerError(message["why"]))
        elif child := self._children.pop(message["exited"], None):
            self._reaper.disclaim(child.identity.pid)
            child.exited.set_result((message["status"], message["time"]))
        return True

    def _on_forked(self, token: int, identity: Identity, pidfd: int) -> None:
        child = self._children[identity.pid] = ForkedProcess(identity, pidfd, self._loop.create_future())
        self._reaper.claim(identity.pid, functools.partial(self._on_orphan, child))
        self._asked.pop(token).set_result(child)

    def _hang_up(self) -> None:
        if self.alive:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self.stop()

    def _on_end(self, status: int) -> None:
        """The server has ended, and its children with it (PR_SET_PDEATHSIG): the agent's reaper collects them."""
        self._code = os.waitstatus_to_exitcode(status)
        while self.alive and self._on_message():  # what it sent before, such as why it could not get warm
            pass
        self._hang_up()
        self._ended.set()
        error = self._end()
        if not self.warm.done():
            self.warm.set_exception(error)
        for asked in self._asked.values():
            asked.set_exception(error)
        self._asked.clear()

    def _on_orphan(self, child: ForkedProcess, status: int) -> None:
        self._children.pop(child.identity.pid, None)
        if not child.exited.done():
            child.orphaned = self._how_ended()
            child.exited.set_result((status, time.time()))

    def _how_ended(self) -> str:
        code = self._code
        return f"the fork server ended by {f'signal {-code}' if code and code < 0 else f'exit code {code}'}"

    def _end(self) -> ForkServerError:
        return ForkServerError(self._how_ended(), "\n".join(rank_logs.tail(self._log, lines=100, limit_bytes=4000)))

    def stop(self) -> None:
        """SIGKILL the server: it has nothing to clean up."""
        if self._code is None:  # not collected yet, so no other process has its pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
