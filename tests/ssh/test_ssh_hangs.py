"""Ranks of ssh hosts that hang: noticed by their agents, and looked at on all hosts."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.conftest import until
from tests.ssh.conftest import Far

GOES_ON = "scripts: {h: {run: goes_on.py collectives, procs: 4, hosts: 2, hang: {after: 2s}}}"


def test_a_stopped_rank_of_another_host_is_named(far: Far) -> None:
    run = far.launch(GOES_ON, "host1", "host2")
    ranks = far.forge.mesh(run, "h")["ranks"]
    until(lambda: None not in [r["seconds_since_progress"] for r in far.forge.mesh(run, "h")["ranks"]], "progress")
    far.lab.kill("host2", ranks[3]["pid"], signal=signal.SIGSTOP)
    mesh = far.forge.until_mesh(run, "h", lambda m: len((m.get("hung") or {"ranks": ()})["ranks"]) == 4)
    assert "SIGSTOP" in mesh["hung"]["message"]
    told = json.loads(far.forge.ok("why", run, "--json"))["meshes"][0]
    assert (told["failure"]["rank"], told["failure"]["host"]) == (3, "host2")
    stacks = json.loads(Path(told["incident"]).read_text())["stacks"]
    assert {stack["host"] for stack in stacks} == {"host1", "host2"}
    far.lab.kill("host2", ranks[3]["pid"], signal=signal.SIGCONT)
    far.forge.until_mesh(run, "h", lambda m: m.get("hung") is None)
