"""The first process of an agent (bootstrap.py): real processes, started as a controller starts them."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl import __version__
from forgectl.agent import bootstrap, start_command
from forgectl.model.plan import ForkServerPlan
from forgectl.protocol.supervision import AgentConfig
from tests.conftest import processes_of, until

RUN = f"first-{os.getpid()}"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for pid in processes_of(RUN):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_of(RUN), "the end of all")


def server(folder: Path, python: str = sys.executable, **env: str) -> ForkServerPlan:
    marks = {"FORGE_RUN_ID": RUN, "FORGE_ROLE": "forkserver"}
    return ForkServerPlan(python, str(folder), ("noted",), tuple({**marks, **env}.items()))


def config(folder: Path, *ahead: ForkServerPlan) -> AgentConfig:
    return AgentConfig(
        __version__,
        RUN,
        "local",
        str(folder / "agent"),
        str(folder),
        lease=60.0,
        log_limit=1 << 20,
        sweep=False,
        ahead=ahead,
    )


def start(told: AgentConfig) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        start_command.command(sys.executable),
        env=start_command.environment(told),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(start_command.standard_input(told))
    process.stdin.close()
    return process


def pid_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout
    with process.stdout as stdout:
        pid = json.loads(stdout.readline())["pid"]
    assert process.wait() == 0
    return int(pid)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Gets a file for every fork server that has preloaded, named by its parent and itself, with its variables."""
    path = tmp_path / "notes"
    path.mkdir()
    (tmp_path / "noted.py").write_text(
        "import json, os, pathlib\n"
        "draft = pathlib.Path(os.environ['NOTES'], f'.{os.getpid()}')\n"
        "draft.write_text(json.dumps(dict(os.environ)))\n"
        "draft.rename(draft.with_name(f'{os.getppid()}-{os.getpid()}'))\n"
    )
    return path


def test_its_fork_servers_are_its_children_with_their_variables(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_MESH", "another")
    values = {"NOTES": str(notes), "SPACED": "a = b\nc\td", "ODD": "\udcff\u00e4", "EMPTY": ""}
    missing = server(tmp_path, python=str(tmp_path / "no" / "python"))
    told = config(tmp_path, server(tmp_path, **values, NUMBER="1"), missing, server(tmp_path, **values, NUMBER="2"))
    agent = pid_of(start(told))
    found = until(lambda: len(list(notes.glob(f"{agent}-*"))) == 2 and list(notes.glob("[!.]*")), "both servers")
    seen = [json.loads(path.read_text()) for path in found]
    assert sorted(env["NUMBER"] for env in seen) == ["1", "2"]
    for env in seen:
        assert {name: env[name] for name in values} == values
        assert env["FORGE_ROLE"] == "forkserver"
        assert "FORGE_MESH" not in env
    for path in found:
        pid = int(path.name.partition("-")[2])
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"PPid:\t{agent}\n" in status
        sockets = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        assert sum(s.startswith("socket:") for s in sockets) == 1, "none of another fork server's"
    assert (tmp_path / "agents" / "local.forkserver-2.log").exists()
    mode = (tmp_path / "agents" / "local.forkserver-0.log").stat().st_mode
    assert mode & 0o077 == 0
    os.kill(agent, signal.SIGKILL)
    until(lambda: not processes_of(RUN), "the end of its fork servers")


def test_of_two_agents_started_at_once_one_lives_and_the_fork_servers_are_its(tmp_path: Path, notes: Path) -> None:
    told = config(tmp_path, server(tmp_path, NOTES=str(notes)))
    both = [start(told) for _ in range(2)]
    pids = {pid_of(process) for process in both}
    assert len(pids) == 1
    until(lambda: list(notes.glob("[!.]*")), "its fork server")
    assert [p.name.partition("-")[0] for p in notes.glob("[!.]*")] == [str(*pids)]


def test_it_is_no_agent_where_whoever_started_it_has_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(start_command.command(sys.executable), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(start_command.standard_input(config(tmp_path))[:20])
    assert (process.returncode, out) == (1, b"")
    assert not (tmp_path / "agents").exists()


@pytest.mark.parametrize(
    ("python", "found"),
    [
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("~/venv/bin/python", "HOME/venv/bin/python"),
        ("~root/bin/python", f"{pwd.getpwnam('root').pw_dir}/bin/python"),
        ("~nobody-of-that-name/python", "~nobody-of-that-name/python"),
        ("my-python", "HOME/second/my-python"),
        ("no-python", "no-python"),
    ],
)
def test_the_interpreter_is_found_as_a_shell_finds_it(tmp_path: Path, python: str, found: str) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my-python").touch(mode)
    env = {b"HOME": bytes(tmp_path), b"PATH": b":".join(bytes(tmp_path / name) for name in ("none", "first", "second"))}
    assert bootstrap.find(python.encode(), env) == os.fsencode(found.replace("HOME", str(tmp_path)))
