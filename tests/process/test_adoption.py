"""The controller dies: no rank is lost while somebody asks for another in time; else the agents fence themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forgectl.controller.records import AgentUp, Happened, Record
from forgectl.protocol.supervision import RankStarted
from tests.conftest import Forge, processes_of, until
from tests.process.deaths import (
    RANKS,
    agent_of,
    births,
    controller_of,
    end,
    end_controller,
    lives,
    pids,
    records,
    rewrite_journal,
    until_empty,
    until_generation,
)

STAY = f"scripts: {{stay: {RANKS}}}"
BRIEF = f"lease: 1s\nscripts: {{stay: {RANKS}}}"
REVIVED = "lease: 1s\nscripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: [], restart: {max: 9, backoff: 0}}}"
TICK = "scripts: {tick: {run: PROGRAMS/tick.py, preload: []}}"
FALL = "scripts: {fall: {run: PROGRAMS/fall.py, procs: 2, preload: [], restart: {max: 10000, backoff: 0}}}"


def test_the_next_command_adopts_the_agents(forge: Forge) -> None:
    run = forge.launch(TICK)
    before = forge.mesh(run, "tick")
    old = controller_of(forge, run)
    end(old)
    after = forge.mesh(run, "tick")
    assert (after["state"], after["generation"], pids(after)) == ("running", 0, pids(before))
    assert controller_of(forge, run) != old
    seen = len(forge.ok("logs", "tick"))
    until(lambda: len(forge.ok("logs", "tick")) > seen, "further lines")
    assert "1 × SIGTERM" in forge.ok("shutdown", "tick")
    assert forge.document(run)["state"] == "stopped"
    assert births(forge, run) == 2


def _number_in(line: str) -> int:
    """The tick that a line of the launch shows; 0 for one that was cut, as another rank wrote meanwhile."""
    assert line, "the launch ended"
    words = line.partition("│")[2].split()
    return int(words[-1]) if words and words[-1].isdigit() else 0


def until_born(forge: Forge, run: str, count: int) -> None:
    """Wait for the controller that is the run's so many-th."""
    until(lambda: forge.roles(run)["controller"] and births(forge, run) == count, "another controller")


def test_the_launch_in_the_foreground_brings_up_the_next_controller(forge: Forge) -> None:
    launch = forge.start("launch", forge.spec(TICK))
    lines = launch.stdout
    assert lines
    lines.readline()
    [run] = forge.runs()
    ranks = forge.roles(run)["rank"]
    for number in range(2, 5):
        end_controller(forge, run)
        until_born(forge, run, number)
    line = lines.readline()
    assert line, f"the launch ended: {launch.communicate(timeout=60)}"
    last = _number_in(line)
    until(lambda: _number_in(lines.readline()) > last + 100, "many further lines")
    assert forge.roles(run)["rank"] == ranks
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=60)
    assert launch.returncode == 130
    assert forge.document(run)["state"] == "stopped"


def test_many_controllers_die_in_a_row(forge: Forge) -> None:
    run = forge.launch(STAY)
    before = pids(forge.mesh(run, "stay"))
    for _ in range(8):
        end_controller(forge, run)
        assert pids(forge.mesh(run, "stay")) == before
    assert births(forge, run) == 9
    assert "2 × SIGTERM" in forge.ok("shutdown", "--run", run)


def test_a_controller_that_dies_as_it_begins_is_replaced_too(forge: Forge) -> None:
    run = forge.launch(STAY)
    before = pids(forge.mesh(run, "stay"))
    for _ in range(4):
        end_controller(forge, run)
        asking = forge.start("status", "--json")
        until(lambda: forge.roles(run)["controller"], "the next controller")
        end_controller(forge, run)
        _, err = asking.communicate(timeout=60)
        assert asking.returncode == 0, err
    assert pids(forge.mesh(run, "stay")) == before


def test_a_death_that_no_controller_saw_is_told_to_the_next(forge: Forge) -> None:
    run = forge.launch(STAY)
    ranks = pids(forge.mesh(run, "stay"))
    end_controller(forge, run)
    end(ranks[1])
    final = forge.until_ended(run)
    assert (final["state"], final["exit_code"]) == ("failed", 137)
    [mesh] = final["meshes"]
    assert (mesh["failure"]["rank"], mesh["failure"]["message"]) == (1, "rank 1 on local was killed by SIGKILL")
    records(forge, run)


