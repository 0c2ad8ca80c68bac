"""Services that a spec declares, and what the shell makes of services: call, status, logs, shutdown."""

from __future__ import annotations

import json
import os
import signal

from tests.conftest import Forge
from tests.process.actor_scripts import background, bring, meshes
from tests.process.outputs import until_said

SPEC = """
services:
  work:
    class: replicas:Worker
    num_replicas: 2
    procs: 2
    args: {folder: ., start: 5}
    router: least_loaded
    preload: []
"""


def test_a_service_in_a_spec_without_a_driver_script(forge: Forge) -> None:
    bring(forge)
    run = forge.launch(SPEC)
    found = {m["mesh"]: (m["kind"], m["state"], m["ready"]) for m in forge.document(run)["meshes"]}
    assert found == {
        "work.0": ("service", "ready", 2),
        "work.1": ("service", "ready", 2),
        "driver": ("driver", found["driver"][1], 1),
    }
    called = [json.loads(forge.ok("call", "work", "who", "--json"))[0] for _ in range(2)]
    assert {w["mesh"] for w in called} == {"work.0", "work.1"}
    assert {(w["rank"], w["size"], w["start"]) for w in called} == {(0, 2, 5)}
    assert forge.ok("call", f"{run}/work", "add", "3").strip() == "8"
    assert json.loads(forge.ok("call", "work", "gather", "1", "--kw", "plus=2", "--json"))[0][0] == 3
    result = forge.run("call", "work", "ad")
    assert result.returncode == 66
    assert "did you mean 'add'" in result.stderr
    assert "hold(key: str, value: Any = None) -> Any" in result.stderr
    result = forge.run("call", "work", "fail", "because")
    assert result.returncode == 1
    assert "work.fail raised ValueError: because" in result.stderr
    result = forge.run("call", "work", "add", "1", "2", "3")
    assert result.returncode == 64
    assert "add(k: int = 1) -> int" in result.stderr

    rows = forge.ok("status", "work").splitlines()
    assert [row.split()[1] for row in rows if " service " in row] == ["work.0", "work.1"]
    assert "driver" not in "\n".join(rows)
    verbose = forge.ok("status", "work", "-v")
    assert all(str(w["pid"]) in verbose for w in called)
    assert "P99" in verbose
    [document] = forge.status("work")
    assert {m["mesh"] for m in document["meshes"]} == {"work.0", "work.1"}

    os.kill(called[0]["pid"], signal.SIGKILL)
    mesh = forge.until_mesh(run, called[0]["mesh"], lambda m: m["restarts"] == 1 and m["state"] == "ready")
    assert "killed by SIGKILL" in mesh["reason"]
    assert forge.ok("call", "work", "add", "0").strip() in ("5", "8")
    forge.ok("shutdown", "work")
    states = {m["mesh"]: m["state"] for m in forge.document(run)["meshes"]}
    assert (states["work.0"], states["work.1"]) == ("stopped", "stopped")
    result = forge.run("call", "work", "add", "1")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


def test_a_driver_script_gets_its_service(forge: Forge) -> None:
    bring(forge, "drive.py")
    result = forge.run("launch", forge.spec(SPEC + "driver: {run: drive.py use_a_service}\n"))
    assert result.returncode == 0, result.stdout + result.stderr
    for line in ("has work.0 2 5", "has work.1 2 5", "doubled [0, 2, 4, 6]", "now ['work.0', 'work.1', 'work.2']"):
        assert f"driver/0@local │ {line}" in result.stdout, result.stdout
    [document] = forge.status("-a")
    assert document["state"] == "succeeded"
    assert {m["mesh"]: m["state"] for m in document["meshes"]} == {
        "work.0": "stopped",
        "work.1": "stopped",
        "work.2": "stopped",
        "driver": "succeeded",
    }


def test_logs_of_a_service_are_those_of_its_replicas(forge: Forge) -> None:
    bring(forge)
    forge.write(
        "speakers.py",
        """
from forgectl import endpoint
from replicas import Worker

class Speaker(Worker):
    @endpoint
    async def say(self, text):
        self.logger.info(text)
""",
    )
    run = forge.launch("services: {talk: {class: 'speakers:Speaker', num_replicas: 2, preload: []}}")
    for text in ("first", "second"):
        forge.ok("call", "talk", "say", text)
    for i, text in enumerate(("first", "second")):
        until_said(forge, run, f"talk.{i}", text)
    shown = forge.ok("logs", "talk")
    assert "talk.0/0@local │ INFO [Speaker 0/1] first" in shown
    assert "talk.1/0@local │ INFO [Speaker 0/1] second" in shown
    assert "first" not in forge.ok("logs", "talk.1")
    forge.ok("shutdown", "talk")
    assert "talk.1/0@local │ INFO [Speaker 0/1] second" in forge.ok("logs", f"{run}/talk")


def test_a_service_that_cannot_start_fails_the_launch(forge: Forge) -> None:
    bring(forge)
    bad = "{class: 'replicas:SecondFails', num_replicas: 2, args: {folder: ., how: raises}, preload: []}"
    result = forge.run("launch", forge.spec(f"services: {{svc: {bad}}}"), "-d")
    assert result.returncode == 1
    assert "ValueError: the second has no data" in result.stderr
    [document] = forge.status("-a")
    assert document["state"] == "failed"
    assert document["ended_at"]


def test_the_shell_asks_and_ends_the_service_of_a_script(forge: Forge) -> None:
    script = background(forge, "play_services.py the_shell_asks_and_ends_the_service_of_a_script")
    assert [forge.ok("call", "svc", "add", "1").strip() for _ in range(3)] == ["2", "2", "3"]
    assert forge.run("call", "svc", "hold", "never", "--timeout", "0.2").returncode == 124
    (forge.folder / "go-never").touch()
    forge.ok("shutdown", "svc")
    (forge.folder / "stop").touch()
    out, err = script.communicate(timeout=60)
    assert (script.returncode, out, err) == (0, "", "")
    assert {m["state"] for m in meshes(forge).values()} == {"stopped"}
