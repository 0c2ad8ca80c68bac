"""How commands find a run's controller, where there is one, or will be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from forgectl.controller import client, run_dir
from forgectl.model.plan import LEASE, LOG_LIMIT, HostPlan, Plan
from forgectl.protocol.control import CLI_TO_CONTROLLER
from forgectl.system.daemons import let_go
from forgectl.version import __version__
from forgectl.wire.envelope import Hello
from forgectl.wire.unix_sockets import Connection, dial, listen, private_folder
from tests.conftest import until


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose controller has its lock but does not listen yet, and may be let begin to."""
    monkeypatch.setenv("FORGECTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "sockets"))
    (tmp_path / "sockets").mkdir(mode=0o700)
    host = HostPlan("local", True, sys.executable, "127.0.0.1")
    run, lock = run_dir.create(Plan("r", "", "/", LEASE, LOG_LIMIT, (host,), ()), b"", own=False)
    yield run, lock
    run_dir.discard(run)


def test_a_controller_that_begins_is_waited_for(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, lock = begun
    monkeypatch.setattr(client, "start_controller", lambda *_, **__: pytest.fail("it started another one"))
    missed = threading.Semaphore(0)

    def dialled(path: Path, seconds: float) -> socket.socket:
        try:
            return dial(path, seconds)
        except FileNotFoundError:
            missed.release()
            raise

    def controller() -> None:
        for _ in range(3):
            missed.acquire()
        private_folder(run.sockets)
        with listen(run.control_socket) as door:
            while True:
                line = Connection(door.accept()[0], CLI_TO_CONTROLLER)
                if line.receive() is not None:
                    line.send(Hello(__version__, run.run))
                    return

    monkeypatch.setattr(client, "dial", dialled)
    thread = threading.Thread(target=controller)
    thread.start()
    line = client.connect(run)
    assert line is not None
    line.close()
    thread.join()
    os.close(lock)
    assert not run.has_controller()


def test_a_daemon_that_was_let_go_leaves_no_zombie() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    let_go(process)
    assert process.stdin is not None
    process.stdin.close()
    until(lambda: not Path(f"/proc/{process.pid}").exists(), "its end")
