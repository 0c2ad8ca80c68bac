"""Fixtures: a forgectl of one's own, which must leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forgectl.cli.views.status_json import status_json
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import CONTROLLER_TO_CLI, GetStatus, StatusReport
from forgectl.version import __version__
from forgectl.wire.envelope import Hello, ProtocolError
from forgectl.wire.unix_sockets import Connection, dial
from tests.faults import oracle
from tests.faults.oracle import Traces
from tests.lab.fixtures import lab, make_lab, standing_lab  # noqa: F401  (fixtures for all tests)
from tests.warm_cli import warm_cli

PROGRAMS = Path(__file__).parent / "programs"
SOAK = int(os.environ.get("SOAK", "1"))
"""How many times as many random moments the tests of signals try; `make soak` sets it."""


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The first true value of `condition`; fails the test when there is none in so many seconds."""
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(min(0.01 + waited / 20, 0.1))  # who waits long takes no processor from what is waited for
    return value


async def eventually(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """As `until`, while the event loop runs on."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(0.005)
    return value


def processes_of(run: str) -> dict[int, str]:
    """Pid → command line of every process whose environment carries the run's id; zombies do not count."""
    return processes_with(f"FORGE_RUN_ID={run}")


def processes_with(variable: str) -> dict[int, str]:
    """Pid → command line of every process that has NAME=VALUE in its environment; zombies do not count."""
    return oracle.with_variable(variable)


def stacks(pids: list[int]) -> str:
    """Where the threads of some Python processes are."""
    found = []
    for pid in dict.fromkeys(pids):
        argv = [str(Path(sys.executable).with_name("py-spy")), "dump", "--pid", str(pid)]
        dump = subprocess.run(argv, capture_output=True, text=True, check=False)
        found.append(dump.stdout or f"{pid}: {dump.stderr}")
    return "\n".join(found)


def listening_ports(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that one of `pids` listens on."""
    return oracle.listening_ports(pids)


def _as_document(run: RunStatus) -> dict[str, Any]:
    document: dict[str, Any] = status_json([run])["runs"][0]
    return document


class Forge:
    """Runs forgectl in a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.home = folder / "home"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("FORGE", "TORCHELASTIC"))},
            "FORGECTL_HOME": str(self.home),
            "FORGECTL_GPU_LOCK_DIR": str(folder / "locks"),
            "NO_COLOR": "1",
        }
        for name in ("RANK", "COLUMNS"):  # the latter is xdist's, and would fold what our tests read
            self.env.pop(name, None)
        self._started: list[subprocess.Popen[str]] = []

    # ------------------------------------------------------------ commands

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "forgectl", *map(str, arguments)]

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """A forgectl command, run to its end."""
        options = {"timeout": 90, "cwd": self.folder, "env": self.env, **options}
        timeout, given = options.pop("timeout"), options.pop("input", None)
        outputs: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        if given is not None:
            outputs["stdin"] = subprocess.PIPE
        warm = options.keys() <= {"cwd", "env"}
        argv = warm_cli().argv(*map(str, arguments)) if warm else self.argv(*arguments)
        with subprocess.Popen(argv, **outputs, **options) as process:
            try:
                out, err = process.communicate(given, timeout)
            except subprocess.TimeoutExpired:
                ours = warm_cli().command_of(process.pid) if warm else [process.pid]
                seen = stacks([*ours, *processes_with(f"FORGECTL_HOME={self.home}")])
                runs = [self.glance(run) for run in self.runs() if not self._has_ended(run)]
                pytest.fail(f"{arguments} did not end within {timeout} s\n{seen}\n{runs}")
            finally:
                process.kill()
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def ok(self, *arguments: object, **options: Any) -> str:
        """Standard output of a command that must succeed."""
        result = self.run(*arguments, **options)
        assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """A forgectl command in the background, in a session of its own."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        process = subprocess.Popen(
            self.argv(*arguments), cwd=self.folder, env=self.env, text=True, start_new_session=True, **options
        )
        self._started.append(process)
        return process

    def python(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Python in the background, as a user runs a script, in a session of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        argv = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(argv, cwd=self.folder, env=self.env, text=True, start_new_session=True, **options)
        self._started.append(process)
        return process

    def write(self, name: str, text: str) -> Path:
        """A file in the working folder."""
        path = self.folder / name
        path.write_text(text)
        return path

    def spec(self, text: str, name: str = "spec.yaml") -> Path:
        """A spec in the working folder; `PROGRAMS` in it stands for the folder of test programs."""
        return self.write(name, text.replace("PROGRAMS", str(PROGRAMS)))

    def launch(self, text: str, *options: str) -> str:
        """Launch a spec detached; the run's id."""
        return self.ok("launch", self.spec(text), "-d", *options).strip().splitlines()[-1]

    # ------------------------------------------------------------ what is seen

    def status(self, *options: str) -> list[dict[str, Any]]:
        """`runs` of `status --json`."""
        runs: list[dict[str, Any]] = json.loads(self.ok("status", "--json", *options))["runs"]
        return runs

    def document(self, run: str) -> dict[str, Any]:
        """One run of `status -a --json`."""
        return next(r for r in self.status("-a") if r["run"] == run)

    def mesh(self, run: str, mesh: str) -> dict[str, Any]:
        """One mesh of a run."""
        found: dict[str, Any] = next(m for m in self.document(run)["meshes"] if m["mesh"] == mesh)
        return found

    def glance(self, run: str) -> dict[str, Any]:
        """As `document`, but for services' metrics. Without a command, each of which takes 0.2 s of processor time.

        Only where no controller answers a command is run, which starts another one.
        """
        run_dir = RunDir(self.run_dir(run))
        if (final := run_dir.read_final()) is not None:
            return _as_document(final)
        with contextlib.suppress(OSError, ProtocolError), contextlib.closing(self._controller(run_dir)) as controller:
            controller.send(Hello(__version__, run))
            controller.send(GetStatus(stats=True))
            while (answer := controller.receive(60.0)) is not None:
                if isinstance(answer, StatusReport):
                    return _as_document(answer.run)
        return self.document(run)

    @staticmethod
    def _controller(run_dir: RunDir) -> Connection:
        return Connection(dial(run_dir.control_socket, 5.0), CONTROLLER_TO_CLI)

    def until_mesh(self, run: str, mesh: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The mesh once `condition` holds of it."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = next(m for m in self.glance(run)["meshes"] if m["mesh"] == mesh)
            return found if condition(found) else None

        result: dict[str, Any] = until(look, f"{run}/{mesh}, at first {self.glance(run)}")
        return result

    def until_state(self, run: str, mesh: str, *states: str) -> dict[str, Any]:
        """The mesh once it is in one of `states`."""
        return self.until_mesh(run, mesh, lambda m: m["state"] in states)

    def until_ended(self, run: str) -> dict[str, Any]:
        """The run's final document, once nothing of it is left."""
        document: dict[str, Any] = until(
            lambda: (d := self.glance(run))["ended_at"] and not processes_of(run) and d, f"the end of {run}"
        )
        return document

    def run_dir(self, run: str) -> Path:
        return self.home / "runs" / run

    def roles(self, run: str) -> dict[str, list[int]]:
        """Role → pids of a run's own processes: controller, agent, forkserver (and its stores), rank.

        An agent is one from when it has become it (agent/bootstrap.py).
        """
        found: dict[str, list[int]] = {"controller": [], "agent": [], "forkserver": [], "rank": []}
        for pid, command in sorted(processes_of(run).items()):
            words = command.split()
            if "/agent/bootstrap.py" in command:
                continue
            role = words[2] if len(words) > 2 and words[1].endswith("boot.py") else "rank"
            found[role if role in found else "rank"].append(pid)
        return found

    # ------------------------------------------------------------ the end

    def runs(self) -> list[str]:
        folder = self.home / "runs"
        return [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []

    def close(self) -> None:
        """End all that was started, then prove that nothing is left."""
        for process in self._started:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        if not all(self._has_ended(run) for run in self.runs()):
            self.run("shutdown", "--all", "--force")
        traces = Traces(self.home, Path(self.env["FORGECTL_GPU_LOCK_DIR"]))
        left = traces.left()
        for pid in traces.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.communicate(timeout=30)  # until nobody holds its pipes; the timer of a test has gone off by now
        assert not left, f"something is left: {left}"

    def _has_ended(self, run: str) -> bool:
        with contextlib.suppress(ForgeError, OSError):
            return RunDir(self.run_dir(run)).has_ended
        return False


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    """A forgectl in a home of its own; the test fails if it leaves anything behind."""
    forge = Forge(tmp_path)
    yield forge
    forge.close()
