"""The agent that is started before there is a controller, and fork servers before they are asked for."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from forgectl import __version__
from forgectl.protocol.supervision import AgentConfig
from forgectl.transport.early_agent import EarlyAgent
from tests.conftest import PROGRAMS, Forge, processes_of, until
from tests.process.deaths import run_named, until_empty

RUN = f"early-{os.getpid()}"
PRELOADED = "import os\nwith open(os.environ['COUNT'], 'a') as file: print(os.getppid(), file=file)\n"


@pytest.fixture
def count(forge: Forge) -> Path:
    """Gets a line from every process that imports the module `once`."""
    forge.write("once.py", PRELOADED)
    path = forge.folder / "count"
    forge.env["COUNT"] = str(path)
    return path


@pytest.mark.parametrize("kind", ["scripts", "hosts"])
def test_the_fork_server_that_was_begun_early_is_the_one_that_serves(forge: Forge, count: Path, kind: str) -> None:
    hosts = "hosts: [{name: a, local: true, env: {X: '1'}}]\n" if kind == "hosts" else ""
    run = forge.launch(f"{hosts}scripts: {{stay: {{run: PROGRAMS/stay.py, procs: 2, preload: [once]}}}}")
    roles = forge.roles(run)
    assert [int(line) for line in count.read_text().split()] == roles["agent"]
    forge.ok("shutdown", "--all")


def test_the_first_actors_of_a_script_get_theirs_early_too(forge: Forge, count: Path) -> None:
    """And whatever it has imported for messages, it has one thread: others would not survive its forks."""
    script = forge.python(forge.write("script.py", (PROGRAMS / "early.py").read_text()))
    out, err = script.communicate(timeout=60)
    assert out == "[('more', 1), ('more', 1)]\n", err
    assert len(count.read_text().split()) == 1


def test_nothing_is_left_of_a_launch_that_is_killed_as_it_begins(forge: Forge) -> None:
    for number in range(3):
        spec = forge.spec("lease: 1s\nscripts: {stay: {run: PROGRAMS/stay.py, preload: []}}")
        launch = forge.start("launch", spec, "--name", f"n{number}")
        run = run_named(forge, f"n{number}")
        if number:
            until(functools.partial(processes_of, run), "its first process")
        os.kill(launch.pid, signal.SIGKILL)
        launch.communicate()
        until_empty(run)


def test_what_lost_its_owner_before_it_had_a_controller_is_ended_by_the_next_command(forge: Forge) -> None:
    """And not brought up in its place: with a controller its agent would live on for ever."""
    python = forge.write(
        "slow-python", f'#!/bin/sh\nuntil [ -e "$GO" ]; do sleep 0.01; done\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    forge.env["GO"] = str(forge.folder / "go")
    hosts = f"hosts: [{{name: a, local: true, python: {python}}}]\n"
    launch = forge.start("launch", forge.spec(f"{hosts}scripts: {{stay: {{run: PROGRAMS/stay.py, preload: [json]}}}}"))
    [run] = until(forge.runs, "the run")
    until(lambda: processes_of(run), "its first process, for whose agent the launch waits")
    os.kill(launch.pid, signal.SIGKILL)
    launch.communicate()
    (forge.folder / "go").touch()
    forge.ok("status")
    assert forge.until_ended(run)["state"] in ("stopped", "lost")


def config(folder: Path) -> AgentConfig:
    return AgentConfig(__version__, RUN, "local", str(folder / "agent"), str(folder), lease=60.0, log_limit=1 << 20)


def test_an_agent_without_a_controller_is_ended(tmp_path: Path) -> None:
    early = EarlyAgent(config(tmp_path), sys.executable)
    early.end()
    early.let_go()
    until(lambda: not processes_of(RUN), "its end")


def test_what_cannot_become_an_agent_is_left_to_the_controller(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    early = EarlyAgent(config(tmp_path), str(program))
    assert os.read(early.pipe, 100) == b""
    early.let_go()


def test_it_tells_its_pid_once_it_listens(tmp_path: Path) -> None:
    early = EarlyAgent(config(tmp_path), sys.executable)
    pid = json.loads(os.read(early.pipe, 100))["pid"]
    early.let_go()
    assert list(processes_of(RUN)) == [pid]
    assert (tmp_path / "agent").is_socket()
    os.kill(pid, signal.SIGKILL)
