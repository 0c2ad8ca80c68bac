"""What becomes of a run and its meshes when something fails: waits between restarts, time limits, `on_failure`."""

from __future__ import annotations

import json
import re
import signal
from subprocess import Popen
from typing import Any

import pytest

from tests.conftest import Forge, processes_of, until
from tests.process.actor_scripts import play, the_run
from tests.process.deaths import controller_of, end
from tests.process.outputs import document_of, log_of, over

FAILS = "import sys; sys.exit(7)"
FALLS = "import os, sys; sys.exit(5 + int(os.environ['TORCHELASTIC_RESTART_COUNT']))"
"""Each time in another way: a program that fails in the same way is not tried again."""
STEPS = "import time, pathlib, sys\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n"
CRASH = "scripts: {crash: {run: crash.py, preload: [], restart: {max: MAX, backoff: BACKOFF}}}"


def crash(most: int, backoff: str) -> str:
    """A script that always fails."""
    return CRASH.replace("MAX", str(most)).replace("BACKOFF", backoff)


def waiting(forge: Forge, run: str, number: int) -> dict[str, Any]:
    """The mesh `crash` once it waits for its restart of that number."""
    return forge.until_mesh(
        run, "crash", lambda m: m.get("restarting", {}).get("number") == number and m["restarting"]["at"]
    )


def lines_until(process: Popen[str], text: str) -> list[str]:
    """What a command prints on stderr up to the line with a text."""
    assert process.stderr is not None
    seen: list[str] = []
    while not seen or text not in seen[-1]:
        line = process.stderr.readline()
        assert line, f"no {text!r} in {seen}"
        seen.append(line)
    return seen


# ------------------------------------------------------------ waits


def test_the_first_restart_is_at_once_and_each_further_one_waits(forge: Forge) -> None:
    forge.write("crash.py", f"import time; print(time.time()); {FALLS}")
    result = forge.run("launch", forge.spec(crash(3, "300ms")))
    [run] = forge.runs()
    assert result.returncode == 8
    began = [float(log_of(forge, run, "crash", 0, n)) for n in range(4)]
    assert began[2] - began[1] >= 0.3
    assert began[3] - began[2] >= 0.6
    assert [line for line in result.stderr.splitlines() if "restart " in line] == [
        "forgectl: crash: restart 1 of 3: rank 0 on local exited with code 5",
        "forgectl: crash: restart 2 of 3 in 0.3 s: rank 0 on local exited with code 6",
        "forgectl: crash: restart 3 of 3 in 0.6 s: rank 0 on local exited with code 7",
    ]


def test_no_restart_is_lost_from_view_without_waits(forge: Forge) -> None:
    forge.write("crash.py", FALLS)
    result = forge.run("launch", forge.spec(crash(30, "0")))
    assert result.returncode == 35
    numbers: list[int] = []
    for first, last in re.findall(r"restarts? (\d+)(?: to (\d+))? of 30", result.stderr):
        numbers += range(int(first), int(last or first) + 1)
    assert numbers == list(range(1, 31)), result.stderr


def test_a_mesh_that_waits_is_shown_so_and_is_ended_at_once(forge: Forge) -> None:
    forge.write("crash.py", FALLS)
    run = forge.launch(crash(9, "1h"))
    mesh = waiting(forge, run, 2)
    assert (mesh["state"], mesh["restarts"], mesh["restarting"]["wait"]) == ("restarting", 2, 3600.0)
    row = forge.ok("status").splitlines()[1]
    assert re.search(r" 2/9 .* restarting in \d+ s: rank 0 on local exited with code 6$", row), row
    assert "1 × never started" in forge.ok("shutdown", "--run", run)
    assert forge.document(run)["state"] == "stopped"


def test_ctrl_c_ends_a_wait(forge: Forge) -> None:
    forge.write("crash.py", FALLS)
    launch = forge.start("launch", forge.spec(crash(9, "1h")))
    lines_until(launch, "restart 2 of 9 in 3600 s")
    [run] = forge.runs()
    waiting(forge, run, 2)
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 130
    assert "crash stopped by Ctrl-C\n" in err


