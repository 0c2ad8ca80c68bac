"""A host is lost and a spare takes its place, of the first host too: its link is down, or ssh says that it is gone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import until
from tests.process.outputs import events_of
from tests.ssh.conftest import Far

SUM = """
lease: 3s
spares: 1
scripts: {sum: {run: reduce.py, procs: 2, hosts: 2, restart: {max: 3}}}
"""


def spare_of(far: Far, run: str) -> dict[str, str]:
    """Host → whether it is warm, for the spares of a run."""
    return {h["name"]: h["spare"] for h in far.forge.document(run)["hosts"] if "spare" in h}


def until_warm(far: Far, run: str, name: str) -> None:
    until(lambda: spare_of(far, run).get(name) == "warm", f"{name} to be a warm spare")


def until_reduced(far: Far, run: str, generation: int) -> None:
    """Wait for the first all_reduce of a generation."""
    said = f"TORCHELASTIC_RESTART_COUNT={generation}"
    until(lambda: said in far.forge.run("logs", run, "--ranks", "0").stdout, f"the sum of generation {generation}")


def hosts_of(mesh: dict[str, Any]) -> list[str]:
    return [r["host"] for r in mesh["ranks"]]


@pytest.mark.parametrize(("lost", "after"), [("host2", ["host1", "host3"]), ("host1", ["host3", "host2"])])
def test_a_spare_takes_the_place_of_a_host_whose_link_is_down(far: Far, lost: str, after: list[str]) -> None:
    run = far.launch(SUM)
    assert hosts_of(far.forge.mesh(run, "sum")) == ["host1", "host2"]
    until_warm(far, run, "host3")
    far.lab.cut(lost)
    mesh = far.forge.until_mesh(run, "sum", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert hosts_of(mesh) == after
    until_reduced(far, run, 1)
    assert spare_of(far, run) == {}
    [moved] = [e for e in events_of(far.forge, run) if e["event"] == "mesh_moved"]
    assert f"spare host3 takes the place of {lost}" in moved["message"]
    assert f"host3 takes the place of {lost}" in far.forge.ok("why", run)
    far.lab.mend(lost)
    until_warm(far, run, lost)
    third = "host3"  # which is the first host, if that was lost before
    far.lab.cut(third)
    mesh = far.forge.until_mesh(run, "sum", lambda m: m["generation"] == 2 and m["state"] == "running")
    assert set(hosts_of(mesh)) == {lost, *after} - {third}
    until_reduced(far, run, 2)
    far.lab.mend(third)
    far.forge.ok("shutdown", run)
    assert not far.processes(run)


@pytest.mark.parametrize("lost", ["host1", "host2"])
def test_a_host_of_which_ssh_says_that_its_agent_is_gone_is_left_at_once(far: Far, lost: str) -> None:
    run = far.launch(SUM.replace("3s", "60s"))
    until_warm(far, run, "host3")
    far.lab.kill(lost, far.host(run, lost)["agent_pid"])
    mesh = far.forge.until_mesh(run, "sum", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert "host3" in hosts_of(mesh)
    assert lost not in hosts_of(mesh)
    until_reduced(far, run, 1)
    until_warm(far, run, lost)  # it has a new agent
    far.forge.ok("shutdown", run)
    assert not far.processes(run)


def test_a_spare_has_the_files_of_the_run(far: Far) -> None:
    (far.forge.folder / "task").mkdir()
    far.forge.write("task/work.py", "import signal; print('it is here', flush=True); signal.pause()")
    body = "scripts: {work: {run: work.py, preload: [], restart: {max: 1}}}"
    run = far.forge.launch(f"hosts: {far.hosts('host1', 'host2')}\nworkdir: task\nlease: 3s\nspares: 1\n{body}\n")
    until_warm(far, run, "host2")
    far.lab.cut("host1")
    far.forge.until_mesh(run, "work", lambda m: m["generation"] == 1 and m["state"] == "running")
    until(lambda: "it is here" in far.forge.ok("logs", "work"), "its line")
    far.forge.ok("shutdown", run)


def test_a_spare_holds_its_gpus_until_it_is_taken(far: Far) -> None:
    body = SUM.replace("reduce.py", "stay.py").replace("procs: 2", "procs: 2, with_gpus: true, preload: []")
    run = far.launch(body, gpus=1)
    until_warm(far, run, "host3")
    other = far.forge.run(
        "launch",
        "-d",
        far.forge.spec(
            far.spec(body.replace("spares: 1", "").replace("hosts: 2, ", ""), "host3", gpus=2), "other.yaml"
        ),
        "--name",
        "other",
    )
    assert other.returncode == 75
    assert f"run {run}, mesh spare" in other.stderr
    far.lab.cut("host2")
    mesh = far.forge.until_mesh(run, "sum", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert [(r["host"], r["gpus"]) for r in mesh["ranks"]] == [("host1", ["0"]), ("host3", ["0"])]
    far.forge.ok("shutdown", run)


def test_a_lost_spare_harms_nothing_and_comes_back(far: Far) -> None:
    run = far.launch(SUM.replace("reduce.py", "stay.py").replace("procs", "preload: [], procs"))
    until_warm(far, run, "host3")
    far.lab.cut("host3")
    far.until_host(run, "host3", "lost")
    assert spare_of(far, run) == {}
    assert far.forge.mesh(run, "sum")["generation"] == 0
    far.lab.mend("host3")
    until_warm(far, run, "host3")
    far.forge.ok("shutdown", run)
    assert not far.processes(run)
