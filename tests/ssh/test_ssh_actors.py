"""Actors on ssh hosts: called from a driver here; routed, restarted, told apart, and ended."""

from __future__ import annotations

import json
import os
import signal
import sys

from tests.conftest import processes_with, until
from tests.process.deaths import agent_of
from tests.ssh.conftest import Far

COUNTER = "actors: {counter: {class: far_players:Counter, procs: 3, hosts: 3, args: {start: 5}, preload: []}}"
POOL = "services: {pool: {class: far_players:Counter, num_replicas: 3, preload: [], restart: {max: 1}}}"


def test_an_actor_mesh_on_three_hosts_answers_its_driver_which_none_can_dial(far: Far) -> None:
    for name in far.lab.names:
        far.lab.drop(name, "out", far.lab.launcher, dials=True)
    run = far.launch(COUNTER)
    assert json.loads(far.forge.ok("call", "counter", "add", "2", "--json")) == [7, 7, 7]
    assert json.loads(far.forge.ok("call", "counter", "where", "--json")) == ["host1", "host2", "host3"]
    for name in far.lab.names:
        assert {address for address, _ in far.lab.listening(name)} <= {far.lab.address(name)}
    assert "3 × exit 0" in far.forge.ok("shutdown", "--run", run)
    assert not far.processes(run)
    for name in far.lab.names:
        assert not far.lab.listening(name)
        assert not far.lab.files(name, "/tmp/forgectl-0*")
    assert not (far.forge.run_dir(run) / "message-keys").exists()


def test_replicas_on_different_hosts_are_routed_to(far: Far) -> None:
    far.launch(POOL, slots=1)
    places = [json.loads(far.forge.ok("call", "pool", "where", "--json"))[0] for _ in range(6)]
    assert sorted(set(places)) == ["host1", "host2", "host3"]
    assert places[:3] == places[3:]
    far.forge.ok("shutdown", "--all")


def test_a_rank_that_dies_on_another_host_is_told_of_at_once(far: Far) -> None:
    run = far.launch(COUNTER)
    caller = far.forge.start("call", "counter", "sleep", "600")
    rank = far.forge.mesh(run, "counter")["ranks"][1]
    until(lambda: "sleeping" in far.forge.ok("logs", "counter", "--ranks", "1"), "the call to arrive")
    far.lab.kill("host2", rank["pid"])
    _, err = caller.communicate(timeout=30)
    assert caller.returncode != 0
    assert "rank 1 on host2 was killed by SIGKILL" in err
    far.forge.until_ended(run)


def test_an_actor_mesh_that_loses_a_host_comes_back_on_another(far: Far) -> None:
    body = COUNTER.replace("procs: 3, hosts: 3", "procs: 2, hosts: 2, restart: {max: 1}")
    run = far.launch(f"lease: 3s\n{body}")
    assert json.loads(far.forge.ok("call", "counter", "where", "--json")) == ["host1", "host2"]
    far.lab.cut("host2")
    far.forge.until_mesh(run, "counter", lambda m: m["generation"] == 1 and m["state"] == "ready")
    assert json.loads(far.forge.ok("call", "counter", "where", "--json")) == ["host1", "host3"]
    far.forge.ok("shutdown", "--all")


def test_a_handle_works_in_an_actor_on_another_host_and_hears_of_deaths(far: Far) -> None:
    far.forge.write("driver.py", (far.programs / "drive_far.py").read_text())
    spec = f"hosts: {far.hosts('host1', 'host2')}\n" + (
        "actors:\n"
        "  a: {class: far_players:Counter, hosts: [host1], preload: []}\n"
        "  b: {class: far_players:Asker, hosts: [host2], preload: []}\n"
        "driver: {run: driver.py}\n"
    )
    far.forge.write("far_players.py", (far.programs / "far_players.py").read_text())
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 0, done.stderr
    assert "asked 3" in done.stdout
    assert "ActorDied" in done.stdout


def test_values_stream_between_hosts_until_the_caller_leaves_or_dies(far: Far) -> None:
    spec = f"hosts: {far.hosts('host1', 'host2')}\n" + (
        "actors:\n"
        "  a: {class: far_players:Counter, hosts: [host1], preload: []}\n"
        "  b: {class: far_players:Asker, hosts: [host2], preload: []}\n"
        "driver: {run: stream_far.py}\n"
    )
    for name in ("stream_far.py", "far_players.py"):
        far.forge.write(name, (far.programs / name).read_text())
    done = far.forge.run("launch", far.forge.spec(spec))
    assert "left after 5000" in done.stdout, done.stderr
    assert "ended with its caller" in done.stdout, done.stderr


