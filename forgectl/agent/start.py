"""Starts an agent: one daemon per host and run.

Its fork servers were started first (bootstrap.py), so they import torch while the agent imports its own modules.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from forgectl.agent.forkserver.spawn import StartedForkServer, lock_of, log_of
from forgectl.errors import NotOursError
from forgectl.protocol.supervision import AgentConfig
from forgectl.system.files import open_lock, open_to_append
from forgectl.system.processes import become_subreaper
from forgectl.wire.codec import CodecError, from_json
from forgectl.wire.unix_sockets import dial, peer_pid, wrong_version


def main(arguments: list[str]) -> None:
    """Read an AgentConfig from standard input, print the pid once the agent listens; `arguments` are bootstrap.py's.

    Until then the standard streams stay those of the process that started it, which so gets every earlier error.
    """
    held, *started = arguments
    become_subreaper()
    line = sys.stdin.buffer.readline()
    try:
        config = from_json(AgentConfig, json.loads(line))
    except (ValueError, CodecError) as e:
        sys.exit(f"forgectl agent: bad configuration: {e}")
    if refusal := wrong_version(config.version):
        sys.exit(f"forgectl agent: {refusal.message}")
    if held:
        os.set_inheritable(int(held), False)
    elif (other := _become_only_agent(config)) is not None:
        print(json.dumps({"pid": other}))  # noqa: T201
        return
    _serve(config, _take_over(config, started))
    os._exit(0)  # nothing is left to finish, and an interpreter's teardown takes as long as ending many ranks


def _become_only_agent(config: AgentConfig) -> int | None:
    """Take the lock of the run's one agent on this host; None once it is held.

    If another agent is alive, wait until it ends, or until it listens: then the result is its pid.
    """
    path = lock_of(Path(config.run_dir), config.host)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = open_lock(path)  # held until the agent ends
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            pass
        try:
            with dial(Path(config.socket), 5.0) as other:
                return peer_pid(other)
        except NotOursError as e:
            sys.exit(f"forgectl agent: {e.message}")
        except OSError:
            time.sleep(0.02)


def _take_over(config: AgentConfig, started: Sequence[str]) -> list[StartedForkServer]:
    """The fork servers that bootstrap.py started: "PID:DESCRIPTOR" each, "" for one that could not start."""
    found = []
    for number, (plan, handle) in enumerate(zip(config.ahead, started)):  # noqa: B905 (none, without the lock)
        if handle:
            pid, fd = map(int, handle.split(":"))
            os.set_inheritable(fd, False)
            log = log_of(Path(config.run_dir), config.host, number)
            found.append(StartedForkServer(plan, log, pid, socket.socket(fileno=fd)))
    return found


def _serve(config: AgentConfig, warming: list[StartedForkServer]) -> None:
    import asyncio

    from forgectl.agent.daemon import Agent, log
    from forgectl.agent.enclosure.enclosure import sweep_run

    announce = _redirect_streams(Path(config.run_dir) / "agents" / f"{config.host}.log")

    async def serve() -> None:
        if config.sweep:
            for found in (await sweep_run(config.run, config.host)).found:
                log(f"ended a process that an earlier agent had left: {found}")
        agent = Agent(config, warming)
        serving = asyncio.create_task(agent.serve())
        await asyncio.sleep(0)  # its socket is bound before its first wait
        announce()
        await serving

    asyncio.run(serve())


def _redirect_streams(log_file: Path) -> Callable[[], None]:
    """Write to the log from here on; returns a function that sends our pid to the process that started us."""
    started_by = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    out = open_to_append(log_file)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)

    def announce() -> None:
        signal.alarm(0)
        with contextlib.suppress(BrokenPipeError):
            os.write(started_by, json.dumps({"pid": os.getpid()}).encode() + b"\n")
        os.close(started_by)

    return announce
