"""Commands of `on:`, good and bad ones: each event runs its command once, no run is harmed, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from forgectl.controller.hook import MOST_OUTPUT
from tests.conftest import Forge, processes_of, until
from tests.process.deaths import controller_of, end, records
from tests.process.outputs import events_of

FAILS = "import os, sys; print('about to fail'); sys.exit(7 + int(os.environ['TORCHELASTIC_RESTART_COUNT']))"
TOKEN = "ghp_" + "a1B2c3D4" * 5


def given(forge: Forge, name: str) -> list[dict[str, Any]]:
    """The events that a command has appended to a file, in their order."""
    found = [json.loads(line) for line in (forge.folder / name).read_text().splitlines()]
    return sorted(found, key=lambda event: event["seq"])


def hook_failures(forge: Forge, run: str) -> list[str]:
    """What was wrong with the commands of a run."""
    failed = [event["message"] for event in events_of(forge, run) if event["event"] == "hook_failed"]
    return [re.sub(r"^`on: \w+` for event \d+: ", "", message) for message in failed]


def log_of_hooks(forge: Forge, run: str) -> str:
    return (forge.run_dir(run) / "hooks.log").read_text()


def test_each_event_runs_its_command_once(forge: Forge) -> None:
    forge.write("crash.py", FAILS)
    forge.env |= {"WEBHOOK": "https://hooks.test/x", "SOME_API_KEY": TOKEN}
    folder = forge.folder / "specs"
    folder.mkdir()
    text = f"""
workdir: ..
env: {{NOT_A_NAME_OF_ONE: {TOKEN}}}
on:
  failed: cat >> ../failed; pwd; echo to $WEBHOOK about $FORGE_RUN_ID
  restarted: [tee, -a, ../restarted]
  ended: cat >> ../ended
  host_lost: cat >> ../lost
scripts:
  crash: {{run: crash.py, preload: [], restart: {{max: 2, backoff: 0}}}}
  other: {{run: PROGRAMS/stay.py, preload: []}}
"""
    spec = forge.spec(text, "specs/spec.yaml")
    result = forge.run("launch", spec, "--name", "r")
    assert result.returncode == 9
    [run] = forge.runs()
    [failed], restarted, [ended] = given(forge, "failed"), given(forge, "restarted"), given(forge, "ended")
    assert [(e["failure"]["generation"], e["failure"]["policy"]) for e in restarted] == [
        (0, "restart 1 of 2 at once"),
        (1, "restart 2 of 2 at once"),
    ]
    assert (failed["hook"], failed["mesh"], failed["name"], failed["run"]) == ("failed", "crash", "r", run)
    assert failed["failure"]["log_tail"] == ["about to fail"]
    assert failed["failure"]["policy"] == "gave up: restarted 2 of 2 times"
    assert (ended["state"], ended["exit_code"], ended["run_dir"]) == ("failed", 9, str(forge.run_dir(run)))
    assert not (forge.folder / "lost").exists()
    log = log_of_hooks(forge, run)
    assert f"\n{folder}\nto https://hooks.test/x about {run}\n" in log
    seqs = [e["seq"] for e in (*restarted, failed, ended)]
    assert [
        e["seq"] for e in events_of(forge, run) if e["event"] in ("mesh_restarted", "mesh_failed", "run_ended")
    ] == seqs
    assert hook_failures(forge, run) == []
    assert processes_of(run) == {}


def test_bad_commands_do_no_harm(forge: Forge) -> None:
    """Five runs of one command each at once: in each of them the run ends as without, and nothing is left."""
    forge.write("fine.py", "print('fine')")
    forge.write("daemon.py", DAEMON)
    commands = {
        "hangs": "trap '' TERM; echo before; sleep 1000",
        "fails": "echo it is broken >&2; exit 3",
        "missing": "[no-such-program, x]",
        "floods": "echo first; head -c 1000000000 /dev/zero; echo; echo last",
        "leaves": "python3 daemon.py; echo left",
    }
    launches = {}
    for name, command in commands.items():
        quoted = command if command.startswith("[") else json.dumps(command)
        seconds = 3 if name == "hangs" else 60
        text = f"on: {{ended: {quoted}, timeout: {seconds}s}}\nscripts: {{fine: {{run: fine.py, preload: []}}}}\n"
        launches[name] = forge.start("launch", forge.spec(text, f"{name}.yaml"), "--name", name)
    runs = {}
    for name, launch in launches.items():
        _, err = launch.communicate(timeout=120)
        assert launch.returncode == 0, (name, err)
        [runs[name]] = [run for run in forge.runs() if run.startswith(f"{name}-")]
        assert processes_of(runs[name]) == {}, name
        if name == "hangs":
            assert "waiting for the commands of `on:`, up to 3 s" in err
    assert {name: hook_failures(forge, run) for name, run in runs.items()} == {
        "hangs": ["was ended after 3 s"],
        "fails": ["exited with code 3"],
        "missing": ["cannot run no-such-program: No such file or directory"],
        "floods": [],
        "leaves": [],
    }
    logs = {name: log_of_hooks(forge, run) for name, run in runs.items()}
    assert "\nbefore\n== was ended after 3 s" in logs["hangs"]
    assert "\nit is broken\n== exited with code 3" in logs["fails"]
    assert len(logs["floods"]) < 3 * MOST_OUTPUT
    assert re.search(r"\nfirst\n\0+\n\[\d{9} bytes left out\]\n\0+\nlast\n== done", logs["floods"])
    assert re.search(r"\nleft\n== done after .* s; 2 left processes were ended\n", logs["leaves"])
    for pid in map(int, (forge.folder / "pids").read_text().split()):
        assert not Path(f"/proc/{pid}").exists()


DAEMON = """
import os, signal, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.environ.clear()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open("pids", "a") as file:
            file.write(f"{os.getpid()} ")
        signal.pause()
