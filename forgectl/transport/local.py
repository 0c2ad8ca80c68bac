"""Reaches an agent on this machine: starts it as a daemon, finds out whether it lives, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

from forgectl.agent import start_command
from forgectl.errors import ForgeError, NotFoundError, UnreachableError
from forgectl.protocol.supervision import AGENT_TO_CONTROLLER, AgentConfig
from forgectl.system.processes import boot_id, identify, open_pidfd, signal_exactly
from forgectl.wire.stream import Stream

START_SECONDS = 30.0
START_TIMES = 5
_turn = asyncio.Semaphore(len(os.sched_getaffinity(0)))
"""Starting an agent keeps a core busy: more at once only make each take longer, and the controller mute meanwhile."""


class LocalWay:
    """The way to the agent that listens, or is to listen, at `socket` on this machine."""

    may_drop = False

    def __init__(self, socket: Path, python: str, coming: int | None = None) -> None:
        """`coming`: what becomes readable once an agent, already started, listens or has ended."""
        self._socket = socket
        self._python = python
        self._coming = coming

    async def connect(self) -> Stream | None:
        """A connection to the agent, or None where none lives."""
        if self._coming is not None:
            await _readable(self._coming, START_SECONDS)
            self.close()
        try:
            return await Stream.connect(self._socket, AGENT_TO_CONTROLLER)
        except OSError:
            return None

    async def start_agent(self, config: AgentConfig) -> int:
        """Start an agent, and others where that is killed: without one nobody ends what an earlier one left."""
        async with _turn:
            for _ in range(START_TIMES - 1):
                with contextlib.suppress(AgentKilledError):
                    return await start_agent(config, self._python)
            return await start_agent(config, self._python)

    def put_down(self, stream: Stream) -> None:
        """SIGKILL an agent that was silent for a whole lease: it is as good as dead, and its processes die with it."""
        identity = identify(stream.peer_pid)  # it holds the other end: nobody else has its pid
        if identity is not None:
            signal_exactly(identity, signal.SIGKILL)

    def rebooted(self, boot: str | None) -> bool:
        """Whether the host was, since it had that boot id."""
        return boot not in (boot_id(), None)

    async def wait_gone(self, pid: int | None, boot: str | None) -> None:
        """Wait until the agent process of that pid has exited."""
        if pid is not None and boot == boot_id():
            await wait_gone(pid)

    def close(self) -> None:
        """Wait for no agent that was started before."""
        if self._coming is not None:
            os.close(self._coming)
            self._coming = None


async def start_agent(config: AgentConfig, python: str) -> int:
    """Start the host's agent; returns its pid once it listens. Raises ForgeError with what it said."""
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
    said = process.communicate(start_command.standard_input(config))
    try:
        out, err = await asyncio.wait_for(said, START_SECONDS)
        return int(json.loads(out)["pid"])
    except asyncio.TimeoutError:
        process.kill()
        raise UnreachableError(f"host {config.host}: its agent did not start within {START_SECONDS:g} s") from None
    except (ValueError, KeyError):
        raise _why_not(config, python, err.decode(errors="replace"), process.returncode) from None


class AgentKilledError(UnreachableError):
    """An agent ended before it listened, without a word: it was killed, and another may fare better."""


def _why_not(config: AgentConfig, python: str, err: str, code: int | None) -> ForgeError:
    if not err.strip():
        how = f"was killed by signal {-code}" if code and code < 0 else "ended before it listened"
        return AgentKilledError(f"host {config.host}: its agent {how}", hint=f"see {config.run_dir}/agents")
    last = err.strip().splitlines()[-1]
    hint = f"install it there: {python} -m pip install psutil" if "psutil" in last else None
    return UnreachableError(f"host {config.host}: its agent could not start under {python}: {last}", hint=hint)


async def wait_gone(pid: int, seconds: float = 5.0) -> None:
    """Wait until the process that has this pid now has exited."""
    identity = identify(pid)
    pidfd = open_pidfd(identity) if identity else None
    if pidfd is None:
        return
    try:
        await _readable(pidfd, seconds)
    finally:
        os.close(pidfd)


async def _readable(fd: int, seconds: float) -> None:
    """Wait until a descriptor is readable, as long as that."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), seconds)
    except asyncio.TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
