"""A launch on ssh hosts is interrupted or killed at any moment: nothing stays there."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.conftest import PROGRAMS, SOAK, until
from tests.ssh.conftest import Far

SHORT = "lease: 3s\nscripts: {short: {run: short.py, procs: 4, hosts: 2, preload: []}}"
MOMENTS = 5 * SOAK


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_at_any_moment_leaves_nothing_on_hosts(far: Far, number: signal.Signals) -> None:
    far.forge.write("short.py", "import time; time.sleep(0.3)")
    far.forge.write("filler", "x" * 3_000_000)
    spec = far.forge.spec(f"hosts: {far.hosts('host1', 'host2')}\n{SHORT}")
    began = time.monotonic()
    far.forge.ok("launch", spec)
    life = time.monotonic() - began
    chance = random.Random(number)
    for i in range(MOMENTS):
        far.forge.write("filler", f"{i}" * 3_000_000)
        launch = far.forge.start("launch", spec, "--name", f"run{i}")
        time.sleep(life * (i + chance.random()) / MOMENTS)  # the moment is what is tested
        launch.send_signal(number)
        _, err = launch.communicate(timeout=60)
        if number != signal.SIGINT:  # which may come while the interpreter imports
            assert "Traceback" not in err
    for run in far.forge.runs():
        far.forge.until_ended(run)
        far.until_empty(run)
    assert all(not far.processes(run) for run in far.forge.runs())


def test_a_host_that_does_not_answer_does_not_hold_up_ctrl_c(far: Far) -> None:
    far.forge.write("tell.py", (PROGRAMS / "tell.py").read_text())
    launch = far.forge.start("run", "-n", "2", "--host", "silent", "--host", "host1", "tell.py")
    time.sleep(0.5)  # while it dials
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=60)
    assert (launch.returncode, err) == (130, "")
    assert not far.forge.runs()


def test_a_second_ctrl_c_does_not_wait_for_a_host_that_is_cut(far: Far) -> None:
    spec = far.spec("lease: 20s\nscripts: {stay: {run: stay.py, procs: 2, hosts: 2, preload: []}}", "host1", "host2")
    launch = far.forge.start("launch", far.forge.spec(spec))
    run = until(far.forge.runs, "the run")[0]
    far.forge.until_state(run, "stay", "running")
    far.lab.cut("host2")
    launch.send_signal(signal.SIGINT)
    far.until_host(run, "host2", "reconnecting")
    shutdown = far.forge.start("shutdown", "stay")
    assert launch.poll() is None
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=60)
    assert far.forge.document(run)["state"] == "stopping"
    assert launch.returncode == 130
    assert "host host2 is not reached; forgectl keeps trying until its lease of 20 s is over" in err
    assert "not waited for: host2, not reached; what runs there ends by itself with its lease" in err
    assert f"hint: run {run} ends then" in err
    out, err = shutdown.communicate(timeout=60)
    assert "1 × lost" in out
    assert "host host2 is not reached" in err
    assert "host2" not in far.processes(run)
    assert far.forge.until_ended(run)["state"] == "lost"
