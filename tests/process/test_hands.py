"""What hands expect of commands: a folder's own spec, other names, `config`, and which output a launch shows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Forge

STAY = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"
SAY = """
import os, sys
print("line of", os.environ["FORGE_MESH"], os.environ["RANK"], flush=True)
if os.environ["FORGE_MESH"] == "bad" and os.environ["RANK"] == "1":
    raise ValueError("number 1 is bad")
"""
SAYING = "scripts: {good: {run: say.py, procs: 3, preload: []}, one: {run: say.py, preload: []}}"
BAD = "scripts: {bad: {run: say.py, procs: 2, preload: []}}"

# ------------------------------------------------------------ the folder's own spec


def test_up_ps_and_down_are_about_the_spec_of_the_folder(forge: Forge) -> None:
    forge.spec(STAY, "forge.yml")
    forge.spec("scripts: {other: {command: [sleep, '1000']}}", "other.yaml")
    other = forge.ok("up", "-d", "other.yaml").strip()
    nothing = forge.run("down")
    assert (nothing.returncode, nothing.stdout) == (0, ""), "as docker compose"
    assert nothing.stderr == "forgectl: no run of forge.yml is alive\n"
    run = forge.ok("up", "-d").strip()
    assert run.startswith("work-"), "it has the folder's name, so that those of two folders differ"
    assert run in forge.ok("ps") and forge.ok("ps", "-q").split() == [other, run]
    assert [m["mesh"] for m in json.loads(forge.ok("plan", "--json"))["meshes"]] == ["stay"]
    beside = forge.ok("up", "-d", "--name", "beside").strip()
    several = forge.run("down")
    assert (several.returncode, several.stdout) == (64, "")
    assert f"say which: {run}, {beside}" in several.stderr
    assert forge.run("down", beside).returncode == 0
    forge.write("forge.yml", "scripts: {stay: {run: it-was-edited}}")  # that does not matter to what runs
    ended = forge.run("shutdown")
    assert (ended.returncode, ended.stderr) == (0, f"forgectl: ending run {run}, of forge.yml\n")
    assert ended.stdout.startswith(f"{run}/stay stopped: 2 × SIGTERM")
    assert [r["run"] for r in forge.status()] == [other]


def test_a_folder_without_a_spec_says_what_to_do(forge: Forge) -> None:
    for command in ("up", "plan", "check", "config"):
        result = forge.run(command)
        assert (result.returncode, result.stdout) == (64, "")
        assert f"no SPEC was named, and {forge.folder} has no forge.yaml\n" in result.stderr
        assert f"hint: forgectl {command.replace('up', 'launch')} SPEC; or `forgectl init` writes" in result.stderr
    forge.ok("init")
    for command, shows in {
        "plan": "train.py",
        "check": "ready: 1 host",
        "config": "run: [train.py, --steps, '50']",
    }.items():
        assert shows in forge.ok(command)


def test_config_prints_what_can_be_launched_and_is_the_same_run(forge: Forge, tmp_path: Path) -> None:
    """The tests of forgectl/spec/resolved.py have all samples."""
    forge.write("say.py", SAY + "print('greeting', os.environ['GREETING'], flush=True)")
    forge.spec("env: {GREETING: '${WORD:-hello} $$HOME'}\nsecrets: [TOKEN]\n" + SAYING, "forge.yaml")
    env = {**forge.env, "TOKEN": "tok-123456", "WORD": "moin"}
    printed = forge.ok("config", "--set", "scripts.good.procs=2", env=env)
    assert "tok-123456" not in printed and f"workdir: {forge.folder}\n" in printed
    assert json.loads(forge.ok("config", "-o", "json", env=env))["scripts"]["good"]["procs"] == 3
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(printed)
    original, again = (
        json.loads(forge.ok("plan", *words, "--json", env=env, cwd=folder))
        for words, folder in ((["--set", "scripts.good.procs=2"], forge.folder), ([frozen], tmp_path))
    )
    assert again == original | {"spec": str(frozen)}
    del env["WORD"]
    said = forge.ok("launch", frozen, "--no-prefix", env=env, cwd=tmp_path).splitlines()
    assert sorted(said) == ["greeting moin $HOME"] * 3 + ["line of good 0", "line of good 1", "line of one 0"]


# ------------------------------------------------------------ what a command in the foreground shows


@pytest.fixture
def say(forge: Forge) -> Forge:
    forge.write("say.py", SAY)
    forge.spec(SAYING, "forge.yaml")
    forge.spec(BAD, "bad.yaml")
    return forge


def test_lines_of_some_ranks_and_without_prefix(say: Forge) -> None:
    some = say.run("launch", "--ranks", "0,2")
    assert some.returncode == 0
    assert sorted(some.stdout.splitlines()) == [
        "good/0@local │ line of good 0",
        "good/2@local │ line of good 2",
        "one/0@local │ line of one 0",
    ]
    assert "forgectl: good succeeded" in some.stderr
    bare = say.run("run", "-n", 2, "--preload", "", "--no-prefix", "--ranks", "1", "--json", "say.py")
    assert json.loads(bare.stdout)["runs"][0]["state"] == "succeeded"
    assert [line for line in bare.stderr.splitlines() if not line.startswith("forgectl: ")] == ["line of say 1"]
    attached = say.run("attach", say.folder.name, "--ranks", "2")
    assert attached.stdout == "good/2@local │ line of good 2\n"


def test_a_quiet_command_prints_errors_alone(say: Forge) -> None:
    for words in (["launch", "-q"], ["run", "-q", "-n", "2", "--preload", "", "say.py"]):
        good = say.run(*words)
        assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = say.run("launch", "-q", "bad.yaml")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("bad failed: rank 1 on local ")
    assert "in <module>" in bad.stderr and bad.stderr.count("ValueError: number 1 is bad") >= 1
    assert "line of" not in bad.stderr.partition("its last log lines")[0]
    fed = say.run("run", "-q", "--preload", "", "-n", 1, "--", "sh", "-c", "read code; exit $code", input="7\n")
    assert (fed.returncode, fed.stdout) == (7, "")
    detached = say.run("launch", "-dq", "--name", "behind")
    assert detached.returncode == 0 and detached.stdout.startswith("behind-") and detached.stderr == ""


def test_a_failure_of_a_rank_that_was_not_shown_is_shown_in_full(say: Forge) -> None:
    starts = [
        say.start("launch", "bad.yaml", "--name", name, "--ranks", ranks, stderr=subprocess.STDOUT)
        for name, ranks in (("seen", "0-1"), ("unseen", "0"))
    ]
    seen, unseen = (process.communicate(timeout=60)[0] for process in starts)
    assert [process.returncode for process in starts] == [1, 1]
    assert "bad/1@local │ Traceback" in seen and seen.count("Traceback") == 1, "it is not repeated in full"
    assert "  Traceback" in unseen and "bad/1@local" not in unseen


def test_run_takes_the_place_of_a_run(forge: Forge) -> None:
    forge.spec(STAY)
    forge.write("stay.py", "import time; print('up', flush=True); time.sleep(1000)")
    old = forge.ok("run", "-d", "--preload", "", "stay.py").strip()
    wrong = forge.run("run", "-d", "--replace", "--preload", "", "--ranks", "0", "stay.py")
    assert wrong.returncode == 64
    result = forge.run("run", "-d", "--replace", "--preload", "", "stay.py")
    new = result.stdout.strip()
    assert (result.returncode, old != new) == (0, True)
    assert f"forgectl: run {old} ended; a new one takes its place" in result.stderr
    assert forge.document(old)["stopped_by"] == "forgectl run --replace"
    assert [r["run"] for r in forge.status()] == [new] and new.startswith("stay-")


# ------------------------------------------------------------ other


def test_numbers_that_json_does_not_have_are_texts(forge: Forge) -> None:
    forge.write(
        "odd.py",
        """
from forgectl import ForgeActor, endpoint

class Odd(ForgeActor):
    @endpoint
    def loss(self, x: float) -> dict:
        return {"loss": [x, float("inf"), -float("inf"), 0.5]}
""",
    )
    forge.launch("actors: {odd: {class: odd:Odd, procs: 2, preload: []}}")
    found = json.loads(forge.ok("call", "odd", "loss", "NaN", "--json"), parse_constant=pytest.fail)
    assert found == [{"loss": ["NaN", "Infinity", "-Infinity", 0.5]}] * 2
    assert '0: {"loss": [NaN, Infinity' in forge.ok("call", "odd", "loss", "NaN")


def test_a_relative_home_is_refused_with_the_absolute_one(forge: Forge) -> None:
    forge.spec(STAY)
    env = {**forge.env, "FORGECTL_HOME": "home"}
    for words in (["status"], ["launch", "-d", "spec.yaml"], ["down", "--all"]):
        result = forge.run(*words, env=env)
        assert (result.returncode, result.stdout) == (64, "")
        assert "FORGECTL_HOME=home is a relative path" in result.stderr
        assert f'hint: export FORGECTL_HOME="{forge.folder}/home"' in result.stderr
    assert not (forge.folder / "home").exists()
