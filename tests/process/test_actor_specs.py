"""Specs with `actors:` and `driver:`: launch, status, logs, call and shutdown."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from forgectl.spec.problems import show
from tests.conftest import Forge, until
from tests.process.actor_scripts import bring
from tests.process.deaths import agent_of, controller_of, end
from tests.process.gpu_locks import is_free
from tests.process.outputs import document_of, log_of, until_said

COUNTER = "actors: {counter: {class: 'players:Counter', procs: 2, preload: [], args: {start: 5}}}\n"


def launch(forge: Forge, text: str, *options: str) -> str:
    bring(forge, "drive.py")
    return forge.launch(text, *options)


def over(forge: Forge, text: str, *options: str) -> dict[str, Any]:
    bring(forge, "drive.py")
    return document_of(forge.run("launch", forge.spec(text), "--json", *options))


def fails(forge: Forge, text: str, code: int = 1) -> tuple[str, dict[str, Any]]:
    """What a launch that must fail says, and its run's document."""
    bring(forge)
    before = set(forge.runs())
    result = forge.run("launch", forge.spec(text), "-d")
    assert result.returncode == code, f"{result.returncode}: {result.stderr}"
    [run] = set(forge.runs()) - before
    return result.stderr, forge.until_ended(run)


def meshes(document: dict[str, Any]) -> dict[str, str]:
    return {m["mesh"]: m["state"] for m in document["meshes"]}


# ---------------------------------------------------------------- actors alone


def test_actors_stay_and_are_called_from_the_shell(forge: Forge) -> None:
    run = launch(forge, COUNTER)
    found = {m["mesh"]: m for m in forge.document(run)["meshes"]}
    assert (found["counter"]["kind"], found["counter"]["state"], found["counter"]["ready"]) == ("actor", "ready", 2)
    assert (found["driver"]["kind"], found["driver"]["state"]) == ("driver", "running")

    assert json.loads(forge.ok("call", "counter", "add", "2", "--json")) == [7, 7]
    assert forge.ok("call", "counter", "add", "--kw", "k=3").splitlines() == ["0: 10", "1: 10"]
    assert forge.ok("call", f"{run}/counter", "add_plain", "0").splitlines() == ["0: 10", "1: 10"]
    assert [v["rank"] for v in json.loads(forge.ok("call", "counter", "whoami", "--json"))] == [0, 1]

    forge.ok("call", "counter", "say", "hello")
    log = forge.ok("logs", "counter")
    for rank in range(2):
        assert f"counter/{rank}@local │ printed hello" in log
        assert f"Counter {rank}/2] hello" in log_of(forge, run, "counter", rank)

    said = forge.ok("shutdown", "--run", run)
    assert "counter" in said
    document = forge.until_ended(run)
    assert (document["state"], meshes(document)) == ("stopped", {"counter": "stopped", "driver": "stopped"})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("counter", "ad", "1"), 66, "did you mean 'add'?"),
        (("counter", "helper"), 66, "Counter.helper is not marked @endpoint"),
        (("counter", "add", "1", "2", "3"), 64, "too many positional arguments"),
        (("counter", "add", "--kw", "n=1"), 64, "got an unexpected keyword argument 'n'"),
        (("counter", "add", "[1"), 64, "is not JSON"),
        (("counter", "count", "3"), 64, "count yields a stream of values, which only Python code can take"),
        (("counter", "fail"), 1, "ValueError: no 5"),
        (("counter", "hang", "--timeout", "0.2"), 124, "did not answer within 0.2 s"),
        (("counte", "add"), 66, "counte"),
        (("driver", "add"), 66, "counter"),
    ],
)
def test_a_wrong_call_says_what_there_is(forge: Forge, words: tuple[str, ...], code: int, said: str) -> None:
    run = launch(forge, COUNTER)
    result = forge.run("call", *words)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr or "players.py" in result.stderr
    if words[1] in ("ad", "helper"):
        assert "add(k: int = 1) -> int" in result.stderr
    assert forge.mesh(run, "counter")["state"] == "ready"


def test_one_mesh_is_shut_down_and_the_others_stay(forge: Forge) -> None:
    run = launch(forge, COUNTER + "scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}")
    forge.ok("shutdown", "counter")
    assert forge.mesh(run, "counter")["state"] == "stopped"
    assert forge.mesh(run, "stay")["state"] == "running"
    result = forge.run("call", "counter", "add", "1")
    assert result.returncode in (1, 66)
    assert "counter" in result.stderr
    forge.ok("shutdown", "--run", run)