def test_an_actor_on_another_host_routes_and_launches_where_only_ssh_gets_through(far: Far) -> None:
    """The driver is reached through messengers, and the hosts reach each other through the launching machine."""
    for name in far.lab.names:
        far.lab.drop(name, "in", dials=True, but_ssh=True)
    for file in ("drive_far_services.py", "far_players.py"):
        far.forge.write(file, (far.programs / file).read_text())
    spec = f"hosts: {far.hosts('host1', 'host2', slots=3)}\n" + (
        "actors: {client: {class: far_players:Client, hosts: [host1], preload: []}}\n"
        "services: {pool: {class: far_players:Counter, num_replicas: 3, preload: []}}\n"
        "driver: {run: drive_far_services.py}\n"
    )
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 0, done.stdout + done.stderr
    places = json.loads(done.stdout.partition("fanned out ")[2].partition("\n")[0].replace("'", '"'))
    assert sorted(set(places)) == ["host1", "host2"]
    assert f"routed {places * 2}" in done.stdout
    assert "launched on host2" in done.stdout
    assert "service pool is shut down" in done.stdout


def test_a_messenger_that_is_killed_is_replaced(far: Far) -> None:
    run = far.launch(COUNTER.replace("preload", "restart: {max: 1}, preload"))
    [messenger] = [pid for pid, command in far.processes(run)["host2"].items() if "boot.py messenger" in command]
    far.lab.kill("host2", messenger)
    far.forge.until_mesh(run, "counter", lambda m: m["generation"] == 1 and m["state"] == "ready")
    assert json.loads(far.forge.ok("call", "counter", "add", "1", "--json")) == [6, 6, 6]
    assert agent_of(far.forge, run)
    far.forge.ok("shutdown", "--all")


def test_a_host_without_pyzmq_is_told_of_before_anything_is_started(far: Far) -> None:
    bare = far.bare_python()
    spec = far.spec(COUNTER).replace(sys.executable, bare, 2)
    done = far.forge.run("launch", far.forge.spec(spec))
    assert done.returncode == 69
    assert f"host host1: {bare} lacks pyzmq" in done.stderr
    assert f"host host2: {bare} lacks pyzmq" in done.stderr
    assert "pip install pyzmq" in done.stderr
    assert not far.forge.runs()


def test_a_call_outlasts_a_link_that_is_cut_for_less_than_the_lease(far: Far) -> None:
    run = far.launch(COUNTER)
    assert json.loads(far.forge.ok("call", "counter", "add", "1", "--json")) == [6, 6, 6]
    far.lab.cut("host2")
    caller = far.forge.start("call", "counter", "add", "1", "--json")
    far.until_host(run, "host2", "reconnecting")
    far.lab.mend("host2")
    out, err = caller.communicate(timeout=60)
    assert json.loads(out) == [7, 7, 7], err
    assert far.forge.mesh(run, "counter")["restarts"] == 0
    far.forge.ok("shutdown", "--all")


def test_a_host_that_is_cut_off_keeps_the_others_answering(far: Far) -> None:
    run = far.launch(COUNTER + "\nservices: {near: {class: far_players:Counter, hosts: [host1], preload: []}}")
    far.lab.cut("host2")
    assert json.loads(far.forge.ok("call", "near", "where", "--json")) == ["host1"]
    far.until_host(run, "host2", "reconnecting")
    assert json.loads(far.forge.ok("call", "near", "add", "1", "--json")) == [1]
    far.lab.mend("host2")
    far.until_host(run, "host2", "up")
    assert json.loads(far.forge.ok("call", "counter", "add", "1", "--json")) == [6, 6, 6]
    far.forge.ok("shutdown", "--all")


def test_a_tunnel_that_is_killed_is_dug_anew(far: Far) -> None:
    far.lab.drop("host1", "in", dials=True, but_ssh=True)
    body = "actors: {counter: {class: far_players:Counter, preload: []}}"
    far.forge.write("far_players.py", (far.programs / "far_players.py").read_text())
    run = far.forge.launch(f"hosts: {far.hosts('host1')}\n{body}")
    assert json.loads(far.forge.ok("call", "counter", "add", "2", "--json")) == [2]
    [tunnel] = tunnels(run)
    os.kill(tunnel, signal.SIGKILL)
    until(lambda: tunnels(run) not in ([], [tunnel]), "another tunnel")
    assert json.loads(far.forge.ok("call", "counter", "add", "2", "--json")) == [4]
    far.forge.ok("shutdown", "--run", run)
    assert not tunnels(run)


def tunnels(run: str) -> list[int]:
    """The run's processes that reach hosts through ssh for messages."""
    return [pid for pid, command in processes_with(f"FORGE_RUN_ID={run}").items() if "boot.py tunnel" in command]


def test_messages_go_through_ssh_where_the_hosts_cannot_be_dialled(far: Far) -> None:
    """Nor dial each other: all that gets through is ssh."""
    for name in far.lab.names:
        far.lab.drop(name, "in", dials=True, but_ssh=True)
    far.forge.write("driver.py", (far.programs / "drive_far.py").read_text())
    body = (
        "actors:\n"
        "  a: {class: far_players:Counter, hosts: [host1], preload: []}\n"
        "  b: {class: far_players:Asker, hosts: [host2], preload: []}\n"
        "driver: {run: driver.py}\n"
    )
    far.forge.write("far_players.py", (far.programs / "far_players.py").read_text())
    done = far.forge.run("launch", far.forge.spec(f"hosts: {far.hosts('host1', 'host2')}\n{body}"))
    assert done.returncode == 0, done.stderr
    assert "asked 3" in done.stdout
    assert "ActorDied" in done.stdout
