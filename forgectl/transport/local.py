"""Reaches an agent on this machine: starts it as a daemon, finds out whether it lives, ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal

from forgectl.boot import BOOT
from forgectl.codec import to_json
from forgectl.errors import ForgeError, NotFoundError, UnreachableError
from forgectl.processes import Identity, boot_id, identify, open_pidfd, signal_exactly
from forgectl.protocol import AgentConfig

START_SECONDS = 30.0


async def start_agent(config: AgentConfig, python: str) -> int:
    """Start the host's agent; returns its pid once it listens. Raises ForgeError with what it said."""
    marks = {"FORGE_RUN_ID": config.run, "FORGE_HOST": config.host, "FORGE_ROLE": "agent"}
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            BOOT,
            "agent",
            env={**os.environ, **marks},
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
    said = process.communicate(json.dumps(to_json(config)).encode() + b"\n")
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


def agent_identity(pid: int, boot: str | None) -> Identity | None:
    """The living agent process of that pid, if this is still the boot that it was started in."""
    if boot != boot_id():
        return None
    return identify(pid)


def kill_agent(identity: Identity) -> None:
    """SIGKILL an agent that does not answer; its processes die with it."""
    signal_exactly(identity, signal.SIGKILL)


async def wait_gone(pid: int | None, boot: str | None, seconds: float = 5.0) -> None:
    """Wait until the agent process of that pid has exited."""
    identity = agent_identity(pid, boot) if pid else None
    pidfd = open_pidfd(identity) if identity else None
    if pidfd is None:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), seconds)
    except asyncio.TimeoutError:
        pass
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
