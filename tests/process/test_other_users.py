"""What other users can put in the way of a run's owner: runs, folders, links and sockets of theirs. None is used."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.boot import BOOT
from forgectl.cli.app import app
from forgectl.cli.completion import COMPLETE, LINE
from forgectl.errors import NotOursError
from forgectl.wire.unix_sockets import check_private, dial, private_folder
from tests.conftest import PROGRAMS, Forge, until
from tests.process.actor_scripts import to_play
from tests.process.other_user import NOBODY, as_another_user, listening

STAY = "name: stay\nscripts: {stay: {run: PROGRAMS/stay.py, preload: []}}"
REFUSED = 77


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of nobody's that all may write, on a way that all may go."""
    with tempfile.TemporaryDirectory(prefix="forge-") as name:
        folder = Path(name) / "shared"
        Path(name).chmod(0o755)
        folder.mkdir()
        folder.chmod(0o777)
        os.chown(folder, NOBODY, NOBODY)
        yield folder


@contextlib.contextmanager
def at(forge: Forge, home: Path) -> Iterator[None]:
    """Have commands take `home` for that of the user."""
    own = forge.home
    forge.home, forge.env["FORGECTL_HOME"] = home, str(home)
    yield
    forge.home, forge.env["FORGECTL_HOME"] = own, str(own)


def plant(forge: Forge, home: Path, marker: Path) -> str:
    """Have another user put a run into `home`, of the plan of a real one, whose python makes `marker`; its id."""
    run = forge.launch(STAY)
    plan = (forge.run_dir(run) / "plan.json").read_text()
    forge.ok("shutdown", "--run", run)
    program = f'#!/bin/sh\ntouch {marker}\nexec {sys.executable} "$@"\n'
    evil = home / "python"
    as_another_user(
        "plant",
        home,
        told={
            "python": program,
            "runs/stay-dead/plan.json": plan.replace(sys.executable, str(evil)),
            "runs/stay-dead/logs/.keep": "",
            "runs/stay-dead/agents/.keep": "",
            "runs/stay-dead/sockets": {"link": str(home / "sockets" / "stay-dead")},
            "sockets/.keep": "",
        },
    )
    return "stay-dead"


READ = {
    "status": (["status"], ["ps", "-a", "--json"], ["status", "stay"], ["status", "-w", "--json"]),
    "logs": (["logs"], ["logs", "stay"], ["logs", "RUN/stay"], ["logs", "-f", "stay/0"]),
    "why": (["why"], ["why", "stay"], ["why", "RUN/stay/0", "--json"]),
    "events": (["events"], ["events", "RUN", "-f"], ["events", "stay", "--json"]),
    "stack": (["stack"], ["stack", "stay/0", "--native"], ["stack", "RUN", "--json"]),
    "attach": (["attach"], ["attach", "RUN"]),
    "wait": (["wait"], ["wait", "stay", "--for", "ready"]),
    "call": (["call", "stay", "look"], ["call", "RUN/stay/0", "look"]),
    "restart": (["restart", "stay"], ["restart", "RUN"]),
    "shutdown": (["shutdown", "--all"], ["shutdown", "--run", "RUN"], ["down", "stay"], ["down"]),
    "prune": (["prune", "--keep", "0 runs"], ["prune", "--dry-run"]),
    "launch": (["up", "-d"], ["launch", "-d"]),
    "run": (["run", "-d", "PROGRAMS/stay.py"],),
}
"""Every command that reads of runs, or begins one, in the folder of a spec."""
READ_NOTHING = {"plan", "check", "config", "schema", "init", "completion", "help", "version"}


