"""Starts an agent: a daemon per host and run, the only one of its kind there."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forgectl.agent.agent import Agent, log
from forgectl.agent.enclosure import sweep_run
from forgectl.codec import CodecError, from_json
from forgectl.processes import become_subreaper
from forgectl.protocol import AgentConfig
from forgectl.wire import dial, peer_pid, wrong_version


def main(arguments: list[str]) -> None:
    """Read an AgentConfig from standard input, become a daemon, print its pid once it listens."""
    line = sys.stdin.buffer.readline()
    try:
        config = from_json(AgentConfig, json.loads(line))
    except (ValueError, CodecError) as e:
        sys.exit(f"forgectl agent: bad configuration: {e}")
    if refusal := wrong_version(config.version):
        sys.exit(f"forgectl agent: {refusal.message}")
    if (other := _become_the_one(config)) is not None:
        print(json.dumps({"pid": other}))  # noqa: T201
        return
    ready, announce = os.pipe()
    if os.fork() > 0:
        os.close(announce)
        answer = os.read(ready, 4096)
        sys.stdout.buffer.write(answer)
        sys.stdout.flush()
        sys.exit(0 if answer else 1)
    os.close(ready)
    _daemonize(Path(config.run_dir) / "agents" / f"{config.host}.log")
    asyncio.run(_serve(config, lambda: _announce(announce)))


def _become_the_one(config: AgentConfig) -> int | None:
    """Become the host's one agent of the run; where another is alive, wait until it listens or ends: its pid."""
    folder = Path(config.run_dir) / "agents"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(folder / f"{config.host}.lock", flags, 0o600)  # held until the agent ends
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            pass
        try:
            with dial(Path(config.socket), 5.0) as other:
                return peer_pid(other)
        except OSError:
            time.sleep(0.02)


async def _serve(config: AgentConfig, announce: Callable[[], None]) -> None:
    if config.sweep:
        for found in (await sweep_run(config.run, config.host)).found:
            log(f"ended what an earlier agent had left: {found}")
    agent = Agent(config)
    serving = asyncio.create_task(agent.serve())
    await asyncio.sleep(0)  # its socket is bound before its first wait
    announce()
    await serving


def _announce(fd: int) -> None:
    os.write(fd, json.dumps({"pid": os.getpid()}).encode() + b"\n")
    os.close(fd)


def _daemonize(log_file: Path) -> None:
    os.setsid()
    become_subreaper()
    os.chdir("/")
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
