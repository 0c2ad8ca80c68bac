"""Runs of many hosts, all of which are this machine: they come up, report, and end, at whatever moment."""

from __future__ import annotations

import signal

import pytest

from tests.conftest import Forge, processes_of, until

MANY = 64


def spec_of(hosts: int) -> str:
    """One rank on each of so many hosts."""
    names = ", ".join(f"{{name: sim{i}, local: true}}" for i in range(hosts))
    script = f"{{run: PROGRAMS/stay.py, procs: {hosts}, hosts: {hosts}, preload: []}}"
    return f"hosts: [{names}]\nscripts: {{stay: {script}}}"


def test_sixty_four_hosts_come_up_report_and_end(forge: Forge) -> None:
    run = forge.launch(spec_of(MANY))
    document = forge.document(run)
    hosts = [f"sim{i}" for i in range(MANY)]
    assert [(h["name"], h["state"]) for h in document["hosts"]] == [(name, "up") for name in hosts]
    assert {h["agent_pid"] for h in document["hosts"]} == set(forge.roles(run)["agent"])
    [mesh] = document["meshes"]
    assert (mesh["state"], mesh["ready"]) == ("running", MANY)
    assert [r["host"] for r in mesh["ranks"]] == hosts
    assert {r["pid"] for r in mesh["ranks"]} == set(forge.roles(run)["rank"])
    assert all(r["rss_bytes"] > 0 for r in mesh["ranks"])
    lines = until(lambda: len(out := forge.ok("logs", "stay").splitlines()) == MANY and out, "a line of every rank")
    assert {line.partition(" ")[0] for line in lines} == {f"stay/{i}@sim{i}" for i in range(MANY)}
    assert f"{MANY} × SIGTERM" in forge.ok("shutdown", "stay")
    assert not processes_of(run)
    assert forge.document(run)["state"] == "stopped"


@pytest.mark.parametrize("agents", [1, 12])
def test_ctrl_c_while_many_hosts_come_up(forge: Forge, agents: int) -> None:
    launch = forge.start("launch", "-d", forge.spec(spec_of(MANY // 2)))
    run = until(lambda: next(iter(forge.runs()), None), "the run")
    until(lambda: len(forge.roles(run)["agent"]) >= agents, f"{agents} agents")
    launch.send_signal(signal.SIGINT)
    out, err = launch.communicate(timeout=60)
    assert (launch.returncode, out) == (130, ""), err
    assert not processes_of(run)
    document = forge.document(run)
    assert (document["state"], document["stopped_by"]) == ("stopped", "Ctrl-C")
