"""The oracle sees each kind of thing that a run can leave: an oracle that finds nothing proves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.system.cgroups import Cgroup, own
from tests.conftest import until
from tests.faults.oracle import MEMORY, SHORT, Traces

RUN = f"oracle{os.getpid()}-0000"


@pytest.fixture
def traces(tmp_path: Path) -> Traces:
    (tmp_path / "home" / "runs" / RUN).mkdir(parents=True)
    (tmp_path / "locks").mkdir()
    return Traces(tmp_path / "home", tmp_path / "locks")


@contextlib.contextmanager
def process(code: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is there."""
    argv = [sys.executable, "-S", "-c", f"import signal, socket; {code}; print(flush=True); signal.pause()"]
    found = subprocess.Popen(argv, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        assert found.stdout.readline()
        yield found
    finally:
        found.send_signal(signal.SIGKILL)
        found.communicate()


def left(traces: Traces) -> set[str]:
    return set(traces.left(settle=0))


def test_nothing_is_left_of_nothing(traces: Traces) -> None:
    assert traces.left(settle=0) == {}


@pytest.mark.parametrize("name", ["FORGE_RUN_ID", "FORGECTL_HOME"])
def test_a_process_by_its_environment(traces: Traces, name: str) -> None:
    with process("pass", env={name: RUN if name == "FORGE_RUN_ID" else str(traces.home)}) as one:
        assert one.pid in traces.processes()
        assert left(traces) == {"processes"}
    until(lambda: not left(traces), "its end")


def test_a_process_that_has_dropped_its_environment_by_its_log(traces: Traces) -> None:
    log = traces.home / "runs" / RUN / "rank-0.log"
    with process(f"log = open({str(log)!r}, 'w')", env={}) as one:
        assert one.pid in traces.processes()


def test_a_process_that_has_dropped_its_environment_by_its_cgroup(traces: Traces) -> None:
    group = Cgroup.create(own(), f"forgectl-{RUN}", "local") or pytest.skip("NO CGROUP v2 CAN BE MADE HERE")
    try:
        assert left(traces) == {"cgroups"}
        with process("pass", env={}) as one:
            Path(group.procs_path).write_text(str(one.pid))
            assert one.pid in traces.processes()
        until(lambda: not group.populated(), "its end")
    finally:
        group.remove(above=1)


def test_a_listening_port(traces: Traces) -> None:
    with process("s = socket.create_server(('127.0.0.1', 0))", env={"FORGE_RUN_ID": RUN}):
        assert left(traces) == {"processes", "listening ports"}


@pytest.mark.parametrize("place", ["controller.lock", "agents/local.lock", "locks", "memory"])
def test_a_lock_or_lease(traces: Traces, place: str) -> None:
    assert traces.gpu_locks
    path = {"locks": traces.gpu_locks / "GPU-1", "memory": MEMORY / f"{RUN}-01234567.lock"}.get(
        place, traces.home / "runs" / RUN / place
    )
    path.parent.mkdir(exist_ok=True, mode=0o700)
    try:
        with path.open("w") as file:
            assert "locks and leases" not in left(traces)
            fcntl.flock(file, fcntl.LOCK_EX)
            assert "locks and leases" in left(traces)
        assert "locks and leases" not in left(traces)
    finally:
        path.unlink()


@pytest.mark.parametrize("short", [False, True])
def test_a_socket_and_one_whose_file_is_gone(traces: Traces, short: bool) -> None:
    folder = traces.home / "sockets" / RUN
    if short:
        folder = SHORT / f"{zlib.crc32(os.fsencode(folder)):08x}"
    folder.mkdir(parents=True, mode=0o700)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        here = os.open(folder, os.O_PATH)
        sock.bind(str(folder / "x") if short else f"/proc/self/fd/{here}/x")
        os.close(here)
        assert "sockets" in left(traces)
        (folder / "x").unlink()
        assert not short or left(traces) == {"open sockets"}
    folder.rmdir()
    if not short:
        folder.parent.rmdir()
    assert not left(traces)


def test_memory_keys_and_folders(traces: Traces) -> None:
    run = traces.home / "runs" / RUN
    MEMORY.mkdir(exist_ok=True, mode=0o700)
    for kind, path in {
        "shared memory": MEMORY / f"{RUN}-01234567",
        "folders": run / "shared",
        "keys": run / "message-keys",
    }.items():
        path.mkdir()
        assert left(traces) == {kind}
        path.rmdir()
