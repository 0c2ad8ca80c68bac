"""Faults of hosts: the first one is lost, clocks are wrong, and another program takes the ports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS, until
from tests.process.deaths import pids
from tests.ssh.conftest import Far

MEET = "scripts: {meet: {run: reduce.py, procs: 2, hosts: 2, restart: {max: 9, backoff: 0}}}"
WRONG = {"host1": 900, "host2": -900}
"""Host → the seconds by which its clock is ahead."""


@pytest.mark.timeout(300)
def test_the_loss_of_the_first_host_moves_the_mesh_and_its_rendezvous(far: Far) -> None:
    run = far.launch(f"lease: 5s\n{MEET}")
    before = far.forge.mesh(run, "meet")
    assert [r["host"] for r in before["ranks"]] == ["host1", "host2"]
    far.lab.cut("host1")
    mesh = far.forge.until_mesh(run, "meet", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert {r["host"] for r in mesh["ranks"]} == {"host2", "host3"}
    assert "host1 was unreachable" in mesh["reason"]
    until(lambda: far.forge.ok("logs", "meet").count("sum 3") == 2, "the ranks to meet again, without host1")
    far.lab.mend("host1")
    far.until_empty(run, "host1")
    far.forge.ok("shutdown", "meet")


def wrong_clock(far: Far, host: str) -> str:
    """An interpreter of a host by whose clock the time is wrong; its clocks that nobody sets are right."""
    ahead = WRONG[host]
    library, python = far.lab.shared / f"clock{ahead}.so", far.lab.shared / f"python{ahead}"
    compiler = shutil.which("cc") or pytest.skip("NO C COMPILER TO MAKE A WRONG CLOCK WITH")
    flags = ["-shared", "-fPIC", f"-DAHEAD=({ahead})"]
    subprocess.run([compiler, *flags, "-o", library, PROGRAMS / "clock.c"], check=True)
    python.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.timeout(300)
def test_hosts_whose_clocks_are_wrong_by_a_quarter_of_an_hour(far: Far) -> None:
    """The lease neither ends early nor lasts too long, restarts are counted, and events stay in order."""
    hosts = ", ".join(f"{{name: {host}, python: {wrong_clock(far, host)}}}" for host in WRONG)
    run = far.forge.launch(
        f"hosts: [{hosts}]\nworkdir: {PROGRAMS}\nsync: none\nlease: 30s\n"
        "scripts: {when: {run: when.py, procs: 2, hosts: 2, preload: [], restart: {max: 1, within: 10m}}}"
    )
    told = [int(far.forge.ok("logs", "when", "--ranks", n, "--no-prefix").split()[1]) for n in "01"]
    assert told[0] - told[1] > 1700, "the clocks are wrong"
    before = pids(far.forge.mesh(run, "when"))
    far.lab.cut("host2")
    far.until_host(run, "host2", "reconnecting")
    far.lab.mend("host2")
    far.until_host(run, "host2", "up")
    over = time.monotonic() + 31  # longer than the lease: that nothing happens in it is what is tested
    until(lambda: time.monotonic() > over or far.forge.glance(run)["state"] != "running", "the lease to pass")
    mesh = far.forge.mesh(run, "when")
    assert (mesh["generation"], pids(mesh)) == (0, before)
    far.lab.kill("host1", before[0])
    mesh = far.forge.until_mesh(run, "when", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert mesh["restarts"] == 1, "it is within ten minutes"
    far.lab.cut("host2")
    final = far.forge.until_ended(run)
    assert final["state"] == "lost"
    assert "host2 was unreachable for longer than its lease of 30 s" in final["meshes"][0]["reason"]
    assert "host2" not in far.processes(run)


@pytest.mark.timeout(300)
def test_a_squatter_that_takes_every_free_port_takes_no_rendezvous(far: Far) -> None:
    """With few ports, which change hands all the time: a port that was only looked up would be lost again."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    far.lab.run("host1", ["sh", "-c", f"echo 40000 40063 > {ports}"], check=True)
    squatter = far.lab.popen("host1", [sys.executable, PROGRAMS / "squat.py"], stdout=subprocess.PIPE)
    try:
        assert squatter.stdout and squatter.stdout.readline()
        run = far.launch("scripts: {meet: {run: reduce.py, procs: 2, restart: {max: 9, backoff: 0}}}", "host1")
        for generation in range(4):
            until(
                lambda g=generation: far.forge.ok("logs", "meet", "--generation", str(g)).count("sum 3") == 2,  # type: ignore[misc]
                f"generation {generation} to meet",
            )
            far.forge.ok("restart", f"{run}/meet")
        assert far.forge.mesh(run, "meet")["restarts"] == 0
        far.forge.ok("shutdown", "--run", run)
    finally:
        squatter.kill()
        squatter.wait()
        far.lab.run("host1", ["sh", "-c", f"echo 32768 60999 > {ports}"], check=True)