def test_the_next_controller_keeps_the_schedule(forge: Forge) -> None:
    forge.write("crash.py", FALLS)
    run = forge.launch(crash(9, "1h"))
    before = waiting(forge, run, 2)["restarting"]
    end(controller_of(forge, run))
    assert waiting(forge, run, 2)["restarting"] == before
    forge.ok("shutdown", "--run", run, "--force")


def test_a_wait_goes_on_while_there_is_no_controller(forge: Forge) -> None:
    forge.write("crash.py", "import os, sys; sys.exit((7, 8, 0)[int(os.environ['TORCHELASTIC_RESTART_COUNT'])])")
    run = forge.launch(crash(9, "1s"))
    waiting(forge, run, 2)
    end(controller_of(forge, run))
    document = forge.until_ended(run)
    assert (document["state"], document["meshes"][0]["restarts"]) == ("succeeded", 2)


def test_the_same_line_twice_is_not_tried_again(forge: Forge) -> None:
    forge.write("crash.py", "def main():\n    raise ValueError(object())\n\nmain()\n")
    result = forge.run("launch", forge.spec(crash(9, "1h")))
    assert result.returncode == 1
    failure = "rank 0 on local exited with code 1: ValueError: .*"
    why = r"failed twice at crash\.py:2 within \d+ s of its start: not tried again"
    assert re.search(f"forgectl: crash (?:stopping|failed): {failure}; {why}", result.stderr)
    [run] = forge.runs()
    [mesh] = forge.document(run)["meshes"]
    assert (mesh["state"], mesh["restarts"]) == ("failed", 1)
    assert re.search(f"then +{why}", forge.run("why", run).stdout)


def test_a_cause_that_is_not_listed_is_a_failure_for_good(forge: Forge) -> None:
    forge.write("crash.py", FALLS)
    result = forge.run("launch", forge.spec(crash(9, "0, on: [host_lost, oom]")))
    [run] = forge.runs()
    assert (result.returncode, forge.document(run)["meshes"][0]["restarts"]) == (5, 0)
    assert "its `restart.on` is [host_lost, oom], and this is crash" in forge.run("why", run).stdout


def test_calls_wait_for_a_mesh_that_waits(forge: Forge) -> None:
    play(forge, "play_faults.py calls_wait_while_a_mesh_waits_for_its_restart")
    [mesh] = forge.document(the_run(forge))["meshes"]
    assert (mesh["state"], mesh["restarts"]) == ("stopped", 3)


# ------------------------------------------------------------ time limits


def test_a_time_limit_ends_a_mesh_as_failed(forge: Forge) -> None:
    spec = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: [], time_limit: 500ms, restart: {max: 9}}}"
    result = forge.run("launch", forge.spec(spec))
    assert result.returncode == 124
    assert "stay failed: time limit of 0.5s" in result.stderr
    [run] = forge.runs()
    document = forge.document(run)
    [mesh] = document["meshes"]
    assert (document["state"], document["exit_code"], mesh["state"], mesh["restarts"]) == ("failed", 124, "failed", 0)
    assert {r["signal"] for r in mesh["ranks"]} == {signal.SIGTERM}


def test_run_has_a_time_limit_too(forge: Forge) -> None:
    forge.write("stay.py", "import signal; signal.pause()")
    result = forge.run("run", "--time-limit", "500ms", "stay.py")
    assert result.returncode == 124
    assert "stay failed: time limit of 0.5s" in result.stderr
    wrong = forge.run("run", "--time-limit", "soon", "stay.py")
    assert wrong.returncode == 64
    assert "--time-limit: expected a duration such as 30s, 10m, 1h or 500ms, got 'soon'" in wrong.stderr


def test_a_script_that_is_done_in_time_has_not_failed(forge: Forge) -> None:
    forge.write("work.py", "print('done')")
    assert forge.run("run", "--time-limit", "1h", "work.py").returncode == 0


def test_a_driver_has_a_time_limit_too(forge: Forge) -> None:
    forge.write("drive.py", "import signal; signal.pause()")
    document = over(forge, "driver: {run: drive.py, time_limit: 1s}")
    assert (document["state"], document["exit_code"]) == ("failed", 124)


