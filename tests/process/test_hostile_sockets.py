"""Whatever comes in on a control socket harms only its own connection: others are served, memory stays bounded."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from forgectl import __version__
from tests.conftest import PROGRAMS, Forge, until

STAY = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"
GROWTH = 60 << 20
"""Bytes by which a daemon may grow under attack; what is thrown at it is several times as much."""
DOORS = ["control", "agent-0"]
"""The sockets of a run's controller and of its agent."""


class Target:
    """A running mesh, and the sockets of its daemons."""

    def __init__(self, forge: Forge, door: str) -> None:
        self.forge = forge
        self.run = forge.launch(STAY)
        self.path = forge.home / "sockets" / self.run / door
        roles = forge.roles(self.run)
        self.daemon = psutil.Process(roles["controller" if door == "control" else "agent"][0])
        self.pids = [r["pid"] for r in forge.mesh(self.run, "stay")["ranks"]]
        self.before = self.daemon.memory_info().rss

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))  # with a timeout it would fail at once where many wait already
        sock.settimeout(30)
        return sock

    def greeted(self) -> socket.socket:
        sock = self.dial()
        sock.sendall(_line(type="Hello", version=__version__, run=self.run, since=0, of=0))
        assert b"\n" in sock.recv(1 << 16)
        return sock

    def hung_up(self, sock: socket.socket) -> bytes:
        """All that is still answered before the other end hangs up."""
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(1 << 16):
                answer += part
        return answer

    def check_all_is_well(self) -> None:
        mesh = self.forge.mesh(self.run, "stay")
        assert (mesh["state"], mesh["generation"], mesh["ready"]) == ("running", 0, 2)
        assert [r["pid"] for r in mesh["ranks"]] == self.pids
        assert self.daemon.is_running()
        assert self.daemon.memory_info().rss - self.before < GROWTH
        for log in (
            self.forge.run_dir(self.run) / "controller.log",
            *self.forge.run_dir(self.run).glob("agents/*.log"),
        ):
            assert "Traceback" not in log.read_text(), log.read_text()[-2000:]


def _line(**message: Any) -> bytes:
    return json.dumps(message).encode() + b"\n"


@pytest.fixture(params=DOORS)
def target(forge: Forge, request: pytest.FixtureRequest) -> Iterator[Target]:
    target = Target(forge, request.param)
    yield target
    target.check_all_is_well()


GARBAGE: dict[str, bytes] = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random bytes": os.urandom(4096) + b"\n",
    "zeros": b"\0" * 4096 + b"\n",
    "no object": b"[]\n",
    "null": b"null\n",
    "an empty line": b"\n",
    "a bare string": b'"Hello"\n',
    "deep lists": b"[" * 200_000 + b"\n",
    "deep objects": b'{"a":' * 100_000 + b"\n",
    "a huge number": b'{"type":"Hello","version":' + b"9" * 10_000 + b"}\n",
    "half a character": b'{"type":"\xc3"}\n',
    "lone surrogates": b'{"type":"Hello","version":"\\ud800","run":"\\udfff"}\n',
    "an unknown type": b'{"type":"Explode"}\n',
    "a type that is no text": b'{"type":["Hello"]}\n',
    "a class of Python": b'{"type":"__class__"}\n',
    "no fields": b'{"type":"Hello"}\n',
    "too many fields": b'{"type":"Hello","version":"1","run":"x","more":1}\n',
    "fields of wrong types": b'{"type":"Hello","version":1,"run":null}\n',
    "another message first": b'{"type":"Shutdown","meshes":null,"grace":0,"by":"x"}\n',
    "another run": _line(type="Hello", version=__version__, run="../../../etc"),
}


def test_garbage_instead_of_a_greeting(target: Target) -> None:
    for what, data in GARBAGE.items():
        with target.dial() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            answer = target.hung_up(sock) if what != "another run" or target.path.name != "control" else b""
            assert b"StatusReport" not in answer and b"Event" not in answer, what


def test_garbage_after_the_greeting(target: Target) -> None:
    for what, data in GARBAGE.items():
        if what in ("another message first", "another run", "lone surrogates"):
            continue  # after the greeting these are messages as good as any
        with target.greeted() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
            target.hung_up(sock)


def test_another_version_is_refused_and_both_are_named(target: Target) -> None:
    with target.dial() as sock:
        sock.sendall(_line(type="Hello", version="99.9-evil", run=target.run))
        answer = json.loads(target.hung_up(sock))
    assert answer["type"] == "Refusal"
    assert __version__ in answer["message"]
    assert "99.9-evil" in answer["message"]


@pytest.mark.parametrize("greet", [False, True])
def test_a_line_without_end_is_cut(target: Target, greet: bool) -> None:
    with target.greeted() if greet else target.dial() as sock, pytest.raises(ConnectionError):
        sock.sendall(b"x" * (100 << 20))