def test_a_restart_that_no_controller_saw_begins_with_the_next(forge: Forge) -> None:
    run = forge.launch(STAY.replace("preload", "restart: {max: 1}, preload"))
    ranks = pids(forge.mesh(run, "stay"))
    end_controller(forge, run)
    end(ranks[0])
    mesh = forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
    assert not set(pids(mesh)) & set(ranks)
    assert mesh["restarts"] == 1


def test_twenty_commands_at_once_bring_up_one_controller(forge: Forge) -> None:
    run = forge.launch(STAY)
    before = pids(forge.mesh(run, "stay"))
    end_controller(forge, run)
    asking = [forge.start("status", "--json") for _ in range(20)]
    answers = [process.communicate(timeout=90) for process in asking]
    assert [p.returncode for p in asking] == [0] * 20, answers
    documents = [json.loads(out)["runs"][0] for out, _ in answers]
    assert {d["controller"]["pid"] for d in documents} == {controller_of(forge, run)}
    assert all(pids(d["meshes"][0]) == before for d in documents)
    assert births(forge, run) == 2


def test_commands_do_not_disturb_a_launch(forge: Forge) -> None:
    """A run that has no controller yet is not one that has lost it."""
    for _ in range(4):
        launch = forge.start("launch", "-d", forge.spec(STAY))
        until(lambda: [r for r in forge.runs() if (forge.run_dir(r) / "plan.json").exists()], "the plan")
        asking = [forge.start("status") for _ in range(3)]
        out, err = launch.communicate(timeout=90)
        assert launch.returncode == 0, err
        assert [p.wait(timeout=90) for p in asking] == [0] * 3
        assert births(forge, out.strip()) == 1
        forge.ok("shutdown", "--all", "--force")
        for name in forge.runs():
            if (forge.run_dir(name) / "plan.json").exists():
                (forge.run_dir(name) / "plan.json").rename(forge.run_dir(name) / "plan.seen")


def later_generation(forge: Forge, run: str, than: int) -> int:
    """The generation of the mesh `fall` once it is a later one."""
    mesh = forge.until_mesh(run, "fall", lambda m: m["generation"] > than)
    return int(mesh["generation"])


def test_the_controller_dies_while_ranks_fall_and_restart(forge: Forge) -> None:
    run = forge.launch(FALL)
    chance = random.Random(1)
    generation = 0
    for _ in range(8):
        generation = later_generation(forge, run, generation)
        launch = forge.start("status", "--json")  # so that the kill comes at any moment of a command, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.wait(chance.uniform(0, 0.1))
        end_controller(forge, run)
        launch.communicate(timeout=60)
        assert forge.mesh(run, "fall")["generation"] >= generation
    assert len(forge.roles(run)["agent"]) == 1
    forge.ok("shutdown", "fall", "--force")
    assert forge.document(run)["state"] == "stopped"
    records(forge, run)


def has_no_rank(forge: Forge, run: str) -> bool:
    return not forge.roles(run)["rank"]


def test_the_controller_dies_while_it_ends_its_run(forge: Forge) -> None:
    for name in ("a", "b", "c", "d"):
        run = forge.launch(STAY, "--name", name)
        controller = controller_of(forge, run)
        shutdown = forge.start("shutdown", "--run", run)
        until(functools.partial(has_no_rank, forge, run), "the end of its ranks")
        end(controller)
        out, err = shutdown.communicate(timeout=60)
        assert shutdown.returncode == 0, err
        assert f"{run}/stay stopped" in out
        assert forge.document(run)["state"] == "stopped"
        until_empty(run)


@pytest.mark.parametrize("spec", [BRIEF, REVIVED], ids=["plain", "restart"])
def test_without_a_command_agents_fence_themselves_and_nothing_is_revived(forge: Forge, spec: str) -> None:
    run = forge.launch(spec)
    ranks = pids(forge.mesh(run, "stay"))
    end_controller(forge, run)
    assert all(map(lives, ranks))
    until_empty(run)
    first = forge.document(run)
    assert first["state"] in ("stopping", "lost")
    final = forge.until_ended(run)
    assert (final["state"], final["exit_code"]) == ("lost", 69)
    [mesh] = final["meshes"]
    assert (mesh["state"], mesh["generation"], mesh["restarts"]) == ("lost", 0, 0)
    assert [r["state"] for r in mesh["ranks"]] == ["lost", "lost"]
    assert "fenced" in mesh["reason"]


