"""`restart:` makes a failed mesh a new generation: all of it, from a warm fork server, so often and no more."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

from tests.conftest import Forge, processes_of, until
from tests.process.gpu_locks import is_free
from tests.process.outputs import log_of, log_path, over, until_said


def _pids(mesh: dict[str, Any]) -> list[int]:
    return [r["pid"] for r in mesh["ranks"]]


def _said(forge: Forge, run: str, rank: int, generation: int) -> dict[str, str]:
    """The variables that a rank printed once its all_reduce was done."""
    log = until_said(forge, run, "reduce", "sum 3;", rank, generation)
    return dict(re.findall(r"(\w+)=(\S+)", log))


def test_a_killed_rank_makes_a_new_generation_until_the_limit(forge: Forge) -> None:
    run = forge.launch("scripts: {reduce: {run: PROGRAMS/reduce.py, procs: 2, restart: {max: 2}}}")
    ports: set[str] = set()
    pids: set[int] = set()
    for generation in range(3):
        said = [_said(forge, run, rank, generation) for rank in range(2)]
        assert [s["TORCHELASTIC_RESTART_COUNT"] for s in said] == [str(generation)] * 2
        mesh = forge.until_mesh(run, "reduce", lambda m: m["state"] == "running")
        assert (mesh["generation"], mesh["restarts"], mesh["max_restarts"]) == (generation, generation, 2)
        assert (mesh["ready"], mesh["desired"]) == (2, 2)
        if generation:
            assert mesh["reason"] == "restarted: rank 1 on local was killed by SIGKILL"
            row = forge.ok("status").splitlines()[1]
            assert f" {generation}/2 " in row
            assert row.endswith(mesh["reason"])
        assert [r["log"] for r in mesh["ranks"]] == [str(log_path(forge, run, "reduce", r, generation)) for r in (0, 1)]
        ports.add(said[0]["MASTER_PORT"])
        assert not pids & set(_pids(mesh))
        pids |= set(_pids(mesh))
        assert {pid for pid in pids if os.path.exists(f"/proc/{pid}")} == set(_pids(mesh))
        os.kill(_pids(mesh)[1], signal.SIGKILL)
    document = forge.until_ended(run)
    [mesh] = document["meshes"]
    assert len(ports) == 3
    assert (document["state"], document["exit_code"]) == ("failed", 128 + signal.SIGKILL)
    assert (mesh["state"], mesh["restarts"]) == ("failed", 2)
    assert mesh["reason"].startswith("rank 1 on local was killed by SIGKILL")


def test_what_an_old_generation_left_is_gone_before_the_new_one_begins(forge: Forge) -> None:
    """Also what ignores SIGTERM: hence it takes as long as the grace."""
    again = f"{{run: 'PROGRAMS/again.py {forge.folder} 1', preload: [], restart: {{max: 1}}}}"
    document = over(forge, f"scripts: {{again: {again}}}")
    [mesh] = document["meshes"]
    assert (mesh["state"], mesh["restarts"], document["exit_code"]) == ("succeeded", 1, 0)
    assert log_of(forge, document["run"], "again", 0, 1).splitlines() == [
        "the grandchild of the generation before is gone",
        "done",
    ]


def test_only_restarts_within_the_time_count(forge: Forge) -> None:
    forge.write(
        "work.py",
        "import os, sys, time\n"
        "generation = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "time.sleep(float(sys.argv[1]))\n"
        "sys.exit(20 + generation if generation < 3 else 0)\n",
    )
    document = over(
        forge,
        """
scripts:
  slow: {run: work.py 0.5, preload: [], restart: {max: 1, within: 300ms}}
  fast: {run: work.py 0, preload: [], restart: {max: 1, within: 1h}}
  ever: {run: work.py 0, preload: [], restart: {max: 2}}
""",
    )
    found = {m["mesh"]: (m["state"], m["restarts"], m["ranks"][0]["exit_code"]) for m in document["meshes"]}
    assert found == {"slow": ("succeeded", 3, 0), "fast": ("failed", 1, 21), "ever": ("failed", 2, 22)}
    assert document["exit_code"] in (21, 22)


def test_a_shutdown_is_no_failure_to_restart_from(forge: Forge) -> None:
    run = forge.launch("scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: [], restart: {max: 5}}}")
    forge.ok("shutdown", "stay")
    [mesh] = forge.document(run)["meshes"]
    assert (mesh["state"], mesh["restarts"], mesh["generation"]) == ("stopped", 0, 0)


def test_a_shutdown_ends_a_mesh_that_is_restarting(forge: Forge) -> None:
    again = f"{{run: 'PROGRAMS/again.py {forge.folder} 9', preload: [], restart: {{max: 9}}}}"
    run = forge.launch(f"scripts: {{again: {again}, stay: {{run: PROGRAMS/stay.py, preload: []}}}}")
    forge.until_state(run, "again", "restarting")  # for as long as the grandchild is given
    forge.ok("shutdown", "--run", run, "--timeout", "0")
    document = forge.document(run)
    assert {m["mesh"]: m["state"] for m in document["meshes"]} in (
        {"again": "failed", "stay": "stopped"},
        {"again": "stopped", "stay": "stopped"},
    )
    assert processes_of(run) == {}


# ---------------------------------------------------------------- GPUs


GPUS = """
hosts: [{name: local, gpus: 2}]
scripts:
  stay: {run: PROGRAMS/stay.py, procs: 2, with_gpus: true, preload: [], restart: {max: 1}}
"""


def test_gpus_stay_leased_through_a_restart_and_are_free_afterwards(forge: Forge) -> None:
    run = forge.launch(GPUS)
    locks = until(lambda: len(found := list((forge.folder.parent / "locks").iterdir())) == 2 and found, "the locks")
    for rank in range(2):
        until_said(forge, run, "stay", "here:", rank)
    [first, _] = _pids(forge.mesh(run, "stay"))
    os.kill(first, signal.SIGKILL)

    def restarted() -> bool:
        assert [lock.name for lock in locks if is_free(lock)] == []
        return all("generation 1" in log_of(forge, run, "stay", rank, 1) for rank in range(2))

    until(restarted, "generation 1")
    mesh = forge.mesh(run, "stay")
    assert [r["gpus"] for r in mesh["ranks"]] == [["0"], ["1"]]
    rival = forge.run("launch", forge.spec(GPUS, "rival.yaml"), "-d")
    assert rival.returncode == 75
    assert run in rival.stderr
    os.kill(_pids(mesh)[1], signal.SIGKILL)
    assert forge.until_ended(run)["state"] == "failed"
    assert all(is_free(lock) for lock in locks)
