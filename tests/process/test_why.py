"""`forgectl why` and `forgectl events`: of runs that live, that have ended, and whose controller is dead."""

from __future__ import annotations

import itertools
import json
import signal
from typing import Any

import pytest

from tests.conftest import Forge, until
from tests.process.deaths import controller_of, end
from tests.process.outputs import over

TOKEN = "hf_" + "a1B2c3D4" * 4
RAISES = f"""
import os, time
print('token {TOKEN}', flush=True)
if os.environ['RANK'] == '1':
    raise ValueError('x')
time.sleep(1000)
"""
RESTARTED = """
import os, signal, sys
if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
    sys.exit(7)
signal.pause()
"""


def why(forge: Forge, *of: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(forge.ok("why", *of, "--json"))
    assert found["schema_version"] == 1
    return found


def events(forge: Forge, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in forge.ok("events", *arguments, "--json").splitlines()]


def test_failures_of_every_kind_are_told(forge: Forge) -> None:
    """One run; all its meshes fail in ways of their own."""
    forge.write("imports.py", "import not_there")
    forge.write("raises.py", RAISES)
    forge.write("fine.py", "print('fine')")
    forge.write("says.py", "import sys; print('OSError: [Errno 98] Address already in use'); sys.exit(3)")
    document = over(
        forge,
        """
scripts:
  raises: {run: raises.py, procs: 4, preload: []}
  imports: {run: imports.py, procs: 2, preload: []}
  says: {run: says.py, preload: []}
  segv: {run: PROGRAMS/ways_to_end.py segfault, preload: [], restart: {max: 1}}
  late: {run: PROGRAMS/stay.py, preload: [], time_limit: 500ms}
  fine: {run: fine.py, preload: []}
""",
    )
    run = document["run"]
    found = why(forge)
    assert found["run"] == run, "it is the run that failed last"
    told = {m["mesh"]: m["failure"] for m in found["meshes"]}
    assert {mesh: f["kind"] for mesh, f in told.items()} == {
        "raises": "exception",
        "imports": "exception",
        "says": "exit",
        "segv": "signal",
        "late": "time_limit",
    }
    reasons = {m["mesh"]: m["failure"]["message"] for m in document["meshes"] if m["failure"]}
    assert {mesh: f["message"] for mesh, f in told.items()} == reasons, "the words of status"
    assert told["raises"]["traceback"].endswith("ValueError: x\n")
    assert told["raises"]["fell"] == [{"ranks": "0,2-3", "count": 3, "how": "ended by forgectl"}]
    assert told["segv"]["policy"] == "gave up: restarted 1 of 1 times"
    assert "install not_there" in told["imports"]["hint"]
    assert "ss -ltnp" in told["says"]["hint"]
    assert "native code" in told["segv"]["hint"]
    [earlier] = next(m["earlier"] for m in found["meshes"] if m["mesh"] == "segv")
    assert (earlier["generation"], earlier["policy"]) == (0, "restart 1 of 1 at once")

    one = why(forge, f"{run}/raises/2")
    assert [m["mesh"] for m in one["meshes"]] == ["raises"]
    assert one["ranks"].startswith("raises/2 on local was ended by SIGTERM: forgectl ended it")
    text = forge.ok("why", "raises")
    assert "raises failed: rank 1 on local exited with code 1: ValueError: x" in text
    assert "ranks 0,2-3 ended by forgectl" in text
    assert TOKEN not in text

    incidents = [json.loads(path.read_text()) for path in (forge.run_dir(run) / "incidents").iterdir()]
    assert len(incidents) == len(told) + 1, "one for each generation that failed"
    incident = next(i for i in incidents if i["mesh"] == "raises")
    assert incident["failure"] == told["raises"], "it has the last word"
    states = {rank["rank"]: rank["state"] for rank in incident["ranks"]}
    assert (states[1], states[0], states[3]) == ("exited", "running", "running"), (
        "it was written before they were ended"
    )
    assert [rank["log_tail"] for rank in incident["ranks"] if rank["rank"] == 0] == [["token ***"]]
    assert TOKEN not in json.dumps(incidents)


def test_a_launch_that_fails_names_the_command(forge: Forge) -> None:
    forge.write("imports.py", "import not_there")
    result = forge.run("launch", forge.spec("scripts: {imports: {run: imports.py, preload: []}}"))
    [run] = forge.runs()
    assert "  try: install not_there for the interpreter of the ranks on this machine" in result.stderr
    assert result.stderr.endswith(f"forgectl: `forgectl why {run}` tells more\n")
    refused = forge.run("launch", forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, preload: [not_there]}}"))
    assert refused.returncode
    found = why(forge)
    assert found == why(forge, "spec"), "its name means the latest run of it"
    assert found["kind"] == "not_started"
    assert "has no not_there, which `preload` names" in found["summary"]


