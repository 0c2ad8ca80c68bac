"""Connections, links, agents, controllers, hosts fail: within the lease nothing is lost, after it nothing is left."""

from __future__ import annotations

import os

import pytest

from tests.conftest import until
from tests.process.deaths import controller_of, end, end_controller, pids, records
from tests.ssh.conftest import Far

STAY = "scripts: {stay: {run: stay.py, procs: 4, hosts: 2, preload: []}}"
TICK = "scripts: {tick: {run: tick.py, procs: 2, hosts: 2, preload: []}}"
RESTART = "scripts: {stay: {run: stay.py, procs: 4, hosts: 2, preload: [], restart: {max: 2}}}"
BRIEF = "lease: 3s\n"


def test_a_killed_ssh_session_is_replaced(far: Far) -> None:
    run = far.launch(TICK, "host1", "host2")
    before = pids(far.forge.mesh(run, "tick"))
    for _ in range(3):
        sessions = far.lab.sshd_sessions("host2")
        far.lab.kill_sessions("host2")
        until(lambda: (n := far.lab.sshd_sessions("host2")) and not n.keys() & sessions.keys(), "another session")  # noqa: B023
    mesh = far.forge.mesh(run, "tick")
    assert (mesh["state"], pids(mesh)) == ("running", before)
    far.forge.ok("shutdown", "tick")
    numbers = [
        int(line.split()[1]) for line in far.forge.ok("logs", "tick", "--ranks", "1", "--no-prefix").splitlines()
    ]
    assert numbers == list(range(len(numbers)))


def test_what_happened_while_the_link_was_down_is_told_when_it_is_back(far: Far) -> None:
    run = far.launch("lease: 20s\n" + STAY, "host1", "host2")
    rank = far.forge.mesh(run, "stay")["ranks"][3]["pid"]
    far.lab.cut("host2")
    far.lab.kill("host2", rank)
    far.until_host(run, "host2", "reconnecting")
    assert far.forge.mesh(run, "stay")["state"] == "running"
    far.lab.mend("host2")
    final = far.forge.until_ended(run)
    assert final["state"] == "failed"
    assert final["meshes"][0]["failure"]["message"] == "rank 3 on host2 was killed by SIGKILL"
    assert not far.processes(run)


@pytest.mark.parametrize("way", ["cut", "in", "out"])
def test_a_link_that_is_down_for_less_than_the_lease_loses_nothing(far: Far, way: str) -> None:
    run = far.launch("lease: 30s\n" + TICK, "host1", "host2")
    before = pids(far.forge.mesh(run, "tick"))
    if way == "cut":
        far.lab.cut("host2")
    else:
        far.lab.drop("host2", way)
    far.until_host(run, "host2", "reconnecting")
    far.lab.heal()
    far.until_host(run, "host2", "up")
    mesh = far.forge.mesh(run, "tick")
    assert (mesh["state"], mesh["generation"], pids(mesh)) == ("running", 0, before)
    far.forge.ok("shutdown", "tick")
    assert not far.processes(run)


@pytest.mark.parametrize("way", ["cut", "in", "out"])
def test_a_link_that_is_down_for_longer_fences_the_host(far: Far, way: str) -> None:
    run = far.launch(BRIEF + STAY, "host1", "host2")
    if way == "cut":
        far.lab.cut("host2")
    else:
        far.lab.drop("host2", way)
    document = far.forge.until_ended(run)
    assert "host2" not in far.processes(run), "the controller must not say so before the agent has ended all"
    assert document["state"] == "lost"
    assert [h["state"] for h in document["hosts"]] == ["gone", "lost"]
    [mesh] = document["meshes"]
    assert mesh["state"] == "lost"
    assert "host2 was unreachable for longer than its lease of 3 s" in mesh["reason"]
    far.lab.heal()
    assert not far.processes(run)


