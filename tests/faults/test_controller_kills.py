"""The controller is killed again and again under load: no rank is lost, and no event is lost or doubled."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.conftest import Forge, until
from tests.faults.chaos import Victims, events_of
from tests.faults.history import faults
from tests.process.deaths import births, pids

LOAD = """
scripts:
  stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}
  fall: {run: PROGRAMS/fall.py, procs: 2, preload: [], restart: {max: 100000, backoff: 0}}
  asked: {run: PROGRAMS/stay.py, procs: 2, preload: []}
"""
OTHER = "scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"
KILLS = 50


def come_and_go(forge: Forge, over: threading.Event, wrong: list[str]) -> None:
    """Launch and shut down other runs, and restart a mesh, until it is over."""
    number = 0
    while not over.is_set():
        number += 1
        name = f"other{number}"
        for words in (
            ("launch", "other.yaml", "-d", "--name", name),
            ("restart", "load/asked"),
            ("shutdown", "--run", name),
        ):
            done = forge.run(*words)
            if done.returncode:
                wrong.append(f"{words}: {done.returncode} {done.stderr}")


@pytest.mark.timeout(300)
def test_fifty_kills_under_load_lose_no_rank_and_no_event(forge: Forge, chance: random.Random) -> None:
    forge.spec(OTHER, "other.yaml")
    run = forge.launch(LOAD, "--name", "load")
    before = pids(forge.mesh(run, "stay"))
    victims, over, wrong = Victims(forge, chance), threading.Event(), list[str]()
    load = threading.Thread(target=come_and_go, args=(forge, over, wrong))
    load.start()
    try:
        while len(victims.hits) < KILLS:
            until(lambda: forge.roles(run)["controller"] or not forge.status(), "a controller")
            time.sleep(chance.uniform(0, 0.2))  # the moment is what is tested
            if victim := victims.any_of(run, "controller"):
                victims.kill(*victim)
    finally:
        over.set()
        load.join()
    assert not wrong, wrong
    mesh = forge.mesh(run, "stay")
    assert (mesh["state"], mesh["generation"], pids(mesh)) == ("running", 0, before)
    forge.until_state(run, "asked", "running")
    forge.ok("shutdown", "--run", run)
    assert forge.until_ended(run)["state"] == "stopped"
    events = events_of(forge, run)
    born = births(forge, run)
    assert born <= KILLS + 1
    assert not (found := faults(events, ended=True, replaced=born - 1)), found
    logs = forge.run_dir(run) / "logs"
    for name in ("stay", "fall", "asked"):
        started = {(e["generation"], e["rank"]) for e in events if e["event"] == "rank_started" and e["mesh"] == name}
        wrote = {(int(p.parent.name), int(p.stem.removeprefix("rank-"))) for p in logs.glob(f"{name}/*/rank-*.log")}
        assert started == wrote, f"{name}: {started ^ wrote}"