while len(open("pids").read().split()) < 2 if os.path.exists("pids") else True:
    time.sleep(0.01)
"""


def test_ctrl_c_twice_ends_a_command_that_hangs(forge: Forge) -> None:
    forge.write("fine.py", "print('fine')")
    spec = forge.spec(
        "on: {ended: 'touch begun; sleep 1000', timeout: 1h}\nscripts: {fine: {run: fine.py, preload: []}}"
    )
    launch = forge.start("launch", spec)
    until((forge.folder / "begun").exists, "the command")
    assert launch.stderr is not None
    launch.send_signal(signal.SIGINT)
    while "Ctrl-C again kills" not in launch.stderr.readline():
        pass
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=60)
    [run] = forge.runs()
    assert hook_failures(forge, run) == ["was ended with the run"]
    assert processes_of(run) == {}


def test_a_command_that_was_not_begun_is_begun_by_the_next_controller(forge: Forge) -> None:
    """Of five restarts at once four begin their commands, which wait; the controller dies, and none is run twice."""
    forge.write("crash.py", "import os, sys; sys.exit((6 - int(os.environ['TORCHELASTIC_RESTART_COUNT'])) % 7)")
    run = forge.launch(
        """
on: {restarted: 'cat >> told; while ! [ -e go ]; do sleep 0.02; done', timeout: 1m}
scripts:
  crash: {run: crash.py, preload: [], restart: {max: 9, backoff: 0}}
  stay: {run: PROGRAMS/stay.py, preload: []}
"""
    )
    told = forge.folder / "told"
    forge.until_mesh(run, "crash", lambda m: m["state"] == "succeeded")
    until(lambda: told.exists() and len(told.read_text().splitlines()) == 4, "four commands")
    end(controller_of(forge, run))
    forge.status()  # starts another one
    (forge.folder / "go").touch()
    until(lambda: len(told.read_text().splitlines()) == 6, "the other two")
    forge.ok("shutdown", "--run", run)
    restarts = [e["seq"] for e in events_of(forge, run) if e["event"] == "mesh_restarted"]
    assert [e["seq"] for e in given(forge, "told")] == restarts
    assert [type(r).__name__ for r in records(forge, run)].count("HookBegun") == 6
    assert processes_of(run) == {}
    assert os.path.exists(forge.run_dir(run) / "hooks.log")
