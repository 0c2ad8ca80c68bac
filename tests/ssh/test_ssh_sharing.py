"""Hosts that share what machines usually do not: a home, or the machine itself, under several names."""

from __future__ import annotations

from tests.conftest import PROGRAMS
from tests.process.deaths import pids
from tests.ssh.conftest import Far, MakeFar

STAY = "scripts: {stay: {run: stay.py, procs: 4, hosts: 2, preload: []}}"


def test_losses_on_two_hosts_are_those_of_one(far: Far) -> None:
    def losses(hosts: int) -> list[str]:
        body = f"scripts: {{ddp: {{run: ddp_losses.py, procs: 4, hosts: {hosts}}}}}"
        out = far.forge.ok("launch", far.forge.spec(far.spec(body, "host1", "host2")))
        lines = [line.partition("│ ")[2].split() for line in out.splitlines() if "│ loss" in line]
        assert {line[4] for line in lines} == {str(hosts)}
        return [line[2] for line in lines]

    together = losses(1)
    assert len(together) == 8
    assert float(together[-1]) < float(together[0])
    assert losses(2) == together


def test_hosts_with_one_home_are_told_apart(make_far: MakeFar) -> None:
    far = make_far(2, shared_home=True)
    first = far.launch(STAY)
    second = far.forge.launch(far.spec(STAY), "--name", "second")
    for run in (first, second):
        assert set(far.processes(run)) == {"host1", "host2"}
        assert "rank 3 of 4" in far.forge.ok("logs", f"{run}/stay", "--ranks", "3")
    far.lab.kill("host2", far.host(first, "host2")["agent_pid"])
    far.forge.until_ended(first)
    assert far.forge.mesh(second, "stay")["state"] == "running"
    far.forge.ok("shutdown", "--run", second)
    assert not far.processes(second)


def test_several_names_of_one_machine_are_hosts_of_one_network(far: Far) -> None:
    run = far.launch(STAY, "host1", "twin")
    document = far.forge.document(run)
    assert {h["address"] for h in document["hosts"]} == {"127.0.0.1"}
    assert len(set(pids(document["meshes"][0]))) == 4
    assert set(pids(document["meshes"][0])) <= set(far.processes(run)["host1"])
    for rank in range(4):
        assert f"rank {rank} of 4" in far.forge.ok("logs", "stay", "--ranks", str(rank), "--no-prefix")
    far.forge.ok("shutdown", "stay")
    assert not far.processes(run)


def test_names_of_one_machine_share_a_synced_workdir(far: Far) -> None:
    far.forge.write("stay.py", (PROGRAMS / "stay.py").read_text())
    spec = f"hosts: {far.hosts('host1', 'twin')}\n{STAY}"
    run = far.forge.launch(spec)
    assert len(far.lab.files("host1", "/var/tmp/forgectl-0/work/*/stay.py")) == 1
    far.forge.ok("shutdown", "--run", run)


def test_names_of_one_machine_share_its_declared_gpus(far: Far) -> None:
    wish = "scripts: {stay: {run: stay.py, procs: PROCS, with_gpus: true, preload: []}}"
    first = far.launch(wish.replace("PROCS", "1"), "host1", gpus=2)
    spec = far.forge.spec(far.spec(wish.replace("PROCS", "2"), "twin", gpus=2))
    second = far.forge.run("launch", spec, "--name", "second")
    assert second.returncode == 75
    assert f"Taken: GPU 0 of twin by run {first}" in second.stderr
    far.forge.ok("shutdown", "--all")
    both = far.forge.run("launch", far.forge.spec(far.spec(wish.replace("PROCS", "4"), "host1", "twin", gpus=2)))
    assert both.returncode == 65
    assert "host1, twin share 2 GPUs" in both.stderr


def test_an_sshd_that_takes_few_logins_at_once_is_waited_for(make_far: MakeFar) -> None:
    aliases = {f"name{n}": "host1" for n in range(16)}
    far = make_far(1, aliases=aliases, max_startups="3:80:6")
    run = far.launch("scripts: {stay: {run: stay.py, procs: 16, hosts: 16, preload: []}}", *aliases)
    assert len(far.forge.mesh(run, "stay")["ranks"]) == 16
    far.forge.ok("shutdown", "--all")


def test_two_launches_at_once_ship_the_same_code_once(make_far: MakeFar) -> None:
    far = make_far(1)
    spec = far.forge.spec(far.spec("scripts: {tell: {run: tell.py, preload: []}}"))
    launches = [far.forge.start("launch", spec, "--name", f"run{n}") for n in range(4)]
    for launch in launches:
        out, err = launch.communicate(timeout=90)
        assert launch.returncode == 0, err
        assert out
    assert len(far.lab.files("host1", "/var/tmp/forgectl-0/code/*")) == 1
