"""GPUs are leased: whoever launches at once, and however a run ends, a GPU has one holder, and then none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import Any

from tests.conftest import Forge, processes_of, until

BOTH = """
hosts: [{name: local, local: true, gpus: 2}]
scripts:
  fit: {run: PROGRAMS/stay.py, procs: 2, with_gpus: true, preload: []}
"""
ONE = BOTH.replace("procs: 2", "procs: 1")


def _planned(forge: Forge) -> list[str]:
    """The GPUs that a run of one rank would get now."""
    plan = json.loads(forge.ok("plan", forge.spec(ONE, "one.yaml"), "--name", "other", "--json"))
    return [g["visible"] for g in plan["meshes"][0]["gpus"]["local"]]


def test_ranks_see_their_meshs_gpus(forge: Forge) -> None:
    forge.write("see.py", "import os; print(*(os.environ[n] for n in ('LOCAL_RANK', 'CUDA_VISIBLE_DEVICES')))")
    forge.write("blind.py", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    spec = """
hosts: [{name: local, local: true, gpus: 4}]
scripts:
  a: {run: see.py, procs: 2, with_gpus: true, preload: []}
  b: {run: see.py, procs: 2, with_gpus: true, preload: []}
  blind: {run: blind.py, preload: []}
"""
    result = forge.run("launch", forge.spec(spec))
    assert result.returncode == 0, result.stderr
    seen = {m: sorted(forge.ok("logs", m, "--no-prefix").splitlines()) for m in ("a", "b", "blind")}
    assert seen["a"] == ["0 0,1", "1 0,1"]
    assert seen["b"] == ["0 2,3", "1 2,3"]
    assert seen["blind"] in ([""], ["None"])
    ranks = forge.mesh(forge.runs()[0], "b")["ranks"]
    assert [r["gpus"] for r in ranks] == [["2"], ["3"]]


def test_more_gpus_than_the_host_has(forge: Forge) -> None:
    result = forge.run("launch", forge.spec(BOTH.replace("procs: 2", "procs: 3"), "many.yaml"))
    assert result.returncode == 65
    assert "many.yaml:4:" in result.stderr
    assert "scripts.fit" in result.stderr
    assert "3 GPUs" in result.stderr and "2 GPUs" in result.stderr
    assert not forge.home.exists()


def test_a_second_run_is_told_who_has_the_gpus(forge: Forge) -> None:
    run = forge.launch(BOTH)
    for command in ("launch", "plan"):
        result = forge.run(command, "spec.yaml", "--name", "second")
        assert result.returncode == 75
        assert run in result.stderr
        assert "hint:" in result.stderr
    assert forge.runs() == [run], "nothing was begun"
    forge.ok("shutdown", "--run", run)
    second = forge.launch(BOTH, "--name", "second")
    assert forge.mesh(second, "fit")["ready"] == 2


def test_plan_avoids_gpus_that_are_held(forge: Forge) -> None:
    assert _planned(forge) == ["0"]
    first = forge.launch(ONE)
    assert _planned(forge) == ["1"]
    second = forge.launch(ONE, "--name", "second")
    assert [forge.mesh(r, "fit")["ranks"][0]["gpus"] for r in (first, second)] == [["0"], ["1"]]
    assert forge.run("plan", "one.yaml", "--name", "third").returncode == 75


def test_of_twenty_launches_at_once_one_gets_the_gpus(forge: Forge) -> None:
    forge.spec(BOTH)
    launches = [forge.start("launch", "spec.yaml", "-d", "--name", f"rival-{i}") for i in range(20)]
    ended = [(*launch.communicate(timeout=100), launch.returncode) for launch in launches]
    winners = [out.strip() for out, _, code in ended if code == 0]
    assert len(winners) == 1, ended
    assert all(code == 75 for _, _, code in ended if code), ended
    for _, err, code in ended:
        if code:
            assert "GPU" in err and "rival-" in err.partition("forgectl: ")[2], err
            assert "Traceback" not in err
    assert [r["run"] for r in forge.status()] == winners
    for run in forge.runs():
        assert run in winners or not processes_of(run)


def test_gpus_of_a_slowly_dying_rank_stay_leased_until_it_is_gone(forge: Forge) -> None:
    forge.write(
        "slow.py",
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    pathlib.Path('dying').touch()\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('here', flush=True)\n"
        "while True: signal.pause()",
    )
    run = forge.launch(ONE.replace("PROGRAMS/stay.py", "slow.py").replace("gpus: 2", "gpus: 1"))
    until(lambda: "here" in forge.ok("logs", "fit"), "the rank")
    shutdown = forge.start("shutdown", "fit", "--timeout", "60")
    until((forge.folder / "dying").exists, "its slow end")
    refused = forge.run("launch", "spec.yaml", "-d", "--name", "next")
    assert refused.returncode == 75
    assert run in refused.stderr
    forge.write("go", "")
    out, err = shutdown.communicate(timeout=30)
    assert shutdown.returncode == 0, err
    assert "exit 0" in out
    forge.launch(BOTH.replace("procs: 2", "procs: 1").replace("gpus: 2", "gpus: 1"), "--name", "next")


def test_a_grandchild_that_is_left_does_not_keep_the_gpu(forge: Forge) -> None:
    """The mesh is over only when all that it started is gone, so its GPUs are free then."""
    forge.write(
        "leave.py",
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(1000)\n",
    )
    spec = forge.spec(ONE.replace("PROGRAMS/stay.py", "leave.py"), "leave.yaml")
    result = forge.run("launch", spec)
    assert result.returncode == 0, result.stderr
    assert _planned(forge) == ["0"]


def _kill_everything_of(run: str) -> None:
    def kill() -> bool:
        for pid in (left := processes_of(run)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    until(kill, f"the end of all of {run}")


def test_sigkill_of_the_whole_run_frees_its_gpus(forge: Forge) -> None:
    run = forge.launch(BOTH)
    refused = forge.run("launch", "spec.yaml", "--name", "next")
    assert refused.returncode == 75
    _kill_everything_of(run)
    following = forge.launch(BOTH, "--name", "next")
    assert forge.mesh(following, "fit")["ready"] == 2
    states: dict[str, Any] = {r["run"]: r["state"] for r in forge.status("-a")}
    assert states[run] == "lost"


def test_a_restart_keeps_the_gpus(forge: Forge) -> None:
    run = forge.launch(BOTH.replace("procs: 2,", "procs: 2, restart: {max: 1},"))
    before = forge.mesh(run, "fit")["ranks"]
    os.kill(before[1]["pid"], signal.SIGKILL)
    after = forge.until_mesh(run, "fit", lambda m: m["generation"] == 1 and m["state"] == "running" and m)["ranks"]
    assert [r["gpus"] for r in after] == [r["gpus"] for r in before]
    assert forge.run("launch", "spec.yaml", "--name", "next").returncode == 75