def test_a_foreground_launch_shows_logs_until_ctrl_c(forge: Forge) -> None:
    bring(forge)
    process = forge.start("launch", forge.spec(COUNTER))
    until(lambda: forge.run("call", "counter", "say", "hello").returncode == 0, "the actors")
    shown = process.stdout
    assert shown
    until(lambda: "printed hello" in shown.readline(), "the line")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_env_start_methods_and_several_hosts(forge: Forge) -> None:
    run = launch(
        forge,
        """
hosts: [{name: a, local: true}, {name: b, local: true}]
env: {OF_SPEC: spec, OF_MESH: spec}
actors:
  wide: {class: 'players:Counter', procs: 4, hosts: 2, preload: [], env: {OF_MESH: mesh}}
  fresh: {class: 'players:Counter', procs: 2, hosts: [b], preload: [], start_method: spawn}
""",
    )
    names = ("OF_SPEC", "OF_MESH", "FORGE_HOST", "GROUP_RANK", "LOCAL_RANK", "FORGE_MESH")
    found = json.loads(forge.ok("call", "wide", "env", *names, "--json"))
    assert found == [["spec", "mesh", "ab"[n // 2], str(n // 2), str(n % 2), "wide"] for n in range(4)]
    found = json.loads(forge.ok("call", "fresh", "env", *names, "--json"))
    assert found == [["spec", "spec", "b", "0", str(n), "fresh"] for n in range(2)]
    assert [r["host"] for r in forge.mesh(run, "wide")["ranks"]] == ["a", "a", "b", "b"]
    os.kill(forge.mesh(run, "wide")["ranks"][3]["pid"], signal.SIGKILL)
    assert "rank 3 on b was killed by SIGKILL" in forge.until_state(run, "wide", "failed")["reason"]
    assert json.loads(forge.ok("call", "fresh", "add", "1", "--json")) == [1, 1]
    forge.ok("shutdown", "--run", run)


def test_torch_distributed_over_two_hosts_of_a_spec(forge: Forge) -> None:
    pytest.importorskip("torch")
    launch(
        forge,
        """
hosts: [{name: a, local: true}, {name: b, local: true}]
actors: {reducer: {class: 'players:Reducer', procs: 2, hosts: 2, env: {OMP_NUM_THREADS: '1'}}}
""",
    )
    assert json.loads(forge.ok("call", "reducer", "reduce", "10", "--json")) == [30.0, 30.0]


# ---------------------------------------------------------------- what does not start


def test_a_constructor_that_raises_fails_the_launch(forge: Forge) -> None:
    said, document = fails(
        forge,
        """
hosts: [{name: local, gpus: 2}]
actors:
  counter: {class: 'players:Counter', preload: []}
  bad: {class: 'players:BadStart', procs: 2, preload: [], with_gpus: true}
""",
    )
    assert "ValueError: no such model" in said
    assert "players.py" in said, said
    assert document["state"] == "failed"
    assert meshes(document)["bad"] == "failed"
    shown = forge.ok("status", "-a")
    assert "ValueError: no such model" in shown
    locks = list((forge.folder.parent / "locks").iterdir())
    assert len(locks) == 2
    assert all(is_free(Path(lock)) for lock in locks)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{class: 'players:BadSetup', preload: []}", "LookupError: rank 0 finds no data"),
        ("{class: 'players:DeadSetup', procs: 2, preload: []}", "rank 1 on local exited with code 3"),
        ("{class: 'hidden:Missing', preload: []}", "hidden has no Missing"),
        ("{class: 'hidden:NotAnActor', preload: []}", "is not a ForgeActor"),
        ("{class: 'hidden:Counter', preload: [], args: {nothing: 1}}", "unexpected keyword argument 'nothing'"),
        ("{class: 'broken:Counter', preload: []}", "No module named 'no_such_module'"),
        ("{class: 'players:Counter', preload: [monarch.actor]}", "ImportError: it imports monarch"),
    ],
)
def test_what_keeps_actors_from_starting_is_told(forge: Forge, entry: str, words: str) -> None:
    forge.write("hidden.py", "from players import *\n")
    forge.write("broken.py", "from players import Counter\nimport no_such_module\n")
    said, document = fails(forge, f"actors: {{it: {entry}}}", 3 if "DeadSetup" in entry else 1)
    assert words in said, said
    assert document["state"] == "failed"
    assert words.rsplit(":", maxsplit=1)[-1].strip() in json.dumps(document)


def test_an_import_that_fails_shows_the_users_frames_alone(forge: Forge) -> None:
    forge.write("broken.py", "import no_such_module\nfrom players import Counter\n")
    _, document = fails(forge, "actors: {it: {class: 'broken:Counter', preload: []}}")
    [failure] = [m["failure"] for m in document["meshes"] if m["mesh"] == "driver"]
    assert failure["traceback"].splitlines() == [
        "Traceback (most recent call last):",
        f'  File "{forge.folder}/broken.py", line 1, in <module>',
        "    import no_such_module",
        "ModuleNotFoundError: No module named 'no_such_module'",
    ]


@pytest.mark.parametrize("command", ["launch", "plan", "check"])
def test_a_class_that_cannot_work_is_refused_at_its_line_before_anything_starts(forge: Forge, command: str) -> None:
    bring(forge)
    spec = forge.spec("""
actors:
  a: {class: "players:Countr"}
  b: {class: "playrs:Counter"}
  c: {class: "players:NotAnActor"}
  d: {class: "players:Counter", args: {strt: 5}}
services:
  e: {class: "players:Counter", porcs: 1}
""")
    result = forge.run(command, spec)
    line = next(
        n for n, text in enumerate((forge.folder / "players.py").read_text().splitlines(), 1) if "NotAn" in text
    )
    assert (result.returncode, result.stdout) == (65, "")
    assert result.stderr.replace(str(spec), "SPEC").splitlines() == [
        "forgectl: SPEC has 5 problems:",
        "  SPEC:3:14: actors.a.class: players.py has no class 'Countr'; did you mean 'Counter'?",
        f"  SPEC:4:14: actors.b.class: no module 'playrs' in {show(str(forge.folder))}; did you mean 'players'?",
        f"  SPEC:5:14: actors.c.class: NotAnActor (players.py:{line}) is not a ForgeActor; "
        "write class NotAnActor(ForgeActor)",
        "  SPEC:6:40: actors.d.args.strt: Counter has no argument 'strt'; did you mean 'start'?",
        "  SPEC:8:33: services.e.porcs: unknown key; did you mean 'procs'?",
    ]
    assert not forge.runs()


def test_modules_of_another_interpreter_are_looked_for_there(forge: Forge) -> None:
    bring(forge)
    site = forge.folder / "site"
    site.mkdir()
    (site / "players_elsewhere.py").write_text("from players import Counter\n")
    python = forge.write("python", f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    text = "hosts: [{name: local, local: true, python: %s}]\nactors: {it: {class: '%s:Counter', args: {strt: 5}}}"
    for command in ("launch", "check"):
        found = forge.run(command, forge.spec(text % (python, "players_elsewhere")))
        assert "spec.yaml:2:" in found.stderr and "did you mean 'start'?" in found.stderr
        missing = forge.run(command, forge.spec(text % (python, "nowhere")))
        assert f"no module 'nowhere' in {show(str(forge.folder))}, and none is installed for {python}" in missing.stderr
    for other in (python, "/no/such/python"):
        accepted = forge.run("plan", forge.spec(text % (other, "nowhere")))
        assert accepted.returncode == 0, "plan runs no program that a spec names"


# ---------------------------------------------------------------- a driver's script


def test_a_driver_gets_what_the_spec_declares(forge: Forge) -> None:
    run = launch(forge, COUNTER + "driver: {run: drive.py get_what_the_spec_declares}")
    until_said(forge, run, "driver", "all is well")
    assert meshes(forge.document(run)) == {"counter": "ready", "driver": "running", "more": "ready"}
    assert json.loads(forge.ok("call", "more", "state", "--json")) == [1]
    (forge.folder / "end").touch()
    document = forge.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("failed", 3)
    assert {m for m, s in meshes(document).items() if s == "stopped"} == {"counter", "more"}
    [counter] = [m for m in document["meshes"] if m["mesh"] == "counter"]
    assert "the end of its driver" in counter["reason"]
    assert "the end of its driver" in forge.ok("status", "-a")


def test_a_driver_that_is_done_ends_its_run_well(forge: Forge) -> None:
    document = over(forge, COUNTER + "driver: {run: drive.py be_done}")
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)
    assert meshes(document) == {"counter": "stopped", "driver": "succeeded"}
    assert log_of(forge, document["run"], "driver").splitlines() == ["6"]


def test_a_driver_that_raises_fails_its_run(forge: Forge) -> None:
    document = over(forge, COUNTER + "driver: {run: drive.py fail}")
    assert (document["state"], document["exit_code"]) == ("failed", 1)
    assert meshes(document) == {"counter": "stopped", "driver": "failed"}
    [failed] = [m for m in document["meshes"] if m["mesh"] == "driver"]
    assert "ValueError: no 5" in failed["reason"]
    log = log_of(forge, document["run"], "driver")
    assert "drive.py" in log
    assert "players.py" in log


def test_a_driver_may_outlive_a_mesh(forge: Forge) -> None:
    document = over(
        forge, COUNTER.replace("args:", "restart: {max: 1}, args:") + "driver: {run: drive.py outlive_a_mesh}"
    )
    assert (document["state"], log_of(forge, document["run"], "driver")) == ("succeeded", "1 7 6\n")


def test_a_driver_alone_launches_by_code(forge: Forge) -> None:
    document = over(forge, "driver: {run: drive.py launch_by_code}")
    assert (document["state"], log_of(forge, document["run"], "driver")) == ("succeeded", "5\n")


def test_gpus_of_meshes_that_a_driver_launches(forge: Forge) -> None:
    """They are free again after a failed start and after a shutdown, and after the end of the run."""
    run = launch(forge, "hosts: [{name: local, gpus: 2}]\ndriver: {run: drive.py launch_meshes_with_gpus}")
    until_said(forge, run, "driver", "all is well")
    locks = list((forge.folder.parent / "locks").iterdir())
    assert len(locks) == 2
    assert not any(is_free(Path(lock)) for lock in locks)
    end(forge.mesh(run, "driver")["ranks"][0]["pid"])
    forge.until_ended(run)
    assert all(is_free(Path(lock)) for lock in locks)


# ---------------------------------------------------------------- parts of the run die


def test_the_driver_is_killed(forge: Forge) -> None:
    run = launch(forge, COUNTER)
    end(forge.mesh(run, "driver")["ranks"][0]["pid"])
    document = forge.until_ended(run)
    assert (document["state"], document["exit_code"]) == ("failed", 128 + 9)
    assert meshes(document) == {"counter": "stopped", "driver": "failed"}
    shown = forge.ok("status", "-a")
    assert "the end of its driver" in shown
    assert "killed by SIGKILL" in shown


def test_the_agent_is_killed(forge: Forge) -> None:
    run = launch(forge, COUNTER)
    end(agent_of(forge, run))
    document = forge.until_ended(run)
    assert document["state"] in ("lost", "failed")
    assert set(meshes(document).values()) <= {"lost", "failed", "stopped"}


def test_the_controller_is_killed_and_another_adopts_the_actors(forge: Forge) -> None:
    run = launch(forge, COUNTER)
    before = forge.mesh(run, "counter")
    end(controller_of(forge, run))
    assert json.loads(forge.ok("call", "counter", "add", "1", "--json")) == [6, 6]
    after = forge.mesh(run, "counter")
    assert (after["state"], after["generation"], after["ranks"][0]["pid"]) == ("ready", 0, before["ranks"][0]["pid"])
    end(controller_of(forge, run))
    end(after["ranks"][1]["pid"])
    document = forge.until_ended(run)
    assert meshes(document)["counter"] == "failed"
    assert "rank 1 on local was killed by SIGKILL" in json.dumps(document)


def test_a_rank_that_dies_is_restarted_for_the_shell_too(forge: Forge) -> None:
    run = launch(forge, COUNTER.replace("args:", "restart: {max: 1}, args:"))
    assert json.loads(forge.ok("call", "counter", "add", "1", "--json")) == [6, 6]
    result = forge.run("call", "counter", "die", "_exit", "1")
    assert result.returncode == 1
    assert "rank 1 on local exited with code 7" in result.stderr
    assert "last words of 1" in result.stderr
    assert json.loads(forge.ok("call", "counter", "add", "1", "--json")) == [6, 6]
    mesh = forge.mesh(run, "counter")
    assert (mesh["state"], mesh["restarts"]) == ("ready", 1)
    assert forge.run("call", "counter", "die", "kill", "0").returncode in (1, 66)  # the run's end may be sooner
    document = forge.until_ended(run)
    assert document["exit_code"] == 128 + 9
    assert meshes(document)["counter"] == "failed"
