"""Logs of ssh hosts that were lost, or are slow to give them."""

from __future__ import annotations

from tests.ssh.conftest import Far

STAY = "lease: 3s\nscripts: {stay: {run: stay.py, procs: 2, hosts: 2, preload: [], restart: {max: 1}}}"


def test_a_lost_host_is_named_only_where_its_lines_would_be(far: Far) -> None:
    run = far.launch(STAY)
    far.lab.cut("host2")
    far.forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    shown = far.forge.run("logs", "stay")
    assert "generation 1" in shown.stdout
    assert shown.stderr == ""
    far.lab.cut("host1")
    far.forge.until_ended(run)
    far.lab.heal()
    assert "forgectl: lost, so that last lines may be missing: host1" in far.forge.run("logs", "stay").stderr


def test_who_waits_for_logs_is_told_so(far: Far) -> None:
    run = far.launch(STAY.replace("3s", "60s"), "host1", "host2")
    agent = far.host(run, "host2")["agent_pid"]
    far.lab.kill("host2", agent, signal=19)
    logs = far.forge.start("logs", "stay")
    assert logs.stderr is not None
    assert logs.stderr.readline() == "forgectl: fetching logs from hosts\n"
    far.lab.kill("host2", agent, signal=18)
    out, _ = logs.communicate(timeout=60)
    assert "rank 1 of 2" in out
    far.forge.ok("shutdown", "stay")
