"""Reaches an agent on this machine: starts it as a daemon, finds out whether it is alive, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from forgectl.agent import start_command
from forgectl.errors import NotFoundError
from forgectl.protocol.supervision import AGENT_TO_CONTROLLER, AgentConfig
from forgectl.system.processes import boot_id, identify, open_pidfd, signal_exactly
from forgectl.system.tasks import within
from forgectl.wire.stream import Stream

START_TIMES = 5
_start_slots = asyncio.Semaphore(len(os.sched_getaffinity(0)))
"""Starting an agent keeps a core busy. With more at once, each takes longer and the controller cannot answer."""


class LocalWay:
    """The way to the agent that listens, or will listen, at `socket` on this machine."""

    may_drop = False

    def __init__(self, socket: Path, python: str, coming: int | None = None) -> None:
        """`coming`: a descriptor that becomes readable once an agent that was started before listens or has ended."""
        self._socket = socket
        self._python = python
        self._coming = coming

    async def connect(self) -> Stream | None:
        """A connection to the agent, or None if none is alive."""
        if self._coming is not None:
            await _readable(self._coming, start_command.START_SECONDS)
            self.close()
        try:
            return await Stream.connect(self._socket, AGENT_TO_CONTROLLER)
        except OSError:
            return None

    async def start_agent(self, config: AgentConfig) -> int:
        """Start an agent, and another if it is killed: only an agent can end what an earlier one left. Returns its pid.

        Raises ForgeError.
        """
        async with _start_slots:
            for _ in range(START_TIMES - 1):
                with contextlib.suppress(start_command.AgentKilledError):
                    return await start_agent(config, self._python)
            return await start_agent(config, self._python)

    def kill_agent(self, stream: Stream) -> None:
        """SIGKILL an agent that does not answer or broke the protocol; its processes die with it."""
        pid = stream.peer_pid  # it still has the other end, so no other process has its pid
        if pid is not None and (identity := identify(pid)) is not None:
            signal_exactly(identity, signal.SIGKILL)

    def rebooted(self, boot: str | None) -> bool:
        """Whether the host was rebooted since it had that boot id."""
        return boot not in (boot_id(), None)

    async def wait_gone(self, pid: int | None, boot: str | None) -> None:
        """Wait until the agent process of that pid has exited, for at most 5 s."""
        if pid is not None and boot == boot_id():
            await wait_gone(pid)

    def close(self) -> None:
        """Stop waiting for an agent that was started before."""
        if self._coming is not None:
            os.close(self._coming)
            self._coming = None


async def start_agent(config: AgentConfig, python: str) -> int:
    """Start the host's agent; returns its pid once it listens. Raises ForgeError with the last line that it printed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *start_command.command(python),
            env=start_command.environment(config),
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as e:
        raise NotFoundError(
            f"host {config.host}: cannot run its python {python!r}: {e.strerror}",
            hint="check `python:` of the host",
        ) from None
    output = process.communicate(start_command.standard_input(config))
    try:
        out, err = await within(start_command.START_SECONDS, output)
    except asyncio.TimeoutError:
        process.kill()
        raise start_command.too_slow(config) from None
    return start_command.reported_pid(config, python, out, err, process.returncode)


async def wait_gone(pid: int, seconds: float = 5.0) -> None:
    """Wait until the process that has this pid now has exited, for at most `seconds`."""
    identity = identify(pid)
    pidfd = open_pidfd(identity) if identity else None
    if pidfd is None:
        return
    try:
        await _readable(pidfd, seconds)
    finally:
        os.close(pidfd)


async def _readable(fd: int, seconds: float) -> None:
    """Wait until a descriptor is readable, for at most `seconds`."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, readable.set)
    try:
        await within(seconds, readable.wait())
    except asyncio.TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
