"""The agent's end of a fork server, with a real process that says it is warm and is asked too late."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from forgectl.agent.forkserver.forks import ForkServer, ForkServerError
from forgectl.agent.forkserver.spawn import StartedForkServer
from forgectl.agent.reaper import Reaper
from forgectl.model.plan import ForkServerPlan


class LateReaper(Reaper):
    """Collects a process when it is told to, and no others: this one's parent has more."""

    def __init__(self) -> None:
        self._claims: dict[int, Callable[[int], None]] = {}

    def collect(self, pid: int) -> None:
        self._claims.pop(pid)(os.waitpid(pid, 0)[1])


def test_who_asks_a_server_that_has_just_ended_learns_how_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "forkserver.log"
    log.write_text("its last line\n")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], dict(os.environ))
    plan = ForkServerPlan(python="python3", workdir="/", preload=(), env=())
    asyncio.run(_asked_too_late(StartedForkServer(plan, log, pid, ours), theirs))


async def _asked_too_late(started: StartedForkServer, theirs: socket.socket) -> None:
    reaper = LateReaper()
    server = ForkServer(started, reaper)
    theirs.send(json.dumps({"warm": True, "torch": False}).encode())
    await server.warm
    theirs.close()  # it ends: ours kills what has closed its socket
    await asyncio.sleep(0)  # its end is seen,
    await asyncio.sleep(0)  # and then acted upon
    assert not server.alive
    asked = asyncio.ensure_future(server.fork({}, []))
    await asyncio.sleep(0)
    assert not asked.done()
    reaper.collect(started.pid)
    with pytest.raises(ForkServerError, match=r"^the fork server ended by signal 9$") as caught:
        await asked
    assert caught.value.detail == "its last line"