def test_a_command_within_the_lease_renews_it(forge: Forge) -> None:
    run = forge.launch(BRIEF.replace("1s", "4s"))
    before = pids(forge.mesh(run, "stay"))
    agent = agent_of(forge, run)
    end_controller(forge, run)
    forge.status()
    fenced = os.pidfd_open(agent)
    assert not select.select([fenced], [], [], 6)[0], "the agent fenced itself though it has a controller"
    os.close(fenced)
    assert pids(forge.mesh(run, "stay")) == before


@pytest.mark.parametrize("spec", [BRIEF, REVIVED], ids=["plain", "restart"])
def test_a_controller_stopped_for_longer_than_the_lease(forge: Forge, spec: str) -> None:
    run = forge.launch(spec)
    ranks = pids(forge.mesh(run, "stay"))
    controller, agent = controller_of(forge, run), agent_of(forge, run)
    os.kill(controller, signal.SIGSTOP)
    until(lambda: not any(map(lives, [agent, *ranks])), "the agent to fence itself")
    os.kill(controller, signal.SIGCONT)
    if spec == BRIEF:
        final = forge.until_ended(run)
        assert (final["state"], final["meshes"][0]["state"]) == ("lost", "lost")
        assert "fenced" in final["meshes"][0]["reason"]
    else:  # it lives, so it does what `restart:` says
        mesh = forge.until_mesh(run, "stay", lambda m: m["generation"] == 1 and m["state"] == "running")
        assert not set(pids(mesh)) & set(ranks)
        assert agent_of(forge, run) != agent
        assert controller_of(forge, run) == controller


def test_a_stopped_controller_is_said_to_be_and_may_be_killed(forge: Forge) -> None:
    run = forge.launch(STAY)
    before = pids(forge.mesh(run, "stay"))
    os.kill(controller_of(forge, run), signal.SIGSTOP)
    result = forge.run("status")
    assert result.returncode == 124
    assert f"the controller of run {run} does not answer" in result.stderr
    end_controller(forge, run)
    assert pids(forge.mesh(run, "stay")) == before


# ---------------------------------------------------------------- damaged files


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def cut_between_lines(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:3])


def emptied(data: bytes) -> bytes:
    return b""


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def holed(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], b"\0" * 50 + b"\n", *lines[4:]])


def flipped(data: bytes) -> bytes:
    chance = random.Random(7)
    changed = bytearray(data)
    for _ in range(8):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def hostile(data: bytes) -> bytes:
    return data + b'{"time": "NaN", "type": "Born"}\n' + b"[" * 100_000 + b"\n\xff\xfe\n"


damages = pytest.mark.parametrize("damage", [cut, cut_between_lines, emptied, zeroed, holed, flipped, hostile])


