"""RUN, MESH and RANK on command lines: logs of a whole run by time, attach, wait, restart, and taking a run's place."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Forge, until
from tests.process.actor_scripts import bring
from tests.process.deaths import controller_of
from tests.process.outputs import log_path, until_said

TALK = """
import os, pathlib, sys, time
name, rank, generation = (os.environ[k] for k in ("FORGE_MESH", "RANK", "TORCHELASTIC_RESTART_COUNT"))
print("hello of", name, rank, generation, flush=True)
said = 0
while not (end := pathlib.Path(f"end-{name}")).exists():
    if (text := pathlib.Path(f"say-{name}-{rank}-{said}")).exists():
        print(text.read_text(), flush=True)
        said += 1
    time.sleep(0.01)
sys.exit(int(end.read_text()))
"""
TWO = "scripts: {a: {run: talk.py, procs: 2, preload: []}, b: {run: talk.py, preload: []}}"


@pytest.fixture
def talk(forge: Forge) -> Forge:
    forge.write("talk.py", TALK)
    return forge


class Speaker:
    """Has ranks say something, and waits until it is in their logs."""

    def __init__(self, forge: Forge, run: str) -> None:
        self.forge, self.run = forge, run
        self.said: dict[str, int] = {}

    def say(self, mesh: str, rank: int, text: str) -> None:
        number = self.said[f"{mesh}-{rank}"] = self.said.get(f"{mesh}-{rank}", -1) + 1
        draft = self.forge.write("draft", text)
        draft.rename(self.forge.folder / f"say-{mesh}-{rank}-{number}")
        until_said(self.forge, self.run, mesh, text, rank)
        size = log_path(self.forge, self.run, mesh, rank).stat().st_size
        times = log_path(self.forge, self.run, mesh, rank).with_suffix(".times")
        until(lambda: times.exists() and times.read_bytes()[-16:-8] == size.to_bytes(8, "little"), "its time")


def end(forge: Forge, mesh: str, code: int) -> None:
    forge.write("draft", str(code)).rename(forge.folder / f"end-{mesh}")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "hello" not in line]


def test_logs_of_a_run_are_merged_by_time(talk: Forge) -> None:
    run = talk.launch(TWO)
    speaker = Speaker(talk, run)
    for mesh, rank, text in (("b", 0, "first"), ("a", 1, "second"), ("a", 0, "third"), ("b", 0, "fourth")):
        speaker.say(mesh, rank, text)
    everything = ["b/0@local │ first", "a/1@local │ second", "a/0@local │ third", "b/0@local │ fourth"]
    for names in ([], [run], ["spec"], ["a", "b"], [f"{run}/a/0", "a/1", "b"]):
        assert lines(talk.ok("logs", *names)) == everything, names
    assert lines(talk.ok("logs", "a")) == everything[1:3]
    assert lines(talk.ok("logs", "a/1")) == everything[1:2]
    assert lines(talk.ok("logs", "--ranks", "1")) == everything[1:2]
    assert lines(talk.ok("logs", "--grep", "^f.*th?$", "--no-prefix")) == ["first", "fourth"]
    assert lines(talk.ok("logs", "--grep", "r", "-n", "1", "--no-prefix")) == ["third", "fourth"]
    stamped = lines(talk.ok("logs", "-t"))
    times = [re.fullmatch(r"\S+ │ (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) \w+", line) for line in stamped]
    assert all(times)
    second, third = (t.group(1) for t in times[1:3] if t)
    assert lines(talk.ok("logs", "--since", third)) == everything[2:]
    assert lines(talk.ok("logs", "--until", second)) in (everything[:1], everything[:2])
    assert lines(talk.ok("logs", "--since", "1h")) == everything
    assert lines(talk.ok("logs", "--until", "1h")) == []
    talk.ok("shutdown", run)
    assert lines(talk.ok("logs", run)) == everything
    nothing = talk.run("logs")
    assert (nothing.returncode, run in nothing.stderr) == (66, True)


def test_without_a_name_the_living_runs_are_said(talk: Forge) -> None:
    runs = [talk.launch(TWO), talk.launch(TWO, "--name", "two")]
    for command in ("logs", "attach", "wait"):
        result = talk.run(command)
        assert result.returncode == 64
        assert all(run in result.stderr for run in runs)
    several = talk.run("logs", "spec", "two")
    assert (several.returncode, "of 2 runs" in several.stderr) == (64, True)


def test_a_run_named_as_one_of_its_meshes_is_asked_about(talk: Forge) -> None:
    run = talk.launch(TWO, "--name", "a")
    result = talk.run("shutdown", "a")
    assert result.returncode == 64
    assert f"{run}, {run}/a" in result.stderr
    assert talk.ok("shutdown", f"{run}/a") == f"{run}/a stopped: 2 × SIGTERM\n"
    assert talk.ok("shutdown", run).endswith(f"{run}/b stopped: 1 × SIGTERM\n")


def test_status_of_a_run_a_mesh_and_a_rank(talk: Forge) -> None:
    run = talk.launch(TWO)
    for name, ranks in ((run, {"a": [0, 1], "b": [0]}), ("a", {"a": [0, 1]}), ("a/1", {"a": [1]}), ("b/0", {"b": [0]})):
        [document] = talk.status(name)
        assert {m["mesh"]: [r["rank"] for r in m["ranks"]] for m in document["meshes"]} == ranks
    result = talk.run("status", "a/2")
    assert (result.returncode, "it has ranks 0 to 1" in result.stderr) == (66, True)


def test_what_has_ended_is_said_to_have_ended(talk: Forge) -> None:
    run = talk.launch(TWO)
    end(talk, "a", 3)
    end(talk, "b", 0)
    talk.until_ended(run)
    for name in ("a", "spec/a", f"{run}/a/1"):
        result = talk.run("call", name, "look")
        assert result.returncode == 66
        assert re.search(r"forgectl: a failed \d+s ago: rank \d on local exited with code 3", result.stderr)
    result = talk.run("shutdown", "spec")
    assert re.search(rf"run {run} failed \d+s ago: a: rank \d on local exited with code 3", result.stderr)


# ------------------------------------------------------------ generations


def test_logs_of_earlier_generations(talk: Forge) -> None:
    run = talk.launch(TWO)
    assert talk.run("logs", "b", "-p").returncode == 66
    assert talk.ok("restart", "b") == f"{run}/b running: generation 1\n"
    assert talk.ok("restart", "b") == f"{run}/b running: generation 2\n"
    until_said(talk, run, "b", "hello", 0, 2)
    assert talk.ok("logs", "b") == "b/0@local │ hello of b 0 2\n"
    assert talk.ok("logs", "b", "-p") == "b/0#1 │ hello of b 0 1\n"
    assert talk.ok("logs", "--generation", "0", "b") == "b/0#0 │ hello of b 0 0\n"
    assert talk.ok("logs", "-p") == "b/0#1 │ hello of b 0 1\n", "of a run, that of the meshes that have one"
    missing = talk.run("logs", "b", "--generation", "9")
    assert (missing.returncode, "b is in generation 2" in missing.stderr) == (66, True)


# ------------------------------------------------------------ following, attaching and waiting


@pytest.mark.parametrize(("code", "means"), [(0, 0), (5, 5)])
def test_following_ends_with_how_it_ended(talk: Forge, code: int, means: int) -> None:
    talk.launch(TWO)
    commands = (("logs", "-f", "a"), ("logs", "--exit-code", "a"), ("wait", "spec/a"))
    following = [talk.start(*words) for words in commands]
    for process in following[:2]:
        assert process.stdout is not None
        assert "hello of a" in process.stdout.readline()
    end(talk, "a", code)
    ends = [(*process.communicate(timeout=60), process.returncode) for process in following]
    assert [e[2] for e in ends] == [0, means, means]
    how = "a failed: rank" if code else "a succeeded"
    assert how in ends[0][1]
    assert how in ends[1][1]
    assert how in ends[2][0]


def test_a_whole_run_is_followed_and_waited_for_to_its_end(talk: Forge) -> None:
    run = talk.launch(TWO)
    following, waiting = talk.start("logs", "--exit-code"), talk.start("wait")
    assert talk.run("wait", "spec", "--for", "ready").returncode == 0
    end(talk, "b", 0)
    until(lambda: talk.mesh(run, "b")["state"] == "succeeded", "the end of b")
    late = talk.run("wait", run, "--timeout", "0.1")
    assert (late.returncode, f"{run} is running after 0.1 s" in late.stderr) == (124, True)
    assert following.poll() is waiting.poll() is None
    os.kill(controller_of(talk, run), signal.SIGKILL)  # both go on with the next one
    end(talk, "a", 7)
    out, err = following.communicate(timeout=60)
    assert (following.returncode, waiting.wait(timeout=60)) == (7, 7)
    assert {"hello of a 0 0", "hello of a 1 0", "hello of b 0 0"} == {line.split(" │ ")[1] for line in out.splitlines()}
    assert f"run {run} failed: a: rank" in err
    after = talk.run("wait", run)
    assert after.returncode == 7


def test_what_ends_before_it_is_ready_is_not_waited_for(talk: Forge) -> None:
    talk.write("fail.py", "import sys; sys.exit(9)")
    run = talk.launch("scripts: {f: {run: fail.py, preload: []}, b: {run: talk.py, preload: []}}")
    talk.until_state(run, "f", "failed")
    assert talk.run("wait", "f", "--for", "ready").returncode == 9
    talk.ok("shutdown", run)
    assert talk.run("wait", f"{run}/b", "--for", "ready").returncode == 143


def test_attach_shows_the_foreground_again(talk: Forge) -> None:
    run = talk.launch(TWO)
    speaker = Speaker(talk, run)
    for n in range(3):
        speaker.say("a", 0, f"before {n}")
    attached, left = talk.start("attach", "-n", "1"), talk.start("attach", run)
    assert left.stdout is not None
    assert attached.stdout is not None
    left.stdout.readline()
    shown = ""
    while "before 2" not in shown:
        shown += attached.stdout.readline()
    left.send_signal(signal.SIGINT)
    _, err = left.communicate(timeout=60)
    assert (left.returncode, err.splitlines()[0]) == (130, f"forgectl: attached to run {run}; Ctrl-C leaves it running")
    assert err.splitlines()[-1] == f"forgectl: left; run {run} goes on"
    speaker.say("a", 0, "after")
    end(talk, "a", 0)
    end(talk, "b", 4)
    out, err = attached.communicate(timeout=60)
    assert attached.returncode == 4
    assert [line for line in lines(shown + out) if line.startswith("a/0")] == [
        "a/0@local │ before 2",
        "a/0@local │ after",
    ]
    assert "b failed: rank 0 on local exited with code 4" in err
    again = talk.run("attach", run)
    assert again.returncode == 4
    assert "attached" not in again.stderr


# ------------------------------------------------------------ restart and replace


def test_restart_keeps_everything_but_the_ranks(talk: Forge) -> None:
    run = talk.launch(TWO)
    before = talk.document(run)
    servers = talk.roles(run)["forkserver"]
    assert talk.ok("restart", "a", "--timeout", "20") == f"{run}/a running: generation 1\n"
    after = talk.document(run)
    a, b = (next(m for m in after["meshes"] if m["mesh"] == name) for name in "ab")
    assert (a["generation"], a["restarts"], a["reason"], b["generation"]) == (1, 0, None, 0)
    assert b["ranks"] == [{**r, "cpu_percent": b["ranks"][0]["cpu_percent"], "rss_bytes": b["ranks"][0]["rss_bytes"]}
                          for r in next(m for m in before["meshes"] if m["mesh"] == "b")["ranks"]]  # fmt: skip
    assert talk.roles(run)["forkserver"] == servers, "it is forked from the same, warm server"
    assert sorted(talk.ok("restart", run, "--force").splitlines()) == [
        f"{run}/a running: generation 2",
        f"{run}/b running: generation 1",
    ]
    rank = talk.run("restart", "a/1")
    assert (rank.returncode, f"restart {run}/a" in rank.stderr) == (64, True)


def test_a_restart_outlives_the_controller(talk: Forge) -> None:
    talk.write("stubborn.py", "import signal, time\nsignal.signal(15, lambda *_: print('no', flush=True))\n"
               "print('up', flush=True)\nwhile True: time.sleep(0.1)")  # fmt: skip
    run = talk.launch("scripts: {s: {run: stubborn.py, preload: []}}")
    until_said(talk, run, "s", "up")
    restarting = talk.start("restart", "s", "--timeout", "600")
    until_said(talk, run, "s", "no")
    os.kill(controller_of(talk, run), signal.SIGKILL)
    talk.until_state(run, "s", "restarting")
    assert talk.ok("restart", "s", "--force") == f"{run}/s running: generation 1\n"
    assert restarting.communicate(timeout=60)[0] == f"{run}/s running: generation 1\n"


def test_a_restart_that_fails_says_so(talk: Forge) -> None:
    talk.write("once.py", "import os, sys, time\n"
               "if os.environ['TORCHELASTIC_RESTART_COUNT'] != '0': print('no more'); sys.exit(6)\n"
               "time.sleep(1000)")  # fmt: skip
    run = talk.launch("scripts: {once: {run: once.py, preload: []}, b: {run: talk.py, preload: []}}")
    talk.run("restart", "once")
    talk.until_state(run, "once", "failed")
    ended = talk.run("restart", "once")
    assert ended.returncode == 66
    assert re.search(r"once failed \d+s ago: .*only living meshes restart", ended.stderr)
    assert talk.ok("restart", run) == f"{run}/b running: generation 1\n", "of a run, what lives"


def test_a_restart_ends_the_wait_before_one(talk: Forge) -> None:
    talk.write("fails.py", "import os, sys, time\n"
               "start = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
               "if start < 2: sys.exit(6 + start)\n"
               "time.sleep(1000)")  # fmt: skip
    run = talk.launch("scripts: {f: {run: fails.py, preload: [], restart: {max: 9, backoff: 1h}}}")
    talk.until_mesh(run, "f", lambda m: m["state"] == "restarting" and m["restarting"]["at"])
    assert talk.ok("restart", "f") == f"{run}/f running: generation 2\n"
    assert talk.mesh(run, "f")["restarts"] == 2


def test_actors_and_services_restart_replica_by_replica(forge: Forge) -> None:
    bring(forge)
    run = forge.launch(
        "actors: {counter: {class: 'players:Counter', procs: 2, preload: [], args: {start: 5}}}\n"
        "services: {work: {class: 'replicas:Worker', num_replicas: 2, preload: []}}"
    )
    assert json.loads(forge.ok("call", "counter", "add", "1", "--json")) == [6, 6]
    assert json.loads(forge.ok("call", "counter/1", "add", "1", "--json")) == [7]
    several = forge.run("call", run, "add", "1")
    assert (several.returncode, f"{run}/counter, {run}/work" in several.stderr) == (64, True)
    out = forge.ok("restart", run)
    assert [line.split("/")[1] for line in out.splitlines()] == [
        "counter ready: generation 1",
        "work.0 ready: generation 1",
        "work.1 ready: generation 1",
    ]
    assert json.loads(forge.ok("call", "counter", "add", "1", "--json")) == [6, 6], "constructed anew"
    journal = [json.loads(line) for line in (forge.run_dir(run) / "events.jsonl").read_text().splitlines()]
    asked = [sorted(r["meshes"]) for r in journal if r["type"] == "RestartAsked"]
    assert asked == [["counter", "work.0"], ["work.1"]]
    up = next(
        i for i, r in enumerate(journal) if r["type"] == "Report" and (r["mesh"], r["generation"]) == ("work.0", 1)
    )
    second = next(i for i, r in enumerate(journal) if r["type"] == "RestartAsked" and "work.1" in r["meshes"])
    assert up < second, "the first replica answers again before the second goes"


def test_a_driver_is_not_restarted(forge: Forge) -> None:
    forge.write("drive.py", "import time\nprint('on')\ntime.sleep(1000)")
    run = forge.launch("driver: {run: drive.py}")
    for name in (run, "driver"):
        result = forge.run("restart", name)
        assert (result.returncode, "--replace" in result.stderr) == (64, True)
    assert forge.mesh(run, "driver")["generation"] == 0


def test_a_launch_takes_the_place_of_a_run(talk: Forge) -> None:
    spec = talk.spec(TWO)
    first = talk.start("launch", str(spec))
    assert first.stdout is not None
    first.stdout.readline()
    [old] = talk.runs()
    refused = talk.run("launch", str(spec), "-d")
    assert (refused.returncode, "--replace" in refused.stderr) == (75, True)
    broken = talk.write("broken.yaml", "name: spec\nscripts: {a: {run: talk.py, prcs: 2}}")
    assert talk.run("launch", str(broken), "-d", "--replace").returncode == 65
    assert first.poll() is None, "a spec that cannot be launched ends nothing"
    result = talk.run("launch", str(spec), "-d", "--replace")
    assert result.returncode == 0
    new = result.stdout.strip()
    assert f"run {old} ended" in result.stderr
    assert first.wait(timeout=60) == 143
    assert talk.document(old)["stopped_by"] == "forgectl launch --replace"
    assert [r["run"] for r in talk.status()] == [new]
    assert talk.run("launch", str(spec), "-d", "--replace", "--name", "other").returncode == 0
    assert len(talk.status()) == 2


def test_a_reader_that_leaves_harms_no_run(talk: Forge) -> None:
    run = talk.launch(TWO)
    for command, rank in ((f"logs -f {run}", 0), (f"attach {run}", 1)):
        line = " ".join(talk.argv(*command.split())) + " 2>/dev/null | head -n 1; echo ${PIPESTATUS[0]}"
        reader = subprocess.Popen(
            ["bash", "-c", line], cwd=talk.folder, env=talk.env, stdout=subprocess.PIPE, text=True
        )
        with reader:
            assert reader.stdout is not None
            assert "hello" in reader.stdout.readline()
            Speaker(talk, run).say("a", rank, "more")
            assert reader.stdout.read().strip() in ("141", "0")
    assert talk.mesh(run, "a")["state"] == "running"
    assert Path(talk.run_dir(run)).exists()
