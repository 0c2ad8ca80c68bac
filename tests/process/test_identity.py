"""Exact identity against real processes, with a pid that really is reused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forgectl.system.processes import REAL, Identity, alive, boot_id, identify, open_pidfd, signal_exactly
from tests.process.families import PROGRAMS, identified

ROOT = Path(__file__).parent.parent.parent
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_identity_agrees_with_psutil(sleeper: subprocess.Popen[bytes]) -> None:
    it = identified(sleeper.pid)
    ticks = os.sysconf("SC_CLK_TCK")
    assert it.pid == sleeper.pid
    assert it.boot_id == boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    created = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
    assert abs(it.start_time / ticks - created) <= 1 / ticks + 0.001
    stat = REAL.stat(sleeper.pid)
    assert stat
    assert (stat.name, stat.ppid, stat.threads, stat.dead) == ("sleep", os.getpid(), 1, False)
    assert sleeper.pid in REAL.pids()


def test_a_name_made_to_deceive(tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 1 (x\n"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "600"])
    try:
        stat = REAL.stat(process.pid)
        assert stat
        assert (stat.name, stat.ppid) == (") Z 1 1 (x\n", os.getpid())
        assert alive(identified(process.pid))
    finally:
        process.kill()
        process.wait()


def test_a_zombie_is_dead_but_has_an_identity() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    it = identify(process.pid)
    assert it is not None
    assert not alive(it)
    process.wait()
    assert identify(process.pid) is None
    assert open_pidfd(it) is None


def test_a_signal_reaches_it_once_it_is_exactly_that(sleeper: subprocess.Popen[bytes]) -> None:
    it = identified(sleeper.pid)
    assert not signal_exactly(Identity(it.pid, it.start_time - 1, it.boot_id), signal.SIGKILL)
    assert not signal_exactly(Identity(it.pid, it.start_time, "another boot"), signal.SIGKILL)
    assert alive(it)
    assert signal_exactly(it, signal.SIGTERM)
    assert sleeper.wait() == -signal.SIGTERM
    assert not signal_exactly(it, signal.SIGTERM)


def test_a_whole_environment_is_read() -> None:
    big = "x" * 100_000
    with subprocess.Popen(["sleep", "600"], env={"A": big, "FORGE_RUN_ID": "r"}) as process:
        try:
            while not (environ := REAL.environ(process.pid)):
                os.sched_yield()  # Popen returns within exec, a moment before there is an environment
            assert environ == f"A={big}\0FORGE_RUN_ID=r\0".encode()
        finally:
            process.kill()


def test_a_stranger_with_a_reused_pid_is_never_signalled() -> None:
    if not os.access(LAST_PID, os.W_OK):
        pytest.skip("PIDS CAN BE FORCED ONLY BY ROOT, WHERE /proc/sys/kernel/ns_last_pid IS WRITABLE")
    first = subprocess.Popen(["sleep", "600"])
    old = identified(first.pid)
    first.kill()
    first.wait()
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # start times count in ticks; a real pid wrap takes far longer
    stranger = fork_as(old.pid)
    try:
        assert identify(old.pid) not in (None, old)
        assert not alive(old)
        assert open_pidfd(old) is None
        assert not signal_exactly(old, signal.SIGKILL)
        assert os.waitpid(stranger, os.WNOHANG) == (0, 0)
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def fork_as(pid: int) -> int:
    """Fork a process that gets this pid and waits; others on the machine may be quicker, so several tries."""
    for _ in range(200):
        LAST_PID.write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        if child == pid:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    pytest.skip(f"PID {pid} WAS TAKEN BY OTHERS 200 TIMES")


def check_orphans(way: str) -> None:
    argv = [sys.executable, str(PROGRAMS / "orphans.py"), way]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_orphans_fall_to_a_subreaper() -> None:
    check_orphans("fall")


@pytest.mark.parametrize("too_late", [False, True], ids=["parent-dies-later", "parent-was-dead-already"])
def test_die_with_parent(too_late: bool) -> None:
    check_orphans("die-too-late" if too_late else "die")


def test_die_with_parent_leaves_a_child_of_a_living_parent_alone() -> None:
    check_orphans("live")