def commands(forge: Forge, run: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command that reads of runs, tried; and a controller that is told to adopt one."""
    forge.spec(STAY, "forge.yaml")
    adopting = [sys.executable, BOOT, "controller", str(forge.run_dir(run)), "--adopt"]
    filled = [
        [word.replace("RUN", run).replace("PROGRAMS", str(PROGRAMS)) for word in words]
        for tried in READ.values()
        for words in tried
    ]
    tried = {" ".join(words): forge.run(*words) for words in filled}
    tried["--adopt"] = subprocess.run(
        adopting, env=forge.env, input="", capture_output=True, text=True, timeout=60, check=False
    )
    return tried


def test_every_command_is_tried_in_a_home_of_others() -> None:
    assert READ.keys() | READ_NOTHING == app.commands.keys()


def offered(forge: Forge, line: str) -> str:
    """What a shell is offered after a line."""
    return forge.ok(env={**forge.env, COMPLETE: "bash", LINE: line})


def test_a_shell_is_offered_nothing_of_a_run_that_another_user_planted(
    forge: Forge, shared: Path, tmp_path: Path
) -> None:
    home, marker = shared / "home", tmp_path / "started"
    run = plant(forge, home, marker)
    [own] = forge.runs()
    assert own in offered(forge, "forgectl logs st") and "stay" in offered(forge, f"forgectl logs {own}/")
    with at(forge, home):
        for line in ("status s", "logs st", f"logs {run}/", "call stay ", "shutdown --run s", f"logs {run} --gen"):
            assert "stay" not in offered(forge, f"forgectl {line}"), line
    assert not marker.exists()


def assert_all_refuse(forge: Forge, run: str, marker: Path, *, whose: str) -> None:
    for command, result in commands(forge, run).items():
        said = f"{command}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        assert result.returncode == (1 if command == "--adopt" else REFUSED), said
        assert whose in result.stderr, said
        assert "Traceback" not in result.stderr, said
        if command != "--adopt":
            assert "set FORGECTL_HOME to a folder of your own" in result.stderr, said
    assert not marker.exists()


def test_a_run_that_another_user_planted_is_not_adopted(forge: Forge, shared: Path, tmp_path: Path) -> None:
    """Where FORGECTL_HOME was to be in a folder of theirs, they made it first."""
    home, marker = shared / "home", tmp_path / "started"
    run = plant(forge, home, marker)
    with at(forge, home):
        assert_all_refuse(forge, run, marker, whose=f"belongs to nobody (uid {NOBODY})")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_what_others_planted_in_a_folder_that_they_may_write_is_not_used(
    forge: Forge, shared: Path, tmp_path: Path, mode: int
) -> None:
    """The folder is ours, but open: to all, to a group of others, or to all but for what others made (sticky)."""
    home, marker = shared / "home", tmp_path / "started"
    run = plant(forge, home, marker)
    os.chown(shared, 0, NOBODY)
    shared.chmod(mode)
    if mode != 0o1777:  # all below is taken for ours by owner and mode alone
        for path in (home, home / "runs", home / "sockets", home / "runs" / run):
            os.chown(path, 0, 0)
            path.chmod(0o700)
    whose = "belongs to nobody" if mode == 0o1777 else f"they may change {shared} (mode {mode:04o})"
    with at(forge, home):
        assert_all_refuse(forge, run, marker, whose=whose)


def test_a_link_of_another_user_is_not_followed(forge: Forge, shared: Path, tmp_path: Path) -> None:
    run = forge.launch(STAY)
    shared.chmod(0o1777)
    os.chown(shared, 0, 0)
    as_another_user("plant", shared, told={"home": {"link": str(forge.home)}})
    with at(forge, shared / "home"):
        assert_all_refuse(forge, run, tmp_path / "started", whose=f"{shared}/home, a link of nobody (uid {NOBODY})")
    forge.ok("shutdown", "--run", run)


def test_a_run_folder_of_another_user_hides_no_other_run(forge: Forge, tmp_path: Path) -> None:
    """How ever it came there: nothing is read of it, and the others are shown and ended."""
    marker = tmp_path / "started"
    run = forge.launch(STAY)
    theirs = forge.run_dir("stay-dead")
    shutil.copytree(forge.run_dir(run), theirs, symlinks=True)
    os.chown(theirs, NOBODY, NOBODY)
    status = forge.run("status", "--json")
    assert status.returncode == REFUSED
    assert [r["run"] for r in json.loads(status.stdout)["runs"]] == [run]
    assert f"{theirs} must be a folder of yours with mode 0700: it belongs to nobody" in status.stderr
    for command in (["status", "stay-dead/stay"], ["logs", "stay-dead/stay"], ["shutdown", "--run", "stay-dead"]):
        result = forge.run(*command)
        assert (result.returncode, str(theirs) in result.stderr) == (REFUSED, True), command
    assert "stay/0" in forge.ok("status", "stay")
    everything = forge.run("shutdown", "--all")
    assert everything.returncode == REFUSED
    assert "1 × SIGTERM" in everything.stdout
    assert not marker.exists()
    shutil.rmtree(theirs)


def reboot(forge: Forge, run: str) -> None:
    """End every process of a run, as a machine that starts anew does."""
    for pid in [pid for pids in forge.roles(run).values() for pid in pids]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until(lambda: not any(forge.roles(run).values()), "the end of the run's processes")


ASKED = (["status"], ["status", "stay", "-v"], ["logs", "stay"], ["call", "stay", "look"], ["shutdown", "--all"])


def test_nobody_else_is_asked_after_a_reboot_that_emptied_the_folder_of_sockets(forge: Forge, shared: Path) -> None:
    """Where sockets are in a folder like /tmp: another user may be the first to make the folder there."""
    os.chown(shared, 0, 0)
    shared.chmod(0o1777)
    run = forge.launch(STAY)
    sockets = forge.run_dir(run) / "sockets"
    reboot(forge, run)
    shutil.rmtree(sockets.readlink())
    sockets.unlink()
    sockets.symlink_to(shared / "forgectl-0" / run)
    as_another_user("plant", shared, told={f"forgectl-0/{run}/.keep": ""})
    names = [shared / "forgectl-0" / run / name for name in ("control", "driver", "agent-0")]
    with listening(*names) as told:
        for command in ASKED:
            result = forge.run(*command)
            assert result.returncode == REFUSED, (command, result)
            assert f"belongs to nobody (uid {NOBODY})" in result.stderr
    assert told == [0]
    shutil.rmtree(shared / "forgectl-0")
    assert forge.until_ended(run)["state"] == "lost"  # nothing is left to adopt


def test_a_listener_of_another_user_is_told_nothing_wherever_it_listens(forge: Forge, shared: Path) -> None:
    """Two locks: here its sockets get into a folder of ours, which it could not do by itself."""
    run = forge.launch(STAY)
    sockets = (forge.run_dir(run) / "sockets").readlink()
    reboot(forge, run)
    names = ("control", "driver", "agent-0")
    with listening(*(shared / name for name in names)) as told:
        for name in names:
            (sockets / name).unlink(missing_ok=True)
            (shared / name).rename(sockets / name)
        for command in ASKED:
            result = forge.run(*command)
            assert result.returncode == REFUSED, (command, result)
            assert f"a process of nobody (uid {NOBODY}) listens at {sockets}/control" in result.stderr
        with pytest.raises(NotOursError, match="not one of yours"):
            dial(sockets / "agent-0", 5.0)
    assert told == [0]
    for name in names:
        (sockets / name).unlink()
    assert forge.until_ended(run)["state"] == "lost"


def test_a_script_of_ones_own_begins_no_run_in_a_folder_of_others(forge: Forge, shared: Path) -> None:
    with at(forge, shared / "home"):
        script = forge.python(*to_play(forge, "play_privately.py begin"))
        _, err = script.communicate(timeout=60)
    assert script.returncode == 1
    assert f"NotOursError: {shared}/home/runs is not safe from others: {shared} belongs to nobody" in err
    assert list(shared.iterdir()) == []


def test_ordinary_homes_are_taken(tmp_path: Path) -> None:
    """Sticky folders that all may write, a user's own group, our own links, and what is not there yet."""
    if os.getuid() != 0:
        pytest.fail("to give files away takes root")
    sticky, own_group = tmp_path / "sticky", tmp_path / "own"
    for folder, mode in ((sticky, 0o1777), (own_group, 0o775)):
        folder.mkdir()
        folder.chmod(mode)
        assert private_folder(folder / "a" / "b") == folder / "a" / "b"
        assert (folder / "a").stat().st_mode & 0o777 == 0o700
        check_private(folder / "not" / "there")
    (tmp_path / "link").symlink_to(own_group / "a")
    check_private(tmp_path / "link" / "b")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(NotOursError, match="links"):
        check_private(tmp_path / "round" / "b")
    os.chown(own_group, 0, NOBODY)
    with pytest.raises(NotOursError, match="they may change"):
        check_private(own_group / "a")
