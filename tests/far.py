"""Workers and a driver as agents and controller would start them, for tests of actors on several hosts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgectl.controller.authority import Authority
from forgectl.processes import boot_id
from forgectl.protocol import Membership
from tests.conftest import PROGRAMS

Start = Callable[[Sequence[object]], "subprocess.Popen[str]"]
"""Starts a program with pipes as standard input and output, on some host."""


def here(argv: Sequence[object]) -> subprocess.Popen[str]:
    """Starts it on this machine."""
    pipe = subprocess.PIPE
    return subprocess.Popen([str(a) for a in argv], stdin=pipe, stdout=pipe, text=True, cwd=PROGRAMS)


def tell(process: subprocess.Popen[str], message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args} ended without a word"
    heard: dict[str, Any] = json.loads(line)
    return heard


class Driver:
    """tests/programs/far_actors.py, which does several things at a time."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.process = here([sys.executable, PROGRAMS / "far_actors.py"])
        self._last = 0
        self._answers: dict[int, dict[str, Any]] = {}
        tell(self.process, config)

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, what: str, *arguments: Any) -> int:
        """Have it do something; the number of its answer."""
        self._last += 1
        tell(self.process, [self._last, what, *arguments])
        return self._last

    def answer(self, number: int = 0) -> dict[str, Any]:
        """What it answers, once it does; number 0: whether it is ready."""
        while number not in self._answers:
            heard = hear(self.process)
            self._answers[heard["number"]] = heard
        return self._answers.pop(number)

    def ask(self, what: str, *arguments: Any) -> Any:
        """What it answers; fails the test where it raised."""
        answer = self.answer(self.begin(what, *arguments))
        assert "value" in answer, answer
        return answer["value"]


@dataclass(frozen=True)
class Worker:
    """Monarch's worker on a host: its address for dialling, its pid there, and the process in its agent's place."""

    url: str
    port: int
    pid: int
    agent: subprocess.Popen[str]


class FarActors:
    """What one run has on several hosts. Close it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.new("far-actors")
        self._folder = folder
        self._started: list[subprocess.Popen[str]] = []
        self._drivers: list[Driver] = []

    def request(self, address: str, folder: str, identity: Membership | None = None) -> dict[str, str]:
        """What a worker is told."""
        identity = identity or self.authority.issue("host", [address])
        return {"address": address, "folder": folder, **dataclasses.asdict(identity)}

    def ask(self, request: dict[str, str], start: Start = here) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """Start a worker; what it says."""
        agent = start([sys.executable, PROGRAMS / "host_worker.py"])
        self._started.append(agent)
        tell(agent, request)
        return agent, hear(agent)

    def worker(self, address: str = "127.0.0.1", start: Start = here, folder: str = "") -> Worker:
        """A worker that serves at `address`."""
        agent, said = self.ask(self.request(address, folder or self._sockets()), start)
        assert "port" in said, said
        return Worker(f"tls://{address}:{said['port']}", said["port"], said["pid"], agent)

    def begin_driver(self, *, address: str = "", gateway: str = "", machine: str | None = None) -> Driver:
        """A driver here, at `address` or behind `gateway`; `machine` is its boot id, as its handles have it."""
        identity = self.authority.issue("driver", [address] if address else [])
        way = {"address": address, "gateway": gateway, "folder": self._sockets(), "machine": machine or boot_id()}
        driver = Driver({"identity": dataclasses.asdict(identity), **way})
        self._drivers.append(driver)
        return driver

    def driver(self, **way: Any) -> Driver:
        """The same, once it is ready."""
        driver = self.begin_driver(**way)
        assert (answer := driver.answer()) == {"number": 0, "value": "ready"}, answer
        return driver

    def _sockets(self) -> str:
        return tempfile.mkdtemp(dir=self._folder)

    def close(self) -> None:
        """End what was started, workers with the processes in their agents' place, which may be on other machines."""
        for driver in self._drivers:
            driver.process.kill()
            driver.process.communicate()
        for agent in self._started:
            agent.communicate()  # it ends with its standard input
