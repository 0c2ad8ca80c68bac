"""Actors that fail to start, die, or lose the script that launched them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time

import pytest

from forgectl.wire.listener import LOOK_SECONDS
from tests.conftest import Forge, listening_ports, processes_of, processes_with, until
from tests.process.actor_scripts import background, ended, play, the_run, to_play
from tests.process.deaths import agent_of, controller_of, end

# ---------------------------------------------------------------- a mesh that does not start


def test_a_constructor_that_raises(forge: Forge) -> None:
    play(forge, "play_faults.py a_constructor_that_raises")
    [mesh] = [m for m in forge.document(the_run(forge))["meshes"] if m["mesh"] == "bad"]
    assert mesh["state"] == "stopped"


def test_a_setup_that_raises_or_dies(forge: Forge) -> None:
    play(forge, "play_faults.py a_setup_that_raises_or_dies")
    found = {m["mesh"]: m for m in forge.document(the_run(forge))["meshes"]}
    assert {n: m["state"] for n, m in found.items()} == {"badsetup": "failed", "deadsetup": "failed"}
    assert "its constructor or setup raised LookupError: rank" in found["badsetup"]["reason"]
    assert "rank 1 on local exited with code 3" in found["deadsetup"]["reason"]


def test_arguments_that_cannot_be_sent(forge: Forge) -> None:
    play(forge, "play_faults.py arguments_that_cannot_be_sent")


# ---------------------------------------------------------------- a rank dies


@pytest.mark.parametrize(
    ("how", "number", "code", "text"),
    [
        ("kill", 9, None, "killed by SIGKILL"),
        ("segv", 11, None, "killed by SIGSEGV"),
        ("_exit", None, 7, "exited with code 7"),
        ("SystemExit", None, 9, "exited with code 9"),
        ("sys.exit", None, 1, "exited with code 1"),
        ("KeyboardInterrupt", None, 130, "KeyboardInterrupt"),
        ("Refusal", None, 1, "Refusal"),
    ],
)
def test_all_who_wait_are_told_how_a_rank_died(
    forge: Forge, how: str, number: int | None, code: int | None, text: str
) -> None:
    last = {"KeyboardInterrupt": text, "Refusal": text, "segv": "File "}.get(how, "last words of 1")  # or a traceback
    words = shlex.join([how, str(number), str(code), text, last])
    play(forge, f"play_faults.py all_who_wait_are_told_how_a_rank_died {words}")


def test_a_plain_endpoint_that_exits_ends_its_rank(forge: Forge) -> None:
    play(forge, "play_faults.py a_plain_endpoint_that_exits_ends_its_rank")


def test_a_rank_killed_from_outside_while_its_thread_is_held(forge: Forge) -> None:
    play(forge, "play_faults.py a_rank_killed_from_outside_while_its_thread_is_held")


def test_a_broadcast_may_kill(forge: Forge) -> None:
    play(forge, "play_faults.py a_broadcast_may_kill")


def test_a_restart_makes_the_same_actors_again(forge: Forge) -> None:
    """Later calls wait for it, those in flight are not repeated, and after the last restart it is over."""
    play(forge, "play_faults.py a_restart_makes_the_same_actors_again")
    [mesh] = forge.document(the_run(forge))["meshes"]
    assert (mesh["state"], mesh["restarts"]) == ("failed", 2)


def test_a_setup_that_fails_after_a_restart_is_the_end(forge: Forge) -> None:
    play(forge, "play_faults.py a_setup_that_fails_after_a_restart_is_the_end")


def test_a_shutdown_while_it_restarts(forge: Forge) -> None:
    play(forge, "play_faults.py a_shutdown_while_it_restarts")


# ---------------------------------------------------------------- the script ends

BY_ITSELF = {
    "returns": 0,
    "raises": 1,
    "sys.exit": 5,
    "while a call waits": 0,
    "after a death": 0,
    "after a shutdown": 0,
}


@pytest.mark.parametrize("how", BY_ITSELF)
def test_a_script_that_ends_by_itself_leaves_nothing(forge: Forge, how: str) -> None:
    result = play(forge, f"play_faults.py end {how!r}", code=BY_ITSELF[how])
    assert ("of the script" in result.stderr) == (how == "raises")
    document = forge.document(the_run(forge))
    assert document["stopped_by"] == "the end of its script"
    assert document["state"] == ("failed" if how == "after a death" else "stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_script_that_is_ended_leaves_nothing(forge: Forge, number: signal.Signals) -> None:
    script = background(forge, "play_faults.py hang")
    run = the_run(forge)
    [document] = forge.status()
    assert (document["run"], document["state"], document["name"]) == (run, "running", "play_faults")
    [mesh] = document["meshes"]
    assert (mesh["mesh"], mesh["kind"], mesh["state"], mesh["ready"]) == ("pair", "actor", "ready", 2)
    row = forge.ok("status").splitlines()[1]
    assert row.split()[:5] == [run, "pair", "actor", "ready", "2/2"]
    script.send_signal(number)
    script.communicate(timeout=60)
    assert script.returncode in (-number, 1, 130)
    document = ended(forge, run)
    assert document["state"] in ("stopped", "failed")
    assert forge.status() == []


def test_ctrl_c_reaches_the_whole_process_group(forge: Forge) -> None:
    script = background(forge, "play_faults.py hang")
    os.killpg(script.pid, signal.SIGINT)
    _, stderr = script.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert ended(forge, the_run(forge))["state"] == "stopped"


def test_two_scripts_at_once(forge: Forge) -> None:
    one = background(forge, "play_faults.py call_once one")
    two = background(forge, "play_faults.py call_once two")
    assert [r["state"] for r in forge.status()] == ["running"] * 2
    assert sorted(r["name"] for r in forge.status()) == ["play_faults", "play_faults-2"]
    (forge.folder / "two").touch()
    assert two.wait(60) == 0
    [left] = forge.status()
    assert left["name"] == "play_faults"
    (forge.folder / "one").touch()
    assert one.wait(60) == 0
    assert forge.status() == []


def test_only_the_store_listens(forge: Forge) -> None:
    script = background(forge, "play_faults.py only_the_store_listens")
    assert script.stdout
    ports = {int(script.stdout.readline()) for _ in range(2)}
    every = set(processes_with(f"FORGECTL_HOME={forge.home}"))
    assert script.pid in every
    assert listening_ports(every) == {("127.0.0.1", port) for port in ports}


def test_a_run_that_is_shut_down_under_its_script(forge: Forge) -> None:
    """The script lives on, is told, and leaves no socket when it ends much later."""
    script = background(forge, "play_faults.py a_run_that_is_shut_down_under_its_script")
    run = the_run(forge)
    forge.ok("shutdown", "--run", run)
    socket = forge.home / "sockets" / run / "driver"
    begun = time.monotonic()
    until(lambda: socket.exists() or time.monotonic() > begun + 1.5 * LOOK_SECONDS, "a socket, or none")
    assert not socket.exists()
    (forge.folder / "end").touch()
    _, stderr = script.communicate(timeout=60)
    assert (script.returncode, stderr) == (0, "")


def test_a_fork_of_the_script_does_not_end_its_run(forge: Forge) -> None:
    play(forge, "play_faults.py a_fork_of_the_script_does_not_end_its_run")


# ---------------------------------------------------------------- parts of forgectl die


class Caller:
    """A script that makes a call for each line that it is told."""

    def __init__(self, forge: Forge) -> None:
        self.process = forge.python(*to_play(forge, "play_faults.py call_when_told"), stdin=subprocess.PIPE)
        assert self.said() == "up"

    def said(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def call(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("call\n")
        self.process.stdin.flush()
        return self.said()

    def close(self) -> None:
        _, stderr = self.process.communicate(timeout=60)
        assert (self.process.returncode, stderr) == (0, "")


def test_calls_go_on_without_a_controller_and_a_later_death_is_noticed(forge: Forge) -> None:
    caller = Caller(forge)
    run = the_run(forge)
    [pair] = forge.document(run)["meshes"]
    assert caller.call() == "[1, 1]"
    for count in (2, 3):
        old = controller_of(forge, run)
        end(old)
        assert caller.call() == f"[{count}, {count}]"
        assert controller_of(forge, run) != old
    [after] = forge.document(run)["meshes"]
    assert [r["pid"] for r in after["ranks"]] == [r["pid"] for r in pair["ranks"]]
    assert (after["state"], after["generation"]) == ("ready", 0)
    end(controller_of(forge, run))
    end(after["ranks"][1]["pid"])
    until(lambda: caller.call() == "1 9", "the news of the death")
    caller.close()
    assert ended(forge, run)["stopped_by"] == "the end of its script"


def test_an_agent_that_is_killed_takes_its_actors_along(forge: Forge) -> None:
    caller = Caller(forge)
    run = the_run(forge)
    assert caller.call() == "[1, 1]"
    end(agent_of(forge, run))
    until(lambda: not re.match(r"\[", caller.call()), "the news of the death")
    caller.close()
    ended(forge, run)


def test_sockets_for_messages_are_gone_with_the_run(forge: Forge) -> None:
    from forgectl.controller.run_dir import RunDir

    script = background(forge, "play_faults.py hang")
    folder = RunDir(forge.run_dir(the_run(forge))).messages
    assert list(folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    script.kill()
    ended(forge, the_run(forge))
    until(lambda: not folder.exists(), "the end of its sockets")
    assert processes_of(the_run(forge)) == {}
