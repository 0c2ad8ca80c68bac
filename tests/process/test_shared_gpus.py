"""`share_gpus_with`: meshes of one run on the same GPUs, which are leased until the last of them is gone."""

from __future__ import annotations

import json
import os
import signal

from tests.conftest import Forge
from tests.process.actor_scripts import bring, play

SEE = """
hosts: [{name: local, local: true, gpus: 4}]
scripts:
  judge: {run: see.py, procs: 6, share_gpus_with: trainer, preload: []}
  other: {run: see.py, with_gpus: true, preload: []}
  trainer: {run: see.py, procs: 3, with_gpus: true, preload: []}
"""
STAY = """
hosts: [{name: local, local: true, gpus: 2}]
scripts:
  first: {run: PROGRAMS/stay.py, procs: 2, with_gpus: true, preload: [], restart: {max: 1}}
  second: {run: PROGRAMS/stay.py, procs: 2, share_gpus_with: first, preload: [], restart: {max: 1}}
"""
RIVAL = """
hosts: [{name: local, local: true, gpus: 2}]
scripts: {rival: {run: PROGRAMS/stay.py, with_gpus: true, preload: []}}
"""


def taken(forge: Forge) -> bool:
    """Whether another run finds all GPUs taken."""
    code = forge.run("plan", forge.spec(RIVAL, "rival.yaml")).returncode
    assert code in (0, 75)
    return code == 75


def test_ranks_see_the_gpus_of_the_other_mesh(forge: Forge) -> None:
    forge.write("see.py", "import os; print(*(os.environ[n] for n in ('LOCAL_RANK', 'CUDA_VISIBLE_DEVICES')))")
    assert "3 of trainer" in forge.ok("plan", forge.spec(SEE))
    forge.ok("launch", "spec.yaml")
    seen = {m: sorted(forge.ok("logs", m, "--no-prefix").splitlines()) for m in ("judge", "trainer", "other")}
    assert seen == {
        "trainer": [f"{i} 0,1,2" for i in range(3)],
        "judge": [f"{i} 0,1,2" for i in range(6)],
        "other": ["0 3"],
    }
    ranks = forge.mesh(forge.runs()[0], "judge")["ranks"]
    assert [r["gpus"] for r in ranks] == [["0"], ["1"], ["2"], ["0"], ["1"], ["2"]]


def test_the_lease_ends_only_with_the_last_of_both(forge: Forge) -> None:
    for first, second in (("first", "second"), ("second", "first")):
        run = forge.launch(STAY)
        assert taken(forge)
        forge.ok("shutdown", f"{run}/{first}")
        assert taken(forge)
        assert forge.mesh(run, second)["state"] == "running"
        forge.ok("shutdown", f"{run}/{second}")
        assert not taken(forge)


def test_the_ranks_of_the_second_hold_the_locks_themselves(forge: Forge) -> None:
    run = forge.launch(STAY)
    forge.ok("shutdown", f"{run}/first")
    [rank, _] = forge.mesh(run, "second")["ranks"]
    for lock in (forge.home.parent / "locks").iterdir():
        held = [os.path.realpath(f"/proc/{rank['pid']}/fd/{fd}") for fd in os.listdir(f"/proc/{rank['pid']}/fd")]
        assert str(lock.resolve()) in held


def test_a_restart_of_either_keeps_the_gpus(forge: Forge) -> None:
    run = forge.launch(STAY)
    for name in ("first", "second"):
        before = forge.mesh(run, name)["ranks"]
        os.kill(before[1]["pid"], signal.SIGKILL)
        after = forge.until_mesh(run, name, lambda m: m["generation"] == 1 and m["state"] == "running" and m)["ranks"]
        assert [r["gpus"] for r in after] == [r["gpus"] for r in before] == [["0"], ["1"]]
        assert taken(forge)


def test_all_mistakes_are_reported_at_once(forge: Forge) -> None:
    spec = """
hosts: [{name: local, local: true, gpus: 2}]
scripts:
  a: {run: see.py, share_gpus_with: b}
  b: {run: see.py, share_gpus_with: a}
  c: {run: see.py, share_gpus_with: d}
  d: {run: see.py}
  e: {run: see.py, share_gpus_with: traner}
  trainer: {run: see.py, with_gpus: true}
"""
    forge.write("see.py", "")
    result = forge.run("launch", forge.spec(spec))
    assert result.returncode == 65
    for text in ("spec.yaml:4:37", "spec.yaml:5:37", "spec.yaml:6:37", "spec.yaml:8:37", "did you mean 'trainer'?"):
        assert text in result.stderr, result.stderr


def test_hosts_without_the_gpus_are_refused(forge: Forge) -> None:
    spec = """
hosts: [{name: local, local: true, gpus: 2}, {name: b, local: true, gpus: none}]
scripts:
  owner: {run: see.py, with_gpus: true}
  guest: {run: see.py, share_gpus_with: owner, hosts: [b]}
"""
    forge.write("see.py", "")
    result = forge.run("plan", forge.spec(spec))
    assert result.returncode == 65
    assert "spec.yaml:5:55: scripts.guest.hosts: owner has no GPUs on b; it is on local" in result.stderr


def test_replicas_of_a_service_take_the_gpus_in_turn(forge: Forge) -> None:
    spec = """
hosts: [{name: local, local: true, gpus: 2}]
actors: {trainer: {class: "players:Counter", procs: 2, with_gpus: true}}
services: {judges: {class: "players:Counter", num_replicas: 3, share_gpus_with: trainer}}
"""
    bring(forge)
    plan = json.loads(forge.ok("plan", forge.spec(spec), "--json"))
    pinned = [m for m in plan["meshes"] if m["mesh"] != "driver"]
    seen = {m["mesh"]: [r["env"]["CUDA_VISIBLE_DEVICES"] for r in m["ranks"]] for m in pinned}
    assert seen == {"trainer": ["0,1", "0,1"], "judges.0": ["0"], "judges.1": ["1"], "judges.2": ["0"]}


def test_a_driver_shares_gpus_by_name_and_by_handle(forge: Forge) -> None:
    forge.spec(
        """
name: sharing
hosts: [{name: local, local: true, gpus: 4}]
driver: {run: play_sharing.py shares_by_name_and_by_handle}
""",
    )
    bring(forge, "play_sharing.py")
    forge.ok("launch", "spec.yaml")


def test_a_script_without_gpus_is_refused(forge: Forge) -> None:
    play(forge, "play_sharing.py is_refused_without_gpus")