def spoil(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


@damages
def test_a_damaged_journal_is_rebuilt_from_the_living_agents(forge: Forge, damage: Callable[[bytes], bytes]) -> None:
    run = forge.launch(STAY)
    before = forge.mesh(run, "stay")
    end_controller(forge, run)
    spoil(forge.run_dir(run) / "events.jsonl", damage)
    after = forge.until_state(run, "stay", "running")
    assert pids(after) == pids(before)
    assert [r["log"] for r in after["ranks"]] == [r["log"] for r in before["ranks"]]
    kept = list(forge.run_dir(run).glob("events.jsonl.corrupt-*"))
    assert len(kept) == (0 if damage is cut_between_lines else 1)
    end_controller(forge, run)  # what was mended is good for one more
    assert pids(forge.until_state(run, "stay", "running")) == pids(before)
    assert "2 × SIGTERM" in forge.ok("shutdown", "stay")
    assert forge.document(run)["state"] == "stopped"


@damages
def test_a_damaged_journal_after_restarts(forge: Forge, damage: Callable[[bytes], bytes]) -> None:
    run = forge.launch(STAY.replace("preload", "restart: {max: 3}, preload"))
    for generation in (1, 2):
        end(pids(forge.mesh(run, "stay"))[0])
        until_generation(forge, run, "stay", generation)
    before = forge.mesh(run, "stay")
    end_controller(forge, run)
    spoil(forge.run_dir(run) / "events.jsonl", damage)
    after = forge.until_state(run, "stay", "running")
    assert (after["generation"], pids(after)) == (2, pids(before))
    assert after["restarts"] == 2
    end(pids(after)[1])
    forge.until_mesh(run, "stay", lambda m: m["generation"] == 3 and m["state"] == "running")


@damages
def test_a_damaged_journal_without_agents_means_lost(forge: Forge, damage: Callable[[bytes], bytes]) -> None:
    run = forge.launch(BRIEF)
    end_controller(forge, run)
    until_empty(run)
    spoil(forge.run_dir(run) / "events.jsonl", damage)
    assert forge.until_ended(run)["state"] == "lost"


@damages
def test_a_damaged_final_state_is_made_again(forge: Forge, damage: Callable[[bytes], bytes]) -> None:
    run = forge.launch(STAY)
    forge.ok("shutdown", "--all")
    before = forge.document(run)
    spoil(forge.run_dir(run) / "status.json", damage)
    after = forge.until_ended(run)
    assert (after["state"], after["meshes"]) == (before["state"], before["meshes"])
    until_empty(run)


@pytest.mark.parametrize("damage", [cut, emptied, zeroed, hostile])
def test_a_damaged_plan_is_named_and_others_are_shown(forge: Forge, damage: Callable[[bytes], bytes]) -> None:
    lost = forge.launch(BRIEF, "--name", "lost")
    end_controller(forge, lost)
    plan = forge.run_dir(lost) / "plan.json"
    whole = plan.read_bytes()
    spoil(plan, damage)
    other = forge.launch(STAY, "--name", "other")
    shown = forge.run("status", "--json")
    assert shown.returncode == 70
    assert [r["run"] for r in json.loads(shown.stdout)["runs"]] == [other]
    assert f"forgectl: the plan of run {lost} cannot be read: {plan}" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "here: rank 1" in forge.ok("logs", "stay")
    assert f"{other}/stay stopped" in forge.run("shutdown", "--all").stdout
    until_empty(lost)
    plan.write_bytes(whole)
    assert forge.until_ended(lost)["state"] == "lost"


def test_folders_that_are_no_runs_disturb_nobody(forge: Forge) -> None:
    """What a launch that was killed while it made its folder has left."""
    run = forge.launch(STAY)
    for name, files in {"a-0000": (), "b-0000": ("spec.yaml",), "c-0000": (".plan.json.77",)}.items():
        folder = forge.run_dir(name)
        folder.mkdir(mode=0o700)
        for file in files:
            (folder / file).write_bytes(b"{")
    (forge.home / "runs" / "file").write_bytes(b"")
    assert [r["run"] for r in forge.status("-a")] == [run]
    forge.ok("logs", "stay")
    forge.ok("shutdown", "--all")
    (forge.home / "runs" / "file").unlink()


# ---------------------------------------------------------------- another boot


def test_after_a_reboot_ranks_are_lost_and_their_pids_are_strangers(forge: Forge) -> None:
    run = forge.launch(REVIVED)
    for role in ("controller", "agent"):
        for pid in forge.roles(run)[role]:
            end(pid)
    until_empty(run)
    strangers = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]

    def rebooted(record: Record) -> Record:
        if isinstance(record, AgentUp):
            return dataclasses.replace(record, boot_id="00000000-another-boot", pid=strangers[0].pid)
        if isinstance(record, Happened) and isinstance(what := record.what, RankStarted):
            return dataclasses.replace(record, what=dataclasses.replace(what, pid=strangers[1 + what.rank].pid))
        return record

    try:
        rewrite_journal(forge, run, rebooted)
        final = forge.until_ended(run)
        assert (final["state"], final["meshes"][0]["generation"]) == ("lost", 0)
        assert "host local was rebooted" in final["meshes"][0]["reason"]
        assert [s.poll() for s in strangers] == [None] * 3
        assert not processes_of(run)
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()