def test_events_and_why_of_a_run_that_lives(forge: Forge) -> None:
    forge.write("crash.py", RESTARTED)
    assert forge.run("why").returncode == 66
    run = forge.launch("scripts: {crash: {run: crash.py, preload: [], restart: {max: 9, backoff: 0}}}")
    forge.until_mesh(run, "crash", lambda m: (m["generation"], m["state"]) == (1, "running"))
    found = why(forge)
    assert (found["run"], found["kind"], found["ended_at"]) == (run, "goes_on", None)
    assert found["summary"].startswith("crash is running, 1 of 1 ranks ready")
    assert found["meshes"][0]["failure"]["policy"] == "restart 1 of 9 at once"
    assert "before it failed: rank 0 on local exited with code 7" in forge.ok("why", "crash")

    follower = forge.start("events", "-f", "--json")
    assert follower.stdout is not None
    first = [json.loads(follower.stdout.readline()) for _ in events(forge)]
    assert [e["event"] for e in first][-2:] == ["rank_started", "mesh_up"]
    end(controller_of(forge, run))
    before = first[-1]["seq"]
    found = why(forge, run)  # starts another controller
    assert found["kind"] == "goes_on"
    forge.ok("shutdown", "--run", run)
    out, _ = follower.communicate(timeout=60)
    later = [json.loads(line) for line in out.splitlines()]
    assert [e["seq"] for e in later] == list(range(before + 1, before + 1 + len(later)))
    assert (later[0]["event"], later[-1]["event"]) == ("controller_replaced", "run_ended")
    whole = events(forge, run)
    assert whole == first + later, "the same events, while it lives and afterwards"
    assert all(a["monotonic"] <= b["monotonic"] and a["time"] <= b["time"] for a, b in itertools.pairwise(whole))
    assert (later[-1]["by"], why(forge, run)["kind"]) == ("forgectl shutdown", "user")

    since = whole[-3]["time"]
    assert events(forge, run, "--since", since) == [e for e in whole if e["time"] >= since]
    assert {e["mesh"] for e in events(forge, "crash")} == {"crash"}
    assert {e["rank"] for e in events(forge, "crash/0")} == {0}
    lines = forge.ok("events", run).splitlines()
    assert [line.split()[:2] for line in lines] == [[e["time"], e["event"]] for e in whole]


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_why_without_a_controller_or_a_whole_journal(forge: Forge, damage: str) -> None:
    forge.write("fail.py", "raise ValueError('bad')")
    run = over(forge, "scripts: {fail: {run: fail.py, preload: []}}")["run"]
    folder = forge.run_dir(run)
    journal = folder / "events.jsonl"
    if damage == "truncated":
        journal.write_bytes(journal.read_bytes()[:300])
    else:
        journal.unlink()
    found = why(forge, run)
    assert (found["kind"], found["meshes"][0]["failure"]["message"]) == (
        "exception",
        "rank 0 on local exited with code 1: ValueError: bad",
    )


def test_a_host_that_is_lost(forge: Forge) -> None:
    run = forge.launch(
        """
hosts: [{name: a, local: true}, {name: b, local: true}]
scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, hosts: 2, preload: []}}
"""
    )
    agent = next(h["agent_pid"] for h in forge.document(run)["hosts"] if h["name"] == "b")
    end(agent, signal.SIGKILL)
    until(lambda: run not in [r["run"] for r in forge.status() if not r["ended_at"]], "the end")
    found = why(forge, run)
    assert (found["kind"], found["meshes"][0]["failure"]["host"]) == ("host_lost", "b")
    assert [e["host"] for e in events(forge, run) if e["event"] == "host_lost"] == ["b"]
