"""Ranks that make no progress are noticed, diagnosed, reported, and restarted on wish; idle ones are left alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forge, until

HANG = Path(__file__).parents[2] / "benchmarks" / "programs" / "hang.py"
WAITER = """
import time
from pathlib import Path

from forgectl import ForgeActor, endpoint


class Waiter(ForgeActor):
    @endpoint
    def idle(self) -> None:
        pass

    @endpoint
    def wait(self) -> None:
        while not Path("go").exists():
            time.sleep(0.01)

    @endpoint
    async def ask(self, other: "Waiter") -> str:
        try:
            await other.options(timeout=0.3).wait.call_one()
        except TimeoutError as e:
            return str(e)
        return ""
"""
DRIVER = """
import time
from pathlib import Path

import forgectl

waiter, asker = forgectl.get("waiter"), forgectl.get("asker")
try:
    waiter.options(timeout=0.3).wait.call().get()
except TimeoutError:
    asker.ask.call_one(waiter).get()
while not Path("go").exists():
    time.sleep(0.01)
"""


def launch(forge: Forge, program: str, hang: str = "after: 2s", **more: object) -> str:
    fields = "".join(f", {name}: {value}" for name, value in more.items())
    script = f"{{run: PROGRAMS/{program}, procs: 3, hang: {{{hang}}}{fields}}}"
    return forge.launch(f"name: h\non: {{hung: cat >> hung}}\nscripts: {{h: {script}}}")


def events(forge: Forge, run: str, name: str) -> list[dict[str, Any]]:
    found = map(json.loads, forge.ok("events", run, "--json").splitlines())
    return [event for event in found if event["event"] == name]


def until_event(forge: Forge, run: str, name: str) -> dict[str, Any]:
    event: dict[str, Any] = until(lambda: next(iter(events(forge, run, name)), None), name)
    return event


def goes_on(rank: dict[str, Any]) -> bool:
    seconds = rank["seconds_since_progress"]  # None: it has not begun
    return seconds is not None and seconds < 2


def why(forge: Forge, run: str) -> dict[str, Any]:
    mesh: dict[str, Any] = json.loads(forge.ok("why", run, "--json"))["meshes"][0]
    return mesh


@pytest.mark.parametrize(("how", "line"), [("gil", "stuck"), ("loop", "stuck"), ("lock", "stuck"), ("order", "")])
def test_a_hang_is_reported_with_the_verdict_and_nothing_is_ended(forge: Forge, how: str, line: str) -> None:
    run = launch(forge, f"get_stuck.py {how}")
    event = until_event(forge, run, "mesh_hung")
    assert event["rank"] == 1
    assert line in event["message"]
    given = forge.folder / "hung"
    hook = json.loads(until(lambda: given.exists() and given.read_text().strip(), "the command"))
    assert (hook["hook"], hook["message"]) == ("hung", event["message"])
    mesh = forge.mesh(run, "h")
    assert (mesh["state"], mesh["hung"]["message"]) == ("running", event["message"])
    assert mesh["seconds_since_progress"] >= 2
    assert {r["state"] for r in mesh["ranks"]} == {"running"}
    told = why(forge, run)
    assert (told["failure"]["kind"], told["hangs"]) == ("hang", True)
    assert told["verdict"][0] in event["message"]
    incident = json.loads(Path(told["incident"]).read_text())
    assert (incident["suspects"], incident["stacks"][0]["ranks"]) == ([1], "1")
    frames = [frame["function"] for frame in incident["stacks"][0]["threads"][0]["frames"]]
    assert "stuck" in frames or how == "order"
    assert "h hangs: no progress" in forge.run("logs", run).stderr
    assert event["message"] in forge.ok("status")


def test_a_stopped_rank_is_named_and_its_going_on_is_said(forge: Forge) -> None:
    run = launch(forge, "goes_on.py collectives")
    pid = until(lambda: forge.mesh(run, "h")["seconds_since_progress"] is not None, "collectives")
    pid = forge.mesh(run, "h")["ranks"][2]["pid"]
    os.kill(pid, signal.SIGSTOP)
    event = until_event(forge, run, "mesh_hung")
    assert (event["rank"], "SIGSTOP" in event["message"]) == (2, True)
    os.kill(pid, signal.SIGCONT)
    assert until_event(forge, run, "mesh_resumed")["mesh"] == "h"
    assert forge.mesh(run, "h").get("hung") is None


@pytest.mark.parametrize(("how", "hang"), [("heartbeats", "after: 5s"), ("lines", "after: 5s, logs: true")])
def test_heartbeats_and_lines_are_progress_and_their_end_is_not(forge: Forge, how: str, hang: str) -> None:
    run = launch(forge, f"goes_on.py {how}", hang, preload="[]")
    until(lambda: all(goes_on(rank) for rank in forge.mesh(run, "h")["ranks"]), "progress of all")
    assert events(forge, run, "mesh_hung") == []
    (forge.folder / "stop").touch()
    event = until_event(forge, run, "mesh_hung")
    assert "goes_on.py" in event["message"]
    assert forge.mesh(run, "h")["hung"]["ranks"] == [0, 1, 2]


def test_a_script_without_progress_is_left_alone_unless_it_has_a_start(forge: Forge) -> None:
    (forge.folder / "stop").touch()
    run = forge.launch(
        "name: h\nscripts:\n"
        "  free: {run: PROGRAMS/goes_on.py none, hang: {after: 500ms}}\n"
        "  bound: {run: PROGRAMS/goes_on.py none, hang: {after: 500ms, start: 1s}}\n"
    )
    until_event(forge, run, "mesh_hung")
    assert [event["mesh"] for event in events(forge, run, "mesh_hung")] == ["bound"]
    assert forge.mesh(run, "free")["seconds_since_progress"] is None


def test_a_hang_restarts_the_mesh_after_its_stacks_were_saved(forge: Forge) -> None:
    run = launch(forge, "get_stuck.py read", "after: 2s, do: restart", restart="{max: 1, backoff: 0}")
    forge.until_state(run, "h", "failed")
    names = [e["event"] for e in map(json.loads, forge.ok("events", run, "--json").splitlines())]
    ends = [n for n in names if n in ("mesh_hung", "mesh_failing", "mesh_restarted", "mesh_failed", "rank_exited")]
    once = ["mesh_hung", "mesh_failing", *["rank_exited"] * 3]
    assert ends == [*once, "mesh_restarted", *once, "mesh_failed"]
    told = why(forge, run)
    assert (told["failure"]["kind"], told["earlier"][0]["generation"]) == ("hang", 0)
    assert told["failure"]["policy"] == "gave up: restarted 1 of 1 times"
    assert "stuck" in json.loads(Path(told["incident"]).read_text())["stacks"][0]["threads"][0]["frames"][0].values()


def test_an_actor_hangs_within_a_call_and_never_between_calls(forge: Forge) -> None:
    forge.write("waiter.py", WAITER)
    run = forge.launch("name: h\nactors: {waiter: {class: waiter:Waiter, hang: {after: 1s, start: 1s}}}")
    forge.ok("call", f"{run}/waiter", "idle")
    assert forge.mesh(run, "waiter")["seconds_since_progress"] is None
    call = forge.start("call", f"{run}/waiter", "wait")
    event = until_event(forge, run, "mesh_hung")
    assert "waiter.py" in event["message"]
    assert len(events(forge, run, "mesh_hung")) == 1
    (forge.folder / "go").touch()
    assert call.wait(30) == 0
    until_event(forge, run, "mesh_resumed")
    assert forge.mesh(run, "waiter")["seconds_since_progress"] is None


def test_a_call_without_an_answer_in_time_saves_the_stacks_of_its_mesh(forge: Forge) -> None:
    """That of the driver, and that of another actor."""
    forge.write("waiter.py", WAITER)
    forge.write("drive.py", DRIVER)
    actors = "waiter: {class: waiter:Waiter}, asker: {class: waiter:Waiter}"
    run = forge.launch(f"name: h\nactors: {{{actors}}}\ndriver: {{run: drive.py}}")
    late = until(lambda: len(found := events(forge, run, "call_timed_out")) == 2 and found, "two reports")
    for event in late:
        assert event["mesh"] == "waiter"
        assert event["message"].startswith("waiter.wait has not answered within 0.3 s: [0] at ")
        [path] = (forge.run_dir(run) / "incidents").glob(f"{event['seq']:06}-*")
        incident = json.loads(path.read_text())
        assert "wait" in [f["function"] for t in incident["stacks"][0]["threads"] for f in t["frames"]]
        assert "waiter.py" in incident["verdict"][0]
    assert events(forge, run, "mesh_hung") == []
    (forge.folder / "go").touch()
    assert forge.until_ended(run)["state"] == "succeeded"


def test_the_right_rank_and_its_line_are_named_whatever_keeps_the_others_waiting(forge: Forge) -> None:
    """Some of the hangs of benchmarks/hangs.py, with its program."""
    culprits = {"skipped": 3, "shape": 2, "subgroup": 1, "loader": 0, "left": 1, "two_locks": 2}
    scripts = "".join(
        f"  {kind}: {{run: {HANG} {kind} {rank} 3 at-{kind}, procs: 4, hang: {{after: 3s, start: 15s}}}}\n"
        for kind, rank in culprits.items()
    )
    run = forge.launch(f"name: h\nscripts:\n{scripts}")
    found = until(
        lambda: len(hung := {e["mesh"]: e for e in events(forge, run, "mesh_hung")}) == 6 and hung, "six hangs"
    )
    assert {kind: event["rank"] for kind, event in found.items()} == culprits
    for kind, event in found.items():
        assert "hang.py:" in event["message"] or (kind == "left" and "exit code 0" in event["message"])
