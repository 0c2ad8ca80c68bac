"""`driver: {restart: …}`: what the driver launched outlives it, and the next driver adopts it."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forge, until
from tests.process.actor_scripts import bring
from tests.process.deaths import controller_of, end, pids
from tests.process.outputs import document_of, log_of, until_said

pytestmark = pytest.mark.timeout(400)

TOLD = "actors: {told: {class: 'players:Counter', procs: 2, preload: [], args: {start: 5}}}\n"


def launch(forge: Forge, scene: str, restart: str = "{max: 99, backoff: 0}", more: str = "") -> str:
    bring(forge, "enduring.py")
    return forge.launch(f"{more}driver: {{run: enduring.py {scene}, restart: {restart}}}")


def started(forge: Forge, run: str, start: int) -> list[str]:
    """What the driver of that start has said of what it adopted."""
    log = until_said(forge, run, "driver", f"start {start} ", generation=start)
    line = next(line for line in log.splitlines() if line.startswith("start"))
    return line.split()[2:]


def kill_driver(forge: Forge, run: str, start: int) -> None:
    driver = forge.until_mesh(run, "driver", lambda m: m["generation"] == start and m["ranks"][0]["pid"])
    end(driver["ranks"][0]["pid"])


def ranks(forge: Forge, run: str) -> dict[str, list[int]]:
    """Mesh → the pids of its ranks, without the driver."""
    return {m["mesh"]: pids(m) for m in forge.glance(run)["meshes"] if m["kind"] != "driver"}


def call(forge: Forge, *words: str) -> Any:
    return json.loads(forge.ok("call", *words, "--json"))


def grown(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size > size


def until_calling(forge: Forge) -> None:
    """Wait until the lead has made some more calls."""
    [before] = call(forge, "lead", "report")
    until(lambda: call(forge, "lead", "report")[0]["calls"] > before["calls"] + 10, "calls under way")


# ---------------------------------------------------------------- under load


def test_twenty_drivers_are_killed_under_load_and_nothing_is_lost(forge: Forge) -> None:
    run = launch(forge, "count_for_ever", more=TOLD)
    assert started(forge, run, 0) == ["False"] * 5
    before = ranks(forge, run)
    answered = forge.folder / "answered"
    kills = 20
    for start in range(kills):
        size = answered.stat().st_size if answered.exists() else 0
        until(functools.partial(grown, answered, size + 100), "calls under way")
        kill_driver(forge, run, start)
        assert started(forge, run, start + 1) == ["True"] * 5
    assert ranks(forge, run) == before, "a rank was restarted"

    [driver] = pids(forge.mesh(run, "driver"))
    os.kill(driver, signal.SIGSTOP)  # it makes no more calls
    noted = Counter(answered.read_text().split())
    under_way = {"named": 2, "pool": 2, "told": 1}
    counts = {"named": call(forge, "named", "state"), "told": [n - 5 for n in call(forge, "told", "state")]}
    counts["pool"] = [sum(call(forge, f"pool.{i}", "state")[0] for i in range(2))]
    for what, most in under_way.items():
        for count in counts[what]:
            assert noted[what] <= count <= noted[what] + most * (kills + 1), (what, count, noted)
    os.kill(driver, signal.SIGCONT)
    forge.ok("shutdown", "--run", run)


def test_calls_go_on_while_the_driver_is_away(forge: Forge) -> None:
    run = launch(forge, "go_on", "{max: 3, backoff: 10m}")
    started(forge, run, 0)
    kill_driver(forge, run, 0)
    started(forge, run, 1)
    kill_driver(forge, run, 1)
    driver = forge.until_mesh(run, "driver", lambda m: m["state"] == "restarting" and m["restarting"]["at"])
    assert (driver["generation"], driver["restarts"]) == (2, 2)
    assert call(forge, "kept", "add", "2") == [7, 7]
    refused = forge.run("call", "pool", "add", "2")
    assert (refused.returncode, f"call a replica: {run}/pool.0" in refused.stderr) == (75, True), refused.stderr
    assert call(forge, "pool.0", "add", "2") == [7]
    assert "2/3" in forge.ok("status")
    forge.ok("shutdown", "--run", run)
    assert forge.until_ended(run)["state"] == "stopped"


def test_a_controller_that_dies_with_the_driver_is_replaced_by_the_next_command(forge: Forge) -> None:
    run = launch(forge, "go_on")
    started(forge, run, 0)
    before = ranks(forge, run)
    victims = [controller_of(forge, run), *pids(forge.mesh(run, "driver"))]
    os.kill(victims[0], signal.SIGSTOP)  # so that it does not see the driver's death
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    forge.ok("status")
    assert started(forge, run, 1) == ["True"]
    assert ranks(forge, run) == before
    assert call(forge, "kept", "add", "1") == [6, 6]
    forge.ok("shutdown", "--run", run)


# ---------------------------------------------------------------- actors that use the driver


def test_what_actors_launched_lives_on_and_their_requests_wait(forge: Forge) -> None:
    run = launch(forge, "have_a_lead")
    replicas = [f"pool.{i}" for i in range(3)]
    assert started(forge, run, 0) == ["False", "False", *replicas]
    before = ranks(forge, run)
    assert len(before) == 7
    [first] = call(forge, "lead", "report")
    for start in range(3):
        until_calling(forge)
        kill_driver(forge, run, start)
        assert started(forge, run, start + 1) == ["True", "True", *replicas]
    until_calling(forge)
    [last] = call(forge, "lead", "report")
    assert last["ended"] is None
    assert last["went"] == first["went"], "a session went to another replica"
    assert last["unknown"] <= 3
    assert ranks(forge, run) == before

    # The driver knows how to construct what an earlier one launched for an actor.
    [[count, pid]] = call(forge, "lead", "helped")
    assert (count, pid) == (8, before["counter"][0])
    end(pid)
    forge.until_mesh(run, "counter", lambda m: m["generation"] == 1 and m["state"] == "ready")
    [[count, pid]] = call(forge, "lead", "helped")
    assert (count, [pid]) == (8, ranks(forge, run)["counter"])

    call(forge, "lead", "end")
    assert forge.mesh(run, "counter")["state"] == "stopped"
    kill_driver(forge, run, 3)
    started(forge, run, 4)
    ended = {m["mesh"] for m in forge.glance(run)["meshes"] if m["state"] == "stopped"}
    assert ended == {"counter", "own.0", "own.1"}, "what was shut down has come back"
    forge.ok("shutdown", "--run", run)


# ---------------------------------------------------------------- what is adopted


def test_what_a_driver_has_not_adopted_ends_with_the_run(forge: Forge) -> None:
    bring(forge, "enduring.py")
    spec = forge.spec("driver: {run: enduring.py be_done, restart: {max: 1}}")
    document = document_of(forge.run("launch", spec, "--json"))
    states = {m["mesh"]: (m["state"], m["generation"]) for m in document["meshes"]}
    assert states == {"driver": ("succeeded", 1), "one": ("stopped", 0), "two": ("stopped", 0)}
    assert "start 1 True 2" in log_of(forge, document["run"], "driver", generation=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("arguments", "differs in argument 1"),
        ("options", "differs in the option procs"),
        ("class", "differs in the class (players:Counter before)"),
    ],
)
def test_a_launch_that_differs_is_refused_and_says_in_what(forge: Forge, change: str, said: str) -> None:
    run = launch(forge, f"ask_for_more {change}", "{max: 1, backoff: 0}")
    started(forge, run, 0)
    kill_driver(forge, run, 0)
    final = forge.until_ended(run)
    assert (final["state"], final["exit_code"]) == ("failed", 1)
    failure = next(m["failure"] for m in final["meshes"] if m["mesh"] == "driver")
    assert f"mesh kept lives on from an earlier driver, and this launch {said}" in failure["message"]
    assert said in forge.run("why", run).stdout


def test_equal_arguments_are_the_same_in_any_form(forge: Forge) -> None:
    run = launch(forge, "adopt_equals")
    started(forge, run, 0)
    kill_driver(forge, run, 0)
    assert started(forge, run, 1) == ["True", "True"]
    forge.ok("shutdown", "--run", run)


def test_a_mesh_under_construction_begins_anew(forge: Forge) -> None:
    run = launch(forge, "set_up_slowly")
    waiting = [forge.folder / f"waiting-{rank}" for rank in range(2)]
    until(lambda: all(p.exists() for p in waiting), "the setup")
    kill_driver(forge, run, 0)
    forge.until_mesh(run, "slow", lambda m: m["generation"] == 1)
    (forge.folder / "go").touch()
    assert started(forge, run, 1) == ["False"]
    assert forge.mesh(run, "slow")["restarts"] == 0
    forge.ok("shutdown", "--run", run)


def test_a_mesh_that_died_while_the_driver_was_away_is_constructed_by_the_next(forge: Forge) -> None:
    run = launch(forge, "go_on kept 2", "{max: 9, backoff: 1s}")
    started(forge, run, 0)
    kill_driver(forge, run, 0)
    started(forge, run, 1)
    call(forge, "kept", "add", "1")
    kill_driver(forge, run, 1)
    forge.until_mesh(run, "driver", lambda m: m["state"] == "restarting")
    end(ranks(forge, run)["kept"][0])
    assert started(forge, run, 2) == ["False"]
    assert call(forge, "kept", "state") == [5, 5]
    forge.ok("shutdown", "--run", run)


# ---------------------------------------------------------------- the end


def test_a_driver_that_fails_again_and_again_ends_the_run(forge: Forge) -> None:
    run = launch(forge, "fail", "{max: 1, backoff: 0}")
    final = forge.until_ended(run)
    states = {m["mesh"]: (m["state"], m["generation"], m["restarts"]) for m in final["meshes"]}
    assert states == {"driver": ("failed", 1, 1), "kept": ("stopped", 0, 0)}
    assert (final["state"], final["exit_code"]) == ("failed", 1)
    why = forge.run("why", run).stdout
    assert "RuntimeError: no luck at start 1" in why
    assert "gave up: restarted 1 of 1 times" in why
    events = [json.loads(line) for line in forge.ok("events", run, "--json").splitlines()]
    assert [e["event"] for e in events if e.get("mesh") == "driver"].count("mesh_restarted") == 1
    assert [e["mesh"] for e in events if e["event"] == "mesh_adopted"] == ["kept"]


def test_without_a_restart_the_run_ends_with_its_driver(forge: Forge) -> None:
    run = launch(forge, "go_on", "{max: 0}")
    started(forge, run, 0)
    kill_driver(forge, run, 0)
    final = forge.until_ended(run)
    assert {m["mesh"]: m["state"] for m in final["meshes"]} == {
        "driver": "failed",
        "kept": "stopped",
        "pool.0": "stopped",
    }
