"""Actors on the lab's hosts: over its real network, with its firewalls and cut cables."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.far import FarActors, Start, Worker, ask, hear, tell
from tests.lab.lab import Lab

pytest.importorskip("monarch")


@pytest.fixture
def far(lab: Lab) -> Iterator[FarActors]:
    folder = Path(tempfile.mkdtemp(prefix="forge-"))
    far = FarActors(folder)
    yield far
    far.close()
    shutil.rmtree(folder)


def start_on(lab: Lab, host: str) -> Start:
    pipe = subprocess.PIPE
    return lambda argv: lab.popen(host, argv, stdin=pipe, stdout=pipe)


def workers(far: FarActors, lab: Lab) -> list[Worker]:
    """One on each host."""
    found = []
    for host in lab.names:
        folder = lab.run(host, ["mktemp", "-d"]).stdout.strip()
        found.append(far.worker(lab.address(host), start_on(lab, host), folder))
    return found


def test_a_driver_calls_ranks_on_three_hosts(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    assert hear(driver) == {"value": "ready"}
    found = ask(driver, "spawn", "m", [w.url for w in away])
    assert [host for _, host, _ in found] == lab.names
    near = ask(driver, "spawn", "near", [None])
    assert ask(driver, "call", "m", "ask", "near") == [near] * 3


def test_a_driver_that_cannot_be_dialled_back_goes_through_a_host(far: FarActors, lab: Lab) -> None:
    for host in lab.names:
        lab.drop(host, "out", lab.launcher, dials=True)
    away = workers(far, lab)
    driver = far.driver(gateway=away[0].url)
    assert hear(driver) == {"value": "ready"}
    found = ask(driver, "spawn", "m", [w.url for w in away])
    assert [host for _, host, _ in found] == lab.names
    near = ask(driver, "spawn", "near", [None])
    assert ask(driver, "call", "m", "ask", "near") == [near] * 3
    assert ask(driver, "call", "near", "ask", "m") == [found]
    tell(driver, ["call", "m", "first_raises"])
    assert hear(driver)["error"] == "LookupError"


def test_a_call_outlasts_a_cut_link(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    assert hear(driver) == {"value": "ready"}
    found = ask(driver, "spawn", "m", [w.url for w in away])
    lab.cut("host2")
    tell(driver, ["call", "m", "where"])
    tell(driver, ["slice", "m", 2])
    lab.mend("host2")
    assert hear(driver) == {"value": found}
    assert hear(driver) == {"value": [found[2]]}


def test_a_host_that_is_gone_keeps_nothing_else_from_working(far: FarActors, lab: Lab) -> None:
    away = workers(far, lab)
    driver = far.driver(address=lab.gateway)
    assert hear(driver) == {"value": "ready"}
    found = ask(driver, "spawn", "m", [w.url for w in away])
    lab.cut("host2")
    assert ask(driver, "slice", "m", 0) == [found[0]]
    again = ask(driver, "spawn", "m", [away[0].url, away[2].url, away[2].url])
    assert [host for _, host, _ in again] == ["host1", "host3", "host3"]
    lab.mend("host2")