def test_a_mesh_that_loses_a_host_restarts_on_another(far: Far) -> None:
    run = far.launch(BRIEF + RESTART)
    far.lab.cut("host2")
    mesh = far.forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert {r["host"] for r in mesh["ranks"]} == {"host1", "host3"}
    assert "host2 was unreachable" in mesh["reason"]
    assert "generation 1" in far.forge.ok("logs", "stay", "--ranks", "3")
    far.lab.mend("host2")
    far.until_empty(run, "host2")
    assert "4 × SIGTERM" in far.forge.ok("shutdown", "stay")
    assert not far.processes(run)


def test_without_another_host_it_is_lost(far: Far) -> None:
    run = far.launch(BRIEF + RESTART, "host1", "host2")
    far.lab.cut("host2")
    final = far.forge.until_ended(run)
    assert final["state"] == "lost"
    assert "no other takes its place" in final["meshes"][0]["reason"]


def test_an_agent_that_is_killed_is_replaced_and_its_ranks_are_gone(far: Far) -> None:
    run = far.launch(RESTART, "host1", "host2")
    far.lab.kill("host2", far.host(run, "host2")["agent_pid"])
    mesh = far.forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert "the agent on host host2 was killed" in mesh["reason"]
    assert set(pids(mesh)) <= {pid for found in far.processes(run).values() for pid in found}
    far.forge.ok("shutdown", "stay")


def test_a_host_that_reboots_is_lost_for_good(far: Far) -> None:
    run = far.launch(BRIEF + RESTART)
    far.lab.reboot("host2", silently=True)
    mesh = far.forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert "host2" in mesh["reason"]
    far.forge.ok("shutdown", "stay")


def test_an_agent_whose_folder_was_removed_is_reached_again(far: Far) -> None:
    run = far.launch(STAY, "host1", "host2")
    before = pids(far.forge.mesh(run, "stay"))
    socket = f"/var/tmp/forgectl-0/runs/{run}/host2/agent"
    remove = ["rm", "-rf", "/var/tmp/forgectl-0"]
    until(lambda: far.lab.run("host2", remove).returncode == 0, "its removal")  # the agent may write meanwhile
    until(far.lab.path("host2", socket).exists, "another socket")
    sessions = far.lab.sshd_sessions("host2")
    far.lab.kill_sessions("host2")
    until(lambda: (n := far.lab.sshd_sessions("host2")) and not n.keys() & sessions.keys(), "another session")
    far.until_host(run, "host2", "up")
    mesh = far.forge.mesh(run, "stay")
    assert (mesh["state"], mesh["generation"], pids(mesh)) == ("running", 0, before)
    assert "4 × SIGTERM" in far.forge.ok("shutdown", "stay")


def test_the_next_controller_adopts_agents_on_ssh_hosts(far: Far) -> None:
    run = far.launch(TICK, "host1", "host2")
    before = pids(far.forge.mesh(run, "tick"))
    for _ in range(2):
        end_controller(far.forge, run)
        mesh = far.forge.mesh(run, "tick")
        assert (mesh["state"], pids(mesh)) == ("running", before)
    far.forge.until_mesh(run, "tick", lambda m: all(r["rss_bytes"] for r in m["ranks"]))
    assert "2 × SIGTERM" in far.forge.ok("shutdown", "tick")
    assert not far.processes(run)
    records(far.forge, run)


def test_the_launching_machine_disappears(far: Far) -> None:
    run = far.launch(BRIEF + STAY)
    controller = controller_of(far.forge, run)
    os.kill(controller, 19)
    try:
        far.until_empty(run)
    finally:
        os.kill(controller, 18)
    final = far.forge.until_ended(run)
    assert final["state"] == "lost"


def test_its_controller_is_killed_and_nobody_looks(far: Far) -> None:
    run = far.launch(BRIEF + STAY)
    end(controller_of(far.forge, run))
    far.until_empty(run)
    assert far.forge.until_ended(run)["state"] == "lost"
    assert not far.processes(run)


def test_the_cable_of_the_launching_machine_is_pulled(far: Far) -> None:
    run = far.launch(BRIEF + STAY)
    far.lab.cut(far.lab.launcher)
    far.until_empty(run)
    assert far.forge.until_ended(run)["state"] == "lost"
