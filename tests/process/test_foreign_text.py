"""Text from elsewhere acts on no terminal, wherever a command shows it: in a run's status, and in what a host sends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from typing import Any

from forgectl.controller.run_dir import RunDir
from forgectl.model.status import RunStatus
from forgectl.wire.codec import from_json
from tests.conftest import Forge, until
from tests.process.test_hostile_hosts import STAY, Hosts, exited, hosts  # noqa: F401  (a fixture)

EVIL = {
    "a title without BEL": "\x1b]0;owned",
    "a clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "a cleared screen": "\x1b[2J\x1b[H",
    "C1": "\x9b2J\x9d0;owned\x9c",
    "a split one": "x" * 40 + "\x1b" + "[2J",
    "rewritten": "a\rb\x08c\x7f",
    "markup": "[red]owned[/red][/]",
    "bidi": "\u202eowned\u2066",
}
OURS = {"started_at", "ended_at", "since", "last_seen", "state", "kind"}
"""Of these texts it is known what they may be; a final state with others is none."""
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def spoilt(value: Any, evil: str) -> Any:
    """A document with `evil` at the end of every text in it but for `OURS`."""
    if isinstance(value, dict):
        return {k: v if k in OURS else spoilt(v, evil) for k, v in value.items()}
    if isinstance(value, list):
        return [spoilt(v, evil) for v in value]
    return value + evil if isinstance(value, str) else value


def on_a_terminal(forge: Forge, *arguments: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    env = {**forge.env, "TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(
        forge.argv(*arguments), cwd=forge.folder, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def assert_harmless(text: str) -> None:
    acting = [c for c in STYLE.sub("", text) if not (c.isprintable() or c == "\n")]
    assert not acting, text


def test_no_text_of_a_run_acts_on_a_terminal(forge: Forge) -> None:
    """Of one that has ended, with a failure: what it left is all that commands know of it."""
    forge.run("launch", forge.spec("name: fall\nscripts: {fall: {run: PROGRAMS/fall.py, preload: []}}"))
    [document] = forge.status("-a")
    run = RunDir(forge.run_dir(document["run"]))
    for evil in EVIL.values():
        bad = spoilt(document, evil)
        bad["hosts"] += [{**bad["hosts"][0], "state": "lost"}]
        run.write_final(from_json(RunStatus, {**bad, "run": run.run, "state": "failed"}))
        for command in (["status", "-a"], ["status", "-a", "-v"]):
            shown = forge.ok(*command)
            assert_harmless(shown)
            assert "failed" in shown
            assert_harmless(on_a_terminal(forge, *command))
        assert json.loads(forge.ok("status", "-a", "--json"))["runs"][0]["meshes"] == bad["meshes"]


def evil_frame(evil: str) -> dict[str, Any]:
    return {"file": f"a{evil}.py", "line": 1, "function": f"f{evil}"}


def test_no_text_of_a_host_acts_on_a_terminal(hosts: Hosts) -> None:  # noqa: F811
    """Tried while the run lives, and afterwards, by every command that shows such text, also as JSON."""
    forge, evil = hosts.forge, "".join(EVIL.values())
    seen = {
        "detail": evil,
        "threads": [{"name": f"Main{evil}", "frames": [evil_frame(evil)]}, {"name": evil, "frames": [], "task": True}],
        "groups": [{"name": "g", "description": evil, "ranks": [0, 1, 2, 3]}],
        "recorded": True,
        "collectives": [
            {"group": "g", "description": evil, "backend": evil, "sequence": 1, "operation": f"all_reduce{evil}",
             "shapes": [[1]], "dtypes": [evil], "pending": True, "age": 9.0}
        ],
    }  # fmt: skip
    hosts.be(
        "bad",
        change={"Stacks": {"meshes": {"stay": seen}}},
        after="Stats",
        events=[
            {"type": "Notice", "mesh": "stay", "message": f"a notice{evil}"},
            exited(exit_code=1, error=f"Boom: {evil}", traceback=f"a\n{evil}\nBoom: {evil}", log_tail=[evil, "x"]),
        ],
    )
    run = hosts.launch(STAY.replace("preload", "restart: {max: 1}, preload"))
    for command in (["stack", run], ["stack", run, "-v"], ["stack", run, "--json"]):
        shown = on_a_terminal(forge, *command)
        assert_harmless(shown)
        assert "all_reduce" in shown, shown
    forge.status("-v")  # asks for statistics, and so has the rest be sent
    until(lambda: forge.mesh(run, "stay")["notices"], "the notice")
    forge.until_mesh(run, "stay", lambda m: m["generation"] == 1)
    reading = (
        *(["status", "-a", "-v"], ["status", "-a", "--json"], ["status", f"{run}/stay"], ["logs", run, "-n", "5"]),
        *(["why", run], ["why", run, "--json"], ["events", run], ["events", run, "--json"]),
    )
    for command in reading:
        assert_harmless(on_a_terminal(forge, *command))
    forge.ok("shutdown", "--run", run)
    for command in reading:
        assert_harmless(on_a_terminal(forge, *command))
    [incident] = (forge.run_dir(run) / "incidents").iterdir()
    assert_harmless(incident.read_text())
    assert "Boom" in forge.ok("why", run)
    events = forge.ok("events", run, "--json")  # elsewhere what comes before a carriage return is not shown
    assert "Boom" in events and "a notice" in events


def test_errors_repeat_no_escapes_in_pipes_either(forge: Forge) -> None:
    for words in (["logs", "\x1b]0;owned"], ["launch", "\x1b[2J.yaml"], ["call", "a\x9b2J", "b"]):
        result = forge.run(*words)
        assert result.returncode != 0
        assert_harmless(result.stderr)
