"""`forgectl status` of runs that fail, for programs, and as it watches."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Forge

STAY = "name: stay\nscripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"
WAIT = """import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
sys.exit(int(sys.argv[2]) if os.environ["RANK"] == "1" else 0)
"""


def waiting(forge: Forge, code: int, name: str = "wait") -> tuple[str, Path]:
    """A run whose rank 1 exits with `code` once the file is there; its id and the file."""
    forge.write("wait.py", WAIT)
    go = forge.folder / f"{name}.go"
    program = f"run: wait.py {go} {code}, procs: 2, preload: []"
    return forge.launch(f"name: {name}\nscripts: {{{name}: {{{program}}}}}"), go


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_failed_run_stays_visible_for_people(forge: Forge) -> None:
    run, go = waiting(forge, 3)
    go.touch()
    forge.until_ended(run)
    head, row = forge.ok("status").splitlines()
    assert "ENDED" in head.split()
    assert row.split()[:4] == [run, "wait", "script", "failed"]
    assert row.endswith("rank 1 on local exited with code 3")
    assert "exit 3 (root cause)" in forge.ok("status", "wait")
    assert [line.split()[0] for line in forge.ok("status", "-o", "wide").splitlines()] == ["RUN", run]


def test_a_run_that_failed_long_ago_is_only_mentioned(forge: Forge) -> None:
    run, go = waiting(forge, 3)
    go.touch()
    forge.until_ended(run)
    two_hours_ago = time.time() - 7200
    os.utime(forge.run_dir(run) / "status.json", (two_hours_ago, two_hours_ago))
    [line] = forge.ok("status").splitlines()
    assert f"the last one, {run}, failed" in line
    assert run in forge.ok("status", "-a")


def test_what_programs_read_is_of_living_runs_alone(forge: Forge) -> None:
    failed, go = waiting(forge, 3)
    go.touch()
    forge.until_ended(failed)
    run = forge.launch(STAY)
    assert [r["run"] for r in forge.status()] == [run]
    assert forge.ok("status", "-q") == forge.ok("status", "-o", "name") == f"{run}\n"
    assert forge.ok("status", "-aq").splitlines() == [failed, run]
    assert forge.ok("status", "stay", "-q") == f"{run}/stay\n"
    assert json.loads(forge.ok("status", "-o", "json"))["runs"][0]["run"] == run


@pytest.mark.parametrize("words", [["-q", "--json"], ["-o", "wide", "-q"], ["-o", "yaml"], ["-w", "-q"]])
def test_forms_that_do_not_go_together_are_refused(forge: Forge, words: list[str]) -> None:
    result = forge.run("status", *words)
    assert (result.returncode, result.stdout) == (64, "")


def test_the_spec_of_forgectl_run_is_a_file(forge: Forge) -> None:
    forge.write("hello.py", "print('hello')")
    assert forge.run("run", "hello.py").returncode == 0
    [run] = forge.status("-a")
    assert "hello.py" in Path(run["spec"]).read_text()


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 3)])
def test_watching_one_run_ends_with_it_and_its_code(forge: Forge, name: str, code: int) -> None:
    run, go = waiting(forge, code, name)
    watching = forge.start("status", "-w", name)
    assert first_line(watching).split()[0] == "RUN"
    assert first_line(watching).split()[:4] == [run, name, "script", "running"]
    go.touch()
    forge.until_ended(run)
    forge.launch(STAY.replace("stay: {", f"{name}: {{"))  # another mesh of that name is not followed
    out, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (code, "")
    rows = [line.split() for line in out.splitlines() if line.startswith(run)]
    assert rows[-1][3] == ("failed" if code else "succeeded")
    assert len({" ".join(row) for row in rows}) == len(rows)
    assert all(line.split()[0] in ("RUN", "RANK", run, f"{name}/0", f"{name}/1") for line in out.splitlines())


def test_watching_through_a_pipe_prints_changes_alone(forge: Forge) -> None:
    run = forge.launch(STAY)
    watching = forge.start("status", "-w")
    assert [first_line(watching).split()[0] for _ in range(2)] == ["RUN", run]
    other, go = waiting(forge, 0)
    while (row := first_line(watching).split())[0] != other or row[3] != "running":
        assert row[0] == other
    go.touch()
    while (row := first_line(watching).split())[3] != "succeeded":
        assert row[0] == other
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=60)
    assert (watching.returncode, out, err) == (0, "", "")


def test_a_watch_that_is_interrupted_before_the_end_of_its_run_says_so(forge: Forge) -> None:
    forge.launch(STAY)
    watching = forge.start("status", "-w", "stay", "--json")
    first_line(watching)
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert watching.returncode == 130


def test_the_removal_of_a_watched_run_is_an_error(forge: Forge) -> None:
    run = forge.launch(STAY)
    watching = forge.start("status", "-w", "stay")
    first_line(watching)
    forge.ok("shutdown", "--all")
    watching.communicate(timeout=60)
    ended = forge.run("status", "-w", f"{run}/stay")
    assert ended.returncode == forge.glance(run)["exit_code"]
    assert run in ended.stdout


def on_a_terminal(
    forge: Forge, term: str, *words: str, until_seen: str, then: int = signal.SIGINT, code: int = 0
) -> str:
    """What a command writes to a terminal until it ends with `code`; once `until_seen` is there, it is sent `then`."""
    ours, theirs = pty.openpty()
    env = {**forge.env, "TERM": term, "COLUMNS": "100", "LINES": "24"}
    with subprocess.Popen(
        forge.argv(*words), stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=forge.folder
    ) as p:
        os.close(theirs)
        out = b""
        with contextlib.suppress(OSError):  # the terminal ends with its last writer
            while chunk := os.read(ours, 65536):
                out += chunk
                if until_seen.encode() in out and p.poll() is None:
                    p.send_signal(then)
                    until_seen = "\0"
        os.close(ours)
    assert p.returncode == code
    return out.decode()


def test_a_dumb_terminal_gets_rows_and_no_escapes(forge: Forge) -> None:
    run = forge.launch(STAY)
    shown = on_a_terminal(forge, "dumb", "status", "-w", until_seen="running")
    assert run in shown
    assert "\x1b" not in shown


def test_a_capable_terminal_is_drawn_in_place_and_restored(forge: Forge) -> None:
    run, go = waiting(forge, 3)
    go.touch()
    forge.until_ended(run)
    shown = on_a_terminal(forge, "xterm", "status", "-w", "wait", until_seen="\0", code=3)
    drawn, _, after = shown.partition("\x1b[?1049l")
    assert drawn.count("\x1b[?1049h") == 1
    assert "exit 3 (root cause)" in drawn
    assert "exit 3 (root cause)" in after


def test_a_terminal_is_restored_after_a_sigterm(forge: Forge) -> None:
    forge.launch(STAY)
    shown = on_a_terminal(
        forge, "xterm", "status", "-w", "stay", until_seen="running", then=signal.SIGTERM, code=128 + signal.SIGTERM
    )
    assert shown.count("\x1b[?1049h") == shown.count("\x1b[?1049l") == 1
    assert shown.count("\x1b[?25h") >= 1