def test_a_time_limit_outlives_the_controller(forge: Forge) -> None:
    run = forge.launch("scripts: {stay: {run: PROGRAMS/stay.py, preload: [], time_limit: 2s}}")
    end(controller_of(forge, run))
    document = forge.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("failed", 124)


def test_callers_of_an_actor_learn_of_its_time_limit(forge: Forge) -> None:
    play(forge, "play_faults.py a_time_limit_is_told_to_callers")


# ------------------------------------------------------------ on_failure

THREE = """
scripts:
  a: {run: PROGRAMS/stay.py, procs: 2, preload: []}
  b: {run: steps.py, preload: []}
  c: {run: fails.py, preload: []}
"""


@pytest.fixture
def three(forge: Forge) -> Forge:
    forge.write("fails.py", FAILS)
    forge.write("steps.py", STEPS)
    return forge


def test_a_failed_script_ends_a_launch_in_the_foreground(three: Forge) -> None:
    result = three.run("launch", three.spec(THREE), "--json")
    document = document_of(result)
    assert (document["state"], document["exit_code"], document["stopped_by"]) == ("failed", 7, "the failure of c")
    assert {m["mesh"]: (m["state"], m["reason"]) for m in document["meshes"]} == {
        "a": ("stopped", "stopped by the failure of c"),
        "b": ("stopped", "stopped by the failure of c"),
        "c": ("failed", "rank 0 on local exited with code 7"),
    }
    assert "forgectl: a stopped by the failure of c\n" in result.stderr


def test_the_others_go_on_if_the_spec_says_so(three: Forge) -> None:
    launch = three.start("launch", three.spec("on_failure: continue\n" + THREE.replace("PROGRAMS/stay.py", "steps.py")))
    run = until(lambda: (found := three.runs()) and (three.run_dir(found[0]) / "plan.json").exists() and found[0], "it")
    three.until_state(run, "c", "failed")
    assert [three.mesh(run, name)["state"] for name in "ab"] == ["running"] * 2
    three.write("go", "")
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 7, err
    assert [three.mesh(run, name)["state"] for name in "ab"] == ["succeeded"] * 2


def test_the_others_of_a_detached_launch_go_on(three: Forge) -> None:
    run = three.launch(THREE)
    three.until_state(run, "c", "failed")
    assert three.mesh(run, "a")["state"] == "running"


def test_a_detached_launch_ends_if_the_spec_says_so(three: Forge) -> None:
    three.run("launch", three.spec("on_failure: stop\n" + THREE), "-d")
    [run] = three.runs()
    document = three.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("failed", 7)


# ------------------------------------------------------------ what the view says


def test_ctrl_c_says_at_once_what_it_waits_for_and_then_what_sigkill_ended(forge: Forge) -> None:
    launch = forge.start("launch", forge.spec("scripts: {deaf: {run: PROGRAMS/stay.py deaf, procs: 2, preload: []}}"))
    assert launch.stdout is not None
    for _ in range(2):
        launch.stdout.readline()  # deaf from here on
    launch.send_signal(signal.SIGINT)
    said = lines_until(launch, "Ctrl-C again kills")
    assert said[-1] == "forgectl: Ctrl-C: ending the run; waiting up to 10 s, Ctrl-C again kills\n"
    [run] = forge.runs()
    assert len(processes_of(run)) > 2  # they do not end by SIGTERM
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 130
    assert err.splitlines() == [
        "forgectl: Ctrl-C again: killing what is left",
        "forgectl: deaf stopped by Ctrl-C; SIGKILL ended 2 of 2 ranks",
    ]


def test_the_root_cause_is_marked_among_the_ranks(forge: Forge) -> None:
    forge.write("work.py", "import os, signal, sys\nif os.environ['RANK'] == '1': sys.exit(3)\nsignal.pause()")
    assert forge.run("run", "-n", "3", "work.py").returncode == 3
    shown = forge.ok("status", "-a", "-v")
    assert [line.split(maxsplit=8)[-1].strip() for line in shown.splitlines() if line.startswith("work/")] == [
        *("SIGTERM", "exit 3 (root cause)", "SIGTERM"),
    ]
    assert json.loads(forge.ok("status", "-a", "--json"))["runs"][0]["meshes"][0]["failure"]["rank"] == 1
