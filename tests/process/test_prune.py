"""`forgectl prune`, and the pruning that runs begin at their end, while others begin and end."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from forgectl.controller import run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.system.files import open_lock
from tests.conftest import Forge, until
from tests.process.other_user import NOBODY

STAY = "name: stay\nscripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"
EMPTY = "name: NAME\nscripts: {NAME: {command: 'true'}}"


def ended(forge: Forge, name: str, hours: float = 0.0) -> str:
    """A run that has ended, `hours` ago."""
    assert forge.run("launch", forge.spec(EMPTY.replace("NAME", name))).returncode == 0
    [run] = [r for r in forge.runs() if r.startswith(f"{name}-")]
    forge.until_ended(run)
    then = time.time() - 3600 * hours
    for file in ("status.json", "plan.json"):
        os.utime(forge.run_dir(run) / file, (then, then))
    return run


def test_ended_runs_beyond_the_limits_go_and_living_ones_stay(forge: Forge) -> None:
    old, new, living = ended(forge, "old", 48), ended(forge, "new"), forge.launch(STAY)
    dry = forge.ok("prune", "--keep", "1d", "--dry-run")
    assert old in dry
    assert "would remove 1 run, " in dry
    assert "older than 1d" in dry
    assert sorted(forge.runs()) == sorted([old, new, living])
    document = json.loads(forge.ok("prune", "--keep", "1d", "--json"))
    assert [(r["run"], r["why"]) for r in document["runs"]] == [(old, "older than 1d")]
    assert document["runs"][0]["bytes"] > 0
    assert forge.ok("prune") == "nothing to remove; kept is 30d, 100 runs, 10 GiB\n"
    forge.ok("prune", "--keep", "0 runs")
    assert forge.runs() == [living]
    assert forge.ok("logs", "stay", "--no-prefix").startswith("here: rank 0")
    assert forge.run("logs", "new").returncode == 66


def test_a_policy_that_cannot_be_read_removes_nothing(forge: Forge) -> None:
    run = ended(forge, "old", 4800)
    forge.env["FORGECTL_KEEP"] = "30 apples"
    result = forge.run("prune")
    assert result.returncode == 64
    assert "FORGECTL_KEEP: '30 apples'" in result.stderr
    assert forge.launch(STAY)
    forge.ok("shutdown", "--all")
    assert run in forge.runs()


def test_the_end_of_a_run_begins_it_at_most_hourly(forge: Forge) -> None:
    forge.env["FORGECTL_KEEP"] = "1 run"
    stamp = forge.home / "runs" / ".last-prune"
    first = ended(forge, "first", 3)
    assert not stamp.exists()  # there was nothing but what had just ended
    second = ended(forge, "second")
    until(lambda: first not in forge.runs(), "the removal of what is beyond one run")
    two_hours_ago = time.time() - 7200
    os.utime(forge.run_dir(second) / "status.json", (two_hours_ago, two_hours_ago))
    begun = stamp.stat().st_mtime_ns
    third = ended(forge, "third")
    assert stamp.stat().st_mtime_ns == begun
    os.utime(stamp, (0, 0))
    fourth = ended(forge, "fourth")
    until(lambda: second not in forge.runs(), "the removal of an old run")
    assert sorted(forge.runs()) == sorted([third, fourth])  # what ended in the last hour stays


def test_prunes_at_once_remove_each_run_once(forge: Forge) -> None:
    runs = [ended(forge, f"r{i}", 2) for i in range(3)]
    final = RunDir(forge.run_dir(runs[0])).read_final()
    assert final is not None
    many = []
    for i in range(60):
        copy = forge.run_dir(f"c{i}-{i:04x}")
        shutil.copytree(forge.run_dir(runs[0]), copy, symlinks=True)
        RunDir(copy).write_final(dataclasses.replace(final, run=copy.name))
        many.append(copy.name)
    prunes = [forge.start("prune", "--keep", "0 runs", "--json") for _ in range(4)]
    outputs = [p.communicate(timeout=90) for p in prunes]
    assert [(p.returncode, err) for p, (_, err) in zip(prunes, outputs, strict=True)] == [(0, "")] * 4
    removed = [r["run"] for out, _ in outputs for r in json.loads(out)["runs"]]
    assert sorted(removed) == sorted(runs + many)
    assert list((forge.home / "runs").glob(".pruned-*")) == []


def test_runs_begin_and_end_while_others_prune(forge: Forge) -> None:
    launches = []
    stop = forge.folder / "stop"
    loop = f"while [ ! -e {stop} ]; do {' '.join(forge.argv('prune', '--keep', '0s'))} >/dev/null || exit 1; done"
    pruning = subprocess.Popen(["sh", "-c", loop], env=forge.env, cwd=forge.folder, start_new_session=True)
    try:
        for i in range(4):
            name = f"n{i}"
            launches.append(forge.start("launch", forge.spec(EMPTY.replace("NAME", name), f"{name}.yaml")))
        for launch in launches:
            _, err = launch.communicate(timeout=90)
            assert launch.returncode == 0, err
    finally:
        stop.touch()
        assert pruning.wait(60) == 0


def test_nothing_of_which_a_process_lives_is_taken(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGECTL_HOME", str(forge.home))
    run = RunDir(forge.run_dir(ended(forge, "done", 2)))
    lock = run.lock_controller()
    assert lock is not None
    assert not run_dir.take_away(run)  # its controller is about to exit
    os.close(lock)
    lock = open_lock(run.path / "agents" / "local.lock")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert not run_dir.take_away(run)
    os.close(lock)
    final = run.final_file.read_bytes()
    run.final_file.write_bytes(final[:-9])
    assert not run_dir.take_away(run)  # who knows whether it has ended
    run.final_file.write_bytes(final)
    assert run_dir.take_away(run)
    assert not run_dir.take_away(run)
    assert run_dir.all_runs() == []
    assert run_dir.remove_taken() == []
    assert list((forge.home / "runs").iterdir()) == [forge.home / "runs" / ".lock"]


def test_what_cannot_be_removed_is_named_and_the_rest_goes(forge: Forge) -> None:
    stuck, other = ended(forge, "stuck", 3), ended(forge, "other", 2)
    folder = forge.run_dir(stuck) / "logs" / "mounted"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        result = forge.run("prune", "--keep", "0 runs")
        assert result.returncode == 75
        assert "cannot remove" in result.stderr
        assert "mounted: Device or resource busy" in result.stderr
        assert other in result.stdout
        assert forge.runs() == []
        assert "no runs" in forge.ok("status", "-a")
        assert forge.run("prune").returncode == 75
    finally:
        [left] = (forge.home / "runs").glob(".pruned-*")
        subprocess.run(["umount", "-l", left / "logs" / "mounted"], check=True)
    assert forge.run("prune").returncode == 0
    assert list((forge.home / "runs").glob(".pruned-*")) == []


def test_links_are_not_followed(forge: Forge) -> None:
    run = ended(forge, "links", 2)
    outside = forge.folder / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (forge.run_dir(run) / "logs" / "link").symlink_to(outside)
    forge.ok("prune", "--keep", "0 runs")
    assert forge.runs() == []
    assert (outside / "precious").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_left_alone(forge: Forge) -> None:
    run, own = ended(forge, "theirs", 2), ended(forge, "own", 2)
    theirs = forge.run_dir(run)
    os.chown(theirs, NOBODY, NOBODY)
    result = forge.run("prune", "--keep", "0 runs")
    assert result.returncode == 77
    assert own in result.stdout
    assert f"{theirs} must be a folder of yours" in result.stderr
    assert (theirs / "status.json").exists()
    shutil.rmtree(theirs)


def test_status_reads_only_what_it_shows(forge: Forge) -> None:
    """Ended runs of which nothing is shown are not opened: thousands of them must not slow it down."""
    runs = [ended(forge, f"r{i}", 2) for i in range(2)]
    for run in runs:
        Path(forge.run_dir(run) / "plan.json").write_text("no plan")
    result = forge.run("status")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"the last one, {runs[1]}, succeeded" in result.stdout