def test_half_a_message_and_then_nothing(target: Target) -> None:
    with target.dial() as sock:
        sock.sendall(b'{"type":"Hello","vers')
        sock.shutdown(socket.SHUT_WR)
        assert target.hung_up(sock) == b""
    with target.greeted() as sock, contextlib.suppress(OSError):  # an agent may drop it for its controller before
        sock.sendall(b'{"type":"GetSta')
        sock.shutdown(socket.SHUT_WR)
        target.hung_up(sock)


def test_slow_writers_and_idle_connections_keep_nobody_waiting(target: Target) -> None:
    """Each is dropped in the end, though it says a byte now and then; others are served meanwhile."""
    silent = [target.dial() for _ in range(200)]
    slow = [target.dial() for _ in range(5)]
    try:
        began = time.monotonic()
        assert target.forge.status()[0]["state"] == "running"
        assert time.monotonic() - began < 20

        def still_there(sock: socket.socket) -> bool:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"{")
                sock.setblocking(False)
                try:
                    return sock.recv(1) != b""
                except BlockingIOError:
                    return True
            return False

        until(lambda: [still_there(s) for s in slow] == [False] * len(slow), "the slow ones to be dropped")
        for sock in silent:
            assert target.hung_up(sock) == b""
    finally:
        for sock in (*silent, *slow):
            sock.close()


@pytest.mark.parametrize("request_", ["GetStatus", "Attach"])
def test_who_asks_but_never_reads_fills_nobodys_memory(forge: Forge, request_: str) -> None:
    target = Target(forge, "control")
    with contextlib.ExitStack() as stack:
        askers = [stack.enter_context(target.greeted()) for _ in range(20)]
        for sock in askers:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                for _ in range(2000):
                    sock.send(_line(type=request_))
        for _ in range(3):
            target.check_all_is_well()
    target.check_all_is_well()


def test_names_with_paths_in_them_touch_nothing(forge: Forge) -> None:
    target = Target(forge, "control")
    run_dir = forge.run_dir(target.run)
    before = {p for p in forge.home.rglob("*") if p.suffix != ".times"}
    with target.greeted() as sock:
        for name in ("../../../tmp/evil", "/etc/passwd", "stay/../stay", "", "\0", "stay\n", "*"):
            sock.sendall(_line(type="Shutdown", meshes=[name], grace=0.0, by="../evil"))
        sock.sendall(_line(type="GetStatus"))
        assert b"StatusReport" in sock.recv(1 << 16)
    target.check_all_is_well()

    hello = _line(type="Hello", version=__version__, run=target.run)
    plan = json.loads((run_dir / "plan.json").read_text())
    agent = Target.__new__(Target)
    agent.__dict__.update(target.__dict__, path=target.path.with_name("agent-0"))
    for name in ("../../../evil", "/tmp/evil", "..", "", "a/b", "x\n", "-x", "x" * 64, "\ud800"):
        mesh = {**plan["meshes"][0], "mesh": name}
        with agent.dial() as sock:  # both at once, as the controller comes back and takes over
            sock.sendall(hello + _line(type="Prepare", mesh=mesh))
            agent.hung_up(sock)
    with agent.dial() as sock:
        sock.sendall(hello + _line(type="Stop", mesh="stranger", generation=0, grace=0.0))
        agent.hung_up(sock)
    target.check_all_is_well()
    assert {p for p in forge.home.rglob("*") if p.suffix != ".times"} == before
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert {e["what"]["mesh"] for e in events if e["type"] == "Happened"} <= {"stay", "stranger"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out(target: Target) -> None:
    """First by the modes of folder and socket; and where those were loosened, by the uid of the peer."""
    hello = json.dumps({"type": "Hello", "version": __version__, "run": target.run})

    def as_nobody() -> subprocess.CompletedProcess[str]:
        folder = os.open(target.path.parent, os.O_PATH)  # what is above the home may be closed to others too
        try:
            name = f"/proc/self/fd/{folder}/{target.path.name}"
            argv = [sys.executable, str(PROGRAMS / "say_as_nobody.py"), name, hello]
            return subprocess.run(argv, pass_fds=[folder], capture_output=True, text=True, timeout=60)
        finally:
            os.close(folder)

    assert as_nobody().returncode == 77
    assert target.path.parent.stat().st_mode & 0o777 == 0o700
    assert target.path.stat().st_mode & 0o777 == 0o600
    with _loosened(target.path.parent, 0o777), _loosened(target.path, 0o777):
        let_in = as_nobody()
    assert (let_in.returncode, let_in.stdout.strip()) == (0, "b''"), let_in.stderr


@contextlib.contextmanager
def _loosened(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)
