"""Launching, watching and ending a mesh: what every user does first."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.conftest import Forge, until

STAY = """
scripts:
  stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}
"""


def test_launch_status_logs_shutdown(forge: Forge) -> None:
    run = forge.launch(STAY)
    [document] = forge.status()
    assert (document["run"], document["state"]) == (run, "running")
    [mesh] = document["meshes"]
    assert (mesh["state"], mesh["ready"], mesh["desired"]) == ("running", 2, 2)
    assert all(r["cpu_percent"] is not None and r["rss_bytes"] > 0 for r in mesh["ranks"])
    lines = until(lambda: len(out := forge.ok("logs", "stay").splitlines()) == 2 and out, "both ranks' lines")
    assert sorted(lines)[1] == "stay/1@local │ here: rank 1 of 2, generation 0"
    assert "2 × SIGTERM" in forge.ok("shutdown", "stay")
    assert forge.document(run)["state"] == "stopped"


def test_foreground_ends_with_the_workload_and_shows_its_logs(forge: Forge) -> None:
    forge.write("work.py", "import os; print('rank', os.environ['RANK'])")
    result = forge.run("launch", forge.spec("scripts: {work: {run: work.py, procs: 3, preload: []}}"))
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [f"work/{n}@local │ rank {n}" for n in range(3)]


def test_a_mesh_runs_before_its_ranks_print(forge: Forge) -> None:
    forge.write("work.py", "print('first')")
    words = ("run", "-n", "4", "--preload", "", "--max-restarts", "1", "work.py")
    shown, _ = forge.start(*words, stderr=subprocess.STDOUT).communicate(timeout=60)
    lines = [line.partition(" (")[0].rpartition("│ ")[2] for line in shown.splitlines()]
    assert lines == ["forgectl: work starting", "forgectl: work running", *["first"] * 4, "forgectl: work succeeded"]


def test_foreground_ends_with_the_failed_workloads_code(forge: Forge) -> None:
    forge.write("work.py", "import os, sys; sys.exit(7 if os.environ['RANK'] == '1' else 0)")
    result = forge.run("run", "-n", "2", "work.py")
    assert result.returncode == 7
    assert "rank 1 on local exited with code 7" in result.stderr


def test_ctrl_c_shuts_down_in_order(forge: Forge) -> None:
    launch = forge.start("launch", forge.spec(STAY))
    until(lambda: any(r["state"] == "running" for r in forge.status()), "the launch")
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=60)
    assert launch.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert forge.status() == []


def test_a_second_ctrl_c_hurries(forge: Forge) -> None:
    deaf = "scripts: {stay: {run: PROGRAMS/stay.py deaf, preload: []}}"
    launch = forge.start("launch", forge.spec(deaf))
    until(lambda: "here" in (forge.ok("logs", "stay") if forge.runs() and forge.status() else ""), "the rank")
    launch.send_signal(signal.SIGINT)
    until(lambda: forge.status()[0]["state"] == "stopping", "the first to be heard")
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=9)  # the grace is 10 s
    assert launch.returncode == 130


def test_a_spec_is_read_once_and_kept_as_it_was_checked(forge: Forge) -> None:
    """As from `launch <(make-spec)`: what a pipe gives can be read once."""
    pipe = forge.folder / "made"
    os.mkfifo(pipe)
    launch = forge.start("launch", str(pipe), "--name", "piped")
    spec = f"scripts: {{say: {{command: [echo, hello]}}}}  # {forge.folder}\n"
    pipe.write_text(spec)
    out, err = launch.communicate(timeout=60)
    assert (launch.returncode, "hello" in out) == (0, True), err
    [run] = forge.runs()
    assert (forge.home / "runs" / run / "spec.yaml").read_text() == spec
